"""Does a tied first layer make any model invariant, and leave all else about it alone?"""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    FiniteGroup,
    Flip,
    GroupPooling,
    L2InvarianceLoss,
    SignFlip,
    Trivial,
    measure_invariance,
    tie_first_layer,
    tying,
)
from tests.groups.catalogue import CATALOGUE
from tests.models import FlatteningMLP, ParallelStems, SignalNet, SmallResNet, SmallViT
from tests.movement import (
    INVARIANT,
    REFUSED,
    broken_pool,
    every_reduction,
    hooks_of,
    movement,
    quarter_turned,
    settled,
)
from tests.test_preserve import state_of
from tests.tolerances import assert_exact, assert_linear

# tie_first_layer: invariance

MODELS: dict[str, tuple[tuple[int, ...], Callable[..., nn.Module]]] = {
    "mlp": ((1, 2, 3, 4), FlatteningMLP),
    "signals": ((2,), lambda *shape: SignalNet(shape[0])),
    "resnet": ((3,), lambda *shape: SmallResNet(shape[0])),
    "vit": ((3,), SmallViT),
    "vit that notes the batch after": ((3,), partial(SmallViT, notes_batch="after")),
    "vit that normalises": ((3,), partial(SmallViT, normalises=True, notes_batch="after")),
}
"""How many axes the samples have, and how to make the model from their shape."""


@pytest.mark.parametrize(
    ("group", "shape", "make"),
    [
        pytest.param(entry.group, shape, make, id=f"{name}-{entry.name}-on-{'x'.join(map(str, shape))}")
        for name, (axes, make) in MODELS.items()
        for entry in CATALOGUE
        for shape in entry.shapes
        if entry.group.exact and len(shape) in axes
    ],
)
def test_a_tied_model_is_exactly_invariant(group, shape, make):
    x = torch.randn(4, *shape)
    model = settled(make(*shape), torch.randn(16, *shape))
    assert group.order == 1 or movement(model, group, x) > 10 * INVARIANT
    tie_first_layer(model, group)
    assert movement(model, group, x) <= INVARIANT


def normalisation_commutes(model: SmallViT, group: FiniteGroup, x: Tensor) -> bool:
    mean, deviation, x = (tensor.double() for tensor in (model.mean, model.deviation, x))

    def normalise(x: Tensor) -> Tensor:
        return (x - mean) / deviation

    return all(torch.allclose(normalise(group.act(g, x)), group.act(g, normalise(x))) for g in group.elements())


@pytest.mark.parametrize(
    ("group", "shape"),
    [pytest.param(e.group, s, id=e.name) for e in CATALOGUE for s in e.shapes if e.group.exact and len(s) == 3],
)
def test_a_model_that_notes_the_batch_and_normalises_is_tied_where_both_commute_and_else_refused(group, shape):
    model = SmallViT(*shape, normalises=True, notes_batch="before").eval()
    x = torch.randn(4, *shape)
    commutes = normalisation_commutes(model, group, x)
    before = state_of(model)
    tie = tie_first_layer(model, group)
    if commutes:
        assert movement(model, group, x) <= INVARIANT
    else:
        with pytest.raises(REFUSED, match="patches"):
            model(x)
        tie.remove()
        assert state_of(model) == before


def test_both_cases_of_the_test_above_occur():
    model = SmallViT(3, 3, 3, normalises=True)
    x = torch.randn(2, 3, 3, 3)
    assert normalisation_commutes(model, CyclicRotation(4), x)
    assert not normalisation_commutes(model, SignFlip(), x)
    assert not normalisation_commutes(model, CyclicPermutation(3, dim=1), x)


IMAGE_MODELS = {
    "mlp": lambda: FlatteningMLP(2, 8, 8),
    "resnet": lambda: SmallResNet(2),
    "vit": lambda: SmallViT(2, 8, 8, patch=4),
    "vit that notes the batch after": lambda: SmallViT(2, 8, 8, patch=4, notes_batch="after"),
    "vit that normalises": lambda: SmallViT(2, 8, 8, patch=4, normalises=True, notes_batch="after"),
    "vit that notes the batch and normalises": lambda: SmallViT(2, 8, 8, patch=4, normalises=True),
}
"""Models for images (2, 8, 8)."""

every_model = pytest.mark.parametrize("make", list(IMAGE_MODELS.values()), ids=list(IMAGE_MODELS))

two_models = pytest.mark.parametrize("make", [IMAGE_MODELS["mlp"], IMAGE_MODELS["vit"]], ids=["mlp", "vit"])
"""One whose orbit is made where the data enters, one whose orbit is made at the layer."""


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, 8, 8, dtype=dtype)


@every_reduction
@every_model
def test_a_model_of_images_is_invariant_under_each_reduction(make, reduction):
    model = settled(make(), images(16))
    tie_first_layer(model, CyclicRotation(4), reduction=reduction)
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 4e-2)])
@every_model
def test_a_model_is_invariant_in_other_dtypes(make, dtype, tolerance):
    model = settled(make(), images(16)).to(dtype)
    tie_first_layer(model, CyclicRotation(4))
    x = images(dtype=dtype)
    assert model(x).dtype == dtype
    assert movement(model, CyclicRotation(4), x) <= tolerance


