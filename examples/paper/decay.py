"""Spectral decay: in a deep network that learns a task, the regulariser lets the weights grow all the same.

    python -m examples.paper.decay [--quick]

The product of the largest singular values of all weight matrices, which no singular value of the input Jacobian can
exceed, over the epochs of training; seed 0, the paper's recipe. ReLU and the flatten before the first layer do not
stretch their input.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from examples.paper.gap import rows
from examples.paper.runs import Record, Workplace, workplace
from examples.paper.training import GROUPS, SAVE_EVERY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = {"DA": "-", "IR": "--", "SYM": "-.", "FREE": ":"}
"""Lines, which can be told apart in grey."""


def bounds(record: Record) -> list[float]:
    """The product of the spectral norms, at the start and after every ``SAVE_EVERY`` epochs."""
    norms = [values for name, values in record["history"].items() if name.startswith("spectral norm of ")]
    return [prod(at_one_time) for at_one_time in zip(*norms, strict=True)]


def draw(found: dict[str, Any]) -> Figure:
    """A panel for each group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    for axes, (group, curves) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for method, values in curves.items():
            epochs = [SAVE_EVERY * number for number in range(len(values))]
            axes.plot(epochs, values, FORMS[method], label=method)
        axes.set(yscale="log", title=group, xlabel="epoch")
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("product of the weights' spectral norms")
    return figure


def main(place: Workplace) -> None:
    """Trains what is missing, writes numbers and picture."""
    by_method = {method: row for method, row in rows(place, "paper").items() if method in FORMS}
    runs = {(group, method): row.run_of(group) for group in GROUPS for method, row in by_method.items()}
    records = place.records(list(runs.values()))
    found = {group: {method: bounds(records[runs[group, method]]) for method in FORMS} for group in GROUPS}
    place.save("decay", found)
    draw(found).savefig(place.results / "decay.png", dpi=120)
    if not place.quick:
        check(found)


def check(found: dict[str, Any]) -> None:
    """Raises unless all weights have grown."""
    for group, curves in found.items():
        for method, values in curves.items():
            assert values[-1] > values[0], f"{group}, {method}: the weights must have grown"


if __name__ == "__main__":
    main(workplace(description=__doc__))
