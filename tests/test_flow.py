"""Gradient flow, what it conserves, and where it ends; predictions made before it starts."""

import decimal
from types import SimpleNamespace

import pytest
import torch
from samples import F64, close, collect, config, flat, noise, on_manifold, unflat

from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.constructions import project
from icrl_lib.flow import gradient_flow, imbalance, normal_part, predicted_scale, tangent
from icrl_lib.richness import curvature


def random_problem(seed):
    """d from 1 to 3, random discount and step size; a start in the basin of the construction."""
    generator = torch.Generator().manual_seed(seed)
    gamma, alpha = (0.2 + 0.7 * torch.rand(2, generator=generator)).tolist()
    cfg = config(SARSA(d=1 + seed % 3, alpha=alpha), discount=gamma)
    problem = collect(cfg, generator, batch=40, frames=5)
    drawn = noise(generator, problem.star, 0.2)
    return problem, [a + 0.8 * b for a, b in zip(drawn, problem.star, strict=True)]


@pytest.fixture(scope="module", params=range(21))
def flowed(request):
    """Predictions made before the flow starts, and the flow."""
    problem, start = random_problem(request.param)
    c = predicted_scale(imbalance(*start).item(), *problem.star)
    local = curvature(problem.objective, *on_manifold(problem, c))
    times = torch.linspace(0, 20 / local.rate, 41, dtype=F64)
    flow = gradient_flow(problem.objective, *start, times)
    return SimpleNamespace(**vars(problem), start=start, c=c, local=local, flow=flow)


def test_flow_starts_where_told_and_descends(flowed):
    assert torch.equal(flowed.flow.P12[0], flowed.start[0])
    assert torch.equal(flowed.flow.V21[0], flowed.start[1])
    assert (flowed.flow.losses[:30].diff() < 0).all()
    assert flowed.flow.losses[-1] < 1e-12


def test_flow_conserves_the_imbalance(flowed):
    along = imbalance(flowed.flow.P12, flowed.flow.V21)
    close(along, imbalance(*flowed.start).expand_as(along), atol=1e-7)


def test_end_point_is_predicted_from_the_start(flowed):
    found = project(flowed.flow.P12[-1], flowed.flow.V21[-1], *flowed.star)
    assert abs(found.c) == pytest.approx(flowed.c, rel=1e-6)
    assert found.distance < 1e-5


def test_local_rate_is_half_the_slope_of_log_loss(flowed):
    """-d log L / dt is a mean of twice the eigenvalues, and tends to the smallest one's.

    As a difference quotient where L is around 1e-12, well above the solver's error; and at the end
    as ||gradient||^2 / L, which needs no times.
    """
    assert flowed.local.nullity == 1
    losses, times = flowed.flow.losses, flowed.flow.times
    slope = -0.5 * (losses[22] / losses[18]).log() / (times[22] - times[18])
    assert slope.item() == pytest.approx(flowed.local.rate, rel=0.05)
    gradient = flat(flowed.objective.gradient(flowed.flow.P12[-1], flowed.flow.V21[-1]))
    slope = 0.5 * gradient.square().sum() / losses[-1]
    assert slope.item() == pytest.approx(flowed.local.rate, rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_loss_falls_at_the_local_rate_from_the_slowest_direction(seed):
    """Started on the slowest eigenvector, the slope is the rate from the beginning."""
    problem, _ = random_problem(seed)
    point = on_manifold(problem, 0.5)
    local = curvature(problem.objective, *point)
    matrix = problem.objective.gauss_newton(*point)
    slowest = unflat(torch.linalg.eigh(matrix).eigenvectors[:, local.nullity], problem.star)
    start = [a + 1e-6 * b for a, b in zip(point, slowest, strict=True)]
    times = torch.linspace(0, 2 / local.rate, 3, dtype=F64)
    losses = gradient_flow(problem.objective, *start, times, tolerance=1e-12).losses
    slopes = -0.5 * losses.log().diff() / times.diff()
    close(slopes, torch.full_like(slopes, local.rate), atol=0, rtol=1e-3)


@pytest.mark.parametrize("seed", range(100, 120))
def test_end_point_and_rate_are_predicted_from_small_random_starts(seed):
    """Twenty problems, 400 windows each, and no knowledge of the construction in the start.

    All twenty flows arrive; with fewer MDPs or features some do not (chapter 16).
    """
    generator = torch.Generator().manual_seed(seed)
    gamma, alpha = (0.2 + 0.7 * torch.rand(2, generator=generator)).tolist()
    cfg = config(SARSA(d=3, alpha=alpha), discount=gamma, window=20)
    problem = collect(cfg, generator, batch=200, frames=2)
    start = noise(generator, problem.star, 0.1)
    c = predicted_scale(imbalance(*start).item(), *problem.star)
    rate = curvature(problem.objective, *on_manifold(problem, c)).rate
    times = torch.tensor([0, 30 / rate], dtype=F64)
    flow = gradient_flow(problem.objective, *start, times, tolerance=1e-9)
    end = flow.P12[-1], flow.V21[-1]
    found = project(*end, *problem.star)
    assert abs(found.c) == pytest.approx(c, rel=1e-7)
    assert found.distance < 1e-7
    slope = 0.5 * flat(problem.objective.gradient(*end)).square().sum() / flow.losses[-1]
    assert slope.item() == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_carry_over_to_actor_critic(seed):
    """One null direction, the end point, and the rate; the next eigenvalue is close, so 10 %."""
    generator = torch.Generator().manual_seed(seed)
    problem = collect(config(ActorCritic(d=2, m=2), window=20), generator, batch=200, frames=2)
    start = noise(generator, problem.star, 0.02)
    c = predicted_scale(imbalance(*start).item(), *problem.star)
    local = curvature(problem.objective, *on_manifold(problem, c))
    assert local.nullity == 1
    times = torch.tensor([0, 14 / local.rate, 30 / local.rate], dtype=F64)
    flow = gradient_flow(problem.objective, *start, times)
    assert abs(project(flow.P12[-1], flow.V21[-1], *problem.star).c) == pytest.approx(c, rel=1e-7)
    gradient = flat(problem.objective.gradient(flow.P12[1], flow.V21[1]))
    slope = 0.5 * gradient.square().sum() / flow.losses[1]
    assert local.rate < slope.item() < 1.1 * local.rate


def test_flow_begins_along_the_negative_gradient(generator):
    problem, start = random_problem(1)
    flow = gradient_flow(
        problem.objective, *start, torch.tensor([0, 1e-4], dtype=F64), tolerance=1e-13
    )
    moved = flat((flow.P12[1], flow.V21[1])) - flat(start)
    expected = -1e-4 * flat(problem.objective.gradient(*start))
    close(moved, expected, atol=1e-3 * expected.abs().max().item())


def test_imbalance_and_predicted_scale_by_hand():
    """c^2 a - b / c^2 with a = ||P*||^2 = 5, b = ||V*||^2 = 8 and c = 2 is 18."""
    P12, V21 = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0], [2.0]])
    assert imbalance(2 * P12, V21 / 2).item() == 18
    assert predicted_scale(18, P12, V21) == pytest.approx(2, rel=1e-12)
    assert predicted_scale(0, P12, V21) == pytest.approx((8 / 5) ** 0.25, rel=1e-12)


