"""What is trained, and how: the data, networks, recipes and methods that all exhibits share.

Where Moskalev et al. (2023) are silent, these choices were made:

- Which images are trained on: see ``examples/datasets.py``. T3 shifts along the image's last axis.
- The element of each training image is drawn anew in each epoch, the identity included.
- The validation accuracy that picks the model is that over the whole orbit of each validation image; of equal ones
  the last counts.
- The regulariser runs over all non-identity elements.
- With the better recipe, whose dropout would make the regulariser measure the dropout, the invariance error is taken
  in evaluation mode (see ``InvarianceLoss``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.datasets import Splits, digits, transforming
from invreg import (
    CyclicRotation,
    CyclicTranslation,
    FiniteGroup,
    InvarianceConstraint,
    InvarianceLoss,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    orbit_loss,
    spectral_norms,
    symmetrize,
    tie_first_layer,
)

GROUPS: dict[str, FiniteGroup] = {"R4": CyclicRotation(4), "T3": CyclicTranslation(3)}
LOSSES: dict[str, type[InvarianceLoss]] = {
    "L2": L2InvarianceLoss,
    "KL": KLInvarianceLoss,
    "normalised L2": NormalizedL2InvarianceLoss,
}
FIRST_WEIGHTS = {
    ("R4", "L2"): 8.0,
    ("T3", "L2"): 64.0,
    ("R4", "KL"): 100.0,
    ("T3", "KL"): 400.0,
    ("R4", "normalised L2"): 200.0,
    ("T3", "normalised L2"): 100.0,
}
"""Where the search for a regulariser's weight begins, by group and loss."""

METHODS = {
    "DA": "augmentation",
    "IR": "augmentation and a regulariser",
    "WT": "augmentation, first layer pooled over the group",
    "IC": "augmentation and an invariance constraint",
    "SYM": "augmentation, layers symmetrised",
    "FREE": "layers symmetrised, then freed with a regulariser",
    "OC": "the task's loss over the whole orbit, and a regulariser",
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the method."""

    lr: float
    weight_decay: float | None
    cosine: bool
    dropout: float
    noise: float
    batch: int = 512

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam, or AdamW where there is weight decay."""
        if self.weight_decay is None:
            return torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=self.weight_decay, fused=True)


RECIPES = {
    "paper": Recipe(lr=0.0008, weight_decay=None, cosine=False, dropout=0.0, noise=0.0),
    "better": Recipe(lr=0.002, weight_decay=0.01, cosine=True, dropout=0.1, noise=0.5),
}


@dataclass(frozen=True)
class Run:
    """One training: all that its result depends on.

    Args:
        group: A name in ``GROUPS``.
        method: A name in ``METHODS``.
        seed: Of initial weights, shuffling, turns and noise.
        weight: Of the regulariser; for the constraint, the error that is allowed.
        recipe: A name in ``RECIPES``.
        loss: A name in ``LOSSES``.
        data: ``mnist``, ``fashion-mnist`` or ``digits``.
        network: ``MLP``, ``CNN`` or ``ViT``.
        gain: What the first layer's initial weights are multiplied by.
        step: What the recipe's learning rate is multiplied by.
        samples: How many elements the regulariser draws for each image; None takes all.
        fraction: Of each batch, which part the regulariser takes.
        every: At which steps the regulariser is taken: every n-th.
        epochs: How often the training images are gone through.
    """

    group: str
    method: str
    seed: int = 0
    weight: float = 0.0
    recipe: str = "paper"
    loss: str = "L2"
    data: str = "mnist"
    network: str = "MLP"
    gain: float = 1.0
    step: float = 1.0
    samples: int | None = None
    fraction: float = 1.0
    every: int = 1
    epochs: int = 300

    @property
    def regularised(self) -> bool:
        """Whether nothing but a regulariser, whose weight is to be tuned, makes it invariant."""
        return self.method == "IR"

    @property
    def name(self) -> str:
        """What its files are called."""
        parts = [self.data, self.network, self.group, self.method]
        parts += [f"{self.loss}-{self.weight:.6g}"] * (self.weight != 0)
        parts += [f"gain-{self.gain:.6g}"] * (self.gain != 1) + [f"step-{self.step:.6g}"] * (self.step != 1)
        parts += [f"samples-{self.samples}"] * (self.samples is not None)
        parts += [f"fraction-{self.fraction:.6g}"] * (self.fraction != 1) + [f"every-{self.every}"] * (self.every != 1)
        return "_".join(map(str, (*parts, self.recipe, self.epochs, self.seed))).replace(" ", "-")


