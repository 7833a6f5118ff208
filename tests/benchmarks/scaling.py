"""Does the cost grow as the number of elements and of samples does, and no faster?

``python -m tests.benchmarks.scaling --out docs/performance`` writes ``scaling.json`` and ``scaling.png``: a training
step with ``L2InvarianceLoss`` and an audit of LI and DI, against the order of the group and the number of samples.
Against the order, the unit is the plain training step and the bare forward over the data; against the number of
samples, what the fewest samples cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from invreg import CyclicRotation, CyclicTranslation, FiniteGroup, L2InvarianceLoss, measure_invariance
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.models import CLASSES, MODELS, SIDE
from tests.benchmarks.steps import training_step
from tests.benchmarks.timing import ratios

Work = Callable[[], object]


class Point(NamedTuple):
    """What some work costs in its unit."""

    work: str
    model: str
    against: str
    group: str
    samples: int
    size: float
    """The order of the group, or how many times the fewest samples."""
    time: float
    memory: float


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Time for each unit of size: 1 where the cost grows with nothing but the size."""
    for point in points(quick=quick):
        label = f"{point.work}, {point.model}, {point.group}, {point.samples} samples"
        yield f"{label}: time / straight line over {point.against}", point.time / point.size


def points(*, quick: bool) -> Iterator[Point]:
    """Measures both kinds of work on both models, against the order and against the number of samples."""
    rounds = 1 if quick else 9
    translations = [] if quick else [CyclicTranslation(order) for order in (9, 18, 36)]
    groups: list[FiniteGroup] = [CyclicRotation(4), CyclicRotation(2), *translations]
    for model in MODELS:
        for work, (of_group, unit, samples) in {
            "training step": (_regularized_step, _plain_step, 8 if quick else 64),
            "audit": (_audit, _forwards, 16 if quick else 512),
        }.items():
            alternatives = {"": unit(model, samples)} | {
                repr(group): of_group(model, samples, group) for group in groups
            }
            time, memory = _costs(alternatives, rounds=rounds)
            for group in groups:
                name = repr(group)
                yield Point(work, model, "the order", name, samples, group.order, time[name], memory[name])
            sizes = [samples * factor for factor in ((1, 2) if quick else (1, 2, 4, 8))]
            time, memory = _costs({n: of_group(model, n, groups[0]) for n in sizes}, rounds=rounds)
            for n in sizes:
                yield Point(work, model, "the samples", repr(groups[0]), n, n / samples, time[n], memory[n])


def _costs(alternatives: dict[Any, Work], *, rounds: int) -> tuple[dict[Any, float], dict[Any, float]]:
    """Time and memory of each as multiples of the first one's."""
    memory = {name: peak_memory(work, "cpu") for name, work in alternatives.items()}
    first = next(iter(memory.values()))
    return ratios(alternatives, rounds=rounds), {name: value / first for name, value in memory.items()}


def _plain_step(name: str, n: int) -> Work:
    return _step(name, n, None)


def _regularized_step(name: str, n: int, group: FiniteGroup) -> Work:
    return _step(name, n, L2InvarianceLoss(group))


def _step(name: str, n: int, term: nn.Module | None) -> Work:
    return training_step(MODELS[name](), torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,)), term)


def _forwards(name: str, n: int) -> Work:
    model, data = MODELS[name]().eval(), _data(n)
    return torch.no_grad()(lambda: [model(x) for x in data])


def _audit(name: str, n: int, group: FiniteGroup) -> Work:
    return partial(measure_invariance, MODELS[name]().eval(), _data(n), group, saliency=None)


def _data(n: int) -> list[torch.Tensor]:
    return list(torch.randn(n, 1, SIDE, SIDE).split(128))


def plot(found: list[Point], path: Path) -> None:
    """Time and memory against the order and the number of samples, each beside the line through the origin."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", facecolor="white")
    units = {
        "the order": "order of the group",
        "the samples": "number of samples, in multiples of the fewest",
    }
    for column, (against, size) in enumerate(units.items()):
        fewest = column == 1
        for row, cost in enumerate(("time", "memory")):
            panel, of_column = panels[row][column], [point for point in found if point.against == against]
            most = max(point.size for point in of_column)
            panel.plot([0, most], [0, most], "--", color="0.5", label="straight line through the origin")
            for work, marker in (("training step", "o"), ("audit", "s")):
                for model, (colour, size_of_marker) in zip(MODELS, (("tab:blue", 9), ("tab:orange", 5)), strict=True):
                    line = sorted((p.size, getattr(p, cost)) for p in of_column if (p.work, p.model) == (work, model))
                    style = {"color": colour, "marker": marker, "linestyle": "-" if marker == "o" else ":"}
                    style["markersize"] = size_of_marker  # so that neither hides the other
                    panel.plot(*zip(*line, strict=True), label=f"{work}, {model}", **style)
            panel.set(xlabel=size, ylabel=f"{cost} / {'that of the fewest' if fewest else 'plain step, bare forward'}")
            panel.set(xlim=(0, None), ylim=(0, None))
            panel.grid(color="0.9")
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Writes the measurements and the figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: checks that it works")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = list(points(quick=options.quick))
    options.out.mkdir(parents=True, exist_ok=True)
    measured = [{key: round(v, 4) if isinstance(v, float) else v for key, v in p._asdict().items()} for p in found]
    lines = ",\n".join(json.dumps(point) for point in measured)
    (options.out / "scaling.json").write_text(f"[\n{lines}\n]\n")
    plot(found, options.out / "scaling.png")


if __name__ == "__main__":
    main()
