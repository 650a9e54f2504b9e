"""KTO: the KL point, labels and where they come from, Diffusion-KTO, anchored unpaired loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign import functional
from mmalign.invariants import has_signal, odd_beta
from mmalign.objectives import BCO, KTO, APOZero, APOZeroUnpaired, BCOUnpaired
from mmalign.types import Batch, Loss, Scores
from tests import tabular
from tests.objectives.test_pairwise_objectives import doubles, two_pairs

NAN = math.nan


def recorded(
    log_ratio: list[float], label: list[bool], *, mismatched: list[float] | None = None
) -> tuple[Scores, Batch]:
    """One-step rows with these log-ratios, labelled ones first."""
    found = doubles(*log_ratio, *(mismatched or []))
    others = len(found) - len(label)
    made = tabular.trajectory([1] * len(found), list(range(len(found))))
    reference = torch.linspace(-3.0, -1.0, len(found), dtype=torch.float64)
    log_probs = (reference + found).unsqueeze(1)
    batch = Batch(
        trajectory=made,
        group=torch.arange(len(found)),
        reward=torch.cat([doubles(*label), doubles(*[NAN] * others)]),
        label=torch.tensor([*label, *[True] * others]),
        weight=made.mask.double(),
        reference=reference.unsqueeze(1),
        behaviour=log_probs,
    )
    return Scores(log_probs=log_probs.clone().requires_grad_()), batch


def of_labelled(scores: Scores, batch: Batch) -> Scores:
    """The scores of the labelled rows, which stand first."""
    return Scores(log_probs=scores.log_probs[: len(batch)])


def credited_loss(
    objective: KTO | APOZeroUnpaired | BCOUnpaired, scores: Scores, batch: Batch
) -> Loss:
    batch = objective.credit(batch)
    return objective.loss(of_labelled(scores, batch), batch)


FIXTURE = ([0.5, -0.2, -0.3, 0.4], [True, True, False, False])


def test_the_fixture():
    """Beta 0.5, h = (0.5, -0.2) desirable and (-0.3, 0.4) undesirable; mismatched 0.3 and -0.2, so
    z0 = 0.05. Desirable: 1 / (1 + exp(0.5 (h - 0.05))) = 0.443986, 0.531209; undesirable:
    1 / (1 + exp(0.5 (0.05 - h))) = 0.456361, 0.543639. Gradients are minus, and plus, 0.5 times the
    loss times one minus the loss: -0.123431, -0.124513, 0.124048, 0.124048.
    """
    scores, batch = recorded(*FIXTURE, mismatched=[0.3, -0.2])
    batch = KTO(beta=0.5).credit(batch)
    assert len(batch) == 4 and batch.denominator == 4.0
    torch.testing.assert_close(batch.anchor, torch.full((4,), 0.05, dtype=torch.float64))
    loss = KTO(beta=0.5).loss(of_labelled(scores, batch), batch)
    each = [0.443986, 0.531209, 0.456361, 0.543639]
    assert loss.total.item() == pytest.approx(sum(each), abs=2e-6)
    loss.total.backward()
    by_hand = doubles(-0.123431, -0.124513, 0.124048, 0.124048, 0, 0)
    torch.testing.assert_close(scores.log_probs.grad.flatten(), by_hand, atol=1e-6, rtol=0)
    found = functional.kto(doubles(*FIXTURE[0]), batch.label, beta=0.5, kl_point=0.05)
    torch.testing.assert_close(found, doubles(*each), atol=1e-6, rtol=0)
    weighed = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    expected = 2 * sum(each[:2]) + 3 * sum(each[2:])
    assert weighed.loss(of_labelled(scores, batch), batch).total.item() == pytest.approx(
        expected, abs=1e-5
    )


def test_metrics_are_by_label():
    """Mean rewards 0.5 (0.5 - 0.2) / 2 and 0.5 (-0.3 + 0.4) / 2; z0 0.05."""
    scores, batch = recorded(*FIXTURE, mismatched=[0.3, -0.2])
    batch = KTO(beta=0.5).credit(batch)
    metrics = KTO(beta=0.5).loss(of_labelled(scores, batch), batch).metrics
    found = {k: (float(a), float(b)) for k, (a, b) in metrics.items() if k.startswith("rewards")}
    assert found == {
        "rewards/chosen": (pytest.approx(0.15), 2.0),
        "rewards/rejected": (pytest.approx(0.05), 2.0),
    }
    assert batch.metrics["kl_point"] == (pytest.approx(0.05), 1.0)
    assert batch.counters["desirable"] == batch.counters["undesirable"] == 2.0
    assert has_signal(batch)


def test_diffusion_kto():
    """Errors 0.10, 0.12, 0.11, of the reference 0.101, 0.119, 0.112, labels + - +; the published
    beta 1000 on differences of errors is 2000 on log-probs, minus one half of them.
    g = (0.001, -0.001, 0.002), z0 = 0.002 / 3, losses 0.4174298, 0.1588691, 0.2086085, mean
    0.2616358.
    """
    errors, of_reference = doubles(0.10, 0.12, 0.11), doubles(0.101, 0.119, 0.112)
    halves = (-errors / 2 + of_reference / 2).tolist()
    scores, batch = recorded(halves, [True, False, True])
    objective = KTO(beta=2000.0, kl_point="matched")
    batch = objective.credit(batch)
    assert float(batch.anchor[0]) == pytest.approx(0.002 / 3 / 2)
    loss = objective.loss(scores, batch)
    assert loss.total.item() / batch.denominator == pytest.approx(0.2616358, abs=1e-7)


def test_the_kl_point_has_no_gradient():
    """Not through the rows it is the mean of, whether these are trained on or not: each gradient is
    that of its own row at a z0 that is a number.
    """
    for objective, mismatched in ((KTO(), [0.3, 0.1]), (KTO(kl_point="matched"), None)):
        scores, batch = recorded([0.5, 0.2, -0.3], [True, False, True], mismatched=mismatched)
        leaf = batch.behaviour.clone().requires_grad_()
        batch = objective.credit(replace(batch, behaviour=leaf))
        assert not batch.anchor.requires_grad and float(batch.anchor[0]) > 0
        objective.loss(of_labelled(scores, batch), batch).total.backward()
        assert leaf.grad is None
        alone = doubles(0.5, 0.2, -0.3).requires_grad_()
        point = float(batch.anchor[0])
        functional.kto(alone, batch.label, beta=0.1, kl_point=point).sum().backward()
        assert torch.equal(scores.log_probs.grad[3:], torch.zeros_like(scores.log_probs[3:]))
        torch.testing.assert_close(scores.log_probs.grad[:3, 0], alone.grad)


def test_a_tensor_as_kl_point_is_held_fixed():
    point = doubles(0.2).requires_grad_()
    found = functional.kto(
        doubles(0.5, -0.1).requires_grad_(), torch.tensor([True, False]), beta=0.5, kl_point=point
    )
    found.sum().backward()
    assert point.grad is None


def test_the_kl_point_is_not_negative():
    """Mismatched rows of mean -0.4: z0 is 0, and the loss the anchored one's."""
    scores, batch = recorded(*FIXTURE, mismatched=[-0.5, -0.3])
    expected = credited_loss(APOZeroUnpaired(beta=0.5), scores, batch).total
    assert credited_loss(KTO(beta=0.5), scores, batch).total.item() == pytest.approx(
        expected.item(), abs=1e-12
    )


