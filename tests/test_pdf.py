"""The book as one PDF, tried on a site of three pages."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import pdf as tool  # noqa: E402

PAGE = """<html><body><nav class="bd-header">menu</nav><article class="bd-article"><h1>{title}</h1>
{body}</article></body></html>"""
PAGES = {
    "start": "<p>Hello. <a href='two.html#end'>onwards</a></p>",
    "one": """<p><a href="https://colab.research.google.com/x">Open this chapter in Colab</a></p>
    <div class="tag_setup">setup</div>
    <details><summary>Solution</summary><p>folded away</p></details>
    <div id="slider-1"><p>step <input type="range"></p><output>start frame</output></div>
    <p>See <a href="gone.html">what is not printed</a> or <a href="https://example.org">more</a>.</p>""",
    "two": "<p style='break-after: page'>first</p><p id='end'>second</p>",
}
BOOK = [tool.Section("start"), tool.Section("one", "A part"), tool.Section("two")]
CONFIG = {"title": "A book", "author": "Nobody", "repository": {"url": "https://example.org/a"}}


def test_every_document_of_the_table_of_contents_is_printed_once():
    text = (ROOT / "_toc.yml").read_text()
    printed = [section.document for section in tool.sections(yaml.safe_load(text))]
    listed = [line.split("file:")[1].strip() for line in text.splitlines() if "file:" in line]
    assert printed == ["book/index", *listed]


def test_a_part_is_named_before_its_first_page_only():
    toc = {
        "root": "r",
        "parts": [
            {"caption": "A", "chapters": [{"file": "a", "sections": [{"file": "b"}]}]},
            {"caption": "B", "chapters": [{"file": "c"}]},
        ],
    }
    assert tool.sections(toc) == [("r", ""), ("a", "A"), ("b", ""), ("c", "B")]


@pytest.fixture(scope="module")
def book(site, tmp_path_factory) -> PdfReader:
    small = tmp_path_factory.mktemp("small")
    shutil.copytree(site / "_static" / "fonts", small / "_static" / "fonts")
    for name, body in PAGES.items():
        (small / f"{name}.html").write_text(PAGE.format(title=f"Title {name}", body=body))
    try:
        tool.make(small, small / "book.pdf", BOOK, CONFIG)
    except SystemExit as error:
        refuse = pytest.fail if os.environ.get("BOOK_REQUIRES_BROWSER") else pytest.skip
        refuse(str(error))
    return PdfReader(small / "book.pdf")


def texts(book: PdfReader) -> list[str]:
    return [" ".join(page.extract_text().split()) for page in book.pages]


def links(page) -> list:
    annotations = [reference.get_object() for reference in page.get("/Annots", [])]
    return [a for a in annotations if a["/Subtype"] == "/Link"]


def test_cover_contents_and_pages_come_in_order(book):
    cover, contents, start, one, two, *rest = texts(book)
    assert "A book" in cover
    assert "A part" in contents
    assert "Hello" in start
    assert "Title one" in one
    assert "first" in two
    assert len(rest) == 1


def test_contents_have_the_pages_on_which_chapters_begin(book):
    contents = texts(book)[1]
    assert "Title start 3 A part Title one 4 Title two 5" in contents


def test_cover_and_contents_are_printed_in_the_font_of_the_book(book):
    for page in book.pages[:2]:
        names = [font.get_object()["/BaseFont"] for font in page["/Resources"]["/Font"].values()]
        assert {name.partition("+")[2] for name in names} == {"BookText"}


def test_every_page_but_the_cover_has_title_and_number(book):
    ends = [text.split()[-3:] for text in texts(book)]
    assert ends[2:] == [
        ["Title", "start", "3"],
        ["Title", "one", "4"],
        ["Title", "two", "5"],
        ["Title", "two", "6"],
    ]
    assert "1" not in texts(book)[0].split()


def test_what_is_folded_is_open_and_what_needs_a_screen_is_gone(book):
    text = texts(book)[3]
    assert "folded away" in text
    assert "start frame" in text
    for gone in ("menu", "setup", "Colab"):
        assert gone not in text


def test_links_between_pages_lead_inside_the_book(book):
    (link,) = links(book.pages[2])
    assert link["/Dest"][0].get_object() == book.pages[4].get_object()


def test_links_to_what_is_not_printed_are_dropped_and_others_kept(book):
    assert [link["/A"]["/URI"] for link in links(book.pages[3])] == ["https://example.org/"]


def test_the_outline_has_every_page(book):
    titles = [item.title for item in book.outline if not isinstance(item, list)]
    assert [title for title in titles if title.startswith("Title")] == [
        "Title start",
        "Title one",
        "Title two",
    ]
