"""Does an exported model keep its tie, and has it none of the penalty?"""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from invreg import CyclicRotation, Flip, L2InvarianceLoss, regularize, tie_first_layer
from tests.integration.by_hand import (
    TURNS,
    WEIGHT,
    assert_same,
    batch,
    differ,
    expected_gradients,
    network,
    task_gradients,
)

BATCH = ({0: Dim("batch", min=2, max=64)},)


def averaging() -> nn.Sequential:
    """A convolution and a mean over the image: where pooling after the first layer does for a flip of it."""
    torch.manual_seed(3)
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3)).double()


def turned(x: Tensor) -> Tensor:
    return x.rot90(1, (-2, -1))


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(
    ("make", "group", "move"),
    [(network, TURNS, turned), (network, Flip(), flipped), (averaging, TURNS, turned)],
    ids=["turns", "flips", "convolution"],
)
def test_a_tied_model_for_batches_of_any_size(make, group, move, reduction):
    """It computes what the model computes, and the parameters keep their names."""
    model = make()
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tie_first_layer(model, group, reduction=reduction)
    model.eval()(batch()[0])
    exported = export(model, (batch()[0],), dynamic_shapes=BATCH)
    program = exported.module()
    for samples in (2, 9):
        x, _ = batch(1, samples=samples)
        assert_same([program(x)], [model(x)])
        assert_same([program(move(x))], [program(x)])
        assert differ([program(x)], [make()(x)])
    assert dict(exported.named_parameters()).keys() == plain.keys()


def test_a_tied_model_from_a_file(tmp_path):
    """Loaded again, the program needs none of our code."""
    model = network()
    tie_first_layer(model, TURNS)
    x, _ = batch(1, samples=9)
    expected = model.eval()(x)
    torch.export.save(export(model, (batch()[0],), dynamic_shapes=BATCH), tmp_path / "tied.pt2")
    program = torch.export.load(tmp_path / "tied.pt2").module()
    assert_same([program(x), program(turned(x))], [expected, expected])


def test_a_regularised_model_in_evaluation_is_the_plain_model():
    """Node by node."""
    plain, model = network().eval(), network()
    handle = regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    x, _ = batch()
    programs = [export(each.eval(), (x,), dynamic_shapes=BATCH) for each in (plain, model)]
    assert len({str(program.graph) for program in programs}) == 1
    x, _ = batch(1, samples=9)
    assert_same([programs[1].module()(x)], [plain(x)])
    assert handle.value is None
    model.train()
    assert_same(task_gradients(model), expected_gradients(network()))


def test_a_regularised_model_that_is_tied_too():
    """The penalty stays in the training, the tie goes along."""
    model = network()
    tie_first_layer(model, CyclicRotation(2))
    regularize(model, L2InvarianceLoss(TURNS), WEIGHT)
    x, _ = batch()
    model.eval()(x)
    program = export(model, (x,), dynamic_shapes=BATCH).module()
    x, _ = batch(1, samples=9)
    assert_same([program(x), program(turned(turned(x)))], [model(x)] * 2)
    assert differ([program(turned(x))], [program(x)])
