"""How is a report read by somebody who was not there?"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invreg.audit.drawing import light_and_dark
from invreg.audit.estimate import Estimate
from invreg.audit.figures import class_element_panel, panel_figure, panels
from invreg.audit.files import replaced
from invreg.audit.pictures import saliency_figure, worst_figure
from invreg.audit.text import Table, cautions, counted, headline, how, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from invreg.audit.layer_report import LayersReport
    from invreg.audit.report import InvarianceReport, SliceReport

_ROUNDING = 1e-8
"""A normalized logit error that float32 may make by itself: logits that differ by a ten-thousandth of their size."""

_SURE = 1.96
"""Standard errors on each side of a mean that hold the true one in 95 % of the cases."""


@dataclass(frozen=True)
class Verdict:
    """What the numbers of a report say in plain words.

    Args:
        answer: Whether the model is invariant, in a few words.
        level: ``"yes"``, ``"partly"``, ``"no"`` or ``"unknown"``.
        points: A heading and a sentence or two for each thing to know.
    """

    answer: str
    level: str
    points: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Shown:
    """A figure on the page: as data for the light and for the dark, and in words for those who cannot see it."""

    light: str
    dark: str
    alt: str
    width: int
    wide: bool


def write_page(report: InvarianceReport, path: str | Path, *, layers: LayersReport | None = None) -> None:
    """Writes a report as a page; see ``InvarianceReport.to_html``.

    Args:
        report: What to show.
        path: The file to write. It is replaced in one step, so that no reader finds half a page.
        layers: What ``measure_layers`` found for the same model, to be shown too.

    Raises:
        FileNotFoundError: The folder is not there.
        IsADirectoryError: ``path`` is a folder.
    """
    replaced(Path(path), lambda part: part.write_text(page(report, layers=layers), encoding="utf-8"))


def page(report: InvarianceReport, *, layers: LayersReport | None = None) -> str:
    """The text of the page.

    Args:
        report: What to show.
        layers: As in ``write_page``.

    Returns:
        HTML that refers to nothing outside itself and has no scripts.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    every = tables(report)
    return environment.get_template("page.html").render(
        title=headline(report),
        verdict=verdict(report),
        warnings=[*cautions(report), *_cautions(report)],
        method=how(report),
        words=_words(report),
        numbers=every[0],
        tables=every[1:],
        figures=[*_figures(report)],
        saliency=_saliency(report),
        gallery=_gallery(report),
        layers=None if layers is None else _layers(layers),
        skipped=report.skipped_samples,
        skipped_count=report.skipped,
        settings=_settings(report),
        provenance=[(name, _plainly(value)) for name, value in report.provenance.items()],
    )


def verdict(report: InvarianceReport) -> Verdict:
    """Says in plain words what the numbers say.

    Args:
        report: The numbers.

    Returns:
        Whether the model is invariant, to what, how sure that is, and where it is worst.
    """
    answer, level, why = _answer(report)
    points = [("In short", why), ("To what", _to_what(report)), ("How sure", _how_sure(report))]
    noun = "element" if report.is_group else "transform"
    if len(report.per_element) > 1:
        points.append((f"Worst {noun}", _worst_part(report.per_element, "element", report)))
    if len(report.per_class) > 1:
        points.append(("Worst class", _worst_part(report.per_class, "class", report)))
    if (right := _right(report)) is not None:
        points.append(("Right answers", right))
    if report.saliency_similarity is not None:
        points.append(("Where it looks", _where(report, report.saliency_similarity)))
    if level == "no" and report.is_group and report.output_action is None:
        points.append(
            (
                "What to do",
                "If this symmetry is wanted: train on with one of invreg's invariance losses, or make it exact by "
                "tie_first_layer and train again. measure_layers says which layer loses it.",
            )
        )
    return Verdict(answer, level, tuple(points))


def _answer(report: InvarianceReport) -> tuple[str, str, str]:
    """The answer, its level, and what it rests on."""
    word = "invariant" if report.output_action is None else "equivariant"
    outputs = "logits" if report.distribution_error is not None else "outputs"
    relative = math.sqrt(max(report.normalized_logit_error.mean, 0.0))
    moved = f"the {outputs} move by about {_percent(relative)} of their size"
    if report.logit_error.mean == 0:
        return f"Yes, exactly {word}", "yes", f"The {outputs} are the same to the last bit wherever they were compared."
    if report.normalized_logit_error.mean < _ROUNDING:
        return f"Yes, {word} up to rounding", "yes", f"On average {moved}, as much as rounding may do."
    if report.within_noise:
        return (
            "Cannot be told from the model's noise",
            "unknown",
            f"The {outputs} change no more than when the model is given the same input twice.",
        )
    own = report.action_logit_error
    if own is not None and report.logit_error.mean <= own.mean + 2 * _both(report.logit_error, own):
        return (
            "Cannot be told from the action's own error",
            "unknown",
            f"The {outputs} change no more than by the interpolation that moving an input and moving it back needs.",
        )
    if report.consistency is None:
        known = ((0.01, "Almost", "partly"), (0.1, "Mostly", "partly"))
        for limit, how_much, level in known:
            if relative < limit:
                return f"{how_much} {word}", level, f"On average {moved}."
        return f"No, not {word}", "no", f"On average {moved}."
    changed = max(1 - report.consistency.mean, 0.0)
    if changed == 0:
        return (
            f"Its decisions are {word}, its {outputs} are not",
            "partly",
            f"No prediction changes, although {moved}.",
        )
    why = f"{_percent(changed)} of the predictions change, and {moved}."
    for limit, how_much, level in ((0.01, "Almost", "partly"), (0.1, "Mostly", "partly")):
        if changed < limit:
            return f"{how_much} {word}", level, why
    return f"No, not {word}", "no", why


