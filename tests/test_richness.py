"""Curvature and the constants of Assumption 1 against brute force, and data that are not rich."""

import dataclasses
import math

import pytest
import torch
from samples import F64, close, collect, config, flat, noise, on_manifold

from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.attention import join
from icrl_lib.constructions import project
from icrl_lib.features import one_hot_features
from icrl_lib.flow import gradient_flow, normal_part, tangent
from icrl_lib.landscape import symmetry_blocks
from icrl_lib.mdps import random_mdps
from icrl_lib.policies import initial_states
from icrl_lib.richness import (
    Richness,
    alignment,
    curvature,
    guarantee,
    richness,
    smallest_eigenvalue,
)
from icrl_lib.students import LinearBlock
from icrl_lib.training import draw_situation, relative_error


def grouped(generator, *, d=2, draws=5, each=30, **family):
    """First windows of `each` problems for each of `draws` parameters, as Assumption 1 reads."""
    cfg = config(SARSA(d=d), **family)
    mdp, features, _, state = draw_situation(cfg, draws * each, generator)
    w = cfg.algorithm.draw_parameters(draws, generator, F64).repeat_interleave(each, 0)
    return collect(cfg, generator, frames=1, situation=(mdp, features, w, state))


@pytest.fixture
def rich(generator):
    return grouped(generator)


def constants(problem, draws=5):
    return richness(
        problem.objective,
        *problem.star,
        draws=draws,
        bound_features=math.sqrt(problem.cfg.algorithm.d),
        bound_reward=1.0,
    )


# --- curvature


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("c", [0.4, -1.5])
def test_rich_data_leave_one_null_direction_the_tangent(generator, d, c):
    problem = collect(config(SARSA(d=d)), generator, batch=80)
    local = curvature(problem.objective, *on_manifold(problem, c))
    assert local.nullity == 1
    assert local.rate == local.eigenvalues[1] > 1e-6 * local.eigenvalues[-1]
    null = flat((local.null_p[0], local.null_v[0]))
    along = flat(tangent(c, *problem.star))
    assert abs(null @ along) / along.norm() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("one_hot", "nullity"), [(False, 1), (True, 1 + 2 * 6 + 1)])
def test_windows_in_float32_leave_the_null_directions_as_many(generator, one_hot, nullity):
    cfg = config(SARSA(d=6), dtype="float32")
    mdp, features, w, state = draw_situation(cfg, 100, generator)
    if one_hot:
        features = one_hot_features(100, 3, 2)
    problem = collect(cfg, generator, situation=(mdp, features, w, state), frames=4)
    assert curvature(problem.objective, *on_manifold(problem, 0.7)).nullity == nullity


def test_an_eigenvalue_is_zero_up_to_a_part_of_the_largest(rich):
    values = curvature(rich.objective, *rich.star).eigenvalues
    share = (values[1] / values[-1]).item()
    for factor, nullity in ((0.99, 1), (1.01, 2)):
        found = curvature(rich.objective, *rich.star, tolerance=factor * share)
        assert (found.nullity, found.rate) == (nullity, values[nullity].item())


def test_curvature_of_actor_critic(generator):
    problem = collect(config(ActorCritic(d=2, m=2)), generator, batch=200)
    local = curvature(problem.objective, *on_manifold(problem, 0.7))
    assert len(local.eigenvalues) == 7 * 5 + 4 * 7
    matrix = problem.objective.gauss_newton(*on_manifold(problem, 0.7))
    for pair in zip(local.null_p, local.null_v, strict=True):
        assert (matrix @ flat(pair)).norm() < 1e-11 * local.eigenvalues[-1]


def test_curvature_refuses_a_flat_loss(generator):
    problem = collect(config(), generator)
    with pytest.raises(ValueError, match=r"^objective:"):
        curvature(problem.objective, *(torch.zeros_like(t) for t in problem.star))


# --- condition 5


def correlation(matrix, U, W):
    """E<X, Y> / sqrt(E||X||^2 E||Y||^2)."""
    u, w = U.flatten(), W.flatten()
    m = len(u)
    norms = (u @ matrix[:m, :m] @ u) * (w @ matrix[m:, m:] @ w)
    return ((u @ matrix[:m, m:] @ w) / norms.sqrt()).item()


