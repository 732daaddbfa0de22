"""The zoo of updates: teachers against loops written from the textbook, blocks against both.

The references below are plain loops over the transitions of one MDP, in numpy and float64. They
know nothing of the library; Sutton and Barto (2018) is where they come from.
"""

import dataclasses
import math
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icrl_lib import constructions, teachers, zoo
from icrl_lib.algorithms import ActorCriticFeatures
from icrl_lib.attention import join, linear_self_attention
from icrl_lib.families import RandomMDPs
from icrl_lib.loop import interact
from icrl_lib.mdps import TabularMDP, average_reward, random_mdps, stationary_distribution
from icrl_lib.policies import Window, initial_states, rollout, softmax_policy, softmax_score
from icrl_lib.prompts import Layout, actor_critic_layout, assemble, sarsa_layout
from icrl_lib.training import TrainingConfig, train

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 2e-5)]


def close(actual, expected, tolerance=1e-12):
    """Differences are relative to the largest number expected, or to 1 if that is larger."""
    expected = torch.as_tensor(np.asarray(expected))
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (actual.double() - expected.double()).abs().max().item() <= tolerance * scale


# --- the textbook: one MDP, one transition after the other


def loop_td(w, phi, phi_next, rewards, discount, alpha, ratios=None):
    n, new = len(rewards), w.copy()
    for i in range(n):
        delta = rewards[i] + discount * (w @ phi_next[i]) - w @ phi[i]
        new += alpha / n * (1 if ratios is None else ratios[i]) * delta * phi[i]
    return new


def loop_residual_gradient(w, phi, phi_next, rewards, discount, alpha):
    n, new = len(rewards), w.copy()
    for i in range(n):
        delta = rewards[i] + discount * (w @ phi_next[i]) - w @ phi[i]
        new -= alpha / n * delta * (discount * phi_next[i] - phi[i])
    return new


def loop_expected_sarsa(w, phi, phi_next, probabilities, rewards, discount, alpha):
    n, new = len(rewards), w.copy()
    for i in range(n):
        value = sum(p * (w @ x) for p, x in zip(probabilities[i], phi_next[i], strict=True))
        new += alpha / n * (rewards[i] + discount * value - w @ phi[i]) * phi[i]
    return new


def loop_n_step_sarsa(w, phi, rewards, discount, alpha, steps):
    n, new = len(rewards), w.copy()
    for i in range(n):
        last = min(i + steps, n)
        target = discount ** (last - i) * (w @ phi[last])
        for j in range(i, last):
            target += discount ** (j - i) * rewards[j]
        new += alpha / n * (target - w @ phi[i]) * phi[i]
    return new


def loop_sarsa_lambda(w, phi, phi_next, rewards, discount, alpha, trace_decay):
    n, new, trace = len(rewards), w.copy(), np.zeros_like(w)
    for i in range(n):
        trace = discount * trace_decay * trace + phi[i]
        delta = rewards[i] + discount * (w @ phi_next[i]) - w @ phi[i]
        new += alpha / n * delta * trace
    return new


def loop_differential_sarsa(average_reward, w, phi, phi_next, rewards, alpha, beta):
    n, new, new_average = len(rewards), w.copy(), average_reward.copy()
    for i in range(n):
        delta = rewards[i] - average_reward[0] + w @ phi_next[i] - w @ phi[i]
        new += alpha / n * delta * phi[i]
        new_average += beta / n * delta
    return new_average, new


def loop_q_actor_critic(lam, w, phi, phi_next, rewards, scores, discount, alpha, beta):
    n, new_lam = len(rewards), lam.copy()
    for i in range(n):
        new_lam += alpha / n * discount**i * (w @ phi[i]) * scores[i]
    return new_lam, loop_td(w, phi, phi_next, rewards, discount, beta)


def loop_reinforce(lam, w, phi_v, rewards, scores, discount, alpha, beta):
    n, new_lam, new_w = len(rewards), lam.copy(), w.copy()
    for i in range(n):
        outcome = sum(discount ** (j - i) * rewards[j] for j in range(i, n))
        error = outcome - w @ phi_v[i]
        new_lam += alpha / n * discount**i * error * scores[i]
        new_w += beta / n * error * phi_v[i]
    return new_lam, new_w


def loop_q_learning(w, phi, phi_next, rewards, discount, alpha):
    n, new = len(rewards), w.copy()
    for i in range(n):
        best = max(w @ x for x in phi_next[i])
        new += alpha / n * (rewards[i] + discount * best - w @ phi[i]) * phi[i]
    return new


def over_batch(loop, **arguments):
    """Run a loop for each MDP of a batch; the parts of its result become one vector."""
    batch = next(v.shape[0] for v in arguments.values() if torch.is_tensor(v))
    results = []
    for b in range(batch):
        one = {k: v[b].double().numpy() if torch.is_tensor(v) else v for k, v in arguments.items()}
        result = loop(**one)
        results.append(np.concatenate(result) if isinstance(result, tuple) else result)
    return np.stack(results)


# --- what teachers take

TRANSITIONS = {"phi": "B n d", "phi_next": "B n d", "rewards": "B n"}
FANS = {"phi": "B n d", "phi_next": "B n A d"}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A function of the library, its loop, the shapes it takes and the numbers it takes."""

    function: object
    loop: object
    shapes: dict
    numbers: tuple

    def draw(self, sizes, numbers, dtype, seed):
        """Return arguments by name; entries are uniform on (-1, 1) unless they are no features."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, axes in self.shapes.items():
            known = {**sizes, "1": 1, "n+1": sizes["n"] + 1}
            shape = [known[axis] for axis in axes.split()]
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            if name == "ratios":
                value = 8 * uniform
            elif name == "probabilities":
                value = uniform / uniform.sum(-1, keepdim=True)
            else:
                value = 2 * uniform - 1
            drawn[name] = value.to(dtype)
        if dtype == torch.float32 and "probabilities" in drawn:
            p = drawn["probabilities"]
            drawn["probabilities"] = p / p.sum(-1, keepdim=True)
        return drawn | {name: numbers[name] for name in self.numbers}


TEACHERS = {
    "td": Teacher(teachers.td_update, loop_td, {"w": "B d", **TRANSITIONS}, ("discount", "alpha")),
    "off_policy_td": Teacher(
        teachers.td_update,
        loop_td,
        {"w": "B d", **TRANSITIONS, "ratios": "B n"},
        ("discount", "alpha"),
    ),
    "residual_gradient": Teacher(
        teachers.residual_gradient_update,
        loop_residual_gradient,
        {"w": "B d", **TRANSITIONS},
        ("discount", "alpha"),
    ),
    "expected_sarsa": Teacher(
        teachers.expected_sarsa_update,
        loop_expected_sarsa,
        {"w": "B d", **FANS, "probabilities": "B n A", "rewards": "B n"},
        ("discount", "alpha"),
    ),
    "n_step_sarsa": Teacher(
        teachers.n_step_sarsa_update,
        loop_n_step_sarsa,
        {"w": "B d", "phi": "B n+1 d", "rewards": "B n"},
        ("discount", "alpha", "steps"),
    ),
    "sarsa_lambda": Teacher(
        teachers.sarsa_lambda_update,
        loop_sarsa_lambda,
        {"w": "B d", **TRANSITIONS},
        ("discount", "alpha", "trace_decay"),
    ),
    "differential_sarsa": Teacher(
        teachers.differential_sarsa_update,
        loop_differential_sarsa,
        {"average_reward": "B 1", "w": "B d", **TRANSITIONS},
        ("alpha", "beta"),
    ),
    "q_actor_critic": Teacher(
        teachers.q_actor_critic_update,
        loop_q_actor_critic,
        {"lam": "B m", "w": "B d", **TRANSITIONS, "scores": "B n m"},
        ("discount", "alpha", "beta"),
    ),
    "reinforce": Teacher(
        teachers.reinforce_update,
        loop_reinforce,
        {"lam": "B m", "w": "B d", "phi_v": "B n d", "rewards": "B n", "scores": "B n m"},
        ("discount", "alpha", "beta"),
    ),
    "q_learning": Teacher(
        teachers.q_learning_update,
        loop_q_learning,
        {"w": "B d", **FANS, "rewards": "B n"},
        ("discount", "alpha"),
    ),
}
NUMBERS = {"discount": 0.7, "alpha": 0.2, "beta": 0.8, "steps": 2, "trace_decay": 0.6}
each_teacher = pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS.keys())


