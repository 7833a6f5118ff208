"""Does a report come back from what is saved of it, and refuse what it cannot know?"""

import dataclasses
import json
import math
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg import CyclicRotation, Estimate, InvarianceReport, PlanarRotation, Trivial, measure_invariance
from invreg.audit.histogram import LogHistogram
from invreg.audit.report import SCHEMA, WITH_QUANTILES, SliceReport
from invreg.audit.samples import WHOLE_NUMBERS, SampleTable, SkippedSamples, WorstSample
from invreg.audit.tally import OVER_SAMPLES
from tests import oracle

E = Estimate(0.25, 0.03125, 100)


def part(name: str, element: int | None, label: int | None, error: float, **changes) -> SliceReport:
    """A part of the data by hand."""
    fields = {
        "name": name,
        "element": element,
        "label": label,
        "logit_error": Estimate(error, 0.125, 100),
        "distribution_error": E,
        "normalized_logit_error": E,
        "saliency_similarity": Estimate(0.5, 0.25, 10),
        "accuracy": E,
        "group_accuracy": E if element is None else None,
        "orbit_accuracy": E if element is None else None,
        "consistency": E,
        "action_error": None,
        "action_logit_error": None,
    }
    return SliceReport(**(fields | changes))


def worst(index: int, error: float, **changes) -> WorstSample:
    fields = {
        "index": index,
        "element": 2,
        "name": "240°",
        "logit_error": error,
        "distribution_error": 0.125,
        "normalized_logit_error": 0.5,
        "label": 3,
        "prediction": 3,
        "transformed_prediction": 0,
    }
    return WorstSample(**(fields | changes))


def samples(count: int = 100) -> SampleTable:
    """Errors of 1 to ``count``, in no order, and maps of the first ten samples."""
    errors = (37.0 * np.arange(count)) % count + 1
    return SampleTable(
        {
            "index": np.arange(count),
            "worst_element": np.arange(count) % 2 + 1,
            "label": np.arange(count) % 4,
            "prediction": np.arange(count) % 3,
            "logit_error": errors,
            "distribution_error": errors / 8,
            "normalized_logit_error": errors / 16,
            "saliency_similarity": np.where(np.arange(count) < 10, 0.5, np.nan),
            "worst_logit_error": 2 * errors,
        }
    )


def report(**changes) -> InvarianceReport:
    """A report by hand."""
    elements = (part("120°", 1, None, 0.5), part("240°", 2, None, 1.0))
    classes = (part("class 0", None, 0, 2.0), part("class 3", None, 3, 1.0))
    fields = {
        "model": "Sequential",
        "group": "CyclicRotation(order=3)",
        "is_group": True,
        "output_action": None,
        "seen": 100,
        "samples": 100,
        "elements": 2,
        "exhaustive": True,
        "ended": "complete",
        "logit_error": Estimate(12.3456789, 0.0123456, 100),
        "distribution_error": E,
        "normalized_logit_error": E,
        "worst_logit_error": Estimate(20.0, 0.5, 100),
        "saliency_similarity": Estimate(0.75, 0.125, 10),
        "saliency": "SaliencyMap()",
        "completeness_gap": 0.0123,
        "accuracy": Estimate(0.875, 0.0625, 100),
        "group_accuracy": E,
        "orbit_accuracy": E,
        "consistency": E,
        "action_error": None,
        "action_logit_error": None,
        "noise_error": None,
        "noise_excess": None,
        "noise_consistency": None,
        "per_element": elements,
        "per_class": classes,
        "classes_by": "label",
        "per_class_element": tuple(
            part(f"{c.name}, {e.name}", e.element, c.label, 0.5) for c in classes for e in elements
        ),
        "worst_samples": (worst(7, 40.0), worst(11, 30.5, element=1, name="120°", transformed_prediction=3)),
        "skipped": 0,
        "skipped_samples": (),
        "per_sample": samples(),
        "histograms": {},
        "provenance": {"data": "list", "seed": None, "seconds": 1.5},
    }
    return InvarianceReport(**(fields | changes))


def without(*names: str, of: InvarianceReport | None = None, **changes) -> InvarianceReport:
    """The report without these numbers, in its parts and samples too."""
    of = report() if of is None else of
    parts = {
        where: tuple(
            dataclasses.replace(one, **{name: None for name in names if hasattr(one, name)})
            for one in getattr(of, where)
        )
        for where in ("per_element", "per_class", "per_class_element")
    }
    parts["worst_samples"] = tuple(
        dataclasses.replace(one, **{name: None for name in names if hasattr(one, name)}) for one in of.worst_samples
    )
    table = SampleTable({name: column for name, column in of.per_sample.columns.items() if name not in names})
    missing = {name: None for name in names if hasattr(of, name)}
    return dataclasses.replace(of, per_sample=table, **(missing | parts | changes))


