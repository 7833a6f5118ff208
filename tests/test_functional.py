"""Are the errors what their formulas say, for every shape, size and dtype of outputs?"""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invreg import CyclicRotation, Flip
from invreg.functional import (
    distribution_error,
    has_single_logit,
    logit_error,
    normalized_logit_error,
    orbit_outputs,
    predicted_class,
)
from tests import oracle
from tests.tolerances import assert_exact, assert_linear

FORMULAS = {
    logit_error: oracle.logit_error,
    distribution_error: oracle.distribution_error,
    normalized_logit_error: oracle.normalized_logit_error,
}

every_error = pytest.mark.parametrize("error", FORMULAS, ids=lambda error: error.__name__)

SHAPES = [(3,), (3, 1), (3, 2), (3, 5), (2, 4, 3), (2, 1, 3), (2, 3, 2, 4)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


@st.composite
def output_pairs(draw, limit: float = 50.0) -> tuple[Tensor, Tensor]:
    samples = draw(st.integers(1, 3))
    shape = draw(st.sampled_from([(), (1,), (2,), (4,), (3, 2), (1, 2), (2, 2, 2)]))
    values = hnp.arrays(np.float64, (2, samples, *shape), elements=st.floats(-limit, limit))
    reference, transformed = torch.from_numpy(draw(values))
    return reference, transformed


def assert_agrees(error, formula, reference: Tensor, transformed: Tensor) -> None:
    """Raises unless ``error`` gives for each sample what ``formula`` gives, to 1e-9."""
    expected = [formula(f, q) for f, q in zip(reference.numpy(), transformed.numpy(), strict=True)]
    actual = error(reference, transformed)
    assert expected
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


# The formulas


@every_error
@given(pair=output_pairs())
def test_agrees_with_the_oracle(error, pair):
    assert_agrees(error, FORMULAS[error], *pair)


@every_error
@given(pair=output_pairs(limit=1e4))
def test_agrees_with_the_oracle_for_large_logits(error, pair):
    assert_agrees(error, FORMULAS[error], *pair)


WRONG = {
    "without the half": (lambda f, q: 2 * logit_error(f, q), oracle.logit_error),
    "sum over positions": (lambda f, q: logit_error(f, q) * f[0, 0].numel(), oracle.logit_error),
    "mean over classes": (lambda f, q: logit_error(f, q) / f.shape[1], oracle.logit_error),
    "mean over samples": (lambda f, q: logit_error(f, q).mean().expand(len(f)), oracle.logit_error),
    "divergence the other way round": (lambda f, q: distribution_error(q, f), oracle.distribution_error),
    "divergence in bits": (lambda f, q: distribution_error(f, q) / math.log(2), oracle.distribution_error),
    "relative to the transformed": (lambda f, q: normalized_logit_error(q, f), oracle.normalized_logit_error),
    "half of the normalized": (lambda f, q: normalized_logit_error(f, q) / 2, oracle.normalized_logit_error),
    "mean of ratios, not ratio of means": (
        lambda f, q: (
            normalized_logit_error(f.movedim(1, -1).reshape(-1, f.shape[1]), q.movedim(1, -1).reshape(-1, f.shape[1]))
            .view(len(f), -1)
            .mean(1)
        ),
        oracle.normalized_logit_error,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_oracle_tells_a_wrong_formula(name):
    wrong, formula = WRONG[name]
    reference, transformed = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_agrees(wrong, formula, reference, transformed)


def test_the_oracle_tells_a_softmax_over_a_single_logit():
    with pytest.raises(AssertionError):
        assert_agrees(lambda f, q: 0 * logit_error(f, q), oracle.distribution_error, *torch.randn(2, 3, 1).double())


def test_values_by_hand():
    reference, transformed = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]])
    assert logit_error(reference, transformed).item() == 12.5
    assert normalized_logit_error(reference, transformed).item() == 5.0
    even, three_to_one = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert distribution_error(even, three_to_one).item() == pytest.approx(expected, rel=1e-6)


# Properties


@every_error
@given(pair=output_pairs(limit=1e4))
def test_is_never_negative_and_zero_on_the_diagonal(error, pair):
    reference, transformed = pair
    assert (error(reference, transformed) >= 0).all()
    assert_exact(error(reference, reference), torch.zeros(len(reference), dtype=torch.float64))


@every_error
@every_shape
def test_is_one_value_per_sample_each_from_its_own_rows(error, shape):
    reference, transformed = torch.randn(2, *shape, dtype=torch.float64)
    together = error(reference, transformed)
    assert together.shape == shape[:1]
    alone = [error(reference[n : n + 1], transformed[n : n + 1]) for n in range(len(reference))]
    assert_linear(together, torch.cat(alone))


