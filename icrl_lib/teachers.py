"""Textbook updates that a transformer is to reproduce. Nothing here knows about transformers.

Every update is made for B MDPs at once, from a window of n transitions in each, with these
arguments:

w : Tensor, shape (B, d)
    Parameters of action values q(s, a) = w^T phi(s, a), or of the state values w^T phi_V(s).
phi, phi_next : Tensor, shape (B, n, d)
    phi(s_i, a_i) and phi(s_{i+1}, a_{i+1}); where updates are about states, phi_V(s_i) and
    phi_V(s_{i+1}).
rewards : Tensor, shape (B, n)
    Rewards r_1, ..., r_n.
lam : Tensor, shape (B, m)
    Parameters lambda of the softmax policy, the actor.
scores : Tensor, shape (B, n, m)
    Scores g_lambda(s_i, a_i), undiscounted.
discount : float or Tensor of shape (B, n)
    The discount gamma, in [0, 1), or gamma_i, in [0, 1], of each transition.
alpha, beta : float
    Step sizes, above 0; of two, alpha is the actor's and beta the critic's.

Updated parameters have the shapes of those given. A ValueError says which shapes, dtypes or devices
disagree, or which number is out of range.

Where episodes end within a window, the discount is a tensor of one gamma_i for each transition
(transition-based discounting; White, 2017). It is 0 for the transition that ends an episode and for
the one to the next first state, at which features and scores before the transition are zero: so
nothing is bootstrapped, returned, traced or written from one episode to another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icrl_lib.checks import (
    Discount,
    check_count,
    check_discount,
    check_distribution,
    check_number,
    check_tensors,
)


def td_errors(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount
) -> Tensor:
    """Compute delta_i = r_{i+1} + gamma w^T phi_next_i - w^T phi_i, shape (B, n)."""
    check_tensors(
        w=(w, "B d"), phi=(phi, "B n d"), phi_next=(phi_next, "B n d"), rewards=(rewards, "B n")
    )
    check_discount(discount, rewards)
    return rewards + discount * _values(phi_next, w) - _values(phi, w)


def sarsa_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float
) -> Tensor:
    """Return w + (alpha / n) sum_i delta_i phi_i, a step of batch semi-gradient SARSA (eq. 2).

    Equations are those of Liang and Lai (2026). Arguments are those of the module, where they are
    listed, and delta_i the errors of :func:`td_errors`.
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    check_number("alpha", alpha, above=0)
    return w + alpha * _mean_of_products(delta, phi)


def actor_critic_update(
    lam: Tensor, w: Tensor, phi_v: Tensor, phi_v_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: Discount, alpha: float, beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one step of batch actor-critic (eq. 3), with the old parameters in actor and critic.

    Returns
    -------
    lam, w : Tensor, shape (B, m) and (B, d)
        lambda + (alpha / n) sum_i gamma^i delta_i g_lambda(s_i, a_i), and w + (beta / n) sum_i
        delta_i phi_V(s_i).
    """
    check_tensors(
        w=(w, "B d"),
        phi_v=(phi_v, "B n d"),
        phi_v_next=(phi_v_next, "B n d"),
        rewards=(rewards, "B n"),
    )
    check_discount(discount, rewards)
    delta = rewards + discount * _values(phi_v_next, w) - _values(phi_v, w)
    return _actor_and_critic(lam, w, phi_v, rewards, scores, discount, alpha, beta, delta, delta)


def td_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float,
    ratios: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Take one step of batch TD(0) for state values, off-policy with importance ratios.

    Sutton and Barto (2018), sections 9.3 and 11.1. Returns w + (alpha / n) sum_i rho_i delta_i
    phi_i, shape (B, d). `ratios` (B, n) are rho_i = pi(a_i | s_i) / b(a_i | s_i) where b behaved
    and pi is evaluated; by default 1.
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    check_number("alpha", alpha, above=0)
    if ratios is not None:
        check_tensors(phi=(phi, "B n d"), ratios=(ratios, "B n"))
        if ratios.min() < 0:
            raise ValueError("ratios: expected importance ratios, got a negative number")
        delta = ratios * delta
    return w + alpha * _mean_of_products(delta, phi)


def residual_gradient_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float
) -> Tensor:
    """Take one step of the residual-gradient algorithm (Baird, 1995).

    It descends the mean squared TD error: the bootstrapped value is differentiated too, which the
    semi-gradient of SARSA leaves out. Returns w + (alpha / n) sum_i delta_i (phi_i - gamma
    phi_next_i), shape (B, d).
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    check_number("alpha", alpha, above=0)
    gammas = discount.unsqueeze(-1) if isinstance(discount, Tensor) else discount
    return w + alpha * _mean_of_products(delta, phi - gammas * phi_next)


def expected_sarsa_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, probabilities: Tensor, rewards: Tensor,
    discount: Discount, alpha: float,
) -> Tensor:  # fmt: skip
    """Take one step of batch expected SARSA (Sutton and Barto, 2018, section 6.6).

    Here `phi_next`, (B, n, A, d), holds phi(s_{i+1}, b) for every action b, and `probabilities`,
    (B, n, A), pi(b | s_{i+1}). Returns w + (alpha / n) sum_i delta_i phi_i, where delta_i = r_{i+1}
    + gamma sum_b pi(b | s_{i+1}) q(s_{i+1}, b) - q(s_i, a_i).
    """
    q_next = _next_values(w, phi, phi_next, rewards, discount, alpha)
    check_tensors(phi_next=(phi_next, "B n A d"), probabilities=(probabilities, "B n A"))
    check_distribution("probabilities", probabilities)
    target = rewards + discount * (probabilities * q_next).sum(-1)
    return w + alpha * _mean_of_products(target - _values(phi, w), phi)


