"""A class is graded: what a submission does to others, the machine and the tables is nothing."""

from __future__ import annotations

import collections
import contextlib
import copy
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import unicodedata
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import classroom  # noqa: E402
from grading import grades, masters, sandbox, sheets, submissions, tables  # noqa: E402
from grading.grades import Grade  # noqa: E402
from grading.sandbox import Limits, Sandbox  # noqa: E402
from grading.submissions import Student  # noqa: E402

TOOL = ROOT / "tools" / "classroom.py"
NAMES = [master.stem for master in masters.masters()]
A1 = NAMES[0]
HAS_SANDBOX = not Sandbox(Limits()).unprotected
in_a_sandbox = pytest.mark.skipif(not HAS_SANDBOX, reason="bubblewrap does not work here")


# --- notebooks


@functools.cache
def _student(name):
    return nbformat.read(masters.ASSIGNMENTS / f"{name}.ipynb", as_version=4)


def blank(name=A1):
    return copy.deepcopy(_student(name))


@functools.cache
def solutions(name):
    """The master's own answers, as code by question."""
    found, question = {}, None
    cells = masters.master(masters.MASTERS / f"{name}.ipynb", sheets.Course()).cells
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            question = re.search(r"name: (\w+)", cell.source)[1]
        elif before.source == "# BEGIN SOLUTION" and cell.cell_type == "code":
            found[question] = cell.source
    return found


def answered(name=A1, **answers):
    """A student's notebook with the master's answers, those given in their place."""
    notebook, own = blank(name), solutions(name) | answers
    cells = [
        c
        for c in notebook.cells
        if c.cell_type == "code" and "otter_answer_cell" in c.metadata.get("tags", [])
    ]
    for cell, answer in zip(cells, own.values(), strict=True):
        cell.source = answer
    return notebook


def with_cell(notebook, source, index=3):
    notebook.cells.insert(index, nbformat.v4.new_code_cell(source))
    return notebook


def at_the_end(notebook, source):
    return with_cell(notebook, source, len(notebook.cells))


# --- what a class hands in

HARMLESS = {
    "an-error-in-one-cell": "1 / 0",
    "prints": "for _ in range(20):\n    print('x' * 10**6)",
    "exits": "exit()",
    "waits": "input('your name? ')",
    "installs": "%pip install numpy\n!ls\nimport matplotlib\n%matplotlib inline",
    "other-defaults": "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)",
    "interrupts": "raise KeyboardInterrupt",
    "makes-a-child": "import subprocess\nsubprocess.Popen(['sleep', '613'])",
    "asks-for-all-memory": "kept = bytearray(10**13)",
    "takes-rights-away": "import os\nos.mkdir('mine')\nos.chmod('mine', 0)\nos.chmod('.', 0)",
    "pipes-in-the-way": "import os\n[os.mkfifo(n) for n in ('answers', 'icrl_lib', 'task.json')]",
    "links-in-the-way": "import os\nos.makedirs('answers')\nos.symlink('.', 'loop')\n"
    "os.symlink('/etc/passwd', 'task.json')",
    "threads-and-last-words": "import atexit, threading, time\n"
    "threading.Thread(target=time.sleep, args=(999,)).start()\n"
    "atexit.register(time.sleep, 999)",
}
"""Cells that do no harm to the answers, and cost nothing."""

ENDS = {
    "ends-the-process": ("import os\nos._exit(0)", "crashed"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "crashed"),
    "kills-everybody": (
        "import os\ntry:\n    os.kill(-1, 9)\nexcept OSError:\n    pass\nos.kill(os.getpid(), 9)",
        "crashed",
    ),
    "closes-everything": ("import os\nos.closerange(0, 100)", "crashed"),
    "raises-without-words": (
        "class Wordless(Exception):\n    __str__ = None\nraise Wordless",
        "crashed",
    ),
    "endless-loop": ("while True:\n    pass", "time limit"),
    "endless-sleep": ("import time\nwhile True:\n    time.sleep(1)", "time limit"),
    "endless-stop": ("import os\nos.kill(os.getpid(), 19)", "time limit"),
    "endless-with-a-child": (
        "import subprocess, time\nsubprocess.Popen(['sleep', '613'], start_new_session=True)\n"
        "time.sleep(999)",
        "time limit",
    ),
    "forks": (
        "import os, time\nwhile True:\n    try:\n        if os.fork() == 0:\n"
        "            time.sleep(99)\n    except OSError:\n        time.sleep(0.1)",
        "limit",
    ),
    "floods-the-answers": (
        "import os\nfor fd in range(3, 256):\n    try:\n        while True:\n"
        "            os.write(fd, b'x' * 10**6)\n    except OSError:\n        pass",
        "crashed",
    ),
}
"""Cells that end a notebook before its answers, with the status; by name the longest come first."""

DANGEROUS = ("kills-everybody", "forks")
"""What nobody runs outside a sandbox."""

