"""What does a training step cost that regularises, in time and in memory, next to one written by hand?

``python -m tests.benchmarks.training [--quick]`` prints a table for each device, every number a multiple of the plain
step's. Memory is the peak of a step, see ``memory.peak_memory``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invreg import CyclicRotation, KLInvarianceLoss, L2InvarianceLoss, regularize
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.models import CLASSES, SIDE, TRAINED
from tests.benchmarks.timing import ratios

WEIGHT = 0.1
GROUP = CyclicRotation(4)
BATCH = {"MLP": 512, "CNN": 128, "ViT": 128}
LARGER = {"cpu": 1, "cuda": 8}
"""How many times as large a batch is."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""What a training loop calls backward on, from a model, inputs and labels."""


class Cost(NamedTuple):
    """Of a step, as multiples of the plain step's."""

    time: float
    memory: float


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """No regulariser."""
    return F.cross_entropy(model(x), y)


def in_one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By hand, one forward over the batch and its three turns."""
    outputs = model(torch.cat([x, *_turned(x)])).view(4, len(x), CLASSES)
    return F.cross_entropy(outputs[0], y) + WEIGHT * (outputs[1:] - outputs[0]).square().sum(2).mean() / 2


def in_two(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By hand, a second forward over the three turns."""
    logits = model(x)
    outputs = model(torch.cat(_turned(x))).view(3, len(x), CLASSES)
    return F.cross_entropy(logits, y) + WEIGHT * (outputs - logits).square().sum(2).mean() / 2