@pytest.mark.parametrize("c", [0.3, 1.0, -2.0])
def test_condition_5_as_printed_fails_for_every_distribution(generator, c):
    """(a P*, s V*) with a (2 d + 1) = s alpha^2 d / c^2 is normal, and its two effects agree."""
    d, alpha, s = 3, 0.2, 0.8
    problem = collect(config(SARSA(d=d, alpha=alpha)), generator)
    U = s * alpha**2 * d / c**2 / (2 * d + 1) * problem.star[0]
    W = s * problem.star[1]
    for before, after in zip((U, W), normal_part(c, U, W, *problem.star), strict=True):
        close(after, before)
    matrix = problem.objective.gauss_newton(*on_manifold(problem, c))
    assert correlation(matrix, U, W) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("c", [0.3, 1.0, -2.0])
@pytest.mark.parametrize("d", [1, 2])
def test_rho_bounds_the_correlation_on_the_normal_space(generator, c, d):
    problem = grouped(generator, d=d)
    matrix = problem.objective.gauss_newton(*on_manifold(problem, c))
    rho = alignment(matrix, *problem.star).rho
    assert 0 < rho < 1
    for _ in range(500):
        pair = normal_part(c, *noise(generator, problem.star), *problem.star)
        assert correlation(matrix, *pair) > -rho


@pytest.mark.parametrize("c", [0.3, 1.0, -2.0])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_rho_is_approached_within_the_normal_space(generator, c, d):
    """Mend the boundary pair with a little of P* or V*, so that it lies in N_c."""
    problem = grouped(generator, d=d)
    matrix = problem.objective.gauss_newton(*on_manifold(problem, c))
    found = alignment(matrix, *problem.star)
    assert correlation(matrix, found.P12, found.V21) == pytest.approx(-found.rho, abs=1e-12)
    P, V = problem.star
    p, v = (found.P12 * P).sum(), (found.V21 * V).sum()
    assert min(abs(p), abs(v)) < 1e-10
    if abs(p) < abs(v):
        U, W = found.P12 + 1e-6 * v / c**2 / P.square().sum() * P, 1e-6 * found.V21
    else:
        U, W = 1e-6 * found.P12, found.V21 + 1e-6 * p * c**2 / V.square().sum() * V
    size = flat((U, W)).norm()  # the pair has no size of its own; its rounding has
    close(flat(normal_part(c, U, W, P, V)) / size, flat((U, W)) / size, atol=1e-14)
    assert -found.rho < correlation(matrix, U, W) < -found.rho + 1e-4


def test_rho_is_approached_by_an_optimiser_and_not_exceeded(generator):
    problem = grouped(generator)
    matrix = problem.objective.gauss_newton(*problem.star)
    rho, best = alignment(matrix, *problem.star).rho, 0.0
    m = problem.star[0].numel()
    for _ in range(3):
        pair = [t.requires_grad_() for t in noise(generator, problem.star)]
        adam = torch.optim.Adam(pair, lr=0.02)
        for _ in range(400):
            u, w = (t.flatten() for t in normal_part(1.0, *pair, *problem.star))
            norms = (u @ matrix[:m, :m] @ u) * (w @ matrix[m:, m:] @ w)
            value = (u @ matrix[:m, m:] @ w) / norms.sqrt()
            adam.zero_grad()
            value.backward()
            adam.step()
            best = min(best, value.item())
    assert -rho < best < -rho + 0.01


def test_rho_at_least_the_second_canonical_correlation_and_below_one(rich):
    matrix, m = rich.objective.gauss_newton(*rich.star), rich.star[0].numel()
    roots = []
    for part in (matrix[:m, :m], matrix[m:, m:]):
        values, vectors = torch.linalg.eigh(part)
        roots.append(vectors / values.sqrt() @ vectors.mT)
    cosines = torch.linalg.svdvals(roots[0] @ matrix[:m, m:] @ roots[1])
    assert cosines[0].item() == pytest.approx(1, abs=1e-10)  # the tangent
    assert cosines[1] <= alignment(matrix, *rich.star).rho < 1


def test_rho_does_not_depend_on_which_block_comes_first(rich):
    matrix, (P, V) = rich.objective.gauss_newton(*rich.star), rich.star
    order = torch.arange(len(matrix)).roll(-P.numel())
    swapped = alignment(matrix[order][:, order], V, P)
    found = alignment(matrix, P, V)
    assert swapped.rho == pytest.approx(found.rho, rel=1e-12)
    assert swapped.P12.shape == found.V21.shape == V.shape


