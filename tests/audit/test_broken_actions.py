"""Is an action that returns something else noticed, and said, where it is used?"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from invreg import CyclicGroup, Group, L2InvarianceLoss, measure_invariance
from tests.test_preserve import state_of


@dataclass(frozen=True)
class Cropping(CyclicGroup):
    order = 2
    exact = True

    def transform(self, index, x):
        return x[..., :-1] if index else x


@dataclass(frozen=True)
class Widening(CyclicGroup):
    order = 2
    exact = True

    def transform(self, index, x):
        return x.double() if index else x


@dataclass(frozen=True)
class Elsewhere(CyclicGroup):
    order = 2
    exact = True

    def transform(self, index, x):
        return x.to("meta") if index else x


@dataclass(frozen=True)
class AsArray(CyclicGroup):
    order = 2
    exact = True

    def transform(self, index, x):
        return x.numpy() if index else x


@dataclass(frozen=True)
class Shrinking(Group):
    """Of infinitely many elements."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self):
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g, h):
        return g + h

    def inverse(self, g):
        return -g

    def sample(self, n, rng=None):
        return torch.rand(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        return x[..., 1:]


BROKEN = {
    "shape": (Cropping(), None, r"^Cropping\(\) must keep shape.*\(4, 1, 6, 6\), torch\.float32.* \(4, 1, 6, 5\)"),
    "dtype": (Widening(), None, r"^Widening\(\) must keep .* \(4, 1, 6, 6\), torch\.float64 on cpu"),
    "device": (Elsewhere(), None, r"^Elsewhere\(\) must keep .* torch\.float32 on cpu: .* torch\.float32 on meta"),
    "array": (AsArray(), None, r"^AsArray\(\) must keep .* it returned ndarray\."),
    "drawn": (Shrinking(), 2, r"^Shrinking\(\) must keep .* \(4, 1, 6, 5\)"),
}


def network() -> nn.Sequential:
    """One that takes images of any shape, so that it would not notice."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))


@pytest.mark.parametrize("name", BROKEN)
class TestIsRefused:
    def test_by_the_audit(self, name):
        group, samples, expected = BROKEN[name]
        model, x = network(), torch.rand(4, 1, 6, 6)
        before = state_of(model)
        with pytest.raises(ValueError, match=expected):
            measure_invariance(model, [x], group, samples=samples, saliency=None)
        assert state_of(model) == before

    def test_by_the_loss(self, name):
        group, samples, expected = BROKEN[name]
        with pytest.raises(ValueError, match=expected):
            L2InvarianceLoss(group, samples=samples)(network(), torch.rand(4, 1, 6, 6))
