"""Can each law fail? Groups that are broken in one place each, and the laws that must notice."""

from dataclasses import dataclass

import pytest
import torch

from invreg.groups import FiniteGroup
from tests.groups.test_laws import ACTION_LAWS, GROUP_LAWS, assert_uniform

SHAPE = (2, 3, 3)


@dataclass(frozen=True)
class Shift(FiniteGroup):
    """A healthy group, the shifts of three entries, written as a user would write it: by ``transform`` alone."""

    order = 3
    exact = True

    def compose(self, g, h):
        return (g + h) % 3

    def inverse(self, g):
        return -g % 3

    def transform(self, index, x):
        return x.roll(index, -1)


@pytest.mark.parametrize("law", GROUP_LAWS)
def test_healthy_group_keeps_the_law(law):
    law(Shift())


@pytest.mark.parametrize("law", ACTION_LAWS)
def test_healthy_action_keeps_the_law(law):
    law(Shift(), SHAPE)


class Numbered(Shift):
    """Its elements start at one."""

    def elements(self):
        return torch.arange(1, 4)


class Unbounded(Shift):
    """Its products leave the group."""

    def compose(self, g, h):
        return g + h


class Subtracting(Shift):
    """Its product is not associative, and has a neutral element on one side only."""

    def compose(self, g, h):
        return (g - h) % 3


class Maximum(Shift):
    """Its product is that of a monoid, in which nothing can be undone."""

    def compose(self, g, h):
        return torch.maximum(g, h)

    def inverse(self, g):
        return g


class EvenCycles(Shift):
    """Each element undoes itself, which no group of three elements allows."""

    def compose(self, g, h):
        return torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 0]])[g, h]


class FirstRow(Shift):
    """It composes only one pair at a time as it should; stacks are not broadcast."""

    def compose(self, g, h):
        return (g + h) % 3 if g.ndim or h.ndim else g * 0


class Biased(Shift):
    """It draws the identity more often than it should."""

    def sample(self, n, rng=None):
        return super().sample(n, rng) * (super().sample(n, rng) > 0)


class NeverLast(Shift):
    """It never draws the last element."""

    def sample(self, n, rng=None):
        return torch.randint(2, (n,), generator=rng)


class Repeating(Shift):
    """It draws the same element twice for one sample."""

    def sample_non_identity(self, n, k, rng=None):
        return torch.randint(1, 3, (k, n), generator=rng)


class WithIdentity(Shift):
    """It draws the identity among the others."""

    def sample_non_identity(self, n, k, rng=None):
        return super().sample_non_identity(n, k, rng) - 1


class AscendingDraws(Shift):
    """It draws each subset as often, but always in ascending order."""

    def sample_non_identity(self, n, k, rng=None):
        return super().sample_non_identity(n, k, rng).sort(0).values


class GlobalRandomness(Shift):
    """It does not draw from the generator that it is given."""

    def sample(self, n, rng=None):
        return super().sample(n)


class Unseeded(Shift):
    """It draws from a generator of its own."""

    def sample(self, n, rng=None):
        return super().sample(n, torch.Generator().manual_seed(3))


