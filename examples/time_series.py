"""Convolutions promise that when a recording begins does not matter: zero padding and strides break the promise.

One period of a signal is 64 readings in a circle: where it begins is an accident of the recording, and a shift in time
by 0 to 63 readings, with wrap-around, must not change the class. Four classes of noisy waves differ only in how their
second harmonic lies against the first. Four times a small convolutional network learns to tell them apart, from
recordings that begin anywhere:

    flat     zeros beyond both ends, and a last layer that weighs each place by itself
    loss     the same, and one more line in the loss
    strided  padding that wraps around and an average over time, but convolutions with a stride of 2
    wrapped  the same convolutions without the strides

All four are right about the waves. The first one's logits move with each shift, the strided one's with all that are no
multiple of its strides, 2 x 2; the wrapped one's only by rounding. The line in the loss costs no accuracy and takes
most of the movement out of a network that is what it is. The script asserts that, prints the audits and draws how far
each shift moves the logits.

    python examples/time_series.py      no download, under half a minute
"""

from __future__ import annotations

import argparse
from math import pi
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import CyclicTranslation, InvarianceReport, L2InvarianceLoss, SaliencyMap, measure_invariance

LENGTH, CLASSES = 64, 4
WEIGHT = 1.0
LEAST = 1e-14  # that is drawn
MODELS = ("flat", "loss", "strided", "wrapped")
group = CyclicTranslation(LENGTH, dim=-1)


def waves(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Recordings ``(n, 1, 64)`` of one period each, and which of the four waves each is, ``(n,)``."""
    labels = torch.randint(CLASSES, (n,), generator=rng)
    begin = 2 * pi * torch.rand(n, 1, generator=rng)  # at any time, not only at one of the readings
    time = begin + 2 * pi * torch.arange(LENGTH) / LENGTH
    signals = time.sin() + 0.7 * (2 * time + 2 * pi * labels[:, None] / CLASSES).sin()
    return (signals + 0.7 * torch.randn(n, LENGTH, generator=rng))[:, None], labels


def network(name: str) -> nn.Sequential:
    """Two convolutions and a linear layer, from recordings ``(N, 1, 64)`` to logits ``(N, 4)``."""
    stride = 2 if name == "strided" else 1
    step = 2 // stride  # without the stride, the second convolution looks as far by leaving out every other place
    mode = "circular" if name in ("strided", "wrapped") else "zeros"
    convolutions = (
        nn.Conv1d(1, 12, 9, stride=stride, padding=4, padding_mode=mode),
        nn.ReLU(),
        nn.Conv1d(12, 24, 9, stride=stride, padding=4 * step, dilation=step, padding_mode=mode),
        nn.ReLU(),
    )
    if mode == "circular":
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, CLASSES))
    return nn.Sequential(*convolutions, nn.MaxPool1d(4), nn.Flatten(), nn.Linear(24 * LENGTH // 4, CLASSES))


def train(name: str, seed: int, epochs: int = 40) -> nn.Module:
    """Trains one of the four networks on a thousand recordings, each shifted at random each time that it is seen."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    signals, labels = waves(1000, rng)
    model = network(name)
    invariance = L2InvarianceLoss(group, samples=2, rng=rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(signals), generator=rng).split(100):
            x, y = group.act(group.sample(len(rows), rng), signals[rows]), labels[rows]
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
    print("         accuracy %  right at all shifts %  logit error LI  distribution error DI  saliency similarity SI")
    for name, report in reports.items():
        accuracy, orbit = 100 * report.group_accuracy.mean, 100 * report.orbit_accuracy.mean
        li, di, si = report.logit_error.mean, report.distribution_error.mean, report.saliency_similarity.mean
        print(f"{name:8} {accuracy:10.1f} {orbit:22.1f} {li:15.1e} {di:22.1e} {si:23.2f}")
    print("Averages over all shifts. LI and DI: 0 = invariant. SI: 1 = looks at the same part of the wave.")


def check(reports: dict[str, InvarianceReport]) -> None:
    """Raises unless the networks show what this example claims."""
    li = {name: report.logit_error.mean for name, report in reports.items()}
    accuracy = {name: report.group_accuracy.mean for name, report in reports.items()}
    assert min(accuracy.values()) > 0.9, f"all networks must classify well: {accuracy}"
    assert li["flat"] > 5 * li["loss"], f"the line in the loss must make the logits more invariant: LI {li}"
    assert accuracy["loss"] > accuracy["flat"] - 0.02, f"the line in the loss must cost no accuracy: {accuracy}"
    assert li["wrapped"] < 1e-9, f"without edges and strides the logits must be invariant: LI {li}"
    assert reports["wrapped"].saliency_similarity.mean > 0.999, "and so must be where the network looks"
    strided = [(one.element, one.logit_error.mean) for one in reports["strided"].per_element]
    assert max(error for shift, error in strided if shift % 4 == 0) < 1e-9, "strides must allow their multiples"
    assert min(error for shift, error in strided if shift % 4) > 1e-2, "strides must break all other shifts"


def draw(reports: dict[str, InvarianceReport], signal: Tensor, output: Path) -> None:
    """Draws a recording ``(1, 1, 64)``, shifted too, and beside it how far each shift moves each network's logits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for shift, style, color in ((0, "-", "black"), (20, "--", "tab:orange")):
        shifted = group.act(torch.tensor(shift), signal)[0, 0]
        left.plot(shifted.tolist(), style, color=color, label=f"shifted by {shift}" if shift else "a recording")
    left.set(title="The same wave?", xlabel="time, readings", ylabel="signal, amplitudes of its first harmonic")
    left.set_ylim(top=1.3 * left.get_ylim()[1])
    left.legend(loc="upper center", ncols=2, frameon=False)
    styles = {"flat": ("-", "black"), "loss": ("--", "tab:orange"), "strided": (".-", "tab:blue")}
    for name, report in reports.items():
        style, color = styles.get(name, (":", "tab:green"))
        shifts = [one.element for one in report.per_element]
        errors = [max(one.logit_error.mean, LEAST) for one in report.per_element]
        right.plot(shifts, errors, style, color=color, label=name)
    right.set(title="How far do the logits move?", xlabel="shift, readings", yscale="log", ylim=(LEAST / 10, 1e4))
    right.set(xticks=range(0, LENGTH + 1, 8), ylabel=f"logit error LI, logits squared (drawn from {LEAST:g} up)")
    right.legend(loc="upper center", ncols=4, frameon=False)
    figure.savefig(output, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, InvarianceReport]:
    """Trains, audits, prints, draws and checks; returns the audits by network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of data, initial weights and shifts (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("time_series.png"), help="the picture to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # for networks as small as these

    test = waves(500, torch.Generator().manual_seed(1000 + args.seed))
    saliency = SaliencyMap(steps=20, channel_dim=1)
    reports = {}
    for name in MODELS:
        model = train(name, args.seed)
        reports[name] = measure_invariance(model, [test], group, saliency=saliency, saliency_samples=16)
    print_table(reports)
    draw(reports, test[0][:1], args.output)
    print(f"How far each shift moves the logits: {args.output}")
    check(reports)
    print("Checked: what the first lines of this script claim.")
    return reports


if __name__ == "__main__":
    main()
