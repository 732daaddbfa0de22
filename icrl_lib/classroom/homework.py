"""Feedback on assignments: what was expected, what came, and a hint towards the idea.

A question holds a reference, random instances and the mistakes that students make. `check` prints
what a student sees while working; `accepts` is the same verdict for a grader, who draws instances
from another seed. Nothing here needs more than `icrl_lib`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from icrl_lib.checks import check_count, tell

Arguments = dict[str, Any]

ASSIGNMENTS = ("A1", "A2", "A3", "A4")
"""Each has a module ``icrl_lib.classroom.questions_a1`` and so on, with its questions by name."""

PUBLIC_SEED = 0
"""Seed of the instances that students see; graders use others."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question whose answer is a function.

    Parameters
    ----------
    reference : callable
        A correct answer.
    draw : callable
        Maps a ``torch.Generator`` and the number of the instance to the arguments, a dictionary.
    mistakes : mapping of str to callable
        Wrong answers that students are expected to give, by the hint that each deserves.
    outcome : callable, optional
        Maps an answer's result and the arguments to the tensors that are compared; by default the
        result itself. For weights it is what the block does with them, as they are not unique.
    tolerance : float
        Largest error in float64, relative to the largest entry expected.
    """

    reference: Callable[..., Any]
    draw: Callable[[torch.Generator, int], dict[str, Any]]
    mistakes: Mapping[str, Callable[..., Any]]
    outcome: Callable[[Any, dict[str, Any]], Any] = lambda result, _: result
    tolerance: float = 1e-9


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
    """

    value: float
    tolerance: float
    plausible: tuple[float, float]
    mistakes: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Choices:
    """A question whose answer says yes or no to several statements.

    Parameters
    ----------
    right : mapping of str to bool
        The statements and their answers. Students are told only whether they answered each.
    """

    right: Mapping[str, bool]
    mistakes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


AnyQuestion = Question | Number | Choices


def check(name: str, answer: Any) -> None:
    """Print whether an answer is right and, if it is not, what came instead and a hint.

    Of numbers and choices only the form is told; graders compare what they say.

    Parameters
    ----------
    name : str
        Name of the question.
    answer : callable or number
        The answer.
    """
    question = _question(name)
    if isinstance(question, Question):
        problem = _problem(question, answer, PUBLIC_SEED, instances=6)
    elif isinstance(question, Number):
        problem = _implausible(question, answer)
    else:
        problem = _unanswered(question, answer)
    if problem is not None:
        tell(f"✗ {name}: {problem}")
    elif isinstance(question, Question):
        tell(f"✓ {name}")
    elif isinstance(question, Number):
        tell(f"✓ {name}: plausible; its value is graded")
    else:
        tell(f"✓ {name}: complete; what it says is graded")


def accepts(name: str, answer: Any, *, seed: int, instances: int = 20) -> bool:
    """Tell whether an answer is right on instances drawn from a seed of the grader.

    Raises
    ------
    AssertionError
        With the reason as its message if the answer is wrong, or if the comparison itself no
        longer tells a known mistake from the reference: somebody has changed what it relies on.
    """
    check_count("seed", seed, at_least=0)
    check_count("instances", instances)
    question = _question(name)
    if isinstance(question, Question):
        known = question.mistakes.values()
        caught = [_problem(question, wrong, seed, instances, explain=False) for wrong in known]
        problem = _problem(question, answer, seed, instances)
    elif isinstance(question, Number):
        known = (question.value + 3 * question.tolerance, *question.mistakes.values())
        caught = [_wrong_number(question, wrong) for wrong in known]
        problem = _wrong_number(question, answer)
    else:
        caught = [_wrong_choice(question, {s: not yes for s, yes in question.right.items()})]
        problem = _wrong_choice(question, answer)
    assert None not in caught, "the comparison has been tampered with"
    assert problem is None, problem
    return True


def questions(assignment: str) -> Mapping[str, AnyQuestion]:
    """Return the questions of an assignment by name, "sarsa_update" of "A1" for example."""
    if assignment not in ASSIGNMENTS:
        raise ValueError(
            f"assignment: expected one of {', '.join(ASSIGNMENTS)}; got {assignment!r}"
        )
    return importlib.import_module(f"icrl_lib.classroom.questions_{assignment.lower()}").QUESTIONS


def _question(name: str) -> AnyQuestion:
    assignment, _, short = str(name).partition(".")
    known = questions(assignment)
    if short not in known:
        raise ValueError(f"name: expected one of {', '.join(known)} of {assignment}; got {name!r}")
    return known[short]


# --- what instances and mistakes are made of


