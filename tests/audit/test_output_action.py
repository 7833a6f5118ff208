"""Is a model equivariant, whose outputs shall move with its inputs?"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    CyclicRotation,
    Dihedral,
    Flip,
    InvarianceReport,
    OnKeys,
    PlanarRotation,
    SignFlip,
    SpatialRotation,
    TransformationSet,
    measure_invariance,
)
from tests import oracle
from tests.test_losses import PlaneRotation

Array = np.ndarray


def segmenter(channels: int = 1, classes: int = 3) -> nn.Module:
    """Outputs per pixel ``(N, C, H, W)``; not equivariant, as its kernels are not symmetric."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, classes, 1)).double()


def equivariant_segmenter(classes: int = 3) -> nn.Module:
    """Equivariant to turns and reflections: its kernels are the same in all directions."""
    model = segmenter(classes=classes)
    kernel = model[0].weight
    turns = [torch.rot90(k, q, (2, 3)) for k in (kernel, kernel.flip(3)) for q in range(4)]
    model[0].weight = nn.Parameter(torch.stack(turns).mean(0))
    return model


def images(samples: int = 5, channels: int = 1) -> Tensor:
    return torch.randn(samples, channels, 4, 4, dtype=torch.float64)


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 2) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


# What should come out: the same in loops over samples and elements

Back = Callable[[Array], Array]


def mirrored(x: Array) -> Array:
    """The last axis the other way around."""
    y = np.empty(x.shape)
    for column in range(x.shape[-1]):
        y[..., column] = x[..., x.shape[-1] - 1 - column]
    return y


def dihedral(order: int = 4) -> list[oracle.Element]:
    """The turns, then each after a reflection; a reflection that is turned is its own inverse."""
    turns = oracle.rotations(order)

    def turned_mirror(x: Array, turn: oracle.Element) -> Array:
        return turn.act(mirrored(x))

    return turns + [
        oracle.Element(lambda x, t=t: turned_mirror(x, t), lambda m, t=t: turned_mirror(m, t)) for t in turns
    ]


IMAGES = {
    "rotation": (CyclicRotation(4), oracle.rotations(4)),
    "flip": (Flip(), [oracle.Element(lambda x: x, lambda m: m), oracle.Element(mirrored, mirrored)]),
    "dihedral": (Dihedral(4), dihedral()),
}


def expected_numbers(
    references: Sequence[Array],
    moved_back: Sequence[Sequence[Array]],
    labels: Sequence[Array] | None = None,
    order: float = math.inf,
) -> dict[str, oracle.Mean]:
    """The estimates of all samples; ``moved_back[n]`` has the outputs of sample ``n`` under each element."""
    found: dict[str, list[float]] = {}
    for n, (reference, others) in enumerate(zip(references, moved_back, strict=True)):
        for name, error in oracle.ERRORS.items():
            found.setdefault(name, []).append(math.fsum(error(reference, other) for other in others) / len(others))
        here = oracle.predicted_classes(reference)
        there = [oracle.predicted_classes(other) for other in others]
        alike = [share(a == b for a, b in zip(here, one, strict=True)) for one in there]
        found.setdefault("consistency", []).append(math.fsum(alike) / len(alike))
        if labels is not None:
            truth = [int(label) for label in labels[n].flat]
            right = [a == b for a, b in zip(here, truth, strict=True)]
            moved_right = [[a == b for a, b in zip(one, truth, strict=True)] for one in there]
            average = math.fsum(share(one) for one in moved_right) / len(others)
            found.setdefault("accuracy", []).append(share(right))
            found.setdefault("group_accuracy", []).append(share(right) / order + (1 - 1 / order) * average)
            everywhere = share(map(all, zip(right, *moved_right, strict=True)))
            found.setdefault("orbit_accuracy", []).append(everywhere)
    return {name: oracle.estimate(values) for name, values in found.items()}


def share(hits) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)


def assert_numbers(report: InvarianceReport, expected: dict[str, oracle.Mean]) -> None:
    for name, one in expected.items():
        actual = report.estimates[name]
        assert actual.count == one.count, name
        assert (actual.mean, actual.standard_error) == pytest.approx(
            (one.mean, one.standard_error), rel=1e-9, abs=1e-9
        ), name


