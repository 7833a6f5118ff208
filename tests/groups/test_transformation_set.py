"""Do transformations that are no group act as their callables do, and is what is none refused?"""

import copy
import pickle
import re

import pytest
import torch

from invreg.audit.settings import in_words
from invreg.groups import FiniteGroup, Flip, Group, IndexedTransformations, Transformations, TransformationSet
from invreg.testing import check_group
from tests.groups.test_laws import assert_uniform
from tests.tolerances import assert_exact


def brighter(x):
    return x + 0.5


def darker(x):
    return 0.25 * x


def quarter_turn(x):
    return torch.rot90(x, 1, (-2, -1))


def quarter_turn_back(x):
    return torch.rot90(x, -1, (-2, -1))


def noisy(x):
    return x + torch.randn_like(x)


def cropped(x):
    return x[..., 1:]


def fails(x):
    raise KeyError("no such table")


THREE = TransformationSet([brighter, darker, quarter_turn])
REALIGNED = TransformationSet([brighter, quarter_turn], realign=[torch.Tensor.clone, quarter_turn_back])

ONE_AND_EACH = pytest.mark.parametrize("g", [torch.tensor(1), torch.tensor([0, 1])], ids=["one", "one per sample"])


class TestAction:
    def test_each_element_acts_as_its_callable(self):
        x = torch.randn(4, 2, 3, 3)
        for index, expected in enumerate([x, x + 0.5, 0.25 * x, torch.rot90(x, 1, (-2, -1))]):
            assert_exact(THREE.act(torch.tensor(index), x), expected)
            assert_exact(THREE.act(torch.full((4,), index), x), expected)
            assert_exact(THREE.orbit(x)[index], expected)
            if index:
                assert_exact(THREE.orbit(x, identity=False)[index - 1], expected)

    def test_one_per_sample(self):
        x, g = torch.randn(7, 2, 3, 3), [3, 0, 2, 2, 1, 3, 0]
        expected = [THREE.act(torch.tensor(index), x[i : i + 1]) for i, index in enumerate(g)]
        assert_exact(THREE.act(torch.tensor(g), x), torch.cat(expected))

    def test_each_callable_is_called_once(self):
        calls = []

        def counted(x):
            calls.append(len(x))
            return x + 1

        TransformationSet([counted, darker]).act(torch.tensor([1, 2, 1, 0, 1]), torch.zeros(5, 2))
        assert calls == [3]

    def test_input_is_not_written(self):
        x = torch.randn(4, 2, 3, 3)
        before = x.clone()
        THREE.act(torch.tensor(0), x).zero_()
        THREE.act(torch.arange(4), x).zero_()
        THREE.orbit(x).zero_()
        assert_exact(x, before)

    def test_gradients_are_those_of_the_callables(self):
        x = torch.randn(4, 2, 3, 3, requires_grad=True)
        THREE.act(torch.tensor([0, 1, 2, 3]), x).sum().backward()
        assert_exact(x.grad, torch.tensor([1.0, 1.0, 0.25, 1.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3))

    def test_empty_batch(self):
        assert THREE.act(torch.tensor(1), torch.zeros(0, 2, 3, 3)).shape == (0, 2, 3, 3)
        assert THREE.act(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 3, 3)).shape == (0, 2, 3, 3)
        assert THREE.orbit(torch.zeros(0, 2, 3, 3)).shape == (4, 0, 2, 3, 3)

    def test_modules_and_partials_are_callables(self):
        group = TransformationSet([torch.nn.Dropout(0.0).eval(), torch.nn.Tanh()])
        x = torch.randn(2, 3)
        assert_exact(group.act(torch.tensor(2), x), x.tanh())


class TestRandomTransforms:
    def test_draw_from_the_global_generator(self):
        group, x = TransformationSet([noisy]), torch.zeros(2, 3)
        torch.manual_seed(3)
        first = group.act(torch.tensor(1), x)
        assert not torch.equal(group.act(torch.tensor(1), x), first)
        torch.manual_seed(3)
        assert_exact(group.act(torch.tensor(1), x), first)
        torch.manual_seed(3)
        assert_exact(torch.randn(2, 3), first)

    def test_each_sample_of_its_own(self):
        y = TransformationSet([noisy]).act(torch.tensor([1, 0, 1]), torch.zeros(3, 4))
        assert_exact(y[1], torch.zeros(4))
        assert len(y.unique()) == 9

    def test_making_a_set_draws_nothing(self):
        before = torch.get_rng_state()
        TransformationSet([noisy])
        assert_exact(torch.get_rng_state(), before)


