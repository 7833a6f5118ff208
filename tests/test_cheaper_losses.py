"""Is the regulariser on a part of the batch, or at some of the steps, right on average, and in every process?"""

import copy
import math
import pickle
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from invreg import CyclicRotation, Flip, InvarianceLoss, L2InvarianceLoss, OnKeys, SignFlip, Trivial
from tests import oracle
from tests.test_losses import Calls, drawn, every_loss, given_or_not, gradients, images, mlp
from tests.tolerances import assert_exact, assert_linear

ROTATION = CyclicRotation(4)


def value_of(loss, model, x: Tensor, given: bool) -> Tensor:
    """The loss with the outputs given to it or computed by it; ``Calls`` does not note those given."""
    network = model.model if isinstance(model, Calls) else model
    return loss(model, x, network(x) if given else None)


def rows_of(x: Tensor, seen: Tensor, given: bool) -> list[int]:
    """Which rows of ``x`` a model saw, turned or not, if it saw each in the same place of every part of its batch."""
    parts = seen.view(-1, len(seen) // (3 + (not given)), *x.shape[1:])
    found = [[int((x.flatten(1).sum(1) - row.sum()).abs().argmin()) for row in part] for part in parts]
    assert all(rows == found[0] for rows in found)
    return found[0]


# A part of the batch


@every_loss
@given_or_not
@pytest.mark.parametrize(
    ("samples", "fraction", "rows"), [(10, 0.5, 5), (10, 0.26, 3), (10, 0.24, 2), (10, 0.01, 1), (1, 0.3, 1), (4, 1, 4)]
)
def test_only_so_many_rows_go_through_the_model(loss, given, samples, fraction, rows):
    model, x = Calls(mlp()), images(samples)
    value_of(loss(ROTATION, fraction=fraction), model, x, given)
    assert [len(inputs) for inputs in model.inputs] == [rows * (3 + (not given))]
    assert len(set(rows_of(x, model.inputs[0], given))) == rows


@given_or_not
def test_the_value_is_the_oracles_mean_over_the_rows_drawn(given):
    model, x = Calls(mlp()), images(6)
    loss = L2InvarianceLoss(ROTATION, fraction=0.5)
    network = oracle.network_of(model.model)
    for _ in range(5):
        model.inputs.clear()
        actual = value_of(loss, model, x, given)
        rows = rows_of(x, model.inputs[0], given)
        errors = [
            oracle.logit_error(network(x[n : n + 1].numpy())[0], network(g.act(x[n].numpy())[None])[0])
            for n in rows
            for g in oracle.rotations(4)[1:]
        ]
        assert len(errors) == 9
        assert actual.item() == pytest.approx(math.fsum(errors) / 9, rel=1e-9)


@given_or_not
def test_each_part_of_the_batch_is_drawn_as_often_and_their_mean_is_the_full_gradient(given):
    model, x = Calls(mlp()), images(4)
    loss = L2InvarianceLoss(ROTATION, fraction=0.5)
    found: dict[tuple[int, ...], list[Tensor]] = {}
    counts: dict[tuple[int, ...], int] = dict.fromkeys(combinations(range(4), 2), 0)
    for _ in range(600):
        model.inputs.clear()
        value = value_of(loss, model, x, given)
        rows = tuple(sorted(rows_of(x, model.inputs[0], given)))
        counts[rows] += 1
        if rows not in found:
            found[rows] = gradients(model, value)
    assert len(counts) == len(found) == 6
    assert all(abs(count - 100) < 4 * math.sqrt(600 * (1 / 6) * (5 / 6)) for count in counts.values())
    full = gradients(model, value_of(L2InvarianceLoss(ROTATION), model, x, given))
    for parts, expected in zip(zip(*found.values(), strict=True), full, strict=True):
        assert_linear(torch.stack(parts).mean(0), expected)


@given_or_not
def test_with_drawn_elements_and_steps_left_out_the_expected_gradient_is_the_full_one(given):
    model, x = mlp(), images(4)
    loss = L2InvarianceLoss(ROTATION, samples=1, fraction=0.5, every=2, rng=torch.Generator().manual_seed(1))
    full = torch.cat([g.flatten() for g in gradients(model, value_of(L2InvarianceLoss(ROTATION), model, x, given))])
    found = []
    for _ in range(800):
        found.append(torch.cat([g.flatten() for g in gradients(model, value_of(loss, model, x, given))]) / 2)
        assert value_of(loss, model, x, given).item() == 0
    draws = torch.stack(found)
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert standard_error.norm() < 0.1 * full.norm()
    assert ((draws.mean(0) - full).abs() < 5 * standard_error + 1e-12).all()


def test_all_tensors_of_a_batch_and_the_outputs_keep_the_same_rows():
    group = OnKeys({"image": ROTATION})
    batch = {"image": images(6), "index": torch.arange(6)}
    outputs = torch.arange(6.0, dtype=torch.float64)
    seen = []

    def model(several: dict[str, Tensor]) -> Tensor:
        seen.append(several)
        return several["index"] + several["image"].flatten(1).mean(1) * 0

    value = L2InvarianceLoss(group, fraction=0.5)(model, batch, outputs)
    assert value.item() == 0
    index = seen[0]["index"].view(3, 3)
    assert len(set(index[0].tolist())) == 3
    assert_exact(index, index[0].expand(3, 3))
    assert_exact(seen[0]["image"].view(3, 3, 1, 4, 4), ROTATION.orbit(batch["image"][index[0]], identity=False))


def test_rows_repeat_with_the_seed_and_are_drawn_anew_at_each_call():
    model, x = Calls(mlp()), images(30)

    def rows(loss: InvarianceLoss) -> list[list[int]]:
        model.inputs.clear()
        for _ in range(3):
            loss(model, x)
        return [rows_of(x, seen, given=False) for seen in model.inputs]

    torch.manual_seed(5)
    first = rows(L2InvarianceLoss(ROTATION, fraction=0.2))
    assert first[0] != first[1] != first[2]
    torch.manual_seed(5)
    assert rows(L2InvarianceLoss(ROTATION, fraction=0.2)) == first
    before = torch.random.get_rng_state()
    of_rng = [rows(L2InvarianceLoss(ROTATION, fraction=0.2, rng=torch.Generator().manual_seed(5))) for _ in range(2)]
    assert of_rng[0] == of_rng[1]
    assert_exact(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{}, {"fraction": 0.9}, {"every": 2}], ids=str)
