"""Writes ``docs/results.md`` from what the exhibits wrote: every number in it comes from a JSON file.

python -m examples.paper.page
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from examples.paper.beyond import SETTINGS
from examples.paper.runs import Record, Workplace, workplace

DIGITS = {"accuracy": 1, "LI": 4, "DI": 4, "SI": 2}
"""Decimals of a table's numbers; of errors of 1 and more, which span decades, one."""

PAPERS_DIGITS = {"accuracy": 1, "LI": 2, "DI": 1, "SI": 2}
"""Decimals that the paper gives."""

EXHIBITS = (
    "table1",
    "saliency_orbits",
    "embedding",
    "drift",
    "jacobian",
    "gradient_flow",
    "decay",
    "constraint",
    "gap",
    "beyond",
    "cost",
)
"""What the page shows, by the names of their JSON files."""


def lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def number(value: Record | Sequence[float | None], digits: int) -> str:
    """A mean and, where it is known and shows, its deviation."""
    mean, deviation = (value["mean"], value["deviation"]) if isinstance(value, dict) else value
    if digits > 2 and mean >= 1:
        digits = 1
    shown = f"{mean:.{digits}f}"
    return shown if deviation is None or round(deviation, digits) == 0 else f"{shown} ± {deviation:.{digits}f}"


def table1(found: Record) -> str:
    """Ours beside the paper's."""
    names = ["accuracy %", *(name for name in DIGITS if name != "accuracy")]
    header = ["group", "model", *(cell for name in names for cell in (name, f"{name}, paper"))]
    rows = []
    for group, methods in found["ours"].items():
        for method, ours in methods.items():
            paper = found["paper"][group][method]
            pairs = [(number(ours[name], DIGITS[name]), number(paper[name], PAPERS_DIGITS[name])) for name in DIGITS]
            rows.append([group, method, *(cell for pair in pairs for cell in pair)])
    return lines(header, rows)


def rows_of(found: Record) -> str:
    """A table by group and row."""
    header = ["group", "model", "accuracy %", "SI", "LI", "largest singular value of the Jacobian"]
    header += ["weight", "seeds", "epochs"]
    rows = []
    for group, by_row in found.items():
        for row, numbers in by_row.items():
            weight = numbers["run"]["weight"]
            cells = [number(numbers[name], DIGITS[name]) for name in ("accuracy", "SI", "LI")]
            cells += [number(numbers["Jacobian spectral norm"], 1), f"{weight:.4g}" if weight else "-"]
            rows.append([group, row, *cells, str(len(numbers["seeds"])), str(numbers["run"]["epochs"])])
    return lines(header, rows)


def cost(found: Record) -> str:
    """What each way to an invariant network costs and what it reaches."""
    header = ["group", "model", "time of a step / plain step", "SI", "LI", "accuracy %", "seeds"]
    rows = []
    for group, by_row in found.items():
        for row, numbers in by_row.items():
            cells = [number(numbers[name], DIGITS[name]) for name in ("SI", "LI", "accuracy")]
            rows.append([group, row, f"{numbers['step']:.2f}", *cells, str(len(numbers["seeds"]))])
    return lines(header, rows)


def weights(tunings: Record) -> str:
    """How the weights of regularisers were found."""
    rows = []
    for group, tuning in tunings.items():
        trials = ", ".join(f"{weight:.4g} ({reached:.3f})" for weight, reached in tuning["trials"])
        rows.append([group, f"{tuning['weight']:.4g}", trials])
    return lines(["group", "weight", "trials: weight (SI on validation images of seed 0)"], rows)


def embedding(found: Record) -> str:
    """How far turns move features."""
    ratios = [f"{name} {method['ratio']:.2f}" for name, method in found["methods"].items()]
    return f"relative to the distance between upright images of one class: {', '.join(ratios)}"


def drift(found: Record) -> str:
    """The two ends of each curve."""
    rows = []
    for group, numbers in found.items():
        for name, curves in numbers["methods"].items():
            di, ratio = curves["distribution error"], curves["accuracy ratio"]
            half = numbers["betas"].index(0.5)
            rows.append([group, name, *(f"{di['mean'][i]:.3f}" for i in (0, half, -1)), f"{ratio['mean'][half]:.2f}"])
    return lines(["group", "model", "DI at β = 0", "at 0.5", "at 1", "accuracy at 0.5, relative to 0"], rows)


