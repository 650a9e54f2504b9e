"""Token-level objectives through batches: numbers, identities, what they refuse."""

from dataclasses import replace

import pytest
import torch

from mmalign.invariants import odd_beta, parts_fit
from mmalign.objectives import AOT, BCO, DPO, GRPO, IPO, TDPO1, TDPO2, WPO, CriticalDPO, LatentEM
from mmalign.types import Batch, Scores
from tests.objectives.test_pairwise_objectives import doubles, two_pairs

DPO_A, DPO_B = 0.513015, 0.854355


def weighed(batch: Batch, rejected: list[list[float]]) -> Batch:
    """The two pairs, chosen side first, with weights of the rejected sides' steps."""
    pairs = torch.tensor([[0, 1], [3, 2]])
    weights = batch.weight[pairs].clone()
    for row, values in zip(weights[:, 1], rejected, strict=True):
        row[: len(values)] = doubles(*values)
    return replace(batch, pairs=pairs, pair_weight=weights)


def test_critical_dpo_by_hand():
    """Pair A of the fixture with scores (0.9, 0.2), weights (0.1, 0.8): the rejected side's
    log-ratios (-0.2, -0.1) sum up to -0.1 instead of -0.3, D = 0.5 + 0.1 and the loss at beta 0.5
    is log(1 + exp(-0.3)) = 0.554355. Weights of 1 make DPO, of 0 leave the chosen side's 0.5."""
    scores, batch = two_pairs()
    objective = CriticalDPO(beta=0.5)

    def loss(rejected: list[list[float]]) -> float:
        credited = objective.credit(weighed(batch, rejected))
        return objective.loss(scores, credited).total.item()

    ones = [1.0] * 4
    assert loss([[0.1, 0.8], ones]) == pytest.approx(0.554355 + DPO_B, abs=2e-6)
    assert loss([ones[:2], ones]) == pytest.approx(DPO_A + DPO_B, abs=2e-6)
    alone = -torch.nn.functional.logsigmoid(0.5 * doubles(0.5, -0.2)).sum().item()
    assert loss([[0.0, 0.0], [0.0] * 4]) == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("columns", [4, 8])
def test_steps_are_summed_before_the_logistic_function(columns):
    """Pair A: 0.513015, however long the padding. Position by position it would be a mean of
    0.628770 over three columns and of 0.669006 over eight."""
    scores, batch = two_pairs()
    batch = replace(batch, weight=batch.weight.clone())
    extra = columns - 4

    def wide(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, extra))

    trajectory = replace(
        batch.trajectory,
        mask=wide(batch.trajectory.mask),
        stepwise={k: wide(v) for k, v in batch.trajectory.stepwise.items()},
    )
    batch = replace(
        batch, trajectory=trajectory, weight=wide(batch.weight), reference=wide(batch.reference)
    )
    batch = weighed(batch, [[1.0, 1.0], [1.0] * 4]).rows(torch.tensor([0, 1]))
    objective = CriticalDPO(beta=0.5)
    scores = Scores(log_probs=wide(scores.log_probs)[:2])
    found = objective.loss(scores, objective.credit(batch)).total.item()
    assert found == pytest.approx(DPO_A, abs=1e-6)


def test_critical_dpo_wants_weights_of_the_rejected_side_alone():
    _, batch = two_pairs()
    with pytest.raises(ValueError, match="carry none"):
        CriticalDPO().credit(batch)
    given = weighed(batch, [[0.5, 0.5], [0.5] * 4])
    with pytest.raises(ValueError, match="chosen side too"):
        CriticalDPO().credit(replace(given, pair_weight=given.pair_weight * 0.5))