def test_a_tie_pools_over_what_the_layer_makes_of_the_orbit():
    model = FlatteningMLP(2, 8, 8)
    x = images()
    expected = model.head(
        torch.tanh(torch.stack([model.stem(quarter_turned(x, k).flatten(1)) for k in range(4)]).amax(0))
    )
    tie_first_layer(model, CyclicRotation(4))
    assert_linear(model(x), expected)


def test_a_tie_to_the_trivial_group_changes_nothing():
    model = settled(SmallResNet(2), images(16))
    x = images()
    expected = model(x)
    tie_first_layer(model, Trivial())
    assert_linear(model(x), expected)


def reflected(x: Tensor) -> Tensor:
    """The mirror image in the plane across (1, 2, 3, ...), along the last axis: it mixes entries and rounds."""
    normal = nn.functional.normalize(torch.arange(1, x.shape[-1] + 1, dtype=x.dtype), dim=0)
    return x - 2 * (x * normal).sum(-1, keepdim=True) * normal


def unmoved(x: Tensor) -> Tensor:
    return x


def test_a_group_whose_action_rounds_ties_too():
    group = FiniteGroup.from_actions([unmoved, reflected])
    assert not group.exact
    model = FlatteningMLP(2, 8, 8)
    x = images()
    assert movement(model, group, x) > 1e-2
    tie_first_layer(model, group)
    assert movement(model, group, x) < 1e-4


@every_model
def test_one_sample_is_tied_as_well_as_many(make):
    model = settled(make(), images(16))
    x = images()
    tie_first_layer(model, CyclicRotation(4))
    one = model(x[:1])
    assert one.shape == (1, 5)
    assert_linear(one, model(x)[:1])
    assert movement(model, CyclicRotation(4), x[:1]) <= INVARIANT


@every_model
def test_no_sample_gives_no_output_once_the_model_is_tied(make):
    model = settled(make(), images(16))
    tie_first_layer(model, CyclicRotation(4))
    model(images())
    assert model(images(0)).shape == (0, 5)


@two_models
def test_a_first_batch_without_samples_leaves_the_tie_to_the_next(make):
    model = make().eval()
    tie_first_layer(model, CyclicRotation(4))
    assert model(images(0)).shape == (0, 5)
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT


def test_the_first_forward_notices_a_pooling_that_forgets_elements(monkeypatch):
    monkeypatch.setattr(tying, "pool", broken_pool)
    model = FlatteningMLP(2, 8, 8)
    tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(ValueError, match="not invariant"):
        model(images())


# tie_first_layer: training


