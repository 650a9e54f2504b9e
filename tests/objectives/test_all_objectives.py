"""What holds for every objective: additivity, invariances, no dead settings; a tabular policy."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mmalign.config.build import build
from mmalign.config.nodes import ConfigError, of_data
from mmalign.objectives import (
    AOT,
    BCO,
    CPO,
    D3PO,
    DDPO,
    DPO,
    DPOK,
    EXO,
    FDPO,
    GRPO,
    INPO,
    IPO,
    KTO,
    LDDPO,
    MODPO,
    MPO,
    NCA,
    OBJECTIVES,
    OPADPO,
    ORPO,
    PPO,
    PRO,
    SFT,
    SPO,
    SPPO,
    TDPO1,
    TDPO2,
    TRPA,
    WPO,
    XPO,
    AlphaPO,
    Anchored,
    AOTUnpaired,
    APODown,
    APOZero,
    APOZeroUnpaired,
    BCOUnpaired,
    ConservativeDPO,
    CriticalDPO,
    DiscoPOP,
    DPOWithSFT,
    Hinge,
    LambdaDPO,
    LatentEM,
    LengthNormalisedDPO,
    Logic,
    MaPO,
    RobustDPO,
    SimPO,
    Term,
    TreePO,
)
from mmalign.protocols import Objective
from mmalign.types import Batch
from tests import tabular
from tests.conformance import with_step_weights

REWARDS = [(1.0, 0.0), (0.5, 2.0), (3.0, 1.0, 2.0, 1.0), (1.0, 1.0), (0.0, 1.0, 1.0)]
TABLE = [
    DPO(),
    DPO(beta=0.5, label_smoothing=0.2),
    DPO(sft_weight=0.1),
    IPO(),
    IPO(reduction="sum"),
    ConservativeDPO(),
    RobustDPO(),
    LengthNormalisedDPO(),
    Hinge(beta=0.5),
    EXO(),
    DiscoPOP(),
    FDPO(),
    FDPO(divergence="js"),
    DPOWithSFT(beta=0.5, nll_coefficient=0.1),
    LDDPO(),
    NCA(beta=0.5),
    APOZero(),
    APODown(),
    SPPO(beta=0.5),
    SimPO(),
    AlphaPO(),
    CPO(),
    ORPO(),
    MaPO(scale=1.0),
    AOT(beta=0.5, label_smoothing=0.1),
    AOTUnpaired(beta=0.5),
    BCO(beta=0.5),
    KTO(beta=0.5, desirable_weight=1.3, kl_point="matched"),
    APOZeroUnpaired(undesirable_weight=0.7),
    BCOUnpaired(beta=0.5, desirable_weight=1.3),
    LatentEM(of=DPO(beta=0.5)),
    TDPO1(beta=0.5),
    TDPO2(beta=0.5),
    CriticalDPO(beta=0.5),
    WPO(of=DPO(beta=0.5)),
    Anchored(beta=0.5, shift=0.1),
    MPO(),
    MPO(terms=(Term(objective=SFT()), Term(objective=IPO(), weight=0.1))),
    MPO(terms=(Term(objective=SFT()), Term(objective=GRPO(), weight=0.5))),
    GRPO(),
    GRPO(aggregate="token", epsilon_high=0.28, drop_tied_groups=True),
    GRPO(aggregate="constant", max_length=10, scale="none"),
    GRPO(beta=0.1, kl="k2", scale="batch", advantage_clip=0.5),
    GRPO(beta=0.1, kl="exact", population=True),
    PPO(),
    PPO(entropy_coefficient=0.1, kl_coefficient=0.2, dual_clip=3.0, whiten_rewards=True),
    D3PO(clip=0.9),
    SPO(clip=0.9),
    DPOK(epsilon=0.2, kl="exact", kl_weight=0.1),
    DPOK(epsilon=0.2, kl="k2", kl_weight=10.0),
    DDPO(epsilon=0.2),
    PRO(),
    PRO(temperatures="ranks", sft_weight=0.0),
    LambdaDPO(beta=0.5),
    LambdaDPO(weights="ones"),
    TreePO(beta=0.5, step_factor="adaptive"),
    MODPO(beta=0.5, weights=(0.7, 0.3)),
    XPO(beta=0.5, alpha=0.1),
    INPO(eta=0.5, tau=0.2),
    TRPA(beta=0.5, kl_weight=0.5),
]
NAMES = [f"{type(o).__name__}-{i}" for i, o in enumerate(TABLE)]
SCORED = ("log_probs", "entropy", "kl", "kl_forward", "log_collision", "values")
every_objective = pytest.mark.parametrize("objective", TABLE, ids=NAMES)


def a_batch(seed: int = 0) -> Batch:
    made = tabular.batch(REWARDS, seed=seed)
    steps = torch.arange(made.weight.shape[1]).expand_as(made.weight) // 2
    made = replace(made, from_reference=torch.arange(len(made)) % 2 == 1, step_of=steps)
    return tabular.scored(
        made, reference=tabular.Tabular(seed=1), behaviour=tabular.Tabular(seed=2)
    )


def credited(objective: Objective, batch: Batch) -> Batch:
    """The batch after credit, with weights of steps, and further rewards, where they are needed."""
    if "step_weights" in objective.needs:
        batch = with_step_weights(batch)
    if isinstance(objective, MODPO):
        brevity = -batch.trajectory.mask.sum(1).to(batch.reward)
        batch = replace(batch, reward=torch.stack([batch.reward, brevity], 1))
    return objective.credit(batch)


def mean_loss_and_gradient(objective: Objective, pieces: list[Batch]) -> tuple[Tensor, Tensor]:
    """What a trainer computes of the pieces of one credited batch."""
    policy = tabular.Tabular(seed=3)
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        loss = objective.loss(policy.scores(piece.trajectory), piece).total / piece.denominator
        loss.backward()
        total += loss.detach()
    moved = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return total, torch.cat(moved)


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@every_objective
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("steps", [None, 1, 4])
def test_pieces_add_up(objective, rows, steps):
    """Loss and gradient of any division equal those of the whole: unequal rows, lengths, groups."""
    batch = credited(objective, a_batch())
    whole = mean_loss_and_gradient(objective, [batch])
    assert torch.count_nonzero(whole[1]) > 10
    if objective.additive_over == "group" and steps is not None:
        with pytest.raises(ValueError, match="steps_per_microbatch"):
            list(batch.microbatches(rows=rows, steps=steps, additive_over="group"))
        return
    pieces = batch.microbatches(rows=rows, steps=steps, additive_over=objective.additive_over)
    same(mean_loss_and_gradient(objective, list(pieces)), whole)


@every_objective
@pytest.mark.parametrize("rows", [1, 4])
def test_metrics_add_up(objective, rows):
    """(sum, count) over the pieces give the whole batch's mean; the loss metric is the loss."""
    policy, batch = tabular.Tabular(seed=3), credited(objective, a_batch())
    whole = objective.loss(policy.scores(batch.trajectory), batch)
    sums: dict[str, tuple[float, float]] = {}
    pieces = list(batch.microbatches(rows=rows, steps=None, additive_over=objective.additive_over))
    assert len(pieces) > 1
    for piece in pieces:
        for name, (total, count) in objective.loss(
            policy.scores(piece.trajectory), piece
        ).metrics.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(total), before[1] + float(count))
    assert sums.keys() == whole.metrics.keys()
    for name, (total, count) in whole.metrics.items():
        assert not total.requires_grad and not count.requires_grad, name
        assert sums[name][0] == pytest.approx(float(total), abs=1e-9), name
        assert sums[name][1] == pytest.approx(float(count)), name
    if "loss" in whole.metrics:
        total, count = whole.metrics["loss"]
        assert float(count) == batch.denominator
        assert float(total) == pytest.approx(whole.total.item())


