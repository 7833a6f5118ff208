"""Does a part of a group act as the group does? Against permutations, matrices and angles multiplied in loops."""

import copy
import itertools
import math
import pickle
import re
from math import pi

import pytest
import torch

from invreg.groups import (
    CyclicPermutation,
    CyclicRotation,
    Dihedral,
    FiniteGroup,
    Flip,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
)
from tests.groups.test_continuous import images
from tests.groups.test_laws import GROUP_LAWS
from tests.tolerances import assert_exact, assert_linear

ABOUT_Z = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
ABOUT_X = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]

CUBE = Restricted(SpatialRotation(), [ABOUT_Z, ABOUT_X])
"""All rotations of the cube, of which two quarter turns are enough."""


def cube_rotations() -> list[list[list[float]]]:
    """Matrices that permute and negate axes, of determinant 1."""
    found = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            inversions = sum(axes[i] > axes[j] for i in range(3) for j in range(i + 1, 3))
            if (-1) ** inversions * math.prod(signs) == 1:
                found.append([[signs[r] if axes[r] == c else 0.0 for c in range(3)] for r in range(3)])
    return found


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "group",
    [
        Restricted(Dihedral(4), [1]),
        Restricted(SymmetricGroup(3), [[1, 2, 0], [1, 0, 2]]),
        Restricted(PlanarRotation(), [[2 * pi / 3]]),
        Restricted(SpatialRotation(), [[[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]], ABOUT_X]),
    ],
    ids=["square", "three", "angles", "matrices"],
)
def test_laws(law, group):
    law(group)


class TestOfFiniteGroups:
    def test_rotations_of_the_square(self):
        group, x = Restricted(Dihedral(4), [1]), torch.randn(4, 3, 5, 5)
        assert group.order == 4
        assert group.exact
        assert_exact(group.orbit(x), CyclicRotation(4).orbit(x))
        assert_exact(group.act(group.elements(), x), CyclicRotation(4).act(torch.arange(4), x))
        assert_exact(group.cayley_table(), CyclicRotation(4).cayley_table())

    @pytest.mark.parametrize(
        ("subgroup", "order"), [([2], 2), ([4], 2), ([2, 4], 4), ([1, 4], 8), ([0], 1), ([4, 5], 8), ([0, 2, 2], 2)]
    )
    def test_orders(self, subgroup, order):
        group = Restricted(Dihedral(4), subgroup)
        x = torch.randn(1, 4, 4)
        assert group.order == order
        assert isinstance(group, FiniteGroup)
        members = {tuple(image.flatten().tolist()) for image in group.orbit(x)}
        assert len(members) == order
        assert members <= {tuple(image.flatten().tolist()) for image in Dihedral(4).orbit(x)}
        assert len(set(group.generators().tolist())) == len({*subgroup} - {0})

    def test_maps(self):
        group = Restricted(CyclicRotation(4) * SignFlip(), [3])  # a quarter turn and a change of sign
        m = torch.randn(4, 1, 3, 3)
        assert group.order == 4
        for index in range(4):
            turns = torch.rot90(m, index, (-2, -1))
            assert_exact(group.act_on_map(torch.tensor(index), m), turns)
            assert_exact(group.act_on_map(torch.full((4,), index), m), turns)
            assert_exact(group.act(torch.tensor(index), m), turns * (-1) ** index)
            assert_exact(group.realign(torch.tensor(index), turns), m)


class TestOfPermutations:
    def test_cyclic_shifts(self):
        group, x = Restricted(SymmetricGroup(4), [[1, 2, 3, 0]]), torch.randn(4, 4, 3)
        theirs = CyclicPermutation(4, dim=1)
        assert group.order == 4
        assert group.exact
        assert_exact(group.orbit(x), theirs.orbit(x))
        assert_exact(group.act(group.elements(), x), theirs.act(group.elements(), x))
        assert_exact(group.cayley_table(), theirs.cayley_table())

    def test_all_of_four(self):
        group = Restricted(SymmetricGroup(4), [[1, 2, 3, 0], [1, 0, 2, 3]])
        rows = group.orbit(torch.arange(4)[None])[:, 0].tolist()
        assert sorted(rows) == sorted(map(list, itertools.permutations(range(4))))
        orbit, table = group.orbit(torch.arange(4)[None]), group.cayley_table()
        for h in range(24):
            assert_exact(group.act(group.elements(), orbit[h].expand(24, 4)), orbit[table[:, h], 0])

    def test_of_a_graph(self):
        group = Restricted(SymmetricGroup(3, dim=(1, 2)), [[1, 2, 0]])
        x = torch.randn(2, 3, 3)
        assert_exact(group.act(torch.tensor(1), x), x.roll((1, 1), (1, 2)))


