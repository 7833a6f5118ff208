"""A network that reads a set as a list depends on the order; averaging over the members cures it, one line nearly does.

A set has no order, but a computer stores it in one. Here sets of 8 points in the plane come from a blob, a ring, a pair
of clusters or a line, turned at random: four classes. Four networks learn to tell them apart, from 2,000 sets:

    list      a multi-layer perceptron (MLP) on the 16 coordinates, one after another
    shuffled  the same, each set in a new order each time it is seen: data augmentation
    loss      the same, and one more line in the loss
    deepsets  a network for each point, the average over the points, a second network (Zaheer et al., 2017): invariant
              by construction

Then random permutations audit them. The order decides what the first one says. Shuffling makes the second good at sets
in any order, yet another order still changes its logits, and the class of one set in ten. The line in the loss takes
most of that away, at no cost in accuracy. DeepSets moves by rounding only. The script asserts that and prints the
audits.

    python examples/sets.py      no download, under half a minute
"""

from __future__ import annotations

import argparse
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import InvarianceReport, L2InvarianceLoss, SymmetricGroup, measure_invariance

SIZE, CLASSES = 8, 4
WEIGHT = 1.0
MODELS = ("list", "shuffled", "loss", "deepsets")
group = SymmetricGroup(SIZE, dim=1)


def sets(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sets ``(n, 8, 2)`` of points in the plane, and from which of the four shapes each comes, ``(n,)``."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=rng)

    def noise(deviation: float) -> Tensor:
        return deviation * torch.randn(n, SIZE, 2, generator=rng)

    def directions(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], -1)

    axis = directions(pi * uniform(1))
    blob = noise(0.7)
    ring = directions(2 * pi * uniform(SIZE)) + noise(0.15)
    clusters = (uniform(SIZE, 1) - 0.5).sign() * axis + noise(0.3)
    line = 1.8 * (2 * uniform(SIZE, 1) - 1) * axis + noise(0.2)
    labels = torch.randint(CLASSES, (n,), generator=rng)
    return torch.stack([blob, ring, clusters, line], 1)[torch.arange(n), labels], labels


class DeepSets(nn.Module):
    """From sets ``(N, size, 2)`` of any size to logits ``(N, 4)``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, sets: Tensor) -> Tensor:
        """Classifies sets."""
        return self.whole(self.member(sets).mean(1))


def mlp(width: int = 128) -> nn.Sequential:
    """From sets ``(N, 8, 2)``, read as lists of numbers, to logits ``(N, 4)``."""
    layers = (nn.Linear(2 * SIZE, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
    return nn.Sequential(nn.Flatten(), *layers)


def train(name: str, seed: int, epochs: int = 150) -> nn.Module:
    """Trains one of the four networks."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    inputs, labels = sets(2000, rng)
    model = DeepSets() if name == "deepsets" else mlp()
    invariance = L2InvarianceLoss(group, samples=2, rng=rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=rng).split(100):
            x, y = inputs[rows], labels[rows]
            if name in ("shuffled", "loss"):
                x = group.act(group.sample(len(x), rng), x)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if name == "loss":
                loss = loss + WEIGHT * invariance(model, x, logits)  # the one line more
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def print_table(reports: dict[str, InvarianceReport]) -> None:
    """Prints a line for each network."""
    print("          accuracy %  same class in another order %  logit error LI  distribution error DI")
    for name, report in reports.items():
        accuracy, consistency = 100 * report.group_accuracy.mean, 100 * report.consistency.mean
        li, di = report.logit_error.mean, report.distribution_error.mean
        print(f"{name:9} {accuracy:10.1f} {consistency:30.1f} {li:15.1e} {di:22.1e}")
    report = reports[MODELS[0]]
    print(f"Averages over {report.samples} sets, {report.elements} orders of each drawn from {group.order:,}.")
    print("LI and DI: 0 = invariant.")


def check(reports: dict[str, InvarianceReport]) -> None:
    """Raises unless the networks show what this example claims."""
    li = {name: report.logit_error.mean for name, report in reports.items()}
    accuracy = {name: report.group_accuracy.mean for name, report in reports.items()}
    consistency = {name: report.consistency.mean for name, report in reports.items()}
    assert accuracy["list"] < 0.6, f"a list must not be enough to learn from: {accuracy}"
    assert min(accuracy["shuffled"], accuracy["loss"], accuracy["deepsets"]) > 0.8, f"the others must be: {accuracy}"
    assert accuracy["loss"] > accuracy["shuffled"] - 0.03, f"the line in the loss must cost no accuracy: {accuracy}"
    assert consistency["shuffled"] < 0.95, f"the order must change the class of some sets: {consistency}"
    assert li["shuffled"] > 8 * li["loss"], f"the line in the loss must make the logits more invariant: LI {li}"
    assert consistency["loss"] > consistency["shuffled"], f"and the classes: {consistency}"
    assert li["deepsets"] < 1e-9, f"DeepSets must be invariant: LI {li}"
    assert consistency["deepsets"] > 0.999, f"and so must be its classes: {consistency}"


def main(argv: list[str] | None = None) -> dict[str, InvarianceReport]:
    """Trains, audits, prints and checks; returns the audits by network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of data, initial weights and permutations (default: 0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # for networks as small as these

    test = sets(1000, torch.Generator().manual_seed(1000 + args.seed))
    reports = {}
    for name in MODELS:
        reports[name] = measure_invariance(train(name, args.seed), [test], group, samples=20, saliency=None)
    print_table(reports)
    check(reports)
    print("Checked: what the first lines of this script claim.")
    return reports


if __name__ == "__main__":
    main()
