"""Does the multiplier bring the error to its target, and is it no trouble in a training loop?"""

import copy
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from invreg import CyclicRotation, InvarianceLoss, L2InvarianceLoss, SignFlip
from invreg.constraint import InvarianceConstraint
from tests.tolerances import assert_exact, assert_linear

ROTATION, SIGN = L2InvarianceLoss(CyclicRotation(4)), L2InvarianceLoss(SignFlip())


def identity(x: Tensor) -> Tensor:
    return x


def feed(constraint: InvarianceConstraint, *errors: float) -> Tensor:
    """Steps with these errors; the model is the identity, whose error under a change of sign is ``2 x ** 2``."""
    value = torch.tensor(math.nan)
    for error in errors:
        x = torch.full((1, 1), math.sqrt(error / 2), dtype=torch.float64)
        value = constraint(identity, x)
    return value


def by_hand(errors: list[float], target: float, rate: float, damping: float) -> tuple[float, float]:
    """The average error and the multiplier after these errors, as plain loops."""
    integral = 0.05 / target
    for steps in range(1, len(errors) + 1):
        weights = [(2 / 3) ** (steps - 1 - k) for k in range(steps)]
        average = sum(w * e for w, e in zip(weights, errors[:steps], strict=True)) / sum(weights)
        violation = 2 * (average - target) / (average + target)
        violation = min(max(violation, -1.0), 1.0)
        integral *= math.exp(rate * violation)
    return average, integral * math.exp(damping * violation)


class Regression(nn.Module):
    """A linear model of as many inputs as weights, which are drawn to ``wanted`` by a task of their own.

    On the inputs ``sqrt(d)`` times the unit vectors its error under a change of sign is twice the squared length of
    the weights. So least squares under the constraint that this be at most the target have the solution
    ``wanted / (1 + 4 multiplier)``, of half the target's squared length.
    """

    def __init__(self, *wanted: float) -> None:
        super().__init__()
        self.wanted = torch.tensor(wanted, dtype=torch.float64)
        self.inputs = torch.eye(len(wanted), dtype=torch.float64) * math.sqrt(len(wanted))
        self.weight = nn.Parameter(torch.zeros_like(self.wanted))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def task(self) -> Tensor:
        return 0.5 * (self.weight - self.wanted).square().sum()

    def multiplier(self, target: float) -> float:
        return (self.wanted.norm().item() * math.sqrt(2 / target) - 1) / 4

    def descend(self, constraint: InvarianceConstraint, steps: int, lr: float = 0.01) -> list[float]:
        """Gradient descent; returns the error before each step."""
        errors = []
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(self.task() + constraint(self, self.inputs), self.weight)
            errors.append(2 * self.weight.detach().square().sum().item())
            with torch.no_grad():
                self.weight -= lr * gradient
        return errors


def quick(loss: InvarianceLoss, target: float, *, rate: float = 0.2, damping: float = 3.0) -> InvarianceConstraint:
    """A constraint that follows within some hundred steps, as these small models do."""
    return InvarianceConstraint(loss, target, rate=rate, damping=damping)


# The multiplier


