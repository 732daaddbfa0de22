"""Algorithms against plain loops, and the loop of Fig. 1 against a simulation by hand."""

import itertools
import math
from itertools import islice

import numpy as np
import pytest
import torch

from icrl_lib.algorithms import ALGORITHMS, SARSA, ActorCritic, ActorCriticFeatures
from icrl_lib.attention import join
from icrl_lib.features import one_hot_features
from icrl_lib.loop import interact
from icrl_lib.mdps import TabularMDP, random_mdps
from icrl_lib.policies import Window

B, S, A, N = 2, 3, 2, 5
ALGOS = [
    SARSA(d=4, alpha=0.3, epsilon=0.2),
    ActorCritic(d=3, m=4, alpha=0.3, beta=0.7, epsilon=0.2),
]
IDS = [algorithm.name for algorithm in ALGOS]
each_algorithm = pytest.mark.parametrize("algorithm", ALGOS, ids=IDS)


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def situation(algorithm, dtype=torch.float64):
    """MDPs, features, parameters and a window of them."""
    generator = torch.Generator().manual_seed(0)
    mdp = random_mdps(B, S, A, 0.5, generator=generator, dtype=dtype)
    features = algorithm.draw_features(mdp, generator)
    parameters = algorithm.draw_parameters(B, generator, dtype)
    window = Window(
        states=torch.randint(S, (B, N + 1), generator=generator),
        actions=torch.randint(A, (B, N + 1), generator=generator),
        rewards=torch.randn(B, N, generator=generator, dtype=dtype),
        discount=0.5,
    )
    return mdp, features, parameters, window


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def softmax(preferences):
    weights = [math.exp(x) for x in preferences]
    return [weight / sum(weights) for weight in weights]


def loop_policy(algorithm, features, parameters, epsilon):
    """Action probabilities by plain Python."""
    probabilities = np.zeros((B, S, A))
    for b, s in np.ndindex(B, S):
        if algorithm.name == "sarsa":
            q = [dot(parameters[b].tolist(), row) for row in features[b, s].tolist()]
            greedy = [float(x == max(q)) for x in q]
        else:
            lam = parameters[b].tolist()[:4]
            greedy = softmax([dot(lam, row) for row in features.policy[b, s].tolist()])
        probabilities[b, s] = [(1 - epsilon) * x + epsilon / A for x in greedy]
    return probabilities


def loop_observation(algorithm, features, parameters, window):
    """What prompt and teacher are made of, by look-ups one at a time."""
    tables = [np.zeros((B, N, k)) for k in (algorithm.d, algorithm.d, 4)]
    phi, phi_next, scores = tables
    for b, i in np.ndindex(B, N):
        (s, t), (a, u) = (x[b, i : i + 2].tolist() for x in (window.states, window.actions))
        if algorithm.name == "sarsa":
            phi[b, i], phi_next[b, i] = features[b, s, a], features[b, t, u]
        else:
            phi[b, i], phi_next[b, i] = features.value[b, s], features.value[b, t]
            pi = loop_policy(algorithm, features, parameters, 0)[b, s]
            mean = sum(pi[c] * features.policy[b, s, c].numpy() for c in range(A))
            scores[b, i] = features.policy[b, s, a].numpy() - mean
    return [phi, phi_next, window.rewards.numpy()] + [scores] * (algorithm.name != "sarsa")


def loop_update(algorithm, parameters, observation):
    """The teacher's update, transition by transition."""
    phi, phi_next, rewards, *scores = observation
    updated = parameters.numpy().copy()
    for b, i in np.ndindex(B, N):
        w = parameters[b, -algorithm.d :].numpy()
        delta = rewards[b, i] + 0.5 * dot(w, phi_next[b, i]) - dot(w, phi[b, i])
        if algorithm.name == "sarsa":
            updated[b] += 0.3 / N * delta * phi[b, i]
        else:
            updated[b, :4] += 0.3 / N * 0.5**i * delta * scores[0][b, i]
            updated[b, 4:] += 0.7 / N * delta * phi[b, i]
    return updated


# --- algorithms


def test_algorithms_by_name():
    assert dict(ALGORITHMS) == {"sarsa": SARSA, "actor_critic": ActorCritic}


def test_algorithms_have_the_paper_settings():
    assert SARSA() == SARSA(d=36, alpha=0.2, epsilon=0.1)
    assert ActorCritic() == ActorCritic(d=9, m=36, alpha=0.2, beta=0.8, epsilon=0.1)