def test_nothing_is_drawn_where_all_rows_and_elements_are_taken(settings):
    model, x, before = mlp(), images(4), torch.random.get_rng_state()
    L2InvarianceLoss(ROTATION, **settings)(model, x)
    assert_exact(torch.random.get_rng_state(), before)


# Every n-th step


@every_loss
@given_or_not
@pytest.mark.parametrize("every", [2, 3])
def test_a_period_has_the_full_gradient_on_average_and_begins_with_the_call_that_counts(loss, given, every):
    model, x = Calls(mlp()), images()
    rarer = loss(ROTATION, every=every)
    full = value_of(loss(ROTATION), model, x, given)
    model.inputs.clear()
    values = [value_of(rarer, model, x, given) for _ in range(2 * every)]
    assert len(model.inputs) == 2
    assert_linear(torch.stack(values), torch.stack(([every * full] + [0 * full] * (every - 1)) * 2))
    for actual, expected in zip(gradients(model, sum(values[:every]) / every), gradients(model, full), strict=True):
        assert_linear(actual, expected)


@given_or_not
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_call_left_out_gives_a_zero_that_may_be_used_as_any_other_value(given, dtype):
    model, x = mlp(dtype=dtype), images(dtype=dtype)
    loss = L2InvarianceLoss(ROTATION, every=2)
    first = value_of(loss, model, x, given)
    (0.1 * value_of(loss, model, x, given)).backward()
    assert all(p.grad is None for p in model.parameters())
    loss(model, x)
    outputs = model(x)
    zero = loss(model, x, outputs if given else None)
    assert (zero.item(), zero.shape, zero.dtype) == (0, (), first.dtype)
    task = outputs.square().mean()
    expected = torch.autograd.grad(task, list(model.parameters()), retain_graph=True)
    for actual, one in zip(gradients(model, task + 0.1 * zero), expected, strict=True):
        assert_exact(actual, one)


def test_a_call_left_out_is_zero_whatever_the_outputs_are():
    model, x = mlp(), images()
    loss = L2InvarianceLoss(ROTATION, every=2)
    loss(model, x)
    assert loss(model, x, torch.full((5, 3), math.inf, dtype=torch.float64)).item() == 0


def test_the_zero_of_a_group_of_the_identity_alone_may_be_differentiated_too():
    model, x = mlp(), images()
    zero = L2InvarianceLoss(Trivial())(model, x)
    zero.backward()
    with torch.no_grad():
        assert not L2InvarianceLoss(Trivial())(model, x).requires_grad


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "eval"])
def test_outside_of_training_each_call_measures_everything_and_none_is_counted(how):
    model, x = Calls(mlp()), images(6)
    loss = L2InvarianceLoss(ROTATION, fraction=0.5, every=2)
    expected = L2InvarianceLoss(ROTATION)(model, x)
    model.inputs.clear()
    before = torch.random.get_rng_state()
    with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "eval": torch.enable_grad}[how]():
        loss.train(how != "eval")
        for _ in range(3):
            assert_exact(loss(model, x).detach().clone(), expected.detach())
    assert [len(seen) for seen in model.inputs] == [24, 24, 24]
    assert_exact(torch.random.get_rng_state(), before)
    loss.train()
    assert loss(model, x).item() > 0
    assert loss(model, x).item() == 0


