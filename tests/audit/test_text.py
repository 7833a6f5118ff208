"""Does a person read in a report what was found, and what is to be known before it is believed?"""

import dataclasses
import re

import pytest

from invreg import CyclicRotation, Estimate, InvarianceReport, measure_invariance
from invreg.audit.histogram import LogHistogram
from invreg.audit.report import SliceReport
from invreg.audit.samples import SampleTable, SkippedSamples
from invreg.audit.text import counted
from tests.audit.test_measure import classes_of, images, in_batches, mlp
from tests.audit.test_report import (
    REPORTS,
    every_report,
    of_an_infinite_group,
    of_one_sample,
    of_values,
    part,
    report,
    troubled,
    with_histograms,
    without_labels,
    without_saliency,
    worst,
)

FULL = """\
Invariance of Sequential to CyclicRotation(order=3)
100 samples, each under 2 non-identity elements (all); value ± standard error over samples

logit error (LI)          12.35 ± 0.012       0 = invariant; logits squared
distribution error (DI)   0.25 ± 0.031        0 = invariant; nats
normalized logit error    0.25 ± 0.031        0 = invariant; no unit
worst logit error         20 ± 0.5            LI under each sample's worst element
... over samples          100, 180, 198, 200  its median, 90 %, 99 % and largest
saliency similarity (SI)  0.75 ± 0.12         1 = invariant; on 10 samples, completeness gap 1.2%
consistency               0.25 ± 0.031        same class as at the identity
accuracy                  0.875 ± 0.062       at the identity
group accuracy            0.25 ± 0.031        averaged over the group, identity included
orbit accuracy            0.25 ± 0.031        right at the identity and under every element

element  samples  LI          DI            normalized    SI          consistency   accuracy
120°     100      0.5 ± 0.12  0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031
240°     100      1 ± 0.12    0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031

class    samples  LI        DI            normalized    SI          consistency   accuracy      group accuracy
class 0  100      2 ± 0.12  0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031  0.25 ± 0.031
class 3  100      1 ± 0.12  0.25 ± 0.031  0.25 ± 0.031  0.5 ± 0.25  0.25 ± 0.031  0.25 ± 0.031  0.25 ± 0.031

least invariant  element  LI    DI     label  predicted  then
sample 7         240°     40    0.125  3      3          0
sample 11        120°     30.5  0.125  3      3          3"""


def rows_of(shown: str, first: str) -> list[list[str]]:
    """The cells of the table whose header begins with this word, the header first."""
    lines = shown.splitlines()
    (start,) = [i for i, line in enumerate(lines) if re.match(rf"{first}\s\s", line)]
    stop = lines.index("", start) if "" in lines[start:] else len(lines)
    return [re.split(r"\s{2,}", line) for line in lines[start:stop]]


def values_of(shown: str) -> dict[str, str]:
    """The values of the numbers over all samples, by their labels."""
    block = shown.split("\n\n")[1]
    return {cells[0]: cells[1] for cells in (re.split(r"\s{2,}", line) for line in block.splitlines())}


def how_of(shown: str) -> list[str]:
    """The lines between the title and the numbers."""
    return shown.split("\n\n")[0].splitlines()[1:]


# For a terminal


def test_prints_tables(capsys):
    print(report())  # noqa: T201
    assert capsys.readouterr().out == FULL + "\n"


@every_report
def test_columns_stand_below_each_other(name):
    for block in str(REPORTS[name]).split("\n\n")[1:]:
        lines = [line for line in block.splitlines() if not line.startswith("... the")]
        starts = [[match.start() + 2 for match in re.finditer(r"  (?=\S)", line)] for line in lines]
        assert all(set(line) <= set(starts[0]) | set(max(starts, key=len)) for line in starts)


@every_report
def test_lines_have_no_trailing_spaces_and_no_numbers_that_are_none(name):
    shown = str(REPORTS[name])
    assert all(line == line.rstrip() for line in shown.splitlines())
    assert not shown.endswith("\n")
    assert "None" not in shown
    assert "nan" not in shown


def test_leaves_out_what_was_not_measured():
    shown = str(without_labels())
    assert "saliency similarity (SI)" in values_of(shown)
    assert not {"accuracy", "group accuracy", "orbit accuracy"} & values_of(shown).keys()
    assert how_of(shown)[0].endswith("over samples; no labels")
    assert "accuracy" not in rows_of(shown, "element")[0]
    assert rows_of(shown, "least invariant")[0] == ["least invariant", "element", "LI", "DI", "predicted", "then"]
    shown = str(without_saliency())
    assert "saliency similarity (SI)" not in values_of(shown)
    assert how_of(shown)[0].endswith("over samples; no saliency maps")
    assert "SI" not in rows_of(shown, "element")[0]
    assert "completeness" not in shown
    assert "orbit accuracy" in values_of(shown)
    assert how_of(str(report()))[0].endswith("over samples")


