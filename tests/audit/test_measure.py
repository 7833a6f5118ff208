"""Does an audit find what is there, whatever the data come in, and leave no trace?"""

import dataclasses
import json
import math
import weakref
from collections.abc import Callable, Iterable, Iterator

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from invreg import (
    CyclicGroup,
    CyclicRotation,
    CyclicTranslation,
    Estimate,
    FiniteGroup,
    Flip,
    InvarianceReport,
    SaliencyMap,
    SignFlip,
    Trivial,
    measure_invariance,
)
from invreg.audit.samples import SampleTable
from invreg.functional import logit_error
from tests import oracle
from tests.test_losses import GROUPS, PlaneRotation, every_group
from tests.test_preserve import mixed, state_of
from tests.tolerances import assert_exact, assert_linear

ESTIMATES = [
    "logit_error",
    "distribution_error",
    "normalized_logit_error",
    "saliency_similarity",
    "accuracy",
    "group_accuracy",
    "orbit_accuracy",
    "consistency",
    "worst_logit_error",
]

SLICED = [name for name in ESTIMATES if name != "worst_logit_error"]

EXACT_WEIGHTS = SaliencyMap(steps=2)
"""Integrated gradients of two points, whose weights captum does not round: comparable to 1e-9 and beyond."""


def mlp(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def cnn(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, classes)).double()


def images(samples: int = 7) -> Tensor:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64)


def classes_of(x: Tensor, classes: int = 3) -> Tensor:
    return torch.randint(classes, (len(x),))


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 3) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def all_non_identity(elements: list[oracle.Element], samples: int) -> list[list[tuple[int, oracle.Element]]]:
    return [list(enumerate(elements))[1:]] * samples


def assert_estimate_agrees(actual: Estimate | None, expected: oracle.Mean | None, tolerance: float, name: str) -> None:
    assert (actual is None) == (expected is None), name
    if actual is not None:
        assert actual.count == expected.count, name
        assert actual.mean == pytest.approx(expected.mean, rel=tolerance, abs=tolerance), name
        assert (actual.standard_error is None) == (expected.standard_error is None), name
        if expected.standard_error is not None:
            assert actual.standard_error == pytest.approx(expected.standard_error, rel=tolerance, abs=tolerance), name


def assert_report_agrees(report: InvarianceReport, expected: oracle.Audit, tolerance: float = 1e-9) -> None:
    """Raises unless each number of the report is the oracle's; those of actions and noise, which it does not know."""
    assert (report.samples, report.elements) == (expected.samples, expected.elements)
    assert set(ESTIMATES) == set(expected.estimates)
    for name, estimate in expected.estimates.items():
        assert_estimate_agrees(getattr(report, name), estimate, tolerance, name)
    if expected.completeness_gap is None:
        assert report.completeness_gap is None
    else:
        assert report.completeness_gap == pytest.approx(expected.completeness_gap, rel=tolerance, abs=tolerance)
    cells = expected.per_class_element if expected.per_element else {}
    assert [(one.element, one.label) for one in report.per_element] == [(g, None) for g in expected.per_element]
    assert [(one.element, one.label) for one in report.per_class] == [(None, label) for label in expected.per_class]
    assert [(one.label, one.element) for one in report.per_class_element] == list(cells)
    for parts, found in (
        (report.per_element, expected.per_element.values()),
        (report.per_class, expected.per_class.values()),
        (report.per_class_element, cells.values()),
    ):
        for one, estimates in zip(parts, found, strict=True):
            where = f"of element {one.element}, class {one.label}"
            assert estimates["logit_error"] is not None
            for name in SLICED:
                assert_estimate_agrees(getattr(one, name), estimates.get(name), tolerance, f"{name} {where}")
    if report.per_class:
        assert report.classes_by == ("prediction" if report.accuracy is None else "label")
    else:
        assert report.classes_by is None
    assert_samples_agree(report, expected, tolerance)


def assert_samples_agree(report: InvarianceReport, expected: oracle.Audit, tolerance: float) -> None:
    """Raises unless the table of samples, the least invariant samples and the quantiles are the oracle's."""
    table = report.per_sample
    others = {"action_error", "action_logit_error", "noise_error", "noise_excess", "noise_consistency"}
    assert table.columns.keys() - others == expected.columns.keys()
    for name, column in expected.columns.items():
        if name in ("index", "label", "prediction", "worst_element"):
            assert table[name].dtype == np.int64, name
            assert table[name].tolist() == column, name
        else:
            np.testing.assert_allclose(
                table[name], column, rtol=tolerance, atol=tolerance, err_msg=f"{name} of samples", strict=True
            )
    worst = expected.worst[:10]
    assert len(report.worst_samples) == len(worst)
    for one, other in zip(report.worst_samples, worst, strict=True):
        element = other.element if expected.per_element or isinstance(other.element, int) else tuple(other.element)
        assert (one.index, one.element) == (other.index, element)
        for name in ("label", "prediction", "transformed_prediction"):
            assert getattr(one, name) == getattr(other, name), f"{name} of the worst samples"
        assert (one.distribution_error is None) == (other.distribution_error is None)
        for name in oracle.ERRORS if one.distribution_error is not None else ("logit_error", "normalized_logit_error"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=tolerance, abs=tolerance), name
    for name in (*oracle.ERRORS, "worst_logit_error"):
        for share in (0, 0.07, 0.5, 0.9, 1) if name in table else ():
            assert report.quantile(name, share) == oracle.quantile(table[name].tolist(), share), (name, share)


def numbers(report: InvarianceReport) -> list[float]:
    """All numbers of a report, in order."""
    found: list[float] = []

    def collect(value) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(float(value))

    collect({name: value for name, value in report.to_dict().items() if name != "provenance"})
    assert len(found) > 30
    return found


