"""How does a group borrow its elements from another one, and act in its own way?"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup, Group

_LARGEST_TABLE = 200
"""Up to which order the multiplication tables of finite groups are compared."""

_PAIRS = 500
"""How many products are compared of others."""


class SameElements(Group):
    """A group with the elements of another one, composed, inverted and drawn as there."""

    @property
    @abstractmethod
    def lender(self) -> Group:
        """The group whose elements these are."""

    @property
    def element_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # derived, as those below
        """As of the lender."""
        return self.lender.element_shape

    @property
    def element_dtype(self) -> torch.dtype:  # type: ignore[override]
        """As of the lender."""
        return self.lender.element_dtype

    @property
    def order(self) -> float:  # type: ignore[override]
        """As of the lender."""
        return self.lender.order

    @property
    def local(self) -> bool:  # type: ignore[override]
        """As of the lender."""
        return self.lender.local

    @property
    def identity(self) -> Tensor:
        """As of the lender."""
        return self.lender.identity

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """As the lender does; see ``Group.compose``."""
        self._check_elements(g, h)
        return self.lender.compose(g, h)

    def inverse(self, g: Tensor) -> Tensor:
        """As the lender does; see ``Group.inverse``."""
        self._check_elements(g)
        return self.lender.inverse(g)

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """As the lender does; see ``Group.sample``."""
        return self.lender.sample(n, rng)

    def sample_non_identity(self, n: int, k: int, rng: torch.Generator | None = None) -> Tensor:
        """As the lender does; see ``Transformations``."""
        return self.lender.sample_non_identity(n, k, rng)

    def _name(self, g: Tensor) -> str:
        return self.lender.describe(g)

    def _check_values(self, g: Tensor) -> None:
        self.lender._check_values(g)


class SameFiniteElements(FiniteGroup, SameElements):
    """The same of a finite group."""

    element_shape = ()
    element_dtype = torch.int64

    @property
    def order(self) -> int:  # type: ignore[override]
        """As of the lender."""
        return int(self.lender.order)

    def generators(self) -> Tensor:
        """As of the lender."""
        assert isinstance(self.lender, FiniteGroup)
        return self.lender.generators()


def compose_alike(a: Group, b: Group) -> bool:
    """Whether elements of one group are elements of the other, with the same products, as far as can be seen."""
    if (tuple(a.element_shape), a.element_dtype, a.order) != (tuple(b.element_shape), b.element_dtype, b.order):
        return False
    if isinstance(a, FiniteGroup) != isinstance(b, FiniteGroup):
        return False
    if isinstance(a, FiniteGroup) and isinstance(b, FiniteGroup) and a.order <= _LARGEST_TABLE:
        return torch.equal(a.cayley_table(), b.cayley_table())
    g, h = a.sample(2 * _PAIRS, torch.Generator().manual_seed(0)).chunk(2)
    try:
        products, inverses = (a.compose(g, h), b.compose(g, h)), (a.inverse(g), b.inverse(g))
    except ValueError:
        return False
    return all(torch.allclose(one.double(), other.double()) for one, other in (products, inverses))
