"""Networks of transformers, whose code is not ours to change: audited through a callable, watched inside, tied."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from invreg import CyclicRotation, CyclicTranslation, measure_invariance, measure_layers, tie_first_layer

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

turns = CyclicRotation(4)
CONVOLUTION = {"vit": "vit.embeddings.patch_embeddings.projection", "resnet": "resnet.embedder.embedder.convolution"}
"""The first layer of each network: the only one before which nothing can have lost a symmetry."""


@functools.cache
def network(name):
    """A small network with random weights."""
    torch.manual_seed(0)
    if name == "vit":
        sizes = {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
        }
        config = transformers.ViTConfig(num_hidden_layers=2, num_labels=5, initializer_range=0.3, **sizes)
        return transformers.ViTForImageClassification(config).eval()
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=5, **sizes)).eval()


@pytest.fixture(params=["vit", "resnet"])
def name(request):
    return request.param


def called(net):
    """The network as invreg takes one: from a tensor to logits."""
    return lambda x: net(pixel_values=x).logits


def pictures(count=6, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def copy_of(name):
    """A network that a test may change."""
    net = network(name)
    twin = type(net)(net.config).eval()
    twin.load_state_dict(net.state_dict())
    return twin


def make_symmetric(convolution: nn.Conv2d) -> None:
    """Replaces kernels by their means over quarter turns."""
    with torch.no_grad():
        kernel = convolution.weight
        kernel.copy_(torch.stack([kernel.rot90(k, (-2, -1)) for k in range(4)]).mean(0))


def test_audit_has_the_numbers_of_direct_forwards(name):
    net, x = network(name), pictures()
    labels = torch.arange(6) % 5
    report = measure_invariance(called(net), [(x[:4], labels[:4]), (x[4:], labels[4:])], turns, saliency=None)
    with torch.no_grad():
        plain = net(pixel_values=x).logits
        turned = [net(pixel_values=x.rot90(k, (-2, -1))).logits for k in (1, 2, 3)]
    moved = torch.stack([((plain - other) ** 2).sum(1) for other in turned]).double()
    divergence = torch.stack(
        [
            F.kl_div(other.log_softmax(1), plain.log_softmax(1), log_target=True, reduction="none").sum(1)
            for other in turned
        ]
    ).double()
    assert moved.min() > 0
    expected = {
        "logit_error": moved / 2,
        "distribution_error": divergence,
        "normalized_logit_error": moved / (plain**2).sum(1),
        "consistency": torch.stack([other.argmax(1) == plain.argmax(1) for other in turned]).double(),
    }
    for key, values in expected.items():
        estimate = getattr(report, key)
        assert estimate.mean == pytest.approx(float(values.mean()), rel=1e-4, abs=1e-9), key
        assert estimate.standard_error == pytest.approx(float(values.mean(0).std() / 6**0.5), rel=1e-4, abs=1e-9), key
        for one, row in zip(report.per_element, values, strict=True):
            assert getattr(one, key).mean == pytest.approx(float(row.mean()), rel=1e-4, abs=1e-9), key
    right = [(out.argmax(1) == labels).double().mean().item() for out in (plain, *turned)]
    assert report.accuracy.mean == pytest.approx(right[0])
    assert report.group_accuracy.mean == pytest.approx(sum(right) / 4)


def test_saliency_maps_are_made_through_the_callable(name):
    report = measure_invariance(called(network(name)), [pictures(2)], turns)
    assert 0 <= report.saliency_similarity.mean < 1
    assert report.completeness_gap < 0.1


def test_turns_are_lost_in_the_first_convolution(name):
    net = network(name)
    report = measure_layers(called(net), [pictures()], turns, module=net)
    assert report.first_lost.name == CONVOLUTION[name]
    convolution = net.get_submodule(CONVOLUTION[name])
    x = pictures()
    with torch.no_grad():
        plain = convolution(x)
        back = [convolution(x.rot90(k, (-2, -1))).rot90(-k, (-2, -1)) for k in (1, 2, 3)]
    variance = plain.double().var(0, correction=1).sum()
    error = sum(((plain - other) ** 2).flatten(1).sum(1).mean() for other in back) / 3 / 2 / variance
    assert report.first_lost.equivariance_error.mean == pytest.approx(float(error), rel=1e-3)
    assert report.model == type(net).__name__


def test_place_where_the_vit_loses_turns_moves_with_its_cause():
    """Kernels that look the same from all sides turn with the picture; then it is the patches' places in a row."""
    net = copy_of("vit")
    make_symmetric(net.get_submodule(CONVOLUTION["vit"]))
    report = measure_layers(called(net), [pictures()], turns, module=net)
    kept = {layer.name: layer for layer in report.layers}[CONVOLUTION["vit"]]
    assert kept.equivariance_error.mean < 1e-9
    assert report.first_lost.name == "vit.embeddings.patch_embeddings"
    assert "last layer keeps it again" not in report.summary()
    assert measure_invariance(called(net), [pictures()], turns, saliency=None).logit_error.mean > 0.01

    with torch.no_grad():
        net.get_parameter("vit.embeddings.position_embeddings").zero_()
    report = measure_layers(called(net), [pictures()], turns, module=net)
    assert "last layer keeps it again" in report.summary()
    assert measure_invariance(called(net), [pictures()], turns, saliency=None).logit_error.mean < 1e-9


def test_vit_cuts_shifts_by_a_patch_like_the_picture():
    net = network("vit")
    report = measure_layers(called(net), [pictures()], CyclicTranslation(4, dim=-1), module=net)
    layers = {layer.name: layer for layer in report.layers}
    assert layers[CONVOLUTION["vit"]].equivariance_error.mean < 1e-9
    assert report.first_lost.name == "vit.embeddings.patch_embeddings"


def test_resnet_with_symmetric_kernels_keeps_turns_everywhere():
    """On an odd number of pixels, of which strides of two keep the corners."""
    net = copy_of("resnet")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            make_symmetric(module)
    report = measure_layers(called(net), [pictures(side=33)], turns, module=net)
    assert report.first_lost is None, report
    assert measure_invariance(called(net), [pictures(side=33)], turns, saliency=None).logit_error.mean < 1e-9


def test_tie_makes_it_invariant(name):
    net = copy_of(name)
    x = pictures()
    with torch.no_grad():
        before = net(pixel_values=x).logits
        with tie_first_layer(net, turns) as tie:
            report = measure_invariance(called(net), [x], turns, saliency=None)
            assert tie.layer == CONVOLUTION[name]
        after = net(pixel_values=x).logits
    assert report.logit_error.mean < 1e-9
    assert report.consistency.mean == 1
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_network_is_left_as_it_was(name):
    net = copy_of(name)
    net.train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    measure_layers(called(net), [pictures()], turns, module=net)
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
