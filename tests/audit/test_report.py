"""Does a report say what was found, to people and to programs?"""

import dataclasses
import json
import math
import pickle

import pytest

from invreg import ElementReport, Estimate, InvarianceReport


def report(**changes) -> InvarianceReport:
    """A report by hand."""
    e = Estimate(0.25, 0.03125, 100)
    elements = tuple(
        ElementReport(
            element=index,
            logit_error=Estimate(index / 2, 0.125, 100),
            distribution_error=e,
            normalized_logit_error=e,
            saliency_similarity=Estimate(0.5, 0.25, 10),
            accuracy=e,
            consistency=e,
            action_error=None,
            action_logit_error=None,
        )
        for index in (1, 2)
    )
    fields = {
        "model": "Sequential",
        "group": "CyclicRotation(order=3)",
        "is_group": True,
        "samples": 100,
        "elements": 2,
        "exhaustive": True,
        "logit_error": Estimate(12.3456789, 0.0123456, 100),
        "distribution_error": e,
        "normalized_logit_error": e,
        "saliency_similarity": Estimate(0.75, 0.125, 10),
        "saliency": "SaliencyMap()",
        "completeness_gap": 0.0123,
        "accuracy": Estimate(0.875, 0.0625, 100),
        "group_accuracy": e,
        "orbit_accuracy": e,
        "consistency": e,
        "action_error": None,
        "action_logit_error": None,
        "per_element": elements,
    }
    return InvarianceReport(**(fields | changes))


def without_labels() -> InvarianceReport:
    elements = tuple(dataclasses.replace(one, accuracy=None) for one in report().per_element)
    return report(accuracy=None, group_accuracy=None, orbit_accuracy=None, per_element=elements)


def without_saliency() -> InvarianceReport:
    elements = tuple(dataclasses.replace(one, saliency_similarity=None) for one in report().per_element)
    return report(saliency_similarity=None, saliency=None, completeness_gap=None, per_element=elements)


def of_one_sample() -> InvarianceReport:
    one = {
        field.name: Estimate(value.mean, None, 1)
        for field in dataclasses.fields(InvarianceReport)
        if isinstance(value := getattr(report(), field.name), Estimate)
    }
    elements = tuple(
        dataclasses.replace(element, **{name: Estimate(0.5, None, 1) for name in one if hasattr(element, name)})
        for element in report().per_element
    )
    return report(samples=1, per_element=elements, **one)


REPORTS = {
    "full": report(),
    "without labels": without_labels(),
    "without saliency": without_saliency(),
    "of one sample": of_one_sample(),
    "without elements": report(per_element=(), exhaustive=False),
    "of another map method": report(saliency="<function mine>", completeness_gap=None),
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
    assert list(state) == ["schema", *(field.name for field in dataclasses.fields(InvarianceReport))]
    assert state["schema"] == 1

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


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_another_schema_is_refused(schema):
    with pytest.raises(ValueError, match=r"must have schema 1: got"):
        InvarianceReport.from_dict(report().to_dict() | {"schema": schema})


def test_a_dictionary_without_a_schema_is_refused():
    with pytest.raises(ValueError, match=r"must have schema 1: got None"):
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


# As a table

FULL = """\
Invariance of Sequential to CyclicRotation(order=3)
100 samples, each under 2 non-identity elements (all); value ± standard error over samples

logit error (LI)          12.35 ± 0.012  0 = invariant; logits squared
distribution error (DI)   0.25 ± 0.031   0 = invariant; nats
normalized logit error    0.25 ± 0.031   0 = invariant; no unit
saliency similarity (SI)  0.75 ± 0.12    1 = invariant; on 10 samples, completeness gap 1.2%
consistency               0.25 ± 0.031   same class as at the identity
accuracy                  0.875 ± 0.062  at the identity
group accuracy            0.25 ± 0.031   averaged over the group, identity included
orbit accuracy            0.25 ± 0.031   right at the identity and under every element

element  LI          DI            normalized    SI          consistency   accuracy
1        0.5 ± 0.12  0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031
2        1 ± 0.12    0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031"""


def test_prints_a_table(capsys):
    print(report())  # noqa: T201
    assert capsys.readouterr().out == FULL + "\n"


def test_leaves_out_what_was_not_measured():
    shown = str(without_labels())
    assert "saliency similarity" in shown
    assert "group accuracy" not in shown
    assert "orbit accuracy" not in shown
    assert all(line.rstrip().endswith(" -") for line in shown.splitlines()[-2:])
    shown = str(without_saliency())
    assert "saliency similarity" not in shown
    assert "; no saliency maps" in shown
    assert "completeness" not in shown
    assert "orbit accuracy" in shown


def test_says_how_elements_were_chosen():
    assert "each under 2 non-identity elements (all)" in str(report())
    shown = str(report(exhaustive=False))
    assert "each under 2 non-identity elements (drawn for each sample)" in shown
    assert "under every element drawn" in shown


def test_shows_the_elements_with_the_largest_error_of_a_large_group():
    one = report().per_element[0]
    errors = [Estimate(float(index * 7 % 40), 0.1, 5) for index in range(1, 40)]
    elements = tuple(dataclasses.replace(one, element=i, logit_error=e) for i, e in enumerate(errors, 1))
    shown = str(report(per_element=elements)).splitlines()
    rows = shown[[line.startswith("element") for line in shown].index(True) + 1 :]
    assert rows[-1] == "... the 16 with the largest LI of 39; all in per_element"
    largest = sorted(range(1, 40), key=lambda index: -(index * 7 % 40))[:16]
    assert [int(row.split()[0]) for row in rows[:-1]] == sorted(largest)


def test_has_no_table_of_elements_where_there_are_none():
    assert "element  LI" not in str(report(per_element=()))
    assert not str(report(per_element=())).endswith("\n")


def test_shows_no_completeness_gap_for_other_map_methods():
    assert "on 10 samples\n" in str(report(completeness_gap=None))


def test_shows_no_standard_error_of_one_sample():
    shown = str(of_one_sample())
    assert "nan" not in shown
    assert shown.count("±") == 1


@every_report
def test_lines_have_no_trailing_spaces(name):
    assert all(line == line.rstrip() for line in str(REPORTS[name]).splitlines())
