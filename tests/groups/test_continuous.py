"""Do images turn, shift and scale as promised? Against loops that read them pixel by pixel, and closed forms."""

import copy
import math
import pickle
import re
from functools import partial
from math import pi

import numpy as np
import pytest
import torch
from torch import Tensor

from invreg.groups import FiniteGroup, PlanarRotation, Scaling, Translation
from tests.tolerances import assert_exact, assert_linear

MODES = ["bilinear", "bicubic", "nearest"]
CONTINUOUS = [PlanarRotation(), Translation(2.0), Scaling()]

TOLERANCE = 1e-9
"""Between float64 and the loops."""


# ------------------------------------------------------------------------------------------------- the oracle, in loops


def pixel(image: np.ndarray, row: int, column: int, wrap: bool) -> float:
    height, width = image.shape
    if wrap:
        return float(image[row % height, column % width])
    return float(image[row, column]) if 0 <= row < height and 0 <= column < width else 0.0


def weights(fraction: float, mode: str) -> dict[int, float]:
    """How much each pixel counts, by its distance from the one at or before the position."""
    if mode == "nearest":
        return {round(fraction): 1.0}
    if mode == "bilinear":
        return {0: 1 - fraction, 1: fraction}
    a, kernel = -0.75, {}
    for step in (-1, 0, 1, 2):
        d = abs(fraction - step)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        kernel[step] = near if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return kernel


def read(image: np.ndarray, row: float, column: float, mode: str, wrap: bool = False) -> float:
    """The value between pixels; zero outside, or wrapping around."""
    top, left = math.floor(row), math.floor(column)
    return math.fsum(
        u * v * pixel(image, top + i, left + j, wrap)
        for i, u in weights(row - top, mode).items()
        for j, v in weights(column - left, mode).items()
    )


def remade(image: np.ndarray, source, mode: str, wrap: bool = False) -> np.ndarray:
    """Each pixel read where ``source`` says, which takes and gives how far right and up of the middle it is."""
    height, width = image.shape
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    result = np.empty(image.shape)
    for row in range(height):
        for column in range(width):
            right, up = source(column - middle_column, middle_row - row)
            result[row, column] = read(image, middle_row - up, middle_column + right, mode, wrap)
    return result


def turned(image: np.ndarray, angle: float, mode: str = "bilinear") -> np.ndarray:
    """Counter-clockwise: what comes to a place was clockwise of it."""
    c, s = math.cos(angle), math.sin(angle)
    return remade(image, lambda right, up: (c * right + s * up, c * up - s * right), mode)


def shifted(image: np.ndarray, down: float, right: float, mode: str = "bilinear") -> np.ndarray:
    return remade(image, lambda x, y: (x - right, y + down), mode, wrap=True)


def scaled(image: np.ndarray, factor: float, mode: str = "bilinear") -> np.ndarray:
    return remade(image, lambda x, y: (x / factor, y / factor), mode)


def each_image(function, x: Tensor) -> Tensor:
    """The function of each image ``(H, W)`` in a tensor."""
    images = x.reshape(-1, *x.shape[-2:]).double().numpy()
    return torch.from_numpy(np.stack([function(image) for image in images])).view(x.shape)


def test_the_oracle_itself():
    image = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.allclose(turned(image, pi / 2), [[2, 4], [1, 3]])
    assert np.allclose(turned(image, pi / 2, "bicubic"), [[2, 4], [1, 3]])
    assert np.allclose(shifted(image, 1, 0), [[3, 4], [1, 2]])
    assert np.allclose(shifted(image, 0, 0.25), [[1.25, 1.75], [3.25, 3.75]])
    assert np.allclose(scaled(np.array([[1.0, 2.0, 3.0, 4.0]]), 2), [[1.75, 2.25, 2.75, 3.25]])
    for mode in MODES:
        for fraction in (0.0, 0.2, 0.7):
            assert math.isclose(sum(weights(fraction, mode).values()), 1)


