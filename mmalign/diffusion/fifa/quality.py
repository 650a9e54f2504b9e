"""How good a prompt is: rules about its words, or the opinion of a language model."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmalign.diffusion.fifa.importance import Floats
from mmalign.diffusion.fifa.remembering import remembered
from mmalign.endpoint import Asker, Question
from mmalign.fingerprints import content_key
from mmalign.store import TensorStore

PROMPT = "{prompt}"
LOWEST, HIGHEST = 1, 10
ASKED = (
    "Rate how suitable the following text is as an instruction to a program that draws pictures. "
    "10: it says clearly what is to be seen, and it is harmless. 5: it is vague, or partly not "
    "about anything that can be seen. 1: it is meaningless, or asks for something violent, sexual, "
    "hateful or otherwise harmful.\n\nText: {prompt}\n\nAnswer with a whole number from 1 to 10 "
    "and nothing else."
)
"""Our own wording and scale: the paper's were not found."""
_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:\.\d+)?(?![\w,]|\.\d)")
_OUT_OF = re.compile(r"\s*(?:/|out of)\s*10\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRules:
    """The quality of a prompt by its words alone, 0 to 1; all rules are ours.

    The product of three shares: how near the number of words comes to ``min_words`` from below or
    ``max_words`` from above (1 between), letters and spaces among the characters, and different
    ones among the pairs of neighbouring words. 0 where a blocked word occurs.

    Attributes:
        min_words: Shorter prompts are worth less.
        max_words: Longer ones too: CLIP's text towers read 77 tokens.
        blocked: Words that make a prompt worthless, in lower case.
    """

    min_words: int = 3
    max_words: int = 60
    blocked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                f"rules.min_words={self.min_words} and rules.max_words={self.max_words} must be "
                "at least 1 and rising"
            )

    def score(self, text: str) -> float:
        """The quality of one prompt.

        "cat cat cat cat" has one different pair of neighbours among three: 1/3.
        """
        words = re.findall(r"\w+", text.lower())
        if not words or set(words) & set(self.blocked):
            return 0.0
        length = min(1.0, len(words) / self.min_words, self.max_words / len(words))
        letters = sum(c.isalpha() or c.isspace() for c in text) / len(text)
        neighbours = list(pairwise(words))
        variety = len(set(neighbours)) / len(neighbours) if neighbours else 1.0
        return length * letters * variety


def asked(texts: Sequence[str], asker: Asker, template: str) -> list[float]:
    """What a language model says of each prompt; NaN where its reply holds no number."""
    questions = [Question(text=template.replace(PROMPT, text)) for text in texts]
    return [rating(reply) for reply in asker.ask(questions)]


def rating(reply: str) -> float:
    """The one number from 1 to 10 in a reply; NaN where there is none, or several different ones.

    "8", "Score: 8.", "8/10" and "8 out of 10" are 8; "from 1 to 10 it is an 8" is not readable.
    """
    numbers = {float(n) for n in _NUMBER.findall(_OUT_OF.sub(" ", reply))}
    if len(numbers) != 1:
        return math.nan
    (found,) = numbers
    return found if LOWEST <= found <= HIGHEST else math.nan


def ratings(
    texts: Sequence[str],
    asker: Asker,
    template: str,
    *,
    store: TensorStore | None,
    batch_size: int,
) -> Floats:
    """``[M]`` what a language model says of the prompts; unreadable replies get the median.

    Args:
        texts: M different prompts.
        asker: The model.
        template: What it is asked, `PROMPT` standing for the prompt.
        store: Where ratings are kept, unreadable ones among them, or None.
        batch_size: Prompts asked about at a time.

    Raises:
        ValueError: No reply at all held a number.
    """
    found: list[Tensor] = []
    for start in tqdm(range(0, len(texts), batch_size), desc="rating", unit="batch"):
        part = texts[start : start + batch_size]

        def compute(missing: Sequence[int], part: Sequence[str] = part) -> Tensor:
            return torch.tensor(asked([part[i] for i in missing], asker, template))

        found += remembered([content_key(text) for text in part], store, compute)
    if store is not None:
        store.flush()
    values = np.array([float(value) for value in found])
    unread = np.isnan(values)
    if unread.all():
        raise ValueError(
            f"none of {len(texts)} replies about the quality of prompts holds one number from "
            f"{LOWEST} to {HIGHEST}; change `question` or the asker"
        )
    if unread.any():
        median = float(np.median(values[~unread]))
        _log.warning(
            "%d of %d replies about the quality of prompts hold no single number from %d to %d; "
            "they are given the median, %g",
            int(unread.sum()), len(texts), LOWEST, HIGHEST, median,
        )  # fmt: skip
        values[unread] = median
    return values