@pytest.mark.parametrize("target", [1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_converges_to_the_multiplier_of_constrained_least_squares(target):
    model, constraint = Regression(1.0, -2.0, 2.0), quick(SIGN, target)
    expected = model.multiplier(target)
    assert expected > 0.05
    errors = model.descend(constraint, 1500, lr=min(0.01, 0.2 / expected / 4))
    assert constraint.multiplier.item() == pytest.approx(expected, rel=1e-3)
    assert constraint.error.item() == pytest.approx(target, rel=1e-3)
    assert errors[-1] == pytest.approx(target, rel=1e-3)
    torch.testing.assert_close(model.weight, model.wanted / (1 + 4 * expected), rtol=1e-3, atol=0)


def test_an_error_that_keeps_below_its_target_is_left_alone():
    model, constraint = Regression(1.0, -2.0, 2.0), quick(SIGN, 20.0)
    model.descend(constraint, 2000)
    assert 0 < constraint.multiplier.item() < 1e-6
    torch.testing.assert_close(model.weight, model.wanted, rtol=1e-5, atol=0)


def test_finds_back_when_the_constraint_matters_again():
    model, constraint = Regression(1.0, -2.0, 2.0), quick(SIGN, 20.0)
    model.descend(constraint, 2000)
    model.wanted *= 3
    model.descend(constraint, 2000)
    assert constraint.multiplier.item() == pytest.approx(model.multiplier(20.0), rel=1e-3)


def test_keeps_within_a_range_from_which_it_finds_back():
    constraint = quick(SIGN, 0.1)
    feed(constraint, *[5.0] * 500)
    assert constraint.multiplier.item() == pytest.approx(1e6 * math.exp(3), rel=1e-4)
    feed(constraint, *[0.0] * 200)
    assert constraint.multiplier.item() == pytest.approx(1e-4 * math.exp(-3), rel=1e-4)


def test_damping_keeps_it_from_swinging():
    def largest_late(damping: float) -> float:
        model, constraint = Regression(1.0, -2.0, 2.0), quick(SIGN, 0.1, damping=damping)
        errors = model.descend(constraint, 600, lr=0.001)[400:]
        return max(abs(error / 0.1 - 1) for error in errors)

    assert largest_late(3.0) < 0.01
    assert largest_late(0.0) > 0.4


def test_follows_its_formulas():
    errors = [0.3, 2.0, 0.7, 4.0, 0.1, 0.0, 1.2]
    for count in range(1, len(errors) + 1):
        constraint = quick(SIGN, 0.5, rate=0.3, damping=1.5)
        value = feed(constraint, *errors[:count])
        error, multiplier = by_hand(errors[:count], 0.5, 0.3, 1.5)
        assert constraint.error.item() == pytest.approx(error, rel=1e-5)
        assert constraint.multiplier.item() == pytest.approx(multiplier, rel=1e-5)
        assert value.item() == pytest.approx(multiplier * errors[count - 1], rel=1e-5)


def test_knows_no_error_before_the_first_step():
    constraint = quick(SIGN, 0.5)
    assert constraint.error.isnan()
    assert constraint.multiplier.item() == pytest.approx(0.1)


# The error on other data


def test_brings_the_error_on_held_out_data_to_the_target():
    model, constraint = Regression(1.0, -2.0, 2.0), quick(SIGN, 0.1)
    for _ in range(40):
        model.descend(constraint, 100)
        with torch.no_grad():
            constraint.calibrate(SIGN(model, 2 * model.inputs))
    assert SIGN(model, 2 * model.inputs).item() == pytest.approx(0.1, rel=1e-3)
    assert SIGN(model, model.inputs).item() == pytest.approx(0.025, rel=1e-3)
    assert constraint.error.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda e: torch.tensor([e], dtype=torch.float64)])
def test_moves_half_of_the_way_at_each_calibration(kind):
    constraint = quick(SIGN, 0.5)
    feed(constraint, 0.2)
    for expected in (0.4, 0.4 * math.sqrt(2), 0.4 * 2**0.75):
        constraint.calibrate(kind(0.8))
        assert constraint.error.item() == pytest.approx(expected, rel=1e-5)
    assert constraint.error.shape == ()


def test_what_follows_a_calibration_is_multiplied():
    constraint = quick(SIGN, 0.5)
    feed(constraint, 0.2)
    constraint.calibrate(0.2 * 9)
    before = constraint._integral.item()
    feed(constraint, 0.2)
    assert constraint.error.item() == pytest.approx(0.6, rel=1e-5)
    assert constraint._integral.item() == pytest.approx(before * math.exp(0.2 * 2 * 0.1 / 1.1), rel=1e-5)


