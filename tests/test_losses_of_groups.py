"""Is the regulariser right under groups that interpolate, are infinite, or move several tensors at once?"""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from invreg import (
    Conjugated,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    Group,
    InvarianceLoss,
    KLInvarianceLoss,
    L2InvarianceLoss,
    NormalizedL2InvarianceLoss,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SemidirectProduct,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    TransformationSet,
    Translation,
    Trivial,
)
from tests import oracle
from tests.audit.test_action_error import mirrored, turned
from tests.audit.test_infinite_groups import CASES, dense, drawn_lists, points
from tests.test_losses import LOSSES, every_loss, expected_loss, given_or_not, gradients, images
from tests.test_preserve import state_of
from tests.tolerances import assert_exact, assert_linear

Array = np.ndarray


# Finite groups


def as_elements(moves: list[Callable[[Array], Array]]) -> list[oracle.Element]:
    return [oracle.Element(move, lambda m: m) for move in moves]


def turns(steps: int) -> list[Callable[[Array], Array]]:
    return [lambda x, i=i: turned(x, 2 * math.pi * i / steps) for i in range(steps)]


def turns_and_mirrors(steps: int) -> list[Callable[[Array], Array]]:
    return turns(steps) + [lambda x, turn=turn: turn(mirrored(x)) for turn in turns(steps)]


def exact_turns_and_mirrors() -> list[Callable[[Array], Array]]:
    quarters = [lambda x, i=i: np.rot90(x, i, (-2, -1)).copy() for i in range(4)]
    return quarters + [lambda x, turn=turn: turn(x[..., ::-1].copy()) for turn in quarters]


SHIFTS = [lambda x, i=i, j=j: np.roll(np.roll(x, 2 * j, -2), 2 * i, -1) for i in range(2) for j in range(2)]

FINITE: dict[str, tuple[FiniteGroup, list[Callable[[Array], Array]], Callable[[], Tensor]]] = {
    "eighths of a turn": (CyclicRotation(8), turns(8), images),
    "thirds of a turn and mirrors": (Dihedral(3), turns_and_mirrors(3), images),
    "eighths among all turns": (Restricted(PlanarRotation(), [[math.pi / 4]]), turns(8), images),
    "wallpaper": (
        SemidirectProduct(CyclicTranslation(2, -1) * CyclicTranslation(2, -2), Dihedral(4)),
        [lambda x, n=n, h=h: n(h(x)) for n in SHIFTS for h in exact_turns_and_mirrors()],
        images,
    ),
    "quarters of flattened images": (
        Conjugated(CyclicRotation(4), lambda x: x.unflatten(1, (1, 4, 4)), lambda x: x.flatten(1), exact=True),
        [lambda x, i=i: np.rot90(x.reshape(4, 4), i).reshape(16).copy() for i in range(4)],
        lambda: images().flatten(1),
    ),
    "whitened signs": (
        Conjugated(SignFlip(), lambda x: (x - 0.5) / 0.3, lambda y: 0.3 * y + 0.5),
        [lambda x: x, lambda x: 1 - x],
        images,
    ),
    "turns among turns and mirrors": (
        Restricted(Dihedral(4), [1]),
        exact_turns_and_mirrors()[:4],
        images,
    ),
    "cyclic orders": (
        Restricted(SymmetricGroup(5, dim=1), [[1, 2, 3, 4, 0]]),
        [lambda x, i=i: np.roll(x, i, 0) for i in range(5)],
        points,
    ),
}


@every_loss
@pytest.mark.parametrize("name", FINITE)
@given_or_not
def test_under_a_finite_group_it_is_the_oracles_mean(loss, name, given):
    group, moves, make = FINITE[name]
    assert len(moves) == group.order
    x = make()
    model = dense(x[0].numel())
    expected = expected_loss(model, x, as_elements(moves), LOSSES[loss][1])
    actual = loss(group)(model, x, model(x) if given else None)
    assert actual.dtype == torch.float64
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert expected > 1e-4


