"""How are samples and their saliency maps drawn?"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from invreg.audit.drawing import (
    FIRST,
    INK,
    NAMED,
    PAPER,
    SECOND,
    SOFT,
    THIRD,
    framed,
    frameless,
    in_digits,
    shortened,
)
from invreg.saliency import saliency_similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from invreg.audit.report import InvarianceReport
    from invreg.audit.samples import SaliencyExample

Array = npt.NDArray[np.float64]


_MOST_COLUMNS = 8
"""How many elements a row of saliency maps shows."""

_MOST_PAIRS = 12
"""How many of the least invariant samples are drawn."""

_CURVES = (("-", INK), ("--", FIRST), (":", SECOND), ("-.", THIRD))


def saliency_figure(report: InvarianceReport) -> Figure:
    """Draws saliency maps over orbits; see ``InvarianceReport.plot_saliency``."""
    from matplotlib.figure import Figure

    examples = report.saliency_examples
    if not examples:
        raise ValueError(
            "This report has no saliency maps to draw: audit with saliency=SaliencyMap(), and plot the report that the "
            "audit returned, since dictionaries and JSON keep no maps."
        )
    least = [one for position, one in enumerate(examples) if _is_least(position, examples)]
    typical = list(examples[len(least) :])
    columns = max(min(len(one.names), _MOST_COLUMNS) for one in examples)
    beside = 2 if columns <= 4 and typical else 1  # the least alike on the left, typical ones on the right
    rows = [[*pair] for pair in zip_longest(least, typical)] if beside == 2 else [[one] for one in examples]
    width = max(1.2 * columns, 2.8) + 0.4
    cell = (width - 0.5) / columns - 0.1
    heights = [max(2 * cell * _proportion(one) + 0.85 for one in row if one) for row in rows]
    size = max(width * beside, 5.2), sum(heights) + 0.75
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    title = textwrap.fill(f"Where {report.model} looks under {report.group}", int(size[0] * 9))
    note = "Below each input its map, moved back onto the untransformed input: the more alike in a row, the better."
    figure.suptitle(title, size=12, weight="bold", color=INK, x=0.01, ha="left", **NAMED)
    figure.supxlabel(textwrap.fill(note, int(size[0] * 13)), size=9, color=SOFT)
    subfigures = figure.subfigures(len(rows), beside, squeeze=False, height_ratios=heights)
    for subfigure, one in zip(subfigures.flat, (one for row in rows for one in row), strict=True):
        subfigure.set_facecolor(PAPER)
        if one is not None:
            _orbit(subfigure, one, columns, "Typical" if any(one is other for other in typical) else "Least alike")
    return figure


def worst_figure(report: InvarianceReport) -> Figure | None:
    """Draws the least invariant samples before and after the element that changes them most.

    Args:
        report: A report whose ``worst_samples`` have inputs.

    Returns:
        A figure of matplotlib; None where no sample has an input that can be shown as an image or curve.
    """
    from matplotlib.figure import Figure

    shown = [
        (one, before, after)
        for one in report.worst_samples
        if one.input is not None and one.transformed is not None
        for before, after in [_seen(one.input, one.transformed)]
        if before is not None and after is not None
    ][:_MOST_PAIRS]
    if not shown:
        return None
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.75 * columns, 2.15 * rows), layout="constrained", facecolor=PAPER)
    subfigures = figure.subfigures(rows, columns, squeeze=False).flat
    for (one, before, after), subfigure in zip(shown, subfigures, strict=False):
        title = f"sample {one.index}" if one.source is None else shortened(one.source, 32)
        title += "" if one.label is None else f", class {one.label}"
        subfigure.suptitle(f"{title}\nLI {in_digits(one.logit_error, 4)}", size=9, color=INK)
        left, right = subfigure.subplots(1, 2)
        _picture(left, before)
        _picture(right, after)
        left.set_title("as it is", size=8, color=SOFT)
        right.set_title(shortened(one.name), size=8, color=SOFT, **NAMED)
        changed = one.prediction != one.transformed_prediction
        for axis, prediction in ((left, one.prediction), (right, one.transformed_prediction)):
            if prediction is not None:
                axis.set_xlabel(
                    f"predicted {prediction}",
                    size=9,
                    color=SECOND if changed else INK,
                    weight="bold" if changed and axis is right else "normal",
                )
    for subfigure in [*figure.subfigs][len(shown) :]:
        subfigure.set_facecolor(PAPER)
    return figure


@dataclass(frozen=True)
class _Picture:
    """An input as it can be shown.

    Args:
        values: ``(H, W)`` or ``(H, W, 3)`` between 0 and 1; ``(C, T)`` for curves.
        curves: Whether they are curves.
    """

    values: Array
    curves: bool = False


def _is_least(position: int, examples: Sequence[SaliencyExample]) -> bool:
    """Whether an example is one of those with the least similarity: up to two come first, no more than half."""
    return position < min(2, math.ceil(len(examples) / 2))


def _proportion(example: SaliencyExample) -> float:
    """The height of a picture in widths."""
    pictures, _, kind = _shown(example.inputs[:1], example.maps[:1])
    return min(max(pictures.shape[1] / pictures.shape[2], 0.4), 2.5) if kind == "image" else 0.85


def _orbit(figure: SubFigure, example: SaliencyExample, columns: int, role: str) -> None:
    """The inputs of one orbit, and below them their maps on the first input."""
    count = len(example.names)
    chosen = [index * count // min(count, columns) for index in range(min(count, columns))]
    what = f"{role}: sample {example.index}" + ("" if example.target is None else f", class {example.target}")
    left = f" ({len(chosen)} of {count} elements shown)" if len(chosen) < count else ""
    title = f"{what}; similarity {example.similarity:.2f}{left}"
    figure.suptitle(title, size=10, color=INK, x=0.01, ha="left")
    axes = figure.subplots(2, columns, squeeze=False)
    inputs, maps, kind = _shown(example.inputs, example.maps)
    similarity = saliency_similarity(example.maps[:1].expand_as(example.maps).flatten(1), example.maps.flatten(1))
    for column, (top, bottom) in enumerate(axes.T):
        if column >= len(chosen):
            top.set_axis_off()
            bottom.set_axis_off()
            continue
        index = chosen[column]
        top.set_title(shortened(example.names[index], 16), size=8.5, color=INK, **NAMED)
        bottom.set_xlabel("reference" if index == 0 else f"{similarity[index]:.2f}", size=8.5, color=INK)
        if kind == "image":
            _picture(top, _Picture(inputs[index]))
            _overlay(bottom, inputs[0], maps[index])
        elif kind == "curves":
            _picture(top, _Picture(inputs[index], curves=True), (inputs.min(), inputs.max()))
            _shaded(bottom, inputs[0], maps[index])
        else:
            _bars(top, inputs[index], float(inputs.min()), float(inputs.max()))
            _bars(bottom, maps[index], 0.0, float(maps.max()))
    axes[0, 0].set_ylabel("input", size=8.5, color=INK)
    axes[1, 0].set_ylabel("map", size=8.5, color=INK)


def _shown(inputs: Tensor, maps: Tensor) -> tuple[Array, Array, str]:
    """Inputs and maps of an orbit in the form in which they are drawn, and which that is."""
    values, where = (_array(tensor) for tensor in (inputs, maps))
    while values.ndim > 4:  # volumes are looked through along their first axis in space
        values, where = values.mean(2), where.mean(2 if where.ndim > 4 else 1)
    last = where.shape[-1] == 1 and values.shape[-1] > 1
    if values.ndim == 4:
        if last:
            values, where = np.moveaxis(values, -1, 1), np.moveaxis(where, -1, 1)
        if where.ndim == 4:
            where = where.mean(1)
        return _as_images(values), where, "image"
    if values.ndim == 3 and not last:
        if where.shape == values.shape and min(values.shape[1:]) >= 8:
            return _as_images(values[:, None]), where, "image"
        if where.shape[1] == 1 or where.shape[1] <= where.shape[2]:
            return values, where.mean(1), "curves"
    if values.ndim == 3:
        return np.linalg.norm(values, axis=-1), where.mean(-1), "bars"
    return values.reshape(len(values), -1), where.reshape(len(where), -1), "bars"


def _seen(before: Tensor, after: Tensor) -> tuple[_Picture, _Picture] | tuple[None, None]:
    """Two inputs as pictures on one scale; None where they are none."""
    if before.shape != after.shape:
        return None, None
    values = np.stack([_array(before), _array(after)])
    if values.ndim == 4:
        if values.shape[1] > 4 >= values.shape[-1]:
            values = np.moveaxis(values, -1, 1)
        pictures = _as_images(values)
        return _Picture(pictures[0]), _Picture(pictures[1])
    if values.ndim == 3 and min(values.shape[1:]) >= 8:
        pictures = _as_images(values[:, None])
        return _Picture(pictures[0]), _Picture(pictures[1])
    if values.ndim == 3 and values.shape[1] < values.shape[2]:
        return _Picture(values[0], curves=True), _Picture(values[1], curves=True)
    return None, None


def _array(tensor: Tensor) -> Array:
    """Finite numbers; complex ones by their size."""
    numbers = tensor.detach().cpu()
    found: Array = (numbers.abs() if numbers.is_complex() else numbers).double().numpy()
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def _as_images(values: Array) -> Array:
    """``(E, C, H, W)`` as grey or coloured images between 0 and 1, on one scale."""
    low, high = values.min(), values.max()
    values = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.moveaxis(values, 1, -1) if values.shape[1] == 3 else values.mean(1)


def _picture(axis: Axes, picture: _Picture, limits: tuple[float, float] | None = None) -> None:
    axis.set(xticks=[], yticks=[])
    if not picture.curves:
        axis.imshow(picture.values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        frameless(axis)
        return
    for channel, (line, colour) in zip(picture.values[:4], _CURVES, strict=False):
        axis.plot(channel, linestyle=line, color=colour, linewidth=1)
    if limits is not None and limits[1] > limits[0]:
        axis.set_ylim(*limits)
    framed(axis)


def _overlay(axis: Axes, image: Array, where: Array) -> None:
    """A map in dark red on the pale image."""
    from matplotlib.colors import ListedColormap

    grey = image.mean(-1) if image.ndim == 3 else image
    height, width = grey.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.set(xticks=[], yticks=[])
    axis.imshow(0.72 + 0.28 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    strength = np.clip(where / where.max(), 0, 1) if where.max() > 0 else np.zeros_like(where)
    red = ListedColormap(["#8b0000"])
    axis.imshow(np.zeros_like(where), cmap=red, alpha=strength, interpolation="nearest", extent=extent)
    frameless(axis)


def _shaded(axis: Axes, signal: Array, where: Array) -> None:
    """A map as an area under the pale signal."""
    _picture(axis, _Picture(signal, curves=True))
    for line in axis.get_lines():
        line.set_alpha(0.35)
    low, high = axis.get_ylim()
    strength = where / where.max() if where.max() > 0 else np.zeros_like(where)
    positions = np.linspace(0, signal.shape[-1] - 1, len(where))
    top = low + (high - low) * np.clip(strength, 0, 1)
    axis.fill_between(positions, low, top, color=SECOND, alpha=0.75, linewidth=0)
    axis.set_ylim(low, high)


def _bars(axis: Axes, values: Array, low: float, high: float) -> None:
    axis.set(xticks=[], yticks=[])
    if len(values) <= 100:
        axis.bar(range(len(values)), values, 1.0, facecolor=FIRST, edgecolor=PAPER, linewidth=0.3)
    else:
        axis.fill_between(range(len(values)), 0, values, color=FIRST, step="mid", linewidth=0)
    bottom, top = min(low, 0.0), max(high, 0.0)
    axis.set_ylim(bottom, top if top > bottom else bottom + 1)
    framed(axis)
