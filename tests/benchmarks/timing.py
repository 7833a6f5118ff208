"""How are alternatives timed on a noisy machine?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def ratios(alternatives: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Times alternatives in turn, round by round; each one's time as a multiple of the first one's, median over rounds.

    The multiples are taken within a round, so that a machine that slows down for a while slows both sides.
    """
    baseline, *_ = alternatives
    for function in alternatives.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        seconds = {name: _seconds(function) for name, function in alternatives.items()}
        for name in alternatives:
            found[name].append(seconds[name] / seconds[baseline])
    return {name: median(values) for name, values in found.items()}


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
