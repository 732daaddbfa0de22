"""Training against a plain frame-by-frame implementation, and runs that are interrupted."""

import dataclasses
import itertools
import json
import math
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from icrl_lib import training
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.families import Listed, RandomMDPs
from icrl_lib.mdps import random_mdps
from icrl_lib.objective import Objective
from icrl_lib.policies import rollout
from icrl_lib.students import LinearBlock, LiteralBlock, Repeated, SoftmaxBlock
from icrl_lib.training import (
    Run,
    TrainingConfig,
    draw_situation,
    load_run,
    relative_error,
    train,
)

SMALL = {"family": RandomMDPs(3, 2), "window": 5, "dtype": "float64"}
ALGOS = {
    "sarsa": SARSA(d=2, alpha=0.3, epsilon=0.2),
    "actor_critic": ActorCritic(d=2, m=3, alpha=0.3, beta=0.7, epsilon=0.2),
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGOS.values(), ids=ALGOS.keys())


def config(algorithm, **changes):
    """Three batches, of 3, 3 and 1 MDPs, with 4 frames each: 12 optimiser steps."""
    settings = {"n_mdps": 7, "batch": 3, "frames": 4, "decay_every": 2, "seed": 5, **SMALL}
    return TrainingConfig(algorithm, **{**settings, **changes})


def assert_same_run(run, other):
    for name in ("P", "V", "losses"):
        assert torch.equal(getattr(run, name), getattr(other, name))


# --- a plain implementation


def plain_frame(algorithm, features, parameters, window, b):
    """Prompt and updated parameters of MDP b, transition by transition."""
    n, d, m = window.rewards.shape[1], algorithm.d, getattr(algorithm, "m", 0)
    D = 3 * d + 2 * m + 2
    H = torch.zeros(D, n + 1, dtype=parameters.dtype)
    H[2 * d + 1 + m, n] = 1
    H[2 * d + 2 + m :, n] = parameters[b]
    updated, w = parameters[b].clone(), parameters[b, m:]
    for i in range(n):
        s, t = window.states[b, i], window.states[b, i + 1]
        a, u = window.actions[b, i], window.actions[b, i + 1]
        if m == 0:
            phi, phi_next = features[b, s, a], features[b, t, u]
        else:
            phi, phi_next = features.value[b, s], features.value[b, t]
            pi = (features.policy[b, s] @ parameters[b, :m]).softmax(-1)
            score = features.policy[b, s, a] - pi @ features.policy[b, s]
        reward, gamma = window.rewards[b, i], window.discount
        delta = reward + gamma * w @ phi_next - w @ phi
        H[:d, i], H[d : 2 * d, i], H[2 * d, i] = phi, gamma * phi_next, reward
        if m == 0:
            updated += algorithm.alpha / n * delta * phi
        else:
            H[2 * d + 1 : 2 * d + 1 + m, i] = gamma**i * score
            updated[:m] += algorithm.alpha / n * gamma**i * delta * score
            updated[m:] += algorithm.beta / n * delta * phi
    return H, updated


def plain_behaviour(algorithm, features, parameters):
    if isinstance(algorithm, SARSA):
        q = torch.einsum("bsad,bd->bsa", features, parameters)
        greedy = (q == q.amax(-1, keepdim=True)).to(q.dtype)
    else:
        lam = parameters[:, : algorithm.m]
        greedy = torch.einsum("bsam,bm->bsa", features.policy, lam).softmax(-1)
    return (1 - algorithm.epsilon) * greedy + algorithm.epsilon / greedy.shape[-1]


