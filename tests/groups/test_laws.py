"""Does each shipped group keep the laws of a group that acts on batches?

A law is a function that raises AssertionError. ``GROUP_LAWS`` take a group, ``ACTION_LAWS`` also the shape of a sample;
``test_laws_bite.py`` shows that each can fail.
"""

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import invreg.groups
from invreg.groups import CyclicPermutation, CyclicRotation, DirectProduct, FiniteGroup, Flip, Group, SignFlip, Trivial
from invreg.groups.custom import ActionGroup
from invreg.groups.positions import PositionGroup
from tests.groups import catalogue
from tests.groups.catalogue import CATALOGUE, INFINITE, ON_KEYS, S3, Shape, all_cases, all_groups
from tests.tolerances import assert_exact, assert_linear

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def distinct_batch(shape: Shape, n: int = 3) -> Tensor:
    """A batch of ``n`` samples, float64, whose entries all differ, in absolute value too."""
    return torch.arange(1, n * torch.Size(shape).numel() + 1, dtype=torch.float64).view(n, *shape)


def assert_same(group: FiniteGroup, actual: Tensor, expected: Tensor, message: str | None = None) -> None:
    (assert_exact if group.exact else assert_linear)(actual, expected, message)


def chi_square(draws: Tensor, categories: int) -> float:
    """How far the counts of ``draws`` are from equal; about ``categories - 1`` where all are equally likely."""
    expected = draws.numel() / categories
    return float(((torch.bincount(draws.flatten(), minlength=categories) - expected) ** 2 / expected).sum())


def assert_uniform(draws: Tensor, categories: int) -> None:
    """Raises unless the values 0 ... categories - 1 come up equally often, within five standard deviations."""
    freedom = categories - 1
    assert chi_square(draws, categories) <= freedom + 5 * (2 * freedom) ** 0.5
    assert draws.unique().tolist() == list(range(categories))


# ------------------------------------------------------------------------------------------------- laws of the group


def elements_are_indices(group):
    assert group.elements().tolist() == list(range(group.order))
    assert group.non_identity_elements().tolist() == list(range(1, group.order))
    assert group.identity.shape == group.element_shape == ()
    assert group.identity.dtype == group.elements().dtype == group.element_dtype == torch.int64
    assert int(group.identity) == 0


def products_stay_inside(group):
    table = group.cayley_table()
    assert table.shape == (group.order, group.order)
    assert table.dtype == torch.int64
    assert int(table.min()) >= 0
    assert int(table.max()) < group.order


def identity_is_neutral(group):
    g = group.elements()
    assert_exact(group.compose(group.identity, g), g)
    assert_exact(group.compose(g, group.identity), g)


def products_associate(group):
    g = group.elements()
    f, g, h = g[:, None, None], g[:, None], g
    assert_exact(group.compose(group.compose(f, g), h), group.compose(f, group.compose(g, h)))


def inverses_undo(group):
    g = group.elements()
    assert_exact(group.compose(g, group.inverse(g)), torch.zeros_like(g))
    assert_exact(group.compose(group.inverse(g), g), torch.zeros_like(g))


def table_is_latin(group):
    table, g = group.cayley_table(), group.elements()
    assert_exact(table.sort(0).values, g[:, None].expand_as(table))
    assert_exact(table.sort(1).values, g.expand_as(table))


def element_orders_divide(group):
    """Lagrange: the first power of an element that is the identity divides the order of the group."""
    for g in group.elements():
        power, exponent = g, 1
        while int(power) != 0:
            power, exponent = group.compose(power, g), exponent + 1
            assert exponent <= group.order, f"element {int(g)} has no power that is the identity"
        assert group.order % exponent == 0, f"element {int(g)} has order {exponent}"


def products_broadcast(group):
    g = group.elements()
    table = group.cayley_table()
    assert table.shape == (group.order, group.order)
    for i in g:
        assert group.inverse(i).shape == ()
        for j in g:
            assert_exact(group.compose(i, j), table[i, j])


