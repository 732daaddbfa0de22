"""Questions and answers as plain data, so that they can cross the wall of a sandbox as JSON.

Tensors travel as dtype, shape and numbers. What comes back is never executed, unpickled or trusted:
it is numbers, truth values, and words about everything else.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl_lib.classroom import given

Plain = Any
"""What JSON can hold."""

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8",
          "bool")  # fmt: skip
LARGEST = 10**5
"""Entries of the largest tensor that is sent."""
MOST_AXES = 8
"""Axes of a tensor that is sent."""
LONGEST = 64
"""Entries of the longest list or dictionary that is sent."""


class Array(NamedTuple):
    """A tensor that was sent.

    Attributes
    ----------
    values : Tensor
        Its numbers, in float64 whatever they were.
    dtype : str
        What they were, "float32" for example.
    """

    values: Tensor
    dtype: str


class Words(str):
    """What is said of a value that is no answer, "a str" for example."""


def packed(value: Any, depth: int = 0) -> Plain:
    """Return a value as plain data; of what cannot be an answer only its type is told.

    Numbers may come as those of Python, NumPy, `fractions` or `decimal`, or as a tensor.
    """
    if isinstance(value, Tensor):
        return _packed_tensor(value)
    if value is None:
        return {"words": "nothing (None)"}
    if isinstance(value, str | bytes):
        return {"words": f"a {type(value).__name__}"}
    if isinstance(value, bool | float):
        return value
    if depth < 2 and isinstance(value, Mapping) and len(value) <= LONGEST:
        return {"entries": {str(key): packed(item, depth + 1) for key, item in value.items()}}
    if depth < 2 and isinstance(value, tuple | list) and len(value) <= LONGEST:
        return {"items": [packed(item, depth + 1) for item in value]}
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        return packed(value.item(), depth + 1)
    if isinstance(value, complex) or callable(value):
        return {"words": f"a {type(value).__name__}"}
    try:
        number = float(value)
    except (TypeError, ValueError):
        return {"words": f"a {type(value).__name__}"}
    except OverflowError:
        return {"words": "a number that is too large"}
    return int(value) if number == int(number) and abs(number) < 2**53 else number


def _packed_tensor(value: Tensor) -> Plain:
    dtype = str(value.dtype).removeprefix("torch.")
    plain = value.layout == torch.strided and dtype in DTYPES
    if not plain or value.numel() > LARGEST or value.ndim > MOST_AXES:
        kind = "sparse" if value.layout != torch.strided else dtype
        return {"words": f"a {kind} tensor of shape {tuple(value.shape)}"}
    numbers = value.detach().cpu().to(torch.float64).flatten().tolist()
    return {"dtype": dtype, "shape": list(value.shape), "values": numbers}


def unpacked(plain: Plain, depth: int = 0) -> Any:
    """Return what was sent: a number, a truth value, an `Array`, `Words`, a list or a dictionary.

    Raises
    ------
    ValueError
        If it is none of these, or larger than what `packed` sends.
    """
    if isinstance(plain, bool | float | int):
        return plain
    if isinstance(plain, dict) and depth <= 2:
        if isinstance(words := plain.get("words"), str):
            return Words(words[:200])
        items, entries = plain.get("items"), plain.get("entries")
        if isinstance(items, list) and len(items) <= LONGEST:
            return [unpacked(item, depth + 1) for item in items]
        if isinstance(entries, dict) and len(entries) <= LONGEST:
            return {key: unpacked(item, depth + 1) for key, item in entries.items()}
        if plain.get("dtype") in DTYPES:
            return _unpacked_array(plain["dtype"], plain.get("shape"), plain.get("values"))
    raise ValueError("plain: expected what `packed` returns")


def _unpacked_array(dtype: str, shape: Plain, values: Plain) -> Array:
    sizes = (
        isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(s) is int for s in shape)
    )
    numbers = isinstance(values, list) and len(values) <= LARGEST
    if not sizes or not numbers or any(type(v) not in (float, int) for v in values):
        raise ValueError("plain: expected a list of sizes and a list of numbers")
    if any(s < 0 for s in shape) or math.prod(shape) != len(values):
        raise ValueError(f"plain: expected as many numbers as shape {shape} has entries")
    return Array(torch.tensor(values, dtype=torch.float64).reshape(shape), dtype)


def arguments(instance: Plain) -> dict[str, Any]:
    """Return the arguments of one instance of a question: tensors in their dtype, and numbers."""
    found = {name: unpacked(value) for name, value in instance["arguments"].items()}
    return {
        name: value.values.to(getattr(torch, value.dtype)) if isinstance(value, Array) else value
        for name, value in found.items()
    }


def ask(asked: Plain, answer: Any) -> Plain:
    """Apply an answer to every instance of a question and return what came, as plain data.

    Parameters
    ----------
    asked : dict
        The question: its ``kind`` and, if that is "function", its ``instances``.
    answer : any
        What the student has defined. Functions are called with tensors of their own, which are sent
        back with the results: a grader sees whether they were changed. Results are packed after the
        last call, so that a function which keeps one buffer for all of them is found out.
    """
    if asked["kind"] != "function" or not callable(answer):
        return {"value": _packed_or_words(answer)}
    came = []
    for instance in asked["instances"]:
        own = arguments(instance)
        toys = given.TOYS.get(asked.get("toys", ""))
        names = toys(**own) if toys else own
        try:
            with torch.inference_mode(not asked.get("autograd", True)):
                came.append((_call(answer, names), None, own))
        except (Exception, SystemExit) as error:  # whatever an answer raises is feedback
            came.append((None, f"{type(error).__name__}: {_short(error)}", own))
    return {
        "records": [
            {
                "result": _packed_or_words(result),
                "error": error,
                "arguments": {name: _packed_or_words(value) for name, value in own.items()},
            }
            for result, error, own in came
        ]
    }


def _call(answer: Callable[..., Any], names: Mapping[str, Any]) -> Any:
    """Call a function by the names of its arguments or, if it has renamed them, by their order."""
    try:
        inspect.signature(answer).bind(**names)
    except TypeError:
        return answer(*names.values())
    return answer(**names)


def _packed_or_words(value: Any) -> Plain:
    try:
        return packed(value)
    except (Exception, SystemExit) as error:
        return {"words": f"a {type(value).__name__} that cannot be read ({_short(error)})"}


def _short(error: BaseException) -> str:
    try:
        return re.sub(r"\s+", " ", str(error))[:200]
    except Exception:
        return "an error without words"


def floats(plain: Sequence[Plain]) -> list[Tensor]:
    """Return the float64 tensors of a list of packed ones."""
    return [unpacked(item).values for item in plain]
