"""Is the regulariser the mean error over samples and non-identity elements, and no trouble in a training loop?"""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from invreg import (
    CyclicRotation,
    CyclicTranslation,
    Flip,
    Group,
    InvarianceLoss,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    SignFlip,
    Trivial,
)
from invreg.functional import distribution_error, logit_error, normalized_logit_error
from tests import oracle
from tests.test_preserve import state_of
from tests.tolerances import assert_exact, assert_linear

LOSSES = {
    L2InvarianceLoss: (logit_error, oracle.logit_error),
    KLInvarianceLoss: (distribution_error, oracle.distribution_error),
    NormalizedL2InvarianceLoss: (normalized_logit_error, oracle.normalized_logit_error),
}

every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)

GROUPS = {
    "rotation": (CyclicRotation(4), oracle.rotations(4)),
    "translation": (CyclicTranslation(2), oracle.translations(2)),
    "sign": (SignFlip(), oracle.sign_flips()),
    "product": (CyclicRotation(4) * SignFlip(), oracle.products(oracle.rotations(4), oracle.sign_flips())),
}

every_group = pytest.mark.parametrize("name", GROUPS)

given_or_not = pytest.mark.parametrize("given", [False, True], ids=["outputs computed", "outputs given"])


@dataclass(frozen=True)
class PlaneRotation(Group):
    """All rotations of vectors ``(N, 2)``; an element is an angle. A group without end."""

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
        return torch.rand(n, 1, generator=rng, dtype=torch.float64) * 2 * math.pi

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        self._check_action(g, x)
        cosine, sine = g[..., 0].cos().to(x.dtype), g[..., 0].sin().to(x.dtype)
        return torch.stack([cosine * x[:, 0] - sine * x[:, 1], sine * x[:, 0] + cosine * x[:, 1]], 1)


