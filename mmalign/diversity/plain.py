"""Distances that need no model: of words and of pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmalign.types import Output

if TYPE_CHECKING:
    from PIL.Image import Image

_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NGramDistance:
    """How few runs of words two texts share: 1 minus the Jaccard index, 0 to 1.

    ``d(a, b) = mean_{n <= longest} (1 - |A_n and B_n| / |A_n or B_n|)``, where ``A_n`` are the
    different runs of n tokens of a; tokens are words in lower case and single punctuation marks.
    A length that neither text has is left out; two empty texts have distance 0.

    Attributes:
        longest: Tokens of the longest runs that are compared.
    """

    longest: int = 2

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise ValueError(f"longest={self.longest} must be at least 1")

    def __call__(self, outputs: Sequence[Output]) -> Tensor:
        """``[N, N]`` distances.

        Raises:
            ValueError: An output is no text.
        """
        runs = [self._runs(text) for text in texts_of(outputs, "ngrams")]
        found = torch.zeros(len(runs), len(runs))
        for i, j in combinations(range(len(runs)), 2):
            found[i, j] = found[j, i] = _apart(runs[i], runs[j])
        return found

    def _runs(self, text: str) -> list[set[tuple[str, ...]]]:
        tokens = _TOKEN.findall(text.lower())
        return [
            {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
            for n in range(1, self.longest + 1)
        ]


def _apart(left: Sequence[set[tuple[str, ...]]], right: Sequence[set[tuple[str, ...]]]) -> float:
    shares = [1 - len(a & b) / len(a | b) for a, b in zip(left, right, strict=True) if a | b]
    return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelDistance:
    """Root mean square difference of two pictures made small, 0 to 1.

    ``d(a, b) = sqrt(mean((a - b)^2))`` over red, green and blue in 0 to 1. Blind to meaning: a
    moved object counts as another one.

    Attributes:
        side: Pixels of a side of the small pictures, averaged over what they cover.
    """

    side: int = 32

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side={self.side} must be at least 1")

    def __call__(self, outputs: Sequence[Output]) -> Tensor:
        """``[N, N]`` distances; 1 between black and white.

        Raises:
            ValueError: An output is no picture.
        """
        from PIL.Image import Resampling

        size = (self.side, self.side)
        small = [
            np.asarray(picture.resize(size, Resampling.BOX), dtype=np.float32) / 255
            for picture in pictures_of(outputs, "pixels")
        ]
        flat = torch.from_numpy(np.stack(small)).flatten(1).double()
        # Not from products, whose rounding would give equal pictures a distance.
        squares = [((flat - one) ** 2).mean(1) for one in flat]
        return torch.stack(squares).sqrt().float()


def texts_of(outputs: Sequence[Output], name: str) -> list[str]:
    """The outputs, which must all be text.

    Raises:
        ValueError: One is none; ``name`` says who asked.
    """
    found = []
    for row, output in enumerate(outputs):
        if not isinstance(output, str):
            raise ValueError(
                f"the diversity `{name}` compares texts, and output {row} is a "
                f"{type(output).__name__}; pictures have `pixels` and `clip`"
            )
        found.append(output)
    return found


def pictures_of(outputs: Sequence[Output], name: str) -> list[Image]:
    """The outputs, which must all be pictures; RGB.

    Raises:
        ValueError: One is none; ``name`` says who asked.
    """
    from PIL.Image import Image

    found = []
    for row, output in enumerate(outputs):
        if not isinstance(output, Image):
            raise ValueError(
                f"the diversity `{name}` compares pictures, and output {row} is a "
                f"{type(output).__name__}; texts have `ngrams` and `sentences`"
            )
        found.append(output.convert("RGB"))
    return found
