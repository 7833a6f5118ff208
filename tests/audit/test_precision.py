"""Does an audit stop when it is sure enough, and not before?"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from invreg import CyclicRotation, InvarianceAudit, SignFlip, measure_invariance
from tests import oracle
from tests.audit.sameness import assert_same_report

ERRORS = ("logit_error", "distribution_error", "normalized_logit_error")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def in_batches(x: Tensor, size: int = 20) -> list:
    return [x[i : i + size] for i in range(0, len(x), size)]


def images(samples: int = 1000) -> Tensor:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64)


def first_precise(columns: dict[str, list[float]], ends: list[int], target: float) -> int | None:
    """After how many samples, of those at which a batch ends, all errors are known well enough."""
    for end in ends:
        means = [oracle.estimate(values[:end]) for values in columns.values()]
        if end >= 100 and all(one.standard_error <= target * one.mean for one in means):
            return end
    return None


@pytest.mark.parametrize("target", [0.04, 0.06, 0.08])
@pytest.mark.parametrize("size", [20, 33])
@pytest.mark.parametrize("outputs", ["logits", "values"])
def test_it_stops_after_the_first_batch_at_which_all_errors_are_sure(target, size, outputs):
    model, x = mlp(), images()
    settings = {"saliency": None, "outputs": outputs}
    whole = measure_invariance(model, in_batches(x, size), CyclicRotation(4), **settings)
    columns = {name: whole.per_sample[name].tolist() for name in ERRORS if name in whole.per_sample}
    assert len(columns) == (3 if outputs == "logits" else 2)
    expected = first_precise(columns, [min(end, 1000) for end in range(size, 1000 + size, size)], target)
    assert 100 < expected < 1000
    report = measure_invariance(model, in_batches(x, size), CyclicRotation(4), target_precision=target, **settings)
    assert (report.ended, report.samples, report.seen) == ("precise", expected, expected)
    for name in columns:
        assert report.estimates[name].standard_error <= target * report.estimates[name].mean
    prefix = measure_invariance(model, in_batches(x[:expected], size), CyclicRotation(4), **settings)
    assert_same_report(report, prefix, but=["ended"])
    assert prefix.ended == "complete"


def test_one_error_that_is_not_sure_is_enough_to_go_on():
    """Errors of different kinds are known at different times."""
    model, x = mlp(), images()
    whole = measure_invariance(model, [x], CyclicRotation(4), saliency=None)
    ends = list(range(20, 1001, 20))
    alone = {name: first_precise({name: whole.per_sample[name].tolist()}, ends, 0.06) for name in ERRORS}
    assert len(set(alone.values())) > 1
    report = measure_invariance(model, in_batches(x), CyclicRotation(4), saliency=None, target_precision=0.06)
    assert report.samples == max(alone.values())


@pytest.mark.parametrize("size", [1, 30, 99, 100, 150])
def test_not_before_a_hundred_samples(size):
    model, x = mlp(), images(400)
    batches = in_batches(x, size)
    report = measure_invariance(model, batches, CyclicRotation(4), saliency=None, target_precision=1e6)
    assert report.ended == "precise"
    assert report.samples == size * math.ceil(100 / size)


def test_the_loader_is_not_asked_for_more():
    given = []

    def batches() -> Iterator[Tensor]:
        for batch in in_batches(images(), 50):
            given.append(len(batch))
            yield batch

    report = measure_invariance(mlp(), batches(), CyclicRotation(4), saliency=None, target_precision=10)
    assert (sum(given), report.samples) == (100, 100)


def test_a_precision_that_is_never_reached_takes_all_the_data():
    report = measure_invariance(mlp(), in_batches(images(300)), SignFlip(), saliency=None, target_precision=1e-9)
    assert (report.ended, report.samples) == ("complete", 300)
    without = measure_invariance(mlp(), in_batches(images(300)), SignFlip(), saliency=None)
    assert (without.ended, without.samples) == ("complete", 300)


@pytest.mark.parametrize("target", [1e-9, 0.1])
def test_a_model_that_is_invariant_to_the_last_bit_stops(target):
    network = mlp()
    report = measure_invariance(
        lambda v: network(v.abs()), in_batches(images()), SignFlip(), saliency=None, target_precision=target
    )
    assert (report.ended, report.samples) == ("precise", 100)
    assert report.logit_error.mean == 0


def test_the_last_batch_may_be_the_one_that_decides():
    report = measure_invariance(mlp(), in_batches(images(100), 50), SignFlip(), saliency=None, target_precision=10)
    assert (report.ended, report.samples) == ("precise", 100)


def test_samples_that_were_skipped_do_not_count():
    model, x = mlp(), images(300)
    x[::2, 0, 0, 0] = math.nan
    report = measure_invariance(
        model, in_batches(x), CyclicRotation(4), saliency=None, target_precision=10, on_error="skip"
    )
    assert (report.ended, report.samples, report.skipped, report.seen) == ("precise", 100, 100, 200)


def test_an_audit_by_hand_stops_too():
    audit = InvarianceAudit(mlp(), CyclicRotation(4), saliency=None)
    audit.run(in_batches(images()), target_precision=10)
    assert (audit.ended, audit.report().samples) == ("precise", 100)
    audit.run(in_batches(images(40)))
    assert (audit.ended, audit.report().samples) == ("complete", 140)


def test_the_report_says_that_it_stopped():
    model, x = mlp(), images()
    stopped = measure_invariance(model, in_batches(x), CyclicRotation(4), saliency=None, target_precision=10)
    assert type(stopped).from_dict(stopped.to_dict()).ended == "precise"
    lines = set(str(stopped).splitlines())
    complete = measure_invariance(model, in_batches(x[:100]), CyclicRotation(4), saliency=None)
    assert lines != set(str(complete).splitlines())


@pytest.mark.parametrize("target", [0, -0.1, math.nan])
def test_no_precision_can_be_reached_that_is_not_positive(target):
    with pytest.raises(ValueError, match="target_precision must be positive"):
        measure_invariance(mlp(), in_batches(images(20)), SignFlip(), saliency=None, target_precision=target)
