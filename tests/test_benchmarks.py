"""The benchmarks work; how fast is for `make bench` to say."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import PARTS, main


@pytest.mark.parametrize("part", PARTS)
def test_every_benchmark_prints_positive_ratios(part, capsys):
    results = main(["--quick", part])
    printed = capsys.readouterr().out.splitlines()[1:]
    assert len(printed) == len(results) > 3
    assert all(ratio > 0 for label, ratio in results.items() if "of which" not in label)


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])
    assert "there are actions, continuous, training, invariant, auditing, layers" in capsys.readouterr().err