@pytest.mark.parametrize("imbalance", [-1e9, -1e8, -3.0, 0.5, 1e8])
def test_predicted_scale_keeps_its_digits(imbalance):
    """Against the root of 5 c^4 - imbalance c^2 - 8 = 0 in fifty decimal digits."""
    P12, V21 = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0], [2.0]])
    with decimal.localcontext(prec=50):
        i = decimal.Decimal(imbalance)
        expected = float(((i + (i * i + 160).sqrt()) / 10).sqrt())
    assert predicted_scale(imbalance, P12, V21) == pytest.approx(expected, rel=1e-12)


def test_tangent_is_the_derivative_by_c(generator):
    problem = collect(config(), generator)
    step = 1e-6
    after, before = (flat(on_manifold(problem, 0.7 + s)) for s in (step, -step))
    close(flat(tangent(0.7, *problem.star)), (after - before) / (2 * step), atol=1e-8)


def test_normal_part_is_the_orthogonal_projection(generator):
    problem = collect(config(), generator)
    pair, c = noise(generator, problem.star), -0.7
    normal = normal_part(c, *pair, *problem.star)
    along = flat(tangent(c, *problem.star))
    assert abs(flat(normal) @ along) < 1e-12
    left = flat(pair) - flat(normal)
    close(left, (left @ along) / (along @ along) * along)
    close(flat(normal_part(c, *normal, *problem.star)), flat(normal))
    # N_c as the paper writes it
    inner = (normal[0] * problem.star[0]).sum() - (normal[1] * problem.star[1]).sum() / c**2
    assert abs(inner) < 1e-12


def test_a_solver_that_gives_up_is_not_believed(generator, monkeypatch):
    failed = SimpleNamespace(success=False, message="the step is too small")
    monkeypatch.setattr("icrl_lib.flow.solve_ivp", lambda *_, **__: failed)
    problem = collect(config(), generator, batch=4)
    with pytest.raises(RuntimeError, match="gave up: the step is too small"):
        gradient_flow(problem.objective, *problem.star, torch.tensor([0, 1], dtype=F64))


@pytest.mark.parametrize(
    "times", [[0.0], [1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 0.0]], ids=["one", "late", "back", "still"]
)
def test_flow_refuses_times(generator, times):
    problem = collect(config(), generator, batch=4)
    with pytest.raises(ValueError, match=r"^times:"):
        gradient_flow(problem.objective, *problem.star, torch.tensor(times, dtype=F64))
