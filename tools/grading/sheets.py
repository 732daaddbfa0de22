"""Questions with their references, and the sheets of instances that are drawn from them.

A course has a name. From it follow the numbers of its questions, the order of its slots and its
hidden instances, so that the public copies of the answers do not answer them. The public course has
the empty name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from icrl_lib.classroom import exchange, homework
from icrl_lib.classroom.exchange import Plain

ASSIGNMENTS = ("A1", "A2", "A3", "A4")
"""Each has a module a1 and so on beside this one, with its questions by name."""

Arguments = dict[str, Any]
Draw = Callable[[torch.Generator, str, int], Arguments]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Course:
    """A course, or one student of it whose numbers are their own.

    Parameters
    ----------
    name : str
        The course; empty for the public one.
    student : str
        Identifier of a student with numbers of their own; empty for the whole course's.
    """

    name: str = ""
    student: str = ""

    def generator(self, label: str, *, student: bool = False) -> torch.Generator:
        """Return the generator of what `label` names, of the student's own if that is asked."""
        words = "\0".join([self.name, self.student if student else "", label])
        seed = int.from_bytes(hashlib.sha256(words.encode("utf-8", "replace")).digest()[:7], "big")
        return torch.Generator().manual_seed(seed)

    def choose(self, label: str, options: Sequence[T]) -> T:
        """Return the first option for the public course, for others one of all that follow it."""
        if not self.name:
            return options[0]
        return options[integer(self.generator(label), 1, len(options) - 1)]

    def numbers(self, label: str, public: T, draw: Callable[[torch.Generator], T]) -> T:
        """Return a question's numbers: the public ones, or those of the course or the student."""
        if not self.name and not self.student:
            return public
        return draw(self.generator(label, student=True))


PUBLIC_COURSE = Course()
"""The course whose assignments stand beside the book."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question whose answer is a function.

    Parameters
    ----------
    reference : callable
        A correct answer.
    draw : callable
        Maps a ``torch.Generator``, an aspect of `homework.ASPECTS` and the number of the instance
        to the arguments, a dictionary.
    mistakes : mapping of str to callable
        Wrong answers that students are expected to give, by the hint that each deserves.
    points : mapping of str to float
        Points by aspect.
    edges : int
        Number of instances of unusual size.
    outcome : str
        What is compared, a key of `homework.OUTCOMES`.
    probe : callable, optional
        Maps the arguments to what the outcome needs beside the result.
    scaled : bool
        Whether every instance is asked twice, with c = 1 and with its own c.
    toys : str
        The key of `given.TOYS` that makes functions of the arguments.
    autograd : bool
        Whether an answer may differentiate automatically.
    tolerance : float
        Largest error in float64, relative to the largest entry expected. A power of a float with
        integer exponents is float32 in PyTorch, and right.
    """

    reference: Callable[..., Any]
    draw: Draw
    mistakes: Mapping[str, Callable[..., Any]]
    points: Mapping[str, float]
    edges: int = 0
    outcome: str = "tensors"
    probe: Callable[[Arguments], Plain] | None = None
    scaled: bool = False
    toys: str = ""
    autograd: bool = True
    tolerance: float = 1e-6


@dataclasses.dataclass(frozen=True)
class Number:
    """A question whose answer is a number.

    Parameters
    ----------
    value : float
        The correct answer.
    tolerance : float
        Largest absolute error.
    plausible : tuple of (float, float)
        What students are told while they work: whether the answer lies between these.
    mistakes : mapping of str to float
        Wrong answers, by the hint that each deserves.
    points : mapping of str to float
        Points for the value.
    """

    value: float
    tolerance: float
    plausible: tuple[float, float]
    mistakes: Mapping[str, float]
    points: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"values": 2})


