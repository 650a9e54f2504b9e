"""Which pairs are kept: the most important ones, or one after another by what each still adds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmalign.diffusion.fifa.embedding import Vectors
from mmalign.diffusion.fifa.entropy import log_distances
from mmalign.diffusion.fifa.importance import Floats

Integers = NDArray[np.int64]
Keys = NDArray[np.uint64]


def ranking(importance: Floats, keys: Keys) -> Integers:
    """The numbers of the pairs, the most important first.

    Equal importances are ordered by the pairs' keys, which depend on their content: so the order of
    the data decides nothing.
    """
    found: Integers = np.lexsort((keys, -importance))
    return found


def first_of_each(order: Integers, group: NDArray[np.generic], *, most: int) -> Integers:
    """The numbers of ``order`` without those whose group has come ``most`` times before."""
    seen: Counter[object] = Counter()
    kept = []
    for number, name in zip(order.tolist(), group[order].tolist(), strict=True):
        seen[name] += 1
        if seen[name] <= most:
            kept.append(number)
    return np.array(kept, dtype=np.int64)


def greedy(
    base: Floats, vectors: Vectors, text: Integers, *, count: int, k: int, weight: float,
    per_prompt: int,
) -> Integers:  # fmt: skip
    """Take pairs one by one, each time the one that adds most to what is taken already.

    What a pair adds is ``base + weight log(distance + 1e-8)``, where the distance is that to the
    ``k``-th nearest text taken (the farthest while fewer are). The first is the one of largest
    ``base``. Distances to the few that are taken are larger than those within the pool, so they are
    not clipped as those are.

    Args:
        base: ``[N]`` what a pair is worth by itself, in order of preference among equals.
        vectors: ``[N, D]`` unit vectors of their texts.
        text: ``[N]`` number of each pair's text.
        count: How many to take.
        k: Which neighbour.
        weight: Of a nat of the logarithm.
        per_prompt: Most pairs of one text.

    Returns:
        The numbers of those taken, in the order taken; fewer than ``count`` where no more may be.
    """
    worth = base.astype(np.float64).copy()
    nearest = np.full((len(base), k), np.inf)  # ascending squared distances to what is taken
    lengths = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    taken: list[int] = []
    times: Counter[int] = Counter()
    for _ in tqdm(range(min(count, len(base))), desc="selecting", unit="pair", leave=False):
        known = min(len(taken), k)
        added = weight * log_distances(np.sqrt(nearest[:, known - 1])) if known else 0.0
        best = int(np.argmax(worth + added))
        if worth[best] == -np.inf:
            break
        taken.append(best)
        times[int(text[best])] += 1
        worth[text == text[best] if times[int(text[best])] >= per_prompt else best] = -np.inf
        # Of unit vectors (or zeros): |a - b|^2 = |a|^2 + |b|^2 - 2 ab, and 0 where the text is one.
        squares = np.maximum(lengths + lengths[best] - 2 * (vectors @ vectors[best]), 0.0)
        squares[text == text[best]] = 0.0
        nearest = np.sort(np.column_stack([nearest, squares]), axis=1)[:, :k]
    return np.array(taken, dtype=np.int64)
