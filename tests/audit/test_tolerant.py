"""Does a loader of which some samples cannot be read still give the others?"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from invreg.audit.tolerant import CutShortError, Unreadable, tolerant

# Where there is one core, torch would rather have one worker.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")

FAILURES = {2: OSError("no file"), 5: IndexError("no row"), 6: KeyError("no key"), 7: ValueError("of two\nlines")}


class Corrupt(Dataset):
    """The numbers up to 12, some of which cannot be read; each way of failing is another one."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, n: int) -> int:
        if n in FAILURES:
            raise FAILURES[n]
        return n


def read(loader: Any) -> list[tuple[Any, tuple[Unreadable, ...]]]:
    return [(None if batch is None else torch.as_tensor(batch).tolist(), lost) for batch, lost in tolerant(loader)]


@pytest.mark.parametrize("workers", [0, 2])
def test_single_samples_are_lost_with_their_places_and_reasons(workers):
    found = read(DataLoader(Corrupt(), batch_size=4, num_workers=workers))
    assert found == [
        ([0, 1, 3], (Unreadable((2,), "OSError: no file"),)),
        (
            [4],
            (
                Unreadable((1,), "IndexError: no row"),
                Unreadable((2,), "KeyError: 'no key'"),
                Unreadable((3,), "ValueError: of two lines"),
            ),
        ),
        ([8, 9, 10, 11], ()),
    ]


def test_a_batch_of_which_nothing_is_left_is_none():
    loader = DataLoader(Subset(Corrupt(), [0, 1, 5, 6, 8, 9]), batch_size=2)
    assert [batch for batch, _ in read(loader)] == [[0, 1], None, [8, 9]]
    assert [len(lost) for _, lost in read(loader)] == [0, 2, 0]


def test_a_loader_is_read_as_often_as_one_likes_and_stays_as_it_was():
    loader = DataLoader(Corrupt(), batch_size=4)
    assert read(loader) == read(loader)
    assert loader.dataset.__class__ is Corrupt
    with pytest.raises(OSError, match="no file"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_without_failures_gives_what_it_gives(workers):
    """Order, batches and collation, also where they are drawn."""

    def loader() -> DataLoader:
        return DataLoader(
            TensorDataset(torch.arange(20)),
            batch_size=6,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            generator=torch.Generator().manual_seed(2),
            collate_fn=lambda samples: torch.stack([value for (value,) in samples]) + 100,
        )

    assert [batch for batch, lost in read(loader()) if not lost] == [batch.tolist() for batch in loader()]
    assert len(read(loader())) == 3


def test_a_loader_of_single_samples_loses_those():
    """Without a batch size each sample is a batch."""
    found = read(DataLoader(Corrupt(), batch_size=None))
    assert [batch for batch, _ in found] == [n if n not in FAILURES else None for n in range(12)]
    assert [len(lost) for _, lost in found].count(1) == 4


class Counting:
    """Raises a few times between what it gives."""

    def __init__(self, failures: int, rounds: int) -> None:
        self.turns = ([OSError("later")] * failures + [1]) * rounds

    def __iter__(self) -> Iterator[int]:
        self.left = iter(self.turns)
        return self

    def __next__(self) -> int:
        turn = next(self.left)
        if isinstance(turn, Exception):
            raise turn
        return turn


def test_a_hundred_failures_in_a_row_are_too_many_and_ninety_nine_are_not():
    assert sum(batch == 1 for batch, _ in tolerant(Counting(99, 3))) == 3
    with pytest.raises(OSError, match="later"):
        list(tolerant(Counting(100, 1)))


def test_an_iterable_data_set_ends_where_it_raises():
    class Samples(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            yield from range(5)
            raise OSError("gone")

    found: list[Any] = []

    def go_through() -> None:
        for batch, failed in tolerant(DataLoader(Samples(), batch_size=2)):
            found.append((None if batch is None else batch.tolist(), failed))  # it raises

    with pytest.raises(CutShortError):
        go_through()
    assert [batch for batch, _ in found] == [[0, 1], [2, 3], None]
    assert found[-1][1] == (Unreadable((), "OSError: gone"),)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruptions_are_let_through(interruption):
    class Interrupted(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, n: int) -> int:
            raise interruption

    with pytest.raises(interruption):
        list(tolerant(DataLoader(Interrupted())))
