"""DPOK: the clamped surrogate, its KL options, and where it is PPO."""

from dataclasses import replace

import pytest
import torch

from mmalign import functional
from mmalign.objectives import DPOK, PPO
from mmalign.types import Scores
from tests import tabular


def test_clamped_surrogate_by_hand():
    """Ratios 1, 1.5, 0.5 with A = 2 and a band of 0.2: -2, -2.4, -1.6.

    PPO would let the third (worse than before, A > 0) come back: -1, with a gradient. Here the
    gradient is -A rho inside the band, and 0 outside on either side.
    """
    ratio = torch.tensor([1.0, 1.5, 0.5], dtype=torch.float64)
    new = ratio.log().requires_grad_()
    found = functional.clamped_surrogate(
        new, torch.zeros(3).double(), torch.full((3,), 2.0).double(), epsilon=0.2
    )
    assert found.tolist() == pytest.approx([-2.0, -2.4, -1.6])
    found.sum().backward()
    assert new.grad.tolist() == pytest.approx([-2.0, 0.0, 0.0])


def credited_batch(objective):
    batch = tabular.batch([(1.0, 0.0), (2.0, 0.5, 1.0)])
    batch = tabular.scored(
        batch, reference=tabular.Tabular(seed=1), behaviour=tabular.Tabular(seed=2)
    )
    return objective.credit(batch)


def test_advantage_is_reward_less_value():
    """``A_t = r - V(x_t)`` and the target of every value is r, at every scored step."""
    batch = credited_batch(DPOK())
    mask = batch.trajectory.mask
    reward = batch.reward.unsqueeze(1).expand_as(mask)
    torch.testing.assert_close(batch.advantage[mask], (reward - batch.values)[mask])
    torch.testing.assert_close(batch.returns[mask], reward[mask])
    assert batch.denominator == float(mask.sum())


def gradient(objective, batch):
    policy = tabular.Tabular(seed=2)
    objective.loss(policy.scores(batch.trajectory), batch).total.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_on_policy_it_is_ppo():
    """Where the policy has not moved every ratio is 1, and clamp and maximum are the same."""
    plain = PPO(
        epsilon=1e-4, lam=1.0, gamma=1.0, kl_coefficient=0.0, whiten_advantages=False,
        value_clip=None, value_coefficient=1.0,
    )  # fmt: skip
    ours = DPOK(reward_weight=1.0, kl_weight=0.0)
    batch = credited_batch(ours)
    torch.testing.assert_close(gradient(ours, batch), gradient(plain, batch))


def test_kl_options():
    """The gradient of a KL term alone is w_kl times that of the KL; 0 where there is none of it."""
    batch = credited_batch(DPOK())
    batch = replace(batch, advantage=torch.zeros_like(batch.advantage))
    shape = batch.trajectory.mask.shape
    fields = ("log_probs", "kl", "prediction_distance")
    leaf = {
        name: torch.full(shape, 0.1, dtype=torch.float64, requires_grad=True) for name in fields
    }
    values = batch.values.clone().requires_grad_()
    scored = batch.trajectory.mask
    DPOK(kl_weight=0.5).loss(Scores(values=values, **leaf), batch).total.backward()
    assert (leaf["prediction_distance"].grad == 0.5 * scored).all() and leaf["kl"].grad is None
    DPOK(kl_weight=0.5, kl="exact").loss(Scores(values=values, **leaf), batch).total.backward()
    assert (leaf["kl"].grad == 0.5 * scored).all()
    k2 = DPOK(kl_weight=0.5, kl="k2")
    leaf["log_probs"].grad = None
    k2.loss(Scores(values=values, **leaf), batch).total.backward()
    expected = 0.5 * (0.1 - batch.reference) * scored
    torch.testing.assert_close(leaf["log_probs"].grad, expected)


def test_a_policy_without_predictions_is_told():
    batch = credited_batch(DPOK())
    found = tabular.Tabular(seed=2).scores(batch.trajectory)
    with pytest.raises(ValueError, match="kl='prediction' compares what denoising networks"):
        DPOK().loss(found, batch)
