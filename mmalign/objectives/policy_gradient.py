"""What the objectives that reinforce single steps share: weights, denominators and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmalign import functional
from mmalign.functional import exp_bounded, masked_sum
from mmalign.types import Batch, Loss, Metric, Scores

Aggregate = Literal["sequence", "token", "constant"]
KLTerm = Literal["k1", "k2", "k3", "exact", "prediction"]


def check_aggregate(aggregate: Aggregate, max_length: int | None) -> None:
    """Raise ValueError where the pair of settings makes no sense."""
    if aggregate not in ("sequence", "token", "constant"):
        raise ValueError(
            f"aggregate={aggregate!r} is unknown; use 'sequence', 'token' or 'constant'"
        )
    if aggregate == "constant" and (max_length is None or max_length < 1):
        raise ValueError("aggregate='constant' divides by max_length: set it to the longest output")
    if aggregate != "constant" and max_length is not None:
        raise ValueError(f"max_length is read by aggregate='constant' alone, not by {aggregate!r}")


def scored(batch: Batch) -> Tensor:
    """``[B, T]`` bool: the steps that take part in the loss."""
    return batch.trajectory.mask & (batch.weight != 0)


def keep_rows(batch: Batch, kept: Tensor) -> Batch:
    """The rows where ``kept`` (``[B]`` bool); where none is, one row with weight 0.

    A batch must have rows to be scored at all, and every process must score one.
    """
    if bool(kept.all()):
        return batch
    if bool(kept.any()):
        return batch.rows(kept.nonzero().squeeze(1))
    first = batch.rows(torch.zeros(1, dtype=torch.int64, device=kept.device))
    return replace(first, weight=torch.zeros_like(first.weight))


def weigh(batch: Batch, *, aggregate: Aggregate, max_length: int | None) -> Batch:
    """The batch with step weights and the denominator of an aggregation.

    Rows without a scored step count in no denominator. The weights a source has set multiply the
    loss of their steps; only whether they are 0 decides what is counted.
    """
    counts = scored(batch).sum(1)
    rows = float((counts > 0).sum())
    weight, denominator = batch.weight, rows
    if aggregate == "sequence":
        weight = weight / counts.clamp(min=1).unsqueeze(1)
    elif aggregate == "token":
        denominator = float(counts.sum())
    else:
        assert max_length is not None
        weight = weight / max_length
    return replace(batch, weight=weight, denominator=denominator)


def summed(each: Tensor, batch: Batch, metrics: Mapping[str, Metric]) -> Loss:
    """The loss of a piece: ``each`` (``[B, T]``) times the weights, summed over scored steps."""
    total = masked_sum(each * batch.weight, scored(batch)).sum()
    return Loss(total=total, metrics=metrics)


def mean_of_steps(each: Tensor, batch: Batch) -> Metric:
    """A metric that is the mean of ``each`` over the scored steps."""
    chosen = each.detach()[scored(batch)]
    return chosen.sum(), chosen.new_tensor(float(chosen.numel()))


def kl_need(kind: KLTerm) -> str:
    """What has to be supplied for a KL term: see `Objective.needs`."""
    return {"exact": "kl", "prediction": "prediction_distance"}.get(kind, "reference")


def kl_term(scores: Scores, batch: Batch, *, kind: KLTerm) -> Tensor:
    """``[B, T]`` distance to the reference: the policy's own account of it, or an estimate.

    Raises:
        ValueError: The policy has no predictions to compare.
    """
    if kind == "exact":
        assert scores.kl is not None, "the exact KL was not asked of the policy"
        return scores.kl
    if kind == "prediction":
        if scores.prediction_distance is None:
            raise ValueError(
                "kl='prediction' compares what denoising networks predict, and this policy's "
                "network predicts symbols; use 'k3' or 'exact'"
            )
        return scores.prediction_distance
    assert batch.reference is not None, "the reference was not scored"
    return functional.kl(scores.log_probs, batch.reference, kind=kind)


@torch.no_grad()
def step_metrics(
    scores: Scores, behaviour: Tensor, batch: Batch, *, epsilon: float, epsilon_high: float | None
) -> dict[str, Metric]:
    """Shares of clipped steps, mean distance of the ratio from 1, and the entropy if present.

    A step is clipped low where its ratio has left the range and its advantage is negative, high
    where it has and the advantage is positive: there the surrogate has no gradient.
    """
    assert batch.advantage is not None
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = exp_bounded(scores.log_probs - behaviour)
    low_clipped = (ratio < 1 - epsilon) & (batch.advantage < 0)
    high_clipped = (ratio > 1 + high) & (batch.advantage > 0)
    metrics = {
        "clip_ratio/low": mean_of_steps(low_clipped.to(ratio), batch),
        "clip_ratio/high": mean_of_steps(high_clipped.to(ratio), batch),
        "ratio_deviation": mean_of_steps((ratio - 1).abs(), batch),
    }
    if scores.entropy is not None:
        metrics["entropy"] = mean_of_steps(scores.entropy, batch)
    return metrics
