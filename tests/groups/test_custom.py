"""Does a group come from callables, from permutations and from a subclass, and is what is no group refused?"""

import itertools
import math
import re
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invreg.groups import CyclicGroup, FiniteGroup, Group, SignFlip
from tests.groups.catalogue import (
    S3,
    half_turn,
    keep,
    left_right,
    mirror_about_mean,
    negate,
    quarter_turn,
    quarter_turn_back,
    up_down,
)
from tests.groups.test_laws import ACTION_LAWS, GROUP_LAWS
from tests.tolerances import assert_exact, assert_linear

# Of S3 as [1, 2, 0] and [1, 0, 2] generate it, found breadth first, and worked out by hand:
S3_PERMUTATIONS = [[0, 1, 2], [1, 2, 0], [1, 0, 2], [2, 0, 1], [2, 1, 0], [0, 2, 1]]
S3_TABLE = [
    [0, 1, 2, 3, 4, 5],
    [1, 3, 4, 0, 5, 2],
    [2, 5, 0, 4, 3, 1],
    [3, 0, 5, 1, 2, 4],
    [4, 2, 1, 5, 0, 3],
    [5, 4, 3, 2, 1, 0],
]


def moved(row: list[float], permutation: list[int]) -> list[float]:
    """The entry at position ``i`` goes to ``permutation[i]``."""
    result = [math.nan] * len(row)
    for position, entry in enumerate(row):
        result[permutation[position]] = entry
    return result


def closure(generators: list[list[int]]) -> set[tuple[int, ...]]:
    """All products, by multiplying until nothing new comes."""
    found = {tuple(range(len(generators[0])))}
    while True:
        products = {tuple(a[i] for i in b) for a in found for b in [*map(tuple, generators), *found]}
        if products <= found:
            return found
        found |= products


# -------------------------------------------------------------------------------------------------- from_permutations


