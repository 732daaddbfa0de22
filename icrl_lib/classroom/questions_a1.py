"""Assignment 1, SARSA: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from icrl_lib import attention, teachers
from icrl_lib.classroom.homework import (
    Arguments,
    Number,
    Question,
    integer,
    number,
    push,
    td_errors,
    uniform,
    window,
)

QUESTIONS: dict[str, Question | Number] = {}
"""The questions by name."""


def _sarsa_instance(generator: torch.Generator, instance: int) -> Arguments:
    return {**window(generator, instance), "alpha": number(generator, 0.1, 0.9)}


def _one_by_one(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float, alpha: float
) -> Tensor:
    """Update after every transition instead of once."""
    for i in range(phi.shape[1]):
        here = slice(i, i + 1)
        delta = td_errors(w, phi[:, here], phi_next[:, here], rewards[:, here], discount)
        w = w + alpha / phi.shape[1] * delta * phi[:, i]
    return w


QUESTIONS["sarsa_update"] = Question(
    reference=teachers.sarsa_update,
    draw=_sarsa_instance,
    mistakes={
        "your update has the right size but the opposite sign.": lambda w, alpha, phi, **z: (
            w - alpha * push(td_errors(w, phi, **z), phi)
        ),
        "the next value is not discounted.": lambda w, alpha, phi, discount, **z: (
            w + alpha * push(td_errors(w, phi, discount=1, **z), phi)
        ),
        "your update is n times too large: a mean over the window, not a sum.": (
            lambda w, alpha, phi, **z: w + alpha * phi.shape[1] * push(td_errors(w, phi, **z), phi)
        ),
        "which features does the error push along: those of the pair it is about, or the next?": (
            lambda w, alpha, phi, phi_next, **z: (
                w + alpha * push(td_errors(w, phi, phi_next, **z), phi_next)
            )
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

QUESTIONS["by_hand"] = Number(
    value=1.1,
    tolerance=1e-6,
    plausible=(-10, 10),
    mistakes={
        "the update is a mean over the two transitions, not their sum.": 0.2,
        "the next value is discounted.": 0.9,
        "the sign of the step.": 2.9,
        "the second error uses the old w, too.": 1.04,
    },
)


def prompt(w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Return the prompt of assignment 1, token [r; gamma phi+; phi] and last column [0; w; 1]."""
    B, n, d = phi.shape
    H = w.new_zeros(B, 3 * d + 2, n + 1)
    H[:, 0, :n] = rewards
    H[:, 1 : d + 1, :n] = discount * phi_next.mT
    H[:, d + 1 : 2 * d + 1, :n] = phi.mT
    H[:, 2 * d + 1 : -1, n] = w
    H[:, -1, n] = 1
    return H


def _rolled(H: Tensor) -> Tensor:
    return H.roll(1, -1)


def _one_first(w: Tensor, **z: Any) -> Tensor:
    H = prompt(w, **z)
    d = w.shape[1]
    H[:, 2 * d + 1, -1], H[:, 2 * d + 2 :, -1] = 1, w
    return H


def _book_order(phi: Tensor, **z: Any) -> Tensor:
    d = phi.shape[-1]
    H = prompt(phi=phi, **z)
    return torch.cat([H[:, d + 1 : 2 * d + 1], H[:, 1 : d + 1], H[:, :1], H[:, 2 * d + 1 :]], 1)


def _parameters_everywhere(w: Tensor, **z: Any) -> Tensor:
    H = prompt(w, **z)
    d = w.shape[1]
    H[:, 2 * d + 1 :] = H[:, 2 * d + 1 :, -1:]
    return H


QUESTIONS["prompt"] = Question(
    reference=prompt,
    draw=window,
    mistakes={
        "the next features stand in the token discounted.": lambda discount, **z: prompt(
            discount=1.0, **z
        ),
        "one column a token: rows and columns are swapped.": lambda **z: prompt(**z).mT,
        "the parameter column is the last one.": lambda **z: _rolled(prompt(**z)),
        "in this assignment the constant 1 stands below w.": _one_first,
        "in this assignment the reward comes first, then the next features.": _book_order,
        "the parameters stand in one column only; below the tokens are zeros.": (
            _parameters_everywhere
        ),
    },
)


