"""Families: what training and evaluation draw from, as objects.

A family is a distribution over problems: MDPs, their features, the parameters and the states in
which agents begin. Assumption 1 of the paper is a statement about a family.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.checks import (
    check_count,
    check_distribution,
    check_dtype,
    check_generator,
    check_instance,
    check_number,
    settle_counts,
    settle_numbers,
)
from icrl_lib.features import FEATURES
from icrl_lib.mdps import REWARD_ARGUMENTS, TabularMDP, concatenate, random_mdps
from icrl_lib.policies import initial_states, select

Dtype: TypeAlias = torch.dtype
F32 = torch.float32


class Situation(NamedTuple):
    """Where B agents begin: in B MDPs, with features in the form that the algorithm uses.

    Their first parameters are (B, p), their first states int64, (B,).
    """

    mdp: TabularMDP
    features: Any
    parameters: Tensor
    state: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(abc.ABC):
    """What an experiment draws from; one of your own has to say no more than `draw`.

    Write it as a frozen dataclass, so that a run can say what it was trained on. `features` is how
    the entries of features are drawn, one of `icrl_lib.features.FEATURES`.
    """

    features: str = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.features, str) or self.features not in FEATURES:
            names = ", ".join(FEATURES)
            raise ValueError(f"features: expected one of {names}; got {self.features!r}")

    @abc.abstractmethod
    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        """Draw `batch` independent MDPs, all with the same numbers of states and actions."""

    def draw_features(self, algorithm: Algorithm, mdp: TabularMDP, generator: Generator) -> Any:
        """Draw features for B MDPs, in the form that the algorithm uses."""
        return algorithm.draw_features(mdp, generator, FEATURES[self.features])

    def draw_parameters(
        self, algorithm: Algorithm, mdp: TabularMDP, generator: Generator
    ) -> Tensor:
        """Draw first parameters, shape (B, p)."""
        return algorithm.draw_parameters(mdp.batch, generator, mdp.transition.dtype)

    def situation(
        self, algorithm: Algorithm, batch: int, *, generator: Generator, dtype: Dtype = F32
    ) -> Situation:
        """Draw all that B = `batch` new agents begin with."""
        check_instance("algorithm", algorithm, Algorithm)
        check_count("batch", batch)
        check_generator(generator)
        check_dtype(dtype)
        mdp = self.draw(batch, generator=generator, dtype=dtype)
        if not isinstance(mdp, TabularMDP) or mdp.batch != batch:
            raise ValueError(f"family: expected {batch} MDPs from draw, got {mdp!r:.200}")
        features = self.draw_features(algorithm, mdp, generator)
        parameters = self.draw_parameters(algorithm, mdp, generator)
        return Situation(mdp, features, parameters, initial_states(mdp, generator))

    def sizes(self) -> tuple[int, int]:
        """Return the numbers of states and of actions; by default one MDP is drawn to see them."""
        one = self.draw(1, generator=Generator().manual_seed(0))
        return one.n_states, one.n_actions


@dataclasses.dataclass(frozen=True)
class RandomMDPs(Family):
    """The paper's family: all distributions uniform on the simplex, rewards on (-1, 1).

    Its fields are arguments of `icrl_lib.mdps.random_mdps`.
    """

    n_states: int = 9
    n_actions: int = 4
    discount: float = 0.5
    reward: str = "a,s'"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_counts(self, "n_states", "n_actions")
        settle_numbers(self, "discount", at_least=0, less_than=1)
        if self.reward not in REWARD_ARGUMENTS:
            raise ValueError(f"reward: expected one of {REWARD_ARGUMENTS}, got {self.reward!r}")

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        return random_mdps(
            batch, self.n_states, self.n_actions, self.discount,
            reward=self.reward, generator=generator, dtype=dtype,
        )  # fmt: skip

    def sizes(self) -> tuple[int, int]:
        return self.n_states, self.n_actions


@dataclasses.dataclass(frozen=True)
class Corridors(Family):
    """Cells in a row, all corridors alike: entering the last pays 1, and then one starts again.

    Action 0 leads to the left, action 1 to the right, any other stays. Foresight pays here, which
    it hardly does in the paper's family.

    Parameters
    ----------
    cells, n_actions : int
        Numbers of states and of actions, both at least 2.
    slip, jump : float
        Probabilities that left and right change places, and of landing in any cell instead.
    toll : float
        What a step to the right costs, the last one excepted.
    start : str
        Where one begins: "anywhere" or in the "first" cell.
    """

    cells: int = 9
    n_actions: int = 4
    slip: float = 0.0
    jump: float = 0.1
    toll: float = 0.0
    start: str = "anywhere"
    discount: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_counts(self, "cells", "n_actions", at_least=2)
        settle_numbers(self, "slip", "jump", at_least=0, at_most=1)
        settle_numbers(self, "toll")
        settle_numbers(self, "discount", at_least=0, less_than=1)
        if self.start not in ("anywhere", "first"):
            raise ValueError(f"start: expected 'anywhere' or 'first', got {self.start!r}")

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        check_generator(generator)
        cells, last = self.cells, self.cells - 1
        stay = torch.eye(cells, dtype=dtype, device=generator.device)
        left, right = stay[[0, *range(last)]], stay[[*range(1, cells), last]]
        moves = [(1 - self.slip) * left + self.slip * right]
        moves += [(1 - self.slip) * right + self.slip * left]
        transition = torch.stack([*moves, *[stay] * (self.n_actions - 2)], 1)  # (S, A, S)
        first = stay.mean(0) if self.start == "anywhere" else stay[0]
        transition[last] = first
        transition = (1 - self.jump) * transition + self.jump / cells
        reward = torch.zeros_like(transition)
        reward[:last, 1] = -self.toll
        reward[:last, :, last] = 1
        one = TabularMDP(transition[None], reward[None], first[None], self.discount)
        return one[torch.zeros(batch, dtype=torch.int64, device=generator.device)]


MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""The actions of a grid: up, down, left, right, as steps of row and column."""


