"""Are the maps that a report shows those of the samples that it names?"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg import (
    CyclicPermutation,
    CyclicRotation,
    Dihedral,
    InvarianceReport,
    PlanarRotation,
    SaliencyMap,
    SignFlip,
    Trivial,
    measure_invariance,
)
from tests import oracle
from tests.audit.sameness import assert_same_report

METHOD = SaliencyMap(steps=2)


def mlp(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, classes)).double()


def data(samples: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.randint(3, (samples,))


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 5) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def expected_indices(similarities: list[float]) -> list[int]:
    """The two samples that agree least, then those two of the first four and no others that are next to the median."""
    order = sorted(range(len(similarities)), key=lambda n: (similarities[n], n))
    least = order[:2]
    middle = float(np.median(similarities))
    first = [n for n in range(min(4, len(similarities))) if n not in least]
    return [*least, *sorted(first, key=lambda n: (abs(similarities[n] - middle), n))[:2]]


@pytest.mark.parametrize("size", [1, 5, 24])
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_the_samples_that_agree_least_come_first_and_typical_ones_then(size, labelled):
    model, (x, y) = mlp(), data()
    report = measure_invariance(model, in_batches(x, y if labelled else None, size), CyclicRotation(4), saliency=METHOD)
    similarities = report.per_sample["saliency_similarity"].tolist()
    assert [one.index for one in report.saliency_examples] == expected_indices(similarities)
    for one in report.saliency_examples:
        assert one.similarity == pytest.approx(similarities[one.index], rel=1e-12)
        expected = int(y[one.index]) if labelled else int(model(x[one.index : one.index + 1]).argmax())
        assert one.target == expected


def test_maps_are_those_of_the_inputs_moved_back():
    """Beside maps of single images, by the method and by the oracle; inputs are turned by loops."""
    model, (x, y) = mlp(), data(8)
    network, elements = oracle.network_of(model), oracle.rotations(4)
    report = measure_invariance(model, in_batches(x, y), CyclicRotation(4), saliency=METHOD)
    assert len(report.saliency_examples) == 4
    for one in report.saliency_examples:
        assert (one.inputs.shape, one.maps.shape) == ((4, 1, 4, 4), (4, 1, 4, 4))
        assert one.names == ("identity", "90°", "180°", "270°")
        image, target = x[one.index].numpy(), int(y[one.index])
        for place, g in enumerate(elements):
            moved = g.act(image)
            assert np.array_equal(one.inputs[place].numpy(), moved)
            of_method = METHOD(model, torch.tensor(moved)[None], torch.tensor([target]))[0].detach().numpy()
            assert one.maps[place].numpy() == pytest.approx(g.realign(of_method), rel=1e-9, abs=1e-12)
            by_loops = oracle.fold(oracle.integrated_gradients(network, moved, target, steps=2))
            assert one.maps[place].numpy() == pytest.approx(g.realign(by_loops), rel=1e-9, abs=1e-12)
        similarities = [oracle.saliency_similarity(one.maps[0].numpy(), m.numpy()) for m in one.maps[1:]]
        assert one.similarity == pytest.approx(math.fsum(similarities) / 3, rel=1e-9)


@pytest.mark.parametrize("group", [CyclicRotation(4), PlanarRotation()], ids=repr)
def test_drawn_elements_are_those_of_the_sample(group):
    model, (x, y) = mlp(), data(9)
    drawn = group.sample_non_identity(256, 2, torch.Generator().manual_seed(0))
    report = measure_invariance(model, in_batches(x, y), group, saliency=METHOD, samples=2)
    for one in report.saliency_examples:
        mine = drawn[:, one.index]
        assert one.names == ("identity", *(group.describe(g) for g in mine))
        image = x[one.index : one.index + 1]
        assert torch.equal(one.inputs[0], image[0])
        target = y[one.index : one.index + 1]
        for g, moved, map_ in zip(mine, one.inputs[1:], one.maps[1:], strict=True):
            assert torch.allclose(moved, group.act(g, image)[0], rtol=0, atol=1e-12)
            expected = group.realign(g, METHOD(model, group.act(g, image), target))[0]
            assert torch.allclose(map_, expected.detach(), rtol=1e-9, atol=1e-12)


def test_of_large_groups_the_first_elements_are_shown():
    model, (x, y) = mlp(), data(6)
    report = measure_invariance(model, [(x, y)], Dihedral(4) * SignFlip(), saliency=METHOD)
    assert report.elements == 15
    for one in report.saliency_examples:
        assert len(one.names) == len(one.inputs) == len(one.maps) == 8
        assert one.similarity == pytest.approx(report.per_sample["saliency_similarity"][one.index])
        shown = [oracle.saliency_similarity(one.maps[0].numpy(), m.numpy()) for m in one.maps[1:]]
        assert one.similarity != pytest.approx(math.fsum(shown) / 7, rel=1e-6)


def test_a_single_logit_has_no_class_to_explain():
    x, _ = data(5)
    report = measure_invariance(mlp(1), [x], SignFlip(), saliency=METHOD)
    assert [one.target for one in report.saliency_examples] == [None] * 4
    assert report.saliency_examples[0].names == ("identity", SignFlip().describe(torch.tensor(1)))


def test_the_identity_alone_is_shown_alone():
    x, _ = data(3)
    report = measure_invariance(mlp(), [x], Trivial(), saliency=METHOD)
    assert [one.index for one in report.saliency_examples] == [0, 1, 2]
    assert [one.names for one in report.saliency_examples] == [("identity",)] * 3
    assert [one.similarity for one in report.saliency_examples] == [1.0] * 3


@pytest.mark.parametrize(("samples", "expected"), [(1, 1), (2, 2), (3, 3), (4, 4), (24, 4)])
def test_there_are_four_at_most_and_each_once(samples, expected):
    report = measure_invariance(mlp(), in_batches(*data(samples)), CyclicRotation(4), saliency=METHOD)
    indices = [one.index for one in report.saliency_examples]
    assert len(indices) == len(set(indices)) == expected


def test_samples_without_maps_are_not_shown():
    report = measure_invariance(mlp(), in_batches(*data()), CyclicRotation(4), saliency=METHOD, saliency_samples=7)
    assert all(one.index < 7 for one in report.saliency_examples)
    assert len(report.saliency_examples) == 4
    similarities = report.per_sample["saliency_similarity"]
    assert np.isnan(similarities[7:]).all()
    assert not np.isnan(similarities[:7]).any()
    assert [one.index for one in report.saliency_examples] == expected_indices(similarities[:7].tolist())


def test_without_maps_there_is_nothing_to_show():
    x, y = data()
    report = measure_invariance(mlp(), [(x, y)], CyclicRotation(4), saliency=None)
    assert report.saliency_examples == ()
    with pytest.raises(ValueError, match="no maps"):
        report.plot_saliency()


def test_maps_are_not_saved():
    report = measure_invariance(mlp(), in_batches(*data()), CyclicRotation(4), saliency=METHOD)
    again = InvarianceReport.from_dict(report.to_dict())
    assert again == report
    assert again.saliency_examples == ()


def test_samples_that_were_skipped_are_not_shown():
    model, (x, y) = mlp(), data()
    x[1] = torch.nan
    report = measure_invariance(
        model, in_batches(x, y), CyclicRotation(4), saliency=METHOD, saliency_samples=None, on_error="skip"
    )
    assert 1 not in [one.index for one in report.saliency_examples]
    assert all(one.maps.isfinite().all() for one in report.saliency_examples)
    whole = measure_invariance(
        model, [(x, y)], CyclicRotation(4), saliency=METHOD, saliency_samples=None, on_error="skip"
    )
    assert_same_report(report, whole, but=["skipped_samples"])


def test_maps_without_channels_and_of_other_inputs():
    """Sequences of vectors, whose maps have a place each."""
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    method = SaliencyMap(steps=2, channel_dim=-1, kernel_size=1)
    group = CyclicPermutation(3, dim=1)
    report = measure_invariance(model, [x], group, saliency=method)
    for one in report.saliency_examples:
        assert one.inputs.shape == (3, 3, 4)
        assert one.maps.shape == (3, 3, 1)
        target = torch.tensor([one.target])
        for place, g in enumerate([group.identity, *group.non_identity_elements()]):
            moved = group.act(g, x[one.index : one.index + 1])
            assert torch.equal(one.inputs[place], moved[0])
            expected = group.realign(g, method(model, moved, target))[0].detach()
            assert torch.allclose(one.maps[place], expected, rtol=1e-9, atol=1e-12)


def test_another_map_method_is_shown_too():
    x, y = data()

    def maps(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        return inputs * (1 + target.view(-1, 1, 1, 1))

    report = measure_invariance(mlp(), in_batches(x, y), CyclicRotation(4), saliency=maps)
    for one in report.saliency_examples:
        assert one.similarity == pytest.approx(1, rel=1e-12)
        for map_ in one.maps:  # moved back, each is the map of the image itself
            assert torch.allclose(map_, x[one.index] * (1 + y[one.index]), rtol=1e-12)
