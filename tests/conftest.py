"""Fixtures shared by the library tests: a seeded generator, and ways to spoil a tensor."""

import math

import pytest
import torch
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
