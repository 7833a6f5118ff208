"""Is the page whole, right and legible in a browser, on a desk and on a phone, in the light and in the dark?"""

import html
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import invreg.audit.page as page_module
from invreg.audit.estimate import Estimate
from invreg.audit.page import page, verdict, write_page
from invreg.audit.samples import SampleTable
from invreg.audit.text import cautions, headline, how, tables
from tests.audit import reports
from tests.browser import ILLEGIBLE, OVERFLOWING, browser


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    invariance_error: Estimate | None
    equivariance_error: Estimate | None


@dataclass(frozen=True)
class Layers:
    """What the page needs of a report on layers."""

    layers: tuple[Layer, ...]
    lost: str

    def summary(self) -> str:
        return self.lost

    def plot(self) -> Figure:
        figure = Figure(figsize=(9, 4), layout="constrained")
        axis = figure.add_subplot()
        axis.plot([one.invariance_error.mean for one in self.layers], "o-")
        return figure


LOST = Layer("3 <fc>", "Linear", Estimate(0.5, 0.1, 100), None)
LAYERS = Layers(
    (Layer("0", "Conv2d", Estimate(0.01, 0.001, 100), Estimate(0.0, 0.0, 100)), LOST), "symmetry lost at 3 <fc>"
)

PAGES = {
    "whole": lambda: page(reports.report(), layers=LAYERS),
    "troubled": lambda: page(reports.troubled(worst_samples=(), saliency_examples=())),
    "large": lambda: page(reports.report(40, 60, worst_samples=(), saliency_examples=())),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The pages, each made once: paths by name."""
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def chromium():
    with browser() as one:
        yield one


@pytest.fixture
def _few_pictures(monkeypatch):
    """Draws only the first figure of a page, where its text is looked at."""
    every = page_module.panels
    monkeypatch.setattr(page_module, "panels", lambda report: every(report)[:1])
    monkeypatch.setattr(page_module, "class_element_panel", lambda report: None)


def small(**changes):
    """A report whose page has no figures."""
    nothing = {"per_element": (), "per_class": (), "per_class_element": (), "worst_samples": ()}
    return reports.report(**(nothing | {"per_sample": SampleTable({}), "saliency_examples": ()} | changes))


def words(source: str) -> str:
    """What stands on a page, without its tags."""
    text = re.sub(r"<style>.*?</style>", " ", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


class Parsed(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def check_self_contained(source: str) -> None:
    """Raises if a page has scripts or refers to anything outside itself."""
    parsed = Parsed(source)
    assert not parsed.of("script", "iframe", "object", "embed", "link", "base", "form")
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "srcset", "href", "data", "poster", "action"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), f"{name}={value!r:.60}"
    assert not re.search(r"url\(|@import", source)


def check_described(source: str) -> None:
    """Raises unless the page has a title and each picture a description."""
    parsed = Parsed(source)
    assert re.search(r"<title>[^<]+</title>", source)
    assert parsed.of("html")[0]["lang"] == "en"
    assert parsed.of("img")
    for image in parsed.of("img"):
        assert len(image.get("alt") or "") > 20, str(image)[:80]


def check_fits(browser_page) -> None:
    """Raises if something reaches over the right edge."""
    found = browser_page.evaluate(OVERFLOWING)
    assert not found, found


def check_legible(browser_page) -> None:
    """Raises if text is too pale or too dark for what is behind it."""
    answer = browser_page.evaluate(ILLEGIBLE)
    assert answer["seen"] > 30
    assert not answer["found"], answer["found"]


def check_asks_for_nothing(browser_page, path: Path) -> None:
    """Raises if showing the page asked for anything but the page."""
    asked = [url for url in browser_page.requests if not url.startswith("data:")]
    assert asked == [path.resolve().as_uri()]


# In a browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_is_legible(written, chromium, name, width, dark):
    chromium.open(written[name], width=width, dark=dark)
    assert chromium.evaluate("innerWidth") == width
    check_fits(chromium)
    check_legible(chromium)
    check_asks_for_nothing(chromium, written[name])
    assert chromium.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_pictures_are_shown_in_the_dark_and_in_the_light(written, chromium):
    shown = "[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.currentSrc])"
    seen = {}
    for dark in (False, True):
        chromium.open(written["whole"], width=390, dark=dark)
        seen[dark] = chromium.evaluate(shown)
        assert len(seen[dark]) == 10
        assert all(natural > 300 and width > 200 for natural, width, _ in seen[dark])
    assert not {source for *_, source in seen[False]} & {source for *_, source in seen[True]}


def test_on_a_phone_wide_tables_and_figures_scroll_in_their_own_box(written, chromium):
    chromium.open(written["whole"], width=390)
    boxes = "[...document.querySelectorAll('.scroll, figure.wide')].filter(b => b.scrollWidth > b.clientWidth).length"
    assert chromium.evaluate(boxes) >= 4


def test_the_browser_reads_the_same_title_and_runs_no_script(written, chromium):
    chromium.open(written["troubled"])
    assert chromium.evaluate("document.title") == headline(reports.troubled())
    assert chromium.evaluate("document.scripts.length") == 0
    assert chromium.evaluate("document.querySelectorAll('[onerror]').length") == 0
    assert chromium.evaluate("document.querySelectorAll('b').length") == 0


# What it says


def test_each_page_is_self_contained_and_described(written):
    for path in written.values():
        check_self_contained(path.read_text(encoding="utf-8"))
        check_described(path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("_few_pictures")
@pytest.mark.parametrize("make", [reports.report, reports.troubled, reports.continuous, reports.transforms])
def test_it_says_what_print_says(make):
    report = make()
    there = words(page(replace(report, saliency_examples=(), worst_samples=report.worst_samples[:1])))
    for line in (headline(report), *how(report), *cautions(report)):
        assert " ".join(line.split()) in there
    report = replace(report, worst_samples=report.worst_samples[:1])
    assert tables(report)
    for table in tables(report):
        for cell in (table.title, *table.header, *(cell for row in table.rows for cell in row), table.note):
            assert " ".join(cell.split()) in there, cell


def test_it_says_with_what_and_how_it_was_made():
    there = words(
        page(small(provenance={"torch": "2.9", "seed": 7, "seconds": 1.23456789, "data": None, "time": "2026-01-02"}))
    )
    for expected in (
        "Sequential",
        "CyclicRotation(4)",
        "500 measured of 500",
        "SaliencyMap()",
        "torch 2.9",
        "seed 7",
        "seconds 1.235",
    ):
        assert expected in there
    assert "data none" in there
    assert "time 2026-01-02" in there


def test_warnings_stand_in_a_box_of_their_own(written):
    box = re.search(r'<section class="warning".*?</section>', written["troubled"].read_text("utf-8"), re.DOTALL)
    assert box is not None
    for word in ("PARTIAL", "SKIPPED: at least 20 samples of 520", "NOT above that noise"):
        assert word in words(box.group())
    assert 'class="warning"' not in page(small())
    interpolates = small(action_error=Estimate(0.1, 0.01, 500), action_logit_error=Estimate(3.1, 0.1, 500))
    assert "logit error 50% as large" in words(page(interpolates))
    assert "20% away from adding up" in words(page(small(completeness_gap=0.2)))


def test_samples_left_out_are_listed_with_their_reasons(written):
    there = words(written["troubled"].read_text("utf-8"))
    assert "Samples left out 20 in all" in there
    assert '17 1 NaN in <input id="1"> & more' in there
    assert "400 not known OSError: the loader failed" in there
    assert "Samples left out" not in words(written["whole"].read_text("utf-8"))


def test_names_cannot_add_tags(written):
    source = written["troubled"].read_text("utf-8")
    for raw in ("<script>", "<b>", "<input", "<img src=x", "Swaps<a"):
        assert raw not in source
    assert "&lt;script&gt;" in source


def test_layers_are_shown_where_given(written):
    there = words(written["whole"].read_text("utf-8"))
    assert "Symmetry lost at 3 <fc>." in there
    assert "0 Conv2d 0.01 ± 0.001 0 ± 0" in there
    assert "3 <fc> Linear 0.5 ± 0.1 -" in there
    assert "Where in the model" not in words(page(small()))


@pytest.mark.usefixtures("_few_pictures")
def test_a_report_read_from_a_dictionary_can_be_written(tmp_path):
    made = reports.report()
    read = type(made).from_dict(made.to_dict(per_sample=False))
    write_page(read, tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text("utf-8")
    assert "Where the model looks" not in words(source)
    assert 'alt="Logit error (LI) by element; largest: 12 ± 0.72 under 180°."' in source


# The verdict


def points(report) -> dict[str, str]:
    return dict(verdict(report).points)


def test_the_verdict_follows_the_numbers():
    def of(**changes) -> tuple[str, str]:
        found = verdict(small(**changes))
        return found.answer, found.level

    nothing = Estimate(0.0, 0.0, 500)
    tiny = Estimate(1e-12, 1e-14, 500)
    assert of() == ("No, not invariant", "no")
    assert of(consistency=reports.share(0.95)) == ("Mostly invariant", "partly")
    assert of(consistency=reports.share(0.995)) == ("Almost invariant", "partly")
    assert of(consistency=reports.share(1)) == ("Its decisions are invariant, its logits are not", "partly")
    assert of(logit_error=nothing) == ("Yes, exactly invariant", "yes")
    assert of(logit_error=tiny, normalized_logit_error=tiny) == ("Yes, invariant up to rounding", "yes")
    assert of(output_action="permutation") == ("No, not equivariant", "no")
    noise = {"noise_error": Estimate(6.0, 0.1, 500), "noise_excess": Estimate(0.2, 0.2, 500)}
    assert of(**noise) == ("Cannot be told from the model's noise", "unknown")
    assert of(**(noise | {"noise_excess": Estimate(2.0, 0.2, 500)}))[1] == "no"
    own = {"action_logit_error": Estimate(6.0, 0.3, 500)}
    assert of(**own) == ("Cannot be told from the action's own error", "unknown")
    assert of(action_logit_error=Estimate(1.0, 0.3, 500))[1] == "no"
    other = {"consistency": None, "distribution_error": None, "accuracy": None}
    assert of(**other) == ("No, not invariant", "no")
    assert of(**other, normalized_logit_error=Estimate(0.0025, 0.0001, 500)) == ("Mostly invariant", "partly")
    assert of(**other, normalized_logit_error=Estimate(0.000025, 0.0, 500)) == ("Almost invariant", "partly")


def test_the_verdict_says_how_sure_it_is():
    found = points(small(logit_error=Estimate(6.0, 0.5, 500), consistency=Estimate(0.75, 0.02, 500)))
    assert "between 5.02 and 6.98" in found["How sure"]
    assert "21% to 29% of the predictions change" in found["How sure"]
    assert "one sample" in points(small(logit_error=Estimate(6.0, None, 1), samples=1))["How sure"]
    assert "fewer than 0.6%" in points(small(logit_error=Estimate(0.0, 0.0, 500)))["How sure"]
    assert "rough" in points(small(samples=10))["How sure"]
    assert "rough" not in found["How sure"]
    assert "all 3 elements" in found["To what"]
    assert "4 elements were drawn" in points(reports.continuous())["To what"]


def test_the_verdict_names_the_worst_element_and_class_only_if_they_stand_out():
    found = points(reports.report())
    assert found["Worst element"].startswith("By logit error, 180°: 12 (1.9 times the mean), 50% of the pred")
    worst = max(reports.report().per_class, key=lambda one: one.logit_error.mean)
    assert found["Worst class"].startswith(f"By logit error, {worst.name}: ")
    alike = tuple(
        replace(one, logit_error=Estimate(6 + 0.1 * one.element, 0.5, 500)) for one in reports.report().per_element
    )
    assert points(reports.report(per_element=alike))["Worst element"].startswith("None stands out")
    assert points(reports.perfect())["Worst element"] == "None: all are at 0."
    assert "Worst transform" in points(reports.transforms())
    assert "Worst element" not in points(reports.continuous())
    guessed = points(reports.report(classes_by="prediction"))
    assert guessed["Worst class"].startswith(f"By logit error, predicted {worst.name}")


def test_the_verdict_tells_right_answers_and_where_the_model_looks():
    found = points(small())
    assert found["Right answers"].startswith("95% of the samples are predicted right as they are, 74% on average")
    assert found["Where it looks"].startswith("Partly")
    kept = {"consistency": reports.share(0.99), "saliency_similarity": reports.share(0.2)}
    assert "different evidence" in points(small(**kept))["Where it looks"]
    assert "different evidence" not in points(small(saliency_similarity=reports.share(0.2)))["Where it looks"]
    assert "Right answers" not in points(small(accuracy=None))
    assert "Where it looks" not in points(small(saliency_similarity=None))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.5, "50%"),
        (0.004, "0.4%"),
        (0.0004, "0.04%"),
        (1e-9, "less than 0.01%"),
        (0.999, "99.9%"),
        (0.9999999, "more than 99.99%"),
    ],
)
def test_only_nothing_is_0_percent_and_only_everything_100(share, expected):
    found = points(small(accuracy=Estimate(share, 0.0, 500)))["Right answers"]
    assert found.startswith(f"{expected} of the samples")


# The file


def test_a_page_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    write_page(small(), target)
    assert "Invariance of Sequential" in target.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [target]
    write_page(small(), str(tmp_path / "as_text.html"))
    assert (tmp_path / "as_text.html").exists()


def test_a_page_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    broken = Layers(LAYERS.layers[:1], "")
    object.__setattr__(broken, "layers", None)
    with pytest.raises(TypeError):
        write_page(small(), target, layers=broken)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_missing_and_one_in_the_files_place_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must exist: there is no .*missing\. Make it first"):
        write_page(small(), tmp_path / "missing" / "report.html")
    assert not (tmp_path / "missing").exists()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_page(small(), tmp_path)


# The checks themselves


@pytest.fixture
def broken(written, tmp_path):
    """Makes a page with one thing changed."""

    def changed(old: str, new: str) -> Path:
        source = written["troubled"].read_text("utf-8")
        assert old in source
        (tmp_path / "broken.html").write_text(source.replace(old, new, 1), encoding="utf-8")
        return tmp_path / "broken.html"

    return changed


@pytest.mark.parametrize("old", [".scroll { overflow-x: auto; }", "figure img { display: block; height: auto;"])
def test_what_overflows_is_found(chromium, broken, old):
    new = ".scroll { }" if old.startswith(".scroll") else "figure { overflow: visible } figure img { min-width: 900px;"
    chromium.open(broken(old, new), width=390)
    with pytest.raises(AssertionError, match=r"page|IMG|TABLE|TD"):
        check_fits(chromium)


@pytest.mark.parametrize(
    ("dark", "old", "new"),
    [
        (False, "--soft: #555555", "--soft: #999999"),
        (True, "--soft: #b0b0b0", "--soft: #666666"),
        (True, "--warn-ink: #ffdf9a", "--warn-ink: #5a3a00"),
        (True, "--card: #161616", "--card: #ffffff"),
    ],
)
def test_what_is_illegible_is_found(chromium, broken, dark, old, new):
    chromium.open(broken(old, new), dark=dark)
    with pytest.raises(AssertionError):
        check_legible(chromium)
    chromium.open(broken(old, new), dark=not dark)
    check_legible(chromium)


def test_what_asks_the_network_is_found(chromium, broken):
    path = broken("<main>", '<main><img src="data:,">')
    chromium.open(path)
    check_asks_for_nothing(chromium, path)
    policy = '<meta http-equiv="Content-Security-Policy"'
    path = broken(policy, f'<img src="{Path(__file__).as_uri()}">{policy.replace("Content", "No")}')
    chromium.open(path)
    with pytest.raises(AssertionError):
        check_asks_for_nothing(chromium, path)


def test_what_refers_elsewhere_or_is_not_described_is_found():
    whole = page(reports.continuous(per_class=(), worst_samples=(), saliency_examples=()))
    check_self_contained(whole)
    check_described(whole)
    for more in (
        "<script></script>",
        '<img src="http://a.example/b.png">',
        '<link rel="stylesheet" href="a.css">',
        '<a href="https://a.example">a</a>',
        '<p onclick="a()">',
        "<style>p { background: url(a.png) }</style>",
    ):
        with pytest.raises(AssertionError):
            check_self_contained(whole + more)
    for old, new in (('alt="', 'title="'), ("<title>", "<titles>"), ('lang="en"', 'lang=""')):
        with pytest.raises(AssertionError):
            check_described(whole.replace(old, new))
