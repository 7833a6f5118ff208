"""Figure 4: as the data drift, augmentation loses its invariance, weight-tying never and regularisation hardly.

    python -m examples.paper.drift [--quick]

The test images are blended one by one, ``(1 - beta) MNIST + beta Fashion-MNIST``, each data set scaled to zero mean and
unit deviation of its own training images; labels are MNIST's. Over the share beta: the distribution error, and the
accuracy over the orbit, relative to that without drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from examples.datasets import Labelled
from examples.paper.runs import Workplace, splits, workplace
from examples.paper.saliency_orbits import compared
from examples.paper.training import GROUPS
from invreg import Estimate, FiniteGroup, measure_drift
from invreg.functional import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BETAS = tuple(step / 10 for step in range(11))
IMAGES = 10_000
FORMS = {"DA": "o-", "IR": "s--", "WT": "^:"}
"""Markers and lines, which can be told apart in grey."""
AXES = {"distribution error": "distribution error (DI), nats", "accuracy ratio": "accuracy, relative to β = 0"}


def compute(
    models: Mapping[str, Model], source: Labelled, target: Tensor, group: FiniteGroup, betas: Sequence[float] = BETAS
) -> dict[str, Any]:
    """Measures each model on blends.

    Args:
        models: By method.
        source: Images ``(N, 1, H, W)`` and labels ``(N,)``.
        target: Images to blend them with, ``(M, 1, H, W)``.
        group: The group.
        betas: Shares of the target, the first one 0.

    Returns:
        Plain numbers: by method, for each share, the distribution error, the accuracy over the orbit and its ratio to
        that of the first share, each as a mean and the standard error of it.
    """
    batches = list(zip(*(part.split(500) for part in source), strict=True))
    result: dict[str, Any] = {"images": min(len(source[0]), len(target)), "betas": list(betas), "methods": {}}
    for name, model in models.items():
        report = measure_drift(model, batches, target.split(500), group, betas, progress=False)
        result["methods"][name] = {
            "distribution error": told([each.distribution_error for each in report.reports]),
            "accuracy": told([each.group_accuracy for each in report.reports]),
            "accuracy ratio": told(report.accuracy_ratios),
        }
    return result


def told(estimates: Sequence[Estimate | None]) -> dict[str, list[float | None]]:
    """Means and standard errors; None where there is none, as for a ratio to an accuracy of zero."""
    return {
        "mean": [each.mean if each else None for each in estimates],
        "standard error": [each.standard_error if each else None for each in estimates],
    }


def check(result: dict[str, Any]) -> None:
    """Raises unless weight-tying stays invariant throughout, and regularisation more so than augmentation."""
    error = {name: method["distribution error"]["mean"] for name, method in result["methods"].items()}
    assert max(error["WT"]) < 1e-6, f"weight-tying must keep invariance: DI {error['WT']}"
    for beta, da, ir in zip(result["betas"], error["DA"], error["IR"], strict=True):
        assert ir < da, f"β = {beta}: the regulariser must keep more invariance: DI {ir} and {da}"


def draw(results: Mapping[str, dict[str, Any]]) -> Figure:
    """Both measures over the share: a row for each group.

    Args:
        results: From ``compute``, by group.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4 * len(results) + 0.6), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False, sharex=True)
    for (group, result), row in zip(results.items(), axes, strict=True):
        for (measure, label), axis in zip(AXES.items(), row, strict=True):
            for name, method in result["methods"].items():
                values = zip(result["betas"], *method[measure].values(), strict=True)
                known = [(beta, mean, 2 * (error or 0)) for beta, mean, error in values if mean is not None]
                if known:
                    betas, means, bars = zip(*known, strict=True)
                    axis.errorbar(betas, means, yerr=bars, fmt=FORMS[name], capsize=3, markersize=5, label=name)
            axis.set(ylim=(0, None), ylabel=label, title=group)
            if axis.containers:
                axis.legend(fontsize="small", title="± 2 standard errors", title_fontsize="small")
    for axis in axes[-1]:
        axis.set_xlabel("β, share of Fashion-MNIST in each image")
    figure.suptitle("Drift from MNIST to Fashion-MNIST", size="medium")
    return figure


def main(place: Workplace) -> None:
    """Trains what is missing, and writes the figure."""
    results: dict[str, Any] = {}
    for name, runs in compared(place).items():
        models = {method: place.trained(run) for method, run in runs.items()}
        data = models["DA"][1]
        others = data.train if place.quick else splits("fashion-mnist", place.data).test
        source = (data.test[0][:IMAGES], data.test[1][:IMAGES])
        result = compute({method: model for method, (model, _) in models.items()}, source, others[0], GROUPS[name])
        settings = {"seed": 0, "weights": {method: run.weight for method, run in runs.items() if run.weight}}
        results[name] = {"group": repr(GROUPS[name]), **settings, **result}
    place.save("drift", results)
    draw(results).savefig(place.results / "drift.png", dpi=120)
    if not place.quick:
        for result in results.values():
            check(result)


if __name__ == "__main__":
    main(workplace(description=__doc__))
