"""How are the numbers of a report drawn?"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from invreg.audit.drawing import (
    FILL,
    FIRST,
    INK,
    KEEP,
    NAMED,
    PAPER,
    SECOND,
    SOFT,
    THIRD,
    frameless,
    gridded,
    in_digits,
    shortened,
    with_error,
)
from invreg.audit.estimate import Estimate
from invreg.audit.histogram import LogHistogram
from invreg.audit.text import counted, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from invreg.audit.report import InvarianceReport, SliceReport


_MOST_CLASSES = 20
"""How many classes the bars show, and how many rows and columns the heat map."""

_MOST_MARKERS = 30
"""Up to how many elements each gets its own marker and error bar; beyond, a line in a band."""

_BINS = 24
"""How many bins a histogram has beside that of zeros."""

_WIDTH = 5.2
"""Width of a panel in inches."""

_SHARES = (
    ("consistency", "same class", "o", "-", FIRST),
    ("accuracy", "predicted right", "s", "--", SECOND),
    ("saliency_similarity", "maps alike (cosine)", "^", ":", THIRD),
)


Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One plot of a report.

    Args:
        title: What it shows.
        finding: What there is to see, in a line.
        height: In inches.
        draw: Draws it.
    """

    title: str
    finding: str
    height: float
    draw: Callable[[Axes], None]


def report_figure(report: InvarianceReport) -> Figure:
    """Draws a report; see ``InvarianceReport.plot``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    parts = panels(report)
    rows = [parts[start : start + 2] for start in range(0, len(parts), 2)]
    columns = max(map(len, rows), default=1)
    heights = [max(part.height for part in row) for row in rows]
    title = textwrap.fill(headline(report), 52 * columns)
    note = f"{counted(report.samples, 'sample')}; error bars and bands: ± standard error over samples"
    if report.ended == "interrupted":
        note = f"PARTIAL, the audit was interrupted. {note}"
    first, top = 0.1, 0.4 + 0.24 * (title.count("\n") + 1)  # in inches from the upper edge
    height = sum(heights) + top + 0.1
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, rect=(0, 0, 1, 1 - top / height))
    figure = Figure(figsize=(_WIDTH * columns, height), layout=layout, facecolor=PAPER)
    figure.text(0.02, 1 - first / height, title, size=13, weight="bold", color=INK, va="top", **NAMED)
    note = textwrap.shorten(note, 78 * columns)
    figure.text(0.02, 1 - (top - 0.08) / height, note, size=9, color=SOFT, va="bottom")
    if not parts:
        figure.text(0.02, 0.3, "Nothing to draw: the report was saved without its samples.", size=10, color=INK)
        return figure
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, part in enumerate(row):
            _drawn(figure.add_subplot(grid[i, j]), part)
    return figure


def panel_figure(part: Panel) -> Figure:
    """Draws one panel by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, part.height), layout="constrained", facecolor=PAPER)
    _drawn(figure.add_subplot(), part)
    return figure


def panels(report: InvarianceReport) -> list[Panel]:
    """The plots that a report has data for: by element, over samples, by class."""
    elements, classes = report.per_element, report.per_class
    found = []
    if elements:
        by_divergence = _any(elements, "distribution_error")
        found.append(_element_errors(report, "logit_error", "Logit error (LI)", "logits squared"))
        if by_divergence:
            found.append(_element_errors(report, "distribution_error", "Distribution error (DI)", "nats"))
        else:
            found.append(_element_errors(report, "normalized_logit_error", "Normalized logit error", "no unit"))
        if any(_any(elements, name) for name, *_ in _SHARES):
            found.append(_element_shares(report))
    if (over_samples := _histogram(report)) is not None:
        found.append(over_samples)
    if classes:
        found.append(_class_errors(report))
        if any(_any(classes, name) for name, *_ in _SHARES):
            found.append(_class_shares(report))
    return found


