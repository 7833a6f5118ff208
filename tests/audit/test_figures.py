"""Is each figure there, right and legible, also in grey, in the dark and with many elements and classes?"""

import io
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from invreg.audit.drawing import darken, light_and_dark, png
from invreg.audit.estimate import Estimate
from invreg.audit.figures import class_element_panel, panel_figure, panels, report_figure
from invreg.audit.pictures import saliency_figure, worst_figure
from invreg.audit.report import InvarianceReport
from invreg.audit.samples import SampleTable
from tests.audit import reports

REPORTS = {
    "3 elements, 10 classes": reports.report,
    "7 elements, 3 classes": lambda: reports.report(7, 3),
    "100 elements, 1000 classes": lambda: LARGE,
    "drawn elements": reports.continuous,
    "transforms with long names": reports.transforms,
    "interrupted": reports.troubled,
    "invariant": reports.perfect,
    "known by histograms": reports.in_a_histogram,
    "predicted classes": lambda: reports.report(classes_by="prediction", accuracy=None),
}

LARGE = reports.report(100, 1000)
WIDE = reports.saliency_examples(3, 12, 2)

FIGURES: dict[str, Callable[[], Figure]] = {
    **{name: lambda make=make: report_figure(make()) for name, make in REPORTS.items()},
    "heat map": lambda: panel_figure(class_element_panel(reports.report())),
    "large heat map": lambda: panel_figure(class_element_panel(LARGE)),
    "saliency": lambda: saliency_figure(reports.report()),
    "saliency in colour": lambda: saliency_figure(reports.report(saliency_examples=WIDE)),
    "saliency of signals": lambda: saliency_figure(reports.report(saliency_examples=reports.signal_examples())),
    "saliency of points": lambda: saliency_figure(reports.report(saliency_examples=reports.point_examples())),
    "worst samples": lambda: worst_figure(reports.report()),
}

each_report = pytest.mark.parametrize("name", REPORTS)
each_figure = pytest.mark.parametrize("name", FIGURES)


@cache
def _placed(name: str) -> bytes:
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return pickle.dumps(figure)


def figure_of(name: str) -> Figure:
    """One of the figures, a copy whose parts stand where they shall; that is what takes longest."""
    return pickle.loads(_placed(name))