def test_outputs_that_are_no_logits_have_few_numbers():
    shown = str(of_values())
    assert list(values_of(shown)) == [
        "logit error (LI)",
        "normalized logit error",
        "worst logit error",
        "... over samples",
    ]
    assert rows_of(shown, "element")[0] == ["element", "samples", "LI", "normalized"]
    assert rows_of(shown, "least invariant")[0] == ["least invariant", "element", "LI"]
    assert "by class" not in of_values().to_markdown().lower()


def test_a_cell_that_one_row_has_and_another_has_not_is_a_dash():
    first, second = report().per_element
    mixed = report(per_element=(first, dataclasses.replace(second, accuracy=None)))
    assert [row[-1] for row in rows_of(str(mixed), "element")] == ["accuracy", "0.25 ± 0.031", "-"]
    mixed = report(worst_samples=(worst(7, 40.0), worst(8, 30.0, label=None)))
    assert [row[4] for row in rows_of(str(mixed), "least invariant")] == ["label", "3", "-"]


def test_says_how_elements_were_chosen():
    assert "each under 2 non-identity elements (all)" in str(report())
    shown = str(report(exhaustive=False))
    assert "each under 2 non-identity elements (drawn for each sample)" in shown
    assert "right at the identity and under every element drawn" in shown
    assert "1 sample, each under 1 non-identity element (all)" in str(report(samples=1, elements=1))


def test_says_of_a_set_that_it_is_none():
    shown = str(report(is_group=False, group="TransformationSet([blurred])"))
    assert shown.startswith("Invariance of Sequential to TransformationSet([blurred]), which is no group\n")
    assert "each under 2 transforms (all)" in shown
    assert "averaged over the set, identity included" in shown
    assert rows_of(shown, "transform")[1][0] == "120°"


def test_says_of_outputs_that_move_that_they_do():
    shown = str(of_values())
    assert shown.startswith("Equivariance of Sequential to CyclicRotation(order=3)\n")
    assert how_of(shown)[1] == "Outputs are moved back by CyclicRotation(order=3) before they are compared"
    assert "0 = equivariant; logits squared" in shown
    assert "0 = invariant" not in shown
    assert "moved back" not in str(report())


def test_says_what_classes_are():
    assert rows_of(str(report()), "class")[1][0] == "class 0"
    assert rows_of(str(without_labels()), "predicted class")[1][0] == "class 0"


def test_shows_quantiles_of_the_worst_error():
    """Of twice 1 to 100."""
    assert values_of(str(report()))["... over samples"] == "100, 180, 198, 200"
    near = [float(v) for v in values_of(str(with_histograms()))["... over samples"].split(", ")]
    assert near == pytest.approx([100, 180, 198, 200], rel=0.0051)
    unknown = report(per_sample=SampleTable({}))
    assert "... over samples" not in values_of(str(unknown))


# What is to be known first


def test_says_nothing_more_of_a_complete_audit():
    assert len(how_of(str(report()))) == 1
    assert not re.search("PARTIAL|Stopped|SKIPPED|noise|moved back by", str(report()))


def test_says_that_it_is_partial():
    assert how_of(str(report(ended="interrupted")))[1:] == [
        "PARTIAL: the audit was interrupted; these are the samples before that"
    ]


def test_says_that_it_stopped_at_its_precision():
    assert how_of(str(report(ended="precise")))[1:] == [
        "Stopped after 100 samples, when the precision asked for was reached"
    ]


def test_says_what_was_skipped():
    skipped = (SkippedSamples(17, 1, "outputs must be finite"), SkippedSamples(30, 3, "too large"))
    assert how_of(str(report(seen=104, skipped=4, skipped_samples=skipped)))[1:] == [
        "SKIPPED: 4 samples of 104, the first at 17: outputs must be finite"
    ]
    assert "SKIPPED: 1 sample of 101, the first at 17" in str(report(seen=101, skipped=1, skipped_samples=skipped[:1]))


