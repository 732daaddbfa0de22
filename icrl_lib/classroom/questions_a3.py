"""Assignment 3, actor-critic: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icrl_lib import attention, policies, teachers
from icrl_lib.classroom.homework import (
    Arguments,
    Number,
    Question,
    integer,
    number,
    push,
    td_errors,
    uniform,
)

QUESTIONS: dict[str, Question | Number] = {}
"""The questions by name."""

DOUBLE = torch.float64


def _preferences(generator: torch.Generator, instance: int) -> Arguments:
    """Draw features and parameters; every second time so large that exp overflows."""
    B, S, A, m = (integer(generator, low, low + 2) for low in (2, 3, 3, 4))
    size = 4000.0 if instance % 2 else 2.0
    return {
        "phi": uniform(generator, B, S, A, m, dtype=DOUBLE),
        "lam": size * uniform(generator, B, m, dtype=DOUBLE),
    }


def softmax_policy(phi: Tensor, lam: Tensor) -> Tensor:
    """Return the softmax policy (B, S, A) of features (B, S, A, m) and parameters (B, m)."""
    return policies.softmax_policy(torch.einsum("bsam,bm->bsa", phi, lam))


def _plain_softmax(phi: Tensor, lam: Tensor) -> Tensor:
    weights = torch.einsum("bsam,bm->bsa", phi, lam).exp()
    return weights / weights.sum(-1, keepdim=True)


QUESTIONS["softmax_policy"] = Question(
    reference=softmax_policy,
    draw=_preferences,
    mistakes={
        "the exponential of a large preference overflows; subtract the largest one first.": (
            _plain_softmax
        ),
        "the actions of one state share a probability of 1, not the states.": lambda phi, lam: (
            torch.einsum("bsam,bm->bsa", phi, lam).softmax(1)
        ),
        "a larger preference is a larger probability.": lambda phi, lam: softmax_policy(phi, -lam),
        "these are preferences, not probabilities.": lambda phi, lam: torch.einsum(
            "bsam,bm->bsa", phi, lam
        ),
        "this is greedy; softmax is not.": lambda phi, lam: torch.nn.functional.one_hot(
            torch.einsum("bsam,bm->bsa", phi, lam).argmax(-1), phi.shape[2]
        ).to(phi),
    },
)


def _policies(generator: torch.Generator, instance: int) -> Arguments:
    phi = _preferences(generator, 0)["phi"]
    policy = uniform(generator, *phi.shape[:-1], dtype=DOUBLE).softmax(-1)
    return {"phi": phi, "policy": policy}


QUESTIONS["score"] = Question(
    reference=policies.softmax_score,
    draw=_policies,
    mistakes={
        "the mean over actions is missing.": lambda phi, policy: phi.clone(),
        "the opposite sign: features minus their mean.": lambda phi, policy: (
            -policies.softmax_score(phi, policy)
        ),
        "the mean is the one under the policy, not under the uniform one.": lambda phi, policy: (
            phi - phi.mean(2, keepdim=True)
        ),
        "this is the gradient of pi, not of log pi.": lambda phi, policy: (
            policy.unsqueeze(-1) * policies.softmax_score(phi, policy)
        ),
        "the mean is over the actions of one state, not over states.": lambda phi, policy: (
            phi - (policy.unsqueeze(-1) * phi).sum(1, keepdim=True)
        ),
    },
)


def window(generator: torch.Generator, instance: int) -> Arguments:
    """Draw the arguments of an actor-critic prompt; every third in float32."""
    dtype = torch.float32 if instance % 3 == 2 else DOUBLE
    B, n, d, m = (integer(generator, low, low + 2) for low in (2, 3, 2, 4))
    return {
        "lam": uniform(generator, B, m, dtype=dtype),
        "w": uniform(generator, B, d, dtype=dtype),
        "phi_v": uniform(generator, B, n, d, dtype=dtype),
        "phi_v_next": uniform(generator, B, n, d, dtype=dtype),
        "rewards": uniform(generator, B, n, dtype=dtype),
        "scores": uniform(generator, B, n, m, dtype=dtype),
        "discount": number(generator, 0.3, 0.9),
    }


def _actor_critic_instance(generator: torch.Generator, instance: int) -> Arguments:
    steps = {"alpha": number(generator, 0.1, 0.4), "beta": number(generator, 0.5, 0.9)}
    return window(generator, instance) | steps


def _update(
    lam: Tensor, w: Tensor, phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: float, alpha: float, beta: float, *, first: int = 0, decay: bool = True,
    new_w: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return eq. (3), or a version that goes wrong in one way."""
    delta = td_errors(w, phi_v, phi_v_next, rewards, discount)
    updated = w + beta * push(delta, phi_v)
    if new_w:
        delta = td_errors(updated, phi_v, phi_v_next, rewards, discount)
    index = torch.arange(rewards.shape[1]).to(rewards) + first
    return lam + alpha * push(discount**index * delta if decay else delta, scores), updated


