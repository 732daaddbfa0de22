"""Feedback on assignments: what was expected, what came, and a hint towards the idea.

Nothing here knows an answer. A *sheet* holds questions as plain data: instances, what is expected
on each, and the traces that known mistakes leave. `check` reads the sheet of public instances that
comes with the library; a grader makes another from references that students' installations do not
hold.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl_lib import teachers
from icrl_lib.checks import tell
from icrl_lib.classroom import exchange, given
from icrl_lib.classroom.exchange import Array, Plain, Words

ASPECTS = ("values", "sizes", "dtype", "arguments")
"""What an answer that is a function earns points for; without the values it earns nothing."""

# The sheet of the instances that students see; graders use others. No docstring: the reference
# would print where it lies.
PUBLIC = Path(__file__).with_name("public.sheet")


class Verdict(NamedTuple):
    """What is made of an answer.

    Attributes
    ----------
    passed : dict of str to bool
        By aspect, "values" for example; numbers and choices have that one only.
    said : tuple of str
        What is wrong, one sentence for each aspect that is missed.
    """

    passed: dict[str, bool]
    said: tuple[str, ...]


class Checks:
    """The checks of one sheet; ``Checks()`` are those of the public assignments.

    Parameters
    ----------
    packed : str, optional
        A course's own sheet as `pack` writes it.
    """

    def __init__(self, packed: str | None = None) -> None:
        self._packed = packed

    @functools.cached_property
    def sheet(self) -> Mapping[str, Plain]:
        """The questions by name, "A1.sarsa_update" for example."""
        packed = PUBLIC.read_text(encoding="ascii") if self._packed is None else self._packed
        return json.loads(zlib.decompress(base64.b64decode(packed)))

    def __call__(self, name: str, answer: Any) -> None:
        """Print whether an answer is right and, if it is not, what came instead and a hint.

        Of numbers and choices only the form is told; graders compare what they say.

        Parameters
        ----------
        name : str
            Name of the question.
        answer : callable, number or dict
            The answer.
        """
        if name not in self.sheet:
            known = ", ".join(self.sheet)
            raise ValueError(f"name: expected one of {known}; got {name!r}")
        asked = self.sheet[name]
        _, said = verdict(asked, exchange.ask(asked, answer))
        right = {
            "number": ": plausible; its value is graded",
            "choices": ": complete; what it says is graded",
        }
        tell(f"✗ {name}: {said[0]}" if said else f"✓ {name}{right.get(asked['kind'], '')}")


check = Checks()


def pack(sheet: Mapping[str, Plain]) -> str:
    """Return a sheet as text that a notebook can carry."""
    return base64.b64encode(zlib.compress(json.dumps(sheet).encode(), 9)).decode()


def accepts(name: str, answer: Any, aspect: str, sheet: str) -> bool:
    """Tell whether an answer earns the points of an aspect, for the tests of Gradescope's archive.

    Parameters
    ----------
    name : str
        Name of the question in the sheet.
    answer : callable, number or dict
        The answer; it is called here, in the process that also compares.
    aspect : str
        One of `ASPECTS`.
    sheet : str
        Path of a JSON file with the questions.

    Raises
    ------
    AssertionError
        With the reason as its message if it does not.
    """
    asked = json.loads(Path(sheet).read_text(encoding="utf-8"))[name]
    passed, said = verdict(asked, exchange.ask(asked, answer))
    if not passed[aspect]:
        raise AssertionError(said[0])
    return True


def verdict(asked: Plain, answered: Plain) -> Verdict:
    """Compare what came with what was expected; both are data, and no answer is called.

    Parameters
    ----------
    asked : dict
        A question of a sheet.
    answered : dict
        What `icrl_lib.classroom.exchange.ask` has returned, or anything else that claims to be so.
    """
    if asked["kind"] == "number":
        said = _wrong_number(asked, answered)
    elif asked["kind"] == "choices":
        said = _wrong_choice(asked, answered)
    else:
        return _function(asked, answered)
    return Verdict({"values": said is None}, () if said is None else (said,))


# --- answers that are functions


def _function(asked: Plain, answered: Plain) -> Verdict:
    instances, records = asked["instances"], answered.get("records")
    if not isinstance(records, list) or len(records) != len(instances):
        words = _words(_read(answered.get("value")))
        return Verdict(
            dict.fromkeys(asked["points"], False), (f"expected a function, got {words}",)
        )
    missed: dict[str, str] = {}
    results: list[Any] = []
    for instance, record in zip(instances, records, strict=True):
        results.append(_read(record.get("result")))
        for aspect, problem, hint in _problems(asked, instance, record, results):
            missed.setdefault(aspect, f"{problem}; {_sizes(instance)}{hint}")
    for aspect in list(missed):
        if aspect not in asked["points"]:  # a question may have no points for it alone
            missed.setdefault("values", missed.pop(aspect))
    passed = {a: not ({a, "values"} & missed.keys()) for a in asked["points"]}
    return Verdict(passed, tuple(missed[aspect] for aspect in ASPECTS if aspect in missed))


def _problems(
    asked: Plain, instance: Plain, record: Plain, results: list[Any]
) -> list[tuple[str, str, str]]:
    """Return what is wrong with the last result: aspect, problem and hint."""
    aspect = instance["aspect"]
    if record.get("error") is not None:
        return [(aspect, f"your function raised {str(record['error'])[:300]}", "")]
    found = []
    for name, value in instance["arguments"].items():
        if _text(record.get("arguments", {}).get(name)) != _text(value):
            message = f"your function changes its argument {name!r}; compute a new tensor instead"
            found.append(("arguments", message, ""))
            break
    came = _arrays(results[-1])
    dtypes = instance.get("dtypes")
    if came is None and asked["outcome"] != "number":
        words = _words(results[-1])
        return [(aspect, f"expected a tensor, got {words}; is there a `return`?", "")]
    if dtypes and came is not None and [array.dtype for array in came] != dtypes:
        if len(came) != len(dtypes):
            return [(aspect, f"expected {len(dtypes)} tensors, got {len(came)}", "")]
        wrong = next(i for i, array in enumerate(came) if array.dtype != dtypes[i])
        found.append(("dtype", f"expected {dtypes[wrong]}, got {came[wrong].dtype}", ""))
    try:
        outcome = OUTCOMES[asked["outcome"]](instance, results)
    except Exception as error:
        message = f"got {_words(results[-1])}, which cannot be used: {str(error)[:200]}"
        return [(aspect, message, "")]
    coarse = any(a.dtype in ("float32", "float16", "bfloat16") for a in came or [])
    tolerance = max(asked["tolerance"], 1e-4) if coarse else asked["tolerance"]
    problem = difference(exchange.floats(instance["expected"]), outcome, tolerance)
    if problem is not None:
        found.insert(0, (aspect, problem, _hint(asked, instance, outcome, tolerance)))
    return found


def difference(expected: list[Tensor], came: list[Tensor], tolerance: float) -> str | None:
    """Return in words where two lists of float64 tensors differ, or None."""
    if len(came) != len(expected):
        return f"expected {len(expected)} tensors, got {len(came)}"
    for e, c in zip(expected, came, strict=True):
        if c.shape != e.shape:
            return f"expected shape {tuple(e.shape)}, got {tuple(c.shape)}"
        error = (c - e).abs()
        if not error.max().item() <= tolerance * max(1.0, e.abs().max().item()):
            index = int(error.nan_to_num(math.inf).argmax())
            words = _apart(e.flatten()[index].item(), c.flatten()[index].item())
            return f"{words} where the two differ most"
    return None


def trace(outcome: list[Tensor]) -> Plain:
    """Return a few numbers that tell an outcome from others, without telling it."""
    return [
        [
            list(t.shape),
            (t.nan_to_num() * torch.cos(torch.arange(t.numel())).view_as(t)).sum().item(),
        ]
        for t in outcome
    ]


def _hint(asked: Plain, instance: Plain, outcome: list[Tensor], tolerance: float) -> str:
    """Recognise a mistake by what it computes."""
    came = trace(outcome)
    for hint, mistake in zip(asked["hints"], instance["mistakes"], strict=True):
        if mistake is None or [shape for shape, _ in mistake] != [shape for shape, _ in came]:
            continue
        pairs = [(x, y) for (_, x), (_, y) in zip(mistake, came, strict=True)]
        if all(abs(x - y) <= 10 * tolerance * max(1.0, abs(x)) for x, y in pairs):
            return f" Hint: {hint}"
    return ""


def _sizes(instance: Plain) -> str:
    parts = []
    for name, plain in instance["arguments"].items():
        value = exchange.unpacked(plain)
        shape = isinstance(value, Array)
        parts.append(f"{name} {tuple(value.values.shape)}" if shape else f"{name} = {value:g}")
    return f"arguments: {', '.join(parts)}."


# --- what is compared


def _tensors(instance: Plain, results: list[Any]) -> list[Tensor]:
    """Compare the result itself."""
    return [array.values for array in _arrays(results[-1]) or []]


def _number(instance: Plain, results: list[Any]) -> list[Tensor]:
    """Compare one number, however it is written."""
    value = _real(results[-1])
    if value is None:
        raise ValueError("a number is asked for")
    return [torch.tensor(value, dtype=torch.float64)]


def _block(instance: Plain, results: list[Any]) -> list[Tensor]:
    """Compare what a block with these weights does to a prompt, and how it scales with c."""
    probe = instance["probe"]
    H, size, tokens = exchange.floats([probe["H"]])[0], probe["size"], probe["tokens"]
    P, V = _matrices(results[-1], P=(size, size), V=(size, size))
    rows = slice(*probe["rows"])
    outcome = [(H + (V @ H) @ (H.mT @ P @ H) / (H.shape[2] - 1))[:, rows, -1]]
    if (scale := probe.get("scale")) is not None:  # against the result before, which had c = 1
        P1, V1 = _matrices(results[-2], P=(size, size), V=(size, size))
        outcome.append((P / scale - P1)[:tokens, tokens:])
        outcome.append((V * scale - V1)[rows, :tokens])
    return outcome


def _head(instance: Plain, results: list[Any]) -> list[Tensor]:
    """Compare what a head does to windows of random tokens."""
    tokens, parameters = exchange.floats(instance["probe"]["window"])
    k, p = tokens.shape[2], parameters.shape[1]
    A, B = _matrices(results[-1], A=(k, 1 + p), B=(p, k))
    return [given.apply_head(A, B, tokens, parameters)]


def _not_affine(instance: Plain, results: list[Any]) -> list[Tensor]:
    """Compare whether Q-learning violates f(w) + f(-w) = 2 f(0) by more than 0.1 in some entry."""
    w, phi, phi_next = (array.values for array in _arrays(results[-1]) or [])
    for name, tensor, axes in (("w", w, 2), ("phi", phi, 3), ("phi_next", phi_next, 4)):
        if tensor.ndim != axes or tensor.shape[0] != 1 or tensor.numel() > 10**4:
            raise ValueError(f"{name} has another shape than the question says")

    def f(v: Tensor) -> Tensor:
        return teachers.q_learning_update(v, phi, phi_next, torch.zeros_like(phi[..., 0]), 0.9, 1.0)

    violation = (f(w) + f(-w) - 2 * f(torch.zeros_like(w))).abs().max()
    return [(violation > 0.1).to(torch.float64)]


OUTCOMES: Mapping[str, Callable[[Plain, list[Any]], list[Tensor]]] = {
    "tensors": _tensors,
    "number": _number,
    "block": _block,
    "head": _head,
    "not affine": _not_affine,
}
"""What an instance compares, from the results so far."""


def _matrices(result: Any, **shapes: tuple[int, int]) -> list[Tensor]:
    arrays = _arrays(result)
    if arrays is None or len(arrays) != len(shapes):
        raise ValueError(f"{' and '.join(shapes)} are asked for")
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        if array.values.shape != shape:
            raise ValueError(f"{name} has to be a tensor of shape {shape}")
    return [array.values for array in arrays]


# --- answers that are numbers or choices


def _wrong_number(asked: Plain, answered: Plain) -> str | None:
    came = _read(answered.get("value"))
    value, (low, high) = _real(came), asked["plausible"]
    if value is None:
        return f"expected a number, got {_words(came)}"
    if "value" in asked and abs(value - asked["value"]) <= asked["tolerance"]:
        return None
    for hint, wrong in asked["mistakes"].items():
        if abs(value - wrong) <= asked["tolerance"]:
            return f"got {value:g}. Hint: {hint}"
    if not low <= value <= high:
        return f"expected a number between {low:g} and {high:g}, got {value:g}"
    return f"got {value:g}, which is not the value" if "value" in asked else None


def _wrong_choice(asked: Plain, answered: Plain) -> str | None:
    came = _read(answered.get("value"))
    if not isinstance(came, dict):
        return f"expected a dictionary, got {_words(came)}"
    for statement in asked["statements"]:
        if not isinstance(came.get(statement), bool):
            words = _words(came[statement]) if statement in came else "nothing"
            return f"expected True or False for {statement!r}, got {words}"
    wrong = [s for s, yes in asked.get("right", {}).items() if came[s] is not yes]
    return f"wrong about {', '.join(wrong)}" if wrong else None


# --- reading what came


def _read(plain: Plain) -> Any:
    try:
        return exchange.unpacked(plain)
    except Exception:
        return Words("something that cannot be read")


def _real(value: Any) -> float | None:
    if isinstance(value, Array) and value.values.numel() == 1 and value.dtype != "bool":
        return value.values.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _arrays(value: Any) -> list[Array] | None:
    if isinstance(value, Array):
        return [value]
    if isinstance(value, list) and value and all(isinstance(item, Array) for item in value):
        return value
    return None


def _words(value: Any) -> str:
    if isinstance(value, Words):
        return str(value)
    if isinstance(value, Array):
        return f"a tensor of shape {tuple(value.values.shape)}"
    return {list: "a list or tuple", dict: "a dict"}.get(type(value), f"a {type(value).__name__}")


def _text(plain: Plain) -> str:
    return json.dumps(plain, sort_keys=True, default=str)


def _apart(expected: float, came: float) -> str:
    """Print two numbers with as many digits as it takes to see that they differ."""
    for digits in range(6, 18):
        one, other = f"{expected:.{digits}g}", f"{came:.{digits}g}"
        if one != other:
            break
    return f"expected {one}, got {other}"
