"""Can a layer be tied to groups made of others: parts of one, products of two, groups that interpolate?"""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from invreg import (
    Conjugated,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    GroupPooling,
    L2InvarianceLoss,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SemidirectProduct,
    SpatialRotation,
    SymmetricGroup,
    TransformationSet,
    Translation,
    measure_invariance,
    tie_first_layer,
)
from tests.models import FlatteningMLP, SmallResNet, SmallViT
from tests.movement import INVARIANT, REDUCTIONS, every_reduction, hooks_of, movement, settled
from tests.test_pooling import pooled_in_loops
from tests.test_preserve import state_of
from tests.tolerances import assert_exact, assert_linear


def permuted(x: Tensor, g: list[int]) -> Tensor:
    y = torch.empty_like(x)
    for source, target in enumerate(g):
        y[:, target] = x[:, source]
    return y


def rolled(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.roll(torch.roll(x, rows, -2), columns, -1)


P4M = SemidirectProduct(CyclicTranslation(3, -1) * CyclicTranslation(3, -2), Dihedral(4))
"""All shifts by a third, turns and mirrors of an image."""

HALF_PLANE = SemidirectProduct(CyclicTranslation(2, -1), CyclicRotation(2))

EXACT: dict[str, tuple[FiniteGroup, list[Callable[[Tensor], Tensor]], tuple[int, ...]]] = {
    "turns among turns and mirrors": (
        Restricted(Dihedral(4), [1]),
        [lambda x, i=i: torch.rot90(x, i, (-2, -1)) for i in range(4)],
        (2, 6, 6),
    ),
    "a mirror among turns and mirrors": (Restricted(Dihedral(4), [4]), [lambda x: x, lambda x: x.flip(-1)], (2, 6, 6)),
    "wallpaper": (
        P4M,
        [
            lambda x, i=i, j=j, k=k, m=m: rolled(torch.rot90(x.flip(-1) if m else x, k, (-2, -1)), 2 * j, 2 * i)
            for i in range(3)
            for j in range(3)
            for m in (False, True)
            for k in range(4)
        ],
        (2, 6, 6),
    ),
    "half turns and half shifts": (
        HALF_PLANE,
        [lambda x, i=i, k=k: rolled(torch.rot90(x, 2 * k, (-2, -1)), 0, 3 * i) for i in range(2) for k in range(2)],
        (2, 6, 6),
    ),
    "flattened images": (
        Conjugated(CyclicRotation(4), lambda x: x.unflatten(1, (2, 6, 6)), lambda x: x.flatten(1), exact=True),
        [lambda x, i=i: torch.rot90(x.view(-1, 2, 6, 6), i, (-2, -1)).flatten(1) for i in range(4)],
        (72,),
    ),
    "cyclic orders among all": (
        Restricted(SymmetricGroup(5, dim=1), [[1, 2, 3, 4, 0]]),
        [lambda x, i=i: torch.roll(x, i, 1) for i in range(5)],
        (5, 3),
    ),
    "orders of the first three": (
        Restricted(SymmetricGroup(5, dim=1), [[1, 2, 0, 3, 4], [1, 0, 2, 3, 4]]),
        [
            lambda x, g=g: permuted(x, [*g, 3, 4])
            for g in ([0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0])
        ],
        (5, 3),
    ),
}

every_exact = pytest.mark.parametrize("name", EXACT)

IMAGE_MODELS = {
    "mlp": lambda: FlatteningMLP(2, 6, 6),
    "resnet": lambda: SmallResNet(2),
    "vit": lambda: SmallViT(2, 6, 6, patch=3),
}

PAIRS = [
    pytest.param(name, make, id=f"{kind}-{name}")
    for name, (_, _, shape) in EXACT.items()
    for kind, make in (IMAGE_MODELS if len(shape) == 3 else {"mlp": lambda shape=shape: FlatteningMLP(*shape)}).items()
]


# Exact groups


@pytest.mark.parametrize("reduction", REDUCTIONS)
@every_exact
def test_pooling_is_what_plain_loops_over_samples_and_elements_give(name, reduction):
    group, moves, shape = EXACT[name]
    reduction, reduce = REDUCTIONS[reduction]
    assert len(moves) == group.order
    layer = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)).double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        assert_linear(GroupPooling(layer, group, reduction)(x), pooled_in_loops(layer, moves, reduce, x))


