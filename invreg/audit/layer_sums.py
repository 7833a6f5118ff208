"""What have the samples seen so far shown of each layer?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from invreg.audit.activations import Piece
from invreg.audit.estimate import Estimate
from invreg.audit.layer_report import LayerReport
from invreg.audit.moments import Array, Moments

_PENDING = 256
"""The numbers of how many calls of layers stay on the device before they are fetched all at once."""

_ROUNDING = 2.0
"""Units that vary by no more than so many roundings of their mean are constant."""


class _Row:
    """What is known of one call of one layer."""

    def __init__(self, index: int, name: str, kind: str, call: int) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.call = call
        self.failure: str | None = None
        self.refusal: str | None = None
        self.shape: tuple[int, ...] | None = None
        self.rounding = 0.0
        self.count = 0
        self.mean: Tensor | None = None
        self.deviations = 0.0


class LayerSums:
    """Running means of the errors, and variances, of each layer and call, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str | None, int], _Row] = {}
        self.moments = Moments(0)  # two bins per row, invariance and equivariance
        self.pending: list[tuple[_Row, Tensor, Tensor | None, Tensor, Tensor, float]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, key: tuple[str | None, int], name: str, kind: str, call: int, piece: Piece | str) -> None:
        """Adds what some samples show; its numbers stay on the device until ``settle``."""
        row = self.rows.setdefault(key, _Row(len(self.rows), name, kind, call))
        if row.failure is not None:
            return
        if isinstance(piece, str):
            row.failure = piece
            return
        if row.mean is not None and piece.shape != row.shape:
            row.failure = f"its shape changes over the data, from {row.shape} to {piece.shape}"
            return
        if self.pending and (len(self.pending) >= _PENDING or self.pending[0][1].shape != piece.invariance.shape):
            self.settle()
        count = piece.invariance.shape[1]
        weight, apart = 0.0, piece.deviation
        if row.mean is None:
            row.mean, row.shape, row.rounding, row.refusal = piece.mean, piece.shape, piece.rounding, piece.refusal
        else:  # Chan, Golub and LeVeque (1979): samples merge without their squares cancelling
            share = count / (row.count + count)
            weight, apart = row.count * share, torch.linalg.vector_norm(piece.mean - row.mean)
            row.mean = row.mean.lerp(piece.mean, share)
        row.count += count
        self.pending.append((row, piece.invariance, piece.equivariance, piece.deviation, apart, weight))

    def settle(self) -> None:
        """Takes the numbers of some forwards from the device, all at once."""
        if not self.pending:
            return
        rows, invariance, equivariance, inside, between, weights = zip(*self.pending, strict=True)
        device, (elements, samples) = invariance[0].device, invariance[0].shape
        norms = [part for a, b in zip(invariance, equivariance, strict=True) for part in (a, a if b is None else b)]
        spreads = [part for pair in zip(inside, between, strict=True) for part in pair]
        errors = _squares(torch.cat, norms, device).reshape(-1, 2, elements, samples).mean(2) / 2
        squares = _squares(torch.stack, spreads, device).reshape(-1, 2)
        finite = np.isfinite(errors).all((1, 2)) & np.isfinite(squares).all(1)
        errors[~finite] = 0
        has = finite[:, None] & [(True, one is not None) for one in equivariance]
        if len(self.moments.count) < 2 * len(self.rows):
            self.moments = _grown(self.moments, 2 * len(self.rows))
        bins = np.array([(2 * row.index, 2 * row.index + 1) for row in rows])
        self.moments.add(errors[has].ravel(), np.repeat(bins[has], samples))
        for row, usable, (own, apart), weight in zip(rows, finite, squares.tolist(), weights, strict=True):
            row.deviations += own + weight * apart
            if not usable:
                row.failure = "its numbers, or their squares, are not finite"
        self.pending.clear()

    def report(self) -> Iterator[LayerReport]:
        """What the samples have shown of each layer."""
        self.settle()
        return map(self._report, self.rows.values())

    def _report(self, row: _Row) -> LayerReport:
        errors, reason = self._errors(row)
        return LayerReport(row.name, row.kind, row.call, row.shape, errors[0], errors[1], reason)

    def _errors(self, row: _Row) -> tuple[tuple[Estimate | None, Estimate | None], str | None]:
        """Both errors as shares of the variance, and why one of them is None."""
        if row.failure is not None or row.mean is None:
            return (None, None), row.failure
        found = self.moments.estimate(2 * row.index), self.moments.estimate(2 * row.index + 1)
        floor = (_ROUNDING * row.rounding * float(row.mean.norm())) ** 2
        variance = row.deviations / max(1, row.count - 1)
        if variance > floor:
            return (_share(found[0], variance), _share(found[1], variance)), row.refusal
        if all(one is None or one.mean <= floor for one in found):
            return (_share(found[0], None), _share(found[1], None)), row.refusal
        if row.count == 1:
            return (None, None), "one sample has no variance to compare with"
        return (None, None), "constant over the data, but not under the group"


def _squares(joined: Callable[[list[Tensor]], Tensor], parts: list[Tensor], device: torch.device) -> Array:
    """The squares of some norms, fetched from the device at once."""
    here = joined([part if part.device == device else part.to(device) for part in parts])
    squares: Array = np.square(here.cpu().numpy().astype(np.float64))
    return squares


def _share(estimate: Estimate | None, variance: float | None) -> Estimate | None:
    """An error as a share of the variance; zero where both are."""
    if estimate is None:
        return None
    scale = 0.0 if variance is None else 1 / variance
    error = None if estimate.standard_error is None else estimate.standard_error * scale
    return Estimate(estimate.mean * scale, error, estimate.count)


def _grown(moments: Moments, bins: int) -> Moments:
    """The same with more bins, which are empty."""
    grown = Moments(bins)
    for name in ("count", "mean", "deviations"):
        getattr(grown, name)[: len(moments.count)] = getattr(moments, name)
    return grown
