"""Is it found where in a model a symmetry is lost, with the right numbers, and no trace left?"""

import io
import json
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    CyclicGroup,
    CyclicRotation,
    CyclicTranslation,
    Dihedral,
    Flip,
    OnKeys,
    PlanarRotation,
    SignFlip,
    TransformationSet,
    Trivial,
)
from invreg.audit.layers import LayersReport, measure_layers
from tests.test_preserve import mixed, state_of

R4 = CyclicRotation(4)


def images(samples: int = 7, side: int = 8, channels: int = 1) -> Tensor:
    return torch.randn(samples, channels, side, side, dtype=torch.float64)


def in_batches(x: Tensor, size: int) -> list[Tensor]:
    return list(x.split(size))


def names(report: LayersReport) -> list[str]:
    return [layer.name for layer in report.layers]


def row(report: LayersReport, name: str):
    return next(layer for layer in report.layers if layer.name == name)


# The numbers, against plain loops


def plain_cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 4),
    ).double()


def activations_of_plain_cnn(model: nn.Sequential, x: np.ndarray) -> list[np.ndarray]:
    """What each layer of ``plain_cnn`` makes of one image ``(1, 8, 8)``, the image itself first."""
    kernels, bias = model[0].weight.detach().numpy(), model[0].bias.detach().numpy()
    padded = np.zeros((1, 10, 10))
    padded[:, 1:9, 1:9] = x
    conv = np.zeros((3, 8, 8))
    for c in range(3):
        for i in range(8):
            for j in range(8):
                conv[c, i, j] = bias[c] + math.fsum((kernels[c] * padded[:, i : i + 3, j : j + 3]).flatten())
    relu = np.where(conv > 0, conv, 0)
    pool = np.zeros((3, 4, 4))
    for c in range(3):
        for i in range(4):
            for j in range(4):
                pool[c, i, j] = max(relu[c, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1))
    flat = pool.flatten()
    weight, offset = model[4].weight.detach().numpy(), model[4].bias.detach().numpy()
    linear = np.array([offset[k] + math.fsum(weight[k] * flat) for k in range(4)])
    return [x, conv, relu, pool, flat, linear, linear]


def turned(x: np.ndarray, quarters: int) -> np.ndarray:
    """The last two axes turned counter-clockwise, entry by entry."""
    for _ in range(quarters % 4):
        side = x.shape[-1]
        y = np.zeros_like(x)
        for i in range(side):
            for j in range(side):
                y[..., i, j] = x[..., j, side - 1 - i]
        x = y
    return x


def expected_errors(model: nn.Sequential, x: np.ndarray, quarters: list[list[int]]) -> list[list[tuple | None]]:
    """Mean and standard error of both errors at each layer, as shares of the variance."""
    at_identity = [activations_of_plain_cnn(model, one) for one in x]
    moved = [
        [(k, activations_of_plain_cnn(model, turned(one, k))) for k in ks] for one, ks in zip(x, quarters, strict=True)
    ]
    found = []
    for layer in range(7):
        h = [one[layer] for one in at_identity]
        mean = sum(h) / len(h)
        variance = math.fsum(((one - mean) ** 2).sum() for one in h) / (len(h) - 1)
        columns = []
        for back in (False, True):
            if back and h[0].ndim != 3:
                columns.append(None)
                continue
            errors = [
                math.fsum(0.5 * ((a - (turned(b[layer], -k) if back else b[layer])) ** 2).sum() for k, b in copies)
                / len(copies)
                for a, copies in zip(h, moved, strict=True)
            ]
            average = math.fsum(errors) / len(errors)
            spread = math.fsum((e - average) ** 2 for e in errors) / (len(errors) - 1)
            columns.append((average / variance, math.sqrt(spread / len(errors)) / variance))
        found.append(columns)
    return found


def assert_errors_agree(report: LayersReport, expected: list[list[tuple | None]], samples: int) -> None:
    assert names(report) == ["input", "0", "1", "2", "3", "4", "output"]
    for layer, columns in zip(report.layers, expected, strict=True):
        for actual, numbers in zip((layer.invariance_error, layer.equivariance_error), columns, strict=True):
            assert (actual is None) == (numbers is None), layer.name
            if actual is not None:
                assert actual.count == samples
                assert (actual.mean, actual.standard_error) == pytest.approx(numbers, rel=1e-9, abs=1e-9), layer.name


@pytest.mark.parametrize("size", [1, 3, 4, 7, 50])
def test_errors_agree_with_plain_loops_however_data_are_cut_into_batches(size):
    model, x = plain_cnn(), images()
    report = measure_layers(model, in_batches(x, size), R4)
    assert_errors_agree(report, expected_errors(model, x.numpy(), [[1, 2, 3]] * 7), 7)
    assert (report.samples, report.elements, report.exhaustive, report.is_group) == (7, 3, True, True)
    assert report.layers[3].invariance_error.mean > 0.1 < report.layers[3].equivariance_error.mean


