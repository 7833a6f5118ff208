"""Does the command measure what it is asked to, say so, and end as it is documented to?"""

import errno
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invreg import CyclicRotation, Flip, InvarianceReport, PlanarRotation, measure_invariance
from invreg.cli import main
from invreg.cli.arguments import BOUNDED, parser
from tests.cli import nets
from tests.cli.test_data import idx
from tests.cli.test_models import exported

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
COUNT = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same pictures in all forms that there are, and as tensors."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (COUNT, 8, 8), np.uint8), np.sort(rng.integers(0, 3, COUNT))
    np.savez(folder / "d.npz", x=pixels, y=labels)
    np.save(folder / "x.npy", pixels[:, None] / np.float32(255))
    np.save(folder / "y.npy", labels)
    (folder / "images-idx3").write_bytes(idx(pixels))
    (folder / "labels-idx1").write_bytes(idx(labels))
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / "pictures" / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{index:03}.png")
    return folder, torch.from_numpy(pixels)[:, None] / 255, torch.from_numpy(labels)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in this process, in a folder of its own; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def audit(run, data):
    """Audits a model under quarter turns, if nothing else is said."""

    def audit(*arguments, model="tests.cli.nets:Plain", data=data[0] / "d.npz", group="C4"):
        return run("audit", "--model", model, "--data", data, "--group", group, *arguments)

    return audit


def report_in(file):
    return InvarianceReport.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))


def same_numbers(found, wanted, but=()):
    assert found.estimates.keys() - set(but) == wanted.estimates.keys() - set(but)
    assert {"logit_error", "distribution_error", "consistency"} <= found.estimates.keys()
    for name in found.estimates.keys() - set(but):
        a, b = found.estimates[name], wanted.estimates[name]
        assert a.count == b.count
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(a.standard_error, b.standard_error, rtol=1e-5, atol=1e-9)


# What is measured


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("d.npz", ()),
        ("d.npz", ("--batch-size", 7)),
        ("x.npy", ("--labels", "y.npy")),
        ("images-idx3", ()),
        ("pictures", ("--grey",)),
    ],
)
def test_numbers_are_those_of_measure_invariance(audit, data, file, options):
    folder, x, y = data
    options = [folder / one if str(one).endswith(".npy") else one for one in options]
    code, out, err = audit("--json", "r.json", *options, data=folder / file)
    assert (code, err) == (0, "")
    found = report_in("r.json")
    same_numbers(found, measure_invariance(nets.Plain(), [(x, y)], CyclicRotation(4), saliency=None))
    assert found.accuracy is not None
    assert found.ended == "complete"
    assert out.startswith("Invariance of Plain to CyclicRotation(order=4)\n30 samples")
    assert f"{found.logit_error}" in out
    assert file in found.provenance["data"]


