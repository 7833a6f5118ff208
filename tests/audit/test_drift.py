"""Is drift a blend of two data sets, sample by sample, and are ratios paired?"""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from invreg import CyclicRotation, Flip, PlanarRotation, SignFlip, measure_drift, measure_invariance
from invreg.audit import DriftReport


def data(samples: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.randint(3, (samples,))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 5) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def blended(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """Entry by entry."""
    pairs = zip(source.flatten().tolist(), target.flatten().tolist(), strict=True)
    return torch.tensor([(1 - beta) * a + beta * b for a, b in pairs], dtype=torch.float64).view(source.shape)


@pytest.mark.parametrize("sizes", [(5, 5), (5, 3), (2, 12), (12, 1)])
def test_each_beta_is_an_audit_of_the_blend(sizes):
    model, (x, y), (target, _) = mlp(), data(), data()
    betas = (0.0, 0.3, 1.0)
    drift = measure_drift(model, in_batches(x, y, sizes[0]), in_batches(target, None, sizes[1]), Flip(), betas)
    assert drift.betas == betas
    for beta, report in zip(betas, drift.reports, strict=True):
        expected = measure_invariance(model, [(blended(x, target, beta), y)], Flip(), saliency=None)
        assert report.estimates.keys() == expected.estimates.keys()
        for name, estimate in expected.estimates.items():
            found = report.estimates[name]
            assert (found.mean, found.standard_error) == pytest.approx((estimate.mean, estimate.standard_error))
            assert found.count == 12


def test_ratios_of_accuracies_are_paired():
    """The standard error of a ratio to first order, by sums over samples."""
    model, (x, y), (target, _) = mlp(), data(40), data(40)
    drift = measure_drift(model, [(x, y)], [target], CyclicRotation(4), (0.5,))
    before, after = (report.per_sample["group_accuracy"].tolist() for report in drift.reports)
    n, a, b = 40, math.fsum(before) / 40, math.fsum(after) / 40
    ratio = b / a
    residuals = [v - ratio * u for u, v in zip(before, after, strict=True)]
    middle = math.fsum(residuals) / n
    error = math.sqrt(math.fsum((r - middle) ** 2 for r in residuals) / (n - 1) / n) / a
    assert drift.accuracy_ratios[0].mean == 1
    assert drift.accuracy_ratios[0].standard_error == 0
    assert drift.accuracy_ratios[1].mean == pytest.approx(ratio, rel=1e-12)
    assert drift.accuracy_ratios[1].standard_error == pytest.approx(error, rel=1e-9)
    assert error > 0.01


def test_zero_comes_first_and_no_beta_twice():
    model, (x, y) = mlp(), data()
    drift = measure_drift(model, [(x, y)], [x], Flip(), (0.5, 0.0, 0.5, 1.0))
    assert drift.betas == (0.0, 0.5, 1.0)
    assert [len(drift.betas)] * 2 == [len(drift.reports), len(drift.accuracy_ratios)]


def test_nothing_changes_when_a_source_drifts_to_itself():
    model, (x, y) = mlp(), data()
    drift = measure_drift(model, [(x, y)], [(x, y)], Flip())
    assert {report.logit_error for report in drift.reports} == {drift.reports[0].logit_error} or all(
        report.logit_error.mean == pytest.approx(drift.reports[0].logit_error.mean) for report in drift.reports
    )
    assert [ratio.mean for ratio in drift.accuracy_ratios] == [1.0] * 5


def test_as_many_samples_as_both_have():
    model, (x, y), (target, _) = mlp(), data(), data(7)
    for source, other in ((in_batches(x, y), in_batches(target)), (in_batches(target, y[:7]), in_batches(x))):
        drift = measure_drift(model, source, other, Flip(), (0.5,))
        assert {report.samples for report in drift.reports} == {7}


def test_the_same_elements_are_drawn_for_each_beta():
    seen: list[list[float]] = []

    class Noted(PlanarRotation):
        def act(self, g: Tensor, x: Tensor) -> Tensor:
            if g.requires_grad is False and g.ndim == 2 and len(x) == 6:
                seen.append(g.flatten().tolist())
            return super().act(g, x)

    x, y = data(6)
    rng = torch.Generator().manual_seed(3)
    measure_drift(mlp(), [(x, y)], [x], Noted(), (0.0, 1.0), samples=1, rng=rng)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert len({tuple(one) for one in seen}) > 1


def test_without_labels_there_are_no_ratios():
    x, _ = data()
    drift = measure_drift(mlp(), [x], [x], Flip(), (1.0,))
    assert drift.accuracy_ratios == (None, None)
    assert "accuracy" not in str(drift).splitlines()[3] or " -" in str(drift).splitlines()[-1]
    drift.plot()


def test_a_model_that_is_never_right_has_no_ratios():
    x, _ = data()
    drift = measure_drift(
        lambda v: v.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0, 0]), [(x, torch.ones(12).long())], [x], Flip()
    )
    assert set(drift.accuracy_ratios) == {None}