@pytest.mark.parametrize("size", [2, 7])
def test_errors_of_drawn_elements_agree_with_plain_loops(size):
    model, x = plain_cnn(), images()
    drawn = R4.sample_non_identity(256, 2, torch.Generator().manual_seed(3))[:, :7].T.tolist()
    report = measure_layers(model, in_batches(x, size), R4, samples=2, rng=torch.Generator().manual_seed(3))
    assert_errors_agree(report, expected_errors(model, x.numpy(), drawn), 7)
    assert (report.elements, report.exhaustive) == (2, False)


def test_errors_are_shares_of_the_mean_distance_of_two_inputs():
    x = images(6)
    distances = [0.5 * float((x[i] - x[j]).square().sum()) for i in range(6) for j in range(6) if i != j]
    moved = [0.5 * float((x[i] - torch.rot90(x[i], k, (-2, -1))).square().sum()) for i in range(6) for k in (1, 2, 3)]
    report = measure_layers(nn.Identity(), [x], R4)
    expected = (sum(moved) / len(moved)) / (sum(distances) / len(distances))
    assert report.layers[-1].invariance_error.mean == pytest.approx(expected, rel=1e-12)


def test_a_mean_far_from_zero_costs_no_digits():
    x = images(40)
    model = nn.Sequential(nn.Conv2d(1, 2, 3)).double()
    plain = measure_layers(model, in_batches(x, 8), R4)
    with torch.no_grad():
        model[0].bias += 1e5
    far = measure_layers(model, in_batches(x, 8), R4)
    assert far.layers[1].invariance_error.mean == pytest.approx(plain.layers[1].invariance_error.mean, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_numbers_agree_with_wide_ones(dtype):
    model, x = plain_cnn(), images(16).to(dtype).double()
    wide = measure_layers(model, [x], R4)
    narrow = measure_layers(model.to(dtype), [x.to(dtype)], R4)
    for a, b in zip(narrow.layers, wide.layers, strict=True):
        assert a.invariance_error.mean == pytest.approx(b.invariance_error.mean, rel=8 * torch.finfo(dtype).eps)


# Where the symmetry is lost


def symmetric(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution, in float64, with its kernel averaged over quarter turns."""
    conv = conv.double()
    with torch.no_grad():
        conv.weight.copy_(sum(torch.rot90(conv.weight, k, (2, 3)) for k in range(4)) / 4)
    return conv


class Net(nn.Module):
    """Exactly equivariant, then invariant: symmetric convolutions, pooling of whole windows, an average over the image.

    Args:
        defect: What breaks that: the name of a module put after the first block, or "in forward".
        side: Side of the images that it is for.
    """

    def __init__(self, defect: nn.Module | str | None = None, side: int = 8) -> None:
        super().__init__()
        self.conv1 = symmetric(nn.Conv2d(1, 4, 3, padding=1))
        self.act = nn.ReLU(inplace=True)
        self.suspect = defect if isinstance(defect, nn.Module) else nn.Identity()
        self.tail = nn.Sequential(symmetric(nn.Conv2d(4, 6, 3, padding=1)), nn.BatchNorm2d(6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.pos = nn.Parameter(torch.randn(4, side, side)) if isinstance(defect, str) else None
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.suspect(self.act(self.conv1(x)))
        if self.pos is not None:
            x = x + self.pos
        return self.head(self.tail(x).mean((2, 3)))


class Positions(nn.Module):
    """A position embedding."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def test_an_equivariant_network_keeps_the_symmetry_in_every_layer():
    report = measure_layers(Net(), in_batches(images(12), 5), R4)
    assert names(report)[1:] == ["conv1", "act", "suspect", "tail.0", "tail.1", "tail.2", "tail", "head", "output"]
    assert report.first_lost is None
    assert (report.lost_before, report.lost_in) == (False, None)
    for layer in report.layers[:8]:
        assert layer.equivariance_error.mean < 1e-25
        assert layer.invariance_error.mean > 0.3
        assert layer.reason is None
    for layer in report.layers[8:]:
        assert layer.invariance_error.mean < 1e-25
        assert layer.equivariance_error is None
        assert "axes" in layer.reason
    assert all(map(report.keeps, report.layers))
    assert "symmetry kept in every layer; errors up to 0.0001 count as kept" in str(report)


DEFECTS = {
    "odd kernel, stride 2, even side": (lambda: symmetric(nn.Conv2d(4, 4, 3, stride=2, padding=1)), 8),
    "pooling by 2 of an odd side": (lambda: nn.MaxPool2d(2), 9),
    "padding on two sides": (lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), symmetric(nn.Conv2d(4, 4, 2))), 8),
    "kernel of its own": (lambda: nn.Conv2d(4, 4, 3, padding=1), 8),
    "positions": (Positions, 8),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_layer_that_loses_the_symmetry_is_named(name):
    defect, side = DEFECTS[name]
    report = measure_layers(Net(defect()), in_batches(images(12, side), 5), R4)
    assert report.first_lost.name == ("suspect.0" if name == "padding on two sides" else "suspect")
    assert (report.lost_before, report.lost_in) == (False, None)
    before = report.layers[: names(report).index(report.first_lost.name)]
    assert len(before) == 3
    assert all(layer.equivariance_error.mean < 1e-25 for layer in before)
    assert report.first_lost.equivariance_error.mean > 1e-3
    assert f"symmetry first lost at `{report.first_lost.name}` ({report.first_lost.kind});" in str(report)


@pytest.mark.parametrize(("name", "side"), [("odd kernel, stride 2, even side", 9), ("pooling by 2 of an odd side", 8)])
def test_the_same_layer_is_innocent_on_sides_that_fit(name, side):
    report = measure_layers(Net(DEFECTS[name][0]()), [images(12, side)], R4)
    assert report.first_lost is None


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_loss_between_layers_is_put_down_to_the_forward_that_calls_them(size):
    report = measure_layers(Net("in forward"), in_batches(images(12), size), R4)
    assert report.first_lost.name == "tail.0"
    assert (report.lost_before, report.lost_in) == (True, "Net")
    assert "symmetry first lost before `tail.0`, in the forward of `Net`;" in str(report)


class Around(nn.Module):
    """Calls another module, by keyword, on an input that it changes or not."""

    def __init__(self, inner: nn.Module, change: Tensor | float = 0.0) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, *, image: Tensor) -> Tensor:
        return self.inner(image + self.change)


