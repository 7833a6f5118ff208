"""Where in the data are the samples of a report?"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from invreg.audit.report import InvarianceReport, SliceReport
from invreg.audit.samples import SaliencyExample, SampleTable, SkippedSamples, WorstSample
from invreg.cli.data import Samples

_Of = TypeVar("_Of", WorstSample, SkippedSamples, SaliencyExample)


def in_the_data(report: InvarianceReport, samples: Samples) -> InvarianceReport:
    """The report with each sample's position in the data, where the audit knew its turn in an order that was drawn."""
    order = samples.order.numpy()

    def moved(parts: tuple[_Of, ...]) -> tuple[_Of, ...]:
        return tuple(replace(one, index=int(order[one.index])) for one in parts)

    table = report.per_sample
    if len(table):
        table = SampleTable({**table.columns, "index": order[table["index"]]})
        table = table.taken(np.argsort(table["index"], kind="stable"))

    def named(parts: tuple[SliceReport, ...]) -> tuple[SliceReport, ...]:
        names = samples.class_names
        known = {label: f"class {label} ({name})" for label, name in names.items() if name != str(label)}
        return tuple(
            replace(one, name=one.name.replace(f"class {one.label}", known[one.label], 1))
            if one.label in known
            else one
            for one in parts
        )

    worst = moved(report.worst_samples)
    if samples.files is not None:
        worst = tuple(replace(one, source=str(samples.files[one.index])) for one in worst)
    return replace(
        report,
        per_class=named(report.per_class),
        per_class_element=named(report.per_class_element),
        worst_samples=worst,
        skipped_samples=moved(report.skipped_samples),
        saliency_examples=moved(report.saliency_examples),
        per_sample=table,
        provenance={**report.provenance, "data": str(samples)},
    )
