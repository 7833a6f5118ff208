"""Are intervals those of the draws that were made, and do they contain the mean as often as they say?"""

import math

import numpy as np
import pytest

from invreg import CyclicRotation, measure_invariance
from invreg.audit import bootstrap
from invreg.audit.bootstrap import Interval, bootstrap_interval
from tests import oracle
from tests.audit.test_measure import EXACT_WEIGHTS, classes_of, images, in_batches, mlp
from tests.audit.test_report import of_one_sample, report, with_histograms


def draws(size: int, resamples: int, seed: int) -> list[list[int]]:
    """The places that are drawn."""
    return np.random.default_rng(seed).integers(size, size=(resamples, size)).tolist()


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("seed", [0, 7])
def test_agrees_with_plain_loops_over_the_same_draws(confidence, seed):
    values = np.random.default_rng(3).exponential(size=23)
    found = bootstrap_interval(values, confidence, 300, seed)
    low, high = oracle.bootstrap(values.tolist(), confidence, draws(23, 300, seed))
    assert found.low == pytest.approx(low, rel=1e-12)
    assert found.high == pytest.approx(high, rel=1e-12)
    assert found.confidence == confidence
    assert low < values.mean() < high


def test_the_loops_tell_draws_without_replacement_and_other_quantiles():
    values = np.random.default_rng(3).exponential(size=23)
    found = bootstrap_interval(values, 0.9, 300, 0)
    shuffled = [sorted(range(23), key=lambda place: row[place]) for row in draws(23, 300, 0)]
    low, high = oracle.bootstrap(values.tolist(), 0.9, shuffled)
    assert low == pytest.approx(high)
    assert found.low != pytest.approx(oracle.bootstrap(values.tolist(), 0.95, draws(23, 300, 0))[0], rel=1e-3)


@pytest.mark.parametrize("at_once", [1, 50, 230, 10**9])
def test_how_many_are_drawn_at_once_changes_nothing(at_once, monkeypatch):
    values = np.random.default_rng(3).exponential(size=23)
    expected = bootstrap_interval(values, 0.95, 101, 5)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
    assert bootstrap_interval(values, 0.95, 101, 5) == expected


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_mean_lies_within_about_as_often_as_said(confidence):
    """Of exponential values, whose mean is 1, the percentile interval covers a little less than it says."""
    rng, hits, trials = np.random.default_rng(0), 0, 400
    for seed in range(trials):
        found = bootstrap_interval(rng.exponential(size=60), confidence, 300, seed)
        hits += found.low <= 1 <= found.high
    spread = math.sqrt(confidence * (1 - confidence) / trials)
    assert confidence - 0.03 - 3 * spread < hits / trials < confidence + 3 * spread


def test_of_many_values_it_is_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, size=2000)
    found, error = bootstrap_interval(values, 0.95, 2000, 0), values.std(ddof=1) / math.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_of_equal_values_it_is_a_point():
    assert bootstrap_interval(np.full(9, 0.25), 0.95, 50, 0) == Interval(0.25, 0.25, 0.95)


def test_is_shown_with_its_confidence():
    assert str(Interval(0.123456, 12.3456, 0.95)) == "0.1235 to 12.35 (95% bootstrap)"


# Of reports


def test_of_a_report_is_that_of_its_samples():
    found = report().bootstrap("logit_error", confidence=0.9, resamples=50, seed=3)
    assert found == bootstrap_interval(report().per_sample["logit_error"], 0.9, 50, 3)
    by_default = report().bootstrap("worst_logit_error")
    assert by_default == bootstrap_interval(report().per_sample["worst_logit_error"], 0.95, 2000, 0)
    assert by_default == report().bootstrap("worst_logit_error")
    assert by_default != report().bootstrap("worst_logit_error", seed=1)


def test_every_number_of_an_audit_has_one_around_its_mean():
    x = images()
    y = classes_of(x)
    found = measure_invariance(mlp(), in_batches(x, y), CyclicRotation(4), saliency=EXACT_WEIGHTS, saliency_samples=5)
    assert len(found.estimates) == 9
    for name, estimate in found.estimates.items():
        interval = found.bootstrap(name, resamples=200)
        assert interval.low <= estimate.mean <= interval.high, name
        values = found.per_sample[name][: estimate.count].tolist()
        low, high = oracle.bootstrap(values, 0.95, draws(len(values), 200, 0))
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12)), name
    assert found.saliency_similarity.count == 5


def test_of_one_sample_there_is_none():
    with pytest.raises(ValueError, match=r"needs more than one sample: got 1"):
        of_one_sample().bootstrap("logit_error")


def test_says_a_high_confidence_as_it_is():
    assert "(99.9% bootstrap)" in str(Interval(0.0, 1.0, 0.999))


def test_needs_all_samples():
    message = (
        r"needs all 100 samples, but the report has 20: audit with a larger kept_samples=, "
        r"or take mean ± 1\.96 standard errors"
    )
    with pytest.raises(ValueError, match=message):
        with_histograms().bootstrap("logit_error")
    kept = measure_invariance(mlp(), in_batches(images()), CyclicRotation(4), saliency=None, kept_samples=6)
    with pytest.raises(ValueError, match=r"needs all 7 samples, but the report has 6"):
        kept.bootstrap("consistency")
    none = measure_invariance(mlp(), in_batches(images()), CyclicRotation(4), saliency=None, kept_samples=0)
    with pytest.raises(ValueError, match=r"needs all 7 samples, but the report has 0"):
        none.bootstrap("consistency")


def test_needs_only_the_samples_that_have_the_number():
    x = images()
    settings = {"saliency": EXACT_WEIGHTS, "saliency_samples": 3}
    kept = measure_invariance(mlp(), in_batches(x), CyclicRotation(4), kept_samples=4, **settings)
    assert kept.bootstrap("saliency_similarity").high <= 1
    with pytest.raises(ValueError, match="needs all 7 samples"):
        kept.bootstrap("logit_error")


@pytest.mark.parametrize("name", ["noise_error", "model", "index", "per_element"])
def test_of_what_was_not_measured_is_refused(name):
    with pytest.raises(ValueError, match=rf"has the estimates \['logit_error', .*\]: got '{name}'"):
        report().bootstrap(name)


@pytest.mark.parametrize(
    "settings", [{"confidence": 0}, {"confidence": 1}, {"confidence": 95}, {"resamples": 0}, {"resamples": -1}], ids=str
)
def test_settings_out_of_their_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"between 0 and 1 and resamples positive: got"):
        report().bootstrap("logit_error", **settings)
