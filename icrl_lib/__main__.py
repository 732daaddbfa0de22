"""Command line: ``python -m icrl_lib paper`` runs the paper's experiment at full size.

``python -m icrl_lib bench`` measures what training costs on this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

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

A run that was killed goes on where it was when it is started again with the same options.

Several processes, on one machine or more, share the training when torchrun starts them and they
are told --distributed:

    torchrun --nproc-per-node 2 -m icrl_lib paper --distributed --batch 512 --frames 1000

Each takes its part of every batch of MDPs and gradients are added up, over gloo (or over nccl with
--device cuda, one device a process); the result is that of one process with the same --batch, to
within rounding. The first process writes checkpoints, between batches, and evaluates.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m icrl_lib", description=__doc__)
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
    command.set_defaults(work=_paper)
    measure = commands.add_parser(
        "bench",
        help="measure what training costs",
        description="Measure training against a plain loop and against the limits of this machine, "
        "on 1 core and on 2. Nothing else should run meanwhile. Takes about 8 minutes.",
    )
    measure.add_argument("--quick", action="store_true", help="only see whether it runs")
    measure.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write the results as JSON"
    )
    measure.set_defaults(work=_bench)
    options = parser.parse_args(arguments)
    try:
        options.work(options)
    except ValueError as error:
        parser.exit(2, f"{parser.prog} {options.command}: {error}\n")


def _paper(options: argparse.Namespace) -> None:
    evaluation = paper.Evaluation()
    if options.updates is not None:
        evaluation = dataclasses.replace(evaluation, n_updates=options.updates)
    chosen = {
        "n_mdps": options.mdps,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "device": options.device,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    configs = {}
    for frames in options.frames or [50, 1000]:
        for name in options.algorithm or ALGORITHMS:
            batch = options.batch or (1 if frames <= 50 else 50)
            config = TrainingConfig.paper(name)
            config = dataclasses.replace(config, frames=frames, batch=batch, **given)
            configs[options.output / f"{name}-{frames}.json"] = config
    first = not options.distributed or _train_together(configs)
    for path, config in configs.items() if first else ():
        results = paper.run(config, path, evaluation)
        returns = {name: curve["exact"]["mean"][-1] for name, curve in results["returns"].items()}
        projection = results["training"]["projection"]
        print(f"{path}: cosine {projection['cosine']:.6f}, scale {projection['c']:.3f}")
        for name, value in returns.items():
            print(f"  {name:<24}{value:8.4f}")


def _train_together(configs: dict[Path, TrainingConfig]) -> bool:
    """Train in all processes that torchrun started; return whether this is the first of them."""
    # Without a name torch takes nccl for tensors on CUDA devices and gloo for the others.
    dist.init_process_group()
    try:
        for path, config in configs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            done = [path.exists()]
            dist.broadcast_object_list(done, 0)
            if not done[0]:
                train(config, checkpoint=path.with_suffix(".checkpoint"), group=dist.group.WORLD)
        return dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def _bench(options: argparse.Namespace) -> None:
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(f"output: expected a file in an existing folder, got {options.output}")
    results = bench.run(bench.QUICK if options.quick else bench.Effort())
    if options.output is not None:
        bench.write(results, options.output)


if __name__ == "__main__":
    main()
