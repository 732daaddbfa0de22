"""In-context TD (Wang et al., 2025) against plain loops over floats, and its training."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lib import in_context_td
from icrl_lib.features import one_hot_features, random_features
from icrl_lib.in_context_td import (
    Settings,
    boyan_chains,
    construction,
    draw_stretch,
    gram,
    looped_transformer,
    predict,
    prompt,
    read_values,
    train,
)
from icrl_lib.mdps import TabularMDP
from icrl_lib.prompts import sarsa_tokens


def context(generator, B=2, n=6, m=3, d=4, dtype=torch.float64):
    shapes = {"phi": (B, n, d), "phi_next": (B, n, d), "rewards": (B, n), "query": (B, m, d)}
    return {k: torch.randn(v, generator=generator, dtype=dtype) / 2 for k, v in shapes.items()}


def random_weights(generator, d=4, dtype=torch.float64):
    size = 2 * d + 1
    return torch.randn(2, size, size, generator=generator, dtype=dtype) / size**0.5


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def loop_td(phi, phi_next, rewards, discount, alpha, depth):
    """Batch TD(0) from w = 0 on one context, on lists of floats."""
    n, d = len(phi), len(phi[0])
    w = [0.0] * d
    for _ in range(depth):
        step = [0.0] * d
        for x, x_next, r in zip(phi, phi_next, rewards, strict=True):
            delta = r + discount * dot(w, x_next) - dot(w, x)
            step = [s + alpha / n * delta * f for s, f in zip(step, x, strict=True)]
        w = [a + b for a, b in zip(w, step, strict=True)]
    return w


def literal_layer(Z, P, Q, n):
    """Z + (1 / n) P Z M (Z^T Q Z), with M written out."""
    M = torch.diag((torch.arange(Z.shape[-1]) < n).to(Z.dtype))
    return Z + P @ Z @ M @ (Z.mT @ Q @ Z) / n


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    m=st.integers(1, 3),
    d=st.integers(1, 5),
    depth=st.integers(1, 6),
    discount=st.floats(0, 0.99),
    alpha=st.floats(0.01, 1),
    c=st.sampled_from([1.0, -1.0, 0.2, -5.0]),
)
def test_construction_is_batch_td_of_a_plain_loop(seed, n, m, d, depth, discount, alpha, c):
    data = context(torch.Generator().manual_seed(seed), B=1, n=n, m=m, d=d)
    Z = prompt(**data, discount=discount)
    P, Q = construction(d, alpha, c, torch.float64)
    values = read_values(looped_transformer(Z, P, Q, depth, m), m)[0].tolist()
    phi, phi_next, rewards, query = (data[k][0].tolist() for k in data)
    w = loop_td(phi, phi_next, rewards, discount, alpha, depth)
    expected = [dot(w, x) for x in query]
    size = max(1.0, *(abs(v) for v in expected))  # TD may diverge: the bound is relative then
    assert max(abs(a - b) for a, b in zip(values, expected, strict=True)) < 1e-12 * size


def test_one_step_by_hand():
    """w = 0.1 / 2 (1 * 2 + 2 * 1) = 0.2, so the value of feature 3 is 0.6."""
    Z = torch.tensor([[[2.0, 1.0, 3.0], [0.5, -0.5, 0.0], [1.0, 2.0, 0.0]]])
    P, Q = construction(1, 0.1)
    torch.testing.assert_close(
        read_values(looped_transformer(Z, P, Q, 1)), torch.tensor([[0.6]]), rtol=0, atol=1e-6
    )


def test_construction_has_these_entries():
    P, Q = construction(1, 0.5, c=2.0)
    assert P.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 2]]
    assert Q.tolist() == [[-0.25, 0.25, 0], [0, 0, 0], [0, 0, 0]]


def test_prompt_has_tokens_then_queries():
    one = torch.tensor([[[2.0]]])
    Z = prompt(one, 4 * one, one[..., 0], 3 * one, 0.5)
    assert Z.tolist() == [[[2, 6], [4, 0], [2, 0]]]


@pytest.mark.parametrize("depth", [1, 3])
def test_layers_are_the_formula_with_its_mask(generator, depth):
    data = context(generator)
    Z = expected = prompt(**data, discount=0.9)
    P, Q = random_weights(generator)
    for _ in range(depth):
        expected = literal_layer(expected, P, Q, n=6)
    torch.testing.assert_close(looped_transformer(Z, P, Q, depth, 3), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_second_moments_predict_what_the_columns_do(generator, dtype, tolerance):
    data = context(generator, dtype=dtype)
    P, Q = random_weights(generator, dtype=dtype)
    by_columns = read_values(looped_transformer(prompt(**data, discount=0.9), P, Q, 3, 3), 3)
    query = data.pop("query")
    moments = gram(sarsa_tokens(*data.values(), 0.9))
    by_moments = predict(moments, query, P, Q, 3)
    torch.testing.assert_close(by_moments, by_columns, rtol=tolerance, atol=tolerance)


def test_answers_do_not_depend_on_the_other_queries(generator):
    data = context(generator)
    P, Q = random_weights(generator)
    together = read_values(looped_transformer(prompt(**data, discount=0.9), P, Q, 3, 3), 3)
    alone = data | {"query": data["query"][:, 1:2]}
    single = read_values(looped_transformer(prompt(**alone, discount=0.9), P, Q, 3))
    torch.testing.assert_close(together[:, 1:2], single, rtol=1e-12, atol=1e-12)


def test_answers_are_linear_in_the_query_whatever_the_weights(generator):
    data = context(generator)
    P, Q = random_weights(generator)
    moments = gram(sarsa_tokens(data["phi"], data["phi_next"], data["rewards"], 0.9))
    w = predict(moments, one_hot_features(2, 4, dtype=torch.float64), P, Q, 3)
    answers = predict(moments, data["query"], P, Q, 3)
    expected = torch.einsum("bmd,bd->bm", data["query"], w)
    torch.testing.assert_close(answers, expected, rtol=1e-12, atol=1e-12)


def test_boyan_chains_have_their_form(generator):
    mdp = boyan_chains(50, 6, 0.9, generator=generator, dtype=torch.float64)
    possible = torch.zeros(6, 6, dtype=torch.bool)
    for state in range(4):
        possible[state, [state + 1, state + 2]] = True
    possible[4, 5] = True
    possible[5] = True
    assert ((mdp.transition[:, :, 0] > 0) == possible).all()


def test_boyan_probabilities_are_uniform(generator):
    """Mean 1/2 and variance 0.98^2 / 12 of 40,000 numbers."""
    mdp = boyan_chains(5000, 10, 0.9, generator=generator)
    forward = mdp.transition[:, range(8), 0, range(1, 9)]
    assert forward.mean().item() == pytest.approx(0.5, abs=0.006)
    assert forward.var().item() == pytest.approx(0.98**2 / 12, abs=0.001)


def test_boyan_probabilities_stay_away_from_0_and_1(generator):
    """Numbers between 0.01 and 0.99; where they are divided by their sum, no two differ by more."""
    mdp = boyan_chains(100, 40, 0.9, generator=generator, dtype=torch.float64)
    forward = mdp.transition[:, range(38), 0, range(1, 39)]
    assert 0.01 < forward.min() < 0.011
    assert 0.989 < forward.max() < 0.99
    for rows in (mdp.initial, mdp.transition[:, -1, 0]):
        assert 90 < (rows.amax(-1) / rows.amin(-1)).max() < 0.99 / 0.01


def test_every_boyan_reward_can_be_changed_alone(generator):
    reward = boyan_chains(2, 6, 0.9, generator=generator).reward
    before = reward.clone()
    reward[0, 0, 0, 0] += 1
    assert (reward != before).sum() == 1


def test_boyan_rewards_depend_on_the_state_alone(generator):
    reward = boyan_chains(5, 6, 0.9, generator=generator).reward
    assert (reward == reward[..., :1]).all()
    assert len(reward[..., 0].unique()) == 30


def test_a_stretch_slides_by_one_transition(generator):
    """Along a circle of 12 states with one-hot features every place can be read off."""
    transition = torch.eye(12).roll(1, 1)[None, :, None]
    reward = torch.arange(12.0)[None, :, None, None].expand_as(transition)
    circle = TabularMDP(transition, reward, torch.eye(12)[:1], 0.5)
    stretch = draw_stretch(circle, one_hot_features(1, 12), 4, 2, generator)
    before, after, paid = stretch.tokens.split((12, 12, 1), -1)
    assert before[0].argmax(-1).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert after[0].argmax(-1).tolist() == [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert after.max() == 0.5
    assert paid[0, :, :, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert stretch.query[0].argmax(-1).tolist() == [5, 6, 7]
    assert stretch.rewards.tolist() == [[5, 6]]


SHORT = Settings(depth=2, steps=60, chains=32, positions=8)


def test_training_finds_the_diagonal_of_the_construction():
    """One layer: -alpha I with alpha near 1.7 where phi meets phi."""
    learned = train(replace(SHORT, depth=1, steps=150, learning_rate=3e-2))
    diagonal = (learned.Q * learned.P[-1, -1])[:4, :4].diag()
    assert diagonal.tolist() == pytest.approx([-1.7] * 4, abs=0.7)


def test_the_loss_of_zero_predictions_is_the_mean_square_of_the_rewards():
    """Rewards uniform on (-1, 1): 1 / 3."""
    silent = replace(SHORT, gain=1e-12, learning_rate=1e-12, chains=500, steps=4)
    assert train(silent).losses.mean().item() == pytest.approx(1 / 3, abs=0.01)


def test_training_repeats_to_the_bit():
    first, second = train(SHORT), train(SHORT)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_training_does_not_depend_on_the_default_dtype():
    expected = train(SHORT)
    torch.set_default_dtype(torch.float64)
    try:
        learned = train(SHORT)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(learned, expected, strict=True))


def test_weights_decay():
    """A decay that dwarfs the loss: Adam's first step is then the learning rate, towards 0."""
    decayed = replace(SHORT, steps=1, learning_rate=1e-3, weight_decay=1e9)
    start = train(replace(decayed, learning_rate=1e-30))
    for before, after in zip(start[:2], train(decayed)[:2], strict=True):
        torch.testing.assert_close(after, before - 1e-3 * before.sign(), rtol=0, atol=1e-6)


