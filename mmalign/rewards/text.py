"""Rewards that read the text of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.types import Output, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthReward:
    """How near an answer's length is to a target: 0 at the target, -1 at twice or none of it.

    An example of a reward, and a way to see whether a run works at all.

    Attributes:
        target: Words (separated by spaces).
    """

    target: int = 50

    def __post_init__(self) -> None:
        if self.target < 1:
            raise ValueError(f"target={self.target} must be at least one word")

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]``: ``-|words - target| / target``.

        Raises:
            ValueError: An output is a picture.
        """
        return torch.tensor([-abs(self._words(o) - self.target) / self.target for o in outputs])

    def _words(self, output: Output) -> int:
        if not isinstance(output, str):
            raise ValueError("the length reward reads text, and this output is a picture")
        return len(output.split())
