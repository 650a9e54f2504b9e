"""How much a text adds to the variety of a set: nearest neighbours and the entropy they estimate.

    H(S) = mean over i in S of log |e_i - e_i(k)|,      e_i(k) the k-th nearest neighbour of e_i

is the estimator of Kozachenko and Leonenko without its additive constants and the factor of the
dimension, neither of which changes an order. Neighbours are exact (scikit-learn), in chunks, and
float32 vectors are compared in double precision there: the logarithm looks at small distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmalign.diffusion.fifa.embedding import Vectors

Floats = NDArray[np.float64]
FLOOR = 1e-8
"""Added to distances, so that copies have a logarithm."""
CHUNK = 4096


def neighbour_distances(
    vectors: Vectors, *, k: int, references: Sequence[int] | None = None
) -> Floats:
    """The distance of each vector to its ``k``-th nearest other one.

    Args:
        vectors: ``[M, D]``, in memory or mapped.
        k: Which neighbour; the farthest one there is where there are fewer.
        references: Numbers of the vectors among which neighbours are looked for; None for all.
            Leaving out a random share makes all distances larger by much the same factor.

    Returns:
        ``[M]`` Euclidean distances; 0 for a vector that has no neighbour at all.
    """
    from sklearn.neighbors import NearestNeighbors

    rows = np.arange(len(vectors)) if references is None else np.sort(np.asarray(references))
    pool = vectors if references is None else vectors[rows]
    wanted = min(k + 1, len(rows))
    nearest = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(pool)
    found = np.zeros(len(vectors))
    for start in tqdm(range(0, len(vectors), CHUNK), desc="neighbours", unit="chunk", leave=False):
        queries = vectors[start : start + CHUNK]
        distances, numbers = nearest.kneighbors(queries)
        # A vector is no neighbour of itself; where it is not among those found (it is no
        # reference, or k + 1 copies of it come first), the farthest is one too many.
        own = rows[numbers] == np.arange(start, start + len(queries))[:, None]
        own[~own.any(1), -1] = wanted > k
        others = np.where(own, -1.0, distances)
        found[start : start + CHUNK] = np.maximum(others.max(1), 0.0)
    return found


def log_distances(distances: Floats) -> Floats:
    """``log(distance + 1e-8)``: each text's share of the entropy, in nats."""
    logs: Floats = np.log(distances + FLOOR)
    return logs


def entropy(vectors: Vectors, *, k: int) -> float:
    """The estimate H(S) of a set of texts, in nats up to a constant; larger is more varied.

    Points 0, 1 and 3 on a line with ``k = 1`` have neighbours at 1, 1 and 2: ``log(2) / 3``.
    """
    return float(log_distances(neighbour_distances(vectors, k=k)).mean())
