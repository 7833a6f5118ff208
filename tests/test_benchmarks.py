"""The benchmarks work; how fast is for `make bench` to say."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.__main__ import PARTS, main
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.models import CLASSES, SIDE, TRAINED


@pytest.mark.parametrize("part", PARTS)
def test_every_benchmark_prints_positive_ratios(part, capsys):
    results = main(["--quick", part])
    printed = capsys.readouterr().out.splitlines()[1:]
    assert len(printed) == len(results) > 3
    assert all(ratio > 0 for label, ratio in results.items() if "of which" not in label)


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])
    assert f"there are {', '.join(PARTS)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_model_classifies_images(name):
    """Does each model whose steps are timed take the images that the others do?"""
    assert TRAINED[name]()(torch.ones(2, 1, SIDE, SIDE)).shape == (2, CLASSES)


def test_peak_memory_counts_what_is_held_at_one_time():
    """Are tensors that live together summed up, and those that were freed before left out?"""

    def two_at_a_time():
        first = torch.zeros(1000)
        second = first + 1
        del first
        return (second + 1).sum().item()

    assert 8_000 <= peak_memory(two_at_a_time, "cpu") < 9_000