def together(result):
    """Return the parts of a teacher's result as one tensor (B, p)."""
    return torch.cat(result, -1) if isinstance(result, tuple) else result


some_sizes = st.fixed_dictionaries(
    {
        "B": st.integers(1, 3),
        "n": st.integers(1, 7),
        "d": st.integers(1, 5),
        "A": st.integers(1, 4),
        "m": st.integers(1, 4),
    }
)
some_numbers = st.fixed_dictionaries(
    {
        "discount": st.one_of(st.just(0), st.floats(0, 0.99)),
        "alpha": st.floats(1e-3, 2),
        "beta": st.floats(1e-3, 2),
        "steps": st.integers(1, 9),
        "trace_decay": st.one_of(st.sampled_from([0, 1]), st.floats(0, 1)),
    }
)
some_seed = st.integers(0, 2**31)


# --- teachers


@each_teacher
@given(
    sizes=some_sizes, numbers=some_numbers, precision=st.sampled_from(PRECISIONS), seed=some_seed
)
def test_teachers_equal_loops(teacher, sizes, numbers, precision, seed):
    dtype, tolerance = precision
    arguments = teacher.draw(sizes, numbers, dtype, seed)
    updated = together(teacher.function(**arguments))
    assert updated.dtype == dtype
    close(updated, over_batch(teacher.loop, **arguments), tolerance)


# Two transitions with values 1, 2 and next values 2, 0: with gamma = 1/2 the errors are 4 and -3.
HAND = {
    "w": torch.tensor([[1.0, 2.0]]),
    "phi": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
    "phi_next": torch.tensor([[[0.0, 1.0], [2.0, -1.0]]]),
    "rewards": torch.tensor([[4.0, -1.0]]),
}
# The same with two possible next actions: next values 2 and 4, then 0 and 3.
FAN = {**HAND, "phi_next": torch.tensor([[[[0.0, 1.0], [4.0, 0.0]], [[2.0, -1.0], [1.0, 1.0]]]])}


def test_td_by_hand():
    """[1, 2] + (1/2)/2 (4 [1, 0] - 3 [0, 1])."""
    assert teachers.td_update(**HAND, discount=0.5, alpha=0.5).tolist() == [[2, 1.25]]


def test_off_policy_td_by_hand():
    """[1, 2] + (1/2)/2 (2 4 [1, 0] - (1/2) 3 [0, 1])."""
    ratios = torch.tensor([[2.0, 0.5]])
    updated = teachers.td_update(**HAND, discount=0.5, alpha=0.5, ratios=ratios)
    assert updated.tolist() == [[3, 1.625]]


def test_residual_gradient_by_hand():
    """[1, 2] + (1/2)/2 (4 [1, -1/2] - 3 [-1, 3/2])."""
    updated = teachers.residual_gradient_update(**HAND, discount=0.5, alpha=0.5)
    assert updated.tolist() == [[2.75, 0.375]]


def test_expected_sarsa_by_hand():
    """Mean next values 3.5 and 1.5, errors 4.75 and -2.25."""
    probabilities = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    updated = teachers.expected_sarsa_update(
        **FAN, probabilities=probabilities, discount=0.5, alpha=0.5
    )
    assert updated.tolist() == [[2.1875, 1.4375]]


def test_q_learning_by_hand():
    """Best next values 4 and 3, errors 5 and -1.5."""
    assert teachers.q_learning_update(**FAN, discount=0.5, alpha=0.5).tolist() == [[2.25, 1.625]]


# Values 2, 0, -2 and at the end 6; rewards 1, 2, 4.
CHAIN = {
    "w": torch.tensor([[2.0]]),
    "phi": torch.tensor([[[1.0], [0.0], [-1.0], [3.0]]]),
    "rewards": torch.tensor([[1.0, 2.0, 4.0]]),
}


def test_n_step_sarsa_by_hand():
    """Targets 1 + 2/2 - 2/4 = 1.5, 2 + 4/2 + 6/4 = 5.5, 4 + 6/2 = 7; errors -0.5, 5.5, 9."""
    updated = teachers.n_step_sarsa_update(**CHAIN, discount=0.5, alpha=6, steps=2)
    assert updated.tolist() == [[2 + 2 * (-0.5 * 1 + 5.5 * 0 - 9 * 1)]]


def test_sarsa_lambda_by_hand():
    """Errors -1, 1, 9; traces 1, 1/4, -1 + 1/16."""
    updated = teachers.sarsa_lambda_update(
        CHAIN["w"],
        CHAIN["phi"][:, :-1],
        CHAIN["phi"][:, 1:],
        CHAIN["rewards"],
        discount=0.5,
        alpha=6,
        trace_decay=0.5,
    )
    assert updated.tolist() == [[2 + 2 * (-1 + 0.25 - 9 * 0.9375)]]


def test_differential_sarsa_by_hand():
    """Errors 4 - 1 + 2 - 1 = 4 and 1 - 1 + 0 - 2 = -2."""
    given = {**HAND, "rewards": torch.tensor([[4.0, 1.0]])}
    average, w = teachers.differential_sarsa_update(
        torch.tensor([[1.0]]), **given, alpha=0.5, beta=2
    )
    assert average.tolist() == [[3]]
    assert w.tolist() == [[2, 1.5]]


def test_q_actor_critic_by_hand():
    """lambda: 1 + (2/2) (1 * 3 + (1/2) 2 * 2)."""
    lam, w = teachers.q_actor_critic_update(
        torch.tensor([[1.0]]),
        **HAND,
        scores=torch.tensor([[[3.0], [2.0]]]),
        discount=0.5,
        alpha=2,
        beta=0.5,
    )
    assert lam.tolist() == [[6]]
    assert w.tolist() == [[2, 1.25]]


def test_reinforce_by_hand():
    """Returns 3.5 and -1, errors 2.5 and -3; lambda: 1 + (2/2) (2.5 * 3 - (1/2) 3 * 2)."""
    lam, w = teachers.reinforce_update(
        torch.tensor([[1.0]]),
        HAND["w"],
        HAND["phi"],
        HAND["rewards"],
        scores=torch.tensor([[[3.0], [2.0]]]),
        discount=0.5,
        alpha=2,
        beta=0.5,
    )
    assert lam.tolist() == [[5.5]]
    assert w.tolist() == [[1.625, 1.25]]


SIZES = {"B": 2, "n": 3, "d": 4, "A": 3, "m": 5}


@each_teacher
def test_teachers_modify_nothing(teacher):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float64, 0)
    before = {k: arguments[k].clone() for k in teacher.shapes}
    teacher.function(**arguments)
    assert all(torch.equal(arguments[k], before[k]) for k in before)


@each_teacher
def test_teachers_take_tensors_in_any_memory_order(teacher):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float64, 0)
    strided = dict(arguments)
    for name in teacher.shapes:
        strided[name] = arguments[name].transpose(0, -1).contiguous().transpose(0, -1)
        assert not strided[name].is_contiguous() or 1 in strided[name].shape
    expected = together(teacher.function(**arguments))
    close(together(teacher.function(**strided)), expected, 1e-14)


@each_teacher
def test_teachers_can_be_differentiated(teacher):
    """The derivative with respect to all tensors together, against a difference quotient."""
    arguments = teacher.draw(SIZES, NUMBERS, torch.float64, 0)
    direction = teacher.draw(SIZES, NUMBERS, torch.float64, 1)
    names = [name for name in teacher.shapes if name != "probabilities"]

    def along(t):
        moved = {name: arguments[name] + t * direction[name] for name in names}
        return together(teacher.function(**{**arguments, **moved})).sum()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(along(t), t)
    step = 1e-5
    quotient = (along(step) - along(-step)).item() / (2 * step)
    assert slope.item() == pytest.approx(quotient, rel=1e-6, abs=1e-8)