def without_labels() -> InvarianceReport:
    return without("accuracy", "group_accuracy", "orbit_accuracy", "label", classes_by="prediction")


def without_saliency() -> InvarianceReport:
    return without("saliency_similarity", saliency=None, completeness_gap=None)


def of_values() -> InvarianceReport:
    """Of outputs that are no logits and move along."""
    names = ("accuracy", "group_accuracy", "orbit_accuracy", "consistency", "distribution_error", "saliency_similarity")
    return without(
        *(*names, "label", "prediction", "transformed_prediction"),
        output_action="CyclicRotation(order=3)",
        saliency=None,
        completeness_gap=None,
        classes_by=None,
        per_class=(),
        per_class_element=(),
    )


def of_one_sample() -> InvarianceReport:
    one = {
        field.name: Estimate(value.mean, None, 1)
        for field in dataclasses.fields(InvarianceReport)
        if isinstance(value := getattr(report(), field.name), Estimate)
    }
    parts = {
        where: tuple(
            dataclasses.replace(
                of, **{name: Estimate(0.5, None, 1) for name in one if getattr(of, name, None) is not None}
            )
            for of in getattr(report(), where)
        )
        for where in ("per_element", "per_class", "per_class_element")
    }
    return report(seen=1, samples=1, per_sample=samples(1), worst_samples=(worst(0, 2.0),), **one, **parts)


def with_histograms() -> InvarianceReport:
    """Twenty samples are known one by one, the others in histograms."""
    table, histograms = samples(), {name: LogHistogram() for name in WITH_QUANTILES}
    for name, histogram in histograms.items():
        histogram.add(table[name][20:])
    return report(per_sample=table.taken(slice(20)), histograms=histograms)


def troubled() -> InvarianceReport:
    """Interrupted, noisy, with samples left out."""
    return report(
        ended="interrupted",
        seen=104,
        skipped=4,
        skipped_samples=(
            SkippedSamples(17, 1, "The model's outputs must be finite"),
            SkippedSamples(30, 3, "a | b"),
            SkippedSamples(90, None, "OSError: disk gone"),
        ),
        noise_error=Estimate(12.0, 0.5, 100),
        noise_excess=Estimate(0.25, 0.5, 100),
        noise_consistency=E,
    )


def of_an_infinite_group() -> InvarianceReport:
    return report(
        group="PlanarRotation()",
        exhaustive=False,
        per_element=(),
        per_class_element=(),
        action_error=E,
        action_logit_error=Estimate(0.5, 0.0625, 100),
        worst_samples=(worst(7, 40.0, element=(0.5, -1.25), name="[0.5, -1.25]"),),
        per_class=tuple(
            dataclasses.replace(one, action_error=E, action_logit_error=E, saliency_similarity=None)
            for one in report().per_class
        ),
    )


REPORTS = {
    "full": report(),
    "without labels": without_labels(),
    "without saliency": without_saliency(),
    "of values": of_values(),
    "of one sample": of_one_sample(),
    "without elements": report(per_element=(), per_class_element=(), exhaustive=False),
    "of another map method": report(saliency="<function mine>", completeness_gap=None),
    "with histograms": with_histograms(),
    "troubled": troubled(),
    "of an infinite group": of_an_infinite_group(),
    "stopped at its precision": report(ended="precise"),
    "without samples": report(per_sample=SampleTable({})),
    "without worst samples": report(worst_samples=()),
}

every_report = pytest.mark.parametrize("name", REPORTS)


# As data


@every_report
def test_comes_back_from_a_dictionary_and_from_json(name):
    original = REPORTS[name]
    assert InvarianceReport.from_dict(original.to_dict()) == original
    assert InvarianceReport.from_dict(json.loads(original.to_json())) == original


@every_report
def test_is_equal_by_value_also_after_pickling(name):
    assert pickle.loads(pickle.dumps(REPORTS[name])) == REPORTS[name]


def test_reports_that_differ_are_not_equal():
    assert [name for name, one in REPORTS.items() if one == report()] == ["full"]
    assert report(logit_error=Estimate(0.0, 0.0, 100)) != report()
    assert len({report(), report(), without_labels()}) == 2


