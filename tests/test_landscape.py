"""The blocks of the Hessian against the average over the group, element by element."""

import itertools

import pytest
import torch
from samples import F64, close, collect, config, flat, on_manifold

from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.landscape import symmetry_blocks
from icrl_lib.richness import alignment


def signed_permutations(d):
    for order in itertools.permutations(range(d)):
        for signs in itertools.product((1.0, -1.0), repeat=d):
            yield torch.eye(d, dtype=F64)[list(order)] * torch.tensor(signs, dtype=F64)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_symmetry_blocks_are_the_average_over_the_group(generator, d):
    """The matrix of the sample, carried by every signed permutation of the features, averaged."""
    problem = collect(config(SARSA(d=d)), generator)
    point = on_manifold(problem, 0.6)
    matrix, one = problem.objective.gauss_newton(*point), torch.ones(1, 1, dtype=F64)
    carried = []
    for Q in signed_permutations(d):
        token, column = torch.block_diag(Q, Q, one), torch.block_diag(one, Q)
        G = torch.block_diag(torch.kron(token, column), torch.kron(Q, token))
        close(G @ flat(point), flat(point))
        carried.append(G @ matrix @ G.mT)
    expected = torch.linalg.eigvalsh(torch.stack(carried).mean(0))
    blocks = symmetry_blocks(problem.objective, *point)
    assert sum(len(b.matrix) * b.multiplicity for b in blocks.values()) == (2 * d + 1) ** 2
    found = [torch.linalg.eigvalsh(b.matrix).repeat(b.multiplicity) for b in blocks.values()]
    close(torch.cat(found).sort().values, expected, atol=1e-14)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_trace_block_holds_point_and_tangent(generator, d):
    """The block restricts the sample's own matrix: its quadratic form needs no average."""
    problem = collect(config(SARSA(d=d)), generator)
    point = on_manifold(problem, 0.6)
    block = symmetry_blocks(problem.objective, *point)["trace"]
    a = torch.cat([block.P12, block.V21])
    expected = flat(point) @ problem.objective.gauss_newton(*point) @ flat(point)
    assert (a @ block.matrix @ a).item() == pytest.approx(expected.item(), rel=1e-12)
    assert (a @ a).item() == pytest.approx((flat(point) @ flat(point)).item(), rel=1e-12)
    null = torch.cat([block.P12, -block.V21])
    assert (block.matrix @ null).norm() < 1e-14


def test_symmetry_blocks_refuse_actor_critic(generator):
    problem = collect(config(ActorCritic(d=2, m=2)), generator)
    with pytest.raises(ValueError, match=r"^P12:"):
        symmetry_blocks(problem.objective, *problem.star)


def test_rho_of_the_symmetry_blocks_is_that_of_the_averaged_matrix(generator):
    problem = collect(config(), generator)
    one, carried = torch.ones(1, 1, dtype=F64), []
    matrix = problem.objective.gauss_newton(*problem.star)
    for Q in signed_permutations(2):
        token, column = torch.block_diag(Q, Q, one), torch.block_diag(one, Q)
        G = torch.block_diag(torch.kron(token, column), torch.kron(Q, token))
        carried.append(G @ matrix @ G.mT)
    expected = alignment(torch.stack(carried).mean(0), *problem.star).rho
    blocks = symmetry_blocks(problem.objective, *problem.star)
    found = max(alignment(b.matrix, b.P12, b.V21).rho for b in blocks.values())
    assert found == pytest.approx(expected, rel=1e-10)
