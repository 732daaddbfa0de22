"""What the book's build adds to its pages: tables collected from the chapters, and local maths."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

CLAIM = re.compile(r"^✓ (?P<source>[^:]+): (?P<statement>.*) \((?P<bound>[^()]*)\)$", re.MULTILINE)


class Claim(NamedTuple):
    """A line that `icrl_lib.claims.claim` printed when a chapter was run."""

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

    header = ("Source", "Statement", "Holds", "Chapter")

    def rows(self, path: Path, notebook: nbformat.NotebookNode) -> list[tuple[str, ...]]:
        """Return one row for each item of each claim."""
        link = f"[{int(path.stem[:2])}]({path.name})"
        return [
            (item, claim.statement.replace("|", r"\|"), f"✓ {claim.bound}", link)
            for claim in claims(notebook)
            for item in numbered_items(claim.source)
        ]

    def sorted(self, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the rows in the order of the paper's items; chapters stay in theirs."""
        return sorted(rows, key=lambda row: item_order(row[0]))


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the part of MathJax that pages load, so that no page asks another server for it."""
    if exception is not None or app.builder.format != "html":
        return
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    source, target = package / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    copy_asset(source / "tex-chtml.js", target)
    copy_asset(source / fonts, target / fonts)


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
    app.connect("build-finished", copy_mathjax)
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