def q_learning_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float
) -> Tensor:
    """Take one step of batch Q-learning (Sutton and Barto, 2018, section 6.5).

    Here `phi_next`, (B, n, A, d), holds phi(s_{i+1}, b) for every action b. Returns w + (alpha / n)
    sum_i delta_i phi_i, where delta_i = r_{i+1} + gamma max_b q(s_{i+1}, b) - q(s_i, a_i).
    """
    q_next = _next_values(w, phi, phi_next, rewards, discount, alpha)
    target = rewards + discount * q_next.amax(-1)
    return w + alpha * _mean_of_products(target - _values(phi, w), phi)


def n_step_sarsa_update(
    w: Tensor, phi: Tensor, rewards: Tensor, discount: Discount, alpha: float, steps: int
) -> Tensor:
    """Take one step of batch n-step SARSA (Sutton and Barto, 2018, section 7.2).

    The number of rewards before the bootstrap, at least 1, is called `steps`, as n is the length of
    the window; 1 is SARSA. Near the end of the window the look-ahead stops at its last pair. Here
    `phi`, (B, n + 1, d), holds phi(s_0, a_0), ..., phi(s_n, a_n). Returns w + (alpha / n) sum_i
    (G_i - w^T phi_i) phi_i, where h = min(steps, n - i) and G_i = r_{i+1} + ... + gamma^{h-1}
    r_{i+h} + gamma^h w^T phi_{i+h}.
    """
    check_tensors(w=(w, "B d"), phi=(phi, "B n+1 d"), rewards=(rewards, "B n"))
    n = rewards.shape[1]
    if phi.shape[1] != n + 1:
        given = f"{phi.shape[1]} and {n}"
        raise ValueError(f"phi, rewards: expected n + 1 feature vectors, n rewards; got {given}")
    check_discount(discount, rewards)
    check_number("alpha", alpha, above=0)
    check_count("steps", steps)
    values = _values(phi, w)  # (B, n + 1)
    gammas, later = _of_each_transition(discount, n), rewards.split(1, 1)
    targets = []
    for i in range(n):
        end = min(i + steps, n)
        target = values[:, end : end + 1]
        for j in reversed(range(i, end)):
            target = later[j] + gammas[j] * target
        targets.append(target)
    errors = torch.cat(targets, 1) - values[:, :-1]
    return w + alpha * _mean_of_products(errors, phi[:, :-1])