def uniform(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw a tensor with entries uniform on (-1, 1)."""
    return torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator)


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def number(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def window(generator: torch.Generator, instance: int) -> Arguments:
    """Draw the arguments of a SARSA prompt; every third in float32, as answers have to follow."""
    dtype = torch.float32 if instance % 3 == 2 else torch.float64
    B, n, d = (integer(generator, 2, 5) for _ in range(3))
    return {
        "w": uniform(generator, B, d, dtype=dtype),
        "phi": uniform(generator, B, n, d, dtype=dtype),
        "phi_next": uniform(generator, B, n, d, dtype=dtype),
        "rewards": uniform(generator, B, n, dtype=dtype),
        "discount": number(generator, 0.3, 0.9),
    }


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


# --- the verdict


def _problem(
    question: Question, answer: Any, seed: int, instances: int, *, explain: bool = True
) -> str | None:
    """Return what is wrong with an answer, or None."""
    if not callable(answer):
        return f"expected a function, got {_words(answer)}"
    generator = torch.Generator().manual_seed(seed)
    for number in range(instances):
        arguments = question.draw(generator, number)
        expected = _tensors(question.outcome(question.reference(**arguments), arguments))
        given = {key: _copy(value) for key, value in arguments.items()}
        try:
            result = answer(**given)
        except Exception as error:  # whatever a student's function raises is feedback, not a crash
            name = type(error).__name__
            return f"your function raised {name}: {_short(error)}; {_sizes(arguments)}"
        changed = [key for key, value in arguments.items() if not _same(value, given[key])]
        if changed:
            return (
                f"your function changes its argument {changed[0]!r}; compute a new tensor instead"
            )
        try:
            came = _tensors(question.outcome(result, arguments))
        except Exception as error:
            return f"got {_words(result)}, which cannot be used: {_short(error)}"
        problem = _difference(expected, came, question.tolerance)
        if problem is not None:
            hint = _hint(question, arguments, came) if explain else ""
            return f"{problem}; {_sizes(arguments)}{hint}"
    return None


def _difference(expected: list[Tensor], came: list[Tensor] | None, tolerance: float) -> str | None:
    if came is None:
        return "expected a tensor, got something else; is there a `return`?"
    if len(came) != len(expected):
        return f"expected {len(expected)} tensors, got {len(came)}"
    for e, c in zip(expected, came, strict=True):
        if c.shape != e.shape:
            return f"expected shape {tuple(e.shape)}, got {tuple(c.shape)}"
        if c.dtype != e.dtype:
            return f"expected {e.dtype} as the arguments have, got {c.dtype}"
        largest = tolerance if e.dtype == torch.float64 else 1e-4
        error = (c - e).abs().max().item()
        if not error <= largest * max(1.0, e.abs().max().item()):
            index = int((c - e).abs().nan_to_num(math.inf).argmax())
            return (
                f"expected {e.flatten()[index].item():.6g}, got {c.flatten()[index].item():.6g} "
                f"where the two differ most"
            )
    return None


def _hint(question: Question, arguments: dict[str, Any], came: list[Tensor]) -> str:
    """Recognise a mistake by what it computes."""
    for hint, mistake in question.mistakes.items():
        try:
            wrong = _tensors(question.outcome(mistake(**arguments), arguments))
        except Exception:
            continue
        finite = ([t.nan_to_num() for t in tensors or []] for tensors in (wrong, came))
        if wrong is not None and _difference(*finite, question.tolerance) is None:
            return f" Hint: {hint}"
    return ""


def _implausible(question: Number, answer: Any) -> str | None:
    low, high = question.plausible
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return f"expected a number, got {_words(answer)}"
    if not low <= answer <= high:
        return f"expected a number between {low:g} and {high:g}, got {answer:g}"
    for hint, wrong in question.mistakes.items():
        if abs(answer - wrong) <= question.tolerance:
            return f"got {answer:g}. Hint: {hint}"
    return None


def _wrong_number(question: Number, answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return f"expected a number, got {_words(answer)}"
    if not abs(answer - question.value) <= question.tolerance:
        return f"got {answer:g}, which is not the value"
    return None


def _unanswered(question: Choices, answer: Any) -> str | None:
    if not isinstance(answer, dict):
        return f"expected a dictionary, got {_words(answer)}"
    for statement in question.right:
        if not isinstance(answer.get(statement), bool):
            return f"expected True or False for {statement!r}, got {answer.get(statement)!r}"
    return None


def _wrong_choice(question: Choices, answer: Any) -> str | None:
    problem = _unanswered(question, answer)
    wrong = [s for s, yes in question.right.items() if problem is None and answer[s] is not yes]
    return f"wrong about {', '.join(wrong)}" if wrong else problem


def _tensors(result: Any) -> list[Tensor] | None:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple | list) and result and all(isinstance(t, Tensor) for t in result):
        return list(result)
    return None


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and bool((one == other).all())
    return one == other


def _sizes(arguments: Arguments) -> str:
    parts = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            parts.append(f"{name} {tuple(value.shape)}")
        elif isinstance(value, int | float):
            parts.append(f"{name} = {value:g}")
    return f"arguments: {', '.join(parts)}."


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]
