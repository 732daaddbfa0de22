"""Tables and pages of a class, written as grades come, each file whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from grading import masters
from grading.grades import Grade
from grading.submissions import Student, Submission

JOURNAL = "graded.jsonl"
DERIVATIONS = "derivations.csv"
PAGES = "feedback"


@dataclasses.dataclass(frozen=True)
class Row:
    """A grade with whose it is.

    Parameters
    ----------
    submission : Submission
        What was handed in.
    grade : Grade
        What it earned.
    student : Student or None
        Whose it is; None if the roster does not tell.
    late : bool
        Whether it is late.
    counts : bool
        Whether it is the one of its student and assignment that counts.
    """

    submission: Submission
    grade: Grade
    student: Student | None = None
    late: bool = False
    counts: bool = True

    @property
    def who(self) -> str:
        """The student's identifier or, without a roster, what the path tells."""
        return self.student.id if self.student else self.submission.who

    @property
    def page(self) -> str:
        """File name of the page of feedback; no other submission can have the same."""
        digest = hashlib.sha256(self.submission.path.encode("utf-8", "replace"))
        words = [self.who, self.grade.assignment, digest.hexdigest()[:16]]
        letters = [
            unicodedata.normalize("NFKD", w).encode("ascii", "ignore").decode() for w in words
        ]
        parts = [re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("._")[:60] for word in letters]
        return "-".join(part for part in parts if part) + ".html"


class Journal:
    """The grades so far, a line each; what a broken run has left is read again.

    Parameters
    ----------
    folder : Path
        Where it is kept.
    version : str
        A digest of what grades depend on beside the submissions; others are not read.
    """

    def __init__(self, folder: Path, version: str) -> None:
        self._path, self._version = folder / JOURNAL, version
        self.grades: dict[str, Grade] = {}
        if self._path.is_file():
            with self._path.open("rb") as lines:
                for line in lines:
                    self._take(line)

    def add(self, key: str, grade: Grade) -> None:
        """Keep a grade, on the disk before this returns."""
        self.grades[key] = grade
        entry = {"version": self._version, "key": key, "grade": dataclasses.asdict(grade)}
        with self._path.open("ab") as file:
            # a line that a power cut has left half stays alone
            file.write(b"\n" + json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if entry["version"] == self._version:
                self.grades[entry["key"]] = Grade(**entry["grade"])
        except (ValueError, KeyError, TypeError):
            pass  # a line that was not written to its end


def write(path: Path, text: str, *, marked: bool = False) -> None:
    """Write a file whole or not at all; `marked` begins it so that spreadsheets read UTF-8."""
    data = text.encode("utf-8", "replace")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b"\xef\xbb\xbf" + data if marked else data)
        os.chmod(name, 0o600)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def safe(cell: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    cell = cell.replace("\r", " ").replace("\n", " ").replace("\0", " ")
    return f"'{cell}" if cell.lstrip()[:1] in ("=", "+", "-", "@", "\t", "|") else cell


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a CSV file that Python and spreadsheets read alike."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{c:g}" if isinstance(c, float | int) else safe(c) for c in row])
    write(path, text.getvalue(), marked=True)


def tables(
    folder: Path, rows: Sequence[Row], students: Sequence[Student], awarded: Mapping[tuple, float]
) -> None:
    """Write one table of all submissions, one for each assignment, one of totals.

    Parameters
    ----------
    folder : Path
        Where to.
    rows : sequence of Row
        All grades.
    students : sequence of Student
        The roster; those of it who have handed in nothing are listed, too.
    awarded : mapping of (page, question) to float
        Points that a person has given for derivations.
    """
    # The first column is one that nobody looks for by name: readers that do not know of the mark at
    # the beginning of the file take it for a part of that name.
    header = ["assignment", "submission", "student", "name", "status", "points", "possible",
              "by hand", "counts", "late", "leans on", "page", "reason"]  # fmt: skip
    lines = ([r.grade.assignment, *_common(r, awarded), r.grade.reason] for r in rows)
    table(folder / "grades.csv", header, lines)
    counting = [row for row in rows if row.counts and row.grade.assignment]
    seen = sorted({row.grade.assignment for row in counting})
    for assignment in seen:
        _table_of(folder, assignment, counting, students, awarded)
    for stale in folder.glob("A[0-9].csv"):
        if stale.stem not in seen:
            stale.unlink()
    _totals(folder, seen, counting, students, awarded)


def _common(row: Row, awarded: Mapping[tuple, float]) -> list[str | float]:
    grade, hand = row.grade, _by_hand(row, awarded)
    leans = "; ".join(f"{q}: {', '.join(named)}" for q, named in grade.marks.items())
    return [grade.submission, row.who, row.student.name if row.student else "", grade.status,
            grade.total, sum(grade.possible.values()), "" if hand is None else hand,
            "yes" if row.counts else "no", "late" if row.late else "", leans, row.page]  # fmt: skip


def _by_hand(row: Row, awarded: Mapping[tuple, float]) -> float | None:
    given = [points for (page, _), points in awarded.items() if page == row.page]
    return sum(given) if given else None


def _table_of(
    folder: Path, assignment: str, counting: Sequence[Row], students: Sequence[Student],
    awarded: Mapping[tuple, float],
) -> None:  # fmt: skip
    items = masters.items(assignment)
    own = [row for row in counting if row.grade.assignment == assignment]
    header = ["id", "submission", "name", "status", "points", "possible", "by hand", "total",
              "late", *(item.number for item in items), "leans on", "page"]  # fmt: skip
    lines: list[list[str | float]] = []
    for row in own:
        name, who, full, status, points, possible, hand, _, late, leans, page = _common(
            row, awarded
        )
        by_question = [
            row.grade.points.get(item.number, 0.0) if item.name
            else awarded.get((row.page, item.number), "")
            for item in items
        ]  # fmt: skip
        total = row.grade.total + (hand or 0.0)
        lines.append([who, name, full, status, points, possible, hand, total, late, *by_question,
                      leans, page])  # fmt: skip
    there = {row.who for row in own}
    possible = sum(item.points for item in items if item.name)
    rest = [""] * (len(items) + 3)
    lines += [
        [student.id, "", student.name, "missing", 0.0, possible, "", 0.0, *rest]
        for student in students if student.id not in there
    ]  # fmt: skip
    table(folder / f"{assignment}.csv", header, lines)


