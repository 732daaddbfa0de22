"""Same seed, same bits; any number of threads, any split of the batch, the same result; and a
generator that advances by the same amount whatever it is used for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from icrl_lib import (
    algorithms,
    control,
    families,
    features,
    in_context_td,
    mdps,
    policies,
    training,
    zoo,
)
from icrl_lib.loop import interact
from icrl_lib.objective import Objective
from icrl_lib.windows import collect

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "n_mdps": 40,
    "frames": 6,
    "batch": 10,
    "family": families.RandomMDPs(5, 3),
    "learning_rate": 1e-2,
}
CONFIGS = {
    "sarsa": training.TrainingConfig(algorithms.SARSA(d=6), **SMALL),
    "actor_critic": training.TrainingConfig(algorithms.ActorCritic(d=4, m=5), **SMALL),
    "reinforce": training.TrainingConfig(zoo.Reinforce(d=4, m=5), **SMALL),
}
MDP = mdps.random_mdps(6, 5, 3, generator=torch.Generator().manual_seed(7))
POLICY = policies.random_policy(MDP, torch.Generator().manual_seed(8))


def stretch(generator):
    phi = features.random_features(6, 5, 4, generator=generator)
    return list(in_context_td.draw_stretch(MDP, phi, 4, 2, generator))


def loop_of(algorithm, generator, frames=4):
    """Return the parameters along the teacher's own way."""
    config = training.TrainingConfig(algorithm, family=families.RandomMDPs(5, 3))
    situation = training.draw_situation(config, 6, generator)
    turns = interact(algorithm, *situation, algorithm.teach, n=5, generator=generator)
    return [frame.updated for frame in islice(turns, frames)]


def objective(generator):
    config = CONFIGS["sarsa"]
    situation = training.draw_situation(config, 6, generator)
    sample = Objective.of(collect(config.algorithm, *situation, frames=2, n=5, generator=generator))
    return [sample.sigma, sample.column, sample.target]


def improvement(generator):
    algorithm = algorithms.SARSA(d=6)
    start = algorithm.draw_parameters(6, generator)
    phi = algorithm.draw_features(MDP, generator)
    return list(
        control.improve(
            algorithm, MDP, phi, start, algorithm.teach, 4, window=5, keep_every=2,
            generator=generator,
        )
    )  # fmt: skip


# Everything that draws random numbers.
RANDOM = {
    "random_features": lambda g: [features.random_features(3, 4, 5, generator=g)],
    "random_mdps": lambda g: [getattr(mdps.random_mdps(3, 4, 2, generator=g), name)
                              for name in ("transition", "reward", "initial")],
    "uniform_on_simplex": lambda g: [mdps.uniform_on_simplex(3, generator=g, dtype=torch.float32)],
    "random_policy": lambda g: [policies.random_policy(MDP, g)],
    "initial_states": lambda g: [policies.initial_states(MDP, g)],
    "rollout": lambda g: list(policies.rollout(MDP, POLICY, 9, torch.zeros(6).long(), g))[:3],
    "monte_carlo_return": lambda g: [control.monte_carlo_return(MDP, POLICY, 3, 4, generator=g)],
    "improve": improvement,
    "boyan_chains": lambda g: [in_context_td.boyan_chains(3, 5, generator=g).transition],
    "draw_stretch": stretch,
    "objective": objective,
    **{
        f"loop of {algorithm.name}": partial(loop_of, algorithm)
        for algorithm in (
            algorithms.SARSA(d=6), algorithms.ActorCritic(d=4, m=5), zoo.TD(d=4),
            zoo.OffPolicyTD(d=4), zoo.ResidualGradient(d=6), zoo.ExpectedSARSA(d=6),
            zoo.NStepSARSA(d=6), zoo.SARSALambda(d=6), zoo.DifferentialSARSA(d=6),
            zoo.QActorCritic(d=6, m=5), zoo.Reinforce(d=4, m=5), zoo.QLearning(d=6, n_actions=3),
        )
    },
}  # fmt: skip
everything_random = pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM.keys())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@everything_random
def test_the_same_seed_gives_the_same_bits(draw):
    first, again = draw(seeded(3)), draw(seeded(3))
    assert all(map(torch.equal, first, again))


@everything_random
def test_another_seed_gives_something_else(draw):
    first, other = draw(seeded(3)), draw(seeded(4))
    assert not all(map(torch.equal, first, other))


@everything_random
def test_the_generator_moves_on_and_always_as_far(draw):
    one, two, unused = seeded(3), seeded(3), seeded(3)
    draw(one)
    draw(two)
    assert torch.equal(one.get_state(), two.get_state())
    assert not torch.equal(one.get_state(), unused.get_state())


@everything_random
def test_the_global_generator_is_neither_read_nor_moved(draw):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(map(torch.equal, first, draw(seeded(3))))


