"""What does a network cost that is invariant by construction? escnn's, beside the plain one with as many channels.

Run ``make bench-alternatives``, or ``python -m tests.benchmarks.alternatives.networks [--quick]`` where escnn is
installed. Two convolutions as in the benchmarks' CNN, then the mean over positions and a linear layer. In escnn's
network, the channels of each layer are fields of the regular representation of C4: a quarter or an eighth as many free
ones. Every number is a multiple of the plain network's in training step, forward, memory of a step, parameters.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from invreg import CyclicRotation, L2InvarianceLoss
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.models import CLASSES, SIDE
from tests.benchmarks.steps import training_step
from tests.benchmarks.timing import ratios

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # packages that only rotations of space need are missing
    from escnn import gspaces
    from escnn import nn as escnn

WIDTHS = (16, 32)
GROUP = CyclicRotation(4)


def plain() -> nn.Module:
    """The network of plain layers."""
    first, second = WIDTHS
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, CLASSES),
    )


class Equivariant(nn.Module):
    """The same of escnn's layers: as many channels, which turn into each other as the image turns.

    Args:
        widths: Channels of the two convolutions.
    """

    def __init__(self, widths: tuple[int, int] = WIDTHS) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.inputs = escnn.FieldType(space, [space.trivial_repr])
        first, second = (escnn.FieldType(space, width // 4 * [space.regular_repr]) for width in widths)
        self.layers = escnn.SequentialModule(
            escnn.R2Conv(self.inputs, first, 3, padding=1),
            escnn.ReLU(first),
            escnn.PointwiseMaxPool(first, 2),
            escnn.R2Conv(first, second, 3, padding=1),
            escnn.ReLU(second),
            escnn.PointwiseMaxPool(second, 2),
            escnn.GroupPooling(second),
        )
        self.head = nn.Linear(widths[1] // 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.layers(escnn.GeometricTensor(x, self.inputs)).tensor.mean((2, 3)))


def costs(*, n: int, rounds: int) -> dict[str, dict[str, float]]:
    """Each network's costs as multiples of the plain one's."""
    x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
    models = {
        "plain": plain(),
        "escnn, as many channels": Equivariant(),
        "escnn, as many free channels": Equivariant((4 * WIDTHS[0], 4 * WIDTHS[1])),
        "plain, L2InvarianceLoss(samples=1)": plain(),
        "plain, L2InvarianceLoss": plain(),
    }
    terms = {
        "plain, L2InvarianceLoss(samples=1)": L2InvarianceLoss(GROUP, samples=1),
        "plain, L2InvarianceLoss": L2InvarianceLoss(GROUP),
    }
    steps = {name: training_step(model, x, y, terms.get(name)) for name, model in models.items()}
    memory = {name: peak_memory(step, "cpu") for name, step in steps.items()}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return {
        "training step": ratios(steps, rounds=rounds),
        "forward in eval mode": ratios({name: _forward(model, x) for name, model in models.items()}, rounds=rounds),
        "memory of a step": {name: memory[name] / memory["plain"] for name in models},
        "parameters": {name: sizes[name] / sizes["plain"] for name in models},
    }


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    model.eval()
    return torch.no_grad()(lambda: model(x))


def invariance(model: nn.Module) -> float:
    """How far a quarter turn moves the outputs, relative to them."""
    x = torch.randn(8, 1, SIDE, SIDE)
    with torch.no_grad():
        logits = model(x)
        return float((model(torch.rot90(x, 1, (-2, -1))) - logits).norm() / logits.norm())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.alternatives.networks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: checks that it works")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    print(f"a quarter turn moves the untrained outputs by {invariance(plain()):.1e}; ", end="")
    print(f"those of escnn's network by {invariance(Equivariant()):.1e}")
    found = costs(n=16 if quick else 512, rounds=2 if quick else 20)
    print(f"\n| / plain | {' | '.join(found)} |")
    print("|---" * (len(found) + 1) + "|")
    for name in found["training step"]:
        print(f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in found.values())} |")


if __name__ == "__main__":
    main()
