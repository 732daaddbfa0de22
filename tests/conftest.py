"""Shared fixtures: a seeded generator, ways to spoil a tensor, and the built book."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

# The same examples on every run and nothing kept on disk; a slow machine is no failure.
settings.register_profile(
    "book", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=False
)
settings.load_profile("book")

torch.set_num_threads(1)  # small tensors; threads that wait for each other are ten times slower


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _with_last_entry(tensor, value):
    spoiled = tensor.clone()
    spoiled.view(-1)[-1] = value
    return spoiled


SPOILED = {
    "list": lambda t: t.tolist(),
    "integers": lambda t: t.long(),
    "half precision": lambda t: t.half(),
    "NaN": lambda t: _with_last_entry(t, math.nan),
    "infinity": lambda t: _with_last_entry(t, -math.inf),
    "empty": lambda t: t[:0],
    "extra axis": lambda t: t.unsqueeze(0),
}
MISMATCHED = {
    "longer first axis": lambda t: torch.cat([t, t[:1]]),
    "longer last axis": lambda t: torch.cat([t, t[..., :1]], -1),
    "other dtype": lambda t: t.double() if t.dtype == torch.float32 else t.float(),
}


@pytest.fixture(params=SPOILED.values(), ids=SPOILED.keys())
def spoil(request):
    """A map to a tensor that is bad by itself: the error begins with the argument's name."""
    return request.param


@pytest.fixture(params=MISMATCHED.values(), ids=MISMATCHED.keys())
def mismatch(request):
    """A map to a tensor that disagrees with the other arguments: the error names it."""
    return request.param


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Build the book from nothing, warnings as errors, every reference checked.

    Workers of one run share it: the first that asks builds, the others wait.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out, built = folder / "site", folder / "site-built"
    with FileLock(folder / "site.lock"):
        if not built.exists():
            program = Path(sys.executable).with_name("jupyter-book")
            command = [program, "build", ".", "-W", "-n", "--keep-going", "--path-output", out]
            root = Path(__file__).resolve().parent.parent
            result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
            built.touch()
    return out / "_build" / "html"


def pytest_terminal_summary(terminalreporter):
    """Say loudly when no browser looked at the pages."""
    skipped = terminalreporter.stats.get("skipped", [])
    unseen = sum("test_browser.py" in report.nodeid for report in skipped)
    if unseen:
        terminalreporter.write_line(
            f"NO BROWSER LOOKED AT THE BOOK: {unseen} tests were skipped. Install Chromium.",
            red=True,
            bold=True,
        )
