"""Which is faster for turns, mirrors and shifts: one gather, or torch's rot90, flip and roll?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from invreg import CyclicGroup, CyclicRotation, CyclicTranslation, FiniteGroup, Flip, PositionGroup
from invreg.groups.positions import gather
from tests.benchmarks.timing import ratios

SHAPES = ((512, 1, 36, 36), (128, 3, 32, 32), (64, 3, 224, 224))
Operation = Callable[[Tensor, int], Tensor]


class _Turns(CyclicGroup, PositionGroup):
    """Quarter turns by gathers alone."""

    order = 4
    dims = (-2, -1)

    def sources(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Turned positions."""
        positions = torch.arange(sizes[0] * sizes[1], device=device).view(sizes)
        return torch.stack([torch.rot90(positions, turns, (-2, -1)).flatten() for turns in range(4)])


GATHERS = {CyclicRotation: _Turns()}
"""What moves by gathers as a group does that is no ``PositionGroup``."""

GROUPS: dict[str, tuple[FiniteGroup, Operation]] = {
    "rotation": (CyclicRotation(4), lambda x, i: torch.rot90(x, i, (-2, -1)).contiguous()),
    "flip": (Flip(-1), lambda x, i: x.flip(-1) if i else x.clone()),
    "translation": (CyclicTranslation(4), lambda x, i: x.roll(i * x.shape[-1] // 4, -1)),
}


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Times of a gather, and of invreg, as multiples of torch's operation, by use, group and shape."""
    for shape in ((4, 1, 36, 36),) if quick else SHAPES:
        for name, (group, operation) in GROUPS.items():
            for use, found in _uses(group, operation, torch.randn(shape), rounds=2 if quick else 20):
                label = f"{use}, {name}, {'x'.join(map(str, shape))}"
                yield f"{label}: gather / torch", found["gather"]
                yield f"{label}: invreg / torch", found["invreg"]
                if "precomputed" in found:
                    yield f"{label}: gather with precomputed sources / torch", found["precomputed"]


def _uses(
    group: FiniteGroup, operation: Operation, x: Tensor, *, rounds: int
) -> Iterator[tuple[str, dict[str, float]]]:
    moves = GATHERS.get(type(group), group)
    for index in range(1, group.order):
        alternatives = {
            "torch": lambda i=index: operation(x, i),
            "gather": lambda i=index: PositionGroup.transform(moves, i, x),
            "invreg": lambda i=index: group.transform(i, x),
        }
        yield f"one element ({index})", ratios(alternatives, rounds=rounds)
    g = torch.randint(group.order, (len(x),))
    start, stop = moves._span(x)
    sources = moves.sources(tuple(x.shape[start:stop]), x.device)
    alternatives = {
        "torch": lambda: FiniteGroup.transform_each(group, g, x),
        "precomputed": lambda: gather(x, sources[g], start, stop),
        "gather": lambda: PositionGroup.transform_each(moves, g, x),
        "invreg": lambda: group.transform_each(g, x),
    }
    yield "one element per sample", ratios(alternatives, rounds=rounds)
    alternatives = {
        "torch": lambda: torch.stack([operation(x, i) for i in range(group.order)]),
        "precomputed": lambda: gather(x.expand(group.order, *x.shape), sources, start + 1, stop + 1),
        "gather": lambda: PositionGroup.orbit(moves, x),
        "invreg": lambda: group.orbit(x),
    }
    yield "whole orbit", ratios(alternatives, rounds=rounds)
