"""A clip as its frames: the pictures of a prompt, in the order of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmalign.prompts import Message, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


def evenly(count: int, num_frames: int) -> list[int]:
    """Which frames stand for a clip: the middle one of each of ``num_frames`` equal parts.

    ``floor((2 k + 1) count / (2 num_frames))`` for k = 0, 1, ...

    Args:
        count: Frames of the clip.
        num_frames: How many are wanted; with as many as there are, or more, all are taken.

    Returns:
        Ascending indices; 10 frames and 2 give ``[2, 7]``.

    Raises:
        ValueError: A number is below 1.
    """
    if count < 1 or num_frames < 1:
        raise ValueError(
            f"a clip needs at least one frame; got count={count} and num_frames={num_frames}"
        )
    kept = min(count, num_frames)
    return [(2 * k + 1) * count // (2 * kept) for k in range(kept)]


def strip(frames: Sequence[Image]) -> Image:
    """Pictures of one height side by side: how a clip is shown where only a picture can be."""
    from PIL import Image

    widths = [frame.width for frame in frames]
    found = Image.new("RGB", (sum(widths), frames[0].height))
    for number, frame in enumerate(frames):
        found.paste(frame, (sum(widths[:number]), 0))
    return found


def clip_prompt(
    frames: Sequence[Image],
    question: str,
    *,
    num_frames: int | None = None,
    frames_per_second: float | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Prompt:
    """One turn of the user: the frames of a clip as pictures, then the question.

    Args:
        frames: Decoded pictures in the order of time, RGB.
        question: What is asked.
        num_frames: How many are kept, by `evenly`; None for all.
        frames_per_second: Of ``frames``. Each picture is then preceded by its time from the first,
            such as "1.5 s"; None for no times.
        meta: Further columns of the row.

    Raises:
        ValueError: There is no frame, or a number is not above 0.
    """
    if frames_per_second is not None and frames_per_second <= 0:
        raise ValueError(f"frames_per_second must be greater than 0; got {frames_per_second}")
    kept = evenly(len(frames), len(frames) if num_frames is None else num_frames)
    parts: list[Message] = []
    for index in kept:
        if frames_per_second is not None:
            parts.append({"type": "text", "text": f"{index / frames_per_second:.1f} s"})
        parts.append({"type": "image"})
    parts.append({"type": "text", "text": question})
    return Prompt(
        content=({"role": "user", "content": parts},),
        images=tuple(frames[index] for index in kept),
        meta=dict(meta or {}),
    )