@dataclasses.dataclass(frozen=True)
class Choices:
    """A question whose answer says yes or no to several statements.

    Parameters
    ----------
    right : mapping of str to bool
        The statements and their answers. Students are told only whether they answered each.
    points : mapping of str to float
        Points for all of them.
    """

    right: Mapping[str, bool]
    points: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"values": 2})


AnyQuestion = Question | Number | Choices


@functools.lru_cache(maxsize=1024)
def questions(assignment: str, course: Course = PUBLIC_COURSE) -> Mapping[str, AnyQuestion]:
    """Return the questions of an assignment by name, "sarsa_update" of "A1" for example."""
    if assignment not in ASSIGNMENTS:
        known = ", ".join(ASSIGNMENTS)
        raise ValueError(f"assignment: expected one of {known}; got {assignment!r}")
    return importlib.import_module(f"grading.{assignment.lower()}").questions(course)


def text(assignment: str, course: Course) -> dict[str, str]:
    """Return what a master leaves open: numbers, symbols and code by name."""
    return importlib.import_module(f"grading.{assignment.lower()}").text(course)


def public_sheet(course: Course = PUBLIC_COURSE, *assignments: str) -> dict[str, Plain]:
    """Return what students check themselves with: no value of a number, no answer of a choice."""
    return {
        f"{assignment}.{name}": _asked(question, course.generator(f"public {name}"), hidden=False)
        for assignment in assignments or ASSIGNMENTS
        for name, question in questions(assignment, course).items()
    }


@functools.lru_cache(maxsize=64)
def hidden_sheet(assignment: str, course: Course = PUBLIC_COURSE) -> dict[str, Plain]:
    """Return what a grader asks and expects; students of a course differ in their numbers only."""
    shared = hidden_sheet(assignment, Course(course.name)) if course.student else {}
    return {
        name: shared[name]
        if name in shared and not isinstance(question, Number)
        else _asked(question, course.generator(f"hidden {assignment} {name}"), hidden=True)
        for name, question in questions(assignment, course).items()
    }


def _asked(question: AnyQuestion, generator: torch.Generator, *, hidden: bool) -> Plain:
    """Return one question as data."""
    common = {"points": dict(question.points)}
    if isinstance(question, Number):
        form = {"kind": "number", "tolerance": question.tolerance}
        known = {"plausible": list(question.plausible), "mistakes": dict(question.mistakes)}
        return common | form | known | ({"value": question.value} if hidden else {})
    if isinstance(question, Choices):
        form = {"kind": "choices", "statements": list(question.right)}
        return common | form | ({"right": dict(question.right)} if hidden else {})
    asked = common | {
        "kind": "function",
        "outcome": question.outcome,
        "tolerance": question.tolerance,
        "hints": list(question.mistakes),
        "instances": _instances(question, generator, hidden=hidden),
    }
    asked |= {"toys": question.toys} if question.toys else {}
    asked |= {} if question.autograd else {"autograd": False}
    answers = [question.reference, *question.mistakes.values()]
    expected, *mistakes = (_outcomes(asked, answer) for answer in answers)
    records = exchange.ask(asked, question.reference)["records"]
    for i, instance in enumerate(asked["instances"]):
        instance["expected"] = [_rounded(exchange.packed(tensor)) for tensor in expected[i]]
        traces = [None if m[i] is None else _rounded(homework.trace(m[i])) for m in mistakes]
        right = _rounded(homework.trace(expected[i]))
        instance["mistakes"] = [None if wrong == right else wrong for wrong in traces]
        if "dtype" in question.points:
            result = records[i]["result"]
            instance["dtypes"] = [item["dtype"] for item in result.get("items", [result])]
    return asked


