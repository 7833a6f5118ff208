"""What does a tied first layer cost: linear at its coefficients, or by expanding the data?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn

from invreg import CyclicRotation, Dihedral, FiniteGroup, GroupPooling, tie_first_layer, tying
from tests.benchmarks.models import CLASSES, SIDE, mlp
from tests.benchmarks.steps import training_step
from tests.benchmarks.timing import ratios

GROUPS: tuple[FiniteGroup, ...] = (CyclicRotation(4), Dihedral(4))


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Times of tied networks as multiples of the plain one's, and of the largest of an orbit as torch's."""
    for group in GROUPS:
        for n in (1, 32) if quick else (1, 32, 512):
            rounds = 3 if quick else 40 if n > 32 else 200
            x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
            models: dict[str, nn.Module] = {
                "plain": mlp(),
                "tied": _tied(group, x),
                "tied by the mean": _tied(group, x, "mean"),
                "by expanding": _expanding(group, x),
            }
            steps = {name: training_step(model, x, y) for name, model in models.items()}
            forwards = {name: _forward(model, x) for name, model in models.items()}
            for what, timed in {"training step": steps, "forward": forwards}.items():
                found = ratios(timed, rounds=rounds)
                yield from (
                    (f"{what}, MLP, {group!r}, {n} images: {name} / plain", found[name])
                    for name in found
                    if name != "plain"
                )
    yield from _largest(quick=quick)


def _tied(group: FiniteGroup, x: Tensor, reduction: str = "max") -> nn.Module:
    model = mlp()
    tie_first_layer(model, group, reduction=reduction)
    model(x)
    return model


def _expanding(group: FiniteGroup, x: Tensor) -> nn.Module:
    """Tied as a layer is that is not linear."""
    with patch.object(tying.TiedFirstLayer, "_expand_at_linear_layer", lambda *_: None):
        return _tied(group, x)


def _forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(x)
        model.train()

    return forward


def _largest(*, quick: bool) -> Iterator[tuple[str, float]]:
    x = torch.randn(4 if quick else 128, 1, SIDE, SIDE)
    for name, layer in {
        "convolution": nn.Conv2d(1, 16, 3, padding=1),
        "linear layer": nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 128)),
    }.items():
        found = ratios(
            {
                pooling: _backward(GroupPooling(layer, CyclicRotation(4), reduction), x)
                for pooling, reduction in {"amax": lambda orbit: orbit.amax(0), "max": "max"}.items()
            },
            rounds=3 if quick else 20,
        )
        yield f"forward and backward of a pooled {name}: reduction='max' / torch's amax", found["max"]


def _backward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x).sum().backward()
