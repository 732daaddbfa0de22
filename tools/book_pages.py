"""What the book's build adds to its pages: tables from the chapters, local maths, mended markup."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

CLAIM = re.compile(r"^✓ (?P<source>[^:]+): (?P<statement>.*) \((?P<bound>[^()]*)\)$", re.MULTILINE)


class Claim(NamedTuple):
    """A line that `icrl_lib.book.claims.claim` printed when a chapter was run."""

    source: str
    statement: str
    bound: str


def chapters(book: Path) -> list[Path]:
    """Return the notebooks that are chapters, in order."""
    return sorted(book.glob("[0-9]*.ipynb"))


def title(notebook: nbformat.NotebookNode) -> str:
    """Return the title of a chapter."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def claims(notebook: nbformat.NotebookNode) -> list[Claim]:
    """Return the claims in a chapter's stored outputs."""
    printed = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    return [Claim(**match.groupdict()) for text in printed for match in CLAIM.finditer(text)]


def numbered_items(source: str) -> list[str]:
    """Return the numbered items of the paper that a claim's source names."""
    return [item.strip() for item in source.split(",")]


def item_order(item: str) -> tuple[int, list[int]]:
    """Sort key: by kind, then by number; what is not the paper's comes last."""
    kinds = ["Section", "eq.", "Lemma", "Proposition", "Theorem", "Assumption", "Algorithm", "Fig."]
    kind = next((i for i, name in enumerate(kinds) if item.startswith(name)), len(kinds))
    return kind, [int(number) for number in re.findall(r"\d+", item)]


class ChapterTable(SphinxDirective):
    """A table whose rows come from the stored outputs of the chapters."""

    header: tuple[str, ...]

    def rows(self, path: Path, notebook: nbformat.NotebookNode) -> list[tuple[str, ...]]:
        """Return the rows that a chapter contributes."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        table = []
        for path in chapters(Path(self.env.srcdir) / "book"):
            if f"book/{path.stem}" not in self.env.found_docs:  # not in the table of contents
                continue
            self.env.note_dependency(str(path))
            table += self.rows(path, nbformat.read(path, as_version=4))
        lines = [self.header, (":--",) * len(self.header), *self.sorted(table)]
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(row)} |" for row in lines))

    def sorted(self, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the rows in the order of the table."""
        return rows


class RunningTimes(ChapterTable):
    """The chapters with the seconds their stored run took."""

    header = ("Chapter", "Seconds to run, on two cores")

    def rows(self, path: Path, notebook: nbformat.NotebookNode) -> list[tuple[str, ...]]:
        """Return one row."""
        seconds = notebook.metadata.get("seconds_to_run", "not measured")
        return [(f"[{title(notebook)}]({path.name})", str(seconds))]


class ClaimLedger(ChapterTable):
    """Every executed claim, ordered by the numbered item of the paper that it is about."""

    header = ("Source", "Statement", "Holds", "Ch.")

    def rows(self, path: Path, notebook: nbformat.NotebookNode) -> list[tuple[str, ...]]:
        """Return one row for each item of each claim."""
        link = f"[{int(path.stem[:2])}]({path.name})"
        return [
            (
                item,
                claim.statement.replace("|", r"\|"),
                "✓ " + claim.bound.replace("-", "\u2011"),
                link,
            )
            for claim in claims(notebook)
            for item in numbered_items(claim.source)
        ]

    def sorted(self, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the rows in the order of the paper's items; chapters stay in theirs."""
        return sorted(rows, key=lambda row: item_order(row[0]))


# What the themes write into every page, and what stands there instead.
MENDS = [
    # Icons come from a font; this script would draw them once more, and is 1.5 MB.
    (r'<script src="[^"]*/fontawesome/[^"]*"></script>', ""),
    (r'<link rel="preload" as="font"[^>]*/fa-(brands|regular)-400[^>]*>', ""),
    # Settings of the scripts that `leave_out_thebe` leaves out.
    (r'<script type="text/x-thebe-config">[^<]*</script>', ""),
    (r"<script>kernelName = '[^<]*</script>", ""),
    # The page has the reader's theme from its first line on, and a theme without JavaScript too.
    (r' data-theme="auto"', ""),
    (
        r'localStorage.getItem\("theme"\) \|\| "auto"',
        'localStorage.getItem("theme") || '
        '(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")',
    ),
    # Landmarks, names and roles that a screen reader announces.
    (
        r'<div class="(bd-sidebar-primary[^"]*)">',
        r'<div class="\1" role="complementary" aria-label="The book">',
    ),
    (
        r'<div class="pst-scrollable-table-container">',
        '<div class="pst-scrollable-table-container" tabindex="0" role="group" aria-label="Table">',
    ),
    (r'<summary>(?=<span class="toctree-toggle")', '<summary aria-label="Pages of this section">'),
    (r' role="doc-biblioentry"', ""),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r'<th class="(head[^"]*)">\s*(?:<p>\s*</p>)?\s*</th>', r'<td class="\1"></td>'),
]


def mend(page: str) -> str:
    """Return a built page as it is published. What is mended once stays as it is."""
    for pattern, replacement in MENDS:
        page = re.sub(pattern, replacement, page)
    return page


def leave_out_thebe(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Leave out the scripts for cells that run in the page: they would load from another server."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]


def finish_pages(app: Sphinx, exception: Exception | None) -> None:
    """Mend the pages, and keep beside them what they load: all of it, and nothing else."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for path in out.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (mended := mend(page)) != page:
            path.write_text(mended, encoding="utf-8")

    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    source, target = package / "static" / "mathjax", out / "_static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    copy_asset(source / "tex-chtml.js", target)
    copy_asset(source / fonts, target / fonts)

    for folder in (out / "_static").glob("vendor/fontawesome/*/js"):
        shutil.rmtree(folder)
    for file in [*(out / "_static").rglob("*.map"), out / "_static" / "sphinx-thebe.js"]:
        file.unlink(missing_ok=True)


def skip_field_aliases(
    app: Sphinx, what: str, name: str, item: object, skip: bool, options: object
) -> bool | None:
    """Leave the fields of named tuples to the docstring of their class, which describes them."""
    return True if (getattr(item, "__doc__", "") or "").startswith("Alias for field") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("running-times", RunningTimes)
    app.add_directive("claim-ledger", ClaimLedger)
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.connect("html-page-context", leave_out_thebe, priority=900)
    app.connect("build-finished", finish_pages)
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
