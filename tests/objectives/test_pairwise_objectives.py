"""DPO and IPO: numbers, which pairs are made and dropped, empty batches, metrics."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign import functional
from mmalign.objectives import DPO, IPO
from mmalign.types import Batch, Scores, Trajectory
from tests import tabular


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_pairs() -> tuple[Scores, Batch]:
    """Pairs A (3 and 2 steps) and B (2 and 4), rejected side first in B, padded to 4 steps.

    Sums of the log-probs: A -2.2, -3.5 (reference -2.7, -3.2), B -2.0, -1.8 (-1.8, -2.2); so the
    log-ratios are 0.5, -0.3 and -0.2, 0.4.
    """
    rows = [[-0.5, -1.0, -0.7], [-1.5, -2.0], [-0.4, -0.6, -0.5, -0.3], [-1.1, -0.9]]
    reference = [[-0.6, -1.2, -0.9], [-1.3, -1.9], [-0.5, -0.7, -0.5, -0.5], [-1.0, -0.8]]
    made = tabular.trajectory([len(r) for r in rows], [0, 0, 1, 1])

    def table(values: list[list[float]]) -> Tensor:
        filled = torch.zeros(4, 4, dtype=torch.float64)
        for row, v in zip(filled, values, strict=True):
            row[: len(v)] = doubles(*v)
        return filled

    batch = Batch(
        trajectory=made,
        group=torch.tensor([0, 0, 1, 1]),
        reward=doubles(1, 0, 0, 1),
        weight=made.mask.double(),
        reference=table(reference),
    )
    return Scores(log_probs=table(rows)), batch


def test_dpo_by_hand():
    """Beta 0.5: beta D = (0.4, -0.3), losses log(1 + exp(-0.4)) = 0.513015 and 0.854355."""
    scores, batch = two_pairs()
    batch = DPO(beta=0.5).credit(batch)
    assert batch.pairs.tolist() == [[0, 1], [3, 2]] and batch.denominator == 2.0
    loss = DPO(beta=0.5).loss(scores, batch)
    assert loss.total.item() == pytest.approx(0.513015 + 0.854355, abs=1e-6)
    expected = {
        "loss": (1.367370, 2),
        "rewards/chosen": (0.5 * (0.5 - 0.2), 2),
        "rewards/rejected": (0.5 * (-0.3 + 0.4), 2),
        "rewards/margins": (0.5 * (0.8 - 0.6), 2),
        "rewards/accuracies": (1, 2),
        "logps/chosen": (-2.2 - 2.0, 2),
        "logps/rejected": (-3.5 - 1.8, 2),
    }
    assert loss.metrics.keys() == expected.keys()
    for name, (total, count) in expected.items():
        assert float(loss.metrics[name][0]) == pytest.approx(total, abs=1e-6), name
        assert float(loss.metrics[name][1]) == count, name


def test_likelihood_of_the_chosen_side_by_hand():
    """Beta 0.5 and sft_weight 0.1: the two losses above, 0.513015 + 0.854355, and the mean
    cross-entropies of the chosen sides, 2.2 / 3 and 2.0 / 2 nats:
    1.367370 + 0.1 (0.733333 + 1) = 1.540703.

    By a log-prob of A's chosen side the gradient is
    -0.5 sigmoid(-0.4) - 0.1 / 3 = -0.200656 - 0.033333, by one of its rejected side 0.200656 alone.
    """
    scores, batch = two_pairs()
    objective = DPO(beta=0.5, sft_weight=0.1)
    batch = objective.credit(batch)
    assert batch.denominator == 2.0
    scores = replace(scores, log_probs=scores.log_probs.clone().requires_grad_())
    loss = objective.loss(scores, batch)
    assert loss.total.item() == pytest.approx(1.540703, abs=1e-6)
    loss.total.backward()
    gradient = scores.log_probs.grad
    assert gradient[0, :3].tolist() == pytest.approx([-0.233989] * 3, abs=1e-6)
    assert gradient[1, :2].tolist() == pytest.approx([0.200656] * 2, abs=1e-6)
    assert gradient[0, 3] == 0 and (gradient[1, 2:] == 0).all()


def test_with_likelihood_at_the_reference():
    """Policy and reference agree: log 2 + 0.1 NLL for each of the two pairs."""
    scores, batch = two_pairs()
    batch = replace(batch, reference=scores.log_probs)
    objective = DPO(sft_weight=0.1)
    total = objective.loss(scores, objective.credit(batch)).total.item()
    assert total == pytest.approx(2 * math.log(2) + 0.1 * (2.2 / 3 + 2.0 / 2))


@pytest.mark.parametrize(
    ("objective", "losses"),
    [
        (DPO(beta=0.5, label_smoothing=0.1), (0.553015, 0.824355)),
        (IPO(beta=0.5), (0.466944, 1.44)),
        (IPO(beta=0.5, reduction="sum"), (0.04, 2.56)),
    ],
)
def test_relatives_by_hand(objective, losses):
    """The same pairs; numbers derived beside `tests/functional/test_pairwise_losses.py`."""
    scores, batch = two_pairs()
    total = objective.loss(scores, objective.credit(batch)).total
    assert total.item() == pytest.approx(sum(losses), abs=1e-6)


def test_landmark_at_the_reference():
    """Log 2 a pair for DPO, 1 / (4 beta^2) for IPO."""
    batch = tabular.scored(tabular.batch([(1, 0), (0, 1), (2, 1)]), reference=tabular.Tabular())
    scores = tabular.Tabular().scores(batch.trajectory)
    assert DPO().loss(scores, DPO().credit(batch)).total.item() == pytest.approx(3 * math.log(2))
    assert IPO().loss(scores, IPO().credit(batch)).total.item() == pytest.approx(3 * 25)


def test_gradient_identity():
    """By each chosen step's log-prob -beta sigmoid(-beta D), by each rejected step's plus that."""
    scores, batch = two_pairs()
    log_probs = scores.log_probs.clone().requires_grad_()
    batch = DPO(beta=0.5).credit(batch)
    DPO(beta=0.5).loss(Scores(log_probs=log_probs), batch).total.backward()
    a, b = (0.5 * torch.sigmoid(doubles(-0.5 * d)).item() for d in (0.8, -0.6))
    expected = doubles(-a, a, b, -b)[:, None] * batch.trajectory.mask
    torch.testing.assert_close(log_probs.grad, expected)


def test_weights_act():
    """Weight 0.5 on the chosen row of A alone: s = -1.1, reference -1.35, log-ratio 0.25."""
    scores, batch = two_pairs()
    batch = replace(batch, weight=batch.weight * doubles(0.5, 1, 1, 1)[:, None])
    loss = DPO(beta=0.5).loss(scores, DPO(beta=0.5).credit(batch))
    expected = functional.dpo(
        doubles(-1.1, -2.0), doubles(-3.5, -1.8), doubles(-1.35, -1.8), doubles(-3.2, -2.2),
        torch.tensor([3, 2]), torch.tensor([2, 4]), beta=0.5,
    )  # fmt: skip
    torch.testing.assert_close(loss.total, expected.sum())


def test_steps_of_weight_zero_are_no_steps():
    """IPO divides by the steps that weigh: dropping A's last chosen step is dropping it."""
    scores, batch = two_pairs()
    weight = batch.weight.clone()
    weight[0, 2] = 0.0
    weighted = IPO().loss(scores, IPO().credit(replace(batch, weight=weight))).total
    mask = batch.trajectory.mask.clone()
    mask[0, 2] = False
    shorter = replace(batch, trajectory=replace(batch.trajectory, mask=mask))
    shorter = replace(shorter, weight=mask.double())
    torch.testing.assert_close(IPO().loss(scores, IPO().credit(shorter)).total, weighted)


