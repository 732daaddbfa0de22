"""What the assignments hand to students: functions of the questions, and toys to try answers on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from icrl_lib import attention, constructions


def broken_construction(d: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the weights of assignment 1 in which a bug is to be found, (3 d + 2, 3 d + 2) each."""
    P, V = constructions.sarsa(d, alpha, dtype=torch.float64)
    return P, V.roll(d, 1)  # V copies the slot after the one it should


def star(d: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the blocks P12* (2 d + 1, d + 1) and V21* (d, 2 d + 1) of eq. (5), in float64."""
    blocks = attention.split(*constructions.sarsa(d, alpha, dtype=torch.float64), d)
    return blocks.P12, blocks.V21


def apply_head(A: Tensor, B: Tensor, tokens: Tensor, parameters: Tensor) -> Tensor:
    """Return parameters + (1/n) sum_i (x_i^T A [1; parameters]) B x_i for tokens (N, n, k)."""
    return attention.reduced_update(tokens, parameters, A, B)


def parts_of_algorithm_1(
    table: Tensor, rate: float, theta: Tensor, n_mdps: int, frames: int
) -> dict[str, Any]:
    """Return toy parts of Algorithm 1: pure functions whose results tell the order of calls.

    Parameters
    ----------
    table : Tensor, shape (8, d)
        What MDPs and first parameters are looked up in.
    rate : float
        Step size of the toy optimiser.
    theta : Tensor, shape (d,)
        First weights of the toy block.
    """

    def draw(k: int) -> tuple[Tensor, Tensor]:
        return table[k % 8].clone(), table[(3 * k + 1) % 8].clone()

    def act(mdp: Tensor, w: Tensor, frame: int) -> Tensor:
        return torch.sin(mdp + w + frame)

    def teach(w: Tensor, tokens: Tensor) -> Tensor:
        return 0.7 * w + 0.5 * tokens

    def block(theta: Tensor, w: Tensor, tokens: Tensor) -> Tensor:
        return w + theta * tokens

    def learn(theta: Tensor, tokens: Tensor, w: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        residual = block(theta, w, tokens) - target
        return theta - rate * residual * tokens, 0.5 * residual.square().sum()

    parts = {"draw": draw, "act": act, "teach": teach, "block": block, "learn": learn}
    return {**parts, "theta": theta, "n_mdps": n_mdps, "frames": frames}


def parts_of_the_loop(
    mix: Tensor, lam: Tensor, w: Tensor, state: int, n_updates: int
) -> dict[str, Any]:
    """Return toy parts of the closed loop: pure functions whose results tell the order of calls.

    Parameters
    ----------
    mix : Tensor, shape (m, m)
        Maps the policy's parameters to preferences.
    lam, w : Tensor, shape (m,) and (d,)
        First parameters.
    """

    def policy(lam: Tensor) -> Tensor:
        return (mix @ lam).softmax(-1)

    def play(table: Tensor, state: int) -> tuple[Tensor, int]:
        return torch.cos(table + state), (3 * state + int(10 * torch.cos(table[0] + state))) % 7

    def update(lam: Tensor, w: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        return lam + 0.3 * window * w.sum(), 0.8 * w + 0.1 * window.sum() + 0.1 * lam.sum()

    parts = {"policy": policy, "play": play, "update": update}
    return {**parts, "lam": lam, "w": w, "state": state, "n_updates": n_updates}


TOYS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "algorithm_1": parts_of_algorithm_1,
    "loop": parts_of_the_loop,
}
"""Questions whose arguments are functions: what these are made of is tables, which can be sent."""