def test_a_loss_deep_inside_is_put_down_to_the_innermost_module_whose_input_is_fine():
    ramp = torch.randn(8, 8, dtype=torch.float64)

    class Outer(nn.Module):
        def __init__(self, mine, theirs):
            super().__init__()
            self.mine = mine
            self.body = Around(nn.Sequential(symmetric(nn.Conv2d(1, 2, 3)).double()), theirs)

        def forward(self, x):
            return self.body(image=x + self.mine)

    outside = measure_layers(Outer(ramp, 0.0), [images(8)], R4)
    inside = measure_layers(Outer(0.0, ramp), [images(8)], R4)
    assert outside.first_lost.name == inside.first_lost.name == "body.inner.0"
    assert (outside.lost_before, outside.lost_in) == (True, "Outer")
    assert (inside.lost_before, inside.lost_in) == (True, "body")


def test_a_loss_after_the_last_layer_is_the_whole_modules():
    class Late(Net):
        def forward(self, x):
            return super().forward(x) + x[:, 0, 0, :3]

    report = measure_layers(Late(), [images(12)], R4)
    assert (report.first_lost.name, report.lost_before) == ("output", False)


def test_a_loss_in_the_callable_is_told_from_one_in_the_module():
    net = Net()
    ramp = torch.randn(8, 8, dtype=torch.float64)

    def shifted(x):
        return net(x + ramp)

    report = measure_layers(shifted, [images(12)], R4, module=net)
    assert (report.model, report.first_lost.name) == ("shifted", "conv1")
    assert (report.lost_before, report.lost_in) == (True, "shifted")
    assert measure_layers(lambda x: net(x), [images(12)], R4, module=net).model == "Net"


def test_what_is_lost_and_found_again_is_said():
    report = measure_layers(nn.Sequential(Positions(), Zero()).double(), [images(6, channels=4)], R4)
    assert report.first_lost.name == "0"
    assert "; the last layer keeps it again;" in report.summary()


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def test_a_flattened_image_says_why_it_counts_as_lost():
    report = measure_layers(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), [images()], R4)
    assert report.first_lost.name == "0"
    assert "which is not invariant; its output does not have the axes of an image" in report.summary()


def test_another_tolerance_moves_the_threshold():
    model = nn.Sequential(symmetric(nn.Conv2d(1, 2, 3)), nn.Conv2d(2, 2, 1)).double()
    with torch.no_grad():
        model[0].weight[..., 0, 0] += 1e-3
    strict = measure_layers(model, [images()], R4, tolerance=1e-9)
    lax = measure_layers(model, [images()], R4, tolerance=0.1)
    assert (strict.first_lost.name, lax.first_lost) == ("0", None)
    assert (strict.threshold, lax.threshold) == (1e-9, 0.1)


# Groups of all kinds


def smooth(samples: int = 8, side: int = 24) -> Tensor:
    """Blobs away from the edges."""
    grid = torch.linspace(-1, 1, side, dtype=torch.float64)
    centre = 0.4 * torch.randn(samples, 2, 1, 1, dtype=torch.float64).tanh()
    return (-((grid - centre[:, :1]) ** 2 + (grid[:, None] - centre[:, 1:]) ** 2) / 0.05).exp().view(-1, 1, side, side)


def test_the_actions_own_error_is_not_the_models():
    x = smooth()
    rotations = PlanarRotation()
    report = measure_layers(nn.Sequential(nn.Identity()), in_batches(x, 3), rotations, samples=2)
    replay = rotations.sample_non_identity(256, 2, torch.Generator().manual_seed(0))[:, :8]
    back = [rotations.act(rotations.inverse(g), rotations.act(g, x)) for g in replay]
    expected = sum(0.5 * (b - x).square().sum() / 8 for b in back) / 2 / x.var(0).sum()
    assert report.action_error == report.layers[0].equivariance_error
    assert report.action_error.mean == pytest.approx(float(expected), rel=1e-9)
    assert report.action_error.mean > 1e-6
    assert report.threshold == pytest.approx(1e-4 + 2 * report.action_error.mean)
    assert report.first_lost is None
    assert "the action's own equivariance error" in str(report)
    strict = replace(report, tolerance=0.0, action_error=None)
    assert strict.first_lost.name == "0"