def test_alignment_refuses_float32(rich):
    matrix, (P, V) = rich.objective.gauss_newton(*rich.star), rich.star
    with pytest.raises(ValueError, match=r"^matrix: .*float64.*float32"):
        alignment(matrix.float(), P.float(), V.float())


@pytest.mark.parametrize("part", ["P12", "V21"])
def test_alignment_tells_a_small_eigenvalue_from_a_rounded_zero(part):
    stars = torch.ones(3, dtype=F64), torch.ones(2, dtype=F64)
    spectrum = torch.tensor([4.0, 1, 1, 5, 1], dtype=F64)
    place = spectrum[1:2] if part == "P12" else spectrum[4:]
    place[:] = 2e-13 * (4 if part == "P12" else 5)
    assert alignment(spectrum.diag(), *stars).rho == 0
    place /= 2
    with pytest.raises(ValueError, match=f"^matrix: .*{part}"):
        alignment(spectrum.diag(), *stars)


def test_alignment_refuses_a_singular_part(generator):
    problem = collect(config(discount=0.0), generator)
    with pytest.raises(ValueError, match=r"^matrix: .*P12"):
        alignment(problem.objective.gauss_newton(*problem.star), *problem.star)


# --- Assumption 1 and Theorem 3.2


def test_constants_are_the_smallest_eigenvalues(rich):
    found, o = constants(rich), rich.objective
    second = torch.einsum("np,nq->pq", o.column, o.column) / len(o.column)
    b = torch.einsum("nkl,lq,nq->nk", o.sigma, rich.star[0], o.column)
    R = o.sigma[:, :2].reshape(5, 30, 2, 5)
    given_w = [torch.stack([r.mT @ r for r in group]).mean(0) for group in R]
    for value, expected in (
        (found.kappa_column, torch.linalg.eigvalsh(second)[0]),
        (found.kappa_window, min(torch.linalg.eigvalsh(m)[0] for m in given_w)),
        (found.kappa_update, torch.linalg.eigvalsh(b.mT @ b / len(b))[0]),
        (found.bound_column, o.column.norm(dim=1).max()),
        (found.rho, alignment(o.gauss_newton(*rich.star), *rich.star).rho),
    ):
        assert value == pytest.approx(float(expected), rel=1e-12)
    assert (found.bound_features, found.bound_reward) == (math.sqrt(2), 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_kappa_of_rounded_zeros_is_zero(seed):
    """Under one w two of three directions of w~ are never seen; rounding leaves 1e-17 there."""
    generator = torch.Generator().manual_seed(seed)
    cfg = config()
    mdp, features, _, state = draw_situation(cfg, 60, generator)
    w = cfg.algorithm.draw_parameters(1, generator, F64).repeat(60, 1)
    problem = collect(cfg, generator, frames=1, situation=(mdp, features, w, state))
    found = constants(problem, draws=1)
    assert (found.kappa_column, found.rho) == (0, 1)
    assert found.kappa_window > 1e-4
    assert found.kappa_update > 1e-4


@pytest.mark.parametrize("draws", [0, 4.0, 7, 3])
def test_richness_refuses_groups_that_are_none(rich, draws):
    with pytest.raises(ValueError, match=r"^draws:"):
        constants(rich, draws)


@pytest.mark.parametrize(("name", "value"), [("bound_features", 0), ("bound_reward", math.nan)])
def test_richness_refuses_bounds(rich, name, value):
    good = {"draws": 5, "bound_features": 2.0, "bound_reward": 1.0}
    with pytest.raises(ValueError, match=f"^{name}:"):
        richness(rich.objective, *rich.star, **{**good, name: value})


def test_richness_refuses_bounds_that_the_sample_breaks(rich):
    with pytest.raises(ValueError, match=r"^bound_features, bound_reward:"):
        richness(rich.objective, *rich.star, draws=5, bound_features=0.1, bound_reward=0.1)


BY_HAND = Richness(
    bound_features=1, bound_reward=2, bound_column=0.5, kappa_column=0.5, kappa_window=0.4,
    kappa_update=0.3, rho=0.6,
)  # fmt: skip


def test_theorem_3_2_by_hand():
    """B_Sigma = 6, alpha = 3, c = 2, I = {2}: m0 = 0.4 min(9 0.5 0.4 / 4, 4 0.3) = 0.18."""
    found = guarantee(BY_HAND, d=4, alpha=3, c=2, width=0, fraction=0)
    assert found.m0 == pytest.approx(0.18)
    assert list(found[1:3]) == pytest.approx([6**2 * 0.5**2 * (9 / 4 + 2 * 4), 1.5])
    assert (found.r, found.start) == (0, 0)
    assert found.mu == pytest.approx(0.18**2 / found.M0)
    wide = guarantee(BY_HAND, d=4, alpha=3, c=2, width=0.5, fraction=0.5)
    assert wide.m0 == pytest.approx(0.4 * min(9 * 0.5 * 0.4 / 9, 0.3))
    assert list(wide[1:3]) == pytest.approx([9 * (9 + 2 * 9), 1.5])
    assert wide.r == pytest.approx(0.5 * math.sqrt(wide.m0) / 4.5)
    reach = math.sqrt(wide.M0) + 1.5 * wide.r
    numerator = wide.m0 - 3 * 1.5 * math.sqrt(wide.m0) * wide.r
    assert wide.mu == pytest.approx((numerator / reach) ** 2)
    assert wide.start == pytest.approx(wide.r / (1 + reach / math.sqrt(wide.mu)))
    by_v21 = guarantee(BY_HAND._replace(kappa_window=40), d=4, alpha=3, c=2, width=0.5)
    assert by_v21.m0 == pytest.approx(0.4 * 0.3)
    narrow = guarantee(BY_HAND, d=4, alpha=3, c=2, width=1e-9)  # the ends of I are near
    reach = math.sqrt(narrow.M0) + 1.5 * narrow.r
    assert narrow.start == pytest.approx(3e-9 / (1 + reach / math.sqrt(narrow.mu)))


@pytest.mark.parametrize("change", [{"kappa_update": 0.0}, {"rho": 1.0}, {"kappa_window": 0.0}])
def test_without_richness_nothing_is_guaranteed(change):
    found = guarantee(BY_HAND._replace(**change), d=4, alpha=3, c=2)
    assert (found.m0, found.r, found.mu, found.start) == (0, 0, 0, 0)


BAD_GUARANTEE = {
    "d": (0, 2.0),
    "alpha": (0, math.nan),
    "c": (0, -1.0, math.inf),
    "width": (-0.1, 1, "0.1"),
    "fraction": (-0.1, 1, None),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_GUARANTEE for value in BAD_GUARANTEE[name]]
)
def test_guarantee_refuses(name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        guarantee(BY_HAND, **{"d": 4, "alpha": 3.0, "c": 2.0, name: value})


@pytest.mark.parametrize("d", [1, 2, 3])
def test_inequalities_of_the_proof_hold_in_the_tube(generator, d):
    """For random normal pairs at random scales of I: m0, M0, C_Q, and the slope mu_r."""
    problem = grouped(generator, d=d)
    c = (0.04 * d / (2 * d + 1)) ** 0.25
    promised = guarantee(constants(problem), d=d, alpha=0.2, c=c)
    o, (P_star, V_star) = problem.objective, problem.star
    assert promised.mu > 0
    for _ in range(200):
        scale = c * (0.9 + 0.2 * torch.rand((), generator=generator).item())
        U, W = normal_part(scale, *noise(generator, problem.star), *problem.star)
        size = flat((U, W)).norm()
        length = promised.r * torch.rand((), generator=generator, dtype=F64)
        U, W = U / size * length, W / size * length
        matrix = o.gauss_newton(*on_manifold(problem, scale))
        first = flat((U, W)) @ matrix @ flat((U, W))
        assert promised.m0 * length**2 <= first <= promised.M0 * length**2
        second = torch.einsum("dk,nkl,lq,nq->nd", W, o.sigma, U, o.column)
        assert second.norm(dim=-1).max() <= promised.C_Q * length**2
        there = scale * P_star + U, V_star / scale + W
        squared = flat(o.gradient(*there)).square().sum()
        assert squared >= 2 * promised.mu * o.loss(*there)


def test_guaranteed_rate_is_below_the_local_one(rich):
    c = (0.04 * 2 / 5) ** 0.25
    promised = guarantee(constants(rich), d=2, alpha=0.2, c=c, width=0, fraction=0)
    local = curvature(rich.objective, *on_manifold(rich, c))
    assert promised.m0 < local.rate < local.eigenvalues[-1] < promised.M0
    assert promised.mu < 1e-3 * local.rate


def test_flow_from_within_the_radius_keeps_the_promise(rich, generator):
    c = (0.04 * 2 / 5) ** 0.25
    promised = guarantee(constants(rich), d=2, alpha=0.2, c=c)
    point = on_manifold(rich, c)
    away = noise(generator, rich.star)
    size = flat(away).norm()
    start = [a + 0.9 * promised.start / size * b for a, b in zip(point, away, strict=True)]
    times = torch.logspace(2, 7, 10, dtype=F64)
    times = torch.cat([torch.zeros(1, dtype=F64), times])
    flow = gradient_flow(rich.objective, *start, times, tolerance=1e-13)
    bound = flow.losses[0] * torch.exp(-2 * promised.mu * times)
    assert (flow.losses <= bound * (1 + 1e-12)).all()
    for P12, V21 in zip(flow.P12, flow.V21, strict=True):
        assert project(P12, V21, *rich.star).distance < promised.r


def test_smallest_eigenvalue_is_bracketed_on_average(generator):
    """Wishart matrices of 200 samples in 4 dimensions, smallest eigenvalue of the mean 1."""
    scales = torch.tensor([1.0, 1.5, 2, 3], dtype=F64).sqrt()
    low, high, error = [], [], []
    for _ in range(300):
        x = torch.randn(200, 4, generator=generator, dtype=F64) * scales
        bracket = smallest_eigenvalue(x.unsqueeze(2) * x.unsqueeze(1))
        low.append(bracket.low), high.append(bracket.high), error.append(bracket.error)
    low, high = torch.tensor(low), torch.tensor(high)
    assert low.mean() + 4 * low.std() / 300**0.5 < 1 < high.mean() - 4 * high.std() / 300**0.5
    assert 0.6 < torch.tensor(error).mean() / high.std() < 1.1


def test_smallest_eigenvalue_uses_both_halves_alike(generator):
    x = torch.randn(40, 3, generator=generator, dtype=F64)
    matrices = x.unsqueeze(2) * x.unsqueeze(1)
    again = smallest_eigenvalue(matrices.roll(20, 0))
    assert again == pytest.approx(smallest_eigenvalue(matrices), rel=1e-12)


@pytest.mark.parametrize("matrices", [torch.ones(3, 2, 2), torch.ones(5, 2, 3), torch.ones(5, 2)])
def test_smallest_eigenvalue_refuses(matrices):
    with pytest.raises(ValueError, match=r"^matrices:"):
        smallest_eigenvalue(matrices)


# --- richness, broken one condition at a time


def misses(algorithm, blocks, **family):
    """Error on other MDPs, relative to the teacher's step: 0 perfect, 1 as bad as no update."""
    cfg = config(algorithm, n_mdps=100, frames=2, **family)
    block = LinearBlock.from_weights(algorithm, *join(*blocks))
    return relative_error(cfg, block, generator=torch.Generator().manual_seed(99)) ** 2


def false_solution(problem, c=0.5):
    """The construction plus a step of 3 along a null direction of P12 alone: not the tangent.

    The residual is linear in P12, so that the loss stays zero at any distance.
    """
    point = on_manifold(problem, c)
    m = point[0].numel()
    matrix = problem.objective.gauss_newton(*point)[:m, :m]
    values, vectors = torch.linalg.eigh(matrix)
    assert values[0] < 1e-13 * values[-1]
    return point[0] + 3 * vectors[:, 0].reshape(point[0].shape), point[1]


def null_counts(problem, c=0.5):
    """Null directions in all, within P12 alone, within V21 alone."""
    point = on_manifold(problem, c)
    matrix = problem.objective.gauss_newton(*point)
    m = point[0].numel()
    parts = (matrix[:m, :m], matrix[m:, m:])
    alone = [
        int((values <= 1e-11 * values[-1]).sum()) for values in map(torch.linalg.eigvalsh, parts)
    ]
    return curvature(problem.objective, *point).nullity, *alone


def one_feature_map(cfg, generator, batch=60, *, one_mdp=True):
    """Every agent sees the same features, and the same MDP unless told otherwise."""
    mdp, features, w, state = draw_situation(cfg, batch, generator)
    first = torch.zeros(batch, dtype=torch.int64)
    return (mdp[first] if one_mdp else mdp), features[first], w, state


@pytest.mark.parametrize(("S", "A"), [(2, 2), (3, 2)])
def test_one_hot_features_leave_2d_plus_1_more(generator, S, A):
    """gamma sum phi - sum gamma phi+ is zero for every token: one blind spot v in tokens."""
    d = S * A
    cfg = config(SARSA(d=d), n_states=S, n_actions=A)
    mdp, _, w, state = draw_situation(cfg, 100, generator)
    one_hot = one_hot_features(100, S, A, dtype=F64)
    problem = collect(cfg, generator, situation=(mdp, one_hot, w, state), frames=4)
    assert null_counts(problem) == (1 + 2 * d + 1, d + 1, d)
    blind = torch.cat([0.5 * torch.ones(d, dtype=F64), -torch.ones(d, dtype=F64), torch.zeros(1)])
    assert (problem.objective.sigma @ blind).abs().max() < 1e-15
    wrong = false_solution(problem)
    assert problem.objective.loss(*wrong) < 1e-26
    assert misses(cfg.algorithm, on_manifold(problem, 0.5)) < 1e-24
    assert misses(cfg.algorithm, wrong) > 0.1


def test_one_hot_solutions_agree_on_one_hot_features_unless_the_discount_changes(generator):
    """The blind spot moves with gamma: [gamma; -1; 0]."""
    cfg = config(SARSA(d=4), n_states=2)
    objectives = {}
    for gamma in (0.5, 0.9):
        mdp = random_mdps(100, 2, 2, gamma, generator=generator, dtype=F64)
        w = cfg.algorithm.draw_parameters(100, generator, F64)
        one_hot = one_hot_features(100, 2, 2, dtype=F64)
        situation = mdp, one_hot, w, initial_states(mdp, generator)
        objectives[gamma] = collect(cfg, generator, situation=situation, frames=4)
    wrong = false_solution(objectives[0.5])
    assert objectives[0.5].objective.loss(*wrong) < 1e-26
    assert objectives[0.9].objective.loss(*wrong) > 1e-5


@pytest.mark.parametrize("w", [[0.0, 0, 0], [0.3, -0.5, 0.7]])
def test_one_fixed_w_leaves_d_times_2d_plus_1_more(generator, w):
    """P12 is tested on one vector w~ only."""
    d, cfg = 3, config(SARSA(d=3))
    mdp, features, _, state = draw_situation(cfg, 100, generator)
    w = torch.tensor(w, dtype=F64).repeat(100, 1)
    problem = collect(
        cfg, generator, situation=(mdp, features, w, state), update=lambda w, _: w, frames=4
    )
    assert null_counts(problem) == (1 + d * (2 * d + 1), d * (2 * d + 1), 0)
    wrong = false_solution(problem)
    assert problem.objective.loss(*wrong) < 1e-26
    assert misses(cfg.algorithm, wrong) > 0.1


def test_discount_zero_hides_the_next_features(generator):
    """The slot gamma phi+ is empty: d (d + 1) entries of P12 and d^2 of V21 are never tested."""
    d, cfg = 3, config(SARSA(d=3), discount=0.0)
    problem = collect(cfg, generator, batch=100)
    assert null_counts(problem) == (1 + d * (d + 1) + d * d, d * (d + 1), d * d)
    wrong = false_solution(problem)
    assert problem.objective.loss(*wrong) < 1e-26
    assert misses(cfg.algorithm, wrong, discount=0.0) < 1e-24
    assert misses(cfg.algorithm, wrong, discount=0.5) > 0.1


@pytest.mark.parametrize("one_mdp", [True, False])
def test_one_feature_map_with_as_many_features_as_pairs(generator, one_mdp):
    """d = S A: a change of basis away from one-hot features; other MDPs alone do not help."""
    d, cfg = 4, config(SARSA(d=4), n_states=2)
    situation = one_feature_map(cfg, generator, 150, one_mdp=one_mdp)
    problem = collect(cfg, generator, situation=situation, frames=10)
    assert null_counts(problem) == (1 + 2 * d + 1, d + 1, d)
    wrong = false_solution(problem)
    assert problem.objective.loss(*wrong) < 1e-26
    assert misses(cfg.algorithm, wrong, n_states=2) > 0.1


def test_one_mdp_is_enough_with_fewer_features_than_pairs(generator):
    """Not a failure: d = 2 < S A = 6, one MDP, one feature map."""
    cfg = config()
    problem = collect(cfg, generator, situation=one_feature_map(cfg, generator), frames=10)
    assert null_counts(problem) == (1, 0, 0)


def test_one_mdp_is_enough_with_many_feature_maps(generator):
    """Not a failure: d = S A = 4, one MDP, features drawn anew for every agent."""
    cfg = config(SARSA(d=4), n_states=2)
    mdp, features, w, state = draw_situation(cfg, 150, generator)
    mdp = mdp[torch.zeros(150, dtype=torch.int64)]
    problem = collect(cfg, generator, situation=(mdp, features, w, state))
    assert null_counts(problem) == (1, 0, 0)


def test_greedy_behaviour_alone_is_rich(generator):
    """Not a failure: epsilon = 0 over many MDPs, features and w."""
    problem = grouped(generator, d=3, draws=10)
    greedy = dataclasses.replace(problem.cfg.algorithm, epsilon=0.0)
    w = problem.situation[2]
    problem = collect(
        config(greedy), generator, situation=(*problem.situation[:2], w, problem.situation[3])
    )
    assert null_counts(problem) == (1, 0, 0)


def test_greedy_behaviour_fails_where_there_is_one_policy(generator):
    """One MDP, one feature map, d = S, only w with the same greedy policy: S pairs are seen."""
    mdp, features, w, state = one_feature_map(config(SARSA(d=3)), generator, 3000)
    actions = SARSA(d=3).policy(features, w, epsilon=0).argmax(-1)  # (B, S)
    same = (actions == actions.mode(0).values).all(-1)
    assert 100 < same.sum() < 3000
    situation = mdp[same], features[same], w[same], state[same]
    found = {
        epsilon: collect(
            config(SARSA(d=3, epsilon=epsilon)),
            generator,
            situation=situation,
            update=lambda w, _: w,
        )
        for epsilon in (0.0, 0.1)
    }
    assert null_counts(found[0.0]) == (1 + 2 * 3 + 1, 4, 3)
    assert null_counts(found[0.1]) == (1, 0, 0)
    wrong = false_solution(found[0.0])
    assert found[0.0].objective.loss(*wrong) < 1e-26
    assert found[0.1].objective.loss(*wrong) > 1e-5
    assert misses(SARSA(d=3), wrong) > 0.1


def test_one_feature_is_rich_but_has_a_false_local_minimum(generator):
    """d = 1: one null direction, and yet the flow can end where P12 and V21 have swapped roles."""
    problem = collect(config(SARSA(d=1), window=20), generator, batch=500, frames=1)
    assert null_counts(problem) == (1, 0, 0)
    P12 = torch.tensor([[0.4, 0.0], [0.0, 0.0], [0.0, -0.2]], dtype=F64)  # 1 meets phi, w meets r
    V21 = torch.tensor([[0.0, 0.0, 0.4]], dtype=F64)  # and V21 reads r
    times = torch.tensor([0, 1e6], dtype=F64)
    flow = gradient_flow(problem.objective, P12, V21, times, tolerance=1e-12)
    end = flow.P12[-1], flow.V21[-1]
    assert flat(problem.objective.gradient(*end)).norm() < 1e-10
    assert flow.losses[-1] > 1e-5
    values = torch.linalg.eigvalsh(problem.objective.hessian(*end))
    assert abs(values[0]) < 1e-9  # scaling
    assert values[1] > 1e-6  # a strict minimum otherwise
    assert misses(problem.cfg.algorithm, end) > 0.01


@pytest.mark.parametrize(
    ("broken", "vanishing"),
    [
        ({"discount": 0.0}, {"kappa_window", "kappa_update"}),
        ({}, set()),
    ],
)
def test_a_broken_condition_shows_in_the_constants(generator, broken, vanishing):
    found = constants(grouped(generator, **broken))
    kappas = {
        name for name in found._fields if name.startswith("kappa") and not getattr(found, name)
    }
    assert kappas == vanishing
    assert (found.rho == 1) == bool(vanishing)


def test_nothing_is_modified(rich):
    tensors = [rich.objective.sigma, rich.objective.column, rich.objective.target, *rich.star]
    before = [t.clone() for t in tensors]
    constants(rich)
    curvature(rich.objective, *rich.star)
    symmetry_blocks(rich.objective, *rich.star)
    gradient_flow(rich.objective, *rich.star, torch.tensor([0, 1], dtype=F64))
    assert all(map(torch.equal, tensors, before))
