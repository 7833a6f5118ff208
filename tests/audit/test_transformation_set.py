"""Are changes that are no group, brightness, blur, noise, measured one by one, and called what they are?"""

import dataclasses
import json
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import (
    GroupPooling,
    InvarianceReport,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    SaliencyMap,
    TransformationSet,
    Trivial,
    measure_invariance,
    tie_first_layer,
)
from tests import oracle
from tests.audit.test_measure import (
    EXACT_WEIGHTS,
    assert_estimate_agrees,
    assert_report_agrees,
    classes_of,
    images,
    in_batches,
    mlp,
    numbers,
)
from tests.movement import hooks_of
from tests.test_losses import expected_loss, gradients
from tests.test_preserve import mixed, state_of
from tests.tolerances import assert_exact, assert_linear


def brighter(x: Tensor) -> Tensor:
    return x + 0.3


def fainter(x: Tensor) -> Tensor:
    return 0.5 * x


def blurred(x: Tensor) -> Tensor:
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=x.dtype)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), kernel)


def coarse(x: Tensor) -> Tensor:
    """As compression leaves it: values in steps of a quarter."""
    return (4 * x).round() / 4


def shifted(x: Tensor) -> Tensor:
    return x.roll(1, -1)


def noisy(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn_like(x)


def blurred_by_loops(x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    size = x.shape[-1]
    for r in range(size):
        for c in range(size):
            y[..., r, c] = sum(x[..., (r + i) % size, (c + j) % size] for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    return y


CHANGES = TransformationSet([brighter, fainter, blurred, coarse])
BY_LOOPS = [lambda x: x + 0.3, lambda x: 0.5 * x, blurred_by_loops, lambda x: np.round(4 * x) / 4]


def as_elements(changes: list[Callable], realigns: list[Callable] | None = None) -> list[oracle.Element]:
    """The identity and the changes, as the oracle takes them."""
    back = [lambda m: m] * len(changes) if realigns is None else realigns
    return [
        oracle.Element(lambda x: x, lambda m: m),
        *(oracle.Element(change, realign) for change, realign in zip(changes, back, strict=True)),
    ]


# Errors


@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_every_field_agrees_with_the_oracle(labelled):
    model, x = mlp(), images()
    y = classes_of(x) if labelled else None
    network, elements = oracle.network_of(model), as_elements(BY_LOOPS)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        [list(enumerate(elements))[1:]] * 7,
        5,
    )
    report = measure_invariance(model, in_batches(x, y), CHANGES, saliency=None)
    assert_report_agrees(report, expected)
    assert (report.is_group, report.exhaustive, report.samples, report.elements) == (False, True, 7, 4)
    assert [one.element for one in report.per_element] == [1, 2, 3, 4]
    assert min(one.logit_error.mean for one in report.per_element) > 1e-6
    assert len({round(one.logit_error.mean, 9) for one in report.per_element}) == 4


def test_the_oracle_tells_transforms_in_another_order():
    model, x = mlp(), images()
    network, elements = oracle.network_of(model), as_elements(BY_LOOPS[::-1])
    expected = oracle.audit(lambda v: network(v[None])[0], x.numpy(), None, [list(enumerate(elements))[1:]] * 7, 5)
    with pytest.raises(AssertionError, match="of element 1"):
        assert_report_agrees(measure_invariance(model, in_batches(x), CHANGES, saliency=None), expected)


@pytest.mark.parametrize("samples", [1, 2, 4])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_drawn_transforms_agree_with_the_oracle(samples, labelled):
    model, x = mlp(), images()
    y = classes_of(x) if labelled else None
    replay = torch.Generator().manual_seed(5)
    elements = as_elements(BY_LOOPS)
    drawn = [
        [(g, elements[g]) for g in column]
        for batch in in_batches(x)
        for column in CHANGES.sample_non_identity(len(batch), samples, replay).T.tolist()
    ]
    network = oracle.network_of(model)
    expected = oracle.audit(lambda v: network(v[None])[0], x.numpy(), None if y is None else y.numpy(), drawn, 5)
    report = measure_invariance(
        model, in_batches(x, y), CHANGES, saliency=None, samples=samples, rng=torch.Generator().manual_seed(5)
    )
    assert_report_agrees(report, expected)
    assert report.exhaustive == (samples == 4)
    assert sum(one.logit_error.count for one in report.per_element) == 7 * samples


@pytest.mark.parametrize("size", [1, 5, 11])
@pytest.mark.parametrize("samples", [None, 2])
def test_batch_size_does_not_matter(size, samples):
    model, x = mlp(), images(12)
    expected = measure_invariance(model, [x], CHANGES, saliency=None, samples=samples)
    actual = measure_invariance(model, in_batches(x, size=size), CHANGES, saliency=None, samples=samples)
    assert numbers(actual) == pytest.approx(numbers(expected), rel=1e-12, abs=1e-12)


def test_a_model_that_does_not_see_the_changes_is_invariant_to_them():
    changes = TransformationSet([brighter, lambda x: x - 2])
    x = images()
    flat = nn.Linear(16, 3).double()
    report = measure_invariance(
        lambda v: flat(v.flatten(1) - v.flatten(1).mean(1, keepdim=True)), [x], changes, saliency=None
    )
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert report.action_error is report.action_logit_error is None


# Maps


@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
@pytest.mark.parametrize("samples", [None, 2])
def test_maps_are_realigned_as_the_set_says(labelled, samples):
    changes = TransformationSet(
        [brighter, shifted, blurred, lambda x: x.rot90(1, (-2, -1))],
        realign=[torch.Tensor.clone, lambda m: m.roll(-1, -1), torch.Tensor.clone, lambda m: m.rot90(-1, (-2, -1))],
    )
    elements = as_elements(
        [
            BY_LOOPS[0],
            lambda x: np.roll(x, 1, -1),
            blurred_by_loops,
            lambda x: np.rot90(x, 1, (-2, -1)).copy(),
        ],
        [lambda m: m, lambda m: np.roll(m, -1, -1), lambda m: m, lambda m: np.rot90(m, -1, (-2, -1)).copy()],
    )
    model, x = mlp(), images()
    y = classes_of(x) if labelled else None
    replay = torch.Generator().manual_seed(0)
    indices = [
        list(range(1, 5)) if samples is None else column
        for batch in in_batches(x)
        for column in changes.sample_non_identity(len(batch), samples or 4, replay).T.tolist()
    ]
    network = oracle.network_of(model)
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        [[(i, elements[i]) for i in column] for column in indices],
        5,
        network=network,
        steps=2,
        saliency_samples=5,
    )
    report = measure_invariance(
        model, in_batches(x, y), changes, saliency=EXACT_WEIGHTS, saliency_samples=5, samples=samples
    )
    assert_report_agrees(report, expected)
    assert 0.01 < report.saliency_similarity.mean < 0.99


def test_a_shift_that_is_realigned_keeps_the_maps_of_a_model_that_does_not_see_it():
    x = images()

    def model(v: Tensor) -> Tensor:
        return torch.stack([v.square().sum((1, 2, 3)), v.abs().sum((1, 2, 3))], 1)

    realigned = TransformationSet([shifted], realign=[lambda m: m.roll(-1, -1)])
    report = measure_invariance(model, [x], realigned)
    assert report.saliency_similarity.mean == pytest.approx(1, abs=1e-9)
    assert "SaliencyMap" in report.saliency
    left = TransformationSet([shifted], realign=[torch.Tensor.clone])
    assert measure_invariance(model, [x], left).saliency_similarity.mean < 0.99


def test_without_a_word_on_maps_there_are_none_by_default():
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v.flatten(1)[:, :3]

    x = images()
    y = classes_of(x)
    report = measure_invariance(model, [(x, y)], CHANGES)
    assert report.saliency_similarity is report.saliency is report.completeness_gap is None
    assert all(one.saliency_similarity is None for one in report.per_element)
    assert calls == [7] * 6  # at the inputs as they are twice
    assert "; no saliency maps" in str(report)
    assert report == measure_invariance(model, [(x, y)], CHANGES, saliency=None)


@pytest.mark.parametrize("saliency", [SaliencyMap(), lambda model, x, target: x.abs()], ids=["maps", "one's own"])
def test_without_a_word_on_maps_those_asked_for_are_refused(saliency):
    model, x = mixed().double(), images()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"does not say how it moves maps: give realign=, or .*saliency=None"):
        measure_invariance(model, [x], CHANGES, saliency=saliency)
    assert state_of(model) == before


