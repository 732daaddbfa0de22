"""Properties for every size: of teachers, prompts, blocks, constructions and exact solutions.

Every function of tensors is called with random sizes and dtypes and with tensors that lie in memory
in unusual ways (transposed, every second entry of a larger one, one row for a whole batch) or take
part in a gradient. It has to give what it gives for plain copies, and to leave its arguments alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lib import attention, constructions, in_context_td, mdps, policies, prompts, teachers
from icrl_lib.mdps import TabularMDP

PRECISIONS = {torch.float64: 1e-11, torch.float32: 2e-4}


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Differences are relative to the largest number expected, or to 1 if that is larger."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, expected.detach().abs().max().item())
    assert (actual - expected).abs().max().item() <= tolerance * scale


# --- functions of tensors, with the shapes and the numbers that they take


@dataclasses.dataclass(frozen=True)
class Function:
    """A function, the axes of its tensors by name, and its numbers.

    Tensors without a first axis "B" are weights: a member of a batch does not have its own.
    """

    call: Callable[..., Any]
    shapes: dict[str, str]
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)

    def draw(self, sizes: dict[str, int], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, axes in self.shapes.items():
            shape = [extent(axis, sizes) for axis in axes.split()]
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
            if name in ("probabilities", "policy"):
                drawn[name] = uniform / uniform.sum(-1, keepdim=True)
            else:
                drawn[name] = uniform if name == "ratios" else 2 * uniform - 1
        return drawn

    def __call__(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        result = self.call(**tensors, **self.numbers)
        return list(result) if isinstance(result, tuple) else [result]


def extent(axis: str, sizes: dict[str, int]) -> int:
    d, m, p = sizes["d"], sizes["m"], sizes["p"]
    derived = {
        "1": 1, "n+1": sizes["n"] + 1, "1+p": 1 + p, "2d+1": 2 * d + 1, "k": m + 1,
        "D": m + 1 + 1 + p, "2": 2,
    }  # fmt: skip
    return sizes.get(axis) or derived[axis]


WINDOW = {"phi": "B n d", "phi_next": "B n d", "rewards": "B n"}
FAN = {"w": "B d", **WINDOW, "phi_next": "B n A d"}
ACTOR = {"lam": "B m", "w": "B d", "phi_v": "B n d", "rewards": "B n", "scores": "B n m"}
BOTH = {**ACTOR, "phi_v_next": "B n d"}
BLOCKS = {"tokens": "B n k", "parameters": "B p", "P12": "k 1+p", "V21": "p k"}
STEP, STEPS = {"discount": 0.7, "alpha": 0.3}, {"discount": 0.7, "alpha": 0.3, "beta": 0.8}

TEACHERS = {
    "td_errors": Function(teachers.td_errors, {"w": "B d", **WINDOW}, {"discount": 0.7}),
    "sarsa": Function(teachers.sarsa_update, {"w": "B d", **WINDOW}, STEP),
    "actor_critic": Function(teachers.actor_critic_update, BOTH, STEPS),
    "td": Function(teachers.td_update, {"w": "B d", **WINDOW, "ratios": "B n"}, STEP),
    "residual_gradient": Function(teachers.residual_gradient_update, {"w": "B d", **WINDOW}, STEP),
    "expected_sarsa": Function(
        teachers.expected_sarsa_update, {**FAN, "probabilities": "B n A"}, STEP
    ),
    "q_learning": Function(teachers.q_learning_update, FAN, STEP),
    "n_step_sarsa": Function(
        teachers.n_step_sarsa_update,
        {"w": "B d", "phi": "B n+1 d", "rewards": "B n"},
        {**STEP, "steps": 2},
    ),
    "sarsa_lambda": Function(
        teachers.sarsa_lambda_update, {"w": "B d", **WINDOW}, {**STEP, "trace_decay": 0.6}
    ),
    "differential_sarsa": Function(
        teachers.differential_sarsa_update,
        {"average_reward": "B 1", "w": "B d", **WINDOW},
        {"alpha": 0.3, "beta": 0.8},
    ),
    "q_actor_critic": Function(
        teachers.q_actor_critic_update,
        {"w": "B d", **WINDOW, "lam": "B m", "scores": "B n m"},
        STEPS,
    ),
    "reinforce": Function(teachers.reinforce_update, ACTOR, STEPS),
    "td_system": Function(teachers.td_system, WINDOW, {"discount": 0.7}),
    "least_squares_td": Function(
        teachers.least_squares_td, {"w": "B d", **WINDOW}, {"discount": 0.7}
    ),
}
OTHERS = {
    "sarsa_prompt": Function(prompts.sarsa_prompt, {"w": "B d", **WINDOW}, {"discount": 0.7}),
    "actor_critic_prompt": Function(prompts.actor_critic_prompt, BOTH, {"discount": 0.7}),
    "linear_self_attention": Function(
        attention.linear_self_attention, {"H": "B D n+1", "P": "D D", "V": "D D"}
    ),
    "reduced_update": Function(
        attention.reduced_update, {**BLOCKS, "P22": "1+p 1+p", "V22": "p 1+p"}
    ),
    "iterate": Function(attention.iterate, {"H": "B D n+1", "P": "D D", "V": "D D"}, {"passes": 2}),
    "softmax_attention": Function(
        attention.softmax_attention,
        {"H": "B D n+1", "P": "2 D D", "V": "2 D D"},
        {"temperature": 0.7},
    ),
    "softmax_update": Function(
        attention.softmax_update,
        {
            **BLOCKS,
            "P12": "2 k 1+p",
            "V21": "2 p k",
            "P22": "2 1+p 1+p",
            "V22": "2 p 1+p",
        },
    ),
    "softmax_policy": Function(policies.softmax_policy, {"preferences": "B S A"}),
    "softmax_score": Function(policies.softmax_score, {"phi": "B S A m", "policy": "B S A"}),
    "epsilon_greedy": Function(policies.epsilon_greedy, {"q": "B S A"}, {"epsilon": 0.3}),
    "prompt of in_context_td": Function(
        in_context_td.prompt, {**WINDOW, "query": "B m d"}, {"discount": 0.7}
    ),
    "looped_transformer": Function(
        in_context_td.looped_transformer,
        {"Z": "B 2d+1 n+1", "P": "2d+1 2d+1", "Q": "2d+1 2d+1"},
        {"depth": 2},
    ),
    "predict": Function(
        in_context_td.predict,
        {"moments": "B 2d+1 2d+1", "query": "B m d", "P": "2d+1 2d+1", "Q": "2d+1 2d+1"},
        {"depth": 2},
    ),
}
FUNCTIONS = TEACHERS | OTHERS
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())

some_sizes = st.fixed_dictionaries(
    {axis: st.integers(1, top) for axis, top in
     {"B": 4, "n": 6, "d": 4, "m": 4, "p": 4, "A": 3, "S": 4}.items()}
)  # fmt: skip
some_dtype = st.sampled_from(list(PRECISIONS))
some_seed = st.integers(0, 2**31)
few = settings(max_examples=10)  # of every function

MEMORY = {
    "plain": lambda t: t.clone(),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda t: torch.stack([t, torch.full_like(t, math.nan)], -1)[..., 0],
    "cut out": lambda t: torch.nn.functional.pad(t, (1, 2), value=math.nan)[..., 1:-2],
    "with a gradient": lambda t: t.clone().requires_grad_(),
    "one row for the batch": lambda t: t[:1].expand(t.shape),
}


@every_function
@few
@given(sizes=some_sizes, dtype=some_dtype, seed=some_seed, data=st.data())
def test_memory_does_not_matter(function, sizes, dtype, seed, data):
    """Nor does a neighbour in memory that is NaN."""
    given_ = {
        name: MEMORY[data.draw(st.sampled_from(sorted(MEMORY)), label=name)](t)
        for name, t in function.draw(sizes, dtype, seed).items()
    }
    plain = {
        name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in given_.items()
    }
    versions = {name: t._version for name, t in given_.items()}
    for actual, expected in zip(function(given_), function(plain), strict=True):
        assert actual.dtype == dtype
        close(actual.detach(), expected, PRECISIONS[dtype])
    for name, t in given_.items():
        assert torch.equal(t.detach(), plain[name])
        assert t._version == versions[name]


DIFFERENTIABLE = {name: f for name, f in FUNCTIONS.items() if name != "epsilon_greedy"}
EACH_ARGUMENT = [
    pytest.param(function, argument, id=f"{name}-{argument}")
    for name, function in DIFFERENTIABLE.items()
    for argument in function.shapes
    if argument not in ("probabilities", "policy")  # a step to the side leaves the simplex
]
SIZES = {"B": 2, "n": 3, "d": 2, "m": 3, "p": 2, "A": 2, "S": 3}


@pytest.mark.parametrize(("function", "argument"), EACH_ARGUMENT)
def test_gradients_are_those_of_difference_quotients(function, argument):
    drawn = function.draw(SIZES, torch.float64, 1)
    drawn[argument].requires_grad_()

    def of_one(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = function({**drawn, argument: t})
        assert any(result.requires_grad for result in results)
        return tuple(result for result in results if result.requires_grad)

    assert torch.autograd.gradcheck(of_one, drawn[argument], eps=1e-6, atol=1e-7, rtol=1e-6)


@every_function
def test_without_a_gradient_among_the_arguments_there_is_none_in_the_result(function):
    assert not any(t.requires_grad for t in function(function.draw(SIZES, torch.float32, 0)))


@every_function
@few
@given(sizes=some_sizes, dtype=some_dtype, seed=some_seed, data=st.data())
def test_members_of_a_batch_do_not_see_each_other(function, sizes, dtype, seed, data):
    """The whole batch at once, and a part of it in another order."""
    whole = function.draw(sizes, dtype, seed)
    order = data.draw(st.permutations(range(sizes["B"])))
    part = torch.tensor(order[: data.draw(st.integers(1, sizes["B"]))])
    own = {name for name, axes in function.shapes.items() if axes.startswith("B")}
    chosen = {name: t[part] if name in own else t for name, t in whole.items()}
    for alone, together in zip(function(chosen), function(whole), strict=True):
        close(alone, together[part], PRECISIONS[dtype])


# --- teachers


UPDATES = {
    name: f
    for name, f in TEACHERS.items()
    if name not in ("td_errors", "td_system", "least_squares_td")
}


@pytest.mark.parametrize("function", UPDATES.values(), ids=UPDATES.keys())
@few
@given(sizes=some_sizes, seed=some_seed, factor=st.floats(0.1, 10))
def test_an_update_is_linear_in_its_step_sizes(function, sizes, seed, factor):
    drawn = function.draw(sizes, torch.float64, seed)
    old = [drawn[name] for name in ("lam", "average_reward", "w") if name in drawn]
    numbers = {k: v * factor if k in ("alpha", "beta") else v for k, v in function.numbers.items()}
    stretched = dataclasses.replace(function, numbers=numbers)
    for before, once, more in zip(old, function(drawn), stretched(drawn), strict=True):
        close((more - before) / factor, once - before, 1e-12)


@few
@given(sizes=some_sizes, seed=some_seed)
def test_sarsa_moves_by_the_affine_map_of_its_system(sizes, seed):
    """w' - w = alpha (b - A w)."""
    drawn = TEACHERS["sarsa"].draw(sizes, torch.float64, seed)
    (updated,) = TEACHERS["sarsa"](drawn)
    A, b = TEACHERS["td_system"]({k: t for k, t in drawn.items() if k != "w"})
    moved = torch.stack([y - M @ w for M, y, w in zip(A, b, drawn["w"], strict=True)])
    close(updated - drawn["w"], 0.3 * moved, 1e-12)