def outputs_of(model: Callable[[Tensor], Tensor], x: Array) -> Array:
    with torch.no_grad():
        return model(torch.tensor(x)[None])[0].numpy()


# Outputs per pixel


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_segmentation_agrees_with_the_oracle(name, labelled):
    group, elements = IMAGES[name]
    model, x = segmenter(), images()
    y = torch.randint(3, (5, 4, 4)) if labelled else None
    references = [outputs_of(model, one) for one in x.numpy()]
    moved_back = [[g.realign(outputs_of(model, g.act(one))) for g in elements[1:]] for one in x.numpy()]
    expected = expected_numbers(references, moved_back, None if y is None else y.numpy(), group.order)
    report = measure_invariance(model, in_batches(x, y), group, output_action=group)
    assert_numbers(report, expected)
    assert ("accuracy" in report.estimates) == labelled
    assert 0 < report.consistency.mean < 1
    for place, one in enumerate(report.per_element):
        alone = expected_numbers(
            references, [[moved[place]] for moved in moved_back], None if y is None else y.numpy(), group.order
        )
        for error in ("logit_error", "distribution_error", "normalized_logit_error", "consistency"):
            assert getattr(one, error).mean == pytest.approx(alone[error].mean, rel=1e-9, abs=1e-9), error
        if labelled:
            hits = [
                share(a == b for a, b in zip(oracle.predicted_classes(moved[place]), t.flatten().tolist(), strict=True))
                for moved, t in zip(moved_back, y, strict=True)
            ]
            assert one.accuracy.mean == pytest.approx(math.fsum(hits) / 5, rel=1e-12)


def test_the_oracle_tells_outputs_moved_on_from_outputs_moved_back():
    group, elements = IMAGES["rotation"]
    model, x = segmenter(), images()
    references = [outputs_of(model, one) for one in x.numpy()]
    moved_on = [[g.act(outputs_of(model, g.act(one))) for g in elements[1:]] for one in x.numpy()]
    report = measure_invariance(model, in_batches(x), group, output_action=group)
    with pytest.raises(AssertionError, match="logit_error"):
        assert_numbers(report, expected_numbers(references, moved_on))


@pytest.mark.parametrize("name", IMAGES)
def test_an_equivariant_network_has_no_error(name):
    group, _ = IMAGES[name]
    model, x = equivariant_segmenter(), images()
    y = torch.randint(3, (5, 4, 4))
    report = measure_invariance(model, in_batches(x, y), group, output_action=group)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert report.worst_logit_error.mean == pytest.approx(0, abs=1e-25)
    assert report.distribution_error.mean == pytest.approx(0, abs=1e-14)
    assert report.consistency.mean == 1
    assert report.accuracy.mean == report.group_accuracy.mean == report.orbit_accuracy.mean
    assert 0 < report.accuracy.mean < 1
    still = measure_invariance(model, in_batches(x, y), group, saliency=None)
    assert still.logit_error.mean > 1e-3
    assert still.consistency.mean < 1
    assert still.output_action is None


def test_an_action_of_the_wrong_sense_is_an_error():
    """Turning outputs the other way than inputs is not what an equivariant network does."""
    x, group = images(), CyclicRotation(4)
    report = measure_invariance(
        equivariant_segmenter(), [x], group, output_action=lambda g, outputs: group.act(group.inverse(g), outputs)
    )
    assert [one.logit_error.mean > 1e-3 for one in report.per_element] == [True, False, True]  # half a turn is both


@pytest.mark.parametrize("samples", [1, 2])
def test_each_sample_is_moved_back_by_the_element_that_was_drawn_for_it(samples):
    group, elements = IMAGES["dihedral"]
    model, x = segmenter(), images(6)
    drawn = group.sample_non_identity(256, samples, torch.Generator().manual_seed(3))[:, :6]
    moved_back = [
        [elements[g].realign(outputs_of(model, elements[g].act(one))) for g in drawn[:, n].tolist()]
        for n, one in enumerate(x.numpy())
    ]
    expected = expected_numbers([outputs_of(model, one) for one in x.numpy()], moved_back)
    report = measure_invariance(
        model, in_batches(x), group, output_action=group, samples=samples, rng=torch.Generator().manual_seed(3)
    )
    assert_numbers(report, expected)
    assert len(set(drawn[0].tolist())) > 2
    equivariant = measure_invariance(
        equivariant_segmenter(), in_batches(x), group, output_action=group, samples=samples
    )
    assert equivariant.logit_error.mean == pytest.approx(0, abs=1e-25)


