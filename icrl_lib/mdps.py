"""Batches of tabular Markov decision processes, and their exact solutions."""

from __future__ import annotations

import dataclasses
from typing import Any

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
    transition, reward : Tensor, shape (B, S, A, S)
        ``transition[b, s, a, s2]`` is the probability P(s2 | s, a) in MDP b, and ``reward[b, s, a,
        s2]`` is paid on the transition from s to s2 under a.
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

    @property
    def expected_reward(self) -> Tensor:
        """Mean reward of a state and an action, shape (B, S, A)."""
        return (self.transition * self.reward).sum(-1)

    @property
    def cumulative_transition(self) -> Tensor:
        """Running sums of `transition` over the next state, shape (B, S, A, S), for sampling.

        In memory the next state comes first, as `policies.rollout` compares along it. Where no
        gradient is asked for, they are kept until torch changes one of the two tensors in place.
        """
        p = self.transition
        untracked = p.is_inference() or torch.is_inference_mode_enabled()
        keep = not (untracked or (p.requires_grad and torch.is_grad_enabled()))
        if keep and "_kept" in self.__dict__:
            sums, versions = self.__dict__["_kept"]
            if versions == (p._version, sums._version):
                return sums
        sums = cumulative(p).movedim(-1, 0).contiguous().movedim(0, -1)
        if keep:
            self.__dict__["_kept"] = sums, (p._version, sums._version)
        return sums

    def __getstate__(self) -> dict[str, object]:
        """Leave running sums behind: the tensors of a copy count their changes from 0 again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __getitem__(self, index: slice | Tensor) -> TabularMDP:
        """Select MDPs of the batch by a slice or an index tensor; always a batch again."""
        tensors = (t[index] for t in (self.transition, self.reward, self.initial))
        return TabularMDP(*tensors, self.discount, self.terminal)

    def to(self, *args: Any, **kwargs: Any) -> TabularMDP:
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
            where = f"some policy goes on for ever, as in MDP {mdp} from state {state}"
            given = f"got {self.discount!r}"
            raise ValueError(f"discount: expected a number less than 1 where {where}; {given}")


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
    batch, n_states, n_actions, discount
        B, S and A, and the discount gamma, in [0, 1).
    reward : str
        What a reward depends on: "a,s'" (action and next state, the paper's family), "s,a" or
        "s,a,s'".
    generator, dtype
        Source of randomness, whose device is that of the result, and the result's type.
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
    rewards = rewards.expand_as(transition).contiguous()  # every entry can be changed alone
    return TabularMDP(transition, rewards, initial, discount)


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


def concatenate(*mdps: TabularMDP) -> TabularMDP:
    """Join batches of MDPs to one, in their order.

    They have the same numbers of states and actions, discount, terminal state, dtype and device.
    """
    if not mdps:
        raise ValueError("mdps: expected at least one batch of MDPs, got none")
    for i, mdp in enumerate(mdps):
        check_instance(f"mdps[{i}]", mdp, TabularMDP)
        for name in ("n_states", "n_actions", "discount", "terminal", "dtype", "device"):
            of_tensors = name in ("dtype", "device")
            owners = (one.transition if of_tensors else one for one in (mdps[0], mdp))
            expected, given = (getattr(owner, name) for owner in owners)
            if given != expected:
                wanted = f"{name} {expected} as in mdps[0]"
                raise ValueError(f"mdps[{i}]: expected {wanted}, got {given}")
    tensors = zip(*[(mdp.transition, mdp.reward, mdp.initial) for mdp in mdps], strict=True)
    return TabularMDP(*map(torch.cat, tensors), mdps[0].discount, mdps[0].terminal)


def value_iteration(mdp: TabularMDP) -> Tensor:
    """Compute the optimal action values Q* (B, S, A), exactly, by policy iteration (Howard, 1960).

    Q* is the fixed point of Q(s, a) = r(s, a) + gamma sum_s' P(s' | s, a) max_b Q(s', b). Sweeps of
    this equation gain a digit in about 2 / (1 - gamma) of them; a policy that is greedy in its own
    values is found after a few linear solves, whatever gamma is. They are done in double precision,
    and rounding is about 1e-16 / (1 - gamma) of the largest value. A ValueError says that a value
    is too large for the dtype of `mdp`.
    """
    check_instance("mdp", mdp, TabularMDP)
    transition, reward = _in_double(mdp)

    def evaluate(action: Tensor) -> Tensor:
        chosen = action.unsqueeze(-1)
        p = transition.take_along_dim(chosen.unsqueeze(-1), 2).squeeze(2)
        return _solve(p, reward.take_along_dim(chosen, -1).squeeze(-1), mdp.discount)

    with torch.no_grad():
        action = reward.argmax(-1)
        values = torch.full_like(reward[..., 0], -torch.inf)
        # Exact values never fall; that some entry has to rise ends what rounding could turn round.
        while ((found := evaluate(action)) > values).any():
            values = values.maximum(found)
            # The mean tells no action from another; without it less is lost to rounding. Ties stay.
            q = _backup(transition, reward, mdp.discount, values - values.mean(-1, keepdim=True))
            margin = 4 * torch.finfo(q.dtype).eps * q.abs().amax((-2, -1)).unsqueeze(-1)
            kept = q.take_along_dim(action.unsqueeze(-1), -1).squeeze(-1)
            action = torch.where(q.amax(-1) > kept + margin, q.argmax(-1), action)
    q = _backup(transition, reward, mdp.discount, evaluate(action)).to(mdp.reward.dtype)
    if not torch.isfinite(q).all():
        raise ValueError(f"mdp.reward: expected values that {q.dtype} can hold, got an overflow")
    return q


def policy_value(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the values (B, S) of a policy pi(a | s), (B, S, A), exactly.

    They solve (I - gamma P_pi) v = r_pi, in double precision, and are 0 in a terminal state.
    """
    check_policy(mdp, policy)
    (transition, reward), pi = _in_double(mdp), _whole(policy)
    p_pi = torch.einsum("bsa,bsat->bst", pi, transition)
    return _solve(p_pi, (pi * reward).sum(-1), mdp.discount).to(policy.dtype)


def policy_action_value(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the action values Q_pi of a policy (B, S, A), shape (B, S, A), exactly."""
    values = policy_value(mdp, policy).double()
    return _backup(*_in_double(mdp), mdp.discount, values).to(policy.dtype)


def expected_return(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute sum_s P_0(s) v_pi(s), (B,), the expected discounted return of a policy (B, S, A),
    exactly.
    """
    values = policy_value(mdp, policy)
    return (mdp.initial * values).sum(-1)


def stationary_distribution(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Compute the long-run share of time (B, S) that a policy (B, S, A) spends in each state.

    It is the solution mu of mu = mu P_pi whose entries sum to 1, by a linear solve. A ValueError
    says that an MDP has several under the policy.
    """
    check_policy(mdp, policy)
    p_pi = torch.einsum("bsa,bsat->bst", _whole(policy), _whole(mdp.transition))
    # Every row of (I - P_pi)^T mu = 0 follows from the others; adding sum(mu) = 1 to each of them
    # leaves a regular system exactly if mu is unique.
    system = (torch.eye(mdp.n_states, dtype=p_pi.dtype, device=p_pi.device) - p_pi).mT + 1
    if (torch.linalg.matrix_rank(system) < mdp.n_states).any():
        raise ValueError("policy: expected one stationary distribution, got an MDP with several")
    share = torch.linalg.solve(system, torch.ones_like(p_pi[..., 0]))
    # Rounding takes states that are left for good a little below 0, but not their gradient.
    return (share - share.detach().clamp(max=0)).to(policy.dtype)


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


def _backup(p: Tensor, r: Tensor, discount: float, values: Tensor) -> Tensor:
    """Return r + gamma P v for P (B, S, A, S), r (B, S, A) and v (B, S), shape (B, S, A)."""
    return r + discount * torch.einsum("bsat,bt->bsa", p, values)


def _in_double(mdp: TabularMDP) -> tuple[Tensor, Tensor]:
    """Return P (B, S, A, S) and r(s, a) (B, S, A) in double precision, with nothing after the end.

    A row of single precision misses 1 by 1e-7, which is nothing beside 1 but much beside 1 - gamma.
    """
    transition = _whole(mdp.transition)
    if mdp.terminal is not None:
        end = torch.tensor([mdp.terminal], device=transition.device)
        transition = transition.index_fill(1, end, 0)
    return transition, (transition * mdp.reward).sum(-1)


def _whole(probabilities: Tensor) -> Tensor:
    """Return probabilities in double precision that sum to 1 in it, with their own gradient."""
    exact = probabilities.double()
    return exact / exact.detach().sum(-1, keepdim=True)


def _solve(p: Tensor, r: Tensor, discount: float) -> Tensor:
    """Solve (I - gamma P) v = r for P (B, S, S) and r (B, S)."""
    identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    return torch.linalg.solve(identity - discount * p, r)


def check_policy(mdp: TabularMDP, policy: Tensor) -> None:
    """Raise a ValueError unless `policy` holds action probabilities (B, S, A) for `mdp`."""
    check_instance("mdp", mdp, TabularMDP)
    # The MDPs were looked through when they were made; `initial` stands for their dtype and device.
    shape = f"{mdp.batch} {mdp.n_states} {mdp.n_actions}"
    check_tensors(**{"mdp.initial": (mdp.initial, "B S"), "policy": (policy, shape)})
    check_distribution("policy", policy)
