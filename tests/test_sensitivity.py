"""Is it the largest singular value of each sample's Jacobian, and is the model found as it was left?"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

from invreg.sensitivity import jacobian_spectral_norm, spectral_norms
from tests import oracle
from tests.models import SmallResNet, SmallViT
from tests.test_preserve import mixed, state_of
from tests.tolerances import assert_exact, assert_linear

both_ways = pytest.mark.parametrize("exact", [True, False], ids=["Gram matrix", "iteration"])


def mlp(entries: int, outputs: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers = nn.Flatten(), nn.Linear(entries, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, outputs)
    return nn.Sequential(*layers).to(dtype)


def of_singular_values(values: list[float], outputs: int, entries: int, dtype: torch.dtype = torch.float64):
    """A linear model whose matrix has these singular values and, beyond them, zeros."""
    left = torch.linalg.qr(torch.randn(outputs, outputs, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(entries, entries, dtype=torch.float64)).Q
    k = len(values)
    matrix = left[:, :k] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right[:k]
    return lambda x: x @ matrix.to(x.dtype).T


def relative_error(actual: Tensor, expected: float) -> float:
    assert actual.isfinite().all()
    return ((actual.double() - expected).abs() / expected).max().item()


# The value


@both_ways
@pytest.mark.parametrize(("entries", "outputs"), [(36, 1), (36, 5), (7, 50), (49, 48), (1, 9)])
def test_is_the_oracles_for_an_mlp(exact, entries, outputs):
    model, x = mlp(entries, outputs), torch.randn(4, entries, dtype=torch.float64)
    expected = [oracle.jacobian_spectral_norm(oracle.network_of(model), sample) for sample in x.numpy()]
    actual = jacobian_spectral_norm(model, x, exact=exact)
    assert actual.tolist() == pytest.approx(expected, rel=1e-9)
    assert max(expected) > 1.001 * min(expected)


@both_ways
def test_is_the_oracles_for_convolutions_with_many_outputs(exact):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3)).double()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    assert model(x).shape == (3, 3, 4, 4)
    expected = [oracle.jacobian_spectral_norm(oracle.network_of(model), sample) for sample in x.numpy()]
    assert jacobian_spectral_norm(model, x, exact=exact).tolist() == pytest.approx(expected, rel=1e-9)


@both_ways
@pytest.mark.parametrize("make", [lambda: SmallResNet(2, 5), lambda: SmallViT(2, 8, 8, patch=4)])
def test_agrees_with_whole_jacobians_of_usual_networks(exact, make):
    model, x = make().double(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    model(x)  # so that batch normalisation has statistics that are not its first ones
    model.eval()
    expected = [float(np.linalg.norm(jacrev(model)(one[None]).reshape(5, -1).detach().numpy(), 2)) for one in x]
    with sdpa_kernel(SDPBackend.MATH):
        assert jacobian_spectral_norm(model.train(), x, exact=exact).tolist() == pytest.approx(expected, rel=1e-9)


@both_ways
@pytest.mark.parametrize(("outputs", "entries"), [(3, 20), (20, 3), (40, 60), (60, 40)])
def test_a_linear_model_has_its_matrix_norm_everywhere(exact, outputs, entries):
    layer = nn.Linear(entries, outputs).double()
    expected = float(np.linalg.norm(layer.weight.detach().numpy(), 2))
    actual = jacobian_spectral_norm(layer, torch.randn(4, entries, dtype=torch.float64), exact=exact)
    assert actual.tolist() == pytest.approx([expected] * 4, rel=1e-12)


@both_ways
def test_the_samples_own_point_counts(exact):
    x = torch.tensor([[0.0, 1.0], [2.0, -3.0], [0.5, 0.25]], dtype=torch.float64)
    assert_linear(jacobian_spectral_norm(lambda v: v.square(), x, exact=exact), torch.tensor([2.0, 6.0, 1.0]).double())


@both_ways
@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 5), (6, 2, 4, 4)])
def test_outputs_of_any_shape_count_by_all_their_entries(exact, shape):
    x = torch.randn(6, 7, dtype=torch.float64)
    matrix = torch.randn(7, math.prod(shape[1:]), dtype=torch.float64)
    actual = jacobian_spectral_norm(lambda v: (v @ matrix).reshape(shape), x, exact=exact)
    assert_linear(actual, torch.full((6,), np.linalg.norm(matrix.numpy(), 2), dtype=torch.float64))


@both_ways
def test_a_sample_may_be_a_number(exact):
    x = torch.tensor([1.0, -2.0])
    assert_linear(jacobian_spectral_norm(lambda v: v.square(), x, exact=exact), torch.tensor([2.0, 4.0]))


@both_ways
def test_a_batch_is_measured_as_one_by_one(exact):
    model, x = mlp(12, 40), torch.randn(9, 12, dtype=torch.float64) * torch.logspace(-3, 2, 9).double()[:, None]
    together = jacobian_spectral_norm(model, x, exact=exact)
    assert_linear(together, torch.cat([jacobian_spectral_norm(model, one[None], exact=exact) for one in x]))
    assert len(set(together.tolist())) == 9


def test_few_outputs_go_the_exact_way_and_many_the_other():
    class Spy(torch.autograd.Function):
        backwards = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            Spy.backwards += 1
            return gradient

    def backwards(outputs: int, **options) -> int:
        Spy.backwards = 0
        weight = torch.randn(500, outputs)
        jacobian_spectral_norm(lambda x: Spy.apply(x) @ weight, torch.randn(2, 500), **options)
        return Spy.backwards

    assert backwards(32) == backwards(32, exact=True) == 33  # one is for the check that samples keep apart
    assert backwards(400, exact=True) == 401
    assert 0 < backwards(400) < 200


# Where iterations have a hard time


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1 - 1e-3, 0.9, 0.5],
        [1.0, 1 - 1e-6, 0.9, 0.5],
        [1.0, 1 - 1e-9, 0.9, 0.5],
        [1.0, 1.0, 1.0, 0.99, 0.5],
        [1.0] * 80,
        np.linspace(1, 0.99, 80).tolist(),
        np.linspace(1, 0.99, 79).tolist(),
        np.linspace(1, 0, 80).tolist(),
        [1.0],
        [1.0, 1e-8],
    ],
    ids=[
        "1e-3",
        "1e-6",
        "1e-9",
        "threefold",
        "all equal",
        "crowded",
        "crowded above a zero",
        "even",
        "rank one",
        "rank two",
    ],
)
@pytest.mark.parametrize(("outputs", "entries"), [(90, 80), (80, 90)])
def test_close_equal_and_zero_singular_values(values, outputs, entries):
    for dtype, tolerance in {torch.float64: 1e-10, torch.float32: 1e-5}.items():
        model = of_singular_values([3.7 * value for value in values], outputs, entries)
        x = torch.randn(2, entries, dtype=dtype)
        assert relative_error(jacobian_spectral_norm(model, x, exact=False), 3.7) < tolerance


def test_close_singular_values_take_far_fewer_steps_than_power_iteration_would():
    model = of_singular_values(np.linspace(1, 0.99, 200).tolist(), 200, 200)
    x = torch.randn(1, 200, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="must end within 10 steps"):
        jacobian_spectral_norm(model, x, exact=False, steps=10)
    actual = jacobian_spectral_norm(model, x, exact=False, steps=150)  # the other would take some 100 000
    assert relative_error(actual, 1.0) < 1e-10


@both_ways
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_squares_neither_vanish_nor_overflow(exact, scale):
    model = of_singular_values([2.0, 1.0, 0.5], 40, 50)
    actual = jacobian_spectral_norm(lambda x: scale * model(x), torch.randn(2, 50), exact=exact)
    assert relative_error(actual, 2 * scale) < 1e-5


@both_ways
def test_a_zero_jacobian_has_norm_zero_also_beside_others(exact):
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [1.0, -1.0, -1.0]], dtype=torch.float64)
    expected = torch.tensor([2.0, 0.0, 2.0], dtype=torch.float64)
    assert_linear(jacobian_spectral_norm(lambda v: 2 * v.relu(), x, exact=exact), expected)


@both_ways
def test_a_jacobian_that_is_not_finite_gives_nan_for_that_sample_only(exact):
    x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], dtype=torch.float64)
    actual = jacobian_spectral_norm(lambda v: 3 * v.square().sum(1, keepdim=True).sqrt() + 0 * v, x, exact=exact)
    assert actual.isnan().tolist() == [False, True, False]
    assert_linear(actual[::2], torch.full((2,), 3 * math.sqrt(3), dtype=torch.float64))


@both_ways
def test_a_jacobian_beyond_the_models_dtype_gives_nan(exact):
    def model(x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:2] * 300 * 400, 0 * x], 1)  # one derivative of 120 000, on the way back infinity

    rng = torch.Generator().manual_seed(0)
    actual = jacobian_spectral_norm(model, torch.zeros(2, 40).half(), exact=exact, rng=rng)
    assert actual.isnan().all()


def test_too_few_steps_are_told_and_enough_suffice():
    model, x = mlp(50, 60), torch.randn(3, 50, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"must end within 3 steps: 3 of 3 samples .* steps=, or exact=True"):
        jacobian_spectral_norm(model, x, exact=False, steps=3)
    enough = jacobian_spectral_norm(model, x, exact=False, steps=50)  # as many as there are inputs always suffice
    assert_linear(enough, jacobian_spectral_norm(model, x, exact=True))


def test_the_start_comes_from_the_generator_given():
    model, x = mlp(50, 60), torch.randn(3, 50, dtype=torch.float64)

    def measured(seed: int) -> Tensor:
        return jacobian_spectral_norm(model, x, exact=False, rng=torch.Generator().manual_seed(seed))

    assert_exact(measured(1), measured(1))
    assert any(not torch.equal(measured(1), measured(seed)) for seed in range(2, 8))
    assert_linear(measured(1), measured(2))


# Dtypes


@both_ways
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)],
    ids=str,
)
def test_is_float32_or_wider_and_as_exact_as_the_model(exact, dtype, tolerance):
    model, x = mlp(20, 40, dtype), torch.randn(3, 20).to(dtype)
    network = oracle.network_of(model)
    expected = [oracle.jacobian_spectral_norm(network, sample) for sample in x.double().numpy()]
    actual = jacobian_spectral_norm(model, x, exact=exact)
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert actual.tolist() == pytest.approx(expected, rel=tolerance)


@both_ways
def test_autocast_is_for_the_model_only(exact):
    x, weight, seen = torch.randn(3, 50), torch.randn(50, 40), []
    kept = jacobian_spectral_norm(lambda v: v.cumsum(1) * 1.7, x, exact=exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_exact(jacobian_spectral_norm(lambda v: v.cumsum(1) * 1.7, x, exact=exact), kept)  # nothing to cast
        jacobian_spectral_norm(lambda v: seen.append((v @ weight).dtype) or v, x, exact=exact)
    assert seen == [torch.bfloat16]


# Models as people have them


@both_ways
def test_a_model_may_write_to_its_inputs(exact):
    x = torch.randn(3, 6, dtype=torch.float64)
    before = x.clone()
    layer = nn.Linear(6, 4).double()
    model = nn.Sequential(nn.ReLU(inplace=True), layer, nn.ReLU(inplace=True))
    expected = [(layer.weight * (layer(v.relu()) > 0)[:, None] * (v > 0)).detach().numpy() for v in before]
    actual = jacobian_spectral_norm(model, x, exact=exact)
    assert actual.tolist() == pytest.approx([float(np.linalg.norm(j, 2)) for j in expected], rel=1e-9)
    assert_exact(x, before)
    assert not x.requires_grad


@both_ways
def test_works_whatever_the_callers_gradient_mode(exact):
    model, x = mlp(6, 5), torch.randn(3, 6, dtype=torch.float64)
    expected = jacobian_spectral_norm(model, x, exact=exact)
    with torch.no_grad():
        assert_exact(jacobian_spectral_norm(model, x, exact=exact), expected)
    with torch.inference_mode():
        assert_exact(jacobian_spectral_norm(model, x + 0, exact=exact).clone(), expected)
        made_here = x + 0
    assert_exact(jacobian_spectral_norm(model, made_here, exact=exact), expected)
    assert_exact(jacobian_spectral_norm(copy.deepcopy(model).requires_grad_(False), x, exact=exact), expected)
    assert_exact(jacobian_spectral_norm(model, x.clone().requires_grad_() * 1, exact=exact), expected)
    assert not expected.requires_grad


@both_ways
def test_a_model_may_decide_by_its_values(exact):
    x = torch.ones(2, 3)
    actual = jacobian_spectral_norm(lambda v: v * (2 if v.sum().item() > 0 else 3), x, exact=exact)
    assert_linear(actual, torch.full((2,), 2.0))


def test_the_model_is_called_once_with_the_batch():
    calls = []
    for exact in (True, False):
        jacobian_spectral_norm(lambda v: calls.append(v.shape) or v.sin(), torch.randn(3, 40), exact=exact)
    assert calls == [(3, 40)] * 2


@both_ways
def test_batch_normalisation_and_dropout_are_measured_in_eval_mode_and_everything_is_as_before(exact):
    model, x = mixed(), torch.randn(5, 1, 4, 4)
    before, objects = state_of(model), [id(p.grad) for p in model.parameters()]
    actual = jacobian_spectral_norm(model, x, exact=exact)
    assert state_of(model) == before
    assert [id(p.grad) for p in model.parameters()] == objects
    assert_linear(actual, jacobian_spectral_norm(copy.deepcopy(model).eval(), x, exact=exact))


@both_ways
def test_everything_is_as_before_if_the_model_raises(exact):
    model, x = mixed(), torch.randn(5, 1, 4, 4)
    model.append(nn.Linear(4, 2))  # which does not fit
    before = state_of(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        jacobian_spectral_norm(model, x, exact=exact)
    assert state_of(model) == before


@both_ways
@pytest.mark.parametrize("wanted", [True, False])
def test_parameters_get_no_gradient(exact, wanted):
    model = mlp(6, 5).requires_grad_(wanted)
    jacobian_spectral_norm(model, torch.randn(3, 6, dtype=torch.float64), exact=exact)
    assert [(p.grad, p.requires_grad) for p in model.parameters()] == [(None, wanted)] * 6


# Models that cannot be measured


class Sine(torch.autograd.Function):
    """A sine whose backward shall not be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class RefusingSine(Sine):
    """A sine whose backward refuses to be recorded."""

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("not to be recorded")
        return gradient * ctx.saved_tensors[0].cos()


