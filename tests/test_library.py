"""What a researcher does with the library: one to ten lines each, with public names alone."""

import dataclasses
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from icrl_lib import families, mdps, students, training, zoo
from icrl_lib.algorithms import SARSA
from icrl_lib.control import exact_returns, improve
from icrl_lib.training import TrainingConfig, load_run, mimic, relative_error, train

SMALL = TrainingConfig(
    SARSA(d=3, alpha=0.3),
    n_mdps=20 * 64,
    batch=64,
    frames=20,
    window=8,
    family=families.RandomMDPs(4, 2),
    learning_rate=3e-2,
    decay=0.8,
    decay_every=128,
)


@pytest.fixture(scope="module")
def run():
    return train(SMALL)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_train_on_a_family_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Rings(families.Family):
        size: int = 5

        def draw(self, batch, *, generator, dtype=torch.float32):
            step = torch.eye(self.size, dtype=dtype)
            moves = torch.stack([step.roll(1, 1), step.roll(-1, 1)], 1).repeat(batch, 1, 1, 1)
            pays = torch.rand(batch, 1, 1, self.size, generator=generator, dtype=dtype)
            first = torch.full((batch, self.size), 1 / self.size, dtype=dtype)
            return mdps.TabularMDP(moves, pays.expand_as(moves).clone(), first, 0.9)

    assert train(replace(SMALL, family=Rings())).error < 1e-2


def test_train_a_student_of_ones_own():
    """Two layers of softmax attention: not the teacher, but better than no update."""

    class Two(nn.Module):
        def __init__(self, algorithm):
            super().__init__()
            one, two = (students.SoftmaxBlock(algorithm, 2, generator=generator(s)) for s in (0, 1))
            self.one, self.two = one, two

        def forward(self, tokens, parameters):
            return self.two(tokens, self.one(tokens, parameters))

    run = train(SMALL, Two(SMALL.algorithm))
    assert run.error < 0.95
    assert relative_error(replace(SMALL, n_mdps=50), run.student, generator=generator()) < 0.95


def test_train_on_a_mixture_and_on_a_list():
    some = families.Listed(mdps.random_mdps(5, 4, 2, generator=generator()))
    mixed = families.Mixture([families.RandomMDPs(4, 2, reward="s,a"), some], [0.3, 0.7])
    for family in (some, mixed):
        assert train(replace(SMALL, family=family)).error < 1e-2


def test_watch_and_stop_early():
    seen = []

    def watch(step):
        seen.append(step.error)
        return step.error < 0.1

    run = train(SMALL, watch=watch)
    assert seen[-1] < 0.1 < min(seen[:-1])
    assert run.n_steps == len(seen) == len(run.losses) == run.steps[-1]
    in_hand = next(step for step in mimic(SMALL) if step.error < 0.1)
    assert in_hand.number == run.n_steps
    assert torch.equal(in_hand.student.P12, run.student.P12)


def test_ten_thousand_windows_as_tensors():
    data = training.draw_windows(SMALL, 200, 50, generator=generator())
    assert data.tokens.shape == (10_000, 8, 7)
    assert data.target.shape == (10_000, 3)
    P, V = SMALL.algorithm.construction()
    assert data.error(students.LinearBlock.from_weights(SMALL.algorithm, P, V)) < 1e-6


def test_a_new_teacher_in_one_class():
    """Half a step along the residual gradient, half along SARSA."""

    @dataclasses.dataclass(frozen=True)
    class Halfway(zoo.ResidualGradient):
        name = "halfway"

        @property
        def writes(self):
            return {("w", r"\phi"): self.alpha, ("w", r"\gamma\phi^+"): -self.alpha / 2}

        def teach(self, parameters, observation):
            one = zoo.ResidualGradient.teach(self, parameters, observation)
            return (one + SARSA.teach(self, parameters, observation)) / 2

    run = train(replace(SMALL, algorithm=Halfway(d=3, alpha=0.3)))
    assert run.projection().cosine > 0.999