@few
@given(sizes=some_sizes, seed=some_seed)
def test_least_squares_td_is_a_fixed_point_of_sarsa(sizes, seed):
    drawn = TEACHERS["least_squares_td"].draw(sizes, torch.float64, seed)
    (solution,) = TEACHERS["least_squares_td"](drawn)
    (updated,) = TEACHERS["sarsa"]({**drawn, "w": solution})
    close(updated, solution, 1e-8)


@few
@given(sizes=some_sizes, seed=some_seed)
def test_a_transition_with_ratio_0_does_not_count(sizes, seed):
    """The target policy never takes its action; the mean is still over all n."""
    drawn = TEACHERS["td"].draw({**sizes, "n": 2}, torch.float64, seed)
    drawn["ratios"][:, 0] = 0
    (updated,) = TEACHERS["td"](drawn)
    second = {name: t if name == "w" else t[:, 1:] for name, t in drawn.items()}
    (alone,) = TEACHERS["td"](second)
    close(2 * (updated - drawn["w"]), alone - drawn["w"], 1e-12)


# --- constructions: the theorems, for every size and scale


scales = st.one_of(st.floats(0.05, 20), st.floats(-20, -0.05))
steps = st.floats(0.01, 3)


def window(B: int, n: int, d: int, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    sizes = {**SIZES, "B": B, "n": n, "d": d}
    return TEACHERS["sarsa"].draw(sizes, dtype, seed)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 9)),
    dtype=some_dtype, seed=some_seed, alpha=steps, c=scales, discount=st.floats(0, 0.999),
)  # fmt: skip
def test_theorem_3_1(sizes, dtype, seed, alpha, c, discount):
    drawn = window(*sizes, dtype, seed)
    H = prompts.sarsa_prompt(**drawn, discount=discount)
    P, V = constructions.sarsa(sizes[2], alpha, c, dtype)
    taught = teachers.sarsa_update(**drawn, discount=discount, alpha=alpha)
    read = attention.linear_self_attention(H, P, V)[:, -sizes[2] :, -1]
    close(read, taught, PRECISIONS[dtype])


