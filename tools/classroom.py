"""Make the students' versions of the assignments, and grade a folder of what comes back."""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import dataclasses
import html
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import notebooks
import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENTS = ROOT / "book" / "assignments"
MASTERS = ASSIGNMENTS / "masters"
OUTPUT = ROOT / "_build" / "classroom"

TIME_LIMIT = 120
"""Seconds that one submission may take."""
MEMORY_LIMIT = 8 * 2**30
"""Bytes of address space of one process of a submission."""
FILE_LIMIT = 64 * 2**20
"""Bytes that a submission may write to one file; what it prints is one."""
REASON_LIMIT = 400
"""Characters of a reason in the table."""


UNTOUCHED = """\
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "icrl_lib"]:
    del sys.modules[name]
from icrl_lib.classroom import homework
"""
"""How a hidden test begins: whatever a notebook has put in the place of a check is undone."""


def masters() -> list[Path]:
    """Return the master notebooks, in order."""
    return sorted(MASTERS.glob("A*.ipynb"))


# --- the students' versions


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


def distribute(master: Path) -> Distribution:
    """Run ``otter assign`` on a master notebook, its solutions against its tests included."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / master.name
        notebook = nbformat.read(master, as_version=4)
        student_path = ASSIGNMENTS / master.name
        notebooks.set_address(notebook, student_path)
        for cell in notebook.cells:
            if cell.source.startswith("# ASSIGNMENT CONFIG"):
                cell.source += f'\nrequirements:\n  - "{notebooks.requirement()}"'
            elif cell.cell_type == "code" and "# END TEST CONFIG" in cell.source:
                head, mark, tests = cell.source.partition("# END TEST CONFIG\n")
                cell.source = f"{head}{mark}{UNTOUCHED}{tests}"
        nbformat.write(notebook, source)
        command = [sys.executable, "-m", "otter", "assign", "--no-pdfs", source.name, "dist"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_quiet())
        if run.returncode:
            raise RuntimeError(f"{master.name}: otter assign failed\n{run.stdout}\n{run.stderr}")
        dist = Path(folder) / "dist"
        student, solution = (
            nbformat.read(dist / kind / master.name, as_version=4)
            for kind in ("student", "autograder")
        )
        (archive,) = dist.glob("autograder/*.zip")
        name = student.metadata.otter.assignment_name
        for made in (student, solution):
            notebooks.normalise(made)
            for cell in made.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
        # Otter recognises a submission by this; the tests themselves stay in the archive.
        student.metadata["otter"] = {"assignment_name": name}
        return Distribution(master.stem, student, solution, archive.read_bytes())


def generate(output: Path = OUTPUT) -> None:
    """Write the students' notebooks beside the book, solutions and archives to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    for master in masters():
        made = distribute(master)
        nbformat.write(made.student, ASSIGNMENTS / master.name)
        nbformat.write(made.solution, output / f"{made.name}-solution.ipynb")
        (output / f"{made.name}-autograder.zip").write_bytes(made.archive)
        print(f"{master.stem}: student notebook, solution, autograder")
    print(f"Solutions and autograders are in {output}")


# --- grading


@dataclasses.dataclass(frozen=True)
class Grade:
    """What a submission earned.

    Parameters
    ----------
    submission : str
        Name of its file.
    assignment : str
        "A1", or empty if it is unknown.
    points : dict of str to float
        Points by question.
    possible : dict of str to float
        Points that each question is worth, those graded by hand left out.
    status : str
        "graded", or in one word why not.
    reason : str
        What happened, for a person to read.
    feedback : dict of str to list of str
        What each question's failed tests say.
    """

    submission: str
    assignment: str
    points: dict[str, float]
    possible: dict[str, float]
    status: str
    reason: str = ""
    feedback: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> float:
        """All points together."""
        return sum(self.points.values())


