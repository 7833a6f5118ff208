"""On which input can two transformations be told apart?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import pi, prod

import torch
from torch import Tensor

_SIDE = 12
"""Divisible by 1, 2, 3, 4 and 6, the usual orders of translations and rotations."""

_MAX_ENTRIES = 100_000

_SHORT = 4
"""Axes of up to so many entries hold channels or coordinates, not places."""


def distinct_values(sample_shape: Sequence[int]) -> Tensor:
    """A batch of one sample whose entries all differ, in absolute value and in their distances too; float64.

    Every second one is negative.
    """
    steps = 1 + torch.rand(prod(sample_shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = steps.cumsum(0)
    values[1::2] *= -1
    return values.view(1, *sample_shape)


def smooth_values(sample_shape: Sequence[int]) -> Tensor:
    """A batch of one sample, float64, for actions that interpolate: slow waves that vanish towards the ends of axes.

    Along axes of up to four entries, which need be no distances, values differ at random.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.ones(1, *sample_shape, dtype=torch.float64)
    waves = torch.zeros_like(x)
    for _ in range(4):
        wave = torch.ones_like(x)
        for axis, size in enumerate(sample_shape, 1):
            if size > _SHORT:
                steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
                frequency, phase = torch.rand(2, dtype=torch.float64, generator=rng)
                along = (2 * pi * (1.5 * frequency * steps + phase)).cos() * (pi * steps).sin() ** 8
            else:
                along = torch.randn(size, dtype=torch.float64, generator=rng)
            wave = wave * along.view(-1, *[1] * (x.ndim - axis - 1))
        waves = waves + wave
    return waves


def probe_shapes(sizes: Iterable[int] = (), side: int = _SIDE) -> Iterator[tuple[int, ...]]:
    """Shapes of samples that most actions take: three, two or one axes, of size ``side`` or one of ``sizes``."""
    for size in (side, *sizes):
        for shape in ((size, side, side), (size,) * 3, (size,) * 2, (size, 3), (size,), (size, 1, 1)):
            if prod(shape) <= _MAX_ENTRIES:
                yield shape
