"""Gymnasium's worlds against Gymnasium's own steps, and tabular MDPs as environments."""

import dataclasses
import itertools
import subprocess
import sys
from collections import Counter, defaultdict
from types import SimpleNamespace

import gymnasium
import pytest
import torch
from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.utils.env_checker import check_env

from icrl_lib import constructions, mdps, worlds
from icrl_lib.attention import linear_self_attention
from icrl_lib.features import random_features
from icrl_lib.mdps import expected_return, greedy_policy, policy_value, value_iteration
from icrl_lib.policies import initial_states, rollout, uniform_policy
from icrl_lib.prompts import sarsa_prompt

DETERMINISTIC = {
    "dry lake": lambda: FrozenLakeEnv(is_slippery=False),
    "cliff": CliffWalkingEnv,
    "taxi": TaxiEnv,
}
RANDOM = {
    "lake": FrozenLakeEnv,
    "lake of 64": lambda: FrozenLakeEnv(map_name="8x8"),
    "slippery cliff": lambda: CliffWalkingEnv(is_slippery=True),
}
deterministic = pytest.mark.parametrize("make", DETERMINISTIC.values(), ids=DETERMINISTIC)
at_random = pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
everywhere = pytest.mark.parametrize(
    "make", (DETERMINISTIC | RANDOM).values(), ids=DETERMINISTIC | RANDOM
)


def read(environment, discount=0.9, dtype=torch.float64):
    return worlds.from_gymnasium(environment, discount, dtype=dtype)


def step_from(environment, s, a):
    """Where a step leads, in the numbering of the MDP, and what it pays."""
    environment.s = s
    s_next, reward, terminated, truncated, _ = environment.step(a)
    assert not truncated
    return environment.observation_space.n if terminated else s_next, reward


def table(outcomes, n_states=2):
    """A world of one action in which state 0 has these outcomes and the others stay."""
    stay = {s: {0: [(1.0, s, 0.0, False)]} for s in range(1, n_states)}
    return SimpleNamespace(P={0: {0: outcomes}, **stay}, initial_state_distrib=[1.0, 0.0])


@deterministic
def test_every_step_of_a_deterministic_world_is_in_the_table(make):
    environment = make()
    environment.reset(seed=0)
    mdp = read(environment)
    for s, a in itertools.product(range(mdp.n_states - 1), range(mdp.n_actions)):
        s_next, reward = step_from(environment, s, a)
        assert mdp.transition[0, s, a, s_next] == 1
        assert mdp.reward[0, s, a, s_next] == reward


@at_random
def test_steps_of_a_random_world_follow_the_table(make):
    environment = make()
    environment.reset(seed=0)
    mdp = read(environment)
    n = 300
    for s, a in itertools.product(range(mdp.n_states - 1), range(mdp.n_actions)):
        steps = [step_from(environment, s, a) for _ in range(n)]
        seen = Counter(s_next for s_next, _ in steps)
        p = mdp.transition[0, s, a]
        assert set(seen) == set(p.nonzero().flatten().tolist())
        for s_next, count in seen.items():
            deviation = (p[s_next] * (1 - p[s_next]) / n).sqrt()
            assert abs(count / n - p[s_next]) <= 5 * deviation
        rewards = [reward for _, reward in steps]  # of one next state they can differ
        bound = 5 * (max(rewards) - min(rewards)) / 2 / n**0.5
        assert abs(sum(rewards) / n - mdp.expected_reward[0, s, a]) <= bound + 1e-12


@everywhere
def test_first_states_are_those_of_reset(make):
    environment = make()
    mdp = read(environment)
    seen = Counter(environment.reset(seed=seed)[0] for seed in range(3000))
    assert set(seen) == set(mdp.initial[0].nonzero().flatten().tolist())


@everywhere
def test_the_terminal_state_is_the_last_one_and_absorbs(make):
    mdp = read(make())
    assert mdp.n_states == make().observation_space.n + 1
    assert (mdp.transition[0, -1, :, -1] == 1).all()
    assert (mdp.reward[0, -1] == 0).all()
    assert mdp.initial[0, -1] == 0