def test_real_data(audit):
    images = REAL / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not images.is_file():
        pytest.skip(f"no real data at {images}")
    code, _, err = audit("--limit", 200, "--json", "r.json", model="tests.cli.nets:Digits", data=images)
    assert (code, err) == (0, "")
    found = report_in("r.json")
    assert len(found.per_class) == 10
    content = gzip.decompress(images.read_bytes())[16:]
    rows = found.per_sample["index"]
    pixels = np.frombuffer(content, np.uint8).reshape(-1, 1, 28, 28)[rows]
    labels = gzip.decompress(images.with_name("t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    batch = torch.from_numpy(pixels) / 255, torch.tensor(list(labels))[rows]
    same_numbers(found, measure_invariance(nets.Digits(), [batch], CyclicRotation(4), saliency=None))


def test_preparation_reaches_the_model(audit, data):
    _, x, y = data
    code, _, _ = audit("--mean", "0.5", "--std", "0.25", "--json", "r.json")
    assert code == 0
    wanted = measure_invariance(nets.Plain(), [((x - 0.5) / 0.25, y)], CyclicRotation(4), saliency=None)
    same_numbers(report_in("r.json"), wanted)


def test_models_of_other_dtypes(audit, data):
    _, x, y = data
    assert audit("--json", "r.json", model="tests.cli.nets:Wide")[0] == 0
    wanted = measure_invariance(nets.Wide(), [(x.double(), y)], CyclicRotation(4), saliency=None)
    same_numbers(report_in("r.json"), wanted)


def test_exported_programs(audit, data, tmp_path):
    _, x, y = data
    wanted = measure_invariance(nets.Plain(), [(x, y)], CyclicRotation(4), saliency=None)
    for name, rows in (("static.pt2", None), ("dynamic.pt2", torch.export.Dim.DYNAMIC)):
        code, out, err = audit("--json", "r.json", model=exported(tmp_path / name, rows, batch=7))
        assert (code, err) == (0, "")
        same_numbers(report_in("r.json"), wanted)
        assert out.startswith(f"Invariance of {name} to")


def test_weights(audit, tmp_path):
    torch.save({"state_dict": nets.zeros().state_dict()}, tmp_path / "w.pt")
    assert audit("--weights", tmp_path / "w.pt", "--json", "r.json")[0] == 0
    assert report_in("r.json").logit_error.mean == 0
    assert audit("--json", "r.json")[0] == 0
    assert report_in("r.json").logit_error.mean > 0


def test_a_model_and_a_group_in_the_current_directory(audit, tmp_path):
    """And the path is afterwards what it was."""
    (tmp_path / "beside_this_test.py").write_text(
        "from tests.cli.nets import Averaging as model\nfrom invreg import Flip\n\ndef group():\n    return Flip(-2)\n"
    )
    before = list(sys.path)
    code, out, _ = audit(model="beside_this_test:model", group="beside_this_test:group")
    assert code == 0
    assert out.startswith("Invariance of Averaging to Flip(dim=-2)")
    assert sys.path == before


def test_infinite_groups_draw_elements(audit, data):
    _, x, y = data

    def wanted(samples, seed):
        rng = torch.Generator().manual_seed(seed)
        return measure_invariance(nets.Plain(), [(x, y)], PlanarRotation(), saliency=None, samples=samples, rng=rng)

    for options, samples, seed in (((), 4, 0), (("--samples", 2, "--seed", 3), 2, 3)):
        assert audit("--json", "r.json", *options, group="SO2")[0] == 0
        found = report_in("r.json")
        assert found.elements == samples
        same_numbers(found, wanted(samples, seed))
        assert "action's own error" in str(found)


@pytest.mark.parametrize(("group", "elements"), [("S1:1", 0), ("S2:1", 1), ("trivial", 0), ("S3:1", 4)])
def test_small_groups_have_no_more_elements_than_there_are(audit, tmp_path, group, elements):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((5, int(group[1]) if group[1].isdigit() else 3, 4)))
    assert audit("--json", "r.json", model="tests.cli.nets:Averaging", data=tmp_path / "d.npz", group=group)[0] == 0
    assert report_in("r.json").elements == elements


def test_changes_that_are_no_group(audit):
    code, out, _ = audit("--json", "r.json", group="brightness:0.2,-0.2")
    assert code == 0
    model = nets.Plain()
    change = model.head.weight.detach().sum(1) * 0.2
    torch.testing.assert_close(
        report_in("r.json").logit_error.mean, float(change.square().sum()) / 2, rtol=1e-4, atol=0
    )
    assert "which is no group" in out
    assert "brightness -0.2" in out


def test_noise_repeats_itself(audit):
    found = []
    for seed in (1, 1, 2):
        assert audit("--json", "r.json", "--seed", seed, group="noise:0.5")[0] == 0
        found.append(report_in("r.json").logit_error.mean)
    assert found[0] == found[1] != found[2]


def test_outputs_that_are_no_logits(audit):
    code, out, _ = audit("--outputs", "values", "--json", "r.json", model="tests.cli.nets:Embedding")
    assert code == 0
    found = report_in("r.json")
    assert found.logit_error.mean > 0
    assert found.accuracy is None
    assert found.consistency is None
    assert "accuracy" not in out


def test_saliency_is_off_unless_asked_for(audit):
    assert audit("--json", "r.json")[0] == 0
    assert report_in("r.json").saliency_similarity is None
    assert audit("--json", "r.json", "--saliency", "--limit", 6, group="flip")[0] == 0
    assert report_in("r.json").saliency_similarity.count == 6


def test_labels_can_be_left_out(audit):
    assert audit("--json", "r.json", "--no-labels")[0] == 0
    assert report_in("r.json").accuracy is None


# A part of the data


def test_a_limit_draws_from_all_data_and_names_what_it_drew(audit, data):
    _, x, y = data
    assert audit("--limit", 12, "--seed", 3, "--json", "r.json")[0] == 0
    found = report_in("r.json")
    indices = found.per_sample["index"].tolist()
    assert indices == sorted(set(indices))
    assert len(indices) == found.samples == 12
    assert max(indices) >= 12, "not the first ones, which have one label often"
    assert found.per_sample["label"].tolist() == y[indices].tolist()
    whole = measure_invariance(nets.Plain(), [(x, y)], CyclicRotation(4), saliency=None)
    errors = whole.per_sample["logit_error"][indices]
    np.testing.assert_allclose(found.per_sample["logit_error"], errors, rtol=1e-6)
    worst = found.worst_samples[0]
    assert worst.index == indices[int(found.per_sample["worst_logit_error"].argmax())]
    assert "12 of 30" in found.provenance["data"]
    assert audit("--limit", 12, "--seed", 4, "--json", "r.json")[0] == 0
    assert report_in("r.json").per_sample["index"].tolist() != indices


def test_files_of_the_least_invariant_pictures_are_named(audit, data):
    folder, _, _ = data
    code, out, _ = audit("--grey", "--limit", 20, "--json", "r.json", data=folder / "pictures")
    assert code == 0
    files = sorted((folder / "pictures").rglob("*.png"))
    for worst in report_in("r.json").worst_samples:
        assert worst.source == str(files[worst.index])
        assert f"sample {worst.index}, {worst.source}" in out


def test_folders_named_by_numbers_are_these_classes(audit, data, tmp_path):
    folder, _, _ = data
    for name, number in (("a", "2"), ("b", "0")):
        (tmp_path / "n" / number).mkdir(parents=True)
        for one in sorted((folder / "pictures" / name).glob("*.png"))[:3]:
            (tmp_path / "n" / number / one.name).write_bytes(one.read_bytes())
    code, _, _ = audit("--grey", "--json", "r.json", data=tmp_path / "n")
    assert code == 0
    assert [one.label for one in report_in("r.json").per_class] == [0, 2]


def test_classes_are_called_by_their_folders(audit, data):
    folder, _, _ = data
    code, out, _ = audit("--grey", "--json", "r.json", data=folder / "pictures")
    assert code == 0
    assert "class 0 (a)" in [one.name for one in report_in("r.json").per_class]
    assert "class 0 (a)" in out
    assert report_in("r.json").provenance["command"].startswith("invreg audit ")


def test_pictures_of_other_channels_than_the_model_wants_get_a_hint(audit, data):
    folder, _, _ = data
    code, _, err = audit(data=folder / "pictures")
    assert code == 2
    assert "--grey makes one channel" in err


def test_it_stops_when_it_is_precise(audit, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((600, 8, 8)))
    code, out, _ = audit("--precision", 0.2, "--batch-size", 20, "--json", "r.json", data=tmp_path / "d.npz")
    assert code == 0
    found = report_in("r.json")
    assert found.ended == "precise"
    assert 100 <= found.samples < 600
    assert max(found.per_sample["index"]) > found.samples, "they come in an order that was drawn"
    assert "Stopped after" in out


# What cannot be read


@pytest.fixture
def damaged(tmp_path, data):
    """A folder of pictures of which one is damaged."""
    folder = tmp_path / "pictures"
    files = sorted((data[0] / "pictures").rglob("*.png"))
    for file in files:
        place = folder / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes()[: 40 if file == files[11] else None])
    return folder, files[11].name