def plain_training(config):
    """Algorithms 1 and 2 with the whole matrices P and V in eq. (1); returns P, V and losses."""
    algorithm, dtype = config.algorithm, getattr(torch, config.dtype)
    generator = torch.Generator().manual_seed(config.seed)
    d, m = algorithm.d, getattr(algorithm, "m", 0)
    p, k = m + d, 2 * d + 1 + m

    def xavier(rows, columns):
        deviation = config.gain * math.sqrt(2 / (rows + columns))
        return torch.empty(rows, columns, dtype=dtype).normal_(0, deviation, generator=generator)

    P, V = torch.zeros(2, k + 1 + p, k + 1 + p, dtype=dtype)
    P[:k, k:] = xavier(k, 1 + p)
    V[k + 1 :, :k] = xavier(p, k)
    P, V = P.requires_grad_(), V.requires_grad_()
    optimiser = torch.optim.Adam([P, V], lr=config.learning_rate)
    losses, done = [], 0
    while done < config.n_mdps:
        rate = config.learning_rate * config.decay ** (done // config.decay_every)
        optimiser.param_groups[0]["lr"] = rate
        batch = min(config.batch, config.n_mdps - done)
        mdp, features, parameters, state = draw_situation(config, batch, generator)
        for _ in range(config.frames):
            behaviour = plain_behaviour(algorithm, features, parameters)
            window = rollout(mdp, behaviour, config.window, state, generator)
            loss, targets = 0, []
            for b in range(batch):
                H, updated = plain_frame(algorithm, features, parameters, window, b)
                H_out = H + (V @ H) @ (H.T @ P @ H) / config.window
                loss = loss + ((H_out[-p:, -1] - updated) ** 2).sum() / 2 / batch
                targets.append(updated)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            parameters, state = torch.stack(targets), window.states[:, -1]
        done += batch
    return P.detach(), V.detach(), torch.tensor(losses, dtype=torch.float64)


@each_algorithm
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-11), ("float32", 1e-5)])
def test_training_equals_the_plain_implementation(algorithm, batch, dtype, error):
    """With batch = 1 this is Algorithm 1 (or 2), line by line."""
    settings = config(algorithm, batch=batch, dtype=dtype, n_mdps=10, learning_rate=1e-2)
    run = train(settings)
    P, V, losses = plain_training(settings)
    torch.testing.assert_close(run.P, P, rtol=0, atol=error)
    torch.testing.assert_close(run.V, V, rtol=0, atol=error)
    torch.testing.assert_close(run.losses, losses, rtol=0, atol=error)
    assert len(losses) == 4 * math.ceil(10 / batch)


@each_algorithm
def test_inert_blocks_are_exactly_0(algorithm):
    run = train(config(algorithm))
    d, m = algorithm.d, getattr(algorithm, "m", 0)
    k = 2 * d + 1 + m
    P, V = run.P.clone(), run.V.clone()
    assert (P[:k, k:] != 0).all()
    assert (V[k + 1 :, :k] != 0).all()
    P[:k, k:], V[k + 1 :, :k] = 0, 0
    assert not P.any()
    assert not V.any()


@each_algorithm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_result_has_shape_and_dtype(algorithm, dtype):
    run = train(config(algorithm, dtype=dtype))
    D = {"sarsa": 8, "actor_critic": 14}[algorithm.name]
    assert run.P.shape == run.V.shape == (D, D)
    assert run.P.dtype == run.V.dtype == getattr(torch, dtype)
    assert run.losses.shape == (12,)
    assert run.losses.dtype == torch.float64
    assert not run.P.requires_grad


@each_algorithm
def test_same_seed_same_bits(algorithm):
    assert_same_run(train(config(algorithm)), train(config(algorithm)))


def test_another_seed_is_another_run():
    run, other = (train(config(ALGOS["sarsa"], seed=seed)) for seed in (5, 6))
    assert not torch.equal(run.P, other.P)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    train(config(ALGOS["sarsa"]))
    assert torch.equal(torch.random.get_rng_state(), before)


@each_algorithm
def test_lockstep_training_reaches_the_manifold(algorithm):
    """1,000 steps on 64 MDPs at a time."""
    lockstep = {"n_mdps": 25 * 64, "batch": 64, "frames": 40, "window": 10, "gain": 0.5}
    rates = {"learning_rate": 5e-2, "decay": 0.7, "decay_every": 64}
    run = train(config(algorithm, dtype="float32", **lockstep, **rates))
    assert run.projection().cosine > 0.9999


# --- learning rate and losses


