"""Does an audit take inputs of several tensors, an image and its mask, as it takes one?"""

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from invreg import (
    CyclicRotation,
    Dihedral,
    Estimate,
    FiniteGroup,
    Flip,
    Group,
    InvarianceReport,
    OnKeys,
    PlanarRotation,
    Restricted,
    SaliencyMap,
    SignFlip,
    SymmetricGroup,
    TransformationSet,
    Translation,
    Trivial,
    measure_invariance,
)
from tests.audit.test_measure import classes_of, in_batches
from tests.test_preserve import state_of
from tests.tolerances import assert_exact


class Pair(NamedTuple):
    image: Tensor
    mask: Tensor


class Together(nn.Module):
    """A network on the channels of an image and its mask, taken out of what holds them."""

    def __init__(self, first: Any = "image", second: Any = "mask", *, channels: int = 3) -> None:
        super().__init__()
        self.keys = first, second
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, 7), nn.Tanh(), nn.Linear(7, 3)).double()

    def forward(self, inputs: Any) -> Tensor:
        image, mask = (inputs[key] for key in self.keys)
        return self.layers(torch.cat([image, mask.double()], 1))


def image_and_mask(samples: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 2, 4, 4).double(), torch.randn(samples, 1, 4, 4).double()


def without_names(report: InvarianceReport) -> InvarianceReport:
    """All of a report but what the model and the group are called."""
    return dataclasses.replace(report, model="", group="")


FORMS: dict[str, tuple[tuple[Any, Any], Callable[[Tensor, Tensor], Any]]] = {
    "dict": (("image", "mask"), lambda image, mask: {"image": image, "mask": mask}),
    "tuple": ((0, 1), lambda image, mask: (image, mask)),
    "list": ((0, 1), lambda image, mask: [image, mask]),
    "named tuple": ((0, 1), Pair),
}

GROUPS: dict[str, tuple[Group, dict[str, Any]]] = {
    "rotation": (CyclicRotation(4), {}),
    "dihedral": (Dihedral(4), {}),
    "product": (Flip() * SignFlip(), {}),
    "drawn": (Dihedral(4), {"samples": 3}),
    "interpolated": (CyclicRotation(8), {}),
    "interpolated, drawn": (CyclicRotation(8), {"samples": 2}),
    "any angle": (PlanarRotation(), {"samples": 3}),
    "any shift": (Translation(2.0), {"samples": 2}),
    "permutations": (SymmetricGroup(4, dim=-1), {"samples": 4}),
    "permutations of many": (SymmetricGroup(4, dim=(-2, -1)), {"samples": 2}),
    "restricted": (Restricted(PlanarRotation("bicubic"), [[math.pi / 4]]), {}),
    "trivial": (Trivial(), {}),
}


# As one tensor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
def test_the_numbers_are_those_of_the_channels_in_one_tensor(form, name, labelled):
    (first, second), made = FORMS[form]
    group, settings = GROUPS[name]
    model = Together(first, second)
    image, mask = image_and_mask()
    y = classes_of(image) if labelled else None
    halves = [slice(0, 4), slice(4, 7)]
    loader = [(made(image[h], mask[h]), y[h]) if labelled else (made(image[h], mask[h]),) for h in halves]
    both = OnKeys({first: group, second: group})
    report = measure_invariance(model, loader, both, saliency=None, **settings)
    expected = measure_invariance(
        model.layers,
        in_batches(torch.cat([image, mask], 1), y, 4),
        group,
        saliency=None,
        **settings,
    )
    assert report.group == repr(both)
    assert without_names(report) == without_names(expected)
    assert report.logit_error.mean > 1e-3 or name == "trivial"
    assert (report.accuracy is not None) == labelled


def test_a_mask_left_alone_is_another_number():
    image, mask = image_and_mask()
    model, loader = Together(), [({"image": image, "mask": mask},)]
    both = measure_invariance(
        model, loader, OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)}), saliency=None
    )
    one = measure_invariance(model, loader, OnKeys({"image": CyclicRotation(4)}), saliency=None)
    assert one.logit_error.mean != pytest.approx(both.logit_error.mean, rel=1e-2)


def test_entries_without_a_group_stay_as_they_are():
    image, mask = image_and_mask()
    extra = torch.arange(7)
    group, seen = CyclicRotation(4), []

    def model(inputs: dict[str, Tensor]) -> Tensor:
        assert list(inputs) == ["extra", "image", "mask"]
        seen.append(inputs)
        return inputs["image"].flatten(1)[:, :3]

    both = OnKeys({"image": group, "mask": group})
    measure_invariance(model, [({"extra": extra, "image": image, "mask": mask},)], both, saliency=None)
    assert len(seen) == 5  # the inputs as they are once more, to see noise
    for g, inputs in zip([*group.elements(), group.identity], seen, strict=True):
        assert_exact(inputs["extra"], extra)
        assert_exact(inputs["image"], group.act(g, image))
        assert_exact(inputs["mask"], group.act(g, mask))


