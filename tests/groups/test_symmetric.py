"""Do sets, sequences and graphs permute as promised? Against loops over positions."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invreg.groups import FiniteGroup, Group, SymmetricGroup
from tests.groups.test_laws import assert_uniform
from tests.tolerances import assert_exact

ALL_OF_THREE = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def permuted(row: list, permutation: list[int]) -> list:
    """The entry at position ``i`` goes to ``permutation[i]``."""
    result = [None] * len(row)
    for position, entry in enumerate(row):
        result[permutation[position]] = entry
    return result


def relabelled(matrix: list[list], permutation: list[int]) -> list[list]:
    """Node ``i`` becomes node ``permutation[i]``: its row and its column move."""
    n = len(matrix)
    result = [[None] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            result[permutation[i]][permutation[j]] = matrix[i][j]
    return result


def numbered(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (
        (torch.arange(1, math.prod(shape) + 1) % 3 == 0 if dtype == torch.bool else torch.arange(math.prod(shape)))
        .to(dtype)
        .view(shape)
    )


def test_the_oracle_itself():
    assert permuted([10, 20, 30], [1, 2, 0]) == [30, 10, 20]
    assert relabelled([[1, 2], [3, 4]], [1, 0]) == [[4, 3], [2, 1]]


class TestSets:
    @pytest.mark.parametrize("permutation", ALL_OF_THREE, ids=str)
    def test_points_move_to_where_the_permutation_says(self, permutation):
        points = [[10.0, 11.0], [20.0, 21.0], [30.0, 31.0]]
        x, g = torch.tensor([points, points]), torch.tensor(permutation)
        expected = torch.tensor([permuted(points, permutation)] * 2)
        assert_exact(SymmetricGroup(3).act(g, x), expected)
        assert_exact(SymmetricGroup(3).act(g.expand(2, 3), x), expected)

    def test_each_sample_by_its_own(self):
        x = torch.randn(6, 3, 2, 4)
        g = torch.tensor(ALL_OF_THREE)
        expected = [permuted(list(sample), p) for sample, p in zip(x, ALL_OF_THREE, strict=True)]
        assert_exact(SymmetricGroup(3).act(g, x), torch.stack([torch.stack(sample) for sample in expected]))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype(self, dtype):
        x = numbered(dtype, 2, 4, 3)
        permutations = [[2, 0, 3, 1], [3, 2, 1, 0]]
        y = SymmetricGroup(4).act(torch.tensor(permutations), x)
        assert y.dtype == dtype
        assert y.tolist() == [permuted(row, p) for row, p in zip(x.tolist(), permutations, strict=True)]

    @given(data=st.data())
    def test_any_axis_of_any_rank(self, data):
        n, rank = data.draw(st.integers(1, 5), "n"), data.draw(st.integers(1, 4), "rank of a sample")
        axis = data.draw(st.integers(1, rank), "axis")
        sizes = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank), "sizes")
        sizes[axis - 1] = n
        batch = data.draw(st.integers(0, 3), "batch")
        permutations = [data.draw(st.permutations(range(n))) for _ in range(batch)]
        dim = axis - data.draw(st.sampled_from([0, rank + 1]), "counted from the end")
        x = torch.arange(batch * math.prod(sizes)).view(batch, *sizes)
        group, g = SymmetricGroup(n, dim), torch.tensor(permutations, dtype=torch.int64).view(batch, n)
        y = group.act(g, x)
        assert y.shape == x.shape
        for i, p in enumerate(permutations):
            for position in range(n):
                assert_exact(y[i].select(axis - 1, p[position]), x[i].select(axis - 1, position))
            assert_exact(group.act(g[i], x)[i], y[i])

    def test_inputs_that_are_not_contiguous(self):
        group, g = SymmetricGroup(4), torch.stack([torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 3, 0])])
        x = torch.randn(2, 4, 3)
        for y in (
            x.transpose(1, 2).contiguous().transpose(1, 2),
            torch.stack([x, -x], -1)[..., 0],
            torch.cat([-x, x])[2:],
            x[:1].expand(2, 4, 3),
        ):
            assert_exact(group.act(g, y), group.act(g, y.clone(memory_format=torch.contiguous_format)))
            assert_exact(group.act(g[0], y)[:, [2, 0, 3, 1]], y)

    def test_empty_batch(self):
        empty = torch.zeros(0, 3, 2)
        assert_exact(SymmetricGroup(3).act(torch.zeros(0, 3, dtype=torch.int64), empty), empty)
        assert_exact(SymmetricGroup(3).act(torch.tensor([1, 2, 0]), empty), empty)
        assert_exact(SymmetricGroup(3).act(torch.tensor([1, 2, 0]), torch.zeros(2, 3, 0)), torch.zeros(2, 3, 0))

    def test_input_is_not_written(self):
        x = torch.randn(2, 3, 4)
        before = x.clone()
        y = SymmetricGroup(3).act(torch.arange(3), x)
        y.zero_()
        assert_exact(x, before)

    def test_one_entry(self):
        assert_exact(SymmetricGroup(1).act(torch.tensor([0]), torch.ones(2, 1)), torch.ones(2, 1))


class TestGraphs:
    def test_rows_and_columns_are_permuted_alike(self):
        matrices = [[[float(100 * s + 10 * i + j) for j in range(3)] for i in range(3)] for s in range(6)]
        group, x = SymmetricGroup(3, dim=(-2, -1)), torch.tensor(matrices)
        expected = [relabelled(matrix, p) for matrix, p in zip(matrices, ALL_OF_THREE, strict=True)]
        assert group.act(torch.tensor(ALL_OF_THREE), x).tolist() == expected
        for i, p in enumerate(ALL_OF_THREE):
            assert group.act(torch.tensor(p), x)[i].tolist() == expected[i]

    @pytest.mark.parametrize("dim", [(1, 2), (-3, -2), (1, -2), [1, 2], (2, 1)], ids=str)
    def test_edges_with_features(self, dim):
        x = torch.arange(2 * 4 * 4 * 5).view(2, 4, 4, 5)
        p = [2, 0, 3, 1]
        expected = [relabelled(matrix, p) for matrix in x.tolist()]
        assert SymmetricGroup(4, dim).act(torch.tensor(p), x).tolist() == expected

    def test_three_axes(self):
        x, p = torch.randn(1, 3, 3, 3), [1, 2, 0]
        y = SymmetricGroup(3, dim=(1, 2, 3)).act(torch.tensor(p), x)
        for i in range(3):
            for j in range(3):
                for k in range(3):
                    assert float(y[0, p[i], p[j], p[k]]) == float(x[0, i, j, k])

    def test_the_degree_of_a_node_moves_with_it(self):
        adjacency = (torch.rand(5, 6, 6) < 0.4).long()
        g = SymmetricGroup(6).sample(5, torch.Generator().manual_seed(0))
        degrees = SymmetricGroup(6, dim=(1, 2)).act(g, adjacency).sum(2)
        assert_exact(degrees, SymmetricGroup(6).act(g, adjacency.sum(2)))


class TestProducts:
    def test_all_products_of_three(self):
        g = torch.tensor(ALL_OF_THREE)
        table = SymmetricGroup(3).compose(g[:, None], g).tolist()
        for i, a in enumerate(ALL_OF_THREE):
            for j, b in enumerate(ALL_OF_THREE):
                assert table[i][j] == [a[b[position]] for position in range(3)]
                row = ["x", "y", "z"]
                assert permuted(row, table[i][j]) == permuted(permuted(row, b), a)  # b first, a second

    def test_stacks_broadcast(self):
        group = SymmetricGroup(5)
        g, h = group.sample(2), group.sample(3)
        product = group.compose(g[:, None], h)
        assert product.shape == (2, 3, 5)
        for i in range(2):
            for j in range(3):
                assert product[i, j].tolist() == [g[i].tolist()[k] for k in h[j].tolist()]
        assert_exact(group.compose(g[0], h), product[0])
        assert_exact(group.compose(g, h[0]), product[:, 0])
        assert_exact(group.compose(g[0], h[0]), product[0, 0])
        assert group.compose(g[:0], h[0]).shape == (0, 5)

    def test_inverses(self):
        group = SymmetricGroup(5)
        g = group.sample(8).view(2, 4, 5)
        inverses = group.inverse(g)
        assert inverses.shape == (2, 4, 5)
        for p, q in zip(g.flatten(0, 1).tolist(), inverses.flatten(0, 1).tolist(), strict=True):
            assert [q[p[i]] for i in range(5)] == list(range(5))
        assert_exact(group.inverse(g[0, 0]), inverses[0, 0])

    def test_acts_as_composed(self):
        group = SymmetricGroup(6, dim=(1, 2))
        x = torch.randn(20, 6, 6)
        g, h = group.sample(20), group.sample(20)
        assert_exact(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
        assert_exact(group.act(group.inverse(g), group.act(g, x)), x)
        assert_exact(group.act(group.identity, x), x)


class TestElements:
    def test_lexicographic_and_identity_first(self):
        assert SymmetricGroup(3).elements().tolist() == ALL_OF_THREE
        four = SymmetricGroup(4).elements().tolist()
        assert four == sorted(four)
        assert len({tuple(p) for p in four}) == 24
        assert SymmetricGroup(1).elements().tolist() == [[0]]

    @pytest.mark.parametrize("n", [1, 2, 5, 20])
    def test_order_and_identity(self, n):
        group = SymmetricGroup(n)
        assert group.order == math.prod(range(1, n + 1))
        assert group.identity.tolist() == list(range(n))
        assert group.element_shape == (n,)
        assert group.element_dtype == group.identity.dtype == torch.int64
        assert group.exact
        assert not group.local
        assert isinstance(group, Group)
        assert not isinstance(group, FiniteGroup)  # which would list them

    def test_eight_are_listed(self):
        assert SymmetricGroup(8).elements().shape == (40_320, 8)

    @pytest.mark.parametrize("n", [9, 20])
    def test_more_are_not_listed(self, n):
        expected = (
            rf"^SymmetricGroup\(n={n}, dim=1\) has {math.factorial(n)} elements, too many to list\. Draw some with "
            r"sample\(\), or set samples= in a loss or an audit\.$"
        )
        with pytest.raises(ValueError, match=expected):
            SymmetricGroup(n).elements()


def indices_of(draws: torch.Tensor) -> torch.Tensor:
    """Which of the permutations of three each is."""
    flat = [ALL_OF_THREE.index(p) for p in draws.reshape(-1, 3).tolist()]
    return torch.tensor(flat).view(draws.shape[:-1])


class TestDraws:
    def test_uniform(self):
        draws = SymmetricGroup(3).sample(6_000, torch.Generator().manual_seed(0))
        assert draws.shape == (6_000, 3)
        assert draws.dtype == torch.int64
        assert_uniform(indices_of(draws), 6)

    def test_each_entry_goes_everywhere(self):
        draws = SymmetricGroup(20).sample(4_000, torch.Generator().manual_seed(0))
        assert_exact(draws.sort(1).values, torch.arange(20).expand(4_000, 20))
        for position in range(20):
            assert_uniform(draws[:, position], 20)

    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_without_identity(self, k):
        draws = indices_of(SymmetricGroup(3).sample_non_identity(2_000, k, torch.Generator().manual_seed(k)))
        assert draws.shape == (k, 2_000)
        assert int(draws.min()) > 0
        assert all(len(set(column)) == k for column in draws.T.tolist())
        for position in draws:
            assert_uniform(position - 1, 5)

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_all_but_the_identity(self, n):
        group = SymmetricGroup(n)
        k = math.factorial(n) - 1
        draws = group.sample_non_identity(3, k, torch.Generator().manual_seed(0))
        for sample in range(3):
            assert sorted(draws[:, sample].tolist()) == group.elements()[1:].tolist()

    def test_without_identity_among_many(self):
        """Six identities would be expected among so many draws of seven, if they were not left out."""
        draws = SymmetricGroup(7).sample_non_identity(30_000, 1, torch.Generator().manual_seed(0))
        assert draws.shape == (1, 30_000, 7)
        assert not (draws == torch.arange(7)).all(-1).any()

    def test_without_repeats_among_many(self):
        """Some 170 repeats would be expected."""
        draws = SymmetricGroup(7).sample_non_identity(2_000, 30, torch.Generator().manual_seed(0))
        codes = (draws * 7 ** torch.arange(7)).sum(-1).sort(0).values
        assert bool((codes[1:] > codes[:-1]).all())
        assert_exact(draws.sort(-1).values, torch.arange(7).expand(30, 2_000, 7))

    @pytest.mark.parametrize("n", [4, 8])
    def test_follow_rng(self, n):
        group = SymmetricGroup(n)
        for draw in (lambda rng: group.sample(20, rng), lambda rng: group.sample_non_identity(20, 2, rng)):
            torch.manual_seed(4)
            before = torch.get_rng_state()
            drawn = draw(torch.Generator().manual_seed(5))
            assert_exact(draw(torch.Generator().manual_seed(5)), drawn)
            assert not torch.equal(draw(torch.Generator().manual_seed(6)), drawn)
            assert_exact(torch.get_rng_state(), before)
            torch.manual_seed(5)
            assert_exact(draw(None), drawn)

    def test_none(self):
        assert SymmetricGroup(3).sample(0).shape == (0, 3)
        for n in (3, 8):
            assert SymmetricGroup(n).sample_non_identity(0, 2).shape == (2, 0, n)

    @pytest.mark.parametrize(("n", "k"), [(3, 6), (3, 7), (3, 0), (3, -1), (1, 1), (7, 5_040), (7, 0)])
    def test_more_than_there_are(self, n, k):
        expected = rf"has {math.factorial(n) - 1} non-identity elements: cannot draw {k} different ones per sample\."
        with pytest.raises(ValueError, match=expected):
            SymmetricGroup(n).sample_non_identity(2, k)


class TestMaps:
    def test_move_with_the_entries(self):
        group, g, m = SymmetricGroup(3), torch.tensor([1, 2, 0]), torch.randn(2, 3, 1)
        assert_exact(group.act_on_map(g, m), torch.stack([m[:, 2], m[:, 0], m[:, 1]], 1))
        assert_exact(group.act_on_map(g.expand(2, 3), m), group.act_on_map(g, m))
        assert_exact(group.realign(g, group.act_on_map(g, m)), m)

    def test_summed_away(self):
        m = torch.randn(2, 1, 4)
        assert_exact(SymmetricGroup(3).act_on_map(torch.tensor([1, 2, 0]), m), m)
        assert_exact(SymmetricGroup(3).act_on_map(torch.tensor([[1, 2, 0], [0, 2, 1]]), m), m)

    def test_of_a_graph_with_one_axis_summed_away(self):
        m, p = torch.randn(2, 3, 1), [1, 2, 0]
        expected = torch.tensor([permuted(rows, p) for rows in m.tolist()])
        assert_exact(SymmetricGroup(3, dim=(-2, -1)).act_on_map(torch.tensor(p), m), expected)
        assert_exact(SymmetricGroup(3, dim=(-2, -1)).act_on_map(torch.tensor(p), m.mT), expected.mT)

    def test_of_another_size(self):
        with pytest.raises(ValueError, match=r"permutes 3 entries along axis"):
            SymmetricGroup(3).act_on_map(torch.tensor([1, 2, 0]), torch.randn(2, 4))


@pytest.mark.parametrize("dim", [1, (1, 2)], ids=str)
class TestWithTorch:
    def test_gradient_flows_back_by_the_inverse(self, dim):
        group = SymmetricGroup(4, dim)
        weight = torch.randn(3, 4, 4, dtype=torch.float64)
        for g in (group.sample(1)[0], group.sample(3)):
            x = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(group.act(g, x), x, weight)
            assert_exact(gradient, group.act(group.inverse(g), weight))
            assert torch.autograd.gradcheck(partial(group.act, g), x)

    def test_vmap(self, dim):
        group = SymmetricGroup(4, dim)
        x = torch.randn(2, 3, 4, 4)
        for g in (group.sample(1)[0], group.sample(3)):
            assert_exact(torch.func.vmap(partial(group.act, g))(x), torch.stack([group.act(g, part) for part in x]))

    def test_compiles_as_one_graph(self, dim):
        torch.compiler.reset()
        group = SymmetricGroup(4, dim)
        compiled = torch.compile(lambda g, x: group.act(g, x), fullgraph=True, backend="aot_eager")
        for g in (*group.sample(2), group.sample(3)):
            x, y = (torch.ones(3, 4, 4).cumsum(-1).cumsum(-2).requires_grad_() for _ in range(2))
            assert_exact(compiled(g, x), group.act(g, y))
            compiled(g, x).square().sum().backward()
            group.act(g, y).square().sum().backward()
            assert_exact(x.grad, y.grad)

    def test_meta_device(self, dim):
        x = torch.empty(3, 4, 4, device="meta")
        assert SymmetricGroup(4, dim).act(torch.arange(4), x).device.type == "meta"


METHODS = {
    "compose-left": lambda group, g: group.compose(g, group.identity),
    "compose-right": lambda group, g: group.compose(group.identity, g),
    "inverse": lambda group, g: group.inverse(g),
    "act": lambda group, g: group.act(g, torch.zeros(2, 3)),
    "act_on_map": lambda group, g: group.act_on_map(g, torch.zeros(2, 3)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestElementsRefused:
    one = r"Elements of SymmetricGroup\(n=3, dim=1\) are permutations, which hold each of 0 to 2 once: got "

    @pytest.mark.parametrize("g", [[0, 0, 1], [0, 1, 3], [-1, 0, 1], [1, 2, 3], [0, 1, 2**40]], ids=str)
    def test_no_permutation(self, method, g):
        with pytest.raises(ValueError, match=self.one + r"one that does not\.$"):
            method(SymmetricGroup(3), torch.tensor(g))

    @pytest.mark.parametrize("g", [[0, 0, 1], [0, 1, 3], [-1, 0, 1]], ids=str)
    def test_no_permutation_in_a_stack(self, method, g):
        with pytest.raises(ValueError, match=self.one + r"a stack of shape \(2, 3\) in which one does not\.$"):
            method(SymmetricGroup(3), torch.tensor([[0, 1, 2], g]))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool], ids=str)
    def test_dtype(self, method, dtype):
        expected = rf"SymmetricGroup\(n=3, dim=1\) are tensors of torch\.int64: got a tensor of {dtype}\."
        with pytest.raises(TypeError, match=expected):
            method(SymmetricGroup(3), torch.arange(3).to(dtype))

    def test_list(self, method):
        with pytest.raises(TypeError, match=r"are tensors of torch\.int64: got list\."):
            method(SymmetricGroup(3), [0, 1, 2])

    @pytest.mark.parametrize("shape", [(4,), (2,), (), (2, 4), (3, 1)], ids=str)
    def test_length(self, method, shape):
        expected = rf"have shape \(3,\), stacks of them \(\.\.\., \*\(3,\)\): got {re.escape(str(shape))}\."
        with pytest.raises(ValueError, match=expected):
            method(SymmetricGroup(3), torch.zeros(shape, dtype=torch.int64))


class TestRefused:
    @pytest.mark.parametrize("n", [0, -1, 2.0, "3", None])
    def test_number_of_entries(self, n):
        expected = rf"^SymmetricGroup takes the number of entries, 1 or more: got {re.escape(repr(n))}\.$"
        with pytest.raises(ValueError, match=expected):
            SymmetricGroup(n)

    @pytest.mark.parametrize("dim", [0, (0,), (1, 0)], ids=str)
    def test_batch_axis(self, dim):
        with pytest.raises(ValueError, match=r"moves entries within a sample: got dim .*; 0 is the batch axis\."):
            SymmetricGroup(3, dim)

    @pytest.mark.parametrize("dim", [(), [], 1.0, "1", None, (1, 2.0)], ids=repr)
    def test_no_axis(self, dim):
        with pytest.raises(TypeError, match=r"^SymmetricGroup takes an axis as dim, or a tuple of axes: got "):
            SymmetricGroup(3, dim)

    def test_one_axis_twice(self):
        """It would be permuted twice, which is no action: (gh)(gh) is not gghh."""
        g, x = torch.tensor([1, 2, 0]), torch.zeros(2, 3)
        for dim in ((1, 1), (1, -1), (-1, -1)):
            with pytest.raises(ValueError, match=r"axis|axes"):
                SymmetricGroup(3, dim).act(g, x)

    @pytest.mark.parametrize(
        ("dim", "shape"), [(1, (2,)), (3, (2, 3, 3)), (-3, (2, 3)), (-2, (3, 3)), ((1, 2), (2, 3))]
    )
    def test_axis_that_the_inputs_lack(self, dim, shape):
        group = SymmetricGroup(3, dim)
        expected = rf"{re.escape(repr(group))} moves entries along axes .*, which must exist and not be the batch axis"
        for act in (group.act, group.act_on_map):
            with pytest.raises(ValueError, match=expected + rf" 0: got inputs of shape {re.escape(str(shape))}\."):
                act(torch.tensor([1, 2, 0]), torch.zeros(shape))

    @pytest.mark.parametrize(("dim", "shape"), [(1, (2, 4)), ((1, 2), (2, 3, 4)), ((1, 2), (2, 4, 3)), (-1, (2, 3, 2))])
    def test_axis_of_another_size(self, dim, shape):
        group = SymmetricGroup(3, dim)
        expected = (
            rf"^{re.escape(repr(group))} permutes 3 entries along axis {re.escape(str(dim))}: got inputs of shape "
            rf"{re.escape(str(shape))}\. Set n to the number of entries, or dim to their axis\.$"
        )
        for g in (torch.tensor([1, 2, 0]), torch.tensor([[1, 2, 0]] * 2)):
            with pytest.raises(ValueError, match=expected):
                group.act(g, torch.zeros(shape))

    def test_number_of_elements(self):
        expected = r"one element, shape \(3,\), or by one per sample, shape \(2, 3\): got elements of shape \(4, 3\)"
        with pytest.raises(ValueError, match=expected):
            SymmetricGroup(3).act(torch.arange(3).expand(4, 3), torch.zeros(2, 3))

    def test_not_a_batch(self):
        with pytest.raises(ValueError, match=r"acts on batches, tensors of shape \(N, \.\.\.\): got list"):
            SymmetricGroup(3).act(torch.arange(3), [1.0, 2.0, 3.0])


def test_values_and_names():
    assert SymmetricGroup(3) == SymmetricGroup(3, 1) == SymmetricGroup(n=3, dim=1)
    assert SymmetricGroup(3, [-2, -1]) == SymmetricGroup(3, (-2, -1))
    assert SymmetricGroup(3) != SymmetricGroup(4)
    assert SymmetricGroup(3) != SymmetricGroup(3, -1)
    assert len({SymmetricGroup(3), SymmetricGroup(3), SymmetricGroup(3, [1, 2])}) == 2
    assert repr(SymmetricGroup(3, (-2, -1))) == "SymmetricGroup(n=3, dim=(-2, -1))"
    for group in (SymmetricGroup(3), SymmetricGroup(4, [1, 2])):
        for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), eval(repr(group))):
            assert twin == group
            assert hash(twin) == hash(group)
    with pytest.raises(AttributeError):
        SymmetricGroup(3).n = 2
