"""How are means and their standard errors kept while data streams by?"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from invreg.audit.estimate import Estimate

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Moments:
    """Counts, means and sums of squared deviations of values in numbered bins; float64.

    Batches merge by the update of Chan, Golub and LeVeque (1979), whose rounding does not depend on how large the
    mean is, so that neither batch size nor order matter beyond the last digits.

    Args:
        bins: How many.
    """

    def __init__(self, bins: int) -> None:
        self.count: Array = np.zeros(bins, dtype=np.float64)
        self.mean: Array = np.zeros(bins, dtype=np.float64)
        self.deviations: Array = np.zeros(bins, dtype=np.float64)

    def add(self, values: Array, bins: Indices) -> None:
        """Adds values, each to its bin; both of shape ``(R,)``."""
        if len(self.count) > 4 * len(values):  # so that many bins cost no more than those that are met
            met, bins = np.unique(bins, return_inverse=True)
            part = Moments(len(met))
            part.add(values, bins)
            here = Moments(len(met))
            here.count, here.mean, here.deviations = self.count[met], self.mean[met], self.deviations[met]
            here.merge(part)
            self.count[met], self.mean[met], self.deviations[met] = here.count, here.mean, here.deviations
            return
        batch = Moments(len(self.count))
        batch.count = _sums(np.ones_like(values), bins, len(self.count))
        batch.mean = _sums(values, bins, len(self.count)) / np.maximum(batch.count, 1)
        batch.deviations = _sums(np.square(values - batch.mean[bins]), bins, len(self.count))
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Adds what another one has seen."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        shift = other.mean - self.mean
        self.mean += shift * share
        self.deviations += other.deviations + shift**2 * self.count * share
        self.count = count

    def array(self) -> Array:
        """All of it in one array, ``(3, bins)``."""
        return np.stack([self.count, self.mean, self.deviations])

    @classmethod
    def from_array(cls, array: Array) -> Moments:
        """What ``array`` returned the array of."""
        moments = cls(array.shape[1])
        moments.count, moments.mean, moments.deviations = array.copy()
        return moments

    def estimate(self, index: int = 0) -> Estimate | None:
        """The mean of a bin and its standard error; None if nothing fell into it."""
        count = int(self.count[index])
        if count == 0:
            return None
        error = math.sqrt(self.deviations[index] / (count - 1) / count) if count > 1 else None
        return Estimate(float(self.mean[index]), error, count)


def _sums(values: Array, bins: Indices, size: int) -> Array:
    return np.bincount(bins, values, size).astype(np.float64, copy=False)  # which numpy types as integers