class TestElements:
    def test_order(self):
        assert THREE.order == 4
        assert THREE.elements().tolist() == [0, 1, 2, 3]
        assert THREE.non_identity_elements().tolist() == [1, 2, 3]
        assert THREE.element_shape == ()
        assert THREE.element_dtype == torch.int64
        assert not THREE.exact

    def test_draws(self):
        assert_uniform(THREE.sample(2_000, torch.Generator().manual_seed(0)), 4)
        for k in (1, 2, 3):
            draws = THREE.sample_non_identity(1_500, k, torch.Generator().manual_seed(k))
            assert draws.shape == (k, 1_500)
            in_order = draws.sort(0).values
            assert bool((in_order[1:] > in_order[:-1]).all())
            for position in draws:
                assert_uniform(position - 1, 3)

    def test_draws_follow_rng(self):
        before = torch.get_rng_state()
        first = THREE.sample_non_identity(30, 2, torch.Generator().manual_seed(0))
        assert_exact(THREE.sample_non_identity(30, 2, torch.Generator().manual_seed(0)), first)
        assert_exact(torch.get_rng_state(), before)
        assert not torch.equal(THREE.sample_non_identity(30, 2, torch.Generator().manual_seed(1)), first)

    def test_more_than_there_are(self):
        for k in (0, 4, -1):
            with pytest.raises(ValueError, match=rf"has 3 non-identity elements: cannot draw {k} different ones"):
                THREE.sample_non_identity(2, k)


class TestNoGroup:
    def test_is_none(self):
        assert isinstance(THREE, Transformations)
        assert isinstance(THREE, IndexedTransformations)
        assert not isinstance(THREE, Group)
        assert not isinstance(THREE, FiniteGroup)
        for name in ("compose", "inverse", "act_on_map", "cayley_table", "identity"):
            assert not hasattr(THREE, name)

    def test_is_no_factor(self):
        for product in (lambda: THREE * Flip(), lambda: Flip() * THREE, lambda: THREE * THREE):
            with pytest.raises(TypeError, match="unsupported operand"):
                product()

    def test_has_no_laws(self):
        with pytest.raises(TypeError, match=r"check_group checks a Group"):
            check_group(THREE)


class TestMaps:
    def test_are_moved_back(self):
        assert REALIGNED.realigns
        m = torch.randn(3, 1, 4, 4)
        assert_exact(REALIGNED.realign(torch.tensor(0), m), m)
        assert_exact(REALIGNED.realign(torch.tensor(1), m), m)
        assert_exact(REALIGNED.realign(torch.tensor(2), quarter_turn(m)), m)
        each = torch.cat([m[:1], m[1:2], quarter_turn(m[2:])])
        assert_exact(REALIGNED.realign(torch.tensor([0, 1, 2]), each), m)

    def test_are_not_written(self):
        m = torch.randn(3, 1, 4, 4)
        before = m.clone()
        for g in (torch.tensor(0), torch.tensor(1), torch.arange(3)):
            REALIGNED.realign(g, m).zero_()
        assert_exact(m, before)

    def test_unknown(self):
        assert not THREE.realigns
        expected = (
            r"^TransformationSet\(\[brighter, darker, quarter_turn\]\) does not say how it moves maps: give realign=, "
            r"or leave maps out, saliency=None\.$"
        )
        for g in (torch.tensor(1), torch.tensor([0, 1])):
            with pytest.raises(ValueError, match=expected):
                THREE.realign(g, torch.zeros(2, 1, 4, 4))

    def test_of_another_shape(self):
        group = TransformationSet([brighter], realign=[cropped])
        with pytest.raises(
            ValueError, match=r"1 must keep shape, dtype and device, \(2, 4\), .*: it returned \(2, 3\)"
        ):
            group.realign(torch.tensor(1), torch.zeros(2, 4))

    def test_element_that_is_none(self):
        with pytest.raises(ValueError, match=r"has the elements 0 to 2: got 3"):
            REALIGNED.realign(torch.tensor(3), torch.zeros(2, 1, 4, 4))