def _totals(
    folder: Path, seen: Sequence[str], counting: Sequence[Row], students: Sequence[Student],
    awarded: Mapping[tuple, float],
) -> None:  # fmt: skip
    totals: dict[str, dict[str, float]] = {student.id: {} for student in students}
    names = {student.id: student.name for student in students}
    for row in counting:
        earned = row.grade.total + (_by_hand(row, awarded) or 0.0)
        totals.setdefault(row.who, {})[row.grade.assignment] = earned
    table(
        folder / "totals.csv",
        ["id", "name", *seen, "points", "missing"],
        (
            [who, names.get(who, ""), *(own.get(a, "") for a in seen), float(sum(own.values())),
             ", ".join(a for a in seen if a not in own)]
            for who, own in totals.items()
        ),
    )  # fmt: skip


# --- pages


STYLE = """body {font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em}
table {border-collapse: collapse} pre {white-space: pre-wrap; border: 1px solid; padding: .5em}
th, td {border: 1px solid; padding: .3em .6em; text-align: left; vertical-align: top}"""


def page(row: Row, awarded: Mapping[tuple, float]) -> str:
    """Return the page of feedback for one submission."""
    grade = row.grade
    lines = []
    for question, possible in grade.possible.items():
        said = "<br>".join(map(html.escape, grade.feedback.get(question, []))) or "&nbsp;"
        points = f"{grade.points[question]:g} of {possible:g}"
        lines.append(f"<tr><th scope=row>{question}</th><td>{points}</td><td>{said}</td></tr>")
    for (name, question), points in awarded.items():
        if name == row.page:
            lines.append(
                f"<tr><th scope=row>{question}</th><td>{points:g}</td><td>by hand</td></tr>"
            )
    title = html.escape(f"{row.who}: {grade.assignment or 'unknown assignment'}")
    notes = [f"<p><b>{grade.status}</b>: {html.escape(grade.reason)}</p>"] if grade.reason else []
    notes += ["<p>Late.</p>"] if row.late else []
    if not row.counts:
        notes.append("<p>Another submission of the same student counts.</p>")
    if grade.cells:
        notes.append("<p>" + "<br>".join(map(html.escape, grade.cells)) + "</p>")
    hand = _by_hand(row, awarded)
    by_hand = "without what is graded by hand" if hand is None else f"and {hand:g} by hand"
    return _document(title, f"""\
<p>{html.escape(grade.submission)}</p>
<p>{grade.total:g} of {sum(grade.possible.values()):g} points, {by_hand}.</p>
{"".join(notes)}
<table><tr><th>Question</th><th>Points</th><th>What the tests say</th></tr>
{"".join(lines)}</table>""")  # fmt: skip


def _document(title: str, body: str) -> str:
    return f"""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
{body}
</html>
"""


# --- derivations


def read_awarded(folder: Path) -> dict[tuple, float]:
    """Read the points that a person has given, by page and question.

    Raises
    ------
    ValueError
        If a row has points that are no number, or more or less than can be had.
    """
    path = folder / DERIVATIONS
    if not path.is_file():
        return {}
    text = path.read_bytes().decode("utf-8-sig", "replace")
    awarded = {}
    delimiter = ";" if text.partition("\n")[0].count(";") > 3 else ","
    for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=delimiter), start=2):
        given = (row.get("awarded") or "").strip().replace(",", ".")
        if not given:
            continue
        try:
            points, possible = float(given), float(row["possible"].replace(",", "."))
        except (KeyError, ValueError, AttributeError):
            raise ValueError(f"{path}, line {number}: expected points, got {given!r}") from None
        if not 0 <= points <= possible:
            raise ValueError(f"{path}, line {number}: expected 0 to {possible:g}, got {given}")
        awarded[row["page"], row["question"]] = points
    return awarded


def derivations(folder: Path, rows: Sequence[Row], awarded: Mapping[tuple, float]) -> None:
    """Write answers with their rubrics on one page, and one table to fill in."""
    lines, parts = [], []
    by_question: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.counts:
            for question in row.grade.derivations:
                by_question.setdefault((row.grade.assignment, question), []).append(row)
    for (assignment, question), own in sorted(by_question.items()):
        item = next(i for i in masters.items(assignment) if i.number == question)
        parts.append(f"<h2>{html.escape(f'{assignment}: {item.title}')}</h2>")
        parts.append(
            "<details><summary>Solution and rubric</summary>"
            f"<pre>{html.escape(item.rubric)}</pre></details>"
        )
        for row in own:
            answer = row.grade.derivations[question]
            parts.append(f'<h3 id="{row.page}-{question}">{html.escape(row.who)}</h3>')
            parts.append(f"<pre>{html.escape(answer)}</pre>" if answer else "<p>No answer.</p>")
            points = awarded.get((row.page, question), "")
            lines.append([assignment, question, row.who, item.points, points, row.page,
                          "" if answer else "no answer"])  # fmt: skip
    if not lines:
        return
    header = ["assignment", "question", "student", "possible", "awarded", "page", "note"]
    table(folder / DERIVATIONS, header, lines)
    write(folder / "derivations.html", _document("Derivations", "\n".join(parts)))
