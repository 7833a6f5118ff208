"""How is a report drawn?"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from invreg.audit.estimate import Estimate
from invreg.audit.histogram import LogHistogram
from invreg.audit.text import counted, headline
from invreg.saliency import saliency_similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from invreg.audit.report import InvarianceReport, SliceReport
    from invreg.audit.samples import SaliencyExample

Array = npt.NDArray[np.float64]

_MOST_CLASSES = 20
"""How many classes the bars show, and how many rows and columns the heat map."""

_MOST_MARKERS = 30
"""Up to how many elements each gets its own marker and error bar; beyond, a line in a band."""

_MOST_COLUMNS = 8
"""How many elements a row of saliency maps shows."""

_MOST_PAIRS = 12
"""How many of the least invariant samples are drawn."""

_BINS = 24
"""How many bins a histogram has beside that of zeros."""

_WIDTH = 5.2
"""Width of a panel in inches."""

_INK, _SOFT, _GRID, _PAPER = "#1a1a1a", "#555555", "#d9d9d9", "#ffffff"
_FIRST, _SECOND, _THIRD, _FILL = "#12507b", "#c2410c", "#3f7d20", "#9cc3de"

_KEEP = "keep"
"""Mark of what keeps its colour when a figure is darkened: it lies on a picture."""

_NAMED: dict[str, Any] = {"parse_math": False}
"""For texts that hold names: a dollar sign in a name is no formula."""


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
    figure = Figure(figsize=(_WIDTH * columns, height), layout=layout, facecolor=_PAPER)
    figure.text(0.02, 1 - first / height, title, size=13, weight="bold", color=_INK, va="top", **_NAMED)
    note = textwrap.shorten(note, 78 * columns)
    figure.text(0.02, 1 - (top - 0.08) / height, note, size=9, color=_SOFT, va="bottom")
    if not parts:
        figure.text(0.02, 0.3, "Nothing to draw: the report was saved without its samples.", size=10, color=_INK)
        return figure
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, part in enumerate(row):
            _drawn(figure.add_subplot(grid[i, j]), part)
    return figure


def panel_figure(part: Panel) -> Figure:
    """Draws one panel by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, part.height), layout="constrained", facecolor=_PAPER)
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
        axis.set_yticks(range(len(classes)), [_short(one.name) for one in classes], **_NAMED)
        _name_ticks(axis, [one.name for one in elements])
        if len(elements) <= 8 and len(classes) <= 12:
            for i, j in np.argwhere(~np.isnan(values)):
                red, green, blue, _ = colours(scale(values[i, j]))
                colour = _INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.48 else _PAPER
                axis.text(j, i, _number(values[i, j], 3), ha="center", va="center", size=8, color=colour, gid=_KEEP)
        bar = axis.figure.colorbar(ScalarMappable(scale, colours), ax=axis, pad=0.02)
        bar.set_label("logit error (logits squared)", size=9, color=_INK)
        bar.ax.tick_params(labelsize=8, colors=_INK)
        _frameless(axis)

    finding = f"largest: {largest.name}, {_number(largest.logit_error.mean, 4)}"
    title = "Logit error by class and element"
    left_out = len(classes) < len(report.per_class) or len(elements) < len(report.per_element)
    if left_out:
        title += f": the {len(classes)} by {len(elements)} worst"
    return Panel(title, finding, max(1.5 + 0.27 * len(classes), 2.6), draw)


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
    figure = Figure(figsize=size, layout="constrained", facecolor=_PAPER)
    title = textwrap.fill(f"Where {report.model} looks under {report.group}", int(size[0] * 9))
    note = "Below each input its map, moved back onto the untransformed input: the more alike in a row, the better."
    figure.suptitle(title, size=12, weight="bold", color=_INK, x=0.01, ha="left", **_NAMED)
    figure.supxlabel(textwrap.fill(note, int(size[0] * 13)), size=9, color=_SOFT)
    subfigures = figure.subfigures(len(rows), beside, squeeze=False, height_ratios=heights)
    for subfigure, one in zip(subfigures.flat, (one for row in rows for one in row), strict=True):
        subfigure.set_facecolor(_PAPER)
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
    figure = Figure(figsize=(2.75 * columns, 2.15 * rows), layout="constrained", facecolor=_PAPER)
    subfigures = figure.subfigures(rows, columns, squeeze=False).flat
    for (one, before, after), subfigure in zip(shown, subfigures, strict=False):
        title = f"sample {one.index}" + ("" if one.label is None else f", class {one.label}")
        subfigure.suptitle(f"{title}\nLI {_number(one.logit_error, 4)}", size=9, color=_INK)
        left, right = subfigure.subplots(1, 2)
        _picture(left, before)
        _picture(right, after)
        left.set_title("as it is", size=8, color=_SOFT)
        right.set_title(_short(one.name), size=8, color=_SOFT, **_NAMED)
        changed = one.prediction != one.transformed_prediction
        for axis, prediction in ((left, one.prediction), (right, one.transformed_prediction)):
            if prediction is not None:
                axis.set_xlabel(
                    f"predicted {prediction}",
                    size=9,
                    color=_SECOND if changed else _INK,
                    weight="bold" if changed and axis is right else "normal",
                )
    for subfigure in [*figure.subfigs][len(shown) :]:
        subfigure.set_facecolor(_PAPER)
    return figure