class Calls(nn.Module):
    """A model that remembers the inputs of each call."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        return self.model(x)


def images(samples: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, 1, 4, 4, dtype=dtype)


def mlp(classes: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, classes)).to(dtype)


def pooled(x: Tensor) -> Tensor:
    """An invariant model: the mean and the mean square over all pixels."""
    return torch.stack([x.flatten(1).mean(1), x.flatten(1).square().mean(1)], 1)


def expected_loss(model, x: Tensor, elements: list[oracle.Element], formula) -> float:
    """The mean over samples and the non-identity ``elements`` by the oracle."""
    network = oracle.network_of(model)
    values = []
    for sample in x.numpy():
        reference = network(sample[None])[0]
        values += [formula(reference, network(g.act(sample)[None])[0]) for g in elements[1:]]
    assert len(values) == len(x) * (len(elements) - 1)
    return math.fsum(values) / len(values)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters())))


# The value


@every_loss
@every_group
@given_or_not
def test_is_the_oracles_mean_over_samples_and_non_identity_elements(loss, name, given):
    group, elements = GROUPS[name]
    model, x = mlp(), images()
    actual = loss(group)(model, x, model(x) if given else None)
    expected = expected_loss(model, x, elements, LOSSES[loss][1])
    assert actual.shape == ()
    assert actual.dtype == torch.float64
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert expected > 1e-3


def test_the_oracle_tells_an_average_that_counts_the_identity():
    group, elements = GROUPS["rotation"]
    model, x = mlp(), images()
    with_identity = logit_error(model(x).expand(4, -1, -1).flatten(0, 1), model(group.orbit(x).flatten(0, 1))).mean()
    expected = expected_loss(model, x, elements, oracle.logit_error)
    assert with_identity.item() == pytest.approx(expected * 3 / 4, rel=1e-9)
    assert with_identity.item() != pytest.approx(expected, rel=1e-2)


@every_loss
@pytest.mark.parametrize("classes", [1, 3])
@given_or_not
def test_outputs_of_one_logit_or_more_are_measured_as_the_error_says(loss, classes, given):
    model, x, group = mlp(classes), images(), CyclicRotation(4)
    error = LOSSES[loss][0]
    expected = torch.stack([error(model(x), model(group.act(g, x))) for g in group.non_identity_elements()]).mean()
    assert_linear(loss(group)(model, x, model(x) if given else None), expected)


@every_loss
@given_or_not
def test_outputs_without_a_class_axis_equal_those_with_one(loss, given):
    model, x, group = mlp(1), images(), CyclicRotation(4)
    flat = loss(group)(lambda v: model(v)[:, 0], x, model(x)[:, 0] if given else None)
    assert_linear(flat, loss(group)(model, x))


def test_outputs_per_position_are_averaged_over_positions():
    x, group = images(), CyclicRotation(4)
    model = nn.Conv2d(1, 3, 3).double()
    expected = [logit_error(model(x), model(group.act(g, x))) for g in group.non_identity_elements()]
    assert_linear(L2InvarianceLoss(group)(model, x), torch.stack(expected).mean())


@every_loss
def test_an_invariant_model_has_none(loss):
    assert loss(CyclicRotation(4))(pooled, images()).item() == pytest.approx(0, abs=1e-15)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@given_or_not
def test_a_group_of_the_identity_alone_gives_zero_without_calling_the_model(loss, dtype, given):
    model, x = Calls(mlp(dtype=dtype)), images(dtype=dtype)
    assert_exact(loss(Trivial())(model, x, torch.zeros(5, 3) if given else None), torch.zeros((), dtype=dtype))
    assert model.inputs == []


def test_a_group_of_the_identity_alone_gives_float32_for_half_precision():
    assert_exact(L2InvarianceLoss(Trivial())(pooled, images(dtype=torch.bfloat16)), torch.zeros(()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_is_float32_or_wider(dtype):
    value = L2InvarianceLoss(CyclicRotation(4))(mlp(dtype=dtype), images(dtype=dtype))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_takes_any_error():
    def distance(reference: Tensor, transformed: Tensor) -> Tensor:
        return (reference - transformed).abs().sum(1)

    model, x, group = mlp(), images(), CyclicRotation(4)
    expected = [(model(x) - model(group.act(g, x))).abs().sum(1) for g in group.non_identity_elements()]
    assert_linear(InvarianceLoss(group, distance)(model, x), torch.stack(expected).mean())


def test_the_plain_loss_measures_half_the_squared_distance_of_the_logits():
    model, x, group = mlp(), images(), CyclicRotation(4)
    assert_exact(InvarianceLoss(group)(model, x), L2InvarianceLoss(group)(model, x))


# Outputs that are known already


@every_loss
@every_group
@pytest.mark.parametrize("samples", [None, 1])
@pytest.mark.parametrize("detach_reference", [False, True])
def test_given_outputs_change_neither_value_nor_gradients(loss, name, samples, detach_reference):
    group, _ = GROUPS[name]
    model, x = mlp(), images()

    def value(given: bool) -> Tensor:
        rng = torch.Generator().manual_seed(3)
        invariance = loss(group, samples=samples, rng=rng, detach_reference=detach_reference)
        return invariance(model, x, model(x) if given else None)

    assert_linear(value(True), value(False))
    for with_outputs, without in zip(gradients(model, value(True)), gradients(model, value(False)), strict=True):
        assert_linear(with_outputs, without)


@every_group
@pytest.mark.parametrize("samples", [None, 1])
@given_or_not
def test_the_model_is_called_once_with_all_rows(name, samples, given):
    group, _ = GROUPS[name]
    model, x = Calls(mlp()), images()
    outputs = model.model(x) if given else None
    L2InvarianceLoss(group, samples=samples)(model, x, outputs)
    elements = (group.order - 1 if samples is None else samples) + (not given)
    assert [len(inputs) for inputs in model.inputs] == [elements * 5]


@given_or_not
def test_the_model_sees_each_transformed_input_once(given):
    model, x, group = Calls(mlp()), images(), CyclicRotation(4)
    L2InvarianceLoss(group)(model, x, model.model(x) if given else None)
    assert_exact(model.inputs[0].view(-1, *x.shape), group.orbit(x, identity=not given))


def test_the_inputs_are_not_written_to():
    x = images()
    before = x.clone()
    L2InvarianceLoss(CyclicRotation(4) * SignFlip(), samples=2)(mlp(), x)
    assert_exact(x, before)


# The reference


def reference_gradient(model: nn.Module, x: Tensor, group, *, of_reference: float) -> list[Tensor]:
    """The gradients of the squared distance where the reference's part counts ``of_reference`` times."""
    f = model(x)
    reference = of_reference * f + (1 - of_reference) * f.detach()
    errors = [0.5 * (reference - model(group.act(g, x))).square().sum(1) for g in group.non_identity_elements()]
    return gradients(model, torch.stack(errors).mean())


