"""Which sampled answers are worth rejecting: attention on the wrong picture, and plain filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from mmalign.vision.mia.attention import Look, centres
from mmalign.vision.mia.layouts import Region
from mmalign.vision.spans import Seen

Format = Literal["sequence", "collage", "inset"]
FORMATS: tuple[Format, ...] = ("sequence", "collage", "inset")
CENTRAL = 2 / 3
"""Share of each side that counts as the middle of a picture in a picture: 16 of 24 patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which answers become rejected ones. Thresholds are the published ones.

    Attributes:
        mode: "attention" rejects answers that looked past the picture they were asked about;
            "random" rejects any wrong answer, to see what attention is worth.
        depth: Where in the decoder attention is read: the share of its layers that come before,
            0.5 for layer 16 (from 0) of 32.
        sequence: By number of pictures, the largest share of attention on the right picture of a
            sequence; between the numbers given it is interpolated, beyond them the nearest holds.
        collage: Likewise for a grid, the share being less than this.
        inset: Likewise for a picture in a picture, the share being less than this.
        min_perplexity: An answer's perplexity is more than this; None for any. A greedy answer the
            model was all but certain of is dropped.
        max_length_ratio: The longer of both answers has at most so many times the characters of the
            shorter; None for any. Answers to refusals are not held to it: the right one is a whole
            sentence there.
        min_edit_distance: Levenshtein distance of both answers over the length of the longer, at
            least this; None for any.
    """

    mode: Literal["attention", "random"] = "attention"
    depth: float = 0.5
    sequence: dict[int, float] = field(default_factory=lambda: {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6})
    collage: dict[int, float] = field(
        default_factory=lambda: {2: 0.7, 3: 0.6, 4: 0.5, 6: 0.4, 9: 0.3}
    )
    inset: float = 0.8
    min_perplexity: float | None = 1.1
    max_length_ratio: float | None = 3.0
    min_edit_distance: float | None = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= 1:
            raise ValueError(f"depth={self.depth} must lie between 0 and 1")
        for name in ("sequence", "collage"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs the threshold of at least one number of pictures")
        if self.max_length_ratio is not None and self.max_length_ratio < 1:
            raise ValueError(f"max_length_ratio={self.max_length_ratio} must be at least 1")

    def threshold(self, form: Format, count: int) -> float:
        """The largest share of attention of ``count`` pictures in a format."""
        if form == "inset":
            return self.inset
        return interpolated(self.sequence if form == "sequence" else self.collage, count)

    def looked_away(self, form: Format, count: int, share: float) -> bool:
        """Whether the right picture got little attention.

        A sequence's threshold itself counts as little, those of the other formats do not.
        """
        threshold = self.threshold(form, count)
        return share <= threshold if form == "sequence" else share < threshold


def interpolated(table: Mapping[int, float], count: int) -> float:
    """The value at ``count``, linear between the nearest entries, constant beyond the last ones."""
    known = sorted(table)
    below = max((n for n in known if n <= count), default=known[0])
    above = min((n for n in known if n >= count), default=known[-1])
    if above <= below:
        return table[below if below <= count else above]
    part = (count - below) / (above - below)
    return table[below] + part * (table[above] - table[below])


def sequence_share(look: Look, target: int) -> float:
    """Attention on one of several pictures: its tokens' mean over the sum of all pictures' means.

    Returns:
        1 where all attention lies on it, ``1 / n`` where every token gets the same; NaN where no
        picture gets any.
    """
    means = [float(look.on(seen).double().mean()) for seen in look.pictures]
    return means[target] / sum(means) if sum(means) > 0 else math.nan


def region_share(weights: Tensor, seen: Seen, region: Region) -> float:
    """Attention on a part of a picture, over that on all of it, sums.

    A token belongs to the part that its centre lies in; one without a place belongs to none.

    Args:
        weights: ``[K]``, the attention on each of the picture's tokens.
        seen: The picture's tokens.
        region: The part; its right and lower edge do not belong to it.

    Returns:
        1 where all attention lies there, the part's share of the tokens where each gets the same;
        NaN where the picture gets none, or no token stands for the part.
    """
    values = weights.double()
    total = float(values[~seen.boxes.isnan().any(1)].sum())
    inside = _inside(seen.boxes, region)
    return float(values[inside].sum()) / total if total > 0 and inside.any() else math.nan


def unfit(
    selection: Selection,
    *,
    answer: str,
    truth: str,
    perplexity: float,
    refusal: bool = False,
) -> str | None:
    """Why a wrong answer makes no good pair, apart from attention; None where it does.

    Args:
        selection: The bounds.
        answer: What the model said.
        truth: The right answer; neither is empty.
        perplexity: Of the answer.
        refusal: Whether the right answer refuses the question.
    """
    if selection.min_perplexity is not None and perplexity <= selection.min_perplexity:
        return "too certain"
    longer, shorter = max(len(answer), len(truth)), min(len(answer), len(truth))
    bound = selection.max_length_ratio
    if not refusal and bound is not None and longer > bound * shorter:
        return "lengths too far apart"
    distance = Levenshtein.normalized_distance(answer, truth)
    if selection.min_edit_distance is not None and distance < selection.min_edit_distance:
        return "answers too alike"
    return None


def _inside(boxes: Tensor, region: Region) -> Tensor:
    """``[K]`` bool; False where a box is NaN."""
    # float32 boxes of the thirds of a picture are not exact; a centre never lies that near an edge
    # by anything but rounding.
    edge = 1e-6
    low = torch.tensor(region[:2]) - edge
    high = torch.tensor(region[2:]) - edge
    middle = centres(boxes)
    return ((middle >= low) & (middle < high)).all(1)
