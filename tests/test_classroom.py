"""Assignments as products: what students get, what they are told, and what their answers earn."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import tomllib
import torch

from icrl_lib import classroom as package
from icrl_lib.classroom import exchange, given, homework

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import classroom  # noqa: E402
from grading import a4, marks, masters, sheets  # noqa: E402
from grading.sheets import PUBLIC_COURSE, Course  # noqa: E402

MASTERS = masters.masters()
ANSWERS = ROOT / "tests" / "answers"
COURSES = [Course(), Course("spring"), Course("autumn")]
QUESTIONS = {
    f"{assignment}.{name}": question
    for assignment in sheets.ASSIGNMENTS
    for name, question in sheets.questions(assignment).items()
}
every_assignment = pytest.mark.parametrize("name", [master.stem for master in MASTERS])


@functools.cache
def distribution(name):
    return masters.distribute(masters.MASTERS / f"{name}.ipynb")


def code(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


# --- what students get


@every_assignment
def test_the_students_version_is_the_one_made_from_the_master(name):
    """`make assignments` makes it; it is kept because Colab opens it from the repository."""
    stored = nbformat.read(masters.ASSIGNMENTS / f"{name}.ipynb", as_version=4)
    assert nbformat.writes(stored) == nbformat.writes(distribution(name).student)


def test_the_public_sheet_is_the_one_that_the_references_make():
    made = json.loads(json.dumps(sheets.public_sheet()))
    assert homework.check.sheet == made


@every_assignment
def test_the_students_version_holds_no_solution_and_no_hidden_test(name):
    student = nbformat.writes(distribution(name).student)
    for word in (
        "SOLUTION",
        "Rubric",
        "accepts",
        "seed=",
        "hidden",
        "TEST CONFIG",
        "otter.",
        "FILL_",
    ):
        assert word not in student, word
    answers = [
        cell.source
        for cell in distribution(name).solution.cells
        if "otter_answer_cell" in cell.metadata.get("tags", [])
    ]
    assert answers
    for answer in answers:
        for line in answer.splitlines()[1:]:
            assert line.strip() in ("", "...") or line not in code(distribution(name).student)


def test_what_students_install_holds_no_reference():
    """No constructor of a prompt or of weights in an assignment's order, no hidden value."""
    folder = Path(package.__file__).parent
    assert {path.name for path in folder.iterdir() if path.suffix != ".pyc"} - {"__pycache__"} == {
        "__init__.py", "exchange.py", "given.py", "homework.py", "public.sheet",
    }  # fmt: skip
    defined = {name for module in (package, exchange, given, homework) for name in vars(module)}
    assert not defined & {name.partition(".")[2] for name in QUESTIONS}
    assert not defined & {"residual_head", "QUESTIONS", "construction", "loss"}
    numbers = [name for name, asked in homework.check.sheet.items() if asked["kind"] != "function"]
    assert numbers
    assert all(not {"value", "right"} & homework.check.sheet[name].keys() for name in numbers)


@every_assignment
def test_the_archive_is_laid_out_for_gradescope(name):
    with zipfile.ZipFile(io.BytesIO(distribution(name).archive)) as files:
        names = set(files.namelist())
        requirements = files.read("environment.yml").decode()
        hidden = json.loads(files.read("files/hidden.json"))
    asked = [item for item in masters.items(name[:2]) if item.name]
    assert {"run_autograder", "setup.sh", "otter_config.json"} <= names
    assert {f"tests/{item.number}.py" for item in asked} <= names
    assert hidden.keys() == {item.name for item in asked}
    assert f"icrl_lib[book] @ git+{masters.notebooks.repository()}" in requirements


def test_a_test_of_the_archive_tells_a_right_answer_from_a_wrong_one(tmp_path):
    path = tmp_path / "hidden.json"
    path.write_text(json.dumps(sheets.hidden_sheet("A1")))
    reference = QUESTIONS["A1.sarsa_update"].reference
    assert homework.accepts("sarsa_update", reference, "values", str(path))
    with pytest.raises(AssertionError, match=r"^got 1\.23456, which is not the value"):
        homework.accepts("by_hand", 1.23456, "values", str(path))


