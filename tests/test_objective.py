"""The loss and its derivatives against autograd, and against the paper term by term."""

from itertools import islice

import pytest
import torch
from samples import F64, close, collect, config, flat, noise, on_manifold, unflat

from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.attention import join, linear_self_attention, split
from icrl_lib.loop import interact
from icrl_lib.objective import Objective
from icrl_lib.prompts import parameter_column
from icrl_lib.training import draw_situation
from icrl_lib.windows import Windows


@pytest.mark.parametrize("algorithm", [SARSA(d=2), ActorCritic(d=2, m=2)], ids=["sarsa", "ac"])
def test_sample_holds_the_windows_of_the_loop(algorithm):
    cfg, seed = config(algorithm), torch.Generator().manual_seed(3)
    problem = collect(cfg, seed, batch=4, frames=3)
    again = torch.Generator().manual_seed(3)
    loop = interact(
        algorithm, *draw_situation(cfg, 4, again), algorithm.teach, n=10, generator=again
    )
    frames = list(islice(loop, 3))
    tokens = torch.cat([algorithm.tokens(frame.observation) for frame in frames])
    close(problem.objective.sigma, torch.einsum("bnk,bnl->bkl", tokens, tokens) / 10)
    close(problem.objective.column, parameter_column(torch.cat([f.parameters for f in frames])))
    close(problem.objective.target, torch.cat([f.updated - f.parameters for f in frames]))
    assert problem.objective.n == 10


def test_target_is_the_teachers_whatever_drives(generator):
    problem = collect(config(), generator, update=lambda w, _: w)
    column = problem.objective.column.unflatten(0, (3, -1))
    assert (column == column[0]).all()
    assert problem.objective.target.abs().max() > 0.01
    assert problem.objective.loss(*problem.star) < 1e-30


def test_an_objective_of_windows_is_float64_whatever_they_are(generator):
    tokens, parameters, target = (
        torch.randn(shape, generator=generator) for shape in ((6, 5, 3), (6, 2), (6, 2))
    )
    objective = Objective.of(Windows(tokens, parameters, target))
    moments = torch.einsum("nik,nil->nkl", tokens.double(), tokens.double()) / 5
    close(objective.sigma, moments, atol=1e-15)
    close(objective.column, torch.cat([torch.ones(6, 1), parameters], 1), atol=0)
    close(objective.target, target.double() - parameters.double(), atol=0)
    assert objective.n == 5
    narrow = (objective.sigma.float(), objective.column.float(), objective.target.float())
    for made in (objective, Objective(*narrow, 5)):
        assert {made.sigma.dtype, made.column.dtype, made.target.dtype} == {F64}


def test_an_objective_is_of_windows():
    with pytest.raises(ValueError, match=r"^windows: expected Windows"):
        Objective.of(torch.ones(6, 5, 3))


