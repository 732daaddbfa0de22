"""Assignment 3, actor-critic: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grading.a1 import Order
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
    probabilities,
    push,
    sizes,
    td_errors,
    uniform,
)
from icrl_lib import policies, teachers
from icrl_lib.classroom import exchange

DOUBLE = torch.float64

QUESTIONS: dict[str, AnyQuestion] = {}
"""The questions that are the same in every course."""


def _preferences(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw features and parameters; every second time so large that exp overflows.

    Of those every second time all actions have a large preference in common, which leaves single
    precision no digits for what they differ in.
    """
    B, S, A, m = sizes(generator, aspect, index, B=2, S=3, A=3, m=4).values()
    phi = uniform(generator, B, S, A, m, dtype=DOUBLE)
    lam = (4000.0 if index % 4 == 1 else 2.0) * uniform(generator, B, m, dtype=DOUBLE)
    if index % 4 == 3:
        phi[..., 0], lam[:, 0] = 1, 2.0**26
    return {"phi": phi, "lam": lam}


def softmax_policy(phi: Tensor, lam: Tensor) -> Tensor:
    """Return the softmax policy (B, S, A) of features (B, S, A, m) and parameters (B, m)."""
    return policies.softmax_policy(torch.einsum("bsam,bm->bsa", phi, lam))


def _plain_softmax(phi: Tensor, lam: Tensor) -> Tensor:
    weights = torch.einsum("bsam,bm->bsa", phi, lam).exp()
    return weights / weights.sum(-1, keepdim=True)


