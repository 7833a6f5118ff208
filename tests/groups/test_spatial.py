"""Do points turn in space as promised? Against loops over coordinates."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch

from invreg.groups import FiniteGroup, SpatialRotation
from tests.groups.test_continuous import images
from tests.tolerances import LINEAR, assert_exact, assert_linear

GROUP = SpatialRotation()

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def about(axis: int, angle: float) -> list[list[float]]:
    """The rotation about a coordinate axis, by the right-hand rule."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = [[float(r == c) for c in range(3)] for r in range(3)]
    matrix[i][i] = matrix[j][j] = math.cos(angle)
    matrix[i][j], matrix[j][i] = -math.sin(angle), math.sin(angle)
    return matrix


def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[math.fsum(a[r][k] * b[k][c] for k in range(3)) for c in range(3)] for r in range(3)]


def turned(point: list[float], matrix: list[list[float]]) -> list[float]:
    return [math.fsum(row[k] * point[k] for k in range(3)) for row in matrix]


def matrix_of(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


SOME = [about(0, 0.7), about(1, -2.0), product(about(2, 1.1), about(0, 0.3)), about(2, math.pi / 2)]


def drawn(n: int, seed: int = 0) -> torch.Tensor:
    return GROUP.sample(n, torch.Generator().manual_seed(seed))


def test_the_oracle_itself():
    x_axis, y_axis = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    assert turned(x_axis, about(2, math.pi / 2)) == pytest.approx(y_axis)
    assert turned(y_axis, about(0, math.pi / 2)) == pytest.approx([0.0, 0.0, 1.0])
    assert turned([0.0, 0.0, 1.0], about(1, math.pi / 2)) == pytest.approx(x_axis)


class TestAction:
    @pytest.mark.parametrize("rows", SOME, ids=["x", "y", "two axes", "quarter"])
    def test_by_coordinates(self, rows):
        x = images(2, 5, 3)
        expected = [[turned(point, rows) for point in cloud] for cloud in x.tolist()]
        assert_linear(GROUP.act(matrix_of(rows), x), matrix_of(expected))
        assert_linear(GROUP.act(matrix_of(rows).expand(2, 3, 3), x), matrix_of(expected))

    @pytest.mark.parametrize("shape", [(4, 3), (4, 7, 3), (4, 2, 5, 3), (4, 1, 1, 2, 3), (4, 0, 3)], ids=str)
    def test_each_sample_by_its_own(self, shape):
        x = images(*shape)
        y = GROUP.act(matrix_of(SOME), x)
        assert y.shape == x.shape
        for i, rows in enumerate(SOME):
            points = x[i].reshape(-1, 3).tolist()
            expected = torch.tensor([turned(p, rows) for p in points], dtype=torch.float64).view(shape[1:])
            assert_linear(y[i], expected)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_lengths_and_angles_stay(self, dtype):
        x = images(20, 6, 3).to(dtype)
        y = GROUP.act(drawn(20), x)
        assert y.dtype == dtype
        before, after = (z.double() @ z.double().mT for z in (x, y))
        scale = float(before.abs().max())
        assert float((after - before).abs().max()) < LINEAR[dtype] * scale

    def test_half_precision_computes_in_float32(self):
        for dtype in (torch.float16, torch.bfloat16):
            x = images(4, 6, 3).to(dtype)
            assert_exact(GROUP.act(drawn(4), x), GROUP.act(drawn(4), x.float()).to(dtype))

    def test_autocast_changes_nothing(self):
        x = images(4, 6, 3).float()
        expected = GROUP.act(drawn(4), x), GROUP.act(drawn(1)[0], x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_exact(GROUP.act(drawn(4), x), expected[0])
            assert_exact(GROUP.act(drawn(1)[0], x), expected[1])

    def test_acts_as_composed(self):
        x, (g, h) = images(10, 6, 3), drawn(20).view(2, 10, 3, 3)
        assert_linear(GROUP.act(GROUP.compose(g, h), x), GROUP.act(g, GROUP.act(h, x)))
        assert_linear(GROUP.act(GROUP.inverse(g), GROUP.act(g, x)), x)
        assert_exact(GROUP.act(GROUP.identity, x), x)

    def test_inputs_that_are_not_contiguous(self):
        x, g = images(4, 5, 3), drawn(4)
        for y in (x.mT.contiguous().mT, torch.stack([x, -x], -1)[..., 0], torch.cat([-x, x])[4:]):
            assert_linear(GROUP.act(g, y), GROUP.act(g, x))
        assert_linear(GROUP.act(g, x[:1].expand(4, 5, 3)), GROUP.act(g, x[:1].repeat(4, 1, 1)))

    def test_input_is_not_written(self):
        x = images(2, 5, 3)
        before = x.clone()
        GROUP.act(GROUP.identity, x).zero_()
        assert_exact(x, before)

    def test_empty_batch(self):
        empty = torch.zeros(0, 5, 3)
        assert_exact(GROUP.act(GROUP.identity, empty), empty)
        assert_exact(GROUP.act(drawn(0), empty), empty)

    def test_meta_device(self):
        x = torch.empty(2, 5, 3, device="meta")
        y = GROUP.act(GROUP.identity, x)
        assert (y.device, y.shape, y.dtype) == (x.device, x.shape, x.dtype)

    def test_gradients(self):
        x = images(2, 4, 3).requires_grad_()
        for g in (drawn(1)[0], drawn(2)):
            assert torch.autograd.gradcheck(partial(GROUP.act, g), x)
            assert torch.autograd.gradgradcheck(partial(GROUP.act, g), x)
            (gradient,) = torch.autograd.grad(GROUP.act(g, x), x, torch.ones_like(x))
            assert_linear(gradient, GROUP.act(GROUP.inverse(g), torch.ones_like(x)))

    def test_vmap(self):
        x = images(3, 2, 4, 3)
        for g in (drawn(1)[0], drawn(2)):
            looped = torch.stack([GROUP.act(g, part) for part in x])
            assert_linear(torch.func.vmap(partial(GROUP.act, g))(x), looped)

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        compiled = torch.compile(lambda g, x: GROUP.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (drawn(1)[0], drawn(2)):
            x, y = (images(2, 4, 3).requires_grad_() for _ in range(2))
            assert_linear(compiled(g, x), GROUP.act(g, y))
            compiled(g, x).square().sum().backward()
            GROUP.act(g, y).square().sum().backward()
            assert_linear(x.grad, y.grad)


class TestGroup:
    def test_products_and_inverses(self):
        g = matrix_of(SOME)
        table, inverses = GROUP.compose(g[:, None], g), GROUP.inverse(g)
        assert table.shape == (4, 4, 3, 3)
        for i, a in enumerate(SOME):
            for j, b in enumerate(SOME):
                assert_linear(table[i, j], matrix_of(product(a, b)))
            assert inverses[i].tolist() == [[a[c][r] for c in range(3)] for r in range(3)]
        assert GROUP.identity.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

    def test_facts(self):
        assert GROUP.element_shape == (3, 3)
        assert GROUP.element_dtype == GROUP.identity.dtype == torch.float64
        assert not GROUP.exact
        assert not GROUP.local
        assert not isinstance(GROUP, FiniteGroup)

    def test_long_products_stay_elements(self):
        g = drawn(1)[0]
        power = GROUP.identity
        for _ in range(1_000):
            power = GROUP.compose(power, g)
        GROUP.act(power, torch.zeros(1, 3))


class TestDraws:
    n = 20_000
    draws = drawn(n)

    def test_are_rotations(self):
        assert self.draws.shape == (self.n, 3, 3)
        assert self.draws.dtype == torch.float64
        eye = torch.eye(3, dtype=torch.float64).expand(self.n, 3, 3)
        torch.testing.assert_close(self.draws @ self.draws.mT, eye, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.linalg.det(self.draws), eye[:, 0, 0], rtol=0, atol=1e-12)

    def assert_moments(self, draws):
        """Mean 0 and mean square 1/3 of each entry; mean product 0 of any two; mean squared trace 1."""
        deviation = math.sqrt(1 / 3 / self.n)
        assert float(draws.mean(0).abs().max()) < 5 * deviation
        squares = draws.square().mean(0)
        assert float((squares - 1 / 3).abs().max()) < 5 * math.sqrt(4 / 45 / self.n)
        entries = draws.flatten(1)
        products = entries.T @ entries / self.n
        assert float((products - products.diag().diag()).abs().max()) < 5 * math.sqrt(2 / 15 / self.n)
        traces = draws.diagonal(dim1=1, dim2=2).sum(1)
        assert abs(float(traces.square().mean()) - 1) < 5 * math.sqrt(2 / self.n)  # as a character's must be
        assert abs(float((traces.square() - traces).mean()) - 1) < 5 * math.sqrt(5 / self.n)

    def test_moments(self):
        self.assert_moments(self.draws)

    def test_angles(self):
        """Whose density is (1 - cos θ) / π between 0 and π."""
        angles = ((self.draws.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
        for limit in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
            share = (limit - math.sin(limit)) / math.pi
            assert abs(float((angles <= limit).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / self.n)

    @pytest.mark.parametrize("rows", SOME[:3])
    def test_invariant_from_either_side(self, rows):
        g = matrix_of(rows)
        self.assert_moments(g @ self.draws)
        self.assert_moments(self.draws @ g)
        for moved in (g @ self.draws, self.draws @ g):
            traces = moved.diagonal(dim1=1, dim2=2).sum(1)
            angles = ((traces - 1) / 2).clamp(-1, 1).acos()
            share = (1.5 - math.sin(1.5)) / math.pi
            assert abs(float((angles <= 1.5).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / self.n)

    def test_without_identity(self):
        draws = GROUP.sample_non_identity(30, 4, torch.Generator().manual_seed(0))
        assert draws.shape == (4, 30, 3, 3)
        assert len(draws.flatten(2).flatten(0, 1).unique(dim=0)) == 120
        assert GROUP.sample_non_identity(0, 2).shape == (2, 0, 3, 3)

    def test_follow_rng(self):
        for draw in (lambda rng: GROUP.sample(20, rng), lambda rng: GROUP.sample_non_identity(20, 2, rng)):
            torch.manual_seed(4)
            before = torch.get_rng_state()
            first = draw(torch.Generator().manual_seed(5))
            assert_exact(draw(torch.Generator().manual_seed(5)), first)
            assert_exact(torch.get_rng_state(), before)
            assert not torch.equal(draw(torch.Generator().manual_seed(6)), first)
            torch.manual_seed(5)
            assert_exact(draw(None), first)


class TestMaps:
    @pytest.mark.parametrize("shape", [(2, 5, 1), (2, 5), (2, 5, 4), (2, 3), (2, 1)], ids=str)
    def test_stay(self, shape):
        m = images(*shape)
        for g in (matrix_of(SOME[0]), matrix_of(SOME[:2])):
            assert_exact(GROUP.act_on_map(g, m), m)
            assert_exact(GROUP.realign(g, m), m)

    def test_of_coordinates_are_refused(self):
        expected = r"mixes coordinates, so that a map must have one value per point: got shape \(2, 5, 3\)\. Sum over "
        for act in (GROUP.act_on_map, GROUP.realign):
            with pytest.raises(ValueError, match=expected):
                act(matrix_of(SOME[0]), torch.zeros(2, 5, 3))


METHODS = {
    "compose-left": lambda g: GROUP.compose(g, GROUP.identity),
    "compose-right": lambda g: GROUP.compose(GROUP.identity, g),
    "inverse": GROUP.inverse,
    "act": lambda g: GROUP.act(g, torch.zeros(2, 5, 3)),
    "act_on_map": lambda g: GROUP.act_on_map(g, torch.zeros(2, 5, 1)),
}

NO_ROTATIONS = {
    "reflection": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]],
    "point reflection": [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
    "twice as large": [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]],
    "sheared": [[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "almost": [[1.0, 1e-4, 0.0], [-1e-4, 1.0, 0.0], [0.0, 0.0, 1.0 + 1e-5]],
    "zero": [[0.0] * 3] * 3,
    "nan": [[math.nan] * 3] * 3,
    "infinite": [[math.inf, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestElementsRefused:
    one = r"^Elements of SpatialRotation\(\) are rotation matrices, orthogonal and of determinant 1: got "

    @pytest.mark.parametrize("rows", NO_ROTATIONS.values(), ids=NO_ROTATIONS)
    def test_no_rotation(self, method, rows):
        with pytest.raises(ValueError, match=self.one + r"one that is not\.$"):
            method(matrix_of(rows))
        with pytest.raises(ValueError, match=self.one + r"a stack of shape \(2, 3, 3\) in which one is not\.$"):
            method(torch.stack([GROUP.identity, matrix_of(rows)]))

    def test_dtype_and_shape(self, method):
        with pytest.raises(TypeError, match=r"are tensors of torch\.float64: got a tensor of torch\.float32\."):
            method(torch.eye(3))
        with pytest.raises(ValueError, match=r"have shape \(3, 3\), stacks of them .*: got \(2, 2\)\."):
            method(torch.eye(2, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"have shape \(3, 3\), stacks of them .*: got \(3,\)\."):
            method(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 5, 2),
        torch.zeros(2, 3, 5),
        torch.zeros(2, 4),
        torch.zeros(3),
        torch.zeros(2, 5, 3, dtype=torch.int64),
        torch.zeros(2, 5, 3, dtype=torch.bool),
        torch.zeros(2, 5, 3, dtype=torch.complex64),
    ],
    ids=lambda x: f"{x.dtype}-{tuple(x.shape)}",
)
def test_inputs_that_are_no_points_are_refused(x):
    expected = (
        rf"^SpatialRotation\(\) turns points, floating point and of shape \(N, \.\.\., 3\): got {x.dtype} of shape "
        rf"{re.escape(str(tuple(x.shape)))}\. Move the coordinates to the last axis"
    )
    for g in (GROUP.identity, GROUP.identity.expand(len(x), 3, 3)):
        with pytest.raises(ValueError, match=expected):
            GROUP.act(g, x)


def test_values_and_names():
    assert SpatialRotation() == GROUP
    assert repr(GROUP) == "SpatialRotation()"
    for twin in (pickle.loads(pickle.dumps(GROUP)), copy.deepcopy(GROUP)):
        assert twin == GROUP
        assert hash(twin) == hash(GROUP)
