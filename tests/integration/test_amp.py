"""Does a regularised model train under mixed precision and a gradient scaler as with the explicit line?"""

import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invreg import L2InvarianceLoss, regularize
from tests.integration.by_hand import RATE, TURNS, WEIGHT, assert_same, batch, differ, network

STEPS = 9
invariance = L2InvarianceLoss(TURNS)


def plain_scaler(enabled: bool = True) -> torch.amp.GradScaler:
    """So large a scale at first that half precision overflows, and one that grows again soon."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2, enabled=enabled)


def trained(dtype, *, explicit, scaler=None, accumulate=1, clip=None, **settings) -> tuple[list[Tensor], list[float]]:
    """The parameters after some steps, and the scales of these steps."""
    model = network(torch.float32)
    scaler = plain_scaler(enabled=False) if scaler is None else scaler
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    if not explicit:
        regularize(model, invariance, WEIGHT, **settings)
    scales = []
    for step in range(STEPS):
        x, y = batch(step, dtype=torch.float32)
        with torch.autocast("cpu", dtype):
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if explicit:
                loss = loss + WEIGHT * invariance(model, x, logits)
        scaler.scale(loss / accumulate).backward()
        if (step + 1) % accumulate:
            continue
        if clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return [parameter.detach() for parameter in model.parameters()], scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_under_autocast_the_parameters_are_those_of_the_explicit_line(dtype):
    expected, _ = trained(dtype, explicit=True)
    actual, _ = trained(dtype, explicit=False)
    assert_same(actual, expected, 1e-6)


@pytest.mark.parametrize("clip", [None, 0.1], ids=["no clipping", "clipping"])
def test_with_a_scaler_whose_scale_overflows_and_grows(clip):
    """The scale falls at each step that overflows, which both loops leave out, and grows after that."""
    expected, scales = trained(torch.float16, explicit=True, scaler=plain_scaler(), clip=clip)
    assert min(scales) < scales[0]
    assert any(later > earlier for earlier, later in pairwise(scales))
    scaler = plain_scaler()
    actual, same = trained(torch.float16, explicit=False, scaler=scaler, clip=clip, loss_scale=scaler.get_scale)
    assert same == scales
    assert_same(actual, expected, 1e-6)


def test_a_penalty_that_overflows_by_itself_is_left_out_too():
    """Its gradient is infinite where the task's is not: the scale falls, and nothing else moves."""
    model, scaler = network(torch.float32), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    regularize(model, invariance, 1e4, loss_scale=scaler.get_scale)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x, y = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**13
    assert_same((parameter.detach() for parameter in model.parameters()), before, 0)


def test_gradients_accumulated_over_scaled_batches():
    """Each batch's loss is divided by three, and then scaled."""
    expected, _ = trained(torch.float16, explicit=True, scaler=plain_scaler(), accumulate=3)
    scaler = plain_scaler()
    actual, scales = trained(
        torch.float16, explicit=False, scaler=scaler, accumulate=3, loss_scale=lambda: scaler.get_scale() / 3
    )
    assert len(scales) == 3
    assert_same(actual, expected, 1e-6)


def warned(scaler, **settings) -> list[str]:
    """What a loop of three steps warns of, and when."""
    model = network(torch.float32)
    regularize(model, invariance, WEIGHT, **settings)
    said = []
    for step in range(3):
        x, y = batch(step, dtype=torch.float32)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            loss = F.cross_entropy(model(x), y)
            said += [f"forward {step}: {one.message}" for one in found]
            found.clear()
            scaler.scale(loss).backward()
            said += [f"backward {step}: {one.message}" for one in found]
    return said


def test_a_scaler_without_a_loss_scale_is_warned_of_once():
    """And it is with a reason: the penalty would be some thousand times too small."""
    (said,) = warned(plain_scaler())
    assert said.startswith("backward 0: A GradScaler is in use")
    assert "pass loss_scale=scaler.get_scale" in said
    expected, _ = trained(torch.bfloat16, explicit=True, scaler=plain_scaler())
    with pytest.warns(UserWarning, match="GradScaler"):
        actual, _ = trained(torch.bfloat16, explicit=False, scaler=plain_scaler())
    assert differ(actual, expected)


def test_a_scaler_that_is_disabled_or_has_its_loss_scale_is_not_warned_of():
    scaler = plain_scaler()
    assert warned(scaler, loss_scale=scaler.get_scale) == []
    assert warned(scaler, loss_scale=2.0) == []
    del scaler
    assert warned(plain_scaler(enabled=False)) == []


def test_a_disabled_scaler_may_give_the_loss_scale():
    """The same loop with and without mixed precision, as it is often written."""
    scaler = plain_scaler(enabled=False)
    expected, _ = trained(torch.bfloat16, explicit=True, scaler=scaler)
    actual, scales = trained(torch.bfloat16, explicit=False, scaler=scaler, loss_scale=scaler.get_scale)
    assert set(scales) == {1.0}
    assert_same(actual, expected, 1e-6)
