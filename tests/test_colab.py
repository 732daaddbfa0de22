"""Chapters and assignments as Colab runs them: its versions, one notebook, nothing else.

Everything happens outside the repository. The public address of the setup cell is resolved to a
clone of the working tree, so that what is installed is what is here now.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import notebooks as tool  # noqa: E402

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="Colab's numpy was not built for this Python"
)

# The image of August 2026, as far as the book needs it. Torch is the one that the tests run with:
# Colab's 2.11 is gigabytes.
COLAB = {
    "pip": "24.1.2",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "numpy": "2.1.3",
    "scipy": "1.16.3",
    "matplotlib": "3.10.0",
    "gymnasium": "1.3.0",
    "tqdm": "4.67.1",
    "widgetsnbextension": "3.6.10",
    "backcall": "0.2.0",
    "decorator": "4.4.2",
    "ipython-genutils": "0.2.0",
    "nest-asyncio": "1.6.0",
    "pickleshare": "0.7.5",
}
HOLLOW = {"notebook": "6.5.7", "google-colab": "1.0.0"}
"""Part of Colab, too, but here only a name that pip finds: no cell uses more of them."""

LAUNCHER = """\
import google.colab
from ipykernel.kernelapp import launch_new_instance

launch_new_instance()
"""

SLIDER = """\
import matplotlib.pyplot as plt
from icrl_lib.book import Slider

Slider(lambda value: plt.figure(), [1, 2], label="step", alt="An empty figure;")
"""

# One chapter of each part, of those that take least. COLAB_CHAPTERS=all runs all, in ten minutes.
SOME = {
    "01_first_result",
    "02_mdps",
    "05_sarsa_construction",
    "09_actor_critic_construction",
    "11_reproducing",
    "12_what_training_leaves_alone",
    "18_one_head",
}
CHAPTERS = [
    path
    for path in tool.chapters()
    if path.stem != "index" and (path.stem in SOME or os.environ.get("COLAB_CHAPTERS") == "all")
]
ASSIGNMENTS = sorted((ROOT / "book" / "assignments").glob("A*.ipynb"))


class Machine:
    """A fresh machine of Colab, and an empty folder on it."""

    def __init__(self, place: Path, image: Path, clone: Path) -> None:
        venv.create(place / "env", symlinks=True)
        self.python = place / "env" / "bin" / "python"
        # What Colab brings along is seen, but what is installed now goes beside it.
        (site_packages(place / "env") / "colab.pth").write_text(f"{site_packages(image)}\n")
        self.content = place / "content"
        self.content.mkdir()
        self.place = place
        address, _, _ = tool.requirement().partition("git+")[2].rpartition("@")
        self.environment = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{clone}.insteadOf",
            "GIT_CONFIG_VALUE_0": address,
            "IPYTHONDIR": str(place / "ipython"),
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": "",
        }
        for kernel, module in {"colab": "colab_kernel_launcher", "plain": "ipykernel"}.items():
            folder = place / "kernels" / kernel
            folder.mkdir(parents=True)
            command = [str(self.python), "-m", module, "-f", "{connection_file}"]
            spec = {"argv": command, "display_name": kernel, "env": self.environment}
            (folder / "kernel.json").write_text(json.dumps(spec))

    def run(self, notebook: nbformat.NotebookNode, kernel: str = "colab") -> None:
        """Run a notebook from top to bottom in a new kernel; an error in a cell is raised."""
        place = {"metadata": {"path": self.content}}
        client = NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=place)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUPYTER_PATH", str(self.place))
            client.execute()

    def open(self, path: Path) -> nbformat.NotebookNode:
        """Copy a notebook, and nothing else, to the machine; return it without outputs."""
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, self.content / path.name)
        return notebook

    def packages(self) -> dict[str, str]:
        """Return what pip sees, with versions."""
        pip = [self.python, "-m", "pip", "--disable-pip-version-check"]
        environment = os.environ | self.environment
        listed = subprocess.run(
            [*pip, "list", "--format=json"], check=True, capture_output=True, env=environment
        )
        return {
            canonicalize_name(package["name"]): package["version"]
            for package in json.loads(listed.stdout)
        }


def site_packages(place: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(place)}))


def command(*words: object, **options: object) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True, **options)


def link_what_is_missing(target: Path) -> None:
    """Let an environment see this one's torch, and what its own packages need besides."""
    packages = [*importlib.metadata.distributions(path=[str(target)])]
    present = {canonicalize_name(package.name) for package in packages}
    missing = [Requirement("torch"), Requirement("sympy"), *needs(packages)]
    while missing:
        name = missing.pop().name
        if canonicalize_name(name) not in present:
            present.add(canonicalize_name(name))
            package = importlib.metadata.distribution(name)
            for entry in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
                if not (target / entry).exists():
                    (target / entry).symlink_to(package.locate_file(entry))
            missing += needs([package])