@every_report
def test_the_dictionary_holds_plain_values_under_the_names_of_the_fields(name):
    state = REPORTS[name].to_dict()
    fields = [field.name for field in dataclasses.fields(InvarianceReport) if field.name != "saliency_examples"]
    assert list(state) == ["schema", *fields]
    assert state["schema"] == SCHEMA == 2

    def check(value) -> int:
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            return sum(map(check, value.values()))
        if isinstance(value, list):
            return sum(map(check, value))
        assert value is None or type(value) in (bool, int, float, str)
        assert not (type(value) is float and math.isnan(value))
        return 1

    assert check(state) > 30
    assert all("input" not in one and "transformed" not in one for one in state["worst_samples"])


def test_the_dictionary_by_hand():
    state = report().to_dict()
    assert state["logit_error"] == {"mean": 12.3456789, "standard_error": 0.0123456, "count": 100}
    assert state["per_element"][1]["element"] == 2
    assert state["per_element"][1]["logit_error"] == {"mean": 1.0, "standard_error": 0.125, "count": 100}
    assert of_one_sample().to_dict()["logit_error"]["standard_error"] is None


def test_json_is_standard_and_meant_to_be_read():
    text = of_one_sample().to_json()
    assert "NaN" not in text
    assert '\n  "model": "Sequential",\n' in text
    assert json.loads(text) == of_one_sample().to_dict()


def test_a_dictionary_is_not_changed_by_reading_it():
    state = report().to_dict()
    InvarianceReport.from_dict(state)
    assert state == report().to_dict()


@pytest.mark.parametrize("schema", [0, 1, 3, None, "2", 2.5])
def test_another_schema_is_refused(schema):
    with pytest.raises(ValueError, match=r"must have schema 2: got"):
        InvarianceReport.from_dict(report().to_dict() | {"schema": schema})


def test_a_dictionary_without_a_schema_is_refused():
    with pytest.raises(ValueError, match=r"must have schema 2: got None"):
        InvarianceReport.from_dict({})


def test_missing_and_unknown_fields_are_named():
    state = report().to_dict() | {"colour": 3}
    del state["consistency"]
    with pytest.raises(ValueError, match=r"missing \['consistency'\], unknown \['colour'\]"):
        InvarianceReport.from_dict(state)


@pytest.mark.parametrize("change", ["missing", "unknown"])
@pytest.mark.parametrize("where", ["estimate", "element"])
def test_missing_and_unknown_fields_within_are_refused(where, change):
    state = report().to_dict()
    inner = state["logit_error"] if where == "estimate" else state["per_element"][0]
    if change == "missing":
        del inner["mean" if where == "estimate" else "consistency"]
    else:
        inner["colour"] = 3
    with pytest.raises(ValueError, match=r"fields|missing|unknown|colour|mean|consistency"):
        InvarianceReport.from_dict(state)


# As values


def test_is_frozen():
    for value in (report(), report().per_element[0], report().logit_error):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, 0)


def test_an_estimate_is_a_number():
    assert float(Estimate(0.5, 0.1, 3)) == 0.5
    assert str(Estimate(0.5, 0.1, 3)) == "0.5 ± 0.1"
    assert str(Estimate(1234.5678, 12.345, 3)) == "1235 ± 12"
    assert str(Estimate(0.5, None, 1)) == "0.5"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(InvarianceReport)])
def test_a_report_with_another_value_is_another_one_but_for_what_is_not_compared(name):
    other = {
        "per_sample": samples(99),
        "histograms": {"logit_error": LogHistogram({1: 2})},
        "saliency_examples": ("any",),
        "provenance": {},
    }.get(name, "another")
    changed = dataclasses.replace(report(), **{name: other})
    assert (changed == report()) == (name in ("provenance", "saliency_examples"))


@pytest.mark.parametrize("column", samples().columns)
def test_one_number_of_one_sample_makes_another_report(column):
    columns = {name: values.copy() for name, values in samples().columns.items()}
    columns[column][3] += 1
    assert report(per_sample=SampleTable(columns)) != report()
    del columns[column]
    assert report(per_sample=SampleTable(columns)) != report()


# As data: what comes back


