"""AOT and BCO: numbers, whole-batch gradients from pieces, what is ranked and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.objectives import AOT, BCO, DPO, AOTUnpaired
from mmalign.objectives.pair import PairObjective
from mmalign.types import Batch, Scores
from tests import tabular
from tests.objectives.test_pairwise_objectives import doubles, two_pairs

EVERY = [AOT(beta=0.5), AOT(beta=0.5, label_smoothing=0.2), AOTUnpaired(beta=0.5), BCO(beta=0.5)]
every = pytest.mark.parametrize("objective", EVERY, ids=str)
REWARDS = [(1.0, 0.0), (0.5, 2.0), (3.0, 1.0, 2.0), (0.0, 1.0), (1.0, 1.0)]


def recorded(sums: list[float], reference: list[float]) -> tuple[Scores, Batch]:
    """One-step rows with these log-probs: chosen and rejected side of each pair in turn."""
    count = len(sums) // 2
    made = tabular.trajectory([1] * len(sums), [i // 2 for i in range(len(sums))])
    scores = Scores(log_probs=doubles(*sums).unsqueeze(1).requires_grad_())
    batch = Batch(
        trajectory=made,
        group=torch.arange(count).repeat_interleave(2),
        reward=doubles(1, 0).repeat(count),
        weight=made.mask.double(),
        reference=doubles(*reference).unsqueeze(1),
        behaviour=scores.log_probs.detach(),
    )
    return scores, batch


def total(objective: PairObjective, scores: Scores, batch: Batch) -> float:
    return objective.loss(scores, objective.credit(batch)).total.item()


def a_batch() -> Batch:
    made = tabular.batch(REWARDS, seed=5)
    return tabular.scored(
        made, reference=tabular.Tabular(seed=1), behaviour=tabular.Tabular(seed=2)
    )


def test_aot_meets_the_margin_of_its_rank():
    """Policy margins (1.3, -0.2), reference margins (0.4, 0.5), beta 0.5. The larger margin 1.3
    meets 0.5, the smaller -0.2 meets 0.4: d = (0.8, -0.6), losses log(1 + exp(-0.4)) = 0.513015 and
    log(1 + exp(0.3)) = 0.854355. DPO takes each pair's own: 0.493249 and 0.883382.

    Gradients by the chosen side: -0.5 / (1 + exp(0.4)) = -0.200656, -0.5 / (1 + exp(-0.3)) =
    -0.287221.
    """
    scores, batch = recorded([-2.2, -3.5, -2.0, -1.8], [-2.8, -3.2, -1.7, -2.2])
    credited = AOT(beta=0.5).credit(batch)
    assert credited.denominator == 2.0
    # Ranked third of all is whose reference: pair A meets B's, pair B meets A's.
    expected = doubles(-1.7, -2.2, -2.8, -3.2).view(2, 2)
    torch.testing.assert_close(credited.pair_anchor, expected)
    loss = AOT(beta=0.5).loss(scores, credited)
    assert loss.total.item() == pytest.approx(0.513015 + 0.854355, abs=1e-6)
    assert total(DPO(beta=0.5), scores, batch) == pytest.approx(0.493249 + 0.883382, abs=1e-6)
    loss.total.backward()
    found = scores.log_probs.grad.flatten()
    by_hand = doubles(-0.200656, 0.200656, -0.287221, 0.287221)
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)


def test_aot_unpaired_meets_the_partner_of_its_rank():
    """h_w = (0.5, -0.2) and h_l = (-0.3, 0.4), sorted (-0.2, 0.5) and (-0.3, 0.4): d = 0.1 twice,
    losses log(1 + exp(-0.05)) = 0.668460, gradients -0.5 / (1 + exp(0.05)) = -0.243751 by either
    chosen side and the opposite by either rejected side.
    """
    scores, batch = two_pairs()
    leaf = scores.log_probs.clone().requires_grad_()
    batch = AOTUnpaired(beta=0.5).credit(replace(batch, behaviour=scores.log_probs))
    # Pair A: 0.5 meets 0.4, and -0.3 meets -0.2; pair B: -0.2 meets -0.3, and 0.4 meets 0.5.
    expected = doubles(0.4, -0.2, -0.3, 0.5).view(2, 2)
    torch.testing.assert_close(batch.pair_anchor, expected)
    loss = AOTUnpaired(beta=0.5).loss(Scores(log_probs=leaf), batch)
    assert loss.total.item() == pytest.approx(2 * 0.668460, abs=1e-6)
    loss.total.backward()
    signs = doubles(-1, 1, 1, -1)
    torch.testing.assert_close(leaf.grad[:, 0], 0.243751 * signs, atol=1e-6, rtol=0)


def test_bco_is_shifted_by_the_mean_reward():
    """Rewards 0.5 (0.5, -0.3, -0.2, 0.4), mean 0.05. Pair A: log(1 + exp(-0.2)) +
    log(1 + exp(-0.2)) = 1.196278; pair B: log(1 + exp(0.15)) + log(1 + exp(0.15)) = 1.541914.
    """
    scores, batch = two_pairs()
    leaf = scores.log_probs.clone().requires_grad_()
    batch = BCO(beta=0.5).credit(replace(batch, behaviour=scores.log_probs))
    assert batch.metrics["rewards/shift"] == (pytest.approx(0.05), 1.0)
    loss = BCO(beta=0.5).loss(Scores(log_probs=leaf), batch)
    assert loss.total.item() == pytest.approx(1.196278 + 1.541914, abs=1e-6)
    loss.total.backward()
    by_hand = doubles(-0.225083, 0.225083, 0.268715, -0.268715)
    torch.testing.assert_close(leaf.grad[:, 0], by_hand, atol=1e-6, rtol=0)


def gradient_of_pieces(
    objective: PairObjective, batch: Batch, rows: int | None
) -> tuple[Tensor, Tensor]:
    """Value and gradient, summed over pieces, at the policy that the behaviour is of."""
    policy = tabular.Tabular(seed=2)
    value = torch.zeros((), dtype=torch.float64)
    for piece in batch.microbatches(rows=rows, steps=None, additive_over="group"):
        loss = objective.loss(policy.scores(piece.trajectory), piece).total
        loss.backward()
        value += loss.detach()
    return value, policy.logits.grad


@every
@pytest.mark.parametrize("rows", [None, 2, 4])
def test_pieces_give_the_gradient_of_the_whole(objective, rows):
    """Against the formula of the whole batch, differentiated through its sorting or its sums.

    Six pairs, three of them of one group, rows of unequal lengths.
    """
    batch = objective.credit(a_batch())
    assert len(batch.pairs) == 6
    if isinstance(objective, AOT):
        own = batch.reference.sum(1)[batch.pairs]
        assert (batch.pair_anchor - own).abs().max() > 0.1, "no pair meets another's reference"
    policy = tabular.Tabular(seed=2)
    found = policy.scores(batch.trajectory).log_probs.sum(1)[batch.pairs]
    reference = batch.reference.sum(1)[batch.pairs]
    steps = batch.trajectory.mask.sum(1)[batch.pairs]
    whole = objective.formula(*found.unbind(1), *reference.unbind(1), *steps.unbind(1)).sum()
    whole.backward()
    value, gradient = gradient_of_pieces(objective, batch, rows)
    torch.testing.assert_close(value, whole.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, policy.logits.grad, rtol=1e-12, atol=1e-12)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("objective", [AOT(beta=0.5), AOTUnpaired(beta=0.5)], ids=str)
def test_one_pair_is_dpo(objective):
    scores, batch = recorded([-2.2, -3.5], [-2.8, -3.2])
    assert total(objective, scores, batch) == pytest.approx(
        total(DPO(beta=0.5), scores, batch), abs=1e-12
    )


def test_who_is_paired_with_whom_does_not_matter():
    """Exchanging the rejected sides of three pairs leaves the unpaired loss, and not the paired."""
    sums, reference = [-2.2, -3.5, -2.0, -1.8, -1.0, -2.9], [-2.7, -3.2, -1.8, -2.2, -1.1, -2.6]
    order = [0, 3, 2, 5, 4, 1]
    before = recorded(sums, reference)
    after = recorded([sums[i] for i in order], [reference[i] for i in order])
    unpaired, paired = AOTUnpaired(beta=0.5), AOT(beta=0.5)
    assert total(unpaired, *after) == pytest.approx(total(unpaired, *before), abs=1e-12)
    assert abs(total(paired, *after) - total(paired, *before)) > 1e-3


@every
def test_where_policy_and_reference_agree(objective):
    """log 2 a pair, twice for the two sides of BCO."""
    scores, batch = recorded([-2.2, -3.5, -2.0, -1.8], [-2.2, -3.5, -2.0, -1.8])
    each = total(objective, scores, batch) / 2
    expected = 2 * math.log(2) if isinstance(objective, BCO) else math.log(2)
    # BCO's mean reward is 0 here.
    assert each == pytest.approx(expected, abs=1e-12)


@every
def test_a_later_update_keeps_what_it_is_compared_with(objective):
    """The policy is another by then, and the statistic is still the first one's."""
    batch = objective.credit(a_batch())
    # Every order is the opposite of the first policy's.
    later = Scores(log_probs=-batch.behaviour)
    kept = objective.loss(later, batch).total
    anew = objective.loss(later, objective.credit(replace(batch, behaviour=later.log_probs))).total
    assert abs(float(kept - anew)) > 1e-4


