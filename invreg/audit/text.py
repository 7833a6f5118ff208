"""How does a person read a report?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from invreg.audit.estimate import Estimate

if TYPE_CHECKING:
    from invreg.audit.report import InvarianceReport, SliceReport

_MOST_ROWS = 16
"""How many elements and how many classes a table shows."""

_MOST_SAMPLES = 10
"""How many samples a table shows."""


@dataclass(frozen=True)
class Table:
    """A part of a report as text.

    Args:
        title: What it shows.
        header: A title for each column; empty where the cells speak for themselves.
        rows: The cells.
        note: What is left out, if anything.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def text(report: InvarianceReport) -> str:
    """A report for a terminal."""
    lines = [headline(report), *how(report), *cautions(report)]
    for table in tables(report):
        rows = [table.header, *table.rows] if table.header else [*table.rows]
        lines += ["", *aligned(rows)]
        if table.note:
            lines.append(table.note)
    return "\n".join(lines)


def markdown(report: InvarianceReport) -> str:
    """A report as Markdown."""
    lines = [f"# {_escaped(headline(report))}", ""]
    lines += [f"- {_escaped(line)}" for line in (*how(report), *cautions(report))]
    for table in tables(report):
        header = table.header or ("number", "value", "meaning")
        rows = [header, ("---",) * len(header), *table.rows]
        lines += ["", f"## {table.title}", ""]
        lines += ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
        if table.note:
            lines += ["", table.note]
    made = [f"{name}: {_escaped(str(value))}" for name, value in report.provenance.items()]
    return "\n".join([*lines, "", "## Made with", "", *(f"- {line}" for line in made), ""])


def headline(report: InvarianceReport) -> str:
    """What was measured, in a line."""
    what = "Invariance" if report.output_action is None else "Equivariance"
    group = report.group if report.is_group else f"{report.group}, which is no group"
    return f"{what} of {report.model} to {group}"


def how(report: InvarianceReport) -> list[str]:
    """How it was measured."""
    drawn = "all" if report.exhaustive else "drawn for each sample"
    noun = "non-identity element" if report.is_group else "transform"
    lines = [
        f"{counted(report.samples, 'sample')}, each under {counted(report.elements, noun)} ({drawn}); "
        "value ± standard error over samples"
        + ("; no labels" if report.accuracy is None else "")
        + ("; no saliency maps" if report.saliency is None else "")
    ]
    if report.output_action is not None:
        lines.append(f"Outputs are moved back by {report.output_action} before they are compared")
    if report.ended == "precise":
        lines.append(f"Stopped after {counted(report.samples, 'sample')}, when the precision asked for was reached")
    return lines


def cautions(report: InvarianceReport) -> list[str]:
    """What is to be known before the numbers are believed."""
    lines = []
    if report.ended == "interrupted":
        lines.append("PARTIAL: the audit was interrupted; these are the samples before that")
    if report.skipped_samples:
        first = report.skipped_samples[0]
        least = "at least " if any(one.count is None for one in report.skipped_samples) else ""
        lines.append(
            f"SKIPPED: {least}{counted(report.skipped, 'sample')} of {report.seen}, the first at {first.index}: "
            f"{first.reason}"
        )
    if report.noise_error is not None:
        lines.append(
            "The model gives other logits for the same input: its invariance error is "
            + ("NOT above that noise" if report.within_noise else f"{report.noise_excess} above that noise")
        )
    return lines


def tables(report: InvarianceReport) -> list[Table]:
    """All tables of a report."""
    found = [Table("Numbers", (), summary(report))]
    element = "element" if report.is_group else "transform"
    of_class = "class" if report.classes_by == "label" else "predicted class"
    if report.per_element:
        found.append(_slices(f"By {element}", element, report.per_element))
    if report.per_class:
        found.append(_slices("By class", of_class, report.per_class))
    if report.worst_samples:
        found.append(_worst(report))
    return found


