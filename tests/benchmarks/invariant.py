"""What does a training step of a network that is invariant, or becomes so, cost beside a plain one?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from invreg import (
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    InvarianceConstraint,
    L2InvarianceLoss,
    symmetrize,
    tie_first_layer,
)
from tests.benchmarks.models import CLASSES, SIDE, mlp
from tests.benchmarks.steps import training_step
from tests.benchmarks.timing import ratios

GROUPS: tuple[FiniteGroup, ...] = (CyclicRotation(4), CyclicTranslation(3), Dihedral(4))


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Times of steps and of forwards in eval mode, as multiples of the plain network's."""
    n, rounds = (32, 3) if quick else (512, 40)
    x, y = torch.randn(n, 1, SIDE, SIDE), torch.randint(CLASSES, (n,))
    for group in GROUPS:
        for what, found in {
            "training step": _steps(group, x, y, rounds),
            "forward": _forwards(group, x, rounds),
        }.items():
            yield from ((f"{what}, MLP, {group!r}: {name} / plain", found[name]) for name in found if name != "plain")


def _steps(group: FiniteGroup, x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    loss = L2InvarianceLoss(group)
    return ratios(
        {
            "plain": training_step(mlp(), x, y),
            "symmetrize": training_step(_symmetrized(group, x), x, y),
            "tie_first_layer": training_step(_tied(group), x, y),
            "L2InvarianceLoss": training_step(mlp(), x, y, loss),
            "InvarianceConstraint": training_step(mlp(), x, y, InvarianceConstraint(loss, target=0.1)),
        },
        rounds=rounds,
    )


def _forwards(group: FiniteGroup, x: Tensor, rounds: int) -> dict[str, float]:
    removed = mlp()
    symmetrize(removed, group, x).remove()
    models = {
        "plain": mlp(),
        "symmetrize, registered": _symmetrized(group, x),
        "symmetrize, removed": removed,
        "tie_first_layer": _tied(group),
    }

    def forward(model: nn.Module) -> Callable[[], object]:
        model.eval()
        return torch.no_grad()(lambda: model(x))

    return ratios({name: forward(model) for name, model in models.items()}, rounds=rounds)


def _symmetrized(group: FiniteGroup, x: Tensor) -> nn.Module:
    model = mlp()
    symmetrize(model, group, x)
    return model


def _tied(group: FiniteGroup) -> nn.Module:
    model = mlp()
    tie_first_layer(model, group)
    return model
