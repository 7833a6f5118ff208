"""Do two commuting groups act together as pairs, and are others refused?"""

import re

import pytest
import torch

from invreg.groups import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    DirectProduct,
    FiniteGroup,
    Flip,
    SignFlip,
    Trivial,
)
from tests.groups.catalogue import S3, keep, left_right, mirror_about_mean
from tests.tolerances import assert_exact

THREE_OF_SEVEN = FiniteGroup.from_permutations([[1, 2, 0, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6]])
LAST_TWO_OF_SEVEN = FiniteGroup.from_permutations([[0, 1, 2, 3, 4, 6, 5]])
FIRST_TWO_OF_SEVEN = FiniteGroup.from_permutations([[1, 0, 2, 3, 4, 5, 6]])


def test_pairs_are_numbered_row_by_row():
    """Element ``i * second.order + j`` is the pair (i, j)."""
    x = torch.randn(2, 3, 4, 4)
    group = CyclicRotation(4) * SignFlip()
    for i in range(4):
        for j in range(2):
            expected = torch.rot90(x, i, (-2, -1)) * (1, -1)[j]
            assert_exact(group.act(torch.tensor(2 * i + j), x), expected)
            assert_exact(group.act(torch.full((2,), 2 * i + j), x), expected)
            assert_exact(group.orbit(x)[2 * i + j], expected)


def test_three_factors_are_numbered_row_by_row():
    x = torch.randn(2, 3, 4, 6)
    group = CyclicTranslation(3) * Flip(-2) * SignFlip()
    assert group.order == 12
    for i in range(3):
        for j in range(2):
            for k in range(2):
                expected = (x.flip(-2) if j else x).roll(2 * i, -1) * (1, -1)[k]
                assert_exact(group.act(torch.tensor(4 * i + 2 * j + k), x), expected)
                assert_exact(group.orbit(x)[4 * i + 2 * j + k], expected)
    g = torch.tensor([11, 5])
    assert_exact(group.act(g, x), torch.stack([-x[0].flip(-2).roll(4, -1), -x[1].roll(2, -1)]))


def test_brackets_change_neither_numbers_nor_action():
    x = torch.randn(12, 2, 4, 6)
    left = (CyclicTranslation(3) * Flip(-2)) * SignFlip()
    right = CyclicTranslation(3) * (Flip(-2) * SignFlip())
    assert_exact(left.orbit(x), right.orbit(x))
    assert_exact(left.act(left.elements(), x), right.act(right.elements(), x))
    assert_exact(left.cayley_table(), right.cayley_table())
    assert_exact(left.inverse(left.elements()), right.inverse(right.elements()))