@pytest.mark.parametrize("assignment", sheets.ASSIGNMENTS)
def test_public_and_hidden_instances_differ(assignment):
    for name, asked in sheets.hidden_sheet(assignment).items():
        if asked["kind"] == "function" and asked["instances"][0]["arguments"]:
            public = homework.check.sheet[f"{assignment}.{name}"]["instances"]
            shown = [instance["arguments"] for instance in public]
            assert not any(one["arguments"] in shown for one in asked["instances"]), name


@pytest.mark.parametrize("assignment", sheets.ASSIGNMENTS)
def test_points_add_up_to_20(assignment):
    items = masters.items(assignment)
    assert sum(item.points for item in items) == 20
    for item in items:
        if item.name:
            points = QUESTIONS[f"{assignment}.{item.name}"].points
            assert sum(points.values()) == item.points, item.name
            assert set(points) <= set(homework.ASPECTS)
        assert f"({item.points:g} point" in item.title


@every_assignment
def test_minutes_add_up(name):
    text = "\n".join(
        cell.source for cell in nbformat.read(masters.MASTERS / f"{name}.ipynb", 4).cells
    )
    minutes = sum(int(m) for m in re.findall(r"^## Question .*?(\d+) minutes", text, re.MULTILINE))
    low, high = map(int, re.search(r"\*\*Time\*\*: (\d+) to (\d+) minutes", text).groups())
    assert minutes == high
    row = next(
        line for line in (masters.ASSIGNMENTS / "index.md").read_text().split("\n") if name in line
    )
    assert f"{low} to {high}" in row


def needs():
    """The chapters that each assignment needs, as the index says."""
    rows = (masters.ASSIGNMENTS / "index.md").read_text().split("\n")
    return {
        row.split("](")[1][:2]: {int(n) for n in row.split("|")[3].split(",")}
        for row in rows
        if ".ipynb)" in row
    }


@pytest.mark.parametrize("weeks", ["Three weeks", "Six weeks"])
def test_a_plan_hands_nothing_out_before_its_chapters(weeks):
    text = (masters.ASSIGNMENTS / "guide.md").read_text()
    table = text[text.index(f"**{weeks}**") :].split("\n\n")[1]
    read, handed = set(), []
    for row in table.split("\n")[2:]:
        _, _, chapters, *_, out, _ = row.split("|")
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", chapters.partition("one of")[0]):
            read |= set(range(int(first), int(last or first) + 1))
        for assignment in re.findall(r"\[(A\d)\]", out):
            handed.append(assignment)
            assert needs()[assignment] <= read, assignment
    assert {"A1", "A3"} <= set(handed)


# --- what an answer earns


def namespace(name, course=PUBLIC_COURSE):
    """What a student's notebook has defined before the first question, and the references."""
    master = masters.master(masters.MASTERS / f"{name}.ipynb", course)
    imports = next(c for c in master.cells if c.source.startswith("import torch"))
    known = sheets.questions(name[:2], course)
    env = {"reference": {n: getattr(q, "reference", None) for n, q in known.items()}, "a4": a4}
    exec(imports.source, env)
    return env


def solutions(name, course=PUBLIC_COURSE):
    """The master's own answers, as code by question."""
    found, question = {}, None
    master = masters.master(masters.MASTERS / f"{name}.ipynb", course)
    for before, cell in zip(master.cells, master.cells[1:], strict=False):
        if cell.cell_type == "raw" and "BEGIN QUESTION" in cell.source:
            question = re.search(r"name: (\w+)", cell.source)[1]
        elif before.source == "# BEGIN SOLUTION" and cell.cell_type == "code":
            found[question] = cell.source
    return found


