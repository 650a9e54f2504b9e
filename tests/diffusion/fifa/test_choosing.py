"""What is kept: by importance, greedily, without copies, whatever the order of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mmalign.diffusion.fifa.choosing import REASONS, Choice, Components, choose, duplicates
from mmalign.diffusion.fifa.entropy import entropy, log_distances, neighbour_distances
from mmalign.diffusion.fifa.importance import Weights
from mmalign.diffusion.fifa.scoring import Scored

PLAIN = Weights(quality=0.0, diversity=0.0, clip=(0.0, 1.0))
VARIED = Weights(quality=0.0, diversity=1.0, clip=(0.0, 1.0))


def scored(
    margins: Sequence[float],
    *,
    text: Sequence[int] | None = None,
    pair: Sequence[int] | None = None,
    key: Sequence[int] | None = None,
) -> Scored:
    """Pairs of these margins; each with a prompt and pictures of its own unless it is said."""
    count = len(margins)
    numbers = np.arange(count)
    scores = np.stack([np.asarray(margins, np.float64), np.zeros(count)], axis=1)
    return Scored(
        scores=scores,
        text=numbers if text is None else np.asarray(text),
        pair=np.asarray(numbers if pair is None else pair, np.uint64),
        key=np.asarray(numbers if key is None else key, np.uint64),
        identical=np.zeros(count, bool),
        texts=[str(i) for i in range(count)],
    )


def chosen(
    found: Scored,
    points: np.ndarray,
    *,
    wanted: int,
    weights: Weights = PLAIN,
    quality: Sequence[float] | None = None,
    per_prompt: int = 1,
    shortlist: int | None = None,
    k: int = 1,
) -> Choice:
    """The choice among all pairs; ``points`` and ``quality`` by prompt."""
    used = np.unique(found.text)
    vectors = points[used].astype(np.float32)
    rated = np.zeros(len(points)) if quality is None else np.asarray(quality, np.float64)
    components = Components(
        texts=used,
        quality=rated[used],
        log_distance=log_distances(neighbour_distances(vectors, k=k)),
        vectors=vectors,
    )
    return choose(
        components,
        found,
        np.zeros(len(found.key), np.int8),
        weights=weights,
        wanted=wanted,
        per_prompt=per_prompt,
        greedy_shortlist=shortlist,
        k=k,
    )


def kept(choice: Choice) -> list[int]:
    return np.flatnonzero(choice.reason == 0).tolist()


def spread_out(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 8))


def test_margins_alone() -> None:
    """Without weights it is sorting by margin; negative margins are the least important."""
    margins = [0.2, -0.5, 0.9, 0.0, 0.4]
    choice = chosen(scored(margins), spread_out(5), wanted=2)
    assert kept(choice) == [2, 4]
    assert choice.rank.tolist() == [3, 5, 1, 4, 2]
    assert [REASONS[r] for r in choice.reason[[0, 1, 3]]] == ["low importance"] * 3
    # z of the margins, mean 0.2 and variance (0 + 0.49 + 0.49 + 0.04 + 0.04) / 5 = 0.212
    np.testing.assert_allclose(choice.importance, (np.array(margins) - 0.2) / 0.212**0.5)


def test_isolated_prompts_come_first() -> None:
    """Three prompts far apart and five at one place, all margins equal."""
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], *[[0.6, 0.6, 0.52]] * 5])
    choice = chosen(scored([1.0] * 8), points, wanted=3, weights=VARIED)
    assert kept(choice) == [0, 1, 2]
    assert (choice.importance[:3].min() > choice.importance[3:].max()).all()


def test_quality_counts() -> None:
    weights = Weights(quality=1.0, diversity=0.0, clip=(0.0, 1.0))
    choice = chosen(scored([1.0] * 3), spread_out(3), wanted=1, weights=weights, quality=[1, 9, 5])
    assert kept(choice) == [1]
    assert choice.quality.tolist() == [1, 9, 5]


@pytest.mark.parametrize("shortlist", [None, 4])
def test_order_of_the_data_decides_nothing(shortlist: int | None) -> None:
    """Permuted rows give the same pairs, among equal importances too."""
    rng = np.random.default_rng(1)
    margins = rng.integers(0, 4, 60) / 4.0  # many equal ones
    text = rng.integers(0, 40, 60)
    keys = rng.permutation(60)
    points = spread_out(60)
    first = chosen(scored(margins, text=text, key=keys), points, wanted=12, weights=VARIED, k=3,
                   shortlist=shortlist)  # fmt: skip
    order = rng.permutation(60)
    second = chosen(
        scored(margins[order], text=text[order], key=keys[order]), points, wanted=12,
        weights=VARIED, k=3, shortlist=shortlist,
    )  # fmt: skip
    assert second.reason.tolist() == first.reason[order].tolist()
    assert second.rank.tolist() == first.rank[order].tolist()
    assert len(kept(first)) == 12


@pytest.mark.parametrize("shortlist", [None, 4])
def test_pairs_of_one_prompt(shortlist: int | None) -> None:
    """Three pairs of prompt 0 are the best; so many of them are kept as may be."""
    found = scored([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], text=[0, 0, 0, 1, 2, 3])
    points = spread_out(6)
    one = chosen(found, points, wanted=3, shortlist=shortlist)
    assert kept(one) == [0, 3, 4]
    assert [REASONS[r] for r in one.reason] == [
        "kept", "enough of this prompt", "enough of this prompt", "kept", "kept", "low importance",
    ]  # fmt: skip
    assert kept(chosen(found, points, wanted=3, shortlist=shortlist, per_prompt=2)) == [0, 1, 3]
    assert kept(chosen(found, points, wanted=99, shortlist=shortlist)) == [0, 3, 4, 5]
    assert kept(chosen(found, points, wanted=99, shortlist=shortlist, per_prompt=9)) == [*range(6)]


def test_copies() -> None:
    """Of a copy one is left; of two labels that contradict each other, the reward's own."""
    found = scored([0.5, 0.5, -0.3, 0.3, 0.1], pair=[7, 7, 8, 8, 9], key=[1, 1, 2, 3, 4])
    assert duplicates(found, np.zeros(5, np.int8)).tolist() == [1, 2]
    # A pair that is out already repeats nothing.
    assert duplicates(found, np.array([3, 0, 0, 0, 0], np.int8)).tolist() == [2]


