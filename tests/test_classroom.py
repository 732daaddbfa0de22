"""Assignments as products: what students get, what they are told, and what a grader makes of it."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import re
import sys
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
import tomllib
import torch

from icrl_lib.classroom import homework

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import classroom  # noqa: E402

MASTERS = classroom.masters()
ANSWERS = ROOT / "tests" / "answers"
QUESTIONS = {
    f"{assignment}.{name}": question
    for assignment in homework.ASSIGNMENTS
    for name, question in homework.questions(assignment).items()
}


@pytest.fixture(scope="session")
def distributions():
    return {master.stem: classroom.distribute(master) for master in MASTERS}


every_assignment = pytest.mark.parametrize("name", [master.stem for master in MASTERS])


def code(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


# --- what students get


@every_assignment
def test_the_students_version_is_the_one_made_from_the_master(name, distributions):
    """`make assignments` makes it; it is kept because Colab opens it from the repository."""
    stored = nbformat.read(classroom.ASSIGNMENTS / f"{name}.ipynb", as_version=4)
    assert nbformat.writes(stored) == nbformat.writes(distributions[name].student)


@every_assignment
def test_the_students_version_holds_no_solution_and_no_hidden_test(name, distributions):
    student = nbformat.writes(distributions[name].student)
    for word in ("SOLUTION", "Rubric", "accepts", "seed=", "hidden", "TEST CONFIG", "otter."):
        assert word not in student, word
    solution = distributions[name].solution
    answers = [
        c.source for c in solution.cells if "otter_answer_cell" in c.metadata.get("tags", [])
    ]
    assert answers
    for answer in answers:
        for line in answer.splitlines()[1:]:
            assert line.strip() in ("", "...") or line not in code(distributions[name].student)


@every_assignment
def test_the_archive_is_laid_out_for_gradescope(name, distributions):
    with zipfile.ZipFile(io.BytesIO(distributions[name].archive)) as files:
        names = set(files.namelist())
        requirements = files.read("environment.yml").decode()
    assert {"run_autograder", "setup.sh", "otter_config.json"} <= names
    assert {f"tests/{question}.py" for question in hidden_tests(name)} <= names
    assert f"icrl_lib[book] @ git+{classroom.notebooks.repository()}" in requirements


@every_assignment
def test_public_and_hidden_instances_differ(name):
    master = nbformat.read(classroom.MASTERS / f"{name}.ipynb", as_version=4)
    seeds = [int(seed) for seed in re.findall(r"seed=(\d+)", code(master))]
    assert seeds
    assert homework.PUBLIC_SEED not in seeds


# --- what graders make of an answer


def namespace(name):
    """What a student's notebook has defined before the first question."""
    master = nbformat.read(classroom.MASTERS / f"{name}.ipynb", as_version=4)
    imports = next(c for c in master.cells if c.source.startswith("import torch"))
    env = {}
    exec(imports.source, env)
    return env


def hidden_tests(name):
    """The hidden tests of each question of a master, as code."""
    tests, question = {}, None
    master = nbformat.read(classroom.MASTERS / f"{name}.ipynb", as_version=4)
    for cell in master.cells:
        if cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            question = re.search(r"name: (\w+)", cell.source)[1]
        elif cell.cell_type == "code" and "END TEST CONFIG" in cell.source:
            tests.setdefault(question, []).append(cell.source)
    return tests


def solutions(name):
    """The master's own answers, as code by question."""
    found, question = {}, None
    master = nbformat.read(classroom.MASTERS / f"{name}.ipynb", as_version=4)
    for before, cell in zip(master.cells, master.cells[1:], strict=False):
        if cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            question = re.search(r"name: (\w+)", cell.source)[1]
        elif before.source == "# BEGIN SOLUTION" and cell.cell_type == "code":
            found[question] = cell.source
    return found


def passes(name, question, answer):
    """Whether an answer, given as code, passes every hidden test of its question."""
    env = namespace(name)
    exec(answer, env)
    for test in hidden_tests(name)[question]:
        env["homework"] = homework
        try:
            exec(test, env)
        except AssertionError:
            return False
    return True


def answers(kind):
    """Every wrong or right answer of tests/answers."""
    for master in MASTERS:
        table = tomllib.loads((ANSWERS / f"{master.stem}.toml").read_text())[kind]
        for question, cases in table.items():
            for label, answer in cases.items():
                yield pytest.param(
                    master.stem, question, answer, id=f"{master.stem}-{question}-{label}"
                )


@every_assignment
def test_the_masters_solutions_pass_and_the_untouched_notebook_does_not(name):
    student = nbformat.read(classroom.ASSIGNMENTS / f"{name}.ipynb", as_version=4)
    untouched = [c.source for c in student.cells if c.cell_type == "code" and is_answer(c)]
    for (question, solution), blank in zip(solutions(name).items(), untouched, strict=True):
        assert passes(name, question, solution), question
        assert not passes(name, question, blank), question