def class_element_panel(report: InvarianceReport) -> Panel | None:
    """The logit error of each class under each element, where it was measured; the worst of them if there are many."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    cells = {(one.label, one.element): one for one in report.per_class_element}
    if not cells:
        return None
    classes = _worst(report.per_class, _MOST_CLASSES) or _sides(report, "label")
    worst = _worst(report.per_element, _MOST_CLASSES) or _sides(report, "element")
    elements = sorted(worst, key=lambda one: one.element or 0)
    chosen = [[cells.get((row.label, column.element)) for column in elements] for row in classes]
    values = np.array([[np.nan if one is None else one.logit_error.mean for one in row] for row in chosen])
    largest = max(report.per_class_element, key=lambda one: one.logit_error.mean)

    def draw(axis: Axes) -> None:
        """A cell for each pair, dark where the error is large."""
        colours = LinearSegmentedColormap.from_list("error", ["#f4f1ea", "#e8b98a", "#b5532a", "#3b0f0a"])
        scale = Normalize(0, float(np.nanmax(values)) or 1)
        axis.imshow(values, cmap=colours, norm=scale, aspect="auto")
        axis.set_yticks(range(len(classes)), [shortened(one.name) for one in classes], **NAMED)
        _name_ticks(axis, [one.name for one in elements])
        if len(elements) <= 8 and len(classes) <= 12:
            for i, j in np.argwhere(~np.isnan(values)):
                red, green, blue, _ = colours(scale(values[i, j]))
                colour = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.48 else PAPER
                axis.text(j, i, in_digits(values[i, j], 3), ha="center", va="center", size=8, color=colour, gid=KEEP)
        bar = axis.figure.colorbar(ScalarMappable(scale, colours), ax=axis, pad=0.02)
        bar.set_label("logit error (logits squared)", size=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=INK)
        frameless(axis)

    finding = f"largest: {largest.name}, {in_digits(largest.logit_error.mean, 4)}"
    title = "Logit error by class and element"
    left_out = len(classes) < len(report.per_class) or len(elements) < len(report.per_element)
    if left_out:
        title += f": the {len(classes)} by {len(elements)} worst"
    return Panel(title, finding, max(1.5 + 0.27 * len(classes), 2.6), draw)


def _drawn(axis: Axes, part: Panel) -> None:
    """A panel on its axes, with the title that all have."""
    part.draw(axis)
    lines = _legend(axis)
    above = 13.0 * lines + 6
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    finding = textwrap.shorten(part.finding, 66, placeholder=" …")
    note = axis.annotate(finding, (0, 1), (0, above), size=8.5, color=SOFT, **place, **NAMED)
    note.set_in_layout(False)  # it may reach over what is to the right
    axis.set_title(part.title, loc="left", size=10.5, weight="bold", color=INK, pad=above + 13, **NAMED)
    axis.set_facecolor(PAPER)


def _element_errors(report: InvarianceReport, name: str, title: str, unit: str) -> Panel:
    """An error over the elements, in their order."""
    parts = [one for one in report.per_element if getattr(one, name) is not None]
    values = [getattr(one, name) for one in parts]
    own = [one.action_logit_error for one in parts] if name == "logit_error" else []
    noise = report.noise_error if name == "logit_error" else None
    largest = max(range(len(parts)), key=lambda index: values[index].mean)
    noun = "element" if report.is_group else "transform"

    def draw(axis: Axes) -> None:
        joined = "-" if report.is_group else ""  # transforms have no order that a line could follow
        _curve(axis, values, "the model" if any(own) or noise else None, "o", joined, FIRST)
        if all(own) and own:
            _curve(axis, own, "of it the action's own", "s", "--" if report.is_group else "", SECOND)
        if noise is not None:
            axis.axhline(noise.mean, color=SOFT, linestyle=":", linewidth=1.5, label="the model's noise")
        axis.set_ylim(bottom=0)
        if axis.get_ylim()[1] <= 0 or not any(value.mean for value in values):
            axis.set_ylim(0, 1)
        axis.set_ylabel(unit, size=9, color=INK)
        _name_ticks(axis, [one.name for one in parts])
        gridded(axis, "y")

    finding = (
        f"largest: {with_error(values[largest])} under {shortened(parts[largest].name)}"
        if values[largest].mean
        else "0 under all"
    )
    return Panel(f"{title} by {noun}", finding, 3.1, draw)


def _element_shares(report: InvarianceReport) -> Panel:
    """Consistency, accuracy and similarity over the elements."""
    parts = report.per_element
    series = [one for one in _SHARES if _any(parts, one[0])]
    noun = "element" if report.is_group else "transform"

    def draw(axis: Axes) -> None:
        for name, label, marker, line, colour in series:
            values = [getattr(one, name) for one in parts]
            _curve(axis, values, label, marker, line if report.is_group else "", colour)
        axis.set_ylim(-0.03, 1.03)
        maps = any(name == "saliency_similarity" for name, *_ in series)
        axis.set_ylabel("share of samples" + (" (maps: cosine)" if maps and len(series) > 1 else ""), size=9, color=INK)
        _name_ticks(axis, [one.name for one in parts])
        gridded(axis, "y")

    kept = [one for one in parts if one.consistency is not None]
    worst = min(kept, key=lambda one: float(one.consistency or 0), default=None)
    finding = "1 = invariant"
    if worst is not None and worst.consistency is not None:
        finding = f"fewest predictions kept: {with_error(worst.consistency)} under {shortened(worst.name)}"
        finding = "all predictions are kept" if worst.consistency.mean == 1 else finding
    return Panel(f"What stays the same by {noun}", finding, 3.1, draw)


def _curve(
    axis: Axes, values: Sequence[Estimate | None], label: str | None, marker: str, line: str, colour: str
) -> None:
    """Means with their standard errors: bars if they are few, otherwise a band."""
    known = [(position, value) for position, value in enumerate(values) if value is not None]
    x = np.array([position for position, _ in known], dtype=float)
    means = np.array([value.mean for _, value in known])
    errors = np.array([value.standard_error or 0.0 for _, value in known])
    style: dict[str, Any] = {"color": colour, "label": label, "linestyle": line, "linewidth": 1.6}
    if len(known) > _MOST_MARKERS:
        style |= {"marker": marker, "markersize": 4.5, "markevery": max(len(known) // 12, 1) if line else 1}
        axis.plot(x, means, **style)
        axis.fill_between(x, means - errors, means + errors, color=colour, alpha=0.2, linewidth=0)
        return
    axis.errorbar(x, means, errors, marker=marker, markersize=5.5, capsize=3, elinewidth=1.2, **style)


def _name_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Names below an axis, so many and so slanted that they do not touch."""
    short = [shortened(name) for name in names]
    level = sum(map(len, short)) + 2 * len(short) <= 60
    step = 1 if level or len(short) <= _MOST_MARKERS else math.ceil(len(short) / 12)
    shown = list(range(0, len(short), step))
    level = sum(len(short[i]) + 2 for i in shown) <= 60
    turn = 0 if level else 40 if len(shown) <= 14 else 90
    style: dict[str, Any] = {"rotation": turn, "ha": "right" if turn == 40 else "center", "rotation_mode": "anchor"}
    if turn == 90:
        style |= {"ha": "right", "va": "center"}
    axis.set_xticks(shown, [short[i] for i in shown], **(style if turn else {}), **NAMED)
    axis.tick_params(axis="x", labelsize=8.5 if turn < 90 else 7.5)
    axis.set_xlim(-0.5, len(short) - 0.5)


