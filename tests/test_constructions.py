"""Theorems 3.1 and 3.3, executed; and the distance of a learned block to their manifold."""

import math

import numpy as np
import pytest
import torch

from icrl_lib.attention import linear_self_attention
from icrl_lib.constructions import actor_critic, project, sarsa
from icrl_lib.prompts import actor_critic_prompt, sarsa_prompt
from icrl_lib.teachers import actor_critic_update, sarsa_update

SCALES = [1.0, 0.3, -1.0, -2.5]
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-4)]


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def experience(generator, B, n, d, m, dtype=torch.float64):
    """Everything a teacher sees, with entries uniform on (-1, 1)."""
    shapes = {
        "lam": (B, m),
        "w": (B, d),
        "phi_v": (B, n, d),
        "phi_v_next": (B, n, d),
        "rewards": (B, n),
        "scores": (B, n, m),
    }
    uniform = {k: 2 * torch.rand(v, generator=generator).double() - 1 for k, v in shapes.items()}
    return {k: v.to(dtype) for k, v in uniform.items()}


def sarsa_experience(generator, B, n, d, dtype=torch.float64):
    _, w, phi, phi_next, rewards, _ = experience(generator, B, n, d, 1, dtype).values()
    return {"w": w, "phi": phi, "phi_next": phi_next, "rewards": rewards}


def sarsa_error(given, P, V, alpha):
    H = sarsa_prompt(**given, discount=0.7)
    updated = linear_self_attention(H, P, V)[:, -given["w"].shape[1] :, -1]
    return (updated - sarsa_update(**given, discount=0.7, alpha=alpha)).abs().max().item()


def actor_critic_error(given, P, V, alpha, beta):
    H = actor_critic_prompt(**given, discount=0.7)
    updated = torch.cat(actor_critic_update(**given, discount=0.7, alpha=alpha, beta=beta), -1)
    read = linear_self_attention(H, P, V)[:, -updated.shape[1] :, -1]
    return (read - updated).abs().max().item()


# --- Theorem 3.1


def test_sarsa_construction_by_hand():
    """d = 1, alpha = 1/2, c = 2: rows phi, gamma phi+, r, 1, w."""
    P, V = sarsa(1, 0.5, c=2)
    assert P.tolist() == [
        [0, 0, 0, 0, -2],
        [0, 0, 0, 0, 2],
        [0, 0, 0, 2, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert V.tolist() == [[0] * 5] * 4 + [[0.25, 0, 0, 0, 0]]


@pytest.mark.parametrize("d", range(1, 13))
@pytest.mark.parametrize("c", SCALES)
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_theorem_3_1(generator, d, c, dtype, error):
    """Three instances for each of eight window lengths: 1,152 for each precision."""
    P, V = sarsa(d, 0.2, c, dtype)
    for n in (1, 2, 3, 5, 8, 13, 20, 40):
        assert sarsa_error(sarsa_experience(generator, 3, n, d, dtype), P, V, 0.2) < error


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 3.0])
def test_theorem_3_1_for_every_step_size(generator, alpha):
    given = sarsa_experience(generator, 10, 7, 4)
    assert sarsa_error(given, *sarsa(4, alpha, dtype=torch.float64), alpha) < 1e-12


@pytest.mark.parametrize(
    ("matrix", "row", "column"),
    [("P", 1, 9), ("P", 4, 9), ("P", 6, 7), ("V", 9, 1)],
    ids=["-I", "I", "1", "alpha I"],
)
def test_theorem_3_1_needs_every_block(generator, matrix, row, column):
    """By 1 % of one entry; d = 3: the constant 1 has row 7, w has rows 8 to 10."""
    weights = dict(zip("PV", sarsa(3, 0.2, dtype=torch.float64), strict=True))
    assert weights[matrix][row, column] != 0
    weights[matrix][row, column] *= 1.01
    assert sarsa_error(sarsa_experience(generator, 10, 5, 3), **weights, alpha=0.2) > 1e-4


@pytest.mark.parametrize("factor", [2, -1])
def test_theorem_3_1_needs_both_scales(generator, factor):
    """(c P*, V*) steps c times too far: the error is |c - 1| times the step."""
    given = sarsa_experience(generator, 10, 5, 3)
    P, V = sarsa(3, 0.2, dtype=torch.float64)
    step = sarsa_update(**given, discount=0.7, alpha=0.2) - given["w"]
    expected = abs(factor - 1) * step.abs().max().item()
    assert sarsa_error(given, factor * P, V, 0.2) == pytest.approx(expected, rel=1e-12)


def test_theorem_3_1_leaves_the_other_blocks_free(generator):
    """P11, P21, V11, V12 and the row of the constant, d = 2: tokens have 5 rows."""
    P, V = sarsa(2, 0.2, dtype=torch.float64)
    P[:, :5] = torch.randn(8, 5, generator=generator)
    V[:6] = torch.randn(6, 8, generator=generator)
    assert sarsa_error(sarsa_experience(generator, 10, 5, 2), P, V, 0.2) < 1e-12


