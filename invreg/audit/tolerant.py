"""What if some samples of a data set cannot be read?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import isgenerator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

_HOPELESS = 100
"""After how many failures in a row a loader is given up."""


class CutShortError(Exception):
    """A loader was at its end right after it raised: nobody knows what it had left."""


@dataclass(frozen=True)
class Unreadable:
    """Samples that a loader could not give.

    Args:
        rows: Their places in the batch; empty where the whole batch was lost.
        reason: What was raised, in words.
    """

    rows: tuple[int, ...]
    reason: str


def tolerant(loader: Iterable[Any]) -> Iterator[tuple[Any, tuple[Unreadable, ...]]]:
    """Yields each batch with what could not be read of it; the batch is None if nothing could.

    A ``DataLoader`` over a map-style data set loses single samples; of other loaders the batch is lost whose turn it
    was when it raised, if they go on after that at all. What raises a hundred times in a row is let through.
    """
    failures = 0
    inner: Any = _tolerant_loader(loader) if _reads_single_samples(loader) else loader
    iterator = iter(inner)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            if failures and (isgenerator(iterator) or isinstance(inner, DataLoader)):  # over, whatever it had left
                raise CutShortError from None
            return
        except Exception as error:
            failures += 1
            if failures == _HOPELESS:
                raise
            yield None, (Unreadable((), _in_words(error)),)
            continue
        failures = 0
        yield batch if inner is not loader else (batch, ())


def _reads_single_samples(loader: Iterable[Any]) -> bool:
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__  # or else it does more than this one
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _tolerant_loader(loader: Any) -> DataLoader[Any]:
    """The same loader over a data set that gives what it raises instead of raising it."""
    return DataLoader(
        _Caught(loader.dataset),
        batch_sampler=loader.batch_sampler,
        collate_fn=_Apart(loader.collate_fn),
        num_workers=loader.num_workers,
        pin_memory=False,  # which would look into what this loader yields
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


@dataclass(frozen=True)
class _Failed:
    reason: str


class _Caught(Dataset[Any]):
    """A data set whose samples are those of another one, or what that raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            if hasattr(self.dataset, "__getitems__"):  # which torch's loader prefers too
                return self.dataset.__getitems__([index])[0]
            return self.dataset[index]
        except Exception as error:
            return _Failed(_in_words(error))


class _Apart:
    """Collates the samples that could be read."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate or default_collate

    def __call__(self, samples: list[Any]) -> tuple[Any, tuple[Unreadable, ...]]:
        read = [sample for sample in samples if not isinstance(sample, _Failed)]
        failed = tuple(
            Unreadable((row,), sample.reason) for row, sample in enumerate(samples) if isinstance(sample, _Failed)
        )
        try:
            return self.collate(read) if read else None, failed
        except Exception as error:  # samples that do not fit together
            return None, (Unreadable(tuple(range(len(samples))), _in_words(error)),)


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())  # on one line