def summary(report: InvarianceReport) -> tuple[tuple[str, str, str], ...]:
    """The numbers over all samples: what each is called, its value, and what it means."""
    whole = "group" if report.is_group else "set"
    every = "every element" if report.exhaustive else "every element drawn"
    same = "invariant" if report.output_action is None else "equivariant"
    rows = (
        ("logit error (LI)", report.logit_error, f"0 = {same}; logits squared"),
        ("distribution error (DI)", report.distribution_error, f"0 = {same}; nats"),
        ("normalized logit error", report.normalized_logit_error, f"0 = {same}; no unit"),
        ("worst logit error", report.worst_logit_error, "LI under each sample's worst element"),
        ("... over samples", _quantiles(report), "its median, 90 %, 99 % and largest"),
        ("saliency similarity (SI)", report.saliency_similarity, _saliency_note(report)),
        ("consistency", report.consistency, "same class as at the identity"),
        ("accuracy", report.accuracy, "at the identity"),
        ("group accuracy", report.group_accuracy, f"averaged over the {whole}, identity included"),
        ("orbit accuracy", report.orbit_accuracy, f"right at the identity and under {every}"),
        ("action's own error", report.action_error, "|x - x moved and moved back| / |x|: not the model's"),
        ("... its logit error", report.action_logit_error, "LI between these: that much is not the model's"),
        ("model's own noise", report.noise_error, "LI between two outputs for the same input"),
        ("... its consistency", report.noise_consistency, "same class for the same input twice"),
    )
    return tuple((label, str(value), note) for label, value, note in rows if value is not None)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _quantiles(report: InvarianceReport) -> str | None:
    """Median, 90 %, 99 % and maximum of the worst logit error, where they are known."""
    try:
        return ", ".join(f"{report.quantile('worst_logit_error', share):.4g}" for share in (0.5, 0.9, 0.99, 1.0))
    except ValueError:
        return None


def _saliency_note(report: InvarianceReport) -> str:
    if report.saliency_similarity is None:
        return ""
    gap = "" if report.completeness_gap is None else f", completeness gap {report.completeness_gap:.1%}"
    return f"1 = invariant; on {counted(report.saliency_similarity.count, 'sample')}{gap}"


_COLUMNS = (
    ("LI", "logit_error"),
    ("DI", "distribution_error"),
    ("normalized", "normalized_logit_error"),
    ("SI", "saliency_similarity"),
    ("consistency", "consistency"),
    ("accuracy", "accuracy"),
    ("group accuracy", "group_accuracy"),
    ("action's own LI", "action_logit_error"),
)


def _slices(title: str, first: str, parts: tuple[SliceReport, ...]) -> Table:
    """The parts with the largest errors, in their order, and the columns that any of them has."""
    worst = sorted(parts, key=lambda one: -one.logit_error.mean)[:_MOST_ROWS]
    shown = [one for one in parts if one in worst]
    columns = [(name, of) for name, of in _COLUMNS if any(getattr(one, of) is not None for one in parts)]
    header = (first, "samples", *(name for name, _ in columns))
    rows = [(one.name, str(one.logit_error.count), *(_cell(getattr(one, of)) for _, of in columns)) for one in shown]
    left = "" if len(shown) == len(parts) else f"... the {len(shown)} with the largest LI of {len(parts)}"
    return Table(title, header, tuple(rows), left)


def _worst(report: InvarianceReport) -> Table:
    header = ("least invariant", "element", "LI", "DI", "label", "predicted", "then")
    rows = [
        (
            f"sample {one.index}" + ("" if one.source is None else f", {one.source}"),
            one.name,
            f"{one.logit_error:.4g}",
            _cell(one.distribution_error),
            _cell(one.label),
            _cell(one.prediction),
            _cell(one.transformed_prediction),
        )
        for one in report.worst_samples[:_MOST_SAMPLES]
    ]
    kept = [index for index in range(len(header)) if any(row[index] != "-" for row in rows)]
    return Table(
        "Least invariant samples",
        tuple(header[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
    )


def _cell(value: Estimate | float | int | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
