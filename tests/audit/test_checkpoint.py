"""Does an audit that was interrupted go on as if it had not been?"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from invreg import (
    CyclicRotation,
    Flip,
    InvarianceAudit,
    InvarianceReport,
    OnKeys,
    PlanarRotation,
    SaliencyMap,
    SignFlip,
    measure_invariance,
)
from invreg.audit import progress
from tests.audit import killed
from tests.audit.sameness import assert_same_report
from tests.audit.test_measure import images

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _saved_at_once(monkeypatch):
    """An audit is saved after each batch instead of every few seconds."""
    monkeypatch.setattr(progress, "_SAVED_EVERY", -1.0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(samples: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 1, 4, 4, dtype=torch.float64), torch.randint(3, (samples,))


def in_batches(x: Tensor, y: Tensor | None = None, size: int = 5) -> list:
    return [x[i : i + size] if y is None else (x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


class Stoppable(nn.Module):
    """A network that counts its calls and, at one of them, does something else first."""

    def __init__(self, network: nn.Module, noise: float = 0.0) -> None:
        super().__init__()
        self.network, self.noise = network, noise
        self.forwards: list[int] = []
        self.at: int | None = None
        self.then: Callable[[], None] = lambda: None

    def forward(self, v: Tensor) -> Tensor:
        if len(self.forwards) == self.at:
            self.then()
        self.forwards.append(len(v))
        outputs = self.network(v)
        return outputs + self.noise * torch.randn_like(outputs) if self.noise else outputs


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_goes_on(
    model: Stoppable,
    loader: Callable[[], Any],
    group: Any,
    path: Path,
    *,
    at: int,
    how: str,
    again: Callable[[], Any] | None = None,
    **settings: Any,
) -> InvarianceReport:
    """Raises unless an audit that is interrupted at a forward and then repeated says what one says that is not.

    ``how`` is Ctrl-C, or an end without warning, after which only what was saved before is there.
    """
    torch.manual_seed(11)
    expected = measure_invariance(model, loader(), group, **settings)
    copy = path.with_name("copy")

    def stop() -> None:
        if path.exists():
            shutil.copy(path, copy)
        raise KeyboardInterrupt

    before = len(model.forwards)
    assert before > at
    model.at, model.then = before + at, stop
    torch.manual_seed(11)
    with pytest.raises(KeyboardInterrupt):
        measure_invariance(model, loader(), group, checkpoint=path, **settings)
    assert path.exists()
    if how == "killed":
        path.unlink()
        if copy.exists():
            shutil.copy(copy, path)
    copy.unlink(missing_ok=True)
    model.at = None
    torch.manual_seed(11)
    actual = measure_invariance(model, (again or loader)(), group, checkpoint=path, **settings)
    assert_same_report(actual, expected)
    assert actual.ended == "complete"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return actual


every_end = pytest.mark.parametrize("how", ["Ctrl-C", "killed"])

SETTINGS = {
    "all elements": {"saliency": None},
    "drawn": {"saliency": None, "samples": 2},
    "maps": {"saliency": SaliencyMap(steps=2), "saliency_samples": 13},
    "drawn and maps": {"saliency": SaliencyMap(steps=2), "saliency_samples": None, "samples": 1},
    "few kept": {"saliency": None, "kept_samples": 4, "worst_samples": 3},
    "values": {"outputs": "values"},
}


@every_end
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("at", [0, 7, 13])
def test_an_audit_goes_on_where_it_was(tmp_path, name, how, at):
    """Stopped at the first forward, within a batch and between batches."""
    x, y = data()
    assert_goes_on(
        Stoppable(mlp()),
        lambda: in_batches(x, y),
        CyclicRotation(4),
        tmp_path / "audit.pt",
        at=at,
        how=how,
        **SETTINGS[name],
    )


@every_end
@pytest.mark.parametrize("size", [1, 3, 24])
@pytest.mark.parametrize("name", ["drawn and maps", "few kept"])
def test_another_batch_size_afterwards_changes_nothing(tmp_path, how, size, name):
    x, y = data()
    assert_goes_on(
        Stoppable(mlp()),
        lambda: in_batches(x, y),
        CyclicRotation(4),
        tmp_path / "audit.pt",
        at=9,
        how=how,
        again=lambda: in_batches(x, y, size),
        **SETTINGS[name],
    )


@every_end
@pytest.mark.parametrize("at", [3, 7, 11, 13])
@pytest.mark.parametrize("samples", [None, 1])
def test_a_model_with_noise_draws_what_it_would_have_drawn(tmp_path, how, at, samples):
    x, y = data()
    report = assert_goes_on(
        Stoppable(mlp(), noise=0.3),
        lambda: in_batches(x, y),
        CyclicRotation(4),
        tmp_path / "audit.pt",
        at=at,
        how=how,
        saliency=None,
        samples=samples,
    )
    assert report.noise_error.count == 24


@every_end
@pytest.mark.parametrize("at", [3, 11])
def test_a_shuffled_loader_is_in_the_order_that_the_seed_gives(tmp_path, how, at):
    """The same seed before both runs gives the same order, as a user expects who runs a script again."""
    x, y = data()
    report = assert_goes_on(
        Stoppable(mlp(), noise=0.1),
        lambda: DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True),
        CyclicRotation(4),
        tmp_path / "audit.pt",
        at=at,
        how=how,
        saliency=None,
    )
    assert sorted(report.per_sample["label"].tolist()) == sorted(y.tolist())


@every_end
def test_drawn_rotations_by_any_angle_go_on(tmp_path, how):
    x, _ = data()
    assert_goes_on(
        Stoppable(mlp()),
        lambda: in_batches(x),
        PlanarRotation(),
        tmp_path / "audit.pt",
        at=12,
        how=how,
        saliency=None,
        samples=2,
    )


@every_end
@pytest.mark.parametrize("at", [0, 2, 5, 9, 14, 20, 26])
def test_samples_that_were_skipped_are_not_skipped_twice(tmp_path, how, at):
    """Wherever it is stopped, also while a batch is taken apart to find the sample that fails."""
    x, y = data()
    x[3] = x[9] = torch.nan

    class Corrupt(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
            if n in (4, 12):
                raise OSError("truncated")
            return x[n], y[n]

    report = assert_goes_on(
        Stoppable(mlp()),
        lambda: DataLoader(Corrupt(), batch_size=8),
        CyclicRotation(4),
        tmp_path / "audit.pt",
        at=at,
        how=how,
        saliency=None,
        samples=1,
        on_error="skip",
    )
    assert (report.seen, report.samples, report.skipped) == (24, 20, 4)
    assert sorted(one.index for one in report.skipped_samples) == [3, 4, 9, 12]


@every_end
@pytest.mark.parametrize("at", [3, 5, 9])
def test_batches_that_a_loader_lost_are_not_lost_twice(tmp_path, how, at):
    x, y = data()

    class Stream:
        def __iter__(self) -> Iterator[Any]:
            self.turns = iter([*in_batches(x, y)[:1], None, *in_batches(x, y)[1:3], None])
            return self

        def __next__(self) -> Any:
            turn = next(self.turns)
            if turn is None:
                raise OSError("broken shard")
            return turn

    path = tmp_path / "audit.pt"
    model = Stoppable(mlp())
    settings = {"saliency": None, "on_error": "skip"}
    report = assert_goes_on(model, Stream, CyclicRotation(4), path, at=at, how=how, **settings)
    assert len(report.skipped_samples) == 2
    again = measure_invariance(model, Stream(), CyclicRotation(4), checkpoint=path, **settings)
    assert len(again.skipped_samples) == 2


def test_inputs_of_several_tensors_go_on(tmp_path):
    x, y = data()

    class OfImage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = mlp()

        def forward(self, v: dict[str, Tensor]) -> Tensor:
            return model(v["image"]) + v["offset"][:, None]

    model = Stoppable(mlp())
    batches = [{"inputs": {"image": a, "offset": b.double()}, "labels": b} for a, b in in_batches(x, y)]
    whole = OfImage()
    expected = measure_invariance(whole, batches, OnKeys({"image": Flip()}))
    model.at, model.then = len(model.forwards) + 5, interrupt
    with pytest.raises(KeyboardInterrupt):
        measure_invariance(whole, batches, OnKeys({"image": Flip()}), checkpoint=tmp_path / "a.pt")
    model.at = None
    actual = measure_invariance(whole, batches, OnKeys({"image": Flip()}), checkpoint=tmp_path / "a.pt")
    assert_same_report(actual, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_what_a_loader_raises_interrupts_too(tmp_path, error):
    (x, y), model = data(), Stoppable(mlp())
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), saliency=None, samples=1)
    path = tmp_path / "audit.pt"

    def broken() -> Iterator[Any]:
        yield from in_batches(x, y)[:3]
        raise error

    with pytest.raises(error):
        measure_invariance(model, broken(), CyclicRotation(4), saliency=None, samples=1, checkpoint=path)
    before = len(model.forwards)
    actual = measure_invariance(model, in_batches(x, y), CyclicRotation(4), saliency=None, samples=1, checkpoint=path)
    assert_same_report(actual, expected)
    assert len(model.forwards) - before == 2 * 2


def test_it_can_be_interrupted_again_and_again(tmp_path):
    (x, y), model = data(), Stoppable(mlp(), noise=0.2)
    settings = {"saliency": None, "samples": 2}
    torch.manual_seed(1)
    expected = measure_invariance(model, in_batches(x, y, 2), CyclicRotation(4), **settings)
    path = tmp_path / "audit.pt"
    attempts = 0
    while attempts < 100:
        attempts += 1
        model.at, model.then = len(model.forwards) + 5, interrupt
        torch.manual_seed(1)
        try:
            actual = measure_invariance(model, in_batches(x, y, 2), CyclicRotation(4), checkpoint=path, **settings)
            break
        except KeyboardInterrupt:
            continue
    assert 5 < attempts < 100
    assert_same_report(actual, expected)


# What it costs


def test_what_was_audited_is_not_forwarded_again(tmp_path):
    """Stopped in the fourth of five batches, of which one and the last are left."""
    (x, y), model = data(), Stoppable(mlp())
    settings = {"saliency": None, "checkpoint": tmp_path / "audit.pt"}
    model.at, model.then = 1 + 4 * 3 + 2, interrupt
    with pytest.raises(KeyboardInterrupt):
        measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    model.at, before = None, len(model.forwards)
    measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    assert model.forwards[before:] == [5] * 4 + [4] * 4


def test_an_audit_that_is_finished_returns_at_once(tmp_path):
    (x, y), model = data(), Stoppable(mlp())
    settings = {"saliency": SaliencyMap(steps=2), "samples": 1, "checkpoint": tmp_path / "audit.pt"}
    first = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    before = len(model.forwards)
    for size in (5, 24, 7):
        assert_same_report(measure_invariance(model, in_batches(x, y, size), CyclicRotation(4), **settings), first, 0)
    assert len(model.forwards) == before
    assert first.saliency_examples


def test_an_audit_that_was_precise_enough_returns_at_once(tmp_path):
    (x, y), model = data(300), Stoppable(mlp())
    settings = {"saliency": None, "checkpoint": tmp_path / "audit.pt", "target_precision": 10}
    first = measure_invariance(model, in_batches(x, y, 60), CyclicRotation(4), **settings)
    before = len(model.forwards)
    again = measure_invariance(model, in_batches(x, y, 60), CyclicRotation(4), **settings)
    assert_same_report(again, first, 0)
    assert (again.ended, again.samples, len(model.forwards)) == ("precise", 120, before)
    other_size = measure_invariance(model, in_batches(x, y, 100), CyclicRotation(4), **settings)
    assert (other_size.ended, other_size.samples, len(model.forwards)) == ("precise", 120, before)
    settings["target_precision"] = None
    whole = measure_invariance(model, in_batches(x, y, 60), CyclicRotation(4), **settings)
    assert (whole.ended, whole.samples) == ("complete", 300)


def test_more_data_than_last_time_are_added(tmp_path):
    (x, y), model = data(), Stoppable(mlp())
    settings = {"saliency": None, "samples": 1}
    measure_invariance(model, in_batches(x[:10], y[:10]), SignFlip(), checkpoint=tmp_path / "audit.pt", **settings)
    actual = measure_invariance(model, in_batches(x, y), SignFlip(), checkpoint=tmp_path / "audit.pt", **settings)
    assert_same_report(actual, measure_invariance(model, in_batches(x, y), SignFlip(), **settings))


def test_saving_does_not_change_the_report(tmp_path):
    (x, y), model = data(), Stoppable(mlp(), noise=0.1)
    settings = {"saliency": SaliencyMap(steps=2), "samples": 2}
    torch.manual_seed(0)
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    actual = measure_invariance(model, in_batches(x, y), CyclicRotation(4), checkpoint=tmp_path / "a.pt", **settings)
    assert_same_report(actual, expected, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_saved_when_its_time_has_come(tmp_path, monkeypatch):
    (x, y), model = data(), Stoppable(mlp())
    path, seen = tmp_path / "audit.pt", []
    model.at, model.then = 10, lambda: seen.append(path.exists())
    measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None, checkpoint=path)
    path.unlink()
    monkeypatch.setattr(progress, "_SAVED_EVERY", 1e9)
    model.at = len(model.forwards) + 10
    measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None, checkpoint=str(path))
    assert seen == [True, False]
    assert path.exists()


# The file


def test_the_file_is_read_without_running_code_and_nothing_lies_beside_it(tmp_path):
    (x, y), model = data(), Stoppable(mlp(), noise=0.1)
    x[4] = torch.nan
    path = tmp_path / "audit.pt"
    settings = {"saliency": SaliencyMap(steps=2), "on_error": "skip", "kept_samples": 5}
    for batches in (in_batches(x, y), in_batches(x)):
        measure_invariance(model, batches, CyclicRotation(4), checkpoint=path, samples=2, **settings)
        assert torch.load(path, weights_only=True)["seen"] == 24
        assert [one.name for one in tmp_path.iterdir()] == ["audit.pt"]
        path.unlink()
    measure_invariance(model, in_batches(x), PlanarRotation(), checkpoint=path, samples=2, **settings)
    assert torch.load(path, weights_only=True)["tally"]["worst"]


def test_a_file_cut_off_is_never_there(tmp_path, monkeypatch):
    """If saving itself fails, what was saved before is still whole."""
    (x, y), model = data(), Stoppable(mlp())
    path = tmp_path / "audit.pt"
    settings = {"saliency": None, "checkpoint": path}
    measure_invariance(model, in_batches(x[:10], y[:10]), SignFlip(), **settings)
    before = path.read_bytes()
    real = torch.save

    def full(state: Any, to: Any) -> None:
        real(state, to)
        Path(to).write_bytes(Path(to).read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        measure_invariance(model, in_batches(x, y), SignFlip(), **settings)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["audit.pt"]


OTHERS: dict[str, dict[str, Any]] = {
    "group": {"group": Flip()},
    "output_action": {"output_action": lambda g, outputs: outputs},
    "outputs": {"outputs": "values"},
    "saliency": {"saliency": SaliencyMap(steps=2)},
    "saliency_samples": {"saliency_samples": 3},
    "samples": {"samples": 1},
    "mode": {"mode": "train"},
    "worst_samples": {"worst_samples": 3},
    "kept_samples": {"kept_samples": 3},
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_audit_with_other_settings_is_not_gone_on_with(tmp_path, name):
    (x, y), model = data(), Stoppable(mlp())
    path = tmp_path / "audit.pt"
    settings = {"group": SignFlip(), "saliency": None, "checkpoint": path}
    measure_invariance(model, in_batches(x, y), **settings)
    before, forwards = path.read_bytes(), len(model.forwards)
    with pytest.raises(ValueError, match=f"its {name} is .* another checkpoint"):
        measure_invariance(model, in_batches(x, y), **(settings | OTHERS[name]))
    assert path.read_bytes() == before
    assert len(model.forwards) == forwards


@pytest.mark.parametrize("change", ["weights", "buffers", "class"])
def test_an_audit_of_another_model_is_not_gone_on_with(tmp_path, change):
    x, y = data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double()
    settings = {"saliency": None, "checkpoint": tmp_path / "audit.pt"}
    measure_invariance(model, in_batches(x, y), SignFlip(), **settings)
    measure_invariance(model, in_batches(x, y), SignFlip(), **settings)
    with torch.no_grad():
        if change == "weights":
            model[1].weight[2, 5] += 1e-9
        elif change == "buffers":
            model[2].running_var.mul_(4)
        else:
            model = nn.Sequential(nn.Identity(), *model)
    with pytest.raises(ValueError, match="its model is"):
        measure_invariance(model, in_batches(x, y), SignFlip(), **settings)


def test_buffers_that_change_during_an_audit_do_not_make_it_another_model(tmp_path):
    """In training mode a batch norm counts its batches, also where the audit is saved."""
    x, y = data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double()
    stoppable = Stoppable(model)
    stoppable.at, stoppable.then = 7, interrupt
    settings = {"saliency": None, "checkpoint": tmp_path / "audit.pt", "mode": "train"}
    with pytest.raises(KeyboardInterrupt):
        measure_invariance(stoppable, in_batches(x, y, 6), SignFlip(), **settings)
    stoppable.at = None
    actual = measure_invariance(stoppable, in_batches(x, y, 6), SignFlip(), **settings)
    expected = measure_invariance(stoppable, in_batches(x, y, 6), SignFlip(), saliency=None, mode="train")
    assert_same_report(actual, expected)


@pytest.mark.parametrize("kind", ["text", "nothing", "tensor", "weights", "folder", "cut off"])
def test_a_file_that_is_no_saved_audit_says_so_and_is_left_alone(tmp_path, kind):
    (x, y), model = data(), Stoppable(mlp())
    path = tmp_path / "audit.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "tensor":
        torch.save(torch.ones(3), path)
    elif kind == "weights":
        torch.save(model.state_dict(), path)
    elif kind == "cut off":
        measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None, checkpoint=path)
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_text("accuracy: 0.9" if kind == "text" else "")
    before, forwards = None if path.is_dir() else path.read_bytes(), len(model.forwards)
    with pytest.raises(ValueError, match="checkpoint must be a file that an audit saved"):
        measure_invariance(model, in_batches(x, y), SignFlip(), saliency=None, checkpoint=path)
    assert path.is_dir() or path.read_bytes() == before
    assert len(model.forwards) == forwards


def test_a_folder_that_is_missing_is_known_before_the_audit(tmp_path):
    model = Stoppable(mlp())
    with pytest.raises(ValueError, match="a folder that exists"):
        measure_invariance(model, in_batches(*data()), SignFlip(), checkpoint=tmp_path / "missing" / "audit.pt")
    assert model.forwards == []


def test_skipping_may_be_decided_after_a_failure(tmp_path):
    """As the message of the failure says, which may come after hours."""
    (x, y), model = data(), Stoppable(mlp())
    x[13] = torch.nan
    settings = {"saliency": None, "samples": 1}
    path = tmp_path / "audit.pt"
    with pytest.raises(ValueError, match='on_error="skip"'):
        measure_invariance(model, in_batches(x, y), CyclicRotation(4), checkpoint=path, **settings)
    settings["on_error"] = "skip"
    actual = measure_invariance(model, in_batches(x, y), CyclicRotation(4), checkpoint=path, **settings)
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    assert_same_report(actual, expected)
    assert actual.skipped == 1


# Another process


def run_killed(path: Path, report: Path, at: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.audit.killed", str(path), str(report), str(at)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_process_that_is_killed_is_gone_on_with_by_another_one(tmp_path):
    """With drawn elements, maps of a function, noise, a shuffled loader and an action on outputs, all in one."""
    path, report = tmp_path / "audit.pt", tmp_path / "report.json"
    first = run_killed(path, report, 13)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert path.exists()
    assert not report.exists()
    second = run_killed(path, report, -1)
    assert second.returncode == 0, second.stderr
    forwards = int(second.stdout)
    actual = InvarianceReport.from_dict(json.loads(report.read_text()))
    expected, all_forwards = killed.audit(None, -1)
    assert_same_report(actual, expected, pictures=False)
    assert 0 < forwards < all_forwards
    assert sorted(one.name for one in tmp_path.iterdir()) == ["audit.pt", "report.json"]


# The state itself


def test_a_state_is_a_snapshot():
    """What is measured afterwards does not change it, and two audits made of it do not change one another."""
    (x, y), model = data(), mlp()
    settings = {"saliency": SaliencyMap(steps=2), "kept_samples": 3, "saliency_samples": None}

    def audit() -> InvarianceAudit:
        return InvarianceAudit(model, CyclicRotation(4), **settings)

    expected = measure_invariance(model, in_batches(x[:10], y[:10]), CyclicRotation(4), **settings)
    first = audit()
    for inputs, labels in in_batches(x[:10], y[:10]):
        first.update(inputs, labels)
    state, report = first.state_dict(), first.report()
    first.update(x[10:], y[10:])
    first.report()
    second, third = audit(), audit()
    second.load_state_dict(state)
    assert_same_report(second.report(), expected)
    second.update(x[10:], y[10:])
    third.load_state_dict(state)
    assert_same_report(third.report(), expected)
    assert_same_report(report, expected)
    assert_same_report(second.report(), first.report())


def test_a_state_that_is_loaded_is_gone_on_with_by_hand(tmp_path):
    (x, y), model = data(), mlp()
    settings = {"saliency": SaliencyMap(steps=2), "samples": 2}
    expected = measure_invariance(model, in_batches(x, y), CyclicRotation(4), **settings)
    first = InvarianceAudit(model, CyclicRotation(4), **settings)
    first.update(x[:10], y[:10])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = InvarianceAudit(model, CyclicRotation(4), **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.update(x[10:], y[10:])
    assert_same_report(second.report(), expected)


def test_maps_of_a_function_are_the_same_setting_in_another_process():
    """Where a function lies in memory is not what it is."""
    audits = [InvarianceAudit(mlp(), SignFlip(), saliency=SaliencyMap(attribution=one)) for one in make_two()]
    settings = [audit.state_dict()["settings"]["saliency"] for audit in audits]
    assert not any("0x" in setting for setting in settings)


def make_two() -> list[Callable[..., Tensor]]:
    def gradients(model: Any, x: Tensor, target: Any) -> Tensor:
        return x

    first = gradients

    def gradients(model: Any, x: Tensor, target: Any) -> Tensor:
        return x

    return [first, gradients]


# Of the same data and model


def test_a_loader_that_yields_fewer_samples_than_were_audited_is_refused(tmp_path):
    model, x = mlp(), images(9)
    options = {"saliency": None, "checkpoint": tmp_path / "audit.pt"}
    measure_invariance(model, in_batches(x), CyclicRotation(4), **options)
    with pytest.raises(ValueError, match=r"it yielded 3, and 9 were audited before"):
        measure_invariance(model, in_batches(x[:3]), CyclicRotation(4), **options)


def test_other_data_are_refused(tmp_path):
    model, x = mlp(), images(9)
    options = {"saliency": None, "checkpoint": tmp_path / "audit.pt"}
    measure_invariance(model, in_batches(x), CyclicRotation(4), **options)
    with pytest.raises(ValueError, match=r"its first sample is"):
        measure_invariance(model, in_batches(x.flip(0)), CyclicRotation(4), **options)


def test_a_callable_is_told_by_the_modules_that_it_calls(tmp_path):
    nets, x = [mlp(), mlp()], images(9)

    class Held:
        def __init__(self, net):
            self.net = net

        def __call__(self, v):
            return self.net(v)

        def method(self, v):
            return self.net(v)

    def call(net, v):
        return net(v)

    makers = {
        "closure": lambda net: lambda v: net(v),
        "object": Held,
        "partial": lambda net: functools.partial(call, net),
    }
    for name, make in makers.items():
        options = {"saliency": None, "checkpoint": tmp_path / name}
        measure_invariance(make(nets[0]), in_batches(x), CyclicRotation(4), **options)
        measure_invariance(make(nets[0]), in_batches(x), CyclicRotation(4), **options)
        with pytest.raises(ValueError, match=r"its model is"):
            measure_invariance(make(nets[1]), in_batches(x), CyclicRotation(4), **options)


def test_buffers_that_a_forward_changes_are_no_other_model(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SAVED_EVERY", -1.0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).double()
    path, x = tmp_path / "audit.pt", images(9)

    def batches():
        for number, batch in enumerate(in_batches(x)):
            if number == 2:
                (tmp_path / "middle.pt").write_bytes(path.read_bytes())  # as a kill would leave it
            yield batch

    options = {"saliency": None, "mode": "train"}
    whole = measure_invariance(model, batches(), CyclicRotation(4), checkpoint=path, **options)
    again = measure_invariance(model, in_batches(x), CyclicRotation(4), checkpoint=tmp_path / "middle.pt", **options)
    assert again == whole


def test_other_data_are_refused_by_an_audit_that_was_precise_enough_too(tmp_path):
    model, x = mlp(), images(150)
    options = {"saliency": None, "checkpoint": tmp_path / "audit.pt", "target_precision": 10.0}
    first = measure_invariance(model, in_batches(x, size=50), CyclicRotation(4), **options)
    assert first.ended == "precise"
    assert measure_invariance(model, in_batches(x, size=50), CyclicRotation(4), **options) == first
    with pytest.raises(ValueError, match=r"its first sample is"):
        measure_invariance(model, in_batches(x.flip(0), size=50), CyclicRotation(4), **options)