@every_reduction
@every_exact
def test_pooling_is_exactly_invariant(name, reduction):
    group, moves, shape = EXACT[name]
    layer = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6))
    x = torch.randn(4, *shape)
    pooled = GroupPooling(layer, group, reduction)
    assert movement(pooled, group, x) <= INVARIANT
    assert movement(layer, group, x) > 100 * INVARIANT
    with torch.no_grad():
        for move in moves:
            torch.testing.assert_close(pooled(move(x)), pooled(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "make"), PAIRS)
def test_a_tied_model_is_exactly_invariant_and_untied_what_it_was(name, make):
    group, _, shape = EXACT[name]
    x = torch.randn(4, *shape)
    model = settled(make(), torch.randn(16, *shape))
    before, outputs = state_of(model), model(x)
    assert movement(model, group, x) > 10 * INVARIANT
    tie = tie_first_layer(model, group)
    assert movement(model, group, x) <= INVARIANT
    assert {k: v for k, v in state_of(model).items() if "hooks" not in k} == {
        k: v for k, v in before.items() if "hooks" not in k
    }
    tie.remove()
    assert_exact(model(x), outputs)
    assert hooks_of(model) == 0


@every_exact
def test_the_regulariser_and_the_audit_find_nothing_left(name):
    group, _, shape = EXACT[name]
    model, x = FlatteningMLP(*shape).double(), torch.randn(6, *shape, dtype=torch.float64)
    assert L2InvarianceLoss(group)(model, x).item() > 1e-4
    tie_first_layer(model, group)
    assert L2InvarianceLoss(group)(model, x).item() < 1e-24
    report = measure_invariance(model, [x], group, saliency=None)
    assert report.logit_error.mean < 1e-24
    assert report.action_error is None
    whole = {"a mirror among turns and mirrors": Dihedral(4), "cyclic orders among all": SymmetricGroup(5, dim=1)}
    if name in whole:  # to a part of the group is not to all of it
        larger = whole[name]
        settings = {} if isinstance(larger, FiniteGroup) else {"samples": 4}
        assert measure_invariance(model, [x], larger, saliency=None, **settings).logit_error.mean > 1e-5


@every_exact
def test_the_tie_can_be_trained_through(name):
    group, _, shape = EXACT[name]
    model, x, y = FlatteningMLP(*shape), torch.randn(8, *shape), torch.arange(8) % 5
    tie_first_layer(model, group)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert movement(model, group, x) <= INVARIANT


@every_exact
def test_copies_of_a_tied_model_are_tied_as_well(name):
    group, _, shape = EXACT[name]
    model, x = FlatteningMLP(*shape), torch.randn(4, *shape)
    tie_first_layer(model, group)
    expected = model(x)
    copies = [copy.deepcopy(model)]
    if "lambda" not in repr(group):
        copies.append(pickle.loads(pickle.dumps(model)))
    for other in copies:
        assert_exact(other(x), expected)
        assert movement(other, group, x) <= INVARIANT


def test_another_layer_can_be_named_under_a_product_too():
    model, x = SmallViT(2, 6, 6, patch=3).eval(), torch.randn(4, 2, 6, 6)
    before = state_of(model)
    tie = tie_first_layer(model, P4M, layer="head")
    assert movement(model, P4M, x) <= INVARIANT
    assert tie.layer == "head"
    tie.remove()
    assert state_of(model) == before


def test_images_that_do_not_fit_are_refused_and_the_model_left_as_it_was():
    model, x = FlatteningMLP(2, 8, 8), torch.randn(4, 2, 8, 8)
    before = state_of(model)
    tie = tie_first_layer(model, P4M)
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError), match=r"size it must divide: got size 8"):
            model(x)
    assert tie.layer is None
    tie.remove()
    assert state_of(model) == before
    pooled = GroupPooling(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), P4M)
    with pytest.raises((ValueError, RuntimeError), match=r"size it must divide: got size 8"):
        pooled(x)


# Groups that round


def test_a_group_behind_whitening_is_tied_up_to_rounding():
    group = Conjugated(Flip(), lambda x: (x - 0.4) / 0.2, lambda y: 0.2 * y + 0.4)
    assert not group.exact
    x = torch.rand(4, 2, 6, 6)
    model = FlatteningMLP(2, 6, 6)
    tie = tie_first_layer(model, group)
    assert movement(model, group, x) <= INVARIANT
    assert tie.layer == "stem"


# Groups that interpolate

INEXACT: dict[str, FiniteGroup] = {
    "eighths": CyclicRotation(8),
    "thirds and mirrors": Dihedral(3),
    "fifths": Restricted(PlanarRotation(), [[2 * math.pi / 5]]),
    "careful eighths": Restricted(PlanarRotation("bicubic", circular_mask=True), [[math.pi / 4]]),
    "thirds of a turn in space": Restricted(SpatialRotation(), [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]),
}

