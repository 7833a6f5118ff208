"""What does the audit of the layers add to forwards with hooks written by hand, and what do hooks add at all?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from invreg import CyclicRotation
from invreg.audit.layers import measure_layers
from tests.benchmarks.models import CLASSES, MODELS, SIDE
from tests.benchmarks.timing import ratios

GROUP = CyclicRotation(4)
BATCH = 256


def deep() -> nn.Module:
    """Eight convolutions, each with a normalisation and a rectifier that writes into its input."""
    channels = [1, *[16] * 8]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        for a, b in pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """The audit's time as a multiple of hooks written by hand, and theirs as a multiple of forwards of as many rows."""
    for name, make in {**MODELS, "deep CNN": deep}.items():
        model = make().eval()
        data = [
            torch.randn(32 if quick else BATCH, 1, SIDE, SIDE)
            for _ in range(1 if quick else 2 if name == "deep CNN" else 8)
        ]
        rounds = 2 if quick else 12
        found = ratios(
            {
                "by hand": partial(_by_hand, model, data),
                "audit": partial(measure_layers, model, data, GROUP),
                "forwards": partial(_forwards, model, data),
            },
            rounds=rounds,
        )
        yield f"audit of the layers, {name}: measure_layers / hooks and running sums by hand", found["audit"]
        yield f"hooks and running sums by hand, {name} / forwards without hooks", 1 / found["forwards"]


def _pieces(data: list[Tensor]) -> Iterator[Tensor]:
    """A quarter of a batch and its three turned copies: as many rows as a batch."""
    for x in data:
        for part in x.split(len(x) // GROUP.order):
            yield torch.cat([torch.rot90(part, k, (-2, -1)) for k in range(GROUP.order)])


def _forwards(model: nn.Module, data: list[Tensor]) -> None:
    with torch.no_grad():
        for together in _pieces(data):
            model(together)


class _Sums:
    """Running sums of one layer."""

    def __init__(self) -> None:
        self.count = 0
        self.errors = torch.zeros(2, 2, dtype=torch.float64)
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def after(self, _: nn.Module, __: object, output: Tensor) -> None:
        """Adds what a layer returned."""
        reference, *moved = output.detach().chunk(GROUP.order)
        axes = tuple(range(1, reference.ndim))
        self._add(0, sum(torch.linalg.vector_norm(m - reference, dim=axes).square() for m in moved))
        if reference.ndim == 4:
            back = (torch.rot90(m, -k, (-2, -1)) for k, m in enumerate(moved, 1))
            self._add(1, sum(torch.linalg.vector_norm(m - reference, dim=axes).square() for m in back))
        self.count += len(reference)
        self.total += reference.sum(0).double()
        self.squares += reference.square().sum(0).double()

    def _add(self, which: int, squares: Tensor) -> None:
        errors = squares.double() / (2 * (GROUP.order - 1))
        self.errors[which] += torch.stack([errors.sum(), errors.square().sum()])

    def report(self) -> list[float]:
        """Both errors and their standard errors, as shares of the variance."""
        variance = float(((self.squares - self.total**2 / self.count) / (self.count - 1)).sum())
        mean = self.errors[:, 0] / self.count
        deviation = (self.errors[:, 1] / self.count - mean**2).clamp(min=0).sqrt() / self.count**0.5
        return [*(mean / variance).tolist(), *(deviation / variance).tolist()]


def _by_hand(model: nn.Module, data: list[Tensor]) -> list[list[float]]:
    """The numbers of the layers that have no layers inside."""
    leaves = [layer for layer in model.modules() if next(layer.children(), None) is None]
    sums = [_Sums() for _ in leaves]
    handles = [layer.register_forward_hook(one.after) for layer, one in zip(leaves, sums, strict=True)]
    try:
        _forwards(model, data)
    finally:
        for handle in handles:
            handle.remove()
    return [one.report() for one in sums]