@everywhere
def test_optimal_values_are_those_of_the_episodes(make):
    """Value iteration over Gymnasium's table, where nothing follows a terminated transition."""
    environment, discount = make(), 0.9
    values = dict.fromkeys(environment.P, 0.0)
    for _ in range(300):  # 0.9^300 is 2e-14
        values = {
            s: max(
                sum(p * (r + (0.0 if end else discount * values[t])) for p, t, r, end in outcomes)
                for outcomes in actions.values()
            )
            for s, actions in environment.P.items()
        }
    v = value_iteration(read(environment, discount))[0].amax(-1)
    expected = torch.tensor([*values.values(), 0.0], dtype=torch.float64)
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-9)


def test_optimum_of_frozen_lake():
    """14/17 of the episodes reach the goal when there is no hurry."""
    mdp = read(FrozenLakeEnv(), 0.99)
    assert value_iteration(mdp)[0, 0].max() == pytest.approx(0.5420259, abs=1e-7)
    patient = greedy_policy(value_iteration(mdp))[:, :-1]
    p = torch.einsum("bsa,bsat->bst", patient, mdp.transition[:, :-1])[0]
    inside = [s for s in range(16) if s not in (5, 7, 11, 12, 15)]
    reward = (patient * mdp.expected_reward[:, :-1]).sum(-1)[0, inside]
    identity = torch.eye(len(inside), dtype=torch.float64)
    success = torch.linalg.solve(identity - p[inside][:, inside], reward)
    assert success[0] == pytest.approx(14 / 17, abs=1e-12)


def test_optimum_of_cliff_walking_is_thirteen_steps():
    mdp = read(CliffWalkingEnv(), 0.9)
    best = expected_return(mdp, greedy_policy(value_iteration(mdp))).item()
    assert best == pytest.approx(-(1 - 0.9**13) / (1 - 0.9), abs=1e-12)


def test_a_state_can_be_entered_with_and_without_an_end():
    """Taxi's state 0: entered by the delivery, which ends the episode, and by driving."""
    mdp, taxi = read(TaxiEnv()), TaxiEnv()
    in_taxi, beside = taxi.encode(0, 0, 4, 0), taxi.encode(1, 0, 0, 0)
    assert taxi.P[in_taxi][5] == [(1.0, 0, 20, True)]
    assert mdp.transition[0, in_taxi, 5, 500] == 1
    assert mdp.transition[0, beside, 1, 0] == 1


def test_entries_with_one_next_state_are_added_and_their_rewards_averaged():
    mdp = read(table([(0.25, 1, 4.0, False), (0.25, 0, 0.5, False), (0.5, 1, 1.0, False)]))
    assert mdp.transition[0, 0, 0].tolist() == [0.25, 0.75, 0]
    assert mdp.reward[0, 0, 0].tolist() == [0.5, 2.0, 0]


def test_ending_and_going_on_in_one_state_are_two_places():
    mdp = read(table([(0.25, 1, 4.0, True), (0.75, 1, 1.0, False)]))
    assert mdp.transition[0, 0, 0].tolist() == [0, 0.75, 0.25]
    assert mdp.reward[0, 0, 0].tolist() == [0, 1.0, 4.0]


def test_an_impossible_outcome_pays_nothing():
    mdp = read(table([(1.0, 1, 2.0, False), (0.0, 0, 7.0, False)]))
    assert mdp.reward[0, 0, 0].tolist() == [0, 2.0, 0]


def test_a_name_is_made_with_its_options():
    by_name = worlds.from_gymnasium("FrozenLake-v1", 0.9, is_slippery=False)
    assert torch.equal(
        by_name.transition, read(FrozenLakeEnv(is_slippery=False)).transition.float()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_world_has_the_dtype_asked_for(dtype):
    assert read(FrozenLakeEnv(), dtype=dtype).reward.dtype == dtype


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (SimpleNamespace(initial_state_distrib=[1.0]), {}, "environment: .*without P"),
        (SimpleNamespace(P={}), {}, "environment: .*without initial_state_distrib"),
        (TaxiEnv(fickle_passenger=True), {}, "environment: .*fickle"),
        (FrozenLakeEnv(), {"is_slippery": False}, "options: .*is_slippery"),
        (table([(0.5, 1, 0.0, False)]), {}, "transition: "),
    ],
    ids=["no table", "no first states", "fickle passenger", "options", "half a row"],
)
def test_from_gymnasium_refuses(environment, options, message):
    with pytest.raises(ValueError, match=message):
        worlds.from_gymnasium(environment, 0.9, **options)


