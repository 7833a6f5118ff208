"""Do symmetric weights make a plain network exactly invariant, and does it train as one?"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils import parametrize

from invreg import (
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    OnKeys,
    SignFlip,
    Trivial,
    tie_first_layer,
)
from invreg import symmetrize as symmetrize_by_default
from tests import oracle
from tests.groups.catalogue import CATALOGUE
from tests.movement import INVARIANT, hooks_of, movement
from tests.test_preserve import state_of
from tests.tolerances import assert_exact, assert_linear


def perceptron(entries: int, *widths: int, classes: int = 5, between: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    layers, size = [nn.Flatten()], entries
    for width in widths:
        layers += [nn.Linear(size, width), between()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 1, 4, 4, dtype=dtype)


def symmetrize(model, group, inputs, **options):
    """With the group's elements on all hidden layers, which is the hardest case, unless the test says otherwise."""
    hidden = sum(isinstance(module, nn.Linear) for module in model.modules()) - 1 if isinstance(model, nn.Module) else 0
    return symmetrize_by_default(model, group, inputs, **({"equivariant": hidden} if hidden > 0 else {}) | options)


GROUPS = {
    "rotations": CyclicRotation(4),
    "dihedral": Dihedral(4),
    "s3": FiniteGroup.from_permutations([[1, 2, 0, 3], [1, 0, 2, 3]]),
    "signed rotations": CyclicRotation(4) * SignFlip(),
    "signs": SignFlip(),
}
"""Groups that act on images (1, 4, 4): with orbits of several sizes, not abelian, with signs."""

each_group = pytest.mark.parametrize("group", list(GROUPS.values()), ids=list(GROUPS))


# Invariance


@pytest.mark.parametrize(
    ("group", "shape"),
    [
        pytest.param(entry.group, shape, id=f"{entry.name}-on-{'x'.join(map(str, shape))}")
        for entry in CATALOGUE
        for shape in entry.shapes
        if entry.group.exact
    ],
)
@pytest.mark.parametrize("equivariant", [None, 1])
def test_a_symmetric_network_is_invariant_and_not_constant(group, shape, equivariant):
    x = torch.randn(4, *shape)
    model = perceptron(x[0].numel(), group.order + 5, 3 * group.order + 1)
    assert group.order == 1 or movement(model, group, x) > 10 * INVARIANT
    symmetrize(model, group, x, equivariant=equivariant)
    assert movement(model, group, x) <= INVARIANT
    assert model(x).std(0).max() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 4e-2)])
@each_group
def test_a_network_of_another_dtype_is_invariant_in_it(group, dtype, tolerance):
    model, x = perceptron(16, 19, 24).to(dtype), images(dtype=dtype)
    symmetrize(model, group, x)
    assert model[1].weight.dtype == model(x).dtype == dtype
    assert movement(model, group, x) <= tolerance


@pytest.mark.parametrize(("widths", "carrying"), [((8,), 1), ((8, 8), 1), ((8, 8, 8), 2)])
def test_by_default_all_hidden_layers_but_the_last_carry_the_elements(widths, carrying):
    explicit, x = perceptron(16, *widths), images()
    default = copy.deepcopy(explicit)
    symmetrize(explicit, CyclicRotation(4), x, equivariant=carrying)
    assert symmetrize_by_default(default, CyclicRotation(4), x).layers == [str(1 + 2 * i) for i in range(carrying + 1)]
    assert_exact(default(x), explicit(x))


def test_averages_of_low_precision_are_taken_in_a_higher_one():
    layer = nn.Linear(64, 1).bfloat16()
    expected = layer.weight.float().mean().bfloat16()
    symmetrize(layer, CyclicTranslation(64), torch.randn(2, 64, dtype=torch.bfloat16), rescale=False)
    assert_exact(layer.weight, expected.expand(1, 64).contiguous())


