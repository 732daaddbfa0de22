"""Claims: the line they print, and what they refuse."""

import io
import math
import re
import sys

import numpy as np
import pytest
import torch

from icrl_lib.book.claims import claim


@pytest.mark.parametrize(
    ("value", "bounds", "line"),
    [
        (1e-13, {"below": 1e-12}, "✓ Theorem 3.1: exact (below 1e-12)"),
        (0.9, {"above": 0.5}, "✓ Theorem 3.1: exact (above 0.5)"),
        (0.9, {"above": 0.5, "below": 1}, "✓ Theorem 3.1: exact (above 0.5 and below 1)"),
        (110, {"equals": 110}, "✓ Theorem 3.1: exact (exactly 110)"),
        (1.05, {"equals": 1, "tolerance": 0.1}, "✓ Theorem 3.1: exact (1 ± 0.1)"),
        (0.95, {"equals": 1, "tolerance": 0.1}, "✓ Theorem 3.1: exact (1 ± 0.1)"),
        (2, {"equals": 2, "tolerance": 0}, "✓ Theorem 3.1: exact (2 ± 0)"),
        (True, {}, "✓ Theorem 3.1: exact (true)"),
        (torch.tensor([True, True]), {}, "✓ Theorem 3.1: exact (true)"),
        (np.array([0.1, 0.2]), {"below": 0.3}, "✓ Theorem 3.1: exact (below 0.3)"),
        (torch.tensor([[3.0]]), {"above": 2}, "✓ Theorem 3.1: exact (above 2)"),
        (torch.ones(2, requires_grad=True), {"equals": 1}, "✓ Theorem 3.1: exact (exactly 1)"),
        ([1, 2, 3], {"below": 4}, "✓ Theorem 3.1: exact (below 4)"),
        (np.uint8(2), {"equals": -1, "tolerance": 3}, "✓ Theorem 3.1: exact (-1 ± 3)"),
        (torch.tensor(1, dtype=torch.bfloat16), {"equals": 1}, "✓ Theorem 3.1: exact (exactly 1)"),
    ],
)
def test_a_claim_that_holds_prints_one_line(capsys, value, bounds, line):
    claim("Theorem 3.1: exact", value, **bounds)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (1e-12, {"below": 1e-12}, "(below 1e-12), got 1e-12"),
        (0.5, {"above": 0.5}, "(above 0.5), got 0.5"),
        (1.0, {"above": 0.5, "below": 1}, "(above 0.5 and below 1), got 1.0"),
        (0.2, {"above": 0.5, "below": 1}, "(above 0.5 and below 1), got 0.2"),
        (111, {"equals": 110}, "(exactly 110), got 111"),
        (1.2, {"equals": 1, "tolerance": 0.1}, "(1 ± 0.1), got 1.2"),
        (0.8, {"equals": 1, "tolerance": 0.1}, "(1 ± 0.1), got 0.8"),
        (False, {}, "(true), got False"),
        (np.array([True, False]), {}, "(true), got values from False to True"),
        (math.nan, {"below": 1}, "(below 1), got nan"),
        (math.nan, {"above": 1}, "(above 1), got nan"),
        (math.nan, {"equals": 1}, "(exactly 1), got nan"),
        (math.nan, {"equals": 1, "tolerance": 5}, "(1 ± 5), got nan"),
        (np.array([0.1, 0.2, 0.3]), {"below": 0.3}, "(below 0.3), got values from 0.1 to 0.3"),
        (torch.tensor([1.0, 2.0]), {"equals": 1}, "(exactly 1), got values from 1.0 to 2.0"),
        (np.array([0.1, math.nan]), {"below": 1}, "(below 1), got values from nan to nan"),
        (np.int8(-128), {"equals": 127, "tolerance": 1}, "(127 ± 1), got -128"),
        (np.uint8(0), {"equals": 255, "tolerance": 1}, "(255 ± 1), got 0"),
        (np.uint16(0), {"equals": 2**16, "tolerance": 1}, "(65536 ± 1), got 0"),
        (torch.tensor(0, dtype=torch.uint8), {"equals": 255, "tolerance": 1}, "(255 ± 1), got 0"),
        (np.float32(0.1), {"equals": 0.1}, "(exactly 0.1), got 0.10000000149011612"),
        (np.float16(1), {"equals": 1.0004}, "(exactly 1.0004), got 1.0"),
        (True, {"equals": 1.5, "tolerance": 0.4}, "(1.5 ± 0.4), got True"),
    ],
)
def test_a_claim_that_fails_raises_and_prints_nothing(capsys, value, bounds, words):
    message = re.escape(f"claim fails: Measured: a number {words}")
    with pytest.raises(AssertionError, match=f"^{message}$"):
        claim("Measured: a number", value, **bounds)
    assert capsys.readouterr().out == ""


def test_signs_that_the_console_lacks_are_named(monkeypatch):
    """As on a Windows console: a claim that holds does not die of its tick."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    monkeypatch.setattr(sys, "stdout", console)
    claim("Theorem 3.1: γ is ½", 0.5, equals=0.5, tolerance=0)
    console.flush()
    named = "\\N{CHECK MARK} Theorem 3.1: \\N{GREEK SMALL LETTER GAMMA} is ½ (0.5 ± 0)\n"
    assert console.buffer.getvalue().decode("cp1252") == named


@pytest.mark.parametrize(
    "label", ["", "no source", "source:", "source: ", ": statement", "a: b\nc", "source:statement"]
)
def test_a_label_without_source_is_refused(label):
    with pytest.raises(ValueError, match=r"^label: expected one line 'source: statement', got "):
        claim(label, 1, below=2)


@pytest.mark.parametrize(
    ("value", "bounds", "name"),
    [
        (1, {"below": 2, "equals": 1}, "equals"),
        (1, {"above": 0, "equals": 1}, "equals"),
        (1, {"tolerance": 0.1}, "tolerance"),
        (1, {"below": 2, "tolerance": 0.1}, "tolerance"),
        (1, {"equals": 1, "tolerance": -0.1}, "tolerance"),
        (1, {"equals": 1, "tolerance": math.nan}, "tolerance"),
        (1, {"equals": 1, "tolerance": math.inf}, "tolerance"),
        (2**53 + 1, {"equals": 2**53}, "value"),
        (np.int64(-(2**63)), {"equals": 0, "tolerance": 1}, "value"),
        (1, {}, "value"),
        (0.5, {}, "value"),
        (torch.ones(2), {}, "value"),
        (np.array([]), {"below": 1}, "value"),
        (torch.zeros(0), {"below": 1}, "value"),
    ],
)
def test_bounds_that_do_not_say_one_thing_are_refused(capsys, value, bounds, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        claim("Measured: a number", value, **bounds)
    assert capsys.readouterr().out == ""