def test_restarting_leads_from_the_terminal_state_to_the_first_ones():
    mdp = read(TaxiEnv())
    endless = worlds.restarting(mdp)
    assert torch.equal(endless.transition[0, -1], mdp.initial.expand(6, -1))
    assert (endless.reward[0, -1] == 0).all()
    assert torch.equal(endless.transition[:, :-1], mdp.transition[:, :-1])


@pytest.mark.parametrize("make", [FrozenLakeEnv, TaxiEnv])
def test_a_world_that_restarts_has_the_values_of_its_episodes(make):
    mdp = read(make())
    q, again = (value_iteration(world) for world in (mdp, worlds.restarting(mdp)))
    torch.testing.assert_close(again, q, rtol=0, atol=1e-12)


def test_restarting_takes_any_terminal_state():
    """State 0 is over; nobody has to say what follows it."""
    transition = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    mdp = mdps.TabularMDP(transition, torch.zeros(1, 2, 1, 2), torch.tensor([[0.0, 1.0]]), 0.9, 0)
    assert worlds.restarting(mdp).transition[0, :, 0].tolist() == [[0, 1], [1, 0]]


def test_restarting_names_the_last_state_if_none_is_named():
    lake = read(FrozenLakeEnv())
    assert worlds.restarting(dataclasses.replace(lake, terminal=None)).terminal == 16


def test_restarting_leaves_its_argument_as_it_is():
    mdp = read(FrozenLakeEnv())
    worlds.restarting(mdp)
    assert mdp.transition[0, -1, 0, -1] == 1


@pytest.mark.parametrize("part", ["transition", "reward"])
def test_restarting_refuses_a_last_state_that_is_not_terminal(part):
    mdp = read(FrozenLakeEnv())
    tensors = {"transition": mdp.transition, "reward": mdp.reward}
    tensors[part] = tensors[part].clone()
    tensors[part][0, -1, 0] = tensors[part][0, -1, 0].roll(1) if part == "transition" else 1
    spoiled = mdps.TabularMDP(**tensors, initial=mdp.initial, discount=mdp.discount)
    with pytest.raises(ValueError, match="mdp: "):
        worlds.restarting(spoiled)


def test_zero_at_terminal_appends_one_state(generator):
    features = random_features(2, 3, 4, 5, generator=generator)
    extended = worlds.zero_at_terminal(features)
    assert torch.equal(extended[:, :3], features)
    assert torch.equal(extended[:, 3:], torch.zeros(2, 1, 4, 5))


def test_zero_at_terminal_takes_features_of_states(generator):
    features = random_features(2, 3, 5, generator=generator)
    extended = worlds.zero_at_terminal(features)
    assert torch.equal(extended, torch.cat([features, torch.zeros(2, 1, 5)], 1))


def test_sarsa_on_the_restarting_chain_is_episodic_sarsa(generator):
    """The block against a loop that ends its episodes by hand: no bootstrap at the end."""
    discount, alpha, n = 0.9, 0.3, 400
    environment = FrozenLakeEnv()
    endless = worlds.restarting(read(environment, discount))
    phi = worlds.zero_at_terminal(
        random_features(1, 16, 4, 7, generator=generator, dtype=torch.float64)
    )
    w = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    start = initial_states(endless, generator)
    window = rollout(endless, uniform_policy(endless), n, start, generator)
    s, a = window.states[0].tolist(), window.actions[0].tolist()
    assert s.count(16) > 10

    update = torch.zeros(7, dtype=torch.float64)
    for i in range(n):
        if s[i] == 16:  # between two episodes
            continue
        ended = s[i + 1] == 16
        following = 0.0 if ended else w[0] @ phi[0, s[i + 1], a[i + 1]]
        target = window.rewards[0, i] + discount * following
        update += (target - w[0] @ phi[0, s[i], a[i]]) * phi[0, s[i], a[i]]

    at = phi[0, s, a][None]
    H = sarsa_prompt(w, at[:, :-1], at[:, 1:], window.rewards, discount)
    P, V = constructions.sarsa(7, alpha, dtype=torch.float64)
    block = linear_self_attention(H, P, V)[:, -7:, -1]
    torch.testing.assert_close(block[0], w[0] + alpha / n * update, rtol=0, atol=1e-12)


@pytest.mark.parametrize("terminal", [None, 2])
def test_an_mdp_passes_the_check_of_gymnasium(terminal, generator):
    mdp = mdps.random_mdps(3, generator=generator)
    check_env(worlds.to_gymnasium(mdp, index=1, terminal=terminal))