def in_order(report: InvarianceReport, order: Tensor) -> InvarianceReport:
    """The same report, if the sample at each place had been called by what ``order`` says."""
    table = report.per_sample
    columns = table.columns | {"index": order.numpy()[table["index"]]}
    table = SampleTable({name: column[np.argsort(columns["index"])] for name, column in columns.items()})
    worst = [dataclasses.replace(one, index=int(order[one.index])) for one in report.worst_samples]
    return dataclasses.replace(
        report, per_sample=table, worst_samples=tuple(sorted(worst, key=lambda one: (-one.logit_error, one.index)))
    )


def assert_same_numbers(actual: InvarianceReport, expected: InvarianceReport) -> None:
    """Raises unless all numbers agree up to rounding, those of single samples too."""
    assert actual.per_sample.columns.keys() == expected.per_sample.columns.keys()
    assert numbers(actual) == pytest.approx(numbers(expected), rel=1e-12, abs=1e-12)


# Against the oracle


@every_group
@pytest.mark.parametrize("make", [mlp, cnn], ids=["mlp", "cnn"])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_every_field_agrees_with_the_oracle(name, make, labelled):
    group, elements = GROUPS[name]
    model, x = make(), images()
    y = classes_of(x) if labelled else None
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        all_non_identity(elements, len(x)),
        group.order,
        network=network,
        steps=2,
    )
    report = measure_invariance(model, in_batches(x, y), group, saliency=EXACT_WEIGHTS)
    assert_report_agrees(report, expected)
    assert report.exhaustive
    assert (report.accuracy is None) == (not labelled)
    assert report.logit_error.mean > 1e-3
    assert 0.01 < report.saliency_similarity.mean < 0.99 or name == "sign"
    assert report.completeness_gap > 1e-7


@pytest.mark.parametrize("make", [mlp, cnn], ids=["mlp", "cnn"])
def test_the_papers_maps_agree_with_the_oracle_up_to_the_rounding_of_weights(make):
    group, elements = GROUPS["rotation"]
    model, x = make(), images(4)
    y = classes_of(x)
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0], x.numpy(), y.numpy(), all_non_identity(elements, 4), 4, network=network
    )
    assert_report_agrees(measure_invariance(model, in_batches(x, y), group), expected)


@every_group
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_drawn_elements_agree_with_the_oracle(name, labelled):
    group, elements = GROUPS[name]
    samples = 1 if group.order == 2 else 2
    model, x = mlp(), images()
    y = classes_of(x) if labelled else None
    replay = torch.Generator().manual_seed(5)
    drawn = [
        [(g, elements[g]) for g in column]
        for batch in in_batches(x)
        for column in group.sample_non_identity(len(batch), samples, replay).T.tolist()
    ]
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        drawn,
        group.order,
        network=network,
        steps=2,
        saliency_samples=5,
    )
    report = measure_invariance(
        model,
        in_batches(x, y),
        group,
        saliency=EXACT_WEIGHTS,
        samples=samples,
        saliency_samples=5,
        rng=torch.Generator().manual_seed(5),
    )
    assert_report_agrees(report, expected)
    assert report.exhaustive == (samples == group.order - 1)
    assert sum(one.logit_error.count for one in report.per_element) == 7 * samples


def test_elements_that_were_never_drawn_are_left_out():
    group, _ = GROUPS["product"]
    report = measure_invariance(mlp(), [images(2)], group, saliency=None, samples=1)
    assert 1 <= len(report.per_element) <= 2
    assert all(1 <= one.element <= 7 for one in report.per_element)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)], ids=["axis", "no axis"])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_a_single_logit_agrees_with_the_oracle(shape, labelled):
    group, elements = GROUPS["rotation"]
    network_module, x = mlp(classes=1), images()
    y = classes_of(x, 2) if labelled else None
    network = oracle.network_of(network_module)
    expected = oracle.audit(
        lambda v: network(v[None])[0].reshape(shape[1:]),
        x.numpy(),
        None if y is None else y.numpy(),
        all_non_identity(elements, len(x)),
        4,
        network=network,
        steps=2,
    )
    report = measure_invariance(
        lambda v: network_module(v).view(shape), in_batches(x, y), group, saliency=EXACT_WEIGHTS
    )
    assert_report_agrees(report, expected)
    assert report.distribution_error.mean > 1e-3


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_outputs_per_position_agree_with_the_oracle(classes, labelled):
    group, elements = GROUPS["rotation"]
    model, x = nn.Sequential(nn.Conv2d(1, classes, 3)).double(), images()
    y = torch.randint(max(classes, 2), (7, 2, 2)) if labelled else None
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        all_non_identity(elements, len(x)),
        4,
    )
    report = measure_invariance(model, in_batches(x, y), group, saliency=None)
    assert_report_agrees(report, expected)
    assert 0 < report.consistency.mean < 1


def test_an_infinite_group_agrees_with_the_oracle():
    group, model = PlaneRotation(), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 2, dtype=torch.float64), torch.randint(3, (7,))
    replay = torch.Generator().manual_seed(0)

    def turn(angle: float) -> oracle.Element:
        def turned(v: np.ndarray, a: float) -> np.ndarray:
            c, s = math.cos(a), math.sin(a)
            return np.array([c * v[0] - s * v[1], s * v[0] + c * v[1]])

        return oracle.Element(lambda v: turned(v, angle), lambda m: turned(m, -angle))

    angles = [
        column
        for batch in in_batches(x)
        for column in group.sample_non_identity(len(batch), 3, replay)[..., 0].T.tolist()
    ]
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        y.numpy(),
        [[((a,), turn(a)) for a in column] for column in angles],
        None,
        network=network,
        steps=2,
        channel_axis=None,
    )
    report = measure_invariance(model, in_batches(x, y), group, samples=3, saliency=EXACT_WEIGHTS)
    assert report.per_element == ()
    assert_report_agrees(report, expected)
    assert not report.exhaustive


