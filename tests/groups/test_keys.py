"""Does one element act on all tensors of an input alike? Against each tensor's own group, by hand."""

import copy
import math
import pickle
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from invreg.groups import (
    Conjugated,
    CyclicPermutation,
    CyclicRotation,
    Dihedral,
    FiniteGroup,
    Flip,
    Group,
    OnKeys,
    PlanarRotation,
    Restricted,
    Scaling,
    SignFlip,
    SpatialRotation,
    SymmetricGroup,
    Translation,
    Trivial,
)
from invreg.losses import L2InvarianceLoss
from tests.groups.test_continuous import element, images
from tests.groups.test_laws import GROUP_LAWS
from tests.tolerances import assert_exact, assert_linear

SQUARES = OnKeys({"image": Dihedral(4), "mask": Dihedral(4)})
GRAPHS = OnKeys({"nodes": SymmetricGroup(4, dim=1), "adjacency": SymmetricGroup(4, dim=(1, 2))})
TURNS = OnKeys({"image": PlanarRotation(), "mask": PlanarRotation("nearest")})


class Graph(NamedTuple):
    nodes: Tensor
    adjacency: Tensor
    label: Tensor


def square_batch(n: int = 8) -> dict[str, Tensor]:
    return {"image": torch.randn(n, 3, 5, 5), "mask": torch.randint(4, (n, 5, 5)), "label": torch.arange(n)}


def graph_batch(n: int = 3) -> dict[str, Tensor]:
    return {"nodes": torch.randn(n, 4, 6), "adjacency": torch.randint(2, (n, 4, 4)), "label": torch.arange(n)}


def symmetric(index: int, x: Tensor) -> Tensor:
    return torch.rot90(x.flip(-1) if index >= 4 else x, index % 4, (-2, -1))


@pytest.mark.parametrize("law", GROUP_LAWS, ids=lambda law: law.__name__)
def test_laws(law):
    law(SQUARES)


class TestFinite:
    def test_one_element(self):
        batch = square_batch()
        for index in range(8):
            y = SQUARES.act(torch.tensor(index), batch)
            assert list(y) == ["image", "mask", "label"]
            assert_exact(y["image"], symmetric(index, batch["image"]))
            assert_exact(y["mask"], symmetric(index, batch["mask"]))
            assert y["label"] is batch["label"]

    def test_one_per_sample(self):
        batch = square_batch()
        y = SQUARES.act(torch.arange(8), batch)
        for index in range(8):
            assert_exact(y["image"][index], symmetric(index, batch["image"][index]))
            assert_exact(y["mask"][index], symmetric(index, batch["mask"][index]))
        assert_exact(y["label"], batch["label"])

    def test_orbit(self):
        batch = square_batch(2)
        orbit, others = SQUARES.orbit(batch), SQUARES.orbit(batch, identity=False)
        assert {key: tuple(entry.shape) for key, entry in orbit.items()} == {
            "image": (8, 2, 3, 5, 5),
            "mask": (8, 2, 5, 5),
            "label": (8, 2),
        }
        for index in range(8):
            y = SQUARES.act(torch.tensor(index), batch)
            for key in batch:
                assert_exact(orbit[key][index], y[key])
        for key in batch:
            assert_exact(others[key], orbit[key][1:])

    def test_facts(self):
        assert isinstance(SQUARES, FiniteGroup)
        assert SQUARES.order == 8
        assert SQUARES.exact
        assert not SQUARES.local
        assert_exact(SQUARES.cayley_table(), Dihedral(4).cayley_table())
        assert_exact(SQUARES.generators(), Dihedral(4).generators())
        assert not OnKeys({0: CyclicRotation(4), 1: Restricted(PlanarRotation(), [[torch.pi / 2]])}).exact

    def test_maps(self):
        group = OnKeys({"image": CyclicRotation(2) * SignFlip(), "scores": SignFlip() * Flip()})
        batch = {"image": torch.randn(2, 1, 3, 3), "scores": torch.randn(2, 5)}
        turned = group.act_on_map(torch.tensor(3), batch)
        assert_exact(turned["image"], batch["image"].flip((-2, -1)))  # the sign changes no map
        assert_exact(turned["scores"], batch["scores"].flip(-1))
        back = group.realign(torch.tensor(3), turned)
        assert_exact(back["image"], batch["image"])
        assert_exact(back["scores"], batch["scores"])

    def test_groups_of_other_kinds_with_the_same_products(self):
        """A turn of the image that shifts its four labels, and the same image flattened."""
        flat = Conjugated(CyclicRotation(4), lambda x: x.unflatten(1, (3, 3)), lambda x: x.flatten(1), exact=True)
        group = OnKeys({"image": CyclicRotation(4), "flat": flat, "labels": CyclicPermutation(4)})
        image, labels = torch.randn(2, 3, 3), torch.randn(2, 4)
        y = group.act(torch.tensor(1), {"image": image, "flat": image.flatten(1), "labels": labels})
        assert_exact(y["image"], torch.rot90(image, 1, (-2, -1)))
        assert_exact(y["flat"].view(2, 3, 3), y["image"])
        assert_exact(y["labels"], labels.roll(1, 1))

    def test_empty_batch(self):
        empty = square_batch(0)
        for g in (torch.tensor(1), torch.zeros(0, dtype=torch.int64)):
            assert {key: y.shape for key, y in SQUARES.act(g, empty).items()} == {k: x.shape for k, x in empty.items()}
        assert SQUARES.orbit(empty)["image"].shape == (8, 0, 3, 5, 5)


