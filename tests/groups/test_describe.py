"""Does each element have a name of its own, and does the name say what the element does?"""

import re
from dataclasses import dataclass
from functools import partial
from math import cos, pi, radians, sin

import pytest
import torch
from torch import Tensor

from invreg.groups import (
    Conjugated,
    CyclicGroup,
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Transformations,
    TransformationSet,
    Translation,
    Trivial,
)
from tests.groups.catalogue import CATALOGUE, INFINITE, ON_KEYS, S3, half_turn, keep, negate, quarter_turn
from tests.tolerances import assert_exact

AXES = CyclicTranslation(2, -1) * CyclicTranslation(2, -2)
EITHER = SymmetricGroup(3, dim=1) * SymmetricGroup(3, dim=2)
HALF = [keep, half_turn]
QUARTER_X = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
QUARTER_Z = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def brighter(x, *, by=0.1):
    return x + by


def darker(x, by=0.1):
    return x - by


def identity(x):
    return 1 * x


class TwoLines:
    def __repr__(self):
        return "two\nlines"


@dataclass(frozen=True)
class Halves(CyclicGroup):
    """A group of one's own that says nothing of names."""

    order = 2
    exact = True

    def transform(self, index, x):
        return x.flip(-1) if index else x.clone()


@dataclass(frozen=True)
class Gains(Scaling):
    """A group of one's own whose elements have another name."""

    def describe(self, g):
        return f"{20 * float(g.log10()):.0f} dB"


@dataclass(frozen=True)
class Bare(Scaling):
    """One whose elements are called by their numbers."""

    _name = Transformations._name


def all_names(group: FiniteGroup) -> list[str]:
    return [group.describe(g) for g in group.elements()]


def turn(angle: float, axis: list[float]) -> Tensor:
    """The rotation matrix of an angle in degrees about an axis, by Rodrigues' formula."""
    x, y, z = (torch.tensor(axis, dtype=torch.float64) / torch.tensor(axis).double().norm()).tolist()
    c, s = cos(radians(angle)), sin(radians(angle))
    return torch.tensor(
        [
            [c + x * x * (1 - c), x * y * (1 - c) - z * s, x * z * (1 - c) + y * s],
            [y * x * (1 - c) + z * s, c + y * y * (1 - c), y * z * (1 - c) - x * s],
            [z * x * (1 - c) - y * s, z * y * (1 - c) + x * s, c + z * z * (1 - c)],
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Trivial(), ["identity"]),
        (CyclicRotation(4), ["0°", "90°", "180°", "270°"]),
        (CyclicRotation(7), ["0°", "51.43°", "102.9°", "154.3°", "205.7°", "257.1°", "308.6°"]),
        (Dihedral(1), ["0°", "mirrored"]),
        (Dihedral(3), ["0°", "120°", "240°", "mirrored", "mirrored, 120°", "mirrored, 240°"]),
        (Flip(), ["identity", "mirrored"]),
        (Flip(-2), ["identity", "mirrored (axis -2)"]),
        (CyclicTranslation(4), ["shift 0", "shift 1/4", "shift 1/2", "shift 3/4"]),
        (CyclicTranslation(2, dim=-2), ["shift 0 (axis -2)", "shift 1/2 (axis -2)"]),
        (CyclicPermutation(3), ["shift by 0", "shift by 1", "shift by 2"]),
        (CyclicPermutation(2, dim=1), ["shift by 0 (axis 1)", "shift by 1 (axis 1)"]),
        (SignFlip(), ["identity", "negated"]),
        (S3, ["identity", "(0 1 2)", "(0 1)", "(0 2 1)", "(0 2)", "(1 2)"]),
        (FiniteGroup.from_permutations([[2, 3, 0, 1]]), ["identity", "(0 2)(1 3)"]),
        (FiniteGroup.from_actions([keep, negate]), ["0", "1"]),
        (Halves(), ["0", "1"]),
        (SignFlip() * Flip(-2), ["identity", "mirrored (axis -2)", "negated", "negated · mirrored (axis -2)"]),
        (AXES, ["identity", "shift 1/2 (axis -2)", "shift 1/2", "shift 1/2 · shift 1/2 (axis -2)"]),
        (CyclicRotation(2) * Trivial() * SignFlip(), ["identity", "negated", "180°", "180° · negated"]),
        (SemidirectProduct(CyclicRotation(2), Flip()), ["identity", "mirrored", "180°", "180° · mirrored"]),
        (Restricted(Dihedral(4), [2, 4]), ["0°", "180°", "mirrored", "mirrored, 180°"]),
        (Restricted(PlanarRotation(), [[2 * pi / 4]]), ["0.0°", "90.0°", "180.0°", "-90.0°"]),
        (Restricted(SymmetricGroup(3), [[1, 2, 0]]), ["identity", "(0 1 2)", "(0 2 1)"]),
        (Conjugated(Flip(), torch.neg, torch.neg), ["identity", "mirrored"]),
        (OnKeys({"image": CyclicRotation(2), "mask": CyclicRotation(2)}), ["0°", "180°"]),
    ],
    ids=repr,
)
def test_names_of_a_finite_group(group, expected):
    assert all_names(group) == expected