QUESTIONS["actor_critic_update"] = Question(
    reference=teachers.actor_critic_update,
    draw=_actor_critic_instance,
    mistakes={
        "your actor update has the right size but the opposite sign.": lambda alpha, **z: _update(
            alpha=-alpha, **z
        ),
        "the actor's terms are discounted by gamma^i.": lambda **z: _update(**z, decay=False),
        "the first transition of a window has gamma^0.": lambda **z: _update(**z, first=1),
        "alpha is the actor's step size, beta the critic's.": lambda alpha, beta, **z: _update(
            alpha=beta, beta=alpha, **z
        ),
        "the actor uses the errors of the old w, too.": lambda **z: _update(**z, new_w=True),
        "first lambda, then w.": lambda **z: _update(**z)[::-1],
        "means over the window, not sums.": lambda alpha, beta, rewards, **z: _update(
            alpha=alpha * rewards.shape[1], beta=beta * rewards.shape[1], rewards=rewards, **z
        ),
    },
)

QUESTIONS["by_hand"] = Number(
    value=0.2,
    tolerance=1e-6,
    plausible=(-10, 10),
    mistakes={
        "the second transition is discounted once more.": 0.35,
        "a mean over the two transitions.": 0.4,
        "the first transition of a window has gamma^0.": 0.1,
        "alpha is the actor's step size.": 0.8,
        "both errors use the old w.": 0.24,
    },
)


def prompt(
    lam: Tensor, w: Tensor, phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: float,
) -> Tensor:  # fmt: skip
    """Return the prompt of assignment 3, [gamma^i g; r; gamma phi_V+; phi_V] and [0; w; lam; 1]."""
    n = rewards.shape[1]
    powers = (discount ** torch.arange(n).to(rewards)).unsqueeze(-1)
    tokens = torch.cat(
        [powers * scores, rewards.unsqueeze(-1), discount * phi_v_next, phi_v], -1
    ).mT
    column = torch.cat([w, lam, torch.ones_like(w[:, :1])], -1)
    H = tokens.new_zeros(len(w), tokens.shape[1] + column.shape[1], n + 1)
    H[:, : tokens.shape[1], :n] = tokens
    H[:, tokens.shape[1] :, n] = column
    return H


def _without_powers(discount: float, scores: Tensor, **z: Any) -> Tensor:
    powers = (discount ** torch.arange(scores.shape[1]).to(scores)).unsqueeze(-1)
    return prompt(discount=discount, scores=scores / powers, **z)


def _lambda_first(w: Tensor, **z: Any) -> Tensor:
    H = prompt(w=w, **z).clone()
    d, m = w.shape[1], z["lam"].shape[1]
    column = H[:, -1 - d - m :, -1].clone()
    H[:, -1 - d - m :, -1] = torch.cat([column[:, d:-1], column[:, :d], column[:, -1:]], -1)
    return H


QUESTIONS["prompt"] = Question(
    reference=prompt,
    draw=window,
    mistakes={
        "the score stands in the token discounted, gamma^i times g.": _without_powers,
        "the next features stand in the token discounted.": lambda discount, phi_v_next, **z: (
            prompt(discount=discount, phi_v_next=phi_v_next / discount, **z)
        ),
        "in this assignment w stands above lambda.": _lambda_first,
        "the parameter column is the last one.": lambda **z: prompt(**z).roll(1, -1),
        "one column a token: rows and columns are swapped.": lambda **z: prompt(**z).mT,
    },
)


def construction(d: int, m: int, alpha: float, beta: float, c: float) -> tuple[Tensor, Tensor]:
    """Return weights for the prompt of assignment 3, in float64."""
    size = 3 * d + 2 * m + 2
    P, V = torch.zeros(2, size, size, dtype=DOUBLE)
    score, following, current = (
        slice(0, m),
        slice(m + 1, m + 1 + d),
        slice(m + 1 + d, m + 1 + 2 * d),
    )
    w, lam = slice(m + 1 + 2 * d, m + 1 + 3 * d), slice(m + 1 + 3 * d, size - 1)
    P[m, -1] = c
    P[following, w] = c * torch.eye(d, dtype=DOUBLE)
    P[current, w] = -c * torch.eye(d, dtype=DOUBLE)
    V[lam, score] = alpha / c * torch.eye(m, dtype=DOUBLE)
    V[w, current] = beta / c * torch.eye(d, dtype=DOUBLE)
    return P, V


def _sizes(generator: torch.Generator, instance: int) -> Arguments:
    return {
        "d": integer(generator, 2, 4),
        "m": integer(generator, 5, 7),
        "alpha": number(generator, 0.1, 0.4),
        "beta": number(generator, 0.5, 0.9),
        "c": number(generator, 0.5, 3.0),
    }