def test_coefficients_act_and_zero_is_absent():
    """Coefficients (3, 0): three times pair A over a denominator of 3, and no metric of B."""
    scores, batch = two_pairs()
    batch = replace(batch, pairs=torch.tensor([[0, 1], [3, 2]]), coefficient=doubles(3.0, 0.0))
    batch = DPO(beta=0.5).credit(batch)
    loss = DPO(beta=0.5).loss(scores, batch)
    assert batch.denominator == 3.0
    assert loss.total.item() == pytest.approx(3 * 0.513015, abs=1e-5)
    assert float(loss.metrics["logps/chosen"][0]) == pytest.approx(-2.2)
    assert float(loss.metrics["logps/chosen"][1]) == 1


def test_every_two_rows_of_a_group_that_differ():
    """Rewards (2, 0, 2, 1): pairs 0>1, 0>3, 2>1, 2>3, 3>1; the tie 0=2 is counted."""
    batch = DPO().credit(tabular.batch([(2, 0, 2, 1)]))
    assert sorted(map(tuple, batch.pairs.tolist())) == [(0, 1), (0, 3), (2, 1), (2, 3), (3, 1)]
    assert batch.counters["dropped/ties"] == 1.0 and batch.denominator == 5.0


def test_ties_and_unjudged_rows_are_dropped_and_counted():
    """Group 0 ties, group 1 is a pair, group 2 has one judge's word: two rows remain."""
    batch = DPO().credit(tabular.batch([(1, 1), (0, 3), (math.nan, 1)]))
    assert len(batch) == 2 and batch.trajectory.outputs == ["row 3", "row 2"][::-1]
    assert batch.pairs.tolist() == [[1, 0]]
    assert batch.counters == {
        "dropped/ties": 1.0, "dropped/margin": 0.0, "dropped/unjudged": 1.0,
        "dropped/identical": 0.0,
    }  # fmt: skip


