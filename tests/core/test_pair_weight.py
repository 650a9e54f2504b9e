"""Weights of the steps of a pair: carried by every cut and join, and read in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmalign import pairing
from mmalign.objectives import DPO, IPO
from mmalign.types import Batch, Scores
from tests import tabular


def batch(*, seed: int = 0, longest: int = 4) -> Batch:
    """Three groups of two rows, a pair each, with weights of their own."""
    made = tabular.trajectory([2, longest, 3, 3, 1, longest], [0, 0, 1, 1, 2, 2], seed=seed)
    plain = Batch(
        trajectory=made,
        group=torch.arange(6) // 2,
        reward=torch.tensor([1.0, 0.0] * 3),
        weight=made.mask.double(),
        reference=torch.zeros(made.mask.shape).double(),
        pairs=torch.arange(6).view(3, 2),
    )
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 2, longest, generator=draw).double() * plain.pair_weights()
    return replace(plain, pair_weight=weights)


def test_without_weights_of_their_own_pairs_have_those_of_their_rows() -> None:
    whole = batch()
    plain = replace(whole, pair_weight=None)
    assert torch.equal(plain.pair_weights(), plain.weight.view(3, 2, -1))
    assert torch.equal(whole.pair_weights(), whole.pair_weight)


def test_they_follow_their_pairs() -> None:
    """Through rows, windows of steps, and copies."""
    whole = batch()
    assert whole.pair_weight is not None
    part = whole.rows(torch.tensor([4, 5, 0, 2, 3]))
    assert part.pairs.tolist() == [[3, 4], [0, 1]]
    assert torch.equal(part.pair_weight, whole.pair_weight[[1, 2]])
    assert torch.equal(whole.steps(slice(1, 3)).pair_weight, whole.pair_weight[:, :, 1:3])
    assert torch.equal(whole.to("cpu").pair_weight, whole.pair_weight)


def test_joined_they_are_padded() -> None:
    """A part without weights gets those of its rows; without any, there are none."""
    short, long = batch(longest=4), replace(batch(seed=1, longest=6), pair_weight=None)
    joined = Batch.concatenate([short, long])
    assert joined.pair_weight.shape == (6, 2, 6)
    assert torch.equal(joined.pair_weight[:3, :, :4], short.pair_weight)
    assert not torch.any(joined.pair_weight[:3, :, 4:])
    assert torch.equal(joined.pair_weight[3:], long.pair_weights())
    assert Batch.concatenate([long, long]).pair_weight is None


def test_dropped_pairs_take_their_weights_along() -> None:
    whole = batch()
    rows = whole.trajectory.rows(torch.tensor([0, 0, 2, 3, 4, 5]))
    kept = pairing.without_identical(replace(whole, trajectory=rows))
    assert kept.pairs.tolist() == [[2, 3], [4, 5]]
    assert torch.equal(kept.pair_weight, whole.pair_weight[1:])
    assert pairing.ordered_pairs(whole).pair_weight is None


@pytest.mark.parametrize("objective", [DPO(beta=0.5), IPO(beta=0.5)])
def test_pairwise_objectives_sum_with_them(objective: DPO | IPO) -> None:
    """Weighing a pair equals weighing its rows, where every row is in one pair; pieces add up."""
    model, whole = tabular.Tabular(), batch()
    by_rows = replace(whole, weight=whole.pair_weight.flatten(0, 1), pair_weight=None)
    scores = model.scores(whole.trajectory)
    losses = [objective.loss(scores, objective.credit(b)).total for b in (whole, by_rows)]
    assert float(losses[0]) == pytest.approx(float(losses[1]))
    credited = objective.credit(whole)
    pieces = credited.microbatches(rows=2, steps=None, additive_over="group")
    parts = [objective.loss(model.scores(p.trajectory), p).total for p in pieces]
    assert len(parts) == 3
    assert float(sum(parts)) == pytest.approx(float(losses[0]))


def test_a_row_may_weigh_differently_in_two_pairs() -> None:
    """Row 0 against row 1 with weight 3, and against row 2 with weight 1; beta 1, h = 1, 0, 0."""
    made = tabular.trajectory([1, 1, 1], [0, 0, 0])
    whole = Batch(
        trajectory=made,
        group=torch.zeros(3).long(),
        reward=torch.tensor([1.0, 0.0, 0.0]),
        weight=made.mask.double(),
        reference=torch.zeros(3, 1).double(),
        pairs=torch.tensor([[0, 1], [0, 2]]),
        pair_weight=torch.tensor([[3.0, 1.0], [1.0, 1.0]]).unsqueeze(2),
    )
    scores = Scores(log_probs=torch.tensor([[1.0], [0.0], [0.0]]).double())
    loss = DPO(beta=1.0).loss(scores, whole).total
    expected = -torch.nn.functional.logsigmoid(torch.tensor([3.0, 1.0])).sum()
    assert float(loss) == pytest.approx(float(expected))