@every_objective
def test_order_of_the_rows_is_irrelevant(objective):
    batch = a_batch()
    order = torch.randperm(len(batch))
    shuffled = mean_loss_and_gradient(objective, [credited(objective, batch.rows(order))])
    same(shuffled, mean_loss_and_gradient(objective, [credited(objective, batch)]))


@every_objective
def test_padding_is_invisible(objective):
    wide = mean_loss_and_gradient(objective, [credited(objective, tabular.padded(a_batch(), 3))])
    same(wide, mean_loss_and_gradient(objective, [credited(objective, a_batch())]))


@every_objective
def test_masked_steps_get_no_gradient(objective):
    """Nor do they enter the loss, whatever a policy says about them."""
    policy, batch = tabular.Tabular(seed=3), credited(objective, a_batch())
    found = policy.scores(batch.trajectory)
    clean = objective.loss(found, batch).total
    garbage = ~batch.trajectory.mask * torch.tensor(-1e4).double()
    found = replace(found, **{k: getattr(found, k) + garbage for k in SCORED})
    leaves = {name: getattr(found, name).detach().clone().requires_grad_() for name in SCORED}
    dirty = objective.loss(replace(found, **leaves), batch).total
    torch.testing.assert_close(dirty, clean)
    dirty.backward()
    masked = ~batch.trajectory.mask
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            assert (leaf.grad[masked] == 0).all(), name
    # Some kept step must be moved, or this test would pass on a constant.
    assert (leaves["log_probs"].grad[~masked] != 0).sum() > len(batch)


