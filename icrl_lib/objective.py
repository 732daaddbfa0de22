"""The loss of eq. (6) on a sample of windows, as a function of P12 and V21, and its derivatives.

P12 (k, q) and V21 (p, k) are all that training moves (Proposition 3.1), with k rows of a token, p
parameters and q = 1 + p. Expectations are means over a finite sample of windows, so that every
statement about them is exact for that sample.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from icrl_lib.attention import split
from icrl_lib.checks import check_count, check_instance, check_tensors
from icrl_lib.windows import Windows


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The loss of eq. (6) on a finite sample of N windows, in float64 whatever theirs is.

    A smaller type could not tell a zero eigenvalue of its curvature from a small one. `sigma` (N,
    k, k) are the second moments (1/n) sum_i x_i x_i^T of the tokens of each window, of length `n`,
    `column` (N, q) the parameter columns w~, and `target` (N, p) what the teacher adds to the
    parameters.
    """

    sigma: Tensor
    column: Tensor
    target: Tensor
    n: int

    def __post_init__(self) -> None:
        tensors = {"sigma": "N k k", "column": "N q", "target": "N p"}
        check_tensors(**{name: (getattr(self, name), axes) for name, axes in tensors.items()})
        check_count("n", self.n)
        for name in tensors:
            object.__setattr__(self, name, getattr(self, name).double())

    @classmethod
    def of(cls, windows: Windows) -> Objective:
        """Return the loss on a data set, for example of `icrl_lib.windows.collect`."""
        check_instance("windows", windows, Windows)
        tokens, parameters = windows.tokens.double(), windows.parameters.double()
        double = Windows(tokens, parameters, windows.target.double())
        return cls(double.moments, double.column, double.target - parameters, tokens.shape[1])

    def residuals(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return V21 Sigma P12 w~ - target, shape (N, p)."""
        self.check(P12=P12, V21=V21)
        return self.read(P12) @ V21.mT - self.target

    def loss(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return half the mean squared norm of the residuals, a scalar."""
        return 0.5 * self.residuals(P12, V21).square().sum(-1).mean()

    def gradient(self, P12: Tensor, V21: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the loss by P12 (k, q) and V21 (p, k)."""
        return self._gradient(self.residuals(P12, V21), P12, V21)

    def full_gradient(self, P: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the loss of the whole block by P and V, each (D, D).

        Zero outside P12, P22, V21 and V22 (Proposition 3.1); there, with s = w~^T P22 w~ and
        residuals e that include (1/n) V22 w~ s.
        """
        P12, V21, P22, V22 = split(P, V, self.target.shape[1])
        column, count = self.column, len(self.column)
        form = ((column @ P22) * column).sum(-1, keepdim=True)  # s, (N, 1)
        error = self.residuals(P12, V21) + form * (column @ V22.mT) / self.n
        slope = ((error @ V22) * column).sum(-1, keepdim=True)  # e^T V22 w~, (N, 1)
        by_p22 = (slope * column).mT @ column / (self.n * count)
        by_v22 = (form * error).mT @ column / (self.n * count)
        gradient = torch.zeros_like(P), torch.zeros_like(V)
        parts = *self._gradient(error, P12, V21), by_p22, by_v22
        for block, part in zip(split(*gradient, len(V21)), parts, strict=True):
            block.copy_(part)  # blocks are views of the two matrices
        return gradient

    def gauss_newton(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return the mean of J^T J for the Jacobian J of the residuals by (P12, V21).

        Rows and columns are the entries of P12, row by row, then those of V21: side k q + p k.
        Where the loss is zero this is its Hessian.
        """
        self.check(P12=P12, V21=V21)
        count, first, second = len(self.column), P12.numel(), V21.numel()
        read = self.read(P12)  # the derivative by V21, (N, k)
        write = V21 @ self.sigma  # with w~ the derivative by P12, (N, p, k)
        # Products over N are formed in pairs first, so that each sum is one matrix product.
        columns = self.column.unsqueeze(2) * self.column.unsqueeze(1)  # (N, q, q)
        by_p = torch.einsum("nkl,nqr->kqlr", write.mT @ write, columns).reshape(first, first)
        outer = self.column.unsqueeze(2) * read.unsqueeze(1)  # (N, q, k)
        mixed = torch.einsum("npk,nql->kqpl", write, outer).reshape(first, second)
        by_v = torch.kron(torch.eye(len(V21)).to(read), read.mT @ read)
        return torch.cat([torch.cat([by_p, mixed], 1), torch.cat([mixed.mT, by_v], 1)]) / count

    def hessian(self, P12: Tensor, V21: Tensor) -> Tensor:
        """Return the Hessian of the loss, in the order of `gauss_newton`."""
        first, matrix = P12.numel(), self.gauss_newton(P12, V21)
        outer = self.residuals(P12, V21).unsqueeze(2) * self.column.unsqueeze(1)  # (N, p, q)
        mixed = torch.einsum("nkl,npq->kqpl", self.sigma, outer).reshape(first, -1) / len(outer)
        matrix[:first, first:] += mixed
        matrix[first:, :first] += mixed.mT
        return matrix

    def read(self, P12: Tensor) -> Tensor:
        """Return Sigma P12 w~, shape (N, k): on the manifold at c = 1, b of Assumption 1."""
        return (self.sigma @ (self.column @ P12.mT).unsqueeze(-1)).squeeze(-1)

    def check(self, **blocks: Tensor) -> None:
        """Refuse P12 and V21, in this order and under any names, of another shape or dtype.

        Whether they are finite is the caller's affair: a solver that tries too long a step has to
        see NaN, not an error.
        """
        k, q, p = self.sigma.shape[1], self.column.shape[1], self.target.shape[1]
        for (name, block), shape in zip(blocks.items(), ((k, q), (p, k)), strict=True):
            check_instance(name, block, Tensor)
            given = tuple(block.shape), block.dtype, block.device
            wanted = shape, self.column.dtype, self.column.device
            if given != wanted:
                raise ValueError(f"{name}: expected shape, dtype and device {wanted}, got {given}")

    def _gradient(self, error: Tensor, P12: Tensor, V21: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean derivatives of half of |error|^2 by P12 and V21."""
        written = (self.sigma @ (error @ V21).unsqueeze(-1)).squeeze(-1)  # Sigma V21^T e, (N, k)
        count = len(error)
        return written.mT @ self.column / count, error.mT @ self.read(P12) / count
