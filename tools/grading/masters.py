"""The master notebooks: what they ask, and what otter makes of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import nbformat
import notebooks
import yaml

from grading import sheets
from grading.sheets import PUBLIC_COURSE, Course
from icrl_lib.classroom import homework

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = ROOT / "book" / "assignments"
MASTERS = ASSIGNMENTS / "masters"
CACHE = ROOT / "_build" / "classroom" / "cache"
HIDDEN = "hidden.json"
FILL = re.compile(r"FILL_([a-z]+(?:_[a-z]+)*)")
"""What a master leaves to its course."""

ACCEPTS = """\
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "icrl_lib"]:
    del sys.modules[name]
from icrl_lib.classroom import homework
assert homework.accepts("{name}", {variable}, "{aspect}", "{file}")"""
"""A test of Gradescope's archive: what a notebook has put in the place of a check is undone."""

CHECKS = """\
from icrl_lib.classroom import Checks

# The instances of this course, for the checks below.
check = Checks(
    "{sheet}"
)"""


@dataclasses.dataclass(frozen=True)
class Item:
    """A question of a master notebook.

    Parameters
    ----------
    number : str
        "q1".
    title : str
        Its heading.
    points : float
        What it is worth.
    name : str
        Its name in the sheets, "sarsa_update"; empty if a person grades it.
    variable : str
        What the student has to define.
    rubric : str
        Solution and rubric of a question that a person grades, in Markdown.
    """

    number: str
    title: str
    points: float
    name: str = ""
    variable: str = ""
    rubric: str = ""


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What otter makes of a master notebook.

    Parameters
    ----------
    name : str
        Stem of the master's file, "A1_sarsa" for example.
    student, solution : NotebookNode
        The notebook without and with solutions.
    archive : bytes
        The autograder: a zip file with the hidden tests, also in the layout of Gradescope.
    """

    name: str
    student: nbformat.NotebookNode
    solution: nbformat.NotebookNode
    archive: bytes


def masters() -> list[Path]:
    """Return the master notebooks, in order."""
    return sorted(MASTERS.glob("A*.ipynb"))


def assignment_of(path: Path) -> str:
    """Return "A1" for the path of the first master, or of the notebook made from it."""
    return path.name.partition("_")[0]


def master(path: Path, course: Course) -> nbformat.NotebookNode:
    """Read a master, with the numbers and slots of a course in the places that it leaves open."""
    notebook = nbformat.read(path, as_version=4)
    text = sheets.text(assignment_of(path), course)
    for cell in notebook.cells:
        cell.source = re.sub(
            r"FILL_([a-z]+(?:_[a-z]+)*)", lambda found: text[found[1]], cell.source
        )
    return notebook


@functools.lru_cache(maxsize=8)
def items(assignment: str) -> tuple[Item, ...]:
    """Return the questions of an assignment, in order."""
    (path,) = MASTERS.glob(f"{assignment}_*.ipynb")
    found: list[Item] = []
    config: dict = {}
    title, solution = "", ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            config = yaml.safe_load(cell.source.replace("# BEGIN QUESTION", ""))
        elif cell.source.startswith("## Question"):
            title = cell.source.splitlines()[0].removeprefix("## ")
        elif cell.source.startswith("**Solution.**"):
            solution = cell.source
        elif cell.cell_type == "raw" and "END QUESTION" in cell.source and config.get("manual"):
            found.append(Item(config["name"], title, float(config["points"]), rubric=solution))
        elif check := re.fullmatch(rf'check\("{assignment}\.(\w+)", (\w+)\)', cell.source):
            points = float(config["points"])
            found.append(Item(config["name"], title, points, check[1], check[2]))
    return tuple(found)


def distribute(path: Path, course: Course = PUBLIC_COURSE) -> Distribution:
    """Run ``otter assign`` on a master, its solutions against its tests included.

    What came is kept by the content of all that goes into it, as otter takes ten seconds.
    """
    prepared = nbformat.writes(_prepared(path, course))
    hidden = json.dumps(sheets.hidden_sheet(assignment_of(path), course))
    versions = [metadata.version(name) for name in ("otter-grader", "nbformat", "torch")]
    library = sorted((ROOT / "icrl_lib").rglob("*.py"))
    sources = [*library, Path(__file__), Path(notebooks.__file__)]
    parts = [prepared, hidden, *versions, *(file.read_text("utf-8") for file in sources)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    kept = CACHE / key
    if not (kept / "done").exists():
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in _assign(path.name, prepared, hidden).items():
            part = kept / f".{name}-{os.getpid()}"  # others may be doing the same
            part.write_bytes(content)
            os.replace(part, kept / name)
        (kept / "done").touch()
    student, solution = (
        nbformat.reads((kept / f"{kind}.ipynb").read_text("utf-8"), as_version=4)
        for kind in ("student", "solution")
    )
    archive = (kept / "autograder.zip").read_bytes()
    return Distribution(path.stem, student, solution, archive)


def _prepared(path: Path, course: Course) -> nbformat.NotebookNode:
    """Return a master as otter wants it: with tests, files and requirements."""
    assignment = assignment_of(path)
    notebook = master(path, course)
    notebooks.set_address(notebook, ASSIGNMENTS / path.name)
    by_number = {item.number: item for item in items(assignment)}
    asked = sheets.hidden_sheet(assignment, course)
    cells, item = [], None
    for cell in notebook.cells:
        if cell.source.startswith("# ASSIGNMENT CONFIG"):
            cell.source += f'\nrequirements:\n  - "{notebooks.requirement()}"'
            cell.source += f"\nautograder_files:\n  - {HIDDEN}"
        elif cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            item = by_number[re.search(r"name: (\w+)", cell.source)[1]]
        elif cell.cell_type == "raw" and "END QUESTION" in cell.source and item.name:
            tests = [
                nbformat.v4.new_code_cell(
                    f'""" # BEGIN TEST CONFIG\nhidden: true\npoints: {points:g}\n'
                    f'failure_message: {aspect} of {item.name}\n""" # END TEST CONFIG\n'
                    + ACCEPTS.format(
                        name=item.name, variable=item.variable, aspect=aspect, file=HIDDEN
                    )
                )
                for aspect, points in asked[item.name]["points"].items()
            ]
            cells += [
                nbformat.v4.new_raw_cell("# BEGIN TESTS"),
                *tests,
                nbformat.v4.new_raw_cell("# END TESTS"),
            ]
        elif course.name and "from icrl_lib.classroom import check\n" in cell.source + "\n":
            cell.source = cell.source.replace("\nfrom icrl_lib.classroom import check", "")
            cells.append(cell)
            cell = nbformat.v4.new_code_cell(
                CHECKS.format(sheet=homework.pack(sheets.public_sheet(course, assignment))),
                metadata={"tags": ["hide-input"], "cellView": "form"},
            )
        cells.append(cell)
    for number, cell in enumerate(cells, start=1):
        cell["id"] = f"cell-{number:02d}"
    notebook.cells = cells
    return notebook