@every
def test_a_pair_that_weighs_nothing_enters_no_statistic(objective):
    """A process without data keeps a pair of coefficient 0."""
    scores, batch = recorded([-2.2, -3.5, -2.0, -1.8], [-2.8, -3.2, -1.7, -2.2])
    pairs = torch.arange(4).view(2, 2)
    half = objective.credit(replace(batch, pairs=pairs, coefficient=doubles(1, 0)))
    alone = objective.credit(batch.rows(torch.tensor([0, 1])))
    assert half.denominator == alone.denominator == 1.0
    torch.testing.assert_close(half.pair_anchor[:1], alone.pair_anchor)
    first = replace(scores, log_probs=scores.log_probs[:2])
    assert float(objective.loss(scores, half).total.detach()) == pytest.approx(
        float(objective.loss(first, alone).total.detach()), abs=1e-12
    )


def test_weighed_pairs_have_no_rank():
    scores, batch = recorded([-2.2, -3.5, -2.0, -1.8], [-2.8, -3.2, -1.7, -2.2])
    weighed = replace(batch, pairs=torch.arange(4).view(2, 2), coefficient=doubles(1, 0.5))
    for objective in (AOT(), AOTUnpaired()):
        with pytest.raises(ValueError, match=r"weight 0\.5"):
            objective.credit(weighed)
    # A mean knows weights: (0.6 - 0.3) + 0.5 (-0.3 + 0.4) over 1 + 1 + 0.5 + 0.5.
    shift = BCO(beta=1.0).credit(weighed).metrics["rewards/shift"][0]
    assert shift == pytest.approx((0.6 - 0.3 + 0.5 * (-0.3 + 0.4)) / 3)
    assert scores.log_probs.grad is None


@every
def test_a_batch_without_pairs(objective):
    """Tied rewards everywhere: loss 0, with a graph for the backward pass that follows."""
    batch = replace(a_batch(), reward=torch.zeros(11, dtype=torch.float64))
    batch = objective.credit(batch)
    assert batch.denominator == 0.0
    loss = objective.loss(tabular.Tabular(seed=2).scores(batch.trajectory), batch).total
    assert float(loss.detach()) == 0.0 and loss.requires_grad


def test_the_policy_is_asked_before_credit():
    for objective in EVERY:
        assert objective.needs == {"reference", "behaviour", "coupled"}