class HidingSine(Sine):
    """A sine whose backward cannot be differentiated and does not say so."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach() * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x + Sine.apply(x),
        RefusingSine.apply,
        lambda x: HidingSine.apply(1 * x),
        lambda x: x + HidingSine.apply(x),
    ],
    ids=["said so", "refused", "hidden", "hidden in part"],
)
def test_a_model_that_cannot_be_differentiated_twice_is_told_the_way_out(model):
    x = torch.randn(3, 40)
    with pytest.raises(RuntimeError, match=r"differentiate twice: got one that it cannot. Pass exact=True"):
        jacobian_spectral_norm(model, x)
    slope = torch.diagonal(torch.autograd.functional.jacobian(model, x[0]))
    assert_linear(jacobian_spectral_norm(model, x, exact=True)[0], slope.abs().max())


def test_memory_that_runs_out_is_told_as_such():
    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise torch.cuda.OutOfMemoryError("no memory left")

    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"^no memory left"):
        jacobian_spectral_norm(Greedy.apply, torch.randn(2, 3))


def test_attention_is_told_the_way_out():
    def model(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(2, 2, 6, 8)
    with pytest.raises(RuntimeError, match=r"twice: .*sdpa_kernel\(SDPBackend.MATH\).* It raised: .*attention") as told:
        jacobian_spectral_norm(model, x)
    assert isinstance(told.value.__cause__, RuntimeError)
    exact = jacobian_spectral_norm(model, x, exact=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert_linear(jacobian_spectral_norm(model, x), exact)


@both_ways
def test_a_model_that_cannot_be_differentiated_is_told_and_left_as_it_was(exact):
    model, x = mixed(), torch.randn(5, 1, 4, 4)
    model.append(nn.ReLU())
    model[-1].register_forward_hook(lambda _, __, output: output.mul_(2))
    before = state_of(model)
    with pytest.raises(RuntimeError, match=r"torch.autograd can differentiate: .* It raised: .*inplace operation"):
        jacobian_spectral_norm(model, x, exact=exact)
    assert state_of(model) == before


@both_ways
@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.zeros(len(x), 3),
        lambda x: x.detach() * 2,
        lambda x: torch.ones(2, requires_grad=True) * x.detach(),
        torch.no_grad()(lambda x: x * 2),
    ],
    ids=["constant", "detached", "weights only", "no_grad"],
)
def test_outputs_without_a_way_back_are_refused(exact, model):
    with pytest.raises(ValueError, match=r"must depend on the inputs .* without a way back. Take no_grad, detach"):
        jacobian_spectral_norm(model, torch.randn(3, 2), exact=exact)


@both_ways
@pytest.mark.parametrize(
    "model",
    [nn.BatchNorm1d(4, track_running_stats=False), lambda x: x - x.mean(0), lambda x: x.flip(0)],
    ids=["batch normalisation", "mean", "reversed"],
)
def test_a_model_that_mixes_samples_is_refused(exact, model):
    with pytest.raises(ValueError, match=r"each sample by itself: got outputs of the first .* running statistics"):
        jacobian_spectral_norm(model, torch.randn(3, 4), exact=exact)


# Bad arguments


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([[1.0, 2.0]], TypeError, r"must be one tensor of shape \(N, ...\): got list. Of several, fix the others"),
        ({"x": torch.ones(2, 3)}, TypeError, "must be one tensor .* got dict"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, r"floating point: got torch.int64. Convert them"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, r"floating point: got torch.complex64"),
        (torch.ones(()), ValueError, r"at least one sample: got shape \(\)"),
        (torch.ones(0, 3), ValueError, r"at least one sample: got shape \(0, 3\)"),
        (torch.ones(2, 0), ValueError, r"at least one entry per sample: got shapes \(2, 0\) and \(2, 0\)"),
    ],
    ids=["list", "dict", "integers", "complex", "no batch", "no samples", "no entries"],
)
def test_bad_inputs_are_told(inputs, error, message):
    with pytest.raises(error, match=message):
        jacobian_spectral_norm(lambda x: x * 2, inputs)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "one tensor: got tuple"),
        (lambda x: x.argmax(1), TypeError, "floating-point logits: got torch.int64"),
        (lambda x: x.sum(), ValueError, r"one row of logits per sample: got shape \(\) for 2 samples"),
        (lambda x: x[:1], ValueError, r"one row of logits per sample: got shape \(1, 3\) for 2 samples"),
        (lambda x: x[:, :0], ValueError, r"at least one entry per sample: got shapes \(2, 3\) and \(2, 0\)"),
    ],
    ids=["tuple", "classes", "scalar", "rows", "nothing"],
)
def test_bad_outputs_are_told(model, error, message):
    with pytest.raises(error, match=message):
        jacobian_spectral_norm(model, torch.ones(2, 3))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_bad_steps_are_told(steps):
    with pytest.raises(ValueError, match=f"steps must be a whole number, 1 or more: got {steps!r}"):
        jacobian_spectral_norm(lambda x: x * 2, torch.ones(2, 3), steps=steps)


def test_a_bad_generator_is_told():
    with pytest.raises(TypeError, match=r"rng must be a torch.Generator, e.g. .*: got 7"):
        jacobian_spectral_norm(lambda x: x * 2, torch.ones(2, 3), rng=7)


# Weights


def test_each_weight_has_the_oracles_norm():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4), nn.Embedding(7, 3))
    model = model.double()
    norms = spectral_norms(model)
    expected = {f"{i}.weight": oracle.spectral_norm(model[i].weight.detach().numpy()) for i in (0, 3, 4)}
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(expected, rel=1e-12)
    for norm in norms.values():
        assert (norm.shape, norm.dtype, norm.requires_grad) == ((), torch.float64, False)


def test_a_kernel_counts_as_the_matrix_of_axis_0_and_the_rest():
    layer = nn.Conv1d(2, 1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 2.0], [2.0, 4.0]]]))
    assert_linear(spectral_norms(layer)["weight"], torch.tensor(5.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norms_of_weights_are_float32_or_wider(dtype):
    layer = nn.Linear(30, 20).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norm = spectral_norms(layer)["weight"]
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.item() == pytest.approx(oracle.spectral_norm(layer.weight.detach().double().numpy()), rel=1e-5)


class Doubled(nn.Module):
    """Made of two parts, of which neither is the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(2 * torch.eye(4))

    def forward(self, weight: Tensor) -> Tensor:
        return self.mixing @ weight