def sarsa_lambda_update(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float,
    trace_decay: float,
) -> Tensor:  # fmt: skip
    """Take one step of batch SARSA(lambda) with accumulating traces (the backward view).

    Sutton and Barto (2018), section 12.7, with w frozen during the window; `trace_decay`, in [0,
    1], is their lambda. Returns w + (alpha / n) sum_i delta_i z_i, where z_i = gamma_{i-1}
    trace_decay z_{i-1} + phi_i; the trace z starts from zero in every window.
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    check_number("alpha", alpha, above=0)
    check_number("trace_decay", trace_decay, at_least=0, at_most=1)
    trace, total = torch.zeros_like(w), torch.zeros_like(w)
    n = delta.shape[1]
    gammas = _of_each_transition(discount, n)
    for i in range(n):
        trace = gammas[i - 1] * trace_decay * trace + phi[:, i]
        total = total + delta[:, i : i + 1] * trace
    return w + alpha * total / n


def differential_sarsa_update(
    average_reward: Tensor, w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one step of batch differential SARSA, for the average reward per step.

    Sutton and Barto (2018), section 10.3. There is no discount; `average_reward`, (B, 1), is the
    estimate r-bar, w that of differential action values, and beta the step size of r-bar. Returns
    r-bar + (beta / n) sum_i delta_i and w + (alpha / n) sum_i delta_i phi_i, where delta_i =
    r_{i+1} - r-bar + w^T phi_next_i - w^T phi_i.
    """
    check_tensors(
        w=(w, "B d"),
        phi=(phi, "B n d"),
        phi_next=(phi_next, "B n d"),
        rewards=(rewards, "B n"),
        average_reward=(average_reward, "B 1"),
    )
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_number(name, value, above=0)
    delta = rewards - average_reward + _values(phi_next, w) - _values(phi, w)
    r_bar = average_reward + beta * delta.mean(-1, keepdim=True)
    return r_bar, w + alpha * _mean_of_products(delta, phi)


