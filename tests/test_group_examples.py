"""Do the examples of point clouds, sets and time series check what they claim, and are their data what they say?"""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from invreg import Estimate, InvarianceReport, SpatialRotation, measure_invariance
from invreg.testing import LawError, assert_invariant, check_group

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    "point_cloud": ("solids", (48, 3)),
    "sets": ("sets", (8, 2)),
    "time_series": ("waves", (1, 64)),
}
"""Each example's function that makes data, and the shape of a sample."""

GOOD = {
    "point_cloud": {
        "upright": {"accuracy": 0.99, "group_accuracy": 0.3, "logit_error": 800.0, "saliency_similarity": 0.3},
        "turned": {"accuracy": 0.93, "group_accuracy": 0.94, "logit_error": 4.0, "saliency_similarity": 0.7},
        "loss": {"accuracy": 0.9, "group_accuracy": 0.9, "logit_error": 0.1, "saliency_similarity": 0.85},
        "lengths": {"accuracy": 0.99, "group_accuracy": 0.99, "logit_error": 1e-11, "saliency_similarity": 1.0},
    },
    "sets": {
        "list": {"group_accuracy": 0.35, "logit_error": 70.0, "consistency": 0.3},
        "shuffled": {"group_accuracy": 0.89, "logit_error": 5.0, "consistency": 0.88},
        "loss": {"group_accuracy": 0.91, "logit_error": 0.1, "consistency": 0.97},
        "deepsets": {"group_accuracy": 0.92, "logit_error": 1e-12, "consistency": 1.0},
    },
    "time_series": {
        "flat": {"group_accuracy": 0.97, "logit_error": 3.0, "saliency_similarity": 0.5},
        "loss": {"group_accuracy": 0.97, "logit_error": 0.2, "saliency_similarity": 0.6},
        "strided": {"group_accuracy": 0.98, "logit_error": 0.2, "saliency_similarity": 0.8},
        "wrapped": {"group_accuracy": 0.98, "logit_error": 1e-12, "saliency_similarity": 1.0},
    },
}
"""What the examples claim, by network."""

BAD = [
    ("point_cloud", "upright", {"group_accuracy": 0.8}, "upright must not suffice"),
    ("point_cloud", "turned", {"group_accuracy": 0.6}, "both must classify"),
    ("point_cloud", "turned", {"group_accuracy": 0.999}, "cost little accuracy"),
    ("point_cloud", "loss", {"logit_error": 1.0}, "must make the logits more invariant"),
    ("point_cloud", "loss", {"saliency_similarity": 0.7}, "points that the network looks at"),
    ("point_cloud", "lengths", {"logit_error": 1e-3}, "lengths must make the logits invariant"),
    ("point_cloud", "lengths", {"saliency_similarity": 0.9}, "points that the network looks at"),
    ("point_cloud", "lengths", {"action_error": 1e-3}, "act up to rounding"),
    ("sets", "list", {"group_accuracy": 0.9}, "a list must not be enough"),
    ("sets", "shuffled", {"group_accuracy": 0.5}, "the others must be"),
    ("sets", "shuffled", {"group_accuracy": 0.96}, "cost no accuracy"),
    ("sets", "shuffled", {"consistency": 0.99}, "change the class of some sets"),
    ("sets", "loss", {"logit_error": 1.0}, "must make the logits more invariant"),
    ("sets", "loss", {"consistency": 0.8}, "and the classes"),
    ("sets", "deepsets", {"logit_error": 1e-3}, "DeepSets must be invariant"),
    ("sets", "deepsets", {"consistency": 0.9}, "so must be its classes"),
    ("time_series", "strided", {"group_accuracy": 0.5}, "must classify well"),
    ("time_series", "flat", {"logit_error": 0.3}, "must make the logits more invariant"),
    ("time_series", "loss", {"group_accuracy": 0.92}, "cost no accuracy"),
    ("time_series", "wrapped", {"logit_error": 1e-3}, "without edges and strides"),
    ("time_series", "wrapped", {"saliency_similarity": 0.9}, "where the network looks"),
]
"""What breaks a claim, and what the check then says."""


