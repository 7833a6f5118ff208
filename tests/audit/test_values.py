"""Are outputs measured that are no logits?"""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import CyclicRotation, InvarianceReport, PlanarRotation, SignFlip, measure_invariance
from tests import oracle

Array = np.ndarray


def images(samples: int = 7) -> Tensor:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64)


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 3) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def network(*shape: int) -> nn.Module:
    """Outputs of any shape, the batch axis left out."""
    numbers = math.prod(shape)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, numbers)).double()
    return nn.Sequential(layers, Shaped(shape))


class Shaped(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, v: Tensor) -> Tensor:
        return v.reshape(len(v), *self.shape)


def squared_distance(a: Array, b: Array) -> float:
    return math.fsum((float(u) - float(v)) ** 2 for u, v in zip(a.flat, b.flat, strict=True))


def expected_errors(model: nn.Module, x: Tensor) -> dict[str, list[list[float]]]:
    """By name, for each sample and each turn; over all entries, wherever they stand."""
    found: dict[str, list[list[float]]] = {"logit_error": [], "normalized_logit_error": []}
    with torch.no_grad():
        for one in x.numpy():
            reference = model(torch.tensor(one)[None])[0].numpy()
            moved = [model(torch.tensor(g.act(one))[None])[0].numpy() for g in oracle.rotations(4)[1:]]
            distances = [squared_distance(reference, other) for other in moved]
            norm = squared_distance(reference, np.zeros_like(reference))
            found["logit_error"].append([0.5 * d for d in distances])
            found["normalized_logit_error"].append([d / norm for d in distances])
    return found


@pytest.mark.parametrize("shape", [(5,), (1,), (), (4, 2), (2, 3, 3)], ids=str)
def test_outputs_of_any_shape_agree_with_the_oracle(shape):
    model, x = network(*shape), images()
    expected = expected_errors(model, x)
    report = measure_invariance(model, in_batches(x), CyclicRotation(4), outputs="values")
    for name, by_sample in expected.items():
        mean = oracle.estimate([math.fsum(values) / 3 for values in by_sample])
        actual = getattr(report, name)
        assert actual.count == 7
        assert actual.mean == pytest.approx(mean.mean, rel=1e-9)
        assert actual.standard_error == pytest.approx(mean.standard_error, rel=1e-9)
        for place, one in enumerate(report.per_element):
            alone = oracle.estimate([values[place] for values in by_sample])
            assert getattr(one, name).mean == pytest.approx(alone.mean, rel=1e-9)
            assert getattr(one, name).standard_error == pytest.approx(alone.standard_error, rel=1e-9)
    worst = [max(values) for values in expected["logit_error"]]
    assert report.worst_logit_error.mean == pytest.approx(math.fsum(worst) / 7, rel=1e-9)
    assert report.worst_samples[0].index == worst.index(max(worst))
    assert report.logit_error.mean > 1e-3


def test_values_at_positions_are_added_where_logits_are_averaged():
    model, x = network(3, 2, 2), images()
    values = measure_invariance(model, [x], CyclicRotation(4), outputs="values")
    logits = measure_invariance(model, [x], CyclicRotation(4), saliency=None)
    assert values.logit_error.mean == pytest.approx(4 * logits.logit_error.mean, rel=1e-12)
    assert values.normalized_logit_error.mean == pytest.approx(logits.normalized_logit_error.mean, rel=1e-12)


@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_what_only_logits_have_is_none(labelled):
    model, x = network(5), images()
    y = torch.randint(5, (7,)) if labelled else None
    report = measure_invariance(model, in_batches(x, y), CyclicRotation(4), outputs="values")
    for one in (report, *report.per_element):
        for name in (
            "distribution_error",
            "consistency",
            "accuracy",
            "group_accuracy",
            "orbit_accuracy",
            "saliency_similarity",
        ):
            assert getattr(one, name) is None, name
    assert (report.per_class, report.per_class_element, report.classes_by) == ((), (), None)
    assert (report.saliency, report.completeness_gap, report.noise_consistency) == (None, None, None)
    assert set(report.estimates) == {"logit_error", "normalized_logit_error", "worst_logit_error"}
    (worst, *_) = report.worst_samples
    assert (worst.distribution_error, worst.label, worst.prediction, worst.transformed_prediction) == (None,) * 4
    assert set(report.per_sample.columns) == {
        "index",
        "worst_element",
        "logit_error",
        "normalized_logit_error",
        "worst_logit_error",
    }
    assert report.quantile("logit_error", 0.5) > 0
    with pytest.raises(ValueError, match="Quantiles are known of"):
        report.quantile("distribution_error", 0.5)


@pytest.mark.parametrize(
    "labels",
    [torch.full((7,), 99), torch.full((7,), -1), torch.randn(7), torch.randn(7, 5), torch.ones(7, dtype=torch.bool)],
    ids=["too large", "negative", "numbers", "targets", "truth values"],
)
def test_labels_are_not_looked_at(labels):
    model, x = network(5), images()
    without = measure_invariance(model, in_batches(x), CyclicRotation(4), outputs="values")
    with_labels = measure_invariance(model, in_batches(x, labels), CyclicRotation(4), outputs="values")
    assert with_labels == without
    some = [x[:3], (x[3:], labels[3:])]
    assert measure_invariance(model, some, CyclicRotation(4), outputs="values").estimates.keys() == {*without.estimates}


def test_large_values_are_no_logits_to_overflow():
    """Regression targets may be of any size; nothing takes their exponential."""
    x = images()
    report = measure_invariance(lambda v: 1e8 * v.flatten(1), [x], SignFlip(), outputs="values")
    assert report.logit_error.mean == pytest.approx(2e16 * float(x.square().sum((1, 2, 3)).mean()), rel=1e-9)
    assert report.normalized_logit_error.mean == pytest.approx(4, rel=1e-12)


def test_an_embedding_that_is_invariant_has_no_error():
    x = images()
    report = measure_invariance(lambda v: v.abs().flatten(1), [x], SignFlip(), outputs="values")
    assert (report.logit_error.mean, report.normalized_logit_error.mean) == (0, 0)


def test_an_action_that_loses_something_is_told_apart():
    model, x = network(2, 3), images()
    report = measure_invariance(model, [x], PlanarRotation(), samples=2, outputs="values")
    assert report.action_error.mean > 0.01
    group = PlanarRotation()
    drawn = group.sample_non_identity(256, 2, torch.Generator().manual_seed(0))[:, :7]
    with torch.no_grad():
        errors = [
            0.5
            * squared_distance(model(x[n : n + 1]).numpy(), model(group.act(-g, group.act(g, x[n : n + 1]))).numpy())
            for n in range(7)
            for g in drawn[:, n]
        ]
    assert report.action_logit_error.mean == pytest.approx(math.fsum(errors) / 14, rel=1e-9)


def test_the_report_is_told_and_saved():
    report = measure_invariance(network(4, 2), in_batches(images()), CyclicRotation(4), outputs="values")
    assert "nan" not in str(report).lower()
    assert InvarianceReport.from_dict(json.loads(report.to_json())) == report


def test_maps_have_no_class_to_explain():
    with pytest.raises(ValueError, match='outputs="values" have none: set saliency=None'):
        measure_invariance(
            network(5), [images()], CyclicRotation(4), outputs="values", saliency=lambda model, x, target: x
        )


@pytest.mark.parametrize("outputs", ["embeddings", "", None, "Values"])
def test_other_words_are_refused(outputs):
    with pytest.raises(ValueError, match='outputs must be "logits" or "values"'):
        measure_invariance(network(5), [images()], CyclicRotation(4), outputs=outputs)