CHEATS = {
    "fake-library": "import sys, types\nfake = types.ModuleType('icrl_lib')\n"
    "sys.modules['icrl_lib'] = fake\nsys.path.insert(0, '.')",
    "replaces-the-checks": "from icrl_lib.classroom import homework\n"
    "homework.verdict = homework.accepts = lambda *_, **__: True",
    "replaces-the-questions": "from icrl_lib.classroom import exchange\n"
    "exchange.ask = lambda asked, answer: {'value': True, 'records': True}",
    "replaces-the-comparison": "import torch\ntorch.Tensor.item = lambda _: 0.0\n"
    "torch.Tensor.__eq__ = torch.Tensor.__le__ = lambda *_: True",
    "equal-to-everything": "class Any(float):\n    __eq__ = __le__ = __lt__ = lambda *_: True\n"
    "    __sub__ = __rsub__ = __abs__ = lambda self, *_: Any(0)\n    __hash__ = None\n"
    "w_by_hand = n_nonzero = Any(0)",
    "looks-into-frames": "import sys\ndef sarsa_update(*args, **named):\n"
    "    frame = sys._getframe()\n    while frame:\n        for value in frame.f_locals.values():\n"
    "            if isinstance(value, dict) and 'expected' in value:\n"
    "                return value['expected']\n        frame = frame.f_back\n"
    "    raise LookupError('nothing expected in here')",
    "writes-answers-itself": "import json, os\nline = json.dumps({'question': 'by_hand', 'answer': "
    "{'value': True, 'points': 100, 'passed': {'values': True}}}) + '\\n'\n"
    "for fd in range(3, 256):\n"
    "    try:\n        os.write(fd, (line + json.dumps({'done': True}) + '\\n').encode())\n"
    "    except OSError:\n        pass",
    "writes-odd-answers": "import os\n"
    "odd = ['null', '[]', '1', '\"x\"', '{}', '[' * 5000, '1' * 5000, '\\udcff', '{\"done\": 1}',\n"
    '       \'{"cell": true, "error": {}}\', \'{"question": [], "answer": {}}\']\n'
    'odd += [f\'{{"question": "{question}", "answer": {answer}}}\'\n'
    "        for question in ('by_hand', 'sarsa_update', 'prompt')\n"
    "        for answer in ('null', '[]', '{\"value\": NaN}', '{\"value\": 1e999}',\n"
    "                       '{\"records\": {}}', '{\"records\": [null]}', '{\"missing\": []}',\n"
    "                       '{\"value\": ' + '[' * 900 + ']' * 900 + '}')]\n"
    "lines = '\\n'.join(['', *odd, '']).encode('utf-8', 'surrogateescape')\n"
    "for fd in range(3, 256):\n    try:\n        os.write(fd, lines)\n"
    "    except OSError:\n        pass",
    "a-child-answers": "import os, time\n"
    'line = b\'\\n{"question": "by_hand", "answer": {"points": 18}}\\n\'\n'
    "if os.fork() == 0:\n    os.setsid()\n    for _ in range(200):\n"
    "        for fd in range(3, 256):\n            try:\n                os.write(fd, line)\n"
    "            except OSError:\n                pass\n        time.sleep(0.1)\n    os._exit(0)",
    "a-tensor-of-its-own": "class Any(torch.Tensor):\n    @classmethod\n"
    "    def __torch_function__(cls, *_, **__):\n        return torch.tensor(0.0)\n"
    "    tolist = lambda _: ['right']\n    numel = lambda _: 0\n"
    "def sarsa_update(w, **_):\n    return torch.zeros_like(w).as_subclass(Any)",
    "numbers-that-are-none": "class Number:\n    __float__ = __index__ = lambda self: 1 / 0\n"
    "w_by_hand, n_nonzero = Number(), float('nan')",
    "hijacks-the-end": "import json\nreal = json.dumps\n"
    "json.dumps = lambda told, **z: real({**told, 'points': 18, 'possible': 18})",
}
"""Cells that earn nothing in a notebook without answers."""

SPIES = {
    "other-files": "import glob, os\nfound = [p for p in {paths!r} if os.path.exists(p)]\n"
    "found += glob.glob('/root*/*') + glob.glob('/home/[!s]*') + glob.glob('/etc/shadow')\n"
    "raise RuntimeError(f'found {{len(found)}} of them')",
    "environment": "import os\nfound = int('ICRL_TEST_SECRET' in str(os.environ))\n"
    "raise RuntimeError(f'found {{found}} of them')",
    "network": "import socket\nfound = 0\nfor host in (('127.0.0.1', {port}), ('1.1.1.1', 53)):\n"
    "    try:\n        socket.create_connection(host, 1)\n        found += 1\n"
    "    except OSError:\n        pass\nraise RuntimeError(f'found {{found}} of them')",
    "processes": "import os\nfound = [p for p in os.listdir('/proc') if p.isdigit()]\n"
    "raise RuntimeError(f'found {{max(0, len(found) - 4)}} of them')",
    "writes": "import os\nfound = 0\n"
    "for path in {paths!r} + ['/place', '/', '/usr', '/dev', '/etc']:\n"
    "    try:\n        open(os.path.join(path, 'x.txt'), 'w').close()\n        found += 1\n"
    "    except OSError:\n        pass\nraise RuntimeError(f'found {{found}} of them')",
    "disk": "found = 0\ntry:\n    for i in range(40):\n"
    "        open(f'/tmp/{{i}}', 'wb').write(b'x' * 10**7)\n    found = 1\n"
    "except OSError:\n    pass\n"
    "raise RuntimeError(f'found {{found}} of them')",
    "descriptors": "import os\n"
    "names = [os.readlink(f'/proc/self/fd/{{n}}') for n in range(256)\n"
    "         if os.path.lexists(f'/proc/self/fd/{{n}}')]\n"
    "found = [n for n in names if n[0] == '/' and not n.startswith(('/dev/', '/proc/'))]\n"
    "raise RuntimeError(f'found {{len(found)}} of them {{found}}')",
    "deletes": "import os, shutil\n"
    "for path in {paths!r} + ['/place', '/home', '/etc', '/tmp', '.']:\n"
    "    shutil.rmtree(path, ignore_errors=True)\n"
    "found = int(not os.path.exists('/place/library/icrl_lib'))\n"
    "raise RuntimeError(f'found {{found}} of them')",
    "edits-the-library": "from icrl_lib.classroom import homework\nfound = 0\ntry:\n"
    "    open(homework.__file__, 'a').close()\n    found = 1\nexcept OSError:\n    pass\n"
    "raise RuntimeError(f'found {{found}} of them')",
    "kills-its-parent": "import os\nos.kill(os.getppid(), 9)\n"
    "raise RuntimeError('found 0 of them')",
    "detached": "import subprocess\nfor _ in range(5):\n"
    "    subprocess.Popen(['sleep', '613'], start_new_session=True)\n"
    "raise RuntimeError('found 0 of them')",
}
"""Cells that count what they should not reach, in notebooks with right answers."""

