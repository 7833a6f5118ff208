"""Audits by two processes: ``python -m torch.distributed.run ... -m tests.audit.processes FOLDER``.

Each process writes what it found to a file of its own, for the tests to compare.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from invreg import CyclicRotation, InvarianceAudit, InvarianceReport, PlanarRotation, SaliencyMap, measure_invariance

SAMPLES = 23
"""An odd number, of which two processes cannot have the same share."""

Batches = Iterable[Any]


def model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """The first samples of always the same ones."""
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(500, 1, 4, 4, dtype=torch.float64, generator=rng)
    return x[:samples], torch.randint(3, (500,), generator=rng)[:samples]


class Corrupt(Dataset):
    """Samples 4 and 9 cannot be read."""

    def __init__(self) -> None:
        self.x, self.y = data()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        if n in (4, 9):
            raise OSError(f"truncated file {n}")
        return self.x[n], self.y[n]


def dealt(dataset: Dataset | None = None, batch_size: int = 4, **settings: Any) -> DataLoader:
    """A loader of this process's part."""
    dataset = TensorDataset(*data()) if dataset is None else dataset
    return DataLoader(dataset, batch_size=batch_size, sampler=DistributedSampler(dataset, **settings))


def by_hand(samples: int, shares: list[slice]) -> list[Any]:
    """A part of the samples, cut by hand."""
    x, y = data(samples)
    part = shares[torch.distributed.get_rank()]
    return [(x[part], y[part])] if len(x[part]) else []


def batches(samples: int, size: int = 5) -> list[Any]:
    x, y = data(samples)
    return list(zip(x.split(size), y.split(size), strict=True))


MAPS = SaliencyMap(steps=2)
TURNS = CyclicRotation(4)

AUDITS: dict[str, dict[str, Any]] = {
    "sampler": {"saliency": None},
    "maps": {"saliency": MAPS, "saliency_samples": 9},
    "drawn": {"saliency": None, "samples": 2},
    "any angle": {"group": PlanarRotation(), "saliency": None, "samples": 2},
    "few kept": {"saliency": None, "kept_samples": 5, "worst_samples": 3},
    "skipping": {"saliency": None, "on_error": "skip", "samples": 1},
    "values": {"outputs": "values"},
}
"""What is measured on data that torch's sampler deals."""


def measured(loader: Batches, *, group: Any = TURNS, **settings: Any) -> InvarianceReport:
    return measure_invariance(model(), loader, group, **settings)


def numbers(folder: Path) -> dict[str, Any]:
    """Reports of all kinds."""
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    examples: dict[str, Any] = {}

    def keep(name: str, report: InvarianceReport) -> None:
        found[name] = report.to_dict()
        examples[name] = [(one.index, one.names, one.maps) for one in report.saliency_examples]

    for name, settings in AUDITS.items():
        dataset = Corrupt() if name == "skipping" else None
        keep(name, measured(dealt(dataset, shuffle=False), **settings))
    keep("shuffled", measured(dealt(shuffle=True, seed=8), saliency=None))
    keep("dropping", measured(dealt(shuffle=False, drop_last=True), saliency=None))
    # The first 20 samples in turns: all that one process has, then all that the other one has.
    keep("uneven", measured(by_hand(20, [slice(0, 6), slice(6, 20)]), saliency=None))
    if rank == 0:
        keep("alone", measured(batches(11), saliency=None, distributed=False))
    keep("precise", measured(dealt(TensorDataset(*data(500)), 10, shuffle=False), saliency=None, target_precision=1))
    keep("one is precise", measured(by_hand(150, [slice(0, 130), slice(130, 150)]), saliency=None, target_precision=1))
    path = folder / "audit.pt"
    keep("saved", measured(dealt(shuffle=False), saliency=None, samples=2, checkpoint=path))
    keep("gone on with", measured(dealt(shuffle=False), saliency=None, samples=2, checkpoint=path))
    audits = [InvarianceAudit(model(), TURNS, saliency=None) for _ in range(2)]
    x, y = data(20)
    for audit, part in zip(audits, (slice(rank, 12, 2), slice(12 + rank, 20, 2)), strict=True):
        audit.update(x[part], y[part])
    audits[0].merge(audits[1])
    keep("merged", audits[0].report())
    torch.save(examples, folder / f"examples{rank}.pt")
    return found


def failures(folder: Path) -> dict[str, Any]:
    """What each process says and how long it takes to say it, where something fails in one of them."""
    rank = torch.distributed.get_rank()

    def said(work: Callable[[], Any]) -> dict[str, Any]:
        started = time.monotonic()
        try:
            work()
            kind, message = "", ""
        except BaseException as error:
            kind, message = type(error).__name__, str(error)
        return {"kind": kind, "message": message, "seconds": time.monotonic() - started}

    def failing(v: Tensor) -> Tensor:
        if rank == 1:
            raise KeyError("no such layer")
        return v.flatten(1)[:, :3]

    def interrupted() -> Iterator[Any]:
        yield from batches(5)
        if rank == 0:
            raise KeyboardInterrupt

    loader = dealt(shuffle=False)
    found = {
        "model": said(lambda: measure_invariance(failing, loader, TURNS, saliency=None)),
        "afterwards": said(lambda: measured(loader, saliency=None)),
        "interrupted": said(lambda: measured(interrupted(), saliency=None)),
        "checkpoint": said(
            lambda: measured(loader, saliency=None, checkpoint=folder / ("other.pt" if rank else "missing/other.pt"))
        ),
        "nothing": said(lambda: measured(by_hand(5, [slice(0, 5), slice(5, 5)]), saliency=None)),
    }
    audit = InvarianceAudit(model(), TURNS, saliency=None)
    if rank == 0:
        audit.update(*data())
    found["nothing by hand"] = said(audit.report)  # the last one: processes may have lost one another after it
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
    where = Path(sys.argv[1])
    for work in (numbers, failures):
        (where / f"{work.__name__}{torch.distributed.get_rank()}.json").write_text(json.dumps(work(where)))
    torch.distributed.destroy_process_group()
