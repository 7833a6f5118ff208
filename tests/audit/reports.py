"""Reports by hand, of any size, for what draws and writes them."""

import math
from dataclasses import replace

import numpy as np
import torch

from invreg.audit.estimate import Estimate
from invreg.audit.histogram import LogHistogram
from invreg.audit.report import InvarianceReport, SliceReport
from invreg.audit.samples import SaliencyExample, SampleTable, SkippedSamples, WorstSample

SAMPLES = 500


def share(mean: float, count: int = SAMPLES) -> Estimate:
    """A share of samples, with the standard error that it then has."""
    mean = min(max(mean, 0.0), 1.0)
    return Estimate(mean, math.sqrt(mean * (1 - mean) / count), count)


def error(mean: float, count: int = SAMPLES) -> Estimate:
    return Estimate(mean, 0.06 * mean, count)


def part(name: str, size: float, element: int | None = None, label: int | None = None, **changes) -> SliceReport:
    """A part of the data whose errors grow with ``size``, from 0 to about 1."""
    fields = {
        "name": name,
        "element": element,
        "label": label,
        "logit_error": error(12 * size),
        "distribution_error": error(1.5 * size),
        "normalized_logit_error": error(0.4 * size),
        "saliency_similarity": share(1 - 0.8 * size, 64),
        "accuracy": share(0.93 - 0.4 * size),
        "group_accuracy": share(0.9 - 0.5 * size) if element is None else None,
        "orbit_accuracy": share(0.8 - 0.6 * size) if element is None else None,
        "consistency": share(1 - 0.5 * size),
        "action_error": None,
        "action_logit_error": None,
    }
    return SliceReport(**(fields | changes))


