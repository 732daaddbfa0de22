"""Textbook updates against hand-worked examples and plain loops over floats."""

import math

import pytest
import torch

from icrl_lib.teachers import actor_critic_update, sarsa_update, td_errors

SIZES = [(1, 1, 1, 1), (1, 2, 3, 4), (3, 5, 1, 2), (2, 20, 4, 3)]  # B, n, d, m
PRECISIONS = [(torch.float64, 1e-13), (torch.float32, 1e-5)]


def close(actual, expected, atol):
    expected = torch.tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def experience(generator, B, n, d, m, dtype):
    shapes = {
        "lam": (B, m),
        "w": (B, d),
        "phi_v": (B, n, d),
        "phi_v_next": (B, n, d),
        "rewards": (B, n),
        "scores": (B, n, m),
    }
    return {k: torch.randn(v, generator=generator, dtype=dtype) for k, v in shapes.items()}


def sarsa_names(experience):
    w, phi, phi_next, rewards = (experience[k] for k in ("w", "phi_v", "phi_v_next", "rewards"))
    return {"w": w, "phi": phi, "phi_next": phi_next, "rewards": rewards}


def loop_errors(w, phi, phi_next, rewards, discount):
    """delta_i of one MDP, on lists of floats."""
    errors = []
    for x, x_next, r in zip(phi, phi_next, rewards, strict=True):
        value = sum(a * b for a, b in zip(w, x, strict=True))
        value_next = sum(a * b for a, b in zip(w, x_next, strict=True))
        errors.append(r + discount * value_next - value)
    return errors


def loop_step(old, directions, factors, step):
    """old + (step / n) sum_i factor_i direction_i, on lists of floats."""
    new = list(old)
    for factor, direction in zip(factors, directions, strict=True):
        for j, x in enumerate(direction):
            new[j] += step / len(factors) * factor * x
    return new


def rows(*tensors):
    return zip(*(t.tolist() for t in tensors), strict=True)


# Two transitions, d = 2, gamma = 1/2: values 1, 2 and next values 2, 0, hence errors 4 and -3.
HAND = {
    "w": torch.tensor([[1.0, 2.0]]),
    "phi": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
    "phi_next": torch.tensor([[[0.0, 1.0], [2.0, -1.0]]]),
    "rewards": torch.tensor([[4.0, -1.0]]),
}


def test_td_errors_by_hand():
    assert td_errors(**HAND, discount=0.5).tolist() == [[4, -3]]


def test_sarsa_update_by_hand():
    """[1, 2] + (1/2)/2 * (4 [1, 0] - 3 [0, 1])."""
    assert sarsa_update(**HAND, discount=0.5, alpha=0.5).tolist() == [[2, 1.25]]


def test_actor_critic_update_by_hand():
    """lambda: 1 + (2/2) (4 * 3 - (1/2) 3 * 2); w: [1, 2] + (1/2)/2 * [4, -3]."""
    w, phi, phi_next, rewards = HAND.values()
    scores = torch.tensor([[[3.0], [2.0]]])
    lam, w = actor_critic_update(
        torch.tensor([[1.0]]), w, phi, phi_next, rewards, scores, 0.5, alpha=2, beta=0.5
    )
    assert lam.tolist() == [[10]]
    assert w.tolist() == [[2, 1.25]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("discount", [0, 0.5, 0.9])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_td_errors_equal_loops(generator, sizes, discount, dtype, error):
    given = sarsa_names(experience(generator, *sizes, dtype))
    expected = [loop_errors(*row, discount) for row in rows(*given.values())]
    close(td_errors(**given, discount=discount), expected, error)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("discount", [0, 0.5, 0.9])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_sarsa_update_equals_loops(generator, sizes, discount, dtype, error):
    given = sarsa_names(experience(generator, *sizes, dtype))
    expected = [
        loop_step(row[0], row[1], loop_errors(*row, discount), 0.2) for row in rows(*given.values())
    ]
    close(sarsa_update(**given, discount=discount, alpha=0.2), expected, error)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("discount", [0, 0.5, 0.9])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_actor_critic_update_equals_loops(generator, sizes, discount, dtype, error):
    given = experience(generator, *sizes, dtype)
    expected_lam, expected_w = [], []
    for lam, w, phi, phi_next, rewards, scores in rows(*given.values()):
        delta = loop_errors(w, phi, phi_next, rewards, discount)
        discounted = [discount**i * x for i, x in enumerate(delta)]
        expected_lam.append(loop_step(lam, scores, discounted, 0.3))
        expected_w.append(loop_step(w, phi, delta, 0.7))
    lam, w = actor_critic_update(**given, discount=discount, alpha=0.3, beta=0.7)
    close(lam, expected_lam, error)
    close(w, expected_w, error)


@pytest.mark.parametrize("teacher", ["td_errors", "sarsa", "actor_critic"])
def test_teachers_modify_nothing(generator, teacher):
    given = experience(generator, 2, 3, 4, 5, torch.float64)
    before = {k: v.clone() for k, v in given.items()}
    if teacher == "actor_critic":
        actor_critic_update(**given, discount=0.5, alpha=0.2, beta=0.8)
    elif teacher == "sarsa":
        sarsa_update(**sarsa_names(given), discount=0.5, alpha=0.2)
    else:
        td_errors(**sarsa_names(given), discount=0.5)
    assert all(torch.equal(given[k], before[k]) for k in given)


# --- refusals

AC = {
    "lam": torch.ones(2, 5),
    "w": torch.ones(2, 4),
    "phi_v": torch.ones(2, 3, 4),
    "phi_v_next": torch.ones(2, 3, 4),
    "rewards": torch.ones(2, 3),
    "scores": torch.ones(2, 3, 5),
    "discount": 0.5,
    "alpha": 0.2,
    "beta": 0.8,
}
SARSA = {
    "w": torch.ones(2, 4),
    "phi": torch.ones(2, 3, 4),
    "phi_next": torch.ones(2, 3, 4),
    "rewards": torch.ones(2, 3),
    "discount": 0.5,
}
TENSORS = [
    *((td_errors, SARSA, name) for name in SARSA if name != "discount"),
    *((sarsa_update, {**SARSA, "alpha": 0.2}, name) for name in SARSA if name != "discount"),
    *((actor_critic_update, AC, name) for name in AC if isinstance(AC[name], torch.Tensor)),
]
NUMBERS = [
    *((td_errors, SARSA, "discount", value) for value in (-0.1, 1, math.nan, None)),
    *((sarsa_update, {**SARSA, "alpha": 0.2}, "discount", value) for value in (-0.1, 1)),
    *((sarsa_update, SARSA, "alpha", value) for value in (0, -1, math.inf, "0.2", None)),
    *((actor_critic_update, AC, "discount", value) for value in (-0.1, 1)),
    *(
        (actor_critic_update, AC, name, value)
        for name in ("alpha", "beta")
        for value in (0, -1, math.inf, "0.2", None)
    ),
]


@pytest.mark.parametrize(("teacher", "good", "name"), TENSORS)
def test_teachers_refuse_bad_tensors(teacher, good, name, spoil):
    with pytest.raises(ValueError, match=f"^{name}:"):
        teacher(**{**good, name: spoil(good[name])})


@pytest.mark.parametrize(("teacher", "good", "name"), TENSORS)
def test_teachers_refuse_tensors_that_disagree(teacher, good, name, mismatch):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        teacher(**{**good, name: mismatch(good[name])})


@pytest.mark.parametrize(("teacher", "good", "name", "value"), NUMBERS)
def test_teachers_refuse_numbers(teacher, good, name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        teacher(**{**good, name: value})
