"""What several samples of one prompt say: the best of n of them, and how much they differ."""

from __future__ import annotations

import torch
from torch import Tensor


def best_of(scores: Tensor) -> Tensor:
    """The expected best of n samples, for every n from 1 to N: exact and unbiased.

    ``sum_{i=n}^{N} C(i - 1, n - 1) / C(N, n) s_(i)``, where ``s_(1) <= ... <= s_(N)`` are the
    sorted scores: the mean of the maximum over all ``C(N, n)`` ways to take n of the N samples, and
    so an unbiased estimate of the expected maximum of n independent samples. Taking the first n
    instead would be unbiased too, with more noise.

    Args:
        scores: ``[..., N]`` units of a judge.

    Returns:
        ``[..., N]`` float64; entry n - 1 is the expected best of n. Rising in n from the mean, at
        n = 1, to the maximum, at n = N; equal to the score throughout where all are equal.

    Raises:
        ValueError: There is no sample.

    References:
        The estimator of pass@k in 2107.03374, section 2.1, for scores that are not 0 or 1.
    """
    total = scores.shape[-1]
    if total == 0:
        raise ValueError("the best of no samples is nothing; give scores of at least one")
    # From the largest score downwards, C(i - 2, n - 1) / C(i - 1, n - 1) = (i - n) / (i - 1):
    # products of ratios, as the binomials of some thousand samples are larger than a float holds.
    ranks = torch.arange(total, 0, -1, dtype=torch.float64, device=scores.device)
    sizes = ranks.flip(0)[:, None]
    ratios = ((ranks[:-1] - sizes) / (ranks[:-1] - 1)).clamp(min=0)
    weights = torch.cat([sizes / total, ratios], dim=1).cumprod(dim=1)
    return scores.double().sort(dim=-1, descending=True).values @ weights.T


def mean_pairwise(distances: Tensor) -> Tensor:
    """The mean distance of two different samples: ``sum_{i != j} d_ij / (N (N - 1))``.

    Args:
        distances: ``[..., N, N]``; the diagonal is not read.

    Returns:
        ``[...]`` in units of the distance; 0 where all samples are one and the same.

    Raises:
        ValueError: There are fewer than two samples.
    """
    size = distances.shape[-1]
    if size < 2:
        raise ValueError(f"{size} samples have no distance; take at least 2 of each prompt")
    others = distances.masked_fill(torch.eye(size, dtype=torch.bool, device=distances.device), 0)
    return others.sum((-2, -1)) / (size * (size - 1))
