"""What does the audit add to the forwards and backwards that nobody can avoid, in time and memory?"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import nn

from invreg import CyclicRotation, InvarianceAudit, SaliencyMap, measure_invariance
from invreg.audit.evaluate import Measured
from invreg.audit.tally import OF_ELEMENT, OVER_SAMPLES, Tally
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.models import CLASSES, MODELS, SIDE
from tests.benchmarks.timing import ratios

GROUP = CyclicRotation(4)
BATCH = 256


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """The audit beside bare forwards and captum; its peak memory at 1k and at 50k samples."""
    for name, make in MODELS.items():
        found = _errors(make().eval(), batches=1 if quick else 16, rounds=3 if quick else 9)
        yield f"audit of LI and DI, {name}: measure_invariance / bare forwards", found["audit"]
        yield f"audit of LI and DI, {name}: of which transforming the inputs", found["transforms"] - 1
        yield f"audit of LI and DI, {name}: with classes, quantiles, worst samples / without", found["audit / plain"]
        found = _saliency(make().eval(), n=8 if quick else 64, rounds=2 if quick else 15)
        yield f"audit with SI, {name}: measure_invariance / captum's attributions alone, {BATCH} rows", found["audit"]
    for name in ("MLP", "CNN"):
        time, limit, memory = _defaults(MODELS[name]().eval(), n=8 if quick else 256, rounds=2 if quick else 5)
        yield f"integrated gradients, {name}: captum's defaults / SaliencyMap, time", time
        yield f"integrated gradients, {name}: captum's defaults / bare forwards and backwards in batches, time", limit
        yield f"integrated gradients, {name}: captum's defaults / SaliencyMap, memory", memory
    few, many = (256, 512) if quick else (1_000, 50_000)
    yield f"peak memory of an audit: {many:,} samples / {few:,} samples", _peak_memory(many) / _peak_memory(few)


def _errors(model: nn.Module, *, batches: int, rounds: int) -> dict[str, float]:
    data = [(torch.randn(BATCH, 1, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))) for _ in range(batches)]
    orbits = [GROUP.orbit(x) for x, _ in data]

    def forwards() -> None:
        with torch.no_grad():
            for orbit in orbits:
                for x in orbit:
                    model(x)

    def transformed_forwards() -> None:
        with torch.no_grad():
            for x, _ in data:
                for g in GROUP.elements():
                    model(GROUP.act(g, x))

    def audit() -> None:
        measure_invariance(model, data, GROUP, saliency=None)

    def plain() -> None:
        audit = InvarianceAudit(model, GROUP, saliency=None)
        audit._tally = _Plain(GROUP, worst_samples=0, kept_samples=0)
        audit.run(data)

    found = ratios({"forwards": forwards, "transforms": transformed_forwards, "audit": audit}, rounds=rounds)
    return found | {"audit / plain": ratios({"plain": plain, "audit": audit}, rounds=rounds)["audit"]}


class _Plain(Tally):
    """Means over all samples and for each element, and nothing else."""

    def add(self, measured: Measured) -> None:
        values = torch.stack(list(measured.by_element.values())).numpy()
        over = np.concatenate([values.mean(1), torch.stack(list(measured.over_samples.values())).numpy()])
        names = [*measured.by_element, *measured.over_samples]
        places = np.array([OVER_SAMPLES.index(name) for name in names])
        self.overall.add(over.ravel(), places.repeat(over.shape[1]))
        elements = np.array([OF_ELEMENT.index(name) for name in measured.by_element]) * self.group.order
        bins = elements[:, None, None] + measured.elements.numpy()[:, None]
        self.by_element.add(values.ravel(), np.broadcast_to(bins, values.shape).ravel())
        self.samples += values.shape[2]
        self.labelled = True


def _saliency(model: nn.Module, *, n: int, rounds: int) -> dict[str, float]:
    x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
    orbit = GROUP.orbit(x)
    method = IntegratedGradients(model)

    def attributions() -> None:
        for moved in orbit:
            method.attribute(moved, target=y, n_steps=50, internal_batch_size=BATCH)

    return ratios({"captum": attributions, "audit": lambda: measure_invariance(model, [(x, y)], GROUP)}, rounds=rounds)


def _defaults(model: nn.Module, *, n: int, rounds: int) -> tuple[float, float, float]:
    """What captum's defaults, all steps of all samples in one batch, take of time and memory; as multiples.

    Of ours, of the least that batching can leave of the time, and of our memory.
    """
    x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
    rows = torch.randn(64 if isinstance(model[0], nn.Conv2d) else 256, 1, SIDE, SIDE)

    def bare() -> None:
        for _ in range(n * SaliencyMap().steps // len(rows)):
            batch = rows.clone().requires_grad_()
            torch.autograd.grad(model(batch).sum(), batch)

    ways = {
        "invreg": lambda: SaliencyMap().attribute(model, x, y),
        "captum": lambda: IntegratedGradients(model).attribute(x, target=y),
    }
    memory = {name: peak_memory(way, "cpu") for name, way in ways.items()}
    time = ratios({**ways, "bare": bare}, rounds=rounds)
    return time["captum"], time["captum"] / time["bare"], memory["captum"] / memory["invreg"]


def _peak_memory(samples: int) -> float:
    """Peak resident memory of a fresh process that audits so many samples."""
    command = [sys.executable, "-m", "tests.benchmarks.auditing", str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _audit(samples: int) -> None:
    stream = (torch.randn(min(BATCH, samples - start), 1, SIDE, SIDE) for start in range(0, samples, BATCH))
    measure_invariance(MODELS["CNN"](), stream, GROUP, saliency=None)


if __name__ == "__main__":
    torch.manual_seed(0)
    _audit(int(sys.argv[1]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