@pytest.mark.parametrize(
    ("batch", "exponents"),
    [
        (1, [*[0] * 10, *[1] * 10, *[2] * 5]),
        (4, [0, 0, 0, 1, 1, 2, 2]),  # 0, 4, 8, 12, 16, 20 and 24 MDPs are done
    ],
)
def test_learning_rate_is_multiplied_by_099_every_10_mdps(monkeypatch, batch, exponents):
    rates = []

    class Recording(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    train(config(ALGOS["sarsa"], n_mdps=25, batch=batch, frames=2, decay_every=10))
    expected = [1e-3 * 0.99**exponent for exponent in exponents for _ in range(2)]
    assert rates == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("most", "every", "ends"),
    [
        (12, 1, list(range(1, 13))),
        (11, 2, [2, 4, 6, 8, 10, 12]),
        (3, 4, [4, 8, 12]),
        (2, 6, [6, 12]),
        (1, 12, [12]),
    ],
)
def test_thinned_losses_are_means_of_blocks(monkeypatch, most, every, ends):
    all_losses = train(config(ALGOS["sarsa"])).losses
    monkeypatch.setattr(training, "MAX_RECORDED_LOSSES", most)
    run = train(config(ALGOS["sarsa"]))
    expected = torch.stack([all_losses[end - every : end].mean() for end in ends])
    torch.testing.assert_close(run.losses, expected, rtol=1e-12, atol=0)
    assert run.loss_every == every
    assert run.steps.tolist() == ends


def test_the_last_block_of_losses_may_be_shorter(monkeypatch):
    """12 steps in blocks of 5."""
    all_losses = train(config(ALGOS["sarsa"])).losses
    monkeypatch.setattr(training, "MAX_RECORDED_LOSSES", 2.5)
    run = train(config(ALGOS["sarsa"]))
    expected = torch.stack([block.mean() for block in all_losses.split(5)])
    torch.testing.assert_close(run.losses, expected, rtol=1e-12, atol=0)
    assert run.steps.tolist() == [5, 10, 12]


def test_up_to_10_000_losses_are_recorded():
    assert training.MAX_RECORDED_LOSSES == 10_000


# --- checkpoints


class InterruptionError(Exception):
    """Stands for whatever ends a run before its time."""


def count_windows(monkeypatch, algorithm, fail_at=None):
    """Count the teacher's updates; the one with number `fail_at` raises instead."""
    kind, calls = type(algorithm), []
    teach = kind.teach

    def counting(self, parameters, observation):
        if len(calls) == fail_at:
            raise InterruptionError
        calls.append(None)
        return teach(self, parameters, observation)

    monkeypatch.setattr(kind, "teach", counting)
    return calls


def interrupt(monkeypatch, settings, path, after, checkpoint_every=0):
    with monkeypatch.context() as patch:
        count_windows(patch, settings.algorithm, fail_at=after)
        with pytest.raises(InterruptionError):
            train(settings, checkpoint=path, checkpoint_every=checkpoint_every)


@each_algorithm
@pytest.mark.parametrize("after", [0, 1, 4, 6, 8, 11])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_resumed_run_gives_the_same_bits(monkeypatch, tmp_path, algorithm, after, dtype):
    """A batch of MDPs has 4 frames: interruptions lie between batches and inside of them."""
    settings, path = config(algorithm, dtype=dtype), tmp_path / "run.pt"
    interrupt(monkeypatch, settings, path, after)
    resumed_windows = count_windows(monkeypatch, algorithm)
    resumed = train(settings, checkpoint=path)
    assert len(resumed_windows) == 12 - after
    assert_same_run(resumed, train(settings))


@pytest.mark.parametrize("most", [2, 3, 5])
@pytest.mark.parametrize("after", [5, 6, 7])
def test_a_run_resumed_inside_a_block_of_losses_gives_the_same_bits(
    monkeypatch, tmp_path, most, after
):
    monkeypatch.setattr(training, "MAX_RECORDED_LOSSES", most)
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    interrupt(monkeypatch, settings, path, after)
    assert_same_run(train(settings, checkpoint=path), train(settings))


def test_a_run_may_be_interrupted_again_and_again(monkeypatch, tmp_path):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    for _ in range(11):
        interrupt(monkeypatch, settings, path, after=1)
    resumed_windows = count_windows(monkeypatch, settings.algorithm)
    resumed = train(settings, checkpoint=path)
    assert len(resumed_windows) == 1
    assert_same_run(resumed, train(settings))


def test_a_run_killed_while_it_writes_goes_on_from_the_state_before(monkeypatch, tmp_path):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    save, writes = torch.save, itertools.count(1)

    def torn(state, file):
        if next(writes) < 6:
            return save(state, file)
        Path(file).write_bytes(b"half a checkpoint")
        raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(InterruptionError):
            train(settings, checkpoint=path, checkpoint_every=0)
    resumed_windows = count_windows(monkeypatch, settings.algorithm)
    resumed = train(settings, checkpoint=path)
    assert len(resumed_windows) == 12 - 5
    assert_same_run(resumed, train(settings))


