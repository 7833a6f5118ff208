"""Figure 2: inside an augmented model the turns of one image lie apart, inside a regularised one together.

    python -m examples.paper.embedding [--quick]

The penultimate layer of the augmented model (DA) for R4, and of the regularised one (IR) for contrast. Distances are
taken in the layer itself: between an image and its turns, compared with those between different upright images of one
class. A t-SNE map of images, each under a turn of its own, shows where the turns of one image land.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from examples.paper.runs import Workplace, workplace
from examples.paper.saliency_orbits import compared
from examples.paper.training import GROUPS
from invreg import FiniteGroup
from invreg.functional import Model, orbit_outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 0
"""Of the turns and of t-SNE."""
IMAGES = 1_000
"""As many as can be told apart in the picture."""


def features_of(model: nn.Module) -> Model:
    """The model without its last layer."""
    assert isinstance(model, nn.Sequential), f"the network is layers in a row: got {type(model).__name__}"
    return model[:-1]


def distances(orbits: Tensor, labels: Tensor) -> dict[str, float]:
    """How far the group moves features, compared with how far images of one class lie apart.

    Args:
        orbits: Features at each image under each element, the identity first: ``(order, N, F)``.
        labels: The images' classes, ``(N,)``.

    Returns:
        The mean distance between an image and its transforms; that between all pairs of different images of a class,
        not transformed; the ratio of the two; and which share of those other images lies nearer to an image than its
        own transform does.
    """
    moved = (orbits[1:] - orbits[0]).norm(dim=-1)
    apart, nearer = [], []
    for label in labels.unique():
        rows = labels == label
        apart.append(torch.pdist(orbits[0][rows]))
        between = torch.cdist(orbits[0][rows], orbits[0][rows], compute_mode="donot_use_mm_for_euclid_dist")
        others = (between.fill_diagonal_(torch.inf) < moved[:, rows, None]).sum(2) / (int(rows.sum()) - 1)
        nearer.append(others.flatten())
    within, between_images = moved.mean().item(), torch.cat(apart).mean().item()
    return {
        "within orbits": within,
        "within classes": between_images,
        "ratio": within / between_images,
        "nearer": torch.cat(nearer).mean().item(),
    }


def embed(features: Tensor) -> Tensor:
    """Two coordinates for each row ``(N, F)`` by t-SNE: the same ones each time on the same machine."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, len(features) / 4)
    with threadpool_limits(1):  # so that sums are taken in the same order
        coordinates = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features.numpy())
    return torch.from_numpy(coordinates)


@torch.no_grad()
def compute(models: Mapping[str, Model], images: Tensor, labels: Tensor, group: FiniteGroup) -> dict[str, Any]:
    """Measures and maps the features of each model.

    Args:
        models: By method: from images to features ``(N, F)``.
        images: Shape ``(N, 1, H, W)``.
        labels: Their classes, ``(N,)``.
        group: The group.

    Returns:
        Plain numbers: by method, the distances, the coordinates of the images, each under an element of its own, and
        those of one image under all elements. That image is the one that the group moves, in each model, most nearly
        as far as it moves images on average.
    """
    elements = group.sample(len(images), torch.Generator().manual_seed(SEED))
    orbits = {name: orbit_outputs(model, group.orbit(images)) for name, model in models.items()}
    moved = {name: (each[1:] - each[0]).norm(dim=-1).mean(0) for name, each in orbits.items()}
    traced = int(sum((each / each.mean() - 1).abs() for each in moved.values()).argmin())
    others = torch.arange(len(images)) != traced
    result: dict[str, Any] = {
        "images": len(images),
        "image": traced,
        "label": int(labels[traced]),
        "labels": labels[others].tolist(),
        "methods": {},
    }
    for name, each in orbits.items():
        shown = each[elements, torch.arange(len(images))][others]
        coordinates = embed(torch.cat([each[:, traced], shown])).double().round(decimals=1)
        result["methods"][name] = {
            **distances(each, labels),
            "orbit": coordinates[: group.order].tolist(),
            "others": {"x": coordinates[group.order :, 0].tolist(), "y": coordinates[group.order :, 1].tolist()},
        }
    return result


def check(result: dict[str, Any]) -> None:
    """Raises unless the regulariser keeps orbits closer together, compared with classes."""
    ratio = {name: method["ratio"] for name, method in result["methods"].items()}
    assert ratio["IR"] < ratio["DA"], f"the regulariser must keep the turns of an image together: {ratio}"


def draw(result: dict[str, Any]) -> Figure:
    """The maps, in each of which the orbit of one image is traced.

    Args:
        result: From ``compute``.

    Returns:
        The picture, a panel for each model.
    """
    from matplotlib.figure import Figure

    methods = result["methods"]
    figure = Figure(figsize=(4.8 * len(methods), 5.4), layout="constrained")
    axes = figure.subplots(1, len(methods), squeeze=False)[0]
    labels = torch.tensor(result["labels"])
    for axis, (name, method) in zip(axes, methods.items(), strict=True):
        x, y = (torch.tensor(method["others"][which]) for which in ("x", "y"))
        for label in labels.unique().tolist():
            colour = f"C{label}"
            rows = labels == label
            axis.scatter(x[rows], y[rows], s=14, marker=f"${label}$", color=colour, linewidths=0.2)
        around = [*method["orbit"], method["orbit"][0]]
        axis.plot(*zip(*around, strict=True), "k-", linewidth=1.5)
        axis.plot(*zip(*method["orbit"], strict=True), "ko", markersize=6, markerfacecolor="white", linestyle="")
        axis.set(xticks=[], yticks=[], xlabel="t-SNE, first coordinate", ylabel="t-SNE, second coordinate")
        axis.set_title(
            f"{name}: a turn moves an image {method['ratio']:.2f} times as far as\n"
            f"another of its class lies; {method['nearer']:.1%} of them lie nearer",
            size="medium",
        )
    figure.suptitle(
        f"Penultimate layer, {result['images']} test images, each turned at random.\n"
        f"Circles: image {result['image']}, a {result['label']}, under all turns. "
        "Distances in the layer itself",
        size="medium",
    )
    return figure


def main(place: Workplace) -> None:
    """Trains what is missing, and writes the figure."""
    runs = compared(place)["R4"]
    models = {method: place.trained(runs[method]) for method in ("DA", "IR")}
    images, labels = (part[: min(IMAGES, 4 * place.looked_at)] for part in models["DA"][1].test)
    features = {method: features_of(model) for method, (model, _) in models.items()}
    settings = {"seed": SEED, "weights": {"IR": runs["IR"].weight}}
    result = {"group": repr(GROUPS["R4"]), **settings, **compute(features, images, labels, GROUPS["R4"])}
    place.save("embedding", result)
    draw(result).savefig(place.results / "embedding.png", dpi=120)
    if not place.quick:
        check(result)


if __name__ == "__main__":
    main(workplace(description=__doc__))