def test_an_invariant_model_of_the_pair_needs_both_to_turn():
    """Where the mask is, the image is bright: to turn both keeps what is seen there."""
    image = torch.rand(6, 1, 4, 4).double()
    mask = (torch.rand(6, 1, 4, 4) > 0.5).long()

    def model(inputs: dict[str, Tensor]) -> Tensor:
        seen = inputs["image"] * inputs["mask"]
        return torch.stack([seen.sum((1, 2, 3)), seen.square().sum((1, 2, 3))], 1)

    group, loader = CyclicRotation(4), [({"image": image, "mask": mask},)]
    together = measure_invariance(model, loader, OnKeys({"image": group, "mask": group}), saliency=None)
    assert together.logit_error.mean == pytest.approx(0, abs=1e-25)
    apart = measure_invariance(model, loader, OnKeys({"image": group}), saliency=None)
    assert apart.logit_error.mean > 1e-3


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize(
    ("images", "masks", "settings"),
    [
        (CyclicRotation(4), CyclicRotation(4), {}),
        (PlanarRotation(), PlanarRotation("nearest"), {"samples": 2}),
        (Translation(2.0), Translation(2.0, mode="nearest"), {"samples": 2}),
    ],
    ids=["quarters", "angles", "shifts"],
)
def test_masks_of_whole_numbers(dtype, images, masks, settings):
    image, _ = image_and_mask()
    mask = torch.randint(2, (7, 1, 4, 4)).to(dtype)
    model, kinds = Together(), set()

    def watched(inputs: dict[str, Tensor]) -> Tensor:
        kinds.add(inputs["mask"].dtype)
        return model(inputs)

    group = OnKeys({"image": images, "mask": masks})
    report = measure_invariance(watched, [({"image": image, "mask": mask},)], group, saliency=None, **settings)
    floats = measure_invariance(model, [({"image": image, "mask": mask.double()},)], group, saliency=None, **settings)
    assert kinds == {dtype}
    assert report.logit_error == floats.logit_error
    assert report.consistency == floats.consistency


def test_a_graphs_nodes_and_edges_are_reordered_together():
    nodes, edges = torch.randn(5, 4, 2).double(), torch.rand(5, 4, 4).double()
    weights = torch.randn(2, 3).double()

    def passes_messages(inputs: dict[str, Tensor]) -> Tensor:
        return (inputs["edges"] @ inputs["nodes"]).tanh().sum(1) @ weights

    group = OnKeys({"nodes": SymmetricGroup(4, dim=1), "edges": SymmetricGroup(4, dim=(1, 2))})
    loader = [({"nodes": nodes, "edges": edges},)]
    report = measure_invariance(passes_messages, loader, group, samples=5, saliency=None)
    assert report.logit_error.mean == pytest.approx(0, abs=1e-25)
    only_nodes = OnKeys({"nodes": SymmetricGroup(4, dim=1)})
    assert measure_invariance(passes_messages, loader, only_nodes, samples=5, saliency=None).logit_error.mean > 1e-3
    assert report.group_accuracy is None
    assert not report.exhaustive


def test_accuracies_count_the_identity_as_the_plain_group_does():
    image, _ = image_and_mask(40)
    y = classes_of(image)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    group = SymmetricGroup(3, dim=1)
    image = torch.cat([image, image[:, :1]], 1)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    expected = measure_invariance(plain, [(image, y)], group, samples=5, saliency=None)
    by_hand = expected.accuracy.mean / 6 + 5 / 6 * sum(
        float((plain(group.act(g, image)).argmax(1) == y).double().mean()) / 5 for g in group.elements()[1:]
    )
    assert expected.group_accuracy.mean == pytest.approx(by_hand)
    report = measure_invariance(
        lambda v: plain(v["image"]), [({"image": image}, y)], OnKeys({"image": group}), samples=5, saliency=None
    )
    assert report.group_accuracy == expected.group_accuracy


# What a loader may yield


class Pictures(Dataset):
    """Single samples of an image and its mask, with a label."""

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        self.image, self.mask = image_and_mask()
        self.labels = classes_of(self.image)
        self.make = make

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        return self.make(self.image[index], self.mask[index], self.labels[index])


