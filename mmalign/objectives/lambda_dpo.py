"""Listwise logistic losses of implicit rewards: LiPO-lambda, and the branches of a tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmalign import functional
from mmalign.functional import masked_sum
from mmalign.functional.lists import Comparing
from mmalign.objectives import lists, policy_gradient
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import mean_of
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class LambdaDPO:
    """A list of graded outputs as weighted pairs: DPO whose weights are those of LambdaRank.

    ``-sum_{v_i > v_j} lambda_ij log sigmoid(r_i - r_j)`` with ``r = beta h`` and the weights of
    `functional.lambda_dpo`, under the policy as it is; a mean over lists. A list of two with
    ``weights: ones`` is a pair of DPO.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        weights: "lambda", or "ones" for all pairs alike.

    References:
        2402.01878.
    """

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.1
    weights: Comparing = "lambda"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the better output; use above 0")
        if self.weights not in ("lambda", "ones"):
            raise ValueError(f"weights={self.weights!r} is unknown; use 'lambda' or 'ones'")

    @property
    def additive_over(self) -> Additive:
        """The rows of a list stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    def credit(self, batch: Batch) -> Batch:
        """The lists and their number (see `lists.credit`)."""
        return lists.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over lists."""
        return self.weighed(scores, batch, torch.ones_like(batch.weight))

    def weighed(self, scores: Scores, batch: Batch, factor: Tensor) -> Loss:
        """The loss with each step's log-ratio times ``factor`` (``[B, T]``), no gradient."""
        assert batch.reference is not None
        ratio = (scores.log_probs - batch.reference) * batch.weight * factor
        reward = self.beta * masked_sum(ratio, policy_gradient.scored(batch))
        found = lists.of(batch)
        r = reward[found.rows]
        each = functional.lambda_dpo(r, found.score, found.valid, weights=self.weights)
        total = each.sum()
        with torch.no_grad():
            metrics = {
                "loss": (total.detach(), torch.tensor(float(len(each))).to(total)),
                "list/accuracies": lists.ordered_rightly(r, found),
                "list/size": mean_of(found.valid.sum(1).to(total)),
                "rewards/best": mean_of((r * lists.best(found)).sum(1)),
                "rewards/mean": mean_of(r[found.valid]),
            }
        return Loss(total=total, metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePO(LambdaDPO):
    """Tree preference optimisation: all branches of a tree as a graded list, steps weighed or not.

    `LambdaDPO` on branches whose scores are their values, 0 to 1. With ``step_factor: adaptive`` a
    step's log-ratio is multiplied with ``1 + cos(e, e_best)``, ``e`` the mean hidden state over the
    step's tokens and ``e_best`` that of the best branch's step of the same number; the factor is 1
    on the best branch and where it has no such step. The paper's equations were not to be had: this
    is our reading of the idea and of LiPO-lambda, and the factor's sign and form in particular are
    unconfirmed, so it is off by default.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        weights: "lambda", or "ones" for all pairs alike.
        step_factor: "none", or "adaptive", which needs branches cut into steps.

    References:
        2410.12854 for the idea; 2402.01878 for the weights.
    """

    step_factor: Literal["none", "adaptive"] = "none"

    def __post_init__(self) -> None:
        LambdaDPO.__post_init__(self)
        if self.step_factor not in ("none", "adaptive"):
            raise ValueError(f"step_factor={self.step_factor!r} is unknown; 'none' or 'adaptive'")

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference; for the step factor the hidden states too."""
        adaptive = self.step_factor == "adaptive"
        return frozenset({"reference", "features"} if adaptive else {"reference"})

    def credit(self, batch: Batch) -> Batch:
        """The lists and their number.

        Raises:
            ValueError: Steps are to be weighed, and the batch's outputs are not cut into steps.
        """
        if self.step_factor == "adaptive" and batch.step_of is None:
            raise ValueError(
                "step_factor=adaptive weighs the steps of a tree's branches, and these outputs are "
                "not cut into steps; give `completions` as lists of steps, or leave it at 'none'"
            )
        return lists.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over lists."""
        factor = torch.ones_like(batch.weight)
        if self.step_factor == "adaptive":
            assert scores.features is not None and batch.step_of is not None
            factor = step_factors(scores.features.detach(), batch)
        return self.weighed(scores, batch, factor)


@torch.no_grad()
def step_factors(features: Tensor, batch: Batch) -> Tensor:
    """``[B, T]`` the adaptive factor of every token, in the type of the weights.

    Args:
        features: ``[B, T, F]`` hidden states.
        batch: A credited piece with `Batch.step_of`.
    """
    assert batch.step_of is not None
    scored = policy_gradient.scored(batch)
    count = int(batch.step_of.max()) + 1
    inside = torch.nn.functional.one_hot(batch.step_of, count).to(features)
    inside = inside * scored.unsqueeze(2)
    sizes = inside.sum(1)
    mean = torch.einsum("btk,btf->bkf", inside, features) / sizes.clamp(min=1).unsqueeze(2)
    factor = torch.ones_like(batch.weight)
    found = lists.of(batch)
    for rows, share, valid in zip(found.rows, lists.best(found), found.valid, strict=True):
        top = rows[share > 0]
        # Several best branches speak for a step together, those that have it.
        have = (sizes[top] > 0).to(features)
        best = (mean[top] * have.unsqueeze(2)).sum(0) / have.sum(0).clamp(min=1).unsqueeze(1)
        others = rows[valid & (share == 0)]
        step = 1 + cosine_similarity(mean[others], best.unsqueeze(0), dim=2)
        step = torch.where((have.sum(0) > 0).unsqueeze(0), step, torch.ones_like(step))
        factor[others] = step.gather(1, batch.step_of[others]).to(factor)
    return factor