def _to_what(report: InvarianceReport) -> str:
    group = report.group if report.is_group else f"the transforms in {report.group}, which are no group"
    noun = "element" if report.is_group else "transform"
    if report.exhaustive:
        tried = f"each sample was tried under {'all' if report.elements > 1 else 'the'} "
        tried += f"{counted(report.elements, noun)} other than the identity"
    else:
        tried = f"{counted(report.elements, noun)} were drawn for each sample, so that rare ones may have been missed"
    moved = "" if report.output_action is None else f" Outputs were moved back by {report.output_action} first."
    return f"{group}: {tried}.{moved}"


def _how_sure(report: InvarianceReport) -> str:
    """A confidence interval of the mean, and of the share of samples where nothing was found."""
    error = report.logit_error
    if error.standard_error is None:
        return "Not at all: this is one sample."
    low, high = max(error.mean - _SURE * error.standard_error, 0.0), error.mean + _SURE * error.standard_error
    seen = counted(report.samples, "sample")
    if error.mean == 0:
        return (
            f"No difference in {seen}: with 95% confidence, fewer than {_percent(min(3 / report.samples, 1))} of "
            + ("all samples differ.")
        )
    rough = " So few samples make this a rough guess." if report.samples < 30 else ""
    text = f"From {seen}, with 95% confidence: the mean logit error is between {low:.4g} and {high:.4g}"
    if report.consistency is not None and report.consistency.standard_error:
        changed, margin = 1 - report.consistency.mean, _SURE * report.consistency.standard_error
        few, many = max(changed - margin, 0.0), min(changed + margin, 1.0)
        text += f", and {_percent(few)} to {_percent(many)} of the predictions change"
    return f"{text}, for samples like these.{rough}"


def _worst_part(parts: Sequence[SliceReport], noun: str, report: InvarianceReport) -> str:
    """Which part has the largest error, unless they are as good as equal."""
    ordered = sorted(parts, key=lambda one: one.logit_error.mean)
    least, most = ordered[0], ordered[-1]
    if most.logit_error.mean == 0:
        return "None: all are at 0."
    if most.logit_error.mean - least.logit_error.mean <= 2 * _both(most.logit_error, least.logit_error):
        return f"None stands out: they differ by less than twice their standard errors (largest: {most.name})."
    kept = "" if most.consistency is None else f", {_percent(most.consistency.mean)} of the predictions kept"
    right = "" if most.accuracy is None else f", {_percent(most.accuracy.mean)} right"
    right += " as they are" if right and noun == "class" else ""
    ratio = most.logit_error.mean / report.logit_error.mean if report.logit_error.mean else math.inf
    times = f" ({ratio:.2g} times the mean)" if math.isfinite(ratio) else ""
    who = most.name if noun == "element" or report.classes_by == "label" else f"predicted {most.name}"
    samples = f" from {counted(most.logit_error.count, 'sample')}" if noun == "class" else ""
    return f"By logit error, {who}: {most.logit_error.mean:.4g}{times}{kept}{right}{samples}. Best: {least.name}."


def _right(report: InvarianceReport) -> str | None:
    """What the lack of invariance costs in accuracy."""
    if report.accuracy is None:
        return None
    text = f"{_percent(report.accuracy.mean)} of the samples are predicted right as they are"
    if report.group_accuracy is not None:
        text += f", {_percent(report.group_accuracy.mean)} on average over the {'group' if report.is_group else 'set'}"
    if report.orbit_accuracy is not None:
        text += f", {_percent(report.orbit_accuracy.mean)} right every time"
    return text + "."


def _where(report: InvarianceReport, similarity: Estimate) -> str:
    alike = f"saliency similarity {similarity.mean:.2f}, where 1 is the same places"
    kept = report.consistency is not None and report.consistency.mean >= 0.9
    if similarity.mean >= 0.9:
        return f"At the same places of the transformed input ({alike})."
    if similarity.mean < 0.5:
        so = " Equal answers then rest on different evidence: the invariance was learned by heart." if kept else ""
        return f"Elsewhere ({alike}).{so}"
    return f"Partly at the same places ({alike})."