def q_actor_critic_update(
    lam: Tensor, w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, scores: Tensor,
    discount: Discount, alpha: float, beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one step of actor-critic with action values (Sutton et al., 1999).

    The critic is SARSA; the actor weighs each score with the critic's value of the action itself.
    Returns lambda + (alpha / n) sum_i gamma^i q(s_i, a_i) g_lambda(s_i, a_i), with the old w, and w
    + (beta / n) sum_i delta_i phi_i.
    """
    delta = td_errors(w, phi, phi_next, rewards, discount)
    values = _values(phi, w)
    return _actor_and_critic(lam, w, phi, rewards, scores, discount, alpha, beta, values, delta)


def reinforce_update(
    lam: Tensor, w: Tensor, phi_v: Tensor, rewards: Tensor, scores: Tensor, discount: Discount,
    alpha: float, beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Take one step of REINFORCE with baseline (Sutton and Barto, 2018, section 13.4).

    A window counts as an episode: returns end with it, and nothing is bootstrapped.

    Returns
    -------
    lam, w : Tensor, shape (B, m) and (B, d)
        lambda + (alpha / n) sum_i gamma^i e_i g_lambda(s_i, a_i), and w + (beta / n) sum_i e_i
        phi_V(s_i), with e_i = G_i - w^T phi_V(s_i) and G_i = r_{i+1} + gamma r_{i+2} + ... +
        gamma^{n-1-i} r_n.
    """
    check_tensors(w=(w, "B d"), phi_v=(phi_v, "B n d"), rewards=(rewards, "B n"))
    check_discount(discount, rewards)
    returns = [torch.zeros_like(rewards[:, :1])]
    gammas = _of_each_transition(discount, rewards.shape[1])
    for reward, gamma in zip(reversed(rewards.split(1, 1)), reversed(gammas), strict=True):
        returns.append(reward + gamma * returns[-1])
    errors = torch.cat(returns[:0:-1], 1) - _values(phi_v, w)
    return _actor_and_critic(lam, w, phi_v, rewards, scores, discount, alpha, beta, errors, errors)


def td_system(
    phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount
) -> tuple[Tensor, Tensor]:
    """Return the A and b by which batch TD and SARSA are affine: w' = w + alpha (b - A w).

    A = (1 / n) sum_i phi_i (phi_i - gamma phi_next_i)^T, (B, d, d), is in general not symmetric,
    and b = (1 / n) sum_i r_{i+1} phi_i, (B, d).
    """
    sizes = check_tensors(
        phi=(phi, "B n d"), phi_next=(phi_next, "B n d"), rewards=(rewards, "B n")
    )
    A = phi.mT @ (phi - check_discount(discount, rewards) * phi_next) / sizes["n"]
    return A, _mean_of_products(rewards, phi)


def least_squares_td(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount
) -> Tensor:
    """Solve the equations of least-squares TD as repeated updates from `w` would.

    With A and b of :func:`td_system` it returns the solution of A w = b that differs from the given
    w by a combination of phi_0, ..., phi_{n-1}, shape (B, d): the limit of infinitely many SARSA
    (or TD) updates on this window, where there is one. If A is regular this is LSTD (Bradtke and
    Barto, 1996), whatever w is. If it is not, as for n < d, directions that no phi_i sees keep
    their w. A ValueError says that the equations of some window are singular, or so nearly that
    rounding `phi` and `phi_next` could make them so.
    """
    errors = td_errors(w, phi, phi_next, rewards, discount)
    n, d = phi.shape[1:]
    # A step within the span of the phi_i solves phi^T (phi - gamma phi_next) step = phi^T errors;
    # there the pseudoinverse undoes phi^T, and outside the identity is left.
    inverse = torch.linalg.pinv(phi)  # (B, d, n)
    following = check_discount(discount, rewards) * phi_next
    system = torch.eye(d, dtype=phi.dtype, device=phi.device) - inverse @ following
    gain, _ = torch.linalg.solve_ex(system, inverse)  # from TD errors to the step
    entries = torch.linalg.matrix_norm(phi) + torch.linalg.matrix_norm(following)
    error = max(n, d) * torch.finfo(phi.dtype).eps * entries * torch.linalg.matrix_norm(gain)
    if not (error < 1).all():
        raise ValueError("phi, phi_next: the equations of least-squares TD are singular")
    return w + (gain @ errors.unsqueeze(-1)).squeeze(-1)


def _values(phi: Tensor, w: Tensor) -> Tensor:
    """Return w^T phi: (B, n, d) and (B, d) -> (B, n)."""
    return (w.unsqueeze(1) @ phi.mT).squeeze(1)  # a row times a matrix is the faster order


def _next_values(
    w: Tensor, phi: Tensor, phi_next: Tensor, rewards: Tensor, discount: Discount, alpha: float
) -> Tensor:
    """Check the arguments of an update that looks at every next action; return q (B, n, A)."""
    check_tensors(
        w=(w, "B d"), phi=(phi, "B n d"), phi_next=(phi_next, "B n A d"), rewards=(rewards, "B n")
    )
    check_discount(discount, rewards)
    check_number("alpha", alpha, above=0)
    return (phi_next @ w[:, None, :, None]).squeeze(-1)


def _actor_and_critic(
    lam: Tensor, w: Tensor, phi: Tensor, rewards: Tensor, scores: Tensor, discount: Discount,
    alpha: float, beta: float, praise: Tensor, errors: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Move the actor by the mean of gamma^i praise_i g_i, the critic by that of errors_i phi_i."""
    check_tensors(rewards=(rewards, "B n"), lam=(lam, "B m"), scores=(scores, "B n m"))
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_number(name, value, above=0)
    praise = _since_start(rewards, discount) * praise
    return lam + alpha * _mean_of_products(praise, scores), w + beta * _mean_of_products(
        errors, phi
    )


def _of_each_transition(discount: Discount, n: int) -> Sequence[float | Tensor]:
    """Return gamma_0, ..., gamma_{n-1}, numbers or columns (B, 1)."""
    return discount.split(1, 1) if isinstance(discount, Tensor) else [discount] * n


def _since_start(rewards: Tensor, discount: Discount) -> Tensor:
    """Return gamma^i, shape (n,), or (B, n) where the power begins again in every episode."""
    n = rewards.shape[1]
    if not isinstance(discount, Tensor):
        return rewards.detach().new_tensor([discount**i for i in range(n)])
    powers = [torch.ones_like(rewards[:, :1])]
    for gamma in _of_each_transition(discount, n)[:-1]:
        powers.append((gamma * powers[-1]).masked_fill(gamma == 0, 1))
    return torch.cat(powers, 1)


def _mean_of_products(scalars: Tensor, vectors: Tensor) -> Tensor:
    """Average scalar times vector over a window: (B, n) and (B, n, d) -> (B, d)."""
    return (scalars.unsqueeze(-2) @ vectors).squeeze(-2) / scalars.shape[-1]