@pytest.mark.parametrize("held_out", [0.0, math.nan, math.inf])
def test_a_calibration_that_says_nothing_changes_nothing(held_out):
    constraint = quick(SIGN, 0.5)
    constraint.calibrate(0.3)
    feed(constraint, 0.2)
    assert constraint.error.item() == pytest.approx(0.2, rel=1e-5)
    constraint.calibrate(held_out)
    assert constraint.error.item() == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("target", [0.005, 0.05, 0.5, 5.0])
def test_digits_reach_the_target_on_validation_data_within_five_percent(target, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "examples"), *sys.path])
    from datasets import digits
    from quickstart import network

    (images, labels), (held_out, _), _ = digits()
    rng, group = torch.Generator().manual_seed(0), CyclicRotation(4)
    model, constraint = network(64), quick(ROTATION, target)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    ratios = []
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.03, total_iters=90)
    for _ in range(90):
        for rows in torch.randperm(len(images), generator=rng).split(100):
            x = group.act(group.sample(len(rows), rng), images[rows])
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, labels[rows]) + constraint(model, x, logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            error = ROTATION(model, held_out).item()
        constraint.calibrate(error)
        ratios.append(error / target)
    assert sum(ratios[-10:]) / 10 == pytest.approx(1, abs=0.05)


# In a training loop


def mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 1, 4, 4, dtype=dtype)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.parameters())))


@pytest.mark.parametrize("given", [False, True], ids=["outputs computed", "outputs given"])
def test_is_the_multiplier_times_the_loss_in_value_and_gradients(given):
    model, x, constraint = mlp(), images(), quick(ROTATION, 0.1)
    for _ in range(3):
        value = constraint(model, x, model(x) if given else None)
    loss = ROTATION(model, x)
    multiplier = constraint.multiplier.double()
    assert not constraint.multiplier.requires_grad
    assert_linear(value, multiplier * loss)
    for actual, expected in zip(gradients(model, value), gradients(model, loss), strict=True):
        assert_linear(actual, multiplier * expected)
    assert multiplier > 1e-4


def test_stands_still_in_eval_mode_and_without_gradients():
    model, x, constraint = mlp(), images(), quick(ROTATION, 0.1)
    constraint(model, x)
    before = copy.deepcopy(constraint.state_dict())
    value = constraint.eval()(model, x)
    with torch.no_grad():
        assert_exact(constraint.train()(model, x), value.detach())
    assert len(before) == 4
    for name, state in constraint.state_dict().items():
        assert_exact(state, before[name])
    constraint(model, x)
    assert constraint._integral != before["_integral"]


def test_goes_on_exactly_where_it_was_from_a_checkpoint_or_a_copy():
    whole = quick(SIGN, 0.5)
    feed(whole, 0.3, 2.0, 0.7)
    whole.calibrate(1.3)
    loaded = quick(SIGN, 0.5)
    loaded.load_state_dict(copy.deepcopy(whole.state_dict()))
    others = [loaded, copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))]
    values = [feed(whole, error) for error in (0.2, 3.0)]
    for other in others:
        assert [feed(other, error) for error in (0.2, 3.0)] == values
        assert other.multiplier == whole.multiplier


