"""Is the penalty's gradient right where activations are computed again instead of kept?"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from invreg import InvarianceConstraint, L2InvarianceLoss, regularize
from tests.integration.by_hand import (
    TURNS,
    WEIGHT,
    assert_same,
    batch,
    differ,
    expected_gradients,
    gradients,
    network,
    task_gradients,
)

invariance = L2InvarianceLoss(TURNS)


@pytest.fixture(params=[False, True], ids=["not reentrant", "reentrant"])
def reentrant(request) -> bool:
    return request.param


class Checkpointed(nn.Module):
    """A network whose inner part is computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers = network()
        self.reentrant = reentrant
        self.computed = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[3](checkpoint(self._inner, self.layers[1](x.flatten(1)), use_reentrant=self.reentrant))

    def _inner(self, hidden: Tensor) -> Tensor:
        self.computed += 1
        return self.layers[2](hidden)


def around(model: nn.Module, step: int, reentrant: bool, **settings) -> list[Tensor]:
    """The gradients of a loop that checkpoints the whole model."""
    x, y = batch(step)
    x.requires_grad_(reentrant)  # which is what makes that kind of checkpoint work
    return gradients(model, F.cross_entropy(checkpoint(model, x, use_reentrant=reentrant, **settings), y))


def explicit(model: nn.Module, loss: nn.Module, step: int, weight: float = 1.0) -> list[Tensor]:
    """The gradients of the explicit line."""
    x, y = batch(step)
    logits = model(x)
    return gradients(model, F.cross_entropy(logits, y) + weight * loss(model, x, logits))


def test_inside_the_model(reentrant):
    model = Checkpointed(reentrant)
    regularize(model, invariance, WEIGHT)
    for step in range(2):
        assert_same(task_gradients(model, step), expected_gradients(network(), step))
    assert model.computed == 8  # each of two forwards, the model's and the penalty's, twice


def test_around_the_regularised_model(reentrant):
    """The penalty is measured again with the rest, and counts once."""
    model = network()
    handle = regularize(model, invariance, WEIGHT)
    for step in range(2):
        assert_same(around(model, step, reentrant), expected_gradients(network(), step))
    assert differ(task_gradients(network(), 1), expected_gradients(network(), 1))
    x, _ = batch(1)
    assert_same([handle.value], [WEIGHT * invariance(network().eval(), x).detach()])


@pytest.mark.parametrize("settings", [{"samples": 1}, {"samples": 1, "fraction": 0.5}], ids=["samples", "fraction"])
def test_around_a_model_with_random_elements(reentrant, settings):
    """They are drawn again, and are the same, as torch puts its random numbers back."""
    loss = L2InvarianceLoss(TURNS, **settings)
    model = network()
    regularize(model, loss, WEIGHT)
    for step in range(3):
        torch.manual_seed(step)
        actual = around(model, step, reentrant)
        torch.manual_seed(step)
        assert_same(actual, explicit(network(), loss, step, WEIGHT))


def test_around_a_model_with_a_schedule(reentrant):
    """A forward that is made again is none of the schedule's steps."""
    model = network()
    regularize(model, invariance, lambda step: 0.1 * (step + 1))
    for step in range(3):
        assert_same(around(model, step, reentrant), expected_gradients(network(), step, 0.1 * (step + 1)))


def test_a_constraint_around_a_reentrant_checkpoint_moves_once_a_step():
    """The first forward records no gradients, so that only the second one is a step."""
    constraint, other = (InvarianceConstraint(invariance, 0.05) for _ in range(2))
    model = network()
    regularize(model, invariance, constraint)
    for step in range(3):
        assert_same(around(model, step, True), explicit(network(), other, step))
    assert constraint.multiplier == other.multiplier


def test_what_has_a_state_belongs_outside_a_checkpoint_that_is_not_reentrant():
    """Each of its two forwards is a step to a constraint, and a turn to a loss that is not measured at each."""
    constraint, other = (InvarianceConstraint(invariance, 0.05) for _ in range(2))
    model = network()
    regularize(model, invariance, constraint)
    around(model, 0, False)
    for _ in range(2):
        explicit(network(), other, 0)
    assert constraint.multiplier == other.multiplier
    rare = network()
    regularize(rare, L2InvarianceLoss(TURNS, every=2), WEIGHT)
    with pytest.raises(CheckpointError, match="A different number of tensors was saved"):
        around(rare, 0, False)


def test_every_other_step_around_a_reentrant_checkpoint():
    """The forward without gradients is no turn."""
    loss = L2InvarianceLoss(TURNS, every=2)
    model = network()
    regularize(model, loss, WEIGHT)
    for step in range(4):
        assert_same(around(model, step, True), expected_gradients(network(), step, WEIGHT * (2, 0)[step % 2]))