def needs(packages: list[importlib.metadata.Distribution]) -> list[Requirement]:
    requirements = [Requirement(line) for package in packages for line in package.requires or []]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


@pytest.fixture(scope="session")
def somewhere():
    """A folder far from the repository, removed at the end."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.fixture(scope="session")
def image(somewhere):
    """An environment with Colab's versions, as far as they are to be had."""
    place = somewhere / "image"
    venv.create(place, symlinks=True)
    target = site_packages(place)
    for name, version in HOLLOW.items():
        folder = target / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    (target / "google" / "colab").mkdir(parents=True)
    (target / "google" / "colab" / "__init__.py").touch()
    (target / "colab_kernel_launcher.py").write_text(LAUNCHER)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet"]
    pins = [f"{name}=={version}" for name, version in COLAB.items()]
    command(*pip, "--no-deps", "--no-compile", "--prefer-binary", *pins)
    link_what_is_missing(target)
    return place


@pytest.fixture(scope="session")
def clone(somewhere):
    """A repository with the working tree as its release."""
    place = somewhere / "clone"
    release = tool.requirement().rpartition("@")[2]
    settings = {"user.name": "Tests", "user.email": "tests@localhost", "commit.gpgsign": "false"}
    git = ["git", f"--git-dir={place / '.git'}", f"--work-tree={ROOT}"]
    for name, value in settings.items():
        git += ["-c", f"{name}={value}"]
    command("git", "init", "--quiet", place)
    command(*git, "add", "--all", cwd=ROOT)
    command(*git, "commit", "--quiet", "--no-verify", "--message", "The working tree")
    command(*git, "tag", release)
    return place


@pytest.fixture
def machine(tmp_path, image, clone):
    return Machine(tmp_path, image, clone)


def setup_cells(number):
    cells = [nbformat.v4.new_code_cell(tool.setup_cell()) for _ in range(number)]
    return nbformat.v4.new_notebook(cells=cells)


def shown(notebook):
    """What the reader gets to see after the setup cell: all text, and the kinds of the rest."""
    return [
        [
            (output.get("name"), output.get("text"), sorted(output.get("data", {})))
            for output in tool.merged(cell.outputs)
        ]
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", [])
    ]


def test_the_machine_has_colabs_versions(machine):
    expected = COLAB | HOLLOW
    packages = machine.packages()
    assert {name: packages.get(name) for name in expected} == expected


def test_setup_cell_installs_the_library_and_nothing_else(machine):
    before = machine.packages()
    machine.run(setup_cells(1))
    version = tool.requirement().rpartition("@v")[2]
    assert machine.packages() == before | {"icrl-lib": version}


def test_setup_cell_does_nothing_when_it_is_run_again(machine):
    """Neither in the same session nor in a new one: pip would say that it ran."""
    same, new = setup_cells(2), setup_cells(1)
    machine.run(same)
    machine.run(new)
    assert [bool(cell.outputs) for cell in same.cells + new.cells] == [True, False, False]


def test_setup_cell_does_nothing_outside_colab(machine):
    notebook = setup_cells(1)
    machine.run(notebook, kernel="plain")
    assert notebook.cells[0].outputs == []
    assert "icrl-lib" not in machine.packages()


def test_slider_falls_back_to_html_with_colabs_widgets(machine):
    notebook = setup_cells(1)
    notebook.cells.append(nbformat.v4.new_code_cell(SLIDER))
    machine.run(notebook)
    assert shown(notebook)[-1] == [(None, None, ["text/html", "text/plain"])]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_opened_alone_shows_what_the_book_shows(path, machine):
    expected = shown(nbformat.read(path, as_version=4))
    notebook = machine.open(path)
    machine.run(notebook)
    assert shown(notebook) == expected


@pytest.mark.parametrize("path", ASSIGNMENTS, ids=lambda path: path.stem)
def test_untouched_assignment_opened_alone_runs_to_its_end(path, machine):
    notebook = machine.open(path)
    machine.run(notebook)
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1))
