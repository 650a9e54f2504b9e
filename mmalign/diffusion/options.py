"""What a run may say about a pipeline when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LongPrompts = Literal["error", "truncate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of a pipeline; see `mmalign.diffusion.policy` for what each means to a user.

    Attributes:
        size: Side, or height and width, in pixels; None for the model's own.
        num_frames: Frames of a clip; None for the model's own.
        max_sequence_length: Tokens of the text encoder where the pipeline leaves them open.
        resize: Whether pictures of another size are converted and resized.
        vae_tiling: Whether the VAE works on large pictures tile by tile.
        long_prompts: What becomes of a prompt that is longer than a text encoder reads.
        cache: Folder for the answers of frozen parts, or None.
    """

    size: int | tuple[int, int] | None = None
    num_frames: int | None = None
    max_sequence_length: int | None = None
    resize: bool = False
    vae_tiling: bool = False
    long_prompts: LongPrompts = "error"
    cache: str | None = None

    def text_length(self, natural: int) -> int:
        """Tokens of the text encoder; ``natural`` is the pipeline's own default."""
        return natural if self.max_sequence_length is None else self.max_sequence_length
