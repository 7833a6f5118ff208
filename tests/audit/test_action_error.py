"""Does an audit say how much of an error is the action's own, and not the model's?"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    Conjugated,
    CyclicGroup,
    CyclicRotation,
    Dihedral,
    Estimate,
    FiniteGroup,
    Group,
    InvarianceReport,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    TransformationSet,
    Translation,
    Trivial,
    measure_invariance,
)
from tests import oracle
from tests.audit.test_measure import assert_estimate_agrees, classes_of, images, in_batches, mlp, numbers
from tests.test_preserve import mixed, state_of

Array = np.ndarray
Move = Callable[[Array], Array]

OF_ACTION = ("action_error", "action_logit_error")


# What the actions do, in loops over pixels


def read(x: Array, row: float, column: float) -> Array:
    """The value of an image (C, H, W) between its pixels, linearly; zero beyond the edges."""
    total = np.zeros(x.shape[0])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total = total + (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return total


def turned(x: Array, angle: float) -> Array:
    """Counter-clockwise about the middle."""
    height, width = x.shape[1:]
    y = np.zeros(x.shape)
    for r in range(height):
        for c in range(width):
            right, up = c - (width - 1) / 2, (height - 1) / 2 - r
            from_right = math.cos(angle) * right + math.sin(angle) * up
            from_up = math.cos(angle) * up - math.sin(angle) * right
            y[:, r, c] = read(x, (height - 1) / 2 - from_up, from_right + (width - 1) / 2)
    return y


def shifted(x: Array, down: float, right: float) -> Array:
    """With wrap-around."""
    height, width = x.shape[1:]
    around = np.pad(x, ((0, 0), (height, 2 * height), (width, 2 * width)), mode="wrap")
    y = np.zeros(x.shape)
    for r in range(height):
        for c in range(width):
            y[:, r, c] = read(around, height + (r - down) % height, width + (c - right) % width)
    return y


def mirrored(x: Array) -> Array:
    return x[:, :, ::-1].copy()


@dataclass(frozen=True)
class Fading(CyclicGroup):
    """Shifts along the last axis that lose a share of all values: no undoing gives them back."""

    order = 3
    exact = False
    kept = (1.0, 0.9, 0.7)

    def transform(self, index: int, x: Tensor) -> Tensor:
        return self.kept[index] * x.roll(index * x.shape[-1] // 3, -1)


def there_and_back(name: str) -> list[tuple[Move, Move]]:
    """For each non-identity element what it does, and what its inverse does."""
    if name == "fading":
        kept = (1.0, 0.9, 0.7)
        return [
            (lambda x, i=i: kept[i] * np.roll(x, 2 * i, -1), lambda x, i=i: kept[3 - i] * np.roll(x, 6 - 2 * i, -1))
            for i in (1, 2)
        ]
    steps = {"rotation": 8, "dihedral": 3, "restricted": 5}[name]
    angle = 2 * math.pi / steps
    turns = [(lambda x, i=i: turned(x, i * angle), lambda x, i=i: turned(x, -i * angle)) for i in range(1, steps)]
    if name != "dihedral":
        return turns
    mirrors = [lambda x, i=i: turned(mirrored(x), i * angle) for i in range(steps)]
    return turns + list(zip(mirrors, mirrors, strict=True))


FINITE: dict[str, FiniteGroup] = {
    "rotation": CyclicRotation(8),
    "dihedral": Dihedral(3),
    "restricted": Restricted(PlanarRotation(), [[2 * math.pi / 5]]),
    "fading": Fading(),
}


def wide(samples: int = 7, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images that are not square, so that rows taken for columns would show."""
    return torch.randn(samples, 1, 4, 6, dtype=dtype)


def network(entries: int, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def relative_change(x: Array, back: Array) -> float:
    difference = math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x.flat, back.flat, strict=True))
    return math.sqrt(difference) / math.sqrt(math.fsum(float(a) ** 2 for a in x.flat))