def test_rollouts_move_the_generator_alike_whatever_the_policy_is():
    """So that two policies, or two updates, can be compared pair by pair."""
    ends = []
    for policy in (POLICY, policies.uniform_policy(MDP)):
        generator = seeded(3)
        policies.rollout(MDP, policy, 9, torch.zeros(6).long(), generator)
        ends.append(generator.get_state())
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_twice_gives_the_same_bits(name):
    first, again = (training.train(CONFIGS[name], progress=False) for _ in range(2))
    for attribute in ("P", "V", "losses"):
        assert torch.equal(getattr(first, attribute), getattr(again, attribute))


def test_training_in_context_td_twice_gives_the_same_bits():
    settings = in_context_td.Settings(steps=5, chains=4, positions=3, n=6)
    assert all(map(torch.equal, in_context_td.train(settings), in_context_td.train(settings)))


# --- the number of threads

# Sizes above those at which torch begins to share work among threads; few steps, as two threads on
# a busy machine wait for each other most of the time.
PROGRAM = """
import json, sys, torch
from icrl_lib import algorithms, mdps, training
torch.set_num_threads(int(sys.argv[1]))
print(torch.get_num_threads())
for dtype in ("float64", "float32"):
    for algorithm in (algorithms.SARSA(), algorithms.ActorCritic()):
        config = training.TrainingConfig(algorithm, n_mdps=256, frames=2, batch=256, dtype=dtype)
        run = training.train(config, progress=False)
        print(json.dumps([x.flatten().tolist() for x in (run.P, run.V, run.losses)]))
    generator = torch.Generator().manual_seed(0)
    mdp = mdps.random_mdps(512, generator=generator, dtype=getattr(torch, dtype))
    q = mdps.value_iteration(mdp)
    returns = mdps.expected_return(mdp, mdps.greedy_policy(q))
    print(json.dumps([q.flatten().tolist(), returns.tolist()]))
"""


def results_of(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    threads, *results = (json.loads(line) for line in output.splitlines())
    return threads, [torch.tensor(x, dtype=torch.float64) for result in results for x in result]


def test_the_number_of_threads_does_not_matter():
    """Sums may be taken in another order; two steps of Adam and exact solutions hardly notice."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, threads],
            cwd=ROOT,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in "12"
    ]
    (used, one), (used_then, two) = map(results_of, processes)
    assert (used, used_then) == (1, 2)
    assert len(one) == 16
    for i, (single, double) in enumerate(zip(one, two, strict=True)):
        tolerance = 1e-11 if i < 8 else 1e-4  # float64, then float32
        assert (single - double).abs().max() <= tolerance * single.abs().max()


# --- how a batch is split


def test_returns_do_not_depend_on_the_split():
    mdp = mdps.random_mdps(7, 5, 3, generator=seeded(0), dtype=torch.float64)
    kept = torch.stack([policies.random_policy(mdp, seeded(seed)) for seed in (1, 2)])
    whole = control.exact_returns(mdp, kept)
    parts = [control.exact_returns(mdp[i : i + 2], kept[:, i : i + 2]) for i in range(0, 7, 2)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", CONFIGS)
def test_updates_do_not_depend_on_the_split(name):
    """Of the block and of its teacher, on one window of 12 agents or 5 and 7."""
    algorithm = CONFIGS[name].algorithm
    config = training.TrainingConfig(algorithm, family=families.RandomMDPs(5, 3), dtype="float64")
    mdp, phi, parameters, state = training.draw_situation(config, 12, seeded(0))
    frame = next(interact(algorithm, mdp, phi, parameters, state, algorithm.teach,
                          n=5, generator=seeded(1)))  # fmt: skip
    P, V = algorithm.construction(dtype=torch.float64)
    block = partial(algorithm.forward, P=P, V=V)
    for update in (algorithm.teach, block):
        whole = update(parameters, frame.observation)
        parts = []
        for part in (slice(0, 5), slice(5, 12)):
            seen = tuple(x[part] if torch.is_tensor(x) else x for x in frame.observation)
            parts.append(update(parameters[part], seen))
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-13)


def test_the_mean_loss_of_a_sample_is_the_mean_over_its_parts():
    config = CONFIGS["sarsa"]
    situation = training.draw_situation(config, 6, seeded(0))
    sample = Objective.of(collect(config.algorithm, *situation, frames=4, n=5, generator=seeded(1)))
    P, V = config.algorithm.construction(c=0.5, dtype=torch.float64)
    blocks = [P[:13, 13:] + 0.1, V[14:, :13] - 0.1]
    halves = [
        Objective(*(t[i : i + 12] for t in (sample.sigma, sample.column, sample.target)), 5)
        for i in (0, 12)
    ]
    whole = [sample.loss(*blocks), *sample.gradient(*blocks)]
    parts = [[half.loss(*blocks), *half.gradient(*blocks)] for half in halves]
    for together, *apart in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(apart) / 2, together, rtol=1e-12, atol=1e-15)
