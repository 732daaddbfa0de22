"""Make the students' versions of the assignments, and grade a folder of what comes back."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import datetime
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

warnings.simplefilter("ignore")  # before what is imported: -W error is no reason to fail a class

import nbformat  # noqa: E402
import torch  # noqa: E402
from grading import grades, masters, sheets, submissions, tables  # noqa: E402
from grading.grades import Grade  # noqa: E402
from grading.masters import distribute  # noqa: E402
from grading.sandbox import INTERRUPTED, Limits, Sandbox  # noqa: E402
from grading.sheets import PUBLIC_COURSE, Course  # noqa: E402
from grading.submissions import Student, Submission  # noqa: E402
from tqdm import tqdm  # noqa: E402

from icrl_lib.classroom import homework  # noqa: E402

OUTPUT = masters.ROOT / "_build" / "classroom"
DUPLICATES = ("last", "best")


# --- the students' versions


def generate(
    output: Path = OUTPUT,
    course: Course = PUBLIC_COURSE,
    students: Sequence[Student] = (),
) -> None:
    """Write students' notebooks, solutions and archives.

    Parameters
    ----------
    output : Path
        Where solutions and archives go.
    course : Course
        The public one's students' notebooks stand beside the book, others' in `output`.
    students : sequence of Student
        Those who get notebooks of their own, with their own numbers.
    """
    output = output / _file_name(course.name) if course.name else output
    output.mkdir(parents=True, exist_ok=True)
    if not course.name:
        write_public_sheet()
    for master in masters.masters():
        made = distribute(master, course)
        beside = output if course.name else masters.ASSIGNMENTS
        nbformat.write(made.student, beside / master.name)
        nbformat.write(made.solution, output / f"{made.name}-solution.ipynb")
        (output / f"{made.name}-autograder.zip").write_bytes(made.archive)
        for student in students:
            folder = output / "students" / _file_name(student.id)
            folder.mkdir(parents=True, exist_ok=True)
            own = for_student(made.student, master, course, student)
            nbformat.write(own, folder / master.name)
        print(f"{master.stem}: student notebook, solution, autograder")
    print(f"Solutions and autograders are in {output}")


def write_public_sheet() -> None:
    """Write the sheet of public instances, unless the one that is there says the same."""
    sheet = json.loads(json.dumps(sheets.public_sheet()))
    try:
        kept = homework.Checks().sheet
    except (OSError, ValueError):
        kept = None
    if kept != sheet:
        homework.PUBLIC.write_text(homework.pack(sheet), encoding="ascii")


def for_student(
    notebook: nbformat.NotebookNode, master: Path, course: Course, student: Student
) -> nbformat.NotebookNode:
    """Return a student's notebook with the numbers of that student in it.

    Two texts of the master differ between a course and one of its students: what the questions say,
    and the sheet that the checks read.
    """
    assignment = masters.assignment_of(master)
    own = dataclasses.replace(course, student=student.id)
    notebook = copy.deepcopy(notebook)
    pairs = zip(*(masters.master(master, one).cells for one in (course, own)), strict=True)
    changed = {a.source.strip(): b.source.strip() for a, b in pairs if a.source != b.source}
    shared, differing = (sheets.public_sheet(one, assignment) for one in (course, own))
    for cell in notebook.cells:
        cell.source = changed.get(cell.source.strip(), cell.source)
        cell.source = cell.source.replace(homework.pack(shared), homework.pack(differing))
    return notebook


# --- grading


@dataclasses.dataclass(frozen=True)
class Options:
    """How a class is graded.

    Parameters
    ----------
    course : Course
        Whose instances are asked.
    roster : tuple of Student
        The class; may be empty.
    per_student : bool
        Whether every student of the roster has numbers of their own.
    assignment : str
        What a notebook belongs to if it does not say so itself.
    duplicates : str
        Which of a student's submissions counts, "last" or "best".
    due : float or None
        When submissions are late, in seconds since 1970.
    only : tuple of str
        Patterns of paths or students; if there are any, those are graded again and no others.
    regrade : bool
        Whether to grade what has been graded before.
    jobs : int
        Submissions at a time.
    limits : Limits
        What each may use.
    sandbox : bool
        Whether to use bubblewrap if it is there.
    """

    course: Course = PUBLIC_COURSE
    roster: tuple[Student, ...] = ()
    per_student: bool = False
    assignment: str = ""
    duplicates: str = "last"
    due: float | None = None
    only: tuple[str, ...] = ()
    regrade: bool = False
    jobs: int = 2
    limits: Limits = dataclasses.field(default_factory=Limits)
    sandbox: bool = True


DEFAULTS = Options()


def grade(
    folder: Path,
    output: Path = OUTPUT / "grades",
    options: Options = DEFAULTS,
) -> list[tables.Row]:
    """Grade what a folder holds; write tables and a page of feedback for each submission.

    Every grade is kept as soon as it is known, and a second run goes on where the first was ended.
    What one submission does reaches no other's grade: it runs in a sandbox, which returns data.
    """
    found = submissions.collect(folder, output)
    if not any(one.status != "ignored" for one in found):
        raise ValueError(f"submissions: expected a folder with notebooks, found none in {folder}")
    output.mkdir(parents=True, exist_ok=True)
    (output / tables.PAGES).mkdir(exist_ok=True)
    with _alone(output):
        return _grade_all(found, output, options)


def _grade_all(found: list[Submission], output: Path, options: Options) -> list[tables.Row]:
    awarded = tables.read_awarded(output)
    sandbox = Sandbox(options.limits, "bwrap" if options.sandbox else None)
    if sandbox.unprotected:
        _warn(sandbox)
    journal = tables.Journal(output, _version(options.course))
    whose = {one.path: submissions.find(options.roster, one) for one in found}
    keys = {one.path: _key(one, whose[one.path], options) for one in found}
    todo = [one for one in found if _is_due(one, whose[one.path], keys, journal, options)]

    def one(submission: Submission) -> Grade:
        student = whose[submission.path]
        own = student.id if options.per_student and student else ""
        course = dataclasses.replace(options.course, student=own)
        return grades.grade(submission, course, sandbox, options.assignment)

    def written(*, pages: Sequence[str] | None = None) -> list[tables.Row]:
        known = [s for s in found if keys[s.path] in journal.grades]
        rows = _rows(known, whose, {s.path: journal.grades[keys[s.path]] for s in known}, options)
        tables.tables(output, rows, options.roster, awarded)
        for row in rows:
            if pages is None or row.submission.path in pages:
                tables.write(output / tables.PAGES / row.page, tables.page(row, awarded))
        return rows

    pool = ThreadPoolExecutor(options.jobs)
    try:
        running = {pool.submit(one, submission): submission for submission in todo}
        for done in tqdm(
            as_completed(running), total=len(todo), desc="grading", unit=" notebooks",
            disable=not todo,
        ):  # fmt: skip
            submission, made = running[done], done.result()
            if made.reason != INTERRUPTED:
                journal.add(keys[submission.path], made)
                written(pages=[submission.path])
    finally:
        sandbox.stop.set()
        pool.shutdown(cancel_futures=True)
    rows = written()
    tables.derivations(output, rows, awarded)
    current = {row.page for row in rows}
    for stale in (output / tables.PAGES).glob("*.html"):
        if stale.name not in current:
            stale.unlink()
    counts = Counter(row.grade.status for row in rows)
    said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(
        f"{len(rows)} submissions ({said}): tables in {output}, feedback in {output / 'feedback'}"
    )
    return rows


def _is_due(
    one: Submission, student: Student | None, keys: dict[str, str], journal: tables.Journal,
    options: Options,
) -> bool:  # fmt: skip
    """Tell whether a submission has to be graded now."""
    if options.only:
        names = (one.path, one.who, student.id if student else "")
        return any(fnmatch.fnmatchcase(n, p) or p == n for n in names for p in options.only)
    return options.regrade or keys[one.path] not in journal.grades


def _key(one: Submission, student: Student | None, options: Options) -> str:
    own = student.id if options.per_student and student else ""
    words = "\0".join([one.path, one.key, own, options.assignment])
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()


def _rows(
    found: list[Submission], whose: dict[str, Student | None], made: dict[str, Grade],
    options: Options,
) -> list[tables.Row]:  # fmt: skip
    """Return the rows of the tables: late ones are marked, and of duplicates all but one."""
    rows = [
        tables.Row(s, made[s.path], whose[s.path], s.late or _is_late(s, options.due))
        for s in found
    ]
    best: dict[tuple[str, str], tables.Row] = {}
    for row in rows:
        key = (row.who, row.grade.assignment)
        if row.grade.assignment and (
            key not in best or _rank(row, options) >= _rank(best[key], options)
        ):
            best[key] = row
    chosen = {id(row) for row in best.values()}
    return [dataclasses.replace(row, counts=id(row) in chosen) for row in rows]


def _rank(row: tables.Row, options: Options) -> tuple[float, float, int]:
    """Return by what duplicates are compared: points if the best counts, then time, then number."""
    number = re.search(r"[-( ](\d+)\)?\.ipynb", row.submission.path.lower())
    points = row.grade.total if options.duplicates == "best" else 0.0
    return points, row.submission.modified, int(number[1][:9]) if number else 0


def _is_late(one: Submission, due: float | None) -> bool:
    return due is not None and one.modified > due


def _version(course: Course) -> str:
    """Return a digest of what grades depend on beside the submissions."""
    folders = (masters.ROOT / "icrl_lib", Path(grades.__file__).parent, masters.MASTERS)
    sources = sorted(p for f in folders for p in f.rglob("*") if p.suffix in (".py", ".ipynb"))
    parts = [course.name, torch.__version__, *(path.read_text("utf-8") for path in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _warn(sandbox: Sandbox) -> None:
    print(f"NO SANDBOX: {sandbox.why}.", file=sys.stderr)
    print("Points are safe from submissions all the same, but each of them can", file=sys.stderr)
    for can in sandbox.unprotected:
        print(f"  - {can}", file=sys.stderr)
    print("The guide, book/assignments/guide.md, says how to install bubblewrap.", file=sys.stderr)


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Refuse a second run on the same output."""
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output: another run is writing to {output}") from None
        yield