def earned(name, question, answer, course=PUBLIC_COURSE):
    """Which aspects of a question an answer, given as code, earns; through JSON and back."""
    env = namespace(name, course)
    exec(answer, env)
    item = next(item for item in masters.items(name[:2]) if item.number == question)
    asked = sheets.hidden_sheet(name[:2], course)[item.name]
    answered = json.loads(json.dumps(exchange.ask(asked, env[item.variable])))
    return homework.verdict(asked, answered).passed


def answers(*kinds):
    """Every answer of these kinds in tests/answers."""
    for master in MASTERS:
        tables = tomllib.loads((ANSWERS / f"{master.stem}.toml").read_text())
        for kind in kinds:
            for question, cases in tables[kind].items():
                for label, answer in cases.items():
                    yield pytest.param(
                        master.stem, question, answer, id=f"{master.stem}-{question}-{label}"
                    )


@pytest.mark.parametrize("course", COURSES, ids=lambda course: course.name or "public")
@every_assignment
def test_the_masters_solutions_earn_everything(name, course):
    for question, solution in solutions(name, course).items():
        assert all(earned(name, question, solution, course).values()), question


@every_assignment
def test_the_untouched_notebook_earns_nothing(name):
    student = nbformat.read(masters.ASSIGNMENTS / f"{name}.ipynb", as_version=4)
    untouched = [
        c.source
        for c in student.cells
        if c.cell_type == "code" and "otter_answer_cell" in c.metadata.get("tags", [])
    ]
    for question, blank in zip(solutions(name), untouched, strict=True):
        assert not any(earned(name, question, blank).values()), question


@pytest.mark.parametrize(("name", "question", "answer"), [*answers("wrong", "subtle")])
def test_plausible_wrong_answers_do_not_earn_everything(name, question, answer):
    assert not all(earned(name, question, answer).values())


@pytest.mark.parametrize(("name", "question", "answer"), [*answers("right", "also_right")])
def test_right_answers_written_otherwise_earn_everything(name, question, answer):
    assert all(earned(name, question, answer).values())


@pytest.mark.parametrize(
    ("name", "question", "kind", "label", "missed"),
    [
        ("A1_sarsa", "q1", "wrong", "in_place", {"arguments"}),
        ("A1_sarsa", "q1", "wrong", "wrong_dtype", {"dtype"}),
        ("A1_sarsa", "q1", "subtle", "right_but_for_one_window_or_one_token", {"sizes"}),
        ("A1_sarsa", "q4", "wrong", "single_precision", {"dtype"}),
        ("A2_training", "q2", "subtle", "targets_changed", {"arguments"}),
        ("A3_actor_critic", "q3", "wrong", "wrong_dtype", {"dtype"}),
        ("A4_design", "q3", "subtle", "probabilities_changed", {"arguments"}),
        ("A1_sarsa", "q1", "wrong", "sign", {"values", "sizes", "dtype", "arguments"}),
    ],
)
def test_an_answer_that_misses_one_aspect_earns_the_others(name, question, kind, label, missed):
    answer = tomllib.loads((ANSWERS / f"{name}.toml").read_text())[kind][question][label]
    passed = earned(name, question, answer)
    assert {aspect for aspect, right in passed.items() if not right} == missed


@every_assignment
def test_every_question_has_enough_answers_to_be_tested_with(name):
    table = tomllib.loads((ANSWERS / f"{name}.toml").read_text())
    asked = {item.number for item in masters.items(name[:2]) if item.name}
    assert set(table["wrong"]) == set(table["right"]) == set(table["subtle"]) == asked
    assert all(len(cases) >= 5 for kind in ("wrong", "subtle") for cases in table[kind].values())


def test_the_wrong_root_is_the_larger_one_on_some_hidden_instance():
    """At d = 3, alpha = 0.9 and c = 0.3 the real root of largest modulus is not the nearest."""
    asked = sheets.hidden_sheet("A2")["best_scale"]["instances"]
    own = [exchange.arguments(instance) for instance in asked]
    near = [a for a in own if a["d"] == 3 and a["alpha"] == 0.9]
    assert len(near) >= 2


