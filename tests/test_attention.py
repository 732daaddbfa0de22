"""The block of eq. (1) against triple loops, and its reduced form (Lemma C.1) against the block."""

import numpy as np
import pytest
import torch

from icrl_lib.attention import join, linear_self_attention, reduced_update, split
from icrl_lib.prompts import assemble

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-3)]


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def normal(generator, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def loop_product(A, B):
    """A matrix product by three loops."""
    product = np.zeros((len(A), B.shape[1]))
    for i in range(len(A)):
        for j in range(B.shape[1]):
            for k in range(len(B)):
                product[i, j] += A[i, k] * B[k, j]
    return product


def loop_block(H, P, V):
    """H + (1/n) (V H)(H^T P H) of a batch, from products by loops."""
    H, P, V = (t.double().numpy() for t in (H, P, V))
    n = H.shape[2] - 1
    update = [loop_product(loop_product(V, h), loop_product(loop_product(h.T, P), h)) for h in H]
    return H + np.stack(update) / n


def test_block_by_hand():
    """D = 2, n = 1: H^T P H = [[0, 3], [0, 0]] and V H = [[0, 0], [5, 0]]."""
    H = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    P, V = torch.tensor([[0.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    assert linear_self_attention(H, P, V).tolist() == [[[1, 0], [0, 16]]]


def test_block_divides_by_the_number_of_tokens():
    """D = 1, three columns 1, hence n = 2: each entry is 1 + (1/2) * 3."""
    one = torch.ones(1, 1)
    assert linear_self_attention(torch.ones(1, 1, 3), one, one).tolist() == [[[2.5, 2.5, 2.5]]]


@pytest.mark.parametrize(("B", "D", "n"), [(1, 1, 1), (2, 3, 1), (3, 5, 4), (2, 7, 9)])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_block_equals_loops(generator, B, D, n, dtype, error):
    H = normal(generator, B, D, n + 1, dtype=dtype)
    P, V = normal(generator, D, D, dtype=dtype), normal(generator, D, D, dtype=dtype)
    close(linear_self_attention(H, P, V), loop_block(H, P, V), atol=error)


def test_split_by_hand():
    """D = 4 with p = 1 parameter leaves tokens of k = 2 rows."""
    P, V = torch.arange(16.0).reshape(4, 4), torch.arange(100.0, 116).reshape(4, 4)
    blocks = split(P, V, 1)
    assert blocks.P12.tolist() == [[2, 3], [6, 7]]
    assert blocks.P22.tolist() == [[10, 11], [14, 15]]
    assert blocks.V21.tolist() == [[112, 113]]
    assert blocks.V22.tolist() == [[114, 115]]


def test_join_by_hand():
    P, V = join(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]))
    assert P.tolist() == [[0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert V.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [5, 6, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_split_undoes_join(generator, dtype):
    P12, V21 = normal(generator, 5, 4, dtype=dtype), normal(generator, 3, 5, dtype=dtype)
    blocks = split(*join(P12, V21), 3)
    assert torch.equal(blocks.P12, P12)
    assert torch.equal(blocks.V21, V21)
    assert not blocks.P22.any()
    assert not blocks.V22.any()


# --- the reduced form


def loop_reduced(tokens, parameters, P12, V21, P22, V22):
    """Eq. (15) of one prompt, entry by entry."""
    n, k = tokens.shape
    extended = np.concatenate([[1.0], parameters])
    updated = parameters.copy()
    form = sum(extended[a] * P22[a, b] * extended[b] for a, b in np.ndindex(P22.shape))
    for j in range(len(parameters)):
        for i in range(n):
            score = sum(tokens[i, a] * P12[a, b] * extended[b] for a, b in np.ndindex(P12.shape))
            updated[j] += sum(V21[j, a] * tokens[i, a] for a in range(k)) * score / n
        updated[j] += sum(V22[j, b] * extended[b] for b in range(len(extended))) * form / n
    return updated


def problem(generator, B, n, k, p, dtype=torch.float64):
    shapes = {
        "tokens": (B, n, k),
        "parameters": (B, p),
        "P12": (k, 1 + p),
        "V21": (p, k),
        "P22": (1 + p, 1 + p),
        "V22": (p, 1 + p),
    }
    return {name: normal(generator, *shape, dtype=dtype) for name, shape in shapes.items()}


SIZES = [(1, 1, 1, 1), (2, 1, 3, 2), (3, 4, 2, 3), (1, 6, 5, 2)]  # B, n, k, p


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_reduced_form_equals_loops(generator, sizes, dtype, error):
    given = problem(generator, *sizes, dtype)
    tokens, parameters, *blocks = (t.double().numpy() for t in given.values())
    expected = [loop_reduced(x, y, *blocks) for x, y in zip(tokens, parameters, strict=True)]
    close(reduced_update(**given), np.stack(expected), atol=error)


@pytest.mark.parametrize("sizes", SIZES)
def test_reduced_form_without_p22_and_v22_takes_them_as_0(generator, sizes):
    given = problem(generator, *sizes)
    tokens, parameters, *blocks = (t.double().numpy() for t in given.values())
    blocks[2:] = [np.zeros_like(block) for block in blocks[2:]]
    expected = [loop_reduced(x, y, *blocks) for x, y in zip(tokens, parameters, strict=True)]
    del given["P22"], given["V22"]
    close(reduced_update(**given), np.stack(expected))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(10))
def test_reduced_form_equals_the_block_with_dense_weights(sizes, seed):
    """Lemma C.1, for arbitrary P and V."""
    generator = torch.Generator().manual_seed(seed)
    B, n, k, p = sizes
    tokens, parameters = normal(generator, B, n, k), normal(generator, B, p)
    P, V = normal(generator, k + 1 + p, k + 1 + p), normal(generator, k + 1 + p, k + 1 + p)
    read = linear_self_attention(assemble(tokens, parameters), P, V)[:, -p:, -1]
    close(reduced_update(tokens, parameters, *split(P, V, p)), read)


@pytest.mark.parametrize(
    ("matrix", "rows", "columns"),
    [
        ("P", slice(0, 3), slice(0, 3)),
        ("P", slice(3, None), slice(0, 3)),
        ("V", slice(0, 3), slice(0, 3)),
        ("V", slice(0, 3), slice(3, None)),
        ("V", slice(3, 4), slice(None)),
    ],
    ids=["P11", "P21", "V11", "V12", "first row of V21 and V22"],
)
def test_a_block_that_is_never_read(generator, matrix, rows, columns):
    """k = 3 token rows, p = 2 parameters: D = 6."""
    tokens, parameters = normal(generator, 2, 4, 3), normal(generator, 2, 2)
    weights = {"P": normal(generator, 6, 6), "V": normal(generator, 6, 6)}
    H = assemble(tokens, parameters)
    before = linear_self_attention(H, **weights)[:, -2:, -1]
    weights[matrix][rows, columns] = 100 * normal(generator, *weights[matrix][rows, columns].shape)
    close(linear_self_attention(H, **weights)[:, -2:, -1], before, atol=0)


@pytest.mark.parametrize("name", ["P12", "V21", "P22", "V22"])
def test_the_gradient_of_the_reduced_form_is_that_of_the_block(generator, name):
    tokens, parameters = normal(generator, 2, 4, 3), normal(generator, 2, 2)
    P, V = (normal(generator, 6, 6).requires_grad_() for _ in range(2))
    literal = linear_self_attention(assemble(tokens, parameters), P, V)[:, -2:, -1]
    literal.square().sum().backward()
    blocks = [block.detach().clone().requires_grad_() for block in split(P, V, 2)]
    reduced_update(tokens, parameters, *blocks).square().sum().backward()
    index = ("P12", "V21", "P22", "V22").index(name)
    gradient = split(P.grad, V.grad, 2)[index]
    torch.testing.assert_close(blocks[index].grad, gradient, rtol=1e-10, atol=1e-10)


def test_token_columns_stay_with_only_p12_and_v21(generator):
    """So that the same block can be applied again to the same window."""
    H = assemble(normal(generator, 2, 4, 3), normal(generator, 2, 2))
    P, V = join(normal(generator, 3, 3), normal(generator, 2, 3))
    assert torch.equal(linear_self_attention(H, P, V)[:, :, :-1], H[:, :, :-1])


# --- inputs

ONES = torch.ones
BLOCK = {"H": ONES(2, 6, 5), "P": ONES(6, 6), "V": ONES(6, 6)}
REDUCED = {
    "tokens": ONES(2, 4, 3),
    "parameters": ONES(2, 2),
    "P12": ONES(3, 3),
    "V21": ONES(2, 3),
    "P22": ONES(3, 3),
    "V22": ONES(2, 3),
}
FUNCTIONS = [
    (linear_self_attention, BLOCK),
    (reduced_update, REDUCED),
    (split, {"P": ONES(6, 6), "V": ONES(6, 6), "n_parameters": 2}),
    (join, {"P12": ONES(3, 3), "V21": ONES(2, 3)}),
]


@pytest.mark.parametrize(
    ("function", "good", "name"),
    [(f, g, name) for f, g in FUNCTIONS for name in g if name != "n_parameters"],
)
def test_bad_tensors_are_refused(function, good, name, spoil):
    with pytest.raises(ValueError, match=f"^{name}:"):
        function(**{**good, name: spoil(good[name])})


@pytest.mark.parametrize(
    ("function", "good", "name"),
    [
        *((linear_self_attention, BLOCK, name) for name in ("P", "V")),
        *((reduced_update, REDUCED, name) for name in REDUCED),
        *((split, FUNCTIONS[2][1], name) for name in ("P", "V")),
        *((join, FUNCTIONS[3][1], name) for name in ("P12", "V21")),
    ],
)
def test_tensors_that_disagree_are_refused(function, good, name, mismatch):
    with pytest.raises(ValueError, match=rf"\b{name}\b|^P12: expected 1 \+ p ="):
        function(**{**good, name: mismatch(good[name])})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"H": ONES(2, 7, 5)}, "P"),
        ({"H": ONES(2, 6, 5).double()}, "P"),
        ({"P": ONES(7, 7)}, "P"),
        ({"V": ONES(7, 7)}, "V"),
        ({"H": ONES(2, 6, 1)}, "H"),
    ],
)
def test_block_refuses(changed, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        linear_self_attention(**{**BLOCK, **changed})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"P12": ONES(3, 4)}, "P12"),
        ({"P22": None}, "P22"),
        ({"V22": None}, "P22, V22"),
        ({"P22": ONES(4, 4), "V22": ONES(2, 4)}, "P22"),
    ],
)
def test_reduced_form_refuses(changed, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        reduced_update(**{**REDUCED, **changed})


def test_join_refuses_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^P12: expected 1 \+ p = 3 columns, got 4$"):
        join(ONES(3, 4), ONES(2, 3))


@pytest.mark.parametrize("n_parameters", [0, -1, 5, 6, 2.0, None])
def test_split_refuses_numbers_of_parameters(n_parameters):
    with pytest.raises(ValueError, match=r"^n_parameters:"):
        split(ONES(6, 6), ONES(6, 6), n_parameters)


@pytest.mark.parametrize(("function", "given"), FUNCTIONS)
def test_nothing_is_modified(function, given):
    tensors = [t for t in given.values() if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in tensors]
    function(**given)
    assert all(map(torch.equal, tensors, before))