@pytest.mark.parametrize(("name", "question", "answer"), [*answers("wrong")])
def test_plausible_wrong_answers_are_rejected(name, question, answer):
    assert not passes(name, question, answer)


@pytest.mark.parametrize(("name", "question", "answer"), [*answers("right")])
def test_right_answers_written_otherwise_are_accepted(name, question, answer):
    assert passes(name, question, answer)


@every_assignment
def test_every_question_has_enough_answers_to_be_tested_with(name):
    table = tomllib.loads((ANSWERS / f"{name}.toml").read_text())
    assert set(table["wrong"]) == set(table["right"]) == set(hidden_tests(name))
    assert all(len(cases) >= 5 for cases in table["wrong"].values())


# --- what students are told


@pytest.mark.parametrize(
    ("name", "hint"),
    [(name, hint) for name, question in QUESTIONS.items() for hint in question.mistakes],
)
def test_a_known_mistake_gets_its_hint(name, hint, capsys):
    homework.check(name, QUESTIONS[name].mistakes[hint])
    assert capsys.readouterr().out.endswith(f"Hint: {hint}\n")


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_answer_is_told_so(name, capsys):
    question = QUESTIONS[name]
    kind = {homework.Question: "reference", homework.Number: "value", homework.Choices: "right"}
    homework.check(name, getattr(question, kind[type(question)]))
    assert capsys.readouterr().out.startswith(f"✓ {name}")


@pytest.mark.parametrize("answer", [None, ..., "text", lambda: None, lambda *_, **__: None])
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_no_answer_is_told_so(name, answer, capsys):
    homework.check(name, answer)
    assert capsys.readouterr().out.startswith(f"✗ {name}: ")


def test_a_number_is_not_given_away(capsys):
    homework.check("A1.by_hand", 1.7)
    assert capsys.readouterr().out == "✓ A1.by_hand: plausible; its value is graded\n"


def test_a_tick_that_the_console_lacks_is_named(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)
    homework.check("A1.by_hand", 1.7)
    console.flush()
    told = "\\N{CHECK MARK} A1.by_hand: plausible; its value is graded\n"
    assert console.buffer.getvalue().decode("cp1252") == told


def test_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match=r"^name: expected one of sarsa_update"):
        homework.check("A1.nothing", 1)
    with pytest.raises(ValueError, match=r"^assignment: expected one of A1"):
        homework.check("A9.nothing", 1)


def test_a_grader_notices_a_comparison_that_finds_everything_equal(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "item", lambda _: 0.0)
    with pytest.raises(AssertionError, match="tampered"):
        homework.accepts("A1.sarsa_update", lambda **z: z["w"], seed=3)


# --- a class


def answered(distribution, **answers):
    """A student's notebook with the master's answers, those given in their place."""
    student = copy.deepcopy(distribution.student)
    own = solutions(distribution.name) | answers
    blanks = [c for c in student.cells if c.cell_type == "code" and is_answer(c)]
    for cell, answer in zip(blanks, own.values(), strict=True):
        cell.source = answer
    return student


def is_answer(cell):
    return "otter_answer_cell" in cell.metadata.get("tags", [])


def with_cell(notebook, source, index=3):
    notebook.cells.insert(index, nbformat.v4.new_code_cell(source))
    return notebook


HOSTILE = {
    "an-error-in-one-cell": "1 / 0",
    "loops": "while True:\n    pass",
    "prints": "for _ in range(20):\n    print('x' * 10**6)",
    "deletes": "import pathlib, shutil\n"
    "for folder in ('.', pathlib.Path.home()):\n    shutil.rmtree(folder, ignore_errors=True)",
    "exits": "exit()",
    "ends-the-process": "import os\nos._exit(0)",
    "waits": "input('your name? ')",
    "makes-a-child": "import subprocess\nsubprocess.Popen(['sleep', '600'])",
    "makes-a-child-and-loops": "import subprocess\n"
    "subprocess.Popen(['sleep', '600'], start_new_session=True)\nwhile True:\n    pass",
    "edits-the-library": "import pathlib\n"
    "file = pathlib.Path(homework.__file__)\n"
    "file.write_text(file.read_text().replace('assert problem is None, problem', 'pass'))",
}
CHEATS = {
    "replaces-the-checks": "homework.accepts = homework.check = lambda *_, **__: True",
    "replaces-the-comparison": "torch.Tensor.item = lambda _: 0.0",
    "replaces-the-questions": "homework.questions('A1').clear()",
}