def test_checkpoints_are_written_only_so_often(monkeypatch, tmp_path):
    path = tmp_path / "run.pt"
    interrupt(monkeypatch, config(ALGOS["sarsa"]), path, 11, checkpoint_every=1000)
    assert not path.exists()


def test_the_checkpoint_of_a_finished_run_is_its_result(monkeypatch, tmp_path):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    run = train(settings, checkpoint=path, checkpoint_every=1000)
    windows = count_windows(monkeypatch, settings.algorithm)
    again = train(settings, checkpoint=str(path))
    assert windows == []
    assert_same_run(again, run)
    assert again.seconds == run.seconds


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_parts(monkeypatch, tmp_path):
    """On a clock that advances by 1 whenever it is read, which is once a step."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    monkeypatch.setattr(training.time, "perf_counter", itertools.count().__next__)
    interrupt(monkeypatch, settings, path, after=7)
    assert train(settings, checkpoint=path, checkpoint_every=0).seconds == 12


def test_no_file_but_the_checkpoint_stays(tmp_path):
    train(config(ALGOS["sarsa"]), checkpoint=tmp_path / "run.pt", checkpoint_every=0)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"n_mdps": 8}, {"learning_rate": 2e-3}, {"algorithm": SARSA(d=2)}]
)
def test_the_checkpoint_of_another_configuration_is_refused(tmp_path, change):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    train(settings, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^checkpoint: expected .* this configuration"):
        train(dataclasses.replace(settings, **change), checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [-1, math.nan, None, "20"])
def test_checkpoint_every_is_refused(value):
    with pytest.raises(ValueError, match=r"^checkpoint_every:"):
        train(config(ALGOS["sarsa"]), checkpoint_every=value)


# --- progress


@pytest.mark.parametrize("progress", [None, False])
def test_no_progress_bar_away_from_a_terminal(capfd, progress):
    train(config(ALGOS["sarsa"]), progress=progress)
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_counts_windows(capfd):
    """7 MDPs with 4 windows each."""
    train(config(ALGOS["sarsa"]), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.rsplit("\r")[-1].startswith("sarsa: 100%")
    assert "| 28.0/28.0 [" in err


def test_the_progress_bar_of_a_resumed_run_counts_what_was_done(monkeypatch, tmp_path, capfd):
    """2 windows of the first batch of 3 MDPs."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    interrupt(monkeypatch, settings, path, after=2)
    train(settings, checkpoint=path, progress=True)
    _, err = capfd.readouterr()
    assert "| 6.00/28.0 [" in err
    assert "| 28.0/28.0 [" in err


# --- situations and the relative error


@each_algorithm
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_situation_has_the_sizes_of_the_configuration(generator, algorithm, dtype):
    settings = config(algorithm, dtype=dtype, family=RandomMDPs(3, 2, 0.7))
    mdp, features, parameters, state = draw_situation(settings, 50, generator)
    first_map = features if algorithm.name == "sarsa" else features.policy
    assert mdp.transition.shape == (50, 3, 2, 3)
    assert mdp.discount == 0.7
    assert first_map.shape == (50, 3, 2, {"sarsa": 2, "actor_critic": 3}[algorithm.name])
    assert parameters.shape == (50, algorithm.n_parameters)
    assert {t.dtype for t in (mdp.transition, first_map, parameters)} == {getattr(torch, dtype)}
    assert state.shape == (50,)
    assert set(state.tolist()) == {0, 1, 2}


def test_a_situation_has_the_rewards_of_the_configuration(generator):
    mdp, *_ = draw_situation(
        config(ALGOS["sarsa"], family=RandomMDPs(3, 2, reward="s,a")), 2, generator
    )
    assert torch.equal(mdp.reward, mdp.reward[..., :1].expand_as(mdp.reward))
    assert not torch.equal(mdp.reward, mdp.reward[:, :1].expand_as(mdp.reward))


@each_algorithm
@pytest.mark.parametrize(
    ("of_p", "of_v", "error"), [(1, 1, 0), (0, 1, 1), (1, 0.5, 0.5), (3, 1, 2), (-2, -0.5, 0)]
)
def test_relative_error_of_scaled_constructions(generator, algorithm, of_p, of_v, error):
    """(a P*, b V*) takes a b times the teacher's step: the error is |a b - 1|."""
    P, V = algorithm.construction(dtype=torch.float64)
    block = LinearBlock.from_weights(algorithm, of_p * P, of_v * V)
    found = relative_error(config(algorithm), block, generator=generator)
    assert found == pytest.approx(error, rel=1e-12, abs=1e-12)


