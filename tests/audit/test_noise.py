"""Is a model's noise told from its lack of invariance?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from invreg import CyclicRotation, SignFlip, measure_invariance
from tests import oracle

NOISE = ("noise_error", "noise_excess", "noise_consistency")


def images(samples: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, 1, 4, 4, dtype=dtype)


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 3) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def averaged(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """An invariant function of images."""
    group = CyclicRotation(4)
    return lambda v: network(group.orbit(v).flatten(0, 1)).view(4, len(v), -1).mean(0)


class Noisy(nn.Module):
    """Adds normal noise to a model's outputs, of a size that may depend on the input; remembers what it returned."""

    def __init__(self, model: Callable[[Tensor], Tensor], size: float | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.returned: list[Tensor] = []

    def forward(self, v: Tensor) -> Tensor:
        outputs = self.model(v)
        size = self.size(v)[:, None] if callable(self.size) else self.size
        outputs = outputs + size * torch.randn(outputs.shape).to(outputs)
        self.returned.append(outputs)
        return outputs


# How much it is


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_normal_noise_has_the_error_of_its_variance(sigma):
    """Half the squared distance of two draws is sigma squared for each output."""
    report = measure_invariance(
        Noisy(averaged(mlp()), sigma), in_batches(images(3000), size=500), CyclicRotation(4), saliency=None
    )
    expected = 3 * sigma**2
    assert abs(report.noise_error.mean - expected) < 4 * report.noise_error.standard_error
    assert report.noise_error.standard_error < 0.05 * expected
    assert abs(report.logit_error.mean - expected) < 4 * report.logit_error.standard_error
    assert abs(report.noise_excess.mean) < 4 * report.noise_excess.standard_error
    assert report.noise_error.count == report.noise_excess.count == report.noise_consistency.count == 3000


def test_dropout_has_the_error_of_its_variance():
    """An output h is 0 or h / (1 - p): its variance is h squared times p / (1 - p)."""
    logits, p = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64), 0.3

    def model(v: Tensor) -> Tensor:
        return nn.functional.dropout(logits.expand(len(v), 4), p, training=True)

    report = measure_invariance(model, in_batches(images(3000), size=500), CyclicRotation(4), saliency=None)
    expected = float(logits.square().sum()) * p / (1 - p)
    assert abs(report.noise_error.mean - expected) < 4 * report.noise_error.standard_error
    assert report.noise_error.standard_error < 0.05 * expected
    assert report.within_noise


@pytest.mark.parametrize("outputs", ["logits", "values"])
def test_noise_does_not_hide_that_a_model_is_not_invariant(outputs):
    x = images(400)
    network = mlp()
    exact = measure_invariance(network, [x], CyclicRotation(4), saliency=None)
    noisy = Noisy(network, 0.1)
    report = measure_invariance(noisy, in_batches(x, size=100), CyclicRotation(4), outputs=outputs, saliency=None)
    assert not report.within_noise
    assert abs(report.noise_excess.mean - exact.logit_error.mean) < 4 * report.noise_excess.standard_error
    assert report.noise_excess.mean > 5 * report.noise_excess.standard_error
    assert (report.noise_consistency is None) == (outputs == "values")


def test_an_invariant_model_is_within_its_noise():
    report = measure_invariance(
        Noisy(averaged(mlp()), 0.1), in_batches(images(400), size=100), CyclicRotation(4), saliency=None
    )
    assert report.within_noise
    assert report.logit_error.mean > 0.01
    assert report.noise_consistency.mean < 1


def test_each_number_agrees_with_what_the_model_returned():
    """The standard error of the excess is that of the differences, which is smaller where noise differs by sample."""
    x = images(12)
    model = Noisy(mlp(), lambda v: 3 * v[:, 0, 1:3, 1:3].sum((1, 2)).abs())
    report = measure_invariance(model, [x], CyclicRotation(4), saliency=None)
    reference, *moved, again = model.returned
    errors, noise, consistent = [], [], []
    for n in range(12):
        errors.append(math.fsum(oracle.logit_error(reference[n], other[n]) for other in moved) / 3)
        noise.append(oracle.logit_error(reference[n], again[n]))
        consistent.append(float(oracle.predicted_classes(reference[n]) == oracle.predicted_classes(again[n])))
    assert len(moved) == 3
    excess = [error - one for error, one in zip(errors, noise, strict=True)]
    for name, values in (
        ("logit_error", errors),
        ("noise_error", noise),
        ("noise_excess", excess),
        ("noise_consistency", consistent),
    ):
        expected, actual = oracle.estimate(values), getattr(report, name)
        assert actual.count == 12
        assert actual.mean == pytest.approx(expected.mean, rel=1e-9), name
        assert actual.standard_error == pytest.approx(expected.standard_error, rel=1e-9), name
        assert report.per_sample[name].tolist() == pytest.approx(values, rel=1e-9)
    apart = math.hypot(report.logit_error.standard_error, report.noise_error.standard_error)
    assert report.noise_excess.standard_error != pytest.approx(apart, rel=0.05)
    assert 0 < report.noise_consistency.mean < 1


