"""Does a group act behind a preprocessing step as on what the step returns? Against the steps done by hand."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.distributions import AffineTransform, ExpTransform

from invreg.groups import (
    Conjugated,
    CyclicPermutation,
    CyclicRotation,
    Dihedral,
    FiniteGroup,
    Flip,
    Group,
    PlanarRotation,
    Scaling,
    SignFlip,
    SymmetricGroup,
)
from tests.groups.test_continuous import element, images
from tests.groups.test_laws import GROUP_LAWS
from tests.tolerances import assert_exact, assert_linear


def as_images(x):
    return x.unflatten(1, (2, 4, 4))


def as_rows(x):
    return x.flatten(1)


def halved(x):
    return x / 2


def doubled(x):
    return x * 2


def tripled(x):
    return x * 3


FLAT = Conjugated(Dihedral(4), as_images, as_rows, exact=True)
"""Images of two channels of 4 by 4 pixels, which come as rows of 32 numbers."""

SPREAD = Conjugated(PlanarRotation(), as_images, as_rows)


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
def test_laws(law):
    law(FLAT)


class TestFlattened:
    def test_finite(self):
        x = torch.randn(8, 32)
        for index in range(8):
            turned = torch.rot90(as_images(x).flip(-1) if index >= 4 else as_images(x), index % 4, (-2, -1))
            expected = turned.flatten(1)
            assert_exact(FLAT.act(torch.tensor(index), x), expected)
            assert_exact(FLAT.orbit(x)[index], expected)
            assert_exact(FLAT.act(torch.full((8,), index), x), expected)
            assert_exact(FLAT.act_on_map(torch.tensor(index), x), expected)
            assert_exact(FLAT.realign(torch.tensor(index), expected), x)
        each = torch.stack([FLAT.orbit(x)[index, index] for index in range(8)])
        assert_exact(FLAT.act(torch.arange(8), x), each)

    def test_infinite(self):
        x = images(2, 32)
        for g in (element(0.7), element(0.7, -2.0)[:, None]):
            expected = PlanarRotation().act(g, x.view(2, 2, 4, 4)).flatten(1)
            assert_exact(SPREAD.act(g, x), expected)
            assert_exact(SPREAD.act_on_map(g, x), expected)

    def test_is_finite_where_the_group_is(self):
        assert isinstance(FLAT, FiniteGroup)
        assert isinstance(FLAT, Conjugated)
        assert isinstance(SPREAD, Conjugated)
        assert isinstance(SPREAD, Group)
        assert not isinstance(SPREAD, FiniteGroup)

    def test_elements_are_those_of_the_group(self):
        assert FLAT.order == 8
        assert_exact(FLAT.cayley_table(), Dihedral(4).cayley_table())
        assert_exact(FLAT.inverse(torch.arange(8)), Dihedral(4).inverse(torch.arange(8)))
        assert FLAT.generators().tolist() == [1, 4]
        assert SPREAD.element_shape == (1,)
        assert SPREAD.element_dtype == torch.float64
        assert SPREAD.identity.tolist() == [0.0]
        assert_linear(SPREAD.compose(element(1.0), element(0.5)), element(1.5))
        assert SPREAD.inverse(element(1.0)).tolist() == [-1.0]
        drawn = SPREAD.sample(5, torch.Generator().manual_seed(0))
        assert_exact(drawn, PlanarRotation().sample(5, torch.Generator().manual_seed(0)))
        assert SPREAD.sample_non_identity(3, 2).shape == (2, 3, 1)
        assert not SPREAD.local
        assert Conjugated(Scaling(), as_images, as_rows).local

    def test_in_a_product(self):
        group, x = FLAT * SignFlip(), torch.randn(2, 32)
        assert_exact(group.act(torch.tensor(3), x), -FLAT.act(torch.tensor(1), x))
        with pytest.raises(ValueError, match="is no direct product"):
            (FLAT * CyclicPermutation(32)).act(torch.tensor(33), x)


class TestWithoutInverse:
    """The transforms of torch bring their own."""

    def test_affine(self):
        """Images that were normalised are negated about their mean, and turned as they are."""
        x = 0.5 + 0.25 * images(2, 3, 4, 4)
        group = Conjugated(SignFlip(), AffineTransform(-2.0, 4.0))  # to 4 x - 2, whose zero is at 0.5
        assert_linear(group.act(torch.tensor(1), x), 1 - x)
        assert_linear(group.act(torch.tensor([0, 1]), x), torch.stack([x[0], 1 - x[1]]))
        turns = Conjugated(CyclicRotation(4), AffineTransform(-2.0, 4.0))
        assert_linear(turns.act(torch.tensor(1), x), torch.rot90(x, 1, (-2, -1)))

    def test_exponential(self):
        """A change of sign of the logarithm is the reciprocal."""
        x = images(2, 5).exp()
        for group in (Conjugated(SignFlip(), ExpTransform().inv), Conjugated(SignFlip(), torch.log, torch.exp)):
            assert_linear(group.act(torch.tensor(1), x), 1 / x)

    def test_given_inverse_goes_first(self):
        wrong = Conjugated(SignFlip(), AffineTransform(0.0, 2.0), tripled)
        with pytest.raises(ValueError, match="the inverse must undo the transform"):
            wrong.act(torch.tensor(1), torch.ones(2, 3))

    def test_copies(self):
        group, x = Conjugated(SignFlip(), AffineTransform(-2.0, 4.0)), images(2, 5)
        for twin in (copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
            assert_exact(twin.act(torch.tensor(1), x), group.act(torch.tensor(1), x))
            assert twin == group

    def test_missing(self):
        for transform in (as_images, lambda x: x, torch.exp):
            with pytest.raises(TypeError, match=r"a transform and what undoes it, both callables: got .* and None\."):
                Conjugated(CyclicRotation(4), transform)


class TestExactness:
    @pytest.mark.parametrize(
        ("group", "exact", "expected"),
        [
            (CyclicRotation(4), True, True),
            (CyclicRotation(4), False, False),
            (CyclicRotation(8), True, False),
            (PlanarRotation(), True, False),
            (PlanarRotation(), False, False),
            (SymmetricGroup(3), True, True),
        ],
        ids=repr,
    )
    def test_only_if_both_are(self, group, exact, expected):
        assert Conjugated(group, as_images, as_rows, exact=exact).exact is expected

    def test_not_by_default(self):
        assert Conjugated(CyclicRotation(4), as_images, as_rows).exact is False


class TestWithTorch:
    @pytest.mark.parametrize("group", [FLAT, SPREAD], ids=["finite", "infinite"])
    def test_gradients(self, group):
        x = images(2, 32).requires_grad_()
        for g in (group.sample(1)[0], group.sample(2)):
            assert torch.autograd.gradcheck(partial(group.act, g), x)

    @pytest.mark.parametrize("inner", [Dihedral(4), PlanarRotation()], ids=["finite", "infinite"])
    def test_vmap(self, inner):
        """Also as the first thing that it does."""
        x = images(3, 2, 32)
        for one in (True, False):
            fresh, used = (Conjugated(inner, as_images, as_rows) for _ in range(2))
            g = fresh.sample(1)[0] if one else fresh.sample(2)
            looped = torch.stack([used.act(g, part) for part in x])
            assert_linear(torch.func.vmap(partial(fresh.act, g))(x), looped)

    @pytest.mark.parametrize("inner", [Dihedral(4), PlanarRotation()], ids=["finite", "infinite"])
    def test_compiles_as_one_graph(self, inner):
        torch.compiler.reset()
        group, x = Conjugated(inner, as_images, as_rows), images(2, 32)
        compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (group.sample(1)[0], group.sample(2)):
            assert_linear(compiled(g, x), group.act(g, x))

    def test_every_dtype(self):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool):
            x = (torch.arange(64).view(2, 32) % 5).to(dtype)
            assert_exact(FLAT.act(torch.tensor(1), x), torch.rot90(as_images(x), 1, (-2, -1)).flatten(1))

    def test_empty_batch(self):
        assert FLAT.act(torch.tensor(1), torch.zeros(0, 32)).shape == (0, 32)
        assert FLAT.act(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32)).shape == (0, 32)
        assert FLAT.orbit(torch.zeros(0, 32)).shape == (8, 0, 32)

    def test_input_is_not_written(self):
        x = torch.randn(2, 32)
        before = x.clone()
        FLAT.act(torch.tensor(0), x).zero_()
        FLAT.orbit(x).zero_()
        assert_exact(x, before)


class TestRefused:
    undo = (
        r"^Conjugated\(SignFlip\(\), .*\): the inverse must undo the transform: inputs \(2, 3\), torch\.float32, came "
    )

    def refuse(self, transform, inverse, expected):
        group = Conjugated(SignFlip(), transform, inverse)
        for g in (torch.tensor(1), torch.tensor([0, 1])):
            for act in (group.act, group.act_on_map):
                with pytest.raises(ValueError, match=self.undo + expected):
                    act(g, torch.ones(2, 3))
        with pytest.raises(ValueError, match=self.undo + expected):
            group.orbit(torch.ones(2, 3))

    def test_other_values(self):
        self.refuse(halved, tripled, r"back as \(2, 3\), torch\.float32, with other values\.$")

    def test_other_shape(self):
        self.refuse(halved, lambda x: 2 * x[:, None], r"back as \(2, 1, 3\), torch\.float32\.$")

    def test_other_dtype(self):
        self.refuse(torch.Tensor.double, lambda x: x, r"back as \(2, 3\), torch\.float64\.$")

    def test_no_tensor(self):
        self.refuse(halved, lambda x: None, r"back as NoneType\.$")

    def test_not_a_number(self):
        self.refuse(halved, lambda x: x * torch.nan, r"back as \(2, 3\), torch\.float32, with other values\.$")

    def test_on_each_shape(self):
        """An inverse that is right for the first shape may be wrong for the next."""
        group = Conjugated(SignFlip(), halved, lambda x: x * x.shape[1])
        assert_exact(group.act(torch.tensor(1), torch.ones(3, 2)), -torch.ones(3, 2))
        for _ in range(2):
            with pytest.raises(ValueError, match="the inverse must undo the transform"):
                group.act(torch.tensor(1), torch.ones(2, 3))
        assert_exact(group.act(torch.tensor(1), torch.ones(2, 2)), -torch.ones(2, 2))

    @pytest.mark.parametrize("group", [3, None, CyclicRotation, as_images])
    def test_no_group(self, group):
        with pytest.raises(TypeError, match=r"^Conjugated takes a group: got "):
            Conjugated(group, as_images, as_rows)

    @pytest.mark.parametrize(("transform", "inverse"), [(3, as_rows), (as_images, 3), (None, None), ("inv", as_rows)])
    def test_no_callables(self, transform, inverse):
        with pytest.raises(TypeError, match=r"^Conjugated takes a transform and what undoes it, both callables: got "):
            Conjugated(CyclicRotation(4), transform, inverse)

    def test_elements(self):
        with pytest.raises(ValueError, match=r"has the elements 0 to 7: got 8"):
            FLAT.act(torch.tensor(8), torch.zeros(2, 32))
        with pytest.raises(ValueError, match=r"one per sample, shape \(2,\): got elements of shape \(3,\)"):
            FLAT.act(torch.zeros(3, dtype=torch.int64), torch.zeros(2, 32))
        with pytest.raises(ValueError, match="are finite numbers"):
            SPREAD.act(element(torch.nan), torch.zeros(2, 32))
        with pytest.raises(ValueError, match="acts on batches"):
            FLAT.act(torch.tensor(1), [1.0])

    def test_what_the_group_refuses(self):
        wide = Conjugated(CyclicRotation(4), lambda x: x.unflatten(1, (2, 8)), as_rows)
        with pytest.raises(ValueError, match=r"turns square images: got images of shape \(2, 8\)"):
            wide.act(torch.tensor(1), torch.zeros(2, 16))


def test_values_and_names():
    assert Conjugated(Dihedral(4), as_images, as_rows, exact=True) == FLAT
    assert Conjugated(Dihedral(4), as_images, as_rows) != FLAT
    assert Conjugated(CyclicRotation(4), as_images, as_rows, exact=True) != FLAT
    assert Conjugated(SignFlip(), halved, doubled) != Conjugated(SignFlip(), halved, tripled)
    assert repr(FLAT) == "Conjugated(Dihedral(order=4), as_images, as_rows, exact=True)"
    assert eval(repr(FLAT)) == FLAT
    used = Conjugated(Dihedral(4), as_images, as_rows, exact=True)
    used.act(torch.tensor(1), torch.randn(1, 32))
    assert used == FLAT
    for group in (FLAT, SPREAD):
        for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), copy.copy(group)):
            assert type(twin) is type(group)
            assert twin == group
            assert hash(twin) == hash(group)
            assert repr(twin) == repr(group)
    with pytest.raises(AttributeError):
        FLAT.exact = False


def test_zeros_show_nothing_about_an_inverse():
    group = Conjugated(Flip(), lambda x: 2 * x, lambda x: x)
    group.act(torch.tensor(1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"the inverse must undo the transform: .* with other values"):
        group.act(torch.tensor(1), torch.ones(1, 3))


def test_subclasses_keep_what_they_override():
    class Unmoved(Conjugated):
        def act_on_map(self, g, m):
            return m

    group = Unmoved(Flip(), torch.neg, torch.neg)
    m = torch.randn(1, 3)
    assert_exact(group.act_on_map(torch.tensor(1), m), m)