class PooledByHand(nn.Module):
    """A layer pooled over quarter turns, written out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(quarter_turned(x, k)) for k in range(4)]).amax(0)


def pooled_by_hand(model: nn.Module) -> nn.Module:
    """A copy of an image model whose first layer is pooled, without invreg. Its parameters have the same order."""
    model = copy.deepcopy(model)
    if isinstance(model, FlatteningMLP):
        head, stem = model.head, model.stem
        model = nn.Sequential()
        model.head = head
        model.stem = PooledByHand(nn.Sequential(nn.Flatten(), stem))
        model.forward = lambda x: model.head(torch.tanh(model.stem(x)))
    elif isinstance(model, SmallResNet):
        model.stem = PooledByHand(model.stem)
    else:
        model.patches = PooledByHand(model.patches)
    return model


@every_model
def test_gradients_and_statistics_are_those_of_a_model_pooled_by_hand(make):
    model = make().double()
    expected = pooled_by_hand(model)
    tie_first_layer(model, CyclicRotation(4))
    x, by_hand = (images(dtype=torch.float64).requires_grad_() for _ in range(2))
    with torch.no_grad():
        by_hand.copy_(x)
    model(x).square().sum().backward()
    expected(by_hand).square().sum().backward()
    assert_linear(x.grad, by_hand.grad)
    assert x.grad.abs().max() > 0
    for actual, reference in zip(model.parameters(), expected.parameters(), strict=True):
        assert_linear(actual.grad, reference.grad)
        assert actual.grad.abs().max() > 0
    for actual, reference in zip(model.buffers(), expected.buffers(), strict=True):
        assert_exact(actual, reference) if actual.dtype == torch.int64 else assert_linear(actual, reference)


@every_reduction
@two_models
def test_gradients_of_a_tied_model_are_those_of_finite_differences(make, reduction):
    model = make().double()
    tie_first_layer(model, Flip(), reduction=reduction)
    x = images(1, dtype=torch.float64).requires_grad_()
    weight = {"stem.bias": model.stem.bias} if isinstance(model, FlatteningMLP) else {"cls_token": model.cls_token}
    (name, parameter), *_ = weight.items()
    assert torch.autograd.gradcheck(lambda x, p: functional_call(model, {name: p}, (x,)), (x, parameter))


@every_model
def test_parameters_and_the_keys_of_the_state_dict_stay_as_they_were(make):
    model = make()
    parameters = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    tie = tie_first_layer(model, CyclicRotation(4))
    for step in (lambda: model(images()), tie.remove):
        assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == parameters
        assert list(model.state_dict()) == keys
        assert [name for name, _ in model.named_modules()] == modules
        step()
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == parameters
    assert list(model.state_dict()) == keys


@every_model
def test_an_optimiser_made_before_the_tie_trains_the_tied_model(make):
    model = make().double()
    expected = pooled_by_hand(model)
    optimisers = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (model, expected)]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tie_first_layer(model, CyclicRotation(4))
    x, y = images(8, dtype=torch.float64), torch.arange(8) % 5
    losses = []
    for _ in range(3):
        for each, optimiser in zip((model, expected), optimisers, strict=True):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(each(x), y)
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for actual, reference, old in zip(model.parameters(), expected.parameters(), before, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-8, atol=1e-8)
        assert not torch.equal(actual, old)


@every_model
def test_a_state_dict_from_before_the_tie_loads_into_the_tied_model(make):
    model, other = settled(make(), images(16)), make().eval()
    state = copy.deepcopy(model.state_dict())
    x = images()
    for each in (model, other):
        tie_first_layer(each, CyclicRotation(4))
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(state)
    assert_exact(other(x), model(x))


def test_the_first_forward_in_training_mode_is_one_forward_to_the_statistics_and_the_dropout():
    x = images()
    untouched = ParallelStems(2)
    first, later = copy.deepcopy(untouched), copy.deepcopy(untouched)
    for model in (first, later):
        tie_first_layer(model, CyclicRotation(4), layer="block")
    with torch.no_grad():
        later.eval()(images())
    for (name, actual), before in zip(later.state_dict().items(), untouched.state_dict().values(), strict=True):
        assert_exact(actual, before, name)
    outputs, random_numbers = [], []
    for model in (first, later):
        torch.manual_seed(3)
        outputs.append(model.train()(x))
        random_numbers.append(torch.random.get_rng_state())
    assert_exact(*outputs)
    assert_exact(*random_numbers)
    assert first.block.norm1.num_batches_tracked == 1
    assert first.block.norm1.running_mean.abs().max() > 0
    for (name, actual), expected in zip(first.state_dict().items(), later.state_dict().values(), strict=True):
        assert_exact(actual, expected, name)


@every_model
def test_the_first_forward_leaves_modes_gradients_and_random_numbers_alone(make):
    model = settled(make(), images(16))
    model(images()).sum().backward()
    next(model.children()).train()  # mixed modes
    tie = tie_first_layer(model, CyclicRotation(4))
    before = state_of(model)
    model(images_from(7)).detach()
    after = state_of(model)
    changed = {key for key in before if after[key] != before[key]}
    # Only the tied layer has got hooks, and only on the way forward.
    allowed = {f"_forward_hooks of {tie.layer}", f"_forward_pre_hooks of {tie.layer}"}
    assert f"_forward_hooks of {tie.layer}" in changed
    assert changed <= allowed
    assert torch.is_grad_enabled()


def images_from(seed: int) -> Tensor:
    """Images that take no random numbers from the global generator."""
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


class Watching(FlatteningMLP):
    """Notes for each forward whether it is in training mode and whether gradients are on."""

    def __init__(self) -> None:
        super().__init__(2, 8, 8)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        return super().forward(x)


def test_what_the_first_forward_tries_out_is_without_gradients_and_in_training_mode_only_up_to_the_layer():
    model = Watching()
    heads: list[bool] = []
    model.head.register_forward_hook(lambda *_: heads.append(model.training))
    tie_first_layer(model, CyclicRotation(4))
    model(images())
    *tried, own = model.seen
    assert own == (True, True)
    assert set(tried) == {(False, False), (True, False)}
    assert heads.count(True) == 1
    model(images())
    assert model.seen[len(tried) + 1 :] == [(True, True)]


class Counting(nn.Module):
    """Counts its forwards in a buffer, in eval mode too, as observers for quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(128, 3)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.stem(x.flatten(1))


def test_the_first_forward_is_one_forward_to_a_buffer_that_moves_in_eval_mode():
    model = Counting().eval()
    tie_first_layer(model, CyclicRotation(4))
    model(images())
    assert model.forwards == 1


def test_a_first_forward_without_gradients_does_not_take_them_from_the_next():
    model = SmallResNet(2).eval()
    tie_first_layer(model, CyclicRotation(4))
    with torch.no_grad():
        assert not model(images()).requires_grad
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_in_training_mode_works_and_in_eval_mode_leaves_the_invariance():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.Dropout(0.5), nn.Linear(64, 5))
    tie_first_layer(model, CyclicRotation(4))
    x = images()
    first, second = model(x), model(x)
    assert (first - second).abs().max() > 1e-2
    first.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert movement(model.eval(), CyclicRotation(4), x) <= INVARIANT


def test_dropout_before_the_layer_does_not_look_like_a_lack_of_invariance():
    model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 5))
    tie = tie_first_layer(model, CyclicRotation(4))
    assert model(images()).shape == (4, 5)
    assert tie.layer == "2"


