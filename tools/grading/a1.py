"""Assignment 1, SARSA: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grading.sheets import (
    AnyQuestion,
    Arguments,
    Course,
    Number,
    Question,
    discount,
    dtype_of,
    integer,
    number,
    push,
    sizes,
    td_errors,
    uniform,
)
from icrl_lib import teachers
from icrl_lib.classroom import exchange

DOUBLE = torch.float64
POINTS = {"values": 2, "sizes": 1, "dtype": 0.5, "arguments": 0.5}
HALF = {"values": 1, "sizes": 0.5, "dtype": 0.25, "arguments": 0.25}


class Order:
    """The order of the slots of a prompt, from top to bottom.

    Parameters
    ----------
    token, column : tuple of str
        Names of the slots of a token, and of those of the last column below it.
    """

    def __init__(self, token: tuple[str, ...], column: tuple[str, ...]) -> None:
        self.token, self.column = token, column

    def rows(self, **size: int) -> dict[str, slice]:
        """Return the rows of every slot; `size` holds the sizes of those with more than one."""
        starts = itertools.accumulate(
            (size.get(slot, 1) for slot in self.token + self.column), initial=0
        )
        return {
            slot: slice(start, start + size.get(slot, 1))
            for slot, start in zip(self.token + self.column, starts, strict=False)
        }

    def prompt(self, token: Mapping[str, Tensor], column: Mapping[str, Tensor]) -> Tensor:
        """Build H (B, D, n + 1) from token slots (B, n, size) and column slots (B, size)."""
        tokens = torch.cat([token[slot] for slot in self.token], -1).mT
        last = torch.cat([column[slot] for slot in self.column], -1)
        B, k, n = tokens.shape
        H = tokens.new_zeros(B, k + last.shape[1], n + 1)
        H[:, :k, :n], H[:, k:, n] = tokens, last
        return H


def order(course: Course) -> Order:
    """Return the order of the slots in this course; that of the book is nobody's."""
    public = ("r", "next", "phi")
    others = [t for t in itertools.permutations(public) if t[0] != "phi" and t != public]
    return Order(course.choose("A1 token", [public, *others]), ("w", "1"))


def prompt(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float, *, slots: Order
) -> Tensor:
    """Return the prompt of assignment 1 in a course's order of the slots."""
    token = {"r": rewards.unsqueeze(-1), "next": discount * phi_next, "phi": phi}
    return slots.prompt(token, {"w": w, "1": torch.ones_like(w[:, :1])})


def construction(
    d: int, alpha: float, c: float, *, slots: Order, **change: float
) -> tuple[Tensor, Tensor]:
    """Return (c P*, V* / c) in float64, or with some of its four blocks scaled."""
    P, V = torch.zeros(2, 3 * d + 2, 3 * d + 2, dtype=DOUBLE)
    rows = slots.rows(next=d, phi=d, w=d)
    identity = torch.eye(d, dtype=DOUBLE)
    P[rows["r"], rows["1"]] = change.get("reward", 1) * c
    P[rows["next"], rows["w"]] = change.get("following", 1) * c * identity
    P[rows["phi"], rows["w"]] = -change.get("current", 1) * c * identity
    V[rows["w"], rows["phi"]] = change.get("value", 1) * alpha / c * identity
    return P, V


