"""What should each number be? Every formula again, slowly: loops over float64, and no code shared with the package.

Everything here takes one sample at a time, as a numpy array without a batch axis. Gradients come from complex steps
instead of automatic differentiation, quadrature points from Newton's method, and the blur is one sum over all the
offsets of its window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import nn

Array = np.ndarray
Network = Callable[[Array], Array]
"""Takes points ``(P, *shape)``, real or complex, and returns their logits ``(P, C)``."""


# Errors of one sample under one element


def logit_error(reference: Array, transformed: Array) -> float:
    """Half the squared distance, averaged over positions."""
    distances = []
    for f, q in zip(_positions(reference), _positions(transformed), strict=True):
        distances.append(0.5 * math.fsum((a - b) ** 2 for a, b in zip(f, q, strict=True)))
    return math.fsum(distances) / len(distances)


def distribution_error(reference: Array, transformed: Array) -> float:
    """The Kullback-Leibler divergence, averaged over positions."""
    divergences = []
    for f, q in zip(_positions(reference), _positions(transformed), strict=True):
        pairs = zip(log_probabilities(f), log_probabilities(q), strict=True)
        divergences.append(math.fsum(math.exp(a) * (a - b) for a, b in pairs))
    return math.fsum(divergences) / len(divergences)


def normalized_logit_error(reference: Array, transformed: Array, eps: float = 1e-12) -> float:
    """The squared distance over the squared norm, each averaged over positions."""
    norms = [math.fsum(a**2 for a in f) for f in _positions(reference)]
    return 2 * logit_error(reference, transformed) / max(math.fsum(norms) / len(norms), eps)


def log_probabilities(logits: Sequence[float]) -> list[float]:
    """The log-softmax; one logit stands for the two classes of a Bernoulli distribution."""
    if len(logits) == 1:
        logits = [0.0, logits[0]]
    largest = max(logits)
    total = math.fsum(math.exp(z - largest) for z in logits)
    return [z - largest - math.log(total) for z in logits]


def predicted_classes(outputs: Array) -> list[int]:
    """The most probable class at each position."""
    return [int(f[0] > 0) if len(f) == 1 else f.index(max(f)) for f in _positions(outputs)]


def _positions(outputs: Array) -> list[list[float]]:
    """The logits at each position of one sample, ``(C, ...)``; a number is the one logit of one position."""
    outputs = np.asarray(outputs, dtype=np.float64)
    flat = outputs.reshape(outputs.shape[0] if outputs.ndim else 1, -1)
    return [[float(flat[c, p]) for c in range(flat.shape[0])] for p in range(flat.shape[1])]


# Networks


def network_of(model: nn.Sequential) -> Network:
    """The same function as a chain of flattenings, linear maps, convolutions and hyperbolic tangents, without torch."""
    layers: list[Callable[[Array], Array]] = []
    for layer in model:
        if isinstance(layer, nn.Flatten):
            layers.append(lambda z: z.reshape(len(z), -1))
        elif isinstance(layer, nn.Tanh):
            layers.append(np.tanh)
        elif isinstance(layer, nn.Linear):
            layers.append(_linear(_numbers(layer.weight), _numbers(layer.bias)))
        elif isinstance(layer, nn.Conv2d):
            layers.append(_convolution(_numbers(layer.weight), _numbers(layer.bias)))
        else:
            raise TypeError(f"The oracle does not know {layer}.")

    def network(points: Array) -> Array:
        for layer in layers:
            points = layer(points)
        return points

    return network


def _numbers(parameter: nn.Parameter) -> Array:
    return np.array(parameter.detach().tolist(), dtype=np.float64)


def _linear(weight: Array, bias: Array) -> Callable[[Array], Array]:
    return lambda z: np.stack([(z * row).sum(1) + b for row, b in zip(weight, bias, strict=True)], 1)


def _convolution(weight: Array, bias: Array) -> Callable[[Array], Array]:
    """Stride 1, no padding; as torch has it, the kernel is not mirrored."""
    height, width = weight.shape[2:]

    def convolve(z: Array) -> Array:
        rows, columns = z.shape[2] - height + 1, z.shape[3] - width + 1
        maps = []
        for kernel, b in zip(weight, bias, strict=True):
            total = b + np.zeros((len(z), rows, columns), dtype=z.dtype)
            for c, i, j in product(range(weight.shape[1]), range(height), range(width)):
                total = total + kernel[c, i, j] * z[:, c, i : i + rows, j : j + columns]
            maps.append(total)
        return np.stack(maps, 1)

    return convolve


def gradient(network: Network, x: Array, target: int) -> Array:
    """The gradient of one logit, by a complex step for each entry: exact up to rounding."""
    step = 1e-30
    points = np.repeat(x[None].astype(np.complex128), x.size, axis=0)
    for entry in range(x.size):
        points[entry].flat[entry] += 1j * step
    return (network(points)[:, target].imag / step).reshape(x.shape)


# Saliency maps


def gauss_legendre(points: int) -> list[tuple[float, float]]:
    """Points between 0 and 1 and their weights, which integrate polynomials of degree 2 * points - 1 exactly."""
    rule = []
    for i in range(points):
        z = math.cos(math.pi * (i + 0.75) / (points + 0.5))
        for _ in range(50):
            value, before = 1.0, 0.0
            for degree in range(1, points + 1):
                value, before = ((2 * degree - 1) * z * value - (degree - 1) * before) / degree, value
            slope = points * (z * value - before) / (z * z - 1)
            z -= value / slope
        rule.append(((z + 1) / 2, 1 / ((1 - z * z) * slope * slope)))
    return rule


def integrated_gradients(network: Network, x: Array, target: int, steps: int = 50) -> Array:
    """The entries times the mean gradient of the target's logit on the way from zero to ``x``."""
    total = np.zeros(x.shape)
    for share, weight in gauss_legendre(steps):
        total = total + weight * gradient(network, share * x, target)
    return x * total


