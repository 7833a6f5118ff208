"""Is the task's loss over the orbit the mean that it says, at no further forward, and the regulariser the same?"""

import copy
import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import (
    CyclicRotation,
    InvarianceConstraint,
    L2InvarianceLoss,
    OnKeys,
    OrbitLoss,
    Trivial,
    orbit_loss,
)
from tests import oracle
from tests.test_losses import GROUPS, Calls, drawn, every_group, every_loss, given_or_not, gradients, images, mlp
from tests.tolerances import assert_exact, assert_linear

ROTATION = CyclicRotation(4)

LABELS = torch.tensor([0, 2, 1, 1, 0])


def cross_entropy(logits: np.ndarray, label: int) -> float:
    return math.log(sum(math.exp(z - logits[label]) for z in logits))


def plain(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


class Noted(nn.Module):
    """A criterion that remembers what it was called with."""

    def __init__(self, criterion=plain) -> None:
        super().__init__()
        self.criterion = criterion
        self.calls: list[tuple] = []

    def forward(self, outputs, targets):
        self.calls.append((outputs, targets))
        return self.criterion(outputs, targets)


# The values


@every_group
@given_or_not
def test_the_task_is_the_oracles_mean_over_samples_and_all_elements(name, given):
    group, elements = GROUPS[name]
    model, x = mlp(), images()
    task, _ = orbit_loss(nn.CrossEntropyLoss(), L2InvarianceLoss(group))(model, x, LABELS, model(x) if given else None)
    network = oracle.network_of(model)
    values = [
        cross_entropy(network(g.act(sample)[None])[0], label)
        for sample, label in zip(x.numpy(), LABELS.tolist(), strict=True)
        for g in elements
    ]
    assert len(values) == 5 * group.order
    assert task.item() == pytest.approx(math.fsum(values) / len(values), rel=1e-9)
    assert task.item() != pytest.approx(F.cross_entropy(model(x), LABELS).item(), rel=1e-4)


@every_loss
@given_or_not
@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("detach_reference", [False, True])
def test_the_invariance_is_bitwise_that_of_the_loss_alone(loss, given, samples, detach_reference):
    model, x = mlp(), images()
    found = []
    for together in (True, False):
        rng = torch.Generator().manual_seed(3)
        invariance = loss(ROTATION, samples=samples, rng=rng, detach_reference=detach_reference)
        outputs = model(x) if given else None
        objective = orbit_loss(plain, invariance)
        value = objective(model, x, LABELS, outputs).invariance if together else invariance(model, x, outputs)
        found.append([value, *gradients(model, value)])
    for one, two in zip(*found, strict=True):
        assert_exact(one, two)


@given_or_not
@pytest.mark.parametrize("detach_reference", [False, True])
def test_the_gradients_are_those_of_the_terms_written_by_hand(given, detach_reference):
    model, x = mlp(), images()
    objective = orbit_loss(plain, L2InvarianceLoss(ROTATION, detach_reference=detach_reference))
    task, invariance = objective(model, x, LABELS, model(x) if given else None)
    views = [model(torch.rot90(x, k, (-2, -1))) for k in range(4)]
    expected_task = sum(F.cross_entropy(view, LABELS) for view in views) / 4
    reference = views[0].detach() if detach_reference else views[0]
    expected = sum((reference - view).square().sum(1).mean() / 2 for view in views[1:]) / 3
    for one, two in zip(
        gradients(model, task + 0.3 * invariance), gradients(model, expected_task + 0.3 * expected), strict=True
    ):
        assert_linear(one, two)


def test_the_task_over_the_whole_orbit_is_the_same_for_inputs_that_are_turned():
    model, x = mlp(), images()
    objective = orbit_loss(plain, L2InvarianceLoss(ROTATION))
    turned = ROTATION.act(torch.tensor([1, 3, 0, 2, 1]), x)
    assert_linear(objective(model, turned, LABELS).task, objective(model, x, LABELS).task)


@given_or_not
@pytest.mark.parametrize("samples", [1, 2])
def test_with_drawn_elements_the_task_is_the_mean_over_the_inputs_and_these(given, samples):
    model, x = Calls(mlp()), images()
    outputs = model.model(x) if given else None
    task, _ = orbit_loss(plain, L2InvarianceLoss(ROTATION, samples=samples))(model, x, LABELS, outputs)
    seen = model.inputs[0] if given else model.inputs[0][5:]
    assert (drawn(ROTATION, x, seen) > 0).all()
    logits = model.model(torch.cat([x, seen]))
    assert_linear(task, F.cross_entropy(logits, LABELS.repeat(samples + 1)))


# The calls


@every_group
@given_or_not
@pytest.mark.parametrize("samples", [None, 1])
def test_the_model_is_called_as_by_the_loss_alone(name, given, samples):
    group, _ = GROUPS[name]
    x = images()
    seen = []
    for together in (True, False):
        model = Calls(mlp())
        outputs = model.model(x) if given else None
        invariance = L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(1))
        orbit_loss(plain, invariance)(model, x, LABELS, outputs) if together else invariance(model, x, outputs)
        seen.append(model.inputs)
    assert len(seen[0]) == len(seen[1]) == 1
    assert_exact(seen[0][0], seen[1][0])


