"""Proposition 3.1: under gradient flow on the logit error a linear model's largest singular value never grows.

    python -m examples.paper.gradient_flow [--quick]

For logits ``h(x) = W x`` the logit error, averaged over images and over the elements other than the identity, is ``LI =
tr(W S W^T) / 2`` with ``S`` the mean of ``e e^T`` and ``e = x - g x``. So the flow ``W' = -dLI/dW = -W S`` has come to
``W(t) = W(0) exp(-S t)`` at time ``t``, and no singular value of ``W`` can grow, since ``exp(-S t)`` has none above 1.
The paper sums where this averages, which changes the unit of time only.

What remains for ever is what ``S`` does not see: the part of ``W`` that is invariant already. That is what
``invreg.symmetrize`` makes of a layer at once.

This follows the gradient of the library's own regulariser in small steps and compares it with the closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from examples.datasets import digits
from examples.paper.runs import Workplace, workplace
from invreg import CyclicRotation, FiniteGroup, L2InvarianceLoss, symmetrize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 0
IMAGES = 100
"""So many that only what is invariant never moves; with fewer, some pixels are dark in all of them."""
GROUP = CyclicRotation(4)
STEPS = (0.2, 0.1, 0.05)
"""Time steps of the integration, in the unit of time: one over the largest eigenvalue of S."""
TIMES = (1, 2, 4, 8, 16, 32)
"""When the integration is compared with the closed form, in the same unit."""

Gradient = Callable[[Tensor], Tensor]
Advance = Callable[[Tensor, Gradient, float], Tensor]
"""Takes a weight, the gradient and a time step; returns the weight a step later."""


def descend(weight: Tensor, gradient: Gradient, step: float) -> Tensor:
    """A step of gradient descent, which is the flow to first order."""
    return weight - step * gradient(weight)


def runge_kutta(weight: Tensor, gradient: Gradient, step: float) -> Tensor:
    """A step that follows the flow to fourth order."""
    a = -gradient(weight)
    b = -gradient(weight + step / 2 * a)
    c = -gradient(weight + step / 2 * b)
    d = -gradient(weight + step * c)
    return weight + step / 6 * (a + 2 * b + 2 * c + d)


METHODS = {"gradient descent": (descend, 1), "Runge-Kutta": (runge_kutta, 4)}
"""How to follow the flow, and to which order of the time step."""
FORMS = {"gradient descent": ("s", "--", 9, "tab:blue"), "Runge-Kutta": ("o", ":", 5, "tab:red")}
"""Marker, line of the order, size of the marker and colour: they can be told apart in grey."""


def scatter(images: Tensor, group: FiniteGroup) -> Tensor:
    """The mean of ``e e^T``, with ``e = x - g x`` for each image ``(N, ...)`` and each element but the identity."""
    moved = (images - group.orbit(images, identity=False)).flatten(0, 1).flatten(1)
    return moved.T @ moved / len(moved)


def closed_form(weight: Tensor, scatter: Tensor, time: float) -> Tensor:
    """Where the flow from a weight ``(classes, pixels)`` has come to."""
    eigenvalues, vectors = torch.linalg.eigh(scatter)
    return weight @ vectors * (-eigenvalues.clamp_min(0) * time).exp() @ vectors.T  # none is negative but by rounding


def gradient_of_error(images: Tensor, group: FiniteGroup) -> Gradient:
    """The gradient of the library's regulariser by the weight of a linear model, by automatic differentiation."""
    regulariser = L2InvarianceLoss(group)

    def gradient(weight: Tensor) -> Tensor:
        weight = weight.detach().requires_grad_()
        return torch.autograd.grad(regulariser(lambda x: x.flatten(1) @ weight.T, images), weight)[0]

    return gradient


