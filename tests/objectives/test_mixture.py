"""Sums of objectives: MPO, DPO with a likelihood term, pieces, storage, refusals."""

from dataclasses import replace

import pytest
import torch

from mmalign.invariants import has_signal, odd_beta
from mmalign.objectives import (
    BCO,
    DPO,
    GRPO,
    KTO,
    MPO,
    OPADPO,
    SFT,
    Anchored,
    DPOWithSFT,
    LatentEM,
    Objective,
    SimPO,
    Term,
)
from mmalign.serialise import pack, unpack
from mmalign.types import Batch, Scores
from tests import tabular
from tests.objectives.test_pairwise_objectives import two_pairs


def mixture(*terms: tuple[Objective, float]) -> MPO:
    return MPO(terms=tuple(Term(objective=o, weight=w) for o, w in terms))


def value(objective: Objective, scores: Scores, batch: Batch) -> float:
    credited = objective.credit(batch)
    return objective.loss(scores, credited).total.item() / credited.denominator


def test_mpo_by_hand():
    """Means of the fixture: DPO 0.683685, BCO against its mean reward 0.05 1.369096, and 4.2 nats
    over the chosen sides' 5 steps. 0.8 x 0.683685 + 0.2 x 1.369096 + 0.84 = 1.660767."""
    scores, batch = two_pairs()
    batch = replace(batch, behaviour=scores.log_probs)
    found = mixture((DPO(beta=0.5), 0.8), (BCO(beta=0.5), 0.2), (SFT(), 1.0))
    assert value(found, scores, batch) == pytest.approx(1.660767, abs=2e-6)


def test_dpo_and_likelihood_is_a_special_case():
    scores, batch = two_pairs()
    for coefficient in (0.005, 1.0):
        mixed = mixture((DPO(beta=0.5), 1.0), (SFT(aggregate="sequence"), coefficient))
        alone = DPOWithSFT(beta=0.5, nll_coefficient=coefficient, reduction_of_nll="mean")
        assert value(mixed, scores, batch) == pytest.approx(value(alone, scores, batch), abs=1e-9)
    assert value(mixture((DPO(), 1.0)), scores, batch) == pytest.approx(
        value(DPO(), scores, batch), abs=1e-12
    )


def test_mdpo_is_twice_dpo_and_an_anchor():
    """Records of an answer, a worse one and the same under another view: `opa_dpo` counts records,
    a term counts pairs, of which a record has two."""
    batch = tabular.batch([(1.0, 0.0, 0.0)] * 3)
    pairs = torch.tensor([[0, 1], [0, 2], [3, 4], [3, 5], [6, 7], [6, 8]])
    batch = replace(batch, pairs=pairs, reference=0.1 * batch.weight.cumsum(1) * batch.weight)
    scores = tabular.Tabular(seed=3).scores(batch.trajectory)
    terms = (DPO(beta=0.5), 2.0), (Anchored(beta=0.5, shift=0.2), 0.7)
    whole = OPADPO(beta=0.5, anchor_weight=0.7, anchor_shift=0.2)
    found = value(mixture(*terms), scores, batch)
    assert found == pytest.approx(value(whole, scores, batch), abs=1e-7)


def test_the_anchor_by_hand():
    """Log-ratios 0.5 and -0.2 of the chosen sides, beta 0.5, shift 0.1: log(1 + exp(-0.15)) +
    log(1 + exp(0.2)) = 0.620957 + 0.798139."""
    scores, batch = two_pairs()
    objective = Anchored(beta=0.5, shift=0.1)
    credited = objective.credit(batch)
    assert credited.denominator == 2.0 and credited.counters["dropped/unrewarded"] == 2.0
    chosen = Scores(log_probs=scores.log_probs[torch.tensor([0, 3])])
    found = objective.loss(chosen, credited).total.item()
    assert found == pytest.approx(0.620957 + 0.798139, abs=2e-6)
    with pytest.raises(ValueError, match="beta=0"):
        Anchored(beta=0.0)


