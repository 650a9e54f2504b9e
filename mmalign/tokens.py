"""Distributions over symbols, from logits: what every token-by-token adapter shares.

Sampling and scoring both start from `step_logits`, so that the distribution a token was drawn from
and the one it is scored under are the same function of the network's logits. All results are
float32 nats, whatever the dtype of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.protocols import Want

TOP_K = 10


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
    """Entropy of ``[..., V]`` float32 logits, ``[...]`` nats; ``log V`` for a flat distribution."""
    log_p = logits.log_softmax(-1)
    return -_weighted(log_p.exp(), log_p)


def exact_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL of the policy to the reference over all symbols, in closed form.

    Args:
        logits: ``[..., V]`` float32 of the policy.
        reference: ``[..., V]`` float32 of the reference, with the same banned symbols.

    Returns:
        ``[...]`` nats, at least 0; 0 where the two agree.
    """
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    return _weighted(log_p.exp(), log_p, minus=log_q)


def top_k(logits: Tensor, k: int = TOP_K) -> tuple[Tensor, Tensor]:
    """Probability of the ``k`` likeliest symbols, and their entropy once renormalised.

    Args:
        logits: ``[..., V]`` float32.
        k: How many symbols; at most V are there to take.

    Returns:
        Mass ``[...]`` in 0 to 1, and entropy ``[...]`` nats, at most ``log k``.
    """
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).values
    mass = (best.logsumexp(-1) - logits.logsumexp(-1)).exp()
    return mass, entropy(best)


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


def head_scores(
    logits: Tensor,
    tokens: Tensor,
    *,
    want: Want = frozenset(),
    against: Tensor | None = None,
) -> dict[str, Tensor]:
    """Everything `Scores` holds that follows from the logits at the scored positions.

    Args:
        logits: ``[B, T, V]`` float32 of the policy, from `step_logits`.
        tokens: ``[B, T]`` int64, what was chosen.
        want: The further fields of `Scores` to fill; names that need no logits are ignored.
        against: ``[B, T, V]`` float32 of the reference, where ``"kl"`` is wanted.

    Returns:
        ``[B, T]`` tensors under the field names of `Scores`, masked positions included.
    """
    found = {"log_probs": log_probs_of(logits, tokens)}
    if "entropy" in want:
        found["entropy"] = entropy(logits)
    if "kl" in want:
        if against is None:
            raise ValueError("exact `kl` was asked for without a reference module to compare with")
        found["kl"] = exact_kl(logits, against)
    if want & {"top_k_mass", "top_k_entropy"}:
        mass, spread = top_k(logits)
        found |= {"top_k_mass": mass, "top_k_entropy": spread}
    return {k: v for k, v in found.items() if k == "log_probs" or k in want}


def masked(values: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """``[B, T, ...]`` values with 0, and no gradient, where ``mask`` ``[B, T]`` is False."""
    return {
        name: torch.where(mask.view(*mask.shape, *[1] * (value.dim() - 2)), value, 0.0)
        for name, value in values.items()
    }


def _weighted(p: Tensor, log_p: Tensor, *, minus: Tensor | None = None) -> Tensor:
    """Sum of ``p (log_p - minus)`` where symbols of probability 0 count nothing.

    The zeros are put in before the product: ``0 * inf`` would poison the gradient as well.
    """
    excluded = log_p.isneginf()
    difference = log_p if minus is None else log_p - minus.masked_fill(excluded, 0.0)
    return (p * difference.masked_fill(excluded, 0.0)).sum(-1)
