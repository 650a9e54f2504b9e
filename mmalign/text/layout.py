"""Where prompts and answers stand in a packed row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

LAYOUT = "shared_prompt_layout"
"""The keyword through which a layout reaches every attention layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Where a prompt and its answers stand in the row; ends are exclusive."""

    start: int
    end: int
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """The segments of a packed row, in order and without gaps.

    Attributes:
        segments: Of the row.
        read: ``[K]`` int64, increasing: the positions whose last state is read. Of a prompt, none
            but its last can be among them.
        is_last: Whether it is meant for the last layer, after which nothing else is read.
    """

    segments: tuple[Segment, ...]
    read: Tensor
    is_last: bool = False

    @property
    def lengths(self) -> list[int]:
        """Of every prompt and answer, in the order of the row; they add up to N."""
        return [
            end - start
            for segment in self.segments
            for start, end in ((segment.start, segment.end), *segment.answers)
        ]

    def of_last_layer(self) -> Layout:
        """The same for the last layer."""
        return replace(self, is_last=True)