def _histogram(report: InvarianceReport) -> Panel | None:
    """How the errors of single samples are distributed, on a logarithmic axis with a place for zeros."""
    series = []
    for name, label in (("logit_error", "mean over elements"), ("worst_logit_error", "worst element")):
        values, counts = _errors_of_samples(report, name)
        if counts.sum():
            series.append((label, values, counts / counts.sum()))
    positive = np.concatenate([values[values > 0] for _, values, _ in series] or [np.empty(0)])
    if not series:
        return None
    edges = _bin_edges(positive)
    zero = any((values == 0).any() for _, values, _ in series)
    width = edges[1] - edges[0]
    place = edges[0] - 2 * width  # of the zeros, left of a gap

    styles: dict[str, dict[str, Any]] = {
        "mean over elements": {"facecolor": FILL, "edgecolor": FIRST, "linewidth": 0.8},
        "worst element": {"facecolor": "none", "edgecolor": SECOND, "hatch": "////", "linewidth": 1.3},
    }

    def draw(axis: Axes) -> None:
        for label, values, shares in series:
            heights = np.histogram(np.log10(values[values > 0]), edges, weights=shares[values > 0])[0]
            bars = [(left + width / 2, height, width) for left, height in zip(edges, heights, strict=False) if height]
            if (values == 0).any():
                bars.insert(0, (place, float(shares[values == 0].sum()), 1.4 * width))
            axis.bar(*zip(*bars, strict=True), label=label, **styles[label])
        ticks = _log_ticks(edges[0], edges[-1]) if len(positive) else []
        places = [*([place] if zero else []), *np.log10(ticks)]
        axis.set_xticks(places, [*(["0"] if zero else []), *(f"{tick:g}" for tick in ticks)])
        axis.set_xlabel("logit error of a sample (logits squared)", size=9, color=INK)
        axis.set_ylabel("share of samples", size=9, color=INK)
        axis.set_xlim(place - 1.5 * width if zero else edges[0] - width / 2, edges[-1] + width / 2)
        gridded(axis, "y")

    _, values, shares = series[0]
    order = np.argsort(values, kind="stable")
    middle = values[order][min(int(np.searchsorted(np.cumsum(shares[order]), 0.5)), len(values) - 1)]
    none = float(shares[values == 0].sum())
    finding = f"median {in_digits(float(middle), 4)}" + (f"; {none:.2g} of the samples at 0" if none else "")
    return Panel("Logit error over samples", finding if len(positive) else "all samples are at 0", 3.1, draw)