def draws_are_uniform(group):
    assert_uniform(group.sample(400 * group.order, torch.Generator().manual_seed(1)), group.order)


def draws_without_identity_differ(group):
    for k in range(1, group.order):
        draws = group.sample_non_identity(300 * group.order, k, torch.Generator().manual_seed(k))
        assert draws.shape == (k, 300 * group.order)
        assert draws.dtype == torch.int64
        assert int(draws.min()) > 0, "the identity was drawn"
        in_order = draws.sort(0).values
        assert bool((in_order[1:] > in_order[:-1]).all()), "an element was drawn twice for one sample"
        for position in draws:  # each of the k places alone is uniform, not only all together
            assert_uniform(position - 1, group.order - 1)


def draws_follow_rng(group):
    """The same generator gives the same draws and torch's global one is left alone; without one, the global one."""

    methods = [lambda rng: group.sample(50, rng)]
    if group.order > 2:  # with fewer, there is nothing to choose from
        methods.append(lambda rng: group.sample_non_identity(50, 1, rng))
    for draw in methods:
        torch.manual_seed(4)
        before = torch.get_rng_state()
        drawn = draw(torch.Generator().manual_seed(5))
        assert_exact(draw(torch.Generator().manual_seed(5)), drawn)
        assert_exact(torch.get_rng_state(), before)
        assert group.order == 1 or not torch.equal(draw(torch.Generator().manual_seed(6)), drawn)
        torch.manual_seed(5)
        assert_exact(draw(None), drawn)
        assert not torch.equal(torch.get_rng_state(), before)


def equal_by_value(group):
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
        assert_exact(twin.cayley_table(), group.cayley_table())


GROUP_LAWS = (
    elements_are_indices,
    products_stay_inside,
    identity_is_neutral,
    products_associate,
    inverses_undo,
    table_is_latin,
    element_orders_divide,
    products_broadcast,
    draws_are_uniform,
    draws_without_identity_differ,
    draws_follow_rng,
    equal_by_value,
)


# ------------------------------------------------------------------------------------------------ laws of the action


def identity_changes_nothing(group, shape):
    x = distinct_batch(shape)
    assert_exact(group.act(group.identity, x), x)
    assert_exact(group.act(group.identity.expand(len(x)), x), x)


def acts_as_composed(group, shape):
    x = distinct_batch(shape)
    for h in group.elements():
        hx = group.act(h, x)
        for g in group.elements():
            assert_same(group, group.act(group.compose(g, h), x), group.act(g, hx), f"{int(g)} after {int(h)}")


def elements_act_differently(group, shape):
    images = group.orbit(distinct_batch(shape, n=1)).flatten(1)
    for i in range(group.order):
        for j in range(i):
            assert not torch.allclose(images[i], images[j]), f"elements {j} and {i} do the same"


def samples_are_independent(group, shape):
    """One element per sample does to each what it does to it alone, and no sample moves along the batch axis."""
    g = group.elements().repeat_interleave(2)  # not the same read backwards
    x = distinct_batch(shape, n=len(g))
    alone = torch.cat([group.act(g[i], x[i : i + 1]) for i in range(len(g))])
    assert_same(group, group.act(g, x), alone)
    for element in group.elements():
        alone = torch.cat([group.act(element, sample[None]) for sample in x])
        assert_same(group, group.act(element, x), alone, f"element {int(element)}")


def moves_maps(group) -> bool:
    """Callables that do more than move and negate entries do not say how maps move."""
    return group.exact or not isinstance(group, ActionGroup)


def inputs_are_not_written(group, shape):
    x = distinct_batch(shape, n=group.order)
    before = x.clone()
    for g in (*group.elements(), group.elements()):
        group.act(g, x)
        if moves_maps(group):
            group.act_on_map(g, x)
    group.orbit(x)
    group.orbit(x, identity=False)
    assert_exact(x, before)
    assert x._version == 0  # nor written to and then restored


def orbit_stacks_the_acts(group, shape):
    x = distinct_batch(shape)
    acts = torch.stack([group.act(g, x) for g in group.elements()])
    assert_same(group, group.orbit(x), acts)
    assert_same(group, group.orbit(x, identity=False), acts[1:])
    assert group.orbit(x[:0]).shape == (group.order, 0, *shape)