def test_a_realign_that_changes_the_shape_says_so():
    wrong = TransformationSet([shifted], realign=[lambda m: m[..., 1:]])
    with pytest.raises(ValueError, match=r"must keep shape.*\(7, 1, 4, 4\).*it returned \(7, 1, 4, 3\)"):
        measure_invariance(mlp(), [images()], wrong)


# In words


def test_the_report_says_that_it_is_no_group():
    x = images()
    report = measure_invariance(mlp(), [(x, classes_of(x))], CHANGES)
    first, second = str(report).splitlines()[:2]
    assert first == (
        "Invariance of Sequential to TransformationSet([brighter, fainter, blurred, coarse]), which is no group"
    )
    assert second.startswith("7 samples, each under 4 transforms (all)")
    assert "averaged over the set, identity included" in str(report)
    assert "averaged over the group" not in str(report)
    assert "own" not in str(report)
    plain = str(measure_invariance(mlp(), [(x, classes_of(x))], Trivial(), saliency=None))
    assert "no group" not in plain
    assert "averaged over the group" in plain


def test_comes_back_from_a_dictionary_and_from_json():
    report = measure_invariance(mlp(), in_batches(images()), CHANGES)
    assert report.to_dict()["is_group"] is False
    again = InvarianceReport.from_dict(json.loads(report.to_json()))
    assert again == report
    assert str(again) == str(report)
    assert dataclasses.replace(report, is_group=True) != report


