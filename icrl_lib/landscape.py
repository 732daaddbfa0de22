"""The landscape of the loss where features and parameters have no preferred directions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import check_instance, check_tensors
from icrl_lib.objective import Objective


class SymmetryBlock(NamedTuple):
    """One block of a Hessian that commutes with signed permutations of the features.

    `matrix` (a + b, a + b) has a coordinates of P12, then b of V21, and occurs `multiplicity`
    times, the dimension of the representation. `P12` (a,) and `V21` (b,) are the coordinates of the
    point at which it was computed: zero in all blocks but "trace".
    """

    multiplicity: int
    matrix: Tensor
    P12: Tensor
    V21: Tensor


def symmetry_blocks(objective: Objective, P12: Tensor, V21: Tensor) -> dict[str, SymmetryBlock]:
    """Average the Hessian of the loss over signed permutations of the d features.

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
    d = check_tensors(V21=(V21, "d k"), P12=(P12, "k q"))["d"]
    objective.check(P12=P12, V21=V21)
    check_tensors(P12=(P12, f"{2 * d + 1} {d + 1}"))
    count, root, identity = len(objective.column), d**0.5, torch.eye(d).to(P12)
    w, error = objective.column[:, 1:], objective.residuals(P12, V21)

    # What V21 writes, P12 reads and Sigma are cut into phi and gamma phi+ (axis a or b), and r.
    def cut(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[..., :-1].unflatten(-1, (2, d)), rows[..., -1]

    (write, write_r), (read, read_r) = cut(V21 @ objective.sigma), cut(objective.read(P12))
    sigma = objective.sigma[:, :-1, :-1].reshape(count, 2, d, 2, d)
    sigma_r, sigma_rr = cut(objective.sigma[:, -1])

    def mean(pattern: str, *factors: Tensor) -> Tensor:
        return torch.einsum(pattern, *factors) / count

    # Sums over j and l of the entries (jl, jl), (jl, lj) and (jj, ll), and over j of (jj, jj). The
    # first index is that of a token, the second that of w or of a row of V21.
    gram = (write.unsqueeze(3) * write.unsqueeze(2)).sum(1)  # (N, 2, 2, d)
    moved = torch.einsum("npaj,nj->npa", write, w)
    across, sums = mean("npa,npb->ab", moved, moved), []
    for j, l, J, L in ("jljl", "jllj", "jjll", "jjjj"):  # noqa: E741
        by_p = mean(f"nabj,n{l},n{l}->ab", gram, w, w) if j == J else across
        by_v = mean(f"na{j},nb{J},{l}{L}->ab", read, read, identity)
        mixed = mean(f"n{L}a{j},n{l},nb{J}->ab", write, w, read)
        mixed += mean(f"na{j}b{J},n{l},n{L}->ab", sigma, w, error)
        sums.append(torch.cat([torch.cat([by_p, mixed], 1), torch.cat([mixed.mT, by_v], 1)]))
    same, swapped, apart, equal = sums

    edge = mean("nbl,nl->b", read, write_r) + mean("nbl,nl->b", sigma_r, error)
    edge = torch.cat([mean("npa,np->a", moved, write_r), edge]) / root
    trace = torch.block_diag(apart / d, mean("np,np->", write_r, write_r))
    trace[4, :4] = trace[:4, 4] = edge
    trace = trace[[0, 1, 4, 2, 3]][:, [0, 1, 4, 2, 3]]  # r comes last of P12

    by_r = write_r.unsqueeze(2) * w.unsqueeze(1)
    vector = torch.stack([*write.unbind(2), by_r, read_r[:, None, None] * identity]).flatten(1)
    vector = vector @ vector.mT / count
    edge = torch.stack([*mean("naj,nj->a", sigma_r, error), mean("n,nj,nj->", sigma_rr, w, error)])
    vector[3, :3] += edge
    vector[:3, 3] += edge

    point = [P12[:d, 1:].trace() / root, P12[d : 2 * d, 1:].trace() / root, P12[2 * d, 0]]
    point = torch.stack([*point, V21[:, :d].trace() / root, V21[:, d : 2 * d].trace() / root])
    off, pairs = torch.zeros_like(point), d * (d - 1)
    blocks = {
        "trace": SymmetryBlock(1, trace, point[:3], point[3:]),
        "vector": SymmetryBlock(d, vector / d, off[:3], off[:1]),
    }
    if d > 1:
        apart, same, swapped = (pair_sum - equal for pair_sum in (apart, same, swapped))
        for name, multiplicity, matrix in (
            ("diagonal", d - 1, equal / d - apart / pairs),
            ("symmetric", pairs // 2, (same + swapped) / pairs),
            ("antisymmetric", pairs // 2, (same - swapped) / pairs),
        ):
            blocks[name] = SymmetryBlock(multiplicity, matrix, off[:2], off[:2])
    return blocks
