"""How does a part of a group act?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from invreg.groups.batch import Batch
from invreg.groups.contract import Group
from invreg.groups.custom import TableGroup, multiplication_table


@dataclass(frozen=True)
class Restricted(TableGroup):
    """A finite subgroup of a group, which acts as the group does.

    It makes any group one that can be listed: three turns by 120° of ``PlanarRotation``, the cyclic shifts among all
    permutations, the rotations among the symmetries of a square.

    Args:
        group: The group, finite or not.
        subgroup: Elements of the group, a list or a stack, shape ``(m, *element_shape)``. They and all their products
            are the subgroup, so that generators are enough.
        max_order: Where the search for products stops with an error.

    Raises:
        TypeError: ``group`` is no group, or ``subgroup`` holds no elements of it.
        ValueError: ``subgroup`` is empty, holds no elements of the group, or makes more than ``max_order`` elements.

    Example:
        >>> from math import pi
        >>> from invreg import Dihedral, PlanarRotation
        >>> Restricted(Dihedral(4), [1]).order
        4
        >>> Restricted(PlanarRotation(mode="bicubic"), [[2 * pi / 3]]).order
        3
    """

    group: Group
    subgroup: Sequence[Any] | Tensor
    max_order: int = field(default=1_000, compare=False, repr=False)
    order: int = field(init=False, compare=False, repr=False)
    _members: Tensor = field(init=False, compare=False, repr=False)
    _generators: Tensor = field(init=False, compare=False, repr=False)
    _table: Tensor = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise TypeError(f"Restricted takes a group: got {self.group!r}.")
        if self.max_order < 1:
            raise ValueError(f"A group has at least one element: got max_order={self.max_order}.")
        generators = _as_elements(self.subgroup, self.group)
        object.__setattr__(self, "subgroup", _nested(generators.tolist()))
        members, times_generator = self._close(generators)
        object.__setattr__(self, "order", len(members))
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_generators", torch.unique(times_generator[0]))
        object.__setattr__(self, "_table", multiplication_table(times_generator))

    @property
    def exact(self) -> bool:  # type: ignore[override]  # derived, where the base class has an attribute
        """As of the group."""
        return self.group.exact

    def generators(self) -> Tensor:
        """The indices of the elements given, each once."""
        return self._generators[self._generators > 0]

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Lets the group act by the element of this index."""
        return self.group.act(self._members[index], x)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Lets the group act by the element of each index."""
        return self.group.act(self._members.to(g.device)[g], x)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Lets the group act on maps; see ``Group.act_on_map``."""
        self._check_action(g, m)
        return self.group.act_on_map(self._members.to(g.device)[g], m)

    def _name(self, g: Tensor) -> str:
        return self.group.describe(self._members[g])

    def _check_batch(self, x: Batch) -> Tensor:
        return self.group._check_batch(x)

    def _close(self, generators: Tensor) -> tuple[Tensor, Tensor]:
        """All products of the generators, breadth first; the index of each one times each generator."""
        members = self.group.identity[None]
        times_generator: list[list[int]] = []
        while len(times_generator) < len(members):
            row = []
            for product in self.group.compose(members[len(times_generator)], generators):
                same = self._are_same(members, product).nonzero()
                if not len(same):
                    if len(members) == self.max_order:
                        raise ValueError(
                            f"The {len(generators)} element(s) given make a subgroup of more than max_order="
                            f"{self.max_order} elements. Raise max_order if that is meant; real numbers, such as an "
                            "angle that is no fraction of a full turn, may make infinitely many."
                        )
                    members = torch.cat([members, product[None]])
                row.append(int(same[0]) if len(same) else len(members) - 1)
            times_generator.append(row)
        return members, torch.tensor(times_generator)

    def _are_same(self, members: Tensor, g: Tensor) -> Tensor:
        """Which members equal ``g``, shape ``(len(members),)``: up to rounding, and whatever numbers stand for it."""
        if not members.is_floating_point():
            return (members == g).view(len(members), -1).all(1)
        apart = self.group.compose(self.group.inverse(members), g) - self.group.identity
        return apart.abs().view(len(members), -1).amax(1) < 1e-6


def _as_elements(subgroup: Any, group: Group) -> Tensor:
    """The elements given, as one stack."""
    if isinstance(subgroup, (list, tuple)) and subgroup and all(isinstance(g, Tensor) for g in subgroup):
        subgroup = torch.stack(list(subgroup))
    given = torch.as_tensor(subgroup)
    if not group.element_dtype.is_floating_point and given.is_floating_point() and given.numel():
        raise TypeError(f"Elements of {group!r} are whole numbers: got {given.dtype}.")
    if not isinstance(subgroup, Tensor):  # anew, since a list of numbers was rounded to the default dtype
        given = torch.as_tensor(subgroup, dtype=group.element_dtype)
    if given.ndim == 0 or not len(given) or given.shape[1:] != group.element_shape:
        raise ValueError(
            f"subgroup must hold one or more elements of {group!r}, shape (m, *{tuple(group.element_shape)}): "
            f"got shape {tuple(given.shape)}."
        )
    elements = given.cpu().to(group.element_dtype)
    group._check_elements(elements)
    return elements


def _nested(values: Any) -> Any:
    """Nested lists as tuples, so that they hash."""
    return tuple(map(_nested, values)) if isinstance(values, list) else values
