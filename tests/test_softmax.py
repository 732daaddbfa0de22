"""The softmax block against plain loops, its short form against the block, and bad input."""

import math

import pytest
import torch

from icrl_lib.attention import reduced_update, softmax_attention, softmax_update, split
from icrl_lib.constructions import sarsa
from icrl_lib.prompts import assemble

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-3)]


def close(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def normal(generator, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def loop_block(H, P, V, temperature, anchor):
    """The softmax block column by column, head by head, from Python numbers."""
    out = H.double().clone()
    B, _, columns = H.shape
    attended = range(columns if anchor else columns - 1)
    for b in range(B):
        for head_P, head_V in zip(P.double(), V.double(), strict=True):
            for j in range(columns):
                h = H[b].double()
                scores = [(h[:, i] @ head_P @ h[:, j]).item() / temperature for i in attended]
                total = sum(math.exp(score) for score in scores)
                for i, score in zip(attended, scores, strict=True):
                    out[b, :, j] += math.exp(score) / total * (head_V @ h[:, i])
    return out


def test_masked_block_by_hand():
    """D = 2, two tokens with scores 0 and log 3 in the last column: weights 1/4 and 3/4."""
    H = torch.tensor([[[0.0, math.log(3), 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    P = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    V = torch.tensor([[[0.0, 0.0], [4.0, 0.0]]], dtype=torch.float64)
    close(softmax_attention(H, P, V)[0, :, -1], [0, 1 + 3 * math.log(3)])


def test_anchored_block_by_hand():
    """The same with the parameter column, whose score is 0 and value 0: weights 1/5 and 3/5."""
    H = torch.tensor([[[0.0, math.log(3), 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    P = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    V = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]], dtype=torch.float64)
    close(softmax_attention(H, P, V, anchor=True)[0, :, -1], [0, 1 + 3 * math.log(3)])


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize(("B", "heads", "D", "n"), [(1, 1, 1, 1), (2, 3, 4, 5), (3, 2, 5, 1)])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_block_equals_loops(generator, B, heads, D, n, anchor, dtype, error):
    H = normal(generator, B, D, n + 1, dtype=dtype)
    P, V = (normal(generator, heads, D, D, dtype=dtype) for _ in range(2))
    expected = loop_block(H, P, V, 0.7, anchor)
    close(softmax_attention(H, P, V, 0.7, anchor=anchor), expected, atol=error)


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize(("B", "heads", "n", "k", "p"), [(1, 1, 1, 1, 1), (2, 3, 4, 5, 2)])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS)
def test_short_form_equals_block(generator, B, heads, n, k, p, anchor, dtype, error):
    tokens, parameters = (
        normal(generator, B, n, k, dtype=dtype),
        normal(generator, B, p, dtype=dtype),
    )
    P, V = (normal(generator, heads, k + 1 + p, k + 1 + p, dtype=dtype) for _ in range(2))
    blocks = [split(*pair, p) for pair in zip(P, V, strict=True)]
    stacked = [torch.stack(parts) for parts in zip(*blocks, strict=True)]
    short = softmax_update(tokens, parameters, *stacked[: 4 if anchor else 2], temperature=0.7)
    block = softmax_attention(assemble(tokens, parameters), P, V, 0.7, anchor=anchor)
    close(short, block[:, -p:, -1], atol=error)


def problem(generator, B=4, n=6, d=3, heads=2):
    return {
        "tokens": normal(generator, B, n, 2 * d + 1),
        "parameters": normal(generator, B, d),
        "P12": normal(generator, heads, 2 * d + 1, d + 1),
        "V21": normal(generator, heads, d, 2 * d + 1),
    }


def with_anchor(generator, arguments):
    heads, p, _ = arguments["V21"].shape
    arguments["P22"] = normal(generator, heads, p + 1, p + 1)
    arguments["V22"] = normal(generator, heads, p, p + 1)
    return arguments


def test_one_token_has_weight_one(generator):
    """A masked head with n = 1 writes V21 x, whatever P12 and the parameters are."""
    arguments = problem(generator, n=1, heads=1)
    step = softmax_update(**arguments) - arguments["parameters"]
    close(step, arguments["tokens"][:, 0] @ arguments["V21"][0].mT)


def test_zero_scores_give_the_mean(generator):
    arguments = problem(generator)
    arguments["P12"] = torch.zeros_like(arguments["P12"])
    step = softmax_update(**arguments) - arguments["parameters"]
    close(step, arguments["tokens"].mean(1) @ arguments["V21"].sum(0).mT)


def test_huge_scores_do_not_overflow(generator):
    """At temperature 1e-4 in float32 all weight is on the best token."""
    arguments = {name: value.float() for name, value in problem(generator, heads=1).items()}
    updated = softmax_update(**arguments, temperature=1e-4)
    w = torch.cat([torch.ones(4, 1), arguments["parameters"]], 1)
    scores = torch.einsum("bnk,kq,bq->bn", arguments["tokens"], arguments["P12"][0], w)
    best = arguments["tokens"][torch.arange(4), scores.argmax(-1)]
    close(updated, arguments["parameters"] + best @ arguments["V21"][0].mT, atol=1e-4)


def test_opposite_heads_at_high_temperature_are_the_centred_linear_block(generator):
    """Scaled by tau / 2, two opposite heads are the linear update minus that of the mean score."""
    tokens, w = normal(generator, 4, 9, 7), normal(generator, 4, 3)
    P12, V21, *_ = split(*sarsa(3, 0.2, dtype=torch.float64), 3)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    pair = softmax_update(tokens, w, signs * P12, 5e3 * signs * V21, temperature=1e4)
    scores = tokens @ P12 @ torch.cat([torch.ones_like(w[:, :1]), w], 1)[..., None]  # (B, n, 1)
    mean = 0.2 * scores.mean(1) * tokens[..., :3].mean(1)
    close(pair, reduced_update(tokens, w, P12, V21) - mean, atol=1e-6)


def test_softmax_does_not_modify_its_input(generator):
    arguments = with_anchor(generator, problem(generator))
    before = {name: value.clone() for name, value in arguments.items()}
    softmax_update(**arguments)
    assert all(torch.equal(before[name], value) for name, value in arguments.items())


# --- bad input


@pytest.mark.parametrize("name", ["H", "P", "V"])
def test_block_refuses_spoiled_arguments(generator, name, spoil):
    arguments = {
        "P": normal(generator, 2, 4, 4),
        "V": normal(generator, 2, 4, 4),
        "H": normal(generator, 3, 4, 6),
    }
    arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=rf"^{name}: "):
        softmax_attention(**arguments)


@pytest.mark.parametrize("name", ["tokens", "parameters", "P12", "V21", "P22", "V22"])
def test_short_form_refuses_spoiled_arguments(generator, name, spoil):
    arguments = with_anchor(generator, problem(generator))
    arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=rf"^{name}: "):
        softmax_update(**arguments)


@pytest.mark.parametrize("name", ["P22", "V22"])
def test_short_form_refuses_anchors_of_the_wrong_shape(generator, name, mismatch):
    arguments = with_anchor(generator, problem(generator))
    arguments[name] = mismatch(arguments[name])
    with pytest.raises(ValueError, match=rf"^{name}: "):
        softmax_update(**arguments)


@pytest.mark.parametrize("missing", ["P22", "V22"])
def test_anchor_needs_score_and_value(generator, missing):
    arguments = with_anchor(generator, problem(generator))
    del arguments[missing]
    with pytest.raises(ValueError, match=r"^P22, V22: "):
        softmax_update(**arguments)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "1"])
def test_temperature_has_to_be_positive(generator, temperature):
    H, P = normal(generator, 1, 3, 4), normal(generator, 1, 3, 3)
    with pytest.raises(ValueError, match=r"^temperature: "):
        softmax_attention(H, P, P, temperature)
    with pytest.raises(ValueError, match=r"^temperature: "):
        softmax_update(**problem(generator), temperature=temperature)


def test_a_prompt_needs_a_token(generator):
    P = normal(generator, 1, 3, 3)
    with pytest.raises(ValueError, match=r"^H: expected at least 2 columns"):
        softmax_attention(normal(generator, 1, 3, 1), P, P)


def test_p12_has_a_column_for_the_constant(generator):
    arguments = problem(generator)
    arguments["P12"] = arguments["P12"][..., :-1]
    with pytest.raises(ValueError, match=r"^P12: expected 1 \+ p = 4 columns, got 3"):
        softmax_update(**arguments)
