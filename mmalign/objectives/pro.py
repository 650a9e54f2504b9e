"""Preference ranking optimisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmalign import functional
from mmalign.functional import masked_sum
from mmalign.functional.lists import Temperatures
from mmalign.objectives import lists, policy_gradient
from mmalign.objectives.pairwise import mean_of
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class PRO:
    """A ranked list at once: each output against all worse ones, the best one imitated too.

    ``sum_k L_k + sft_weight (n - 1)^2 NLL(best)`` a list of n outputs (`functional.pro`), a mean
    over lists. Mean log-probs of the policy are compared, no reference; the likelihood term is a
    sum over the best output's steps, as in the released code, and a mean over several best ones.
    Lists whose scores are all equal are dropped and counted.

    Attributes:
        sft_weight: Of the likelihood of the best output; 0 for none.
        beta: What mean log-probs are multiplied with: 1 for log-probs of tokens, hundreds for those
            that are means over a latent.
        temperatures: "scores" weighs a comparison by the difference of the scores, which must then
            have a sensible scale (0 to 1, or a reward model's units); "ranks" by 1.

    References:
        2306.17492 and the code released with it.
    """

    sft_weight: float = 0.05
    beta: float = 1.0
    temperatures: Temperatures = "scores"

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.sft_weight < 0:
            raise ValueError(
                f"beta={self.beta} must be positive, sft_weight={self.sft_weight} not negative"
            )

    @property
    def additive_over(self) -> Additive:
        """The rows of a list stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: the policy's log-probs alone are compared, and a bound will do."""
        return frozenset()

    def credit(self, batch: Batch) -> Batch:
        """The lists and their number (see `lists.credit`)."""
        return lists.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over lists."""
        found = lists.of(batch)
        mean = lists.mean_log_probs(scores.log_probs, batch)[found.rows]
        each = functional.pro(
            mean, found.score, found.valid, beta=self.beta, temperatures=self.temperatures
        )
        total = masked_sum(scores.log_probs * batch.weight, policy_gradient.scored(batch))
        likelihood = (total[found.rows] * lists.best(found)).sum(1)
        size = found.valid.sum(1)
        loss = (each - self.sft_weight * (size - 1).square() * likelihood).sum()
        with torch.no_grad():
            metrics = {
                "loss": (loss.detach(), size.new_tensor(len(size)).to(loss)),
                "list/ranking": mean_of(each),
                "list/accuracies": lists.ordered_rightly(mean, found),
                "list/size": mean_of(size.to(loss)),
                "logps/best": mean_of(likelihood),
            }
        return Loss(total=loss, metrics=metrics)