def element(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blob(side: int, width: float = 0.12) -> Tensor:
    """A smooth image that vanishes towards its edges, the same whatever the resolution."""
    place = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / side
    spots = [(0.08, -0.1, 1.0), (-0.12, 0.02, -0.7), (0.05, 0.12, 0.5)]
    total = sum(
        height * torch.exp(-((place - right) ** 2 + (place[:, None] - down) ** 2) / (2 * width**2))
        for right, down, height in spots
    )
    return total[None]


SIDES = (16, 32, 64)

ROTATION_ERRORS = {"bilinear": (0.08, 0.025, 0.008), "bicubic": (0.04, 0.02, 0.01)}
"""How far two rotations of ``blob`` may be from their product, relative to its norm, for each of ``SIDES``."""

SCALING_ERRORS = {"bilinear": (0.2, 0.06, 0.015), "bicubic": (0.05, 0.02, 0.007)}
"""The same of scaling, of which shrinking loses detail."""

SHAPES = [(1, 5, 5), (1, 6, 6), (2, 4, 7), (1, 2, 3, 7, 4), (2, 1, 6), (1, 5, 1), (1, 1, 1)]


# ---------------------------------------------------------------------------------------------------------- rotations


class TestRotation:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_by_pixels(self, mode, shape):
        x = images(*shape)
        for angle in (0.3, -1.234, 2.5, 10.0):
            expected = each_image(lambda image, angle=angle: turned(image, angle, mode), x)
            assert_near(PlanarRotation(mode).act(element(angle), x), expected)

    @pytest.mark.parametrize("mode", MODES)
    def test_each_sample_by_its_own_angle(self, mode):
        x, angles = images(4, 2, 5, 6), [0.3, -1.234, 2.5, 0.0]
        expected = [each_image(partial(turned, angle=a, mode=mode), x[i]) for i, a in enumerate(angles)]
        assert_near(PlanarRotation(mode).act(element(*angles)[:, None], x), torch.stack(expected))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("side", [5, 6])
    def test_quarter_turns_are_counter_clockwise_as_torch_turns(self, mode, side):
        x = images(2, 3, side, side)
        for quarters in (-1, 0, 1, 2, 3, 4):
            y = PlanarRotation(mode).act(element(quarters * pi / 2), x)
            assert_linear(y, torch.rot90(x, quarters, (-2, -1)))

    def test_single_precision(self):
        x = images(2, 3, 6, 7)
        for mode in MODES:
            y = PlanarRotation(mode).act(element(0.7), x.float())
            assert y.dtype == torch.float32
            assert_linear(y, PlanarRotation(mode).act(element(0.7), x).float())

    @pytest.mark.parametrize(("mode", "bounds"), ROTATION_ERRORS.items())
    def test_undoes_itself_at_finer_resolution(self, mode, bounds):
        group = PlanarRotation(mode)
        for angle in (0.4, 1.1, -2.0):
            g, errors = element(angle), []
            for side, bound in zip(SIDES, bounds, strict=True):
                x = blob(side)
                errors.append(float((group.act(group.inverse(g), group.act(g, x)) - x).norm() / x.norm()))
                assert errors[-1] < bound
            assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2] > 0

    @pytest.mark.parametrize(("mode", "bounds"), ROTATION_ERRORS.items())
    def test_acts_as_composed_at_finer_resolution(self, mode, bounds):
        group, g, h, errors = PlanarRotation(mode), element(0.5), element(1.3), []
        for side, bound in zip(SIDES, bounds, strict=True):
            x = blob(side)
            once, twice = group.act(group.compose(g, h), x), group.act(g, group.act(h, x))
            errors.append(float((once - twice).norm() / x.norm()))
            assert errors[-1] < bound
        assert errors[0] > 1.8 * errors[1] > 1.8**2 * errors[2] > 0

    def test_angles_add_up(self):
        group = PlanarRotation()
        for g, h in ((0.5, 0.25), (3.0, 1.0), (-3.0, -1.0), (pi, 0.5), (-pi, 0.0), (20.0, 30.0), (2.0, -2.0)):
            total = float(group.compose(element(g), element(h)))
            assert -pi <= total <= pi
            turns = (g + h - total) / (2 * pi)
            assert abs(turns - round(turns)) < 1e-12
        assert float(group.compose(element(3.0), element(1.0))) == pytest.approx(4 - 2 * pi, abs=1e-12)
        assert float(group.compose(element(pi), element(0.0))) == -pi
        assert group.compose(element(1.0, 2.0)[:, None, None], element(1.0, 2.0, 3.0)[:, None]).shape == (2, 3, 1)
        assert group.inverse(element(1.5, -2.0)[:, None]).tolist() == [[-1.5], [2.0]]
        assert group.identity.tolist() == [0.0]

    def test_draws_are_uniform_on_the_circle(self):
        angles = PlanarRotation().sample(20_000, torch.Generator().manual_seed(0))
        assert angles.shape == (20_000, 1)
        assert angles.dtype == torch.float64
        assert -pi <= float(angles.min()) < -3.1
        assert 3.1 < float(angles.max()) <= pi
        for frequency in (1, 2, 3, 4):  # whose means have standard deviation 1 / sqrt(2 n)
            for wave in (torch.cos, torch.sin):
                assert abs(float(wave(frequency * angles).mean())) < 5 / math.sqrt(2 * 20_000)

    def test_not_local_and_not_exact(self):
        group = PlanarRotation()
        assert not group.local
        assert not group.exact
        assert not isinstance(group, FiniteGroup)


