"""Every objective of pairs: the fixture's numbers through a batch, guards, what it needs."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign.invariants import odd_beta, parts_fit
from mmalign.objectives import (
    CPO,
    DPO,
    EXO,
    FDPO,
    LDDPO,
    NCA,
    OBJECTIVES,
    ORPO,
    SPPO,
    AlphaPO,
    APODown,
    APOZero,
    ConservativeDPO,
    DiscoPOP,
    DPOWithSFT,
    Hinge,
    LengthNormalisedDPO,
    MaPO,
    RobustDPO,
    SimPO,
)
from mmalign.objectives.pair import PairObjective
from tests.objectives.test_pairwise_objectives import two_pairs

# Sums over the two pairs of the fixture in `two_pairs`, of the numbers checked one by one in
# tests/functional/test_pairwise_losses.py.
TOTALS = [
    (ConservativeDPO(beta=0.5, label_smoothing=0.1), 0.553015 + 0.824355),
    (RobustDPO(beta=0.5, label_smoothing=0.1), 0.463015 + 0.891855),
    (Hinge(beta=0.5), 0.6 + 1.3),
    (LengthNormalisedDPO(beta=0.5), 0.617111 + 0.744397),
    (SimPO(beta=2.5, gamma=1.375), 0.271098 + 2.811968),
    (CPO(beta=0.5, nll_coefficient=1.0), 1.153389 + 1.744397),
    (ORPO(beta=0.1), 0.753837 + 1.139215),
    (DPOWithSFT(beta=0.5), 0.524015 + 0.864355),
    (DPOWithSFT(beta=0.5, reduction_of_nll="mean"), 0.516682 + 0.859355),
    (EXO(beta=0.5, label_smoothing=1e-3), 2.099226 + 3.286512),
    (NCA(beta=0.5), 1.299388 + 1.465664),
    (SPPO(beta=0.5), 0.74 + 3.4),
    (APOZero(beta=0.5), 0.900394 + 1.074813),
    (APODown(beta=0.5), 0.963489 + 1.049463),
    (DiscoPOP(beta=0.5, tau=0.05), 0.670267 + 0.855580),
    (FDPO(beta=0.5, divergence="forward_kl"), 0.524483 + 0.840378),
    (FDPO(beta=0.5, divergence="js"), 0.602590 + 0.766966),
    (FDPO(beta=0.5, divergence="alpha", alpha=0.5), 0.519859 + 0.846588),
    (LDDPO(beta=0.5, alpha=0.5), 0.533382 + 0.825939),
]
IDS = [f"{type(objective).__name__}-{i}" for i, (objective, _) in enumerate(TOTALS)]


@pytest.mark.parametrize(("objective", "total"), TOTALS, ids=IDS)
def test_the_fixture_through_a_batch(objective, total):
    """F1 with the second pair's rejected side first: order of rows must not matter."""
    scores, batch = two_pairs()
    if not objective.reads_reference:
        batch = replace(batch, reference=None)
    batch = objective.credit(batch)
    assert batch.denominator == 2.0
    assert objective.loss(scores, batch).total.item() == pytest.approx(total, abs=3e-6)


def test_alphapo_by_hand():
    """Means a_w = (-0.733333, -1.0), a_l = (-1.75, -0.45); alpha 0.25 bends a to 4 (1 - exp(-a/4)):
    a_w (-0.804859, -1.136102), a_l (-2.195321, -0.476289); z = 2.5 (a_w - a_l) - 0.1 =
    (3.376156, -1.749532); losses log(1 + exp(-z)) = (0.033607, 1.909825)."""
    scores, batch = two_pairs()
    objective = AlphaPO()
    found = objective.loss(scores, objective.credit(replace(batch, reference=None))).total.item()
    assert found == pytest.approx(0.033607 + 1.909825, abs=2e-6)


def test_mapo_by_hand():
    """Errors (0.10, 0.12) at each of several draws, so log-probs -0.05 and -0.06: their means give
    what one draw does, 0.1007358 as by the published code."""
    scores, batch = two_pairs()
    assert int(batch.trajectory.mask[:2].sum(1).min()) > 1
    error = torch.tensor([[-0.05], [-0.06]], dtype=torch.float64)
    steps = torch.zeros_like(batch.weight)
    steps[:2] = torch.where(batch.trajectory.mask[:2], error, 0.0)
    batch = MaPO().credit(replace(batch, reference=None)).rows(torch.tensor([0, 1]))
    scores = replace(scores, log_probs=steps[:2])
    assert MaPO().loss(scores, batch).total.item() == pytest.approx(0.1007358, abs=1e-6)


