"""Textbook updates that a transformer is to reproduce. Nothing here knows about transformers."""

from __future__ import annotations

from torch import Tensor

from icrl_lib.checks import check_number, check_tensors


def td_errors(w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Compute the temporal-difference errors of linear values w^T phi.

    Parameters
    ----------
    w : Tensor, shape (B, d)
        Value parameters.
    phi, phi_next : Tensor, shape (B, n, d)
        Features before and after each transition.
    rewards : Tensor, shape (B, n)
        Rewards r_1, ..., r_n.
    discount : float
        The discount gamma, in [0, 1).

    Returns
    -------
    Tensor, shape (B, n)
        delta_i = r_{i+1} + gamma w^T phi_next_i - w^T phi_i.
    """
    check_tensors(
        w=(w, "B d"),
        phi=(phi, "B n d"),
        phi_next=(phi_next, "B n d"),
        rewards=(rewards, "B n"),
    )
    check_number("discount", discount, at_least=0, less_than=1)
    return _td_errors(w, phi, phi_next, rewards, discount)


def sarsa_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float, alpha: float
) -> Tensor:
    """Take one step of batch semi-gradient SARSA (eq. 2 of Liang and Lai, 2026).

    Parameters
    ----------
    w : Tensor, shape (B, d)
        Parameters of the action values q(s, a) = w^T phi(s, a).
    phi, phi_next : Tensor, shape (B, n, d)
        phi(s_i, a_i) and phi(s_{i+1}, a_{i+1}).
    rewards : Tensor, shape (B, n)
        Rewards r_1, ..., r_n.
    discount : float
        The discount gamma, in [0, 1).
    alpha : float
        Step size, above 0.

    Returns
    -------
    Tensor, shape (B, d)
        w + (alpha / n) sum_i delta_i phi_i.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree or a number is out of range.
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    check_number("alpha", alpha, above=0)
    return w + alpha * _mean_of_products(delta, phi)


def actor_critic_update(
    lam: Tensor,
    w: Tensor,
    phi_v: Tensor,
    phi_v_next: Tensor,
    rewards: Tensor,
    scores: Tensor,
    discount: float,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Take one step of batch actor-critic (eq. 3 of Liang and Lai, 2026).

    Actor and critic both use the old parameters, through the same errors delta_i.

    Parameters
    ----------
    lam : Tensor, shape (B, m)
        Parameters lambda of the softmax policy, the actor.
    w : Tensor, shape (B, d)
        Parameters of the state values v(s) = w^T phi_V(s), the critic.
    phi_v, phi_v_next : Tensor, shape (B, n, d)
        phi_V(s_i) and phi_V(s_{i+1}).
    rewards : Tensor, shape (B, n)
        Rewards r_1, ..., r_n.
    scores : Tensor, shape (B, n, m)
        Scores g_lambda(s_i, a_i), undiscounted.
    discount : float
        The discount gamma, in [0, 1).
    alpha, beta : float
        Step sizes of actor and critic, above 0.

    Returns
    -------
    lam : Tensor, shape (B, m)
        lambda + (alpha / n) sum_i gamma^i delta_i g_lambda(s_i, a_i).
    w : Tensor, shape (B, d)
        w + (beta / n) sum_i delta_i phi_V(s_i).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree or a number is out of range.
    """
    check_tensors(
        w=(w, "B d"),
        phi_v=(phi_v, "B n d"),
        phi_v_next=(phi_v_next, "B n d"),
        rewards=(rewards, "B n"),
        lam=(lam, "B m"),
        scores=(scores, "B n m"),
    )
    check_number("discount", discount, at_least=0, less_than=1)
    check_number("alpha", alpha, above=0)
    check_number("beta", beta, above=0)
    delta = _td_errors(w, phi_v, phi_v_next, rewards, discount)
    since_start = delta.detach().new_tensor([discount**i for i in range(delta.shape[1])])
    return (
        lam + alpha * _mean_of_products(since_start * delta, scores),
        w + beta * _mean_of_products(delta, phi_v),
    )


def _td_errors(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: float
) -> Tensor:
    value = (phi @ w.unsqueeze(-1)).squeeze(-1)
    value_next = (phi_next @ w.unsqueeze(-1)).squeeze(-1)
    return rewards + discount * value_next - value


def _mean_of_products(scalars: Tensor, vectors: Tensor) -> Tensor:
    """Average scalar times vector over a window: (B, n) and (B, n, d) -> (B, d)."""
    return (scalars.unsqueeze(-2) @ vectors).squeeze(-2) / scalars.shape[-1]
