"""What if the transformations are no group?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from invreg.groups.transformations import IndexedTransformations, checked

Transformation = Callable[[Tensor], Tensor]

_LONGEST_CALL = 32
"""Up to how many characters the name of a ``functools.partial`` lists its arguments."""


@dataclass(frozen=True, init=False, repr=False)
class TransformationSet(IndexedTransformations):
    """Transformations that are no group: changes of brightness, blur, noise, compression.

    They need not undo one another, nor be closed under doing one after another. So there is no average over a group,
    but over the list that was given, and no action's own error. A loss and an audit take the set in the place of a
    group; a layer cannot be tied to it, and ``check_group`` refuses it. Element 0 leaves inputs as they are, element
    ``i`` applies transform ``i - 1``. Random transforms draw from torch's global generator.

    Args:
        transforms: Callables from a batch ``(N, ...)`` to one of the same shape, dtype and device, which they do not
            write to.
        realign: How to bring a map of the transformed input back to where it lies in the input, one callable per
            transform; ``torch.Tensor.clone`` for those that move nothing. None: audits leave saliency maps out.

    Raises:
        TypeError: ``transforms`` or ``realign`` are no sequences of callables.
        ValueError: ``transforms`` is empty, or ``realign`` has another length. When it acts: a transform changed the
            shape, dtype or device, or wrote into its input.

    Example:
        >>> import torch
        >>> changes = TransformationSet([lambda x: x + 0.1, lambda x: 0.5 * x])
        >>> changes.act(torch.tensor(2), torch.tensor([[1.0, 2.0]]))
        tensor([[0.5000, 1.0000]])
    """

    transforms: tuple[Transformation, ...]
    _realign: tuple[Transformation, ...] | None

    exact = False

    def __init__(
        self, transforms: Sequence[Transformation], *, realign: Sequence[Transformation] | None = None
    ) -> None:
        for name, given in (("transforms", transforms), ("realign", realign)):
            if given is not None and (not isinstance(given, Sequence) or not all(map(callable, given))):
                raise TypeError(f"TransformationSet takes as {name} a list of callables: got {given!r}.")
        if not transforms:
            raise ValueError("TransformationSet takes at least one transform: got none.")
        if realign is not None and len(realign) != len(transforms):
            raise ValueError(
                f"realign must have one callable for each of the {len(transforms)} transforms: got {len(realign)}. "
                "Use torch.Tensor.clone for those that move nothing."
            )
        object.__setattr__(self, "transforms", tuple(transforms))
        object.__setattr__(self, "_realign", None if realign is None else tuple(realign))

    def __repr__(self) -> str:
        return f"TransformationSet([{', '.join(_name_of(t) or type(t).__name__ for t in self.transforms)}])"

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, where the base class has an attribute
        """Number of transforms, and one for leaving inputs as they are."""
        return 1 + len(self.transforms)

    @property
    def realigns(self) -> bool:
        """Whether it is known how the transforms move maps."""
        return self._realign is not None

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Calls one transform on a whole batch and checks what it returns."""
        return self._checked(self.transforms[index - 1], index, x) if index else x.clone()

    def realign(self, g: Tensor, m: Tensor) -> Tensor:
        """Calls what was given for the element, or for each map's; see ``Transformations.realign``."""
        if self._realign is None:
            raise ValueError(
                f"{self!r} does not say how it moves maps: give realign=, or leave maps out, saliency=None."
            )
        self._check_action(g, m)
        realign = TransformationSet(self._realign)
        return realign.act(g, m)

    def _name(self, g: Tensor) -> str:
        names = ["identity", *map(_name_of, self.transforms)]
        name = names[g]
        known = name not in ("", "<lambda>") and names.count(name) == 1
        return name if known or not g else f"transform {int(g)}"

    def _checked(self, transform: Transformation, index: int, x: Tensor) -> Tensor:
        version = None if torch.compiler.is_compiling() or x.is_inference() else x._version  # which counts the writes
        try:
            y = transform(x)
        except Exception as error:
            raise RuntimeError(
                f"{self!r}: transform {index} failed on inputs of shape {tuple(x.shape)}: {error}"
            ) from error
        if version is not None and x._version != version:
            raise ValueError(f"{self!r}: transform {index} writes into its input. Let it return a new tensor.")
        changed: Tensor = checked(self, y, x, f": transform {index}")
        return changed


def _name_of(transform: Transformation) -> str:
    """What a callable is called, with the arguments that a short partial adds; empty if nothing."""
    if not isinstance(transform, partial):
        return str(getattr(transform, "__name__", ""))
    name = _name_of(transform.func)
    arguments = [*map(repr, transform.args), *(f"{key}={value!r}" for key, value in transform.keywords.items())]
    call = f"{name}({', '.join(arguments)})"
    return call if name not in ("", "<lambda>") and len(call) <= _LONGEST_CALL and call.isprintable() else name
