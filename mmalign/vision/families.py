"""Families of vision-language models: how each hands its pictures to its language model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.text.shared import share_prompts

logger = logging.getLogger(__name__)

Picture = Mapping[str, Tensor]
"""The per-image keys of one picture, each with its axis over pictures (or patches) in front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one family hand pictures to their language model.

    A picture is here what goes through the tower by itself: a tile, where tiles are told apart by
    nothing but their order.

    Attributes:
        grid: The key of the patch grid ``[n, 3]`` where ``pixel_values`` are rows of patches, and
            positions have several axes, which the model's `get_rope_index` counts; None where the
            pictures are stacked and positions are plain.
        projector: The module that is all there is between tower and language model, where the
            model has such a module outside its tower; it works token by token.
        nested: Whether the pictures of a prompt stand behind an axis over prompts.
        number: The key of the number of pictures in the prompt, which decides how each is read.
        deepstack: Whether the first layers of the decoder add features of their own.
        blocks: Whether the tokens of a picture see each other in the decoder, those behind
            included, so that the whole model must read them and prompts are not shared.
    """

    grid: str | None = None
    projector: str | None = None
    nested: bool = False
    number: str | None = None
    deepstack: bool = False
    blocks: bool = False


FAMILIES: Mapping[str, Family] = {
    "llava": Family(projector="multi_modal_projector"),
    "llava_next": Family(),
    "llava_onevision": Family(number="batch_num_images"),
    "qwen2_vl": Family(grid="image_grid_thw"),
    "qwen2_5_vl": Family(grid="image_grid_thw"),
    "qwen3_vl": Family(grid="image_grid_thw", deepstack=True),
    "internvl": Family(projector="multi_modal_projector"),
    "idefics3": Family(projector="connector.modality_projection", nested=True),
    "smolvlm": Family(projector="connector.modality_projection", nested=True),
    "gemma3": Family(blocks=True),
}
"""By transformers' ``model_type``."""


def family_of(network: PreTrainedModel) -> Family | None:
    """The family of a model; None, and a line in the log, where its features cannot be shared."""
    kind = network.config.model_type
    family = FAMILIES.get(kind)
    reason = None
    if family is None:
        reason = (
            f"models of type {kind!r} are not known to share them (known: {', '.join(FAMILIES)})"
        )
    elif family.deepstack and ENCODED not in inspect.signature(network.forward).parameters:
        reason = f"its forward takes no {ENCODED} in this version of transformers; update it"
        family = None
    if reason is not None:
        logger.warning(
            "%s: pictures and prompts are read anew for each answer, since %s",
            type(network).__name__, reason,
        )  # fmt: skip
    return family


ENCODED = "mm_encoder_outputs"
"""The argument of a whole model that takes the features of pictures."""


def prepare_sharing(network: PreTrainedModel, family: Family | None) -> bool:
    """Make the decoder of a model able to run a shared prompt once.

    Args:
        network: The whole model.
        family: The model's.

    Returns:
        Whether it can; where it cannot, the log says why, and prompts are repeated for each answer.
    """
    if family is None:
        return False
    if family.blocks:
        logger.warning(
            "%s: prompts are repeated for each answer in scoring, since the tokens of a picture "
            "see each other in its decoder",
            type(network).__name__,
        )
        return False
    return share_prompts(network.get_decoder())


def pictures_of(per_image: Mapping[str, Tensor], family: Family) -> list[Picture]:
    """The single pictures of a prompt, in reading order; views, nothing is copied."""
    if not per_image:
        return []
    values = {key: value for key, value in per_image.items() if key != family.number}
    if family.nested:
        values = {key: value.transpose(0, 1) for key, value in values.items()}
    count = len(values[family.grid or "pixel_values"])
    sizes = dict.fromkeys(values, [1] * count)
    if family.grid is not None:
        sizes["pixel_values"] = values[family.grid].prod(-1).tolist()
    parts = {key: value.split(sizes[key]) for key, value in values.items()}
    pictures: list[Picture] = [{key: part[i] for key, part in parts.items()} for i in range(count)]
    if family.number is not None:
        # One of several is read in the same way however many they are.
        several = torch.tensor([min(count, 2)])
        pictures = [{**picture, family.number: several} for picture in pictures]
    return pictures
