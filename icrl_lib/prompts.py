"""The prompt: a window of experience and the current parameters as one matrix H.

Column i < n of H is a token [x_i; 0], column n is the parameter column [0; 1; parameters]:
experience and parameters occupy disjoint rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import Discount, check_count, check_discount, check_tensors


class Layout(NamedTuple):
    """Names and sizes of the slots of a prompt, from top to bottom.

    Names are written as LaTeX mathematics without the dollar signs. `token` lists the slots of x_i,
    `parameter` those of the parameter column: the constant 1, then the parameters.
    """

    token: tuple[tuple[str, int], ...]
    parameter: tuple[tuple[str, int], ...]

    @property
    def n_token(self) -> int:
        """Number of rows of a token."""
        return sum(size for _, size in self.token)

    @property
    def n_parameter(self) -> int:
        """Number of rows of the parameter column, the constant 1 included."""
        return sum(size for _, size in self.parameter)

    @property
    def size(self) -> int:
        """Number D of rows of H."""
        return self.n_token + self.n_parameter


def sarsa_layout(d: int) -> Layout:
    """Return the slots of the SARSA prompt (eq. 4); D = 3 d + 2."""
    check_count("d", d)
    return Layout(
        token=((r"\phi", d), (r"\gamma\phi^+", d), ("r", 1)), parameter=(("1", 1), ("w", d))
    )


def actor_critic_layout(d: int, m: int) -> Layout:
    """Return the slots of the actor-critic prompt (eq. 13); D = 3 d + 2 m + 2."""
    check_count("d", d)
    check_count("m", m)
    return Layout(
        token=((r"\phi_V", d), (r"\gamma\phi_V^+", d), ("r", 1), (r"\gamma^i g_\lambda", m)),
        parameter=(("1", 1), (r"\lambda", m), ("w", d)),
    )


def sarsa_tokens(phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount) -> Tensor:
    """Return the tokens x_i = [phi_i; gamma phi_next_i; r_{i+1}], shape (B, n, 2 d + 1)."""
    check_tensors(phi=(phi, "B n d"), phi_next=(phi_next, "B n d"), rewards=(rewards, "B n"))
    gammas = check_discount(discount, rewards)
    tokens = torch.cat([phi, phi_next, rewards.unsqueeze(-1)], -1)
    d = phi.shape[-1]
    tokens[..., d : 2 * d] *= gammas
    return tokens


def actor_critic_tokens(
    phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor, discount: Discount
) -> Tensor:
    """Return x_i = [phi_V(s_i); gamma phi_V(s_{i+1}); r_{i+1}; gamma^i g_lambda(s_i, a_i)].

    The shape is (B, n, 2 d + 1 + m); the power gamma^i starts from 1 in every window, and again
    after every transition whose discount is 0.
    """
    check_tensors(
        phi_v=(phi_v, "B n d"),
        phi_v_next=(phi_v_next, "B n d"),
        rewards=(rewards, "B n"),
        scores=(scores, "B n m"),
    )
    gammas = check_discount(discount, rewards)
    powers = since_start(discount, rewards).unsqueeze(-1)  # (n, 1) or (B, n, 1)
    tokens = torch.cat([phi_v, phi_v_next, rewards.unsqueeze(-1), scores], -1)
    d = phi_v.shape[-1]
    tokens[..., d : 2 * d] *= gammas
    tokens[..., 2 * d + 1 :] *= powers
    return tokens


def since_start(discount: Discount, rewards: Tensor) -> Tensor:
    """Return gamma^0, ..., gamma^{n-1} for rewards (B, n), shape (n,).

    Of a discount (B, n) the products up to each transition since the last that is 0, (B, n).
    """
    n = rewards.shape[1]
    if not isinstance(discount, Tensor):
        return discount ** torch.arange(n, dtype=rewards.dtype, device=rewards.device)
    powers = torch.ones_like(rewards)
    for i in range(1, n):
        gamma = discount[:, i - 1]
        powers[:, i] = torch.where(gamma > 0, gamma * powers[:, i - 1], 1)
    return powers


def in_between(discount: Discount, rewards: Tensor) -> Tensor:
    """Return gamma^{j-i} at [i, j], 0 <= i <= j <= n, and 0 elsewhere, shape (n + 1, n + 1).

    Of a discount (B, n) the products gamma_i ... gamma_{j-1}, shape (B, n + 1, n + 1).
    """
    index = torch.arange(rewards.shape[1] + 1, device=rewards.device)
    later = (index - index.unsqueeze(1)).to(rewards)  # later[i, j] = j - i
    if not isinstance(discount, Tensor):
        return torch.where(later >= 0, discount ** later.clamp(min=0), 0)
    before = torch.cat([torch.ones_like(discount[:, :1]), discount], 1)  # gamma_{j-1} at j
    return torch.where(later > 0, before.unsqueeze(1), 1).cumprod(-1).triu()


def parameter_column(parameters: Tensor) -> Tensor:
    """Put the constant 1 on top of parameters (B, p), shape (B, 1 + p)."""
    check_tensors(parameters=(parameters, "B p"))
    return torch.cat([torch.ones_like(parameters[:, :1]), parameters], -1)


def assemble(tokens: Tensor, parameters: Tensor) -> Tensor:
    """Assemble the prompt H, (B, k + 1 + p, n + 1), from tokens (B, n, k) and parameters (B, p).

    Its columns are [x_i; 0], then [0; 1; parameters].
    """
    sizes = check_tensors(tokens=(tokens, "B n k"), parameters=(parameters, "B p"))
    k, p, n = sizes["k"], sizes["p"], sizes["n"]
    H = tokens.new_zeros(sizes["B"], k + 1 + p, n + 1)
    H[:, :k, :n] = tokens.mT
    H[:, k:, n] = parameter_column(parameters)
    return H


def sarsa_prompt(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount
) -> Tensor:
    """Build the SARSA prompt H (eq. 4 of Liang and Lai, 2026), shape (B, 3 d + 2, n + 1).

    Arguments are the teacher's, listed in `icrl_lib.teachers`. The updated w is read from the last
    d entries of the last column of the output.
    """
    check_tensors(w=(w, "B d"), phi=(phi, "B n d"))
    return assemble(sarsa_tokens(phi, phi_next, rewards, discount), w)


def actor_critic_prompt(
    lam: Tensor, w: Tensor, phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: Discount,
) -> Tensor:  # fmt: skip
    """Build the actor-critic prompt H (eq. 13), shape (B, 3 d + 2 m + 2, n + 1).

    Arguments are the teacher's, listed in `icrl_lib.teachers`. The updated [lambda; w] is read from
    the last m + d entries of the last column of the output.
    """
    check_tensors(w=(w, "B d"), phi_v=(phi_v, "B n d"), lam=(lam, "B m"), scores=(scores, "B n m"))
    tokens = actor_critic_tokens(phi_v, phi_v_next, rewards, scores, discount)
    return assemble(tokens, torch.cat([lam, w], -1))
