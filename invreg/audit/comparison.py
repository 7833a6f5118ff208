"""By how much do two models differ on the same samples?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from invreg.audit.estimate import Estimate
from invreg.audit.text import aligned

if TYPE_CHECKING:
    from invreg.audit.report import InvarianceReport


_SETTINGS = {
    "group": "under one group",
    "output_action": "of one output_action",
    "elements": "under as many elements",
    "exhaustive": "under all elements, or under drawn ones",
}
"""What two audits that are compared must have in common, and what that is called."""


@dataclass(frozen=True)
class Difference:
    """One number of two models on the same samples.

    Args:
        name: Which number, such as ``"logit_error"``.
        first: Its mean over the samples for the first model.
        second: For the second model.
        difference: Second minus first. The standard error is that of paired differences: what makes a sample hard for
            both models cancels.
    """

    name: str
    first: float
    second: float
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """Two models on the same samples, number by number. Made by ``InvarianceReport.compare``; ``print`` shows a table.

    Args:
        first: Name of the model whose report was asked.
        second: Name of the other model.
        group: The group of both audits, in words.
        samples: How many samples were compared.
        differences: The numbers that both reports have.
    """

    first: str
    second: str
    group: str
    samples: int
    differences: tuple[Difference, ...]

    def __getitem__(self, name: str) -> Difference:
        """The number of this name."""
        for one in self.differences:
            if one.name == name:
                return one
        raise KeyError(f"No {name!r} in this comparison: it has {[one.name for one in self.differences]}.")

    def __str__(self) -> str:
        names = (self.first, self.second) if self.first != self.second else ("first", "second")
        rows: list[tuple[str, ...]] = [("", *names, "difference")]
        rows += [(d.name, f"{d.first:.4g}", f"{d.second:.4g}", str(d.difference)) for d in self.differences]
        return "\n".join(
            [
                f"{self.second} compared with {self.first} under {self.group}",
                f"{self.samples} samples, paired; difference = second - first ± standard error over samples",
                "",
                *aligned(rows),
            ]
        )


def compare(first: InvarianceReport, second: InvarianceReport) -> Comparison:
    """Compares two reports; see ``InvarianceReport.compare``."""
    a, b = first.per_sample, second.per_sample
    if not len(a) or not len(b):
        raise ValueError("Both reports must have numbers of single samples: audit with kept_samples=, and save them.")
    if (first.distribution_error is None) != (second.distribution_error is None):
        raise ValueError('Both audits must be of logits, or of other values: one was made with outputs="values".')
    for name, words in _SETTINGS.items():
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise ValueError(f"Both audits must be {words}: got {one} and {other}.")
    both = np.intersect1d(a["index"], b["index"])
    if not len(both) or (first.ended == second.ended == "complete" and first.seen != second.seen):
        raise ValueError(
            f"Both audits must be of the same samples: got {first.seen} and {second.seen}. Audit both models over one "
            "loader that does not shuffle."
        )
    a, b = (table.taken(np.isin(table["index"], both)) for table in (a, b))
    if "label" in a and "label" in b and not np.array_equal(a["label"], b["label"]):
        raise ValueError(
            "Both audits must be of the same samples in the same order: the labels differ. Use a loader that does not "
            "shuffle."
        )
    differences = []
    for name in (name for name in first.estimates if name in second.estimates and name in a and name in b):
        if name == "saliency_similarity" and first.saliency != second.saliency:
            continue  # of maps made in different ways
        measured = ~(np.isnan(a[name]) | np.isnan(b[name]))
        if measured.any():
            differences.append(_difference(name, a[name][measured], b[name][measured]))
    return Comparison(first.model, second.model, first.group, len(a), tuple(differences))


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> Difference:
    change = second - first
    error = float(change.std(ddof=1)) / math.sqrt(len(change)) if len(change) > 1 else None
    return Difference(
        name, float(first.mean()), float(second.mean()), Estimate(float(change.mean()), error, len(change))
    )
