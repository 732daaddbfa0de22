"""What training costs: against a plain loop, against the machine, and where the time goes.

``python -m icrl_lib bench`` measures and prints; nothing here is used by the rest of the library.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import platform
import queue
import socket
import statistics
import sys
import time
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
from icrl_lib.policies import rollout
from icrl_lib.students import LinearBlock
from icrl_lib.training import (
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
    frames, plain_frames : int
        Windows per MDP in one timing of the library, and windows in one of the plain loop.
    repeats : int
        Interleaved repetitions, of which the median counts.
    full : int
        MDPs of the full run, of 1,000 windows each: 10,000 are the 10^7 of Algorithm 1.
    full_frames : int
        Windows per MDP of the full run.
    scales : tuple of float
        Factors by which sizes are changed to fit exponents.
    limit : float
        Seconds after which the run to the target error is given up.
    """

    batch: int = 1024
    frames: int = 100
    plain_frames: int = 200
    repeats: int = 5
    full: int = 10_000
    full_frames: int = 1000
    scales: tuple[float, ...] = (0.5, 1, 2, 4)
    limit: float = 120.0


FULL = Effort()
"""What ``make bench`` measures."""

QUICK = Effort(16, 2, 2, 2, 32, 2, (1, 2), 0.05)
"""Enough to see that everything runs; the numbers mean nothing."""


def run(effort: Effort = FULL, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure everything and print it on the way.

    Parameters
    ----------
    effort : Effort
        How much to measure.
    say : callable
        Receives the lines of the report.

    Returns
    -------
    dict
        Numbers, strings and mappings: what ``python -m icrl_lib bench`` stores.
    """
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
        rounds = []
        for _ in range(effort.repeats):  # interleaved: what else the machine does hits all alike
            plain = plain_training(config, effort.plain_frames)
            started = time.process_time()
            train(config, progress=False)
            library = config.windows / (time.process_time() - started)
            shared = together.windows_per_second(shared_config)
            rounds.append((plain.cpu_speed, library, plain.speed, shared))
        plain, library, _, shared = (statistics.median(r) for r in zip(*rounds, strict=True))
        # One process against one by processor time, several against one by the clock on the wall.
        ratios = [statistics.median(r[i + 1] / r[i] for r in rounds) for i in (0, 2)]
        say(f"  plain loop            {plain:12,.0f} windows/s")
        say(f"  library, one core     {library:12,.0f} windows/s   {ratios[0]:6.0f} times")
        say(f"  library, {processes} processes  {shared:12,.0f} windows/s   {ratios[1]:6.0f} times")
        full = together.full_run(shared_config, effort)
    say(
        f"  {full['windows']:,} windows in {full['seconds']:.1f} s, "
        f"held-out error {full['held_out_error']:.0e}"
    )
    to_target = time_to_target(config, effort.limit)
    say(f"  held-out error {TARGET:.0e}: {_words(to_target)}")
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
    whole = 1e6 / library  # one after the other, the stages find the caches full of each other
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
        "rounds": [[_digits(value) for value in row] for row in rounds],
        "plain": _digits(plain),
        "library": _digits(library),
        "processes": processes,
        "shared": _digits(shared),
        "ratio": _digits(ratios[0]),
        "shared_ratio": _digits(ratios[1]),
        "full": full,
        "to_target": to_target,
        "stages": {stage: _digits(value) for stage, value in stages.items()},
        "peak": limits,
        "roofline": work,
        "from_roofline": _digits(used / least),
        "whole_step_from_roofline": _digits(whole / least),
        "scaling": grown,
        "memory_mib": round(memory, 1),
        "memory_estimate_mib": round(estimate, 1),
    }


# --- the loop in the ordinary way


class PlainRun(NamedTuple):
    """What the plain loop did.

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
    config: TrainingConfig, windows: int, weights: tuple[Tensor, Tensor] | None = None
) -> PlainRun:
    """Train on one MDP, step by step, as Algorithms 1 and 2 are written down.

    The measure of the rest of this module: no batch, eq. (1) with the whole H, P and V, one
    draw at a time, autograd and Adam.

    Parameters
    ----------
    config : TrainingConfig
        Sizes, algorithm and learning rate.
    windows : int
        How many windows.
    weights : tuple of Tensor, optional
        P and V (D, D) to start from; by default small random blocks.

    Returns
    -------
    PlainRun
        Speed and losses.
    """
    algorithm, n = config.algorithm, config.window
    sarsa = algorithm.name == "sarsa"
    generator = torch.Generator().manual_seed(config.seed)
    mdp, features, parameters, state = draw_situation(config, 1, generator)
    n_actions, gamma = mdp.n_actions, mdp.discount
    transition, reward = mdp.transition[0], mdp.reward[0]
    phi_pi, phi_v = (features[0], None) if sarsa else (features.policy[0], features.value[0])
    m = 0 if sarsa else algorithm.m
    p, k = algorithm.n_parameters, algorithm.layout.n_token
    start = weights or _Trainer(config).student.weights()
    P, V = (block.detach().clone().requires_grad_() for block in start)
    optimiser = torch.optim.Adam([P, V], lr=config.learning_rate)
    theta, s = parameters[0], state.item()

    def probabilities(s: int) -> Tensor:
        if sarsa:
            q = phi_pi[s] @ theta
            return torch.nn.functional.one_hot(q.argmax(), n_actions).to(q.dtype)
        return (phi_pi[s] @ theta[:m]).softmax(-1)

    def act(s: int) -> int:
        pi = (1 - algorithm.epsilon) * probabilities(s) + algorithm.epsilon / n_actions
        return torch.multinomial(pi, 1, generator=generator).item()

    losses = []
    started = time.perf_counter(), time.process_time()
    for _ in range(windows):
        H = torch.zeros(k + 1 + p, n + 1, dtype=theta.dtype)
        H[k, n], H[k + 1 :, n] = 1, theta
        step = torch.zeros_like(theta)
        a = act(s)
        for i in range(n):
            s_next = torch.multinomial(transition[s, a], 1, generator=generator).item()
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
        losses.append(loss.item())
        theta = target
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return PlainRun(windows / wall, windows / cpu, losses)


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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
    algorithm, n = config.algorithm, config.window
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

    def roll() -> tuple:
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
    algorithm = config.algorithm

    def resized(axis: str, factor: float) -> tuple[int, TrainingConfig]:
        if axis == "d":  # all features together
            names = [name for name in ("d", "m") if hasattr(algorithm, name)]
            sizes = {name: max(1, round(getattr(algorithm, name) * factor)) for name in names}
            changed = dataclasses.replace(algorithm, **sizes)
            return changed.n_parameters, dataclasses.replace(config, algorithm=changed)
        if axis in "SA":
            field = {"S": "n_states", "A": "n_actions"}[axis]
            size = max(1, round(getattr(config.family, field) * factor))
            family = dataclasses.replace(config.family, **{field: size})
            return size, dataclasses.replace(config, family=family)
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

    Returns seconds, steps and windows, the last error, and whether the target was reached within
    `limit` seconds.
    """
    lockstep = TrainingConfig.lockstep(config.algorithm)
    trainer = _Trainer(dataclasses.replace(lockstep, n_mdps=100 * lockstep.batch))
    held_out = dataclasses.replace(lockstep, n_mdps=100, frames=10)
    spent, error = 0.0, math.inf
    steps = trainer.work()
    while error > TARGET and spent < limit:
        started = time.perf_counter()
        deque(islice(steps, 25), maxlen=0)
        spent += time.perf_counter() - started
        generator = torch.Generator().manual_seed(trainer.config.seed + 1)
        error = relative_error(held_out, trainer.student, generator=generator) ** 2
    return {
        "reached": error <= TARGET,
        "seconds": round(spent, 2),
        "steps": trainer.steps,
        "windows": trainer.windows,
        "error": float(f"{error:.1e}"),
    }


def peak_memory(config: TrainingConfig) -> float:
    """Measure by how many MiB training raises the peak memory of a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, config).result()