@pytest.mark.parametrize("name", FINITE)
def test_drawn_elements_of_a_finite_group_are_the_oracles(name):
    group, moves, make = FINITE[name]
    x = make()
    model, samples = dense(x[0].numel()), min(2, group.order - 1)
    actual = L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(3))(model, x)
    drawn = group.sample_non_identity(len(x), samples, torch.Generator().manual_seed(3)).tolist()
    network = oracle.network_of(model)
    errors = [
        oracle.logit_error(network(sample[None])[0], network(moves[index](sample)[None])[0])
        for row in drawn
        for index, sample in zip(row, x.numpy(), strict=True)
    ]
    assert len(errors) == samples * len(x)
    assert actual.item() == pytest.approx(math.fsum(errors) / len(errors), rel=1e-9)


# Infinite groups

every_case = pytest.mark.parametrize("name", CASES)


@every_loss
@every_case
@given_or_not
def test_under_drawn_elements_it_is_the_oracles_mean(loss, name, given):
    group, make, (move, _), _, _, _ = CASES[name]
    x = make()
    model = dense(x[0].numel())
    actual = loss(group, samples=3, rng=torch.Generator().manual_seed(4))(model, x, model(x) if given else None)
    network, errors = oracle.network_of(model), []
    for sample, elements in zip(x.numpy(), drawn_lists(group, x, 3, seed=4, at_once=len(x)), strict=True):
        reference = network(sample[None])[0]
        errors += [LOSSES[loss][1](reference, network(move(sample, g)[None])[0]) for g in elements]
    assert len(errors) == 3 * len(x)
    assert actual.item() == pytest.approx(math.fsum(errors) / len(errors), rel=1e-9, abs=1e-12)
    assert actual.item() > 1e-4


def matrices(name: str, x: Tensor, samples: int, seed: int) -> list[list[Tensor]]:
    """For each sample the matrix of each of its drawn elements, by what the loops do to single pixels."""
    group, _, (move, _), _, _, _ = CASES[name]
    shape, size = x.shape[1:], x[0].numel()
    basis = np.eye(size).reshape(size, *shape)
    return [
        [torch.from_numpy(np.stack([move(e, g).reshape(size) for e in basis], 1)) for g in elements]
        for elements in drawn_lists(group, x, samples, seed, at_once=len(x))
    ]