def test_relative_error_is_driven_by_the_teacher(monkeypatch, generator):
    """As many windows as the configuration has frames, of all MDPs at once."""
    settings = config(ALGOS["sarsa"])
    windows = count_windows(monkeypatch, settings.algorithm)
    relative_error(settings, lambda tokens, w: w, generator=generator)
    assert len(windows) == 4


@pytest.mark.parametrize("c", [-2.0, 0.5])
def test_projection_of_a_run(c):
    settings = config(ALGOS["sarsa"])
    P, V = settings.algorithm.construction(c, torch.float64)
    block = LinearBlock.from_weights(settings.algorithm, P, V)
    projection = Run(block, torch.zeros(1), torch.zeros(1), 1, 0.0, settings, 1, 0.0).projection()
    assert projection.c == pytest.approx(c, rel=1e-12)
    assert projection.distance < 1e-12


# --- configurations


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("sarsa", SARSA(d=36, alpha=0.2, epsilon=0.1)),
        ("actor_critic", ActorCritic(d=9, m=36, alpha=0.2, beta=0.8, epsilon=0.1)),
    ],
)
def test_the_paper_settings(name, algorithm):
    settings = dict(vars(TrainingConfig.paper(name)))
    assert settings.pop("algorithm") == algorithm
    assert settings.pop("family") == RandomMDPs(9, 4, discount=0.5, reward="a,s'")
    assert settings == {
        "n_mdps": 10_000,
        "frames": 50,
        "batch": 1,
        "window": 20,
        "learning_rate": 1e-3,
        "decay": 0.99,
        "decay_every": 10,
        "gain": 0.1,
        "seed": 0,
        "dtype": "float32",
        "device": "cpu",
    }
    assert TrainingConfig.paper(name).algorithm == algorithm


def test_the_paper_settings_of_an_algorithm_of_other_size():
    assert TrainingConfig.paper(SARSA(d=2)).algorithm == SARSA(d=2)


@pytest.mark.parametrize("name", ["sarsa", "actor_critic"])
def test_lockstep_settings(name):
    """256 MDPs at a time and 1,200 steps; the family of MDPs is the paper's."""
    settings, paper = TrainingConfig.lockstep(name), TrainingConfig.paper(name)
    assert (settings.batch, settings.steps, settings.windows) == (256, 1200, 1200 * 256)
    training_only = {"n_mdps", "batch", "learning_rate", "decay", "decay_every"}
    for field in dataclasses.fields(TrainingConfig):
        if field.name not in training_only:
            assert getattr(settings, field.name) == getattr(paper, field.name)


@pytest.mark.parametrize(
    ("n_mdps", "batch", "frames", "steps", "windows"),
    [(7, 3, 4, 12, 28), (6, 3, 4, 8, 24), (1, 9, 5, 5, 5), (10_000, 1, 50, 500_000, 500_000)],
)
def test_steps_and_windows(n_mdps, batch, frames, steps, windows):
    settings = TrainingConfig("sarsa", n_mdps=n_mdps, batch=batch, frames=frames)
    assert (settings.steps, settings.windows) == (steps, windows)


COUNTS = ("n_mdps", "frames", "batch", "window", "decay_every")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in COUNTS for value in (0, -1, 1.0, True, None)),
        *(("seed", value) for value in (-1, 0.5, None, 2**62)),
        *(("family", value) for value in (None, "random", RandomMDPs)),
        *(("learning_rate", value) for value in (0, -1, math.inf, "1e-3")),
        *(("decay", value) for value in (0, 1.1, math.nan)),
        *(("gain", value) for value in (0, -1, None)),
        *(("dtype", value) for value in ("float16", torch.float16, None)),
        *(("device", value) for value in ("gpu", 3, None)),
        *(("algorithm", value) for value in ("q", "", None, SARSA)),
    ],
)
def test_configurations_refuse(name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        TrainingConfig(**{name: value})


def test_a_checkpoint_in_a_missing_folder_is_refused(tmp_path):
    config = TrainingConfig(SARSA(d=1), n_mdps=1, frames=1, family=RandomMDPs(2, 2))
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file in an existing folder"):
        train(config, checkpoint=tmp_path / "missing" / "x")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    config = TrainingConfig(SARSA(d=1), n_mdps=1, frames=1, family=RandomMDPs(2, 2))
    path = tmp_path / "x"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"^checkpoint: expected a checkpoint"):
        train(config, checkpoint=path)


