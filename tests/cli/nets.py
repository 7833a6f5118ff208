"""The models that the tests name on the command line."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

SIDE, CLASSES = 8, 3


class Plain(nn.Module):
    """One linear layer over pictures of 8 x 8, the same weights in each process."""

    def __init__(self, channels: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.head = nn.Linear(channels * SIDE * SIDE, CLASSES, dtype=dtype)
        rng = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=rng, dtype=torch.float64) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Digits(nn.Module):
    """Tells ten classes of pictures of 28 x 28 apart, somehow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28 * 28, 10)
        nn.init.sparse_(self.head.weight, 0.9, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Coloured(Plain):
    """The same for pictures of three channels."""

    def __init__(self) -> None:
        super().__init__(3)


class Wide(Plain):
    """The same in float64."""

    def __init__(self) -> None:
        super().__init__(1, torch.float64)


class Slow(Plain):
    """The same, but it waits at each forward, and says in a file how many there were."""

    forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        if pause := os.environ.get("TEST_PAUSE"):
            Slow.forwards += 1
            Path(os.environ["TEST_FORWARDS"]).write_text(str(Slow.forwards))
            time.sleep(float(pause))
        return super().forward(x)


class Averaging(nn.Module):
    """Invariant to every permutation of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, -mean, 2 * mean], 1)


class Embedding(nn.Module):
    """Returns something else than logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class Interrupted(Plain):
    """Is interrupted at its n-th forward, as by Ctrl-C."""

    def __init__(self, at: int = 5) -> None:
        super().__init__()
        self.at, self.forwards = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        if self.forwards == self.at:
            raise KeyboardInterrupt
        return super().forward(x)


class Bag:
    """Has attributes."""

    inner = Plain()


instance = Plain()

number = 5


def plain() -> Plain:
    return Plain()


def zeros() -> Plain:
    model = Plain()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def interrupted_at_once() -> nn.Module:
    return Interrupted(1)


def function() -> object:
    return Averaging().forward


def nothing() -> None:
    return None


def needs(argument: int) -> nn.Module:
    return Plain(argument)


def fails() -> nn.Module:
    raise RuntimeError("no such luck\nat all")


def leaves() -> nn.Module:
    raise SystemExit(3)


def nan() -> nn.Module:
    model = Plain()
    nn.init.constant_(model.head.weight, float("nan"))
    return model
