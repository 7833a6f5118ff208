"""How do two commuting groups act together?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup
from invreg.groups.probe import distinct_values, probe_shapes


@dataclass(frozen=True, repr=False)
class DirectProduct(FiniteGroup):
    """All pairs of an element of one group and one of another, whose actions commute. Written ``first * second``.

    The pair ``(i, j)`` is the element ``i * second.order + j``; it acts by ``j``, then by ``i``.

    Args:
        first: A finite group.
        second: A finite group whose action commutes with that of ``first``.

    Raises:
        TypeError: One of the two is no finite group.
        ValueError: The actions do not commute. Found when the product is made or, where that depends on the inputs'
            shape, when it first acts on such inputs.

    Example:
        >>> from invreg import Flip, SignFlip
        >>> group = Flip(-1) * SignFlip()
        >>> group.order
        4
        >>> group.act(torch.tensor(3), torch.tensor([[1.0, 2.0]]))
        tensor([[-2., -1.]])
    """

    first: FiniteGroup
    second: FiniteGroup
    _shapes_checked: set[tuple[int, ...]] = field(default_factory=set, init=False, compare=False)

    def __post_init__(self) -> None:
        for group in (self.first, self.second):
            if not isinstance(group, FiniteGroup):
                raise TypeError(f"A direct product is made of two finite groups: got {group!r}.")
        for shape in probe_shapes((self.first.order, self.second.order)):
            try:
                conflict = self._find_conflict(shape)
            except (ValueError, RuntimeError):  # not a shape that these groups act on: try the next
                continue
            self._raise_if(conflict, shape)
            break

    def __repr__(self) -> str:
        second = f"({self.second!r})" if isinstance(self.second, DirectProduct) else repr(self.second)
        return f"{self.first!r} * {second}"

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, where the base class has an attribute
        """Number of pairs."""
        return self.first.order * self.second.order

    @property
    def exact(self) -> bool:  # type: ignore[override]  # derived, where the base class has an attribute
        """Whether both actions are exact."""
        return self.first.exact and self.second.exact

    def generators(self) -> Tensor:
        """The generators of both groups, each paired with the other's identity."""
        return torch.cat([self.first.generators() * self.second.order, self.second.generators()])

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Composes the pairs' parts; see ``Group.compose``."""
        self._check_elements(g, h)
        (g1, g2), (h1, h2) = self._split(g), self._split(h)
        return self.first.compose(g1, h1) * self.second.order + self.second.compose(g2, h2)

    def inverse(self, g: Tensor) -> Tensor:
        """Inverts the pair's parts; see ``Group.inverse``."""
        self._check_elements(g)
        g1, g2 = self._split(g)
        return self.first.inverse(g1) * self.second.order + self.second.inverse(g2)

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch: the second group's part, then the first's."""
        self._check_commute(x)
        i, j = divmod(index, self.second.order)
        return self.first.transform(i, self.second.transform(j, x))

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample: the second group's parts, then the first's."""
        self._check_commute(x)
        g1, g2 = self._split(g)
        return self.first.transform_each(g1, self.second.transform_each(g2, x))

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element, as the first group's orbit of the second's; see ``FiniteGroup.orbit``."""
        self._check_commute(x)
        second = self.second.orbit(x)
        return self.first.orbit(second.flatten(0, 1)).view(self.order, *x.shape)[0 if identity else 1 :]

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Lets the parts act on the map; see ``Group.act_on_map``."""
        self._check_action(g, m)
        g1, g2 = self._split(g)
        return self.first.act_on_map(g1, self.second.act_on_map(g2, m))

    def _split(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return g // self.second.order, g % self.second.order

    def _find_conflict(self, sample_shape: Sequence[int]) -> tuple[int, int] | None:
        """The first pair of generators that do not commute on a sample of this shape, if there is one."""
        x = distinct_values(sample_shape)
        for i in self.first.generators().tolist():
            for j in self.second.generators().tolist():
                first_last = self.first.transform(i, self.second.transform(j, x))
                second_last = self.second.transform(j, self.first.transform(i, x))
                if not torch.allclose(first_last, second_last, rtol=1e-9):
                    return i, j
        return None

    def _check_commute(self, x: Tensor) -> None:
        """Checks on samples of this shape, once for each: an axis may be another one than on the probe."""
        shape = tuple(x.shape[1:])
        if shape not in self._shapes_checked and not torch.compiler.is_compiling():
            self._raise_if(self._find_conflict(shape), shape)
            self._shapes_checked.add(shape)

    def _raise_if(self, conflict: tuple[int, int] | None, shape: Sequence[int]) -> None:
        if conflict is not None:
            i, j = conflict
            raise ValueError(
                f"{self!r} is no direct product, whose two actions must commute: element {i} of the first and "
                f"element {j} of the second do not, on samples of shape {tuple(shape)}. Rotations and mirrors "
                "together are Dihedral; for other pairs list the actions in FiniteGroup.from_actions."
            )