def _cautions(report: InvarianceReport) -> Iterator[str]:
    """What else is to be known before the numbers are believed."""
    own = report.action_logit_error
    if own is not None and own.mean > 0.25 * report.logit_error.mean > 0:
        share = own.mean / report.logit_error.mean
        yield f"The action interpolates: moving an input and moving it back makes a logit error {share:.0%} as large"
    if report.completeness_gap is not None and report.completeness_gap > 0.05:
        gap = report.completeness_gap
        yield f"The saliency maps are {gap:.0%} away from adding up to what they explain: use more steps"


def _words(report: InvarianceReport) -> list[tuple[str, str]]:
    """A sentence for each of the measures that the report has."""
    output = "the input and for its transformed copy"
    found = [
        (
            "Logit error (LI)",
            f"Half the squared distance between the model's raw outputs for {output}: 0 if they are the same, and "
            "without an upper limit, so that it compares models only if their outputs have one scale.",
        )
    ]
    if report.distribution_error is not None:
        found.append(
            (
                "Distribution error (DI)",
                "How far the predicted probabilities move, as a Kullback-Leibler divergence in nats: 0 if they are the "
                "same; 0.7 is about the step from certain to undecided between two classes.",
            )
        )
    if report.saliency_similarity is not None:
        found.append(
            (
                "Saliency similarity (SI)",
                "Whether the model looks at the same places: the cosine between its saliency map of the input and that "
                "of the transformed copy, moved back; 1 if they are the same, 0 if they share nothing.",
            )
        )
    if report.consistency is not None:
        found.append(("Consistency", "The share of transformed inputs that are given the class of the original."))
    return found


def _settings(report: InvarianceReport) -> list[tuple[str, str]]:
    found = [
        ("model", report.model),
        ("group", report.group),
        ("samples", f"{report.samples} measured of {report.seen}"),
        ("elements", f"{report.elements} for each sample, {'all there are' if report.exhaustive else 'drawn'}"),
        ("saliency maps", report.saliency or "none"),
        ("the audit", {"complete": "ran to its end"}.get(report.ended, f"ended early: {report.ended}")),
    ]
    if report.output_action is not None:
        found.append(("outputs", f"moved back by {report.output_action}"))
    return found


# Figures


def _figures(report: InvarianceReport) -> Iterator[_Shown]:
    cells = class_element_panel(report)
    for part in (*panels(report), *([] if cells is None else [cells])):
        yield _shown(panel_figure(part), f"{part.title}; {part.finding}.")


def _saliency(report: InvarianceReport) -> _Shown | None:
    if not report.saliency_examples:
        return None
    maps = ", ".join(f"sample {one.index} with similarity {one.similarity:.2f}" for one in report.saliency_examples)
    return _shown(saliency_figure(report), f"Inputs and their saliency maps over the orbit: {maps}.", wide=True)


def _gallery(report: InvarianceReport) -> _Shown | None:
    if (figure := worst_figure(report)) is None:
        return None
    names = ", ".join(f"sample {one.index} under {one.name}" for one in report.worst_samples)
    return _shown(figure, f"The least invariant samples before and after: {names}.", wide=True)


def _shown(figure: Figure, alt: str, *, wide: bool = False) -> _Shown:
    """A figure drawn twice: for the light and for the dark."""
    width = round(72 * 1.25 * figure.get_figwidth())  # a little larger than in print
    light, dark = light_and_dark(figure)
    return _Shown(_data(light), _data(dark), alt, width, wide)


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


@dataclass(frozen=True)
class _Layers:
    summary: str
    figure: _Shown
    table: Table


def _layers(layers: LayersReport) -> _Layers:
    header = ("layer", "kind", "invariance error", "equivariance error")
    rows = tuple(
        (one.name, one.kind, *("-" if e is None else str(e) for e in (one.invariance_error, one.equivariance_error)))
        for one in layers.layers
    )
    summary = layers.summary()
    summary = f"{summary[:1].upper()}{summary[1:]}."
    figure = _shown(layers.plot(), f"Errors by layer, from the input to the output. {summary}", wide=True)
    return _Layers(summary, figure, Table("By layer", header, rows))


# Numbers in words


def _percent(share: float) -> str:
    """A share in percent, where only nothing is 0% and only everything 100%."""
    for digits in (0, 1, 2):
        text = f"{share:.{digits}%}"
        if text not in (f"{0:.{digits}%}", f"{1:.{digits}%}") and (share >= 0.1 or digits):
            return text
    return "0%" if share == 0 else "100%" if share == 1 else "less than 0.01%" if share < 0.5 else "more than 99.99%"


def _plainly(value: object) -> str:
    """A setting as text."""
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _both(one: Estimate, other: Estimate) -> float:
    """The standard error of a difference, as if the two were independent."""
    return math.hypot(one.standard_error or 0.0, other.standard_error or 0.0)