def test_a_further_policy_needs_larger_rewards():
    """As z0 rises, desirable rows lose more and undesirable ones less."""
    log_ratio, label = doubles(0.3, 0.3), torch.tensor([True, False])
    points = [0.0, 0.1, 1.0, 10.0]
    found = torch.stack([functional.kto(log_ratio, label, beta=0.5, kl_point=z) for z in points])
    rise = found.diff(dim=0)
    assert (rise[:, 0] > 0).all() and (rise[:, 1] < 0).all()


def test_where_policy_and_reference_agree():
    """Half the weight a row."""
    scores, batch = recorded([0.0] * 4, [True, False, False, False], mismatched=[0.0])
    objective = KTO(desirable_weight=3.0, undesirable_weight=0.5)
    found = credited_loss(objective, scores, batch).total.item()
    assert found == pytest.approx(0.5 * 3.0 + 3 * 0.5 * 0.5)


def test_anchored_unpaired_is_the_paired_loss_of_its_sides():
    """1 - sigmoid(r_w) + sigmoid(r_l) of the fixture's pairs: 0.900394 + 1.074813."""
    scores, batch = two_pairs()
    found = credited_loss(APOZeroUnpaired(beta=0.5), scores, batch).total.item()
    assert found == pytest.approx(0.900394 + 1.074813, abs=2e-6)
    paired = APOZero(beta=0.5)
    assert found == pytest.approx(paired.loss(scores, paired.credit(batch)).total.item())


