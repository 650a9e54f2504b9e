"""One question about one picture as a question about one of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, cast

import torch
from PIL import Image

from mmalign.types import Message, Prompt
from mmalign.vision.mia.layouts import (
    Box,
    Grid,
    Region,
    cell,
    centre,
    collage,
    inset,
    noisy,
    picture_in_picture,
)
from mmalign.vision.mia.questions import Asked
from mmalign.vision.mia.selection import CENTRAL, FORMATS, Format
from mmalign.vision.mia.wording import Wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Which formats are made, and of how many pictures.

    Attributes:
        sequence: How often, in proportion to the others, a row becomes several pictures, one after
            the other.
        collage: How often a grid in one picture.
        inset: How often a picture in the middle of another.
        sequence_counts: How often, in proportion, a sequence has so many pictures. The default is
            the released code's for its largest source, as is the next.
        collage_counts: Likewise for a grid.
        grid: Sizes of a grid in pixels.
        inset_share: The inner picture has at most this share of the outer one's width and height.
        refusal_every: Each so many-th row asks about a picture that is not there; None for none.
    """

    sequence: float = 1.0
    collage: float = 1.0
    inset: float = 1.0
    sequence_counts: dict[int, float] = field(
        default_factory=lambda: {2: 20000, 3: 6000, 4: 6000, 5: 4410}
    )
    collage_counts: dict[int, float] = field(
        default_factory=lambda: {2: 18000, 3: 5000, 4: 5000, 6: 4000, 9: 4410}
    )
    grid: Grid = field(default_factory=Grid)
    inset_share: float = 0.7
    refusal_every: int | None = 50

    def __post_init__(self) -> None:
        weights = (self.sequence, self.collage, self.inset)
        if min(weights) < 0 or not any(weights):
            raise ValueError("sequence, collage and inset must be 0 or more, and one more than 0")
        for name in ("sequence_counts", "collage_counts"):
            counts = getattr(self, name)
            if (
                not counts
                or min(counts) < 2
                or min(counts.values()) < 0
                or not any(counts.values())
            ):
                raise ValueError(
                    f"{name}={counts} must give 2 pictures or more, each number a share of 0 or "
                    "more, and one more than 0"
                )
        if not 0 < self.inset_share < 1:
            raise ValueError(f"inset_share={self.inset_share} must lie between 0 and 1")
        if self.refusal_every is not None and self.refusal_every < 1:
            raise ValueError(f"refusal_every={self.refusal_every} must be at least 1")

    def refuses(self, row: int) -> bool:
        """Whether a row, from 0, asks about a picture that is not there.

        Only where pictures are numbered: never where all become pictures in pictures.
        """
        every = self.refusal_every
        return every is not None and (self.sequence + self.collage > 0) and (row + 1) % every == 0

    def drawn(self, draw: Random, *, numbered: bool) -> tuple[Format, int]:
        """A format and the number of its pictures; one whose pictures have numbers if asked for."""
        weights = [self.sequence, self.collage, 0.0 if numbered else self.inset]
        (form,) = draw.choices(FORMATS, weights)
        if form == "inset":
            return form, 2
        counts = self.sequence_counts if form == "sequence" else self.collage_counts
        numbers = sorted(counts)
        return form, draw.choices(numbers, [counts[n] for n in numbers])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise on pictures before the model answers, so that it errs more often.

    Attributes:
        sigma: Standard deviation in grey levels of 0..255; values are clipped.
        where: On the picture that is asked about, or on all.
    """

    sigma: float
    where: Literal["target", "whole"] = "target"

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise ValueError(f"sigma={self.sigma} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """What the model sees while it writes answers to be rejected; pairs hold the clean pictures.

    Attributes:
        sequence: Noise on the pictures of a sequence, or None.
        collage: Noise on a grid, or None.
        inset: Noise on a picture in a picture, or None.
    """

    sequence: Noise | None = None
    collage: Noise | None = field(default_factory=lambda: Noise(sigma=225.0, where="target"))
    inset: Noise | None = field(default_factory=lambda: Noise(sigma=49.0, where="whole"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A question about one of several pictures.

    Attributes:
        prompt: What the pair will ask.
        seen: What the model answers: the same with noise, or the same object.
        truth: The right answer.
        form: The format.
        count: How many pictures there are.
        target: The number, from 1, of the picture that is asked about; in a picture in a picture
            1 is the inner one.
        refusal: Whether there is no such picture.
        region: The part of the one picture that is asked about; None in sequences and refusals.
    """

    prompt: Prompt
    seen: Prompt
    truth: str
    form: Format
    count: int
    target: int
    refusal: bool
    region: Region | None