def untuned(group: str, loss: str = "L2") -> Run:
    """A regularised run, with the weight from which to tune."""
    return Run(group, "IR", weight=FIRST_WEIGHTS[group, loss], loss=loss)


class Trained(NamedTuple):
    """A model as it was at its best epoch, in evaluation mode, and how training went."""

    model: nn.Module
    history: dict[str, list[float]]


def network(name: str, shape: torch.Size, *, dropout: float = 0.0, classes: int = 9) -> nn.Module:
    """Makes a network.

    Args:
        name: ``MLP``, the paper's, with five hidden layers of 128; ``CNN`` or ``ViT``, small ones.
        shape: Shape of one image, ``(1, H, W)``.
        dropout: After each hidden layer.
        classes: How many.

    Returns:
        The network, from images ``(N, 1, H, W)`` to logits ``(N, classes)``.
    """
    if name == "CNN":
        return _cnn(shape, dropout, classes)
    if name == "ViT":
        return _ViT(shape, dropout, classes)
    drop = [nn.Dropout(dropout)] if dropout else []
    widths = [math.prod(shape), *[128] * 5]
    hidden = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU(), *drop)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, classes))


def _cnn(shape: torch.Size, dropout: float, classes: int) -> nn.Module:
    drop = [nn.Dropout(dropout)] if dropout else []
    side = -(-shape[-1] // 4)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), *drop),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), *drop),
        *(nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU(), *drop, nn.Linear(64, classes)),
    )


class _ViT(nn.Module):
    """Two blocks of attention over 16 patches, learned positions, mean over the patches."""

    def __init__(self, shape: torch.Size, dropout: float, classes: int, width: int = 32) -> None:
        super().__init__()
        side = shape[-1] // 4
        self.patches = nn.Conv2d(1, width, side, stride=side)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 1, H, W)`` to logits ``(N, classes)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(1))


def transforming_digits() -> Splits:
    """The small digits, padded from 8x8 to 12x12, which divides by 3 and by 4: for trial runs, without a download."""
    return Splits(*((F.pad(x, (2, 2, 2, 2), value=float(x.min())), y) for x, y in digits()))


def load(data: str, folder: Path | None) -> Splits:
    """The images and labels of ``mnist``, ``fashion-mnist`` or ``digits``."""
    return transforming_digits() if data == "digits" else transforming(data, folder=folder)


def train(run: Run, data: Splits, checkpoint: Path) -> Trained:
    """Trains a model; goes on where an earlier call was stopped.

    Args:
        run: What to train.
        data: Images ``(N, 1, H, W)`` and labels ``(N,)``.
        checkpoint: Where to write the state every ``SAVE_EVERY`` epochs and at the end.

    Returns:
        The model that classified most validation images right, and by epoch the validation accuracy and the spectral
        norms of the weight matrices.
    """
    state = Training(run, data)
    if checkpoint.exists():
        state.load(torch.load(checkpoint))
    for epoch in range(state.epoch, run.epochs):
        state.train_epoch(epoch)
        if state.epoch % SAVE_EVERY == 0 or state.epoch == run.epochs:
            part = checkpoint.with_suffix(".part")
            torch.save(state.saved(), part)
            part.replace(checkpoint)
    return Trained(state.finished(), state.history)


FREED_AFTER = 2 / 3
"""The share of the epochs in which weights are symmetrised, where they are freed afterwards."""

NEAR = 0.05
"""How near the validation error must be to a constraint's target for the model to be picked, relative to it."""

SAVE_EVERY = 10
"""Epochs from checkpoint to checkpoint."""


