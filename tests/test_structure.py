"""The science stands by itself: it imports none of the wings that serve it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import icrl_lib

PACKAGE = Path(icrl_lib.__file__).parent
BOOK = Path(__file__).resolve().parent.parent / "book"
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# The command line is the way into the experiments.
SCIENCE = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__main__.py")


def imported(source: str) -> set[str]:
    """Return what is imported, from a package name by name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "icrl_lib" if node.level else ""
            origin = ".".join(part for part in (package, node.module) if part)
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def of_wings(source: str) -> set[str]:
    return {
        name for name in imported(source) if name.startswith(tuple(f"icrl_lib.{w}" for w in WINGS))
    }


def test_there_are_three_wings():
    assert WINGS == ["book", "classroom", "experiments"]


@pytest.mark.parametrize("path", SCIENCE, ids=lambda path: path.stem)
def test_science_imports_no_wing(path):
    assert of_wings(path.read_text()) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import icrl_lib.book",
        "from icrl_lib import book",
        "from icrl_lib.experiments.paper import run",
        "from .classroom import check",
        "def late():\n    from icrl_lib.book import plotting",
    ],
)
def test_an_import_of_a_wing_is_seen(line):
    assert of_wings(line) != set()


def test_the_science_stays_small():
    """All of it can be read; what is added has to be worth what it takes."""
    modules = [path for path in SCIENCE if path.name != "__init__.py"]
    assert sum(len(path.read_text().splitlines()) for path in modules) <= 5750


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_there_are_two_optimiser_loops():
    """That of training, and that of in-context TD, which has no teacher; chapters have none."""
    science = {path.stem: path.read_text() for path in SCIENCE}
    chapters = {path.stem: code_of(path) for path in sorted(BOOK.glob("[0-9]*.ipynb"))}
    steps = re.compile(r"(?<!schedule)\.step\(\)")
    loops = {name: len(steps.findall(code)) for name, code in (science | chapters).items()}
    assert {name: count for name, count in loops.items() if count} == {
        "training": 1,
        "in_context_td": 1,
    }
