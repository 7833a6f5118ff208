"""Are two models compared sample by sample, and only where the samples are the same?"""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from invreg import CyclicRotation, Estimate, Flip, InvarianceReport, PlanarRotation, measure_invariance
from invreg.audit.comparison import Comparison, Difference
from invreg.audit.samples import SampleTable
from tests import oracle
from tests.audit.test_measure import EXACT_WEIGHTS, classes_of, images, in_batches, mlp
from tests.audit.test_report import of_values, report, samples, with_histograms, without_labels

GROUP = CyclicRotation(4)


def audited(model, x: Tensor, y: Tensor | None = None, **settings) -> InvarianceReport:
    return measure_invariance(model, in_batches(x, y), GROUP, **({"saliency": None} | settings))


def changed(**columns) -> InvarianceReport:
    """A report by hand with other numbers of single samples."""
    return report(per_sample=SampleTable(samples().columns | columns))


def rows(model, x: Tensor, y: Tensor) -> list[oracle.Audit]:
    """The oracle's numbers of each sample, by auditing it alone."""
    network, quarters = oracle.network_of(model), oracle.rotations(4)
    elements = [list(enumerate(quarters))[1:]]
    return [
        oracle.audit(lambda v: network(v[None])[0], x[n : n + 1].numpy(), y[n : n + 1].numpy(), elements, 4)
        for n in range(len(x))
    ]


def test_every_difference_agrees_with_plain_loops():
    first, second, x = mlp(), mlp(), images(9)
    y = classes_of(x)
    found = audited(first, x, y).compare(audited(second, x, y))
    assert found.samples == 9
    expected = [rows(model, x, y) for model in (first, second)]
    names = ["logit_error", "distribution_error", "normalized_logit_error", "worst_logit_error"]
    names += ["accuracy", "group_accuracy", "orbit_accuracy", "consistency"]
    assert [one.name for one in found.differences] == names
    for one in found.differences:
        a, b = ([audit.estimates[one.name].mean for audit in audits] for audits in expected)
        paired = oracle.estimate([v - u for u, v in zip(a, b, strict=True)])
        assert one.first == pytest.approx(oracle.estimate(a).mean, rel=1e-9)
        assert one.second == pytest.approx(oracle.estimate(b).mean, rel=1e-9)
        assert one.difference.mean == pytest.approx(paired.mean, rel=1e-9, abs=1e-12)
        assert one.difference.standard_error == pytest.approx(paired.standard_error, rel=1e-9, abs=1e-12)
        assert one.difference.count == 9
    assert abs(found["logit_error"].difference.mean) > 1e-3


def test_pairing_makes_differences_surer_and_the_loops_tell_it():
    """The second model's errors are a little larger on each sample, however different the samples are."""
    errors = samples()["logit_error"]
    other = changed(logit_error=errors + 0.5 + 0.01 * np.sin(np.arange(100)))
    found = report().compare(other)["logit_error"].difference
    assert found.mean == pytest.approx(0.5, abs=1e-2)
    assert found.standard_error < 1e-2
    apart = math.hypot(
        *(oracle.estimate(r.per_sample["logit_error"].tolist()).standard_error for r in (report(), other))
    )
    assert apart > 1


def test_by_hand():
    table = {"index": np.arange(3), "logit_error": np.array([1.0, 2.0, 3.0])}
    first = report(samples=3, seen=3, per_sample=SampleTable(table))
    second = dataclasses.replace(first, per_sample=SampleTable(table | {"logit_error": np.array([1.0, 4.0, 7.0])}))
    found = first.compare(second)
    assert found.differences == (Difference("logit_error", 2.0, 4.0, Estimate(2.0, 2 / math.sqrt(3), 3)),)
    assert second.compare(first)["logit_error"].difference == Estimate(-2.0, 2 / math.sqrt(3), 3)


def test_a_model_does_not_differ_from_itself():
    found = report().compare(report())
    assert {one.difference.mean for one in found.differences} == {0.0}
    assert {one.difference.standard_error for one in found.differences} == {0.0}
    assert {one.difference.count for one in found.differences} == {100, 10}


def test_swapping_turns_the_signs():
    x = images()
    a, b = audited(mlp(), x), audited(mlp(), x)
    there, back = a.compare(b), b.compare(a)
    for one, two in zip(there.differences, back.differences, strict=True):
        assert one.difference.mean == -two.difference.mean
        assert one.difference.standard_error == two.difference.standard_error
        assert (one.first, one.second) == (two.second, two.first)


