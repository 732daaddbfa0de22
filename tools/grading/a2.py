"""Assignment 2, training: references, instances, and the mistakes that are worth a hint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grading.sheets import (
    AnyQuestion,
    Arguments,
    Course,
    Number,
    Question,
    integer,
    number,
    sizes,
    uniform,
)
from icrl_lib import constructions, flow
from icrl_lib.classroom.given import star

DOUBLE = torch.float64

QUESTIONS: dict[str, AnyQuestion] = {}
"""The questions that are the same in every course."""


def _sample(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw N windows, with blocks at which the loss is not zero.

    Every fourth time one coordinate is so far from its target that a difference of two losses has
    no digits left for the derivative by P12, to which that coordinate adds nothing.
    """
    N, n, k, p = sizes(generator, aspect, index, N=5, n=3, k=4, p=3).values()
    shapes = {
        "tokens": (N, n, k),
        "w": (N, p),
        "target": (N, p),
        "P12": (k, 1 + p),
        "V21": (p, k),
    }
    drawn = {name: uniform(generator, *shape, dtype=DOUBLE) for name, shape in shapes.items()}
    if index % 4 == 3 and p > 1:
        drawn["target"][:, 0] *= 2**24
        drawn["V21"][0] = 0
    return drawn


def _parts(tokens: Tensor, w: Tensor, target: Tensor, P12: Tensor, V21: Tensor) -> list[Tensor]:
    """Return w~, Sigma, Sigma P12 w~ and the residual of each window."""
    column = torch.cat([torch.ones_like(w[:, :1]), w], -1)
    sigma = torch.einsum("Nik,Nil->Nkl", tokens, tokens) / tokens.shape[1]
    read = torch.einsum("Nkl,lq,Nq->Nk", sigma, P12, column)
    return [column, sigma, read, w + read @ V21.mT - target]


def loss(tokens: Tensor, w: Tensor, target: Tensor, P12: Tensor, V21: Tensor) -> Tensor:
    """Return the loss of eq. (6) on N windows."""
    residual = _parts(tokens, w, target, P12, V21)[-1]
    return 0.5 * residual.square().sum(-1).mean()


QUESTIONS["loss"] = Question(
    reference=loss,
    draw=_sample,
    points={"values": 2, "sizes": 0.5, "arguments": 0.5},
    edges=6,
    mistakes={
        "the loss is half the squared distance.": lambda **z: 2 * loss(**z),
        "a sum over the coordinates of the parameters, a mean over windows.": (
            lambda **z: loss(**z) / z["w"].shape[1]
        ),
        "a mean over the windows, not a sum.": lambda **z: loss(**z) * len(z["w"]),
        "the block averages over the n tokens of a window.": (
            lambda tokens, **z: loss(tokens * tokens.shape[1] ** 0.5, **z)
        ),
        "the block adds its update to w: what it is compared with is the teacher's new w.": (
            lambda target, w, **z: loss(target=target + w, w=w, **z)
        ),
    },
)