def grade(
    folder: Path, output: Path = OUTPUT / "grades", jobs: int = 2, seconds: int = TIME_LIMIT
) -> list[Grade]:
    """Grade every notebook of a folder; write grades.csv and a page of feedback for each.

    All submissions and archives are read before the first one is run, each runs in a process group
    and an empty folder of its own, with its own copy of `icrl_lib`, and grades are kept here until
    the last one is done: what one submission does to files reaches no other's grade.
    """
    paths = sorted(
        path for path in folder.glob("**/*.ipynb") if ".ipynb_checkpoints" not in str(path)
    )
    if not paths:
        raise ValueError(f"submissions: expected a folder with notebooks, found none in {folder}")
    submissions = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    archives = {
        made.student.metadata.otter.assignment_name: made.archive
        for made in map(distribute, masters())
    }

    def one(item: tuple[str, bytes]) -> Grade:
        return _grade_one(*item, archives, seconds)

    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(one, submissions.items())
        grades = list(tqdm(runs, total=len(submissions), desc="grading", unit=" notebooks"))
    _write(grades, output)
    return grades


def _grade_one(name: str, content: bytes, archives: dict[str, bytes], seconds: int) -> Grade:
    try:
        notebook = nbformat.reads(content.decode(), as_version=4)
        nbformat.validate(notebook)
        assignment = notebook.metadata.get("otter", {}).get("assignment_name", "")
    except Exception as error:
        return Grade(name, "", {}, {}, "unreadable", f"not a notebook: {error}"[:REASON_LIMIT])
    if assignment not in archives:
        reason = f"expected one of {', '.join(archives)} in its metadata, got {assignment!r}"
        return Grade(name, "", {}, {}, "unknown", reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        return _run(name, assignment, notebook, archives[assignment], Path(place), seconds)


def _run(
    name: str,
    assignment: str,
    notebook: nbformat.NotebookNode,
    archive: bytes,
    place: Path,
    seconds: int,
) -> Grade:
    """Run one submission in `place` and read what otter says of it."""
    for folder in ("home", "tmp", "out", "library"):
        (place / folder).mkdir()
    shutil.copytree(ROOT / "icrl_lib", place / "library" / "icrl_lib")
    library = _library(place / "library" / "icrl_lib")
    (place / "autograder.zip").write_bytes(archive)
    _strip(notebook)
    notebook.metadata["otter"] = {"assignment_name": assignment}
    nbformat.write(notebook, place / "submission.ipynb")
    environment = _quiet() | {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": str(place / "library"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "agg",
    }
    otter = "-m otter run --no-logo -a autograder.zip -o out submission.ipynb"
    command = [sys.executable, *otter.split()]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=_limits,
        )  # fmt: skip
        try:
            process.wait(seconds)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
    possible = _possible(archive)
    nothing = dict.fromkeys(possible, 0.0)
    if timed_out:
        reason = f"stopped after {seconds} s; does a cell loop for ever or wait for input?"
        return Grade(name, assignment, nothing, possible, "time limit", reason)
    if _library(place / "library" / "icrl_lib") != library:
        reason = "the notebook changed files of the library that checks it"
        return Grade(name, assignment, nothing, possible, "tampered", reason)
    try:
        results = json.loads((place / "out" / "results.json").read_text())
        return _read(name, assignment, possible, results)
    except (OSError, ValueError, KeyError):
        log = place / "log"
        said = log.read_text(errors="replace").split("\n") if log.exists() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        reason = f"no result, the kernel ended before the tests ran: {last}"[:REASON_LIMIT]
        return Grade(name, assignment, nothing, possible, "crashed", reason)


def _read(name: str, assignment: str, possible: dict[str, float], results: dict) -> Grade:
    """Read otter's results; a question it says nothing about earns nothing."""
    points, feedback = dict.fromkeys(possible, 0.0), {}
    missing = possible.keys() - {test["name"] for test in results["tests"]}
    if missing:
        questions = ", ".join(sorted(missing))
        reason = f"no result for {questions}: did the notebook delete files, or end early?"
        return Grade(name, assignment, points, possible, "crashed", reason)
    for test in results["tests"]:
        question = test["name"]
        if question not in possible:
            continue
        points[question] = min(max(float(test["score"]), 0.0), possible[question])
        found = re.findall(r"message: (.*)|AssertionError: (.*)", test["output"])
        feedback[question] = [line for pair in found for line in pair if line]
    return Grade(name, assignment, points, possible, "graded", "", feedback)


