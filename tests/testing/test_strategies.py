"""Do the strategies reach each corner, and shrink to something small?"""

import math

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from invreg import (
    CyclicRotation,
    DirectProduct,
    FiniteGroup,
    PlanarRotation,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
    Trivial,
)
from invreg.groups import Conjugated, Restricted, SemidirectProduct
from invreg.testing import (
    LawError,
    check_group,
    element_pairs,
    element_stacks,
    elements,
    finite_groups,
    image_shapes,
    inputs,
    smooth_inputs,
)
from tests.groups.catalogue import S3

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def anything(_):
    return True


def reached(strategy, corner):
    """An example that lies in the corner; raises NoSuchExample where none of a few hundred does."""
    return find(strategy, corner, settings=settings(max_examples=500, database=None, derandomize=True))


# ---------------------------------------------------------------------------------------------------------- elements


@pytest.mark.parametrize("index", range(S3.order))
def test_each_element_of_a_finite_group_is_drawn(index):
    drawn = reached(elements(S3), lambda g: int(g) == index)
    assert (drawn.shape, drawn.dtype) == ((), torch.int64)


@pytest.mark.parametrize("group", [S3, SymmetricGroup(4), SpatialRotation()], ids=repr)
def test_elements_shrink_to_the_identity(group):
    assert torch.equal(reached(elements(group), anything), group.identity)
    g, h = reached(element_pairs(group), anything)
    assert torch.equal(g, group.identity)
    assert torch.equal(h, group.identity)
    assert torch.equal(reached(element_stacks(group, 3), anything), group.identity.expand(3, *group.element_shape))


@pytest.mark.parametrize("lender", [SymmetricGroup(4), SpatialRotation()], ids=repr)
def test_elements_of_other_groups_are_those_that_sample_draws(lender):
    group = Conjugated(lender, torch.neg, torch.neg)
    g = reached(elements(group), lambda g: not torch.equal(g, group.identity))
    assert (g.shape, g.dtype) == (group.element_shape, group.element_dtype)
    assert any(torch.equal(g, group.sample(1, torch.Generator().manual_seed(seed))[0]) for seed in range(20))


def test_a_stack_of_elements_holds_different_ones():
    assert reached(element_stacks(S3, 4), lambda g: len(g.unique()) == 4).tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------------------ inputs


CORNERS = {
    "zeros": lambda x: not x.any(),
    "one entry": lambda x: x.count_nonzero() == 1,
    "ties": lambda x: x.all() and len(x.unique()) < 3,
    "all different": lambda x: len(x.abs().unique()) == x.numel(),
    "huge": lambda x: x.abs().max() == torch.finfo(x.dtype).max,
    "tiny": lambda x: x.any() and x.abs().max() < 100 * torch.finfo(x.dtype).smallest_normal,
    "subnormal": lambda x: ((x != 0) & (x.abs() < torch.finfo(x.dtype).smallest_normal)).any(),
    "negative zero": lambda x: (x == 0).any() and (torch.copysign(torch.ones_like(x), x)[x == 0] < 0).any(),
    "fractions": lambda x: (x != x.round()).all() and x.abs().max() < 10,
}


@each_dtype
@pytest.mark.parametrize("corner", CORNERS)
def test_inputs_reach_the_corner(corner, dtype):
    x = reached(inputs((2, 3), dtype=dtype), CORNERS[corner])
    assert (x.shape, x.dtype) == ((2, 3), dtype)


def test_inputs_shrink_to_zeros_and_to_a_single_one():
    assert torch.equal(reached(inputs((2, 3, 3)), anything), torch.zeros(2, 3, 3, dtype=torch.float64))
    assert reached(inputs((1, 3)), torch.any).tolist() == [[1, 0, 0]]


SINGLE = {
    "negative": (lambda x: (x < 0).any(), -1.0),
    "large": (lambda x: (x > 1e4).any(), 2.0**24),
    "not whole": (lambda x: (x != x.round()).any(), 0.5),
}


@each_dtype
@pytest.mark.parametrize("kind", SINGLE)
def test_inputs_shrink_to_a_single_entry_of_another_value(kind, dtype):
    holds, value = SINGLE[kind]
    value = min(value, torch.finfo(dtype).max)
    assert reached(inputs((2, 3), dtype=dtype), holds).tolist() == [[value, 0, 0], [0, 0, 0]]


@given(st.data(), st.sampled_from(FLOATS))
@settings(max_examples=60)
def test_inputs_are_finite_and_of_their_dtype(data, dtype):
    x = data.draw(inputs(image_shapes(max_side=4), dtype=dtype))
    assert x.dtype == dtype
    assert x.isfinite().all()


