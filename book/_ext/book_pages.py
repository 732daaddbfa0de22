"""What the book's build adds to its pages: tables collected from the chapters, and local maths."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset


class RunningTimes(SphinxDirective):
    """Table of the book's chapters with the seconds their last stored run took."""

    def run(self) -> list[nodes.Node]:
        book = Path(self.env.doc2path(self.env.docname)).parent
        rows = []
        for path in sorted(book.glob("[0-9]*.ipynb")):
            self.env.note_dependency(str(path))
            notebook = nbformat.read(path, as_version=4)
            title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
            seconds = notebook.metadata.get("seconds_to_run", "not measured")
            rows.append(f"| [{title}]({path.name}) | {seconds} |")
        table = ["| Chapter | Seconds to run, on two cores |", "| :-- | --: |", *rows]
        return self.parse_text_to_nodes("\n".join(table))


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the part of MathJax that pages load, so that no page asks another server for it."""
    if exception is not None or app.builder.format != "html":
        return
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    source, target = package / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    copy_asset(source / "tex-chtml.js", target)
    copy_asset(source / fonts, target / fonts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("running-times", RunningTimes)
    app.connect("build-finished", copy_mathjax)
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
