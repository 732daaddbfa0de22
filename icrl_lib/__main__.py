"""Command line: ``python -m icrl_lib paper`` runs the paper's experiment at full size.

``python -m icrl_lib bench`` measures what training costs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from icrl_lib.algorithms import ALGORITHMS
from icrl_lib.experiments import bench, paper
from icrl_lib.training import TrainingConfig, train

EPILOG = """\
The text of the paper leaves open whether its horizon T = 1000 counts environment steps (50 windows
of 20 per MDP: --frames 50) or windows (--frames 1000); by default both are run.

With --batch 1 this is Algorithm 1 or 2 line by line: one MDP at a time, one optimiser step per
window. --batch B explores B MDPs in lockstep and takes one step on their mean loss: B times fewer
steps, with less noise in each, and the learning rate, which falls by 1 % every 10 MDPs, then falls
once per batch by as much. The default is 1 for --frames 50 (about 10 minutes on one core) and 50
for --frames 1000 (about 5 minutes; with --batch 1 it would be over 3 hours).

A run that was stopped or killed goes on where it was when it is started again with the same
options. No two runs can write the same results at a time: the second is refused.

Several processes, on one machine or more, share the training when torchrun starts them and they
are told --distributed:

    torchrun --nproc-per-node 2 -m icrl_lib paper --distributed --batch 512 --frames 1000

Each takes its part of every batch of MDPs and gradients are added up, over gloo (or over nccl with
--device cuda, one device a process); the result is that of one process with the same --batch, to
within rounding. The first process writes checkpoints, between batches, and evaluates. If one of
them ends, or says nothing for 5 minutes, the others stop too.
"""

PATIENCE = datetime.timedelta(minutes=5)
"""How long processes that train together wait for each other; a step takes seconds at most."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; --help says the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = _Parser(prog="python -m icrl_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "paper",
        help="train and evaluate with the paper's settings",
        description="Train blocks with the paper's settings and evaluate them on held-out MDPs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--algorithm", choices=list(ALGORITHMS), action="append", help="by default all of them"
    )
    command.add_argument(
        "--frames", type=int, action="append", metavar="T", help="windows per MDP; default 50, 1000"
    )
    command.add_argument("--batch", type=int, metavar="B", help="MDPs in lockstep; see below")
    command.add_argument("--mdps", type=int, metavar="K", help="number of MDPs; default 10000")
    command.add_argument("--learning-rate", type=float, metavar="X", help="default 0.001")
    command.add_argument("--seed", type=int, default=0, help="default 0")
    command.add_argument("--device", default="cpu", help="default cpu")
    command.add_argument(
        "--updates",
        type=int,
        metavar="N",
        help="in-context updates of the evaluation; default 5000",
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="results are written to FOLDER/ALGORITHM-T.json; default results",
    )
    command.add_argument("--distributed", action="store_true", help="share the training; see below")
    command.set_defaults(
        work=_paper, to_go_on="start it again with the same options, and it goes on from there"
    )
    measure = commands.add_parser(
        "bench",
        help="measure what training costs",
        description="Measure training against two loops and against the limits of this machine, "
        "on 1 core and on 2. Nothing else should run meanwhile. Takes about 13 minutes.",
    )
    measure.add_argument("--quick", action="store_true", help="only see whether it runs")
    measure.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write the results as JSON"
    )
    measure.set_defaults(work=_bench, to_go_on="nothing was written")
    options = parser.parse_args(arguments)
    try:
        options.work(options)
    except KeyboardInterrupt:
        problem, status = f"stopped; {options.to_go_on}", 130
    except ValueError as error:
        problem, status = error, 2
    except OSError as error:
        problem, status = error, 1
    else:
        return
    parser.exit(status, f"{parser.prog} {options.command}: {problem}\n")


def _paper(options: argparse.Namespace) -> None:
    evaluation = paper.Evaluation()
    if options.updates is not None:
        evaluation = dataclasses.replace(evaluation, n_updates=options.updates)
    chosen = {
        "n_mdps": options.mdps,
        "batch": options.batch,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "device": options.device,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    experiments = []
    for frames in dict.fromkeys(options.frames or [50, 1000]):
        for name in dict.fromkeys(options.algorithm or ALGORITHMS):
            sizes = {"frames": frames, "batch": 1 if frames <= 50 else 50, **given}
            config = dataclasses.replace(TrainingConfig.paper(name), **sizes)
            path = options.output / f"{name}-{frames}.json"
            experiments.append(paper.Experiment(config, path, evaluation))
    with contextlib.ExitStack() as reserved:  # all of them, before any work
        if options.distributed:
            first = _train_together(experiments, reserved)
        else:
            first = True
            for experiment in experiments:
                reserved.enter_context(experiment)
        for experiment in experiments if first else ():
            _report(experiment.path, experiment.run())


def _report(path: Path, results: dict[str, Any]) -> None:
    returns = {name: curve["exact"]["mean"][-1] for name, curve in results["returns"].items()}
    projection = results["training"]["projection"]
    print(f"{path}: cosine {projection['cosine']:.6f}, scale {projection['c']:.3f}")
    for name, value in returns.items():
        print(f"  {name:<24}{value:8.4f}")


def _train_together(experiments: list[paper.Experiment], reserved: contextlib.ExitStack) -> bool:
    """Train in all processes that torchrun started; return whether this is the first of them.

    The first alone reads and reserves the files.
    """
    try:
        # Without a name torch takes nccl for tensors on CUDA devices and gloo for the others.
        dist.init_process_group(timeout=PATIENCE)
        first = dist.get_rank() == 0
        said: list[Any] = [None, None]
        if first:
            try:
                said[0] = [reserved.enter_context(experiment).trained for experiment in experiments]
            except ValueError as error:
                said[1] = str(error)
        dist.broadcast_object_list(said, 0)
        trained, problem = said
        if problem is not None:  # all of them stop
            raise ValueError(problem)
        for experiment, done in zip(experiments, trained, strict=True):
            if not done:
                train(experiment.config, checkpoint=experiment.checkpoint, group=dist.group.WORLD)
        return first
    except RuntimeError as error:  # what torch raises when another process is silent or gone
        raise ConnectionError(
            f"training together broke off ({str(error).splitlines()[0]}); start all processes "
            "again with the same options, and it goes on from there"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _bench(options: argparse.Namespace) -> None:
    bench.run(bench.QUICK if options.quick else bench.FULL, output=options.output)


if __name__ == "__main__":
    main()