def _errors_of_samples(report: InvarianceReport, name: str) -> tuple[Array, npt.NDArray[np.int64]]:
    """All errors of one name that are known, and how many samples have each."""
    kept = report.per_sample[name] if name in report.per_sample else np.empty(0)
    kept = kept[np.isfinite(kept)]
    values, counts = report.histograms.get(name, LogHistogram()).values()
    return np.concatenate([kept, values]), np.concatenate([np.ones(len(kept), dtype=np.int64), counts])


def _bin_edges(positive: Array) -> Array:
    """Bounds of the bins, as powers of ten; at least a tenth of a decade in all."""
    if not len(positive):
        return np.linspace(0.0, 1.0, _BINS + 1)
    low, high = float(np.log10(positive.min())), float(np.log10(positive.max()))
    missing = max(0.1 - (high - low), 0.0) / 2 + 1e-6
    edges: Array = np.linspace(low - missing, high + missing, _BINS + 1)
    return edges


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, at most eight."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= 8:
            return ticks
    step = math.ceil(len(ticks) / 7)
    return ticks[::step]


def _class_errors(report: InvarianceReport) -> Panel:
    """A bar for each class."""
    shown = _worst(report.per_class, _MOST_CLASSES)
    largest = max(shown, key=lambda one: one.logit_error.mean)
    names = [one.name for one in shown]

    def draw(axis: Axes) -> None:
        rows = np.arange(len(shown))
        means = [one.logit_error.mean for one in shown]
        errors = [one.logit_error.standard_error or 0.0 for one in shown]
        bars: dict[str, Any] = {"facecolor": FILL, "edgecolor": FIRST, "hatch": "///", "linewidth": 0.9}
        axis.barh(rows, means, 0.66, xerr=errors, ecolor=INK, capsize=2.5, error_kw={"elinewidth": 1.2}, **bars)
        whole = report.logit_error.mean
        axis.axvline(whole, color=SECOND, linestyle="--", linewidth=1.5, label=f"all classes: {in_digits(whole, 4)}")
        axis.set_xlim(left=0, right=None if any(means) else 1)
        axis.set_xlabel("logit error (logits squared)", size=9, color=INK)
        _class_rows(axis, names)

    title = f"Logit error by {_of_class(report)}"
    if len(shown) < len(report.per_class):
        title += f": the {len(shown)} worst of {len(report.per_class)}"
    size = largest.logit_error
    finding = f"largest: {with_error(size)} for {shortened(largest.name)}" if size.mean else "0 for all"
    return Panel(title, finding, _class_height(shown), draw)


