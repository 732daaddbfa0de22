"""Closed-loop control in context: policies that improve while no weight changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.checks import check_count, check_distribution, check_instance, check_tensors
from icrl_lib.loop import Update, interact
from icrl_lib.mdps import TabularMDP, check_policy, expected_return, greedy_policy, value_iteration
from icrl_lib.policies import initial_states, rollout, uniform_policy


class Improvement(NamedTuple):
    """How policies developed in a closed loop.

    `updates` (K,) are the numbers of in-context updates at which the `policies` (K, B, S, A) were
    kept, the first of them 0; `parameters` (B, p) are those after the last update.
    """

    updates: Tensor
    policies: Tensor
    parameters: Tensor


@torch.no_grad()
def improve(
    algorithm: Algorithm,
    mdp: TabularMDP,
    features: Any,
    parameters: Tensor,
    update: Update,
    n_updates: int,
    *,
    window: int = 20,
    keep_every: int = 10,
    epsilon: float | None = None,
    generator: torch.Generator,
) -> Improvement:
    """Let one agent act in each MDP and update its parameters from every window.

    Two calls that differ in `update` alone, with generators in equal states, see the same MDPs
    through the same random numbers, so that their curves can be compared pair by pair.

    Parameters
    ----------
    algorithm, mdp, features, parameters, update, generator
        As of :func:`icrl_lib.loop.interact`, or ``functools.partial(algorithm.forward, P=P, V=V)``
        as the update of a block with weights P and V.
    n_updates, window : int
        Number of windows, each followed by one update, and of transitions in each.
    keep_every : int
        Keep the policy after every so many updates.
    epsilon : float, optional
        Exploration of the policies that are *kept*: 0 for greedy (or pure softmax) evaluation. By
        default they are the behaviour policies themselves. Behaviour never changes.
    """
    check_instance("algorithm", algorithm, Algorithm)
    check_instance("mdp", mdp, TabularMDP)
    if not callable(update):
        raise ValueError(f"update: expected a function, got {update!r:.200}")
    for name, value in (("n_updates", n_updates), ("keep_every", keep_every), ("window", window)):
        check_count(name, value)
    state = initial_states(mdp, generator)
    kept = [algorithm.policy(features, parameters, epsilon)]
    updates = [0]
    loop = interact(
        algorithm, mdp, features, parameters, state, update, n=window, generator=generator
    )
    for done, frame in zip(range(1, n_updates + 1), loop, strict=False):
        if done % keep_every == 0:
            kept.append(algorithm.policy(features, frame.updated, epsilon))
            updates.append(done)
    return Improvement(torch.tensor(updates), torch.stack(kept), frame.updated)


def exact_returns(mdp: TabularMDP, policies: Tensor) -> Tensor:
    """Compute the exact expected return of policies (K, B, S, A), shape (K, B)."""
    check_instance("mdp", mdp, TabularMDP)
    shape = f"K {mdp.batch} {mdp.n_states} {mdp.n_actions}"
    check_tensors(**{"mdp.initial": (mdp.initial, "B S"), "policies": (policies, shape)})
    check_distribution("policies", policies)
    return torch.stack([expected_return(mdp, policy) for policy in policies])


class Levels(NamedTuple):
    """What the best and the worst of learners get in each of B MDPs.

    `oracle` (B,) are exact expected returns of an optimal policy, `random` (B,) of the uniform one.
    """

    oracle: Tensor
    random: Tensor

    def share(self, returns: Tensor) -> Tensor:
        """Return how much of the way from random to oracle is covered: (..., B) -> (...).

        A ratio of means over the MDPs.
        """
        return (returns - self.random).mean(-1) / (self.oracle - self.random).mean()


def levels(mdp: TabularMDP) -> Levels:
    """Compute the returns of an optimal and of the uniform policy, each (B,)."""
    policies = greedy_policy(value_iteration(mdp)), uniform_policy(mdp)
    return Levels(*(expected_return(mdp, policy) for policy in policies))


def monte_carlo_return(
    mdp: TabularMDP,
    policy: Tensor,
    episodes: int = 32,
    length: int = 50,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Estimate returns (B,) of a policy (B, S, A) from sampled trajectories, the paper's protocol.

    From the initial distribution `episodes` trajectories of `length` transitions begin in each MDP.
    The estimate is their mean of sum_i gamma^i r_{i+1}, cut off after `length` rewards, or where an
    episode ends.
    """
    check_instance("mdp", mdp, TabularMDP)
    check_policy(mdp, policy)
    check_count("episodes", episodes)
    check_count("length", length)
    copies = torch.arange(mdp.batch, device=policy.device).repeat_interleave(episodes)
    many = mdp[copies]
    window = rollout(many, policy[copies], length, initial_states(many, generator), generator)
    rewards = window.rewards
    if mdp.terminal is not None:
        rewards = rewards * (window.states[:, :-1] != mdp.terminal).cumprod(1)
    index = torch.arange(length, dtype=policy.dtype, device=policy.device)
    returns = rewards @ mdp.discount**index
    return returns.reshape(mdp.batch, episodes).mean(-1)