def test_ld_dpo_weighs_only_what_is_beyond_the_shorter_side():
    """Pair A has 3 and 2 steps, pair B 2 and 4: the third of A's chosen side, and the last two of
    B's rejected side, count half."""
    _, batch = two_pairs()
    weight = LDDPO(alpha=0.5).credit(batch).pair_weight
    assert weight is not None
    assert weight[0].tolist() == [[1, 1, 0.5, 0], [1, 1, 0, 0]]
    assert weight[1].tolist() == [[1, 1, 0, 0], [1, 1, 0.5, 0.5]]


def test_identities():
    scores, batch = two_pairs()

    def total(objective: PairObjective | DPO) -> float:
        return objective.loss(scores, objective.credit(batch)).total.item()

    dpo = total(DPO(beta=0.5))
    same = [
        ConservativeDPO(beta=0.5, label_smoothing=0.0),
        RobustDPO(beta=0.5, label_smoothing=0.0),
        FDPO(beta=0.5, divergence="reverse_kl"),
        FDPO(beta=0.5, divergence="alpha", alpha=1.0),
        LDDPO(beta=0.5, alpha=1.0),
        DPOWithSFT(beta=0.5, nll_coefficient=0.0),
    ]
    for objective in same:
        assert total(objective) == pytest.approx(dpo, abs=1e-12), objective
    assert total(AlphaPO(gamma=1.375, alpha=1e-7)) == pytest.approx(total(SimPO()), abs=1e-5)


LANDMARKS = {
    "cdpo_smoothing": math.log(2),
    "rdpo": math.log(2),
    "ln_dpo": math.log(2),
    "hinge": 1.0,
    "exo_pair": -math.log(2) - math.log(1e-3 * (1 - 1e-3)) / 2,
    "discopop": (math.log(2) + 1) / 2,
    "f_dpo": math.log(2),
    "ld_dpo": math.log(2),
    "nca_pair": 2 * math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "sppo_hard": 1 / (2 * 0.001**2),
}


@pytest.mark.parametrize("name", LANDMARKS)
def test_where_policy_and_reference_agree(name):
    scores, batch = two_pairs()
    objective = OBJECTIVES[name]()
    batch = objective.credit(replace(batch, reference=scores.log_probs))
    found = objective.loss(scores, batch).total.item() / 2
    assert found == pytest.approx(LANDMARKS[name], rel=1e-9)


@pytest.mark.parametrize("name", [k for k, c in OBJECTIVES.items() if issubclass(c, PairObjective)])
def test_a_beta_of_nought_is_refused(name):
    with pytest.raises(ValueError, match="beta=0"):
        OBJECTIVES[name](beta=0.0)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (RobustDPO, {"label_smoothing": 0.5}, "below 0.5"),
        (ConservativeDPO, {"label_smoothing": 0.6}, "0.5"),
        (EXO, {"label_smoothing": 0.0}, "above 0"),
        (SimPO, {"label_smoothing": -0.1}, "simpo"),
        (DiscoPOP, {"tau": 0.0}, "tau"),
        (LDDPO, {"alpha": 1.5}, "between 0 and 1"),
        (DPOWithSFT, {"nll_coefficient": -1.0}, "unlikely"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_what_the_likelihood_must_be():
    with pytest.raises(ValueError, match="is a bound"):
        parts_fit(ORPO(), likelihood="bound", reference=None, critic=None)
    with pytest.raises(ValueError, match="denoising errors"):
        parts_fit(MaPO(), likelihood="exact", reference=None, critic=None)
    for likelihood in ("exact", "bound"):
        parts_fit(SimPO(), likelihood=likelihood, reference=None, critic=None)
    with pytest.raises(ValueError, match="needs a reference"):
        parts_fit(RobustDPO(), likelihood="exact", reference=None, critic=None)


@pytest.mark.parametrize(
    ("objective", "symbols", "said"),
    [
        (SimPO(), True, None),
        (SimPO(beta=0.1), True, "means over steps"),
        (SimPO(beta=0.1), False, None),
        (RobustDPO(), True, None),
        (RobustDPO(beta=5.0), True, "sums over steps"),
        (RobustDPO(beta=5000.0), False, None),
        (SPPO(), True, None),
        (DPO(beta=5.0), True, "sums over steps"),
    ],
)
def test_a_beta_of_the_other_kind_of_loss_is_noticed(objective, symbols, said):
    found = odd_beta(objective, symbols=symbols)
    assert (found is None) if said is None else (said in found)


@pytest.mark.parametrize("name", [k for k, c in OBJECTIVES.items() if issubclass(c, PairObjective)])
def test_no_default_beta_is_noticed(name):
    assert odd_beta(OBJECTIVES[name](), symbols=True) is None
