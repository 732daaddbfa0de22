"""What comes back from a class: files of any kind, and whose they are.

Nothing of a submission is trusted: files are opened without following links, never beyond their
limit, and of a notebook only the kind and the source of its cells are kept.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import fnmatch
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST = 16 * 2**20
"""Bytes of the largest file that is read as a notebook."""
LARGEST_CODE = 2**20
"""Characters of code that are run."""
LARGEST_ZIP = 2**30
MOST_IN_A_ZIP = 10_000
JUNK = ("__MACOSX", ".DS_Store", ".ipynb_checkpoints", "Thumbs.db", "desktop.ini", ".git")
ASSIGNMENT_WORD = re.compile(
    r"(?i)(?<![a-z0-9])(a[1-4](_(sarsa|training|actor_critic|design))?)(?![a-z0-9])"
)
COPY = re.compile(r"(?i)(\s*\(\d+\)|-copy\d*|\s*-\s*copy|(?<=[a-z])-\d{1,2})$|^copy of ")
CANVAS = re.compile(r"^(?P<who>[^_/]+?)(?P<late>_LATE)?_(?P<user>\d+)_(?P<file>\d+)_(?P<name>.+)$")
MOODLE = re.compile(r"^(?P<who>.+)_(?P<number>\d+)_assignsubmission_(file|onlinetext)_?.*$")


@dataclasses.dataclass(frozen=True)
class Notebook:
    """What is kept of a notebook.

    Parameters
    ----------
    cells : tuple of (str, str)
        Kind ("code" or "markdown") and source of each cell.
    assignment : str
        "A1", or empty if it does not say.
    """

    cells: tuple[tuple[str, str], ...]
    assignment: str

    @property
    def code(self) -> list[str]:
        """The sources of the code cells."""
        return [source for kind, source in self.cells if kind == "code"]


@dataclasses.dataclass(frozen=True)
class Submission:
    """A file that was handed in.

    Parameters
    ----------
    path : str
        Its path in the folder, as text; not always unique.
    key : str
        A digest of path and content.
    modified : float
        Seconds since 1970.
    notebook : Notebook or None
        None if it cannot be read.
    status, reason : str
        Why not: "unreadable" for example, and a sentence.
    who : str
        Student as the path tells, for a person to read.
    identifiers : tuple of str
        Numbers and names by which a roster may know the student.
    late : bool
        Whether the learning management system calls it late.
    """

    path: str
    key: str
    modified: float
    notebook: Notebook | None
    status: str = ""
    reason: str = ""
    who: str = ""
    identifiers: tuple[str, ...] = ()
    late: bool = False


class UnreadableError(ValueError):
    """A file that is no notebook, with the reason."""


# --- one notebook


def read(content: bytes) -> Notebook:
    """Read anything that has cells in it.

    Raises
    ------
    UnreadableError
        With the reason as its message.
    """
    try:
        document = json.loads(decoded(content), strict=False)
    except RecursionError:
        raise UnreadableError("not a notebook: it is nested too deeply") from None
    except ValueError as error:
        raise UnreadableError(f"not a notebook: {error}"[:300]) from None
    document = {"cells": document} if isinstance(document, list) else document
    if not isinstance(document, dict):
        raise UnreadableError("not a notebook: it has no cells")
    found = [document.get("cells")]
    if isinstance(sheets := document.get("worksheets"), list):  # before format 4
        found += [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
    lists = [cells for cells in found if isinstance(cells, list)]
    if not lists:
        raise UnreadableError("not a notebook: it has no cells")
    cells = tuple(
        ("code" if str(cell.get("cell_type")).lower() == "code" else "markdown", _source(cell))
        for cells in lists
        for cell in cells
        if isinstance(cell, dict)
    )
    if sum(len(source) for _, source in cells) > LARGEST_CODE:
        raise UnreadableError(f"more than {LARGEST_CODE} characters in its cells")
    said = document.get("metadata")
    said = said.get("otter") if isinstance(said, dict) else None
    assignment = said.get("assignment_name") if isinstance(said, dict) else None
    if not isinstance(assignment, str) or not assignment:
        assignment = _guessed(cells)
    return Notebook(cells, assignment[:40])


def decoded(content: bytes) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, with or without a mark, or what Windows writes."""
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input"))
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _guessed(cells: tuple[tuple[str, str], ...]) -> str:
    """Recognise an assignment by its checks or, without any, by its title."""
    checks = [
        name for kind, source in cells if kind == "code"
        for name in re.findall(r"""check\(\s*["'](A\d)\.""", source)
    ]  # fmt: skip
    if checks:
        return max(sorted(set(checks)), key=checks.count)
    titles = (re.match(r"\s*# Assignment (\d)\b", source) for _, source in cells)
    return next((f"A{title[1]}" for title in titles if title), "")


# --- a folder of them


