"""How do several processes make one report?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def place(*, distributed: bool) -> tuple[int, int]:
    """The rank of this process and how many there are; (0, 1) if it works alone."""
    together = distributed and torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)


def gathered(work: Callable[[], T], world: int) -> list[T]:
    """What each rank's work returned, in the order of ranks.

    Raises:
        RuntimeError: It failed on another rank; without this, the others would wait for it for ever.
    """
    if world == 1:
        return [work()]
    done: Any = None
    failure: BaseException | None = None
    try:
        done = work()
    except BaseException as error:  # KeyboardInterrupt too: the other ranks must hear of it
        failure = error
    answers: list[Any] = [None] * world
    torch.distributed.all_gather_object(answers, (done, None if failure is None else repr(failure)))
    if failure is not None:
        raise failure
    for rank, (_, reason) in enumerate(answers):
        if reason is not None:
            raise RuntimeError(f"The audit failed on rank {rank} of {world}: {reason}")
    return [answer for answer, _ in answers]
