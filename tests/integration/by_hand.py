"""The training step that ``regularize`` stands for, by hand: with no code of the package."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from invreg import CyclicRotation

TURNS = CyclicRotation(4)
WEIGHT = 0.3
RATE = 0.2

Network = Callable[[Tensor], Tensor]


def network(dtype: torch.dtype = torch.float64, *, seed: int = 3) -> nn.Sequential:
    """A small network, always the same one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(step: int = 0, *, samples: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images and classes, always the same ones at one step."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(samples, 1, 4, 4, dtype=torch.float64, generator=rng)
    return x.to(dtype), torch.randint(3, (samples,), generator=rng)


def penalty(model: Network, x: Tensor, logits: Tensor) -> Tensor:
    """Half the squared distance by which a quarter turn, a half turn and three quarters move the logits."""
    turned = model(torch.cat([torch.rot90(x, k, (-2, -1)) for k in (1, 2, 3)]))
    return sum((logits - moved).square().sum(1).mean() / 2 for moved in turned.chunk(3)) / 3


def objective(model: Network, x: Tensor, y: Tensor, weight: float = WEIGHT) -> Tensor:
    """The task's loss and the penalty."""
    logits = model(x)
    return F.cross_entropy(logits, y) + weight * penalty(model, x, logits)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """The gradients of a loss with respect to the parameters."""
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def task_gradients(model: nn.Module, step: int = 0) -> list[Tensor]:
    """The gradients that a loop finds that knows of no penalty."""
    x, y = batch(step)
    return gradients(model, F.cross_entropy(model(x), y))


def expected_gradients(model: nn.Module, step: int = 0, weight: float = WEIGHT) -> list[Tensor]:
    """The gradients by hand."""
    return gradients(model, objective(model, *batch(step), weight))


def assert_same(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float = 1e-12) -> None:
    """Raises unless each tensor is the other one, up to rounding that is relative to its largest entry."""
    actual, expected = list(actual), list(expected)
    assert expected
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=0, atol=tolerance * max(1e-3, float(other.detach().abs().max())))


def differ(actual: Iterable[Tensor], expected: Iterable[Tensor], by: float = 1e-3) -> bool:
    """Whether any tensor is another one: what a test that compares can see."""
    return any(bool((one - other).abs().max() > by) for one, other in zip(actual, expected, strict=True))
