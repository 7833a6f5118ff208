"""How do images turn and mirror by fixed angles?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from invreg.groups.contract import FiniteGroup
from invreg.groups.cyclic import CyclicGroup
from invreg.groups.interpolation import check_images, read_affine
from invreg.groups.positions import gather, span

_FLIPPED_DIMS = {(0, False): (), (2, False): (-2, -1), (0, True): (-1,), (2, True): (-2,)}
_PLANE = (-2, -1)


class _ImageSymmetry(FiniteGroup):
    """Rotations of the last two axes; element ``rotations + i`` mirrors left and right, then turns as ``i`` does."""

    @property
    @abstractmethod
    def rotations(self) -> int:
        """How many rotations the group has."""

    @property
    def exact(self) -> bool:  # type: ignore[override]  # derived, where the base class has an attribute
        """True where all turns are by multiples of 90°, which only move pixels."""
        return 4 % self.rotations == 0

    def transform(self, index: int, x: Tensor) -> Tensor:
        """Applies one element to a whole batch: torch's flip where axes stay, a gather where they trade places.

        Other angles are interpolated.
        """
        start, stop = self._span(x)
        mirrored, turn = divmod(index, self.rotations)
        quarters, rest = divmod(4 * turn, self.rotations)
        if not rest and (quarters, bool(mirrored)) in _FLIPPED_DIMS:
            return x.flip(_FLIPPED_DIMS[quarters, bool(mirrored)])
        if not rest and x.shape[-2] == x.shape[-1]:
            if torch.compiler.is_compiling():  # a compiler writes a faster loop for positions that it knows
                return _turned(x, quarters, mirrored)
            return gather(x, _quarter_turned(x, quarters, mirrored)[None], start, stop)
        return self._interpolate(torch.tensor(index), x)

    def transform_each(self, g: Tensor, x: Tensor) -> Tensor:
        """Applies one element to each sample.

        By one interpolation or one gather; on a CPU, which is slow to gather single pixels, by one turn for the samples
        of each element, unless there are more channels than rows of pixels.
        """
        start, stop = self._span(x)
        if not self.exact:
            return self._interpolate(g, x)
        if x.device.type != "cpu" or x.shape[1:-2].numel() > x.shape[-1]:
            return gather(x, self._sources(x)[g], start, stop)
        if torch.compiler.is_compiling():
            g, images = g.view(-1, *[1] * (x.ndim - 1)), x
            for index in range(1, self.order):
                images = torch.where(g == index, self.transform(index, x), images)
            return images
        images = x.new_empty(x.shape)
        for index in range(self.order):
            mirrored, turn = divmod(index, self.rotations)
            samples = (g == index).nonzero()[:, 0]
            images[samples] = _turned(x.index_select(0, samples), turn * 4 // self.rotations, mirrored)
        return images

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        """The batch under every element, by one gather if it only moves pixels; see ``FiniteGroup.orbit``."""
        start, stop = self._span(x)
        if not self.exact or torch.compiler.is_compiling():
            return super().orbit(x, identity=identity)
        sources = self._sources(x)[0 if identity else 1 :]
        return gather(x.expand(len(sources), *x.shape), sources, start + 1, stop + 1)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Turns a map; leaves alone one whose axes were summed away (size 1)."""
        self._check_action(g, m)
        return m if m.shape[-2:].numel() == 1 else self.act(g, m)

    def _name(self, g: Tensor) -> str:
        mirrored, turn = divmod(int(g), self.rotations)
        angle = f"{360 * turn / self.rotations:.4g}°"
        return ("mirrored, " + angle if turn else "mirrored") if mirrored else angle

    def _sources(self, x: Tensor) -> Tensor:
        """Where each pixel comes from under each element, shape ``(order, H * W)``; for exact groups."""
        turns = [divmod(index, self.rotations) for index in range(self.order)]
        return torch.stack([_quarter_turned(x, turn * 4 // self.rotations, mirrored) for mirrored, turn in turns])

    def _interpolate(self, g: Tensor, x: Tensor) -> Tensor:
        angle = (g % self.rotations).double() * (2 * pi / self.rotations)
        return read_affine(x, reading_matrix(angle, mirrored=g >= self.rotations), "bilinear")

    def _span(self, x: Tensor) -> tuple[int, int]:
        start, stop = span(self, _PLANE, x)
        if not self.exact:
            check_images(self, x, "bilinear")
        if self.rotations == 4 and x.shape[-2] != x.shape[-1]:
            raise ValueError(
                f"{self!r} turns square images: got images of shape {tuple(x.shape[-2:])}. Pad or crop them to a "
                "square first."
            )
        return start, stop

    def _check_rotations(self) -> None:
        if not isinstance(self.rotations, int) or self.rotations < 1:
            raise ValueError(f"{type(self).__name__} takes an order of 1 or more: got {self.rotations!r}.")


@dataclass(frozen=True)
class CyclicRotation(CyclicGroup, _ImageSymmetry):
    """Rotations of images by multiples of 360°/order, in the plane of the last two axes.

    Element ``i`` turns counter-clockwise by ``i * 360 / order`` degrees, as ``torch.rot90`` does. The orders 1, 2 and 4
    only move pixels: they are exact. Order 4 needs square images, others take any. All other orders interpolate
    linearly between pixels, about the middle of the image, with zeros beyond its edges, so that the corners are lost;
    quarter turns among them are exact on square images. For other ways to interpolate, take
    ``Restricted(PlanarRotation(...), ...)``.

    Args:
        order: Number of rotations.

    Raises:
        ValueError: ``order`` is below 1.

    Source: R4 in Moskalev et al. (2023), section 4.1, with order 4.

    Example:
        >>> CyclicRotation(4).act(torch.tensor(1), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[2., 4.],
                 [1., 3.]]])
        >>> CyclicRotation(8).exact
        False
    """

    order: int = 4

    def __post_init__(self) -> None:
        self._check_rotations()

    @property
    def rotations(self) -> int:
        """The order."""
        return self.order


@dataclass(frozen=True, init=False, repr=False)
class Dihedral(_ImageSymmetry):
    """Rotations of images by multiples of 360°/order and mirrors, in the plane of the last two axes.

    It has ``2 * order`` elements. Element ``i`` turns counter-clockwise by ``i * 360 / order`` degrees; element
    ``order + i`` mirrors left and right first, then turns likewise. ``Dihedral(4)`` holds all symmetries of a
    square; ``Dihedral(2)`` and ``Dihedral(1)`` take images of any shape. Other orders interpolate, as those of
    ``CyclicRotation`` do.

    Args:
        order: Number of rotations. The attribute ``order`` counts all elements.

    Raises:
        ValueError: ``order`` is below 1.

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


def reading_matrix(angle: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Where the pixels of an image are read that is mirrored left and right, if so, then turned counter-clockwise.

    Args:
        angle: In radians, any shape, float64.
        mirrored: Booleans of the same shape; None mirrors nothing.

    Returns:
        Shape ``(*angle.shape, 2, 2)``, for ``read_affine``.
    """
    cosine, sine = angle.cos(), angle.sin()
    right, down = (cosine, -sine), (sine, cosine)
    if mirrored is not None:
        side = 1 - 2 * mirrored.to(angle.dtype)
        right = (side * cosine, -side * sine)
    return torch.stack([*right, *down], -1).view(*angle.shape, 2, 2)


def _quarter_turned(x: Tensor, quarters: int, mirrored: int) -> Tensor:
    """The positions of the pixels of ``x``, mirrored left and right, if so, then turned; shape ``(H * W,)``."""
    positions = torch.arange(x.shape[-2:].numel(), device=x.device).view(x.shape[-2:])
    return _turned(positions, quarters, mirrored).flatten()


def _turned(x: Tensor, quarters: int, mirrored: int) -> Tensor:
    """Mirrored left and right, if so, then turned counter-clockwise."""
    return torch.rot90(x.flip(-1) if mirrored else x, quarters, _PLANE)