def test_a_damaged_picture_ends_the_audit(audit, damaged):
    folder, name = damaged
    code, out, err = audit("--grey", data=folder)
    assert (code, out) == (2, "")
    assert one_error(err).endswith(name) or name in err


@pytest.mark.parametrize("options", [(), ("--limit", 30)])
def test_a_damaged_picture_is_skipped(audit, damaged, options):
    folder, name = damaged
    code, out, err = audit("--grey", "--on-error", "skip", "--json", "r.json", "--layers", *options, data=folder)
    assert (code, err) == (0, "")
    found = report_in("r.json")
    assert (found.samples, found.seen, found.skipped) == (29, 30, 1)
    (skipped,) = found.skipped_samples
    assert skipped.index == 11
    assert name in skipped.reason
    assert "SKIPPED: 1 sample of 30" in out
    assert "Layers of Plain" in out
    assert "\n29 samples" in out.split("Layers of Plain")[1]


# What is written


def test_files_are_written(audit):
    code, out, _ = audit("--json", "r.json", "--markdown", "r.md", "--layers")
    assert code == 0
    found = report_in("r.json")
    text = Path("r.md").read_text(encoding="utf-8")
    assert text.startswith(found.to_markdown())
    assert f"{found}" in out
    layers = out[out.index("Layers of Plain") :].strip()
    assert re.search(r"^head +Linear", layers, re.MULTILINE)
    assert layers in text


