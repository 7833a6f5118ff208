"""Are samples that fail left out, counted and named, and nothing else with them?"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from invreg import (
    CyclicRotation,
    InvarianceAudit,
    InvarianceReport,
    OnKeys,
    PlanarRotation,
    SaliencyMap,
    SignFlip,
    measure_invariance,
)
from tests.audit.sameness import assert_same, assert_same_report

# Where there is one core, torch would rather have one worker.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")

BAD = (3, 10, 11)
GOOD = tuple(n for n in range(24) if n not in BAD)
MARK = 50.0
"""An entry that no other sample has."""


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    """Images of which those in ``BAD`` have a mark in the corner at the top left."""
    x, y = torch.randn(24, 1, 4, 4, dtype=torch.float64), torch.randint(3, (24,))
    x[list(BAD), 0, 0, 0] = MARK
    return x, y


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 5) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Failing(nn.Module):
    """A network that fails at samples with a mark, in the corner where it is before or after half a turn."""

    def __init__(self, network: nn.Module, how: str, corner: int = 0) -> None:
        super().__init__()
        self.network, self.how, self.corner = network, how, corner
        self.calls = 0

    def forward(self, v: Tensor) -> Tensor:
        self.calls += 1
        marked = v[:, 0, self.corner, self.corner] == MARK
        if marked.any() and self.how == "raises":
            raise KeyError("no such place")
        outputs = self.network(v)
        size = {"nan": float("nan"), "inf": float("inf"), "raises": 0.0}[self.how]
        return torch.where(marked[:, None], outputs + size, outputs)


def without_positions(report: InvarianceReport) -> dict[str, Any]:
    """What a report says of the samples that were measured, wherever they stood in the data."""
    state = report.to_dict()
    for name in ("seen", "skipped", "skipped_samples", "provenance", "model"):
        del state[name]
    del state["per_sample"]["index"]
    for one in state["worst_samples"]:
        del one["index"]
    return state


def assert_as_of_the_good_ones(report: InvarianceReport, expected: InvarianceReport, bad: Any = BAD) -> None:
    """Raises unless a report says of 24 samples what another one says of those that are not bad."""
    good = [n for n in range(24) if n not in bad]
    assert_same(without_positions(report), without_positions(expected))
    assert (report.seen, report.samples, report.skipped) == (24, len(good), len(bad))
    assert report.per_sample["index"].tolist() == good
    assert [good[one.index] for one in expected.worst_samples] == [one.index for one in report.worst_samples]
    assert [(one.index, one.count) for one in report.skipped_samples] == [(n, 1) for n in bad]


# Samples at which the model fails


@pytest.mark.parametrize("how", ["nan", "inf", "raises"])
@pytest.mark.parametrize("corner", [0, 3], ids=["at the identity", "under one element"])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_samples_at_which_the_model_fails_are_left_out(how, corner, labelled):
    network, (x, y) = mlp(), data()
    y = y if labelled else None
    settings = {"saliency": SaliencyMap(steps=2), "saliency_samples": None, "worst_samples": 30}
    model = Failing(network, how, corner)
    report = measure_invariance(model, in_batches(x, y), CyclicRotation(4), on_error="skip", **settings)
    good = list(GOOD)
    labels = None if y is None else y[good]
    expected = measure_invariance(network, in_batches(x[good], labels), CyclicRotation(4), **settings)
    assert_as_of_the_good_ones(report, expected)
    reason = "no such place" if how == "raises" else "The model's outputs are not finite"
    for one in report.skipped_samples:
        assert reason in one.reason
        assert ("element 2" in one.reason) == (corner == 3)
    with pytest.raises((ValueError, RuntimeError), match=r"no such place|sample 3 of the data"):
        measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)


@pytest.mark.parametrize("how", ["nan", "raises"])
@pytest.mark.parametrize("size", [1, 4, 24])
def test_the_size_of_batches_does_not_matter(how, size):
    model, (x, y) = Failing(mlp(), how), data()
    settings = {"on_error": "skip", "samples": 2, "saliency": SaliencyMap(steps=2), "saliency_samples": 8}
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    actual = measure_invariance(model, in_batches(x, y, size), CyclicRotation(4), **settings)
    assert_same_report(actual, expected, but=["skipped_samples"])
    assert [one.index for one in actual.skipped_samples] == list(BAD)


@pytest.mark.parametrize("group", [CyclicRotation(4), PlanarRotation()], ids=repr)
@pytest.mark.parametrize("how", ["nan", "raises"])
def test_drawn_elements_stay_with_their_samples(group, how):
    """As is seen beside an audit of a model that does not fail."""
    network, (x, y) = mlp(), data()
    settings = {"samples": 2, "saliency": None, "rng": None}
    report = measure_invariance(Failing(network, how), in_batches(x, y), group, on_error="skip", **settings)
    whole = measure_invariance(network, in_batches(x, y), group, **settings)
    assert report.per_sample["index"].tolist() == list(GOOD)
    for name in report.per_sample.columns:
        assert report.per_sample[name] == pytest.approx(whole.per_sample[name][list(GOOD)], rel=1e-12, abs=1e-12), name


def test_a_model_that_fails_costs_a_few_more_forwards():
    """One bad sample in 64 is found in halves: six times two more calls at most, and not 64."""
    x = torch.randn(64, 1, 4, 4, dtype=torch.float64)
    x[17, 0, 0, 0] = MARK
    model = Failing(mlp(), "raises")
    report = measure_invariance(model, [x], SignFlip(), on_error="skip", saliency=None)
    assert report.samples == 63
    assert model.calls <= 2 * 13 + 1


def test_maps_that_fail_leave_their_sample_out():
    network, (x, y) = mlp(), data()

    def maps(model: Callable, inputs: Tensor, target: Tensor) -> Tensor:
        found = inputs.abs()
        return torch.where((inputs == MARK).flatten(1).any(1).view(-1, 1, 1, 1), float("nan"), found)

    settings = {"saliency": maps, "saliency_samples": None, "worst_samples": 30}
    report = measure_invariance(network, in_batches(x, y), CyclicRotation(4), on_error="skip", **settings)
    good = list(GOOD)
    expected = measure_invariance(network, in_batches(x[good], y[good]), CyclicRotation(4), **settings)
    assert_as_of_the_good_ones(report, expected)
    assert "Saliency maps are not finite" in report.skipped_samples[0].reason


def test_errors_that_overflow_leave_their_sample_out():
    """Logits may be finite, and the square of their distance not."""
    network, (x, _) = mlp(), data()

    def model(v: Tensor) -> Tensor:
        return network(v) * (1 + 1e200 * (v == MARK).flatten(1).any(1).double())[:, None]

    report = measure_invariance(model, in_batches(x), CyclicRotation(4), on_error="skip", saliency=None)
    assert [one.index for one in report.skipped_samples] == list(BAD)
    assert "overflows" in report.skipped_samples[0].reason


def test_inputs_of_several_tensors():
    (x, y), network = data(), mlp()
    group = OnKeys({"image": CyclicRotation(4)})
    failing = Failing(network, "nan")

    def batches(rows: list[int]) -> list:
        return [{"inputs": {"image": x[part], "offset": y[part].double()}} for part in torch.tensor(rows).split(5)]

    report = measure_invariance(
        lambda v: failing(v["image"]) + v["offset"][:, None], batches(list(range(24))), group, on_error="skip"
    )
    expected = measure_invariance(lambda v: network(v["image"]) + v["offset"][:, None], batches(list(GOOD)), group)
    assert_as_of_the_good_ones(report, expected)


def test_a_model_that_is_noisy_loses_the_same_samples():
    failing, (x, _) = Failing(mlp(), "raises"), data()
    report = measure_invariance(
        lambda v: failing(v) + torch.randn(len(v), 3), in_batches(x), CyclicRotation(4), on_error="skip", saliency=None
    )
    assert [one.index for one in report.skipped_samples] == list(BAD)
    assert report.noise_error.count == 21


# Samples that cannot be read


class Corrupt(Dataset):
    """A data set of which some samples cannot be read."""

    def __init__(self, x: Tensor, y: Tensor, as_dict: bool = False) -> None:
        self.x, self.y, self.as_dict = x, y, as_dict
        self.reads = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, n: int) -> Any:
        self.reads += 1
        if self.x[n, 0, 0, 0] == MARK:
            raise OSError(f"truncated file {n}")
        return {"inputs": self.x[n], "labels": self.y[n]} if self.as_dict else (self.x[n], self.y[n])


def collated(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([one for one, _ in samples]), torch.stack([label for _, label in samples])


def loader_kinds() -> dict[str, Callable[[Dataset], DataLoader]]:
    part = functools.partial
    return {
        "one process": part(DataLoader, batch_size=5),
        "two workers": part(DataLoader, batch_size=5, num_workers=2),
        "single samples": part(DataLoader, batch_size=1),
        "all at once": part(DataLoader, batch_size=24),
        "custom collate": part(DataLoader, batch_size=5, collate_fn=collated),
        "a batch of bad ones": part(
            DataLoader, batch_sampler=[[0, 1, 2], [3], [4, 5, 6, 7, 8, 9], [10, 11], [*range(12, 24)]]
        ),
    }


@pytest.mark.parametrize("kind", loader_kinds())
@pytest.mark.parametrize("as_dict", [False, True], ids=["tuples", "dicts"])
@pytest.mark.parametrize("samples", [None, 2], ids=["all elements", "drawn"])
def test_samples_that_cannot_be_read_are_left_out(kind, as_dict, samples):
    if as_dict and kind == "custom collate":
        as_dict = False
    model, (x, y) = mlp(), data()
    loader = loader_kinds()[kind](Corrupt(x, y, as_dict))
    settings = {"saliency": None, "worst_samples": 30, "samples": samples}
    report = measure_invariance(model, loader, CyclicRotation(4), on_error="skip", **settings)
    whole = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    good = list(GOOD)
    assert (report.seen, report.samples, report.skipped) == (24, 21, 3)
    assert [(one.index, one.count) for one in report.skipped_samples] == [(n, 1) for n in BAD]
    assert [one.reason for one in report.skipped_samples] == [f"OSError: truncated file {n}" for n in BAD]
    for name in report.per_sample.columns:
        assert report.per_sample[name] == pytest.approx(whole.per_sample[name][good], rel=1e-12, abs=1e-12), name
    if samples is None:
        expected = measure_invariance(model, in_batches(x[good], y[good]), CyclicRotation(4), **settings)
        assert_as_of_the_good_ones(report, expected)
    if loader.num_workers == 0:  # torch takes seconds to stop workers after an error
        with pytest.raises(OSError, match="truncated file 3"):
            measure_invariance(model, loader, CyclicRotation(4), **settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_loader_keeps_its_order(workers):
    """The samples come as they would have come, so that those lost are at the same places of the same order."""
    (x, y), model = data(), mlp()

    def loader(dataset: Dataset) -> DataLoader:
        rng = torch.Generator().manual_seed(8)
        return DataLoader(dataset, batch_size=5, shuffle=True, generator=rng, num_workers=workers, drop_last=True)

    order = torch.cat([batch for (batch,) in loader(TensorDataset(torch.arange(24)))]).tolist()
    assert order != sorted(order)
    assert len(order) == 20
    report = measure_invariance(model, loader(Corrupt(x, y)), CyclicRotation(4), on_error="skip", saliency=None)
    places = [place for place, n in enumerate(order) if n not in BAD]
    assert report.per_sample["index"].tolist() == places
    assert report.per_sample["label"].tolist() == [int(y[order[place]]) for place in places]
    assert [one.index for one in report.skipped_samples] == [place for place, n in enumerate(order) if n in BAD]


def test_a_shuffled_loader_without_a_generator_draws_what_it_would_have_drawn():
    (x, y), model = data(), mlp()

    def labels(on_error: str) -> list[int]:
        torch.manual_seed(4)
        loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
        report = measure_invariance(model, loader, CyclicRotation(4), on_error=on_error, saliency=None)
        return report.per_sample["label"].tolist()

    assert labels("skip") == labels("raise")


def test_both_ways_of_failing_in_one_batch_are_listed_in_order():
    (x, y) = data()
    x[3, 0, 0, 0] = 0.0
    x[2, 0, 3, 3] = x[12, 0, 3, 3] = MARK  # at these the model fails, 10 and 11 cannot be read
    loader = DataLoader(Corrupt(x, y), batch_size=24)
    model = Failing(mlp(), "nan", corner=3)
    report = measure_invariance(model, loader, SignFlip(), on_error="skip", saliency=None)
    assert [one.index for one in report.skipped_samples] == [2, 10, 11, 12]
    assert report.samples == 20
    assert report.per_sample["index"].tolist() == [n for n in range(24) if n not in (2, 10, 11, 12)]


def test_a_loader_with_a_way_of_its_own_to_iterate_is_asked_itself():
    """Such as those that move batches to a device or make them of another form."""

    class Doubling(DataLoader):
        def __iter__(self) -> Iterator[Any]:
            for x, y in super().__iter__():
                yield x.double(), y

    (x, y), model = data(), mlp()
    loader = Doubling(TensorDataset(x.float(), y), batch_size=5)
    strict = measure_invariance(model, loader, CyclicRotation(4), saliency=None)
    assert measure_invariance(model, loader, CyclicRotation(4), saliency=None, on_error="skip") == strict


# Other loaders


class Streamed(IterableDataset):
    """Raises at some batches' turn, and goes on after that."""

    def __init__(self, batches: list[Any], bad: tuple[int, ...]) -> None:
        self.batches, self.bad = batches, bad

    def __iter__(self) -> Iterator[Any]:
        self.place = -1
        return self

    def __next__(self) -> Any:
        self.place += 1
        if self.place == len(self.batches):
            raise StopIteration
        if self.place in self.bad:
            raise OSError(f"shard {self.place} is broken")
        return self.batches[self.place]


