"""Distributions over symbols, from logits, as sampling sees them.

Scoring computes the same numbers from hidden states, without a table of logits (`mmalign.head`);
tests hold the two together. All results are float32 nats, whatever the dtype of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def step_logits(logits: Tensor, *, temperature: float = 1.0, banned: Sequence[int] = ()) -> Tensor:
    """The logits of the distribution that is sampled and scored.

    Args:
        logits: ``[..., V]`` of the network, any float dtype.
        temperature: Divides the logits; greater than 0.
        banned: Symbols that have probability 0 (image placeholders).

    Returns:
        ``[..., V]`` float32; unnormalised, ``-inf`` at banned symbols.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    if banned:
        index = torch.tensor(list(banned), device=scaled.device)
        scaled = scaled.index_fill(-1, index, float("-inf"))
    return scaled


def log_probs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of the chosen symbols.

    Args:
        logits: ``[..., V]`` float32, from `step_logits`.
        tokens: ``[...]`` int64.

    Returns:
        ``[...]`` nats; 0 where the network is certain of the symbol, ``-log V`` where it knows
        nothing.
    """
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of ``[..., V]`` float32 logits, ``[...]`` nats; ``log V`` for a flat distribution.

    Symbols of probability 0 count nothing.
    """
    log_p = logits.log_softmax(-1)
    # The zeros are put in before the product: 0 * inf would poison the gradient as well.
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One symbol a row, decided by one uniform number a row.

    A row's symbol depends on nothing but its own probabilities and its own uniform number, so it
    does not change with the rows beside it, as a shared generator's draws would.

    Args:
        probabilities: ``[B, V]``, at least 0; need not add up to exactly 1.
        uniforms: ``[B]`` in [0, 1).

    Returns:
        ``[B]`` int64: the first symbol whose cumulative probability exceeds the uniform number.
        A symbol of probability 0 is never chosen.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding could lift u * total to the total itself, which no symbol exceeds.
    below = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms.to(total).unsqueeze(-1) * total, below)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
