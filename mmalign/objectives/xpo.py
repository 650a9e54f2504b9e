"""Exploratory preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from mmalign import functional, pairing
from mmalign.functional.games import XPOForm
from mmalign.objectives import pairwise
from mmalign.objectives.pair import PairObjective
from mmalign.types import Batch, Loss, Scores

SAME_SAMPLER = "dropped/same_sampler"


@dataclass(frozen=True, slots=True, kw_only=True)
class XPO(PairObjective):
    """Online DPO of the policy's samples against the reference's, with a bonus for leaving those.

    ``-log sigmoid(beta D) + alpha s(y~)`` of each pair, where ``y~`` is its reference sample and
    ``s`` the policy's summed log-prob of it. Its source is `rollouts` with
    ``reference_generations``, as published one of two. With more, each sample of the policy makes a
    pair with each of the reference's that earned differently; pairs of two samples of one and the
    same model, which a selector may have made, are dropped and counted.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        alpha: Weight of the bonus, per nat; 0 for none.
        form: "sigmoid", or "ipo" for ``(D - 1/(2 beta))^2``.

    References:
        2405.21046; the default alpha is TRL's.
    """

    beta: float = 0.1
    alpha: float = 1e-5
    form: XPOForm = "sigmoid"

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if self.alpha < 0:
            raise ValueError(
                f"alpha={self.alpha} would pull the policy back to the reference's samples; use 0 "
                "or more"
            )
        if self.form not in ("sigmoid", "ipo"):
            raise ValueError(f"form={self.form!r} is unknown; use 'sigmoid' or 'ipo'")

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs of a policy's sample and a reference's, and their number.

        Raises:
            ValueError: No row was sampled from the reference.
        """
        if batch.from_reference is None:
            raise ValueError(
                "xpo compares the policy's samples with the reference's, and this batch has none "
                "of the latter; use a source of `type: rollouts` with `reference_generations` set "
                "to half of `num_generations`"
            )
        if batch.pairs is None:
            batch = pairing.ordered_pairs(batch)
        assert batch.pairs is not None and batch.from_reference is not None
        across = batch.from_reference[batch.pairs].sum(1) == 1
        batch = pairing.counted(
            pairing.keep_pairs(batch, across), {SAME_SAMPLER: int((~across).sum())}
        )
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; ``log 2 + alpha s(y~)`` a pair at the reference."""
        assert batch.pairs is not None and batch.from_reference is not None
        theirs = batch.from_reference[batch.pairs[:, 0]]
        formula = partial(
            functional.xpo,
            beta=self.beta,
            alpha=self.alpha,
            chosen_is_reference=theirs,
            form=self.form,
        )
        loss = pairwise.loss(scores, batch, formula=formula, beta=self.beta)
        with torch.no_grad():
            sums = pairwise.total_log_probs(scores.log_probs, batch)
            bonus = torch.where(theirs, sums[batch.pairs[:, 0]], sums[batch.pairs[:, 1]])
            metrics = {
                "logps/reference_sample": pairwise.mean_of(bonus),
                "policy_wins": pairwise.mean_of((~theirs).to(bonus)),
            }
        return Loss(total=loss.total, metrics={**loss.metrics, **metrics})
