"""Updates in worlds that restart, against loops that go through one episode after the other.

The loops are plain Python over the states, actions and rewards of one MDP, written from Sutton and
Barto (2018). They cut a window into episodes by hand and know nothing of discounts of transitions.
"""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from icrl_lib import teachers, zoo
from icrl_lib.algorithms import SARSA, ActorCritic, Algorithm
from icrl_lib.mdps import TabularMDP, average_reward, random_mdps
from icrl_lib.policies import Window, initial_states, rollout, uniform_policy
from icrl_lib.worlds import restarting

END = 2  # in the middle, so that no first or last row is taken for it by chance
N, ALPHA, BETA, LAMBDA, STEPS = 40, 0.3, 0.7, 0.6, 3


def world(discount, generator):
    """Four restarting MDPs of six states; each action ends the episode in one case of five."""
    mdp = random_mdps(4, 6, 3, generator=generator, dtype=torch.float64)
    transition = 0.8 * mdp.transition
    transition[..., END] += 0.2
    reward = mdp.reward.clone()
    reward[:, END] = 0
    return restarting(TabularMDP(transition, reward, mdp.initial, discount, END))


@dataclasses.dataclass(frozen=True)
class Episode:
    """A stretch of a window between two ends: s_0, a_0, r_1, ..., and did it end, or was it cut?"""

    states: list
    actions: list
    rewards: list
    ended: bool

    def __len__(self):
        return len(self.rewards)

    def pairs(self):
        """Every (s_t, a_t) with r_{t+1} and, unless the episode is over, (s_{t+1}, a_{t+1})."""
        at = list(zip(self.states, self.actions, strict=True))
        following = [*at[1:], None] if self.ended else at[1:]
        return list(zip(at[: len(self)], self.rewards, following, strict=True))


def episodes(window, b):
    """Cut row b of a window into episodes; what happens in the terminal state is in none."""
    found, s, a, r = [], [], [], []
    states, actions = window.states[b].tolist(), window.actions[b].tolist()
    for i, state in enumerate(states):
        if state == END:
            if s:
                found.append(Episode(s, a, r, ended=True))
            s, a, r = [], [], []
            continue
        s, a = [*s, state], [*a, actions[i]]
        if i < N:
            r = [*r, window.rewards[b, i].item()]
    return [*found, Episode(s, a, r, ended=False)] if s else found


# --- one update, episode by episode; x is the features of one MDP


def td(x, w, seen, gamma):
    v, new = x.value @ w, w.copy()
    for episode in seen:
        for (s, a), r, following in episode.pairs():
            rho = x.target[s, a] / x.behaviour[s, a]
            target = r + (gamma * v[following[0]] if following else 0)
            new += ALPHA / N * rho * (target - v[s]) * x.value[s]
    return new


def one_step(bootstrap):
    """Return a SARSA-like loop that bootstraps with a function of q and the next pair."""

    def loop(x, w, seen, gamma):
        q, new = x @ w, w.copy()
        for episode in seen:
            for pair, r, following in episode.pairs():
                target = r + (gamma * bootstrap(q, following) if following else 0)
                new += ALPHA / N * (target - q[pair]) * x[pair]
        return new

    return loop


def expected(q, following):
    row = q[following[0]]
    return 0.9 * row.max() + 0.1 * row.mean()


def residual_gradient(x, w, seen, gamma):
    new = w.copy()
    for episode in seen:
        for pair, r, following in episode.pairs():
            change = x[pair] - (gamma * x[following] if following else 0)
            new += ALPHA / N * (r - change @ w) * change
    return new


def n_step(x, w, seen, gamma):
    q, new = x @ w, w.copy()
    for episode in seen:
        T = len(episode)
        for t in range(T):
            last = min(t + STEPS, T)
            G = sum(gamma ** (k - t) * episode.rewards[k] for k in range(t, last))
            if not (last == T and episode.ended):
                G += gamma ** (last - t) * q[episode.states[last], episode.actions[last]]
            pair = episode.states[t], episode.actions[t]
            new += ALPHA / N * (G - q[pair]) * x[pair]
    return new


def sarsa_lambda(x, w, seen, gamma):
    q, new = x @ w, w.copy()
    for episode in seen:
        trace = np.zeros_like(w)
        for pair, r, following in episode.pairs():
            trace = gamma * LAMBDA * trace + x[pair]
            new += ALPHA / N * (r + (gamma * q[following] if following else 0) - q[pair]) * trace
    return new