def test_a_page_is_written(audit):
    code, _, err = audit("--html", "r.html", "--layers")
    assert (code, err) == (0, "")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "CyclicRotation(order=4)" in page
    assert "Linear" in page


# Bounds


@pytest.fixture(scope="module")
def measured(data):
    return measure_invariance(nets.Plain(), [data[1:]], CyclicRotation(4), saliency=None)


@pytest.mark.parametrize("name", BOUNDED)
def test_an_error_beyond_its_bound(audit, measured, name):
    value = measured.estimates[name].mean
    code, out, err = audit("--max-error", f"{name}={value * 0.75}")
    assert code == 1
    assert "Invariance of Plain" in out
    assert err.startswith(f"invreg: {name} is {measured.estimates[name]}, which is ")
    assert f"{value * 0.25:.3g}"[:4] in err
    assert err.count("\n") == 1
    code, out, err = audit("--max-error", f"{name}={value * 1.01}")
    assert (code, err) == (0, "")
    assert f"{name} is {measured.estimates[name]}, not above its bound" in out


def test_several_bounds(audit, measured):
    largest = measured.worst_logit_error.mean * 2
    options = ("--max-error", largest, "--max-error", "distribution_error=0", "--min-consistency", "1")
    code, out, err = audit(*options, "--json", "r.json")
    assert code == 1
    assert "logit_error is" in out
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("invreg: distribution_error is ")
    assert re.fullmatch(r"invreg: consistency is \S+ ± \S+, which is \S+ below its bound of 1", lines[1])
    assert Path("r.json").is_file()


def test_consistency_that_is_kept(audit):
    code, out, err = audit("--min-consistency", 1, "--max-error", "1e-9", model="tests.cli.nets:Averaging")
    assert (code, err) == (0, "")
    assert "consistency is 1 ± 0, not below its bound of 1" in out


def test_a_bound_itself_is_allowed(audit):
    assert audit("--max-error", 0, model="tests.cli.nets:zeros")[0] == 0


# What cannot be done


def one_error(err):
    """The one line that a failure prints."""
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("invreg: error: ")
    return line