def report(elements: int = 3, classes: int = 10, samples: int = SAMPLES, **changes) -> InvarianceReport:
    """A report on the rotations of digits, with everything that a report can have but noise and failures."""
    rng = np.random.default_rng(0)
    angles = [360 * index / (elements + 1) for index in range(1, elements + 1)]
    sizes = [0.5 - 0.5 * math.cos(math.radians(angle)) for angle in angles]
    per_element = tuple(
        part(f"{angle:.4g}°", size, element=index)
        for index, (angle, size) in enumerate(zip(angles, sizes, strict=True), start=1)
    )
    hard = rng.uniform(0.2, 1, classes)
    per_class = tuple(part(f"class {label}", hard[label], label=label) for label in range(classes))
    pairs = tuple(
        part(f"{of_class.name}, {of.name}", hard[of_class.label] * size, of.element, of_class.label)
        for of_class in per_class
        for of, size in zip(per_element, sizes, strict=True)
    )
    errors = 6 * rng.lognormal(0, 1, samples)
    errors[: samples // 20] = 0
    columns = {
        "index": np.arange(samples),
        "label": rng.integers(0, max(classes, 1), samples),
        "logit_error": errors,
        "worst_logit_error": errors * rng.uniform(1, 2, samples),
    }
    fields = {
        "model": "Sequential",
        "group": f"CyclicRotation({elements + 1})",
        "is_group": True,
        "output_action": None,
        "seen": samples,
        "samples": samples,
        "elements": elements,
        "exhaustive": True,
        "ended": "complete",
        "logit_error": error(6.2),
        "distribution_error": error(0.71),
        "normalized_logit_error": error(0.22),
        "worst_logit_error": error(9.4),
        "saliency_similarity": share(0.61, 64),
        "saliency": "SaliencyMap()",
        "completeness_gap": 0.012,
        "accuracy": share(0.952),
        "group_accuracy": share(0.741),
        "orbit_accuracy": share(0.512),
        "consistency": share(0.731),
        "action_error": None,
        "action_logit_error": None,
        "noise_error": None,
        "noise_excess": None,
        "noise_consistency": None,
        "per_element": per_element,
        "per_class": per_class,
        "classes_by": "label" if classes else None,
        "per_class_element": pairs,
        "worst_samples": worst_samples(),
        "skipped": 0,
        "skipped_samples": (),
        "per_sample": SampleTable(columns),
        "histograms": {},
        "provenance": {"invreg": "1.0", "torch": "2.9", "seed": 0, "time": "2026-01-02T03:04:05Z", "data": None},
        "saliency_examples": saliency_examples(),
    }
    return InvarianceReport(**(fields | changes))


def continuous(**changes) -> InvarianceReport:
    """Of a group without indexed elements, whose action interpolates."""
    fields = {
        "group": "PlanarRotation()",
        "elements": 4,
        "exhaustive": False,
        "action_error": error(0.08),
        "action_logit_error": error(0.9),
        "per_class_element": (),
    }
    return replace(report(), per_element=(), **(fields | changes))


def transforms(**changes) -> InvarianceReport:
    """Of a set that is no group, with long names."""
    names = ("brighter", "gaussian_blur(kernel_size=5)", "gaussian_blur(kernel_size=7)", "jpeg(quality=10)")
    fields = {
        "group": f"TransformationSet([{', '.join(names)}])",
        "is_group": False,
        "elements": 4,
        "per_element": tuple(part(name, 0.1 + 0.2 * i, element=i + 1) for i, name in enumerate(names)),
        "per_class_element": (),
    }
    return report(**(fields | changes))


def troubled(**changes) -> InvarianceReport:
    """Of a noisy model whose audit was interrupted, with samples left out and names that are no HTML."""
    fields = {
        "model": '<script>alert("x")</script>',
        "group": "Swaps<a & b>",
        "ended": "interrupted",
        "seen": SAMPLES + 20,
        "skipped": 20,
        "skipped_samples": (
            SkippedSamples(17, 1, 'NaN in <input id="1"> & more'),
            SkippedSamples(300, 19, "RuntimeError: the model failed"),
            SkippedSamples(400, None, "OSError: the loader failed"),
        ),
        "noise_error": error(6.1),
        "noise_excess": Estimate(0.1, 0.2, SAMPLES),
        "noise_consistency": share(0.7),
        "per_class": (part("class <b>0</b> & $x$", 0.4, label=0), part('class "1"', 0.6, label=1)),
        "per_class_element": (),
        "provenance": {"data": "<img src=x onerror=alert(1)>" + "long" * 40, "seed": 0},
    }
    return report(**(fields | changes))


def perfect(**changes) -> InvarianceReport:
    """Of a model that is exactly invariant."""
    zero, one = Estimate(0.0, 0.0, SAMPLES), share(1.0)
    fields = dict.fromkeys(("logit_error", "distribution_error", "normalized_logit_error", "worst_logit_error"), zero)
    fields |= {"consistency": one, "saliency_similarity": one, "per_class_element": ()}
    changed = {**fields, "group_accuracy": share(0.952), "orbit_accuracy": share(0.952), "worst_samples": ()}
    made = report()
    table = SampleTable(made.per_sample.columns | {n: np.zeros(SAMPLES) for n in ("logit_error", "worst_logit_error")})
    parts = {
        name: tuple(
            replace(one_part, **{key: value for key, value in fields.items() if hasattr(one_part, key)})
            for one_part in getattr(made, name)
        )
        for name in ("per_element", "per_class")
    }
    return replace(made, per_sample=table, **(changed | parts | changes))


def in_a_histogram(**changes) -> InvarianceReport:
    """Half of whose samples are known by a histogram only."""
    made = report()
    names = ("logit_error", "worst_logit_error")
    histograms = {name: LogHistogram() for name in names}
    for name in names:
        histograms[name].add(made.per_sample[name][SAMPLES // 2 :])
    return replace(made, per_sample=made.per_sample.taken(slice(0, SAMPLES // 2)), histograms=histograms, **changes)


def ring(size: int = 16, channels: int = 1) -> torch.Tensor:
    """An image of which no two turns agree."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    image = torch.exp(-8 * ((x**2 + y**2).sqrt() - 0.6) ** 2) * (1.5 + torch.atan2(y, x)) + 0.8 * (y > 0.7)
    return torch.stack([image * (1 + channel) - 3 * channel for channel in range(channels)])


def turned(image: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([image.rot90(i % 4, (-2, -1)) for i in range(count)])


def saliency_examples(channels: int = 1, elements: int = 4, examples: int = 4) -> tuple[SaliencyExample, ...]:
    """Images on an orbit; the maps of the first examples wander, those of the last stay."""
    names = ("identity", *(f"{360 * i / elements:.4g}°" for i in range(1, elements)))
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    found = []
    for position in range(examples):
        away = 3 if position < 2 else 0.4
        maps = torch.stack(
            [torch.exp(-((x - 4 - away * (i % 4)) ** 2 + (y - 5 - position) ** 2) / 6)[None] for i in range(elements)]
        )
        inputs = turned(ring(channels=channels), elements)
        found.append(SaliencyExample(37 * position + 5, 0.2 + 0.25 * position, position % 3, names, inputs, maps))
    return tuple(found)


def signal_examples(steps: int = 60) -> tuple[SaliencyExample, ...]:
    """Signals of two channels ``(C, T)`` under shifts."""
    t = torch.linspace(0, 6, steps)
    signal = torch.stack([torch.sin(t), 0.5 * torch.cos(3 * t)])
    inputs = torch.stack([signal.roll(15 * i, -1) for i in range(4)])
    maps = torch.stack([torch.exp(-((t - 2 - 0.5 * i) ** 2))[None] for i in range(4)])
    names = ("identity", "shift 15", "shift 30", "shift 45")
    return (SaliencyExample(3, 0.41, 1, names, inputs, maps),)


def point_examples() -> tuple[SaliencyExample, ...]:
    """Clouds of points ``(P, 3)``."""
    rng = torch.Generator().manual_seed(0)
    inputs, maps = torch.randn(3, 24, 3, generator=rng), torch.rand(3, 24, 1, generator=rng)
    return (SaliencyExample(8, 0.7, None, ("identity", "[0.1 0.2]", "[0.3 0.4]"), inputs, maps),)


def worst_samples(channels: int = 1, count: int = 10) -> tuple[WorstSample, ...]:
    image = ring(channels=channels)
    return tuple(
        WorstSample(
            index=11 * i + 2,
            element=i % 3 + 1,
            name=f"{90 * (i % 3 + 1)}°",
            logit_error=40.0 - 2 * i,
            distribution_error=6.0 - 0.3 * i,
            normalized_logit_error=1.2,
            label=i % 10,
            prediction=i % 10,
            transformed_prediction=(i + (3 if i % 4 else 0)) % 10,
            input=image + 0.02 * i,
            transformed=image.rot90(i % 3 + 1, (-2, -1)) + 0.02 * i,
        )
        for i in range(count)
    )