@pytest.mark.parametrize(
    ("excess", "says"),
    [
        (Estimate(0.25, 0.5, 100), "NOT above that noise"),
        (Estimate(3.0, 0.5, 100), "3 ± 0.5 above that noise"),
        (Estimate(-3.0, 0.5, 100), "NOT above that noise"),
    ],
)
def test_says_how_noisy_the_model_is(excess, says):
    noisy = report(noise_error=Estimate(12.0, 0.5, 100), noise_excess=excess, noise_consistency=Estimate(0.5, 0.1, 9))
    assert how_of(str(noisy))[1:] == [
        f"The model gives other logits for the same input: its invariance error is {says}"
    ]
    assert values_of(str(noisy))["model's own noise"] == "12 ± 0.5"
    assert values_of(str(noisy))["... its consistency"] == "0.5 ± 0.1"


def test_says_all_of_it_together():
    shown = str(dataclasses.replace(troubled(), output_action="shifts"))
    assert [line.split()[0] for line in how_of(shown)] == ["100", "Outputs", "PARTIAL:", "SKIPPED:", "The"]


def test_shows_what_the_action_loses():
    shown = str(of_an_infinite_group())
    assert values_of(shown)["action's own error"] == "0.25 ± 0.031"
    assert values_of(shown)["... its logit error"] == "0.5 ± 0.062"
    assert rows_of(shown, "class")[0][-1] == "action's own LI"
    assert not any(line.startswith("element") for line in shown.splitlines())
    assert rows_of(shown, "least invariant")[1][1] == "[0.5, -1.25]"


# Long tables


@pytest.mark.parametrize("where", ["per_element", "per_class"])
def test_shows_the_parts_with_the_largest_error_where_there_are_many(where):
    parts = tuple(part(f"part {i}", i, None, float(i * 7 % 40)) for i in range(1, 40))
    rows = rows_of(str(report(**{where: parts})), "element" if where == "per_element" else "class")
    assert rows[-1] == ["... the 16 with the largest LI of 39"]
    largest = sorted(range(1, 40), key=lambda index: -(index * 7 % 40))[:16]
    assert [row[0] for row in rows[1:-1]] == [f"part {i}" for i in sorted(largest)]
    assert "... the" not in str(report(**{where: parts[:16]}))


def test_shows_ten_of_the_least_invariant_samples():
    shown = str(report(worst_samples=tuple(worst(i, 40.0 - i) for i in range(30))))
    assert [row[0] for row in rows_of(shown, "least invariant")[1:]] == [f"sample {i}" for i in range(10)]


def test_has_no_tables_of_what_there_is_not():
    shown = str(report(per_element=(), per_class=(), worst_samples=()))
    assert len(shown.split("\n\n")) == 2
    assert not shown.endswith("\n")


def test_shows_no_completeness_gap_for_other_map_methods():
    assert "on 10 samples\n" in str(report(completeness_gap=None))


def test_shows_no_standard_error_of_one_sample():
    assert str(of_one_sample()).count("±") == 1
    assert how_of(str(of_one_sample()))[0].startswith("1 sample, each")