def jacobian(found: Record) -> str:
    """The largest singular values, by regulariser."""
    rows = []
    for group, numbers in found.items():
        for name, one in numbers["models"].items():
            cells = [
                f"{one['mean']:.2f} ± {one['standard error']:.2f}",
                f"{one['SI']:.2f}",
                f"{100 * one['accuracy']:.1f}",
            ]
            rows.append([group, name, *cells, f"{one['weight']:.4g}" if one["weight"] else "-"])
    return lines(["group", "regulariser", "largest singular value", "SI", "accuracy %", "weight"], rows)


def decay(found: Record) -> str:
    """Where each curve begins and ends."""
    rows = [
        [group, method, f"{values[0]:.1f}", f"{values[-1]:.0f}"]
        for group, curves in found.items()
        for method, values in curves.items()
    ]
    return lines(["group", "model", "product of spectral norms at the start", "in the end"], rows)


def constraint(found: Record) -> str:
    """What each target came to."""
    rows = [
        [
            target,
            f"{one['validation error'] / float(target):.3f}",
            f"{one['late mean'] / float(target):.3f}",
            f"{100 * one['within']:.0f} %",
            f"{100 * one['test']['accuracy']:.1f}",
            f"{one['test']['SI']:.2f}",
        ]
        for target, one in found.items()
    ]
    header = ["target LI", "validation LI / target", "mean of the last third of epochs / target", "of these within 5 %"]
    return lines([*header, "test accuracy %", "test SI"], rows)


def beyond(found: Record) -> str:
    """A table for each setting, and which are still to be made."""
    parts = [f"{name}:\n\n{rows_of(table)}" for name, table in found.items()]
    if missing := [name for name in SETTINGS if name not in found]:
        parts.append(f"Not trained yet: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def gradient_flow(found: Record) -> str:
    """How near the followed flow came to the closed form."""
    rows = [
        [name, *(f"{difference:.1e}" for difference in one["differences"].values())]
        for name, one in found["followed"].items()
    ]
    steps = next(iter(found["followed"].values()))["differences"]
    return lines(["largest relative difference to the closed form", *(f"time step {step}" for step in steps)], rows)


def build(results: Path) -> str:
    """The page.

    Args:
        results: Folder with the exhibits' JSON files.

    Returns:
        Markdown.
    """
    found: Record = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in EXHIBITS}
    text = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    freed = found["gap"]["paper"]["R4"]["FREE"]["run"]
    values: dict[str, Any] = {
        "gain": freed["gain"],
        "weight": freed["weight"],
        "seeds": len(found["table1"]["ours"]["R4"]["DA"]["seeds"]),
        "looked_at": f"{found['jacobian']['R4']['images']:,}",
        "table1": table1(found["table1"]),
        "weights": weights(found["table1"]["tunings"]),
        "embedding": embedding(found["embedding"]),
        "drift": drift(found["drift"]),
        "jacobian": jacobian(found["jacobian"]),
        "gradient_flow": gradient_flow(found["gradient_flow"]),
        "decay": decay(found["decay"]),
        "constraint": constraint(found["constraint"]),
        **{f"gap_{recipe}": rows_of(table) for recipe, table in found["gap"].items()},
        "beyond": beyond(found["beyond"]),
        "cost": cost(found["cost"]),
    }
    return text.format(**values)


def main(place: Workplace) -> None:
    """Writes the page beside the folder of results, if all exhibits are there."""
    missing = [name for name in EXHIBITS if not (place.results / f"{name}.json").exists()]
    if missing:
        print(f"No page yet: {place.results} has no {', '.join(missing)}.")
        return
    page = place.results.with_suffix(".md")
    page.write_text(build(place.results), encoding="utf-8")
    print(f"The page: {page}")


if __name__ == "__main__":
    main(workplace(description=__doc__))
