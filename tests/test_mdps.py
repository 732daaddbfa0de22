"""MDPs and their exact solutions against hand-solved chains, enumeration and plain loops."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from icrl_lib.mdps import (
    TabularMDP,
    average_reward,
    concatenate,
    cumulative,
    expected_return,
    greedy_policy,
    policy_action_value,
    policy_value,
    random_mdps,
    stationary_distribution,
    value_iteration,
)
from icrl_lib.policies import rollout


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


def with_gradient(mdp):
    """The same MDPs on tables of their own, whose gradients are wanted."""
    tables = (t.clone().requires_grad_() for t in (mdp.transition, mdp.reward))
    return TabularMDP(*tables, mdp.initial, mdp.discount)


@pytest.mark.parametrize("name", ["expected_reward", "cumulative_transition"])
@pytest.mark.parametrize("looked_at", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tables_have_their_gradient_whoever_looked_at_them_before(generator, name, looked_at):
    """Twice, as the second backward pass needs a graph of its own."""
    mdp = general_mdps(generator)
    used, fresh = with_gradient(mdp), with_gradient(mdp)
    with looked_at():
        getattr(used, name)
    (expected,) = torch.autograd.grad(getattr(fresh, name).square().sum(), fresh.transition)
    for _ in range(2):
        (slope,) = torch.autograd.grad(getattr(used, name).square().sum(), used.transition)
        close(slope, expected, atol=0)


@pytest.mark.parametrize("name", ["transition", "reward"])
def test_solutions_follow_a_change_in_place(generator, name):
    """Rewards raised by 1 are worth 1 / (1 - gamma) more; a transition may move to another row."""
    mdp = general_mdps(generator)
    policy = random_policy(generator, mdp)
    expected_return(mdp, policy)
    table = getattr(mdp, name)
    table.copy_(table.flip(2) + (name == "reward"))
    fresh = TabularMDP(mdp.transition.clone(), mdp.reward.clone(), mdp.initial, mdp.discount)
    for function in (expected_return, policy_action_value, average_reward):
        assert torch.equal(function(mdp, policy), function(fresh, policy))
    assert torch.equal(value_iteration(mdp), value_iteration(fresh))


def drift(mdp):
    """The state after one step of every MDP, from state 0."""
    policy = torch.full((mdp.batch, 2, 2), 0.5, dtype=torch.float64)
    start = torch.zeros(mdp.batch, dtype=torch.int64)
    seed = torch.Generator().manual_seed(0)
    return rollout(mdp, policy, 1, start, seed).states[:, 1].tolist()


def leads_to(state):
    """Whatever is done, the next of two states is `state`."""
    transition = torch.eye(2, dtype=torch.float64)[state].expand(3, 2, 2, 2).clone()
    return TabularMDP(
        transition, torch.zeros_like(transition), torch.full((3, 2), 0.5).double(), 0.5
    )


@pytest.mark.parametrize("name", ["transition", "cumulative_transition"])
def test_rollouts_follow_a_change_in_place(name):
    mdp = leads_to(0)
    assert drift(mdp) == [0, 0, 0]
    getattr(mdp, name).copy_(leads_to(1).transition)
    assert drift(mdp) == ([1, 1, 1] if name == "transition" else [0, 0, 0])


def test_running_sums_are_kept_from_window_to_window():
    mdp = with_gradient(two_states())
    with torch.no_grad():
        assert mdp.cumulative_transition is mdp.cumulative_transition


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_used_mdps_follow_their_own_tables(duplicate):
    """A copy counts its changes from 0 again, which must not be taken for the count before."""
    mdp = leads_to(0)
    mdp.transition.mul_(1)
    drift(mdp)
    other = duplicate(mdp)
    other.transition.copy_(leads_to(1).transition)
    assert drift(other) == [1, 1, 1]
    assert drift(mdp) == [0, 0, 0]


def test_mdps_can_be_copied_after_use_with_gradients():
    mdp = with_gradient(two_states())
    policy_value(mdp, UNIFORM).sum().backward()
    drift(mdp)
    other = copy.deepcopy(mdp)
    assert torch.equal(other.reward, mdp.reward)
    assert other.reward is not mdp.reward


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


def test_concatenation_undoes_cutting(generator):
    mdp = general_mdps(generator)
    joined = concatenate(mdp[:1], mdp[1:3], mdp[3:])
    for name in ("transition", "reward", "initial"):
        assert torch.equal(getattr(joined, name), getattr(mdp, name))
    assert joined.discount == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_states": 4}, r"^mdps\[1\]: expected n_states 3 as in mdps\[0\], got 4$"),
        ({"n_actions": 3}, r"^mdps\[1\]: expected n_actions 2 as in mdps\[0\], got 3$"),
        ({"discount": 0.9}, r"^mdps\[1\]: expected discount 0\.5 as in mdps\[0\], got 0\.9$"),
        ({"dtype": torch.float32}, r"^mdps\[1\]: expected dtype torch\.float64 as in mdps\[0\]"),
    ],
)
def test_mdps_that_differ_are_not_concatenated(generator, change, message):
    with pytest.raises(ValueError, match=message):
        concatenate(general_mdps(generator), general_mdps(generator, **change))


def test_mdps_that_end_elsewhere_are_not_concatenated():
    with pytest.raises(ValueError, match=r"^mdps\[1\]: expected terminal 2 as in .*, got None$"):
        concatenate(walk(0.5), walk(0.5, None))


def test_concatenation_keeps_the_end():
    assert concatenate(walk(0.5), walk(0.5, back=0.5)).terminal == 2


def test_concatenating_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^mdps: expected at least one"):
        concatenate()


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


def test_optimal_values_without_discount():
    close(value_iteration(walk(1, back=0.5)), [[[8], [7], [0]]])


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


@each_reward
def test_every_reward_can_be_changed_alone(generator, reward, free):
    table = random_mdps(2, reward=reward, generator=generator).reward
    before = table.clone()
    table[0, 0, 0, 0] += 1
    assert (table != before).sum() == 1


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


NEAR_1 = [0.999, 0.9999, 0.999999]


def fraction_optimum(transition, reward, discount):
    """Q* in exact arithmetic: policy iteration on fractions, by Gauss and Jordan."""
    n_states, n_actions, _ = transition.shape
    states, actions, gamma = range(n_states), range(n_actions), Fraction(discount)
    P = [[[Fraction(x) for x in row] for row in of_state] for of_state in transition.tolist()]
    P = [[[x / sum(row) for x in row] for row in of_state] for of_state in P]
    r = [[sum(map(Fraction.__mul__, P[s][a], map(Fraction, reward[s, a].tolist())))
          for a in actions] for s in states]  # fmt: skip
    chosen = [0] * n_states
    while True:
        rows = [[(s == t) - gamma * P[s][a][t] for t in states] + [r[s][a]]
                for s, a in enumerate(chosen)]  # fmt: skip
        for k in states:
            rows[k] = [x / rows[k][k] for x in rows[k]]
            for i in states:
                if i != k:
                    rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
        q = [[r[s][a] + gamma * sum(P[s][a][t] * rows[t][-1] for t in states) for a in actions]
             for s in states]  # fmt: skip
        better = [a if q[s][a] == max(q[s]) else q[s].index(max(q[s]))
                  for s, a in enumerate(chosen)]  # fmt: skip
        if better == chosen:
            return np.array(q, dtype=float)
        chosen = better


@pytest.mark.parametrize("discount", NEAR_1)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1.2e-7)])
def test_value_iteration_is_exact_near_discount_1(generator, discount, dtype, error):
    """Relative to the largest value; in single precision no closer number could be returned."""
    mdp = random_mdps(2, 5, 2, discount, generator=generator, dtype=dtype)
    expected = of_each(mdp, lambda p, r: fraction_optimum(p, r, discount))
    relative = np.abs(value_iteration(mdp).numpy() - expected) / np.abs(expected).max()
    assert relative.max() < error


@pytest.mark.parametrize("discount", NEAR_1)
def test_values_of_a_policy_are_as_good_as_single_precision_can_be(generator, discount):
    mdp = general_mdps(generator, discount=discount, dtype=torch.float32)
    policy = random_policy(generator, mdp)
    exact = mdp.to(torch.float64)
    doubled = policy.double() / policy.double().sum(-1, keepdim=True)
    for function in (policy_value, policy_action_value, expected_return):
        expected = function(exact, doubled)
        error = (function(mdp, policy) - expected).abs().max() / expected.abs().max()
        assert error < 3e-7


def test_value_iteration_solves_the_linear_program(generator):
    """v* is the smallest v that no action improves on: min sum v, v >= r(s, a) + gamma P v."""
    mdp = random_mdps(3, 6, 3, 0.9, generator=generator, dtype=torch.float64)

    def by_program(transition, reward):
        r = (transition * reward).sum(-1)
        rows = 0.9 * transition - np.eye(6)[:, None]
        solved = linprog(np.ones(6), A_ub=rows.reshape(-1, 6), b_ub=-r.ravel(), bounds=(None, None))
        return r + 0.9 * transition @ solved.x

    close(value_iteration(mdp), of_each(mdp, by_program), atol=1e-9)


@pytest.mark.parametrize("discount", [0.9, *NEAR_1])
def test_ties_do_not_cycle(discount):
    """An empty grid of 6 by 6 where every step costs 1: nearly every state has two best ways."""
    size = 6
    transition = torch.zeros(1, size**2, 4, size**2, dtype=torch.float64)
    for row, column in np.ndindex(size, size):
        for a, (down, right) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):
            to = size * min(max(row + down, 0), 5) + min(max(column + right, 0), 5)
            transition[0, size * row + column, a, to] = 1
    transition[0, -1] = torch.eye(size**2)[-1]
    reward = -torch.ones_like(transition)
    reward[0, -1] = 0
    mdp = TabularMDP(transition, reward, transition[:, 0, 0], discount)
    steps = [10 - row - column for row, column in np.ndindex(size, size)]
    expected = [[-sum(discount**k for k in range(n)) for n in steps]]
    close(value_iteration(mdp).amax(-1), expected, atol=1e-9)


def test_values_of_a_batch_are_found_whatever_the_others_need(generator):
    """The corridor needs an improvement for every state; the others are done after a few."""
    n = 12
    stay = torch.eye(n, dtype=torch.float64)
    transition = torch.stack([stay, stay.roll(1, 1)], 1)[None].clone()
    transition[0, -1] = stay[-1]
    reward = torch.zeros_like(transition)
    reward[0, -2, 1] = 1
    corridor = TabularMDP(transition, reward, transition[:, 0, 0], 0.9)
    others = random_mdps(3, n, 2, 0.9, generator=generator, dtype=torch.float64)
    q = value_iteration(concatenate(others[:1], corridor, others[1:]))
    close(q[1].amax(-1), [*(0.9**k for k in range(10, -1, -1)), 0])
    close(q[[0, 2, 3]], value_iteration(others), atol=1e-14)


def test_value_iteration_without_rewards_is_0(generator):
    mdp = general_mdps(generator)
    mdp = TabularMDP(mdp.transition, torch.zeros_like(mdp.reward), mdp.initial, 0.9)
    close(value_iteration(mdp), torch.zeros(4, 3, 2), atol=0)


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


def test_states_that_are_left_for_good_have_share_0(generator):
    """States 3 to 8 lead to 0, 1 and 2, which never leave: power iteration says where time goes."""
    mdp = random_mdps(50, 9, 1, generator=generator, dtype=torch.float64)
    transition = mdp.transition.clone()
    transition[:, :3, :, 3:] = 0
    transition /= transition.sum(-1, keepdim=True)
    mdp = TabularMDP(transition, mdp.reward, mdp.initial, 0.5)
    share = stationary_distribution(mdp, torch.ones(50, 9, 1, dtype=torch.float64))
    expected = np.stack([np.linalg.matrix_power(p, 2**10)[0] for p in transition[:, :, 0].numpy()])
    assert share.min() >= 0
    close(share, expected)