@pytest.mark.parametrize(
    "size",
    [{"batch": 10**9, "n_mdps": 10**9}, {"family": RandomMDPs(10**6, 2)}, {"window": 10**11}],
)
def test_what_would_not_fit_into_memory_is_refused_at_once(size):
    """Terabytes; a trial would end in the system's ending the process."""
    with pytest.raises(ValueError, match=r"^batch: expected sizes that fit into memory;"):
        train(config(ALGOS["sarsa"], **size))


def test_as_many_features_as_would_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^batch: expected sizes that fit into memory;"):
        train(TrainingConfig(SARSA(d=10**6)))


@pytest.mark.parametrize(("spare", "refused"), [(0, False), (-1, True)])
def test_memory_is_refused_exactly_when_too_little_is_there(monkeypatch, spare, refused):
    settings = config(ALGOS["sarsa"])
    needed = training.memory_needed(settings)
    monkeypatch.setattr(training, "_memory_available", lambda device: needed + spare)
    outcome = pytest.raises(ValueError, match=r"^batch:") if refused else nullcontext()
    with outcome:
        train(settings)


@pytest.mark.parametrize("change", [{"frames": 10**6}, {"n_mdps": 10**6}])
def test_the_memory_that_is_needed_depends_on_neither_frames_nor_mdps(change):
    settings = config(ALGOS["sarsa"])
    assert training.memory_needed(dataclasses.replace(settings, **change)) == (
        training.memory_needed(settings)
    )


# --- what is stored


def damaged(path, rng):
    """A checkpoint of which one bit is another, or which is cut."""
    content = bytearray(path.read_bytes())
    place = torch.randint(len(content), (), generator=rng).item()
    if torch.rand((), generator=rng) < 0.3:
        return bytes(content[:place])
    content[place] ^= 1 << torch.randint(8, (), generator=rng).item()
    return bytes(content)


def test_a_damaged_checkpoint_is_refused_or_gives_the_same_bits(tmp_path, generator):
    """Of 60 single flipped bits and cuts most are refused; what loads has not changed."""
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    run = train(settings, checkpoint=path)
    whole, refused = path.read_bytes(), []
    for _ in range(60):
        path.write_bytes(damaged(path, generator))
        try:
            assert_same_run(train(settings, checkpoint=path), run)
        except ValueError as error:
            refused.append(str(error))
        path.write_bytes(whole)
    assert len(refused) > 40
    start = f"checkpoint: expected a checkpoint, {path} is none or is damaged"
    assert all(words.startswith(start) for words in refused)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"PK\x05\x06" + 18 * b"\0"])
def test_a_foreign_file_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^checkpoint: expected a checkpoint"):
        train(config(ALGOS["sarsa"]), checkpoint=path)


def test_a_checkpoint_of_other_sizes_is_not_broadcast(tmp_path):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    train(settings, checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["student"]["P12"] = torch.zeros(1, 1, dtype=torch.float64)
    torch.save(state, path)
    with pytest.raises((ValueError, RuntimeError), match="size mismatch for P12"):
        train(settings, checkpoint=path)


def test_a_checkpoint_names_its_family_and_its_student(tmp_path):
    settings, path = config(ALGOS["sarsa"]), tmp_path / "run.pt"
    train(settings, checkpoint=path)
    other = dataclasses.replace(settings, family=RandomMDPs(3, 2, discount=0.6))
    with pytest.raises(ValueError, match=r"^checkpoint: expected .* this configuration"):
        train(other, checkpoint=path)
    student = LinearBlock(settings.algorithm, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"^checkpoint: expected .* this first weights"):
        train(settings, student, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "given", "stored"),
    [
        ("n_mdps", np.int64(7), 7),
        ("learning_rate", np.float32(0.5), 0.5),
        ("gain", Fraction(1, 4), 0.25),
        ("gain", 1, 1.0),
        ("dtype", torch.float64, "float64"),
        ("device", torch.device("cpu"), "cpu"),
    ],
)
def test_configurations_are_plain_whatever_they_are_given(name, given, stored):
    settings = dataclasses.replace(config(ALGOS["sarsa"]), **{name: given})
    value = getattr(settings, name)
    assert (type(value), value) == (type(stored), stored)
    described = json.loads(json.dumps(training.describe(settings)))
    assert described == training.describe(dataclasses.replace(settings, **{name: stored}))


