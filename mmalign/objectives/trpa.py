"""Trust region preference approximation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from mmalign import distributed, functional
from mmalign.functional import masked_sum
from mmalign.objectives import pairwise, policy_gradient
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class TRPA:
    """Preferences between levels of a reward, held to the policy that sampled.

    ``-log sigmoid(c beta (h_w / n_w - h_l / n_l))``, a mean over all pairs of a group whose rewards
    differ, plus ``kl_weight`` times the mean of the k3 estimate to the policy that sampled, over
    the steps of the rows in those pairs. ``c`` is ``anisotropy`` where the better row is of the
    best level. A reward is a level: 2, 1, 0 for right, wrong but readable, unreadable, say. Groups
    of one level teach nothing and are dropped; pairs are made in a prompt's group, whichever way a
    batch is cut (the released code makes them inside a microbatch).

    Attributes:
        beta: Per nat of log-ratio, a mean over steps.
        anisotropy: What the margin is multiplied with where the better row is of the best level.
        best_level: The reward from which on a row is of the best level.
        kl_weight: Of the estimate; 0 for none.

    References:
        2504.04524; defaults of the released code.
    """

    beta: float = 0.1
    anisotropy: float = 2.5
    best_level: float = 1.0
    kl_weight: float = 0.001

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.anisotropy <= 0 or self.kl_weight < 0:
            raise ValueError(
                f"beta={self.beta} and anisotropy={self.anisotropy} must be positive, "
                f"kl_weight={self.kl_weight} not negative"
            )

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference; with ``kl_weight`` those of the policy that sampled."""
        return frozenset({"reference", "behaviour", "exact"} if self.kl_weight else {"reference"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs, the factor of each, their number, and what a step's estimate counts.

        Loss and estimate are means over different numbers, pairs and steps, of the whole batch: a
        step counts ``kl_weight pairs / steps``, and the sum is divided by the pairs.
        """
        batch = pairwise.credit(batch)
        assert batch.pairs is not None
        steps = policy_gradient.scored(batch).sum() if len(batch.pairs) else 0
        found = batch.weight.new_tensor([batch.denominator, float(steps)])
        pairs, count = distributed.all_reduce(found).unbind()
        share = self.kl_weight * pairs / count.clamp(min=1)
        best = batch.reward[batch.pairs[:, 0]] >= self.best_level
        factor = torch.where(best, self.anisotropy, 1.0).to(batch.weight)
        return replace(
            batch,
            anchor=share.expand(len(batch)).clone(),
            pair_anchor=factor.unsqueeze(1).expand(-1, 2),
        )

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs and steps; log 2 a pair at the reference, ratio 1."""
        assert batch.anchor is not None and batch.pair_anchor is not None
        assert batch.pairs is not None
        formula = partial(functional.trpa, beta=self.beta, scale=batch.pair_anchor[:, 0])
        loss = pairwise.loss(scores, batch, formula=formula, beta=self.beta)
        if self.kl_weight == 0 or batch.behaviour is None:
            # The policy that sampled is the policy as it is: the estimate and its gradient are 0.
            return loss
        each = functional.kl(scores.log_probs, batch.behaviour, kind="k3")
        counted = policy_gradient.scored(batch) & torch.isin(
            torch.arange(len(batch), device=batch.group.device), batch.pairs
        ).unsqueeze(1)
        total = loss.total + (batch.anchor * masked_sum(each, counted)).sum()
        metrics = {
            **loss.metrics,
            "loss": (total.detach(), loss.metrics["loss"][1]),
            "kl": pairwise.mean_of(each[counted]),
        }
        return Loss(total=total, metrics=metrics)