def _what_weights_do(result: Any, arguments: Arguments) -> list[Tensor]:
    """Return what the block writes on a fixed window, and the two blocks that it reads."""
    P, V = result
    d, m = arguments["d"], arguments["m"]
    k, size = 2 * d + 1 + m, 3 * d + 2 * m + 2
    for name, matrix in (("P", P), ("V", V)):
        if not isinstance(matrix, Tensor) or matrix.shape != (size, size):
            raise ValueError(f"{name} has to be a tensor of shape ({size}, {size})")
    generator = torch.Generator().manual_seed(d + m)
    shapes = {"lam": (3, m), "w": (3, d), "phi_v": (3, 4, d), "phi_v_next": (3, 4, d)}
    shapes |= {"rewards": (3, 4), "scores": (3, 4, m)}
    given = {name: uniform(generator, *shape, dtype=DOUBLE) for name, shape in shapes.items()}
    H = prompt(**given, discount=0.7)
    updated = attention.linear_self_attention(H, P, V)[:, k:-1, -1]
    return [updated, P[:k, k:], V[k:-1, :k]]


def _scaled(d: int, m: int, *, rows: str, factor: float, **z: float) -> tuple[Tensor, Tensor]:
    """Return the construction with one of its blocks scaled."""
    P, V = construction(d, m, **z)
    P[m if rows == "reward" else slice(0, 0)] *= factor
    P[slice(m + 1, m + 1 + d) if rows == "following" else slice(0, 0)] *= factor
    V[slice(m + 1 + 3 * d, None) if rows == "lambda" else slice(0, 0)] *= factor
    V[slice(m + 1 + 2 * d, m + 1 + 3 * d) if rows == "w" else slice(0, 0)] *= factor
    return P, V


QUESTIONS["construction"] = Question(
    reference=construction,
    draw=_sizes,
    outcome=_what_weights_do,
    tolerance=1e-6,
    mistakes={
        "your actor update has the right size but the opposite sign.": lambda **z: _scaled(
            **z, rows="lambda", factor=-1
        ),
        "alpha is the actor's step size, beta the critic's.": lambda alpha, beta, **z: construction(
            alpha=beta, beta=alpha, **z
        ),
        "the critic is not updated: which slot has to be written to w?": lambda **z: _scaled(
            **z, rows="w", factor=0
        ),
        "the sign with which the next value enters the TD error.": lambda **z: _scaled(
            **z, rows="following", factor=-1
        ),
        "the reward has to meet the constant 1.": lambda **z: _scaled(**z, rows="reward", factor=0),
        "c multiplies P and divides V.": lambda c, **z: construction(c=1.0, **z),
    },
)


def _toy_loop(generator: torch.Generator, instance: int) -> Arguments:
    """Draw toy parts of the closed loop: pure functions whose results tell the order of calls."""
    m, d = integer(generator, 2, 4), integer(generator, 2, 4)
    mix = uniform(generator, m, m, dtype=DOUBLE)

    def policy(lam: Tensor) -> Tensor:
        return (mix @ lam).softmax(-1)

    def play(table: Tensor, state: int) -> tuple[Tensor, int]:
        window = torch.cos(table + state)
        return window, (3 * state + int(10 * window[0])) % 7

    def update(lam: Tensor, w: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        return lam + 0.3 * window * w.sum(), 0.8 * w + 0.1 * window.sum() + 0.1 * lam.sum()

    return {
        "policy": policy,
        "play": play,
        "update": update,
        "lam": uniform(generator, m, dtype=DOUBLE),
        "w": uniform(generator, d, dtype=DOUBLE),
        "state": integer(generator, 1, 6),
        "n_updates": integer(generator, 4, 6),
    }


def _loop(wrong: str = "") -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the closed loop, or a version of it that goes wrong in one way."""

    def run(
        policy: Callable, play: Callable, update: Callable, lam: Tensor, w: Tensor, state: int,
        n_updates: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        first_state, first_table = state, policy(lam)
        policies_kept = [first_table]
        for _ in range(n_updates):
            table = first_table if wrong == "frozen" else policy(lam)
            window, state = play(table, first_state if wrong == "resets" else state)
            new_lam, new_w = update(lam, w, window)
            lam = new_lam
            if wrong != "actor only":
                w = new_w
            policies_kept.append(policy(lam))
        kept = policies_kept[:-1] if wrong == "last" else policies_kept
        return torch.stack(kept[1:] if wrong == "first" else kept), w

    return run


QUESTIONS["control"] = Question(
    reference=_loop(),
    draw=_toy_loop,
    mistakes={
        "every window goes on from the state in which the one before it ended.": _loop("resets"),
        "the agent acts by the newest lambda.": _loop("frozen"),
        "both lambda and w are updated.": _loop("actor only"),
        "the policy after the last update is kept, too.": _loop("last"),
        "the policy before the first update is kept, too.": _loop("first"),
    },
)