def test_a_network_is_invariant_under_autocast():
    model, x = perceptron(16, 19, 24), images()
    symmetrize(model, CyclicRotation(4), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert movement(model, CyclicRotation(4), x) <= 4e-2


def test_the_linear_invariant_model_is_constant_along_orbits():
    model, x = perceptron(16), images()
    weight = model[1].weight.detach().clone()
    symmetric = symmetrize(model, CyclicRotation(4), x, rescale=False)
    assert symmetric.layers == ["1"]
    turned = torch.stack([weight.view(5, 4, 4).rot90(k, (1, 2)) for k in range(4)])
    assert_linear(model[1].weight, turned.mean(0).view(5, 16))
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


def test_weights_under_negation_vanish_where_units_are_invariant():
    model = nn.Linear(6, 3)
    symmetrize(model, SignFlip(), torch.randn(2, 6))
    assert_exact(model.weight, torch.zeros(3, 6))
    assert model.bias.abs().min() > 0


def test_units_left_over_and_those_behind_the_bottleneck_are_invariant_each():
    model, x = perceptron(16, 10, 8, 6), images()
    symmetric = symmetrize(model, CyclicRotation(4), x, equivariant=1)
    assert symmetric.layers == ["1", "3"]
    for end, where in ((3, slice(8, 10)), (4, slice(0, 8))):
        part = model[:end]
        assert movement(lambda x, part=part, where=where: part(x)[:, where], CyclicRotation(4), x) <= INVARIANT
    assert movement(lambda x: model[:3](x)[:, :8], CyclicRotation(4), x) > 0.1
    assert not parametrize.is_parametrized(model[5])


def test_units_are_filters_in_all_their_transforms():
    model, x = perceptron(16, 8, 8), images()
    symmetrize(model, CyclicRotation(4), x)
    for end in (3, 5):
        at_x, at_gx = model[:end](x), model[:end](x.rot90(1, (2, 3)))
        assert_linear(at_gx.view(4, 2, 4), at_x.view(4, 2, 4).roll(1, 2))


def test_the_trivial_group_changes_nothing():
    model, x = perceptron(16, 8), images()
    before = state_of(model)
    assert symmetrize(model, Trivial(), x).layers == []
    assert state_of(model) == before


class Residual(nn.Module):
    """A perceptron whose second block skips."""

    def __init__(self, first: int = 12, second: int = 12) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(16, first), nn.Linear(first, second), nn.Linear(second, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem((x.flatten(1) - 0.1) / 2).relu()
        return self.head(h + self.block(h).relu())


def test_a_skip_between_hidden_layers_of_one_width_is_invariant():
    model, x = Residual(), images()
    symmetrize(model, Dihedral(4), x)
    assert movement(model, Dihedral(4), x) <= INVARIANT


@pytest.mark.parametrize(
    "between",
    [nn.Dropout, nn.PReLU, lambda: nn.LayerNorm(12, elementwise_affine=False)],
    ids=["dropout", "prelu", "norm"],
)
def test_what_treats_units_alike_may_stand_between(between):
    model, x = perceptron(16, 12, 12, between=between), images()
    symmetrize(model, CyclicRotation(4), x)
    assert movement(model.eval(), CyclicRotation(4), x) <= INVARIANT


# The average


def matrices_of(group: FiniteGroup, shape: tuple[int, ...]) -> list[np.ndarray]:
    """How each element moves the entries of a flattened sample: its columns are the images of unit vectors."""
    size = int(np.prod(shape))
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    return [group.act(g, units).reshape(size, size).T.numpy() for g in group.elements()]


def expected_average(group: FiniteGroup, values: list[np.ndarray], sizes: list[int]) -> list[np.ndarray]:
    """Weights and biases averaged by the oracle, for a stack from images to units of these sizes to classes."""
    table = group.cayley_table().tolist()
    spaces = [matrices_of(group, (1, 4, 4)), *(oracle.unit_matrices(table, size) for size in sizes)]
    still = [np.eye(1)] * group.order
    spaces.append([np.eye(5)] * group.order)
    averaged = []
    for layer, (entering, leaving) in enumerate(pairwise(spaces)):
        averaged.append(oracle.group_average(values[2 * layer], leaving, entering))
        averaged.append(oracle.group_average(values[2 * layer + 1][:, None], leaving, still)[:, 0])
    return averaged


def held(model: nn.Module) -> list[Tensor]:
    """The weights and biases that a stack computes with, in order."""
    return [getattr(layer, name) for layer in model if isinstance(layer, nn.Linear) for name in ("weight", "bias")]


@each_group
def test_weights_become_the_average_over_the_group(group):
    model, x = perceptron(16, 19, 24).double(), images(dtype=torch.float64)
    values = [value.detach().numpy().copy() for value in held(model)]
    symmetrize(model, group, x, rescale=False)
    for actual, expected in zip(held(model), expected_average(group, values, [19, 24]), strict=True):
        assert_linear(actual, torch.from_numpy(expected))


@each_group
def test_gradients_are_the_average_of_the_plain_network_s(group):
    model, x = perceptron(16, 19, 24).double(), images(dtype=torch.float64)
    symmetrize(model, group, x)
    plain = perceptron(16, 19, 24).double()
    for value, symmetric in zip(held(plain), held(model), strict=True):
        value.data.copy_(symmetric)
    for each in (model, plain):
        each(x).square().sum().backward()
    gradients = [value.grad.numpy() for value in held(plain)]
    assert max(abs(gradient).max() for gradient in gradients) > 0.1
    expected = expected_average(group, gradients, [19, 24])
    for layer, (name, value) in zip(
        [layer for layer in model if isinstance(layer, nn.Linear) for _ in range(2)],
        list(zip(["weight", "bias"] * 3, expected, strict=True)),
        strict=True,
    ):
        parameter = layer.parametrizations[name].original if parametrize.is_parametrized(layer, name) else layer.bias
        assert_linear(parameter.grad, torch.from_numpy(value))


forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
"""torch scripts decompositions of its own when it first differentiates forwards."""


@forward_mode
@each_group
def test_derivatives_of_first_and_second_order_are_those_of_finite_differences(group):
    layer = nn.Linear(16, 19).double()
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(19, 2).double())
    symmetrize(model, group, images(dtype=torch.float64))
    average = layer.parametrizations.weight[0]
    weight = torch.randn(19, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: average(w).sin(), weight, check_forward_ad=True)
    if group.order == 2:  # slow
        assert torch.autograd.gradgradcheck(lambda w: average(w).sin(), weight)


@forward_mode
def test_transforms_of_functions_agree_with_one_another():
    model, x = perceptron(16, 10, 8).double(), images(dtype=torch.float64)
    symmetrize(model, Dihedral(4), x)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, weights, (x[None],)).square().sum()

    backward = vmap(jacrev(loss), (None, 0))(weights, x)
    forward = vmap(jacfwd(loss), (None, 0))(weights, x)
    for name, each in vmap(grad(loss), (None, 0))(weights, x).items():
        assert each.abs().max() > 0
        assert_linear(each, forward[name])
        assert_linear(each, backward[name])
        assert_linear(each[0], grad(loss)(weights, x[0])[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each_group
def test_what_is_symmetric_already_drifts_by_a_few_roundings_at_most_however_often_it_is_averaged(group, dtype):
    model, x = perceptron(16, 19, 24).to(dtype), images(dtype=dtype)
    symmetrize(model, group, x)
    values = [value.detach().clone() for value in held(model)]
    for _ in range(500):
        for layer in model[1], model[3], model[5]:
            layer.weight = layer.weight.detach()
    for actual, expected in zip(held(model), values, strict=True):
        torch.testing.assert_close(actual, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_what_is_assigned_is_kept_as_its_average():
    model = perceptron(16, 8)
    symmetrize(model, CyclicRotation(4), images())
    model[1].weight = torch.randn(8, 16)
    assert_linear(model[1].parametrizations.weight.original, model[1].weight)


def test_symmetrising_again_does_not_scale_again():
    model, x = perceptron(16, 19, 24), images()
    symmetrize(model, Dihedral(4), x).remove()
    values = [value.detach().clone() for value in held(model)]
    symmetrize(model, Dihedral(4), x)
    for actual, expected in zip(held(model), values, strict=True):
        assert_linear(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rescaled_weights_keep_their_deviation_and_biases_are_averaged_only(dtype):
    model, x = perceptron(16, 130, 66).to(dtype), images(dtype=dtype)
    with torch.no_grad():
        model[3].weight /= 100  # so that squares vanish in float16
    plain = copy.deepcopy(model)
    before = [float(value.detach().std()) for value in held(model)]
    symmetrize(model, CyclicRotation(4), x)
    symmetrize(plain, CyclicRotation(4), x, rescale=False)
    for actual, averaged, deviation in zip(held(model)[::2], held(plain)[::2], before[::2], strict=True):
        assert abs(float(actual.detach().std()) / deviation - 1) < 0.03
        assert float(averaged.detach().std()) / deviation < 0.7
    for actual, averaged in zip(held(model)[1::2], held(plain)[1::2], strict=True):
        assert_exact(actual, averaged)


def test_weights_of_zero_stay_zero():
    model, x = perceptron(16, 8), images()
    nn.init.zeros_(model[3].weight)
    symmetrize(model, CyclicRotation(4), x)
    assert_exact(model[3].weight, torch.zeros(5, 8))


def test_the_average_of_a_filter_makes_no_copy_per_element():
    group = CyclicTranslation(64)
    model, x = perceptron(64, 256), torch.randn(2, 64)
    symmetrize(model, group, x)
    average, weight = model[1].parametrizations.weight[0], model[1].weight.detach()
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    with Sizes():
        average(weight)
    assert max(sizes) == weight.numel()


# Training


OPTIMISERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 1, 4, 4, generator=rng), torch.arange(16) % 5
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("make", list(OPTIMISERS.values()), ids=list(OPTIMISERS))
@pytest.mark.parametrize("before", [True, False], ids=["made before", "made after"])
def test_an_optimiser_trains_it_and_it_stays_symmetric_after_it_is_removed_too(make, before):
    model, x, group = perceptron(16, 19, 24), images(), CyclicTranslation(4) * Flip(-2)
    parameters = list(map(id, held(model)))
    optimiser = make(model.parameters()) if before else None
    symmetric = symmetrize(model, group, x)
    optimiser = optimiser or make(model.parameters())
    losses = train(model, optimiser, 300)
    assert losses[-1] < 0.9 * losses[0]
    assert movement(model, group, x) <= INVARIANT
    for layer in model[1], model[3], model[5]:  # what is trained is symmetric itself
        torch.testing.assert_close(layer.parametrizations.weight.original, layer.weight, rtol=1e-4, atol=1e-5)
    expected = model(x)
    symmetric.remove()
    assert_exact(model(x), expected)
    assert list(map(id, held(model))) == parameters
    assert movement(model, group, x) <= INVARIANT
    weight = model[1].weight.detach().clone()
    train(model, optimiser, 1)
    assert not torch.equal(model[1].weight, weight)


# What is left alone, copied, saved


def test_keys_are_torch_s_and_indices_are_no_state():
    model, x = perceptron(16, 8), images()
    keys = list(model.state_dict())
    symmetric = symmetrize(model, CyclicRotation(4), x)
    original = "parametrizations.{}.original"
    assert sorted(model.state_dict()) == sorted(
        ["1." + original.format("weight"), "1." + original.format("bias"), "3." + original.format("weight"), "3.bias"]
    )
    symmetric.remove()
    assert sorted(model.state_dict()) == sorted(keys)
    assert type(model[1]) is nn.Linear


def test_a_state_dict_goes_round_and_weights_that_are_not_symmetric_are_averaged():
    x = images()
    model, other = perceptron(16, 8), perceptron(16, 8)
    symmetric = [symmetrize(each, CyclicRotation(4), x) for each in (model, other)]
    other.load_state_dict(model.state_dict())
    assert_exact(other(x), model(x))
    other.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    assert movement(other, CyclicRotation(4), x) <= INVARIANT
    symmetric[1].remove()
    assert movement(other, CyclicRotation(4), x) <= INVARIANT


def test_a_copy_is_symmetric_and_on_its_own():
    model, x = perceptron(16, 8), images()
    symmetric = symmetrize(model, CyclicRotation(4), x)
    other = copy.deepcopy(model)
    expected = model(x).detach()
    assert_exact(other(x), expected)
    train(other, torch.optim.SGD(other.parameters(), lr=1.0), 2)
    assert movement(other, CyclicRotation(4), x) <= INVARIANT
    assert_exact(model(x), expected)
    trained = other(x)
    symmetric.remove()
    assert_exact(other(x), trained)
    assert parametrize.is_parametrized(other[1], "weight")
    assert not parametrize.is_parametrized(model[1])


def test_indices_move_with_the_model():
    model = perceptron(16, 10)
    symmetrize(model, CyclicRotation(4) * SignFlip(), images())
    model.to("meta")
    assert not any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model[1].weight.device.type == "meta"


def test_weights_are_averaged_once_where_torch_caches_them():
    model, x = perceptron(16, 8), images()
    symmetrize(model, CyclicRotation(4), x)
    expected = model(x)
    with parametrize.cached():
        assert model[1].weight is model[1].weight
        assert_exact(model(x), expected)


def test_it_compiles_to_one_graph_with_the_same_gradients():
    model, x = perceptron(16, 10), images()
    symmetrize(model, CyclicRotation(4) * SignFlip(), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for each in (model, compiled):
        model.zero_grad()
        each(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert_linear(compiled(x), model(x))
    for actual, expected in zip(*gradients, strict=True):
        assert_linear(actual, expected)


def test_it_lasts_for_a_block_and_its_end_comes_once():
    model, x = perceptron(16, 8), images()
    with symmetrize(model, CyclicRotation(4), x) as symmetric:
        assert repr(symmetric) == "Symmetrization(CyclicRotation(order=4), layers: ['1', '3'])"
        assert parametrize.is_parametrized(model[1])
    assert not any(map(parametrize.is_parametrized, model))
    assert repr(symmetric) == "Symmetrization(CyclicRotation(order=4), layers: removed)"
    symmetric.remove()


def test_only_weights_change():
    model, x = perceptron(16, 8), images()
    model(x).sum().backward()
    model[2].eval()
    before, weights = state_of(model), [value.detach().clone() for value in held(model)]
    symmetrize(model, CyclicRotation(4), x).remove()
    for value, weight in zip(held(model), weights, strict=True):
        value.data.copy_(weight)
    assert state_of(model) == before


@pytest.mark.parametrize("first", ["tied", "symmetric"])
def test_a_symmetric_network_may_be_tied_too(first):
    model, x = perceptron(16, 8, 8), images()
    for verb in ("tied", "symmetric") if first == "tied" else ("symmetric", "tied"):
        tie_first_layer(model, CyclicRotation(4)) if verb == "tied" else symmetrize(model, CyclicRotation(4), x)
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


# What is refused


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x.flatten(1)).relu())


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.shift = perceptron(16, 8), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.shift)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


ROTATIONS = CyclicRotation(4)

WRONG: dict[str, tuple[Callable[[], nn.Module], FiniteGroup, dict[str, int], type[Exception], str]] = {
    "no layers": (nn.Flatten, ROTATIONS, {}, ValueError, "meets no torch.nn.Linear"),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), perceptron(16, 8)),
        ROTATIONS,
        {},
        ValueError,
        r"'0' \(Conv2d\)",
    ),
    "twice": (Twice, ROTATIONS, {}, ValueError, "'layer' is used again"),
    "parametrised": (
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))),
        ROTATIONS,
        {},
        ValueError,
        "'1' must have a plain weight",
    ),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), ROTATIONS, {}, ValueError, "call it once"),
    "narrow first": (lambda: perceptron(16, 3, 8), ROTATIONS, {}, ValueError, "'1' must have .* 4 elements .* has 3"),
    "narrow later": (lambda: perceptron(16, 8, 3), ROTATIONS, {}, ValueError, "'3' must .* pass equivariant=1"),
    "none equivariant": (lambda: perceptron(16, 8), ROTATIONS, {"equivariant": 0}, ValueError, "got 0"),
    "too many equivariant": (
        lambda: perceptron(16, 8),
        ROTATIONS,
        {"equivariant": 2},
        ValueError,
        "model has 1: got 2",
    ),
    "interpolates": (lambda: perceptron(16, 8), CyclicRotation(8), {}, ValueError, "interpolates or rounds"),
    "part of the sample": (
        lambda: nn.Sequential(nn.AvgPool2d(2), perceptron(4, 8)),
        ROTATIONS,
        {},
        ValueError,
        r"'1.1' must take all the 16 entries of a sample of shape \(1, 4, 4\)",
    ),
    "affine norm": (
        lambda: perceptron(16, 8, between=lambda: nn.LayerNorm(8)),
        ROTATIONS,
        {},
        ValueError,
        "not invariant .* elementwise_affine=False",
    ),
    "batch norm": (lambda: perceptron(16, 8, between=lambda: nn.BatchNorm1d(8)), ROTATIONS, {}, ValueError, "not inv"),
    "batch norm without parameters": (
        lambda: perceptron(16, 8, between=lambda: nn.BatchNorm1d(8, affine=False)),
        ROTATIONS,
        {},
        ValueError,
        "not invariant",
    ),
    "batch statistics": (
        lambda: perceptron(16, 8, between=lambda: nn.BatchNorm1d(8, affine=False, track_running_stats=False)),
        ROTATIONS,
        {},
        ValueError,
        "not invariant",
    ),
    "positions": (Positions, ROTATIONS, {}, ValueError, "parameters per position"),
    "skip over the bottleneck": (Residual, ROTATIONS, {"equivariant": 1}, ValueError, "skip connection"),
    "two outputs": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Pair(8, 8)),
        ROTATIONS,
        {},
        TypeError,
        "one tensor of floating-point numbers: got tuple",
    ),
    "not finite": (
        lambda: nn.Sequential(perceptron(16, 8), nn.Softplus(), nn.Threshold(1e30, float("nan"))),
        ROTATIONS,
        {},
        ValueError,
        "not finite",
    ),
    "keys": (lambda: perceptron(16, 8), OnKeys({"a": ROTATIONS}), {}, TypeError, "acts on one tensor"),
    "no group": (lambda: perceptron(16, 8), 4, {}, TypeError, "got 4"),
}


