"""Are groups measured by drawn elements that are infinite, or too large to run through?"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    Conjugated,
    CyclicRotation,
    CyclicTranslation,
    DirectProduct,
    Estimate,
    FiniteGroup,
    Flip,
    Group,
    L2InvarianceLoss,
    PlanarRotation,
    Restricted,
    SaliencyMap,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
    measure_invariance,
)
from tests import oracle
from tests.audit.test_action_error import numbers_of, shifted, turned
from tests.audit.test_measure import EXACT_WEIGHTS, assert_report_agrees, images, in_batches
from tests.test_preserve import mixed, state_of
from tests.tolerances import assert_exact

Array = np.ndarray


def dense(entries: int, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def points(samples: int = 7, number: int = 5, axes: int = 3) -> Tensor:
    return torch.randn(samples, number, axes, dtype=torch.float64)


def permuted(x: Array, g: list[int]) -> Array:
    y = np.empty_like(x)
    for i, row in enumerate(x):
        y[g[i]] = row
    return y


def gathered(x: Array, g: list[int]) -> Array:
    return np.stack([x[g[i]] for i in range(len(x))])


def rotated(x: Array, g: list[float]) -> Array:
    y = np.zeros_like(x)
    for p in range(len(x)):
        for i in range(3):
            y[p, i] = math.fsum(g[3 * i + j] * x[p, j] for j in range(3))
    return y


POINT_MAPS = SaliencyMap(steps=2, kernel_size=1, channel_dim=-1)
POINT_FOLDING = {"kernel_size": 1, "channel_axis": 1}

Moves = tuple[Callable[[Array, list], Array], Callable[[Array, list], Array]]
"""How an element, as a flat list, moves a sample, and a map back."""

CASES: dict[str, tuple[Group, Callable[[], Tensor], Moves, int | None, SaliencyMap, dict[str, Any]]] = {
    "permutations": (
        SymmetricGroup(20, dim=1),
        lambda: points(7, 20, 2),
        (permuted, gathered),
        math.factorial(20),
        POINT_MAPS,
        POINT_FOLDING,
    ),
    "few permutations": (
        SymmetricGroup(3, dim=1),
        lambda: points(7, 3, 2),
        (permuted, gathered),
        6,
        POINT_MAPS,
        POINT_FOLDING,
    ),
    "turns in space": (
        SpatialRotation(),
        points,
        (rotated, lambda m, g: m),
        None,
        POINT_MAPS,
        POINT_FOLDING,
    ),
    "turns": (
        PlanarRotation(),
        images,
        (lambda x, g: turned(x, g[0]), lambda m, g: turned(m, -g[0])),
        None,
        EXACT_WEIGHTS,
        {},
    ),
    "shifts": (
        Translation(1.5),
        images,
        (lambda x, g: shifted(x, *g), lambda m, g: shifted(m, -g[0], -g[1])),
        None,
        EXACT_WEIGHTS,
        {},
    ),
    "permuted and turned clouds": (
        SymmetricGroup(5, dim=1) * SpatialRotation(),
        points,
        (
            lambda x, g: permuted(rotated(x, g[5:]), [int(i) for i in g[:5]]),
            lambda m, g: gathered(m, [int(i) for i in g[:5]]),
        ),
        None,
        POINT_MAPS,
        POINT_FOLDING,
    ),
    "turned and negated images": (
        SignFlip() * PlanarRotation(),
        images,
        (
            lambda x, g: (1 - 2 * g[0]) * turned(x, g[1]),
            lambda m, g: turned(m, -g[1]),
        ),
        None,
        EXACT_WEIGHTS,
        {},
    ),
    "flattened images": (
        Conjugated(PlanarRotation(), lambda x: x.unflatten(1, (1, 4, 4)), lambda x: x.flatten(1)),
        lambda: images().flatten(1),
        (
            lambda x, g: turned(x.reshape(1, 4, 4), g[0]).reshape(16),
            lambda m, g: turned(m.reshape(1, 4, 4), -g[0]).reshape(16),
        ),
        None,
        SaliencyMap(steps=2, kernel_size=1),
        {"kernel_size": 1, "channel_axis": None},
    ),
}

every_case = pytest.mark.parametrize("name", CASES)


def drawn_lists(group: Group, x: Tensor, samples: int, seed: int, at_once: int = 256) -> list[list[list]]:
    """For each sample the elements that are drawn for so many samples at once, as audits do, as flat lists."""
    drawn = group.sample_non_identity(at_once, samples, torch.Generator().manual_seed(seed))
    return [[g.flatten().tolist() for g in elements] for elements in drawn.transpose(0, 1)[: len(x)]]


def expected_audit(name: str, model: nn.Sequential, x: Tensor, y: Tensor | None, drawn) -> oracle.Audit:
    _, _, (move, back), order, _, folding = CASES[name]
    network = oracle.network_of(model)
    elements = [
        [(tuple(g), oracle.Element(lambda v, g=g: move(v, g), lambda m, g=g: back(m, g))) for g in column]
        for column in drawn
    ]
    expected = oracle.audit(
        lambda v: network(v[None])[0],
        x.numpy(),
        None if y is None else y.numpy(),
        elements,
        order,
        network=network,
        steps=2,
        saliency_samples=5,
        **folding,
    )
    return dataclasses.replace(expected, per_element={})


# Against the oracle


@every_case
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_every_field_agrees_with_the_oracle_on_the_same_drawn_elements(name, labelled):
    group, make, _, _, maps, _ = CASES[name]
    x = make()
    model, y = dense(x[0].numel()), torch.randint(3, (7,)) if labelled else None
    expected = expected_audit(name, model, x, y, drawn_lists(group, x, 3, seed=5))
    report = measure_invariance(
        model,
        in_batches(x, y),
        group,
        samples=3,
        rng=torch.Generator().manual_seed(5),
        saliency=maps,
        saliency_samples=5,
    )
    assert_report_agrees(report, expected)
    assert (report.elements, report.exhaustive, report.per_element, report.is_group) == (3, False, (), True)
    assert report.logit_error.mean > 1e-3
    assert 0.01 < report.saliency_similarity.mean < 0.999
    assert (report.group_accuracy is not None) == labelled
    assert (report.action_error is None) == group.exact


@every_case
def test_the_oracle_tells_elements_that_were_drawn_otherwise(name):
    group, make, _, _, _, _ = CASES[name]
    x = make()
    model = dense(x[0].numel())
    expected = expected_audit(name, model, x, None, drawn_lists(group, x, 3, seed=6))
    report = measure_invariance(
        model, in_batches(x), group, samples=3, rng=torch.Generator().manual_seed(5), saliency=None
    )
    with pytest.raises(AssertionError, match="logit_error"):
        assert_report_agrees(report, expected)


@pytest.mark.parametrize("name", ["permutations", "turns", "permuted and turned clouds"])
def test_the_oracle_tells_maps_that_were_moved_the_wrong_way(name, monkeypatch):
    group, make, (move, _), order, maps, folding = CASES[name]
    x = make()
    model = dense(x[0].numel())
    there = {"permutations": permuted, "turns": lambda m, g: turned(m, g[0])}.get(
        name, lambda m, g: permuted(m, [int(i) for i in g[:5]])
    )
    monkeypatch.setitem(CASES, name, (group, make, (move, there), order, maps, folding))
    expected = expected_audit(name, model, x, None, drawn_lists(group, x, 3, seed=0))
    report = measure_invariance(model, in_batches(x), group, samples=3, saliency=maps, saliency_samples=5)
    with pytest.raises(AssertionError, match="saliency_similarity"):
        assert_report_agrees(report, expected)


def test_the_accuracy_over_few_permutations_counts_the_identity_and_over_turns_does_not():
    x, y = points(50, 3, 2), torch.randint(3, (50,))
    model = dense(6)
    report = measure_invariance(model, [(x, y)], SymmetricGroup(3, dim=1), samples=5, saliency=None)
    right = [
        float((model(SymmetricGroup(3, dim=1).act(g, x)).argmax(1) == y).double().mean())
        for g in SymmetricGroup(3, dim=1).elements()
    ]
    assert len(right) == 6
    assert report.group_accuracy.mean == pytest.approx(math.fsum(right) / 6)
    assert report.group_accuracy.mean != pytest.approx(math.fsum(right[1:]) / 5, abs=1e-4)
    images_, labels = images(50), torch.randint(3, (50,))
    turns = measure_invariance(dense(16), [(images_, labels)], PlanarRotation(), samples=1, saliency=None)
    assert 0 < turns.group_accuracy.mean < 1
    assert turns.orbit_accuracy.mean <= turns.accuracy.mean


def test_all_permutations_drawn_are_all_that_there_are():
    """Of three entries there are five permutations that move any: drawn without replacement, that is all of them."""
    x, model = points(7, 3, 2), dense(6)
    report = measure_invariance(model, [x], SymmetricGroup(3, dim=1), samples=5, saliency=None)
    listed = Restricted(SymmetricGroup(3, dim=1), [[1, 2, 0], [1, 0, 2]])
    expected = measure_invariance(model, [x], listed, saliency=None)
    assert report.logit_error.mean == pytest.approx(expected.logit_error.mean, rel=1e-12)
    assert expected.exhaustive
    assert report.exhaustive


# Models that are invariant


class DeepSet(nn.Module):
    """A sum over points, after and before a network: the order of points does not matter."""

    def __init__(self, axes: int = 2) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(axes, 8), nn.Tanh())
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).sum(1))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-26), (torch.float32, 1e-9)], ids=["64", "32"])
def test_a_sum_over_points_is_invariant_to_twenty_factorial_orders(dtype, limit):
    x = points(30, 20, 2).to(dtype)
    model = DeepSet().to(dtype)
    report = measure_invariance(
        model, in_batches(x, torch.randint(3, (30,))), SymmetricGroup(20, dim=1), samples=4, saliency=POINT_MAPS
    )
    assert 0 < report.logit_error.mean < limit
    assert report.saliency_similarity.mean == pytest.approx(1, abs=1e-5)
    assert report.consistency == Estimate(1.0, 0.0, 30)
    assert report.accuracy == report.orbit_accuracy
    assert report.group_accuracy.mean == pytest.approx(report.accuracy.mean)
    assert report.completeness_gap is not None
    flat = measure_invariance(dense(40).to(dtype), [x], SymmetricGroup(20, dim=1), samples=4, saliency=None)
    assert flat.logit_error.mean > 1e-3


def test_distances_of_points_are_invariant_to_turns_and_orders():
    x = points(20)

    def model(v: Tensor) -> Tensor:
        distances = torch.cdist(v, v, compute_mode="donot_use_mm_for_euclid_dist").flatten(1)
        return torch.stack([distances.sum(1), distances.square().sum(1)], 1)

    both = SymmetricGroup(5, dim=1) * SpatialRotation()
    for group in (SpatialRotation(), SymmetricGroup(5, dim=1), both):
        report = measure_invariance(model, [x], group, samples=4, saliency=None)
        assert 0 < report.logit_error.mean < 1e-24
    assert measure_invariance(lambda v: v.sum(1), [x], both, samples=4, saliency=None).logit_error.mean > 0.1


def test_maps_of_a_permuted_set_are_realigned_by_the_inverse():
    """The first point is the one with the largest first coordinate: wherever it went, it is what matters."""

    def largest(model, v: Tensor, target: Tensor | None) -> Tensor:
        return nn.functional.one_hot(v[..., 0].argmax(1), v.shape[1])[..., None].to(v.dtype)

    x = points(40, 20, 2)
    group = SymmetricGroup(20, dim=1)
    report = measure_invariance(DeepSet().double(), [x], group, samples=3, saliency=largest)
    assert report.saliency_similarity == Estimate(1.0, 0.0, 40)
    squared = measure_invariance(DeepSet().double(), [x], group, samples=3, saliency=lambda m, v, t: v.square())
    assert squared.saliency_similarity.mean == pytest.approx(1, abs=1e-12)
    forgetful = measure_invariance(
        DeepSet().double(), [x], group, samples=3, saliency=lambda m, v, t: x.square() + 0 * v
    )
    assert forgetful.saliency_similarity.mean < 0.9


def test_maps_that_tell_coordinates_apart_are_refused_under_turns_in_space():
    model, x = DeepSet(3).double(), points()
    before = state_of(model)
    with pytest.raises(
        ValueError, match=r"one value per point: got shape \(7, 5, 3\).*channel_dim=-1, sum_signed=True"
    ):
        measure_invariance(model, [x], SpatialRotation(), samples=2)
    assert state_of(model) == before


# As the finite groups within


WITHIN = {
    "eighths of a turn": (Restricted(PlanarRotation(), [[math.pi / 4]]), CyclicRotation(8), images),
    "fifths of a turn": (Restricted(PlanarRotation(), [[0.8 * math.pi]]), None, images),
    "quarters of a turn": (Restricted(PlanarRotation(), [[math.pi / 2]]), CyclicRotation(4), images),
    "cyclic orders": (
        Restricted(SymmetricGroup(20, dim=1), [[(i + 1) % 20 for i in range(20)]]),
        CyclicTranslation(20, dim=1),
        lambda: points(7, 20, 2),
    ),
    "mirrored orders": (
        Restricted(SymmetricGroup(20, dim=1), [list(range(20))[::-1]]),
        Flip(1),
        lambda: points(7, 20, 2),
    ),
    "whole shifts": (Restricted(Translation(), [[0.0, 0.0]]), None, images),
}


@pytest.mark.parametrize("name", WITHIN)
def test_a_finite_part_is_measured_in_full(name):
    group, same, make = WITHIN[name]
    x = make()
    model, y = dense(x[0].numel()), torch.randint(3, (7,))
    report = measure_invariance(model, in_batches(x, y), group, saliency=None)
    assert (report.exhaustive, report.elements, len(report.per_element)) == (True, group.order - 1, group.order - 1)
    if name == "fifths of a turn":
        assert group.order == 5
        order = [2 * i % 5 for i in range(5)]
        by_loops = [oracle.Element(lambda v, i=i: turned(v, 0.4 * math.pi * i), lambda m: m) for i in order]
        network = oracle.network_of(model)
        expected = oracle.audit(
            lambda v: network(v[None])[0], x.numpy(), y.numpy(), [list(enumerate(by_loops))[1:]] * 7, 5
        )
        assert_report_agrees(report, expected)
    elif same is None:
        assert group.order == 1
        assert report.logit_error == Estimate(0.0, 0.0, 7)
    else:
        expected = measure_invariance(model, in_batches(x, y), same, saliency=None)
        for one, two in zip((report, *report.per_element), (expected, *expected.per_element), strict=True):
            for field in ("logit_error", "distribution_error", "consistency", "accuracy"):
                assert getattr(one, field).mean == pytest.approx(getattr(two, field).mean, rel=1e-9, abs=1e-9)


def quarter_conjugate(h: Tensor, n: Tensor) -> Tensor:
    """What ``h`` quarter turns make of a shift ``n``, down and to the right."""
    down, right = n.unbind(-1)
    turns = torch.stack([n, torch.stack([-right, down], -1), -n, torch.stack([right, -down], -1)])
    return turns.gather(0, h.expand(n.shape[:-1])[None, ..., None].expand(1, *n.shape))[0]


def test_turns_and_shifts_by_any_amount_together():
    group = SemidirectProduct(Translation(1.5), CyclicRotation(4), quarter_conjugate)
    x, model = images(), dense(16)
    drawn = drawn_lists(group, x, 2, seed=0)
    network = oracle.network_of(model)
    quarters = oracle.rotations(4)
    elements = [
        [
            (tuple(g), oracle.Element(lambda v, g=g: shifted(quarters[int(g[2])].act(v), g[0], g[1]), None))
            for g in column
        ]
        for column in drawn
    ]
    expected = oracle.audit(lambda v: network(v[None])[0], x.numpy(), None, elements, None)
    report = measure_invariance(model, in_batches(x), group, samples=2, saliency=None)
    assert_report_agrees(report, expected)
    assert report.action_error.mean > 0.01


# Drawing


DRAWN: dict[str, tuple[Group, Callable[[int], Tensor], int]] = {
    "turns": (PlanarRotation(), images, 3),
    "shifts": (Translation(1.5), images, 2),
    "scales": (Scaling(), images, 2),
    "permutations": (SymmetricGroup(20, dim=1), lambda n: points(n, 20, 2), 3),
    "few permutations": (SymmetricGroup(3, dim=1), lambda n: points(n, 3, 2), 3),
    "permutations drawn twice": (SymmetricGroup(7, dim=1), lambda n: points(30 * n, 7, 2), 8),
    "turns in space": (SpatialRotation(), points, 2),
    "one turn in space": (SpatialRotation(), points, 1),
    "product": (SymmetricGroup(5, dim=1) * SpatialRotation(), points, 2),
    "product of turns": (SignFlip() * PlanarRotation(), images, 2),
    "semidirect": (SemidirectProduct(Translation(1.5), CyclicRotation(4), quarter_conjugate), images, 2),
    "conjugated": (CASES["flattened images"][0], lambda n: images(n).flatten(1), 2),
    "restricted": (Restricted(PlanarRotation(), [[math.pi / 5]]), images, 2),
}


@pytest.mark.parametrize("name", DRAWN)
def test_batch_size_does_not_matter_for_drawn_elements(name):
    group, make, samples = DRAWN[name]
    x = make(12)
    model = dense(x[0].numel())
    expected = measure_invariance(model, [x], group, samples=samples, saliency=None)
    assert expected.logit_error.mean > 1e-4
    for size in (1, 5, 11):
        actual = measure_invariance(model, in_batches(x, size=size), group, samples=samples, saliency=None)
        assert numbers_of(actual) == pytest.approx(numbers_of(expected), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", DRAWN)
def test_audits_repeat_and_follow_the_generator(name):
    group, make, samples = DRAWN[name]
    x = make(6)
    model = dense(x[0].numel())

    def found(seed: int | None) -> float:
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        return measure_invariance(model, [x], group, samples=samples, rng=rng, saliency=None).logit_error.mean

    before = torch.random.get_rng_state()
    assert found(None) == found(None) == found(0)
    assert len({found(0), found(3), found(4)}) == 3
    assert_exact(torch.random.get_rng_state(), before)


def test_the_estimate_comes_close_to_the_mean_over_all_permutations():
    """Of four entries the mean over all 23 is known; the standard error over samples says how close one draw comes."""
    x, model, group = points(400, 4, 2), dense(8), SymmetricGroup(4, dim=1)
    network = oracle.network_of(model)
    outputs = {tuple(g): network(np.stack([permuted(v, g) for v in x.numpy()])) for g in group.elements().tolist()}
    reference = outputs[0, 1, 2, 3]
    assert len(outputs) == 24
    errors = [
        oracle.logit_error(f, q)
        for g, moved in outputs.items()
        if g != (0, 1, 2, 3)
        for f, q in zip(reference, moved, strict=True)
    ]
    exact = math.fsum(errors) / len(errors)
    drawn = measure_invariance(model, [x], group, samples=2, saliency=None).logit_error
    assert drawn.count == 400
    assert abs(drawn.mean - exact) < 4 * drawn.standard_error
    assert drawn.standard_error < 0.1 * exact


def test_the_loss_and_the_audit_agree_where_they_draw_the_same():
    for name, (group, make, _, _, _, _) in CASES.items():
        if isinstance(group, (DirectProduct, SemidirectProduct)):
            continue  # these draw all of their first parts before the second ones, and audits draw for 256 samples
        x = make()
        model = dense(x[0].numel())
        loss = L2InvarianceLoss(group, samples=3, rng=torch.Generator().manual_seed(8))(model, x)
        report = measure_invariance(model, [x], group, samples=3, rng=torch.Generator().manual_seed(8), saliency=None)
        assert loss.item() == pytest.approx(report.logit_error.mean, rel=1e-12), name


# What is refused


def test_twenty_factorial_elements_are_not_listed():
    with pytest.raises(ValueError, match=r"SymmetricGroup\(n=20, dim=1\) has 2432902008176640000 elements, too many"):
        SymmetricGroup(20, dim=1).elements()


INFINITE = [
    SymmetricGroup(20, dim=1),
    SymmetricGroup(3, dim=1),
    SpatialRotation(),
    PlanarRotation(),
    Translation(),
    Scaling(),
    SymmetricGroup(5, dim=1) * SpatialRotation(),
    CASES["flattened images"][0],
]


@pytest.mark.parametrize("group", INFINITE, ids=repr)
def test_all_of_infinitely_many_elements_are_refused_before_the_model_is_called(group):
    def never(v: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(ValueError, match=r"say how many to draw per sample with samples=") as caught:
        measure_invariance(never, [images()], group)
    assert repr(group) in str(caught.value)
    assert not isinstance(group, FiniteGroup)


@pytest.mark.parametrize("group", INFINITE, ids=repr)
@pytest.mark.parametrize("samples", [0, -1, 2.0, True, "3"], ids=repr)
def test_samples_that_are_no_number_of_elements_are_refused(group, samples):
    with pytest.raises(ValueError, match=rf"samples must be .*whole number.*got {samples!r}"):
        measure_invariance(lambda v: v, [images()], group, samples=samples)


def test_more_permutations_than_there_are_are_refused():
    x = points(4, 3, 2)
    with pytest.raises(ValueError, match=r"samples must be 1 to 5 for SymmetricGroup\(n=3, dim=1\).*got 6"):
        measure_invariance(lambda v: v.flatten(1), [x], SymmetricGroup(3, dim=1), samples=6)
    assert measure_invariance(lambda v: v.flatten(1), [x], SymmetricGroup(3, dim=1), samples=5).elements == 5


SHAPES = {
    "permutations": (SymmetricGroup(20, dim=1), points(7, 5, 2), r"permutes 20 entries.*\(7, 5, 2\).*Set n"),
    "turns in space": (SpatialRotation(), points(7, 5, 2), r"of shape \(N, \.\.\., 3\).*\(7, 5, 2\)"),
    "turns": (PlanarRotation(), points(7, 5)[..., 0], r"acts on images.*\(7, 5\)"),
    "product": (SymmetricGroup(5, dim=1) * SpatialRotation(), points(7, 4), r"permutes 5 entries.*\(\d, 4, 3\)"),
    "conjugated": (CASES["flattened images"][0], points(7, 4, 4), r"."),
}


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_that_do_not_fit_are_refused_and_leave_everything_as_it_was(name):
    group, x, message = SHAPES[name]
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(x[0].numel()), nn.Linear(x[0].numel(), 3)).double()
    model(x).sum().backward()
    before = state_of(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        measure_invariance(model, [x], group, samples=2, saliency=None)
    assert state_of(model) == before


def test_outputs_that_are_no_numbers_name_the_sample_and_the_drawn_permutation():
    x = points(8, 20, 2)
    x[6] = 1e3
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(len(v))
        logits = v[:, :3, 0]
        return torch.where(logits > 100, torch.nan, logits) if len(calls) == 5 else logits

    group = SymmetricGroup(20, dim=1)
    drawn = drawn_lists(group, x, 1, seed=0)[6][0]
    with pytest.raises(ValueError, match=r"sample 6 of the data \(row 1 of its batch\)") as caught:
        measure_invariance(model, in_batches(x, size=5), group, samples=1, saliency=None)
    assert f"element {drawn} of SymmetricGroup" in str(caught.value)


@pytest.mark.parametrize("group", [PlanarRotation(), SymmetricGroup(4, dim=-1), Translation()], ids=repr)
def test_the_model_is_found_as_it_was(group):
    model, x = mixed(), torch.randn(6, 1, 4, 4)
    before, given = state_of(model), x.clone()
    measure_invariance(model, [x], group, samples=2)
    assert state_of(model) == before
    assert_exact(x, given)
