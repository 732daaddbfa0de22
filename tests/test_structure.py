"""The science stands by itself: it imports none of the wings that serve it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import icrl_lib

PACKAGE = Path(icrl_lib.__file__).parent
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
