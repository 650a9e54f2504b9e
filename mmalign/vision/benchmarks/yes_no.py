"""POPE's reading of yes and no, and what follows from it: accuracy, precision, recall, F1."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.benchmarks import Measured, mean, share

POPE_NO = frozenset({"No", "not", "no"})


def pope_says_yes(answer: str) -> bool:
    """POPE's rule: no where ``No``, ``not`` or ``no`` is a word of the first sentence, else yes.

    The first sentence ends at the first full stop, commas are dropped, words are parted by spaces.
    Case matters, and any other punctuation stays on its word: ``NO`` and ``No!`` are a yes.

    Source: github.com/AoiDragon/POPE, evaluate.py.
    """
    first = answer.split(".")[0].replace(",", "")
    return POPE_NO.isdisjoint(first.split(" "))


def undecided(answer: str) -> bool:
    """Whether the answer counts as a yes without saying so: no word of it is a plain yes."""
    return pope_says_yes(answer) and "yes" not in re.findall(r"[a-z]+", answer.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Answers against truths, counted; yes is the positive class.

    Attributes:
        tp: Yes, rightly.
        fp: Yes, wrongly: a hallucination.
        tn: No, rightly.
        fn: No, wrongly.
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @staticmethod
    def of(said: Sequence[bool], true: Sequence[bool]) -> Confusion:
        """Count answers against truths, both True for yes."""
        pairs = list(zip(said, true, strict=True))
        return Confusion(
            tp=pairs.count((True, True)),
            fp=pairs.count((True, False)),
            tn=pairs.count((False, False)),
            fn=pairs.count((False, True)),
        )

    def metrics(self) -> dict[str, Measured]:
        """The five numbers of POPE, each in [0, 1]; accuracy with its interval over questions.

        precision ``tp / (tp + fp)``, recall ``tp / (tp + fn)``, F1 their harmonic mean, yes ratio
        ``(tp + fp) / all``. One that would divide by 0 is not defined, and so F1 where no yes is
        right.
        """
        total = self.tp + self.fp + self.tn + self.fn
        right = self.tp + self.tn
        f1 = None if self.tp == 0 else 2 * self.tp / (2 * self.tp + self.fp + self.fn)
        return {
            "accuracy": mean([1.0] * right + [0.0] * (total - right)),
            "f1": Measured(value=f1, total=total),
            "precision": share(self.tp, self.tp + self.fp),
            "recall": share(self.tp, self.tp + self.fn),
            "yes_ratio": share(self.tp + self.fp, total),
        }


def mean_of_splits(splits: Sequence[Measured]) -> Measured:
    """The mean of numbers, each of a split of its own, with the interval of independent splits.

    Half of the interval is ``sqrt(sum of squares) / number`` of the splits' halves.
    """
    values = [split.value for split in splits if split.value is not None]
    halves = [split.half_width for split in splits if split.half_width is not None]
    total = sum(split.total for split in splits)
    if len(values) < len(splits):
        return Measured(value=None, total=total)
    half = math.hypot(*halves) / len(splits) if len(halves) == len(splits) else None
    return Measured(value=sum(values) / len(splits), half_width=half, total=total)
