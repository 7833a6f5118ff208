"""Do saliency maps say what the formula says, and turn along with what they look at?

Integrated gradients are compared to 1e-7 relative to the largest entry: captum rounds the quadrature weights to
float32, of which up to 3e-8 was seen. With one or two points the weights are powers of two, nothing is rounded, and
the maps are compared to 1e-12.
"""

import warnings
from dataclasses import FrozenInstanceError

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    SaliencyMap,
    SignFlip,
    SpatialRotation,
    Trivial,
    saliency_similarity,
)
from invreg.saliency import completeness_gap
from tests import oracle
from tests.test_preserve import mixed, state_of
from tests.tolerances import assert_exact, assert_linear

ROUNDED_WEIGHTS = 1e-7


def mlp(classes: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype)


def cnn(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, classes)
    ).double()


MODELS = {"mlp": mlp, "cnn": cnn}

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def images(samples: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, 2, 4, 4, dtype=dtype)


CLASSES = torch.tensor([0, 2, 1, 1])

CUTS = [("above", 0.9), ("above", 0.3), ("clip", 0.6), ("quantile", 0.75), ("quantile", 0.0), (None, 0.9)]

every_cut = pytest.mark.parametrize(("cut", "threshold"), CUTS, ids=lambda value: str(value))


def expected_attributions(model: nn.Sequential, x: Tensor, target: Tensor | None, steps: int) -> Tensor:
    network = oracle.network_of(model)
    classes = [0] * len(x) if target is None else target.tolist()
    maps = [oracle.integrated_gradients(network, v, c, steps) for v, c in zip(x.numpy(), classes, strict=True)]
    return torch.from_numpy(np.stack(maps))


