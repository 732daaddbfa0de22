"""Small problems for the tests of objective, flow, richness and landscape."""

from types import SimpleNamespace

import torch

from icrl_lib import windows
from icrl_lib.algorithms import SARSA
from icrl_lib.families import RandomMDPs
from icrl_lib.objective import Objective
from icrl_lib.training import TrainingConfig, draw_situation

F64 = torch.float64


def close(actual, expected, atol=1e-12, rtol=0.0):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def config(algorithm=None, n_states=3, n_actions=2, discount=0.5, **settings):
    settings = {"window": 10, "dtype": "float64"} | settings
    family = RandomMDPs(n_states, n_actions, discount)
    return TrainingConfig(algorithm or SARSA(d=2), family=family, **settings)


def collect(cfg, generator, *, batch=40, frames=3, situation=None, update=None):
    """A sample of windows of the family `cfg`, with what belongs to it."""
    situation = situation or draw_situation(cfg, batch, generator)
    sample = windows.collect(
        cfg.algorithm, *situation, frames=frames, n=cfg.window, update=update, generator=generator
    )
    objective = Objective.of(sample)
    star = cfg.algorithm.blocks(dtype=F64)
    return SimpleNamespace(cfg=cfg, objective=objective, star=star, situation=situation)


def on_manifold(problem, c):
    return c * problem.star[0], problem.star[1] / c


def noise(generator, blocks, size=1.0):
    return [size * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in blocks]


def flat(pair):
    return torch.cat([t.flatten() for t in pair])


def unflat(vector, blocks):
    parts = vector.split([t.numel() for t in blocks])
    return [part.reshape(t.shape) for part, t in zip(parts, blocks, strict=True)]
