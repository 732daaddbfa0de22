"""Training by mimicking the teacher: Algorithms 1 and 2, in lockstep over a batch of MDPs.

There is one loop, `mimic`: it trains any student under any teacher and family, step by step, and
can be watched. `train` runs it to the end, with a progress bar and checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from icrl_lib.algorithms import SARSA, Algorithm, named
from icrl_lib.checks import (
    check_device,
    check_instance,
    check_number,
    settle_counts,
    settle_numbers,
)
from icrl_lib.constructions import Projection, project
from icrl_lib.families import Family, RandomMDPs, Situation
from icrl_lib.loop import Frame, Update, interact
from icrl_lib.mdps import TabularMDP
from icrl_lib.policies import Share, select
from icrl_lib.students import LinearBlock, as_update
from icrl_lib.windows import Windows, collect, stream

MAX_RECORDED_LOSSES = 10_000
"""A longer run records means of consecutive losses, so that its memory does not grow."""

FAR = 0.5
"""A run that ends with a larger relative error than this says so."""


class FarFromTeacher(UserWarning):
    """A run has ended with a student that does not do what its teacher does."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a training run depends on; two runs of one configuration give the same bits.

    Numbers of other types, as NumPy's, become Python's.

    Parameters
    ----------
    algorithm : Algorithm
        The algorithm to mimic; a name, such as "sarsa", stands for its default settings.
    n_mdps, frames : int
        Number K of MDPs, and of windows, and optimiser steps, per MDP.
    batch : int
        MDPs that are trained on in lockstep: one optimiser step per frame on their mean loss. With
        1 this is Algorithm 1 (or 2) of the paper, line by line.
    window, family
        Number n of transitions in a window, and what MDPs, features, first parameters and first
        states are drawn from.
    learning_rate, decay, decay_every : float, float, int
        Adam's learning rate at the start; it is multiplied by `decay` whenever `decay_every` more
        MDPs are done.
    gain, seed : float, int
        Gain of the Xavier-normal initialisation of P12 and V21, and seed of everything random.
    dtype, device : str
        Where and how to compute: "float32" or "float64", "cpu" or "cuda".
    """

    algorithm: Algorithm = dataclasses.field(default_factory=SARSA)
    n_mdps: int = 10_000
    frames: int = 50
    batch: int = 1
    window: int = 20
    family: Family = dataclasses.field(default_factory=RandomMDPs)
    learning_rate: float = 1e-3
    decay: float = 0.99
    decay_every: int = 10
    gain: float = 0.1
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if isinstance(self.algorithm, str):
            object.__setattr__(self, "algorithm", named(self.algorithm))
        check_instance("algorithm", self.algorithm, Algorithm)
        check_instance("family", self.family, Family)
        settle_counts(self, "n_mdps", "frames", "batch", "window", "decay_every")
        settle_counts(self, "seed", at_least=0)
        if self.seed >= 2**62:
            raise ValueError(f"seed: expected an integer below 2^62, got {self.seed}")
        settle_numbers(self, "learning_rate", "gain", above=0)
        settle_numbers(self, "decay", above=0, at_most=1)
        check_device(self.device)
        object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {self.dtype!r}")

    @classmethod
    def paper(cls, algorithm: Algorithm | str) -> TrainingConfig:
        """Return the settings of section 4.1, with 50 windows (1000 steps) per MDP, one at a time.

        The paper's "horizon T = 1000" can also mean 1000 windows per MDP: ``frames=1000``.
        """
        return cls(_algorithm(algorithm))

    @classmethod
    def lockstep(cls, algorithm: Algorithm | str, family: Family | None = None) -> TrainingConfig:
        """Return settings that reach the manifold in seconds: 256 MDPs at a time.

        Up to the paper's 73 rows of a token 1,200 steps are enough. Larger blocks need a smaller
        learning rate, because all their entries move by it before any knows where to, more steps,
        and double precision, because single precision ends at a relative error of a few 1e-6.
        Differs from the paper in the number of MDPs, the batch, the learning rate and its decay.
        """
        algorithm = _algorithm(algorithm)
        scale = max(1.0, algorithm.layout.n_token / 73)
        batches = round(24 * scale**1.6)
        return cls(
            algorithm,
            n_mdps=256 * batches,
            batch=256,
            family=family or RandomMDPs(),
            learning_rate=1e-2 * scale**-1.2,
            decay=0.9 if scale == 1 else (0.28 * scale**-3) ** (2 / batches),
            decay_every=512,
            dtype="float32" if scale == 1 else "float64",
        )

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        return math.ceil(self.n_mdps / self.batch) * self.frames

    @property
    def windows(self) -> int:
        """Number of windows of the whole run."""
        return self.n_mdps * self.frames

    @property
    def torch_dtype(self) -> torch.dtype:
        """The floating-point type as torch has it."""
        return getattr(torch, self.dtype)


def _algorithm(algorithm: Algorithm | str) -> Algorithm:
    return named(algorithm) if isinstance(algorithm, str) else algorithm


# --- configurations as plain data


def describe(record: Any, *, tensors: bool = False) -> Any:
    """Return a configuration, an algorithm or a family as numbers, strings, lists and mappings.

    Two configurations are the same if their descriptions are. A tensor is described by its shape
    and a digest of its entries, or, with `tensors`, by itself.
    """
    if record is None or isinstance(record, bool | int | float | str):
        return record
    if isinstance(record, Tensor):
        if tensors:
            return record
        entries = record.detach().cpu().contiguous()
        digest = hashlib.sha256(entries.view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"shape": list(record.shape), "dtype": str(record.dtype), "sha256": digest}
    if isinstance(record, tuple | list):
        return [describe(part, tensors=tensors) for part in record]
    values = vars(record)
    if dataclasses.is_dataclass(record):
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    described = {name: describe(value, tensors=tensors) for name, value in values.items()}
    return {"kind": type(record).__name__, **described}


def _restore(description: Any) -> Any:
    """Make what ``describe(..., tensors=True)`` has described; classes have to be imported."""
    if not isinstance(description, Mapping):
        return description
    values = {name: _restore(value) for name, value in description.items() if name != "kind"}
    known = {
        kind.__name__: kind
        for kind in (TrainingConfig, TabularMDP, *_below(Algorithm), *_below(Family))
    }
    kind = description["kind"]
    if kind not in known:
        raise ValueError(f"path: the class {kind} is not known here; import it before loading")
    return known[kind](**values)


def _below(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


# --- what a run returns


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """The result of training.

    Attributes
    ----------
    student, config, seconds
        What was trained, what was run, and the wall-clock time.
    losses, errors : Tensor of float64, shape (K,)
        The training loss, eq. (6), and the relative error, in order; means over `loss_every`
        consecutive steps, 1 for runs of up to `MAX_RECORDED_LOSSES` of them. The relative error is
        the root of the sum of ||student - teacher||^2 over that of ||teacher - parameters||^2: 1 is
        as bad as not updating. Every window is new to the student when they are measured.
    error : float
        The relative error over the last batch of MDPs.
    n_steps : int
        Optimiser steps that were taken; fewer than the configuration's if it was stopped.
    """

    student: nn.Module
    losses: Tensor
    errors: Tensor
    loss_every: int
    error: float
    config: TrainingConfig
    n_steps: int
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Run of {self.config.algorithm.name}: {type(self.student).__name__}, "
            f"{self.n_steps} steps, relative error {self.error:.1e}"
        )

    @property
    def P(self) -> Tensor:  # noqa: N802
        """Query-key weights (D, D) of a linear block, exactly 0 where no gradient arrives."""
        return self._weights()[0]

    @property
    def V(self) -> Tensor:  # noqa: N802
        """Value weights (D, D) of a linear block."""
        return self._weights()[1]

    def _weights(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self.student, LinearBlock):
            kind = type(self.student).__name__
            raise ValueError(f"run: expected a linear block, which has P and V; this is a {kind}")
        return self.student.weights()

    @property
    def steps(self) -> Tensor:
        """Number of optimiser steps done when each entry of `losses` was recorded, shape (K,)."""
        ends = torch.arange(1, len(self.losses) + 1) * self.loss_every
        return ends.clamp(max=self.n_steps)

    @torch.no_grad()
    def update(self, parameters: Tensor, observation: tuple) -> Tensor:
        """Return the student's updated parameters (B, p): what `improve` and `interact` take."""
        return as_update(self.config.algorithm, self.student)(parameters, observation)

    def projection(self) -> Projection:
        """Return where (P, V) lies relative to the manifold of the construction.

        A ValueError says that the construction does not perform the teacher: nothing would follow.
        """
        algorithm, P = self.config.algorithm, self.P
        star = algorithm.construction(dtype=torch.float64)
        block = LinearBlock.from_weights(algorithm, *star)
        error = _windows(dataclasses.replace(self.config, dtype="float64")).error(block)
        if not error < 1e-9:
            raise ValueError(
                "algorithm: expected a construction that performs the teacher; on a window of this "
                f"run that of {type(algorithm).__name__} has the relative error {error:.1e}"
            )
        return project(P, self.V, *(matrix.to(P.dtype) for matrix in star))

    def to(self, *, dtype: str | None = None, device: str | None = None) -> Run:
        """Return the run with its student in another dtype or on another device."""
        changes = {"dtype": dtype or self.config.dtype, "device": device or self.config.device}
        config = dataclasses.replace(self.config, **changes)
        student = copy.deepcopy(self.student).to(config.device, config.torch_dtype)
        return dataclasses.replace(self, student=student, config=config)

    def save(self, path: str | os.PathLike) -> None:
        """Write the run to a file that `load_run` reads."""
        content = {name: getattr(self, name) for name in _STORED}
        content["config"] = describe(self.config, tensors=True)
        content["kind"] = type(self.student).__name__
        content["student"] = self.student.state_dict()
        _write(_file("path", path), content)