@settings(max_examples=60)
@given(
    sizes=some_sizes, dtype=some_dtype, seed=some_seed, alpha=steps, beta=steps, c=scales,
    discount=st.floats(0, 0.999),
)  # fmt: skip
def test_theorem_3_3(sizes, dtype, seed, alpha, beta, c, discount):
    drawn = TEACHERS["actor_critic"].draw(sizes, dtype, seed)
    H = prompts.actor_critic_prompt(**drawn, discount=discount)
    P, V = constructions.actor_critic(sizes["d"], sizes["m"], alpha, beta, c, dtype)
    taught = teachers.actor_critic_update(**drawn, discount=discount, alpha=alpha, beta=beta)
    read = attention.linear_self_attention(H, P, V)[:, -(sizes["m"] + sizes["d"]) :, -1]
    close(read, torch.cat(taught, -1), PRECISIONS[dtype])


@settings(max_examples=40)
@given(
    sizes=some_sizes, seed=some_seed, c=scales, alpha=st.floats(0.01, 0.5), depth=st.integers(1, 4)
)
def test_layers_of_the_looped_transformer_are_steps_of_td_from_0(sizes, seed, c, alpha, depth):
    """Theorem 1 of Wang et al., through the prompt and through its moments."""
    drawn = OTHERS["prompt of in_context_td"].draw(sizes, torch.float64, seed)
    query = drawn.pop("query")
    w = torch.zeros(sizes["B"], sizes["d"], dtype=torch.float64)
    for _ in range(depth):
        w = teachers.td_update(w, **drawn, discount=0.7, alpha=alpha)
    expected = (query @ w.unsqueeze(-1)).squeeze(-1)
    P, Q = in_context_td.construction(sizes["d"], alpha, c, torch.float64)
    Z = in_context_td.prompt(**drawn, query=query, discount=0.7)
    looped = in_context_td.looped_transformer(Z, P, Q, depth, sizes["m"])
    close(in_context_td.read_values(looped, sizes["m"]), expected, 1e-11)
    moments = in_context_td.gram(prompts.sarsa_tokens(**drawn, discount=0.7))
    close(in_context_td.predict(moments, query, P, Q, depth), expected, 1e-11)


