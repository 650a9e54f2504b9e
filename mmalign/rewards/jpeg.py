"""How large pictures are as files: a reward without a model, which shows whether a run works."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.prompts import frames_of
from mmalign.types import Output, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class JPEGReward:
    """Kilobytes of a picture as a JPEG file, minus them, or plus: DDPO's first two tasks.

    What it asks of a picture has nothing to do with the prompt: a run that raises it for long ends
    at empty pictures, or at noise. Good for a first run, and for comparing methods on a reward
    without ties.

    Attributes:
        larger: Whether larger files earn more ("incompressibility"); smaller ones do otherwise.
        quality: Of the JPEG encoder, 1 to 95.

    References:
        2305.13301 and its released code.
    """

    larger: bool = False
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality={self.quality} must be a JPEG quality from 1 to 95")

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` kilobytes of 1000 bytes, negative unless ``larger``; a clip's mean over frames.

        Raises:
            ValueError: An output is text.
        """
        sign = 1.0 if self.larger else -1.0
        return torch.tensor([sign * self._size(o, row) for row, o in enumerate(outputs)])

    def _size(self, output: Output, row: int) -> float:
        if isinstance(output, str):
            raise ValueError(f"output {row} is a str, and this reward reads pictures")
        sizes = []
        for frame in frames_of(output):
            file = io.BytesIO()
            frame.convert("RGB").save(file, "JPEG", quality=self.quality)
            sizes.append(file.tell() / 1000)
        return sum(sizes) / len(sizes)