def test_exact_groups_have_no_error_of_the_action():
    report = measure_layers(nn.Identity(), [images()], R4)
    assert report.action_error is None
    assert report.layers[0].equivariance_error.mean == 0
    assert report.threshold == 1e-4


@pytest.mark.parametrize("group", [Dihedral(4), Flip(-1), CyclicTranslation(4)], ids=repr)
def test_circular_pointwise_networks_keep_other_groups_too(group):
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Conv2d(3, 2, 1)).double()
    report = measure_layers(model, [images()], group)
    assert report.first_lost is None
    assert max(layer.equivariance_error.mean for layer in report.layers) < 1e-25
    assert min(layer.invariance_error.mean for layer in report.layers) > 0.1


def test_a_group_that_cannot_move_an_output_says_so():
    model = nn.Sequential(nn.Conv2d(1, 2, (3, 1)), nn.Conv2d(2, 2, 1)).double()
    report = measure_layers(model, in_batches(images(), 4), R4)
    assert report.layers[1].shape == (2, 6, 8)
    assert report.layers[1].equivariance_error is None
    assert "cannot be moved back" in report.layers[1].reason
    assert "square" in report.layers[1].reason
    assert report.first_lost.name == "0"


def test_sets_have_no_action_to_undo_unless_they_say():
    brighter = [lambda x: x + 1, lambda x: x - 0.5]
    model = nn.Sequential(nn.Identity(), nn.InstanceNorm2d(1))
    plain = measure_layers(model, [images()], TransformationSet(brighter))
    told = measure_layers(model, [images()], TransformationSet(brighter, realign=[torch.Tensor.clone] * 2))
    assert not plain.is_group
    assert plain.first_lost is told.first_lost is None
    assert "the inputs themselves are changed, which moving back does not undo; the last layer is invariant" in str(
        told
    )
    for layer in plain.layers:
        assert layer.equivariance_error is None
        assert "realign=" in layer.reason
    assert [layer.equivariance_error for layer in told.layers] == [layer.invariance_error for layer in told.layers]
    assert told.layers[2].invariance_error.mean < 1e-15
    assert "which is no group" in str(told)
    assert (told.action_error, told.threshold) == (None, 1e-4)


def test_a_set_that_moves_things_is_followed():
    turn = TransformationSet([lambda x: x.flip(-1)], realign=[lambda m: m.flip(-1)])
    assert measure_layers(nn.Sequential(nn.Tanh()), [images()], turn).first_lost is None


def test_inputs_of_several_tensors_have_invariance_errors():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = symmetric(nn.Conv2d(1, 2, 3, padding=1))
            self.head = nn.Linear(2, 3)
            self.double()

        def forward(self, batch):
            return self.head((self.conv(batch["image"]) * batch["mask"]).mean((2, 3)))

    x, mask = images(), (images() > 0).double()
    data = [{"image": x[:4], "mask": mask[:4], "labels": None}, {"image": x[4:], "mask": mask[4:], "labels": None}]
    both = OnKeys({"image": R4, "mask": R4})
    report = measure_layers(Pair(), data, both, input_key=["image", "mask"])
    assert names(report) == ["input", "conv", "head", "output"]
    assert [layer.kind for layer in report.layers] == ["dict", "Conv2d", "Linear", "Pair"]
    assert report.layers[0].shape == (128,)
    joined = torch.cat([x.flatten(1), mask.flatten(1)], 1)
    moved = [torch.cat([R4.act(g, x).flatten(1), R4.act(g, mask).flatten(1)], 1) for g in torch.arange(1, 4)]
    expected = sum(0.5 * (m - joined).square().sum() / 7 for m in moved) / 3 / joined.var(0).sum()
    assert report.layers[0].invariance_error.mean == pytest.approx(float(expected), rel=1e-9)
    assert report.layers[1].equivariance_error is None
    assert "several tensors" in report.layers[1].reason
    assert report.layers[2].invariance_error.mean < 1e-25
    one_sided = measure_layers(Pair(), data, OnKeys({"image": R4}), input_key=["image", "mask"])
    assert one_sided.layers[2].invariance_error.mean > 1e-3


def test_the_group_of_the_identity_alone_moves_nothing():
    report = measure_layers(plain_cnn(), in_batches(images(), 3), Trivial())
    assert report.elements == 0
    assert all(layer.invariance_error.mean == 0 for layer in report.layers)
    assert report.first_lost is None


def test_a_sign_flip_leaves_even_layers_alone():
    class Even(nn.Module):
        def forward(self, x):
            return x.abs()

    report = measure_layers(nn.Sequential(Even(), nn.Flatten()), [images()], SignFlip())
    assert report.first_lost is None
    assert report.layers[0].invariance_error.mean > 0.5


# Models of all kinds


