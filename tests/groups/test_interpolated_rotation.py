"""Do rotations by fractions of a quarter turn interpolate as promised? Against loops over pixels and closed forms."""

import copy
import pickle
import re
from functools import partial
from math import pi

import numpy as np
import pytest
import torch

from invreg.groups import CyclicRotation, Dihedral, FiniteGroup, PlanarRotation
from tests.groups.test_continuous import ROTATION_ERRORS, SIDES, assert_near, blob, each_image, images, turned
from tests.groups.test_laws import GROUP_LAWS
from tests.tolerances import assert_exact, assert_linear

ORDERS = [3, 5, 6, 8, 12]
GROUPS = [family(n) for family in (CyclicRotation, Dihedral) for n in ORDERS]

every_order = pytest.mark.parametrize("n", ORDERS)
every_group = pytest.mark.parametrize("group", GROUPS, ids=repr)


def turned_by_element(image: np.ndarray, index: int, n: int) -> np.ndarray:
    """Of ``2 n`` elements: mirrored left and right first, if so, then turned counter-clockwise."""
    return turned(image[:, ::-1] if index >= n else image, 2 * pi * (index % n) / n)


# -------------------------------------------------------------------------------------------------------- as a group


@every_order
def test_table_of_the_rotations(n):
    table = [[(i + j) % n for j in range(n)] for i in range(n)]
    assert CyclicRotation(n).cayley_table().tolist() == table
    assert CyclicRotation(n).inverse(torch.arange(n)).tolist() == [(n - i) % n for i in range(n)]
    assert CyclicRotation(n).order == CyclicRotation(n).rotations == n


@every_order
def test_table_with_mirrors(n):
    """With r a turn and m the mirror, m r = r⁻¹ m."""

    def product(g: int, h: int) -> int:
        (mirrored_g, i), (mirrored_h, j) = divmod(g, n), divmod(h, n)
        return n * (mirrored_g ^ mirrored_h) + (i - j if mirrored_g else i + j) % n

    group = Dihedral(n)
    assert group.cayley_table().tolist() == [[product(g, h) for h in range(2 * n)] for g in range(2 * n)]
    assert group.inverse(torch.arange(2 * n)).tolist() == [(n - i) % n for i in range(n)] + list(range(n, 2 * n))
    assert (group.order, group.rotations) == (2 * n, n)


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("group", [CyclicRotation(3), CyclicRotation(8), Dihedral(3), Dihedral(6)], ids=repr)
def test_laws(law, group):
    law(group)


@every_group
def test_generators_make_all_elements(group):
    found = {0}
    while True:
        new = {int(group.compose(torch.tensor(i), g)) for i in found for g in group.generators()}
        if new <= found:
            break
        found |= new
    assert found == set(range(group.order))


@every_group
def test_not_exact(group):
    assert group.exact is False
    assert not group.local
    assert isinstance(group, FiniteGroup)


# ------------------------------------------------------------------------------------------------------- as an action


@pytest.mark.parametrize("sizes", [(5, 5), (6, 6), (4, 7)], ids=str)
@every_order
def test_by_pixels(n, sizes):
    x = images(1, 2, *sizes)
    rotations, dihedral = CyclicRotation(n), Dihedral(n)
    for index in range(2 * n):
        expected = each_image(partial(turned_by_element, index=index, n=n), x)
        assert_near(dihedral.act(torch.tensor(index), x), expected)
        assert_near(dihedral.orbit(x)[index], expected)
        if index < n:
            assert_near(rotations.act(torch.tensor(index), x), expected)
            assert_near(rotations.orbit(x)[index], expected)


@pytest.mark.parametrize("sizes", [(5, 5), (4, 7)], ids=str)
@every_order
def test_as_a_rotation_by_an_angle(n, sizes):
    """In double precision up to its rounding."""
    x = images(2, 3, *sizes)
    for index in range(n):
        angle = torch.tensor([2 * pi * index / n], dtype=torch.float64)
        expected = PlanarRotation().act(angle, x)
        assert_linear(CyclicRotation(n).act(torch.tensor(index), x), expected)
        assert_linear(CyclicRotation(n).act(torch.tensor([index, index]), x), expected)
        mirrored = PlanarRotation().act(angle, x.flip(-1))
        assert_linear(Dihedral(n).act(torch.tensor(n + index), x), mirrored)


