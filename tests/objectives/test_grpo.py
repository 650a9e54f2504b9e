"""GRPO and its settings: numbers, aggregation, ties, metrics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.objectives import GRPO
from mmalign.types import Batch, Scores
from tests import tabular
from tests.oracle import credit as oracle


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_rows(*, longest: int = 4) -> Batch:
    """One group, two scored steps in row 0 and four in row 1."""
    made = tabular.trajectory([2, longest], [0, 0])
    return Batch(
        trajectory=made,
        group=torch.tensor([0, 0]),
        reward=doubles(1, 0),
        weight=made.mask.double(),
    )


@pytest.mark.parametrize(
    ("settings", "expected", "denominator"),
    [
        ({"aggregate": "sequence"}, 2.5, 2.0),
        ({"aggregate": "token"}, 16 / 6, 6.0),
        ({"aggregate": "constant", "max_length": 8}, 1.0, 2.0),
    ],
)
def test_aggregation_by_hand(settings, expected, denominator):
    """Step losses (1, 3) and (2, 2, 4, 4): means 2 and 3, tokens 16 / 6, constant 16 / (2 * 8)."""
    objective = GRPO(**settings)
    batch = objective.credit(two_rows())
    assert batch.denominator == denominator
    # On-policy the loss of a step is minus its advantage.
    losses = doubles(1, 3, 9, 9, 2, 2, 4, 4).view(2, 4)
    batch = replace(batch, advantage=-losses)
    total = objective.loss(Scores(log_probs=torch.zeros(2, 4).double()), batch).total
    assert total.item() / batch.denominator == pytest.approx(expected)


def test_a_longer_neighbour_changes_a_rows_weight_only_by_token():
    """Twice the steps in row 1 leave row 0's share alone in "sequence" and "constant"."""
    for settings, changes in [
        ({"aggregate": "sequence"}, False),
        ({"aggregate": "token"}, True),
        ({"aggregate": "constant", "max_length": 8}, False),
    ]:
        shares = []
        for longest in (4, 8):
            batch = GRPO(**settings).credit(two_rows(longest=longest))
            shares.append((batch.weight[0] / batch.denominator)[:2])
        assert (shares[0] - shares[1]).abs().max() > 1e-6 or not changes
        if not changes:
            torch.testing.assert_close(shares[0], shares[1])


SETTINGS = [
    GRPO(),
    GRPO(aggregate="token", epsilon_high=0.28),
    GRPO(aggregate="constant", max_length=12, scale="none"),
    GRPO(scale="batch", population=True, beta=0.05, advantage_clip=0.8),
]