def test_the_oracle_tells_a_group_that_turns_the_other_way():
    group, elements = GROUPS["rotation"]
    model, x = mlp(), images()
    network = oracle.network_of(model)
    backwards = [elements[0], *elements[:0:-1]]
    expected = oracle.audit(lambda v: network(v[None])[0], x.numpy(), None, all_non_identity(backwards, 7), 4)
    report = measure_invariance(model, in_batches(x), group, saliency=None)
    with pytest.raises(AssertionError, match="of element 1"):
        assert_report_agrees(report, expected)


def test_the_oracle_tells_maps_that_were_not_realigned():
    group, elements = GROUPS["rotation"]
    model, x = mlp(), images()
    network = oracle.network_of(model)
    not_realigned = [oracle.Element(g.act, lambda m: m) for g in elements]
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None,
        all_non_identity(not_realigned, 7),
        4,
        network=network,
        steps=2,
    )
    report = measure_invariance(model, in_batches(x), group, saliency=EXACT_WEIGHTS)
    with pytest.raises(AssertionError, match="saliency_similarity"):
        assert_report_agrees(report, expected)


# Special models and groups


@every_group
def test_an_exactly_invariant_model_has_no_error_and_full_similarity(name):
    group, _ = GROUPS[name]
    network, x = mlp(), images()
    y = classes_of(x)

    def model(v: Tensor) -> Tensor:
        return network(group.orbit(v).flatten(0, 1)).view(group.order, len(v), -1).mean(0)

    report = measure_invariance(model, in_batches(x, y), group)
    for one in (report, *report.per_element):
        assert one.logit_error.mean == pytest.approx(0, abs=1e-25)
        assert one.distribution_error.mean == pytest.approx(0, abs=1e-14)
        assert one.normalized_logit_error.mean == pytest.approx(0, abs=1e-25)
        assert one.saliency_similarity.mean == pytest.approx(1, abs=1e-9)
        assert one.consistency == Estimate(1.0, 0.0, 7)
    assert report.accuracy.mean == report.group_accuracy.mean == report.orbit_accuracy.mean
    assert 0 < report.accuracy.mean < 1


def test_the_identity_alone_gives_zero_and_one():
    x = images()
    y = classes_of(x)
    report = measure_invariance(mlp(), in_batches(x, y), Trivial())
    assert (report.samples, report.elements, report.exhaustive, report.per_element) == (7, 0, True, ())
    for name in ("logit_error", "distribution_error", "normalized_logit_error"):
        assert getattr(report, name) == Estimate(0.0, 0.0, 7)
    assert report.saliency_similarity == report.consistency == Estimate(1.0, 0.0, 7)
    assert report.accuracy == report.group_accuracy == report.orbit_accuracy
    assert 0 < report.accuracy.mean < 1
    assert "each under 0 non-identity elements" in str(report)


def test_accuracies_by_hand():
    """Of the four rotations, sample 0 is right under all, sample 1 at the identity alone, sample 2 never there."""
    right = [{0, 1, 2, 3}, {0}, {1, 2}]
    x = torch.zeros(3, 1, 4, 4)
    x[:, 0, 0, 0] = 1
    x[:, 0, 1, 1] = torch.tensor([0.0, 1.0, 2.0])  # which sample; turns along with the corner
    corners = {0: (0, 0), 1: (3, 0), 2: (3, 3), 3: (0, 3)}
    inner = {0: (1, 1), 1: (2, 1), 2: (2, 2), 3: (1, 2)}

    def model(v: Tensor) -> Tensor:
        hits = []
        for one in v[:, 0]:
            (g,) = [g for g, (i, j) in corners.items() if one[i, j] == 1]
            hits.append(float(g in right[int(one[inner[g]])]))
        return torch.tensor(hits)[:, None] * torch.tensor([0.0, 2.0])

    report = measure_invariance(model, [(x, torch.tensor([1, 1, 1]))], CyclicRotation(4), saliency=None)
    assert report.accuracy.mean == pytest.approx(2 / 3)
    assert report.group_accuracy.mean == pytest.approx((1 + 1 / 4 + 2 / 4) / 3)
    assert report.orbit_accuracy.mean == pytest.approx(1 / 3)
    assert report.consistency.mean == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert [one.accuracy.mean for one in report.per_element] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert [one.consistency.mean for one in report.per_element] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_one_sample_has_no_standard_error_and_still_prints():
    report = measure_invariance(mlp(), [images(1)], CyclicRotation(4))
    assert report.logit_error.standard_error is None
    assert report.logit_error.count == 1
    assert "nan" not in str(report)
    assert InvarianceReport.from_dict(json.loads(report.to_json())) == report


# Batches


def finely(model, batches, group, **settings) -> InvarianceReport:
    return measure_invariance(model, batches, group, saliency=SaliencyMap(steps=2), saliency_samples=None, **settings)


