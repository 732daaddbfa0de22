"""Training by mimicking the teacher: Algorithms 1 and 2, in lockstep over a batch of MDPs."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from icrl_lib.algorithms import ALGORITHMS, Algorithm
from icrl_lib.attention import join, reduced_update
from icrl_lib.checks import check_count, check_instance, check_number
from icrl_lib.constructions import Projection, project
from icrl_lib.loop import Frame, interact
from icrl_lib.mdps import REWARD_ARGUMENTS, TabularMDP, random_mdps
from icrl_lib.policies import Share, initial_states

MAX_RECORDED_LOSSES = 10_000
"""A longer run records means of consecutive losses, so that its memory does not grow."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a training run depends on; two runs of one configuration give the same bits.

    Parameters
    ----------
    algorithm : Algorithm or str
        The algorithm to mimic; a name, "sarsa" or "actor_critic", stands for the paper's settings.
    n_mdps : int
        Number K of MDPs.
    frames : int
        Windows, and optimiser steps, per MDP.
    batch : int
        MDPs that are trained on in lockstep: one optimiser step per frame on their mean loss.
        With 1 this is Algorithm 1 (or 2) of the paper, line by line.
    window : int
        Number n of transitions in a window.
    n_states, n_actions, discount, reward
        The family of MDPs: arguments of `icrl_lib.mdps.random_mdps`.
    learning_rate : float
        Adam's learning rate at the start.
    decay, decay_every : float, int
        The learning rate is multiplied by `decay` whenever `decay_every` more MDPs are done.
    gain : float
        Gain of the Xavier-normal initialisation of P12 and V21.
    seed : int
        Seed of everything random.
    dtype, device : str
        Where and how to compute: "float32" or "float64", "cpu" or "cuda".
    """

    algorithm: Algorithm | str = "sarsa"
    n_mdps: int = 10_000
    frames: int = 50
    batch: int = 1
    window: int = 20
    n_states: int = 9
    n_actions: int = 4
    discount: float = 0.5
    reward: str = "a,s'"
    learning_rate: float = 1e-3
    decay: float = 0.99
    decay_every: int = 10
    gain: float = 0.1
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if isinstance(self.algorithm, str):
            if self.algorithm not in ALGORITHMS:
                names = ", ".join(ALGORITHMS)
                raise ValueError(f"algorithm: expected one of {names}; got {self.algorithm!r}")
            object.__setattr__(self, "algorithm", ALGORITHMS[self.algorithm]())
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(f"algorithm: expected an Algorithm or a name, got {self.algorithm!r}")
        for name in ("n_mdps", "frames", "batch", "window", "n_states", "n_actions", "decay_every"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, at_least=0)
        check_number("discount", self.discount, at_least=0, less_than=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("decay", self.decay, above=0, at_most=1)
        check_number("gain", self.gain, above=0)
        if self.reward not in REWARD_ARGUMENTS:
            raise ValueError(f"reward: expected one of {REWARD_ARGUMENTS}, got {self.reward!r}")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device: expected a device of torch, got {self.device!r}") from error
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {self.dtype!r}")

    @classmethod
    def paper(cls, algorithm: Algorithm | str) -> TrainingConfig:
        """Return the settings of section 4.1, with 50 windows (1000 steps) per MDP, one at a time.

        The paper's "horizon T = 1000" can also mean 1000 windows per MDP: ``frames=1000``.
        """
        return cls(algorithm)

    @classmethod
    def lockstep(cls, algorithm: Algorithm | str) -> TrainingConfig:
        """Return settings that reach the manifold in seconds: 256 MDPs at a time, 1,200 steps.

        Differs from the paper in the number of MDPs, the batch, the learning rate and its decay.
        """
        return cls(
            algorithm, n_mdps=24 * 256, batch=256, learning_rate=1e-2, decay=0.9, decay_every=512
        )

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        return math.ceil(self.n_mdps / self.batch) * self.frames

    @property
    def windows(self) -> int:
        """Number of windows of the whole run."""
        return self.n_mdps * self.frames


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The result of training.

    Attributes
    ----------
    P, V : Tensor, shape (D, D)
        The learned weights of the block, with exact zeros where no gradient ever arrives.
    losses : Tensor of float64, shape (K,)
        The training loss, eq. (6), in order; means of `loss_every` consecutive steps.
    loss_every : int
        Optimiser steps per recorded loss: 1 for runs of up to `MAX_RECORDED_LOSSES` steps.
    config : TrainingConfig
        What was run.
    seconds : float
        Wall-clock time.
    """

    P: Tensor
    V: Tensor
    losses: Tensor
    loss_every: int
    config: TrainingConfig
    seconds: float

    @property
    def steps(self) -> Tensor:
        """Number of optimiser steps done when each entry of `losses` was recorded, shape (K,)."""
        ends = torch.arange(1, len(self.losses) + 1) * self.loss_every
        return ends.clamp(max=self.config.steps)

    def projection(self) -> Projection:
        """Return where (P, V) lies relative to the manifold of the construction."""
        return project(self.P, self.V, *self.config.algorithm.construction(dtype=self.P.dtype))


