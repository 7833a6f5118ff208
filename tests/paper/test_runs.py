"""Are trainings looked up, tuned and repeated as they should be?"""

import json
from dataclasses import asdict, replace

import pytest

from examples.paper import runs
from examples.paper.runs import TARGET, Workplace
from examples.paper.training import Run

IR = Run("R4", "IR", weight=8.0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A workplace in which a training takes no time, and reaches more the larger the weight is."""

    def train(place, run):
        trained.append(run)
        reached = {"SI": run.weight / (run.weight + 0.3)}
        path = place.work / f"{run.name}.json"
        path.write_text(json.dumps({"run": asdict(run), "validation": reached, "test": reached}))

    trained = []
    monkeypatch.setattr(runs, "_train_and_audit", train)
    place = Workplace(None, tmp_path, tmp_path / "results")
    monkeypatch.setattr(Workplace, "_each", lambda place, work, todo, unit: [work(place, run) for run in todo])
    return place, trained


def test_the_weight_is_tuned_until_it_is_enough_and_no_larger(place):
    place, trained = place
    (tuned,) = place.tuned([replace(IR, seed=3)])
    trials = place.tuning(tuned)["trials"]
    enough = TARGET / (1 - TARGET) * 0.3
    assert enough <= tuned.weight <= 1.5 * enough
    assert tuned == replace(IR, seed=3, weight=tuned.weight)
    assert trials[0] == [0.0, 0.0]  # augmentation alone
    assert {run.seed for run in trained} == {0}
    assert place.tuned([IR]) == [replace(IR, weight=tuned.weight)]
    assert len(trained) == len(trials)


def test_what_has_no_regulariser_is_not_tuned(place):
    place, trained = place
    assert place.tuned([Run("R4", "WT"), Run("R4", "FREE", weight=3)]) == [
        Run("R4", "WT"),
        Run("R4", "FREE", weight=3),
    ]
    assert trained == []


def test_losses_are_tuned_by_themselves(place):
    place, _ = place
    runs_by_loss = [replace(IR, loss=loss, weight=weight) for loss, weight in (("L2", 8.0), ("KL", 3.0))]
    weights = [run.weight for run in place.tuned(runs_by_loss)]
    assert weights[0] != weights[1]


def test_a_run_is_made_once(place):
    place, trained = place
    assert place.records([IR])[IR]["run"] == asdict(IR)
    place.records([IR, replace(IR, seed=1)])
    assert trained == [IR, replace(IR, seed=1)]


def test_the_record_of_another_run_is_refused(place):
    place, _ = place
    place.records([IR])
    path = place.work / f"{IR.name}.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ValueError, match="must hold the record of"):
        place.records([IR])