@pytest.mark.parametrize(
    ("group", "element", "expected"),
    [
        (PlanarRotation(), [0.0], "0.0°"),
        (PlanarRotation(), [radians(37.16)], "37.2°"),
        (PlanarRotation(), [-pi / 4], "-45.0°"),
        (PlanarRotation(), [3 * pi / 2], "-90.0°"),
        (PlanarRotation(), [pi], "180.0°"),
        (PlanarRotation(), [-pi], "180.0°"),
        (PlanarRotation(), [-1e-9], "0.0°"),
        (Translation(4.0), [1.5, -0.3], "shift (1.5, -0.3) px"),
        (Translation(), [0.0, -1e-9], "shift (0, 0) px"),
        (Translation(), [0.254, 12.0], "shift (0.25, 12) px"),
        (Scaling(), [1.25], "\N{MULTIPLICATION SIGN}1.25"),
        (Scaling(), [1.0], "\N{MULTIPLICATION SIGN}1"),
        (Scaling(), [0.00123], "\N{MULTIPLICATION SIGN}0.00123"),
        (SymmetricGroup(5), [2, 3, 0, 1, 4], "(0 2)(1 3)"),
        (SymmetricGroup(5), [0, 1, 2, 3, 4], "identity"),
        (SymmetricGroup(20), [*range(1, 20), 0], "(0 1 2 3 4 5 6 7 8 9 10 11 12 …"),
        (SymmetricGroup(3) * PlanarRotation(), [1, 0, 2, pi / 2], "(0 1) · 90.0°"),
        (SymmetricGroup(3) * PlanarRotation(), [0, 1, 2, pi / 2], "90.0°"),
        (SymmetricGroup(3) * PlanarRotation(), [1, 0, 2, 0.0], "(0 1)"),
        (SymmetricGroup(3) * PlanarRotation(), [0, 1, 2, 0.0], "identity"),
        (Conjugated(PlanarRotation(), torch.neg, torch.neg), [1.0], "57.3°"),
        (Gains(), [10.0], "20 dB"),
        (Gains() * SignFlip(), [10.0, 1.0], "20 dB · negated"),
        (Conjugated(Gains(), torch.neg, torch.neg), [10.0], "20 dB"),
        (Bare(), [0.12345], "[0.123]"),
    ],
)
def test_name_of_an_element(group, element, expected):
    assert group.describe(torch.tensor(element, dtype=group.element_dtype)) == expected