def test_float32_blocks_are_refused_by_name(generator):
    """In float32 rounding hides which eigenvalues are zero: not one of them was found."""
    problem = collect(config(), generator)
    for name, blocks in (
        ("P12", (problem.star[0].float(), problem.star[1])),
        ("V21", (problem.star[0], problem.star[1].float())),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*float64.*float32"):
            problem.objective.residuals(*blocks)


@pytest.mark.parametrize("algorithm", [SARSA(d=2), ActorCritic(d=2, m=2)], ids=["sarsa", "ac"])
@pytest.mark.parametrize("c", [0.4, -3.0])
def test_loss_and_gradient_vanish_on_the_manifold(generator, algorithm, c):
    problem = collect(config(algorithm), generator)
    point = on_manifold(problem, c)
    assert problem.objective.loss(*point) < 1e-28
    close(flat(problem.objective.gradient(*point)), torch.zeros_like(flat(point)))


@pytest.mark.parametrize("algorithm", [SARSA(d=2), ActorCritic(d=2, m=2)], ids=["sarsa", "ac"])
def test_full_gradient_is_autograds_of_the_literal_block(generator, algorithm):
    """Dense P and V, D x D, through eq. (1); inert entries get exact zeros from both."""
    cfg = config(algorithm)
    start = generator.get_state()
    problem = collect(cfg, generator, batch=20, frames=2)
    generator.set_state(start)
    loop = interact(
        algorithm, *draw_situation(cfg, 20, generator), algorithm.teach, n=10, generator=generator
    )
    frames = list(islice(loop, 2))
    size, p = algorithm.layout.size, algorithm.n_parameters
    P, V = noise(generator, [torch.empty(size, size, dtype=F64)] * 2, 0.5)
    P.requires_grad_(), V.requires_grad_()
    errors = torch.cat(
        [
            linear_self_attention(algorithm.prompt(f.parameters, f.observation), P, V)[:, -p:, -1]
            - f.updated
            for f in frames
        ]
    )
    (0.5 * errors.square().sum(-1).mean()).backward()
    found = problem.objective.full_gradient(P.detach(), V.detach())
    inert = [torch.ones(size, size, dtype=torch.bool) for _ in range(2)]
    k = algorithm.layout.n_token
    inert[0][:, k:] = False
    inert[1][k + 1 :] = False
    for mine, theirs, never in zip(found, (P.grad, V.grad), inert, strict=True):
        close(mine, theirs, atol=1e-13 * theirs.abs().max().item())
        assert (mine[never] == 0).all()
        assert (theirs[never] == 0).all()
        assert (mine[~never] != 0).all()


def test_p22_and_v22_at_zero_receive_no_gradient(generator):
    problem = collect(config(), generator)
    blocks = noise(generator, problem.star)
    gradients = split(*problem.objective.full_gradient(*join(*blocks)), 2)
    assert not gradients.P22.any()
    assert not gradients.V22.any()
    P12, V21 = problem.objective.gradient(*blocks)
    close(gradients.P12, P12)
    close(gradients.V21, V21)


def derivatives(problem, pair):
    """Gauss-Newton matrix and Hessian from autograd's Jacobian of residuals and Hessian of loss."""
    objective, blocks = problem.objective, problem.star

    def residuals(vector):
        return objective.residuals(*unflat(vector, blocks)).flatten()

    def loss(vector):
        return objective.loss(*unflat(vector, blocks))

    J = torch.autograd.functional.jacobian(residuals, flat(pair))
    H = torch.autograd.functional.hessian(loss, flat(pair))
    return J.mT @ J / len(objective.column), H


@pytest.mark.parametrize("algorithm", [SARSA(d=3), ActorCritic(d=2, m=2)], ids=["sarsa", "ac"])
def test_gauss_newton_and_hessian_are_those_of_autograd(generator, algorithm):
    problem = collect(config(algorithm), generator, batch=10)
    pair = noise(generator, problem.star)
    gauss_newton, hessian = derivatives(problem, pair)
    close(problem.objective.gauss_newton(*pair), gauss_newton)
    close(problem.objective.hessian(*pair), hessian)
    assert (hessian - gauss_newton).abs().max() > 0.01


def test_gauss_newton_is_the_hessian_on_the_manifold(generator):
    problem = collect(config(), generator)
    point = on_manifold(problem, 0.7)
    _, hessian = derivatives(problem, point)
    close(problem.objective.gauss_newton(*point), hessian)


def test_eq_21_is_the_residual_near_the_manifold(generator):
    """(alpha / c) R U w~ + c W b + W Sigma U w~, term by term."""
    problem, c = collect(config(SARSA(d=3)), generator), -0.6
    o, (P_star, V_star) = problem.objective, problem.star
    U, W = noise(generator, problem.star)
    R = o.sigma[:, :3]
    b = torch.einsum("nkl,lq,nq->nk", o.sigma, P_star, o.column)
    first = (0.2 / c) * torch.einsum("ndk,kq,nq->nd", R, U, o.column)
    second = c * torch.einsum("dk,nk->nd", W, b)
    third = torch.einsum("dk,nkl,lq,nq->nd", W, o.sigma, U, o.column)
    close(o.residuals(c * P_star + U, V_star / c + W), first + second + third)
