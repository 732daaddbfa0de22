"""From a submission to its grade: questions out, answers in, the verdict here."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from grading import masters, sheets
from grading.sandbox import Sandbox
from grading.sheets import Course
from grading.submissions import Notebook, Submission
from icrl_lib.classroom import homework

MARKS = Path(__file__).with_name("marks.py")
CHECK = re.compile(r"""\s*check\(\s*["'][^"'\n]*["']\s*,\s*\w+\s*\)\s*""")
"""A cell that only checks: while grading it is left out, and an answer that loops loops later."""
UNANSWERED = "_Type your answer here, replacing this text._"
MOST_SAID = 400
"""Characters of one sentence in tables and pages."""


@dataclasses.dataclass(frozen=True)
class Grade:
    """What a submission earned.

    Parameters
    ----------
    submission : str
        Its path.
    assignment : str
        "A1", or empty if it is unknown.
    points, possible : dict of str to float
        Points by question, without those that a person grades.
    status : str
        "graded", or in a word or two why not.
    reason : str
        What happened, for a person to read.
    feedback : dict of str to list of str
        What is wrong, by question.
    marks : dict of str to list of str
        What answers lean on, by question: the library, automatic differentiation.
    cells : list of str
        Errors of cells.
    derivations : dict of str to str
        Answers that a person grades, by question.
    """

    submission: str
    assignment: str = ""
    points: dict[str, float] = dataclasses.field(default_factory=dict)
    possible: dict[str, float] = dataclasses.field(default_factory=dict)
    status: str = "graded"
    reason: str = ""
    feedback: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    marks: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    cells: list[str] = dataclasses.field(default_factory=list)
    derivations: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> float:
        """All points together."""
        return sum(self.points.values())


def grade(submission: Submission, course: Course, sandbox: Sandbox, assignment: str = "") -> Grade:
    """Run a submission and compare its answers; whatever it does, this returns.

    Parameters
    ----------
    submission : Submission
        What was handed in.
    course : Course
        Whose numbers and instances are asked.
    sandbox : Sandbox
        Where it runs.
    assignment : str, optional
        What it belongs to if it does not say so itself.
    """
    notebook = submission.notebook
    if notebook is None:
        return Grade(submission.path, status=submission.status, reason=submission.reason)
    name = notebook.assignment or assignment
    if name not in sheets.ASSIGNMENTS:
        expected = ", ".join(sheets.ASSIGNMENTS)
        reason = f"which assignment is it? expected one of {expected}, got {name!r}"
        return Grade(submission.path, status="unknown", reason=reason)
    try:
        return _graded(submission.path, name, notebook, course, sandbox)
    except Exception as error:  # nothing that one submission does may stop the others
        reason = f"the grader failed: {type(error).__name__}: {error}"[:MOST_SAID]
        return Grade(submission.path, name, *_nothing(name), "not graded", reason)


def _graded(
    path: str, assignment: str, notebook: Notebook, course: Course, sandbox: Sandbox
) -> Grade:
    items = [item for item in masters.items(assignment) if item.name]
    asked = sheets.hidden_sheet(assignment, course)
    questions = {item.name: (item.variable, _public_part(asked[item.name])) for item in items}
    cells = ["" if CHECK.fullmatch(source) else source for source in notebook.code]
    task = json.dumps({"cells": cells, "questions": questions})
    run = sandbox.run(task.encode("utf-8", "backslashreplace"))
    answers, cells, done = _read(run.output)
    points, possible = _nothing(assignment)
    feedback: dict[str, list[str]] = {}
    for item in items:
        answered = answers.get(item.name)
        if answered is None:
            feedback[item.number] = ["no answer came: the notebook ended, or was ended, before"]
        elif "missing" in answered:
            feedback[item.number] = [f"{item.variable} is not defined; was its cell deleted?"]
        else:
            passed, said = _verdict(asked[item.name], answered)
            worth = asked[item.name]["points"]
            points[item.number] = float(sum(worth[a] for a, right in passed.items() if right))
            feedback[item.number] = [sentence[:MOST_SAID] for sentence in said]
    status, reason = "graded", ""
    if not done:
        stopped = run.ended.startswith("stopped")
        limit = "time limit" if "loop" in run.ended else "limit"
        status = limit if stopped else "crashed"
        reason = run.ended or "it ended itself before the questions"
    marks = _marks(notebook, {item.number: item.variable for item in items})
    return Grade(
        path, assignment, points, possible, status, reason[:MOST_SAID], feedback,
        {number: marks[number] for number in points if points[number] and marks.get(number)},
        cells, _derivations(notebook, assignment),
    )  # fmt: skip


def _public_part(asked: dict[str, Any]) -> dict[str, Any]:
    """Return of a question what its answer needs: no expected value enters the sandbox."""
    kept = ("kind", "toys", "autograd")
    part = {key: asked[key] for key in kept if key in asked}
    if "instances" in asked:
        part["instances"] = [{"arguments": one["arguments"]} for one in asked["instances"]]
    return part


def _verdict(asked: dict[str, Any], answered: dict[str, Any]) -> homework.Verdict:
    try:
        return homework.verdict(asked, answered)
    except Exception:  # data of a form that no answer has
        nothing = dict.fromkeys(asked["points"], False)
        return homework.Verdict(nothing, ("the answer cannot be read",))


def _read(output: bytes) -> tuple[dict[str, dict[str, Any]], list[str], bool]:
    """Read answers, the errors of cells, and whether it came to its end; ignore all else."""
    answers: dict[str, dict[str, Any]] = {}
    cells, done = [], False
    for line in output.split(b"\n"):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(told, dict):
            continue
        if isinstance(told.get("question"), str) and isinstance(told.get("answer"), dict):
            answers[told["question"]] = told["answer"]
        elif isinstance(told.get("cell"), int) and len(cells) < 50:
            cells.append(f"code cell {told['cell']}: {str(told.get('error'))[:200]}")
        done = done or told.get("done") is True
    return answers, cells, done


def _nothing(assignment: str) -> tuple[dict[str, float], dict[str, float]]:
    items = [item for item in masters.items(assignment) if item.name]
    return {i.number: 0.0 for i in items}, {i.number: i.points for i in items}


def _marks(notebook: Notebook, variables: dict[str, str]) -> dict[str, list[str]]:
    """Return what answers lean on, by question; found without executing anything."""
    task = {"cells": notebook.code, "variables": list(variables.values())}
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-S", str(MARKS)], input=json.dumps(task).encode(), timeout=20,
            capture_output=True,
        )  # fmt: skip
        found = json.loads(run.stdout)
    except (ValueError, OSError, subprocess.SubprocessError):
        return {number: ["its code cannot be parsed"] for number in variables}
    return {number: found[variable] for number, variable in variables.items() if found[variable]}


def _derivations(notebook: Notebook, assignment: str) -> dict[str, str]:
    """Return the answers that a person grades: what stands between a heading and the next."""
    sections: dict[str, list[str]] = {}
    inside = ""
    for _, source in notebook.cells:
        source = re.sub(r"<!--.*?-->", "", source, flags=re.DOTALL).strip()
        if heading := re.match(r"## Question (\d+)\b", source):
            inside = f"q{heading[1]}"
        elif inside and source not in ("", UNANSWERED):
            sections.setdefault(inside, []).append(source)
    manual = [item.number for item in masters.items(assignment) if not item.name]
    return {number: "\n\n".join(sections.get(number, [])) for number in manual}
