"""What does an audit say, and how does a person read it?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

_MOST_ROWS = 16
"""How many elements ``print`` shows."""

SCHEMA = 1
"""Version of the dictionary and JSON form; it grows when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and how sure it is.

    Args:
        mean: The mean.
        standard_error: Its standard error over samples; None where one sample alone was seen.
        count: How many samples.

    Example:
        >>> print(Estimate(0.25, 0.01, 100))
        0.25 ± 0.01
        >>> float(Estimate(0.25, 0.01, 100))
        0.25
    """

    mean: float
    standard_error: float | None
    count: int

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2g}")


@dataclass(frozen=True)
class ElementReport:
    """What an audit found for one element of a finite group.

    Args:
        element: Its index in the group.
        logit_error: As in ``InvarianceReport``; so are the others.
        distribution_error: In nats.
        normalized_logit_error: No unit.
        saliency_similarity: Between 0 and 1; None where it was not measured.
        accuracy: On the inputs that the element transformed; None without labels.
        consistency: Share of samples with the same prediction as at the identity.
        action_error: As in ``InvarianceReport``; so is the next one.
        action_logit_error: Logits squared.
    """

    element: int
    logit_error: Estimate
    distribution_error: Estimate
    normalized_logit_error: Estimate
    saliency_similarity: Estimate | None
    accuracy: Estimate | None
    consistency: Estimate
    action_error: Estimate | None
    action_logit_error: Estimate | None

    def _row(self) -> tuple[str, ...]:
        errors = (self.logit_error, self.distribution_error, self.normalized_logit_error)
        shares = (self.saliency_similarity, self.consistency, self.accuracy, self.action_logit_error)
        return (str(self.element), *("-" if value is None else str(value) for value in (*errors, *shares)))


@dataclass(frozen=True)
class InvarianceReport:
    """How invariant a model is, and how sure that is. Made by ``measure_invariance``; ``print`` shows a table.

    Errors, similarity and consistency are averaged over the non-identity elements, each with the same weight, and
    over samples. Standard errors are over samples, since the elements of one orbit are not independent.

    Args:
        model: Name of the model's class or function.
        group: The group, in words.
        is_group: Whether it is one; False for a ``TransformationSet``.
        samples: How many samples were measured.
        elements: How many non-identity elements each sample was measured under.
        exhaustive: Whether these were all that the group has; otherwise they were drawn for each sample.
        logit_error: Half the squared distance of the logits (LI).
        distribution_error: Kullback-Leibler divergence of the predictive distributions (DI), in nats.
        normalized_logit_error: Squared distance of the logits relative to their squared norm.
        saliency_similarity: Cosine similarity of realigned saliency maps (SI); None where it was not measured.
        saliency: The map method, in words; None where it was not used.
        completeness_gap: How far the attributions at the inputs are from adding up to the change of the logit, as a
            share of that change; a measure of integrated gradients' numerical error. None for other methods.
        accuracy: Share of samples predicted right at the identity; None without labels, as the next two.
        group_accuracy: The same averaged over the whole group, the identity included.
        orbit_accuracy: Share of samples predicted right at the identity and under every element measured.
        consistency: Share of predictions that are the same as at the identity.
        action_error: What the action itself changes, the norm of g⁻¹(gx) - x relative to that of x: an action that
            interpolates does not quite undo itself. None for exact groups and sets of transformations, as the next.
        action_logit_error: What that does to this model, half the squared distance of the logits at x and g⁻¹(gx). A
            ``logit_error`` of this size is the action's, not the model's.
        per_element: The same for each element of a finite group, the identity left out; empty for others.
    """

    model: str
    group: str
    is_group: bool
    samples: int
    elements: int
    exhaustive: bool
    logit_error: Estimate
    distribution_error: Estimate
    normalized_logit_error: Estimate
    saliency_similarity: Estimate | None
    saliency: str | None
    completeness_gap: float | None
    accuracy: Estimate | None
    group_accuracy: Estimate | None
    orbit_accuracy: Estimate | None
    consistency: Estimate
    action_error: Estimate | None
    action_logit_error: Estimate | None
    per_element: tuple[ElementReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, numbers and strings, with ``schema`` for the form's version."""
        return {"schema": SCHEMA, **asdict(self), "per_element": [asdict(one) for one in self.per_element]}

    def to_json(self) -> str:
        """The report as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> InvarianceReport:
        """Makes the report that ``to_dict`` described.

        Args:
            state: What ``to_dict`` returned, or the same read from JSON.

        Returns:
            An equal report.

        Raises:
            ValueError: The dictionary has another schema or other fields.
        """
        if not isinstance(state, dict):
            raise ValueError(
                f"A report is made from a dictionary: got {type(state).__name__}. Use json.loads on a text."
            )
        if state.get("schema") != SCHEMA:
            raise ValueError(f"A report's dictionary must have schema {SCHEMA}: got {state.get('schema')!r}.")
        values = {name: value for name, value in state.items() if name != "schema"}
        elements = values.get("per_element")
        if isinstance(elements, (list, tuple)):
            values["per_element"] = tuple(_made(ElementReport, element) for element in elements)
        report: InvarianceReport = _made(cls, values)
        return report

    def __str__(self) -> str:
        how = "all" if self.exhaustive else "drawn for each sample"
        noun = "non-identity element" if self.is_group else "transform"
        whole = "group" if self.is_group else "set"
        every = "every element" if self.exhaustive else "every element drawn"
        rows = (
            ("logit error (LI)", self.logit_error, "0 = invariant; logits squared"),
            ("distribution error (DI)", self.distribution_error, "0 = invariant; nats"),
            ("normalized logit error", self.normalized_logit_error, "0 = invariant; no unit"),
            ("saliency similarity (SI)", self.saliency_similarity, self._saliency_note()),
            ("consistency", self.consistency, "same class as at the identity"),
            ("accuracy", self.accuracy, "at the identity"),
            ("group accuracy", self.group_accuracy, f"averaged over the {whole}, identity included"),
            ("orbit accuracy", self.orbit_accuracy, f"right at the identity and under {every}"),
            ("action's own error", self.action_error, "|x - x moved and moved back| / |x|: not the model's"),
            ("... its logit error", self.action_logit_error, "LI between these: that much is not the model's"),
        )
        lines = [
            f"Invariance of {self.model} to {self.group}" + ("" if self.is_group else ", which is no group"),
            f"{_count(self.samples, 'sample')}, each under {_count(self.elements, noun)} ({how}); "
            "value ± standard error over samples"
            + ("; no labels" if self.accuracy is None else "")
            + ("; no saliency maps" if self.saliency is None else ""),
            "",
            *_table([(label, str(value), note) for label, value, note in rows if value is not None]),
        ]
        if self.per_element:
            header = ("element", "LI", "DI", "normalized", "SI", "consistency", "accuracy", "action's own LI")
            worst = sorted(self.per_element, key=lambda one: -one.logit_error.mean)[:_MOST_ROWS]
            shown = [one for one in self.per_element if one in worst]
            columns = len(header) if self.action_logit_error is not None else len(header) - 1
            lines += ["", *_table([row[:columns] for row in (header, *(one._row() for one in shown))])]
            if len(shown) < len(self.per_element):
                lines.append(f"... the {len(shown)} with the largest LI of {len(self.per_element)}; all in per_element")
        return "\n".join(lines)

    def _saliency_note(self) -> str:
        if self.saliency_similarity is None:
            return ""
        gap = "" if self.completeness_gap is None else f", completeness gap {self.completeness_gap:.1%}"
        return f"1 = invariant; on {_count(self.saliency_similarity.count, 'sample')}{gap}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _made(kind: type[Any], state: Any) -> Any:
    """Makes a report from the dictionary of its fields, whose dictionaries are estimates."""
    names = {field.name for field in fields(kind)}
    if not isinstance(state, dict) or state.keys() != names:
        given = state.keys() if isinstance(state, dict) else set()
        raise ValueError(
            f"The dictionary of {kind.__name__} must have just its fields: "
            f"missing {sorted(names - given)}, unknown {sorted(given - names)}."
        )
    return kind(**{name: _made(Estimate, value) if isinstance(value, dict) else value for name, value in state.items()})