_STORED = ("losses", "errors", "loss_every", "error", "n_steps", "seconds")


def load_run(path: str | os.PathLike, student: nn.Module | None = None) -> Run:
    """Read a run that `Run.save` wrote, into a copy of `student`, a module of the kind that was
    trained.

    For a `LinearBlock` no student is needed. A ValueError says that the file holds no run or is
    damaged, that its classes are not imported, or that `student` is not of the kind that was
    trained.
    """
    file = _file("path", path)
    content = _read("path", file, "run")
    try:
        stored = {name: content[name] for name in _STORED}
        description, kind, weights = (content[name] for name in ("config", "kind", "student"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"path: expected a run, {file} is none") from error
    config = _restore(description)
    if student is None and kind == LinearBlock.__name__:
        student = LinearBlock(config.algorithm, generator=torch.Generator())
    if student is None or type(student).__name__ != kind:
        raise ValueError(f"student: expected a {kind} to put the weights into, got {student!r:.80}")
    student = copy.deepcopy(student).to(config.torch_dtype)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"student: expected one of the sizes of {file}: {error}") from error
    return Run(student=student, config=config, **stored)


# --- training


class Step(NamedTuple):
    """One optimiser step, the `number`-th, on the data set `windows`.

    `loss` is the mean of half the squared distance to the teacher, before the step, and `error` the
    same as a relative error; see `Run`. `student` is the module after the step; the next changes
    it.
    """

    number: int
    loss: float
    error: float
    windows: Windows
    student: nn.Module


