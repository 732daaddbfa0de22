"""MDPs and their exact solutions against hand-solved chains, enumeration and plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from icrl_lib.mdps import (
    TabularMDP,
    cumulative,
    expected_return,
    greedy_policy,
    policy_action_value,
    policy_value,
    random_mdps,
    value_iteration,
)


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def two_states(dtype=torch.float64):
    """In 0: stay for 1/2, or go for nothing. In 1: stay for 2, or go for nothing. Gamma = 1/2."""
    transition = [[[[1, 0], [0, 1]], [[0, 1], [1, 0]]]]
    reward = [[[[0.5, 9], [9, 0]], [[9, 2], [0, 9]]]]  # 9 where a transition never happens
    return TabularMDP(
        torch.tensor(transition, dtype=dtype),
        torch.tensor(reward, dtype=dtype),
        torch.tensor([[0.25, 0.75]], dtype=dtype),
        0.5,
    )


def general_mdps(generator, batch=4, n_states=3, n_actions=2, discount=0.5, dtype=torch.float64):
    """MDPs whose rewards depend on state, action and next state."""

    def rows(*shape):
        weights = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (weights / weights.sum(-1, keepdim=True)).to(dtype)

    shape = (batch, n_states, n_actions, n_states)
    reward = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return TabularMDP(rows(*shape), reward, rows(batch, n_states), discount)


def random_policy(generator, mdp):
    shape = (mdp.batch, mdp.n_states, mdp.n_actions)
    weights = torch.rand(shape, generator=generator, dtype=mdp.transition.dtype)
    return weights / weights.sum(-1, keepdim=True)


def chain(transition, reward, policy):
    """Transition matrix and mean rewards of one MDP under a policy, by plain loops."""
    n_states, n_actions, _ = transition.shape
    p, r = np.zeros((n_states, n_states)), np.zeros(n_states)
    for s, a, t in itertools.product(range(n_states), range(n_actions), range(n_states)):
        p[s, t] += policy[s, a] * transition[s, a, t]
        r[s] += policy[s, a] * transition[s, a, t] * reward[s, a, t]
    return p, r


def neumann_value(transition, reward, policy, discount, terms=80):
    """v = r + gamma P r + gamma^2 P^2 r + ..."""
    p, r = chain(transition, reward, policy)
    value, term = np.zeros_like(r), r
    for _ in range(terms):
        value, term = value + term, discount * p @ term
    return value


def optimal_action_values(transition, reward, discount):
    """Q* from the best of all deterministic policies."""
    n_states, n_actions, _ = transition.shape
    best = np.full(n_states, -np.inf)
    for actions in itertools.product(range(n_actions), repeat=n_states):
        p, r = chain(transition, reward, np.eye(n_actions)[list(actions)])
        best = np.maximum(best, np.linalg.solve(np.eye(n_states) - discount * p, r))
    q = np.zeros((n_states, n_actions))
    for s, a, t in itertools.product(range(n_states), range(n_actions), range(n_states)):
        q[s, a] += transition[s, a, t] * (reward[s, a, t] + discount * best[t])
    return q


def of_each(mdp, function, *others):
    """Apply a numpy function to every MDP of a batch."""
    tables = zip(mdp.transition.numpy(), mdp.reward.numpy(), *others, strict=True)
    return np.stack([function(*row) for row in tables])


# --- the MDP itself


def test_sizes():
    table = torch.full((5, 2, 3, 2), 0.5)
    mdp = TabularMDP(table, table, torch.full((5, 2), 0.5), 0.5)
    assert (mdp.batch, mdp.n_states, mdp.n_actions) == (5, 2, 3)


def test_expected_reward_of_two_states():
    close(two_states().expected_reward, [[[0.5, 0], [2, 0]]])


def test_expected_reward_equals_loops(generator):
    mdp = general_mdps(generator)
    expected = np.zeros((4, 3, 2))
    for b, s, a, t in np.ndindex(4, 3, 2, 3):
        expected[b, s, a] += mdp.transition[b, s, a, t].item() * mdp.reward[b, s, a, t].item()
    close(mdp.expected_reward, expected)


def test_cumulative_transition_of_two_states():
    close(two_states().cumulative_transition, [[[[1, 1], [0, 1]], [[0, 1], [1, 1]]]])


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2])])
def test_selection_of_mdps(generator, index):
    mdp = general_mdps(generator)
    chosen = mdp[index]
    for name in ("transition", "reward", "initial"):
        assert torch.equal(getattr(chosen, name), getattr(mdp, name)[1:3])


def test_selection_keeps_the_discount():
    assert two_states()[:1].discount == 0.5


def test_to_keeps_rows_summing_to_1(generator):
    mdp = random_mdps(50, generator=generator).to(torch.float64)
    for rows in (mdp.transition, mdp.initial):
        close(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-15)


def test_to_changes_no_number_by_more_than_rounding(generator):
    mdp = general_mdps(generator)
    narrow = mdp.to(torch.float32)
    for name in ("transition", "reward", "initial"):
        close(getattr(narrow, name), getattr(mdp, name).float(), atol=1e-6)
    assert narrow.discount == 0.5


@pytest.mark.parametrize("name", ["transition", "reward", "initial"])
def test_mdp_refuses_bad_tensors(name, spoil):
    good = vars(two_states())
    with pytest.raises(ValueError, match=f"^{name}:"):
        TabularMDP(**{**good, name: spoil(good[name])})


@pytest.mark.parametrize("name", ["transition", "reward", "initial"])
def test_mdp_refuses_tensors_that_disagree(name, mismatch):
    good = vars(two_states())
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        TabularMDP(**{**good, name: mismatch(good[name])})


@pytest.mark.parametrize("discount", [1, 1.5, -0.1, math.nan, None, "0.5"])
def test_mdp_refuses_discount(discount):
    with pytest.raises(ValueError, match=r"^discount:"):
        TabularMDP(**{**vars(two_states()), "discount": discount})


@pytest.mark.parametrize("name", ["transition", "initial"])
@pytest.mark.parametrize("row", [[-0.5, 1.5], [0.5, 0.4], [0.5, 0.5 + 1e-9]])
def test_mdp_refuses_rows_that_are_no_distribution(name, row):
    good = vars(two_states())
    bad = good[name].clone()
    bad[..., -1, :] = torch.tensor(row, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        TabularMDP(**{**good, name: bad})


# --- the end of an episode


def walk(discount, terminal=2, back=0.0, dtype=torch.float64):
    """From 0 to 1 for 1, from 1 to the end for 2 or `back` to 0 for 4; then on from 0 or 1."""
    transition = [[0, 1, 0], [back, 0, 1 - back], [0.5, 0.5, 0]]
    reward = [[9, 1, 9], [4, 9, 2], [0, 0, 9]]
    tables = (torch.tensor(t, dtype=dtype).reshape(1, 3, 1, 3) for t in (transition, reward))
    return TabularMDP(*tables, torch.tensor([[0.5, 0.5, 0]], dtype=dtype), discount, terminal)


ONLY = torch.ones(1, 3, 1, dtype=torch.float64)


def test_values_end_with_the_episode():
    """v(1) = 2 and v(0) = 1 + 2 / 2."""
    close(policy_value(walk(0.5), ONLY), [[2, 2, 0]])


def test_action_values_end_with_the_episode():
    close(policy_action_value(walk(0.5), ONLY), [[[2], [2], [0]]])


def test_optimal_values_end_with_the_episode():
    close(value_iteration(walk(0.5)), [[[2], [2], [0]]])


def test_returns_end_with_the_episode():
    close(expected_return(walk(0.25), ONLY), [(1.5 + 2) / 2])


def test_values_without_discount():
    """v(1) = (4 + v(0)) / 2 + 2 / 2 and v(0) = 1 + v(1), so that v(1) = 7."""
    close(policy_value(walk(1, back=0.5), ONLY), [[8, 7, 0]])


@pytest.mark.parametrize("terminal", [None, 2])
def test_discount_1_is_refused_where_a_policy_goes_on(terminal):
    with pytest.raises(ValueError, match=r"^discount: .*less than 1"):
        walk(1, terminal, back=1.0)


def test_one_endless_policy_is_enough():
    """Whoever always takes action 1 in state 0 never ends; the message says so."""
    transition = torch.tensor([[[0, 1.0], [1, 0]], [[0, 1], [0, 1]]])[None]
    with pytest.raises(ValueError, match="MDP 0 from state 0"):
        TabularMDP(transition, torch.zeros_like(transition), torch.eye(2)[:1], 1, terminal=1)


def test_selection_and_conversion_keep_the_end():
    assert walk(0.5)[:1].terminal == 2
    assert walk(0.5).to(torch.float32).terminal == 2


@pytest.mark.parametrize("terminal", [3, -1, 1.0, True, "2"])
def test_mdp_refuses_terminal_states(terminal):
    with pytest.raises(ValueError, match=r"^terminal:"):
        walk(0.5, terminal)


def test_the_end_pays_nothing():
    with pytest.raises(ValueError, match=r"^reward: expected 0"):
        walk(0.5, terminal=1)


# --- the random family


def test_random_mdps_have_the_paper_sizes(generator):
    mdp = random_mdps(2, generator=generator)
    assert mdp.transition.shape == mdp.reward.shape == (2, 9, 4, 9)
    assert mdp.initial.shape == (2, 9)
    assert mdp.discount == 0.5


def test_random_mdps_take_sizes_and_discount(generator):
    mdp = random_mdps(3, 5, 2, 0.9, generator=generator)
    assert mdp.transition.shape == (3, 5, 2, 5)
    assert mdp.discount == 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_mdps_have_the_dtype(generator, dtype):
    mdp = random_mdps(1, generator=generator, dtype=dtype)
    assert mdp.transition.dtype == mdp.reward.dtype == mdp.initial.dtype == dtype


@pytest.mark.parametrize("name", ["transition", "initial"])
def test_rows_are_dirichlet(generator, name):
    """Dirichlet(1, 1, 1): mean 1/3, variance 1/18, covariance -1/36, P(p > 1/2) = 1/4."""
    mdp = random_mdps(20_000, 3, 1, generator=generator, dtype=torch.float64)
    rows = getattr(mdp, name).reshape(-1, 3)
    close(rows.mean(0), [1 / 3] * 3, atol=0.01)
    close(rows.T.cov(), torch.eye(3) / 12 - 1 / 36, atol=0.003)
    close((rows > 0.5).double().mean(0), [1 / 4] * 3, atol=0.02)


def test_rows_are_independent(generator):
    mdp = random_mdps(20_000, 2, 2, generator=generator, dtype=torch.float64)
    first = torch.cat([mdp.transition[..., 0].flatten(1), mdp.initial[:, :1]], 1)  # (B, 5)
    close(first.T.corrcoef(), torch.eye(5), atol=0.03)


EVERY = slice(None)
each_reward = pytest.mark.parametrize(
    ("reward", "free"),
    [("a,s'", (0, EVERY, EVERY)), ("s,a", (EVERY, EVERY, 0)), ("s,a,s'", (EVERY, EVERY, EVERY))],
)


@each_reward
def test_rewards_are_uniform(generator, reward, free):
    """On (-1, 1): mean 0, variance 1/3, fourth moment 1/5, and both ends are reached."""
    mdp = random_mdps(5_000, 3, 2, reward=reward, generator=generator, dtype=torch.float64)
    numbers = mdp.reward[(EVERY, *free)]
    moments = torch.stack([(numbers**k).mean() for k in (1, 2, 4)])
    close(moments, [0, 1 / 3, 1 / 5], atol=0.01)
    assert -1 < numbers.min() < -0.999
    assert 0.999 < numbers.max() < 1


@each_reward
def test_rewards_are_independent_in_their_arguments(generator, reward, free):
    mdp = random_mdps(20_000, 2, 2, reward=reward, generator=generator, dtype=torch.float64)
    numbers = mdp.reward[(EVERY, *free)].flatten(1).T
    close(numbers.corrcoef(), torch.eye(len(numbers)), atol=0.03)


@pytest.mark.parametrize("options", [{}, {"reward": "a,s'"}])
def test_rewards_do_not_depend_on_the_state_that_is_left(generator, options):
    reward = random_mdps(3, generator=generator, **options).reward
    assert torch.equal(reward, reward[:, :1].expand_as(reward))


def test_rewards_may_not_depend_on_the_state_that_is_reached(generator):
    reward = random_mdps(3, reward="s,a", generator=generator).reward
    assert torch.equal(reward, reward[..., :1].expand_as(reward))


@pytest.mark.parametrize("name", ["transition", "reward", "initial"])
def test_random_mdps_follow_the_seed(name):
    first, again, other = (
        getattr(random_mdps(2, generator=torch.Generator().manual_seed(seed)), name)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["batch", "n_states", "n_actions"], [0, -1, 2.0, True, None]),
        *itertools.product(["discount"], [1, -0.1, math.nan, None]),
        *itertools.product(["reward"], ["s'", "s,a,", "", None, 1]),
        *itertools.product(["generator"], [None, 0]),
    ],
)
def test_random_mdps_refuse(generator, name, value):
    good = {"batch": 1, "n_states": 2, "n_actions": 2, "discount": 0.5, "generator": generator}
    with pytest.raises(ValueError, match=f"^{name}:"):
        random_mdps(**{**good, name: value})


# --- optimal values


def test_value_iteration_of_two_states():
    """Staying in 1 is worth 2 / (1 - 1/2) = 4, going there from 0 is worth half of it."""
    close(value_iteration(two_states()), [[[1.5, 2], [4, 1]]])


@pytest.mark.parametrize("discount", [0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_iteration_equals_enumeration_of_policies(generator, discount, dtype):
    """Up to rounding errors of values of at most max |r| / (1 - gamma), summed with gamma."""
    mdp = general_mdps(generator, discount=discount)
    expected = of_each(mdp, lambda p, r: optimal_action_values(p, r, discount))
    rounding = 8 * torch.finfo(dtype).eps * mdp.reward.abs().max().item() / (1 - discount) ** 2
    close(value_iteration(mdp.to(dtype)), expected, atol=rounding)


@pytest.mark.parametrize("tolerance", [1, 0.1, 1e-3, 1e-6])
def test_value_iteration_is_within_its_tolerance(tolerance):
    """One state, reward 1, gamma = 0.9: value 10, and the bound on the error is tight."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    q = value_iteration(TabularMDP(one, one, one[0, 0], 0.9), tolerance)
    assert abs(q.item() - 10) <= tolerance * (1 + 1e-9)