@given_or_not
def test_the_criterion_is_called_once_with_the_inputs_rows_first_and_the_targets_repeated(given):
    criterion, model, x = Noted(), mlp(), images()
    orbit_loss(criterion, L2InvarianceLoss(ROTATION))(model, x, LABELS, model(x) if given else None)
    ((outputs, targets),) = criterion.calls
    assert_linear(outputs, model(ROTATION.orbit(x).flatten(0, 1)))
    assert_exact(targets, LABELS.repeat(4))


def test_a_sum_grows_with_the_elements_and_no_reduction_keeps_all_rows():
    model, x = mlp(), images()
    mean = orbit_loss(plain, L2InvarianceLoss(ROTATION))(model, x, LABELS).task
    by_sum = orbit_loss(nn.CrossEntropyLoss(reduction="sum"), L2InvarianceLoss(ROTATION))(model, x, LABELS).task
    rows = orbit_loss(nn.CrossEntropyLoss(reduction="none"), L2InvarianceLoss(ROTATION))(model, x, LABELS).task
    assert_linear(by_sum, 20 * mean)
    assert rows.shape == (20,)


class Pair(NamedTuple):
    label: Tensor
    weight: Tensor


TARGETS = {
    "soft labels": torch.rand(5, 3, dtype=torch.float64),
    "mapping": {"label": LABELS, "weight": torch.rand(5)},
    "tuple": (LABELS, torch.rand(5)),
    "list": [LABELS, torch.rand(5)],
    "named tuple": Pair(LABELS, torch.rand(5)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_any_form_are_repeated(name):
    targets = TARGETS[name]
    criterion = Noted(lambda outputs, _: outputs.mean())
    orbit_loss(criterion, L2InvarianceLoss(ROTATION))(mlp(), images(), targets)
    ((_, repeated),) = criterion.calls
    if isinstance(targets, Tensor):
        assert_exact(repeated, targets.repeat(4, 1))
        return
    assert type(repeated) is type(targets)
    pairs = zip(targets.values(), repeated.values(), strict=True) if name == "mapping" else zip(targets, repeated)  # noqa: B905
    found = [torch.equal(after, before.repeat(4)) for before, after in pairs]
    assert found == [True, True]


def test_inputs_of_several_tensors_and_outputs_of_one_logit():
    x, y = images(), torch.rand(5, dtype=torch.float64)
    group = OnKeys({"image": ROTATION})
    network = mlp(1)
    objective = orbit_loss(F.binary_cross_entropy_with_logits, L2InvarianceLoss(group))
    task, _ = objective(lambda batch: network(batch["image"])[:, 0], {"image": x, "id": torch.arange(5)}, y)
    views = [network(torch.rot90(x, k, (-2, -1)))[:, 0] for k in range(4)]
    assert_linear(task, sum(F.binary_cross_entropy_with_logits(view, y) for view in views) / 4)


@given_or_not
def test_under_the_identity_alone_it_is_the_plain_criterion(given):
    model, x = Calls(mlp()), images()
    outputs = model.model(x) if given else None
    task, invariance = orbit_loss(plain, L2InvarianceLoss(Trivial()))(model, x, LABELS, outputs)
    assert len(model.inputs) == (not given)
    assert_exact(task, F.cross_entropy(model.model(x), LABELS))
    assert_exact(invariance, torch.zeros((), dtype=torch.float64))
    (task + 0.1 * invariance).backward()


# In a training loop


def test_descending_on_it_fits_the_whole_orbit():
    model, x = mlp(), images()
    objective = orbit_loss(nn.CrossEntropyLoss(), L2InvarianceLoss(ROTATION))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    first = objective(model, x, LABELS)
    for _ in range(200):
        optimizer.zero_grad()
        task, invariance = objective(model, x, LABELS)
        (task + 0.1 * invariance).backward()
        optimizer.step()
    last = objective(model, x, LABELS)
    assert last.task < 0.5 * first.task
    assert (model(ROTATION.orbit(x).flatten(0, 1)).argmax(1) == LABELS.repeat(4)).float().mean() > 0.9


def test_autocast_gives_values_close_to_full_precision():
    model, x = mlp(dtype=torch.float32), images(dtype=torch.float32)
    objective = orbit_loss(plain, L2InvarianceLoss(ROTATION))
    full = objective(model, x, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(model, x, LABELS, model(x))
    assert terms.task.dtype == terms.invariance.dtype == torch.float32
    torch.testing.assert_close(terms.task, full.task, rtol=0.1, atol=0.01)


@given_or_not
@pytest.mark.parametrize("samples", [None, 1])
def test_a_compiled_step_is_one_graph_and_is_not_compiled_again(given, samples):
    model = mlp()
    objective = orbit_loss(nn.CrossEntropyLoss(), L2InvarianceLoss(ROTATION, samples=samples))

    def step(x: Tensor, y: Tensor) -> Tensor:
        task, invariance = objective(model, x, y, model(x) if given else None)
        return task + 0.1 * invariance

    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for i in range(4):
        x = images()
        with torch.compiler.set_stance("default" if i < 1 else "fail_on_recompile"):
            torch.manual_seed(i)
            actual = gradients(model, compiled(x, LABELS))
        torch.manual_seed(i)
        for one, two in zip(actual, gradients(model, step(x, LABELS)), strict=True):
            assert_linear(one, two)


def test_a_criterion_with_parameters_is_a_part_of_it():
    criterion = Noted()
    criterion.scale = nn.Parameter(torch.ones(()))
    objective = OrbitLoss(criterion, L2InvarianceLoss(ROTATION))
    assert list(dict(objective.named_parameters())) == ["criterion.scale"]
    assert not objective.eval().loss.training


def test_copies_compute_the_same():
    model, x = mlp(), images()
    objective = orbit_loss(plain, L2InvarianceLoss(ROTATION, samples=1, rng=torch.Generator().manual_seed(2)))
    copies = [copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))]
    expected = objective(model, x, LABELS)
    assert expected.invariance > 0
    for one in copies:
        for actual, value in zip(one(model, x, LABELS), expected, strict=True):
            assert_exact(actual, value)


def test_shows_its_parts():
    loss = L2InvarianceLoss(ROTATION)
    assert repr(orbit_loss(nn.CrossEntropyLoss(), loss)) == (
        f"OrbitLoss(\n  (criterion): CrossEntropyLoss()\n  (loss): {loss!r}\n)"
    )
    assert repr(orbit_loss(plain, loss)) == f"OrbitLoss(\n  criterion=plain\n  (loss): {loss!r}\n)"


# What is refused

BAD_SETTINGS = {
    "no criterion": ((None, L2InvarianceLoss(ROTATION)), TypeError, "criterion must be a callable.*got None"),
    "value": ((torch.tensor(1.0), L2InvarianceLoss(ROTATION)), TypeError, "criterion must be a callable"),
    "group": ((plain, ROTATION), TypeError, "loss must be an InvarianceLoss.*got CyclicRotation"),
    "constraint": ((plain, InvarianceConstraint(L2InvarianceLoss(ROTATION), 0.1)), TypeError, "must be an Inv.*Loss"),
    "fraction": ((plain, L2InvarianceLoss(ROTATION, fraction=0.5)), ValueError, r"whole batch.*fraction=0\.5, every=1"),
    "every": ((plain, L2InvarianceLoss(ROTATION, every=2)), ValueError, r"each call.*fraction=1\.0, every=2"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_refuses_settings_that_make_no_sense(name):
    arguments, kind, message = BAD_SETTINGS[name]
    with pytest.raises(kind, match=message):
        orbit_loss(*arguments)


X = torch.zeros(5, 1, 4, 4)

BAD_CALLS = {
    "integer inputs": (X.long(), LABELS, None, TypeError, "floating point: got torch.int64"),
    "other rows": (X, LABELS[:4], None, ValueError, r"targets must have one row per input, 5: got shape \(4,\)\."),
    "scalar": (X, torch.tensor(1), None, ValueError, r"one row per input, 5: got shape \(\)"),
    "other rows at a key": (X, {"y": LABELS[:4]}, None, ValueError, r"shape \(4,\) at 'y'"),
    "number": (X, 3, None, TypeError, "targets must be tensors.*got int"),
    "no targets": (X, None, None, TypeError, "targets must be tensors.*got NoneType"),
    "numbers": (X, [0, 1, 2, 1, 0], None, TypeError, "targets must be tensors.*got int at 0"),
    "empty": (X, {}, None, TypeError, "targets must be tensors.*at least one: got dict"),
    "outputs of other rows": (X, LABELS, torch.zeros(4, 3), ValueError, r"\(4, 3\) for 5 samples"),
    "outputs of another width": (X, LABELS, torch.zeros(5, 2), ValueError, r"\(5, 3\).*\(5, 2\)"),
}


@pytest.mark.parametrize(
    ("group", "name"),
    [(ROTATION, name) for name in BAD_CALLS]
    + [(Trivial(), name) for name in BAD_CALLS if name != "outputs of another width"],  # these are compared with others
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_refuses_bad_calls(group, name):
    inputs, targets, outputs, kind, message = BAD_CALLS[name]
    with pytest.raises(kind, match=message):
        orbit_loss(plain, L2InvarianceLoss(group))(mlp(dtype=torch.float32), inputs, targets, outputs)