def fit(
    student: nn.Module, batches: Iterable[Windows], optimiser: torch.optim.Optimizer
) -> Iterator[Step]:
    """Train a student on batches of windows, one step each: the loop of every training here.

    The student maps tokens (B, n, k) and parameters (B, p) to updated parameters (B, p), and is
    changed. Batches are, for example, ``itertools.repeat(windows, 1000)`` for 1,000 steps on the
    same sample. Any `optimiser` of the student's parameters will do; its learning rate may be
    changed between steps.
    """
    check_instance("student", student, nn.Module)
    check_instance("optimiser", optimiser, torch.optim.Optimizer)
    for number, windows in enumerate(batches, 1):
        loss, moved = _optimiser_step(student, windows, optimiser, number)
        yield Step(number, loss, _root((loss, moved)), windows, student)


def _optimiser_step(
    student: nn.Module,
    windows: Windows,
    optimiser: torch.optim.Optimizer,
    number: int,
    add_up: Callable[..., None] | None = None,
) -> tuple[float, float]:
    """Take one step on the loss of eq. (6); return it and half the teacher's mean squared step.

    Where several processes share the work, `add_up` turns means over a part into means over all.
    """
    updated = student(windows.tokens, windows.parameters)
    loss = 0.5 * (updated - windows.target).square().sum(-1).mean()
    moved = 0.5 * (windows.target - windows.parameters).square().sum(-1).mean()
    optimiser.zero_grad()
    loss.backward()
    loss = loss.detach()
    if add_up is not None:
        weights = (part for group in optimiser.param_groups for part in group["params"])
        add_up(loss, moved, *(part.grad for part in weights if part.grad is not None))
    optimiser.step()
    values = loss.item(), moved.item()
    if not math.isfinite(values[0]):
        rate = optimiser.param_groups[0]["lr"]
        raise ValueError(
            f"learning_rate: training has diverged at step {number}, with learning rate {rate:g}: "
            f"the loss is {values[0]}; try a smaller one"
        )
    return values