@pytest.mark.parametrize("objective", SETTINGS)
def test_agrees_with_an_independent_implementation(objective):
    """Advantages, surrogate, k3 and aggregation in NumPy, groups of unequal size, one tied."""
    batch = tabular.scored(
        tabular.batch([(1, 0, 3), (2, 0.5), (1, 1, 1), (0, 0, 1, 2)]),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    scores = tabular.Tabular(seed=3).scores(batch.trajectory)
    credited = objective.credit(batch)
    got = objective.loss(scores, credited).total.item() / credited.denominator

    advantage = oracle.group_advantage(
        batch.reward.numpy(), batch.group.numpy(),
        scale=objective.scale, population=objective.population,
    )  # fmt: skip
    clip = objective.advantage_clip or math.inf
    log_probs = scores.log_probs.detach().numpy()
    steps = oracle.surrogate(
        log_probs, batch.behaviour.numpy(), np.clip(advantage, -clip, clip)[:, None],
        epsilon=objective.epsilon, epsilon_high=objective.epsilon_high or objective.epsilon,
    )  # fmt: skip
    apart = batch.reference.numpy() - log_probs
    steps = steps + objective.beta * (np.exp(apart) - 1 - apart)
    expected = oracle.aggregate(
        steps, batch.trajectory.mask.numpy(),
        how=objective.aggregate, max_length=objective.max_length,
    )  # fmt: skip
    assert got == pytest.approx(expected, rel=1e-10)


def test_on_policy_is_reinforce():
    """Without behaviour: ratio 1, loss minus the mean advantage, gradient of -A log_probs."""
    batch = GRPO().credit(tabular.batch([(1, 0, 2), (4, 0, 0)]))
    log_probs = tabular.Tabular().scores(batch.trajectory).log_probs.detach().requires_grad_()
    loss = GRPO().loss(Scores(log_probs=log_probs), batch)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(-(batch.weight * batch.advantage).sum().item())
    torch.testing.assert_close(log_probs.grad, -batch.weight * batch.advantage)
    assert float(loss.metrics["ratio_deviation"][0]) == 0.0
    recorded = replace(batch, behaviour=log_probs.detach())
    again = GRPO().loss(Scores(log_probs=log_probs), recorded)
    torch.testing.assert_close(again.total, loss.total)


def test_tied_groups_drop_out_of_the_denominator():
    """Groups (1, 1, 1) and (0, 1): kept, 5 rows with 3 of advantage 0; dropped, 2 rows."""
    kept = GRPO().credit(tabular.batch([(1, 1, 1), (0, 1)]))
    assert len(kept) == 5 and kept.denominator == 5.0
    assert (kept.advantage[:3] == 0).all() and (kept.advantage[3:, 0] != 0).all()
    dropped = GRPO(drop_tied_groups=True).credit(tabular.batch([(1, 1, 1), (0, 1)]))
    assert len(dropped) == 2 and dropped.denominator == 2.0
    assert dropped.counters["dropped/tied_groups"] == 1.0
    for batch in (kept, dropped):
        assert batch.metrics["frac_reward_zero_std"] == (1.0, 2.0)
        assert batch.metrics["reward"] == (4.0, 5.0)
        assert batch.metrics["reward_std"] == pytest.approx((math.sqrt(0.5), 2.0))


@pytest.mark.parametrize("rewards", [[(1, 1), (2, 2)], [(math.nan, math.nan)]])
def test_a_batch_without_signal(rewards):
    """Nothing left: denominator 0 and a loss of exactly 0 with a graph."""
    objective = GRPO(drop_tied_groups=True, beta=0.1)
    batch = tabular.scored(tabular.batch(rewards), reference=tabular.Tabular(seed=1))
    batch = objective.credit(batch)
    policy = tabular.Tabular()
    loss = objective.loss(policy.scores(batch.trajectory), batch)
    loss.total.backward()
    assert batch.denominator == 0.0 and loss.total.item() == 0.0 and len(batch) == 1
    assert (policy.logits.grad == 0).all()


def test_unjudged_rows_leave_the_others_alone():
    """A NaN reward is counted and gone: what remains is the batch without that row."""
    with_nan = GRPO().credit(tabular.batch([(1, math.nan, 3), (0, 1)]))
    rows = torch.tensor([0, 2, 3, 4])
    without = GRPO().credit(tabular.batch([(1, 0, 3), (0, 1)]).rows(rows))
    torch.testing.assert_close(with_nan.advantage, without.advantage)
    torch.testing.assert_close(with_nan.weight, without.weight)
    assert with_nan.denominator == without.denominator == 4.0
    assert with_nan.counters == {"dropped/unjudged": 1.0}
    assert with_nan.metrics["reward"] == (5.0, 4.0)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="num_generations"):
        GRPO().credit(tabular.batch([(1, 0), (3,)]))


def test_misuse():
    batch = tabular.batch([(1, 0)])
    with pytest.raises(ValueError, match="step rewards"):
        GRPO().credit(replace(batch, step_reward=torch.zeros_like(batch.weight)))
    with pytest.raises(ValueError, match="combine the objectives"):
        GRPO().credit(replace(batch, reward=torch.zeros(2, 3)))


