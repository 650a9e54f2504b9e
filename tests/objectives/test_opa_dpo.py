"""OPA-DPO and mDPO: numbers by hand, landmarks, signs, pieces."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.functional import dpo
from mmalign.objectives import DPO, OPADPO
from mmalign.types import Batch, Scores
from tests import tabular

LOG2 = math.log(2)
CHOSEN, REJECTED, TRUTH, CHOSEN_DISTORTED, TRUTH_DISTORTED = range(5)


def record_batch(*, count: int = 1, lengths: tuple[int, ...] = (1,) * 5, **more: Any) -> Batch:
    """OPA-DPO's records: revision, sample, truth, and both right answers with a distorted view."""
    rows = [n for _ in range(count) for n in lengths]
    prompt_of = [2 * i + (row >= 3) for i in range(count) for row in range(5)]
    made = tabular.trajectory(rows, prompt_of)
    pairs = torch.tensor([[2, 1], [0, 1], [0, 3], [2, 4]])
    return Batch(
        trajectory=made,
        group=torch.arange(count).repeat_interleave(5),
        reward=torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]).repeat(count).double(),
        weight=made.mask.double(),
        reference=torch.zeros(made.mask.shape, dtype=torch.float64),
        pairs=torch.cat([pairs + 5 * i for i in range(count)]),
        coefficient=torch.tensor([1.0, 1.0, 0.2, 0.2]).repeat(count),
        **more,
    )


def scored(*log_ratios: float) -> Scores:
    """Rows of one step with these log-ratios to a reference of 0."""
    return Scores(log_probs=torch.tensor(log_ratios, dtype=torch.float64).unsqueeze(1))


def total(objective: OPADPO, batch: Batch, scores: Scores) -> float:
    batch = objective.credit(batch)
    return float(objective.loss(scores, batch).total.detach()) / batch.denominator


def test_by_hand() -> None:
    """One step a row, h = 1, -1, 2, 0.5, 0; beta 0.5; S(z) = log(1 + exp(-z)).

    Pair truth > sample: S(0.5 * 3) = 0.201413. Pair revision > sample, weights 2 and 2.5:
    S(0.5 (2 * 1 + 2.5 * 1)) = S(2.25) = 0.100206. Views, gamma 1 = 0.2: revision with weight 3,
    S(0.5 * 3 * 0.5) = S(0.75) = 0.386871; truth, S(0.5 * 2) = S(1) = 0.313262; together 0.140027.
    Anchors, unweighted: S(0.5) + S(1) = 0.474077 + 0.313262 = 0.787339. Sum: 1.228985.
    """
    weights = torch.tensor([[1.0, 1.0], [2.0, 2.5], [3.0, 3.0], [1.0, 1.0]]).unsqueeze(2)
    batch = record_batch(pair_weight=weights)
    scores = scored(1.0, -1.0, 2.0, 0.5, 0.0)
    assert total(OPADPO(beta=0.5), batch, scores) == pytest.approx(1.228985, abs=1e-6)
    without = total(OPADPO(beta=0.5, anchor_weight=0.0), batch, scores)
    assert without == pytest.approx(1.228985 - 0.787339, abs=2e-6)
    # A shift of 0.25: S(0.5 - 0.25) + S(1 - 0.25) = 0.575939 + 0.386871.
    shifted = total(OPADPO(beta=0.5, anchor_shift=0.25), batch, scores)
    assert shifted == pytest.approx(without + 0.575939 + 0.386871, abs=2e-6)


@pytest.mark.parametrize("token_level", [False, True])
def test_landmark_at_the_reference(token_level: bool) -> None:
    """2 log 2 (1 + 0.2 + 1) = 3.049848 a record; mDPO's has three terms of weight 1: 3 log 2."""
    batch = record_batch(count=3, lengths=(4, 2, 3, 4, 3))
    scores = Scores(log_probs=torch.zeros_like(batch.weight))
    objective = OPADPO(token_level=token_level)
    assert total(objective, batch, scores) == pytest.approx(3.049848, abs=1e-6)
    plain = replace(
        batch.rows(torch.tensor([CHOSEN, REJECTED, CHOSEN_DISTORTED])),
        pairs=torch.tensor([[0, 1], [0, 2]]),
        coefficient=torch.ones(2),
    )
    one = Scores(log_probs=torch.zeros_like(plain.weight))
    assert total(objective, plain, one) == pytest.approx(3 * LOG2, abs=1e-6)