def test_what_comes_back_has_the_types_that_it_had():
    for one in (with_histograms(), troubled(), of_an_infinite_group()):
        again = InvarianceReport.from_dict(json.loads(one.to_json()))
        for name, column in one.per_sample.columns.items():
            assert again.per_sample[name].dtype == column.dtype, name
        assert [type(w.element) for w in again.worst_samples] == [type(w.element) for w in one.worst_samples]
        assert again.skipped_samples == one.skipped_samples
        assert again.provenance == one.provenance
        assert {type(count) for h in again.histograms.values() for pair in h.counts.items() for count in pair} <= {int}
        for share in (0.0, 0.1, 0.5, 0.99, 1.0):
            assert again.quantile("logit_error", share) == one.quantile("logit_error", share)


def test_images_and_maps_are_not_saved():
    image = torch.ones(1, 2, 2)
    pictured = report(worst_samples=(worst(7, 40.0, input=image, transformed=image),), saliency_examples=("maps",))
    again = InvarianceReport.from_dict(json.loads(pictured.to_json()))
    assert again == pictured
    assert again.saliency_examples == ()
    assert again.worst_samples[0].input is again.worst_samples[0].transformed is None


def test_numbers_that_were_not_measured_are_null_and_come_back_as_nan():
    state = report().to_dict()
    assert state["per_sample"]["saliency_similarity"] == [0.5] * 10 + [None] * 90
    column = InvarianceReport.from_dict(state).per_sample["saliency_similarity"]
    assert np.isnan(column[10:]).all()
    assert (column[:10] == 0.5).all()


@every_report
def test_without_samples_all_else_is_kept(name):
    original = REPORTS[name]
    state = json.loads(original.to_json(per_sample=False))
    assert state == json.loads(original.to_json()) | {"per_sample": {}, "histograms": {}}
    again = InvarianceReport.from_dict(state)
    assert again == dataclasses.replace(original, per_sample=SampleTable({}), histograms={})
    with pytest.raises(ValueError, match=r"saved without its samples, per_sample=False: it knows no quantiles"):
        again.quantile("logit_error", 0.5)
    with pytest.raises(ValueError, match=r"needs all \d+ samples, but the report has 0"):
        again.bootstrap("logit_error")
    with pytest.raises(ValueError, match=r"must have numbers of single samples: audit with kept_samples="):
        again.compare(report(group=again.group))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("per_class", "SliceReport"),
        ("per_class_element", "SliceReport"),
        ("worst_samples", "WorstSample"),
        ("skipped_samples", "SkippedSamples"),
    ],
)
def test_parts_with_other_fields_are_refused_by_name(name, kind):
    state = troubled().to_dict()
    missing = next(iter(state[name][0]))
    del state[name][0][missing]
    state[name][0]["colour"] = 3
    with pytest.raises(ValueError, match=rf"{kind} must have .*missing \['{missing}'\], unknown \['colour'\]"):
        InvarianceReport.from_dict(state)


def test_what_is_no_dictionary_is_refused():
    with pytest.raises(ValueError, match=r"got str\. Use json\.loads on a text"):
        InvarianceReport.from_dict(report().to_json())
    with pytest.raises(ValueError, match=r"SliceReport must have"):
        InvarianceReport.from_dict(report().to_dict() | {"per_class": [3]})


# As data: tables


def test_a_data_frame_has_the_columns_of_per_sample():
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = report().to_dataframe()
    assert list(frame.columns) == list(report().per_sample.columns)
    assert len(frame) == 100
    for name, column in report().per_sample.columns.items():
        np.testing.assert_array_equal(frame[name].to_numpy(), column, strict=True)


def test_a_data_frame_is_made_of_the_columns(monkeypatch):
    """Also where pandas is not installed."""
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    frame = report().to_dataframe()
    assert SampleTable(frame) == report().per_sample


def test_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas\. per_sample has the same columns") as caught:
        report().to_dataframe()
    assert isinstance(caught.value.__cause__, ImportError)


# Quantiles and other properties


@pytest.mark.parametrize("share", [0, 0.004, 0.07, 0.14, 0.28, 0.29, 0.5, 0.505, 0.55, 0.57, 0.99, 0.995, 1])
def test_quantiles_of_kept_samples_are_exact(share):
    for name in WITH_QUANTILES:
        values = report().per_sample[name].tolist()
        assert report().quantile(name, share) == oracle.quantile(values, share)


def test_quantiles_by_hand():
    """The errors are 1 to 100."""
    assert [report().quantile("logit_error", share) for share in (0, 0.01, 0.015, 0.5, 0.9, 1)] == [
        1,
        1,
        2,
        50,
        90,
        100,
    ]
    assert report().quantile("worst_logit_error", 0.5) == 100


