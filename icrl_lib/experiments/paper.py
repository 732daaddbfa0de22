"""The paper's experiment at full size: train, evaluate, write down; resumable at any moment."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from icrl_lib import __version__
from icrl_lib.attention import join, split
from icrl_lib.checks import check_count, check_instance
from icrl_lib.control import exact_returns, improve, monte_carlo_return
from icrl_lib.mdps import TabularMDP, expected_return, greedy_policy, value_iteration
from icrl_lib.policies import uniform_policy
from icrl_lib.training import Run, TrainingConfig, describe, draw_situation, train

HELD_OUT_SEED = 2**31
"""Added to a run's seed for the MDPs of its evaluation, which training therefore never sees."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The protocol of the evaluation (section 4 and Fig. 3).

    Parameters
    ----------
    n_mdps : int
        Held-out MDPs, one agent in each.
    n_updates, every : int
        In-context updates, and how many of them lie between two evaluations. The text does not
        give the number of updates; actor-critic is slow enough to need thousands.
    episodes, length : int
        Monte Carlo trajectories for every evaluation, and transitions in each.
    """

    n_mdps: int = 100
    n_updates: int = 5000
    every: int = 10
    episodes: int = 32
    length: int = 50

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_count(name, value)


def run(
    config: TrainingConfig,
    path: Path,
    evaluation: Evaluation = Evaluation(),
    *,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train and evaluate one configuration; write the results to `path` after each stage.

    Killed at any moment and called again, it goes on from where it was and ends with the same
    results, times of day excepted. A finished `path` is read and returned.

    Parameters
    ----------
    config : TrainingConfig
        What to train.
    path : Path
        A JSON file; while training, a checkpoint lies beside it.
    evaluation : Evaluation
        How to evaluate.
    progress : bool, optional
        Show progress bars; by default only on a terminal.

    Returns
    -------
    dict
        What `path` holds.

    Raises
    ------
    ValueError
        If `path` or its checkpoint belongs to another configuration.
    """
    check_instance("config", config, TrainingConfig)
    check_instance("path", path, (str, os.PathLike))
    check_instance("evaluation", evaluation, Evaluation)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".checkpoint")
    results: dict[str, Any] = {"config": describe(config), "evaluation": vars(evaluation)}
    if path.exists():
        stored = json.loads(path.read_text())
        for key, value in results.items():
            if stored.get(key) != value:
                raise ValueError(
                    f"path: {path} holds the results of another {key}; remove it or choose "
                    "another folder"
                )
        results = stored
    if "training" not in results:
        outcome = train(config, progress=progress, checkpoint=checkpoint)
        results["training"] = _training_record(outcome)
        _write(path, results)
    checkpoint.unlink(missing_ok=True)
    if "returns" not in results:
        results.update(_evaluate(config, *weights(results), evaluation, progress))
        _write(path, results)
    return results


def stored(name: str) -> dict[str, Any]:
    """Return results that come with the library, by name: "sarsa-50", "actor_critic-1000", ...

    They were written by ``python -m icrl_lib paper --output icrl_lib/experiments/results``.
    """
    file = resources.files("icrl_lib.experiments") / "results" / f"{name}.json"
    if not file.is_file():
        folder = resources.files("icrl_lib.experiments") / "results"
        names = sorted(f.name.removesuffix(".json") for f in folder.iterdir())
        raise ValueError(f"name: expected one of {', '.join(names)}; got {name!r}")
    return json.loads(file.read_text())


