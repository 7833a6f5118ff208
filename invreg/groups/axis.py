"""How do entries move along one axis?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from invreg.groups.cyclic import CyclicGroup
from invreg.groups.positions import PositionGroup


class _AxisGroup(CyclicGroup, PositionGroup):
    """Cyclic moves along the one axis ``dim``."""

    dim: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The axis."""
        return (self.dim,)

    @property
    def _where(self) -> str:
        """What names of elements say about the axis: nothing if it is the last one."""
        return "" if self.dim == -1 else f" (axis {self.dim})"

    def _check_dim(self) -> None:
        if not isinstance(self.dim, int):
            raise TypeError(f"{type(self).__name__} takes one axis as dim, a whole number: got {self.dim!r}.")
        if self.dim == 0:
            raise ValueError(f"{type(self).__name__} moves entries within a sample: got dim 0, the batch axis.")


class _CyclicShift(_AxisGroup):
    """Shifts with wrap-around: element ``i`` shifts by ``i`` steps."""

    def __post_init__(self) -> None:
        self._check_dim()
        if not isinstance(self.order, int) or self.order < 1:
            raise ValueError(f"{type(self).__name__} takes an order of 1 or more: got {self.order!r}.")

    def _step(self, size: int) -> int:
        """Positions per step on an axis of this size."""
        if size % self.order:
            raise ValueError(
                f"{self!r} shifts by 1/{self.order} of axis {self.dim}, whose size it must divide: got size {size}. "
                "Pad or crop it to a multiple first."
            )
        return size // self.order

    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Each position's source lies one shift before it; see ``PositionGroup.sources``."""
        (size,) = sizes
        shifts = torch.arange(self.order, device=device) * self._step(size)
        return (torch.arange(size, device=device) - shifts[:, None]) % size

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, by ``torch.roll``."""
        start, _ = self._span(x)
        return x.roll(index * self._step(x.shape[start]), start)


@dataclass(frozen=True)
class CyclicTranslation(_CyclicShift):
    """Translations along an axis by multiples of its size/order, with wrap-around.

    Element ``i`` moves each entry up the axis by ``i * size / order`` positions, as ``torch.roll`` does.

    Args:
        order: Number of translations; it must divide the size of the axis.
        dim: The axis; -1 is the width of an image. Not the batch axis.

    Raises:
        ValueError: ``order`` is below 1 or ``dim`` is 0.

    Source: T3 in Moskalev et al. (2023), section 4.1, with order 3 on images 36 wide.

    Example:
        >>> CyclicTranslation(2).act(torch.tensor(1), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[3., 4., 1., 2.]])
    """

    order: int
    dim: int = -1

    def _name(self, g: Tensor) -> str:
        return f"shift {Fraction(int(g), self.order)}{self._where}"


@dataclass(frozen=True)
class CyclicPermutation(_CyclicShift):
    """Cyclic permutations of the ``order`` entries along an axis: colours, sensors, time steps.

    Element ``i`` moves each entry up the axis by ``i`` positions, as ``torch.roll`` does.

    Args:
        order: Number of entries along the axis, and of elements.
        dim: The axis; 1 is the channels of an image. Not the batch axis.

    Raises:
        ValueError: ``order`` is below 1 or ``dim`` is 0.

    Example:
        >>> CyclicPermutation(3, dim=1).act(torch.tensor(1), torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3., 1., 2.]])
    """

    order: int
    dim: int = -1

    def _name(self, g: Tensor) -> str:
        return f"shift by {int(g)}{self._where}"

    def _step(self, size: int) -> int:
        if size != self.order:
            raise ValueError(
                f"{self!r} permutes {self.order} entries along axis {self.dim}: got size {size}. Set order or dim."
            )
        return 1


@dataclass(frozen=True)
class Flip(_AxisGroup):
    """The mirror image along an axis; element 1 reverses it.

    Args:
        dim: The axis; -1 mirrors left and right, -2 up and down. Not the batch axis.

    Raises:
        ValueError: ``dim`` is 0.

    Example:
        >>> Flip(-1).act(torch.tensor(1), torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3., 2., 1.]])
    """

    dim: int = -1
    order = 2

    def __post_init__(self) -> None:
        self._check_dim()

    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """The positions, and the positions backwards; see ``PositionGroup.sources``."""
        positions = torch.arange(sizes[0], device=device)
        return torch.stack([positions, positions.flip(0)])

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch, by ``torch.flip``."""
        start, _ = self._span(x)
        return x.flip(start) if index else x.clone()

    def _name(self, g: Tensor) -> str:
        return f"mirrored{self._where}" if g else "identity"
