"""What do a rotation by an angle and a permutation cost next to torch's own operation, its grid or index ready-made?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from invreg import CyclicRotation, PlanarRotation, SymmetricGroup
from invreg.groups.planar import reading_matrix
from tests.benchmarks.timing import ratios

IMAGES = ((512, 1, 36, 36), (128, 3, 32, 32), (64, 3, 224, 224))
SETS = ((64, 1024, 3), (32, 20, 16), (256, 128, 8), (128, 100, 64))


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """Times of ``act`` as multiples of ``grid_sample`` with the same grid, of one ``gather`` with the same index."""
    rounds = 2 if quick else 30
    for shape in ((4, 1, 36, 36),) if quick else IMAGES:
        for use, found in _turns(torch.randn(shape), rounds=rounds):
            label = f"rotation by angles, {use}, {'x'.join(map(str, shape))}"
            yield f"{label}: invreg / grid_sample with the grid ready", found["invreg"]
            yield f"{label}: invreg / affine_grid and grid_sample", found["invreg"] / found["affine_grid"]
    for shape in ((4, 10, 3),) if quick else SETS:
        for use, found in _permutations(torch.randn(shape), rounds=rounds):
            label = f"permutation, {use}, {'x'.join(map(str, shape))}"
            yield f"{label}: invreg / gather with the index ready", found["invreg"]


def _turns(x: Tensor, *, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    group, cyclic = PlanarRotation(), CyclicRotation(8)
    each = group.sample(len(x))
    cases = {
        "one for all": (each[0], lambda: group.act(each[0], x)),
        "one per sample": (each, lambda: group.act(each, x)),
        "of CyclicRotation(8)": (torch.tensor([torch.pi / 4]).double(), lambda: cyclic.act(torch.tensor(1), x)),
    }
    for use, (angles, act) in cases.items():
        still = torch.zeros(1, dtype=torch.float64)
        matrix = torch.cat(
            [reading_matrix(angles[..., 0]).view(-1, 2, 2), still.expand(angles.numel(), 2, 1)], 2
        ).float()

        def grid(matrix: Tensor = matrix) -> Tensor:
            size = [len(matrix), *x.shape[1:]]
            return F.affine_grid(matrix, size, align_corners=False).expand(len(x), *x.shape[2:], 2)

        ready = grid()
        alternatives = {
            "grid_sample": lambda ready=ready: F.grid_sample(x, ready, align_corners=False),
            "affine_grid": lambda grid=grid: F.grid_sample(x, grid(), align_corners=False),
            "invreg": act,
        }
        yield use, ratios(alternatives, rounds=rounds)


def _permutations(x: Tensor, *, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    group = SymmetricGroup(x.shape[1], dim=1)
    each = group.sample(len(x))
    for use, g in {"one for all": each[0], "one per sample": each}.items():
        index = group.inverse(g).view(-1, x.shape[1], 1).expand(x.shape)
        alternatives = {
            "gather": lambda index=index: x.gather(1, index),
            "invreg": lambda g=g: group.act(g, x),
        }
        yield use, ratios(alternatives, rounds=rounds)
