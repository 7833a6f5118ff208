"""What have the samples seen so far shown?"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from invreg.audit.estimate import Estimate
from invreg.audit.evaluate import Measured
from invreg.audit.histogram import LogHistogram
from invreg.audit.moments import Moments
from invreg.audit.report import WITH_QUANTILES
from invreg.audit.samples import WHOLE_NUMBERS, SaliencyExample, SampleTable, SkippedSamples, WorstSample
from invreg.groups import Group, IndexedTransformations, Transformations

Array = npt.NDArray[np.float64]

OF_ELEMENT = (
    "logit_error",
    "distribution_error",
    "normalized_logit_error",
    "saliency_similarity",
    "accuracy",
    "consistency",
    "action_error",
    "action_logit_error",
)
"""The numbers that each element has."""

OVER_SAMPLES = (
    *OF_ELEMENT,
    "worst_logit_error",
    "group_accuracy",
    "orbit_accuracy",
    "noise_error",
    "noise_excess",
    "noise_consistency",
)
"""The numbers that each sample has."""

_OF_IDENTITY = {"saliency_similarity": 1.0, "consistency": 1.0}
"""What the identity gives where it does not give zero."""

_MOST_CELLS = 100_000
"""For how many pairs of a class and an element numbers are kept."""

_MOST_TABLES = 64
"""How many tables of samples, one for each batch, are put together at the latest."""

_MOST_SKIPPED = 1_000
"""How many entries the list of skipped samples has."""

_TYPICAL = 4
"""From how many samples the typical ones are taken whose maps are shown."""

_SHOWN = 2
"""How many samples' maps are shown of either kind."""