def test_a_set_of_named_functions_can_be_pickled_and_compares_by_value():
    again = pickle.loads(pickle.dumps(CHANGES))
    assert again == CHANGES
    assert hash(again) == hash(CHANGES)
    assert again != TransformationSet([brighter, fainter, coarse, blurred])
    x = images()
    assert measure_invariance(mlp_of(x), [x], again) == measure_invariance(mlp_of(x), [x], CHANGES)


def mlp_of(x: Tensor) -> nn.Module:
    """The same network each time."""
    torch.manual_seed(1)
    return mlp()


# Random transforms, and what must be left alone


def test_random_transforms_leave_the_random_numbers_as_they_were():
    changes, x, model = TransformationSet([noisy, brighter]), images(), mixed().double()
    before = state_of(model)
    first = measure_invariance(model, in_batches(x), changes)
    assert state_of(model) == before
    assert measure_invariance(model, in_batches(x), changes) == first
    torch.manual_seed(17)
    other = measure_invariance(model, in_batches(x), changes)
    assert other.per_element[0] != first.per_element[0]
    assert other.per_element[1] == first.per_element[1]


def test_random_transforms_that_fail_leave_the_random_numbers_as_they_were():
    def fails(x: Tensor) -> Tensor:
        torch.rand(3)
        raise LookupError("out of noise")

    model, x = mixed().double(), images()
    before = state_of(model)
    with pytest.raises(RuntimeError, match=r"transform 2 failed on inputs of shape \(7, 1, 4, 4\): out of noise"):
        measure_invariance(model, [x], TransformationSet([noisy, fails]))
    assert state_of(model) == before


@pytest.mark.parametrize("samples", [None, 1])
def test_noise_has_the_error_that_its_variance_says(samples):
    """Of a linear model, half the squared norm of its weights times the variance."""
    flat = nn.Linear(16, 3).double()
    x = torch.zeros(4000, 16, dtype=torch.float64)
    report = measure_invariance(flat, [x], TransformationSet([noisy]), samples=samples)
    expected = 0.5 * 0.25 * float(flat.weight.detach().square().sum())
    assert abs(report.logit_error.mean - expected) < 5 * report.logit_error.standard_error
    assert report.logit_error.standard_error < 0.05 * expected


@pytest.mark.parametrize("samples", [None, 1])
def test_a_model_that_writes_into_its_input_spoils_neither_data_nor_answer(samples):
    """Also where a transform hands its input on as it is, or a view of it."""
    changes = TransformationSet([lambda x: x, lambda x: x.mT, brighter])

    def tame(v: Tensor) -> Tensor:
        return v.flatten(1)[:, :3].clone()

    def greedy(v: Tensor) -> Tensor:
        logits = tame(v)
        v.add_(1)
        return logits

    x = images(5)
    given = x.clone()
    report = measure_invariance(greedy, [x], changes, samples=samples)
    assert_exact(x, given)
    expected = measure_invariance(tame, [given], changes, samples=samples)
    assert dataclasses.replace(report, model=expected.model) == expected
    assert_exact(
        torch.stack([one.transformed for one in report.worst_samples]),
        torch.stack([one.transformed for one in expected.worst_samples]),
    )


BAD = {
    "writes": (lambda x: x.add_(1), ValueError, r"transform 1 writes into its input"),
    "shape": (lambda x: x[..., 1:], ValueError, r"transform 1 must keep shape.*returned \(7, 1, 4, 3\)"),
    "rows": (lambda x: x[1:], ValueError, r"transform 1 must keep shape.*returned \(6, 1, 4, 4\)"),
    "dtype": (lambda x: x.float(), ValueError, r"must keep .*dtype.*float64.*returned .*float32"),
    "no tensor": (lambda x: (x,), ValueError, r"returned tuple"),
    "nothing": (lambda x: None, ValueError, r"returned NoneType"),
    "not finite": (lambda x: x / 0, ValueError, r"must be finite.*sample 0 of the data.*element 1 of Transformation"),
}


@pytest.mark.parametrize("name", BAD)
def test_transforms_that_do_more_are_refused_and_leave_everything_as_it_was(name):
    transform, kind, message = BAD[name]
    model, x = mixed().double(), images()
    before = state_of(model)
    with pytest.raises(kind, match=message):
        measure_invariance(model, [x], TransformationSet([transform]))
    assert state_of(model) == before


