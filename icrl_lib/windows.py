"""Windows: a data set of windows with the teacher's answers, and how it is collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from icrl_lib.algorithms import Algorithm
from icrl_lib.checks import check_count, check_generator, check_instance, check_tensors
from icrl_lib.loop import Update, interact
from icrl_lib.mdps import TabularMDP
from icrl_lib.prompts import parameter_column


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """N windows as a student sees them, and what its teacher makes of them.

    `tokens` (N, n, k) are the x_i of each window, `parameters` (N, p) those that it was produced
    with, and `target` (N, p) those that the teacher makes of them.
    """

    tokens: Tensor
    parameters: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        check_tensors(
            tokens=(self.tokens, "N n k"),
            parameters=(self.parameters, "N p"),
            target=(self.target, "N p"),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | Tensor) -> Windows:
        """Select windows by a slice or an index tensor."""
        return Windows(self.tokens[index], self.parameters[index], self.target[index])

    def batches(self, size: int, steps: int, *, generator: torch.Generator) -> Iterator[Windows]:
        """Draw `steps` batches of `size` windows each, with replacement, as `fit` takes them."""
        check_count("size", size)
        check_count("steps", steps)
        check_generator(generator)
        draw = partial(torch.randint, len(self), (size,), device=generator.device)
        return (self[draw(generator=generator)] for _ in range(steps))

    @property
    def column(self) -> Tensor:
        """The parameter columns w~ = [1; parameters], shape (N, 1 + p)."""
        return parameter_column(self.parameters)

    @property
    def moments(self) -> Tensor:
        """The second moments (1/n) sum_i x_i x_i^T of each window, shape (N, k, k)."""
        return self.tokens.mT @ self.tokens / self.tokens.shape[1]

    def squares(self, student: Any) -> tuple[float, float]:
        """Return the sums of ||student - teacher||^2 and of ||teacher - parameters||^2."""
        with torch.no_grad():
            missed = student(self.tokens, self.parameters) - self.target
        moved = self.target - self.parameters
        return missed.double().square().sum().item(), moved.double().square().sum().item()

    def error(self, student: Any) -> float:
        """Return the relative error of a student on these windows, the root of the two's ratio.

        0 is perfect, 1 is as bad as not updating.
        """
        missed, moved = self.squares(student)
        return (missed / moved) ** 0.5


def stream(
    algorithm: Algorithm,
    mdp: TabularMDP,
    features: Any,
    parameters: Tensor,
    state: Tensor,
    *,
    n: int = 20,
    update: Update | None = None,
    generator: torch.Generator,
) -> Iterator[Windows]:
    """Produce the next window of each of B agents, for ever; arguments as of `collect`."""
    check_instance("algorithm", algorithm, Algorithm)
    drive = algorithm.teach if update is None else update
    loop = interact(algorithm, mdp, features, parameters, state, drive, n=n, generator=generator)
    for frame in loop:
        target = frame.updated if update is None else algorithm.teach(*frame[:2])
        yield Windows(algorithm.tokens(frame.observation), frame.parameters, target)


def collect(
    algorithm: Algorithm,
    mdp: TabularMDP,
    features: Any,
    parameters: Tensor,
    state: Tensor,
    *,
    frames: int = 1,
    n: int = 20,
    update: Update | None = None,
    generator: torch.Generator,
) -> Windows:
    """Collect N = B * frames windows as training sees them: all first ones, all second ones, ...

    Parameters
    ----------
    algorithm, mdp, features, parameters, state
        Teacher and behaviour, and the B agents, parts of a `Situation`.
    frames, n : int
        Windows of each agent, one after the other, and their length.
    update : callable, optional
        The update that the agents make; by default the teacher's. Answers are the teacher's in any
        case. ``lambda parameters, observation: parameters`` lets nobody learn.
    """
    check_count("frames", frames)
    agents = (algorithm, mdp, features, parameters, state)
    parts = list(islice(stream(*agents, n=n, update=update, generator=generator), frames))
    if frames == 1:
        return parts[0]
    names = ("tokens", "parameters", "target")
    return Windows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
