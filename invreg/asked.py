"""How does a compiled graph ask a callable at each run, instead of once for all?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_by_number: WeakValueDictionary[int, Asked] = WeakValueDictionary()
_numbers = count()
_TAGS = [getattr(torch.Tag, name) for name in ("pt2_compliant_tag", "cudagraph_unsafe") if hasattr(torch.Tag, name)]


class Asked:
    """A callable of the user's that returns a number.

    What a compiler traces becomes a constant, or a reason to compile again as soon as it changes. So a compiled graph
    holds a number by which to find the callable, and a copy of this has its own.
    """

    def __init__(self, function: Callable[[], float]) -> None:
        self._function = function
        self._enlist()

    def __call__(self, like: Tensor) -> float | Tensor:
        """The answer; in a compiled graph as a scalar of this tensor's dtype and device."""
        if torch.compiler.is_compiling():
            return torch.ops.invreg.asked(like.detach(), self._number)  # type: ignore[no-any-return]
        return self._function()

    def __getstate__(self) -> Callable[[], float]:
        return self._function

    def __setstate__(self, function: Callable[[], float]) -> None:
        self._function = function
        self._enlist()

    def _enlist(self) -> None:
        self._number = next(_numbers)
        _by_number[self._number] = self


torch.library.define("invreg::asked", "(Tensor like, int number) -> Tensor", tags=_TAGS)


@torch.library.impl("invreg::asked", "CompositeExplicitAutograd")
def _ask(like: Tensor, number: int) -> Tensor:
    return like.new_full((), _by_number[number]._function())


@torch.library.register_fake("invreg::asked")  # type: ignore[untyped-decorator]  # it has no types in torch
def _ask_nothing(like: Tensor, number: int) -> Tensor:
    return like.new_empty(())
