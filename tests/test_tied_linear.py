"""Is a linear layer pooled over an orbit from its Fourier coefficients what plain loops give, and never a stale one?"""

import copy
import io
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.prune import custom_from_mask as prune_by_mask
from torch.utils.checkpoint import checkpoint

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    FiniteGroup,
    Flip,
    Restricted,
    SemidirectProduct,
    SignFlip,
    SymmetricGroup,
    TiedFirstLayer,
    tie_first_layer,
    tied_linear,
)
from invreg.tied_linear import OrbitLinear, matched_sources
from tests.movement import INVARIANT, REDUCTIONS, every_reduction, hooks_of, movement
from tests.test_pooling import pooled_in_loops
from tests.tolerances import assert_exact, assert_linear

QUATERNIONS = FiniteGroup.from_permutations([[1, 2, 3, 0, 5, 6, 7, 4], [4, 7, 6, 5, 2, 1, 0, 3]])
"""The group of order 8 that turns its own elements: 1, i, -1, -i, j, k, -j, -k."""

WALLPAPER = SemidirectProduct(CyclicTranslation(2, -1) * CyclicTranslation(2, -2), Dihedral(4))

TETRAHEDRAL = FiniteGroup.from_permutations([[1, 2, 0, 3], [1, 0, 3, 2]])

GROUPS: dict[str, tuple[FiniteGroup, tuple[int, ...]]] = {
    "turns": (CyclicRotation(4), (2, 4, 4)),
    "turns about an entry": (CyclicRotation(4), (2, 5, 5)),
    "turns and mirrors": (Dihedral(4), (1, 6, 6)),
    "turns and mirrors about an entry": (Dihedral(4), (1, 7, 7)),
    "shifts by a third": (CyclicTranslation(3), (1, 3, 6)),
    "cyclic orders": (CyclicPermutation(5, dim=1), (5, 3)),
    "a mirror": (Flip(), (7,)),
    "quaternions": (QUATERNIONS, (8,)),
    "turns of a tetrahedron with cyclic orders": (TETRAHEDRAL * CyclicPermutation(3, dim=1), (3, 4)),
    "wallpaper": (WALLPAPER, (1, 4, 4)),
}

every_group = pytest.mark.parametrize("name", GROUPS)


class Net(nn.Module):
    """Flattens, and takes its first layer after what is given."""

    def __init__(self, *shape: int, before: Callable[[Tensor], Tensor] | None = None, outputs: int = 6) -> None:
        super().__init__()
        self.before = before
        self.stem = nn.Linear(torch.Size(shape).numel(), outputs)
        self.head = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        return self.head(torch.tanh(self.stem(x.flatten(1))))


def uses_coefficients(tie: TiedFirstLayer) -> bool:
    return tie._linear is not None


@pytest.fixture
def always(monkeypatch):
    """No batch is too small."""
    monkeypatch.setattr(tied_linear, "_ROW_SAVINGS", 0)
    monkeypatch.setattr(tied_linear, "_ROW_SAVINGS_CACHED", 0)


def tied(model: nn.Module, group: FiniteGroup, x: Tensor, reduction="max") -> TiedFirstLayer:
    tie = tie_first_layer(model, group, reduction=reduction)
    model(x)
    return tie


def acting(group: FiniteGroup) -> list[Callable[[Tensor], Tensor]]:
    return [lambda x, i=i: group.act(torch.tensor(i), x) for i in range(group.order)]


# What it computes


@pytest.mark.parametrize("reduction", REDUCTIONS)
@every_group
def test_the_layer_gives_what_plain_loops_over_samples_and_elements_give(name, reduction, always):
    group, shape = GROUPS[name]
    reduction, reduce = REDUCTIONS[reduction]
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 4), nn.Identity()).double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = pooled_in_loops(nn.Sequential(model[0], copy.deepcopy(model[1])), acting(group), reduce, x)
        tie = tied(model, group, x, reduction)
        assert uses_coefficients(tie)
        assert_linear(model(x), expected)