def test_training_differs_with_the_seed():
    assert not torch.equal(train(SHORT).P, train(replace(SHORT, seed=1)).P)


def test_the_target_is_held_fixed(monkeypatch):
    """Only the earlier of two neighbouring predictions moves the weights."""
    seen = []
    original = in_context_td.predict

    def spy(*arguments):
        values = original(*arguments)
        values.retain_grad()
        seen.append(values)
        return values

    monkeypatch.setattr(in_context_td, "predict", spy)
    train(replace(SHORT, steps=1))
    gradient = seen[0].grad.reshape(32, 9)
    assert (gradient[:, -1] == 0).all()  # the last prediction only ever serves as a target
    assert (gradient[:, :-1] != 0).all()


@pytest.mark.parametrize("name", ["phi", "phi_next", "rewards", "query"])
def test_prompt_refuses_bad_tensors(generator, name, spoil):
    data = context(generator)
    data[name] = spoil(data[name])
    with pytest.raises(ValueError, match=r"^(phi|phi_next|rewards|query):"):
        prompt(**data, discount=0.9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda Z, P: looped_transformer(Z, P[:-1], P, 1), "P"),
        (lambda Z, P: looped_transformer(Z, P, P[:-1], 1), "Q"),
        (lambda Z, P: looped_transformer(Z, P, P, 0), "depth"),
        (lambda Z, P: looped_transformer(Z, P, P, 1, 0), "n_queries"),
        (lambda Z, P: looped_transformer(Z, P, P, 1, 4), "n_queries"),
        (lambda Z, P: read_values(Z, 0), "n_queries"),
        (lambda Z, P: predict(P[None], torch.ones(1, 1, 3), P, P, 1), "query"),
        (lambda Z, P: predict(P[None], torch.ones(1, 1, 2), P, P, 0), "depth"),
        (lambda Z, P: construction(0, 0.1), "d"),
        (lambda Z, P: construction(1, 0.0), "alpha"),
        (lambda Z, P: construction(1, 0.1, 0.0), "c"),
        (lambda Z, P: boyan_chains(0, generator=torch.Generator()), "batch"),
        (lambda Z, P: boyan_chains(1, 2, generator=torch.Generator()), "n_states"),
        (lambda Z, P: boyan_chains(1, discount=1.0, generator=torch.Generator()), "discount"),
        (lambda Z, P: boyan_chains(1, generator=0), "generator"),
        (lambda Z, P: Settings(depth=0), "depth"),
        (lambda Z, P: Settings(seed=-1), "seed"),
        (lambda Z, P: Settings(discount=1.0), "discount"),
        (lambda Z, P: Settings(weight_decay=-1.0), "weight_decay"),
        (lambda Z, P: Settings(final=0.0), "final"),
        (lambda Z, P: Settings(learning_rate=math.inf), "learning_rate"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        call(torch.ones(1, 5, 4), torch.eye(5))


@pytest.mark.parametrize(("name", "value"), [("n", 0), ("positions", -1)])
def test_a_stretch_refuses_bad_lengths(generator, name, value):
    mdp = boyan_chains(2, generator=generator)
    phi = random_features(2, 10, 4, generator=generator)
    arguments = {"n": 5, "positions": 0} | {name: value}
    with pytest.raises(ValueError, match=f"^{name}:"):
        draw_stretch(mdp, phi, **arguments, generator=generator)
