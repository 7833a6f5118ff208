"""Figures 1 and 3: augmentation teaches where to look for each turn anew, regularisation and weight-tying once for all.

    python -m examples.paper.saliency_orbits [--quick]

Where does a model look to see its digit, as the digit is turned (R4) or shifted (T3)? Each map is moved back onto the
image as it was. They differ for augmentation (DA), and agree for regularisation (IR) and weight-tying (WT).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from examples.paper.runs import Workplace, workplace
from examples.paper.training import GROUPS, Run
from invreg import FiniteGroup, SaliencyMap, saliency_similarity
from invreg.functional import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELEMENTS = {
    "R4": ("upright", "turned by 90°", "turned by 180°", "turned by 270°"),
    "T3": ("in its place", "shifted by 1/3", "shifted by 2/3"),
}


def compared(place: Workplace) -> dict[str, dict[str, Run]]:
    """The runs that the figures compare, trained and audited: by group and method, with seed 0."""
    runs = {
        group: {"DA": Run(group, "DA"), "IR": regularised, "WT": Run(group, "WT")}
        for group, regularised in place.regularised().items()
    }
    place.records([run for by_method in runs.values() for run in by_method.values()])
    return runs


def realigned_maps(model: Model, images: Tensor, labels: Tensor, group: FiniteGroup) -> Tensor:
    """Where a model looks in images ``(N, 1, H, W)`` under each element, moved back: ``(order, N, 1, H, W)``."""
    saliency = SaliencyMap()
    maps = []
    for g in group.elements():
        moved = saliency(model, group.act(g, images), labels)
        maps.append(group.act_on_map(group.inverse(g), moved))
    return torch.stack(maps)


def compute(models: Mapping[str, Model], images: Tensor, labels: Tensor, group: FiniteGroup) -> dict[str, Any]:
    """Compares the maps of an orbit with those at the images as they are.

    Args:
        models: By method.
        images: Shape ``(N, 1, H, W)``.
        labels: Their classes, whose logits are explained: ``(N,)``.
        group: The group.

    Returns:
        Plain values: by method the mean similarity, and for one image the similarity of each element's map and the
        maps. That image is the one on which each model's similarity is nearest to its mean. Pictures are rows of bytes
        in hexadecimal; those of maps are relative to the map's largest value, zero where that is zero.
    """
    maps = {name: realigned_maps(model, images, labels, group) for name, model in models.items()}
    similarity = {name: torch.stack([saliency_similarity(m[0], moved) for moved in m]) for name, m in maps.items()}
    si = {name: each[1:].mean(0) for name, each in similarity.items()}
    typical = int(sum((each - each.mean()).abs() for each in si.values()).argmin())
    image = images[typical, 0] - images[typical].min()
    return {
        "images": len(images),
        "image": typical,
        "label": int(labels[typical]),
        "picture": packed(image),
        "methods": {
            name: {
                "mean similarity": si[name].mean().item(),
                "similarities": similarity[name][:, typical].tolist(),
                "maps": [packed(each[typical, 0]) for each in maps[name]],
            }
            for name in models
        },
    }


def packed(picture: Tensor) -> list[str]:
    """Rows ``(H, W)`` without negative values as bytes in hexadecimal, 255 for the largest value."""
    scaled = 255 * picture / picture.max().clamp_min(torch.finfo(picture.dtype).tiny)
    return [bytes(row).hex() for row in scaled.round().byte().tolist()]


def unpacked(rows: list[str]) -> Tensor:
    """What ``packed`` was given, between 0 and 1."""
    return torch.tensor([list(bytes.fromhex(row)) for row in rows]) / 255


def check(result: dict[str, Any]) -> None:
    """Raises unless weight-tying makes maps agree, and the regulariser makes them agree better."""
    si = {name: method["mean similarity"] for name, method in result["methods"].items()}
    assert si["WT"] > 0.999, f"weight-tying must make the maps agree: {si['WT']}"
    assert si["DA"] + 0.1 < si["IR"], f"the regulariser must make the maps agree better: {si}"


def draw(result: dict[str, Any], group: FiniteGroup, elements: tuple[str, ...]) -> Figure:
    """A row of maps for each model, below the images that it is shown.

    Args:
        result: From ``compute``.
        group: The group.
        elements: What its elements do, in words.

    Returns:
        The picture.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    methods = result["methods"]
    image = unpacked(result["picture"])
    figure = Figure(figsize=(2 * group.order + 0.6, 2.1 * len(methods) + 3.1), layout="constrained")
    figure.suptitle(
        f"Where does each model look to see a {result['label']}?\nDark: the pixels that count most, moved back onto\n"
        "the image as it was (pale)",
        size="medium",
    )
    axes = figure.subplots(len(methods) + 1, group.order, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    shown = group.orbit(image[None, None])
    for axis, moved, element in zip(axes[0], shown, elements, strict=True):
        axis.set_title(element, size="medium")
        axis.imshow(moved[0, 0].numpy(), cmap="Greys")
    axes[0, 0].set_ylabel("the model\nis shown")
    for (name, method), row in zip(methods.items(), axes[1:], strict=True):
        row[0].set_ylabel(f"{name}, mean\nsimilarity {method['mean similarity']:.2f}")
        for i, axis in enumerate(row):
            salient = unpacked(method["maps"][i]).numpy()
            axis.imshow(image.numpy(), cmap="Greys", alpha=0.25)
            axis.imshow(salient, cmap=ListedColormap(["darkred"]), alpha=salient)
            axis.set_xlabel(f"similarity {method['similarities'][i]:.2f}" if i else "reference")
    figure.supxlabel(f"Test image {result['image']}, a typical one of {result['images']}", size="small")
    return figure


def main(place: Workplace) -> None:
    """Trains what is missing, and writes both figures."""
    results: dict[str, Any] = {}
    for name, runs in compared(place).items():
        models = {method: place.trained(run) for method, run in runs.items()}
        images, labels = (part[: min(256, place.looked_at)] for part in models["DA"][1].test)
        group = GROUPS[name]
        result = compute({method: model for method, (model, _) in models.items()}, images, labels, group)
        settings = {"seed": 0, "weights": {method: run.weight for method, run in runs.items() if run.weight}}
        results[name] = {"group": repr(group), **settings, **result}
    place.save("saliency_orbits", results)
    for name, result in results.items():
        draw(result, GROUPS[name], ELEMENTS[name]).savefig(place.results / f"saliency_{name.lower()}.png", dpi=120)
    if not place.quick:
        for result in results.values():
            check(result)


if __name__ == "__main__":
    main(workplace(description=__doc__))