X, Y = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])

BAD = {
    "beta": ([(X, Y)], [X], {"betas": (0.5, 1.5)}, ValueError, r"between 0 and 1: got 1\.5"),
    "one number": ([(X, Y)], [X], {"betas": 0.5}, TypeError, r"a list of numbers.*got 0\.5"),
    "words": ([(X, Y)], [X], {"betas": ["a"]}, TypeError, r"a list of numbers"),
    "no number": ([(X, Y)], [X], {"betas": (float("nan"),)}, ValueError, r"between 0 and 1: got nan"),
    "generator as source": ((b for b in [(X, Y)]), [X], {}, TypeError, r"source is gone through.*generator.*list"),
    "iterator as target": ([(X, Y)], iter([X]), {}, TypeError, r"target is gone through once for each beta"),
    "shapes": ([(X, Y)], [X[..., :1]], {}, ValueError, r"one shape: got \(1, 2, 2\) and \(1, 2, 1\)"),
    "tuples": ([((X, X), Y)], [X], {}, TypeError, r"must be one tensor: got tuple"),
    "tensor": (X, [X], {}, TypeError, r"Write \[x\]"),
    "empty target": ([(X, Y)], [], {}, ValueError, r"at least one batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_say_what_to_do(name):
    source, target, options, kind, message = BAD[name]
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(kind, match=message):
        measure_drift(model, source, target, Flip(), **options)


@pytest.mark.parametrize("shuffled", ["source", "target"])
def test_inputs_that_are_shuffled_are_noticed_without_labels_too(shuffled):
    x, _ = data(30)
    loaders = {"source": [x], "target": [x]}
    numbers = torch.Generator().manual_seed(0)
    loaders[shuffled] = DataLoader(x, batch_size=30, shuffle=True, generator=numbers)
    with pytest.raises(ValueError, match="Do not shuffle"):
        measure_drift(mlp(), **loaders, group=Flip(), betas=(0.5,))


def test_a_source_that_shuffles_is_noticed():
    x, y = data(30)
    numbers = torch.Generator().manual_seed(0)  # which goes on from one time to the next
    source = DataLoader(TensorDataset(x, y), batch_size=30, shuffle=True, generator=numbers)
    with pytest.raises(ValueError, match="Do not shuffle"):
        measure_drift(mlp(), source, [x], Flip(), (0.5,))


def test_comes_back_from_a_dictionary_and_json():
    x, y = data()
    drift = measure_drift(mlp(), [(x, y)], [x.flip(0)], SignFlip(), (0.5,))
    assert DriftReport.from_dict(drift.to_dict()) == drift
    assert DriftReport.from_dict(json.loads(drift.to_json())) == drift
    assert len(drift.to_json(per_sample=False)) < len(drift.to_json())
    with pytest.raises(ValueError, match="schema 1: got 7"):
        DriftReport.from_dict(drift.to_dict() | {"schema": 7})
    with pytest.raises(ValueError, match=r"missing \['betas'\]"):
        DriftReport.from_dict({name: value for name, value in drift.to_dict().items() if name != "betas"})


def test_prints_a_row_for_each_beta():
    x, y = data()
    lines = str(measure_drift(mlp(), [(x, y)], [x], Flip(), (0.25, 1.0))).splitlines()
    assert lines[0] == "Drift of Sequential under Flip(dim=-1)"
    assert [line.split()[0] for line in lines[3:]] == ["β", "0", "0.25", "1"]


def test_the_picture_shows_both_curves(tmp_path):
    from matplotlib.image import imread

    x, y = data()
    drift = measure_drift(mlp(), [(x, y)], [torch.randn_like(x)], Flip())
    figure = drift.plot()
    left, right = figure.axes
    assert "nats" in left.get_ylabel()
    assert len(drift.plot(drift, drift).axes[0].containers) == 3
    assert "β" in left.get_xlabel()
    drawn = np.array(left.lines[0].get_ydata(orig=False), dtype=float)
    np.testing.assert_allclose(drawn, [one.distribution_error.mean for one in drift.reports])
    np.testing.assert_allclose(
        np.array(right.lines[0].get_ydata(orig=False), dtype=float), [one.mean for one in drift.accuracy_ratios]
    )
    figure.savefig(tmp_path / "drift.png")
    assert len(np.unique((imread(tmp_path / "drift.png")[..., :3].mean(2) * 255).astype(int))) > 30