@every_loss
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_copies_go_on_with_the_count(loss, calls):
    model, x = mlp(), images()
    original = loss(ROTATION, every=4, fraction=0.8)
    for _ in range(calls):
        original(model, x)
    copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    for one in (*copies, original):
        assert (one.every, one.fraction) == (4, 0.8)
        assert [one(model, x).item() > 0 for _ in range(5)] == [(calls + i) % 4 == 0 for i in range(5)]


def test_a_long_period_can_be_copied_and_nothing_of_it_is_in_the_state():
    loss = L2InvarianceLoss(ROTATION, every=20_000)
    loss(mlp(), images())
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert pickle.loads(pickle.dumps(copy.deepcopy(loss)))(mlp(), images()).item() == 0
    assert len(pickle.dumps(loss)) < 2_000


def test_torch_func_goes_through_calls_that_are_left_out():
    models, x = [mlp() for _ in range(2)], images()
    loss, full = L2InvarianceLoss(ROTATION, every=2), L2InvarianceLoss(ROTATION)
    parameters, buffers = stack_module_state(models)
    stacked = {name: parameter.detach() for name, parameter in parameters.items()}
    skeleton = copy.deepcopy(models[0])

    def value(one: dict[str, Tensor], of: InvarianceLoss) -> Tensor:
        return of(lambda v: functional_call(skeleton, (one, buffers), v), x)

    for factor in (2, 0, 2):
        actual = vmap(grad(lambda one: value(one, loss)))(stacked)
        expected = vmap(grad(lambda one: value(one, full)))(stacked)
        assert len(actual) == 4
        for name, gradient in expected.items():
            assert_linear(actual[name], factor * gradient)


# Compiled


@given_or_not
@pytest.mark.parametrize(
    "settings",
    [{}, {"samples": 1}, {"fraction": 0.5}, {"every": 3}, {"samples": 1, "fraction": 0.5, "every": 12}],
    ids=lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()) or "all",
)
def test_a_compiled_step_is_one_graph_and_is_not_compiled_again(given, settings):
    model = mlp()
    losses = [L2InvarianceLoss(ROTATION, **settings) for _ in range(2)]

    def step(loss: InvarianceLoss, x: Tensor) -> Tensor:
        outputs = model(x)
        return outputs.square().mean() + 0.1 * loss(model, x, outputs if given else None)

    torch.compiler.reset()
    compiled = torch.compile(lambda x: step(losses[0], x), backend="aot_eager", fullgraph=True)
    zeros = 0
    for i in range(14):
        x = images(6)
        with torch.compiler.set_stance("default" if i < 2 else "fail_on_recompile"):
            torch.manual_seed(i)
            actual = gradients(model, compiled(x))
        torch.manual_seed(i)
        expected = gradients(model, step(losses[1], x))
        for one, two in zip(actual, expected, strict=True):
            assert_linear(one, two)
        task = gradients(model, model(x).square().mean())
        zeros += all(torch.allclose(one, two, rtol=1e-9) for one, two in zip(actual, task, strict=True))
    assert zeros == 14 - len(range(0, 14, settings.get("every", 1)))


def test_the_stance_tells_a_step_that_is_compiled_again():
    model, number = mlp(), nn.Module()
    number.count = 0

    def step(x: Tensor) -> Tensor:
        number.count += 1
        return model(x) * (number.count % 3 == 0)

    torch.compiler.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for _ in range(2):
        compiled(images())
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        compiled(images())


def test_the_zero_of_a_compiled_loss_may_be_differentiated_where_the_outputs_may():
    model, x = mlp(), images()
    torch.compiler.reset()
    compiled = torch.compile(L2InvarianceLoss(ROTATION, every=2), backend="aot_eager", fullgraph=True)
    outputs = model(x).detach().requires_grad_()
    assert compiled(model, x, outputs).item() > 0
    zero = compiled(model, x, outputs)
    assert zero.item() == 0
    zero.backward()
    assert_exact(outputs.grad, torch.zeros(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"fraction": 0.5}, {"every": 2}, {"samples": 1}], ids=str)
def test_a_compiled_step_takes_batches_of_other_sizes(settings):
    model = mlp()
    losses = [L2InvarianceLoss(ROTATION, **settings) for _ in range(2)]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: losses[0](model, x), backend="eager", fullgraph=True)
    for samples in (6, 8, 10, 3):
        x = images(samples)
        values = []
        for measured in (compiled, lambda x: losses[1](model, x)):
            torch.manual_seed(samples)
            values.append(torch.stack([measured(x) for _ in range(2)]))
        assert_linear(*values)


