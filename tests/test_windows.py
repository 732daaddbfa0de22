"""A data set of windows: how it is drawn, and how batches of it are."""

from itertools import islice

import pytest
import torch
from samples import F64, close, config

from icrl_lib.loop import interact
from icrl_lib.training import draw_situation, draw_windows
from icrl_lib.windows import Windows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count):
    """Windows that carry their number in every entry."""
    number = torch.arange(count, dtype=F64)
    tokens, vectors = number.reshape(-1, 1, 1).expand(-1, 3, 5), number.reshape(-1, 1).expand(-1, 2)
    return Windows(tokens, vectors, vectors)


@pytest.mark.parametrize("update", [None, lambda w, _: w], ids=["teacher", "nobody"])
def test_windows_are_drawn_as_a_configuration_says(update):
    cfg, again = config(window=6), generator(1)
    drawn = draw_windows(cfg, 4, 3, update=update, generator=generator(1))
    agents = draw_situation(cfg, 4, again)
    drive = update or cfg.algorithm.teach
    frames = list(islice(interact(cfg.algorithm, *agents, drive, n=6, generator=again), 3))
    close(drawn.tokens, torch.cat([cfg.algorithm.tokens(f.observation) for f in frames]), atol=0)
    close(drawn.parameters, torch.cat([f.parameters for f in frames]), atol=0)
    close(drawn.target, torch.cat([cfg.algorithm.teach(*frame[:2]) for frame in frames]), atol=0)


def test_batches_take_every_window_equally_often():
    batches = list(numbered(4).batches(50, 80, generator=generator()))
    assert {batch.tokens.shape for batch in batches} == {(50, 3, 5)}
    counts = torch.stack([b.target[:, 0] for b in batches]).flatten().long().bincount()
    assert counts.sum() == 4000
    assert (counts - 1000).abs().max() < 110  # four standard deviations


def test_batches_keep_windows_whole():
    for batch in numbered(9).batches(5, 3, generator=generator()):
        close(batch.tokens, batch.parameters[:, :1, None].expand(-1, 3, 5), atol=0)
        close(batch.target, batch.parameters, atol=0)


def test_batches_are_checked_when_they_are_asked_for():
    for name, bad in (("size", 0), ("steps", 1.5), ("generator", None)):
        arguments = {"size": 2, "steps": 3, "generator": generator(), name: bad}
        with pytest.raises(ValueError, match=f"^{name}: "):
            numbered(4).batches(**arguments)
