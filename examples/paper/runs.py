"""Trains and audits what the exhibits need, each run once, on all cores, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from examples.datasets import Labelled, Splits
from examples.paper.training import GROUPS, Run, load, train, untuned
from invreg import Tuning, jacobian_spectral_norm, measure_invariance, tune_weight

Record = dict[str, Any]
"""What a run came to: plain numbers."""

TARGET = 0.95
"""The saliency similarity that the paper tunes to."""


@dataclass(frozen=True)
class Workplace:
    """Where things are, and how much is done.

    Args:
        data: Folder with ``mnist/`` and ``fashion-mnist/``; None for what ``examples/datasets.py`` finds.
        work: Folder for checkpoints and records, from which a stopped command goes on.
        results: Folder for what an exhibit shows: JSON and pictures.
        quick: Whether to try everything out on a small scale.
    """

    data: Path | None
    work: Path
    results: Path
    quick: bool = False

    def of(self, run: Run) -> Run:
        """The run, or its trial on the small digits."""
        return replace(run, data="digits", epochs=min(run.epochs, 6)) if self.quick else run

    @property
    def looked_at(self) -> int:
        """How many images of a data set saliency maps and Jacobians are made for."""
        return 32 if self.quick else 1_000

    @property
    def seeds(self) -> Sequence[int]:
        """The paper's four, or two in a trial."""
        return range(2) if self.quick else range(4)

    def save(self, exhibit: str, result: Any) -> Path:
        """Writes what an exhibit shows."""
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{exhibit}.json"
        _write(path, result)
        return path

    def records(self, runs: Sequence[Run]) -> dict[Run, Record]:
        """Trains and audits those runs that have no record yet; returns all records."""
        paths = {run: self.work / f"{self.of(run).name}.json" for run in runs}
        self._each(_train_and_audit, [self.of(run) for run, path in paths.items() if not path.exists()], "runs")
        return {run: _record(path, self.of(run)) for run, path in paths.items()}

    def tuned(self, runs: Sequence[Run]) -> list[Run]:
        """The runs with weights so that the saliency similarity on validation images reaches the paper's 0.95.

        A weight is searched for on seed 0, beginning with the one that the run has, and then the same for all seeds;
        where none up to eight times as large is enough, it is the one that comes nearest. A run without a regulariser
        stays as it is.
        """
        missing = [replace(run, seed=0) for run in runs if run.regularised and not self._tuning(self.of(run)).exists()]
        self.records([_unregularised(run) for run in missing])
        self._each(_tune, [self.of(run) for run in dict.fromkeys(missing)], "tunings")
        return [replace(run, weight=self.tuning(run)["weight"]) if run.regularised else run for run in runs]

    def regularised(self) -> dict[str, Run]:
        """The paper's regularised runs, tuned, by group."""
        return dict(zip(GROUPS, self.tuned([untuned(group) for group in GROUPS]), strict=True))

    def tuning(self, run: Run) -> Record:
        """What the search for a run's weight found: the weight, its similarity, and all trials."""
        found: Record = json.loads(self._tuning(self.of(run)).read_text())
        return found

    def trained(self, run: Run) -> tuple[nn.Module, Splits]:
        """The model of a run, trained if need be, in evaluation mode, and its data."""
        checkpoint = self._checkpoint(self.of(run))
        if not checkpoint.exists():  # somebody made room
            (self.work / f"{self.of(run).name}.json").unlink(missing_ok=True)
        self.records([run])
        run = self.of(run)
        return train(run, data := splits(run.data, self.data), checkpoint).model, data

    def _tuning(self, run: Run) -> Path:
        return self.work / f"{replace(run, weight=0.0, seed=0).name}_{run.loss.replace(' ', '-')}_tuned.json"

    def _checkpoint(self, run: Run) -> Path:
        return self.work / f"{run.name}.pt"

    def _each(self, work: Callable[[Workplace, Run], None], runs: Sequence[Run], unit: str) -> None:
        """Does some work for each run, in as many processes as there are cores."""
        if not runs:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with (
            ProcessPoolExecutor(min(cores, len(runs)), get_context("spawn")) as pool,
            tqdm(total=len(runs), unit=unit.removesuffix("s"), disable=None) as progress,
        ):
            waiting = {pool.submit(work, self, run): run for run in runs}
            for number, done in enumerate(as_completed(waiting), 1):
                done.result()
                progress.update()
                if progress.disable:
                    print(f"{number} of {len(runs)} {unit}: {waiting[done].name}", flush=True)


