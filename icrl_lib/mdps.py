"""Batches of tabular Markov decision processes, and their exact solutions."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import torch
from torch import Tensor

from icrl_lib.checks import (
    check_count,
    check_distribution,
    check_dtype,
    check_generator,
    check_instance,
    check_number,
    check_tensors,
)

REWARD_ARGUMENTS = ("a,s'", "s,a", "s,a,s'")
"""What the rewards of `random_mdps` can depend on."""


@dataclasses.dataclass(frozen=True, eq=False)
class TabularMDP:
    """A batch of B tabular MDPs with the same numbers of states and actions.

    Parameters
    ----------
    transition : Tensor, shape (B, S, A, S)
        ``transition[b, s, a, s2]`` is the probability P(s2 | s, a) in MDP b.
    reward : Tensor, shape (B, S, A, S)
        ``reward[b, s, a, s2]`` is paid on the transition from s to s2 under a.
    initial : Tensor, shape (B, S)
        Distribution of the first state.
    discount : float
        The discount gamma, in [0, 1); 1 is possible where episodes end under every policy.
    terminal : int, optional
        The state, if there is one, in which an episode is over. Values end there. The transitions
        out of it pay nothing; they say how a trajectory goes on.

    Raises
    ------
    ValueError
        If shapes disagree, a number is not finite, a row of `transition` or `initial` is not a
        probability distribution, or `discount` or `terminal` is out of range.
    """

    transition: Tensor
    reward: Tensor
    initial: Tensor
    discount: float
    terminal: int | None = None

    def __post_init__(self) -> None:
        check_tensors(
            transition=(self.transition, "B S A S"),
            reward=(self.reward, "B S A S"),
            initial=(self.initial, "B S"),
        )
        if self.terminal is None:
            check_number("discount", self.discount, at_least=0, less_than=1)
        else:
            check_number("discount", self.discount, at_least=0, at_most=1)
            check_count("terminal", self.terminal, at_least=0)
            if self.terminal >= self.n_states:
                raise ValueError(f"terminal: expected below {self.n_states}, got {self.terminal!r}")
            if (self.transition[:, self.terminal] * self.reward[:, self.terminal]).any():
                raise ValueError("reward: expected 0 on every transition out of the terminal state")
        check_distribution("transition", self.transition)
        check_distribution("initial", self.initial)
        if self.discount == 1:
            self._check_that_every_policy_ends()

    @property
    def batch(self) -> int:
        """Number B of MDPs."""
        return self.transition.shape[0]

    @property
    def n_states(self) -> int:
        """Number S of states."""
        return self.transition.shape[1]

    @property
    def n_actions(self) -> int:
        """Number A of actions."""
        return self.transition.shape[2]

    @cached_property
    def expected_reward(self) -> Tensor:
        """Mean reward of a state and an action, shape (B, S, A)."""
        return (self.transition * self.reward).sum(-1)

    @cached_property
    def cumulative_transition(self) -> Tensor:
        """Running sums of `transition` over the next state, shape (B, S, A, S), for sampling.

        In memory the next state comes first, as `policies.rollout` compares along it.
        """
        return cumulative(self.transition).movedim(-1, 0).contiguous().movedim(0, -1)

    def __getitem__(self, index: slice | Tensor) -> TabularMDP:
        """Select MDPs of the batch by a slice or an index tensor; always a batch again."""
        tensors = (t[index] for t in (self.transition, self.reward, self.initial))
        return TabularMDP(*tensors, self.discount, self.terminal)

    def to(self, *args: object, **kwargs: object) -> TabularMDP:
        """Move the tensors to a dtype or device, as ``Tensor.to`` does."""
        tensors = (t.to(*args, **kwargs) for t in (self.transition, self.reward, self.initial))
        transition, reward, initial = tensors
        if transition.dtype != self.transition.dtype:  # rounded rows sum to 1 again
            transition = transition / transition.sum(-1, keepdim=True)
            initial = initial / initial.sum(-1, keepdim=True)
        return TabularMDP(transition, reward, initial, self.discount, self.terminal)

    def _check_that_every_policy_ends(self) -> None:
        # Look for states that some policy never leaves: take out, one after the other, those
        # that every action can leave, by more than a row's rounding error.
        rounding = 8 * self.n_states * torch.finfo(self.transition.dtype).eps
        kept = torch.ones_like(self.initial, dtype=torch.bool)
        kept[:, self.terminal] = False
        for _ in range(self.n_states):
            leaving = (self.transition @ (~kept).to(self.transition)[:, None, :, None]).squeeze(-1)
            kept &= (leaving <= rounding).any(-1)
        if kept.any():
            mdp, state = kept.nonzero()[0].tolist()
            raise ValueError(
                "discount: expected a number less than 1 where some policy goes on for ever, "
                f"as in MDP {mdp} from state {state}; got {self.discount!r}"
            )


def random_mdps(
    batch: int,
    n_states: int = 9,
    n_actions: int = 4,
    discount: float = 0.5,
    *,
    reward: str = "a,s'",
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> TabularMDP:
    """Draw MDPs from the family of Liang and Lai (2026), section 4.1.

    Every P(. | s, a) and the initial distribution are drawn from Dirichlet(1, ..., 1), the uniform
    distribution on the simplex; rewards are independent and uniform on (-1, 1).

    Parameters
    ----------
    batch, n_states, n_actions : int
        B, S and A.
    discount : float
        The discount gamma, in [0, 1).
    reward : str
        What a reward depends on: "a,s'" (action and next state, the paper's family), "s,a" or
        "s,a,s'".
    generator : torch.Generator
        Source of randomness; its device is the device of the result.
    dtype : torch.dtype
        Floating-point type of the result.

    Returns
    -------
    TabularMDP
        B independent MDPs.
    """
    if reward not in REWARD_ARGUMENTS:
        raise ValueError(f"reward: expected one of {REWARD_ARGUMENTS}, got {reward!r}")
    for name, value in (("batch", batch), ("n_states", n_states), ("n_actions", n_actions)):
        check_count(name, value)

    transition = uniform_on_simplex(
        batch, n_states, n_actions, n_states, generator=generator, dtype=dtype
    )
    initial = uniform_on_simplex(batch, n_states, generator=generator, dtype=dtype)
    arguments = reward.split(",")
    sizes = (("s", n_states), ("a", n_actions), ("s'", n_states))
    shape = [batch, *(size if axis in arguments else 1 for axis, size in sizes)]
    rewards = torch.empty(shape, dtype=dtype, device=generator.device)
    rewards.uniform_(-1, 1, generator=generator)
    return TabularMDP(transition, rewards.expand_as(transition), initial, discount)


def concatenate(*mdps: TabularMDP) -> TabularMDP:
    """Join batches of MDPs with the same numbers of states and actions and one discount."""
    for mdp in mdps:
        check_instance("mdps", mdp, TabularMDP)
        if mdp.discount != mdps[0].discount:
            raise ValueError(
                f"mdps: expected one discount, got {mdps[0].discount} and {mdp.discount}"
            )
    tables = zip(*((mdp.transition, mdp.reward, mdp.initial) for mdp in mdps), strict=True)
    return TabularMDP(*map(torch.cat, tables), mdps[0].discount)


def uniform_on_simplex(*shape: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw distributions over the last axis from Dirichlet(1, ..., 1)."""
    for i, size in enumerate(shape):
        check_count(f"shape[{i}]", size)
    check_generator(generator)
    check_dtype(dtype)
    # Independent Exponential(1) numbers divided by their sum are Dirichlet(1, ..., 1).
    numbers = torch.empty(shape, dtype=dtype, device=generator.device)
    numbers.exponential_(generator=generator)
    return numbers / numbers.sum(-1, keepdim=True)


def value_iteration(mdp: TabularMDP, tolerance: float | None = None) -> Tensor:
    """Compute the optimal action values Q* by value iteration.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of B MDPs.
    tolerance : float, optional
        Bound on the distance to Q* in the maximum norm. By default the rounding error of the
        dtype, relative to the largest value an MDP of the batch can have.

    Returns
    -------
    Tensor, shape (B, S, A)
        Q*, the fixed point of Q(s, a) = r(s, a) + gamma sum_s' P(s' | s, a) max_b Q(s', b).
    """
    check_instance("mdp", mdp, TabularMDP)
    rewards = mdp.expected_reward
    # An update contracts by gamma, so a change of size x leaves at most x gamma / (1 - gamma).
    remaining = mdp.discount / (1 - mdp.discount)
    if tolerance is None:
        scale = rewards.abs().max().item() / (1 - mdp.discount)
        tolerance = 4 * torch.finfo(rewards.dtype).eps * scale * (1 + remaining)
    else:
        check_number("tolerance", tolerance, above=0)
    q = rewards
    while True:
        update = _backup(mdp, q.amax(-1))
        change = (update - q).abs().max().item()
        q = update
        if change * remaining <= tolerance:
            return q
        if not math.isfinite(change):
            raise ValueError(
                f"mdp.reward: expected values that {q.dtype} can hold, got an overflow"
            )


def policy_value(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the values of a policy, exactly, by a linear solve.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of B MDPs.
    policy : Tensor, shape (B, S, A)
        Action probabilities pi(a | s).

    Returns
    -------
    Tensor, shape (B, S)
        The solution v of (I - gamma P_pi) v = r_pi, and 0 in a terminal state.
    """
    check_policy(mdp, policy)
    p_pi = _until_the_end(mdp, torch.einsum("bsa,bsat->bst", policy, mdp.transition))
    r_pi = (policy * mdp.expected_reward).sum(-1)
    identity = torch.eye(mdp.n_states, dtype=p_pi.dtype, device=p_pi.device)
    return torch.linalg.solve(identity - mdp.discount * p_pi, r_pi)


def policy_action_value(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the action values Q_pi of a policy (B, S, A), shape (B, S, A), exactly."""
    return _backup(mdp, policy_value(mdp, policy))


def expected_return(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the expected discounted return of a policy from the initial distribution, exactly.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of B MDPs.
    policy : Tensor, shape (B, S, A)
        Action probabilities pi(a | s).

    Returns
    -------
    Tensor, shape (B,)
        sum_s P_0(s) v_pi(s), over an infinite horizon.
    """
    values = policy_value(mdp, policy)
    return (mdp.initial * values).sum(-1)


def stationary_distribution(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the long-run share of time that a policy spends in each state, by a linear solve.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of B MDPs.
    policy : Tensor, shape (B, S, A)
        Action probabilities pi(a | s).

    Returns
    -------
    Tensor, shape (B, S)
        The solution mu of mu = mu P_pi whose entries sum to 1.

    Raises
    ------
    ValueError
        If an MDP has several such distributions under the policy.
    """
    check_policy(mdp, policy)
    p_pi = torch.einsum("bsa,bsat->bst", policy, mdp.transition)
    identity = torch.eye(mdp.n_states, dtype=p_pi.dtype, device=p_pi.device)
    # Every row of (I - P_pi)^T mu = 0 follows from the others; adding sum(mu) = 1 to each of them
    # leaves a regular system exactly if mu is unique.
    system = (identity - p_pi).mT + 1
    if (torch.linalg.matrix_rank(system) < mdp.n_states).any():
        raise ValueError("policy: expected one stationary distribution, got an MDP with several")
    return torch.linalg.solve(system, torch.ones_like(p_pi[..., 0]))


def average_reward(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the average reward per step of a policy (B, S, A) in the long run, shape (B,)."""
    share = stationary_distribution(mdp, policy)
    return (share * (policy * mdp.expected_reward).sum(-1)).sum(-1)


def greedy_policy(q: Tensor) -> Tensor:
    """Return the policy (B, S, A) that is greedy in action values q (B, S, A).

    Ties are shared: actions of equal largest value get equal probability.
    """
    check_tensors(q=(q, "B S A"))
    best = q == q.amax(-1, keepdim=True)
    return best.to(q.dtype) / best.sum(-1, keepdim=True)


def cumulative(probabilities: Tensor) -> Tensor:
    """Return running sums over the last axis that end in exactly 1.

    With u uniform on [0, 1), ``(u >= table[..., :-1]).sum(-1)`` is a draw from `probabilities`,
    and never an outcome of probability zero.
    """
    sums = probabilities.cumsum(-1)
    return sums / sums[..., -1:]


def _backup(mdp: TabularMDP, values: Tensor) -> Tensor:
    """Return r(s, a) + gamma sum_s' P(s' | s, a) v(s') for values (B, S)."""
    following = torch.einsum("bsat,bt->bsa", mdp.transition, values)
    return mdp.expected_reward + mdp.discount * _until_the_end(mdp, following)


def _until_the_end(mdp: TabularMDP, following: Tensor) -> Tensor:
    """Return a table (B, S, ...) of what follows each state, with nothing after the end."""
    if mdp.terminal is None:
        return following
    end = torch.tensor([mdp.terminal], device=following.device)
    return following.index_fill(1, end, 0)


def check_policy(mdp: TabularMDP, policy: Tensor) -> None:
    """Raise a ValueError unless `policy` holds action probabilities (B, S, A) for `mdp`."""
    check_instance("mdp", mdp, TabularMDP)
    # The MDPs were looked through when they were made; `initial` stands for their dtype and device.
    shape = f"{mdp.batch} {mdp.n_states} {mdp.n_actions}"
    check_tensors(**{"mdp.initial": (mdp.initial, "B S"), "policy": (policy, shape)})
    check_distribution("policy", policy)
