"""PPO: rewards, advantages and losses by hand and against an independent implementation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.objectives import PPO
from mmalign.objectives.ppo import last_step
from mmalign.types import Batch, Scores
from tests import tabular
from tests.oracle import credit as oracle


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def four_steps() -> Batch:
    """One row of four steps, the last masked; KL (0.2, -0.4, 0) at k1, values (0.3, 0.4, 0.5)."""
    made = tabular.trajectory([3, 4], [0, 0]).rows(torch.tensor([0]))
    return Batch(
        trajectory=made,
        group=torch.tensor([0]),
        reward=doubles(1.0),
        weight=made.mask.double(),
        behaviour=doubles(-1.0, -1.4, -2.0, 0.0)[None],
        reference=doubles(-1.2, -1.0, -2.0, 0.0)[None],
        values=doubles(0.3, 0.4, 0.5, 7.0)[None],
    )


def test_credit_by_hand():
    """KL coefficient 0.5: rewards (-0.1, 0.2, 0 + 1), the score at the third, last scored step.

    Gamma 1, lambda 0.95: delta = (-0.1 + 0.4 - 0.3, 0.2 + 0.5 - 0.4, 1 - 0.5) = (0, 0.3, 0.5);
    A_3 = 0.5, A_2 = 0.3 + 0.95 * 0.5 = 0.775, A_1 = 0.95 * 0.775 = 0.73625.
    """
    batch = PPO(kl_coefficient=0.5, whiten_advantages=False).credit(four_steps())
    torch.testing.assert_close(batch.advantage, doubles(0.73625, 0.775, 0.5, 0)[None])
    torch.testing.assert_close(batch.returns, doubles(1.03625, 1.175, 1.0, 0)[None])
    assert batch.denominator == 3.0
    assert batch.metrics["reward"] == (1.0, 1.0)
    assert batch.metrics["kl"] == pytest.approx((-0.2, 3.0))
    assert batch.metrics["return"] == pytest.approx((3.21125, 3.0))


def test_whitening_comes_after_the_returns():
    """Returns stay (1.03625, 1.175, 1); advantages get mean 0 and unbiased variance 1."""
    batch = PPO(kl_coefficient=0.5).credit(four_steps())
    torch.testing.assert_close(batch.returns, doubles(1.03625, 1.175, 1.0, 0)[None])
    kept = batch.advantage[0, :3]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert kept.var().item() == pytest.approx(1.0, abs=1e-6)
    assert batch.advantage[0, 3] == 0.0


def test_step_rewards_are_added():
    """Process rewards (1, 0, 0) on top: the first advantage alone rises, by 1."""
    plain = PPO(whiten_advantages=False).credit(four_steps())
    made = replace(four_steps(), step_reward=doubles(1, 0, 0, 9)[None])
    raised = PPO(whiten_advantages=False).credit(made)
    torch.testing.assert_close(raised.advantage - plain.advantage, doubles(1, 0, 0, 0)[None])


def test_loss_by_hand():
    """On-policy, values moved from 0.5 to 1 with return 2 and clip 0.2.

    Policy part -A = -1; value part 0.845 (see the value loss), times 0.1; entropy 0.7 times 0.01.
    """
    objective = PPO(entropy_coefficient=0.01)
    batch = four_steps()
    ones = torch.ones(1, 4).double()
    batch = replace(batch, advantage=ones, returns=2 * ones, values=0.5 * ones, denominator=3.0)
    scores = Scores(log_probs=batch.behaviour, values=ones, entropy=0.7 * ones)
    loss = objective.loss(scores, batch)
    assert loss.total.item() == pytest.approx(3 * (-1 + 0.1 * 0.845 - 0.007))
    shares = {k: float(s) / float(c) for k, (s, c) in loss.metrics.items()}
    assert shares == pytest.approx(
        {
            "clip_ratio/low": 0.0, "clip_ratio/high": 0.0, "ratio_deviation": 0.0,
            "entropy": 0.7, "loss/policy": -1.0, "loss/value": 0.845, "values": 1.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [
        PPO(),
        PPO(gamma=0.9, lam=0.8, kl_coefficient=0.3, epsilon=0.1, epsilon_high=0.15),
        PPO(whiten_rewards=True, value_clip=None, value_coefficient=0.5),
    ],
)
def test_agrees_with_an_independent_implementation(objective):
    batch = tabular.scored(
        tabular.batch([(1, 0, 3), (2, 0.5), (1,)]),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    scores = tabular.Tabular(seed=3).scores(batch.trajectory)
    credited = objective.credit(batch)
    got = objective.loss(scores, credited).total.item() / credited.denominator

    mask = batch.trajectory.mask.numpy()
    reward = -objective.kl_coefficient * (batch.behaviour - batch.reference).numpy() * mask
    for b, row in enumerate(mask):
        reward[b, np.flatnonzero(row)[-1]] += batch.reward[b]
    if objective.whiten_rewards:
        reward = oracle.whiten(reward, mask, shift_mean=False)
    advantage, returns = oracle.gae(
        reward, batch.values.numpy(), mask, gamma=objective.gamma, lam=objective.lam
    )
    steps = oracle.surrogate(
        scores.log_probs.detach().numpy(), batch.behaviour.numpy(), oracle.whiten(advantage, mask),
        epsilon=objective.epsilon, epsilon_high=objective.epsilon_high or objective.epsilon,
    )  # fmt: skip
    values, old = scores.values.detach().numpy(), batch.values.numpy()
    reach = math.inf if objective.value_clip is None else objective.value_clip
    near = np.clip(values, old - reach, old + reach)
    critic = 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2)
    expected = oracle.aggregate(steps + objective.value_coefficient * critic, mask, how="token")
    assert got == pytest.approx(expected, rel=1e-9)


def test_reward_enters_at_the_last_decision():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    expected = [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert last_step(mask).int().tolist() == expected


def test_without_kl_there_is_no_reference():
    objective = PPO(kl_coefficient=0.0, whiten_advantages=False)
    batch = objective.credit(replace(four_steps(), reference=None))
    held = PPO(whiten_advantages=False).credit(replace(four_steps(), reference=batch.behaviour))
    torch.testing.assert_close(batch.advantage, held.advantage)
    with pytest.raises(ValueError, match="reference"):
        PPO().credit(replace(four_steps(), reference=None))


def test_unjudged_rows_leave_the_others_alone():
    batch = tabular.scored(
        tabular.batch([(1, math.nan, 3), (0, 1)]),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    without = PPO().credit(batch.rows(torch.tensor([0, 2, 3, 4])))
    with_nan = PPO().credit(batch)
    torch.testing.assert_close(with_nan.advantage, without.advantage)
    assert with_nan.denominator == without.denominator
    assert with_nan.counters == {"dropped/unjudged": 1.0}


def test_a_batch_without_signal():
    """Nobody judged anything: denominator 0, loss exactly 0 with a graph."""
    batch = tabular.scored(
        tabular.batch([(math.nan, math.nan)]),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    batch = PPO().credit(batch)
    policy = tabular.Tabular()
    loss = PPO().loss(policy.scores(batch.trajectory), batch)
    loss.total.backward()
    assert batch.denominator == 0.0 and loss.total.item() == 0.0
    assert (policy.logits.grad == 0).all()


def test_infinite_rewards_are_refused():
    with pytest.raises(ValueError, match="infinite"):
        PPO().credit(replace(four_steps(), reward=doubles(math.inf)))


def test_updates_raise_the_reward_of_a_bandit():
    """Symbol 2 pays 1, others 0: 60 on-policy updates make it the likeliest in every state."""
    objective = PPO(kl_coefficient=0.0)
    policy = tabular.Tabular()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    paid = []
    for _ in range(60):
        batch = tabular.batch([(0.0, 0.0)] * 32, longest=1)
        state = torch.randint(0, tabular.NUM_STATES, (64, 1))
        with torch.no_grad():
            symbol = torch.distributions.Categorical(logits=policy.logits[state]).sample()
        made = replace(batch.trajectory, stepwise={"state": state, "symbol": symbol})
        reward = (symbol[:, 0] == 2).double()
        batch = replace(batch, trajectory=made, reward=reward)
        batch = objective.credit(tabular.scored(batch, behaviour=policy))
        optimizer.zero_grad()
        loss = objective.loss(policy.scores(batch.trajectory), batch)
        (loss.total / batch.denominator).backward()
        optimizer.step()
        paid.append(reward.mean().item())
    assert sum(paid[-10:]) / 10 > 0.7 > 0.4 > sum(paid[:5]) / 5