WRONG = {
    "no command": ((), "are required: {audit,groups}"),
    "unknown command": (("measure",), "invalid choice: 'measure'"),
    "no arguments": (("audit",), "--model, --data, --group"),
    "unknown argument": (("audit", "MODEL", "DATA", "GROUP", "--fast"), "--fast"),
    "abbreviation": (("audit", "MODEL", "DATA", "GROUP", "--limi", "3"), "unrecognized arguments: --limi"),
    "size": (("audit", "MODEL", "DATA", "GROUP", "--size", "big"), "HEIGHTxWIDTH"),
    "size of nothing": (("audit", "MODEL", "DATA", "GROUP", "--size", "0x8"), "HEIGHTxWIDTH"),
    "mean": (("audit", "MODEL", "DATA", "GROUP", "--mean", "1,a"), "expected a number: got 'a'"),
    "deviation": (("audit", "MODEL", "DATA", "GROUP", "--std", "1,0,1"), "--std must be above 0"),
    "channels": (("audit", "MODEL", "DATA", "GROUP", "--std", "1,2"), "--std takes one value"),
    "no pictures": (("audit", "MODEL", "ROWS", "GROUP", "--size", "8"), "for pictures"),
    "limit": (("audit", "MODEL", "DATA", "GROUP", "--limit", "0"), "1 or more"),
    "batch": (("audit", "MODEL", "DATA", "GROUP", "--batch-size", "x"), "1 or more"),
    "seed": (("audit", "MODEL", "DATA", "GROUP", "--seed", "-1"), "0 or more"),
    "samples": (("audit", "MODEL", "DATA", "GROUP", "--samples", "4"), "1 to 3"),
    "precision": (("audit", "MODEL", "DATA", "GROUP", "--precision", "0"), "above 0"),
    "bound": (("audit", "MODEL", "DATA", "GROUP", "--max-error", "small"), "expected a number: got 'small'"),
    "negative bound": (("audit", "MODEL", "DATA", "GROUP", "--max-error=-1"), "0 or more"),
    "bound of what": (("audit", "MODEL", "DATA", "GROUP", "--max-error", "error=1"), "logit_error"),
    "bound of no logits": (
        ("audit", "MODEL", "DATA", "GROUP", "--outputs", "values", "--min-consistency", "0.5"),
        "no consistency",
    ),
    "saliency of no logits": (
        ("audit", "MODEL", "DATA", "GROUP", "--outputs", "values", "--saliency"),
        "leave --saliency out",
    ),
    "share": (("audit", "MODEL", "DATA", "GROUP", "--min-consistency", "95"), "between 0 and 1"),
    "folder of results": (("audit", "MODEL", "DATA", "GROUP", "--json", "absent/r.json"), "--json must be a file"),
    "folder as result": (("audit", "MODEL", "DATA", "GROUP", "--html", "."), "--html must be a file"),
    "checkpoint": (("audit", "MODEL", "DATA", "GROUP", "--checkpoint", "absent/c"), "--checkpoint must be a file"),
    "damaged checkpoint": (("audit", "MODEL", "DATA", "GROUP", "--checkpoint", "JUNK"), "checkpoint must be a file"),
    "labels twice": (("audit", "MODEL", "DATA", "GROUP", "--labels", "y", "--no-labels"), "not allowed with"),
    "labels and key": (("audit", "MODEL", "DATA", "GROUP", "--label-key", "y", "--no-labels"), "give one"),
    "key": (("audit", "MODEL", "DATA", "GROUP", "--input-key", "z"), "under 'z'"),
    "no data": (("audit", "MODEL", "--data=absent", "GROUP"), "absent is neither a folder nor a file"),
    "other data": (("audit", "MODEL", "--data=JUNK", "GROUP"), "none of the files that can be read"),
    "no module": (("audit", "--model=absent:model", "DATA", "GROUP"), "No module named 'absent'"),
    "no model": (("audit", "--model=tests.cli.nets:absent", "DATA", "GROUP"), "no attribute 'absent'"),
    "failing factory": (("audit", "--model=tests.cli.nets:fails", "DATA", "GROUP"), "no such luck at all"),
    "other channels": (("audit", "--model=tests.cli.nets:Coloured", "DATA", "GROUP"), "(30, 1, 8, 8)"),
    "layers of a function": (("audit", "--model=tests.cli.nets:function", "DATA", "GROUP", "--layers"), "nn.Module"),
    "not finite": (("audit", "--model=tests.cli.nets:nan", "DATA", "GROUP"), "finite"),
    "no weights": (("audit", "MODEL", "DATA", "GROUP", "--weights", "absent"), "absent is no file"),
    "other weights": (("audit", "MODEL", "DATA", "GROUP", "--weights", "OTHER"), "does not fit the model"),
    "junk as weights": (("audit", "MODEL", "DATA", "GROUP", "--weights", "JUNK"), "JUNK"),
    "device": (("audit", "MODEL", "DATA", "GROUP", "--device", "toaster"), "cannot be moved to 'toaster'"),
    "no group": (("audit", "MODEL", "DATA", "--group=C"), "'C' is no group"),
    "group that does not fit": (("audit", "MODEL", "DATA", "--group=T3:x"), "whose size it must divide: got size 8"),
    "group of channels": (("audit", "MODEL", "DATA", "--group=P3:1"), "got size 1"),
    "no product": (("audit", "MODEL", "DATA", "--group=C4*flip"), "must commute"),
    "labels out of range": (("audit", "MODEL", "LABELS", "GROUP"), "between 0 and 2"),
}


