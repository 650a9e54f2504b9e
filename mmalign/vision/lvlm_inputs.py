"""What a processor makes of a prompt with pictures, kept whole and put together row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.blame import Refused
from mmalign.text.ids import Conversation
from mmalign.types import Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

LAID_OUT = ("input_ids", "attention_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """One prompt as its processor returns it, without the batch axis of the text.

    Attributes:
        ids: ``[L]`` int64, every picture expanded to its image tokens.
        per_token: Further keys with one entry for each id, ``[L]``.
        per_image: All other keys, as the model takes them; none where there is no picture.
    """

    ids: Tensor
    per_token: Mapping[str, Tensor]
    per_image: Mapping[str, Tensor]


def process(processor: ProcessorMixin, prompt: Prompt, *, row: int) -> Processed:
    """Run the processor on one prompt; nothing is ever cut.

    Args:
        processor: The model's.
        prompt: A conversation with an image part where each picture belongs, in any turn. A bare
            string is one turn of the user, the pictures before the text.
        row: Names the prompt in messages.

    Raises:
        ValueError: The places for pictures and the pictures differ in number.
    """
    text = processor.apply_chat_template(
        _messages(prompt, processor.image_token), add_generation_prompt=True, tokenize=False
    )
    places = text.count(processor.image_token)
    if places != len(prompt.images):
        raise Refused(
            "prompt",
            row,
            f" has {places} places for images and {len(prompt.images)} images; give one part "
            '{"type": "image"} for each image, in the order of the images',
        )
    bos = processor.tokenizer.bos_token
    found = processor(
        text=[text],
        # Those of one text: models that read one picture finer than several count them so.
        images=[list(prompt.images)] if prompt.images else None,
        return_tensors="pt",
        padding=False,
        truncation=False,
        # A template that writes the beginning-of-text token must not get a second one.
        add_special_tokens=bos is None or not text.startswith(bos),
    )
    shape = found["input_ids"].shape
    aligned = {k for k, v in found.items() if v.shape == shape}
    return Processed(
        ids=found["input_ids"][0],
        per_token={k: found[k][0] for k in sorted(aligned - set(LAID_OUT))},
        per_image={k: found[k] for k in sorted(found.keys() - aligned)},
    )


def image_inputs(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Per-image keys of all rows, one row's pictures after another's.

    Rows without a picture add nothing. Axes behind the first that differ in size, such as the
    number of tiles of a picture, are filled with zeros, as processors do within a batch.
    """
    found = {}
    for key in dict.fromkeys(key for value in values for key in value):
        parts = [value[key] for value in values if key in value]
        sizes = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
        found[key] = torch.cat([_grown(part, sizes) for part in parts])
    return found


def renderer(processor: ProcessorMixin) -> Callable[[Conversation], str]:
    """What `mmalign.text.ids.stop_ids_of` takes, for a vision-language model."""
    return lambda conversation: processor.apply_chat_template(
        [{**message, "content": _parts(message["content"])} for message in conversation]
    )


def use_template(processor: ProcessorMixin, template: str) -> None:
    """Give a processor another chat template: Jinja text, or the path of a file that holds it.

    Raises:
        ValueError: Neither.
    """
    if "{%" not in template and "{{" not in template:
        path = Path(template)
        if not path.is_file():
            raise ValueError(
                f"chat_template {template!r} is neither a Jinja template nor a file that holds one"
            )
        template = path.read_text(encoding="utf-8")
    processor.chat_template = template


def keeps_order(processor: ProcessorMixin) -> bool:
    """Whether a chat template leaves pictures where they stand among the words of a message."""
    image = {"type": "image"}
    content = [{"type": "text", "text": "1"}, image, {"type": "text", "text": "2"}, image]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    before, *between = text.split(processor.image_token)
    return len(between) == 2 and "1" in before and "2" in between[0]


def placeholder_ids(processor: ProcessorMixin) -> tuple[int, ...]:
    """Ids that stand for parts of pictures, films or sounds: no answer may hold one.

    Nor the one that says in a text that a picture belongs there.
    """
    every = [*processor.image_token_ids, *processor.video_token_ids, *processor.audio_token_ids]
    every += processor.tokenizer.convert_tokens_to_ids([processor.image_token])
    return tuple(sorted({token for token in every if token is not None}))


def _messages(prompt: Prompt, image_token: str) -> list[dict[str, Any]]:
    if isinstance(prompt.content, str):
        places = 0 if image_token in prompt.content else len(prompt.images)
        parts = [*[{"type": "image"}] * places, {"type": "text", "text": prompt.content}]
        return [{"role": "user", "content": parts}]
    return [{**message, "content": _parts(message["content"])} for message in prompt.content]


def _parts(content: Any) -> list[dict[str, Any]]:
    # Templates of vision-language models walk over parts; a bare string would be read by letters.
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [dict(part) for part in content]


def _grown(part: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - have for size, have in zip(sizes, part.shape[1:], strict=True)]
    return functional.pad(part, [n for size in reversed(missing) for n in (0, size)])