@every_objective
def test_two_batches_in_one_are_the_sum(objective):
    """Concatenated batches give the sum of both losses, over the sum of both denominators.

    But for the statistics that are taken over the whole batch by definition.
    """
    whole = isinstance(objective, PPO | DDPO | MPO | TRPA) or (
        isinstance(objective, GRPO) and objective.scale == "batch"
    )
    if whole or "coupled" in objective.needs:
        pytest.skip("a statistic of the batch couples everything by definition")
    policy, parts = tabular.Tabular(seed=3), [a_batch(0), a_batch(7)]
    apart_credited = [credited(objective, p) for p in parts]
    both = credited(objective, Batch.concatenate(parts))
    apart = [objective.loss(policy.scores(p.trajectory), p).total for p in apart_credited]
    together = objective.loss(policy.scores(both.trajectory), both).total
    torch.testing.assert_close(together, sum(apart))
    assert both.denominator == pytest.approx(sum(p.denominator for p in apart_credited))


@every_objective
def test_credit_carries_no_gradient_and_leaves_its_input(objective):
    batch = a_batch()
    before = batch.weight.clone()
    found = credited(objective, batch)
    for name in ("advantage", "returns", "weight", "coefficient"):
        value = getattr(found, name)
        assert value is None or not value.requires_grad, name
    torch.testing.assert_close(batch.weight, before)
    assert batch.advantage is None and batch.pairs is None and batch.denominator == 0.0


