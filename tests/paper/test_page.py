"""Does the page of results say what the exhibits found?"""

import json
import shutil
from pathlib import Path

from examples.paper.page import build, number

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_what_its_numbers_make_of_it():
    assert (DOCS / "results.md").read_text(encoding="utf-8") == build(DOCS / "results")


def test_another_number_makes_another_page(tmp_path):
    results = tmp_path / "results"
    shutil.copytree(DOCS / "results", results)
    changed = json.loads((results / "table1.json").read_text())
    changed["ours"]["R4"]["DA"]["accuracy"]["mean"] += 1
    (results / "table1.json").write_text(json.dumps(changed))
    assert build(results) != build(DOCS / "results")


def test_every_picture_is_shown_and_there():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (DOCS / "results").glob("*.png")}
    assert pictures
    assert {name for name in pictures if f"(results/{name})" not in page} == set()


def test_deviations_are_shown_where_they_show():
    assert number({"mean": 94.04, "deviation": 0.51}, 1) == "94.0 ± 0.5"
    assert number({"mean": 1.0, "deviation": 0.0}, 1) == "1.0"
    assert number((98.6, None), 4) == "98.6"
    assert number((0.17, 0.04), 2) == "0.17 ± 0.04"
    assert number((0.0123, 0.0004), 3) == "0.012"