# Several processes


def one_rank(rank: int, folder: str) -> None:
    """Notes what a rank draws, all ranks from the same seeds."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(draws(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def draws() -> dict[str, Tensor]:
    """The inputs that models see, by how they were drawn, and the state of the global generator thereafter."""
    x = torch.arange(40 * 16.0, dtype=torch.float64).view(40, 1, 4, 4)

    def seen(seed: int, **settings) -> Tensor:
        model = Calls(nn.Flatten())
        torch.manual_seed(seed)
        loss = L2InvarianceLoss(ROTATION, **settings)
        for _ in range(2):
            loss(model, x)
        return torch.stack(model.inputs)

    return {
        "elements": seen(3, samples=1),
        "elements again": seen(3, samples=1),
        "elements of another seed": seen(4, samples=1),
        "rows": seen(3, fraction=0.5),
        "elements of a generator": seen(3, samples=1, rng=torch.Generator().manual_seed(6)),
        "rows of a generator": seen(3, fraction=0.5, rng=torch.Generator().manual_seed(6)),
        "all": seen(3),
        "state": (seen(3, samples=1, fraction=0.5), torch.random.get_rng_state())[1],
    }


def test_ranks_draw_each_their_own_from_the_same_seed_and_repeatably(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = draws()
    for name in ("elements", "rows"):
        assert not torch.equal(first[name], second[name])
    elements = [drawn(ROTATION, one["elements"][0, :40], one["elements"][0])[1] for one in (first, second)]
    assert 3 < (elements[0] == elements[1]).sum() < 24  # 13 of 40 by chance: as often as if they knew nothing of it
    for one in (first, second):
        assert_exact(one["elements"], one["elements again"])
        assert not torch.equal(one["elements"], one["elements of another seed"])
        assert not torch.equal(one["elements"][0], one["elements"][1])
        assert not torch.equal(one["rows"][0], one["rows"][1])
        for name in ("elements of a generator", "rows of a generator", "all"):
            assert_exact(one[name], alone[name])
    assert_exact(first["state"], second["state"])


def test_a_single_process_of_a_group_draws_as_one_without(tmp_path):
    alone = draws()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        found = draws()
    finally:
        torch.distributed.destroy_process_group()
    assert len(found) == 8
    for name, tensor in found.items():
        assert_exact(tensor, alone[name])


# What is shown, and what is refused


def test_shows_what_makes_it_cheaper():
    shown = repr(L2InvarianceLoss(SignFlip(), fraction=0.25, every=3))
    assert shown.endswith("samples=None, detach_reference=False, fraction=0.25, every=3)")


BAD_SETTINGS = {
    "no part": ({"fraction": 0.0}, ValueError, r"fraction must be above 0 and at most 1.*got 0\.0"),
    "negative part": ({"fraction": -0.5}, ValueError, r"fraction.*got -0\.5"),
    "more than all": ({"fraction": 1.5}, ValueError, r"fraction.*at most 1.*got 1\.5"),
    "NaN": ({"fraction": math.nan}, ValueError, "fraction.*got nan"),
    "words": ({"fraction": "half"}, TypeError, "fraction must be a number: got 'half'"),
    "tensor": ({"fraction": torch.tensor(0.5)}, TypeError, "fraction must be a number"),
    "never": ({"every": 0}, ValueError, "every must be a whole number.*got 0"),
    "negative": ({"every": -1}, ValueError, "every.*got -1"),
    "half steps": ({"every": 2.0}, ValueError, r"every must be a whole number.*got 2\.0"),
    "none": ({"every": None}, ValueError, "every must be a whole number.*got None"),
    "truth": ({"every": True}, ValueError, "every must be a whole number.*got True"),
}


@every_loss
@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_refuses_settings_that_make_no_sense(loss, name):
    settings, kind, message = BAD_SETTINGS[name]
    with pytest.raises(kind, match=message):
        loss(ROTATION, **settings)


@pytest.mark.parametrize("settings", [{"fraction": 0.5}, {"every": 2}], ids=str)
def test_refuses_bad_batches_at_each_call(settings):
    loss = L2InvarianceLoss(Flip(), **settings)
    for _ in range(3):
        loss(mlp(), images())
        with pytest.raises(TypeError, match="floating point"):
            loss(mlp(), images().long())
        with pytest.raises(ValueError, match=r"\(4, 3\) for 5 samples"):
            loss(mlp(), images(), torch.zeros(4, 3))


def test_takes_numbers_of_numpy():
    assert L2InvarianceLoss(Flip(), fraction=np.float64(0.5)).fraction == 0.5