def test_inputs_of_given_entries():
    x = reached(inputs((1, 4), dtype=torch.float32, elements=st.sampled_from([3.0, 5.0])), lambda x: (x == 5).all())
    assert x.tolist() == [[5.0] * 4]
    assert reached(inputs((1, 4), elements=st.just(3.0)), anything).tolist() == [[3.0] * 4]


def test_inputs_of_a_strategy_of_shapes():
    assert reached(inputs(st.sampled_from([(1, 2), (3, 4)])), lambda x: len(x) == 3).shape == (3, 4)
    assert reached(inputs((0, 3)), anything).shape == (0, 3)


SHAPE_CORNERS = {
    "one sample": lambda n, c, h, w: n == 1 and c * h * w > 1,
    "one channel": lambda n, c, h, w: c == 1 and h * w > 1,
    "one pixel": lambda n, c, h, w: h == w == 1 and n * c > 1,
    "even sides": lambda n, c, h, w: h % 2 == w % 2 == 0,
    "odd sides": lambda n, c, h, w: h % 2 == w % 2 == 1 and h > 1,
    "largest": lambda n, c, h, w: n == 4 and h == w == 8,
}


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("corner", SHAPE_CORNERS)
def test_image_shapes_reach_the_corner(corner, square):
    shape = reached(image_shapes(square=square), lambda shape: SHAPE_CORNERS[corner](*shape))
    assert not square or shape[2] == shape[3]


def test_image_shapes_shrink_to_one_pixel():
    assert reached(image_shapes(), anything) == (1, 1, 1, 1)


def test_smooth_inputs_vanish_at_the_borders_and_fill_short_axes():
    x = reached(smooth_inputs((2, 3, 32, 32), dtype=torch.float32), lambda x: (x.flatten(2).norm(dim=2) > 0).all())
    assert (x.shape, x.dtype) == ((2, 3, 32, 32), torch.float32)
    borders = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], dim=-1)
    assert borders.abs().max() < 1e-3 * x.abs().max()
    assert (x[..., 1:] - x[..., :-1]).abs().max() < 0.4 * x.abs().max()
    assert not reached(smooth_inputs((1, 9)), anything).any()


# ------------------------------------------------------------------------------------------------------------ groups