CHANGES = [
    (DPO, {"beta": 0.3}),
    (DPO, {"label_smoothing": 0.1}),
    (DPO, {"sft_weight": 0.1}),
    (ConservativeDPO, {"beta": 0.3}),
    (ConservativeDPO, {"label_smoothing": 0.2}),
    (RobustDPO, {"beta": 0.3}),
    (RobustDPO, {"label_smoothing": 0.2}),
    (LengthNormalisedDPO, {"beta": 0.3}),
    (Hinge, {"beta": 0.3}),
    (EXO, {"beta": 0.3}),
    (EXO, {"label_smoothing": 0.2}),
    (DiscoPOP, {"beta": 0.3}),
    (DiscoPOP, {"tau": 0.5}),
    (FDPO, {"beta": 0.3}),
    (FDPO, {"divergence": "js"}),
    (FDPO, {"divergence": "alpha"}),
    (FDPO, {"divergence": "alpha", "alpha": 0.3}),
    (DPOWithSFT, {"beta": 0.3}),
    (DPOWithSFT, {"nll_coefficient": 0.3}),
    (DPOWithSFT, {"reduction_of_nll": "mean"}),
    (LDDPO, {"beta": 0.3}),
    (LDDPO, {"alpha": 0.3}),
    (NCA, {"beta": 0.3}),
    (APOZero, {"beta": 0.3}),
    (APODown, {"beta": 0.3}),
    (SPPO, {"beta": 0.3}),
    (SimPO, {"beta": 0.3}),
    (SimPO, {"gamma": 0.3}),
    (SimPO, {"label_smoothing": 0.3}),
    (AlphaPO, {"beta": 0.3}),
    (AlphaPO, {"gamma": 0.3}),
    (AlphaPO, {"alpha": 0.5}),
    (CPO, {"beta": 0.3}),
    (CPO, {"nll_coefficient": 0.3}),
    (ORPO, {"beta": 0.3}),
    (MaPO, {"beta": 0.3}),
    (MaPO, {"snr": 0.3}),
    (MaPO, {"scale": 3.0}),
    (AOT, {"beta": 0.3}),
    (AOT, {"label_smoothing": 0.3}),
    (AOTUnpaired, {"beta": 0.3}),
    (AOTUnpaired, {"label_smoothing": 0.3}),
    (BCO, {"beta": 0.3}),
    (KTO, {"kl_point": "matched"}),
    (KTO, {"kl_point": "matched", "beta": 0.3}),
    (KTO, {"kl_point": "matched", "desirable_weight": 1.3}),
    (KTO, {"kl_point": "matched", "undesirable_weight": 1.3}),
    (LatentEM, {"of": DPO(beta=0.3)}),
    (LatentEM, {"of": SimPO()}),
    (LatentEM, {"reliability": 0.7}),
    (TDPO1, {"beta": 0.3}),
    (TDPO2, {"beta": 0.3}),
    (TDPO2, {"alpha": 0.3}),
    (CriticalDPO, {"beta": 0.3}),
    (WPO, {"of": DPO(beta=0.3)}),
    (WPO, {"max_weight": 0.5}),
    (Anchored, {"beta": 0.3}),
    (Anchored, {"shift": 0.3}),
    (Anchored, {"min_reward": 1.0}),
    (MPO, {"terms": (Term(objective=DPO(), weight=0.5), Term(objective=SFT()))}),
    (MPO, {"terms": (Term(objective=DPO(), weight=0.4), Term(objective=SFT()))}),
    (MPO, {"terms": (Term(objective=DPO(beta=0.3), weight=0.4), Term(objective=SFT()))}),
    (SFT, {"aggregate": "sequence"}),
    (SFT, {"min_reward": 1.0}),
    (OPADPO, {"beta": 0.3}),
    (OPADPO, {"anchor_weight": 0.3}),
    (OPADPO, {"anchor_shift": 0.3}),
    (OPADPO, {"released_signs": True}),
    (OPADPO, {"token_level": True}),
    (OPADPO, {"token_level": True, "positions": 9}),
    (Logic, {"beta": 0.3}),
    (Logic, {"sft_weight": 0.3}),
    (Logic, {"log_probs": "mean"}),
    (Logic, {"log_probs": "mean", "proposition": "M(l) -> M(w)"}),
    (Logic, {"log_probs": "mean", "condition": "M(w) or M(l)"}),
    (Logic, {"log_probs": "mean", "ambiguous": "M(w) and M(l)"}),
    (APOZeroUnpaired, {"beta": 0.3}),
    (BCOUnpaired, {"beta": 0.3}),
    (BCOUnpaired, {"desirable_weight": 1.3}),
    (BCOUnpaired, {"undesirable_weight": 1.3}),
    (APOZeroUnpaired, {"desirable_weight": 1.3}),
    (APOZeroUnpaired, {"undesirable_weight": 1.3}),
    (IPO, {"beta": 0.3}),
    (IPO, {"reduction": "sum"}),
    (GRPO, {"epsilon": 0.01}),
    (GRPO, {"epsilon_high": 0.01}),
    (GRPO, {"beta": 0.1}),
    (GRPO, {"beta": 0.1, "kl": "k1"}),
    (GRPO, {"beta": 0.1, "kl": "k2"}),
    (GRPO, {"beta": 0.1, "kl": "exact"}),
    (GRPO, {"scale": "batch"}),
    (GRPO, {"scale": "none"}),
    (GRPO, {"population": True}),
    (GRPO, {"advantage_clip": 0.3}),
    (GRPO, {"aggregate": "token"}),
    (GRPO, {"aggregate": "constant", "max_length": 9}),
    (GRPO, {"aggregate": "constant", "max_length": 10}),
    (GRPO, {"drop_tied_groups": True}),
    (PPO, {"epsilon": 0.01}),
    (PPO, {"epsilon_high": 0.01}),
    (PPO, {"dual_clip": 1.01}),
    (PPO, {"kl_coefficient": 0.5}),
    (PPO, {"kl": "k2"}),
    (PPO, {"kl": "k3"}),
    (PPO, {"gamma": 0.9}),
    (PPO, {"lam": 0.5}),
    (PPO, {"whiten_advantages": False}),
    (PPO, {"whiten_rewards": True}),
    (PPO, {"value_clip": 0.05}),
    (PPO, {"value_clip": None}),
    (PPO, {"value_coefficient": 0.5}),
    (PPO, {"entropy_coefficient": 0.1}),
    (D3PO, {"beta": 0.3}),
    (D3PO, {"clip": 0.5}),
    (SPO, {"beta": 0.3}),
    (SPO, {"clip": 0.5}),
    (DPOK, {"kl": "k2", "epsilon": 0.3}),
    (DPOK, {"kl": "k2", "reward_weight": 1.0}),
    (DPOK, {"kl": "k2", "kl_weight": 1.0}),
    (DPOK, {"kl": "exact", "kl_weight": 1.0}),
    (DPOK, {"kl": "k2", "value_coefficient": 3.0}),
    (DDPO, {"epsilon": 0.3}),
    (DDPO, {"epsilon": 0.3, "advantage_clip": 0.3}),
    (PRO, {"sft_weight": 0.3}),
    (PRO, {"beta": 0.3}),
    (PRO, {"temperatures": "ranks"}),
    (LambdaDPO, {"beta": 0.3}),
    (LambdaDPO, {"weights": "ones"}),
    (TreePO, {"beta": 0.3}),
    (TreePO, {"weights": "ones"}),
    (TreePO, {"step_factor": "adaptive"}),
    (MODPO, {"weights": (0.7, 0.3)}),
    (MODPO, {"objective": 1}),
    (MODPO, {"beta": 0.3}),
    (MODPO, {"form": "hinge"}),
    (XPO, {"alpha": 0.3}),
    (XPO, {"beta": 0.3}),
    (XPO, {"form": "ipo"}),
    (INPO, {"eta": 0.3}),
    (INPO, {"eta": 0.3, "tau": 0.1}),
    (TRPA, {"beta": 0.3}),
    (TRPA, {"anisotropy": 1.0}),
    (TRPA, {"best_level": 2.5}),
    (TRPA, {"kl_weight": 0.5}),
]