def errors_by_loops(
    model: nn.Sequential, x: Tensor, moves: Sequence[Sequence[tuple[Move, Move]]]
) -> dict[str, list[list[float]]]:
    """Both errors, for each sample under each of its elements; and the logit error of the model."""
    outputs = oracle.network_of(model)
    found: dict[str, list[list[float]]] = {name: [] for name in (*OF_ACTION, "logit_error")}
    for sample, elements in zip(x.double().numpy(), moves, strict=True):
        reference = outputs(sample[None])[0]
        moved = [there(sample) for there, _ in elements]
        back = [undo(m) for m, (_, undo) in zip(moved, elements, strict=True)]
        found["action_error"].append([relative_change(sample, b) for b in back])
        found["action_logit_error"].append([oracle.logit_error(reference, outputs(b[None])[0]) for b in back])
        found["logit_error"].append([oracle.logit_error(reference, outputs(m[None])[0]) for m in moved])
    return found


def assert_agrees(report: InvarianceReport, found: dict[str, list[list[float]]]) -> None:
    for name, values in found.items():
        averages = [math.fsum(row) / len(row) for row in values]
        assert_estimate_agrees(getattr(report, name), oracle.estimate(averages), 1e-9, name)
        assert report.per_sample[name].tolist() == pytest.approx(averages, rel=1e-9, abs=1e-9), name
        classes = report.per_sample["label" if report.accuracy is not None else "prediction"].tolist()
        assert [one.label for one in report.per_class] == sorted(set(classes))
        for one in report.per_class:
            some = [average for average, label in zip(averages, classes, strict=True) if label == one.label]
            assert_estimate_agrees(getattr(one, name), oracle.estimate(some), 1e-9, f"{name} of {one.name}")


# Against plain loops


@pytest.mark.parametrize("name", FINITE)
def test_under_a_finite_group_overall_and_per_element(name):
    x, model, moves = wide(7), network(24), there_and_back(name)
    assert len(moves) == FINITE[name].order - 1
    found = errors_by_loops(model, x, [moves] * 7)
    report = measure_invariance(model, in_batches(x), FINITE[name], saliency=None)
    assert_agrees(report, found)
    assert report.action_error.mean > 0.01
    assert len(report.per_element) == len(moves)
    for index, element in enumerate(report.per_element):
        assert element.element == index + 1
        for field, values in found.items():
            expected = oracle.estimate([row[index] for row in values])
            assert_estimate_agrees(getattr(element, field), expected, 1e-9, f"{field} of element {element.element}")
    classes = report.per_sample["prediction"].tolist()
    assert len(report.per_class_element) == len(set(classes)) * len(moves) > len(moves)
    for one in report.per_class_element:
        for field, values in found.items():
            some = [row[one.element - 1] for row, label in zip(values, classes, strict=True) if label == one.label]
            assert_estimate_agrees(getattr(one, field), oracle.estimate(some), 1e-9, f"{field} of {one.name}")


def test_the_loops_tell_an_error_that_is_relative_to_something_else_or_absolute():
    x, model = wide(7), network(24)
    found = errors_by_loops(model, x, [there_and_back("fading")] * 7)
    assert all(row == pytest.approx([1 - 0.9 * 0.7] * 2) for row in found["action_error"])
    found["action_error"] = [[1.01 * value for value in row] for row in found["action_error"]]
    report = measure_invariance(model, in_batches(x), Fading(), saliency=None)
    with pytest.raises(AssertionError, match="action_error"):
        assert_agrees(report, found)


def test_by_hand():
    """Each element keeps 0.9 or 0.7, back and forth 0.63: a linear model loses the same share of its logits."""
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    report = measure_invariance(lambda v: v, [x], Fading(), saliency=None)
    assert report.action_error.mean == pytest.approx(0.37)
    assert report.action_error.standard_error == pytest.approx(0, abs=1e-12)
    per_sample = [0.5 * 0.37**2 * 25, 0.5 * 0.37**2 * 4]
    assert report.action_logit_error.mean == pytest.approx(sum(per_sample) / 2)
    assert report.action_logit_error.standard_error == pytest.approx((per_sample[0] - per_sample[1]) / 2)
    assert report.action_logit_error.count == report.action_error.count == 2


