"""Is every usual loader understood, and every other one refused with a word on what to do?"""

from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from invreg.audit.batches import loaded
from tests.tolerances import assert_exact

X = torch.arange(12.0).view(6, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])

Pair = namedtuple("Pair", ["image", "label"])


def read(loader, **settings):
    defaults = {"input_key": "inputs", "label_key": "labels", "device": None, "progress": False}
    return [(batch.inputs, batch.labels) for batch in loaded(loader, **(defaults | settings))]


HALVES = [(X[:4], Y[:4]), (X[4:], Y[4:])]

WITHOUT_LABELS = {
    "tensors": [x for x, _ in HALVES],
    "1-tuples": [(x,) for x, _ in HALVES],
    "1-lists": [[x] for x, _ in HALVES],
    "pairs with None": [(x, None) for x, _ in HALVES],
    "mappings": [{"inputs": x} for x, _ in HALVES],
    "mappings with other things": [{"inputs": x, "names": ["a"]} for x, _ in HALVES],
    "tuple of tensors": tuple(x for x, _ in HALVES),
    "data loader": DataLoader(TensorDataset(X), batch_size=4),
}

WITH_LABELS = {
    "tuples": HALVES,
    "lists": [list(pair) for pair in HALVES],
    "named tuples": [Pair(*pair) for pair in HALVES],
    "mappings": [{"inputs": x, "labels": y} for x, y in HALVES],
    "ordered mappings": [OrderedDict(labels=y, inputs=x) for x, y in HALVES],
    "own mappings": [UserDict(inputs=x, labels=y) for x, y in HALVES],
    "data loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "data loader of mappings": DataLoader(
        [{"inputs": x, "labels": y} for x, y in zip(X, Y, strict=True)], batch_size=4
    ),
}


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_reads_inputs(name):
    found = read(WITHOUT_LABELS[name])
    assert [len(x) for x, _ in found] == [4, 2]
    assert_exact(torch.cat([x for x, _ in found]), X)
    assert [y for _, y in found] == [None, None]


@pytest.mark.parametrize("name", WITH_LABELS)
def test_reads_inputs_and_labels(name):
    found = read(WITH_LABELS[name])
    assert [len(x) for x, _ in found] == [4, 2]
    assert_exact(torch.cat([x for x, _ in found]), X)
    assert_exact(torch.cat([y for _, y in found]), Y)


def test_reads_generators_one_batch_at_a_time():
    asked = []

    def generate():
        for index, batch in enumerate(HALVES):
            asked.append(index)
            yield batch

    stream = loaded(generate(), input_key="inputs", label_key="labels", device=None, progress=False)
    assert asked == []
    next(stream)
    assert asked == [0]
    next(stream)
    assert asked == [0, 1]


def test_reads_mappings_with_keys_of_their_own():
    found = read([{"pixels": x, "digit": y, "inputs": 0} for x, y in HALVES], input_key="pixels", label_key="digit")
    assert_exact(torch.cat([x for x, _ in found]), X)
    assert_exact(torch.cat([y for _, y in found]), Y)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "meta"], ids=str)
def test_moves_to_the_device(device):
    ((x, y),) = read([(X, Y)], device=device)
    expected = torch.device("cpu" if device is None else device)
    assert x.device == y.device == expected
    assert x.shape == X.shape


BAD = {
    "tensor": (X, TypeError, r"must yield batches: got a tensor\. Write \[x\] or \[\(x, y\)\]"),
    "triples": ([(X, Y, Y)], TypeError, r"inputs, \(inputs, labels\) or a mapping: got a tuple of 3"),
    "empty tuples": ([()], TypeError, r"got a tuple of 0"),
    "long lists": ([[X, Y, Y, Y]], TypeError, r"got a list of 4"),
    "arrays": ([X.numpy()], TypeError, r"inputs, \(inputs, labels\) or a mapping: got ndarray"),
    "strings": (["ab"], TypeError, r"got str"),
    "numbers": ([3], TypeError, r"got int"),
    "None": ([None], TypeError, r"got NoneType"),
    "tuple of arrays": ([(X.numpy(), Y)], TypeError, r"one tensor of shape \(N, \.\.\.\): got ndarray"),
    "several inputs, one no tensor": ([((X, "a"), Y)], TypeError, r"must hold nothing else: got str at 1\."),
    "several inputs, none": ([((), Y)], TypeError, r"one tensor of shape \(N, \.\.\.\): got an empty tuple"),
    "several inputs, one empty": ([((X, X[:0]), Y)], ValueError, r"at least one sample: got shape \(0, 2\)"),
    "mapping without inputs": (
        [{"image": X, "labels": Y}],
        ValueError,
        r"No inputs under 'inputs' in a batch with the keys \['image', 'labels'\]: set input_key=",
    ),
    "mapping of None": ([{"inputs": None}], TypeError, r"one tensor.*got NoneType"),
    "integer inputs": ([(X.long(), Y)], TypeError, r"floating point: got torch.int64"),
    "byte inputs": ([X.byte()], TypeError, r"floating point: got torch.uint8.*255"),
    "no samples": ([X[:0]], ValueError, r"at least one sample: got shape \(0, 2\)"),
    "no samples later": ([X, X[:0]], ValueError, r"at least one sample: got shape \(0, 2\)"),
    "scalar inputs": ([torch.tensor(1.0)], ValueError, r"at least one sample: got shape \(\)"),
    "label numbers": ([(X[0], 1)], TypeError, r"Labels must be a tensor.*got int.*DataLoader"),
    "label lists": ([(X, Y.tolist())], TypeError, r"Labels must be a tensor.*got list"),
    "label arrays": ([(X, np.zeros(6))], TypeError, r"Labels must be a tensor.*got ndarray"),
    "label strings in a mapping": ([{"inputs": X, "labels": ["a"]}], TypeError, r"Labels must be a tensor.*got list"),
    "nothing": ([], ValueError, r"at least one batch: it yielded none.*used up"),
    "empty data loader": (DataLoader([], batch_size=2), ValueError, r"at least one batch: it yielded none"),
    "number": (5, TypeError, r"int"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_other_forms(name):
    loader, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        read(loader)


def test_refuses_a_generator_that_is_used_up():
    generator = (batch for batch in HALVES)
    assert len(read(generator)) == 2
    with pytest.raises(ValueError, match=r"at least one batch: it yielded none\. Is it a generator already used up\?"):
        read(generator)


def test_passes_on_what_the_loader_raises():
    def generate():
        yield X
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        read(generate())


@pytest.mark.parametrize("progress", [False, True])
def test_shows_nothing_where_there_is_no_terminal(progress, capfd):
    assert len(read(HALVES, progress=progress)) == 2
    assert capfd.readouterr() == ("", "")


class Terminal:
    """Standard error as a terminal would be."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [False, True])
def test_shows_a_bar_on_a_terminal_only_if_asked_for(progress, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    read(HALVES, progress=progress)
    assert ("audit" in terminal.text) == progress