REFUSED = {
    "discount": (-0.1, 1, math.nan, "0.5", None),
    "alpha": (0, -1, math.inf, "0.2", None),
    "beta": (0, -1, math.inf, "0.2", None),
    "steps": (0, -1, 1.0, True, None),
    "trace_decay": (-0.1, 1.1, math.nan, None),
}
ALL_TENSORS = [
    pytest.param(teacher, argument, id=f"{name}-{argument}")
    for name, teacher in TEACHERS.items()
    for argument in teacher.shapes
]


@pytest.mark.parametrize(("teacher", "name"), ALL_TENSORS)
def test_teachers_refuse_bad_tensors(teacher, name, spoil):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float32, 0)
    with pytest.raises(ValueError, match=f"^{name}:"):
        teacher.function(**{**arguments, name: spoil(arguments[name])})


@pytest.mark.parametrize(("teacher", "name"), ALL_TENSORS)
def test_teachers_refuse_tensors_that_disagree(teacher, name, mismatch):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float32, 0)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        teacher.function(**{**arguments, name: mismatch(arguments[name])})


@pytest.mark.parametrize(
    ("teacher", "name"), [p for p in ALL_TENSORS if "B n" in p.values[0].shapes[p.values[1]]]
)
def test_teachers_refuse_windows_of_two_lengths(teacher, name):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float32, 0)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        teacher.function(**{**arguments, name: arguments[name][:, 1:]})


@pytest.mark.parametrize(
    ("teacher", "name", "value"),
    [
        pytest.param(teacher, number, value, id=f"{name}-{number}-{value}")
        for name, teacher in TEACHERS.items()
        for number in teacher.numbers
        for value in REFUSED[number]
    ],
)
def test_teachers_refuse_numbers(teacher, name, value):
    arguments = teacher.draw(SIZES, NUMBERS, torch.float32, 0)
    with pytest.raises(ValueError, match=f"^{name}:"):
        teacher.function(**{**arguments, name: value})


def test_off_policy_td_refuses_negative_ratios():
    ratios = torch.tensor([[1.0, -0.5]])
    with pytest.raises(ValueError, match=r"^ratios:"):
        teachers.td_update(**HAND, discount=0.5, alpha=0.5, ratios=ratios)


@pytest.mark.parametrize("row", [[0.5, 0.6], [1.5, -0.5]], ids=["sum 1.1", "negative"])
def test_expected_sarsa_refuses_what_is_no_probability(row):
    probabilities = torch.tensor([[row, [0.5, 0.5]]])
    with pytest.raises(ValueError, match=r"^probabilities:"):
        teachers.expected_sarsa_update(**FAN, probabilities=probabilities, discount=0.5, alpha=1)


# --- identities between the updates


def draw(name, sizes, numbers, seed):
    """Return arguments of a teacher by name, in float64."""
    return TEACHERS[name].draw(sizes, numbers, torch.float64, seed)


def chain(sizes, numbers, seed):
    """Return w, n + 1 feature vectors of one trajectory, rewards, discount and step size."""
    drawn = draw("n_step_sarsa", sizes, numbers, seed)
    return tuple(drawn[k] for k in ("w", "phi", "rewards", "discount", "alpha"))


def in_pairs(w, phi, rewards, discount, alpha):
    return w, phi[:, :-1], phi[:, 1:], rewards, discount, alpha


identity = given(sizes=some_sizes, numbers=some_numbers, seed=some_seed)


@identity
def test_one_step_sarsa_is_sarsa(sizes, numbers, seed):
    c = chain(sizes, numbers, seed)
    close(teachers.n_step_sarsa_update(*c, steps=1), teachers.sarsa_update(*in_pairs(*c)))


@identity
def test_td_is_sarsa_on_state_features(sizes, numbers, seed):
    arguments = draw("td", sizes, numbers, seed)
    close(teachers.td_update(**arguments), teachers.sarsa_update(**arguments))


@identity
def test_sarsa_lambda_without_traces_is_sarsa(sizes, numbers, seed):
    arguments = draw("td", sizes, numbers, seed)
    updated = teachers.sarsa_lambda_update(**arguments, trace_decay=0)
    close(updated, teachers.sarsa_update(**arguments))


@identity
def test_sarsa_lambda_with_full_traces_looks_to_the_end_of_the_window(sizes, numbers, seed):
    c = chain(sizes, numbers, seed)
    updated = teachers.sarsa_lambda_update(*in_pairs(*c), trace_decay=1)
    close(updated, teachers.n_step_sarsa_update(*c, steps=sizes["n"]))


@identity
def test_more_steps_than_the_window_has_change_nothing(sizes, numbers, seed):
    c, n = chain(sizes, numbers, seed), sizes["n"]
    close(
        teachers.n_step_sarsa_update(*c, steps=n + numbers["steps"]),
        teachers.n_step_sarsa_update(*c, steps=n),
    )


@identity
def test_forward_view_is_backward_view(sizes, numbers, seed):
    """Truncated lambda-returns, a mixture of h-step returns, against traces."""
    w, phi, rewards, discount, alpha = chain(sizes, numbers, seed)
    decay, n = numbers["trace_decay"], sizes["n"]
    expected = w.double().numpy().copy()
    for b in range(sizes["B"]):
        v = [float(w[b] @ x) for x in phi[b]]
        r = rewards[b].tolist()

        def h_step(i, h, v=v, r=r):
            return sum(discount**j * r[i + j] for j in range(h)) + discount**h * v[i + h]

        for i in range(n):
            longest = n - i
            target = decay ** (longest - 1) * h_step(i, longest)
            for h in range(1, longest):
                target += (1 - decay) * decay ** (h - 1) * h_step(i, h)
            expected[b] += alpha / n * (target - v[i]) * phi[b, i].numpy()
    updated = teachers.sarsa_lambda_update(
        *in_pairs(w, phi, rewards, discount, alpha), trace_decay=decay
    )
    close(updated, expected)


@identity
def test_expected_sarsa_with_a_deterministic_policy_is_sarsa(sizes, numbers, seed):
    arguments = draw("expected_sarsa", sizes, numbers, seed)
    chosen = arguments["probabilities"].argmax(-1)
    arguments["probabilities"] = torch.nn.functional.one_hot(chosen, sizes["A"]).double()
    expected = {k: v for k, v in arguments.items() if k != "probabilities"}
    expected["phi_next"] = torch.stack(
        [
            torch.stack([fan[a] for fan, a in zip(fans, actions, strict=True)])
            for fans, actions in zip(arguments["phi_next"], chosen, strict=True)
        ]
    )
    close(teachers.expected_sarsa_update(**arguments), teachers.sarsa_update(**expected))


@identity
def test_expected_sarsa_is_the_mean_of_sarsa_over_the_next_action(sizes, numbers, seed):
    """One transition, so that there is one next action to average over."""
    arguments = draw("expected_sarsa", {**sizes, "n": 1}, numbers, seed)
    probabilities = arguments["probabilities"]
    one_action = {k: v for k, v in arguments.items() if k != "probabilities"}
    mean = 0
    for a in range(sizes["A"]):
        one_action["phi_next"] = arguments["phi_next"][:, :, a]
        mean = mean + probabilities[:, 0, a, None] * teachers.sarsa_update(**one_action)
    close(teachers.expected_sarsa_update(**arguments), mean)


@identity
def test_q_learning_with_one_action_is_sarsa(sizes, numbers, seed):
    arguments = draw("q_learning", {**sizes, "A": 1}, numbers, seed)
    expected = teachers.sarsa_update(**{**arguments, "phi_next": arguments["phi_next"][:, :, 0]})
    close(teachers.q_learning_update(**arguments), expected)


@identity
def test_ratios_of_one_change_nothing(sizes, numbers, seed):
    arguments = draw("td", sizes, numbers, seed)
    ratios = torch.ones_like(arguments["rewards"])
    close(teachers.td_update(**arguments, ratios=ratios), teachers.td_update(**arguments))