def in_four(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By hand, a forward for each turn."""
    logits = model(x)
    distances = [(model(turned) - logits).square().sum(1).mean() for turned in _turned(x)]
    return F.cross_entropy(logits, y) + WEIGHT * sum(distances) / 6


def one_turn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By hand, the whole batch under one random turn."""
    logits = model(x)
    outputs = model(torch.rot90(x, int(torch.randint(1, 4, ())), (-2, -1)))
    return F.cross_entropy(logits, y) + WEIGHT * (outputs - logits).square().sum(1).mean() / 2


def two_views(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By hand, augmentation: two views of each sample, their mean cross-entropy and a divergence between them."""
    first, second = model(_view(x)), model(_view(x))
    divergence = F.kl_div(second.log_softmax(1), first.log_softmax(1), reduction="batchmean", log_target=True)
    return (F.cross_entropy(first, y) + F.cross_entropy(second, y)) / 2 + WEIGHT * divergence


def with_term(invariance: nn.Module) -> Loss:
    """The plain loss plus one of invreg's."""

    def regularized(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        return F.cross_entropy(logits, y) + WEIGHT * invariance(model, x, logits)

    return regularized


HAND_WRITTEN = {"by hand, one forward": in_one, "by hand, two forwards": in_two}
COMPILED = {
    "plain": plain,
    **HAND_WRITTEN,
    "invreg": with_term(L2InvarianceLoss(GROUP)),
    "invreg, samples=1": with_term(L2InvarianceLoss(GROUP, samples=1)),
}
LOSSES = {
    **COMPILED,
    "by hand, a forward for each element": in_four,
    "by hand, one turn for the whole batch": one_turn,
    "by hand, two random views and KL": two_views,
    "invreg, samples=1, KL": with_term(KLInvarianceLoss(GROUP, samples=1)),
    "invreg, samples=1, fraction=0.25": with_term(L2InvarianceLoss(GROUP, samples=1, fraction=0.25)),
    "invreg, samples=1, every=4": with_term(L2InvarianceLoss(GROUP, samples=1, every=4)),
}
ROUNDS = 20
PERIODS = {"invreg, samples=1, every=4": 4}
"""How many steps belong together; one by default."""


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Time and memory of every step as multiples of the plain step's; then invreg's next to the tightest by hand."""
    for device in devices():
        for name in ("MLP", "CNN") if quick else TRAINED:
            found = costs(name, device, quick=quick)
            for step, cost in found.items():
                yield f"training step, {name}, {device}: {step}, time / plain step", cost.time
                yield f"training step, {name}, {device}: {step}, memory / plain step", cost.memory
            for step, ratio in against_hand_written(found).items():
                yield f"training step, {name}, {device}: {step}", ratio


def devices() -> list[str]:
    """The CPU, and a GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def costs(name: str, device: str, *, quick: bool) -> dict[str, Cost]:
    """Measures every step of one model; each has a copy of it."""
    torch.compiler.reset()
    model = TRAINED[name]().to(device)
    n = 8 if quick else BATCH[name] * LARGER[device]
    x = torch.randn(n, 1, SIDE, SIDE, device=device)
    y = torch.randint(CLASSES, (n,), device=device)
    backend = "eager" if quick else "inductor"
    losses = LOSSES | {
        f"compiled {step}": torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
        for step, loss in COMPILED.items()
    }
    steps = {step: _step(copy.deepcopy(model), partial(_backward, loss, x, y)) for step, loss in losses.items()}
    regularized = copy.deepcopy(model)
    regularize(regularized, L2InvarianceLoss(GROUP), WEIGHT)
    steps["invreg.regularize"] = _step(regularized, partial(_backward, plain, x, y))
    orbit = GROUP.orbit(x)
    limits = {
        "limit of samples=1: 1 + 1 forwards and backwards": partial(_together, [orbit[0], orbit[1]]),
        "limit: 1 + 3 forwards and backwards": partial(_together, [orbit[0], orbit[1:].flatten(0, 1)]),
        "limit: four plain forwards and backwards in turn": partial(_in_turn, list(orbit)),
    }
    steps |= {step: _step(copy.deepcopy(model), backward) for step, backward in limits.items()}
    several = {step: partial(_repeat, one, PERIODS.get(step, 1)) for step, one in steps.items()}
    times = ratios(several, rounds=1 if quick else ROUNDS)
    memory = {step: peak_memory(repeated, device) for step, repeated in several.items()}
    return {step: Cost(times[step] / PERIODS.get(step, 1), memory[step] / memory["plain"]) for step in steps}


def against_hand_written(found: dict[str, Cost]) -> dict[str, float]:
    """The ratios that goals are set for: 1.02, eager and compiled, and for the last 2.1."""
    tightest, compiled = (min(found[prefix + step].time for step in HAND_WRITTEN) for prefix in ("", "compiled "))
    return {
        "invreg / the tighter one by hand": found["invreg"].time / tightest,
        "invreg.regularize / the tighter one by hand": found["invreg.regularize"].time / tightest,
        "compiled invreg / the tighter compiled one by hand": found["compiled invreg"].time / compiled,
        "invreg, samples=1 / plain": found["invreg, samples=1"].time,
        "compiled invreg, samples=1 / compiled plain": (
            found["compiled invreg, samples=1"].time / found["compiled plain"].time
        ),
    }


def _step(model: nn.Module, backward: Callable[[nn.Module], None]) -> Callable[[], None]:
    """A training step that leaves no gradients behind."""
    optimizer = torch.optim.Adam(model.parameters(), 8e-4)

    def step() -> None:
        backward(model)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def _turned(x: Tensor) -> list[Tensor]:
    return [torch.rot90(x, k, (-2, -1)) for k in (1, 2, 3)]


def _view(x: Tensor) -> Tensor:
    """Each sample under a random turn, the identity among them."""
    turns = torch.randint(4, (len(x),), device=x.device)
    return torch.stack([x, *_turned(x)])[turns, torch.arange(len(x), device=x.device)]


def _backward(loss: Loss, x: Tensor, y: Tensor, model: nn.Module) -> None:
    loss(model, x, y).backward()


def _together(batches: list[Tensor], model: nn.Module) -> None:
    """A forward on each ready-made batch, then one backward, from gradients that cost next to nothing."""
    outputs = [model(x) for x in batches]
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _in_turn(batches: list[Tensor], model: nn.Module) -> None:
    """The same, with the backward of each before the next forward."""
    for x in batches:
        _together([x], model)


def main() -> None:
    """Prints a table for each device, and one of the goals."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: checks that it works")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    for device in devices():
        found = {name: costs(name, device, quick=quick) for name in TRAINED}
        goals = {name: against_hand_written(found[name]) for name in found}
        print(f"\n| {device}: time, memory / plain step | {' | '.join(found)} |")
        print("|---" * (len(found) + 1) + "|")
        for step in found["MLP"]:
            cells = (f"{found[name][step].time:.2f}, {found[name][step].memory:.2f}" for name in found)
            print(f"| {step} | {' | '.join(cells)} |")
        for step in goals["MLP"]:
            print(f"| time: {step} | {' | '.join(f'{goals[name][step]:.3f}' for name in found)} |", flush=True)


if __name__ == "__main__":
    main()