def collect(folder: Path, skip: Path) -> list[Submission]:
    """Read what a folder or a zip file holds, except the folder `skip`, in the order of its paths.

    No two paths are the same: one that repeats gets a number.
    """
    if folder.is_dir():
        found = list(_walk(os.fsencode(folder), b"", os.fsencode(skip.resolve())))
    elif folder.is_file() and zipfile.is_zipfile(folder):
        found = list(_unzipped(os.fsencode(folder), ""))
    else:
        raise ValueError(f"submissions: expected a folder or a zip file, got {folder}")
    students = _gradescope(folder)
    seen: dict[str, int] = {}
    for i, one in enumerate(sorted(found, key=lambda one: (one.path, one.key))):
        seen[one.path] = seen.get(one.path, 0) + 1
        if seen[one.path] > 1:
            one = dataclasses.replace(one, path=f"{one.path} [{seen[one.path]}]")
        if (known := students.get(one.path.partition("/")[0])) is not None:
            one = dataclasses.replace(one, who=known[-1], identifiers=one.identifiers + known)
        found[i] = one
    return found


def _walk(root: bytes, inside: bytes, skip: bytes, depth: int = 0) -> Iterator[Submission]:
    """Read every file below a folder; names are bytes, as not all are text."""
    place = os.path.join(root, inside)
    if os.path.realpath(place) == skip:
        return
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError as error:
        yield _refused(_text(inside), "unreadable", f"the folder cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = os.path.join(inside, entry.name)
        name = _text(path)
        if is_junk(_text(entry.name)):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name.lower().endswith(b".ipynb"):
                yield _refused(name, "unreadable", "a folder with the name of a notebook")
            if depth > 30:
                yield _refused(name, "unreadable", "folders nested too deeply")
            else:
                yield from _walk(root, path, skip, depth + 1)
        elif not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "a pipe, socket or device"
            yield _refused(name, "unreadable", f"not a file but {kind}")
        elif name.lower().endswith(".zip"):
            yield from _unzipped(os.path.join(root, path), name)
        else:
            yield _file(os.path.join(root, path), name)


def _file(path: bytes, name: str) -> Submission:
    if not is_notebook(name):
        if os.path.basename(name) == "submission_metadata.yml":
            return _refused(name, "ignored", "a list of submissions")
        return _refused(name, "ignored", "not a notebook: its name does not end in .ipynb")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return _refused(name, "unreadable", "not a file")
            content = file.read(LARGEST + 1)
    except OSError as error:
        return _refused(name, "unreadable", f"it cannot be opened: {error.strerror}")
    return _submission(name, content, about.st_mtime)


def _unzipped(path: bytes, name: str) -> Iterator[Submission]:
    """Read the notebooks of a zip file; nothing of it is written anywhere."""
    prefix = f"{name}/" if name else ""
    try:
        if os.path.getsize(path) > LARGEST_ZIP:
            yield _refused(name, "too large", f"more than {LARGEST_ZIP} bytes")
            return
        with zipfile.ZipFile(os.fsdecode(path)) as files:
            entries = [entry for entry in files.infolist() if not entry.is_dir()]
            if len(entries) > MOST_IN_A_ZIP:
                yield _refused(name, "too large", f"more than {MOST_IN_A_ZIP} files in it")
                return
            notebooks = 0
            for entry in entries:
                inner = prefix + _zip_name(entry)
                if any(is_junk(part) for part in inner.split("/")) or not is_notebook(inner):
                    continue
                notebooks += 1
                yield _from_zip(files, entry, inner)
            if not notebooks:
                yield _refused(name, "ignored", "no notebook in this zip file")
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        yield _refused(name, "unreadable", f"a zip file that cannot be read: {error}"[:300])


def _from_zip(files: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Submission:
    try:
        with files.open(entry) as file:
            content = file.read(LARGEST + 1)
        when = datetime.datetime(*entry.date_time, tzinfo=datetime.timezone.utc).timestamp()
    except Exception as error:  # encrypted, damaged, an unknown method or an impossible date
        return _refused(name, "unreadable", f"it cannot be unpacked: {error}"[:300])
    return _submission(name, content, when)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    if not entry.flag_bits & 0x800:  # not marked as UTF-8, and often UTF-8 all the same
        with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
            name = name.encode("cp437").decode("utf-8")
    return _printable(name)


def _submission(name: str, content: bytes, modified: float) -> Submission:
    if len(content) > LARGEST:
        return _refused(name, "too large", f"more than {LARGEST // 2**20} MB")
    key = hashlib.sha256(name.encode("utf-8", "surrogateescape") + b"\0" + content).hexdigest()
    who, identifiers, late = told_by(name)
    about = {"who": who, "identifiers": identifiers, "late": late}
    try:
        return Submission(name, key, modified, read(content), **about)
    except UnreadableError as error:
        return Submission(name, key, modified, None, "unreadable", str(error), **about)


def _refused(name: str, status: str, reason: str) -> Submission:
    key = hashlib.sha256(f"{name}\0{status}\0{reason}".encode("utf-8", "replace")).hexdigest()
    who, identifiers, late = told_by(name)
    return Submission(name, key, 0.0, None, status, reason, who, identifiers, late)


def is_notebook(name: str) -> bool:
    """Tell by a file's name whether it may be a notebook."""
    return name.lower().endswith((".ipynb", ".ipynb.txt", ".ipynb.json"))


def is_junk(name: str) -> bool:
    """Tell by a name whether an operating system or an editor has left it."""
    return name in JUNK or name.startswith(("._", "~$"))


def _text(name: bytes) -> str:
    """Return a path as text: UTF-8, or else what Western Europe wrote before it."""
    try:
        return _printable(name.decode("utf-8"))
    except UnicodeDecodeError:
        return _printable(name.decode("cp1252", "replace"))


def _printable(name: str) -> str:
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )


# --- whose it is


def told_by(path: str) -> tuple[str, tuple[str, ...], bool]:
    """Return what a path tells of its student: a name to print, identifiers, and whether late.

    Canvas writes ``nameofstudent_LATE_userid_fileid_name.ipynb``, Moodle a folder
    ``First Last_123_assignsubmission_file_``; otherwise the file's name counts or, if that is only
    the assignment's, its folder's.
    """
    *folders, name = path.split("/")
    for part in reversed(folders):
        if found := MOODLE.match(part):
            return found["who"], (found["number"], found["who"]), False
    if found := CANVAS.match(name):
        return f"{found['who']}_{found['user']}", (found["user"], found["who"]), bool(found["late"])
    stem = re.sub(r"(?i)(\.ipynb)?(\.ipynb|\.txt|\.json|\.zip)$", "", name)
    stem = COPY.sub("", stem)
    who = ASSIGNMENT_WORD.sub("", stem).strip(" _-.")
    parts = [*folders, who] if who else folders
    return "/".join(parts) or stem, tuple(part for part in (*folders, stem) if part), False


def _gradescope(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read who has handed in what from Gradescope's export, if it is one."""
    path = folder / "submission_metadata.yml"
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST:
            return {}
        said = yaml.safe_load(path.read_bytes())
        return {
            str(name): tuple(
                str(one.get(key)) for one in about[":submitters"]
                for key in (":sid", ":email", ":name") if one.get(key)
            )
            for name, about in said.items()
        }  # fmt: skip
    except Exception:  # not Gradescope's
        return {}


@dataclasses.dataclass(frozen=True)
class Student:
    """A student of a roster.

    Parameters
    ----------
    id, name : str
        Identifier and name.
    pattern : str
        A pattern of paths, ``*meier*`` for example; empty if id and name are enough.
    """

    id: str
    name: str
    pattern: str = ""


def roster(path: Path) -> tuple[Student, ...]:
    """Read a roster: a CSV file with the columns id, name and, if it helps, pattern.

    Raises
    ------
    ValueError
        If it has no such columns, no students, or an identifier twice.
    """
    text = decoded(path.read_bytes()).lstrip("\ufeff")
    first = text.partition("\n")[0]
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in first else ","))
    columns = {(name or "").strip().lower(): name for name in (rows[0] if rows else {})}
    if not rows or "id" not in columns or "name" not in columns:
        raise ValueError(f"roster: expected columns id and name in {path}")
    students = tuple(
        Student(*((row.get(columns.get(key)) or "").strip() for key in ("id", "name", "pattern")))
        for row in rows
    )
    students = tuple(student for student in students if student.id)
    seen = [student.id for student in students]
    if len(set(seen)) < len(seen):
        twice = next(one for one in seen if seen.count(one) > 1)
        raise ValueError(f"roster: expected every id once, got {twice!r} twice")
    return students