def mimic(
    config: TrainingConfig, student: nn.Module | None = None, *, driver: str = "teacher"
) -> Iterator[Step]:
    """Train step by step; watch a run by looking at its steps, stop it by leaving the loop.

    `student` is as of `train`, and `driver` says whose updates the agents make, the "teacher"'s or
    the "student"'s. There are ``config.steps`` steps.
    """
    if driver not in ("teacher", "student"):
        raise ValueError(f"driver: expected 'teacher' or 'student', got {driver!r:.200}")
    return _Trainer(config, student, driver=driver).work()


def train(
    config: TrainingConfig,
    student: nn.Module | None = None,
    *,
    watch: Callable[[Step], object] | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 20.0,
    group: dist.ProcessGroup | None = None,
) -> Run:
    """Train a student to mimic its teacher (Algorithms 1 and 2, loss of eq. 6).

    Every batch of MDPs is explored under the teacher's own parameters (teacher forcing); each
    window gives one optimiser step on the batch mean of half the squared distance between the
    student's parameters and the teacher's. The weights carry over from batch to batch.

    By default the student is a `LinearBlock`, which computes with P12 and V21 alone: by Proposition
    3.1 every other block either receives no gradient or stays at the zero it starts from.

    Several processes can share the work: each calls `train` with the same configuration and the
    group that ``torch.distributed.init_process_group`` made ("gloo", or "nccl" with a CUDA device
    each), for example under ``torchrun --nproc-per-node 2 -m icrl_lib paper --distributed``. Each
    takes its part of every batch of MDPs, the gradients of the parts are added up, and all take the
    same optimiser step. All of them draw all random numbers and use their own, so the MDPs,
    features and trajectories are those of a single process, and what differs is the order in which
    the gradients of a batch are summed: the result is that of one process to within rounding, and
    the same bits for the same number of processes. The first process alone writes the checkpoint,
    between batches of MDPs; it can be taken up by any number of processes, or by one without a
    group.

    Parameters
    ----------
    student : torch.nn.Module, optional
        Maps tokens (B, n, k) and parameters (B, p) to updated parameters (B, p), for example one of
        `icrl_lib.students`, or ``run.student`` of an earlier run to go on from. A copy of it is
        trained, in the dtype and on the device of the configuration.
    watch : callable, optional
        Called with every `Step`; the run stops after a step for which it returns True.
    progress : bool, optional
        Show a progress bar, with loss and relative error; by default only on a terminal.
    checkpoint, checkpoint_every
        File to which the state of the run is written every so many seconds and from which a killed
        run goes on, with the same result to the bit. It stays when the run is done.
    group : ProcessGroup, optional
        The processes that share the work, such as ``torch.distributed.group.WORLD``.

    Raises
    ------
    ValueError
        If `student` does not fit the algorithm, `checkpoint` exists and belongs to another
        configuration or student or is no checkpoint or damaged, or its folder does not exist, the
        batch would not fit into memory, or the loss is no longer finite.
    """
    if watch is not None and not callable(watch):
        raise ValueError(f"watch: expected a function of a step, got {watch!r:.200}")
    path = None if checkpoint is None else _file("checkpoint", checkpoint)
    check_number("checkpoint_every", checkpoint_every, at_least=0)
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group: expected a process group of torch.distributed, got {group!r}")
    started = time.perf_counter()
    trainer = _Trainer(config, student, group)
    trainer.load(path)
    seconds_before = trainer.seconds
    saved = started
    stopped = False
    bar = tqdm(
        total=config.windows,
        initial=trainer.windows,
        desc=config.algorithm.name,
        unit=" windows",
        unit_scale=True,
        disable=trainer.rank > 0 or (None if progress is None else not progress),
    )
    with bar:
        for step in trainer.work():
            bar.update(trainer.windows - bar.n)
            now = time.perf_counter()
            stopped = watch is not None and bool(watch(step))
            due = now - saved > checkpoint_every and trainer.may_save
            if due or stopped or trainer.windows == config.windows:
                saved = now
                trainer.seconds = seconds_before + now - started
                bar.set_postfix(loss=f"{step.loss:.1e}", error=f"{step.error:.1e}")
                if path is not None and trainer.rank == 0:
                    trainer.save(path)
            if stopped:
                break
    run = trainer.result()
    if not stopped and run.error > FAR:
        warnings.warn(
            f"the run has ended far from its teacher, with relative error {run.error:.2f}, where 1 "
            "is as bad as not updating: try more MDPs, or another learning rate",
            FarFromTeacher,
            stacklevel=2,
        )
    return run