KINDS = {
    "trivial": lambda group: isinstance(group, Trivial),
    "not abelian": lambda group: not torch.equal(group.cayley_table(), group.cayley_table().T),
    "product": lambda group: isinstance(group, DirectProduct) and group.order > group.first.order > 1,
    "semidirect product": lambda group: isinstance(group, SemidirectProduct) and group.order > group.first.order > 1,
    "part": lambda group: isinstance(group, Restricted) and 1 < group.order < group.group.order,
    "conjugated": lambda group: isinstance(group, Conjugated) and group.order > 2,
    "permutations": lambda group: repr(group).startswith("FiniteGroup.from_permutations"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_group_is_drawn(kind):
    assert isinstance(reached(finite_groups((2, 4, 4)), KINDS[kind]), FiniteGroup)


@given(st.data(), st.sampled_from([(4,), (3, 4), (2, 3, 3), (1, 1, 1)]))
@settings(max_examples=40)
def test_finite_groups_act_on_what_they_are_drawn_for(data, shape):
    group = data.draw(finite_groups(shape))
    x = torch.arange(2.0 * torch.Size(shape).numel()).view(2, *shape)
    assert group.order <= 64
    assert torch.equal(group.act(group.identity, x), x)
    assert group.orbit(x).shape == (group.order, 2, *shape)


def test_finite_groups_shrink_to_the_trivial_one():
    assert reached(finite_groups(), anything) == Trivial()
    assert reached(finite_groups(), lambda group: group.order > 1) == SignFlip()


# --------------------------------------------------------------------------------------------------- what is refused


REFUSED = {
    "elements of no group": (
        lambda: elements("C4"),
        TypeError,
        r"draws from a Group, e\.g\. CyclicRotation\(4\): got s",
    ),
    "elements of a class": (lambda: elements(CyclicRotation), TypeError, r"from a Group.*got the class CyclicRotation"),
    "pairs of no group": (lambda: element_pairs(4), TypeError, r"draws from a Group.*got int"),
    "half a sample": (lambda: element_stacks(S3, 0.5), TypeError, r"n, the number of samples, must be a whole number"),
    "no samples": (lambda: element_stacks(S3, 0), ValueError, r"number of samples, must be at least 1: got 0"),
    "no side": (lambda: image_shapes(max_side=0), ValueError, r"max_side must be a whole number of at least 1: got 0"),
    "no batch axis": (lambda: inputs(()), ValueError, r"A shape has at least one axis and no negative sizes: got \(\)"),
    "negative size": (lambda: inputs((2, -1)), ValueError, r"no negative sizes: got \(2, -1\)"),
    "no shape": (
        lambda: inputs("23"),
        TypeError,
        r"A shape is a tuple of whole numbers, e\.g\. \(2, 3, 8, 8\): got '23",
    ),
    "a number": (lambda: inputs(3), TypeError, r"A shape is a tuple of whole numbers.*got 3"),
    "whole numbers": (
        lambda: inputs((2, 3), dtype=torch.int64),
        TypeError,
        r"inputs draws floating-point batches, .*: got torch\.int64\. Convert them .* x\.long\(\)",
    ),
    "entries of no strategy": (
        lambda: inputs((2, 3), elements=[0.0, 1.0]),
        TypeError,
        r"elements must be a strategy, e\.g\. hypothesis\.strategies\.floats\(0, 1\): got list",
    ),
    "smooth whole numbers": (lambda: smooth_inputs((2, 9), dtype=torch.int64), TypeError, r"got torch\.int64"),
    "samples without entries": (lambda: finite_groups((2, 0)), ValueError, r"needs samples with entries.*\(2, 0\)"),
    "groups for no shape": (lambda: finite_groups(4), TypeError, r"A shape is a tuple of whole numbers.*got 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_of_the_wrong_kind_are_refused_at_once(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_shapes_that_a_strategy_draws_are_checked_too():
    with pytest.raises(ValueError, match=r"no negative sizes: got \(2, -1\)"):
        reached(inputs(st.just((2, -1))), anything)


class TestElementsOfInfiniteGroups:
    """Their elements shrink to simple ones, too."""

    def test_permutations_shrink_to_a_swap(self):
        group = SymmetricGroup(6)
        moved = find(elements(group), lambda g: bool((g != group.identity).any()))
        assert int((moved != group.identity).sum()) == 2
        assert find(elements(group), lambda g: True).tolist() == group.identity.tolist()

    def test_angles_shrink_to_a_quarter_turn(self):
        assert find(elements(PlanarRotation()), lambda g: abs(float(g)) > 0.1).tolist() == [math.pi / 2]
        assert find(elements(PlanarRotation()), lambda g: True).tolist() == [0.0]

    def test_turns_in_space_shrink_to_a_quarter_turn(self):
        moved = find(elements(SpatialRotation()), lambda g: bool((g != torch.eye(3)).any()))
        assert moved.tolist() == [[0, -1, 0], [1, 0, 0], [0, 0, 1]]

    def test_pairs_shrink_part_by_part(self):
        group = SymmetricGroup(4, dim=1) * SpatialRotation()
        moved = find(elements(group), lambda g: bool((g[:4] != torch.arange(4)).any()))
        assert moved[4:].tolist() == torch.eye(3).flatten().tolist()
        assert int((moved[:4] != torch.arange(4)).sum()) == 2

    def test_ends_of_a_range_are_drawn(self):
        assert find(elements(Scaling(2.0)), lambda g: float(g) >= 2).tolist() == [2.0]
        assert find(elements(Translation(3.0)), lambda g: float(g[0]) <= -3).tolist() == [-3.0, 3.0]


class TestDrawsOfGroupsWithoutIndices:
    class Even(SymmetricGroup):
        """Draws even permutations only."""

        def sample(self, n, rng=None):
            cycles = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
            device = None if rng is None else rng.device
            return cycles[torch.randint(3, (n,), generator=rng, device=device)]

    class Near(PlanarRotation):
        """Leaves out more than the identity."""

        def sample_non_identity(self, n, k, rng=None):
            return super().sample_non_identity(n, k, rng) / 10

    def test_a_part_of_all_permutations_is_noticed(self):
        with pytest.raises(LawError, match=r"sample drew 3 different elements in 2400 draws, where there are 6"):
            check_group(self.Even(3), torch.zeros(1, 3))

    def test_other_draws_without_the_identity_are_noticed(self):
        with pytest.raises(
            LawError, match="what sample and sample_non_identity draw, as they act on x, are distributed"
        ):
            check_group(self.Near(), torch.zeros(1, 24, 24), tolerance=0.3)