CONSTRUCTIONS = {
    "sarsa": lambda **c: constructions.sarsa(3, 0.2, **c),
    "actor_critic": lambda **c: constructions.actor_critic(2, 3, 0.2, 0.8, **c),
    "one_head": lambda **c: constructions.one_head(
        prompts.sarsa_layout(3), {("r", "1"): 1.0}, {("w", r"\phi"): 0.2}, **c
    ),
    "in_context_td": lambda **c: in_context_td.construction(3, 0.2, **c),
}


@pytest.mark.parametrize("construct", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS.keys())
def test_the_scale_of_a_construction_is_1_unless_told(construct):
    assert all(map(torch.equal, construct(), construct(c=1.0)))
    assert torch.equal(construct(c=-2.0)[0], -2 * construct()[0])


@few
@given(sizes=some_sizes, seed=some_seed, c=scales)
def test_at_the_construction_the_loss_has_no_slope(sizes, seed, c):
    """The gradient of half the squared distance to the teacher by every entry of P and V."""
    drawn = window(sizes["B"], sizes["n"], sizes["d"], torch.float64, seed)
    P, V = constructions.sarsa(sizes["d"], 0.3, c, torch.float64)
    P, V = P.requires_grad_(), V.requires_grad_()
    H = prompts.sarsa_prompt(**drawn, discount=0.7)
    read = attention.linear_self_attention(H, P, V)[:, -sizes["d"] :, -1]
    loss = (read - teachers.sarsa_update(**drawn, **STEP)).square().sum()
    for slope in torch.autograd.grad(loss, (P, V)):
        assert slope.abs().max().item() < 1e-11