class TestOfAngles:
    @pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100])
    def test_turns(self, n):
        """Also those that pass through half a turn, where angles begin anew."""
        group = Restricted(PlanarRotation(), [[2 * pi / n]])
        assert group.order == n
        assert group.cayley_table().tolist() == [[(i + j) % n for j in range(n)] for i in range(n)]

    @pytest.mark.parametrize("generator", [pi, -pi, 3 * pi])
    def test_half_a_turn(self, generator):
        group = Restricted(PlanarRotation(), [[generator]])
        assert group.order == 2
        assert group.cayley_table().tolist() == [[0, 1], [1, 0]]

    @pytest.mark.parametrize("generator", [0.0, 2 * pi, -2 * pi])
    def test_no_turn(self, generator):
        assert Restricted(PlanarRotation(), [[generator]]).order == 1

    def test_generators_that_overlap(self):
        group = Restricted(PlanarRotation(), [[2 * pi / 4], [2 * pi / 6], [-2 * pi / 4]])
        assert group.order == 12

    @pytest.mark.parametrize("n", [3, 8])
    def test_acts_as_the_angles_do(self, n):
        """In double precision up to its rounding, though lists of numbers make float32 tensors."""
        group, x = Restricted(PlanarRotation("bicubic"), [[2 * pi / n]]), images(n, 2, 7, 7)
        for index in range(n):
            expected = PlanarRotation("bicubic").act(torch.tensor([2 * pi * index / n], dtype=torch.float64), x)
            assert_linear(group.act(torch.tensor(index), x), expected)
            assert_linear(group.act(torch.full((n,), index), x), expected)
        assert not group.exact

    def test_tensors_keep_their_precision(self):
        group, x = Restricted(PlanarRotation(), torch.tensor([[2 * pi / 3]], dtype=torch.float64)), images(1, 7, 7)
        expected = PlanarRotation().act(torch.tensor([2 * pi / 3], dtype=torch.float64), x)
        assert_linear(group.act(torch.tensor(1), x), expected)

    @pytest.mark.parametrize("max_order", [1_000, 50])
    def test_endless(self, max_order):
        """One radian is no fraction of a turn."""
        expected = (
            rf"^The 1 element\S* given make a subgroup of more than max_order={max_order} elements\. Raise max_order "
            r"if that is meant; real numbers, such as an angle that is no fraction of a full turn, may make infinitely "
            r"many\.$"
        )
        with pytest.raises(ValueError, match=expected):
            Restricted(PlanarRotation(), [[1.0]], max_order=max_order)

    def test_endless_shifts_and_scalings(self):
        for group, g in ((Translation(), [1.0, 0.0]), (Scaling(), [2.0])):
            with pytest.raises(ValueError, match="more than max_order=20 elements"):
                Restricted(group, [g], max_order=20)


