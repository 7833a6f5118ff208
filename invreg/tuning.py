"""How large must the weight be?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, isfinite, isnan, sqrt
from numbers import Real

__all__ = ["Tuning", "tune_weight"]

Trial = tuple[float, float]
"""A weight and the score that it reached."""


@dataclass(frozen=True)
class Tuning:
    """The weight that a search found, and all that it tried; ``print`` shows it as a table.

    Made by ``tune_weight``, which documents it.
    """

    weight: float
    """The smallest weight that reached the target, and above which no trial missed it."""
    score: float
    """What this weight reached; the lowest, if it was tried more than once."""
    target: float
    """The score that was asked for."""
    trials: tuple[Trial, ...]
    """Each weight and its score, in the order in which they were tried."""

    @property
    def too_small(self) -> float | None:
        """The largest weight that missed the target, or None if none did: the smallest that is enough lies above."""
        return max((weight for weight, score in self.trials if score < self.target), default=None)

    def __str__(self) -> str:
        lines = [f"{'weight':>10}  {'score':>10}"]
        for weight, score in sorted(self.trials):
            verdict = "missed" if score < self.target else "reached"
            chosen = "  <- chosen" if (weight, score) == (self.weight, self.score) else ""
            lines.append(f"{weight:10.4g}  {score:10.4g}  {verdict}{chosen}")
        return "\n".join([*lines, f"Target: {self.target:.4g}"])


def tune_weight(
    score: Callable[[float], float],
    target: float,
    *,
    initial: float = 1.0,
    factor: float = 10.0,
    precision: float = 1.5,
    largest: float = 1e4,
    max_runs: int = 12,
    trials: list[Trial] | None = None,
) -> Tuning:
    """Finds about the smallest weight of a regulariser whose score reaches a target, in few trainings.

    From ``initial`` the weight goes up by ``factor`` until a trial reaches the target; or, if ``initial`` reaches it at
    once, to 0, which ends the search if no regulariser is needed, and then down by ``factor``. Between a weight that
    missed the target and one that reached it, the search halves the distance of their logarithms.

    A score is noisy if it comes from one training: near the target, chance decides which side a trial falls on, and the
    weight is then as uncertain as the score. What is returned has reached the target itself, and no larger weight that
    was tried has missed it. Score the mean, or the worst, of several seeds where that is not sure enough.

    Args:
        score: Trains a model with the weight that it is given and returns what was reached, higher being better, such
            as the mean saliency similarity on validation data. It should grow with the weight, up to noise.
        target: The score to reach.
        initial: The weight to try first.
        factor: By how much the weight changes until the target lies between two trials, above 1.
        precision: The search ends when the weight found is at most so many times one that missed the target, above 1.
        largest: No larger weight is tried.
        max_runs: How often ``score`` is called at most. If the target was reached by then, the search returns the best
            so far; ``Tuning.too_small`` says how far it had come.
        trials: What is known already, as pairs of weight and score. Each new trial is appended as soon as it is there,
            so that a search that ended for any reason goes on when it is called with the same list. Where the process
            may end, let ``score`` write what it returns to disk as well. None starts anew.

    Returns:
        The weight, 0 if none is needed, its score, and all trials, those known already among them.

    Raises:
        TypeError: ``score`` is no callable or does not return a number, a setting is no number, or ``trials`` is no
            list.
        ValueError: A setting is out of its range, a known trial is no pair of a weight and a score, or ``score``
            returned NaN.
        RuntimeError: The target was not reached by the ``largest`` weight, or in ``max_runs`` calls. The message lists
            the trials.

    Source: Bisection, on a logarithmic scale. Moskalev et al. (2023) tune to a saliency similarity of 0.95.

    Example:
        >>> tuning = tune_weight(lambda weight: weight / (weight + 0.2), target=0.9)
        >>> print(tuning)
            weight       score
                 1      0.8333  missed
             1.778      0.8989  missed
             2.371      0.9222  reached  <- chosen
             3.162      0.9405  reached
                10      0.9804  reached
        Target: 0.9
    """
    _check_settings(score, target, initial, factor, precision, largest, max_runs)
    if not (trials is None or isinstance(trials, list)):
        raise TypeError(f"trials must be a list, to which new ones are appended: got {type(trials).__name__}.")
    trials = [] if trials is None else trials
    for known in trials:
        _check_trial(known)
    runs = 0
    while (weight := _next_weight(trials, target, initial, factor, precision)) is not None and runs < max_runs:
        if weight > largest:
            if _largest_missed(trials, target) >= largest:
                break
            weight = largest
        trials.append((weight, _number(score(weight), weight)))
        runs += 1
    found = _smallest_enough(trials, target)
    if found is None:
        best = max(trials, key=lambda trial: trial[1])
        raise RuntimeError(
            f"A weight up to {largest:g} must reach the target of {target:g} within {max_runs} runs: got at best "
            f"{best[1]:g}, with weight {best[0]:g}, and the largest weight tried missed it. Lower the target, or go on "
            f"with a larger largest= or max_runs= and trials={trials!r}."
        )
    return Tuning(
        weight=found,
        score=min(reached for weight, reached in trials if weight == found),
        target=float(target),
        trials=tuple((float(weight), float(reached)) for weight, reached in trials),
    )


def _largest_missed(trials: Iterable[Trial], target: float) -> float:
    """The largest weight that missed the target, below 0 if none did."""
    return max((weight for weight, reached in trials if reached < target), default=-1.0)


def _smallest_enough(trials: Iterable[Trial], target: float) -> float | None:
    """The smallest weight that was tried of those that are larger than all that missed the target."""
    missed = _largest_missed(trials, target)
    return min((weight for weight, _ in trials if weight > missed), default=None)


def _next_weight(trials: list[Trial], target: float, initial: float, factor: float, precision: float) -> float | None:
    """What to try after these trials; None if the search is at its end."""
    missed, enough = _largest_missed(trials, target), _smallest_enough(trials, target)
    if enough is None:
        return initial if missed < initial else missed * factor
    if missed < 0:
        return 0.0 if enough > 0 else None
    if missed == 0:
        return enough / factor
    return sqrt(missed) * sqrt(enough) if enough > precision * missed else None


def _check_settings(
    score: object, target: float, initial: float, factor: float, precision: float, largest: float, max_runs: int
) -> None:
    if not callable(score):
        raise TypeError(f"score must be a callable from a weight to what a training with it reached: got {score!r}.")
    numbers = {"target": target, "initial": initial, "factor": factor, "precision": precision, "largest": largest}
    for name, value in numbers.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number: got {value!r}.")
    if not isfinite(target):
        raise ValueError(f"target must be a finite score: got {target!r}.")
    if not 0 < initial <= largest < inf:
        raise ValueError(
            f"initial and largest must be weights with 0 < initial <= largest: got initial={initial!r}, "
            f"largest={largest!r}."
        )
    for name, value in {"factor": factor, "precision": precision}.items():
        if not 1 < value < inf:
            raise ValueError(f"{name} must be a finite number above 1: got {value!r}.")
    if type(max_runs) is not int or max_runs < 1:
        raise ValueError(f"max_runs must be a whole number, 1 or more: got {max_runs!r}.")


def _check_trial(known: Trial) -> None:
    try:
        weight, reached = known
        sensible = 0 <= weight < inf and not isnan(reached)
    except (TypeError, ValueError):
        sensible = False
    if not sensible:
        raise ValueError(f"trials must hold pairs (weight, score), the weight 0 or more: got {known!r}.")


def _number(reached: float, weight: float) -> float:
    """What ``score`` returned, as a float."""
    try:
        number = float(reached)
    except (TypeError, ValueError) as error:
        raise TypeError(f"score must return a number: got {reached!r} for weight {weight:g}.") from error
    if isnan(number):
        raise ValueError(
            f"score must return a number that can be compared: got NaN for weight {weight:g}. Where a training "
            "diverges, return the lowest score."
        )
    return number