@few
@given(d=st.integers(1, 5), m=st.integers(1, 4), c=scales, factor=scales, alpha=steps, beta=steps)
def test_projection_finds_every_point_of_the_manifold(d, m, c, factor, alpha, beta):
    star = constructions.actor_critic(d, m, alpha, beta, c, torch.float64)
    P, V = star[0] * factor, star[1] / factor
    found = constructions.project(P, V, *star)
    size = math.sqrt(float(P.square().sum() + V.square().sum()))
    assert found.distance <= 1e-6 * size
    assert found.c == pytest.approx(factor, rel=1e-6)
    assert found.stray == 0


# --- exact solutions


def test_mdps_cannot_be_changed_and_are_equal_to_themselves_alone():
    """Their running sums and mean rewards are kept; equality of tensors would be no truth value."""
    mdp, twin = (draw_mdp((1, 2, 2), 0.5, 0) for _ in range(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        mdp.reward = mdp.reward + 1
    assert mdp == mdp
    assert mdp != twin
    assert len({mdp, twin}) == 2


def draw_mdp(shape: tuple[int, int, int], discount: float, seed: int, **kind: Any) -> TabularMDP:
    generator = torch.Generator().manual_seed(seed)
    kind = {"reward": "s,a,s'", "dtype": torch.float64, **kind}
    return mdps.random_mdps(*shape, discount, generator=generator, **kind)


def draw_policy(mdp: TabularMDP, seed: int) -> torch.Tensor:
    return policies.random_policy(mdp, torch.Generator().manual_seed(seed))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))  # B, S, A
discounts = st.one_of(st.just(0.0), st.floats(0, 0.95))
on_mdps = given(shape=shapes, discount=discounts, seed=some_seed)


@few
@on_mdps
def test_optimal_values_satisfy_the_equation_of_bellman(shape, discount, seed):
    mdp = draw_mdp(shape, discount, seed)
    q = mdps.value_iteration(mdp)
    B, S, A = shape
    for b in range(B):
        best = [max(row) for row in q[b].tolist()]
        for s in range(S):
            for a in range(A):
                p, r = mdp.transition[b, s, a].tolist(), mdp.reward[b, s, a].tolist()
                backed_up = sum(x * (y + discount * v) for x, y, v in zip(p, r, best, strict=True))
                assert q[b, s, a].item() == pytest.approx(backed_up, abs=1e-11)


@few
@on_mdps
def test_no_policy_beats_the_greedy_one(shape, discount, seed):
    mdp = draw_mdp(shape, discount, seed)
    q = mdps.value_iteration(mdp)
    best = mdps.policy_value(mdp, mdps.greedy_policy(q))
    close(best, q.amax(-1), 1e-10)
    assert (mdps.policy_value(mdp, draw_policy(mdp, seed + 1)) <= best + 1e-10).all()


@few
@on_mdps
def test_values_scale_and_shift_with_the_rewards(shape, discount, seed):
    """Rewards 3 r + 2 have values 3 v + 2 / (1 - gamma)."""
    mdp = draw_mdp(shape, discount, seed)
    other = TabularMDP(mdp.transition, 3 * mdp.reward + 2, mdp.initial, discount)
    shift = 2 / (1 - discount)
    close(mdps.value_iteration(other), 3 * mdps.value_iteration(mdp) + shift, 1e-11)
    policy = draw_policy(mdp, seed + 1)
    close(mdps.policy_value(other, policy), 3 * mdps.policy_value(mdp, policy) + shift, 1e-11)
    close(mdps.average_reward(other, policy), 3 * mdps.average_reward(mdp, policy) + 2, 1e-11)


