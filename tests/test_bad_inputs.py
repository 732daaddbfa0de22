"""Every public function and class of the library against bad inputs of every kind.

`ROWS` has a row for each public name, with an argument that is good and many that are bad. What is
bad has to be refused by a ValueError (or a TypeError) that names the argument and that the library
itself raises: no stack trace that ends inside torch, and no result.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import icrl_lib
from icrl_lib import (
    algorithms,
    attention,
    constructions,
    control,
    families,
    features,
    flow,
    in_context_td,
    landscape,
    loop,
    mdps,
    objective,
    policies,
    prompts,
    richness,
    students,
    teachers,
    training,
    windows,
    worlds,
    zoo,
)
from icrl_lib.book import claims, interactive, plotting
from icrl_lib.classroom import given
from icrl_lib.experiments import paper
from icrl_lib.mdps import concatenate as join

PACKAGE = Path(icrl_lib.__file__).parent
SIZES = {"B": 2, "n": 3, "d": 4, "m": 5, "A": 3, "S": 6, "K": 7, "heads": 2}
SIZES |= {"n+1": 4, "1": 1, "D": 11, "k": 9, "p": 4, "q": 5, "N": 8}  # SARSA's sizes: k = 2 d + 1
MDP = mdps.random_mdps(2, 6, 3, generator=torch.Generator().manual_seed(0))
ALGORITHM = algorithms.SARSA(d=4)


def draw(axes: str, seed: int = 0) -> torch.Tensor:
    """Draw numbers uniform on (0, 1)."""
    shape = [SIZES[axis] for axis in axes.split()]
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- what an argument can be: a good value, and bad ones by the name of what is bad


@dataclasses.dataclass(frozen=True)
class Argument:
    """A good value of an argument and what has to be refused in its place."""

    good: Any
    bad: dict[str, Any]
    mismatched: dict[str, Any] = dataclasses.field(default_factory=dict)


def a_tensor(
    axes: str = "", free: str = "", good: torch.Tensor | None = None, **bad: Any
) -> Argument:
    """A tensor; `free` says in which ways it may differ from the other arguments."""
    t = draw(axes) if good is None else good
    spoiled, endless = t.clone(), t.clone()
    spoiled.view(-1)[-1], endless.view(-1)[0] = math.nan, -math.inf
    mismatched = {
        "first": torch.cat([t, t[:1]]),
        "last": torch.cat([t, t[..., :1]], -1),
        "dtype": t.float() if t.dtype == torch.float64 else t.double(),
    }
    return Argument(
        t,
        {
            "None": None,
            "number": 1.0,
            "list": t.tolist(),
            "array": t.numpy(),
            "integers": t.long(),
            "half precision": t.half(),
            "booleans": t > 0.5,
            "complex": t.cfloat(),
            "NaN": spoiled,
            "infinity": endless,
            "empty": t[:0],
            "an axis too many": t.unsqueeze(0),
            "an axis too few": t[0],
            "no axis": t.flatten()[0],
            "no numbers": t.to("meta"),
            "sparse": t.to_sparse(),
        }
        | bad,
        {name: value for name, value in mismatched.items() if name not in free.split()},
    )


NO_NUMBER = {
    "None": None,
    "text": "0.5",
    "NaN": math.nan,
    "infinity": math.inf,
    "bool": True,
    "complex": 1j,
    "tensor": torch.tensor(0.5),
    "list": [0.5],
}


def but(argument: Argument, *kinds: str) -> Argument:
    """An argument for which some kinds of bad values are not bad."""
    assert argument.bad.keys() >= set(kinds)
    bad = {kind: value for kind, value in argument.bad.items() if kind not in kinds}
    return dataclasses.replace(argument, bad=bad)


def a_number(good: float, *out_of_range: float) -> Argument:
    """A real number."""
    return Argument(good, NO_NUMBER | {str(value): value for value in out_of_range})


def a_count(good: int, at_least: int = 1, *out_of_range: int) -> Argument:
    """A whole number."""
    bad = NO_NUMBER | {"fraction": 1.5, "float": 2.0}
    bad |= {str(value): value for value in (at_least - 1, -7, *out_of_range)}
    return Argument(good, bad)


def anything(good: Any, *bad: Any) -> Argument:
    """Something else; whatever it is, None, a number and a text are bad, too."""
    return Argument(good, {repr(value)[:40]: value for value in (None, 3, "nonsense", *bad)})


def policy(free: str = "", **bad: Any) -> Argument:
    good = torch.full((2, 6, 3), 1 / 3)
    one_short, negative = good.clone(), good.clone()
    one_short[0, 0, 0] = 0.2
    negative[0, 0] = torch.tensor([-0.5, 0.5, 1.0])
    kinds = {"sum below 1": one_short, "negative": negative}
    return a_tensor(good=good, free=free, **kinds, **bad)


DISCOUNT = a_number(0.5, -0.1, 1.0)
STEP = a_number(0.2, 0, -1)
SCALE = a_number(0.7, 0)
SHARE = a_number(0.1, -0.1, 1.1)
DTYPE = anything(
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.complex64,
    float,
    "float32",
)
GENERATOR = anything(torch.Generator().manual_seed(0), torch, torch.Generator)
AN_MDP = anything(MDP, MDP.transition, mdps.TabularMDP)
AN_ALGORITHM = anything(ALGORITHM, algorithms.SARSA, "sarsa")
FAMILY = families.RandomMDPs(6, 3)
A_FAMILY = anything(FAMILY, families.RandomMDPs, [])
A_LAW = anything("uniform", features.random_features, [])
A_STUDENT = anything(students.LinearBlock(ALGORITHM, generator=torch.Generator()), [])
CONFIG = anything(training.TrainingConfig(ALGORITHM, 1, 1, family=FAMILY), "sarsa", {})
STATE = anything(
    torch.tensor([0, 5]), [0, 5], torch.tensor([0.0, 5.0]), torch.tensor([0, 6]),
    torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([[0, 5]]), torch.tensor([0, 5]).int(),
    torch.tensor([0, 5]).to("meta"),
)  # fmt: skip


def places(below: int) -> Argument:
    """Rows of a table, one for each of B problems and n + 1 times."""
    good = torch.tensor([[0, 1, below - 1, 0], [0, 0, 0, 0]])
    return anything(
        good, good + 1, good - 1, good[:1], good[0], good[:, :0], good.int(), good.float(),
        good.tolist(), good.to("meta"),
    )  # fmt: skip


LAYOUT = anything(prompts.sarsa_layout(4), (), [("r", 1)])
UPDATE = anything(ALGORITHM.teach, 1.0, [])

WINDOW = {
    "phi": a_tensor("B n d"),
    "phi_next": a_tensor("B n d"),
    "rewards": a_tensor("B n"),
    "discount": DISCOUNT,
}
TRANSITIONS = {"w": a_tensor("B d"), **WINDOW}
ACTOR = {
    "lam": a_tensor("B m"),
    "w": a_tensor("B d"),
    "phi_v": a_tensor("B n d"),
    "phi_v_next": a_tensor("B n d"),
    "rewards": a_tensor("B n"),
    "scores": a_tensor("B n m"),
    "discount": DISCOUNT,
}
STEPS = {"alpha": STEP, "beta": STEP}
FAN = {**TRANSITIONS, "phi_next": a_tensor("B n A d", free="first"), "alpha": STEP}


def probabilities() -> Argument:
    good = torch.full((2, 3, 3), 1 / 3)
    wrong = good.clone()
    wrong[0, 0, 0] = 0.5
    return a_tensor(good=good, **{"sum above 1": wrong})


def an_objective() -> objective.Objective:
    tokens, column = draw("N n k").double(), draw("N q").double()
    column[:, 0] = 1
    return objective.Objective(tokens.mT @ tokens / 3, column, draw("N p").double(), SIZES["n"])


OBJECTIVE = anything(an_objective(), torch.ones(2), objective.Objective)


def double(axes: str, free: str = "") -> Argument:
    return a_tensor(good=draw(axes).double() - 0.5, free=free)


def a_star(axes: str) -> Argument:
    good = draw(axes).double()
    return a_tensor(good=good, free="first last dtype", zero=0 * good)


BLOCKS = {"P12": double("k q"), "V21": double("p k")}
STAR = {"P12_star": double("k q"), "V21_star": double("p k")}
SLOTS_P, SLOTS_V = {("r", "1"): 1.0}, {("w", r"\phi"): 0.2}


def slots(good: dict, names: tuple[str, str]) -> Argument:
    return anything(
        good, [], {("nowhere", names[1]): 1.0}, {(names[0], "nowhere"): 1.0},
        {names: math.nan}, {names: None}, {"r": 1.0}, {(*names, "1"): 1.0}, {5: 1.0},
    )  # fmt: skip


def drawing(value: float) -> plt.Figure:
    return plt.figure(figsize=(1, 1))


CURVES = {"teacher": (torch.arange(7), draw("K B"))}
CONTEXT = {
    "P": a_tensor(good=draw("k k") / 9),
    "Q": a_tensor(good=draw("k k") / 9),
    "depth": a_count(2),
}
STORED = paper.stored("sarsa-50")
EXPERIMENT = {
    "config": CONFIG,
    "path": Argument("results.json", {"None": None, "number": 3, "list": []}),
    "evaluation": anything(paper.Evaluation(2, 1, 1, 1, 1), {}, paper.Evaluation),
}


def run_in_a_folder(config: Any, path: Any, evaluation: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{path}" if isinstance(path, str) else path
        paper.run(config, path, evaluation, progress=False)


@dataclasses.dataclass(frozen=True)
class Row:
    """A function, and its arguments by name."""

    call: Callable[..., Any]
    arguments: dict[str, Argument]


def settings(cls: type, **arguments: Argument) -> Row:
    return Row(cls, arguments)


SARSA_SETTINGS = {"d": a_count(4), "alpha": STEP, "epsilon": SHARE}
ACTOR_SETTINGS = {"d": a_count(4), "m": a_count(5), "alpha": STEP, "beta": STEP, "epsilon": SHARE}
LOOP = {
    "algorithm": AN_ALGORITHM,
    "mdp": AN_MDP,
    "features": Argument(draw("B S A d"), {}),  # whatever the algorithm draws
    "parameters": a_tensor("B d"),
    "update": UPDATE,
}

A_RUN = Path(tempfile.mkdtemp()) / "a.run"
training.train(CONFIG.good, progress=False).save(A_RUN)

ROWS = {
    "algorithms.at_pairs": Row(
        lambda **given: algorithms.at_pairs(draw("B S A d"), **given),
        {"states": places(6), "actions": places(3)},
    ),
    "algorithms.at_states": Row(
        lambda **given: algorithms.at_states(draw("B S d"), **given), {"states": places(6)}
    ),
    "algorithms.ActorCritic": settings(algorithms.ActorCritic, **ACTOR_SETTINGS),
    "algorithms.SARSA": settings(algorithms.SARSA, **SARSA_SETTINGS),
    "algorithms.named": Row(algorithms.named, {"algorithm": anything("sarsa", "SARSA")}),
    "attention.iterate": Row(
        attention.iterate,
        {
            "H": a_tensor("B D n+1", "first last"),
            "P": a_tensor("D D"),
            "V": a_tensor("D D"),
            "passes": a_count(2),
        },
    ),
    "attention.join": Row(
        attention.join, {"P12": a_tensor("k q"), "V21": a_tensor("p k", "first")}
    ),
    "attention.linear_self_attention": Row(
        attention.linear_self_attention,
        {
            "H": a_tensor("B D n+1", "first last", **{"one column": draw("B D 1")}),
            "P": a_tensor("D D"),
            "V": a_tensor("D D"),
        },
    ),
    "attention.reduced_update": Row(
        attention.reduced_update,
        {
            "tokens": a_tensor("B n k"),
            "parameters": a_tensor("B p"),
            "P12": a_tensor("k q"),
            "V21": a_tensor("p k"),
            "P22": a_tensor("q q"),
            "V22": a_tensor("p q"),
        },
    ),
    "attention.softmax_attention": Row(
        attention.softmax_attention,
        {
            "H": a_tensor("B D n+1", "first last", **{"one column": draw("B D 1")}),
            "P": a_tensor("heads D D"),
            "V": a_tensor("heads D D"),
            "temperature": STEP,
        },
    ),
    "attention.softmax_update": Row(
        attention.softmax_update,
        {
            "tokens": a_tensor("B n k"),
            "parameters": a_tensor("B p"),
            "P12": a_tensor("heads k q"),
            "V21": a_tensor("heads p k"),
            "P22": a_tensor("heads q q"),
            "V22": a_tensor("heads p q"),
            "temperature": STEP,
        },
    ),
    "attention.split": Row(
        attention.split,
        {"P": a_tensor("D D"), "V": a_tensor("D D"), "n_parameters": a_count(4, 1, 10, 11)},
    ),
    "book.claims.claim": Row(
        claims.claim,
        {
            "label": anything("Measured: one", "", "no source", "a:b", "Measured: \n"),
            "value": but(
                anything(np.float64(1.0), [], "1", torch.ones(0), torch.ones(2).to("meta"), 1j), "3"
            ),
            "below": but(a_number(2.0), "None"),
            "above": but(a_number(0.0), "None"),
        },
    ),
    "constructions.actor_critic": Row(
        constructions.actor_critic,
        {"d": a_count(4), "m": a_count(5), **STEPS, "c": SCALE, "dtype": DTYPE},
    ),
    "constructions.one_head": Row(
        constructions.one_head,
        {
            "layout": LAYOUT,
            "meets": slots(SLOTS_P, ("r", "1")),
            "writes": slots(SLOTS_V, ("w", r"\phi")),
            "c": SCALE,
            "dtype": DTYPE,
        },
    ),
    "constructions.project": Row(
        constructions.project,
        {
            "P": a_tensor("k q"),
            "V": a_tensor("p k"),
            "P_star": a_tensor("k q", zero=torch.zeros(9, 5)),
            "V_star": a_tensor("p k", zero=torch.zeros(4, 9)),
        },
    ),
    "constructions.sarsa": Row(
        constructions.sarsa, {"d": a_count(4), "alpha": STEP, "c": SCALE, "dtype": DTYPE}
    ),
    "control.exact_returns": Row(
        control.exact_returns,
        {
            "mdp": AN_MDP,
            "policies": a_tensor(
                good=torch.full((4, 2, 6, 3), 1 / 3), free="first", ones=torch.ones(4, 2, 6, 3)
            ),
        },
    ),
    "control.improve": Row(
        control.improve,
        {
            **LOOP,
            "n_updates": a_count(2),
            "window": a_count(3),
            "keep_every": a_count(1),
            "epsilon": but(SHARE, "None"),
            "generator": GENERATOR,
        },
    ),
    "control.levels": Row(control.levels, {"mdp": AN_MDP}),
    "control.monte_carlo_return": Row(
        control.monte_carlo_return,
        {
            "mdp": AN_MDP,
            "policy": policy(),
            "episodes": a_count(2),
            "length": a_count(3),
            "generator": GENERATOR,
        },
    ),
    "families.Corridors": settings(
        families.Corridors,
        cells=a_count(4, 2),
        n_actions=a_count(3, 2),
        slip=SHARE,
        jump=SHARE,
        toll=a_number(0.1),
        start=anything("first", ["first"]),
        discount=DISCOUNT,
        features=A_LAW,
    ),
    "families.Grids": settings(
        families.Grids,
        size=a_count(4, 2),
        walls=a_number(0.2, -0.1, 1.0),
        slip=SHARE,
        discount=DISCOUNT,
        features=A_LAW,
    ),
    "families.Listed": settings(families.Listed, mdp=AN_MDP, features=A_LAW),
    "families.Mixture": settings(
        families.Mixture,
        families=anything([FAMILY], [], [3], FAMILY),
        weights=Argument([1.0], {"sum": [0.5], "negative": [-1.0], "two": [0.5, 0.5], "number": 3}),
        features=A_LAW,
    ),
    "families.Poor": settings(
        families.Poor,
        base=A_FAMILY,
        one_mdp=anything(True, "yes"),
        one_map=anything(True, "yes"),
        one_start=anything(True, "yes"),
        seed=a_count(0, 0),
        features=A_LAW,
    ),
    "families.RandomMDPs": settings(
        families.RandomMDPs,
        n_states=a_count(4),
        n_actions=a_count(2),
        discount=DISCOUNT,
        reward=anything("s,a", ["s,a"]),
        features=A_LAW,
    ),
    "features.one_hot_features": Row(
        lambda batch, shape, dtype, device: features.one_hot_features(
            batch, 6, shape, dtype=dtype, device=device
        ),
        {
            "batch": a_count(2),
            "shape": a_count(3),
            "dtype": DTYPE,
            "device": anything("cpu", "cpu:x", [], "cuda:99"),
        },
    ),
    "features.random_features": Row(
        lambda batch, shape, generator, dtype: features.random_features(
            batch, 6, shape, generator=generator, dtype=dtype
        ),
        {"batch": a_count(2), "shape": a_count(3), "generator": GENERATOR, "dtype": DTYPE},
    ),
    "features.sphere_features": Row(
        lambda batch, shape, generator, dtype: features.sphere_features(
            batch, 6, shape, generator=generator, dtype=dtype
        ),
        {"batch": a_count(2), "shape": a_count(3), "generator": GENERATOR, "dtype": DTYPE},
    ),
    "features.sparse_features": Row(
        lambda batch, shape, generator, dtype: features.sparse_features(
            batch, 6, shape, generator=generator, dtype=dtype
        ),
        {"batch": a_count(2), "shape": a_count(3), "generator": GENERATOR, "dtype": DTYPE},
    ),
    "flow.gradient_flow": Row(
        flow.gradient_flow,
        {
            "objective": OBJECTIVE,
            **BLOCKS,
            "times": a_tensor(
                good=torch.tensor([0.0, 0.1]).double(),
                free="first last",
                falling=torch.tensor([0.0, -1.0]).double(),
                late=torch.tensor([1.0, 2.0]).double(),
                single=torch.tensor([0.0]).double(),
            ),
            "tolerance": STEP,
        },
    ),
    "flow.imbalance": Row(
        flow.imbalance,
        {
            "P12": but(double("k q", "first last dtype"), "an axis too many"),
            "V21": but(double("p k", "first last dtype"), "an axis too many"),
        },
    ),
    "flow.normal_part": Row(
        flow.normal_part, {"c": SCALE, "U": double("k q"), "W": double("p k"), **STAR}
    ),
    "flow.predicted_scale": Row(
        flow.predicted_scale,
        {
            "imbalance": a_number(0.3),
            "P12_star": but(a_star("k q"), "an axis too many", "an axis too few", "no axis"),
            "V21_star": but(a_star("p k"), "an axis too many", "an axis too few", "no axis"),
        },
    ),
    "flow.tangent": Row(flow.tangent, {"c": SCALE, **STAR}),
    "classroom.given.broken_construction": Row(
        given.broken_construction, {"d": a_count(3), "alpha": STEP}
    ),
    "classroom.given.star": Row(given.star, {"d": a_count(3), "alpha": STEP}),
    "in_context_td.Settings": settings(
        in_context_td.Settings,
        depth=a_count(2),
        d=a_count(4),
        n_states=a_count(4, 3),
        n=a_count(3),
        discount=DISCOUNT,
        gain=STEP,
        weight_decay=a_number(0.1, -1),
        chains=a_count(2),
        positions=a_count(2),
        steps=a_count(2),
        learning_rate=STEP,
        final=STEP,
        seed=a_count(0, 0),
    ),
    "in_context_td.boyan_chains": Row(
        in_context_td.boyan_chains,
        {
            "batch": a_count(2),
            "n_states": a_count(5, 3),
            "discount": DISCOUNT,
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "in_context_td.construction": Row(
        in_context_td.construction, {"d": a_count(4), "alpha": STEP, "c": SCALE, "dtype": DTYPE}
    ),
    "in_context_td.draw_stretch": Row(
        in_context_td.draw_stretch,
        {
            "mdp": AN_MDP,
            "phi": a_tensor("B S d", "last"),
            "n": a_count(3),
            "positions": a_count(2, 0),
            "generator": GENERATOR,
        },
    ),
    "in_context_td.gram": Row(
        in_context_td.gram, {"tokens": a_tensor("B n k", "first last dtype")}
    ),
    "in_context_td.looped_transformer": Row(
        in_context_td.looped_transformer,
        {"Z": a_tensor("B k q", "first last"), **CONTEXT, "n_queries": a_count(2, 1, 5)},
    ),
    "in_context_td.predict": Row(
        in_context_td.predict,
        {"moments": a_tensor("B k k"), "query": a_tensor("B m d"), **CONTEXT},
    ),
    "in_context_td.prompt": Row(in_context_td.prompt, {**WINDOW, "query": a_tensor("B m d")}),
    "in_context_td.read_values": Row(
        in_context_td.read_values,
        {"Z": a_tensor("B k q", "first last dtype"), "n_queries": a_count(2, 1, 5, 6)},
    ),
    "in_context_td.train": Row(
        in_context_td.train,
        {
            "settings": anything(
                in_context_td.Settings(steps=1, chains=1), {}, in_context_td.Settings
            )
        },
    ),
    "landscape.symmetry_blocks": Row(landscape.symmetry_blocks, {"objective": OBJECTIVE, **BLOCKS}),
    "book.interactive.Slider": Row(
        interactive.Slider,
        {
            "draw": anything(drawing, lambda value: value),
            "values": Argument([1, 2], {"None": None, "number": 3, "none": [], "one": [1]}),
            "label": Argument("c", {"None": None, "number": 3, "blank": " "}),
            "alt": Argument("a figure", {"None": None, "number": 3, "blank": " "}),
            "start": a_count(0, 0, 2),
        },
    ),
    "loop.interact": Row(
        lambda **given: next(loop.interact(**given)),
        {**LOOP, "state": STATE, "n": a_count(3), "generator": GENERATOR},
    ),
    "mdps.TabularMDP": Row(
        mdps.TabularMDP,
        {
            "transition": a_tensor(good=MDP.transition, twice=2 * MDP.transition),
            "reward": a_tensor(good=MDP.reward),
            "initial": a_tensor(good=MDP.initial, twice=2 * MDP.initial),
            "discount": DISCOUNT,
        },
    ),
    "mdps.average_reward": Row(mdps.average_reward, {"mdp": AN_MDP, "policy": policy()}),
    "mdps.check_policy": Row(mdps.check_policy, {"mdp": AN_MDP, "policy": policy()}),
    "mdps.concatenate": Row(
        lambda mdps: join(MDP, mdps),
        {"mdps": anything(MDP, MDP.transition, dataclasses.replace(MDP, discount=0.9))},
    ),
    "mdps.expected_return": Row(mdps.expected_return, {"mdp": AN_MDP, "policy": policy()}),
    "mdps.greedy_policy": Row(mdps.greedy_policy, {"q": a_tensor("B S A", "first last dtype")}),
    "mdps.policy_action_value": Row(mdps.policy_action_value, {"mdp": AN_MDP, "policy": policy()}),
    "mdps.policy_value": Row(mdps.policy_value, {"mdp": AN_MDP, "policy": policy()}),
    "mdps.random_mdps": Row(
        mdps.random_mdps,
        {
            "batch": a_count(2),
            "n_states": a_count(6),
            "n_actions": a_count(3),
            "discount": DISCOUNT,
            "reward": anything("s,a", "a,s", "", ["s,a"]),
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "mdps.stationary_distribution": Row(
        mdps.stationary_distribution, {"mdp": AN_MDP, "policy": policy()}
    ),
    "mdps.uniform_on_simplex": Row(
        lambda shape, generator, dtype: mdps.uniform_on_simplex(
            2, shape, generator=generator, dtype=dtype
        ),
        {"shape": a_count(3), "generator": GENERATOR, "dtype": DTYPE},
    ),
    "mdps.value_iteration": Row(mdps.value_iteration, {"mdp": AN_MDP}),
    "objective.Objective": Row(
        objective.Objective,
        {
            "sigma": a_tensor("N k k"),
            "column": a_tensor("N q", "last"),
            "target": a_tensor("N p", "last"),
            "n": a_count(3),
        },
    ),
    "experiments.paper.Evaluation": settings(
        paper.Evaluation,
        n_mdps=a_count(2),
        n_updates=a_count(2),
        every=a_count(1),
        episodes=a_count(2),
        length=a_count(2),
    ),
    "experiments.paper.Experiment": Row(paper.Experiment, EXPERIMENT),
    "experiments.paper.run": Row(run_in_a_folder, EXPERIMENT),
    "experiments.paper.stored": Row(
        paper.stored, {"name": anything("sarsa-50", "", "../sarsa-50", ["sarsa-50"])}
    ),
    "experiments.paper.weights": Row(
        paper.weights, {"results": anything(STORED, {}, {"config": {}}, [])}
    ),
    "book.plotting.block_matrix": Row(
        plotting.block_matrix,
        {
            "matrix": a_tensor("k q", "first last dtype"),
            "rows": anything([("x", 9)], [("x", 8)], [("x", 9), ("y", 1)], [9], [("x", None)], []),
            "columns": anything([("w", 5)], [("w", 4)], [5], []),
            "limit": but(a_number(1.0, 0, -1), "None"),
        },
    ),
    "book.plotting.loop": Row(plotting.loop, {}),
    "book.plotting.losses": Row(
        lambda **given: plotting.losses(**given, ax=plt.figure().add_subplot()),
        {
            "steps": anything(torch.arange(7), torch.ones(3), [1, 2], torch.ones(7, 2)),
            "values": but(
                a_tensor("K", "first last dtype"), "empty", "NaN", "infinity", "half precision"
            ),  # a run can diverge, and is drawn whatever it was computed in
            "smooth": a_count(1, 1, 8),
        },
    ),
    "book.plotting.mdp_graph": Row(
        plotting.mdp_graph,
        {
            "mdp": AN_MDP,
            "policy": policy(),
            "values": a_tensor("B S"),
            "index": a_count(1, 0, 2),
            "threshold": SHARE,
        },
    ),
    "book.plotting.prompt": Row(
        plotting.prompt,
        {
            "H": a_tensor(good=draw("D D")[:, :4].repeat(2, 1)[:14], free="last dtype"),
            "layout": LAYOUT,
        },
    ),
    "book.plotting.returns": Row(
        plotting.returns,
        {
            "curves": anything(
                CURVES,
                {},
                [1],
                {"teacher": CURVES["teacher"][1]},
                {"teacher": (1, 2)},
                {"teacher": (torch.arange(3), draw("K B"))},
                {"teacher": (torch.arange(7), draw("K"))},
                {"teacher": 1},
            ),
            "band": anything((0.25, 0.75), (0.5,), (-0.1, 0.5), (0.5, 1.1), (0.9, 0.1), 0.5),
        },
    ),
    "book.plotting.use_style": Row(mpl.rc_context()(plotting.use_style), {}),
    "book.plotting.weights": Row(
        plotting.weights,
        {
            "P": a_tensor(good=torch.rand(14, 14)),
            "V": a_tensor(good=torch.rand(14, 14)),
            "layout": LAYOUT,
        },
    ),
    "policies.epsilon_greedy": Row(
        policies.epsilon_greedy, {"q": a_tensor("B S A", "first last dtype"), "epsilon": SHARE}
    ),
    "policies.explore": Row(policies.explore, {"policy": policy("first dtype"), "epsilon": SHARE}),
    "policies.initial_states": Row(
        policies.initial_states, {"mdp": AN_MDP, "generator": GENERATOR}
    ),
    "policies.mean_features": Row(
        policies.mean_features, {"phi": a_tensor("B S A m", "last"), "policy": policy()}
    ),
    "policies.random_policy": Row(policies.random_policy, {"mdp": AN_MDP, "generator": GENERATOR}),
    "policies.rollout": Row(
        policies.rollout,
        {
            "mdp": AN_MDP,
            "policy": policy(),
            "n": a_count(3),
            "state": STATE,
            "generator": GENERATOR,
        },
    ),
    "policies.softmax_policy": Row(
        policies.softmax_policy, {"preferences": a_tensor("B S A", "first last dtype")}
    ),
    "policies.softmax_score": Row(
        policies.softmax_score, {"phi": a_tensor("B S A m", "last"), "policy": policy()}
    ),
    "policies.uniform_policy": Row(policies.uniform_policy, {"mdp": AN_MDP}),
    "prompts.actor_critic_layout": Row(
        prompts.actor_critic_layout, {"d": a_count(4), "m": a_count(5)}
    ),
    "prompts.actor_critic_prompt": Row(prompts.actor_critic_prompt, ACTOR),
    "prompts.actor_critic_tokens": Row(
        prompts.actor_critic_tokens,
        {
            **{k: v for k, v in ACTOR.items() if k not in ("lam", "w")},
            "scores": a_tensor("B n m", "last"),
        },
    ),
    "prompts.assemble": Row(
        prompts.assemble,
        {"tokens": a_tensor("B n k", "last"), "parameters": a_tensor("B p", "last")},
    ),
    "prompts.parameter_column": Row(
        prompts.parameter_column, {"parameters": a_tensor("B p", "first last dtype")}
    ),
    "prompts.sarsa_layout": Row(prompts.sarsa_layout, {"d": a_count(4)}),
    "prompts.sarsa_prompt": Row(prompts.sarsa_prompt, TRANSITIONS),
    "prompts.sarsa_tokens": Row(prompts.sarsa_tokens, WINDOW),
    "richness.alignment": Row(
        richness.alignment,
        {
            "matrix": a_tensor(
                good=(draw("D D") @ draw("D D").mT).double() + torch.eye(11),
                singular=torch.ones(11, 11, dtype=torch.float64),
            ),
            "P12_star": but(double("S"), "an axis too many", "an axis too few", "no axis"),
            "V21_star": but(double("q"), "an axis too many", "an axis too few", "no axis"),
        },
    ),
    "richness.curvature": Row(
        richness.curvature,
        {"objective": OBJECTIVE, **BLOCKS, "tolerance": a_number(1e-11, 0, 1)},
    ),
    "richness.guarantee": Row(
        richness.guarantee,
        {
            "constants": anything(richness.Richness(1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.5), (1.0,) * 7),
            "d": a_count(4),
            "alpha": STEP,
            "c": STEP,
            "width": a_number(0.1, -0.1, 1.0),
            "fraction": a_number(0.5, -0.1, 1.0),
        },
    ),
    "richness.richness": Row(
        richness.richness,
        {
            "objective": OBJECTIVE,
            **STAR,
            "draws": a_count(8, 1, 3),
            "bound_features": a_number(9.0, 0, -1),
            "bound_reward": a_number(9.0, 0, -1),
        },
    ),
    "richness.smallest_eigenvalue": Row(
        richness.smallest_eigenvalue,
        {"matrices": a_tensor("N k k", "first dtype", few=draw("n k k"))},
    ),
    "students.LinearBlock": Row(
        students.LinearBlock,
        {
            "algorithm": AN_ALGORITHM,
            "gain": a_number(0.1, -1),
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "students.LiteralBlock": Row(
        students.LiteralBlock,
        {
            "algorithm": AN_ALGORITHM,
            "gain": a_number(0.1, -1),
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "students.Repeated": Row(students.Repeated, {"student": A_STUDENT, "passes": a_count(2)}),
    "students.SoftmaxBlock": Row(
        students.SoftmaxBlock,
        {
            "algorithm": AN_ALGORITHM,
            "gain": a_number(0.1, -1),
            "heads": a_count(2),
            "temperature": STEP,
            "generator": GENERATOR,
            "dtype": DTYPE,
        },
    ),
    "students.as_update": Row(
        students.as_update, {"algorithm": AN_ALGORITHM, "student": A_STUDENT}
    ),
    "teachers.actor_critic_update": Row(teachers.actor_critic_update, {**ACTOR, **STEPS}),
    "teachers.differential_sarsa_update": Row(
        teachers.differential_sarsa_update,
        {
            "average_reward": a_tensor("B 1"),
            **{k: v for k, v in TRANSITIONS.items() if k != "discount"},
            **STEPS,
        },
    ),
    "teachers.expected_sarsa_update": Row(
        teachers.expected_sarsa_update, {**FAN, "probabilities": probabilities()}
    ),
    "teachers.least_squares_td": Row(teachers.least_squares_td, TRANSITIONS),
    "teachers.n_step_sarsa_update": Row(
        teachers.n_step_sarsa_update,
        {
            "w": a_tensor("B d"),
            "phi": a_tensor("B n+1 d"),
            "rewards": a_tensor("B n"),
            "discount": DISCOUNT,
            "alpha": STEP,
            "steps": a_count(2),
        },
    ),
    "teachers.q_actor_critic_update": Row(
        teachers.q_actor_critic_update,
        {**TRANSITIONS, "lam": a_tensor("B m"), "scores": a_tensor("B n m"), **STEPS},
    ),
    "teachers.q_learning_update": Row(teachers.q_learning_update, FAN),
    "teachers.reinforce_update": Row(
        teachers.reinforce_update, {k: v for k, v in ACTOR.items() if k != "phi_v_next"} | STEPS
    ),
    "teachers.residual_gradient_update": Row(
        teachers.residual_gradient_update, {**TRANSITIONS, "alpha": STEP}
    ),
    "teachers.sarsa_lambda_update": Row(
        teachers.sarsa_lambda_update, {**TRANSITIONS, "alpha": STEP, "trace_decay": SHARE}
    ),
    "teachers.sarsa_update": Row(teachers.sarsa_update, {**TRANSITIONS, "alpha": STEP}),
    "teachers.td_errors": Row(teachers.td_errors, TRANSITIONS),
    "teachers.td_system": Row(teachers.td_system, WINDOW),
    "teachers.td_update": Row(
        teachers.td_update,
        {
            **TRANSITIONS,
            "alpha": STEP,
            "ratios": but(a_tensor("B n", negative=-draw("B n")), "None"),
        },
    ),
    "training.TrainingConfig": settings(
        training.TrainingConfig,
        algorithm=anything("sarsa", "SARSA", algorithms.SARSA, []),
        n_mdps=a_count(2),
        frames=a_count(2),
        batch=a_count(1),
        window=a_count(3),
        family=A_FAMILY,
        learning_rate=STEP,
        decay=a_number(0.9, 0, 1.1),
        decay_every=a_count(2),
        gain=STEP,
        seed=a_count(0, 0),
        dtype=anything("float32", "float16", torch.float16, []),
        device=anything("cpu", "cpu:x", []),
    ),
    "training.draw_situation": Row(
        training.draw_situation, {"config": CONFIG, "batch": a_count(2), "generator": GENERATOR}
    ),
    "training.draw_windows": Row(
        training.draw_windows,
        {
            "config": CONFIG,
            "batch": a_count(2),
            "frames": a_count(2),
            "update": but(UPDATE, "None"),
            "generator": GENERATOR,
        },
    ),
    "training.fit": Row(
        lambda **given: next(training.fit(batches=[], **given), None),
        {
            "student": A_STUDENT,
            "optimiser": anything(torch.optim.SGD(A_STUDENT.good.parameters()), torch.optim.SGD),
        },
    ),
    "training.load_run": Row(
        training.load_run,
        {"path": Argument(A_RUN, {"None": None, "number": 3, "missing": "no.run", "folder": "."})},
    ),
    "training.mimic": Row(
        lambda **given: next(training.mimic(**given)),
        {"config": CONFIG, "driver": anything("student", ["student"])},
    ),
    "training.relative_error": Row(
        training.relative_error,
        {"config": CONFIG, "student": A_STUDENT, "generator": GENERATOR},
    ),
    "training.check_memory": Row(training.check_memory, {"config": CONFIG}),
    "training.memory_needed": Row(training.memory_needed, {"config": CONFIG}),
    "training.train": Row(
        lambda **given: training.train(**given, progress=False),
        {
            "config": CONFIG,
            "student": but(A_STUDENT, "None"),
            "watch": but(anything(lambda step: False, []), "None"),
            "checkpoint": Argument(None, {"number": 3, "no folder": "nowhere/at/all", "list": []}),
            "checkpoint_every": a_number(1.0, -1),
        },
    ),
    "windows.Windows": Row(
        windows.Windows,
        {
            "tokens": a_tensor("B n k", "last"),
            "parameters": a_tensor("B p"),
            "target": a_tensor("B p"),
        },
    ),
    "windows.collect": Row(
        windows.collect,
        {
            **{name: argument for name, argument in LOOP.items() if name != "update"},
            "update": but(UPDATE, "None"),
            "state": STATE,
            "frames": a_count(2),
            "n": a_count(3),
            "generator": GENERATOR,
        },
    ),
    "worlds.Agent": Row(
        worlds.Agent,
        {
            "algorithm": AN_ALGORITHM,
            "features": Argument(draw("1 S A d"), {}),
            "update": UPDATE,
            "discount": DISCOUNT,
            "window": a_count(3),
            "parameters": but(a_tensor("1 d"), "None"),
            "generator": GENERATOR,
        },
    ),
    "worlds.from_gymnasium": Row(
        worlds.from_gymnasium,
        {
            "environment": Argument("FrozenLake-v1", {"None": None, "number": 3, "mdp": MDP}),
            "discount": DISCOUNT,
            "dtype": DTYPE,
        },
    ),
    "worlds.restarting": Row(
        worlds.restarting,
        {"mdp": anything(worlds.from_gymnasium("FrozenLake-v1", 0.9), MDP, MDP.transition)},
    ),
    "worlds.to_gymnasium": Row(
        worlds.to_gymnasium,
        {"mdp": AN_MDP, "index": a_count(1, 0, 2), "terminal": but(a_count(2, 0, 6), "None")},
    ),
    "worlds.zero_at_terminal": Row(
        worlds.zero_at_terminal,
        # an axis too few: features of states
        {"features": but(a_tensor("B S A d", "first last dtype"), "an axis too few")},
    ),
    "zoo.DifferentialSARSA": settings(zoo.DifferentialSARSA, **SARSA_SETTINGS, beta=STEP),
    "zoo.ExpectedSARSA": settings(zoo.ExpectedSARSA, **SARSA_SETTINGS),
    "zoo.NStepSARSA": settings(zoo.NStepSARSA, **SARSA_SETTINGS, steps=a_count(2)),
    "zoo.OffPolicyTD": settings(zoo.OffPolicyTD, d=a_count(4), alpha=STEP),
    "zoo.QActorCritic": settings(zoo.QActorCritic, **ACTOR_SETTINGS),
    "zoo.QLearning": settings(zoo.QLearning, **SARSA_SETTINGS, n_actions=a_count(3)),
    "zoo.Reinforce": settings(zoo.Reinforce, **ACTOR_SETTINGS),
    "zoo.ResidualGradient": settings(zoo.ResidualGradient, **SARSA_SETTINGS),
    "zoo.SARSALambda": settings(zoo.SARSALambda, **SARSA_SETTINGS, trace_decay=SHARE),
    "zoo.TD": settings(zoo.TD, d=a_count(4), alpha=STEP),
}

# --- public names without a row, and why

RECORDS = "a record: what it holds is checked where it is used"
INNER = "part of every step of a window: what it is given has been checked"
SENT = "answers and questions as data, in any form: tests/test_classroom.py"
TOY = "called with what a question draws"
ABSTRACT = "abstract"
MODULES_WITHOUT = {
    "experiments.bench": "measures, for the command line: tests/test_bench.py",
    "experiments._files": "reads and writes for its wing: tests/test_paper.py",
    "checks": "the checks themselves: tests/test_checks.py",
    "classroom.exchange": SENT,
    "classroom.homework": SENT,
}
WITHOUT = {
    "classroom.given.apply_head": "`attention.reduced_update` under the names of an assignment",
    "classroom.given.parts_of_algorithm_1": TOY,
    "classroom.given.parts_of_the_loop": TOY,
    "algorithms.Algorithm": ABSTRACT,
    "families.Family": ABSTRACT,
    "mdps.cumulative": INNER,
    "prompts.in_between": INNER,
    "prompts.since_start": INNER,
    "policies.select": INNER,
    "training.FarFromTeacher": "a warning",
    "training.Run": RECORDS,
    "training.describe": "takes anything that a configuration holds",
    "windows.stream": "what `collect` is made of",
    "zoo.OneHead": ABSTRACT,
}


def public_names() -> set[str]:
    """Return every function and class that a module of the library defines under a public name."""
    names = set()
    for module in pkgutil.walk_packages(icrl_lib.__path__, "icrl_lib."):
        path = module.name.removeprefix("icrl_lib.")
        if path.startswith(("_", *MODULES_WITHOUT)):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            here = getattr(value, "__module__", None) == module.name
            if (
                here
                and not name.startswith("_")
                and (inspect.isroutine(value) or inspect.isclass(value))
            ):
                record = inspect.isclass(value) and issubclass(value, tuple)
                if not record:
                    names.add(f"{path}.{name}")
    return names


def test_every_public_name_has_a_row_or_a_reason():
    assert public_names() == ROWS.keys() | WITHOUT.keys()


def test_no_name_has_both_a_row_and_a_reason():
    assert not ROWS.keys() & WITHOUT.keys()


@pytest.mark.parametrize("name", ROWS)
def test_rows_name_the_arguments_of_the_function(name):
    row = ROWS[name]
    module, _, function = name.rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(f"icrl_lib.{module}"), function))
    assert row.arguments.keys() <= known.parameters.keys()


def call(row: Row, **replaced: Any) -> Any:
    given = {name: argument.good for name, argument in row.arguments.items()} | replaced
    try:
        return row.call(**given)
    finally:
        plt.close("all")


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_good_arguments_pass(row, capsys):
    call(row)


CASES = [
    pytest.param(row, argument, id=f"{name}-{argument}")
    for name, row in ROWS.items()
    for argument in row.arguments
]


def fault(row: Row, argument: str, value: Any, pattern: str) -> str | None:
    """Say what is wrong with how a bad value is met, or nothing."""
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (which one is judged below)
            call(row, **{argument: value})
    except pytest.fail.Exception:
        return "no error"
    error = caught.value
    if not isinstance(error, ValueError | TypeError):
        return f"a {type(error).__name__}: {str(error)[:80]}"
    if not Path(caught.traceback[-1].path).is_relative_to(PACKAGE):
        return f"raised in {caught.traceback[-1].path}: {str(error)[:80]}"
    if not re.search(pattern, str(error)):
        return f"does not name it: {str(error)[:80]}"
    return None


@pytest.mark.parametrize(("row", "argument"), CASES)
def test_bad_arguments_are_refused_by_name(row, argument):
    """The message begins with the name, with that of an attribute of it, or with several."""
    pattern = rf"^([\w., ]+, )?{argument}\b"
    faults = {
        kind: fault(row, argument, value, pattern)
        for kind, value in row.arguments[argument].bad.items()
    }
    assert {kind: words for kind, words in faults.items() if words} == {}


@pytest.mark.parametrize(
    ("row", "argument"),
    [case for case in CASES if case.values[0].arguments[case.values[1]].mismatched],
)
def test_arguments_that_disagree_are_refused_by_name(row, argument):
    faults = {
        kind: fault(row, argument, value, rf"\b{argument}\b")
        for kind, value in row.arguments[argument].mismatched.items()
    }
    assert {kind: words for kind, words in faults.items() if words} == {}