def test_modules_that_are_not_called_are_listed_and_not_in_the_way():
    class Sparse(Net):
        def __init__(self):
            super().__init__()
            self.auxiliary = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.many = nn.ModuleList([nn.Linear(2, 2)])
            self.numbers = nn.ParameterList([nn.Parameter(torch.ones(2))])

    report = measure_layers(Sparse(), [images()], R4)
    assert report.unused == ("auxiliary.0", "auxiliary.1", "many.0")
    assert "auxiliary" not in names(report)
    assert "never called: auxiliary.0, auxiliary.1, many.0" in str(report)
    assert measure_layers(Net(), [images()], R4).unused == ()


def test_each_call_of_a_module_has_a_row():
    class Thrice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.conv = nn.Conv2d(1, 1, 3, padding=1).double()

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(self.relu(x.clone())))))

    model, x = Thrice(), images()
    report = measure_layers(model, in_batches(x, 4), R4)
    assert names(report) == ["input", "relu", "conv", "relu (call 2)", "conv (call 2)", "relu (call 3)", "output"]
    assert [layer.call for layer in report.layers] == [1, 1, 1, 2, 2, 3, 1]
    once = measure_layers(nn.Sequential(nn.ReLU(), model.conv, nn.ReLU(), model.conv, nn.ReLU()), in_batches(x, 4), R4)
    errors = [layer.invariance_error for layer in report.layers]
    assert len({error.mean for error in errors[:6]}) == 6
    assert errors == [layer.invariance_error for layer in once.layers]


def test_what_is_written_into_later_is_measured_as_it_was():
    x = images()
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)).double()
    apart = nn.Sequential(model[0], nn.ReLU(), nn.Dropout(0.5))
    written, kept = (measure_layers(one, in_batches(x, 4), R4) for one in (model, apart))
    assert [a.invariance_error for a in written.layers] == [a.invariance_error for a in kept.layers]
    assert written.layers[1].invariance_error != written.layers[2].invariance_error


def test_a_model_that_writes_into_its_input_spoils_neither_data_nor_the_row_of_the_input():
    x = images()
    before = x.clone()
    report = measure_layers(nn.Sequential(nn.ReLU(inplace=True)), [x], R4)
    plain = measure_layers(nn.Sequential(nn.ReLU()), [x], R4)
    assert torch.equal(x, before)
    assert report.layers == plain.layers


@dataclass
class Result:
    """As Hugging Face's models return them."""

    loss: Tensor | None
    logits: Tensor


class Returning(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor):
        return self.wrap(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, 2 * x),
        lambda x: (torch.arange(len(x)), (x.mean(), x)),
        lambda x: {"mask": x > 0, "out": [x]},
        lambda x: Result(None, x),
    ],
    ids=["tuple", "nested", "dict", "dataclass"],
)
def test_layers_may_return_several_tensors(wrap):
    report = measure_layers(Returning(wrap), in_batches(images(), 4), R4)
    assert report.layers[-1].shape == (1, 8, 8)
    assert report.layers[-1].equivariance_error.mean == 0
    assert report.layers[-1].invariance_error == report.layers[0].invariance_error


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (lambda x: x.mean(), r"no floating-point row for each of the 4 inputs.* shape \(\)"),
        (lambda x: x.transpose(0, 1), r"shape \(1, 4, 8, 8\)"),
        (lambda x: (x > 0, x.argmax(-1)), r"shapes \[\(4, 1, 8, 8\), \(4, 1, 8\)\]"),
        (lambda x: None, r"no tensor"),
        (lambda x: x / 0, r"not finite"),
        (lambda x: x * 1e200, r"squares, are not finite"),
    ],
    ids=["number", "batch elsewhere", "integers", "nothing", "infinite", "too large"],
)
def test_what_cannot_be_measured_says_why(wrap, reason):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Returning(wrap)

        def forward(self, x):
            self.odd(x)
            return x

    report = measure_layers(Model(), [images(1), images(1), images(1)], R4)
    assert names(report) == ["input", "odd", "output"]
    odd = row(report, "odd")
    assert (odd.invariance_error, odd.equivariance_error, odd.measured) == (None, None, False)
    assert re.search(reason, odd.reason)
    assert "not measured:" in str(report)
    assert report.first_lost is None
    assert "(1 layer not measured)" in report.summary()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_constant_outputs_are_kept(dtype):
    class Rounding(nn.Module):
        def forward(self, x):
            return (x + 1e3 * torch.ones_like(x)) * 0 + 0.1 * torch.softmax(x * 0, -1)

    report = measure_layers(nn.Sequential(Rounding()), in_batches(images(6).to(dtype), 8), Flip())
    errors = [(one.invariance_error.mean, one.equivariance_error.mean, one.reason) for one in report.layers[1:]]
    assert errors == [(0, 0, None)] * 2
    assert report.first_lost is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_is_no_variance(dtype):
    wobble = torch.finfo(dtype).eps

    report = measure_layers(
        nn.Sequential(Returning(lambda x: 1 + wobble * (x > 0).to(x))), in_batches(images(6).to(dtype), 8), R4
    )
    assert report.layers[1].invariance_error.mean == 0