@identity
def test_residual_gradient_descends_the_mean_squared_error(sizes, numbers, seed):
    """By automatic differentiation of (1/2n) sum_i delta_i^2."""
    arguments = draw("td", sizes, numbers, seed)
    w = arguments["w"].clone().requires_grad_()
    loss = 0
    for b in range(sizes["B"]):
        for i in range(sizes["n"]):
            x = numbers["discount"] * arguments["phi_next"][b, i] - arguments["phi"][b, i]
            loss = loss + (arguments["rewards"][b, i] + w[b] @ x) ** 2 / (2 * sizes["n"])
    (gradient,) = torch.autograd.grad(loss, w)
    expected = arguments["w"] - numbers["alpha"] * gradient
    close(teachers.residual_gradient_update(**arguments), expected)


@identity
def test_without_discount_residual_gradient_is_td(sizes, numbers, seed):
    arguments = draw("td", sizes, {**numbers, "discount": 0}, seed)
    close(teachers.residual_gradient_update(**arguments), teachers.td_update(**arguments))


@identity
def test_differential_sarsa_with_average_0_is_sarsa_with_discount_1(sizes, numbers, seed):
    """SARSA refuses discount 1, but it is affine in it: f(1) = 2 f(1/2) - f(0)."""
    arguments = draw("differential_sarsa", sizes, numbers, seed)
    w, alpha = arguments["w"], arguments["alpha"]
    seen = [arguments[k] for k in ("phi", "phi_next", "rewards")]
    _, updated = teachers.differential_sarsa_update(
        torch.zeros_like(arguments["average_reward"]), w, *seen, alpha, numbers["beta"]
    )
    half, zero = (teachers.sarsa_update(w, *seen, discount, alpha) for discount in (0.5, 0))
    close(updated, 2 * half - zero)


@identity
def test_the_critic_of_q_actor_critic_is_sarsa(sizes, numbers, seed):
    arguments = draw("q_actor_critic", sizes, numbers, seed)
    _, w = teachers.q_actor_critic_update(**arguments)
    seen = {k: arguments[k] for k in ("w", "phi", "phi_next", "rewards", "discount")}
    close(w, teachers.sarsa_update(**seen, alpha=numbers["beta"]))


@identity
def test_without_discount_reinforce_is_actor_critic(sizes, numbers, seed):
    """The return is then the next reward, and the next value does not count."""
    arguments = draw("reinforce", sizes, {**numbers, "discount": 0}, seed)
    phi_next = torch.zeros_like(arguments["phi_v"])
    expected = teachers.actor_critic_update(**arguments, phi_v_next=phi_next)
    close(together(teachers.reinforce_update(**arguments)), together(expected))


# --- one head


TOY = Layout(token=(("x", 2), ("y", 2), ("r", 1)), parameter=(("1", 1), ("u", 2), ("b", 1)))


def test_one_head_by_hand():
    """Rows x, x, y, y, r, 1, u, u, b; c = 2."""
    P, V = constructions.one_head(
        TOY, {("x", "u"): -3, ("r", "1"): 5, ("r", "b"): 7}, {("u", "y"): 4, ("b", "r"): -6}, c=2
    )
    expected_P, expected_V = np.zeros((9, 9)), np.zeros((9, 9))
    expected_P[0, 6] = expected_P[1, 7] = -6
    expected_P[4, 5], expected_P[4, 8] = 10, 14
    expected_V[6, 2] = expected_V[7, 3] = 2
    expected_V[8, 4] = -3
    assert P.tolist() == expected_P.tolist()
    assert V.tolist() == expected_V.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1.0, -0.3, 7.0])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_one_head_makes_sarsa(d, c, dtype):
    meets = {(r"\phi", "w"): -1, (r"\gamma\phi^+", "w"): 1, ("r", "1"): 1}
    weights = constructions.one_head(sarsa_layout(d), meets, {("w", r"\phi"): 0.2}, c, dtype)
    expected = constructions.sarsa(d, 0.2, c, dtype)
    for matrix, wanted in zip(weights, expected, strict=True):
        assert torch.equal(matrix, wanted)
        assert matrix.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1.0, -0.3, 7.0])
@pytest.mark.parametrize(("d", "m"), [(1, 1), (2, 3), (4, 2)])
def test_one_head_makes_actor_critic(d, m, c, dtype):
    meets = {(r"\phi_V", "w"): -1, (r"\gamma\phi_V^+", "w"): 1, ("r", "1"): 1}
    writes = {(r"\lambda", r"\gamma^i g_\lambda"): 0.2, ("w", r"\phi_V"): 0.8}
    weights = constructions.one_head(actor_critic_layout(d, m), meets, writes, c, dtype)
    expected = constructions.actor_critic(d, m, 0.2, 0.8, c, dtype)
    for matrix, wanted in zip(weights, expected, strict=True):
        assert torch.equal(matrix, wanted)


@given(n=st.integers(1, 6), c=st.sampled_from([1.0, -1.0, 0.3, -7.0]), seed=some_seed)
def test_one_head_is_a_number_times_a_vector(n, c, seed):
    """Everything that fits meets and is written, with random coefficients; by loops over slots."""
    rng = np.random.default_rng(seed)
    token, parameter = (dict(side) for side in (TOY.token, TOY.parameter))
    meets, writes = {}, {}
    for t, size in token.items():
        for p, width in parameter.items():
            if size == width:
                meets[t, p] = float(rng.normal())
                if p != "1":
                    writes[p, t] = float(rng.normal())
    slots = {t: rng.normal(size=(n, size)) for t, size in token.items()}
    column = {"1": np.ones(1), "u": rng.normal(size=2), "b": rng.normal(size=1)}
    expected = {p: v.copy() for p, v in column.items()}
    for i in range(n):
        number = sum(k * slots[t][i] @ column[p] for (t, p), k in meets.items())
        for (p, t), k in writes.items():
            expected[p] += number * k * slots[t][i] / n
    tokens = torch.tensor(np.concatenate(list(slots.values()), -1))[None]
    parameters = torch.tensor(np.concatenate([column["u"], column["b"]]))[None]
    P, V = constructions.one_head(TOY, meets, writes, c, torch.float64)
    updated = linear_self_attention(assemble(tokens, parameters), P, V)[:, -3:, -1]
    close(updated, np.concatenate([expected["u"], expected["b"]])[None])


def test_one_head_is_float32_unless_told():
    weights = constructions.one_head(TOY, {("x", "u"): 1}, {("u", "y"): 1})
    assert [t.dtype for t in weights] == [torch.float32] * 2


@pytest.mark.parametrize(
    ("argument", "pairs"),
    [
        ("meets", {("z", "u"): 1}),
        ("meets", {("x", "v"): 1}),
        ("meets", {("u", "x"): 1}),
        ("meets", {("x", "b"): 1}),
        ("meets", {("x", "1"): 1}),
        ("meets", {("x", "u"): math.nan}),
        ("meets", {("x", "u"): "1"}),
        ("writes", {("v", "y"): 1}),
        ("writes", {("u", "z"): 1}),
        ("writes", {("y", "u"): 1}),
        ("writes", {("u", "r"): 1}),
        ("writes", {("1", "r"): 1}),
        ("writes", {("u", "y"): math.inf}),
    ],
    ids=str,
)
def test_one_head_refuses(argument, pairs):
    good = {"meets": {("x", "u"): 1}, "writes": {("u", "y"): 1}}
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        constructions.one_head(TOY, **{**good, argument: pairs})


@pytest.mark.parametrize("c", [0, 0.0, math.nan, math.inf, None])
def test_one_head_refuses_scales(c):
    with pytest.raises(ValueError, match=r"^c:"):
        constructions.one_head(TOY, {("x", "u"): 1}, {("u", "y"): 1}, c=c)


# --- the members


@dataclasses.dataclass(frozen=True)
class Member:
    """A class of the zoo, how it is made from sizes and numbers, and what `observe` returns."""

    make: object
    teacher: str
    parameters: tuple
    seen: tuple
    extra: tuple = ()  # what the teacher takes besides step sizes


