"""The quick questions of the first three parts: complete, explained, and with one right answer."""

from __future__ import annotations

import html
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "book").glob("0[1-7]_*.ipynb"))
MARK = "**Quick question.** "
LETTERS = "ABCD"
ANSWER = re.compile(
    r"^<details>\n<summary>(?P<letter>[A-Z])\. (?P<answer>[^\n]+)</summary>\n\n"
    r"(?P<verdict>Right|No)\. (?P<explanation>.+?)\n\n</details>$",
    re.MULTILINE | re.DOTALL,
)


class Question(NamedTuple):
    """A markdown cell that asks, and its answers: (letter, answer, verdict, explanation)."""

    chapter: str
    number: int
    source: str
    answers: list[tuple[str, str, str, str]]


def questions_of(path: Path) -> list[Question]:
    """Return the quick questions of a chapter, in order."""
    cells = nbformat.read(path, as_version=4).cells
    asked = [cell.source for cell in cells if MARK.strip() in cell.source]
    return [
        Question(path.stem, number, source, ANSWER.findall(source))
        for number, source in enumerate(asked, start=1)
    ]


QUESTIONS = [question for path in CHAPTERS for question in questions_of(path)]
every_question = pytest.mark.parametrize(
    "question", QUESTIONS, ids=lambda question: f"{question.chapter}-{question.number}"
)


def right_letters(question: Question) -> list[str]:
    """Return the letters of the answers that are called right."""
    return [letter for letter, _, verdict, _ in question.answers if verdict == "Right"]


def test_the_first_three_parts_are_seven_chapters():
    assert [path.name[:2] for path in CHAPTERS] == [f"{number:02d}" for number in range(1, 8)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_asks_at_least_three_questions(path):
    assert len(questions_of(path)) >= 3


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_questions_stand_inside_the_chapter_and_apart(path):
    """Each follows the idea that it tests: before the exercises, and not one after another."""
    cells = nbformat.read(path, as_version=4).cells
    asked = [number for number, cell in enumerate(cells) if MARK.strip() in cell.source]
    exercises = next(number for number, cell in enumerate(cells) if "## Exercises" in cell.source)
    assert max(asked) < exercises
    assert all(after - before > 1 for before, after in pairwise(asked))


@every_question
def test_a_cell_is_one_question_and_its_answers(question):
    """Nothing is left of the cell but the question; an answer in another form would remain."""
    assert question.source.startswith(MARK)
    rest = ANSWER.sub("", question.source.removeprefix(MARK)).strip()
    assert rest
    assert "<" not in rest
    assert "\n\n" not in rest


@every_question
def test_a_question_has_three_or_four_answers_in_order(question):
    letters = "".join(letter for letter, *_ in question.answers)
    assert letters in (LETTERS[:3], LETTERS)


@every_question
def test_answers_differ(question):
    answers = [answer for _, answer, _, _ in question.answers]
    assert len(set(answers)) == len(answers)


@every_question
def test_exactly_one_answer_is_right(question):
    assert len(right_letters(question)) == 1


@every_question
def test_every_answer_is_explained(question):
    """At least 40 characters after the verdict, for the right answer and for the wrong ones."""
    lengths = [len(explanation) for *_, explanation in question.answers]
    assert lengths
    assert min(lengths) >= 40


@every_question
def test_an_answer_is_plain_text(question):
    """No viewer renders Markdown or formulas inside <summary>."""
    for _, answer, _, _ in question.answers:
        assert not re.search(r"[$*`<>\\]", answer)
        assert html.unescape(answer) == answer


@every_question
def test_folds_are_closed_and_what_is_in_them_is_markdown(question):
    """A CommonMark parser sees a fold an answer, and a paragraph of text inside each."""
    tokens = MarkdownIt("commonmark").parse(question.source)
    blocks = "".join(token.content for token in tokens if token.type == "html_block")
    assert blocks.count("<details>") == blocks.count("</details>") == len(question.answers)
    paragraphs = [token.content for token in tokens if token.type == "inline"]
    verdicts = [text.split(".")[0] for text in paragraphs[1:]]
    assert verdicts == [verdict for _, _, verdict, _ in question.answers]


def test_the_right_answer_moves_about():
    """No letter is right more often than half of the time, and none never."""
    counts = Counter(letter for question in QUESTIONS for letter in right_letters(question))
    assert set(counts) == set(LETTERS)
    assert max(counts.values()) <= len(QUESTIONS) / 2
