"""Do two groups act together of which one cannot be listed? Against loops over points and over products of parts."""

import copy
import itertools
import math
import pickle
import re
from functools import partial

import pytest
import torch

from invreg.groups import (
    CyclicRotation,
    DirectProduct,
    FiniteGroup,
    Flip,
    Group,
    OnKeys,
    PlanarRotation,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
)
from invreg.losses import L2InvarianceLoss
from tests.groups.test_continuous import assert_near, each_image, element, images, turned
from tests.groups.test_symmetric import permuted
from tests.tolerances import assert_exact, assert_linear

CLOUDS = SymmetricGroup(5, dim=1) * SpatialRotation()
"""Clouds of five points, reordered and turned."""

QUARTER = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
"""About the third axis."""


def vector(permutation: list[int], matrix: list[list[float]]) -> torch.Tensor:
    return torch.tensor([*permutation, *itertools.chain(*matrix)], dtype=torch.float64)


def turned_points(points: list[list[float]], matrix: list[list[float]]) -> list[list[float]]:
    return [[math.fsum(row[k] * point[k] for k in range(3)) for row in matrix] for point in points]


def drawn(group: Group, n: int) -> torch.Tensor:
    return group.sample(n, torch.Generator().manual_seed(3))


class TestClouds:
    def test_elements_are_vectors(self):
        """The permutation's numbers, then the matrix row by row."""
        assert CLOUDS.element_shape == (14,)
        assert CLOUDS.element_dtype == CLOUDS.identity.dtype == torch.float64
        assert CLOUDS.identity.tolist() == [0, 1, 2, 3, 4, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        assert not CLOUDS.exact
        assert not CLOUDS.local
        assert isinstance(CLOUDS, DirectProduct)
        assert not isinstance(CLOUDS, FiniteGroup)

    def test_by_points(self):
        x = images(3, 5, 3)
        p, q = [2, 0, 4, 1, 3], [4, 3, 2, 1, 0]
        identity = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        parts = [(p, QUARTER), (q, QUARTER), (p, identity)]
        clouds = [permuted(turned_points(c, m), g) for c, (g, m) in zip(x.tolist(), parts, strict=True)]
        expected = torch.tensor(clouds, dtype=torch.float64)
        assert_linear(CLOUDS.act(torch.stack([vector(*part) for part in parts]), x), expected)
        for i, part in enumerate(parts):
            assert_linear(CLOUDS.act(vector(*part), x)[i], expected[i])

    def test_products_and_inverses(self):
        g, h = drawn(CLOUDS, 12).view(2, 6, 14)
        products, inverses = CLOUDS.compose(g[:, None], h), CLOUDS.inverse(g)
        assert products.shape == (6, 6, 14)
        for i in range(6):
            for j in range(6):
                a, b = g[i], h[j]
                permutation = [a[int(k)] for k in b[:5]]
                assert products[i, j, :5].tolist() == permutation
                matrix = [
                    math.fsum(float(a[5 + 3 * r + k] * b[5 + 3 * k + c]) for k in range(3))
                    for r in range(3)
                    for c in range(3)
                ]
                assert products[i, j, 5:].tolist() == pytest.approx(matrix, abs=1e-12)
            assert [int(inverses[i, int(k)]) for k in g[i, :5]] == [0, 1, 2, 3, 4]
            assert inverses[i, 5:].view(3, 3).T.flatten().tolist() == g[i, 5:].tolist()

    def test_acts_as_composed(self):
        x, (g, h) = images(6, 5, 3), drawn(CLOUDS, 12).view(2, 6, 14)
        assert_linear(CLOUDS.act(CLOUDS.compose(g, h), x), CLOUDS.act(g, CLOUDS.act(h, x)))
        assert_linear(CLOUDS.act(CLOUDS.inverse(g), CLOUDS.act(g, x)), x)
        assert_exact(CLOUDS.act(CLOUDS.identity, x), x)

    def test_maps_are_permuted_and_not_turned(self):
        m = torch.arange(10.0).view(2, 5, 1)
        y = CLOUDS.act_on_map(vector([2, 0, 4, 1, 3], QUARTER), m)
        assert y.tolist() == [permuted(points, [2, 0, 4, 1, 3]) for points in m.tolist()]

    def test_draws_are_uniform_in_both_parts(self):
        draws = drawn(CLOUDS, 5_000)
        assert draws.shape == (5_000, 14)
        assert_exact(draws[:, :5].sort(1).values, torch.arange(5.0, dtype=torch.float64).expand(5_000, 5))
        assert float((draws[:, :5].mean(0) - 2).abs().max()) < 5 * math.sqrt(2 / 5_000)
        assert float(draws[:, 5:].mean(0).abs().max()) < 5 / math.sqrt(3 * 5_000)

    def test_draws_without_identity(self):
        draws = CLOUDS.sample_non_identity(20, 4, torch.Generator().manual_seed(0))
        assert draws.shape == (4, 20, 14)
        assert len(draws.flatten(0, 1).unique(dim=0)) == 80
        assert not (draws == CLOUDS.identity).all(-1).any()
        assert CLOUDS.sample_non_identity(0, 2).shape == (2, 0, 14)

    def test_draws_follow_rng(self):
        before = torch.get_rng_state()
        first = CLOUDS.sample(5, torch.Generator().manual_seed(1))
        assert_exact(CLOUDS.sample(5, torch.Generator().manual_seed(1)), first)
        assert_exact(torch.get_rng_state(), before)
        assert not torch.equal(CLOUDS.sample(5, torch.Generator().manual_seed(2)), first)
        assert not torch.equal(CLOUDS.sample(5), first)
        assert not torch.equal(torch.get_rng_state(), before)

    def test_gradients(self):
        x = images(2, 5, 3).requires_grad_()
        for g in (drawn(CLOUDS, 1)[0], drawn(CLOUDS, 2)):
            assert torch.autograd.gradcheck(partial(CLOUDS.act, g), x)

    def test_vmap(self):
        x, g = images(3, 2, 5, 3), drawn(CLOUDS, 2)
        looped = torch.stack([CLOUDS.act(g, part) for part in x])
        assert_linear(torch.func.vmap(partial(CLOUDS.act, g))(x), looped)

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        group = SymmetricGroup(5, dim=1) * SpatialRotation()  # which has not acted on such inputs before
        compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
        x = images(2, 5, 3)
        for g in (drawn(group, 1)[0], drawn(group, 2)):
            assert_linear(compiled(g, x), group.act(g, x))


def test_large_permutations_keep_their_numbers():
    """As they must in the dtype that both parts share."""
    n = 3_000
    group = SymmetricGroup(n, dim=1) * SpatialRotation()
    g = drawn(group, 2)
    permutations = torch.stack([torch.randperm(n), torch.randperm(n)])
    g[:, :n] = permutations.double()
    x = torch.arange(2.0 * n * 3, dtype=torch.float64).view(2, n, 3)
    turned_and_moved = group.act(g, x)
    moved = torch.empty_like(x)
    for i in range(2):
        moved[i, permutations[i]] = SpatialRotation().act(g[i, n:].view(3, 3), x[i : i + 1])[0]
    assert_linear(turned_and_moved, moved)
    inverse = torch.empty(2, n, dtype=torch.float64)
    for i in range(2):
        inverse[i, permutations[i]] = torch.arange(n, dtype=torch.float64)
    assert_exact(group.inverse(g)[:, :n], inverse)


class TestWithFiniteGroups:
    @pytest.mark.parametrize("swapped", [False, True], ids=["finite first", "finite second"])
    def test_index_is_one_of_the_numbers(self, swapped):
        group = SpatialRotation() * SignFlip() if swapped else SignFlip() * SpatialRotation()
        assert group.element_shape == (10,)
        assert not isinstance(group, FiniteGroup)
        x, numbers = images(2, 4, 3), [*itertools.chain(*QUARTER)]
        for sign in (0, 1):
            g = torch.tensor([*numbers, sign] if swapped else [sign, *numbers], dtype=torch.float64)
            expected = (
                torch.tensor([turned_points(c, QUARTER) for c in x.tolist()], dtype=torch.float64) * (1, -1)[sign]
            )
            assert_linear(group.act(g, x), expected)
            assert_linear(group.act(g.expand(2, 10), x), expected)
            assert_exact(group.act_on_map(g, x[..., :1]), x[..., :1])
        places = group.sample(60)[:, -1 if swapped else 0]
        assert set(places.tolist()) == {0.0, 1.0}

    def test_colours_and_turns_of_images(self):
        """Two groups that act along other axes."""
        group = SymmetricGroup(3, dim=1) * PlanarRotation()
        x = images(2, 3, 6, 6)
        g = element(2, 0, 1, 0.7)
        expected = each_image(partial(turned, angle=0.7), x)[:, [1, 2, 0]]
        assert_near(group.act(g, x), expected)
        assert group.element_shape == (4,)

    def test_three_factors(self):
        group = SignFlip() * SymmetricGroup(4, dim=1) * SpatialRotation()
        assert group.element_shape == (14,)
        x, (g, h) = images(3, 4, 3), drawn(group, 6).view(2, 3, 14)
        assert_linear(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
        other = SignFlip() * (SymmetricGroup(4, dim=1) * SpatialRotation())
        assert_linear(other.act(g, x), group.act(g, x))
        assert repr(other) != repr(group)

    @pytest.mark.parametrize("wrong", [2.0, -1.0, math.nan])
    def test_no_index(self, wrong):
        with pytest.raises(ValueError, match=r"(SignFlip\(\) has the elements 0 to 1|hold finite numbers)"):
            (SignFlip() * SpatialRotation()).act(
                torch.tensor([wrong, *itertools.chain(*QUARTER)], dtype=torch.float64), torch.zeros(1, 4, 3)
            )

    @pytest.mark.parametrize("wrong", [0.5, 0.999, 1.5])
    def test_no_whole_number(self, wrong):
        """Rounded down, it would act as another element than the one given."""
        group, numbers = SignFlip() * SpatialRotation(), [*itertools.chain(*QUARTER)]
        with pytest.raises(ValueError, match=r"whole|elements"):
            group.act(torch.tensor([wrong, *numbers], dtype=torch.float64), torch.zeros(1, 4, 3))


class TestOfLocalGroups:
    def test_local_if_one_is(self):
        assert (SignFlip() * Translation()).local
        assert (Scaling() * SignFlip()).local
        assert not (SignFlip() * PlanarRotation()).local

    def test_scaled_and_turned(self):
        """About the one middle, in any order."""
        group = Scaling() * PlanarRotation()
        assert group.element_shape == (2,)
        assert group.compose(element(2.0, 1.0), element(0.25, 0.5)).tolist() == pytest.approx([0.5, 1.5])
        assert group.inverse(element(4.0, 1.0)).tolist() == [0.25, -1.0]


class TestRefused:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Translation(), PlanarRotation()),
            (PlanarRotation(), Translation()),
            (Translation(3.0), PlanarRotation(circular_mask=True)),
            (PlanarRotation(), Flip()),
            (Translation(), CyclicRotation(4)),
            (SymmetricGroup(4, dim=1), SymmetricGroup(4, dim=1)),
            (SymmetricGroup(3, dim=1), Flip(1)),
            (SpatialRotation(), SpatialRotation()),
            (SpatialRotation(), Flip(-1)),
        ],
        ids=repr,
    )
    def test_factors_that_do_not_commute(self, first, second):
        expected = (
            rf"^{re.escape(repr(first))} \* {re.escape(repr(second))} is no direct product, whose two actions must "
            r"commute: (an )?element .* of the first and (an )?element .* of the second do not, on samples of shape "
        )
        with pytest.raises(ValueError, match=expected):
            first * second

    @pytest.mark.parametrize(("max_shift", "max_factor"), [(3.0, 1.5), (8.0, 1.5)])
    def test_shifts_and_scalings(self, max_shift, max_factor):
        """Scaled, a shift by three pixels becomes one by 4.5 pixels; much smaller ones do not stand out."""
        with pytest.raises(ValueError, match="is no direct product, whose two actions must commute"):
            Translation(max_shift) * Scaling(max_factor)

    def test_factors_that_commute_on_some_shapes_are_refused_on_the_others(self):
        group = SymmetricGroup(6, dim=1) * PlanarRotation()
        g = group.sample(1)[0]
        group.act(g, images(2, 6, 6, 6))
        with pytest.raises(ValueError, match=r"is no direct product, .* on samples of shape \(6, 6\)"):
            group.act(g, images(2, 6, 6))
        group.act(g, images(2, 6, 6, 6))

    def test_groups_on_axes_that_the_inputs_lack(self):
        group = SymmetricGroup(3, dim=1) * SymmetricGroup(4, dim=4)
        x = images(2, 3, 5, 2, 4)
        g = group.sample(2)
        expected = SymmetricGroup(3, dim=1).act(g[:, :3].long(), SymmetricGroup(4, dim=4).act(g[:, 3:].long(), x))
        assert_exact(group.act(g, x), expected)
        with pytest.raises(ValueError, match=r"SymmetricGroup\(n=4, dim=4\) moves entries along axes \(4,\), which"):
            group.act(g, images(2, 3, 4))
        with pytest.raises(ValueError, match=r"SymmetricGroup\(n=3, dim=1\) permutes 3 entries along axis 1"):
            group.act(g, images(2, 2, 5, 2, 4))

    def test_groups_of_several_tensors(self):
        """Each tensor's own group can be a product, the groups together can not, on tensors."""
        with pytest.raises((TypeError, ValueError), match="OnKeys"):
            (OnKeys({"a": Flip()}) * SignFlip()).act(torch.tensor(1), torch.zeros(1, 2))

    def test_elements(self):
        x = torch.zeros(2, 5, 3)
        bad_permutation, bad_matrix = CLOUDS.identity, CLOUDS.identity
        bad_permutation[0] = 1
        bad_matrix[5] = 2
        with pytest.raises(ValueError, match=r"Elements of SymmetricGroup\(n=5, dim=1\) are permutations"):
            CLOUDS.act(bad_permutation, x)
        with pytest.raises(ValueError, match=r"Elements of SpatialRotation\(\) are rotation matrices"):
            CLOUDS.act(torch.stack([CLOUDS.identity, bad_matrix]), x)
        with pytest.raises(ValueError, match=r"have shape \(14,\), stacks of them .*: got \(13,\)"):
            CLOUDS.compose(CLOUDS.identity, CLOUDS.identity[:13])
        with pytest.raises(ValueError, match=r"one per sample, shape \(2, 14\): got elements of shape \(3, 14\)"):
            CLOUDS.act(CLOUDS.identity.expand(3, 14), x)
        with pytest.raises(TypeError, match=r"are tensors of torch\.float64: got a tensor of torch\.float32"):
            CLOUDS.act(CLOUDS.identity.float(), x)
        assert_exact(CLOUDS.identity, vector([0, 1, 2, 3, 4], torch.eye(3).tolist()))

    @pytest.mark.parametrize("other", [3, None, [1.0]])
    def test_no_group(self, other):
        for product in (lambda: SpatialRotation() * other, lambda: other * SpatialRotation()):
            with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
                product()
        with pytest.raises(TypeError, match=r"^A product is made of two groups: got "):
            DirectProduct(SpatialRotation(), other)