def test_a_parametrised_weight_is_the_one_in_effect():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    plain = spectral_norms(model)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    norms = spectral_norms(model)
    assert norms.keys() == plain.keys() == {"0.weight", "2.weight"}
    assert_linear(norms["0.weight"], 2 * plain["0.weight"])
    assert_exact(norms["2.weight"], plain["2.weight"])


def test_a_parametrisation_of_two_tensors_is_one_weight():
    layer = parametrizations.weight_norm(nn.Linear(5, 4))
    norms = spectral_norms(layer)
    assert norms.keys() == {"weight"}
    assert norms["weight"].item() == pytest.approx(oracle.spectral_norm(layer.weight.detach().numpy()), rel=1e-5)


def test_a_spectrally_normalised_model_in_training_is_left_as_it_was():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5), n_power_iterations=1), nn.Dropout())
    before = state_of(model)
    assert model[0].training
    assert model[0].weight is not None
    assert state_of(model) != before  # in training its reading moves it
    before = state_of(model)
    assert spectral_norms(model)["0.weight"].item() == pytest.approx(1, abs=0.3)
    assert state_of(model) == before


def test_a_shared_weight_comes_once():
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.append(model[2])
    assert list(spectral_norms(model)) == ["0.weight", "2.weight"]


def test_the_model_itself_may_hold_weights():
    layer = nn.MultiheadAttention(4, 2)
    names = {name for name, parameter in layer.named_parameters() if parameter.ndim > 1}
    assert spectral_norms(layer).keys() == names == {"in_proj_weight", "out_proj.weight"}


