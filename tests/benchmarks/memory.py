"""How much memory does a step need at most, beyond what lives on after it?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(step: Callable[[], object], device: str) -> int:
    """The most bytes that torch's allocator held at one time during a step, above what it held before.

    So it counts activations kept for backward, gradients and temporaries, but no model, batch or optimizer state, since
    the step runs once before. On the CPU, from the profiler's list of allocations, which is the same in
    each run; scratch memory that libraries such as oneDNN allocate for themselves is not in it.
    """
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    held = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
