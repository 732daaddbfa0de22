"""The paper's experiment: results, resumption after a kill, and the command line."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from icrl_lib.__main__ import main
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.constructions import project
from icrl_lib.experiments import paper
from icrl_lib.families import RandomMDPs
from icrl_lib.students import LinearBlock
from icrl_lib.training import TrainingConfig, describe, train

SMALL = paper.Evaluation(n_mdps=6, n_updates=4, every=2, episodes=3, length=5)
TIMES = ("seconds", "evaluation_seconds")


def small_config(algorithm=None) -> TrainingConfig:
    algorithm = algorithm or SARSA(d=3)
    return TrainingConfig(algorithm, n_mdps=12, frames=4, batch=4, family=RandomMDPs(3, 2))


def without_times(results: dict) -> dict:
    training = {k: v for k, v in results["training"].items() if k not in TIMES}
    return {k: v for k, v in results.items() if k not in TIMES} | {"training": training}


@pytest.mark.parametrize("algorithm", [SARSA(d=3), ActorCritic(d=2, m=3)])
def test_results_hold_the_weights_that_training_found(tmp_path, algorithm):
    config = small_config(algorithm)
    results = paper.run(config, tmp_path / "x.json", SMALL)
    run = train(config)
    P, V = paper.weights(results)
    assert torch.equal(P, run.P)
    assert torch.equal(V, run.V)
    assert results["training"]["losses"] == pytest.approx(run.losses.tolist(), rel=1e-5)


def test_results_are_what_the_file_holds(tmp_path):
    path = tmp_path / "x.json"
    results = paper.run(small_config(), path, SMALL)
    assert json.loads(path.read_text()) == results
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json"]


def test_a_finished_run_is_read_and_not_repeated(tmp_path):
    path = tmp_path / "x.json"
    results = paper.run(small_config(), path, SMALL)
    before = path.stat().st_mtime_ns
    assert paper.run(small_config(), path, SMALL) == results
    assert path.stat().st_mtime_ns == before


def test_evaluation_is_made_up_for_when_only_training_was_written(tmp_path):
    path = tmp_path / "x.json"
    whole = paper.run(small_config(), path, SMALL)
    path.write_text(json.dumps({k: whole[k] for k in ("config", "evaluation", "training")}))
    assert without_times(paper.run(small_config(), path, SMALL)) == without_times(whole)


def test_results_of_another_configuration_are_not_overwritten(tmp_path):
    path = tmp_path / "x.json"
    paper.run(small_config(), path, SMALL)
    other = dataclasses.replace(small_config(), seed=1)
    with pytest.raises(ValueError, match=r"path: .*another config"):
        paper.run(other, path, SMALL)


def test_the_transformer_of_the_construction_tracks_the_teacher_exactly(tmp_path, monkeypatch):
    """With the teacher's own weights in place of trained ones, curves of both are the same."""
    algorithm = SARSA(d=3)
    config = dataclasses.replace(small_config(algorithm), dtype="float64")
    block = LinearBlock.from_weights(algorithm, *algorithm.construction(dtype=torch.float64))
    monkeypatch.setattr(
        paper, "train", lambda config, **_: dataclasses.replace(train(config), student=block)
    )
    returns = paper.run(config, tmp_path / "x.json", SMALL)["returns"]
    for kind in ("behaviour", "greedy"):
        assert returns[f"transformer, {kind}"] == returns[f"teacher, {kind}"]


def test_a_killed_run_resumes_to_the_same_results(tmp_path):
    """SIGKILL in the middle of training; only the times differ from a run left alone."""
    command = [sys.executable, "-m", "icrl_lib", "paper", "--algorithm", "sarsa", "--mdps", "150"]
    command += ["--frames", "20", "--batch", "1", "--updates", "10", "--output"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    often = (  # the same program, but with a checkpoint twenty times a second
        "import functools; from icrl_lib import __main__, training; "
        "from icrl_lib.experiments import paper; "
        "paper.train = functools.partial(training.train, checkpoint_every=0.05); "
        f"__main__.main({[*command[3:], str(killed)]!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", often])
    checkpoint = killed / "sarsa-20.checkpoint"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not (killed / "sarsa-20.json").exists()
    steps = torch.load(checkpoint, weights_only=True)["steps"]
    assert 0 < steps < 3000
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], check=True, capture_output=True)
    results = [json.loads((folder / "sarsa-20.json").read_text()) for folder in (killed, whole)]
    assert without_times(results[0]) == without_times(results[1])


def test_command_line_names_a_bad_argument(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["paper", "--frames", "0", "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert "frames: expected an integer of at least 1" in capsys.readouterr().err


def test_help_explains_what_the_text_leaves_open(capsys):
    with pytest.raises(SystemExit):
        main(["paper", "--help"])
    text = capsys.readouterr().out
    for words in ("--frames", "--batch", "lockstep", "T = 1000", "goes on where it was"):
        assert words in text


def test_unknown_stored_results_are_named(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of"):
        paper.stored("nothing")


@pytest.mark.parametrize("name", ["sarsa-50", "actor_critic-50", "sarsa-1000", "actor_critic-1000"])
def test_stored_results_are_those_of_the_paper_s_settings(name):
    """What the book shows was written by the program for the settings that it claims."""
    results = paper.stored(name)
    algorithm, frames = name.split("-")
    config = dataclasses.replace(
        TrainingConfig.paper(algorithm), frames=int(frames), batch=results["config"]["batch"]
    )
    assert results["config"] == json.loads(json.dumps(describe(config)))
    assert results["evaluation"] == vars(paper.Evaluation())
    stored = results["training"]["projection"]
    star = config.algorithm.construction()
    assert project(*paper.weights(results), *star)._asdict() == pytest.approx(stored, abs=1e-6)
