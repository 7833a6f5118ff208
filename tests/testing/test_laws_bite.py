"""Can each law fail? Groups broken in one way each that people really make, and the law that must name it."""

import math
from dataclasses import dataclass

import pytest
import torch

from invreg import FiniteGroup, Group, PlanarRotation, SymmetricGroup
from invreg.testing import LAWS, LawError, check_group

SHIFTED = torch.zeros(1, 3)
SQUARES = torch.zeros(1, 1, 2, 2)
POINTS = torch.zeros(1, 2, 2)


# ------------------------------------------------------------------------------------------------- healthy groups


@dataclass(frozen=True)
class Shift(FiniteGroup):
    """Cyclic shifts of three entries."""

    order = 3
    exact = True

    def compose(self, g, h):
        return (g + h) % 3

    def inverse(self, g):
        return -g % 3

    def transform(self, index, x):
        return x.roll(index, -1)


@dataclass(frozen=True)
class Square(FiniteGroup):
    """All symmetries of a square: index i turns i times, index 4 + i mirrors first."""

    order = 8
    exact = True

    def compose(self, g, h):
        turned = torch.where(g >= 4, -h, h)
        return (g + turned) % 4 + 4 * ((g // 4 + h // 4) % 2)

    def inverse(self, g):
        return torch.where(g < 4, -g % 4, g)

    def transform(self, index, x):
        return torch.rot90(x.flip(-1) if index >= 4 else x, index % 4, (-2, -1))


@dataclass(frozen=True)
class Turn(Group):
    """Rotations of points in the plane, shape (N, P, 2), by an angle in radians."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self):
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g, h):
        return (g + h) % (2 * math.pi)

    def inverse(self, g):
        return -g

    def sample(self, n, rng=None):
        return 2 * math.pi * torch.rand(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        self._check_action(g, x)
        return x @ self.matrices(g).to(x).transpose(-1, -2)

    def matrices(self, g):
        angle = g.reshape(-1)
        rows = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        return torch.stack(rows, -1).view(-1, 2, 2)

    def act_on_map(self, g, m):
        return m


HEALTHY = {Shift: SHIFTED, Square: SQUARES, Turn: POINTS}


@pytest.mark.parametrize("healthy", HEALTHY)
def test_healthy_group_passes(healthy):
    check_group(healthy(), HEALTHY[healthy], tolerance=1e-5, max_examples=20)


@dataclass(frozen=True)
class Gain(Group):
    """Gain and offset, a·x + b, drawn from a bounded range."""

    element_shape = (2,)
    element_dtype = torch.float64
    exact = False
    local = True

    @property
    def identity(self):
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    def compose(self, g, h):
        return torch.stack([g[..., 0] * h[..., 0], g[..., 0] * h[..., 1] + g[..., 1]], -1)

    def inverse(self, g):
        return torch.stack([1 / g[..., 0], -g[..., 1] / g[..., 0]], -1)

    def sample(self, n, rng=None):
        u = 2 * torch.rand(n, 2, dtype=torch.float64, generator=rng) - 1
        return torch.stack([u[:, 0].exp(), u[:, 1]], -1)

    def act(self, g, x):
        gain, offset = (g[..., i].reshape(-1, *[1] * (x.ndim - 1)).to(x) for i in (0, 1))
        return gain * x + offset

    def act_on_map(self, g, m):
        return m


@dataclass(frozen=True)
class Boost(Group):
    """Lorentz boosts of (time, place) by rapidities that enlarge entries a hundredfold."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False
    local = True

    @property
    def identity(self):
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g, h):
        return g + h

    def inverse(self, g):
        return -g

    def sample(self, n, rng=None):
        return 3 * torch.randn(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        cosh, sinh = (part.view(-1, *[1] * (x.ndim - 1)).to(x) for part in (g.cosh(), g.sinh()))
        time, place = x.split(1, -1)
        return torch.cat([cosh * time + sinh * place, sinh * time + cosh * place], -1)

    def act_on_map(self, g, m):
        return m


class Offset(Boost):
    """x + t."""

    def act(self, g, x):
        return x + g.to(x).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Rigid(Group):
    """Turns and shifts of points in the plane."""

    element_shape = (3,)
    element_dtype = torch.float64
    exact = False
    local = True

    @property
    def identity(self):
        return torch.zeros(3, dtype=torch.float64)

    def matrix(self, angle):
        rows = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        return torch.stack(rows, -1).view(*angle.shape, 2, 2)

    def compose(self, g, h):
        moved = (self.matrix(g[..., 0]) @ h[..., 1:, None])[..., 0]
        return torch.cat([(g[..., 0] + h[..., 0])[..., None], g[..., 1:] + moved], -1)

    def inverse(self, g):
        return torch.cat([-g[..., :1], -(self.matrix(-g[..., 0]) @ g[..., 1:, None])[..., 0]], -1)

    def sample(self, n, rng=None):
        return torch.randn(n, 3, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        return x @ self.matrix(g[..., 0]).to(x).mT + g[..., 1:].to(x).unsqueeze(-2)

    def act_on_map(self, g, m):
        return m


@dataclass(frozen=True)
class FractionalShift(Group):
    """Shifts of nine samples by any amount, read between them by Fourier series: it rings."""

    element_shape = (1,)
    element_dtype = torch.float64
    exact = False

    @property
    def identity(self):
        return torch.zeros(1, dtype=torch.float64)

    def compose(self, g, h):
        return (g + h) % 9

    def inverse(self, g):
        return -g % 9

    def sample(self, n, rng=None):
        return 9 * torch.rand(n, 1, dtype=torch.float64, generator=rng)

    def act(self, g, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        frequencies = torch.fft.rfftfreq(9, dtype=torch.float64, device=x.device)
        phases = torch.exp(-2j * math.pi * frequencies * g.to(x.device)).view(-1, *[1] * (x.ndim - 2), 5)
        waves = torch.fft.rfft(x.to(wide), n=9)
        return torch.fft.irfft(waves * phases.to(waves.dtype), n=9).to(x.dtype)


class Hue(Turn):
    """Turns of colours about grey, which keep constants although they mix channels."""

    def act(self, g, x):
        angle = g.to(x.device).reshape(-1)
        axis = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64, device=x.device) / 3**0.5
        turned = angle.sin()[:, None, None] * axis + (1 - angle.cos())[:, None, None] * axis @ axis
        matrix = torch.eye(3, dtype=torch.float64, device=x.device) + turned
        wide = torch.promote_types(x.dtype, torch.float32)
        return (matrix.to(wide).expand(len(x), 3, 3) @ x.to(wide).flatten(2)).view(x.shape).to(x.dtype)


@dataclass(frozen=True)
class Torus(Group):
    """Shifts of a small grid by a pair of whole numbers: countable, of an order that it does not tell."""

    element_shape = (2,)
    exact = True
    sides = (2, 1)

    @property
    def identity(self):
        return torch.zeros(2, dtype=torch.int64)

    def compose(self, g, h):
        return (g + h) % torch.tensor(self.sides, device=g.device)

    def inverse(self, g):
        return -g % torch.tensor(self.sides, device=g.device)

    def sample(self, n, rng=None):
        return torch.stack([torch.randint(side, (n,), generator=rng) for side in self.sides], -1)

    def act(self, g, x):
        flipped = (g[..., 0] == 1).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(flipped.to(x.device), x.roll(1, -2), x)


class One(Torus):
    """The same with the identity alone."""

    sides = (1, 1)


@dataclass(frozen=True)
class Negative(FiniteGroup):
    """Changes signs; maps stay."""

    order = 2
    exact = True

    def compose(self, g, h):
        return (g + h) % 2

    def inverse(self, g):
        return g

    def transform(self, index, x):
        return -x if index else x.clone()

    def act_on_map(self, g, m):
        return m


class KnowsOfNoMaps(Negative):
    """It says so with another exception."""

    def act_on_map(self, g, m):
        raise NotImplementedError


def same(x):
    return x


FURTHER = {
    "gain and offset": (Gain(), torch.zeros(1, 4)),
    "gain and offset in half precision": (Gain(), torch.zeros(1, 4).half()),
    "numbers, gain and offset": (Gain(), torch.zeros(3)),
    "offset": (Offset(), torch.zeros(1, 3)),
    "boost": (Boost(), torch.zeros(1, 3, 2)),
    "rigid motions of points": (Rigid(), torch.zeros(1, 3, 2)),
    "numbers, negative": (Negative(), torch.zeros(3)),
    "no maps": (KnowsOfNoMaps(), torch.zeros(1, 3)),
    "contrast": (FiniteGroup.from_actions([same, lambda x: 1 - x]), torch.zeros(1, 3, 2, 2)),
    "RGB to BGR": (FiniteGroup.from_actions([same, lambda x: x[:, [2, 1, 0]]]), torch.zeros(1, 3, 2, 2)),
    "two permutations": (SymmetricGroup(2), torch.zeros(1, 2)),
    "one permutation": (SymmetricGroup(1), torch.zeros(1, 1)),
    "two whole vectors": (Torus(), torch.zeros(1, 2, 1)),
    "one whole vector": (One(), torch.zeros(1, 2, 1)),
    "fractional shifts": (FractionalShift(), torch.zeros(1, 9)),
    "hue": (Hue(), torch.zeros(1, 3, 5, 5)),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_healthy_group_passes(name):
    group, x = FURTHER[name]
    check_group(group, x, max_examples=10)


# --------------------------------------------------------------------------------------------------- broken groups


class IgnoringRng(Shift):
    """sample forgets the generator that it is given."""

    def sample(self, n, rng=None):
        return super().sample(n)


class SeedingItself(Shift):
    """sample makes a generator of its own."""

    def sample(self, n, rng=None):
        return super().sample(n, torch.Generator().manual_seed(3))


class DrawingTheIdentity(Shift):
    """sample_non_identity forgets to leave the identity out."""

    def sample_non_identity(self, n, k, rng=None):
        return torch.rand(n, 3, generator=rng).topk(k, dim=1).indices.T


class DrawingTwice(Shift):
    """sample_non_identity draws with replacement."""

    def sample_non_identity(self, n, k, rng=None):
        return torch.randint(1, 3, (k, n), generator=rng)


class DegreesAsFloat32(Turn):
    """sample draws elements of another dtype than it says."""

    def sample(self, n, rng=None):
        return 2 * math.pi * torch.rand(n, 1, generator=rng)


class Transposing(Square):
    """act returns another shape: channels last."""

    def transform(self, index, x):
        return super().transform(index, x).permute(0, 2, 3, 1)


class Counting(Shift):
    """act returns whole numbers."""

    def transform(self, index, x):
        return x.roll(index, -1).long()


class InNumpy(Shift):
    """act returns no tensor."""

    def act(self, g, x):
        return super().act(g, x).numpy()


class OnTheCpu(Shift):
    """act makes its result without device=x.device."""

    def transform(self, index, x):
        y = torch.zeros(x.shape, dtype=x.dtype)
        return y if x.device.type == "meta" else x.roll(index, -1)


class InPlace(Shift):
    """act writes its result into its input."""

    def transform(self, index, x):
        return x.copy_(x.roll(index, -1))


class WritingBack(Shift):
    """act changes its input for a while."""

    def transform(self, index, x):
        y = x.neg_().roll(index, -1).neg_()
        x.neg_()
        return y


class MapsInPlace(Shift):
    """act_on_map writes into the map."""

    def act_on_map(self, g, m):
        return m.copy_(self.act(g, m))


class Jittering(Shift):
    """act shifts by a random amount."""

    def transform(self, index, x):
        return x.roll(int(torch.randint(3, ())) if index else 0, -1)


class Float32(Shift):
    """act returns float32, whatever comes."""

    def transform(self, index, x):
        return x.float().roll(index, -1)


class ThroughFloat32(Shift):
    """act calculates in float32."""

    def transform(self, index, x):
        return x.float().roll(index, -1).to(x.dtype)


class NotInHalf(Shift):
    """act uses an operation that there is not in every dtype."""

    def transform(self, index, x):
        if x.dtype == torch.float16:
            raise NotImplementedError("not implemented for 'Half'")
        return x.roll(index, -1)


class InOnePiece(Shift):
    """act relies on how its input lies in memory."""

    def transform(self, index, x):
        return x.view(-1).view(x.shape).roll(index, -1)


class Overflowing(Shift):
    """act divides by what may be zero."""

    def transform(self, index, x):
        return x.roll(index, -1) * (x.norm() / x.norm())


class IdentityAsFloat(Shift):
    """identity has another dtype than elements."""

    @property
    def identity(self):
        return torch.zeros(())


class Shuffling(Shift):
    """act hands the elements of a stack to the wrong samples."""

    def transform_each(self, g, x):
        return super().transform_each(g.flip(0), x)


class FirstOnly(Shift):
    """act looks at the first element of a stack only."""

    def transform_each(self, g, x):
        return self.transform(int(g[0]), x)


class AlongTheBatch(Shift):
    """act counts axes from the batch."""

    def transform(self, index, x):
        return x.roll(index, 0)


class OneByOne(Shift):
    """act takes one element only."""

    def act(self, g, x):
        return x.roll(int(g), -1)


class Unwrapped(Shift):
    """compose forgets to wrap around."""

    def compose(self, g, h):
        return g + h


class NegativeIndices(Shift):
    """inverse forgets to wrap around."""

    def inverse(self, g):
        return -g


class PairsOnly(Shift):
    """compose does not broadcast."""

    def compose(self, g, h):
        return ((g + h) % 3).flatten() if g.ndim else (g + h) % 3


class InSinglePrecision(Turn):
    """compose returns another dtype."""

    def compose(self, g, h):
        return super().compose(g, h).float()


class CountingFromOne(Shift):
    """Its neutral element is the last one."""

    def compose(self, g, h):
        return (g + h + 1) % 3

    def inverse(self, g):
        return (1 - g) % 3


class Subtracting(Shift):
    """compose subtracts."""

    def compose(self, g, h):
        return (g - h) % 3


class TableWithATypo(Shift):
    """Two entries of its multiplication table are swapped."""

    def compose(self, g, h):
        return torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 0]])[g, h]


class Averaging(Turn):
    """compose takes the mean of two angles, where neither is zero."""

    def compose(self, g, h):
        return torch.where((g == 0) | (h == 0), g + h, (g + h) / 2)


class InverseIsItself(Shift):
    """inverse returns the element."""

    def inverse(self, g):
        return g


class InverseOfMirrors(Square):
    """inverse treats mirrored elements like rotations."""

    def inverse(self, g):
        return -g % 4 + 4 * (g // 4)


class InDegrees(Turn):
    """inverse takes angles for degrees."""

    def inverse(self, g):
        return 360 - g


class IdentityLast(Shift):
    """act counts its elements from one."""

    def transform(self, index, x):
        return x.roll(index + 1, -1)


class Rescaling(Turn):
    """The identity changes values."""

    def act(self, g, x):
        return 1.01 * super().act(g, x)


class Reversed(Square):
    """compose has its factors swapped."""

    def compose(self, g, h):
        return super().compose(h, g)


class TurningBack(Square):
    """act undoes what the element should do: a right action."""

    def transform(self, index, x):
        return super().transform(int(self.inverse(torch.tensor(index))), x)


class MirrorLast(Square):
    """act mirrors after turning, but compose reckons that it mirrors first."""

    def transform(self, index, x):
        y = torch.rot90(x, index % 4, (-2, -1))
        return y.flip(-1) if index >= 4 else y


class DegreesInAct(Turn):
    """act takes angles for degrees, so that turns by 2 pi do not close."""

    def act(self, g, x):
        return super().act(torch.deg2rad(g), x)


class AboutTheMean(Turn):
    """act turns points about their mean, forgets to add it again, and does nothing for angle zero."""

    def act(self, g, x):
        return torch.where(g.view(-1, 1, 1) == 0, x, super().act(g, x - x.mean(1, keepdim=True)))


class SayingExact(Turn):
    """It says that it is exact, and rounds."""

    exact = True


class Detached(Shift):
    """act cuts the gradient."""

    def transform(self, index, x):
        return x.detach().roll(index, -1)


class DetachedInStacks(Shift):
    """act cuts the gradient where there is one element per sample."""

    def transform_each(self, g, x):
        return super().transform_each(g, x).detach()


class _RolledTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index):
        ctx.index = index
        return x.roll(index, -1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.roll(ctx.index, -1), None


class WrongBackward(Shift):
    """act has a backward of its own, which goes the wrong way."""

    def transform(self, index, x):
        return _RolledTwice.apply(x, index)


class _DoubledBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class DoubledBackward(Turn):
    """act has a backward that is not its transpose."""

    def act(self, g, x):
        return _DoubledBackward.apply(super().act(g, x))


@dataclass(frozen=True)
class Negation(FiniteGroup):
    """act changes signs, and so does act_on_map, which is not overridden."""

    order = 2
    exact = True

    def compose(self, g, h):
        return (g + h) % 2

    def inverse(self, g):
        return g

    def transform(self, index, x):
        return -x if index else x.clone()


class MapsStay(Shift):
    """act_on_map returns the map as it is."""

    def act_on_map(self, g, m):
        return m


class MapsMoveBack(Shift):
    """act_on_map moves maps by the inverse."""

    def act_on_map(self, g, m):
        return self.act(self.inverse(g), m)


class HalfMaps(Shift):
    """act_on_map changes the dtype of maps."""

    def act_on_map(self, g, m):
        return super().act_on_map(g, m).half()


class ChannelMaps(Square):
    """act_on_map expects all channels, and spreads a summed one over them."""

    def act_on_map(self, g, m):
        return super().act_on_map(g, m) * (m.shape[1] == 2) + (m.shape[1] == 1) * m


class NegatingMaps(Turn):
    """act_on_map turns the entries of a map as if they were coordinates."""

    def act_on_map(self, g, m):
        return self.act(g, m)


class OffByOne(Shift):
    """sample never draws the last element."""

    def sample(self, n, rng=None):
        return torch.randint(self.order - 1, (n,), generator=rng)


class TooManyIdentities(Shift):
    """sample draws the identity more often than the others."""

    def sample(self, n, rng=None):
        return torch.randint(4, (n,), generator=rng) % 3


class HalfCircle(Turn):
    """sample draws from half of the angles."""

    def sample(self, n, rng=None):
        return super().sample(n, rng) / 2


class NormalAngles(Turn):
    """sample draws angles that are normally distributed."""

    def sample(self, n, rng=None):
        return torch.randn(n, 1, dtype=torch.float64, generator=rng)


CHANNELS = torch.zeros(1, 2, 2, 2)


class WritingIntoElements(Shift):
    """Wraps its elements around in place."""

    def act(self, g, x):
        y = super().act(g, x)
        g.add_(1).remainder_(3)
        return y


class RandomProducts(Shift):
    """Its product is drawn."""

    def compose(self, g, h):
        return (g + h + torch.randint(3, (g + h).shape)) % 3


class RandomInverses(Shift):
    """Its inverse is drawn."""

    def inverse(self, g):
        return torch.randint(3, g.shape)


class NotInBfloat16(Shift):
    """Fails in bfloat16 alone."""

    def transform(self, index, x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return x.roll(index, -1)


class SeedingGlobally(Shift):
    """Draws from rng and from the global generator too."""

    def sample(self, n, rng=None):
        torch.rand(1)
        return super().sample(n, rng)


class NeverFromGlobal(Shift):
    """Without rng it makes a generator of its own."""

    def sample(self, n, rng=None):
        return super().sample(n, torch.Generator().manual_seed(n) if rng is None else rng)


class BiasedWithoutIdentity(Shift):
    """Draws the last element more often than the other, where the identity is left out."""

    def sample_non_identity(self, n, k, rng=None):
        if k > 1:
            return super().sample_non_identity(n, k, rng)
        return 1 + (torch.rand(1, n, generator=rng) < 0.7).long()


class NeutralOnOneSideOnly(Shift):
    """eg is g, ge is not."""

    def compose(self, g, h):
        return torch.where(g == 0, h, (g + h + 1) % 3)


class _CubedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x**2 * gradient


class WrongCurve(FiniteGroup):
    """Not linear, and its backward is wrong: only finite differences show it."""

    order = 2
    exact = False

    def compose(self, g, h):
        return (g + h) % 2

    def inverse(self, g):
        return g

    def transform(self, index, x):
        bent = (_CubedBackward.apply(x) - x**3.0).detach() + _CubedBackward.apply(x) * 0.1 - 0.1 * (x**3).detach()
        return bent + (-x if index else x)


BITES = [
    (IgnoringRng, "sampling", "sample ignores rng"),
    (SeedingItself, "sampling", "sample seeds itself"),
    (DrawingTheIdentity, "sampling", None),
    (DrawingTwice, "sampling", None),
    (DegreesAsFloat32, "sampling", None),
    (Transposing, "form", "axes trade places"),
    (Counting, "form", None),
    (InNumpy, "form", None),
    (OnTheCpu, "form", "without device=x.device"),
    (InPlace, "unwritten", "act works in place"),
    (WritingBack, "unwritten", "act works in place"),
    (MapsInPlace, "unwritten", "act_on_map works in place"),
    (Jittering, "determinism", "act draws random numbers"),
    (WritingIntoElements, "unwritten", None),
    (RandomProducts, "determinism", None),
    (RandomInverses, "determinism", None),
    (NotInBfloat16, "precision", None),
    (SeedingGlobally, "sampling", None),
    (NeverFromGlobal, "sampling", None),
    (BiasedWithoutIdentity, "uniformity", None),
    (NeutralOnOneSideOnly, "identity", None),
    (WrongCurve, "gradient", None),
    (Float32, "precision", "float32 looks hard-coded"),
    (ThroughFloat32, "precision", "float32 looks hard-coded inside act"),
    (NotInHalf, "precision", None),
    (Overflowing, "form", None),
    (IdentityAsFloat, "form", None),
    (InOnePiece, "memory", None),
    (Shuffling, "batch", "elements of a stack go to the wrong samples"),
    (FirstOnly, "batch", "only the first element of a stack is used"),
    (AlongTheBatch, "batch", "the batch axis is moved"),
    (OneByOne, "form", None),
    (Unwrapped, "closure", "compose adds without wrapping around"),
    (NegativeIndices, "closure", "inverse negates without wrapping around"),
    (PairsOnly, "closure", None),
    (InSinglePrecision, "closure", None),
    (CountingFromOne, "identity", "element 2 is the neutral one"),
    (Subtracting, "identity", "compose undoes its second factor"),
    (TableWithATypo, "associativity", None),
    (Averaging, "associativity", None),
    (InverseIsItself, "inverse", "inverse looks like the element itself"),
    (InverseOfMirrors, "inverse", r"inverse\(5\) should be 5"),
    (InDegrees, "inverse", None),
    (IdentityLast, "action_identity", "element 2 changes nothing"),
    (Rescaling, "action_identity", None),
    (Reversed, "compatibility", "composition looks reversed"),
    (TurningBack, "compatibility", "composition looks reversed"),
    (MirrorLast, "compatibility", "composition looks reversed"),
    (DegreesInAct, "compatibility", None),
    (AboutTheMean, "action_inverse", "act loses part of the input"),
    (SayingExact, "exactness", "set exact = False"),
    (Detached, "gradient", "the gradient is cut"),
    (DetachedInStacks, "gradient", "the gradient is cut"),
    (WrongBackward, "gradient", "backward acts by g"),
    (DoubledBackward, "gradient", None),
    (Negation, "maps", "act_on_map changes values"),
    (MapsStay, "maps", "act_on_map leaves maps where they are"),
    (MapsMoveBack, "maps", "act_on_map moves maps by the inverse"),
    (HalfMaps, "maps", None),
    (ChannelMaps, "maps", None),
    (NegatingMaps, "maps", "act_on_map changes values"),
    (OffByOne, "uniformity", "the last element is left out"),
    (TooManyIdentities, "uniformity", None),
    (HalfCircle, "uniformity", None),
    (NormalAngles, "uniformity", None),
]


@dataclass(frozen=True)
class Cycle(FiniteGroup):
    """Shifts of 60 entries."""

    order = 60
    exact = True

    def compose(self, g, h):
        return (g + h) % 60

    def inverse(self, g):
        return -g % 60

    def act(self, g, x):
        sources = (torch.arange(60, device=x.device) - g.to(x.device).view(-1, 1)) % 60
        return x.gather(-1, sources.expand(x.shape))


class OneWrongProduct(Cycle):
    def compose(self, g, h):
        return (super().compose(g, h) + 1 * ((g == 57) & (h == 55))) % 60


class OneWrongInverse(Cycle):
    def inverse(self, g):
        return (super().inverse(g) + 1 * (g == 57)) % 60


class OneOutside(Cycle):
    def compose(self, g, h):
        return super().compose(g, h) + 60 * ((g == 57) & (h == 55))


class OneWrongAction(Cycle):
    def act(self, g, x):
        wrong = (g == 46).to(x.device).view(-1, 1)
        return torch.where(wrong, super().act(g, x).flip(-1), super().act(g, x))


RARE = [
    (OneOutside, "closure", {"g": 57, "h": 55}),
    (OneWrongInverse, "inverse", {"g": 57}),
    (OneWrongProduct, "associativity", {"f": 1, "g": 56, "h": 55}),
    (OneWrongAction, "compatibility", {"g": 1, "h": 45}),
]


@pytest.mark.parametrize(("broken", "law", "elements"), [pytest.param(*case, id=case[0].__name__) for case in RARE])
def test_a_single_wrong_entry_is_found(broken, law, elements):
    check_group(Cycle(), torch.zeros(1, 60), max_examples=3)
    with pytest.raises(LawError) as caught:
        check_group(broken(), torch.zeros(1, 60), max_examples=3)
    assert caught.value.law == law
    found = caught.value.elements
    assert {name: int(found[name]) for name in elements} == elements


class StayingMaps(PlanarRotation):
    def act_on_map(self, g, m):
        return m


class MapsTurnBack(PlanarRotation):
    def act_on_map(self, g, m):
        return self.act(-g, m)


class MapsTurnTwice(PlanarRotation):
    def act_on_map(self, g, m):
        return self.act(2 * g, m)


@pytest.mark.parametrize("broken", [StayingMaps, MapsTurnBack, MapsTurnTwice])
def test_wrong_maps_of_a_group_that_interpolates_are_found(broken):
    with pytest.raises(LawError, match=r"act_on_map\(g, \|x\|\) and g·\|x\|") as caught:
        check_group(broken(), torch.zeros(1, 1, 28, 28), max_examples=15)
    assert caught.value.law == "maps"


def example_for(broken):
    if broken is ChannelMaps:
        return CHANNELS
    return next((x for healthy, x in HEALTHY.items() if issubclass(broken, healthy)), SHIFTED)


@pytest.mark.parametrize(("broken", "law", "mistake"), [pytest.param(*bite, id=bite[0].__name__) for bite in BITES])
def test_law_bites(broken, law, mistake):
    group = broken()
    with pytest.raises(LawError, match=f'breaks the law "{law}", ') as caught:
        check_group(group, example_for(broken), tolerance=1e-5, max_examples=10)
    error = caught.value
    assert error.law == law
    assert str(error).startswith(repr(group))
    if mistake is None:
        assert "Likely mistake" not in str(error)
    else:
        assert caught.match(f"Likely mistake: .*{mistake}")


def test_each_law_is_shown_to_bite():
    assert {law for _, law, _ in BITES} == set(LAWS)
    assert len({broken for broken, _, _ in BITES}) == len(BITES)