@pytest.mark.parametrize(
    ("angle", "axis", "expected"),
    [
        (0.0, [0.0, 0.0, 1.0], "0.0°"),
        (1e-5, [0.0, 0.0, 1.0], "0.0°"),
        (0.1, [0.0, 1.0, 1.0], "0.1° about (0.00, 0.71, 0.71)"),
        (37.2, [0.0, 1.0, 1.0], "37.2° about (0.00, 0.71, 0.71)"),
        (-37.2, [0.0, 1.0, 1.0], "37.2° about (0.00, -0.71, -0.71)"),
        (90.0, [0.0, 0.0, 1.0], "90.0° about (0.00, 0.00, 1.00)"),
        (120.0, [-1.0, -1.0, -1.0], "120.0° about (-0.58, -0.58, -0.58)"),
        (179.9, [-1.0, 0.0, 2.0], "179.9° about (-0.45, 0.00, 0.89)"),
        (-179.9, [-1.0, 0.0, 2.0], "179.9° about (0.45, 0.00, -0.89)"),
        (180.0, [1.0, -1.0, 0.0], "180.0° about (0.71, -0.71, 0.00)"),
        (180.0, [-1.0, 1.0, 0.0], "180.0° about (0.71, -0.71, 0.00)"),
        (-180.0, [0.0, 0.0, -1.0], "180.0° about (0.00, 0.00, 1.00)"),
    ],
)
def test_name_of_a_rotation_in_space(angle, axis, expected):
    assert SpatialRotation().describe(turn(angle, axis)) == expected


def test_the_axis_of_a_small_turn_survives_float32():
    g = turn(0.1, [0.0, 1.0, 1.0]).float().double()
    assert SpatialRotation().describe(g) == "0.1° about (0.00, 0.71, 0.71)"


def test_turns_of_a_cube_have_24_names():
    names = all_names(Restricted(SpatialRotation(), [QUARTER_X, QUARTER_Z]))
    assert len(set(names)) == len(names) == 24
    assert {"0.0°", "90.0° about (1.00, 0.00, 0.00)", "120.0° about (0.58, -0.58, 0.58)"} < set(names)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_element_has_a_name_of_its_own(entry):
    names = all_names(entry.group)
    assert len(set(names)) == len(names) == entry.group.order
    assert all(name.isprintable() and name.strip() == name != "" for name in names)


@pytest.mark.parametrize("entry", INFINITE, ids=lambda entry: entry.name)
def test_elements_that_are_drawn_have_names(entry):
    elements = entry.group.sample_non_identity(1, 2, torch.Generator().manual_seed(0)).squeeze(1)
    names = [entry.group.describe(g) for g in (entry.group.identity, *elements)]
    assert len(set(names)) == 3
    assert all(name.isprintable() and name.strip() == name != "" for name in names)


@pytest.mark.parametrize("order", [1, 2, 5, 360])
def test_names_stay_different_in_larger_groups(order):
    for group in (CyclicRotation(order), Dihedral(order), CyclicTranslation(order), CyclicPermutation(order)):
        assert len(set(all_names(group))) == group.order


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (
            FiniteGroup.from_actions(HALF) * FiniteGroup.from_permutations([[1, 0]], dim=1),
            ["identity", "(0 1)", "1", "1 · (0 1)"],
        ),
        (Halves() * FiniteGroup.from_actions([keep, negate]), ["identity", "0 · 1", "1 · 0", "1 · 1"]),
        (
            (SignFlip() * Halves()) * FiniteGroup.from_actions(HALF),
            [
                "identity",
                "identity · 0 · 1",
                "identity · 1 · 0",
                "identity · 1 · 1",
                "negated · 0 · 0",
                "negated · 0 · 1",
                "negated · 1 · 0",
                "negated · 1 · 1",
            ],
        ),
    ],
    ids=["different names", "shared names", "shared names in a nested product"],
)
def test_a_product_says_whose_names_they_are(group, expected):
    assert all_names(group) == expected


@pytest.mark.parametrize(
    ("element", "expected"),
    [([1, 0, 2, 0, 1, 2], "(0 1) · identity"), ([0, 1, 2, 1, 0, 2], "identity · (0 1)"), ([0, 1, 2] * 2, "identity")],
)
def test_so_does_one_of_groups_that_are_not_listed(element, expected):
    assert EITHER.describe(torch.tensor(element)) == expected


def test_a_mirrored_turn_is_mirrored_first():
    x = torch.arange(9.0).view(1, 3, 3)
    expected = torch.rot90(x.flip(-1), 1, (-2, -1))
    for group, name in (
        (Dihedral(4), "mirrored, 90°"),
        (SemidirectProduct(CyclicRotation(4), Flip()), "90° · mirrored"),
    ):
        assert_exact(group.act(torch.tensor(all_names(group).index(name)), x), expected)