@pytest.mark.parametrize(
    "group",
    [
        CLOUDS,
        SignFlip() * SpatialRotation(),
        SpatialRotation() * SignFlip(),
        SignFlip() * SymmetricGroup(4, dim=1) * SpatialRotation(),
        SignFlip() * (SymmetricGroup(4, dim=1) * SpatialRotation()),
        SymmetricGroup(3, dim=1) * PlanarRotation("bicubic"),
    ],
    ids=repr,
)
def test_values_and_names(group):
    g = group.sample(4)
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), eval(repr(group))):
        assert type(twin) is type(group)
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
        assert_exact(twin.compose(g, g), group.compose(g, g))
    assert group == DirectProduct(group.first, group.second)
    assert group != SignFlip() * SignFlip()
    with pytest.raises(AttributeError):
        group.first = SignFlip()


def test_what_was_checked_is_no_part_of_the_value():
    fresh, used = SymmetricGroup(5, dim=1) * SpatialRotation(), SymmetricGroup(5, dim=1) * SpatialRotation()
    used.act(used.identity, torch.zeros(1, 5, 3))
    assert fresh == used
    assert hash(fresh) == hash(used)


def test_empty_batch():
    empty = torch.zeros(0, 5, 3)
    assert_exact(CLOUDS.act(CLOUDS.identity, empty), empty)
    assert_exact(CLOUDS.act(CLOUDS.sample(0), empty), empty)


def test_clouds_of_many_points_are_drawn_and_measured():
    """1024! is too large a number to multiply by infinity, or to print."""
    group = SymmetricGroup(1024, dim=1) * SpatialRotation()
    assert group.order == math.inf
    x = torch.randn(2, 1024, 3)
    loss = L2InvarianceLoss(group, samples=2)(lambda v: v.square().mean((1, 2))[:, None].expand(-1, 2), x)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match=r"has infinitely many elements, which are not listed"):
        L2InvarianceLoss(group)
    with pytest.raises(ValueError, match=r"SymmetricGroup\(n=2000, dim=1\) has more than 10\^5735 elements, too many"):
        SymmetricGroup(2000).elements()
    with pytest.raises(ValueError, match=r"has more than 10\^5735 elements, which are not listed"):
        L2InvarianceLoss(SymmetricGroup(2000))


def test_subclasses_keep_what_they_override():
    class Reported(DirectProduct):
        def act_on_map(self, g, m):
            return m

    group = Reported(Flip(), SignFlip())
    m = torch.randn(1, 3)
    assert type(group) is Reported
    assert_exact(group.act_on_map(group.identity + 1, m), m)