def png(figure: Figure, *, resolution: int = 150) -> bytes:
    """A figure as a picture in PNG."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in a script the font lacks
        figure.savefig(out, format="png", dpi=resolution, facecolor=figure.get_facecolor())
    return out.getvalue()


def light_and_dark(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as two pictures in PNG, for a light and for a dark page."""
    light = png(figure)
    figure.set_layout_engine("none")  # it stands where it stands
    darken(figure)
    return light, png(figure)


def darken(figure: Figure) -> None:
    """Turns a figure that was drawn dark on white into one that is light on black; pictures stay as they are."""
    from matplotlib.artist import Artist
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.draw_without_rendering()  # makes the ticks
    coloured: dict[type[Artist], tuple[str, ...]] = {
        Text: ("color",),
        Line2D: ("color", "markerfacecolor", "markeredgecolor"),
        Patch: ("facecolor", "edgecolor"),
        Collection: ("facecolor", "edgecolor"),
    }
    every = {id(artist): artist for artist in figure.findobj(Artist)}  # some are found twice
    for artist in every.values():
        parts = next((parts for kind, parts in coloured.items() if isinstance(artist, kind)), ())
        if artist.get_gid() == _KEEP or getattr(artist, "get_array", lambda: None)() is not None:
            continue
        colours = {part: getattr(artist, f"get_{part}")() for part in parts}
        for part, colour in colours.items():
            getattr(artist, f"set_{part}")(_inverted(colour))


def _inverted(colour: Any) -> Any:
    """The colours of the same hue whose lightness is the opposite, a little above black."""
    import colorsys

    from matplotlib.colors import to_rgba_array

    rgba = to_rgba_array(colour)
    if not len(rgba):
        return colour
    for row in rgba:
        hue, lightness, saturation = colorsys.rgb_to_hls(*row[:3])
        row[:3] = colorsys.hls_to_rgb(hue, 0.085 + 0.875 * (1 - lightness), saturation)
    single = len(rgba) == 1 and not (isinstance(colour, np.ndarray) and colour.ndim == 2)
    return tuple(rgba[0]) if single else rgba


def _drawn(axis: Axes, part: Panel) -> None:
    """A panel on its axes, with the title that all have."""
    part.draw(axis)
    lines = _legend(axis)
    above = 13.0 * lines + 6
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    finding = textwrap.shorten(part.finding, 66, placeholder=" …")
    note = axis.annotate(finding, (0, 1), (0, above), size=8.5, color=_SOFT, **place, **_NAMED)
    note.set_in_layout(False)  # it may reach over what is to the right
    axis.set_title(part.title, loc="left", size=10.5, weight="bold", color=_INK, pad=above + 13, **_NAMED)
    axis.set_facecolor(_PAPER)


# By element


