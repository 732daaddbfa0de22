"""Prose, docstrings, comments, claims and alternative texts are spelled right, as in Britain."""

from __future__ import annotations

import ast
import functools
import gc
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from spylls.hunspell import Dictionary

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("words.txt")
MARKDOWN = sorted(
    p for folder in ("", "book", "book/assignments") for p in (ROOT / folder).glob("*.md")
)
NOTEBOOKS = sorted(
    p
    for folder in ("book", "book/assignments", "book/assignments/masters")
    for p in (ROOT / folder).glob("*.ipynb")
)
MODULES = sorted(
    p for folder in ("icrl_lib", "tools", "tests") for p in (ROOT / folder).rglob("*.py")
)

# What is no prose, in the order in which it is taken out.
NOT_PROSE = [
    re.compile(pattern, re.DOTALL | re.MULTILINE)
    for pattern in (
        r"^(```+|~~~+)(?!\{glossary\}).*?^\1",  # code and directives; a glossary's body is prose
        r"^:::+\{.*?$",
        r"``.+?``|`[^`\n]*(?:\n[^`\n]+)?`",
        r"\$\$.+?\$\$|\$[^$]+?\$",
        r"</?[a-z][^>]*>",
        r"\),\s+\*[^*]+\*",  # a title after a reference
        r"\]\([^)\s]*\)|https?://\S+|[\w.-]+@[\w.-]+",
    )
]
WORD = re.compile(r"(?<![\w/.\\])(?<!--)[^\W\d_]+(?:['’][^\W\d_]+)*(?![\w/\\(=]|\.\w)")

PRAGMA = re.compile(r"# (noqa|fmt|type)\b")


@functools.cache
def word_list() -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that words.txt adds, and those that it takes away, marked with "not"."""
    lines = [line.strip() for line in LIST.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    refused = {line.removeprefix("not ") for line in lines if line.startswith("not ")}
    return frozenset(line for line in lines if not line.startswith("not ")), frozenset(refused)


@functools.cache
def american() -> Dictionary:
    """Return Hunspell's dictionary, which is American; words.txt makes it British."""
    with warnings.catch_warnings():  # it leaves its files to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        dictionary = Dictionary.from_files("en_US")
        gc.collect()
    return dictionary


@functools.cache
def is_word(word: str) -> bool:
    """Say whether a word is spelled as this book spells it."""
    word = word.replace("’", "'")
    added, refused = word_list()
    stem = word.removesuffix("'s").removesuffix("s'")
    if {word.lower(), stem.lower()} & refused:
        return False
    # A capital may be that of a name, or of the first word of a sentence.
    forms = {word, stem, word.lower(), stem.lower()}
    return bool(forms & added) or any(map(american().lookup, (word, stem)))


def misspelled(text: str) -> set[str]:
    """Return the words of a text in Markdown that are not spelled as this book spells them."""
    for pattern in NOT_PROSE:
        text = pattern.sub(" ", text)
    words = {w for w in WORD.findall(text) if len(w) > 2 and w[1:].islower()}
    return {word for word in words if not is_word(word)}


def of_python(source: str) -> Iterator[str]:
    """Yield the docstrings and comments of Python code; IPython's magics are left out."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not PRAGMA.match(token.string):
            yield token.string.lstrip("#: ")


def of_notebook(path: Path) -> Iterator[str]:
    """Yield what a notebook says: text, comments, alternative texts, and the claims it prints."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            yield cell.source
        if cell.cell_type != "code":
            continue
        yield from of_python(cell.source)
        yield cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.outputs:
            yield from re.findall(r"^✓ (.*)$", output.get("text", ""), re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_pages_are_spelled_right(path):
    assert misspelled(path.read_text()) == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_spelled_right(path):
    assert set().union(*map(misspelled, of_notebook(path))) == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_docstrings_and_comments_are_spelled_right(path):
    assert set().union(*map(misspelled, of_python(path.read_text()))) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The gradiant of the loss", {"gradiant"}),
        ("Nobody's transiton, and nobody’s else", {"transiton"}),
        ("The behavior in color", {"behavior", "color"}),
        ("The behaviour in colour, by Rummery", set()),
        ("Not checked: `gradiant`, $gradiant$, [here](gradiant.md), https://gradiant.org", set()),
        ("```python\ngradiant\n```\nand *teh* end", {"teh"}),
        ("[Du (2018)](https://a.org), *Layers in Color*: *in color*", {"color"}),
        ("names of code: td_error, gradiant.md, x_i, LSTD", set()),
    ],
)
def test_the_checker_finds_what_is_wrong_and_nothing_else(text, found):
    assert misspelled(text) == found


def test_the_checker_reads_docstrings_and_comments():
    code = 'def f():\n    """Return teh answer."""\n    return 1  # a commment\n'
    assert set().union(*map(misspelled, of_python(code))) == {"teh", "commment"}


def test_the_word_list_is_sorted_and_holds_nothing_that_the_dictionary_knows():
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == sorted(set(lines), key=lambda line: (line.removeprefix("not ").lower(), line))
    known = american()
    assert [w for w in lines if not w.startswith("not ") and known.lookup(w)] == []
    assert [w for w in lines if w.startswith("not ") and not known.lookup(w[4:])] == []
