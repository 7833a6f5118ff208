"""What does an audit say?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from invreg.audit.bootstrap import Interval, bootstrap_interval
from invreg.audit.comparison import Comparison, compare
from invreg.audit.estimate import Estimate
from invreg.audit.histogram import LogHistogram, quantile
from invreg.audit.plain import NOT_SAVED, Readers, all_made, made, plain, without_schema
from invreg.audit.samples import SaliencyExample, SampleTable, SkippedSamples, WorstSample

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from invreg.audit.layer_report import LayersReport

SCHEMA = 2
"""Version of the dictionary and JSON form; it grows when a field comes, goes away or changes its meaning."""

WITH_QUANTILES = ("logit_error", "distribution_error", "normalized_logit_error", "worst_logit_error")
"""The numbers that ``InvarianceReport.quantile`` knows."""


@dataclass(frozen=True)
class SliceReport:
    """What an audit found for a part of the data: under one element, in one class, or both.

    Args:
        name: The part in words: "90°", "class 3", "class 3, 90°".
        element: Index of the element in the group; None for all of them.
        label: The class; None for all of them.
        logit_error: As in ``InvarianceReport``; so are the others.
        distribution_error: In nats; None for outputs that are no logits.
        normalized_logit_error: No unit.
        saliency_similarity: Between 0 and 1; None where it was not measured.
        accuracy: On the inputs that the element transformed, or at the identity for a class; None without labels.
        group_accuracy: Averaged over the whole group, for a class; None for elements and without labels.
        orbit_accuracy: Share of samples predicted right under every element, for a class; None as the last.
        consistency: Share of predictions that are the same as at the identity; None for outputs that are no logits.
        action_error: As in ``InvarianceReport``; so is the next one.
        action_logit_error: Logits squared.
    """

    name: str
    element: int | None
    label: int | None
    logit_error: Estimate
    distribution_error: Estimate | None
    normalized_logit_error: Estimate
    saliency_similarity: Estimate | None
    accuracy: Estimate | None
    group_accuracy: Estimate | None
    orbit_accuracy: Estimate | None
    consistency: Estimate | None
    action_error: Estimate | None
    action_logit_error: Estimate | None


@dataclass(frozen=True)
class InvarianceReport:
    """How invariant a model is, and how sure that is. Made by ``measure_invariance``; ``print`` shows a table.

    Errors, similarity and consistency are averaged over the non-identity elements, each with the same weight, and
    over samples. Standard errors are over samples, since the elements of one orbit are not independent. Where an
    ``output_action`` was given, outputs at transformed inputs are moved back by it before anything is compared, and all
    that is said of invariance holds of equivariance.

    Args:
        model: Name of the model's class or function.
        group: The group, in words.
        is_group: Whether it is one; False for a ``TransformationSet``.
        output_action: How the group acts on outputs, in words; None where these shall stay the same.
        seen: How many samples the loader gave.
        samples: How many of these were measured; the others are in ``skipped``.
        elements: How many non-identity elements each sample was measured under.
        exhaustive: Whether these were all that the group has; otherwise they were drawn for each sample.
        ended: ``"complete"`` when the loader was at its end; ``"precise"`` when ``target_precision`` was reached;
            ``"interrupted"`` before either.
        logit_error: Half the squared distance of the logits (LI).
        distribution_error: Kullback-Leibler divergence of the predictive distributions (DI), in nats; None for
            outputs that are no logits.
        normalized_logit_error: Squared distance of the logits relative to their squared norm.
        worst_logit_error: The logit error under each sample's worst element.
        saliency_similarity: Cosine similarity of realigned saliency maps (SI); None where it was not measured.
        saliency: The map method, in words; None where it was not used.
        completeness_gap: How far the attributions at the inputs are from adding up to the change of the logit, as a
            share of that change; a measure of integrated gradients' numerical error. None for other methods.
        accuracy: Share of samples predicted right at the identity; None without labels, as the next two.
        group_accuracy: The same averaged over the whole group, the identity included.
        orbit_accuracy: Share of samples predicted right at the identity and under every element measured.
        consistency: Share of predictions that are the same as at the identity; None for outputs that are no logits.
        action_error: What the action itself changes, the norm of g⁻¹(gx) - x relative to that of x: an action that
            interpolates does not quite undo itself. None for exact groups and sets of transformations, as the next.
        action_logit_error: What that does to this model, half the squared distance of the logits at x and g⁻¹(gx). A
            ``logit_error`` of this size is the action's, not the model's.
        noise_error: Half the squared distance of the logits of the same input twice; None for a model that gave the
            same both times, as the next two.
        noise_excess: ``logit_error`` minus ``noise_error``, paired: what is left of the error beside the noise.
        noise_consistency: Share of predictions that are the same for the same input twice.
        per_element: The same for each element of a finite group, the identity left out; empty for others.
        per_class: The same for each class that occurs; empty for outputs per position or that are no logits.
        classes_by: Whether classes are those of the labels, or, without labels, those predicted at the identity.
        per_class_element: The same for each class under each element, class by class; empty where one of the last two
            is, and for more than a hundred thousand such pairs.
        worst_samples: The samples with the largest ``worst_logit_error``, that one first.
        skipped: How many samples were left out; at least, where a loader did not say how many it lost.
        skipped_samples: Which they were, and why; the first thousand entries.
        per_sample: Numbers of single samples, those of least index: the estimates' names, ``index``, ``label``,
            ``prediction`` and ``worst_element`` are columns.
        histograms: Counts of the errors of the samples that are not in ``per_sample``, by name.
        provenance: Versions, seed, time and data: what was measured with what.
        saliency_examples: Maps of the samples with the least similarity and of typical ones, for ``plot_saliency``.
            Not in dictionaries and JSON.
    """

    model: str
    group: str
    is_group: bool
    output_action: str | None
    seen: int
    samples: int
    elements: int
    exhaustive: bool
    ended: Literal["complete", "precise", "interrupted"]
    logit_error: Estimate
    distribution_error: Estimate | None
    normalized_logit_error: Estimate
    worst_logit_error: Estimate
    saliency_similarity: Estimate | None
    saliency: str | None
    completeness_gap: float | None
    accuracy: Estimate | None
    group_accuracy: Estimate | None
    orbit_accuracy: Estimate | None
    consistency: Estimate | None
    action_error: Estimate | None
    action_logit_error: Estimate | None
    noise_error: Estimate | None
    noise_excess: Estimate | None
    noise_consistency: Estimate | None
    per_element: tuple[SliceReport, ...]
    per_class: tuple[SliceReport, ...]
    classes_by: Literal["label", "prediction"] | None
    per_class_element: tuple[SliceReport, ...]
    worst_samples: tuple[WorstSample, ...]
    skipped: int
    skipped_samples: tuple[SkippedSamples, ...]
    per_sample: SampleTable = field(repr=False, hash=False)
    histograms: dict[str, LogHistogram] = field(repr=False, hash=False)
    provenance: dict[str, Any] = field(compare=False)
    saliency_examples: tuple[SaliencyExample, ...] = field(default=(), compare=False, repr=False, metadata=NOT_SAVED)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The numbers over all samples that were measured, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Estimate)}

    @property
    def within_noise(self) -> bool:
        """Whether the logit error is not above that of the same input twice, by two standard errors."""
        excess = self.noise_excess
        return excess is not None and excess.mean <= 2 * (excess.standard_error or 0.0)

    def quantile(self, name: str, share: float) -> float:
        """The value that an error of a single sample does not exceed in this share of the samples.

        Args:
            name: ``"logit_error"``, ``"distribution_error"``, ``"normalized_logit_error"`` (each averaged over the
                elements) or ``"worst_logit_error"``.
            share: Between 0 and 1; 0.5 for the median.

        Returns:
            One of the errors. Where more samples were measured than ``per_sample`` holds, those that it lacks are known
            within half a percent of their value.

        Raises:
            ValueError: ``share`` is not between 0 and 1, or the error was not measured or not kept.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1: got {share}. Write 0.5 for the median.")
        if name not in WITH_QUANTILES or name not in self.estimates:
            known = [known for known in WITH_QUANTILES if known in self.estimates]
            raise ValueError(f"Quantiles are known of {known}: got {name!r}.")
        kept = self.per_sample[name] if name in self.per_sample else np.empty(0)
        others = self.histograms.get(name, LogHistogram())
        if len(kept) + sum(others.counts.values()) != self.samples:
            raise ValueError("This report was saved without its samples, per_sample=False: it knows no quantiles.")
        return quantile(kept, others, share)

    def bootstrap(self, name: str, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Interval:
        """A confidence interval of a mean over samples, by drawing the samples again with replacement.

        Args:
            name: Which of ``estimates``.
            confidence: Between 0 and 1.
            resamples: How often all samples are drawn again.
            seed: Of the draws.

        Returns:
            The percentile interval.

        Raises:
            ValueError: The number was not measured, not all samples were kept, or an argument is out of its range.

        Source: Efron, Tibshirani, "An introduction to the bootstrap" (1993), section 13.3.
        """
        if name not in self.estimates:
            raise ValueError(f"This report has the estimates {list(self.estimates)}: got {name!r}.")
        if not 0 < confidence < 1 or resamples < 1:
            raise ValueError(
                f"confidence must be between 0 and 1 and resamples positive: got {confidence} and {resamples}."
            )
        column = self.per_sample[name] if name in self.per_sample else np.empty(0)
        values = column[~np.isnan(column)]
        if len(values) == 1:
            raise ValueError("The bootstrap needs more than one sample: got 1.")
        if len(values) != self.estimates[name].count:
            raise ValueError(
                f"The bootstrap needs all {self.estimates[name].count} samples, but the report has {len(values)}: "
                "audit with a larger kept_samples=, or take mean ± 1.96 standard errors, which is as good for so many."
            )
        return bootstrap_interval(values, confidence, resamples, seed)

    def compare(self, other: InvarianceReport) -> Comparison:
        """Compares this report's model with another one that was audited on the same samples.

        Args:
            other: The other model's report, under the same group and over the same data in the same order.

        Returns:
            The paired differences, ``other`` minus this, of all numbers that both have, on the samples that both kept;
            of saliency similarities only where maps were made in one way.

        Raises:
            TypeError: ``other`` is no report.
            ValueError: The groups, the elements' number or the samples differ, or a report has no numbers of single
                samples.
        """
        if not isinstance(other, InvarianceReport):
            raise TypeError(f"A report is compared with another InvarianceReport: got {type(other).__name__}.")
        return compare(self, other)

    def plot(self) -> Figure:
        """Draws errors by element, by class and how they are distributed over samples.

        Returns:
            A figure of matplotlib, without pyplot: ``report.plot().savefig("report.png")``.
        """
        from invreg.audit.figures import report_figure

        return report_figure(self)

    def plot_saliency(self) -> Figure:
        """Draws inputs and saliency maps over the orbit, for the samples that agree least and for typical ones.

        Returns:
            A figure of matplotlib; rows are samples, columns are elements. Maps are moved back to where they lie in the
            input, so that those of an invariant model are the same in each column.

        Raises:
            ValueError: The report has no maps: none were made, or it was made from a dictionary.
        """
        from invreg.audit.pictures import saliency_figure

        return saliency_figure(self)

    def to_html(self, path: str | Path, *, layers: LayersReport | None = None) -> None:
        """Writes the report as one page that needs neither network nor other files.

        Args:
            path: The file to write.
            layers: What ``measure_layers`` found for the same model, to be shown too.
        """
        from invreg.audit.page import write_page

        write_page(self, path, layers=layers)

    def to_markdown(self) -> str:
        """The report as Markdown text with tables."""
        from invreg.audit.text import markdown

        return markdown(self)

    def to_dataframe(self) -> Any:
        """The numbers of single samples as a pandas data frame, a row for each.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_dataframe needs pandas: pip install pandas. per_sample has the same columns."
            ) from error
        return pd.DataFrame(self.per_sample.columns)

    def to_dict(self, *, per_sample: bool = True) -> dict[str, Any]:
        """The report as plain dictionaries, lists, numbers and strings, with ``schema`` for the form's version.

        Args:
            per_sample: Whether to include the numbers of single samples and histograms, the largest part. Without them
                the report made by ``from_dict`` knows no quantiles and cannot be compared.

        Returns:
            What ``from_dict`` takes; docs/report_schema.md describes it.
        """
        state: dict[str, Any] = {"schema": SCHEMA, **plain(self)}
        if not per_sample:
            state |= {"per_sample": {}, "histograms": {}}
        return state

    def to_json(self, *, per_sample: bool = True) -> str:
        """The report as a JSON text; see ``InvarianceReport.to_dict``."""
        return json.dumps(self.to_dict(per_sample=per_sample), indent=2, allow_nan=False)

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
        report: InvarianceReport = made(cls, without_schema(state, SCHEMA, "report"), _READERS)
        return report

    def __str__(self) -> str:
        from invreg.audit.text import text

        return text(self)


_READERS: Readers = {
    "per_element": all_made(SliceReport),
    "per_class": all_made(SliceReport),
    "per_class_element": all_made(SliceReport),
    "worst_samples": all_made(WorstSample),
    "skipped_samples": all_made(SkippedSamples),
    "per_sample": SampleTable.from_plain,
    "histograms": lambda saved: {name: LogHistogram.from_plain(counts) for name, counts in saved.items()},
    "provenance": dict,
}
