"""Worlds of Gymnasium as tabular MDPs, and tabular MDPs as environments of Gymnasium.

Gymnasium is an optional extra: it is imported where it is used, not with this module.

In Gymnasium an episode ends. What ends it is a property of a *transition*: the same state can be
entered by one that ends the episode and by one that does not. So an imported world has one state
more than Gymnasium's table, the last one, ``terminal``, to which exactly the transitions that end
an episode lead. There are two ways to go on from it, and values are those of the episodes in both:

* absorbing (`from_gymnasium`): stay, with reward 0.
* restarting (`restarting`): go to a first state, with reward 0. Experience never runs out.

In a window of either, the discount of a transition into the terminal state is 0, and what is looked
up in that state is 0. So every update is episodic: nothing is bootstrapped, returned or traced
across an end, and a restart is a token that writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.checks import (
    check_count,
    check_dtype,
    check_generator,
    check_instance,
    check_number,
    check_tensors,
)
from icrl_lib.mdps import TabularMDP, cumulative
from icrl_lib.policies import Window

if TYPE_CHECKING:
    import gymnasium


def from_gymnasium(
    environment: str | gymnasium.Env,
    discount: float,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> TabularMDP:
    """Read an environment's own transition table as one MDP, with an absorbing terminal state.

    States and actions keep the environment's numbering, and the terminal state is the last one. Two
    entries of the table that lead from (s, a) to the same state are added. If they pay different
    rewards (`FrozenLake` beside a hole and the goal, `CliffWalking` on slippery ground beside the
    cliff), the reward is their mean given the next state, which leaves every value and every mean
    update as it is. A limit on the number of steps is not part of the table.

    Parameters
    ----------
    environment : str or gymnasium.Env
        An environment with a table ``P[s][a]`` of (probability, next state, reward, terminated) and
        an ``initial_state_distrib``, as those of ``gymnasium.envs.toy_text``; or its name.
    discount, dtype
        The discount gamma, as of `TabularMDP`, for Gymnasium has none; type of the result.
    **options
        What ``gymnasium.make`` is given along with a name.

    Raises
    ------
    ModuleNotFoundError
        If a name is given and Gymnasium is not installed.
    ValueError
        If the environment has no table, or one that does not tell what its steps do.
    """
    check_dtype(dtype)
    if isinstance(environment, str):
        environment = _gymnasium().make(environment, **options)
    elif options:
        raise ValueError(f"options: expected none beside an environment, got {sorted(options)}")
    world: Any = getattr(environment, "unwrapped", environment)
    for name in ("P", "initial_state_distrib"):
        if not hasattr(world, name):
            wanted = "a transition table P and an initial_state_distrib"
            given = f"{environment!r} without {name}"
            raise ValueError(f"environment: expected one with {wanted}, got {given}")
    if getattr(world, "fickle_passenger", False):
        raise ValueError("environment: expected steps that follow P, a fickle passenger does not")

    table, n_states, n_actions = _entries(world.P)
    shape = (n_states + 1, n_actions, n_states + 1)
    transition = torch.zeros(shape, dtype=torch.float64)
    paid = torch.zeros_like(transition)  # probability times reward
    for (s, a), outcomes in table.items():
        name = f"environment: P[{s}][{a}]"
        try:
            probabilities, following, rewards, ends = zip(*outcomes, strict=True)
        except (TypeError, ValueError):
            wanted = "(probability, next state, reward, terminated)"
            raise ValueError(f"{name}: expected rows of {wanted}, got {outcomes!r:.100}") from None
        p = _distribution(name, probabilities, n_states)
        for i in p.nonzero()[0]:  # what never happens may lead anywhere and pay anything
            check_number(f"{name}: reward", rewards[i])
            check_number(f"{name}: next state", following[i], at_least=0, less_than=n_states)
            if following[i] != int(following[i]):
                raise ValueError(f"{name}: next state: expected an integer, got {following[i]!r}")
            place = (s, a, n_states if ends[i] else int(following[i]))
            transition[place] += p[i]
            paid[place] += p[i] * float(rewards[i])
    transition[n_states, :, n_states] = 1
    reward = torch.where(transition > 0, paid / transition.clamp(min=1e-300), 0.0)
    name = "environment: initial_state_distrib"
    first = _distribution(name, world.initial_state_distrib, n_states)
    if len(first) != n_states:
        raise ValueError(f"{name}: expected {n_states} numbers, as P has states, got {len(first)}")
    initial = torch.tensor([*first, 0], dtype=torch.float64)
    return TabularMDP(transition[None], reward[None], initial[None], discount, n_states).to(dtype)


def _entries(table: Any) -> tuple[dict[tuple[int, int], Any], int, int]:
    """Return {(s, a): outcomes} and the numbers of states and actions of a table, or refuse it."""
    try:
        entries = {(s, a): rows for s, actions in table.items() for a, rows in actions.items()}
        n_states, n_actions = len(table), len(table[0])
    except (AttributeError, KeyError):
        entries = {}
    if not entries or entries.keys() != set(itertools.product(range(n_states), range(n_actions))):
        wanted = "states s = 0, 1, 2, ... and the same actions a = 0, 1, 2, ... in each of them"
        got = f"{table!r:.100}"
        raise ValueError(f"environment: expected a dictionary P[s][a] with {wanted}, got {got}")
    return entries, n_states, n_actions


def _distribution(name: str, given: Any, n_states: int) -> np.ndarray:
    """Return probabilities in double precision, or refuse them by the measure of their own type."""
    numbers = np.asarray(given)
    rounded = numbers.dtype in (np.float16, np.float32)
    tolerance = 8 * n_states * np.finfo(numbers.dtype if rounded else np.float64).eps
    known = numbers.ndim == 1 and numbers.dtype.kind in "fiu"
    total = numbers.sum(dtype=np.float64) if known else math.nan
    if not (abs(total - 1) <= tolerance and numbers.min() >= -tolerance):
        raise ValueError(f"{name}: expected probabilities that sum to 1, got {given!r:.100}")
    p = numbers.astype(np.float64).clip(min=0)
    return p / p.sum() if rounded else p


def restarting(mdp: TabularMDP) -> TabularMDP:
    """Let the terminal state lead to the initial distribution, with reward 0, under every action.

    So experience never ends, for the loop to act in, and values stay as they are. Where `mdp` names
    no terminal state, the last one has to be one: lead to itself and pay nothing.
    """
    check_instance("mdp", mdp, TabularMDP)
    terminal = mdp.terminal
    if terminal is None:
        terminal = mdp.n_states - 1
        stays, pays = mdp.transition[:, -1, :, -1], mdp.reward[:, -1, :, -1]
        if not ((stays == 1).all() and (pays == 0).all()):
            wanted = "a terminal state, or a last one that leads to itself with reward 0"
            raise ValueError(f"mdp: expected {wanted}")
    transition, reward = mdp.transition.clone(), mdp.reward.clone()
    transition[:, terminal] = mdp.initial.unsqueeze(1)
    reward[:, terminal] = 0
    return TabularMDP(transition, reward, mdp.initial, mdp.discount, terminal)


def zero_at_terminal(features: Tensor) -> Tensor:
    """Append the terminal state, with zeros, to features (B, S, A, d) or (B, S, d).

    A window is silent there whatever features say. With zeros, values w^T phi are 0 there too.
    """
    of_states = isinstance(features, Tensor) and features.ndim == 3
    check_tensors(features=(features, "B S d" if of_states else "B S A d"))
    return torch.cat([features, torch.zeros_like(features[:, :1])], dim=1)


def to_gymnasium(mdp: TabularMDP, *, index: int = 0, terminal: int | None = None) -> gymnasium.Env:
    """Wrap the MDP `index` of a batch as an environment of Gymnasium.

    States and actions are ``Discrete`` observations and actions. The environment has a table ``P``
    and an ``initial_state_distrib`` of its own, so that `from_gymnasium` reads it back; the
    discount stays behind, for Gymnasium has none. An episode ends where `terminal` is entered, by
    default the terminal state of `mdp`, if it has one. A ModuleNotFoundError says that Gymnasium is
    not installed, a ValueError that there is no such `index` or `terminal`.
    """
    check_instance("mdp", mdp, TabularMDP)
    terminal = mdp.terminal if terminal is None else terminal
    given = [("index", index, mdp.batch)]
    if terminal is not None:
        given.append(("terminal", terminal, mdp.n_states))
    for name, value, size in given:
        if check_count(name, value, at_least=0) >= size:
            raise ValueError(f"{name}: expected an integer below {size}, got {value!r}")
    make: Any = _tabular_env()
    return make(mdp, index, terminal)


@dataclasses.dataclass(eq=False)
class Agent:
    """A learner that is driven by an environment's own steps, one at a time.

    ::

        state, _ = environment.reset() for _ in range(n_steps): state, reward, terminated,
        truncated, _ = environment.step(agent.act(state)) agent.see(reward, state, terminated,
        truncated) if terminated or truncated: state, _ = environment.reset()

    Its windows are those of a restarting world: a step with `terminated` leads to the terminal
    state, whatever state the environment names, and from there a transition with reward 0 leads to
    the next first state. A step with `truncated` ends the window: its last state is bootstrapped
    from, and the way to the next first state is no transition. The update of such a short window is
    scaled, so that every transition moves the parameters as far as in a full one.

    Parameters
    ----------
    algorithm, update, generator
        As of `icrl_lib.loop.interact`.
    features : Tensor or tuple of Tensor
        What ``algorithm.draw_features`` returns for one MDP, B = 1, whose last state is the
        terminal one; see `zero_at_terminal`.
    discount, window : float, int
        Gamma, in [0, 1), and the number of transitions, restarts included, between two updates.
    parameters : Tensor, shape (1, p), optional
        Parameters to begin with, by default 0; the attribute holds those after the last update.
    """

    algorithm: Algorithm
    features: Any
    update: Callable[[Tensor, tuple], Tensor]
    discount: float
    window: int
    _: dataclasses.KW_ONLY
    parameters: Any = None
    generator: torch.Generator

    def __post_init__(self) -> None:
        check_instance("algorithm", self.algorithm, Algorithm)
        if not callable(self.update):
            raise ValueError(f"update: expected a function, got {self.update!r:.200}")
        check_number("discount", self.discount, at_least=0, less_than=1)
        check_count("window", self.window)
        check_generator(self.generator)
        if self.parameters is None:
            table = self.features if isinstance(self.features, Tensor) else self.features[0]
            self.parameters = table.new_zeros(1, self.algorithm.n_parameters)
        self._policy = self.algorithm.policy(self.features, self.parameters)
        self._terminal = self._policy.shape[1] - 1
        self._states: list[int] = []
        self._actions: list[int] = []
        self._rewards: list[float] = []

    def act(self, state: int) -> int:
        """Draw an action in a state of the environment."""
        state = self._check_state(state)
        if self._states and len(self._actions) == len(self._states):
            raise ValueError("act: expected a call of see after every action")
        if not self._states:
            self._states = [state]
        elif self._states[-1] == self._terminal:
            self._actions.append(self._draw())  # what is done there does not matter
            self._arrive(0.0, state)
        elif self._states[-1] != state:
            raise ValueError(f"state: expected {self._states[-1]}, the last seen, got {state}")
        self._actions.append(self._draw())
        return self._actions[-1]

    def see(self, reward: float, state: int, terminated: bool, truncated: bool) -> None:
        """Take in what a step of the environment returned."""
        check_number("reward", reward)
        state = self._terminal if terminated else self._check_state(state)
        if not self._states or len(self._actions) < len(self._states):
            raise ValueError("see: expected a call of act before every step")
        self._arrive(float(reward), state)
        if truncated and not terminated:
            if self._rewards:
                self._learn()
            self._states = []

    def _check_state(self, state: int) -> int:
        check_count("state", state, at_least=0)
        if state >= self._terminal:
            raise ValueError(f"state: expected an integer below {self._terminal}, got {state!r}")
        return int(state)

    def _draw(self) -> int:
        policy = self._policy[0, self._states[-1]]
        return int(torch.multinomial(policy, 1, generator=self.generator))

    def _arrive(self, reward: float, state: int) -> None:
        self._rewards.append(reward)
        self._states.append(state)
        if len(self._rewards) == self.window:
            self._learn()

    def _learn(self) -> None:
        device, dtype = self._policy.device, self._policy.dtype
        states = torch.tensor([self._states], device=device)
        actions = torch.tensor([[*self._actions, self._draw()]], device=device)
        rewards = torch.tensor([self._rewards], device=device, dtype=dtype)
        window = Window(states, actions, rewards, self.discount).episodic(self._terminal)
        seen = self.algorithm.observe(self.features, self.parameters, window)
        updated = self.update(self.parameters, seen).detach()
        self.parameters = self.parameters.lerp(updated, len(self._rewards) / self.window)
        self._policy = self.algorithm.policy(self.features, self.parameters)
        self._states, self._actions, self._rewards = self._states[-1:], [], []


def _gymnasium() -> ModuleType:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        needs = "this function of icrl_lib.worlds needs it: pip install gymnasium"
        raise ModuleNotFoundError(f"Gymnasium is not installed, and {needs}") from error
    return gymnasium


def _blank_env() -> gymnasium.Env:
    return object.__new__(_tabular_env())


@functools.cache
def _tabular_env() -> type[gymnasium.Env]:
    """Define the environment's class, which needs Gymnasium, when it is first used."""
    gymnasium = _gymnasium()
    from gymnasium.envs.registration import EnvSpec

    class TabularEnv(gymnasium.Env):
        """One MDP with discrete observations and actions."""

        def __init__(self, mdp: TabularMDP, index: int, terminal: int | None) -> None:
            self.observation_space = gymnasium.spaces.Discrete(mdp.n_states)
            self.action_space = gymnasium.spaces.Discrete(mdp.n_actions)
            options = {"mdp": mdp, "index": index, "terminal": terminal}
            self.spec = EnvSpec("TabularMDP-v0", f"{__name__}:to_gymnasium", kwargs=options)
            # Rows that a float32 has rounded sum to 1 again in double precision.
            exact = mdp[index : index + 1].to(torch.float64)
            self._probability = exact.transition[0].numpy()
            self._table = cumulative(exact.transition[0]).numpy()
            self._reward = exact.reward[0].numpy()
            self.initial_state_distrib = exact.initial[0].numpy()
            self._first = cumulative(exact.initial[0]).numpy()
            self._terminal = terminal
            self.s: int | None = None

        def __reduce__(self) -> tuple:
            return _blank_env, (), self.__dict__  # a class made in a function has no address

        @functools.cached_property
        def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:  # noqa: N802
            """The transition table in Gymnasium's form."""
            return {
                s: {
                    a: [
                        (row[t].item(), t, self._reward[s, a, t].item(), t == self._terminal)
                        for t in row.nonzero()[0].tolist()
                    ]
                    for a, row in enumerate(actions)
                }
                for s, actions in enumerate(self._probability)
            }

        def _draw(self, sums: Any) -> int:
            return int((self.np_random.random() >= sums[:-1]).sum())

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
            super().reset(seed=seed)
            self.s = self._draw(self._first)
            return self.s, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
            if self.s is None:
                raise ValueError("step: expected a call of reset before the first step")
            if not self.action_space.contains(action):
                n = self.action_space.n
                raise ValueError(f"action: expected an integer below {n}, got {action!r}")
            s_next = self._draw(self._table[self.s, action])
            reward = self._reward[self.s, action, s_next].item()
            self.s = s_next
            return s_next, reward, s_next == self._terminal, False, {}

    return TabularEnv