class TestCircularMask:
    group = PlanarRotation(circular_mask=True)

    @pytest.mark.parametrize("sizes", [(8, 8), (7, 7), (6, 9), (10, 5)], ids=str)
    def test_outside_of_the_circle_stays(self, sizes):
        x = images(2, 3, *sizes)
        y = self.group.act(element(0.7), x)
        expected = each_image(partial(turned, angle=0.7), x)
        height, width = sizes
        inside = outside = 0
        for row in range(height):
            for column in range(width):
                distance = math.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
                if distance > min(sizes) / 2:
                    outside += 1
                    assert_exact(y[..., row, column], x[..., row, column])
                elif distance <= (min(sizes) - 1) / 2:
                    inside += 1
                    assert_near(y[..., row, column], expected[..., row, column])
        assert inside > 0
        assert outside > 0

    @pytest.mark.parametrize("side", [5, 8, 17])
    def test_nothing_is_lost(self, side):
        """An image of one colour stays what it is: nothing comes in from beyond the edges."""
        x = torch.ones(1, side, side, dtype=torch.float64)
        for angle in (pi / 4, 0.3, 2.0):
            assert_near(self.group.act(element(angle), x), x)

    def test_identity(self):
        x = images(2, 8, 8)
        assert_linear(self.group.act(self.group.identity, x), x)
        assert_linear(self.group.act(self.group.identity, x.float()), x.float())

    def test_each_sample(self):
        x = images(2, 1, 8, 8)
        y = self.group.act(element(0.7, -1.0)[:, None], x)
        assert_near(y, torch.cat([self.group.act(element(0.7), x[:1]), self.group.act(element(-1.0), x[1:])]))

    def test_is_another_group(self):
        assert self.group != PlanarRotation()
        assert repr(self.group) == "PlanarRotation(mode='bilinear', circular_mask=True)"


# ------------------------------------------------------------------------------------------------------- translations