def test_is_a_part_of_the_module_that_holds_it_without_parameters_of_its_own():
    trainer = nn.ModuleDict({"model": mlp(), "constraint": quick(ROTATION, 0.1)})
    trainer["constraint"](trainer["model"], images())
    assert list(trainer["constraint"].parameters()) == []
    names = {f"constraint.{name}" for name in ("_integral", "_error_sum", "_error_count", "_calibration")}
    assert set(trainer.state_dict()) == names | {f"model.{name}" for name in trainer["model"].state_dict()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_keeps_its_state_in_float32_whatever_it_is_converted_to(dtype):
    constraint = quick(ROTATION, 0.1)
    constraint(mlp(), images())
    before = copy.deepcopy(constraint.state_dict())
    converted = nn.ModuleDict({"model": mlp(), "constraint": constraint}).to(dtype)
    assert next(converted["model"].parameters()).dtype == dtype
    assert len(before) == 4
    for name, state in constraint.state_dict().items():
        assert_exact(state, before[name])
    value = constraint(converted["model"], images(dtype))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(g.isfinite().all() for g in gradients(converted["model"], value))


def test_moves_to_another_device():
    constraint = quick(ROTATION, 0.1).to("meta", torch.bfloat16)
    assert [(state.device.type, state.dtype) for state in constraint.buffers()] == [("meta", torch.float32)] * 4
    assert constraint.multiplier.device.type == "meta"


def test_steps_between_which_gradients_are_accumulated_share_a_backward():
    model, constraint = mlp(), quick(ROTATION, 0.1)
    x, y = images(), images()
    first, second = constraint(model, x), constraint(model, y)
    expected = [gradients(model, value) for value in (constraint.eval()(model, x), constraint(model, y))]
    scale = [first.item() / constraint(model, x).item(), second.item() / constraint(model, y).item()]
    for actual, one, two in zip(gradients(model, first + second), *expected, strict=True):
        assert_linear(actual, scale[0] * one + scale[1] * two)


def test_autocast_gives_float32_close_to_full_precision():
    model, x = mlp(torch.float32), images(torch.float32)
    expected = quick(ROTATION, 0.1)(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        value = quick(ROTATION, 0.1)(model, x)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.15, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("before", [[], [0.3, 2.0]], ids=["at first", "later"])
def test_an_error_that_is_not_finite_is_returned_and_leaves_no_trace(bad, before):
    spoiled, clean = (quick(SIGN, 0.5) for _ in range(2))
    for constraint in (spoiled, clean):
        feed(constraint, *before)
    assert not feed(spoiled, bad).isfinite()
    assert feed(spoiled, 0.7, 0.1) == feed(clean, 0.7, 0.1)
    assert spoiled.multiplier == clean.multiplier


def test_an_outlier_counts_as_ten_times_the_average_and_is_forgotten_soon():
    constraint = quick(SIGN, 0.5)
    feed(constraint, *[0.5] * 50)
    multiplier = constraint.multiplier.item()
    feed(constraint, 1e30)
    assert constraint.error.item() == pytest.approx(0.5 * (2 + 10) / 3, rel=1e-4)
    feed(constraint, *[0.5] * 20)
    assert constraint.multiplier.item() < 4 * multiplier


def test_a_first_error_far_from_the_target_is_taken_as_it_is():
    constraint = quick(SIGN, 1e-3)
    feed(constraint, 1e6)
    assert constraint.error.item() == pytest.approx(1e6)


def test_a_negative_error_counts_as_none():
    constraint = quick(InvarianceLoss(SignFlip(), lambda a, b: -(a - b).square().sum(1)), 0.5)
    for _ in range(300):
        constraint(identity, torch.full((1, 1), 0.5))
    assert constraint.error == 0
    assert 0 < constraint.multiplier < 1e-5


def test_compiles_into_one_graph_once_for_all_steps():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    model, xs = mlp(), [images() for _ in range(6)]
    eager, compiled = quick(ROTATION, 0.1), quick(ROTATION, 0.1)
    torch.compiler.reset()
    step = torch.compile(lambda x: compiled(model, x, model(x)), backend=backend, fullgraph=True)
    for x in xs:
        actual, expected = step(x), eager(model, x, model(x))
        assert_linear(actual, expected)
        for one, two in zip(gradients(model, actual), gradients(model, expected), strict=True):
            assert_linear(one, two)
    assert_linear(compiled.multiplier, eager.multiplier)
    assert len(compilations) == 1


def test_a_loss_over_a_part_of_the_batch_is_followed():
    model, x = mlp(), images()
    constraint = quick(L2InvarianceLoss(CyclicRotation(4), fraction=0.5, rng=torch.Generator().manual_seed(1)), 0.1)
    errors = L2InvarianceLoss(CyclicRotation(4), fraction=0.5, rng=torch.Generator().manual_seed(1))
    alone = quick(SIGN, 0.1)
    for _ in range(3):
        constraint(model, x)
        feed(alone, errors(model, x).item())
    assert_linear(constraint.multiplier, alone.multiplier)
    assert constraint.multiplier != quick(SIGN, 0.1).multiplier


def test_compiles_with_its_backward():
    model, x = mlp(), images()
    eager, compiled = quick(ROTATION, 0.1), quick(ROTATION, 0.1)
    torch.compiler.reset()
    step = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        for one, two in zip(gradients(model, step(model, x)), gradients(model, eager(model, x)), strict=True):
            assert_linear(one, two)
    assert_linear(compiled.multiplier, eager.multiplier)


def one_rank(rank: int, folder: str) -> None:
    """Steps on a rank's own errors, with a NaN on one of them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    constraint = quick(SIGN, 0.5)
    feed(constraint, *([0.2, 1.0, math.nan, 3.0], [0.6, 0.4, 1.0, 0.0])[rank])
    torch.save(constraint.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_multiplier_is_the_same_on_all_ranks_and_follows_their_mean_error(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    alone = quick(SIGN, 0.5)
    feed(alone, 0.4, 0.7, 1.5)
    for rank in range(2):
        for name, state in torch.load(tmp_path / f"{rank}.pt").items():
            assert_linear(state, alone.state_dict()[name])


# What is shown, and what is refused


def test_shows_its_settings():
    assert repr(InvarianceConstraint(SIGN, 1)).splitlines()[:2] == [
        "InvarianceConstraint(",
        "  target=1.0, rate=0.01, damping=0.2",
    ]


BAD_SETTINGS = {
    "group": ((CyclicRotation(4), 0.1), {}, TypeError, r"loss must be an InvarianceLoss.*got CyclicRotation"),
    "class": ((L2InvarianceLoss, 0.1), {}, TypeError, "loss must be an InvarianceLoss"),
    "loss of some steps": (
        (L2InvarianceLoss(SignFlip(), every=2), 0.1),
        {},
        ValueError,
        "each step.*got every=2.*fraction",
    ),
    "target of 0": ((SIGN, 0.0), {}, ValueError, r"target.*above 0: got 0\.0"),
    "negative target": ((SIGN, -0.1), {}, ValueError, r"target.*above 0: got -0\.1"),
    "target of NaN": ((SIGN, math.nan), {}, ValueError, "target.*finite.*got nan"),
    "infinite target": ((SIGN, math.inf), {}, ValueError, "target.*finite.*got inf"),
    "target in words": ((SIGN, "0.1"), {}, TypeError, "target must be a number: got '0.1'"),
    "rate of 0": ((SIGN, 0.1), {"rate": 0.0}, ValueError, r"rate.*above 0: got 0\.0"),
    "negative damping": ((SIGN, 0.1), {"damping": -1.0}, ValueError, r"damping.*0 or above: got -1\.0"),
    "damping of NaN": ((SIGN, 0.1), {"damping": math.nan}, ValueError, "damping.*got nan"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_refuses_settings_that_make_no_sense(name):
    operands, settings, kind, message = BAD_SETTINGS[name]
    with pytest.raises(kind, match=message):
        InvarianceConstraint(*operands, **settings)


def test_settings_are_spelled_out():
    with pytest.raises(TypeError, match="positional"):
        InvarianceConstraint(SIGN, 0.1, 0.2)


@pytest.mark.parametrize(
    ("error", "message"), [(-0.1, r"0 or more: got -0\.1"), (torch.ones(2), "single mean error.*got tensor")]
)
def test_refuses_a_held_out_error_that_is_none(error, message):
    with pytest.raises(ValueError, match=message):
        InvarianceConstraint(SIGN, 0.1).calibrate(error)
