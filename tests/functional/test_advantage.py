"""Group advantages, generalised advantage estimation and whitening, with numbers by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.functional import gae, group_advantage, tied_rows, whiten
from tests.oracle import credit as oracle


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ONE_GROUP = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("rewards", "scale", "population", "expected"),
    [
        # Mean 0.75, unbiased std sqrt(2.75 / 3) = 0.957427.
        ((2, 0, 1, 0), "group", False, (1.305446, -0.783268, 0.261089, -0.783268)),
        ((2, 0, 1, 0), "none", False, (1.25, -0.75, 0.25, -0.75)),
        # 0.5 / (0.577350 + 1e-4); the biased deviation would give 0.9998.
        ((1, 0, 0, 1), "group", False, (0.865875, -0.865875, -0.865875, 0.865875)),
        ((1, 2, 3, 6), "group", False, (-0.925777, -0.462889, 0.0, 1.388666)),
        ((1, 2, 3, 6), "group", True, (-1.068988, -0.534494, 0.0, 1.603482)),
    ],
)
def test_published_numbers(rewards, scale, population, expected):
    got = group_advantage(doubles(*rewards), ONE_GROUP, scale=scale, population=population)
    torch.testing.assert_close(got, doubles(*expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("population", [False, True])
def test_agrees_with_an_independent_implementation(scale, population):
    """Groups of unequal size, in no order, with numbers that have gaps."""
    group = torch.tensor([7, 2, 7, 2, 2, 9, 9, 7, 2, 7])
    reward = torch.randn(10).double()
    got = group_advantage(reward, group, scale=scale, population=population)
    expected = oracle.group_advantage(
        reward.numpy(), group.numpy(), scale=scale, population=population
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale, dtype):
    """(0.1 + 0.1 + 0.1) / 3 is not 0.1 in floating point, and 1e-4 would magnify the rounding."""
    reward = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 2.0], dtype=dtype)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    got = group_advantage(reward, group, scale=scale)
    assert (got[:3] == 0).all() and (got[3:] != 0).any()
    assert tied_rows(reward, group).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_of_one_is_refused(scale):
    with pytest.raises(ValueError, match="group 5 has one row"):
        group_advantage(doubles(1, 2, 3), torch.tensor([0, 0, 5]), scale=scale)


def test_unjudged_rows_touch_nobody():
    """NaN leaves the statistics of the others as if the row were absent; alone in its group: 0."""
    nan = math.nan
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    got = group_advantage(doubles(2, nan, 0, 1, nan, 5, nan, nan), group, scale="group")
    without = group_advantage(doubles(2, 0, 1), torch.zeros(3, dtype=torch.int64), scale="group")
    torch.testing.assert_close(got[[0, 2, 3]], without)
    assert (got[[1, 4, 5, 6, 7]] == 0).all()
    # Over the batch: centred (1, -1, 0), deviation of (2, 0, 1, 5), which is 2.160247.
    batch = group_advantage(doubles(2, nan, 0, 1, nan, 5, nan, nan), group, scale="batch")
    expected = doubles(1, -1, 0) / (2.160247 + 1e-4)
    torch.testing.assert_close(batch[[0, 2, 3]], expected, atol=1e-6, rtol=0)


def test_counted_rewards_may_be_integers():
    reward = torch.tensor([2, 0, 1, 0])
    for scale in ("group", "batch", "none"):
        got = group_advantage(reward, ONE_GROUP, scale=scale)
        expected = group_advantage(reward.float(), ONE_GROUP, scale=scale)
        torch.testing.assert_close(got, expected)


def test_constants_and_factors():
    """A constant changes nothing; a factor changes "none" linearly and "group" by eps alone."""
    reward, group = torch.randn(12).double(), torch.arange(12) // 4
    plain = group_advantage(reward, group, scale="group")
    offset = doubles(3.0, -1.0, 100.0).repeat_interleave(4)
    torch.testing.assert_close(group_advantage(reward + offset, group, scale="group"), plain)
    scaled = group_advantage(10 * reward, group, scale="group", eps=1e-3)
    torch.testing.assert_close(scaled, plain)
    linear = group_advantage(10 * reward, group, scale="none")
    torch.testing.assert_close(linear, 10 * group_advantage(reward, group, scale="none"))


def test_leave_one_out_identity():
    """Reward minus the mean of the others: 4 / 3 of the centred one, (5/3, -1, 1/3, -1)."""
    centred = group_advantage(doubles(2, 0, 1, 0), ONE_GROUP, scale="none")
    torch.testing.assert_close(centred * 4 / 3, doubles(5 / 3, -1, 1 / 3, -1))


def test_batch_deviation_over_all_processes():
    """Half of the rows with the rewards of all give what all rows give."""
    reward, group = torch.randn(8).double(), torch.arange(8) // 4
    whole = group_advantage(reward, group, scale="batch")
    half = group_advantage(reward[:4], group[:4], scale="batch", batch_reward=reward)
    torch.testing.assert_close(half, whole[:4])
    alone = group_advantage(reward[:4], group[:4], scale="batch")
    assert (alone - half).abs().max() > 1e-3


def test_order_of_the_rows_is_irrelevant():
    reward, group = torch.randn(12).double(), torch.arange(12) // 3
    order = torch.randperm(12)
    got = group_advantage(reward[order], group[order], scale="group")
    torch.testing.assert_close(got, group_advantage(reward, group, scale="group")[order])


def test_misuse_of_group_advantage():
    with pytest.raises(ValueError, match="combine several objectives"):
        group_advantage(torch.zeros(4, 2), ONE_GROUP, scale="group")
    with pytest.raises(ValueError, match="infinite"):
        group_advantage(doubles(1, math.inf, 0, 0), ONE_GROUP, scale="group")
    with pytest.raises(ValueError, match="scale='std'"):
        group_advantage(doubles(1, 2, 0, 0), ONE_GROUP, scale="std")


def test_gae_by_hand():
    """Rewards (0.1, -0.2, 1), values (0.3, 0.4, 0.5), gamma 1, lambda 0.95.

    delta = (0.1 + 0.4 - 0.3, -0.2 + 0.5 - 0.4, 1 - 0.5) = (0.2, -0.1, 0.5);
    A_3 = 0.5, A_2 = -0.1 + 0.95 * 0.5 = 0.375, A_1 = 0.2 + 0.95 * 0.375 = 0.55625.
    """
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantage, returns = gae(
        doubles(0.1, -0.2, 1.0)[None], doubles(0.3, 0.4, 0.5)[None], mask, gamma=1.0, lam=0.95
    )
    torch.testing.assert_close(advantage, doubles(0.55625, 0.375, 0.5)[None])
    torch.testing.assert_close(returns, doubles(0.85625, 0.775, 1.0)[None])
    white = whiten(advantage, mask)
    torch.testing.assert_close(
        white, doubles(0.853340, -1.100359, 0.247019)[None], atol=1e-6, rtol=0
    )


def test_gae_agrees_with_an_independent_implementation():
    """Ragged rows, an observation in the middle of one, a row without any decision."""
    mask = torch.tensor(
        [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    ).bool()
    reward, value = torch.randn(2, 5, 5).double().unbind(0)
    got = gae(reward, value, mask, gamma=0.9, lam=0.8)
    expected = oracle.gae(reward.numpy(), value.numpy(), mask.numpy(), gamma=0.9, lam=0.8)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-12, atol=1e-14)


def test_gae_sees_nothing_beyond_the_end():
    """What stands in masked steps, even infinity, changes neither advantage nor return."""
    mask = torch.tensor([[True, True, False, False]])
    reward, value = torch.randn(2, 1, 4).double().unbind(0)
    clean = gae(reward, value, mask, gamma=1.0, lam=0.95)
    reward, value = reward.clone(), value.clone()
    reward[:, 2:], value[:, 2:] = math.inf, math.nan
    dirty = gae(reward, value, mask, gamma=1.0, lam=0.95)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b)
        assert (b[:, 2:] == 0).all()


def test_gae_ends_of_lambda():
    """Lambda 1 with gamma 1 is reward-to-go minus value; lambda 0 the one-step error."""
    reward, value = torch.randn(2, 3, 6).double().unbind(0)
    mask = torch.ones(3, 6, dtype=torch.bool)
    to_go = reward.flip(1).cumsum(1).flip(1)
    advantage, returns = gae(reward, value, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantage, to_go - value)
    torch.testing.assert_close(returns, to_go)
    following = torch.cat([value[:, 1:], torch.zeros(3, 1).double()], dim=1)
    advantage, _ = gae(reward, value, mask, gamma=0.9, lam=0.0)
    torch.testing.assert_close(advantage, reward + 0.9 * following - value)


def test_discounted_returns_by_hand():
    """Rewards (-0.1, -0.1, 1) and (-0.2, 0), no critic, gamma 1: returns to go."""
    reward = doubles(-0.1, -0.1, 1.0, -0.2, 0.0, 9.0).view(2, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    _, returns = gae(reward, torch.zeros_like(reward), mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, doubles(0.8, 0.9, 1.0, -0.2, 0.0, 0.0).view(2, 3))


def test_whiten_agrees_with_an_independent_implementation():
    x, mask = torch.randn(4, 5).double() * 3 + 2, torch.rand(4, 5) > 0.3
    for shift in (True, False):
        got = whiten(x, mask, shift_mean=shift)
        expected = oracle.whiten(x.numpy(), mask.numpy(), shift_mean=shift)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_whiten_over_all_processes_and_edges():
    x = torch.randn(4, 3).double()
    mask = torch.ones(4, 3, dtype=torch.bool)
    half = whiten(x[:2], mask[:2], batch_values=x.flatten())
    torch.testing.assert_close(half, whiten(x, mask)[:2])
    assert (whiten(x, torch.zeros_like(mask)) == 0).all()
    single = torch.zeros_like(mask)
    single[1, 1] = True
    assert (whiten(x, single) == 0).all()
    same = whiten(torch.full((2, 2), 0.3), mask[:2, :2])
    assert torch.isfinite(same).all()
