"""The benchmark measures the right things; how fast they are is no test."""

import dataclasses
import json
import math

import pytest
import torch

from icrl_lib import __main__
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.experiments import bench
from icrl_lib.families import RandomMDPs
from icrl_lib.training import TrainingConfig, memory_needed

LIMITS = {"gflops": 2.0, "gbytes": 4.0}
each_algorithm = pytest.mark.parametrize("name", ["sarsa", "actor_critic"])


def small(name, **changes):
    algorithm = SARSA(d=3) if name == "sarsa" else ActorCritic(d=2, m=3)
    sizes = {"family": RandomMDPs(3, 2), "window": 5, "n_mdps": 4, "batch": 4, "frames": 6}
    return TrainingConfig(algorithm, **{**sizes, **changes})


@each_algorithm
@pytest.mark.parametrize("c", [1.0, -2.0])
def test_the_plain_loop_has_the_construction_as_its_minimum(name, c):
    """Prompt, block and teacher, all written out step by step, are those of the theorem."""
    config = small(name, dtype="float64", learning_rate=1e-30)
    weights = config.algorithm.construction(c, torch.float64)
    losses = bench.plain_training(config, 20, weights).losses
    assert len(losses) == 20
    assert max(losses) < 1e-26


@each_algorithm
def test_the_plain_loop_learns(name):
    """The gain is that of a small problem; without an optimiser the loss stays where it is."""
    config = small(name, learning_rate=1e-2, gain=0.5)
    losses = torch.tensor(bench.plain_training(config, 400).losses)
    start = bench.plain_training(dataclasses.replace(config, learning_rate=1e-30), 400).losses
    assert losses[-100:].mean() < 0.1 * torch.tensor(start)[-100:].mean()


def test_operations_of_the_paper_sizes():
    """SARSA: k = 73, p = 36, n = 20; counted by hand."""
    config = dataclasses.replace(TrainingConfig.lockstep("sarsa"), batch=1)
    flop = {stage: entry["flop"] for stage, entry in bench.roofline(config, LIMITS).items()}
    assert flop["forward"] == 2 * 73 * 37 + 2 * (2 * 20 * 73) + 2 * 73 * 36 + 4 * 36
    assert flop["backward"] == 2 * 73 * 37 + 2 * (2 * 20 * 73) + 2 * (2 * 73 * 36)
    assert flop["teacher"] == 6 * 20 * 36
    assert flop["optimiser"] == 12 * (73 * 37 + 36 * 73)


@each_algorithm
def test_the_least_time_is_the_larger_of_arithmetic_and_traffic(name):
    """At 2 GFLOP/s and 4 GB/s: 2,000 operations or 4,000 bytes a microsecond."""
    for entry in bench.roofline(small(name), LIMITS).values():
        least = max(entry["flop"] / 2000, entry["bytes"] / 4000)
        assert entry["microseconds"] == pytest.approx(least, rel=1e-3)


def test_a_larger_batch_shares_the_optimiser():
    one, many = (
        bench.roofline(small("sarsa", batch=batch), LIMITS)["optimiser"] for batch in (1, 100)
    )
    assert one["flop"] == pytest.approx(100 * many["flop"], rel=0.1)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.5])
def test_an_exponent_is_fitted(exponent):
    sizes = [1, 2, 4, 8]
    fit = bench._fit(sizes, [3e-3 * size**exponent for size in sizes])
    assert fit["exponent"] == pytest.approx(exponent, abs=1e-3)
    assert fit["milliseconds"][0] == 3.0


@pytest.mark.parametrize(("limit", "reached"), [(60, True), (0.0, False)])
def test_time_to_target_says_whether_it_was_reached(monkeypatch, limit, reached):
    """A loose target, which a small problem meets within seconds."""
    monkeypatch.setattr(bench, "TARGET", 0.5)
    outcome = bench.time_to_target(small("sarsa"), limit)
    assert outcome["reached"] is reached
    assert (outcome["error"] <= 0.5) is reached
    assert outcome["windows"] == 256 * outcome["steps"]


def test_stages_are_those_of_the_roofline():
    assert list(bench.split(small("sarsa"), 1)) == list(bench.roofline(small("sarsa"), LIMITS))


def test_peak_memory_does_not_grow_with_the_frames():
    """Of a run of 4,000 windows and of one that is 10 times as long, to within 4 MiB."""
    few, many = (
        bench.peak_memory(TrainingConfig("sarsa", n_mdps=40, batch=20, frames=frames))
        for frames in (10, 100)
    )
    assert abs(many - few) < 4


@each_algorithm
def test_the_memory_estimate_is_safe_and_of_the_right_size(name):
    """2,000 MDPs of the paper's sizes need what is estimated, or down to a third of it."""
    config = TrainingConfig(name, n_mdps=2000, batch=2000, frames=2)
    estimate = memory_needed(config) / 2**20
    assert estimate / 3 < bench.peak_memory(config) < estimate


def test_the_command_prints_and_stores_everything(capsys, tmp_path):
    path = tmp_path / "bench.json"
    __main__.main(["bench", "--quick", "--output", str(path)])
    printed = capsys.readouterr().out
    for words in ("plain loop", "times", "least", "held-out error", "peak memory"):
        assert words in printed
    results = json.loads(path.read_text())
    for name in ("sarsa", "actor_critic"):
        record = results[name]
        assert set(record["scaling"]) == {"B", "n", "d", "S", "A", "threads"}
        assert all(math.isfinite(value) for value in record["stages"].values())
        assert record["full"]["windows"] == 64
        assert record["ratio"] > 0
    assert set(results["machine"]) == {"processor", "architecture", "cores", "versions"}


def test_a_missing_folder_is_refused_before_anything_is_measured(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        __main__.main(["bench", "--quick", "--output", str(tmp_path / "missing" / "x.json")])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "output: expected a file in an existing folder" in captured.err
    assert captured.out == ""