def test_a_term_keeps_the_rows_it_has_a_use_for():
    """SFT alone imitates the chosen rows 0 and 3, the pairs have all four; metrics are told apart.
    The second of two pairs has identical sides here and counts for SFT alone."""
    scores, batch = two_pairs()
    found = mixture((DPO(beta=0.5), 1.0), (SFT(), 1.0)).credit(batch)
    assert [part.row.tolist() for part in found.parts] == [[0, 1, 2, 3], [0, 3]]
    assert [part.denominator for part in found.parts] == [2.0, 5.0] and found.denominator == 1.0
    loss = mixture((DPO(beta=0.5), 1.0), (SFT(), 1.0)).loss(scores, found)
    assert float(loss.metrics["DPO_1/loss"][0]) == pytest.approx(1.367370, abs=1e-6)
    assert float(loss.metrics["SFT_2/logps/steps"][0]) == pytest.approx(-4.2)
    assert loss.metrics.keys() >= {"rewards/margins", "logps/chosen"} and has_signal(found)

    same = batch.trajectory.stepwise["symbol"].clone()
    same[3] = same[2]
    state = batch.trajectory.stepwise["state"].clone()
    state[3] = state[2]
    mask = batch.trajectory.mask.clone()
    mask[3] = mask[2]
    trajectory = replace(batch.trajectory, mask=mask, stepwise={"symbol": same, "state": state})
    twin = replace(batch, trajectory=trajectory, weight=mask.double())
    found = mixture((DPO(beta=0.5), 1.0), (SFT(), 1.0)).credit(twin)
    assert [part.row.tolist() for part in found.parts] == [[0, 1], [0, 3]]
    assert found.row.tolist() == [0, 1, 3] and found.counters["dropped/identical"] == 1.0


def test_pieces_and_a_restart_change_nothing():
    """Whole, in pieces of one group, and after a round trip through tensors and JSON."""
    scores, batch = two_pairs()
    batch = replace(batch, behaviour=scores.log_probs)
    objective = mixture((SFT(), 1.0), (BCO(beta=0.5), 0.5), (DPO(beta=0.5), 2.0))
    credited = objective.credit(batch)
    whole = objective.loss(scores, credited).total.item()
    again = unpack(*pack(credited))
    total = 0.0
    for rows in (torch.tensor([2, 3]), torch.tensor([1, 0])):
        piece = again.rows(rows)
        assert piece.row.tolist() == rows.tolist()
        total += objective.loss(Scores(log_probs=scores.log_probs[rows]), piece).total.item()
    assert total == pytest.approx(whole, abs=1e-12)


def test_a_batch_without_anything_to_learn_asks_for_no_update():
    scores, batch = two_pairs()
    objective = mixture((DPO(), 1.0), (SFT(), 1.0))
    credited = objective.credit(replace(batch, reward=torch.zeros(4).double()))
    log_probs = scores.log_probs.requires_grad_()[credited.row]
    loss = objective.loss(Scores(log_probs=log_probs), credited).total
    assert credited.denominator == 0.0 and loss.item() == 0.0 and loss.requires_grad
    assert not has_signal(credited)


def test_needs_and_how_finely_it_may_be_cut():
    assert MPO().needs == {"reference", "behaviour", "coupled"} and MPO().additive_over == "group"
    stepwise = mixture((SFT(), 1.0), (GRPO(), 0.5))
    assert stepwise.additive_over == "step" and stepwise.needs == GRPO().needs
    assert "means over steps" in str(
        odd_beta(mixture((SFT(), 1.0), (SimPO(beta=0.1), 1.0)), symbols=True)
    )


@pytest.mark.parametrize(
    ("objective", "weight", "message"),
    [
        (DPO(), 0.0, "weight=0"),
        (LatentEM(), 1.0, "batch to batch"),
        (KTO(), 1.0, "kl_point: matched"),
    ],
)
def test_terms_that_make_no_sense_are_refused(objective, weight, message):
    with pytest.raises(ValueError, match=message):
        Term(objective=objective, weight=weight)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to minimise"):
        MPO(terms=())
    with pytest.raises(ValueError, match="mpo within mpo"):
        mixture((MPO(), 1.0))


def test_the_defaults_are_those_of_mpo():
    found = [(type(t.objective).__name__, t.weight) for t in MPO().terms]
    assert found == [("DPO", 0.8), ("BCO", 0.2), ("SFT", 1.0)]