class TestTranslation:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_by_pixels(self, mode, shape):
        x = images(*shape)
        for down, right in ((0.3, 0.0), (0.0, -0.6), (1.7, -2.2), (-9.4, 13.3)):
            expected = each_image(partial(shifted, down=down, right=right, mode=mode), x)
            assert_near(Translation(mode=mode).act(element(down, right), x), expected)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 6, 9), (1, 1, 4)], ids=str)
    def test_whole_pixels_roll(self, mode, shape):
        x = images(*shape)
        for down, right in ((0, 0), (1, 0), (0, 1), (-2, 3), (7, -11), (1_000, 1_000_001)):
            rolled = x.roll((down, right), (-2, -1))
            assert_linear(Translation(mode=mode).act(element(down, right), x), rolled)
            assert_linear(Translation(mode=mode).act(element(down, right), x.float()), rolled.float())

    @pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
    def test_fractions_mix_two_rolls(self, fraction):
        x = images(2, 3, 5, 6)
        expected = (1 - fraction) * x.roll(2, -1) + fraction * x.roll(3, -1)
        assert_linear(Translation().act(element(0.0, 2 + fraction), x), expected)
        expected = (1 - fraction) * x.roll(-3, -2) + fraction * x.roll(-2, -2)
        assert_linear(Translation().act(element(-3 + fraction, 0.0), x), expected)

    def test_far_shifts_keep_their_fraction(self):
        """Float32 alone could not hold it."""
        x = images(1, 6, 6)
        near, far = element(0.25, 0.5), element(6e6 + 0.25, -6e6 + 0.5)
        for mode in MODES[:2]:
            group = Translation(mode=mode)
            assert_linear(group.act(far, x.float()), group.act(near, x).float())

    def test_each_sample_by_its_own_shift(self):
        x, shifts = images(3, 2, 5, 6), [(0.5, 0.0), (-1.3, 2.2), (0.0, 0.0)]
        expected = [each_image(partial(shifted, down=d, right=r), x[i]) for i, (d, r) in enumerate(shifts)]
        assert_near(Translation().act(torch.tensor(shifts, dtype=torch.float64), x), torch.stack(expected))

    def test_waves_shift(self):
        """Of 32 pixels' length, they are off by less than a percent."""
        place = 2 * pi * torch.arange(32, dtype=torch.float64) / 32
        wave = place.sin().expand(1, 3, 32)
        for mode in ("bilinear", "bicubic"):
            for right in (0.5, 3.3, -0.7):
                expected = (place - 2 * pi * right / 32).sin().expand(1, 3, 32)
                error = (Translation(mode=mode).act(element(0.0, right), wave) - expected).abs().max()
                assert float(error) < 1e-2

    def test_nothing_is_lost(self):
        """The sum over the image stays."""
        x = images(2, 3, 5, 6)
        for mode in ("bilinear", "bicubic"):
            y = Translation(mode=mode).act(element(1.3, -4.6), x)
            assert_near(y.sum((-2, -1)), x.sum((-2, -1)))

    def test_group(self):
        group = Translation()
        assert group.compose(element(1.0, -2.5), element(100.0, 0.5)).tolist() == [101.0, -2.0]
        assert group.inverse(element(1.0, -2.5)).tolist() == [-1.0, 2.5]
        assert group.identity.tolist() == [0.0, 0.0]
        assert group.local
        assert not group.exact
        assert group.compose(torch.zeros(2, 1, 2).double(), torch.zeros(3, 2).double()).shape == (2, 3, 2)

    def test_draws(self):
        shifts = Translation(3.0).sample(20_000, torch.Generator().manual_seed(0))
        assert shifts.shape == (20_000, 2)
        assert shifts.dtype == torch.float64
        assert 2.99 < float(shifts.abs().max()) <= 3.0
        deviation = 3 / math.sqrt(3)
        for axis in (0, 1):
            assert abs(float(shifts[:, axis].mean())) < 5 * deviation / math.sqrt(20_000)
            assert float(shifts[:, axis].square().mean()) == pytest.approx(deviation**2, rel=0.05)
        assert abs(float(shifts.prod(1).mean())) < 5 * deviation**2 / math.sqrt(20_000)

    @pytest.mark.parametrize("max_shift", [0, 0.0, -1.0, math.inf, math.nan])
    def test_bad_max_shift(self, max_shift):
        with pytest.raises(ValueError, match=rf"^Translation takes max_shift in pixels, .*: got {max_shift!r}\.$"):
            Translation(max_shift)