class Training:
    """A training on its way."""

    def __init__(self, run: Run, data: Splits) -> None:
        torch.manual_seed(run.seed)
        self.rng = torch.Generator().manual_seed(run.seed)
        self.run, self.data = run, data
        self.recipe, self.group = RECIPES[run.recipe], GROUPS[run.group]
        self.lr = self.recipe.lr * run.step
        self.orbit = self.group.orbit(data.train[0])  # all turned images, made once instead of in each epoch
        self.model = network(run.network, data.train[0].shape[1:], dropout=self.recipe.dropout)
        if run.gain != 1:
            with torch.no_grad():
                next(layer for layer in self.model if isinstance(layer, nn.Linear)).weight.mul_(run.gain)
        if run.method == "WT":
            tie_first_layer(self.model, self.group)
        if run.method in ("SYM", "FREE"):
            self.symmetrization = symmetrize(self.model, self.group, data.train[0][:2])
        self.term: nn.Module | None = None
        if run.method in ("IR", "FREE", "OC"):
            rarer = {"samples": run.samples, "fraction": run.fraction, "every": run.every}
            self.term = LOSSES[run.loss](self.group, **rarer)
        if run.method == "IC":
            self.term = InvarianceConstraint(LOSSES[run.loss](self.group), target=run.weight)
        self.optimizer = self.recipe.optimizer(self.model, self.lr)
        self.epoch = 0
        self.freed_at = round(run.epochs * FREED_AFTER) if run.method == "FREE" else 0
        self.best_accuracy, self.best = -2.0, self.model.state_dict()
        self.history: dict[str, list[float]] = {"validation accuracy": []}
        self._keep_norms()

    def free(self) -> None:
        """Lets go of the symmetrised weights, which go on at the recipe's own learning rate.

        With an optimiser anew: what Adam knows of the averaged gradients' size is too little for those that come now.
        """
        self.symmetrization.remove()
        self.lr = self.recipe.lr
        self.optimizer = self.recipe.optimizer(self.model, self.lr)
        self.best_accuracy = -2.0  # what was picked so far is not free

    def train_epoch(self, epoch: int) -> None:
        """Goes through the training images once, and keeps the model if it is the best on the validation images."""
        if self.run.method == "FREE" and epoch == self.freed_at:
            self.free()
        self.model.train()
        n = len(self.data.train[0])
        batches = torch.randperm(n, generator=self.rng).split(self.recipe.batch)
        for step, rows in enumerate(batches, epoch * len(batches)):
            if self.recipe.cosine:
                progress = step / (self.run.epochs * len(batches))
                self.optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * progress))
            self.take_step(rows)
        self.epoch = epoch + 1
        self._validate()

    def take_step(self, rows: Tensor) -> None:
        """One step of the optimiser."""
        loss = self.loss(rows)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self, rows: Tensor) -> Tensor:
        """The task loss of some training images, each under an element of its own, and what the method adds to it."""
        x = self.orbit[self.group.sample(len(rows), self.rng), rows]
        if self.recipe.noise:
            x = x + self.recipe.noise * torch.randn_like(x)
        y = self.data.train[1][rows]
        if self.run.method == "OC":
            task, invariance = orbit_loss(F.cross_entropy, self.term)(self.model, x, y)
            return task + self.weight * invariance
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        if self.term is None or self.epoch < self.freed_at:
            return loss
        if not self.recipe.dropout:
            return loss + self.weight * self.term(self.model, x, logits)
        self.model.eval()
        loss = loss + self.weight * self.term(self.model, x)
        self.model.train()
        return loss

    @property
    def weight(self) -> float:
        """Of the term; a constraint weighs itself."""
        return 1.0 if self.run.method == "IC" else self.run.weight

    @torch.no_grad()
    def _validate(self) -> None:
        self.model.eval()
        images, labels = self.data.validation
        logits = self.model(self.group.orbit(images).flatten(0, 1))
        accuracy = (logits.argmax(1) == labels.repeat(self.group.order)).float().mean().item()
        self.history["validation accuracy"].append(accuracy)
        if self.epoch % SAVE_EVERY == 0:
            self._keep_norms()
        if isinstance(self.term, InvarianceConstraint):
            error = self.term.loss(self.model, images).item()
            self.term.calibrate(error)
            self.history.setdefault("validation error", []).append(error)
            if abs(error / self.term.target - 1) > NEAR:  # no model to keep, except for want of another
                accuracy -= 1
        if accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = {key: value.clone() for key, value in self.model.state_dict().items()}

    def _keep_norms(self) -> None:
        for name, norm in spectral_norms(self.model).items():
            self.history.setdefault(f"spectral norm of {name}", []).append(float(norm))

    def finished(self) -> nn.Module:
        """The best model, in evaluation mode; a symmetrised one as the plain network that it is."""
        self.model.load_state_dict(self.best)
        if self.run.method == "SYM":
            self.symmetrization.remove()
        return self.model.eval()

    def saved(self) -> dict[str, Any]:
        """What ``load`` takes."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "term": self.term.state_dict() if self.term else {},
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "global rng": torch.get_rng_state(),
            "best": self.best,
            "best accuracy": self.best_accuracy,
            "history": self.history,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Takes up a training where it was saved."""
        self.epoch, self.history = saved["epoch"], saved["history"]
        if self.run.method == "FREE" and self.epoch > self.freed_at:
            self.free()
        self.best_accuracy, self.best = saved["best accuracy"], saved["best"]
        self.model.load_state_dict(saved["model"])
        if self.term is not None:
            self.term.load_state_dict(saved["term"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.rng.set_state(saved["rng"])
        torch.set_rng_state(saved["global rng"])
