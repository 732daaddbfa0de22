"""Assignment 4, design: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grading.sheets import (
    AnyQuestion,
    Arguments,
    Choices,
    Course,
    Question,
    discount,
    dtype_of,
    integer,
    number,
    probabilities,
    push,
    sizes,
    td_errors,
    uniform,
)
from icrl_lib import attention
from icrl_lib.classroom import exchange

DOUBLE = torch.float64

QUESTIONS: dict[str, AnyQuestion] = {}
"""The questions by name; nothing in them differs from course to course but hidden instances."""


def _pair(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    k, p = sizes(generator, aspect, index, k=4, p=2).values()
    return {
        "A": uniform(generator, k, 1 + p, dtype=DOUBLE),
        "B": uniform(generator, p, k, dtype=DOUBLE),
    }


def _prompts(own: Arguments) -> Any:
    """Return prompts [x_i; 0] and [0; 1; p], whose output is compared in the rows of p."""
    k, q = own["A"].shape
    generator = torch.Generator().manual_seed(k)
    H = torch.zeros(3, k + q, 6, dtype=DOUBLE)
    H[:, :k, :-1] = uniform(generator, 3, k, 5, dtype=DOUBLE)
    H[:, k, -1] = 1
    H[:, k + 1 :, -1] = uniform(generator, 3, q - 1, dtype=DOUBLE)
    return {"H": exchange.packed(H), "size": k + q, "tokens": k, "rows": [k + 1, k + q]}


def _placed(first_row: int, first_column: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a placement of V21 that starts in another row or of P12 in another column."""

    def place(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        P, V = attention.join(A, B)
        return P.roll(first_column, 1), V.roll(first_row, 0)

    return place


QUESTIONS["place"] = Question(
    reference=lambda A, B: attention.join(A, B),
    draw=_pair,
    points={"values": 1, "sizes": 0.5, "dtype": 0.5},
    edges=4,
    outcome="block",
    probe=_prompts,
    mistakes={
        "the row of the constant 1 lies between the tokens' rows and those of the parameters.": (
            _placed(-1, 0)
        ),
        "A meets the parameter column, which lives in the last 1 + p rows of H.": _placed(0, -1),
        "your block writes nothing: A takes rows from the tokens, columns from the parameters, B "
        "the other way round.": (lambda A, B: attention.join(A, 0 * B)),
    },
)


def residual_head(d: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return A (2 d + 1, 1 + d) and B (d, 2 d + 1) of the residual gradient."""
    identity, zeros = torch.eye(d, dtype=DOUBLE), torch.zeros(d, 1, dtype=DOUBLE)
    A = torch.cat([torch.cat([zeros, zeros], 0), torch.cat([-identity, identity], 0)], 1)
    last = torch.zeros(1, 1 + d, dtype=DOUBLE)
    last[0, 0] = 1
    return torch.cat([A, last], 0), alpha * torch.cat([identity, -identity, zeros], 1)


def _sarsa_sizes(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    d = 1 + index if aspect == "sizes" else integer(generator, 2, 4)
    return {"d": d, "alpha": number(generator, 0.1, 0.9)}


def _windows(k: int, p: int, *, constant: bool = False) -> Any:
    """Return fixed windows of random tokens, the last slot 1 if that is asked, and parameters."""
    generator = torch.Generator().manual_seed(k + p)
    tokens = uniform(generator, 4, 5, k, dtype=DOUBLE)
    if constant:
        tokens[..., -1] = 1
    parameters = uniform(generator, 4, p, dtype=DOUBLE)
    return {"window": [exchange.packed(tokens), exchange.packed(parameters)]}


def _residual(signs: tuple[float, float], number_sign: float = 1.0) -> Callable[..., Any]:
    def head(d: int, alpha: float) -> tuple[Tensor, Tensor]:
        A, B = residual_head(d, alpha)
        B[:, :d] *= signs[0]
        B[:, d : 2 * d] *= signs[1]
        A[:-1] *= number_sign
        return A, B

    return head


QUESTIONS["residual_gradient"] = Question(
    reference=residual_head,
    draw=_sarsa_sizes,
    points={"values": 2, "sizes": 1},
    edges=5,
    outcome="head",
    probe=lambda own: _windows(2 * own["d"] + 1, own["d"]),
    mistakes={
        "this is SARSA: the vector has two terms.": _residual((1, 0)),
        "the vector is phi minus the discounted next features.": _residual((1, -1)),
        "your update has the right size but the opposite sign.": _residual((-1, -1)),
        "the signs with which the two values enter the TD error.": _residual((1, 1), -1),
        "the step size is missing.": lambda d, alpha: residual_head(d, 1.0),
    },
)


def _next_actions(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    dtype = dtype_of(aspect, index)
    N, n, A, d = sizes(generator, aspect, index, N=2, n=3, A=3, d=4).values()
    return {
        "phi": uniform(generator, N, n, d, dtype=dtype),
        "phi_next": uniform(generator, N, n, A, d, dtype=dtype),
        "probabilities": probabilities(generator, N, n, A, dtype=dtype),
        "rewards": uniform(generator, N, n, dtype=dtype),
        "discount": discount(generator, aspect, index),
    }


def expected_tokens(
    phi: Tensor, phi_next: Tensor, probabilities: Tensor, rewards: Tensor, discount: float
) -> Tensor:
    """Return [phi; gamma sum_b pi(b) phi_next(b); r], shape (N, n, 2 d + 1)."""
    average = torch.einsum("nia,niad->nid", probabilities, phi_next)
    return torch.cat([phi, discount * average, rewards.unsqueeze(-1)], -1)


def _greedy_tokens(phi_next: Tensor, probabilities: Tensor, **z: Any) -> Tensor:
    best = torch.nn.functional.one_hot(probabilities.argmax(-1), phi_next.shape[2])
    return expected_tokens(phi_next=phi_next, probabilities=best.to(phi_next), **z)


QUESTIONS["expected_tokens"] = Question(
    reference=expected_tokens,
    draw=_next_actions,
    points={"values": 1, "sizes": 0.5, "dtype": 0.25, "arguments": 0.25},
    edges=6,
    mistakes={
        "every action counts with its probability, not the likeliest alone.": _greedy_tokens,
        "every action counts with its probability, not all alike.": lambda probabilities, **z: (
            expected_tokens(
                probabilities=torch.full_like(probabilities, 1 / probabilities.shape[-1]), **z
            )
        ),
        "the next features stand in the token discounted.": lambda discount, **z: expected_tokens(
            discount=1.0, **z
        ),
        "SARSA's order of the slots: phi, next features, reward.": lambda **z: expected_tokens(
            **z
        ).flip(-1),
        "the features of the first action alone are not the average.": lambda probabilities, **z: (
            expected_tokens(
                probabilities=torch.eye(probabilities.shape[-1])[0]
                .expand_as(probabilities)
                .to(probabilities),
                **z,
            )
        ),
    },
)


def _trace_window(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    dtype = dtype_of(aspect, index)
    N, n, d = sizes(generator, aspect, index, N=2, n=4, d=3).values()
    return {
        "phi": uniform(generator, N, n, d, dtype=dtype),
        "phi_next": uniform(generator, N, n, d, dtype=dtype),
        "rewards": uniform(generator, N, n, dtype=dtype),
        "discount": discount(generator, aspect, index),
        "decay": number(generator, 0.3, 0.9),
    }


def trace_tokens(
    phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float, decay: float, *,
    start: int = 0, add: bool = True, factor: float | None = None,
) -> Tensor:  # fmt: skip
    """Return [phi; gamma phi+; r; z], or a version whose trace goes wrong in one way."""
    factor = discount * decay if factor is None else factor
    traces, trace = [], torch.zeros_like(phi[:, 0])
    for feature in phi.unbind(1):
        late = trace
        trace = factor * trace + feature if add else feature + 0 * trace
        traces.append(late if start else trace)
    slots = [phi, discount * phi_next, rewards.unsqueeze(-1), torch.stack(traces, 1)]
    return torch.cat(slots, -1)


QUESTIONS["trace_tokens"] = Question(
    reference=trace_tokens,
    draw=_trace_window,
    points={"values": 1.5, "sizes": 0.5, "dtype": 0.5, "arguments": 0.5},
    edges=5,
    mistakes={
        "a trace decays by gamma times lambda; gamma is missing.": lambda decay, **z: trace_tokens(
            decay=decay, factor=decay, **z
        ),
        "a trace decays by gamma times lambda; lambda is missing.": lambda discount, **z: (
            trace_tokens(discount=discount, factor=discount, **z)
        ),
        "the trace of transition i holds phi_i itself, too.": lambda **z: trace_tokens(
            start=1, **z
        ),
        "a trace remembers the pairs before, too.": lambda **z: trace_tokens(add=False, **z),
        "the next features stand in the token discounted.": lambda phi_next, discount, **z: (
            trace_tokens(phi_next=phi_next / discount, discount=discount, **z)
        ),
    },
)


def centred_sarsa(
    centre: Tensor, w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float,
    alpha: float, beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one step of reward-centred SARSA, the update that assignment 4 designs a head for.

    Parameters
    ----------
    centre : Tensor, shape (N, 1)
        The parameter c that is subtracted from the rewards.
    w, phi, phi_next, rewards, discount, alpha
        As in `icrl_lib.teachers.sarsa_update`.
    beta : float
        Step size of the centre.

    Returns
    -------
    centre, w : Tensor
        c + (beta / n) sum_i delta_i and w + (alpha / n) sum_i delta_i phi_i, where
        delta_i = r_{i+1} - c + gamma w^T phi_next_i - w^T phi_i.
    """
    delta = td_errors(w, phi, phi_next, rewards - centre, discount)
    return centre + beta * delta.mean(-1, keepdim=True), w + alpha * push(delta, phi)


def centred_head(
    d: int, alpha: float, beta: float, *, signs: tuple[float, ...] = (1, 1, 1, 1)
) -> tuple[Tensor, Tensor]:
    """Return A (2 d + 2, 2 + d) and B (1 + d, 2 d + 2) for tokens [phi; gamma phi+; r; 1]."""
    A, B = torch.zeros(2 * d + 2, 2 + d, dtype=DOUBLE), torch.zeros(1 + d, 2 * d + 2, dtype=DOUBLE)
    A[:d, 2:], A[d : 2 * d, 2:] = -torch.eye(d), signs[0] * torch.eye(d)
    A[2 * d, 0], A[2 * d + 1, 1] = 1, -signs[1]
    B[0, 2 * d + 1], B[1:, :d] = signs[2] * beta, signs[3] * alpha * torch.eye(d, dtype=DOUBLE)
    return A, B


def _centred_sizes(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    return _sarsa_sizes(generator, aspect, index) | {"beta": number(generator, 0.05, 0.09)}


QUESTIONS["centred_head"] = Question(
    reference=centred_head,
    draw=_centred_sizes,
    points={"values": 2, "sizes": 1},
    edges=5,
    outcome="head",
    probe=lambda own: _windows(2 * own["d"] + 2, 1 + own["d"], constant=True),
    mistakes={
        "the sign with which the next value enters the error.": lambda **z: centred_head(
            **z, signs=(-1, 1, 1, 1)
        ),
        "the centre is subtracted from the reward.": lambda **z: centred_head(
            **z, signs=(1, -1, 1, 1)
        ),
        "the centre never changes: which slot has to be written to it?": lambda **z: centred_head(
            **z, signs=(1, 1, 0, 1)
        ),
        "beta is the step size of the centre, alpha that of w.": lambda d, alpha, beta: (
            centred_head(d, beta, alpha)
        ),
        "the centre does not enter the error.": lambda **z: centred_head(**z, signs=(1, 0, 1, 1)),
    },
)

QUESTIONS["fits"] = Choices(
    right={
        "delta phi": True,
        "delta^2 phi": False,
        "sign(delta) phi": False,
        "(2 delta - r) phi": True,
        "r (phi - gamma phi+)": True,
        "delta w": False,
        "max(delta, 0) phi": False,
        "(w^T phi) phi": True,
    },
)


def _nothing(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    return {}


def counterexample(phi: float = 1.0, spread: float = 1.0, w: float = 1.0) -> Any:
    features = torch.zeros(1, 1, 2, 2, dtype=DOUBLE)
    features[..., 1, 1] = spread
    first = torch.tensor([[0.0, w]], dtype=DOUBLE)
    return first, phi * torch.ones(1, 1, 2, dtype=DOUBLE), features


QUESTIONS["counterexample"] = Question(
    reference=counterexample,
    draw=_nothing,
    points={"values": 2},
    outcome="not affine",
    mistakes={
        "does the violation survive: is the pair that is updated without features, is w zero, "
        "or do all next actions have the same value?": lambda: counterexample(phi=0.0),
    },
)


def questions(course: Course) -> dict[str, AnyQuestion]:
    """Return the questions of assignment 4 by name."""
    return QUESTIONS


def text(course: Course) -> dict[str, str]:
    """Return what a master's notebook says of its numbers: nothing here."""
    return {}
