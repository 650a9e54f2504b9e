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


def narrowed(logits: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The logits of a few of the likeliest symbols, all others ruled out.

    Args:
        logits: ``[..., V]`` float32, from `step_logits`.
        top_k: How many symbols stay, the likeliest; 1 leaves the arg-max. None for all.
        top_p: Then as few of the likeliest stay as together have at least this probability, among
            what ``top_k`` left. None for all.

    Returns:
        ``[..., V]`` float32, ``-inf`` at what is ruled out; the logits themselves where neither is
        given.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        chance = ordered.softmax(-1)
        # A symbol stays while those before it have less than top_p: the first one always does.
        beyond = chance.cumsum(-1) - chance >= top_p
        ordered = ordered.masked_fill(beyond, float("-inf"))
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return logits


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