class TestRefused:
    @pytest.mark.parametrize("transforms", [brighter, {brighter}, 3, [3], [brighter, None], "ab"], ids=in_words)
    def test_no_list_of_callables(self, transforms):
        with pytest.raises(TypeError, match=r"^TransformationSet takes as transforms a list of callables: got "):
            TransformationSet(transforms)

    @pytest.mark.parametrize("realign", [brighter, 3, [3], [None], "a"], ids=in_words)
    def test_no_list_of_callables_to_realign(self, realign):
        with pytest.raises(TypeError, match=r"^TransformationSet takes as realign a list of callables: got "):
            TransformationSet([brighter], realign=realign)

    def test_empty(self):
        for empty in ([], ()):
            with pytest.raises(ValueError, match=r"^TransformationSet takes at least one transform: got none\.$"):
                TransformationSet(empty)

    @pytest.mark.parametrize("realign", [[], [brighter], [brighter] * 3])
    def test_length_of_realign(self, realign):
        expected = (
            rf"^realign must have one callable for each of the 2 transforms: got {len(realign)}\. Use "
            r"torch\.Tensor\.clone for those that move nothing\.$"
        )
        with pytest.raises(ValueError, match=expected):
            TransformationSet([brighter, darker], realign=realign)

    @ONE_AND_EACH
    def test_writes(self, g):
        group = TransformationSet([lambda x: x.mul_(2)])
        for context in (torch.enable_grad(), torch.no_grad()):
            x = torch.ones(2, 3)
            with context, pytest.raises(ValueError, match=r"transform 1 writes into its input\. Let it return a new "):
                group.act(g, x)

    @ONE_AND_EACH
    @pytest.mark.parametrize(
        ("transform", "came"),
        [
            (cropped, r"\(\d, 2\), torch\.float32 on cpu"),
            (lambda x: x[:1].repeat(5, 1), r"\(5, 3\), torch\.float32 on cpu"),
            (torch.Tensor.double, r"\(\d, 3\), torch\.float64 on cpu"),
            (lambda x: x.to("meta"), r"\(\d, 3\), torch\.float32 on meta"),
            (lambda x: None, "NoneType"),
            (lambda x: x.tolist(), "list"),
        ],
        ids=["shape", "batch", "dtype", "device", "none", "list"],
    )
    def test_changes_form(self, transform, came, g):
        expected = (
            r"transform 1 must keep shape, dtype and device, \(\d, 3\), torch\.float32 on cpu: it returned "
            + came
            + r"\.$"
        )
        with pytest.raises(ValueError, match=expected):
            TransformationSet([transform]).act(g, torch.ones(2, 3))
        with pytest.raises(ValueError, match=expected):
            TransformationSet([transform]).orbit(torch.ones(2, 3))

    @ONE_AND_EACH
    def test_raises(self, g):
        expected = r"^TransformationSet\(\[fails\]\): transform 1 failed on inputs of shape \(\d, 3\): 'no such table'$"
        with pytest.raises(RuntimeError, match=expected) as caught:
            TransformationSet([fails]).act(g, torch.ones(2, 3))
        assert isinstance(caught.value.__cause__, KeyError)

    def test_only_what_is_used_is_called(self):
        x = torch.ones(2, 3)
        assert_exact(TransformationSet([fails, darker]).act(torch.tensor([2, 0]), x)[0], 0.25 * x[0])

    @pytest.mark.parametrize("index", [-1, 4])
    def test_element(self, index):
        for g in (torch.tensor(index), torch.tensor([0, index])):
            with pytest.raises(ValueError, match=rf"{re.escape(repr(THREE))} has the elements 0 to 3: got {index}"):
                THREE.act(g, torch.ones(2, 3, 3))

    def test_number_of_elements_and_inputs(self):
        with pytest.raises(ValueError, match=r"one per sample, shape \(2,\): got elements of shape \(3,\)"):
            THREE.act(torch.zeros(3, dtype=torch.int64), torch.ones(2, 3, 3))
        with pytest.raises(ValueError, match=r"acts on batches, .*: got list"):
            THREE.act(torch.tensor(1), [1.0])
        with pytest.raises(TypeError, match=r"are tensors of torch\.int64: got int"):
            THREE.act(1, torch.ones(2, 3))


def test_values_and_names():
    assert TransformationSet((brighter, darker, quarter_turn)) == THREE
    assert TransformationSet([brighter, darker]) != THREE
    assert TransformationSet([brighter, quarter_turn]) != REALIGNED
    assert repr(THREE) == "TransformationSet([brighter, darker, quarter_turn])"
    assert "Dropout" in repr(TransformationSet([torch.nn.Dropout()]))
    for group in (THREE, REALIGNED):
        for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
            assert twin == group
            assert hash(twin) == hash(group)
            assert repr(twin) == repr(group)
    with pytest.raises(AttributeError):
        THREE.transforms = ()


def test_what_is_given_is_not_held():
    transforms = [brighter]
    group = TransformationSet(transforms)
    transforms.append(darker)
    assert group.order == 2
