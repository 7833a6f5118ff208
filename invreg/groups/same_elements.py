"""How does a group borrow its elements from another one, and act in its own way?"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup, Group


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
