"""The prompt, entry by entry."""

import math

import numpy as np
import pytest
import torch

from icrl_lib.prompts import (
    actor_critic_layout,
    actor_critic_prompt,
    actor_critic_tokens,
    assemble,
    parameter_column,
    sarsa_layout,
    sarsa_prompt,
    sarsa_tokens,
)

B, N, D, M = 2, 4, 3, 2
SHAPES = {
    "lam": (B, M),
    "w": (B, D),
    "phi_v": (B, N, D),
    "phi_v_next": (B, N, D),
    "rewards": (B, N),
    "scores": (B, N, M),
}


def actor_critic_arguments(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=generator, dtype=dtype) for k, v in SHAPES.items()}


def sarsa_arguments(dtype=torch.float64):
    given = actor_critic_arguments(dtype)
    names = {"w": "w", "phi": "phi_v", "phi_next": "phi_v_next", "rewards": "rewards"}
    return {name: given[origin] for name, origin in names.items()}


def without(given, *names):
    return {k: v for k, v in given.items() if k not in names}


# --- layouts


def test_sarsa_layout():
    layout = sarsa_layout(3)
    assert layout.token == ((r"\phi", 3), (r"\gamma\phi^+", 3), ("r", 1))
    assert layout.parameter == (("1", 1), ("w", 3))


def test_actor_critic_layout():
    layout = actor_critic_layout(3, 2)
    slots = ((r"\phi_V", 3), (r"\gamma\phi_V^+", 3), ("r", 1), (r"\gamma^i g_\lambda", 2))
    assert layout.token == slots
    assert layout.parameter == (("1", 1), (r"\lambda", 2), ("w", 3))


@pytest.mark.parametrize(
    ("layout", "n_token", "n_parameter", "size"),
    [
        (sarsa_layout(1), 3, 2, 5),
        (sarsa_layout(36), 73, 37, 110),
        (actor_critic_layout(1, 1), 4, 3, 7),
        (actor_critic_layout(9, 36), 55, 46, 101),
    ],
)
def test_layout_sizes(layout, n_token, n_parameter, size):
    assert (layout.n_token, layout.n_parameter, layout.size) == (n_token, n_parameter, size)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None])
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (sarsa_layout, "d"),
        (lambda d: actor_critic_layout(d, 1), "d"),
        (lambda m: actor_critic_layout(1, m), "m"),
    ],
)
def test_layouts_refuse(layout, name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        layout(value)


# --- prompts


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-15), (torch.float32, 3e-7)])
@pytest.mark.parametrize("discount", [0, 0.3])
def test_every_entry_of_the_sarsa_prompt(dtype, error, discount):
    given = sarsa_arguments(dtype)
    w, phi, phi_next, rewards = (t.tolist() for t in given.values())
    expected = np.zeros((B, 3 * D + 2, N + 1))
    for b in range(B):
        for i in range(N):
            for j in range(D):
                expected[b, j, i] = phi[b][i][j]
                expected[b, D + j, i] = discount * phi_next[b][i][j]
            expected[b, 2 * D, i] = rewards[b][i]
        expected[b, 2 * D + 1, N] = 1
        for j in range(D):
            expected[b, 2 * D + 2 + j, N] = w[b][j]
    H = sarsa_prompt(**given, discount=discount)
    torch.testing.assert_close(H, torch.tensor(expected, dtype=dtype), rtol=error, atol=0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-15), (torch.float32, 3e-7)])
@pytest.mark.parametrize("discount", [0, 0.3])
def test_every_entry_of_the_actor_critic_prompt(dtype, error, discount):
    given = actor_critic_arguments(dtype)
    lam, w, phi, phi_next, rewards, scores = (t.tolist() for t in given.values())
    expected = np.zeros((B, 3 * D + 2 * M + 2, N + 1))
    for b in range(B):
        for i in range(N):
            for j in range(D):
                expected[b, j, i] = phi[b][i][j]
                expected[b, D + j, i] = discount * phi_next[b][i][j]
            expected[b, 2 * D, i] = rewards[b][i]
            for j in range(M):
                expected[b, 2 * D + 1 + j, i] = discount**i * scores[b][i][j]
        expected[b, 2 * D + 1 + M, N] = 1
        for j in range(M):
            expected[b, 2 * D + 2 + M + j, N] = lam[b][j]
        for j in range(D):
            expected[b, 2 * D + 2 + 2 * M + j, N] = w[b][j]
    H = actor_critic_prompt(**given, discount=discount)
    torch.testing.assert_close(H, torch.tensor(expected, dtype=dtype), rtol=error, atol=0)


