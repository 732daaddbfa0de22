"""Gradient flow on an objective: its solution, what it conserves, and the line that it reaches.

The optima of Theorem 3.1 are the manifold of points (c P12*, V21* / c), c not 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from icrl_lib.checks import check_instance, check_number, check_tensor, check_tensors
from icrl_lib.objective import Objective


class Flow(NamedTuple):
    """A solution of the gradient flow at K `times`, from 0.

    `P12` (K, k, q) and `V21` (K, p, k) are the blocks, and `losses` (K,) the loss, along the flow.
    """

    times: Tensor
    P12: Tensor
    V21: Tensor
    losses: Tensor


def gradient_flow(
    objective: Objective, P12: Tensor, V21: Tensor, times: Tensor, *, tolerance: float = 1e-10
) -> Flow:
    """Solve d(P12, V21)/dt = -gradient of the loss, by SciPy's BDF with the exact Hessian.

    It starts at P12 (k, q), V21 (p, k). The `times` (K,) at which the solution is wanted increase
    from 0; `tolerance` is the relative and absolute tolerance of the solver.
    """
    check_instance("objective", objective, Objective)
    check_tensors(P12=(P12, "k q"), V21=(V21, "p k"), times=(times, "K"))
    check_number("tolerance", tolerance, above=0)
    if times[0] != 0 or len(times) < 2 or not (times.diff() > 0).all():
        raise ValueError("times: expected at least two increasing times, the first 0")

    def blocks(y: np.ndarray) -> tuple[Tensor, Tensor]:
        first, second = torch.from_numpy(y).to(P12).split([P12.numel(), V21.numel()])
        return first.reshape(P12.shape), second.reshape(V21.shape)

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        return -torch.cat([g.flatten() for g in objective.gradient(*blocks(y))]).numpy(force=True)

    def jacobian(_: float, y: np.ndarray) -> np.ndarray:
        return -objective.hessian(*blocks(y)).numpy(force=True)

    start = torch.cat([P12.flatten(), V21.flatten()]).numpy(force=True)
    grid = times.numpy(force=True)
    solution = solve_ivp(
        velocity, (0, grid[-1]), start, method="BDF", t_eval=grid, jac=jacobian,
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    if not solution.success:
        raise RuntimeError(f"the solver gave up: {solution.message}")
    pairs = [blocks(np.ascontiguousarray(y)) for y in solution.y.T]
    losses = torch.stack([objective.loss(*pair) for pair in pairs])
    return Flow(times, *(torch.stack(series) for series in zip(*pairs, strict=True)), losses)


def imbalance(P12: Tensor, V21: Tensor) -> Tensor:
    """Return ||P12||^2 - ||V21||^2, which gradient flow conserves, over leading dimensions."""
    for name, block in (("P12", P12), ("V21", V21)):
        check_tensor(name, block)
        if block.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 axes, got shape {tuple(block.shape)}")
    return P12.square().sum((-2, -1)) - V21.square().sum((-2, -1))


def predicted_scale(imbalance: float, P12_star: Tensor, V21_star: Tensor) -> float:
    """Return the absolute value of c at the point of the manifold that has a given imbalance.

    The positive root c of c^2 ||P12*||^2 - ||V21*||^2 / c^2 = imbalance.
    """
    check_number("imbalance", imbalance)
    check_tensor("P12_star", P12_star)
    check_tensor("V21_star", V21_star)
    a, b = P12_star.square().sum().item(), V21_star.square().sum().item()
    check_number("P12_star, its squared norm", a, above=0)
    check_number("V21_star, its squared norm", b, above=0)
    root = math.hypot(imbalance, 2 * math.sqrt(a * b))
    # Two forms of the positive root c^2: each keeps the digits that the other one cancels.
    if imbalance < 0:
        return math.sqrt(2 * b / (root - imbalance))
    return math.sqrt((root + imbalance) / (2 * a))


def tangent(c: float, P12_star: Tensor, V21_star: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity (P12*, -V21* / c^2) of the manifold's point (c P12*, V21* / c)."""
    sizes = check_tensors(V21_star=(V21_star, "p k"), P12_star=(P12_star, "k q"))
    if sizes["q"] != sizes["p"] + 1:
        columns = f"{sizes['p'] + 1} columns of P12_star"
        raise ValueError(f"P12_star, V21_star: expected 1 + p = {columns}, got {sizes['q']}")
    check_number("c", c, nonzero=True)
    return P12_star, -V21_star / c**2


def normal_part(
    c: float, U: Tensor, W: Tensor, P12_star: Tensor, V21_star: Tensor
) -> tuple[Tensor, Tensor]:
    """Project a pair U (k, q), W (p, k) on the normal space N_c, orthogonal to `tangent`."""
    check_tensors(P12_star=(P12_star, "k q"), U=(U, "k q"))
    check_tensors(V21_star=(V21_star, "p k"), W=(W, "p k"))
    along_p, along_v = tangent(c, P12_star, V21_star)
    squared = along_p.square().sum() + along_v.square().sum()
    share = ((U * along_p).sum() + (W * along_v).sum()) / squared
    return U - share * along_p, W - share * along_v
