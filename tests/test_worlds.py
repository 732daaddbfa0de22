"""Gymnasium's worlds against Gymnasium's own steps, and tabular MDPs as environments."""

import dataclasses
import itertools
import math
import pickle
import subprocess
import sys
from collections import Counter, defaultdict
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.utils.env_checker import check_env

from icrl_lib import constructions, mdps, worlds
from icrl_lib.algorithms import SARSA, ActorCritic, ActorCriticFeatures
from icrl_lib.attention import linear_self_attention
from icrl_lib.features import one_hot_features, random_features
from icrl_lib.mdps import expected_return, greedy_policy, policy_value, value_iteration
from icrl_lib.policies import Window, initial_states, rollout, uniform_policy
from icrl_lib.prompts import sarsa_prompt
from icrl_lib.zoo import SARSALambda

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
    ],
    ids=["no table", "no first states", "fickle passenger", "options"],
)
def test_from_gymnasium_refuses(environment, options, message):
    with pytest.raises(ValueError, match=message):
        worlds.from_gymnasium(environment, 0.9, **options)


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([(0.5, 1, 0.0, False)], "sum to 1"),
        ([(1.5, 1, 0.0, False), (-0.5, 0, 0.0, False)], "sum to 1"),
        ([(math.nan, 1, 0.0, False)], "sum to 1"),
        ([("1", 1, 0.0, False)], "sum to 1"),
        ([(1.0, 2, 0.0, False)], "next state: .*less than 2, got 2"),
        ([(1.0, 2, 0.0, True)], "next state: .*less than 2, got 2"),
        ([(1.0, -1, 0.0, False)], "next state: .*at least 0, got -1"),
        ([(1.0, 0.9, 0.0, False)], "next state: .*integer, got 0.9"),
        ([(1.0, None, 0.0, False)], "next state: .*got None"),
        ([(1.0, 1, math.nan, False)], "reward: .*got nan"),
        ([(1.0, 1, None, False)], "reward: .*got None"),
        ([(1.0, 1, 0.0)], "probability, next state, reward, terminated"),
        ([], "probability, next state, reward, terminated"),
        (1.0, "probability, next state, reward, terminated"),
    ],
    ids=str,
)
def test_an_entry_that_tells_nothing_is_refused_by_its_place(outcomes, said):
    with pytest.raises(ValueError, match=rf"^environment: P\[0\]\[0\]: .*{said}"):
        read(table(outcomes))


STAY = [(1.0, 0, 0.0, False)]


@pytest.mark.parametrize(
    "entries",
    [
        {1: {0: STAY}},
        {0: {1: STAY}},
        {0: {0: STAY}, 2: {0: STAY}},
        {0: {0: STAY}, 1: {0: STAY, 1: STAY}},
        {0: {0: STAY, 1: STAY}, 1: {0: STAY}},
        {0: {}},
        {},
        [[STAY]],
        {0: [STAY]},
        np.ones((1, 1, 1)),
        None,
    ],
    ids=str,
)
def test_a_table_that_is_not_numbered_from_0_is_refused(entries):
    world = SimpleNamespace(P=entries, initial_state_distrib=[1.0])
    with pytest.raises(ValueError, match=r"^environment: expected a dictionary P\[s\]\[a\]"):
        read(world)


@pytest.mark.parametrize("initial", [[1.0], [0.5, 0.5, 0.0], [0.5, 0.4], [[1.0, 0.0]], None, "10"])
def test_first_states_that_do_not_suit_the_table_are_refused(initial):
    world = SimpleNamespace(P=table([(1.0, 1, 0.0, True)]).P, initial_state_distrib=initial)
    with pytest.raises(ValueError, match=r"^environment: initial_state_distrib: expected"):
        read(world)


def test_what_never_happens_may_pay_anything():
    mdp = read(table([(1.0, 1, 2.0, False), (0.0, 1, math.nan, False)]))
    assert mdp.reward[0, 0, 0].tolist() == [0, 2.0, 0]


def test_a_difference_may_miss_0_by_a_rounding_error():
    left = 1 - 0.9 - 0.1
    assert left < 0
    mdp = read(table([(0.9, 1, 0.0, False), (0.1, 0, 0.0, False), (left, 0, 0.0, True)]))
    assert mdp.transition[0, 0, 0].tolist() == [0.1, 0.9, 0]