def _file_name(name: str) -> str:
    """Return a name of a course or a student as one of a file."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"


# --- the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="task", required=True)
    command = commands.add_parser(
        "generate", help="make students' notebooks, solutions, autograders"
    )
    command.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for solutions and autograders"
    )
    command.add_argument(
        "--course", default="", help="a course's name: numbers and slots of its own"
    )
    command.add_argument(
        "--per-student", type=Path, metavar="ROSTER", help="notebooks with numbers for each student"
    )
    command = commands.add_parser("grade", help="grade a folder or a zip file of notebooks")
    command.add_argument("submissions", type=Path, help="searched for notebooks at any depth")
    command.add_argument(
        "--output", type=Path, default=OUTPUT / "grades", help="folder for the results"
    )
    command.add_argument("--roster", type=Path, help="CSV file with the columns id, name, pattern")
    command.add_argument(
        "--course", default="", help="the name that the assignments were made with"
    )
    command.add_argument(
        "--per-student", action="store_true", help="every student of the roster has own numbers"
    )
    command.add_argument(
        "--assignment",
        choices=sheets.ASSIGNMENTS,
        default="",
        help="of notebooks that do not say it",
    )
    command.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="last",
        help="which submission of a student counts",
    )
    command.add_argument("--due", help="time after which files are late: 2027-03-01T23:59+01:00")
    command.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="grade these paths again"
    )
    command.add_argument("--regrade", action="store_true", help="grade everything again")
    command.add_argument("--jobs", type=int, default=2, help="submissions at a time; default 2")
    seconds = Limits().seconds
    command.add_argument(
        "--seconds", type=int, default=seconds, help=f"time limit of each; default {seconds}"
    )
    command.add_argument("--no-sandbox", action="store_true", help="do not use bubblewrap")
    options = parser.parse_args(arguments)
    os.umask(0o077 if options.task == "grade" else 0o022)
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        if options.task == "generate":
            students = submissions.roster(options.per_student) if options.per_student else ()
            generate(options.output, Course(options.course), students)
        else:
            grade(options.submissions, options.output, _options(options))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "Stopped. What was graded is kept: the same command goes on from here.", file=sys.stderr
        )
        return 130
    return 0


def _options(given: argparse.Namespace) -> Options:
    due = None
    if given.due:
        when = datetime.datetime.fromisoformat(given.due)
        when = when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)
        due = when.timestamp()
    if given.per_student and not given.roster:
        raise ValueError("per-student: expected a roster, too")
    if given.jobs < 1 or given.seconds < 1:
        raise ValueError("jobs and seconds: expected at least 1")
    return Options(
        course=Course(given.course),
        roster=submissions.roster(given.roster) if given.roster else (),
        per_student=given.per_student,
        assignment=given.assignment,
        duplicates=given.duplicates,
        due=due,
        only=tuple(given.only),
        regrade=given.regrade,
        jobs=given.jobs,
        limits=Limits(seconds=given.seconds),
        sandbox=not given.no_sandbox,
    )


if __name__ == "__main__":
    sys.exit(main())
