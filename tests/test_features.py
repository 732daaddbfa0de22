"""Feature tables: their distribution, their shape, their coordinates."""

import itertools

import pytest
import torch

from icrl_lib.features import one_hot_features, random_features


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_features_have_shape_and_dtype(generator, shape, dtype):
    features = random_features(5, *shape, generator=generator, dtype=dtype)
    assert features.shape == (5, *shape)
    assert features.dtype == dtype


def test_random_features_are_uniform(generator):
    """On (-1, 1): mean 0, variance 1/3, fourth moment 1/5, and both ends are reached."""
    features = random_features(100, 20, 20, generator=generator, dtype=torch.float64)
    moments = torch.stack([(features**k).mean() for k in (1, 2, 4)])
    expected = torch.tensor([0, 1 / 3, 1 / 5], dtype=torch.float64)
    torch.testing.assert_close(moments, expected, rtol=0, atol=0.01)
    assert -1 < features.min() < -0.999
    assert 0.999 < features.max() < 1


def test_random_features_are_independent(generator):
    features = random_features(20_000, 2, 3, generator=generator).flatten(1)
    torch.testing.assert_close(features.T.corrcoef(), torch.eye(6), rtol=0, atol=0.03)


def test_random_features_follow_the_seed():
    first, again, other = (
        random_features(2, 3, 4, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_hot_features_of_states():
    features = one_hot_features(2, 3)
    assert features.tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2


def test_one_hot_features_of_pairs():
    """The pair (s, a) of 3 states and 2 actions has coordinate 2 s + a."""
    features = one_hot_features(2, 3, 2)
    assert features.shape == (2, 3, 2, 6)
    for b, s, a, k in itertools.product(range(2), range(3), range(2), range(6)):
        assert features[b, s, a, k] == (k == 2 * s + a)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_every_one_hot_feature_can_be_changed_alone(shape):
    features = one_hot_features(2, *shape)
    before = features.clone()
    features[0, 0] = 7
    assert torch.equal(features[1], before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_hot_features_have_the_dtype(dtype):
    assert one_hot_features(1, 2, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
@pytest.mark.parametrize(("place", "name"), [(0, "batch"), (1, r"shape\[0\]"), (2, r"shape\[1\]")])
def test_sizes_are_refused(generator, value, place, name):
    sizes = [2, 3, 4]
    sizes[place] = value
    with pytest.raises(ValueError, match=f"^{name}:"):
        random_features(*sizes, generator=generator)
    with pytest.raises(ValueError, match=f"^{name}:"):
        one_hot_features(*sizes)


@pytest.mark.parametrize("value", [None, 0, torch])
def test_random_features_refuse_what_is_no_generator(value):
    with pytest.raises(ValueError, match=r"^generator:"):
        random_features(2, 3, generator=value)