def sarsa_kind(cls, *names):
    """Return a function that makes a SARSA-like algorithm with the numbers in `names`."""
    return lambda sizes, x: cls(
        d=sizes["d"], alpha=x["alpha"], epsilon=0.2, **{name: x[name] for name in names}
    )


def evaluation(cls):
    return lambda sizes, x: cls(d=sizes["d"], alpha=x["alpha"])


def actor_critic_kind(cls):
    return lambda sizes, x: cls(
        d=sizes["d"], m=sizes["m"], alpha=x["alpha"], beta=x["beta"], epsilon=0.2
    )


PAIRS = ("phi", "phi_next", "rewards", "discount")
MEMBERS = {
    "TD": Member(evaluation(zoo.TD), "td", ("w",), PAIRS),
    "OffPolicyTD": Member(evaluation(zoo.OffPolicyTD), "off_policy_td", ("w",), (*PAIRS, "ratios")),
    "ResidualGradient": Member(
        sarsa_kind(zoo.ResidualGradient), "residual_gradient", ("w",), PAIRS
    ),
    "ExpectedSARSA": Member(
        sarsa_kind(zoo.ExpectedSARSA),
        "expected_sarsa",
        ("w",),
        ("phi", "phi_next", "probabilities", "rewards", "discount"),
    ),
    "NStepSARSA": Member(
        sarsa_kind(zoo.NStepSARSA, "steps"),
        "n_step_sarsa",
        ("w",),
        ("phi", "rewards", "discount"),
        ("steps",),
    ),
    "SARSALambda": Member(
        sarsa_kind(zoo.SARSALambda, "trace_decay"), "sarsa_lambda", ("w",), PAIRS, ("trace_decay",)
    ),
    "DifferentialSARSA": Member(
        sarsa_kind(zoo.DifferentialSARSA, "beta"),
        "differential_sarsa",
        ("average_reward", "w"),
        PAIRS[:3],
    ),
    "QActorCritic": Member(
        actor_critic_kind(zoo.QActorCritic),
        "q_actor_critic",
        ("lam", "w"),
        ("phi", "phi_next", "rewards", "scores", "discount"),
    ),
    "Reinforce": Member(
        actor_critic_kind(zoo.Reinforce),
        "reinforce",
        ("lam", "w"),
        ("phi_v", "rewards", "scores", "discount"),
    ),
    "QLearning": Member(
        lambda sizes, x: zoo.QLearning(
            d=sizes["d"], alpha=x["alpha"], epsilon=0.2, n_actions=sizes["A"]
        ),
        "q_learning",
        ("w",),
        PAIRS,
    ),
}
each_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
FITTING = {name: member for name, member in MEMBERS.items() if name != "QLearning"}
each_that_fits = pytest.mark.parametrize("member", FITTING.values(), ids=FITTING.keys())


def instance(member, sizes, numbers, dtype, seed):
    """Return an algorithm, random parameters and observation, and the update of the loop."""
    teacher = TEACHERS[member.teacher]
    arguments = teacher.draw(sizes, numbers, dtype, seed)
    parameters = torch.cat([arguments[name] for name in member.parameters], -1)
    observation = tuple(arguments[name] for name in member.seen)
    algorithm = member.make(sizes, numbers)
    return algorithm, parameters, observation, over_batch(teacher.loop, **arguments)


def loop_teach(member, numbers, parameters, observation):
    """Return the loop's update of parameters (B, p) from an observation."""
    teacher = TEACHERS[member.teacher]
    arguments = dict(zip(member.seen, observation, strict=True))
    if len(member.parameters) == 1:
        arguments["w"] = parameters
    else:
        first = 1 if "average_reward" in member.parameters else numbers["m"]
        arguments[member.parameters[0]] = parameters[:, :first]
        arguments["w"] = parameters[:, first:]
    for name in teacher.numbers:
        arguments.setdefault(name, numbers[name])
    return over_batch(teacher.loop, **arguments)


@each_member
@given(
    sizes=some_sizes, numbers=some_numbers, precision=st.sampled_from(PRECISIONS), seed=some_seed
)
def test_members_teach_what_the_loop_teaches(member, sizes, numbers, precision, seed):
    dtype, tolerance = precision
    algorithm, parameters, observation, expected = instance(member, sizes, numbers, dtype, seed)
    close(algorithm.teach(parameters, observation), expected, tolerance)


@each_that_fits
@given(
    sizes=some_sizes,
    numbers=some_numbers,
    c=st.sampled_from([1.0, -1.0, 0.3, -7.0]),
    precision=st.sampled_from(PRECISIONS),
    seed=some_seed,
)
def test_blocks_equal_loops(member, sizes, numbers, c, precision, seed):
    """The literal eq. (1) with the full P and V; observations are random numbers."""
    dtype, tolerance = precision
    algorithm, parameters, observation, expected = instance(member, sizes, numbers, dtype, seed)
    P, V = algorithm.construction(c, dtype)
    assert P.shape == V.shape == (algorithm.layout.size,) * 2
    assert P.dtype == V.dtype == dtype
    close(algorithm.forward(parameters, observation, P, V), expected, tolerance)


def situation(member, sizes, numbers, seed, dtype=torch.float64):
    """Return an algorithm, MDPs, features, parameters and a window that they produced."""
    generator = torch.Generator().manual_seed(seed)
    algorithm = member.make(sizes, numbers)
    mdp = random_mdps(
        sizes["B"], 4, sizes["A"], numbers["discount"], generator=generator, dtype=dtype
    )
    features = algorithm.draw_features(mdp, generator)
    parameters = algorithm.draw_parameters(sizes["B"], generator, dtype)
    policy = algorithm.policy(features, parameters)
    window = rollout(mdp, policy, sizes["n"], initial_states(mdp, generator), generator)
    return algorithm, mdp, features, parameters, window


@each_that_fits
@given(
    sizes=some_sizes,
    numbers=some_numbers,
    c=st.sampled_from([1.0, -1.0, 0.3, -7.0]),
    seed=some_seed,
)
def test_blocks_equal_loops_on_windows_of_mdps(member, sizes, numbers, c, seed):
    algorithm, _, features, parameters, window = situation(member, sizes, numbers, seed)
    seen = algorithm.observe(features, parameters, window)
    expected = loop_teach(member, {**numbers, "m": sizes["m"]}, parameters, seen)
    weights = algorithm.construction(c, torch.float64)
    close(algorithm.forward(parameters, seen, *weights), expected)


@each_that_fits
def test_blocks_in_the_loop_follow_their_teachers(member):
    """Ten updates in closed loop, where a difference could grow."""
    sizes = {**SIZES, "n": 6}
    algorithm, mdp, features, parameters, window = situation(member, sizes, NUMBERS, 3)
    P, V = algorithm.construction(dtype=torch.float64)
    ends = []
    for update in (algorithm.teach, lambda p, seen: algorithm.forward(p, seen, P, V)):
        loop = interact(
            algorithm,
            mdp,
            features,
            parameters,
            window.states[:, -1],
            update,
            n=6,
            generator=torch.Generator().manual_seed(4),
        )
        ends.append(next(islice(loop, 9, None)).updated)
    assert (ends[0] - parameters).abs().max() > 1e-3
    close(ends[1], ends[0], 1e-10)


# --- which weights are new


SAME_WEIGHTS = ["TD", "OffPolicyTD", "ExpectedSARSA", "NStepSARSA"]


@pytest.mark.parametrize("name", FITTING)
def test_only_some_members_need_new_weights(name):
    """P* and V* of SARSA serve the first four; the others differ in P*, in V* or in both."""
    algorithm = MEMBERS[name].make(SIZES, NUMBERS)
    weights = algorithm.construction(-2.0, torch.float64)
    expected = constructions.sarsa(SIZES["d"], NUMBERS["alpha"], -2.0, torch.float64)
    same = [torch.equal(a, b) for a, b in zip(weights, expected, strict=True)]
    assert same == {
        **{key: [True, True] for key in SAME_WEIGHTS},
        "ResidualGradient": [True, False],
    }.get(name, [False, False])


