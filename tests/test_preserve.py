"""Is a model found as it was left?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg.preserve import preserved
from tests.tolerances import assert_exact


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that must not change: modes, parameters, buffers, gradients, hooks, and torch's random numbers to come."""
    state: dict[str, Any] = {"random numbers": torch.random.get_rng_state().tolist()}
    for name, module in model.named_modules():
        state[f"mode of {name}"] = module.training
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            state[f"{hooks} of {name}"] = list(getattr(module, hooks).values())
    for name, parameter in model.named_parameters():
        state[name] = parameter.tolist()
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.tolist()
    for name, buffer in model.named_buffers():
        state[name] = buffer.tolist()
    return state


def mixed() -> nn.Sequential:
    """A model with layers that depend on the mode, in mixed modes, with gradients, a frozen layer and a hook."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None)),
        nn.Linear(4, 3),
    )
    model(torch.randn(8, 1, 4, 4)).square().sum().backward()
    model[1].requires_grad_(False)
    model[5].zero_grad()
    model.eval()
    model[2].train()
    model[4].train()
    model[4][1].eval()
    model[5].register_forward_hook(lambda *_: None)
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_the_state_compared_sees_each_change():
    changes = {
        "mode": lambda model: model[3].train(),
        "parameter": lambda model: model[5].weight.data.add_(1),
        "buffer": lambda model: model[2].running_mean.add_(1),
        "counter": lambda model: model[2].num_batches_tracked.add_(1),
        "gradient": lambda model: model[4][0].weight.grad.add_(1),
        "cleared gradient": lambda model: model[4].zero_grad(),
        "requires_grad": lambda model: model[1].requires_grad_(True),
        "hook": lambda model: model[1].register_forward_pre_hook(lambda *_: None),
        "random numbers": lambda model: torch.rand(1),
    }
    for name, change in changes.items():
        model = mixed()
        before = state_of(model)
        assert state_of(model) == before
        change(model)
        assert state_of(model) != before, name


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_model_is_in_the_mode_asked_for(training):
    model = mixed()
    with preserved(model, training=training):
        assert modes(model) == [training] * len(list(model.modules()))


@pytest.mark.parametrize("training", [False, True])
def test_everything_is_as_before_afterwards(training):
    model = mixed()
    assert len(set(modes(model))) == 2
    before = state_of(model)
    with preserved(model, training=training):
        model(torch.randn(8, 1, 4, 4))
        torch.rand(3)
    assert state_of(model) == before


@pytest.mark.parametrize("training", [False, True])
def test_everything_is_as_before_if_the_body_raises(training):
    model = mixed()
    before = state_of(model)

    def fail() -> None:
        model(torch.randn(8, 1, 4, 4))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), preserved(model, training=training):
        fail()
    assert state_of(model) == before


def test_training_mode_moves_buffers_meanwhile():
    model = mixed()
    before = model[2].running_mean.clone()
    with preserved(model, training=True):
        model(torch.randn(8, 1, 4, 4))
        assert not torch.equal(model[2].running_mean, before)
        assert model[2].num_batches_tracked == 2
    assert model[2].num_batches_tracked == 1


def test_buffers_stay_the_same_objects():
    model = mixed()
    before = [id(buffer) for buffer in model.buffers()]
    with preserved(model, training=True):
        model(torch.randn(8, 1, 4, 4))
    assert [id(buffer) for buffer in model.buffers()] == before


class Counter(nn.Module):
    """Counts its calls in a buffer, in place or by a new tensor, in every mode."""

    def __init__(self, *, in_place: bool, persistent: bool = True) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("persistent", [False, True], ids=["not persistent", "persistent"])
@pytest.mark.parametrize("in_place", [False, True], ids=["replaced", "in place"])
def test_buffers_of_own_modules_are_put_back(training, persistent, in_place):
    model = nn.Sequential(Counter(in_place=in_place, persistent=persistent))
    model(torch.zeros(1))
    with preserved(model, training=training):
        model(torch.zeros(1))
        assert model[0].calls == 2
    assert model[0].calls == 1
    assert "calls" in dict(model[0].named_buffers())


def test_a_callable_that_is_no_module_only_has_the_random_numbers_put_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with preserved(lambda x: x, training=True):
        torch.rand(2)
    assert_exact(torch.rand(3), expected)


def test_gradient_mode_is_left_to_the_caller():
    with torch.no_grad(), preserved(nn.Linear(1, 1), training=False):
        assert not torch.is_grad_enabled()
    with preserved(nn.Linear(1, 1), training=False):
        assert torch.is_grad_enabled()


def test_a_module_used_twice_is_put_back_once():
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(shared, nn.Identity(), shared)
    shared.eval()
    before = state_of(model)
    with preserved(model, training=True):
        model(torch.randn(4, 2))
        assert shared.num_batches_tracked == 2
    assert state_of(model) == before


def test_a_backward_that_is_still_to_be_done_is_not_spoiled():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    loss = model(torch.randn(4, 3)).sum()
    with preserved(model, training=False):
        model(torch.randn(4, 3))
    loss.backward()


def test_buffers_that_a_forward_adds_are_taken_away():
    model = nn.Linear(2, 2)
    with preserved(model, training=False):
        model.register_buffer("cache", torch.zeros(1))
    assert "cache" not in model.state_dict()


def test_buffers_that_share_their_memory_are_left_alone():
    model = nn.Linear(2, 2)
    model.register_buffer("wide", torch.zeros(1).expand(3))
    with preserved(model, training=False):
        model(torch.randn(1, 2))
    assert model.wide.tolist() == [0, 0, 0]
