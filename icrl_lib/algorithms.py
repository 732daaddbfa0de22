"""SARSA and actor-critic as objects: what training and control need to know of an algorithm.

An algorithm ties together features, policy, prompt, teacher and construction. Its parameters are
one vector per MDP, in the order of the prompt's last column: w for SARSA, [lambda; w] for
actor-critic.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from icrl_lib import constructions, prompts, teachers
from icrl_lib.attention import Weights, linear_self_attention, split
from icrl_lib.checks import check_indices, check_tensors, settle_counts, settle_numbers
from icrl_lib.features import Law, random_features
from icrl_lib.mdps import TabularMDP
from icrl_lib.policies import Window, epsilon_greedy, explore, mean_features, softmax_policy


class Algorithm(abc.ABC):
    """What training and control ask of an algorithm.

    Subclasses say how features are drawn, how parameters give a policy, what a window shows the
    learner (`observe`), and how teacher and prompt make use of it.
    """

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def n_parameters(self) -> int:
        """Number p of parameters that an update changes."""

    @property
    @abc.abstractmethod
    def layout(self) -> prompts.Layout:
        """Slots of the prompt."""

    @abc.abstractmethod
    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> Any:
        """Draw features for the states and actions of `mdp`, their entries by `law`."""

    @abc.abstractmethod
    def policy(self, features: Any, parameters: Tensor, epsilon: float | None = None) -> Tensor:
        """Return the action probabilities (B, S, A) under parameters (B, p).

        `epsilon` replaces the algorithm's own exploration when given; 0 turns it off.
        """

    @abc.abstractmethod
    def observe(self, features: Any, parameters: Tensor, window: Window) -> tuple:
        """Return what prompt and teacher are made of, in the order of their signatures."""

    @abc.abstractmethod
    def tokens(self, observation: tuple) -> Tensor:
        """Return the tokens (B, n, k) of an observation."""

    @abc.abstractmethod
    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        """Return the teacher's updated parameters (B, p)."""

    @abc.abstractmethod
    def construction(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
        """Return weights (P, V), each (D, D), whose forward pass is the teacher's update."""

    def blocks(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return what training moves of the construction: P12 (k, 1 + p) and V21 (p, k)."""
        return split(*self.construction(c, dtype), self.n_parameters)[:2]

    def draw_parameters(
        self, batch: int, generator: Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw parameters (B, p) with entries uniform on (-1, 1)."""
        return random_features(batch, self.n_parameters, generator=generator, dtype=dtype)

    def prompt(self, parameters: Tensor, observation: tuple) -> Tensor:
        """Return the prompt H, shape (B, D, n + 1)."""
        return prompts.assemble(self.tokens(observation), parameters)

    def forward(self, parameters: Tensor, observation: tuple, P: Tensor, V: Tensor) -> Tensor:
        """Return the parameters (B, p) that a block with weights P and V writes (eq. 1)."""
        H = self.prompt(parameters, observation)
        return linear_self_attention(H, P, V)[:, -self.n_parameters :, -1]


@dataclasses.dataclass(frozen=True)
class SARSA(Algorithm):
    """Linear SARSA with epsilon-greedy behaviour; the features are phi, (B, S, A, d).

    `d` is the number of features, `alpha` the step size, `epsilon` the probability of a uniform
    action.
    """

    name: ClassVar[str] = "sarsa"
    d: int = 36
    alpha: float = 0.2
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        settle_counts(self, "d")
        settle_numbers(self, "alpha", above=0)
        settle_numbers(self, "epsilon", at_least=0, at_most=1)

    @property
    def n_parameters(self) -> int:
        return self.d

    @property
    def layout(self) -> prompts.Layout:
        return prompts.sarsa_layout(self.d)

    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> Tensor:
        shape = (mdp.batch, mdp.n_states, mdp.n_actions, self.d)
        return law(*shape, generator=generator, dtype=mdp.transition.dtype)

    def policy(self, features: Tensor, parameters: Tensor, epsilon: float | None = None) -> Tensor:
        q = _linear(features, parameters)
        return epsilon_greedy(q, self.epsilon if epsilon is None else epsilon)

    def observe(self, features: Tensor, parameters: Tensor, window: Window) -> tuple:
        phi = at_pairs(features, window.states, window.actions, window.terminal)  # (B, n + 1, d)
        return phi[:, :-1], phi[:, 1:], window.rewards, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        return prompts.sarsa_tokens(*observation)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.sarsa_update(parameters, *observation, self.alpha)

    def construction(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
        return constructions.sarsa(self.d, self.alpha, c, dtype)


class ActorCriticFeatures(NamedTuple):
    """Features of policy and values: phi_pi(s, a), (B, S, A, m), and phi_V(s), (B, S, d)."""

    policy: Tensor
    value: Tensor


@dataclasses.dataclass(frozen=True)
class ActorCritic(Algorithm):
    """Actor-critic with a linear softmax policy of m features and linear state values of d.

    `alpha` and `beta` are the step sizes of actor and critic, `epsilon` the probability of a
    uniform action; the score is that of the softmax policy without it.
    """

    name: ClassVar[str] = "actor_critic"
    _update: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(
        teachers.actor_critic_update
    )
    d: int = 9
    m: int = 36
    alpha: float = 0.2
    beta: float = 0.8
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        settle_counts(self, "d", "m")
        settle_numbers(self, "alpha", "beta", above=0)
        settle_numbers(self, "epsilon", at_least=0, at_most=1)

    @property
    def n_parameters(self) -> int:
        return self.m + self.d

    @property
    def layout(self) -> prompts.Layout:
        return prompts.actor_critic_layout(self.d, self.m)

    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> ActorCriticFeatures:
        (batch, n_states, n_actions, _), dtype = mdp.transition.shape, mdp.transition.dtype
        policy = law(batch, n_states, n_actions, self.m, generator=generator, dtype=dtype)
        value = law(batch, n_states, self.d, generator=generator, dtype=dtype)
        return ActorCriticFeatures(policy, value)

    def policy(
        self, features: ActorCriticFeatures, parameters: Tensor, epsilon: float | None = None
    ) -> Tensor:
        lam, _ = self.split(parameters)
        softmax = softmax_policy(_linear(features.policy, lam))
        return explore(softmax, self.epsilon if epsilon is None else epsilon)

    def observe(self, features: ActorCriticFeatures, parameters: Tensor, window: Window) -> tuple:
        phi_v = at_states(features.value, window.states, window.terminal)  # (B, n + 1, d)
        scores = self.scores(features, parameters, window)
        return phi_v[:, :-1], phi_v[:, 1:], window.rewards, scores, window.discount

    def scores(self, features: ActorCriticFeatures, parameters: Tensor, window: Window) -> Tensor:
        """Return the scores g_lambda(s_i, a_i) of the actions that were taken, (B, n, m)."""
        softmax = self.policy(features, parameters, epsilon=0)
        states, actions = window.states[:, :-1], window.actions[:, :-1]
        taken = at_pairs(features.policy, states, actions, window.terminal)
        return taken - at_states(mean_features(features.policy, softmax), states, window.terminal)

    def tokens(self, observation: tuple) -> Tensor:
        return prompts.actor_critic_tokens(*observation)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        lam, w = self.split(parameters)
        return torch.cat(self._update(lam, w, *observation, self.alpha, self.beta), -1)

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return lambda (B, m) and w (B, d)."""
        check_tensors(parameters=(parameters, f"B {self.n_parameters}"))
        return parameters[:, : self.m], parameters[:, self.m :]

    def construction(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
        return constructions.actor_critic(self.d, self.m, self.alpha, self.beta, c, dtype)


ALGORITHMS: dict[str, type[Algorithm]] = {cls.name: cls for cls in (SARSA, ActorCritic)}
"""The paper's algorithms by name."""


def named(algorithm: str) -> Algorithm:
    """Return an algorithm with its default settings: "sarsa", "actor_critic", or one of the zoo."""
    from icrl_lib import zoo

    known = ALGORITHMS | {cls.name: cls for cls in zoo.ALGORITHMS}
    if not isinstance(algorithm, str) or algorithm not in known:
        raise ValueError(f"algorithm: expected one of {', '.join(known)}; got {algorithm!r:.200}")
    return known[algorithm]()


def _linear(features: Tensor, parameters: Tensor) -> Tensor:
    """Return parameters^T phi(s, a): (B, S, A, d) and (B, d) -> (B, S, A)."""
    check_tensors(parameters=(parameters, "B p"))
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise ValueError(f"features: expected a tensor (B, S, A, d), got {features!r:.80}")
    # Either may be the wrong one: features of another batch or size, or parameters.
    described = ((*t.shape[:: t.ndim - 1], t.dtype) for t in (parameters, features))
    for what, one, other in zip(("batch size B", "number d", "dtype"), *described, strict=True):
        if one != other:
            given = f"{one} of parameters and {other} of features"
            raise ValueError(f"parameters, features: expected one {what}, got {given}")
    pairs = features.flatten(1, 2)  # (B, S A, d); a row times a matrix is faster than the converse
    return (parameters.unsqueeze(1) @ pairs.mT).reshape(features.shape[:-1])


def at_pairs(table: Tensor, states: Tensor, actions: Tensor, terminal: int | None = None) -> Tensor:
    """Look up a table (B, S, A, d) at states and actions, each (B, n), shape (B, n, d).

    In the state `terminal` the answer is 0, whatever the table says.
    """
    batch, n_states, n_actions = table.shape[:3]
    check_indices("states", states, (batch, "n"), n_states, table.device)
    check_indices("actions", actions, tuple(states.shape), n_actions, table.device)
    return _silent(_rows(table.flatten(1, 2), states * n_actions + actions), states, terminal)


def at_states(table: Tensor, states: Tensor, terminal: int | None = None) -> Tensor:
    """Look up a table (B, S, ...) at states (B, n), shape (B, n, ...), with 0 at `terminal`."""
    check_indices("states", states, (table.shape[0], "n"), table.shape[1], table.device)
    return _silent(_rows(table, states), states, terminal)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    first_row = torch.arange(table.shape[0], device=table.device).unsqueeze(1) * table.shape[1]
    rows = (first_row + index).flatten()
    return table.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)


def _silent(found: Tensor, states: Tensor, terminal: int | None) -> Tensor:
    if terminal is None:
        return found
    return found * (states != terminal).reshape(*states.shape, *[1] * (found.ndim - 2))