def dtype_is_kept(group, shape):
    """Every entry arrives in its dtype, with all its digits where the action is exact."""
    g = group.elements()
    codes = distinct_batch(shape, n=group.order)
    reference = torch.randn(codes.shape, dtype=torch.float64)
    moved = group.act(g, codes)  # holds, in place of each entry, the number of the one that came there, and its sign
    source, sign = moved.abs().long() - 1, moved.sign()

    def expected(x):
        if not group.exact:
            return group.act(g, x.double()).to(x.dtype)
        return x.flatten()[source] if x.dtype in (torch.uint8, torch.bool) else x.flatten()[source] * sign.to(x.dtype)

    inputs = [reference.to(dtype) for dtype in FLOATS]
    if group.exact:
        inputs += [(1e6 * reference).to(torch.int32), torch.complex(reference, reference.flip(0)).to(torch.complex64)]
    if isinstance(group, PositionGroup):
        inputs += [(100 * reference.abs()).to(torch.uint8), reference > 0]
    for x in inputs:
        assert_same(group, group.act(g, x), expected(x))
        assert_same(group, torch.cat([group.act(i, x[i : i + 1]) for i in g]), expected(x))
        assert_same(group, group.orbit(x)[g, g], expected(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert group.act(g, reference.float()).dtype == torch.float32
        assert group.act(g[-1], reference.float()).dtype == torch.float32


def device_is_kept(group, shape):
    """One element may stay on the CPU. The meta device stands for any other, where shapes are all that there is."""
    x = torch.empty(3, *shape, device="meta")
    for g in group.elements():
        y = group.act(g, x)
        assert (y.device, y.shape, y.dtype) == (x.device, x.shape, x.dtype)


def strides_do_not_matter(group, shape):
    x = distinct_batch(shape, n=group.order)
    axes = tuple(reversed(range(x.ndim)))
    layouts = {
        "axes stored backwards": x.permute(axes).contiguous().permute(axes),
        "every second entry of a larger tensor": x.repeat_interleave(2, -1)[..., ::2],
        "part of a larger batch": torch.cat([-x, x])[group.order :],
    }
    if x.ndim in (4, 5):
        channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        layouts["channels last"] = x.contiguous(memory_format=channels_last)
    for name, y in layouts.items():
        for g in (*group.elements(), group.elements()):
            assert_same(group, group.act(g, y), group.act(g, x), name)
            if moves_maps(group):
                assert_same(group, group.act_on_map(g, y), group.act_on_map(g, x), name)
        assert_same(group, group.orbit(y), group.orbit(x), name)
    one = x[:1]
    assert_same(group, group.orbit(one.expand_as(x)), group.orbit(one.repeat(group.order, *[1] * len(shape))))


def contiguous_stays_contiguous(group, shape):
    x = distinct_batch(shape, n=group.order)
    if isinstance(group, ActionGroup):
        for index, action in enumerate(group.actions):
            assert group.transform(index, x).stride() == action(x).stride(), "it returns what its callables return"
        return
    for g in (*group.elements(), group.elements()):
        assert group.act(g, x).is_contiguous()
    assert group.orbit(x).is_contiguous()


def gradient_is_the_inverse_action(group, shape):
    """Moving and negating entries is orthogonal: the gradient flows back by the inverse element."""
    weight = distinct_batch(shape, n=group.order).flip(0)
    for g in (*group.elements(), group.elements()):
        x = distinct_batch(shape, n=group.order).requires_grad_()
        y = group.act(g, x)
        assert y.requires_grad, "the action cuts the gradient"
        (gradient,) = torch.autograd.grad(y, x, weight)
        assert_same(group, gradient, group.act(group.inverse(g), weight))


def gradients_are_right(group, shape):
    n = min(group.order, 4)
    x = torch.randn(n, *shape, dtype=torch.float64, requires_grad=True)
    for g in (*group.elements(), group.elements()[-n:]):
        assert torch.autograd.gradcheck(partial(group.act, g), x, fast_mode=True, raise_exception=False)
    assert torch.autograd.gradcheck(group.orbit, x, fast_mode=True, raise_exception=False)
    assert torch.autograd.gradgradcheck(partial(group.act, g), x, fast_mode=True, raise_exception=False)


def vmaps_over_inputs(group, shape):
    stacked = torch.stack([distinct_batch(shape, n=group.order), -distinct_batch(shape, n=group.order)])
    for g in (*group.elements(), group.elements()):
        looped = torch.stack([group.act(g, x) for x in stacked])
        assert_same(group, torch.func.vmap(partial(group.act, g))(stacked), looped)


def maps_are_acted_on(group, shape):
    m = distinct_batch(shape)
    if not moves_maps(group):
        with pytest.raises(ValueError, match=r"does not say how it moves maps\..*saliency=None"):
            group.act_on_map(group.identity, m)
        return
    assert_exact(group.act_on_map(group.identity, m), m)
    for h in group.elements():
        hm = group.act_on_map(h, m)
        assert (hm.shape, hm.dtype) == (m.shape, m.dtype)
        assert_same(group, group.act_on_map(h.expand(len(m)), m), hm)
        for g in group.elements():
            assert_same(group, group.act_on_map(group.compose(g, h), m), group.act_on_map(g, hm))


ACTION_LAWS = (
    identity_changes_nothing,
    acts_as_composed,
    elements_act_differently,
    samples_are_independent,
    inputs_are_not_written,
    orbit_stacks_the_acts,
    dtype_is_kept,
    device_is_kept,
    strides_do_not_matter,
    contiguous_stays_contiguous,
    gradient_is_the_inverse_action,
    gradients_are_right,
    vmaps_over_inputs,
    maps_are_acted_on,
)


@pytest.mark.parametrize("law", GROUP_LAWS)
@all_groups
def test_group_law(law, group):
    law(group)


@pytest.mark.parametrize("law", ACTION_LAWS)
@all_cases
def test_action_law(law, group, shape):
    law(group, shape)


# ------------------------------------------------------------------------------------------- the list itself is whole


def public_groups() -> set[type]:
    """Every class in ``invreg.groups`` that a user can make a group of."""
    modules = [importlib.import_module(f"invreg.groups.{m.name}") for m in pkgutil.iter_modules(invreg.groups.__path__)]
    return {
        thing
        for module in (invreg.groups, *modules)
        for name, thing in inspect.getmembers(module, inspect.isclass)
        if issubclass(thing, Group) and not inspect.isabstract(thing) and not name.startswith("_")
        # Others leave it to subclasses to say how they act.
        if not issubclass(thing, FiniteGroup) or thing.transform is not FiniteGroup.transform
    }


def public_class(group: Group) -> type:
    """The class that a user made it of; a product of finite groups has one of its own below that."""
    public = (base for base in type(group).__mro__ if not base.__name__.startswith("_"))
    return next(base for base in public if not inspect.isabstract(base))


def test_every_public_group_is_in_the_catalogue():
    found = public_groups()
    assert {CyclicRotation, ActionGroup, DirectProduct} <= found  # the search itself finds something
    assert found == {public_class(entry.group) for entry in (*CATALOGUE, *INFINITE)} | {public_class(ON_KEYS)}


def test_names_in_the_catalogue_differ_and_each_group_has_shapes():
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert all(entry.shapes for entry in CATALOGUE)


def test_groups_in_the_catalogue_are_different_values():
    groups = [entry.group for entry in CATALOGUE]
    assert len(set(groups)) == len(groups)
    assert all((a == b) == (a is b) for a in groups for b in groups)


@all_groups
def test_repr_evaluates_to_the_same_group(group):
    assert eval(repr(group), {**vars(invreg.groups), **vars(catalogue)}) == group


def test_exactness_of_each_group_is_known():
    assert [entry.name for entry in CATALOGUE if not entry.group.exact] == ["actions-rounding"]


# ------------------------------------------------------------------------------------------------------ random inputs


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in CATALOGUE if entry.group.exact])
@given(data=st.data())
@settings(max_examples=12)
def test_act_per_sample_on_random_batches(entry, data):
    """Any batch size, any floats: bit for bit a left action that does to each sample what it does to it alone."""
    group, shape = entry.group, data.draw(st.sampled_from(entry.shapes))
    n = data.draw(st.integers(0, 5))
    size = n * torch.Size(shape).numel()
    entries = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0])
    x = torch.tensor(data.draw(st.lists(entries, min_size=size, max_size=size)), dtype=torch.float64).view(n, *shape)
    element = st.integers(0, group.order - 1)
    g, h = (
        torch.tensor(data.draw(st.lists(element, min_size=n, max_size=n)), dtype=torch.int64).view(n) for _ in range(2)
    )

    def bits(y):
        return y.contiguous().view(torch.int64)

    composed = group.act(group.compose(g, h), x)
    assert_exact(bits(composed), bits(group.act(g, group.act(h, x))))
    for i in range(n):
        assert_exact(bits(group.act(g[i], x[i : i + 1])[0]), bits(group.act(g, x)[i]))
    assert_exact(bits(group.act(group.inverse(g), group.act(g, x))), bits(x))


