"""Does one line regularise a model that Accelerate has prepared, before or after it was?"""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from invreg import CyclicRotation, L2InvarianceLoss, regularize
from tests.integration.plain_loop import RATE, distance, labelled_batches, parameters, trained
from tests.models import FlatteningMLP

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

WEIGHT = 0.5
invariance = L2InvarianceLoss(CyclicRotation(4))


@pytest.fixture(autouse=True)
def _own_state():
    """Accelerate keeps its settings, of which each test has others, for the whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return FlatteningMLP(1, 4, 4).to(dtype)


def loop(model, batches, accelerator, regularise):
    """A training loop as Accelerate's documentation writes it. Returns the parameters after it."""
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    when, settings = regularise
    with contextlib.ExitStack() as stack:
        if when == "before":
            stack.enter_context(regularize(model, invariance, WEIGHT, **settings))
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(batches, batch_size=None))
        if when == "after":
            stack.enter_context(regularize(model, invariance, WEIGHT, **settings))
        model.train()
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    return parameters(accelerator.unwrap_model(model))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("inputs", [None, "x"])
def test_is_the_training_that_of_the_explicit_line(when, inputs):
    batches = labelled_batches(8, 8, 5)
    found = loop(network(), batches, accelerate.Accelerator(cpu=True), (when, {"inputs": inputs}))
    assert distance(found, trained(network(), batches, invariance, WEIGHT)) < 1e-12
    assert distance(found, trained(network(), batches, None, WEIGHT)) > 1e-3


@pytest.mark.parametrize("when", ["before", "after"])
def test_does_the_penalty_follow_accumulated_gradients(when):
    batches = labelled_batches(8, 8, 8, 8, 5)  # the last window is shorter, and divided by two all the same
    found = []
    for loss_scale in (1 / 2, 1.0):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        found.append(loop(network(), batches, accelerator, (when, {"loss_scale": loss_scale})))
    assert distance(found[0], trained(network(), batches, invariance, WEIGHT, accumulate=2)) < 1e-12
    assert distance(found[1], trained(network(), batches, invariance, WEIGHT, accumulate=2)) > 1e-3


def explicit(model, batches, accelerator):
    """The same with the line written out, which in lower precision rounds as Accelerate does: call by call."""
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    for x, y in batches:
        outputs = model(x)
        accelerator.backward(F.cross_entropy(outputs, y) + WEIGHT * invariance(model, x, outputs))
        optimizer.step()
        optimizer.zero_grad()
    return parameters(accelerator.unwrap_model(model))


@pytest.mark.parametrize("when", ["before", "after"])
def test_does_it_hold_in_bfloat16(when):
    batches, model = labelled_batches(8, 8, 5, dtype=torch.float32), network(torch.float32)
    by_hand = copy.deepcopy(model)
    found = loop(model, batches, accelerate.Accelerator(cpu=True, mixed_precision="bf16"), (when, {"inputs": "x"}))
    expected = explicit(by_hand, batches, accelerate.Accelerator(cpu=True, mixed_precision="bf16"))
    assert distance(found, expected) < 1e-6
    assert distance(found, trained(network(torch.float32), batches, invariance, WEIGHT)) > 1e-6  # in float32
    assert distance(found, trained(network(torch.float32), batches, None, WEIGHT)) > 1e-3
