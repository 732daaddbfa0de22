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

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from icrl_lib.checks import check_count, check_dtype, check_instance, check_tensors
from icrl_lib.mdps import TabularMDP, cumulative

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

    Two entries of the table that lead from (s, a) to the same state are added. If they pay
    different rewards (`FrozenLake` beside a hole and the goal, `CliffWalking` on slippery ground
    beside the cliff), the reward is their mean given the next state, which leaves every value and
    every mean update as it is. A limit on the number of steps is not part of the table.

    Parameters
    ----------
    environment : str or gymnasium.Env
        An environment with a table ``P[s][a]`` of (probability, next state, reward, terminated)
        and an ``initial_state_distrib``, as those of ``gymnasium.envs.toy_text``; or its name.
    discount : float
        The discount gamma, in [0, 1); Gymnasium has none.
    dtype : torch.dtype
        Floating-point type of the result.
    **options
        What ``gymnasium.make`` is given along with a name.

    Returns
    -------
    TabularMDP
        B = 1 MDP with the environment's states and actions in its own numbering, and the terminal
        state as the last one.

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
    world = getattr(environment, "unwrapped", environment)
    for name in ("P", "initial_state_distrib"):
        if not hasattr(world, name):
            raise ValueError(
                "environment: expected one with a transition table P and an "
                f"initial_state_distrib, got {environment!r} without {name}"
            )
    if getattr(world, "fickle_passenger", False):
        raise ValueError("environment: expected steps that follow P, a fickle passenger does not")

    n_states, n_actions = len(world.P), len(world.P[0])
    shape = (n_states + 1, n_actions, n_states + 1)
    transition = torch.zeros(shape, dtype=torch.float64)
    paid = torch.zeros_like(transition)  # probability times reward
    for s, actions in world.P.items():
        for a, outcomes in actions.items():
            for probability, s_next, reward, terminated in outcomes:
                place = (s, a, n_states if terminated else int(s_next))
                transition[place] += float(probability)
                paid[place] += float(probability) * float(reward)
    transition[n_states, :, n_states] = 1
    reward = torch.where(transition > 0, paid / transition.clamp(min=1e-300), 0.0)
    initial = torch.zeros(n_states + 1, dtype=torch.float64)
    initial[:n_states] = torch.as_tensor(world.initial_state_distrib, dtype=torch.float64)
    return TabularMDP(transition[None], reward[None], initial[None], discount, n_states).to(dtype)


def restarting(mdp: TabularMDP) -> TabularMDP:
    """Let the terminal state lead to the initial distribution, with reward 0, under every action.

    Parameters
    ----------
    mdp : TabularMDP
        MDPs with a terminal state. Where none is named, it is the last state, if that leads to
        itself and pays nothing.

    Returns
    -------
    TabularMDP
        MDPs whose experience never ends, for the loop to act in, with the values of `mdp`.

    Raises
    ------
    ValueError
        If there is no terminal state.
    """
    check_instance("mdp", mdp, TabularMDP)
    terminal = mdp.terminal
    if terminal is None:
        terminal = mdp.n_states - 1
        stays, pays = mdp.transition[:, -1, :, -1], mdp.reward[:, -1, :, -1]
        if not ((stays == 1).all() and (pays == 0).all()):
            raise ValueError(
                "mdp: expected a terminal state, or a last one that leads to itself with reward 0"
            )
    transition, reward = mdp.transition.clone(), mdp.reward.clone()
    transition[:, terminal] = mdp.initial.unsqueeze(1)
    reward[:, terminal] = 0
    return TabularMDP(transition, reward, mdp.initial, mdp.discount, terminal)


def zero_at_terminal(features: Tensor) -> Tensor:
    """Append the terminal state to features of pairs or of states, with zeros.

    Windows do not look at what features say there: tables need the row, and values w^T phi that
    are printed or drawn are then right in it too.

    Parameters
    ----------
    features : Tensor, shape (B, S, A, d) or (B, S, d)
        Features of the states that are not terminal.

    Returns
    -------
    Tensor, shape (B, S + 1, A, d) or (B, S + 1, d)
        Features of all states.
    """
    of_states = isinstance(features, Tensor) and features.ndim == 3
    check_tensors(features=(features, "B S d" if of_states else "B S A d"))
    return torch.cat([features, torch.zeros_like(features[:, :1])], dim=1)


def to_gymnasium(mdp: TabularMDP, *, index: int = 0, terminal: int | None = None) -> gymnasium.Env:
    """Wrap one MDP as an environment of Gymnasium.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of MDPs. The discount stays behind: Gymnasium has none.
    index : int
        Which MDP of the batch.
    terminal : int, optional
        A state whose entering ends the episode; by default none does.

    Returns
    -------
    gymnasium.Env
        States and actions are ``Discrete`` observations and actions. The environment has a table
        ``P`` and an ``initial_state_distrib`` of its own, so that `from_gymnasium` reads it back.

    Raises
    ------
    ModuleNotFoundError
        If Gymnasium is not installed.
    ValueError
        If `index` or `terminal` does not exist.
    """
    check_instance("mdp", mdp, TabularMDP)
    for name, value, size in (("index", index, mdp.batch), ("terminal", terminal, mdp.n_states)):
        if name == "terminal" and value is None:
            continue
        check_count(name, value, at_least=0)
        if value >= size:
            raise ValueError(f"{name}: expected an integer below {size}, got {value!r}")
    return _tabular_env()(mdp, index, terminal)


def _gymnasium() -> ModuleType:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Gymnasium is not installed, and this function of icrl_lib.worlds needs it: "
            "pip install gymnasium"
        ) from error
    return gymnasium


@functools.cache
def _tabular_env() -> type[gymnasium.Env]:
    """Define the environment's class, which needs Gymnasium, when it is first used."""
    gymnasium = _gymnasium()
    from gymnasium.envs.registration import EnvSpec

    class TabularEnv(gymnasium.Env):
        """One MDP with discrete observations and actions."""

        metadata = {"render_modes": []}  # noqa: RUF012

        def __init__(
            self,
            mdp: TabularMDP,
            index: int = 0,
            terminal: int | None = None,
            render_mode: None = None,
        ) -> None:
            self.render_mode = render_mode
            self.observation_space = gymnasium.spaces.Discrete(mdp.n_states)
            self.action_space = gymnasium.spaces.Discrete(mdp.n_actions)
            options = {"mdp": mdp, "index": index, "terminal": terminal}
            self.spec = EnvSpec("TabularMDP-v0", TabularEnv, kwargs=options)
            # Rows that a float32 has rounded sum to 1 again in double precision.
            exact = mdp[index : index + 1].to(torch.float64)
            self._probability = exact.transition[0].numpy()
            self._table = cumulative(exact.transition[0]).numpy()
            self._reward = exact.reward[0].numpy()
            self.initial_state_distrib = exact.initial[0].numpy()
            self._first = cumulative(exact.initial[0]).numpy()
            self._terminal = terminal
            self.s: int | None = None

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

        def reset(
            self, *, seed: int | None = None, options: dict | None = None
        ) -> tuple[int, dict]:
            super().reset(seed=seed)
            self.s = self._draw(self._first)
            return self.s, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
            if self.s is None:
                raise ValueError("step: expected a call of reset before the first step")
            if not self.action_space.contains(action):
                raise ValueError(
                    f"action: expected an integer below {self.action_space.n}, got {action!r}"
                )
            s_next = self._draw(self._table[self.s, action])
            reward = self._reward[self.s, action, s_next].item()
            self.s = s_next
            return s_next, reward, s_next == self._terminal, False, {}

    return TabularEnv
