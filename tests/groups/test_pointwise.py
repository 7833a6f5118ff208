"""Does the sign change, and nothing move?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invreg.groups import Flip, SignFlip, Trivial
from tests.tolerances import assert_exact

SIGNED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.complex64)


@pytest.mark.parametrize("dtype", SIGNED)
def test_sign_by_entries(dtype):
    x = torch.tensor([[1, -2, 0], [3, 4, -5]], dtype=dtype)
    negated = torch.tensor([[-1, 2, 0], [-3, -4, 5]], dtype=dtype)
    assert_exact(SignFlip().act(torch.tensor(0), x), x)
    assert_exact(SignFlip().act(torch.tensor(1), x), negated)
    assert_exact(SignFlip().act(torch.tensor([0, 1]), x), torch.stack([x[0], negated[1]]))
    assert_exact(SignFlip().orbit(x), torch.stack([x, negated]))


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=6))
def test_both_ways_to_negate_agree_bit_for_bit(entries):
    """A product with signs, as for one element per sample, and a minus; infinities and zeros with a sign included."""
    x = torch.tensor([[entry] for entry in (*entries, 0.0, -0.0, float("inf"), float("-inf"))], dtype=torch.float32)
    for index in range(2):
        each = SignFlip().act(torch.full((len(x),), index), x)
        assert_exact(each.view(torch.int32), SignFlip().act(torch.tensor(index), x).view(torch.int32))
        assert_exact(each.view(torch.int32) < 0, (x.view(torch.int32) < 0) != bool(index))


def test_nan_stays_nan():
    x = torch.tensor([[float("nan"), 1.0]])
    for g in (torch.tensor(1), torch.tensor([1])):
        y = SignFlip().act(g, x)
        assert y.isnan().tolist() == [[True, False]]
        assert float(y[0, 1]) == -1


@pytest.mark.parametrize("g", [torch.tensor(1), torch.tensor([0, 1])], ids=["one element", "one per sample"])
def test_sign_leaves_maps(g):
    m = torch.randn(2, 1, 3, 3)
    assert_exact(SignFlip().act_on_map(g, m), m)
    assert_exact(SignFlip().act_on_map(g, m.byte()), m.byte())  # a map need not hold a sign


def test_product_with_a_sign_moves_maps_but_does_not_negate_them():
    m = torch.randn(2, 3)
    group = Flip() * SignFlip()
    assert_exact(group.act(torch.tensor(3), m), -m.flip(-1))
    assert_exact(group.act_on_map(torch.tensor(3), m), m.flip(-1))
    assert_exact(group.act_on_map(torch.tensor(1), m), m)
    assert_exact(group.act_on_map(torch.tensor([1, 3]), m), torch.stack([m[0], m[1].flip(-1)]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_dtypes_without_a_sign_are_refused(dtype):
    x = torch.ones(2, 3, dtype=dtype)
    expected = rf"SignFlip\(\) negates values, which a signed dtype must hold: got {dtype}\. Use x\.float\(\)\."
    for refused in (
        lambda: SignFlip().act(torch.tensor(1), x),
        lambda: SignFlip().act(torch.tensor(0), x),
        lambda: SignFlip().act(torch.tensor([0, 1]), x),
        lambda: SignFlip().orbit(x),
        lambda: (Flip() * SignFlip()).act(torch.tensor(3), x),
    ):
        with pytest.raises(ValueError, match=expected):
            refused()


@pytest.mark.parametrize("group", [Trivial(), SignFlip()], ids=repr)
def test_results_are_copies(group):
    """Writing into a result does not reach the input."""
    for g in (torch.tensor(0), torch.zeros(2, dtype=torch.int64)):
        x = torch.ones(2, 3)
        group.act(g, x).zero_()
        assert_exact(x, torch.ones(2, 3))


def test_trivial_does_nothing_to_any_dtype():
    for dtype in (*SIGNED, torch.uint8, torch.bool):
        x = torch.ones(2, 3, dtype=dtype)
        assert_exact(Trivial().act(torch.tensor(0), x), x)
        assert_exact(Trivial().act(torch.tensor([0, 0]), x), x)
    assert Trivial().orbit(torch.ones(2, 3), identity=False).shape == (0, 2, 3)


def test_values_and_names():
    assert SignFlip() == SignFlip()
    assert SignFlip() != Trivial()
    assert (repr(SignFlip()), repr(Trivial())) == ("SignFlip()", "Trivial()")
    assert SignFlip().cayley_table().tolist() == [[0, 1], [1, 0]]
    assert Trivial().cayley_table().tolist() == [[0]]
