"""The book as a reader gets it: notebooks in order, and a clean build without a warning."""

from __future__ import annotations

import html.parser
import importlib
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import book_pages  # noqa: E402
import notebooks as tool  # noqa: E402

NOTEBOOKS = tool.chapters()
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def by_name(path: Path) -> str:
    return path.stem


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=by_name)


def test_every_notebook_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = {toc["root"]} | {
        chapter["file"] for part in toc["parts"] for chapter in part["chapters"]
    }
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= files


@every_notebook
def test_cells_were_run_once_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_stored_outputs_hold_no_warning_and_no_traceback(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", cell.source


@every_notebook
def test_notebook_holds_no_machine_path_and_is_small(path):
    text = path.read_text()
    for folder in (ROOT, Path.home(), Path(tempfile.gettempdir())):
        assert f"{folder}/" not in text
    assert len(text) < 1.5e6


@every_notebook
def test_metadata_is_normalised(path):
    notebook = read(path)
    before = nbformat.writes(notebook)
    tool.normalise(notebook)
    assert nbformat.writes(notebook) == before


@every_notebook
def test_every_figure_has_alternative_text(path):
    for cell in code_cells(path):
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert not pictures or len(alt) > 40, cell.source


@every_chapter
def test_chapter_opens_in_colab_from_the_configured_address(path):
    setup = [cell.source for cell in code_cells(path) if "setup" in cell.metadata.get("tags", [])]
    assert setup == [tool.setup_cell()]
    assert code_cells(path)[0].source == tool.setup_cell()
    assert tool.badge(path) in read(path).cells[0].source.splitlines()


@every_chapter
def test_chapter_has_the_agreed_parts(path):
    text = markdown(path)
    for part in ("**You will be able to**", "**Time**", "What the paper says / what we measured"):
        assert part in text
    assert len(re.findall(r"^### Exercise \d+: .*\(★.*min\)$", text, re.MULTILINE)) >= 3
    exercises = len(re.findall(r"^### Exercise \d+", text, re.MULTILINE))
    for fold in ("Hint", "Solution"):
        assert text.count(f"<summary>{fold}</summary>") == exercises
    assert any("✓ " in o.get("text", "") for cell in code_cells(path) for o in cell.outputs)


@every_chapter
def test_chapter_reads_well_outside_the_book(path):
    """No MyST directive or role: Colab and Jupyter show them as they stand."""
    assert not re.search(
        r"^(:::|```\{)|\{(ref|eq|cite|doc|numref|prf:ref)[^}]*\}`", markdown(path), re.M
    )


@every_chapter
def test_every_claim_of_the_ledger_was_executed(path):
    """A line of the ledger comes from a cell that calls `claim`, and every such cell has one."""
    for cell in code_cells(path):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        marks = len(re.findall(r"^✓", printed, re.MULTILINE))
        assert (marks > 0) == bool(re.search(r"\bclaim\(", cell.source)), cell.source
        assert marks == len(book_pages.CLAIM.findall(printed)), printed


class Page(html.parser.HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.images_without_alt: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes[name] for name in ("id", "name") if attributes.get(name))
        for name in ("href", "src"):
            if attributes.get(name):
                self.links.append(attributes[name])
        if tag == "img" and not attributes.get("alt"):
            self.images_without_alt.append(attributes.get("src", ""))


@pytest.fixture(scope="session")
def pages(site) -> dict[Path, Page]:
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path: Page(path) for path in paths}


def test_every_page_was_built(pages):
    names = {path.stem for path in pages}
    assert {path.stem for path in NOTEBOOKS} <= names


def test_internal_links_lead_somewhere(pages, site):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or (not parts.path and parts.fragment in ("", "top")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.relative_to(site)} -> {link}")
            elif parts.fragment and target.suffix == ".html":
                known = pages[target].anchors if target in pages else {parts.fragment}
                if unquote(parts.fragment) not in known:
                    broken.append(f"{path.relative_to(site)} -> {link} (no such place)")
    assert broken == []


def test_built_images_have_alternative_text(pages):
    missing = {path.name: page.images_without_alt for path, page in pages.items()}
    assert {name: images for name, images in missing.items() if images} == {}


def test_no_formula_or_markup_is_left_raw(site):
    for path in NOTEBOOKS:
        text = (site / "book" / f"{path.stem}.html").read_text()
        body = text[text.index("<article") : text.index("</article>")]
        prose = re.sub(r"<pre>.*?</pre>|<script.*?</script>|<code.*?</code>", "", body, flags=re.S)
        assert not re.search(r"\$\$|:::|\{cite|\*\*[A-Z]", prose), path.stem


ITEMS = [
    *(f"eq. {number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 13, 14, 15)),
    *("Lemma C.1", "Proposition 3.1", "Theorem 3.1", "Theorem 3.2", "Theorem 3.3"),
    *("Algorithm 1", "Algorithm 2", "Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4"),
]


def rows_of_the_map() -> list[list[str]]:
    lines = (ROOT / "book" / "paper_to_code.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "::" in line]
    assert rows
    return rows


def test_the_map_has_every_numbered_item_of_the_paper():
    assert [row[0] for row in rows_of_the_map()] == ITEMS


@pytest.mark.parametrize("row", rows_of_the_map(), ids=lambda row: row[0])
def test_the_map_leads_to_code_chapters_and_tests_that_exist(row):
    item, _, function, chapters, test = row
    module, _, name = function.strip("`").rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    for chapter in re.findall(r"\((.*?)\)", chapters):
        sources = [claim.source for claim in book_pages.claims(read(ROOT / "book" / chapter))]
        assert any(item in book_pages.numbered_items(source) for source in sources), chapter
    file, name = test.strip("`").split("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize("item", ITEMS)
def test_the_ledger_has_a_claim_about_every_numbered_item(item):
    sources = {claim.source for path in CHAPTERS for claim in book_pages.claims(read(path))}
    assert any(item in book_pages.numbered_items(source) for source in sources)


def test_the_reference_prints_no_place_on_this_machine(site):
    assert "PosixPath(" not in (site / "book" / "api.html").read_text()
