"""How does a group act that leaves every entry in its place?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invreg.groups.contract import FiniteGroup
from invreg.groups.cyclic import CyclicGroup


@dataclass(frozen=True)
class Trivial(CyclicGroup):
    """The group that holds the identity alone: the baseline of a comparison.

    Example:
        >>> Trivial().order
        1
    """

    order = 1
    exact = True

    def transform(self, index: int, x: Tensor) -> Tensor:
        """A copy of the batch."""
        return x.clone()

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """A copy of the batch."""
        return x.clone()

    def _name(self, g: Tensor) -> str:
        return "identity"


@dataclass(frozen=True)
class SignFlip(CyclicGroup):
    """The change of sign: element 1 negates every value. Maps over the inputs' domain stay as they are.

    Example:
        >>> import torch
        >>> SignFlip().act(torch.tensor(1), torch.tensor([[1.0, -2.0]]))
        tensor([[-1.,  2.]])
    """

    order = 2
    exact = True

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch."""
        _check_signed(self, x)
        return -x if index else x.clone()

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample, by one product with signs."""
        _check_signed(self, x)
        return x * (1 - 2 * g).to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Leaves maps alone: a change of sign moves nothing."""
        self._check_action(g, m)
        return m

    def _name(self, g: Tensor) -> str:
        return "negated" if g else "identity"


def _check_signed(group: FiniteGroup, x: Tensor) -> None:
    if not x.dtype.is_signed:
        raise ValueError(f"{group!r} negates values, which a signed dtype must hold: got {x.dtype}. Use x.float().")