def test_value_iteration_stops_when_the_tolerance_is_met():
    """Rewards are [[1/2, 0], [2, 0]]: one update adds half of the best next one."""
    close(value_iteration(two_states(), tolerance=10.0), [[[0.75, 1], [3, 0.25]]])


def test_value_iteration_without_rewards_is_0(generator):
    mdp = general_mdps(generator)
    mdp = TabularMDP(mdp.transition, torch.zeros_like(mdp.reward), mdp.initial, 0.9)
    close(value_iteration(mdp), torch.zeros(4, 3, 2), atol=0)


@pytest.mark.parametrize("tolerance", [0, -1, math.nan, "small"])
def test_value_iteration_refuses_tolerance(tolerance):
    with pytest.raises(ValueError, match=r"^tolerance:"):
        value_iteration(two_states(), tolerance)


# --- values of a policy


UNIFORM = torch.full((1, 2, 2), 0.5, dtype=torch.float64)


def test_policy_value_of_two_states():
    """v0 = (1/2 + v0/2)/2 + v1/4 and v1 = (2 + v1/2)/2 + v0/4, hence 7/8 and 13/8."""
    close(policy_value(two_states(), UNIFORM), [[7 / 8, 13 / 8]])


def test_policy_action_value_of_two_states():
    expected = [[[15 / 16, 13 / 16], [45 / 16, 7 / 16]]]
    close(policy_action_value(two_states(), UNIFORM), expected)


