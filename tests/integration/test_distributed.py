"""Do two processes train a regularised model as one process does on the whole batch?"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from invreg import InvarianceConstraint, L2InvarianceLoss, Regularization, regularize, tie_first_layer
from tests.integration.by_hand import RATE, TURNS, WEIGHT, assert_same, batch, differ, network, objective

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo"
)

STEPS = 3
SAMPLES = 8
MANY = 240  # so many that a tied linear layer expands nothing
Step = tuple[Tensor, Tensor]


class Branching(nn.Module):
    """A network with a branch that no data reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.unused = network(seed=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def normalised() -> nn.Sequential:
    model = network()
    return nn.Sequential(*model[:2], nn.BatchNorm1d(7), *model[2:]).double()


def own(step: int, samples: int = SAMPLES) -> Step:
    """This rank's half of a batch."""
    x, y = batch(step, samples=samples)
    half = slice(torch.distributed.get_rank(), None, 2)
    return x[half], y[half]


def constrained() -> InvarianceConstraint:
    return InvarianceConstraint(L2InvarianceLoss(TURNS), 0.05, rate=0.3)


# What each process does


def wrapped(
    model: nn.Module, weight: Any = WEIGHT, *, first: bool, **settings: Any
) -> tuple[nn.Module, Regularization]:
    """Regularised before or after it is wrapped."""
    loss = weight.loss if isinstance(weight, InvarianceConstraint) else L2InvarianceLoss(TURNS)
    if first:
        handle = regularize(model, loss, weight)
        return DistributedDataParallel(model, **settings), handle
    parallel = DistributedDataParallel(model, **settings)
    return parallel, regularize(parallel, loss, weight)


def sharded(model: nn.Sequential, weight: Any = WEIGHT, *, first: bool, parts: bool) -> Regularization:
    """The same for FSDP2, which takes a module in place; with its parts as units of their own or as one."""
    loss = weight.loss if isinstance(weight, InvarianceConstraint) else L2InvarianceLoss(TURNS)
    handle = regularize(model, loss, weight) if first else None
    shard(model, parts=parts)
    return handle or regularize(model, loss, weight)


def shard(model: nn.Sequential, *, parts: bool) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in (model[1], model[3]) if parts else ():
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def tied(how: str, *, first: bool) -> dict[str, Tensor]:
    """A model whose first layer is tied before or after it is wrapped or sharded."""
    model = network()
    if first:
        tie_first_layer(model, TURNS)
    forward = DistributedDataParallel(model) if how == "DDP" else shard(model, parts="parts" in how)
    if not first:
        tie_first_layer(model, TURNS)
    return trained(model, forward, MANY)


def trained(model: nn.Module, forward: nn.Module | None = None, samples: int = SAMPLES) -> dict[str, Tensor]:
    """The state after some steps of a loop that knows of no penalty."""
    forward = model if forward is None else forward
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    for step in range(STEPS):
        x, y = own(step, samples)
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
    return whole(model)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, gathered where it is spread over processes."""
    state = model.state_dict()
    return {name: each.full_tensor() if hasattr(each, "full_tensor") else each for name, each in state.items()}


def accumulated() -> dict[str, Tensor]:
    """Two batches a step, the first of them without a word to the other process."""
    model = network()
    parallel = DistributedDataParallel(model)
    regularize(parallel, L2InvarianceLoss(TURNS), WEIGHT, loss_scale=1 / 2)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        with parallel.no_sync():
            x, y = own(2 * step)
            (F.cross_entropy(parallel(x), y) / 2).backward()
        x, y = own(2 * step + 1)
        (F.cross_entropy(parallel(x), y) / 2).backward()
        optimizer.step()
    return whole(model)


def drawn() -> dict[str, Tensor]:
    """The penalties and gradients of random elements: both processes have the same batch and the same seed."""
    found = {}
    for run in ("once", "again"):
        torch.manual_seed(11)
        model = network()
        parallel = DistributedDataParallel(model)
        handle = regularize(parallel, L2InvarianceLoss(TURNS, samples=1), WEIGHT)
        x, y = batch(samples=SAMPLES)
        values = []
        for _ in range(2):
            F.cross_entropy(parallel(x), y).backward()
            values.append(handle.value)
        found[f"values, {run}"] = torch.stack(values)
        found[f"gradients, {run}"] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return found


def run(name: str) -> dict[str, Tensor]:
    """One of the trainings."""
    kind, _, rest = name.partition(", ")
    first = "regularised first" in rest
    if kind == "tied":
        return tied(rest.partition(", ")[0], first="tied first" in rest)
    if kind == "DDP":
        settings = {}
        if "static graph" in rest:
            settings["static_graph"] = True
        if "unused parameters" in rest:
            settings["find_unused_parameters"] = True
        model = Branching() if "unused parameters" in rest else normalised() if "statistics" in rest else network()
        return trained(model, wrapped(model, first=first, **settings)[0])
    if kind == "FSDP":
        model = network()
        sharded(model, first=first, parts="parts" in rest)
        return trained(model)
    constraint = constrained()
    model = network()
    if kind == "constraint":
        state = trained(model, wrapped(model, constraint, first=first)[0])
    else:
        sharded(model, constraint, first=first, parts=True)
        state = trained(model)
    return {**state, "multiplier": constraint.multiplier}


TRAININGS = [
    "DDP, regularised first",
    "DDP, wrapped first",
    "DDP, regularised first, unused parameters",
    "DDP, wrapped first, unused parameters",
    "DDP, regularised first, static graph",
    "DDP, wrapped first, static graph",
    "DDP, regularised first, statistics",
    "DDP, wrapped first, statistics",
    "FSDP, regularised first, parts",
    "FSDP, regularised first",
    "FSDP, sharded first, parts",
    "FSDP, sharded first",
    "constraint, regularised first",
    "constraint, wrapped first",
    "constraint and FSDP, sharded first",
    *(f"tied, {how}, {order} first" for how in ("DDP", "FSDP", "FSDP of parts") for order in ("tied", "wrapped")),
]


def process(rank: int, folder: str) -> None:
    """All trainings of one rank."""
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group(
        "gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {name: run(name) for name in TRAININGS}
    found["accumulated"] = accumulated()
    found["drawn"] = drawn()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


# What one process does


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What two processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def alone(model: nn.Module, *, micro: int = 1, penalised: bool = True) -> dict[str, Tensor]:
    """The explicit loop on whole batches."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(micro):
            x, y = batch(micro * step + part, samples=SAMPLES)
            (objective(model, x, y, WEIGHT if penalised else 0) / micro).backward()
        optimizer.step()
    return model.state_dict()


def assert_same_on_both(ranks: list[dict[str, Any]], name: str, expected: dict[str, Tensor]) -> None:
    for rank in ranks:
        assert rank[name].keys() == expected.keys()
        assert_same(rank[name].values(), expected.values(), 1e-11)


@pytest.mark.parametrize(
    "name", [name for name in TRAININGS if name.startswith(("DDP", "FSDP")) and "stat" not in name]
)
def test_parameters_are_those_of_one_process_on_whole_batches(ranks, name):
    make = Branching if "unused" in name else network
    assert_same_on_both(ranks, name, alone(make()))
    assert differ(alone(make()).values(), alone(make(), penalised=False).values())


@pytest.mark.parametrize("first", ["regularised", "wrapped"])
def test_a_graph_that_is_said_to_be_static(ranks, first):
    assert_same_on_both(ranks, f"DDP, {first} first, static graph", alone(network()))


@pytest.mark.parametrize("first", ["regularised", "wrapped"])
def test_running_statistics_are_those_of_the_first_process(ranks, first):
    """Each process normalises its own half, also the transformed one."""
    models = [normalised() for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), RATE, momentum=0.5) for model in models]
    for step in range(STEPS):
        x, y = batch(step, samples=SAMPLES)
        for rank, model in enumerate(models):
            model.zero_grad()
            objective(model, x[rank::2], y[rank::2]).backward()
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            mean = (parameters[0].grad + parameters[1].grad) / 2
            for parameter in parameters:
                parameter.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    expected = models[0].state_dict()
    state = ranks[0][f"DDP, {first} first, statistics"]
    assert_same(state.values(), expected.values(), 1e-11)
    assert int(state["2.num_batches_tracked"]) == 2 * STEPS