@given_or_not
@pytest.mark.parametrize("detach_reference", [False, True])
def test_gradients_flow_through_the_reference_unless_it_is_detached(given, detach_reference):
    model, x, group = mlp(), images(), CyclicRotation(4)
    invariance = L2InvarianceLoss(group, detach_reference=detach_reference)
    actual = gradients(model, invariance(model, x, model(x) if given else None))
    expected = reference_gradient(model, x, group, of_reference=0.0 if detach_reference else 1.0)
    other = reference_gradient(model, x, group, of_reference=1.0 if detach_reference else 0.0)
    for one, two in zip(actual, expected, strict=True):
        assert_linear(one, two)
    assert any(not torch.allclose(one, three) for one, three in zip(actual, other, strict=True))


@pytest.mark.parametrize("detach_reference", [False, True])
def test_given_outputs_get_a_gradient_unless_they_are_detached(detach_reference):
    model, x = mlp(), images()
    outputs = model(x).detach().requires_grad_()
    L2InvarianceLoss(CyclicRotation(4), detach_reference=detach_reference)(model, x, outputs).backward()
    assert (outputs.grad is None) == detach_reference


def test_gradients_flow_to_the_inputs():
    model, x = mlp(), images().requires_grad_()
    invariance = L2InvarianceLoss(CyclicRotation(4))
    assert torch.autograd.gradcheck(lambda v: invariance(model, v), (x,))


# Drawn elements


def drawn(group, x: Tensor, seen: Tensor) -> Tensor:
    """By which element each sample was transformed, shape ``(K, N)``."""
    orbit = group.orbit(x)
    matches = (seen.view(-1, 1, *x.shape) == orbit).flatten(3).all(3)
    assert (matches.sum(1) == 1).all()
    return matches.int().argmax(1)


@every_group
def test_drawn_elements_are_distinct_for_each_sample_and_never_the_identity(name):
    group, _ = GROUPS[name]
    model, x = Calls(mlp()), images(40)
    for samples in range(1, group.order):
        model.inputs.clear()
        L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(0))(model, x, model.model(x))
        elements = drawn(group, x, model.inputs[0])
        assert elements.shape == (samples, 40)
        assert (elements > 0).all()
        for column in elements.T.tolist():
            assert len(set(column)) == samples


def test_each_sample_draws_its_own_elements_each_as_often():
    group, x = CyclicRotation(4) * SignFlip(), images(700)
    model = Calls(mlp())
    L2InvarianceLoss(group, samples=2, rng=torch.Generator().manual_seed(0))(model, x, model.model(x))
    counts = drawn(group, x, model.inputs[0]).flatten().bincount(minlength=8)
    assert counts[0] == 0
    deviation = math.sqrt(1400 * (1 / 7) * (6 / 7))
    assert ((counts[1:] - 200).abs() < 4 * deviation).all()


def test_draws_repeat_with_the_seed_and_go_on_within_a_run():
    group, model, x = CyclicRotation(4), mlp(), images()

    def values(seed: int) -> list[float]:
        invariance = L2InvarianceLoss(group, samples=1, rng=torch.Generator().manual_seed(seed))
        return [invariance(model, x).item() for _ in range(4)]

    assert values(1) == values(1)
    assert values(1) != values(2)
    assert len(set(values(1))) > 1


