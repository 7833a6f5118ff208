"""Which groups does invreg ship, and on samples of which shapes does each act?

One list, which runs through every law. A shape is that of one sample, without the batch axis; on each of its shapes a
group must act faithfully, so that no two of its elements do the same.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invreg.groups import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    SignFlip,
    Trivial,
)

Shape = tuple[int, ...]


def keep(x: Tensor) -> Tensor:
    return x


def left_right(x: Tensor) -> Tensor:
    return x.flip(-1)


def up_down(x: Tensor) -> Tensor:
    return x.flip(-2)


def half_turn(x: Tensor) -> Tensor:
    return x.flip((-2, -1))


def quarter_turn(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (-2, -1))


def quarter_turn_back(x: Tensor) -> Tensor:
    return torch.rot90(x, -1, (-2, -1))


def negate(x: Tensor) -> Tensor:
    return -x


def mirror_about_mean(x: Tensor) -> Tensor:
    """Twice the mean along the last axis, minus the entry: it undoes itself, and it rounds."""
    return 2 * x.mean(-1, keepdim=True) - x


S3 = FiniteGroup.from_permutations([[1, 2, 0], [1, 0, 2]])
"""All permutations of three positions: the smallest group whose products depend on their order."""


@dataclass(frozen=True)
class Entry:
    name: str
    group: FiniteGroup
    shapes: tuple[Shape, ...]


CATALOGUE = (
    Entry("trivial", Trivial(), ((5,), (2, 3, 4))),
    Entry("rotation-1", CyclicRotation(1), ((3, 4), (2, 3, 4))),
    Entry("rotation-2", CyclicRotation(2), ((3, 4), (2, 4, 3))),
    Entry("rotation-4", CyclicRotation(4), ((4, 4), (2, 3, 3), (2, 1, 3, 3))),
    Entry("dihedral-1", Dihedral(1), ((3, 4), (2, 3, 4))),
    Entry("dihedral-2", Dihedral(2), ((3, 4), (2, 4, 3))),
    Entry("dihedral-4", Dihedral(4), ((4, 4), (2, 3, 3))),
    Entry("flip-last", Flip(), ((5,), (2, 3, 4))),
    Entry("flip-height", Flip(-2), ((3, 4), (2, 3, 4))),
    Entry("flip-first", Flip(1), ((3,), (2, 3, 4))),
    Entry("translation-1", CyclicTranslation(1), ((5,), (2, 3, 4))),
    Entry("translation-3", CyclicTranslation(3), ((6,), (3,), (2, 2, 6))),
    Entry("translation-2-height", CyclicTranslation(2, dim=-2), ((4, 3), (1, 6, 2))),
    Entry("translation-4-axis-2", CyclicTranslation(4, dim=2), ((2, 4), (2, 4, 3))),
    Entry("permutation-4", CyclicPermutation(4), ((4,), (2, 4))),
    Entry("permutation-3-channels", CyclicPermutation(3, dim=1), ((3,), (3, 2, 4))),
    Entry("sign", SignFlip(), ((4,), (2, 3, 4))),
    Entry("rotation-4-by-sign", CyclicRotation(4) * SignFlip(), ((2, 3, 3),)),
    Entry("sign-by-flip", SignFlip() * Flip(), ((5,), (2, 3, 4))),
    Entry("channels-by-rotation-4", CyclicPermutation(3, dim=1) * CyclicRotation(4), ((3, 2, 2), (3, 3, 3))),
    Entry("two-flips", Flip(-1) * Flip(-2), ((3, 4), (2, 3, 4))),
    Entry("sign-by-trivial", SignFlip() * Trivial(), ((5,), (2, 3, 4))),
    Entry("three-factors", CyclicTranslation(3) * Flip(-2) * SignFlip(), ((2, 3), (2, 2, 3))),
    Entry("three-factors-nested-right", Flip(-1) * (Flip(-2) * SignFlip()), ((3, 4),)),
    Entry("actions-flips", FiniteGroup.from_actions([keep, left_right, up_down, half_turn]), ((3, 4), (2, 3, 4))),
    Entry(
        "actions-rotation-4",
        FiniteGroup.from_actions([keep, half_turn, quarter_turn, quarter_turn_back]),
        ((4, 4), (2, 3, 3)),
    ),
    Entry("actions-sign", FiniteGroup.from_actions([keep, negate]), ((4,), (2, 3, 4))),
    Entry("actions-rounding", FiniteGroup.from_actions([keep, mirror_about_mean]), ((5,), (2, 3, 4))),
    Entry("sign-by-actions", SignFlip() * FiniteGroup.from_actions([keep, left_right]), ((5,), (2, 3, 4))),
    Entry("permutations-s3", S3, ((3,), (2, 3))),
    Entry("permutations-s3-channels", FiniteGroup.from_permutations([[1, 2, 0], [1, 0, 2]], dim=1), ((3,), (3, 2, 4))),
    Entry("permutations-swap-height", FiniteGroup.from_permutations([[1, 0]], dim=-2), ((2, 3), (3, 2, 1))),
    Entry("permutations-a4", FiniteGroup.from_permutations([[1, 2, 0, 3], [1, 0, 3, 2]]), ((4,), (2, 4))),
    Entry("sign-by-permutations", SignFlip() * S3, ((3,), (2, 3))),
    Entry(  # acts on no shape that the product tries when it is made, so that it is checked when it first acts
        "product-of-permutations",
        FiniteGroup.from_permutations([[1, 2, 0, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6]])
        * FiniteGroup.from_permutations([[0, 1, 2, 3, 4, 6, 5]]),
        ((7,), (2, 7)),
    ),
)

all_groups = pytest.mark.parametrize("group", [pytest.param(entry.group, id=entry.name) for entry in CATALOGUE])
"""Runs a test on each group."""

all_cases = pytest.mark.parametrize(
    ("group", "shape"),
    [
        pytest.param(entry.group, shape, id=f"{entry.name}-on-{'x'.join(map(str, shape))}")
        for entry in CATALOGUE
        for shape in entry.shapes
    ],
)
"""Runs a test on each group and each shape on which it acts."""