@every_group
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_batch_size_does_not_matter(name, labelled):
    group, _ = GROUPS[name]
    model, x = mlp(), images(12)
    y = classes_of(x) if labelled else None
    expected = finely(model, in_batches(x, y, 12), group)
    for size in (1, 5, 11):
        actual = finely(model, in_batches(x, y, size), group)
        assert numbers(actual) == pytest.approx(numbers(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", [name for name, (group, _) in GROUPS.items() if group.order > 2])
def test_batch_size_does_not_matter_for_drawn_elements_either(name):
    group, _ = GROUPS[name]
    model, x = mlp(), images(40)
    expected = measure_invariance(model, [x], group, saliency=None, samples=1)
    for size in (1, 7, 32):
        actual = measure_invariance(model, in_batches(x, size=size), group, saliency=None, samples=1)
        assert numbers(actual) == pytest.approx(numbers(expected), rel=1e-12, abs=1e-12)


def test_a_model_that_writes_into_its_input_spoils_neither_data_nor_answer():
    model, x = nn.Sequential(nn.ReLU(inplace=True), mlp()), images(5)
    given = x.clone()
    report = measure_invariance(model, [x], CyclicRotation(4), saliency=None)
    assert torch.equal(x, given)
    tame = measure_invariance(nn.Sequential(nn.ReLU(), model[1]), [x], CyclicRotation(4), saliency=None)
    assert report == tame
    for one in report.worst_samples:
        assert_exact(one.input, given[one.index])
        assert_exact(one.transformed, CyclicRotation(4).act(torch.tensor(one.element), given[one.index][None])[0])


def test_logits_whose_errors_overflow_are_refused():
    with pytest.raises(ValueError, match=r"logit_error overflows, even in float64\. Scale"):
        measure_invariance(lambda v: 1e100 * v, [images(2).flatten(1)], SignFlip(), saliency=None)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_errors_of_very_small_and_large_logits_are_those_of_others_scaled(scale):
    """In float32, whose squares overflow and vanish."""
    x = images(5).flatten(1).float()
    weights = torch.randn(16, 3)
    of_one, scaled = (
        measure_invariance(lambda v, s=s: s * (v @ weights), [x], Flip(), saliency=None) for s in (1.0, scale)
    )
    assert scaled.normalized_logit_error.mean == pytest.approx(of_one.normalized_logit_error.mean, rel=1e-5)
    assert scaled.logit_error.mean == pytest.approx(of_one.logit_error.mean * scale**2, rel=1e-5)


def test_a_model_that_gives_the_same_memory_each_time_is_measured_all_the_same():
    model, x = mlp(), images()
    memory = torch.empty(7, 3, dtype=torch.float64)
    reused = measure_invariance(lambda v: memory.copy_(model(v).detach()), [x], CyclicRotation(4), saliency=None)
    assert reused.logit_error == measure_invariance(model, [x], CyclicRotation(4), saliency=None).logit_error


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16])
def test_labels_of_narrow_dtypes_fit_many_classes(dtype):
    labels = torch.tensor([2, 100, 3, 0, 7]).to(dtype)
    report = measure_invariance(
        lambda v: v @ torch.randn(16, 300, generator=torch.manual_seed(0)),
        [(images(5).flatten(1).float(), labels)],
        Flip(),
        saliency=None,
    )
    assert report.accuracy is not None


@every_group
def test_order_does_not_matter(name):
    group, _ = GROUPS[name]
    model, x = mlp(), images(12)
    y = classes_of(x)
    expected = finely(model, in_batches(x, y, 4), group)
    by_batch = finely(model, in_batches(x, y, 4)[::-1], group)
    order = torch.randperm(12)
    by_sample = finely(model, in_batches(x[order], y[order], 5), group)
    assert_same_numbers(in_order(by_batch, torch.arange(12).view(3, 4).flip(0).flatten()), expected)
    assert_same_numbers(in_order(by_sample, order), expected)
    with pytest.raises(AssertionError):
        assert_same_numbers(by_sample, expected)  # samples that are taken for others show


def test_a_large_common_logit_does_not_cost_digits_between_batches():
    """Errors of one size and a tiny spread: the spread must survive the sum over many batches."""
    x = torch.ones(200, 1, dtype=torch.float64) * 1e4 + 1e-3 * torch.randn(200, 1, dtype=torch.float64)
    report = measure_invariance(lambda v: v, in_batches(x, size=1), SignFlip(), saliency=None)
    expected = oracle.estimate([2 * float(v) ** 2 for v in x])
    assert report.logit_error.standard_error == pytest.approx(expected.standard_error, rel=1e-5)


FORMS: dict[str, Callable[[Tensor, Tensor], Iterable]] = {
    "tuples": lambda x, y: in_batches(x, y),
    "lists": lambda x, y: [list(pair) for pair in in_batches(x, y)],
    "generator": lambda x, y: (pair for pair in in_batches(x, y)),
    "iterator": lambda x, y: iter(in_batches(x, y)),
    "mappings": lambda x, y: [{"inputs": v, "labels": c} for v, c in in_batches(x, y)],
    "data loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3),
    "int32 labels": lambda x, y: in_batches(x, y.int()),
    "int16 labels": lambda x, y: in_batches(x, y.short()),
    "uint8 labels": lambda x, y: in_batches(x, y.byte()),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_loader_gives_the_same_report(name):
    model, x = mlp(), images()
    y = classes_of(x)
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), saliency=EXACT_WEIGHTS)
    assert measure_invariance(model, FORMS[name](x, y), CyclicRotation(4), saliency=EXACT_WEIGHTS) == expected


def test_a_shuffled_data_loader_gives_the_same_numbers():
    model, x = mlp(), images(12)
    data, order = TensorDataset(x, classes_of(x)), []

    class Watched(Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            order.append(index)
            return data[index]

    expected = finely(model, DataLoader(data, batch_size=5), CyclicRotation(4))
    actual = finely(model, DataLoader(Watched(), batch_size=5, shuffle=True), CyclicRotation(4))
    assert sorted(order) == list(range(12)) != order
    assert_same_numbers(in_order(actual, torch.tensor(order)), expected)


def test_mappings_with_keys_of_their_own():
    model, x = mlp(), images()
    y = classes_of(x)
    loader = [{"pixels": v, "digit": c} for v, c in in_batches(x, y)]
    report = measure_invariance(
        model, loader, SignFlip(), saliency=None, input_key="pixels", label_key="digit", device="cpu"
    )
    assert report == measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None)
    assert measure_invariance(model, loader, SignFlip(), saliency=None, input_key="pixels").accuracy is None


# Drawn elements


def test_draws_repeat_by_themselves_and_follow_the_generator():
    group, _ = GROUPS["product"]
    model, x = mlp(), images()

    def found(seed: int | None) -> float:
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        return measure_invariance(model, in_batches(x), group, saliency=None, samples=1, rng=rng).logit_error.mean

    assert found(None) == found(None)
    assert found(3) == found(3)
    assert len({found(None), found(3), found(4)}) == 3