@pytest.fixture
def words(data, tmp_path):
    """What stands for the arguments in the table above."""
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 4)))
    np.savez(tmp_path / "labels.npz", x=np.ones((3, 8, 8), np.uint8), y=np.array([0, 1, 9]))
    (tmp_path / "JUNK").write_text("this is no such file")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "OTHER")
    return {
        "MODEL": "--model=tests.cli.nets:Plain",
        "DATA": f"--data={data[0] / 'd.npz'}",
        "GROUP": "--group=C4",
        "ROWS": f"--data={tmp_path / 'rows.npz'}",
        "LABELS": f"--data={tmp_path / 'labels.npz'}",
    }


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_on_one_line(run, words, case):
    arguments, says = WRONG[case]
    code, out, err = run(*(words.get(one, one) for one in arguments))
    assert (code, out) == (2, "")
    assert says.lower() in one_error(err).lower()


def test_the_same_arguments_are_right_otherwise(run, words):
    """Else the table above would show nothing."""
    assert run("audit", *(words[one] for one in ("MODEL", "DATA", "GROUP")))[0] == 0


def test_a_traceback_for_those_who_ask(run, words):
    code, _, err = run("audit", "--model=tests.cli.nets:fails", words["DATA"], words["GROUP"], "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "no such luck" in err
    assert "in fails" in err


def test_long_errors_are_cut(run, words, monkeypatch):
    def fails():
        raise LookupError(5000 * "x")

    monkeypatch.setattr(nets, "plain", fails)
    code, _, err = run("audit", "--model=tests.cli.nets:plain", words["DATA"], words["GROUP"])
    assert code == 2
    assert len(one_error(err)) < 1200


# Help


def test_help_explains_every_argument(run):
    code, out, err = run("audit", "--help")
    assert (code, err) == (0, "")
    (commands,) = (action for action in parser()._actions if action.dest == "command")
    actions = commands.choices["audit"]._actions
    assert len(actions) > 25
    for action in actions:
        assert action.help, action.dest
        assert all(option in out for option in action.option_strings)
    assert "examples:\n  invreg audit --model" in out
    assert "exit codes:" in out


def test_examples_in_the_help_can_be_parsed():
    (commands,) = (action for action in parser()._actions if action.dest == "command")
    examples = re.findall(r"^  invreg (audit .*)$", commands.choices["audit"].epilog, re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        assert parser().parse_args(example.replace("'", "").split()).command == "audit"


@pytest.mark.parametrize("arguments", [("--help",), ("groups", "--help")])
def test_other_help(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage: invreg")


def test_version(run):
    import invreg

    assert run("--version") == (0, f"invreg {invreg.__version__}\n", "")


def test_groups_are_listed(run):
    code, out, err = run("groups")
    assert (code, err) == (0, "")
    for form in ("CN", "DN", "TN[:axis]", "SO3", "T3:x*T3:y", "x is the last axis"):
        assert form in out


# Ctrl-C


def test_an_interrupted_audit_prints_and_writes_what_it_has(audit, monkeypatch):
    monkeypatch.setattr(nets, "plain", lambda: nets.Interrupted(12))
    model = "tests.cli.nets:plain"
    files = ("--json", "r.json", "--markdown", "r.md")
    code, out, err = audit("--batch-size", 10, "--max-error", 0, "--layers", *files, model=model)
    assert code == 130
    found = report_in("r.json")
    assert found.ended == "interrupted"
    assert found.samples == 20
    assert "PARTIAL" in out
    assert "Layers of" not in out
    assert err == "invreg: interrupted: the report is partial, of the samples until then\n"
    assert "PARTIAL" in Path("r.md").read_text(encoding="utf-8")


def test_an_audit_that_is_interrupted_at_once(audit):
    code, out, err = audit("--json", "r.json", model="tests.cli.nets:interrupted_at_once")
    assert (code, out, err) == (130, "", "invreg: interrupted\n")
    assert not Path("r.json").exists()


def test_layers_that_are_interrupted(audit, monkeypatch):
    monkeypatch.setattr(nets, "plain", lambda: nets.Interrupted(7))
    code, out, err = audit("--layers", "--json", "r.json", model="tests.cli.nets:plain")
    assert code == 130
    assert report_in("r.json").ended == "complete"
    assert "PARTIAL" not in out
    assert err == "invreg: interrupted while the layers were measured: the report is without them\n"


def test_layers_that_fail(audit, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no layers today")

    monkeypatch.setattr("invreg.cli.command.measure_layers", fails)
    code, out, err = audit("--layers", "--json", "r.json")
    assert code == 2
    assert "no layers today" in one_error(err)
    assert out.startswith("Invariance of Plain")
    assert report_in("r.json").samples == COUNT


# Where the output goes


def test_output_that_nobody_reads(run, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["groups"]) == 0
        assert main(["--help"]) == 0
        pipe.write("more")  # which leads nowhere, and raises nothing


def test_output_that_is_closed(run, data, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    command = ["audit", "--model=tests.cli.nets:Plain", f"--data={data[0] / 'd.npz'}", "--group=C4", "--json=r.json"]
    assert main(command) == 0
    assert report_in("r.json").samples == COUNT


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_to_a_full_disk(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["groups"]) == 2
    assert "No space left" in one_error(capsys.readouterr().err)


def test_a_file_that_cannot_be_written_costs_no_other(audit, monkeypatch):
    original = Path.write_text

    def write_text(self, *arguments, **options):
        if self.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    code, out, err = audit("--json", "r.json", "--markdown", "r.md")
    assert code == 2
    assert "No space left" in one_error(err)
    assert out.startswith("Invariance of Plain")
    assert Path("r.md").is_file()


def test_output_in_a_narrow_encoding(run, monkeypatch, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert main(["groups"]) == 0
    assert "360?/N" in (tmp_path / "out.txt").read_text()


# In a process of its own


def command(*arguments):
    return [sys.executable, "-m", "invreg", *map(str, arguments)]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | more


def test_python_m_invreg(data, tmp_path):
    """In a folder that has the model, without a terminal: plain text, and nothing else."""
    (tmp_path / "here.py").write_text("from tests.cli.nets import Plain\n")
    done = subprocess.run(
        command("audit", "--model", "here:Plain", "--data", data[0] / "d.npz", "--group", "C4", "--max-error", "0"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert done.stdout.startswith("Invariance of Plain to CyclicRotation(order=4)\n30 samples")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert re.fullmatch(r"invreg: logit_error is .* above its bound of 0\n", done.stderr)


def test_a_broken_pipe_leaves_the_files_and_no_traceback(data, tmp_path):
    process = subprocess.Popen(
        command(
            *("audit", "--model=tests.cli.nets:Plain", f"--data={data[0] / 'd.npz'}", "--group=C4", "--json=r.json")
        ),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # before it has anything to say
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (0, b"")
    assert report_in(tmp_path / "r.json").samples == COUNT


def test_ctrl_c_and_going_on(audit, data, tmp_path, measured):
    """A real signal in mid-audit; a second audit with the same checkpoint has the numbers of an undisturbed one."""
    forwards = tmp_path / "forwards"
    common = ["--batch-size", "4", "--checkpoint", str(tmp_path / "audit.ckpt"), "--json", str(tmp_path / "r.json")]
    arguments = ["audit", "--model=tests.cli.nets:Slow", f"--data={data[0] / 'd.npz'}", "--group=C4", *common]
    # A process started in the background may have been told to ignore the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from invreg.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(TEST_PAUSE="0.1", TEST_FORWARDS=str(forwards)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    deadline = time.monotonic() + 60
    while not (forwards.exists() and int(forwards.read_text() or 0) >= 14):  # of 33
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "PARTIAL" in out
    assert err == (
        "invreg: interrupted: the report is partial, of the samples until then; the same command goes on from there\n"
    )
    partial = report_in(tmp_path / "r.json")
    assert partial.ended == "interrupted"
    assert 4 <= partial.samples < COUNT

    calls = []
    original = nets.Plain.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nets.Plain, "forward", lambda self, x: (calls.append(len(x)), original(self, x))[1])
        code, out, err = audit(*common, model="tests.cli.nets:Slow")
    assert (code, err) == (0, "")
    found = report_in(tmp_path / "r.json")
    assert found.ended == "complete"
    assert "PARTIAL" not in out
    same_numbers(found, measured)
    assert 0 < sum(calls) < 4 * COUNT, "what was measured before is not measured again"


@pytest.mark.parametrize(
    "other",
    [
        ("--mean", "0.5"),
        ("--limit", "20"),
        ("--limit", "30", "--seed", "1"),
        ("--no-labels",),
        ("--input-key", "other"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(audit, tmp_path, other):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.random((30, 8, 8)), "other": rng.random((30, 8, 8)), "y": np.arange(30) % 3}
    np.savez(tmp_path / "d.npz", **arrays)
    common = ("--checkpoint", tmp_path / "c.ckpt", "--json", tmp_path / "r.json")
    assert audit(*common, data=tmp_path / "d.npz")[0] == 0
    before = report_in(tmp_path / "r.json")
    code, out, err = audit(*common, *other, data=tmp_path / "d.npz")
    assert (code, out) == (2, "")
    assert "its first sample is" in one_error(err)
    assert audit(*common, "--batch-size", 4, data=tmp_path / "d.npz")[0] == 0
    assert report_in(tmp_path / "r.json").logit_error == before.logit_error


def test_a_checkpoint_of_another_audit_is_refused(audit, tmp_path):
    assert audit("--checkpoint", tmp_path / "c.ckpt")[0] == 0
    for options, says in (({"group": "C2"}, "group"), ({"model": "tests.cli.nets:zeros"}, "model")):
        code, _, err = audit("--checkpoint", tmp_path / "c.ckpt", **options)
        assert code == 2
        assert f"its {says} is" in one_error(err)


def test_flip_of_pictures_is_the_one_of_the_library(audit, data):
    _, x, y = data
    for word, group in (("flip:x", Flip(-1)), ("flip:y", Flip(-2))):
        assert audit("--json", "r.json", group=word)[0] == 0
        same_numbers(report_in("r.json"), measure_invariance(nets.Plain(), [(x, y)], group, saliency=None))