def test_one_sample_has_no_standard_error():
    x = images(1)
    found = audited(mlp(), x).compare(audited(mlp(), x))
    assert found["logit_error"].difference.standard_error is None
    assert "nan" not in str(found)


def test_maps_are_compared_on_the_samples_that_both_have():
    x, first, second = images(), mlp(), mlp()
    a = audited(first, x, saliency=EXACT_WEIGHTS, saliency_samples=3)
    b = audited(second, x, saliency=EXACT_WEIGHTS, saliency_samples=5)
    found = a.compare(b)["saliency_similarity"]
    expected = b.per_sample["saliency_similarity"][:3] - a.per_sample["saliency_similarity"][:3]
    assert found.difference.count == b.compare(a)["saliency_similarity"].difference.count == 3
    assert found.difference.mean == pytest.approx(math.fsum(expected) / 3, rel=1e-12)
    assert found.first == pytest.approx(a.saliency_similarity.mean)
    assert found.second == pytest.approx(math.fsum(b.per_sample["saliency_similarity"][:3]) / 3)
    with pytest.raises(KeyError, match="No 'saliency_similarity'"):
        a.compare(audited(second, x))["saliency_similarity"]


def test_only_what_both_have_is_compared():
    with pytest.raises(ValueError, match=r"of logits, or of other values"):
        report().compare(dataclasses.replace(of_values(), output_action=None))
    assert "accuracy" not in [one.name for one in report().compare(without_labels()).differences]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_action": "CyclicRotation(order=3)"}, "of one output_action: got None and CyclicRotation"),
        ({"elements": 1}, "under as many elements: got 2 and 1"),
        ({"exhaustive": False}, "under all elements, or under drawn ones: got True and False"),
    ],
)
def test_audits_of_another_kind_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        report().compare(dataclasses.replace(report(), **changes))


def test_similarities_of_maps_made_in_different_ways_are_left_out():
    other = dataclasses.replace(report(), saliency="SaliencyMap(steps=3)")
    names = [one.name for one in report().compare(report()).differences]
    assert "saliency_similarity" in names
    assert [one.name for one in report().compare(other).differences] == [n for n in names if n != "saliency_similarity"]


def test_the_noise_of_models_is_compared_too():
    x = images()

    def noisy(size: float):
        return lambda v: v.flatten(1)[:, :3] + size * torch.randn(len(v), 3)

    found = audited(noisy(0.1), x).compare(audited(noisy(2.0), x))
    assert found["noise_error"].difference.mean > 0
    assert {"noise_excess", "noise_consistency"} <= {one.name for one in found.differences}


# As saved


def test_reports_from_json_compare_as_before():
    x = images()
    y = classes_of(x)
    a, b = audited(mlp(), x, y), audited(mlp(), x, y)
    again = [InvarianceReport.from_dict(json.loads(one.to_json())) for one in (a, b)]
    assert again[0].compare(again[1]) == a.compare(b) == a.compare(again[1])


# Samples that were left out, or not kept


def failing_at(index: int, x: Tensor):
    """A model that gives no number for one sample."""
    network = mlp()
    return lambda v: torch.where((v.sum((1, 2, 3)) - x[index].sum()).abs()[:, None] < 1e-9, torch.nan, network(v))


def test_samples_that_one_of_them_left_out_are_not_compared():
    x = images(9)
    y = classes_of(x)
    a = audited(failing_at(2, x), x, y, on_error="skip")
    b = audited(failing_at(5, x), x, y, on_error="skip")
    assert [one.index for one in (*a.skipped_samples, *b.skipped_samples)] == [2, 5]
    found = a.compare(b)
    assert found.samples == 7
    both = [0, 1, 3, 4, 6, 7, 8]
    of_a, of_b = (dict(zip(r.per_sample["index"], r.per_sample["logit_error"], strict=True)) for r in (a, b))
    expected = oracle.estimate([of_b[n] - of_a[n] for n in both])
    assert found["logit_error"].difference.mean == pytest.approx(expected.mean, rel=1e-9)
    assert found["logit_error"].difference.standard_error == pytest.approx(expected.standard_error, rel=1e-9)


@pytest.mark.parametrize(("kept", "others", "both"), [(4, 100, 4), (6, 5, 5), (3, 3, 3)])
def test_samples_that_both_kept_are_compared(kept, others, both):
    x, first, second = images(9), mlp(), mlp()
    found = audited(first, x, kept_samples=kept).compare(audited(second, x, kept_samples=others))
    assert found.samples == both
    some = audited(first, x[:both]).compare(audited(second, x[:both]))
    for one, two in zip(found.differences, some.differences, strict=True):
        assert one.difference.mean == pytest.approx(two.difference.mean, rel=1e-12)
        assert one.difference.count == both


