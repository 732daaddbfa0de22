"""Families: what they draw has the properties that their names promise."""

import dataclasses

import pytest
import torch

from icrl_lib.algorithms import SARSA, ActorCritic
from icrl_lib.families import (
    Corridors,
    Family,
    Grids,
    Listed,
    Mixture,
    Poor,
    RandomMDPs,
)
from icrl_lib.features import one_hot_features
from icrl_lib.mdps import TabularMDP, random_mdps, value_iteration

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FAMILIES = {
    "random": RandomMDPs(4, 3),
    "corridors": Corridors(cells=5, n_actions=3, slip=0.1),
    "grids": Grids(size=4),
    "rooms": Grids(size=7, walls="rooms"),
    "listed": Listed(random_mdps(3, 4, 2, generator=generator())),
    "mixture": Mixture([RandomMDPs(4, 3), RandomMDPs(4, 3, reward="s,a")], [0.25, 0.75]),
    "poor": Poor(RandomMDPs(4, 3), one_mdp=True, one_map=True, one_start=True),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@each_family
@pytest.mark.parametrize("algorithm", [SARSA(d=3), ActorCritic(d=2, m=3)])
def test_a_situation_fits_its_algorithm_and_repeats_with_its_seed(family, algorithm):
    drawn = [family.situation(algorithm, 6, generator=generator(1), dtype=F64) for _ in range(2)]
    mdp, features, parameters, state = drawn[0]
    n_states, n_actions = family.sizes()
    assert mdp.transition.shape == (6, n_states, n_actions, n_states)
    policy = algorithm.policy(features, parameters)
    assert policy.shape == (6, n_states, n_actions)
    assert {policy.dtype, mdp.reward.dtype} == {F64}
    assert state.shape == (6,)
    assert torch.equal(parameters, drawn[1].parameters)
    assert torch.equal(mdp.transition, drawn[1].mdp.transition)


def test_the_papers_family_is_random_mdps():
    drawn = RandomMDPs(5, 3, 0.7, "s,a").draw(4, generator=generator(2), dtype=F64)
    expected = random_mdps(4, 5, 3, 0.7, reward="s,a", generator=generator(2), dtype=F64)
    assert torch.equal(drawn.transition, expected.transition)
    assert torch.equal(drawn.reward, expected.reward)
    assert drawn.discount == 0.7


def test_corridor_worked_by_hand():
    """Three cells, nothing left to chance: from the middle, right pays 1; from the left, 0.5."""
    family = Corridors(cells=3, n_actions=2, jump=0, start="first", discount=0.5)
    q = value_iteration(family.draw(1, generator=generator(), dtype=F64))[0]
    # v(0) = v(1) / 2 and v(1) = 1 + v(2) / 2, v(2) = v(0) / 2: v(0) = 4/7, v(1) = 8/7, v(2) = 2/7
    expected = torch.tensor([[2 / 7, 4 / 7], [2 / 7, 8 / 7], [2 / 7, 2 / 7]], dtype=F64)
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)


def test_slip_jump_and_toll_of_a_corridor():
    family = Corridors(cells=4, n_actions=3, slip=0.2, jump=0.1, toll=0.3)
    mdp = family.draw(1, generator=generator(), dtype=F64)
    moves = torch.tensor([[0.72, 0, 0.18, 0], [0.18, 0, 0.72, 0], [0, 0.9, 0, 0]], dtype=F64)
    torch.testing.assert_close(mdp.transition[0, 1], 0.025 + moves, rtol=0, atol=1e-15)
    assert mdp.reward[0, 1].tolist() == [[0, 0, 0, 1], [-0.3, -0.3, -0.3, 1], [0, 0, 0, 1]]


def plain_grid(size, free, goal, slip):
    """Transitions of one grid, cell by cell."""
    table = torch.zeros(size**2, 4, size**2, dtype=F64)
    for cell in range(size**2):
        row, column = divmod(cell, size)
        targets = []
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            r, c = row + down, column + right
            inside = 0 <= r < size and 0 <= c < size
            targets.append(r * size + c if inside and free[r * size + c] else cell)
        for action in range(4):
            for other, target in enumerate(targets):
                table[cell, action, target] += slip / 4 + (1 - slip) * (other == action)
    begin = torch.tensor([float(free[cell] and cell != goal) for cell in range(size**2)], dtype=F64)
    table[goal] = begin / begin.sum()
    return table, begin / begin.sum()