def test_expected_return_of_two_states():
    """7/8 with probability 1/4, 13/8 with probability 3/4."""
    close(expected_return(two_states(), UNIFORM), [23 / 16])


@pytest.mark.parametrize("discount", [0, 0.5])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_policy_value_equals_its_series(generator, discount, dtype, error):
    mdp = general_mdps(generator, discount=discount)
    policy = random_policy(generator, mdp)
    expected = of_each(mdp, lambda p, r, pi: neumann_value(p, r, pi, discount), policy.numpy())
    value = policy_value(mdp.to(dtype), policy.to(dtype))
    close(value, expected, atol=error)


def test_policy_action_value_equals_loops(generator):
    mdp = general_mdps(generator)
    policy = random_policy(generator, mdp)
    value = of_each(mdp, lambda p, r, pi: neumann_value(p, r, pi, 0.5), policy.numpy())
    expected = np.zeros((4, 3, 2))
    for b, s, a, t in np.ndindex(4, 3, 2, 3):
        paid = mdp.reward[b, s, a, t].item() + 0.5 * value[b, t]
        expected[b, s, a] += mdp.transition[b, s, a, t].item() * paid
    close(policy_action_value(mdp, policy), expected)


def test_expected_return_equals_its_series(generator):
    mdp = general_mdps(generator)
    policy = random_policy(generator, mdp)
    value = of_each(mdp, lambda p, r, pi: neumann_value(p, r, pi, 0.5), policy.numpy())
    close(expected_return(mdp, policy), (mdp.initial.numpy() * value).sum(-1))