class TestInfinite:
    def test_graphs(self):
        """Nodes and the rows and columns of the adjacency matrix, by loops."""
        batch, permutations = graph_batch(), [[1, 2, 3, 0], [0, 1, 3, 2], [3, 2, 1, 0]]
        y = GRAPHS.act(torch.tensor(permutations), batch)
        for n, p in enumerate(permutations):
            alone = GRAPHS.act(torch.tensor(p), batch)
            for i in range(4):
                assert_exact(y["nodes"][n, p[i]], batch["nodes"][n, i])
                for j in range(4):
                    assert int(y["adjacency"][n, p[i], p[j]]) == int(batch["adjacency"][n, i, j])
            assert_exact(alone["nodes"][n], y["nodes"][n])
            assert_exact(alone["adjacency"][n], y["adjacency"][n])
        assert y["label"] is batch["label"]

    def test_a_mask_turns_with_its_image(self):
        """And stays whole numbers."""
        mask = torch.zeros(2, 16, 16, dtype=torch.int64)
        mask[:, 3:9, 6:12] = 7
        batch = {"image": mask[:, None].double(), "mask": mask}
        for g in (element(0.7), element(0.7, -2.1)[:, None]):
            y = TURNS.act(g, batch)
            assert y["mask"].dtype == torch.int64
            assert set(y["mask"].unique().tolist()) == {0, 7}
            assert_exact(y["image"], PlanarRotation().act(g, batch["image"]))
            assert_exact(y["mask"], PlanarRotation("nearest").act(g, mask))
            agree = ((y["image"][:, 0] > 3.5) == (y["mask"] == 7)).double().mean()
            assert float(agree) > 0.95

    def test_facts(self):
        assert not isinstance(GRAPHS, FiniteGroup)
        assert isinstance(GRAPHS, Group)
        assert GRAPHS.exact
        assert not TURNS.exact
        assert GRAPHS.element_shape == (4,)
        assert GRAPHS.element_dtype == torch.int64
        assert GRAPHS.identity.tolist() == [0, 1, 2, 3]
        assert OnKeys({0: Translation(), 1: Translation(mode="nearest")}).local
        drawn = TURNS.sample(5, torch.Generator().manual_seed(0))
        assert_exact(drawn, PlanarRotation().sample(5, torch.Generator().manual_seed(0)))
        assert GRAPHS.sample_non_identity(3, 23).shape == (23, 3, 4)
        assert TURNS.inverse(element(0.5)).tolist() == [-0.5]
        assert GRAPHS.compose(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 0, 2, 3])).tolist() == [2, 1, 3, 0]

    def test_maps(self):
        maps = {"nodes": torch.randn(3, 4, 1), "adjacency": torch.randn(3, 4, 4), "label": torch.zeros(3)}
        y = GRAPHS.act_on_map(torch.tensor([1, 2, 3, 0]), maps)
        assert_exact(y["nodes"], maps["nodes"].roll(1, 1))
        assert_exact(y["adjacency"], maps["adjacency"].roll((1, 1), (1, 2)))
        back = GRAPHS.realign(torch.tensor([1, 2, 3, 0]), y)
        assert_exact(back["nodes"], maps["nodes"])