def scores(x, lam):
    weights = np.exp(x @ lam)
    return x - (weights[..., None] * x).sum(1, keepdims=True) / weights.sum(1)[:, None, None]


def actor_critic(x, parameters, seen, gamma):
    m = x.policy.shape[-1]
    lam, w = parameters[:m], parameters[m:]
    g, v, new_lam, new_w = scores(x.policy, lam), x.value @ w, lam.copy(), w.copy()
    for episode in seen:
        for t, ((s, a), r, following) in enumerate(episode.pairs()):
            delta = r + (gamma * v[following[0]] if following else 0) - v[s]
            new_lam += ALPHA / N * gamma**t * delta * g[s, a]
            new_w += BETA / N * delta * x.value[s]
    return np.concatenate([new_lam, new_w])


def q_actor_critic(x, parameters, seen, gamma):
    m = x.policy.shape[-1]
    lam, w = parameters[:m], parameters[m:]
    g, q, new_lam, new_w = scores(x.policy, lam), x.value @ w, lam.copy(), w.copy()
    for episode in seen:
        for t, (pair, r, following) in enumerate(episode.pairs()):
            new_lam += ALPHA / N * gamma**t * q[pair] * g[pair]
            delta = r + (gamma * q[following] if following else 0) - q[pair]
            new_w += BETA / N * delta * x.value[pair]
    return np.concatenate([new_lam, new_w])


def reinforce(x, parameters, seen, gamma):
    m = x.policy.shape[-1]
    lam, w = parameters[:m], parameters[m:]
    g, new_lam, new_w = scores(x.policy, lam), lam.copy(), w.copy()
    for episode in seen:
        for t in range(len(episode)):
            s, a = episode.states[t], episode.actions[t]
            G = sum(gamma ** (k - t) * episode.rewards[k] for k in range(t, len(episode)))
            error = G - x.value[s] @ w
            new_lam += ALPHA / N * gamma**t * error * g[s, a]
            new_w += BETA / N * error * x.value[s]
    return np.concatenate([new_lam, new_w])


SIZES = {"d": 5, "alpha": ALPHA}
ACTOR = {"d": 5, "m": 4, "alpha": ALPHA, "beta": BETA}
KINDS = {
    "TD(0)": (zoo.TD(**SIZES), td),
    "off-policy TD(0)": (zoo.OffPolicyTD(**SIZES), td),
    "SARSA": (SARSA(**SIZES), one_step(lambda q, following: q[following])),
    "expected SARSA": (zoo.ExpectedSARSA(**SIZES), one_step(expected)),
    "Q-learning": (
        zoo.QLearning(**SIZES, n_actions=3),
        one_step(lambda q, following: q[following[0]].max()),
    ),
    "residual gradient": (zoo.ResidualGradient(**SIZES), residual_gradient),
    "n-step SARSA": (zoo.NStepSARSA(**SIZES, steps=STEPS), n_step),
    "SARSA(lambda)": (zoo.SARSALambda(**SIZES, trace_decay=LAMBDA), sarsa_lambda),
    "actor-critic": (ActorCritic(**ACTOR), actor_critic),
    "Q-actor-critic": (zoo.QActorCritic(**ACTOR), q_actor_critic),
    "REINFORCE": (zoo.Reinforce(**ACTOR), reinforce),
}
each_kind = pytest.mark.parametrize(("algorithm", "loop"), KINDS.values(), ids=KINDS)
each_discount = pytest.mark.parametrize("discount", [0.9, 1])


def test_no_algorithm_is_left_out():
    """All but differential SARSA, for which time goes on between episodes; see below."""
    known = {cls for cls in vars(zoo).values() if inspect.isclass(cls)}
    known = {cls for cls in known if issubclass(cls, Algorithm) and not inspect.isabstract(cls)}
    assert known - {type(algorithm) for algorithm, _ in KINDS.values()} == {zoo.DifferentialSARSA}


def life(algorithm, discount, generator):
    """Return features that are nowhere zero, parameters and a window with ends in every row."""
    endless = world(discount, generator)
    features = algorithm.draw_features(endless, generator)
    parameters = algorithm.draw_parameters(4, generator, torch.float64)
    policy, start = algorithm.policy(features, parameters), initial_states(endless, generator)
    window = rollout(endless, policy, N, start, generator)
    assert ((window.states == END).sum(1) >= 4).all()
    return features, parameters, window


