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


def average(matrix, d):
    """The matrix carried by every signed permutation Q of the features, averaged."""
    one, carried = torch.ones(1, 1, dtype=F64), []
    for Q in signed_permutations(d):
        token, column = torch.block_diag(Q, Q, one), torch.block_diag(one, Q)
        G = torch.block_diag(torch.kron(token, column), torch.kron(Q, token))
        carried.append(G @ matrix @ G.mT)
    return torch.stack(carried).mean(0)


def invariant(d, generator):
    """A random point that signed permutations leave as it is, far from the manifold."""
    numbers, eye = torch.randn(5, generator=generator, dtype=F64), torch.eye(d, dtype=F64)
    P12, V21 = torch.zeros(2 * d + 1, d + 1, dtype=F64), torch.zeros(d, 2 * d + 1, dtype=F64)
    P12[:d, 1:], P12[d : 2 * d, 1:], P12[2 * d, 0] = numbers[0] * eye, numbers[1] * eye, numbers[2]
    V21[:, :d], V21[:, d : 2 * d] = numbers[3] * eye, numbers[4] * eye
    return P12, V21


def of_one_copy(name, d):
    """Orthonormal directions (rows) of one copy of a block, in the docstring's order."""
    pair, index = torch.zeros(d, d, dtype=F64), torch.zeros(d, dtype=F64)
    index[0] = 1
    if name == "trace":
        pair = torch.eye(d, dtype=F64) / d**0.5
    elif name == "diagonal":
        pair[0, 0], pair[1, 1] = 0.5**0.5, -(0.5**0.5)
    elif name == "symmetric":
        pair[0, 1] = pair[1, 0] = 0.5**0.5
    elif name == "antisymmetric":
        pair[0, 1], pair[1, 0] = 0.5**0.5, -(0.5**0.5)
    P12, V21 = torch.zeros(2 * d + 1, d + 1, dtype=F64), torch.zeros(d, 2 * d + 1, dtype=F64)
    rows = []

    def add(block, where, value):
        block[where] = value
        rows.append(flat((P12, V21)))
        block[where] = 0

    first, second, r = slice(d), slice(d, 2 * d), 2 * d
    if name == "vector":
        add(P12, (first, 0), index)
        add(P12, (second, 0), index)
        add(P12, (r, slice(1, None)), index)
        add(V21, (slice(None), r), index)
        return torch.stack(rows)
    add(P12, (first, slice(1, None)), pair)
    add(P12, (second, slice(1, None)), pair)
    if name == "trace":
        add(P12, (r, 0), 1)
    add(V21, (slice(None), first), pair.mT)  # the first index is that of the token
    add(V21, (slice(None), second), pair.mT)
    return torch.stack(rows)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_symmetry_blocks_are_the_average_over_the_group(generator, d):
    """At a point off the manifold, where the residual's own curvature counts."""
    problem, point = collect(config(SARSA(d=d)), generator), invariant(d, generator)
    expected = average(problem.objective.hessian(*point), d)
    assert (expected - average(problem.objective.gauss_newton(*point), d)).abs().max() > 1e-3
    blocks = symmetry_blocks(problem.objective, *point)
    for name, block in blocks.items():
        rows = of_one_copy(name, d)
        close(block.matrix, rows @ expected @ rows.mT, atol=1e-15)
        close(torch.cat([block.P12, block.V21]), rows @ flat(point), atol=1e-15)
    found = [torch.linalg.eigvalsh(b.matrix).repeat(b.multiplicity) for b in blocks.values()]
    close(torch.cat(found).sort().values, torch.linalg.eigvalsh(expected), atol=1e-14)


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
    matrix = average(problem.objective.gauss_newton(*problem.star), 2)
    expected = alignment(matrix, *problem.star).rho
    blocks = symmetry_blocks(problem.objective, *problem.star)
    found = max(alignment(b.matrix, b.P12, b.V21).rho for b in blocks.values())
    assert found == pytest.approx(expected, rel=1e-10)