_SHARES = (
    ("consistency", "same class", "o", "-", _FIRST),
    ("accuracy", "predicted right", "s", "--", _SECOND),
    ("saliency_similarity", "maps alike (cosine)", "^", ":", _THIRD),
)


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
        _curve(axis, values, "the model" if any(own) or noise else None, "o", joined, _FIRST)
        if all(own) and own:
            _curve(axis, own, "of it the action's own", "s", "--" if report.is_group else "", _SECOND)
        if noise is not None:
            axis.axhline(noise.mean, color=_SOFT, linestyle=":", linewidth=1.5, label="the model's noise")
        axis.set_ylim(bottom=0)
        if axis.get_ylim()[1] <= 0 or not any(value.mean for value in values):
            axis.set_ylim(0, 1)
        axis.set_ylabel(unit, size=9, color=_INK)
        _name_ticks(axis, [one.name for one in parts])
        _plain(axis, "y")

    finding = (
        f"largest: {_told(values[largest])} under {_short(parts[largest].name)}"
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
        axis.set_ylabel(
            "share of samples" + (" (maps: cosine)" if maps and len(series) > 1 else ""), size=9, color=_INK
        )
        _name_ticks(axis, [one.name for one in parts])
        _plain(axis, "y")

    kept = [one for one in parts if one.consistency is not None]
    worst = min(kept, key=lambda one: float(one.consistency or 0), default=None)
    finding = "1 = invariant"
    if worst is not None and worst.consistency is not None:
        finding = f"fewest predictions kept: {_told(worst.consistency)} under {_short(worst.name)}"
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
    short = [_short(name) for name in names]
    level = sum(map(len, short)) + 2 * len(short) <= 60
    step = 1 if level or len(short) <= _MOST_MARKERS else math.ceil(len(short) / 12)
    shown = list(range(0, len(short), step))
    level = sum(len(short[i]) + 2 for i in shown) <= 60
    turn = 0 if level else 40 if len(shown) <= 14 else 90
    style: dict[str, Any] = {"rotation": turn, "ha": "right" if turn == 40 else "center", "rotation_mode": "anchor"}
    if turn == 90:
        style |= {"ha": "right", "va": "center"}
    axis.set_xticks(shown, [short[i] for i in shown], **(style if turn else {}), **_NAMED)
    axis.tick_params(axis="x", labelsize=8.5 if turn < 90 else 7.5)
    axis.set_xlim(-0.5, len(short) - 0.5)


# Over samples


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
        "mean over elements": {"facecolor": _FILL, "edgecolor": _FIRST, "linewidth": 0.8},
        "worst element": {"facecolor": "none", "edgecolor": _SECOND, "hatch": "////", "linewidth": 1.3},
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
        axis.set_xlabel("logit error of a sample (logits squared)", size=9, color=_INK)
        axis.set_ylabel("share of samples", size=9, color=_INK)
        axis.set_xlim(place - 1.5 * width if zero else edges[0] - width / 2, edges[-1] + width / 2)
        _plain(axis, "y")

    _, values, shares = series[0]
    order = np.argsort(values, kind="stable")
    middle = values[order][min(int(np.searchsorted(np.cumsum(shares[order]), 0.5)), len(values) - 1)]
    none = float(shares[values == 0].sum())
    finding = f"median {_number(float(middle), 4)}" + (f"; {none:.2g} of the samples at 0" if none else "")
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


# By class


def _class_errors(report: InvarianceReport) -> Panel:
    """A bar for each class."""
    shown = _worst(report.per_class, _MOST_CLASSES)
    largest = max(shown, key=lambda one: one.logit_error.mean)
    names = [one.name for one in shown]

    def draw(axis: Axes) -> None:
        rows = np.arange(len(shown))
        means = [one.logit_error.mean for one in shown]
        errors = [one.logit_error.standard_error or 0.0 for one in shown]
        bars: dict[str, Any] = {"facecolor": _FILL, "edgecolor": _FIRST, "hatch": "///", "linewidth": 0.9}
        axis.barh(rows, means, 0.66, xerr=errors, ecolor=_INK, capsize=2.5, error_kw={"elinewidth": 1.2}, **bars)
        whole = report.logit_error.mean
        axis.axvline(whole, color=_SECOND, linestyle="--", linewidth=1.5, label=f"all classes: {_number(whole, 4)}")
        axis.set_xlim(left=0, right=None if any(means) else 1)
        axis.set_xlabel("logit error (logits squared)", size=9, color=_INK)
        _class_rows(axis, names)

    title = f"Logit error by {_of_class(report)}"
    if len(shown) < len(report.per_class):
        title += f": the {len(shown)} worst of {len(report.per_class)}"
    size = largest.logit_error
    finding = f"largest: {_told(size)} for {_short(largest.name)}" if size.mean else "0 for all"
    return Panel(title, finding, _class_height(shown), draw)


def _class_shares(report: InvarianceReport) -> Panel:
    """What share of each class stays the same and right."""
    shown = _worst(report.per_class, _MOST_CLASSES)
    series = [
        (name, label, marker, colour)
        for name, label, marker, colour in (
            ("consistency", "same class", "o", _FIRST),
            ("accuracy", "right as it is", "s", _SECOND),
            ("group_accuracy", "right over the " + ("group" if report.is_group else "set"), "x", _INK),
            ("saliency_similarity", "maps alike (cosine)", "^", _THIRD),
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
        axis.set_xlabel(
            "share of samples" + (" (maps: cosine)" if maps and len(series) > 1 else ""), size=9, color=_INK
        )
        _class_rows(axis, [one.name for one in shown])

    title = f"What stays the same by {_of_class(report)}"
    if len(shown) < len(report.per_class):
        title += f": these {len(shown)}"
    return Panel(title, "1 = every sample", _class_height(shown), draw)


def _class_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(name, 20) for name in names], **_NAMED)
    axis.set_ylim(len(names) - 0.5, -0.5)
    _plain(axis, "x")


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


# Pictures of samples


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
    figure.suptitle(title, size=10, color=_INK, x=0.01, ha="left")
    axes = figure.subplots(2, columns, squeeze=False)
    inputs, maps, kind = _shown(example.inputs, example.maps)
    similarity = saliency_similarity(example.maps[:1].expand_as(example.maps).flatten(1), example.maps.flatten(1))
    for column, (top, bottom) in enumerate(axes.T):
        if column >= len(chosen):
            top.set_axis_off()
            bottom.set_axis_off()
            continue
        index = chosen[column]
        top.set_title(_short(example.names[index], 16), size=8.5, color=_INK, **_NAMED)
        bottom.set_xlabel("reference" if index == 0 else f"{similarity[index]:.2f}", size=8.5, color=_INK)
        if kind == "image":
            _picture(top, _Picture(inputs[index]))
            _overlay(bottom, inputs[0], maps[index])
        elif kind == "curves":
            _picture(top, _Picture(inputs[index], curves=True), (inputs.min(), inputs.max()))
            _shaded(bottom, inputs[0], maps[index])
        else:
            _bars(top, inputs[index], float(inputs.min()), float(inputs.max()))
            _bars(bottom, maps[index], 0.0, float(maps.max()))
    axes[0, 0].set_ylabel("input", size=8.5, color=_INK)
    axes[1, 0].set_ylabel("map", size=8.5, color=_INK)


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
        _frameless(axis)
        return
    for channel, (line, colour) in zip(picture.values[:4], _CURVES, strict=False):
        axis.plot(channel, linestyle=line, color=colour, linewidth=1)
    if limits is not None and limits[1] > limits[0]:
        axis.set_ylim(*limits)
    _framed(axis)


_CURVES = (("-", _INK), ("--", _FIRST), (":", _SECOND), ("-.", _THIRD))


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
    _frameless(axis)


def _shaded(axis: Axes, signal: Array, where: Array) -> None:
    """A map as an area under the pale signal."""
    _picture(axis, _Picture(signal, curves=True))
    for line in axis.get_lines():
        line.set_alpha(0.35)
    low, high = axis.get_ylim()
    strength = where / where.max() if where.max() > 0 else np.zeros_like(where)
    positions = np.linspace(0, signal.shape[-1] - 1, len(where))
    top = low + (high - low) * np.clip(strength, 0, 1)
    axis.fill_between(positions, low, top, color=_SECOND, alpha=0.75, linewidth=0)
    axis.set_ylim(low, high)


def _bars(axis: Axes, values: Array, low: float, high: float) -> None:
    axis.set(xticks=[], yticks=[])
    if len(values) <= 100:
        axis.bar(range(len(values)), values, 1.0, facecolor=_FIRST, edgecolor=_PAPER, linewidth=0.3)
    else:
        axis.fill_between(range(len(values)), 0, values, color=_FIRST, step="mid", linewidth=0)
    bottom, top = min(low, 0.0), max(high, 0.0)
    axis.set_ylim(bottom, top if top > bottom else bottom + 1)
    _framed(axis)


# Looks


def _told(value: Estimate) -> str:
    """An estimate in few digits."""
    return _number(value.mean, 4) + ("" if value.standard_error is None else f" ± {_number(value.standard_error, 2)}")


def _number(value: float, digits: int) -> str:
    """A number rounded to so many digits, without an exponent unless it is very large or small."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _short(name: str, most: int = 24) -> str:
    """A name on one line that is cut in its middle if it is long: names that differ often do so at an end."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _plain(axis: Axes, grid: str) -> None:
    """Two sides, pale lines along the values, small numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_SOFT)
    axis.grid(axis="y" if grid == "y" else "x", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, colors=_INK)
    if len(axis.get_xticklabels()) > 14 and grid == "y":
        axis.tick_params(axis="x", labelsize=7.5)


def _frameless(axis: Axes) -> None:
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=8.5, colors=_INK)


def _framed(axis: Axes) -> None:
    axis.spines[:].set_color(_GRID)
    axis.set_facecolor(_PAPER)


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
        labelcolor=_INK,
        frameon=False,
        borderpad=0.2,
        borderaxespad=0.1,
        columnspacing=1.4,
        handletextpad=0.5,
        labelspacing=0.25,
    )
    return math.ceil(len(handles) / columns)