def _class_shares(report: InvarianceReport) -> Panel:
    """What share of each class stays the same and right."""
    shown = _worst(report.per_class, _MOST_CLASSES)
    series = [
        (name, label, marker, colour)
        for name, label, marker, colour in (
            ("consistency", "same class", "o", FIRST),
            ("accuracy", "right as it is", "s", SECOND),
            ("group_accuracy", "right over the " + ("group" if report.is_group else "set"), "x", INK),
            ("saliency_similarity", "maps alike (cosine)", "^", THIRD),
        )
        if _any(shown, name)
    ]

    def draw(axis: Axes) -> None:
        space = 0.5 / max(len(series) - 1, 1)
        for position, (name, label, marker, colour) in enumerate(series):
            known = [(row, getattr(one, name)) for row, one in enumerate(shown) if getattr(one, name) is not None]
            rows = np.array([row for row, _ in known]) + (position - (len(series) - 1) / 2) * space
            means = [value.mean for _, value in known]
            errors = [value.standard_error or 0.0 for _, value in known]
            axis.errorbar(
                means,
                rows,
                xerr=errors,
                linestyle="",
                marker=marker,
                markersize=5,
                color=colour,
                label=label,
                capsize=2,
            )
        axis.set_xlim(-0.03, 1.03)
        maps = any(name == "saliency_similarity" for name, *_ in series)
        axis.set_xlabel("share of samples" + (" (maps: cosine)" if maps and len(series) > 1 else ""), size=9, color=INK)
        _class_rows(axis, [one.name for one in shown])

    title = f"What stays the same by {_of_class(report)}"
    if len(shown) < len(report.per_class):
        title += f": these {len(shown)}"
    return Panel(title, "1 = every sample", _class_height(shown), draw)


def _class_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [shortened(name, 20) for name in names], **NAMED)
    axis.set_ylim(len(names) - 0.5, -0.5)
    gridded(axis, "x")


def _class_height(shown: Sequence[SliceReport]) -> float:
    return max(1.6 + 0.225 * len(shown), 3.1)


def _of_class(report: InvarianceReport) -> str:
    return "class" if report.classes_by == "label" else "predicted class"


def _worst(parts: Sequence[SliceReport], most: int) -> list[SliceReport]:
    """All parts in their order; those with the largest errors, worst first, if there are many."""
    return list(parts) if len(parts) <= most else sorted(parts, key=lambda one: -one.logit_error.mean)[:most]


def _sides(report: InvarianceReport, name: str) -> list[SliceReport]:
    """The first pair of each class, or of each element."""
    first: dict[Any, SliceReport] = {}
    for one in report.per_class_element:
        first.setdefault(getattr(one, name), one)
    return list(first.values())[:_MOST_CLASSES]


def _any(parts: Sequence[SliceReport], name: str) -> bool:
    return any(getattr(one, name) is not None for one in parts)


def _legend(axis: Axes) -> int:
    """What is what, above the axes; returns how many lines that takes."""
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        return 0
    columns = len(handles) if sum(map(len, labels)) + 8 * len(handles) <= 72 else 2
    axis.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        borderpad=0.2,
        borderaxespad=0.1,
        columnspacing=1.4,
        handletextpad=0.5,
        labelspacing=0.25,
    )
    return math.ceil(len(handles) / columns)
