"""A network that has learned turned shapes still gives each turn its own logits; one more line makes them agree.

Noisy clouds of 48 points lie on five solids: balls, dumb-bells, cylinders, cones and rings. A small PointNet (one
network for each point, the maximum over the points, a second network) learns to tell them apart:

    upright  from solids that stand upright
    turned   from solids turned at random: data augmentation
    loss     the same, and one more line in the loss
    lengths  from upright solids, by lengths and inner products, which no rotation changes: invariant by construction

Then random rotations, SO(3), audit it. The first network has never seen a turned solid, and fails. The second gets most
of them right without being invariant: its logits move with each turn, and so do the points that it looks at. The line
in the loss takes nearly all of that away for little or no accuracy. What is left in the last network is rounding: as
much as turning a cloud and turning it back makes. The script asserts that, prints the audits and draws which points
decide.

    python examples/point_cloud.py      no download, about half a minute
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from math import pi
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import InvarianceReport, L2InvarianceLoss, SaliencyMap, SpatialRotation, measure_invariance

POINTS = 48
SOLIDS = ("ball", "dumb-bell", "cylinder", "cone", "ring")
MODELS = ("upright", "turned", "loss", "lengths")
WEIGHT = 0.2
group = SpatialRotation()
points_that_matter = SaliencyMap(steps=20, cut=None, kernel_size=1, channel_dim=-1, sum_signed=True)
"""One value for each point: a rotation mixes the attributions of its coordinates and keeps their sum."""


def solids(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Upright clouds ``(n, 48, 3)`` of mean 0 and mean square 1, and which of the solids each is, ``(n,)``."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=rng)

    up = torch.tensor([0.0, 0.0, 1.0])
    angle, height, side = uniform(0, 2 * pi, POINTS), uniform(-1, 1, POINTS, 1), uniform(-1, 1, POINTS, 1).sign()
    circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], 2)
    ball = (1 - height**2).sqrt() * circle + height * up  # on a sphere heights are uniform
    bell = 0.5 * ball + 0.6 * side * up
    cylinder = 0.4 * circle + height * up
    out = uniform(0, 1, POINTS, 1).sqrt()
    cone = out * circle - torch.where(side > 0, 2 * out, 2) * up  # the side, and the base that it stands on
    turn = uniform(0, 2 * pi, POINTS, 1)
    ring = (1 + 0.3 * turn.cos()) * circle + 0.3 * turn.sin() * up

    labels = torch.randint(len(SOLIDS), (n,), generator=rng)
    clouds = torch.stack([ball, bell, cylinder, cone, ring], 1)[torch.arange(n), labels]
    clouds = clouds * uniform(0.8, 1.2, 1, 3) + 0.03 * torch.randn(n, POINTS, 3, generator=rng)
    clouds = clouds - clouds.mean(1, keepdim=True)
    return clouds / clouds.square().sum(2).mean(1).sqrt()[:, None, None], labels


def lengths(clouds: Tensor) -> Tensor:
    """Three numbers for each point of clouds ``(N, P, 3)`` that no rotation changes, ``(N, P, 3)``."""
    moments = clouds.mT @ clouds / POINTS
    skew = (clouds * clouds.square().sum(2, keepdim=True)).mean(1, keepdim=True)
    return torch.stack([(other * clouds).sum(2) for other in (clouds, clouds @ moments, skew)], 2)


class PointNet(nn.Module):
    """From clouds ``(N, P, 3)`` to logits ``(N, 5)``, by the coordinates of each point or by its lengths."""

    def __init__(self, by_lengths: bool, width: int = 64) -> None:
        super().__init__()
        self.by_lengths = by_lengths
        sizes = (3, width, width, 2 * width)
        self.point = nn.Sequential(*[nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in pairwise(sizes)])
        self.cloud = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, len(SOLIDS)))

    def forward(self, clouds: Tensor) -> Tensor:
        """Classifies clouds."""
        return self.cloud(self.point(lengths(clouds) if self.by_lengths else clouds).amax(1))


def train(name: str, seed: int, epochs: int | None = None, batch: int = 100) -> nn.Module:
    """Trains one of the four networks on 4,000 clouds, which stand upright or are turned anew each time."""
    turns = name in ("turned", "loss")
    epochs = epochs or (14 if turns else 5)  # solids that turn take longer to learn
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    clouds, labels = solids(4000, rng)
    model = PointNet(by_lengths=name == "lengths")
    invariance = L2InvarianceLoss(group, samples=1, rng=rng)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs=epochs, steps_per_epoch=len(clouds) // batch)
    for _ in range(epochs):
        for rows in torch.randperm(len(clouds), generator=rng).split(batch):
            x, y = clouds[rows], labels[rows]
            if turns:
                x = group.act(group.sample(len(x), rng), x)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if name == "loss":
                loss = loss + WEIGHT * invariance(model, x, logits)  # the one line more
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def print_table(reports: dict[str, InvarianceReport]) -> None:
    """Prints a line for each network."""
    print("         accuracy %            logit error  the action's    saliency")
    print("         upright  turned  all           LI      own share  similarity")
    for name, report in reports.items():
        shares = (report.accuracy, report.group_accuracy, report.orbit_accuracy)
        accuracies = "{:7.1f} {:7.1f} {:5.1f}".format(*(100 * share.mean for share in shares))
        li, own, si = report.logit_error.mean, report.action_logit_error.mean, report.saliency_similarity.mean
        print(f"{name:8} {accuracies} {li:11.1e} {own:13.1e} {si:11.2f}")
    moved = reports[MODELS[0]].action_error.mean
    print(
        "All: right upright and under each of 10 rotations drawn. LI: 0 = invariant. Similarity: 1 = the same points."
    )
    print(f"A cloud that is turned and turned back is off by {moved:.1e} of its size, and the logits by the own share.")


def check(reports: dict[str, InvarianceReport]) -> None:
    """Raises unless the networks show what this example claims."""
    li = {name: report.logit_error.mean for name, report in reports.items()}
    si = {name: report.saliency_similarity.mean for name, report in reports.items()}
    accuracy = {name: report.group_accuracy.mean for name, report in reports.items()}
    assert reports["upright"].accuracy.mean > 0.9 > 0.6 > accuracy["upright"], f"upright must not suffice: {accuracy}"
    assert min(accuracy["turned"], accuracy["loss"]) > 0.85, f"both must classify turned solids well: {accuracy}"
    assert accuracy["loss"] > accuracy["turned"] - 0.08, f"the line in the loss must cost little accuracy: {accuracy}"
    assert li["turned"] > 5 * li["loss"], f"the line in the loss must make the logits more invariant: LI {li}"
    assert si["turned"] + 0.03 < si["loss"], f"and the points that the network looks at: SI {si}"
    assert li["lengths"] < 1e-8, f"lengths must make the logits invariant: LI {li}"
    assert si["lengths"] > 0.999, f"and the points that the network looks at: SI {si}"
    assert all(report.action_error.mean < 1e-6 for report in reports.values()), "rotations must act up to rounding"


def draw(models: dict[str, nn.Module], cloud: Tensor, label: Tensor, output: Path) -> None:
    """Draws which points of a cloud ``(1, P, 3)`` decide, for each network and each of four turns, turned back."""
    from matplotlib.figure import Figure

    turns = torch.cat([group.identity[None], group.sample(3, torch.Generator().manual_seed(0))])
    seen = cloud[0] @ torch.tensor([[1.0, 0.0], [0.0, 0.71], [0.0, 0.71]])  # from 45° above
    figure = Figure(figsize=(8, 2 * len(models) + 1), layout="constrained")
    figure.suptitle(f"Which points show that this is a {SOLIDS[label]}? The larger, the more they count")
    figure.supxlabel("coordinates in units of the root mean square radius; every cloud drawn upright", size=10)
    axes = figure.subplots(len(models), len(turns), sharex=True, sharey=True)
    for row, (name, model) in zip(axes, models.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, g in zip(row, turns, strict=True):
            sizes = points_that_matter(model, group.act(g, cloud), label)[0, :, 0]
            axis.scatter(*seen.T, s=4, color="0.6")
            axis.scatter(*seen.T, s=120 * sizes / sizes.max(), color="darkred", alpha=0.6, linewidth=0)
            axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    for i, axis in enumerate(axes[0]):
        axis.set_title(f"shown turn {i}" if i else "shown upright", size=11)
    figure.savefig(output, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, InvarianceReport]:
    """Trains, audits, prints, draws and checks; returns the audits by network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of data, initial weights and rotations (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("point_cloud.png"), help="the picture to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # for networks as small as these

    clouds, labels = solids(500, torch.Generator().manual_seed(1000 + args.seed))
    models, reports = {}, {}
    for name in MODELS:
        models[name] = train(name, args.seed)
        reports[name] = measure_invariance(
            models[name], [(clouds, labels)], group, samples=10, saliency=points_that_matter, saliency_samples=32
        )
    print_table(reports)
    draw(models, clouds[:1], labels[:1], args.output)
    print(f"Which points decide: {args.output}")
    check(reports)
    print("Checked: what the first lines of this script claim.")
    return reports


if __name__ == "__main__":
    main()