def test_an_output_that_varies_under_the_group_only_has_no_share():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.split = Returning(lambda x: (torch.arange(len(x)) * 2 // len(x)).to(x)[:, None])

        def forward(self, x):
            self.split(x)
            return x

    report = measure_layers(Split(), in_batches(images(6), 2), Flip())
    assert row(report, "split").invariance_error is None
    assert row(report, "split").reason == "constant over the data, but not under the group"


def test_one_sample_has_no_variance():
    report = measure_layers(Net(), [images(1)], R4)
    assert row(report, "conv1").invariance_error is None
    assert "one sample" in row(report, "conv1").reason
    assert report.first_lost is None


def test_a_layer_whose_shape_changes_says_so():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)).double()
    report = measure_layers(model, [images(4, 8), images(4, 9)], R4)
    assert not row(report, "0").measured
    assert row(report, "0").reason == "its shape changes over the data, from (2, 6, 6) to (2, 7, 7)"
    assert row(report, "1").invariance_error.count == 8


def test_a_layer_called_for_some_of_the_data_counts_these():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Tanh(), nn.Sigmoid()

        def forward(self, x):
            return self.first(x) if x.mean() > 0 else self.second(x)

    x = images(6).abs()
    report = measure_layers(Fickle(), [x[:2], -x[2:]], Flip())
    assert names(report) == ["input", "first", "output", "second"]
    assert [layer.invariance_error.count for layer in report.layers] == [6, 2, 6, 4]
    alone = measure_layers(nn.Sequential(nn.Sigmoid()), [-x[2:]], Flip())
    assert row(report, "second").invariance_error.mean == pytest.approx(alone.layers[1].invariance_error.mean)


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_is_measured_where_its_batch_comes_first(batch_first):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first).double()

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            tokens = tokens if batch_first else tokens.transpose(0, 1)
            out, _ = self.attention(tokens, tokens, tokens)
            return out.mean(1 if batch_first else 0)

    report = measure_layers(Tokens(), in_batches(images(12, 3, 4), 6), R4)
    assert row(report, "attention").shape == ((9, 4) if batch_first else (9, 9))  # its weights have the batch first
    assert row(report, "attention").invariance_error.mean > 0.1
    assert row(report, "output").invariance_error.mean < 1e-25  # attention without positions does not see the order
    assert report.unused == ("attention.out_proj",)


def test_a_transformer_encoder_calls_its_layers():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double()
    x = torch.randn(8, 5, 4, dtype=torch.float64)
    before = state_of(encoder.eval())
    report = measure_layers(encoder, [x], Flip(1))
    assert {"self_attn", "linear1", "linear2", "norm1", "norm2", "output"} < set(names(report))
    assert report.layers[-1].equivariance_error.mean < 1e-25  # a mirrored sequence
    assert state_of(encoder) == before


def test_containers_are_measured_like_their_last_layer():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Tanh()))).double()
    report = measure_layers(model, in_batches(images(), 3), R4)
    assert names(report) == ["input", "0.0", "0.1.0", "0.1", "0", "output"]
    assert len({(layer.invariance_error, layer.equivariance_error) for layer in report.layers[2:]}) == 1
    assert report.layers[1].invariance_error != report.layers[2].invariance_error


def test_weights_that_are_made_by_modules_have_no_rows():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))).double()
    report = measure_layers(model, [images()], R4)
    assert names(report) == ["input", "0", "output"]
    assert report.unused == ()


def test_compiled_modules_are_measured_uncompiled():
    model = plain_cnn()
    report = measure_layers(torch.compile(model, backend="eager"), [images()], R4)
    assert names(report) == ["input", "0", "1", "2", "3", "4", "output"]


def test_models_that_turn_on_inference_or_gradients_are_measured():
    class Switching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3).double(), nn.ReLU(inplace=True)

        def forward(self, x):
            with torch.enable_grad():
                y = self.a(x)
            with torch.inference_mode():
                return self.b(y.detach().clone())

    model, x = Switching(), images()
    plain = measure_layers(nn.Sequential(model.a, nn.ReLU()), [x], R4)
    report = measure_layers(model, [x], R4)
    assert [one.invariance_error for one in report.layers] == [one.invariance_error for one in plain.layers]
    assert model.a.weight.grad is None


def test_the_caller_of_a_watched_module_is_measured_in_eval_mode_and_without_gradients():
    net = Net()
    gradients = []

    class Caller(nn.Sequential):
        def forward(self, x):
            gradients.append(torch.is_grad_enabled())
            return super().forward(x)

    model = Caller(nn.Dropout(0.5), net)
    assert model.training
    assert measure_layers(model, [images()], R4, module=net).first_lost is None
    assert gradients == [False] * len(gradients) != []


def test_vectors_have_no_places_to_move_back():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).double()
    report = measure_layers(model, [torch.randn(6, 8, dtype=torch.float64)], Flip())
    assert [layer.equivariance_error is None for layer in report.layers] == [False, True, True, True]
    assert "axes of an image" in report.layers[1].reason


