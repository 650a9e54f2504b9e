"""PRO, LambdaDPO and TreePO on batches: what makes a list, denominators, steps, no list at all."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import DPO, PRO, LambdaDPO, TreePO
from mmalign.objectives.lambda_dpo import step_factors
from mmalign.types import Batch, Scores
from tests import tabular
from tests.objectives.test_pairwise_objectives import doubles, two_pairs

EVERY = [PRO(), LambdaDPO(), TreePO()]
every = pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)


def rows_of(log_probs: list[list[float]], scores: list[float]) -> tuple[Scores, Batch]:
    """One list of rows with these log-probs of their steps; the reference says 0 of everything."""
    made = tabular.trajectory([len(row) for row in log_probs], [0] * len(log_probs))
    filled = torch.zeros(made.mask.shape, dtype=torch.float64)
    for row, values in zip(filled, log_probs, strict=True):
        row[: len(values)] = doubles(*values)
    batch = Batch(
        trajectory=made,
        group=torch.zeros(len(log_probs), dtype=torch.int64),
        reward=doubles(*scores),
        weight=made.mask.double(),
        reference=torch.zeros_like(filled),
    )
    return Scores(log_probs=filled.requires_grad_()), batch


def test_pro_by_hand():
    """Means (-0.8, -1.0, -1.5) of sums (-3.2, -2.0, -1.5), scores (2, 1, -1), given out of order:
    1.957614 (see `test_lists` of the formulas) + 0.05 (3 - 1)^2 3.2 = 2.597614.
    """
    scores, batch = rows_of([[-1.5], [-0.5, -1.1, -0.6, -1.0], [-1.2, -0.8]], [-1, 2, 1])
    batch = PRO().credit(batch)
    assert batch.denominator == 1.0
    loss = PRO().loss(scores, batch)
    assert loss.total.item() == pytest.approx(2.597614, abs=1e-6)
    assert loss.metrics["logps/best"] == (pytest.approx(-3.2), 1.0)
    assert [float(x) for x in loss.metrics["list/accuracies"]] == [3.0, 3.0]
    without = PRO(sft_weight=0.0).loss(scores, batch).total.item()
    assert without == pytest.approx(1.957614, abs=1e-6)


@every
def test_what_makes_a_list(objective):
    """Kept: rows 0, 1, 3 (row 2 is not judged) and 8, 9. Dropped and counted: the tied list of
    three, the judged row alone.
    """
    rewards = [(1, 0, math.nan, 2), (1, 1, 1), (3, math.nan), (0, 5)]
    batch = tabular.scored(tabular.batch(rewards), reference=tabular.Tabular())
    batch = objective.credit(batch)
    assert batch.trajectory.outputs == ["row 0", "row 1", "row 3", "row 9", "row 10"]
    assert batch.denominator == 2.0 and batch.pairs is None
    assert batch.counters == {
        "dropped/ties": 1.0, "dropped/single": 1.0, "dropped/unjudged": 2.0,
    }  # fmt: skip
    loss = objective.loss(tabular.Tabular(seed=2).scores(batch.trajectory), batch)
    assert loss.metrics["list/size"] == (5.0, 2.0)


@every
def test_a_batch_without_a_list_has_a_graph_and_no_loss(objective):
    made = tabular.scored(tabular.batch([(1, 1), (2, 2, 2)]), reference=tabular.Tabular())
    batch = objective.credit(made)
    policy = tabular.Tabular(seed=2)
    loss = objective.loss(policy.scores(batch.trajectory), batch)
    loss.total.backward()
    assert batch.denominator == 0.0 == loss.total.item()
    assert not policy.logits.grad.any()


@every
def test_rows_without_weight_count_nothing(objective):
    """As the row that keeps a process without data in step with the others."""
    made = tabular.scored(tabular.batch([(1, 0, 2)]), reference=tabular.Tabular())
    batch = objective.credit(replace(made, weight=torch.zeros_like(made.weight)))
    assert batch.denominator == 0.0
    loss = objective.loss(tabular.Tabular(seed=2).scores(batch.trajectory), batch)
    assert loss.total.item() == 0.0


def test_lists_of_two_with_weight_one_are_dpo():
    scores, batch = two_pairs()
    pairs, listed = DPO(beta=0.5), LambdaDPO(beta=0.5, weights="ones")
    batches = [objective.credit(batch) for objective in (pairs, listed)]
    found = [o.loss(scores, b).total.item() for o, b in zip((pairs, listed), batches, strict=True)]
    assert found[0] == pytest.approx(found[1]) == pytest.approx(0.513015 + 0.854355, abs=1e-6)
    assert batches[0].denominator == batches[1].denominator == 2.0


# ---- trees: what the released code of TPO gets wrong ------------------------------------------


def tree() -> tuple[Scores, Batch]:
    """Branches of values (1, 0.5, 0) whose log-ratios sum to (0.2, 0.5, -0.1), over two steps."""
    scores, batch = rows_of([[0.3, -0.1], [0.3, 0.1, 0.1], [0.3, -0.4]], [1.0, 0.5, 0.0])
    return scores, replace(batch, step_of=torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 0]]))


def test_tree_by_hand():
    """With beta 1 the three weighted comparisons of `test_lists` of the formulas: 0.501909."""
    scores, batch = tree()
    loss = TreePO(beta=1.0).loss(scores, TreePO().credit(batch))
    assert loss.total.item() == pytest.approx(0.501909, abs=1e-6)


def test_descent_raises_the_best_branch():
    """Direction: the best branch's log-probs have a negative gradient, the worst's a positive."""
    scores, batch = tree()
    TreePO(beta=1.0).loss(scores, TreePO().credit(batch)).total.backward()
    slope = scores.log_probs.grad.sum(1)
    assert slope[0] < 0 < slope[2]


def test_labels_stay_with_their_branches():
    """Order: any order of the branches gives the loss and, branch by branch, the gradient."""
    scores, batch = tree()
    order = torch.tensor([2, 0, 1])
    TreePO(beta=1.0).loss(scores, TreePO().credit(batch)).total.backward()
    moved = Scores(log_probs=scores.log_probs.detach()[order].requires_grad_())
    loss = TreePO(beta=1.0).loss(moved, TreePO().credit(batch.rows(order)))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0.501909, abs=1e-6)
    torch.testing.assert_close(moved.log_probs.grad, scores.log_probs.grad[order])


def test_step_weights_are_numbers():
    """Half the weight on every step is half the implicit reward: as half the beta."""
    scores, batch = tree()
    half = replace(batch, weight=0.5 * batch.weight)
    found = TreePO(beta=1.0).loss(scores, TreePO().credit(half)).total
    wanted = TreePO(beta=0.5).loss(scores, TreePO().credit(batch)).total
    torch.testing.assert_close(found, wanted)
    assert (found - TreePO(beta=1.0).loss(scores, TreePO().credit(batch)).total).abs() > 1e-3


STATES = torch.tensor(
    [[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]],
     [[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]],
     [[0.0, 3.0], [0.0, -1.0], [9.0, 9.0]]]
)  # fmt: skip
"""Hidden states of the tree's tokens; the best branch's steps have (1, 0) and (0, 2)."""


def test_step_factors_by_hand():
    """1 + cos to the best branch's step, 1 on the best branch. Branch 1: step 0 the same state, so
    2; step 1 has the mean (1, 1), at 45 degrees: 1.707107. Branch 2: step 0 at right angles, 1;
    step 1 opposite, 0. What is masked is in no mean.
    """
    _, batch = tree()
    factor = step_factors(STATES, batch)
    wanted = [[1.0, 1.0], [2.0, 1 + math.sqrt(0.5), 1 + math.sqrt(0.5)], [1.0, 0.0]]
    for row, mask, values in zip(factor, batch.trajectory.mask, wanted, strict=True):
        torch.testing.assert_close(row[mask], doubles(*values), atol=1e-6, rtol=0)


def test_adaptive_steps_enter_the_loss_without_a_gradient_of_their_own():
    scores, batch = tree()
    states = STATES.clone().requires_grad_()
    objective = TreePO(beta=1.0, step_factor="adaptive")
    assert "features" in objective.needs and "features" not in TreePO().needs
    loss = objective.loss(replace(scores, features=states), objective.credit(batch))
    # r = (0.2, 2 0.3 + 1.707107 0.2, 0.3 - 0).
    r = doubles(0.2, 0.6 + 0.2 * (1 + math.sqrt(0.5)), 0.3)
    assert loss.metrics["rewards/mean"][0].item() == pytest.approx(r.sum().item())
    loss.total.backward()
    assert states.grad is None


def test_adaptive_steps_need_steps():
    _, batch = tree()
    with pytest.raises(ValueError, match="give `completions` as lists of steps"):
        TreePO(step_factor="adaptive").credit(replace(batch, step_of=None))
    with pytest.raises(ValueError, match="step_factor='on'"):
        TreePO(step_factor="on")
