"""Does a regularised step compile into one graph, once for all steps, with the same gradients?"""

import copy
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from invreg import (
    InvarianceConstraint,
    InvarianceLoss,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    regularize,
)
from tests.integration.by_hand import RATE, TURNS, WEIGHT, assert_same, batch, expected_gradients, network

# The compiler makes an instance of torch.autograd.Function for each custom one that it traces, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

STEPS = 5
invariance = L2InvarianceLoss(TURNS)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def explicit(model, loss, x, y, weight=WEIGHT):
    logits = model(x)
    return F.cross_entropy(logits, y) + weight * loss(model, x, logits)


@pytest.mark.parametrize(
    "loss",
    [
        InvarianceLoss(TURNS),
        L2InvarianceLoss(TURNS, samples=1),
        KLInvarianceLoss(TURNS, detach_reference=True),
        NormalizedL2InvarianceLoss(TURNS, samples=2),
    ],
    ids=["any error", "one element", "divergence", "two elements"],
)
def test_the_explicit_line(loss):
    """A loop of some steps has the parameters that it has without a compiler, and one graph."""
    counter = CompileCounterWithBackend("aot_eager")
    ends, graphs = [], []
    for step in (explicit, torch.compile(explicit, backend=counter, fullgraph=True)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        for number in range(STEPS):
            torch.manual_seed(number)
            optimizer.zero_grad()
            step(model, loss, *batch(number)).backward()
            optimizer.step()
            graphs.append(counter.frame_count)
        ends.append([parameter.detach() for parameter in model.parameters()])
    assert_same(ends[1], ends[0])
    assert graphs == [0] * STEPS + [1] * STEPS


def schedule(step):
    """A weight that is no simple function of the step, as tables and warm-ups are none."""
    return 0.1 * (step + 1) if step < 3 else {3: 0.05, 4: 0.7}[step]


@pytest.mark.parametrize("weight", [WEIGHT, schedule], ids=["number", "schedule"])
@pytest.mark.parametrize("first", ["regularised first", "compiled first"])
def test_a_regularised_model(first, weight):
    """Compiled first, the model's forward and the penalty's are two shapes of one graph, and with that two graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    model = network()
    if first == "regularised first":
        handle = regularize(model, invariance, weight)
        compiled = torch.compile(model, backend=counter, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        handle = regularize(compiled, invariance, weight)
    graphs = []
    for step in range(STEPS):
        x, y = batch(step)
        model.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        now = weight(step) if callable(weight) else weight
        assert_same([parameter.grad for parameter in model.parameters()], expected_gradients(network(), step, now))
        assert_same([handle.value], [now * invariance(network(), x).detach()])
        graphs.append(counter.frame_count)
    assert graphs == [1 if first == "regularised first" else 2] * STEPS


def test_a_scale_that_changes_from_step_to_step():
    """Read from Python at each step: a compiled graph must not keep what it was when it was compiled."""
    counter = CompileCounterWithBackend("aot_eager")
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    regularize(model, invariance, WEIGHT, loss_scale=scaler.get_scale)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(3):
        scaler.update(8.0 * 2**step)
        x, y = batch(step)
        model.zero_grad()
        (F.cross_entropy(compiled(x), y) * 8 * 2**step).backward()
        expected = [8 * 2**step * gradient for gradient in expected_gradients(network(), step)]
        assert_same([parameter.grad for parameter in model.parameters()], expected)
    assert counter.frame_count == 1


def test_a_constraint_as_the_weight():
    counter = CompileCounterWithBackend("aot_eager")
    ours, theirs = (InvarianceConstraint(invariance, 0.05) for _ in range(2))
    model = network()
    regularize(model, invariance, ours)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(3):
        x, y = batch(step)
        model.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        other = network()
        explicit(other, theirs, x, y, 1).backward()
        assert_same(*([parameter.grad for parameter in one.parameters()] for one in (model, other)))
    torch.testing.assert_close(ours.multiplier, theirs.multiplier)
    assert counter.frame_count == 1


def test_a_copy_of_a_compiled_model_has_a_schedule_of_its_own():
    """Its first step is the schedule's first, wherever that of the original is, and also when that is gone."""
    model = network()
    regularize(model, invariance, schedule)
    torch.compile(model, backend="aot_eager", fullgraph=True)(batch()[0])
    twin = network()
    regularize(twin, invariance, schedule)
    twin = copy.deepcopy(twin)
    del model
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for step in range(3):
        x, y = batch(step)
        twin.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        expected = expected_gradients(network(), step, schedule(step))
        assert_same([parameter.grad for parameter in twin.parameters()], expected)


def test_every_third_step():
    """One graph for the steps that measure, one for the others."""
    counter = CompileCounterWithBackend("aot_eager")
    model = network()
    regularize(model, L2InvarianceLoss(TURNS, every=3), WEIGHT)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(7):
        x, y = batch(step)
        model.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        expected = expected_gradients(network(), step, 0 if step % 3 else 3 * WEIGHT)
        assert_same([parameter.grad for parameter in model.parameters()], expected)
    assert counter.frame_count == 2


def test_evaluation_is_a_graph_without_a_penalty():
    """And one more for the training after it has been measured, with the penalty again."""
    counter = CompileCounterWithBackend("aot_eager")
    model = network()
    handle = regularize(model, invariance, WEIGHT)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x, y = batch()
    for _ in range(2):
        compiled.train()
        model.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
        assert_same([parameter.grad for parameter in model.parameters()], expected_gradients(network()))
        handle.value = None
        compiled.eval()
        assert_same([compiled(x)], [network()(x)])
        assert handle.value is None
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="inductor needs a C++ compiler: install g++"
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning")  # torch by itself
def test_inductor():
    """Torch's default backend, which makes machine code of the step."""
    model = network()
    handle = regularize(model, invariance, schedule)
    quick = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.simdlen": 1}  # to compile, not to run
    with torch._inductor.config.patch(quick):
        compiled = torch.compile(model, fullgraph=True)
        for step in range(STEPS):
            x, y = batch(step)
            model.zero_grad()
            F.cross_entropy(compiled(x), y).backward()
            expected = expected_gradients(network(), step, schedule(step))
            assert_same([parameter.grad for parameter in model.parameters()], expected)
            assert_same([handle.value], [schedule(step) * invariance(network(), x).detach()])