class TestKindsOfInputs:
    def expected(self, g, x):
        return GRAPHS.act(g, dict(zip(("nodes", "adjacency", "label"), x, strict=True)))

    def test_tuples_and_lists(self):
        group = OnKeys({0: SymmetricGroup(4, dim=1), 1: SymmetricGroup(4, dim=(1, 2))})
        parts = tuple(graph_batch().values())
        g = GRAPHS.sample(3)
        expected = self.expected(g, parts)
        for x in (parts, list(parts), Graph(*parts)):
            y = group.act(g, x)
            assert type(y) is type(x)
            assert len(y) == 3
            assert_exact(y[0], expected["nodes"])
            assert_exact(y[1], expected["adjacency"])
            assert y[2] is x[2]
        assert_exact(group.act(g, Graph(*parts)).nodes, expected["nodes"])

    def test_a_mapping_becomes_a_dict(self):
        y = SQUARES.act(torch.tensor(1), OrderedDict(square_batch()))
        assert type(y) is dict
        assert list(y) == ["image", "mask", "label"]

    def test_orbit_of_a_named_tuple(self):
        group = OnKeys({0: CyclicPermutation(4, dim=1)})
        x = Graph(*graph_batch().values())
        y = group.orbit(x)
        assert isinstance(y, Graph)
        assert_exact(y.nodes, torch.stack([x.nodes.roll(i, 1) for i in range(4)]))
        assert_exact(y.label, x.label.expand(4, 3))

    def test_input_is_not_written(self):
        batch = square_batch()
        before, keys = copy.deepcopy(batch), list(batch)
        y = SQUARES.act(torch.tensor(0), batch)
        y["image"].zero_()
        y["other"] = torch.zeros(1)
        SQUARES.orbit(batch)["mask"].zero_()
        assert list(batch) == keys
        for key in keys:
            assert_exact(batch[key], before[key])

    def test_gradients_flow_through_each_tensor(self):
        batch = {"image": images(2, 1, 4, 4).requires_grad_(), "mask": images(2, 4, 4).requires_grad_()}
        y = SQUARES.act(torch.tensor([1, 6]), batch)
        (y["image"].sum() + 2 * y["mask"].sum()).backward()
        assert_exact(batch["image"].grad, torch.ones(2, 1, 4, 4, dtype=torch.float64))
        assert_exact(batch["mask"].grad, torch.full((2, 4, 4), 2.0, dtype=torch.float64))

    def test_compiles_as_one_graph(self):
        torch.compiler.reset()
        compiled = torch.compile(lambda g, x: GRAPHS.act(g, x), fullgraph=True, backend="aot_eager")
        batch = graph_batch()
        for g in (GRAPHS.sample(1)[0], GRAPHS.sample(3)):
            y, expected = compiled(g, batch), GRAPHS.act(g, batch)
            for key in batch:
                assert_exact(y[key], expected[key])