@pytest.mark.parametrize(("algorithm", "p", "D"), [(ALGOS[0], 4, 14), (ALGOS[1], 7, 19)], ids=IDS)
def test_sizes(algorithm, p, D):
    assert algorithm.n_parameters == p
    assert algorithm.layout.size == D
    assert algorithm.layout.n_parameter == p + 1


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_have_shape_and_dtype(generator, algorithm, dtype):
    parameters = algorithm.draw_parameters(5, generator, dtype)
    assert parameters.shape == (5, algorithm.n_parameters)
    assert parameters.dtype == dtype


@pytest.mark.parametrize(("name", "place"), [("states", S), ("states", -1), ("actions", A)])
@each_algorithm
def test_a_window_may_not_name_what_its_mdp_lacks(algorithm, name, place):
    """A table has the next MDP's rows behind those of the first, and none behind the last."""
    _, features, parameters, window = situation(algorithm)
    table = getattr(window, name).clone()
    table[0, 1] = place
    with pytest.raises(ValueError, match=rf"^{name}: expected numbers from 0 to .* {place}"):
        algorithm.observe(features, parameters, window._replace(**{name: table}))


@each_algorithm
def test_a_window_of_another_batch_is_refused(algorithm):
    _, features, parameters, window = situation(algorithm)
    alone = Window(*(table[:1] for table in window[:3]), window.discount)
    with pytest.raises(ValueError, match=r"^states: expected an int64 tensor of shape \(2, n\)"):
        algorithm.observe(features, parameters, alone)


@each_algorithm
def test_parameters_are_uniform(generator, algorithm):
    parameters = algorithm.draw_parameters(20_000, generator, torch.float64)
    close(parameters.T.cov(), torch.eye(algorithm.n_parameters) / 3, atol=0.02)
    assert -1 < parameters.min() < -0.999
    assert 0.999 < parameters.max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_have_shape_and_dtype(generator, dtype):
    mdp = random_mdps(B, S, A, generator=generator, dtype=dtype)
    phi = ALGOS[0].draw_features(mdp, generator)
    phi_pi, phi_v = ALGOS[1].draw_features(mdp, generator)
    assert [t.shape for t in (phi, phi_pi, phi_v)] == [(B, S, A, 4), (B, S, A, 4), (B, S, 3)]
    assert phi.dtype == phi_pi.dtype == phi_v.dtype == dtype