def assert_close_to_largest(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def assert_robust(attributions: Tensor, threshold: float) -> None:
    """Raises if rounding could move an entry across the cut."""
    values = attributions.abs().sum(1, keepdim=True).numpy()
    assert min(oracle.cut_margin(v, threshold) for v in values) > 1e-5


# The oracle itself


@every_model
def test_the_oracles_networks_and_gradients_are_those_of_torch(make):
    model, x = make(), images().requires_grad_()
    network = oracle.network_of(model)
    outputs = model(x)
    assert_linear(torch.from_numpy(network(x.detach().numpy())), outputs.detach())
    (expected,) = torch.autograd.grad(outputs.gather(1, CLASSES[:, None]).sum(), x)
    actual = [oracle.gradient(network, v, c) for v, c in zip(x.detach().numpy(), CLASSES.tolist(), strict=True)]
    assert_linear(torch.from_numpy(np.stack(actual)), expected)


@pytest.mark.parametrize("points", [1, 2, 3, 8, 50])
def test_the_oracles_quadrature_integrates_polynomials(points):
    rule = oracle.gauss_legendre(points)
    assert len(rule) == points
    for degree in range(2 * points):
        assert sum(w * t**degree for t, w in rule) == pytest.approx(1 / (degree + 1), rel=1e-12)


# Integrated gradients


@every_model
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_attributions_agree_with_the_oracle(make, steps):
    model, x = make(), images()
    actual = SaliencyMap(steps=steps).attribute(model, x, CLASSES)
    assert actual.dtype == torch.float64
    expected = expected_attributions(model, x, CLASSES, steps)
    assert_close_to_largest(actual, expected, 1e-12 if steps <= 2 else ROUNDED_WEIGHTS)


@every_model
def test_the_papers_maps_agree_with_the_oracle(make):
    model, x = make(), images()
    attributions = expected_attributions(model, x, CLASSES, 50)
    assert_robust(attributions, 0.9)
    expected = np.stack([oracle.fold(a) for a in attributions.numpy()])
    actual = SaliencyMap()(model, x, CLASSES)
    assert actual.dtype == torch.float64
    assert actual.shape == (4, 1, 4, 4)
    assert_close_to_largest(actual, torch.from_numpy(expected), ROUNDED_WEIGHTS)


@every_model
@every_cut
def test_maps_agree_with_the_oracle_for_every_cut(make, cut, threshold):
    model, x = make(), images()
    expected = np.stack(
        [oracle.fold(a, cut, threshold) for a in expected_attributions(model, x, CLASSES, 2).numpy()],
    )
    actual = SaliencyMap(steps=2, cut=cut, threshold=threshold)(model, x, CLASSES)
    assert_close_to_largest(actual, torch.from_numpy(expected), 1e-12)


@pytest.mark.parametrize("shape", [(4, 1), (4,)], ids=["axis", "no axis"])
def test_without_a_target_the_single_logit_is_explained(shape):
    model, x = mlp(classes=1), images()
    actual = SaliencyMap(steps=2).attribute(lambda v: model(v).view(-1, *shape[1:]), x, None)
    assert_close_to_largest(actual, expected_attributions(model, x, None, 2), 1e-12)


def test_each_sample_is_explained_by_itself():
    model, x = mlp(), images()
    alone = [SaliencyMap()(model, x[n : n + 1], CLASSES[n : n + 1]) for n in range(4)]
    assert_close_to_largest(SaliencyMap()(model, x, CLASSES), torch.cat(alone), ROUNDED_WEIGHTS)


def test_another_target_has_another_map():
    model, x = mlp(), images()
    assert not torch.allclose(SaliencyMap()(model, x, CLASSES), SaliencyMap()(model, x, (CLASSES + 1) % 3))


@pytest.mark.parametrize("internal_batch_size", [1, 3, 4, 7, 50, 1000])
def test_internal_batch_size_changes_nothing_and_bounds_the_rows(internal_batch_size):
    model, x = mlp(), images(10)
    target = torch.arange(10) % 3
    expected = SaliencyMap(steps=9, internal_batch_size=10_000).attribute(model, x, target)
    rows = []

    def counting(v: Tensor) -> Tensor:
        rows.append(len(v))
        return model(v)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = SaliencyMap(steps=9, internal_batch_size=internal_batch_size).attribute(counting, x, target)
    assert_close_to_largest(actual, expected, 1e-12)
    assert sum(rows) == 90
    assert max(rows) <= internal_batch_size


def rows_taken(model: nn.Module, x: Tensor, saliency: SaliencyMap) -> list[int]:
    rows = []
    handle = model.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    saliency.attribute(model, x, torch.zeros(len(x), dtype=torch.int64))
    handle.remove()
    return rows


@pytest.mark.parametrize(("side", "width"), [(12, 3), (16, 3), (16, 300)])
def test_batches_are_filled_to_a_memory_budget(side, width):
    """Does a forward take as many rows as fit, by a count of bytes on paper? Weights are not counted."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, width), nn.Tanh(), nn.Linear(width, 2)).double()
    rows = rows_taken(model, torch.randn(50, 1, side, side, dtype=torch.float64), SaliencyMap(steps=60))
    inputs, hidden = 8 * side**2, 8 * width
    kept = inputs + hidden  # what the linear layers were given, of which tanh keeps the second
    fitting = 2**24 // (kept + 5 * inputs)
    assert rows[:2] == [2, 3]
    assert sum(rows[2:]) == 50 * 60
    assert fitting - 50 < max(rows[2:]) <= fitting


def test_the_memory_budget_changes_no_attributions():
    """Are they those of one batch?"""
    model, x = cnn(), images(7)
    target = torch.arange(7) % 3
    one_batch = SaliencyMap(steps=9, internal_batch_size=63).attribute(model, x, target)
    assert_close_to_largest(SaliencyMap(steps=9).attribute(model, x, target), one_batch, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_model
def test_attributions_are_those_of_captums_defaults(make, dtype):
    """One backward for all rows: does it give what captum's backward for each gives?"""
    model, x = make().to(dtype), images(dtype=dtype)
    expected = captum.attr.IntegratedGradients(model).attribute(x, target=CLASSES)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close_to_largest(SaliencyMap().attribute(model, x, CLASSES), expected, tolerance)


def test_a_model_whose_memory_cannot_be_counted_has_attributions():
    """torch.func refuses to run under the hooks that count: are the attributions of a linear model still exact?"""
    x, weights = images(), torch.randn(32, 3, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return torch.func.grad(lambda u: (u.flatten(1) @ weights).square().sum())(v).flatten(1)[:, :3]

    matrix = 2 * weights @ weights.T
    expected = x * matrix[:, CLASSES].T.view(x.shape)
    assert_close_to_largest(SaliencyMap(steps=8).attribute(model, x, CLASSES), expected, ROUNDED_WEIGHTS)


def test_works_without_gradients_and_gives_none():
    model, x = mlp(), images()
    expected = SaliencyMap()(model, x, CLASSES)
    with torch.no_grad():
        maps = SaliencyMap()(model, x, CLASSES)
        assert not torch.is_grad_enabled()
    assert_exact(maps, expected)
    assert not maps.requires_grad


@pytest.mark.parametrize("attribution", [None, captum.attr.Saliency, lambda model, x, target: x * 2.0])
def test_leaves_model_and_inputs_as_they_were(attribution):
    model, x = mixed().eval(), torch.randn(4, 1, 4, 4)
    x.grad = torch.ones_like(x)
    before = state_of(model)
    with torch.no_grad():
        SaliencyMap(attribution=attribution)(model, x, CLASSES)
    assert state_of(model) == before
    assert not x.requires_grad
    assert_exact(x.grad, torch.ones_like(x))


def test_inputs_with_gradients_keep_them():
    model, x = mlp(), images().requires_grad_()
    maps = SaliencyMap()(model, x, CLASSES)
    assert x.requires_grad
    assert x.grad is None
    assert not maps.requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_frozen_model_has_the_same_maps(requires_grad):
    model, x = mlp(), images()
    expected = expected_attributions(model, x, CLASSES, 2)
    model.requires_grad_(requires_grad)
    assert_close_to_largest(SaliencyMap(steps=2).attribute(model, x, CLASSES), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_maps_have_the_inputs_dtype_or_float32_if_that_is_wider(dtype):
    maps = SaliencyMap()(mlp(dtype=dtype), images(dtype=dtype), CLASSES)
    assert maps.dtype == torch.promote_types(dtype, torch.float32)
    assert (maps >= 0).all()
    assert (maps.flatten(1).amax(1) > 0).all()


# Folding


@pytest.mark.parametrize(
    ("shape", "channel_dim", "folded"),
    [
        ((2, 3, 4, 5), None, (2, 1, 4, 5)),
        ((2, 3, 4, 5, 6), None, (2, 1, 4, 5, 6)),
        ((2, 3, 4), None, (2, 3, 4)),
        ((2, 6), None, (2, 6)),
        ((2, 3, 4), 1, (2, 1, 4)),
        ((2, 3, 4), 2, (2, 3, 1)),
        ((2, 4, 5, 3), -1, (2, 4, 5, 1)),
        ((2, 6), 1, (2, 1)),
    ],
    ids=str,
)
@every_cut
def test_channels_are_summed_and_the_rest_blurred(shape, channel_dim, folded, cut, threshold):
    attributions = torch.randn(shape, dtype=torch.float64)
    actual = SaliencyMap(cut=cut, threshold=threshold, channel_dim=channel_dim).fold(attributions)
    axis = 0 if channel_dim is None and len(shape) >= 4 else None
    if channel_dim is not None:
        axis = channel_dim % len(shape) - 1
    expected = np.stack([oracle.fold(a, cut, threshold, channel_axis=axis) for a in attributions.numpy()])
    assert actual.shape == folded
    assert_linear(actual, torch.from_numpy(expected))


@pytest.mark.parametrize(("kernel_size", "sigma"), [(1, 1.0), (3, 1.0), (3, 0.3), (5, 2.0), (9, 1.5)])
def test_blurs_by_the_gaussian_asked_for(kernel_size, sigma):
    attributions = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    actual = SaliencyMap(cut=None, kernel_size=kernel_size, sigma=sigma).fold(attributions)
    expected = [oracle.fold(a, None, kernel_size=kernel_size, sigma=sigma) for a in attributions.numpy()]
    assert_linear(actual, torch.from_numpy(np.stack(expected)))
    assert_linear(actual.sum((1, 2, 3)), attributions.abs().sum((1, 2, 3)))


def test_a_wrong_fold_is_told_by_the_oracle():
    attributions = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    expected = torch.from_numpy(np.stack([oracle.fold(a) for a in attributions.numpy()]))
    wrong = {
        "signed": SaliencyMap().fold(attributions.clamp_min(0)),
        "absolute after the sum": SaliencyMap().fold(attributions.sum(1, keepdim=True)),
        "threshold": SaliencyMap(threshold=0.5).fold(attributions),
        "cut": SaliencyMap(cut="clip").fold(attributions),
        "kernel": SaliencyMap(kernel_size=5).fold(attributions),
        "sigma": SaliencyMap(sigma=2.0).fold(attributions),
        "zeros around the edges": torch.nn.functional.conv2d(
            SaliencyMap(kernel_size=1).fold(attributions),
            torch.outer(*[torch.tensor([0.274, 0.452, 0.274]).double()] * 2)[None, None],
            padding=1,
        ),
    }
    for name, maps in wrong.items():
        assert not torch.allclose(maps, expected, rtol=1e-3), name


def test_cuts_by_hand():
    attributions = torch.tensor([[-10.0, 9.0, 8.9, 0.0, 1.0]])
    for cut, threshold, expected in (
        ("above", 0.9, [10.0, 9.0, 0.0, 0.0, 0.0]),
        ("clip", 0.5, [5.0, 5.0, 5.0, 0.0, 1.0]),
        ("quantile", 0.6, [10.0, 9.0, 8.9, 0.0, 0.0]),
        (None, 0.9, [10.0, 9.0, 8.9, 0.0, 1.0]),
    ):
        maps = SaliencyMap(cut=cut, threshold=threshold, kernel_size=1).fold(attributions)
        assert_linear(maps, torch.tensor([expected]))


@every_cut
def test_attributions_of_zero_have_a_map_of_zero(cut, threshold):
    maps = SaliencyMap(cut=cut, threshold=threshold).fold(torch.zeros(2, 2, 4, 4))
    assert_exact(maps, torch.zeros(2, 1, 4, 4))


@every_cut
def test_attributions_that_are_no_numbers_do_not_pass_for_zero(cut, threshold):
    attributions = torch.randn(2, 2, 4, 4)
    attributions[1, 0, 2, 3] = torch.nan
    saliency = SaliencyMap(cut=cut, threshold=threshold)
    maps = saliency.fold(attributions)
    assert maps[0].isfinite().all()
    assert maps[1].isnan().any()


@every_cut
def test_each_map_is_cut_by_its_own_maximum(cut, threshold):
    attributions = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    scale = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)[:, None, None, None]
    saliency = SaliencyMap(cut=cut, threshold=threshold)
    assert_linear(saliency.fold(attributions * scale) / scale, saliency.fold(attributions))


WRAPPING = {
    "trivial": (Trivial(), (2, 4, 4)),
    "half turns": (CyclicRotation(2), (2, 4, 6)),
    "quarter turns": (CyclicRotation(4), (2, 5, 5)),
    "turns and mirrors": (Dihedral(4), (2, 4, 4)),
    "mirrors": (Dihedral(1), (2, 4, 6)),
    "flip": (Flip(-2), (2, 4, 6)),
    "translation": (CyclicTranslation(3), (2, 4, 6)),
    "translation of a row": (CyclicTranslation(3), (6,)),
    "translation of a volume": (CyclicTranslation(2, dim=-3), (2, 4, 3, 3)),
    "sign": (SignFlip(), (2, 4, 4)),
    "colours": (CyclicPermutation(3, dim=1), (3, 4, 4)),
    "sensors": (CyclicPermutation(6), (6,)),
    "product": (Dihedral(4) * SignFlip(), (2, 4, 4)),
    "colours and turns": (CyclicPermutation(3, dim=1) * CyclicRotation(4), (3, 4, 4)),
    "actions": (FiniteGroup.from_actions([lambda x: x, lambda x: x.flip(-1)]), (2, 4, 4)),
}


def fold_conflicts(group: FiniteGroup, shape: tuple[int, ...], saliency: SaliencyMap) -> list[int]:
    """The elements under which folding what was moved is not moving what was folded."""
    attributions = torch.randn(3, *shape, dtype=torch.float64)
    found = []
    for g in group.elements():
        moved = saliency.fold(group.act(g, attributions))
        if not torch.allclose(moved, group.act_on_map(g, saliency.fold(attributions)), rtol=1e-12, atol=1e-12):
            found.append(int(g))
    return found


@pytest.mark.parametrize("name", WRAPPING)
@every_cut
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_folding_commutes_with_turns_mirrors_shifts_and_signs(name, cut, threshold, kernel_size):
    saliency = SaliencyMap(cut=cut, threshold=threshold, kernel_size=kernel_size)
    assert fold_conflicts(*WRAPPING[name], saliency) == []


def test_folding_does_not_commute_with_permutations_that_tear_neighbours_apart():
    swap = FiniteGroup.from_permutations([[0, 2, 1, 3, 4, 5]])
    assert fold_conflicts(swap, (6,), SaliencyMap()) == [1]
    assert fold_conflicts(swap, (6,), SaliencyMap(kernel_size=1)) == []


@pytest.mark.parametrize("group", [CyclicRotation(4), Dihedral(4), CyclicTranslation(2), Flip() * SignFlip()], ids=str)
def test_maps_of_an_invariant_model_agree_over_the_orbit(group):
    network, x = mlp(), images()

    def model(v: Tensor) -> Tensor:
        return network(group.orbit(v).flatten(0, 1)).view(group.order, len(v), -1).mean(0)

    maps = SaliencyMap()(model, x, CLASSES)
    for g in group.non_identity_elements():
        moved = SaliencyMap()(model, group.act(g, x), CLASSES)
        realigned = group.act_on_map(group.inverse(g), moved)
        torch.testing.assert_close(saliency_similarity(maps, realigned), torch.ones(4).double(), rtol=1e-9, atol=0)


# Other attributions


@pytest.mark.parametrize("factor", ["gradient", "gradient times input"])
def test_captums_classes_take_the_place_of_integrated_gradients(factor):
    model, x = mlp(), images()
    network = oracle.network_of(model)
    gradients = [oracle.gradient(network, v, c) for v, c in zip(x.numpy(), CLASSES.tolist(), strict=True)]
    expected = torch.from_numpy(np.stack(gradients)) * (1 if factor == "gradient" else x)
    method = captum.attr.Saliency if factor == "gradient" else captum.attr.InputXGradient
    saliency = SaliencyMap(attribution=method)
    with torch.no_grad():
        actual = saliency.attribute(model, x, CLASSES)
    assert_linear(actual.abs(), expected.abs())
    assert_linear(saliency(model, x, CLASSES), saliency.fold(expected))
    assert not actual.requires_grad


def test_captums_integrated_gradients_are_the_default():
    model, x = mlp(), images()
    expected = SaliencyMap()(model, x, CLASSES)
    actual = SaliencyMap(attribution=captum.attr.IntegratedGradients)(model, x, CLASSES)
    assert_close_to_largest(actual, expected, ROUNDED_WEIGHTS)


def test_a_callable_takes_the_place_of_integrated_gradients():
    model, x = mlp(), images()
    seen = []

    def gradient(network, inputs: Tensor, target: Tensor) -> Tensor:
        seen.append((network, target))
        logits = network(inputs).gather(1, target[:, None])
        return torch.autograd.grad(logits.sum(), inputs)[0]

    with torch.no_grad():
        actual = SaliencyMap(attribution=gradient)(model, x, CLASSES)
    assert len(seen) == 1
    assert seen[0][0] is model
    assert_exact(seen[0][1], CLASSES)
    assert_linear(actual, SaliencyMap(attribution=captum.attr.Saliency)(model, x, CLASSES))


@pytest.mark.parametrize(
    ("attribution", "message"),
    [
        (lambda model, x, target: x.sum(1), r"inputs' shape \(4, 2, 4, 4\): got shape \(4, 4, 4\)"),
        (lambda model, x, target: (x,), r"inputs' shape \(4, 2, 4, 4\): got .*tuple"),
        (lambda model, x, target: None, r"inputs' shape \(4, 2, 4, 4\): got .*NoneType"),
    ],
    ids=["shape", "tuple", "None"],
)
def test_attributions_of_another_shape_are_refused(attribution, message):
    with pytest.raises(ValueError, match=message):
        SaliencyMap(attribution=attribution)(mlp(), images(), CLASSES)


# Completeness


def test_the_completeness_gap_compares_the_sum_with_the_change_of_the_logit():
    model, x = mlp(), images()
    network = oracle.network_of(model)
    attributions = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    gap, change = completeness_gap(model, x, attributions, CLASSES)
    for n, c in enumerate(CLASSES.tolist()):
        expected = network(x[n : n + 1].numpy())[0, c] - network(np.zeros((1, 2, 4, 4)))[0, c]
        assert change[n].item() == pytest.approx(abs(expected), rel=1e-9)
        assert gap[n].item() == pytest.approx(abs(float(attributions[n].sum()) - expected), rel=1e-9)


@pytest.mark.parametrize("single", [False, True])
def test_the_completeness_gap_falls_with_the_number_of_steps(single):
    model, x = mlp(classes=1 if single else 3), 3 * images()
    target = None if single else CLASSES
    shares = []
    for steps in (1, 3, 10, 40):
        attributions = SaliencyMap(steps=steps).attribute(model, x, target)
        gap, change = completeness_gap(model, x, attributions, target)
        shares.append(float(gap.sum() / change.sum()))
    assert shares[0] > 10 * shares[1] > 100 * shares[2]
    assert shares[0] > 1e-2
    assert shares[3] < 1e-6


def test_the_completeness_gap_has_no_gradient():
    x = images().requires_grad_()
    assert not completeness_gap(mlp(), x, x.detach(), CLASSES).requires_grad


# Similarity


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=6))
def test_the_similarity_agrees_with_the_oracle(pairs):
    a, b = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for m in (a, b):  # where the oracle's squares underflow
        assume(not m.any() or m.square().sum() > 1e-300)
    expected = oracle.saliency_similarity(a.numpy(), b.numpy())
    assert saliency_similarity(a[None], b[None]).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_similarity_of_each_sample_is_its_own():
    a, b = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    expected = [oracle.saliency_similarity(u, v) for u, v in zip(a.numpy(), b.numpy(), strict=True)]
    assert_linear(saliency_similarity(a, b), torch.tensor(expected, dtype=torch.float64))