@every_error
def test_no_samples_give_no_values(error):
    assert error(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


@given(pair=output_pairs(), shift=st.floats(-20, 20))
def test_distributions_do_not_see_a_constant_added_to_all_logits(pair, shift):
    reference, transformed = pair
    if has_single_logit(reference):
        reference, transformed = (
            torch.stack([torch.zeros_like(logit), logit], 1) for logit in (reference.flatten(), transformed.flatten())
        )
    expected = distribution_error(reference, transformed)
    torch.testing.assert_close(distribution_error(reference + shift, transformed), expected, rtol=1e-9, atol=1e-9)


@every_error
def test_a_single_logit_may_have_an_axis_of_its_own_or_none(error):
    reference, transformed = torch.randn(2, 6, dtype=torch.float64)
    assert_exact(error(reference, transformed), error(reference[:, None], transformed[:, None]))


@pytest.mark.parametrize("error", [logit_error, distribution_error], ids=lambda error: error.__name__)
def test_a_single_logit_equals_two_classes_the_first_of_logit_zero(error):
    reference, transformed = 5 * torch.randn(2, 6, 1, dtype=torch.float64)
    two_classes = [torch.cat([torch.zeros_like(logit), logit], 1) for logit in (reference, transformed)]
    torch.testing.assert_close(error(reference, transformed), error(*two_classes), rtol=1e-12, atol=1e-12)
    assert (error(reference, transformed) > 0).all()


@pytest.mark.parametrize("error", [logit_error, distribution_error], ids=lambda error: error.__name__)
def test_positions_are_averaged(error):
    reference, transformed = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64)
    at_positions = [error(reference[..., i, j], transformed[..., i, j]) for i in range(2) for j in range(4)]
    assert_linear(error(reference, transformed), torch.stack(at_positions).mean(0))


def test_the_normalized_error_divides_the_mean_distance_by_the_mean_norm():
    reference, transformed = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64)
    distance = (reference - transformed).square().sum((1, 2, 3)) / 8
    norm = reference.square().sum((1, 2, 3)) / 8
    assert_linear(normalized_logit_error(reference, transformed), distance / norm)


def test_the_normalized_error_does_not_see_a_common_scale():
    reference, transformed = torch.randn(2, 3, 5, dtype=torch.float64)
    assert_linear(
        normalized_logit_error(1e3 * reference, 1e3 * transformed), normalized_logit_error(reference, transformed)
    )


# Precision


@every_error
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_computed_in_float32(error, shape, dtype):
    reference, transformed = (20 * torch.randn(2, *shape)).to(dtype)
    actual = error(reference, transformed)
    assert actual.dtype == torch.float32
    expected = error(reference.double(), transformed.double())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@every_error
def test_float64_stays_float64(error):
    assert error(*torch.randn(2, 3, 4, dtype=torch.float64)).dtype == torch.float64


def test_half_precision_does_not_overflow_where_float32_does_not():
    reference, transformed = torch.tensor([[300.0, -300.0]]).half(), torch.tensor([[-300.0, 300.0]]).half()
    assert logit_error(reference, transformed).item() == 360_000.0
    assert normalized_logit_error(reference, transformed).item() == 4.0


@every_error
def test_is_computed_in_float32_under_autocast(error):
    layer = nn.Linear(6, 4)
    x, y = torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        reference, transformed = layer(x), layer(y)
        assert reference.dtype == torch.bfloat16
        actual = error(reference, transformed)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), error(reference.double(), transformed.double()), rtol=1e-5, atol=1e-6)


@every_error
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [(), (1,), (3,)], ids=["no axis", "single", "three"])
def test_large_logits_have_finite_errors_and_gradients(error, dtype, classes):
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    reference, transformed = (signs * 1e4).to(dtype).unbind(1)
    if classes:
        ramp = torch.linspace(1, -1, classes[0]).to(dtype)
        reference, transformed = reference[:, None] * ramp, transformed[:, None] * ramp
    reference, transformed = reference.detach().requires_grad_(), transformed.detach().requires_grad_()
    value = error(reference, transformed)
    assert value.isfinite().all()
    assert (value[[1, 2]] > 1).all()
    value.sum().backward()
    assert reference.grad.isfinite().all()
    assert transformed.grad.isfinite().all()


@every_error
@every_shape
def test_zero_logits_have_zero_error_and_finite_gradients(error, shape):
    reference, transformed = (torch.zeros(shape, requires_grad=True) for _ in range(2))
    value = error(reference, transformed)
    assert_exact(value.detach(), torch.zeros(shape[0]))
    value.sum().backward()
    assert reference.grad.isfinite().all()
    assert transformed.grad.isfinite().all()


def test_the_normalized_error_of_zero_logits_is_relative_to_eps():
    reference, transformed = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert normalized_logit_error(reference, transformed).item() == pytest.approx(25e12)
    assert normalized_logit_error(reference, transformed, eps=100.0).item() == 0.25
    assert normalized_logit_error(transformed, reference, eps=20.0).item() == 1.0
    assert oracle.normalized_logit_error(np.zeros(2), np.array([3.0, 4.0]), eps=100.0) == 0.25