def test_divergences_are_summed_over_the_sides_steps():
    """KLs of 0.1 a step: K = 0.3 and 0.2 for pair A, 0.2 and 0.4 for pair B. At beta 0.5 TDPO1 has
    z = 0.5 (0.8 + 0.1) and 0.5 (-0.6 - 0.2): losses 0.493249 and 0.913015; TDPO2 at alpha 0.5 has
    z = 0.425 and -0.35: 0.503057 and 0.883382."""
    scores, batch = two_pairs()
    scores = replace(scores, kl_forward=0.1 * batch.weight, reference=batch.reference)
    batch = replace(batch, reference=None)
    for objective, expected in (
        (TDPO1(beta=0.5), 0.493249 + 0.913015),
        (TDPO2(beta=0.5, alpha=0.5), 0.503057 + 0.883382),
        (TDPO2(beta=0.5, alpha=0.0), DPO_A + DPO_B),
    ):
        loss = objective.loss(scores, objective.credit(batch))
        assert loss.total.item() == pytest.approx(expected, abs=2e-6), objective
        assert float(loss.metrics["kl/chosen"][0]) == pytest.approx(0.5)
        assert float(loss.metrics["kl/rejected"][0]) == pytest.approx(0.6)


def test_a_weighed_pair_counts_its_weight():
    """Collisions equal to the log-probs, but for pair A's chosen side, whose steps lie log 2 below
    it: its weight is 1/2 with 3 steps as with any number. Unbounded, a side log 2 above counts 2.
    """
    scores, batch = two_pairs()
    lower = torch.zeros_like(batch.weight)
    lower[0] = torch.log(torch.tensor(2.0)) * batch.weight[0]
    half = replace(scores, log_collision=scores.log_probs + lower)
    double = replace(scores, log_collision=scores.log_probs - lower)
    for found, settings, share in (
        (half, {}, 0.5), (double, {}, 1.0), (double, {"max_weight": None}, 2.0),
    ):  # fmt: skip
        objective = WPO(of=DPO(beta=0.5), **settings)
        credited = objective.credit(batch)
        loss = objective.loss(found, credited)
        assert loss.total.item() == pytest.approx(share * DPO_A + DPO_B, abs=2e-6)
        assert credited.denominator == 2.0 and float(loss.metrics["loss"][1]) == 2.0
        assert float(loss.metrics["wpo/weight"][0]) == pytest.approx(share + 1.0)


def test_weights_get_no_gradient_and_coefficients_stay():
    scores, batch = two_pairs()
    log_probs = scores.log_probs.clone().requires_grad_()
    scores = replace(scores, log_probs=log_probs, log_collision=torch.zeros_like(log_probs))
    objective = WPO(of=DPO(beta=0.5))
    batch = objective.credit(replace(batch, pairs=torch.tensor([[0, 1], [3, 2]])))
    batch = replace(batch, coefficient=doubles(0.0, 3.0))
    objective.loss(scores, batch).total.backward()
    assert not log_probs.grad[:2].any()
    # Mean log-probs -1 and -0.45 of pair B: the weight is exp(-1.45), the slope of DPO 0.287221.
    expected = 3 * 0.287221 * torch.exp(doubles(-1.45)).item()
    assert log_probs.grad[2, 0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": AOT()}, "by rank"),
        ({"of": LatentEM()}, "own weights"),
        ({"of": GRPO()}, "losses of pairs"),
        ({"max_weight": 0.0}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_weighed_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WPO(**settings)


def test_what_they_need():
    assert TDPO1().needs == TDPO2().needs == {"exact", "kl_forward"}
    assert CriticalDPO().needs == {"exact", "reference", "step_weights"}
    assert WPO(of=BCO()).needs == BCO().needs | {"exact", "log_collision"}
    assert WPO(of=IPO()).additive_over == "group"
    with pytest.raises(ValueError, match="likelihood: path"):
        parts_fit(TDPO2(), likelihood="bound", reference=None, critic=None)
    with pytest.raises(ValueError, match="alpha=-1"):
        TDPO2(alpha=-1.0)
    assert "sums over steps" in str(odd_beta(WPO(of=DPO(beta=5.0)), symbols=True))