def a_class(distributions):
    """What thirty students hand in, as text by name."""
    first, *others = (distributions[master.stem] for master in MASTERS)
    handed_in = {"blank": first.student, "right": answered(first)}
    for label, source in HOSTILE.items():
        handed_in[label] = with_cell(answered(first), source)
    for label, source in CHEATS.items():
        handed_in[label] = with_cell(copy.deepcopy(first.student), source)
    wrong = tomllib.loads((ANSWERS / f"{first.name}.toml").read_text())["wrong"]
    for question, cases in wrong.items():
        handed_in[f"wrong-{question}"] = answered(first, **{question: next(iter(cases.values()))})
    right = tomllib.loads((ANSWERS / f"{first.name}.toml").read_text())["right"]
    otherwise = {question: next(iter(cases.values())) for question, cases in right.items()}
    handed_in["right-otherwise"] = answered(first, **otherwise)
    missing = answered(first)
    missing.cells = [cell for cell in missing.cells if "def prompt" not in cell.source]
    handed_in["missing-cell"] = missing
    edited = copy.deepcopy(first.student)
    edited.metadata["otter"]["tests"] = {"q1": {"points": 100}}
    edited.metadata["score"] = 100
    handed_in["edits-the-score"] = edited
    handed_in["text-only"] = copy.deepcopy(first.student)
    handed_in["text-only"].cells = [c for c in first.student.cells if c.cell_type == "markdown"]
    for other in others:
        handed_in[f"right-{other.name}"] = answered(other)
    unknown = answered(first)
    unknown.metadata["otter"]["assignment_name"] = "B7"
    handed_in["another-course"] = unknown
    texts = {name: nbformat.writes(notebook) for name, notebook in handed_in.items()}
    texts |= {"not-a-notebook": "I could not export it.", "empty": "", "half": texts["right"][:900]}
    return {f"{number:02d}-{name}": text for number, (name, text) in enumerate(texts.items())}


@pytest.fixture(scope="module")
def graded(distributions, tmp_path_factory):
    """Grades by name, and the folder of the results."""
    folder = tmp_path_factory.mktemp("class")
    submissions, output = folder / "submissions", folder / "grades"
    submissions.mkdir()
    for name, text in a_class(distributions).items():
        (submissions / f"{name}.ipynb").write_text(text)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        grades = classroom.grade(submissions, output, seconds=60)
    return {grade.submission[3:].removesuffix(".ipynb"): grade for grade in grades}, output


def test_thirty_submissions_get_a_row_and_a_page_each(graded):
    grades, output = graded
    assert len(grades) >= 30
    with (output / "grades.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["submission"] for row in rows] == [grade.submission for grade in grades.values()]
    for row, grade in zip(rows, grades.values(), strict=True):
        assert float(row["points"]) == grade.total
        assert row["status"] == grade.status
        assert row["reason"] or grade.status == "graded"
        page = output / "feedback" / row["submission"].replace(".ipynb", ".html")
        assert f"{grade.total:g} of " in page.read_text()


def test_right_answers_earn_everything(graded):
    grades, _ = graded
    names = ["right", "right-otherwise", *(f"right-{master.stem}" for master in MASTERS[1:])]
    for name in names:
        assert grades[name].points == grades[name].possible, name
        assert grades[name].total > 0


@pytest.mark.parametrize("name", ["an-error-in-one-cell", "prints", "makes-a-child"])
def test_what_does_no_harm_to_the_answers_costs_nothing(graded, name):
    grade = graded[0][name]
    assert grade.points == grade.possible


def test_one_wrong_answer_costs_that_question_only(graded):
    for question in hidden_tests(MASTERS[0].stem):
        grade = graded[0][f"wrong-{question}"]
        lost = {q for q, points in grade.points.items() if points < grade.possible[q]}
        assert lost == {question}
        assert grade.feedback[question]


def test_a_missing_cell_costs_its_question_only(graded):
    grade = graded[0]["missing-cell"]
    assert {q for q, points in grade.points.items() if points == 0} == {"q3"}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("loops", "time limit"),
        ("makes-a-child-and-loops", "time limit"),
        ("deletes", "crashed"),
        ("ends-the-process", "crashed"),
        ("edits-the-library", "tampered"),
        ("another-course", "unknown"),
        ("not-a-notebook", "unreadable"),
        ("empty", "unreadable"),
        ("half", "unreadable"),
    ],
)
def test_what_cannot_be_graded_has_its_reason(graded, name, status):
    grade = graded[0][name]
    assert (grade.status, grade.total) == (status, 0)
    assert grade.reason


@pytest.mark.parametrize("name", ["exits", "waits"])
def test_what_may_end_a_notebook_early_is_explained_if_it_does(graded, name):
    """Whether `exit()` ends the kernel before the tests have run is a race of two processes."""
    grade = graded[0][name]
    assert grade.points == grade.possible or grade.reason or grade.feedback


@pytest.mark.parametrize("name", ["blank", "text-only", "edits-the-score", *CHEATS])
def test_nothing_earned_without_answers(graded, name):
    assert graded[0][name].total == 0


def test_a_submission_leaves_no_process_behind(graded):
    mine = psutil.Process().children(recursive=True)
    assert [process for process in mine if "sleep" in process.name()] == []
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert "sleep 600" not in commands


def test_a_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^submissions: expected a folder with notebooks"):
        classroom.grade(tmp_path, tmp_path / "grades")