def gradients(
    tokens: Tensor, w: Tensor, target: Tensor, P12: Tensor, V21: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of the loss by P12 and V21."""
    column, sigma, read, residual = _parts(tokens, w, target, P12, V21)
    written = torch.einsum("Nkl,pl,Np->Nk", sigma, V21, residual)
    return written.mT @ column / len(w), residual.mT @ read / len(w)


def _gradients_without_sigma(**z: Tensor) -> tuple[Tensor, Tensor]:
    column, _, _, residual = _parts(**z)
    return (residual @ z["V21"]).mT @ column / len(column), gradients(**z)[1]


QUESTIONS["gradients"] = Question(
    reference=gradients,
    draw=_sample,
    points={"values": 2, "sizes": 1, "dtype": 0.5, "arguments": 0.5},
    edges=6,
    autograd=False,
    mistakes={
        "your gradients point downhill; the gradient points uphill.": lambda **z: tuple(
            -g for g in gradients(**z)
        ),
        "the one half of the loss cancels the 2 of the square.": lambda **z: tuple(
            2 * g for g in gradients(**z)
        ),
        "a mean over the windows, not a sum.": lambda **z: tuple(
            len(z["w"]) * g for g in gradients(**z)
        ),
        "each derivative has the shape of its block; yours are transposed.": lambda **z: tuple(
            g.mT for g in gradients(**z)
        ),
        "P12 is followed by Sigma on its way to the output.": _gradients_without_sigma,
        "first the derivative by P12, then that by V21.": lambda **z: gradients(**z)[::-1],
    },
)

Loop = Callable[..., tuple[Tensor, Tensor]]


def _worlds(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw what the toy parts of Algorithm 1 are made of."""
    unusual = aspect == "sizes"
    d = 1 if unusual and index == 0 else integer(generator, 2, 4)
    return {
        "table": uniform(generator, 8, d, dtype=DOUBLE),
        "rate": number(generator, 0.1, 0.4),
        "theta": uniform(generator, d, dtype=DOUBLE),
        "n_mdps": 1 if unusual and index == 1 else integer(generator, 2, 3),
        "frames": 1 if unusual and index == 2 else 4,
    }


def _algorithm_1(wrong: str = "") -> Loop:
    """Return Algorithm 1, or a version of it that goes wrong in one way."""

    def run(
        draw: Callable, act: Callable, teach: Callable, block: Callable, learn: Callable,
        theta: Tensor, n_mdps: int, frames: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        losses, first = [], theta
        for k in range(n_mdps):
            mdp, w = draw(k)
            if wrong == "forgets":
                theta = first
            if wrong == "one window":
                tokens = act(mdp, w, 0)
            for frame in range(frames):
                if wrong != "one window":
                    tokens = act(mdp, w, frame)
                target = teach(w, tokens)
                before = target if wrong == "new w" else w
                after = block(theta, w, tokens)
                theta, value = learn(theta, tokens, before, target)
                losses.append(value)
                w = {"student": after, "no update": w}.get(wrong, target)
        return theta, torch.stack(losses)

    return run


QUESTIONS["algorithm_1"] = Question(
    reference=_algorithm_1(),
    draw=_worlds,
    points={"values": 3, "sizes": 1},
    edges=3,
    toys="algorithm_1",
    mistakes={
        "the agent goes on with the teacher's parameters, not with the block's.": (
            _algorithm_1("student")
        ),
        "after each window the agent's parameters change.": _algorithm_1("no update"),
        "the block starts from the parameters that the window was played with.": (
            _algorithm_1("new w")
        ),
        "the weights of the block carry over from one MDP to the next.": _algorithm_1("forgets"),
        "every frame is a new window, played with the parameters of that moment.": (
            _algorithm_1("one window")
        ),
    },
)


def _near_the_manifold(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    """Draw blocks near a point of the manifold, every second one with a negative scale.

    The quartic has two real roots. Near c = 0.3, at d = 3 and alpha = 0.9, the one of larger
    modulus is the wrong one; elsewhere it is the right one.
    """
    hard = aspect == "values" and index % 4 < 2
    d = 3 if hard else 1 if aspect == "sizes" and index == 0 else integer(generator, 2, 5)
    alpha = 0.9 if hard else number(generator, 0.1, 0.9)
    c = (0.3 if hard else number(generator, 0.3, 2.0)) * (-1 if index % 2 else 1)
    size = 0.02 if hard else 0.05
    P12, V21 = (
        block.mul(1024).round() / 1024 + size * uniform(generator, *block.shape, dtype=DOUBLE)
        for block in (star(d, alpha)[0] * c, star(d, alpha)[1] / c)
    )
    return {"P12": P12, "V21": V21, "d": d, "alpha": alpha}


def best_scale(P12: Tensor, V21: Tensor, d: int, alpha: float) -> float:
    """Return the c of the nearest point of the manifold."""
    return constructions.project(P12, V21, *star(d, alpha)).c


def _scale_by_one(block: str) -> Callable[..., float]:
    def scale(P12: Tensor, V21: Tensor, d: int, alpha: float) -> float:
        P12_star, V21_star = star(d, alpha)
        if block == "P12":
            return ((P12 * P12_star).sum() / P12_star.square().sum()).item()
        return (V21_star.square().sum() / (V21 * V21_star).sum()).item()

    return scale


QUESTIONS["best_scale"] = Question(
    reference=best_scale,
    draw=_near_the_manifold,
    outcome="number",
    points={"values": 2, "sizes": 0.5, "arguments": 0.5},
    edges=1,
    mistakes={
        "P12 alone gives another scale: both blocks count.": _scale_by_one("P12"),
        "V21 alone gives another scale: both blocks count.": _scale_by_one("V21"),
        "the ratio of the norms is not the nearest point.": lambda P12, V21, d, alpha: (
            P12.norm() / star(d, alpha)[0].norm()
        ).item(),
        "V21 is divided by c: this is 1/c.": lambda **z: 1 / best_scale(**z),
        "of the point (cP*, V*/c), c multiplies P*; this has the opposite sign.": (
            lambda **z: -best_scale(**z)
        ),
    },
)


def _initial_blocks(generator: torch.Generator, aspect: str, index: int) -> Arguments:
    d = 1 if aspect == "sizes" and index == 0 else integer(generator, 2, 6)
    P12 = number(generator, 0.05, 1) * uniform(generator, 2 * d + 1, d + 1, dtype=DOUBLE)
    V21 = uniform(generator, d, 2 * d + 1, dtype=DOUBLE)
    if index % 2:  # the conserved difference has either sign
        P12 = 2 * P12 + 1
    return {"P12": P12, "V21": V21, "d": d, "alpha": number(generator, 0.1, 0.9)}


def predicted_scale(P12: Tensor, V21: Tensor, d: int, alpha: float) -> float:
    """Return the |c| that gradient flow from these blocks ends with, if it ends at the optimum."""
    imbalance = flow.imbalance(P12, V21).item()
    return flow.predicted_scale(imbalance, *star(d, alpha))


QUESTIONS["predicted_scale"] = Question(
    reference=predicted_scale,
    draw=_initial_blocks,
    outcome="number",
    points={"values": 1, "sizes": 0.5, "arguments": 0.5},
    edges=1,
    mistakes={
        "the blocks at the start are not balanced; what is conserved is not zero.": (
            lambda P12, V21, d, alpha: predicted_scale(0 * P12, 0 * V21, d, alpha)
        ),
        "||P12||^2 - ||V21||^2 is conserved; yours has the opposite sign.": (
            lambda P12, V21, d, alpha: flow.predicted_scale(
                flow.imbalance(V21, P12).item(), *star(d, alpha)
            )
        ),
        "this is c squared.": lambda **z: predicted_scale(**z) ** 2,
        "the norms are squared.": lambda P12, V21, d, alpha: flow.predicted_scale(
            (P12.norm() - V21.norm()).item(), *star(d, alpha)
        ),
        "V* carries the step size.": lambda alpha, **z: predicted_scale(alpha=1.0, **z),
    },
)


def _small_start(d: int, alpha: float) -> Number:
    return Number(
        value=(alpha**2 * d / (2 * d + 1)) ** 0.25,
        tolerance=1e-3,
        plausible=(0, 10),
        mistakes={
            "this is c squared.": (alpha**2 * d / (2 * d + 1)) ** 0.5,
            "the norm of V* holds the step size squared.": (alpha * d / (2 * d + 1)) ** 0.25,
            "V* has d entries.": (alpha**2 / (2 * d + 1)) ** 0.25,
            "V* is divided by c, P* multiplied.": ((2 * d + 1) / d / alpha**2) ** 0.25,
        },
    )


def _numbers(course: Course) -> tuple[int, float]:
    def draw(generator: torch.Generator) -> tuple[int, float]:
        return integer(generator, 8, 60), integer(generator, 2, 12) / 20

    return course.numbers("A2 small_start", (36, 0.2), draw)


def questions(course: Course) -> dict[str, AnyQuestion]:
    """Return the questions of assignment 2 by name."""
    return {**QUESTIONS, "small_start": _small_start(*_numbers(course))}


def text(course: Course) -> dict[str, str]:
    """Return what a master's notebook says of its numbers."""
    d, alpha = _numbers(course)
    whose = "the paper's SARSA" if (d, alpha) == (36, 0.2) else "SARSA"
    return {"whose": whose, "d": f"{d}", "two_d": f"{2 * d + 1}", "alpha": f"{alpha:g}"}
