"""Is the weight found the smallest that is enough, in few runs, and is nothing lost when the search ends early?"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError

import pytest
import torch

from invreg.tuning import Tuning, tune_weight


class Scores:
    """A score that remembers what it was called with."""

    def __init__(self, score: Callable[[float], float]) -> None:
        self.score = score
        self.weights: list[float] = []

    def __call__(self, weight: float) -> float:
        self.weights.append(weight)
        return self.score(weight)


def saturating(threshold: float) -> Scores:
    """Grows with the weight from 0 to 1, and is a half at the threshold."""
    return Scores(lambda weight: weight / (weight + threshold))


def in_turn(*scores: float) -> Scores:
    rest: Iterator[float] = iter(scores)
    return Scores(lambda weight: next(rest))


# The weight


@pytest.mark.parametrize("threshold", [3e-4, 0.02, 0.9, 1.1, 7.0, 80.0, 2e3])
@pytest.mark.parametrize("precision", [1.1, 1.5, 4.0])
def test_is_enough_and_at_most_the_precision_above_one_that_is_not(threshold, precision):
    score = saturating(threshold)
    tuning = tune_weight(score, 0.5, precision=precision, max_runs=20)
    assert threshold <= tuning.weight <= precision * threshold
    assert tuning.too_small < threshold
    assert tuning.weight / tuning.too_small <= precision
    assert tuning.score == score.score(tuning.weight) >= 0.5
    assert tuning.trials == tuple((weight, score.score(weight)) for weight in score.weights)


def test_a_threshold_within_a_factor_of_ten_takes_few_runs():
    assert len(tune_weight(saturating(5.0), 0.5).trials) == 5  # 1 and 10, then 3.2, 5.6 and 4.2
    assert len(tune_weight(saturating(0.5), 0.5).trials) == 6  # 0 as well


def test_goes_up_from_the_initial_weight_by_the_factor():
    score = saturating(100.0)
    tune_weight(score, 0.5, initial=2.0, factor=5.0, precision=5.0)
    assert score.weights == [2.0, 10.0, 50.0, 250.0]


def test_goes_down_from_the_initial_weight_by_the_factor_once_zero_is_too_small():
    score = saturating(0.1)
    tune_weight(score, 0.5, initial=8.0, factor=4.0, precision=4.0)
    assert score.weights == [8.0, 0.0, 2.0, 0.5, 0.125, 0.03125]


def test_halves_the_logarithmic_distance():
    score = saturating(5.0)
    tune_weight(score, 0.5, initial=1.0, factor=16.0, precision=2.0)
    assert score.weights == pytest.approx([1, 16, 4, 8])


def test_is_zero_where_no_regulariser_is_needed():
    score = Scores(lambda weight: 0.97)
    tuning = tune_weight(score, 0.95)
    assert (tuning.weight, tuning.score, tuning.too_small) == (0.0, 0.97, None)
    assert score.weights == [1.0, 0.0]


def test_the_target_itself_is_enough():
    assert tune_weight(Scores(lambda weight: min(weight, 1.0)), 1.0).trials[0] == (1.0, 1.0)
    assert tune_weight(Scores(lambda weight: min(weight, 1.0)), 1.0).weight == 1.0


def test_a_negative_score_will_do():
    assert 2 <= tune_weight(Scores(lambda weight: -1 / weight), -0.5, precision=1.2).weight <= 2.4


# Noise


@pytest.mark.parametrize("seed", range(20))
def test_under_noise_the_weight_reached_the_target_itself_and_no_larger_one_missed_it(seed):
    rng = torch.Generator().manual_seed(seed)
    noisy = Scores(lambda weight: weight / (weight + 3) + 0.1 * torch.randn((), generator=rng).item())
    tuning = tune_weight(noisy, 0.5, precision=1.1)
    assert all(reached >= 0.5 for weight, reached in tuning.trials if weight >= tuning.weight)
    assert dict(tuning.trials)[tuning.weight] == tuning.score
    assert 1 < tuning.weight < 30


def test_a_known_weight_that_reached_it_by_luck_is_passed_over():
    tuning = tune_weight(saturating(6.0), 0.5, trials=[(1.0, 0.51), (3.0, 0.4)])
    assert 6 <= tuning.weight <= 9


def test_of_one_weight_tried_twice_the_lower_score_counts():
    missed = tune_weight(saturating(1.0), 0.5, trials=[(2.0, 0.6), (2.0, 0.4), (2.4, 0.7)])
    assert (missed.weight, missed.score) == (2.4, 0.7)
    reached = tune_weight(saturating(1.0), 0.5, trials=[(1.8, 0.4), (2.4, 0.9), (2.4, 0.6), (2.4, 0.8)])
    assert (reached.weight, reached.score) == (2.4, 0.6)


# A search that ended early


def test_each_trial_is_kept_as_soon_as_it_is_there():
    def interrupted(weight: float) -> float:
        if weight > 50:
            raise KeyboardInterrupt
        return weight / (weight + 300)

    trials = []
    with pytest.raises(KeyboardInterrupt):
        tune_weight(interrupted, 0.5, trials=trials)
    assert trials == [(1.0, 1 / 301), (10.0, 10 / 310)]


@pytest.mark.parametrize("threshold", [0.02, 7.0, 300.0])
@pytest.mark.parametrize("runs", [1, 2, 3, 4])
def test_goes_on_where_it_ended(threshold, runs):
    whole, first, second = (saturating(threshold) for _ in range(3))
    expected = tune_weight(whole, 0.5)
    trials = []
    with contextlib.suppress(RuntimeError):  # where none of these runs reached it
        tune_weight(first, 0.5, max_runs=runs, trials=trials)
    assert len(first.weights) == runs
    assert tune_weight(second, 0.5, trials=trials) == expected
    assert first.weights + second.weights == whole.weights


def test_starts_anew_without_trials():
    first, second = saturating(5.0), saturating(5.0)
    assert tune_weight(first, 0.5) == tune_weight(second, 0.5)
    assert first.weights == second.weights


def test_nothing_is_run_where_the_trials_are_enough():
    score = in_turn()
    assert tune_weight(score, 0.5, trials=[[1.0, 0.4], [1.2, 0.6]]).weight == 1.2
    assert score.weights == []


def test_the_best_so_far_is_returned_after_the_last_run():
    tuning = tune_weight(saturating(5.0), 0.5, max_runs=3)
    assert (tuning.weight, tuning.too_small) == (10.0, pytest.approx(math.sqrt(10)))
    assert tune_weight(saturating(1e-9), 0.5, max_runs=5).weight == pytest.approx(1e-3)


def test_a_target_that_no_weight_reaches_is_told_with_what_was_reached():
    score = Scores(lambda weight: 0.9 - 1 / (weight + 2))
    with pytest.raises(RuntimeError, match=r"up to 200 .*target of 0\.95 .*at best 0\.89\d*, with weight 200") as told:
        tune_weight(score, 0.95, largest=200.0)
    assert score.weights == [1.0, 10.0, 100.0, 200.0]
    assert repr([(weight, score.score(weight)) for weight in score.weights]) in str(told.value)


def test_the_largest_weight_bounds_the_halving_as_well():
    score = saturating(50.0)
    assert tune_weight(score, 0.5, largest=60.0, trials=[(10.0, 0.2), (1e4, 0.9)]).weight <= 60
    assert score.weights[0] == 60
    score = saturating(1e3)
    assert tune_weight(score, 0.5, largest=60.0, trials=[(10.0, 0.2), (1e4, 0.9)]).weight == 1e4
    assert score.weights == [60.0]


# What is returned, and what is refused


def test_shows_a_table():
    tuning = Tuning(weight=2.0, score=0.96, target=0.95, trials=((1.0, 0.5), (10.0, 0.99), (2.0, 0.96)))
    assert str(tuning).splitlines() == [
        "    weight       score",
        "         1         0.5  missed",
        "         2        0.96  reached  <- chosen",
        "        10        0.99  reached",
        "Target: 0.95",
    ]


def test_is_a_value():
    tuning = tune_weight(saturating(5.0), 0.5)
    with pytest.raises(FrozenInstanceError):
        tuning.weight = 3.0
    assert hash(tuning) == hash(tune_weight(saturating(5.0), 0.5))


@pytest.mark.parametrize(
    "kind", [torch.tensor, int, torch.tensor([0.7]).numpy().dtype.type], ids=["tensor", "int", "numpy"]
)
def test_takes_any_kind_of_number(kind):
    tuning = tune_weight(lambda weight: kind(weight > 2), 1.0)
    assert type(tuning.score) is float
    assert 2 <= tuning.weight <= 3


BAD = {
    "no callable": ({"score": 0.95}, TypeError, r"callable.*got 0\.95"),
    "target of NaN": ({"target": math.nan}, ValueError, "target.*finite.*got nan"),
    "target in words": ({"target": "0.9"}, TypeError, "target must be a number: got '0.9'"),
    "infinite target": ({"target": math.inf}, ValueError, "target.*finite.*got inf"),
    "initial of 0": ({"initial": 0.0}, ValueError, r"0 < initial.*initial=0\.0"),
    "initial of NaN": ({"initial": math.nan}, ValueError, "0 < initial.*initial=nan"),
    "initial too large": ({"initial": 1e5}, ValueError, r"initial <= largest.*100000\.0.*10000\.0"),
    "infinite largest": ({"largest": math.inf}, ValueError, "largest=inf"),
    "factor of 1": ({"factor": 1.0}, ValueError, r"factor.*above 1: got 1\.0"),
    "precision of 1": ({"precision": 1.0}, ValueError, r"precision.*above 1: got 1\.0"),
    "no runs": ({"max_runs": 0}, ValueError, "max_runs.*1 or more: got 0"),
    "half a run": ({"max_runs": 2.5}, ValueError, r"max_runs.*whole.*got 2\.5"),
    "trials in a tuple": ({"trials": ()}, TypeError, "trials must be a list.*got tuple"),
    "trial of a number": ({"trials": [1.0]}, ValueError, r"pairs.*got 1\.0"),
    "trial of three": ({"trials": [(1.0, 2.0, 3.0)]}, ValueError, r"pairs.*got \(1\.0, 2\.0, 3\.0\)"),
    "trial below 0": ({"trials": [(-1.0, 2.0)]}, ValueError, r"0 or more: got \(-1\.0, 2\.0\)"),
    "trial of NaN": ({"trials": [(1.0, math.nan)]}, ValueError, r"pairs.*got \(1\.0, nan\)"),
    "score of NaN": ({"score": lambda weight: math.nan}, ValueError, "got NaN for weight 1.*lowest score"),
    "score of nothing": ({"score": lambda weight: None}, TypeError, "return a number: got None for weight 1"),
    "score of words": ({"score": lambda weight: "good"}, TypeError, "return a number: got 'good' for weight 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_makes_no_sense(name):
    settings, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        tune_weight(**{"score": lambda weight: weight, "target": 0.95, **settings})


def test_settings_are_spelled_out():
    with pytest.raises(TypeError, match="positional"):
        tune_weight(lambda weight: weight, 0.95, 2.0)
