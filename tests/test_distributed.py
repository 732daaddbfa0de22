"""Training in two processes against training in one, on this machine's loopback."""

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from icrl_lib import training
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.families import RandomMDPs
from icrl_lib.mdps import random_mdps
from icrl_lib.policies import Share, rollout, uniform_policy
from icrl_lib.training import TrainingConfig, train

ALGOS = {
    "sarsa": SARSA(d=2, alpha=0.3, epsilon=0.2),
    "actor_critic": ActorCritic(d=2, m=3, alpha=0.3, beta=0.7, epsilon=0.2),
}


def config(algorithm, **changes):
    """Three batches, of 3, 3 and 1 MDPs: 2 processes have 1 and 2, 1 and 2, and 0 and 1 of them."""
    settings = {"n_mdps": 7, "batch": 3, "frames": 4, "decay_every": 2, "seed": 5}
    sizes = {"family": RandomMDPs(3, 2), "window": 5, "learning_rate": 1e-2}
    return TrainingConfig(algorithm, **{**settings, **sizes, "dtype": "float64", **changes})


class InterruptionError(Exception):
    """Stands for whatever ends a run before its time."""


@contextlib.contextmanager
def stop_after(steps):
    """Let the optimiser step that follows `steps` of them fail."""
    step = training._Trainer._step

    def failing(self, frame):
        if self.steps == steps:
            raise InterruptionError
        return step(self, frame)

    training._Trainer._step = failing
    try:
        yield
    finally:
        training._Trainer._step = step


def work(rank, world, port, jobs, reports):
    """Train in one of the processes, job after job; report what came out or an error's message."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )
    for settings, path, stop in iter(jobs.get, None):
        try:
            with stop_after(stop):
                run = train(settings, checkpoint=path, checkpoint_every=0, group=dist.group.WORLD)
            report = {"P": run.P.numpy(), "V": run.V.numpy(), "losses": run.losses.numpy()}
        except (ValueError, InterruptionError) as error:
            report = f"{type(error).__name__}: {error}"
        reports.put(report)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def in_two_processes():
    """A function that trains in two processes and returns both reports, the first one's first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queues = [(context.Queue(), context.Queue()) for _ in range(2)]
    processes = [
        context.Process(target=work, args=(rank, 2, port, *queues[rank]), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()

    def run(settings, path=None, stop=None):
        for jobs, _ in queues:
            jobs.put((settings, path, stop))
        return [reports.get(timeout=180) for _, reports in queues]

    yield run
    for jobs, _ in queues:
        jobs.put(None)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0


def numbers(report):
    return {name: torch.as_tensor(report[name]) for name in ("P", "V", "losses")}


def alone(settings, **options):
    run = train(settings, **options)
    return {"P": run.P, "V": run.V, "losses": run.losses}


@pytest.mark.parametrize("algorithm", ALGOS.values(), ids=ALGOS.keys())
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 1e-5)])
def test_two_processes_do_what_one_does(in_two_processes, algorithm, dtype, error):
    """12 optimiser steps on the same windows; only sums are taken in another order."""
    settings = config(algorithm, dtype=dtype)
    first, second = map(numbers, in_two_processes(settings))
    expected = alone(settings)
    for name, values in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], values, rtol=0, atol=error)


def test_a_batch_with_one_mdp_is_trained_on_by_two_processes(in_two_processes):
    """The process without an MDP of its own adds nothing."""
    settings = config(ALGOS["sarsa"], batch=1, n_mdps=3)
    first, _ = map(numbers, in_two_processes(settings))
    for name, values in alone(settings).items():
        torch.testing.assert_close(first[name], values, rtol=0, atol=1e-12)


def test_a_run_of_two_processes_is_finished_by_one(in_two_processes, tmp_path):
    """Stopped in the third batch, after 9 steps; the checkpoint is that of 8."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    reports = in_two_processes(settings, path, stop=9)
    assert reports == ["InterruptionError: "] * 2
    assert torch.load(path, weights_only=True)["steps"] == 8
    resumed = alone(settings, checkpoint=path)
    for name, values in alone(settings).items():
        torch.testing.assert_close(resumed[name], values, rtol=0, atol=1e-12)


def test_a_run_of_one_process_is_finished_by_two(in_two_processes, tmp_path):
    """Stopped within the second batch, after 6 steps, which both processes take up."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    with stop_after(6), pytest.raises(InterruptionError):
        train(settings, checkpoint=path, checkpoint_every=0)
    assert torch.load(path, weights_only=True)["steps"] == 6
    first, second = map(numbers, in_two_processes(settings, path))
    for name, values in alone(settings).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], values, rtol=0, atol=1e-12)


def test_all_processes_refuse_the_checkpoint_of_another_configuration(in_two_processes, tmp_path):
    """The first process alone reads it."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    train(settings, checkpoint=path)
    reports = in_two_processes(dataclasses.replace(settings, seed=6), path)
    assert all(report.startswith("ValueError: checkpoint: expected") for report in reports)


@pytest.mark.parametrize("part", [slice(0, 2), slice(2, 7), slice(6, 7)])
def test_a_share_of_a_batch_goes_through_the_trajectories_of_the_whole(part):
    """Seven MDPs; the generators end in the same state."""
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    mdp = random_mdps(7, 3, 2, generator=torch.Generator().manual_seed(0))
    policy, start = uniform_policy(mdp), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    whole = rollout(mdp, policy, 30, start, generators[0])
    share = Share(7, part)
    window = rollout(mdp[part], policy[part], 30, start[part], generators[1], share)
    for name in ("states", "actions", "rewards"):
        assert torch.equal(getattr(window, name), getattr(whole, name)[part])
    assert torch.equal(*(generator.get_state() for generator in generators))


@pytest.mark.parametrize(
    "share", [Share(7, slice(0, 3)), Share(1, slice(0, 7)), (7, slice(0, 2)), 2]
)
def test_a_share_that_is_not_that_of_the_mdps_is_refused(share, generator):
    mdp = random_mdps(2, 3, 2, generator=generator)
    state = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^share: expected"):
        rollout(mdp, uniform_policy(mdp), 5, state, generator, share)


@pytest.mark.parametrize("group", [0, "gloo", True])
def test_a_group_that_is_none_is_refused(group):
    with pytest.raises(ValueError, match=r"^group: expected a process group"):
        train(config(ALGOS["sarsa"]), group=group)


@pytest.fixture
def together(tmp_path):
    """The command line in two processes, in the middle of their training, and their folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    often = (  # a checkpoint after every batch, and little patience
        "import datetime, functools; from icrl_lib import __main__; "
        "__main__.train = functools.partial(__main__.train, checkpoint_every=0); "
        "__main__.PATIENCE = datetime.timedelta(seconds=5); __main__.main("
        "['paper', '--algorithm', 'sarsa', '--mdps', '100000', '--frames', '2', '--batch', '2', "
        f"'--distributed', '--output', {str(tmp_path)!r}])"
    )
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    settings |= {"GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", often],
            env={**os.environ, **settings, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield processes, tmp_path
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_ends_or_falls_silent_stops_the_others(together, sent):
    """The one that is left says how to go on; by torch's default it would wait for 30 minutes."""
    (first, second), folder = together
    second.send_signal(sent)
    said = first.communicate(timeout=60)[1].splitlines()
    assert first.returncode == 1
    assert said[-1].startswith("python -m icrl_lib paper: training together broke off")
    assert "same options" in said[-1]
    assert not any("Traceback" in line for line in said)
    assert (folder / "sarsa-2.json.checkpoint").exists()