def test_table_of_two_flips():
    """Klein's four-group, in which each element undoes itself; not the cyclic group of order four."""
    table = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert (Flip(-1) * Flip(-2)).cayley_table().tolist() == table
    assert (Flip(-1) * Flip(-2)).inverse(torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_table_is_made_of_the_parts_tables():
    group = S3 * SignFlip()
    s3, sign = S3.cayley_table().tolist(), [[0, 1], [1, 0]]
    pairs = [(i, j) for i in range(6) for j in range(2)]
    expected = [[2 * s3[i][k] + sign[j][m] for k, m in pairs] for i, j in pairs]
    assert group.cayley_table().tolist() == expected


def test_trivial_factors_change_nothing():
    x = torch.randn(4, 2, 3, 3)
    for group in (CyclicRotation(4) * Trivial(), Trivial() * CyclicRotation(4)):
        assert group.order == 4
        assert_exact(group.orbit(x), CyclicRotation(4).orbit(x))
        assert_exact(group.cayley_table(), CyclicRotation(4).cayley_table())


def test_product_is_exact_where_both_factors_are():
    rounding = FiniteGroup.from_actions([keep, mirror_about_mean])
    assert (Flip() * SignFlip()).exact
    assert not (rounding * SignFlip()).exact
    assert not (SignFlip() * rounding).exact


def test_maps_are_moved_by_the_parts_that_move():
    m = torch.randn(2, 1, 4, 4)
    group = CyclicPermutation(3, dim=1) * CyclicRotation(4) * SignFlip()
    for g in group.elements():
        quarter_turns = int(g) // 2 % 4
        assert_exact(group.act_on_map(g, m), torch.rot90(m, quarter_turns, (-2, -1)))
    assert_exact(group.act_on_map(torch.tensor([0, 23]), m), torch.stack([m[0], torch.rot90(m[1], 3, (-2, -1))]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (CyclicRotation(4), Flip()),
        (Flip(), CyclicRotation(4)),
        (CyclicTranslation(3), Flip()),
        (CyclicTranslation(5), Flip()),
        (CyclicRotation(2), CyclicTranslation(3)),
        (CyclicPermutation(3, dim=1), FiniteGroup.from_permutations([[1, 0, 2]], dim=1)),
        (FiniteGroup.from_actions([keep, left_right]), CyclicRotation(4)),
        (SignFlip() * CyclicRotation(4), Flip(-2)),
    ],
    ids=repr,
)
def test_factors_that_do_not_commute_are_refused_when_made(first, second):
    expected = (
        rf"^{re.escape(repr(first))} \* {re.escape(repr(second))} is no direct product, whose two actions must "
        r"commute: element 1 of the first and element 1 of the second do not, on samples of shape \([0-9, ]+\)\. "
        r"Rotations and mirrors together are Dihedral; if the second takes the first's elements to one another, take "
        r"SemidirectProduct; for other pairs list the actions in FiniteGroup\.from_actions\.$"
    )
    with pytest.raises(ValueError, match=expected):
        first * second


def test_a_shift_of_seven_and_its_reversal_are_refused_when_made():
    """The order of a factor is one of the sizes that are tried."""
    shift = FiniteGroup.from_permutations([[1, 2, 3, 4, 5, 6, 0]])
    reversal = FiniteGroup.from_permutations([[6, 5, 4, 3, 2, 1, 0]])
    with pytest.raises(ValueError, match=r"element 1 of the first and element 1 of the second .* shape \(7, 7, 7\)"):
        shift * reversal


class TestCheckedWhenItActs:
    """Groups of order six and two, on seven or three entries: sizes that are not tried when the product is made."""

    def test_commuting_factors_act(self):
        group = THREE_OF_SEVEN * LAST_TWO_OF_SEVEN
        x = torch.randn(12, 7)
        assert_exact(group.act(torch.tensor(1), x), x[:, [0, 1, 2, 3, 4, 6, 5]])
        assert_exact(group.act(torch.tensor(3), x), x[:, [2, 0, 1, 3, 4, 6, 5]])
        assert_exact(group.act(group.elements(), x), group.orbit(x)[group.elements(), group.elements()])

    @pytest.mark.parametrize(
        "use",
        [
            lambda group, x: group.act(torch.tensor(1), x),
            lambda group, x: group.act(torch.tensor([0, 1]), x),
            lambda group, x: group.orbit(x),
            lambda group, x: group.orbit(x, identity=False),
        ],
        ids=["one element", "one per sample", "orbit", "orbit without identity"],
    )
    def test_others_are_refused_each_time(self, use):
        group = THREE_OF_SEVEN * FIRST_TWO_OF_SEVEN
        expected = (
            r"is no direct product, whose two actions must commute: element 1 of the first and element 1 of the second "
            r"do not, on samples of shape \(7,\)"
        )
        for _ in range(2):
            with pytest.raises(ValueError, match=expected):
                use(group, torch.randn(2, 7))

    def test_a_group_with_itself_is_refused(self):
        """The first pair that does not commute: element 1 commutes with itself."""
        with pytest.raises(ValueError, match=r"element 1 of the first and element 2 of the second do not, on "):
            (S3 * S3).orbit(torch.randn(2, 3))

    def test_shape_that_a_factor_refuses_raises_that_factors_error(self):
        group = THREE_OF_SEVEN * LAST_TWO_OF_SEVEN
        with pytest.raises(ValueError, match=r"permutes 7 positions along axis -1: got size 5\."):
            group.act(torch.tensor(1), torch.randn(2, 5))


def test_factors_that_commute_on_some_shapes_are_refused_on_the_others():
    """Axis 1 holds the channels of ``(N, C, H, W)``, which turns leave, but the rows of ``(N, H, W)``."""
    group = CyclicRotation(4) * Flip(1)
    x = torch.randn(2, 4, 4, 4)
    assert_exact(group.act(torch.tensor(3), x), torch.rot90(x.flip(1), 1, (-2, -1)))
    for refused in (
        lambda: group.act(torch.tensor(3), x[0]),
        lambda: group.act(torch.tensor([3, 3, 3, 3]), x[0]),
        lambda: group.orbit(x[0]),
    ):
        with pytest.raises(ValueError, match=r"element 1 of the first and element 1 .* on samples of shape \(4, 4\)"):
            refused()
    assert_exact(group.act(torch.tensor(3), x), torch.rot90(x.flip(1), 1, (-2, -1)))


def test_errors_of_a_factor_come_through():
    group = CyclicRotation(4) * SignFlip()
    x = torch.randn(2, 3, 4)
    for refused in (lambda: group.act(torch.tensor(2), x), lambda: group.orbit(x)):
        with pytest.raises(
            ValueError, match=r"^CyclicRotation\(order=4\) turns square images: got .* shape \(3, 4\)\."
        ):
            refused()


def test_only_finite_groups_are_multiplied():
    with pytest.raises(TypeError, match="unsupported operand"):
        Flip() * 3
    with pytest.raises(TypeError, match="unsupported operand"):
        3 * Flip()


def test_values_and_names():
    group = Flip(-1) * SignFlip()
    assert group == DirectProduct(Flip(-1), SignFlip())
    assert hash(group) == hash(DirectProduct(Flip(-1), SignFlip()))
    assert group != SignFlip() * Flip(-1)
    assert repr(group) == "Flip(dim=-1) * SignFlip()"
    used = THREE_OF_SEVEN * LAST_TWO_OF_SEVEN
    used.orbit(torch.randn(1, 7))
    assert used == THREE_OF_SEVEN * LAST_TWO_OF_SEVEN  # what was checked is no part of the value


def test_brackets_show_in_the_name():
    """Unequal groups print differently."""
    left, right = (Flip(-1) * Flip(-2)) * SignFlip(), Flip(-1) * (Flip(-2) * SignFlip())
    assert left != right
    assert repr(left) != repr(right)