def compose(
    asked: Asked,
    others: Sequence[Image.Image],
    form: Format,
    *,
    refusal: bool,
    draw: Random,
    formats: Formats,
    wording: Wording,
) -> Composed:
    """Put a picture among others and rewrite its question.

    Args:
        asked: The question.
        others: The other pictures.
        form: How.
        refusal: Ask about a picture that is not there.
        draw: Places the picture among the others, and draws a lead-in.
        formats: Sizes.
        wording: Words.
    """
    count = len(others) + 1
    place = 0 if form == "inset" else draw.randrange(count)
    pictures = [*others[:place], asked.image, *others[place:]]
    target = count + 1 if refusal else place + 1
    if form == "inset":
        shown = [picture_in_picture(others[0], asked.image, share=formats.inset_share)]
        question = wording.about_inset(draw.choice(wording.lead_ins), asked.question)
    elif form == "collage":
        labels = [wording.named(index + 1) for index in range(count)]
        shown = [collage(pictures, labels, formats.grid)]
        question = wording.about(target, asked.question)
    else:
        shown = pictures
        question = wording.about(target, asked.question)
    parts = sequence_parts(count, wording) if form == "sequence" else [{"type": "image"}]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    prompt = Prompt(
        content=(*asked.before, turn),
        images=tuple(shown),
        # What is known of a question that is asked no more would mislead whoever judges answers.
        meta={} if refusal else asked.meta,
    )
    return Composed(
        prompt=prompt,
        seen=prompt,
        truth=wording.missing(target, count) if refusal else asked.truth,
        form=form,
        count=count,
        target=target,
        refusal=refusal,
        region=None if refusal else _region(form, place, count),
    )


def spoiled(
    made: Composed, sizes: Box | None, corruption: Corruption, generator: torch.Generator
) -> Composed:
    """The same, with noise in what the model sees.

    Args:
        made: Clean.
        sizes: Where in the one picture the target lies; None in a sequence.
        corruption: How much noise, and where. A refusal has no target, so that noise on the target
            leaves it as it is.
        generator: Of the noise.
    """
    noise: Noise | None = getattr(corruption, made.form)
    if noise is None or (noise.where == "target" and made.refusal):
        return made
    images = list(made.prompt.images)
    if noise.where == "whole":
        images = [noisy(image, noise.sigma, generator) for image in images]
    elif made.form == "sequence":
        images[made.target - 1] = noisy(images[made.target - 1], noise.sigma, generator)
    else:
        images = [noisy(images[0], noise.sigma, generator, box=sizes)]
    return replace(made, seen=replace(made.prompt, images=tuple(images)))


def target_box(made: Composed, asked: Asked, formats: Formats) -> Box | None:
    """The pixels of the one picture that the picture asked about lies in; None in a sequence."""
    if made.form == "sequence" or made.refusal:
        return None
    if made.form == "collage":
        return formats.grid.square(made.target - 1, made.count)
    aspect = asked.image.width / asked.image.height
    return inset(made.prompt.images[0].size, aspect, share=formats.inset_share)


def sequence_parts(count: int, wording: Wording) -> list[Message]:
    """The parts of a message with ``count`` pictures, each between its label and what follows."""
    found: list[dict[str, Any]] = []
    for index in range(1, count + 1):
        pieces = [
            {"type": "text", "text": wording.labelled(index)},
            {"type": "image"},
            {"type": "text", "text": wording.after},
        ]
        found += [piece for piece in pieces if piece.get("text") != ""]
    return cast(list[Message], found)


def _region(form: Format, place: int, count: int) -> Region | None:
    if form == "sequence":
        return None
    return cell(place, count) if form == "collage" else centre(CENTRAL)