def test_draws_from_a_generator_leave_the_global_one_alone():
    before = torch.random.get_rng_state()
    L2InvarianceLoss(CyclicRotation(4), samples=2, rng=torch.Generator())(mlp_of_zeros(), images_of_zeros())
    assert_exact(torch.random.get_rng_state(), before)
    L2InvarianceLoss(CyclicRotation(4), samples=2)(mlp_of_zeros(), images_of_zeros())
    assert not torch.equal(torch.random.get_rng_state(), before)


def mlp_of_zeros() -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(1)[:, :3]


def images_of_zeros() -> Tensor:
    return torch.zeros(5, 1, 4, 4)


def test_draws_follow_the_global_seed_if_there_is_no_generator():
    invariance, model, x = L2InvarianceLoss(CyclicRotation(4), samples=1), mlp(), images()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(invariance(model, x).item())
    assert values[0] == values[1] != values[2]


@every_loss
@every_group
def test_drawing_all_elements_equals_taking_all(loss, name):
    group, _ = GROUPS[name]
    model, x = mlp(), images()
    assert_linear(loss(group, samples=group.order - 1)(model, x), loss(group)(model, x))


@pytest.mark.parametrize("samples", [1, 2])
def test_the_mean_over_draws_is_the_value_over_all_elements(samples):
    group, model, x = CyclicRotation(4), mlp(), images(3)
    invariance = L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(0))
    values = np.array([invariance(model, x).item() for _ in range(500)])
    full = L2InvarianceLoss(group)(model, x).item()
    standard_error = values.std(ddof=1) / math.sqrt(len(values))
    assert standard_error < 0.05 * full
    assert abs(values.mean() - full) < 4 * standard_error


def test_an_infinite_group_is_measured_under_drawn_elements():
    group, model, x = PlaneRotation(), nn.Linear(2, 3).double(), torch.randn(6, 2, dtype=torch.float64)
    actual = L2InvarianceLoss(group, samples=3, rng=torch.Generator().manual_seed(4))(model, x)
    angles = group.sample(18, torch.Generator().manual_seed(4)).view(6, 3).T
    expected = [
        oracle.logit_error(model(x[n : n + 1]).detach().numpy()[0], model(turned[None]).detach().numpy()[0])
        for k in range(3)
        for n in range(6)
        for a in [angles[k, n]]
        for turned in [torch.stack([a.cos() * x[n, 0] - a.sin() * x[n, 1], a.sin() * x[n, 0] + a.cos() * x[n, 1]])]
    ]
    assert len(expected) == 18
    assert actual.item() == pytest.approx(math.fsum(expected) / 18, rel=1e-9)


def test_an_infinite_group_leaves_a_model_of_the_length_alone():
    value = L2InvarianceLoss(PlaneRotation(), samples=3)(lambda x: x.square().sum(1), torch.randn(6, 2).double())
    assert value.item() == pytest.approx(0, abs=1e-25)


# Layers that depend on the mode


def with_batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()


@given_or_not
def test_batch_norm_sees_the_forward_as_one_more_batch(given):
    model, x, group = with_batch_norm(), images(), CyclicRotation(4)
    outputs = model(x) if given else None
    mean, count = model[1].running_mean.clone(), int(model[1].num_batches_tracked)
    L2InvarianceLoss(group)(model, x, outputs)
    rows = group.orbit(x, identity=not given).flatten(0, 1).flatten(1)
    assert model[1].num_batches_tracked == count + 1
    assert_linear(model[1].running_mean, 0.9 * mean + 0.1 * rows.mean(0))


def test_frozen_batch_norm_keeps_its_statistics_and_given_outputs_change_nothing():
    model, x = with_batch_norm(), images()
    model(x)
    model[1].eval()
    before = [buffer.clone() for buffer in model.buffers()]
    invariance = L2InvarianceLoss(CyclicRotation(4))
    assert_linear(invariance(model, x, model(x)), invariance(model, x))
    assert len(before) == 3
    for buffer, value in zip(model.buffers(), before, strict=True):
        assert_exact(buffer, value)