@pytest.mark.parametrize("side", [5, 6])
@pytest.mark.parametrize("n", [6, 8, 12])
def test_quarter_and_half_turns_and_mirrors_move_pixels(n, side):
    x = torch.randn(2, 3, side, side)
    for quarters in range(4):
        index, rest = divmod(quarters * n, 4)
        if rest:
            continue
        rotated, mirrored = torch.rot90(x, quarters, (-2, -1)), torch.rot90(x.flip(-1), quarters, (-2, -1))
        assert_exact(CyclicRotation(n).act(torch.tensor(index), x), rotated)
        assert_exact(CyclicRotation(n).orbit(x)[index], rotated)
        assert_exact(Dihedral(n).act(torch.tensor(index), x), rotated)
        assert_exact(Dihedral(n).act(torch.tensor(n + index), x), mirrored)
        assert_exact(Dihedral(n).orbit(x)[n + index], mirrored)


@pytest.mark.parametrize("n", [6, 8])
def test_half_turns_and_mirrors_move_pixels_of_any_image(n):
    x = torch.randn(2, 3, 4, 7)
    assert_exact(CyclicRotation(n).act(torch.tensor(n // 2), x), x.flip((-2, -1)))
    assert_exact(Dihedral(n).act(torch.tensor(n), x), x.flip(-1))
    assert_exact(Dihedral(n).act(torch.tensor(n + n // 2), x), x.flip(-2))


@every_group
def test_identity_changes_nothing(group):
    x = torch.randn(3, 2, 4, 7)
    assert_exact(group.act(group.identity, x), x)
    assert_exact(group.orbit(x)[0], x)
    assert_linear(group.act(group.identity.expand(3), x), x)


@every_group
def test_each_sample_as_alone(group):
    g = group.elements().repeat_interleave(2)
    x = torch.randn(len(g), 2, 5, 5)
    for dtype in (torch.float64, torch.float32):
        alone = torch.cat([group.act(g[i], x[i : i + 1].to(dtype)) for i in range(len(g))])
        assert_linear(group.act(g, x.to(dtype)), alone)


@every_group
def test_acts_as_composed_at_finer_resolution(group):
    """Within the errors of two rotations by any angles."""
    rng = torch.Generator().manual_seed(0)
    for side, bound in zip(SIDES, ROTATION_ERRORS["bilinear"], strict=True):
        x = blob(side)
        for _ in range(8):
            g, h = group.sample(2, rng)
            once, twice = group.act(group.compose(g, h), x), group.act(g, group.act(h, x))
            assert float((once - twice).norm()) < bound * float(x.norm())


def test_elements_differ():
    x = blob(16)
    orbit = Dihedral(12).orbit(x).flatten(1)
    assert float(torch.cdist(orbit, orbit).fill_diagonal_(torch.inf).min()) > 0.2 * float(x.norm())


@pytest.mark.parametrize("order", [1, 2, 4])
def test_other_orders_stay_exact(order):
    x = torch.randn(2, 3, 5, 5)
    assert CyclicRotation(order).exact is True
    assert Dihedral(order).exact is True
    for index in range(order):
        rotated = torch.rot90(x, index * 4 // order, (-2, -1))
        mirrored = torch.rot90(x.flip(-1), index * 4 // order, (-2, -1))
        assert_exact(CyclicRotation(order).act(torch.tensor(index), x), rotated)
        assert_exact(CyclicRotation(order).act(torch.tensor([index] * 2), x), rotated)
        assert_exact(Dihedral(order).act(torch.tensor(order + index), x), mirrored)
        assert_exact(Dihedral(order).act(torch.tensor([order + index] * 2), x), mirrored)
        assert_exact(Dihedral(order).orbit(x)[order + index], mirrored)


@pytest.mark.parametrize("group", [CyclicRotation(8), Dihedral(3)], ids=repr)
class TestWithTorch:
    def test_maps(self, group):
        m = images(2, 1, 5, 5)
        for g in (*group.elements(), torch.tensor([1, 2])):
            assert_exact(group.act_on_map(g, m), group.act(g, m))
            assert_exact(group.realign(g, m), group.act(group.inverse(g), m))
        summed = images(2, 3, 1, 1)
        assert_exact(group.act_on_map(torch.tensor(1), summed), summed)
        assert_exact(group.act_on_map(torch.tensor([1, 2]), summed), summed)

    def test_half_precision_computes_in_float32(self, group):
        for dtype in (torch.float16, torch.bfloat16):
            x = images(group.order, 2, 9, 9).to(dtype)
            assert_exact(group.act(group.elements(), x), group.act(group.elements(), x.float()).to(dtype))
            assert_exact(group.orbit(x), group.orbit(x.float()).to(dtype))

    def test_default_dtype_changes_nothing(self, group):
        x = images(group.order, 2, 9, 9)
        expected = group.act(group.elements(), x)
        torch.set_default_dtype(torch.float16)
        try:
            assert_exact(group.act(group.elements(), x), expected)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_gradients(self, group):
        x = images(2, 1, 4, 4).requires_grad_()
        for g in (torch.tensor(1), torch.tensor([1, group.order - 1])):
            assert torch.autograd.gradcheck(partial(group.act, g), x)
        assert torch.autograd.gradcheck(group.orbit, x)

    def test_compiles_as_one_graph(self, group):
        torch.compiler.reset()
        x = images(2, 2, 5, 5)
        compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (torch.tensor(0), torch.tensor(1), torch.tensor([1, group.order - 1])):
            assert_linear(compiled(g, x), group.act(g, x))

    def test_vmap(self, group):
        x = images(3, 2, 1, 5, 5)
        for g in (torch.tensor(1), torch.tensor([1, 2])):
            looped = torch.stack([group.act(g, part) for part in x])
            assert_linear(torch.func.vmap(partial(group.act, g))(x), looped)

    def test_empty_batch(self, group):
        empty = torch.zeros(0, 2, 5, 5)
        assert_exact(group.act(torch.tensor(1), empty), empty)
        assert_exact(group.act(torch.zeros(0, dtype=torch.int64), empty), empty)
        assert group.orbit(empty).shape == (group.order, 0, 2, 5, 5)

    def test_input_is_not_written(self, group):
        x = images(group.order, 1, 5, 5)
        before = x.clone()
        for g in (*group.elements(), group.elements()):
            group.act(g, x).zero_()
        group.orbit(x).zero_()
        assert_exact(x, before)


class TestRefused:
    @pytest.mark.parametrize("family", [CyclicRotation, Dihedral])
    @pytest.mark.parametrize("order", [0, -1, -4, 1.5, 4.0, "4", None])
    def test_order(self, family, order):
        expected = rf"^{family.__name__} takes an order of 1 or more: got {re.escape(repr(order))}\.$"
        with pytest.raises(ValueError, match=expected):
            family(order)

    @pytest.mark.parametrize("group", [CyclicRotation(8), Dihedral(3)], ids=repr)
    def test_whole_numbers(self, group):
        """By every element, also by those that only move pixels."""
        x = torch.zeros(2, 4, 4, dtype=torch.int64)
        expected = rf"^{re.escape(repr(group))} interpolates .* must be floating point: got torch\.int64\. Use x\.float"
        for g in (*group.elements(), torch.tensor([0, 1])):
            with pytest.raises(ValueError, match=expected):
                group.act(g, x)
        with pytest.raises(ValueError, match=expected):
            group.orbit(x)

    @pytest.mark.parametrize("group", [CyclicRotation(8), Dihedral(3)], ids=repr)
    @pytest.mark.parametrize("shape", [(3,), (4, 4)], ids=str)
    def test_no_images(self, group, shape):
        expected = (
            rf"{re.escape(repr(group))} moves entries along axes \(-2, -1\), which must exist and not be the batch "
            rf"axis 0: got inputs of shape {re.escape(str(shape))}\."
        )
        for g in (torch.tensor(1), torch.zeros(shape[0], dtype=torch.int64)):
            with pytest.raises(ValueError, match=expected):
                group.act(g, torch.zeros(shape))

    @pytest.mark.parametrize("group", [CyclicRotation(8), Dihedral(4)], ids=repr)
    @pytest.mark.parametrize("index", [-1, 8])
    def test_element(self, group, index):
        with pytest.raises(ValueError, match=rf"has the elements 0 to 7: got {index}\."):
            group.act(torch.tensor(index), torch.zeros(2, 4, 4))


def test_values_and_names():
    assert CyclicRotation(8) == CyclicRotation(order=8) != CyclicRotation(4)
    assert Dihedral(3) != Dihedral(6) != CyclicRotation(6)
    assert repr(CyclicRotation(8)) == "CyclicRotation(order=8)"
    assert repr(Dihedral(3)) == "Dihedral(order=3)"
    for group in GROUPS:
        for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), eval(repr(group))):
            assert twin == group
            assert hash(twin) == hash(group)