class TestPermutations:
    def test_entries_move_to_where_the_generator_says(self):
        row = [10.0, 20.0, 30.0, 40.0]
        generator = [2, 0, 3, 1]
        group = FiniteGroup.from_permutations([generator])
        x = torch.tensor([row, row])
        expected = torch.tensor([[20.0, 40.0, 10.0, 30.0]] * 2)
        assert expected[0].tolist() == moved(row, generator)
        assert_exact(group.act(torch.tensor(1), x), expected)
        assert_exact(group.act(torch.tensor([1, 1]), x), expected)
        assert_exact(group.orbit(x)[1], expected)

    def test_s3_by_hand(self):
        row = [10.0, 20.0, 30.0]
        assert S3.order == 6
        assert S3.orbit(torch.tensor([row]))[:, 0].tolist() == [moved(row, p) for p in S3_PERMUTATIONS]
        assert S3.cayley_table().tolist() == S3_TABLE
        assert S3.inverse(torch.arange(6)).tolist() == [0, 3, 2, 1, 4, 5]

    @given(st.data())
    @settings(max_examples=40)
    def test_closure_of_random_generators(self, data):
        n = data.draw(st.integers(1, 4))
        generators = data.draw(st.lists(st.permutations(range(n)), min_size=1, max_size=3))
        group = FiniteGroup.from_permutations(generators)
        row = [float(i) for i in range(n)]
        rows = group.orbit(torch.tensor([row]))[:, 0].tolist()
        expected = [moved(row, p) for p in closure(generators)]
        assert sorted(rows) == sorted(expected)
        assert group.order == len(expected)
        new = [list(p) for p in dict.fromkeys(map(tuple, generators)) if list(p) != list(range(n))]
        assert rows[: 1 + len(new)] == [row, *(moved(row, p) for p in new)]  # the identity, then the generators
        g, h = (data.draw(st.integers(0, group.order - 1)) for _ in range(2))
        product = int(group.compose(torch.tensor(g), torch.tensor(h)))
        assert_exact(
            group.act(torch.tensor(product), torch.tensor([row])),
            group.act(torch.tensor(g), torch.tensor([rows[h]])),
        )

    @pytest.mark.parametrize(
        ("generators", "order"),
        [
            ([[0, 1, 2]], 1),
            ([[1, 0, 2], [0, 1, 2], [1, 0, 2]], 2),
            ([[1, 2, 3, 0], [3, 2, 1, 0]], 8),
            ([[1, 2, 0, 3], [1, 0, 3, 2]], 12),
            ([[1, 2, 3, 4, 0], [1, 0, 2, 3, 4]], 120),
            ([[1, 0, 2, 3, 4, 5], [0, 1, 3, 4, 2, 5]], 6),
        ],
        ids=["identity", "repeated", "square", "even of 4", "all of 5", "cyclic of 6"],
    )
    def test_known_orders(self, generators, order):
        assert FiniteGroup.from_permutations(generators).order == order

    def test_any_axis(self):
        x = torch.randn(2, 3, 4, 3)
        for dim, axis in ((1, 1), (-3, 1), (3, 3), (-1, 3)):
            group = FiniteGroup.from_permutations([[1, 2, 0]], dim=dim)
            assert_exact(group.act(torch.tensor(1), x), x.index_select(axis, torch.tensor([2, 0, 1])))

    def test_maps(self):
        group = FiniteGroup.from_permutations([[1, 2, 0]], dim=1)
        summed, whole = torch.randn(2, 1, 4), torch.randn(2, 3, 4)
        assert_exact(group.act_on_map(torch.tensor(1), summed), summed)
        assert_exact(group.act_on_map(torch.tensor(1), whole), group.act(torch.tensor(1), whole))

    def test_generators_may_be_tensors_and_ranges(self):
        generators = [torch.tensor([1, 2, 0]), range(3), (1, 0, 2)]
        assert FiniteGroup.from_permutations(generators) == FiniteGroup.from_permutations(
            [[1, 2, 0], [0, 1, 2], [1, 0, 2]]
        )

    def test_values_and_names(self):
        group = FiniteGroup.from_permutations([[1, 0]], dim=-2)
        assert repr(group) == "FiniteGroup.from_permutations([[1, 0]], dim=-2)"
        assert group == FiniteGroup.from_permutations([[1, 0]], dim=-2, max_order=2)
        assert group != FiniteGroup.from_permutations([[1, 0]])
        long = FiniteGroup.from_permutations([[*range(1, 20), 0]])
        assert repr(long) == "FiniteGroup.from_permutations(1 of size 20, dim=-1)"

    def test_table_is_a_copy(self):
        S3.cayley_table().zero_()
        assert S3.cayley_table().tolist() == S3_TABLE


class TestPermutationsRefused:
    @pytest.mark.parametrize(
        ("generators", "index", "entries"),
        [
            ([[0, 0, 1]], 0, 3),
            ([[1, 2, 3]], 0, 3),
            ([[0, -1]], 0, 2),
            ([[1, 0, 2], [0, 1, 1]], 1, 3),
            ([[1, 0, 2], [1, 0]], 1, 2),
            ([[1, 0], [1, 0, 2]], 1, 3),
        ],
        ids=["twice", "from one", "negative", "second", "shorter", "longer"],
    )
    def test_no_permutations(self, generators, index, entries):
        expected = (
            rf"Each generator must hold 0 to {len(generators[0]) - 1}, each once, as the first one's length says: "
            rf"generator {index} has {entries} entries and does not\."
        )
        with pytest.raises(ValueError, match=expected):
            FiniteGroup.from_permutations(generators)

    def test_none(self):
        with pytest.raises(ValueError, match=r"needs at least one generator: got none\."):
            FiniteGroup.from_permutations([])

    @pytest.mark.parametrize("generators", [[1, 2, 0], [[1.9, 0.2]]], ids=["no list of lists", "fractions"])
    def test_no_lists_of_positions(self, generators):
        with pytest.raises((TypeError, ValueError), match=r"(?i)generator"):
            FiniteGroup.from_permutations(generators)

    def test_batch_axis(self):
        with pytest.raises(ValueError, match=r"moves entries within a sample: got dim 0, the batch axis\."):
            FiniteGroup.from_permutations([[1, 0]], dim=0)

    def test_batch_axis_from_the_end(self):
        group = FiniteGroup.from_permutations([[1, 0]], dim=-2)
        expected = (
            r"moves entries along axes \(-2,\), which must exist and not be the batch axis 0: got inputs of shape"
        )
        with pytest.raises(ValueError, match=expected):
            group.act(torch.tensor(1), torch.zeros(2, 3))

    @pytest.mark.parametrize("g", [torch.tensor(1), torch.tensor([0, 1])], ids=["one element", "one per sample"])
    def test_axis_of_another_size(self, g):
        group = FiniteGroup.from_permutations([[1, 0]], dim=1)
        expected = rf"{re.escape(repr(group))} permutes 2 positions along axis 1: got size 3\."
        with pytest.raises(ValueError, match=expected):
            group.act(g, torch.zeros(2, 3, 4))

    def test_more_elements_than_max_order(self):
        generators = [[1, 2, 3, 0], [1, 0, 2, 3]]
        assert FiniteGroup.from_permutations(generators, max_order=24).order == 24
        for limit in (23, 2, 1):
            expected = rf"The 2 generators make a group of more than max_order={limit} elements\. Raise max_order"
            with pytest.raises(ValueError, match=expected):
                FiniteGroup.from_permutations(generators, max_order=limit)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_max_order_below_one(self, limit):
        """Would be no limit at all."""
        with pytest.raises(ValueError, match="max_order"):
            FiniteGroup.from_permutations([[1, 0]], max_order=limit)

    def test_default_limit(self):
        """All permutations of seven, 5040, are more than the 1000 that are meant by default."""
        with pytest.raises(ValueError, match="max_order=1000"):
            FiniteGroup.from_permutations([[1, 2, 3, 4, 5, 6, 0], [1, 0, 2, 3, 4, 5, 6]])