_LARGE = {torch.float64: 2.0**1020, torch.float32: 2.0**124, torch.float16: 2.0**12, torch.bfloat16: 2.0**124}


@pytest.mark.parametrize("dtype", _LARGE, ids=str)
@pytest.mark.parametrize("scale", ["one", "tiny", "huge"])
def test_the_similarity_does_not_depend_on_the_scale(dtype, scale):
    factor = {"one": 1.0, "tiny": torch.finfo(dtype).tiny, "huge": _LARGE[dtype]}[scale]
    a, b = torch.tensor([[3.0, 0.0]], dtype=dtype) * factor, torch.tensor([[3.0, 4.0]], dtype=dtype) * (factor / 2)
    similarity = saliency_similarity(a, b)
    assert similarity.dtype == torch.promote_types(dtype, torch.float32)
    assert similarity.item() == pytest.approx(0.6, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([2.0, 1.0], [2.0, 1.0], 1.0),
        ([2.0, 1.0], [20.0, 10.0], 1.0),
        ([1e-200, 0.0], [0.0, 0.0], 0.0),
        ([1e-200, 0.0], [1e-200, 1e-200], 0.5**0.5),
    ],
    ids=str,
)
def test_the_similarity_of_corner_cases(a, b, expected):
    similarity = saliency_similarity(*(torch.tensor([m], dtype=torch.float64) for m in (a, b)))
    assert similarity.item() == pytest.approx(expected, rel=1e-12)