@every_model
def test_a_loss_towards_invariance_has_nothing_left_to_do(make):
    untied, model = make(), make()
    tie_first_layer(model, CyclicRotation(4))
    invariance = L2InvarianceLoss(CyclicRotation(4))
    x, y = images(8), torch.arange(8) % 5
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):
        logits = model(x)
        loss = invariance(model, x, logits)
        assert float(loss.detach()) <= 1e-9
        assert float(invariance(model, x).detach()) <= 1e-9
        optimiser.zero_grad()
        (nn.functional.cross_entropy(logits, y) + loss).backward()
        optimiser.step()
    assert float(invariance(untied, x).detach()) > 1e-5


@every_model
def test_an_audit_of_a_tied_model_finds_no_error_and_equal_saliency_maps(make):
    model = settled(make(), images(16))
    loader = [(images(), torch.arange(4)), (images(2), torch.arange(2))]
    audit = partial(measure_invariance, loader=loader, group=CyclicRotation(4), progress=False)
    untied = audit(model)
    tie_first_layer(model, CyclicRotation(4))
    report = audit(model)
    for name in ("logit_error", "distribution_error", "normalized_logit_error"):
        assert getattr(untied, name).mean > 1e-6
        assert 0 <= getattr(report, name).mean <= 1e-10
    assert untied.saliency_similarity.mean < 0.99
    assert report.saliency_similarity.mean == pytest.approx(1, abs=1e-6)
    assert report.consistency.mean == 1


# tie_first_layer: removal and copies


@every_model
@pytest.mark.parametrize("forwards", [0, 2])
def test_removal_restores_the_outputs_bit_for_bit_and_takes_every_hook(make, forwards):
    model = settled(make(), images(16))
    model.register_forward_hook(lambda *_: None)
    x, hooks, state = images(), hooks_of(model), state_of(model)
    expected = model(x)
    tie = tie_first_layer(model, CyclicRotation(4))
    for _ in range(forwards):
        assert not torch.equal(model(x), expected)
    assert hooks_of(model) > hooks
    tie.remove()
    assert_exact(model(x), expected)
    assert hooks_of(model) == hooks
    assert state_of(model) == state
    tie.remove()
    assert_exact(model(x), expected)


def test_a_tie_can_be_made_anew_after_its_removal():
    model = FlatteningMLP(2, 8, 8)
    x = images()
    tie = tie_first_layer(model, Flip(-1))
    model(x)
    tie.remove()
    tie_first_layer(model, Flip(-2))
    assert movement(model, Flip(-2), x) <= INVARIANT
    assert movement(model, Flip(-1), x) > 100 * INVARIANT


@two_models
def test_a_tie_lasts_for_its_block(make):
    model = make().eval()
    x = images()
    expected, hooks = model(x), hooks_of(model)
    with tie_first_layer(model, CyclicRotation(4)) as tie:
        assert movement(model, CyclicRotation(4), x) <= INVARIANT
        assert tie.layer is not None
    assert_exact(model(x), expected)
    assert hooks_of(model) == hooks


def fail_while_tied(model: nn.Module) -> None:
    with tie_first_layer(model, CyclicRotation(4)):
        model(images())
        raise KeyError("mine")


def test_a_tie_ends_with_its_block_also_if_that_raises():
    model = FlatteningMLP(2, 8, 8)
    with pytest.raises(KeyError, match="mine"):
        fail_while_tied(model)
    assert hooks_of(model) == 0


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("forwards", [0, 1])
@every_model
def test_a_copy_is_tied_and_independent(make, forwards, copied):
    model = settled(make(), images(16))
    x = images()
    untied = model(x)
    tie = tie_first_layer(model, CyclicRotation(4))
    for _ in range(forwards):
        model(x)
    other = copied(model)
    assert movement(other, CyclicRotation(4), x) <= INVARIANT
    assert (tie.layer is None) == (forwards == 0)  # the copy's first forward is not the model's
    assert_exact(other(x), model(x))
    expected = model(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert_exact(model(x), expected)
    tie.remove()
    assert_exact(model(x), untied)
    assert hooks_of(model) == 0
    assert movement(other, CyclicRotation(4), x) <= INVARIANT
    assert not torch.equal(other(x), expected)


def test_a_tie_says_what_it_ties():
    model = FlatteningMLP(2, 8, 8)
    tie = tie_first_layer(model, CyclicRotation(4), reduction="mean")
    assert tie.layer is None
    assert "CyclicRotation(order=4)" in repr(tie)
    assert "mean" in repr(tie)
    model(images())
    assert tie.layer == "stem"
    assert "'stem'" in repr(tie)


# tie_first_layer: which layer


@every_model
def test_the_layer_is_the_first_that_the_data_meets(make):
    model = make().eval()
    tie = tie_first_layer(model, CyclicRotation(4))
    model(images())
    assert tie.layer == ("patches" if isinstance(model, SmallViT) else "stem")


NORMALISATIONS = [
    nn.BatchNorm2d(2),
    nn.GroupNorm(1, 2),
    nn.InstanceNorm2d(2, affine=True),
    nn.LayerNorm(8),
    nn.LayerNorm([8, 8]),
    nn.LayerNorm([2, 8, 8]),
    nn.RMSNorm([2, 8, 8]),
]


@pytest.mark.parametrize("norm", NORMALISATIONS, ids=repr)
def test_a_normalisation_before_the_layer_is_skipped(norm):
    model = nn.Sequential(norm, nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    tie = tie_first_layer(model, CyclicRotation(4))
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT
    assert tie.layer == "1"


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_layer_is_found_like_any_other(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 5)).eval()
    getattr(nn.utils.parametrizations, name)(model[1])
    tie = tie_first_layer(model, CyclicRotation(4))
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT
    assert tie.layer == "1"


def test_a_layer_that_the_first_data_gives_its_shape_is_found_like_any_other():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.Tanh(), nn.Linear(16, 5))
    tie = tie_first_layer(model, CyclicRotation(4))
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT
    assert tie.layer == "1"


