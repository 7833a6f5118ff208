"""The loop that ``regularize`` stands for, written out: loss + weight * invariance(model, x, outputs)."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import InvarianceLoss

Batches = list[tuple[Tensor, Tensor]]
RATE = 0.2
"""The learning rate of every loop that is compared with this one."""


def labelled_batches(*sizes: int, shape=(1, 4, 4), classes=5, dtype=torch.float64) -> Batches:
    """Always the same samples, in batches of these sizes."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(sum(sizes), *shape, dtype=dtype, generator=rng)
    y = torch.randint(classes, (sum(sizes),), generator=rng)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def trained(
    model: nn.Module,
    batches: Batches,
    invariance: InvarianceLoss | None,
    weight: float,
    *,
    accumulate: int = 1,
    forwards_under: contextlib.AbstractContextManager[object] | None = None,
) -> dict[str, Tensor]:
    """What the parameters of a copy of the model are after these batches."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for number, (x, y) in enumerate(batches, 1):
        with forwards_under or contextlib.nullcontext():
            outputs = model(x)
            loss = F.cross_entropy(outputs, y)
            if invariance is not None:
                loss = loss + weight * invariance(model, x, outputs)
        (loss / accumulate).backward()
        if number % accumulate == 0 or number == len(batches):
            optimizer.step()
            optimizer.zero_grad()
    return parameters(model)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest distance of a parameter from what it should be, relative to the norm of that."""
    assert actual.keys() == expected.keys()
    return max(((actual[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)
