"""Fifty steps of integrated gradients settle SI to a hundredth; how its threshold reads changes SI by far more.

Trains a small MLP and a small CNN with augmentation, measures their saliency similarity (SI) under quarter turns with
ever more steps and with each cut, and prints the tables of docs/saliency.md, from which the default number of steps
comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Splits, digits, transforming
from torch import Tensor, nn

from invreg import CyclicRotation, SaliencyMap, measure_invariance

STEPS = (10, 20, 50, 100)
REFERENCE_STEPS = 400
CUTS = ("above", "clip", "quantile", None)
GROUP = CyclicRotation(4)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist"], default="digits")
    parser.add_argument("--data", type=Path, help="folder with the IDX files of mnist or fashion-mnist")
    parser.add_argument("--samples", type=int, default=64, help="how many test images to measure SI on")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for networks as small as these
    data = digits() if options.dataset == "digits" else transforming(options.dataset, folder=options.data)
    images = data.test[0][: options.samples]
    models = {"MLP": mlp(images.shape[-1]), "CNN": cnn(images.shape[-1])}
    for model in models.values():
        train(model, data, options.epochs)
    print(f"Test images: {len(images)} of {options.dataset}")
    print(f"| model | steps | completeness gap | SI | off the SI of {REFERENCE_STEPS} steps |\n|---|---|---|---|---|")
    for name, model in models.items():
        rows = {steps: measure(model, images, SaliencyMap(steps=steps)) for steps in (*STEPS, REFERENCE_STEPS)}
        for steps, (gap, similarity) in rows.items():
            off = similarity - rows[REFERENCE_STEPS][1]
            print(f"| {name} | {steps} | {gap:.2%} | {similarity:.3f} | {off:+.3f} |", flush=True)
        assert rows[REFERENCE_STEPS][0] < rows[50][0] < rows[10][0], "more steps must close the completeness gap"
        assert abs(rows[50][1] - rows[REFERENCE_STEPS][1]) < 0.01, "50 steps must settle SI to a hundredth"
    print("\n| model | " + " | ".join(f"`cut={cut!r}`" for cut in CUTS) + " |\n|---|---|---|---|---|")
    for name, model in models.items():
        by_cut = {cut: measure(model, images, SaliencyMap(cut=cut))[1] for cut in CUTS}
        print(f"| {name} | " + " | ".join(f"{similarity:.2f}" for similarity in by_cut.values()) + " |", flush=True)
        assert max(by_cut.values()) - min(by_cut.values()) > 0.1, "the cut must matter far more than the steps"


def measure(model: nn.Module, images: Tensor, method: SaliencyMap) -> tuple[float, float]:
    """The completeness gap and the SI of a model on images ``(N, 1, H, W)``."""
    report = measure_invariance(model, [images], GROUP, saliency=method, saliency_samples=None)
    assert report.completeness_gap is not None
    return report.completeness_gap, float(report.saliency_similarity)


def mlp(side: int) -> nn.Module:
    """Three layers on images of ``side`` squared pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(side**2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 9)
    )


def cnn(side: int) -> nn.Module:
    """Two convolutions and a linear layer on images of ``side`` squared pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 9),
    )


def train(model: nn.Module, data: Splits, epochs: int) -> None:
    """Trains on randomly turned images."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(0)
    images, labels = data.train
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=rng).split(128):
            x = GROUP.act(GROUP.sample(len(rows), rng), images[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels[rows]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