@few
@on_mdps
def test_names_of_states_and_actions_do_not_matter(shape, discount, seed):
    mdp = draw_mdp(shape, discount, seed)
    generator = torch.Generator().manual_seed(seed)
    s, a = (torch.randperm(size, generator=generator) for size in shape[1:])
    moved = TabularMDP(
        *(t[:, s][:, :, a][..., s] for t in (mdp.transition, mdp.reward)),
        mdp.initial[:, s],
        discount,
    )
    policy = draw_policy(mdp, seed + 1)
    renamed = policy[:, s][:, :, a]
    close(mdps.value_iteration(moved), mdps.value_iteration(mdp)[:, s][:, :, a], 1e-11)
    close(mdps.policy_value(moved, renamed), mdps.policy_value(mdp, policy)[:, s], 1e-11)
    close(mdps.expected_return(moved, renamed), mdps.expected_return(mdp, policy), 1e-11)
    share = mdps.stationary_distribution(mdp, policy)[:, s]
    close(mdps.stationary_distribution(moved, renamed), share, 1e-11)


@few
@on_mdps
def test_the_stationary_distribution_stays(shape, discount, seed):
    mdp = draw_mdp(shape, discount, seed)
    policy = draw_policy(mdp, seed + 1)
    share = mdps.stationary_distribution(mdp, policy)
    step = (policy.unsqueeze(-1) * mdp.transition).sum(2)
    close((share.unsqueeze(-1) * step).sum(1), share, 1e-11)
    close(share.sum(-1), torch.ones(shape[0], dtype=torch.float64), 1e-11)
    assert share.min() > 0


SOLUTIONS = {
    "value_iteration": lambda mdp, policy: mdps.value_iteration(mdp),
    "policy_value": mdps.policy_value,
    "policy_action_value": mdps.policy_action_value,
    "expected_return": mdps.expected_return,
    "stationary_distribution": mdps.stationary_distribution,
    "average_reward": mdps.average_reward,
}
every_solution = pytest.mark.parametrize("solve", SOLUTIONS.values(), ids=SOLUTIONS.keys())


@every_solution
@few
@given(shape=shapes, discount=discounts, dtype=some_dtype, seed=some_seed, data=st.data())
def test_solutions_do_not_depend_on_memory(solve, shape, discount, dtype, seed, data):
    plain = draw_mdp(shape, discount, seed, dtype=dtype)
    policy = draw_policy(plain, seed + 1)
    kinds = sorted(MEMORY.keys() - {"one row for the batch"})
    tensors = (
        plain.transition.clone(),
        plain.reward.clone(),
        plain.initial.clone(),
        policy.clone(),
    )
    odd = [MEMORY[data.draw(st.sampled_from(kinds))](t) for t in tensors]
    actual = solve(TabularMDP(*odd[:3], discount), odd[3])
    close(actual.detach(), solve(plain, policy), PRECISIONS[dtype])


@every_solution
@few
@given(shape=shapes, discount=discounts, dtype=some_dtype, seed=some_seed)
def test_mdps_of_a_batch_do_not_see_each_other(solve, shape, discount, dtype, seed):
    mdp = draw_mdp(shape, discount, seed, dtype=dtype)
    policy = draw_policy(mdp, seed + 1)
    together = solve(mdp, policy)
    alone = [solve(mdp[b : b + 1], policy[b : b + 1]) for b in range(shape[0])]
    close(torch.cat(alone), together, PRECISIONS[dtype])


@pytest.mark.parametrize("of", ["transition", "reward", "initial", "policy"])
@every_solution
def test_solutions_can_be_differentiated(solve, of):
    """By logits, whose softmax stays a distribution; initial states matter to the return alone."""
    generator = torch.Generator().manual_seed(0)
    shape = {
        "transition": (2, 3, 2, 3),
        "reward": (2, 3, 2, 3),
        "initial": (2, 3),
        "policy": (2, 3, 2),
    }
    logits = {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in shape.items()
    }

    def of_one(t: torch.Tensor) -> torch.Tensor:
        given_ = {**logits, of: t}
        tables = {k: v if k == "reward" else v.softmax(-1) for k, v in given_.items()}
        policy = tables.pop("policy")
        return solve(TabularMDP(**tables, discount=0.6), policy)

    t = logits[of].requires_grad_()
    irrelevant = {
        "initial": solve is not mdps.expected_return,
        "policy": solve is SOLUTIONS["value_iteration"],
        "reward": solve is mdps.stationary_distribution,
        "transition": False,
    }
    result = of_one(t)
    if irrelevant[of]:
        assert not result.requires_grad
    else:
        assert torch.autograd.gradcheck(of_one, t, eps=1e-6, atol=1e-7, rtol=1e-5)