def test_drawing_all_elements_equals_taking_all():
    group, _ = GROUPS["product"]
    model, x = mlp(), images()
    y = classes_of(x)
    expected = measure_invariance(model, in_batches(x, y), group, saliency=EXACT_WEIGHTS)
    actual = measure_invariance(model, in_batches(x, y), group, saliency=EXACT_WEIGHTS, samples=7)
    assert numbers(actual) == pytest.approx(numbers(expected), rel=1e-12, abs=1e-12)
    assert actual.exhaustive
    assert expected.exhaustive


def test_a_generator_that_was_given_goes_on():
    rng = torch.Generator().manual_seed(3)
    before = rng.get_state()
    measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=None, samples=1, rng=rng)
    assert not torch.equal(rng.get_state(), before)


# Calls and state


def test_the_model_is_called_once_per_batch_and_element_and_once_more_at_first_without_gradients():
    model, rows, hooks = mlp(), [], []

    def watched(v: Tensor) -> Tensor:
        rows.append(len(v))
        assert not torch.is_grad_enabled()
        return model(v)

    model.register_forward_hook(lambda *_: hooks.append(1))
    measure_invariance(watched, in_batches(images()), CyclicRotation(4), saliency=None)
    assert rows == [3] * 5 + [3] * 4 + [1] * 4
    assert len(hooks) == 13


def test_saliency_costs_no_more_calls_than_its_steps_need():
    rows, model = [], mlp()
    model.register_forward_hook(lambda module, inputs, outputs: rows.append(len(outputs)))
    measure_invariance(model, [images(5)], CyclicRotation(4), saliency=SaliencyMap(steps=3))
    # Four forwards for the errors, one more for the noise, four maps of three points, and the two ends of the gap.
    assert sum(rows) == 5 * (4 + 1 + 4 * 3 + 2)


class Noted(nn.Module):
    """Notes in which modes it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mixed()
        self.seen: set[tuple[bool, ...]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(tuple(module.training for module in self.layers.modules()))
        return self.layers(x)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("saliency", [None, "paper", SaliencyMap(attribution=captum.attr.Saliency)], ids=str)
@pytest.mark.parametrize("samples", [None, 2])
def test_is_measured_in_the_mode_asked_for_and_found_as_it_was(mode, saliency, samples):
    model = Noted()
    x = torch.randn(6, 1, 4, 4)
    before = state_of(model)
    measure_invariance(
        model,
        DataLoader(TensorDataset(x), batch_size=3, shuffle=True),
        CyclicRotation(4),
        saliency=saliency,
        samples=samples,
        mode=mode,
    )
    assert state_of(model) == before
    assert model.seen == {(mode == "train",) * len(list(model.layers.modules()))}


def test_training_mode_uses_the_statistics_of_the_batch():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double().eval()
    x, group = images(), CyclicRotation(4)
    report = measure_invariance(model, [x], group, saliency=None, mode="train")
    model.train()
    expected = [logit_error(model(x), model(group.act(g, x))).mean() for g in group.non_identity_elements()]
    assert report.logit_error.mean == pytest.approx(torch.stack(expected).mean().item(), rel=1e-12)
    model.eval()
    evaluated = measure_invariance(model, [x], group, saliency=None).logit_error.mean
    assert evaluated != pytest.approx(report.logit_error.mean, rel=1e-3)


def test_a_callable_that_is_no_module_is_called_as_it_is():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()
    count = int(network[1].num_batches_tracked)
    report = measure_invariance(lambda v: network(v), [images()], CyclicRotation(4), saliency=None)
    assert report.model == "<lambda>"
    assert network.training
    assert network[1].num_batches_tracked == count + 5


def test_the_inputs_are_not_written_to():
    x = images()
    before = x.clone()
    measure_invariance(mlp(), [x], GROUPS["product"][0])
    assert_exact(x, before)
    assert not x.requires_grad


def test_says_what_was_measured():
    report = measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=EXACT_WEIGHTS)
    assert report.model == "Sequential"
    assert report.group == "CyclicRotation(order=4)"
    assert report.saliency == repr(EXACT_WEIGHTS)
    assert measure_invariance(mlp(), [images()], CyclicRotation(4)).saliency == repr(SaliencyMap())


@pytest.mark.parametrize("progress", [False, True])
def test_prints_nothing_where_there_is_no_terminal(progress, capfd):
    measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=None, progress=progress)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_is_measured_in_float32(dtype):
    model, x = mlp().to(dtype), images().to(dtype)
    group = CyclicTranslation(2)
    report = measure_invariance(model, in_batches(x), group)
    with torch.no_grad():
        moved = [model(group.act(g, x)) for g in group.non_identity_elements()]
        expected = torch.stack([logit_error(model(x).double(), f.double()) for f in moved]).mean().item()
    assert report.logit_error.mean == pytest.approx(expected, rel=1e-5)
    assert 0 <= report.saliency_similarity.mean <= 1 + 1e-6


# Saliency


@pytest.mark.parametrize(("saliency_samples", "count"), [(1, 1), (3, 3), (4, 4), (7, 7), (100, 7), (None, 7), (256, 7)])
def test_the_similarity_is_measured_on_the_first_samples(saliency_samples, count):
    model, x = mlp(), images()
    report = measure_invariance(
        model, in_batches(x), CyclicRotation(4), saliency=EXACT_WEIGHTS, saliency_samples=saliency_samples
    )
    first = measure_invariance(model, [x[:count]], CyclicRotation(4), saliency=EXACT_WEIGHTS)
    assert report.saliency_similarity.count == count
    assert report.saliency_similarity.mean == pytest.approx(first.saliency_similarity.mean, rel=1e-12)
    assert report.completeness_gap == pytest.approx(first.completeness_gap, rel=1e-9)
    assert {one.saliency_similarity.count for one in report.per_element} == {count}
    assert report.logit_error.count == 7


def test_without_saliency_there_is_none():
    report = measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=None)
    assert report.saliency_similarity is report.saliency is report.completeness_gap is None
    assert [one.saliency_similarity for one in report.per_element] == [None] * 3


@pytest.mark.parametrize("case", ["labels", "no labels", "single logit"])
def test_a_map_method_of_ones_own_gets_the_model_the_inputs_and_the_class(case):
    model, x = mlp(classes=1 if case == "single logit" else 3), images()
    y = None if case == "no labels" else classes_of(x, 2)
    calls = []

    def energy(network, inputs: Tensor, target: Tensor | None) -> Tensor:
        assert network is model
        calls.append((inputs, target))
        return inputs.square()

    group = CyclicRotation(4)
    report = measure_invariance(model, in_batches(x, y), group, saliency=energy, saliency_samples=5)
    assert report.saliency_similarity.mean == pytest.approx(1, abs=1e-12)
    assert report.saliency_similarity.count == 5
    assert report.completeness_gap is None
    assert "energy" in report.saliency
    with torch.no_grad():
        expected = {"labels": y, "no labels": model(x).argmax(1), "single logit": None}[case]
    assert len(calls) == 8
    for index, (inputs, target) in enumerate(calls):
        rows = slice(0, 3) if index < 4 else slice(3, 5)
        elements = group.elements()[index % 4]
        assert_exact(inputs, group.act(elements, x[rows]))
        if expected is None:
            assert target is None
        else:
            assert_exact(target, expected[rows])


def test_a_map_that_does_not_move_along_is_dissimilar():
    def corner(network, inputs: Tensor, target: Tensor) -> Tensor:
        maps = torch.zeros_like(inputs)
        maps[..., 0, 0] = 1
        return maps

    report = measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=corner)
    assert report.saliency_similarity == Estimate(0.0, 0.0, 7)


def test_other_attributions_have_no_completeness_gap():
    saliency = SaliencyMap(attribution=captum.attr.Saliency)
    report = measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=saliency)
    assert report.completeness_gap is None
    assert 0 < report.saliency_similarity.mean < 1


def test_a_model_without_any_gradient_has_similar_maps_and_no_gap_to_speak_of():
    report = measure_invariance(lambda v: 0 * v.flatten(1)[:, :3], [images()], CyclicRotation(4))
    assert report.saliency_similarity == Estimate(1.0, 0.0, 7)
    assert report.completeness_gap is None


def test_batches_of_numbers_have_maps_too():
    report = measure_invariance(lambda v: v, [torch.randn(5).double()], SignFlip())
    assert report.saliency_similarity.mean == pytest.approx(1)


def test_gradients_that_are_no_numbers_are_not_taken_for_agreement():
    def model(v: Tensor) -> Tensor:
        return torch.stack([v.flatten(1).square().sqrt().sum(1), v.flatten(1).sum(1)], 1)

    x = images()
    x[2, 0, 1, 1] = 0
    with pytest.raises(ValueError, match="finite"):
        measure_invariance(model, [(x, torch.zeros(7).long())], CyclicRotation(4))


def test_works_where_gradients_are_off():
    model, x = mlp(), images()
    expected = measure_invariance(model, [x], CyclicRotation(4))
    with torch.no_grad():
        assert measure_invariance(model, [x], CyclicRotation(4)) == expected


def test_the_time_of_the_call_does_not_matter_to_a_model_with_dropout():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x = images()
    torch.manual_seed(1)
    first = measure_invariance(model, [x], CyclicRotation(4), saliency=None, mode="train")
    torch.manual_seed(1)
    assert measure_invariance(model, [x], CyclicRotation(4), saliency=None, mode="train") == first
    assert first.logit_error.mean > measure_invariance(model, [x], Trivial(), saliency=None).logit_error.mean


# What is refused, and what is left behind


class Spoiled(nn.Module):
    """A network that depends on the mode; in its second batch, its logits come out spoiled."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = mixed()
        self.spoil = spoil
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = self.layers(x)
        return self.spoil(logits) if self.calls > 6 else logits