@pytest.fixture
def load(monkeypatch):
    """Imports an example."""

    def load(name):
        monkeypatch.syspath_prepend(ROOT / "examples")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def measured(example, inputs) -> InvarianceReport:
    """A report of an untrained network, to fill in."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs[0].numel(), 5))
    drawn = {} if hasattr(example.group, "elements") and example.group.order < 100 else {"samples": 2}
    return measure_invariance(model, [(inputs, torch.zeros(len(inputs)).long())], example.group, saliency=None, **drawn)


def claimed(name, example, changes=None):
    """Reports with the values that the example claims, but for changes: by network, values."""
    make, _ = EXAMPLES[name]
    inputs, _ = getattr(example, make)(4, torch.Generator().manual_seed(0))
    report = measured(example, inputs)
    reports = {}
    for network, values in GOOD[name].items():
        filled = {key: Estimate(value, None, 4) for key, value in (values | (changes or {}).get(network, {})).items()}
        shifts = [
            dataclasses.replace(one, logit_error=Estimate(1e-13 if one.element % 4 == 0 else 0.1, None, 4))
            for one in report.per_element
        ]
        reports[network] = dataclasses.replace(report, **filled, per_element=tuple(shifts))
    return reports


@pytest.mark.parametrize("name", EXAMPLES)
def test_check_passes_what_is_claimed(name, load):
    example = load(name)
    assert tuple(GOOD[name]) == example.MODELS
    example.check(claimed(name, example))


@pytest.mark.parametrize(("name", "network", "values", "message"), BAD)
def test_check_bites(name, network, values, message, load):
    example = load(name)
    with pytest.raises(AssertionError, match=message):
        example.check(claimed(name, example, {network: values}))


@pytest.mark.parametrize(
    ("shifts", "error", "message"), [(4, 0.1, "allow their multiples"), (3, 1e-13, "break all other shifts")]
)
def test_check_of_time_series_reads_each_shift(shifts, error, message, load):
    example = load("time_series")
    reports = claimed("time_series", example)
    changed = [
        dataclasses.replace(one, logit_error=Estimate(error, None, 4)) if one.element == shifts else one
        for one in reports["strided"].per_element
    ]
    reports["strided"] = dataclasses.replace(reports["strided"], per_element=tuple(changed))
    with pytest.raises(AssertionError, match=message):
        example.check(reports)


@pytest.mark.parametrize("name", EXAMPLES)
def test_data_are_what_the_example_says(name, load):
    make, shape = EXAMPLES[name]
    example = load(name)
    inputs, labels = getattr(example, make)(400, torch.Generator().manual_seed(0))
    again, _ = getattr(example, make)(400, torch.Generator().manual_seed(0))
    assert torch.equal(inputs, again)
    assert inputs.shape == (400, *shape)
    assert inputs.isfinite().all()
    assert labels.bincount().min() > 50, "every class occurs about as often"


@pytest.mark.parametrize("name", EXAMPLES)
def test_training_repeats_itself(name, load):
    example = load(name)
    first, again, other = (example.train("loss", seed, epochs=1).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "network", "invariant"),
    [
        ("point_cloud", "lengths", True),
        ("point_cloud", "turned", False),
        ("sets", "deepsets", True),
        ("sets", "list", False),
        ("time_series", "wrapped", True),
        ("time_series", "strided", False),
        ("time_series", "flat", False),
    ],
)
def test_network_is_invariant_by_construction(name, network, invariant, load):
    example = load(name)
    model = example.train(network, seed=0, epochs=1).double()
    inputs, _ = getattr(example, EXAMPLES[name][0])(8, torch.Generator().manual_seed(0))
    if invariant:
        assert_invariant(model, example.group, inputs.double())
    else:
        with pytest.raises(AssertionError, match="not invariant"):
            assert_invariant(model, example.group, inputs.double())


def test_points_that_matter_turn_with_an_invariant_network(load):
    example = load("point_cloud")
    model = example.train("lengths", seed=0, epochs=1).double()
    clouds, labels = example.solids(4, torch.Generator().manual_seed(0))
    turned = SpatialRotation().act(SpatialRotation().sample(4), clouds.double())
    maps = [example.points_that_matter(model, x, labels) for x in (clouds.double(), turned)]
    assert maps[0].shape == (4, 48, 1)
    torch.testing.assert_close(*maps, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["point_cloud", "time_series"])
def test_picture_is_drawn(name, load, tmp_path):
    from matplotlib.image import imread

    example = load(name)
    inputs, labels = getattr(example, EXAMPLES[name][0])(1, torch.Generator().manual_seed(0))
    if name == "point_cloud":
        example.draw(
            {key: example.train(key, 0, epochs=1) for key in ("turned", "loss")}, inputs, labels, tmp_path / "p.png"
        )
    else:
        example.draw(claimed(name, example), inputs, tmp_path / "p.png")
    pixels = torch.from_numpy(imread(tmp_path / "p.png"))[..., :3]
    assert len((pixels.mean(2) * 255).int().unique()) > 50, "there is more to see than a blank page"


def test_message_in_the_document_is_the_one_that_comes_out(capsys):
    text = (ROOT / "docs" / "custom_group.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    namespace = {
        "__name__": "document",
        "recordings": torch.randn(4, 2, 32),
        "check_group": check_group,
        "LawError": LawError,
    }
    for wanted in ("from invreg import FiniteGroup", "class QuarterPhase", "class Backwards"):
        ((code, shown),) = [block for block in blocks if wanted in block[0]]
        exec(code, namespace)
    assert shown
    assert capsys.readouterr().out.split() == shown.split()
