"""Policies by hand and by gradient; trajectories by hand and by frequency."""

import itertools
import math

import numpy as np
import pytest
import torch

from icrl_lib import policies
from icrl_lib.mdps import TabularMDP, random_mdps
from icrl_lib.policies import (
    epsilon_greedy,
    explore,
    initial_states,
    rollout,
    softmax_policy,
    softmax_score,
    uniform_policy,
)


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def ring(steps, dtype=torch.float64):
    """For each of `steps` an MDP on a ring of 3 states: from s, action a leads step + a further.

    A transition from s to t under a pays 100 a + 10 s + t; episodes start in state `step`.
    """
    shape = (len(steps), 3, 2, 3)
    transition, reward = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    for b, s, a, t in np.ndindex(*shape):
        transition[b, s, a, t] = t == (s + steps[b] + a) % 3
        reward[b, s, a, t] = 100 * a + 10 * s + t
    initial = torch.eye(3, dtype=dtype)[list(steps)]
    return TabularMDP(transition, reward, initial, 0.5)


def always(actions, dtype=torch.float64):
    """The policy that takes action ``actions[b][s]`` in state s of MDP b."""
    return torch.eye(2, dtype=dtype)[torch.tensor(actions)]


def copies(mdp, batch):
    return mdp[torch.zeros(batch, dtype=torch.int64)]


def assert_frequencies(outcomes, probabilities):
    """Pearson's chi-square of counted outcomes (N,) stays within 5 standard deviations."""
    probabilities = probabilities.double()
    counts = torch.bincount(outcomes, minlength=len(probabilities)).double()
    assert (counts[probabilities == 0] == 0).all()
    possible = probabilities > 0
    expected = len(outcomes) * probabilities[possible]
    degrees = len(expected) - 1
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


# --- tables of action probabilities


def test_uniform_policy():
    mdp = random_mdps(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(uniform_policy(mdp), [[[0.2] * 5] * 3] * 2)


def test_explore_by_hand():
    policy = torch.tensor([[[1, 0, 0, 0], [0.5, 0.5, 0, 0]]], dtype=torch.float64)
    expected = [[[0.7, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]]]
    close(explore(policy, 0.4), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_explore_with_0_changes_no_bit(generator, dtype):
    policy = torch.rand(2, 3, 4, generator=generator, dtype=dtype).softmax(-1)
    assert torch.equal(explore(policy, 0), policy)


def test_explore_with_1_is_uniform():
    close(explore(torch.eye(4, dtype=torch.float64)[None], 1), torch.full((1, 4, 4), 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_epsilon_greedy_by_hand(dtype):
    """With epsilon = 0.3 and 3 actions, 0.1 for each, and 0.7 for the best or shared by ties."""
    q = torch.tensor([[[1, 3, 2], [2, 1, 2], [5, 5, 5]]], dtype=dtype)
    expected = [[[0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [1 / 3, 1 / 3, 1 / 3]]]
    close(epsilon_greedy(q, 0.3), expected, atol=1e-7)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_softmax_policy_equals_loops(generator, dtype, error):
    preferences = torch.randn(2, 3, 4, generator=generator, dtype=dtype)
    expected = np.zeros((2, 3, 4))
    for b, s, a in np.ndindex(2, 3, 4):
        row = [math.exp(x) for x in preferences[b, s].tolist()]
        expected[b, s, a] = row[a] / sum(row)
    close(softmax_policy(preferences), expected, atol=error)


def test_softmax_policy_of_large_preferences():
    preferences = torch.tensor([[[1000.0, 1000.0, -1000.0]]], dtype=torch.float64)
    close(softmax_policy(preferences), [[[0.5, 0.5, 0]]])


def test_softmax_score_by_hand():
    """Features 1 and 5 with probabilities 3/4 and 1/4 have mean 2."""
    phi = torch.tensor([[[[1.0], [5.0]]]], dtype=torch.float64)
    policy = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64)
    close(softmax_score(phi, policy), [[[[-1], [3]]]])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_softmax_score_is_the_gradient_of_log_pi(generator, dtype, error):
    phi = torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype)
    lam = torch.randn(2, 5, generator=generator, dtype=dtype).requires_grad_()
    preferences = torch.stack([phi[b] @ lam[b] for b in range(2)])
    log_pi = preferences.log_softmax(-1)
    scores = softmax_score(phi, log_pi.detach().exp())
    for b, s, a in np.ndindex(2, 3, 4):
        (gradient,) = torch.autograd.grad(log_pi[b, s, a], lam, retain_graph=True)
        close(scores[b, s, a], gradient[b], atol=error)


@pytest.mark.parametrize(
    "function", [lambda q: explore(q, 0.1), lambda q: epsilon_greedy(q, 0.1), softmax_policy]
)
def test_policies_modify_nothing(generator, function):
    table = torch.rand(2, 3, 4, generator=generator)
    table = table / table.sum(-1, keepdim=True)
    before = table.clone()
    function(table)
    assert torch.equal(table, before)


def test_softmax_score_modifies_nothing(generator):
    phi, policy = torch.rand(1, 2, 3, 4, generator=generator), torch.full((1, 2, 3), 1 / 3)
    before = phi.clone(), policy.clone()
    softmax_score(phi, policy)
    assert torch.equal(phi, before[0])
    assert torch.equal(policy, before[1])


TABLE = torch.full((2, 3, 4), 0.25)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda table: explore(table, 0.1), "policy"),
        (lambda table: epsilon_greedy(table, 0.1), "q"),
        (softmax_policy, "preferences"),
        (lambda table: softmax_score(torch.ones(2, 3, 4, 5), table), "policy"),
    ],
)
def test_bad_tables_are_refused(function, name, spoil):
    with pytest.raises(ValueError, match=f"^{name}:"):
        function(spoil(TABLE))