def test_save_load_move_and_continue(run, tmp_path):
    run.save(tmp_path / "block.run")
    loaded = load_run(tmp_path / "block.run")
    assert loaded.config == run.config
    assert torch.equal(loaded.P, run.P)
    exact = loaded.to(dtype="float64")
    assert exact.P.dtype == torch.float64
    more = train(replace(exact.config, n_mdps=640, learning_rate=1e-4, seed=1), exact.student)
    assert max(more.errors[0], more.error) < 1e-5


def test_a_trained_block_acts(run):
    agents = training.draw_situation(SMALL, 50, generator(2))[:3]
    kept = improve(SMALL.algorithm, *agents, run.update, 100, window=8, generator=generator(3))
    returns = exact_returns(agents[0], kept.policies).mean(-1)
    assert returns[-1] > returns[0]


def test_a_run_says_how_far_it_is_and_the_projection_is_refused_where_nothing_follows(run):
    assert repr(run) == f"Run of sarsa: LinearBlock, 400 steps, relative error {run.error:.1e}"

    @dataclasses.dataclass(frozen=True)
    class OtherTeacher(SARSA):
        name = "other"

        def teach(self, parameters, observation):
            return parameters - super().teach(parameters, observation)

    other = replace(run, config=replace(SMALL, algorithm=OtherTeacher(d=3, alpha=0.3)))
    with pytest.raises(ValueError, match=r"^algorithm: expected a construction that performs"):
        other.projection()
    with pytest.warns(training.FarFromTeacher, match="relative error 0.99"):
        train(replace(SMALL, n_mdps=64, frames=2))


def test_improve_keeps_no_graph(run):
    agents = training.draw_situation(SMALL, 2, generator())[:3]
    update = students.as_update(SMALL.algorithm, run.student)
    kept = improve(SMALL.algorithm, *agents, update, 2, window=8, generator=generator())
    assert not kept.parameters.requires_grad
    loop = training.interact(
        SMALL.algorithm, *training.draw_situation(SMALL, 2, generator()), update, n=8,
        generator=generator(),
    )  # fmt: skip
    frames = list(islice(loop, 3))
    assert frames[-1].updated.requires_grad
    assert not frames[-1].parameters.requires_grad


MIXED_UP = {
    "one-hot features with another d": (
        lambda: train(replace(SMALL, family=families.RandomMDPs(4, 2, features="one_hot"))),
        r"^d: expected 4 \* 2 = 8 one-hot features, got 3",
    ),
    "features of another batch": (
        lambda: SMALL.algorithm.policy(torch.zeros(3, 4, 2, 3), torch.zeros(2, 3)),
        r"^parameters, features: expected one batch size B, got 2 of parameters and 3",
    ),
    "float32 features in float64": (
        lambda: SMALL.algorithm.policy(torch.zeros(2, 4, 2, 3), torch.zeros(2, 3).double()),
        r"^parameters, features: expected one dtype",
    ),
    "another number of actions": (
        lambda: train(replace(SMALL, algorithm=zoo.QLearning(d=3, n_actions=3))),
        r"^n_actions: expected the MDPs' 2, got 3",
    ),
    "a module with one argument": (
        lambda: train(SMALL, nn.Linear(7, 3)),
        r"^student: expected a module that takes tokens of shape \(2, 8, 7\) and parameters",
    ),
    "a module without parameters": (
        lambda: train(SMALL, nn.Identity()),
        r"^student: .* it has none",
    ),
    "another width": (
        lambda: train(SMALL, students.LinearBlock(SARSA(d=4), generator=generator())),
        r"^student: expected a module that takes tokens",
    ),
    "a rate that diverges": (
        lambda: train(replace(SMALL, learning_rate=1e30)),
        r"^learning_rate: training has diverged at step \d+, with learning rate 1e\+30",
    ),
}


@pytest.mark.parametrize(("mistake", "says"), MIXED_UP.values(), ids=MIXED_UP.keys())
def test_a_mistake_is_blamed_on_what_is_wrong(mistake, says):
    with pytest.raises(ValueError, match=says):
        mistake()
