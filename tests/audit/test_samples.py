"""Are the numbers of single samples theirs, however many are kept and in whatever way some fail?"""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    CyclicRotation,
    Flip,
    InvarianceReport,
    PlanarRotation,
    SignFlip,
    SymmetricGroup,
    TransformationSet,
    Trivial,
    measure_invariance,
)
from invreg.audit.histogram import RELATIVE_ERROR
from invreg.audit.report import WITH_QUANTILES
from invreg.audit.samples import SampleTable
from tests import oracle
from tests.audit.test_measure import assert_samples_agree, classes_of, images, in_batches, mlp
from tests.tolerances import assert_exact

GROUP = CyclicRotation(4)
PLAIN = {"saliency": None}


def audited(model, x: Tensor, y: Tensor | None = None, *, size: int = 3, **settings) -> InvarianceReport:
    return measure_invariance(model, in_batches(x, y, size), GROUP, **(PLAIN | settings))


def expected(model: nn.Sequential, x: Tensor, y: Tensor | None = None) -> oracle.Audit:
    network = oracle.network_of(model)
    elements = [list(enumerate(oracle.rotations(4)))[1:]] * len(x)
    return oracle.audit(lambda v: network(v[None])[0], x.numpy(), None if y is None else y.numpy(), elements, 4)


# The table


def columns(rows: int = 4) -> dict[str, np.ndarray]:
    return {"index": np.arange(rows), "logit_error": np.arange(rows) / 2, "saliency_similarity": np.full(rows, np.nan)}


def test_a_table_has_columns_and_rows():
    table = SampleTable(columns())
    assert len(table) == 4
    assert table["logit_error"].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert "logit_error" in table
    assert "accuracy" not in table
    assert repr(table) == "SampleTable(4 samples: index, logit_error, saliency_similarity)"
    with pytest.raises(KeyError, match="accuracy"):
        table["accuracy"]
    assert len(SampleTable({})) == 0


@pytest.mark.parametrize("rows", [slice(1, 3), [1, 2], np.array([False, True, True, False])], ids=str)
def test_rows_are_taken_of_all_columns(rows):
    taken = SampleTable(columns()).taken(rows)
    assert taken["index"].tolist() == [1, 2]
    assert taken["logit_error"].tolist() == [0.5, 1.0]
    assert len(taken["saliency_similarity"]) == len(taken) == 2


def test_tables_are_equal_by_value_and_what_is_missing_is_equal():
    assert SampleTable(columns()) == SampleTable(columns())
    assert pickle.loads(pickle.dumps(SampleTable(columns()))) == SampleTable(columns())
    assert SampleTable(columns()) != SampleTable(columns(3))
    assert SampleTable(columns()) != columns()
    assert SampleTable(columns()) != SampleTable(columns() | {"accuracy": np.ones(4)})
    assert SampleTable(columns()) != SampleTable(columns() | {"saliency_similarity": np.zeros(4)})
    with pytest.raises(TypeError, match="unhashable"):
        hash(SampleTable({}))


# The numbers of single samples


@pytest.mark.parametrize("labelled", [False, True])
def test_estimates_are_the_means_of_the_columns(labelled):
    x = images(11)
    found = audited(mlp(), x, classes_of(x) if labelled else None)
    assert len(found.estimates) == (8 if labelled else 5)
    for name, estimate in found.estimates.items():
        by_loops = oracle.estimate(found.per_sample[name].tolist())
        assert estimate.mean == pytest.approx(by_loops.mean, rel=1e-12, abs=1e-15), name
        assert estimate.standard_error == pytest.approx(by_loops.standard_error, rel=1e-12, abs=1e-15), name


