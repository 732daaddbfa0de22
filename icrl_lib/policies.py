"""Policies as tables of action probabilities, and the trajectories that they produce."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import (
    Discount,
    check_count,
    check_distribution,
    check_generator,
    check_indices,
    check_instance,
    check_number,
    check_tensors,
)
from icrl_lib.mdps import TabularMDP, check_policy, cumulative, greedy_policy, uniform_on_simplex


class Share(NamedTuple):
    """The part of a batch of MDPs that one of several processes works on.

    `batch` is the number of MDPs in the whole batch, `part` the slice of those that are worked on.
    """

    batch: int
    part: slice

    def uniform(self, mdp: TabularMDP, n: int, generator: torch.Generator) -> Tensor:
        """Draw numbers for the whole batch and return those of this part, shape (n, B)."""
        like = mdp.transition
        numbers = torch.empty(n, self.batch, dtype=like.dtype, device=like.device)
        return numbers.uniform_(generator=generator)[:, self.part].contiguous()


def select(drawn: Any, index: slice | Tensor) -> Any:
    """Select some of a batch of MDPs, of their features, or of a tensor's rows."""
    if isinstance(drawn, tuple):
        return type(drawn)(*(tensor[index] for tensor in drawn))
    return drawn[index]


class Window(NamedTuple):
    """A window of experience: n consecutive transitions in each of B MDPs.

    Attributes
    ----------
    states, actions : Tensor of int64, shape (B, n + 1)
        s_0, ..., s_n, and a_0, ..., a_n, whose last is drawn but not taken, for SARSA's bootstrap.
    rewards : Tensor, shape (B, n)
        r_1, ..., r_n.
    discount : float or Tensor of shape (B, n)
        The discount of the MDPs that produced the window. Where episodes end, one for every
        transition, and 0 for those into the terminal state and out of it.
    terminal : int or None
        The state in which an episode is over.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    discount: Discount
    terminal: int | None = None

    def episodic(self, terminal: int | None) -> Window:
        """Return the same window of MDPs whose episodes end in the state `terminal`, if any."""
        if terminal is None:
            return self
        over = self.states == terminal
        gammas = torch.full_like(self.rewards, float(self.discount))
        gammas = gammas.masked_fill(over[:, :-1] | over[:, 1:], 0)
        return self._replace(discount=gammas, terminal=terminal)


def uniform_policy(mdp: TabularMDP) -> Tensor:
    """Return the uniform random policy, shape (B, S, A)."""
    check_instance("mdp", mdp, TabularMDP)
    shape = (mdp.batch, mdp.n_states, mdp.n_actions)
    return mdp.transition.new_full(shape, 1 / mdp.n_actions)


def random_policy(mdp: TabularMDP, generator: torch.Generator) -> Tensor:
    """Draw a policy (B, S, A) whose rows are uniform on the simplex, Dirichlet(1, ..., 1)."""
    check_instance("mdp", mdp, TabularMDP)
    check_generator(generator)
    shape, dtype = (mdp.batch, mdp.n_states, mdp.n_actions), mdp.transition.dtype
    return uniform_on_simplex(*shape, generator=generator, dtype=dtype)


def explore(policy: Tensor, epsilon: float) -> Tensor:
    """Mix a policy (B, S, A) with the uniform one: (1 - epsilon) policy + epsilon / A."""
    check_tensors(policy=(policy, "B S A"))
    check_distribution("policy", policy)
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
    # Over a short last axis torch's softmax takes ten times as long as over a leading one.
    return preferences.movedim(-1, 0).softmax(0).movedim(0, -1)


def softmax_score(phi: Tensor, policy: Tensor) -> Tensor:
    """Compute the score of a linear softmax policy, the gradient of log pi(a | s).

    The policy (B, S, A), without exploration, is proportional to exp(lambda^T phi(s, a)), with
    features (B, S, A, m), and so is the shape of g(s, a) = phi(s, a) - sum_b pi(b | s) phi(s, b),
    defined below eq. (3).
    """
    return phi - mean_features(phi, policy).unsqueeze(-2)


def mean_features(phi: Tensor, policy: Tensor) -> Tensor:
    """Average features (B, S, A, m) over the actions of a policy (B, S, A), shape (B, S, m)."""
    check_tensors(phi=(phi, "B S A m"), policy=(policy, "B S A"))
    check_distribution("policy", policy)
    return (policy.unsqueeze(-1) * phi).sum(-2)


def initial_states(mdp: TabularMDP, generator: torch.Generator) -> Tensor:
    """Draw one first state for each MDP from its initial distribution, int64, shape (B,)."""
    check_instance("mdp", mdp, TabularMDP)
    check_generator(generator)
    uniform = _uniform(mdp, 1, generator).T  # (B, 1)
    return (cumulative(mdp.initial) <= uniform).sum(-1)


def rollout(
    mdp: TabularMDP,
    policy: Tensor,
    n: int,
    state: Tensor,
    generator: torch.Generator,
    share: Share | None = None,
) -> Window:
    """Follow a policy (B, S, A), fixed during the window, for n steps in every MDP of the batch.

    The states (B,) to start from are int64; continue from ``window.states[:, -1]``. A `share` says
    that the B MDPs are a part of a larger batch; random numbers are then drawn for all of it, and
    the trajectories are those that the MDPs would have in the whole.
    """
    check_policy(mdp, policy)
    check_count("n", n)
    check_generator(generator)
    batch, n_states, n_actions = mdp.batch, mdp.n_states, mdp.n_actions
    check_indices("state", state, (batch,), n_states, mdp.transition.device)
    if share is not None:
        check_instance("share", share, Share)
        if len(range(share.batch)[share.part]) != batch:
            raise ValueError(f"share: expected {batch} MDPs, as in mdp, got {share!r}")

    # A step looks up a column of either table and writes where it was told to: in a batch of
    # hundreds, allocating would take the most time.
    with torch.no_grad():
        act = _Sampler(cumulative(policy).flatten(0, 1), batch)  # a column per MDP and state
        move = _Sampler(mdp.cumulative_transition.flatten(0, 2), batch)  # ... and action
    uniform = _uniform if share is None else share.uniform
    for_actions = uniform(mdp, n + 1, generator).unbind()
    for_states = uniform(mdp, n, generator).unbind()
    states, actions = state.new_empty(2, n + 1, batch)
    first_row = torch.arange(batch, device=state.device) * n_states
    pair = torch.empty_like(first_row)
    states[0] = state
    row = first_row + state
    for i, (s, a) in enumerate(zip(states[1:], actions, strict=False)):
        act.draw(row, for_actions[i], out=a)
        torch.add(a, row, alpha=n_actions, out=pair)
        move.draw(pair, for_states[i], out=s)
        torch.add(first_row, s, out=row)
    act.draw(row, for_actions[n], out=actions[n])
    states, actions = states.T.contiguous(), actions.T.contiguous()
    mdp_index = torch.arange(batch, device=state.device).unsqueeze(1)
    rewards = mdp.reward[mdp_index, states[:, :-1], actions[:, :-1], states[:, 1:]]
    return Window(states, actions, rewards, mdp.discount).episodic(mdp.terminal)


class _Sampler:
    """Draws from many distributions over K outcomes at a time, without allocating.

    A draw is the number of running sums that are at most u. Comparing u with all K of them side by
    side is faster than a binary search, whose branches a processor cannot foresee.
    """

    def __init__(self, sums: Tensor, draws: int) -> None:
        """Take running sums (rows, K), which end in 1, and the number of draws at a time."""
        self.sums = sums.T.contiguous()  # (K, rows), so that neighbours in memory are compared
        self.found = sums.new_empty(len(self.sums), draws)
        self.below = torch.empty_like(self.found)
        self.count = sums.new_empty(draws)

    def draw(self, rows: Tensor, uniform: Tensor, out: Tensor) -> None:
        """Write into `out` (int64) one outcome of each of `rows`, for u in `uniform`."""
        torch.index_select(self.sums, 1, rows, out=self.found)
        torch.le(self.found, uniform, out=self.below)
        torch.sum(self.below, 0, out=self.count)
        out.copy_(self.count)


def _uniform(mdp: TabularMDP, n: int, generator: torch.Generator) -> Tensor:
    """Draw numbers uniform on [0, 1), shape (n, B)."""
    numbers = torch.empty(n, mdp.batch, dtype=mdp.transition.dtype, device=mdp.transition.device)
    return numbers.uniform_(generator=generator)
