"""Selectors: what is kept of the sampled groups, and how it is paired."""

from __future__ import annotations

from collections.abc import Mapping

from mmalign.protocols import Selector
from mmalign.selectors.lists import Adjacent, AllPairs, BestAgainstRest
from mmalign.selectors.pairs import BestRandom, BestWorst, KeepAll

SELECTORS: Mapping[str, type[Selector]] = {
    "best_worst": BestWorst,
    "best_random": BestRandom,
    "keep_all": KeepAll,
    "all_pairs": AllPairs,
    "best_against_rest": BestAgainstRest,
    "adjacent": Adjacent,
}

__all__ = [
    "SELECTORS",
    "Adjacent",
    "AllPairs",
    "BestAgainstRest",
    "BestRandom",
    "BestWorst",
    "KeepAll",
]