# ------------------------------------------------------------------------------------------------------- from_actions


def colours(order: list[int], x: torch.Tensor) -> torch.Tensor:
    return x[:, order]


class TestActions:
    def test_element_acts_as_its_callable(self):
        actions = [keep, half_turn, quarter_turn, quarter_turn_back]
        group = FiniteGroup.from_actions(actions)
        x = torch.randn(4, 2, 3, 3)
        for index, action in enumerate(actions):
            assert_exact(group.act(torch.tensor(index), x), action(x))
            assert_exact(group.orbit(x)[index], action(x))
        expected = torch.stack([action(x)[index] for index, action in enumerate(actions)])
        assert_exact(group.act(torch.arange(4), x), expected)

    def test_table_is_found(self):
        """Rows and columns follow the order of the list: here half a turn comes before a quarter."""
        group = FiniteGroup.from_actions([keep, half_turn, quarter_turn, quarter_turn_back])
        assert group.cayley_table().tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0], [3, 2, 0, 1]]
        assert group.inverse(torch.arange(4)).tolist() == [0, 1, 3, 2]

    def test_table_of_a_group_that_is_not_abelian(self):
        """Row g, column h is h first and g second. Indexing moves the entry at ``p[i]`` to ``i``: the inverse."""
        inverses = [[p.index(i) for i in range(3)] for p in S3_PERMUTATIONS]
        group = FiniteGroup.from_actions([partial(colours, inverse) for inverse in inverses])
        assert group.cayley_table().tolist() == S3_TABLE

    @pytest.mark.parametrize(
        ("action", "shape"),
        [
            (lambda x: x.flip(1), None),
            (lambda x: x[:, [1, 0]], (2,)),
            (lambda x: x.view(len(x), 5, 2).flip(2).view(x.shape), (10,)),
            (lambda x: x.unflatten(1, (28, 28)).flip(1).flatten(1), (784,)),
            (lambda x: torch.cat([x[:, :1, :, :], x[:, 1:, :, :].flip(1)], 1), None),
            (lambda x: x[:, [2, 1, 0]].unflatten(3, (4, -1)).flip(3).flatten(3), None),
            (lambda x: torch.einsum("nij -> nji", x), None),
            (lambda x: x.squeeze(-1).squeeze(-1).flip(1)[..., None, None], None),
        ],
        ids=[
            "any",
            "two channels",
            "ten features",
            "flat images",
            "channels of images",
            "three channels and a width that four divides",
            "two axes",
            "images of one pixel",
        ],
    )
    def test_shapes_on_which_it_is_tried(self, action, shape):
        group = FiniteGroup.from_actions([keep, action], input_shape=shape)
        assert group.cayley_table().tolist() == [[0, 1], [1, 0]]
        assert group.exact

    def test_exact_where_entries_move_or_change_sign(self):
        assert FiniteGroup.from_actions([keep, negate]).exact
        assert FiniteGroup.from_actions([keep, left_right]).exact
        assert not FiniteGroup.from_actions([keep, mirror_about_mean]).exact
        assert not FiniteGroup.from_actions([keep, mirror_about_mean], input_shape=(5,)).exact

    def test_actions_that_agree_on_evenly_spaced_entries_are_told_apart(self):
        """Mirrored about their mean, the entries 1, 2, 3 become 3, 2, 1; so they do when they are flipped."""
        group = FiniteGroup.from_actions(
            [keep, left_right, mirror_about_mean, lambda x: left_right(mirror_about_mean(x))]
        )
        assert group.cayley_table().tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]

    def test_rounding_actions_act_up_to_rounding(self):
        group = FiniteGroup.from_actions([keep, mirror_about_mean])
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(3, 7).to(dtype)
            assert_linear(group.act(torch.tensor(1), group.act(torch.tensor(1), x)), x)

    def test_values_and_names(self):
        group = FiniteGroup.from_actions([keep, left_right])
        assert repr(group) == "FiniteGroup.from_actions([keep, left_right])"
        assert group == FiniteGroup.from_actions((keep, left_right))
        assert group != FiniteGroup.from_actions([keep, up_down])
        assert "functools.partial" in repr(FiniteGroup.from_actions([partial(colours, [0, 1])], input_shape=(2,)))

    def test_making_it_draws_no_random_numbers(self):
        before = torch.get_rng_state()
        FiniteGroup.from_actions([keep, left_right])
        assert_exact(torch.get_rng_state(), before)


