"""Multi-objective direct preference optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from mmalign import functional
from mmalign.functional.several import MODPOForm
from mmalign.objectives import pairwise
from mmalign.objectives.pair import PairObjective
from mmalign.types import Batch, Loss, Scores

LEAST = 0.05
"""Of the weight that the loss divides by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MODPO(PairObjective):
    """DPO of one objective's pairs while frozen rewards speak for the others.

    ``-log sigmoid((beta D - sum_i w_i (R_i(y_w) - R_i(y_l))) / w_k)`` over the objectives i other
    than k. The batch's rewards are ``[B, K]``, a column an objective in the order of ``weights``;
    those of objective k make the pairs where a source has not, the others are the ``R_i``. Columns
    come from recorded pairs (`preferences` with ``rewards``: the preference is column 0), from a
    policy aligned to the other objective (`implicit_rewards`), or from a reward model of several
    outputs on `rollouts`. A run has one ``weights``; runs over several trace a front.

    Attributes:
        weights: One an objective, positive or 0, of sum 1.
        objective: k, the place among them of the objective that is optimised by its pairs; its
            weight must be at least 0.05, since the loss divides by it.
        beta: Per nat of log-ratio, summed over steps. The ``R_i`` must be on the scale of
            ``beta D``.
        form: "sigmoid", or "hinge".

    References:
        2310.03708 and the code released with it.
    """

    weights: tuple[float, ...] = (0.5, 0.5)
    objective: int = 0
    beta: float = 0.1
    form: MODPOForm = "sigmoid"

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if min(self.weights, default=-1.0) < 0 or not math.isclose(
            sum(self.weights), 1.0, abs_tol=1e-6
        ):
            raise ValueError(f"weights={self.weights} must be 0 or more, one each, of sum 1")
        if not 0 <= self.objective < len(self.weights):
            raise ValueError(
                f"objective={self.objective} is no place among the {len(self.weights)} weights"
            )
        if self.weights[self.objective] < LEAST:
            raise ValueError(
                f"the weight {self.weights[self.objective]} of objective {self.objective} is below "
                f"{LEAST}, and the loss divides by it; optimise another objective's pairs, or give "
                "it more"
            )
        if self.form not in ("sigmoid", "hinge"):
            raise ValueError(f"form={self.form!r} is unknown; use 'sigmoid' or 'hinge'")

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs by objective k, what the other rewards say of their sides, and their number.

        Raises:
            ValueError: The batch has another number of rewards than there are weights.
        """
        rewards = batch.reward if batch.reward.dim() == 2 else batch.reward.unsqueeze(1)
        if rewards.shape[1] != len(self.weights):
            raise ValueError(
                f"modpo has {len(self.weights)} weights and the batch {rewards.shape[1]} rewards a "
                "row; set `rewards` of a `preferences` source, wrap it in `implicit_rewards`, or "
                "use a reward model of as many outputs"
            )
        weights = rewards.new_tensor(self.weights)
        weights[self.objective] = 0.0
        others = torch.where(weights != 0, rewards, 0.0) @ weights
        # What one of the judges has not judged pairs with nothing.
        preferred = torch.where(others.isnan(), torch.nan, rewards[:, self.objective])
        batch = pairwise.credit(replace(batch, reward=preferred, anchor=others.to(batch.weight)))
        assert batch.pairs is not None and batch.anchor is not None
        return replace(batch, pair_anchor=batch.anchor[batch.pairs])

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference where the other rewards are equal."""
        assert batch.pair_anchor is not None
        chosen, rejected = batch.pair_anchor.unbind(1)
        formula = partial(
            functional.modpo,
            beta=self.beta,
            weight=self.weights[self.objective],
            margin=chosen - rejected,
            form=self.form,
        )
        loss = pairwise.loss(scores, batch, formula=formula, beta=self.beta)
        margins = pairwise.mean_of(chosen - rejected)
        return Loss(total=loss.total, metrics={**loss.metrics, "rewards/others": margins})