@pytest.mark.parametrize(("samples", "came"), [(0, "0"), (5, "5"), (1.0, r"1\.0"), (True, "True")])
def test_numbers_of_transforms_that_cannot_be_drawn_are_refused(samples, came):
    with pytest.raises(ValueError, match=rf"1 to 4 for TransformationSet.*got {came}"):
        measure_invariance(mlp(), [images()], CHANGES, samples=samples)


# Layers cannot be tied to a set, losses take it


def test_a_layer_cannot_be_tied_to_a_set():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    before = state_of(model)
    with pytest.raises(TypeError, match=r"FiniteGroup: got TransformationSet"):
        tie_first_layer(model, CHANGES)
    with pytest.raises(TypeError, match=r"FiniteGroup: got TransformationSet"):
        GroupPooling(model, CHANGES)
    assert hooks_of(model) == 0
    assert state_of(model) == before


LOSSES = {
    L2InvarianceLoss: oracle.logit_error,
    KLInvarianceLoss: oracle.distribution_error,
    NormalizedL2InvarianceLoss: oracle.normalized_logit_error,
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("given", [False, True], ids=["outputs computed", "outputs given"])
def test_a_loss_is_the_oracles_mean_over_samples_and_transforms(loss, given):
    model, x = mlp(), images()
    expected = expected_loss(model, x, as_elements(BY_LOOPS), LOSSES[loss])
    actual = loss(CHANGES)(model, x, model(x) if given else None)
    assert actual.item() == pytest.approx(expected, rel=1e-9)
    report = measure_invariance(model, in_batches(x), CHANGES)
    name = {L2InvarianceLoss: "logit_error", KLInvarianceLoss: "distribution_error"}.get(loss, "normalized_logit_error")
    assert getattr(report, name).mean == pytest.approx(expected, rel=1e-9)


def test_gradients_of_a_loss_are_those_by_hand():
    model, x = mlp(), images().requires_grad_()
    value = L2InvarianceLoss(CHANGES)(model, x)
    by_hand = sum(
        0.5 * (model(x) - model(change(x))).square().sum() for change in (brighter, fainter, blurred, coarse)
    ) / (4 * 7)
    assert_linear(value, by_hand)
    for one, two in zip(gradients(model, value), gradients(model, by_hand), strict=True):
        assert_linear(one, two)
        assert one.abs().max() > 0
    (at_inputs,) = torch.autograd.grad(L2InvarianceLoss(CHANGES)(model, x), [x])
    (expected,) = torch.autograd.grad(
        sum(0.5 * (model(x) - model(c(x))).square().sum() for c in (brighter, fainter, blurred, coarse)) / 28, [x]
    )
    assert_linear(at_inputs, expected)
    assert at_inputs.abs().max() > 0


def test_drawn_transforms_of_a_loss_are_each_samples_own():
    model, x = mlp(), images(30)
    value = L2InvarianceLoss(CHANGES, samples=2, rng=torch.Generator().manual_seed(4))(model, x)
    drawn = CHANGES.sample_non_identity(30, 2, torch.Generator().manual_seed(4))
    network, errors = oracle.network_of(model), []
    for row in drawn.tolist():
        for index, sample in zip(row, x.numpy(), strict=True):
            moved = network(BY_LOOPS[index - 1](sample)[None])[0]
            errors.append(oracle.logit_error(network(sample[None])[0], moved))
    assert value.item() == pytest.approx(math.fsum(errors) / 60, rel=1e-9)


def test_descending_on_a_loss_makes_the_model_blind_to_the_changes():
    model, x = mlp(), images()
    invariance = L2InvarianceLoss(CHANGES)
    first = invariance(model, x).item()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        invariance(model, x).backward()
        optimiser.step()
    assert invariance(model, x).item() < 0.3 * first


@pytest.mark.parametrize("samples", [None, 2])
def test_a_loss_compiles_into_one_graph_with_the_model(samples):
    model, x = mlp(), images()
    invariance = L2InvarianceLoss(CHANGES, samples=samples)
    torch.compiler.reset()
    torch.manual_seed(1)
    actual = torch.compile(lambda v: invariance(model, v, model(v)), backend="aot_eager", fullgraph=True)(x)
    torch.manual_seed(1)
    expected = invariance(model, x, model(x))
    assert_linear(actual, expected)
    for one, two in zip(gradients(model, actual), gradients(model, expected), strict=True):
        assert_linear(one, two)


def test_an_estimate_is_told_from_one_of_another_transform():
    """The comparison that the tests above rest on can fail."""
    report = measure_invariance(mlp(), [images()], CHANGES)
    first, second = report.per_element[:2]
    expected = oracle.Mean(second.logit_error.mean, second.logit_error.standard_error, 7)
    with pytest.raises(AssertionError):
        assert_estimate_agrees(first.logit_error, expected, 1e-9, "logit_error")