def test_bco_by_hand():
    """The fixture's h have the mean 0.1, so beta 0.5 gives a shift of 0.05, whatever the mismatched
    rows say. Rewards less shift: 0.2, -0.15 desirable, -0.2, 0.15 undesirable. log(1 + exp(-0.2)) =
    0.598139 and log(1 + exp(0.15)) = 0.770957, each twice. Gradients: minus and plus 0.5 times
    sigmoid(-0.2) = 0.450166 and sigmoid(0.15) = 0.537430.
    """
    scores, batch = recorded(*FIXTURE, mismatched=[9.0])
    objective = BCOUnpaired(beta=0.5)
    batch = objective.credit(batch)
    assert len(batch) == 4 and batch.denominator == 4.0
    assert batch.metrics["rewards/shift"] == (pytest.approx(0.05), 1.0)
    loss = objective.loss(of_labelled(scores, batch), batch)
    assert loss.total.item() == pytest.approx(2 * (0.598139 + 0.770957), abs=2e-6)
    loss.total.backward()
    by_hand = doubles(-0.225083, -0.268715, 0.225083, 0.268715, 0)
    torch.testing.assert_close(scores.log_probs.grad.flatten(), by_hand, atol=1e-6, rtol=0)
    weighed = BCOUnpaired(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    found = weighed.loss(of_labelled(scores, batch), batch).total.item()
    assert found == pytest.approx(5 * (0.598139 + 0.770957), abs=1e-5)


def test_bco_of_both_sides_is_that_of_the_pair():
    """The mean reward of labelled sides is the shift of their pairs; 2 log 2 at the reference."""
    scores, batch = two_pairs()
    batch = replace(batch, behaviour=scores.log_probs)
    paired = BCO(beta=0.5)
    expected = paired.loss(scores, paired.credit(batch)).total.item()
    assert credited_loss(BCOUnpaired(beta=0.5), scores, batch).total.item() == pytest.approx(
        expected, abs=1e-12
    )
    start, batch = recorded([0.0, 0.0], [True, False])
    found = credited_loss(BCOUnpaired(), start, batch).total.item()
    assert found == pytest.approx(2 * math.log(2))


def test_sides_of_a_pair_are_labelled_by_their_reward():
    """In the fixture pair B stands rejected side first."""
    _, batch = two_pairs()
    batch = APOZeroUnpaired().credit(batch)
    assert batch.label.tolist() == [True, False, False, True] and batch.pairs is None


def test_rollouts_are_labelled_by_the_mean_of_their_group():
    """(1, 0, 3): mean 4/3; (2, 2): tied; (0.1, 0.1, 0.1): tied although its mean is rounded; a row
    that nobody judged is left out of the mean, 1 of (1, nan, 0).
    """
    batch = tabular.batch([(1.0, 0.0, 3.0), (2.0, 2.0), (0.1, 0.1, 0.1), (1.0, NAN, 0.0)])
    batch = tabular.scored(batch, reference=tabular.Tabular(seed=1))
    batch = APOZeroUnpaired().credit(batch)
    assert batch.label.tolist() == [False, False, True, True, False]
    assert batch.denominator == 5.0
    assert batch.counters == {
        "desirable": 2.0, "undesirable": 3.0, "dropped/unjudged": 1.0, "dropped/ties": 5.0,
    }  # fmt: skip


def test_one_label_alone():
    """No mean of the other label's rewards, rather than a wrong one."""
    scores, batch = recorded([0.5, -0.2], [True, True], mismatched=[0.1])
    metrics = credited_loss(KTO(), scores, batch).metrics
    assert float(metrics["rewards/rejected"][1]) == 0.0 and float(metrics["loss"][1]) == 2.0


def test_a_row_that_weighs_nothing_counts_nowhere():
    """A process without data keeps a row of weight 0; its loss has a graph all the same."""
    scores, batch = recorded([0.5, -0.2], [True, False])
    whole = KTO(kl_point="matched").credit(batch)
    weight = batch.weight.clone()
    weight[1] = 0.0
    part = KTO(kl_point="matched").credit(replace(batch, weight=weight))
    assert (len(part), part.denominator) == (1, 1.0)
    assert float(part.anchor[0]) == pytest.approx(0.5) != float(whole.anchor[0])
    nothing = KTO(kl_point="matched").credit(replace(batch, weight=torch.zeros_like(weight)))
    loss = KTO().loss(of_labelled(scores, nothing), nothing).total
    assert nothing.denominator == 0.0 and float(loss.detach()) == 0.0 and loss.requires_grad
    assert not has_signal(nothing)


def test_without_mismatched_rows():
    _, batch = recorded(*FIXTURE)
    with pytest.raises(ValueError, match="mismatched: true"):
        KTO().credit(batch)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "fine"),
    [
        (10, 10, (1.0, 1.0), True), (12, 9, (1.0, 1.0), True), (13, 9, (1.0, 1.0), False),
        (10, 11, (1.0, 1.0), False), (10, 40, (4.0, 1.0), True), (80, 20, (1.0, 1.0), False),
    ],
)  # fmt: skip
def test_the_balance_of_labels(desirable, undesirable, weights, fine):
    """Weighted counts may stand 1 to 4/3: 12 to 9 is just 4/3."""
    objective = KTO(desirable_weight=weights[0], undesirable_weight=weights[1])
    note = objective.odd_balance(desirable=desirable, undesirable=undesirable)
    assert (note is None) == fine
    assert note is None or f"{desirable} desirable and {undesirable} undesirable" in note