def explode(logits: Tensor) -> Tensor:
    raise ArithmeticError("the model's own")


def used_up() -> Iterator[Tensor]:
    generator = (x for x in [torch.zeros(3, 1, 4, 4)])
    list(generator)
    return generator


def failing() -> Iterator[Tensor]:
    yield torch.zeros(3, 1, 4, 4)
    raise OSError("disk gone")


def failing_map(model, inputs: Tensor, target: Tensor) -> Tensor:
    raise LookupError("the map's own")


X3 = torch.zeros(3, 1, 4, 4)
Y3 = torch.tensor([0, 1, 2])
PLAIN = {"saliency": None}

FAILURES = {
    "no group": ({"group": "rotation"}, TypeError, r"group must be a Group"),
    "too many samples": ({"samples": 4}, ValueError, r"1 to 3 for CyclicRotation.*got 4"),
    "all of infinitely many": ({"group": PlaneRotation()}, ValueError, r"infinitely many.*samples="),
    "mode": ({"mode": "test"}, ValueError, r"""mode must be "eval" or "train": got 'test'"""),
    "saliency samples": ({"saliency_samples": 0}, ValueError, r"saliency_samples must be 1 or more, or None.*got 0"),
    "saliency of another name": ({"saliency": "gradcam"}, (TypeError, ValueError), r"saliency.*gradcam"),
    "tensor for a loader": ({"loader": X3}, TypeError, r"must yield batches: got a tensor"),
    "triples": ({"loader": [(X3, Y3, Y3)]}, TypeError, r"got a tuple of 3"),
    "empty loader": ({"loader": []}, ValueError, r"at least one batch: it yielded none"),
    "used-up generator": ({"loader": used_up}, ValueError, r"at least one batch: it yielded none.*used up"),
    "loader raises": ({"loader": failing}, OSError, r"disk gone"),
    "integer batch": ({"loader": [X3, X3.long()]}, TypeError, r"floating point: got torch.int64"),
    "empty batch": ({"loader": [X3, X3[:0]]}, ValueError, r"at least one sample: got shape \(0, 1, 4, 4\)"),
    "not square": ({"loader": [X3, X3.view(3, 1, 2, 8)]}, ValueError, r"square.*\(2, 8\)"),
    "labels of floats": ({"loader": [(X3, Y3.float())]}, TypeError, r"class indices.*float32.*long"),
    "labels of bools": ({"loader": [(X3, Y3 > 0)]}, TypeError, r"class indices.*bool"),
    "too few labels": ({"loader": [(X3, Y3[:2])]}, ValueError, r"one per input: got shape \(2,\) for inputs \(3, 1"),
    "one-hot labels": ({"loader": [(X3, Y3[:, None])]}, ValueError, r"shape of the predictions, \(3,\): got \(3, 1\)"),
    "labels too large": ({"loader": [(X3, Y3 + 1)]}, ValueError, r"between 0 and 2.*got 1 to 3"),
    "labels below zero": ({"loader": [(X3, Y3 - 1)]}, ValueError, r"between 0 and 2.*got -1 to 1"),
    "labels that stop": ({"loader": [(X3, Y3), X3]}, ValueError, r"Either every batch has labels.*after 3 samples"),
    "labels that begin": ({"loader": [X3, (X3, Y3)]}, ValueError, r"Either every batch has labels.*after 3 samples"),
    "not finite": (
        {"spoil": lambda z: z / 0},
        ValueError,
        r"must be finite.*sample 3 of the data \(row 0 of its batch",
    ),
    "model raises": ({"spoil": explode}, RuntimeError, r"failed on inputs under element 1 of CyclicRotation"),
    "tuple": ({"spoil": lambda z: (z, z)}, TypeError, r"one tensor: got tuple\. Wrap it"),
    "integers out": ({"spoil": lambda z: z.long()}, TypeError, r"floating-point logits: got torch.int64"),
    "rows": ({"spoil": lambda z: z[1:]}, ValueError, r"one row of logits per sample: got shape \(2, 3\) for 3"),
    "map raises": ({"saliency": failing_map}, RuntimeError, r"Making saliency maps failed .*: the map's own"),
    "map of another number": (
        {"saliency": lambda m, x, t: x[1:]},
        ValueError,
        r"one map per sample, 3.*\(2, 1, 4, 4\)",
    ),
    "map of None": ({"saliency": lambda m, x, t: None}, ValueError, r"one map per sample, 3 here: got NoneType"),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", FAILURES)
def test_failures_say_what_is_wrong_and_leave_everything_as_it_was(name, mode):
    changes, kind, message = FAILURES[name]
    settings = {"loader": [X3, X3], "group": CyclicRotation(4), "saliency": None, "mode": mode} | changes
    model = Spoiled(settings.pop("spoil", lambda z: z))
    loader, group = settings.pop("loader"), settings.pop("group")
    before = state_of(model)
    with pytest.raises(kind, match=message):
        measure_invariance(model, loader() if callable(loader) else loader, group, **settings)
    assert state_of(model) == before


def test_the_models_own_error_is_the_cause():
    model = Spoiled(explode)
    with pytest.raises(RuntimeError, match=r"shape \(3, 1, 4, 4\): the model's own") as caught:
        measure_invariance(model, [X3, X3], CyclicRotation(4), saliency=None)
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_a_model_that_fails_on_the_inputs_as_they_are_says_so():
    with pytest.raises(RuntimeError, match=r"failed on the inputs as they are, shape \(3, 1, 4, 4\): the model's own"):
        measure_invariance(explode, [X3], CyclicRotation(4), saliency=None)


def test_a_model_that_fails_under_drawn_elements_says_so():
    model = Spoiled(explode)
    with pytest.raises(RuntimeError, match=r"failed on inputs under drawn elements of CyclicRotation.*the model's own"):
        measure_invariance(model, [X3] * 3, CyclicRotation(4), saliency=None, samples=1)


def test_a_model_that_fails_while_maps_are_made_says_so():
    network = mlp()

    def model(v: Tensor) -> Tensor:
        return network(v.view(5, 1, 4, 4))

    with pytest.raises(RuntimeError, match=r"CyclicRotation|saliency") as caught:
        measure_invariance(model, [images(5)], CyclicRotation(4))
    assert "invalid for input of size" in str(caught.value.__cause__)


def nan_if_corner_is_large(v: Tensor) -> Tensor:
    """Logits that are not finite where the entry in the first corner is large."""
    return torch.where(v[:, 0, 0, :1] > 100, torch.nan, v[:, 0, 0, :3])


@pytest.mark.parametrize("element", [0, 1, 2, 3])
def test_outputs_that_are_no_numbers_name_the_sample_and_the_element(element):
    x, group = images(8), CyclicRotation(4)
    corner = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    corner[..., 0, 0] = 1e3
    x[6:7] = group.act(group.inverse(torch.tensor(element)), corner)
    where = "the inputs as they are" if element == 0 else rf"inputs under element {element} of CyclicRotation"
    with pytest.raises(ValueError, match=rf"sample 6 of the data \(row 1 of its batch\), {where}"):
        measure_invariance(nan_if_corner_is_large, in_batches(x, size=5), group, saliency=None)


def test_outputs_that_are_no_numbers_name_the_sample_and_the_drawn_element():
    x, group = images(8), CyclicRotation(4)
    x[6] = 1e3
    replay = torch.Generator().manual_seed(0)
    group.sample_non_identity(5, 1, replay)
    element = int(group.sample_non_identity(3, 1, replay)[0, 1])
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(len(v))
        return nan_if_corner_is_large(v) if len(calls) == 5 else v[:, 0, 0, :3]

    with pytest.raises(ValueError, match=rf"sample 6 of the data \(row 1 of its batch\).* element {element} of Cyclic"):
        measure_invariance(model, in_batches(x, size=5), group, saliency=None, samples=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_no_value_that_is_not_finite_passes(value):
    with pytest.raises(ValueError, match=r"must be finite.*sample 0"):
        measure_invariance(lambda v: v.flatten(1)[:, :3] * value, [images()], SignFlip(), saliency=None)


def test_outputs_per_position_have_no_maps():
    model = nn.Sequential(nn.Conv2d(1, 3, 3)).double()
    x = images()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"one prediction per sample.*\(7, 3, 2, 2\): set saliency=None"):
        measure_invariance(model, [x], CyclicRotation(4))
    assert state_of(model) == before


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64], ids=str)
def test_labels_of_a_single_logit_may_be_what_its_loss_takes(dtype, column):
    x = images()
    y = (torch.arange(len(x)) % 2 == 0).to(dtype)
    report = measure_invariance(
        lambda v: v.flatten(1)[:, :1], [(x, y[:, None] if column else y)], SignFlip(), saliency=None
    )
    right = (x.flatten(1)[:, 0] > 0) == (y > 0)
    assert report.accuracy.mean == pytest.approx(right.double().mean().item())