def symmetrized(weight: Tensor, images: Tensor, group: FiniteGroup) -> Tensor:
    """What ``invreg.symmetrize`` makes of a layer with this weight, not scaled up again."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    model = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.copy_(weight)
    symmetrize(model, group, images[:2], rescale=False).remove()
    return layer.weight.detach()


def compute(images: Tensor, weight: Tensor, group: FiniteGroup = GROUP) -> dict[str, Any]:
    """Follows the flow.

    Args:
        images: Shape ``(N, ...)``, float64.
        weight: Where the flow begins, ``(classes, pixels)``, float64.
        group: The group.

    Returns:
        Plain numbers: the largest singular values over time, in closed form and followed; for each time step the
        largest difference between the two, relative to the closed form; and the limit.
    """
    s = scatter(images, group)
    eigenvalues = torch.linalg.eigvalsh(s)
    unit = 1 / eigenvalues[-1].item()
    gradient = gradient_of_error(images, group)
    limit = symmetrized(weight, images, group)
    followed = {}
    for name, (advance, order) in METHODS.items():
        paths = {
            step: follow(weight, gradient, advance, step * unit, [time * unit for time in TIMES]) for step in STEPS
        }
        exact = [closed_form(weight, s, time * unit) for time in TIMES]
        followed[name] = {
            "order": order,
            "differences": {f"{step:g}": max(map(difference, path, exact)) for step, path in paths.items()},
            "times": list(TIMES),
            "largest singular values": [largest(each) for each in paths[STEPS[-1]]],
        }
    times = [0.0, *torch.logspace(-2, 5, 71, dtype=torch.float64).tolist()]
    exact = [closed_form(weight, s, time * unit) for time in times]
    return {
        "images": len(images),
        "shape of the weight": list(weight.shape),
        "unit of time": unit,
        "eigenvalues of S": eigenvalues.tolist(),
        "rank of S": int(torch.linalg.matrix_rank(s, hermitian=True)),
        "times": times,
        "largest singular values": [largest(each) for each in exact],
        "of the symmetrised weight": largest(limit),
        "distance to the symmetrised weight": [difference(each, limit) for each in exact],
        "followed": followed,
    }


def follow(weight: Tensor, gradient: Gradient, advance: Advance, step: float, times: Sequence[float]) -> list[Tensor]:
    """Where steps of one length have come to at rising times, which are multiples of it."""
    path = []
    for before, time in pairwise((0.0, *times)):
        for _ in range(round((time - before) / step)):
            weight = advance(weight, gradient, step)
        path.append(weight)
    return path


def difference(matrix: Tensor, exact: Tensor) -> float:
    """The relative difference of two matrices, by all their entries."""
    return ((matrix - exact).norm() / exact.norm()).item()


def largest(matrix: Tensor) -> float:
    """The largest singular value."""
    return torch.linalg.matrix_norm(matrix, 2).item()


def check(result: dict[str, Any]) -> None:
    """Raises unless the proposition holds, and the gradient of the library's regulariser follows it."""
    values = result["largest singular values"]
    grown = max(after - before for before, after in pairwise(values))
    for followed in result["followed"].values():
        path = followed["largest singular values"]
        grown = max(grown, *(after - before for before, after in pairwise([values[0], *path])))
    assert grown <= 1e-12 * values[0], f"the largest singular value must never grow: by {grown}"
    assert abs(values[-1] / result["of the symmetrised weight"] - 1) < 1e-6, "what remains is the symmetrised weight"
    assert result["distance to the symmetrised weight"][-1] < 1e-6, "what remains is the symmetrised weight"
    for name, followed in result["followed"].items():
        coarse, *_, fine = followed["differences"].values()
        assert fine < STEPS[-1] ** followed["order"], f"{name} must follow the closed form: {fine}"
        shrunk, expected = coarse / fine, (STEPS[0] / STEPS[-1]) ** followed["order"]
        assert expected / 2 < shrunk < expected * 2, f"{name}: {expected:g} times closer expected, got {shrunk:.3g}"


def draw(result: dict[str, Any]) -> Figure:
    """The largest singular value over time, and how the difference falls with the time step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(result["times"][1:], result["largest singular values"][1:], "k-", label="closed form W(0) exp(-S t)")
    left.axhline(result["of the symmetrised weight"], color="grey", linestyle="--", label="symmetrised W(0)")
    for name, followed in result["followed"].items():
        form, line, size, colour = FORMS[name]
        marks = {"marker": form, "markerfacecolor": "none", "linestyle": ""}
        values = followed["largest singular values"]
        left.plot(followed["times"], values, **marks, markersize=size, color=colour, label=f"{name} on LI")
        steps = [float(step) for step in followed["differences"]]
        differences = list(followed["differences"].values())
        right.loglog(steps, differences, **marks, color=colour, label=name)
        slope = [differences[0] * (step / steps[0]) ** followed["order"] for step in steps]
        right.loglog(steps, slope, line, color="grey", label=f"order {followed['order']}")
    left.set(
        ylim=(0, None), xlabel="time t, in units of 1 / largest eigenvalue of S", ylabel="largest singular value of W"
    )
    right.set(xlabel="time step, in the same unit", ylabel="largest relative difference\nto the closed form")
    steps = sorted(steps)
    right.set_xticks(steps, [f"{step:g}" for step in steps])
    right.set_xticks([], minor=True)
    for axes in (left, right):
        axes.legend(fontsize="small")
    figure.suptitle("A linear model under gradient flow on the logit error (LI)", fontsize="medium")
    return figure


def main(place: Workplace) -> None:
    """Computes, checks and draws; trains nothing."""
    images = digits().train[0][:IMAGES].double()
    rng = torch.Generator().manual_seed(SEED)
    weight = torch.randn(9, images[0].numel(), generator=rng, dtype=torch.float64) / images[0].numel() ** 0.5
    result = {"group": repr(GROUP), "seed": SEED, "data": "digits", **compute(images, weight)}
    place.save("gradient_flow", result)
    draw(result).savefig(place.results / "gradient_flow.png", dpi=120)
    check(result)


if __name__ == "__main__":
    main(workplace(description=__doc__))
