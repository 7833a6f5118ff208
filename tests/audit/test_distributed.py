"""Do several processes find together what one finds alone?"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from invreg import InvarianceReport
from tests.audit import processes
from tests.audit.sameness import assert_same, assert_same_report

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch cannot distribute work")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two processes wrote what they found."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.audit.processes", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def numbers(folder) -> list[dict[str, Any]]:
    return written(folder, "numbers")


@pytest.fixture(scope="module")
def failures(folder) -> list[dict[str, Any]]:
    return written(folder, "failures")


def report(numbers: list[dict[str, Any]], name: str) -> InvarianceReport:
    """The report of the first process; the second's is the same."""
    first, second = ({key: value for key, value in one[name].items() if key != "provenance"} for one in numbers)
    assert_same(second, first, 0, name)
    return InvarianceReport.from_dict(numbers[0][name])


def alone(first: int = processes.SAMPLES, **settings: Any) -> InvarianceReport:
    """What one process finds on all samples, the first so many."""
    return processes.measured(processes.batches(first), saliency=None, **settings)


@pytest.mark.parametrize("name", processes.AUDITS)
def test_data_dealt_by_a_sampler(numbers, name):
    """Of 23 samples the sampler deals one twice, which does not count."""
    settings = processes.AUDITS[name]
    dataset = processes.Corrupt() if name == "skipping" else TensorDataset(*processes.data())
    expected = processes.measured(DataLoader(dataset, batch_size=5), **settings)
    actual = report(numbers, name)
    assert_same_report(actual, expected, pictures=False)
    assert (actual.seen, actual.samples) == (23, 21 if name == "skipping" else 23)
    assert [one.index for one in actual.skipped_samples] == ([4, 9] if name == "skipping" else [])


def test_maps_that_are_shown_are_those_of_one_process(numbers, folder):
    settings = processes.AUDITS["maps"]
    expected = processes.measured(processes.batches(processes.SAMPLES), **settings).saliency_examples
    for rank in (0, 1):
        found = torch.load(folder / f"examples{rank}.pt", weights_only=True)["maps"]
        assert [(index, tuple(names)) for index, names, _ in found] == [(one.index, one.names) for one in expected]
        for (_, _, maps), one in zip(found, expected, strict=True):
            torch.testing.assert_close(maps, one.maps, rtol=1e-12, atol=1e-12)
    assert report(numbers, "maps").saliency_similarity.count == 9


def test_shuffled_data_are_the_same_data(numbers):
    """Positions are those of the sampler's order; no sample is missing, and one that was dealt twice counts once."""
    actual, expected = report(numbers, "shuffled"), alone()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(8)).tolist()
    assert actual.per_sample["index"].tolist() == list(range(23))
    for name in actual.per_sample.columns:
        if name != "index":
            assert actual.per_sample[name].tolist() == pytest.approx(
                expected.per_sample[name][order].tolist(), rel=1e-12
            )
    for name, one in expected.estimates.items():
        assert (actual.estimates[name].mean, actual.estimates[name].standard_error) == pytest.approx(
            (one.mean, one.standard_error), rel=1e-12
        )


def test_a_sampler_that_drops_the_last_samples(numbers):
    actual = report(numbers, "dropping")
    assert_same_report(actual, alone(22), pictures=False)


def test_uneven_parts_by_hand(numbers):
    """Positions are those of samples dealt in turn, though these are not; the numbers are those of all."""
    actual, expected = report(numbers, "uneven"), alone(20)
    assert (actual.seen, actual.samples) == (20, 20)
    assert len(set(actual.per_sample["index"].tolist())) == 20
    for name, one in expected.estimates.items():
        assert (actual.estimates[name].mean, actual.estimates[name].standard_error) == pytest.approx(
            (one.mean, one.standard_error), rel=1e-12
        )
        assert sorted(actual.per_sample[name]) == pytest.approx(sorted(expected.per_sample[name]), rel=1e-12)


def test_one_process_may_audit_alone(numbers):
    assert "alone" not in numbers[1]
    assert_same_report(InvarianceReport.from_dict(numbers[0]["alone"]), alone(11), pictures=False)


def test_precision_is_that_of_all(numbers):
    """Each process stops after a hundred samples of its own."""
    actual = report(numbers, "precise")
    assert (actual.ended, actual.samples) == ("precise", 200)
    assert_same_report(actual, alone(200), but=["ended"], pictures=False)


def test_all_processes_say_the_same_where_one_was_precise_and_one_was_at_its_end(numbers):
    actual = report(numbers, "one is precise")
    assert (actual.samples, actual.seen) == (150, 150)


def test_each_process_saves_its_own_part(numbers, folder):
    saved, again = report(numbers, "saved"), report(numbers, "gone on with")
    assert_same_report(again, saved, 0, pictures=False)
    assert_same_report(saved, alone(samples=2), pictures=False)
    assert sorted(one.name for one in folder.glob("audit*")) == ["audit.pt.rank0", "audit.pt.rank1"]


def test_audits_of_each_process_are_merged_before_those_of_all(numbers):
    assert_same_report(report(numbers, "merged"), alone(20), pictures=False)


# Where one of them fails


def test_all_processes_hear_of_a_failure_in_one(failures):
    first, second = (one["model"] for one in failures)
    assert first["kind"] == "RuntimeError"
    assert "failed on rank 1 of 2" in first["message"]
    assert "no such layer" in first["message"]
    assert second["kind"] == "RuntimeError"
    assert "The model failed" in second["message"]
    assert max(first["seconds"], second["seconds"]) < 10


def test_they_may_go_on_after_that(failures):
    assert [one["afterwards"]["message"] for one in failures] == ["", ""]


def test_all_processes_hear_of_an_interruption_of_one(failures):
    first, second = (one["interrupted"] for one in failures)
    assert first["kind"] == "KeyboardInterrupt"
    assert second["kind"] == "RuntimeError"
    assert "failed on rank 0 of 2: KeyboardInterrupt" in second["message"]


def test_all_processes_hear_of_a_folder_that_one_does_not_have(failures):
    first, second = (one["checkpoint"] for one in failures)
    assert first["kind"] == "ValueError"
    assert "a folder that exists" in first["message"]
    assert "failed on rank 0 of 2" in second["message"]


def test_a_process_without_data_is_an_error_of_all(failures):
    first, second = (one["nothing"] for one in failures)
    assert "failed on rank 1 of 2" in first["message"]
    assert "yield at least one batch" in second["message"]


def test_a_process_without_data_by_hand_is_waited_for_by_none(failures):
    """Either all have the report of those that have data, or each is told; none waits for the others in vain."""
    first, second = (one["nothing by hand"] for one in failures)
    assert max(first["seconds"], second["seconds"]) < 10
    if first["kind"] or second["kind"]:
        assert "rank 1 of 2" in first["message"]
        assert "At least one sample must be measured" in second["message"]