def test_the_oracles_quantile_is_the_inverted_distribution_function():
    values = [3.0, 1.0, 2.0, 2.0]
    assert [oracle.quantile(values, share) for share in (0, 0.25, 0.26, 0.75, 0.76, 1)] == [1, 1, 2, 2, 3, 3]
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 64):
        values = rng.normal(size=size)
        for share in (0, 0.125, 0.3, 0.5, 0.77, 1):
            assert oracle.quantile(values.tolist(), share) == np.quantile(values, share, method="inverted_cdf")


@pytest.mark.parametrize("share", [-0.01, 1.01, 50, math.nan])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"share must be between 0 and 1: got .*0\.5 for the median"):
        report().quantile("logit_error", share)


def test_quantiles_of_what_has_none_are_refused():
    with pytest.raises(ValueError, match=r"known of \['logit_error', .*'worst_logit_error'\]: got 'accuracy'"):
        report().quantile("accuracy", 0.5)
    known = r"\['logit_error', 'normalized_logit_error', 'worst_logit_error'\]"
    with pytest.raises(ValueError, match=rf"known of {known}: got 'distribution_error'"):
        of_values().quantile("distribution_error", 0.5)


def test_estimates_are_the_numbers_that_were_measured():
    names = list(report().estimates)
    assert names == [
        "logit_error",
        "distribution_error",
        "normalized_logit_error",
        "worst_logit_error",
        "saliency_similarity",
        "accuracy",
        "group_accuracy",
        "orbit_accuracy",
        "consistency",
    ]
    assert report().estimates["logit_error"] == report().logit_error
    assert list(of_values().estimates) == ["logit_error", "normalized_logit_error", "worst_logit_error"]
    assert {"noise_error", "noise_excess", "noise_consistency"} <= troubled().estimates.keys()
    assert {"action_error", "action_logit_error"} <= of_an_infinite_group().estimates.keys()


@pytest.mark.parametrize(
    ("excess", "within"),
    [
        (None, False),
        (Estimate(0.2, 0.1, 9), True),
        (Estimate(0.21, 0.1, 9), False),
        (Estimate(-3.0, 0.1, 9), True),
        (Estimate(0.1, None, 1), False),
        (Estimate(0.0, None, 1), True),
    ],
)
def test_within_noise_is_two_standard_errors(excess, within):
    assert report(noise_excess=excess).within_noise is within


# The document of the schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "report_schema.md"
OBJECTS = {"Report": InvarianceReport, "Estimate": Estimate, "Slice": SliceReport}
OBJECTS |= {"WorstSample": WorstSample, "SkippedSamples": SkippedSamples}
NOT_IN_JSON = {"saliency_examples", "input", "transformed"}


def documented(title: str) -> dict[str, tuple[str, str, str]]:
    """Type, unit and when null, by the field's name, of the table under a heading."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0]] == ["field", "type", "unit", "null", "meaning"]
    assert {len(row) for row in rows} == {5}
    found = {row[0].strip().strip("`"): tuple(cell.strip() for cell in row[1:4]) for row in rows[2:]}
    assert len(found) == len(rows) - 2
    return found


@pytest.mark.parametrize("title", OBJECTS)
def test_the_document_has_just_the_fields_in_their_order(title):
    fields = [field.name for field in dataclasses.fields(OBJECTS[title]) if field.name not in NOT_IN_JSON]
    assert list(documented(title)) == ["schema"] * (title == "Report") + fields


@pytest.mark.parametrize("title", OBJECTS)
def test_the_document_says_where_null_may_be(title):
    table = documented(title)
    for field in dataclasses.fields(OBJECTS[title]):
        if field.name not in NOT_IN_JSON:
            assert (table[field.name][2] == "never") == ("None" not in str(field.type)), field.name
            assert table[field.name][2], field.name


def test_the_document_says_its_version():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.startswith(f"# The JSON of a report, version {SCHEMA}\n")
    assert f"| `schema` | integer | | never | {SCHEMA} |" in text


NUMBER = (int, float)
KINDS = {"string": str, "integer": int, "number": NUMBER, "boolean": bool, "object": dict}


def check_documented(title: str, state: dict) -> None:
    """Raises unless an object is as the document says."""
    table = documented(title)
    assert state.keys() == table.keys()
    for name, (kind, _, null) in table.items():
        check_value(f"{title}.{name}", kind, null, state[name])


def check_value(where: str, kind: str, null: str, value) -> None:
    if value is None:
        assert not null.startswith("never"), where
    elif kind.startswith("list of "):
        for one in value:
            check_documented(kind.removeprefix("list of "), one)
    elif kind in OBJECTS:
        check_documented(kind, value)
    elif kind == "integer or list of numbers":
        assert type(value) is int or {type(one) for one in value} <= set(NUMBER), where
    else:
        assert isinstance(value, KINDS[kind]), where
        assert isinstance(value, bool) == (kind == "boolean"), where


def check_report(state: dict) -> None:
    """Raises unless a report's JSON is as the document says, with its columns, histograms and provenance."""
    check_documented("Report", state)
    columns = documented("Columns of per_sample")
    assert state["per_sample"].keys() <= columns.keys()
    assert len({len(values) for values in state["per_sample"].values()}) <= 1
    for name, values in state["per_sample"].items():
        for value in values:
            check_value(f"per_sample.{name}", columns[name][0], columns[name][2], value)
    assert state["histograms"].keys() <= set(WITH_QUANTILES)
    for pairs in state["histograms"].values():
        assert pairs == sorted(pairs)
        assert all(type(number) is int for pair in pairs for number in pair)
        assert all(len(pair) == 2 for pair in pairs)


