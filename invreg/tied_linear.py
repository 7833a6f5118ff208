"""What does a linear layer make of a whole orbit, at less than the cost of its rows?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from invreg.groups import FiniteGroup
from invreg.pooling import Reduction, reduced

__all__ = ["OrbitLinear", "matched_sources"]

MOST_ENTRIES = 2**22
"""Up to so many entries, ``order`` times those of a sample, are kept as indices: 32 MB."""

_MOST_ELEMENTS = 128

_WORTHWHILE = 0.7
"""The part of an expanded layer's multiplications that may remain."""

_ROW_SAVINGS, _ROW_SAVINGS_CACHED = 256, 64
"""From so many rows times plain layers saved on, coefficients are faster: with those of the weight to be made and
differentiated, or compared with kept ones. As measured by ``python -m tests.benchmarks tying``.
"""


class OrbitLinear:
    r"""A linear layer at all transforms of its input, as products of Fourier coefficients over the group.

    With the entries of a sample in their orbits, :math:`W (g x) = \sum_a \hat W_a \hat x_{ag}` is a correlation over
    the group, so that for each irreducible representation :math:`\rho` one product of matrices,
    :math:`\hat W(\rho)^T \hat x(\rho)`, holds what all elements need. Turns by quarters take 1.5 times the products
    of the plain layer so instead of 4 times, ``Dihedral(4)`` 1.5 instead of 8, and a mean one ``order``-th.

    While the weight needs no gradient on a CPU, its coefficients are kept, with a copy of it to compare: two to three
    times its memory.

    Args:
        group: The group.
        sources: Element ``g`` brings to entry ``i`` of the layer's input the one at ``sources[g, i]``; int64, on the
            CPU, shape ``(order, n)``.
        reduction: How the orbit is pooled, as in ``GroupPooling``.

    Raises:
        ValueError: The products saved are too few, the group too large, or ``sources`` no action of it.

    Source: Serre (1977), "Linear Representations of Finite Groups", section 6.2, over the real numbers.
    """

    def __init__(
        self, group: FiniteGroup, sources: Tensor, reduction: Literal["max", "mean"] | Reduction = "max"
    ) -> None:
        if not 1 < group.order <= _MOST_ELEMENTS or sources.numel() > MOST_ENTRIES:
            raise ValueError(f"The order must be from 2 to {_MOST_ELEMENTS}: got {group.order}.")
        self.group, self.reduction = group, reduction
        first = sources.min(0).values  # of the orbit that an entry is in
        representatives = torch.unique(first)
        entries = sources[:, representatives]
        stabilizer = (entries == representatives).sum(0)
        blocks = [_Block.trivial(group.order)] if reduction == "mean" else _blocks(group)
        self._sizes = [(block.dimension, block.columns) for block in blocks]
        products = sum(size**2 * columns for size, columns in self._sizes) * len(representatives)
        self._saved = group.order - products / sources.shape[1]
        if products > _WORTHWHILE * sources.numel():
            raise ValueError(f"Too little is saved: {products} products remain of {sources.numel()}.")
        free = bool((stabilizer == 1).all())
        self._tables = _Tables(
            sources=sources.flatten(),
            entries=entries.flatten(),
            share=None if free else 1 / stabilizer.double(),
            of_data=torch.cat([block.of_data for block in blocks]),
            of_weight=torch.cat([block.of_weight for block in blocks]),
            to_orbit=torch.cat([block.to_orbit for block in blocks], 1),
        )
        self._placed: dict[tuple[torch.device, torch.dtype], _Tables] = {}
        self._cache: tuple[Tensor, list[Tensor]] | None = None
        self._check(sources)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made anew."""
        return {**self.__dict__, "_placed": {}, "_cache": None}

    def applies(self, x: Tensor, weight: Tensor) -> bool:
        """Whether it is precise and no slower than expanding the data."""
        if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type):
            return False  # half precision rounds coefficients more than outputs
        if torch.compiler.is_compiling():  # where the number of rows may be unknown
            return True
        cached = x.device.type != "cpu" or not _records(weight)
        return x.shape[0] * self._saved >= (_ROW_SAVINGS_CACHED if cached else _ROW_SAVINGS)

    def expanded(self, x: Tensor) -> Tensor:
        """The layer's input ``(N, n)`` at every element, ``(order * N, n)``."""
        sources = self._on(x).sources
        rows = x.index_select(1, sources).view(x.shape[0], self.group.order, x.shape[1])
        return rows.transpose(0, 1).flatten(0, 1)

    def pooled(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """What pooling over the layer's outputs at the orbit of its input ``(N, n)`` gives, ``(N, out)``."""
        orbit = self._orbit(x, self._coefficients(layer.weight))
        if callable(self.reduction):
            return self.reduction(orbit if layer.bias is None else orbit + layer.bias)
        outputs = reduced(orbit, self.reduction)
        return outputs if layer.bias is None else outputs + layer.bias

    def _orbit(self, x: Tensor, coefficients: list[Tensor]) -> Tensor:
        """The outputs without bias, ``(order, N, out)``, or ``(1, N, out)`` their mean."""
        tables = self._on(x)
        data = self._transformed(x, tables.of_data, tables)
        parts, start = [], 0
        for (size, columns), coefficient in zip(self._sizes, coefficients, strict=True):
            part = data[:, start : start + size * columns].reshape(x.shape[0], columns, coefficient.shape[1])
            outputs = F.linear(part.contiguous() if columns > 1 else part[:, 0], coefficient)
            parts.append(outputs.reshape(x.shape[0], columns * size, len(coefficient) // size))
            start += size * columns
        together = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return torch.matmul(tables.to_orbit, together).transpose(0, 1)

    def _coefficients(self, weight: Tensor) -> list[Tensor]:
        """Those of a weight: for each representation, a matrix."""
        if _records(weight) or not _comparable(weight):
            return self._fresh(weight)
        cache = self._cache
        # The values are compared, since not every change leaves a trace (``.data``, NumPy, other processes).
        if cache is None or cache[0].dtype != weight.dtype or not torch.equal(cache[0], weight):
            with torch.inference_mode(False), torch.no_grad():
                copy = weight.detach().clone()
                self._cache = cache = (copy, self._fresh(copy))
        return cache[1]

    def _fresh(self, weight: Tensor) -> list[Tensor]:
        tables = self._on(weight)
        data = self._transformed(weight, tables.of_weight, tables, shared=True)
        parts, start = [], 0
        for size, _ in self._sizes:
            part = data[:, start : start + size**2].reshape(len(weight), size, -1)
            parts.append(part.transpose(0, 1).flatten(0, 1).contiguous())
            start += size**2
        return parts

    def _transformed(self, rows: Tensor, matrix: Tensor, tables: _Tables, *, shared: bool = False) -> Tensor:
        orbits = rows.index_select(1, tables.entries).view(
            rows.shape[0], self.group.order, len(tables.entries) // self.group.order
        )
        if shared and tables.share is not None:
            orbits = orbits * tables.share
        return torch.matmul(matrix, orbits)

    def _on(self, x: Tensor) -> _Tables:
        key = x.device, x.dtype
        if key not in self._placed:
            self._placed[key] = self._tables.to(*key)
        return self._placed[key]

    def _check(self, sources: Tensor) -> None:
        """Raises unless this is what expanding gives, which it is not where elements do not compose as they act."""
        rng = torch.Generator().manual_seed(0)
        x, weight = torch.randn(2, 1, sources.shape[1], dtype=torch.float64, generator=rng)
        orbit = (x[0, sources] * weight).sum(1)
        expected = orbit.mean(0, keepdim=True) if self.reduction == "mean" else orbit
        found = self._orbit(x, self._fresh(weight)).flatten()
        if not torch.allclose(found, expected, rtol=1e-8, atol=1e-8):
            raise ValueError(f"{self.group!r} does not act on the layer's input as its elements compose.")


def matched_sources(orbits: Tensor) -> Tensor | None:
    """Where entries come from under each element, if all that it does is to move them.

    Args:
        orbits: Two samples with distinct entries under every element, as a layer receives them: ``(2, order, n)``.

    Returns:
        As ``OrbitLinear`` takes it, shape ``(order, n)``; None where it does more, or not the same to both.
    """
    first, second = orbits.detach().cpu()
    values, positions = first.sort(-1)
    if not (values == values[0]).all() or not (values[0].diff() > 0).all():
        return None
    sources = torch.empty_like(positions).scatter_(1, positions, positions[0].expand_as(positions))
    return sources if torch.equal(second, second[0][sources]) else None


class _Tables(NamedTuple):
    """Where entries are taken from, and the Fourier transforms over the group, on one device in one dtype."""

    sources: Tensor
    entries: Tensor
    share: Tensor | None
    of_data: Tensor
    of_weight: Tensor
    to_orbit: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> _Tables:
        with torch.inference_mode(False):
            return _Tables(
                self.sources.to(device),
                self.entries.to(device),
                None if self.share is None else self.share.to(device, dtype),
                *(matrix.to(device, dtype) for matrix in self[3:]),
            )


class _Block(NamedTuple):
    """What one irreducible representation asks of the data and of the weight, and gives to the orbit."""

    dimension: int
    columns: int
    of_data: Tensor
    of_weight: Tensor
    to_orbit: Tensor

    @classmethod
    def trivial(cls, order: int) -> _Block:
        """The one of the mean."""
        ones = torch.ones(1, order, dtype=torch.float64)
        return cls(1, 1, ones, ones, torch.full((1, 1), 1 / order, dtype=torch.float64))


def _blocks(group: FiniteGroup) -> list[_Block]:
    """One for each irreducible representation over the real numbers."""
    blocks = []
    for matrices, endomorphisms in _representations(group.cayley_table(), group.inverse(group.elements())):
        order, size, _ = matrices.shape
        # Where the maps that commute with it take one vector to all others, one column says what all columns do.
        columns = 1 if endomorphisms == size else size
        scale = size / order / (1 if columns == 1 else endomorphisms)
        some = matrices[:, :, :columns]
        blocks.append(
            _Block(
                dimension=size,
                columns=columns,
                of_data=some.permute(2, 1, 0).flatten(0, 1),
                of_weight=matrices.permute(2, 1, 0).flatten(0, 1),
                to_orbit=scale * some.transpose(1, 2).flatten(1),
            )
        )
    return blocks


def _representations(table: Tensor, inverse: Tensor) -> list[tuple[Tensor, int]]:
    """The irreducible real representations, ``(order, d, d)``, and the dimension of what commutes with each.

    They are the eigenspaces of a random symmetric matrix that commutes with the regular representation.
    """
    order = len(table)
    weights = torch.rand(order, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    commuting = (weights + weights[inverse])[table[inverse]]
    values, vectors = torch.linalg.eigh(commuting)
    starts = [0, *(1 + (values.diff() > 1e-8 * order).nonzero().flatten()).tolist(), order]
    found: list[tuple[Tensor, Tensor, int]] = []
    for start, stop in pairwise(starts):
        basis = vectors[:, start:stop]
        matrices = torch.einsum("ghi,hj->gij", basis[table], basis)
        character = matrices.diagonal(dim1=1, dim2=2).sum(1)
        if all(abs(float(character @ other)) < 0.5 for _, other, _ in found):
            found.append((matrices, character, round(float(character @ character) / order)))
    if sum(matrices.shape[1] ** 2 // endomorphisms for matrices, _, endomorphisms in found) != order:
        raise ValueError("The table must be that of a group whose representations can be told apart.")
    return [(matrices, endomorphisms) for matrices, _, endomorphisms in found]


def _records(weight: Tensor) -> bool:
    """Whether derivatives are taken with respect to it."""
    return (weight.requires_grad and torch.is_grad_enabled()) or _has_tangent(weight)


def _has_tangent(weight: Tensor) -> bool:
    return forward_ad.unpack_dual(weight).tangent is not None  # type: ignore[no-untyped-call]  # torch's own


def _comparable(weight: Tensor) -> bool:
    """Whether its values can be read at once; those on an accelerator would have to be waited for."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's own
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    )
