"""Depth as iteration: looped blocks, and the equations that their passes solve."""

import pytest
import torch

from icrl_lib import constructions
from icrl_lib.attention import iterate, linear_self_attention
from icrl_lib.prompts import sarsa_prompt
from icrl_lib.teachers import least_squares_td, sarsa_update, td_system

GAMMA = 0.5

# Three transitions between two one-hot pairs a and b: a -> a with reward 1, a -> b with reward 0,
# b -> a with reward 2.
HAND = {
    "phi": torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64),
    "phi_next": torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64),
    "rewards": torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64),
}


def random_window(generator, B, n, d, dtype=torch.float64):
    """Return w, phi, phi_next and rewards of a piece of a trajectory."""
    path = torch.randn(B, n + 1, d, generator=generator, dtype=dtype)
    w = torch.randn(B, d, generator=generator, dtype=dtype)
    rewards = torch.randn(B, n, generator=generator, dtype=dtype)
    return w, path[:, :-1], path[:, 1:], rewards


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("passes", [1, 2, 7])
def test_passes_are_updates_on_one_window(generator, passes):
    w, *window = random_window(generator, 3, 5, 4)
    P, V = constructions.sarsa(4, 0.1, c=-2.0, dtype=torch.float64)
    expected = w
    for _ in range(passes):
        expected = sarsa_update(expected, *window, GAMMA, 0.1)
    H = iterate(sarsa_prompt(w, *window, GAMMA), P, V, passes)
    close(H[:, -4:, -1], expected, 1e-12)


def test_token_columns_stay_bit_for_bit(generator):
    prompt = sarsa_prompt(*random_window(generator, 3, 5, 4), GAMMA)
    H = iterate(prompt, *constructions.sarsa(4, 0.1, dtype=torch.float64), 9)
    assert torch.equal(H[:, :, :-1], prompt[:, :, :-1])


def test_only_w_changes_in_the_parameter_column(generator):
    prompt = sarsa_prompt(*random_window(generator, 3, 5, 4), GAMMA)
    H = iterate(prompt, *constructions.sarsa(4, 0.1, dtype=torch.float64), 9)
    assert torch.equal(H[:, :-4, -1], prompt[:, :-4, -1])


def test_one_pass_is_the_block(generator):
    H, P, V = (torch.randn(s, generator=generator) for s in ((2, 8, 4), (8, 8), (8, 8)))
    assert torch.equal(iterate(H, P, V, 1), linear_self_attention(H, P, V))


def test_iterate_does_not_modify_the_prompt(generator):
    H = sarsa_prompt(*random_window(generator, 2, 3, 2), GAMMA)
    before = H.clone()
    iterate(H, *constructions.sarsa(2, 0.1, dtype=torch.float64), 3)
    assert torch.equal(H, before)


@pytest.mark.parametrize("passes", [0, -1, 1.0, True])
def test_iterate_refuses_other_counts(passes):
    with pytest.raises(ValueError, match=r"^passes: "):
        iterate(torch.ones(1, 5, 2), torch.ones(5, 5), torch.ones(5, 5), passes)


def test_td_system_by_hand():
    """A = 1/3 [[2 - 1/2, -1/2], [-1/2, 1]] and b = 1/3 [1, 2]."""
    A, b = td_system(**HAND, discount=GAMMA)
    close(3 * A, torch.tensor([[[1.5, -0.5], [-0.5, 1.0]]], dtype=torch.float64), 1e-15)
    close(3 * b, torch.tensor([[1.0, 2.0]], dtype=torch.float64), 1e-15)


def test_td_system_is_the_affine_map_of_the_update(generator):
    w, *window = random_window(generator, 3, 5, 4)
    A, b = td_system(*window, GAMMA)
    expected = w + 0.3 * (b - (A @ w.unsqueeze(-1)).squeeze(-1))
    close(sarsa_update(w, *window, GAMMA, 0.3), expected, 1e-13)


def test_least_squares_by_hand():
    """1.5 q_a - 0.5 q_b = 1 and -0.5 q_a + q_b = 2: q_a = 1.6, q_b = 2.8."""
    w = least_squares_td(torch.full((1, 2), 9.0, dtype=torch.float64), **HAND, discount=GAMMA)
    close(w, torch.tensor([[1.6, 2.8]], dtype=torch.float64), 1e-14)