def test_greedy_looks_at_what_is_taken() -> None:
    """Two clusters eight apart with steps of 0.5 within, the better margins in the first.

    All nearest distances are 0.5, so the importance is the margin alone and takes 0 and 1. One by
    one, pair 3 has 0.19 / 0.1 = 1.9 deviations of margin less than pair 1, and is log(8 / 0.5) =
    2.77 nats farther from pair 0.
    """
    points = np.array([[x, y] for x in (0.0, 8.0) for y in (0.0, 0.5, 1.0)])
    found = scored([0.53, 0.52, 0.51, 0.33, 0.32, 0.31])
    assert kept(chosen(found, points, wanted=2, weights=VARIED)) == [0, 1]
    assert kept(chosen(found, points, wanted=2, weights=VARIED, shortlist=3)) == [0, 3]


def test_greedy_without_diversity_is_sorting() -> None:
    margins = np.random.default_rng(2).normal(size=50)
    points = spread_out(50)
    top = chosen(scored(margins), points, wanted=10)
    assert kept(chosen(scored(margins), points, wanted=10, shortlist=5)) == kept(top)


def test_greedy_sets_are_more_varied() -> None:
    """By the entropy of what is kept, against the one importance of each pair."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(20, 8))
    points = np.repeat(centres, 20, axis=0) + 0.02 * rng.normal(size=(400, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = scored(rng.normal(size=400))
    top, varied = (
        kept(chosen(found, points, wanted=20, weights=VARIED, k=2, shortlist=size))
        for size in (None, 20)
    )
    assert entropy(points[varied].astype(np.float32), k=2) > 0.5 + entropy(
        points[top].astype(np.float32), k=2
    )
