"""Does each exhibit's check raise where its claim does not hold?"""

import copy

import pytest

from examples.paper import beyond, constraint, decay, gap, table1


def numbers(accuracy=95.0, si=1.0, li=0.0):
    return {"accuracy": {"mean": accuracy}, "SI": {"mean": si}, "LI": {"mean": li}}


ROWS = {"DA": numbers(95.0, 0.3, 60.0), "WT": numbers(95.2), "IR": numbers(88.0, 0.95, 0.01)}
FREED = {"SYM": numbers(95.0), "FREE": numbers(95.0, 0.97, 0.001)}
GOOD = {
    table1: {"R4": ROWS},
    gap: {"paper": {"R4": ROWS | FREED}, "better": {"R4": ROWS | FREED}},
    beyond: {"a network": {"R4": ROWS}},
    decay: {"R4": {"DA": [1.0, 9.0], "IR": [1.0, 5.0]}},
    constraint: {"0.1": {"validation error": 0.102, "late mean": 0.098}},
}
BAD = {
    "a tied layer that moves": (table1, ["R4", "WT", "LI", "mean"], 0.1),
    "a tied layer that looks elsewhere": (table1, ["R4", "WT", "SI", "mean"], 0.9),
    "a regulariser that does nothing": (table1, ["R4", "IR", "SI", "mean"], 0.35),
    "symmetric weights that are not invariant": (gap, ["better", "R4", "SYM", "SI", "mean"], 0.9),
    "freed weights that are not invariant": (gap, ["paper", "R4", "FREE", "SI", "mean"], 0.9),
    "less accurate than the paper's augmentation": (gap, ["paper", "R4", "SYM", "accuracy", "mean"], 93.8),
    "less accurate than augmentation": (gap, ["better", "R4", "FREE", "accuracy", "mean"], 94.8),
    "far less accurate than weight-tying": (gap, ["better", "R4", "WT", "accuracy", "mean"], 95.8),
    "an invariant augmented network": (beyond, ["a network", "R4", "DA", "LI", "mean"], 0.001),
    "weights that decay": (decay, ["R4", "IR"], [5.0, 1.0]),
    "a model away from its target": (constraint, ["0.1", "validation error"], 0.106),
    "a training away from its target": (constraint, ["0.1", "late mean"], 0.08),
}


@pytest.mark.parametrize("exhibit", GOOD, ids=lambda exhibit: exhibit.__name__)
def test_what_holds_passes(exhibit):
    exhibit.check(GOOD[exhibit])


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_hold_is_told(case):
    exhibit, path, value = BAD[case]
    found = copy.deepcopy(GOOD[exhibit])
    part = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(AssertionError):
        exhibit.check(found)


def test_a_constraint_that_is_met_once_by_chance_is_told():
    errors = [0.2, 3.0] * 150
    errors[100] = 1.0
    record = {
        "history": {"validation error": errors},
        "validation": {"LI": 1.0},
        "test": {},
        "Jacobian spectral norm": 1.0,
    }
    found = constraint.compute({1.0: record})
    assert found["1"]["within"] == 0
    with pytest.raises(AssertionError, match="late mean"):
        constraint.check(found)


def test_the_bound_is_the_product_of_the_norms():
    history = {"validation accuracy": [0.5], "spectral norm of a": [2.0, 3.0], "spectral norm of b": [4.0, 5.0]}
    assert decay.bounds({"history": history}) == [8.0, 15.0]
