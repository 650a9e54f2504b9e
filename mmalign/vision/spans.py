"""Where each picture stands in a prompt, and which part of it each of its tokens stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from mmalign.types import Prompt
from mmalign.vision.lvlm_inputs import process

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

    from mmalign.vision.lvlm import LVLMAdapter

View: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the picture; outside 0..1 where a model pads it."""
WHOLE: View = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One picture of a prompt, as its tokens hold it.

    Attributes:
        places: ``[K]`` int64, the indices of the picture's tokens in the prompt's ids, ascending.
        boxes: ``[K, 4]`` float32: left, top, right, bottom of what each token stands for, as shares
            0..1 of the picture; NaN where a token stands for no place (the mark at the end of a
            line, padding).
    """

    places: Tensor
    boxes: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What decides where the tokens of a prompt's pictures look.

    Attributes:
        processor: The model's.
        config: The model's.
        alone: Whether the prompt holds one picture only.
    """

    processor: ProcessorMixin
    config: Any
    alone: bool


def seen_pictures(adapter: LVLMAdapter, network: PreTrainedModel, prompt: Prompt) -> list[Seen]:
    """The pictures of a prompt, in reading order.

    Args:
        adapter: Of a model of one of the families in `BOXES`.
        network: The model.
        prompt: With any number of pictures.

    Returns:
        One for each picture, none for a prompt without.

    Raises:
        ValueError: The family is not known, or the picture tokens of the prompt are not as many as
            the family's layout says.
    """
    if not prompt.images:
        return []
    kind = network.config.model_type
    if kind not in BOXES:
        raise ValueError(
            f"models of type {kind!r} do not say which part of a picture a token stands for "
            f"(known: {', '.join(BOXES)}); choose a model of these families"
        )
    ids = process(adapter.processor, prompt, row=0).ids
    sight = Sight(processor=adapter.processor, config=network.config, alone=len(prompt.images) == 1)
    boxes = [BOXES[kind](image, sight) for image in prompt.images]
    places = (ids == network.config.image_token_id).nonzero().squeeze(1)
    sizes = [len(one) for one in boxes]
    if len(places) != sum(sizes):
        raise ValueError(
            f"the prompt holds {len(places)} image tokens, and its pictures should have "
            f"{' + '.join(map(str, sizes))} of them ({kind}); the processor does not belong to "
            "this model"
        )
    return [
        Seen(places=at, boxes=clipped(one))
        for at, one in zip(places.split(sizes), boxes, strict=True)
    ]


def grid(rows: int, columns: int, view: View = WHOLE) -> Tensor:
    """``[rows, columns, 4]`` float64: equal parts of ``view``, line by line."""
    left, top, right, bottom = view
    across = torch.linspace(left, right, columns + 1, dtype=torch.float64)
    down = torch.linspace(top, bottom, rows + 1, dtype=torch.float64)
    shape = (rows, columns)
    return torch.stack(
        [
            across[:-1].expand(shape),
            down[:-1].unsqueeze(1).expand(shape),
            across[1:].expand(shape),
            down[1:].unsqueeze(1).expand(shape),
        ],
        -1,
    )


def clipped(boxes: Tensor) -> Tensor:
    """Float32 ``[K, 4]`` of any boxes: what lies within the picture, NaN where nothing does."""
    inside = boxes.clamp(0, 1)
    empty = (inside[:, 2] <= inside[:, 0]) | (inside[:, 3] <= inside[:, 1])
    return inside.masked_fill(empty.unsqueeze(1), math.nan).float()


def _side(sight: Sight) -> int:
    """Patches along a side of the square that the tower reads."""
    vision = sight.config.vision_config
    size, patch = (_number(vision.image_size), _number(vision.patch_size))
    return size // patch