@every_case
@pytest.mark.parametrize("detach_reference", [False, True])
def test_gradients_are_those_by_hand(name, detach_reference):
    """All these actions are linear: as a matrix that the loops fill, each one hands the gradient back transposed."""
    group, make, _, _, _, _ = CASES[name]
    x = make().requires_grad_()
    model = dense(x[0].numel())
    rng = torch.Generator().manual_seed(4)
    value = L2InvarianceLoss(group, samples=2, rng=rng, detach_reference=detach_reference)(model, x)
    by_hand = torch.zeros((), dtype=torch.float64)
    for sample, moves in zip(x, matrices(name, x.detach(), 2, 4), strict=True):
        reference = model(sample[None])
        reference = reference.detach() if detach_reference else reference
        for matrix in moves:
            moved = model((matrix @ sample.flatten()).view(1, *sample.shape))
            by_hand = by_hand + 0.5 * (reference - moved).square().sum() / (2 * len(x))
    torch.testing.assert_close(value, by_hand, rtol=1e-10, atol=1e-12)
    wanted = [*model.parameters(), x]
    for one, two in zip(torch.autograd.grad(value, wanted), torch.autograd.grad(by_hand, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
    assert torch.autograd.grad(L2InvarianceLoss(group, samples=2)(model, x), [x])[0].abs().max() > 1e-4


@pytest.mark.parametrize("group", [PlanarRotation("bicubic"), Translation(1.5), Scaling()], ids=repr)
def test_gradients_flow_to_the_inputs(group):
    model, x = dense(16), images(2).requires_grad_()
    rng = torch.Generator()

    def value(v: Tensor) -> Tensor:
        rng.manual_seed(2)
        return L2InvarianceLoss(group, samples=2, rng=rng)(model, v)

    assert torch.autograd.gradcheck(value, (x,))


@every_case
@given_or_not
def test_the_model_is_called_once_with_all_rows(name, given):
    group, make, _, _, _, _ = CASES[name]
    x = make()
    model, rows = dense(x[0].numel()), []
    outputs = model(x) if given else None

    def watched(v: Tensor) -> Tensor:
        rows.append(len(v))
        return model(v)

    L2InvarianceLoss(group, samples=3)(watched, x, outputs)
    assert rows == [7 * (3 + (not given))]


def test_each_call_draws_anew_and_follows_the_generator():
    model, x = dense(16), images()

    def values(seed: int) -> list[float]:
        invariance = L2InvarianceLoss(PlanarRotation(), samples=1, rng=torch.Generator().manual_seed(seed))
        return [invariance(model, x).item() for _ in range(3)]

    assert values(1) == values(1)
    assert len({*values(1), *values(2)}) == 6
    before = torch.random.get_rng_state()
    values(3)
    assert_exact(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("group", "make"),
    [(PlanarRotation(), images), (SymmetricGroup(5, dim=1) * SpatialRotation(), points)],
    ids=["turns", "permuted and turned clouds"],
)
def test_descending_on_it_makes_the_model_more_invariant(group, make):
    x = make()
    model = dense(x[0].numel())
    invariance = L2InvarianceLoss(group, samples=4, rng=torch.Generator().manual_seed(0))
    first = invariance(model, x).item()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(60):
        optimiser.zero_grad()
        invariance(model, x).backward()
        optimiser.step()
    assert invariance(model, x).item() < 0.5 * first


def test_a_sum_over_points_has_none_under_permutations():
    x = points(20, 20, 2)
    inner, outer = nn.Linear(2, 8).double(), nn.Linear(8, 3).double()

    def deep_set(v: Tensor) -> Tensor:
        return outer(inner(v).tanh().sum(1))

    for loss in LOSSES:
        assert loss(SymmetricGroup(20, dim=1), samples=4)(deep_set, x).item() < 1e-14
        assert loss(SymmetricGroup(20, dim=1), samples=4)(dense(40), x).item() > 1e-4


# Inputs of several tensors


class Pair(NamedTuple):
    image: Tensor
    mask: Tensor


def pair_of(form: str, image: Tensor, mask: Tensor) -> tuple[Any, tuple[Any, Any]]:
    """The inputs in this form, and the keys of both tensors."""
    made = {
        "dict": {"image": image, "mask": mask},
        "tuple": (image, mask),
        "list": [image, mask],
        "named tuple": Pair(image, mask),
    }
    return made[form], (("image", "mask") if form == "dict" else (0, 1))


def on_both(network: nn.Module, keys: tuple[Any, Any]) -> Callable[[Any], Tensor]:
    return lambda v: network(torch.cat([v[keys[0]], v[keys[1]].double()], 1))


ON_KEYS: dict[str, tuple[Group, int | None]] = {
    "rotation": (CyclicRotation(4), None),
    "mirror": (Flip(), None),
    "drawn": (Dihedral(4), 3),
    "interpolated": (CyclicRotation(8), None),
    "any angle": (PlanarRotation(), 3),
    "any shift": (Translation(1.5), 2),
    "permutations": (SymmetricGroup(4, dim=-1), 2),
}


@every_loss
@pytest.mark.parametrize("name", ON_KEYS)
@pytest.mark.parametrize("form", ["dict", "tuple", "list", "named tuple"])
@given_or_not
def test_under_several_tensors_it_is_that_of_their_channels_in_one(loss, name, form, given):
    group, samples = ON_KEYS[name]
    image, mask = torch.randn(5, 2, 4, 4).double(), torch.randn(5, 1, 4, 4).double()
    network = dense(48)

    def found(group: Group, model: Callable, inputs: Any) -> Tensor:
        rng = torch.Generator().manual_seed(6)
        return loss(group, samples=samples, rng=rng)(model, inputs, model(inputs) if given else None)

    inputs, keys = pair_of(form, image, mask)
    actual = found(OnKeys(dict.fromkeys(keys, group)), on_both(network, keys), inputs)
    expected = found(group, network, torch.cat([image, mask], 1))
    assert_linear(actual, expected)
    assert actual.item() > 1e-4
    for one, two in zip(gradients(network, actual), gradients(network, expected), strict=True):
        assert_linear(one, two)


@pytest.mark.parametrize("samples", [None, 2])
def test_masks_of_whole_numbers_and_other_entries_go_along(samples):
    image, mask, names = images(), torch.randint(3, (5, 1, 4, 4)), torch.arange(5)
    group, seen = CyclicRotation(4), []

    def model(v: dict[str, Tensor]) -> Tensor:
        seen.append(v)
        return (v["image"] * v["mask"]).flatten(1)[:, :3]

    rng = torch.Generator().manual_seed(1)
    loss = L2InvarianceLoss(OnKeys({"image": group, "mask": group}), samples=samples, rng=rng)
    value = loss(model, {"image": image, "mask": mask, "name": names})
    (inputs,) = seen
    assert inputs["name"].tolist() == names.tolist() * (4 if samples is None else 3)
    assert inputs["mask"].dtype == torch.int64
    if samples is None:
        assert_exact(inputs["mask"], group.orbit(mask).flatten(0, 1))
    together = (image * mask, inputs["image"] * inputs["mask"])
    drawn = group.sample_non_identity(5, 3 if samples is None else 2, torch.Generator().manual_seed(1))
    elements = drawn if samples else group.non_identity_elements()[:, None].expand(3, 5)
    errors = [
        0.5 * (together[0].flatten(1)[n, :3] - group.act(g, together[0][n : n + 1]).flatten()[:3]).square().sum()
        for row in elements
        for n, g in enumerate(row)
    ]
    assert_linear(value, torch.stack(errors).mean())


def test_gradients_flow_to_each_entry_that_can_have_one():
    image, mask = images().requires_grad_(), torch.randn(5, 1, 4, 4).double().requires_grad_()
    network = dense(32)
    model = on_both(network, ("image", "mask"))
    loss = L2InvarianceLoss(OnKeys({"image": CyclicRotation(4)}))
    assert torch.autograd.gradcheck(lambda i, m: loss(model, {"image": i, "mask": m}), (image, mask))
    found = torch.autograd.grad(loss(model, {"image": image, "mask": mask}), [image, mask])
    assert all(g.abs().max() > 1e-4 for g in found)


def test_a_group_of_the_identity_alone_on_several_tensors_gives_zero():
    value = L2InvarianceLoss(OnKeys({"image": Trivial()}))(lambda v: 1 / 0, {"image": images(), "id": torch.arange(5)})
    assert_exact(value, torch.zeros((), dtype=torch.float64))


GOOD = {"image": torch.zeros(3, 1, 4, 4), "mask": torch.zeros(3, 1, 4, 4)}
QUARTERS = OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)})
REFUSED_INPUTS = {
    "a key": ({"image": GOOD["image"]}, QUARTERS, ValueError, r"acts on the keys \['image', 'mask'\].*\['image'\]"),
    "one tensor": (GOOD["image"], QUARTERS, (TypeError, ValueError), r"acts on mappings.*got Tensor"),
    "rows": (GOOD | {"mask": torch.zeros(2, 1, 4, 4)}, QUARTERS, (TypeError, ValueError), r"one N.*\(2, 1, 4, 4\)"),
    "rows of another entry": (GOOD | {"id": torch.zeros(2)}, QUARTERS, (TypeError, ValueError), r"one N.*\(2,\).*'id'"),
    "empty": ({k: v[:0] for k, v in GOOD.items()}, QUARTERS, ValueError, r"at least one sample: got shape \(0, 1, 4"),
    "no entry": ({}, QUARTERS, TypeError, r"one tensor.*got an empty dict"),
    "no tensor": (GOOD | {"name": "x"}, QUARTERS, TypeError, r"nothing else: got str at 'name'"),
    "several for a plain group": (GOOD, CyclicRotation(4), (TypeError, ValueError), r"CyclicRotation.*acts on .*dict"),
    "several for permutations of positions": (GOOD, Flip(), (TypeError, ValueError), r"Flip.*acts on .*got dict"),
    "several for a product": (GOOD, Flip() * SignFlip(), (TypeError, ValueError), r"Flip.*acts on .*got dict"),
    "several for a set": (GOOD, TransformationSet([torch.neg]), (TypeError, ValueError), r"acts on batches.*got dict"),
}