def fold(
    attributions: Array,
    cut: str | None = "above",
    threshold: float = 0.9,
    kernel_size: int = 3,
    sigma: float = 1.0,
    channel_axis: int | None = 0,
) -> Array:
    """Absolute values, their sum over channels (None: none), the cut, the blur."""
    values = np.abs(attributions)
    if channel_axis is not None:
        values = values.sum(channel_axis, keepdims=True)
    return blurred(cut_off(values, cut, threshold), kernel_size, sigma, channel_axis)


def cut_off(values: Array, cut: str | None, threshold: float) -> Array:
    """A map without what lies below (or, clipped, above) a share of its maximum or one of its quantiles."""
    entries = sorted(float(v) for v in values.flat)
    kept = []
    for v in (float(v) for v in values.flat):
        if cut == "above":
            kept.append(v if v >= threshold * entries[-1] else 0.0)
        elif cut == "clip":
            kept.append(min(v, threshold * entries[-1]))
        elif cut == "quantile":
            kept.append(v if v >= entries[max(math.ceil(threshold * len(entries)), 1) - 1] else 0.0)
        else:
            kept.append(v)
    return np.array(kept).reshape(values.shape)


def cut_margin(values: Array, threshold: float) -> float:
    """How far the entry nearest to the cut lies from it, relative to the maximum: small means fragile."""
    return min(abs(float(v) / float(values.max()) - threshold) for v in values.flat)


def blurred(values: Array, kernel_size: int, sigma: float, channel_axis: int | None) -> Array:
    """A Gaussian window over all axes but the channels', wrapping around."""
    radius = kernel_size // 2
    total = math.fsum(math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1))
    reach = [[0] if axis == channel_axis else list(range(-radius, radius + 1)) for axis in range(values.ndim)]
    result = np.zeros(values.shape)
    for place in np.ndindex(*values.shape):
        terms = []
        for offset in product(*reach):
            source = tuple((p + d) % size for p, d, size in zip(place, offset, values.shape, strict=True))
            weight = math.exp(-sum(d**2 for d in offset) / (2 * sigma**2))
            terms.append(weight * float(values[source]))
        result[place] = math.fsum(terms) / total ** sum(axis != channel_axis for axis in range(values.ndim))
    return result