def test_each_class_has_its_own_numbers_as_before():
    """Noise is told of all samples only; slices are what they would be without it."""
    report = measure_invariance(Noisy(mlp(), 0.1), [images(40)], CyclicRotation(4), saliency=None)
    assert sum(one.logit_error.count for one in report.per_class) == 40
    assert not any(hasattr(one, "noise_error") for one in report.per_class)


# Whether there is any


@pytest.mark.parametrize("samples", [None, 2])
def test_a_model_without_noise_costs_one_more_forward(samples):
    """At the first batch; three batches under three elements or two."""
    model = Noisy(mlp(), 0.0)
    report = measure_invariance(model, in_batches(images()), CyclicRotation(4), saliency=None, samples=samples)
    assert len(model.returned) == 3 * (1 + (samples or 3)) + 1
    assert [len(outputs) for outputs in model.returned].count(1) == 1 + (samples or 3)
    assert [getattr(report, name) for name in NOISE] == [None] * 3
    assert not report.within_noise
    assert not any(name in report.per_sample for name in NOISE)


def test_a_model_with_noise_costs_one_more_forward_for_each_batch():
    model = Noisy(mlp(), 0.1)
    report = measure_invariance(model, in_batches(images()), CyclicRotation(4), saliency=None)
    assert len(model.returned) == 3 * 5
    assert report.noise_error.count == 7


def test_dropout_is_noise_in_training_mode_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(16, 3)).double()
    assert measure_invariance(model, [images()], SignFlip(), saliency=None).noise_error is None
    assert measure_invariance(model, [images()], SignFlip(), saliency=None, mode="train").noise_error.mean > 0.01


def test_noise_does_not_change_what_is_measured_of_a_model_without_it():
    model, x = mlp(), images(12)
    once = measure_invariance(model, in_batches(x), CyclicRotation(4))
    calls = []

    def counted(v: Tensor) -> Tensor:
        calls.append(v)
        return model(v)

    with torch.no_grad():
        direct = [
            [oracle.logit_error(model(a[None])[0], model(torch.rot90(a, q, (1, 2))[None])[0]) for q in (1, 2, 3)]
            for a in x
        ]
    assert once.logit_error.mean == pytest.approx(math.fsum(map(math.fsum, direct)) / 36, rel=1e-9)
    again = measure_invariance(counted, in_batches(x), CyclicRotation(4), saliency=None)
    assert again.logit_error == once.logit_error
    assert torch.equal(calls[4], x[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_no_noise(dtype):
    """Sums that are added up in another order each time differ in their last digits."""
    weight = torch.randn(3, 16)

    def model(v: Tensor) -> Tensor:
        order = torch.randperm(16)
        total = torch.zeros(len(v), 3, dtype=dtype)
        for entry in order.tolist():
            total = total + v.flatten(1)[:, entry, None] * weight[:, entry].to(dtype)
        return total

    x = images(60, dtype)
    assert not torch.equal(model(x), model(x))
    report = measure_invariance(model, in_batches(x, size=20), CyclicRotation(4), saliency=None)
    assert report.noise_error is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dropout_is_noise_in_every_dtype(dtype):
    network = mlp().to(dtype)

    def model(v: Tensor) -> Tensor:
        return nn.functional.dropout(network(v), 0.5, training=True)

    report = measure_invariance(model, in_batches(images(60, dtype), size=20), CyclicRotation(4), saliency=None)
    assert report.noise_error.mean > 0.01


def test_noise_is_told_in_the_report():
    report = measure_invariance(Noisy(averaged(mlp()), 0.1), [images(50)], CyclicRotation(4), saliency=None)
    assert "noise" in str(report)
    assert type(report).from_dict(report.to_dict()) == report
    without = measure_invariance(mlp(), [images(50)], CyclicRotation(4), saliency=None)
    assert "noise" not in str(without)


def test_outputs_that_are_not_finite_the_second_time_are_refused():
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v.flatten(1)[:, :3] * (math.nan if len(calls) == 3 else 1.0)

    with pytest.raises(ValueError, match="for the same input again must be finite"):
        measure_invariance(model, [images()], SignFlip(), saliency=None)
