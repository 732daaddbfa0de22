"""What is imported is declared, pinned, installed as pinned, explained, and free to use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(text: str) -> tuple[str, tuple[int, ...]]:
    """Split "name>=1.2" or "name==1.2.3" into the name and the numbers of the version."""
    name, version = re.fullmatch(r"([A-Za-z0-9._-]+)[>=]=([0-9.]+)(?:\.post\d+)?", text).groups()
    return canonical(name), tuple(map(int, version.split(".")))


ASKED = dict(
    requirement(line)
    for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
)
"""What the library asks for, and the oldest version that will do."""
LINES = [
    line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
]
PINNED = {requirement(line)[0]: line.partition("==")[2] for line in LINES if line}
"""What builds and checks the book, and its exact version."""

PAGE = (ROOT / "book" / "dependencies.md").read_text()
ROWS = {
    canonical(name): cells
    for name, *cells in re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \| (.+) \|$", PAGE, re.M)
}


def imported(source: str) -> set[str]:
    """Return the top-level modules that a piece of Python imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def sources(folder: str) -> list[tuple[Path, str]]:
    found = [(path, path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in sorted((ROOT / folder).rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(
            re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.M)
            for cell in cells
            if cell.cell_type == "code" and not cell.source.startswith("%%")
        )
        found.append((path, code))
    return found


OWN = {path.stem for folder in ("tools", "tests") for path in (ROOT / folder).glob("*.py")}
OWN |= {"icrl_lib"} | {path.parent.name for path in (ROOT / "tools").glob("*/*.py")}
PROVIDERS = metadata.packages_distributions()


def needed(folder: str) -> dict[str, set[str]]:
    """Return the packages that the files of a folder import, and which files these are."""
    packages: dict[str, set[str]] = {}
    for path, source in sources(folder):
        for module in imported(source) - OWN - sys.stdlib_module_names - {"google"}:
            providers = {canonical(name) for name in PROVIDERS.get(module, [module])}
            name = min(providers, key=lambda name: (name not in PINNED, name))
            packages.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return packages


@pytest.mark.parametrize("folder", ["icrl_lib", "tools", "tests", "book"])
def test_what_is_imported_is_pinned(folder):
    """google.colab aside, which is Colab's own."""
    missing = {name: files for name, files in needed(folder).items() if name not in PINNED}
    assert missing == {}


def test_what_the_library_imports_comes_with_it():
    assert needed("icrl_lib").keys() <= ASKED.keys()


def test_what_the_library_asks_for_is_used():
    """Pillow and ipywidgets by the slider, inside functions."""
    assert ASKED.keys() <= needed("icrl_lib").keys()


def test_pinned_versions_are_in_the_range_that_the_library_asks_for():
    for name, oldest in ASKED.items():
        assert requirement(f"{name}=={PINNED[name]}")[1] >= oldest, name


@pytest.mark.parametrize("name", PINNED)
def test_installed_is_what_is_pinned(name):
    """A build for the CPU alone, "2.13.0+cpu", is the same version."""
    assert metadata.version(name).partition("+")[0] == PINNED[name]


def test_installed_packages_fit_together():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_dependency_has_a_row_and_every_row_a_dependency():
    assert ROWS.keys() == PINNED.keys() | ASKED.keys()


def test_rows_say_why_what_instead_and_the_licence():
    assert all(len(cells) == 3 and all(cell.strip() for cell in cells) for cells in ROWS.values())


# --- licences

PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "CC0-1.0", "MIT", "MIT-CMU", "PSF", "Zlib", "public domain",
}  # fmt: skip
# Reaches its own files alone, which nobody changes here.
OF_ITS_OWN_FILES = {"hypothesis": {"MPL-2.0"}, "tqdm": {"MPL-2.0"}}
# Of fonts, which stay under it; what is printed in them does not come under it.
OF_FONTS = {"fontpkg-source-sans-3": {"OFL-1.1"}, "fontpkg-source-code-pro": {"OFL-1.1"}}
# Of an editor mode that is not installed.
NOT_INSTALLED = {"docutils": {"GPL"}}
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU General Public License (GPL)": "GPL",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF",
    "Public Domain": "public domain",
}
# How the texts of these licences, or their names in words, begin.
WORDS = {
    r"MIT( License)?\b": "MIT",
    r"BSD\b(?!-)": "BSD",
    r"BSD[- ]3-Clause": "BSD-3-Clause",
    r"BSD[- ]2-Clause": "BSD-2-Clause",
    r"Apache(-| License,? (Version )?)2\.0": "Apache-2.0",
    r"MPL-2\.0": "MPL-2.0",
    r"\w*GPL": "GPL",
}


def licences(name: str) -> set[str]:
    """Return the licences that a package's metadata names; of its parts, too."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return set(re.split(r" AND | OR ", expression.replace("(", "").replace(")", "")))
    named = {
        CLASSIFIERS.get(line.rpartition(" :: ")[2], line)
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    }
    field = (about.get("License") or "").strip()
    texts = [part for part in re.split(r" AND | OR ", field) if part and "\n" not in field]
    if not named and not texts:
        files = metadata.files(name) or []
        texts = [f.read_text().lstrip() for f in files if re.match(r"LICEN[SC]E", f.name)]
    return named | {
        licence for text in texts for words, licence in WORDS.items() if re.match(words, text)
    }


@pytest.mark.parametrize("name", sorted(PINNED.keys() | ASKED.keys()))
def test_licence_is_permissive(name):
    found = licences(name)
    assert found
    allowed = (OF_ITS_OWN_FILES, OF_FONTS, NOT_INSTALLED)
    assert found <= PERMISSIVE.union(*(exceptions.get(name, set()) for exceptions in allowed))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_page_states_the_licence_of_the_metadata(name):
    assert ROWS[name][2] in licences(name)