def _instances(question: Question, generator: torch.Generator, *, hidden: bool) -> list[Plain]:
    counts = {"values": 8 if hidden else 3, "sizes": (2 if hidden else 1) * question.edges}
    counts["dtype"] = (5 if hidden else 2) if "dtype" in question.points else 0
    instances = []
    for aspect, count in counts.items():
        for number in range(count):
            own = question.draw(generator, aspect, number)
            for c in (1.0, own["c"]) if question.scaled else (None,):
                arguments = own if c is None else own | {"c": c}
                packed = {name: exchange.packed(value) for name, value in arguments.items()}
                instance = {"aspect": aspect, "arguments": packed}
                if question.probe is not None:
                    instance["probe"] = question.probe(own)
                if c not in (1.0, None):
                    instance["probe"] = instance["probe"] | {"scale": c}
                instances.append(instance)
    return instances


def _outcomes(asked: Plain, answer: Callable[..., Any]) -> list[list[Tensor] | None]:
    """Return what is compared, instance by instance; None where the answer fails."""
    outcomes, results = [], []
    for instance, record in zip(
        asked["instances"], exchange.ask(asked, answer)["records"], strict=True
    ):
        results.append(exchange.unpacked(record["result"]))
        try:
            outcomes.append(homework.OUTCOMES[asked["outcome"]](instance, results))
        except Exception:  # a mistake may be no answer at all in some sizes
            outcomes.append(None)
    return outcomes


def _rounded(plain: Plain) -> Plain:
    """Round to ten digits: what is stored has to be the same on every machine."""
    if isinstance(plain, float):
        return float(f"{plain:.10g}") + 0.0
    if isinstance(plain, list):
        return [_rounded(item) for item in plain]
    if isinstance(plain, dict):
        return {key: _rounded(item) for key, item in plain.items()}
    return plain


# --- what instances are made of: numbers with few digits, exact in float32, too

GRID = 64


def uniform(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw a tensor with entries on a grid between -1 and 1."""
    return torch.randint(-GRID, GRID + 1, shape, generator=generator).to(dtype) / GRID


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def number(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a number on a grid between `low` and `high`."""
    return round(low * GRID + integer(generator, 0, int((high - low) * GRID))) / GRID


def probabilities(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw probabilities, on a grid, along the last axis."""
    draws = torch.randint(shape[-1], (*shape[:-1], GRID - shape[-1]), generator=generator)
    counts = torch.nn.functional.one_hot(draws, shape[-1]).sum(-2) + 1
    return counts.to(dtype) / GRID


def sizes(generator: torch.Generator, aspect: str, index: int, **low: int) -> dict[str, int]:
    """Draw sizes that differ from each other or, for the aspect "sizes", the unusual ones.

    Those are: each in turn is 1, then all are 1, then all are equal.
    """
    names = list(low)
    drawn: dict[str, int] = {}
    for name in names:
        options = [low[name] + i for i in range(6) if low[name] + i not in drawn.values()]
        drawn[name] = options[integer(generator, 0, 2)]
    case = index % (len(names) + 2)
    if aspect == "sizes" and case < len(names):
        drawn[names[case]] = 1
    elif aspect == "sizes":
        drawn = dict.fromkeys(names, 1 if case == len(names) else 3)
    return drawn


def discount(generator: torch.Generator, aspect: str, index: int) -> float:
    """Draw gamma; among the unusual instances every second one is 0."""
    return 0.0 if aspect == "sizes" and index % 2 else number(generator, 0.3, 0.9)


def dtype_of(aspect: str, index: int) -> torch.dtype:
    """Return the dtype of an instance: float32 for the aspect "dtype", float64 otherwise."""
    return torch.float32 if aspect == "dtype" else torch.float64


# --- what references and mistakes are made of


def td_errors(w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Return the TD errors (B, n), with no check of the arguments."""
    return (
        rewards
        + discount * torch.einsum("bd,bnd->bn", w, phi_next)
        - torch.einsum("bd,bnd->bn", w, phi)
    )


def push(numbers: Tensor, vectors: Tensor) -> Tensor:
    """Average number times vector over a window: (B, n) and (B, n, d) -> (B, d)."""
    return torch.einsum("bn,bnd->bd", numbers, vectors) / numbers.shape[1]