def test_probabilities_are_as_exact_as_their_type():
    """Three thirds of a float32 miss 1 by 3e-8, which a float64 must not."""
    third = np.float32(1 / 3)
    mdp = read(table([(third, 1, 0.0, False), (third, 0, 0.0, False), (third, 0, 0.0, True)]))
    assert mdp.transition[0, 0, 0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
    with pytest.raises(ValueError, match="sum to 1"):
        read(table([(float(third), s, 0.0, False) for s in (0, 0, 1)]))


def test_first_states_are_as_exact_as_their_type():
    initial = np.array([0.1, 0.9], dtype=np.float32)
    world = SimpleNamespace(P=table([(1.0, 1, 0.0, True)]).P, initial_state_distrib=initial)
    torch.testing.assert_close(
        read(world).initial, torch.tensor([[0.1, 0.9, 0]]).double(), rtol=0, atol=1e-7
    )


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


def test_an_environment_ends_where_its_mdp_does():
    environment = worlds.to_gymnasium(read(FrozenLakeEnv()))
    assert environment.P[14][1][-1] == (pytest.approx(1 / 3), 16, 1.0, True)


def test_an_environment_can_be_pickled_in_the_middle_of_an_episode(generator):
    environment = worlds.to_gymnasium(mdps.random_mdps(3, generator=generator), index=1)
    environment.reset(seed=0)
    copy = pickle.loads(pickle.dumps(environment))
    walks = [[one.step(a % 4) for a in range(20)] for one in (environment, copy)]
    assert walks[0] == walks[1]
    check_env(copy)


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


# --- raw steps


def agent_on_ice(algorithm, features, window=20, **options):
    options = {"generator": torch.Generator().manual_seed(0)} | options
    return worlds.Agent(algorithm, features, algorithm.teach, 0.9, window, **options)


GREEDY = {"d": 7, "alpha": 0.5, "epsilon": 0.0}  # so that the action not taken is known


@pytest.mark.parametrize("algorithm", [SARSA(**GREEDY), SARSALambda(**GREEDY)], ids=["one", "all"])
def test_raw_steps_teach_what_the_restarting_world_teaches(algorithm, generator):
    """FrozenLake by `env.step`, and the same trajectory as windows of the table."""
    lake, environment = worlds.restarting(read(FrozenLakeEnv())), FrozenLakeEnv()
    phi = random_features(1, 17, 4, 7, generator=generator, dtype=torch.float64)
    w = torch.rand(1, 7, generator=generator, dtype=torch.float64)
    agent = agent_on_ice(algorithm, phi, parameters=w)
    walk = []
    s, _ = environment.reset(seed=0)
    for _ in range(300):
        a = agent.act(s)
        s_next, reward, terminated, truncated, _ = environment.step(a)
        agent.see(reward, s_next, terminated, truncated)
        walk.append((s, a, reward))
        if terminated:
            walk.append((16, 0, 0.0))
        s = environment.reset()[0] if terminated else s_next

    assert sum(s == 16 for s, *_ in walk) > 10
    for first in range(0, len(walk) - 20, 20):
        states, actions, rewards = zip(*walk[first : first + 21], strict=True)
        last = algorithm.policy(phi, w)[0, states[-1]].argmax().item()
        at, took = torch.tensor([states]), torch.tensor([[*actions[:-1], last]])
        paid = torch.tensor([rewards[:-1]], dtype=torch.float64)
        window = Window(at, took, paid, lake.discount).episodic(lake.terminal)
        w = algorithm.teach(w, algorithm.observe(phi, w, window))
    torch.testing.assert_close(agent.parameters, w, rtol=0, atol=1e-12)


def test_an_agent_learns_dry_ice_from_raw_steps():
    """From optimism, one-hot features; the teacher's agents find the goal, 6 steps away."""
    environment = gymnasium.make("FrozenLake-v1", is_slippery=False)
    phi = worlds.zero_at_terminal(one_hot_features(1, 16, 4))
    sarsa = SARSA(d=64, alpha=2.0, epsilon=0.1)
    agent = agent_on_ice(sarsa, phi, parameters=torch.ones(1, 64))
    (state, _), won = environment.reset(seed=0), []
    for _ in range(3000):
        state, reward, terminated, truncated, _ = environment.step(agent.act(state))
        agent.see(reward, state, terminated, truncated)
        if terminated or truncated:
            won.append(reward)
            state, _ = environment.reset()
    assert sum(won[-50:]) > 30


def one_feature(window=4):
    """w = 2 and phi(s) = 1 + s in both actions, gamma = 0.9, alpha = 4."""
    phi = torch.tensor([1.0, 2, 3, 99]).reshape(1, 4, 1, 1).double()
    algorithm = SARSA(d=1, alpha=4.0, epsilon=0.0)
    return agent_on_ice(algorithm, phi, window, parameters=torch.full((1, 1), 2.0).double())


def test_a_truncated_episode_is_bootstrapped_and_its_jump_is_no_transition():
    """Two transitions of a window of four: w + (4/4) sum; then four from state 0 to itself."""
    agent = one_feature()
    agent.act(0)
    agent.see(1.0, 1, False, False)
    agent.act(1)
    agent.see(5.0, 2, False, True)
    first, second = 1 + 0.9 * 4 - 2, 5 + 0.9 * 6 - 4
    w = 2 + first * 1 + second * 2
    assert agent.parameters.item() == pytest.approx(w, abs=1e-12)
    for _ in range(4):
        agent.act(0)
        agent.see(0.0, 0, False, False)
    assert agent.parameters.item() == pytest.approx(w + 4 * (0.9 - 1) * w, abs=1e-12)


def test_an_end_on_the_last_step_allowed_is_an_end():
    """The restart is still to come: it is the second transition of the window."""
    agent = one_feature(window=2)
    agent.act(1)
    agent.see(5.0, 1, True, True)
    assert agent.parameters.item() == 2
    agent.act(0)
    assert agent.parameters.item() == pytest.approx(2 + 4 / 2 * (5 - 4) * 2, abs=1e-12)


def test_parameters_begin_at_zero_in_the_dtype_of_the_features():
    value, policy = torch.zeros(1, 4, 2).double(), torch.zeros(1, 4, 2, 3).double()
    critic = ActorCritic(d=2, m=3)
    agent = agent_on_ice(critic, ActorCriticFeatures(policy, value))
    assert torch.equal(agent.parameters, torch.zeros(1, 5).double())


def test_actions_have_the_probabilities_of_the_policy(generator):
    phi = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1).expand(1, 2, 2, 1)
    sarsa = SARSA(d=1, epsilon=0.5)
    agent = agent_on_ice(sarsa, phi, 10_000, parameters=torch.ones(1, 1), generator=generator)
    seen = []
    for _ in range(2000):
        seen.append(agent.act(0))
        agent.see(0.0, 0, False, False)
    assert abs(sum(seen) / 2000 - 0.75) < 5 * (0.75 * 0.25 / 2000) ** 0.5


@pytest.mark.parametrize("state", [3, -1, 1.0, None])
def test_an_agent_refuses_states_that_are_none(state):
    agent = one_feature()
    with pytest.raises(ValueError, match=r"^state: "):
        agent.act(state)
    agent.act(0)
    with pytest.raises(ValueError, match=r"^state: "):
        agent.see(0.0, state, False, False)


def test_an_agent_refuses_a_state_that_it_is_not_in():
    agent = one_feature()
    agent.act(0)
    agent.see(0.0, 1, False, False)
    with pytest.raises(ValueError, match=r"^state: expected 1, .* got 2"):
        agent.act(2)


def test_an_agent_refuses_rewards_that_are_none():
    agent = one_feature()
    agent.act(0)
    with pytest.raises(ValueError, match=r"^reward: "):
        agent.see(math.nan, 1, False, False)


def test_actions_and_steps_take_turns():
    agent = one_feature()
    with pytest.raises(ValueError, match=r"^see: "):
        agent.see(0.0, 1, False, False)
    agent.act(0)
    with pytest.raises(ValueError, match=r"^act: "):
        agent.act(0)