# ----------------------------------------------------------------------------------------------------------- compiled

COMPILED = [
    pytest.param(CyclicRotation(4), (2, 3, 3), id="rotation"),
    pytest.param(CyclicPermutation(3, dim=1) * SignFlip(), (3, 4), id="product"),
    pytest.param(S3, (2, 3), id="permutations"),
]


@pytest.mark.parametrize(("group", "shape"), COMPILED)
def test_compiles_as_one_graph(group, shape):
    torch.compiler.reset()
    x = torch.randn(group.order, *shape)
    compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
    for g in (*group.elements(), group.elements()):
        y = x.clone().requires_grad_()
        z = x.clone().requires_grad_()
        assert_exact(compiled(g, y), group.act(g, z))
        compiled(g, y).square().sum().backward()
        group.act(g, z).square().sum().backward()
        assert_exact(y.grad, z.grad)


@pytest.mark.parametrize(("group", "shape"), COMPILED)
def test_compiles_once_for_all_elements(group, shape):
    torch.compiler.reset()
    graphs = []

    def counting(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(3, *shape)
    compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend=counting)
    for g in group.elements():
        assert_exact(compiled(g, x), group.act(g, x))
    assert len(graphs) == 1


# -------------------------------------------------------------------------------------------------- on a CUDA device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_group_acts_on_cuda_as_on_the_cpu():
    for group, shape in [(entry.group, shape) for entry in CATALOGUE for shape in entry.shapes]:
        x, g = distinct_batch(shape, n=group.order), group.elements()
        for element in g:
            assert_same(group, group.act(element, x.cuda()).cpu(), group.act(element, x))
            assert_same(group, group.act(element.cuda(), x.cuda()).cpu(), group.act(element, x))
        assert_same(group, group.act(g.cuda(), x.cuda()).cpu(), group.act(g, x))
        assert_same(group, group.orbit(x.cuda()).cpu(), group.orbit(x))
        assert group.compose(g.cuda(), group.inverse(g.cuda())).device.type == "cuda"
        assert group.sample(4, torch.Generator("cuda")).device.type == "cuda"
        with pytest.raises(ValueError, match=r"got elements on cpu\. Write g\.to\(x\.device\)"):
            group.act(g, x.cuda())


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("method", ["compose-left", "compose-right", "inverse", "act", "act_on_map"])
@all_groups
class TestElementsAreChecked:
    """By each group and each method that takes elements."""

    def call(self, group, method, g):
        shape = next(entry.shapes[0] for entry in CATALOGUE if entry.group == group)
        x = distinct_batch(shape, n=3)
        {
            "compose-left": lambda: group.compose(g, group.identity),
            "compose-right": lambda: group.compose(group.identity, g),
            "inverse": lambda: group.inverse(g),
            "act": lambda: group.act(g, x),
            "act_on_map": lambda: group.act_on_map(g, x),
        }[method]()

    def test_one_outside(self, group, method):
        for outside in (group.order, -1):
            expected = (
                rf"{re.escape(repr(group))} has the elements 0 to {group.order - 1}: got {outside}\. elements\(\)"
            )
            with pytest.raises(ValueError, match=expected):
                self.call(group, method, torch.tensor(outside))

    def test_one_outside_in_a_stack(self, group, method):
        expected = rf"has the elements 0 to {group.order - 1}: got {group.order + 5} at position \(2,\)\. elements"
        with pytest.raises(ValueError, match=expected):
            self.call(group, method, torch.tensor([0, 0, group.order + 5]))

    def test_dtype(self, group, method):
        for dtype in (torch.float32, torch.int32, torch.bool):
            expected = rf"{re.escape(repr(group))} are tensors of torch\.int64: got a tensor of {dtype}\. Write torch\."
            with pytest.raises(TypeError, match=expected):
                self.call(group, method, torch.zeros((), dtype=dtype))

    def test_python_number(self, group, method):
        with pytest.raises(TypeError, match=r"are tensors of torch\.int64: got int\. Write torch\.tensor"):
            self.call(group, method, 0)