def test_what_has_no_norm_is_left_out():
    model = nn.Module()
    model.vector = nn.Parameter(torch.ones(3))
    model.codes = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    model.nothing = nn.Parameter(torch.ones(0, 3))
    model.register_buffer("table", torch.ones(3, 3))
    model.matrix = nn.Parameter(torch.zeros(3, 3))
    assert spectral_norms(model) == {"matrix": torch.tensor(0.0)}


def test_a_weight_that_is_not_finite_gives_nan():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight[1, 1] = math.inf
    norms = spectral_norms(model)
    assert norms["0.weight"].isnan()
    assert norms["1.weight"].isfinite()


@pytest.mark.parametrize(("entries", "outputs"), [(5, 300), (300, 5)])
def test_the_gram_matrix_is_that_of_the_shorter_side(monkeypatch, entries, outputs):
    sides, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sides.append(matrix.shape[-2:]) or eigh(matrix))
    layer = nn.Linear(entries, outputs)
    spectral_norms(layer)
    jacobian_spectral_norm(layer, torch.randn(2, entries), exact=True)
    assert sides == [(5, 5)] * 2


def test_weights_are_measured_in_inference_mode_too():
    model = nn.Linear(3, 3)
    expected = spectral_norms(model)["weight"]
    with torch.inference_mode():
        norm = spectral_norms(model)["weight"]
    assert_exact(norm, expected)
    assert not norm.is_inference()


def test_the_norms_of_layers_bound_that_of_the_jacobian():
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    bound = math.prod(norm.item() for norm in spectral_norms(model).values())
    actual = jacobian_spectral_norm(model, torch.randn(20, 8, dtype=torch.float64))
    assert 0 < actual.max().item() <= bound


@pytest.mark.parametrize("model", [lambda x: x, [nn.Linear(2, 2)]])
def test_weights_of_no_module_are_told(model):
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module: got (function|list)"):
        spectral_norms(model)
