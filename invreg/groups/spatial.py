"""How do points in space turn?"""

from __future__ import annotations

from dataclasses import dataclass
from math import degrees, pi

import torch
from torch import Tensor

from invreg.groups.contract import Group
from invreg.groups.transformations import uniform

_ORTHOGONAL = 1e-6
"""How far the product of an element and its transpose may be from the identity."""


@dataclass(frozen=True)
class SpatialRotation(Group):
    """Rotations in space, SO(3), of coordinates on the last axis: point clouds, velocities, forces.

    An element is a rotation matrix, shape ``(3, 3)``, float64. It acts on inputs ``(N, ..., 3)``, such as points
    ``(N, P, 3)``, up to rounding.

    Maps say which points matter, and points keep their place in a cloud: ``act_on_map`` leaves maps alone. For that a
    map must not tell coordinates apart; it has size 1 on the last axis, or lacks it. For point clouds audit with
    ``saliency=SaliencyMap(channel_dim=-1, sum_signed=True, kernel_size=1)``.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        >>> SpatialRotation().act(quarter, torch.tensor([[[1.0, 0.0, 5.0]]]))
        tensor([[[0., 1., 5.]]])
    """

    element_shape = (3, 3)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self) -> Tensor:
        """The identity matrix."""
        return torch.eye(3, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """Multiplies the matrices; see ``Group.compose``."""
        self._check_elements(g, h)
        return g @ h

    def inverse(self, g: Tensor) -> Tensor:
        """Transposes the matrices; see ``Group.inverse``."""
        self._check_elements(g)
        return g.mT.contiguous()

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draws rotations uniformly, by the Haar measure, as unit quaternions; see ``Group.sample``.

        Source: Shoemake, "Uniform random rotations", Graphics Gems III (1992).
        """
        share, first, second = uniform(n, 3, rng).unbind(1)
        w, x = (1 - share).sqrt() * (2 * pi * first).sin(), (1 - share).sqrt() * (2 * pi * first).cos()
        y, z = share.sqrt() * (2 * pi * second).sin(), share.sqrt() * (2 * pi * second).cos()
        rows = (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        )
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Multiplies each point by the matrix, in float32 or wider; see ``Transformations.act``."""
        self._check_action(g, x)
        if x.ndim < 2 or x.shape[-1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"{self!r} turns points, floating point and of shape (N, ..., 3): got {x.dtype} of shape "
                f"{tuple(x.shape)}. Move the coordinates to the last axis, e.g. x.mT."
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        points, matrix = x.to(dtype), g.to(x.device, dtype)
        columns = matrix.view(-1, *[1] * (x.ndim - 2), 3, 3).unbind(-1)
        # No matrix product: autocast would round the coordinates, and three columns are added up as fast.
        return sum((points[..., i : i + 1] * columns[i] for i in (1, 2)), points[..., :1] * columns[0]).to(x.dtype)

    def act_on_map(self, g: Tensor, m: Tensor) -> Tensor:
        """Leaves maps alone; see the class.

        Raises:
            ValueError: The map has three entries on its last axis, one per coordinate.
        """
        self._check_action(g, m)
        if m.ndim > 2 and m.shape[-1] == 3:
            raise ValueError(
                f"{self!r} mixes coordinates, so that a map must have one value per point: got shape {tuple(m.shape)}. "
                "Sum over the last axis: saliency=SaliencyMap(channel_dim=-1, sum_signed=True, kernel_size=1)."
            )
        return m

    def _name(self, g: Tensor) -> str:
        axis = torch.stack([g[2, 1] - g[1, 2], g[0, 2] - g[2, 0], g[1, 0] - g[0, 1]])  # 2 sin(angle) long
        angle = degrees(torch.atan2(axis.norm(), g.trace() - 1))
        if angle > 90:  # where the sine vanishes, these columns still point along the axis, one way or the other
            columns = g + g.mT + (1 - g.trace()) * torch.eye(3, dtype=g.dtype)
            column = columns[:, columns.diagonal().round(decimals=6).argmax()]
            axis = column if axis @ column > -_ORTHOGONAL else -column
        if angle < 0.05:
            return "0.0°"
        x, y, z = ((axis / axis.norm()).round(decimals=2) + 0.0).tolist()
        return f"{angle:.1f}° about ({x:.2f}, {y:.2f}, {z:.2f})"

    def _check_values(self, g: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        identity = torch.eye(3, dtype=g.dtype, device=g.device)
        turns = ((g @ g.mT - identity).abs().flatten(-2).amax(-1) <= _ORTHOGONAL) & (torch.linalg.det(g) > 0)
        if not bool(turns.all()):
            raise ValueError(
                f"Elements of {self!r} are rotation matrices, orthogonal and of determinant 1: got "
                + (f"a stack of shape {tuple(g.shape)} in which one is not." if g.ndim > 2 else "one that is not.")
            )