def test_outputs_that_are_no_logits_have_neither_classes_nor_distributions():
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3)).double(), images()
    network = oracle.network_of(model)
    elements = [list(enumerate(oracle.rotations(4)))[1:]] * 7
    loops = oracle.audit(lambda v: network(v[None])[0], x.numpy(), None, elements, 4, values=True)
    found = measure_invariance(model, in_batches(x), GROUP, outputs="values")
    assert_samples_agree(found, loops, 1e-9)
    assert list(found.estimates) == ["logit_error", "normalized_logit_error", "worst_logit_error"]
    for name, estimate in found.estimates.items():
        assert estimate.mean == pytest.approx(loops.estimates[name].mean, rel=1e-9)
        assert estimate.standard_error == pytest.approx(loops.estimates[name].standard_error, rel=1e-9)
    assert found.classes_by is None
    assert found.per_class == found.per_class_element == ()
    # Per position these would be means, of values they are sums.
    per_position = measure_invariance(model, in_batches(x), GROUP, saliency=None)
    assert found.logit_error.mean == pytest.approx(4 * per_position.logit_error.mean)
    labelled = measure_invariance(model, in_batches(x, torch.full((7, 9), 99.0)), GROUP, outputs="values")
    assert labelled == found


def test_of_the_identity_alone_no_element_is_the_worst():
    found = measure_invariance(mlp(), in_batches(images()), Trivial(), saliency=None)
    assert found.per_sample["worst_element"].tolist() == [-1] * 7
    assert found.per_sample["worst_logit_error"].tolist() == [0.0] * 7
    assert found.worst_samples == ()
    assert found.quantile("worst_logit_error", 0.5) == 0


@pytest.mark.parametrize("group", [PlanarRotation(), SymmetricGroup(4, dim=-1)], ids=repr)
def test_elements_without_indices_are_told_by_their_numbers(group):
    x = images()
    found = measure_invariance(mlp(), in_batches(x), group, samples=3, saliency=None)
    assert set(found.per_sample["worst_element"].tolist()) == {-1}
    for one in found.worst_samples:
        g = torch.tensor(one.element, dtype=group.element_dtype)
        assert g.shape == group.element_shape
        assert one.name == group.describe(g)
        assert_exact(one.transformed, group.act(g, x[one.index : one.index + 1])[0])
        assert one.logit_error == pytest.approx(found.per_sample["worst_logit_error"][one.index])


# The least invariant samples


@pytest.mark.parametrize("most", [0, 1, 4, 7, 10])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_the_least_invariant_samples_are_the_oracles_first(most, size):
    model, x = mlp(), images()
    y = classes_of(x)
    found = audited(model, x, y, size=size, worst_samples=most).worst_samples
    loops = expected(model, x, y).worst
    assert [one.index for one in found] == [one.index for one in loops[:most]]
    for one in found:
        assert one.name == f"{90 * one.element}°"
        assert_exact(one.input, x[one.index])
        assert_exact(one.transformed, GROUP.act(torch.tensor(one.element), x[one.index : one.index + 1])[0])


def of_errors(errors: list[float]) -> Tensor:
    """Samples ``(N, 2)`` whose logits, their entries, move by these errors when they are negated."""
    return torch.tensor([[math.sqrt(e / 2), 0.0] for e in errors], dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_of_samples_with_equal_errors_the_first_ones_are_shown(size):
    x = of_errors([2.0, 8.0, 2.0, 8.0, 2.0, 2.0, 8.0, 0.5, 2.0])
    found = measure_invariance(lambda v: v, in_batches(x, size=size), SignFlip(), saliency=None, worst_samples=5)
    assert [one.index for one in found.worst_samples] == [1, 3, 6, 0, 2]
    assert [one.logit_error for one in found.worst_samples] == pytest.approx([8, 8, 8, 2, 2])


def test_of_elements_with_equal_errors_the_first_is_shown():
    changes = TransformationSet([torch.clone, torch.neg, lambda x: -x])
    found = measure_invariance(lambda v: v, [of_errors([2.0, 8.0])], changes, saliency=None)
    assert found.per_sample["worst_element"].tolist() == [2, 2]
    assert [one.element for one in found.worst_samples] == [2, 2]
    assert [one.name for one in found.worst_samples] == ["neg", "neg"]


def test_the_least_invariant_samples_say_what_is_predicted():
    x = torch.tensor([[3.0, 1.0], [1.0, 2.0], [0.5, 0.25]], dtype=torch.float64)
    found = measure_invariance(lambda v: v, [(x, torch.tensor([0, 0, 1]))], Flip(-1), saliency=None).worst_samples
    assert [(o.index, o.label, o.prediction, o.transformed_prediction) for o in found] == [
        (0, 0, 0, 1),
        (1, 0, 1, 0),
        (2, 1, 0, 1),
    ]
    assert [o.logit_error for o in found] == [4.0, 1.0, 0.0625]
    assert [o.normalized_logit_error for o in found] == pytest.approx([8 / 10, 2 / 5, 0.125 / 0.3125])


# Of how many samples numbers are kept


def wide(samples: int = 40) -> Tensor:
    """Samples whose errors span many sizes."""
    return images(samples) * torch.logspace(-6, 6, samples, dtype=torch.float64)[torch.randperm(samples)].view(
        -1, 1, 1, 1
    )


@pytest.mark.parametrize("kept", [0, 1, 10, 39, 40, 41])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_what_is_not_kept_is_known_by_quantiles_within_half_a_percent(kept, size):
    model, x = mlp(), wide()
    every = audited(model, x, size=40)
    some = audited(model, x, size=size, kept_samples=kept)
    assert len(some.per_sample) == min(kept, 40)
    assert (some.histograms == {}) == (kept >= 40)
    for name in WITH_QUANTILES:
        values = every.per_sample[name]
        if kept:
            np.testing.assert_allclose(some.per_sample[name], values[:kept], rtol=1e-12)
        if kept < 40:
            assert sum(some.histograms[name].counts.values()) == 40 - kept
        for share in (0, 0.1, 0.25, 0.5, 0.9, 0.99, 1):
            exact = oracle.quantile(values.tolist(), share)
            assert some.quantile(name, share) == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9), (name, share)
    assert some.logit_error.mean == pytest.approx(every.logit_error.mean, rel=1e-12)
    assert [one.index for one in some.worst_samples] == [one.index for one in every.worst_samples]


