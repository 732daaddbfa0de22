"""The paper's experiment: results, resumption after a kill, and the command line."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from icrl_lib import training
from icrl_lib.__main__ import main
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.constructions import project
from icrl_lib.experiments import _files, paper
from icrl_lib.families import RandomMDPs
from icrl_lib.students import LinearBlock
from icrl_lib.training import TrainingConfig, describe, train

SMALL = paper.Evaluation(n_mdps=6, n_updates=4, every=2, episodes=3, length=5)
RATES = ("0.01", "0.02")
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


COMMAND = ["paper", "--algorithm", "sarsa", "--mdps", "150", "--frames", "20", "--batch", "1"]
COMMAND += ["--updates", "10", "--output"]


@pytest.fixture
def at_work(tmp_path):
    """A process in the middle of its training, and the folder that it writes to."""
    folder = tmp_path / "at work"
    often = (  # the same program, but with a checkpoint twenty times a second
        "import functools; from icrl_lib import __main__, training; "
        "from icrl_lib.experiments import paper; "
        "paper.train = functools.partial(training.train, checkpoint_every=0.05); "
        f"__main__.main({[*COMMAND, str(folder)]!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", often], stderr=subprocess.PIPE, text=True)
    checkpoint = folder / "sarsa-20.json.checkpoint"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process, folder
    process.kill()
    process.communicate()


def steps_done(folder) -> int:
    return torch.load(folder / "sarsa-20.json.checkpoint", weights_only=True)["steps"]


def test_a_killed_run_resumes_to_the_same_results(at_work, tmp_path):
    """SIGKILL in the middle of training; only the times differ from a run left alone."""
    process, killed = at_work
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "sarsa-20.json").exists()
    assert 0 < steps_done(killed) < 3000
    whole = tmp_path / "whole"
    for folder in (killed, whole):
        main([*COMMAND, str(folder)])
        assert [path.name for path in folder.iterdir()] == ["sarsa-20.json"]
    results = [json.loads((folder / "sarsa-20.json").read_text()) for folder in (killed, whole)]
    assert without_times(results[0]) == without_times(results[1])


def test_a_second_run_on_the_same_results_is_refused(at_work, capsys):
    _, folder = at_work
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, str(folder)])
    assert stop.value.code == 2
    assert "no other run is writing" in one_line(capsys.readouterr().err)


@pytest.fixture
def interrupted(monkeypatch):
    """SIGINT arrives in the middle of the eighth step."""
    step = training._Trainer._step

    def interrupting(self, frame):
        if self.steps == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, frame)

    monkeypatch.setattr(training._Trainer, "_step", interrupting)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, str(tmp_path)])
    assert stop.value.code == 130
    assert "start it again with the same options" in one_line(capsys.readouterr().err)


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_run_leaves_the_checkpoint_of_a_whole_step(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        paper.run(small_config(), tmp_path / "x.json", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json.checkpoint"]
    assert torch.load(tmp_path / "x.json.checkpoint", weights_only=True)["steps"] == 8


@pytest.mark.usefixtures("interrupted")
def test_after_an_interrupt_the_next_one_is_answered_as_before(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        paper.run(small_config(), tmp_path / "x.json", SMALL)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_a_thread_needs_no_signals(tmp_path):
    """Only the main thread may say what a signal does."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(paper.run, small_config(), tmp_path / "x.json", SMALL).result()
    assert (tmp_path / "x.json").exists()


def test_divergence_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, str(tmp_path), "--learning-rate", "1e30"])
    assert stop.value.code == 2
    assert re.search(r"at step \d+, with learning rate 1e\+30", one_line(capsys.readouterr().err))


def one_line(text: str) -> str:
    """Return a message of the command line, which must be a single line."""
    assert text.startswith("python -m icrl_lib")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize("lock", [None, "no locks here"])
