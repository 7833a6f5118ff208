"""How are images read between their pixels?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from invreg.groups.transformations import Transformations

Mode = Literal["bilinear", "bicubic", "nearest"]
"""How to read between pixels; ``"nearest"`` makes no new values and suits masks."""

_REACH: dict[str, int] = {"bilinear": 1, "bicubic": 2, "nearest": 1}
"""How many pixels beyond an edge are read for a position within the image."""


def check_mode(group: object, mode: str) -> None:
    """Raises unless images can be read in this mode."""
    if mode not in _REACH:
        raise ValueError(f"{type(group).__name__} takes as mode one of {list(_REACH)}: got {mode!r}.")


def check_images(group: Transformations, x: Tensor, mode: str) -> None:
    """Raises unless ``x`` are images between whose pixels one can read."""
    if x.ndim < 3:
        raise ValueError(f"{group!r} acts on images, tensors of shape (N, ..., H, W): got {tuple(x.shape)}.")
    if mode != "nearest" and not x.is_floating_point():
        raise ValueError(
            f"{group!r} interpolates between pixels, which must be floating point: got {x.dtype}. Use x.float(), or "
            'mode="nearest" for masks.'
        )


def read_affine(x: Tensor, matrix: Tensor, mode: Mode) -> Tensor:
    """Reads images at positions that a linear map gives, about the middle of the image; zero outside.

    Args:
        x: Images, shape ``(N, ..., H, W)``.
        matrix: Shape ``(2, 2)`` or ``(N, 2, 2)``, float64: takes where a pixel is, ``(right, down)`` from the middle in
            pixels, to where it is read.
        mode: How to read between pixels.

    Returns:
        Same shape and dtype as ``x``.
    """
    dtype = _coordinate_dtype(x)
    height, width = x.shape[-2:]
    matrix = matrix.to(x.device, dtype).view(-1, 2, 2, 1, 1)
    if height != width:  # a pixel is another part of the width than of the height
        ratios = [[1, height / width], [width / height, 1]]
        matrix = matrix * torch.tensor(ratios, dtype=dtype, device=x.device)[..., None, None]
    right, down = (
        torch.linspace(1 / size - 1, 1 - 1 / size, size, dtype=dtype, device=x.device) for size in (width, height)
    )
    return _read_at(x, matrix[:, :, 0] * right, matrix[:, :, 1] * down[:, None], mode)


def read_shifted(x: Tensor, shift: Tensor, mode: Mode) -> Tensor:
    """Reads images whose content has moved, with wrap-around.

    Args:
        x: Images, shape ``(N, ..., H, W)``.
        shift: How many pixels down and to the right, shape ``(2,)`` or ``(N, 2)``, float64.
        mode: How to read between pixels.

    Returns:
        Same shape and dtype as ``x``.
    """
    dtype = _coordinate_dtype(x)
    height, width = x.shape[-2:]
    reach = _REACH[mode]
    down, right = shift.to(x.device).view(-1, 2, 1).unbind(1)
    # Wrapped in float64, so that a shift by many pixels keeps its fraction.
    by_column, by_row = (
        ((torch.arange(size, dtype=torch.float64, device=x.device) - moved).remainder(size) - (size - 1) / 2).to(dtype)
        * (2 / (size + 2 * reach))
        for size, moved in ((width, right), (height, down))
    )
    by_column = torch.stack([by_column, torch.zeros_like(by_column)], 1)[:, :, None]
    by_row = torch.stack([torch.zeros_like(by_row), by_row], 1)[..., None]
    return _read_at(_wrapped(_wrapped(x, -2, reach), -1, reach), by_column, by_row, mode)


def _read_at(x: Tensor, by_column: Tensor, by_row: Tensor, mode: Mode) -> Tensor:
    """Reads images at positions that are the sum of a part for each column and one for each row; zero outside.

    Args:
        x: Images, shape ``(N, ..., H, W)``.
        by_column: Shape ``(N or 1, 2, 1, columns)``: where to read, to the right and down from the middle, as a share
            of half the width and half the height.
        by_row: Shape ``(N or 1, 2, rows, 1)``, likewise.
        mode: How to read between pixels.

    Returns:
        Shape ``(N, ..., rows, columns)``, the dtype of ``x``.
    """
    size = (by_row.shape[-2], by_column.shape[-1])
    if mode == "nearest":
        return _read_nearest(x, by_column + by_row)
    # One sum, with the axis of the pairs before the pixels: writing pairs one by one takes as long as the reading.
    grid = (by_column + by_row).permute(0, 2, 3, 1).expand(len(x), *size, 2)
    images = x.reshape(len(x), x.shape[1:-2].numel(), *x.shape[-2:]).to(grid.dtype)
    return F.grid_sample(images, grid, mode, align_corners=False).to(x.dtype).reshape(*x.shape[:-2], *size)


def _read_nearest(x: Tensor, positions: Tensor) -> Tensor:
    """Reads the nearest pixels, whatever their dtype; ``positions`` has shape ``(N or 1, 2, rows, columns)``."""
    height, width = x.shape[-2:]
    column, row = (
        ((p + 1) * side - 1).div(2).round() for p, side in zip(positions.unbind(1), (width, height), strict=True)
    )
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()  # float32 counts to 2**24 only
    each = (len(index), *[1] * (x.ndim - 3))
    values = x.flatten(-2).gather(-1, index.view(*each, -1).expand(*x.shape[:-2], index[0].numel()))
    values = values.view(*values.shape[:-1], *index.shape[1:])
    return torch.where(inside.view(*each, *index.shape[1:]), values, 0).to(x.dtype)


def _wrapped(images: Tensor, dim: int, margin: int) -> Tensor:
    """The images with a margin at both ends of an axis, taken from the other end."""
    size = images.shape[dim]
    return images.index_select(dim, torch.arange(-margin, size + margin, device=images.device) % size)


def _coordinate_dtype(x: Tensor) -> torch.dtype:
    """In which dtype positions and values are computed: float16 could not tell the pixels of a large image apart."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float64
