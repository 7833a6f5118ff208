"""Does importing cost little, and do imports point downwards only?"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import invreg

PACKAGE = Path(invreg.__file__).parent

FILES = sorted(PACKAGE.rglob("*.py"))

HEAVY = ["captum", "matplotlib", "hypothesis", "sklearn", "torchmetrics", "tqdm", "torchvision"]

MADE_FOR = {"testing": "hypothesis", "metric": "torchmetrics"}
"""The parts that extend another library, which nothing else imports."""

FLOORS = {
    "groups": 1,
    "functional": 2,
    "saliency": 2,
    "preserve": 2,
    "asked": 2,
    "calls": 2,
    "audit": 3,
    "losses": 3,
    "orbit_loss": 3,
    "pooling": 3,
    "tying": 3,
    "tied_linear": 3,
    "symmetrize": 3,
    "constraint": 3,
    "sensitivity": 3,
    "tuning": 3,
    "regularize": 3,
    "metric": 3,
    "testing": 3,
    "cli": 4,
    "__main__": 4,
}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return set(json.loads(answer.stdout))


def test_importing_loads_nothing_that_is_used_elsewhere_only():
    loaded, by_torch = loaded_after("import invreg"), loaded_after("import torch")
    assert {"invreg", "torch"} <= loaded
    assert (loaded - by_torch).isdisjoint(HEAVY)  # torch itself loads tqdm where there is one
    assert "captum" not in loaded


def test_what_is_loaded_is_noticed():
    assert "tqdm" in loaded_after("import tqdm")


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: the name of a module or of a package at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_by(source: str, package: list[str]) -> Iterator[tuple[str, bool]]:
    """The modules that source code imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse(source)
    at_once = set()
    for statement in tree.body:
        guard = isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
        if not guard and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            at_once |= {id(node) for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", id(node) in at_once


def imports_of(path: Path) -> list[tuple[str, bool]]:
    package = ["invreg", *path.relative_to(PACKAGE).parts[:-1]]
    return list(imported_by(path.read_text(encoding="utf-8"), package))


def violations(importer: str, imported: str) -> str | None:
    """Says why a part of the package must not import a name, if so."""
    names = imported.split(".")
    if names[0] != "invreg":
        return None
    if len(names) < 2 or names[1] not in FLOORS:
        return f"{importer} imports from the top of the package: {imported}"
    if FLOORS[names[1]] > FLOORS[importer]:
        return f"{importer} imports from the floor above: {imported}"
    return None


@each_file
def test_imports_point_downwards(path):
    if path == PACKAGE / "__init__.py":
        return
    assert part_of(path) in FLOORS, "a new part of the package: put it on a floor"
    found = [violations(part_of(path), imported) for imported, _ in imports_of(path)]
    assert [message for message in found if message] == []


def test_groups_import_nothing_else_of_the_package():
    parts = {
        name.split(".")[1]
        for path in FILES
        if part_of(path) == "groups"
        for name, _ in imports_of(path)
        if name.split(".")[0] == "invreg"
    }
    assert parts == {"groups"}


def test_the_numbers_import_groups_and_numbers_only():
    for part in ("functional", "saliency", "preserve"):
        names = [name for name, _ in imports_of(PACKAGE / f"{part}.py")]
        assert names
        own = {name.split(".")[1] for name in names if name.split(".")[0] == "invreg"}
        assert own <= {"groups", "functional"}


def test_no_two_parts_import_each_other():
    below: dict[str, set[str]] = {part: set() for part in FLOORS}
    for path in FILES:
        for name, at_once in imports_of(path):
            names = name.split(".")
            if path != PACKAGE / "__init__.py" and names[0] == "invreg" and at_once and names[1] != part_of(path):
                below[part_of(path)].add(names[1])
    assert "functional" in below["losses"]
    while below:
        free = [part for part, needed in below.items() if not needed & below.keys()]
        assert free, f"these import each other: {sorted(below)}"
        below = {part: needed for part, needed in below.items() if part not in free}


@each_file
def test_nothing_imports_torchvision(path):
    assert "import torchvision" not in path.read_text(encoding="utf-8")
    assert not [name for name, _ in imports_of(path) if name.split(".")[0] == "torchvision"]


@each_file
def test_what_is_heavy_is_imported_where_it_is_used(path):
    heavy = {name.split(".")[0] for name, at_once in imports_of(path) if at_once} & set(HEAVY)
    assert heavy <= {MADE_FOR.get(part_of(path))}


def test_nothing_imports_a_part_that_extends_another_library():
    names = [name for path in FILES if part_of(path) not in MADE_FOR for name, _ in imports_of(path)]
    assert "invreg.losses.InvarianceLoss" in names
    assert [name for name in names if name.startswith("invreg.") and name.split(".")[1] in MADE_FOR] == []


def test_there_is_something_to_check():
    assert {"groups", "functional", "saliency", "losses", "audit", "preserve"} <= {part_of(path) for path in FILES}
    assert ("invreg.functional.checked_inputs", True) in imports_of(PACKAGE / "losses.py")
    assert any(name.startswith("captum.") and not at_once for name, at_once in imports_of(PACKAGE / "saliency.py"))


# The checks themselves


def test_imports_are_read_from_source():
    source = """
import os.path
from typing import TYPE_CHECKING
from . import axis
from ..functional import logit_error
try:
    import numpy
except ImportError:
    pass
if TYPE_CHECKING:
    from invreg.groups.product import DirectProduct
def f():
    from captum.attr import Saliency
"""
    assert list(imported_by(source, ["invreg", "groups"])) == [
        ("os.path", True),
        ("typing.TYPE_CHECKING", True),
        ("invreg.groups.axis", True),
        ("invreg.functional.logit_error", True),
        ("numpy", True),
        ("invreg.groups.product.DirectProduct", False),
        ("captum.attr.Saliency", False),
    ]


def test_imports_that_point_upwards_are_told():
    assert violations("groups", "torch.nn") is None
    assert violations("losses", "invreg.functional.logit_error") is None
    assert violations("audit", "invreg.losses.check_samples") is None
    assert "above" in violations("groups", "invreg.functional.logit_error")
    assert "above" in violations("functional", "invreg.losses.InvarianceLoss")
    assert "top of the package" in violations("losses", "invreg")
    assert "top of the package" in violations("losses", "invreg.CyclicRotation")