# --- courses


@pytest.mark.parametrize("name", ["A1_sarsa", "A3_actor_critic"])
def test_answers_of_the_public_course_do_not_answer_another(name):
    own = {"A1_sarsa": ["q2", "q3", "q4", "q5"], "A3_actor_critic": ["q4", "q5", "q6"]}[name]
    for question in own:
        passed = earned(name, question, solutions(name)[question], Course("spring"))
        assert not passed["values"], question


def test_a_course_asks_the_same_every_time_and_another_something_else():
    sheets.hidden_sheet.cache_clear()
    once = json.dumps(sheets.hidden_sheet("A1", Course("spring")))
    sheets.hidden_sheet.cache_clear()
    assert json.dumps(sheets.hidden_sheet("A1", Course("spring"))) == once
    assert json.dumps(sheets.hidden_sheet("A1", Course("autumn"))) != once


def test_students_have_numbers_of_their_own_and_instances_in_common():
    values, prompts = set(), set()
    for student in ("1001", "1002", "1003", "1004"):
        sheet = sheets.hidden_sheet("A1", Course("spring", student))
        values.add(sheet["by_hand"]["value"])
        prompts.add(json.dumps(sheet["prompt"]))
    assert len(values) >= 3
    assert len(prompts) == 1


def test_a_students_notebook_asks_for_the_numbers_that_it_is_graded_by():
    course, student = Course("spring"), classroom.Student("1001", "A. Student")
    path = masters.MASTERS / "A1_sarsa.ipynb"
    prepared = masters._prepared(path, course)
    own = classroom.for_student(prepared, path, course, student)
    text = sheets.text("A1", Course("spring", "1001"))
    question = next(cell.source for cell in own.cells if "## Question 2" in cell.source)
    assert text["first"] in question
    sheet = next(cell.source for cell in own.cells if "Checks(" in cell.source)
    checks = homework.Checks(re.search(r'"([\w+/=]+)"', sheet)[1])
    assert checks.sheet["A1.by_hand"] == json.loads(
        json.dumps(sheets.public_sheet(Course("spring", "1001"), "A1")["A1.by_hand"])
    )


@pytest.mark.parametrize("assignment", ["A1", "A3"])
def test_no_course_uses_the_order_of_the_book_or_of_the_public_copies(assignment):
    module = {"A1": sheets.importlib.import_module("grading.a1")}.get(
        assignment, sheets.importlib.import_module("grading.a3")
    )
    public = module.order(Course()).token
    orders = {module.order(Course(f"course {i}")).token for i in range(40)}
    assert public not in orders
    assert all(order[0] != "phi" for order in orders)
    assert len(orders) >= 3


# --- what students are told


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (name, hint)
        for name, question in QUESTIONS.items()
        for hint in getattr(question, "mistakes", {})
    ],
)
def test_a_known_mistake_gets_its_hint(name, hint, capsys):
    homework.check(name, QUESTIONS[name].mistakes[hint])
    assert capsys.readouterr().out.endswith(f"Hint: {hint}\n")


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_answer_is_told_so(name, capsys):
    question = QUESTIONS[name]
    kind = {sheets.Question: "reference", sheets.Number: "value", sheets.Choices: "right"}
    homework.check(name, getattr(question, kind[type(question)]))
    assert capsys.readouterr().out.startswith(f"✓ {name}")