def test_unseen_directions_keep_their_parameters():
    """One transition a -> b with reward 1: q_a = 1 + q_b / 2, and q_b stays at 4."""
    window = {name: tensor[:, 1:2] for name, tensor in HAND.items()} | {
        "rewards": torch.ones(1, 1, dtype=torch.float64)
    }
    w = torch.tensor([[7.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    close(least_squares_td(w, **window, discount=GAMMA), expected, 1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_unseen_directions_keep_their_parameters_whatever_the_scale(generator, scale):
    w, phi, phi_next, rewards = random_window(generator, 4, 3, 8)
    limit = least_squares_td(w, scale * phi, scale * phi_next, scale * rewards, GAMMA)
    seen = torch.linalg.qr(phi.mT).Q
    moved = (limit - w).unsqueeze(-1)
    assert (moved - seen @ (seen.mT @ moved)).abs().max() < 1e-12


def test_least_squares_without_features_changes_nothing(generator):
    w, phi, phi_next, rewards = random_window(generator, 2, 3, 4)
    assert torch.equal(least_squares_td(w, 0 * phi, phi_next, rewards, GAMMA), w)


@pytest.mark.parametrize(("n", "d"), [(30, 3), (12, 4), (3, 8), (1, 5)])
def test_least_squares_is_where_the_updates_end(generator, n, d):
    """Trajectories whose last pair is the first: they converge for small steps."""
    w, phi, phi_next, rewards = random_window(generator, 4, n, d)
    phi_next = torch.cat([phi_next[:, :-1], phi[:, :1]], 1)
    limit = least_squares_td(w, phi, phi_next, rewards, GAMMA)
    for _ in range(5_000):
        w = sarsa_update(w, phi, phi_next, rewards, GAMMA, 0.1)
    close(w, limit, 1e-9)


def test_repeated_pairs_do_not_make_the_equations_singular(generator):
    """Rank 2 of 6 features: five transitions between two pairs."""
    pairs = torch.randn(1, 2, 6, generator=generator, dtype=torch.float64)
    path = pairs[:, [0, 1, 1, 0, 1, 0]]
    rewards = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    w = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    limit = least_squares_td(w, path[:, :-1], path[:, 1:], rewards, GAMMA)
    A, b = td_system(path[:, :-1], path[:, 1:], rewards, GAMMA)
    close((A @ limit.unsqueeze(-1)).squeeze(-1), b, 1e-13)
    seen = torch.linalg.lstsq(pairs.mT, (limit - w).unsqueeze(-1)).solution
    close((pairs.mT @ seen).squeeze(-1), limit - w, 1e-12)


def test_windows_of_a_batch_do_not_mix(generator):
    """A batch whose windows see different numbers of directions."""
    w, phi, phi_next, rewards = random_window(generator, 2, 3, 5)
    phi[1] = phi[1, :1]
    together = least_squares_td(w, phi, phi_next, rewards, GAMMA)
    alone = [
        least_squares_td(w[i, None], phi[i, None], phi_next[i, None], rewards[i, None], GAMMA)
        for i in range(2)
    ]
    close(together, torch.cat(alone), 1e-12)


def test_single_precision_stays_single(generator):
    w, *window = random_window(generator, 3, 12, 4, torch.float32)
    limit = least_squares_td(w, *window, GAMMA)
    exact = least_squares_td(w.double(), *(t.double() for t in window), GAMMA)
    assert limit.dtype == torch.float32
    close(limit.double(), exact, 1e-3)


def test_equations_without_a_solution_are_refused():
    """w chases 2 w at gamma = 1/2: A = 1 - 2 gamma = 0 while phi = 1."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^phi, phi_next: .* singular$"):
        least_squares_td(one[0], one, 2 * one, one[0], GAMMA)


@pytest.mark.parametrize(("n", "d"), [(20, 4), (4, 4), (3, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equations_that_only_rounding_makes_regular_are_refused(generator, n, d, dtype):
    """phi_next = phi R, where 2 is an eigenvalue of R and gamma = 1/2: w chases itself."""
    w, phi, _, rewards = random_window(generator, 3, n, d)
    basis = phi.mT if n < d else torch.randn(d, d, generator=generator, dtype=torch.float64)
    eigenvalues = torch.linspace(0.1, 2, basis.shape[-1], dtype=torch.float64)
    R = basis * eigenvalues @ torch.linalg.pinv(basis)
    window = [t.to(dtype) for t in (w, phi, phi @ R, rewards)]
    with pytest.raises(ValueError, match=r"^phi, phi_next: .* singular$"):
        least_squares_td(*window, GAMMA)


@pytest.mark.parametrize("name", ["w", "phi", "phi_next", "rewards"])
def test_bad_tensors_are_named(generator, name, spoil):
    names = ("w", "phi", "phi_next", "rewards")
    arguments = dict(zip(names, random_window(generator, 2, 3, 2), strict=True))
    arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=rf"^{name}: "):
        least_squares_td(**arguments, discount=GAMMA)


@pytest.mark.parametrize("discount", [-0.1, 1.0, None])
def test_bad_discounts_are_named(generator, discount):
    with pytest.raises(ValueError, match=r"^discount: "):
        td_system(*random_window(generator, 2, 3, 2)[1:], discount)