class TestGroupsRefused:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Dihedral(4), CyclicRotation(8)),  # as many elements, but other products
            (CyclicRotation(4), Flip(-1) * Flip(-2)),
            (CyclicRotation(4), CyclicRotation(2)),
            (Flip(), Trivial()),
            (PlanarRotation(), Scaling()),
            (PlanarRotation(), SymmetricGroup(1)),
            (PlanarRotation(), SpatialRotation()),
            (PlanarRotation(), CyclicRotation(4)),
            (SymmetricGroup(3), SymmetricGroup(4)),
            (SymmetricGroup(2), Translation()),
        ],
        ids=repr,
    )
    def test_other_elements_or_products(self, first, second):
        for a, b in ((first, second), (second, first)):
            with pytest.raises(
                ValueError, match=r"^OnKeys takes groups with the same elements, composed alike: .* under 'b'\.$"
            ):
                OnKeys({"a": a, "b": b})

    def test_the_third_of_three(self):
        with pytest.raises(
            ValueError, match=r"Flip\(dim=-1\) under 0 has others than CyclicRotation\(order=4\) under 2\.$"
        ):
            OnKeys({0: Flip(), 1: SignFlip(), 2: CyclicRotation(4)})

    @pytest.mark.parametrize(
        "groups", [[Flip()], Flip(), {"a": 3}, {"a": Flip}, None, {"a": Flip(), "b": None}, "image"]
    )
    def test_no_mapping_to_groups(self, groups):
        with pytest.raises(TypeError, match=r"^OnKeys takes a mapping from keys to groups, .*: got "):
            OnKeys(groups)

    def test_none(self):
        with pytest.raises(ValueError, match=r"^OnKeys takes at least one key: got none\.$"):
            OnKeys({})


class TestInputsRefused:
    def refuse(self, error, x, expected):
        for use in (
            lambda: SQUARES.act(torch.tensor(1), x),
            lambda: SQUARES.act(torch.zeros(8, dtype=torch.int64), x),
            lambda: SQUARES.act_on_map(torch.tensor(1), x),
            lambda: SQUARES.orbit(x),
        ):
            with pytest.raises(error, match=expected):
                use()

    @pytest.mark.parametrize("x", [torch.zeros(2, 4, 4), 3, None], ids=["tensor", "number", "none"])
    def test_no_mapping(self, x):
        self.refuse(
            TypeError, x, rf"^OnKeys\(.*\) acts on mappings, tuples and lists of tensors: got {type(x).__name__}"
        )

    def test_missing_key(self):
        expected = r"acts on the keys \['image', 'mask'\]: the input has \['image'\]"
        self.refuse(ValueError, {"image": torch.zeros(8, 4, 4)}, expected)
        self.refuse(ValueError, (torch.zeros(8, 4, 4),), r"the input has \[0\]")
        self.refuse(ValueError, {}, r"the input has \[\]")

    def test_other_things_than_tensors(self):
        x = {"image": torch.zeros(8, 4, 4), "mask": torch.zeros(8, 4, 4), "name": "a cat"}
        self.refuse(TypeError, x, r"^Inputs must hold tensors and nothing else: got str at 'name'\.")
        self.refuse(TypeError, {**x, "name": None, "mask": [1, 2]}, r"got list at 'mask'")
        self.refuse(TypeError, {"name": "a cat", **x}, r"got str at 'name'\.")

    def test_batch_sizes_that_differ(self):
        x = {"image": torch.zeros(8, 4, 4), "mask": torch.zeros(7, 4, 4)}
        self.refuse((TypeError, ValueError), x, r"with one N: got shape \(7, 4, 4\) at 'mask' beside")
        x = {"image": torch.zeros(8, 4, 4), "mask": torch.zeros(8, 4, 4), "scale": torch.tensor(1.0)}
        self.refuse((TypeError, ValueError), x, r"with one N: got shape \(\) at 'scale' beside")

    def test_elements(self):
        batch = square_batch(3)
        with pytest.raises(ValueError, match=r"has the elements 0 to 7: got 8"):
            SQUARES.act(torch.tensor(8), batch)
        with pytest.raises(ValueError, match=r"one per sample, shape \(3,\): got elements of shape \(2,\)"):
            SQUARES.act(torch.zeros(2, dtype=torch.int64), batch)
        with pytest.raises(TypeError, match=r"are tensors of torch\.int64: got int"):
            SQUARES.act(1, batch)
        with pytest.raises(ValueError, match="are permutations"):
            GRAPHS.act(torch.tensor([0, 0, 1, 2]), graph_batch())
        with pytest.raises(ValueError, match="are finite numbers"):
            TURNS.compose(element(torch.nan), element(0.0))

    def test_what_one_of_the_groups_refuses(self):
        with pytest.raises(ValueError, match=r"turns square images: got images of shape \(4, 5\)"):
            SQUARES.act(torch.tensor(1), {"image": torch.zeros(2, 4, 4), "mask": torch.zeros(2, 4, 5)})