def test_drawn_rotations_by_any_angle_agree_with_the_oracle():
    group, model, x = PlanarRotation(), segmenter(), images(4)
    drawn = group.sample_non_identity(256, 2, torch.Generator().manual_seed(0))[:, :4]
    references, moved_back, there_and_back = [], [], []
    for n in range(4):
        one = x[n : n + 1]
        references.append(outputs_of(model, x[n].numpy()))
        turned = [group.act(g, one) for g in drawn[:, n]]
        outputs = [torch.tensor(outputs_of(model, t[0].numpy()))[None] for t in turned]
        moved_back.append([group.act(-g, o)[0].numpy() for g, o in zip(drawn[:, n], outputs, strict=True)])
        back = [group.act(-g, t)[0].numpy() for g, t in zip(drawn[:, n], turned, strict=True)]
        there_and_back.append([outputs_of(model, one) for one in back])
    report = measure_invariance(model, in_batches(x), group, output_action=group, samples=2)
    assert_numbers(report, expected_numbers(references, moved_back))
    action = expected_numbers(references, there_and_back)["logit_error"]
    assert report.action_logit_error.mean == pytest.approx(action.mean, rel=1e-9)
    assert report.logit_error.mean > 1e-3


# Other outputs


def plane(angle: float) -> Array:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def turned_vectors(element: Tensor, outputs: Tensor) -> Tensor:
    """Vectors ``(N, 2)``, turned by one angle or by one each."""
    angle = element[..., 0].to(outputs.dtype)
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * outputs[:, 0] - s * outputs[:, 1], s * outputs[:, 0] + c * outputs[:, 1]], 1)