def test_groups_are_numbers_not_prompts():
    """Two groups of one prompt are centred apart."""
    batch = tabular.batch([(1, 0), (10, 6)])
    batch = replace(batch, trajectory=replace(batch.trajectory, prompt_of=torch.zeros(4).long()))
    advantage = GRPO(scale="none").credit(batch).advantage[:, 0]
    torch.testing.assert_close(advantage, doubles(0.5, -0.5, 2, -2))


@pytest.mark.parametrize("kind", ["k3", "k2", "exact"])
def test_kl_alone_moves_towards_the_reference(kind):
    """All rewards equal, beta > 0: the gradient is not 0 and a small step lowers the exact KL."""
    objective = GRPO(beta=1.0, kl=kind)
    policy, reference = tabular.Tabular(seed=3), tabular.Tabular(seed=4)
    batch = objective.credit(
        tabular.scored(tabular.batch([(1, 1, 1, 1)] * 60, seed=5), reference=reference)
    )
    with torch.no_grad():
        # On-policy symbols, so that the estimators estimate.
        state = batch.trajectory.stepwise["state"]
        drawn = torch.distributions.Categorical(logits=policy.logits[state]).sample()
    batch = replace(
        batch,
        trajectory=replace(batch.trajectory, stepwise={"state": state, "symbol": drawn}),
    )
    batch = tabular.scored(batch, reference=reference)

    def exact() -> Tensor:
        mine, held = policy.logits.log_softmax(-1), reference.logits.log_softmax(-1)
        return (mine.exp() * (mine - held)).sum(-1)

    scores = policy.scores(batch.trajectory)
    scores = replace(scores, kl=torch.where(batch.trajectory.mask, exact()[state], 0.0))
    loss = objective.loss(scores, batch).total / batch.denominator
    before = exact().mean().item()
    (gradient,) = torch.autograd.grad(loss, policy.logits)
    assert gradient.abs().max() > 1e-3
    with torch.no_grad():
        policy.logits -= 0.5 * gradient
    assert exact().mean().item() < before


def test_kl_metric_is_zero_at_the_reference():
    objective = GRPO(beta=0.1)
    batch = tabular.scored(tabular.batch([(1, 0)]), reference=tabular.Tabular())
    batch = objective.credit(batch)
    loss = objective.loss(tabular.Tabular().scores(batch.trajectory), batch)
    assert float(loss.metrics["kl"][0]) == 0.0
    assert float(loss.metrics["kl"][1]) == batch.trajectory.mask.sum()


def test_clip_shares_by_hand():
    """Ratios (0.5, 1.5) against advantages of either sign, epsilon 0.2: one step in four each."""
    made = tabular.trajectory([2, 2], [0, 0])
    batch = Batch(
        trajectory=made,
        group=torch.tensor([0, 0]),
        reward=doubles(1, 0),
        weight=made.mask.double(),
        behaviour=torch.zeros(2, 2).double(),
    )
    log_probs = doubles(0.5, 1.5, 0.5, 1.5).log().view(2, 2)
    loss = GRPO().loss(Scores(log_probs=log_probs), GRPO().credit(batch))
    shares = {k: float(s) / float(c) for k, (s, c) in loss.metrics.items()}
    assert shares == pytest.approx(
        {"clip_ratio/low": 0.25, "clip_ratio/high": 0.25, "ratio_deviation": 0.5}
    )


def test_source_weights_multiply():
    """A source that halves a step's weight halves its part of the loss, under any aggregation."""
    for settings in ({}, {"aggregate": "token"}, {"aggregate": "constant", "max_length": 8}):
        plain = GRPO(**settings).credit(two_rows())
        halved = two_rows()
        halved = GRPO(**settings).credit(replace(halved, weight=halved.weight * 0.5))
        torch.testing.assert_close(halved.weight, plain.weight * 0.5)
        assert halved.denominator == plain.denominator
