"""Input checks: what passes, what is refused, and what the refusal says."""

import math
import re

import numpy as np
import pytest
import torch

from icrl_lib.checks import check_count, check_generator, check_number, check_tensor, check_tensors

W = torch.zeros(2, 3)
PHI = torch.zeros(2, 5, 3)


def test_check_tensors_returns_the_size_of_every_axis():
    assert check_tensors(w=(W, "B d"), phi=(PHI, "B n d")) == {"B": 2, "d": 3, "n": 5}


def test_a_number_as_axis_stands_for_itself():
    assert check_tensors(w=(W, "2 d")) == {"2": 2, "d": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_pass(dtype):
    assert check_tensors(w=(W.to(dtype), "B d"), phi=(PHI.to(dtype), "B n d"))["n"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": ([1.0], "d")}, "w: expected a torch.Tensor, got list"),
        ({"w": (None, "d")}, "w: expected a torch.Tensor, got NoneType"),
        ({"w": (np.ones(3), "d")}, "w: expected a torch.Tensor, got ndarray"),
        ({"w": (W.long(), "B d")}, "w: expected float32 or float64, got dtype torch.int64"),
        ({"w": (W.bool(), "B d")}, "w: expected float32 or float64, got dtype torch.bool"),
        ({"w": (W.half(), "B d")}, "w: expected float32 or float64, got dtype torch.float16"),
        ({"w": (W.bfloat16(), "B d")}, "w: expected float32 or float64, got dtype torch.bfloat16"),
        ({"w": (W[:0], "B d")}, "w: expected a non-empty tensor, got shape (0, 3)"),
        ({"w": (W[0], "B d")}, "w: expected 2 axes (B, d), got shape (3,)"),
        ({"w": (W, "d")}, "w: expected 1 axes (d), got shape (2, 3)"),
        ({"w": (W, "2 4")}, "w: expected shape (2, 4) with 4 = 4, got (2, 3)"),
        (
            {"P": (W, "D D")},
            "P: expected shape (D, D) with D = 2 as in P, got (2, 3)",
        ),
        (
            {"w": (W, "B d"), "phi": (PHI[:1], "B n d")},
            "phi: expected shape (B, n, d) with B = 2 as in w, got (1, 5, 3)",
        ),
        (
            {"w": (W, "B d"), "phi": (PHI[..., :2], "B n d")},
            "phi: expected shape (B, n, d) with d = 3 as in w, got (2, 5, 2)",
        ),
        (
            {"w": (W, "B d"), "phi": (PHI.double(), "B n d")},
            "phi: expected the dtype of w, torch.float32; got torch.float64",
        ),
    ],
)
def test_check_tensors_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_tensors(**arguments)


@pytest.mark.parametrize(
    "numbers", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, 1.0], [math.inf, -math.inf]]
)
def test_numbers_that_are_not_finite_are_refused(numbers):
    with pytest.raises(ValueError, match=r"^x: expected finite numbers, got NaN or infinity$"):
        check_tensor("x", torch.tensor(numbers))


def test_finite_numbers_whose_sum_overflows_pass():
    check_tensor("x", torch.full((4,), 3e38))


def test_a_tensor_that_requires_a_gradient_passes():
    check_tensor("x", torch.ones(2, requires_grad=True))


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0, {"at_least": 0}),
        (1e-300, {"above": 0}),
        (1, {"at_most": 1}),
        (0.999, {"less_than": 1}),
        (-2.5, {"nonzero": True}),
        (-1e300, {}),
        (np.float32(0.5), {"above": 0, "less_than": 1}),
        (np.int64(2), {"at_least": 2, "at_most": 2}),
    ],
)
def test_numbers_within_bounds_pass(value, bounds):
    check_number("x", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (-1e-9, {"at_least": 0}, "a number at least 0, got -1e-09"),
        (0, {"above": 0}, "a number above 0, got 0"),
        (1.5, {"at_most": 1}, "a number at most 1, got 1.5"),
        (1.0, {"less_than": 1}, "a number less than 1, got 1.0"),
        (0.0, {"nonzero": True}, "a number other than 0, got 0.0"),
        (math.nan, {}, "a finite number, got nan"),
        (math.inf, {}, "a finite number, got inf"),
        (True, {}, "a finite number, got True"),
        (None, {}, "a finite number, got None"),
        ("1", {}, "a finite number, got '1'"),
        (1j, {}, "a finite number, got 1j"),
        (torch.tensor(1.0), {}, "a finite number, got tensor(1.)"),
    ],
)
def test_check_number_says_what_is_wrong(value, bounds, words):
    with pytest.raises(ValueError, match=f"^x: expected {re.escape(words)}$"):
        check_number("x", value, **bounds)


@pytest.mark.parametrize(("value", "at_least"), [(1, 1), (0, 0), (np.int64(7), 5)])
def test_counts_pass(value, at_least):
    check_count("n", value, at_least)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "2", math.nan, torch.tensor(2)])
def test_check_count_refuses(value):
    message = f"n: expected an integer of at least 1, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_count("n", value)


def test_check_count_refuses_below_its_own_bound():
    with pytest.raises(ValueError, match=r"^n: expected an integer of at least 3, got 2$"):
        check_count("n", 2, at_least=3)


def test_a_generator_passes(generator):
    check_generator(generator)


@pytest.mark.parametrize("value", [None, 0, torch, torch.Generator])
def test_check_generator_refuses(value):
    with pytest.raises(ValueError, match=r"^generator: expected a torch\.Generator, got "):
        check_generator(value)