@pytest.mark.parametrize("outputs", ["logits", "values"])
def test_vectors_turned_by_a_callable_agree_with_the_oracle(outputs):
    group, x = PlaneRotation(), torch.randn(7, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    angles = group.sample_non_identity(256, 3, torch.Generator().manual_seed(0))[:, :7, 0]
    moved_back = [
        [plane(-a) @ outputs_of(model, plane(a) @ one) for a in angles[:, n].tolist()]
        for n, one in enumerate(x.numpy())
    ]
    expected = expected_numbers([outputs_of(model, one) for one in x.numpy()], moved_back)
    if outputs == "values":
        expected = {name: expected[name] for name in ("logit_error", "normalized_logit_error")}
    report = measure_invariance(model, in_batches(x), group, samples=3, output_action=turned_vectors, outputs=outputs)
    assert_numbers(report, expected)
    assert report.output_action == "turned_vectors"
    assert report.logit_error.mean > 1e-3


def test_vectors_that_turn_with_the_input_have_no_error():
    x = torch.randn(7, 2, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return v * v.norm(dim=1, keepdim=True)

    settings = {"samples": 3, "outputs": "values"}
    moved = measure_invariance(model, in_batches(x), PlaneRotation(), output_action=turned_vectors, **settings)
    assert moved.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert measure_invariance(model, in_batches(x), PlaneRotation(), **settings).logit_error.mean > 0.1


def key_points(v: Tensor) -> Tensor:
    """Two weighted means of pixels' positions in each image, ``(N, 2, 2)``, as x to the right and y up."""
    place = torch.arange(4, dtype=v.dtype) - 1.5
    positions = torch.stack([place.expand(4, 4), -place[:, None].expand(4, 4)], -1)
    weights = torch.cat([v.sin(), v.square()], 1)
    return torch.einsum("nkrc,rcd->nkd", weights, positions)


def turned_points(element: Tensor, outputs: Tensor) -> Tensor:
    """Key points ``(N, K, 2)``, turned counter-clockwise by quarters."""
    quarters = element.expand(len(outputs))
    turned = [torch.stack([-p[:, 1], p[:, 0]], 1) for p in outputs]
    half = [-p for p in outputs]
    rows = [(p, t, h, -t)[q] for p, t, h, q in zip(outputs, turned, half, quarters.tolist(), strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("samples", [None, 1])
def test_key_points_that_turn_with_the_image_have_no_error(samples):
    x, group = images(), CyclicRotation(4)
    settings = {"samples": samples, "outputs": "values"}
    report = measure_invariance(key_points, in_batches(x), group, output_action=turned_points, **settings)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert (report.distribution_error, report.consistency) == (None, None)
    still = measure_invariance(key_points, in_batches(x), group, **settings)
    assert still.logit_error.mean > 0.1
    backwards = measure_invariance(
        key_points, in_batches(x), group, output_action=lambda g, o: turned_points((4 - g) % 4, o), **settings
    )
    assert backwards.logit_error.mean > 0.1


def test_key_points_agree_with_the_oracle():
    """Of a network that is not equivariant; the error is half the squared distance over all entries."""
    x = images()
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Unflatten(1, (3, 2))).double()
    report = measure_invariance(
        network, in_batches(x), CyclicRotation(4), output_action=turned_points, outputs="values"
    )
    errors, shares = [], []
    for one in x.numpy():
        reference = outputs_of(network, one)
        distances = []
        for quarters, g in enumerate(oracle.rotations(4)[1:], start=1):
            back = outputs_of(network, g.act(one)) @ plane(-quarters * math.pi / 2).T
            distances.append(0.5 * math.fsum(float(d) ** 2 for d in (back - reference).flat))
        errors.append(math.fsum(distances) / 3)
        shares.append(2 * errors[-1] / math.fsum(float(v) ** 2 for v in reference.flat))
    assert_numbers(report, {"logit_error": oracle.estimate(errors), "normalized_logit_error": oracle.estimate(shares)})


@pytest.mark.parametrize("as_callable", [False, True], ids=["group", "callable"])
def test_vectors_of_point_clouds_agree_with_the_oracle(as_callable):
    group, x = SpatialRotation(), torch.randn(5, 4, 3, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    drawn = group.sample_non_identity(256, 2, torch.Generator().manual_seed(0))[:, :5].numpy()
    moved_back = [[g.T @ outputs_of(network, one @ g.T) for g in drawn[:, n]] for n, one in enumerate(x.numpy())]
    expected = expected_numbers([outputs_of(network, one) for one in x.numpy()], moved_back)
    report = measure_invariance(
        network,
        in_batches(x),
        group,
        samples=2,
        outputs="values",
        output_action=(lambda g, outputs: SpatialRotation().act(g, outputs)) if as_callable else SpatialRotation(),
    )
    assert_numbers(report, {name: expected[name] for name in ("logit_error", "normalized_logit_error")})
    assert report.action_logit_error.mean == pytest.approx(0, abs=1e-25)


def test_vectors_that_turn_with_the_cloud_have_no_error():
    x = torch.randn(5, 4, 3, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return (v * v.square().sum(-1, keepdim=True)).sum(1)

    settings = {"samples": 2, "outputs": "values"}
    report = measure_invariance(model, in_batches(x), SpatialRotation(), output_action=SpatialRotation(), **settings)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert measure_invariance(model, in_batches(x), SpatialRotation(), **settings).logit_error.mean > 0.1


@pytest.mark.parametrize("samples", [None, 1])
def test_inputs_of_several_tensors(samples):
    quarter = CyclicRotation(4)
    group = OnKeys({"image": quarter, "mask": quarter})
    x, mask = images(), images()
    batches = [({"image": x[i : i + 2], "mask": mask[i : i + 2], "offset": x[i : i + 2, 0, 0, 0]},) for i in (0, 2, 4)]
    batches = [{"inputs": one} for (one,) in batches]
    network = equivariant_segmenter()

    def model(v: dict[str, Tensor]) -> Tensor:
        return network(v["image"] * v["mask"]) + v["offset"].view(-1, 1, 1, 1)

    report = measure_invariance(model, batches, group, output_action=quarter, samples=samples)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert report.samples == 5
    assert measure_invariance(model, batches, group, samples=samples).logit_error.mean > 1e-3


def test_a_model_that_writes_into_its_inputs_does_not_spoil_what_stays_where_it_is():
    """A tensor without a group is the same under each element, and there and back."""
    offset = torch.ones(5, 1, dtype=torch.float64)
    batch = {"inputs": {"image": images(), "offset": offset}}

    def model(v: dict[str, Tensor]) -> Tensor:
        v["offset"].add_(1)
        return v["offset"] * v["image"].flatten(1)[:, :3]

    report = measure_invariance(model, [batch], OnKeys({"image": PlanarRotation()}), samples=2)
    assert offset.eq(1).all()
    assert report.action_logit_error.mean > 0


def test_groups_of_the_same_elements_may_act_on_outputs():
    """A reflection of the image changes the sign of a number that says left or right."""
    x = images()
    weights = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return (v.square() * weights).flatten(1).sum(1)

    settings = {"outputs": "values"}
    report = measure_invariance(model, [x], Flip(), output_action=SignFlip(), **settings)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    assert report.output_action == repr(SignFlip())
    assert measure_invariance(model, [x], Flip(), **settings).logit_error.mean > 0.1


# Maps, and what is wrong


def test_maps_are_left_out_unless_they_are_asked_for():
    x, group = images(), Flip()
    assert measure_invariance(segmenter(), [x], group, output_action=group).saliency_similarity is None
    with pytest.raises(ValueError, match="Saliency maps explain one prediction per sample"):
        measure_invariance(segmenter(), [x], group, output_action=group, saliency=lambda model, x, target: x)


@pytest.mark.parametrize(
    ("group", "output_action", "error", "message"),
    [
        (CyclicRotation(4), Flip(), ValueError, "the same elements as the group"),
        (Flip(), CyclicRotation(4), ValueError, "the same elements as the group"),
        (Dihedral(4), CyclicRotation(8), ValueError, "the same elements as the group"),
        (PlanarRotation(), SpatialRotation(), ValueError, "the same elements as the group"),
        (Flip(), "flip", TypeError, "must be a group or a callable"),
        (Flip(), Flip, TypeError, "must be a group or a callable"),
        (Flip(), torch.zeros(2), TypeError, "must be a group or a callable"),
        (TransformationSet([torch.neg]), Flip(), ValueError, "has no inverses"),
        (TransformationSet([torch.neg]), lambda g, outputs: outputs, ValueError, "has no inverses"),
    ],
)
def test_what_cannot_move_outputs_back(group, output_action, error, message):
    calls = []

    def model(v: Tensor) -> Tensor:
        calls.append(len(v))
        return v

    samples = None if group.order < math.inf else 1
    with pytest.raises(error, match=message):
        measure_invariance(model, [images()], group, output_action=output_action, samples=samples)
    assert calls == []


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda g, o: o[:, :1], r"must keep the outputs' shape and dtype, \(5, 3, 4, 4\).*got \(5, 1, 4, 4\)"),
        (lambda g, o: o[0], r"must keep the outputs' shape"),
        (lambda g, o: o.float(), r"must keep the outputs' shape and dtype.*torch.float32"),
        (lambda g, o: None, r"must keep the outputs' shape and dtype.*got NoneType"),
        (lambda g: g, r"output_action failed on outputs of shape \(5, 3, 4, 4\)"),
    ],
    ids=["channels", "rows", "dtype", "nothing", "arguments"],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_an_action_returns_is_checked(action, message, on_error):
    """Also where samples that fail are skipped, for it fails on all."""
    with pytest.raises(ValueError, match=message):
        measure_invariance(segmenter(), [images()], CyclicRotation(4), output_action=action, on_error=on_error)


def test_a_group_that_cannot_act_on_the_outputs_says_so():
    with pytest.raises(ValueError, match=r"output_action failed on outputs of shape \(5, 3\)"):
        measure_invariance(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(),
            [images()],
            CyclicRotation(4),
            output_action=CyclicRotation(4),
        )


def test_what_an_action_raises_is_the_cause():
    def broken(g: Tensor, outputs: Tensor) -> Tensor:
        raise KeyError("table")

    with pytest.raises(RuntimeError, match=r"output_action failed on outputs of shape \(5, 3, 4, 4\)") as caught:
        measure_invariance(segmenter(), [images()], CyclicRotation(4), output_action=broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_outputs_that_are_moved_in_place_do_not_spoil_the_others():
    """An action may write into what it is given."""
    x, group = images(), SignFlip()

    def negated(g: Tensor, outputs: Tensor) -> Tensor:
        return outputs.neg_() if int(g) == 1 else outputs

    model = nn.Conv2d(1, 2, 1, bias=False).double()
    report = measure_invariance(model, [x], group, output_action=negated)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