@pytest.mark.parametrize("answer", [None, ..., "text", lambda: None, lambda *_, **__: None])
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_no_answer_is_told_so(name, answer, capsys):
    homework.check(name, answer)
    assert capsys.readouterr().out.startswith(f"✗ {name}: ")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda w: w.to_sparse(), "a sparse tensor"),
        (lambda w: w.to(torch.complex64), "a complex64 tensor"),
        (lambda w: torch.zeros(10**6), "a float32 tensor of shape (1000000,)"),
        (lambda w: [w, "text"], "a list or tuple"),
        (lambda w: 10**400, "a number that is too large"),
        (lambda w: w.numpy(), "ndarray"),
        (lambda w: torch.zeros(2, 2, 2, 2, 2, 2, 2, 2, 2), "a float32 tensor of shape (2, 2"),
    ],
)
def test_a_strange_result_is_feedback(result, words, capsys):
    homework.check("A1.sarsa_update", lambda w, **_: result(w))
    said = capsys.readouterr().out
    assert said.startswith("✗ A1.sarsa_update: ")
    assert words in said or "expected shape" in said


def test_numbers_are_printed_with_the_digits_in_which_they_differ(capsys):
    right = QUESTIONS["A1.sarsa_update"].reference
    homework.check("A1.sarsa_update", lambda **z: right(**z) * (1 + 1e-4))
    expected, got = re.search(r"expected (\S+), got (\S+) where", capsys.readouterr().out).groups()
    assert expected != got


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
    with pytest.raises(ValueError, match=r"^name: expected one of A1\.sarsa_update"):
        homework.check("A1.nothing", 1)


def test_what_came_is_read_as_data_whatever_it_claims():
    asked = sheets.hidden_sheet("A1")["sarsa_update"]
    right = exchange.ask(asked, QUESTIONS["A1.sarsa_update"].reference)
    nested = current = []
    for _ in range(100):
        current.append([])
        current = current[0]
    records = len(asked["instances"])
    for claimed in (
        {}, {"records": None}, {"records": [{}] * records}, {"records": [None] * records},
        {"records": [{"result": nested}] * records}, {"value": nested}, {"value": {"words": 1}},
        {"records": [{"result": {"dtype": "float64", "shape": [10**9], "values": []}}] * records},
        {"records": [{"result": {"dtype": "object", "shape": [1], "values": [1]}}] * records},
        {"records": right["records"][:-1]}, {"records": right["records"] * 2},
    ):  # fmt: skip
        assert not any(classroom.grades._verdict(asked, claimed).passed.values())
    assert all(homework.verdict(asked, right).passed.values())


# --- answers that lean on the library


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        ("from icrl_lib import teachers\ndef f(w): return teachers.sarsa_update(w)",
         ["icrl_lib.teachers.sarsa_update"]),
        ("from icrl_lib.constructions import sarsa as s\ndef g(): return s(1)\nf = lambda: g()",
         ["icrl_lib.constructions.sarsa"]),
        ("import icrl_lib.prompts as p\nf = p.sarsa_prompt", ["icrl_lib.prompts.sarsa_prompt"]),
        ("def f(): return __import__('icr' + 'l_lib')", ["__import__ hides what it names"]),
        ("import torch\ndef f(x): return torch.autograd.grad(x, x)", ["automatic differentiation"]),
        ("from icrl_lib.attention import linear_self_attention as a\nf = lambda H: a(H, H, H)", []),
        ("import torch\nfrom icrl_lib import teachers\ndef f(w): return torch.sin(w)", []),
    ],
)  # fmt: skip
def test_an_answer_that_leans_on_the_library_is_marked(cell, named):
    assert marks.marks(["%pip list", cell], ["f"]) == {"f": named}


# --- what students are given


def test_the_broken_weights_copy_the_next_features():
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    phi, phi_next = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64)
    rewards = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    env = namespace("A1_sarsa")
    from icrl_lib.prompts import sarsa_prompt

    H = env["linear_self_attention"](
        sarsa_prompt(w, phi, phi_next, rewards, 0.7), *given.broken_construction(3, 0.3)
    )
    delta = rewards + 0.7 * (phi_next @ w[..., None])[..., 0] - (phi @ w[..., None])[..., 0]
    expected = w + 0.3 * (delta[..., None] * 0.7 * phi_next).mean(1)
    torch.testing.assert_close(H[:, -3:, -1], expected)