def relative_error(
    config: TrainingConfig,
    student: nn.Module | Callable[[Tensor, Tensor], Tensor],
    *,
    generator: torch.Generator,
) -> float:
    """Compare a student with its teacher on MDPs that it was not trained on.

    `config` says which family, how many MDPs (`n_mdps`, all at once) and how many windows of each
    (`frames`); the teacher drives the agents. The student is a module or a function of tokens and
    parameters. Returned is the root of the sum of ||student - teacher||^2 over the sum of ||teacher
    - parameters||^2, all windows together: 0 is perfect, 1 is as bad as not updating.
    """
    check_instance("config", config, TrainingConfig)
    if not callable(student):
        raise ValueError(f"student: expected a torch.nn.Module, got {student!r:.200}")
    agents = draw_situation(config, config.n_mdps, generator)
    windows = stream(config.algorithm, *agents, n=config.window, generator=generator)
    squares = [part.squares(student) for part in islice(windows, config.frames)]
    missed, moved = map(sum, zip(*squares, strict=True))
    return math.sqrt(missed / moved)


def draw_situation(config: TrainingConfig, batch: int, generator: torch.Generator) -> Situation:
    """Draw MDPs, their features, parameters (B, p) and states (B,) for B = `batch` new agents."""
    check_instance("config", config, TrainingConfig)
    family, dtype = config.family, config.torch_dtype
    return family.situation(config.algorithm, batch, generator=generator, dtype=dtype)


def draw_windows(
    config: TrainingConfig,
    batch: int,
    frames: int = 1,
    *,
    update: Update | None = None,
    generator: torch.Generator,
) -> Windows:
    """Collect `frames` windows of each of `batch` new agents; see `icrl_lib.windows.collect`."""
    agents = draw_situation(config, batch, generator)
    settings = {"frames": frames, "n": config.window, "update": update, "generator": generator}
    return collect(config.algorithm, *agents, **settings)


def _windows(config: TrainingConfig, batch: int = 2) -> Windows:
    """Return first windows of a run, without moving its generator."""
    generator = torch.Generator(config.device).manual_seed(config.seed)
    return draw_windows(config, batch, generator=generator)


# --- memory


def check_memory(config: TrainingConfig, student: nn.Module | None = None) -> None:
    """Raise a ValueError if what one optimiser step works on would not fit into memory.

    The estimate counts the tensors that are alive at the peak, in a step or while a batch of MDPs
    is drawn; it does not depend on the number of frames or of MDPs.
    """
    needed, available = memory_needed(config, student), _memory_available(config.device)
    if needed > available:
        n_states, n_actions = config.family.sizes()
        raise ValueError(
            f"batch: expected sizes that fit into memory; {config.batch} MDPs with "
            f"{n_states} states and {n_actions} actions, windows of {config.window} "
            f"and tokens of {config.algorithm.layout.n_token} need about {needed / 2**30:.1f} GiB "
            f"of {available / 2**30:.1f} GiB; a smaller batch needs less"
        )


def memory_needed(config: TrainingConfig, student: nn.Module | None = None) -> int:
    """Estimate, from above, the bytes that training works on at its peak.

    For a linear block from the sizes alone; what derivatives of another student keep of a window
    is measured.
    """
    check_instance("config", config, TrainingConfig)
    layout = config.algorithm.layout
    token, column = layout.n_token, layout.n_parameter
    n_states, n_actions = config.family.sizes()
    pairs = n_states * n_actions
    # P(s' | s, a), its running sums and rewards; features; tokens and what they are made of.
    mdp = pairs * (3 * n_states + 2 * column)
    window = config.window * (6 * token + 8)
    # P12 and V21 with gradient, Adam's two moments and what a step holds; P and V at the end.
    weights = 12 * token * column + 2 * layout.size**2
    if student is not None:
        one, two = (_kept_by(config, student, batch) for batch in (1, 2))
        window += 2 * (two - one)
        weights += 5 * sum(part.numel() for part in student.parameters())
    batch = min(config.batch, config.n_mdps)
    return (batch * (mdp + window) + weights) * config.torch_dtype.itemsize


