"""What a regulariser buys for what it costs: time per step, against the invariance and the accuracy reached.

A step of the full regulariser computes the network at the image and at all its transforms. It may take fewer: one
random element per image, a part of the batch, some of the steps. All are unbiased, so that the weight stays.

python -m examples.paper.cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

import torch

from examples.paper.gap import WEIGHT, start
from examples.paper.runs import Workplace, splits, workplace
from examples.paper.table1 import Row, table
from examples.paper.training import Run, Training

ROUNDS = 15
STEPS = 4  # a multiple of every ``every``

CHEAPER: dict[str, dict[str, float]] = {
    "samples=1": {"samples": 1},
    "samples=1, fraction=0.5": {"samples": 1, "fraction": 0.5},
    "samples=1, fraction=0.25": {"samples": 1, "fraction": 0.25},
    "samples=1, every=4": {"samples": 1, "every": 4},
    "every=4": {"every": 4},
}
"""The ways to pay less for the regulariser."""


def rows(place: Workplace) -> dict[str, Row]:
    """The rows of the table."""
    tuned = place.regularised()
    free = {group: Run(group, "FREE", weight=WEIGHT, **start(group, "paper")) for group in tuned}

    def cheaper(runs: Mapping[str, Run], name: str, factor: int = 1) -> Callable[[str], Run]:
        return lambda group: replace(runs[group], weight=factor * runs[group].weight, **CHEAPER[name])

    runs = {"DA": lambda group: Run(group, "DA"), "IR": tuned.__getitem__}
    runs |= {f"IR, {name}": cheaper(tuned, name) for name in CHEAPER}
    for factor in (2, 4):
        runs[f"IR, samples=1, fraction=0.25, {factor} times the weight"] = cheaper(
            tuned, "samples=1, fraction=0.25", factor
        )
    runs["OC"] = lambda group: replace(tuned[group], method="OC")
    runs["OC, weight 0"] = lambda group: Run(group, "OC")
    runs["SYM"] = lambda group: Run(group, "SYM", **start(group, "paper"))
    for name in ("samples=1, fraction=0.5", "samples=1, fraction=0.25"):
        runs[f"FREE, {name}"] = cheaper(free, name)
        runs[f"FREE, {name}, 2 times the weight"] = cheaper(free, name, 2)
    return {name: Row(run_of, place.seeds[:2]) for name, run_of in runs.items()}


def costs(runs: Mapping[str, Run], place: Workplace) -> dict[str, float]:
    """The time of a training step, as a multiple of that of the first run: medians over rounds, in turn."""
    torch.set_num_threads(1)
    stages = {name: _stages(run, place) for name, run in runs.items()}
    baseline, *_ = runs
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2 if place.quick else ROUNDS):
        seconds = {name: sum(share * _seconds(one) for share, one in of_run) for name, of_run in stages.items()}
        for name in runs:
            found[name].append(seconds[name] / seconds[baseline])
    return {name: median(ratios) for name, ratios in found.items()}


def main(place: Workplace) -> None:
    """Writes the table."""
    wanted = rows(place)
    found = table(place, wanted, ["R4"])
    for group, by_row in found.items():
        for name, ratio in costs({name: row.run_of(group) for name, row in wanted.items()}, place).items():
            by_row[name]["step"] = ratio
    place.save("cost", found)


def _stages(run: Run, place: Workplace) -> list[tuple[float, Training]]:
    """A training at its beginning, and freed if it will be, each with its share of the epochs."""
    run = place.of(run)
    data = splits(run.data, place.data)
    beginning = Training(run, data)
    if run.method != "FREE":
        return [(1.0, beginning)]
    freed = Training(run, data)
    freed.free()
    freed.epoch = freed.freed_at
    share = freed.freed_at / run.epochs
    return [(share, beginning), (1 - share, freed)]


def _seconds(training: Training) -> float:
    """The time of some steps."""
    training.model.train()
    batches = torch.arange(len(training.data.train[0])).split(training.recipe.batch)[:STEPS]
    start = time.perf_counter()
    for rows in batches:
        training.take_step(rows)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(workplace(description=__doc__))