ODD = {
    "odd-kinds": {
        "q1": "def sarsa_update(w, **_):\n    return w.to_sparse()",
        "q2": "w_by_hand = 10**400",
        "q3": "def prompt(**_):\n    nested = []\n    nested.append(nested)\n    return nested",
        "q4": "def weights(d, alpha, c):\n    return torch.zeros(9, 9, device='meta'), 1j",
        "q5": "n_nonzero = iter(int, 1)",
        "q6": "def what_it_computes(w, **_):\n    return torch.zeros(1, 1).expand(10**9, 9)",
    },
    "odd-ends": {
        "q1": "def sarsa_update(**_):\n    raise type('E', (Exception,), {'__str__': None})",
        "q2": "w_by_hand = type('N', (), {'__float__': lambda _: __import__('sys').exit()})()",
        "q3": "def prompt(**_):\n    return prompt(**_)",
        "q4": "def weights(d, alpha, c):\n    yield weights",
        "q5": "n_nonzero = type('L', (list,), {'__len__': lambda _: -1})()",
        "q6": "def what_it_computes(**_):\n    raise SystemExit",
    },
}
"""Answers of every kind but the right one."""

FILES = {
    "empty": b"",
    "text": b"I could not export it.",
    "half": json.dumps({"cells": [{"cell_type": "code", "source": "x" * 900}]}).encode()[:900],
    "nested": b"[" * 10**5,
    "nested-within": b'{"cells": [], "metadata": ' + b'{"otter": ' * 10**5,
    "a-long-number": b"1" * 10**5,
    "infinite": b'{"cells": 1e999}',
    "zeros": b"\0" * 99,
    "half-a-mark": b"\xff\xfe",
    "cells-of-no-kind": b'{"cells": {"0": {}}}',
    "much-code": b'{"cells": [{"cell_type": "code", "source": "' + b"x" * 2**21 + b'"}]}',
    "=HYPERLINK(1)": b"",
    "<img src=x onerror=alert(1)>": b"",
    "n" * 249: b"",
    "line\nbreak": b"",
    "\u202egnp": b"",
    "..": b"",
    "-rf": b"",
    os.fsdecode(b"M\xfcller"): b"",
    unicodedata.normalize("NFD", "\u00dcnal"): b"",
    unicodedata.normalize("NFC", "\u00dcnal"): b"",
}
"""Files that are no notebooks, by a name that nobody expects; each gets a row."""


def strange(folder):
    """Put into a folder what is no file, or no notebook; return how many rows that makes."""
    for name, content in FILES.items():
        (folder / f"{name}.ipynb").write_bytes(content)
    with (folder / "large.ipynb").open("wb") as file:
        file.truncate(submissions.LARGEST + 1)
    (folder / "folder.ipynb").mkdir()
    (folder / "dangling.ipynb").symlink_to("/nowhere")
    (folder / "link.ipynb").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.ipynb")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("bomb.ipynb", b"0" * (submissions.LARGEST + 1))
        files.writestr("../../../outside.ipynb", b"")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04nothing")
    return len(FILES) + 9


METADATA = {
    "says-a-list": {"assignment_name": ["A2"]},
    "says-another": {"assignment_name": "A2"},
    "says-nothing-known": {"assignment_name": "../../B7"},
    "says-a-tree": {"assignment_name": {"a": [None]}, "tests": None, "results": [[]]},
}
"""What notebooks with right answers claim to be; the first and the last are recognised."""


def a_class():
    """Notebooks of a class by name."""
    handed_in = {"honest-blank": blank(), "honest-right": answered()}
    for name in NAMES[1:]:
        handed_in[f"honest-right-{name}"] = answered(name)
    wrong = tomllib.loads((ROOT / "tests" / "answers" / f"{A1}.toml").read_text())["wrong"]
    firsts = {question: next(iter(cases.values())) for question, cases in wrong.items()}
    handed_in["honest-wrong-q1"] = answered(q1=firsts["q1"])
    handed_in["honest-all-wrong"] = answered(**firsts)
    right = tomllib.loads((ROOT / "tests" / "answers" / f"{A1}.toml").read_text())["right"]
    otherwise = {question: next(iter(cases.values())) for question, cases in right.items()}
    del otherwise["q4"]  # it starts from the reference, which no notebook has
    handed_in["right-otherwise"] = answered(**otherwise)
    for label, source in HARMLESS.items():
        handed_in[label] = with_cell(answered(), source)
    for label, (source, _) in ENDS.items():
        if HAS_SANDBOX or label not in DANGEROUS:
            handed_in[label] = with_cell(answered(), source)
    for label, own in ODD.items():
        handed_in[label] = answered(**own)
    for label, source in CHEATS.items():
        handed_in[label] = at_the_end(blank(), source)
    missing = answered()
    missing.cells = [cell for cell in missing.cells if "def prompt" not in cell.source]
    handed_in["missing-cell"] = missing
    handed_in["endless-answer"] = answered(
        q6="def what_it_computes(**_):\n    import time\n    time.sleep(999)"
    )
    handed_in["deep"] = at_the_end(answered(), "-" * 50_000 + "1")
    handed_in["surrogate"] = at_the_end(answered(), "x = '\ud800'")
    for label, said in METADATA.items():
        handed_in[label] = answered()
        handed_in[label].metadata["otter"] = said
    handed_in["edits-the-score"] = blank()
    handed_in["edits-the-score"].metadata |= {"score": 100, "points": {"q1": 100}}
    handed_in["text-only"] = blank()
    handed_in["text-only"].cells = [c for c in blank().cells if c.cell_type == "markdown"]
    handed_in["reads-the-library"] = answered(
        q1="from icrl_lib.teachers import sarsa_update", q2="w_by_hand = torch.tensor(1.1)"
    )
    return handed_in


def written(folder, notebooks):
    folder.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    return folder


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def hashes(*folders):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.is_symlink() and "__pycache__" not in str(path)
    }


