"""From scores to a choice: every pair is kept or dropped for one reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmalign.diffusion.fifa.embedding import Vectors
from mmalign.diffusion.fifa.importance import Floats, Weights, scale_of
from mmalign.diffusion.fifa.scoring import Scored
from mmalign.diffusion.fifa.selection import Integers, first_of_each, greedy, ranking

REASONS = (
    "kept",
    "low importance",
    "enough of this prompt",
    "tie",
    "small margin",
    "identical sides",
    "duplicate",
)
"""What becomes of a pair, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """What is known of the prompts of the pool.

    Attributes:
        texts: ``[M]`` which prompts they are, ascending.
        quality: ``[M]``.
        log_distance: ``[M]`` nats.
        vectors: ``[M, D]``.
    """

    texts: Integers
    quality: Floats
    log_distance: Floats
    vectors: Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What becomes of each pair, and the numbers behind it; NaN for pairs outside the pool.

    Attributes:
        reason: ``[N]`` number in `REASONS`.
        quality: ``[N]`` of the prompt.
        entropy: ``[N]`` logarithm of the prompt's distance to its neighbour, in nats.
        importance: ``[N]``.
        rank: ``[N]`` from 1 by importance; 0 outside the pool.
    """

    reason: NDArray[np.int8]
    quality: Floats
    entropy: Floats
    importance: Floats
    rank: Integers


def duplicates(found: Scored, dropped: NDArray[np.int8]) -> Integers:
    """The pairs that repeat another one, with the same or with the opposite preference.

    The one of largest margin is not among them: of two labels that contradict each other, the
    reward's own.
    """
    left = np.flatnonzero(dropped == 0)
    order = left[ranking(found.margin[left], found.key[left])]
    kept = first_of_each(order, found.pair, most=1)
    repeated: Integers = np.setdiff1d(left, kept)
    return repeated


def choose(
    components: Components,
    found: Scored,
    dropped: NDArray[np.int8],
    *,
    weights: Weights,
    wanted: int,
    per_prompt: int,
    greedy_shortlist: int | None,
    k: int,
) -> Choice:
    """Decide about every pair.

    Args:
        components: Of the prompts of the pool.
        found: The N pairs.
        dropped: ``[N]`` numbers in `REASONS`, 0 for the pool.
        weights: Of the components.
        wanted: Pairs to keep.
        per_prompt: Most pairs of one prompt.
        greedy_shortlist: How many times ``wanted`` the greedy selection looks at; None for those of
            largest importance.
        k: Which neighbour the greedy selection looks at.
    """
    pool = np.flatnonzero(dropped == 0)
    place = np.searchsorted(components.texts, found.text[pool])
    values = (found.margin[pool], components.quality[place], components.log_distance[place])
    scales = [scale_of(value, weights.clip) for value in values]
    margin, quality, distance = (scale(value) for scale, value in zip(scales, values, strict=True))
    base = margin + weights.quality * quality
    importance = base + weights.diversity * distance
    order = ranking(importance, found.key[pool])
    allowed = first_of_each(order, place, most=per_prompt)
    if greedy_shortlist is None:
        taken = allowed[:wanted]
    else:
        listed = order[: greedy_shortlist * wanted]
        numbers = greedy(
            base[listed],
            np.asarray(components.vectors[place[listed]]),
            place[listed],
            count=wanted,
            k=k,
            # In the unit of the importance; a nat where all distances of the pool are equal.
            weight=weights.diversity / (scales[2].deviation or 1.0),
            per_prompt=per_prompt,
        )
        taken = listed[numbers]
    reason = dropped.copy()
    reason[pool] = REASONS.index("low importance")
    # Left out for its prompt's sake: as important as the least important one taken, and as many
    # of its prompt are taken as may be.
    full = np.bincount(place[taken], minlength=len(components.texts))[place] >= per_prompt
    above = importance >= importance[taken].min(initial=np.inf)
    reason[pool[full & above]] = REASONS.index("enough of this prompt")
    reason[pool[taken]] = 0
    rank = np.zeros(len(dropped), np.int64)
    rank[pool[order]] = np.arange(1, len(pool) + 1)
    return Choice(
        reason=reason,
        quality=_spread(values[1], pool, len(dropped)),
        entropy=_spread(values[2], pool, len(dropped)),
        importance=_spread(importance, pool, len(dropped)),
        rank=rank,
    )


def _spread(values: Floats, pool: Integers, total: int) -> Floats:
    found = np.full(total, np.nan)
    found[pool] = values
    return found
