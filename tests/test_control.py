"""Closed-loop control: what is kept, what it is worth, and that blocks control like teachers."""

import dataclasses
import functools
import math

import pytest
import torch

from icrl_lib import control
from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.control import exact_returns, improve, monte_carlo_return
from icrl_lib.mdps import TabularMDP, expected_return, random_mdps
from icrl_lib.policies import rollout
from icrl_lib.worlds import restarting

ALGOS = [SARSA(d=4, epsilon=0.3), ActorCritic(d=3, m=4, epsilon=0.3)]
each_algorithm = pytest.mark.parametrize("algorithm", ALGOS, ids=[a.name for a in ALGOS])


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def situation(algorithm, batch=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    mdp = random_mdps(batch, 5, 3, 0.5, generator=generator, dtype=dtype)
    features = algorithm.draw_features(mdp, generator)
    return mdp, features, algorithm.draw_parameters(batch, generator, dtype)


def improved(algorithm, update, n_updates=7, **options):
    options.update(window=6, generator=torch.Generator().manual_seed(1))
    return improve(algorithm, *situation(algorithm), update, n_updates, **options)


# --- improvement


@each_algorithm
@pytest.mark.parametrize("c", [1.0, -0.4])
def test_the_construction_controls_like_the_teacher(algorithm, c):
    P, V = algorithm.construction(c, torch.float64)
    block = functools.partial(algorithm.forward, P=P, V=V)
    taught = improved(algorithm, algorithm.teach, 60, keep_every=1)
    in_context = improved(algorithm, block, 60, keep_every=1)
    close(in_context.policies, taught.policies, atol=1e-11)
    close(in_context.parameters, taught.parameters, atol=1e-11)
    assert (taught.policies[0] - taught.policies[-1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("n_updates", "keep_every", "kept"),
    [
        (7, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (7, 3, [0, 3, 6]),
        (6, 3, [0, 3, 6]),
        (2, 3, [0]),
        (25, 10, [0, 10, 20]),
    ],
)
def test_every_so_many_policies_are_kept(n_updates, keep_every, kept):
    result = improved(ALGOS[0], ALGOS[0].teach, n_updates, keep_every=keep_every)
    assert result.updates.tolist() == kept
    assert result.policies.shape == (len(kept), 4, 5, 3)


def test_one_policy_in_ten_is_kept_unless_told():
    assert improved(ALGOS[0], ALGOS[0].teach, 21).updates.tolist() == [0, 10, 20]


def test_windows_have_20_transitions_unless_told(generator):
    lengths = []

    def update(parameters, observation):
        lengths.append(observation[2].shape[1])
        return parameters

    improve(ALGOS[0], *situation(ALGOS[0]), update, 2, generator=generator)
    assert lengths == [20, 20]


@each_algorithm
@pytest.mark.parametrize(("epsilon", "used"), [(None, 0.3), (0, 0), (1, 1)])
def test_kept_policies_are_those_after_so_many_updates(algorithm, epsilon, used):
    """The update adds 1, so that the parameters after k updates are known."""
    _, features, parameters = situation(algorithm)
    result = improved(algorithm, lambda p, _: p + 1, keep_every=2, epsilon=epsilon)
    for k, policy in zip((0, 2, 4, 6), result.policies, strict=True):
        assert torch.equal(policy, algorithm.policy(features, parameters + k, used))
    close(result.parameters, parameters + 7)


def test_epsilon_0_keeps_greedy_policies():
    policies = improved(ALGOS[0], ALGOS[0].teach, epsilon=0).policies
    assert torch.equal(policies.sort(-1).values, torch.eye(3)[2].double().expand_as(policies))


@each_algorithm
def test_epsilon_changes_what_is_kept_but_not_behaviour(algorithm):
    greedy = improved(algorithm, algorithm.teach, epsilon=0)
    assert torch.equal(greedy.parameters, improved(algorithm, algorithm.teach).parameters)


def test_the_first_state_is_drawn_from_the_initial_distribution():
    """State 2 is absorbing and the only one to begin in; the update records what it sees."""
    stay = torch.eye(3).double()[None, :, None].expand(4, 3, 2, 3)
    reward = torch.tensor([[0, 1, 2]]).double()[:, None, None].expand(4, 3, 2, 3)
    mdp = TabularMDP(stay, reward, torch.eye(3).double()[[2] * 4], 0.5)
    generator = torch.Generator().manual_seed(0)
    algorithm = SARSA(d=2)
    features = algorithm.draw_features(mdp, generator)
    seen = []

    def update(parameters, observation):
        seen.append(observation[2])
        return parameters

    parameters = torch.zeros(4, 2).double()
    improve(algorithm, mdp, features, parameters, update, 3, window=5, generator=generator)
    assert [rewards.shape for rewards in seen] == [(4, 5)] * 3
    assert all((rewards == 2).all() for rewards in seen)


@each_algorithm
def test_the_teacher_improves(algorithm):
    """Mean return over 50 MDPs, in units of its standard error over MDPs."""
    mdp, features, parameters = situation(algorithm, 50)
    generator = torch.Generator().manual_seed(1)
    result = improve(
        algorithm, mdp, features, parameters, algorithm.teach, 100, generator=generator
    )
    returns = exact_returns(mdp, result.policies)
    gain = returns[-1] - returns[0]
    assert gain.mean() / (gain.std() / math.sqrt(50)) > 5


@each_algorithm
def test_improve_modifies_nothing(algorithm):
    mdp, features, parameters = situation(algorithm)
    maps = [features] if algorithm.name == "sarsa" else list(features)
    tensors = [mdp.transition, mdp.reward, mdp.initial, *maps, parameters]
    before = [t.clone() for t in tensors]
    generator = torch.Generator().manual_seed(1)
    improve(algorithm, mdp, features, parameters, algorithm.teach, 3, generator=generator)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("n_updates", "window", "keep_every")
            for value in (0, 1.0, None)
        ),
        *(("epsilon", value) for value in (-0.1, 1.1, math.nan)),
        *(("generator", value) for value in (None, 0)),
        ("parameters", torch.zeros(4, 3).double()),
        ("parameters", torch.full((4, 4), math.nan).double()),
    ],
)
def test_improve_refuses(generator, name, value):
    mdp, features, parameters = situation(ALGOS[0])
    given = {
        "algorithm": ALGOS[0],
        "mdp": mdp,
        "features": features,
        "parameters": parameters,
        "update": ALGOS[0].teach,
        "n_updates": 2,
        "window": 3,
        "keep_every": 1,
        "epsilon": 0,
        "generator": generator,
    }
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        improve(**{**given, name: value})


