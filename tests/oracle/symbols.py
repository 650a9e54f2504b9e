"""Everything a head says of its steps, from a whole ``[..., V]`` table of logits, written out."""

import torch
from torch import Tensor

from mmalign import tokens


def exact_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """``sum p (log p - log q)``; symbols of probability 0 count nothing.

    The zeros are put in before the product: ``0 * inf`` would poison the gradient as well.
    """
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    excluded = log_p.isneginf()
    difference = log_p.masked_fill(excluded, 0.0) - log_q.masked_fill(excluded, 0.0)
    return (log_p.exp() * difference).sum(-1)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mass of the k likeliest symbols, and their entropy once renormalised."""
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).values
    mass = (best.logsumexp(-1) - logits.logsumexp(-1)).exp()
    return mass, tokens.entropy(best)


def head_scores(
    logits: Tensor, chosen: Tensor, *, want: frozenset[str], against: Tensor | None, k: int
) -> dict[str, Tensor]:
    """What `mmalign.head.head_scores` returns, from logits."""
    mass, spread = top_k(logits, k)
    found = {
        "log_probs": tokens.log_probs_of(logits, chosen),
        "entropy": tokens.entropy(logits),
        "kl": torch.zeros(()) if against is None else exact_kl(logits, against),
        "top_k_mass": mass,
        "top_k_entropy": spread,
    }
    return {name: value for name, value in found.items() if name in {"log_probs", *want}}
