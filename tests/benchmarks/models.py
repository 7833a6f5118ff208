"""Which models are timed?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


class _Embedding(nn.Module):
    """Images to tokens: a linear map of each patch of 6x6 pixels, plus a position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 6, stride=6)
        self.positions = nn.Parameter(0.02 * torch.randn((SIDE // 6) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2) + self.positions


class _Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit() -> nn.Module:
    """Four transformer blocks of width 64 with four heads, over 36 patches."""
    block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    blocks = nn.TransformerEncoder(block, 4, norm=nn.LayerNorm(64), enable_nested_tensor=False)
    return nn.Sequential(_Embedding(64), blocks, _Mean(), nn.Linear(64, CLASSES))


MODELS = {"MLP": mlp, "CNN": cnn}
"""What audits are timed on."""

TRAINED = {**MODELS, "ViT": vit}
"""What training steps are timed on."""
