"""Policies as tables of action probabilities, and the trajectories that they produce."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import check_count, check_generator, check_number, check_tensors
from icrl_lib.mdps import (
    TabularMDP,
    check_policy,
    cumulative,
    greedy_policy,
    uniform_on_simplex,
)


class Window(NamedTuple):
    """A window of experience: n consecutive transitions in each of B MDPs.

    Attributes
    ----------
    states : Tensor of int64, shape (B, n + 1)
        s_0, ..., s_n.
    actions : Tensor of int64, shape (B, n + 1)
        a_0, ..., a_n; the last one is drawn but not taken, as SARSA's bootstrap needs it.
    rewards : Tensor, shape (B, n)
        r_1, ..., r_n.
    discount : float
        The discount of the MDPs that produced the window.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    discount: float


def uniform_policy(mdp: TabularMDP) -> Tensor:
    """Return the uniform random policy, shape (B, S, A)."""
    return torch.full_like(mdp.expected_reward, 1 / mdp.n_actions)


def random_policy(mdp: TabularMDP, generator: torch.Generator) -> Tensor:
    """Draw a policy (B, S, A) whose rows are uniform on the simplex, Dirichlet(1, ..., 1)."""
    check_generator(generator)
    shape, dtype = (mdp.batch, mdp.n_states, mdp.n_actions), mdp.transition.dtype
    return uniform_on_simplex(*shape, generator=generator, dtype=dtype)


def explore(policy: Tensor, epsilon: float) -> Tensor:
    """Mix a policy (B, S, A) with the uniform one: (1 - epsilon) policy + epsilon / A."""
    check_tensors(policy=(policy, "B S A"))
    check_number("epsilon", epsilon, at_least=0, at_most=1)
    return (1 - epsilon) * policy + epsilon / policy.shape[-1]


def epsilon_greedy(q: Tensor, epsilon: float) -> Tensor:
    """Return the epsilon-greedy policy of action values q (B, S, A), shape (B, S, A).

    With probability 1 - epsilon a greedy action (ties shared equally), else a uniform one.
    """
    return explore(greedy_policy(q), epsilon)


def softmax_policy(preferences: Tensor) -> Tensor:
    """Return the softmax policy of preferences (B, S, A), shape (B, S, A)."""
    check_tensors(preferences=(preferences, "B S A"))
    return preferences.softmax(-1)


def softmax_score(phi: Tensor, policy: Tensor) -> Tensor:
    """Compute the score of a linear softmax policy, the gradient of log pi(a | s).

    Parameters
    ----------
    phi : Tensor, shape (B, S, A, m)
        Policy features; the policy is proportional to exp(lambda^T phi(s, a)).
    policy : Tensor, shape (B, S, A)
        The softmax policy itself, without exploration.

    Returns
    -------
    Tensor, shape (B, S, A, m)
        g(s, a) = phi(s, a) - sum_b pi(b | s) phi(s, b), defined below eq. (3).
    """
    check_tensors(phi=(phi, "B S A m"), policy=(policy, "B S A"))
    return phi - (policy.unsqueeze(-2) @ phi)  # (B, S, 1, A) @ (B, S, A, m)


def initial_states(mdp: TabularMDP, generator: torch.Generator) -> Tensor:
    """Draw one first state for each MDP from its initial distribution, int64, shape (B,)."""
    check_generator(generator)
    return _draw(cumulative(mdp.initial), _uniform(mdp, 1, generator)[0])


def rollout(
    mdp: TabularMDP, policy: Tensor, n: int, state: Tensor, generator: torch.Generator
) -> Window:
    """Follow a policy for n steps in every MDP of the batch.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of B MDPs.
    policy : Tensor, shape (B, S, A)
        Action probabilities, fixed during the window.
    n : int
        Number of transitions.
    state : Tensor of int64, shape (B,)
        The states to start from.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Window
        The trajectory; continue from ``window.states[:, -1]``.
    """
    check_policy(mdp, policy)
    check_count("n", n)
    check_generator(generator)
    batch, n_states, n_actions = mdp.batch, mdp.n_states, mdp.n_actions
    if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.shape != (batch,):
        raise ValueError(f"state: expected an int64 tensor of shape ({batch},), got {state!r}")
    if state.min() < 0 or state.max() >= n_states:
        raise ValueError(f"state: expected states from 0 to {n_states - 1}, got {state!r}")

    # Tables with one row per (MDP, state) and per (MDP, state, action): a step is two row look-ups.
    action_table = cumulative(policy).flatten(0, 1)  # (B S, A)
    state_table = mdp.cumulative_transition.flatten(0, 2)  # (B S A, S)
    for_actions = _uniform(mdp, n + 1, generator)
    for_states = _uniform(mdp, n, generator)
    first_row = torch.arange(batch, device=state.device) * n_states
    states, actions, pairs = [state], [], []
    for i in range(n + 1):
        row = first_row + states[-1]
        actions.append(_draw(action_table[row], for_actions[i]))
        if i < n:
            pairs.append(row * n_actions + actions[-1])
            states.append(_draw(state_table[pairs[-1]], for_states[i]))
    states = torch.stack(states, 1)
    mdp_index = torch.arange(batch, device=state.device).unsqueeze(1)
    actions = torch.stack(actions, 1)
    rewards = mdp.reward[mdp_index, states[:, :-1], actions[:, :-1], states[:, 1:]]
    return Window(states, actions, rewards, mdp.discount)


def _draw(table: Tensor, uniform: Tensor) -> Tensor:
    """Draw one outcome per row: table (B, K) of running sums, uniform (B,) -> int64 (B,)."""
    return (uniform.unsqueeze(-1) >= table[:, :-1]).sum(-1)


def _uniform(mdp: TabularMDP, n: int, generator: torch.Generator) -> Tensor:
    """Draw numbers uniform on [0, 1), shape (n, B)."""
    numbers = torch.empty(n, mdp.batch, dtype=mdp.transition.dtype, device=mdp.transition.device)
    return numbers.uniform_(generator=generator)