every_inexact = pytest.mark.parametrize("name", INEXACT)


def smooth(samples: int = 4, side: int = 12) -> Tensor:
    """Images of one blob each, which vanish towards the edges."""
    steps = torch.linspace(-1, 1, side)
    middles = 0.8 * torch.rand(samples, 2, 1, 1) - 0.4
    return torch.exp(-8 * ((steps[:, None] - middles[:, :1]) ** 2 + (steps - middles[:, 1:]) ** 2))


def inputs_for(group: FiniteGroup) -> Tensor:
    return torch.randn(4, 5, 3) if "Spatial" in repr(group) else smooth()


def explained(layer: nn.Module, group: FiniteGroup, x: Tensor, g: int) -> float:
    """How far pooled outputs may move: as far as the layer tells h(gx) from (hg)x, for the h where it tells most.

    The maximum and the mean move no further than the entry that moves most.
    """
    gx = group.act(torch.tensor(g), x)
    moved = [
        layer(group.act(torch.tensor(h), gx)) - layer(group.act(group.compose(torch.tensor(h), torch.tensor(g)), x))
        for h in range(group.order)
    ]
    return float(torch.stack(moved).abs().max())


@pytest.mark.parametrize("reduction", ["max", "mean"])
@every_inexact
def test_outputs_move_no_further_than_interpolation_explains(name, reduction):
    group = INEXACT[name]
    x = inputs_for(group)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 6))
    pooled = GroupPooling(layer, group, reduction)
    tied = copy.deepcopy(layer)
    tie = tie_first_layer(tied, group, reduction=reduction)
    with torch.no_grad():
        at_x = pooled(x)
        torch.testing.assert_close(tied(x), at_x, rtol=1e-5, atol=1e-6)
        assert tie.layer == "1"
        for g in range(1, group.order):
            limit = explained(layer, group, x, g) + 1e-5
            gx = group.act(torch.tensor(g), x)
            for model in (pooled, tied):
                assert float((model(gx) - at_x).abs().max()) <= limit
        apart = max(float((layer(group.act(torch.tensor(g), x)) - layer(x)).abs().max()) for g in range(1, group.order))
        assert apart > 3 * max(explained(layer, group, x, g) for g in range(1, group.order))


def test_that_bound_is_one_that_a_layer_alone_does_not_keep():
    group, x = CyclicRotation(8), smooth()
    layer = nn.Sequential(nn.Flatten(), nn.Linear(144, 6))
    with torch.no_grad():
        moved = float((layer(group.act(torch.tensor(1), x)) - layer(x)).abs().max())
        assert moved > explained(layer, group, x, 1) + 1e-5


@pytest.mark.parametrize("make", [lambda: FlatteningMLP(1, 12, 12), lambda: SmallResNet(1)], ids=["mlp", "resnet"])
@pytest.mark.parametrize("name", ["eighths", "thirds and mirrors", "fifths"])
def test_nothing_is_refused_and_what_is_left_is_of_the_size_of_the_actions_own(name, make):
    group, x = INEXACT[name], smooth(8)
    model = settled(make(), smooth(16))
    before, outputs = state_of(model), model(x)
    loose = measure_invariance(model, [x], group, saliency=None)
    tie = tie_first_layer(model, group)
    tied = measure_invariance(model, [x], group, saliency=None)
    assert tie.layer == "stem"
    assert 0 < tied.logit_error.mean < 4 * tied.action_logit_error.mean
    if isinstance(model, FlatteningMLP):  # the other one averages over places: it hardly sees turns before either
        assert loose.logit_error.mean > 10 * loose.action_logit_error.mean
        assert tied.normalized_logit_error.mean < 0.3 * loose.normalized_logit_error.mean
    assert tied.action_error == loose.action_error
    assert tied.action_error.mean > 1e-3
    tie.remove()
    assert_exact(model(x), outputs)
    assert state_of(model) == before


def test_quarter_turns_among_eighths_leave_outputs_alone():
    """Reading between pixels commutes with quarter turns of a square."""
    group, x = CyclicRotation(8), torch.randn(4, 1, 12, 12)
    model = FlatteningMLP(1, 12, 12)
    tie_first_layer(model, group)
    with torch.no_grad():
        at_x = model(x)
        for turns in (1, 2, 3):
            torch.testing.assert_close(model(torch.rot90(x, turns, (-2, -1))), at_x, rtol=1e-4, atol=1e-5)
        assert float((model(group.act(torch.tensor(1), x)) - at_x).abs().max()) > 1e-3