INFINITE = {
    "turns": (PlanarRotation(), lambda x, g: turned(x, g[0])),
    "shifts": (Translation(2.5), lambda x, g: shifted(x, g[0], g[1])),
}


@pytest.mark.parametrize("name", INFINITE)
@pytest.mark.parametrize("seed", [None, 3])
def test_under_drawn_elements_of_an_infinite_group(name, seed):
    group, move = INFINITE[name]
    x, samples = wide(7), 3
    model = network(24)
    replay = torch.Generator().manual_seed(0 if seed is None else seed)
    drawn = [g for b in in_batches(x) for g in group.sample_non_identity(len(b), samples, replay).transpose(0, 1)]
    moves = [
        [(lambda v, g=g: move(v, g.tolist()), lambda v, g=g: move(v, (-g).tolist())) for g in elements]
        for elements in drawn
    ]
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    report = measure_invariance(model, in_batches(x), group, samples=samples, rng=rng, saliency=None)
    assert_agrees(report, errors_by_loops(model, x, moves))
    assert report.action_error.mean > 0.01
    assert report.per_element == ()


def test_under_drawn_elements_of_a_finite_group():
    x, group, model = wide(7), CyclicRotation(8), network(24)
    replay = torch.Generator().manual_seed(0)
    indices = [column for b in in_batches(x) for column in group.sample_non_identity(len(b), 2, replay).T.tolist()]
    every = there_and_back("rotation")
    found = errors_by_loops(model, x, [[every[i - 1] for i in column] for column in indices])
    report = measure_invariance(model, in_batches(x), group, samples=2, saliency=None)
    assert_agrees(report, found)
    for element in report.per_element:
        values = [
            row[column.index(element.element)]
            for row, column in zip(found["action_error"], indices, strict=True)
            if element.element in column
        ]
        assert_estimate_agrees(element.action_error, oracle.estimate(values), 1e-9, str(element.element))
    assert sum(element.action_error.count for element in report.per_element) == 14


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(torch.float32, 1e-8, 5e-7), (torch.float64, 1e-17, 1e-15)], ids=["float32", "float64"]
)
def test_turns_in_space_only_round(dtype, low, high):
    x = torch.randn(20, 6, 3, dtype=dtype)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).to(dtype)
    report = measure_invariance(model, [x], SpatialRotation(), samples=4, saliency=None)
    assert low < report.action_error.mean < high
    assert report.action_logit_error.mean < high**2 * 100
    assert report.logit_error.mean > 1e-3


def test_the_difference_is_not_lost_to_the_inputs_precision():
    """In bfloat16 a product by 0.63 is coarse, but the error is 0.37 and a rounding of two factors."""
    x = torch.randn(50, 9, dtype=torch.bfloat16)
    report = measure_invariance(lambda v: v.float(), [x], Fading(), saliency=None)
    assert report.action_error.mean == pytest.approx(0.37, abs=5e-3)
    assert report.action_error.mean != 0.37


def test_more_careful_interpolation_loses_less():
    smooth = torch.linspace(-1, 1, 16, dtype=torch.float64)
    x = torch.exp(-8 * ((smooth[:, None] - 0.2) ** 2 + (smooth - 0.1) ** 2)).view(1, 1, 16, 16)
    found = [
        measure_invariance(
            lambda v: v.flatten(1), [x], Restricted(PlanarRotation(mode), [[math.pi / 4]]), saliency=None
        ).action_error.mean
        for mode in ("bicubic", "bilinear", "nearest")
    ]
    assert found[0] < 0.5 * found[1] < 0.5 * found[2]


