"""Do a regularised model and the loss go through torch.func: functional calls, ensembles, gradients per sample?"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from invreg import InvarianceConstraint, KLInvarianceLoss, L2InvarianceLoss, regularize
from tests.integration.by_hand import (
    RATE,
    TURNS,
    WEIGHT,
    assert_same,
    batch,
    differ,
    expected_gradients,
    network,
    objective,
)

# Torch compiles its own rules for forward derivatives by what it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

invariance = L2InvarianceLoss(TURNS)
Parameters = dict[str, Tensor]


def state(model: nn.Module) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def task(model: nn.Module, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
    """What a loop computes that knows of no penalty."""
    return F.cross_entropy(functional_call(model, parameters, (x,)), y)


def explicit(model: nn.Module, parameters: Parameters, x: Tensor, y: Tensor, loss: nn.Module = invariance) -> Tensor:
    """The explicit line."""

    def called(v: Tensor) -> Tensor:
        return functional_call(model, parameters, (v,))

    logits = called(x)
    return F.cross_entropy(logits, y) + WEIGHT * loss(called, x, logits)


def test_a_training_with_gradients_as_functions():
    model, other = network(), network()
    regularize(model, invariance, WEIGHT)
    parameters = state(model)
    optimizer = torch.optim.SGD(other.parameters(), RATE)
    for step in range(3):
        gradients, value = grad_and_value(task, argnums=1)(model, parameters, *batch(step))
        x, y = batch(step)
        assert_same([value], [F.cross_entropy(other(x), y)])
        assert_same(gradients.values(), expected_gradients(other, step))
        parameters = {name: parameters[name] - RATE * gradients[name] for name in parameters}
        optimizer.step()
    assert_same(parameters.values(), other.parameters())


@pytest.mark.parametrize("rows", [None, 0], ids=["one batch for all", "a batch each"])
def test_an_ensemble(rows):
    """Each member's penalty is its own."""
    members = [network(seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(members)
    model = network().to("meta")
    regularize(model, invariance, WEIGHT)
    x, y = batch()
    if rows == 0:
        x, y = (torch.stack(each) for each in zip(*(batch(step) for step in range(3)), strict=True))

    def one(parameters: Parameters, buffers: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (parameters, buffers), (x,)), y)

    found = vmap(grad(one), (0, 0, rows, rows))(parameters, buffers, x, y)
    for number, member in enumerate(members):
        expected = expected_gradients(member, 0 if rows is None else number)
        assert_same((gradient[number] for gradient in found.values()), expected)


@pytest.mark.parametrize("regularised", [False, True], ids=["loss", "regularised model"])
def test_gradients_per_sample(regularised):
    """As differential privacy needs them: each is that of a batch of one sample."""
    model = network()
    if regularised:
        regularize(model, invariance, WEIGHT)
    x, y = batch()

    def of_one(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (task if regularised else explicit)(model, parameters, x[None], y[None])

    found = vmap(grad(of_one), (None, 0, 0))(state(model), x, y)
    for n in range(len(x)):
        other = network()
        objective(other, x[n : n + 1], y[n : n + 1]).backward()
        assert_same((gradient[n] for gradient in found.values()), (p.grad for p in other.parameters()))


def test_the_same_random_elements_for_each_sample_of_a_map():
    """What vmap calls ``randomness="same"``: the elements are one draw, which is one of the group's."""
    loss = L2InvarianceLoss(TURNS, samples=1)
    model = network()
    x, y = batch()

    def of_one(parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return explicit(model, parameters, x[None], y[None], loss)

    found = vmap(grad(of_one), (None, 0, 0), randomness="same")(state(model), x, y)
    candidates = []
    for turns in (1, 2, 3):
        other = network()
        logits = other(x)
        moved = other(x.rot90(turns, (-2, -1)))
        (F.cross_entropy(logits, y) + WEIGHT * (logits - moved).square().sum(1).mean() / 2).backward()
        candidates.append([parameter.grad for parameter in other.parameters()])
    means = [gradient.mean(0) for gradient in found.values()]
    assert sum(not differ(means, candidate, 1e-12) for candidate in candidates) == 1


def test_other_random_elements_for_each_sample_of_a_map_are_refused():
    """By torch: elements are drawn and checked by their values, which a map does not show. It is loud, not wrong."""
    loss, model = L2InvarianceLoss(TURNS, samples=1), network()
    x, _ = batch()
    with pytest.raises(RuntimeError, match=r"^vmap: "):
        vmap(lambda row: loss(model, row[None]), randomness="different")(x)
    with pytest.raises(RuntimeError, match=r"^vmap: .*randomness error mode"):
        vmap(lambda row: loss(model, row[None]))(x)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
@pytest.mark.parametrize("loss", [invariance, KLInvarianceLoss(TURNS)], ids=["L2", "KL"])
def test_derivatives_of_the_loss_forwards_and_backwards(jacobian, loss):
    model = network()
    found = jacobian(explicit, argnums=1)(model, state(model), *batch(), loss)
    x, y = batch()
    logits = model(x)
    (F.cross_entropy(logits, y) + WEIGHT * loss(model, x, logits)).backward()
    assert_same(found.values(), (parameter.grad for parameter in model.parameters()))


def test_second_derivatives_of_the_loss():
    """Forwards over backwards, against backwards over backwards of the penalty by hand."""
    model = network()
    x, y = batch()

    def by_hand(parameters: Parameters) -> Tensor:
        return objective(lambda v: functional_call(model, parameters, (v,)), x, y)

    def ours(parameters: Parameters) -> Tensor:
        return explicit(model, parameters, x, y)

    found, expected = jacfwd(jacrev(ours))(state(model)), jacrev(jacrev(by_hand))(state(model))
    for name in expected:
        assert_same(found[name].values(), expected[name].values())


def test_a_jacobian_of_a_regularised_model_is_taken_in_evaluation():
    """In training, each of its rows is a backward of its own, and has the penalty's gradient."""
    model, plain = network(), network()
    regularize(model, invariance, WEIGHT)
    x, _ = batch()

    def outputs(of: nn.Module, parameters: Parameters) -> Tensor:
        return functional_call(of, parameters, (x,))

    expected = jacrev(outputs, argnums=1)(plain, state(plain))
    assert_same(jacrev(outputs, argnums=1)(model.eval(), state(model)).values(), expected.values())
    logits = plain(x)
    (WEIGHT * invariance(plain, x, logits)).backward()
    model.train()
    found = jacrev(outputs, argnums=1)(model, state(model))
    for name, parameter in plain.named_parameters():
        assert_same([found[name]], [expected[name] + parameter.grad])


def test_a_forward_derivative_of_a_regularised_model_is_refused_in_training():
    """It has no backward, in which a penalty could come along."""
    model = network()
    regularize(model, invariance, WEIGHT)
    x, _ = batch()
    parameters = state(model)

    def outputs(parameters: Parameters) -> Tensor:
        return functional_call(model, parameters, (x,))

    with pytest.raises(RuntimeError, match="carry no gradient"):
        jvp(outputs, (parameters,), (parameters,))
    model.eval()
    _, tangent = jvp(outputs, (parameters,), (parameters,))
    _, pull = vjp(outputs, parameters)
    (pulled,) = pull(torch.ones_like(tangent))
    assert_same([sum((pulled[name] * parameters[name]).sum() for name in parameters)], [tangent.sum()])


def test_a_constraint_cannot_move_within_a_function():
    """Its state would change in place, which torch refuses; out of training it is a plain weight."""
    constraint = InvarianceConstraint(invariance, 0.05)
    model = network()
    regularize(model, invariance, constraint)
    with pytest.raises(RuntimeError, match="in-place operation"):
        grad(task, argnums=1)(model, state(model), *batch())
    constraint.eval()
    found = grad(task, argnums=1)(model, state(model), *batch())
    assert_same(found.values(), expected_gradients(network(), 0, constraint.multiplier))


def test_a_plain_step_after_mapped_ones():
    """The penalty that is kept is a number again."""
    model = network()
    handle = regularize(model, invariance, WEIGHT)
    x, y = batch()
    vmap(grad(task, argnums=1), (None, None, 0, 0))(model, state(model), x[:, None], y[:, None])
    F.cross_entropy(model(x), y).backward()
    assert_same((parameter.grad for parameter in model.parameters()), expected_gradients(network()))
    assert_same([handle.value], [WEIGHT * invariance(network(), x).detach()])