def test_a_layer_put_in_before_the_first_forward_is_found_like_any_other():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    tie = tie_first_layer(model, CyclicRotation(4))
    model[0] = nn.Conv2d(2, 4, 3)
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT
    assert tie.layer == "0"


def test_a_model_that_is_one_layer_is_tied_itself():
    model = nn.Conv2d(2, 4, 3)
    tie = tie_first_layer(model, Flip())
    x = images()
    assert movement(model, Flip(), x) <= INVARIANT
    assert tie.layer == ""
    assert_linear(model(x), GroupPooling(copy.deepcopy(model), Trivial())(x), "pooled twice would be another map")


@pytest.mark.parametrize("name", ["block", "head", "dropout", ""])
@pytest.mark.parametrize("by", ["name", "module"])
def test_any_submodule_can_be_named_or_given(name, by):
    model = settled(ParallelStems(2), images(16))
    tie = tie_first_layer(model, CyclicRotation(4), layer=name if by == "name" else model.get_submodule(name))
    x = images()
    assert movement(model, CyclicRotation(4), x) <= INVARIANT
    assert tie.layer == name
    tie.remove()
    assert movement(model, CyclicRotation(4), x) > 100 * INVARIANT


def test_a_module_with_two_names_can_be_named_by_either():
    model = FlatteningMLP(2, 8, 8)
    model.alias = model.stem
    tie_first_layer(model, CyclicRotation(4), layer="alias")
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT


class CrossAttention(nn.Module):
    """Each query gathers what it finds in the tokens. The data is the second operand."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries.expand(len(tokens), -1, -1)
        return nn.functional.scaled_dot_product_attention(queries, self.keys(tokens), self.values(tokens))


class Perceiver(nn.Module):
    """Learned queries look at the data."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 6))
        self.look = CrossAttention()
        self.head = nn.Linear(6, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.look(self.queries, tokens).mean(1))


def test_a_block_may_take_the_data_after_another_tensor():
    model = Perceiver()
    x = torch.randn(4, 7, 8)
    assert movement(model, Flip(2), x) > 100 * INVARIANT
    tie_first_layer(model, Flip(2), layer="look")
    assert movement(model, Flip(2), x) <= INVARIANT


def test_a_layer_chosen_is_pooled_there():
    model = settled(ParallelStems(2), images(16))
    x = images()
    expected = model.head(torch.stack([model.block(quarter_turned(x, k)) for k in range(4)]).mean(0).mean((2, 3)))
    tie_first_layer(model, CyclicRotation(4), layer="block", reduction="mean")
    assert_linear(model(x), expected)


class Frames(nn.Module):
    """Calls its stem once for each frame of a film, (frames, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4 * 36 * 3, 5)

    def forward(self, film: Tensor) -> Tensor:
        return self.head(torch.stack([self.stem(frame) for frame in film.unbind(1)], 1).flatten(1))


class FoldedFrames(Frames):
    """Takes all frames of all films for one batch."""

    def __init__(self, *, notes_batch: str) -> None:
        super().__init__()
        self.notes_batch = notes_batch

    def forward(self, film: Tensor) -> Tensor:
        films = len(film)
        frames = self.stem(film.flatten(0, 1))
        if self.notes_batch == "after":
            films = len(frames) // 3
        return self.head(frames.view(films, -1))


@pytest.mark.parametrize(
    ("make", "group"),
    [
        pytest.param(Frames, CyclicRotation(4), id="frame by frame, turned"),
        pytest.param(Frames, CyclicPermutation(3, dim=1), id="frame by frame, shifted in time"),
        pytest.param(partial(FoldedFrames, notes_batch="before"), CyclicRotation(4), id="batch noted before, turned"),
        pytest.param(partial(FoldedFrames, notes_batch="after"), CyclicRotation(4), id="batch noted after, turned"),
        pytest.param(
            partial(FoldedFrames, notes_batch="after"), CyclicPermutation(3, dim=1), id="batch noted after, shifted"
        ),
    ],
)
def test_a_layer_that_meets_the_data_piece_by_piece_is_pooled_on_each_piece(make, group):
    model = make()
    x = torch.randn(4, 3, 2, 8, 8)
    assert movement(model, group, x) > 100 * INVARIANT
    tie_first_layer(model, group)
    assert movement(model, group, x) <= INVARIANT


class Repeats(nn.Module):
    """Applies its first layer twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(128, 128)
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(torch.tanh(self.stem(x.flatten(1))))))


