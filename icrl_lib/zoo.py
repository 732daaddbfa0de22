"""Algorithms beyond the paper that one head performs, and one that it cannot.

Each says in a few lines what its tokens carry, which slot of a token meets which parameter, and
which slot is written where. The teachers are in `icrl_lib.teachers`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from icrl_lib import constructions, prompts, teachers
from icrl_lib.algorithms import (
    SARSA,
    ActorCritic,
    ActorCriticFeatures,
    Algorithm,
    at_pairs,
    at_states,
)
from icrl_lib.attention import Weights
from icrl_lib.checks import check_discount, settle_counts, settle_numbers
from icrl_lib.features import Law, random_features
from icrl_lib.mdps import TabularMDP
from icrl_lib.policies import Window, explore, random_policy

Slots = Mapping[tuple[str, str], float]


TD_ERROR = {(r"\phi", "w"): -1.0, (r"\gamma\phi^+", "w"): 1.0, ("r", "1"): 1.0}
"""The TD error as a number; phi meets -w, gamma phi+ meets w, and the reward meets 1."""


class OneHead(Algorithm):
    """An algorithm whose weights are given slot by slot, as `constructions.one_head` takes them."""

    @property
    def meets(self) -> Slots:
        """What each slot of a token is multiplied with; by default their sum is the TD error."""
        return TD_ERROR

    @property
    @abc.abstractmethod
    def writes(self) -> Slots:
        """Which slot of a token is added to which parameters."""

    def construction(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
        return constructions.one_head(self.layout, self.meets, self.writes, c, dtype)


class EvaluationFeatures(NamedTuple):
    """Features phi_V(s) of states, `value` (B, S, d), and what policy evaluation is about.

    That is the policy that acts, `behaviour` (B, S, A), and the one whose values are wanted,
    `target`.
    """

    value: Tensor
    behaviour: Tensor
    target: Tensor


@dataclasses.dataclass(frozen=True)
class TD(OneHead):
    """TD(0): the state values of a policy that stays as it is.

    Tokens are SARSA's with the `d` features of states, and so are the weights; `alpha` is the step
    size.
    """

    name: ClassVar[str] = "td"
    d: int = 9
    alpha: float = 0.2

    def __post_init__(self) -> None:
        settle_counts(self, "d")
        settle_numbers(self, "alpha", above=0)

    @property
    def n_parameters(self) -> int:
        return self.d

    @property
    def layout(self) -> prompts.Layout:
        return prompts.sarsa_layout(self.d)

    @property
    def writes(self) -> Slots:
        return {("w", r"\phi"): self.alpha}

    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> EvaluationFeatures:
        value = self._draw_value_features(mdp, generator, law)
        policy = random_policy(mdp, generator)
        return EvaluationFeatures(value, policy, policy)

    def _draw_value_features(self, mdp: TabularMDP, generator: Generator, law: Law) -> Tensor:
        dtype = mdp.transition.dtype
        return law(mdp.batch, mdp.n_states, self.d, generator=generator, dtype=dtype)

    def policy(
        self, features: EvaluationFeatures, parameters: Tensor, epsilon: float | None = None
    ) -> Tensor:
        """Return the behaviour policy (B, S, A), whatever the parameters are."""
        return features.behaviour

    def observe(self, features: EvaluationFeatures, parameters: Tensor, window: Window) -> tuple:
        phi = at_states(features.value, window.states, window.terminal)  # (B, n + 1, d)
        return phi[:, :-1], phi[:, 1:], window.rewards, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        return prompts.sarsa_tokens(*observation)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.td_update(parameters, *observation, alpha=self.alpha)


@dataclasses.dataclass(frozen=True)
class OffPolicyTD(TD):
    """TD(0) with importance weights: values of one policy from the behaviour of another.

    Each token is scaled by the square root of its importance ratio. It enters the update twice,
    once as the number and once as the vector, so that SARSA's weights stay as they are.
    """

    name: ClassVar[str] = "off_policy_td"

    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> EvaluationFeatures:
        value = self._draw_value_features(mdp, generator, law)
        behaviour = explore(random_policy(mdp, generator), 0.5)  # so that no ratio exceeds 2 A
        return EvaluationFeatures(value, behaviour, random_policy(mdp, generator))

    def observe(self, features: EvaluationFeatures, parameters: Tensor, window: Window) -> tuple:
        ratios = (features.target / features.behaviour).unsqueeze(-1)  # (B, S, A, 1)
        of_actions = at_pairs(ratios, window.states[:, :-1], window.actions[:, :-1])
        return *super().observe(features, parameters, window), of_actions.squeeze(-1)

    def tokens(self, observation: tuple) -> Tensor:
        *transitions, ratios = observation
        return ratios.sqrt().unsqueeze(-1) * super().tokens(tuple(transitions))

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        *transitions, ratios = observation
        return teachers.td_update(parameters, *transitions, self.alpha, ratios)


@dataclasses.dataclass(frozen=True)
class ResidualGradient(OneHead, SARSA):
    """Descent on the mean squared TD error: the vector is alpha (phi - gamma phi+)."""

    name: ClassVar[str] = "residual_gradient"

    @property
    def writes(self) -> Slots:
        return {("w", r"\phi"): self.alpha, ("w", r"\gamma\phi^+"): -self.alpha}

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.residual_gradient_update(parameters, *observation, self.alpha)


@dataclasses.dataclass(frozen=True)
class ExpectedSARSA(SARSA):
    """Expected SARSA: the token carries the next features averaged under the policy at w.

    The weights are SARSA's.
    """

    name: ClassVar[str] = "expected_sarsa"

    def observe(self, features: Tensor, parameters: Tensor, window: Window) -> tuple:
        states, actions = window.states, window.actions
        phi = at_pairs(features, states[:, :-1], actions[:, :-1], window.terminal)
        probabilities = at_states(self.policy(features, parameters), states[:, 1:])
        phi_next = at_states(features, states[:, 1:])
        return phi, phi_next, probabilities, window.rewards, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        phi, phi_next, probabilities, rewards, discount = observation
        average = (probabilities.unsqueeze(-2) @ phi_next).squeeze(-2)  # (B, n, d)
        return prompts.sarsa_tokens(phi, average, rewards, discount)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.expected_sarsa_update(parameters, *observation, self.alpha)


@dataclasses.dataclass(frozen=True)
class NStepSARSA(SARSA):
    """n-step SARSA: the token carries the rewards and the features `steps` transitions ahead.

    The weights are SARSA's.
    """

    name: ClassVar[str] = "n_step_sarsa"
    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_counts(self, "steps")

    def observe(self, features: Tensor, parameters: Tensor, window: Window) -> tuple:
        phi = at_pairs(features, window.states, window.actions, window.terminal)
        return phi, window.rewards, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        phi, rewards, discount = observation
        n = rewards.shape[1]
        index = torch.arange(n, device=rewards.device)
        ahead = (index + self.steps).clamp(max=n)  # where the look-ahead of each transition ends
        powers = prompts.in_between(discount, rewards)
        bootstrap = powers[..., index, ahead].unsqueeze(-1) * phi[:, ahead]
        powers = torch.where(index < ahead.unsqueeze(1), powers[..., :-1, :-1], 0)
        returns = (rewards.unsqueeze(1) @ powers.mT).mT
        return torch.cat([phi[:, :-1], bootstrap, returns], -1)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.n_step_sarsa_update(parameters, *observation, self.alpha, self.steps)


@dataclasses.dataclass(frozen=True)
class SARSALambda(OneHead, SARSA):
    """SARSA(lambda): the token carries the eligibility trace, and the trace is what is written."""

    name: ClassVar[str] = "sarsa_lambda"
    trace_decay: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_numbers(self, "trace_decay", at_least=0, at_most=1)

    @property
    def layout(self) -> prompts.Layout:
        token, parameter = prompts.sarsa_layout(self.d)
        return prompts.Layout((*token, ("z", self.d)), parameter)

    @property
    def writes(self) -> Slots:
        return {("w", "z"): self.alpha}

    def tokens(self, observation: tuple) -> Tensor:
        phi, _, rewards, discount = observation
        decay = prompts.in_between(discount * self.trace_decay, rewards)[..., :-1, :-1].mT
        return torch.cat([super().tokens(observation), decay @ phi], -1)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.sarsa_lambda_update(parameters, *observation, self.alpha, self.trace_decay)


@dataclasses.dataclass(frozen=True)
class DifferentialSARSA(OneHead, SARSA):
    """Differential SARSA, for the average reward: parameters [r-bar; w], and no discount.

    An average over time counts the restart of an episode as a step. Its token moves r-bar, by the
    step size `beta`, not w.
    """

    name: ClassVar[str] = "differential_sarsa"
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_numbers(self, "beta", above=0)

    @property
    def n_parameters(self) -> int:
        return 1 + self.d

    @property
    def layout(self) -> prompts.Layout:
        return prompts.Layout(
            token=((r"\phi", self.d), (r"\phi^+", self.d), ("r", 1), ("1", 1)),
            parameter=(("1", 1), (r"\bar r", 1), ("w", self.d)),
        )

    @property
    def meets(self) -> Slots:
        return {(r"\phi", "w"): -1, (r"\phi^+", "w"): 1, ("r", "1"): 1, ("1", r"\bar r"): -1}

    @property
    def writes(self) -> Slots:
        return {(r"\bar r", "1"): self.beta, ("w", r"\phi"): self.alpha}

    def policy(self, features: Tensor, parameters: Tensor, epsilon: float | None = None) -> Tensor:
        return super().policy(features, parameters[:, 1:], epsilon)

    def observe(self, features: Tensor, parameters: Tensor, window: Window) -> tuple:
        return super().observe(features, parameters, window)[:-1]

    def tokens(self, observation: tuple) -> Tensor:
        phi, phi_next, rewards = observation
        rewards = rewards.unsqueeze(-1)
        return torch.cat([phi, phi_next, rewards, torch.ones_like(rewards)], -1)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        own = parameters[:, :1], parameters[:, 1:]  # r-bar, w
        updated = teachers.differential_sarsa_update(*own, *observation, self.alpha, self.beta)
        return torch.cat(updated, -1)


@dataclasses.dataclass(frozen=True)
class QActorCritic(OneHead, ActorCritic):
    """Actor-critic with action values: actor and critic need different numbers.

    One head multiplies each token by one number. So every transition becomes two tokens, one for
    the critic and one for the actor, and the weights make up for a mean over 2 n of them.
    """

    name: ClassVar[str] = "q_actor_critic"
    _update = staticmethod(teachers.q_actor_critic_update)
    d: int = 36

    @property
    def layout(self) -> prompts.Layout:
        token, _ = prompts.sarsa_layout(self.d)
        return prompts.Layout(
            (*token, (r"\phi'", self.d), (r"\gamma^i g_\lambda", self.m)),
            (("1", 1), (r"\lambda", self.m), ("w", self.d)),
        )

    @property
    def writes(self) -> Slots:
        alpha, beta = 2 * self.alpha, 2 * self.beta
        return {(r"\lambda", r"\gamma^i g_\lambda"): alpha, ("w", r"\phi'"): beta}

    def draw_features(
        self, mdp: TabularMDP, generator: Generator, law: Law = random_features
    ) -> ActorCriticFeatures:
        """Draw features of policy and of action values, (B, S, A, m) and (B, S, A, d)."""
        pairs, dtype = (mdp.n_states, mdp.n_actions), mdp.transition.dtype
        policy = law(mdp.batch, *pairs, self.m, generator=generator, dtype=dtype)
        value = law(mdp.batch, *pairs, self.d, generator=generator, dtype=dtype)
        return ActorCriticFeatures(policy, value)

    def observe(self, features: ActorCriticFeatures, parameters: Tensor, window: Window) -> tuple:
        phi = at_pairs(features.value, window.states, window.actions, window.terminal)
        scores = self.scores(features, parameters, window)
        return phi[:, :-1], phi[:, 1:], window.rewards, scores, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        phi, phi_next, rewards, scores, discount = observation
        # [phi; gamma phi+; r; gamma^i g]: the tokens of actor-critic, with features of pairs
        rows = prompts.actor_critic_tokens(phi, phi_next, rewards, scores, discount)
        key, scores = rows[..., : 2 * self.d + 1], rows[..., 2 * self.d + 1 :]
        critic = torch.cat([key, phi, torch.zeros_like(scores)], -1)
        silent = torch.zeros_like(critic[..., self.d : 3 * self.d + 1])
        actor = torch.cat([-phi, silent, scores], -1)  # -phi meets -w: the number is q(s, a)
        return torch.cat([critic, actor], 1)  # (B, 2 n, k)


@dataclasses.dataclass(frozen=True)
class Reinforce(OneHead, ActorCritic):
    """REINFORCE with baseline: the token carries the return from there to the window's end."""

    name: ClassVar[str] = "reinforce"
    _update = staticmethod(teachers.reinforce_update)

    @property
    def layout(self) -> prompts.Layout:
        return prompts.Layout(
            token=((r"\phi_V", self.d), ("G", 1), (r"\gamma^i g_\lambda", self.m)),
            parameter=(("1", 1), (r"\lambda", self.m), ("w", self.d)),
        )

    @property
    def meets(self) -> Slots:
        return {(r"\phi_V", "w"): -1, ("G", "1"): 1}

    @property
    def writes(self) -> Slots:
        return {(r"\lambda", r"\gamma^i g_\lambda"): self.alpha, ("w", r"\phi_V"): self.beta}

    def observe(self, features: ActorCriticFeatures, parameters: Tensor, window: Window) -> tuple:
        phi_v, _, rewards, scores, discount = super().observe(features, parameters, window)
        return phi_v, rewards, scores, discount

    def tokens(self, observation: tuple) -> Tensor:
        phi_v, rewards, scores, discount = observation
        later = prompts.in_between(discount, rewards)[..., :-1, :-1]
        returns = (rewards.unsqueeze(1) @ later.mT).mT
        powers = prompts.since_start(discount, rewards).unsqueeze(-1)
        return torch.cat([phi_v, returns, powers * scores], -1)