QUESTIONS["softmax_policy"] = Question(
    reference=softmax_policy,
    draw=_preferences,
    points={"values": 1, "sizes": 0.5, "arguments": 0.5},
    edges=6,
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


def _policies(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    phi = _preferences(generator, aspect, index)["phi"]
    return {"phi": phi, "policy": probabilities(generator, *phi.shape[:-1], dtype=DOUBLE)}


QUESTIONS["score"] = Question(
    reference=policies.softmax_score,
    draw=_policies,
    points={"values": 1, "sizes": 0.5, "arguments": 0.5},
    edges=6,
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


def window(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw the arguments of an actor-critic prompt."""
    dtype = dtype_of(aspect, index)
    B, n, d, m = sizes(generator, aspect, index, B=2, n=3, d=2, m=4).values()
    return {
        "lam": uniform(generator, B, m, dtype=dtype),
        "w": uniform(generator, B, d, dtype=dtype),
        "phi_v": uniform(generator, B, n, d, dtype=dtype),
        "phi_v_next": uniform(generator, B, n, d, dtype=dtype),
        "rewards": uniform(generator, B, n, dtype=dtype),
        "scores": uniform(generator, B, n, m, dtype=dtype),
        "discount": discount(generator, aspect, index),
    }


def _actor_critic_instance(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    steps = {"alpha": number(generator, 0.1, 0.4), "beta": number(generator, 0.5, 0.9)}
    return window(generator, aspect, index) | steps


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
    points={"values": 2, "sizes": 1, "dtype": 0.5, "arguments": 0.5},
    edges=6,
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


def _by_hand(
    phi: tuple[float, ...], r: tuple[float, ...], g: tuple[float, ...], gamma: float,
    alpha: float, beta: float, w: float,
) -> Number:  # fmt: skip
    """Return the question about two transitions; lambda is 0 and the state after them is 0."""

    def new(
        *, share: float = 0.5, power: int = 0, step: float = alpha, undiscounted: bool = False,
        one_by_one: bool = False,
    ) -> float:  # fmt: skip
        v, change = w, 0.0
        for i in range(2):
            delta = r[i] + gamma * v * (phi[1] if i == 0 else 0.0) - v * phi[i]
            change += step * share * (1 if undiscounted else gamma ** (i + power)) * delta * g[i]
            v = v + beta / 2 * delta * phi[i] if one_by_one else w
        return change

    return Number(
        value=new(),
        tolerance=1e-6,
        plausible=(-10, 10),
        mistakes={
            "the second transition is discounted once more.": new(undiscounted=True),
            "a mean over the two transitions.": new(share=1),
            "the first transition of a window has gamma^0.": new(power=1),
            "alpha is the actor's step size.": new(step=beta),
            "both errors use the old w.": new(one_by_one=True),
        },
    )


def _numbers(course: Course) -> tuple[Any, ...]:
    def draw(generator: torch.Generator) -> tuple[Any, ...]:
        small = [0.5, 1.0, 2.0, -1.0, -0.5, -2.0]
        while True:
            phi, r, g = (tuple(small[integer(generator, 0, 5)] for _ in "01") for _ in "prg")
            steps = 0.5, [0.2, 0.4][integer(generator, 0, 1)], [0.8, 0.6][integer(generator, 0, 1)]
            w = [1.0, 2.0][integer(generator, 0, 1)]
            question = _by_hand(phi, r, g, *steps, w)
            values = [0.0, question.value, *question.mistakes.values()]
            gaps = [abs(a - b) for a, b in itertools.combinations(values, 2)]
            if min(gaps) > 0.005 and max(map(abs, values)) < 9:
                return phi, r, g, *steps, w

    public = ((1.0, 2.0), (1.0, -1.0), (0.5, -1.0), 0.5, 0.2, 0.8, 1.0)
    return course.numbers("A3 by_hand", public, draw)


def order(course: Course) -> Order:
    """Return the order of the slots in this course; those of the book are nobody's."""
    public = ("g", "r", "next", "phi")
    others = [t for t in itertools.permutations(public) if t[0] != "phi" and t != public]
    tokens = [public, *others]
    columns = [("w", "lam", "1"), ("w", "lam", "1"), ("lam", "w", "1"), ("1", "w", "lam")]
    return Order(course.choose("A3 token", tokens), course.choose("A3 column", columns))


def prompt(
    lam: Tensor, w: Tensor, phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: float, *, slots: Order, undiscounted: bool = False,
) -> Tensor:  # fmt: skip
    """Return the prompt of assignment 3 in a course's order of the slots."""
    powers = (discount ** torch.arange(rewards.shape[1]).to(rewards)).unsqueeze(-1)
    token = {
        "g": scores if undiscounted else powers * scores,
        "r": rewards.unsqueeze(-1),
        "next": discount * phi_v_next,
        "phi": phi_v,
    }
    return slots.prompt(token, {"w": w, "lam": lam, "1": torch.ones_like(w[:, :1])})


def construction(
    d: int, m: int, alpha: float, beta: float, c: float, *, slots: Order, **change: float
) -> tuple[Tensor, Tensor]:
    """Return weights for the prompt of assignment 3 in float64, or with a block scaled."""
    size = 3 * d + 2 * m + 2
    P, V = torch.zeros(2, size, size, dtype=DOUBLE)
    rows = slots.rows(next=d, phi=d, w=d, g=m, lam=m)
    P[rows["r"], rows["1"]] = change.get("reward", 1) * c
    P[rows["next"], rows["w"]] = change.get("following", 1) * c * torch.eye(d, dtype=DOUBLE)
    P[rows["phi"], rows["w"]] = -c * torch.eye(d, dtype=DOUBLE)
    V[rows["lam"], rows["g"]] = change.get("change_lam", 1) * alpha / c * torch.eye(m, dtype=DOUBLE)
    V[rows["w"], rows["phi"]] = change.get("change_w", 1) * beta / c * torch.eye(d, dtype=DOUBLE)
    return P, V


def _weight_sizes(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    d, m = sizes(generator, aspect, index, d=2, m=4).values()
    return {
        "d": d,
        "m": m,
        "alpha": number(generator, 0.1, 0.4),
        "beta": number(generator, 0.5, 0.9),
        "c": number(generator, 0.5, 2.5) * (-1 if index % 2 else 1),
    }


def _toy_loop(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw what the toy parts of the closed loop are made of."""
    unusual = aspect == "sizes"
    m, d = sizes(generator, "values", index, m=2, d=2).values()
    m = 1 if unusual and index == 0 else m
    return {
        "mix": uniform(generator, m, m, dtype=DOUBLE),
        "lam": uniform(generator, m, dtype=DOUBLE),
        "w": uniform(generator, 1 if unusual and index == 1 else d, dtype=DOUBLE),
        "state": integer(generator, 1, 6),
        "n_updates": (1 if unusual and index == 2 else integer(generator, 4, 6)),
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
    points={"values": 2, "sizes": 1},
    edges=3,
    toys="loop",
    mistakes={
        "every window goes on from the state in which the one before it ended.": _loop("resets"),
        "the agent acts by the newest lambda.": _loop("frozen"),
        "both lambda and w are updated.": _loop("actor only"),
        "the policy after the last update is kept, too.": _loop("last"),
        "the policy before the first update is kept, too.": _loop("first"),
    },
)


def questions(course: Course) -> dict[str, AnyQuestion]:
    """Return the questions of assignment 3 by name."""
    slots = order(course)
    names = list(QUESTIONS)
    found = {name: QUESTIONS[name] for name in names[:3]}
    found["by_hand"] = _by_hand(*_numbers(course))

    def laid_out(**z: Any) -> Tensor:
        return prompt(**z, slots=slots)

    def another(column: tuple[str, ...], token: tuple[str, ...] = slots.token) -> Callable:
        return lambda **z: prompt(**z, slots=Order(token, column))

    exchanged = {"w": "lam", "lam": "w"}
    found["prompt"] = Question(
        reference=lambda lam, w, phi_v, phi_v_next, rewards, scores, discount: laid_out(
            lam=lam,
            w=w,
            phi_v=phi_v,
            phi_v_next=phi_v_next,
            rewards=rewards,
            scores=scores,
            discount=discount,
        ),
        draw=window,
        points={"values": 1, "sizes": 0.5, "dtype": 0.25, "arguments": 0.25},
        edges=6,
        mistakes={
            "the score stands in the token discounted, gamma^i times g.": lambda **z: prompt(
                **z, slots=slots, undiscounted=True
            ),
            "the next features stand in the token discounted.": lambda discount, phi_v_next, **z: (
                laid_out(discount=discount, phi_v_next=phi_v_next / discount, **z)
            ),
            "which of w and lambda stands above the other in this assignment?": another(
                tuple(exchanged.get(slot, slot) for slot in slots.column)
            ),
            "the order of the slots is the one of this assignment, not that of the book.": another(
                slots.column, ("phi", "next", "r", "g")
            ),
            "the parameter column is the last one.": lambda **z: laid_out(**z).roll(1, -1),
            "one column a token: rows and columns are swapped.": lambda **z: laid_out(**z).mT,
        },
    )

    def probe(own: Arguments) -> Any:
        d, m = own["d"], own["m"]
        generator = torch.Generator().manual_seed(d + m)
        shapes = {"lam": (3, m), "w": (3, d), "phi_v": (3, 4, d), "phi_v_next": (3, 4, d)}
        shapes |= {"rewards": (3, 4), "scores": (3, 4, m)}
        given = {name: uniform(generator, *shape, dtype=DOUBLE) for name, shape in shapes.items()}
        H = laid_out(**given, discount=0.75)
        tokens = 2 * d + 1 + m
        rows = [slots.rows(next=d, phi=d, w=d, g=m, lam=m)[name] for name in ("w", "lam")]
        stretch = [min(r.start for r in rows), max(r.stop for r in rows)]
        return {"H": exchange.packed(H), "size": H.shape[1], "tokens": tokens, "rows": stretch}

    def weights(d: int, m: int, **z: float) -> tuple[Tensor, Tensor]:
        return construction(d, m, **z, slots=slots)

    found["construction"] = Question(
        reference=lambda d, m, alpha, beta, c: weights(d, m, alpha=alpha, beta=beta, c=c),
        draw=_weight_sizes,
        points={"values": 2, "sizes": 0.5, "dtype": 0.5},
        edges=4,
        outcome="block",
        probe=probe,
        scaled=True,
        mistakes={
            "your actor update has the right size but the opposite sign.": lambda **z: weights(
                **z, change_lam=-1
            ),
            "alpha is the actor's step size, beta the critic's.": lambda alpha, beta, **z: weights(
                alpha=beta, beta=alpha, **z
            ),
            "the critic is not updated: which slot has to be written to w?": lambda **z: weights(
                **z, change_w=0
            ),
            "the sign with which the next value enters the TD error.": lambda **z: weights(
                **z, following=-1
            ),
            "the reward has to meet the constant 1.": lambda **z: weights(**z, reward=0),
            "(P, V) has to become (c P, V / c): c does not enter as the question says.": (
                lambda c, **z: weights(c=1.0, **z)
            ),
        },
    )
    found["control"] = QUESTIONS["control"]
    return found


SYMBOLS = {
    "g": r"\gamma^i g_i",
    "r": r"r_{i+1}",
    "next": r"\gamma \phi_V(s_{i+1})",
    "phi": r"\phi_V(s_i)",
    "w": "w",
    "lam": r"\lambda",
    "1": "1",
}
CODE = {
    "g": "powers[:, None] * scores",
    "r": "rewards[..., None]",
    "next": "discount * phi_v_next",
    "phi": "phi_v",
    "w": "w",
    "lam": "lam",
    "1": "torch.ones_like(w[:, :1])",
}


def text(course: Course) -> dict[str, str]:
    """Return what a master's notebook says of its numbers and slots."""
    phi, r, g, gamma, alpha, beta, w = _numbers(course)
    slots = order(course)
    size = {"r": "1", "1": "1", "next": "d", "phi": "d", "w": "d", "g": "m", "lam": "m"}
    names = {"g": "score", "r": "reward", "next": "following", "phi": "current", "1": "one"}
    return {
        "token": r" \\ ".join(SYMBOLS[slot] for slot in slots.token),
        "column": r" \\ ".join(SYMBOLS[slot] for slot in slots.column),
        "slots": ", ".join(CODE[slot] for slot in slots.token),
        "parameters": ", ".join(CODE[slot] for slot in slots.column),
        "names": ", ".join(names.get(slot, slot) for slot in slots.token + slots.column),
        "sizes": ", ".join(size[slot] for slot in slots.token + slots.column),
        "gamma": f"{gamma:g}",
        "alpha": f"{alpha:g}",
        "beta": f"{beta:g}",
        "w": f"{w:g}",
        "first": " | ".join(f"{x:g}" for x in (phi[0], phi[1], r[0], g[0])),
        "second": " | ".join(f"{x:g}" for x in (phi[1], 0.0, r[1], g[1])),
        "new": f"{_by_hand(*_numbers(course)).value:.10g}",
    }
