"""Weights in closed form: blocks whose forward pass is a teacher's update, and their distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from icrl_lib.attention import Weights, join
from icrl_lib.checks import check_count, check_dtype, check_instance, check_number, check_tensors
from icrl_lib.prompts import Layout


def sarsa(d: int, alpha: float, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
    """Return weights P, V that perform batch SARSA (Theorem 3.1, eq. 5), each (3 d + 2, 3 d + 2).

    P turns [1; w] into the query [-w; w; 1], V copies alpha phi; zero elsewhere. `d` is the number
    of features, `alpha` the step size, above 0, and `c` a free scale, not 0: (c P*, V* / c)
    computes the same update for every c. `dtype` is the type of the result.
    """
    check_count("d", d)
    check_number("alpha", alpha, above=0)
    check_number("c", c, nonzero=True)
    check_dtype(dtype)
    identity = torch.eye(d, dtype=dtype)
    P12 = torch.zeros(2 * d + 1, 1 + d, dtype=dtype)
    P12[:d, 1:] = -identity  # phi meets -w
    P12[d : 2 * d, 1:] = identity  # gamma phi+ meets w
    P12[2 * d, 0] = 1  # r meets 1
    V21 = torch.zeros(d, 2 * d + 1, dtype=dtype)
    V21[:, :d] = alpha * identity
    return join(c * P12, V21 / c)


def actor_critic(
    d: int, m: int, alpha: float, beta: float, c: float = 1.0, dtype: torch.dtype = torch.float32
) -> Weights:
    """Return weights that perform batch actor-critic (Theorem 3.3, eq. 14).

    P turns [1; lambda; w] into the query [-w; w; 1; 0], V writes alpha times the last slot of the
    token to the rows of lambda and beta times its first slot to the rows of w; each is (3 d + 2 m +
    2, 3 d + 2 m + 2). There are `d` value features and `m` policy features, with steps `alpha` of
    the actor and `beta` of the critic, above 0; `c` and `dtype` as of :func:`sarsa`.
    """
    check_count("d", d)
    check_count("m", m)
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_number(name, value, above=0)
    check_number("c", c, nonzero=True)
    check_dtype(dtype)
    identity = torch.eye(d, dtype=dtype)
    P12 = torch.zeros(2 * d + 1 + m, 1 + m + d, dtype=dtype)
    P12[:d, 1 + m :] = -identity  # phi_V meets -w
    P12[d : 2 * d, 1 + m :] = identity  # gamma phi_V+ meets w
    P12[2 * d, 0] = 1  # r meets 1
    V21 = torch.zeros(m + d, 2 * d + 1 + m, dtype=dtype)
    V21[:m, 2 * d + 1 :] = alpha * torch.eye(m, dtype=dtype)
    V21[m:, :d] = beta * identity
    return join(c * P12, V21 / c)


def one_head(
    layout: Layout,
    meets: Mapping[tuple[str, str], float],
    writes: Mapping[tuple[str, str], float],
    c: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Return weights that add (1/n) sum_i (x_i^T A [1; p]) B x_i to the parameters p.

    A and B consist of multiples of the identity, one for each pair of slots of `layout` that is
    named. P and V, each (D, D), are zero outside P12 and V21; `c` and `dtype` as of :func:`sarsa`.

    Parameters
    ----------
    meets : mapping of (token slot, parameter slot) to float
        What each slot of the token is multiplied with: the blocks of A, which becomes P12.
    writes : mapping of (parameter slot, token slot) to float
        What is added to each slot of the parameters: the blocks of B, which becomes V21.

    Raises
    ------
    ValueError
        If a slot does not exist, two slots differ in size, or the constant 1 is to be written.
    """
    check_instance("layout", layout, Layout)
    check_number("c", c, nonzero=True)
    check_dtype(dtype)
    token, parameter = _places(layout.token), _places(layout.parameter)
    P = torch.zeros(layout.size, layout.size, dtype=dtype)
    V = torch.zeros_like(P)
    P12, V21 = P[: layout.n_token, layout.n_token :], V[layout.n_token :, : layout.n_token]
    written = {name: place for name, place in parameter.items() if place.start > 0}
    for name, block, pairs, rows, columns in (
        ("meets", P12, meets, token, parameter),
        ("writes", V21, writes, written, token),
    ):
        check_instance(name, pairs, Mapping)
        for pair, coefficient in pairs.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"{name}: expected pairs of slots, got {pair!r}")
            row, column = pair
            check_number(f"{name}[{row!r}, {column!r}]", coefficient)
            for slot, known in ((row, rows), (column, columns)):
                if slot not in known:
                    raise ValueError(f"{name}: expected one of {', '.join(known)}; got {slot!r}")
            target = block[rows[row], columns[column]]
            if target.shape[0] != target.shape[1]:
                given = f"{row!r} and {column!r} of {len(target)} and {len(target.mT)}"
                raise ValueError(f"{name}: expected slots of one size, got {given}")
            target.diagonal().fill_(coefficient)
    return c * P, V / c


def _places(slots: tuple[tuple[str, int], ...]) -> dict[str, slice]:
    """Return where each slot lies."""
    places, end = {}, 0
    for name, size in slots:
        places[name] = slice(end, end + size)
        end += size
    return places


class Projection(NamedTuple):
    """Where a pair (P, V) lies relative to the manifold {(c P*, V* / c) : c != 0} of eq. (9).

    `c` is the scale of the nearest point of the manifold, `distance` the Frobenius distance to it
    and `cosine` that of the angle to it, P and V read as one vector. `stray` is the largest
    absolute entry where P* and V* are zero, relative to the largest of its own matrix.
    """

    c: float
    distance: float
    cosine: float
    stray: float


def project(P: Tensor, V: Tensor, P_star: Tensor, V_star: Tensor) -> Projection:
    """Find the point (c P*, V* / c) nearest to (P, V), for matrices (D, D) or blocks of them.

    The squared distance is a rational function of c whose stationary points are the roots of a
    quartic; all real ones, of either sign, are compared.
    """
    check_tensors(P=(P, "rows columns"), P_star=(P_star, "rows columns"))
    check_tensors(P=(P, "rows columns"), V=(V, "height width"), V_star=(V_star, "height width"))
    p, v, p_star, v_star = (
        t.detach().to("cpu", torch.float64).flatten() for t in (P, V, P_star, V_star)
    )

    for name, star in (("P_star", p_star), ("V_star", v_star)):
        if not star.any():
            raise ValueError(f"{name}: expected a matrix other than 0")
    # d/dc (|P - c P*|^2 + |V - V*/c|^2) = 0, times c^3 / 2
    quartic = [p_star @ p_star, -(p @ p_star), 0.0, v @ v_star, -(v_star @ v_star)]
    roots = np.roots([float(coefficient) for coefficient in quartic])
    real = [root.real for root in roots if abs(root.imag) <= 1e-8 * abs(root)]

    def squared_distance(c: float) -> float:
        return float(((p - c * p_star) ** 2).sum() + ((v - v_star / c) ** 2).sum())

    c = min(real, key=squared_distance)
    learned, nearest = torch.cat([p, v]), torch.cat([c * p_star, v_star / c])
    strays = [
        (matrix[star == 0].abs().max() / matrix.abs().max()).item()
        for matrix, star in ((p, p_star), (v, v_star))
        if (star == 0).any() and matrix.any()
    ]
    return Projection(
        c=float(c),
        distance=squared_distance(c) ** 0.5,
        cosine=torch.cosine_similarity(learned, nearest, dim=0).item(),
        stray=max(strays, default=0.0),
    )