def test_dropout_in_training_mode_is_measured_as_well():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(pooled(x))

    model, x = Noisy(), images()
    invariance = L2InvarianceLoss(CyclicRotation(4))
    assert invariance(model, x).item() > 0.01
    assert model.training
    model.eval()
    assert invariance(model, x).item() == pytest.approx(0, abs=1e-15)
    assert not model.training


# In a training loop


@every_loss
@given_or_not
def test_autocast_gives_float32_close_to_full_precision(loss, given):
    model, x = mlp(dtype=torch.float32), images(dtype=torch.float32)
    full = loss(CyclicRotation(4))(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(CyclicRotation(4))(model, x, model(x) if given else None)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, full, rtol=0.1, atol=0.01)
    assert all(g.isfinite().all() for g in gradients(model, value))


def test_outputs_from_outside_autocast_are_refused_within():
    model, x = mlp(dtype=torch.float32), images(dtype=torch.float32)
    outputs = model(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="Under autocast, compute both inside"):
        L2InvarianceLoss(CyclicRotation(4))(model, x, outputs)


@every_loss
def test_descending_on_it_makes_the_model_invariant(loss):
    model, x, group = mlp(), images(), CyclicRotation(4)
    invariance = loss(group)
    first = invariance(model, x).item()
    for _ in range(60):
        found = gradients(model, invariance(model, x))
        length = torch.cat([g.flatten() for g in found]).norm()
        with torch.no_grad():
            for parameter, g in zip(model.parameters(), found, strict=True):
                parameter -= 0.03 * g / length
    assert invariance(model, x).item() < 0.3 * first


@every_loss
def test_deepcopy_and_pickle_keep_the_settings_and_the_random_numbers_to_come(loss):
    model, x = mlp(), images()
    rng = torch.Generator().manual_seed(7)
    invariance = loss(CyclicTranslation(4), samples=2, rng=rng, detach_reference=True)
    invariance(model, x)
    copies = [copy.deepcopy(invariance), pickle.loads(pickle.dumps(invariance))]
    expected = [invariance(model, x).item() for _ in range(3)]
    for other in copies:
        assert type(other) is loss
        assert (other.group, other.samples, other.detach_reference) == (CyclicTranslation(4), 2, True)
        assert other.rng is not rng
        assert [other(model, x).item() for _ in range(3)] == expected


@every_loss
def test_has_no_parameters_and_nothing_to_load(loss):
    invariance = loss(CyclicRotation(4))
    assert list(invariance.parameters()) == []
    assert invariance.state_dict() == {}
    invariance.load_state_dict({})


def test_is_a_part_of_the_module_that_holds_it_but_the_model_is_not_a_part_of_it():
    model, x = mlp(), images()
    trainer = nn.ModuleDict({"model": model, "invariance": L2InvarianceLoss(CyclicRotation(4))})
    names = set(trainer.state_dict())
    trainer["invariance"](trainer["model"], x)
    assert names == set(trainer.state_dict()) == {f"model.{name}" for name in model.state_dict()}


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (
            L2InvarianceLoss(CyclicRotation(4)),
            "L2InvarianceLoss(CyclicRotation(order=4), error=logit_error, samples=None, detach_reference=False)",
        ),
        (
            KLInvarianceLoss(Flip(-2), samples=1, detach_reference=True),
            "KLInvarianceLoss(Flip(dim=-2), error=distribution_error, samples=1, detach_reference=True)",
        ),
        (
            NormalizedL2InvarianceLoss(SignFlip()),
            "NormalizedL2InvarianceLoss(SignFlip(), error=normalized_logit_error, samples=None, "
            "detach_reference=False)",
        ),
        (
            InvarianceLoss(SignFlip(), nn.PairwiseDistance()),
            "InvarianceLoss(\n  SignFlip(), error=PairwiseDistance(), samples=None, detach_reference=False\n"
            "  (error): PairwiseDistance()\n)",
        ),
    ],
    ids=["L2", "KL", "normalized", "module"],
)
def test_shows_its_settings(loss, shown):
    assert repr(loss) == shown


