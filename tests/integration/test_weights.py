"""Is everything else that touches the weights what it would be with the explicit line?"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from invreg import L2InvarianceLoss, regularize
from tests.integration.by_hand import RATE, TURNS, WEIGHT, assert_same, batch, differ, network, objective

invariance = L2InvarianceLoss(TURNS)


def loss_of(model: nn.Module, step: int, *, regularised: bool) -> Tensor:
    """What the two loops differ in: the explicit one adds the penalty."""
    x, y = batch(step)
    return F.cross_entropy(model(x), y) if regularised else objective(model, x, y)


def both(train, make=network) -> tuple[nn.Module, nn.Module]:
    """The models after ``train(model, loss)`` of a regularised loop and of the explicit one."""
    regularised, explicit = make(), make()
    regularize(regularised, invariance, WEIGHT)
    plain = make()
    train(regularised, lambda step: loss_of(regularised, step, regularised=True))
    train(explicit, lambda step: loss_of(explicit, step, regularised=False))
    train(plain, lambda step: loss_of(plain, step, regularised=True))
    assert differ(plain.parameters(), explicit.parameters())
    return regularised, explicit


def test_weight_decay_by_groups_of_parameters():
    """AdamW decays the weights and not the biases, and a frozen bias stays where it is."""

    def train(model, loss):
        model[3].bias.requires_grad_(False)
        groups = [
            {"params": [model[1].weight, model[3].weight], "weight_decay": 0.5},
            {"params": [model[1].bias, model[3].bias], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.05)
        for step in range(5):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()

    regularised, explicit = both(train)
    assert_same(regularised.parameters(), explicit.parameters())
    assert_same([regularised[3].bias], [network()[3].bias], 0)


def test_clipped_gradients():
    """The norm that is clipped is that of both gradients together."""
    norms = {}

    def train(model, loss):
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        norms[model] = []
        for step in range(3):
            optimizer.zero_grad()
            loss(step).backward()
            norms[model].append(clip_grad_norm_(model.parameters(), 0.05))
            optimizer.step()

    regularised, explicit = both(train)
    assert_same(regularised.parameters(), explicit.parameters())
    assert_same(norms[regularised], norms[explicit])


def test_two_steps_at_a_time():
    """Sharpness-aware minimisation: the gradients are those at the neighbouring weights, penalty and all."""

    def train(model, loss):
        parameters = list(model.parameters())
        for step in range(3):
            moves = [0.5 * gradient for gradient in torch.autograd.grad(loss(step), parameters)]
            with torch.no_grad():
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter.add_(move)
            gradients = torch.autograd.grad(loss(step), parameters)
            with torch.no_grad():
                for parameter, move, gradient in zip(parameters, moves, gradients, strict=True):
                    parameter.sub_(move + RATE * gradient)

    regularised, explicit = both(train)
    assert_same(regularised.parameters(), explicit.parameters())


def test_a_closure_that_is_called_again_and_again():
    """LBFGS takes several forwards a step; its line search would look at values, which have no penalty."""

    def train(model, loss):
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        for step in range(2):

            def closure(step=step):
                optimizer.zero_grad()
                value = loss(step)
                value.backward()
                return value

            optimizer.step(closure)

    regularised, explicit = both(train)
    assert_same(regularised.parameters(), explicit.parameters(), 1e-9)


def weight_normed() -> nn.Sequential:
    model = network()
    parametrizations.weight_norm(model[1])
    return model


def pruned() -> nn.Sequential:
    model = network()
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    return model


@pytest.mark.parametrize("make", [weight_normed, pruned])
def test_weights_that_are_made_of_others(make):
    def train(model, loss):
        optimizer = torch.optim.SGD(model.parameters(), RATE, weight_decay=0.1)
        for step in range(3):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()

    regularised, explicit = both(train, make)
    assert_same(regularised.parameters(), explicit.parameters())
    if make is pruned:
        assert int((regularised[1].weight == 0).sum()) == regularised[1].weight.numel() // 2


# Averages


def normalised() -> nn.Sequential:
    """A network with running statistics."""
    model = network()
    return nn.Sequential(*model[:2], nn.BatchNorm1d(7), *model[2:]).double()


@pytest.mark.parametrize("make", [network, normalised])
def test_an_average_of_the_weights(make):
    """A copy of the model, hook and all: its weights are the average of the loop's, and its statistics the data's."""
    averages = {}

    def train(model, loss):
        average = averages[model] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        by_hand = {}
        for step in range(4):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
            average.update_parameters(model)
            for name, parameter in model.named_parameters():
                value = parameter.detach()
                by_hand[name] = 0.5 * by_hand[name] + 0.5 * value if step else value.clone()
        assert_same(average.module.parameters(), by_hand.values())

    regularised, explicit = both(train, make)
    assert_same(averages[regularised].parameters(), averages[explicit].parameters())
    x, _ = batch(9)
    update_bn([batch(step)[0] for step in range(3)], averages[regularised])
    update_bn([batch(step)[0] for step in range(3)], averages[explicit])
    ours, theirs = (averages[model] for model in (regularised, explicit))
    assert_same(ours.state_dict().values(), theirs.state_dict().values())
    assert_same([ours.eval()(x)], [theirs.eval()(x)])


def test_an_average_in_training_mode_leaves_the_handle_alone():
    """It is a model of its own, regularised by a copy of the handle."""
    model = network()
    handle = regularize(model, invariance, WEIGHT)
    average = AveragedModel(model)
    x, y = batch()
    F.cross_entropy(average(x), y).backward()
    assert handle.value is None
    explicit = network()
    objective(explicit, x, y).backward()
    assert_same((p.grad for p in average.parameters()), (p.grad for p in explicit.parameters()))
    with torch.no_grad():
        assert_same([average(x)], [network()(x)])


# State


def test_a_state_is_that_of_the_plain_model(tmp_path):
    """It goes both ways: into a model without a penalty, and back into one that has it."""
    model = network()
    handle = regularize(model, invariance, WEIGHT)
    assert list(model.state_dict()) == list(network().state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in network().named_modules()]
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = network(seed=4)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_same([other(batch()[0])], [network()(batch()[0])])
    model.load_state_dict(network(seed=4).state_dict())
    model.zero_grad()
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    explicit = network(seed=4)
    objective(explicit, *batch()).backward()
    assert_same((p.grad for p in model.parameters()), (p.grad for p in explicit.parameters()))
    assert handle.value is not None


def test_a_training_that_is_resumed_goes_on_as_it_would_have():
    """Model and optimizer come back from their states, and the line that regularises is run again."""

    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()

    model = network()
    regularize(model, invariance, WEIGHT)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    train(model, optimizer, range(3))
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    resumed = network(seed=4)
    regularize(resumed, invariance, WEIGHT)
    other = torch.optim.Adam(resumed.parameters(), 0.05)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    train(resumed, other, range(3, 6))
    assert_same(resumed.parameters(), model.parameters(), 0)