class ViewsByRows(nn.Module):
    """Notes the number of rows, normalises, and later gives its patches back that number."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        return self.head(self.patches((x - 0.5) / 2).reshape(rows, 6, -1).mean(2))


@pytest.mark.parametrize("make", [Repeats, ViewsByRows])
@pytest.mark.parametrize("n", [1, 3, 4, 8])
def test_a_tied_model_returns_one_row_per_sample_or_refuses(make, n):
    model = make()
    before = state_of(model)
    tie = tie_first_layer(model, CyclicRotation(4))
    x = images_from(1).repeat(2, 1, 1, 1)[:n]
    try:
        outputs = model(x)
    except REFUSED:
        tie.remove()
        assert state_of(model) == before
    else:
        assert outputs.shape == (n, 5)
        assert movement(model, CyclicRotation(4), x) <= INVARIANT


# tie_first_layer: what is refused


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_layers_that_meet_the_data_side_by_side_are_listed_and_the_model_is_left_as_it_was(n, training):
    model = ParallelStems(2)
    model(images(8)).sum().backward()
    model.train(training)
    twin = copy.deepcopy(model)
    before = state_of(model)
    tie = tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(REFUSED) as refusal:
        model(torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert "block.conv1" in str(refusal.value)
    assert "block.shortcut" in str(refusal.value)
    assert "layer=" in str(refusal.value)
    tie.remove()
    assert state_of(model) == before
    x = images()
    assert_exact(model.eval()(x), twin.eval()(x))


def test_a_first_batch_that_no_element_moves_hides_nothing():
    model = ParallelStems(2).eval()
    tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(REFUSED, match=r"block\.shortcut"):
        [model(x) for x in (torch.zeros(4, 2, 8, 8), images())]


def test_a_tie_that_was_refused_names_no_layer():
    model = ParallelStems(2).eval()
    tie = tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(REFUSED):
        model(images())
    assert tie.layer is None


@pytest.mark.parametrize("tied_before", [False, True], ids=["first forward", "later forward"])
@every_model
def test_images_that_the_group_cannot_turn_get_the_message_of_the_group(make, tied_before):
    model = settled(make(), images(16)).train()
    wide = torch.randn(3, 2, 8, 6, generator=torch.Generator().manual_seed(1))
    model_of_any_size = isinstance(model, SmallResNet)
    if not model_of_any_size:  # 8 x 16 = 128 entries, as the others expect
        wide = torch.randn(3, 2, 4, 16, generator=torch.Generator().manual_seed(1))
    tie = tie_first_layer(model, CyclicRotation(4))
    if tied_before:
        model.eval()(images_from(1))
        model.train()
    before = state_of(model)
    size = tuple(wide.shape[2:])
    with pytest.raises(ValueError, match=rf"turns square images: got images of shape \({size[0]}, {size[1]}\)"):
        model(wide)
    assert state_of(model) == before
    x = images_from(1)  # better data: the tie is still there
    torch.testing.assert_close(model.eval()(x), model(x.rot90(1, (-2, -1))))
    tie.remove()
    assert hooks_of(model) == 0


@dataclass(frozen=True)
class Faulty(FiniteGroup):
    """A group of the user's whose action raises."""

    order = 2
    exact = True

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return (g + h) % 2

    def inverse(self, g: Tensor) -> Tensor:
        return g

    def transform(self, index: int, x: Tensor) -> Tensor:
        raise ArithmeticError("mine")


@two_models
def test_a_group_that_raises_leaves_no_hook_on_the_layer(make):
    model = make()
    before = state_of(model)
    tie = tie_first_layer(model, Faulty())
    with pytest.raises(Exception, match="mine"):
        model(images_from(1))
    tie.remove()
    assert state_of(model) == before


def test_a_model_without_weights_is_refused_at_once():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(ValueError, match=r"no layer with weights.*layer="):
        tie_first_layer(model, CyclicRotation(4))
    assert hooks_of(model) == 0
    tie_first_layer(model, CyclicRotation(4), layer="1")
    assert movement(model.eval(), CyclicRotation(4), images()) <= INVARIANT


@pytest.mark.parametrize(
    ("layer", "came"),
    [("stemm", "'stemm'"), (nn.Linear(128, 16), "a Linear"), (3, "int")],
    ids=["unknown name", "foreign module", "a number"],
)
def test_a_layer_that_is_not_in_the_model_is_refused_at_once(layer, came):
    model = FlatteningMLP(2, 8, 8)
    with pytest.raises(ValueError, match="layer must be a submodule of FlatteningMLP") as refusal:
        tie_first_layer(model, CyclicRotation(4), layer=layer)
    assert came in str(refusal.value)
    assert "'stem'" in str(refusal.value)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("forwards", [0, 1])
def test_a_model_is_not_tied_twice(forwards):
    model = FlatteningMLP(2, 8, 8)
    tie_first_layer(model, CyclicRotation(4))
    x = images()
    for _ in range(forwards):
        model(x)
    hooks = hooks_of(model)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match="tied already"):
            tie_first_layer(each, Flip())
    assert hooks_of(model) == hooks
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


def test_what_is_no_module_is_refused_at_once():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module.*function"):
        tie_first_layer(lambda x: x, CyclicRotation(4))