@pytest.mark.parametrize(("number", "says"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_counts(number, says):
    assert counted(number, "file") == says


# As Markdown


def tables_of(markdown: str) -> dict[str, list[list[str]]]:
    """The cells of each table by the heading before it, as they are rendered; raises where one would not render."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for block in markdown.split("\n\n"):
        if block.startswith("## "):
            title = block.removeprefix("## ")
            assert "\n" not in title
        if block.startswith("|"):
            rows = block.splitlines()
            assert all(line.startswith("| ") and line.endswith(" |") for line in rows)
            cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows]
            assert len({len(row) for row in cells}) == 1, title
            assert set(cells[1]) == {"---"}
            assert title not in found
            found[title] = [[cell.replace("\\|", "|") for cell in row] for row in [cells[0], *cells[2:]]]
    return found


@every_report
def test_markdown_has_the_same_cells_as_the_terminal(name):
    original = REPORTS[name]
    shown, made = str(original), tables_of(original.to_markdown())
    assert {row[0]: row[1] for row in made["Numbers"][1:]} == values_of(shown)
    for title, first in (("By element", "element"), ("By class", r"(predicted )?class")):
        assert (title in made) == any(re.match(rf"{first}  ", line) for line in shown.splitlines())
        if title in made:
            assert made[title] == rows_of(shown, first)
    if "Least invariant samples" in made:
        assert made["Least invariant samples"] == rows_of(shown, "least invariant")
    else:
        assert "least invariant" not in shown
    lines = original.to_markdown().splitlines()
    assert lines[0] == f"# {shown.splitlines()[0]}"
    assert [line.removeprefix("- ") for line in lines[2 : 2 + len(how_of(shown))]] == how_of(shown)


def test_markdown_by_hand():
    made = report().to_markdown()
    assert made.startswith(
        "# Invariance of Sequential to CyclicRotation(order=3)\n\n"
        "- 100 samples, each under 2 non-identity elements (all); value ± standard error over samples\n\n"
        "## Numbers\n\n"
        "| number | value | meaning |\n"
        "| --- | --- | --- |\n"
        "| logit error (LI) | 12.35 ± 0.012 | 0 = invariant; logits squared |\n"
    )
    assert made.endswith("\n## Made with\n\n- data: list\n- seed: None\n- seconds: 1.5\n")
    assert list(tables_of(made)) == ["Numbers", "By element", "By class", "Least invariant samples"]


def test_pipes_do_not_end_cells():
    names = (part("a | b", 1, None, 0.5), part("|", 2, None, 1.0))
    piped = report(per_element=names, worst_samples=(worst(3, 1.0, name="x || y"),))
    made = tables_of(dataclasses.replace(piped, action_error=Estimate(0.5, 0.1, 3)).to_markdown())
    assert [row[0] for row in made["By element"]] == ["element", "a | b", "|"]
    assert made["Least invariant samples"][1][1] == "x || y"
    assert ["action's own error", "0.5 ± 0.1", "|x - x moved and moved back| / |x|: not the model's"] in made["Numbers"]


def test_the_check_of_markdown_tells_a_pipe_that_ends_a_cell():
    made = report(per_element=(part("a | b", 1, None, 0.5),)).to_markdown()
    with pytest.raises(AssertionError, match="By element"):
        tables_of(made.replace("\\|", "|"))


def test_markdown_says_what_is_left_out():
    parts = tuple(part(f"part {i}", i, None, float(i)) for i in range(1, 40))
    assert "|\n\n... the 16 with the largest LI of 39\n\n## By class" in report(per_element=parts).to_markdown()


# Of real audits


@pytest.mark.parametrize("labelled", [False, True])
def test_an_audit_is_shown_under_the_names_of_its_elements(labelled):
    x = images()
    found = measure_invariance(mlp(), in_batches(x, classes_of(x) if labelled else None), CyclicRotation(4))
    shown = str(found)
    assert [row[0] for row in rows_of(shown, "element")[1:]] == ["90°", "180°", "270°"]
    assert [row[1] for row in rows_of(shown, "element")[1:]] == ["7"] * 3
    classes = rows_of(shown, "class" if labelled else "predicted class")[1:]
    assert [(row[0], int(row[1])) for row in classes] == [(c.name, c.logit_error.count) for c in found.per_class]
    assert sum(int(row[1]) for row in classes) == 7
    least = rows_of(shown, "least invariant")[1:]
    assert [row[:3] for row in least] == [
        [f"sample {one.index}", one.name, f"{one.logit_error:.4g}"] for one in found.worst_samples
    ]
    assert tables_of(found.to_markdown())["By element"] == rows_of(shown, "element")
    assert str(InvarianceReport.from_dict(found.to_dict())) == shown


def test_every_column_shows_the_number_of_its_name():
    numbers = {
        "LI": "logit_error",
        "DI": "distribution_error",
        "normalized": "normalized_logit_error",
        "SI": "saliency_similarity",
        "consistency": "consistency",
        "accuracy": "accuracy",
        "group accuracy": "group_accuracy",
        "action's own LI": "action_logit_error",
    }
    fields = [f.name for f in dataclasses.fields(SliceReport) if f.name not in ("name", "element", "label")]
    one = SliceReport("this", None, 1, **{name: Estimate(float(i), 0.5, 9 + i) for i, name in enumerate(fields)})
    header, row = rows_of(str(report(per_class=(one,))), "class")
    assert header == ["class", "samples", *numbers]
    assert row == ["this", "9", *(str(getattr(one, name)) for name in numbers.values())]


def test_every_number_stands_in_the_row_of_its_name():
    rows = {
        "logit error (LI)": "logit_error",
        "distribution error (DI)": "distribution_error",
        "normalized logit error": "normalized_logit_error",
        "worst logit error": "worst_logit_error",
        "saliency similarity (SI)": "saliency_similarity",
        "consistency": "consistency",
        "accuracy": "accuracy",
        "group accuracy": "group_accuracy",
        "orbit accuracy": "orbit_accuracy",
        "action's own error": "action_error",
        "... its logit error": "action_logit_error",
        "model's own noise": "noise_error",
        "... its consistency": "noise_consistency",
    }
    numbers = {name: Estimate(float(i), 0.5, 9) for i, name in enumerate(rows.values())}
    shown = values_of(str(report(**numbers, noise_excess=Estimate(77.0, 0.5, 9), histograms={"any": LogHistogram()})))
    assert shown == {label: str(numbers[name]) for label, name in rows.items()} | {
        "... over samples": "100, 180, 198, 200"
    }