def _number(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


def _class_token(sight: Sight) -> Tensor:
    """``[1, 4]`` where the token of the whole picture stays before the others, else ``[0, 4]``."""
    kept = sight.config.vision_feature_select_strategy == "full"
    extra = kept and sight.processor.num_additional_image_tokens > 0
    return torch.full((int(extra), 4), math.nan, dtype=torch.float64)


def _llava(image: Image, sight: Sight) -> Tensor:
    """One square: the picture resized, and its middle cut out."""
    processor = sight.processor.image_processor
    width, height = map(float, image.size)
    if processor.do_resize:
        width, height = _resized(image, processor.size)
    view = WHOLE
    if processor.do_center_crop:
        across = _cut(int(width), processor.crop_size["width"])
        down = _cut(int(height), processor.crop_size["height"])
        view = (across[0], down[0], across[1], down[1])
    side = _side(sight)
    return torch.cat([_class_token(sight), grid(side, side, view).flatten(0, 1)])


def _resized(image: Image, size: Mapping[str, int]) -> tuple[float, float]:
    """Width and height after the resize that ``size`` of an image processor asks for."""
    width, height = image.size
    short = size.get("shortest_edge")
    if not short:
        return size["width"], size["height"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _cut(length: int, crop: int) -> tuple[float, float]:
    """From where to where, in shares of ``length``, the middle ``crop`` pixels reach."""
    start = (length - crop) // 2 if length >= crop else -((crop - length) // 2)
    return start / length, (start + crop) / length


def _tiles(image: Image, sight: Sight) -> Tensor:
    """``[rows, columns, 4]``: what is left of a padded canvas of tiles, in the model's own way."""
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    width, height = image.size
    canvas = select_best_resolution((height, width), sight.config.image_grid_pinpoints)
    down, across = get_patch_output_size(
        torch.empty(3, height, width, device="meta"), canvas, ChannelDimension.FIRST
    )
    above, before = (canvas[0] - down) // 2, (canvas[1] - across) // 2
    view = (
        -before / across,
        -above / down,
        (canvas[1] - before) / across,
        (canvas[0] - above) / down,
    )
    tile, side = _number(sight.config.vision_config.image_size), _side(sight)
    full = grid(canvas[0] // tile * side, canvas[1] // tile * side, view)
    left: Tensor = unpad_image(full.permute(2, 0, 1), (height, width))
    return left.permute(1, 2, 0)


def _with_line_ends(boxes: Tensor) -> Tensor:
    """``[rows * (columns + 1), 4]``: a token without a place behind every line."""
    ends = boxes.new_full((len(boxes), 1, 4), math.nan)
    return torch.cat([boxes, ends], 1).flatten(0, 1)


def _llava_next(image: Image, sight: Sight) -> Tensor:
    """The picture squeezed into one square, then its tiles line by line."""
    side = _side(sight)
    lines = _with_line_ends(_tiles(image, sight))
    return torch.cat([_class_token(sight), grid(side, side).flatten(0, 1), lines])


def _llava_onevision(image: Image, sight: Sight) -> Tensor:
    """As LLaVA-NeXT, the tiles made smaller where they are many; of several pictures squares."""
    side = _side(sight)
    square = grid(side, side).flatten(0, 1)
    if not sight.alone:
        return torch.cat([square, square.new_full((1, 4), math.nan)])
    tiles = _tiles(image, sight)
    rows, columns = tiles.shape[:2]
    most = int(sight.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        first, last = tiles[0, 0].tolist(), tiles[-1, -1].tolist()
        view = (first[0], first[1], last[2], last[3])
        tiles = grid(int(rows // ratio), int(columns // ratio), view)
    return torch.cat([square, _with_line_ends(tiles)])


def _squares(rows: int, columns: int, tokens: int) -> Tensor:
    """``rows`` by ``columns`` tiles of the picture, tile by tile; then it all in one more square.

    Args:
        rows: Of tiles.
        columns: Of tiles; where there are none, or a single one, there is only one square.
        tokens: Of one square.
    """
    side = math.isqrt(tokens)
    whole = grid(side, side).flatten(0, 1)
    if rows * columns <= 1:
        return whole
    lines = grid(rows * side, columns * side).unflatten(1, (columns, side))
    tiles = lines.unflatten(0, (rows, side)).transpose(1, 2)
    return torch.cat([tiles.flatten(0, 3), whole])


def _internvl(image: Image, sight: Sight) -> Tensor:
    """Tiles in the shape nearest to the picture's, which is squeezed into it."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    processor = sight.processor.image_processor
    width, height = image.size
    columns, rows = get_optimal_tiled_canvas(
        (height, width),
        (processor.size["height"], processor.size["width"]),
        processor.min_patches,
        processor.max_patches,
    )
    return _squares(rows, columns, sight.processor.image_seq_length)


def _idefics(image: Image, sight: Sight) -> Tensor:
    """As many tiles as the resized picture fills, which is squeezed into them."""
    width, height = image.size
    processor = sight.processor.image_processor
    _, rows, columns = processor.get_number_of_image_patches(height, width, {})
    return _squares(rows, columns, sight.processor.image_seq_len)


def _gemma(image: Image, sight: Sight) -> Tensor:
    """The picture squeezed into one square."""
    return _squares(0, 0, sight.config.mm_tokens_per_image)


def _patches(image: Image, sight: Sight) -> Tensor:
    """The whole picture, as many tokens as its size asks for."""
    processor = sight.processor.image_processor
    found = processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    times, rows, columns = found
    boxes = grid(rows // processor.merge_size, columns // processor.merge_size).flatten(0, 1)
    return boxes.repeat(times, 1)


BOXES: Mapping[str, Callable[[Image, Sight], Tensor]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _patches,
    "qwen2_5_vl": _patches,
    "qwen3_vl": _patches,
    "internvl": _internvl,
    "idefics3": _idefics,
    "smolvlm": _idefics,
    "gemma3": _gemma,
}
"""By transformers' ``model_type``: ``[K, 4]`` of one picture's tokens, in their order."""