@pytest.mark.parametrize("in_loader", [False, True], ids=["by hand", "in a DataLoader"])
def test_a_loader_that_goes_on_loses_the_batch_whose_turn_it_was(in_loader):
    model, (x, y) = mlp(), data()
    stream = Streamed(in_batches(x, y), (0, 2))
    loader = DataLoader(stream, batch_size=None) if in_loader else stream
    report = measure_invariance(model, loader, CyclicRotation(4), on_error="skip", saliency=None)
    rows = [*range(5, 10), *range(15, 24)]
    expected = measure_invariance(model, in_batches(x[rows], y[rows]), CyclicRotation(4), saliency=None)
    assert_same({n: vars(e) for n, e in report.estimates.items()}, {n: vars(e) for n, e in expected.estimates.items()})
    assert [(one.count, one.reason) for one in report.skipped_samples] == [
        (None, "OSError: shard 0 is broken"),
        (None, "OSError: shard 2 is broken"),
    ]
    assert (report.samples, report.skipped) == (14, 0)
    with pytest.raises(OSError, match="shard 0 is broken"):
        measure_invariance(model, loader, CyclicRotation(4), saliency=None)


def test_a_generator_that_raises_is_over_and_says_so():
    model, (x, y) = mlp(), data()

    def batches() -> Iterator[Any]:
        yield x[:5], y[:5]
        raise OSError("the line went dead")

    report = measure_invariance(model, batches(), CyclicRotation(4), on_error="skip", saliency=None)
    assert (report.samples, report.seen) == (5, 5)
    (lost,) = report.skipped_samples
    assert (lost.index, lost.count, lost.reason) == (5, None, "OSError: the line went dead")
    assert "the line went dead" in str(report)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_data_set_that_raises_loses_no_samples_before(workers):
    model, (x, y) = mlp(), data()

    class Samples(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            for n in range(24):
                if n == 13:
                    raise OSError("the line went dead")
                yield x[n], y[n]

    report = measure_invariance(
        model, DataLoader(Samples(), batch_size=4, num_workers=workers), SignFlip(), on_error="skip", saliency=None
    )
    # Two workers read the same samples each.
    assert report.samples == 12 * max(workers, 1)
    assert [one.count for one in report.skipped_samples] == [None] * max(workers, 1)
    assert "the line went dead" in report.skipped_samples[0].reason


def test_samples_that_cannot_be_collated_keep_the_places_of_the_others():
    """The loader knows how many samples the batch had, and drawn elements belong to places."""
    (x, y), model = data(), mlp()

    class Uneven(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, n: int) -> Any:
            return (x[n, :, :3] if n == 7 else x[n]), y[n]

    settings = {"saliency": None, "samples": 1}
    report = measure_invariance(
        model, DataLoader(Uneven(), batch_size=4), CyclicRotation(4), on_error="skip", **settings
    )
    whole = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    kept = [n for n in range(24) if not 4 <= n < 8]
    assert report.per_sample["index"].tolist() == kept
    assert report.per_sample["logit_error"] == pytest.approx(whole.per_sample["logit_error"][kept], rel=1e-12)
    assert (report.seen, report.skipped) == (24, 4)


# What is not a matter of single samples


class Hopeless:
    """Never gives anything."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.asked += 1
        raise OSError("no connection")


def test_a_loader_that_always_raises_is_given_up():
    loader = Hopeless()
    with pytest.raises(OSError, match="no connection"):
        measure_invariance(mlp(), loader, SignFlip(), on_error="skip", saliency=None)
    assert loader.asked <= 200


def test_a_data_set_that_always_raises_is_given_up():
    x = torch.full((5000, 1, 4, 4), MARK)
    dataset = Corrupt(x, torch.zeros(5000))
    with pytest.raises((ValueError, RuntimeError, OSError), match="truncated file"):
        measure_invariance(mlp(), DataLoader(dataset, batch_size=50), SignFlip(), on_error="skip", saliency=None)
    assert dataset.reads <= 1000


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_model_that_fails_everywhere_is_given_up(size):
    model = Failing(mlp(), "raises")
    x = torch.full((2000, 1, 4, 4), MARK, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"None of the first \d+ samples could be measured.*no such place"):
        measure_invariance(model, in_batches(x, size=size), CyclicRotation(4), on_error="skip", saliency=None)
    assert model.calls <= 400


def test_few_samples_that_all_fail_are_an_error():
    x = torch.full((7, 1, 4, 4), MARK, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"At least one sample must be measured.*the first for.*no such place"):
        measure_invariance(Failing(mlp(), "raises"), [x], SignFlip(), on_error="skip", saliency=None)


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (lambda v: v.flatten(1)[:, :3], torch.full((24,), 7), "Labels must be between 0 and 2"),
        (lambda v: v.flatten(1)[:, :3], torch.randn(24), "class indices"),
        (lambda v: v.flatten(1)[:, :3], torch.zeros(24, 2, dtype=torch.long), "shape of the predictions"),
        (lambda v: v.flatten(1)[:5, :3], None, "24"),
        (lambda v: "logits", None, "str"),
        (lambda v: v.flatten(1)[:, :3].long(), None, "floating"),
    ],
    ids=["labels", "labels' dtype", "labels' shape", "rows", "no tensor", "dtype"],
)
def test_what_is_wrong_with_all_samples_is_raised(model, labels, message):
    calls = []

    def counted(v: Tensor) -> Any:
        calls.append(v)
        return model(v)

    x, _ = data()
    with pytest.raises((TypeError, ValueError), match=message):
        measure_invariance(counted, in_batches(x, labels, 24), SignFlip(), on_error="skip", saliency=None)
    assert len(calls) <= 3


@pytest.mark.parametrize("where", ["model", "action", "output action", "maps"])
def test_memory_that_is_full_is_raised(where):
    """Halving batches would hide it, and leave good samples out."""

    def full(*operands: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 7 GiB")

    class Large(CyclicRotation):
        def act(self, g: Tensor, x: Tensor) -> Tensor:
            return full()

    with pytest.raises(torch.OutOfMemoryError, match="7 GiB"):
        measure_invariance(
            full if where == "model" else mlp(),
            [data()[0]],
            Large(4) if where == "action" else CyclicRotation(4),
            output_action=full if where == "output action" else None,
            saliency=full if where == "maps" else None,
            on_error="skip",
        )


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_failure_of_a_sample(interruption):
    def model(v: Tensor) -> Tensor:
        raise interruption

    with pytest.raises(interruption):
        measure_invariance(model, [data()[0]], SignFlip(), on_error="skip", saliency=None)


@pytest.mark.parametrize("on_error", ["ignore", None, True])
def test_other_words_are_refused(on_error):
    with pytest.raises(ValueError, match='on_error must be "raise" or "skip"'):
        measure_invariance(mlp(), [data()[0]], SignFlip(), on_error=on_error)


# What is told


def test_the_list_is_bounded_and_the_count_is_not():
    x = torch.randn(1500, 1, 4, 4, dtype=torch.float64)
    x[:, 0, 0, 0] = torch.where(torch.arange(1500) % 20 > 0, MARK, 0.0)

    dataset = Corrupt(x, torch.zeros(1500, dtype=torch.long))
    report = measure_invariance(mlp(), DataLoader(dataset, batch_size=50), SignFlip(), on_error="skip", saliency=None)
    assert (report.samples, report.skipped, report.seen) == (75, 1425, 1500)
    assert len(report.skipped_samples) == 1000
    assert report.skipped_samples[0].index == 1
    text = str(report)
    assert "1425" in text or "1,425" in text
    assert len(text.splitlines()) < 100


def test_what_was_skipped_is_told_and_saved():
    (x, y) = data()
    report = measure_invariance(
        Failing(mlp(), "raises"), in_batches(x, y), CyclicRotation(4), on_error="skip", saliency=None
    )
    assert "3" in str(report)
    assert "no such place" in str(report)
    assert InvarianceReport.from_dict(report.to_dict()) == report


def test_batches_given_by_hand_lose_the_same_samples():
    (x, y), model = data(), Failing(mlp(), "nan")
    audit = InvarianceAudit(model, CyclicRotation(4), saliency=None, on_error="skip")
    for inputs, labels in in_batches(x, y):
        audit.update(inputs, labels)
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), on_error="skip", saliency=None)
    assert_same_report(audit.report(), expected)


def test_nothing_is_skipped_where_nothing_fails():
    (x, y), model = data(), mlp()
    settings = {"saliency": SaliencyMap(steps=2)}
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    actual = measure_invariance(model, in_batches(x, y), CyclicRotation(4), on_error="skip", **settings)
    assert actual == expected
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    actual = measure_invariance(model, loader, CyclicRotation(4), on_error="skip", **settings)
    assert_same_report(actual, expected)
    assert np.array_equal(actual.per_sample["index"], np.arange(24))
