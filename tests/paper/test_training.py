"""Does a training go on where it was stopped, as if it had not been, and is its result what its name says?"""

import math
from dataclasses import replace

import pytest
import torch

from examples.paper import training
from examples.paper.training import GROUPS, METHODS, RECIPES, Run, load, network, train
from invreg import functional

RUNS = [
    *(
        Run("R4", method, weight=weight)
        for method, weight in {"DA": 0, "WT": 0, "IR": 1, "IC": 0.1, "SYM": 0, "FREE": 3}.items()
    ),
    Run("R4", "OC", weight=1),
    Run("R4", "IR", weight=1, samples=1, fraction=0.5, every=2),
    Run("T3", "FREE", weight=3, recipe="better", gain=5, step=3),
    Run("T3", "IR", weight=1, recipe="better", loss="KL"),
]
SHORT = [replace(run, data="digits", epochs=3) for run in RUNS]
each_run = pytest.mark.parametrize("run", SHORT, ids=lambda run: run.name)


@pytest.fixture(scope="module")
def data():
    return load("digits", None)


class StoppedError(Exception):
    """As if the power had gone."""


@pytest.fixture
def epochs_until_stop(monkeypatch):
    """Set ``left`` to how many epochs may be trained from now on; ``trained`` counts them."""

    class Epochs:
        left, trained = math.inf, 0

    train_epoch = training.Training.train_epoch

    def counted(state, epoch):
        if Epochs.left == 0:
            raise StoppedError
        Epochs.left, Epochs.trained = Epochs.left - 1, Epochs.trained + 1
        train_epoch(state, epoch)

    monkeypatch.setattr(training.Training, "train_epoch", counted)
    return Epochs


@each_run
def test_goes_on_where_it_was_stopped(run, data, tmp_path, monkeypatch, epochs_until_stop):
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    whole = train(run, data, tmp_path / "whole.pt")
    for _ in range(run.epochs - 1):  # stopped after each epoch
        epochs_until_stop.left = 1
        with pytest.raises(StoppedError):
            train(run, data, tmp_path / "parts.pt")
        torch.manual_seed(123)  # another process
    epochs_until_stop.left = 1
    parts = train(run, data, tmp_path / "parts.pt")
    assert parts.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


@each_run
def test_a_finished_training_is_only_read(run, data, tmp_path, epochs_until_stop):
    for _ in range(2):
        train(run, data, tmp_path / "run.pt")
        assert epochs_until_stop.trained == run.epochs


def invariance(run, data, path):
    model, images = train(run, data, path).model, data.test[0][:50]
    with torch.no_grad():
        outputs = functional.orbit_outputs(model, GROUPS[run.group].orbit(images))
    return functional.logit_error(outputs[:1].expand_as(outputs[1:]).flatten(0, 1), outputs[1:].flatten(0, 1)).max()


def test_what_is_built_in_is_exact_and_what_is_freed_is_not(data, tmp_path):
    errors = {run.method: invariance(run, data, tmp_path / f"{run.name}.pt") for run in SHORT[:6]}
    assert errors["WT"] < 1e-9
    assert errors["SYM"] < 1e-9
    assert min(errors["DA"], errors["IR"], errors["FREE"]) > 1e-9


def test_freed_weights_stay_near_where_they_were(data, tmp_path):
    run = replace(Run("R4", "FREE", weight=3, gain=5, step=4), data="digits", epochs=60)
    accuracy = train(run, data, tmp_path / "run.pt").history["validation accuracy"]
    assert accuracy[39] > 0.8
    assert min(accuracy[40:]) > accuracy[39] - 0.2  # an optimiser that goes on from the symmetric phase loses half
    assert invariance(run, data, tmp_path / "run.pt") < 1


def test_a_symmetrised_model_is_a_plain_network_in_the_end(data, tmp_path):
    model = train(SHORT[4], data, tmp_path / "run.pt").model
    assert model.state_dict().keys() == network("MLP", data.train[0].shape[1:]).state_dict().keys()


def test_runs_have_names_of_their_own():
    runs = [
        Run(group, method, seed, weight, recipe, loss, gain=gain)
        for group in GROUPS
        for method in METHODS
        for seed in (0, 1)
        for weight in (0.0, 1.0, 1.001)
        for recipe in RECIPES
        for loss in ("L2", "normalised L2")
        for gain in (1.0, 5.0)
    ]
    assert len({run.name for run in runs}) == len({replace(run, loss="L2") if not run.weight else run for run in runs})


def test_the_network_is_the_papers():
    assert sum(p.numel() for p in network("MLP", torch.Size((1, 36, 36))).parameters()) == 233_225


@pytest.mark.parametrize("name", ["MLP", "CNN", "ViT"])
def test_networks_take_both_image_sizes(name):
    for side in (12, 36):
        assert network(name, torch.Size((1, side, side)), dropout=0.1)(torch.randn(2, 1, side, side)).shape == (2, 9)