def test_softmax_score_refuses_bad_features(spoil):
    with pytest.raises(ValueError, match=r"^phi:"):
        softmax_score(spoil(torch.ones(2, 3, 4, 5)), TABLE)


def test_softmax_score_refuses_tables_that_disagree(mismatch):
    with pytest.raises(ValueError, match=r"^policy:"):
        softmax_score(torch.ones(2, 3, 4, 5), mismatch(TABLE))


@pytest.mark.parametrize("function", [explore, epsilon_greedy])
@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan, None, "0.1"])
def test_epsilon_is_refused(function, epsilon):
    with pytest.raises(ValueError, match=r"^epsilon:"):
        function(TABLE, epsilon)


# --- first states


def test_initial_states_have_their_frequencies():
    initial = torch.tensor([[0, 0.1, 0, 0.6, 0.3, 0]], dtype=torch.float64)
    table = torch.full((1, 6, 1, 6), 1 / 6, dtype=torch.float64)
    mdp = copies(TabularMDP(table, table, initial, 0.5), 20_000)
    states = initial_states(mdp, torch.Generator().manual_seed(1))
    assert states.dtype == torch.int64
    assert_frequencies(states, initial[0])


def test_initial_states_are_drawn_from_each_mdp(generator):
    assert initial_states(ring((2, 0, 1)), generator).tolist() == [2, 0, 1]


@pytest.mark.parametrize("value", [None, 0])
def test_initial_states_refuse_what_is_no_generator(value):
    with pytest.raises(ValueError, match=r"^generator:"):
        initial_states(ring((0,)), value)


# --- trajectories


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rollout_of_deterministic_mdps_by_hand(generator, dtype):
    """First MDP: 0 -a1-> 1 -a0-> 1; second: 2 -a1-> 1 -a0-> 2 -a1-> 1, each in its own policy."""
    mdp, policy = ring((0, 1), dtype), always([[1, 0, 0], [0, 0, 1]], dtype)
    window = rollout(mdp, policy, 3, torch.tensor([0, 2]), generator)
    assert window.states.tolist() == [[0, 1, 1, 1], [2, 1, 2, 1]]
    assert window.actions.tolist() == [[1, 0, 0, 0], [1, 0, 1, 0]]
    assert window.rewards.tolist() == [[101, 11, 11], [121, 12, 121]]
    assert window.discount == 0.5
    assert window.rewards.dtype == dtype
    assert window.states.dtype == window.actions.dtype == torch.int64


