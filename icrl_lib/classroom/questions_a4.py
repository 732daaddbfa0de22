"""Assignment 4, design: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icrl_lib import attention, teachers
from icrl_lib.classroom.homework import (
    Arguments,
    Choices,
    Number,
    Question,
    integer,
    number,
    push,
    td_errors,
    uniform,
)

QUESTIONS: dict[str, Question | Number | Choices] = {}
"""The questions by name."""

DOUBLE = torch.float64


def apply_head(A: Tensor, B: Tensor, tokens: Tensor, parameters: Tensor) -> Tensor:
    """Return parameters + (1/n) sum_i (x_i^T A [1; parameters]) B x_i for tokens (N, n, k)."""
    return attention.reduced_update(tokens, parameters, A, B)


def _pair(generator: torch.Generator, instance: int) -> Arguments:
    k, p = integer(generator, 4, 6), integer(generator, 2, 3)
    return {
        "A": uniform(generator, k, 1 + p, dtype=DOUBLE),
        "B": uniform(generator, p, k, dtype=DOUBLE),
    }


def _what_is_read(result: Any, arguments: Arguments) -> list[Tensor]:
    """Return the block's output on a fixed prompt, with the entries that are read in place."""
    P, V = result
    k, q = arguments["A"].shape
    for name, matrix in (("P", P), ("V", V)):
        if not isinstance(matrix, Tensor) or matrix.shape != (k + q, k + q):
            raise ValueError(f"{name} has to be a tensor of shape ({k + q}, {k + q})")
    generator = torch.Generator().manual_seed(k)
    H = torch.zeros(3, k + q, 6, dtype=DOUBLE)
    H[:, :k, :-1] = uniform(generator, 3, k, 5, dtype=DOUBLE)
    H[:, k, -1] = 1
    H[:, k + 1 :, -1] = uniform(generator, 3, q - 1, dtype=DOUBLE)
    return [attention.linear_self_attention(H, P, V)[:, k + 1 :, -1]]


def _placed(first_row: int, first_column: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a placement of V21 that starts in another row or of P12 in another column."""

    def place(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        P, V = attention.join(A, B)
        return P.roll(first_column, 1), V.roll(first_row, 0)

    return place


QUESTIONS["place"] = Question(
    reference=lambda A, B: attention.join(A, B),
    draw=_pair,
    outcome=_what_is_read,
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


def _sarsa_sizes(generator: torch.Generator, instance: int) -> Arguments:
    return {"d": integer(generator, 2, 4), "alpha": number(generator, 0.1, 0.9)}


def _on_windows(result: Any, arguments: Arguments, k: int, p: int) -> Tensor:
    """Return what a head (A, B) does to fixed windows of random tokens."""
    A, B = result
    for name, matrix, shape in (("A", A, (k, 1 + p)), ("B", B, (p, k))):
        if not isinstance(matrix, Tensor) or matrix.shape != shape:
            raise ValueError(f"{name} has to be a tensor of shape {shape}")
    generator = torch.Generator().manual_seed(k + p)
    tokens = uniform(generator, 4, 5, k, dtype=DOUBLE)
    return apply_head(A.double(), B.double(), tokens, uniform(generator, 4, p, dtype=DOUBLE))


def _residual_outcome(result: Any, arguments: Arguments) -> Tensor:
    d = arguments["d"]
    return _on_windows(result, arguments, 2 * d + 1, d)


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
    outcome=_residual_outcome,
    tolerance=1e-6,
    mistakes={
        "this is SARSA: the vector has two terms.": _residual((1, 0)),
        "the vector is phi minus the discounted next features.": _residual((1, -1)),
        "your update has the right size but the opposite sign.": _residual((-1, -1)),
        "the signs with which the two values enter the TD error.": _residual((1, 1), -1),
        "the step size is missing.": lambda d, alpha: residual_head(d, 1.0),
    },
)


def _next_actions(generator: torch.Generator, instance: int) -> Arguments:
    dtype = torch.float32 if instance % 3 == 2 else DOUBLE
    N, n, A, d = (integer(generator, low, low + 1) for low in (2, 3, 3, 4))
    return {
        "phi": uniform(generator, N, n, d, dtype=dtype),
        "phi_next": uniform(generator, N, n, A, d, dtype=dtype),
        "probabilities": uniform(generator, N, n, A, dtype=dtype).softmax(-1),
        "rewards": uniform(generator, N, n, dtype=dtype),
        "discount": number(generator, 0.3, 0.9),
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


def _trace_window(generator: torch.Generator, instance: int) -> Arguments:
    given = _next_actions(generator, instance)
    return {
        "phi": given["phi"],
        "phi_next": given["phi_next"][:, :, 0],
        "rewards": given["rewards"],
        "discount": given["discount"],
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


def _centred_sizes(generator: torch.Generator, instance: int) -> Arguments:
    return _sarsa_sizes(generator, instance) | {"beta": number(generator, 0.05, 0.09)}


def _centred_outcome(result: Any, arguments: Arguments) -> Tensor:
    """Return what a head does to windows whose last slot is the constant 1."""
    A, B = result
    d = arguments["d"]
    for name, matrix, shape in (
        ("A", A, (2 * d + 2, 2 + d)),
        ("B", B, (1 + d, 2 * d + 2)),
    ):
        if not isinstance(matrix, Tensor) or matrix.shape != shape:
            raise ValueError(f"{name} has to be a tensor of shape {shape}")
    generator = torch.Generator().manual_seed(d)
    tokens = uniform(generator, 4, 5, 2 * d + 2, dtype=DOUBLE)
    tokens[..., -1] = 1
    return apply_head(A.double(), B.double(), tokens, uniform(generator, 4, 1 + d, dtype=DOUBLE))


QUESTIONS["centred_head"] = Question(
    reference=centred_head,
    draw=_centred_sizes,
    outcome=_centred_outcome,
    tolerance=1e-6,
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


def _nothing(generator: torch.Generator, instance: int) -> Arguments:
    return {}


def _counterexample(phi: float = 1.0, spread: float = 1.0, w: float = 1.0) -> Any:
    features = torch.zeros(1, 1, 2, 2, dtype=DOUBLE)
    features[..., 1, 1] = spread
    first = torch.tensor([[0.0, w]], dtype=DOUBLE)
    return first, phi * torch.ones(1, 1, 2, dtype=DOUBLE), features


def _how_far_from_affine(result: Any, _: Arguments) -> Tensor:
    """Return 1 if Q-learning violates f(w) + f(-w) = 2 f(0) by more than 0.1 in some entry."""
    w, phi, phi_next = result
    rewards = torch.zeros_like(phi[..., 0])

    def f(v: Tensor) -> Tensor:
        return teachers.q_learning_update(v, phi, phi_next, rewards, 0.9, 1.0)

    violation = (f(w) + f(-w) - 2 * f(torch.zeros_like(w))).abs().max()
    return (violation > 0.1).to(DOUBLE)


QUESTIONS["counterexample"] = Question(
    reference=_counterexample,
    draw=_nothing,
    outcome=_how_far_from_affine,
    mistakes={
        "does the violation survive: is the pair that is updated without features, is w zero, "
        "or do all next actions have the same value?": lambda: _counterexample(phi=0.0),
    },
)