@pytest.mark.parametrize("group", [SQUARES, GRAPHS, TURNS, OnKeys({0: Flip(), 1: SignFlip()})], ids=repr)
def test_copies_are_equal(group):
    g = group.sample(4)
    for twin in (pickle.loads(pickle.dumps(group)), copy.deepcopy(group), copy.copy(group), eval(repr(group))):
        assert type(twin) is type(group)
        assert twin == group
        assert hash(twin) == hash(group)
        assert repr(twin) == repr(group)
        assert_exact(twin.compose(g, g), group.compose(g, g))


def test_values_and_names():
    assert OnKeys({"image": Dihedral(4)}) != SQUARES
    assert OnKeys({"image": Dihedral(4), "masks": Dihedral(4)}) != SQUARES
    assert OnKeys({"image": PlanarRotation(), "mask": PlanarRotation()}) != TURNS
    assert OnKeys({"image": Dihedral(4), "mask": Dihedral(4)}) == SQUARES
    assert repr(OnKeys({0: Flip()})) == "OnKeys({0: Flip(dim=-1)})"
    with pytest.raises(AttributeError):
        SQUARES._items = ()


def test_what_is_given_is_not_held():
    groups = {"a": Flip()}
    group = OnKeys(groups)
    groups["b"] = SignFlip()
    group.groups["c"] = SignFlip()
    assert group == OnKeys({"a": Flip()})
    assert list(group.act(torch.tensor(1), {"a": torch.zeros(1, 2)})) == ["a"]


class TestParts:
    """Groups made of one that acts on several tensors act on them too."""

    def test_restricted_by_one_element_per_sample(self):
        group = Restricted(OnKeys({"a": PlanarRotation(), "b": PlanarRotation("nearest")}), [[math.pi]])
        x = {"a": torch.randn(2, 1, 4, 4, dtype=torch.float64), "b": torch.arange(32).view(2, 4, 4)}
        y = group.act(torch.tensor([0, 1]), x)
        assert_linear(y["a"], torch.cat([x["a"][:1], x["a"][1:].flip((-2, -1))]))
        assert_exact(y["b"], torch.cat([x["b"][:1], x["b"][1:].flip((-2, -1))]))

    def test_behind_a_step_that_makes_several_tensors(self):
        group = Conjugated(OnKeys({"a": CyclicRotation(4)}), lambda x: {"a": x}, lambda y: y["a"], exact=True)
        x = torch.randn(2, 3, 3)
        assert_exact(group.act(torch.tensor([0, 1]), x), torch.cat([x[:1], torch.rot90(x[1:], 1, (-2, -1))]))
        assert L2InvarianceLoss(group, samples=2)(lambda v: v.flatten(1), x).item() > 0

    def test_not_of_several_tensors_themselves(self):
        with pytest.raises(TypeError, match=r"one tensor each: got another OnKeys"):
            OnKeys({"a": OnKeys({"b": Flip()})})

    def test_groups_of_many_elements_that_compose_in_other_ways_are_refused(self):
        with pytest.raises(ValueError, match=r"has others than Dihedral\(order=101\) under 'b'"):
            OnKeys({"a": CyclicRotation(202), "b": Dihedral(101)})
        assert OnKeys({"a": CyclicRotation(202), "b": CyclicRotation(202)}).order == 202