def writes(x: torch.Tensor) -> torch.Tensor:
    return x.neg_()


def narrows(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1).float()


def crops(x: torch.Tensor) -> torch.Tensor:
    return x[..., 1:]


def fails(x: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such table")


SHAPES = pytest.mark.parametrize("shape", [None, (4,)], ids=["any shape", "a given shape"])


@SHAPES
class TestActionsRefused:
    """With a shape that is given, and with those that are tried without one, the error says what is wrong."""

    def refuse(self, actions, shape, expected):
        with pytest.raises(ValueError, match=rf"FiniteGroup\.from_actions\(\[.*\]\).*{expected}"):
            FiniteGroup.from_actions(actions, input_shape=shape)

    def test_identity_not_first(self, shape):
        self.refuse([left_right, keep], shape, r"the first action must be the identity: write lambda x: x there\.")

    def test_no_identity(self, shape):
        self.refuse([left_right, negate], shape, r"the first action must be the identity")

    def test_not_closed(self, shape):
        product = r"is not closed: action 1 after action 2 is none of the 3 actions\. List every product"
        self.refuse([keep, left_right, negate], shape, product)

    def test_square_not_in_the_list(self, shape):
        self.refuse([keep, lambda x: x.roll(1, -1)], shape, r"is not closed: action 1 after action 1 is none of the 2")

    def test_twice_the_same(self, shape):
        twice = r"each element must be listed once, but actions 1 and 2 do the same\."
        self.refuse([keep, left_right, lambda x: x.flip((-1,))], shape, twice)

    def test_no_inverse(self, shape):
        self.refuse([keep, lambda x: 0 * x], shape, r"no action in the list undoes action 1\.")
        self.refuse([keep, lambda x: x.mean(-1, keepdim=True).expand(x.shape)], shape, "no action .* undoes action 1")

    def test_changes_shape(self, shape):
        self.refuse([keep, crops], shape, r"action 1 must keep shape, dtype and device, .*: it returned \(1, ")

    def test_changes_dtype(self, shape):
        kept = (
            r"action 1 must keep shape, dtype and device, .*torch\.float64 on cpu: it returned .*torch\.float32 on cpu"
        )
        self.refuse([keep, narrows], shape, kept)

    def test_returns_no_tensor(self, shape):
        self.refuse([keep, lambda x: None], shape, r"action 1 must keep shape, dtype and device, .*: it returned None")

    def test_writes_into_its_input(self, shape):
        self.refuse([keep, writes], shape, r"writes into its input, which it must leave as it is")

    def test_moves_samples_along_the_batch_axis(self, shape):
        """With one sample alone it cannot be seen: on a batch the table would not be that of a group."""
        self.refuse([keep, lambda x: x.flip((0, -1))], shape, r"batch(?! axis, as input_shape)")

    def test_none(self, shape):
        with pytest.raises(ValueError, match=r"(?i)at least one|got none|no actions"):
            FiniteGroup.from_actions([], input_shape=shape)


def test_action_that_raises_on_the_given_shape():
    with pytest.raises(RuntimeError, match=r"action 1 failed on inputs of shape \(1, 4\): 'no such table'") as caught:
        FiniteGroup.from_actions([keep, fails], input_shape=(4,))
    assert isinstance(caught.value.__cause__, KeyError)


def test_action_that_raises_on_every_shape_asks_for_one():
    expected = (
        r"no sample was found that all actions take\. Give the shape of one, without the batch axis, as input_shape"
    )
    with pytest.raises(ValueError, match=expected) as caught:
        FiniteGroup.from_actions([keep, fails])
    chain = [caught.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert isinstance(chain[-1], KeyError)


def test_shape_that_only_the_user_knows():
    def pairs(x):
        return x.view(len(x), 5, 2).flip(2).view(x.shape)

    with pytest.raises(ValueError, match="as input_shape"):
        FiniteGroup.from_actions([keep, pairs])
    group = FiniteGroup.from_actions([keep, pairs], input_shape=(10,))
    assert group.cayley_table().tolist() == [[0, 1], [1, 0]]


class TestActionsRefusedLater:
    """What could not be seen when the group was made is found when it acts, here on three entries."""

    one_and_each = pytest.mark.parametrize("g", [torch.tensor(1), torch.tensor([0, 1])], ids=["one", "one per sample"])

    def group(self, on_three):
        return FiniteGroup.from_actions([keep, lambda x: on_three(x) if x.shape[-1] == 3 else x.flip(-1)])

    @one_and_each
    def test_raises(self, g):
        with pytest.raises(
            RuntimeError, match=r"action 1 failed on inputs of shape \(\d, 3\): 'no such table'"
        ) as caught:
            self.group(fails).act(g, torch.zeros(2, 3))
        assert isinstance(caught.value.__cause__, KeyError)

    @one_and_each
    def test_changes_shape(self, g):
        expected = (
            r"action 1 must keep shape, .*, \(\d, 3\), torch\.float32 on cpu: it returned \(\d, 2\), torch\.float32"
        )
        with pytest.raises(ValueError, match=expected):
            self.group(crops).act(g, torch.zeros(2, 3))

    @one_and_each
    def test_changes_dtype(self, g):
        expected = (
            r"action 1 must keep shape, .*, \(\d, 3\), torch\.float64 on cpu: it returned \(\d, 3\), torch\.float32"
        )
        with pytest.raises(ValueError, match=expected):
            self.group(narrows).act(g, torch.zeros(2, 3, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------- subclasses


@dataclass(frozen=True)
class ByTransform(FiniteGroup):
    """The shifts of three entries, by ``transform`` alone."""

    order = 3
    exact = True

    def compose(self, g, h):
        self._check_elements(g, h)
        return (g + h) % 3

    def inverse(self, g):
        self._check_elements(g)
        return -g % 3

    def transform(self, index, x):
        return x.roll(index, -1)


@dataclass(frozen=True)
class ByAct(FiniteGroup):
    """The same group, by an ``act`` of its own."""

    order = 3
    exact = True

    def compose(self, g, h):
        self._check_elements(g, h)
        return (g + h) % 3

    def inverse(self, g):
        self._check_elements(g)
        return -g % 3

    def act(self, g, x):
        self._check_action(g, x)
        shifts = (torch.arange(3, device=x.device) - g.to(x.device).reshape(-1, 1)).expand(len(x), 3) % 3
        return x.gather(-1, shifts.view(len(x), *[1] * (x.ndim - 2), 3).expand(x.shape))


@dataclass(frozen=True)
class ByNothing(FiniteGroup):
    """It composes, but does not act."""

    order = 2
    exact = True

    def compose(self, g, h):
        return (g + h) % 2

    def inverse(self, g):
        return g


class TestSubclasses:
    @pytest.mark.parametrize("group", [ByTransform(), ByAct()], ids=repr)
    def test_all_laws_hold(self, group):
        for law in GROUP_LAWS:
            law(group)
        for law in ACTION_LAWS:
            law(group, (2, 3))

    @pytest.mark.parametrize("group", [ByTransform(), ByAct()], ids=repr)
    def test_acts_by_positions(self, group):
        rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [10.0, 11.0, 12.0]]
        expected = [[2.0, 3.0, 1.0], [6.0, 4.0, 5.0], [7.0, 8.0, 9.0], [11.0, 12.0, 10.0]]
        assert_exact(group.act(torch.tensor([2, 1, 0, 2]), torch.tensor(rows)), torch.tensor(expected))
        assert_exact(group.orbit(torch.tensor(rows))[1][1], torch.tensor(expected[1]))
        assert_exact(group.transform(1, torch.tensor(rows))[1], torch.tensor(expected[1]))
        assert_exact(group.transform_each(torch.tensor([2, 1, 0, 2]), torch.tensor(rows)), torch.tensor(expected))

    @pytest.mark.parametrize("group", [ByTransform(), ByAct()], ids=repr)
    def test_works_in_a_product(self, group):
        x = torch.randn(6, 2, 3)
        product = group * SignFlip()
        assert_exact(product.act(torch.tensor(3), x), -x.roll(1, -1))
        assert_exact(product.act(product.elements(), x), product.orbit(x)[product.elements(), product.elements()])

    def test_transform_is_called_once_for_each_element_that_occurs(self, monkeypatch):
        calls = []

        def transform(self, index, x):
            calls.append((index, len(x)))
            return x.roll(index, -1)

        monkeypatch.setattr(ByTransform, "transform", transform)
        ByTransform().act(torch.tensor([2, 0, 2, 2, 0]), torch.randn(5, 3))
        assert sorted(calls) == [(0, 2), (2, 3)]

    def test_empty_batch(self):
        empty = torch.zeros(0, dtype=torch.int64)
        assert ByTransform().act(empty, torch.zeros(0, 2, 3)).shape == (0, 2, 3)
        assert ByTransform().orbit(torch.zeros(0, 2, 3)).shape == (3, 0, 2, 3)

    @pytest.mark.parametrize("g", [torch.tensor(1), torch.tensor([0, 1])], ids=["one element", "one per sample"])
    def test_subclass_that_does_not_act_says_what_to_define(self, g):
        expected = r"ByNothing must define how it acts: transform\(index, x\) or act\(g, x\)\."
        with pytest.raises(TypeError, match=expected):
            ByNothing().act(g, torch.zeros(2, 3))
        with pytest.raises(TypeError, match=expected):
            ByNothing().orbit(torch.zeros(2, 3))
        with pytest.raises(TypeError, match=expected):
            ByNothing().transform(1, torch.zeros(2, 3))

    def test_subclass_that_does_not_compose_cannot_be_made(self):
        class Incomplete(FiniteGroup):
            order = 2
            exact = True

            def transform(self, index, x):
                return x

        with pytest.raises(TypeError, match="abstract"):
            Incomplete()


@dataclass(frozen=True)
class PointRotation(Group):
    """All rotations of points ``(N, 2)`` by an angle: a group whose elements are no indices."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self):
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g, h):
        self._check_elements(g, h)
        return g + h

    def inverse(self, g):
        self._check_elements(g)
        return -g

    def sample(self, n, rng=None):
        return 2 * math.pi * torch.rand(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        self._check_action(g, x)
        cos, sin = g.cos(), g.sin()
        return torch.cat([cos * x[:, :1] - sin * x[:, 1:], sin * x[:, :1] + cos * x[:, 1:]], 1)


class TestGroupThatIsNotFinite:
    group = PointRotation()

    def test_acts_by_one_element_and_by_one_per_sample(self):
        x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        quarter, half = torch.tensor([math.pi / 2], dtype=torch.float64), torch.tensor([math.pi], dtype=torch.float64)
        assert_linear(self.group.act(quarter, x), torch.tensor([[0.0, 1.0], [-2.0, 0.0]], dtype=torch.float64))
        each = self.group.act(torch.stack([quarter, half]), x)
        assert_linear(each, torch.tensor([[0.0, 1.0], [0.0, -2.0]], dtype=torch.float64))
        assert_exact(self.group.act_on_map(quarter, x), self.group.act(quarter, x))

    def test_draws(self):
        drawn = self.group.sample_non_identity(5, 3, torch.Generator().manual_seed(0))
        assert drawn.shape == (3, 5, 1)
        assert_exact(drawn, self.group.sample_non_identity(5, 3, torch.Generator().manual_seed(0)))
        assert len(drawn.unique()) == 15
        assert self.group.sample_non_identity(0, 3).shape == (3, 0, 1)

    def test_wrong_elements(self):
        x = torch.zeros(3, 2, dtype=torch.float64)
        with pytest.raises(
            TypeError, match=r"PointRotation\(\) are tensors of torch\.float64: got a tensor of torch\.int"
        ):
            self.group.act(torch.zeros(1, dtype=torch.int64), x)
        with pytest.raises(ValueError, match=r"have shape \(1,\), stacks of them \(\.\.\., \*\(1,\)\): got \(3, 2\)\."):
            self.group.inverse(torch.zeros(3, 2, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"have shape \(1,\), stacks of them \(\.\.\., \*\(1,\)\): got \(\)\."):
            self.group.inverse(torch.zeros((), dtype=torch.float64))
        expected = r"one element, shape \(1,\), or by one per sample, shape \(3, 1\): got elements of shape \(2, 1\)"
        with pytest.raises(ValueError, match=expected):
            self.group.act(torch.zeros(2, 1, dtype=torch.float64), x)

    def test_can_be_a_factor(self):
        x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        group = SignFlip() * self.group
        assert group.element_shape == (2,)
        g = torch.tensor([1, math.pi / 2], dtype=torch.float64)
        assert_linear(group.act(g, x), torch.tensor([[0.0, -1.0], [2.0, 0.0]], dtype=torch.float64))
        with pytest.raises(TypeError, match="unsupported operand"):
            self.group * 3


def test_all_symmetric_groups_up_to_four_have_all_permutations():
    """A swap and a shift give every permutation."""
    for n in (2, 3, 4):
        group = FiniteGroup.from_permutations([[1, 0, *range(2, n)], [*range(1, n), 0]])
        rows = group.orbit(torch.arange(float(n))[None])[:, 0].tolist()
        assert sorted(rows) == sorted(list(map(float, p)) for p in itertools.permutations(range(n)))


class TestManyElements:
    """Of a large group some elements are drawn without giving each of the others a number first."""

    class Shifts(CyclicGroup):
        order = 1_000_000
        exact = True

        def transform(self, index, x):
            return x.roll(index, -1)

    def test_draws(self):
        drawn = self.Shifts().sample_non_identity(500, 3, torch.Generator().manual_seed(0))
        assert drawn.shape == (3, 500)
        assert int(drawn.min()) > 0
        assert int(drawn.max()) < 1_000_000
        assert abs(drawn.double().mean() / 500_000 - 1) < 0.1
        in_order = drawn.sort(0).values
        assert bool((in_order[1:] > in_order[:-1]).all())

    def test_nearly_all(self):
        class Few(self.Shifts):
            order = 1_200

        drawn = Few().sample_non_identity(2, 1_199)
        assert drawn.sort(0).values.T.tolist() == 2 * [list(range(1, 1_200))]


@pytest.mark.parametrize("action", [lambda x: x.abs().flip(-1), lambda x: x.flip(-1).clamp(min=0)])
def test_actions_that_lose_signs_are_no_group(action):
    """On positive numbers they are mirrors."""
    with pytest.raises(ValueError, match=r"is not closed|undoes"):
        FiniteGroup.from_actions([torch.clone, action])
