"""What all pairwise objectives share: their credit, and their loss up to the formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmalign import pairing
from mmalign.functional import masked_sum
from mmalign.types import Batch, Loss, Metric, Scores

Formula = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A loss of `mmalign.functional.PAIRWISE` with its hyperparameters filled in."""


def credit(batch: Batch) -> Batch:
    """Pairs, their coefficients and the denominator.

    Pairs a selector has made are kept; otherwise every two rows of a group with different rewards
    make one. Identical sides are dropped and counted, and only rows in a pair remain. The
    denominator is the sum of the coefficients, hence the number of pairs unless a source weighs
    them; it is 0 where no pair is left: such a batch has loss 0, and the caller skips the update
    if the sum of the denominators over the processes is 0.
    """
    if batch.pairs is None:
        batch = pairing.ordered_pairs(batch)
    assert batch.pairs is not None
    pairing.check_pairs(batch)
    batch = pairing.trimmed(pairing.without_identical(batch))
    assert batch.pairs is not None
    total = float(len(batch.pairs)) if batch.coefficient is None else float(batch.coefficient.sum())
    return replace(batch, denominator=total)


def loss(scores: Scores, batch: Batch, *, formula: Formula, beta: float) -> Loss:
    """The sum of the formula over the piece's pairs, times their coefficients.

    Log-probs are summed over the steps with ``batch.pair_weight``, or ``batch.weight`` where a
    source sets no weights of pairs. A piece without pairs gives 0 with a graph, so that every
    process can run backward.

    Args:
        scores: Of the piece, with gradient.
        batch: The piece, credited.
        formula: The six tensors of a pairwise loss to ``[N]``.
        beta: Turns log-ratios into the implicit rewards of the metrics.
    """
    each = formula(*sides(scores.log_probs, batch))
    return summed(each, scores, batch, beta=beta)


def sides(log_probs: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """The six ``[N]`` tensors of a formula: sums of the policy and the reference, and steps."""
    assert batch.pairs is not None
    # Formulas without a reference never look at it, and their implicit rewards are likelihoods.
    reference = torch.zeros_like(batch.weight) if batch.reference is None else batch.reference
    steps = batch.trajectory.mask[batch.pairs] & (batch.pair_weights() != 0)
    sums = (*side_sums(log_probs, batch), *side_sums(reference, batch))
    return (*sums, *steps.sum(2).unbind(1))


def side_sums(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """``[B, T]`` values summed over the weighted steps of the chosen sides and of the rejected."""
    assert batch.pairs is not None
    mask = batch.trajectory.mask[batch.pairs]
    chosen, rejected = masked_sum(values[batch.pairs] * batch.pair_weights(), mask).unbind(1)
    return chosen, rejected


def summed(each: Tensor, scores: Scores, batch: Batch, *, beta: float) -> Loss:
    """Losses ``[N]`` of the pairs times their coefficients, summed, and the usual metrics."""
    assert batch.pairs is not None
    reference = torch.zeros_like(batch.weight) if batch.reference is None else batch.reference
    weight = torch.ones_like(each) if batch.coefficient is None else batch.coefficient.to(each)
    total = (weight * each).sum()
    with torch.no_grad():
        # A pair of coefficient 0 only keeps a process without data in step with the others.
        w, r = batch.pairs[weight != 0].unbind(1)
        s = total_log_probs(scores.log_probs, batch)
        reward = beta * (s - total_log_probs(reference, batch))
        metrics = {
            "loss": (total.detach(), weight.sum()),
            "rewards/chosen": mean_of(reward[w]),
            "rewards/rejected": mean_of(reward[r]),
            "rewards/margins": mean_of(reward[w] - reward[r]),
            "rewards/accuracies": mean_of((reward[w] > reward[r]).to(reward)),
            "logps/chosen": mean_of(s[w]),
            "logps/rejected": mean_of(s[r]),
        }
    return Loss(total=total, metrics=metrics)


def total_log_probs(log_probs: Tensor, batch: Batch) -> Tensor:
    """``[B, T]`` log-probs summed over the steps with the batch's weights: ``[B]`` nats."""
    return masked_sum(log_probs * batch.weight, batch.trajectory.mask)


def mean_of(values: Tensor) -> Metric:
    """A metric that is the mean of ``values``."""
    values = values.detach()
    return values.sum(), values.new_tensor(float(values.numel()))