def test_counters_have_the_same_names_whatever_happened():
    """They are added over processes, one by one: a missing name would be waited for for ever."""
    clean = DPO().credit(tabular.batch([(0, 3)]))
    messy = DPO().credit(tabular.batch([(1, 1), (0, 3), (math.nan, 1)]))
    assert clean.counters.keys() == messy.counters.keys()


def identical_rows() -> Batch:
    """Groups of two: the same steps (behind the end they differ); same but longer; different."""
    made = tabular.trajectory([3, 3, 2, 3, 3, 3], [0, 0, 1, 1, 2, 2])
    stepwise = {k: v.clone() for k, v in made.stepwise.items()}
    for value in stepwise.values():
        value[1], value[3, :2] = value[0], value[2, :2]
    stepwise["symbol"][4, 1], stepwise["symbol"][5] = 1, 0
    mask = made.mask.clone()
    mask[:2, 2] = False
    stepwise["symbol"][0, 2], stepwise["symbol"][1, 2] = 1, 2
    made = replace(made, mask=mask, stepwise=stepwise)
    return Batch(
        trajectory=made,
        group=torch.tensor([0, 0, 1, 1, 2, 2]),
        reward=doubles(1, 0, 1, 0, 1, 0),
        weight=made.mask.double(),
    )


def test_identical_sides_are_dropped():
    batch = DPO().credit(identical_rows())
    assert batch.counters["dropped/identical"] == 1.0
    assert batch.pairs.tolist() == [[0, 1], [2, 3]] and batch.denominator == 2.0
    assert batch.trajectory.outputs == ["row 2", "row 3", "row 4", "row 5"]


def test_same_answer_to_two_prompts_is_no_identical_pair():
    """The sides of a pair may see different pictures; then the same words are no mistake."""
    batch = identical_rows()
    apart = Trajectory(
        mask=batch.trajectory.mask,
        prompt_of=torch.arange(6),
        static={"number": torch.arange(6)},
        stepwise=batch.trajectory.stepwise,
        outputs=batch.trajectory.outputs,
    )
    batch = DPO().credit(replace(batch, trajectory=apart))
    assert batch.counters["dropped/identical"] == 0.0 and len(batch.pairs) == 3


@pytest.mark.parametrize("objective", [DPO(), IPO()])
def test_a_batch_that_loses_all_its_pairs(objective):
    """Loss 0 with a graph, gradient exactly 0, denominator 0, metrics of nothing; pieces too."""
    batch = tabular.scored(
        tabular.batch([(1, 1), (2, 2), (3, 3)]), reference=tabular.Tabular(seed=1)
    )
    batch = objective.credit(batch)
    assert len(batch.pairs) == 0 and batch.denominator == 0.0 and len(batch) == 2
    policy = tabular.Tabular()
    for piece in batch.microbatches(rows=2, steps=None, additive_over="group"):
        loss = objective.loss(policy.scores(piece.trajectory), piece)
        loss.total.backward()
        assert loss.total.item() == 0.0
        assert all(float(c) == 0.0 for _, c in loss.metrics.values())
    assert (policy.logits.grad == 0).all()


def test_pairs_of_a_selector_are_kept():
    _, batch = two_pairs()
    batch = DPO().credit(replace(batch, pairs=torch.tensor([[2, 3]])))
    assert batch.pairs.tolist() == [[0, 1]] and batch.trajectory.outputs == ["row 2", "row 3"]
    assert batch.denominator == 1.0


def test_misuse():
    _, batch = two_pairs()
    with pytest.raises(ValueError, match=r"pair 1 .*two groups"):
        DPO().credit(replace(batch, pairs=torch.tensor([[0, 1], [0, 2]])))
    with pytest.raises(ValueError, match="combine the objectives"):
        DPO().credit(replace(batch, reward=torch.zeros(4, 2)))


def test_a_few_updates_raise_the_chosen_side():
    """The sign, from end to end: 30 steps of gradient descent raise margin and accuracy."""
    policy = tabular.Tabular()
    batch = DPO().credit(tabular.scored(tabular.batch([(1, 0)] * 8), reference=tabular.Tabular()))
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    for _ in range(30):
        loss = DPO().loss(policy.scores(batch.trajectory), batch)
        optimizer.zero_grad()
        (loss.total / batch.denominator).backward()
        optimizer.step()
    count = float(loss.metrics["rewards/margins"][1])
    assert float(loss.metrics["rewards/margins"][0]) / count > 0.1
    assert float(loss.metrics["rewards/accuracies"][0]) == count
