"""Does pooling over the orbit make any layer invariant?"""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    Group,
    GroupPooling,
    SignFlip,
    Trivial,
    pooling,
    tie_first_layer,
)
from tests.groups.catalogue import CATALOGUE
from tests.movement import (
    INVARIANT,
    REDUCTIONS,
    broken_pool,
    every_reduction,
    hooks_of,
    logsumexp,
    movement,
)
from tests.tolerances import assert_exact, assert_linear

# GroupPooling

MOVES: dict[str, tuple[FiniteGroup, Sequence[Callable[[Tensor], Tensor]]]] = {
    "trivial": (Trivial(), [lambda x: x]),
    "rotation": (CyclicRotation(4), [partial(torch.rot90, k=k, dims=(-2, -1)) for k in range(4)]),
    "dihedral": (
        Dihedral(2),
        [lambda x: x, lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-1).flip(-2)],
    ),
    "translation": (CyclicTranslation(2), [lambda x: x, lambda x: x.roll(2, -1)]),
    "colours": (CyclicPermutation(3, dim=1), [partial(torch.roll, shifts=k, dims=1) for k in range(3)]),
    "sign": (SignFlip(), [lambda x: x, lambda x: -x]),
    "flip by sign": (Flip() * SignFlip(), [lambda x: x, lambda x: -x, lambda x: x.flip(-1), lambda x: -x.flip(-1)]),
}
"""A group, and what its elements do, in any order, said again without it; for axes of sizes 3, 4 and 4, or 3 and 4."""

LAYERS = {
    "linear": (lambda: nn.Linear(4, 2), (3, 4, 4)),
    "flatten and linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (3, 4, 4)),
    "conv2d": (lambda: nn.Conv2d(3, 2, 3, stride=2), (3, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 2, 3, padding=1), (3, 4)),
    "conv3d": (lambda: nn.Conv3d(3, 2, (1, 2, 2)), (3, 1, 4, 4)),
    "a scalar per sample": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)), (3, 4)),
}


def pooled_in_loops(
    layer: nn.Module,
    moves: Sequence[Callable[[Tensor], Tensor]],
    reduce: Callable[[list[float]], float],
    x: Tensor,
) -> Tensor:
    """The layer on each sample under each element by itself, and each entry of the outputs reduced as a list."""
    rows = []
    for n in range(len(x)):
        outputs = [layer(move(x[n : n + 1])) for move in moves]
        entries = [output.flatten().tolist() for output in outputs]
        reduced = [reduce(list(values)) for values in zip(*entries, strict=True)]
        rows.append(torch.tensor(reduced, dtype=torch.float64).view(outputs[0].shape))
    return torch.cat(rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("moves", MOVES)
def test_pooling_is_what_plain_loops_over_samples_and_elements_give(moves, layer, reduction):
    group, actions = MOVES[moves]
    make, shape = LAYERS[layer]
    if len(shape) == 2 and moves == "rotation":
        group, actions = CyclicRotation(2), [lambda x: x, lambda x: x.flip(-1).flip(-2)]
    reduction, reduce = REDUCTIONS[reduction]
    module = make().double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        actual = GroupPooling(module, group, reduction)(x)
        assert_linear(actual, pooled_in_loops(module, actions, reduce, x))


exact_cases = pytest.mark.parametrize(
    ("group", "shape"),
    [
        pytest.param(entry.group, shape, id=f"{entry.name}-on-{'x'.join(map(str, shape))}")
        for entry in CATALOGUE
        for shape in entry.shapes
        if entry.group.exact
    ],
)


@every_reduction
@exact_cases
def test_pooling_is_exactly_invariant(group, shape, reduction):
    layers = [nn.Linear(shape[-1], 4), nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6))]
    layers += {
        2: [nn.Conv1d(shape[0], 4, 3, padding=1)],
        3: [nn.Conv2d(shape[0], 4, 3, padding=1, stride=2)],
        4: [nn.Conv3d(shape[0], 4, 3, padding=1)],
    }.get(len(shape), [])
    x = torch.randn(4, *shape)
    for layer in layers:
        assert movement(GroupPooling(layer, group, reduction), group, x) <= INVARIANT
        assert group.order == 1 or movement(layer, group, x) > 100 * INVARIANT


@every_reduction
def test_gradients_of_pooling_are_those_of_finite_differences(reduction):
    pooled = GroupPooling(nn.Conv2d(2, 2, 2), CyclicRotation(4), reduction).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(pooled, {"layer.weight": weight, "layer.bias": bias}, (x,))

    assert torch.autograd.gradcheck(outputs, (x, *pooled.parameters()))


def test_pooling_holds_the_layer_and_its_settings():
    layer = nn.Linear(4, 3)
    pooled = GroupPooling(layer, Flip(), "mean")
    assert pooled.layer is layer
    assert list(pooled.state_dict()) == ["layer.weight", "layer.bias"]
    assert "Flip(dim=-1)" in repr(pooled)
    assert "mean" in repr(pooled)


def test_pooling_takes_what_is_no_floating_point():
    pooled = GroupPooling(nn.Embedding(10, 4), Flip(1))
    tokens = torch.randint(10, (3, 5))
    assert movement(pooled, Flip(1), tokens) <= INVARIANT


def test_pooling_can_be_copied_and_pickled():
    pooled = GroupPooling(nn.Linear(4, 3), Flip(), logsumexp)
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(pooled), pickle.loads(pickle.dumps(pooled))):
        assert_exact(other(x), pooled(x))
        assert other.layer is not pooled.layer