@every_loss
@given_or_not
@pytest.mark.parametrize("samples", [None, 2])
def test_compiles_into_one_graph_with_the_model(loss, given, samples):
    model, x = mlp(), images()
    invariance = loss(CyclicRotation(4), samples=samples)

    def step(v: Tensor) -> Tensor:
        return invariance(model, v, model(v) if given else None)

    torch.compiler.reset()
    torch.manual_seed(1)
    actual = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    torch.manual_seed(1)
    expected = step(x)
    assert_linear(actual, expected)
    for one, two in zip(gradients(model, actual), gradients(model, expected), strict=True):
        assert_linear(one, two)


@every_loss
def test_compiles_into_one_graph_by_itself(loss):
    model, x = mlp(), images()
    invariance = loss(CyclicRotation(4))
    torch.compiler.reset()
    compiled = torch.compile(invariance, backend="aot_eager", fullgraph=True)
    assert_linear(compiled(model, x), invariance(model, x))
    assert_linear(compiled(model, x, model(x).detach()), invariance(model, x))


@every_loss
@pytest.mark.parametrize("samples", [None, 2])
def test_torch_func_takes_gradients_of_the_parameters(loss, samples):
    model, x = mlp(), images()
    rng = torch.Generator()
    invariance = loss(CyclicRotation(4), samples=samples, rng=rng)

    def value(parameters: dict[str, Tensor]) -> Tensor:
        return invariance(lambda v: functional_call(model, parameters, v), x)

    rng.manual_seed(2)
    actual = grad(value)(dict(model.named_parameters()))
    rng.manual_seed(2)
    expected = dict(
        zip(dict(model.named_parameters()), gradients(model, value(dict(model.named_parameters()))), strict=True)
    )
    assert len(actual) == 4
    for name, gradient in expected.items():
        assert_linear(actual[name], gradient)


@every_loss
def test_vmap_takes_gradients_of_an_ensemble(loss):
    models, x = [mlp() for _ in range(3)], images()
    invariance = loss(CyclicRotation(4))
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def value(one: dict[str, Tensor]) -> Tensor:
        return invariance(lambda v: functional_call(skeleton, (one, buffers), v), x)

    actual = vmap(grad(value))({name: stacked.detach() for name, stacked in parameters.items()})
    for index, model in enumerate(models):
        for name, gradient in zip(actual, gradients(model, invariance(model, x)), strict=True):
            assert_linear(actual[name][index], gradient)


# What is refused

BAD_SETTINGS = {
    "string": ("rotation", {}, TypeError, r"group must be a Group.*got 'rotation'"),
    "class": (CyclicRotation, {}, TypeError, r"group must be a Group"),
    "no samples": (CyclicRotation(4), {"samples": 0}, ValueError, r"1 to 3 for CyclicRotation.*got 0"),
    "negative": (CyclicRotation(4), {"samples": -1}, ValueError, r"1 to 3 for CyclicRotation.*got -1"),
    "too many": (CyclicRotation(4), {"samples": 4}, ValueError, r"1 to 3 for CyclicRotation.*got 4"),
    "from the identity alone": (Trivial(), {"samples": 1}, ValueError, r"Trivial.*got 1"),
    "all of infinitely many": (PlaneRotation(), {}, ValueError, r"PlaneRotation.*infinitely many.*samples="),
    "none of infinitely many": (PlaneRotation(), {"samples": 0}, ValueError, r"1 or more for PlaneRotation.*got 0"),
}


@every_loss
@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_refuses_settings_that_make_no_sense(loss, name):
    group, settings, kind, message = BAD_SETTINGS[name]
    with pytest.raises(kind, match=message):
        loss(group, **settings)


def test_settings_are_spelled_out():
    with pytest.raises(TypeError, match="positional"):
        L2InvarianceLoss(CyclicRotation(4), 2)
    with pytest.raises(TypeError, match="positional"):
        InvarianceLoss(CyclicRotation(4), logit_error, 2)


