"""How are quantiles told of more values than are kept?"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RELATIVE_ERROR = 0.005
"""How far a quantile may be from the value that it stands for, as a share of it."""

_BASE = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
_LARGEST = math.log(sys.float_info.max)
_ZERO = -(2**31)
"""The bucket of zeros."""


class LogHistogram:
    """Counts of non-negative values in buckets whose bounds grow by a constant factor.

    Each value is known up to ``RELATIVE_ERROR`` of itself, whatever its size, and there are at most as many buckets as
    float64 has such factors, about 140,000. Counts add, so that neither order nor batches nor merging matter.

    Source: Masson, Rim, Lee, "DDSketch" (2019), section 2.

    Args:
        counts: How many values each bucket has.
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, values: Array) -> None:
        """Adds finite values that are not negative."""
        with np.errstate(divide="ignore"):
            buckets = np.where(values > 0, np.ceil(np.log(values) / _BASE), _ZERO).astype(np.int64)
        for bucket, count in zip(*np.unique(buckets, return_counts=True), strict=True):
            self.counts[int(bucket)] = self.counts.get(int(bucket), 0) + int(count)

    def merge(self, other: LogHistogram) -> None:
        """Adds what another one has seen."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def plain(self) -> list[list[int]]:
        """Pairs of a bucket and its count."""
        return [[bucket, self.counts[bucket]] for bucket in sorted(self.counts)]

    @classmethod
    def from_plain(cls, pairs: Iterable[tuple[int, int]]) -> LogHistogram:
        """What ``plain`` told."""
        return cls(dict(pairs))

    def values(self) -> tuple[Array, npt.NDArray[np.int64]]:
        """A value for each bucket, ascending, and how many there are; both of shape ``(B,)``."""
        buckets = sorted(self.counts)
        middle = 2 / (1 + math.exp(_BASE))  # of the bucket's bounds, as far from both in proportion
        found = [0.0 if bucket == _ZERO else middle * math.exp(min(bucket * _BASE, _LARGEST)) for bucket in buckets]
        return np.array(found, dtype=np.float64), np.array([self.counts[b] for b in buckets], dtype=np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogHistogram) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # it changes


def quantile(kept: Array, others: LogHistogram, share: float) -> float:
    """The least value that at least this share of all values does not exceed.

    Args:
        kept: Values that are known exactly.
        others: The rest.
        share: Between 0 and 1.

    Returns:
        The value; off by at most ``RELATIVE_ERROR`` of itself if it is not one of those kept.
    """
    values, counts = others.values()
    values, counts = np.concatenate([kept, values]), np.concatenate([np.ones(len(kept), dtype=np.int64), counts])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    return float(values[order][np.searchsorted(reached / reached[-1], share)])  # 7 / 100 is 0.07; 0.07 * 100 is not 7