def _kept_by(config: TrainingConfig, student: nn.Module, batch: int) -> int:
    """Count the numbers that automatic differentiation keeps of first windows."""
    windows, kept = _windows(config, batch), {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        student(windows.tokens, windows.parameters)
    return sum(kept.values())


def _memory_available(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # no such question on this system
        return 2**63


# --- the loop


class _Trainer:
    """The state of a run between two optimiser steps, and how to go on from it."""

    _SAVED = (
        "steps", "mdps_done", "frames_done", "losses", "errors", "pending", "within_batch",
        "error", "seconds", "batch_start", "position",
    )  # fmt: skip

    def __init__(
        self,
        config: TrainingConfig,
        student: nn.Module | None = None,
        group: dist.ProcessGroup | None = None,
        driver: str = "teacher",
    ) -> None:
        check_instance("config", config, TrainingConfig)
        check_memory(config)
        self.config = config
        self.driver = driver
        self.group = group
        self.rank, self.world = (0, 1) if group is None else (group.rank(), group.size())
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        dtype = config.torch_dtype
        if student is None:
            self.student: nn.Module = LinearBlock(
                config.algorithm, config.gain, generator=self.generator, dtype=dtype
            )
        else:
            check_instance("student", student, nn.Module)
            self.student = copy.deepcopy(student).to(config.device, dtype)
        self.weights = [part for part in self.student.parameters() if part.requires_grad]
        if student is not None:
            self._try()
            check_memory(config, self.student)
        self.identity = {
            "config": describe(config),
            "student": type(self.student).__name__,
            "first weights": [describe(part) for part in self.student.state_dict().values()],
        }
        self.optimiser = torch.optim.Adam(self.weights, lr=config.learning_rate, fused=True)
        self.loss_every = math.ceil(config.steps / MAX_RECORDED_LOSSES)
        self.losses: list[float] = []
        self.errors: list[float] = []
        # Sums since the last record, and over the batch of MDPs at hand: of losses, and of half
        # the squared length of the teacher's step.
        self.pending = [0.0, 0.0]
        self.within_batch = [0.0, 0.0]
        self.error = math.nan
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

    def _try(self) -> None:
        """Refuse a student that does not fit, before any work."""
        if not self.weights:
            raise ValueError("student: expected parameters to train, it has none")
        windows = _windows(self.config)
        try:
            updated = self.student(windows.tokens, windows.parameters)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                "student: expected a module that takes tokens of shape "
                f"{tuple(windows.tokens.shape)} and parameters of shape "
                f"{tuple(windows.parameters.shape)}, but it says: {error}"
            ) from error
        if not isinstance(updated, Tensor) or updated.shape != windows.target.shape:
            given = getattr(updated, "shape", type(updated).__name__)
            raise ValueError(
                f"student: expected updated parameters of shape {tuple(windows.target.shape)} "
                f"from it, got {given}"
            )
        if not updated.requires_grad:
            raise ValueError("student: expected an output that depends on its parameters")

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

    def work(self) -> Iterator[Step]:
        """Take one optimiser step after the other."""
        config = self.config
        while self.mdps_done < config.n_mdps:
            rate = config.learning_rate * config.decay ** (self.mdps_done // config.decay_every)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            batch = self.batch
            for frame in self._batch_of_mdps():
                step = self._step(frame)
                self.frames_done += 1
                self.position = (frame.updated, frame.state)
                if self.frames_done == config.frames:
                    self.mdps_done += batch
                    self.frames_done = 0
                    self.error = _root(self.within_batch)
                    self.within_batch = [0.0, 0.0]
                    self.batch_start, self.position = self.generator.get_state(), None
                yield step

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
            situation = Situation(mdp, features, *self.position)
        if share is not None:
            situation = Situation(*(select(drawn, share.part) for drawn in situation))
        algorithm = config.algorithm
        by_student = torch.no_grad()(as_update(algorithm, self.student))
        loop = interact(
            algorithm,
            *situation,
            algorithm.teach if self.driver == "teacher" else by_student,
            n=config.window,
            generator=generator,
            share=share,
        )
        return islice(loop, config.frames - self.frames_done)

    def _step(self, frame: Frame) -> Step:
        algorithm = self.config.algorithm
        by_teacher = self.driver == "teacher"
        target = frame.updated if by_teacher else algorithm.teach(*frame[:2])
        windows = Windows(algorithm.tokens(frame.observation), frame.parameters, target)
        add_up = None if self.group is None else self._add_up
        self.steps += 1
        values = _optimiser_step(self.student, windows, self.optimiser, self.steps, add_up)
        self.pending = [total + value for total, value in zip(self.pending, values, strict=True)]
        self.within_batch = [a + b for a, b in zip(self.within_batch, values, strict=True)]
        if self.steps % self.loss_every == 0 or self.steps == self.config.steps:
            count = (self.steps - 1) % self.loss_every + 1
            self.losses.append(self.pending[0] / count)
            self.errors.append(_root(self.pending))
            self.pending = [0.0, 0.0]
        return Step(self.steps, values[0], _root(values), windows, self.student)

    def _add_up(self, *means: Tensor) -> None:
        """Replace means over this process's part of the batch by means over all of it."""
        together = torch.cat([mean.flatten() for mean in means]) * self.weight
        dist.all_reduce(together, group=self.group)
        parts = together.split([mean.numel() for mean in means])
        for mean, part in zip(means, parts, strict=True):
            mean.copy_(part.view_as(mean))

    def result(self) -> Run:
        return Run(
            student=self.student,
            losses=torch.tensor(self.losses, dtype=torch.float64),
            errors=torch.tensor(self.errors, dtype=torch.float64),
            loss_every=self.loss_every,
            error=_root(self.within_batch) if self.frames_done else self.error,
            config=self.config,
            n_steps=self.steps,
            seconds=self.seconds,
        )

    def save(self, path: Path) -> None:
        """Write the state, so that at any moment the file is whole: the old state or the new."""
        state = {name: getattr(self, name) for name in self._SAVED}
        state["identity"] = json.dumps(self.identity)
        state["student"] = self.student.state_dict()
        state["optimiser"] = self.optimiser.state_dict()
        state["generator"] = self.generator.get_state()
        _write(path, state)

    def load(self, path: Path | None) -> None:
        """Take up the state that `save` wrote, if there is one; the first process reads it."""
        state: dict[str, Any] | None = None
        problem: str | None = None
        if path is not None and path.exists() and self.rank == 0:
            try:
                state = self._stored(path)
            except ValueError as error:
                problem = str(error)
        if self.group is not None:  # all go on together, or refuse together
            said: list[Any] = [state, problem]
            dist.broadcast_object_list(said, dist.get_global_rank(self.group, 0), self.group)
            state, problem = said
        if problem is not None:
            raise ValueError(problem)
        if state is None:
            return
        for name in self._SAVED:
            setattr(self, name, state[name])
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.batch_start = self.batch_start.cpu()

    def _stored(self, path: Path) -> dict[str, Any]:
        state = _read("checkpoint", path, "checkpoint", self.config.device)
        try:
            found = json.loads(state["identity"])
            missing = {*self._SAVED, "student", "optimiser", "generator"} - state.keys()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint: expected a checkpoint, {path} is none") from error
        for name, expected in json.loads(json.dumps(self.identity)).items():
            if found.get(name) != expected:
                what = {"config": "configuration"}.get(name, name)
                raise ValueError(
                    f"checkpoint: expected {path} to belong to this {what},\n  {expected}\n"
                    f"but it belongs to\n  {found.get(name)}"
                )
        if missing:
            raise ValueError(f"checkpoint: expected {sorted(missing)} in {path}")
        return state


def _root(sums: list[float] | tuple[float, float]) -> float:
    """Return the relative error for sums of losses and of the teacher's half squared steps."""
    missed, moved = sums
    return math.sqrt(missed / moved) if moved > 0 else math.inf


# --- files


def _file(name: str, path: str | os.PathLike) -> Path:
    check_instance(name, path, (str, os.PathLike))
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"{name}: expected a file in an existing folder, got {path}")
    return path


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write so that at any moment the file is whole: the old content or the new."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(dict(content), beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read(name: str, path: Path, what: str, device: str = "cpu") -> Any:
    """Read what `_write` wrote, whole or not at all: its parts carry checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not agree with its checksum")
        return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # whatever a damaged file makes of the two readers
        raise ValueError(
            f"{name}: expected a {what}, {path} is none or is damaged ({error}); remove it to "
            "begin anew"
        ) from error