@each_algorithm
@pytest.mark.parametrize(("epsilon", "used"), [(None, 0.2), (0, 0), (0.5, 0.5), (1, 1)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_policy_equals_loops(algorithm, epsilon, used, dtype, error):
    _, features, parameters, _ = situation(algorithm, dtype)
    expected = loop_policy(algorithm, features, parameters, used)
    close(algorithm.policy(features, parameters, epsilon), expected, atol=error)


@each_algorithm
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_observation_equals_loops(algorithm, dtype, error):
    _, features, parameters, window = situation(algorithm, dtype)
    *observed, discount = algorithm.observe(features, parameters, window)
    expected = loop_observation(algorithm, features, parameters, window)
    assert discount == 0.5
    for given, wanted in zip(observed, expected, strict=True):
        close(given, wanted, atol=error)


@each_algorithm
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_teacher_equals_loops(algorithm, dtype, error):
    _, features, parameters, window = situation(algorithm, dtype)
    observation = loop_observation(algorithm, features, parameters, window)
    expected = loop_update(algorithm, parameters, observation)
    observed = algorithm.observe(features, parameters, window)
    close(algorithm.teach(parameters, observed), expected, atol=error)


@each_algorithm
def test_every_entry_of_the_prompt(algorithm):
    _, features, parameters, window = situation(algorithm)
    phi, phi_next, rewards, *scores = loop_observation(algorithm, features, parameters, window)
    discounts = 0.5 ** np.arange(N)[:, None]
    slots = [phi, 0.5 * phi_next, rewards[..., None], *(discounts * g for g in scores)]
    tokens = np.concatenate(slots, -1)
    D = 14 if algorithm.name == "sarsa" else 19
    expected = np.zeros((B, D, N + 1))
    expected[:, : tokens.shape[-1], :N] = tokens.transpose(0, 2, 1)
    expected[:, tokens.shape[-1], N] = 1
    expected[:, tokens.shape[-1] + 1 :, N] = parameters
    observed = algorithm.observe(features, parameters, window)
    close(algorithm.prompt(parameters, observed), expected)
    close(algorithm.tokens(observed), tokens)


@each_algorithm
def test_forward_reads_the_parameters_that_a_block_writes(generator, algorithm):
    """Of eq. (1) with arbitrary weights, the last p entries of the last column."""
    _, features, parameters, window = situation(algorithm)
    observed = algorithm.observe(features, parameters, window)
    H = algorithm.prompt(parameters, observed).numpy()
    D = algorithm.layout.size
    P, V = torch.randn(2, D, D, generator=generator, dtype=torch.float64)
    written = H + V.numpy() @ H @ (H.transpose(0, 2, 1) @ P.numpy() @ H) / N
    expected = written[:, -algorithm.n_parameters :, N]
    close(algorithm.forward(parameters, observed, P, V), expected)


@each_algorithm
@pytest.mark.parametrize("c", [1.0, -0.5, 3.0])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_construction_does_what_the_teacher_does(algorithm, c, dtype, error):
    _, features, parameters, window = situation(algorithm, dtype)
    observed = algorithm.observe(features, parameters, window)
    P, V = algorithm.construction(c, dtype)
    observation = loop_observation(algorithm, features, parameters, window)
    expected = loop_update(algorithm, parameters, observation)
    close(algorithm.forward(parameters, observed, P, V), expected, atol=error)


@each_algorithm
def test_construction_has_the_scale(algorithm):
    """The entry where the reward meets the constant 1 is c."""
    P, _ = algorithm.construction(-2.0, torch.float64)
    assert P[2 * algorithm.d, algorithm.layout.n_token] == -2


@each_algorithm
def test_blocks_are_all_that_the_construction_has(algorithm):
    """Zeros around the two blocks give P and V back."""
    blocks = algorithm.blocks(-0.7, torch.float64)
    for whole, back in zip(algorithm.construction(-0.7, torch.float64), join(*blocks), strict=True):
        close(back, whole, atol=0)


@each_algorithm
def test_nothing_is_modified(algorithm):
    mdp, features, parameters, window = situation(algorithm)
    maps = [features] if algorithm.name == "sarsa" else list(features)
    tensors = [*maps, parameters, *window[:3], mdp.transition, mdp.reward]
    before = [t.clone() for t in tensors]
    algorithm.policy(features, parameters)
    observed = algorithm.observe(features, parameters, window)
    algorithm.teach(parameters, observed)
    algorithm.forward(parameters, observed, *algorithm.construction(dtype=torch.float64))
    assert all(map(torch.equal, tensors, before))


BAD = {
    "d": [0, -1, 2.0, True, None],
    "alpha": [0, -0.2, math.nan, None],
    "epsilon": [-0.1, 1.1, math.nan, None],
    "m": [0, -1, 2.0, True, None],
    "beta": [0, -0.2, math.nan, None],
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((SARSA, name, value) for name in ("d", "alpha", "epsilon") for value in BAD[name]),
        *((ActorCritic, name, value) for name in BAD for value in BAD[name]),
    ],
)
def test_settings_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        kind(**{name: value})


@each_algorithm
def test_policy_refuses_bad_parameters(algorithm, spoil):
    _, features, parameters, _ = situation(algorithm)
    with pytest.raises(ValueError, match=r"^parameters\b"):
        algorithm.policy(features, spoil(parameters))


@each_algorithm
def test_policy_refuses_parameters_that_do_not_fit(algorithm, mismatch):
    _, features, parameters, _ = situation(algorithm)
    with pytest.raises(ValueError, match=r"^parameters\b"):
        algorithm.policy(features, mismatch(parameters))


@each_algorithm
@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan, "0.1"])
def test_policy_refuses_epsilon(algorithm, epsilon):
    _, features, parameters, _ = situation(algorithm)
    with pytest.raises(ValueError, match=r"^epsilon:"):
        algorithm.policy(features, parameters, epsilon)


@each_algorithm
def test_what_is_no_generator_is_refused(algorithm):
    mdp, *_ = situation(algorithm)
    with pytest.raises(ValueError, match=r"^generator:"):
        algorithm.draw_features(mdp, None)
    with pytest.raises(ValueError, match=r"^generator:"):
        algorithm.draw_parameters(B, 0)


@each_algorithm
def test_draw_parameters_refuses_an_empty_batch(generator, algorithm):
    with pytest.raises(ValueError, match=r"^batch:"):
        algorithm.draw_parameters(0, generator)


# --- the loop


