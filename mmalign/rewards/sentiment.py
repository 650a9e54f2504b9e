"""How positive a text sounds: the lexicon and rules of VADER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Output, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SentimentReward:
    """VADER's compound score of the output alone, -1 (negative) to 1 (positive).

    It counts charged words, so a policy can earn it with cheerful words about anything: look at a
    second judge beside it, such as `mmalign.rewards.relevance.RelevanceReward`. Needs the package
    vaderSentiment (extra ``real``).

    References:
        Hutto and Gilbert, ICWSM 2014.
    """

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` scores in [-1, 1]; 0 for a text without a charged word.

        Raises:
            ValueError: An output is no text, or vaderSentiment is not installed.
        """
        analyser = _analyser()
        scores = [analyser.polarity_scores(text)["compound"] for text in texts_of(outputs)]
        return torch.tensor(scores, dtype=torch.float32)


def texts_of(outputs: Sequence[Output]) -> list[str]:
    """The outputs, which must all be text.

    Raises:
        ValueError: One is a picture.
    """
    found = []
    for row, output in enumerate(outputs):
        if not isinstance(output, str):
            raise ValueError(
                f"this reward reads text, and output {row} is a {type(output).__name__}"
            )
        found.append(output)
    return found


@cache
def _analyser() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise ValueError(
            "the reward `sentiment` needs the package vaderSentiment; "
            "pip install vaderSentiment==3.3.2"
        ) from error
    return SentimentIntensityAnalyzer()
