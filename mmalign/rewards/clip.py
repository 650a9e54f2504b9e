"""Agreement of a picture with its prompt, by any model of open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmalign.locate import locate
from mmalign.prompts import frames_of
from mmalign.types import Output, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReward:
    """Cosine similarity of picture and prompt, raw: in -1 to 1, not multiplied by 100.

    A learned reward is a proxy. Where an exact judge exists, watch both.

    Attributes:
        model: ``tinyworld/clip``, a folder in open_clip's layout (``open_clip_config.json``), a
            name of open_clip (``ViT-B-32``), or ``hf-hub:organisation/name``.
        pretrained: With a name of open_clip, the tag or file of its weights.
        batch_size: Pictures that go through the network at once.
        device: Where the network runs.
    """

    model: str = "tinyworld/clip"
    pretrained: str | None = None
    batch_size: int = 64
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` cosine similarities, one prompt per picture; a clip's is the mean of its frames'.

        A text longer than the network reads is cut, as CLIP does it.

        Raises:
            ValueError: Prompts and outputs differ in number, an output is no picture, or a prompt
                has no text.
        """
        if len(prompts) != len(outputs):
            raise ValueError(f"got {len(prompts)} prompts for {len(outputs)} pictures")
        network, transform, tokenize = load_clip(self.model, self.pretrained, self.device)
        frames = [_frames(output, row) for row, output in enumerate(outputs)]
        counts = [len(one) for one in frames]
        asked = [_text(prompt, row) for row, prompt in enumerate(prompts)]
        texts = [text for text, one in zip(asked, frames, strict=True) for _ in one]
        pictures = [picture for one in frames for picture in one]
        found = [torch.zeros(0)]
        for start in range(0, len(texts), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = torch.stack([transform(picture) for picture in pictures[part]])
            seen = network.encode_image(pixels.to(self.device), normalize=True)
            said = network.encode_text(tokenize(texts[part]).to(self.device), normalize=True)
            found.append((seen.float() * said.float()).sum(-1).cpu())
        of_frames = torch.cat(found).split(counts)
        return torch.stack([one.mean() for one in of_frames]) if counts else torch.zeros(0)


Loaded = tuple[Any, Callable[["Image"], Tensor], Callable[[list[str]], Tensor]]


@lru_cache(maxsize=2)
def load_clip(model: str, pretrained: str | None, device: str) -> Loaded:
    """The network in eval mode, its picture transform and its tokenizer."""
    import open_clip

    path = locate(model)
    name = f"local-dir:{path}" if path != model or Path(path).is_dir() else path
    try:
        network, transform = open_clip.create_model_from_pretrained(
            name, pretrained=pretrained, device=device
        )
        tokenize = open_clip.get_tokenizer(name)
    except (RuntimeError, FileNotFoundError) as error:
        raise ValueError(
            f"open_clip cannot load {model!r} with pretrained={pretrained!r}: {error}; give a "
            "folder with open_clip_config.json and weights, or a name and a tag of "
            "open_clip.list_pretrained()"
        ) from error
    return network.eval().requires_grad_(False), transform, tokenize


def _text(prompt: Prompt, row: int) -> str:
    """What the prompt asks for: the string, or the texts of the user's turns."""
    if isinstance(prompt.content, str):
        text = prompt.content
    else:
        said = [turn["content"] for turn in prompt.content if turn["role"] == "user"]
        text = " ".join(
            content
            if isinstance(content, str)
            else " ".join(part["text"] for part in content if part["type"] == "text")
            for content in said
        )
    if not text.strip():
        raise ValueError(f"prompt {row} has no text to compare its picture with")
    return text.strip()


def _frames(output: Output, row: int) -> list[Image]:
    if isinstance(output, str):
        raise ValueError(f"output {row} is a str, and this reward compares pictures")
    return [frame.convert("RGB") for frame in frames_of(output)]