def test_rollout_of_one_step_has_two_states_and_two_actions(generator):
    window = rollout(ring((0,)), always([[1, 0, 1]]), 1, torch.tensor([2]), generator)
    assert window.states.tolist() == [[2, 0]]
    assert window.actions.tolist() == [[1, 1]]
    assert window.rewards.tolist() == [[120]]


STOCHASTIC_POLICY = torch.tensor(
    [[0, 0.3, 0, 0.7, 0], [0.2, 0.2, 0.1, 0, 0.5]], dtype=torch.float64
)


def stochastic_mdp():
    """2 states, 5 actions; some transitions are impossible; rewards name the transition."""
    share = torch.tensor([0, 0.1, 0.5, 0.9, 1]).double()
    transition = torch.stack([share, 1 - share], -1).expand(1, 2, 5, 2)
    transition = torch.stack([transition[:, 0], transition[:, 1].flip(1)], 1)
    reward = torch.arange(20.0).double().reshape(1, 2, 5, 2)
    return TabularMDP(transition, reward, torch.tensor([[0.5, 0.5]]).double(), 0.5)


@pytest.fixture(scope="module")
def long_window():
    """20,000 trajectories of 4 transitions, half of them from each state."""
    batch = 20_000
    generator = torch.Generator().manual_seed(0)
    start = torch.arange(batch) % 2
    policy = STOCHASTIC_POLICY.expand(batch, 2, 5)
    return rollout(copies(stochastic_mdp(), batch), policy, 4, start, generator)


@pytest.mark.parametrize("time", range(5))
@pytest.mark.parametrize("state", range(2))
def test_actions_have_the_policy_as_frequencies(long_window, time, state):
    """The last action, at time 4, is drawn too."""
    taken = long_window.actions[:, time][long_window.states[:, time] == state]
    assert_frequencies(taken, STOCHASTIC_POLICY[state])


@pytest.mark.parametrize("time", range(4))
@pytest.mark.parametrize("state", range(2))
def test_transitions_have_their_frequencies(long_window, time, state):
    """Counted over pairs (action, next state), which also shows that draws are independent."""
    visited = long_window.states[:, time] == state
    outcome = 2 * long_window.actions[:, time] + long_window.states[:, time + 1]
    transition = stochastic_mdp().transition[0, state]  # (A, S)
    joint = STOCHASTIC_POLICY[state].unsqueeze(-1) * transition
    assert_frequencies(outcome[visited], joint.flatten())


def test_successive_actions_are_independent(long_window):
    """Of trajectories 0 -> 1 at times 0 and 1, counted over pairs (action, next action)."""
    states, actions = long_window.states, long_window.actions
    visited = (states[:, 0] == 0) & (states[:, 1] == 1)
    first = STOCHASTIC_POLICY[0] * stochastic_mdp().transition[0, 0, :, 1]
    joint = (first / first.sum()).unsqueeze(-1) * STOCHASTIC_POLICY[1]
    assert_frequencies((5 * actions[:, 0] + actions[:, 1])[visited], joint.flatten())


def test_rewards_are_those_of_the_visited_transitions(long_window):
    """The reward of (s, a, s') is 10 s + 2 a + s'."""
    states, actions = long_window.states, long_window.actions
    named = 10 * states[:, :-1] + 2 * actions[:, :-1] + states[:, 1:]
    assert torch.equal(long_window.rewards, named.double())