def test_there_and_back_again(generator):
    mdp = mdps.random_mdps(3, generator=generator, dtype=torch.float64)
    again = read(worlds.to_gymnasium(mdp, index=2))
    torch.testing.assert_close(again.transition[0, :9, :, :9], mdp.transition[2], rtol=0, atol=0)
    torch.testing.assert_close(again.reward[0, :9, :, :9], mdp.reward[2], rtol=0, atol=1e-15)
    torch.testing.assert_close(again.initial[0, :9], mdp.initial[2], rtol=0, atol=0)


def test_back_and_there_again():
    """An imported world as an environment, imported again: the values are the same."""
    lake = read(FrozenLakeEnv())
    again = read(worlds.to_gymnasium(lake, terminal=16))
    policy, policy_again = uniform_policy(lake), uniform_policy(again)
    v, v_again = policy_value(lake, policy), policy_value(again, policy_again)
    torch.testing.assert_close(v_again[:, :17], v, rtol=0, atol=1e-14)


def test_steps_of_the_environment_follow_the_mdp(generator):
    mdp = mdps.random_mdps(1, 4, 2, generator=generator, dtype=torch.float64)
    environment = worlds.to_gymnasium(mdp)
    s, _ = environment.reset(seed=0)
    seen = defaultdict(Counter)
    for i in range(40_000):
        s_next, reward, *_ = environment.step(i % 2)
        seen[s, i % 2][s_next] += 1
        assert reward == mdp.reward[0, s, i % 2, s_next]
        s = s_next
    for (s, a), counts in seen.items():
        n = counts.total()
        for s_next, p in enumerate(mdp.transition[0, s, a].tolist()):
            assert abs(counts[s_next] / n - p) <= 5 * (p * (1 - p) / n) ** 0.5


def test_first_states_of_the_environment_follow_the_mdp(generator):
    mdp = mdps.random_mdps(1, 4, 2, generator=generator, dtype=torch.float64)
    environment = worlds.to_gymnasium(mdp)
    environment.reset(seed=0)
    n = 10_000
    seen = Counter(environment.reset()[0] for _ in range(n))
    for s, p in enumerate(mdp.initial[0].tolist()):
        assert abs(seen[s] / n - p) <= 5 * (p * (1 - p) / n) ** 0.5


def test_an_episode_ends_in_the_terminal_state_and_only_there():
    environment = worlds.to_gymnasium(read(CliffWalkingEnv()), terminal=48)
    assert environment.reset(seed=0)[0] == 36
    up, right, down = 0, 1, 2
    *steps, last = [environment.step(a) for a in [up, *11 * [right], down]]
    assert [terminated for _, _, terminated, _, _ in steps] == 12 * [False]
    assert last == (48, -1.0, True, False, {})


def test_the_spec_makes_the_same_environment(generator):
    environment = worlds.to_gymnasium(mdps.random_mdps(3, generator=generator), index=1)
    copy = gymnasium.make(environment.spec)
    first, second = ([e.reset(seed=5)[0]] for e in (environment, copy))
    for actions in range(20):
        first.append(environment.step(actions % 4)[:2])
        second.append(copy.step(actions % 4)[:2])
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"index": 3}, "index"), ({"index": -1}, "index"), ({"terminal": 9}, "terminal")],
)
def test_to_gymnasium_refuses(arguments, name, generator):
    with pytest.raises(ValueError, match=f"^{name}: "):
        worlds.to_gymnasium(mdps.random_mdps(3, generator=generator), **arguments)


def test_a_step_needs_a_reset(generator):
    environment = worlds.to_gymnasium(mdps.random_mdps(1, generator=generator))
    with pytest.raises(ValueError, match="reset"):
        environment.step(0)


def test_an_unknown_action_is_refused(generator):
    environment = worlds.to_gymnasium(mdps.random_mdps(1, generator=generator))
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: .*below 4, got 4"):
        environment.step(4)


def test_the_module_is_imported_without_gymnasium():
    code = "import sys, icrl_lib.worlds; assert 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("direction", ["from", "to"])
def test_a_missing_gymnasium_is_named_with_its_remedy(direction, monkeypatch, generator):
    mdp = mdps.random_mdps(1, generator=generator)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    worlds._tabular_env.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install gymnasium"):
        worlds.to_gymnasium(mdp) if direction == "to" else read("FrozenLake-v1")
