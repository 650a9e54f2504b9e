"""Objectives whose pairs are compared through a statistic of the whole batch.

Such a loss is not a sum over pieces of a batch. Its gradient is: credit takes the statistic from
the log-probs that the policy gives the batch before its first update, over the pairs of all
processes, and each pair keeps what it is compared with as a constant (``batch.pair_anchor``). Hence
any division into microbatches and processes gives the gradient of the whole batch. Where a source's
batch serves several updates, the constants stay those of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import distributed, functional
from mmalign.functional.logistic import require_smoothing
from mmalign.objectives import pairwise
from mmalign.objectives.pair import PairObjective
from mmalign.types import Batch, Loss, Scores

COUPLED = frozenset({"reference", "behaviour", "coupled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AOT(PairObjective):
    """Alignment by optimal transport, paired: sorted margins of policy and reference are compared.

    ``-(1 - e) LS(beta d) - e LS(-beta d)`` with ``d`` the i-th smallest margin of the policy minus
    the i-th smallest of the reference. So a pair whose margin has rank i meets the reference's
    log-probs of whichever pair has rank i there: DPO against another pair's reference. Equal
    margins take ranks in the order of processes and rows.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        label_smoothing: Probability that a label is wrong, 0 to 0.5.

    References:
        2406.05882.
    """

    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        require_smoothing(self.label_smoothing, "aot")

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return COUPLED

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` of a whole batch at once, sorted; log 2 at the reference."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.aot(*six, beta=self.beta, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs, and each pair's reference log-probs at its rank among all margins."""
        batch = pairwise.credit(batch)
        counted = ranked_pairs(batch, "aot")
        own, reference = side_sums(batch)
        margin, mine = distributed.gathered((own[:, 0] - own[:, 1])[counted])
        sides = [distributed.gathered(side[counted])[0] for side in reference.unbind(1)]
        order = (sides[0] - sides[1]).argsort(stable=True)
        at_rank = torch.stack(sides, 1)[order][ranks(margin)]
        anchor = torch.zeros_like(reference)
        anchor[counted] = at_rank[mine]
        return replace(batch, pair_anchor=anchor)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        assert batch.pair_anchor is not None
        anchor_w, anchor_l = batch.pair_anchor.unbind(1)

        def at_rank(
            s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
        ) -> Tensor:
            six = (s_w, s_l, anchor_w, anchor_l, n_w, n_l)
            return functional.cdpo_smoothing(
                *six, beta=self.beta, label_smoothing=self.label_smoothing
            )

        return pairwise.loss(scores, batch, formula=at_rank, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class AOTUnpaired(PairObjective):
    """Alignment by optimal transport, unpaired: sorted chosen against sorted rejected log-ratios.

    ``-(1 - e) LS(beta d) - e LS(-beta d)`` with ``d`` the i-th smallest ``h_w`` minus the i-th
    smallest ``h_l``, whichever pairs they come from. Each side meets the value of the other side's
    row at its rank as a constant. That gives every comparison twice, once for the gradient of each
    of its sides, so each of the two counts half in the loss's value and fully in its gradient.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        label_smoothing: Probability that a label is wrong, 0 to 0.5.

    References:
        2406.05882.
    """

    beta: float = 0.01
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        require_smoothing(self.label_smoothing, "aot_unpaired")

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return COUPLED

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` of a whole batch at once, sorted; log 2 at the reference."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.aot_unpaired(*six, beta=self.beta, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs, and each side's partner: the other side's log-ratio at its rank."""
        batch = pairwise.credit(batch)
        counted = ranked_pairs(batch, "aot_unpaired")
        own, reference = side_sums(batch)
        h_w, h_l = (own - reference)[counted].unbind(1)
        chosen, mine = distributed.gathered(h_w)
        rejected, _ = distributed.gathered(h_l)
        anchor = torch.zeros_like(own)
        anchor[counted, 0] = rejected.sort().values[ranks(chosen)][mine]
        anchor[counted, 1] = chosen.sort().values[ranks(rejected)][mine]
        return replace(batch, pair_anchor=anchor)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        assert batch.pair_anchor is not None
        anchor_w, anchor_l = batch.pair_anchor.unbind(1)

        def against_partners(
            s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
        ) -> Tensor:
            zero = torch.zeros_like(anchor_w)
            both = [
                functional.cdpo_smoothing(
                    *six, n_w, n_l, beta=self.beta, label_smoothing=self.label_smoothing
                )
                for six in ((s_w, anchor_w, ref_s_w, zero), (anchor_l, s_l, zero, ref_s_l))
            ]
            total = both[0] + both[1]
            return total - total.detach() / 2

        return pairwise.loss(scores, batch, formula=against_partners, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class BCO(PairObjective):
    """Binary classifier optimisation: both sides classified against the mean reward of the batch.

    ``-LS(r_w - shift) - LS(shift - r_l)`` where ``r = beta h`` and the shift, without gradient, is
    the mean reward of both sides over the pairs of the global batch. The paper takes a running mean
    over batches; it would depend on the order of batches and be one more thing to restore, so a
    large batch stands in for it here.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2404.04656.
    """

    beta: float = 0.01

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return COUPLED

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` of a whole batch at once; 2 log 2 at the reference."""
        shift = self.beta * ((s_w - ref_s_w) + (s_l - ref_s_l)).mean() / 2
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.bco(*six, beta=self.beta, shift=shift)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs, and the mean log-ratio over both sides; a pair counts as its coefficient says."""
        batch = pairwise.credit(batch)
        own, reference = side_sums(batch)
        weight = coefficients(batch, own).unsqueeze(1).expand_as(own)
        found = torch.stack([(weight * (own - reference)).sum(), weight.sum()])
        total, count = distributed.all_reduce(found).unbind()
        # Without any pair, on any process, there is nothing that the shift could be of.
        shift = total / torch.where(count > 0, count, 1.0)
        metrics = {**batch.metrics, "rewards/shift": (self.beta * float(shift), 1.0)}
        return replace(batch, pair_anchor=shift.expand_as(own).clone(), metrics=metrics)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; 2 log 2 a pair at the reference."""
        assert batch.pair_anchor is not None
        shift = self.beta * batch.pair_anchor[:, 0]

        def shifted(
            s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
        ) -> Tensor:
            six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
            return functional.bco(*six, beta=self.beta, shift=shift)

        return pairwise.loss(scores, batch, formula=shifted, beta=self.beta)


def side_sums(batch: Batch) -> tuple[Tensor, Tensor]:
    """``[N, 2]`` log-probs of the pairs' sides, summed: before the first update, and reference."""
    assert batch.reference is not None and batch.behaviour is not None
    own = torch.stack(pairwise.side_sums(batch.behaviour, batch), 1)
    return own, torch.stack(pairwise.side_sums(batch.reference, batch), 1)


def coefficients(batch: Batch, like: Tensor) -> Tensor:
    """``[N]`` weights of the pairs, in the type of ``like``."""
    assert batch.pairs is not None
    if batch.coefficient is None:
        return like.new_ones(len(batch.pairs))
    return batch.coefficient.to(like)


def ranked_pairs(batch: Batch, name: str) -> Tensor:
    """``[N]`` bool: the pairs that have a rank.

    Raises:
        ValueError: A pair counts other than once or not at all.
    """
    weight = coefficients(batch, batch.weight)
    odd = weight[(weight != 0) & (weight != 1)]
    if len(odd):
        raise ValueError(
            f"{name} compares by rank, and a pair of weight {float(odd[0]):g} has no whole rank; "
            "use a source or selector that weighs every pair alike, or an objective such as dpo"
        )
    return weight != 0


def ranks(values: Tensor) -> Tensor:
    """``[M]`` int64: how many of the values stand before each; equal ones in their order."""
    return values.argsort(stable=True).argsort()
