"""The paper's experiment at full size: train, evaluate, write down; resumable at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from icrl_lib import __version__
from icrl_lib.attention import join, split
from icrl_lib.checks import check_instance, settle_counts
from icrl_lib.control import exact_returns, improve, monte_carlo_return
from icrl_lib.experiments import _files
from icrl_lib.mdps import TabularMDP, expected_return, greedy_policy, value_iteration
from icrl_lib.policies import uniform_policy
from icrl_lib.training import (
    Run,
    Step,
    TrainingConfig,
    check_memory,
    describe,
    draw_situation,
    train,
)

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
        settle_counts(self, *vars(self))


class Experiment:
    """A configuration, its evaluation, and the file that the results of both are written to.

    A context: while it is open no other run can write that file.

    Parameters
    ----------
    config : TrainingConfig
        What to train.
    path : path
        A JSON file; while training, a checkpoint lies beside it. Its folder is made.
    evaluation : Evaluation
        How to evaluate.

    Raises
    ------
    ValueError
        If a batch does not fit into memory; on entering, if another run is at work on `path`, or
        it cannot be written, or holds anything but results of this configuration.
    """

    def __init__(
        self, config: TrainingConfig, path: str | os.PathLike, evaluation: Evaluation = Evaluation()
    ) -> None:
        check_instance("config", config, TrainingConfig)
        check_instance("path", path, (str, os.PathLike))
        check_instance("evaluation", evaluation, Evaluation)
        # As JSON gives it back, to be compared with what a file holds.
        said = {"config": describe(config), "evaluation": vars(evaluation)}
        self.begun: dict[str, Any] = json.loads(json.dumps(said))
        check_memory(config)
        self.config, self.evaluation = config, evaluation
        self.path = _files.target(path)
        self.checkpoint = _files.beside(self.path, ".checkpoint")
        self.results: dict[str, Any] = {}
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Experiment:
        self.results = self._read()
        if not self.evaluated:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"path: expected a folder for {self.path}; {error}") from error
            self._held.enter_context(_files.reserved(self.path))
            self.results = self._read()  # another run may have ended meanwhile
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def trained(self) -> bool:
        """Whether training is done and written down."""
        return "training" in self.results

    @property
    def evaluated(self) -> bool:
        """Whether everything is done and written down."""
        return self.trained and "returns" in self.results

    def run(self, progress: bool | None = None) -> dict[str, Any]:
        """Do what is left to do, and return the results."""
        if not self.trained:
            with _stopping_between_steps() as asked:
                outcome = train(
                    self.config, watch=asked, progress=progress, checkpoint=self.checkpoint
                )
            self.results["training"] = _training_record(outcome)
            _files.write(self.path, self.results)
        if not self.evaluated:
            self.checkpoint.unlink(missing_ok=True)
            self.results.update(
                _evaluate(self.config, *weights(self.results), self.evaluation, progress)
            )
            _files.write(self.path, self.results)
        return self.results

    def _read(self) -> dict[str, Any]:
        results = _files.read(self.path)
        if results is None:
            return dict(self.begun)
        for key, value in self.begun.items():
            if results.get(key) != value:
                raise ValueError(
                    f"path: {self.path} holds the results of another {key}; remove it or choose "
                    "another folder"
                )
        if "training" in results:
            try:
                weights(results)
            except ValueError as error:
                raise _files.damaged(self.path, error) from error
        return results


def run(
    config: TrainingConfig,
    path: str | os.PathLike,
    evaluation: Evaluation = Evaluation(),
    *,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train and evaluate one configuration; write the results to `path` after each stage.

    Killed at any moment and called again, it goes on from where it was and ends with the same
    results, times of day excepted. A finished `path` is read and returned. A second run on the same
    `path` is refused while the first is at work.

    Parameters
    ----------
    config, path, evaluation
        As for `Experiment`, and the same errors.
    progress : bool, optional
        Show progress bars; by default only on a terminal.

    Returns
    -------
    dict
        What `path` holds.
    """
    with Experiment(config, path, evaluation) as experiment:
        return experiment.run(progress)


def stored(name: str) -> dict[str, Any]:
    """Return results that come with the library, by name: "sarsa-50", "actor_critic-1000", ...

    They were written by ``python -m icrl_lib paper --output icrl_lib/experiments/results``.
    """
    file = resources.files("icrl_lib.experiments") / "results" / f"{name}.json"
    if not file.is_file():
        folder = resources.files("icrl_lib.experiments") / "results"
        names = sorted(f.name.removesuffix(".json") for f in folder.iterdir())
        raise ValueError(f"name: expected one of {', '.join(names)}; got {name!r}")
    return json.loads(file.read_text(encoding="utf-8"))


def weights(results: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return P and V, each (D, D), of results that `run` wrote or `stored` read."""
    try:
        dtype = getattr(torch, results["config"]["dtype"])
        blocks = [torch.tensor(results["training"][name], dtype=dtype) for name in ("P12", "V21")]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("results: expected what `run` wrote, training included") from error
    return join(*blocks)


@contextlib.contextmanager
def _stopping_between_steps() -> Generator[Callable[[Step], bool], None, None]:
    """Let an interrupt wait for the end of a step, so that a checkpoint can be written.

    Yields what `train` has to watch. A second interrupt does not wait.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no other gets signals
        yield lambda step: False
        return

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda step: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


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