def _possible(archive: bytes) -> dict[str, float]:
    """Return the points of each question that an archive tests."""
    points = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in sorted(files.namelist()):
            if name.startswith("tests/"):
                _, _, source = files.read(name).decode().partition("test = ")
                test = ast.literal_eval(source.strip())
                points[test["name"]] = float(test["points"])
    return points


def _strip(notebook: nbformat.NotebookNode) -> None:
    """Drop what says how a notebook is to be tested: the archive alone says it."""
    notebook.metadata = nbformat.from_dict(notebooks.KERNEL)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _library(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def _quiet() -> dict[str, str]:
    """Return the environment of a child: one thread each, and no word of what is no news."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end(process: subprocess.Popen) -> None:
    """End a submission with all its descendants; its kernel has a process group of its own."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _write(grades: list[Grade], output: Path) -> None:
    pages = output / "feedback"
    pages.mkdir(parents=True, exist_ok=True)
    questions = sorted({question for grade in grades for question in grade.possible})
    with (output / "grades.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["submission", "assignment", "status", "points", "possible", *questions, "reason"]
        )
        for grade in grades:
            points = [f"{grade.points[q]:g}" if q in grade.points else "" for q in questions]
            possible = sum(grade.possible.values())
            table.writerow([grade.submission, grade.assignment, grade.status, f"{grade.total:g}",
                            f"{possible:g}", *points, grade.reason])  # fmt: skip
    for grade in grades:
        page = pages / f"{grade.submission.removesuffix('.ipynb').replace(os.sep, '_')}.html"
        page.write_text(_page(grade))
    print(f"{len(grades)} submissions: {output / 'grades.csv'}, feedback in {pages}")


def _page(grade: Grade) -> str:
    """Return the page of feedback for one student."""
    rows = []
    for question, possible in grade.possible.items():
        said = "<br>".join(map(html.escape, grade.feedback.get(question, []))) or "&nbsp;"
        rows.append(
            f"<tr><th scope=row>{html.escape(question)}</th>"
            f"<td>{grade.points[question]:g} of {possible:g}</td><td>{said}</td></tr>"
        )
    title = html.escape(f"{grade.submission}: {grade.assignment or 'unknown assignment'}")
    status = (
        ""
        if grade.status == "graded"
        else f"<p><b>{grade.status}</b>: {html.escape(grade.reason)}</p>"
    )
    return f"""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em}}
table {{border-collapse: collapse}}
th, td {{border: 1px solid; padding: .3em .6em; text-align: left; vertical-align: top}}</style>
<h1>{title}</h1>
<p>{grade.total:g} of {sum(grade.possible.values()):g} points, without what is graded by hand.</p>
{status}
<table><tr><th>Question</th><th>Points</th><th>What the tests say</th></tr>
{"".join(rows)}</table></html>
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="task", required=True)
    command = commands.add_parser(
        "generate", help="make students' notebooks, solutions, autograders"
    )
    command.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for solutions and autograders"
    )
    command = commands.add_parser("grade", help="grade a folder of notebooks")
    command.add_argument(
        "submissions", type=Path, help="folder, searched for notebooks at any depth"
    )
    command.add_argument(
        "--output", type=Path, default=OUTPUT / "grades", help="folder for the results"
    )
    command.add_argument("--jobs", type=int, default=2, help="submissions at a time; default 2")
    command.add_argument(
        "--seconds", type=int, default=TIME_LIMIT, help=f"time limit of each; default {TIME_LIMIT}"
    )
    options = parser.parse_args()
    try:
        if options.task == "generate":
            generate(options.output)
        else:
            grade(options.submissions, options.output, options.jobs, options.seconds)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