@pytest.mark.parametrize("family", [Grids(4, 0.3, 0.2), Grids(3, 0.0, 0.0), Grids(7, "rooms", 0.1)])
def test_grids_equal_a_plain_construction(family):
    mdp = family.draw(5, generator=generator(3), dtype=F64)
    for transition, reward, initial in zip(mdp.transition, mdp.reward, mdp.initial, strict=True):
        goal = reward.sum((0, 1)).argmax().item()
        free = initial > 0
        free[goal] = True
        expected, begin = plain_grid(family.size, free, goal, family.slip)
        torch.testing.assert_close(transition, expected, rtol=0, atol=1e-15)
        torch.testing.assert_close(initial, begin, rtol=0, atol=1e-15)
        pays = torch.zeros_like(reward)
        pays[:, :, goal] = 1
        pays[goal] = 0
        assert torch.equal(reward, pays)


def test_share_of_walls_and_shape_of_rooms():
    walls = (Grids(5, 0.2).draw(9, generator=generator(4)).initial == 0).sum(-1) - 1
    assert walls.tolist() == [5] * 9
    rooms = Grids(5, "rooms").draw(1, generator=generator(5))
    assert (rooms.initial == 0).sum() - 1 == 9 - 4


def test_a_list_is_drawn_from_with_its_features():
    mdp = random_mdps(3, 4, 2, generator=generator(6))
    table = torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 5).contiguous()
    family = Listed(mdp, table)
    drawn = family.situation(SARSA(d=5), 300, generator=generator(7))
    member = drawn.features[:, 0, 0, 0].long()
    assert torch.equal(drawn.mdp.transition, mdp.transition[member])
    assert (torch.bincount(member) > 70).all()


def test_a_mixture_has_the_shares_of_its_weights():
    """Rewards of the second depend on the state that is left, those of the first do not."""
    drawn = FAMILIES["mixture"].draw(400, generator=generator(8))
    second = (drawn.reward[:, 0] != drawn.reward[:, 1]).flatten(1).any(-1).float().mean()
    assert second == pytest.approx(0.75, abs=0.07)


def test_what_poor_families_share_is_the_same_in_every_draw():
    poor = FAMILIES["poor"]
    first, second = (poor.situation(SARSA(d=3), 4, generator=generator(s)) for s in (9, 10))
    for name in ("features", "parameters"):
        one, other = getattr(first, name), getattr(second, name)
        assert torch.equal(one, other)
        assert torch.equal(one, one[:1].expand_as(one))
    assert torch.equal(first.mdp.transition, second.mdp.transition[[3, 2, 1, 0]])
    rich = dataclasses.replace(poor, one_mdp=False, one_map=False, one_start=False)
    drawn = rich.situation(SARSA(d=3), 4, generator=generator(9))
    assert not torch.equal(drawn.features[0], drawn.features[1])
    assert not torch.equal(drawn.parameters[0], drawn.parameters[1])
    assert not torch.equal(drawn.mdp.transition[0], drawn.mdp.transition[1])


def test_features_by_name():
    one_hot = RandomMDPs(4, 3, features="one_hot")
    drawn = one_hot.situation(SARSA(d=12), 2, generator=generator(11))
    assert torch.equal(drawn.features, one_hot_features(2, 4, 3))
    with pytest.raises(ValueError, match=r"^d: expected 4 \* 3 = 12 one-hot features, got 5"):
        one_hot.situation(SARSA(d=5), 2, generator=generator(11))
    sphere = RandomMDPs(4, 3, features="sphere")
    norms = sphere.situation(SARSA(d=5), 9, generator=generator(12), dtype=F64).features.norm(
        dim=-1
    )
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-14)
    sparse = RandomMDPs(9, 4, features="sparse").situation(SARSA(), 9, generator=generator(13))
    assert (sparse.features != 0).double().mean().item() == pytest.approx(0.1, abs=0.01)


def test_a_family_that_draws_something_else_is_refused():
    class Wrong(Family):
        def draw(self, batch, *, generator, dtype=torch.float32):
            return random_mdps(1, 2, 2, generator=generator, dtype=dtype)

    with pytest.raises(ValueError, match=r"^family: expected 3 MDPs from draw"):
        Wrong().situation(SARSA(d=2), 3, generator=generator())


def test_a_family_is_as_long_as_a_world_needs():
    """All of a family of one's own: MDPs that pay for staying where one is."""

    @dataclasses.dataclass(frozen=True)
    class Lazy(Family):
        def draw(self, batch, *, generator, dtype=torch.float32):
            mdp = random_mdps(batch, 3, 2, 0.9, generator=generator, dtype=dtype)
            stay = torch.eye(3, dtype=dtype)[:, None].expand_as(mdp.reward)
            return TabularMDP(mdp.transition, stay, mdp.initial, 0.9)

    drawn = Lazy(features="sphere").situation(SARSA(d=4), 5, generator=generator())
    assert drawn.mdp.batch == 5
