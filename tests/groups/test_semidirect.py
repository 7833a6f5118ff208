"""Do two groups act together of which one moves the other's elements? Against tables made by hand and loops."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch

from invreg.groups import (
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    DirectProduct,
    FiniteGroup,
    Flip,
    Group,
    PlanarRotation,
    SemidirectProduct,
    SignFlip,
    Translation,
    Trivial,
)
from tests.groups.test_continuous import assert_near, blob, each_image, element, images, shifted, turned
from tests.groups.test_laws import GROUP_LAWS
from tests.groups.test_planar import D4_TABLE
from tests.tolerances import assert_exact, assert_linear

SHIFT_OF_SEVEN = FiniteGroup.from_permutations([[1, 2, 3, 4, 5, 6, 0]])
REVERSAL_OF_SEVEN = FiniteGroup.from_permutations([[6, 5, 4, 3, 2, 1, 0]])
TURN_THREE_OF_SEVEN = FiniteGroup.from_permutations([[1, 2, 0, 3, 4, 5, 6]])
SWAP_TWO_OF_SEVEN = FiniteGroup.from_permutations([[1, 0, 2, 3, 4, 5, 6]])


def mirrored_turn(h, n):
    """What a mirror image makes of quarter turns: turns in the other direction."""
    return torch.where(h == 1, -n % 4, n)


def turned_shift(h, n):
    """What a turn makes of a shift, ``(down, right)``: one in the turned direction, counter-clockwise."""
    (down, right), (c, s) = n.unbind(-1), (h[..., 0].cos(), h[..., 0].sin())
    return torch.stack([c * down - s * right, s * down + c * right], -1)


def same_shift(h, n):
    return n.expand(torch.broadcast_shapes(n.shape[:-1], h.shape[:-1]) + n.shape[-1:])


def shift_turned_back(h, n):
    return turned_shift(-h, n)


def relabelling(group: FiniteGroup, other: FiniteGroup, x: torch.Tensor) -> list[int]:
    """Which element of ``other`` does to ``x`` what each one of ``group`` does."""
    theirs = other.orbit(x)
    found = []
    for image in group.orbit(x):
        same = [j for j, other_image in enumerate(theirs) if torch.equal(image, other_image)]
        assert len(same) == 1
        found.append(same[0])
    return found


def numbered_image(side: int) -> torch.Tensor:
    return torch.arange(1.0, side * side + 1).view(1, side, side)


class TestTheSquare:
    group = SemidirectProduct(CyclicRotation(4), Flip())

    def test_pairs_are_numbered_row_by_row(self):
        """The mirror image first, then the turn."""
        x = torch.randn(8, 3, 5, 5)
        for i in range(4):
            for j in range(2):
                expected = torch.rot90(x.flip(-1) if j else x, i, (-2, -1))
                assert_exact(self.group.act(torch.tensor(2 * i + j), x), expected)
                assert_exact(self.group.orbit(x)[2 * i + j], expected)
                assert_exact(self.group.act(torch.full((8,), 2 * i + j), x), expected)

    def test_acts_as_dihedral(self):
        assert relabelling(self.group, Dihedral(4), numbered_image(5)) == [i + 4 * j for i in range(4) for j in (0, 1)]

    def test_composes_as_dihedral(self):
        assert self.group.order == 8
        label = [i + 4 * j for i in range(4) for j in (0, 1)]
        table = self.group.cayley_table().tolist()
        for g in range(8):
            for h in range(8):
                assert label[table[g][h]] == D4_TABLE[label[g]][label[h]]
            assert label[int(self.group.inverse(torch.tensor(g)))] == D4_TABLE[label[g]].index(0)

    def test_with_a_callable(self):
        group = SemidirectProduct(CyclicRotation(4), Flip(), mirrored_turn)
        assert_exact(group.cayley_table(), self.group.cayley_table())
        x = torch.randn(8, 4, 4)
        assert_exact(group.orbit(x), self.group.orbit(x))
        assert_exact(group.act(group.elements(), x), self.group.act(group.elements(), x))

    def test_exact(self):
        assert self.group.exact
        assert not self.group.local

    def test_generators(self):
        found = {0}
        for _ in range(8):
            found |= {int(self.group.compose(torch.tensor(i), g)) for i in found for g in self.group.generators()}
        assert found == set(range(8))
        assert len(self.group.generators()) == 2

    def test_maps(self):
        m = torch.randn(8, 1, 4, 4)
        for g in self.group.elements():
            assert_exact(self.group.act_on_map(g, m), self.group.act(g, m))
            assert_exact(self.group.realign(g, self.group.act(g, m)), m)
        signed = SemidirectProduct(CyclicRotation(4), Flip() * SignFlip())
        assert_exact(signed.act_on_map(torch.tensor(1), m), m)  # the sign alone
        assert_exact(signed.act(torch.tensor(1), m), -m)

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        x = torch.randn(8, 2, 3, 3)
        compiled = torch.compile(lambda g, x: self.group.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (torch.tensor(3), self.group.elements()):
            assert_exact(compiled(g, x), self.group.act(g, x))


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "group",
    [
        SemidirectProduct(CyclicRotation(4), Flip()),
        SemidirectProduct(CyclicTranslation(3), Flip()),
        SemidirectProduct(CyclicRotation(4), Flip(), mirrored_turn),
    ],
    ids=["square", "frieze", "callable"],
)
def test_laws(law, group):
    law(group)


@pytest.mark.parametrize("side", [6, 12])
class TestWallpaper:
    """p4m: shifts by thirds along both axes, turns and mirror images."""

    group = SemidirectProduct(CyclicTranslation(3, -1) * CyclicTranslation(3, -2), Dihedral(4))

    def test_each_element(self, side):
        """First the symmetry of the square, then both shifts."""
        image, step = numbered_image(side)[0].numpy(), side // 3
        orbit = self.group.orbit(numbered_image(side))
        for right in range(3):
            for down in range(3):
                for k in range(8):
                    kept = np.rot90(image[:, ::-1] if k >= 4 else image, k % 4)
                    expected = np.roll(kept, (down * step, right * step), (0, 1))
                    index = (3 * right + down) * 8 + k
                    assert orbit[index, 0].tolist() == expected.tolist()

    def test_elements_differ_and_every_product_acts_as_composed(self, side):
        assert self.group.order == 72
        g, table = self.group.elements(), self.group.cayley_table()
        orbit = self.group.orbit(numbered_image(side))
        assert len(orbit.flatten(1).unique(dim=0)) == 72
        for h in range(72):
            assert_exact(self.group.act(g, orbit[h].expand(72, side, side)), orbit[table[:, h], 0])

    def test_table_is_that_of_a_group(self, side):
        del side
        t = self.group.cayley_table()
        assert_exact(t.sort(0).values, torch.arange(72)[:, None].expand(72, 72))
        assert_exact(t.sort(1).values, torch.arange(72).expand(72, 72))
        assert_exact(t[t], t[:, t])  # (fg)h and f(gh), for all three
        assert_exact(t.gather(1, self.group.inverse(torch.arange(72))[:, None]), torch.zeros(72, 1, dtype=torch.int64))


def test_direct_products_are_semidirect_too():
    for first, second in ((SignFlip(), Flip()), (Flip(-1), Flip(-2)), (Trivial(), Flip()), (Flip(), Trivial())):
        semidirect, direct = SemidirectProduct(first, second), DirectProduct(first, second)
        x = torch.randn(3, 4, 5)
        assert_exact(semidirect.orbit(x), direct.orbit(x))
        assert_exact(semidirect.cayley_table(), direct.cayley_table())


def test_of_groups_that_interpolate():
    """Turns by 45° and mirror images are Dihedral(8)."""
    group = SemidirectProduct(CyclicRotation(8), Flip())
    label = [i + 8 * j for i in range(8) for j in (0, 1)]
    assert not group.exact
    assert group.order == 16
    x = images(2, 9, 9)
    assert_linear(group.orbit(x), Dihedral(8).orbit(x)[label])
    table, theirs = group.cayley_table().tolist(), Dihedral(8).cayley_table().tolist()
    for g in range(16):
        for h in range(16):
            assert label[table[g][h]] == theirs[label[g]][label[h]]


class TestMotionsOfThePlane:
    """SE(2): shifts and turns."""

    group = SemidirectProduct(Translation(3.0), PlanarRotation(), turned_shift)

    def test_elements_are_vectors(self):
        assert self.group.element_shape == (3,)
        assert self.group.element_dtype == torch.float64
        assert self.group.identity.tolist() == [0.0, 0.0, 0.0]
        assert self.group.local
        assert not self.group.exact
        drawn = self.group.sample(500, torch.Generator().manual_seed(0))
        assert drawn.shape == (500, 3)
        assert 2.5 < float(drawn[:, :2].abs().max()) <= 3
        assert 3 < float(drawn[:, 2].abs().max()) <= math.pi
        assert not (self.group.sample_non_identity(50, 3) == self.group.identity).all(-1).any()

    def test_turns_first_and_shifts_second(self):
        x = images(2, 1, 12, 13)
        expected = each_image(lambda image: shifted(turned(image, 0.6), 1.3, -2.2), x)
        assert_near(self.group.act(element(1.3, -2.2, 0.6), x), expected)
        other = each_image(lambda image: shifted(turned(image, -2.0), 0.0, 0.5), x)
        stack = torch.stack([element(1.3, -2.2, 0.6), element(0.0, 0.5, -2.0)])
        assert_near(self.group.act(stack, x), torch.stack([expected[0], other[1]]))

    def test_products(self):
        """Complex numbers: z → a z + b, with b counted to the right and upwards."""

        def motion(g):
            down, right, angle = g.tolist()
            return complex(math.cos(angle), math.sin(angle)), complex(right, -down)

        drawn = self.group.sample(20, torch.Generator().manual_seed(0)).view(2, 10, 3)
        products, inverses = self.group.compose(*drawn), self.group.inverse(drawn[0])
        for g, h, product, inverse in zip(*drawn, products, inverses, strict=True):
            (a, b), (c, d) = motion(g), motion(h)
            assert motion(product)[0] == pytest.approx(a * c, abs=1e-12)
            assert motion(product)[1] == pytest.approx(a * d + b, abs=1e-12)
            e, f = motion(inverse)
            assert a * e == pytest.approx(1, abs=1e-12)
            assert a * f + b == pytest.approx(0, abs=1e-12)
        table = self.group.compose(drawn[0][:, None], drawn[1])
        assert table.shape == (10, 10, 3)
        assert_linear(table[4, 7], self.group.compose(drawn[0][4], drawn[1][7]))

    def test_acts_as_composed_at_finer_resolution(self):
        """Within 16 % on images of 16 pixels, 2 % on 64."""
        for side, bound in ((16, 0.16), (32, 0.08), (64, 0.02)):
            x, unit = blob(side, width=0.08), torch.tensor([side / 40, side / 40, 1], dtype=torch.float64)
            for g, h in self.group.sample(6, torch.Generator().manual_seed(0)).view(3, 2, 3):
                g, h = unit * g, unit * h
                once, twice = self.group.act(self.group.compose(g, h), x), self.group.act(g, self.group.act(h, x))
                assert float((once - twice).norm()) < bound * float(x.norm())

    @pytest.mark.parametrize("max_shift", [1.0, 4.0, 8.0, 16.0])
    def test_shifts_that_suit_large_images(self, max_shift):
        """Whatever sizes are tried when the product is made."""
        group = SemidirectProduct(Translation(max_shift), PlanarRotation(), turned_shift)
        x = images(1, 64, 64)
        once = PlanarRotation().act(element(0.6), x)
        assert_near(group.act(element(5.0, -7.0, 0.6), x), once.roll((5, -7), (1, 2)))

    @pytest.mark.parametrize("max_shift", [1.0, 3.0])
    @pytest.mark.parametrize("wrong", [same_shift, shift_turned_back])
    def test_wrong_callables_are_refused(self, max_shift, wrong):
        expected = (
            rf"^SemidirectProduct\(Translation\(.*, conjugate={wrong.__name__}\) is no semidirect product: for element "
            r"\[.*\] of the first, n, and element \[.*\] of the second, h, on samples of shape \([0-9, ]+\), h n h⁻¹ "
            r"acts as another element of the first than conjugate says\.$"
        )
        with pytest.raises(ValueError, match=expected):
            SemidirectProduct(Translation(max_shift), PlanarRotation(), wrong)

    def test_missing_callable(self):
        with pytest.raises(
            TypeError, match=r"needs conjugate, a callable .*, or None if both groups are finite: got None\."
        ):
            SemidirectProduct(Translation(), PlanarRotation())


class TestRefused:
    def test_order_of_the_factors(self):
        expected = (
            r"^SemidirectProduct\(Flip\(dim=-1\), CyclicRotation\(order=4\)\) is no semidirect product: with element 1 "
            r"of the first, n, and element 1 of the second, h, what h n h⁻¹ does to samples of shape \([0-9, ]+\) no "
            r"element of the first does\. Is it the first group that the second one takes to itself\?$"
        )
        with pytest.raises(ValueError, match=expected):
            SemidirectProduct(Flip(), CyclicRotation(4))
        with pytest.raises(ValueError, match="is no semidirect product"):
            SemidirectProduct(Dihedral(4), CyclicTranslation(3))

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda h, n: n + 0 * h,
            lambda h, n: mirrored_turn(1 - h, n),
            lambda h, n: torch.where(h == 1, (n + 1) % 4, n),
        ],
        ids=["the same", "the other way round", "no automorphism"],
    )
    def test_wrong_callable(self, wrong):
        expected = r"conjugate=<lambda>\) is no semidirect product: for element \d of the first, n, and element \d of "
        with pytest.raises(ValueError, match=expected):
            SemidirectProduct(CyclicRotation(4), Flip(), wrong)

    def test_callable_that_is_right_for_generators_only(self):
        """It would make a table that is not that of a group."""
        table = torch.tensor([[0, 1, 2, 3], [0, 3, 0, 1]])
        with pytest.raises(ValueError, match="is no semidirect product"):
            SemidirectProduct(CyclicRotation(4), Flip(), lambda h, n: table[h, n])

    def test_callable_that_raises(self):
        """When the product is made, where it is called first."""

        def mismatched(h, n):
            raise RuntimeError("sizes do not match")

        with pytest.raises((RuntimeError, ValueError), match="sizes do not match"):
            SemidirectProduct(CyclicRotation(4), Flip(), mismatched)

    @pytest.mark.parametrize("conjugate", [3, "inverse", [[0, 1]]])
    def test_no_callable(self, conjugate):
        with pytest.raises(TypeError, match=rf"needs conjugate, a callable .*: got {re.escape(repr(conjugate))}\."):
            SemidirectProduct(CyclicRotation(4), Flip(), conjugate)

    @pytest.mark.parametrize(("first", "second"), [(Flip(), 3), (3, Flip()), (Flip, Flip()), (None, None)])
    def test_no_groups(self, first, second):
        with pytest.raises(TypeError, match=r"^A product is made of two groups: got "):
            SemidirectProduct(first, second)

    def test_acting_on_a_shape_where_it_is_none(self):
        """Axis 1 holds the channels of ``(N, C, H, W)``, which turns leave, but the rows of ``(N, H, W)``."""
        group = SemidirectProduct(CyclicRotation(4), Flip(1))
        x = torch.randn(2, 4, 4, 4)
        assert_exact(group.act(torch.tensor(3), x), torch.rot90(x.flip(1), 1, (-2, -1)))
        for refused in (
            lambda: group.act(torch.tensor(3), x[0]),
            lambda: group.act(torch.tensor([3] * 4), x[0]),
            lambda: group.orbit(x[0]),
        ):
            with pytest.raises(ValueError, match=r"is no semidirect product: .* on samples of shape \(4, 4\)"):
                refused()

    def test_elements(self):
        group = SemidirectProduct(CyclicRotation(4), Flip())
        with pytest.raises(ValueError, match=r"has the elements 0 to 7: got 8\."):
            group.act(torch.tensor(8), torch.zeros(2, 4, 4))
        with pytest.raises(ValueError, match="turns square images"):
            group.act(torch.tensor(1), torch.zeros(2, 4, 5))
        with pytest.raises(ValueError, match="hold finite numbers"):
            TestMotionsOfThePlane.group.act(element(0.0, math.nan, 0.0), torch.zeros(2, 4, 4))
        with pytest.raises(ValueError, match=r"have shape \(3,\)"):
            TestMotionsOfThePlane.group.act(element(0.0, 1.0), torch.zeros(2, 4, 4))


class TestShapesThatOnlyTheUserKnows:
    def test_none_is_found(self):
        expected = r"no sample was found that both groups act on\. Give the shape of one, without the batch axis, as "
        with pytest.raises(ValueError, match=expected + r"input_shape\.$"):
            SemidirectProduct(TURN_THREE_OF_SEVEN, SWAP_TWO_OF_SEVEN)

    def test_given(self):
        group = SemidirectProduct(TURN_THREE_OF_SEVEN, SWAP_TWO_OF_SEVEN, input_shape=[7])
        assert group.order == 6
        assert group.input_shape == (7,)
        rows = group.orbit(torch.arange(7.0)[None])[:, 0].long().tolist()
        assert sorted(rows) == sorted(
            [*p, 3, 4, 5, 6] for p in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0]]
        )
        table = group.cayley_table()
        assert_exact(table[table], table[:, table])
        assert not torch.equal(table, table.T)

    def test_the_order_of_a_factor_is_tried(self):
        group = SemidirectProduct(SHIFT_OF_SEVEN, REVERSAL_OF_SEVEN)
        assert group.order == 14
        table = group.cayley_table()
        assert_exact(table[table], table[:, table])

    def test_given_where_they_do_not_act(self):
        with pytest.raises(ValueError, match=r"permutes 7 positions along axis -1: got size 5\."):
            SemidirectProduct(TURN_THREE_OF_SEVEN, SWAP_TWO_OF_SEVEN, input_shape=(5,))

    def test_given_where_elements_do_the_same(self):
        with pytest.raises(ValueError, match=r"two elements of the first group do the same to samples of shape \("):
            SemidirectProduct(CyclicRotation(4), Flip(), input_shape=(1, 1))


GROUPS = [
    SemidirectProduct(CyclicRotation(4), Flip()),
    SemidirectProduct(CyclicRotation(4), Flip(), mirrored_turn),
    SemidirectProduct(TURN_THREE_OF_SEVEN, SWAP_TWO_OF_SEVEN, input_shape=(7,)),
    SemidirectProduct(Translation(), PlanarRotation(), turned_shift),
]


@pytest.mark.parametrize("group", GROUPS, ids=["found", "callable", "shape", "infinite"])
def test_copies_are_equal(group):
    g = group.sample(5)
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), copy.copy(group)):
        assert type(twin) is type(group)
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
        assert_exact(twin.compose(g, g), group.compose(g, g))


def test_values_and_names():
    found, given, shape, infinite = GROUPS
    assert found == SemidirectProduct(CyclicRotation(4), Flip())
    assert len({found, given, shape, infinite, SemidirectProduct(CyclicRotation(4), Flip())}) == 4
    assert found != given
    assert found != SemidirectProduct(CyclicRotation(4), Flip(-2))
    assert repr(found) == "SemidirectProduct(CyclicRotation(order=4), Flip(dim=-1))"
    assert eval(repr(found)) == found
    assert eval(repr(given)) == given
    assert repr(shape).endswith(", input_shape=(7,))")
    assert eval(repr(infinite)) == infinite


def test_finite_iff_both_factors_are():
    assert isinstance(GROUPS[0], FiniteGroup)
    assert isinstance(GROUPS[0], SemidirectProduct)
    assert isinstance(GROUPS[3], SemidirectProduct)
    assert isinstance(GROUPS[3], Group)
    assert not isinstance(GROUPS[3], FiniteGroup)
    half = SemidirectProduct(PlanarRotation(), Flip(), lambda h, n: torch.where(h[..., None] == 1, -n, n))
    assert not isinstance(half, FiniteGroup)
    assert half.element_shape == (2,)


def test_of_an_infinite_and_a_finite_group():
    """O(2): turns by any angle, and mirror images."""
    group = SemidirectProduct(PlanarRotation(), Flip(), lambda h, n: torch.where(h[..., None] == 1, -n, n))
    x = images(2, 6, 6)
    expected = each_image(lambda image: turned(image[:, ::-1], 0.6), x)
    assert_near(group.act(element(0.6, 1.0), x), expected)
    assert group.compose(element(0.6, 1.0), element(0.25, 1.0)).tolist() == pytest.approx([0.35, 0.0])
    assert group.inverse(element(0.6, 1.0)).tolist() == pytest.approx([0.6, 1.0])
    assert set(group.sample(50)[:, 1].tolist()) == {0.0, 1.0}


def test_made_with_a_used_product():
    """A semidirect product may be a factor, and a product of products acts as composed."""
    group = SemidirectProduct(CyclicRotation(4), Flip()) * SignFlip()
    x = torch.arange(1.0, 17).view(1, 4, 4)
    orbit, table = group.orbit(x), group.cayley_table()
    for h in range(group.order):
        assert_exact(group.act(group.elements(), orbit[h].expand(16, 4, 4)), orbit[table[:, h], 0])
