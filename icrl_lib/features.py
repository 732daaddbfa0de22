"""Feature maps of finite state and action sets, as tables.

A map of state-action pairs is a tensor (B, S, A, d), one of states (B, S, d): row by row the
vectors phi(s, a) and phi(s), with one map for each MDP of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from icrl_lib.checks import check_count, check_device, check_dtype, check_generator


def random_features(
    batch: int, *shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw features with independent entries uniform on (-1, 1), as in section 4.1.

    The shape of the result is ``batch, n_states, n_actions, d`` for features of state-action pairs,
    ``batch, n_states, d`` for features of states; its device is that of `generator`.
    """
    for name, value in (("batch", batch), *((f"shape[{i}]", v) for i, v in enumerate(shape))):
        check_count(name, value)
    check_generator(generator)
    check_dtype(dtype)
    features = torch.empty(batch, *shape, dtype=dtype, device=generator.device)
    return features.uniform_(-1, 1, generator=generator)


def one_hot_features(
    batch: int, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return B = `batch` one-hot feature maps: every state, or pair, has a coordinate of its own.

    With ``n_states, n_actions`` the result is (B, S, A, S * A), and a pair (s, a) has coordinate
    ``s * A + a``; with ``n_states`` alone it is (B, S, S).
    """
    for name, value in (("batch", batch), *((f"shape[{i}]", v) for i, v in enumerate(shape))):
        check_count(name, value)
    check_dtype(dtype)
    check_device(device)
    d = torch.Size(shape).numel()
    identity = torch.eye(d, dtype=dtype, device=device).reshape(*shape, d)
    return identity.expand(batch, *identity.shape).contiguous()


def sphere_features(
    batch: int, *shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw feature vectors uniform on the unit sphere; arguments as of `random_features`."""
    directions = random_features(batch, *shape, generator=generator, dtype=dtype)
    directions.normal_(generator=generator)
    return directions / directions.norm(dim=-1, keepdim=True)


def sparse_features(
    batch: int, *shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw features uniform on (-1, 1) of which nine in ten are 0; else as `random_features`."""
    features = random_features(batch, *shape, generator=generator, dtype=dtype)
    kept = torch.empty_like(features).uniform_(generator=generator) < 0.1
    return features * kept


def _one_hot(
    batch: int, *shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    *places, d = shape
    if math.prod(places) != d:
        needed = " * ".join(map(str, places))
        raise ValueError(f"d: expected {needed} = {math.prod(places)} one-hot features, got {d}")
    return one_hot_features(batch, *places, dtype=dtype, device=generator.device)


Law = Callable[..., Tensor]
"""How features are drawn: called as `random_features` is."""

FEATURES: dict[str, Law] = {
    "uniform": random_features,
    "one_hot": _one_hot,
    "sphere": sphere_features,
    "sparse": sparse_features,
}
"""Ways to draw features, by name."""