def window(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw the arguments of a SARSA prompt."""
    B, n, d = sizes(generator, aspect, index, B=2, n=3, d=2).values()
    dtype = dtype_of(aspect, index)
    return {
        "w": uniform(generator, B, d, dtype=dtype),
        "phi": uniform(generator, B, n, d, dtype=dtype),
        "phi_next": uniform(generator, B, n, d, dtype=dtype),
        "rewards": uniform(generator, B, n, dtype=dtype),
        "discount": discount(generator, aspect, index),
    }


def with_step(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw the arguments of a SARSA update."""
    return {**window(generator, aspect, index), "alpha": number(generator, 0.1, 0.9)}


def _weight_sizes(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    d = 1 + index if aspect == "sizes" else integer(generator, 2, 4)
    c = number(generator, 0.5, 2.5) * (-1 if index % 2 else 1)
    return {"d": d, "alpha": number(generator, 0.1, 0.9), "c": c}


def _one_by_one(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float, alpha: float
) -> Tensor:
    """Update after every transition instead of once."""
    for i in range(phi.shape[1]):
        here = slice(i, i + 1)
        delta = td_errors(w, phi[:, here], phi_next[:, here], rewards[:, here], discount)
        w = w + alpha / phi.shape[1] * delta * phi[:, i]
    return w


def _by_hand(
    phi: tuple[float, ...], r: tuple[float, ...], w: float, gamma: float, alpha: float
) -> Number:
    """Return the question about two transitions, from phi[0] to phi[1] and from there to phi[2]."""

    def new(gamma: float = gamma, alpha: float = alpha, one_by_one: bool = False) -> float:
        v, change = w, 0.0
        for i in range(2):
            change += alpha / 2 * (r[i] + gamma * v * phi[i + 1] - v * phi[i]) * phi[i]
            v = w + change if one_by_one else w
        return w + change

    right = new()
    return Number(
        value=right,
        tolerance=1e-6,
        plausible=(-10, 10),
        mistakes={
            "the update is a mean over the two transitions, not their sum.": new(alpha=2 * alpha),
            "the next value is discounted.": new(gamma=1),
            "the sign of the step.": new(alpha=-alpha),
            "the second error uses the old w, too.": new(one_by_one=True),
        },
    )


def numbers(course: Course) -> dict[str, Any]:
    """Return the numbers of the questions by hand."""

    def draw(generator: torch.Generator) -> tuple[Any, ...]:
        small = [1.0, 2.0, 3.0, -1.0, -2.0]
        while True:
            phi = tuple(small[integer(generator, 0, 4)] for _ in range(3))
            r = tuple(small[integer(generator, 0, 4)] for _ in range(2))
            w = [1.0, 2.0, 3.0][integer(generator, 0, 2)]
            gamma = [0.5, 0.25][integer(generator, 0, 1)]
            alpha = [0.1, 0.2, 0.4][integer(generator, 0, 2)]
            question = _by_hand(phi, r, w, gamma, alpha)
            values = [question.value, w, *question.mistakes.values()]
            gaps = [abs(a - b) for a, b in itertools.combinations(values, 2)]
            if min(gaps) > 0.01 and max(map(abs, values)) < 9:
                return phi, r, w, gamma, alpha

    public = ((1.0, 2.0, -2.0), (1.0, 1.0), 2.0, 0.5, 0.2)
    d = course.numbers("A1 nonzero", 12, lambda generator: integer(generator, 5, 30))
    return {"by_hand": course.numbers("A1 by_hand", public, draw), "nonzero": d}


def questions(course: Course) -> dict[str, AnyQuestion]:
    """Return the questions of assignment 1 by name."""
    slots = order(course)
    found: dict[str, AnyQuestion] = {}
    found["sarsa_update"] = Question(
        reference=teachers.sarsa_update,
        draw=with_step,
        points=POINTS,
        edges=5,
        mistakes={
            "your update has the right size but the opposite sign.": lambda w, alpha, phi, **z: (
                w - alpha * push(td_errors(w, phi, **z), phi)
            ),
            "the next value is not discounted.": lambda w, alpha, phi, discount, **z: (
                w + alpha * push(td_errors(w, phi, discount=1, **z), phi)
            ),
            "your update is n times too large: a mean over the window, not a sum.": (
                lambda w, alpha, phi, **z: (
                    w + alpha * phi.shape[1] * push(td_errors(w, phi, **z), phi)
                )
            ),
            "which features does the error push along: those of the pair it is about, or the "
            "next?": lambda w, alpha, phi, phi_next, **z: (
                w + alpha * push(td_errors(w, phi, phi_next, **z), phi_next)
            ),
            "all errors of a window use the same old w.": _one_by_one,
            "this is the change of w; the new w is asked for.": lambda w, alpha, phi, **z: (
                alpha * push(td_errors(w, phi, **z), phi)
            ),
            "every member of the batch has its own window; you used the first one for all.": (
                lambda w, alpha, phi, **z: w + alpha * push(td_errors(w, phi, **z), phi)[:1]
            ),
        },
    )
    found["by_hand"] = _by_hand(*numbers(course)["by_hand"])

    def laid_out(**z: Any) -> Tensor:
        return prompt(**z, slots=slots)

    def constant_first(**z: Any) -> Tensor:
        return prompt(**z, slots=Order(slots.token, slots.column[::-1]))

    def book_order(**z: Any) -> Tensor:
        return prompt(**z, slots=Order(("phi", "next", "r"), slots.column))

    def parameters_everywhere(**z: Any) -> Tensor:
        H = laid_out(**z).clone()
        below = 2 * z["w"].shape[1] + 1
        H[:, below:] = H[:, below:, -1:]
        return H

    found["prompt"] = Question(
        reference=lambda w, phi, phi_next, rewards, discount: laid_out(
            w=w, phi=phi, phi_next=phi_next, rewards=rewards, discount=discount
        ),
        draw=window,
        points=POINTS,
        edges=5,
        mistakes={
            "the next features stand in the token discounted.": lambda discount, **z: laid_out(
                discount=1.0, **z
            ),
            "one column a token: rows and columns are swapped.": lambda **z: laid_out(**z).mT,
            "the parameter column is the last one.": lambda **z: laid_out(**z).roll(1, -1),
            "in this assignment the constant 1 stands below w.": constant_first,
            "the order of the slots is the one of this assignment, not that of the book.": (
                book_order
            ),
            "the parameters stand in one column only; below the tokens are zeros.": (
                parameters_everywhere
            ),
        },
    )

    def probe(own: Arguments) -> Any:
        d = own["d"]
        generator = torch.Generator().manual_seed(d)
        phi, phi_next = uniform(generator, 2, 3, 4, d, dtype=DOUBLE)
        H = laid_out(
            w=uniform(generator, 3, d, dtype=DOUBLE), phi=phi, phi_next=phi_next,
            rewards=uniform(generator, 3, 4, dtype=DOUBLE), discount=0.75,
        )  # fmt: skip
        rows = slots.rows(next=d, phi=d, w=d)["w"]
        return {"H": exchange.packed(H), "size": 3 * d + 2, "tokens": 2 * d + 1,
                "rows": [rows.start, rows.stop]}  # fmt: skip

    def weights(d: int, alpha: float, c: float, **change: float) -> tuple[Tensor, Tensor]:
        return construction(d, alpha, c, slots=slots, **change)

    found["construction"] = Question(
        reference=lambda d, alpha, c: weights(d, alpha, c),
        draw=_weight_sizes,
        points={"values": 2, "sizes": 1, "dtype": 1},
        edges=6,
        outcome="block",
        probe=probe,
        scaled=True,
        mistakes={
            "your block computes the update with the opposite sign.": lambda **z: weights(
                **z, value=-1
            ),
            "the step size is missing from V.": lambda alpha, **z: weights(alpha=1.0, **z),
            "c multiplies P and divides V.": lambda c, **z: weights(c=c, value=c**2, **z),
            "(P, V) has to become (c P, V / c): c does not enter as the question says.": (
                lambda c, **z: weights(c=1.0, **z)
            ),
            "what does the token's slot of phi meet in the TD error?": lambda **z: weights(
                **z, current=-1
            ),
            "the sign with which the next value enters the TD error.": lambda **z: weights(
                **z, following=-1
            ),
            "the reward is not read: it meets the constant 1, the last entry of the column.": (
                lambda **z: weights(**z, reward=0)
            ),
        },
    )
    found["nonzero"] = _nonzero(numbers(course)["nonzero"])
    found["what_it_computes"] = Question(
        reference=lambda w, phi, phi_next, rewards, discount, alpha: (
            w + alpha * push(td_errors(w, phi, phi_next, rewards, discount), discount * phi_next)
        ),
        draw=with_step,
        points=HALF,
        edges=5,
        mistakes={
            "that is what the weights should compute; these do something else.": (
                teachers.sarsa_update
            ),
            "the slot that V copies holds the discounted features.": (
                lambda w, alpha, phi, phi_next, **z: (
                    w + alpha * push(td_errors(w, phi, phi_next, **z), phi_next)
                )
            ),
            "the number is right, the vector is not: which slot does V copy?": (
                teachers.residual_gradient_update
            ),
            "the number is the TD error with its usual signs.": (
                lambda w, alpha, phi, phi_next, discount, **z: (
                    w
                    - alpha
                    * push(td_errors(w, phi, phi_next, discount=discount, **z), discount * phi_next)
                )
            ),
            "a mean over the window, as in the block.": (
                lambda w, alpha, phi, phi_next, discount, **z: (
                    w
                    + alpha
                    * phi.shape[1]
                    * push(td_errors(w, phi, phi_next, discount=discount, **z), discount * phi_next)
                )
            ),
        },
    )
    return found


def _nonzero(d: int) -> Number:
    return Number(
        value=3 * d + 1,
        tolerance=1e-6,
        plausible=(1, 2 * (3 * d + 2) ** 2),
        mistakes={
            "count the entry that reads the reward.": 3 * d,
            "P alone is not enough.": 2 * d + 1,
        },
    )


SYMBOLS = {"r": r"r_{i+1}", "next": r"\gamma \phi_i^+", "phi": r"\phi_i"}
CODE = {"r": "rewards[..., None]", "next": "discount * phi_next", "phi": "phi"}


def text(course: Course) -> dict[str, str]:
    """Return what a master's notebook says of its numbers and slots."""
    phi, r, w, gamma, alpha = numbers(course)["by_hand"]
    token = order(course).token
    size = {"r": "1", "next": "d", "phi": "d"}
    starts, total = [], []
    for slot in token:
        starts.append(" + ".join(total) or "0")
        total.append(size[slot])
    places = dict(zip(token, starts, strict=True))
    return {
        "token": r" \\ ".join(SYMBOLS[slot] for slot in token),
        "slots": ", ".join(CODE[slot] for slot in token),
        "starts": ", ".join(places[slot] for slot in ("r", "next", "phi")),
        "gamma": f"{gamma:g}",
        "alpha": f"{alpha:g}",
        "w": f"{w:g}",
        "first": f"from feature ${phi[0]:g}$ to feature ${phi[1]:g}$ with reward ${r[0]:g}$",
        "second": f"from feature ${phi[1]:g}$ to feature ${phi[2]:g}$ with reward ${r[1]:g}$",
        "new_w": f"{_by_hand(phi, r, w, gamma, alpha).value:.10g}",
        "d": f"{numbers(course)['nonzero']}",
        "count": f"{3 * numbers(course)['nonzero'] + 1}",
    }