WATCHED = [ROOT / name for name in ("icrl_lib", "tools", "tests/answers", "book/assignments")]
LIMITS = Limits(seconds=90, memory=4 * 2**30, processes=24)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Grades by name, what they were without the others, and the folder of the results."""
    folder = tmp_path_factory.mktemp("class")
    handed_in = a_class()
    with socketserver() as port:
        paths = [str(ROOT / "book"), str(masters.MASTERS), str(folder), str(ROOT / ".git")]
        for label, source in SPIES.items() if HAS_SANDBOX else ():
            source = source.format(paths=paths, port=port)
            handed_in[f"spy-{label}"] = at_the_end(answered(), source)
        own = written(folder / "submissions", handed_in)
        expected = len(handed_in) + strange(own)
        honest = {name: book for name, book in handed_in.items() if name.startswith("honest")}
        alone = written(folder / "alone", honest)
        before = hashes(own, *WATCHED)
        os.environ["ICRL_TEST_SECRET"] = "secret"
        with quiet():
            options = classroom.Options(limits=LIMITS, jobs=8)  # some of them only sleep
            rows = classroom.grade(own, folder / "grades", options)
            first = classroom.grade(alone, folder / "grades-alone", options)
        del os.environ["ICRL_TEST_SECRET"]
    assert hashes(own, *WATCHED) == before
    by_name = {row.grade.submission.removesuffix(".ipynb"): row for row in rows}
    assert len(by_name) == len(rows) == expected
    return by_name, first, folder


@contextlib.contextmanager
def socketserver():
    """A server on loopback that must not be reached; gives its port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_every_submission_gets_a_row_and_a_page(graded):
    by_name, _, folder = graded
    with (folder / "grades" / "grades.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(by_name)
    for row in by_name.values():
        line = rows[tables.safe(row.grade.submission)]
        assert float(line["points"]) == row.grade.total
        assert line["reason"] or row.grade.status == "graded"
        page = (folder / "grades" / "feedback" / line["page"]).read_text()
        assert f"{row.grade.total:g} of " in page


@pytest.mark.parametrize("name", ["honest-right", *(f"honest-right-{n}" for n in NAMES[1:])])
def test_right_answers_earn_everything(graded, name):
    grade = graded[0][name].grade
    assert grade.status == "graded"
    assert grade.points == grade.possible
    assert grade.total > 0


@pytest.mark.parametrize(
    "name",
    [*HARMLESS, "deep", "surrogate", "right-otherwise", "says-a-list", "says-a-tree"],
)
def test_what_does_no_harm_to_the_answers_costs_nothing(graded, name):
    grade = graded[0][name].grade
    assert grade.points == grade.possible


def test_one_wrong_answer_costs_that_question_only(graded):
    grade = graded[0]["honest-wrong-q1"].grade
    assert {q for q, points in grade.points.items() if points < grade.possible[q]} == {"q1"}
    assert grade.feedback["q1"]


def test_a_missing_cell_costs_its_question_only(graded):
    grade = graded[0]["missing-cell"].grade
    assert {q for q, points in grade.points.items() if points == 0} == {"q3"}


def test_an_answer_that_never_ends_costs_itself_and_what_follows(graded):
    grade = graded[0]["endless-answer"].grade
    assert grade.status == "time limit"
    assert {q for q, points in grade.points.items() if points == 0} == {"q6"}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_notebook_has_its_reason(graded, name):
    if name in DANGEROUS and not HAS_SANDBOX:
        pytest.skip("bubblewrap does not work here")
    grade = graded[0][name].grade
    assert (grade.status, grade.total) == (ENDS[name][1], 0)
    assert grade.reason


@pytest.mark.parametrize(
    "name", ["honest-blank", "edits-the-score", "text-only", "says-another", *ODD, *CHEATS]
)
def test_nothing_is_earned_without_answers(graded, name):
    assert graded[0][name].grade.total == 0


def test_what_is_no_notebook_has_its_reason(graded):
    refused = [row.grade for row in graded[0].values() if row.submission.notebook is None]
    status = collections.Counter(grade.status for grade in refused)
    assert status == {"unreadable": len(FILES) + 7, "too large": 2}
    assert all(grade.reason and grade.total == 0 for grade in refused)


def test_what_belongs_to_no_assignment_is_unknown(graded):
    grade = graded[0]["says-nothing-known"].grade
    assert (grade.status, grade.total) == ("unknown", 0)


@in_a_sandbox
@pytest.mark.parametrize("name", SPIES)
def test_a_submission_reaches_nothing(graded, name):
    grade = graded[0][f"spy-{name}"].grade
    assert any("found 0 of them" in cell for cell in grade.cells), grade.cells
    assert grade.points == grade.possible


def test_a_submission_leaves_no_process_behind(graded):
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert "sleep 613" not in commands


def test_other_grades_are_bit_for_bit_those_of_a_class_without_it(graded):
    by_name, first, folder = graded
    assert len(first) == 7
    for row in first:
        assert by_name[row.grade.submission.removesuffix(".ipynb")].grade == row.grade
        pages = [folder / g / "feedback" / row.page for g in ("grades", "grades-alone")]
        assert pages[0].read_bytes() == pages[1].read_bytes()


def test_an_answer_that_is_the_librarys_is_marked_and_not_refused(graded):
    grade = graded[0]["reads-the-library"].grade
    assert grade.points == grade.possible
    assert grade.marks == {"q1": ["icrl_lib.teachers.sarsa_update"]}


def test_a_second_run_grades_nothing_again(graded, monkeypatch):
    _, _, folder = graded
    monkeypatch.setattr(grades, "grade", None)
    before = hashes(folder / "grades")
    with quiet():
        classroom.grade(folder / "submissions", folder / "grades", classroom.Options(limits=LIMITS))
    assert hashes(folder / "grades") == before


# --- without a sandbox


def test_without_a_sandbox_grades_are_the_same_and_it_says_what_is_not_protected(tmp_path, capsys):
    edits = (
        "import icrl_lib.classroom.homework as h, pathlib, shutil\n"
        "for path in pathlib.Path(h.__file__).parents[1].rglob('*.py'):\n"
        "    path.write_text('raise SystemExit')\n"
        "for folder in ('.', pathlib.Path.home()):\n    shutil.rmtree(folder, ignore_errors=True)\n"
        "import subprocess\nsubprocess.Popen(['sleep', '614'], start_new_session=True)"
    )
    handed_in = {
        "a-destroyer": at_the_end(blank(), edits), "b-right": answered(), "c-blank": blank()
    }  # fmt: skip
    folder = written(tmp_path / "class", handed_in)
    before = hashes(folder, *WATCHED)
    options = classroom.Options(sandbox=False, limits=LIMITS)
    rows = classroom.grade(folder, tmp_path / "grades", options)
    said = capsys.readouterr().err
    assert "NO SANDBOX: it is switched off." in said
    for word in ("read every file", "write and delete", "network", "processes", "disk"):
        assert word in said
    assert [row.grade.total for row in rows] == [0, 18, 0]
    assert hashes(folder, *WATCHED) == before
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert "sleep 614" not in commands


def test_a_sandbox_that_does_not_start_is_none(tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    place = Sandbox(Limits(), str(broken))
    assert place.unprotected
    assert "No permissions to create new namespace" in place.why
    missing = Sandbox(Limits(), str(tmp_path / "nowhere"))
    assert missing.why == "bubblewrap (bwrap) is not installed"
    assert missing.unprotected


@in_a_sandbox
def test_with_a_sandbox_nothing_is_unprotected():
    assert Sandbox(Limits()).unprotected == ()


# --- the command line


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, cwd=ROOT,
    )  # fmt: skip


def test_settings_of_the_graders_machine_change_nothing(tmp_path):
    """PYTHONOPTIMIZE strips assertions: a verdict that is one would give a blank notebook 18/18."""
    folder = written(tmp_path / "class", {"Blänk": blank(), "right": answered()})
    graded_quietly(folder, tmp_path / "plain")
    odd = run(
        "grade", folder, "--output", tmp_path / "odd",
        PYTHONOPTIMIZE="2", PYTHONWARNINGS="error", LC_ALL="C", TZ="Asia/Tokyo", PYTHONHASHSEED="7",
        PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert odd.returncode == 0, odd.stderr
    for name in ("grades.csv", "A1.csv", "totals.csv"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "odd" / name).read_bytes()
    rows = read_table(tmp_path / "odd" / "grades.csv")
    assert [(row["submission"], row["points"]) for row in rows] == [
        ("Blänk.ipynb", "0"), ("right.ipynb", "18"),
    ]  # fmt: skip


def test_after_an_interruption_the_same_command_goes_on(tmp_path):
    folder = written(
        tmp_path / "class",
        {"a-blank": blank(), "b-sleeps": with_cell(blank(), "import time\ntime.sleep(600)")},
    )
    command = [
        sys.executable,
        str(TOOL),
        "grade",
        folder,
        "--output",
        tmp_path / "out",
        "--jobs",
        "1",
    ]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    table = tmp_path / "out" / "grades.csv"
    until = time.monotonic() + 120
    while not table.exists() and time.monotonic() < until:
        time.sleep(0.2)
    with pytest.raises(ValueError, match="another run is writing"):
        classroom.grade(folder, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "goes on from here" in said
    rows = read_table(table)
    assert [row["submission"] for row in rows] == ["a-blank.ipynb"]
    os.unlink(folder / "b-sleeps.ipynb")
    (folder / "c-empty.ipynb").write_text("")
    graded_quietly(folder, tmp_path / "out")
    rows = read_table(table)
    assert [row["status"] for row in rows] == ["graded", "unreadable"]


def test_a_folder_without_notebooks_is_refused(tmp_path):
    (tmp_path / "notes.pdf").write_text("")
    with pytest.raises(ValueError, match=r"^submissions: expected a folder with notebooks"):
        classroom.grade(tmp_path, tmp_path / "grades")
    with pytest.raises(ValueError, match=r"^submissions: expected a folder or a zip file"):
        classroom.grade(tmp_path / "notes.pdf", tmp_path / "grades")


# --- reading


def plain():
    return submissions.read(json.dumps(answered()).encode())


def old_format(notebook):
    cells = [{**cell, "input": cell["source"]} for cell in notebook["cells"]]
    for cell in cells:
        del cell["source"]
    return {"nbformat": 3, "worksheets": [{"cells": cells}], "metadata": notebook["metadata"]}


def changed(**keys):
    return lambda notebook: {**notebook, "cells": [{**cell, **keys} for cell in notebook["cells"]]}


def without(*keys):
    return lambda notebook: {
        **notebook,
        "cells": [{k: v for k, v in c.items() if k not in keys} for c in notebook["cells"]],
    }


@pytest.mark.parametrize(
    "form",
    [
        lambda notebook: {**notebook, "nbformat_minor": 4},
        lambda notebook: {**notebook, "nbformat": "x", "stray": {"a": [1]}},
        without("outputs", "execution_count", "id", "metadata"),
        changed(outputs=[{"output_type": "nonsense"}], metadata=None, stray=1),
        old_format,
        lambda notebook: notebook["cells"],
        lambda notebook: {**notebook, "metadata": {}},
        lambda notebook: {**notebook, "metadata": {"otter": {"assignment_name": ["A2"]}}},
        lambda notebook: {**notebook, "metadata": [1]},
        lambda notebook: {**notebook, "cells": [*notebook["cells"], None, 3, {"cell_type": []}]},
    ],
)
def test_anything_with_cells_in_it_is_read(form):
    notebook = json.loads(json.dumps(answered()))
    found = submissions.read(json.dumps(form(notebook)).encode())
    assert found.code == plain().code
    assert found.assignment == "A1"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_any_encoding_is_read(encoding):
    notebook = answered()
    notebook.cells[0].source += "\n\nÜber ß"
    text = json.dumps(notebook, ensure_ascii=False)
    if encoding == "cp1252":
        text = text.encode("cp1252", "replace").decode("cp1252")
    assert submissions.read(text.encode(encoding)).code == plain().code


def test_an_assignment_is_recognised_by_its_title_if_all_else_is_lost():
    notebook = json.loads(json.dumps(answered()))
    cells = [c for c in notebook["cells"] if "check(" not in "".join(c["source"])]
    assert submissions.read(json.dumps({"cells": cells}).encode()).assignment == "A1"


@pytest.mark.parametrize(
    "content",
    [b"", b"I could not export it.", b"{}", b"[1", b"null", b'"text"', b"\xff\xfe", b"\x00" * 99,
     b"[" * 10**5, b'{"cells": {}}', b'{"a":' * 10**5, b"1" * 10**5, b'{"cells": 1e999}'],
)  # fmt: skip
def test_what_has_no_cells_is_refused_with_a_reason(content):
    with pytest.raises(submissions.UnreadableError, match="not a notebook"):
        submissions.read(content)


def test_a_notebook_with_too_much_code_is_refused():
    cells = [{"cell_type": "code", "source": "x" * (submissions.LARGEST_CODE + 1)}]
    with pytest.raises(submissions.UnreadableError, match="more than"):
        submissions.read(json.dumps({"cells": cells}).encode())


# --- collecting


def collected(folder):
    return {one.path: one for one in submissions.collect(folder, folder / "out")}


def test_strange_files_are_rows_and_stop_nothing(tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    text = json.dumps(blank())
    outside = tmp_path / "outside.ipynb"
    outside.write_text(text)
    (folder / "folder.ipynb").mkdir()
    (folder / "dangling.ipynb").symlink_to("/nowhere")
    (folder / "link.ipynb").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "UPPER.IPYNB").write_text(text)
    (folder / "text.ipynb.txt").write_text(text)
    (folder / ("n" * 249 + ".ipynb")).write_text(text)
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.ipynb")).write_text(text)
    (folder / unicodedata.normalize("NFD", "Ü.ipynb")).write_text(text)
    (folder / unicodedata.normalize("NFC", "Ü.ipynb")).write_text(text)
    (folder / "line\nbreak.ipynb").write_text(text)
    (folder / "notes.pdf").write_text("")
    for junk in ("__MACOSX", ".ipynb_checkpoints"):
        (folder / junk).mkdir()
        (folder / junk / "._x.ipynb").write_text(text)
    (folder / "._y.ipynb").write_text(text)
    with (folder / "large.ipynb").open("wb") as file:
        file.truncate(submissions.LARGEST + 1)
    (folder / "out").mkdir()
    (folder / "out" / "own.ipynb").write_text(text)
    found = collected(folder)
    assert {path: one.status for path, one in found.items()} == {
        "folder.ipynb": "unreadable", "dangling.ipynb": "unreadable", "link.ipynb": "unreadable",
        "loop": "unreadable", "pipe.ipynb": "unreadable", "UPPER.IPYNB": "", "text.ipynb.txt": "",
        "n" * 249 + ".ipynb": "", "Müller.ipynb": "", "Ü.ipynb": "", "Ü.ipynb [2]": "",
        "line\N{REPLACEMENT CHARACTER}break.ipynb": "", "notes.pdf": "ignored",
        "large.ipynb": "too large",
    }  # fmt: skip
    assert all(one.reason for one in found.values() if one.status)


def test_a_zip_is_read_without_unpacking_it(tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    text = json.dumps(blank())
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("anna/A1_sarsa.ipynb", text)
        files.writestr("../../escape.ipynb", text)
        files.writestr("__MACOSX/._A1_sarsa.ipynb", text)
        files.writestr("bomb.ipynb", b"0" * (submissions.LARGEST + 1))
        files.writestr("data.csv", "1")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04nothing")
    with zipfile.ZipFile(folder / "empty.zip", "w") as files:
        files.writestr("data.csv", "1")
    before = hashes(tmp_path)
    assert {path: one.status for path, one in collected(folder).items()} == {
        "all.zip/anna/A1_sarsa.ipynb": "", "all.zip/../../escape.ipynb": "",
        "all.zip/bomb.ipynb": "too large", "broken.zip": "unreadable", "empty.zip": "ignored",
    }  # fmt: skip
    assert hashes(tmp_path) == before
    assert {one.path for one in submissions.collect(folder / "all.zip", folder)} >= {
        "anna/A1_sarsa.ipynb"
    }


# --- whose it is

ROSTER = (
    Student("1001", "Anna Meier"),
    Student("1002", "Jörg Müller-Lüdenscheidt"),
    Student("s1003", "Li, Wei"),
    Student("1004", "Anna Meyer", "*meyer*"),
    Student("o.neil@uni.example", "Shaun O'Neil"),
)


@pytest.mark.parametrize(
    ("path", "student"),
    [
        ("meieranna_LATE_1001_99_A1_sarsa.ipynb", "1001"),
        ("someone_1002_77_A1_sarsa-1.ipynb", "1002"),
        ("weili_555_77_A1_sarsa.ipynb", "s1003"),
        ("Jörg Müller-Lüdenscheidt_4711_assignsubmission_file_/A1_sarsa.ipynb", "1002"),
        ("Jo\u0308rg Mu\u0308ller-Lu\u0308denscheidt_4711_assignsubmission_file_/x.ipynb", "1002"),
        ("s1003/A1_sarsa.ipynb", "s1003"),
        ("week 1/A1_s1003.ipynb", "s1003"),
        ("Wei_Li_A1.ipynb", "s1003"),
        ("A1 Meyer.ipynb", "1004"),
        ("o.neil@uni.example/A1_sarsa.ipynb", "o.neil@uni.example"),
        ("anna-meier.ipynb", "1001"),
        ("somebody/A1_sarsa.ipynb", None),
        ("hoax_5_6_1001.ipynb", None),
        ("1001-and-1002.ipynb", None),
    ],
)
def test_a_roster_finds_whose_it_is(path, student):
    """What a student has chosen to call a file does not count where the system has put a name."""
    found = submissions.find(ROSTER, submissions._refused(path, "", ""))
    assert (found.id if found else None) == student


def test_canvas_says_what_is_late():
    assert submissions.told_by("meieranna_LATE_1001_99_A1.ipynb")[2]
    assert not submissions.told_by("meieranna_1001_99_A1.ipynb")[2]


def test_gradescopes_export_says_whose_it_is(tmp_path):
    (tmp_path / "submission_1").mkdir()
    (tmp_path / "submission_1" / "A1_sarsa.ipynb").write_text(json.dumps(blank()))
    (tmp_path / "submission_metadata.yml").write_text(
        "submission_1:\n  :submitters:\n  - :name: Anna Meier\n    :sid: '1001'\n    :email: a@b\n"
    )
    one = collected(tmp_path)["submission_1/A1_sarsa.ipynb"]
    assert submissions.find(ROSTER, one).id == "1001"
    assert one.who == "Anna Meier"


@pytest.mark.parametrize("text", ["id,name\n1,A\n1,B\n", "name\nA\n", "", "id,name\n"])
def test_a_roster_without_ids_is_refused(tmp_path, text):
    (tmp_path / "roster.csv").write_text(text)
    with pytest.raises(ValueError, match=r"^roster: "):
        submissions.roster(tmp_path / "roster.csv")


def test_a_roster_may_come_from_a_spreadsheet(tmp_path):
    (tmp_path / "roster.csv").write_bytes("Id;Name\r\n7;Jörg\r\n".encode("utf-8-sig"))
    assert submissions.roster(tmp_path / "roster.csv") == (Student("7", "Jörg"),)


# --- tables


@pytest.fixture
def instant(monkeypatch):
    """A grader that runs nothing: a notebook earns two points for each letter x in its code."""
    calls = []

    def fake(submission, course, sandbox, assignment=""):
        calls.append(submission.path)
        if submission.notebook is None:
            return Grade(submission.path, status=submission.status, reason=submission.reason)
        name = submission.notebook.assignment or assignment
        _, possible = grades._nothing(name)
        points = dict.fromkeys(possible, 0.0)
        points["q1"] = min(4.0, 2.0 * "".join(submission.notebook.code).count("x"))
        answer = "Because." if points["q1"] else ""
        return Grade(submission.path, name, points, possible, derivations={"q7": answer})

    monkeypatch.setattr(grades, "grade", fake)
    return calls


def tiny(marks=1, assignment="A1"):
    cell = {"cell_type": "code", "source": "x" * marks}
    return json.dumps({"cells": [cell], "metadata": {"otter": {"assignment_name": assignment}}})


def graded_quietly(folder, output, **options):
    with quiet():
        return classroom.grade(folder, output, classroom.Options(**options))


def read_table(path):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_a_class_of_120_gets_its_tables(tmp_path, instant):
    """Names, duplicates, late, broken and missing ones, as learning platforms have them."""
    roster = tuple(Student(f"{2000 + i}", f"Given{i} Fåmily{i}") for i in range(120))
    folder = tmp_path / "class"
    folder.mkdir()
    for i, student in enumerate(roster[:117]):
        late = "_LATE" if i % 10 == 0 else ""
        stem = f"family{i}given{i}{late}_{student.id}_{90000 + i}"
        (folder / f"{stem}_A1_sarsa.ipynb").write_text(tiny(1) if i != 5 else "broken")
        if i % 12 == 0:
            (folder / f"{stem}_A1_sarsa-1.ipynb").write_text(tiny(2))
            for name in (f"{stem}_A1_sarsa.ipynb", f"{stem}_A1_sarsa-1.ipynb"):
                os.utime(folder / name, (0, 0))
    rows = graded_quietly(folder, tmp_path / "out", roster=roster)
    assert len(rows) == 127
    table = {row["id"]: row for row in read_table(tmp_path / "out" / "A1.csv")}
    assert table.keys() == {student.id for student in roster}
    assert [i for i, row in table.items() if row["status"] == "missing"] == [
        "2005", "2117", "2118", "2119",
    ]  # fmt: skip
    assert table["2000"]["points"] == "4"  # the newer one
    assert table["2001"]["points"] == "2"
    assert table["2010"]["late"] == "late"
    assert table["2001"]["late"] == ""
    totals = {row["id"]: row for row in read_table(tmp_path / "out" / "totals.csv")}
    assert sum(float(row["points"]) for row in totals.values()) == 116 * 2 + 10 * 2
    assert totals["2117"]["missing"] == "A1"
    everything = read_table(tmp_path / "out" / "grades.csv")
    assert sum(row["counts"] == "no" for row in everything) == 10 + 1
    assert len({row["page"] for row in everything}) == 127


def test_the_best_of_duplicates_may_count(tmp_path, instant):
    folder = tmp_path / "class"
    (folder / "anna").mkdir(parents=True)
    for number, marks in ((1, 2), (2, 1)):
        path = folder / "anna" / f"A1_sarsa ({number}).ipynb"
        path.write_text(tiny(marks))
        os.utime(path, (number, number))
    last = graded_quietly(folder, tmp_path / "out")
    assert [row.grade.total for row in last if row.counts] == [2]
    best = graded_quietly(folder, tmp_path / "out", duplicates="best")
    assert [row.grade.total for row in best if row.counts] == [4]


def test_files_after_the_time_are_late(tmp_path, instant):
    folder = tmp_path / "class"
    folder.mkdir()
    for name, when in (("early", 1000), ("late", 3000)):
        (folder / f"{name}.ipynb").write_text(tiny())
        os.utime(folder / f"{name}.ipynb", (when, when))
    rows = graded_quietly(folder, tmp_path / "out", due=2000.0)
    assert [(row.who, row.late) for row in rows] == [("early", False), ("late", True)]


def test_no_cell_of_a_table_is_a_formula(tmp_path, instant):
    folder = tmp_path / "class"
    folder.mkdir()
    for name in ("=1+1", "+x", "-x", "@SUM(A1)", "\t=x", "plain"):
        (folder / f"{name}.ipynb").write_text(tiny())
    rows = graded_quietly(folder, tmp_path / "out", roster=(Student("=2", "=HYPERLINK(1)"),))
    assert len(rows) == 6
    for path in (tmp_path / "out").glob("*.csv"):
        assert path.read_bytes().startswith(b"\xef\xbb\xbf")
        text = path.read_text(encoding="utf-8-sig")
        for row in csv.reader(io.StringIO(text, newline="")):
            assert not any(cell[:1] in "=+-@\t" for cell in row if cell), path.name


def test_readers_that_do_not_know_the_mark_find_submission_and_points(tmp_path, instant):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "anna.ipynb").write_text(tiny())
    graded_quietly(folder, tmp_path / "out")
    for name in ("grades.csv", "A1.csv"):
        with (tmp_path / "out" / name).open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert (row["submission"], row["points"]) == ("anna.ipynb", "2")


def test_no_student_can_choose_the_page_of_another(tmp_path, instant):
    folder = tmp_path / "class"
    (folder / "a").mkdir(parents=True)
    for name in ("a/b", "a_b", "a-b", "a b"):
        (folder / f"{name}.ipynb").write_text(tiny())
    rows = graded_quietly(folder, tmp_path / "out")
    assert len({row.page for row in rows}) == 4
    assert len(list((tmp_path / "out" / "feedback").iterdir())) == 4


def test_a_page_escapes_what_students_write(tmp_path):
    grade = Grade("<script>x</script>.ipynb", "A1", {"q1": 0.0}, {"q1": 4.0}, "graded",
                  feedback={"q1": ["<img src=x onerror=y>"]}, cells=["<b>"])  # fmt: skip
    row = tables.Row(submissions._refused("<script>x</script>.ipynb", "", ""), grade)
    page = tables.page(row, {})
    for tag in ("<script", "<img", "<b>"):
        assert tag not in page


def test_what_was_graded_is_graded_again_only_on_request(tmp_path, instant):
    folder = tmp_path / "class"
    folder.mkdir()
    for name in ("anna", "ben", "cleo"):
        (folder / f"{name}.ipynb").write_text(tiny())
    graded_quietly(folder, tmp_path / "out")
    assert len(instant) == 3
    graded_quietly(folder, tmp_path / "out")
    assert len(instant) == 3
    (folder / "ben.ipynb").write_text(tiny(2))
    os.unlink(folder / "cleo.ipynb")
    rows = graded_quietly(folder, tmp_path / "out")
    assert instant[3:] == ["ben.ipynb"]
    assert [row.grade.total for row in rows] == [2, 4]
    graded_quietly(folder, tmp_path / "out", only=("anna",))
    assert instant[4:] == ["anna.ipynb"]
    graded_quietly(folder, tmp_path / "out", regrade=True)
    assert len(instant) == 7
    pages = sorted(path.name for path in (tmp_path / "out" / "feedback").iterdir())
    assert [page.partition("-")[0] for page in pages] == ["anna", "ben"]


def test_a_journal_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path):
    journal = tables.Journal(tmp_path, "v")
    journal.add("one", Grade("a", "A1", {"q1": 2.0}, {"q1": 4.0}))
    whole = (tmp_path / tables.JOURNAL).read_bytes()
    (tmp_path / tables.JOURNAL).write_bytes(whole + whole[: len(whole) // 2])
    again = tables.Journal(tmp_path, "v")
    assert again.grades == journal.grades
    again.add("two", Grade("b"))
    assert tables.Journal(tmp_path, "v").grades.keys() == {"one", "two"}
    assert tables.Journal(tmp_path, "another version").grades == {}


def test_a_table_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "grades.csv"
    tables.write(path, "before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        tables.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_grader_that_fails_on_one_submission_says_so_in_its_row(monkeypatch):
    monkeypatch.setattr(grades, "_graded", lambda *_: 1 / 0)
    one = dataclasses.replace(submissions._refused("x", "", ""), notebook=plain())
    grade = grades.grade(one, sheets.Course(), Sandbox(Limits(), None))
    assert (grade.status, grade.total) == ("not graded", 0)
    assert "ZeroDivisionError" in grade.reason


def test_an_unknown_assignment_is_told_and_can_be_named(monkeypatch):
    monkeypatch.setattr(grades, "_graded", lambda path, name, *_: Grade(path, name))
    place = Sandbox(Limits(), None)
    lost = dataclasses.replace(
        submissions._refused("x", "", ""), notebook=submissions.Notebook((), "")
    )
    assert grades.grade(lost, sheets.Course(), place).status == "unknown"
    assert grades.grade(lost, sheets.Course(), place, "A2").assignment == "A2"
    other = dataclasses.replace(lost, notebook=submissions.Notebook((), "B7"))
    assert "got 'B7'" in grades.grade(other, sheets.Course(), place).reason


# --- derivations


def test_derivations_are_extracted_filled_in_and_added(tmp_path, instant):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "anna.ipynb").write_text(tiny(2))
    (folder / "ben.ipynb").write_text(tiny(0))
    out = tmp_path / "out"
    graded_quietly(folder, out)
    page = (out / "derivations.html").read_text()
    assert "Because." in page
    assert "Rubric" in page
    rows = read_table(out / "derivations.csv")
    assert [(row["student"], row["possible"], row["awarded"], row["note"]) for row in rows] == [
        ("anna", "2", "", ""), ("ben", "2", "", "no answer"),
    ]  # fmt: skip
    text = (out / "derivations.csv").read_text(encoding="utf-8-sig")
    filled = text.replace("A1,q7,anna,2,,", "A1,q7,anna,2,1.5,")
    (out / "derivations.csv").write_text(filled, encoding="utf-8-sig")
    graded_quietly(folder, out)
    anna, ben = read_table(out / "A1.csv")
    assert (anna["points"], anna["by hand"], anna["q7"], anna["total"]) == (
        "4",
        "1.5",
        "1.5",
        "5.5",
    )
    assert (ben["by hand"], ben["total"]) == ("", "0")
    assert [row["awarded"] for row in read_table(out / "derivations.csv")] == ["1.5", ""]
    assert "by hand" in next((out / "feedback").glob("anna*")).read_text()
    (out / "derivations.csv").write_text(filled.replace("1.5", "3"), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="expected 0 to 2, got 3"):
        graded_quietly(folder, out)


def test_the_answer_to_a_derivation_is_what_stands_below_its_heading():
    notebook = answered()
    notebook.cells[-1].source = "It is bilinear."
    notebook.cells.append(nbformat.v4.new_markdown_cell("More."))
    read = submissions.read(json.dumps(notebook).encode())
    assert grades._derivations(read, "A1") == {"q7": "It is bilinear.\n\nMore."}
    assert grades._derivations(submissions.read(json.dumps(blank()).encode()), "A1") == {"q7": ""}


# --- permissions


def test_grades_are_for_the_instructors_eyes(tmp_path):
    tables.write(tmp_path / "x.csv", "")
    assert stat.S_IMODE((tmp_path / "x.csv").stat().st_mode) == 0o600
    assert sandbox.INTERRUPTED