# What it is for


def radial(x: Tensor) -> Tensor:
    """Means over rings about the middle: invariant to every turn but for the pixels."""
    height, width = x.shape[-2:]
    down, right = (torch.arange(size, dtype=x.dtype) - (size - 1) / 2 for size in (height, width))
    radius = (down[:, None] ** 2 + right**2).sqrt()
    rings = torch.stack([torch.exp(-((radius - r) ** 2) / 4) for r in (0.0, 3.0, 6.0)])
    return torch.einsum("nchw,khw->nk", x, rings) / 10


def blobs(samples: int, side: int = 20) -> Tensor:
    """Smooth images that vanish towards their edges."""
    steps = torch.linspace(-1, 1, side, dtype=torch.float64)
    middles = 0.8 * torch.rand(samples, 2, 1, 1, dtype=torch.float64) - 0.4
    return torch.exp(-12 * ((steps[:, None] - middles[:, :1]) ** 2 + (steps - middles[:, 1:]) ** 2))


@pytest.mark.parametrize("group", [CyclicRotation(8), Dihedral(3), Dihedral(5)], ids=repr)
def test_what_an_invariant_model_loses_is_the_actions_own(group):
    x = blobs(12)
    rings = measure_invariance(radial, [x], group, saliency=None)
    assert 0 < rings.logit_error.mean < 2 * rings.action_logit_error.mean
    flat = nn.Linear(400, 3, dtype=torch.float64)
    dense = measure_invariance(lambda v: flat(v.flatten(1)), [x], group, saliency=None)
    assert dense.logit_error.mean > 100 * dense.action_logit_error.mean
    assert dense.action_error.mean == pytest.approx(rings.action_error.mean, rel=1e-12)


@pytest.mark.parametrize("turn", [1, 3])
def test_turns_that_only_move_pixels_have_none(turn):
    """Of the eighths of a full turn, the quarter turns are exact on square images."""
    report = measure_invariance(mlp(), [images()], CyclicRotation(8), saliency=None)
    quarter = report.per_element[2 * turn - 1]
    assert quarter.element == 2 * turn
    assert quarter.action_error == quarter.action_logit_error == Estimate(0.0, 0.0, 7)
    assert quarter.logit_error.mean > 1e-3
    assert report.per_element[0].action_error.mean > 0.1


def test_an_enlarged_image_loses_what_it_pushes_out():
    x = torch.ones(3, 1, 8, 8, dtype=torch.float64)
    larger = measure_invariance(
        lambda v: v.flatten(1), [x], Scaling(3.0), samples=5, rng=torch.Generator().manual_seed(0), saliency=None
    )
    assert larger.action_error.mean > 0.2


# Where there is none

NONE = {
    "turns": (CyclicRotation(4), images, {}),
    "sign": (SignFlip(), images, {}),
    "trivial": (Trivial(), images, {}),
    "permutations": (SymmetricGroup(4, dim=-1), images, {"samples": 2}),
    "product": (CyclicRotation(4) * SignFlip(), images, {"samples": 2}),
    "set": (TransformationSet([lambda x: 0.5 * x, lambda x: x + 1]), images, {}),
    "turns as actions": (FiniteGroup.from_actions([lambda x: x, lambda x: x.rot90(2, (-2, -1))]), images, {}),
}


@pytest.mark.parametrize("name", NONE)
def test_exact_groups_and_sets_have_none(name):
    group, make, settings = NONE[name]
    report = measure_invariance(mlp(), in_batches(make()), group, saliency=None, **settings)
    for one in (report, *report.per_element):
        assert one.action_error is one.action_logit_error is None
    assert "action" not in str(report).replace("from_actions", "")


def test_an_inexact_group_of_the_identity_alone_undoes_itself():
    group = Restricted(PlanarRotation(), [[0.0]])
    assert group.order == 1
    report = measure_invariance(mlp(), [images()], group, saliency=None)
    assert report.logit_error == Estimate(0.0, 0.0, 7)
    assert report.action_error == report.action_logit_error == Estimate(0.0, 0.0, 7)


