"""DDPO's tracker: when a prompt's own statistics are used, and what is remembered."""

import json
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import DDPO, GRPO
from mmalign.protocols import Remembering
from mmalign.types import Batch
from tests import tabular


def batch_of(rewards, prompts) -> Batch:
    """Rows of one step, each with a reward and a prompt's number; groups are the prompts."""
    made = tabular.trajectory([1] * len(rewards), list(range(len(rewards))))
    return Batch(
        trajectory=made,
        group=torch.tensor(prompts),
        reward=torch.tensor(rewards).double(),
        weight=made.mask.double(),
        prompt_id=torch.tensor(prompts),
    )


def test_below_min_count_the_batch_decides():
    """Rewards 1, 2, 3, 6: mean 3, population deviation sqrt(14 / 4) = 1.870829."""
    objective = DDPO(min_count=3)
    assert isinstance(objective, Remembering)
    batch = objective.credit(batch_of([1.0, 2.0, 3.0, 6.0], [5, 5, 7, 8]))
    batch, memory = objective.remember(batch, {})
    expected = [-1.069045, -0.534522, 0.0, 1.603567]
    assert batch.advantage.squeeze(1).tolist() == pytest.approx(expected, abs=1e-5)
    assert memory == {"5/0": 1.0, "5/1": 2.0, "7/0": 3.0, "8/0": 6.0}
    assert batch.metrics["tracked"] == (0.0, 4.0) and batch.denominator == 4.0


def test_from_min_count_on_the_prompt_decides():
    """Prompt 5 had 1 and 2 and gets 6: mean 3, deviation sqrt(14/3) = 2.160247, A = 1.388730.

    Prompt 7 has one reward, so the batch's 6 and 4 stand for it: mean 5, deviation 1, A = -1.
    """
    objective = DDPO(min_count=3, buffer_size=3)
    first = {"5/0": 1.0, "5/1": 2.0}
    batch, memory = objective.remember(objective.credit(batch_of([6.0, 4.0], [5, 7])), first)
    assert batch.advantage.squeeze(1).tolist() == pytest.approx([1.388730, -1.0], abs=1e-5)
    assert batch.metrics["tracked"] == (1.0, 2.0)
    assert memory == {"5/0": 1.0, "5/1": 2.0, "5/2": 6.0, "7/0": 4.0}
    assert first == {"5/0": 1.0, "5/1": 2.0}
    # The buffer is full now: the oldest reward leaves. (2 + 6 + 4) / 3 = 4 -> A = 0.
    batch, memory = objective.remember(objective.credit(batch_of([4.0, 0.0], [5, 7])), memory)
    assert [memory[f"5/{i}"] for i in range(3)] == [2.0, 6.0, 4.0]
    assert batch.advantage[0].item() == pytest.approx(0.0, abs=1e-6)
    assert json.loads(json.dumps(memory)) == memory


def test_advantages_are_clipped_and_unjudged_rows_forgotten():
    """One 1 among 99 zeros would be 9.95; under a clip of 2 it is 2. NaN enters no statistic."""
    rewards = [0.0] * 99 + [1.0, float("nan")]
    objective = DDPO(advantage_clip=2.0)
    batch, memory = objective.remember(objective.credit(batch_of(rewards, list(range(101)))), {})
    assert len(batch) == 100 and batch.advantage.max().item() == 2.0
    assert len(memory) == 100 and batch.counters["dropped/unjudged"] == 1.0


def test_equal_rewards_move_nothing():
    objective = DDPO(min_count=1)
    batch, _ = objective.remember(objective.credit(batch_of([0.1] * 3, [1, 1, 2])), {})
    assert (batch.advantage == 0).all()


def test_the_loss_is_grpos():
    """With the same advantages: gradient equal to the last bit."""
    policy = tabular.Tabular(seed=3)
    made = tabular.batch([(1.0, 0.0), (2.0, 0.5, 1.0)])
    made = DDPO().credit(tabular.scored(made, behaviour=tabular.Tabular(seed=2)))
    found = policy.scores(made.trajectory)
    first, second = (o.loss(found, made).total for o in (DDPO(), GRPO(epsilon=1e-4)))
    assert torch.equal(first, second)


def test_a_source_without_numbers_is_refused():
    batch = replace(DDPO().credit(batch_of([1.0, 2.0], [0, 1])), prompt_id=None)
    with pytest.raises(ValueError, match="does not number its prompts"):
        DDPO().remember(batch, {})