def construction(d: int, alpha: float, c: float) -> tuple[Tensor, Tensor]:
    """Return (c P*, V* / c) for the prompt of assignment 1, in float64."""
    P, V = torch.zeros(2, 3 * d + 2, 3 * d + 2, dtype=torch.float64)
    identity, first_w = torch.eye(d, dtype=torch.float64), 2 * d + 1
    P[0, -1] = c
    P[1 : d + 1, first_w:-1] = c * identity
    P[d + 1 : first_w, first_w:-1] = -c * identity
    V[first_w:-1, d + 1 : first_w] = alpha / c * identity
    return P, V


def _weights(d: int, alpha: float, c: float, **change: float) -> tuple[Tensor, Tensor]:
    """Return the construction with some of its four blocks scaled."""
    P, V = construction(d, alpha, c)
    P[0] *= change.get("reward", 1)
    P[1 : d + 1] *= change.get("following", 1)
    P[d + 1 :] *= change.get("current", 1)
    return P, V * change.get("value", 1)


def _construction_instance(generator: torch.Generator, instance: int) -> Arguments:
    return {
        "d": integer(generator, 1, 6) if instance else 2,
        "alpha": number(generator, 0.1, 0.9),
        "c": number(generator, 0.5, 3.0),
    }


def _what_weights_do(result: Any, arguments: Arguments) -> list[Tensor]:
    """Return what the block writes on a fixed window, and the two blocks that it reads."""
    P, V = result
    d = arguments["d"]
    k, size = 2 * d + 1, 3 * d + 2
    for name, matrix in (("P", P), ("V", V)):
        if not isinstance(matrix, Tensor) or matrix.shape != (size, size):
            raise ValueError(f"{name} has to be a tensor of shape ({size}, {size})")
    generator = torch.Generator().manual_seed(d)
    w = uniform(generator, 3, d, dtype=torch.float64)
    phi, phi_next = (uniform(generator, 3, 4, d, dtype=torch.float64) for _ in range(2))
    H = prompt(w, phi, phi_next, uniform(generator, 3, 4, dtype=torch.float64), 0.7)
    updated = attention.linear_self_attention(H, P, V)[:, k:-1, -1]
    return [updated, P[:k, k:], V[k:-1, :k]]


QUESTIONS["construction"] = Question(
    reference=construction,
    draw=_construction_instance,
    outcome=_what_weights_do,
    tolerance=1e-6,  # alpha times a float32 identity is right, too
    mistakes={
        "your block computes the update with the opposite sign.": lambda **z: _weights(
            **z, value=-1
        ),
        "the step size is missing from V.": lambda alpha, **z: construction(alpha=1.0, **z),
        "c multiplies P and divides V.": lambda c, **z: _weights(c=c, value=c**2, **z),
        "what does the token's third slot, phi, meet in the TD error?": lambda **z: _weights(
            **z, current=-1
        ),
        "the sign with which the next value enters the TD error.": lambda **z: _weights(
            **z, following=-1
        ),
        "the reward is not read: it meets the constant 1, the last entry of the column.": (
            lambda **z: _weights(**z, reward=0)
        ),
    },
)


def broken_construction(d: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the weights of assignment 1 in which a bug is to be found."""
    P, V = construction(d, alpha, 1.0)
    return P, V.roll(-d, 1)  # V copies the slot before the one it should


QUESTIONS["what_it_computes"] = Question(
    reference=lambda w, phi, phi_next, rewards, discount, alpha: (
        w + alpha * push(td_errors(w, phi, phi_next, rewards, discount), discount * phi_next)
    ),
    draw=_sarsa_instance,
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

QUESTIONS["nonzero"] = Number(
    value=37,
    tolerance=1e-6,
    plausible=(1, 2 * 38**2),
    mistakes={
        "count the entry that reads the reward.": 36,
        "P alone is not enough.": 25,
    },
)