# --- returns


def test_exact_returns_of_two_states():
    """State 1 pays 1 for ever: worth 2 at gamma = 1/2. From 0, action 1 leads there, 0 nowhere."""
    transition = torch.tensor([[[[1, 0], [0, 1]], [[0, 1], [0, 1]]]]).double()
    reward = torch.tensor([[[[0, 0], [0, 0]], [[0, 1], [0, 1]]]]).double()
    mdp = TabularMDP(transition, reward, torch.tensor([[1, 0]]).double(), 0.5)
    stay = torch.tensor([[[1, 0], [1, 0]]]).double()
    go = torch.tensor([[[0, 1], [1, 0]]]).double()
    close(exact_returns(mdp, torch.stack([stay, go, (stay + go) / 2])), [[0], [1], [2 / 3]])


def test_exact_returns_refuse_bad_policies(spoil):
    with pytest.raises(ValueError, match=r"^policies:"):
        exact_returns(countdown(), spoil(torch.ones(3, 2, 2, 1).double()))


def test_a_monte_carlo_return_ends_with_the_episode(generator):
    """8 and then the end; what comes after the restart is another episode's."""
    paid = countdown().reward
    paid[:, 1] = 0
    over = restarting(dataclasses.replace(countdown(), reward=paid, terminal=1))
    estimate = monte_carlo_return(over, torch.ones(2, 2, 1).double(), 3, 9, generator=generator)
    assert estimate.tolist() == [8, 16]


def countdown():
    """Two MDPs, two states, one action: 0 -> 1 pays 8, 1 -> 1 pays 4; the other pays twice that."""
    transition = torch.tensor([[[[0, 1]], [[0, 1]]]]).double().repeat(2, 1, 1, 1)
    reward = (
        torch.tensor([[[[0, 8]], [[0, 4]]]]).double() * torch.tensor([1, 2])[:, None, None, None]
    )
    return TabularMDP(transition, reward, torch.tensor([[1, 0]] * 2).double(), 0.5)