def train(
    config: TrainingConfig,
    *,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 20.0,
    group: dist.ProcessGroup | None = None,
) -> Run:
    """Train a block to mimic its teacher (Algorithms 1 and 2, loss of eq. 6).

    Every batch of MDPs is explored under the teacher's own parameters (teacher forcing); each
    window gives one optimiser step on the batch mean of half the squared distance between the
    block's parameters and the teacher's. The weights carry over from batch to batch.

    Only P12 and V21 are computed with: by Proposition 3.1 every other block either receives no
    gradient or stays at the zero it starts from.

    Several processes can share the work: each calls `train` with the same configuration and the
    group that ``torch.distributed.init_process_group`` made ("gloo", or "nccl" with a CUDA device
    each), for example under ``torchrun --nproc-per-node 2 -m icrl_lib paper --distributed``. Each
    takes its part of every batch of MDPs, the gradients of the parts are added up, and all take
    the same optimiser step. All of them draw all random numbers and use their own, so the MDPs,
    features and trajectories are those of a single process, and what differs is the order in which
    the gradients of a batch are summed: the result is that of one process to within rounding, and
    the same bits for the same number of processes. The first process alone writes the checkpoint,
    between batches of MDPs; it can be taken up by any number of processes, or by one without a
    group.

    Parameters
    ----------
    config : TrainingConfig
        What to run.
    progress : bool, optional
        Show a progress bar; by default only on a terminal.
    checkpoint : path, optional
        File to which the state of the run is written every `checkpoint_every` seconds and from
        which a killed run goes on, with the same result to the bit. It stays when the run is done.
    checkpoint_every : float
        Seconds between checkpoints.
    group : ProcessGroup, optional
        The processes that share the work, such as ``torch.distributed.group.WORLD``.

    Returns
    -------
    Run
        Weights, losses and configuration.

    Raises
    ------
    ValueError
        If `checkpoint` exists and belongs to another configuration or is no checkpoint, or its
        folder does not exist, or the batch would not fit into memory.
    """
    check_instance("config", config, TrainingConfig)
    if checkpoint is not None:
        check_instance("checkpoint", checkpoint, (str, os.PathLike))
    check_number("checkpoint_every", checkpoint_every, at_least=0)
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group: expected a process group of torch.distributed, got {group!r}")
    check_memory(config)
    started = time.perf_counter()
    trainer = _Trainer(config, group)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in an existing folder, got {path}")
    trainer.load(path)
    seconds_before = trainer.seconds
    saved = started
    bar = tqdm(
        total=config.windows,
        initial=trainer.windows,
        desc=config.algorithm.name,
        unit=" windows",
        unit_scale=True,
        disable=trainer.rank > 0 or (None if progress is None else not progress),
    )
    with bar:
        for windows in trainer.work():
            bar.update(windows)
            now = time.perf_counter()
            due = now - saved > checkpoint_every and trainer.may_save
            if due or trainer.windows == config.windows:
                saved = now
                trainer.seconds = seconds_before + now - started
                bar.set_postfix(loss=f"{trainer.last_loss:.1e}")
                if path is not None and trainer.rank == 0:
                    trainer.save(path)
    return trainer.result()