def test_single_samples_of_a_data_set_are_refused():
    x = images()
    with pytest.raises(
        (TypeError, ValueError), match=r"got TensorDataset\. .* wrap it in a torch.utils.data.DataLoader"
    ):
        measure_invariance(mlp(), TensorDataset(x, classes_of(x)), SignFlip(), saliency=None)


def test_settings_are_spelled_out():
    with pytest.raises(TypeError, match="positional"):
        measure_invariance(mlp(), [images()], CyclicRotation(4), None)


def test_a_report_of_floats_only_goes_through_json():
    x = images()
    report = measure_invariance(mlp(), in_batches(x, classes_of(x)), CyclicRotation(4))
    assert InvarianceReport.from_dict(json.loads(report.to_json())) == report
    assert_linear(torch.tensor(numbers(report)), torch.tensor(numbers(InvarianceReport.from_dict(report.to_dict()))))


def map_by_backward(model: nn.Module, inputs: Tensor, target: Tensor | None) -> Tensor:
    """The commonest hand-written map: it fills the gradients of all parameters, and freezes them too."""
    inputs = inputs.clone().requires_grad_()
    model(inputs).sum().backward()
    model.requires_grad_(False)
    return inputs.grad.abs()


@pytest.mark.parametrize("had_gradients", [False, True])
def test_a_map_made_by_backward_leaves_gradients_as_they_were(had_gradients):
    model, x = mlp(), images()
    if had_gradients:
        model(x).sum().backward()
    before = state_of(model)
    measure_invariance(model, [x], CyclicRotation(4), saliency=map_by_backward)
    assert state_of(model) == before
    assert all(p.requires_grad and (p.grad is not None) == had_gradients for p in model.parameters())


