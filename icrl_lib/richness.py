"""Are the data rich enough, and what does Theorem 3.2 then promise? Curvature and Assumption 1."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import check_count, check_instance, check_number, check_tensor, check_tensors
from icrl_lib.objective import Objective

ROUNDING = 1e-13
"""An eigenvalue of a moment is zero but for rounding up to this part of the largest."""


class Curvature(NamedTuple):
    """What the Gauss-Newton matrix says about a point where the loss is zero.

    `rate` is the smallest non-zero eigenvalue: gradient flow approaches its limit like exp(-rate
    t), and the loss falls like exp(-2 rate t). `eigenvalues` are all k q + p k, in ascending order;
    `nullity` of them are zero, 1 on the manifold if the data are rich, and `null_p`, (nullity, k,
    q), with `null_v`, (nullity, p, k), is an orthonormal basis of the null space, as pairs of
    blocks.
    """

    rate: float
    nullity: int
    eigenvalues: Tensor
    null_p: Tensor
    null_v: Tensor


def curvature(
    objective: Objective, P12: Tensor, V21: Tensor, *, tolerance: float = 1e-11
) -> Curvature:
    """Diagonalise the Gauss-Newton matrix at P12 (k, q), V21 (p, k).

    An eigenvalue counts as zero if it is at most `tolerance` times the largest; rounding leaves
    about 1e-16 times the largest where zero is meant.
    """
    check_instance("objective", objective, Objective)
    check_tensors(V21=(V21, "p k"), P12=(P12, "k q"))
    check_number("tolerance", tolerance, above=0, less_than=1)
    values, vectors = torch.linalg.eigh(objective.gauss_newton(P12, V21))
    nullity = int((values <= tolerance * values[-1]).sum())
    if nullity == len(values):
        raise ValueError("objective: expected a loss that depends on the blocks; it is flat")
    null_p, null_v = vectors[:, :nullity].mT.split([P12.numel(), V21.numel()], 1)
    null_p, null_v = null_p.unflatten(1, P12.shape), null_v.unflatten(1, V21.shape)
    return Curvature(values[nullity].item(), nullity, values, null_p, null_v)


class Alignment(NamedTuple):
    """How far the effects of P12 and V21 can cancel on the normal space.

    `rho` is the smallest number with E<X, Y> >= -rho sqrt(E||X||^2 E||Y||^2) for all (U, W) of N_c,
    and `P12`, `V21` a pair (U, W) on the boundary of those for which the bound holds, where it is
    attained.
    """

    rho: float
    P12: Tensor
    V21: Tensor


def alignment(matrix: Tensor, P12_star: Tensor, V21_star: Tensor) -> Alignment:
    """Compute rho of Assumption 1, condition 5, as a lower bound: what Theorem 3.2's proof uses.

    X and Y are the first-order changes of the residual by U and by W. Rescaling U and W by separate
    positive factors leaves their correlation as it is and spreads N_c over all pairs for which <U,
    P12*> and <W, V21*> have one sign. On the boundary of these, one of the two is zero and the
    other free, so that rho is the larger of two canonical correlations. It depends on no c.

    Parameters
    ----------
    matrix : Tensor, shape (a + b, a + b)
        A Gauss-Newton matrix, of `Objective.gauss_newton` on the manifold or of `symmetry_blocks`.
        If its part of P12 or of V21 is singular, a ValueError says so: then conditions 2 to 4 fail,
        and Theorem 3.2 needs no rho.
    P12_star, V21_star : Tensor with a and with b entries
        The construction, in the coordinates of `matrix`. Zero for a block that is orthogonal to it.
    """
    check_tensor("P12_star", P12_star)
    check_tensor("V21_star", V21_star)
    check_tensors(
        matrix=(matrix, "side side"),
        P12_star=(P12_star.flatten(), "a"),
        V21_star=(V21_star.flatten(), "b"),
    )
    if matrix.dtype != torch.float64:
        raise ValueError(f"matrix: expected torch.float64, got {matrix.dtype}")
    first, second = P12_star.numel(), V21_star.numel()
    if len(matrix) != first + second:
        sides = f"{first} + {second} of P12_star and V21_star"
        raise ValueError(f"matrix: expected the side {sides}, got {len(matrix)}")
    roots = []
    for name, part in (("P12", matrix[:first, :first]), ("V21", matrix[first:, first:])):
        values, vectors = torch.linalg.eigh(part)
        if values[0] <= ROUNDING * values[-1]:
            raise ValueError(f"matrix: expected the part of {name} to be regular; it is singular")
        roots.append(vectors * values.rsqrt() @ vectors.mT)
    cross, found = roots[0] @ matrix[:first, first:] @ roots[1], []
    for root, star, held in zip(roots, (P12_star, V21_star), (cross, cross.mT), strict=True):
        axis = torch.nn.functional.normalize(root @ star.flatten(), dim=0, eps=1e-300)
        left, cosines, right = torch.linalg.svd(held - torch.outer(axis, axis @ held))
        found.append((cosines[0].item(), left[:, 0], right[0]))
    (rho, U, W), (other, W_other, U_other) = found  # the constrained block comes first
    if other > rho:
        rho, U, W = other, U_other, W_other
    U, W = roots[0] @ U, -roots[1] @ W
    return Alignment(rho, U.reshape(P12_star.shape), W.reshape(V21_star.shape))


class Bracket(NamedTuple):
    """An estimate of a smallest eigenvalue from both sides.

    `low` is that of the sample mean: too low on average, by Jensen's inequality. `high` is the mean
    over one half of the sample of the direction that the other half found smallest, too high on
    average, both ways round, averaged; `error` is its standard error for the two directions found.
    """

    low: float
    high: float
    error: float


def smallest_eigenvalue(matrices: Tensor) -> Bracket:
    """Bracket the smallest eigenvalue of the mean of a family, from N >= 4 samples (N, k, k)."""
    sizes = check_tensors(matrices=(matrices, "N k k"))
    if sizes["N"] < 4:
        raise ValueError(f"matrices: expected at least 4, got {sizes['N']}")
    halves = matrices.chunk(2)
    held_out = []
    for one, other in (halves, halves[::-1]):
        direction = torch.linalg.eigh(one.mean(0)).eigenvectors[:, 0]
        held_out.append((other @ direction) @ direction)
    values = torch.cat(held_out)
    low = torch.linalg.eigvalsh(matrices.mean(0))[0].item()
    return Bracket(low, values.mean().item(), values.std().item() / math.sqrt(len(values)))


class Richness(NamedTuple):
    """The constants of Assumption 1, for SARSA.

    Attributes
    ----------
    bound_features, bound_reward, bound_column : float
        B_phi, B_r and B_w~: bounds on the norms of phi, r and w~.
    kappa_column, kappa_window, kappa_update : float
        Smallest eigenvalues: kappa_w~ of E[w~ w~^T]; kappa_R of E[R^T R | w] over all w, where R =
        (1/n) sum phi_i x_i^T; kappa_q of E[b b^T], where b = (1/n) sum x_i delta_i.
    rho : float
        The correlation of condition 5, as `alignment` has it; 1 where one of the kappas is zero.
    """

    bound_features: float
    bound_reward: float
    bound_column: float
    kappa_column: float
    kappa_window: float
    kappa_update: float
    rho: float


def richness(
    objective: Objective,
    P12_star: Tensor,
    V21_star: Tensor,
    *,
    draws: int,
    bound_features: float,
    bound_reward: float,
) -> Richness:
    """Compute the constants of Assumption 1 on a sample of SARSA windows.

    They are exact for the sample, taken as the whole population.

    Parameters
    ----------
    objective : Objective
        N windows in `draws` consecutive groups of equal size, each with parameters w of its own.
        The mean over a group is what E[. | w] means for the sample.
    P12_star, V21_star : Tensor, shape (2 d + 1, d + 1) and (d, 2 d + 1)
        The construction.
    draws : int
        Number of different w. kappa_R is the minimum over these.
    bound_features, bound_reward : float
        B_phi and B_r. They follow from the family; a sample of windows no longer shows the tokens.
    """
    check_instance("objective", objective, Objective)
    d = check_tensors(V21_star=(V21_star, "d k"), P12_star=(P12_star, "k q"))["d"]
    objective.check(P12_star=P12_star, V21_star=V21_star)
    check_tensors(P12_star=(P12_star, f"{2 * d + 1} {d + 1}"))
    check_count("draws", draws)
    check_number("bound_features", bound_features, above=0)
    check_number("bound_reward", bound_reward, above=0)
    if len(objective.column) % draws:
        raise ValueError(f"draws: expected a divisor of {len(objective.column)}, got {draws}")
    columns = objective.column.unflatten(0, (draws, -1))  # (G, M, q)
    if (columns != columns[:, :1]).any():
        raise ValueError(f"draws: expected {draws} consecutive groups of equal w")
    largest = objective.sigma.diagonal(dim1=1, dim2=2).sum(-1).max().item()
    if largest > (2 * bound_features**2 + bound_reward**2) * (1 + 1e-12):
        seen = f"a window with mean ||x||^2 = {largest:g}"
        raise ValueError(f"bound_features, bound_reward: expected bounds on the sample, got {seen}")
    column, read = objective.column, objective.read(P12_star)
    window = objective.sigma[:, :d]  # R, (N, d, k)
    given_w = (window.mT @ window).unflatten(0, (draws, -1)).mean(1)
    kappas = []
    for moment in (column.mT @ column / len(column), given_w, read.mT @ read / len(read)):
        values = torch.linalg.eigvalsh(moment)
        smallest = values[..., 0].min().item()
        kappas.append(smallest if smallest > ROUNDING * values.max() else 0.0)
    rho = 1.0
    if all(kappas):
        rho = alignment(objective.gauss_newton(P12_star, V21_star), P12_star, V21_star).rho
    return Richness(
        float(bound_features), float(bound_reward), column.norm(dim=-1).max().item(), *kappas, rho
    )


class Guarantee(NamedTuple):
    """What Theorem 3.2 promises, with the paper's names.

    Attributes
    ----------
    m0, M0, C_Q : float
        Bounds m0 ||(U, W)||^2 <= E||X + Y||^2 <= M0 ||(U, W)||^2 on the first-order change X + Y of
        the residual, the lower one for (U, W) in N_c; the second-order part is at most C_Q ||(U,
        W)||^2.
    r, mu : float
        Distance from the manifold within which the rest holds, and mu_r: L(t) <= exp(-2 mu_r t)
        L(0).
    start : float
        Gradient flow that starts closer than this to the point with scale c keeps within r. Our
        derivation, from the length of the path; not the paper's eq. (12).
    """

    m0: float
    M0: float
    C_Q: float
    r: float
    mu: float
    start: float


def guarantee(
    constants: Richness,
    *,
    d: int,
    alpha: float,
    c: float,
    width: float = 0.1,
    fraction: float = 0.5,
) -> Guarantee:
    """Evaluate Theorem 3.2 around the point of the manifold with scale c, above 0.

    `alpha` is the teacher's step size, and the interval I is [c (1 - width), c (1 + width)].
    `fraction` is r as a part of the largest allowed, sqrt(m0) / (3 C_Q). Both are in [0, 1); if one
    is 0, the theorem speaks of one point or of no neighbourhood, `mu` is what it can at most
    guarantee, and `start` is 0. All is zero but M0 and C_Q where a kappa is zero or rho is 1.
    """
    check_instance("constants", constants, Richness)
    check_count("d", d)
    check_number("alpha", alpha, above=0)
    check_number("c", c, above=0)
    check_number("width", width, at_least=0, less_than=1)
    check_number("fraction", fraction, at_least=0, less_than=1)
    low, high = c * (1 - width), c * (1 + width)
    token = 2 * constants.bound_features**2 + constants.bound_reward**2  # B_Sigma
    scale = token * constants.bound_column
    of_p12 = alpha**2 * constants.kappa_window * constants.kappa_column / high**2
    of_v21 = low**2 * constants.kappa_update
    m0 = (1 - constants.rho) * min(of_p12, of_v21)
    M0 = scale**2 * (alpha**2 / low**2 + 2 * high**2)
    C_Q = scale / 2
    r = fraction * math.sqrt(m0) / (3 * C_Q)
    reach = math.sqrt(M0) + C_Q * r
    root = m0 * (1 - fraction) / reach  # sqrt(mu_r)
    # From distance s the path is at most s reach / root long. It must end neither at the wall of
    # the tube nor where the nearest point of the manifold leaves I, whose ends are at least
    # c width ||P12*|| away and can be approached by twice the distance that the flow has moved.
    room = min(r, c * width * math.sqrt(2 * d + 1) / 2)
    return Guarantee(m0, M0, C_Q, r, root**2, room * root / (root + reach))