class Unused(nn.Module):
    """Has a layer that its forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(128, 5)
        self.spare = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x.flatten(1))


def test_a_layer_that_the_data_does_not_meet_is_refused_and_the_model_left_untied():
    model = Unused()
    before = state_of(model)
    tie = tie_first_layer(model, CyclicRotation(4), layer="spare")
    x = images_from(1)
    with pytest.raises(ValueError, match="'spare'"):
        model(x)
    tie.remove()
    assert state_of(model) == before
    assert_exact(model(x), model.stem(x.flatten(1)))


class PositionsFirst(nn.Module):
    """Looks its positions up before the data meets any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 6)
        self.embed = nn.Linear(16, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.positions(torch.arange(8, device=x.device))
        return self.head(torch.tanh(self.embed(x.transpose(1, 2).flatten(2)) + positions).mean(1))


def test_a_layer_that_runs_before_the_data_comes_is_not_tied_in_silence():
    model = PositionsFirst()
    before = state_of(model)
    tie = tie_first_layer(model, CyclicRotation(4))
    x = images_from(1)
    with pytest.raises(REFUSED, match="embed"):
        model(x)
    tie.remove()
    assert state_of(model) == before
    tie_first_layer(model, CyclicRotation(4), layer="embed")
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


class Recurrent(nn.Module):
    """Begins with a layer that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def test_a_layer_that_returns_a_tuple_is_passed_over_and_refused_if_named():
    model = Recurrent()
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    with tie_first_layer(model, Flip(1)) as tie:
        assert movement(model, Flip(1), x) <= INVARIANT
        assert tie.layer == "head"
    tie_first_layer(model, Flip(1), layer="recurrent")
    with pytest.raises(REFUSED, match=r"'recurrent'.*one tensor.*got tuple.*layer=") as refusal:
        model(x)
    assert ".." not in str(refusal.value)


def test_a_refused_model_stays_refused_until_the_tie_is_removed():
    model = ParallelStems(2).eval()
    x = images()
    expected = model(x)
    tie = tie_first_layer(model, CyclicRotation(4))
    for _ in range(2):  # running it again must not go on without the tie
        with pytest.raises(REFUSED, match=r"block\.shortcut"):
            model(x)
    assert "not met yet" in repr(tie)
    tie.remove()
    assert "removed" in repr(tie)
    assert_exact(model(x), expected)


class OutOfMemoryOnce(nn.Module):
    """Runs out of memory the first time that it sees many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(128, 5)
        self.failed = False

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8 and not self.failed:
            self.failed = True
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.stem(x.flatten(1))


def test_a_first_forward_that_runs_out_of_memory_is_tied_the_next_time():
    model = OutOfMemoryOnce()
    tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"^out of memory$"):
        model(images())
    assert movement(model, CyclicRotation(4), images()) <= INVARIANT


class FewRows(nn.Module):
    """Raises an error of its own where there are many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise KeyError("mine")
        return self.stem(x.flatten(1))


def test_an_error_of_the_tied_model_is_the_cause_of_the_refusal():
    model = FewRows()
    before = state_of(model)
    tie = tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(RuntimeError, match=r"'stem'.*mine.*layer=") as refusal:
        model(images_from(1))
    assert isinstance(refusal.value.__cause__, KeyError)
    tie.remove()
    assert state_of(model) == before


# tie_first_layer: how models are called


class Settings(NamedTuple):
    logits: Tensor
    temperature: float


@dataclass
class Output:
    """As in libraries that name what their models return."""

    loss: Tensor | None
    logits: Tensor


class ModelOutput(OrderedDict):
    """As in Hugging Face."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda y: {"loss": None, "logits": y}, lambda out: out["logits"]),
    "tuple": (lambda y: (None, y, y.argmax(1)), lambda out: out[1]),
    "list": (lambda y: [y.argmax(1), y], lambda out: out[1]),
    "named tuple": (lambda y: Settings(y, 1.0), lambda out: out.logits),
    "ordered dict with attributes": (lambda y: ModelOutput(logits=y), lambda out: out.logits),
    "dataclass": (lambda y: Output(None, y), lambda out: out.logits),
}