def test_batches_are_not_held_on_to():
    alive = []

    def batches():
        for _ in range(50):
            x = images(4)
            alive.append(weakref.ref(x))
            assert sum(reference() is not None for reference in alive) <= 3
            yield x

    measure_invariance(mlp(), batches(), CyclicRotation(4), saliency=None)
    assert len(alive) == 50


def test_signs_in_a_list_of_actions_do_not_turn_maps_over():
    group = FiniteGroup.from_actions([lambda x: x, lambda x: -x])
    squares = nn.Sequential(nn.Flatten(), nn.Linear(16, 3).double())
    report = measure_invariance(lambda x: squares(x * x), [images()], group, saliency_samples=None)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-12)
    assert report.saliency_similarity.mean == pytest.approx(1, abs=1e-12)


def test_an_action_that_fails_says_on_which_element():
    class Broken(CyclicGroup):
        order, exact = 2, True

        def transform(self, index, x):
            raise LookupError("no such thing")

    with pytest.raises(RuntimeError, match=r"action failed on inputs under element 1 .*no such thing") as caught:
        measure_invariance(mlp(), [images()], Broken(), saliency=None)
    assert isinstance(caught.value.__cause__, LookupError)


def test_lists_of_actions_keep_the_sign_of_a_map():
    m = images(3)
    mirror = Flip(-1)
    listed = FiniteGroup.from_actions([lambda x: x, lambda x: x.flip(-1)])
    assert (m < 0).any()
    assert_exact(listed.act_on_map(torch.tensor(1), m), mirror.act(torch.tensor(1), m))
    minus_mirror = FiniteGroup.from_actions([lambda x: x, lambda x: -x.flip(-1)])
    assert_exact(minus_mirror.act_on_map(torch.tensor(1), m), mirror.act(torch.tensor(1), m))


class Stream(IterableDataset):
    """A data set that yields batches by itself."""

    def __iter__(self):
        return iter(in_batches(images(7)))


def test_an_iterable_data_set_of_batches_is_a_loader():
    assert measure_invariance(mlp(), Stream(), SignFlip(), saliency=None).samples == 7


def test_pairs_of_a_class_and_an_element_are_left_out_where_there_are_too_many(monkeypatch):
    from invreg.audit import tally

    model, x = mlp(), images()
    monkeypatch.setattr(tally, "_MOST_CELLS", 3 * 4 - 1)
    report = measure_invariance(model, [x], CyclicRotation(4), saliency=None)
    assert report.per_class_element == ()
    assert report.per_class
    assert report.per_element


def test_many_bins_cost_nothing_but_their_place():
    """As many classes as make most of the bins empty: the numbers are those of few classes."""
    x, y = images(9).flatten(1), torch.randint(3, (9,))
    few = measure_invariance(lambda v: v[:, :3], [(x, y)], Flip(), saliency=None)
    wide = lambda v: torch.cat([v[:, :3], v.new_full((len(v), 997), -1e3)], 1)  # noqa: E731
    many = measure_invariance(wide, in_batches(x, y, 2), Flip(), saliency=None)
    assert [one.label for one in many.per_class] == [one.label for one in few.per_class]
    for a, b in zip(many.per_class, few.per_class, strict=True):
        assert a.logit_error.mean == pytest.approx(b.logit_error.mean, rel=1e-12)
        assert a.accuracy.mean == pytest.approx(b.accuracy.mean, rel=1e-12)
