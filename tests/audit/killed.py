"""An audit that kills its own process at one of its forwards: ``python -m tests.audit.killed FILE REPORT FORWARD``."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from invreg import CyclicRotation, InvarianceReport, measure_invariance
from invreg.audit import progress


class Killing(nn.Module):
    """A noisy network that ends its process, and all that it has not saved, at one of its forwards."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.at, self.forwards = at, 0

    def forward(self, v: Tensor) -> Tensor:
        if self.forwards == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.forwards += 1
        return nn.functional.dropout(self.layers(v), 0.1, training=True)


def maps(model: nn.Module, inputs: Tensor, target: Tensor | None) -> Tensor:
    """Says that what is bright matters."""
    return inputs.square()


def reversed_classes(element: Tensor, outputs: Tensor) -> Tensor:
    """Half a turn, and no other, changes the classes' order."""
    half = (element.expand(len(outputs)) == 2).view(-1, 1)
    return torch.where(half, outputs.flip(1), outputs)


def audit(checkpoint: Path | None, at: int) -> tuple[InvarianceReport, int]:
    """The report, and how many forwards it took."""
    torch.manual_seed(6)
    model = Killing(at)
    data = TensorDataset(torch.randn(40, 1, 4, 4, dtype=torch.float64), torch.randint(3, (40,)))
    report = measure_invariance(
        model,
        DataLoader(data, batch_size=7, shuffle=True),
        CyclicRotation(4),
        samples=2,
        saliency=maps,
        saliency_samples=20,
        output_action=reversed_classes,
        checkpoint=checkpoint,
        kept_samples=10,
    )
    return report, model.forwards


if __name__ == "__main__":
    torch.set_num_threads(1)
    progress._SAVED_EVERY = -1.0
    found, forwards = audit(Path(sys.argv[1]), int(sys.argv[3]))
    Path(sys.argv[2]).write_text(found.to_json())
    sys.stdout.write(str(forwards))