@dataclasses.dataclass(frozen=True)
class Grids(Family):
    """Square grids with walls, and a goal: entering it pays 1, and then one starts again.

    States are the cells, row by row, `size` along a side; a step into a wall or out of the grid
    stays where it is. `walls` is the share of cells that are walls, drawn for each grid; or
    "rooms", four rooms with doors. `slip` is the probability that a random action is taken instead.
    """

    size: int = 5
    walls: float | str = 0.15
    slip: float = 0.1
    discount: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_counts(self, "size", at_least=2)
        settle_numbers(self, "slip", at_least=0, at_most=1)
        settle_numbers(self, "discount", at_least=0, less_than=1)
        if self.walls != "rooms":
            settle_numbers(self, "walls", at_least=0, less_than=1)
        elif self.size < 5:
            raise ValueError(f"size: expected at least 5 for four rooms, got {self.size}")

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        check_count("batch", batch)
        check_generator(generator)
        cells = self.size**2
        # The two cells with the largest of independent numbers are never walls: goal and one more.
        numbers = torch.rand(batch, cells, generator=generator, device=generator.device)
        if self.walls == "rooms":
            free = ~self._rooms().flatten().to(numbers.device)
            order = numbers.masked_fill(~free, -1).argsort(-1, descending=True)
            free = free.expand(batch, -1)
        else:
            order = numbers.argsort(-1, descending=True)
            ranks = order.argsort(-1)
            free = ranks < max(2, cells - round(float(self.walls) * cells))
        goal = order[:, 0]
        grid = torch.arange(cells, device=numbers.device)
        row, column = grid // self.size, grid % self.size
        steps = torch.zeros(batch, cells, 4, cells, dtype=dtype, device=numbers.device)
        for action, (down, right) in enumerate(MOVES):
            r, c = row + down, column + right
            inside = (r >= 0) & (r < self.size) & (c >= 0) & (c < self.size)
            target = torch.where(inside, r * self.size + c, grid).expand(batch, -1)
            target = torch.where(free.gather(1, target), target, grid)
            steps[:, :, action].scatter_(-1, target.unsqueeze(-1), 1.0)
        transition = (1 - self.slip) * steps + self.slip * steps.mean(2, keepdim=True)
        batch_index = torch.arange(batch, device=numbers.device)
        begin = free.to(dtype)
        begin[batch_index, goal] = 0
        begin = begin / begin.sum(-1, keepdim=True)
        transition[batch_index, goal] = begin.unsqueeze(1)
        reward = torch.zeros_like(transition)
        reward.scatter_(-1, goal[:, None, None, None].expand(-1, cells, 4, 1), 1.0)
        reward[batch_index, goal] = 0
        return TabularMDP(transition, reward, begin, self.discount)

    def _rooms(self) -> Tensor:
        """Return where the walls of four rooms are, (size, size)."""
        wall = torch.zeros(self.size, self.size, dtype=torch.bool)
        middle, door = self.size // 2, self.size // 4
        wall[middle], wall[:, middle] = True, True
        for place in (door, self.size - 1 - door):
            wall[middle, place] = wall[place, middle] = False
        return wall

    def sizes(self) -> tuple[int, int]:
        return self.size**2, 4