def test_greedy_sarsa_in_deterministic_mdps_equals_a_simulation(generator):
    """Five windows of N steps in each of two MDPs."""
    jump = [[[(2 * s + a + b) % S for a in range(A)] for s in range(S)] for b in range(B)]
    transition = torch.eye(S, dtype=torch.float64)[torch.tensor(jump)]
    reward = torch.randn(B, S, A, S, generator=generator, dtype=torch.float64)
    initial = torch.full((B, S), 1 / S, dtype=torch.float64)
    mdp = TabularMDP(transition, reward, initial, 0.5)
    algorithm = SARSA(d=4, alpha=0.3, epsilon=0)
    features = algorithm.draw_features(mdp, generator)
    first = algorithm.draw_parameters(B, generator, torch.float64)
    start = torch.tensor([1, 2])
    loop = interact(
        algorithm, mdp, features, first, start, algorithm.teach, n=N, generator=generator
    )
    frames = list(islice(loop, 5))
    for b in range(B):
        w, s, phi = first[b].numpy(), start[b].item(), features[b].numpy()
        for frame in frames:
            close(frame.parameters[b], w)
            trajectory = []
            for _ in range(N + 1):
                a = max(range(A), key=lambda a: dot(w, phi[s, a]))
                trajectory.append((s, a))
                s = jump[b][s][a]
            new = w.copy()
            for (s, a), (t, u) in itertools.pairwise(trajectory):
                delta = reward[b, s, a, t].item() + 0.5 * dot(w, phi[t, u]) - dot(w, phi[s, a])
                new += 0.3 / N * delta * phi[s, a]
            w, s = new, trajectory[-1][0]
            close(frame.updated[b], w)
            assert frame.state[b] == s


@each_algorithm
def test_updates_are_those_of_the_given_function(generator, algorithm):
    """Here parameters are doubled."""
    mdp, features, parameters, _ = situation(algorithm)
    state = torch.zeros(B, dtype=torch.int64)
    loop = interact(
        algorithm, mdp, features, parameters, state, lambda p, _: 2 * p, n=2, generator=generator
    )
    for k, frame in enumerate(islice(loop, 4)):
        assert torch.equal(frame.parameters, 2**k * parameters)
        assert torch.equal(frame.updated, 2 ** (k + 1) * parameters)


def test_windows_follow_on_each_other(generator):
    """One-hot value features show the states."""
    algorithm = ActorCritic(d=S, m=2)
    mdp = random_mdps(B, S, A, generator=generator)
    drawn = algorithm.draw_features(mdp, generator)
    features = ActorCriticFeatures(drawn.policy, one_hot_features(B, S))
    parameters = algorithm.draw_parameters(B, generator)
    state = torch.tensor([2, 1])
    loop = interact(
        algorithm, mdp, features, parameters, state, algorithm.teach, n=N, generator=generator
    )
    for frame in islice(loop, 10):
        before, after = (phi.argmax(-1) for phi in frame.observation[:2])
        assert torch.equal(before[:, 0], state)
        assert torch.equal(before[:, 1:], after[:, :-1])
        assert torch.equal(after[:, -1], frame.state)
        state = frame.state


@pytest.mark.parametrize("kind", ["sarsa", "actor_critic"])
def test_behaviour_explores(generator, kind):
    """Action 1 is greedy; with epsilon = 0.4 it is taken 0.8 of the time, 0.2 the other one."""
    many = 20_000
    one_state = torch.ones(many, 1, 2, 1)
    mdp = TabularMDP(one_state, one_state, one_state[:, 0, 0], 0.5)
    pairs = one_hot_features(many, 1, 2)
    if kind == "sarsa":
        algorithm, features = SARSA(d=2, epsilon=0.4), pairs
        parameters = torch.tensor([0.0, 1.0]).expand(many, 2)
    else:
        algorithm = ActorCritic(d=1, m=2, epsilon=0.4)
        features = ActorCriticFeatures(pairs, one_hot_features(many, 1))
        parameters = torch.tensor([0.0, 50.0, 0.0]).expand(many, 3)
    state = torch.zeros(many, dtype=torch.int64)
    loop = interact(
        algorithm, mdp, features, parameters, state, algorithm.teach, n=1, generator=generator
    )
    observation = next(loop).observation
    # SARSA shows the one-hot pair; the score of action 0 is [1, -1] and that of action 1 is 0.
    took_0 = observation[0 if kind == "sarsa" else 3][:, 0, 0] > 0.5
    assert took_0.double().mean().item() == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize(
    ("name", "value"), [("n", 0), ("n", 2.0), ("generator", None), ("state", torch.zeros(B))]
)
def test_loop_refuses(generator, name, value):
    algorithm = ALGOS[0]
    mdp, features, parameters, _ = situation(algorithm)
    given = {
        "algorithm": algorithm,
        "mdp": mdp,
        "features": features,
        "parameters": parameters,
        "state": torch.zeros(B, dtype=torch.int64),
        "update": algorithm.teach,
        "n": 2,
        "generator": generator,
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        next(interact(**{**given, name: value}))
