"""The benchmark measures the right things; how fast they are is no test."""

import dataclasses
import json
import math
from functools import partial
from itertools import islice
from unittest.mock import Mock

import pytest
import torch

from icrl_lib import __main__
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.attention import split
from icrl_lib.experiments import bench
from icrl_lib.families import RandomMDPs
from icrl_lib.loop import interact
from icrl_lib.training import TrainingConfig, draw_situation, memory_needed

LIMITS = {"gflops": 2.0, "gbytes": 4.0}
BLOCKS = (bench.whole_block, bench.reduced_block)
each_algorithm = pytest.mark.parametrize("name", ["sarsa", "actor_critic"])


def small(name, **changes):
    algorithm = SARSA(d=3) if name == "sarsa" else ActorCritic(d=2, m=3)
    sizes = {"family": RandomMDPs(3, 2), "window": 5, "n_mdps": 4, "batch": 4, "frames": 6}
    return TrainingConfig(algorithm, **{**sizes, **changes})


LOOPS = {
    "plain": bench.plain_training,
    "tidy": bench.tidy_training,
    "reduced": partial(bench.tidy_training, block=bench.reduced_block),
}
each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_algorithm
@each_loop
@pytest.mark.parametrize("c", [1.0, -2.0])
def test_the_loops_have_the_construction_as_their_minimum(name, loop, c):
    """Prompt, block and teacher, all written out once more, are those of the theorem."""
    config = small(name, dtype="float64", learning_rate=1e-30)
    weights = config.algorithm.construction(c, torch.float64)
    if loop == "reduced":
        weights = split(*weights, config.algorithm.n_parameters)[:2]
    losses = LOOPS[loop](config, 20, weights=weights).losses
    assert len(losses) == 20
    assert max(losses) < 1e-26


@each_algorithm
@each_loop
def test_the_loops_learn(name, loop):
    """The gain is that of a small problem; without an optimiser the loss stays where it is."""
    config = small(name, learning_rate=1e-2, gain=0.5, frames=1000)
    windows = 400 if loop == "plain" else 1000
    losses = torch.tensor(LOOPS[loop](config, windows).losses)
    start = LOOPS[loop](dataclasses.replace(config, learning_rate=1e-30), windows).losses
    assert losses[-100:].mean() < 0.1 * torch.tensor(start)[-100:].mean()


@each_algorithm
def test_both_forms_of_the_tidy_loop_take_the_same_steps(name):
    """Lemma C.1; the windows are the same, and the losses of 30 steps agree to rounding."""
    config = small(name, dtype="float64", learning_rate=1e-2)
    whole, reduced = (bench.tidy_training(config, 30, block).losses for block in BLOCKS)
    assert reduced == pytest.approx(whole, rel=1e-9)


@each_algorithm
def test_the_tidy_loop_sees_as_much_reward_as_the_library_does(name):
    """Its simulator obeys the same policy: P and V that are zero leave the teacher's own step.

    The mean loss is then half the mean squared step of the teacher, over 40 MDPs by 50 windows in
    either; its standard error is about 5 %.
    """
    config = small(name, n_mdps=40, batch=40, frames=50, learning_rate=1e-30)
    size = config.algorithm.layout.size
    zero = [torch.zeros(size, size)] * 2
    tidy = bench.tidy_training(config, 2000, weights=zero).losses
    generator = torch.Generator().manual_seed(1)
    algorithm = config.algorithm
    situation = draw_situation(config, 40, generator)
    loop = interact(algorithm, *situation, algorithm.teach, n=config.window, generator=generator)
    steps = [frame.updated - frame.parameters for frame in islice(loop, 50)]
    expected = 0.5 * torch.stack(steps).square().sum(-1).mean().item()
    assert sum(tidy) / len(tidy) == pytest.approx(expected, rel=0.2)


def test_the_tidy_loop_lowers_its_learning_rate():
    """With a decay of 1e-30 nothing is learned after the first 3 MDPs, of 2 windows each."""
    config = small("sarsa", frames=2, decay=1e-30, decay_every=3, learning_rate=1e-2)
    weights = [w[0].clone() for _, w in islice(bench._tidy(config, bench.whole_block), 9)]
    assert not torch.equal(weights[4], weights[5])
    assert torch.equal(weights[5], weights[8])


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


@pytest.mark.parametrize("measure", [bench.time_to_target, bench.tidy_time_to_target])
@pytest.mark.parametrize(("limit", "reached"), [(60, True), (0.0, False)])
def test_time_to_target_says_whether_it_was_reached(monkeypatch, measure, limit, reached):
    """A loose target, which the library meets within seconds."""
    monkeypatch.setattr(bench, "TARGET", 0.5)
    outcome = measure(small("sarsa"), limit)
    assert outcome["reached"] is reached
    assert (outcome["error"] <= 0.5) is reached


def test_a_target_is_met_after_so_many_windows(monkeypatch):
    monkeypatch.setattr(bench, "TARGET", 0.5)
    outcome = bench.time_to_target(small("sarsa"), 60)
    assert outcome["windows"] == 256 * outcome["steps"]


def test_a_falling_error_is_extrapolated():
    """Ten times smaller every 1,000 windows, that is every 2 s: from 1e-4 to 1e-10 in 6 more."""
    seen = [
        (windows, windows / 500, 10 ** (-windows / 1000)) for windows in range(2000, 5000, 1000)
    ]
    windows, seconds = bench._extrapolate(seen)
    assert windows == 10_000
    assert seconds == pytest.approx(20.0)


@pytest.mark.parametrize("errors", [[1.0], [1.0, 1.0], [0.5, 0.6], [math.inf, 0.5]])
def test_an_error_that_does_not_fall_is_not_extrapolated(errors):
    seen = [(10 * i, float(i), error) for i, error in enumerate(errors, 1)]
    assert bench._extrapolate(seen) == (None, None)


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
    for words in ("plain loop", "tidy loop", "least", "held-out error", "peak memory"):
        assert words in printed
    results = json.loads(path.read_text())
    for name in ("sarsa", "actor_critic"):
        record = results[name]
        assert set(record["scaling"]) == {"B", "n", "d", "S", "A", "threads"}
        assert all(math.isfinite(value) for value in record["stages"].values())
        assert record["full"]["windows"] == 64
        assert record["brings"].keys() == bench.LADDER.keys() - {"plain"}
        assert all(gain > 0 for gain in record["brings"].values())
    assert set(results["machine"]) == {"processor", "architecture", "cores", "versions"}


@pytest.mark.parametrize("output", ["missing/x.json", "", "a file/x.json", "/proc/x.json"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    capsys, tmp_path, output
):
    (tmp_path / "a file").touch()
    with pytest.raises(SystemExit) as stop:
        __main__.main(["bench", "--quick", "--output", str(tmp_path / output)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m icrl_lib bench: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interrupted_benchmark_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "machine", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        __main__.main(["bench", "--quick", "--output", str(tmp_path / "x.json")])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "python -m icrl_lib bench: stopped; nothing was written\n"
    assert not list(tmp_path.iterdir())