class Broken(nn.Module):
    """A small network that depends on the mode, whose logits come out spoiled."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil = spoil
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3).eval())

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.layers(x))


def explode(logits: Tensor) -> Tensor:
    raise ArithmeticError("the model's own")


def keep(logits: Tensor) -> Tensor:
    return logits


BAD_CALLS = {
    "integer inputs": (keep, torch.zeros(5, 1, 4, 4).long(), None, TypeError, r"floating point: got torch.int64"),
    "empty inputs": (keep, torch.zeros(0, 1, 4, 4), None, ValueError, r"at least one sample: got shape \(0, 1, 4, 4\)"),
    "scalar input": (keep, torch.tensor(1.0), None, ValueError, r"at least one sample: got shape \(\)"),
    "array": (keep, np.zeros((5, 1, 4, 4)), None, TypeError, r"one tensor.*got ndarray"),
    "not square": (keep, torch.zeros(5, 1, 4, 2), None, ValueError, r"square.*\(4, 2\)"),
    "tuple": (lambda z: (z, z), torch.zeros(5, 1, 4, 4), None, TypeError, r"one tensor: got tuple"),
    "integers out": (lambda z: z.long(), torch.zeros(5, 1, 4, 4), None, TypeError, r"floating-point logits.*int64"),
    "rows": (lambda z: z[:7], torch.zeros(5, 1, 4, 4), None, ValueError, r"\(7, 3\) for \d+ samples"),
    "model raises": (explode, torch.zeros(5, 1, 4, 4), None, ArithmeticError, r"the model's own"),
    "outputs of another width": (keep, torch.zeros(5, 1, 4, 4), torch.zeros(5, 2), ValueError, r"\(5, 3\).*\(5, 2\)"),
    "outputs without axis": (keep, torch.zeros(5, 1, 4, 4), torch.zeros(5), ValueError, r"\(5, 3\).*\(5,\)"),
    "outputs of other rows": (keep, torch.zeros(5, 1, 4, 4), torch.zeros(4, 3), ValueError, r"\(4, 3\) for 5 samples"),
    "outputs of integers": (keep, torch.zeros(5, 1, 4, 4), torch.zeros(5, 3).long(), TypeError, r"int64"),
    "outputs of another dtype": (
        keep,
        torch.zeros(5, 1, 4, 4),
        torch.zeros(5, 3).double(),
        ValueError,
        r"one shape and dtype.*float64.*float32",
    ),
    "outputs as tuple": (keep, torch.zeros(5, 1, 4, 4), (torch.zeros(5, 3),), TypeError, r"one tensor: got tuple"),
}


@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("name", BAD_CALLS)
def test_refuses_bad_calls_and_leaves_everything_as_it_was(name, samples):
    spoil, inputs, outputs, kind, message = BAD_CALLS[name]
    model = Broken(spoil)
    model.layers(torch.randn(4, 1, 4, 4)).sum().backward()
    model.layers[1].weight.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    invariance = L2InvarianceLoss(CyclicRotation(4), samples=samples, rng=torch.Generator())
    before = state_of(model)
    with pytest.raises(kind, match=message):
        invariance(model, inputs, outputs)
    assert state_of(model) == before


@pytest.mark.parametrize("samples", [None, 2])
def test_a_good_call_leaves_everything_as_it_was(samples):
    model = Broken(keep)
    model.layers(torch.randn(4, 1, 4, 4)).sum().backward()
    x = torch.randn(5, 1, 4, 4)
    before = state_of(model)
    L2InvarianceLoss(CyclicRotation(4), samples=samples, rng=torch.Generator())(model, x)
    assert state_of(model) == before


def test_hooks_of_the_model_fire_once():
    model, fired = mlp(), []
    model.register_forward_hook(lambda *_: fired.append(1))
    L2InvarianceLoss(CyclicRotation(4))(model, images())
    assert fired == [1]
