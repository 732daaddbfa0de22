"""In-context TD: values predicted by a looped linear transformer (Wang et al., 2025).

Source: J. Wang, E. Blaser, H. Daneshmand and S. Zhang, "Transformers Can Learn Temporal Difference
Methods for In-Context Reinforcement Learning", ICLR 2025, arXiv:2405.13861. `P` and `Q` are that
paper's letters: its P holds the values (V in the rest of the library) and its Q joins keys and
queries (P in the rest of the library).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import (
    check_count,
    check_dtype,
    check_generator,
    check_instance,
    check_number,
    check_tensors,
)
from icrl_lib.features import random_features
from icrl_lib.mdps import TabularMDP
from icrl_lib.policies import initial_states, rollout, uniform_policy
from icrl_lib.prompts import sarsa_tokens


def boyan_chains(
    batch: int,
    n_states: int = 10,
    discount: float = 0.9,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> TabularMDP:
    """Draw B = `batch` Boyan chains as Wang et al. randomise them: MDPs with a single action.

    State i leads to i + 1 with probability p_i and to i + 2 otherwise, p_i uniform on (0.01, 0.99);
    the last state but one leads to the last, and the last to a random state. That distribution and
    the one of the first state are numbers uniform on (0.01, 0.99), divided by their sum. The reward
    depends on the state that is left and is uniform on (-1, 1). There are at least 3 states; the
    other arguments are those of `icrl_lib.mdps.random_mdps`.
    """
    check_count("batch", batch)
    check_count("n_states", n_states, at_least=3)
    check_generator(generator)
    check_dtype(dtype)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = torch.empty(batch, *shape, dtype=dtype, device=generator.device)
        return numbers.uniform_(low, high, generator=generator)

    def distribution() -> Tensor:
        numbers = uniform(0.01, 0.99, n_states)
        return numbers / numbers.sum(-1, keepdim=True)

    one_on = uniform(0.01, 0.99, n_states - 2)
    state = torch.arange(n_states - 2, device=generator.device)
    transition = torch.zeros(batch, n_states, n_states, dtype=dtype, device=generator.device)
    transition[:, state, state + 1] = one_on
    transition[:, state, state + 2] = 1 - one_on
    transition[:, -2, -1] = 1
    transition[:, -1] = distribution()
    reward = uniform(-1, 1, n_states).unsqueeze(-1).expand_as(transition).contiguous()
    initial = distribution()
    return TabularMDP(transition.unsqueeze(2), reward.unsqueeze(2), initial, discount)


def prompt(
    phi: Tensor, phi_next: Tensor, rewards: Tensor, query: Tensor, discount: float
) -> Tensor:
    """Build the prompt Z: n transitions, then one column for every state that is asked about.

    From features before and after each transition, (B, n, d), rewards (B, n), gamma, in [0, 1), and
    features of the m states asked about, `query` (B, m, d), m = 1 in the paper, come columns
    [phi_i; gamma phi_next_i; r_{i+1}], then columns [query; 0; 0]: Z is (B, 2 d + 1, n + m).
    """
    check_tensors(phi=(phi, "B n d"), query=(query, "B m d"))
    tokens = sarsa_tokens(phi, phi_next, rewards, discount)
    return torch.cat([tokens, _padded(query, tokens.shape[-1])], 1).mT


def looped_transformer(Z: Tensor, P: Tensor, Q: Tensor, depth: int, n_queries: int = 1) -> Tensor:
    """Apply Z + (1 / n) P Z M (Z^T Q Z), L = `depth` times with the same weights.

    Z (B, D, n + m) are prompts, D = 2 d + 1, whose last m = `n_queries` columns are queries; P (D,
    D) holds the values, Q (D, D) joins key and query. M is the identity but for zeros at the
    queries: every column attends to the n transitions, and none to a query.
    """
    sizes = check_tensors(Z=(Z, "B D columns"), P=(P, "D D"), Q=(Q, "D D"))
    check_count("depth", depth)
    check_count("n_queries", n_queries)
    n = sizes["columns"] - n_queries
    if n < 1:
        raise ValueError(f"n_queries: expected fewer than {sizes['columns']} columns, got all")
    for _ in range(depth):
        context = Z[..., :n]
        Z = Z + P @ context @ (context.mT @ Q @ Z) / n
    return Z


def read_values(Z: Tensor, n_queries: int = 1) -> Tensor:
    """Read the predicted values (B, m): minus the last entry of each query column."""
    sizes = check_tensors(Z=(Z, "B D columns"))
    check_count("n_queries", n_queries)
    if n_queries >= sizes["columns"]:
        raise ValueError(f"n_queries: expected fewer than {sizes['columns']}, got {n_queries}")
    return -Z[:, -1, -n_queries:]


def gram(tokens: Tensor) -> Tensor:
    """Return (1 / n) sum_i x_i x_i^T of tokens (B, n, D), shape (B, D, D)."""
    n = check_tensors(tokens=(tokens, "B n D"))["n"]
    return tokens.mT @ tokens / n


def predict(moments: Tensor, query: Tensor, P: Tensor, Q: Tensor, depth: int) -> Tensor:
    """Compute the predicted values (B, m) from the context's second moments alone.

    With G = (1 / n) sum_i x_i x_i^T, the `moments` (B, D, D) of `gram`, a layer multiplies every
    column, transition or query, by I + P G Q, so G becomes (I + P G Q) G (I + P G Q)^T: the number
    of transitions drops out. The numbers are those of `looped_transformer` and `read_values`, and
    so are the other arguments, with `query` as of `prompt`.
    """
    sizes = check_tensors(
        moments=(moments, "B D D"), query=(query, "B m d"), P=(P, "D D"), Q=(Q, "D D")
    )
    check_count("depth", depth)
    size, d = sizes["D"], sizes["d"]
    if size != 2 * d + 1:
        raise ValueError(f"query: expected d features with 2 d + 1 = {size}, got d = {d}")
    columns = _padded(query, size).mT
    for layer in range(depth):
        move = P @ (moments @ Q)
        columns = columns + move @ columns
        if layer < depth - 1:
            half = moments + move @ moments
            moments = half + half @ move.mT
    return -columns[:, -1]


def construction(
    d: int, alpha: float, c: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return weights whose L layers are L steps of batch TD(0) from w = 0 (Wang et al., Theorem 1).

    P has a single 1, in its last corner; Q has the blocks -alpha I and alpha I on top. Each is (2 d
    + 1, 2 d + 1). The theorem allows any d x d matrix in place of the step size `alpha`. Arguments
    are those of `icrl_lib.constructions.sarsa`.
    """
    check_count("d", d)
    check_number("alpha", alpha, above=0)
    check_number("c", c, nonzero=True)
    check_dtype(dtype)
    P = torch.zeros(2 * d + 1, 2 * d + 1, dtype=dtype)
    Q = torch.zeros_like(P)
    P[-1, -1] = 1  # what travels is the TD error
    identity = torch.eye(d, dtype=dtype)
    Q[:d, :d] = -alpha * identity  # phi of the key meets -phi
    Q[:d, d : 2 * d] = alpha * identity  # phi of the key meets gamma phi+
    return c * P, Q / c


