"""Why training finds the construction: loss, flow, curvature and richness, in float64.

Everything here concerns the two blocks that training moves, P12 (k, q) and V21 (p, k), with k rows
of a token, p parameters and q = 1 + p. Expectations are means over a finite sample of windows, so
that every statement about them is exact for that sample.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.attention import split
from icrl_lib.checks import check_count, check_instance, check_number, check_tensor, check_tensors
from icrl_lib.loop import Update, interact
from icrl_lib.mdps import TabularMDP
from icrl_lib.prompts import parameter_column


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The loss of eq. (6) on a finite sample of N windows.

    Parameters
    ----------
    sigma : Tensor, shape (N, k, k)
        Second moments (1/n) sum_i x_i x_i^T of the tokens of each window.
    column : Tensor, shape (N, q)
        Parameter columns w~.
    target : Tensor, shape (N, p)
        What the teacher adds to the parameters.
    n : int
        Length of a window.
    """

    sigma: Tensor
    column: Tensor
    target: Tensor
    n: int

    def __post_init__(self) -> None:
        check_tensors(
            sigma=(self.sigma, "N k k"), column=(self.column, "N q"), target=(self.target, "N p")
        )
        check_count("n", self.n)

    def residuals(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return V21 Sigma P12 w~ - target, shape (N, p)."""
        self._check(P12, V21)
        return self._read(P12) @ V21.mT - self.target

    def loss(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return half the mean squared norm of the residuals, a scalar."""
        return 0.5 * self.residuals(P12, V21).square().sum(-1).mean()

    def gradient(self, P12: Tensor, V21: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the loss by P12 (k, q) and V21 (p, k)."""
        error = self.residuals(P12, V21)
        written = self._times_sigma(error @ V21)  # Sigma V21^T error, (N, k)
        count = len(error)
        return written.mT @ self.column / count, error.mT @ self._read(P12) / count

    def full_gradient(self, P: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the loss of the whole block by P and V, each (D, D).

        Zero outside P12, P22, V21 and V22 (Proposition 3.1); there, with s = w~^T P22 w~ and
        residuals e that include (1/n) V22 w~ s.
        """
        p = self.target.shape[1]
        P12, V21, P22, V22 = split(P, V, p)
        column, count = self.column, len(self.column)
        form = ((column @ P22) * column).sum(-1, keepdim=True)  # s, (N, 1)
        error = self.residuals(P12, V21) + form * (column @ V22.mT) / self.n
        written = self._times_sigma(error @ V21)
        slope = ((error @ V22) * column).sum(-1, keepdim=True)  # e^T V22 w~, (N, 1)
        gradient_p, gradient_v = torch.zeros_like(P), torch.zeros_like(V)
        blocks = split(gradient_p, gradient_v, p)  # views: what is written there is written here
        blocks.P12.copy_(written.mT @ column / count)
        blocks.P22.copy_((slope * column).mT @ column / (self.n * count))
        blocks.V21.copy_(error.mT @ self._read(P12) / count)
        blocks.V22.copy_((form * error).mT @ column / (self.n * count))
        return gradient_p, gradient_v

    def gauss_newton(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return the mean of J^T J for the Jacobian J of the residuals by (P12, V21).

        Rows and columns are the entries of P12, row by row, then those of V21: side k q + p k.
        Where the loss is zero this is its Hessian.
        """
        self._check(P12, V21)
        k, q, p = *P12.shape, len(V21)
        read = self._read(P12)  # b, the derivative by V21, (N, k)
        write = V21 @ self.sigma  # V21 Sigma, with w~ the derivative by P12, (N, p, k)
        count = len(read)
        moments = (write.mT @ write).flatten(1)  # Sigma V21^T V21 Sigma, (N, k k)
        columns = (self.column.unsqueeze(2) * self.column.unsqueeze(1)).flatten(1)  # (N, q q)
        by_p = (moments.mT @ columns / count).reshape(k, k, q, q).transpose(1, 2)
        by_v = torch.kron(torch.eye(p, dtype=read.dtype), read.mT @ read / count)
        outer = (self.column.unsqueeze(2) * read.unsqueeze(1)).flatten(1)  # (N, q k)
        mixed = (write.flatten(1).mT @ outer / count).reshape(p, k, q, k).permute(1, 2, 0, 3)
        mixed = mixed.reshape(k * q, p * k)
        top = torch.cat([by_p.reshape(k * q, k * q), mixed], 1)
        return torch.cat([top, torch.cat([mixed.mT, by_v], 1)], 0)

    def hessian(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return the Hessian of the loss, in the order of `gauss_newton`."""
        k, q, p = *P12.shape, len(V21)
        error = self.residuals(P12, V21)
        outer = (error.unsqueeze(2) * self.column.unsqueeze(1)).flatten(1)  # (N, p q)
        mixed = (self.sigma.flatten(1).mT @ outer / len(error)).reshape(k, k, p, q)
        mixed = mixed.permute(0, 3, 2, 1).reshape(k * q, p * k)
        matrix = self.gauss_newton(P12, V21)
        matrix[: k * q, k * q :] += mixed
        matrix[k * q :, : k * q] += mixed.mT
        return matrix

    def _check(self, P12: Tensor, V21: Tensor) -> None:
        """Refuse blocks of another shape or dtype; whether they are finite is the caller's affair.

        A solver that tries too long a step has to see NaN, not an error.
        """
        k, q, p = self.sigma.shape[1], self.column.shape[1], self.target.shape[1]
        for name, block, shape in (("P12", P12, (k, q)), ("V21", V21, (p, k))):
            check_instance(name, block, Tensor)
            given = (tuple(block.shape), block.dtype, block.device)
            expected = (shape, self.column.dtype, self.column.device)
            if given != expected:
                raise ValueError(
                    f"{name}: expected shape, dtype and device {expected}, got {given}"
                )

    def _read(self, P12: Tensor) -> Tensor:
        """Return Sigma P12 w~, which is b on the manifold at c = 1, shape (N, k)."""
        return self._times_sigma(self.column @ P12.mT)

    def _times_sigma(self, vectors: Tensor) -> Tensor:
        return (self.sigma @ vectors.unsqueeze(-1)).squeeze(-1)


def sample_objective(
    algorithm: Algorithm,
    mdp: TabularMDP,
    features: Any,
    parameters: Tensor,
    state: Tensor,
    *,
    frames: int,
    n: int = 20,
    update: Update | None = None,
    generator: torch.Generator,
) -> Objective:
    """Collect windows as training sees them, `frames` of each of B agents.

    Parameters
    ----------
    algorithm : Algorithm
        Teacher and behaviour.
    mdp, features, parameters, state
        B agents, as from `icrl_lib.training.draw_situation`.
    frames : int
        Windows of each agent.
    n : int
        Length of a window.
    update : callable, optional
        What drives the agents; by default the teacher. The target is the teacher's in any case.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Objective
        N = B * frames windows.
    """
    check_instance("algorithm", algorithm, Algorithm)
    check_instance("mdp", mdp, TabularMDP)
    check_count("frames", frames)
    if not (update is None or callable(update)):
        raise ValueError(f"update: expected a function, got {update!r:.200}")
    drive = algorithm.teach if update is None else update
    loop = interact(algorithm, mdp, features, parameters, state, drive, n=n, generator=generator)
    parts = []
    for frame in islice(loop, frames):
        tokens = algorithm.tokens(frame.observation)
        target = algorithm.teach(frame.parameters, frame.observation) - frame.parameters
        moments = tokens.mT @ tokens / tokens.shape[1]
        parts.append((moments, parameter_column(frame.parameters), target))
    return Objective(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)), tokens.shape[1])


class Flow(NamedTuple):
    """A solution of the gradient flow.

    Attributes
    ----------
    times : Tensor, shape (K,)
        Times, from 0.
    P12 : Tensor, shape (K, k, q)
        The first block along the flow.
    V21 : Tensor, shape (K, p, k)
        The second.
    losses : Tensor, shape (K,)
        The loss along the flow.
    """

    times: Tensor
    P12: Tensor
    V21: Tensor
    losses: Tensor


def flow(
    objective: Objective,
    P12: Tensor,
    V21: Tensor,
    times: Tensor,
    *,
    tolerance: float = 1e-10,
) -> Flow:
    """Solve d(P12, V21)/dt = -gradient of the loss, by SciPy's BDF with the exact Hessian.

    Parameters
    ----------
    objective : Objective
        The loss.
    P12, V21 : Tensor, shape (k, q) and (p, k)
        Where to start.
    times : Tensor, shape (K,)
        Increasing times at which the solution is wanted; the first is 0.
    tolerance : float
        Relative and absolute tolerance of the solver.

    Returns
    -------
    Flow
        The solution at `times`.
    """
    check_instance("objective", objective, Objective)
    check_tensors(P12=(P12, "k q"), V21=(V21, "p k"), times=(times, "K"))
    objective._check(P12, V21)
    check_number("tolerance", tolerance, above=0)
    if times[0] != 0 or len(times) < 2 or not (times.diff() > 0).all():
        raise ValueError("times: expected at least two increasing times, the first 0")

    def blocks(y: np.ndarray) -> tuple[Tensor, Tensor]:
        first, second = torch.from_numpy(y).to(P12).split([P12.numel(), V21.numel()])
        return first.reshape(P12.shape), second.reshape(V21.shape)

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        return -torch.cat([g.flatten() for g in objective.gradient(*blocks(y))]).numpy()

    def jacobian(_: float, y: np.ndarray) -> np.ndarray:
        return -objective.hessian(*blocks(y)).numpy()

    start = torch.cat([P12.flatten(), V21.flatten()]).numpy()
    grid = times.numpy()
    solution = solve_ivp(
        velocity, (0, grid[-1]), start, method="BDF", t_eval=grid, jac=jacobian,
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip
    if not solution.success:
        raise RuntimeError(f"the solver gave up: {solution.message}")
    pairs = [blocks(np.ascontiguousarray(y)) for y in solution.y.T]
    losses = torch.stack([objective.loss(*pair) for pair in pairs])
    first, second = (torch.stack(series) for series in zip(*pairs, strict=True))
    return Flow(times, first, second, losses)


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
    return math.sqrt((imbalance + math.sqrt(imbalance**2 + 4 * a * b)) / (2 * a))


def tangent(c: float, P12_star: Tensor, V21_star: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity (P12*, -V21* / c^2) of the manifold's point (c P12*, V21* / c)."""
    _check_star(P12_star, V21_star)
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


class Curvature(NamedTuple):
    """What the Gauss-Newton matrix says about a point where the loss is zero.

    Attributes
    ----------
    rate : float
        The smallest non-zero eigenvalue: gradient flow approaches its limit like exp(-rate t), and
        the loss falls like exp(-2 rate t).
    nullity : int
        Number of null directions; 1 on the manifold if the data are rich.
    eigenvalues : Tensor, shape (k q + p k,)
        All of them, in ascending order.
    null_p, null_v : Tensor, shape (nullity, k, q) and (nullity, p, k)
        An orthonormal basis of the null space, as pairs of blocks.
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
    null = vectors[:, :nullity].mT
    return Curvature(
        rate=values[nullity].item(),
        nullity=nullity,
        eigenvalues=values,
        null_p=null[:, : P12.numel()].reshape(nullity, *P12.shape),
        null_v=null[:, P12.numel() :].reshape(nullity, *V21.shape),
    )


class SymmetryBlock(NamedTuple):
    """One block of a Gauss-Newton matrix that commutes with signed permutations of the features.

    Attributes
    ----------
    multiplicity : int
        How often the block occurs: the dimension of the representation.
    matrix : Tensor, shape (a + b, a + b)
        The block: a coordinates of P12, then b of V21.
    P12, V21 : Tensor, shape (a,) and (b,)
        Coordinates of the point at which it was computed: zero in all blocks but "trace".
    """

    multiplicity: int
    matrix: Tensor
    P12: Tensor
    V21: Tensor


def symmetry_blocks(objective: Objective, P12: Tensor, V21: Tensor) -> dict[str, SymmetryBlock]:
    """Average the Gauss-Newton matrix over signed permutations of the d features.

    Where features and parameters are as likely as their signed permutations, as in the paper's
    family, the population's matrix of side (2 d + 1)^2 falls into five blocks of side 4 or 5.
    Averaging a sample's matrix over the group keeps its mean and removes what breaks the symmetry.

    Parameters
    ----------
    objective : Objective
        A sample of SARSA windows: k = 2 d + 1, q = d + 1, p = d.
    P12, V21 : Tensor, shape (2 d + 1, d + 1) and (d, 2 d + 1)
        A point that signed permutations leave as it is, for example one of the manifold.

    Returns
    -------
    dict of str to SymmetryBlock
        "trace": the identity in a slot (phi with w, gamma phi+ with w, r with 1; phi, gamma phi+),
        once; "vector": one index (phi with 1, gamma phi+ with 1, r with w; r), d times;
        "diagonal", "symmetric" and "antisymmetric": two indices in a slot (phi with w, gamma phi+
        with w; phi, gamma phi+), d - 1 and twice d (d - 1) / 2 times, absent for d = 1. Before each
        semicolon are coordinates of P12, after it of V21, all with respect to orthonormal bases.
    """
    check_instance("objective", objective, Objective)
    sizes = check_tensors(V21=(V21, "d k"), P12=(P12, "k q"), sigma=(objective.sigma, "N k k"))
    objective._check(P12, V21)
    d = sizes["d"]
    if (sizes["k"], sizes["q"]) != (2 * d + 1, d + 1):
        raise ValueError(
            f"P12: expected the shape (2 d + 1, d + 1) of SARSA with d = {d}, "
            f"got {tuple(P12.shape)}"
        )
    count, root = len(objective.column), math.sqrt(d)
    w = objective.column[:, 1:]
    write, read = V21 @ objective.sigma, objective._read(P12)
    # V21 Sigma and Sigma P12 w~, cut into the slots phi, gamma phi+ and r of a token.
    writes, write_r = (write[..., :d], write[..., d : 2 * d]), write[..., 2 * d]
    reads, read_r = (read[:, :d], read[:, d : 2 * d]), read[:, 2 * d]
    moved = [_times(slot, w) for slot in writes]

    trace = torch.stack([*(m / root for m in moved), write_r, *(slot / root for slot in reads)])
    by_r = write_r.unsqueeze(2) * w.unsqueeze(1)
    identity = torch.eye(d, dtype=w.dtype)
    vector = torch.stack([*writes, by_r, read_r[:, None, None] * identity])
    point_p = [P12[:d, 1:].trace() / root, P12[d : 2 * d, 1:].trace() / root, P12[2 * d, 0]]
    point_v = [V21[:, :d].trace() / root, V21[:, d : 2 * d].trace() / root]
    off = P12.new_zeros(4)
    blocks = {
        "trace": SymmetryBlock(
            1, _mean_gram(trace), torch.stack(point_p), torch.stack(point_v)
        ),
        "vector": SymmetryBlock(d, _mean_gram(vector) / d, off[:3], off[:1]),
    }  # fmt: skip
    if d == 1:
        return blocks

    # Sums over j != l of the entries (jl, jl), (jl, lj) and (jj, ll), and over j of (jj, jj). The
    # first index is that of a token, the second that of w or of a row of V21.
    same, swapped, apart, equal = P12.new_zeros(4, 4, 4)
    for a, b in product(range(2), repeat=2):
        gram = (writes[a] * writes[b]).sum(1)
        square = (gram * w.square()).sum(-1)
        same[a, b] = (gram.sum(-1) * w.square().sum(-1) - square).mean()
        swapped[a, b] = apart[a, b] = ((moved[a] * moved[b]).sum(-1) - square).mean()
        equal[a, b] = square.mean()
        diagonal = writes[a].diagonal(dim1=1, dim2=2)
        mixed = (diagonal * w * reads[b]).sum(-1)
        same[a, 2 + b] = ((w * _times(writes[a], reads[b])).sum(-1) - mixed).mean()
        swapped[a, 2 + b] = (diagonal.sum(-1) * (w * reads[b]).sum(-1) - mixed).mean()
        apart[a, 2 + b] = ((reads[b] * moved[a]).sum(-1) - mixed).mean()
        equal[a, 2 + b] = mixed.mean()
        equal[2 + a, 2 + b] = (reads[a] * reads[b]).sum() / count
        same[2 + a, 2 + b] = (d - 1) * equal[2 + a, 2 + b]
    pairs = d * (d - 1)
    for name, multiplicity, matrix in (
        ("diagonal", d - 1, equal / d - apart / pairs),
        ("symmetric", pairs // 2, (same + swapped) / pairs),
        ("antisymmetric", pairs // 2, (same - swapped) / pairs),
    ):
        matrix[2:, :2] = matrix[:2, 2:].mT
        blocks[name] = SymmetryBlock(multiplicity, matrix, off[:2], off[:2])
    return blocks


class Alignment(NamedTuple):
    """How far the effects of P12 and V21 can cancel on the normal space.

    Attributes
    ----------
    rho : float
        The smallest number with E<X, Y> >= -rho sqrt(E||X||^2 E||Y||^2) for all (U, W) of N_c.
    P12, V21 : Tensor
        A pair (U, W) on the boundary of those for which the bound holds, where it is attained.
    """

    rho: float
    P12: Tensor
    V21: Tensor


def alignment(matrix: Tensor, P12_star: Tensor, V21_star: Tensor) -> Alignment:
    """Compute rho of Assumption 1, condition 5, as a lower bound: what Theorem 3.2's proof uses.

    X and Y are the first-order changes of the residual by U and by W. Rescaling U and W by separate
    positive factors leaves their correlation as it is and spreads N_c over all pairs for which
    <U, P12*> and <W, V21*> have one sign. On the boundary of these, one of the two is zero and the
    other free, so that rho is the larger of two canonical correlations. It depends on no c.

    Parameters
    ----------
    matrix : Tensor, shape (a + b, a + b)
        A Gauss-Newton matrix, of `Objective.gauss_newton` on the manifold or of `symmetry_blocks`.
    P12_star, V21_star : Tensor with a and with b entries
        The construction, in the coordinates of `matrix`. Zero for a block that is orthogonal to it.

    Raises
    ------
    ValueError
        If the matrix of P12 or that of V21 is singular: then conditions 2 to 4 fail, and
        Theorem 3.2 needs no rho.
    """
    check_tensor("P12_star", P12_star)
    check_tensor("V21_star", V21_star)
    check_tensors(
        matrix=(matrix, "side side"),
        P12_star=(P12_star.flatten(), "a"),
        V21_star=(V21_star.flatten(), "b"),
    )
    first, second = P12_star.numel(), V21_star.numel()
    if len(matrix) != first + second:
        raise ValueError(
            f"matrix: expected the side {first} + {second} of P12_star and V21_star, "
            f"got {len(matrix)}"
        )
    roots = []
    for name, part in (("P12", matrix[:first, :first]), ("V21", matrix[first:, first:])):
        values, vectors = torch.linalg.eigh(part)
        if values[0] <= 1e-13 * values[-1]:
            raise ValueError(f"matrix: expected the part of {name} to be regular; it is singular")
        roots.append(vectors * values.rsqrt() @ vectors.mT)
    correlations = roots[0] @ matrix[:first, first:] @ roots[1]
    best: tuple[float, Tensor, Tensor] | None = None
    for side, star in enumerate((P12_star, V21_star)):
        axis = roots[side] @ star.flatten()
        axis = axis / axis.norm().clamp(min=torch.finfo(axis.dtype).tiny)
        held = correlations.mT if side else correlations  # the constrained block comes first
        left, cosines, right = torch.linalg.svd(held - torch.outer(axis, axis @ held))
        if best is None or cosines[0] > best[0]:
            pair = (left[:, 0], right[0]) if side == 0 else (right[0], left[:, 0])
            best = cosines[0].item(), roots[0] @ pair[0], -roots[1] @ pair[1]
    return Alignment(best[0], best[1].reshape(P12_star.shape), best[2].reshape(V21_star.shape))


class Bracket(NamedTuple):
    """An estimate of a smallest eigenvalue from both sides.

    Attributes
    ----------
    low : float
        Smallest eigenvalue of the sample mean: too low on average, by Jensen's inequality.
    high : float
        Mean over one half of the sample of the direction that the other half found smallest: too
        high on average. Both ways round, averaged.
    error : float
        Standard error of `high` for the two directions that were found.
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
    return Bracket(
        low=torch.linalg.eigvalsh(matrices.mean(0))[0].item(),
        high=values.mean().item(),
        error=(values.std() / math.sqrt(len(values))).item(),
    )


class Richness(NamedTuple):
    """The constants of Assumption 1, for SARSA.

    Attributes
    ----------
    bound_features, bound_reward, bound_column : float
        B_phi, B_r and B_w~: bounds on the norms of phi, r and w~.
    kappa_column : float
        kappa_w~, smallest eigenvalue of E[w~ w~^T].
    kappa_window : float
        kappa_R, smallest eigenvalue of E[R^T R | w] over all w, where R = (1/n) sum phi_i x_i^T.
    kappa_update : float
        kappa_q, smallest eigenvalue of E[b b^T], where b = (1/n) sum x_i delta_i.
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

    Returns
    -------
    Richness
        Exact for the sample, taken as the whole population.
    """
    check_instance("objective", objective, Objective)
    _check_star(P12_star, V21_star)
    objective._check(P12_star, V21_star)
    sizes = check_tensors(V21_star=(V21_star, "d k"), P12_star=(P12_star, "k q"))
    check_tensors(
        P12_star=(P12_star, "k q"),
        **{
            "objective.sigma": (objective.sigma, "N k k"),
            "objective.column": (objective.column, "N q"),
        },
    )
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
        raise ValueError(
            "bound_features, bound_reward: expected bounds on the sample, "
            f"got a window with mean ||x||^2 = {largest:g}"
        )
    column, read = objective.column, objective._read(P12_star)
    window = objective.sigma[:, : sizes["d"]]  # R, (N, d, k)
    given_w = (window.mT @ window).unflatten(0, (draws, -1)).mean(1)
    kappas = [
        _smallest(column.mT @ column / len(column)),
        _smallest(given_w),
        _smallest(read.mT @ read / len(read)),
    ]
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
    m0, M0 : float
        Bounds m0 ||(U, W)||^2 <= E||X + Y||^2 <= M0 ||(U, W)||^2 on the first-order change X + Y of
        the residual; the lower one for (U, W) in N_c.
    C_Q : float
        The second-order part of the residual is at most C_Q ||(U, W)||^2.
    r : float
        Distance from the manifold within which the rest holds.
    mu : float
        mu_r: L(t) <= exp(-2 mu_r t) L(0).
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
    """Evaluate Theorem 3.2 around the point of the manifold with scale c.

    Parameters
    ----------
    constants : Richness
        The constants of Assumption 1.
    d : int
        Number of features.
    alpha : float
        The teacher's step size.
    c : float
        Scale, above 0.
    width : float
        The interval I is [c (1 - width), c (1 + width)]; in [0, 1).
    fraction : float
        r as a part of the largest allowed, sqrt(m0) / (3 C_Q); in [0, 1).

    Returns
    -------
    Guarantee
        All zero but M0 and C_Q where a kappa is zero or rho is 1. With `width` or `fraction` 0 the
        theorem speaks of one point or of no neighbourhood: `mu` is what it can at most guarantee,
        and `start` is 0.
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


def _check_star(P12_star: Tensor, V21_star: Tensor) -> None:
    """Refuse what cannot be a construction: P12* is (k, 1 + p) and V21* is (p, k)."""
    sizes = check_tensors(V21_star=(V21_star, "p k"), P12_star=(P12_star, "k q"))
    if sizes["q"] != sizes["p"] + 1:
        raise ValueError(
            f"P12_star, V21_star: expected 1 + p = {sizes['p'] + 1} columns of P12_star, "
            f"got {sizes['q']}"
        )


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply (N, a, b) with (N, b), shape (N, a)."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _mean_gram(derivatives: Tensor) -> Tensor:
    """Return the mean over N of the products of a derivatives, (a, N, ...) -> (a, a)."""
    flat = derivatives.flatten(1)
    return flat @ flat.mT / derivatives.shape[1]


def _smallest(matrices: Tensor) -> float:
    """Return the smallest eigenvalue of positive semidefinite matrices; rounded zeros are 0."""
    values = torch.linalg.eigvalsh(matrices)
    smallest = values[..., 0].min().item()
    return smallest if smallest > 1e-13 * values.max().item() else 0.0
