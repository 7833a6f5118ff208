"""Between which bounds does a mean lie, without a normal distribution being assumed?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_AT_ONCE = 10_000_000
"""How many samples are drawn at once, to bound the memory."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Args:
        low: Its lower bound.
        high: Its upper bound.
        confidence: The share of audits of other samples whose interval would contain the true mean.
    """

    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g} ({100 * self.confidence:.4g}% bootstrap)"


def bootstrap_interval(values: npt.NDArray[np.float64], confidence: float, resamples: int, seed: int) -> Interval:
    """The percentile interval of the mean over samples drawn again with replacement.

    Source: Efron, Tibshirani, "An introduction to the bootstrap" (1993), section 13.3.

    Args:
        values: One per sample, ``(N,)``.
        confidence: Between 0 and 1.
        resamples: How often all samples are drawn again.
        seed: Of the draws.

    Returns:
        The interval.
    """
    rng = np.random.default_rng(seed)
    step = max(_AT_ONCE // len(values), 1)
    means = [
        values[rng.integers(len(values), size=(min(step, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)
