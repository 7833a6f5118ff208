"""Which groups does invreg ship, and on samples of which shapes does each act?

One list, which runs through every law. A shape is that of one sample, without the batch axis; on each of its shapes a
group must act faithfully, so that no two of its elements do the same.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invreg.groups import (
    Conjugated,
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    Group,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
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


def to_image(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, 3))


def from_image(x: Tensor) -> Tensor:
    return x.flatten(-2)


def turn_shift(h: Tensor, n: Tensor) -> Tensor:
    """What a turn by ``h`` makes of a shift ``n``, down and to the right."""
    cosine, sine = h[..., 0].cos(), h[..., 0].sin()
    return torch.stack([cosine * n[..., 0] - sine * n[..., 1], sine * n[..., 0] + cosine * n[..., 1]], -1)


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


@dataclass(frozen=True)
class InfiniteEntry:
    """A group that is not listed, or only up to interpolation one."""

    name: str
    group: Group
    shape: Shape
    tolerance: float = 0.1
    """How far its action may be from a group action on smooth inputs, relative to their norm."""


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
    Entry("semidirect-dihedral-4", SemidirectProduct(CyclicRotation(4), Flip()), ((4, 4), (2, 3, 3))),
    Entry(
        "semidirect-shifts-and-mirror", SemidirectProduct(CyclicTranslation(3), Flip()), ((3,), (2, 6))
    ),  # the dihedral group of order 6, along one axis
    Entry("semidirect-by-sign", SemidirectProduct(CyclicTranslation(3), Flip()) * SignFlip(), ((3,),)),
    Entry("restricted-rotations", Restricted(Dihedral(4), [1]), ((4, 4), (2, 3, 3))),
    Entry("restricted-shifts", Restricted(SymmetricGroup(4, dim=1), [[1, 2, 3, 0]]), ((4,), (4, 2))),
    Entry("conjugated-flattened", Conjugated(Dihedral(4), to_image, from_image, exact=True), ((9,), (2, 9))),
)

INFINITE = (
    InfiniteEntry("rotation-8", CyclicRotation(8), (1, 24, 24)),
    InfiniteEntry("rotation-3", CyclicRotation(3), (2, 24, 20)),
    InfiniteEntry("dihedral-6", Dihedral(6), (1, 24, 24)),
    InfiniteEntry("symmetric", SymmetricGroup(5, dim=1), (5, 2)),
    InfiniteEntry("symmetric-graphs", SymmetricGroup(4, dim=(-2, -1)), (4, 4)),
    InfiniteEntry("symmetric-huge", SymmetricGroup(20, dim=-1), (20,)),
    InfiniteEntry("planar", PlanarRotation(), (1, 24, 24)),
    InfiniteEntry("planar-bicubic-disc", PlanarRotation("bicubic", circular_mask=True), (2, 24, 20)),
    InfiniteEntry("spatial", SpatialRotation(), (7, 3), tolerance=1e-5),
    InfiniteEntry("translation", Translation(4.0), (1, 20, 24)),
    InfiniteEntry("scaling", Scaling(), (1, 24, 24)),
    InfiniteEntry("permuted-and-turned", SymmetricGroup(5, dim=1) * SpatialRotation(), (5, 3), tolerance=1e-5),
    InfiniteEntry("turned-colours", PlanarRotation() * CyclicPermutation(3, dim=1), (3, 24, 24)),
    InfiniteEntry("rigid", SemidirectProduct(Translation(3.0), PlanarRotation(), turn_shift), (1, 24, 24)),
    InfiniteEntry("restricted-planar", Restricted(PlanarRotation("bicubic"), [[2 * torch.pi / 5]]), (1, 24, 24)),
    InfiniteEntry("conjugated-points", Conjugated(SpatialRotation(), torch.neg, torch.neg), (7, 3), tolerance=1e-5),
)
"""Groups that are not listed element by element, or that interpolate, for the laws of ``invreg.testing``."""

ON_KEYS = OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)})
"""Acts on inputs of several tensors, which the laws do not draw."""

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