# As a table and as data


def column_of(shown: str, name: str) -> list[str]:
    """The cells of the table of elements under a heading."""
    lines = shown.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("element "))
    end = lines.index("", header)
    start = lines[header].index(name)
    return [line[start:].split("  ")[0].strip() for line in lines[header + 1 : end]]


def cells_of(shown: str, label: str) -> list[str]:
    """What stands in the row of this label, after the label."""
    (row,) = [line for line in shown.splitlines() if line.startswith(label)]
    return [cell.strip() for cell in row.removeprefix(label).split("  ") if cell.strip()]


def test_the_table_shows_both_rows_and_the_column():
    report = measure_invariance(mlp(), [images()], CyclicRotation(8), saliency=None)
    shown = str(report)
    assert cells_of(shown, "action's own error")[0] == str(report.action_error)
    assert cells_of(shown, "... its logit error")[0] == str(report.action_logit_error)
    assert column_of(shown, "action's own LI") == [str(one.action_logit_error) for one in report.per_element]
    assert column_of(shown, "consistency") == [str(one.consistency) for one in report.per_element]
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_the_table_of_an_exact_group_has_neither():
    shown = str(measure_invariance(mlp(), [images()], CyclicRotation(4), saliency=None))
    assert "own" not in shown
    assert "its logit error" not in shown
    (header,) = [line for line in shown.splitlines() if line.startswith("element ")]
    assert re.split("  +", header) == ["element", "samples", "LI", "DI", "normalized", "consistency"]


def test_the_table_of_an_infinite_group_has_the_rows():
    report = measure_invariance(mlp(), [images()], PlanarRotation(), samples=2, saliency=None)
    assert cells_of(str(report), "action's own error")[0] == str(report.action_error)
    assert cells_of(str(report), "... its logit error")[0] == str(report.action_logit_error)
    assert not any(line.startswith("element") for line in str(report).splitlines())


@pytest.mark.parametrize("group", [CyclicRotation(8), CyclicRotation(4), PlanarRotation()], ids=repr)
@pytest.mark.parametrize("samples", [1, 7])
def test_comes_back_from_a_dictionary_and_from_json(group, samples):
    drawn = {} if isinstance(group, FiniteGroup) else {"samples": 2}
    report = measure_invariance(mlp(), [images(samples)], group, saliency=None, **drawn)
    assert (report.action_error is None) == group.exact
    assert InvarianceReport.from_dict(report.to_dict()) == report
    again = InvarianceReport.from_dict(json.loads(report.to_json()))
    assert again == report
    assert str(again) == str(report)
    assert dataclasses.replace(again, action_error=Estimate(9.0, None, 1)) != report


@pytest.mark.parametrize("name", [*OF_ACTION, "is_group"])
def test_a_dictionary_without_the_field_is_refused(name):
    state = measure_invariance(mlp(), [images()], CyclicRotation(8), saliency=None).to_dict()
    del state[name]
    with pytest.raises(ValueError, match=rf"missing \['{name}'\], unknown \[\]"):
        InvarianceReport.from_dict(state)


# What it costs, and what it must not disturb


@pytest.mark.parametrize(
    ("group", "samples", "calls"),
    [
        (CyclicRotation(8), None, 1 + 2 * 7),
        (CyclicRotation(8), 2, 1 + 2 * 2),
        (PlanarRotation(), 3, 1 + 2 * 3),
        (CyclicRotation(4), None, 1 + 3),
        (SymmetricGroup(4, dim=-1), 3, 1 + 3),
        (TransformationSet([torch.neg, torch.square]), None, 1 + 2),
    ],
    ids=repr,
)
def test_the_model_is_called_once_more_per_element_where_the_action_is_not_exact(group, samples, calls):
    model, rows = mlp(), []

    def watched(v: Tensor) -> Tensor:
        rows.append(len(v))
        assert not torch.is_grad_enabled()
        return model(v)

    measure_invariance(watched, in_batches(images()), group, samples=samples, saliency=None)
    assert rows == [3] * (calls + 1) + [3] * calls + [1] * calls  # the first batch once more, to see noise