def find(students: tuple[Student, ...], submission: Submission) -> Student | None:
    """Return the one student whose submission it is; None if nobody or more than one fits.

    A pattern decides before an identifier, an identifier before a name.
    """
    words = {_plain(part) for part in submission.identifiers}
    tokens = words | {
        _plain(token)
        for part in submission.identifiers
        for separator in (r"[^\w@.]|_", r"[\W_]+")
        for token in re.split(separator, part)
    }

    def by_pattern(student: Student) -> bool:
        return bool(student.pattern) and fnmatch.fnmatchcase(
            submission.path.casefold(), student.pattern.casefold()
        )

    def by_id(student: Student) -> bool:
        return _plain(student.id) in tokens

    def by_name(student: Student) -> bool:
        pieces = [_plain(piece) for piece in re.split(r"[\s,]+", student.name) if _plain(piece)]
        orders = {"".join(pieces), "".join(reversed(pieces)), "".join(pieces[-1:] + pieces[:-1])}
        return bool(pieces) and any(name == word for name in orders for word in words)

    def in_name(student: Student) -> bool:
        pieces = {_plain(piece) for piece in re.split(r"[\s,]+", student.name) if _plain(piece)}
        return len(pieces) > 1 and pieces <= tokens

    for rule in (by_pattern, by_id, by_name, in_name):
        fitting = [student for student in students if rule(student)]
        if fitting:
            return fitting[0] if len(fitting) == 1 else None
    return None


def _plain(text: str) -> str:
    """Return letters and digits without case and accents, for comparing names."""
    text = text.replace("ß", "ss").replace("ø", "o").replace("Ø", "O").replace("ł", "l")
    letters = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in letters if letter.isalnum())