def test_gradients_accumulated_without_a_word_in_between(ranks):
    assert_same_on_both(ranks, "accumulated", alone(network(), micro=2))


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("constraint")])
def test_a_constraint_follows_the_whole_batch(ranks, name):
    constraint, model = constrained(), network()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    for step in range(STEPS):
        x, y = batch(step, samples=SAMPLES)
        optimizer.zero_grad()
        logits = model(x)
        (F.cross_entropy(logits, y) + constraint(model, x, logits)).backward()
        optimizer.step()
    found = [rank[name].pop("multiplier") for rank in ranks]
    assert found[0] == found[1]
    torch.testing.assert_close(found[0], constraint.multiplier)
    for rank in ranks:
        assert_same(rank[name].values(), model.state_dict().values(), 1e-5)  # the multiplier is a float32


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("tied")])
def test_a_tied_model_trains_as_one_process_does(ranks, name):
    model = network()
    first, *others = list(model)[1:]
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.5)
    for step in range(STEPS):
        x, y = batch(step, samples=MANY)
        optimizer.zero_grad()
        pooled = torch.stack([first(torch.rot90(x, k, (-2, -1)).flatten(1)) for k in range(4)]).amax(0)
        F.cross_entropy(nn.Sequential(*others)(pooled), y).backward()
        optimizer.step()
    assert_same_on_both(ranks, name, model.state_dict())


def test_each_process_draws_its_own_elements_again_the_same(ranks):
    """From one and the same seed; DDP then takes the mean of what the two found."""
    first, second = (rank["drawn"] for rank in ranks)
    for rank in (first, second):
        assert_same(
            [rank["values, once"], rank["gradients, once"]], [rank["values, again"], rank["gradients, again"]], 0
        )
        assert rank["values, once"][0] != rank["values, once"][1]
    assert (first["values, once"] != second["values, once"]).all()
    assert_same([first["gradients, once"]], [second["gradients, once"]])