@pytest.mark.parametrize("group", [CyclicRotation(8), PlanarRotation(), Translation(), Scaling()], ids=repr)
def test_inputs_of_zeros_have_none(group):
    x = images(5)
    x[1] = 0
    settings = {} if isinstance(group, FiniteGroup) else {"samples": 2}
    report = measure_invariance(mlp(), [x], group, saliency=None, **settings)
    assert 0 < report.action_error.mean < 2
    zeros = measure_invariance(mlp(), [torch.zeros_like(x)], group, saliency=None, **settings)
    assert zeros.action_error == zeros.action_logit_error == Estimate(0.0, 0.0, 5)


def test_inputs_of_zeros_that_come_back_rounded_do_not_drown_the_others():
    """Whitened, turned and coloured again, a black image comes back as dust, of which zero is no measure."""
    whitened = Conjugated(SignFlip(), lambda x: (x - 0.456) / 0.224, lambda y: 0.224 * y + 0.456)
    x = torch.rand(6, 50)
    fine = measure_invariance(lambda v: v, [x], whitened, saliency=None)
    assert 0 < fine.action_error.mean < 1e-6
    x[2] = 0
    report = measure_invariance(lambda v: v, [x], whitened, saliency=None)
    assert report.action_error.mean < 1
    assert json.loads(report.to_json())["action_error"]["count"] == 6


@pytest.mark.parametrize("group", [CyclicRotation(8), PlanarRotation(), Translation()], ids=repr)
@pytest.mark.parametrize("size", [1, 5, 11])
def test_does_not_depend_on_the_batch_size(group, size):
    model, x = mlp(), images(12)
    settings = {"saliency": None, "samples": 2}
    expected = measure_invariance(model, [x], group, **settings)
    actual = measure_invariance(model, in_batches(x, size=size), group, **settings)
    assert numbers_of(actual) == pytest.approx(numbers_of(expected), rel=1e-12, abs=1e-14)
    assert expected.action_error.mean > 0.01


def numbers_of(report: InvarianceReport) -> list[float]:
    """The numbers of a report, few where it has no elements."""
    if report.per_element:
        return numbers(report)
    estimates = [getattr(report, field.name) for field in dataclasses.fields(report)]
    return [n for e in estimates if isinstance(e, Estimate) for n in (e.mean, e.standard_error, e.count)]


@pytest.mark.parametrize("group", [CyclicRotation(8), Fading(), PlanarRotation()], ids=repr)
def test_a_model_that_writes_into_its_input_spoils_neither_data_nor_answer(group):
    def greedy(v: Tensor) -> Tensor:
        logits = v.flatten(1)[:, :3].clone()
        v.fill_(7.0)
        return logits

    x = wide(5)
    given = x.clone()
    settings = {"saliency": None, "samples": 2}
    report = measure_invariance(greedy, [x], group, **settings)
    assert torch.equal(x, given)
    tame = measure_invariance(lambda v: v.flatten(1)[:, :3], [x], group, **settings)
    assert dataclasses.replace(report, model=tame.model) == tame
    assert report.action_error.mean > 0.01


def test_the_model_is_found_as_it_was():
    model, x = mixed(), torch.randn(6, 1, 4, 4)
    before = state_of(model)
    measure_invariance(model, [x], CyclicRotation(8), samples=2)
    assert state_of(model) == before


def test_labels_and_maps_go_along():
    model, x = mlp(), images()
    y = classes_of(x)
    report = measure_invariance(model, in_batches(x, y), CyclicRotation(8), saliency_samples=2)
    bare = measure_invariance(model, in_batches(x, y), CyclicRotation(8), saliency=None)
    assert report.action_error == bare.action_error
    assert report.saliency_similarity.count == 2
    assert bare.accuracy is not None


