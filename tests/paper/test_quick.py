"""Does the trial of everything run, resume, and make all the exhibits and the page?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.paper.page import EXHIBITS

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The folder of a trial, and what it printed."""
    folder = tmp_path_factory.mktemp("paper")
    return folder, run(folder)


def run(folder: Path, module: str = "examples.paper") -> str:
    nowhere = "http://127.0.0.1:9"  # a script that downloads shall fail
    finished = subprocess.run(
        [sys.executable, "-m", module, "--quick", "--work", folder],
        cwd=ROOT,
        env={**os.environ, "http_proxy": nowhere, "https_proxy": nowhere},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, f"{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


def test_every_exhibit_is_there_and_on_the_page(tried):
    folder, _ = tried
    results = folder / "quick" / "results"
    assert {path.stem for path in results.glob("*.json")} == set(EXHIBITS)
    page = (results.parent / "results.md").read_text(encoding="utf-8")
    pictures = {path.name for path in results.glob("*.png")}
    assert len(pictures) >= 7
    assert {name for name in pictures if f"(results/{name})" not in page} == set()


def test_what_is_there_is_not_trained_again(tried):
    folder, first = tried
    assert "runs: digits_MLP_R4_DA" in first
    assert "runs: " not in run(folder, "examples.paper.table1")
