"""Do entries move along an axis as promised? Against loops over positions and numpy."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invreg.groups import CyclicPermutation, CyclicTranslation, Flip
from tests.tolerances import assert_exact


def shifted(row: list[float], steps: int) -> list[float]:
    """Each entry goes ``steps`` positions up; the last ones come round to the front."""
    result = [0.0] * len(row)
    for position, entry in enumerate(row):
        result[(position + steps) % len(row)] = entry
    return result


def test_the_oracle_itself():
    assert shifted([1, 2, 3, 4], 1) == [4, 1, 2, 3]
    assert shifted([1, 2, 3, 4], 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("index", range(3))
def test_translation_by_positions(index):
    """Steps are the size divided by the order, here 6 / 3."""
    row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    x = torch.tensor([row, row])
    expected = torch.tensor([shifted(row, 2 * index)] * 2)
    assert_exact(CyclicTranslation(3).act(torch.tensor(index), x), expected)
    assert_exact(CyclicTranslation(3).act(torch.tensor([index, index]), x), expected)
    assert_exact(CyclicTranslation(3).orbit(x)[index], expected)


@pytest.mark.parametrize("index", range(3))
def test_channel_permutation_by_positions(index):
    colours = [1.0, 2.0, 3.0]
    x = torch.tensor(colours).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    expected = torch.tensor(shifted(colours, index)).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    group = CyclicPermutation(3, dim=1)
    assert_exact(group.act(torch.tensor(index), x), expected)
    assert_exact(group.act(torch.tensor([index, index]), x), expected)
    assert_exact(group.orbit(x)[index], expected)


def test_flip_by_positions():
    x = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    left_right = torch.tensor([[[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]])
    up_down = torch.tensor([[[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]])
    for group, expected in ((Flip(), left_right), (Flip(-1), left_right), (Flip(-2), up_down), (Flip(1), up_down)):
        assert_exact(group.act(torch.tensor(1), x), expected)
        assert_exact(group.act(torch.tensor([1]), x), expected)
        assert_exact(group.orbit(x), torch.stack([x, expected]))


@given(data=st.data())
def test_any_axis_of_any_rank_as_numpy(data):
    """Single elements, one per sample and orbits, with the axis counted from either end."""
    order = data.draw(st.integers(1, 4), "order")
    family = data.draw(st.sampled_from([CyclicTranslation, CyclicPermutation, Flip]), "family")
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4), "sizes of a sample")
    axis = data.draw(st.integers(1, len(sizes)), "axis")
    if family is Flip:
        order, step = 2, None
    else:
        step = data.draw(st.integers(1, 3), "step") if family is CyclicTranslation else 1
        sizes[axis - 1] = step * order
    dim = axis - data.draw(st.sampled_from([0, len(sizes) + 1]), "counted from the end")
    group = Flip(dim) if family is Flip else family(order, dim=dim)

    def moved(x, index):
        return (np.flip(x, axis) if index else x) if family is Flip else np.roll(x, index * step, axis)

    x = np.random.default_rng(len(sizes)).normal(size=(order, *sizes))
    images = np.stack([moved(x, index) for index in range(order)])
    batch = torch.from_numpy(x)
    assert_exact(group.orbit(batch), torch.from_numpy(images))
    for index in range(order):
        assert_exact(group.act(torch.tensor(index), batch), torch.from_numpy(images[index].copy()))
    expected = np.stack([images[index][index] for index in range(order)])
    assert_exact(group.act(group.elements(), batch), torch.from_numpy(expected))


def test_translation_as_torch_rolls():
    x = torch.randn(2, 3, 4, 6)
    assert_exact(CyclicTranslation(3).act(torch.tensor(1), x), x.roll(2, -1))
    assert_exact(CyclicTranslation(2, dim=2).act(torch.tensor(1), x), x.roll(2, 2))


def test_tables():
    assert CyclicTranslation(3).cayley_table().tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert CyclicPermutation(3).cayley_table().tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert CyclicTranslation(3).inverse(torch.arange(3)).tolist() == [0, 2, 1]
    assert Flip().cayley_table().tolist() == [[0, 1], [1, 0]]


class TestMaps:
    def test_channels_that_were_summed_away_stay(self):
        m = torch.randn(2, 1, 4, 4)
        group = CyclicPermutation(3, dim=1)
        assert_exact(group.act_on_map(torch.tensor(1), m), m)
        assert_exact(group.act_on_map(torch.tensor([1, 2]), m), m)

    def test_channels_that_are_there_move(self):
        m = torch.randn(2, 3, 4, 4)
        assert_exact(CyclicPermutation(3, dim=1).act_on_map(torch.tensor(1), m), m.roll(1, 1))

    def test_positions_move_whatever_the_channels(self):
        m = torch.randn(2, 1, 4, 6)
        assert_exact(CyclicTranslation(3).act_on_map(torch.tensor(1), m), m.roll(2, -1))
        assert_exact(Flip(-2).act_on_map(torch.tensor([0, 1]), m), torch.stack([m[0], m[1].flip(-2)]))

    def test_elements_are_checked_also_where_nothing_moves(self):
        m = torch.randn(2, 1, 4, 4)
        with pytest.raises(ValueError, match=r"has the elements 0 to 2: got 7\."):
            CyclicPermutation(3, dim=1).act_on_map(torch.tensor(7), m)
        with pytest.raises(ValueError, match=r"one per sample, shape \(2,\): got elements of shape \(5,\)"):
            CyclicPermutation(3, dim=1).act_on_map(torch.zeros(5, dtype=torch.int64), m)


def test_width_that_the_order_does_not_divide_is_refused():
    group = CyclicTranslation(3)
    x = torch.zeros(2, 1, 28, 28)
    expected = (
        r"CyclicTranslation\(order=3, dim=-1\) shifts by 1/3 of axis -1, whose size it must divide: got size 28\. "
        r"Pad or crop it"
    )
    for refused in (
        lambda: group.act(torch.tensor(1), x),
        lambda: group.act(torch.tensor(0), x),
        lambda: group.act(torch.tensor([0, 1]), x),
        lambda: group.orbit(x),
        lambda: group.act_on_map(torch.tensor(1), x),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


@pytest.mark.parametrize("size", [1, 4, 6])
def test_permutation_of_another_number_of_entries_is_refused(size):
    """Also of a multiple, which a translation would take."""
    expected = rf"CyclicPermutation\(order=3, dim=1\) permutes 3 entries along axis 1: got size {size}\."
    for refused in (
        lambda: CyclicPermutation(3, dim=1).act(torch.tensor(1), torch.zeros(2, size, 4)),
        lambda: CyclicPermutation(3, dim=1).act(torch.tensor([1, 2]), torch.zeros(2, size, 4)),
        lambda: CyclicPermutation(3, dim=1).orbit(torch.zeros(2, size, 4)),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Flip(0), "Flip"),
        (lambda: CyclicTranslation(3, dim=0), "CyclicTranslation"),
        (lambda: CyclicPermutation(3, dim=0), "CyclicPermutation"),
    ],
    ids=["flip", "translation", "permutation"],
)
def test_batch_axis_is_refused_at_once(make, name):
    with pytest.raises(ValueError, match=rf"{name} moves entries within a sample: got dim 0, the batch axis\."):
        make()


@pytest.mark.parametrize("family", [CyclicTranslation, CyclicPermutation])
@pytest.mark.parametrize("order", [0, -2])
def test_orders_below_one_are_refused(family, order):
    with pytest.raises(ValueError, match=rf"{family.__name__} takes an order of 1 or more: got {order}\."):
        family(order)


@pytest.mark.parametrize("dim", [-2, -3, 2, 5], ids=["batch axis from the end", "before it", "after the last", "far"])
@pytest.mark.parametrize("family", [Flip, lambda dim: CyclicTranslation(3, dim), lambda dim: CyclicPermutation(3, dim)])
def test_axis_that_inputs_do_not_have_is_refused(family, dim):
    group = family(dim)
    x = torch.zeros(2, 3)
    expected = (
        rf"{re.escape(repr(group))} moves entries along axes \({dim},\), which must exist and not be the batch axis 0: "
        r"got inputs of shape \(2, 3\)\."
    )
    for refused in (
        lambda: group.act(torch.tensor(1), x),
        lambda: group.act(torch.tensor([0, 1]), x),
        lambda: group.orbit(x),
        lambda: group.act_on_map(torch.tensor(1), x),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


def test_values_and_names():
    assert CyclicTranslation(3) == CyclicTranslation(order=3, dim=-1)
    assert CyclicTranslation(3) != CyclicPermutation(3)
    assert CyclicTranslation(3, dim=1) != CyclicTranslation(3, dim=2)
    assert Flip() == Flip(-1)
    assert Flip(-1) != Flip(-2)
    assert repr(CyclicTranslation(3)) == "CyclicTranslation(order=3, dim=-1)"
    assert repr(CyclicPermutation(3, dim=1)) == "CyclicPermutation(order=3, dim=1)"
    assert repr(Flip(-2)) == "Flip(dim=-2)"
    with pytest.raises(AttributeError):
        Flip().dim = 1
