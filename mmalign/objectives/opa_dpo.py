"""OPA-DPO and mDPO: pairs of answers, pairs of views of one answer, and anchored answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign import functional, pairing
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import mean_of, total_log_probs
from mmalign.types import Additive, Batch, Loss, Metric, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class OPADPO:
    """DPO of a record's weighted pairs, and an anchor on each of its outputs that is right.

    With ``h = log p - log p_ref`` a record of a `views` source adds

        sum over its pairs of  c * -LS(beta (h_chosen - h_rejected))
        + anchor_weight * sum over its anchored rows of  -LS(beta h - anchor_shift)

    where ``c`` and the step weights inside a pair's ``h`` come with the batch (the weight of the
    pairs of two views, gamma 1 of the paper, is `views`' ``image_weight``), and a row is anchored
    if it earned more than 0. Anchors are not weighted by step. The loss is a mean over records.

    OPA-DPO's record has pairs (truth, sample), (revision, sample) and both right answers with the
    picture against a distorted one; mDPO's has (chosen, rejected) and (chosen with the picture,
    chosen with a crop of it), ``image_weight`` and ``anchor_weight`` being 1.

    Attributes:
        beta: Per nat of log-ratio.
        anchor_weight: Of the anchor (gamma 2); 0 for none.
        anchor_shift: Reward that an anchored output is held above (delta).
        token_level: Compare position by position, the sides aligned by index, and average over
            positions, as the code released with OPA-DPO does; padding adds log 2. Such a loss is
            smaller by about the number of positions.
        positions: With ``token_level``: positions that are averaged over; None for the longest
            output of the batch, which then changes with the batch. The released code pads to 896.
        released_signs: Turn the anchor's sign on the outputs that earned less than their record's
            best, which are the revisions: the released code pushes them down. It also counts every
            anchor twice; for that, double ``anchor_weight``.

    References:
        OPA-DPO, 2501.09695; mDPO, 2406.11839.
    """

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.1
    anchor_weight: float = 1.0
    anchor_shift: float = 0.0
    token_level: bool = False
    positions: int | None = None
    released_signs: bool = False

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the chosen side; use more than 0")
        if self.anchor_weight < 0:
            raise ValueError(f"anchor_weight={self.anchor_weight} must not be negative")
        if self.positions is not None and not self.token_level:
            raise ValueError("positions is read with token_level alone; remove it")
        if self.positions is not None and self.positions < 1:
            raise ValueError(f"positions={self.positions} must be at least 1")

    @property
    def additive_over(self) -> Additive:
        """The rows of a record stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs, where the source made none, and the number of records as denominator.

        A record counts that has a pair of a coefficient other than 0. A pair of equal outputs stays
        (its loss is log 2, without gradient), so that every record is the sum that it should be.
        """
        pairing.scalar_reward(batch)  # several rewards a row would not say what is right
        if batch.pairs is None:
            batch = pairing.ordered_pairs(batch)
        pairing.check_pairs(batch)
        longest = int(batch.trajectory.mask.shape[1])
        if self.positions is not None and self.positions < longest:
            raise ValueError(
                f"positions={self.positions} is less than the {longest} steps of an output in this "
                "batch; set it to the longest output that the policy allows"
            )
        counted = torch.isin(batch.group, records(batch))
        kept = counted if bool(counted.any()) else batch.group == batch.group[0]
        if not bool(kept.all()):
            batch = batch.rows(kept.nonzero().squeeze(1))
        return replace(batch, denominator=float(len(records(batch))))

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over records; log 2 a unit of weight where policy and reference agree.

        For OPA-DPO's records that is ``2 log 2 (1 + gamma 1 + gamma 2)``: 3.049848 by default.
        """
        assert batch.reference is not None
        log_ratio = torch.where(batch.trajectory.mask, scores.log_probs - batch.reference, 0.0)
        pairs, anchors = self._pairs(log_ratio, batch), self._anchors(log_ratio, batch)
        total = pairs.sum() + self.anchor_weight * anchors.sum()
        count = total.new_tensor(float(len(records(batch))))
        with torch.no_grad():
            metrics = {
                **_margins(self.beta * total_log_probs(log_ratio, batch), batch),
                "loss": (total.detach(), count),
                "loss/pairs": (pairs.detach().sum(), count),
                "loss/anchors": mean_of(anchors),
            }
        return Loss(total=total, metrics=metrics)

    def _pairs(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[N]`` losses of the pairs times their coefficients."""
        weight, sides = batch.pair_weights(), log_ratio[batch.pairs]
        if self.token_level:
            each = self._mean(
                functional.stepwise_margin(sides, weight, beta=self.beta), math.log(2)
            )
        else:
            chosen, rejected = (sides * weight).sum(2).unbind(1)
            each = -logsigmoid(self.beta * (chosen - rejected))
        return each * coefficients(batch)

    def _anchors(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[M]`` losses of the anchored rows of the records that count."""
        rows = (batch.reward > 0) & torch.isin(batch.group, records(batch))
        sign = torch.where(self._pushed_down(batch), -1.0, 1.0)[rows]
        weighed = (log_ratio * batch.weight)[rows]
        if not self.token_level:
            return functional.anchor(
                sign * weighed.sum(1), beta=self.beta, shift=sign * self.anchor_shift
            )
        shift = (sign * self.anchor_shift).unsqueeze(1)
        each = functional.anchor(sign.unsqueeze(1) * weighed, beta=self.beta, shift=shift)
        return self._mean(each, -logsigmoid(-shift[:, 0]))

    def _mean(self, each: Tensor, filler: Tensor | float) -> Tensor:
        """``[M]`` means over positions of ``[M, T]`` losses, ``filler`` where there is no step."""
        positions = each.shape[1] if self.positions is None else self.positions
        return (each.sum(1) + (positions - each.shape[1]) * filler) / positions

    def _pushed_down(self, batch: Batch) -> Tensor:
        """``[B]`` bool: rows whose anchor has the released code's opposite sign."""
        found = torch.zeros_like(batch.reward, dtype=torch.bool)
        if self.released_signs:
            for rows in pairing.groups(batch):
                found[rows] = batch.reward[rows] < batch.reward[rows].max()
        return found


def coefficients(batch: Batch) -> Tensor:
    """``[N]`` float32 weights of the pairs."""
    assert batch.pairs is not None
    if batch.coefficient is None:
        return torch.ones(len(batch.pairs), device=batch.pairs.device)
    return batch.coefficient


def records(batch: Batch) -> Tensor:
    """The group numbers that have a pair of a coefficient other than 0."""
    assert batch.pairs is not None
    return torch.unique(batch.group[batch.pairs[coefficients(batch) != 0, 0]])


def _margins(reward: Tensor, batch: Batch) -> dict[str, Metric]:
    """Rewards of pairs of answers, and of pairs of one answer that was asked for differently."""
    assert batch.pairs is not None
    pairs = batch.pairs[coefficients(batch) != 0]
    asked = batch.trajectory.prompt_of[pairs]
    alike = asked[:, 0] == asked[:, 1]
    (w, r), (intact, distorted) = pairs[alike].unbind(1), pairs[~alike].unbind(1)
    return {
        "rewards/chosen": mean_of(reward[w]),
        "rewards/rejected": mean_of(reward[r]),
        "rewards/margins": mean_of(reward[w] - reward[r]),
        "rewards/accuracies": mean_of((reward[w] > reward[r]).to(reward)),
        "rewards/view_margins": mean_of(reward[intact] - reward[distorted]),
        "rewards/view_accuracies": mean_of((reward[intact] > reward[distorted]).to(reward)),
    }