@dataclasses.dataclass(frozen=True)
class QLearning(SARSA):
    """Q-learning with tokens that carry the next features of every one of `n_actions` actions.

    It fits in no head.
    """

    name: ClassVar[str] = "q_learning"
    n_actions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_counts(self, "n_actions")

    @property
    def layout(self) -> prompts.Layout:
        token, parameter = prompts.sarsa_layout(self.d)
        phi, (name, d), reward = token
        every = ((rf"{name}_{{{action}}}", d) for action in range(self.n_actions))
        return prompts.Layout((phi, *every, reward), parameter)

    def observe(self, features: Tensor, parameters: Tensor, window: Window) -> tuple:
        n_actions = features.shape[2]
        if n_actions != self.n_actions:
            raise ValueError(f"n_actions: expected the MDPs' {n_actions}, got {self.n_actions}")
        states, actions = window.states, window.actions
        phi = at_pairs(features, states[:, :-1], actions[:, :-1], window.terminal)
        phi_next = at_states(features, states[:, 1:])
        return phi, phi_next, window.rewards, window.discount

    def tokens(self, observation: tuple) -> Tensor:
        phi, phi_next, rewards, discount = observation
        gammas = check_discount(discount, rewards)
        return torch.cat([phi, gammas * phi_next.flatten(2), rewards.unsqueeze(-1)], -1)

    def teach(self, parameters: Tensor, observation: tuple) -> Tensor:
        return teachers.q_learning_update(parameters, *observation, self.alpha)

    def construction(self, c: float = 1.0, dtype: torch.dtype = torch.float32) -> Weights:
        """Raise an error: a head is affine in the parameters, and the largest of values is not."""
        raise NotImplementedError("no weights of one head perform Q-learning")


ALGORITHMS = (
    TD, OffPolicyTD, ResidualGradient, ExpectedSARSA, NStepSARSA, SARSALambda, DifferentialSARSA,
    QActorCritic, Reinforce, QLearning,
)  # fmt: skip
"""All of the above."""
