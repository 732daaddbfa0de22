"""The loop of Fig. 1: agent, trajectory, prompt, updated parameters, agent. It exists once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.checks import check_instance
from icrl_lib.mdps import TabularMDP
from icrl_lib.policies import Share, rollout

Update = Callable[[Tensor, tuple], Tensor]
"""A map from parameters (B, p) and an observation to updated parameters (B, p)."""


class Frame(NamedTuple):
    """One turn of the loop.

    A window was produced with `parameters` (B, p), and `observation` is what `Algorithm.observe`
    saw in it; `updated` (B, p) are the parameters after the update, and the next window starts in
    `state`, int64, (B,).
    """

    parameters: Tensor
    observation: tuple
    updated: Tensor
    state: Tensor


def interact(
    algorithm: Algorithm,
    mdp: TabularMDP,
    features: Any,
    parameters: Tensor,
    state: Tensor,
    update: Update,
    *,
    n: int = 20,
    generator: torch.Generator,
    share: Share | None = None,
) -> Iterator[Frame]:
    """Roll out n steps, update the parameters, and go on from where the window ended, for ever.

    Parameters
    ----------
    algorithm : Algorithm
        Says how parameters act and what a window shows.
    mdp, features
        B MDPs, one agent in each, and what ``algorithm.draw_features`` returned.
    parameters, state : Tensor, shape (B, p) and (B,)
        Parameters to begin with, and states, int64, to begin in.
    update : callable
        ``algorithm.teach`` for the teacher, ``run.update`` or `students.as_update` for a student.
    n : int
        Length of a window.
    generator, share
        As of `policies.rollout`.

    Yields
    ------
    Frame
        One turn after the other; stop by leaving the loop. Derivatives of `updated`, where `update`
        has any, reach back to the beginning of the turn, so that memory does not grow.
    """
    check_instance("algorithm", algorithm, Algorithm)
    check_instance("mdp", mdp, TabularMDP)
    if not callable(update):
        raise ValueError(f"update: expected a function, got {update!r:.200}")
    while True:
        policy = algorithm.policy(features, parameters)
        window = rollout(mdp, policy, n, state, generator, share)
        observation = algorithm.observe(features, parameters, window)
        updated = update(parameters, observation)
        state = window.states[:, -1]
        yield Frame(parameters, observation, updated, state)
        parameters = updated.detach()