class Wrapped(nn.Module):
    """Called with keywords, returns more than a tensor."""

    def __init__(self, model: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.wrap = wrap

    def forward(self, labels: Tensor | None = None, *, pixel_values: Tensor) -> Any:
        return self.wrap(self.model(pixel_values))


every_output = pytest.mark.parametrize(("wrap", "unwrap"), list(OUTPUTS.values()), ids=list(OUTPUTS))


@every_output
@two_models
def test_a_model_called_with_keywords_may_return_more_than_a_tensor(make, wrap, unwrap):
    model = Wrapped(make().eval(), wrap)
    tie_first_layer(model, CyclicRotation(4))
    x = images()
    assert type(model(pixel_values=x)) is type(wrap(torch.zeros(1, 1)))
    assert movement(lambda x: unwrap(model(None, pixel_values=x)), CyclicRotation(4), x) <= INVARIANT


@pytest.mark.parametrize("name", ["dict", "tuple", "list", "named tuple", "ordered dict with attributes"])
def test_a_lack_of_invariance_is_seen_in_outputs_that_are_more_than_a_tensor(name):
    model = Wrapped(ParallelStems(2).eval(), OUTPUTS[name][0])
    tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(REFUSED, match=r"not invariant.*model\.block\.shortcut"):
        model(pixel_values=images())


class WithFeatures(nn.Module):
    """Takes an image and features of it that are no image."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = FlatteningMLP(2, 8, 8)
        self.head = nn.Linear(5 + 3, 5)

    def forward(self, scale: float, image: Tensor, features: Tensor) -> Tensor:
        return self.head(torch.cat([self.vision(scale * image), features], 1))


def test_other_arguments_are_left_alone():
    model = WithFeatures()
    tie = tie_first_layer(model, CyclicRotation(4))
    x, features = images(), torch.randn(4, 3)
    assert movement(lambda x: model(2.0, x, features=features), CyclicRotation(4), x) <= INVARIANT
    assert tie.layer == "vision.stem"
    assert (model(2.0, x, features) - model(2.0, x, features + 1)).abs().max() > 1e-3


def test_a_call_without_a_tensor_is_refused():
    model = FlatteningMLP(2, 8, 8)
    tie_first_layer(model, CyclicRotation(4))
    with pytest.raises(ValueError, match="tensor argument"):
        model([1.0, 2.0])


def channels_last_to_first(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].permute(0, 3, 1, 2),)


def test_a_hook_that_was_on_the_model_before_is_applied_once():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    model.register_forward_pre_hook(channels_last_to_first)
    tie_first_layer(model, Flip(2))  # the width, before the hook or after it
    x = torch.randn(4, 8, 8, 2)
    assert model(x).shape == (4, 5)
    assert min(movement(model, Flip(1), x), movement(model, Flip(2), x)) <= INVARIANT


# tie_first_layer: with the rest of torch


class Checkpointed(nn.Module):
    """Computes its first block again in the backward pass, or keeps what it needs."""

    def __init__(self, *, flattens: bool, again: bool) -> None:
        super().__init__()
        self.flattens, self.again = flattens, again
        first = nn.Linear(128, 16) if flattens else nn.Conv2d(2, 4, 3)
        second = nn.Linear(16, 16) if flattens else nn.Conv2d(4, 4, 3)
        self.block = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.3), second)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flattens else x
        x = checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("flattens", [False, True])
def test_checkpointing_the_block_that_holds_the_layer_gives_the_same_gradients(flattens):
    kept = Checkpointed(flattens=flattens, again=False).double()
    kept(images(dtype=torch.float64))
    again = copy.deepcopy(kept)
    again.again = True
    x = images(dtype=torch.float64)
    for model in (kept, again):
        tie = tie_first_layer(model, CyclicRotation(4))
        torch.manual_seed(5)
        model(x).square().sum().backward()
        assert tie.layer == "block.0"
    for actual, expected in zip(again.parameters(), kept.parameters(), strict=True):
        assert_linear(actual.grad, expected.grad)
        assert actual.grad.abs().max() > 0


@every_model
def test_a_first_forward_under_autocast_is_invariant_and_trains_every_parameter(make):
    model = make()
    expected = copy.deepcopy(model)
    for each in (model, expected):
        tie_first_layer(each, CyclicRotation(4))
    with torch.no_grad():
        expected.eval()(images())  # ties it without autocast
    expected.train()
    x = images()
    for each in (model, expected):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = each(x)
            assert outputs.dtype == torch.bfloat16
            loss = outputs.float().square().sum()
        loss.backward()
    for actual, reference in zip(model.parameters(), expected.parameters(), strict=True):
        assert_exact(actual.grad, reference.grad)
        assert actual.grad.abs().max() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert movement(model.eval(), CyclicRotation(4), x) <= 4e-2


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@two_models
def test_a_tied_model_compiles_without_a_break_after_its_first_forward(make, fresh_compiler):
    model = make()
    tie_first_layer(model, CyclicRotation(4))
    x = images()
    expected = model(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outputs = compiled(x)
    outputs.square().sum().backward()
    assert_linear(outputs, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
    assert movement(compiled, CyclicRotation(4), x) <= INVARIANT
    assert_linear(compiled(x[:3]), expected[:3])


@two_models
def test_a_tied_model_exports_after_its_first_forward(make):
    model = make().eval()
    tie_first_layer(model, CyclicRotation(4))
    x = images()
    model(x)
    exported = torch.export.export(model, (x,)).module()
    other = images()
    assert_linear(exported(other), model(other))
    assert movement(exported, CyclicRotation(4), other) <= INVARIANT


@two_models
def test_a_tied_model_exports_with_a_free_batch_size(make):
    model = make().eval()
    tie_first_layer(model, CyclicRotation(4))
    x = images(6)
    model(x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert_linear(exported(x[:5]), model(x[:5]))


@two_models
def test_gradients_per_sample_come_from_vmap_over_a_tied_model(make):
    model = make().double()
    tie_first_layer(model, CyclicRotation(4))
    x = images(dtype=torch.float64)
    model(x).square().sum().backward()

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],)).square().sum()

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for name, parameter in model.named_parameters():
        assert per_sample[name].shape == (4, *parameter.shape)
        assert_linear(per_sample[name].sum(0), parameter.grad)
