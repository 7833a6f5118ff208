"""Which shapes of model do people have? Small ones, one for each way in which data enters a network."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FlatteningMLP(nn.Module):
    """Flattens inside forward, so that no layer receives the data as it came. Takes samples of any shape."""

    def __init__(self, *shape: int, classes: int = 5) -> None:
        super().__init__()
        self.head = nn.Linear(16, classes)  # registered before the layer that the data meets first
        self.stem = nn.Linear(prod(shape), 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x.flatten(1))))


class SignalNet(nn.Module):
    """Convolutions along time, for samples of shape (channels, time)."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(F.relu(self.norm(self.stem(signal))))).amax(2))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut convolution: its input meets two layers with weights at once."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class SmallResNet(nn.Module):
    """A stem, a residual block with a shortcut convolution, global average pooling; for images of any size."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = ResidualBlock(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.norm(self.stem(image)))).mean((2, 3)))


class ParallelStems(nn.Module):
    """The image meets both convolutions of its first block at once."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, 8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.dropout(self.block(image).mean((2, 3))))


class Attention(nn.Module):
    """A transformer block without its MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, -1)
        return tokens + self.out(F.scaled_dot_product_attention(query, key, value))


class SmallViT(nn.Module):
    """A patch embedding, a class token and a position embedding.

    Args:
        shape: (channels, height, width).
        patch: Side of a patch.
        normalises: Whether forward first subtracts a mean and divides by a deviation, per channel.
        notes_batch: Where forward reads the number of rows that the class token is expanded to: "before" the
            patch embedding, as in torchvision and Hugging Face, or "after" it.
    """

    def __init__(
        self,
        *shape: int,
        patch: int = 1,
        normalises: bool = False,
        notes_batch: str = "before",
        classes: int = 5,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.normalises, self.notes_batch = normalises, notes_batch
        self.register_buffer("mean", torch.linspace(0.4, 0.5, channels).view(-1, 1, 1))
        self.register_buffer("deviation", torch.linspace(0.7, 1.2, channels).view(-1, 1, 1))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 1 + height // patch * (width // patch), 12))
        self.patches = nn.Conv2d(channels, 12, patch, stride=patch)
        self.block = Attention(12)
        self.head = nn.Linear(12, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        batch = pixel_values.shape[0]
        if self.normalises:
            pixel_values = (pixel_values - self.mean) / self.deviation
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        if self.notes_batch == "after":
            batch = tokens.shape[0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], 1) + self.positions
        return self.head(self.block(tokens)[:, 0])