def test_weights_of_one_make_the_second_pair_plain_dpo() -> None:
    """All scores 4: the term of revision and sample is DPO of the two."""
    lengths = (3, 4, 2, 3, 2)
    batch = record_batch(lengths=lengths)
    ones = replace(batch, pair_weight=batch.pair_weights())
    scores = tabular.Tabular().scores(batch.trajectory)
    objective = OPADPO(anchor_weight=0.0)
    assert total(objective, ones, scores) == pytest.approx(total(objective, batch, scores))
    only = replace(ones, coefficient=torch.tensor([0.0, 1.0, 0.0, 0.0]))
    s, n = scores.log_probs.sum(1), torch.ones(1)
    zero = torch.zeros(1)
    plain = dpo(s[CHOSEN], s[REJECTED], zero, zero, n, n, beta=0.1)
    assert total(objective, only, scores) == pytest.approx(float(plain))
    # The same through the plain objective, which reads the same weights.
    paired = DPO(beta=0.1).credit(only)
    assert float(DPO(beta=0.1).loss(scores, paired).total) == pytest.approx(float(plain))


def test_one_view_twice_teaches_nothing_about_pictures() -> None:
    """m' = m: the terms of the views are 2 log 2, and no gradient comes from them."""
    batch = OPADPO().credit(record_batch(lengths=(3, 4, 2, 3, 2)))
    same = [CHOSEN, REJECTED, TRUTH, CHOSEN, TRUTH]
    batch = replace(batch, trajectory=batch.trajectory.rows(torch.tensor(same)))
    views = replace(batch, coefficient=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    model = tabular.Tabular()
    loss = OPADPO(anchor_weight=0.0).loss(model.scores(views.trajectory), views).total
    assert float(loss) == pytest.approx(2 * LOG2, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, model.logits)
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("token_level", [False, True])
def test_anchors_raise_both_right_answers(token_level: bool) -> None:
    """A likelier revision lowers the anchor's part; with the released signs it raises it."""
    batch = record_batch()

    def anchors(revision: float, **settings: Any) -> float:
        scores = scored(revision, 0.0, 0.0, 0.0, 0.0)
        whole = OPADPO(token_level=token_level, **settings)
        return total(whole, batch, scores) - total(replace(whole, anchor_weight=0.0), batch, scores)

    assert anchors(1.0) < anchors(0.0) == pytest.approx(2 * LOG2)
    assert anchors(1.0, released_signs=True) > anchors(0.0, released_signs=True)
    # The truth keeps its sign, also in the released code.
    truth = scored(0.0, 0.0, 1.0, 0.0, 0.0)
    assert total(OPADPO(released_signs=True), batch, truth) == total(OPADPO(), batch, truth)


def test_released_signs_by_hand() -> None:
    """h = 2 for both, beta 0.5, shift 0.5: S(1 - 0.5) + S(-1 + 0.5) = 0.474077 + 0.974077."""
    batch, scores = record_batch(), scored(2.0, 0.0, 2.0, 0.0, 0.0)
    settings = {"beta": 0.5, "anchor_shift": 0.5, "released_signs": True}
    found = total(OPADPO(**settings), batch, scores)
    found -= total(OPADPO(anchor_weight=0.0, **settings), batch, scores)
    assert found == pytest.approx(0.474077 + 0.974077, abs=2e-6)


def two_answers(weights: Tensor | None = None) -> Batch:
    """A chosen answer of one token and a rejected one of two, in three columns."""
    made = tabular.trajectory([1, 2], [0, 0])
    made = replace(made, mask=torch.nn.functional.pad(made.mask, (0, 1)))
    return Batch(
        trajectory=replace(
            made,
            stepwise={k: torch.nn.functional.pad(v, (0, 1)) for k, v in made.stepwise.items()},
        ),
        group=torch.zeros(2).long(),
        reward=torch.tensor([1.0, 0.0]),
        weight=made.mask.double(),
        reference=torch.zeros(2, 3).double(),
        pairs=torch.tensor([[0, 1]]),
        pair_weight=weights,
    )


def test_position_by_position() -> None:
    """h = (1) and (-1, 2) in three positions, beta 1: S(2) + S(-2) + log 2, over three.

    0.126928 + 2.126928 + 0.693147 = 2.947003; a third is 0.982334. The anchor: S(1) + 2 log 2 =
    1.699556, a third 0.566519. Over 10 positions: (2.947003 + 7 log 2) / 10 = 0.779903 and
    (1.699556 + 7 log 2) / 10 = 0.655159. With weight 2 on the chosen token S(3) = 0.048587 stands
    in place of S(2).
    """
    scores = Scores(log_probs=torch.tensor([[1.0, 0.0, 0.0], [-1.0, 2.0, 0.0]]).double())
    for settings, pair, anchor in (
        ({}, 0.982334, 0.566519),
        ({"positions": 10}, 0.779903, 0.655159),
    ):
        objective = OPADPO(beta=1.0, token_level=True, **settings)
        alone = replace(objective, anchor_weight=0.0)
        assert total(alone, two_answers(), scores) == pytest.approx(pair, abs=2e-6)
        assert total(objective, two_answers(), scores) == pytest.approx(pair + anchor, abs=2e-6)
    weights = torch.tensor([[[2.0, 0, 0], [1.0, 1, 0]]])
    weighed = OPADPO(beta=1.0, token_level=True, anchor_weight=0.0)
    expected = (0.048587 + 2.126928 + LOG2) / 3
    assert total(weighed, two_answers(weights), scores) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"anchor_shift": 0.3}, {"token_level": True}, {"token_level": True, "positions": 9}],
)
def test_gradient(settings: dict[str, Any]) -> None:
    """Against finite differences."""
    batch = record_batch(count=2, lengths=(3, 4, 2, 3, 2))
    weights = torch.rand(8, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    objective = OPADPO(beta=0.7, **settings)
    batch = objective.credit(replace(batch, pair_weight=weights * batch.pair_weights()))

    def loss(values: Tensor) -> Tensor:
        masked = torch.where(batch.trajectory.mask, values, 0.0)
        return objective.loss(Scores(log_probs=masked), batch).total

    values = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(loss, values.requires_grad_())


@pytest.mark.parametrize("token_level", [False, True])
def test_pieces_add_up(token_level: bool) -> None:
    """Records stay whole, and every piece has the weights of its own pairs."""
    model, objective = tabular.Tabular(1), OPADPO(token_level=token_level, released_signs=True)
    batch = record_batch(count=4, lengths=(3, 4, 2, 3, 2))
    weights = torch.rand(16, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    batch = objective.credit(replace(batch, pair_weight=weights * batch.pair_weights()))

    def gradient(rows: int | None) -> Tensor:
        model.logits.grad = None
        pieces = list(batch.microbatches(rows=rows, steps=None, additive_over="group"))
        assert len(pieces) == (1 if rows is None else 4)
        for piece in pieces:
            objective.loss(model.scores(piece.trajectory), piece).total.backward()
        assert model.logits.grad is not None
        return model.logits.grad.clone()

    assert torch.allclose(gradient(None), gradient(5), atol=1e-12)


def test_records_that_weigh_nothing_do_not_count() -> None:
    """A process without data keeps step: a row that counts in neither sum nor denominator."""
    batch = record_batch(count=2)
    nothing = torch.tensor([1.0, 1.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0])
    found = OPADPO().credit(replace(batch, coefficient=nothing))
    assert found.denominator == 1.0 and len(found) == 5
    empty = OPADPO().credit(replace(batch, coefficient=torch.zeros(8)))
    assert empty.denominator == 0.0
    zeros = Scores(log_probs=torch.zeros_like(empty.weight))
    assert float(OPADPO().loss(zeros, empty).total) == 0.0


def test_metrics_keep_answers_and_views_apart() -> None:
    """h = 1, -1, 2, 0.5, 0 at beta 1: margins 3 and 2 of answers, 0.5 and 2 of views."""
    batch = OPADPO(beta=1.0).credit(record_batch())
    found = OPADPO(beta=1.0).loss(scored(1.0, -1.0, 2.0, 0.5, 0.0), batch).metrics
    means = {name: float(t) / float(n) for name, (t, n) in found.items()}
    assert means["rewards/margins"] == 2.5 and means["rewards/view_margins"] == 1.25
    assert means["rewards/accuracies"] == means["rewards/view_accuracies"] == 1.0
    assert means["loss"] == pytest.approx(means["loss/pairs"] + 2 * means["loss/anchors"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"anchor_weight": -1.0}, "anchor_weight"),
        ({"positions": 5}, "token_level"),
        ({"positions": 0, "token_level": True}, "at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPADPO(**settings)


def test_too_few_positions_are_refused() -> None:
    batch = record_batch(lengths=(3, 4, 2, 3, 2))
    with pytest.raises(ValueError, match="positions=3 is less than the 4 steps"):
        OPADPO(token_level=True, positions=3).credit(batch)