def pixels(figure: Figure) -> np.ndarray:
    """What a figure looks like, in bytes ``(H, W, 4)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def data_of(axis: Axes) -> list[Artist]:
    return [artist for artist in [*axis.lines, *axis.patches, *axis.collections, *axis.images] if artist.get_visible()]


def check_drawn(figure: Figure) -> None:
    """Raises unless the data of all axes can be seen: without it the picture is another one."""
    plots = [axis for axis in figure.axes if axis.axison]
    assert plots
    before = pixels(figure)
    data = [artist for axis in plots for artist in data_of(axis)]
    for artist in data:
        artist.set_visible(False)
    changed = (before != pixels(figure)).any(-1)
    for artist in data:
        artist.set_visible(True)
    for axis in plots:
        x0, y0, x1, y1 = (round(edge) for edge in axis.bbox.extents)
        seen = changed[len(changed) - y1 : len(changed) - y0, x0:x1].sum()
        assert seen > 40, f"{axis.get_title(loc='left') or axis.get_title()!r} shows nothing: {seen} pixels of data"


def check_told_apart_in_grey(axis: Axes) -> None:
    """Raises if two of the things in a legend differ in nothing but their hue."""
    looks = []
    for handle in axis.get_legend_handles_labels()[0]:
        one = handle[0] if hasattr(handle, "patches") or hasattr(handle, "has_yerr") else handle
        if hasattr(one, "get_marker"):
            looks.append((one.get_marker(), one.get_linestyle()))
        else:
            looks.append((one.get_hatch(), one.get_facecolor()[3] > 0))
    assert len(set(map(str, looks))) == len(looks), looks


def check_names_apart(axis: Axes) -> None:
    """Raises if the names below or beside axes touch each other."""
    below = [label for label in axis.get_xticklabels() if label.get_text()]
    beside = [label for label in axis.get_yticklabels() if label.get_text()]
    for labels, level in ((below, True), (beside, False)):
        for one, other in pairwise(labels):
            a, b = one.get_window_extent(), other.get_window_extent()
            turn = math.radians(one.get_rotation())
            if not level:
                first, second = sorted((a, b), key=lambda box: box.y0)
                assert first.y1 <= second.y0 + 1, (one.get_text(), other.get_text())
            elif turn == 0:
                assert a.x1 < b.x0, (one.get_text(), other.get_text())
            else:  # slanted names touch where the distance across them is less than their height
                apart = axis.transData.transform([(one.get_position()[0], 0), (other.get_position()[0], 0)])
                height = one.get_fontsize() * axis.figure.figure.dpi / 72
                assert (apart[1, 0] - apart[0, 0]) * math.sin(turn) > 0.9 * height, (one.get_text(), other.get_text())


def check_inside(figure: Figure) -> None:
    """Raises if a text reaches over the edge."""
    pixels(figure)
    edge = figure.bbox
    ticks = {
        id(label): interval
        for axis in figure.axes
        for one in (axis.xaxis, axis.yaxis)
        for interval in [sorted(one.get_view_interval())]
        for label in one.get_ticklabels()
        if not interval[0] <= label.get_position()[one is axis.yaxis] <= interval[1]
    }
    for text in shown_texts(figure):
        if id(text) in ticks:
            continue  # of a tick outside the axes, which is not drawn
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edge.x1 + 1 and box.y1 <= edge.y1 + 1
        assert inside, f"{text.get_text()!r} is at {box.extents}, the figure ends at {edge.extents}"


def shown_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def contrast(one, other) -> float:
    """As in WCAG 2."""
    lights = []
    for colour in (one, other):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def check_legible(figure: Figure) -> None:
    """Raises if a text is too pale for what is behind it."""
    texts = [text for text in shown_texts(figure) if text.get_gid() != "keep"]
    assert texts
    for text in texts:
        found = contrast(text.get_color(), figure.get_facecolor())
        assert found >= 4.5, f"{text.get_text()!r} has a contrast of {found:.2f}"


def titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def by_title(figure: Figure, start: str) -> Axes:
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(start))


@each_figure
def test_each_figure_is_a_picture_in_which_every_plot_shows_something(name):
    figure = figure_of(name)
    check_drawn(figure)
    picture = imread(io.BytesIO(png(figure, resolution=50)))
    assert picture.shape[0] > 100
    assert picture.shape[1] > 200
    assert np.ptp(picture[..., :3]) > 0.5


@each_figure
def test_no_text_reaches_over_the_edge(name):
    check_inside(figure_of(name))


@each_report
def test_names_do_not_touch(name):
    figure = figure_of(name)
    assert figure.axes
    for axis in figure.axes:
        check_names_apart(axis)


@each_report
def test_what_is_in_a_legend_is_told_apart_in_grey(name):
    figure = figure_of(name)
    several = [axis for axis in figure.axes if len(axis.get_legend_handles_labels()[0]) > 1]
    assert several
    for axis in several:
        check_told_apart_in_grey(axis)


@each_figure
def test_light_and_dark_are_both_legible(name):
    figure = figure_of(name)
    check_legible(figure)
    darken(figure)
    check_legible(figure)


def test_light_and_dark_are_pictures_of_one_size():
    light, dark = (imread(io.BytesIO(picture)) for picture in light_and_dark(FIGURES["drawn elements"]()))
    assert light.shape == dark.shape
    assert np.median(light[..., :3]) > 0.9
    assert np.median(dark[..., :3]) < 0.15
    assert np.ptp(dark[..., :3]) > 0.5


@each_report
def test_axes_say_what_is_on_them_and_in_which_unit(name):
    for axis in figure_of(name).axes:
        words = axis.get_xlabel() + axis.get_ylabel()
        assert any(unit in words for unit in ("logits squared", "nats", "no unit", "share of samples")), words


def test_a_curve_shows_means_and_standard_errors_by_name():
    report = reports.report(7)
    axis = by_title(report_figure(report), "Logit error (LI)")
    line, _, bars = axis.containers[0]
    means = np.array([one.logit_error.mean for one in report.per_element])
    errors = np.array([one.logit_error.standard_error for one in report.per_element])
    np.testing.assert_allclose(line.get_ydata(), means)
    np.testing.assert_allclose([np.ptp(segment[:, 1]) for segment in bars[0].get_segments()], 2 * errors)
    assert [label.get_text() for label in axis.get_xticklabels()] == [one.name for one in report.per_element]
    assert line.get_marker() == "o"
    assert line.get_linestyle() == "-"


def test_many_elements_are_a_line_in_a_band():
    report = LARGE
    axis = by_title(report_figure(report), "Logit error (LI)")
    assert len(axis.lines[0].get_ydata()) == 100
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(
        max(one.logit_error.mean + one.logit_error.standard_error for one in report.per_element)
    )
    names = {one.name for one in report.per_element}
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert len(shown) >= 8
    assert set(shown) <= names


def test_transforms_have_no_order_and_no_line():
    axis = by_title(figure_of("transforms with long names"), "Logit error (LI) by transform")
    assert axis.containers[0][0].get_linestyle() == "None"
    assert by_title(figure_of("3 elements, 10 classes"), "Logit error (LI) by element").lines[0].get_linestyle() == "-"


def test_the_actions_own_error_and_the_models_noise_stand_beside_the_models():
    report = reports.report(noise_error=Estimate(1.25, 0.1, 500))
    own = Estimate(0.5, 0.1, 500)
    report = replace(report, per_element=tuple(replace(one, action_logit_error=own) for one in report.per_element))
    axis = by_title(report_figure(report), "Logit error (LI)")
    assert set(axis.get_legend_handles_labels()[1]) == {"the model", "of it the action's own", "the model's noise"}
    assert any(set(line.get_ydata()) == {1.25} for line in axis.lines)
    assert any(set(line.get_ydata()) == {0.5} for line in axis.lines)
    plain = by_title(figure_of("3 elements, 10 classes"), "Logit error (LI)")
    assert plain.get_legend() is None


def test_what_stays_the_same_is_on_its_own_plot():
    report = reports.report()
    axis = by_title(report_figure(report), "What stays the same by element")
    assert axis.get_legend_handles_labels()[1] == ["same class", "predicted right", "maps alike (cosine)"]
    np.testing.assert_allclose(axis.containers[0][0].get_ydata(), [one.consistency.mean for one in report.per_element])
    assert axis.get_ylim()[0] < 0 < 1 < axis.get_ylim()[1]


def test_outputs_that_are_no_logits_have_the_normalized_error_instead():
    made = reports.report()
    none = {"distribution_error": None, "consistency": None, "accuracy": None, "saliency_similarity": None}
    made = replace(
        made,
        **none,
        per_class=(),
        per_class_element=(),
        per_element=tuple(replace(one, **none) for one in made.per_element),
    )
    assert titles(report_figure(made)) == [
        "Logit error (LI) by element",
        "Normalized logit error by element",
        "Logit error over samples",
    ]


def test_bars_are_the_classes_with_their_standard_errors():
    report = reports.report()
    axis = by_title(report_figure(report), "Logit error by class")
    bars = next(container for container in axis.containers if hasattr(container, "patches"))
    np.testing.assert_allclose([bar.get_width() for bar in bars], [one.logit_error.mean for one in report.per_class])
    segments = bars.errorbar[2][0].get_segments()
    np.testing.assert_allclose(
        [np.ptp(one[:, 0]) for one in segments], [2 * one.logit_error.standard_error for one in report.per_class]
    )
    assert {bar.get_hatch() for bar in bars} == {"///"}
    assert [label.get_text() for label in axis.get_yticklabels()] == [one.name for one in report.per_class]


def test_of_many_classes_the_worst_are_shown_worst_first_and_the_title_says_so():
    report = LARGE
    axis = by_title(report_figure(report), "Logit error by class: the 20 worst of 1000")
    bars = next(container for container in axis.containers if hasattr(container, "patches"))
    largest = sorted((one.logit_error.mean for one in report.per_class), reverse=True)[:20]
    np.testing.assert_allclose([bar.get_width() for bar in bars], largest)


def heights(axis: Axes, label: str) -> dict[float, float]:
    """The bars of a histogram: their height by their place."""
    bars = next(one for one in axis.containers if one.get_label() == label)
    return {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in bars}


@pytest.mark.parametrize(("label", "name"), [("mean over", "logit_error"), ("worst", "worst_logit_error")])
def test_the_histogram_counts_every_sample_once_on_a_logarithmic_axis(label, name):
    report = reports.report()
    axis = by_title(report_figure(report), "Logit error over samples")
    label = next(known for known in axis.get_legend_handles_labels()[1] if known.startswith(label))
    bars = heights(axis, label)
    assert sum(bars.values()) == pytest.approx(1)
    values = report.per_sample[name]
    zero = min(bars)
    assert bars[zero] == pytest.approx((values == 0).mean())
    positive = {place: height for place, height in bars.items() if place != zero}
    mean = sum(place * height for place, height in positive.items()) / sum(positive.values())
    assert mean == pytest.approx(np.log10(values[values > 0]).mean(), abs=0.02)
    ticks = dict(zip((label.get_text() for label in axis.get_xticklabels()), axis.get_xticks(), strict=True))
    assert ticks["0"] == pytest.approx(zero)
    assert ticks["10"] == pytest.approx(1)


def test_samples_that_only_a_histogram_knows_are_counted_as_the_others():
    whole, parts = (
        by_title(report_figure(one), "Logit error over samples") for one in (reports.report(), reports.in_a_histogram())
    )
    for label in whole.get_legend_handles_labels()[1]:
        one, other = heights(whole, label), heights(parts, label)
        assert sum(other.values()) == pytest.approx(1)
        assert one[min(one)] == other[min(other)]
        places = np.linspace(-1, 3, 60)
        total = [[sum(h for place, h in bars.items() if place <= limit) for limit in places] for bars in (one, other)]
        assert np.abs(np.subtract(*total)).max() < 0.12  # bounds of bins may lie on the other side of a limit


@pytest.mark.parametrize("value", [0.0, 3.0, 1e-30, 1e30])
def test_errors_that_are_all_equal_are_one_bar(value):
    columns = {"index": np.arange(5), "logit_error": np.full(5, value), "worst_logit_error": np.full(5, value)}
    report = reports.report(per_sample=SampleTable(columns))
    axis = by_title(report_figure(report), "Logit error over samples")
    assert list(heights(axis, "mean over elements").values()) == [1.0]
    assert axis.get_xticklabels()


def test_what_there_is_nothing_to_show_of_is_left_out():
    everything = titles(figure_of("3 elements, 10 classes"))
    assert len(everything) == 6
    assert not [title for title in titles(figure_of("drawn elements")) if "element" in title]
    no_classes = reports.report(per_class=(), per_class_element=(), classes_by=None)
    assert titles(report_figure(no_classes)) == [title for title in everything if "class" not in title]
    empty = SampleTable({})
    assert "Logit error over samples" not in titles(report_figure(reports.report(per_sample=empty)))
    nothing = report_figure(reports.continuous(per_class=(), per_sample=empty))
    assert titles(nothing) == []
    assert any("Nothing to draw" in text.get_text() for text in shown_texts(nothing))
    assert class_element_panel(reports.continuous()) is None


def test_the_heat_map_has_a_cell_for_each_pair_and_is_bounded():
    report = reports.report()
    image = panel_figure(class_element_panel(report)).axes[0].images[0].get_array()
    expected = [one.logit_error.mean for one in report.per_class_element]
    np.testing.assert_allclose(np.asarray(image).ravel(), expected)
    large = class_element_panel(LARGE)
    assert panel_figure(large).axes[0].images[0].get_array().shape == (20, 20)
    assert "20 by 20 worst" in large.title


def test_a_name_with_dollar_signs_is_no_formula():
    name = r"class $\frac$"
    report = reports.report(3, 2)
    parts = tuple(replace(one, name=name) for one in report.per_class)
    figure = report_figure(replace(report, model="$x", group=r"$\bad$", per_class=parts))
    pixels(figure)
    assert any(name in text.get_text() for text in shown_texts(figure))


def test_a_name_in_a_script_that_the_font_lacks_does_not_warn():
    report = reports.report(3, 2, model="模型")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(light_and_dark(report_figure(report)))


def test_a_partial_report_says_so():
    assert any("PARTIAL" in text.get_text() for text in shown_texts(figure_of("interrupted")))
    assert not any("PARTIAL" in text.get_text() for text in shown_texts(figure_of("3 elements, 10 classes")))


def test_every_plot_says_in_words_what_there_is_to_see():
    for part in panels(reports.report()):
        assert part.title
        assert part.finding
    assert "180°" in panels(reports.report())[0].finding


# Pictures of samples


def test_saliency_starts_with_the_identity_and_moves_along_the_orbit():
    figure = saliency_figure(reports.report())
    assert len(figure.subfigs) == 4
    words = [one._suptitle.get_text() for one in figure.subfigs]
    assert [one.split(":")[0] for one in words] == ["Least alike", "Typical", "Least alike", "Typical"]
    assert "sample 5, class 0; similarity 0.20" in words[0]
    first = figure.subfigs[0].axes
    assert [axis.get_title() for axis in first[:4]] == ["identity", "90°", "180°", "270°"]
    assert first[4].get_xlabel() == "reference"
    example = reports.saliency_examples()[0]
    shown = np.asarray(first[1].images[0].get_array())
    low, high = example.inputs.min(), example.inputs.max()
    np.testing.assert_allclose(shown, ((example.inputs[1, 0] - low) / (high - low)).numpy(), atol=1e-6)
    over = np.asarray(first[5].images[1].get_alpha())
    np.testing.assert_allclose(over, (example.maps[1, 0] / example.maps[1].max()).numpy(), atol=1e-6)


def test_at_most_eight_elements_are_shown_and_it_says_of_how_many():
    figure = saliency_figure(reports.report(saliency_examples=reports.saliency_examples(3, 12, 2)))
    assert "8 of 12 elements" in figure.subfigs[0]._suptitle.get_text()
    titles_above = [axis.get_title() for axis in figure.subfigs[0].axes if axis.get_title()]
    assert len(titles_above) == 8
    assert titles_above[0] == "identity"
    assert figure.subfigs[0].axes[0].images[0].get_array().shape == (16, 16, 3)


def test_two_channels_are_shown_by_their_mean():
    example = reports.saliency_examples(2, 4, 1)[0]
    figure = saliency_figure(reports.report(saliency_examples=(example,)))
    assert figure.subfigs[0].axes[0].images[0].get_array().shape == (16, 16)


def test_signals_are_curves_and_sets_are_bars():
    signals = saliency_figure(reports.report(saliency_examples=reports.signal_examples())).subfigs[0].axes
    assert len(signals[0].lines) == 2
    assert len(signals[4].collections) == 1
    assert signals[0].get_ylim() == signals[3].get_ylim()
    points = saliency_figure(reports.report(saliency_examples=reports.point_examples())).subfigs[0].axes
    assert len(points[3].patches) == 24


@pytest.mark.parametrize(
    ("shape", "map_shape"),
    [
        ((1, 8, 8), (1, 8, 8)),
        ((8, 8, 3), (8, 8, 1)),
        ((2, 6, 8, 8), (1, 6, 8, 8)),
        ((12, 10), (12, 10)),
        ((3, 50), (3, 50)),
        ((50, 3), (50, 3)),
        ((7,), (7,)),
        ((300,), (300,)),
        ((5, 1), (5, 1)),
    ],
)
def test_any_shape_of_input_can_be_drawn(shape, map_shape):
    example = reports.saliency_examples(1, 3, 1)[0]
    example = replace(example, inputs=torch.randn(3, *shape), maps=torch.rand(3, *map_shape))
    figure = saliency_figure(reports.report(saliency_examples=(example,)))
    check_drawn(figure)


@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
def test_maps_and_inputs_without_any_difference_can_be_drawn(fill):
    example = reports.saliency_examples(1, 3, 1)[0]
    example = replace(example, inputs=torch.full((3, 1, 8, 8), fill), maps=torch.zeros(3, 1, 8, 8))
    pixels(saliency_figure(reports.report(saliency_examples=(example,))))


def test_without_maps_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"saliency=SaliencyMap\(\)"):
        saliency_figure(reports.report(saliency_examples=()))


def test_the_worst_samples_are_shown_before_and_after():
    report = reports.report()
    figure = worst_figure(report)
    pictured = [axis for axis in figure.axes if axis.images]
    assert len(pictured) == 2 * len(report.worst_samples)
    assert pictured[0].get_xlabel() == "predicted 0"
    assert [axis.get_xlabel() for axis in pictured[2:4]] == ["predicted 1", "predicted 4"]
    assert pictured[3].xaxis.label.get_weight() == "bold"
    assert pictured[1].xaxis.label.get_weight() == "normal"
    before, after = (np.asarray(axis.images[0].get_array()) for axis in pictured[:2])
    np.testing.assert_allclose(np.rot90(before), after, atol=1e-6)


def test_nothing_is_drawn_of_samples_that_are_no_pictures():
    def with_inputs(tensor: torch.Tensor | None) -> InvarianceReport:
        samples = tuple(replace(one, input=tensor, transformed=tensor) for one in reports.worst_samples())
        return reports.report(worst_samples=samples)

    assert worst_figure(with_inputs(None)) is None
    assert worst_figure(with_inputs(torch.randn(5, 3))) is None
    assert worst_figure(with_inputs(torch.randn(7))) is None
    assert worst_figure(reports.report(worst_samples=())) is None
    assert worst_figure(with_inputs(torch.randn(2, 50))).axes[0].lines
    assert worst_figure(with_inputs(torch.randn(3, 12, 12))).axes[0].images


# The checks themselves


def test_a_plot_without_its_data_is_found():
    figure = figure_of("3 elements, 10 classes")
    check_drawn(figure)
    for number, axis in enumerate(figure.axes):
        kept = data_of(axis)
        for artist in kept:
            artist.set_visible(False)
        if number in (0, 3, 4):
            with pytest.raises(AssertionError, match="shows nothing"):
                check_drawn(figure)
        for artist in kept:
            artist.set_visible(True)


def test_names_that_touch_are_found():
    figure = figure_of("transforms with long names")
    axis = by_title(figure, "Logit error (LI)")
    for label in axis.get_xticklabels():
        label.set(rotation=0, ha="center")
    pixels(figure)
    with pytest.raises(AssertionError):
        check_names_apart(axis)
    for label in axis.get_xticklabels():
        label.set(rotation=3)
    with pytest.raises(AssertionError):
        check_names_apart(axis)
    rows = by_title(figure, "Logit error by class")
    rows.set_ylim(200, -0.5)
    pixels(figure)
    with pytest.raises(AssertionError):
        check_names_apart(rows)


def test_series_that_only_their_hue_tells_apart_are_found():
    axis = Figure().add_subplot()
    axis.plot([1], [1], "o-", color="red", label="a")
    axis.plot([1], [2], "o-", color="green", label="b")
    with pytest.raises(AssertionError):
        check_told_apart_in_grey(axis)
    axis = Figure().add_subplot()
    for colour in ("red", "green"):
        axis.bar([1], [1], color=colour, label=colour)
    with pytest.raises(AssertionError):
        check_told_apart_in_grey(axis)


def test_texts_over_the_edge_and_pale_texts_are_found():
    figure = figure_of("3 elements, 10 classes")
    figure.text(0.95, 0.5, "far too long for its place")
    with pytest.raises(AssertionError, match="far too long"):
        check_inside(figure)
    figure = figure_of("3 elements, 10 classes")
    figure.text(0.5, 0.5, "pale", color="#999999")
    with pytest.raises(AssertionError, match="pale"):
        check_legible(figure)
    figure = figure_of("3 elements, 10 classes")
    figure.set_facecolor("black")
    with pytest.raises(AssertionError):
        check_legible(figure)
    darken(figure := figure_of("3 elements, 10 classes"))
    check_legible(figure)
    figure.set_facecolor("white")
    with pytest.raises(AssertionError):
        check_legible(figure)