def weights(results: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return P and V, each (D, D), of results that `run` wrote or `stored` read."""
    try:
        dtype = getattr(torch, results["config"]["dtype"])
        blocks = [torch.tensor(results["training"][name], dtype=dtype) for name in ("P12", "V21")]
    except (KeyError, TypeError) as error:
        raise ValueError("results: expected what `run` wrote, training included") from error
    return join(*blocks)


def _training_record(outcome: Run) -> dict[str, Any]:
    blocks = split(outcome.P, outcome.V, outcome.config.algorithm.n_parameters)
    losses, steps = outcome.losses, outcome.steps
    keep = -(-len(losses) // 500)  # at most 500 points: means of that many consecutive losses
    means = [part.mean().item() for part in losses.split(keep)]
    ends = [part[-1].item() for part in steps.split(keep)]
    return {
        "P12": _plain(blocks.P12),
        "V21": _plain(blocks.V21),
        "losses": [float(f"{loss:.6g}") for loss in means],
        "steps": ends,
        "projection": outcome.projection()._asdict(),
        "seconds": round(outcome.seconds, 1),
        **_circumstances(),
    }


def _evaluate(
    config: TrainingConfig, P: Tensor, V: Tensor, evaluation: Evaluation, progress: bool | None
) -> dict[str, Any]:
    """Compare block, teacher, oracle and uniform policy on held-out MDPs."""
    started = time.perf_counter()
    algorithm = config.algorithm
    generator = torch.Generator(config.device).manual_seed(config.seed + HELD_OUT_SEED)
    mdp, features, parameters, _ = draw_situation(config, evaluation.n_mdps, generator)
    start = generator.get_state()

    returns: dict[str, Any] = {}
    updates = {"transformer": partial(algorithm.forward, P=P, V=V), "teacher": algorithm.teach}
    for name, update in updates.items():
        for kind, epsilon in (("behaviour", None), ("greedy", 0.0)):
            generator.set_state(start)  # the same random numbers for all four
            improvement = improve(
                algorithm,
                mdp,
                features,
                parameters,
                update,
                evaluation.n_updates,
                window=config.window,
                keep_every=evaluation.every,
                epsilon=epsilon,
                generator=generator,
            )
            label = f"{name}, {kind}"
            hide = None if progress is None else not progress
            policies = tqdm(improvement.policies, desc=label, disable=hide)
            sampled = torch.stack([_sample(mdp, pi, evaluation, generator) for pi in policies])
            returns[label] = {
                "exact": _curve(exact_returns(mdp, improvement.policies)),
                "monte_carlo": _curve(sampled),
            }
    oracle = greedy_policy(value_iteration(mdp))
    for name, policy in (("oracle", oracle), ("random", uniform_policy(mdp))):
        sampled = _sample(mdp, policy, evaluation, generator)
        returns[name] = {
            "exact": _curve(expected_return(mdp, policy).unsqueeze(0)),
            "monte_carlo": _curve(sampled.unsqueeze(0)),
        }
    return {
        "updates": improvement.updates.tolist(),
        "returns": returns,
        "evaluation_seconds": round(time.perf_counter() - started, 1),
    }


def _sample(
    mdp: TabularMDP, policy: Tensor, evaluation: Evaluation, generator: torch.Generator
) -> Tensor:
    episodes, length = evaluation.episodes, evaluation.length
    return monte_carlo_return(mdp, policy, episodes, length, generator=generator)


def _curve(values: Tensor) -> dict[str, Any]:
    """Summarise returns (K, B) over the MDPs; keep those of the last policy one by one."""
    values = values.double().cpu()
    quartiles = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), dim=-1)
    summary = {"mean": values.mean(-1), "low": quartiles[0], "high": quartiles[1]}
    curve = {name: [round(x, 4) for x in series.tolist()] for name, series in summary.items()}
    return {**curve, "last": [round(x, 6) for x in values[-1].tolist()]}


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {
            "icrl_lib": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def _plain(matrix: Tensor) -> list[list[float]]:
    """Return a matrix as lists with just the digits that determine its numbers."""
    return [[float(str(x)) for x in row] for row in matrix.cpu().numpy()]


def _write(path: Path, results: Mapping[str, Any]) -> None:
    """Write so that at any moment the file is whole: the old results or the new."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n")
    os.replace(beside, path)
