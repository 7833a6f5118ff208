"""What does the regulariser add to the tightest step that can be written by hand?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import CyclicRotation, L2InvarianceLoss
from tests.benchmarks.models import CLASSES, MODELS, SIDE
from tests.benchmarks.timing import ratios

WEIGHT = 0.1


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """A training step's time as a multiple of the step written by hand, and of the plain step."""
    for name, make in MODELS.items():
        found = _steps(make(), n=32 if quick else 512, rounds=3 if quick else 40)
        yield f"training step, {name}: L2InvarianceLoss / by hand in one forward", found["invreg"]
        yield f"training step, {name}: by hand in two forwards / in one", found["by hand, two forwards"]
        yield f"training step, {name}: L2InvarianceLoss / plain step", found["invreg"] / found["plain"]
        yield f"training step, {name}: L2InvarianceLoss(samples=1) / plain step", found["samples=1"] / found["plain"]


def _steps(model: nn.Module, *, n: int, rounds: int) -> dict[str, float]:
    optimizer = torch.optim.Adam(model.parameters(), 8e-4)
    x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
    full = L2InvarianceLoss(CyclicRotation(4))
    one = L2InvarianceLoss(CyclicRotation(4), samples=1)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def turned() -> list[Tensor]:
        return [torch.rot90(x, k, (-2, -1)) for k in (1, 2, 3)]

    def by_hand() -> None:
        outputs = model(torch.cat([x, *turned()])).view(4, n, CLASSES)
        distance = (outputs[1:] - outputs[0]).square().sum(2).mean() / 2
        step(F.cross_entropy(outputs[0], y) + WEIGHT * distance)

    def by_hand_in_two() -> None:
        logits = model(x)
        outputs = model(torch.cat(turned())).view(3, n, CLASSES)
        step(F.cross_entropy(logits, y) + WEIGHT * (outputs - logits).square().sum(2).mean() / 2)

    def regularised(invariance: L2InvarianceLoss) -> None:
        logits = model(x)
        step(F.cross_entropy(logits, y) + WEIGHT * invariance(model, x, logits))

    return ratios(
        {
            "by hand": by_hand,
            "by hand, two forwards": by_hand_in_two,
            "invreg": lambda: regularised(full),
            "samples=1": lambda: regularised(one),
            "plain": lambda: step(F.cross_entropy(model(x), y)),
        },
        rounds=rounds,
    )
