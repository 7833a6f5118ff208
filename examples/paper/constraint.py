"""The constraint: it brings the invariance error to a target, over three decades, where nobody knows the weight.

    python -m examples.paper.constraint [--quick]

The paper's recipe, R4, seed 0. The model that is picked classifies most validation images right among those epochs
whose validation error is within five percent of the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from examples.paper.runs import Record, Workplace, workplace
from examples.paper.training import NEAR, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (0.01, 0.1, 1.0, 10.0)
"""Logit errors, between what a regulariser of the paper's strength and augmentation alone come to."""


def compute(records: dict[float, Record]) -> dict[str, Any]:
    """What is shown, by target, from the records of the runs."""
    found = {}
    for target, record in records.items():
        errors = record["history"]["validation error"]
        late = errors[-len(errors) // 3 :]
        found[f"{target:g}"] = {
            "validation error": record["validation"]["LI"],
            "within": sum(abs(error / target - 1) <= NEAR for error in late) / len(late),
            "late mean": sum(late) / len(late),
            "errors": errors,
            "test": record["test"],
            "Jacobian spectral norm": record["Jacobian spectral norm"],
        }
    return found


def draw(found: dict[str, Any]) -> Figure:
    """The validation error by epoch, for each target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for target, numbers in found.items():
        errors = numbers["errors"]
        line = axes.plot(range(1, len(errors) + 1), errors, lw=0.8, label=f"target {target}")[0]
        axes.axhline(float(target), color=line.get_color(), ls=":")
    axes.set(yscale="log", xlabel="epoch", ylabel="logit error (LI) on validation images")
    axes.legend(fontsize="small", ncols=2)
    return figure


def main(place: Workplace) -> None:
    """Trains to each target, writes numbers and picture."""
    runs = {target: Run("R4", "IC", weight=target) for target in TARGETS}
    records = place.records(list(runs.values()))
    found = compute({target: records[run] for target, run in runs.items()})
    place.save("constraint", found)
    draw(found).savefig(place.results / "constraint.png", dpi=120)
    if not place.quick:
        check(found)


def check(found: dict[str, Any]) -> None:
    """Raises unless the models that were picked are at their targets, and the late epochs are around them."""
    for target, numbers in found.items():
        for name, tolerance in {"validation error": NEAR, "late mean": 3 * NEAR}.items():
            ratio = numbers[name] / float(target)
            assert abs(ratio - 1) <= tolerance, f"{name} must be at the target of {target}: {ratio:.3f} of it"


if __name__ == "__main__":
    main(workplace(description=__doc__))
