"""What training costs: against a plain loop, against the machine, and where the time goes.

``python -m icrl_lib bench`` measures and prints; nothing here is used by the rest of the library.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import platform
import queue
import signal
import socket
import statistics
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from icrl_lib import __version__
from icrl_lib.algorithms import ALGORITHMS
from icrl_lib.experiments import _files
from icrl_lib.mdps import cumulative
from icrl_lib.policies import Window, rollout
from icrl_lib.students import LinearBlock, LiteralBlock
from icrl_lib.training import (
    FarFromTeacher,
    Run,
    TrainingConfig,
    _Trainer,
    draw_situation,
    memory_needed,
    relative_error,
    train,
)

TARGET = 1e-10
"""Held-out relative error to which training is timed."""


class Effort(NamedTuple):
    """How much is measured.

    Attributes
    ----------
    batch : int
        MDPs in lockstep in each process; a quarter of it where growth is measured.
    frames : int
        Windows per MDP in one timing of the library.
    plain, tidy : int
        Windows in one timing of the plain loop, and of the tidy loop.
    repeats : int
        Interleaved repetitions, of which the median counts.
    full : int
        MDPs of the full run, of 1,000 windows each: 10,000 are the 10^7 of Algorithm 1.
    full_frames : int
        Windows per MDP of the full run.
    scales : tuple of float
        Factors by which sizes are changed to fit exponents.
    limit : float
        Seconds after which a run to the target error is given up.
    """

    batch: int = 1024
    frames: int = 100
    plain: int = 200
    tidy: int = 1000
    repeats: int = 5
    full: int = 10_000
    full_frames: int = 1000
    scales: tuple[float, ...] = (0.5, 1, 2, 4)
    limit: float = 120.0


FULL = Effort()
"""What ``make bench`` measures."""

QUICK = Effort(16, 2, 2, 3, 2, 32, 2, (1, 2), 0.05)
"""Enough to see that everything runs; the numbers mean nothing."""


def run(
    effort: Effort = FULL, say: Callable[[str], None] = print, output: Path | None = None
) -> dict[str, Any]:
    """Measure everything and print it on the way.

    Parameters
    ----------
    effort : Effort
        How much to measure.
    say : callable
        Receives the lines of the report.
    output : Path, optional
        A JSON file to write the results to, in an existing folder.

    Returns
    -------
    dict
        Numbers, strings and mappings: what ``python -m icrl_lib bench`` stores.

    Raises
    ------
    ValueError
        If `output` cannot be written; before anything is measured.
    """
    if output is None:
        return _measure(effort, say)
    path = _files.target(output)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"output: expected a file in an existing folder, got {output}")
    with _files.reserved(path):
        results = _measure(effort, say)
        _files.write(path, results, indent=1)
    return results


def _measure(effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results: dict[str, Any] = {"effort": effort._asdict(), "machine": machine()}
        say(f"{results['machine']['cores']} cores, {results['machine']['processor']}")
        for name in ALGORITHMS:
            results[name] = _algorithm(configuration(name, effort), effort, say)
        return results
    finally:
        torch.set_num_threads(threads)


def configuration(name: str, effort: Effort) -> TrainingConfig:
    """Return the paper's sizes, a batch of MDPs in lockstep and rates that suit it."""
    config = TrainingConfig.lockstep(name)
    return dataclasses.replace(
        config,
        batch=effort.batch,
        n_mdps=effort.batch,
        frames=effort.frames,
        decay_every=effort.batch,
    )