@pytest.mark.parametrize("samples", [None, 1])
@pytest.mark.parametrize("name", REFUSED_INPUTS)
def test_inputs_that_do_not_fit_are_refused(name, samples):
    inputs, group, kind, message = REFUSED_INPUTS[name]
    loss = L2InvarianceLoss(group, samples=samples)
    with pytest.raises(kind, match=message):
        loss(lambda v: v["image"].flatten(1), inputs)
    assert L2InvarianceLoss(QUARTERS, samples=samples)(lambda v: v["image"].flatten(1), GOOD) == 0


# Settings

INFINITE = [
    SymmetricGroup(20, dim=1),
    SymmetricGroup(3, dim=1),
    SpatialRotation(),
    PlanarRotation(),
    Translation(),
    Scaling(),
    SymmetricGroup(5, dim=1) * SpatialRotation(),
    Conjugated(PlanarRotation(), torch.clone, torch.clone),
    OnKeys({"image": PlanarRotation(), "mask": PlanarRotation("nearest")}),
]


@every_loss
@pytest.mark.parametrize("group", INFINITE, ids=repr)
def test_all_of_infinitely_many_elements_are_refused(loss, group):
    with pytest.raises(ValueError, match=r"say how many to draw per sample with samples=") as caught:
        loss(group)
    assert repr(group) in str(caught.value)
    assert loss(group, samples=1).samples == 1