def test_only_quantiles_of_what_is_not_kept_are_rough():
    model, x = mlp(), wide()
    every, some = audited(model, x), audited(model, x, kept_samples=10)
    kept = every.per_sample["logit_error"][:10].tolist()
    found = {some.quantile("logit_error", n / 40) for n in range(1, 41)}
    exact = {every.quantile("logit_error", n / 40) for n in range(1, 41)}
    assert set(kept) <= found
    assert len(found & exact) < 40


def test_the_histograms_of_invariant_samples_have_zeros():
    found = measure_invariance(
        lambda v: v, in_batches(of_errors([0.0, 0.0, 0.0, 2.0])), SignFlip(), saliency=None, kept_samples=0
    )
    assert [found.quantile("logit_error", share) for share in (0.25, 0.75)] == [0.0, 0.0]
    assert found.quantile("logit_error", 1) == pytest.approx(2.0, rel=0.005)


# Samples that fail


def test_samples_that_fail_leave_the_others_where_they_are():
    network, x = mlp(), images(11)
    y = classes_of(x)
    bad = [0, 4, 5, 10]

    def model(v: Tensor) -> Tensor:
        spoiled = torch.stack([(v.sum((1, 2, 3)) - x[n].sum()).abs() < 1e-9 for n in bad]).any(0)
        return torch.where(spoiled[:, None], torch.nan, network(v))

    found = audited(model, x, y, size=4, on_error="skip")
    good = [n for n in range(11) if n not in bad]
    assert (found.seen, found.samples, found.skipped) == (11, 7, 4)
    assert [(one.index, one.count) for one in found.skipped_samples] == [(n, 1) for n in bad]
    assert all("are not finite" in one.reason for one in found.skipped_samples)
    assert found.per_sample["index"].tolist() == good
    assert found.per_sample["label"].tolist() == y[good].tolist()
    alone = audited(network, x[good], y[good])
    for name in ("logit_error", "worst_logit_error", "consistency", "orbit_accuracy"):
        np.testing.assert_allclose(found.per_sample[name], alone.per_sample[name], rtol=1e-12)
        assert getattr(found, name).mean == pytest.approx(getattr(alone, name).mean, rel=1e-12)
    assert [one.index for one in found.worst_samples] == [good[one.index] for one in alone.worst_samples]
    assert found.quantile("logit_error", 0.5) == pytest.approx(alone.quantile("logit_error", 0.5), rel=1e-12)
    with pytest.raises(ValueError, match=r"must be finite: they are not for sample 0 of the data"):
        audited(model, x, y, size=4)