@every_reduction
@pytest.mark.parametrize("name", ["turns", "turns and mirrors about an entry", "shifts by a third", "quaternions"])
def test_gradients_are_those_of_expanding_by_hand(name, reduction, always):
    group, shape = GROUPS[name]
    model = Net(*shape).double()
    parameters = dict(model.named_parameters())
    x = torch.randn(5, *shape, dtype=torch.float64, requires_grad=True)

    def by_hand(x: Tensor) -> Tensor:
        orbit = torch.stack([model.stem(move(x).flatten(1)) for move in acting(group)])
        pooled = {"max": lambda: orbit.amax(0), "mean": lambda: orbit.mean(0)}.get(reduction)
        return model.head(torch.tanh(pooled() if pooled else reduction(orbit)))

    expected = torch.autograd.grad(by_hand(x).square().sum(), [x, *parameters.values()])
    assert uses_coefficients(tied(model, group, x, reduction))
    actual = torch.autograd.grad(model(x).square().sum(), [x, *parameters.values()])
    for found, wanted in zip(actual, expected, strict=True):
        assert_linear(found, wanted)
        assert found.abs().max() > 0


with_tangents = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
"""Which torch itself calls."""


@with_tangents
def test_second_derivatives_and_those_of_maps_are_right(always):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    tied(model, CyclicRotation(4), x)

    def outputs(x: Tensor, weight: Tensor) -> Tensor:
        return functional_call(model, {"1.weight": weight}, (x,)).square()

    weight = model[1].weight
    assert torch.autograd.gradcheck(outputs, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(outputs, (x, weight))


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_few_rows_and_many_give_the_same_for_each(rows, reduction):
    """Below some size the data is expanded, above it is not."""
    model = Net(1, 6, 6).double()
    x = torch.randn(600, 1, 6, 6, dtype=torch.float64)
    tied(model, Dihedral(4), x, reduction)
    assert_linear(torch.cat([model(part) for part in x.split(rows)]), model(x))
    assert_exact(model(x[:0]), torch.empty(0, 3, dtype=torch.float64))


def test_either_way_is_taken(monkeypatch):
    model, taken = Net(1, 6, 6), []
    for way in ("expanded", "pooled"):
        method = getattr(OrbitLinear, way)
        monkeypatch.setattr(OrbitLinear, way, lambda *a, m=method, way=way: (taken.append(way), m(*a))[1])
    tied(model, CyclicRotation(4), torch.randn(2, 1, 6, 6))
    model(torch.randn(1000, 1, 6, 6))
    assert taken == ["expanded", "pooled"]


@every_group
def test_the_model_is_invariant_in_single_precision(name, always):
    group, shape = GROUPS[name]
    model, x = Net(*shape), torch.randn(8, *shape)
    assert movement(model, group, x) > 100 * INVARIANT
    tied(model, group, x)
    assert movement(model, group, x) <= INVARIANT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_expands_and_is_bitwise_as_before(dtype, always):
    model, x = Net(1, 6, 6), torch.randn(8, 1, 6, 6)
    tie = tied(model, CyclicRotation(4), x)
    assert uses_coefficients(tie)
    model.to(dtype)
    stem = nn.Linear(36, 6).to(dtype)
    stem.load_state_dict(model.stem.state_dict())
    orbit = torch.cat([x.to(dtype).rot90(i, (-2, -1)) for i in range(4)])
    expected = model.head(torch.tanh(stem(orbit.flatten(1)).view(4, 8, 6).amax(0)))
    assert_exact(model(x.to(dtype)), expected)


def representations(group: FiniteGroup) -> list[tuple[Tensor, int]]:
    return tied_linear._representations(group.cayley_table(), group.inverse(group.elements()))


def test_representations_are_irreducible_homomorphisms():
    for group, _ in GROUPS.values():
        found = representations(group)
        for matrices, endomorphisms in found:
            torch.testing.assert_close(
                matrices[group.cayley_table()], matrices[:, None] @ matrices[None, :], atol=1e-9, rtol=0
            )
            assert_linear(matrices @ matrices.mT, torch.eye(matrices.shape[1]).double().expand_as(matrices))
            assert endomorphisms in (1, 2, 4)
        assert sum(matrices.shape[1] ** 2 // endomorphisms for matrices, endomorphisms in found) == group.order
    kinds = {(name, m.shape[1], e) for name, (group, _) in GROUPS.items() for m, e in representations(group)}
    assert {("turns", 2, 2), ("turns and mirrors", 2, 1), ("quaternions", 4, 4)} <= kinds


@dataclass(frozen=True)
class Miscomposed(FiniteGroup):
    """Acts as quarter turns do, and composes as two commuting mirrors would."""

    order = 4
    exact = True

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g ^ h

    def inverse(self, g: Tensor) -> Tensor:
        return g

    def transform(self, index: int, x: Tensor) -> Tensor:
        return x.rot90(index, (-2, -1))


def test_a_group_that_composes_wrongly_is_expanded(always):
    model, x = Net(1, 4, 4), torch.randn(8, 1, 4, 4)
    assert not uses_coefficients(tied(model, Miscomposed(), x))
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


# When it applies


def elementwise(x: Tensor) -> Tensor:
    return (x - 0.13) / 0.3


class PerPixel(nn.Module):
    """Adds a number to each pixel, zero as yet."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        shift = torch.zeros(1, 6, 6)
        self.shift = nn.Parameter(shift) if trained else nn.Buffer(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class WhenTraining(nn.Module):
    """Does something else in training mode."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x) if self.training else x


BEFORE = {
    "nothing": (None, True),
    "the same for all entries": (elementwise, True),
    "largest of neighbours": (lambda x: nn.functional.max_pool2d(x, 1), True),
    "transposed": (lambda x: x.transpose(-2, -1), True),
    "normalised per channel": (nn.BatchNorm2d(1), True),
    "shifted per pixel by a parameter": (PerPixel(trained=True), False),
    "shifted per pixel by a buffer": (PerPixel(trained=False), False),
    "scaled per pixel": (nn.LayerNorm([1, 6, 6]), False),
    "a gradient": (lambda x: x * torch.linspace(1, 2, 6), False),
    "dropout": (nn.Dropout(0.5), False),
    "noise": (WhenTraining(lambda x: x + torch.randn_like(x)), False),
    "a mirror at times": (WhenTraining(lambda x: x.flip(-1) if torch.rand(()) < 1e-3 else x), False),
    "masked when training": (WhenTraining(lambda x: x * (torch.arange(6) < 3)), False),
    "clipped": (lambda x: x.clamp(0, 1), False),
}


@pytest.mark.parametrize("name", BEFORE)
def test_the_data_is_spared_its_orbit_only_if_all_before_the_layer_moves_with_it(name, always):
    before, spared = BEFORE[name]
    model, x = Net(1, 6, 6, before=copy.deepcopy(before)), torch.rand(8, 1, 6, 6)
    tie = tied(model, CyclicRotation(4), x)
    assert uses_coefficients(tie) == spared
    with torch.no_grad():  # what training may make of it
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor += torch.rand_like(tensor) if tensor.is_floating_point() else 0
    assert movement(model.eval(), CyclicRotation(4), x) <= INVARIANT


class Twice(nn.Module):
    """Its first layer meets both rows of a sample, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        return self.stem(first).tanh() + self.stem(second)


def test_a_layer_that_is_met_twice_is_pooled_each_time():
    model, x = Twice(), torch.randn(300, 2, 16)
    orbit = [torch.roll(x, 4 * k, -1) for k in range(4)]
    first, second = (torch.stack([model.stem(gx[:, row]) for gx in orbit]).amax(0) for row in range(2))
    tie_first_layer(model, CyclicTranslation(4, dim=-1))
    assert_linear(model(x), first.tanh() + second)
    assert_linear(model(x), first.tanh() + second)


def watched(model: nn.Module, register: str) -> nn.Module:
    getattr(model.stem, register)(lambda *_: None)
    return model


def normed(model: Net) -> Net:
    nn.utils.parametrizations.weight_norm(model.stem)
    return model


class Tokens(nn.Module):
    """Its first layer receives three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x.flatten(1, 2)).flatten(1)


OTHERS = {
    "hook": lambda: watched(Net(1, 6, 6), "register_forward_hook"),
    "pre-hook": lambda: watched(Net(1, 6, 6), "register_forward_pre_hook"),
    "backward hook": lambda: watched(Net(1, 6, 6), "register_full_backward_hook"),
    "parametrised": lambda: normed(Net(1, 6, 6)),
    "three axes": Tokens,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_than_plain_ones_expand(name, always):
    model, x, group = OTHERS[name](), torch.randn(5, 1, 6, 6), Flip(-1)
    tie = tied(model, group, x)
    assert not uses_coefficients(tie)
    assert movement(model, group, x) <= INVARIANT


@pytest.mark.parametrize("group", [SignFlip(), Flip() * SignFlip()], ids=repr)
def test_groups_that_change_values_expand(group, always):
    model, x = Net(1, 6, 6), torch.randn(5, 1, 6, 6)
    assert not uses_coefficients(tied(model, group, x))
    assert movement(model, group, x) <= INVARIANT


def test_groups_that_leave_too_much_to_do_expand(always):
    """All orders of five: each entry of the axis is left alone by 24 elements."""
    group = Restricted(SymmetricGroup(5, dim=1), [[1, 2, 3, 4, 0], [1, 0, 2, 3, 4]])
    model, x = Net(5), torch.randn(5, 5)
    assert not uses_coefficients(tied(model, group, x))
    assert movement(model, group, x) <= INVARIANT


def test_data_that_enters_the_layer_itself_is_spared_too(always):
    group = CyclicPermutation(5, dim=1)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(9, 5)
    assert uses_coefficients(tied(model, group, x))
    assert movement(model, group, x) <= INVARIANT


def test_samples_of_another_shape_with_as_many_entries_expand_for_good(always):
    model, x, wide = Net(1, 6, 6), torch.randn(5, 1, 6, 6), torch.randn(5, 1, 4, 9)
    tie = tied(model, Flip(-1), x)
    for data in (x, wide, x):
        assert movement(model, Flip(-1), data) <= INVARIANT
    assert not uses_coefficients(tie)


def test_a_batch_that_the_group_refuses_changes_nothing(always):
    model, x = Net(1, 6, 6), torch.randn(5, 1, 6, 6)
    tie = tied(model, CyclicRotation(4), x)
    with pytest.raises(ValueError, match="square"):
        model(torch.randn(5, 1, 4, 9))
    assert uses_coefficients(tie)


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_hook"])
def test_a_hook_put_on_the_layer_later_meets_what_it_expects(register, always):
    model, x, met = Net(1, 6, 6), torch.randn(5, 1, 6, 6), []
    tie = tied(model, CyclicRotation(4), x)
    getattr(model.stem, register)(lambda module, first, *_: met.append(first[0]))
    model(x.clone().requires_grad_()).sum().backward()
    assert not uses_coefficients(tie)
    assert [tensor.shape for tensor in met] == [(20, 36)]
    assert movement(model, CyclicRotation(4), x) <= INVARIANT


def test_a_hook_that_only_reads_the_output_changes_nothing(always):
    model, x, met = Net(1, 6, 6), torch.randn(5, 1, 6, 6), []
    tie = tied(model, CyclicRotation(4), x)
    model.stem.register_forward_hook(lambda module, args, output: met.append(output))
    expected = model(x)
    assert uses_coefficients(tie)
    assert_exact(model.head(torch.tanh(met[0])), expected)


def test_a_layer_put_in_another_ones_place_is_not_left_untied_in_silence(always):
    model, x = Net(1, 6, 6), torch.randn(5, 1, 6, 6)
    tied(model, CyclicRotation(4), x)
    model.stem = nn.Linear(36, 6)
    assert len(model(x)) == 20  # as ever: rows that no hook pools


# Never stale


def assign(layer: nn.Linear, new: Tensor) -> None:
    layer.weight = nn.Parameter(new)


def assign_data(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.data = new


def add_to_data(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.data.add_(new - layer.weight.data)


def copy_in_place(layer: nn.Linear, new: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(new)


def write_through_numpy(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.detach().numpy()[...] = new.numpy()


def write_one_entry(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.detach().view(-1)[7] += 3


def optimise(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.grad = layer.weight.detach() - new
    torch.optim.SGD([layer.weight], lr=1.0).step()


def optimise_fused(layer: nn.Linear, new: Tensor) -> None:
    layer.weight.grad = layer.weight.detach() - new
    torch.optim.SGD([layer.weight], lr=1.0, fused=True).step()


def load(layer: nn.Linear, new: Tensor) -> None:
    layer.load_state_dict({"weight": new, "bias": layer.bias.detach()})


def load_by_assignment(layer: nn.Linear, new: Tensor) -> None:
    layer.load_state_dict({"weight": new, "bias": layer.bias.detach()}, assign=True)


def fill_from_vector(layer: nn.Linear, new: Tensor) -> None:
    nn.utils.vector_to_parameters(torch.cat([new.flatten(), layer.bias.detach()]), layer.parameters())


def swap(layer: nn.Linear, new: Tensor) -> None:
    torch.utils.swap_tensors(layer.weight, nn.Parameter(new))


def write_in_inference_mode(layer: nn.Linear, new: Tensor) -> None:
    with torch.inference_mode():
        layer.weight.copy_(new)


def replace_in_inference_mode(layer: nn.Linear, new: Tensor) -> None:
    with torch.inference_mode():
        layer.weight = nn.Parameter(new.clone())


def share_and_write(layer: nn.Linear, new: Tensor) -> None:
    layer.share_memory()
    torch.frombuffer(memoryview(layer.weight.detach().numpy()).cast("B"), dtype=torch.float64).copy_(new.flatten())


def parametrize(layer: nn.Linear, new: Tensor) -> None:
    class Add(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + new

    nn.utils.parametrize.register_parametrization(layer, "weight", Add())


def prune(layer: nn.Linear, new: Tensor) -> None:
    prune_by_mask(layer, "weight", (new > 0).to(new.dtype))


def to_half_and_back(layer: nn.Linear, new: Tensor) -> None:
    layer.half().double()


def initialise(layer: nn.Linear, new: Tensor) -> None:
    nn.init.zeros_(layer.weight)


def negate_by_resetting(layer: nn.Linear, new: Tensor) -> None:
    layer.reset_parameters()


CHANGES = [
    assign,
    assign_data,
    add_to_data,
    copy_in_place,
    write_through_numpy,
    write_one_entry,
    optimise,
    optimise_fused,
    load,
    load_by_assignment,
    fill_from_vector,
    swap,
    write_in_inference_mode,
    replace_in_inference_mode,
    share_and_write,
    parametrize,
    prune,
    to_half_and_back,
    initialise,
    negate_by_resetting,
]


def outputs_by_hand(model: Net, x: Tensor) -> Tensor:
    weight, bias = model.stem.weight, model.stem.bias
    orbit = torch.stack([nn.functional.linear(x.rot90(i, (-2, -1)).flatten(1), weight, bias) for i in range(4)])
    return model.head(torch.tanh(orbit.amax(0)))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_kept_of_weights_is_never_stale(change, always):
    model, x = Net(1, 6, 6).double().eval(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    tie = tied(model, CyclicRotation(4), x)
    with torch.no_grad():
        before = model(x)
        assert tie._linear.orbit._cache is not None
        assert_linear(before, outputs_by_hand(model, x))
    change(model.stem, torch.randn(6, 36, dtype=torch.float64))
    for _ in range(2):
        with torch.no_grad():
            after = model(x)
            assert_linear(after, outputs_by_hand(model, x))
    assert after.sub(before).abs().max() > (1e-3 if change is not to_half_and_back else 1e-10)


def test_other_weights_for_one_call_are_used_and_then_forgotten(always):
    model, x = Net(1, 6, 6).double().eval(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    tied(model, CyclicRotation(4), x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.stem.weight.mul_(-2)
        expected, before = outputs_by_hand(other, x), model(x)
        assert_linear(functional_call(model, dict(other.named_parameters()), (x,)), expected)
        assert_exact(model(x), before)
        several = {name: torch.stack([p, q]) for (name, p), q in zip(model.named_parameters(), other.parameters())}  # noqa: B905
        together = vmap(lambda weights: functional_call(model, weights, (x,)))(several)
        assert_linear(together, torch.stack([before, expected]))


@with_tangents
def test_weights_that_carry_a_tangent_are_not_taken_for_those_kept(always):
    model, x = Net(1, 6, 6).double().eval(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    tied(model, CyclicRotation(4), x)
    weight, tangent = model.stem.weight.detach(), torch.randn(6, 36, dtype=torch.float64)

    def by_hand(weight: Tensor) -> Tensor:
        orbit = torch.stack([x.rot90(i, (-2, -1)).flatten(1) @ weight.T + model.stem.bias for i in range(4)])
        return model.head(torch.tanh(orbit.amax(0)))

    def found(weight: Tensor) -> Tensor:
        return functional_call(model, {"stem.weight": weight}, (x,))

    with torch.no_grad():
        model(x)
        assert_linear(jvp(found, (weight,), (tangent,))[1], jvp(by_hand, (weight,), (tangent,))[1])
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(weight, tangent)
            moved = torch.autograd.forward_ad.unpack_dual(found(dual)).tangent
        assert_linear(moved, jvp(by_hand, (weight,), (tangent,))[1])


def test_unchanged_weights_are_transformed_once(always, monkeypatch):
    model, x, made = Net(1, 6, 6), torch.randn(5, 1, 6, 6), []
    tied(model, CyclicRotation(4), x)
    fresh = OrbitLinear._fresh
    monkeypatch.setattr(OrbitLinear, "_fresh", lambda self, weight: (made.append(weight), fresh(self, weight))[1])
    with torch.no_grad():
        for _ in range(3):
            model.eval()(x)
    assert len(made) == 1
    for _ in range(3):  # gradients are recorded
        model(x).sum().backward()
    assert len(made) == 4


def test_what_was_kept_in_inference_mode_serves_where_gradients_are_recorded(always):
    model, x = Net(1, 6, 6).eval(), torch.randn(5, 1, 6, 6)
    tied(model, CyclicRotation(4), x)
    model.stem.weight.requires_grad_(False)
    with torch.inference_mode():
        expected = model(x).clone()
    x.requires_grad_()
    outputs = model(x)
    outputs.sum().backward()
    assert_exact(outputs, expected.clone())
    assert x.grad.abs().max() > 0


def test_what_is_kept_is_in_no_state_copy_or_graph_and_gone_with_the_tie(always):
    model, x = Net(1, 6, 6).eval(), torch.randn(5, 1, 6, 6)
    keys, plain = list(model.state_dict()), len(pickle.dumps(model))
    tie = tied(model, CyclicRotation(4), x)
    size = len(pickle.dumps(model))
    with torch.no_grad():
        model(x)
    linear = tie._linear
    weight, kept = linear.orbit._cache
    assert not any(tensor.requires_grad for tensor in (weight, *kept))
    assert sum(tensor.numel() for tensor in kept) == 1.5 * weight.numel()
    assert list(model.state_dict()) == keys
    assert len(pickle.dumps(model)) == size > plain
    assert copy.deepcopy(linear.orbit)._cache is None
    tie.remove()
    assert tie._linear is None
    assert hooks_of(model) == 0


# With the rest of torch


def test_forwards_in_threads_do_not_meet(always):
    model = Net(1, 6, 6).double().eval()
    batches = [torch.randn(n, 1, 6, 6, dtype=torch.float64) for n in (1, 3, 50, 200)]
    tied(model, CyclicRotation(4), batches[0])
    with torch.no_grad():
        expected = [outputs_by_hand(model, x) for x in batches]
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for _ in range(30):
                with torch.no_grad():
                    assert_linear(model(batches[number]), expected[number])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


class Again(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda x: torch.tanh(self.stem(x)), x.flatten(1), use_reentrant=False))


def test_a_block_computed_again_in_backward_is_computed_as_before(monkeypatch):
    """Though forwards of other sizes came in between, which expand."""
    monkeypatch.setattr(tied_linear, "_ROW_SAVINGS", 25)  # ten rows with quarter turns
    x, small = torch.randn(30, 1, 6, 6, dtype=torch.float64), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    gradients = []
    for kind in (Net, Again):
        torch.manual_seed(0)
        model = kind(1, 6, 6).double()
        assert uses_coefficients(tied(model, CyclicRotation(4), x))
        losses = [model(batch).square().sum() for batch in (x, small)]
        for loss in losses:
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        assert_linear(actual, expected)


def test_gradients_per_sample_are_those_of_single_samples(always):
    model, x = Net(1, 6, 6).double(), torch.randn(4, 1, 6, 6, dtype=torch.float64)
    tied(model, Dihedral(4), x)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert_linear(found[name][row], parameter.grad)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_a_compiled_step_is_the_plain_one_and_does_not_use_what_was_kept(reduction):
    torch._dynamo.reset()
    model, x = Net(1, 6, 6), torch.randn(8, 1, 6, 6)
    tied(model, CyclicRotation(4), x, reduction)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        outputs, expected = compiled(x), model(x)
        assert_linear(outputs, expected)
        actual = torch.autograd.grad(outputs.square().sum(), model.stem.weight)
        assert_linear(*actual, *torch.autograd.grad(expected.square().sum(), model.stem.weight))
        with torch.no_grad():
            assert_linear(compiled(x), model(x))
            model.stem.weight.mul_(-1.5)
    torch._dynamo.reset()


def test_an_exported_model_holds_its_own_weights():
    model, x = Net(1, 6, 6).eval(), torch.randn(8, 1, 6, 6)
    tied(model, CyclicRotation(4), x)
    with torch.no_grad():
        expected = model(x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    exported = torch.export.load(stored).module()
    assert_linear(exported(x), expected)
    assert movement(exported, CyclicRotation(4), x[:3]) <= INVARIANT


def test_autocast_expands(always):
    model, x = Net(1, 6, 6), torch.randn(8, 1, 6, 6)
    tied(model, CyclicRotation(4), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stem = nn.functional.linear(
            torch.cat([x.rot90(i, (-2, -1)) for i in range(4)]).flatten(1), model.stem.weight, model.stem.bias
        )
        expected = model.head(torch.tanh(stem.view(4, 8, 6).amax(0)))
        assert_exact(model(x), expected)


def test_sources_are_found_only_where_entries_are_moved():
    values = torch.randn(2, 6)
    orbits = torch.stack([values, values.flip(1)], 1)
    expected = torch.stack([torch.arange(6), torch.arange(5, -1, -1)])
    assert_exact(matched_sources(orbits), expected)
    scaled, equal, different = orbits.clone(), orbits.clone(), orbits.clone()
    scaled[:, 1] *= 2
    equal[:, 0, :2] = equal[:, 1, 4:] = 0
    different[1, 1] = different[1, 0]
    for broken in (scaled, equal, different):
        assert matched_sources(broken) is None
