"""Does invariance hold when the data drift?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invreg.audit.batches import check_loader, loaded
from invreg.audit.estimate import Estimate
from invreg.audit.measure import measure_invariance
from invreg.audit.plain import made, plain, without_schema
from invreg.audit.report import InvarianceReport
from invreg.audit.text import aligned
from invreg.functional import Model
from invreg.groups import Transformations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
"""Version of the dictionary and JSON form."""


_FORMS = ("o-", "s--", "^:", "D-.", "v-", "x--")
"""Markers and lines, which can be told apart in grey."""


@dataclass(frozen=True)
class DriftReport:
    """How invariance and accuracy change as data drift from a source to a target. Made by ``measure_drift``.

    Args:
        betas: The shares of the target in the data, the first one 0.
        reports: What the audit found for each; without saliency maps.
        accuracy_ratios: Group accuracy for each, relative to that without drift; standard errors are those of a ratio
            of paired samples. None without labels, or where the model is never right without drift.
    """

    betas: tuple[float, ...]
    reports: tuple[InvarianceReport, ...]
    accuracy_ratios: tuple[Estimate | None, ...]

    def plot(self, *others: DriftReport) -> Figure:
        """Draws the distribution error and the accuracy ratio over the share of the target.

        Args:
            others: Reports of other models, to be drawn beside this one.

        Returns:
            A figure of matplotlib, without pyplot.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        drawn = (self, *others)
        names = [one.reports[0].model for one in drawn]
        for number, (one, name) in enumerate(zip(drawn, names, strict=True)):
            label = name if names.count(name) == 1 else f"{name} ({number + 1})"
            form = _FORMS[number % len(_FORMS)]
            _draw(left, one.betas, [report.distribution_error for report in one.reports], form, label)
            _draw(right, one.betas, one.accuracy_ratios, form, label)
        left.set_ylabel("distribution error (DI), nats")
        right.set_ylabel("group accuracy, relative to β = 0")
        for axes in (left, right):
            axes.set_xlabel("β, share of the target in each input")
            axes.set_ylim(bottom=0)
            if axes.containers:
                axes.legend(fontsize="small", title="± two standard errors", title_fontsize="small")
        figure.suptitle(f"Drift under {self.reports[0].group}", fontsize="medium")
        return figure

    def to_dict(self, *, per_sample: bool = True) -> dict[str, Any]:
        """The report as plain dictionaries, lists, numbers and strings, with ``schema`` for the form's version.

        Args:
            per_sample: As in ``InvarianceReport.to_dict``.

        Returns:
            What ``from_dict`` takes.
        """
        reports = [one.to_dict(per_sample=per_sample) for one in self.reports]
        return {"schema": SCHEMA, **plain(self), "reports": reports}

    def to_json(self, *, per_sample: bool = True) -> str:
        """The report as a JSON text; see ``DriftReport.to_dict``."""
        return json.dumps(self.to_dict(per_sample=per_sample), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> DriftReport:
        """Makes the report that ``to_dict`` described.

        Args:
            state: What ``to_dict`` returned, or the same read from JSON.

        Returns:
            An equal report.

        Raises:
            ValueError: The dictionary has another schema or other fields.
        """
        values = without_schema(state, SCHEMA, "drift report")
        report: DriftReport = made(cls, values, {"reports": _reports, "accuracy_ratios": _ratios})
        return report

    def __str__(self) -> str:
        first = self.reports[0]
        names = (("LI", "logit_error"), ("DI", "distribution_error"), ("consistency", "consistency"))
        rows: list[tuple[str, ...]] = [("β", *(name for name, _ in names), "group accuracy", "relative to β = 0")]
        for beta, report, ratio in zip(self.betas, self.reports, self.accuracy_ratios, strict=True):
            found = (*(getattr(report, of) for _, of in names), report.group_accuracy, ratio)
            rows.append((f"{beta:g}", *("-" if one is None else str(one) for one in found)))
        return "\n".join(
            [
                f"Drift of {first.model} under {first.group}",
                f"{first.samples} samples, (1 - β) · source + β · target; value ± standard error over samples",
                "",
                *aligned(rows),
            ]
        )


def measure_drift(
    model: Model,
    source: Iterable[Any],
    target: Iterable[Any],
    group: Transformations,
    betas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    samples: int | None = None,
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    input_key: str = "inputs",
    label_key: str = "labels",
    progress: bool = True,
) -> DriftReport:
    r"""Measures how invariance and accuracy change as inputs of a source are blended with those of a target.

    .. math:: D(\beta) = (1 - \beta) \cdot \text{source} + \beta \cdot \text{target}

    The first input of the source is blended with the first of the target, and so on, as many as both have; labels are
    the source's. Both loaders are gone through once for each beta, and must give the same samples in the same order
    each time.

    Args:
        model: As in ``measure_invariance``.
        source: A loader of the data that the model was made for, as in ``measure_invariance``.
        target: A loader of the data to drift to, whose inputs have the same shape; its labels are not looked at. The
            batches of the two need not be of one size.
        group: The group, or a ``TransformationSet``.
        betas: Shares of the target, between 0 and 1; 0 comes first and is added if it is missing.
        samples: As in ``measure_invariance``; so are the others.
        rng: Where drawn elements come from, the same ones for each beta.
        device: Where to move the batches.
        input_key: Where a mapping has the inputs.
        label_key: Where a mapping has the labels.
        progress: Whether to show a progress bar.

    Returns:
        A report for each beta, and the ratio of accuracies.

    Raises:
        TypeError: A loader can be gone through once only, or inputs are no tensors.
        ValueError: A beta is not between 0 and 1, the inputs have different shapes, or a loader gave other labels than
            before.

    Source: Moskalev et al. (2023), figure 4.

    Example:
        >>> from invreg import Flip
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> source = [(torch.randn(8, 1, 2, 2), torch.randint(3, (8,)))]
        >>> drift = measure_drift(model, source, [torch.randn(8, 1, 2, 2)], Flip(), betas=(0, 0.5, 1))
        >>> drift.betas, len(drift.reports)
        ((0.0, 0.5, 1.0), 3)
    """
    if isinstance(betas, str) or not isinstance(betas, Iterable) or not all(isinstance(b, (int, float)) for b in betas):
        raise TypeError(f"betas must be a list of numbers, e.g. (0, 0.5, 1): got {betas!r}.")
    shares = tuple(float(beta) for beta in betas)
    if wrong := [beta for beta in shares if not 0 <= beta <= 1]:
        raise ValueError(f"betas must be between 0 and 1: got {wrong[0]}.")
    for name, loader in (("source", source), ("target", target)):
        check_loader(loader)
        if isinstance(loader, Iterator):
            raise TypeError(
                f"{name} is gone through once for each beta: got a {type(loader).__name__}, which can be gone through "
                "once. Give a list or a DataLoader."
            )
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    start = rng.get_state()
    reports: list[InvarianceReport] = []
    begins: list[Tensor] = []
    for beta in dict.fromkeys((0.0, *shares)):
        rng.set_state(start)
        blend = Blend(source, target, beta, input_key, label_key)
        report = measure_invariance(
            model,
            blend,
            group,
            saliency=None,
            samples=samples,
            rng=rng,
            device=device,
            progress=progress,
        )
        begins = begins or blend.begins
        if not all(map(torch.equal, begins, blend.begins)) or (reports and not _same_labels(reports[0], report)):
            raise ValueError(
                "source and target must give the same samples in the same order each time: they have changed. Do not "
                "shuffle them."
            )
        reports.append(report)
    ratios = tuple(_ratio(reports[0], report) for report in reports)
    return DriftReport(tuple(dict.fromkeys((0.0, *shares))), tuple(reports), ratios)


class Blend:
    """Batches of the source, each input blended with one of the target."""

    def __init__(
        self, source: Iterable[Any], target: Iterable[Any], beta: float, input_key: str, label_key: str
    ) -> None:
        self.source, self.target, self.beta = source, target, beta
        self.keys: dict[str, Any] = {"input_key": input_key, "label_key": label_key}
        self.begins: list[Tensor] = []  # the first input of the source and that of the target

    def __iter__(self) -> Iterator[Any]:
        others = self._targets()
        left = torch.empty(0)
        for inputs, labels, _ in loaded(self.source, device=None, progress=False, **self.keys):
            if not isinstance(inputs, Tensor):
                raise TypeError(f"Inputs to be blended must be one tensor: got {type(inputs).__name__}.")
            parts = [left] if len(left) else []
            while sum(map(len, parts)) < len(inputs) and (more := next(others, None)) is not None:
                parts.append(more)
            left = torch.cat(parts) if parts else left
            rows = min(len(inputs), len(left))
            if not rows:
                return
            blended, left = left[:rows], left[rows:]
            if blended.shape[1:] != inputs.shape[1:]:
                raise ValueError(
                    f"Inputs of source and target must have one shape: got {tuple(inputs.shape[1:])} and "
                    f"{tuple(blended.shape[1:])}. Resize or pad one of them in its loader."
                )
            self.begins = self.begins or [inputs[0].clone(), blended[0].clone()]
            mixed = inputs[:rows] if self.beta == 0 else torch.lerp(inputs[:rows], blended.to(inputs), self.beta)
            yield (mixed,) if labels is None else (mixed, labels[:rows])

    def _targets(self) -> Iterator[Tensor]:
        for inputs, _, _ in loaded(self.target, device=None, progress=False, **self.keys):
            if not isinstance(inputs, Tensor):
                raise TypeError(f"Inputs to be blended must be one tensor: got {type(inputs).__name__}.")
            yield inputs


def _reports(saved: Iterable[dict[str, Any]]) -> tuple[InvarianceReport, ...]:
    return tuple(map(InvarianceReport.from_dict, saved))


def _ratios(saved: Iterable[dict[str, Any] | None]) -> tuple[Estimate | None, ...]:
    return tuple(None if one is None else made(Estimate, one) for one in saved)


def _same_labels(first: InvarianceReport, second: InvarianceReport) -> bool:
    if first.samples != second.samples or "label" not in first.per_sample:
        return first.samples == second.samples
    return np.array_equal(first.per_sample["label"], second.per_sample["label"])


def _ratio(first: InvarianceReport, second: InvarianceReport) -> Estimate | None:
    """The ratio of group accuracies, and its standard error to first order."""
    if first.group_accuracy is None or second.group_accuracy is None or first.group_accuracy.mean == 0:
        return None
    ratio = second.group_accuracy.mean / first.group_accuracy.mean
    a, b = (report.per_sample["group_accuracy"] for report in (first, second))
    error = None
    if len(a) > 1:
        spread = float(np.std(b - ratio * a, ddof=1))
        error = spread / first.group_accuracy.mean / math.sqrt(first.samples)
    return Estimate(ratio, error, second.group_accuracy.count)


def _draw(axes: Any, betas: Sequence[float], values: Sequence[Estimate | None], form: str, label: str) -> None:
    """Draws estimates with twice their standard errors."""
    known = [(beta, value) for beta, value in zip(betas, values, strict=True) if value is not None]
    if known:
        axes.errorbar(
            [beta for beta, _ in known],
            [value.mean for _, value in known],
            yerr=[2 * (value.standard_error or 0.0) for _, value in known],
            fmt=form,
            capsize=3,
            label=label,
        )
