"""What does an audit of the layers say, and how does a person read it?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invreg.audit.estimate import Estimate
from invreg.audit.plain import all_made, made, plain, without_schema
from invreg.audit.text import aligned, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 1
"""Version of the dictionary and JSON form; it grows when a field changes its meaning or goes away."""

_LOWEST = 1e-9
"""What a plot shows of smaller errors: in float32, rounding alone makes about 1e-13."""

_MOST_LABELS = 40
"""How many layers a plot names; of more, every second, third and so on."""

_LONGEST_LABEL = 32
"""How many characters of a name a plot shows."""


@dataclass(frozen=True)
class LayerReport:
    """What an audit found for the output of one layer. Made by ``measure_layers``, which documents it.

    Args:
        name: The layer's name in ``named_modules``, with "(call 2)" and so on where the model calls it again. "input"
            stands for what the model is given, "output" for what it returns.
        kind: Name of its class.
        call: Which of the calls in one forward, from 1.
        shape: Shape of the output, without the batch axis; None where it was not measured.
        invariance_error: How far the group moves the output; None where it was not measured.
        equivariance_error: How far, after it was moved back; None where it cannot be.
        reason: Why one of these is None; None where both were measured.
    """

    name: str
    kind: str
    call: int
    shape: tuple[int, ...] | None
    invariance_error: Estimate | None
    equivariance_error: Estimate | None
    reason: str | None

    @property
    def measured(self) -> bool:
        """Whether anything was."""
        return self.invariance_error is not None or self.equivariance_error is not None


@dataclass(frozen=True)
class LayersReport:
    """Where in a model a symmetry is lost. Made by ``measure_layers``, which documents it; ``print`` shows a table.

    Errors are shares of the variance of the layer's output: 0 means that the group changes nothing, 1 that a
    transformed input is as far from the input as another input is. They are averaged over the non-identity elements,
    each with the same weight, and over samples; standard errors are over samples, with the variance taken as known.

    Args:
        model: Name of the model's class or function.
        group: The group, in words.
        is_group: Whether it is one; False for a ``TransformationSet``.
        samples: How many samples were measured.
        elements: How many non-identity elements each sample was measured under.
        exhaustive: Whether these were all that the group has; otherwise they were drawn for each sample.
        tolerance: The error up to which a symmetry counts as kept.
        action_error: The action's own equivariance error, at the input; None for exact groups and sets of
            transformations.
        layers: What was found for the input and for each layer, in the order in which they were done.
        unused: Names of the layers that the forward never called; of those, if not all, that have no layers inside. A
            layer whose weights its parent reads without calling it is among them.
        lost_before: Whether the symmetry is lost before the layer ``first_lost`` is given its input.
        lost_in: If so, the name of the module whose own forward loses it.
    """

    model: str
    group: str
    is_group: bool
    samples: int
    elements: int
    exhaustive: bool
    tolerance: float
    action_error: Estimate | None
    layers: tuple[LayerReport, ...]
    unused: tuple[str, ...]
    lost_before: bool = False
    lost_in: str | None = None

    @property
    def threshold(self) -> float:
        """The error up to which a symmetry counts as kept: the tolerance and twice the action's own error."""
        return self.tolerance + (0.0 if self.action_error is None else 2 * self.action_error.mean)

    @property
    def first_lost(self) -> LayerReport | None:
        """The first layer whose output is neither invariant nor equivariant; None if there is none.

        There is none either under transforms that change the inputs in a way that nothing undoes (brightness, blur).
        """
        if self._changes_inputs:
            return None
        return next((layer for layer in self.layers[1:] if layer.measured and not self.keeps(layer)), None)

    @property
    def _changes_inputs(self) -> bool:
        """Whether the inputs themselves have lost what the layers could keep."""
        return not self.is_group and self.layers[0].measured and not self.keeps(self.layers[0])

    def keeps(self, layer: LayerReport) -> bool:
        """Whether one of a layer's errors is within the threshold.

        Args:
            layer: One of ``layers``.

        Returns:
            False also where neither error was measured.
        """
        errors = (layer.invariance_error, layer.equivariance_error)
        return any(error is not None and error.mean <= self.threshold for error in errors)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, numbers and strings, with ``schema`` for the form's version."""
        return {"schema": SCHEMA, **plain(self)}

    def to_json(self) -> str:
        """The report as a JSON text; see ``LayersReport.to_dict``."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> LayersReport:
        """Makes the report that ``to_dict`` described.

        Args:
            state: What ``to_dict`` returned, or the same read from JSON.

        Returns:
            An equal report.

        Raises:
            ValueError: The dictionary has another schema or other fields.
        """
        values = without_schema(state, SCHEMA, "layers report")
        report: LayersReport = made(cls, values, {"layers": all_made(LayerReport)})
        return report

    def plot(self) -> Figure:
        """The errors against the layers in the order in which they were done, on a logarithmic scale.

        Circles are invariance errors, squares equivariance errors; the dotted line is the threshold, and a vertical one
        shows where the symmetry is lost. Errors too small for the scale stand on its lowest line, hollow where they are
        zero.

        Returns:
            A ``matplotlib.figure.Figure`` outside of pyplot: ``figure.savefig("layers.png")`` writes it, and a notebook
            shows it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() draws with matplotlib, which is not there: pip install matplotlib.") from error
        figure = Figure(figsize=(min(14.0, 5.0 + 0.25 * len(self.layers)), 5.0), layout="constrained")
        axes = figure.add_subplot()
        _draw_errors(axes, self)
        _name_layers(axes, self)
        if self.first_lost is not None:
            _mark(axes, self, self.first_lost)
        axes.set_title(f"{self.model} under {self.group}", fontsize=10, loc="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8, frameon=False)
        return figure

    def __str__(self) -> str:
        how = "all" if self.exhaustive else "drawn for each sample"
        noun = "non-identity element" if self.is_group else "transform"
        header = ("layer", "kind", "shape", "invariance error", "equivariance error", "")
        rows = [header, *(self._row(layer) for layer in self.layers)]
        lines = [
            f"Layers of {self.model} under {self.group}" + ("" if self.is_group else ", which is no group"),
            f"{counted(self.samples, 'sample')}, each under {counted(self.elements, noun)} ({how}); "
            "errors ± standard error over samples, as shares of the layer's variance: 0 = kept, 1 = another input",
            "",
            *aligned(rows),
            "",
            self.summary(),
        ]
        if self.unused:
            lines.append(f"never called: {', '.join(self.unused)}")
        return "\n".join(lines)

    def summary(self) -> str:
        """Where the symmetry is lost, in a sentence."""
        unknown = [layer for layer in self.layers if not layer.measured]
        left_out = f" ({counted(len(unknown), 'layer')} not measured)" if unknown else ""
        within = f"errors up to {self.threshold:.2g} count as kept"
        lost = self.first_lost
        if len(unknown) == len(self.layers):
            return f"no layer could be measured: {unknown[0].reason}"
        if self._changes_inputs:
            kept = "the last layer is invariant" if self.keeps(self.layers[-1]) else "the last layer is not invariant"
            return f"the inputs themselves are changed, which moving back does not undo; {kept}{left_out}; {within}"
        if lost is None:
            return f"symmetry kept in every layer{left_out}; {within}"
        if self.lost_before:
            where = f"before `{lost.name}`, in the forward of `{self.lost_in}`"
        else:
            where = f"at `{lost.name}` ({lost.kind})"
            if lost.equivariance_error is None:
                where += f", which is not invariant; {lost.reason}"
        after = "; the last layer keeps it again" if self.keeps(self.layers[-1]) else ""
        return f"symmetry first lost {where}{after}{left_out}; {within}"

    def _row(self, layer: LayerReport) -> tuple[str, ...]:
        shape = "-" if layer.shape is None else str(layer.shape)
        errors = ["-" if error is None else str(error) for error in _errors(layer)]
        if layer is self.layers[0]:
            note = "" if self.action_error is None else "the action's own equivariance error"
        elif not layer.measured:
            note = f"not measured: {layer.reason}"
        else:
            note = "kept" if self.keeps(layer) else "lost"
        return (layer.name, layer.kind, shape, *errors, note)


def _errors(layer: LayerReport) -> tuple[Estimate | None, Estimate | None]:
    return layer.invariance_error, layer.equivariance_error


def _draw_errors(axes: Axes, report: LayersReport) -> None:
    """Draws both errors of all layers, and the threshold."""
    smallest = [error.mean for layer in report.layers for error in _errors(layer) if error is not None and error.mean]
    lowest = min([*smallest, report.threshold or 1.0, 1.0])
    floor = max(_LOWEST, 10.0 ** math.floor(math.log10(lowest) - 0.5))
    styles = (("invariance error", "o", "-", "0.0", 6.5), ("equivariance error", "s", "--", "0.5", 5.0))
    highest = 1.0
    for (label, marker, line, grey, size), errors in zip(
        styles, zip(*map(_errors, report.layers), strict=True), strict=True
    ):
        means = [math.nan if error is None else error.mean for error in errors]
        shown = [max(mean, floor) if mean == mean else mean for mean in means]
        highest = max([highest, *(mean for mean in means if mean == mean)])
        axes.plot(shown, line, marker=marker, color=grey, linewidth=1.2, markersize=size, label=label)
        zeros = [place for place, mean in enumerate(means) if mean == 0]
        axes.plot(zeros, [floor] * len(zeros), marker, color=grey, markersize=size, markerfacecolor="white")
    if report.threshold > 0:
        axes.axhline(report.threshold, color="0.3", linestyle=":", linewidth=1.2, label="counts as kept")
    axes.set_yscale("log")
    axes.set_ylim(floor / 3, 10 * highest)
    axes.set_yticks(ticks := [10.0**n for n in range(round(math.log10(floor)), math.ceil(math.log10(10 * highest)))])
    axes.set_yticklabels([f"up to {floor:.0e}", *(f"{tick:g}" if tick > 5e-4 else f"{tick:.0e}" for tick in ticks[1:])])
    axes.minorticks_off()
    axes.set_ylabel("error (share of the activations' variance)")
    axes.grid(axis="y", color="0.92", linewidth=0.6)


def _name_layers(axes: Axes, report: LayersReport) -> None:
    """Names the layers, or every n-th of many and the one that loses the symmetry."""
    names = [_shortened(layer.name) for layer in report.layers]
    every = math.ceil(len(names) / _MOST_LABELS)
    places = list(range(0, len(names), every))
    lost = next((i for i, layer in enumerate(report.layers) if layer is report.first_lost), None)
    if lost is not None:
        places = sorted({lost, *(place for place in places if abs(place - lost) >= every)})
    axes.set_xticks(places, [names[place] for place in places], rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("layer, in order of execution")


def _shortened(name: str) -> str:
    """The name, or its end, which tells layers apart."""
    return name if len(name) <= _LONGEST_LABEL else "…" + name[1 - _LONGEST_LABEL :]


def _mark(axes: Axes, report: LayersReport, lost: LayerReport) -> None:
    """Shows where the symmetry is lost."""
    place = next(i for i, layer in enumerate(report.layers) if layer is lost)
    place_of_line = place - 0.5 if report.lost_before else place
    axes.axvline(place_of_line, color="0.75", linewidth=5, zorder=0)
    late = place > len(report.layers) / 2
    axes.annotate(
        f"lost in {report.lost_in}, before {lost.name}" if report.lost_before else f"lost at {lost.name}",
        (place_of_line, 0.985),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if late else 5, 0),
        textcoords="offset points",
        horizontalalignment="right" if late else "left",
        verticalalignment="top",
        fontsize=9,
    )