class TestTheCube:
    def test_members(self):
        assert CUBE.order == 24
        x = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
        points = {tuple(round(v) for v in image.flatten().tolist()) for image in CUBE.orbit(x)}
        expected = {tuple(sum(m[r][k] * (k + 1) for k in range(3)) for r in range(3)) for m in cube_rotations()}
        assert points == expected
        assert len(expected) == 24

    def test_table(self):
        x = images(1, 4, 3)
        orbit, table = CUBE.orbit(x), CUBE.cayley_table()
        for h in range(24):
            assert_linear(CUBE.act(CUBE.elements(), orbit[h].expand(24, 4, 3)), orbit[table[:, h], 0])
        assert_exact(table[table], table[:, table])

    def test_maps_stay(self):
        m = images(24, 4, 1)
        assert_exact(CUBE.act_on_map(CUBE.elements(), m), m)

    @pytest.mark.parametrize(
        "subgroup",
        [torch.tensor([ABOUT_Z, ABOUT_X]), [torch.tensor(ABOUT_Z), torch.tensor(ABOUT_X)], ((ABOUT_Z), (ABOUT_X))],
        ids=["stack", "list of tensors", "tuple"],
    )
    def test_other_ways_to_write_it(self, subgroup):
        assert Restricted(SpatialRotation(), subgroup) == CUBE

    def test_elements_that_were_drawn(self):
        """A list of tensors, as they come from a group's methods."""
        group = SymmetricGroup(4)
        g, h = torch.tensor([1, 2, 3, 0]), torch.tensor([1, 0, 2, 3])
        assert Restricted(group, [g, h]).order == 24
        assert Restricted(Dihedral(4), [torch.tensor(1)]).order == 4
        turn = torch.tensor([pi / 2], dtype=torch.float64)
        assert Restricted(PlanarRotation(), [turn]).order == 4

    def test_irregular(self):
        """Turns by 72° about two axes of an icosahedron make its 60 rotations; the numbers are not whole."""
        golden = (1 + math.sqrt(5)) / 2

        def fifth(x, y, z):
            """Rodrigues' formula."""
            length = math.sqrt(x * x + y * y + z * z)
            k = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64) / length
            return torch.eye(3, dtype=torch.float64) + math.sin(2 * pi / 5) * k + (1 - math.cos(2 * pi / 5)) * k @ k

        group = Restricted(SpatialRotation(), torch.stack([fifth(0, 1, golden), fifth(1, golden, 0)]))
        assert group.order == 60


class TestWithTorch:
    def test_gradients(self):
        x = images(2, 4, 3).requires_grad_()
        for g in (torch.tensor(5), torch.tensor([5, 7])):
            assert torch.autograd.gradcheck(lambda y, g=g: CUBE.act(g, y), x)

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        x = images(2, 4, 3)
        compiled = torch.compile(lambda g, x: CUBE.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (torch.tensor(5), torch.tensor([5, 7])):
            assert_linear(compiled(g, x), CUBE.act(g, x))

    def test_empty_batch(self):
        empty = torch.zeros(0, 4, 3)
        assert CUBE.act(torch.tensor(1), empty).shape == (0, 4, 3)
        assert CUBE.act(torch.zeros(0, dtype=torch.int64), empty).shape == (0, 4, 3)
        assert CUBE.orbit(empty).shape == (24, 0, 4, 3)


def test_of_several_tensors():
    """An image and its mask, turned by half a turn."""
    group = Restricted(OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)}), [2])
    batch = {"image": torch.randn(2, 1, 3, 3), "mask": torch.randint(2, (2, 3, 3))}
    y = group.act(torch.tensor(1), batch)
    assert_exact(y["image"], batch["image"].flip((-2, -1)))
    assert_exact(y["mask"], batch["mask"].flip((-2, -1)))