# ------------------------------------------------------------------------------------------------------------ scaling


class TestScaling:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_by_pixels(self, mode, shape):
        x = images(*shape)
        for factor in (1.3, 0.7, 2.6, 0.3):
            expected = each_image(partial(scaled, factor=factor, mode=mode), x)
            assert_near(Scaling(mode=mode).act(element(factor), x), expected)

    def test_each_sample_by_its_own_factor(self):
        x, factors = images(3, 2, 5, 6), [1.3, 0.7, 1.0]
        expected = [each_image(partial(scaled, factor=f), x[i]) for i, f in enumerate(factors)]
        assert_near(Scaling().act(element(*factors)[:, None], x), torch.stack(expected))

    @pytest.mark.parametrize("sizes", [(6, 8), (7, 5)], ids=str)
    def test_ramps_are_scaled_about_the_middle(self, sizes):
        right, down = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in reversed(sizes))
        for factor in (1.0, 1.5, 4.0):
            ramp = (3 + 0.5 * right - 2 * down[:, None])[None]
            expected = (3 + 0.5 * right / factor - 2 * down[:, None] / factor)[None]
            assert_linear(Scaling().act(element(factor), ramp), expected)

    def test_identity(self):
        x = images(2, 3, 6, 7)
        for mode in MODES:
            assert_linear(Scaling(mode=mode).act(element(1.0), x), x)

    def test_at_the_edges_it_loses_and_brings_zeros(self):
        ones = torch.ones(1, 8, 8, dtype=torch.float64)
        smaller = Scaling().act(element(0.5), ones)
        assert_exact(smaller[:, 2:6, 2:6], torch.ones(1, 4, 4, dtype=torch.float64))
        border = ones.clone()
        border[:, 1:-1, 1:-1] = 0
        assert float((smaller * border).abs().max()) == 0
        larger = Scaling().act(element(2.0), border)
        assert float(larger[:, 1:-1, 1:-1].abs().max()) == 0
        assert float((Scaling().act(element(0.5), larger) - border).norm() / border.norm()) > 0.9  # pushed out

    @pytest.mark.parametrize(("mode", "bounds"), SCALING_ERRORS.items())
    def test_content_clear_of_the_edges_comes_back(self, mode, bounds):
        group = Scaling(mode=mode)
        for factor in (1.25, 0.8):
            g, errors = element(factor), []
            for side, bound in zip(SIDES, bounds, strict=True):
                x = blob(side, width=0.08)
                errors.append(float((group.act(group.inverse(g), group.act(g, x)) - x).norm() / x.norm()))
                assert errors[-1] < bound
            assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0

    def test_group(self):
        group = Scaling()
        assert group.compose(element(2.0), element(0.25)).tolist() == [0.5]
        assert group.inverse(element(4.0)).tolist() == [0.25]
        assert group.identity.tolist() == [1.0]
        assert group.local
        assert not group.exact
        assert group.compose(torch.ones(2, 1, 1).double(), torch.ones(3, 1).double()).shape == (2, 3, 1)

    def test_draws_are_uniform_in_the_logarithm(self):
        factors = Scaling(1.5).sample(20_000, torch.Generator().manual_seed(0))
        assert factors.shape == (20_000, 1)
        assert factors.dtype == torch.float64
        assert 1 / 1.5 - 1e-12 <= float(factors.min()) < 0.67
        assert 1.499 < float(factors.max()) <= 1.5 + 1e-12
        deviation = math.log(1.5) / math.sqrt(3)
        assert abs(float(factors.log().mean())) < 5 * deviation / math.sqrt(20_000)
        assert float(factors.log().square().mean()) == pytest.approx(deviation**2, rel=0.05)

    @pytest.mark.parametrize("factor", [0.0, -1.0, -0.0, math.inf, -math.inf, math.nan])
    def test_no_factor(self, factor):
        group, x = Scaling(), torch.zeros(2, 4, 4)
        expected = r"^Elements of Scaling\(.*\) are finite factors above 0, since 0 cannot be undone: got one that is"
        for refused in (
            lambda: group.act(element(factor), x),
            lambda: group.act(element(1.0, factor)[:, None], x),
            lambda: group.act_on_map(element(factor), x),
            lambda: group.compose(element(factor), element(1.0)),
            lambda: group.compose(element(1.0), element(factor)),
            lambda: group.inverse(element(factor)),
        ):
            with pytest.raises(ValueError, match=expected):
                refused()

    @pytest.mark.parametrize("max_factor", [1, 1.0, 0.5, 0, -2.0, math.inf, math.nan])
    def test_bad_max_factor(self, max_factor):
        with pytest.raises(ValueError, match=rf"^Scaling takes a max_factor above 1 and finite: got {max_factor!r}\.$"):
            Scaling(max_factor)