def pieces(objective: KTO, batch: Batch, rows: int | None) -> Tensor:
    policy = tabular.Tabular(seed=2)
    for piece in batch.microbatches(rows=rows, steps=None, additive_over="group"):
        objective.loss(policy.scores(piece.trajectory), piece).total.backward()
    return policy.logits.grad


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_add_up_with_mismatched_rows(rows):
    """Labelled and mismatched rows of eight prompts, unequal lengths."""
    made = tabular.batch([(1.0, NAN), (0.0, NAN), (0.0, NAN), (1.0, NAN)] * 2, seed=3)
    made = replace(made, label=made.reward == 1.0)
    made = tabular.scored(
        made, reference=tabular.Tabular(seed=1), behaviour=tabular.Tabular(seed=2)
    )
    batch = KTO(beta=0.5).credit(made)
    assert len(batch) == 8 and batch.counters["desirable"] == 4.0
    whole = pieces(KTO(beta=0.5), batch, None)
    torch.testing.assert_close(pieces(KTO(beta=0.5), batch, rows), whole, rtol=1e-12, atol=1e-12)
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("kind", [KTO, APOZeroUnpaired, BCOUnpaired])
def test_a_beta_of_another_kind_of_loss_is_noticed(kind):
    """Sums of nats call for less than 2; a bound's log-probs for thousands."""
    note = odd_beta(kind(beta=5.0), symbols=True)
    assert note is not None and "beta=5" in note
    assert odd_beta(kind(beta=0.1), symbols=True) is None
    assert odd_beta(kind(beta=2000.0), symbols=False) is None