def test_sarsa_tokens_are_the_columns_of_the_prompt():
    given = sarsa_arguments()
    H = sarsa_prompt(**given, discount=0.3)
    tokens = sarsa_tokens(**without(given, "w"), discount=0.3)
    assert torch.equal(tokens.mT, H[:, : 2 * D + 1, :N])


def test_actor_critic_tokens_are_the_columns_of_the_prompt():
    given = actor_critic_arguments()
    H = actor_critic_prompt(**given, discount=0.3)
    tokens = actor_critic_tokens(**without(given, "lam", "w"), discount=0.3)
    assert torch.equal(tokens.mT, H[:, : 2 * D + 1 + M, :N])


def test_parameter_column_by_hand():
    column = parameter_column(torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert column.tolist() == [[1, 5, 6], [1, 7, 8]]


def test_assemble_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    H = assemble(tokens, torch.tensor([[7.0]]))
    assert H.tolist() == [[[1, 3, 5, 0], [2, 4, 6, 0], [0, 0, 0, 1], [0, 0, 0, 7]]]


def test_a_gradient_flows_through_the_prompt_to_the_parameters():
    parameters = torch.ones(1, 2, requires_grad=True)
    assemble(torch.ones(1, 3, 4), parameters).sum().backward()
    assert parameters.grad.tolist() == [[1, 1]]


# --- inputs


FUNCTIONS = [
    (sarsa_tokens, without(sarsa_arguments(), "w")),
    (actor_critic_tokens, without(actor_critic_arguments(), "lam", "w")),
    (sarsa_prompt, sarsa_arguments()),
    (actor_critic_prompt, actor_critic_arguments()),
]
OTHERS = [
    (parameter_column, {"parameters": torch.ones(B, D)}),
    (assemble, {"tokens": torch.ones(B, N, 5), "parameters": torch.ones(B, D)}),
]


@pytest.mark.parametrize(("function", "given"), FUNCTIONS)
def test_prompts_modify_nothing(function, given):
    before = {k: v.clone() for k, v in given.items()}
    H = function(**given, discount=0.3)
    H.zero_()
    assert all(torch.equal(given[k], before[k]) for k in given)


@pytest.mark.parametrize(
    ("function", "good", "name"),
    [(f, {**given, "discount": 0.3}, name) for f, given in FUNCTIONS for name in given]
    + [(f, given, name) for f, given in OTHERS for name in given],
)
def test_prompts_refuse_bad_tensors(function, good, name, spoil):
    with pytest.raises(ValueError, match=f"^{name}:"):
        function(**{**good, name: spoil(good[name])})


@pytest.mark.parametrize(
    ("function", "good", "name"),
    [
        (f, {**given, "discount": 0.3}, name)
        for f, given in FUNCTIONS
        for name in given
        if (f, name) != (actor_critic_tokens, "scores")
    ],
)
def test_prompts_refuse_tensors_that_disagree(function, good, name, mismatch):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        function(**{**good, name: mismatch(good[name])})


@pytest.mark.parametrize(
    "scores",
    [torch.ones(B + 1, N, M).double(), torch.ones(B, N + 1, M).double(), torch.ones(B, N, M)],
)
def test_actor_critic_tokens_refuse_scores_that_disagree(scores):
    given = without(actor_critic_arguments(), "lam", "w", "scores")
    with pytest.raises(ValueError, match=r"^scores:"):
        actor_critic_tokens(**given, scores=scores, discount=0.3)


@pytest.mark.parametrize("parameters", [torch.ones(B + 1, D), torch.ones(B, D).double()])
def test_assemble_refuses_parameters_that_disagree(parameters):
    with pytest.raises(ValueError, match=r"^parameters:"):
        assemble(torch.ones(B, N, 5), parameters)


@pytest.mark.parametrize(("function", "given"), FUNCTIONS)
@pytest.mark.parametrize("discount", [-0.1, 1, 1.5, math.nan, None, "0.5"])
def test_prompts_refuse_discount(function, given, discount):
    with pytest.raises(ValueError, match=r"^discount:"):
        function(**given, discount=discount)
