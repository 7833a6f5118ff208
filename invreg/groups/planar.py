"""How do images turn and mirror?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg.groups.cyclic import CyclicGroup
from invreg.groups.positions import PositionGroup

_FLIPPED_DIMS = {(0, False): (), (2, False): (-2, -1), (0, True): (-1,), (2, True): (-2,)}


class _ImageSymmetry(PositionGroup):
    """Quarter turns of the last two axes, some of them after a mirror."""

    @property
    @abstractmethod
    def rotations(self) -> int:
        """How many rotations the group has: 1, 2 (half turns, any image) or 4 (quarter turns, square images)."""

    @abstractmethod
    def _quarter_turns(self, index: int) -> tuple[int, bool]:
        """The element's quarter turns, counter-clockwise, and whether it mirrors left and right first."""

    @property
    def dims(self) -> tuple[int, ...]:
        """The last two axes."""
        return (-2, -1)

    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Turns and mirrors the positions themselves; see ``PositionGroup.sources``."""
        self._check_square(sizes)
        positions = torch.arange(sizes[0] * sizes[1], device=device).view(sizes)
        turned = []
        for index in range(self.order):
            turns, mirrored = self._quarter_turns(index)
            turned.append(torch.rot90(positions.flip(-1) if mirrored else positions, turns, (-2, -1)).flatten())
        return torch.stack(turned)

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch: torch's flip where axes stay, a gather where they trade places."""
        start, stop = self._span(x)
        self._check_square(tuple(x.shape[start:stop]))
        flipped = _FLIPPED_DIMS.get(self._quarter_turns(index))
        return super().transform(index, x) if flipped is None else x.flip(flipped)

    def _check_rotations(self) -> None:
        if not isinstance(self.rotations, int) or self.rotations not in (1, 2, 4):
            raise ValueError(
                f"{type(self).__name__} takes the orders 1, 2 and 4, whose turns only move pixels: "
                f"got {self.rotations!r}."
            )

    def _check_square(self, sizes: tuple[int, ...]) -> None:
        if self.rotations == 4 and sizes[0] != sizes[1]:
            raise ValueError(
                f"{self!r} turns square images: got images of shape {sizes}. Pad or crop them to a square first."
            )


@dataclass(frozen=True)
class CyclicRotation(CyclicGroup, _ImageSymmetry):
    """Rotations of images by multiples of 360°/order, in the plane of the last two axes.

    Element ``i`` turns counter-clockwise by ``i * 360 / order`` degrees, as ``torch.rot90`` does. Quarter turns
    need square images; half turns (order 2) take any.

    Args:
        order: Number of rotations: 1, 2 or 4.

    Raises:
        ValueError: ``order`` is not 1, 2 or 4; other angles do not only move pixels.

    Source: R4 in Moskalev et al. (2023), section 4.1.

    Example:
        >>> CyclicRotation(4).act(torch.tensor(1), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[2., 4.],
                 [1., 3.]]])
    """

    order: int = 4

    def __post_init__(self) -> None:
        self._check_rotations()

    @property
    def rotations(self) -> int:
        """The order."""
        return self.order

    def _quarter_turns(self, index: int) -> tuple[int, bool]:
        return index * 4 // self.order, False


@dataclass(frozen=True, init=False, repr=False)
class Dihedral(_ImageSymmetry):
    """Rotations of images by multiples of 360°/order and mirrors, in the plane of the last two axes.

    It has ``2 * order`` elements. Element ``i`` turns counter-clockwise by ``i * 360 / order`` degrees; element
    ``order + i`` mirrors left and right first, then turns likewise. ``Dihedral(4)`` holds all symmetries of a
    square; ``Dihedral(2)`` and ``Dihedral(1)`` take images of any shape.

    Args:
        order: Number of rotations: 1, 2 or 4. The attribute ``order`` counts all elements.

    Raises:
        ValueError: ``order`` is not 1, 2 or 4; other angles do not only move pixels.

    Example:
        >>> group = Dihedral(4)
        >>> group.order
        8
        >>> group.act(torch.tensor(4), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[2., 1.],
                 [4., 3.]]])
    """

    _rotations: int

    def __init__(self, order: int = 4) -> None:
        object.__setattr__(self, "_rotations", order)
        self._check_rotations()

    def __repr__(self) -> str:
        return f"Dihedral(order={self.rotations})"

    @property
    def rotations(self) -> int:
        """How many of the elements are rotations."""
        return self._rotations

    @property
    def order(self) -> int:  # type: ignore[override]  # derived, where the base class has an attribute
        """Number of elements, rotations and mirrored ones."""
        return 2 * self.rotations

    def generators(self) -> Tensor:
        """The smallest turn, if there is one, and the mirror image."""
        return torch.tensor([1, self.rotations] if self.rotations > 1 else [1])

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Turns add up, a mirror between them reverses the first; see ``Group.compose``."""
        self._check_elements(g, h)
        turns_g, turns_h = g % self.rotations, h % self.rotations
        mirrored_g, mirrored_h = g // self.rotations, h // self.rotations
        turns = (turns_g + torch.where(mirrored_g == 1, -turns_h, turns_h)) % self.rotations
        return turns + self.rotations * ((mirrored_g + mirrored_h) % 2)

    def inverse(self, g: Tensor) -> Tensor:
        """Turns back; a mirrored element undoes itself. See ``Group.inverse``."""
        self._check_elements(g)
        return torch.where(g < self.rotations, -g % self.rotations, g)

    def _quarter_turns(self, index: int) -> tuple[int, bool]:
        return index % self.rotations * 4 // self.rotations, index >= self.rotations