def _assign(name: str, prepared: str, hidden: str) -> dict[str, bytes]:
    """Run otter in a folder of its own and return the three files that are kept."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / name).write_text(prepared, encoding="utf-8")
        (place / HIDDEN).write_text(hidden, encoding="utf-8")
        command = [sys.executable, "-m", "otter", "assign", "--no-pdfs", name, "dist"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment["PYTHONPATH"] = str(ROOT)
        environment.pop("PYTHONOPTIMIZE", None)  # the archive's tests are assertions
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        if run.returncode:
            raise RuntimeError(f"{name}: otter assign failed\n{run.stdout}\n{run.stderr}")
        student, solution = (
            nbformat.read(place / "dist" / kind / name, as_version=4)
            for kind in ("student", "autograder")
        )
        (archive,) = (place / "dist").glob("autograder/*.zip")
        assignment = student.metadata.otter.assignment_name
        for made in (student, solution):
            notebooks.normalise(made)
            for cell in made.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
        # A grader recognises a submission by this; the tests themselves stay in the archive.
        student.metadata["otter"] = {"assignment_name": assignment}
        return {
            "student.ipynb": nbformat.writes(student).encode(),
            "solution.ipynb": nbformat.writes(solution).encode(),
            "autograder.zip": archive.read_bytes(),
        }