@every_inexact
def test_the_tie_to_a_group_that_interpolates_has_gradients(name):
    group = INEXACT[name]
    x = inputs_for(group).requires_grad_()
    model = FlatteningMLP(*x.shape[1:])
    tie_first_layer(model, group)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())
    assert x.grad.abs().max() > 0


# What cannot be tied

INFINITE = [
    SymmetricGroup(20, dim=1),
    SymmetricGroup(3, dim=1),
    PlanarRotation(),
    SpatialRotation(),
    Translation(),
    Scaling(),
    SymmetricGroup(5, dim=1) * SpatialRotation(),
    Conjugated(PlanarRotation(), torch.clone, torch.clone),
    OnKeys({"image": PlanarRotation()}),
    TransformationSet([torch.neg]),
]


@pytest.mark.parametrize("build", [tie_first_layer, GroupPooling], ids=["tie", "pool"])
@pytest.mark.parametrize("group", INFINITE, ids=repr)
def test_what_has_no_list_of_elements_or_is_no_group_is_refused_at_once(build, group):
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 3))
    before = state_of(model)
    with pytest.raises(TypeError, match=r"FiniteGroup") as caught:
        build(model, group)
    assert repr(group) in str(caught.value)
    assert state_of(model) == before


class Together(nn.Module):
    """A network on an image and its mask, in one dict or as two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 6)

    def forward(self, image, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            image, mask = image["image"], image["mask"]
        return self.stem(torch.cat([image, mask], 1).flatten(1))


PAIR = {"image": torch.randn(5, 1, 4, 4), "mask": torch.randn(5, 1, 4, 4)}
ON_KEYS = OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)})


@pytest.mark.parametrize("arguments", [(PAIR,), tuple(PAIR.values())], ids=["dict", "two tensors"])
def test_inputs_of_several_tensors_cannot_be_tied_and_say_so(arguments):
    model = Together()
    before, outputs = state_of(model), model(*arguments)
    try:
        tie = tie_first_layer(model, ON_KEYS)
    except (TypeError, ValueError) as refusal:  # at once is as good
        assert "OnKeys" in str(refusal)  # noqa: PT017  # whichever of the two raises
        assert state_of(model) == before
        return
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=r"tensor"):
            model(*arguments)
    assert tie.layer is None
    tie.remove()
    assert state_of(model) == before
    assert_exact(model(*arguments), outputs)


@every_reduction
def test_inputs_of_several_tensors_are_pooled_as_their_channels_in_one(reduction):
    model, group = Together(), CyclicRotation(4)
    pooled = GroupPooling(model, ON_KEYS, reduction)
    layer = nn.Sequential(nn.Flatten(), model.stem)
    with torch.no_grad():
        expected = GroupPooling(layer, group, reduction)(torch.cat(list(PAIR.values()), 1))
        assert_linear(pooled(PAIR), expected)
        for g in group.non_identity_elements():
            assert_linear(pooled(ON_KEYS.act(g, PAIR)), expected)
        alone = {"image": torch.rot90(PAIR["image"], 1, (-2, -1)), "mask": PAIR["mask"]}
        # The mean of a linear layer over pairs is that over images and over masks; all else sees which belong together.
        assert (float((pooled(alone) - expected).abs().max()) > 1e-2) == (reduction != "mean")
    assert pooled({key: value[:0] for key, value in PAIR.items()}).shape == (0, 6)
    with pytest.raises((TypeError, ValueError), match=r"acts on the keys \['image', 'mask'\]"):
        pooled({"image": PAIR["image"]})
    with pytest.raises((TypeError, ValueError), match=r"acts on mappings.*got Tensor"):
        pooled(PAIR["image"])


def test_the_image_alone_can_be_tied_where_it_is_the_first_tensor():
    """A group on one tensor ties a model of two arguments in its first; the second one must not count rows."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(16, 6)

        def forward(self, image: Tensor, factor: Tensor) -> Tensor:
            return self.stem(image.flatten(1)) * factor[:, None]

    model, factor = Scaled(), torch.rand(5) + 0.5
    tie_first_layer(model, Restricted(Dihedral(4), [1]))
    x = PAIR["image"]
    with torch.no_grad():
        assert_linear(model(torch.rot90(x, 1, (-2, -1)), factor), model(x, factor))