def test_no_setting_is_dead():
    """Every setting changes the gradient, each value in its own way."""
    seen: dict[type, list[Tensor]] = {}
    # By default KTO wants outputs of other prompts and DPOK a denoiser's predictions.
    defaults = [(kind, {}) for kind in OBJECTIVES.values() if kind not in (KTO, DPOK)]
    for kind, change in defaults + CHANGES:
        objective = kind(**change)
        _, gradient = mean_loss_and_gradient(objective, [credited(objective, a_batch())])
        for other in seen.setdefault(kind, []):
            assert other.shape != gradient.shape or (other - gradient).abs().max() > 1e-6, change
        seen[kind].append(gradient)
    # "allow_bound" acts on what is admitted, not on the loss; the others on later batches.
    for kind in OBJECTIVES.values():
        tried = {name for k, change in CHANGES if k is kind for name in change}
        tried |= {"allow_bound", "rate", "lowest", "buffer_size", "min_count"}
        assert {f.name for f in fields(kind)} <= tried


def test_needs():
    """What each setting asks of the run."""
    assert DPO().needs == IPO().needs == {"reference"}
    assert GRPO().needs == {"exact", "behaviour"}
    assert GRPO(allow_bound=True).needs == {"behaviour"}
    assert GRPO(beta=0.1).needs == {"exact", "behaviour", "reference"}
    assert GRPO(beta=0.1, kl="exact").needs == {"exact", "behaviour", "kl"}
    assert PPO().needs == {"exact", "behaviour", "values", "reference"}
    assert PPO(kl_coefficient=0.0).needs == {"exact", "behaviour", "values"}
    assert "entropy" in PPO(entropy_coefficient=0.01).needs
    assert "exact" not in PPO(allow_bound=True).needs
    assert D3PO().needs == SPO().needs == {"reference", "exact"}
    assert DPOK().needs == {"exact", "behaviour", "values", "prediction_distance"}
    assert DPOK(kl="exact").needs == {"exact", "behaviour", "values", "kl"}
    assert DPOK(kl="k3").needs == {"exact", "behaviour", "values", "reference"}
    assert DPOK(kl_weight=0.0).needs == {"exact", "behaviour", "values"}
    assert DDPO().needs == {"exact", "behaviour"}
    assert PRO().needs == frozenset()
    assert LambdaDPO().needs == XPO().needs == TRPA(kl_weight=0.0).needs == {"reference"}
    assert INPO().needs == {"reference", "behaviour"}
    assert TRPA().needs == {"reference", "behaviour", "exact"}
    assert D3PO().additive_over == "group_step"
    assert [o().additive_over for o in (DPO, IPO, GRPO, PPO)] == ["group", "group", "step", "step"]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DPO, {"beta": 0.0}, "beta=0.0"),
        (DPO, {"label_smoothing": 0.7}, "label_smoothing=0.7"),
        (DPO, {"sft_weight": -0.1}, "sft_weight=-0.1"),
        (IPO, {"beta": -1.0}, "beta=-1.0"),
        (AOT, {"label_smoothing": 0.7}, "label_smoothing=0.7"),
        (AOTUnpaired, {"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        (BCO, {"beta": 0.0}, "beta=0.0"),
        (KTO, {"beta": 0.0}, "beta=0.0"),
        (KTO, {"desirable_weight": -1.0}, "desirable_weight=-1.0"),
        (KTO, {"kl_point": "none"}, "apo_zero_unpaired"),
        (LatentEM, {"reliability": 1.0}, "reliability=1.0"),
        (LatentEM, {"lowest": 0.95}, "lowest=0.95"),
        (LatentEM, {"rate": 1.5}, "rate=1.5"),
        (LatentEM, {"of": AOT()}, "formula of each pair"),
        (LatentEM, {"of": CriticalDPO()}, "rejected side alone"),
        (LatentEM, {"of": GRPO()}, "GRPO is none"),
        (BCOUnpaired, {"beta": 0.0}, "beta=0.0"),
        (APOZeroUnpaired, {"undesirable_weight": -1.0}, "undesirable_weight=-1.0"),
        (GRPO, {"epsilon": 0.0}, "epsilon=0.0"),
        (GRPO, {"beta": -0.1}, "beta=-0.1"),
        (GRPO, {"advantage_clip": 0.0}, "advantage_clip=0.0"),
        (GRPO, {"aggregate": "constant"}, "max_length"),
        (GRPO, {"aggregate": "token", "max_length": 5}, "max_length"),
        (GRPO, {"aggregate": "mean"}, "aggregate='mean'"),
        (PPO, {"epsilon": -1.0}, "epsilon=-1.0"),
        (PPO, {"lam": 1.5}, "lam=1.5"),
        (PPO, {"gamma": -0.5}, "gamma=-0.5"),
        (PPO, {"dual_clip": 0.5}, "dual_clip=0.5"),
        (PPO, {"kl_coefficient": -0.1}, "kl_coefficient=-0.1"),
        (D3PO, {"beta": 0.0}, "beta=0.0"),
        (SPO, {"clip": 1.0}, "clip=1.0"),
        (DPOK, {"epsilon": 0.0}, "epsilon=0.0"),
        (DPOK, {"kl_weight": -1.0}, "kl_weight=-1.0"),
        (DDPO, {"advantage_clip": 0.0}, "advantage_clip=0.0"),
        (DDPO, {"min_count": 17}, "min_count=17"),
        (PRO, {"beta": 0.0}, "beta=0.0"),
        (PRO, {"sft_weight": -1.0}, "sft_weight=-1.0"),
        (LambdaDPO, {"beta": 0.0}, "beta=0.0"),
        (LambdaDPO, {"weights": "both"}, "weights='both'"),
        (XPO, {"beta": 0.0}, "beta=0.0"),
        (XPO, {"alpha": -1.0}, "alpha=-1.0"),
        (XPO, {"form": "hinge"}, "form='hinge'"),
        (INPO, {"eta": 0.001}, "0 < tau <= eta"),
        (INPO, {"tau": 0.0}, "0 < tau <= eta"),
        (TRPA, {"beta": 0.0}, "beta=0.0"),
        (TRPA, {"kl_weight": -1.0}, "kl_weight=-1.0"),
        (MODPO, {"weights": (0.5, 0.6)}, "of sum 1"),
        (MODPO, {"weights": (1.5, -0.5)}, "of sum 1"),
        (MODPO, {"weights": (0.04, 0.96)}, "below 0.05, and the loss divides by it"),
        (MODPO, {"objective": 2}, "objective=2 is no place among the 2 weights"),
        (MODPO, {"beta": 0.0}, "beta=0.0"),
        (MODPO, {"form": "ipo"}, "form='ipo'"),
    ],
)
def test_senseless_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_are_configurations(name):
    """Each builds from a mapping, fails on a wrong type, is frozen, and fulfils the protocol."""
    kind = OBJECTIVES[name]
    built = build(Objective, of_data({"type": name}, "here"), "objective")
    assert built == kind() and isinstance(built, Objective)
    for field in fields(kind):
        node = of_data({"type": name, field.name: {"no": "such"}}, "here")
        with pytest.raises(ConfigError, match=field.name):
            build(Objective, node, "objective")
        with pytest.raises((AttributeError, TypeError)):
            setattr(built, field.name, 1.0)
