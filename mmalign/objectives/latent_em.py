"""Learning whose labels are right while learning from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmalign import distributed, functional
from mmalign.objectives import pairwise
from mmalign.objectives.coupled import coefficients
from mmalign.objectives.dpo import DPO
from mmalign.objectives.ipo import IPO
from mmalign.objectives.pair import PairObjective
from mmalign.protocols import Objective
from mmalign.types import Additive, Batch, Loss, Scores

MARGIN = 1e-3
"""The running reliability stays so far from 1: there every label would be right for ever."""
PLAIN = (PairObjective.loss, IPO.loss)
"""A loss that is its formula, without a statistic, margin or step of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentEM:
    """Expectation-maximisation over which labels are right, on top of a loss of pairs.

    ``-[w log p + (1 - w) log(1 - p)]`` where ``p = sigmoid(g)``, ``g = loss(l over w) -
    loss(w over l)``, is the probability that the base loss gives the label as it is, and
    ``w = sigmoid(g + logit(eta))``, without gradient, the probability that the label is right. With
    DPO as base g is ``beta D``, with IPO ``2 m / beta`` for a margin m. After each batch an
    annotator's reliability ``eta`` moves by ``rate`` towards the mean ``w`` of its pairs in the
    global batch, all processes together; one without a pair keeps his. The reliabilities are the
    run's memory and are saved with it. Annotators are told apart where the source names them
    (``annotator``), and are one otherwise.

    The mean ``w`` is taken from the policy before the batch's first update. Where a batch serves
    several updates, ``eta`` stays the same for all of them and ``w`` follows the policy.

    Attributes:
        of: The base loss, a formula of pairs: `dpo`, `ipo`, `simpo`, `cpo` and others. What it
            adds for the chosen side alone enters the gap as a difference of the two sides.
        reliability: Of every annotator at the start, between 0 and 1.
        rate: Share of the way to a batch's mean that the reliability moves; 0 keeps it.
        lowest: Bound of the running reliability. Below 0.5 an annotator's labels count as turned
            round, which only data from somebody who means harm calls for.

    References:
        2509.24159.
    """

    of: Objective = field(default_factory=DPO)
    reliability: float = 0.9
    rate: float = 0.1
    lowest: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.of, PairObjective | IPO) or type(self.of).loss not in PLAIN:
            raise ValueError(
                f"latent_em takes a loss that is a formula of each pair, such as dpo, ipo, simpo "
                f"or cpo, and {type(self.of).__name__} is none"
            )
        if "step_weights" in self.of.needs:
            raise ValueError(
                f"latent_em turns pairs round, and {type(self.of).__name__} weighs the steps of "
                "the rejected side alone; use a loss that takes either side for either"
            )
        if not MARGIN <= self.lowest <= self.reliability <= 1 - MARGIN:
            raise ValueError(
                f"reliability={self.reliability} and lowest={self.lowest} do not suit latent_em: "
                f"{MARGIN} <= lowest <= reliability <= {1 - MARGIN}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate={self.rate} is a share of the way; use 0 to 1")

    @property
    def base(self) -> PairObjective | IPO:
        """The base loss, which is checked when the settings are made."""
        assert isinstance(self.of, PairObjective | IPO)
        return self.of

    @property
    def inner(self) -> tuple[Objective, ...]:
        """The base loss."""
        return (self.of,)

    @property
    def additive_over(self) -> Additive:
        """As the base loss."""
        return self.of.additive_over

    @property
    def needs(self) -> frozenset[str]:
        """What the base loss needs, and log-probs before the batch's first update."""
        return self.of.needs | {"behaviour", "coupled"}

    def credit(self, batch: Batch) -> Batch:
        """That of the base loss."""
        return self.of.credit(batch)

    def gap(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` by how much the base loss prefers the label as it is; 0 at equal sides."""
        turned = self.base.formula(s_l, s_w, ref_s_l, ref_s_w, n_l, n_w)
        return turned - self.base.formula(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)

    @torch.no_grad()
    def remember(
        self, batch: Batch, memory: Mapping[str, float]
    ) -> tuple[Batch, Mapping[str, float]]:
        """Each pair with its annotator's reliability, and the reliabilities after this batch."""
        assert batch.pairs is not None
        assert batch.behaviour is not None
        gap = self.gap(*pairwise.sides(batch.behaviour, batch))
        who = self._annotators(batch)
        known = [memory.get(str(number), self.reliability) for number in who.tolist()]
        eta = gap.new_tensor(known)
        right = functional.label_posterior(gap, reliability=eta)
        counted = coefficients(batch, gap) != 0
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
        """Summed over pairs; log 2 a pair where the base loss finds both sides alike."""
        anchor = batch.pair_anchor
        eta = self.reliability if anchor is None else anchor[:, 0]

        def trusted(
            s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
        ) -> Tensor:
            gap = self.gap(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
            return functional.label_em(gap, reliability=eta)

        return pairwise.loss(scores, batch, formula=trusted, beta=self.base.beta)

    def _annotators(self, batch: Batch) -> Tensor:
        """``[N]`` int64 annotator of each pair; 0 where the source names none."""
        assert batch.pairs is not None
        if batch.annotator is None:
            return torch.zeros_like(batch.pairs[:, 0])
        return batch.annotator[batch.pairs[:, 0]]
