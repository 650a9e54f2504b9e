"""XPO, INPO, TRPA and MODPO on batches: pairs, numbers, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import DPO, INPO, IPO, MODPO, TRPA, XPO
from mmalign.types import Batch
from tests import tabular
from tests.objectives.test_pairwise_objectives import doubles, two_pairs

# ---- XPO --------------------------------------------------------------------------------------


def test_xpo_by_hand():
    """The two pairs, whose reference samples are A's rejected and B's chosen side (rows 1 and 3):
    0.478015 + 0.834355 at beta 0.5, alpha 0.01.
    """
    scores, batch = two_pairs()
    batch = replace(batch, from_reference=torch.tensor([False, True, False, True]))
    objective = XPO(beta=0.5, alpha=0.01)
    loss = objective.loss(scores, objective.credit(batch))
    assert loss.total.item() == pytest.approx(0.478015 + 0.834355, abs=1e-6)
    assert [float(x) for x in loss.metrics["policy_wins"]] == [1.0, 2.0]
    assert float(loss.metrics["logps/reference_sample"][0]) == pytest.approx(-3.5 - 2.0)


def test_xpo_pairs_one_model_with_the_other():
    """Rows 0, 1 of the policy and 2, 3 of the reference, rewards (3, 1, 2, 1): 0 beats 2 and 3, 2
    beats 1; 1 and 3 tie, and 0 over 1 and 2 over 3 have one sampler.
    """
    made = tabular.scored(tabular.batch([(3, 1, 2, 1)]), reference=tabular.Tabular())
    batch = XPO().credit(replace(made, from_reference=torch.tensor([False, False, True, True])))
    assert sorted(map(tuple, batch.pairs.tolist())) == [(0, 2), (0, 3), (2, 1)]
    assert batch.denominator == 3.0
    assert batch.counters["dropped/same_sampler"] == 2.0 and batch.counters["dropped/ties"] == 1.0


def test_xpo_refuses_other_batches():
    made = tabular.scored(tabular.batch([(1, 0)]), reference=tabular.Tabular())
    with pytest.raises(ValueError, match="`type: rollouts` with `reference_generations`"):
        XPO().credit(made)


# ---- INPO -------------------------------------------------------------------------------------


def test_inpo_by_hand():
    """Rows A chosen, A rejected, B rejected, B chosen; the iterate's sums (-2.4, -3.3, -2.0, -1.9)
    stand at the first step of each. eta 0.5, tau 0.1: 0.270400 + 1.849600.
    """
    scores, batch = two_pairs()
    behaviour = torch.zeros_like(batch.weight)
    behaviour[:, 0] = doubles(-2.4, -3.3, -2.0, -1.9)
    objective = INPO(eta=0.5, tau=0.1)
    batch = objective.credit(replace(batch, behaviour=behaviour))
    loss = objective.loss(scores, batch)
    assert loss.total.item() == pytest.approx(0.2704 + 1.8496, abs=1e-6)


def test_inpo_on_a_batch_of_one_update():
    """The iterate is the policy: z = (tau/eta) D, yet the gradient is that of s_w - s_l.

    eta 0.5, tau 0.1, D = (0.8, -0.6): (0.16 - 1)^2 + (-0.12 - 1)^2.
    """
    scores, batch = two_pairs()
    leaf = scores.log_probs.clone().requires_grad_()
    objective = INPO(eta=0.5, tau=0.1)
    loss = objective.loss(replace(scores, log_probs=leaf), objective.credit(batch))
    assert loss.total.item() == pytest.approx(0.84**2 + 1.12**2)
    loss.total.backward()
    # By a log-prob of A's chosen side: 2 (0.16 - 1).
    assert leaf.grad[0, 0].item() == pytest.approx(-1.68)


def test_inpo_with_tau_eta_is_ipo_on_sums():
    scores, batch = two_pairs()
    ipo, inpo = IPO(beta=0.5, reduction="sum"), INPO(eta=0.5, tau=0.5)
    found = [o.loss(scores, o.credit(batch)).total.item() for o in (ipo, inpo)]
    assert found[0] == pytest.approx(found[1]) == pytest.approx(0.04 + 2.56)


# ---- TRPA -------------------------------------------------------------------------------------


def test_trpa_by_hand():
    """Pair A's better row is of the best level (2.5), B's is not: 0.514689 + 0.744397 at beta 0.5.

    The sampling policy was 0.1 nats less sure of each of the 11 steps: k3 = exp(-0.1) - 1 + 0.1 =
    0.004837 a step, so its mean, and kl_weight 1 times it for each of two pairs.
    """
    scores, batch = two_pairs()
    batch = replace(
        batch,
        reward=doubles(1.0, 0.0, 0.0, 0.5),
        behaviour=torch.where(batch.trajectory.mask, scores.log_probs - 0.1, 0.0),
    )
    objective = TRPA(beta=0.5, kl_weight=1.0)
    batch = objective.credit(batch)
    assert batch.denominator == 2.0
    loss = objective.loss(scores, batch)
    k3 = math.exp(-0.1) - 1 + 0.1
    assert loss.total.item() == pytest.approx(0.514689 + 0.744397 + 2 * k3, abs=1e-6)
    assert float(loss.metrics["kl"][0]) == pytest.approx(11 * k3)
    assert float(loss.metrics["kl"][1]) == 11.0
    # The policy that sampled is the policy: nothing but the pairs.
    loss = objective.loss(scores, replace(batch, behaviour=None))
    assert loss.total.item() == pytest.approx(0.514689 + 0.744397, abs=1e-6)


def test_trpa_skips_groups_of_one_level():
    made = tabular.scored(tabular.batch([(1, 1, 1), (2, 0, 1)]), reference=tabular.Tabular())
    batch = TRPA(best_level=2.0).credit(made)
    assert batch.denominator == 3.0 and batch.counters["dropped/ties"] == 3.0
    assert len(batch) == 3 and batch.reward.tolist() == [2, 0, 1]
    chosen, factor = batch.pairs[:, 0].tolist(), batch.pair_anchor[:, 0].tolist()
    assert set(zip(chosen, factor, strict=True)) == {(0, 2.5), (2, 1.0)}
    empty = TRPA().credit(made.rows(torch.arange(3)))
    loss = TRPA().loss(tabular.Tabular(seed=2).scores(empty.trajectory), empty)
    assert empty.denominator == 0.0 == loss.total.item()


# ---- MODPO ------------------------------------------------------------------------------------


def judged(batch: Batch, *columns: list[float]) -> Batch:
    """The batch with further rewards of its rows."""
    return replace(batch, reward=torch.stack([batch.reward, *(doubles(*c) for c in columns)], 1))


def test_modpo_by_hand():
    """Rows A chosen, A rejected, B rejected, B chosen: another reward gives A's sides (1, 0) and
    B's (0, 2). Weights (0.5, 0.5), beta 0.5: 0.798139 + 0.220417.
    """
    scores, batch = two_pairs()
    objective = MODPO(weights=(0.5, 0.5), beta=0.5)
    batch = objective.credit(judged(batch, [1, 0, 2, 0]))
    assert batch.denominator == 2.0
    loss = objective.loss(scores, batch)
    assert loss.total.item() == pytest.approx(0.798139 + 0.220417, abs=1e-6)
    assert float(loss.metrics["rewards/others"][0]) == pytest.approx(0.5 - 1.0)


def test_modpo_with_all_weight_on_its_pairs_is_dpo():
    scores, batch = two_pairs()
    wanted = DPO(beta=0.5).loss(scores, DPO(beta=0.5).credit(batch)).total
    for objective, made in (
        (MODPO(weights=(1.0,), beta=0.5), batch),
        (MODPO(weights=(1.0, 0.0), beta=0.5), judged(batch, [1, 0, 2, 0])),
    ):
        found = objective.loss(scores, objective.credit(made)).total
        torch.testing.assert_close(found, wanted)


def test_modpo_pairs_by_its_own_objective():
    """By the second of three rewards: row 1 of the first group wins, row 2 of the second; the
    margin is 0.2 (R_0 difference) + 0.3 (R_2 difference).
    """
    _, batch = two_pairs()
    batch = judged(batch, [0, 5, 1, 0], [1, 0, 0, 3])
    objective = MODPO(weights=(0.2, 0.5, 0.3), objective=1)
    batch = objective.credit(batch)
    assert batch.pairs.tolist() == [[1, 0], [2, 3]]
    margin = batch.pair_anchor[:, 0] - batch.pair_anchor[:, 1]
    torch.testing.assert_close(margin, doubles(0.2 * -1 + 0.3 * -1, 0.2 * -1 + 0.3 * -3))


def test_modpo_leaves_out_what_one_judge_has_not_judged():
    _, batch = two_pairs()
    batch = MODPO().credit(judged(batch, [1, math.nan, 2, 0]))
    assert batch.denominator == 1.0 and batch.counters["dropped/unjudged"] == 1.0


def test_modpo_counts_its_rewards():
    _, batch = two_pairs()
    with pytest.raises(ValueError, match="modpo has 2 weights and the batch 1 rewards a row"):
        MODPO().credit(batch)