def test_samples_in_histograms_are_not_compared():
    assert report().compare(with_histograms()).samples == 20
    assert report().compare(with_histograms())["logit_error"].difference == Estimate(0.0, 0.0, 20)


def test_an_audit_that_stopped_early_is_compared_on_what_it_saw():
    early = dataclasses.replace(report(), ended="precise", seen=20, per_sample=samples().taken(slice(20)))
    assert report().compare(early).samples == early.compare(report()).samples == 20
    partial = dataclasses.replace(early, ended="interrupted")
    assert partial.compare(report()).samples == 20


# What is refused


@pytest.mark.parametrize("other", [3, None, {}, "report", samples()], ids=lambda value: type(value).__name__)
def test_what_is_no_report_is_refused(other):
    with pytest.raises(TypeError, match=rf"with another InvarianceReport: got {type(other).__name__}"):
        report().compare(other)


def test_other_groups_are_refused():
    x, model = images(), mlp()
    flipped = measure_invariance(model, [x], Flip(), saliency=None)
    with pytest.raises(ValueError, match=r"under one group: got CyclicRotation\(order=4\) and Flip"):
        audited(model, x).compare(flipped)
    turned = measure_invariance(model, [x], PlanarRotation(), samples=3, saliency=None)
    with pytest.raises(ValueError, match=r"under one group: got PlanarRotation.* and CyclicRotation"):
        turned.compare(audited(model, x))


def test_other_numbers_of_samples_are_refused():
    x, model = images(9), mlp()
    with pytest.raises(ValueError, match=r"same samples: got 9 and 8\. .*does not shuffle"):
        audited(model, x).compare(audited(model, x[:8]))


def test_samples_none_of_which_both_kept_are_refused():
    table = samples()
    with pytest.raises(ValueError, match=r"same samples: got 100 and 100"):
        report(per_sample=table.taken(slice(50))).compare(report(per_sample=table.taken(slice(50, None))))


def test_shuffled_labels_are_refused():
    x, model = images(12), mlp()
    data = TensorDataset(x, torch.arange(12) % 3)
    settings = {"saliency": None}
    first = measure_invariance(model, DataLoader(data, batch_size=5), GROUP, **settings)
    shuffled = measure_invariance(model, DataLoader(data, batch_size=5, shuffle=True), GROUP, **settings)
    assert shuffled.logit_error.mean == pytest.approx(first.logit_error.mean)
    with pytest.raises(ValueError, match=r"same order: the labels differ\. Use a loader that does not shuffle"):
        first.compare(shuffled)
    one_off = samples()["label"].copy()
    one_off[57] += 1
    with pytest.raises(ValueError, match="the labels differ"):
        report().compare(changed(label=one_off))


def test_labels_of_samples_that_are_not_compared_do_not_matter():
    labels = np.where(np.arange(100) < 20, samples()["label"], 9)
    assert with_histograms().compare(changed(label=labels)).samples == 20


@pytest.mark.parametrize("first", [False, True])
def test_reports_without_samples_are_refused(first):
    bare = InvarianceReport.from_dict(report().to_dict(per_sample=False))
    with pytest.raises(ValueError, match=r"numbers of single samples: audit with kept_samples=, and save them"):
        bare.compare(report()) if first else report().compare(bare)


# As a table

TABLE = """\
After compared with Before under CyclicRotation(order=3)
20 samples, paired; difference = second - first ± standard error over samples

                     Before  After  difference
logit_error          2       12.35  10.35 ± 0.5
saliency_similarity  0.5     0.4    -0.1"""


def test_is_shown_as_a_table():
    differences = (
        Difference("logit_error", 2.0, 12.3456, Estimate(10.3456, 0.5, 20)),
        Difference("saliency_similarity", 0.5, 0.4, Estimate(-0.1, None, 1)),
    )
    assert str(Comparison("Before", "After", "CyclicRotation(order=3)", 20, differences)) == TABLE
    same = str(Comparison("Net", "Net", "Flip()", 20, differences))
    assert same.splitlines()[0] == "Net compared with Net under Flip()"
    assert same.splitlines()[3].split() == ["first", "second", "difference"]


def test_says_which_numbers_it_has():
    found = report().compare(report())
    assert found["logit_error"] is found.differences[0]
    with pytest.raises(KeyError, match=r"No 'colour' in this comparison: it has \['logit_error'"):
        found["colour"]
