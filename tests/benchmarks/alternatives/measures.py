"""How long does the audit take that one would use instead? tmeasures', beside invreg's: same model, images and batches.

Run ``make bench-alternatives``, or ``python -m tests.benchmarks.alternatives.measures [--quick]`` where tmeasures is
installed. tmeasures' number that is nearest to the errors here is its normalized variance: the standard deviation of
each unit over the turned copies of an image, divided by that over the images. It takes two passes, one for each; the
first alone, over the copies, is timed too. No progress bars, no workers, one device, and batches of one size for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import product

import torch
from tmeasures.pytorch import (
    AutoActivationsModule,
    NormalizedVarianceInvariance,
    PyTorchMeasure,
    PyTorchMeasureOptions,
    TransformationVarianceInvariance,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from invreg import CyclicRotation, measure_invariance, measure_layers
from tests.benchmarks.models import MODELS, SIDE
from tests.benchmarks.timing import ratios

GROUP = CyclicRotation(4)
BATCHES = (64, 256)
MEASURES = {
    "normalized variance": NormalizedVarianceInvariance,
    "variance over the copies alone": TransformationVarianceInvariance,
}


class Images(Dataset[Tensor]):
    """Images in memory, one at a time, as tmeasures takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def turns() -> list[Callable[[Tensor], Tensor]]:
    """The group for tmeasures: a callable for each element, on one image."""
    return [partial(torch.rot90, k=k, dims=(-2, -1)) for k in range(GROUP.order)]


def evaluate(
    measure: type[PyTorchMeasure], data: Images, activations: AutoActivationsModule, batch: int
) -> list[Tensor]:
    """What tmeasures finds for each layer and unit."""
    options = PyTorchMeasureOptions(batch_size=batch, num_workers=0, verbose=False)
    found: list[Tensor] = measure().eval(data, turns(), activations, options).layers
    return found


def rows(*, quick: bool) -> Iterator[tuple[str, float]]:
    """tmeasures' time as a multiple of invreg's."""
    for (name, make), batch in product(MODELS.items(), BATCHES):
        model = make().eval()
        data = Images(torch.randn(64 if quick else 512, 1, SIDE, SIDE))
        loader = DataLoader(data, batch_size=batch)
        audits = {
            "logits": partial(measure_invariance, model, loader, GROUP, saliency=None, progress=False),
            "all layers": partial(measure_layers, model, loader, GROUP, progress=False),
        }
        for which, audit in audits.items():
            watched = _watched(model, logits=which == "logits")
            theirs = {label: partial(evaluate, measure, data, watched, batch) for label, measure in MEASURES.items()}
            found = ratios({"invreg": audit, **theirs}, rounds=2 if quick else 5)
            for label in MEASURES:
                yield f"{which}, {name}, batches of {batch}: tmeasures' {label} / invreg", found[label]


def _watched(model: nn.Module, *, logits: bool) -> AutoActivationsModule:
    """What tmeasures reads from: all layers of a copy of the model, or only the one that gives the logits."""
    model = deepcopy(model)  # the hooks stay on it
    last = list(model.modules())[-1]
    return AutoActivationsModule(model, filter=(lambda layer: layer is last) if logits else (lambda _: True))


def main() -> None:
    """Prints a line per ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, few rounds: checks that it works")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians, each a ratio within one run")
    for label, ratio in rows(quick=options.quick):
        print(f"{ratio:8.3f}  {label}", flush=True)


if __name__ == "__main__":
    main()
