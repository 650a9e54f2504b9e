"""Supervised fine-tuning: numbers, which rows are imitated, pieces."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign import invariants
from mmalign.objectives import SFT
from mmalign.types import Batch, Scores
from tests import tabular


def demonstrated(lengths: list[int], *, reward: list[float] | None = None) -> Batch:
    """Rows of these lengths, each of a prompt of its own."""
    made = tabular.trajectory(lengths, list(range(len(lengths))))
    return Batch(
        trajectory=made,
        group=torch.arange(len(lengths)),
        reward=torch.tensor(reward or [1.0] * len(lengths)).double(),
        weight=made.mask.double(),
    )


def log_probs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("aggregate", "expected", "denominator"), [("token", 16 / 6, 6.0), ("sequence", 2.5, 2.0)]
)
def test_by_hand(aggregate: str, expected: float, denominator: float) -> None:
    """Losses (1, 3) and (2, 2, 4, 4): 16 over six tokens; row means 2 and 3, hence 2.5."""
    objective = SFT(aggregate=aggregate)
    batch = objective.credit(demonstrated([2, 4]))
    assert batch.denominator == denominator
    scores = Scores(log_probs=log_probs([-1, -3, 0, 0], [-2, -2, -4, -4]))
    loss = objective.loss(scores, batch)
    assert float(loss.total) / batch.denominator == pytest.approx(expected)
    total, count = loss.metrics["logps/steps"]
    assert (float(total), float(count)) == (-16.0, 6.0)


def test_a_uniform_distribution_costs_its_logarithm() -> None:
    """log V a token, here of five symbols."""
    batch = SFT().credit(demonstrated([3, 2, 4]))
    uniform = torch.where(batch.trajectory.mask, -math.log(5), 0.0)
    loss = SFT().loss(Scores(log_probs=uniform), batch)
    assert float(loss.total) / batch.denominator == pytest.approx(math.log(5))


def test_it_is_the_cross_entropy_of_torch() -> None:
    """Value and gradient, padding ignored."""
    model = tabular.Tabular()
    batch = SFT().credit(demonstrated([4, 1, 3]))
    loss = SFT().loss(model.scores(batch.trajectory), batch).total / batch.denominator
    (mine,) = torch.autograd.grad(loss, model.logits)
    rows = batch.trajectory
    labels = torch.where(rows.mask, rows.stepwise["symbol"], -100)
    theirs = torch.nn.functional.cross_entropy(
        model.logits[rows.stepwise["state"]].flatten(0, 1), labels.flatten()
    )
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()))
    assert torch.allclose(mine, torch.autograd.grad(theirs, model.logits)[0])


def test_rows_that_earned_nothing_are_not_imitated() -> None:
    """The rejected sides of recorded pairs, and what nobody judged; both are counted."""
    batch = demonstrated([2, 3, 1, 2], reward=[1.0, 0.0, math.nan, 1.0])
    found = SFT().credit(replace(batch, pairs=torch.tensor([[0, 1]]), group=torch.zeros(4).long()))
    assert found.trajectory.mask.sum(1).tolist() == [2, 2]
    assert found.denominator == 4.0 and found.pairs is None
    assert found.counters == {"dropped/unrewarded": 1.0, "dropped/unjudged": 1.0}
    picky = SFT(min_reward=0.7).credit(demonstrated([2, 3], reward=[0.7, 0.8]))
    assert picky.denominator == 3.0


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_pieces_add_up(aggregate: str) -> None:
    model, objective = tabular.Tabular(), SFT(aggregate=aggregate)
    batch = objective.credit(demonstrated([4, 1, 3, 2, 5]))

    def gradient(rows: int | None, steps: int | None) -> Tensor:
        model.logits.grad = None
        for piece in batch.microbatches(rows=rows, steps=steps, additive_over="step"):
            objective.loss(model.scores(piece.trajectory), piece).total.backward()
        assert model.logits.grad is not None
        return model.logits.grad.clone()

    whole = gradient(None, None)
    assert torch.allclose(whole, gradient(2, None)) and torch.allclose(whole, gradient(1, 2))


def test_a_batch_without_anything_to_imitate_has_no_signal() -> None:
    """It is scored, counts nothing, and the update is skipped."""
    empty = SFT().credit(demonstrated([2, 3], reward=[0.0, 0.0]))
    assert empty.denominator == 0.0 and not invariants.has_signal(empty)
    assert float(SFT().loss(Scores(log_probs=log_probs([-1, -1, 0])), empty).total) == 0.0
    assert invariants.has_signal(SFT().credit(demonstrated([2])))


def test_it_needs_nothing() -> None:
    """No reference, and log-probs that are bounds will do."""
    assert SFT().needs == frozenset()
    with pytest.raises(ValueError, match="aggregate"):
        SFT(aggregate="mean")