def test_rollout_starts_in_the_given_states(long_window):
    assert torch.equal(long_window.states[:, 0], torch.arange(20_000) % 2)


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_extreme_random_numbers_give_possible_outcomes(monkeypatch, generator, edge):
    """Outcomes 0, 2 and 4 of 5 are impossible, for actions as for states."""
    possible = torch.tensor([0, 0.5, 0, 0.5, 0])
    table = possible.expand(1, 5, 5, 5)
    mdp = TabularMDP(table, torch.zeros(1, 5, 5, 5), possible.unsqueeze(0), 0.5)
    monkeypatch.setattr(policies, "_uniform", lambda mdp, n, _: torch.full((n, mdp.batch), edge))
    outcome = 1 if edge == 0 else 3
    window = rollout(mdp, possible.expand(1, 5, 5), 2, torch.tensor([0]), generator)
    assert window.states[:, 1:].tolist() == [[outcome] * 2]
    assert window.actions.tolist() == [[outcome] * 3]
    assert initial_states(mdp, generator).tolist() == [outcome]


def test_rollout_follows_the_seed(generator):
    mdp = random_mdps(2, generator=generator)
    policy, state = uniform_policy(mdp), torch.tensor([0, 1])
    first, again, other = (
        rollout(mdp, policy, 20, state, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.states, again.states)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)


def test_rollout_follows_a_policy_whose_gradient_is_wanted(generator):
    """Nothing of the window depends smoothly on the policy or on the transitions."""
    mdp = ring((0, 1))
    mdp = TabularMDP(mdp.transition.requires_grad_(), mdp.reward, mdp.initial, 0.5)
    policy = always([[1, 0, 0], [0, 0, 1]]).requires_grad_()
    window = rollout(mdp, policy, 3, torch.tensor([0, 2]), generator)
    assert window.rewards.tolist() == [[101, 11, 11], [121, 12, 121]]
    assert not window.rewards.requires_grad


def test_rollout_modifies_nothing(generator):
    mdp, state = random_mdps(2, generator=generator), torch.tensor([0, 1])
    policy = uniform_policy(mdp)
    tensors = (mdp.transition, mdp.reward, mdp.initial, policy, state)
    before = [t.clone() for t in tensors]
    rollout(mdp, policy, 5, state, generator)
    assert all(map(torch.equal, tensors, before))


def test_rollout_refuses_bad_policies(generator, spoil):
    policy = always([[0, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"^policy:"):
        rollout(ring((0, 1)), spoil(policy), 2, torch.tensor([0, 0]), generator)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", torch.ones(1, 3, 2)),
        ("policy", torch.ones(2, 2, 2)),
        ("policy", torch.ones(2, 3, 1)),
        *itertools.product(["n"], [0, -1, 1.0, True, None]),
        *itertools.product(["generator"], [None, 0]),
        ("state", [0, 0]),
        ("state", 0),
        ("state", torch.zeros(2)),
        ("state", torch.zeros(2, dtype=torch.int32)),
        ("state", torch.zeros(1, dtype=torch.int64)),
        ("state", torch.zeros(2, 1, dtype=torch.int64)),
        ("state", torch.tensor([0, 3])),
        ("state", torch.tensor([-1, 0])),
    ],
)
def test_rollout_refuses(generator, name, value):
    good = {
        "mdp": ring((0, 1)),
        "policy": always([[0, 0, 0], [0, 0, 0]]),
        "n": 2,
        "state": torch.tensor([0, 0]),
        "generator": generator,
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        rollout(**{**good, name: value})


@pytest.mark.parametrize("row", [[1.0, 1.0], [1.5, -0.5], [0.0, 0.0], [0.5, 0.5 + 1e-9]])
def test_rollout_refuses_rows_that_are_no_distribution(row):
    mdp = TabularMDP(
        torch.full((1, 1, 2, 1), 1.0, dtype=torch.float64),
        torch.zeros(1, 1, 2, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        0.5,
    )
    policy = torch.tensor([[row]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^policy:"):
        rollout(mdp, policy, 3, torch.tensor([0]), torch.Generator().manual_seed(0))
