"""Does a table hold what the runs came to, over the seeds that it says?"""

import json
from pathlib import Path

import pytest

from examples.paper.runs import Workplace
from examples.paper.table1 import PAPER, Row, summary, table
from examples.paper.training import FIRST_WEIGHTS, GROUPS, LOSSES, Run, untuned


def record(accuracy: float) -> dict:
    test = {"accuracy": accuracy, "LI": 1.0, "DI": 2.0, "SI": 0.5}
    return {"test": test, "Jacobian spectral norm": 10 * accuracy}


class Pretended(Workplace):
    """A workplace in which a run's accuracy is a hundredth of its seed."""

    def records(self, runs):
        return {run: record(run.seed / 100) for run in runs}


@pytest.fixture
def place(tmp_path):
    return Pretended(None, tmp_path, tmp_path)


def test_summary_is_mean_and_sample_deviation():
    found = summary([record(0.90), record(0.94)])
    assert found["accuracy"]["mean"] == pytest.approx(92)
    assert found["accuracy"]["deviation"] == pytest.approx(8**0.5)
    assert found["accuracy"]["by seed"] == pytest.approx([90, 94])
    assert found["Jacobian spectral norm"]["mean"] == pytest.approx(9.2)
    assert found["LI"] == {"mean": 1.0, "deviation": 0.0, "by seed": [1.0, 1.0]}


def test_one_seed_has_no_deviation():
    assert summary([record(0.9)])["accuracy"]["deviation"] is None


def test_each_row_has_its_runs_and_its_seeds(place):
    rows = {"DA": Row(lambda group: Run(group, "DA"), (1, 3)), "IR": Row(untuned, (2,))}
    found = table(place, rows)
    assert found.keys() == GROUPS.keys()
    for group, rows in found.items():
        assert rows["DA"]["accuracy"]["by seed"] == pytest.approx([1, 3])
        assert rows["DA"]["seeds"] == [1, 3]
        assert rows["DA"]["run"]["group"] == group
        assert rows["IR"]["accuracy"]["by seed"] == pytest.approx([2])
        assert rows["IR"]["run"]["weight"] == FIRST_WEIGHTS[group, "L2"]


def test_the_papers_table_has_what_ours_has():
    assert PAPER.keys() == GROUPS.keys()
    for rows in PAPER.values():
        assert rows.keys() == {"WT", "DA", "IR"}
        assert all(numbers.keys() == {"accuracy", "LI", "DI", "SI"} for numbers in rows.values())


def test_each_regulariser_has_a_first_weight():
    assert FIRST_WEIGHTS.keys() == {(group, loss) for group in GROUPS for loss in LOSSES}


def test_a_workplace_saves_whole_files(tmp_path):
    place = Workplace(None, tmp_path / "work", tmp_path / "results")
    path = place.save("exhibit", {"a": [1.5]})
    assert json.loads(path.read_text()) == {"a": [1.5]}
    assert [file.name for file in Path(tmp_path / "results").iterdir()] == ["exhibit.json"]