@pytest.mark.parametrize(("make", "group", "options", "error", "message"), list(WRONG.values()), ids=list(WRONG))
def test_what_cannot_be_symmetric_is_refused_and_left_as_it_was(make, group, options, error, message):
    model, x = make(), images()
    lazy = any(isinstance(module, nn.LazyLinear) for module in model.modules())
    before, hooks = None if lazy else state_of(model), hooks_of(model)
    with pytest.raises(error, match=message):
        symmetrize(model, group, x, **options)
    assert hooks_of(model) == hooks
    assert lazy or state_of(model) == before
    assert not any(type(module) is nn.Linear and parametrize.is_parametrized(module) for module in model.modules())


class Weighted(nn.Module):
    """Weighs the columns of an image, and differently."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.columns


def test_inputs_that_nothing_moves_hide_nothing():
    with pytest.raises(ValueError, match="not invariant"):
        symmetrize(nn.Sequential(Weighted(), perceptron(16, 8)), ROTATIONS, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (perceptron, images(), TypeError, "model must be a torch.nn.Module"),
        (perceptron(16, 8), [1.0], TypeError, "inputs must be a tensor"),
        (perceptron(16, 8), images(0), ValueError, r"at least one sample, .* \(0, 1, 4, 4\)"),
        (perceptron(16, 8), torch.randn(2, 1, 2, 8), ValueError, "square"),
    ],
    ids=["function", "list", "empty", "not square"],
)
def test_other_arguments_are_refused(model, inputs, error, message):
    with pytest.raises(error, match=message):
        symmetrize(model, ROTATIONS, inputs)


def repeated(x: Tensor) -> Tensor:
    return x[..., :1].expand_as(x)


def shifted(x: Tensor) -> Tensor:
    return x.roll(1, -1) + (x.abs() < 1).to(x.dtype)  # which the numbered entries do not show


def doubled(x: Tensor) -> Tensor:
    return 2 * x


@dataclass(frozen=True)
class Pretending(CyclicTranslation):
    """Says that it moves entries, and does more."""

    does: Callable[[Tensor], Tensor] = doubled

    def orbit(self, x: Tensor, *, identity: bool = True) -> Tensor:
        return torch.stack([x, *(self.does(x) for _ in range(self.order - 1))])


@pytest.mark.parametrize("does", [repeated, shifted, doubled])
def test_a_group_that_does_more_than_it_says_is_refused(does):
    with pytest.raises(ValueError, match="does more to samples of shape"):
        symmetrize(perceptron(16, 8), Pretending(2, does=does), images())
