"""Learning whose labels are right while learning from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import distributed, functional
from mmalign.objectives import pairwise
from mmalign.objectives.coupled import coefficients, side_sums
from mmalign.objectives.pair import PairObjective
from mmalign.types import Batch, Loss, Scores

MARGIN = 1e-3
"""The running reliability stays so far from 1: there every label would be right for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentEM(PairObjective):
    """DPO by expectation-maximisation over which labels are right.

    ``-[w LS(beta D) + (1 - w) LS(-beta D)]`` where ``w = sigmoid(beta D + logit(eta))``, without
    gradient, is the probability that the pair is labelled rightly, and ``eta`` the reliability of
    its annotator. After each batch an annotator's reliability moves by ``rate`` towards the mean
    ``w`` of its pairs in the global batch, all processes together; one without a pair keeps his.
    The reliabilities are the run's memory and are saved with it. Annotators are told apart where
    the source names them (``annotator``), and are one otherwise.

    The mean ``w`` is taken from the policy before the batch's first update. Where a batch serves
    several updates, ``eta`` stays the same for all of them and ``w`` follows the policy.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        reliability: Of every annotator at the start, between 0 and 1.
        rate: Share of the way to a batch's mean that the reliability moves; 0 keeps it.
        lowest: Bound of the running reliability. Below 0.5 an annotator's labels count as turned
            round, which only data from somebody who means harm calls for.

    References:
        2509.24159.
    """

    beta: float = 0.1
    reliability: float = 0.9
    rate: float = 0.1
    lowest: float = 0.5

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if not MARGIN <= self.lowest <= self.reliability <= 1 - MARGIN:
            raise ValueError(
                f"reliability={self.reliability} and lowest={self.lowest} do not suit latent_em: "
                f"{MARGIN} <= lowest <= reliability <= {1 - MARGIN}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate} is a share of the way; use 0 to 1")

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return frozenset({"reference", "behaviour", "coupled"})

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` at the starting reliability; log 2 at the reference."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.latent_em(*six, beta=self.beta, reliability=self.reliability)

    @torch.no_grad()
    def remember(
        self, batch: Batch, memory: Mapping[str, float]
    ) -> tuple[Batch, Mapping[str, float]]:
        """Each pair with its annotator's reliability, and the reliabilities after this batch."""
        assert batch.pairs is not None
        own, reference = side_sums(batch)
        who = self._annotators(batch)
        known = [memory.get(str(number), self.reliability) for number in who.tolist()]
        eta = own.new_tensor(known)
        right = functional.label_posterior(
            *own.unbind(1), *reference.unbind(1), beta=self.beta, reliability=eta
        )
        counted = coefficients(batch, own) != 0
        everyone, _ = distributed.gathered(who[counted])
        posterior, _ = distributed.gathered(right[counted])
        after = dict(memory)
        for number in everyone.unique().tolist():
            before = memory.get(str(number), self.reliability)
            mean = float(posterior[everyone == number].double().mean())
            moved = before + self.rate * (mean - before)
            after[str(number)] = min(max(moved, self.lowest), 1 - MARGIN)
        count = float(counted.sum())
        metrics = {
            **batch.metrics,
            "reliability": (float(eta[counted].sum()), count),
            "labels_right": (float(right[counted].sum()), count),
        }
        return replace(batch, pair_anchor=eta.unsqueeze(1).expand(-1, 2), metrics=metrics), after

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        if batch.pair_anchor is None:
            return pairwise.loss(scores, batch, formula=self.formula, beta=self.beta)
        eta = batch.pair_anchor[:, 0]

        def trusted(
            s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
        ) -> Tensor:
            six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
            return functional.latent_em(*six, beta=self.beta, reliability=eta)

        return pairwise.loss(scores, batch, formula=trusted, beta=self.beta)

    def _annotators(self, batch: Batch) -> Tensor:
        """``[N]`` int64 annotator of each pair; 0 where the source names none."""
        assert batch.pairs is not None
        if batch.annotator is None:
            return torch.zeros_like(batch.pairs[:, 0])
        return batch.annotator[batch.pairs[:, 0]]