def test_where_there_are_no_locks_a_run_goes_on_without(tmp_path, monkeypatch, lock):
    """Windows has no such module, and some network drives answer that they have no locks."""
    if lock is None:
        monkeypatch.setattr(_files, "fcntl", None)
    else:
        monkeypatch.setattr(_files.fcntl, "flock", Mock(side_effect=OSError(lock)))
    paper.run(small_config(), tmp_path / "x.json", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The run that held it ends, and removes it, after it was opened and before it is locked."""
    path, lock = tmp_path / "x.json", tmp_path / "x.json.lock"
    flock = fcntl.flock

    def late(file, how):
        monkeypatch.setattr(_files.fcntl, "flock", flock)
        lock.unlink()
        flock(file, how)

    monkeypatch.setattr(_files.fcntl, "flock", late)
    with _files.reserved(path):
        assert lock.exists()
        with pytest.raises(ValueError, match="no other run"), _files.reserved(path):
            pass


def test_names_that_differ_after_the_last_dot_have_checkpoints_of_their_own(tmp_path):
    checkpoints = {paper.Experiment(small_config(), tmp_path / f"lr-{x}").checkpoint for x in RATES}
    assert checkpoints == {tmp_path / f"lr-{x}.checkpoint" for x in RATES}


def test_a_symbolic_link_to_results_stays_one(tmp_path):
    link, folder = tmp_path / "x.json", tmp_path / "elsewhere"
    folder.mkdir()
    link.symlink_to(folder / "y.json")
    results = paper.run(small_config(), link, SMALL)
    assert link.readlink() == folder / "y.json"
    assert json.loads((folder / "y.json").read_text()) == results


DAMAGED = {
    "empty": b"",
    "cut": b'{"config": {"algo',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"config": "\xff"}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_results_are_refused_by_name(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^path: .*x\.json holds none .* remove it"):
        paper.run(small_config(), path, SMALL)
    assert path.read_bytes() == content


@pytest.mark.parametrize("training", [None, {}, {"P12": [[0.0], [0.0, 1.0]], "V21": [[0.0]]}])
def test_results_without_weights_are_refused_by_name(tmp_path, training):
    path = tmp_path / "x.json"
    whole = paper.run(small_config(), path, SMALL)
    path.write_text(json.dumps({**whole, "training": training}))
    with pytest.raises(ValueError, match=r"^path: .*x\.json holds none .*remove it"):
        paper.run(small_config(), path, SMALL)


def test_a_folder_in_the_place_of_results_is_refused_by_name(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ValueError, match=r"^path: .*x\.json holds none .*directory"):
        paper.run(small_config(), tmp_path / "x.json", SMALL)


def test_results_that_cannot_be_read_are_refused_by_name(tmp_path):
    """A link to itself: unlike permissions it also stops an administrator."""
    path = tmp_path / "x.json"
    path.symlink_to(path)
    with pytest.raises(ValueError, match=r"^path: .*x\.json holds none"):
        paper.run(small_config(), path, SMALL)


REFUSED = {
    "batch": ["--batch", "0"],
    "n_mdps": ["--mdps", "-1"],
    "frames": ["--frames", "0"],
    "n_updates": ["--updates", "-5"],
    "learning_rate": ["--learning-rate", "-0.1"],
    "seed": ["--seed", "-1"],
    "below 2^62": ["--seed", str(2**64 - 2**31)],
    "device": ["--device", "cuda:99"],
    "invalid choice: 'sarse'": ["--algorithm", "sarse"],
    "invalid int value: 'x'": ["--frames", "x"],
}


@pytest.mark.parametrize(("words", "options"), REFUSED.items(), ids=lambda x: str(x))
def test_command_line_refuses_in_one_line(capsys, tmp_path, monkeypatch, words, options):
    monkeypatch.setattr(paper, "train", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(SystemExit) as stop:
        main(["paper", *options, "--output", str(tmp_path / "new")])
    assert stop.value.code == 2
    assert words in one_line(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("output", ["a file", "a file/below", "/proc/nothing"])
def test_command_line_refuses_a_place_where_nothing_can_be_written(capsys, tmp_path, output):
    (tmp_path / "a file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["paper", "--output", str(tmp_path / output)])
    assert stop.value.code == 2
    assert "path: expected" in one_line(capsys.readouterr().err)


def test_command_line_looks_at_all_results_before_it_trains(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "train", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "actor_critic-1000.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["paper", "--output", str(tmp_path)])
    assert "actor_critic-1000.json holds the results of another" in capsys.readouterr().err


def test_sizes_of_an_evaluation_may_be_integers_of_numpy(tmp_path):
    evaluation = paper.Evaluation(*map(np.int64, vars(SMALL).values()))
    assert paper.run(small_config(), tmp_path / "x.json", evaluation)["evaluation"] == vars(SMALL)


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