@pytest.mark.parametrize("act", ["act", "act_on_map"])
@all_groups
class TestActionsAreChecked:
    def test_number_of_elements(self, group, act):
        shape = next(entry.shapes[0] for entry in CATALOGUE if entry.group == group)
        x = distinct_batch(shape, n=3)
        for wrong in ((2,), (3, 1), (1,)):
            expected = (
                r"acts by one element, shape \(\), or by one per sample, shape \(3,\): "
                rf"got elements of shape {re.escape(str(wrong))} for inputs of shape {re.escape(str(tuple(x.shape)))}"
            )
            with pytest.raises(ValueError, match=expected):
                getattr(group, act)(torch.zeros(wrong, dtype=torch.int64), x)

    def test_device_of_a_stack(self, group, act):
        shape = next(entry.shapes[0] for entry in CATALOGUE if entry.group == group)
        x = torch.empty(3, *shape, device="meta")
        with pytest.raises(ValueError, match=r"inputs do, on meta: got elements on cpu\. Write g\.to\(x\.device\)"):
            getattr(group, act)(torch.zeros(3, dtype=torch.int64), x)

    def test_not_a_batch(self, group, act):
        with pytest.raises(ValueError, match=r"acts on batches, tensors of shape \(N, \.\.\.\): got a tensor of shape"):
            getattr(group, act)(group.identity, torch.tensor(1.0))
        with pytest.raises(ValueError, match=r"acts on batches, tensors of shape \(N, \.\.\.\): got list"):
            getattr(group, act)(group.identity, [1.0, 2.0])


@pytest.mark.parametrize("shape", [(), (3,)], ids=["one element", "a stack"])
def test_device_is_checked_before_values(shape):
    """Elements on another device than the inputs are refused without reading them."""
    g = torch.zeros(shape, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"inputs do, on cpu: got elements on meta\. Write g\.to\(x\.device\)"):
        Flip().act(g, torch.zeros(3, 4))


def test_negative_position_in_a_table_is_named():
    with pytest.raises(ValueError, match=r"has the elements 0 to 3: got -1 at position \(1, 2\)\. elements"):
        CyclicRotation(4).inverse(torch.tensor([[0, 1, 2], [3, 0, -1]]))


@all_groups
def test_sample_non_identity_refuses_more_than_there_are(group):
    for k in (0, group.order, group.order + 3, -1):
        expected = rf"has {group.order - 1} non-identity elements: cannot draw {k} different ones per sample\. Use "
        with pytest.raises(ValueError, match=expected):
            group.sample_non_identity(2, k)


def test_trivial_group_has_no_element_but_the_identity():
    assert Trivial().non_identity_elements().shape == (0,)
    assert Trivial().sample(3).tolist() == [0, 0, 0]
