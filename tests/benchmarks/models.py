"""Which models are timed?"""

from __future__ import annotations

from torch import nn

SIDE = 36
CLASSES = 9


def mlp() -> nn.Module:
    """The paper's: five hidden layers of 128."""
    hidden = [layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 128), nn.ReLU(), *hidden, nn.Linear(128, CLASSES))


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (SIDE // 4) ** 2, CLASSES),
    )


MODELS = {"MLP": mlp, "CNN": cnn}