def test_a_run_of_a_list_is_described_by_a_digest_and_stored_whole(tmp_path):
    seeds = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    listed = [Listed(random_mdps(2, 3, 2, generator=seed)) for seed in seeds]
    one, other = (config(ALGOS["sarsa"], family=family, dtype="float32") for family in listed)
    assert training.describe(one) != training.describe(other)
    run = train(one)
    run.save(tmp_path / "listed.run")
    family = load_run(tmp_path / "listed.run").config.family
    assert torch.equal(family.mdp.transition, listed[0].mdp.transition)


@pytest.mark.parametrize("kind", ["linear", "softmax", "repeated", "literal"])
def test_every_student_resumes_to_the_bit(monkeypatch, tmp_path, kind):
    settings, path = config(ALGOS["sarsa"], learning_rate=1e-2), tmp_path / "run.pt"

    def student():
        draw = {"generator": torch.Generator().manual_seed(3), "dtype": torch.float64}
        linear = LinearBlock(settings.algorithm, **draw)
        return {
            "linear": linear,
            "softmax": SoftmaxBlock(settings.algorithm, 2, anchor=True, **draw),
            "repeated": Repeated(linear, 2),
            "literal": LiteralBlock(settings.algorithm, **draw),
        }[kind]

    with monkeypatch.context() as patch:
        count_windows(patch, settings.algorithm, fail_at=8)  # one is spent on trying the student
        with pytest.raises(InterruptionError):
            train(settings, student(), checkpoint=path, checkpoint_every=0)
    resumed, whole = train(settings, student(), checkpoint=path), train(settings, student())
    assert resumed.losses.tolist() == whole.losses.tolist()
    for name, part in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], part), name


def test_the_literal_block_learns_what_the_reduced_one_does():
    """From the same start, with its other blocks at 0, to rounding (Proposition 3.1)."""
    settings = config(ALGOS["actor_critic"], learning_rate=1e-2)
    linear = LinearBlock(
        settings.algorithm, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    literal = LiteralBlock.from_weights(settings.algorithm, *linear.weights())
    run, other = train(settings, linear), train(settings, literal)
    torch.testing.assert_close(other.P, run.P, rtol=0, atol=1e-11)
    torch.testing.assert_close(other.V, run.V, rtol=0, atol=1e-11)


def test_the_memory_of_a_student_of_ones_own_is_asked_for(monkeypatch):
    settings = config(ALGOS["sarsa"])
    student = SoftmaxBlock(settings.algorithm, 50, generator=torch.Generator())
    own = training.memory_needed(settings, student.double())
    assert own > training.memory_needed(settings)
    monkeypatch.setattr(training, "_memory_available", lambda device: own - 1)
    with pytest.raises(ValueError, match=r"^batch: expected sizes that fit into memory"):
        train(settings, student)


def test_a_fit_on_a_fixed_sample_equals_gradient_descent_by_the_formulas():
    settings = config(ALGOS["sarsa"])
    windows = training.draw_windows(settings, 30, generator=torch.Generator().manual_seed(6))
    student = LinearBlock(
        settings.algorithm, 0.5, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    objective, blocks = Objective.of(windows), [student.P12.detach(), student.V21.detach()]
    losses = []
    for _ in range(5):
        losses.append(objective.loss(*blocks).item())
        slopes = objective.gradient(*blocks)
        blocks = [block - 0.3 * slope for block, slope in zip(blocks, slopes, strict=True)]
    descent = torch.optim.SGD(student.parameters(), lr=0.3)
    steps = list(training.fit(student, itertools.repeat(windows, 5), descent))
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-12)
    torch.testing.assert_close(student.P12.detach(), blocks[0], rtol=0, atol=1e-13)


def test_who_drives_decides_what_is_seen(monkeypatch):
    settings = config(ALGOS["sarsa"], n_mdps=3, frames=3)
    by = {who: list(training.mimic(settings, driver=who)) for who in ("teacher", "student")}
    first, second = (by[who] for who in ("teacher", "student"))
    assert torch.equal(first[0].windows.tokens, second[0].windows.tokens)
    assert torch.equal(first[1].windows.parameters, first[0].windows.target)
    assert not torch.equal(second[1].windows.parameters, second[0].windows.target)