@dataclasses.dataclass(frozen=True)
class Listed(Family):
    """A list of MDPs, one or many, each drawn as often as any other.

    `mdp` is the list, for example an imported world of Gymnasium (`icrl_lib.worlds`). `table` holds
    features of its MDPs in the form that the algorithm uses; by default they are drawn anew for
    every agent.
    """

    mdp: TabularMDP
    table: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("mdp", self.mdp, TabularMDP)

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        return select(self.mdp, self._members(batch, generator)).to(dtype)

    def situation(
        self, algorithm: Algorithm, batch: int, *, generator: Generator, dtype: Dtype = F32
    ) -> Situation:
        if self.table is None:
            return super().situation(algorithm, batch, generator=generator, dtype=dtype)
        members = self._members(batch, generator)
        mdp, features = select(self.mdp, members).to(dtype), select(self.table, members)
        parameters = self.draw_parameters(algorithm, mdp, generator)
        return Situation(mdp, features, parameters, initial_states(mdp, generator))

    def _members(self, batch: int, generator: Generator) -> Tensor:
        check_count("batch", batch)
        check_generator(generator)
        size, device = (batch,), self.mdp.transition.device
        return torch.randint(self.mdp.batch, size, generator=generator, device=device)

    def sizes(self) -> tuple[int, int]:
        return self.mdp.n_states, self.mdp.n_actions


@dataclasses.dataclass(frozen=True)
class Mixture(Family):
    """Several families, all with one number of states, of actions, and one discount.

    Each has a probability in `weights`; by default all are equal.
    """

    families: Sequence[Family]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("families", self.families, Sequence)
        if not self.families:
            raise ValueError("families: expected at least one, got none")
        for family in self.families:
            check_instance("families", family, Family)
        count = len(self.families)
        weights = [1 / count] * count if self.weights is None else self.weights
        check_instance("weights", weights, Sequence)
        weights = tuple(check_number("weights", weight) for weight in weights)
        if len(weights) != count:
            raise ValueError(f"weights: expected {count}, got {len(weights)}")
        check_distribution("weights", torch.tensor(weights, dtype=torch.float64))
        object.__setattr__(self, "families", tuple(self.families))
        object.__setattr__(self, "weights", weights)

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        parts = self._parts(batch, generator)
        return concatenate(*(f.draw(n, generator=generator, dtype=dtype) for f, n in parts))

    def situation(
        self, algorithm: Algorithm, batch: int, *, generator: Generator, dtype: Dtype = F32
    ) -> Situation:
        """Draw from each family with its own features and parameters."""
        drawn = [
            family.situation(algorithm, count, generator=generator, dtype=dtype)
            for family, count in self._parts(batch, generator)
        ]
        mdps, features, parameters, states = zip(*drawn, strict=True)
        if isinstance(features[0], tuple):
            joined = type(features[0])(*map(torch.cat, zip(*features, strict=True)))
        else:
            joined = torch.cat(features)
        return Situation(concatenate(*mdps), joined, torch.cat(parameters), torch.cat(states))

    def _parts(self, batch: int, generator: Generator) -> list[tuple[Family, int]]:
        """Draw how many of the batch belong to which family."""
        check_count("batch", batch)
        check_generator(generator)
        weights = torch.tensor(self.weights, device=generator.device)
        which = torch.multinomial(weights, batch, replacement=True, generator=generator)
        counts = torch.bincount(which, minlength=len(self.families)).tolist()
        return [pair for pair in zip(self.families, counts, strict=True) if pair[1]]

    def sizes(self) -> tuple[int, int]:
        return self.families[0].sizes()


@dataclasses.dataclass(frozen=True)
class Poor(Family):
    """A family in which everybody shares something: poor data, on which Assumption 1 fails.

    All agents of `base` share one MDP (`one_mdp`), one feature map (`one_map`) or the first
    parameters (`one_start`), drawn with `seed` and so the same in every draw.
    """

    base: Family
    one_mdp: bool = False
    one_map: bool = False
    one_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("base", self.base, Family)
        for name in ("one_mdp", "one_map", "one_start"):
            check_instance(name, getattr(self, name), bool)
        settle_counts(self, "seed", at_least=0)

    def draw(self, batch: int, *, generator: Generator, dtype: Dtype = F32) -> TabularMDP:
        if not self.one_mdp:
            return self.base.draw(batch, generator=generator, dtype=dtype)
        check_count("batch", batch)
        one = self.base.draw(1, generator=self._own(generator), dtype=dtype)
        return select(one, torch.zeros(batch, dtype=torch.int64, device=generator.device))

    def draw_features(self, algorithm: Algorithm, mdp: TabularMDP, generator: Generator) -> Any:
        own = self._own(generator) if self.one_map else generator
        features = self.base.draw_features(algorithm, mdp, own)
        return select(features, self._first(mdp)) if self.one_map else features

    def draw_parameters(
        self, algorithm: Algorithm, mdp: TabularMDP, generator: Generator
    ) -> Tensor:
        own = self._own(generator) if self.one_start else generator
        parameters = self.base.draw_parameters(algorithm, mdp, own)
        return parameters[self._first(mdp)] if self.one_start else parameters

    def sizes(self) -> tuple[int, int]:
        return self.base.sizes()

    def _own(self, generator: Generator) -> Generator:
        check_generator(generator)
        return Generator(generator.device).manual_seed(self.seed)

    @staticmethod
    def _first(mdp: TabularMDP) -> Tensor:
        return torch.zeros(mdp.batch, dtype=torch.int64, device=mdp.transition.device)
