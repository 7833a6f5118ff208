"""Figure 5: a network that a regulariser has made invariant reacts less to any change of its input.

    python -m examples.paper.jacobian [--quick]

The largest singular value of the input Jacobian says how far a small change of the image can move the logits at most.
Each regulariser's weight is tuned to a saliency similarity of 0.95 on validation images, or as near to that as it
comes; DA has none. All are measured
on the same test images, not transformed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from examples.paper.runs import Workplace, workplace
from examples.paper.training import GROUPS, LOSSES, Run, untuned
from invreg import jacobian_spectral_norm
from invreg.functional import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INVARIANT = 0.9
"""The saliency similarity above which a model is taken to be invariant; it was tuned on other images, to 0.95."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def compute(models: Mapping[str, Model], images: Tensor) -> dict[str, Any]:
    """Measures each model.

    Args:
        models: By regulariser.
        images: Shape ``(N, 1, H, W)``.

    Returns:
        Plain numbers: by regulariser, the mean, its standard error and the quantiles over images.
    """
    result = {}
    for name, model in models.items():
        norms = torch.cat([jacobian_spectral_norm(model, part) for part in images.split(250)]).double()
        quantiles = norms.quantile(torch.tensor(QUANTILES, dtype=norms.dtype))
        result[name] = {
            "mean": norms.mean().item(),
            "standard error": (norms.std() / len(norms) ** 0.5).item(),
            "quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, quantiles.tolist(), strict=True)},
        }
    return result


def check(result: dict[str, Any]) -> None:
    """Raises unless each model that a regulariser has made invariant reacts less than the one without."""
    mean = {name: one["mean"] for name, one in result["models"].items()}
    invariant = [name for name in LOSSES if result["models"][name]["SI"] > INVARIANT]
    assert invariant, "a regulariser must make a model invariant"
    for name in invariant:
        assert mean[name] < mean["DA"], f"{name}: a regularised model must react less: {mean}"


def draw(results: Mapping[str, dict[str, Any]]) -> Figure:
    """A box with quantiles for each model, a panel for each group.

    Args:
        results: By group, ``models`` with what ``compute`` found of each, its ``SI`` and its ``accuracy``.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(results), 4.4), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for (group, result), axis in zip(results.items(), axes, strict=True):
        keys = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [
            {"label": label(name, one), "mean": one["mean"], **dict(zip(keys, one["quantiles"].values(), strict=True))}
            for name, one in result["models"].items()
        ]
        black, diamond = {"color": "black"}, {"marker": "D", "markerfacecolor": "black", "markeredgecolor": "black"}
        axis.bxp(boxes, showfliers=False, showmeans=True, medianprops=black, meanprops={**diamond, "markersize": 5})
        axis.set(yscale="log", title=group)
        axis.tick_params(axis="x", labelsize="small")
        axis.grid(axis="y", which="both", alpha=0.3)
    axes[0].set_ylabel("largest singular value of the input Jacobian,\nlogits per unit of the scaled input")
    counts = " and ".join(sorted({str(result["images"]) for result in results.values()}))
    figure.supxlabel(
        f"{counts} test images. Box: quartiles and median, whiskers: 5 % and 95 %, diamond: mean.\n"
        "SI: saliency similarity, acc: accuracy over the orbit, both on test images",
        size="small",
    )
    return figure


def label(name: str, one: dict[str, Any]) -> str:
    """What stands below a box."""
    return f"{name}\nSI {one['SI']:.2f}\nacc {100 * one['accuracy']:.1f} %"


def main(place: Workplace) -> None:
    """Trains what is missing, and writes the figure."""
    first = {(group, loss): untuned(group, loss) for group in GROUPS for loss in LOSSES}
    tuned = dict(zip(first, place.tuned(list(first.values())), strict=True))
    runs = {group: {"DA": Run(group, "DA"), **{loss: tuned[group, loss] for loss in LOSSES}} for group in GROUPS}
    records = place.records([run for by_loss in runs.values() for run in by_loss.values()])
    results: dict[str, Any] = {}
    for name, by_loss in runs.items():
        models = {loss: place.trained(run) for loss, run in by_loss.items()}
        images = models["DA"][1].test[0][: place.looked_at]
        found = compute({loss: model for loss, (model, _) in models.items()}, images)
        for loss, run in by_loss.items():
            test = records[run]["test"]
            found[loss] |= {"weight": run.weight, "SI": test["SI"], "accuracy": test["accuracy"]}
        results[name] = {"group": repr(GROUPS[name]), "seed": 0, "images": len(images), "models": found}
    place.save("jacobian", results)
    draw(results).savefig(place.results / "jacobian.png", dpi=120)
    if not place.quick:
        for result in results.values():
            check(result)


if __name__ == "__main__":
    main(workplace(description=__doc__))
