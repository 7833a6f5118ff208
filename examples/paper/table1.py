"""Table 1: regularisation makes a classifier genuinely invariant, weight-tying exactly, augmentation does not.

python -m examples.paper.table1 [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from examples.paper.runs import Record, Workplace, workplace
from examples.paper.training import GROUPS, Run

NUMBERS = ("accuracy", "LI", "DI", "SI")

PAPER = {
    "R4": {
        "WT": {"accuracy": (94.6, 0.1), "LI": (0.0, None), "DI": (0.0, None), "SI": (1.0, None)},
        "DA": {"accuracy": (94.0, 0.5), "LI": (98.6, 5.4), "DI": (0.3, 0.1), "SI": (0.17, 0.04)},
        "IR": {"accuracy": (87.9, 0.8), "LI": (0.02, None), "DI": (0.0, None), "SI": (0.95, 0.03)},
    },
    "T3": {
        "WT": {"accuracy": (96.6, 0.1), "LI": (0.0, None), "DI": (0.0, None), "SI": (1.0, None)},
        "DA": {"accuracy": (96.2, 0.2), "LI": (50.8, 6.8), "DI": (0.1, None), "SI": (0.57, 0.08)},
        "IR": {"accuracy": (93.1, 0.1), "LI": (0.01, None), "DI": (0.0, None), "SI": (0.95, 0.07)},
    },
}
"""Moskalev et al. (2023), table 1: mean and deviation over four seeds, accuracy in percent."""


def summary(records: Sequence[Record]) -> Record:
    """Mean, deviation and the values by seed of the numbers of a table."""
    values = {
        name: [record["test"][name] * (100 if name == "accuracy" else 1) for record in records] for name in NUMBERS
    }
    values["Jacobian spectral norm"] = [record["Jacobian spectral norm"] for record in records]
    return {
        name: {
            "mean": float(np.mean(each)),
            "deviation": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "by seed": each,
        }
        for name, each in values.items()
    }


class Row(NamedTuple):
    """A row of a table: the run for a group, and which seeds it is repeated with."""

    run_of: Callable[[str], Run]
    seeds: Sequence[int]


def table(place: Workplace, rows: Mapping[str, Row], groups: Iterable[str] = GROUPS) -> Record:
    """Trains and audits.

    Args:
        place: Where.
        rows: By name.
        groups: Names in ``GROUPS``.

    Returns:
        By group and row: the numbers of ``summary``, and the settings of the run.
    """
    wanted = {(group, name): row.run_of(group) for group in groups for name, row in rows.items()}
    records = place.records([replace(run, seed=seed) for key, run in wanted.items() for seed in rows[key[1]].seeds])
    found: Record = {group: {} for group, _ in wanted}
    for (group, name), run in wanted.items():
        seeds = rows[name].seeds
        found[group][name] = {"run": asdict(run), "seeds": list(seeds)}
        found[group][name] |= summary([records[replace(run, seed=seed)] for seed in seeds])
    return found


def main(place: Workplace) -> None:
    """Writes the table."""
    tuned = place.regularised()
    rows = {
        "WT": Row(lambda group: Run(group, "WT"), place.seeds),
        "DA": Row(lambda group: Run(group, "DA"), place.seeds),
        "IR": Row(tuned.__getitem__, place.seeds),
    }
    ours = table(place, rows)
    tunings = {group: place.tuning(run) for group, run in tuned.items()}
    place.save("table1", {"ours": ours, "tunings": tunings, "paper": PAPER})
    if not place.quick:
        check(ours)


def check(ours: Record) -> None:
    """Raises unless the table shows what the first line claims."""
    for group, found in ours.items():
        si = {row: numbers["SI"]["mean"] for row, numbers in found.items()}
        assert found["WT"]["LI"]["mean"] < 1e-6, f"{group}: weight-tying must make the logits invariant"
        assert si["WT"] > 0.999, f"{group}: weight-tying must make the saliency maps agree"
        assert si["DA"] + 0.1 < si["IR"], f"{group}: the regulariser must make the saliency maps agree better"


if __name__ == "__main__":
    main(workplace(description=__doc__))