def check_memory(config: TrainingConfig) -> None:
    """Raise a ValueError if what one optimiser step works on would not fit into memory.

    The estimate counts the tensors that are alive at the peak, in a step or while a batch of MDPs
    is drawn; it does not depend on the number of frames or of MDPs.
    """
    needed, available = memory_needed(config), _memory_available(config.device)
    if needed > available:
        raise ValueError(
            f"batch: expected sizes that fit into memory; {config.batch} MDPs with "
            f"{config.n_states} states and {config.n_actions} actions, windows of {config.window} "
            f"and tokens of {config.algorithm.layout.n_token} need about {needed / 2**30:.1f} GiB "
            f"of {available / 2**30:.1f} GiB; a smaller batch needs less"
        )


def memory_needed(config: TrainingConfig) -> int:
    """Estimate, from above, the bytes that training works on at its peak."""
    check_instance("config", config, TrainingConfig)
    layout = config.algorithm.layout
    token, column = layout.n_token, layout.n_parameter
    pairs = config.n_states * config.n_actions
    # P(s' | s, a), its running sums and rewards; features; tokens and what they are made of.
    mdp = pairs * (3 * config.n_states + 2 * column)
    window = config.window * (6 * token + 8)
    # P12 and V21 with gradient, Adam's two moments and what a step holds; P and V at the end.
    weights = 12 * token * column + 2 * layout.size**2
    batch = min(config.batch, config.n_mdps)
    return (batch * (mdp + window) + weights) * getattr(torch, config.dtype).itemsize