def test_the_similarity_lies_between_zero_and_one():
    a, b = torch.rand(2, 1000, 7, dtype=torch.float64)
    similarity = saliency_similarity(torch.cat([a, a]), torch.cat([b, a]))
    assert (similarity >= 0).all()
    assert (similarity <= 1 + 1e-12).all()


def test_the_similarity_refuses_maps_of_different_shapes():
    with pytest.raises(ValueError, match=r"one shape: got \(2, 1, 4, 4\) and \(2, 4, 4\)"):
        saliency_similarity(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"steps must be a whole number, 1 or more: got 0"),
        ({"cut": "below"}, r"cut must be None or one of \['above', 'clip', 'quantile'\]: got 'below'"),
        ({"threshold": 1.1}, r"threshold must be between 0 and 1: got 1.1"),
        ({"threshold": -0.1}, r"threshold must be between 0 and 1: got -0.1"),
        ({"threshold": float("nan")}, r"threshold must be between 0 and 1: got nan"),
        ({"kernel_size": 2}, r"kernel_size must be odd and positive: got 2"),
        ({"kernel_size": -1}, r"kernel_size must be odd and positive: got -1"),
        ({"sigma": 0.0}, r"sigma must be positive: got 0.0"),
        ({"channel_dim": 0}, r"channel_dim must be another axis than the batch's: got 0"),
        ({"internal_batch_size": 0}, r"internal_batch_size must be 1 or more: got 0"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=rf"SaliencyMap: {message}"):
        SaliencyMap(**settings)