def test_entries_that_are_no_numbers_to_add_up_do_not_count():
    """Of an image and its mask, it is the image whose change can be measured."""
    group = OnKeys({"image": CyclicRotation(8), "mask": Restricted(PlanarRotation("nearest"), [[math.pi / 4]])})
    x, mask = images(5), torch.randint(4, (5, 1, 4, 4))
    model = mlp()
    report = measure_invariance(lambda v: model(v["image"]), [({"image": x, "mask": mask},)], group, saliency=None)
    expected = measure_invariance(model, [x], CyclicRotation(8), saliency=None)
    assert report.action_error == expected.action_error
    assert report.action_logit_error == expected.action_logit_error


def test_inputs_without_any_floating_point_are_measured_too():
    group = OnKeys({"image": PlanarRotation("nearest")})
    images_of_bytes = torch.randint(256, (5, 1, 6, 6), dtype=torch.uint8)
    report = measure_invariance(
        lambda v: v["image"].float().flatten(1)[:, :3], [({"image": images_of_bytes},)], group, samples=2, saliency=None
    )
    assert report.logit_error.mean > 0
    assert report.action_logit_error.mean > 0


# What fails


class Jammed(CyclicGroup):
    """Turns forwards only: the second half of its elements raises."""

    order, exact = 4, False

    def __init__(self, error: Exception) -> None:
        self.error = error

    def transform(self, index: int, x: Tensor) -> Tensor:
        if index > 2:
            raise self.error
        return x.roll(index, -1)


@pytest.mark.parametrize(
    ("error", "kind"), [(LookupError("stuck"), RuntimeError), (ValueError("stuck"), ValueError)], ids=["any", "value"]
)
def test_an_action_that_raises_on_the_way_back_says_so_and_leaves_all_as_it_was(error, kind):
    model, x = mixed(), torch.randn(6, 1, 4, 4)
    before, given = state_of(model), x.clone()
    with pytest.raises(kind, match="stuck") as caught:
        measure_invariance(model, [x], Jammed(error), saliency=None)
    assert error in (caught.value, caught.value.__cause__)
    if kind is RuntimeError:
        assert "element 3" in str(caught.value)
    assert state_of(model) == before
    assert torch.equal(x, given)


class OneWay(Group):
    """Scales by factors, and does not know how to undo one."""

    element_shape, element_dtype, exact = (1,), torch.float64, False

    identity = torch.ones(1, dtype=torch.float64)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g * h

    def inverse(self, g: Tensor) -> Tensor:
        raise NotImplementedError("cannot undo")

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        return 1 + torch.rand(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return x * g.view(-1, *[1] * (x.ndim - 1))


def test_a_group_whose_inverse_raises_leaves_all_as_it_was():
    model, x = mixed().double(), images()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="cannot undo"):
        measure_invariance(model, [x], OneWay(), samples=1, saliency=None)
    assert state_of(model) == before


def test_outputs_that_are_no_numbers_on_the_way_back_name_the_sample_and_the_element():
    x = torch.ones(5, 3, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        faded = (v < 0.65).any(1, keepdim=True) & (torch.arange(len(v)) == 3)[:, None]
        return torch.where(faded, torch.nan, v)

    with pytest.raises(ValueError, match=r"must be finite.*sample 3 of the data.*element 1 of Fading"):
        measure_invariance(model, [x], Fading(), saliency=None)


def test_a_model_that_fails_on_the_way_back_says_on_which_element():
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError("the model's own")
        return v.flatten(1)

    with pytest.raises(RuntimeError, match=r"element 1 of CyclicRotation\(order=8\).*the model's own") as caught:
        measure_invariance(model, [images()], CyclicRotation(8), saliency=None)
    assert isinstance(caught.value.__cause__, ArithmeticError)