@every_report
def test_the_json_is_as_the_document_says(name):
    check_report(json.loads(REPORTS[name].to_json()))


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (None, "logit_error", None),
        (None, "samples", 3.5),
        (None, "is_group", 1),
        (None, "model", 3),
        ("logit_error", "mean", None),
        ("logit_error", "mean", "0.5"),
        ("per_class", "name", None),
        ("worst_samples", "logit_error", None),
        ("worst_samples", "element", "3"),
        ("per_sample", "label", [None] * 100),
        ("histograms", "logit_error", [[1, 2.5]]),
    ],
)
def test_the_check_against_the_document_tells_other_values(where, name, value):
    state = report().to_dict()
    part = state if where is None else state[where]
    (part[0] if isinstance(part, list) else part)[name] = value
    with pytest.raises((AssertionError, TypeError)):
        check_report(state)


def test_the_document_has_all_columns():
    names = {*WHOLE_NUMBERS, *OVER_SAMPLES}
    assert set(documented("Columns of per_sample")) == names
    for name, (kind, _, null) in documented("Columns of per_sample").items():
        assert (kind, null.startswith("never")) == (("integer", True) if name in WHOLE_NUMBERS else ("number", False))
    units = documented("Report")
    assert all(documented("Columns of per_sample")[name][1] == units[name][1] for name in OVER_SAMPLES)


REAL = {
    "labels and maps": (CyclicRotation(4), {}, True),
    "drawn": (CyclicRotation(8), {"samples": 2, "saliency": None}, True),
    "drawn from infinitely many": (PlanarRotation(), {"samples": 2, "saliency": None}, False),
    "values": (CyclicRotation(4), {"outputs": "values"}, False),
    "few kept": (CyclicRotation(4), {"kept_samples": 3, "saliency": None}, True),
    "none kept": (CyclicRotation(4), {"kept_samples": 0, "worst_samples": 0, "saliency": None}, False),
    "identity alone": (Trivial(), {}, False),
}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", REAL)
def test_the_json_of_an_audit_is_as_the_document_says_and_comes_back(name, noise):
    group, settings, labelled = REAL[name]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.randn(7, 1, 4, 4)

    def model(v: torch.Tensor) -> torch.Tensor:
        return network(v) + noise * torch.randn(len(v), 3)

    loader = [(x, torch.randint(3, (7,))) if labelled else x]
    found = measure_invariance(model if noise else network, loader, group, **settings)
    state = json.loads(found.to_json())
    check_report(state)
    assert InvarianceReport.from_dict(state) == found
    assert len(found.per_sample) == settings.get("kept_samples", 7)
    assert (found.noise_error is not None) == (noise > 0)
    table = documented("Provenance")
    assert state["provenance"].keys() == table.keys()
    for key, (kind, _, null) in table.items():
        check_value(f"provenance.{key}", kind, null, state["provenance"][key])


def test_histograms_are_as_the_document_says():
    """Bucket b has the values above base^(b - 1) and up to base^b."""
    base = 1.005 / 0.995
    values = np.array([0.0, 1.0, base**0.5, base**-7.5, base**250.25])
    histogram = LogHistogram()
    histogram.add(values)
    assert histogram.counts == {-2147483648: 1, 0: 1, 1: 1, -7: 1, 251: 1}
    assert "= 1.005 / 0.995" in DOCUMENT.read_text(encoding="utf-8")
    assert "bucket -2147483648 those that are 0" in DOCUMENT.read_text(encoding="utf-8")