# --- Theorem 3.3


def test_actor_critic_construction_by_hand():
    """d = m = 1, alpha = 1/2, beta = 3, c = 2: rows phi, gamma phi+, r, g, 1, lambda, w."""
    P, V = actor_critic(1, 1, 0.5, 3, c=2)
    assert P.tolist() == [
        [0, 0, 0, 0, 0, 0, -2],
        [0, 0, 0, 0, 0, 0, 2],
        [0, 0, 0, 0, 2, 0, 0],
        *[[0] * 7] * 4,
    ]
    assert V.tolist() == [*[[0] * 7] * 5, [0, 0, 0, 0.25, 0, 0, 0], [1.5, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("d", range(1, 13))
@pytest.mark.parametrize("c", SCALES)
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_theorem_3_3(generator, d, c, dtype, error):
    """Three instances for each of eight sizes (n, m): 1,152 for each precision."""
    for n, m in ((1, 1), (2, 12), (3, 2), (5, 7), (8, 1), (13, 4), (20, 12), (40, 5)):
        P, V = actor_critic(d, m, 0.2, 0.8, c, dtype)
        assert actor_critic_error(experience(generator, 3, n, d, m, dtype), P, V, 0.2, 0.8) < error


@pytest.mark.parametrize(("alpha", "beta"), [(1e-3, 2.0), (3.0, 1e-3)])
def test_theorem_3_3_for_every_step_size(generator, alpha, beta):
    P, V = actor_critic(4, 3, alpha, beta, dtype=torch.float64)
    assert actor_critic_error(experience(generator, 10, 7, 4, 3), P, V, alpha, beta) < 1e-12


@pytest.mark.parametrize(
    ("matrix", "row", "column"),
    [("P", 1, 13), ("P", 4, 13), ("P", 6, 9), ("V", 11, 8), ("V", 13, 1)],
    ids=["-I", "I", "1", "alpha I", "beta I"],
)
def test_theorem_3_3_needs_every_block(generator, matrix, row, column):
    """By 1 % of one entry; d = 3, m = 2: g has rows 7, 8, the constant row 9, lambda 10, 11."""
    weights = dict(zip("PV", actor_critic(3, 2, 0.2, 0.8, dtype=torch.float64), strict=True))
    assert weights[matrix][row, column] != 0
    weights[matrix][row, column] *= 1.01
    given = experience(generator, 10, 5, 3, 2)
    assert actor_critic_error(given, **weights, alpha=0.2, beta=0.8) > 1e-4


def test_theorem_3_3_leaves_the_other_blocks_free(generator):
    """d = 2, m = 1: tokens have 6 rows, D = 10."""
    P, V = actor_critic(2, 1, 0.2, 0.8, dtype=torch.float64)
    P[:, :6] = torch.randn(10, 6, generator=generator)
    V[:7] = torch.randn(7, 10, generator=generator)
    assert actor_critic_error(experience(generator, 10, 5, 2, 1), P, V, 0.2, 0.8) < 1e-12


def test_blocks_applied_again_take_the_next_steps_on_the_same_window(generator):
    """Depth is iteration: three layers are three updates."""
    given = sarsa_experience(generator, 5, 6, 3)
    P, V = sarsa(3, 0.2, dtype=torch.float64)
    H = sarsa_prompt(**given, discount=0.7)
    for _ in range(3):
        H = linear_self_attention(H, P, V)
        given["w"] = sarsa_update(**given, discount=0.7, alpha=0.2)
    close(H[:, -3:, -1], given["w"])


# --- inputs


def test_constructions_are_float32_unless_told():
    for weights in (sarsa(2, 0.2), actor_critic(2, 1, 0.2, 0.8)):
        assert [t.dtype for t in weights] == [torch.float32] * 2


BAD = {
    **dict.fromkeys(("d", "m"), (0, -1, 2.0, True, None)),
    **dict.fromkeys(("alpha", "beta"), (0, -0.2, math.nan, math.inf, "0.2", None)),
    "c": (0, 0.0, math.nan, math.inf, None),
}


@pytest.mark.parametrize(
    ("construction", "good", "name", "value"),
    [
        (construction, good, name, value)
        for construction, good in (
            (sarsa, {"d": 2, "alpha": 0.2, "c": 1.0}),
            (actor_critic, {"d": 2, "m": 2, "alpha": 0.2, "beta": 0.8, "c": 1.0}),
        )
        for name in good
        for value in BAD[name]
    ],
)
def test_constructions_refuse(construction, good, name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        construction(**{**good, name: value})


# --- projection on the manifold

STARS = {
    "sarsa": sarsa(3, 0.2, dtype=torch.float64),
    "actor_critic": actor_critic(2, 3, 0.2, 0.8, dtype=torch.float64),
}


@pytest.mark.parametrize("star", STARS.values(), ids=STARS.keys())
@pytest.mark.parametrize("c", [1e-2, 0.4, 1, 7.5, -1e-2, -0.4, -1, -7.5])
def test_projection_recovers_a_point_of_the_manifold(star, c):
    found = project(c * star[0], star[1] / c, *star)
    assert found.c == pytest.approx(c, rel=1e-12)
    assert found.distance < 1e-12
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.stray == 0


def noisy(star, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) + 0.5 * t for t in star]


@pytest.mark.parametrize("star", STARS.values(), ids=STARS.keys())
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sign", [1, -1])
def test_distance_is_the_smallest_over_a_grid_of_c(star, seed, sign):
    P, V = (sign * t for t in noisy(star, seed))
    grid = torch.logspace(-3, 2, 20_000, dtype=torch.float64)
    grid = torch.cat([grid, -grid]).unsqueeze(-1)
    squared = (P.flatten() - grid * star[0].flatten()).square().sum(-1)
    squared += (V.flatten() - star[1].flatten() / grid).square().sum(-1)
    found = project(P, V, *star)
    assert found.c == pytest.approx(grid[squared.argmin()].item(), rel=1e-3)
    assert found.distance == pytest.approx(squared.min().sqrt().item(), rel=1e-6)
    assert found.distance <= squared.min().sqrt() * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_cosine_is_that_to_the_nearest_point(seed):
    star = STARS["sarsa"]
    P, V = noisy(star, seed)
    found = project(P, V, *star)
    learned = np.concatenate([P.numpy().ravel(), V.numpy().ravel()])
    nearest = np.concatenate([found.c * star[0].numpy().ravel(), star[1].numpy().ravel() / found.c])
    expected = learned @ nearest / math.sqrt((learned @ learned) * (nearest @ nearest))
    assert found.cosine == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("in_p", "in_v", "stray"), [(0.3, 0, 0.15), (0, -0.04, 0.4), (0.3, 0.04, 0.4), (-0.3, 0, 0.15)]
)
def test_stray_is_relative_to_the_largest_entry_of_its_matrix(in_p, in_v, stray):
    """With c = 2 and alpha = 0.2 the largest entries are 2 in P and 0.1 in V."""
    star = STARS["sarsa"]
    P, V = 2 * star[0], star[1] / 2
    P[0, 0], V[0, 0] = in_p, in_v
    assert project(P, V, *star).stray == pytest.approx(stray, rel=1e-12)


def test_stray_counts_entries_off_the_pattern_only():
    star = STARS["sarsa"]
    P, V = star[0].clone(), star[1].clone()
    P[0, 8] = -5  # where P* has -1: d = 3, w has rows 8 to 10
    assert star[0][0, 8] == -1
    assert project(P, V, *star).stray == 0


def test_without_entries_off_the_pattern_nothing_strays():
    """Blocks of size 1 are all pattern."""
    one = torch.ones(1, 1)
    assert project(3 * one, one, one, one).stray == 0


def test_projection_of_blocks_equals_that_of_the_matrices():
    star = STARS["sarsa"]
    P, V = (torch.zeros_like(t) for t in star)
    learned = noisy([star[0][:7, 7:], star[1][8:, :7]], 0)
    P[:7, 7:], V[8:, :7] = learned
    of_blocks = project(*learned, star[0][:7, 7:], star[1][8:, :7])
    assert of_blocks == pytest.approx(project(P, V, *star), rel=1e-12)


def test_projection_of_float32():
    P, V = (t.float() for t in STARS["sarsa"])
    assert project(-0.5 * P, -2 * V, P, V).c == pytest.approx(-0.5, rel=1e-6)


def test_projection_of_a_tensor_that_requires_a_gradient():
    P, V = STARS["sarsa"]
    assert project(P.clone().requires_grad_(), V, P, V).c == pytest.approx(1, rel=1e-12)


def test_projection_modifies_nothing():
    star = STARS["sarsa"]
    tensors = [*noisy(star, 0), *star]
    before = [t.clone() for t in tensors]
    project(*tensors)
    assert all(map(torch.equal, tensors, before))


TALL, WIDE = torch.ones(4, 5), torch.ones(2, 3)
GOOD = {"P": TALL, "V": WIDE, "P_star": TALL, "V_star": WIDE}


@pytest.mark.parametrize("name", GOOD)
def test_projection_refuses_bad_tensors(name, spoil):
    with pytest.raises(ValueError, match=f"^{name}:"):
        project(**{**GOOD, name: spoil(GOOD[name])})


@pytest.mark.parametrize("name", GOOD)
def test_projection_refuses_tensors_that_disagree(name, mismatch):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        project(**{**GOOD, name: mismatch(GOOD[name])})


def test_projection_refuses_pairs_of_two_dtypes():
    with pytest.raises(ValueError, match=r"^V: expected the dtype of P\b"):
        project(**{**GOOD, "V": WIDE.double(), "V_star": WIDE.double()})


@pytest.mark.parametrize("name", ["P_star", "V_star"])
def test_projection_refuses_a_manifold_through_zero(name):
    given = {n: torch.eye(3) for n in ("P", "V", "P_star", "V_star")}
    with pytest.raises(ValueError, match=rf"^{name}: expected a matrix other than 0"):
        project(**{**given, name: torch.zeros(3, 3)})