def by_hand(loop, features, parameters, window, gamma):
    """Run a loop for each MDP of a window."""
    updated = []
    for b, w in enumerate(parameters.numpy()):
        if isinstance(features, tuple):
            x = type(features)(*(part[b].numpy() for part in features))
        else:
            x = features[b].numpy()
        updated.append(loop(x, w, episodes(window, b), gamma))
    return torch.from_numpy(np.stack(updated))


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)


@each_kind
@each_discount
def test_a_teacher_is_episodic_in_a_restarting_world(algorithm, loop, discount, generator):
    features, parameters, window = life(algorithm, discount, generator)
    updated = algorithm.teach(parameters, algorithm.observe(features, parameters, window))
    close(updated, by_hand(loop, features, parameters, window, discount))


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"Q-learning"}))
@each_discount
def test_a_block_is_episodic_in_a_restarting_world(name, discount, generator):
    algorithm, loop = KINDS[name]
    features, parameters, window = life(algorithm, discount, generator)
    seen = algorithm.observe(features, parameters, window)
    updated = algorithm.forward(parameters, seen, *algorithm.construction(dtype=torch.float64))
    close(updated, by_hand(loop, features, parameters, window, discount))


# One action, three states, and window 0 -> 1 -> END -> 0 -> 1 with rewards 4, 8, 0, 16.
STATES, REWARDS = torch.tensor([[0, 1, END, 0, 1]]), torch.tensor([[4.0, 8, 0, 16]])
WINDOW = Window(STATES, torch.zeros_like(STATES), REWARDS, 0.5).episodic(END)


def test_transitions_into_the_end_and_out_of_it_have_discount_0():
    assert WINDOW.discount.tolist() == [[0.5, 0, 0, 0.5]]


def test_a_world_without_an_end_has_one_discount_for_all():
    window = Window(STATES, torch.zeros_like(STATES), REWARDS, 0.5)
    assert window.episodic(None) is window


def test_an_end_is_a_token_without_successor_and_a_restart_is_none():
    features = torch.tensor([1.0, 2.0, 99.0]).reshape(1, 3, 1, 1)
    sarsa = SARSA(d=1)
    tokens = sarsa.tokens(sarsa.observe(features, torch.ones(1, 1), WINDOW))
    assert tokens.tolist() == [[[1, 1, 4], [2, 0, 8], [0, 0, 0], [1, 1, 16]]]


def test_an_average_over_time_counts_restarts():
    """Rewards 1 and 2, then a restart: 3 in three steps. Values are h = 1, 1 and at the end 0."""
    endless = restarting(
        TabularMDP(
            torch.eye(3)[[1, 2, 2]].reshape(1, 3, 1, 3),
            torch.tensor([1.0, 2, 0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 3),
            torch.eye(3)[:1],
            0.5,
            terminal=END,
        )
    )
    policy, differential = uniform_policy(endless), zoo.DifferentialSARSA(d=3)
    assert average_reward(endless, policy).item() == pytest.approx(1)
    window = rollout(endless, policy, 3, torch.tensor([0]), torch.Generator())
    features = torch.eye(3).reshape(1, 3, 1, 3)
    settled = torch.tensor([[1.0, 1, 1, 7]])  # the last is the weight of the end, which is silent
    seen = differential.observe(features, settled, window)
    assert torch.equal(differential.teach(settled, seen), settled)


@pytest.mark.parametrize(
    ("discount", "said"),
    [
        (torch.full((1, 3), 0.5), "n = 4"),
        (torch.full((1, 4, 1), 0.5), "2 axes"),
        (torch.full((1, 4), 0.5, dtype=torch.float64), "float32"),
        (torch.full((1, 4), 1.5), "from 0 to 1"),
        (torch.full((1, 4), -0.5), "from 0 to 1"),
        (torch.full((1, 4), torch.nan), "NaN"),
    ],
)
def test_discounts_of_transitions_are_refused(discount, said):
    phi = torch.ones(1, 4, 2)
    with pytest.raises(ValueError, match=f"^discount: .*{said}"):
        teachers.sarsa_update(torch.ones(1, 2), phi, phi, REWARDS, discount, 0.1)