def test_the_batch_axis_is_refused_as_channels_when_counted_from_the_end():
    with pytest.raises(ValueError, match="channel_dim"):
        SaliencyMap(channel_dim=-4).fold(torch.zeros(2, 3, 4, 4))


def test_an_axis_that_is_not_there_is_refused_as_channels():
    with pytest.raises((ValueError, IndexError), match=r"channel_dim|Dimension out of range"):
        SaliencyMap(channel_dim=4).fold(torch.zeros(2, 3, 4, 4))


def test_is_a_frozen_value():
    assert SaliencyMap(steps=5) == SaliencyMap(steps=5) != SaliencyMap()
    assert len({SaliencyMap(), SaliencyMap()}) == 1
    with pytest.raises(FrozenInstanceError):
        SaliencyMap().steps = 3


def test_maps_can_be_made_in_inference_mode():
    model, x = mlp(), images()
    expected = SaliencyMap(steps=2)(model, x, CLASSES)
    with torch.inference_mode():
        torch.testing.assert_close(SaliencyMap(steps=2)(model, x.clone(), CLASSES), expected, rtol=0, atol=0)


def test_signed_attributions_are_summed_before_they_are_made_positive():
    """By plain loops; the other way round gives other maps."""
    attributions = torch.randn(2, 5, 3, dtype=torch.float64)
    saliency = SaliencyMap(cut=None, kernel_size=1, channel_dim=-1, sum_signed=True)
    maps = saliency.fold(attributions)
    assert maps.shape == (2, 5, 1)
    for n in range(2):
        for p in range(5):
            assert maps[n, p, 0].item() == pytest.approx(abs(sum(attributions[n, p].tolist())), abs=1e-15)
    assert not torch.allclose(maps, SaliencyMap(cut=None, kernel_size=1, channel_dim=-1).fold(attributions))


def test_an_invariant_model_of_points_reaches_one_only_with_signed_sums():
    """It sums inner products, in which a coordinate may count for one cloud and against in another pose."""
    weights = torch.randn(5, 5, dtype=torch.float64)

    def model(x):
        return (x @ x.mT * weights).sum((1, 2))[:, None].expand(-1, 2)

    x = torch.randn(4, 5, 3, dtype=torch.float64)
    turned = SpatialRotation().act(SpatialRotation().sample(4), x)
    target = torch.zeros(4, dtype=torch.int64)
    for signed in (True, False):
        saliency = SaliencyMap(steps=8, cut=None, kernel_size=1, channel_dim=-1, sum_signed=signed)
        similarity = saliency_similarity(saliency(model, x, target), saliency(model, turned, target))
        assert bool((similarity > 1 - 1e-9).all()) == signed
