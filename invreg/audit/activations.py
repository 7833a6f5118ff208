"""How far apart are a layer's outputs for inputs and for their transformed copies?"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from invreg.groups import Group, Transformations, TransformationSet
from invreg.groups.batch import Batch, first_tensor, map_tensors, tensors
from invreg.groups.transformations import checked

_AT_ONCE = 2**19
"""How many entries of the transformed copies are compared at once: as many as stay in a processor's cache."""


@dataclass(frozen=True)
class Piece:
    """What the copies of some samples show about one tensor.

    Args:
        shape: Shape of one sample.
        rounding: What rounding changes a number of its dtype by, relative to the number.
        invariance: How far each copy is from its sample, ``(K, n)``; for a group of the identity alone a row of zeros.
        equivariance: Likewise after it was moved back; None where it cannot be.
        refusal: Why not.
        mean: Mean of the samples.
        deviation: The norm of their deviations from it, a tensor of shape ``()``.
    """

    shape: tuple[int, ...]
    rounding: float
    invariance: Tensor
    equivariance: Tensor | None
    refusal: str | None
    mean: Tensor
    deviation: Tensor


class Comparison:
    """Compares the copies of some samples, which lie one after another in the batch of one forward.

    Args:
        group: What made the copies.
        elements: By which elements, ``(K, ...)``.
        inputs: The samples.
        refusals: Why the group moves no outputs of these shapes; grows.
    """

    def __init__(
        self, group: Transformations, elements: Tensor, inputs: Batch, refusals: dict[tuple[int, ...], str]
    ) -> None:
        self.group = group
        self.elements = elements
        self.samples = len(first_tensor(inputs))
        self.axes = inputs.ndim if isinstance(inputs, Tensor) else None
        self.refusals = refusals
        self.last: tuple[weakref.ref[Tensor], int, Piece] | None = None

    @property
    def rows(self) -> int:
        """How many rows a forward has."""
        return self.samples * (len(self.elements) + 1)

    def of_output(self, output: Any) -> Piece | str:
        """Compares the rows of what a layer returned; says why if it cannot."""
        found = list(tensors_in(output))
        tensor = next((one for one in found if self.has_rows(one)), None)
        if tensor is not None:
            return self.of(tensor)
        shapes = [tuple(one.shape) for one in found]
        came = f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}" if shapes else "no tensor"
        return f"its output has no floating-point row for each of the {self.rows} inputs given at once, but {came}"

    def has_rows(self, tensor: Tensor) -> bool:
        """Whether a tensor can be compared."""
        strided = tensor.layout == torch.strided and not tensor.is_nested
        return strided and tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == self.rows

    def of(self, tensor: Tensor) -> Piece:
        """Compares the rows of a tensor, which a container returns as the last of its layers did."""
        version = -1 if tensor.is_inference() else tensor._version  # which counts the writes into it
        if self.last is not None and self.last[0]() is tensor and self.last[1] == version >= 0:
            return self.last[2]
        copies = self._copies(tensor)
        refusal, equivariance = self._why_not_moved(copies), None
        if refusal is None:
            try:
                equivariance = self._apart(copies[0], map(self._moved_back, self.elements, copies[1:]))
            except torch.OutOfMemoryError:
                raise
            except (ValueError, RuntimeError, IndexError) as error:  # it is the group's to say what it can move
                refusal = self.refusals[tuple(tensor.shape[1:])] = f"it cannot be moved back: {error}"
        piece = self._piece(tensor, copies, equivariance, refusal)
        self.last = weakref.ref(tensor), version, piece
        return piece

    def of_inputs(self, together: Batch) -> Piece:
        """Compares the inputs with their copies; what is left after these are moved back is the action's own error."""
        flat = _flat(together)
        copies = self._copies(flat)
        if isinstance(self.group, TransformationSet) and not self.group.realigns:
            return self._piece(flat, copies, None, _NO_REALIGN)
        if isinstance(self.group, Group) and self.group.exact:
            return self._piece(flat, copies, copies.new_zeros(max(1, len(self.elements)), self.samples), None)
        back = (self._undone(g, self._copy(together, k)) for k, g in enumerate(self.elements, 1))
        return self._piece(flat, copies, self._apart(copies[0], back), None)

    def _copy(self, together: Batch, number: int) -> Batch:
        """The copies under one element, of the inputs."""
        rows = slice(number * self.samples, (number + 1) * self.samples)
        return map_tensors(lambda tensor: tensor[rows], together)

    def _copies(self, tensor: Tensor) -> Tensor:
        """The samples and their copies apart, in at least float32; ``(K + 1, n, ...)``."""
        tensor = _wide(tensor.detach() if tensor.requires_grad else tensor)
        return tensor.view(-1, self.samples, *tensor.shape[1:])

    def _moved_back(self, element: Tensor, copy: Tensor) -> Tensor:
        moved: Tensor = checked(self.group, self.group.realign(element, copy), copy)
        return moved[None]

    def _undone(self, element: Tensor, moved: Batch) -> Tensor:
        """Inputs after an element, and its inverse where there is one."""
        if isinstance(self.group, Group):
            return _wide(_flat(self.group.act(self.group.inverse(element), moved)))[None]
        return self._moved_back(element, _wide(moved))

    def _piece(self, tensor: Tensor, copies: Tensor, equivariance: Tensor | None, refusal: str | None) -> Piece:
        reference = copies[0]
        mean = reference.mean(0)
        at_once = max(1, _AT_ONCE // max(1, reference.numel()))
        parts = [copies[start : start + at_once] for start in range(1, len(copies), at_once)]
        return Piece(
            shape=tuple(tensor.shape[1:]),
            rounding=torch.finfo(tensor.dtype).eps,
            invariance=self._apart(reference, parts),
            equivariance=equivariance,
            refusal=refusal,
            mean=mean,
            deviation=torch.linalg.vector_norm(reference - mean),
        )

    def _apart(self, reference: Tensor, copies: Iterable[Tensor]) -> Tensor:
        """The distance of each copy, ``(k, n, ...)`` at a time, from its sample; ``(K, n)``."""
        axes = tuple(range(2, reference.ndim + 1))
        norms = [
            torch.linalg.vector_norm(some - reference, dim=axes) if axes else (some - reference).abs()
            for some in copies
        ]
        return torch.cat(norms) if len(norms) > 1 else norms[0] if norms else reference.new_zeros(1, self.samples)

    def _why_not_moved(self, copies: Tensor) -> str | None:
        if isinstance(self.group, TransformationSet) and not self.group.realigns:
            return _NO_REALIGN
        if self.axes is None:
            return "inputs of several tensors do not say how it moves"
        if copies.ndim - 1 != self.axes or self.axes < 3:
            return "its output does not have the axes of an image, by which it would be moved back"
        return self.refusals.get(tuple(copies.shape[2:]))


_NO_REALIGN = "the set does not say how it moves maps (realign=)"


def _wide(tensor: Tensor) -> Tensor:
    """The same in at least float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _flat(inputs: Batch) -> Tensor:
    """The floating-point entries of inputs of several tensors, or all if there are no such, ``(N, entries)``."""
    if isinstance(inputs, Tensor):
        return inputs
    found = [tensor for _, tensor in tensors(inputs)]
    floating = [tensor for tensor in found if tensor.is_floating_point()]
    return torch.cat([tensor.flatten(1) for tensor in floating or [tensor.double() for tensor in found]], 1)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in what a layer takes or returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)) or is_dataclass(output):
        if isinstance(output, Mapping):
            parts: Iterable[Any] = output.values()
        elif isinstance(output, (tuple, list)):
            parts = output
        else:
            parts = (getattr(output, field.name) for field in fields(output))
        for part in parts:
            yield from tensors_in(part)
