"""Sums with two things to be wanted of an answer: few words, and every step written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.tinyworld.judges import ArithmeticJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Output, Preference, Prompt

TASK = "arithmetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class BriefSums:
    """Pairs in which the brief answer is preferred, with what an exact judge says of both sides.

    The chosen side is the answer alone ("answer 5"), the rejected one the sum worked out rightly;
    the columns ``chosen_exact`` and ``rejected_exact`` have the exact judge's 0 and 1, times
    ``scale``: the judge wants the steps. So `modpo` has two objectives that are at odds, brevity in
    its pairs and exactness in its margin.

    Attributes:
        split: Training or held-out prompts; the two never meet.
        size: How many.
        seed: Of the draw.
        scale: Of the exact judge's rewards, whose margins stand beside ``beta D``.
    """

    split: Literal["train", "heldout"] = "train"
    size: int = 1000
    seed: int = 0
    scale: float = 1.0

    def preferences(self) -> Sequence[Preference]:
        """Brief answers preferred to sums that are worked out."""
        return [self._pair(prompt, str(full)) for prompt, full in self.demonstrations()]

    def prompts(self) -> Sequence[Prompt]:
        """Prompts alone."""
        return TASKS[TASK].prompts(split=self.split, size=self.size, seed=self.seed)

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """Prompts with sums worked out rightly."""
        return TASKS[TASK].demonstrations(split=self.split, size=self.size, seed=self.seed)

    def _pair(self, prompt: Prompt, full: str) -> Preference:
        brief = full.rpartition(", ")[2]
        exact = self.scale * ArithmeticJudge()([prompt] * 2, [brief, full])
        meta = {"chosen_exact": float(exact[0]), "rejected_exact": float(exact[1])}
        return Preference(prompt=prompt, chosen=brief, rejected=full, meta=meta)