def saliency_similarity(a: Array, b: Array) -> float:
    """The cosine of the angle; two maps without any entry agree, one such map agrees with no other."""
    dot = math.fsum(float(u) * float(v) for u, v in zip(a.flat, b.flat, strict=True))
    length_a, length_b = (math.sqrt(math.fsum(float(u) ** 2 for u in m.flat)) for m in (a, b))
    if length_a == 0 or length_b == 0:
        return 1.0 if length_a == length_b else 0.0
    return dot / (length_a * length_b)


# Groups: what each element does to a sample, and to a map that it turns back


@dataclass(frozen=True)
class Element:
    act: Callable[[Array], Array]
    realign: Callable[[Array], Array]


def rotations(order: int) -> list[Element]:
    """Turns of the last two axes, counter-clockwise."""

    def turned(x: Array, quarters: int) -> Array:
        for _ in range(quarters % 4):
            rows, columns = x.shape[-2:]
            y = np.empty((*x.shape[:-2], columns, rows))
            for r, c in product(range(columns), range(rows)):
                y[..., r, c] = x[..., c, columns - 1 - r]
            x = y
        return x

    return [
        Element(lambda x, q=4 // order * i: turned(x, q), lambda m, q=4 // order * i: turned(m, -q))
        for i in range(order)
    ]


def translations(order: int) -> list[Element]:
    """Shifts up the last axis, wrapping around."""

    def shifted(x: Array, share: int) -> Array:
        size = x.shape[-1]
        y = np.empty(x.shape)
        for position in range(size):
            y[..., (position + share * size // order) % size] = x[..., position]
        return y

    return [Element(lambda x, i=i: shifted(x, i), lambda m, i=i: shifted(m, -i)) for i in range(order)]


def sign_flips() -> list[Element]:
    """The sign changes the values and not where they are."""
    return [Element(lambda x: x, lambda m: m), Element(lambda x: -x, lambda m: m)]


def products(first: list[Element], second: list[Element]) -> list[Element]:
    """All pairs, the second's part first."""
    return [
        Element(lambda x, g=g, h=h: g.act(h.act(x)), lambda m, g=g, h=h: g.realign(h.realign(m)))
        for g in first
        for h in second
    ]


# Groups on the weights of a layer


def unit_matrices(table: Sequence[Sequence[int]], width: int) -> list[Array]:
    """For each element, by its row of the multiplication table, how it moves the units of a layer.

    Filters in all their transforms come first, one after the other; the units left over stay.
    """
    order = len(table)
    matrices = []
    for g in range(order):
        matrix = np.zeros((width, width))
        for unit in range(width):
            number, transform = divmod(unit, order)
            stays = unit >= width // order * order
            matrix[unit if stays else number * order + table[g][transform], unit] = 1.0
        matrices.append(matrix)
    return matrices


def group_average(weight: Array, leaving: Sequence[Array], entering: Sequence[Array]) -> Array:
    """The mean over the elements of: what leaves moved, the weight, what enters moved back."""
    total = np.zeros_like(weight, dtype=np.float64)
    for after, before in zip(leaving, entering, strict=True):
        total += after @ weight @ np.linalg.inv(before)
    return total / len(leaving)


# The audit


@dataclass(frozen=True)
class Mean:
    """A mean, its standard error and the number of values."""

    mean: float
    standard_error: float | None
    count: int


def estimate(values: Sequence[float]) -> Mean:
    """The mean and the sample standard deviation over the root of the number."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, 1)
    return Mean(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) / math.sqrt(n), n)


@dataclass(frozen=True)
class Worst:
    """What a report must say of one of the samples whose logits move most."""

    index: int
    element: object
    logit_error: float
    distribution_error: float | None
    normalized_logit_error: float
    label: int | None
    prediction: int | None
    transformed_prediction: int | None


@dataclass(frozen=True)
class Audit:
    """What a report must say; ``per_element`` holds the same by the element's index, the others likewise.

    ``columns`` are the numbers of single samples, NaN or -1 where there are none; ``worst`` has all samples.
    """

    samples: int
    elements: int
    estimates: dict[str, Mean | None]
    completeness_gap: float | None
    per_element: dict[int, dict[str, Mean | None]]
    per_class: dict[int, dict[str, Mean | None]]
    per_class_element: dict[tuple[int, int], dict[str, Mean | None]]
    columns: dict[str, list[float]]
    worst: list[Worst]


ERRORS = {
    "logit_error": logit_error,
    "distribution_error": distribution_error,
    "normalized_logit_error": normalized_logit_error,
}

OF_ELEMENTS = (*ERRORS, "saliency_similarity", "accuracy", "consistency")
OF_SAMPLES = (*OF_ELEMENTS, "worst_logit_error", "group_accuracy", "orbit_accuracy")


def audit(
    outputs: Callable[[Array], Array],
    inputs: Array,
    labels: Array | None,
    elements: Sequence[Sequence[tuple[int, Element]]],
    order: int | None,
    *,
    values: bool = False,
    network: Network | None = None,
    saliency_samples: int | None = None,
    steps: int = 50,
    **folding,
) -> Audit:
    """Measures a model, sample by sample and element by element.

    Args:
        outputs: Maps one sample to its outputs, ``(C, ...)`` or ``()``.
        inputs: All samples.
        labels: Their classes, ``(N, ...)``, or None.
        elements: For each sample the elements to measure it under, with their indices.
        order: How many elements the group has, the identity included; None for infinitely many.
        values: Whether outputs are no logits.
        network: What saliency maps are made of; None leaves them out.
        saliency_samples: On how many samples, the first ones.
        steps: Quadrature points of integrated gradients.
        folding: Settings of ``fold``.
    """
    rows: list[dict[str, float]] = []
    cells: list[dict[object, dict[str, float]]] = []
    """For each sample, what it has under each element."""
    classes: list[int] = []
    worst: list[Worst] = []
    gaps, changes = [], []

    for n, x in enumerate(inputs):
        row: dict[str, float] = {}
        cell: dict[object, dict[str, float]] = {index: {} for index, _ in elements[n]}
        rows.append(row)
        cells.append(cell)

        def add(name: str, found: list[float], row=row, cell=cell) -> None:
            row[name] = math.fsum(found) / len(found)
            for here, value in zip(cell.values(), found, strict=True):
                here[name] = value

        reference = outputs(x)
        moved = [outputs(g.act(x)) for _, g in elements[n]]
        if values:
            reference, moved = np.ravel(reference), [np.ravel(m) for m in moved]
        for name, error in ERRORS.items():
            if not values or name != "distribution_error":
                add(name, [error(reference, transformed) for transformed in moved])
        row["worst_logit_error"] = max(here["logit_error"] for here in cell.values())
        predicted, truth, moved_classes = [], None, []
        if not values:
            predicted = predicted_classes(reference)
            moved_classes = [predicted_classes(transformed) for transformed in moved]
            add("consistency", [_share(c == d for c, d in zip(predicted, m, strict=True)) for m in moved_classes])
        if labels is not None and not values:
            truth = [int(label) for label in np.asarray(labels[n]).flat]
            right = [c == t for c, t in zip(predicted, truth, strict=True)]
            moved_right = [[c == t for c, t in zip(m, truth, strict=True)] for m in moved_classes]
            shares = [_share(r) for r in moved_right]
            add("accuracy", shares)
            others, row["accuracy"] = row["accuracy"], _share(right)
            row["group_accuracy"] = others if order is None else (_share(right) + (order - 1) * others) / order
            row["orbit_accuracy"] = _share(map(all, zip(right, *moved_right, strict=True)))
        if network is not None and (saliency_samples is None or n < saliency_samples):
            single = np.size(reference) == 1
            target = 0 if single else predicted[0] if labels is None else truth[0]
            attributions = integrated_gradients(network, x, target, steps)
            change = float(network(x[None])[0, target] - network(np.zeros_like(x)[None])[0, target])
            gaps.append(abs(float(attributions.sum()) - change))
            changes.append(abs(change))
            here = fold(attributions, **folding)
            similar = []
            for _, g in elements[n]:
                there = fold(integrated_gradients(network, g.act(x), target, steps), **folding)
                similar.append(saliency_similarity(here, g.realign(there)))
            add("saliency_similarity", similar)

        one_class = not values and np.ndim(reference) <= 1
        if one_class:
            row["prediction"] = predicted[0]
            if truth is not None:
                row["label"] = truth[0]
            classes.append(predicted[0] if truth is None else truth[0])
        errors = [here["logit_error"] for here in cell.values()]
        place = errors.index(max(errors))
        index = elements[n][place][0]
        row |= {"index": n, "worst_element": index if order is not None and isinstance(index, int) else -1}
        worst.append(
            Worst(
                index=n,
                element=index,
                **{name: cell[index].get(name) for name in ERRORS},
                label=row.get("label"),
                prediction=row.get("prediction"),
                transformed_prediction=moved_classes[place][0] if one_class else None,
            )
        )

    def means(found: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, Mean | None]:
        columns = {name: [one[name] for one in found if name in one] for name in names}
        return {name: estimate(column) if column else None for name, column in columns.items()}

    def of_class(label: int) -> list[int]:
        return [n for n, one in enumerate(classes) if one == label]

    known = sorted({index for cell in cells for index in cell}) if order is not None else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Audit(
        samples=len(inputs),
        elements=len(elements[0]),
        estimates=means(rows, OF_SAMPLES),
        completeness_gap=math.fsum(gaps) / math.fsum(changes) if gaps else None,
        per_element={g: means([cell[g] for cell in cells if g in cell], OF_ELEMENTS) for g in known},
        per_class={label: means([rows[n] for n in of_class(label)], OF_SAMPLES) for label in sorted(set(classes))},
        per_class_element={
            (label, g): means(found, OF_ELEMENTS)
            for label in sorted(set(classes))
            for g in known
            if (found := [cells[n][g] for n in of_class(label) if g in cells[n]])
        },
        columns={name: [row.get(name, math.nan) for row in rows] for name in names},
        worst=sorted(worst, key=lambda one: (-one.logit_error, one.index)),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of the values does not exceed."""
    for value in sorted(values):
        if sum(v <= value for v in values) / len(values) >= share:
            return value
    raise ValueError(f"No share is {share}.")


def bootstrap(values: Sequence[float], confidence: float, draws: Sequence[Sequence[int]]) -> tuple[float, float]:
    """The percentile interval of the mean, for draws of places; quantiles are linear between the means."""
    means = sorted(math.fsum(values[place] for place in draw) / len(draw) for draw in draws)

    def between(share: float) -> float:
        where = share * (len(means) - 1)
        low = min(int(where), len(means) - 1)
        high = min(low + 1, len(means) - 1)
        return means[low] + (where - low) * (means[high] - means[low])

    return between((1 - confidence) / 2), between((1 + confidence) / 2)


def _share(hits) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)


# Sensitivity


def jacobian_spectral_norm(network: Network, x: Array) -> float:
    """The largest singular value of all outputs' derivatives by all entries, by a complex step for each entry."""
    step = 1e-30
    points = np.repeat(x[None].astype(np.complex128), x.size, axis=0)
    for entry in range(x.size):
        points[entry].flat[entry] += 1j * step
    return spectral_norm(network(points).imag.reshape(x.size, -1) / step)


def spectral_norm(weight: Array) -> float:
    """The largest singular value of a matrix; of more axes, those after the first together make the columns."""
    return float(np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)[0])