def test_positive_angles_turn_counter_clockwise():
    x = torch.arange(9.0).view(1, 3, 3)
    assert_exact(CyclicRotation(4).act(torch.tensor(all_names(CyclicRotation(4)).index("90°")), x), quarter_turn(x))
    quarter = torch.tensor([pi / 2], dtype=torch.float64)
    assert PlanarRotation().describe(quarter) == "90.0°"
    torch.testing.assert_close(PlanarRotation().act(quarter, x), quarter_turn(x))


@pytest.mark.parametrize(
    "group", [SymmetricGroup(4), FiniteGroup.from_permutations([[1, 2, 3, 0], [1, 0, 2, 3]], dim=1)], ids=repr
)
def test_cycles_say_where_entries_move(group):
    x = torch.arange(4.0)[None]
    for g in group.elements():
        expected = x.clone()
        for cycle in re.findall(r"\(([\d ]+)\)", group.describe(g)):
            positions = [int(position) for position in cycle.split()]
            for here, there in zip(positions, positions[1:] + positions[:1], strict=True):
                expected[0, there] = x[0, here]
        assert_exact(group.act(g, x), expected)


class TestTransformationSet:
    @pytest.mark.parametrize(
        ("transforms", "expected"),
        [
            ([brighter, darker], ["brighter", "darker"]),
            ([brighter, lambda x: x], ["brighter", "transform 2"]),
            ([brighter, darker, brighter], ["transform 1", "darker", "transform 3"]),
            ([partial(brighter, by=0.5), partial(brighter, by=1)], ["brighter(by=0.5)", "brighter(by=1)"]),
            ([partial(darker, by="x" * 40), brighter], ["darker", "brighter"]),
            ([partial(darker, by="x" * 40), darker], ["transform 1", "transform 2"]),
            ([partial(darker, by=TwoLines()), brighter], ["darker", "brighter"]),
            ([partial(torch.add, 1), torch.Tensor.clone], ["add(1)", "clone"]),
            ([partial(lambda x, by: x + by, by=1), torch.nn.ReLU()], ["transform 1", "transform 2"]),
            ([partial(torch.nn.ReLU())], ["transform 1"]),
            ([identity], ["transform 1"]),
        ],
    )
    def test_elements_are_called_as_their_callables(self, transforms, expected):
        assert all_names(TransformationSet(transforms)) == ["identity", *expected]


EVERY = [entry.group for entry in CATALOGUE + INFINITE] + [ON_KEYS, TransformationSet([brighter])]


@pytest.mark.parametrize("group", EVERY, ids=repr)
def test_a_stack_is_refused(group):
    one = group.identity if hasattr(group, "identity") else torch.tensor(0)
    for stack in (one[None], one.expand(2, *one.shape)):
        with pytest.raises(ValueError, match=re.escape(f"{group!r} describes one element, shape {tuple(one.shape)}")):
            group.describe(stack)


@pytest.mark.parametrize(
    ("group", "g", "error", "message"),
    [
        (CyclicRotation(4), 1, TypeError, "are tensors of torch.int64: got int"),
        (CyclicRotation(4), torch.tensor(4), ValueError, "has the elements 0 to 3: got 4"),
        (CyclicRotation(4), torch.tensor(-1), ValueError, "has the elements 0 to 3: got -1"),
        (PlanarRotation(), torch.tensor(1.0).double(), ValueError, r"have shape \(1,\)"),
        (SymmetricGroup(3), torch.tensor([0, 0, 1]), ValueError, "are permutations"),
        (TransformationSet([brighter]), torch.tensor(2), ValueError, "has the elements 0 to 1: got 2"),
    ],
)
def test_what_is_no_element_is_refused(group, g, error, message):
    with pytest.raises(error, match=message):
        group.describe(g)


def test_long_lists_of_numbers_are_cut_before_a_number():
    @dataclass(frozen=True)
    class Gain(Scaling):
        element_shape = (9,)
        _name = Transformations._name

    assert Gain().describe(torch.full((9,), 0.5).double()) == "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, …"