def workplace(argv: Sequence[str] | None = None, description: str | None = None) -> Workplace:
    """Where things are, from a command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder with mnist/ and fashion-mnist/ (default: see datasets.py)")
    parser.add_argument("--work", type=Path, default=Path("paper-runs"), help="checkpoints and records, to go on from")
    parser.add_argument("--results", type=Path, help="JSON and pictures (default: docs/results, or the work folder's)")
    parser.add_argument("--quick", action="store_true", help="try everything out on small digits, in two minutes")
    args = parser.parse_args(argv)
    work = args.work / "quick" if args.quick else args.work
    results = args.results or (work / "results" if args.quick else Path("docs/results"))
    return Workplace(args.data, work, results, args.quick)


@cache
def splits(data: str, folder: Path | None) -> Splits:
    """The data of a run, read once per process."""
    return load(data, folder)


def _record(path: Path, run: Run) -> Record:
    """What a run came to, if the file is that run's."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if record["run"] != asdict(run):
        raise ValueError(f"{path} must hold the record of {run}: got that of {record['run']}. Delete it.")
    return record


def _train_and_audit(place: Workplace, run: Run) -> None:
    """Writes the record of a run."""
    torch.set_num_threads(1)  # there are as many processes as cores
    data = splits(run.data, place.data)
    model, history = train(run, data, place._checkpoint(run))
    images = data.test[0][: place.looked_at]
    record = {
        "run": asdict(run),
        "test": _audit(model, data.test, run, place.looked_at),
        "validation": _audit(model, data.validation, run, place.looked_at if run.method in ("DA", "IR") else 0),
        "Jacobian spectral norm": jacobian_spectral_norm(model, images).mean().item(),
        "history": history,
    }
    _write(place.work / f"{run.name}.json", record)


def _unregularised(run: Run) -> Run:
    return replace(run, method="DA", weight=0.0, loss="L2")


def _tune(place: Workplace, run: Run) -> None:
    """Writes the weight of a run's regulariser with which it reaches a saliency similarity, and the search."""
    torch.set_num_threads(1)

    def similarity(weight: float) -> float:
        tried = replace(run, weight=weight) if weight else _unregularised(run)
        path = place.work / f"{tried.name}.json"
        if not path.exists():
            _train_and_audit(place, tried)
        return float(_record(path, tried)["validation"]["SI"])

    trials = [(0.0, similarity(0.0))]
    if place.quick:  # so short a training reaches nothing
        trials.append((run.weight, similarity(run.weight)))
        found = Tuning(*trials[-1], target=TARGET, trials=tuple(trials))
    else:
        search = {"initial": run.weight, "factor": 2.0, "precision": 1.5, "largest": 8 * run.weight}
        try:
            found = tune_weight(similarity, TARGET, trials=trials, **search)
        except RuntimeError:  # no weight is enough: the best that was tried
            found = Tuning(*max(trials, key=lambda trial: trial[1]), target=TARGET, trials=tuple(trials))
    _write(place._tuning(run), asdict(found))


def _audit(model: nn.Module, labelled: Labelled, run: Run, looked_at: int) -> Record:
    """Accuracy and invariance on images and labels; saliency maps of the first ones, if of any."""
    batches = list(zip(*(part.split(500) for part in labelled), strict=True))
    saliency = {"saliency_samples": looked_at} if looked_at else {"saliency": None}
    report = measure_invariance(model, batches, GROUPS[run.group], progress=False, **saliency)
    names = {
        "accuracy": report.group_accuracy,
        "LI": report.logit_error,
        "DI": report.distribution_error,
        "SI": report.saliency_similarity,
    }
    return {name: estimate.mean for name, estimate in names.items() if estimate is not None}


def _write(path: Path, content: Any) -> None:
    """Writes JSON so that the file is never half there."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
