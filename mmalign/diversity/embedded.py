"""Distances between what a network makes of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.diversity.plain import pictures_of, texts_of
from mmalign.types import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class CLIPDistance:
    """1 minus the cosine of two pictures' embeddings, 0 to 2, by any model of open_clip.

    Attributes:
        model: As the reward ``clip`` takes it.
        pretrained: With a name of open_clip, the tag or file of its weights.
        device: Where the network runs.
    """

    model: str = "tinyworld/clip"
    pretrained: str | None = None
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, outputs: Sequence[Output]) -> Tensor:
        """``[N, N]`` distances.

        Raises:
            ValueError: An output is no picture, or the model cannot be loaded.
        """
        from mmalign.rewards.clip import load_clip

        network, transform, _ = load_clip(self.model, self.pretrained, self.device)
        pixels = torch.stack([transform(picture) for picture in pictures_of(outputs, "clip")])
        return _cosine(network.encode_image(pixels.to(self.device), normalize=True).float().cpu())


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceDistance:
    """1 minus the cosine of two texts' embeddings, 0 to 2.

    Attributes:
        model: As the reward ``relevance`` takes it.
    """

    model: str | None = None

    def __call__(self, outputs: Sequence[Output]) -> Tensor:
        """``[N, N]`` distances.

        Raises:
            ValueError: An output is no text, or the encoder is absent.
        """
        from mmalign.rewards.relevance import RelevanceReward

        return _cosine(RelevanceReward(model=self.model).embedded(texts_of(outputs, "sentences")))


def _cosine(vectors: Tensor) -> Tensor:
    """``[N, N]`` of unit vectors ``[N, D]``; rounding below 0 is cut off."""
    return (1 - vectors @ vectors.T).clamp(min=0)