@every_error
@every_shape
def test_gradients_are_those_of_the_values(error, shape):
    reference, transformed = torch.randn(2, *shape, dtype=torch.float64)
    pair = (reference.requires_grad_(), transformed.requires_grad_())
    assert torch.autograd.gradcheck(error, pair)


@every_error
@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 2)], ids=["single", "classes", "positions"])
def test_compiles_into_one_graph(error, shape):
    reference, transformed = torch.randn(2, *shape, dtype=torch.float64)
    reference.requires_grad_()
    torch.compiler.reset()
    actual = torch.compile(error, backend="aot_eager", fullgraph=True)(reference, transformed)
    assert_linear(actual, error(reference, transformed))
    (gradient,) = torch.autograd.grad(actual.sum(), reference)
    (expected,) = torch.autograd.grad(error(reference, transformed).sum(), reference)
    assert_linear(gradient, expected)


# What is refused


@every_error
@pytest.mark.parametrize(
    ("reference", "transformed", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"one shape and dtype.*\(2, 3\).*\(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(1, 3), r"one shape and dtype.*\(2, 3\).*\(1, 3\)"),
        (torch.zeros(2, 1), torch.zeros(2), r"one shape and dtype.*\(2, 1\).*\(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).bfloat16(), r"float32.*bfloat16.*autocast"),
        (torch.tensor(0.0), torch.tensor(0.0), r"shape \(N, C, \.\.\.\) or \(N,\): got \(\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), r"floating-point.*int64"),
        (torch.zeros(2, 3) + 0j, torch.zeros(2, 3) + 0j, r"floating-point.*complex64"),
    ],
    ids=["classes", "samples", "axes", "dtypes", "scalar", "integers", "complex"],
)
def test_refuses_what_are_no_two_batches_of_logits(error, reference, transformed, message):
    with pytest.raises(ValueError, match=message):
        error(reference, transformed)


# Predictions


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0]], [1, 0]),
        ([-0.5, 0.5, 0.0], [0, 1, 0]),
        ([[-0.5], [0.5]], [0, 1]),
        ([[[0.0, 1.0], [1.0, 0.0]]], [[1, 0]]),
        ([[[-1.0, 1.0]], [[1.0, -1.0]]], [[0, 1], [1, 0]]),
    ],
    ids=["classes", "no axis", "single", "positions", "single per position"],
)
def test_predicts_the_most_probable_class(outputs, expected):
    assert_exact(predicted_class(torch.tensor(outputs)), torch.tensor(expected))


@given(pair=output_pairs())
def test_predictions_agree_with_the_oracle(pair):
    outputs, _ = pair
    expected = [oracle.predicted_classes(f) for f in outputs.numpy()]
    assert predicted_class(outputs).view(len(outputs), -1).tolist() == expected


# Outputs over an orbit


class Calls:
    """A model that remembers how many rows it was given each time."""

    def __init__(self, model):
        self.model = model
        self.rows = []

    def __call__(self, x):
        self.rows.append(len(x))
        return self.model(x)


@pytest.mark.parametrize("features", [None, 1, 3], ids=["no axis", "single", "three"])
def test_orbit_outputs_are_those_of_each_batch_by_one_call(features):
    layer = nn.Sequential(nn.Flatten(), nn.Linear(16, features or 1)).double()
    model = Calls(layer if features else lambda x: layer(x)[:, 0])
    orbit = CyclicRotation(4).orbit(torch.randn(5, 1, 4, 4, dtype=torch.float64))
    outputs = orbit_outputs(model, orbit)
    assert model.rows == [20]
    assert outputs.shape == ((4, 5, features) if features else (4, 5))
    assert_linear(outputs, torch.stack([model.model(x) for x in orbit]))


def test_orbit_outputs_keep_the_axes_of_positions():
    orbit = Flip().orbit(torch.randn(2, 3, 4, 4))
    assert_exact(orbit_outputs(lambda x: x[:, :2], orbit), orbit[:, :, :2])


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (lambda x: (x, x), TypeError, r"one tensor: got tuple\. Wrap it"),
        (lambda x: {"logits": x}, TypeError, r"one tensor: got dict\. Wrap it"),
        (lambda x: x.long(), TypeError, r"floating-point logits: got torch.int64"),
        (lambda x: x[1:], ValueError, r"one row of logits per sample: got shape \(5, 3\) for 6 samples"),
        (lambda x: x.sum(), ValueError, r"one row of logits per sample: got shape \(\) for 6 samples"),
    ],
    ids=["tuple", "dict", "integers", "rows", "scalar"],
)
def test_orbit_outputs_refuse_what_are_no_logits(model, kind, message):
    with pytest.raises(kind, match=message):
        orbit_outputs(model, Flip().orbit(torch.zeros(3, 3)))