class TestRefused:
    @pytest.mark.parametrize("group", [3, None, CyclicRotation, lambda x: x])
    def test_no_group(self, group):
        with pytest.raises(TypeError, match=r"^Restricted takes a group: got "):
            Restricted(group, [1])

    @pytest.mark.parametrize(
        ("group", "subgroup"),
        [
            (Dihedral(4), []),
            (PlanarRotation(), []),
            (PlanarRotation(), torch.zeros(0, 1)),
            (Dihedral(4), [[1, 2]]),
            (PlanarRotation(), [1.0]),
            (PlanarRotation(), [[1.0, 2.0]]),
            (SymmetricGroup(3), [1, 2, 0]),
            (SymmetricGroup(3), [[1, 2, 3, 0]]),
            (SpatialRotation(), ABOUT_Z),
        ],
        ids=repr,
    )
    def test_empty_or_another_shape(self, group, subgroup):
        shape = re.escape(str(tuple(torch.as_tensor(subgroup).shape)))
        expected = (
            rf"^subgroup must hold one or more elements of {re.escape(repr(group))}, shape \(m, "
            rf"\*{re.escape(str(group.element_shape))}\): got shape {shape}\.$"
        )
        with pytest.raises(ValueError, match=expected):
            Restricted(group, subgroup)

    @pytest.mark.parametrize("subgroup", [1, torch.tensor(1)], ids=repr)
    def test_one_element_without_a_list(self, subgroup):
        with pytest.raises((TypeError, ValueError), match="subgroup"):
            Restricted(Dihedral(4), subgroup)

    def test_fractions_for_whole_numbers(self):
        for group, subgroup in ((Dihedral(4), [1.0]), (SymmetricGroup(2), [[1.0, 0.0]])):
            expected = rf"^Elements of {re.escape(repr(group))} are whole numbers: got torch\.float32\.$"
            with pytest.raises(TypeError, match=expected):
                Restricted(group, subgroup)

    @pytest.mark.parametrize(
        ("group", "subgroup", "expected"),
        [
            (Dihedral(4), [8], r"has the elements 0 to 7: got 8"),
            (Dihedral(4), [-1], r"has the elements 0 to 7: got -1"),
            (SymmetricGroup(3), [[0, 0, 1]], "are permutations"),
            (PlanarRotation(), [[math.nan]], "are finite numbers"),
            (Scaling(), [[0.0]], "are finite factors above 0"),
            (SpatialRotation(), [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]], "are rotation matrices"),
        ],
        ids=repr,
    )
    def test_no_elements(self, group, subgroup, expected):
        with pytest.raises(ValueError, match=expected):
            Restricted(group, subgroup)

    def test_more_than_max_order(self):
        generators = [[1, 2, 3, 0], [1, 0, 2, 3]]
        assert Restricted(SymmetricGroup(4), generators, max_order=24).order == 24
        for limit in (23, 1):
            expected = rf"^The 2 element\S* given make a subgroup of more than max_order={limit} elements\."
            with pytest.raises(ValueError, match=expected):
                Restricted(SymmetricGroup(4), generators, max_order=limit)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_max_order_below_one(self, limit):
        """Would be no limit at all."""
        with pytest.raises(ValueError, match="max_order"):
            Restricted(Dihedral(4), [1], max_order=limit)

    def test_no_index(self):
        with pytest.raises(ValueError, match=r"Restricted\(.*\) has the elements 0 to 3: got 4"):
            Restricted(Dihedral(4), [1]).act(torch.tensor(4), torch.zeros(1, 4, 4))

    def test_inputs_that_the_group_refuses(self):
        with pytest.raises(ValueError, match=r"^SpatialRotation\(\) turns points"):
            CUBE.act(torch.tensor(1), torch.zeros(2, 4))


GROUPS = [
    Restricted(Dihedral(4), [1]),
    Restricted(SymmetricGroup(4), [[1, 2, 3, 0]]),
    Restricted(PlanarRotation(), [[2 * pi / 3]]),
    CUBE,
]


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_copies_are_equal(group):
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), eval(repr(group))):
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
        assert_exact(twin.cayley_table(), group.cayley_table())


def test_values_and_names():
    assert Restricted(Dihedral(4), [1]) == Restricted(Dihedral(4), torch.tensor([1])) == Restricted(Dihedral(4), (1,))
    assert Restricted(Dihedral(4), [1]) == Restricted(Dihedral(4), [1], max_order=4)
    assert Restricted(Dihedral(4), [1]) != Restricted(Dihedral(4), [2])
    assert Restricted(Dihedral(4), [1]) != Restricted(CyclicRotation(4), [1])
    assert repr(Restricted(Dihedral(4), [1])) == "Restricted(group=Dihedral(order=4), subgroup=(1,))"
    assert len({*GROUPS, Restricted(Dihedral(4), [1])}) == len(GROUPS)


def test_what_is_given_is_not_held():
    """Writing into it later changes nothing."""
    given = torch.tensor([1])
    group, x = Restricted(Dihedral(4), given), torch.randn(1, 4, 4)
    expected = group.orbit(x)
    given.fill_(2)
    assert_exact(group.orbit(x), expected)
    assert group == Restricted(Dihedral(4), [1])


def test_as_a_factor_and_in_a_product():
    group = Restricted(Dihedral(4), [2]) * SignFlip()
    x = torch.randn(2, 4, 4)
    assert_exact(group.act(torch.tensor(3), x), -x.flip((-2, -1)))
    with pytest.raises(ValueError, match="is no direct product"):
        Restricted(Dihedral(4), [1]) * Flip()
