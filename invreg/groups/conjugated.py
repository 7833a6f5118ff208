"""How does a group act behind a preprocessing step?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup, Group
from invreg.groups.same_elements import SameElements, SameFiniteElements

_UNDONE = 1e-2
"""How far the inverse may be from undoing the transform, relative to the norm of the inputs; bfloat16 has no more."""


@dataclass(frozen=True, init=False, repr=False)
class Conjugated(SameElements):
    """The same group behind a preprocessing step: an input is transformed, acted on, and transformed back.

    For inputs on which the group does not act as they are: images that come flattened, in patches, whitened, or as
    coefficients. A ``FiniteGroup`` if ``group`` is one. Maps are transformed, acted on and transformed back as well.

    Args:
        group: The group, which acts on what ``transform`` returns.
        transform: The preprocessing step, a callable from inputs ``(N, ...)`` to inputs on which the group acts. It can
            be undone.
        inverse: The callable that undoes it. None takes ``transform.inv``, which the transforms of
            ``torch.distributions`` have.
        exact: Whether both only move entries, so that the action is exact where the group's is.

    Raises:
        TypeError: ``group`` is no group, ``transform`` or ``inverse`` no callable.
        ValueError: When it first acts on inputs of a shape: ``inverse`` does not undo ``transform``.

    Example:
        >>> from invreg import CyclicRotation
        >>> group = Conjugated(CyclicRotation(4), lambda x: x.unflatten(1, (2, 2)), lambda x: x.flatten(1), exact=True)
        >>> group.act(torch.tensor(1), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[2., 4., 1., 3.]])
    """

    group: Group
    _to_group: Callable[[Tensor], Tensor]
    _inverse_transform: Callable[[Tensor], Tensor] | None
    exact: bool
    _shapes_checked: set[tuple[int, ...]] = field(default_factory=set, compare=False)

    def __init__(
        self,
        group: Group,
        transform: Callable[[Tensor], Tensor],
        inverse: Callable[[Tensor], Tensor] | None = None,
        *,
        exact: bool = False,
    ) -> None:
        if not isinstance(group, Group):
            raise TypeError(f"Conjugated takes a group: got {group!r}.")
        found = getattr(transform, "inv", None) if inverse is None else inverse
        if not callable(transform) or not callable(found):
            raise TypeError(
                "Conjugated takes a transform and what undoes it, both callables: got "
                f"{transform!r} and {found!r}. Give inverse=."
            )
        fields = {"group": group, "_to_group": transform, "_inverse_transform": inverse}
        fields |= {"exact": exact and group.exact, "_shapes_checked": set()}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if isinstance(group, FiniteGroup) and type(self) is Conjugated:
            object.__setattr__(self, "__class__", _FiniteConjugated)

    def __repr__(self) -> str:
        functions = [self._to_group] + ([self._inverse_transform] if self._inverse_transform else [])
        names = (getattr(function, "__name__", repr(function)) for function in functions)
        return f"Conjugated({self.group!r}, {', '.join(names)}, exact={self.exact})"

    @property
    def lender(self) -> Group:
        """The group."""
        return self.group

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Transforms, acts, transforms back; see ``Transformations.act``."""
        self._check_action(g, x)
        return self._between(lambda y: self.group.act(g, y), x)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Transforms the map, acts, transforms back; see ``Group.act_on_map``."""
        self._check_action(g, m)
        return self._between(lambda y: self.group.act_on_map(g, y), m)

    def _between(self, action: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        transformed = self._to_group(x)
        if tuple(x.shape[1:]) not in self._shapes_checked and len(x) and not torch.compiler.is_compiling():
            self._check_undone(x, self._from_group(transformed))
        return self._from_group(action(transformed))

    def _from_group(self, y: Tensor) -> Tensor:
        inverse = self._to_group.inv if self._inverse_transform is None else self._inverse_transform  # type: ignore[attr-defined]  # checked when made
        x: Tensor = inverse(y)
        return x

    def _check_undone(self, x: Tensor, back: Tensor) -> None:
        same = isinstance(back, Tensor) and (back.shape, back.dtype, back.device) == (x.shape, x.dtype, x.device)
        if same:
            try:
                size = float(x.double().norm())
                close = float((back - x).double().norm()) <= _UNDONE * size
            except RuntimeError:  # under vmap, or on the meta device, there are no values to read
                return
            if close or not bool(x.isfinite().all()):
                if size > 0:  # zeros show nothing
                    self._shapes_checked.add(tuple(x.shape[1:]))
                return
        came = f"{tuple(back.shape)}, {back.dtype}" if isinstance(back, Tensor) else type(back).__name__
        raise ValueError(
            f"{self!r}: the inverse must undo the transform: inputs {tuple(x.shape)}, {x.dtype}, came back as "
            f"{came}" + (", with other values." if same else ".")
        )


class _FiniteConjugated(SameFiniteElements, Conjugated):
    """The same of a finite group."""

    group: FiniteGroup

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Transforms, acts by one element, transforms back."""
        return self._between(lambda y: self.group.transform(index, y), x)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Transforms, acts by one element per sample, transforms back."""
        return self._between(lambda y: self.group.transform_each(g, y), x)