def _peak_memory(config: TrainingConfig) -> float:
    torch.set_num_threads(1)
    tiny = dataclasses.replace(config, batch=1, n_mdps=1, frames=1)
    train(tiny, progress=False)  # what is loaded on first use
    if _STATUS.exists():
        (_STATUS.parent / "clear_refs").write_text("5")  # the peak is now what is occupied
    before = _high_water()
    train(config, progress=False)
    return _high_water() - before


_STATUS = Path("/proc/self/status")


def _high_water() -> float:
    """Return the largest memory in MiB that this process has occupied so far."""
    if _STATUS.exists():  # Linux's ru_maxrss would include what the parent occupied
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) / 2**10
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

    def __exit__(self, *_: object) -> None:
        for jobs, _ in self._queues:
            jobs.put(None)
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


def _serve(rank: int, count: int, port: int, jobs: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    for config in _until_the_end(jobs):
        outcome = train(config, progress=False, group=dist.group.WORLD)
        answers.put((outcome.seconds, outcome.P.numpy(), outcome.V.numpy()))
    dist.destroy_process_group()


def _until_the_end(jobs: Any) -> Iterator[TrainingConfig]:
    """Yield jobs until there is a None among them or whoever gives them has ended."""
    while True:
        try:
            config = jobs.get(timeout=5)
        except queue.Empty:
            if multiprocessing.parent_process().is_alive():
                continue
            return
        if config is None:
            return
        yield config


# --- small things


def write(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON."""
    path.write_text(json.dumps(results, indent=1) + "\n")


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
    if not outcome["reached"]:
        return f"not reached in {outcome['seconds']:.1f} s; {outcome['error']:.0e}"
    return f"{outcome['seconds']:.1f} s, {outcome['steps']:,} steps, {outcome['windows']:,} windows"