class Tally:
    """Sums over all samples seen, and a bounded number of single ones; mergeable, and a dictionary when saved.

    Neither the order nor the batches in which samples come change it beyond rounding.

    Args:
        group: What the samples are measured under.
        worst_samples: How many of the least invariant samples are kept.
        kept_samples: Of how many samples, those of least index, the numbers are kept.
    """

    def __init__(self, group: Transformations, *, worst_samples: int, kept_samples: int) -> None:
        self.group = group
        self.worst_samples = worst_samples
        self.kept_samples = kept_samples
        self.samples = 0
        self.elements = 0
        self.classes = 0
        self.labelled = False
        self.gap = np.zeros(2)
        self.overall = Moments(len(OVER_SAMPLES))
        self.by_element = Moments(len(OF_ELEMENT) * self._order)
        self.by_class = Moments(0)
        self.by_cell = Moments(0)
        self.histograms: dict[str, LogHistogram] = {}
        self.worst: list[WorstSample] = []
        self.skipped: list[SkippedSamples] = []
        self.skipped_count = 0
        self.examples: list[SaliencyExample] = []
        self._kept: list[SampleTable] = []
        self._kept_rows = 0

    @property
    def _order(self) -> int:
        """How many elements have numbers of their own."""
        return self.group.order if isinstance(self.group, IndexedTransformations) else 0

    @property
    def table(self) -> SampleTable:
        """The numbers of the samples that are kept."""
        self._settle()
        return self._kept[0] if self._kept else SampleTable({})

    def add(self, found: Measured | SkippedSamples) -> None:
        """Adds what a batch showed, or notes samples that were left out."""
        if isinstance(found, SkippedSamples):
            self.skipped_count += found.count or 0
            self.skipped = [*self.skipped, found][:_MOST_SKIPPED]
        else:
            self._add(found)

    def _add(self, measured: Measured) -> None:
        rows = len(measured.indices)
        names = [name for name in OF_ELEMENT if name in measured.by_element]
        values = torch.stack([measured.by_element[name] for name in names]).cpu().numpy()  # (V, K, N)
        elements = values.shape[1]
        columns = dict(zip(names, _averages(names, values), strict=True))
        at_samples = list(measured.over_samples)
        if at_samples:
            found = torch.stack([measured.over_samples[name].double() for name in at_samples]).cpu().numpy()
            columns |= dict(zip(at_samples, found, strict=True))
        errors = values[names.index("logit_error")]
        worst = errors.argmax(0) if elements else np.zeros(rows, dtype=np.int64)
        columns["worst_logit_error"] = errors.max(0) if elements else np.zeros(rows)

        self._reserve(measured.classes)  # which may raise, and then nothing was added
        self.samples += rows
        self.elements = max(self.elements, elements)
        self.labelled = self.labelled or "accuracy" in columns
        self.gap += measured.gap.cpu().numpy()
        of_class = measured.predictions if measured.labels is None else measured.labels
        classes = None if of_class is None else of_class.cpu().numpy()
        self._add_moments(names, values, columns, measured, classes)
        self._add_rows(columns, measured, worst)
        self._add_worst(measured, errors, worst)
        self._add_examples(measured, columns.get("saliency_similarity"))

    def merge(self, other: Tally) -> None:
        """Adds what another one has seen of other samples."""
        if self.samples and other.samples and self.labelled != other.labelled:
            raise ValueError("Audits to be put together must all have labels, or none: one has them, another has not.")
        table = other.table  # first, as this counts in the histograms what is too much for it
        self._reserve(other.classes)  # which may raise, and then nothing was added
        other._reserve(self.classes)
        self.samples += other.samples
        self.elements = max(self.elements, other.elements)
        self.labelled = self.labelled or other.labelled
        self.gap += other.gap
        for name in ("overall", "by_element", "by_class", "by_cell"):
            getattr(self, name).merge(getattr(other, name))
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, LogHistogram()).merge(histogram)
        self.worst = _least_invariant([*self.worst, *other.worst], self.worst_samples)
        self.skipped = sorted([*self.skipped, *other.skipped], key=lambda one: one.index)[:_MOST_SKIPPED]
        self.skipped_count += other.skipped_count
        self.examples = _worth_showing([*self.examples, *other.examples])
        self._keep(table)
        self._settle()

    def estimate(self, name: str) -> Estimate | None:
        """A number over all samples; None if it was not measured."""
        return self.overall.estimate(OVER_SAMPLES.index(name))

    def of_element(self, element: int) -> dict[str, Estimate | None]:
        """The numbers under an element."""
        return {name: self.by_element.estimate(i * self._order + element) for i, name in enumerate(OF_ELEMENT)}

    def of_class(self, label: int) -> dict[str, Estimate | None]:
        """The numbers of a class."""
        return {name: self.by_class.estimate(i * self.classes + label) for i, name in enumerate(OVER_SAMPLES)}

    @property
    def has_cells(self) -> bool:
        """Whether there are numbers of classes under elements, and not too many such pairs."""
        return len(self.by_cell.count) > 0

    def of_cell(self, label: int, element: int) -> dict[str, Estimate | None]:
        """The numbers of a class under an element."""
        cells = self.classes * self._order
        return {
            name: self.by_cell.estimate(i * cells + label * self._order + element) for i, name in enumerate(OF_ELEMENT)
        }

    def shown_examples(self) -> tuple[SaliencyExample, ...]:
        """The samples whose maps agree least, then those that are most like the median."""
        if not self.examples:
            return ()
        least = sorted(self.examples, key=lambda one: (one.similarity, one.index))[:_SHOWN]
        table = self.table
        column = table["saliency_similarity"] if "saliency_similarity" in table else np.empty(0)
        known = column[~np.isnan(column)]
        middle = float(np.median(known)) if len(known) else least[-1].similarity
        others = [one for one in self.examples if one not in least]
        typical = sorted(others, key=lambda one: (abs(one.similarity - middle), one.index))[:_SHOWN]
        return (*least, *typical)

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, numbers, strings, lists and dictionaries."""
        table = self.table  # first, as this counts in the histograms what is too much for it
        state: dict[str, Any] = {
            name: getattr(self, name) for name in ("samples", "elements", "classes", "labelled", "skipped_count")
        }
        state["gap"] = torch.from_numpy(self.gap.copy())
        for name in ("overall", "by_element", "by_class", "by_cell"):
            state[name] = torch.from_numpy(getattr(self, name).array())
        state["histograms"] = {name: dict(one.counts) for name, one in self.histograms.items()}
        state["table"] = {name: torch.from_numpy(column) for name, column in table.columns.items()}
        state["worst"] = [vars(one) for one in self.worst]
        state["skipped"] = [asdict(one) for one in self.skipped]
        state["examples"] = [vars(one) for one in self.examples]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes what ``state_dict`` described."""
        for name in ("samples", "elements", "classes", "labelled", "skipped_count"):
            setattr(self, name, state[name])
        self.gap = state["gap"].numpy().copy()
        for name in ("overall", "by_element", "by_class", "by_cell"):
            setattr(self, name, Moments.from_array(state[name].numpy()))
        self.histograms = {name: LogHistogram(counts) for name, counts in state["histograms"].items()}
        table = SampleTable({name: column.numpy() for name, column in state["table"].items()})
        self._kept, self._kept_rows = [table] if len(table) else [], len(table)
        self.worst = [WorstSample(**one) for one in state["worst"]]
        self.skipped = [SkippedSamples(**one) for one in state["skipped"]]
        self.examples = [SaliencyExample(**one) for one in state["examples"]]

    def shift(self, by: int) -> None:
        """Moves the positions of all samples on."""
        table = self.table
        if len(table):
            self._kept = [SampleTable({**table.columns, "index": table["index"] + by})]
        self.worst = [replace(one, index=one.index + by) for one in self.worst]
        self.skipped = [replace(one, index=one.index + by) for one in self.skipped]
        self.examples = [replace(one, index=one.index + by) for one in self.examples]

    def _reserve(self, classes: int) -> None:
        """Makes place for so many classes."""
        if classes > self.classes and not self.classes:
            self.classes = classes
            self.by_class = Moments(len(OVER_SAMPLES) * classes)
            if classes * self._order <= _MOST_CELLS:
                self.by_cell = Moments(len(OF_ELEMENT) * classes * self._order)
        if classes and classes != self.classes:
            raise ValueError(
                f"The model must tell the same classes apart throughout: got {self.classes} and {classes}."
            )

    def _add_moments(
        self,
        names: list[str],
        values: Array,
        columns: dict[str, Array],
        measured: Measured,
        classes: npt.NDArray[np.int64] | None,
    ) -> None:
        over = np.stack(list(columns.values()))
        places = np.array([OVER_SAMPLES.index(name) for name in columns])
        _add(self.overall, over, np.broadcast_to(places[:, None], over.shape))
        if classes is not None:
            _add(self.by_class, over, places[:, None] * self.classes + classes)
        if self._order and values.shape[1]:
            numbers = np.array([OF_ELEMENT.index(name) for name in names])[:, None, None]
            elements = measured.elements.cpu().numpy().reshape(values.shape[1], -1)  # (K, 1) or (K, N)
            _add(self.by_element, values, np.broadcast_to(numbers * self._order + elements, values.shape))
            if classes is not None and self.has_cells:
                cells = (numbers * self.classes + classes) * self._order + elements
                _add(self.by_cell, values, np.broadcast_to(cells, values.shape))

    def _add_rows(self, columns: dict[str, Array], measured: Measured, worst: npt.NDArray[np.int64]) -> None:
        rows = np.arange(len(measured.indices))
        whole = {"index": measured.indices.numpy(), "worst_element": np.full(len(rows), -1)}
        for name, given in (("label", measured.labels), ("prediction", measured.predictions)):
            if given is not None:
                whole[name] = given.cpu().numpy()
        if self._order and len(measured.elements):
            elements = measured.elements.cpu().numpy().reshape(len(measured.elements), -1)
            whole["worst_element"] = elements[worst, rows if elements.shape[1] > 1 else 0]
        self._keep(SampleTable({**whole, **columns}))

    def _keep(self, table: SampleTable) -> None:
        if len(table):
            self._kept.append(table)
            self._kept_rows += len(table)
        many = len(self._kept) > _MOST_TABLES
        if many or self._kept_rows > 2 * self.kept_samples:  # not at every batch, for it copies
            self._settle()

    def _settle(self) -> None:
        """Puts the tables together and counts those samples in the histograms that are too many."""
        if len(self._kept) == 1 and self._kept_rows <= self.kept_samples:
            return
        if not self._kept:
            return
        names = list(dict.fromkeys(name for table in self._kept for name in table.columns))
        columns = {
            name: np.concatenate(
                [
                    table[name] if name in table else np.full(len(table), -1 if name in WHOLE_NUMBERS else np.nan)
                    for table in self._kept
                ]
            )
            for name in names
        }
        table = SampleTable(columns)
        if not (np.diff(table["index"]) > 0).all():
            table = table.taken(np.argsort(table["index"], kind="stable"))
        others = table.taken(slice(self.kept_samples, None))
        for name in WITH_QUANTILES:
            if len(others) and name in others:
                self.histograms.setdefault(name, LogHistogram()).add(others[name])
        kept = table.taken(slice(None, self.kept_samples))
        self._kept, self._kept_rows = [kept] if len(kept) else [], len(kept)

    def _add_worst(self, measured: Measured, errors: Array, worst: npt.NDArray[np.int64]) -> None:
        if not len(errors) or not self.worst_samples:
            return
        largest = errors.max(0)
        full = len(self.worst) == self.worst_samples
        rows = np.argsort(-largest, kind="stable")[: self.worst_samples]
        entries = [
            self._worst_sample(measured, int(row), int(worst[row]))
            for row in rows
            if largest[row] > (self.worst[-1].logit_error if full else 0)
        ]
        self.worst = _least_invariant([*self.worst, *entries], self.worst_samples)

    def _worst_sample(self, measured: Measured, row: int, place: int) -> WorstSample:
        element = measured.elements[place]
        if element.ndim > len(self.group.element_shape):
            element = element[row]
        found = {name: float(values[place, row]) for name, values in measured.by_element.items()}
        inputs = measured.inputs
        one = inputs[row : row + 1] if isinstance(inputs, Tensor) else None
        moved = None if one is None else self._moved(element, one)
        return WorstSample(
            index=int(measured.indices[row]),
            element=int(element) if self._order else tuple(element.flatten().tolist()),
            name=self.group.describe(element),
            logit_error=found["logit_error"],
            distribution_error=found.get("distribution_error"),
            normalized_logit_error=found["normalized_logit_error"],
            label=None if measured.labels is None else int(measured.labels[row]),
            prediction=None if measured.predictions is None else int(measured.predictions[row]),
            transformed_prediction=None if measured.changed is None else int(measured.changed[place, row]),
            input=None if one is None else one[0].detach().cpu().clone(),
            transformed=None if moved is None else moved[0].detach().cpu().clone(),
        )

    def _moved(self, element: Tensor, one: Tensor) -> Tensor | None:
        """The input under the element; None under a random transform, since that was not what was measured."""
        moved = self.group.act(element, one)
        known = isinstance(self.group, Group) or torch.equal(moved, self.group.act(element, one))
        return moved if known else None

    def _add_examples(self, measured: Measured, similarities: Array | None) -> None:
        if measured.maps is None or similarities is None:
            return
        maps, drawn = measured.maps, measured.elements.ndim > 1 + len(self.group.element_shape)
        candidates = np.argsort(similarities[: maps.shape[1]], kind="stable")[:_SHOWN]
        first = np.arange(min(_TYPICAL, maps.shape[1]))
        found = []
        for row in {*candidates.tolist(), *first.tolist()}:
            x = measured.inputs[row : row + 1]
            elements = measured.elements[: len(maps) - 1]
            elements = elements[:, row] if drawn else elements
            moved = [self.group.act(g, x) for g in elements]
            found.append(
                SaliencyExample(
                    index=int(measured.indices[row]),
                    similarity=float(similarities[row]),
                    target=None if measured.targets is None else int(measured.targets[row]),
                    names=("identity", *(self.group.describe(g) for g in elements)),
                    inputs=torch.cat([x, *moved]).detach().cpu(),
                    maps=maps[:, row].detach().cpu().clone(),
                )
            )
        self.examples = _worth_showing([*self.examples, *found])


def _averages(names: list[str], values: Array) -> list[Array]:
    """The means over elements, ``(K, N)`` to ``(N,)`` for each name."""
    if values.shape[1]:
        return list(values.mean(1))
    return [np.full(values.shape[2], _OF_IDENTITY.get(name, 0.0)) for name in names]


def _add(moments: Moments, values: Array, bins: npt.NDArray[np.int64]) -> None:
    """Adds what is not NaN."""
    flat, places = values.ravel(), bins.ravel()
    measured = ~np.isnan(flat)
    moments.add(flat[measured], places[measured])


def _least_invariant(samples: list[WorstSample], most: int) -> list[WorstSample]:
    return sorted(samples, key=lambda one: (-one.logit_error, one.index))[:most]


def _worth_showing(examples: list[SaliencyExample]) -> list[SaliencyExample]:
    """The first ones and those whose maps agree least."""
    found = {one.index: one for one in examples}
    first = sorted(found)[:_TYPICAL]
    least = sorted(found, key=lambda index: (found[index].similarity, index))[:_SHOWN]
    return [found[index] for index in sorted({*first, *least})]
