"""Beyond the paper: the same on Transforming-FMNIST, and for a small convolutional network and a small transformer.

    python -m examples.paper.beyond [--quick]

One seed, and the regulariser's weight as it was tuned on MNIST. To save time, the training images are gone through less
often than in the paper: see ``SETTINGS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from examples.paper.gap import start
from examples.paper.runs import Record, Workplace, workplace
from examples.paper.table1 import Row, table
from examples.paper.training import Run

SETTINGS: dict[str, dict[str, Any]] = {
    "Transforming-FMNIST, MLP": {"data": "fashion-mnist", "epochs": 50},
    "Transforming-MNIST, CNN": {"network": "CNN", "epochs": 10},
    "Transforming-MNIST, ViT": {"network": "ViT", "epochs": 10},
}


def rows(place: Workplace, settings: dict[str, Any]) -> dict[str, Row]:
    """The rows of the table for one setting; a stack of linear layers can be symmetrised, others cannot."""

    def plain(method: str) -> Callable[[str], Run]:
        return lambda group: Run(group, method, **settings)

    tuned = place.regularised()
    seeds = place.seeds[:1]
    found = {
        "WT": Row(plain("WT"), seeds),
        "DA": Row(plain("DA"), seeds),
        "IR": Row(lambda group: replace(tuned[group], **settings), seeds),
    }
    if "network" not in settings:
        found["SYM"] = Row(lambda group: Run(group, "SYM", **start(group, "paper"), **settings), seeds)
    return found


def main(place: Workplace) -> None:
    """Writes the tables."""
    found: Record = {}
    for name, settings in SETTINGS.items():
        found[name] = table(place, rows(place, settings))
        place.save("beyond", found)  # as far as it has come
    if not place.quick:
        check(found)


def check(found: Record) -> None:
    """Raises unless augmentation is the least invariant everywhere."""
    for name, groups in found.items():
        for group, by_row in groups.items():
            li = {row: numbers["LI"]["mean"] for row, numbers in by_row.items()}
            assert li["DA"] > max(li["IR"], li["WT"]), f"{name}, {group}: augmentation must be the least invariant"


if __name__ == "__main__":
    main(workplace(description=__doc__))
