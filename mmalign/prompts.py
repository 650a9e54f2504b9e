"""What is asked and what was preferred, before any model has read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

Output: TypeAlias = "str | Image | tuple[Image, ...]"
"""Text, a picture, or a clip: its frames in the order of time."""
Message: TypeAlias = Mapping[str, Any]


def frames_of(output: Image | tuple[Image, ...]) -> tuple[Image, ...]:
    """The frames of a clip, or a picture as the only one."""
    return output if isinstance(output, tuple) else (output,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the policy is asked.

    Attributes:
        content: A string, or a conversation of ``{"role", "content"}`` messages whose content is a
            string or a list of ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` parts.
        images: The pictures the conversation refers to, in reading order, RGB.
        meta: Further columns of the row; reward models and judges read them.
    """

    content: str | tuple[Message, ...]
    images: tuple[Image, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A recorded preference: two outputs of one prompt, the first preferred.

    Attributes:
        prompt: The prompt of both sides, or of the chosen side where they saw different images.
        chosen: The preferred output, text, picture or clip.
        rejected: The other output.
        rejected_prompt: The prompt of the rejected side where it differs (a corrupted view).
        margin: By how much the chosen output is better, where known (reward units).
        meta: Further columns.
    """

    prompt: Prompt
    chosen: Output
    rejected: Output
    rejected_prompt: Prompt | None = None
    margin: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An output that somebody found desirable or not, compared with no other.

    Attributes:
        prompt: What was asked.
        completion: The output, text, picture or clip.
        label: True where it is desirable.
    """

    prompt: Prompt
    completion: Output
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Outputs of one prompt, each with a score; equal scores are ties.

    Attributes:
        prompt: What was asked.
        completions: Two or more outputs, text, picture or clips, in any order.
        scores: One each, higher is better.
        steps: Of the branches of a tree: each completion cut into its steps, which joined are the
            completion; None where it is not known.
    """

    prompt: Prompt
    completions: tuple[Output, ...]
    scores: tuple[float, ...]
    steps: tuple[tuple[str, ...], ...] | None = None