LAYOUT_SIZES = {
    "TD": (9, 5),
    "OffPolicyTD": (9, 5),
    "ResidualGradient": (9, 5),
    "ExpectedSARSA": (9, 5),
    "NStepSARSA": (9, 5),
    "SARSALambda": (13, 5),
    "DifferentialSARSA": (10, 6),
    "QActorCritic": (18, 10),
    "Reinforce": (10, 10),
    "QLearning": (17, 5),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_sizes_of_the_prompt(name):
    """d = 4, m = 5, A = 3; rows of a token, and of the parameter column with its constant 1."""
    layout = MEMBERS[name].make(SIZES, NUMBERS).layout
    assert (layout.n_token, layout.n_parameter) == LAYOUT_SIZES[name]


@each_that_fits
@pytest.mark.parametrize("matrix", ["P", "V"])
def test_every_entry_of_a_construction_is_needed(member, matrix):
    """One entry at a time off by 1 %: the update moves away from the loop's."""
    sizes, numbers = {"B": 3, "n": 4, "d": 2, "A": 2, "m": 2}, NUMBERS
    algorithm, parameters, observation, expected = instance(
        member, sizes, numbers, torch.float64, 5
    )
    weights = dict(zip("PV", algorithm.construction(dtype=torch.float64), strict=True))
    entries = weights[matrix].nonzero().tolist()
    assert entries
    for row, column in entries:
        bent = {k: v.clone() for k, v in weights.items()}
        bent[matrix][row, column] *= 1.01
        updated = algorithm.forward(parameters, observation, **bent)
        assert (updated - torch.tensor(expected)).abs().max() > 1e-6


# --- what a window shows


def dot(x, y):
    return sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def loop_epsilon_greedy(w, rows, epsilon):
    """Return probabilities of the actions in one state, without ties."""
    q = [dot(w, row) for row in rows]
    return [epsilon / len(q) + (1 - epsilon) * (x == max(q)) for x in q]


def loop_scores(lam, table, s, a):
    """Return phi_pi(s, a) minus its mean under the softmax policy."""
    weights = [math.exp(dot(lam, row)) for row in table[s]]
    mean = sum(x * row for x, row in zip(weights, table[s], strict=True)) / sum(weights)
    return table[s, a] - mean


def loop_observation(name, features, parameters, window, epsilon=0.2):
    """Return by look-ups, one at a time, what the member shows its teacher."""
    B, n = window.rewards.shape
    seen = []
    for b in range(B):
        s, a = window.states[b].tolist(), window.actions[b].tolist()
        if name in ("TD", "OffPolicyTD"):
            v = features.value[b]
            one = [[v[s[i]] for i in range(n)], [v[s[i + 1]] for i in range(n)]]
            if name == "OffPolicyTD":
                target, behaviour = features.target[b], features.behaviour[b]
                one.append([target[s[i], a[i]] / behaviour[s[i], a[i]] for i in range(n)])
        elif name == "QActorCritic":
            q, lam = features.value[b], parameters[b, : features.policy.shape[-1]]
            one = [[q[s[i], a[i]] for i in range(n)], [q[s[i + 1], a[i + 1]] for i in range(n)]]
            one.append([loop_scores(lam, features.policy[b], s[i], a[i]) for i in range(n)])
        elif name == "Reinforce":
            v, lam = features.value[b], parameters[b, : features.policy.shape[-1]]
            one = [[v[s[i]] for i in range(n)]]
            one.append([loop_scores(lam, features.policy[b], s[i], a[i]) for i in range(n)])
        else:
            x = features[b]
            one = [[x[s[i], a[i]] for i in range(n)]]
            if name == "NStepSARSA":
                one = [[x[s[i], a[i]] for i in range(n + 1)]]
            elif name in ("ExpectedSARSA", "QLearning"):
                one.append([x[s[i + 1]] for i in range(n)])
                if name == "ExpectedSARSA":
                    w = parameters[b]
                    rows = [loop_epsilon_greedy(w, x[s[i + 1]], epsilon) for i in range(n)]
                    one.append([torch.tensor(row, dtype=w.dtype) for row in rows])
            else:
                one.append([x[s[i + 1], a[i + 1]] for i in range(n)])
        seen.append([torch.stack([torch.as_tensor(e) for e in part]) for part in one])
    return [torch.stack(part) for part in zip(*seen, strict=True)]


NOT_LOOKED_UP = ("rewards", "discount")


@pytest.mark.parametrize("name", MEMBERS)
@given(sizes=some_sizes, numbers=some_numbers, seed=some_seed)
def test_observations_equal_look_ups(name, sizes, numbers, seed):
    member = MEMBERS[name]
    algorithm, _, features, parameters, window = situation(member, sizes, numbers, seed)
    seen = dict(zip(member.seen, algorithm.observe(features, parameters, window), strict=True))
    assert torch.equal(seen["rewards"], window.rewards)
    assert seen.get("discount", window.discount) == window.discount
    looked_up = [seen[key] for key in member.seen if key not in NOT_LOOKED_UP]
    expected = loop_observation(name, features, parameters, window)
    for given_part, wanted in zip(looked_up, expected, strict=True):
        close(given_part, wanted)


def loop_tokens(name, numbers, observation):
    """Return the tokens of the members by loops; two per transition for QActorCritic."""
    member = MEMBERS[name]
    seen = dict(zip(member.seen, observation, strict=True))
    rewards = seen["rewards"]
    gamma = seen.get("discount")
    B, n = rewards.shape
    tokens = []
    for b in range(B):
        phi = seen.get("phi", seen.get("phi_v"))[b].numpy()
        r = rewards[b].numpy()
        following = seen["phi_next"][b].numpy() if "phi_next" in seen else None
        rows, trace = [], np.zeros(phi.shape[-1])
        for i in range(n):
            one = np.ones(1)
            if name == "NStepSARSA":
                h = min(numbers["steps"], n - i)
                total = sum(gamma**j * r[i + j] for j in range(h))
                rows.append([phi[i], gamma**h * phi[i + h], total * one])
            elif name == "ExpectedSARSA":
                p = seen["probabilities"][b, i].numpy()
                mean = sum(x * row for x, row in zip(p, following[i], strict=True))
                rows.append([phi[i], gamma * mean, r[i] * one])
            elif name == "SARSALambda":
                trace = gamma * numbers["trace_decay"] * trace + phi[i]
                rows.append([phi[i], gamma * following[i], r[i] * one, trace])
            elif name == "DifferentialSARSA":
                rows.append([phi[i], following[i], r[i] * one, one])
            elif name == "Reinforce":
                outcome = sum(gamma ** (j - i) * r[j] for j in range(i, n))
                score = seen["scores"][b, i].numpy()
                rows.append([phi[i], outcome * one, gamma**i * score])
            elif name == "QActorCritic":
                score = seen["scores"][b, i].numpy()
                nothing, no_score = np.zeros_like(phi[i]), np.zeros_like(score)
                rows.append([phi[i], gamma * following[i], r[i] * one, phi[i], no_score])
                rows.append([-phi[i], nothing, 0 * one, nothing, gamma**i * score])
            elif name == "QLearning":
                rows.append([phi[i], *(gamma * following[i]), r[i] * one])
            elif name == "OffPolicyTD":
                root = math.sqrt(seen["ratios"][b, i])
                rows.append([root * phi[i], root * gamma * following[i], root * r[i] * one])
            else:
                rows.append([phi[i], gamma * following[i], r[i] * one])
        tokens.append(np.stack([np.concatenate(row) for row in rows]))
    return np.stack(tokens)


@pytest.mark.parametrize("name", MEMBERS)
@given(sizes=some_sizes, numbers=some_numbers, seed=some_seed)
def test_tokens_equal_loops(name, sizes, numbers, seed):
    """In any order: a block does not see the order of its tokens."""
    algorithm, _, observation, _ = instance(MEMBERS[name], sizes, numbers, torch.float64, seed)
    tokens = algorithm.tokens(observation)
    expected = torch.as_tensor(loop_tokens(name, numbers, observation))
    assert tokens.shape == expected.shape
    distance = (tokens[:, :, None] - expected[:, None]).abs().amax(-1)  # (B, n, n)
    assert distance.amin(1).max() <= 1e-12
    assert distance.amin(2).max() <= 1e-12


def test_averages_are_taken_under_the_exploring_policy():
    """One state, two actions, w prefers action 1: with epsilon = 0.2 it has probability 0.9."""
    algorithm = zoo.ExpectedSARSA(d=2, alpha=0.1, epsilon=0.2)
    features = torch.eye(2, dtype=torch.float64).reshape(1, 1, 2, 2)
    window = Window(
        torch.zeros(1, 2, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
        torch.ones(1, 1, dtype=torch.float64),
        0.5,
    )
    w = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    tokens = algorithm.tokens(algorithm.observe(features, w, window))
    close(tokens, [[[1, 0, 0.5 * 0.1, 0.5 * 0.9, 1]]])


# --- features and policies


@pytest.mark.parametrize("kind", [zoo.TD, zoo.OffPolicyTD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_features(generator, kind, dtype):
    mdp = random_mdps(3, 5, 2, generator=generator, dtype=dtype)
    value, behaviour, target = kind(d=4).draw_features(mdp, generator)
    assert (value.shape, behaviour.shape, target.shape) == ((3, 5, 4), (3, 5, 2), (3, 5, 2))
    assert value.dtype == behaviour.dtype == target.dtype == dtype
    for policy in (behaviour, target):
        close(policy.sum(-1), torch.ones(3, 5), 1e-6)
        assert policy.min() >= 0


def test_on_policy_evaluation_follows_its_target(generator):
    mdp = random_mdps(3, 5, 2, generator=generator)
    features = zoo.TD().draw_features(mdp, generator)
    assert torch.equal(features.behaviour, features.target)


@pytest.mark.parametrize("kind", [zoo.TD, zoo.OffPolicyTD])
def test_targets_are_uniform_on_the_simplex(generator, kind):
    """Dirichlet(1, 1, 1): mean 1/3, variance (1/3) (2/3) / 4 = 1/18."""
    mdp = random_mdps(400, 9, 3, generator=generator, dtype=torch.float64)
    p = kind().draw_features(mdp, generator).target.flatten(0, 1)
    close(p.mean(0), [1 / 3] * 3, 0.02)
    close(p.var(0), [1 / 18] * 3, 0.005)


def test_off_policy_behaviour_is_half_uniform(generator):
    """(1/2) Dirichlet(1, 1, 1) + (1/2) (1/3): at least 1/6, variance a quarter of 1/18."""
    mdp = random_mdps(400, 9, 3, generator=generator, dtype=torch.float64)
    _, behaviour, target = zoo.OffPolicyTD().draw_features(mdp, generator)
    assert behaviour.min() >= 1 / 6 - 1e-12
    assert behaviour.min() < 0.18
    close(behaviour.flatten(0, 1).var(0), [1 / 72] * 3, 0.002)
    correlation = torch.corrcoef(torch.stack([behaviour.flatten(), target.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.05
    assert (target / behaviour).max() <= 6 + 1e-12


@pytest.mark.parametrize("kind", [zoo.TD, zoo.OffPolicyTD])
@pytest.mark.parametrize("epsilon", [None, 0, 0.5])
def test_evaluation_never_changes_its_policy(generator, kind, epsilon):
    mdp = random_mdps(2, 5, 2, generator=generator)
    algorithm = kind(d=4)
    features = algorithm.draw_features(mdp, generator)
    for parameters in (torch.zeros(2, 4), torch.full((2, 4), 9.0)):
        assert torch.equal(algorithm.policy(features, parameters, epsilon), features.behaviour)


def test_differential_sarsa_acts_by_w_alone(generator):
    mdp = random_mdps(2, 5, 3, generator=generator, dtype=torch.float64)
    algorithm = zoo.DifferentialSARSA(d=4, epsilon=0.2)
    features = algorithm.draw_features(mdp, generator)
    parameters = algorithm.draw_parameters(2, generator, torch.float64)
    assert algorithm.n_parameters == 5
    expected = [
        [loop_epsilon_greedy(w[1:], rows, 0.2) for rows in x]
        for w, x in zip(parameters, features, strict=True)
    ]
    close(algorithm.policy(features, parameters), expected)


@pytest.mark.parametrize("kind", [zoo.QActorCritic, zoo.Reinforce])
def test_actors_act_by_lambda_alone(generator, kind):
    mdp = random_mdps(2, 5, 3, generator=generator, dtype=torch.float64)
    algorithm = kind(d=4, m=3, epsilon=0.2)
    features = algorithm.draw_features(mdp, generator)
    assert isinstance(features, ActorCriticFeatures)
    parameters = algorithm.draw_parameters(2, generator, torch.float64)
    expected = np.zeros((2, 5, 3))
    for b, s in np.ndindex(2, 5):
        weights = np.exp(features.policy[b, s].numpy() @ parameters[b, :3].numpy())
        expected[b, s] = 0.8 * weights / weights.sum() + 0.2 / 3
    close(algorithm.policy(features, parameters), expected)


def test_the_critic_of_q_actor_critic_has_features_of_pairs(generator):
    mdp = random_mdps(2, 5, 3, generator=generator)
    features = zoo.QActorCritic(d=4, m=6).draw_features(mdp, generator)
    assert features.value.shape == (2, 5, 3, 4)
    assert features.policy.shape == (2, 5, 3, 6)


# --- averages over many windows: updates point where the theory says


def test_off_policy_td_expects_what_td_under_the_target_expects(generator):
    """For one transition from one state, over actions and next states, by exact sums."""
    mdp = random_mdps(1, 3, 4, 0.6, generator=generator, dtype=torch.float64)
    features = zoo.OffPolicyTD(d=3).draw_features(mdp, generator)
    w = torch.tensor([[0.3, -0.7, 0.5]], dtype=torch.float64)
    mean = {"behaviour": torch.zeros(3), "target": torch.zeros(3)}
    for a in range(4):
        for t in range(3):
            phi, phi_next = features.value[:, [0]], features.value[:, [t]]
            reward = mdp.reward[:, [0], a, t]
            ratio = features.target[:, [0], a] / features.behaviour[:, [0], a]
            for name, ratios in (("behaviour", ratio), ("target", None)):
                weight = mdp.transition[0, 0, a, t] * getattr(features, name)[0, 0, a]
                step = teachers.td_update(w, phi, phi_next, reward, 0.6, 0.1, ratios) - w
                mean[name] = mean[name] + weight * step[0]
    close(mean["behaviour"], mean["target"])


def test_q_actor_critic_ascends_the_return(generator):
    """With q exact, the mean actor step from a state is the gradient of sum_a pi(a) q(a)."""
    phi_pi = torch.randn(1, 1, 4, 3, generator=generator, dtype=torch.float64)
    q = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    lam = torch.randn(1, 3, generator=generator, dtype=torch.float64).requires_grad_()
    policy = softmax_policy(phi_pi @ lam[0])
    (gradient,) = torch.autograd.grad((policy[0, 0] * q[0]).sum(), lam)
    policy = policy.detach()
    scores = softmax_score(phi_pi, policy)
    mean = 0
    for a in range(4):
        phi = torch.eye(4, dtype=torch.float64)[None, [a]]
        stepped, _ = teachers.q_actor_critic_update(
            lam.detach(), q, phi, phi, torch.zeros_like(q[:, :1]), scores[:, [0], a], 0.5, 1.0, 1.0
        )
        mean = mean + policy[0, 0, a] * (stepped - lam.detach())
    close(mean, gradient)


# --- what does not fit


def test_q_learning_has_no_construction():
    with pytest.raises(NotImplementedError):
        zoo.QLearning(d=2).construction()


@given(sizes=some_sizes, seed=some_seed)
def test_a_block_is_affine_in_the_parameters(sizes, seed):
    """f(w) + f(-w) = 2 f(0) for fixed tokens and random P12, V21."""
    generator = torch.Generator().manual_seed(seed)
    n, d, k = sizes["n"], sizes["d"], sizes["d"] * (sizes["A"] + 1) + 1
    uniform = [
        2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
        for shape in ((2, n, k), (2, d), (k, 1 + d), (d, k))
    ]
    tokens, w, P12, V21 = uniform
    P, V = join(P12, V21)

    def f(w):
        return linear_self_attention(assemble(tokens, w), P, V)[:, -d:, -1]

    assert (f(w) - w).abs().max() > 0
    close(f(w) + f(-w), 2 * f(torch.zeros_like(w)), 1e-12)


def test_q_learning_is_not_affine_in_its_parameters():
    """Next values w and -w: f(1) = 1 + (1/2 - 1), f(-1) = -1 + (1/2 + 1), f(0) = 0."""
    phi = torch.ones(1, 1, 1)
    phi_next = torch.tensor([[[[1.0], [-1.0]]]])

    def f(w):
        return teachers.q_learning_update(
            torch.tensor([[w]]), phi, phi_next, torch.zeros(1, 1), discount=0.5, alpha=1
        ).item()

    assert (f(1.0), f(-1.0), f(0.0)) == (0.5, 0.5, 0.0)


# --- settings


BAD = {
    "d": (0, -1, 2.0, True, None),
    "m": (0, -1, 2.0, True, None),
    "alpha": (0, -0.2, math.nan, None),
    "beta": (0, -0.2, math.nan, None),
    "epsilon": (-0.1, 1.1, math.nan, None),
    "steps": (0, -1, 2.0, True, None),
    "trace_decay": (-0.1, 1.1, math.nan, None),
    "n_actions": (0, -1, 2.0, True, None),
}
KINDS = [getattr(zoo, name) for name in MEMBERS]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, field.name, value)
        for kind in KINDS
        for field in dataclasses.fields(kind)
        for value in BAD[field.name]
    ],
)
def test_settings_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name}:"):
        kind(**{name: value})


def test_defaults():
    assert zoo.TD() == zoo.TD(d=9, alpha=0.2)
    assert zoo.OffPolicyTD() == zoo.OffPolicyTD(d=9, alpha=0.2)
    assert zoo.NStepSARSA() == zoo.NStepSARSA(d=36, alpha=0.2, epsilon=0.1, steps=3)
    assert zoo.SARSALambda() == zoo.SARSALambda(d=36, alpha=0.2, epsilon=0.1, trace_decay=0.8)
    assert zoo.DifferentialSARSA() == zoo.DifferentialSARSA(d=36, alpha=0.2, epsilon=0.1, beta=0.1)
    assert zoo.QActorCritic() == zoo.QActorCritic(d=36, m=36, alpha=0.2, beta=0.8, epsilon=0.1)
    assert zoo.QLearning() == zoo.QLearning(d=36, alpha=0.2, epsilon=0.1, n_actions=4)


def test_names_are_distinct():
    assert len({kind.name for kind in KINDS} | {"sarsa", "actor_critic"}) == len(KINDS) + 2


# --- training


@pytest.mark.parametrize(
    "algorithm",
    [zoo.TD(d=3), zoo.ResidualGradient(d=3), zoo.DifferentialSARSA(d=2), zoo.Reinforce(d=2, m=2)],
    ids=lambda algorithm: algorithm.name,
)
def test_training_finds_the_construction(algorithm):
    config = TrainingConfig(
        algorithm,
        n_mdps=20 * 64,
        batch=64,
        frames=20,
        window=8,
        family=RandomMDPs(4, 2),
        learning_rate=2e-2,
        decay=0.8,
        decay_every=128,
    )
    run = train(config, progress=False)
    assert run.projection().cosine > 0.9999
    assert run.losses[-20:].mean() < 1e-6 * run.losses[:20].mean()


# --- the long run


def loop_stationary(mdp, policy):
    """Return the limit of a lazy chain from a uniform start, by power iteration."""
    B, S = policy.shape[:2]
    result = np.zeros((B, S))
    for b in range(B):
        kernel = np.zeros((S, S))
        for s in range(S):
            for a in range(policy.shape[2]):
                kernel[s] += policy[b, s, a].item() * mdp.transition[b, s, a].double().numpy()
        lazy = (np.eye(S) + kernel) / 2
        p = np.full(S, 1 / S)
        for _ in range(2000):
            p = p @ lazy
        result[b] = p
    return result


some_mdps = given(
    B=st.integers(1, 3), S=st.integers(1, 6), A=st.integers(1, 3), seed=some_seed,
    precision=st.sampled_from([(torch.float64, 1e-10), (torch.float32, 1e-4)]),
)  # fmt: skip


@some_mdps
def test_stationary_distribution_equals_power_iteration(B, S, A, seed, precision):
    dtype, tolerance = precision
    generator = torch.Generator().manual_seed(seed)
    mdp = random_mdps(B, S, A, generator=generator, dtype=dtype)
    policy = softmax_policy(torch.randn(B, S, A, generator=generator, dtype=dtype))
    p = stationary_distribution(mdp, policy)
    assert p.dtype == dtype
    close(p, loop_stationary(mdp, policy), tolerance)


@some_mdps
def test_average_reward_equals_power_iteration(B, S, A, seed, precision):
    dtype, tolerance = precision
    generator = torch.Generator().manual_seed(seed)
    mdp = random_mdps(B, S, A, reward="s,a,s'", generator=generator, dtype=dtype)
    policy = softmax_policy(torch.randn(B, S, A, generator=generator, dtype=dtype))
    p = loop_stationary(mdp, policy)
    expected = np.zeros(B)
    for b, s, a, t in np.ndindex(B, S, A, S):
        chance = p[b, s] * policy[b, s, a].item() * mdp.transition[b, s, a, t].item()
        expected[b] += chance * mdp.reward[b, s, a, t].item()
    close(average_reward(mdp, policy), expected, tolerance)


def one_action(transition, reward):
    """Return one MDP with a single action, and its only policy."""
    P = torch.tensor(transition, dtype=torch.float64)[None, :, None]
    r = torch.tensor(reward, dtype=torch.float64)[None, :, None]
    n = P.shape[1]
    start = torch.full((1, n), 1 / n, dtype=torch.float64)
    return TabularMDP(P, r, start, 0.5), torch.ones(1, n, 1, dtype=torch.float64)


def test_long_run_by_hand():
    """Flow out of state 0, 0.1 p, equals flow out of state 1, 0.3 (1 - p): p = 3/4."""
    mdp, policy = one_action([[0.9, 0.1], [0.3, 0.7]], [[1, 2], [4, 8]])
    close(stationary_distribution(mdp, policy), [[0.75, 0.25]])
    close(average_reward(mdp, policy), [0.75 * (0.9 + 0.2) + 0.25 * (1.2 + 5.6)])


def test_long_run_of_a_cycle():
    """A chain with a period has no limit, but it has a stationary distribution."""
    mdp, policy = one_action([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, 3, 0], [0, 0, 6], [0, 0, 0]])
    close(stationary_distribution(mdp, policy), [[1 / 3] * 3])
    close(average_reward(mdp, policy), [3.0])


def test_long_run_leaves_transient_states():
    mdp, policy = one_action([[0.5, 0.5], [0, 1]], [[7, 7], [7, 2]])
    close(stationary_distribution(mdp, policy), [[0, 1]])
    close(average_reward(mdp, policy), [2.0])


@pytest.mark.parametrize("function", [stationary_distribution, average_reward])
def test_long_run_refuses_two_worlds_that_never_meet(function):
    mdp, policy = one_action([[1, 0], [0, 1]], [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match=r"^policy:"):
        function(mdp, policy)


@pytest.mark.parametrize("function", [stationary_distribution, average_reward])
def test_long_run_refuses_what_is_no_policy(generator, function, spoil):
    mdp = random_mdps(2, 3, 2, generator=generator)
    with pytest.raises(ValueError, match=r"^policy:"):
        function(mdp, spoil(torch.full((2, 3, 2), 0.5)))


@pytest.mark.parametrize("function", [stationary_distribution, average_reward])
def test_long_run_refuses_rows_that_do_not_sum_to_1(generator, function):
    mdp = random_mdps(2, 3, 2, generator=generator)
    with pytest.raises(ValueError, match=r"^policy:"):
        function(mdp, torch.full((2, 3, 2), 0.6))