@pytest.mark.parametrize("function", [policy_value, policy_action_value, expected_return])
def test_evaluation_modifies_nothing(generator, function):
    mdp = general_mdps(generator)
    policy = random_policy(generator, mdp)
    tensors = (mdp.transition, mdp.reward, mdp.initial, policy)
    before = [t.clone() for t in tensors]
    function(mdp, policy)
    assert all(map(torch.equal, tensors, before))


def test_value_iteration_modifies_nothing(generator):
    mdp = general_mdps(generator)
    before = [mdp.transition.clone(), mdp.reward.clone(), mdp.expected_reward.clone()]
    value_iteration(mdp)
    assert all(map(torch.equal, (mdp.transition, mdp.reward, mdp.expected_reward), before))


@pytest.mark.parametrize("function", [policy_value, policy_action_value, expected_return])
def test_evaluation_refuses_bad_policies(function, spoil):
    with pytest.raises(ValueError, match=r"^policy:"):
        function(two_states(), spoil(UNIFORM))


@pytest.mark.parametrize("function", [policy_value, policy_action_value, expected_return])
def test_evaluation_refuses_policies_of_another_mdp(function, mismatch):
    with pytest.raises(ValueError, match=r"^policy:"):
        function(two_states(), mismatch(UNIFORM))