def test_a_loader_that_reuses_its_memory_spoils_nothing():
    def loader():
        buffer = torch.empty(8, 1, 8, 8, dtype=torch.float64)
        for x in (images(8), images(8)):
            yield buffer.copy_(x)
        buffer.zero_()

    report = measure_layers(Net("in forward"), loader(), R4)
    assert (report.first_lost.name, report.lost_before, report.lost_in) == ("tail.0", True, "Net")


# What it costs


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x


@pytest.mark.parametrize(("size", "rows"), [(16, [16] * 4), (10, [8] * 5 + [4, 4, 4, 4, 4, 4]), (3, [4] * 16)], ids=str)
def test_a_forward_has_no_more_rows_than_a_batch_or_one_orbit(size, rows):
    model = Counting()
    report = measure_layers(model, in_batches(images(16), size), R4)
    assert model.rows == rows
    assert report.samples == 16


# What is left behind


class Failing(nn.Module):
    """Fails at the second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError("the model's own")
        torch.randn(3)
        return x


def test_a_model_is_left_as_it_was():
    model = mixed().double()
    x = images(6, 4)
    before = state_of(model)
    report = measure_layers(model, in_batches(x, 2), R4)
    assert state_of(model) == before
    assert len(report.layers) == 10


def test_a_model_that_fails_is_left_as_it_was_and_its_error_is_the_cause():
    model = nn.Sequential(Failing(), mixed()).double()
    x = images(16, 4)
    before = state_of(model)
    with pytest.raises(
        RuntimeError, match=r"model failed on inputs and their 3 .* \(8, 1, 4, 4\): the model's own"
    ) as error:
        measure_layers(model, in_batches(x, 8), R4)
    assert isinstance(error.value.__cause__, ArithmeticError)
    assert state_of(model) == before


def test_the_second_look_leaves_no_hooks():
    model = Net("in forward")
    x = images()
    before = state_of(model)
    assert measure_layers(model, [x], R4).lost_before
    assert state_of(model) == before


def test_the_caller_of_a_watched_module_is_left_as_it_was():
    inner = mixed().double()
    outer = nn.Sequential(nn.Dropout(0.5), inner)
    x = images(6, 4)
    before = state_of(outer)
    report = measure_layers(outer, [x], R4, module=inner)
    assert state_of(outer) == before
    assert "output" in names(report)
    assert names(report)[1] == "0"


# Arguments


def test_only_the_layers_asked_for_are_measured():
    report = measure_layers(Net(), [images()], R4, layers=["head", "tail.0"])
    assert names(report) == ["input", "tail.0", "head"]
    assert report.unused == ()
    assert names(measure_layers(Net(), [images()], R4, layers=[""])) == ["input", "output"]
    full = measure_layers(Net(DEFECTS["positions"][0]()), [images()], R4)
    some = measure_layers(Net(DEFECTS["positions"][0]()), [images()], R4, layers=["tail", "head"])
    assert (some.first_lost.name, some.lost_before, some.lost_in) == ("tail", True, "Net")
    assert full.first_lost.name == "suspect"


FAILURES = {
    "no module": ({"model": lambda x: x}, TypeError, r"must be a torch.nn.Module.*got function.*module=net"),
    "no callable": ({"model": 3}, TypeError, r"model must be a torch.nn.Module, or a callable.*got int"),
    "module of another kind": ({"module": lambda x: x}, TypeError, r"module must be a torch.nn.Module.*got function"),
    "module that is not called": ({"module": nn.ReLU()}, ValueError, r"called none of its layers\. Set module="),
    "no such layer": ({"layers": ["conv"]}, ValueError, r"got 'conv'\. Did you mean one of \['conv1'"),
    "nothing alike": ({"layers": ["zzz"]}, ValueError, r"got 'zzz'\. Did you mean one of \['conv1', 'act'"),
    "a name for a list": ({"layers": "conv1"}, TypeError, r"layers must be a list of names.*got 'conv1'"),
    "no layers": ({"layers": []}, ValueError, r"at least one layer: got none\. None measures all"),
    "no group": ({"group": "rotation"}, TypeError, r"group must be a Group"),
    "samples": ({"samples": 4}, ValueError, r"1 to 3 for CyclicRotation.*got 4"),
    "infinitely many": ({"group": PlanarRotation()}, ValueError, r"infinitely many.*samples="),
    "tolerance below zero": ({"tolerance": -1.0}, ValueError, r"tolerance must be 0 or more.*got -1.0"),
    "tolerance in words": ({"tolerance": "low"}, TypeError, r"tolerance must be a number.*got 'low'"),
    "no data": ({"loader": []}, ValueError, r"at least one batch"),
    "no floats": ({"loader": [images().long()]}, TypeError, r"floating point: got torch.int64"),
    "not square": ({"loader": [images()[:, :, :4]]}, ValueError, r"square.*\(4, 8\)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_say_what_is_wrong(name):
    changes, kind, message = FAILURES[name]
    settings = {"model": Net(), "loader": [images()], "group": R4} | changes
    with pytest.raises(kind, match=message):
        measure_layers(settings.pop("model"), settings.pop("loader"), settings.pop("group"), **settings)


def test_an_action_that_fails_says_so():
    class Broken(CyclicGroup):
        order, exact = 4, True

        def transform(self, index, x):
            raise LookupError("no such thing")

    with pytest.raises(RuntimeError, match=r"The action of .*Broken.*\(7, 1, 8, 8\): no such thing") as error:
        measure_layers(Net(), [images(28)], Broken())
    assert isinstance(error.value.__cause__, LookupError)


# The report


def broken_report(**changes) -> LayersReport:
    torch.manual_seed(0)
    return replace(measure_layers(Net("in forward"), in_batches(images(12), 5), R4), **changes)


def test_a_report_goes_through_json_and_back():
    for report in (broken_report(), measure_layers(Net(), [images(1)], R4), broken_report(action_error=None)):
        state = json.loads(report.to_json())
        assert state["schema"] == 1
        assert LayersReport.from_dict(state) == LayersReport.from_dict(report.to_dict()) == report
        assert hash(LayersReport.from_dict(state)) == hash(report)
    assert LayersReport.from_dict(state).first_lost.name == "tail.0"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: [], r"made from a dictionary: got list"),
        (lambda state: state | {"schema": 2}, r"must have schema 1: got 2"),
        (lambda state: state | {"more": 1}, r"LayersReport.*missing \[\], unknown \['more'\]"),
        (lambda state: state | {"layers": [{"name": "x"}]}, r"LayerReport.*missing \['call', 'equivariance_error'"),
    ],
    ids=["list", "schema", "unknown", "missing"],
)
def test_other_dictionaries_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        LayersReport.from_dict(spoil(broken_report().to_dict()))


def test_the_table_has_a_line_per_layer_in_columns():
    report = broken_report()
    lines = str(report).splitlines()
    assert lines[0] == "Layers of Net under CyclicRotation(order=4)"
    assert lines[1].startswith("12 samples, each under 3 non-identity elements (all); ")
    table = lines[3 : lines.index("", 3)]
    assert [line.split()[0] for line in table[1:]] == names(report)
    assert table[0].split("  ")[0] == "layer"
    at = table[0].index("equivariance error")
    for line, layer in zip(table[1:], report.layers, strict=True):
        value = layer.equivariance_error
        assert line[at:].startswith("-" if value is None else str(value))
    assert [line.split()[-1] for line in table[2:]] == ["kept"] * 3 + ["lost"] * 6
    assert lines[-1] == report.summary()


def pixels(report: LayersReport) -> np.ndarray:
    """The plot as grey values between 0 and 1, read from a PNG file."""
    from matplotlib.image import imread

    buffer = io.BytesIO()
    report.plot().savefig(buffer, format="png", dpi=80)
    buffer.seek(0)
    return imread(buffer)[..., :3].mean(2)


def test_the_plot_is_drawn_without_pyplot():
    import sys

    loaded = "matplotlib.pyplot" in sys.modules
    report = broken_report()
    image = pixels(report)
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    assert len(np.unique(image.round(3))) > 50
    assert 0.5 < (image > 0.99).mean() < 0.99


def test_the_plot_shows_the_errors():
    report = broken_report()
    (axes,) = report.plot().axes
    invariance, equivariance = (
        next(line for line in axes.lines if line.get_label() == label)
        for label in ("invariance error", "equivariance error")
    )
    shown = invariance.get_ydata()
    assert list(shown) == pytest.approx([max(one.invariance_error.mean, 1e-9) for one in report.layers])
    moved = [math.nan if one.equivariance_error is None else one.equivariance_error.mean for one in report.layers]
    assert list(equivariance.get_ydata()) == pytest.approx(np.maximum(moved, 1e-9), nan_ok=True)
    assert invariance.get_linestyle() != equivariance.get_linestyle()
    assert invariance.get_marker() != equivariance.get_marker()
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == names(report)
    assert "share" in axes.get_ylabel()
    assert "order of execution" in axes.get_xlabel()
    (mark,) = axes.texts
    assert mark.get_text() == "lost in Net, before tail.0"
    assert mark.xy[0] == names(report).index("tail.0") - 0.5


def test_the_plot_of_a_kept_symmetry_marks_nothing():
    (axes,) = measure_layers(Net(), [images()], R4).plot().axes
    assert not axes.texts


def test_a_plot_of_many_layers_names_some_and_always_the_one_that_loses_the_symmetry():
    layers = [nn.Identity() for _ in range(100)]
    layers[66] = nn.Conv2d(1, 1, 3, padding=1).double()
    report = measure_layers(nn.Sequential(*layers), [images()], R4)
    (axes,) = report.plot().axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert report.first_lost.name == "66"
    assert "66" in labels
    assert 20 < len(labels) <= 41
    places = axes.get_xticks()
    assert [names(report)[int(place)] for place in places] == labels
    assert min(np.diff(places)) > 1


def test_a_plot_of_errors_of_zero_only_works():
    report = measure_layers(nn.Identity(), [images()], Trivial(), tolerance=0.0)
    assert report.first_lost is None
    assert len(np.unique(pixels(report).round(3))) > 50