def _algorithm(
    config: TrainingConfig, effort: Effort, say: Callable[[str], None]
) -> dict[str, Any]:
    name = config.algorithm.name
    say(f"\n{name}")
    processes = min(2, os.cpu_count() or 1)
    batch = processes * config.batch
    shared_config = dataclasses.replace(config, batch=batch, n_mdps=batch, decay_every=batch)
    with Processes(processes) as together:
        rounds = [  # interleaved: what else the machine does hits all alike
            {**_speeds(config, effort), "shared": together.windows_per_second(shared_config)}
            for _ in range(effort.repeats)
        ]
        full = together.full_run(shared_config, effort)
    speeds = {rung: statistics.median(r[rung] for r in rounds) for rung in rounds[0]}

    def times(rung: str, other: str) -> float:
        return _digits(statistics.median(r[rung] / r[other] for r in rounds))

    # One core against one by processor time, several against one by the clock on the wall.
    brings = {rung: times(rung, other) for other, rung in pairwise(LADDER)}
    brings["shared"] = times("shared", "library, wall")
    say(f"  {'':<26}{'windows/s':>12}{'times the line above':>23}")
    for rung, words in LADDER.items():
        label = words.format(batch=config.batch, processes=processes)
        gain = f"{brings[rung]:23.1f}" if rung in brings else ""
        say(f"  {label:<26}{speeds[rung]:12,.0f}{gain}")
    ratios = {loop: times("library", loop) for loop in ("plain", "tidy")}
    alone = times("tidy, reduced", "tidy")
    words = " and ".join(f"{ratio:.0f} times the {loop} loop" for loop, ratio in ratios.items())
    say(f"  library, one core: {words}")
    say(f"  reduced form alone, in the tidy loop: {alone:.1f} times")
    say(
        f"  {full['windows']:,} windows in {full['seconds']:.1f} s, "
        f"held-out error {full['held_out_error']:.0e}"
    )
    to_target = time_to_target(config, effort.limit)
    tidy_to_target = tidy_time_to_target(config, effort.limit)
    say(f"  held-out error {TARGET:.0e}: {_words(to_target)}")
    say(f"    with the tidy loop: {_words(tidy_to_target)}")
    limits = peak(config, effort.repeats)
    say(
        "  one core: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s in arrays as large as the tokens, "
        "{gbytes_main:.1f} GB/s from main memory".format(**limits)
    )
    work = roofline(config, limits)
    stages = split(config, effort.repeats)
    least = sum(entry["microseconds"] for entry in work.values())
    used = sum(stages.values())
    say(f"  {'microseconds a window':<22}{'used':>8}{'least':>8}{'times':>7}")
    for stage, spent in stages.items():
        bound = work[stage]["microseconds"]
        say(f"    {stage:<20}{spent:8.2f}{bound:8.2f}{spent / bound:7.1f}")
    # One after the other, the stages find the caches full of each other.
    whole = 1e6 / speeds["library"]
    for words, spent in (("all, one by one", used), ("a step as it is", whole)):
        say(f"    {words:<20}{spent:8.2f}{least:8.2f}{spent / least:7.1f}")
    quarter = max(1, config.batch // 4)
    grown = scaling(dataclasses.replace(config, batch=quarter, n_mdps=quarter), effort)
    for axis, entry in grown.items():
        say(f"  time grows like {axis}^{entry['exponent']:.2f}")
    memory = peak_memory(dataclasses.replace(config, frames=max(2, effort.frames // 10)))
    estimate = memory_needed(config) / 2**20
    say(f"  peak memory {memory:.0f} MiB above what importing takes; estimated {estimate:.0f} MiB")
    return {
        "sizes": {"k": config.algorithm.layout.n_token, "p": config.algorithm.n_parameters},
        "rounds": [{rung: _digits(value) for rung, value in r.items()} for r in rounds],
        "processes": processes,
        "speeds": {rung: _digits(speeds[rung]) for rung in LADDER},
        "brings": brings,
        "ratio": ratios["plain"],
        "tidy_ratio": ratios["tidy"],
        "reduced_alone": alone,
        "shared_ratio": times("shared", "plain, wall"),
        "full": full,
        "to_target": to_target,
        "tidy_to_target": tidy_to_target,
        "stages": {stage: _digits(value) for stage, value in stages.items()},
        "peak": limits,
        "roofline": work,
        "from_roofline": _digits(used / least),
        "whole_step_from_roofline": _digits(whole / least),
        "scaling": grown,
        "memory_mib": round(memory, 1),
        "memory_estimate_mib": round(estimate, 1),
    }


# --- the loops in the ordinary way


LADDER = {
    "plain": "plain loop",
    "tidy": "tidy loop",
    "lockstep": "{batch} MDPs in lockstep",
    "library": "reduced form: the library",
    "shared": "{processes} processes",
}
"""From Algorithm 1 line by line to the library, one idea a line."""


def _speeds(config: TrainingConfig, effort: Effort) -> dict[str, float]:
    """Time everything that takes one core, in windows per second of processor time.

    Besides the ladder's lines the reduced form in the tidy loop, and what the clock on the wall
    says of those that are compared with several processes.
    """
    plain = plain_training(config, effort.plain)
    speeds = {"plain": plain.cpu_speed, "plain, wall": plain.speed}
    for name, block in (("tidy", whole_block), ("tidy, reduced", reduced_block)):
        speeds[name] = tidy_training(config, effort.tidy, block).cpu_speed
    whole = LiteralBlock.from_weights(config.algorithm, *_start(config).weights())
    shorter = dataclasses.replace(config, frames=-(-config.frames // 5))
    for name, sizes, student in (("lockstep", shorter, whole), ("library", config, None)):
        started = time.perf_counter(), time.process_time()
        _train(sizes, student)
        speeds[name] = sizes.windows / (time.process_time() - started[1])
        speeds[f"{name}, wall"] = sizes.windows / (time.perf_counter() - started[0])
    return speeds


def _train(config: TrainingConfig, student: torch.nn.Module | None = None, **options: Any) -> Run:
    """Train without a word: what is timed may end far from its teacher."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FarFromTeacher)
        return train(config, student, progress=False, **options)


class LoopRun(NamedTuple):
    """What a loop over windows did.

    Attributes
    ----------
    speed : float
        Windows per second.
    cpu_speed : float
        Windows per second of processor time.
    losses : list of float
        The loss of every window.
    """

    speed: float
    cpu_speed: float
    losses: list[float]


def plain_training(
    config: TrainingConfig, windows: int, weights: Sequence[Tensor] | None = None
) -> LoopRun:
    """Train on one MDP, step by step, as Algorithms 1 and 2 are written down.

    The first yardstick: no batch, eq. (1) with the whole H, P and V, one draw and one transition at
    a time, autograd and Adam.

    Parameters
    ----------
    config : TrainingConfig
        Sizes, algorithm and learning rate.
    windows : int
        How many windows.
    weights : pair of Tensor, optional
        P and V (D, D) to start from; by default small random blocks.

    Returns
    -------
    LoopRun
        Speed and losses.
    """
    return _timed(_plain(config, weights), windows)


def tidy_training(
    config: TrainingConfig,
    windows: int,
    block: Callable[..., Tensor] | None = None,
    weights: Sequence[Tensor] | None = None,
) -> LoopRun:
    """Train on one MDP after the other, as one would tidy the plain loop up.

    The second yardstick: a simulator in NumPy, prompt and teacher of a window at once; eq. (1),
    autograd, Adam and one MDP at a time as before.

    Parameters
    ----------
    config, windows, weights
        As for `plain_training`; besides, every `frames` windows another MDP, and the decay of the
        learning rate.
    block : callable, optional
        `whole_block`, the default, or `reduced_block`, whose weights are P12 and V21.

    Returns
    -------
    LoopRun
        Speed and losses.
    """
    steps = _tidy(config, block or whole_block, weights)
    return _timed((loss for loss, _ in steps), windows)


def _timed(losses: Iterator[float], windows: int) -> LoopRun:
    started = time.perf_counter(), time.process_time()
    kept = list(islice(losses, windows))
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return LoopRun(windows / wall, windows / cpu, kept)


def _plain(config: TrainingConfig, weights: Sequence[Tensor] | None) -> Iterator[float]:
    """Yield the loss of every window."""
    algorithm: Any = config.algorithm
    n = config.window
    sarsa = algorithm.name == "sarsa"
    generator = torch.Generator().manual_seed(config.seed)
    mdp, features, parameters, state = draw_situation(config, 1, generator)
    transition, reward, gamma = mdp.transition[0], mdp.reward[0], mdp.discount
    phi_pi, phi_v = [features[0]] * 2 if sarsa else (features.policy[0], features.value[0])
    m = 0 if sarsa else algorithm.m
    p, k = algorithm.n_parameters, algorithm.layout.n_token
    P, V = _leaves(weights or _start(config).weights())
    optimiser = torch.optim.Adam([P, V], lr=config.learning_rate)
    theta, s = parameters[0], int(state)

    def probabilities(s: int) -> Tensor:
        if sarsa:
            q = phi_pi[s] @ theta
            return torch.nn.functional.one_hot(q.argmax(), mdp.n_actions).to(q.dtype)
        return (phi_pi[s] @ theta[:m]).softmax(-1)

    def draw(probabilities: Tensor) -> int:
        return int(torch.multinomial(probabilities, 1, generator=generator).item())

    def act(s: int) -> int:
        pi = (1 - algorithm.epsilon) * probabilities(s) + algorithm.epsilon / mdp.n_actions
        return draw(pi)

    while True:
        H = torch.zeros(k + 1 + p, n + 1, dtype=theta.dtype)
        H[k, n], H[k + 1 :, n] = 1, theta
        step = torch.zeros_like(theta)
        a = act(s)
        for i in range(n):
            s_next = draw(transition[s, a])
            a_next = act(s_next)
            r = reward[s, a, s_next]
            if sarsa:
                phi, phi_next, w = phi_pi[s, a], phi_pi[s_next, a_next], theta
            else:
                phi, phi_next, w = phi_v[s], phi_v[s_next], theta[m:]
            d = len(phi)
            delta = r + gamma * (w @ phi_next) - w @ phi
            H[:d, i], H[d : 2 * d, i], H[2 * d, i] = phi, gamma * phi_next, r
            if sarsa:
                step += algorithm.alpha / n * delta * phi
            else:
                score = phi_pi[s, a] - probabilities(s) @ phi_pi[s]
                H[2 * d + 1 : k, i] = gamma**i * score
                step[:m] += algorithm.alpha / n * gamma**i * delta * score
                step[m:] += algorithm.beta / n * delta * phi
            s, a = s_next, a_next
        target = theta + step
        H_out = H + (V @ H) @ (H.T @ P @ H) / n
        loss = 0.5 * ((H_out[-p:, -1] - target) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield loss.item()
        theta = target


def _tidy(
    config: TrainingConfig, block: Callable[..., Tensor], weights: Sequence[Tensor] | None = None
) -> Iterator[tuple[float, Sequence[Tensor]]]:
    """Yield the loss of every window, and the weights after its step."""
    algorithm: Any = config.algorithm
    n = config.window
    sarsa, m, epsilon = algorithm.name == "sarsa", getattr(algorithm, "m", 0), algorithm.epsilon
    rates = (algorithm.alpha,) if sarsa else (algorithm.alpha, algorithm.beta)
    generator, rng = torch.Generator().manual_seed(config.seed), np.random.default_rng(config.seed)
    start = _start(config)
    weights = weights or (start.weights() if block is whole_block else (start.P12, start.V21))
    weights = _leaves(weights)
    optimiser = torch.optim.Adam(weights, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.decay_every, config.decay)
    while True:
        mdp, features, parameters, state = draw_situation(config, 1, generator)
        move, reward = cumulative(mdp.transition[0])[..., :-1].numpy(), mdp.reward[0].numpy()
        phi, values = [features[0]] * 2 if sarsa else (table[0].numpy() for table in features)
        phi, theta, s_next, gamma = (
            np.asarray(phi),
            parameters[0].numpy(),
            state.item(),
            mdp.discount,
        )
        fall = gamma ** np.arange(n, dtype=theta.dtype)[:, None]
        for _ in range(config.frames):
            q = phi @ theta[: m or None]
            best = q == q.max(-1, keepdims=True)
            pi = best if sarsa else np.exp(q - q.max(-1, keepdims=True))
            pi = pi / pi.sum(-1, keepdims=True)
            act = ((1 - epsilon) * pi + epsilon / mdp.n_actions).cumsum(-1)[:, :-1]
            visited, s = [], s_next
            for for_action, for_state in rng.random((n + 1, 2)).tolist():
                a = act[s].searchsorted(for_action, "right")
                visited.append((s, a))
                s = move[s, a].searchsorted(for_state, "right")
            states, actions = np.array(visited).T
            s, a, s_next, a_next = states[:-1], actions[:-1], states[1:], actions[1:]
            if sarsa:
                x, x_next, w = phi[s, a], phi[s_next, a_next], theta
            else:
                x, x_next, w = values[s], values[s_next], theta[m:]
            r = reward[s, a, s_next]
            delta = r + gamma * x_next @ w - x @ w
            eligible, tokens = [x], [x, gamma * x_next, r[:, None]]
            if m:
                tokens.append(fall * (phi[s, a] - (pi[..., None] * phi).sum(1)[s]))
                eligible.insert(0, tokens[-1])
            step = [rate / n * delta @ by for rate, by in zip(rates, eligible, strict=True)]
            target = theta + np.concatenate(step)
            X = torch.from_numpy(np.concatenate(tokens, 1))
            student = block(X, torch.from_numpy(theta), *weights)
            loss = 0.5 * (student - torch.from_numpy(target)).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item(), weights
            theta, s_next = target, states[-1]
        schedule.step()


def whole_block(X: Tensor, theta: Tensor, P: Tensor, V: Tensor) -> Tensor:
    """Return the parameters (p,) that eq. (1) writes, by the whole H, from tokens X (n, k)."""
    n, k = X.shape
    H = torch.zeros(len(P), n + 1, dtype=X.dtype)
    H[:k, :n], H[k, n], H[k + 1 :, n] = X.T, 1, theta
    return (H + (V @ H) @ (H.T @ (P @ H)) / n)[k + 1 :, -1]


def reduced_block(X: Tensor, theta: Tensor, P12: Tensor, V21: Tensor) -> Tensor:
    """Return the same by Lemma C.1."""
    query = P12[:, 0] + P12[:, 1:] @ theta
    return theta + V21 @ ((X @ query) @ X) / len(X)


def _start(config: TrainingConfig) -> LinearBlock:
    """Return the block that training starts from."""
    generator = torch.Generator().manual_seed(config.seed)
    dtype = config.torch_dtype
    return LinearBlock(config.algorithm, config.gain, generator=generator, dtype=dtype)


def _leaves(weights: Sequence[Tensor]) -> list[Tensor]:
    return [block.detach().clone().requires_grad_() for block in weights]


# --- limits of the machine


def machine() -> dict[str, Any]:
    """Describe the machine and the versions, without names of hosts or folders."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {
            "icrl_lib": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak(config: TrainingConfig, repeats: int = 5) -> dict[str, float]:
    """Measure what one core can do, in GFLOP/s and GB/s.

    Products of large matrices; and copies, of arrays that are as large as the tokens of a batch
    (what lies in a cache then is what could lie there in training too) and out of main memory.
    """
    a, b = torch.rand(2, 768, 768)
    product = _seconds(lambda: a @ b, repeats, 8)
    tokens = config.batch * config.window * config.algorithm.layout.n_token
    speeds = {}
    for name, count in (("gbytes", tokens), ("gbytes_main", 2**24)):
        source = torch.rand(count)
        target = torch.empty_like(source)
        copy = _seconds(partial(target.copy_, source), repeats, max(2, 2**24 // count // 4))
        speeds[name] = _digits(2 * source.numel() * 4 / copy / 1e9)
    return {"gflops": _digits(2 * 768**3 / product / 1e9), **speeds}


def roofline(config: TrainingConfig, limits: dict[str, float]) -> dict[str, dict[str, float]]:
    """Count, stage by stage, what a window needs, and the least time in which it could be done.

    Parameters
    ----------
    config : TrainingConfig
        Sizes.
    limits : dict
        What `peak` measured.

    Returns
    -------
    dict
        For each stage floating-point operations, bytes and microseconds: the larger of the times
        that arithmetic and memory traffic take. Every stage reads its input from memory and writes
        its result to it once.
    """
    algorithm: Any = config.algorithm
    n = config.window
    (S, A), k, p = config.family.sizes(), algorithm.layout.n_token, algorithm.n_parameters
    d, m = algorithm.d, getattr(algorithm, "m", 0)
    actor = m or d  # features of a pair that the policy is made of
    weights = k * (1 + p) + p * k
    seen = (n + 1) * d + n * m  # numbers of an observation
    per_step = 1 / config.batch
    counts = {  # (operations, numbers read and written)
        "rollout": (
            2 * S * A * actor + n * (A + S),
            S * A * (actor + 3) + (n + 1) * (A + 2) + n * (S + 2) + 3 * (2 * n + 1),
        ),
        "prompt": (
            n * d + (2 * S * A * m + 2 * n * m if m else 0),
            2 * seen + S * A * m + seen + n * k,
        ),
        "teacher": (6 * n * d + 3 * n * m, 2 * seen + n + 2 * p),
        "forward": (
            2 * k * (1 + p) + 4 * n * k + 2 * k * p + 4 * p,
            2 * n * k + 3 * p + 3 * k + weights * per_step,
        ),
        "backward": (
            2 * k * (1 + p) + 4 * n * k + 4 * k * p,
            2 * n * k + 3 * p + 3 * k + 2 * weights * per_step,
        ),
        "optimiser": (12 * weights * per_step, 7 * weights * per_step),
    }
    size = getattr(torch, config.dtype).itemsize
    table = {}
    for stage, (operations, traffic) in counts.items():
        arithmetic, memory = operations / limits["gflops"], traffic * size / limits["gbytes"]
        table[stage] = {
            "flop": round(operations, 1),
            "bytes": round(traffic * size, 1),
            "microseconds": _digits(max(arithmetic, memory) / 1e3),
        }
    return table


# --- where the time goes


def split(config: TrainingConfig, repeats: int = 5) -> dict[str, float]:
    """Time the stages of an optimiser step, in microseconds a window, on one core."""
    trainer = _Trainer(config)
    algorithm, generator = config.algorithm, trainer.generator
    mdp, features, parameters, state = draw_situation(config, config.batch, generator)

    def roll() -> Window:
        policy = algorithm.policy(features, parameters)
        return rollout(mdp, policy, config.window, state, generator)

    window = roll()
    observation = algorithm.observe(features, parameters, window)
    tokens = algorithm.tokens(observation)
    updated = algorithm.teach(parameters, observation)

    def forward() -> Tensor:
        student = trainer.student(tokens, parameters)
        return 0.5 * (student - updated).square().sum(-1).mean()

    loss = forward()
    stages: dict[str, Callable[[], object]] = {
        "rollout": roll,
        "prompt": lambda: algorithm.tokens(algorithm.observe(features, parameters, window)),
        "teacher": lambda: algorithm.teach(parameters, observation),
        "forward": forward,
        "backward": lambda: loss.backward(retain_graph=True),
        "optimiser": trainer.optimiser.step,
    }
    times = {stage: _seconds(work, repeats, 10) for stage, work in stages.items()}
    return {stage: 1e6 * seconds / config.batch for stage, seconds in times.items()}


def scaling(config: TrainingConfig, effort: Effort) -> dict[str, dict[str, Any]]:
    """Time optimiser steps of other sizes, and fit exponents: time ~ size^exponent."""
    algorithm: Any = config.algorithm
    family: Any = config.family

    def resized(axis: str, factor: float) -> tuple[int, TrainingConfig]:
        if axis == "d":  # all features together
            names = [name for name in ("d", "m") if hasattr(algorithm, name)]
            sizes = {name: max(1, round(getattr(algorithm, name) * factor)) for name in names}
            changed = dataclasses.replace(algorithm, **sizes)
            return changed.n_parameters, dataclasses.replace(config, algorithm=changed)
        if axis in "SA":
            field = {"S": "n_states", "A": "n_actions"}[axis]
            size = max(1, round(getattr(family, field) * factor))
            changed = dataclasses.replace(family, **{field: size})
            return size, dataclasses.replace(config, family=changed)
        size = max(1, round({"n": config.window, "B": config.batch}[axis] * factor))
        changed = {"window": size} if axis == "n" else {"batch": size, "n_mdps": size}
        return size, dataclasses.replace(config, **changed)

    table: dict[str, dict[str, Any]] = {}
    for axis in ("B", "n", "d", "S", "A"):
        sizes, times = [], []
        for factor in effort.scales:
            size, changed = resized(axis, factor)
            sizes.append(size)
            times.append(_step_seconds(changed, effort.repeats))
        table[axis] = _fit(sizes, times)
    threads = [1, 2]
    times = []
    for count in threads:
        torch.set_num_threads(count)
        times.append(_step_seconds(config, effort.repeats, time.perf_counter))
    torch.set_num_threads(1)
    table["threads"] = _fit(threads, times)
    return table


def _fit(sizes: Sequence[int], times: Sequence[float]) -> dict[str, Any]:
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    return {
        "sizes": list(sizes),
        "milliseconds": [_digits(1e3 * t) for t in times],
        "exponent": round(float(exponent), 3),
    }


def _step_seconds(
    config: TrainingConfig, repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Time optimiser steps without the drawing of MDPs; the median."""
    trainer = _Trainer(dataclasses.replace(config, frames=20 * repeats))
    marks = [clock() for _ in trainer.work()]
    return statistics.median(later - earlier for earlier, later in pairwise(marks))


def time_to_target(config: TrainingConfig, limit: float) -> dict[str, Any]:
    """Train until the held-out relative error is below `TARGET`; the checks are not counted.

    Returns seconds of processor time and windows, the last error, and whether the target was
    reached within `limit` seconds; if not, seconds and windows are extrapolated from the second
    half of what was seen, None where the error does not fall.
    """
    lockstep = TrainingConfig.lockstep(config.algorithm)
    trainer = _Trainer(dataclasses.replace(lockstep, n_mdps=100 * lockstep.batch))
    steps = trainer.work()

    def more() -> tuple[int, torch.nn.Module]:
        deque(islice(steps, 25), maxlen=0)
        return trainer.windows, trainer.student

    return {**_until_target(more, lockstep, limit), "steps": trainer.steps}


TIDY_RATES = {"sarsa": (3e-3, 0.96), "actor_critic": (3e-3, 0.97)}
"""For the tidy loop learning rate and decay every 10 MDPs: of those that were tried, the fastest
with which the error followed to the target. One MDP at a time is noisier than a batch."""


def tidy_time_to_target(config: TrainingConfig, limit: float) -> dict[str, Any]:
    """Do with the tidy loop what `time_to_target` does with the library."""
    algorithm, (rate, decay) = config.algorithm, TIDY_RATES[config.algorithm.name]
    paper = TrainingConfig.paper(algorithm)
    steps = _tidy(dataclasses.replace(paper, learning_rate=rate, decay=decay), whole_block)
    done = 0

    def more() -> tuple[int, LinearBlock]:
        nonlocal done
        *_, (_, weights) = islice(steps, 1000)
        done += 1000
        return done, LinearBlock.from_weights(algorithm, *weights)

    return _until_target(more, TrainingConfig.lockstep(algorithm), limit)


def _until_target(
    more: Callable[[], tuple[int, torch.nn.Module]], config: TrainingConfig, limit: float
) -> dict[str, Any]:
    """Train on until the block is good enough or time is over; `more` returns windows so far."""
    held_out = dataclasses.replace(config, n_mdps=100, frames=10)
    seen = [(0, 0.0, math.inf)]  # windows, seconds, error
    while seen[-1][2] > TARGET and seen[-1][1] < limit:
        started = time.process_time()
        windows, block = more()
        seconds = seen[-1][1] + time.process_time() - started
        generator = torch.Generator().manual_seed(config.seed + 1)
        error = relative_error(held_out, block, generator=generator) ** 2
        seen.append((windows, seconds, error))
    windows, seconds, error = seen[-1]
    reached = error <= TARGET
    if not reached:
        windows, seconds = _extrapolate(seen[len(seen) // 2 :])
    return {
        "reached": reached,
        "seconds": None if seconds is None else round(seconds, 2),
        "windows": windows,
        "error": float(f"{error:.1e}"),
    }


def _extrapolate(seen: Sequence[tuple[int, float, float]]) -> tuple[int | None, float | None]:
    """Say at how many windows and seconds an error that falls exponentially meets the target."""
    windows, seconds, errors = map(np.array, zip(*seen, strict=True))
    if len(seen) > 1 and np.isfinite(errors).all():
        slope, start = np.polyfit(windows, np.log(errors), 1)
        if slope < 0:
            needed = max(windows[-1], (math.log(TARGET) - start) / slope)
            return round(needed), seconds[-1] * needed / windows[-1]
    return None, None


def peak_memory(config: TrainingConfig) -> float:
    """Measure by how many MiB training raises the peak memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _leave_interrupts_to_the_parent) as pool:
        return pool.submit(_peak_memory, config).result()


def _peak_memory(config: TrainingConfig) -> float:
    torch.set_num_threads(1)
    tiny = dataclasses.replace(config, batch=1, n_mdps=1, frames=1)
    _train(tiny)  # what is loaded on first use
    if _STATUS.exists():
        (_STATUS.parent / "clear_refs").write_text(
            "5", encoding="utf-8"
        )  # the peak is now what is occupied
    before = _high_water()
    _train(config)
    return _high_water() - before


_STATUS = Path("/proc/self/status")


def _high_water() -> float:
    """Return the largest memory in MiB that this process has occupied so far."""
    if _STATUS.exists():  # Linux's ru_maxrss would include what the parent occupied
        return int(_STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 2**10
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# --- several processes


class Processes:
    """Processes on this machine that share training runs over the loopback, by gloo.

    Parameters
    ----------
    count : int
        How many; each uses one thread.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._queues = [(context.Queue(), context.Queue()) for _ in range(count)]
        self._processes = [
            context.Process(target=_serve, args=(rank, count, port, *queues), daemon=True)
            for rank, queues in enumerate(self._queues)
        ]

    def __enter__(self) -> Processes:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for jobs, _answers in self._queues:
            jobs.put(None)
        for process in self._processes if kind else ():  # interrupted: nobody waits for the end
            process.terminate()
        for process in self._processes:
            process.join(timeout=30)

    def train(self, config: TrainingConfig) -> tuple[float, Tensor, Tensor]:
        """Train together; return seconds and the weights P and V of the first process."""
        for jobs, _ in self._queues:
            jobs.put(config)
        outcomes = [self._answer(rank) for rank in range(len(self._queues))]
        seconds, P, V = outcomes[0]
        return seconds, torch.as_tensor(P), torch.as_tensor(V)

    def _answer(self, rank: int) -> tuple:
        while True:
            try:
                return self._queues[rank][1].get(timeout=1)
            except queue.Empty:
                if not self._processes[rank].is_alive():
                    raise RuntimeError(f"process {rank} ended before it had trained") from None

    def windows_per_second(self, config: TrainingConfig) -> float:
        """Return the speed of training together."""
        return config.windows / self.train(config)[0]

    def full_run(self, config: TrainingConfig, effort: Effort) -> dict[str, Any]:
        """Train as long as Algorithm 1 does, and say how good the result is."""
        # Adam settles only as its learning rate falls, and here MDPs change only a few times.
        longer = dataclasses.replace(
            config, n_mdps=effort.full, frames=effort.full_frames, decay=0.3
        )
        seconds, P, V = self.train(longer)
        held_out = dataclasses.replace(config, n_mdps=100, frames=10)
        generator = torch.Generator().manual_seed(config.seed + 1)
        block = LinearBlock.from_weights(config.algorithm, P, V)
        error = relative_error(held_out, block, generator=generator) ** 2
        return {
            "windows": longer.windows,
            "steps": longer.steps,
            "seconds": round(seconds, 2),
            "held_out_error": float(f"{error:.1e}"),
        }


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _serve(rank: int, count: int, port: int, jobs: Any, answers: Any) -> None:
    _leave_interrupts_to_the_parent()
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    for config in _until_the_end(jobs):
        outcome = _train(config, group=dist.group.WORLD)
        answers.put((outcome.seconds, outcome.P.numpy(), outcome.V.numpy()))
    dist.destroy_process_group()


def _until_the_end(jobs: Any) -> Iterator[TrainingConfig]:
    """Yield jobs until there is a None among them or whoever gives them has ended."""
    while True:
        try:
            config = jobs.get(timeout=5)
        except queue.Empty:
            if (parent := multiprocessing.parent_process()) and parent.is_alive():
                continue
            return
        if config is None:
            return
        yield config


# --- small things


def _seconds(work: Callable[[], object], repeats: int, times: int) -> float:
    """Time a piece of work on one core: the median over `repeats` of the mean over `times`.

    Processor time: on a quiet machine the same as the time of day, on a busy one nearer to it.
    """
    work()
    means = []
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(times):
            work()
        means.append((time.process_time() - started) / times)
    return statistics.median(means)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _words(outcome: dict[str, Any]) -> str:
    if outcome["seconds"] is None:
        return f"not in sight; {outcome['error']:.0e}"
    words = f"{outcome['seconds']:.1f} s of processor time, {outcome['windows']:,} windows"
    return words if outcome["reached"] else f"{words} (extrapolated; {outcome['error']:.0e} so far)"