def test_pooling_takes_one_sample_and_none():
    pooled = GroupPooling(nn.Linear(4, 3), Flip())
    x = torch.randn(3, 4)
    assert_linear(pooled(x[:1]), pooled(x)[:1])
    assert pooled(x[:0]).shape == (0, 3)


class RowsMerged(nn.Module):
    """Makes one row of each two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) // 2, -1)


@pytest.mark.parametrize("layer", [nn.Flatten(0), RowsMerged()], ids=["more rows", "fewer rows"])
def test_pooling_refuses_a_layer_that_returns_another_number_of_rows(layer):
    with pytest.raises(ValueError, match="row"):
        GroupPooling(layer, Flip())(torch.randn(4, 6))


def test_pooling_refuses_a_layer_that_returns_no_tensor():
    with pytest.raises(ValueError, match=r"one tensor.*got tuple"):
        GroupPooling(nn.LSTM(4, 6, batch_first=True), Flip(1))(torch.randn(3, 5, 4))


def test_pooling_hands_on_what_the_group_says_about_the_shape():
    with pytest.raises(ValueError, match=r"turns square images: got images of shape \(8, 6\)"):
        GroupPooling(nn.Conv2d(1, 2, 3), CyclicRotation(4))(torch.randn(3, 1, 8, 6))


# What both refuse


@dataclass(frozen=True)
class Shifts(Group):
    """All shifts of the values by a number: a group without end."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g + h

    def inverse(self, g: Tensor) -> Tensor:
        return -g

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 1, generator=rng, dtype=torch.float64)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return x + g.to(x.dtype)


both = pytest.mark.parametrize(
    "build", [GroupPooling, lambda model, group, reduction="max": tie_first_layer(model, group, reduction=reduction)]
)


@both
@pytest.mark.parametrize("group", [Shifts(), "rotation", None, CyclicRotation], ids=repr)
def test_what_is_no_finite_group_is_refused_at_once(build, group):
    model = nn.Linear(4, 3)
    with pytest.raises(TypeError, match="FiniteGroup"):
        build(model, group)
    assert hooks_of(model) == 0


@both
@pytest.mark.parametrize("reduction", ["sum", "", None, 3, ["max"]], ids=repr)
def test_an_unknown_reduction_is_refused_at_once(build, reduction):
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"reduction must be.*max.*mean"):
        build(model, Flip(), reduction)
    assert hooks_of(model) == 0


def test_these_tests_notice_a_pooling_that_forgets_elements(monkeypatch):
    monkeypatch.setattr(pooling, "pool", broken_pool)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(128, 6))
    x = torch.randn(4, 2, 8, 8)
    assert movement(GroupPooling(layer, CyclicRotation(4)), CyclicRotation(4), x) > 100 * INVARIANT


# The largest of an orbit


def orbits(dtype: torch.dtype = torch.float64) -> Tensor:
    """Outputs over an orbit of four, of which some are equally large."""
    return torch.randint(3, (4, 5, 6)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_where_several_are_largest_each_has_an_equal_share_of_the_gradient(dtype):
    """So that the gradient moves with the input, as a saliency map has to."""
    orbit, gradient = orbits(dtype).requires_grad_(), torch.randn(5, 6).to(dtype)
    pooled = GroupPooling(nn.Identity(), CyclicPermutation(4, dim=1))
    outputs = pooling.reduced(orbit, pooled.reduction)
    (found,) = torch.autograd.grad(outputs, orbit, gradient)
    expected, shared = torch.zeros(4, 5, 6, dtype=torch.float64), 0
    for n in range(5):
        for i in range(6):
            values = orbit[:, n, i].tolist()
            largest = [g for g, value in enumerate(values) if value == max(values)]
            shared += len(largest) > 1
            assert float(outputs[n, i].detach()) == max(values)
            for g in largest:
                expected[g, n, i] = float(gradient[n, i]) / len(largest)
    assert shared > 10
    assert found.dtype == dtype
    assert_linear(found, expected.to(dtype))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # which torch itself calls
def test_derivatives_of_the_largest_are_those_of_finite_differences():
    orbit = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def squared(orbit: Tensor) -> Tensor:
        return pooling.reduced(orbit, "max").square()

    assert torch.autograd.gradcheck(squared, (orbit,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(squared, (orbit,))


def test_the_largest_is_vectorised_and_compiled():
    orbit = torch.stack([orbits(), orbits()])
    found = vmap(grad(lambda orbit: pooling.reduced(orbit, "max").square().sum()))(orbit)
    torch._dynamo.reset()
    compiled = torch.compile(pooling.reduced, backend="aot_eager", fullgraph=True)
    for each, gradient in zip(orbit, found, strict=True):
        expected = each.clone().requires_grad_()
        expected.amax(0).square().sum().backward()
        assert_linear(gradient, expected.grad)
        again = each.clone().requires_grad_()
        compiled(again, "max").square().sum().backward()
        assert_linear(again.grad, expected.grad)
    torch._dynamo.reset()


def test_what_is_no_number_stays_so_in_the_largest():
    orbit = torch.tensor([[1.0, float("nan")], [2.0, 1.0]], requires_grad=True)
    found = pooling.reduced(orbit, "max")
    assert found.isnan().tolist() == [False, True]
    found.sum().backward()
    assert orbit.grad.isnan().tolist() == [[False, True], [False, True]]