# ------------------------------------------------------------------------------------------------------- all of them


def with_mode(group, mode):
    return {
        "PlanarRotation": PlanarRotation(mode),
        "Translation": Translation(2.0, mode),
        "Scaling": Scaling(1.25, mode),
    }[type(group).__name__]


def draw(group, n: int) -> Tensor:
    return group.sample(n, torch.Generator().manual_seed(7))


every_group = pytest.mark.parametrize("group", CONTINUOUS, ids=lambda group: type(group).__name__)


@every_group
class TestMasks:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16], ids=str)
    def test_nearest_keeps_the_dtype_and_makes_no_values(self, group, dtype):
        labels = torch.randint(2, (2, 2, 9, 9), generator=torch.Generator().manual_seed(0))
        mask = labels.to(dtype) if dtype == torch.bool else (3 + 4 * labels).to(dtype)
        nearest = with_mode(group, "nearest")
        stack = torch.stack([element(1.7, -0.8), element(0.6, 2.7)])[:, : group.identity.numel()]
        for g in (stack[0], stack[1], stack):
            y = nearest.act(g, mask)
            assert y.dtype == dtype
            assert set(y.unique().tolist()) <= {*mask.unique().tolist(), 0}
            assert_exact(y.double(), nearest.act(g, mask.double()))
            assert not torch.equal(y, mask)

    def test_nearest_keeps_large_labels(self, group):
        """Such as hashes, which float64 cannot hold."""
        mask = 2**60 + torch.arange(25).view(1, 5, 5)
        assert_exact(with_mode(group, "nearest").act(group.identity, mask), mask)

    def test_nearest_keeps_complex_values_or_refuses_them(self, group):
        x = torch.complex(torch.ones(1, 3, 3), torch.ones(1, 3, 3))
        try:
            y = with_mode(group, "nearest").act(group.identity, x)
        except (TypeError, ValueError):
            return
        assert_exact(y, x)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
    @pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
    def test_others_are_refused_between_pixels(self, group, dtype, mode):
        expected = (
            rf"mode='{mode}'.*\) interpolates between pixels, which must be floating point: got {dtype}\. Use x\.float"
            r'\(\), or mode="nearest" for masks\.$'
        )
        refuses = with_mode(group, mode)
        for g in (refuses.identity, draw(group, 2)):
            with pytest.raises(ValueError, match=expected):
                refuses.act(g, torch.zeros(2, 4, 4, dtype=dtype))


@every_group
class TestMaps:
    def test_move_as_images(self, group):
        m = images(2, 1, 6, 6)
        for g in (draw(group, 1)[0], draw(group, 2)):
            assert_exact(group.act_on_map(g, m), group.act(g, m))
            assert_exact(group.realign(g, m), group.act(group.inverse(g), m))

    def test_summed_away(self, group):
        m = images(2, 3, 1, 1)
        for g in (draw(group, 1)[0], draw(group, 2)):
            assert_exact(group.act_on_map(g, m), m)