class Stretch(NamedTuple):
    """Overlapping prompts from one walk along each of B Markov reward processes.

    `tokens`, (B, positions + 1, n, 2 d + 1), are the contexts; each starts one transition after the
    one before. `query`, (B, positions + 1, d), are features of the state asked about: the one
    reached a transition after the context's last. `rewards`, (B, positions), are paid on the way
    from each query state to the next.
    """

    tokens: Tensor
    query: Tensor
    rewards: Tensor


def draw_stretch(
    mdp: TabularMDP, phi: Tensor, n: int, positions: int, generator: torch.Generator
) -> Stretch:
    """Walk along B processes and cut the walk into `positions` + 1 prompts of n transitions.

    Features `phi` are those of states, (B, S, d). With more than one action the policy is the
    uniform one. `positions` is the number of pairs of neighbouring prompts, 0 for a single prompt.
    """
    check_instance("mdp", mdp, TabularMDP)
    check_tensors(**{"mdp.initial": (mdp.initial, "B S"), "phi": (phi, "B S d")})
    check_count("n", n)
    check_count("positions", positions, at_least=0)
    start = initial_states(mdp, generator)
    window = rollout(mdp, uniform_policy(mdp), n + 1 + positions, start, generator)
    index = torch.arange(mdp.batch, device=phi.device).unsqueeze(1)
    walk = phi[index, window.states]  # (B, n + 2 + positions, d)
    tokens = sarsa_tokens(walk[:, :-1], walk[:, 1:], window.rewards, window.discount)
    contexts = tokens.unfold(1, n, 1)[:, : positions + 1].mT
    return Stretch(contexts, walk[:, n + 1 :], window.rewards[:, n + 1 :])


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training run depends on. The defaults of the first seven are Wang et al.'s.

    Parameters
    ----------
    depth, d : int
        Number L of layers, all with the same weights, and of features, uniform on (-1, 1).
    n_states, n, discount
        States of a chain, transitions in a context, and the discount gamma.
    gain, weight_decay : float
        Of the Xavier-normal initialisation and of Adam.
    chains, positions : int
        Chains that are trained on in lockstep, drawn anew for every step, and TD errors of each.
    steps, seed : int
        Optimiser steps, and the seed of everything random.
    learning_rate, final : float
        Adam's learning rate falls exponentially from `learning_rate` to `final` times that.
    """

    depth: int = 3
    d: int = 4
    n_states: int = 10
    n: int = 30
    discount: float = 0.9
    gain: float = 0.1
    weight_decay: float = 1e-6
    chains: int = 64
    positions: int = 16
    steps: int = 1250
    learning_rate: float = 1e-2
    final: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("depth", "d", "n", "chains", "positions", "steps"):
            check_count(name, getattr(self, name))
        check_count("n_states", self.n_states, at_least=3)
        check_count("seed", self.seed, at_least=0)
        check_number("discount", self.discount, at_least=0, less_than=1)
        check_number("weight_decay", self.weight_decay, at_least=0)
        for name in ("gain", "learning_rate", "final"):
            check_number(name, getattr(self, name), above=0)


class Learned(NamedTuple):
    """The learned weights P and Q, (2 d + 1, 2 d + 1), and how they were found.

    `losses` (steps,) are the mean squared TD errors of the predictions, step by step.
    """

    P: Tensor
    Q: Tensor
    losses: Tensor


def train(settings: Settings) -> Learned:
    """Train by multi-task TD (Wang et al., Algorithm 1): semi-gradient TD on the predictions.

    Two neighbouring prompts of a walk predict the values of two states, one transition apart.
    The squared TD error of the two predictions is minimised, the later one held fixed. No value
    and no teacher is ever shown.
    """
    check_instance("settings", settings, Settings)
    s, generator = settings, torch.Generator().manual_seed(settings.seed)
    size = 2 * s.d + 1
    P, Q = (torch.empty(size, size, dtype=torch.float32) for _ in range(2))
    for weights in (P, Q):
        torch.nn.init.xavier_normal_(weights, gain=s.gain, generator=generator)
        weights.requires_grad_()
    optimiser = torch.optim.Adam([P, Q], lr=s.learning_rate, weight_decay=s.weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, s.final ** (1 / s.steps))
    losses = torch.empty(s.steps, dtype=torch.float32)
    for step in range(s.steps):
        mdp = boyan_chains(s.chains, s.n_states, s.discount, generator=generator)
        phi = random_features(mdp.batch, mdp.n_states, s.d, generator=generator)
        stretch = draw_stretch(mdp, phi, s.n, s.positions, generator)
        moments = gram(stretch.tokens.flatten(0, 1))
        query = stretch.query.flatten(0, 1).unsqueeze(1)
        values = predict(moments, query, P, Q, s.depth).reshape(s.chains, -1)
        target = stretch.rewards + s.discount * values[:, 1:].detach()
        loss = (target - values[:, :-1]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses[step] = loss.detach()
    return Learned(P.detach(), Q.detach(), losses)


def _padded(query: Tensor, size: int) -> Tensor:
    """Fill queries (B, m, d) up with zeros: a transition without reward and without successor."""
    zeros = query.new_zeros(*query.shape[:2], size - query.shape[-1])
    return torch.cat([query, zeros], -1)
