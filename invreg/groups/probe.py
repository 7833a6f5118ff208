"""On which input can two transformations be told apart?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

_SIDE = 12
"""Divisible by 1, 2, 3, 4 and 6, the usual orders of translations and rotations."""

_MAX_ENTRIES = 100_000


def distinct_values(sample_shape: Sequence[int]) -> Tensor:
    """A batch of one sample whose entries all differ, in absolute value and in their distances too; float64."""
    steps = 1 + torch.rand(prod(sample_shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return steps.cumsum(0).view(1, *sample_shape)


def probe_shapes(sizes: Sequence[int] = ()) -> Iterator[tuple[int, ...]]:
    """Shapes of samples that most actions take: three, two or one axes, of a usual size or one of ``sizes``."""
    for side in (_SIDE, *sizes):
        for shape in ((side,) * 3, (side, _SIDE, _SIDE), (side,) * 2, (side,), (side, 1, 1)):
            if prod(shape) <= _MAX_ENTRIES:
                yield shape