@pytest.mark.parametrize(("length", "value"), [(1, 8), (2, 10), (3, 11), (4, 11.5)])
@pytest.mark.parametrize("episodes", [1, 3])
def test_monte_carlo_return_of_deterministic_mdps(generator, length, value, episodes):
    """8 + 4/2 + 4/4 + ..., cut off after `length` rewards; of each MDP by itself."""
    policy = torch.ones(2, 2, 1).double()
    estimate = monte_carlo_return(countdown(), policy, episodes, length, generator=generator)
    assert estimate.tolist() == [value, 2 * value]


def test_monte_carlo_return_agrees_with_the_exact_one():
    """Of 3 MDPs, 400 estimates each: their mean is within 5 standard errors."""
    generator = torch.Generator().manual_seed(2)
    mdp = random_mdps(3, 4, 2, generator=generator, dtype=torch.float64)
    policy = torch.rand(3, 4, 2, generator=generator).double()
    policy = policy / policy.sum(-1, keepdim=True)
    index = torch.arange(3).repeat_interleave(400)
    estimates = monte_carlo_return(mdp[index], policy[index], 4, 40, generator=generator)
    estimates = estimates.reshape(3, 400)
    errors = estimates.std(-1) / math.sqrt(400)
    assert ((estimates.mean(-1) - expected_return(mdp, policy)).abs() < 5 * errors).all()
    assert (errors < 0.02).all()


def test_monte_carlo_return_averages_its_episodes():
    """The variance of a mean of 16 independent episodes is a 16th of that of one."""
    generator = torch.Generator().manual_seed(3)
    mdp = random_mdps(1, 4, 2, generator=generator)[torch.zeros(2000, dtype=torch.int64)]
    policy = torch.full((2000, 4, 2), 0.5)
    one, sixteen = (
        monte_carlo_return(mdp, policy, episodes, 10, generator=generator).var().item()
        for episodes in (1, 16)
    )
    assert one / sixteen == pytest.approx(16, rel=0.2)


def test_the_share_of_the_way_is_a_ratio_of_means():
    """One state, two actions, discount 1/2: the best gets twice the reward, chance half of that."""
    reward = torch.tensor([[0.0, 1.0], [3.0, 0.0]])[:, None, :, None]
    mdp = TabularMDP(torch.ones(2, 1, 2, 1), reward, torch.ones(2, 1), 0.5)
    found = control.levels(mdp)
    assert torch.stack(found).tolist() == [[2, 6], [1, 3]]
    assert found.share(torch.tensor([[1.5, 6.0], [1.0, 3.0]])).tolist() == [0.875, 0]


def test_monte_carlo_return_follows_the_paper_unless_told(monkeypatch, generator):
    """32 trajectories of length 50."""
    seen = []

    def recording(mdp, policy, n, state, generator):
        seen.append((mdp.batch, n))
        return rollout(mdp, policy, n, state, generator)

    monkeypatch.setattr(control, "rollout", recording)
    monte_carlo_return(countdown(), torch.ones(2, 2, 1).double(), generator=generator)
    assert seen == [(64, 50)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_returns_have_the_dtype(generator, dtype):
    mdp = random_mdps(2, 3, 2, generator=generator, dtype=dtype)
    policy = torch.full((2, 3, 2), 0.5, dtype=dtype)
    assert exact_returns(mdp, policy[None]).dtype == dtype
    assert monte_carlo_return(mdp, policy, 2, 3, generator=generator).dtype == dtype


def test_monte_carlo_return_refuses_bad_policies(generator, spoil):
    with pytest.raises(ValueError, match=r"^policy:"):
        monte_carlo_return(countdown(), spoil(torch.ones(2, 2, 1).double()), generator=generator)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("episodes", "length") for value in (0, -1, 1.0, None)),
        *(("generator", value) for value in (None, 0)),
        ("policy", torch.ones(1, 2, 1).double()),
        ("policy", torch.ones(3, 2, 1).double()),
        ("policy", torch.ones(2, 3, 1).double()),
        ("policy", torch.ones(2, 2, 2).double()),
    ],
)
def test_monte_carlo_return_refuses(generator, name, value):
    given = {
        "mdp": countdown(),
        "policy": torch.ones(2, 2, 1).double(),
        "episodes": 2,
        "length": 2,
        "generator": generator,
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        monte_carlo_return(**{**given, name: value})
