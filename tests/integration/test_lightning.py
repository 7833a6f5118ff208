"""Does one line regularise a LightningModule that is not ours, as the Trainer trains it?"""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from invreg import CyclicRotation, L2InvarianceLoss, measure_invariance, regularize
from tests.integration.plain_loop import RATE, distance, labelled_batches, parameters, trained
from tests.models import FlatteningMLP

pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: pip install torchmetrics")

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from invreg.metric import InvarianceError

pytestmark = [
    # Lightning's own: it uses what torch has renamed, and advises on the number of workers
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

WEIGHT = 0.5
turns = CyclicRotation(4)
invariance = L2InvarianceLoss(turns)


class Classifier(L.LightningModule):
    """A module as a user has it, which knows of no regulariser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = FlatteningMLP(1, 4, 4).double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("task", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), RATE)


def trainer(folder, **settings):
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        **{"devices": 1, "max_epochs": 1, "enable_model_summary": False, **silent, **settings},
    )


def fitted(module, batches, folder, **settings):
    """The network's parameters after the Trainer went over the batches."""
    trainer(folder, **settings).fit(module, DataLoader(batches, batch_size=None))
    return parameters(module.net)


def expected(batches, regulariser=invariance, **settings):
    return trained(Classifier().net, batches, regulariser, WEIGHT, **settings)


@pytest.mark.parametrize("part", ["module", "network"])
def test_is_the_training_that_of_the_explicit_line(part, tmp_path):
    batches, module = labelled_batches(8, 8, 5), Classifier()
    handle = regularize(module if part == "module" else module.net, invariance, WEIGHT)
    found = fitted(module, batches, tmp_path)
    assert distance(found, expected(batches)) < 1e-12
    assert distance(found, expected(batches, None)) > 1e-3
    handle.remove()


def test_is_a_removed_regulariser_gone(tmp_path):
    batches, module = labelled_batches(8, 8), Classifier()
    regularize(module, invariance, WEIGHT).remove()
    assert distance(fitted(module, batches, tmp_path), expected(batches, None)) < 1e-12


def test_does_the_penalty_follow_accumulated_gradients(tmp_path):
    batches = labelled_batches(8, 8, 8, 8, 5)  # the last window is shorter, and divided by three all the same
    found = []
    for loss_scale in (1 / 3, 1.0):
        module = Classifier()
        regularize(module, invariance, WEIGHT, loss_scale=loss_scale)
        found.append(fitted(module, batches, tmp_path, accumulate_grad_batches=3))
    assert distance(found[0], expected(batches, accumulate=3)) < 1e-12
    assert distance(found[1], expected(batches, accumulate=3)) > 1e-3


def test_does_it_hold_in_bfloat16(tmp_path):
    batches, module = labelled_batches(8, 8, dtype=torch.float32), Classifier().float()
    before = copy.deepcopy(module.net)
    handle = regularize(module, invariance, WEIGHT)
    found = fitted(module, batches, tmp_path, precision="bf16-mixed")
    lower = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)  # as Lightning does, which rounds otherwise
    assert distance(found, trained(before, batches, invariance, WEIGHT, forwards_under=lower)) < 1e-6
    assert distance(found, trained(before, batches, None, WEIGHT, forwards_under=lower)) > 1e-2
    assert distance(found, trained(before, batches, invariance, WEIGHT)) > 1e-4  # so the precision was lower
    assert handle.value.dtype == torch.float32


class OtherRoad(Classifier):
    """A module whose training does not go through its own forward."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("part", ["module", "network"])
def test_is_it_the_called_part_that_counts(part, tmp_path):
    batches, module = labelled_batches(8, 8), OtherRoad()
    handle = regularize(module if part == "module" else module.net, invariance, WEIGHT)
    found = fitted(module, batches, tmp_path)
    assert distance(found, expected(batches, None if part == "module" else invariance)) < 1e-12
    assert (handle.value is None) == (part == "module")


def test_do_two_processes_train_as_one_on_all_samples(tmp_path):
    ((x, y),), module = labelled_batches(8), Classifier()
    regularize(module.net, invariance, WEIGHT)
    fit = trainer(tmp_path, max_epochs=2, devices=2, strategy="ddp_spawn")
    fit.fit(module, DataLoader(TensorDataset(x, y), batch_size=4))  # each process gets half of the samples
    assert distance(parameters(module.net), expected([(x, y)] * 2)) < 1e-12
    assert distance(parameters(module.net), expected([(x, y)] * 2, None)) > 1e-3


class InvarianceMonitor(L.Callback):
    """Logs the penalty of each step and audits the model at the end of each epoch."""

    def __init__(self, handle) -> None:
        self.handle = handle
        self.modes = []
        self.measured = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("penalty", self.handle.value)

    def on_validation_epoch_end(self, trainer, pl_module):
        before = [part.training for part in pl_module.modules()]
        report = measure_invariance(pl_module, trainer.val_dataloaders, turns, saliency=None)
        self.modes.append((before, [part.training for part in pl_module.modules()]))
        pl_module.log("logit error", report.logit_error.mean)
        self.measured.append(copy.deepcopy(pl_module.net))


class Measured(Classifier):
    """A module that logs torchmetrics' way."""

    def __init__(self) -> None:
        super().__init__()
        self.error = InvarianceError(invariance)

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        self.error.update(self.net, x, self.net(x))
        self.log("metric", self.error)


def test_does_a_callback_log_what_direct_measurement_gives(tmp_path):
    batches, module = labelled_batches(8, 8, 5), Measured()
    validation = labelled_batches(6, 6, 3)
    monitor = InvarianceMonitor(regularize(module.net, invariance, WEIGHT))
    fit = trainer(
        tmp_path,
        max_epochs=2,
        callbacks=[monitor],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    fit.fit(module, DataLoader(batches, batch_size=None), DataLoader(validation, batch_size=None))
    with open(next(tmp_path.rglob("metrics.csv")), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def logged(name):
        return [float(row[name]) for row in rows if row[name]]

    assert all(before == after for before, after in monitor.modes)
    assert len(monitor.measured) == 2
    x = torch.cat([x for x, _ in validation])
    with torch.no_grad():
        errors = [invariance(net.eval(), x).item() for net in monitor.measured]
    assert logged("logit error") == pytest.approx(errors, rel=1e-6)
    assert logged("metric") == pytest.approx(errors, rel=1e-6)
    penalties = []
    net = Classifier().net
    for number in range(6):  # the penalty of a step is that of the parameters before it
        net.load_state_dict(trained(Classifier().net, (batches * 2)[:number], invariance, WEIGHT))
        penalties.append(WEIGHT * invariance(net, batches[number % 3][0]).item())
    assert logged("penalty") == pytest.approx(penalties, rel=1e-6)