@every_group
class TestWithTorch:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_computes_in_float32(self, group, dtype):
        x = images(3, 2, 40, 40).to(dtype)
        for mode in MODES:
            for g in (draw(group, 1)[0], draw(group, 3)):
                y = with_mode(group, mode).act(g, x)
                assert y.dtype == dtype
                assert_exact(y, with_mode(group, mode).act(g, x.float()).to(dtype))

    def test_autocast_changes_nothing(self, group):
        x, g = images(3, 2, 8, 8).float(), draw(group, 3)
        expected = group.act(g, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_exact(group.act(g, x), expected)

    def test_default_dtype_changes_nothing(self, group):
        x, g = images(3, 2, 8, 8), draw(group, 3)
        expected = group.act(g, x)
        torch.set_default_dtype(torch.float16)
        try:
            assert_exact(group.act(g, x), expected)
            assert_exact(draw(group, 3), g)
        finally:
            torch.set_default_dtype(torch.float32)

    @pytest.mark.parametrize("mode", MODES)
    def test_gradients(self, group, mode):
        x = images(2, 2, 4, 5).requires_grad_()
        for g in (draw(group, 1)[0], draw(group, 2)):
            assert torch.autograd.gradcheck(partial(with_mode(group, mode).act, g), x)

    def test_vmap(self, group):
        x = images(2, 3, 2, 4, 5)
        for g in (draw(group, 1)[0], draw(group, 3)):
            looped = torch.stack([group.act(g, part) for part in x])
            assert_linear(torch.func.vmap(partial(group.act, g))(x), looped)

    def test_compiles_as_one_graph(self, group):
        torch.compiler.reset()
        compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (draw(group, 1)[0], draw(group, 2)):
            x, y = (images(2, 2, 5, 6).requires_grad_() for _ in range(2))
            assert_linear(compiled(g, x), group.act(g, y))
            compiled(g, x).square().sum().backward()
            group.act(g, y).square().sum().backward()
            assert_linear(x.grad, y.grad)

    def test_inputs_that_are_not_contiguous(self, group):
        x, g = images(3, 2, 4, 6), draw(group, 3)
        expected = group.act(g, x)
        for y in (
            x.transpose(1, 3).contiguous().transpose(1, 3),
            x.contiguous(memory_format=torch.channels_last),
            torch.stack([x, -x], -1)[..., 0],
        ):
            assert_linear(group.act(g, y), expected)
        assert_linear(group.act(g[0], x[:1].expand(3, 2, 4, 6)), group.act(g[0], x[:1]).expand(3, 2, 4, 6))

    def test_input_is_not_written(self, group):
        x = images(2, 1, 5, 5)
        for g in (group.identity, draw(group, 2)):
            before = x.clone()
            group.act(g, x).zero_()
            assert_exact(x, before)

    def test_empty_batch(self, group):
        empty = torch.zeros(0, 2, 4, 5)
        assert_exact(group.act(group.identity, empty), empty)
        assert_exact(group.act(draw(group, 0), empty), empty)

    def test_meta_device(self, group):
        x = torch.empty(2, 1, 4, 5, device="meta")
        y = group.act(group.identity, x)
        assert (y.device, y.shape, y.dtype) == (x.device, x.shape, x.dtype)


@every_group
class TestDraws:
    def test_follow_rng(self, group):
        for drawing in (lambda rng: group.sample(20, rng), lambda rng: group.sample_non_identity(20, 2, rng)):
            torch.manual_seed(4)
            before = torch.get_rng_state()
            drawn = drawing(torch.Generator().manual_seed(5))
            assert_exact(drawing(torch.Generator().manual_seed(5)), drawn)
            assert_exact(torch.get_rng_state(), before)
            assert not torch.equal(drawing(torch.Generator().manual_seed(6)), drawn)
            torch.manual_seed(5)
            assert_exact(drawing(None), drawn)

    def test_without_identity(self, group):
        drawn = group.sample_non_identity(50, 4, torch.Generator().manual_seed(0))
        assert drawn.shape == (4, 50, *group.element_shape)
        assert len(drawn.flatten(0, 1).unique(dim=0)) == 200
        assert not (drawn == group.identity).all(-1).any()
        assert group.sample_non_identity(0, 3).shape == (3, 0, *group.element_shape)


@every_group
class TestRefused:
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_no_finite_numbers(self, group, number):
        bad = group.identity.clone()
        bad[-1] = number
        x = torch.zeros(2, 4, 4)
        for refused in (
            lambda: group.act(bad, x),
            lambda: group.act(torch.stack([group.identity, bad]), x),
            lambda: group.act_on_map(bad, x),
            lambda: group.compose(group.identity, bad),
            lambda: group.compose(bad, group.identity),
            lambda: group.inverse(bad),
        ):
            with pytest.raises(ValueError, match=rf"^Elements of {type(group).__name__}\(.*\) are finite "):
                refused()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64], ids=str)
    def test_dtype(self, group, dtype):
        g = group.identity.to(dtype)
        expected = rf"are tensors of torch\.float64: got a tensor of {dtype}\. Write torch\.tensor\(\.\.\., dtype="
        for refused in (
            lambda: group.act(g, torch.zeros(2, 4, 4)),
            lambda: group.compose(g, g),
            lambda: group.inverse(g),
        ):
            with pytest.raises(TypeError, match=expected):
                refused()

    def test_python_number(self, group):
        with pytest.raises(TypeError, match=r"are tensors of torch\.float64: got float\."):
            group.act(0.5, torch.zeros(2, 4, 4))

    def test_shape_of_elements(self, group):
        with pytest.raises(ValueError, match=r"have shape .*, stacks of them .*: got \(\)\."):
            group.act(torch.tensor(1.0, dtype=torch.float64), torch.zeros(2, 4, 4))
        with pytest.raises(ValueError, match=r"or by one per sample, shape \(2, .*: got elements of shape \(3, "):
            group.act(group.identity.expand(3, -1), torch.zeros(2, 4, 4))

    @pytest.mark.parametrize("shape", [(4,), (4, 4)], ids=str)
    def test_no_images(self, group, shape):
        expected = rf"^{type(group).__name__}\(.*\) acts on images, tensors of shape \(N, \.\.\., H, W\): got "
        for g in (group.identity, group.identity.expand(4, -1)):
            with pytest.raises(ValueError, match=expected + rf"{re.escape(str(shape))}\.$"):
                group.act(g, torch.zeros(shape))

    @pytest.mark.parametrize("mode", ["linear", "BILINEAR", "", None])
    def test_mode(self, group, mode):
        expected = (
            rf"^{type(group).__name__} takes as mode one of \['bilinear', 'bicubic', 'nearest'\]: got {mode!r}\.$"
        )
        with pytest.raises(ValueError, match=expected):
            type(group)(mode=mode)


@every_group
def test_values_and_names(group):
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), eval(repr(group))):
        assert twin == group
        assert hash(twin) == hash(group)
    assert with_mode(group, "nearest") != group
    assert "mode='nearest'" in repr(with_mode(group, "nearest"))
    with pytest.raises(AttributeError):
        group.mode = "nearest"


def test_ranges_are_part_of_the_value():
    assert Translation(1.0) != Translation(2.0)
    assert Scaling(1.5) != Scaling(2.0)
    assert repr(Translation()) == "Translation(max_shift=1.0, mode='bilinear')"
    assert repr(Scaling()) == "Scaling(max_factor=1.25, mode='bilinear')"
    assert repr(PlanarRotation()) == "PlanarRotation(mode='bilinear', circular_mask=False)"


def test_nearest_pixels_of_an_image_of_more_than_two_to_the_24_pixels():
    """Which float32 cannot count one by one."""
    x = torch.zeros(1, 4100, 4101)
    x[0, 4099, -4:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    group = PlanarRotation("nearest")
    assert_exact(group.act(group.identity, x), x)