LOADERS: dict[str, tuple[tuple[Any, Any], Callable[[Tensor, Tensor, Tensor], Any], dict[str, Any]]] = {
    "dict and labels": (("image", "mask"), lambda i, m, y: ({"image": i, "mask": m}, y), {}),
    "tuple and labels": ((0, 1), lambda i, m, y: ((i, m), y), {}),
    "named tuple and labels": ((0, 1), lambda i, m, y: (Pair(i, m), y), {}),
    "mapping with several keys": (
        ("image", "mask"),
        lambda i, m, y: {"image": i, "mask": m, "labels": y},
        {"input_key": ("image", "mask")},
    ),
    "mapping with a list of keys": (
        ("image", "mask"),
        lambda i, m, y: {"image": i, "mask": m, "class": y},
        {"input_key": ["mask", "image"], "label_key": "class"},
    ),
    "mapping of a dict": (
        ("image", "mask"),
        lambda i, m, y: {"inputs": {"image": i, "mask": m}, "labels": y},
        {},
    ),
    "mapping of a tuple": ((0, 1), lambda i, m, y: {"x": (i, m), "y": y}, {"input_key": "x", "label_key": "y"}),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_form_of_loader_gives_the_same_numbers(name):
    (first, second), make, settings = LOADERS[name]
    data, model = Pictures(make), Together(first, second)
    group = OnKeys({first: CyclicRotation(4), second: CyclicRotation(4)})
    report = measure_invariance(model, DataLoader(data, batch_size=3), group, saliency=None, **settings)
    stacked = torch.cat([data.image, data.mask], 1)
    expected = measure_invariance(model.layers, in_batches(stacked, data.labels), CyclicRotation(4), saliency=None)
    assert without_names(report) == without_names(expected)
    assert report.accuracy.count == 7
    by_hand = [
        (make(data.image[:4], data.mask[:4], data.labels[:4])),
        make(data.image[4:], data.mask[4:], data.labels[4:]),
    ]
    again = measure_invariance(model, by_hand, group, saliency=None, **settings)
    assert again.logit_error.mean == pytest.approx(report.logit_error.mean, rel=1e-12)


def test_a_single_key_in_a_list_makes_a_dict_too():
    image, _ = image_and_mask()
    loader = [{"image": image, "labels": classes_of(image)}]
    report = measure_invariance(
        lambda v: v["image"].flatten(1)[:, :3],
        loader,
        OnKeys({"image": Flip()}),
        saliency=None,
        input_key=["image"],
    )
    assert report.logit_error.mean > 0
    assert report.accuracy is not None


def test_only_the_keys_asked_for_reach_the_model():
    image, mask = image_and_mask()
    seen = []

    def model(v: dict[str, Tensor]) -> Tensor:
        seen.append(sorted(v))
        return v["image"].flatten(1)[:, :3]

    loader = [{"image": image, "mask": mask, "name": ["a"] * 7}]
    group = OnKeys({"image": Flip()})
    measure_invariance(model, loader, group, saliency=None, input_key=("image", "mask"))
    assert seen == [["image", "mask"]] * 3


def test_a_named_tuple_stays_one_for_the_model():
    image, mask = image_and_mask()
    report = measure_invariance(
        lambda v: torch.cat([v.image, v.mask], 1).flatten(1)[:, :3],
        [(Pair(image, mask), classes_of(image))],
        OnKeys({0: CyclicRotation(8), 1: CyclicRotation(8)}),
        saliency=None,
    )
    assert report.action_error.mean > 0.1


@pytest.mark.parametrize("name", ["drawn", "any angle", "interpolated, drawn"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_batch_size_does_not_matter_for_drawn_elements(name, size):
    group, settings = GROUPS[name]
    image, mask = image_and_mask()
    model, both = Together(), OnKeys({"image": group, "mask": group})
    batches = [({"image": i, "mask": m},) for i, m in zip(image.split(size), mask.split(size), strict=True)]
    report = measure_invariance(model, batches, both, saliency=None, **settings)
    whole = measure_invariance(model, [({"image": image, "mask": mask},)], both, saliency=None, **settings)
    for field in ("logit_error", "distribution_error", "consistency", "action_error", "action_logit_error"):
        one, two = getattr(report, field), getattr(whole, field)
        assert (one is None) == (two is None) == (group.exact and field.startswith("action"))
        assert one is None or one.mean == pytest.approx(two.mean, rel=1e-12)


# What it must leave alone


@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("group", [CyclicRotation(4), CyclicRotation(8)], ids=repr)
def test_the_model_and_the_data_are_found_as_they_were(samples, group):
    model = Together()
    model.layers.insert(1, nn.BatchNorm1d(48).double())
    image, mask = image_and_mask()
    model({"image": image, "mask": mask}).sum().backward()
    model.layers[1].eval()
    before, given = state_of(model), (image.clone(), mask.clone())
    batch = {"image": image, "mask": mask}
    measure_invariance(
        model, [(batch,)], OnKeys({"image": group, "mask": group}), saliency=None, samples=samples, mode="train"
    )
    assert state_of(model) == before
    assert_exact(image, given[0])
    assert_exact(mask, given[1])
    assert list(batch) == ["image", "mask"]
    assert batch["image"] is image


@pytest.mark.parametrize("samples", [None, 1])
def test_a_model_that_writes_into_an_entry_that_is_left_alone_spoils_neither_data_nor_answer(samples):
    image, extra = image_and_mask()

    def tame(v: dict[str, Tensor]) -> Tensor:
        return v["image"].flatten(1)[:, :3] * v["extra"].mean((1, 2, 3))[:, None]

    def greedy(v: dict[str, Tensor]) -> Tensor:
        logits = tame(v)
        v["image"].zero_()
        v["extra"].add_(1)
        return logits

    group, given = OnKeys({"image": CyclicRotation(4)}), extra.clone()
    settings = {"saliency": None, "samples": samples}
    report = measure_invariance(greedy, [({"image": image, "extra": extra},)], group, **settings)
    expected = measure_invariance(tame, [({"image": image, "extra": given.clone()},)], group, **settings)
    assert without_names(report) == without_names(expected)
    assert_exact(extra, given)


def test_batches_go_where_the_model_is():
    image, mask = image_and_mask()
    group, kinds = OnKeys({"image": Flip()}), set()

    class Elsewhere(nn.Module):
        def forward(self, v: dict[str, Tensor]) -> Tensor:
            kinds.update(entry.device.type for entry in v.values())
            return v["image"].flatten(1)[:, :3]

    report = measure_invariance(
        Elsewhere(), [({"image": image, "mask": mask}, classes_of(image))], group, saliency=None, device="cpu"
    )
    assert kinds == {"cpu"}
    assert report.samples == 7
    with pytest.raises(RuntimeError, match="meta"):
        measure_invariance(Elsewhere(), [({"image": image, "mask": mask},)], group, saliency=None, device="meta")
    assert kinds == {"cpu", "meta"}


def test_the_group_can_be_pickled_and_audits_the_same():
    image, mask = image_and_mask()
    model, loader = Together(), [({"image": image, "mask": mask},)]
    for group, settings in GROUPS.values():
        both = OnKeys({"image": group, "mask": group})
        again = pickle.loads(pickle.dumps(both))
        assert again == both
        assert measure_invariance(model, loader, again, saliency=None, **settings) == measure_invariance(
            model, loader, both, saliency=None, **settings
        )


# What is refused

IMAGE, MASK = torch.zeros(3, 2, 4, 4).double(), torch.zeros(3, 1, 4, 4).double()
LABELS = torch.tensor([0, 1, 2])
WHOLE = {"image": IMAGE, "mask": MASK}
QUARTERS = OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)})

