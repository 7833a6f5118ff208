"""Does a regularised model train as if its loop had the explicit line, and is it else what it was?"""

import copy
import gc
import pickle
import threading
import warnings
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import (
    CyclicRotation,
    Flip,
    InvarianceConstraint,
    InvarianceLoss,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    OnKeys,
    Trivial,
    regularize,
    tie_first_layer,
)

TURNS = CyclicRotation(4)
WEIGHT = 0.3


def network(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def batch(samples: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.arange(samples) % 3


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The task's loss and the penalty, with no code of the package."""
    logits = model(x)
    moved = [(logits - model(torch.rot90(x, k, (-2, -1)))).square().sum(1).mean() / 2 for k in (1, 2, 3)]
    return F.cross_entropy(logits, y) + WEIGHT * sum(moved) / 3


@torch.no_grad()
def measured(model: nn.Module, x: Tensor) -> float:
    return float(L2InvarianceLoss(TURNS)(model, x))


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return any(not torch.allclose(one, other, rtol=1e-3) for one, other in zip(ours, theirs, strict=True))


# The gradient


def test_gradient_is_that_of_the_line_written_by_hand():
    model, (x, y) = network(), batch()
    expected = gradients(model, by_hand(model, x, y))
    plain = gradients(model, F.cross_entropy(model(x), y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    found = gradients(model, F.cross_entropy(model(x), y))
    assert_same(found, expected)
    assert differ(found, plain)


@pytest.mark.parametrize("loss", [KLInvarianceLoss, L2InvarianceLoss, NormalizedL2InvarianceLoss])
@pytest.mark.parametrize("detach_reference", [False, True])
def test_gradient_is_that_of_the_explicit_line(loss, detach_reference):
    model, (x, y) = network(), batch()
    invariance = loss(TURNS, samples=2, detach_reference=detach_reference)
    torch.manual_seed(3)
    logits = model(x)
    penalty = WEIGHT * invariance(model, x, logits)
    expected = gradients(model, F.cross_entropy(logits, y) + penalty)
    handle = regularize(model, invariance, WEIGHT)
    torch.manual_seed(3)
    assert_same(gradients(model, F.cross_entropy(model(x), y)), expected)
    torch.testing.assert_close(handle.value, penalty.detach(), rtol=0, atol=0)
    assert not handle.value.requires_grad


def test_schedule_is_asked_with_the_number_of_forwards_before():
    model, (x, y) = network(), batch()
    steps = []

    def schedule(step):
        steps.append(step)
        return 0.1 * step

    invariance = L2InvarianceLoss(TURNS)
    handle = regularize(model, invariance, schedule)
    for step in range(3):
        found = gradients(model, F.cross_entropy(model(x), y))
        assert float(handle.value) == pytest.approx(0.1 * step * measured(model, x))
        with handle_off(handle, model):
            logits = model(x)
            expected = gradients(model, F.cross_entropy(logits, y) + 0.1 * step * invariance(model, x, logits))
        assert_same(found, expected)
    assert steps == [0, 1, 2]


class handle_off:  # noqa: N801  # used as a function
    """For the block, a model's forward without the penalty."""

    def __init__(self, handle, model):
        self.handle, self.model = handle, model

    def __enter__(self):
        self.hooks = OrderedDict(self.model._forward_hooks)
        self.model._forward_hooks.clear()

    def __exit__(self, *exception):
        self.model._forward_hooks.update(self.hooks)


def test_constraint_is_the_weight_and_moves_as_in_the_loop():
    model, (x, y) = network(), batch()
    twin = copy.deepcopy(model)
    constraint = InvarianceConstraint(L2InvarianceLoss(TURNS), 0.05)
    alike = copy.deepcopy(constraint)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (model, twin)]
    regularize(model, constraint.loss, constraint)
    for _ in range(4):
        expected = twin(x)
        for optimizer, loss in zip(
            optimizers,
            (F.cross_entropy(model(x), y), F.cross_entropy(expected, y) + alike(twin, x, expected)),
            strict=True,
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert float(constraint.multiplier) == float(alike.multiplier) != 1.0
    assert_same(list(model.parameters()), list(twin.parameters()))


def test_scaled_loss_with_its_scale_gives_the_scaled_gradient():
    model, (x, y) = network(), batch()
    expected = gradients(model, 0.25 * by_hand(model, x, y))
    scales = [0.25]
    for loss_scale in (0.25, lambda: scales[-1]):
        with regularize(model, L2InvarianceLoss(TURNS), WEIGHT, loss_scale=loss_scale) as handle:
            assert_same(gradients(model, 0.25 * F.cross_entropy(model(x), y)), expected)
            assert float(handle.value) == pytest.approx(WEIGHT * measured(model, x))


def test_accumulated_gradients_are_those_of_the_mean():
    model = network()
    batches = [batch(), batch()]
    expected = gradients(model, sum(by_hand(model, x, y) for x, y in batches) / 2)
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, loss_scale=1 / 2)
    model.zero_grad()
    for x, y in batches:
        (F.cross_entropy(model(x), y) / 2).backward()
    assert_same([parameter.grad for parameter in model.parameters()], expected)


def test_two_forwards_before_one_backward_are_penalised_twice():
    model = network()
    (x, y), (other_x, other_y) = batch(), batch()
    expected = gradients(model, by_hand(model, x, y) + by_hand(model, other_x, other_y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    first, second = model(x), model(other_x)
    assert_same(gradients(model, F.cross_entropy(first, y) + F.cross_entropy(second, other_y)), expected)


def test_two_backwards_through_one_forward_count_twice():
    model, (x, y) = network(), batch()
    expected = [2 * gradient for gradient in gradients(model, by_hand(model, x, y))]
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    loss = F.cross_entropy(model(x), y)
    model.zero_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([parameter.grad for parameter in model.parameters()], expected)


def test_regularised_training_becomes_invariant():
    model, (x, y) = network(), batch(24)
    invariance = L2InvarianceLoss(TURNS)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    regularize(model, invariance, 10.0)
    before = measured(model, x)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert measured(model, x) < 0.05 * before


# The values


def test_outputs_are_bitwise_what_they_were():
    model, (x, _) = network(), batch()
    x[0, 0, 0, 0] = -0.0
    before = model(x)
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    assert torch.equal(model(x), before)
    assert model(x).stride() == before.stride()
    zeros = nn.Identity()
    regularize(zeros, L2InvarianceLoss(Flip()), WEIGHT)
    negative_zero = torch.tensor([[-0.0, 1.0]], requires_grad=True)
    assert torch.equal(zeros(negative_zero).signbit(), torch.tensor([[True, False]]))


def test_nothing_happens_in_evaluation_and_without_gradients():
    calls = []
    model, (x, _) = network(), batch()
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    handle = regularize(model, L2InvarianceLoss(TURNS), lambda step: pytest.fail("asked for a weight"))
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    assert calls == [5, 5, 5]
    assert handle.value is None


def test_penalty_takes_one_forward_over_all_elements():
    calls = []
    model, (x, _) = network(), batch()
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    model(x)
    assert calls == [5, 15]


def test_loop_may_change_the_outputs_in_place():
    model, (x, y) = network(), batch()
    for loss in (L2InvarianceLoss(TURNS), NormalizedL2InvarianceLoss(TURNS)):
        logits = model(x)
        expected = gradients(model, F.cross_entropy(logits / 2, y) + WEIGHT * loss(model, x, logits))
        with regularize(model, loss, WEIGHT):
            logits = model(x)
            logits /= 2
            assert_same(gradients(model, F.cross_entropy(logits, y)), expected)


def test_model_is_else_what_it_was():
    model, (x, _) = network(), batch()
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    modules = dict(model.named_modules())
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    model(x)
    assert list(model.state_dict()) == keys
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert dict(model.named_modules()) == modules
    handle.remove()
    handle.remove()
    assert not model._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_group_of_the_identity_adds_nothing():
    model, (x, y) = network(), batch()
    expected = gradients(model, F.cross_entropy(model(x), y))
    handle = regularize(model, L2InvarianceLoss(Trivial()), WEIGHT)
    assert_same(gradients(model, F.cross_entropy(model(x), y)), expected)
    assert float(handle.value) == 0


def test_copies_are_regularised_by_themselves():
    model, (x, y) = network(), batch()
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    expected = gradients(model, F.cross_entropy(model(x), y))
    handle.value = None
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(gradients(twin, F.cross_entropy(twin(x), y)), expected)
        assert handle.value is None  # the copy has a handle of its own
    handle.remove()
    assert twin._forward_hooks


def test_tied_model_has_no_penalty_left_for_its_group():
    model, (x, y) = network(), batch()
    tie_first_layer(model, Flip())
    model(x)
    for group, invariant in ((Flip(), True), (TURNS, False)):
        with regularize(model, L2InvarianceLoss(group), WEIGHT) as handle:
            gradients(model, F.cross_entropy(model(x), y))
            assert (float(handle.value) < 1e-20) == invariant


def test_hooks_that_change_the_data_are_run_once_for_each_forward():
    model, (x, y) = network(), batch()
    model.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    expected = gradients(model, by_hand(model, x, y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    assert_same(gradients(model, F.cross_entropy(model(x), y)), expected)


# What models take and return

Pair = namedtuple("Pair", ["logits", "hidden"])


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    name: str = "as it was"


class Task(nn.Module):
    """A model that takes keywords and computes the task's loss itself, as those of Hugging Face do."""

    def __init__(self, as_type=Output):
        super().__init__()
        self.net = network()
        self.as_type = as_type

    def forward(self, mask=None, pixels=None, labels=None, scale=1.0):
        logits = self.net(pixels) * scale
        if mask is not None:
            logits = logits * mask[:, None]
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.as_type is Output:
            return Output(loss, logits)
        if self.as_type is Pair:
            return Pair(logits, [loss, {"twice": logits}])
        if self.as_type is dict:
            return {"loss": loss, "logits": logits}
        return loss, logits


def loss_of(returned):
    if isinstance(returned, Output):
        return returned.loss
    if isinstance(returned, Pair):
        return returned.hidden[0]
    return returned["loss"] if isinstance(returned, dict) else returned[0]


@pytest.mark.parametrize("as_type", [Output, Pair, dict, tuple])
def test_loss_computed_inside_the_model_brings_the_penalty_once(as_type):
    model, (x, y) = Task(as_type), batch()
    expected = gradients(model, by_hand(model.net, x, y))
    outputs = (lambda returned: returned[1]) if as_type is tuple else None
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels", outputs=outputs)
    returned = model(pixels=x, labels=y)
    assert_same(gradients(model, loss_of(returned)), expected)
    assert isinstance(returned, as_type)


def test_loss_and_logits_together_bring_the_penalty_once():
    model, (x, y) = Task(), batch()
    logits = model.net(x)
    expected = gradients(model, by_hand(model.net, x, y) + logits.square().mean())
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels")
    returned = model(pixels=x, labels=y)
    assert returned.name == "as it was"
    assert_same(gradients(model, returned.loss + returned.logits.square().mean()), expected)


def test_returned_tensors_without_gradient_stay_without():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return {"logits": self.net(x), "classes": x.argmax(), "data": x}

    model, (x, _) = Extra(), batch()
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    returned = model(x)
    assert returned["data"] is x
    assert not returned["classes"].requires_grad


def test_wrapped_model_is_regularised_inside_its_wrapper():
    model, (x, y) = network(), batch()
    expected = gradients(model, by_hand(model, x, y))
    wrapper = nn.DataParallel(model)
    handle = regularize(wrapper, L2InvarianceLoss(TURNS), WEIGHT)
    assert_same(gradients(model, F.cross_entropy(wrapper(x), y)), expected)
    assert not wrapper._forward_hooks
    assert len(model._forward_hooks) == 1
    handle.remove()


def test_one_tensor_returned_twice_stays_one():
    model, (x, _) = Task(Pair), batch()
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels")
    returned = model(pixels=x)
    assert returned.hidden[1]["twice"] is returned.logits


def test_rows_of_other_arguments_go_with_the_samples():
    model, (x, y) = Task(), batch()
    mask = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)

    def masked(pixels):
        return model(mask=mask, pixels=pixels, scale=3.0).logits

    expected = gradients(model, by_hand(masked_model(model, mask), x, y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels")
    for args, kwargs in (((mask, x, None, 3.0), {}), ((mask,), {"pixels": x, "scale": 3.0})):
        assert_same(gradients(model, F.cross_entropy(model(*args, **kwargs).logits, y)), expected)


def masked_model(model, mask):
    class Masked(nn.Module):
        def forward(self, x):
            return model(mask=mask, pixels=x, scale=3.0).logits

    return Masked()


def test_mask_that_is_taken_for_the_data_is_told():
    model, (x, _) = Task(), batch()
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    with pytest.raises(ValueError, match=r"CyclicRotation.*shape \(5,\)"):
        model(mask=torch.ones(5).double(), pixels=x)


def test_labels_before_the_data_are_not_taken_for_it():
    class Labelled(Task):
        def forward(self, labels, pixels):
            return super().forward(pixels=pixels.double(), labels=labels)

    model, (x, y) = Labelled(), batch()
    expected = gradients(model, by_hand(model.net, x, y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    assert_same(gradients(model, model(labels=y, pixels=x).loss), expected)
    with pytest.raises(
        TypeError, match=r"as a floating-point tensor: got \{'labels': 'torch.int64', 'pixels': 'torch.uint8'\}"
    ):
        model(labels=y, pixels=x.byte())


def test_first_tensor_is_the_data_unless_it_is_named():
    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, flag, x, y):
            return self.net(x)

    model, (x, y) = Second(), batch()
    expected = gradients(model, by_hand(model.net, x, y))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    assert_same(gradients(model, F.cross_entropy(model(None, x, y), y)), expected)


def test_batches_of_several_tensors():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, batch):
            return self.net(batch["image"] - batch["mask"])

    model, (x, y) = Both(), batch()
    mask = torch.randn_like(x)
    expected = gradients(model, by_hand(model.net, x - mask, y))
    regularize(model, L2InvarianceLoss(OnKeys({"image": TURNS, "mask": TURNS})), WEIGHT)
    assert_same(gradients(model, F.cross_entropy(model({"image": x, "mask": mask}), y)), expected)


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_rows_of_other_arguments_go_with_a_part_of_the_samples(fraction):
    model, (x, _) = Task(), batch()
    mask = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    handle = regularize(model, L2InvarianceLoss(TURNS, fraction=fraction), 1.0, inputs="pixels")
    torch.manual_seed(2)
    model(mask=mask, pixels=x)
    errors = []
    for n in range(5):
        with handle_off(handle, model):
            logits = model(mask=mask[n : n + 1], pixels=x[n : n + 1]).logits
            moved = [
                model(mask=mask[n : n + 1], pixels=torch.rot90(x[n : n + 1], k, (-2, -1))).logits for k in (1, 2, 3)
            ]
        errors.append(sum((logits - other).square().sum() / 2 for other in moved) / 3)

    rows = round(fraction * 5)
    possible = [sum(errors[n] for n in chosen) / rows for chosen in combinations(range(5), rows)]
    assert min(abs(float(handle.value) - value) for value in possible) < 1e-12


# Bad input, and loops that do strange things


def test_regularising_twice_is_refused():
    model = nn.Sequential(network())
    loss = L2InvarianceLoss(TURNS)
    with regularize(model, loss, WEIGHT), pytest.raises(ValueError, match="The model is regularised already"):
        regularize(model, loss, WEIGHT)
    with regularize(model[0], loss, WEIGHT), pytest.raises(ValueError, match="part '0' of the model is regularised"):
        regularize(model, loss, WEIGHT)
    regularize(model, loss, WEIGHT)  # both are gone


@pytest.mark.parametrize(
    "change", [lambda out: out.detach(), lambda out: out.argmax(1).double()], ids=["detached", "classes"]
)
def test_model_that_returns_nothing_differentiable_is_told(change):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return change(self.net(x))

    model, (x, _) = Frozen(), batch()
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    with pytest.raises(RuntimeError, match=r"Frozen carry no gradient.*unfreeze"):
        model(x)
    handle.remove()
    model(x)


def test_logits_that_are_integers_are_told():
    model, (x, _) = nn.Sequential(network()), batch()
    model.register_forward_hook(lambda module, args, out: out.argmax(1))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    with pytest.raises(TypeError, match=r"floating-point logits: got torch\.int64"):
        model(x)


def test_loop_that_never_calls_backward_leaves_nothing_behind():
    model, (x, _) = network(), batch()
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    graphs = []
    for _ in range(3):
        outputs = model(x)
        graphs.append(weakref.ref(outputs.grad_fn))
        del outputs
    gc.collect()
    assert all(graph() is None for graph in graphs)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert float(handle.value) > 0


def test_removal_in_the_middle_of_a_step_ends_it_with_the_step():
    model, (x, y) = network(), batch()
    expected = gradients(model, by_hand(model, x, y))
    plain = gradients(model, F.cross_entropy(model(x), y))
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    loss = F.cross_entropy(model(x), y)
    handle.remove()
    assert_same(gradients(model, loss), expected)
    assert_same(gradients(model, F.cross_entropy(model(x), y)), plain)


def test_block_that_raises_removes_it():
    model = network()
    with pytest.raises(KeyError), regularize(model, L2InvarianceLoss(TURNS), WEIGHT):
        raise KeyError
    assert not model._forward_hooks


def test_failure_in_the_penalty_leaves_the_next_forward_whole():
    model, (x, y) = network(), batch()
    expected = gradients(model, by_hand(model, x, y))
    failing = []

    def schedule(step):
        if not failing:
            failing.append(step)
            raise KeyError("the schedule's own")
        return WEIGHT

    regularize(model, L2InvarianceLoss(TURNS), schedule)
    with pytest.raises(KeyError, match="the schedule's own"):
        model(x)
    with pytest.raises(ValueError, match="turns square images"):
        model(x.reshape(5, 1, 2, 8))
    assert_same(gradients(model, F.cross_entropy(model(x), y)), expected)


def test_threads_that_share_a_model_each_have_their_penalty():
    """Both threads are in their forward at the same time, which a flag on the model would mix up."""
    meet = threading.Barrier(2, timeout=20)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            meet.wait()
            return self.net(x)

    model = Meeting()
    batches = [batch(), batch()]
    expected = [torch.autograd.grad(by_hand(model.net, x, y), list(model.parameters())) for x, y in batches]
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    found: dict[int, tuple[Tensor, ...]] = {}

    def step(number):
        x, y = batches[number]
        found[number] = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    threads = [threading.Thread(target=step, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert_same(list(found[number]), list(expected[number]))


def test_scaler_without_a_scale_is_told_once():
    model, (x, y) = network(), batch()
    scaler = torch.amp.GradScaler("cpu")
    invariance = L2InvarianceLoss(TURNS)
    with regularize(model, invariance, WEIGHT):
        with pytest.warns(UserWarning, match=r"loss_scale=scaler\.get_scale"):
            scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.scale(F.cross_entropy(model(x), y)).backward()  # a warning would be an error
    with regularize(model, invariance, WEIGHT, loss_scale=scaler.get_scale):
        scaler.scale(F.cross_entropy(model(x), y)).backward()


def test_scaler_of_another_loop_warns_nobody():
    model, (x, y) = network(), batch()
    scaler = torch.amp.GradScaler("cpu")
    with regularize(model, L2InvarianceLoss(TURNS), WEIGHT):
        F.cross_entropy(model(x), y).backward()  # a warning would be an error
    assert scaler.is_enabled()


def test_without_a_scaler_in_use_nobody_is_warned():
    model, (x, y) = network(), batch()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    scaler.scale(F.cross_entropy(model(x), y)).backward()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "must be a torch.nn.Module"),
        ({"loss": F.cross_entropy}, TypeError, "loss must be an InvarianceLoss"),
        ({"loss": InvarianceConstraint(L2InvarianceLoss(TURNS), 1.0)}, TypeError, "constraint.loss, constraint"),
        ({"weight": "0.1"}, TypeError, "weight must be a number or a callable"),
        ({"weight": -1}, ValueError, "weight must be a finite number, 0 or more: got -1"),
        ({"weight": float("nan")}, ValueError, "weight must be a finite number"),
        ({"weight": InvarianceConstraint(L2InvarianceLoss(TURNS), 1.0)}, ValueError, "one of the loss that is given"),
        ({"loss_scale": 0}, ValueError, "loss_scale must be a finite number, above 0: got 0"),
        ({"loss_scale": None}, TypeError, "loss_scale must be a number or a callable"),
        ({"inputs": "image"}, ValueError, r"an argument of Task.forward, one of \['mask', 'pixels'"),
        ({"inputs": 0}, TypeError, "inputs must be the name"),
        ({"outputs": "logits"}, TypeError, "outputs must be a callable"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_settings_are_told(settings, error, message):
    given = {"model": Task(), "loss": L2InvarianceLoss(TURNS), "weight": WEIGHT} | settings
    with pytest.raises(error, match=message):
        regularize(**given)
    assert not getattr(given["model"], "_forward_hooks", None)


def test_scripted_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(network(), batch()[0])
    with pytest.raises(TypeError, match="before you script it"):
        regularize(scripted, L2InvarianceLoss(TURNS), WEIGHT)


def test_call_without_the_data_is_told():
    named, (x, _) = Task(), batch()
    named.forward = lambda **kwargs: named.net(kwargs.get("image", x))
    regularize(named, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels")
    with pytest.raises(TypeError, match=r"without its argument 'pixels'.*\['image'\]"):
        named(image=x)


def test_model_without_tensors_among_its_arguments_is_told():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, images):
            return self.net(torch.stack(images))

    model, (x, _) = Lists(), batch()
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    with pytest.raises(TypeError, match=r"hold the data, as a floating-point tensor: got \{0: 'list'\}"):
        model(list(x))


def test_return_value_without_logits_is_told():
    model, (x, _) = Task(tuple), batch()
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT, inputs="pixels")
    with pytest.raises(TypeError, match=r"something with logits: got tuple.*outputs=lambda out: out\[0\]"):
        model(pixels=x)


def test_print_names_the_settings():
    handle = regularize(network(), InvarianceLoss(TURNS), WEIGHT, loss_scale=0.5)
    assert repr(handle).startswith("Regularization(InvarianceLoss(CyclicRotation(order=4)")
    assert repr(handle).endswith("weight=0.3, loss_scale=0.5)")
