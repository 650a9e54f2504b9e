"""Between a user's prompts and pictures and the ids and codes of Janus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import JanusProcessor
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmalign.blame import Refused
from mmalign.types import Message, Output, Prompt

# Pictures that go through the codebook's networks at once.
CHUNK = 64


class PictureProcessor(Protocol):
    """What is used of an image processor: the size of pictures and how pixels are scaled."""

    size: Any
    image_mean: Sequence[float]
    image_std: Sequence[float]


def prompt_ids(processor: JanusProcessor, prompt: Prompt, *, row: int, limit: int | None) -> Tensor:
    """A prompt as the model reads it before it draws, ``[L]`` int64.

    The chat template, where there is one, and the begin-of-image token are the processor's.

    Raises:
        ValueError: The prompt has no text, holds a picture, or is longer than ``limit`` tokens.
    """
    turns = _turns(prompt, row)
    if processor.chat_template is None:
        text = " ".join(part["text"] for turn in turns for part in turn["content"])
    else:
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    begin = processor.tokenizer.bos_token
    ids = processor(
        text=[text],
        generation_mode="image",
        return_tensors="pt",
        padding=False,
        # A template that writes the beginning-of-text token must not get a second one.
        add_special_tokens=begin is None or not text.startswith(begin),
    )["input_ids"][0]
    if limit is not None and len(ids) > limit:
        raise Refused(
            "prompt",
            row,
            f" has {len(ids)} tokens, more than max_prompt_length={limit}; set it to at least "
            f"{len(ids)}, or filter the data",
        )
    return cast(Tensor, ids)


def _turns(prompt: Prompt, row: int) -> list[dict[str, Any]]:
    """The prompt as turns of text parts."""
    said = prompt.content
    conversation: Sequence[Message] = (
        ({"role": "user", "content": said},) if isinstance(said, str) else said
    )
    turns: list[dict[str, Any]] = [
        {"role": turn["role"], "content": _parts(turn["content"])} for turn in conversation
    ]
    parts = [part for turn in turns for part in turn["content"]]
    if prompt.images or any(part["type"] != "text" for part in parts):
        raise Refused(
            "prompt",
            row,
            " holds a picture, and this model draws from text alone; remove the image parts and "
            "the `images` of the prompt",
        )
    if not any(part["text"].strip() for part in parts):
        raise Refused("prompt", row, " has no text; say what is to be drawn")
    return turns


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


@torch.no_grad()
def encode_pictures(
    vq: JanusVQVAE, pictures_of: PictureProcessor, pictures: Sequence[Output]
) -> Tensor:
    """Pictures to codes ``[N, T]`` int64, on the CPU.

    Raises:
        ValueError: An output is no picture, or has not the size of the model's pictures.
    """
    side = int(pictures_of.size["height"])
    for row, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise Refused(
                "row",
                row,
                f": this model answers in pictures, and the recorded output is a "
                f"{type(picture).__name__}",
            )
        if picture.size != (side, side):
            raise Refused(
                "row",
                row,
                f": the picture has {picture.width} x {picture.height} pixels and the model draws "
                f"{side} x {side}; crop or resize the recorded pictures",
            )
    weight = vq.quant_conv.weight
    codes = []
    for start in range(0, len(pictures), CHUNK):
        part = [
            np.asarray(cast(Image.Image, picture).convert("RGB"))
            for picture in pictures[start : start + CHUNK]
        ]
        pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).to(weight.device).float()
        mean, std = _scale(pictures_of, weight.device)
        scaled = ((pixels / 255 - mean) / std).to(weight.dtype)
        codes.append(vq.encode(scaled).image_tokens.view(len(part), -1).cpu())
    return torch.cat(codes)


@torch.no_grad()
def decode_pictures(
    vq: JanusVQVAE, pictures_of: PictureProcessor, codes: Tensor
) -> list[Image.Image]:
    """Codes ``[N, T]`` to RGB pictures."""
    device = vq.quant_conv.weight.device
    mean, std = _scale(pictures_of, device)
    pictures = []
    for part in codes.split(CHUNK):
        # Within autocast a picture would be another one than outside of it.
        with torch.autocast(device.type, enabled=False):
            decoded = vq.decode(part.to(device)).float() * std + mean
        pixels = (decoded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        pictures += [Image.fromarray(np.ascontiguousarray(p)) for p in pixels.numpy()]
    return pictures


def _scale(pictures_of: PictureProcessor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels, ``[3, 1, 1]`` each."""
    values = torch.tensor([pictures_of.image_mean, pictures_of.image_std], device=device)
    mean, std = values.view(2, 3, 1, 1)
    return mean, std
