"""How do images turn, shift and scale by any amount?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import degrees, inf, isfinite, log, pi

import torch
from torch import Tensor

from invreg.groups.contract import Group
from invreg.groups.interpolation import Mode, check_images, check_mode, read_affine, read_shifted
from invreg.groups.planar import reading_matrix
from invreg.groups.transformations import uniform


class _ContinuousGroup(Group):
    """Elements of real numbers that move the content of images to places between pixels."""

    element_dtype = torch.float64
    exact = False
    mode: Mode

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Reads each image anew between its pixels; see ``Transformations.act``."""
        self._check_action(g, x)
        check_images(self, x, self.mode)
        return self._read(g, x)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Moves a map as an image; leaves alone one whose axes were summed away (size 1)."""
        self._check_action(g, m)
        return m if m.shape[-2:].numel() == 1 else self.act(g, m)

    @abstractmethod
    def _read(self, g: Tensor, x: Tensor) -> Tensor:
        """The images under the elements, after all checks."""

    def _check_values(self, g: Tensor) -> None:
        if not torch.compiler.is_compiling() and not isfinite(float(g.sum())):
            raise ValueError(f"Elements of {self!r} are finite numbers: got NaN or infinity.")


@dataclass(frozen=True)
class PlanarRotation(_ContinuousGroup):
    """Rotations of images by any angle, SO(2), about their middle, in the plane of the last two axes.

    An element is an angle in radians, counter-clockwise, shape ``(1,)``, float64. Between pixels the image is
    interpolated; beyond its edges it is zero, so that the corners are lost. Neither undoes itself when the image is
    turned back: audits report how much of an error is the action's own.

    Args:
        mode: How to interpolate: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``, which suits masks.
        circular_mask: Whether only what lies in the largest circle turns, and the rest stays as it is. Nothing is lost
            then. Set the corners of the data themselves to zero where they shall not be seen.

    Raises:
        ValueError: ``mode`` is unknown.

    Example:
        >>> from math import pi
        >>> x = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
        >>> PlanarRotation().act(torch.tensor([pi / 2], dtype=torch.float64), x).round(decimals=4).abs()
        tensor([[[0., 0., 0.],
                 [1., 0., 0.],
                 [0., 0., 0.]]])
    """

    mode: Mode = "bilinear"
    circular_mask: bool = False

    element_shape = (1,)

    def __post_init__(self) -> None:
        check_mode(self, self.mode)

    @property
    def identity(self) -> Tensor:
        """The angle 0."""
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Adds the angles, to one between -π and π; see ``Group.compose``."""
        self._check_elements(g, h)
        return torch.remainder(g + h + pi, 2 * pi) - pi

    def inverse(self, g: Tensor) -> Tensor:
        """The negative angles; see ``Group.inverse``."""
        self._check_elements(g)
        return -g

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws angles uniformly between -π and π; see ``Group.sample``."""
        return (2 * uniform(n, 1, rng) - 1) * pi

    def _name(self, g: Tensor) -> str:
        angle = round(degrees(float(g)), 1)
        return f"{180 - (180 - angle) % 360:.1f}°"  # above -180°, up to 180°

    def _read(self, g: Tensor, x: Tensor) -> Tensor:
        turned = read_affine(x, reading_matrix(g.squeeze(-1)), self.mode)
        return torch.where(_disc(x), turned, x) if self.circular_mask else turned


@dataclass(frozen=True)
class Translation(_ContinuousGroup):
    """Translations of images by any number of pixels, also by a fraction of one, with wrap-around.

    An element holds how many pixels the content moves down and to the right, shape ``(2,)``, float64. What leaves the
    image at one edge comes in at the other, so that nothing is lost but what interpolation blurs.

    A local group: any shift is an element, but ``sample`` draws up to ``max_shift`` along each axis, uniformly, and
    products of those drawn may shift further.

    Args:
        max_shift: How far ``sample`` shifts at most, in pixels.
        mode: How to interpolate: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``, which suits masks.

    Raises:
        ValueError: ``max_shift`` is not positive, or ``mode`` is unknown.

    Example:
        >>> x = torch.tensor([[[4.0, 0.0, 0.0, 0.0]]])
        >>> Translation().act(torch.tensor([0.0, 0.25], dtype=torch.float64), x)
        tensor([[[3., 1., 0., 0.]]])
    """

    max_shift: float = 1.0
    mode: Mode = "bilinear"

    element_shape = (2,)
    local = True

    def __post_init__(self) -> None:
        check_mode(self, self.mode)
        if not isinstance(self.max_shift, (int, float)) or not 0 < self.max_shift < inf:
            raise ValueError(f"Translation takes max_shift in pixels, more than 0 and finite: got {self.max_shift!r}.")

    @property
    def identity(self) -> Tensor:
        """The shift by nothing."""
        return torch.zeros(2, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Adds the shifts; see ``Group.compose``."""
        self._check_elements(g, h)
        return g + h

    def inverse(self, g: Tensor) -> Tensor:
        """The opposite shifts; see ``Group.inverse``."""
        self._check_elements(g)
        return -g

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws shifts uniformly up to ``max_shift`` along each axis; see ``Group.sample``."""
        return (2 * uniform(n, 2, rng) - 1) * self.max_shift

    def _name(self, g: Tensor) -> str:
        down, right = (g.round(decimals=2) + 0.0).tolist()
        return f"shift ({down:g}, {right:g}) px"

    def _read(self, g: Tensor, x: Tensor) -> Tensor:
        return read_shifted(x, g, self.mode)


@dataclass(frozen=True)
class Scaling(_ContinuousGroup):
    """Enlarging and shrinking images by any factor, about their middle, in the plane of the last two axes.

    An element is a factor, shape ``(1,)``, float64; more than 1 enlarges.

    A local group: any positive factor is an element, but ``sample`` draws between ``1 / max_factor`` and
    ``max_factor``, uniformly in the logarithm, and products of those drawn may lie beyond. At the edges of the image it
    is no group either: enlarging loses what it pushes out, and shrinking back brings zeros in its place; shrinking
    loses detail. Content that stays clear of the edges comes back up to interpolation. Audits report how much of an
    error is the action's own.

    Args:
        max_factor: The largest factor that ``sample`` draws, and the inverse of the smallest; more than 1.
        mode: How to interpolate: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``, which suits masks.

    Raises:
        ValueError: ``max_factor`` is not above 1, or ``mode`` is unknown.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]])
        >>> Scaling().act(torch.tensor([2.0], dtype=torch.float64), x)[0, 0]
        tensor([1.7500, 2.2500, 2.7500, 3.2500])
    """

    max_factor: float = 1.25
    mode: Mode = "bilinear"

    element_shape = (1,)
    local = True

    def __post_init__(self) -> None:
        check_mode(self, self.mode)
        if not isinstance(self.max_factor, (int, float)) or not 1 < self.max_factor < inf:
            raise ValueError(f"Scaling takes a max_factor above 1 and finite: got {self.max_factor!r}.")

    @property
    def identity(self) -> Tensor:
        """The factor 1."""
        return torch.ones(1, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Multiplies the factors; see ``Group.compose``."""
        self._check_elements(g, h)
        return g * h

    def inverse(self, g: Tensor) -> Tensor:
        """The reciprocal factors; see ``Group.inverse``."""
        self._check_elements(g)
        return 1 / g

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws factors between ``1 / max_factor`` and ``max_factor``; see ``Group.sample``."""
        return ((2 * uniform(n, 1, rng) - 1) * log(self.max_factor)).exp()

    def _name(self, g: Tensor) -> str:
        return f"×{float(g):.3g}"  # noqa: RUF001  # the sign of a product is meant

    def _read(self, g: Tensor, x: Tensor) -> Tensor:
        return read_affine(x, torch.eye(2, dtype=g.dtype, device=g.device) / g[..., None], self.mode)

    def _check_values(self, g: Tensor) -> None:
        if not torch.compiler.is_compiling() and not bool((g.isfinite() & (g > 0)).all()):
            raise ValueError(
                f"Elements of {self!r} are finite factors above 0, since 0 cannot be undone: got one that is not."
            )


def _disc(x: Tensor) -> Tensor:
    """Which pixels lie in the largest circle about the middle, shape ``(H, W)``."""
    height, width = x.shape[-2:]
    down, right = (torch.arange(size, device=x.device) - (size - 1) / 2 for size in (height, width))
    return down[:, None] ** 2 + right**2 <= ((min(height, width) - 1) / 2) ** 2 + 1e-6  # so that edges are not crossed
