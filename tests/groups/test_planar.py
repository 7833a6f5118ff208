"""Do images turn and mirror as promised? Against loops over pixels, numpy and a multiplication table made by hand."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invreg.groups import CyclicRotation, Dihedral
from tests.tolerances import assert_exact

Image = list[list[float]]

D4_TABLE = [
    # Element i is r^i, element 4 + i is r^i m, with r a quarter turn, m a mirror and m r = r^-1 m.
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 2, 3, 0, 5, 6, 7, 4],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 0, 1, 2, 7, 4, 5, 6],
    [4, 7, 6, 5, 0, 3, 2, 1],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 5, 4, 7, 2, 1, 0, 3],
    [7, 6, 5, 4, 3, 2, 1, 0],
]


def quarter_turn(image: Image) -> Image:
    """Counter-clockwise: the right column, read downwards, becomes the top row."""
    height, width = len(image), len(image[0])
    return [[image[column][width - 1 - row] for column in range(height)] for row in range(width)]


def mirror(image: Image) -> Image:
    return [list(reversed(row)) for row in image]


def turned(image: Image, quarter_turns: int, mirrored: bool = False) -> Image:
    image = mirror(image) if mirrored else image
    for _ in range(quarter_turns):
        image = quarter_turn(image)
    return image


def numbered(height: int, width: int) -> Image:
    return [[float(10 * row + column + 1) for column in range(width)] for row in range(height)]


def test_the_oracle_itself():
    assert quarter_turn([[1, 2], [3, 4]]) == [[2, 4], [1, 3]]
    assert quarter_turn([[1, 2, 3]]) == [[3], [2], [1]]
    assert mirror([[1, 2], [3, 4]]) == [[2, 1], [4, 3]]


@pytest.mark.parametrize("index", range(4))
def test_quarter_turns_by_pixels(index):
    image = numbered(3, 3)
    x = torch.tensor([image, image])
    expected = torch.tensor([turned(image, index)] * 2)
    assert_exact(CyclicRotation(4).act(torch.tensor(index), x), expected)
    assert_exact(CyclicRotation(4).act(torch.tensor([index, index]), x), expected)
    assert_exact(CyclicRotation(4).orbit(x)[index], expected)


@pytest.mark.parametrize("index", range(8))
def test_dihedral_by_pixels(index):
    """Mirror left and right first, then turn."""
    image = numbered(3, 3)
    x = torch.tensor([image, image])
    expected = torch.tensor([turned(image, index % 4, mirrored=index >= 4)] * 2)
    assert_exact(Dihedral(4).act(torch.tensor(index), x), expected)
    assert_exact(Dihedral(4).act(torch.tensor([index, index]), x), expected)
    assert_exact(Dihedral(4).orbit(x)[index], expected)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2), (1, 4), (4, 4)])
def test_half_turns_take_any_image(sizes):
    image = numbered(*sizes)
    x = torch.tensor([image])
    plain, mirrored = torch.tensor([image]), torch.tensor([mirror(image)])
    half, mirrored_half = torch.tensor([turned(image, 2)]), torch.tensor([turned(image, 2, mirrored=True)])
    assert_exact(CyclicRotation(2).orbit(x), torch.stack([plain, half]))
    assert_exact(Dihedral(2).orbit(x), torch.stack([plain, half, mirrored, mirrored_half]))
    assert_exact(Dihedral(1).orbit(x), torch.stack([plain, mirrored]))
    assert_exact(CyclicRotation(1).orbit(x), torch.stack([plain]))
    for group in (CyclicRotation(2), Dihedral(2), Dihedral(1), CyclicRotation(1)):
        acts = torch.stack([group.act(g, x) for g in group.elements()])
        assert_exact(acts, group.orbit(x))
        assert_exact(group.act(group.elements(), x.expand(group.order, *sizes)), group.orbit(x)[:, 0])


@given(
    order=st.sampled_from([1, 2, 4]),
    leading=st.lists(st.integers(1, 3), max_size=3),
    side=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_rotations_as_numpy_turns(order, leading, side, seed):
    """On inputs of any rank, single and one per sample."""
    group = CyclicRotation(order)
    x = np.random.default_rng(seed).normal(size=(order, *leading, side, side))
    turns = [np.rot90(x, index * 4 // order, axes=(-2, -1)) for index in range(order)]
    for index in range(order):
        assert_exact(group.act(torch.tensor(index), torch.from_numpy(x)), torch.from_numpy(turns[index].copy()))
    expected = np.stack([turns[index][index] for index in range(order)])
    assert_exact(group.act(group.elements(), torch.from_numpy(x)), torch.from_numpy(expected))


def test_table_of_the_square():
    assert Dihedral(4).cayley_table().tolist() == D4_TABLE
    assert Dihedral(4).inverse(torch.arange(8)).tolist() == [0, 3, 2, 1, 4, 5, 6, 7]


def test_tables_of_the_smaller_groups():
    assert CyclicRotation(4).cayley_table().tolist() == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]
    assert CyclicRotation(2).cayley_table().tolist() == [[0, 1], [1, 0]]
    assert Dihedral(2).cayley_table().tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert Dihedral(1).cayley_table().tolist() == [[0, 1], [1, 0]]


def test_the_rotations_of_dihedral_are_its_first_elements():
    x = torch.randn(2, 3, 5, 5)
    assert_exact(Dihedral(4).orbit(x)[:4], CyclicRotation(4).orbit(x))
    assert (Dihedral(4).rotations, Dihedral(4).order) == (4, 8)


def test_channels_do_not_move():
    x = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert_exact(Dihedral(4).orbit(x), x.expand(8, 1, 3, 4, 4))


@pytest.mark.parametrize("group", [CyclicRotation(4), Dihedral(4)], ids=repr)
def test_maps_turn_with_the_images(group):
    m = torch.randn(2, 1, 4, 4)
    for g in group.elements():
        assert_exact(group.act_on_map(g, m), group.act(g, m))
    assert_exact(group.act_on_map(torch.tensor([1, 2]), m), group.act(torch.tensor([1, 2]), m))
    assert not torch.equal(group.act_on_map(torch.tensor(1), m), m)


def test_a_map_without_image_axes_stays():
    m = torch.randn(2, 3, 1, 1)
    assert_exact(CyclicRotation(4).act_on_map(torch.tensor(1), m), m)


def test_a_map_without_one_image_axis_is_refused_by_quarter_turns():
    with pytest.raises(ValueError, match=r"turns square images: got images of shape \(1, 4\)"):
        CyclicRotation(4).act_on_map(torch.tensor(1), torch.randn(2, 3, 1, 4))


@pytest.mark.parametrize("group", [CyclicRotation(4), Dihedral(4)], ids=repr)
def test_quarter_turns_refuse_images_that_are_not_square(group):
    x = torch.zeros(2, 1, 28, 36)
    expected = rf"{re.escape(repr(group))} turns square images: got images of shape \(28, 36\)\. Pad or crop them"
    for refused in (
        lambda: group.act(torch.tensor(1), x),
        lambda: group.act(torch.tensor(2), x),  # a half turn would be possible: the group as a whole is not
        lambda: group.act(torch.tensor([0, 1]), x),
        lambda: group.orbit(x),
        lambda: group.act_on_map(torch.tensor(1), x),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


@pytest.mark.parametrize("family", [CyclicRotation, Dihedral])
@pytest.mark.parametrize("order", [0, -1, 1.5])
def test_other_orders_are_refused(family, order):
    expected = rf"{family.__name__} takes an order of 1 or more: got {order}\."
    with pytest.raises(ValueError, match=expected):
        family(order)


@pytest.mark.parametrize("group", [CyclicRotation(2), CyclicRotation(4), Dihedral(1)], ids=repr)
@pytest.mark.parametrize("shape", [(3,), (4, 4)])
def test_inputs_without_two_image_axes_are_refused(group, shape):
    """Of ``(N, W)`` the batch axis would turn too."""
    x = torch.zeros(shape)
    expected = (
        rf"{re.escape(repr(group))} moves entries along axes \(-2, -1\), which must exist and not be the batch axis 0: "
        rf"got inputs of shape {re.escape(str(shape))}\."
    )
    for refused in (
        lambda: group.act(torch.tensor(1), x),
        lambda: group.act(torch.zeros(len(x), dtype=torch.int64), x),
        lambda: group.orbit(x),
        lambda: group.act_on_map(torch.tensor(1), x),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


def test_values_and_names():
    assert CyclicRotation() == CyclicRotation(4) == CyclicRotation(order=4)
    assert Dihedral() == Dihedral(4)
    assert CyclicRotation(4) != CyclicRotation(2)
    assert CyclicRotation(2) != Dihedral(1)
    assert repr(CyclicRotation(4)) == "CyclicRotation(order=4)"
    assert repr(Dihedral(4)) == "Dihedral(order=4)"
    assert len({CyclicRotation(4), CyclicRotation(4), Dihedral(4)}) == 2
    with pytest.raises(AttributeError):
        CyclicRotation(4).order = 2
    with pytest.raises(AttributeError):
        Dihedral(4).order = 2