@pytest.mark.parametrize("group", INFINITE, ids=repr)
@pytest.mark.parametrize("samples", [0, -1, 2.0, True, "3"], ids=repr)
def test_samples_that_are_no_number_of_elements_are_refused(group, samples):
    with pytest.raises(ValueError, match=rf"samples must be 1 .*whole number.*got {samples!r}"):
        L2InvarianceLoss(group, samples=samples)


LIMITS = {
    "few permutations": (SymmetricGroup(3, dim=1), 5),
    "two permutations": (SymmetricGroup(2, dim=1), 1),
    "eighths": (CyclicRotation(8), 7),
    "restricted": (Restricted(PlanarRotation(), [[math.pi / 2]]), 3),
    "wallpaper": (FINITE["wallpaper"][0], 31),
    "several": (QUARTERS, 3),
    "set": (TransformationSet([torch.neg, torch.square]), 2),
    "conjugated": (Conjugated(SignFlip(), torch.clone, torch.clone), 1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_more_elements_than_there_are_are_refused(name):
    group, most = LIMITS[name]
    assert L2InvarianceLoss(group, samples=most).samples == most
    with pytest.raises(ValueError, match=rf"samples must be 1 to {most} for .*got {most + 1}") as caught:
        L2InvarianceLoss(group, samples=most + 1)
    assert repr(group) in str(caught.value)


@pytest.mark.parametrize("build", [lambda g: OnKeys({"x": g}), lambda g: Conjugated(g, torch.clone, torch.clone)])
def test_more_permutations_than_there_are_are_refused_within_others(build):
    group, x = build(SymmetricGroup(3, dim=1)), points(5, 3, 2)
    inputs = {"x": x} if isinstance(group, OnKeys) else x
    with pytest.raises(ValueError, match=r"6"):
        L2InvarianceLoss(group, samples=6)(lambda v: v["x"] if isinstance(v, dict) else v, inputs)


@pytest.mark.parametrize("name", CASES)
def test_deepcopy_and_pickle_keep_the_group_and_the_random_numbers_to_come(name):
    group, make, _, _, _, _ = CASES[name]
    x = make()
    model = dense(x[0].numel())
    invariance = L2InvarianceLoss(group, samples=2, rng=torch.Generator().manual_seed(7))
    invariance(model, x)
    copies = [copy.deepcopy(invariance)]
    if "lambda" not in repr(group):
        copies.append(pickle.loads(pickle.dumps(invariance)))
    expected = [invariance(model, x).item() for _ in range(3)]
    for other in copies:
        assert "lambda" in repr(group) or other.group == group
        assert [other(model, x).item() for _ in range(3)] == expected


# In a training loop


@pytest.mark.parametrize("name", CASES)
def test_a_good_call_leaves_the_model_and_the_inputs_as_they_were(name):
    group, make, _, _, _, _ = CASES[name]
    x = make()
    model = nn.Sequential(dense(x[0].numel()), nn.BatchNorm1d(3).double().eval())
    model(x).sum().backward()
    given = x.clone()
    before = state_of(model)
    L2InvarianceLoss(group, samples=2, rng=torch.Generator())(model, x)
    assert state_of(model) == before
    assert_exact(x, given)


GRAPHS = {
    "any angle": (PlanarRotation(), images, 2),
    "any shift": (Translation(), images, 2),
    "permutations": (SymmetricGroup(20, dim=1), lambda: points(5, 20, 2), 2),
    "turns in space": (SpatialRotation(), points, 2),
    "restricted": (Restricted(PlanarRotation(), [[2 * math.pi / 3]]), images, None),
    "restricted, drawn": (Restricted(PlanarRotation(), [[math.pi / 4]]), images, 2),
    "thirds and mirrors": (Dihedral(3), images, 2),
}


def step(name: str) -> tuple[Callable[[Tensor], Tensor], nn.Module, Tensor]:
    """A loss and its model on a batch, to be compiled together."""
    group, make, samples = GRAPHS[name]
    x = make()
    model = dense(x[0].numel())
    invariance = L2InvarianceLoss(group, samples=samples)
    return lambda v: invariance(model, v, model(v)), model, x


@pytest.mark.parametrize("name", GRAPHS)
def test_compiles_into_one_graph_with_the_model(name):
    """Random numbers come from the global generator, the same ones with and without a compiler."""
    run, model, x = step(name)
    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        actual = compiled(x)
        torch.manual_seed(seed)
        expected = run(x)
        assert_linear(actual, expected)
        for one, two in zip(gradients(model, actual), gradients(model, expected), strict=True):
            assert_linear(one, two)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_identity_is_not_drawn_where_it_would_be_often(compiled):
    """Of twelve elements one is the identity, which a product of groups without a list draws like any other."""
    group = SymmetricGroup(2, dim=1) * SymmetricGroup(3, dim=2)
    invariance = InvarianceLoss(group, lambda f, q: (f == q).all(1).double(), samples=1)
    x = torch.randn(600, 2, 3)

    def share_left_alone(v: Tensor) -> Tensor:
        return invariance(lambda z: z.flatten(1), v, v.flatten(1))

    torch.compiler.reset()
    found = torch.compile(share_left_alone, backend="aot_eager") if compiled else share_left_alone
    assert found(x).item() == 0


def test_torch_func_takes_gradients_of_an_ensemble_under_drawn_turns():
    models, x = [dense(16) for _ in range(3)], images()
    rng = torch.Generator()
    invariance = L2InvarianceLoss(PlanarRotation(), samples=2, rng=rng)
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def value(one: dict[str, Tensor]) -> Tensor:
        return invariance(lambda v: functional_call(skeleton, (one, buffers), v), x)

    rng.manual_seed(2)
    actual = vmap(grad(value), randomness="same")({name: stacked.detach() for name, stacked in parameters.items()})
    for index, model in enumerate(models):
        rng.manual_seed(2)
        for name, gradient in zip(actual, gradients(model, invariance(model, x)), strict=True):
            torch.testing.assert_close(actual[name][index], gradient, rtol=1e-10, atol=1e-12)


LOW: dict[str, tuple[Any, Callable[[], Tensor], int | None]] = {
    "turns": (PlanarRotation(), images, 3),
    "shifts": (Translation(1.5), images, 3),
    "scales": (Scaling(), images, 3),
    "eighths": (CyclicRotation(8), images, None),
    "thirds and mirrors": (Dihedral(3), images, None),
    "restricted": (Restricted(PlanarRotation("bicubic"), [[math.pi / 4]]), images, None),
    "permutations": (SymmetricGroup(5, dim=1), points, 3),
    "turns in space": (SpatialRotation(), points, 3),
    "product": (SymmetricGroup(5, dim=1) * SpatialRotation(), points, 3),
    "wallpaper": (FINITE["wallpaper"][0], images, None),
    "set": (TransformationSet([lambda x: x + 0.5, lambda x: 0.5 * x]), images, None),
}


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOW)
@given_or_not
def test_low_precision_inputs_under_autocast_give_float32_close_to_full_precision(name, low, given):
    group, make, samples = LOW[name]
    x = make().float()
    model = dense(x[0].numel()).float()
    model[-1].weight.data *= 4

    def value(v: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(5)
        return L2InvarianceLoss(group, samples=samples, rng=rng)(model, v, model(v) if given else None)

    full = value(x)
    with torch.autocast("cpu", low):
        half = value(x.to(low))
        single = value(x)
    assert half.dtype == single.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.01)
    torch.testing.assert_close(single, full, rtol=0.1, atol=0.01)
    assert full > 0.02
    for gradient in gradients(model, half):
        assert gradient.isfinite().all()
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOW)
def test_models_of_low_precision_are_measured_in_float32(name, low):
    group, make, samples = LOW[name]
    x = make()
    model = dense(x[0].numel())
    full = L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(5))(model, x)
    half = L2InvarianceLoss(group, samples=samples, rng=torch.Generator().manual_seed(5))(model.to(low), x.to(low))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), full, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_several_tensors_under_autocast_keep_their_dtypes(low):
    image, mask = images().to(low), torch.randint(2, (5, 1, 4, 4))
    network, kinds = dense(32).float(), set()

    def model(v: dict[str, Tensor]) -> Tensor:
        kinds.add((v["image"].dtype, v["mask"].dtype))
        return network(torch.cat([v["image"], v["mask"].to(low)], 1))

    group = OnKeys({"image": PlanarRotation(), "mask": PlanarRotation("nearest")})
    loss = KLInvarianceLoss(group, samples=2, rng=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", low):
        value = loss(model, {"image": image, "mask": mask})
    assert value.dtype == torch.float32
    assert value > 1e-4
    assert kinds == {(low, torch.int64)}


def test_the_losses_differ():
    """The formulas that the tests above compare with are three."""
    x, model = images(), dense(16)
    values = [
        loss(PlanarRotation(), samples=2, rng=torch.Generator().manual_seed(1))(model, x).item()
        for loss in (L2InvarianceLoss, KLInvarianceLoss, NormalizedL2InvarianceLoss)
    ]
    assert len({round(value, 6) for value in values}) == 3