def _memory_available(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # no such question on this system
        return 2**63


def draw_situation(
    config: TrainingConfig, batch: int, generator: torch.Generator
) -> tuple[TabularMDP, Any, Tensor, Tensor]:
    """Draw MDPs, their features, parameters (B, p) and states (B,) for B = `batch` new agents."""
    check_instance("config", config, TrainingConfig)
    dtype = getattr(torch, config.dtype)
    mdp = random_mdps(
        batch,
        config.n_states,
        config.n_actions,
        config.discount,
        reward=config.reward,
        generator=generator,
        dtype=dtype,
    )
    features = config.algorithm.draw_features(mdp, generator)
    parameters = config.algorithm.draw_parameters(batch, generator, dtype)
    return mdp, features, parameters, initial_states(mdp, generator)


def held_out_error(
    config: TrainingConfig, P: Tensor, V: Tensor, *, generator: torch.Generator
) -> float:
    """Compare a block with its teacher on MDPs of the family that it was not trained on.

    Parameters
    ----------
    config : TrainingConfig
        Says which family, how many MDPs (`n_mdps`, all at once) and how many windows of each
        (`frames`). The teacher drives the agents.
    P, V : Tensor, shape (D, D)
        Weights of the block.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    float
        Sum of ||block - teacher||^2 over the sum of ||teacher - parameters||^2, all windows
        together: 0 is perfect, 1 is as bad as not updating.
    """
    check_instance("config", config, TrainingConfig)
    algorithm = config.algorithm
    situation = draw_situation(config, config.n_mdps, generator)
    loop = interact(algorithm, *situation, algorithm.teach, n=config.window, generator=generator)
    missed = moved = 0.0
    for frame in islice(loop, config.frames):
        block = algorithm.forward(frame.parameters, frame.observation, P, V)
        missed += (block - frame.updated).double().square().sum().item()
        moved += (frame.updated - frame.parameters).double().square().sum().item()
    return missed / moved


class _Trainer:
    """The state of a run between two optimiser steps, and how to go on from it."""

    _SAVED = (
        "steps", "mdps_done", "frames_done", "losses", "pending", "seconds", "batch_start",
        "position",
    )  # fmt: skip

    def __init__(self, config: TrainingConfig, group: dist.ProcessGroup | None = None) -> None:
        self.config = config
        self.group = group
        self.rank, self.world = (0, 1) if group is None else (group.rank(), group.size())
        self.dtype = getattr(torch, config.dtype)
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        layout = config.algorithm.layout
        self.P12 = self._xavier(layout.n_token, layout.n_parameter)
        self.V21 = self._xavier(config.algorithm.n_parameters, layout.n_token)
        self.optimiser = torch.optim.Adam([self.P12, self.V21], lr=config.learning_rate, fused=True)
        self.loss_every = math.ceil(config.steps / MAX_RECORDED_LOSSES)
        self.losses: list[float] = []
        self.pending = torch.zeros((), dtype=torch.float64, device=config.device)
        self.steps = 0
        self.mdps_done = 0
        self.frames_done = 0  # of the batch of MDPs at hand
        self.seconds = 0.0
        # Where the batch at hand began and where it is: enough to draw it again and go on.
        self.batch_start = self.generator.get_state()
        self.position: tuple[Tensor, Tensor] | None = None
        # The C library of Linux gives freed blocks back to the system if they are larger than the
        # largest that was freed before; then every step would wait for new pages. Free one block
        # of nearly 32 MB, the most that counts, without touching it.
        torch.empty(2**25 - 2**14, dtype=torch.uint8)

    def _xavier(self, rows: int, columns: int) -> Tensor:
        block = torch.empty(rows, columns, dtype=self.dtype, device=self.config.device)
        torch.nn.init.xavier_normal_(block, gain=self.config.gain, generator=self.generator)
        return block.requires_grad_()

    @property
    def blocks(self) -> tuple[Tensor, Tensor]:
        return self.P12, self.V21

    @property
    def windows(self) -> int:
        return self.mdps_done * self.config.frames + self.frames_done * self.batch

    @property
    def batch(self) -> int:
        return min(self.config.batch, self.config.n_mdps - self.mdps_done)

    @property
    def share(self) -> Share | None:
        """Return this process's part of the batch at hand; None if it has all of it."""
        if self.group is None:
            return None
        first, last = (self.batch * rank // self.world for rank in (self.rank, self.rank + 1))
        # Where there are more processes than MDPs, some compute the first one, for nothing.
        return Share(self.batch, slice(first, last) if first < last else slice(0, 1))

    @property
    def weight(self) -> float:
        """Return the part of the batch at hand that this process stands for."""
        first, last = (self.batch * rank // self.world for rank in (self.rank, self.rank + 1))
        return (last - first) / self.batch

    @property
    def may_save(self) -> bool:
        """Between batches, where all processes are in the same state, or whenever there is one."""
        return self.group is None or self.frames_done == 0

    @property
    def last_loss(self) -> float:
        count = self.steps % self.loss_every
        return self.pending.item() / count if count else self.losses[-1]

    def work(self) -> Iterator[int]:
        """Take one optimiser step after the other; yield the number of windows of each."""
        config = self.config
        while self.mdps_done < config.n_mdps:
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * config.decay ** (
                    self.mdps_done // config.decay_every
                )
            batch = self.batch
            for frame in self._batch_of_mdps():
                self._step(frame)
                self.frames_done += 1
                self.position = (frame.updated, frame.state)
                if self.frames_done == config.frames:
                    self.mdps_done += batch
                    self.frames_done = 0
                    self.batch_start, self.position = self.generator.get_state(), None
                yield batch

    def _batch_of_mdps(self) -> Iterator[Frame]:
        """Interact, under the teacher's parameters, with the batch of MDPs at hand."""
        config, generator, share = self.config, self.generator, self.share
        if self.position is None:
            situation = draw_situation(config, self.batch, generator)
        else:  # resumed in the middle: draw the same MDPs again, then go on from where it stopped
            now = generator.get_state()
            generator.set_state(self.batch_start)
            mdp, features, *_ = draw_situation(config, self.batch, generator)
            generator.set_state(now)
            situation = (mdp, features, *self.position)
        if share is not None:
            situation = tuple(_part(drawn, share.part) for drawn in situation)
        algorithm = config.algorithm
        loop = interact(
            algorithm,
            *situation,
            algorithm.teach,
            n=config.window,
            generator=generator,
            share=share,
        )
        return islice(loop, config.frames - self.frames_done)

    def _step(self, frame: Frame) -> None:
        tokens = self.config.algorithm.tokens(frame.observation)
        student = reduced_update(tokens, frame.parameters, self.P12, self.V21)
        loss = 0.5 * (student - frame.updated).square().sum(-1).mean()
        for block in self.blocks:
            block.grad = None
        loss.backward()
        loss = loss.detach()
        if self.group is not None:
            self._add_up(loss, self.P12.grad, self.V21.grad)
        self.optimiser.step()
        self.pending += loss
        self.steps += 1
        if self.steps % self.loss_every == 0 or self.steps == self.config.steps:
            count = (self.steps - 1) % self.loss_every + 1
            self.losses.append(self.pending.item() / count)
            self.pending.zero_()

    def _add_up(self, *means: Tensor) -> None:
        """Replace means over this process's part of the batch by means over all of it."""
        together = torch.cat([mean.flatten() for mean in means]) * self.weight
        dist.all_reduce(together, group=self.group)
        parts = together.split([mean.numel() for mean in means])
        for mean, part in zip(means, parts, strict=True):
            mean.copy_(part.view_as(mean))

    def result(self) -> Run:
        P, V = join(self.P12.detach(), self.V21.detach())
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return Run(P, V, losses, self.loss_every, self.config, self.seconds)

    def save(self, path: Path) -> None:
        """Write the state, so that at any moment the file is whole: the old state or the new."""
        state = {name: getattr(self, name) for name in self._SAVED}
        state["config"] = repr(self.config)
        state["P12"], state["V21"] = self.P12.detach(), self.V21.detach()
        state["optimiser"] = self.optimiser.state_dict()
        state["generator"] = self.generator.get_state()
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def load(self, path: Path | None) -> None:
        """Take up the state that `save` wrote, if there is one; the first process reads it."""
        state, problem = None, None
        if path is not None and path.exists() and self.rank == 0:
            try:
                state = self._read(path)
            except ValueError as error:
                problem = str(error)
        if self.group is not None:  # all go on together, or refuse together
            said = [state, problem]
            dist.broadcast_object_list(said, dist.get_global_rank(self.group, 0), self.group)
            state, problem = said
        if problem is not None:
            raise ValueError(problem)
        if state is None:
            return
        for name in self._SAVED:
            setattr(self, name, state[name])
        with torch.no_grad():
            self.P12.copy_(state["P12"])
            self.V21.copy_(state["V21"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.batch_start = self.batch_start.cpu()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True, map_location=self.config.device)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise ValueError(f"checkpoint: expected a checkpoint, {path} is none") from error
        if state["config"] != repr(self.config):
            raise ValueError(
                f"checkpoint: expected {path} to belong to this configuration,\n"
                f"  {self.config!r}\nbut it belongs to\n  {state['config']}"
            )
        return state


def _part(drawn: Any, part: slice) -> Any:
    """Return some MDPs of a batch, of its features or of its tensors."""
    if isinstance(drawn, tuple):
        return type(drawn)(*(tensor[part] for tensor in drawn))
    return drawn[part]
