"""What is known of each sample?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from invreg.audit.plain import NOT_SAVED

Column = npt.NDArray[Any]

WHOLE_NUMBERS = ("index", "label", "prediction", "worst_element")
"""The columns of a table of samples that hold whole numbers; -1 where there is none."""


@dataclass(frozen=True)
class WorstSample:
    """One of the samples that a model treats least alike, under the element that moves its logits most.

    Args:
        index: Its position in the data, from 0.
        element: The element: its index, or the numbers that it consists of.
        name: The element in words, such as "90°".
        logit_error: As in ``InvarianceReport``, of this sample under this element; so are the next two.
        distribution_error: In nats; None for outputs that are no logits.
        normalized_logit_error: No unit.
        label: Its class; None without labels, or with a label per position.
        prediction: The class predicted at the identity; None for outputs per position or that are no logits.
        transformed_prediction: The class predicted under the element.
        source: Where it comes from, such as a file; None where nobody said.
        input: The input at the identity, without batch axis, on the CPU. None for inputs of several tensors and in
            reports made from a dictionary.
        transformed: The input under the element, likewise; None too for a random transform.
    """

    index: int
    element: int | tuple[float, ...]
    name: str
    logit_error: float
    distribution_error: float | None
    normalized_logit_error: float
    label: int | None
    prediction: int | None
    transformed_prediction: int | None
    source: str | None = None
    input: Tensor | None = field(default=None, compare=False, repr=False, metadata=NOT_SAVED)
    transformed: Tensor | None = field(default=None, compare=False, repr=False, metadata=NOT_SAVED)


@dataclass(frozen=True)
class SaliencyExample:
    """The saliency maps of one sample over its orbit.

    Args:
        index: Its position in the data, from 0.
        similarity: Its saliency similarity, averaged over the elements.
        target: The class explained; None for a single logit.
        names: The elements in words, the identity first; ``E`` of them.
        inputs: The inputs under these elements, ``(E, ...)``, on the CPU.
        maps: The maps at these inputs, moved back to where they lie in the input at the identity, ``(E, ...)``.
    """

    index: int
    similarity: float
    target: int | None
    names: tuple[str, ...]
    inputs: Tensor
    maps: Tensor


@dataclass(frozen=True)
class SkippedSamples:
    """Samples that were left out, and why.

    Args:
        index: Position of the first of them in the data, from 0.
        count: How many; None for a batch whose size is not known, because the loader did not yield it.
        reason: What failed.
    """

    index: int
    count: int | None
    reason: str


class SampleTable:
    """Numbers of single samples, a row for each: ``table["logit_error"]`` is a column, a numpy array.

    Args:
        columns: The columns by name, all of one length. ``index`` is the position in the data; numbers that were not
            measured are NaN.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns["index"]) if self.columns else 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SampleTable)
            and self.columns.keys() == other.columns.keys()
            and all(np.array_equal(self[n], other[n], equal_nan=self[n].dtype.kind == "f") for n in self.columns)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def __repr__(self) -> str:
        return f"SampleTable({len(self)} samples: {', '.join(self.columns)})"

    def plain(self) -> dict[str, list[Any]]:
        """The columns as lists; None for NaN."""
        return {name: _listed(column) for name, column in self.columns.items()}

    @classmethod
    def from_plain(cls, columns: Mapping[str, list[Any]]) -> SampleTable:
        """What ``plain`` told."""
        return cls({name: _array(name, values) for name, values in columns.items()})

    def taken(self, rows: Any) -> SampleTable:
        """Some of the rows: a slice, indices or a mask."""
        return SampleTable({name: column[rows] for name, column in self.columns.items()})


def _listed(column: Column) -> list[Any]:
    return [None if value != value else value for value in column.tolist()]


def _array(name: str, values: list[Any]) -> Column:
    if name in WHOLE_NUMBERS:
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
