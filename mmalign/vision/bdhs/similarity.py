"""How like two answers are: cosines of sentence embeddings, or of word counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mmalign.rewards.relevance import RelevanceReward
from mmalign.types import Prompt

Similarity: TypeAlias = Callable[[Sequence[str], Sequence[str]], list[float]]
"""From as many texts as other texts to their cosines, -1 to 1."""

MPNET = "sentence-transformers/all-mpnet-base-v2"
"""The encoder of 2407.02477."""
MINILM = "minilm"
"""all-MiniLM-L6-v2 from an installed package, so that nothing is fetched."""
WORDS = "words"
"""No encoder: cosine of word counts, blind to order and meaning."""


def similarity_of(name: str) -> Similarity:
    """The similarity called ``name``.

    Args:
        name: ``words``, ``minilm``, or the folder or hub name of a sentence encoder that pools by
            the mean. An encoder reads the first 256 tokens of a text.
    """
    if name == WORDS:
        return word_cosines
    encoder = RelevanceReward(model=None if name == MINILM else name)

    def embedded(left: Sequence[str], right: Sequence[str]) -> list[float]:
        found: list[float] = encoder([Prompt(content=text) for text in left], right).tolist()
        return found

    return embedded


def require_similarity(name: str) -> None:
    """Load what ``name`` needs, before anything is generated that it is to compare.

    Raises:
        ValueError: The encoder cannot be loaded.
    """
    try:
        similarity_of(name)(["a"], ["a"])
    except OSError as error:
        raise ValueError(
            f"the sentence encoder {name!r} cannot be loaded ({error}); set `similarity` to the "
            f"folder or hub name of one, to {MINILM!r} or to {WORDS!r}"
        ) from error


def word_cosines(left: Sequence[str], right: Sequence[str]) -> list[float]:
    """Cosines of word counts: 1 where both hold the same words, 0 where they share none.

    "a red circle" and "a blue circle" share two of three words: 2/3.
    """
    return [
        _cosine(Counter(a.split()), Counter(b.split())) for a, b in zip(left, right, strict=True)
    ]


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    shared = sum(number * b[word] for word, number in a.items())
    size = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return shared / size if size else 0.0