FAILURES = {
    "maps of one's own": ({"saliency": SaliencyMap()}, ValueError, r"inputs of one tensor, not for OnKeys.*: set sal"),
    "a key of the loader": (
        {"loader": [{"image": IMAGE}], "input_key": ("image", "mask")},
        ValueError,
        r"No inputs under 'mask' in a batch with the keys \['image'\]: set input_key=",
    ),
    "a key of the group": (
        {"loader": [({"image": IMAGE},)], "model": lambda v: v["image"].flatten(1)},
        ValueError,
        r"acts on the keys \['image', 'mask'\]: the input has \['image'\], no .*mask",
    ),
    "a position of the group": (
        {"loader": [((IMAGE,), LABELS)], "group": OnKeys({0: Flip(), 1: Flip()}), "model": lambda v: v[0].flatten(1)},
        ValueError,
        r"acts on the keys \[0, 1\]: the input has \[0\], no .*1",
    ),
    "one tensor": ({"loader": [IMAGE], "model": lambda v: v.flatten(1)}, TypeError, r"acts on mappings.*got Tensor"),
    "several for a plain group": (
        {"group": CyclicRotation(4)},
        (TypeError, ValueError),
        r"CyclicRotation\(order=4\) acts on batches, tensors of shape \(N, \.\.\.\): got dict",
    ),
    "several for a set": (
        {"group": TransformationSet([torch.neg])},
        (TypeError, ValueError),
        r"TransformationSet.* acts on batches, tensors of shape \(N, \.\.\.\): got dict",
    ),
    "other batch sizes": (
        {"loader": [({"image": IMAGE, "mask": MASK[:2]},)], "model": lambda v: v["image"].flatten(1)},
        (TypeError, ValueError),
        r"one N: got shape \(2, 1, 4, 4\) at 'mask'",
    ),
    "other batch sizes that the model notices": (
        {"loader": [({"image": IMAGE, "mask": MASK[:2]},)]},
        (TypeError, ValueError),
        r"one N: got shape \(2, 1, 4, 4\) at 'mask'",
    ),
    "other batch sizes of what no group moves": (
        {
            "loader": [({"image": IMAGE, "mask": MASK, "extra": MASK[:1]},)],
            "model": lambda v: v["image"].flatten(1),
        },
        (TypeError, ValueError),
        r"one N: got shape \(1, 1, 4, 4\) at 'extra'",
    ),
    "an empty batch": (
        {"loader": [({"image": IMAGE[:0], "mask": MASK[:0]},)]},
        ValueError,
        r"at least one sample: got shape \(0, 2, 4, 4\)",
    ),
    "an empty entry": (
        {"loader": [({"image": IMAGE, "mask": MASK[:0]},)]},
        ValueError,
        r"at least one sample: got shape \(0, 1, 4, 4\)",
    ),
    "no entries": ({"loader": [({}, LABELS)]}, (TypeError, ValueError), r"one tensor.*got an empty dict"),
    "no positions": ({"loader": [((), LABELS)]}, (TypeError, ValueError), r"one tensor.*got an empty tuple"),
    "an entry that is no tensor": (
        {"loader": [({"image": IMAGE, "mask": MASK, "name": ["a", "b", "c"]},)]},
        TypeError,
        r"nothing else: got list at 'name'",
    ),
    "a number for an entry": (
        {"loader": [({"image": IMAGE, "mask": torch.tensor(1.0)},)]},
        ValueError,
        r"at least one sample: got shape \(\)",
    ),
    "labels of another number": (
        {"loader": [(WHOLE, LABELS[:2])]},
        ValueError,
        r"one per input: got shape \(2,\) for inputs \(3, 2, 4, 4\)",
    ),
    "samples of an infinite group": (
        {"group": OnKeys({"image": PlanarRotation(), "mask": PlanarRotation("nearest")})},
        ValueError,
        r"OnKeys.*infinitely many.*samples=",
    ),
    "too many samples": ({"samples": 4}, ValueError, r"1 to 3 for OnKeys.*got 4"),
    "an image that is not square": (
        {"loader": [({"image": IMAGE[..., :2], "mask": MASK[..., :2]},)], "model": lambda v: v["image"].flatten(1)},
        ValueError,
        r"turns square images: got images of shape \(4, 2\)",
    ),
    "a mask of whole numbers that would be interpolated": (
        {
            "loader": [({"image": IMAGE, "mask": MASK.long()},)],
            "group": OnKeys({"image": CyclicRotation(8), "mask": CyclicRotation(8)}),
        },
        ValueError,
        r"must be floating point: got torch\.int64.*mode=\"nearest\" for masks",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_say_what_is_wrong_and_leave_everything_as_it_was(name):
    changes, kind, message = FAILURES[name]
    model = Together()
    settings = {"model": model, "loader": [(WHOLE, LABELS)], "group": QUARTERS, "saliency": None} | changes
    before = state_of(model)
    with pytest.raises(kind, match=message):
        measure_invariance(settings.pop("model"), settings.pop("loader"), settings.pop("group"), **settings)
    assert state_of(model) == before


def test_the_good_case_beside_the_failures_passes():
    report = measure_invariance(Together(), [(WHOLE, LABELS)], QUARTERS, saliency=None)
    assert report.logit_error == Estimate(0.0, 0.0, 3)


def test_a_model_that_fails_names_the_shapes_of_the_entries():
    def explode(v: Any) -> Tensor:
        raise ArithmeticError("the model's own")

    with pytest.raises(RuntimeError, match=r"'image': \(3, 2, 4, 4\), 'mask': \(3, 1, 4, 4\).*the model's own"):
        measure_invariance(explode, [(WHOLE,)], QUARTERS, saliency=None)


def test_groups_with_other_elements_are_refused_when_they_are_put_together():
    with pytest.raises(ValueError, match=r"same elements, composed alike"):
        OnKeys({"image": CyclicRotation(4), "mask": Flip()})
    assert isinstance(OnKeys({"image": CyclicRotation(4), "mask": CyclicRotation(4)}), FiniteGroup)
    assert not isinstance(OnKeys({"image": PlanarRotation()}), FiniteGroup)