@pytest.mark.parametrize("function", [policy_value, policy_action_value, expected_return])
@pytest.mark.parametrize("row", [[0.5, 0.6], [1.5, -0.5]])
def test_evaluation_refuses_rows_that_are_no_distribution(function, row):
    policy = torch.tensor(row, dtype=torch.float64).expand(1, 2, 2)
    with pytest.raises(ValueError, match=r"^policy: expected"):
        function(two_states(), policy)


# --- small tools


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_policy_shares_ties(dtype):
    q = torch.tensor([[[3, 1, 2], [2, 2, 1], [0, 0, 0], [-5, -1, -1]]], dtype=dtype)
    expected = [[[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]]
    close(greedy_policy(q), expected, atol=1e-7)


def test_cumulative_by_hand():
    close(cumulative(torch.tensor([[0.25, 0.25, 0.5], [0, 1, 0]])), [[0.25, 0.5, 1], [0, 1, 1]])


def test_cumulative_ends_in_exactly_1_from_the_last_possible_outcome_on():
    """Ten times 0.1, added one after the other, is less than 1."""
    probabilities = torch.tensor([0.1] * 10 + [0.0, 0.0], dtype=torch.float64)
    total = 0.0
    for probability in probabilities.tolist():  # `sum` corrects what it loses, from Python 3.12 on
        total += probability
    assert total < 1
    assert cumulative(probabilities)[9:].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("u", "outcome"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-24, 3)])
def test_a_draw_from_cumulative_never_has_probability_0(u, outcome):
    table = cumulative(torch.tensor([0, 0.5, 0, 0.5, 0]))
    assert (u >= table[:-1]).sum() == outcome


def test_value_iteration_refuses_rewards_that_overflow():
    mdp = TabularMDP(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3e38), torch.ones(1, 1), 0.9)
    with pytest.raises(ValueError, match=r"^mdp\.reward: .*overflow"):
        value_iteration(mdp)


def test_greedy_policy_refuses_nan():
    with pytest.raises(ValueError, match=r"^q:"):
        greedy_policy(torch.full((1, 2, 2), math.nan))
