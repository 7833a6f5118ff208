"""How far does a group move what a model returns, and what is left behind on it?"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg import FiniteGroup

INVARIANT = 1e-5
"""How far the output of an invariant model may move in float32, relative to its largest entry."""

REFUSED = (ValueError, RuntimeError)
"""What a first forward may raise where the tied model fails or is not invariant."""


def logsumexp(orbit: Tensor) -> Tensor:
    return orbit.logsumexp(0)


REDUCTIONS = {
    "max": ("max", max),
    "mean": ("mean", lambda values: math.fsum(values) / len(values)),
    "callable": (logsumexp, lambda values: math.log(math.fsum(math.exp(value) for value in values))),
}
"""A reduction, and what it makes of a list of numbers."""

every_reduction = pytest.mark.parametrize("reduction", [reduction for reduction, _ in REDUCTIONS.values()])


def movement(model: Callable[[Tensor], Tensor], group: FiniteGroup, x: Tensor) -> float:
    """The largest |f(x) - f(gx)| over all elements, relative to the largest |f(x)|."""
    with torch.no_grad():
        at_x = model(x)
        at_gx = torch.stack([model(group.act(g, x)) for g in group.elements()])
    return float((at_gx - at_x).abs().max() / at_x.abs().max())


def hooks_of(model: nn.Module) -> int:
    """How many hooks there are of any kind, on all modules together."""
    tables = [table for module in model.modules() for name, table in vars(module).items() if "_hooks" in name]
    return sum(len(table) for table in tables if isinstance(table, dict))


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode, with running statistics that a batch has moved."""
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def quarter_turned(x: Tensor, turns: int = 1) -> Tensor:
    return torch.rot90(x, turns, (-2, -1))


def broken_pool(outputs: Tensor, group: FiniteGroup, reduction: Any, *_: Any, **__: Any) -> Tensor:
    """Forgets half of the orbit."""
    return outputs.unflatten(0, (group.order, -1))[: group.order // 2].amax(0)