class ByIdentity(Shift):
    """It is equal to itself alone."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class MovingIdentity(Shift):
    """Its identity moves entries."""

    def transform(self, index, x):
        return x.roll(index + 1, -1)


class TheOtherWay(Shift):
    """A right action of a group that is not abelian: all permutations, applied backwards."""

    order = 6
    group = FiniteGroup.from_permutations([[1, 2, 0], [1, 0, 2]])

    def compose(self, g, h):
        return self.group.compose(g, h)

    def inverse(self, g):
        return self.group.inverse(g)

    def transform(self, index, x):
        return self.group.transform(int(self.group.inverse(torch.tensor(index))), x)


class DoingNothing(Shift):
    """Its elements all do the same."""

    def transform(self, index, x):
        return x.clone()


class Shuffled(Shift):
    """It hands the elements of a stack to the wrong samples."""

    def transform_each(self, g, x):
        return super().transform_each(g.flip(0), x)


class AcrossTheBatch(Shift):
    """It moves samples along the batch axis."""

    def transform(self, index, x):
        return x.roll(index, 0)


class Writing(Shift):
    """It writes into its input."""

    def transform(self, index, x):
        return x.copy_(x.roll(index, -1))


class WritingBack(Shift):
    """It writes into its input and undoes that."""

    def transform(self, index, x):
        y = x.neg_().roll(index, -1).neg_()
        x.neg_()
        return y


class BackwardsOrbit(Shift):
    """Its orbit begins with the last element."""

    def orbit(self, x, *, identity=True):
        return super().orbit(x, identity=identity).flip(0)


class WholeOrbit(Shift):
    """It never leaves the identity out of its orbit."""

    def orbit(self, x, *, identity=True):
        return super().orbit(x)


class SinglePrecision(Shift):
    """It returns float32 whatever comes."""

    def transform(self, index, x):
        return x.float().roll(index, -1)


class ThroughHalf(Shift):
    """It keeps the dtype but loses digits on the way."""

    def transform(self, index, x):
        return x.to(torch.bfloat16).roll(index, -1).to(x.dtype)


class OnTheCpu(Shift):
    """It makes its result on the CPU."""

    def transform(self, index, x):
        return torch.zeros(x.shape, dtype=x.dtype) if x.device.type == "meta" else x.roll(index, -1)


class BlindToStrides(Shift):
    """It reads the memory of its input in order."""

    def transform(self, index, x):
        return torch.as_strided(x, x.shape, torch.empty(x.shape, device="meta").stride(), 0).roll(index, -1)


class Transposing(Shift):
    """It returns views with axes that have traded places in memory."""

    def transform(self, index, x):
        return x.roll(index, -1).transpose(-1, -2).contiguous().transpose(-1, -2)


class Detached(Shift):
    """It cuts the gradient."""

    def transform(self, index, x):
        return x.detach().roll(index, -1)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WrongGradient(Shift):
    """Its gradient is twice as large as it should be."""

    def transform(self, index, x):
        return _Doubled.apply(x.roll(index, -1))


class ReadingValues(Shift):
    """What it does depends on a value, which vmap cannot read."""

    def transform(self, index, x):
        return x.roll(index, -1) if float(x.abs().sum()) >= 0 else x


class MapsElsewhere(Shift):
    """It moves maps, but not as a group."""

    def act_on_map(self, g, m):
        return m.roll(1, -1)


class HalfMaps(Shift):
    """It changes the dtype of maps."""

    def act_on_map(self, g, m):
        return super().act_on_map(g, m).float()


BITES = [
    (Numbered, "elements_are_indices"),
    (Unbounded, "products_stay_inside"),
    (Subtracting, "products_associate"),
    (Subtracting, "identity_is_neutral"),
    (EvenCycles, "inverses_undo"),
    (Maximum, "inverses_undo"),
    (Maximum, "table_is_latin"),
    (Maximum, "element_orders_divide"),
    (EvenCycles, "element_orders_divide"),
    (FirstRow, "products_broadcast"),
    (Biased, "draws_are_uniform"),
    (NeverLast, "draws_are_uniform"),
    (Repeating, "draws_without_identity_differ"),
    (WithIdentity, "draws_without_identity_differ"),
    (AscendingDraws, "draws_without_identity_differ"),
    (GlobalRandomness, "draws_follow_rng"),
    (Unseeded, "draws_follow_rng"),
    (ByIdentity, "equal_by_value"),
    (MovingIdentity, "identity_changes_nothing"),
    (MovingIdentity, "acts_as_composed"),
    (TheOtherWay, "acts_as_composed"),
    (TheOtherWay, "maps_are_acted_on"),
    (DoingNothing, "elements_act_differently"),
    (Shuffled, "samples_are_independent"),
    (AcrossTheBatch, "samples_are_independent"),
    (Writing, "inputs_are_not_written"),
    (WritingBack, "inputs_are_not_written"),
    (BackwardsOrbit, "orbit_stacks_the_acts"),
    (WholeOrbit, "orbit_stacks_the_acts"),
    (SinglePrecision, "dtype_is_kept"),
    (ThroughHalf, "dtype_is_kept"),
    (OnTheCpu, "device_is_kept"),
    (BlindToStrides, "strides_do_not_matter"),
    (Transposing, "contiguous_stays_contiguous"),
    (Detached, "gradient_is_the_inverse_action"),
    (WrongGradient, "gradient_is_the_inverse_action"),
    (Detached, "gradients_are_right"),
    (WrongGradient, "gradients_are_right"),
    (MapsElsewhere, "maps_are_acted_on"),
    (HalfMaps, "maps_are_acted_on"),
]

LAWS = {law.__name__: law for law in (*GROUP_LAWS, *ACTION_LAWS)}


@pytest.mark.parametrize(("broken", "law"), [pytest.param(*bite, id=f"{bite[0].__name__}-{bite[1]}") for bite in BITES])
def test_law_notices(broken, law):
    arguments = (broken(),) if LAWS[law] in GROUP_LAWS else (broken(), SHAPE)
    with pytest.raises(AssertionError):
        LAWS[law](*arguments)


def test_vmap_notices():
    with pytest.raises(RuntimeError, match="vmap"):
        LAWS["vmaps_over_inputs"](ReadingValues(), SHAPE)


def test_each_law_is_shown_to_fail():
    assert {law for _, law in BITES} | {"vmaps_over_inputs"} == set(LAWS)


def test_uniformity_notices_a_small_bias():
    """One of four elements comes up a third more often, at the number of draws that the laws use."""
    fair = torch.arange(4).repeat(400)
    assert_uniform(fair, 4)
    with pytest.raises(AssertionError):
        assert_uniform(torch.cat([fair, torch.zeros(133, dtype=torch.int64)]), 4)
