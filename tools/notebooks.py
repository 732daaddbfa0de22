"""Keep the chapters' notebooks in order: run them and store their outputs, or set their address."""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SETUP = """\
# In Colab this installs the library; elsewhere, and on a second run, it does nothing.
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("icrl_lib") is None:
    %pip install -q "{requirement}"\
"""
BADGE = "[Open this {kind} in Colab]({colab}/github/{repository}/blob/{branch}/{path})"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def chapters() -> list[Path]:
    """Return every notebook of the book, in order."""
    return sorted((ROOT / "book").glob("*.ipynb"))


def setup_cell() -> str:
    """Return the source of the cell that makes a chapter run in Colab."""
    return SETUP.format(requirement=requirement())


def requirement() -> str:
    """Return what pip has to install for the library at its released version."""
    return f"icrl_lib[book] @ git+{repository()}@v{_library_version()}"


def repository() -> str:
    """Return the address of the repository."""
    return _config()["repository"]["url"]


def badge(path: Path) -> str:
    """Return the line that opens the notebook `path` in Colab."""
    config = _config()
    return BADGE.format(
        colab=config["launch_buttons"]["colab_url"],
        repository=config["repository"]["url"].removeprefix("https://github.com/"),
        branch=config["repository"]["branch"],
        kind="chapter" if path.parent.name == "book" else "assignment",
        path=path.resolve().relative_to(ROOT).as_posix(),
    )


def set_address(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write setup cell and badge as _config.yml has the repository's address."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "setup" in cell.metadata.get("tags", []):
            cell.source = setup_cell()
        elif cell.cell_type == "markdown":
            lines = cell.source.split("\n")
            is_badge = [line.startswith("[Open this ") for line in lines]
            cell.source = "\n".join(
                badge(path) if found else line for line, found in zip(lines, is_badge, strict=True)
            )


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Run a notebook from top to bottom in a new kernel and keep its outputs and running times."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    marks: dict[str, list[float]] = {"on_cell_execute": [], "on_cell_executed": []}
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}},
        record_timing=False,
        **{hook: lambda hook=hook, **_: marks[hook].append(time.perf_counter()) for hook in marks},
    )  # fmt: skip
    started = time.perf_counter()
    client.execute()
    ended = time.perf_counter()
    cells = [end - start for start, end in zip(*marks.values(), strict=True)]
    notebook.metadata["seconds_to_run"] = math.ceil(ended - started)
    notebook.metadata["seconds_of_slowest_cell"] = math.ceil(max(cells))


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Drop what differs from editor to editor, so that a change shows nothing but itself."""
    kept = ("seconds_to_run", "seconds_of_slowest_cell")
    measured = {k: notebook.metadata[k] for k in kept if k in notebook.metadata}
    notebook.metadata = nbformat.from_dict({**KERNEL, **measured})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number:02d}"
        kept = ("tags", "mystnb", "cellView")
        cell.metadata = nbformat.from_dict(
            {k: cell.metadata[k] for k in kept if k in cell.metadata}
        )
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
            for output in cell.outputs:  # A widget's view is of no use without its kernel.
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring pieces of one stream; where they are cut varies from run to run."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = result[-1] if result else None
        if last and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            result.append(output)
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "task",
        choices=["run", "address"],
        help="run: execute from top to bottom and store the outputs; "
        "address: only carry the repository's address from _config.yml into setup cell and badge",
    )
    parser.add_argument(
        "notebook",
        nargs="*",
        type=Path,
        help="by default every chapter, and for address every assignment",
    )
    arguments = parser.parse_args()
    # Kernels inherit it: the tensors are small, and more threads only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    masters = sorted((ROOT / "book").glob("assignments/masters/*.ipynb"))
    everything = chapters() + (masters if arguments.task == "address" else [])
    for path in arguments.notebook or everything:
        notebook = nbformat.read(path, as_version=4)
        set_address(notebook, path)
        if arguments.task == "run":
            print(f"{path.name} ...", end=" ", flush=True)
            execute(notebook, path)
            print(f"{notebook.metadata.seconds_to_run} s")
        normalise(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)


def _config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def _library_version() -> str:
    source = (ROOT / "icrl_lib" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', source, re.M)[1]


if __name__ == "__main__":
    main()
