"""Features of pictures, computed once for each distinct picture, and where they are read.

A picture is what the processor made of it: two pictures are one where those tensors are equal. Its
features serve every prompt and every answer that looks at it; what a frozen network computes is
kept for later batches.

Pictures go one by one through what is frozen, so that a kept feature does not depend, by as much as
a rounding, on the pictures it happened to be computed beside: a resumed run computes the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign import lora
from mmalign.fingerprints import content_key
from mmalign.vision.feature_cache import FeatureCache
from mmalign.vision.lvlm_inputs import image_inputs

logger = logging.getLogger(__name__)

Picture = Mapping[str, Tensor]
"""The per-image keys of one picture, each with its axis over pictures (or patches) in front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one family hand pictures to their language model.

    Attributes:
        grid: The key of the patch grid ``[n, 3]`` where ``pixel_values`` are rows of patches, and
            positions have several axes, which the model's `get_rope_index` counts; None where the
            pictures are stacked and positions are plain.
        projector: The module that is all there is between tower and language model, where the
            model has such a module outside its tower; it works token by token.
    """

    grid: str | None = None
    projector: str | None = None


FAMILIES: Mapping[str, Family] = {
    "llava": Family(projector="multi_modal_projector"),
    "llava_next": Family(),
    "qwen2_vl": Family(grid="image_grid_thw"),
    "qwen2_5_vl": Family(grid="image_grid_thw"),
}
"""By transformers' ``model_type``."""


def family_of(network: PreTrainedModel) -> Family | None:
    """The family of a model; None, and a line in the log, where its features cannot be shared."""
    family = FAMILIES.get(network.config.model_type)
    if family is None:
        logger.warning(
            "%s: pictures and prompts are read anew for each answer, since models of type %r are "
            "not known to share them (known: %s)",
            type(network).__name__, network.config.model_type, ", ".join(FAMILIES),
        )  # fmt: skip
    return family


def pictures_of(per_image: Mapping[str, Tensor], family: Family) -> list[Picture]:
    """The single pictures of a prompt, in reading order; views, nothing is copied."""
    if not per_image:
        return []
    count = len(per_image[family.grid or "pixel_values"])
    sizes = dict.fromkeys(per_image, [1] * count)
    if family.grid is not None:
        sizes["pixel_values"] = per_image[family.grid].prod(-1).tolist()
    parts = {key: value.split(sizes[key]) for key, value in per_image.items()}
    return [{key: part[i] for key, part in parts.items()} for i in range(count)]


def picture_keys(per_image: Mapping[str, Tensor], family: Family) -> list[str]:
    """What tells each picture of a prompt from other pictures: a hash of its tensors."""
    return [content_key(dict(picture)) for picture in pictures_of(per_image, family)]


def features_of(
    network: PreTrainedModel,
    per_image: Sequence[Mapping[str, Tensor]],
    keys: Sequence[Sequence[str]],
    *,
    family: Family,
    cache: FeatureCache,
) -> list[Tensor]:
    """What the language model reads in place of the image tokens of each prompt.

    Args:
        network: Of this family.
        per_image: The per-image keys of each prompt.
        keys: Of each prompt's pictures, from `picture_keys`.
        family: The network's.
        cache: Keeps what is frozen.

    Returns:
        ``[K_i, H]`` for each prompt: the features of its pictures, one after the other.
    """
    distinct: dict[str, Picture] = {}
    for one, names in zip(per_image, keys, strict=True):
        distinct |= zip(names, pictures_of(one, family), strict=True)
    found = _computed(network, distinct, family, cache) if distinct else {}
    empty = torch.empty(0, network.get_input_embeddings().embedding_dim, device=network.device)
    return [torch.cat([found[name] for name in names]) if names else empty for names in keys]


def embed(network: PreTrainedModel, ids: Tensor, features: Sequence[Tensor]) -> Tensor:
    """What the language model reads: embeddings of ids, features at the image tokens.

    Args:
        network: A model of one of the families.
        ids: ``[R, L]`` int64.
        features: ``[K_i, H]`` each, in reading order of the image tokens.

    Returns:
        ``[R, L, H]``.

    Raises:
        ValueError: There are more image tokens than features, or fewer.
    """
    embeddings: Tensor = network.get_input_embeddings()(ids)
    places = (ids == network.config.image_token_id).nonzero(as_tuple=True)
    given = sum(len(one) for one in features)
    if len(places[0]) != given:
        raise ValueError(
            f"the ids hold {len(places[0])} image tokens and the pictures have {given} features; "
            "the processor does not belong to this model"
        )
    if not given:
        return embeddings
    return embeddings.index_put(places, torch.cat(list(features)).to(embeddings))


def positions_of(
    network: PreTrainedModel,
    ids: Tensor,
    per_token: Mapping[str, Tensor],
    per_image: Mapping[str, Tensor],
    *,
    family: Family,
) -> Tensor:
    """Positions of a prompt's tokens; an answer goes on at the largest plus 1, on every axis.

    Args:
        network: Of this family.
        ids: ``[L]`` int64.
        per_token: Further keys of the tokens, ``[L]`` each.
        per_image: Keys of the prompt's pictures.
        family: The network's.

    Returns:
        ``[L]`` int64, or ``[3, L]`` (time, row, column).
    """
    if family.grid is None:
        return torch.arange(len(ids), device=ids.device)
    found: Tensor
    found, _ = network.base_model.get_rope_index(
        ids.unsqueeze(0),
        **{key: value.unsqueeze(0) for key, value in per_token.items()},
        **{family.grid: per_image.get(family.grid)},
    )
    return found[:, 0]


def _computed(
    network: PreTrainedModel,
    pictures: Mapping[str, Picture],
    family: Family,
    cache: FeatureCache,
) -> dict[str, Tensor]:
    """Features of every picture; the frozen part of the way is walked once for each."""
    base = network.base_model
    behind: nn.Module | None = None
    parts = [child for child in base.children() if child is not network.get_decoder()]
    loose = list(base.parameters(recurse=False))
    if family.projector is not None and not _frozen([base.get_submodule(family.projector)]):
        behind = base.get_submodule(family.projector)
        parts.remove(behind)
    if not _frozen(parts) or any(parameter.requires_grad for parameter in loose):
        return dict(zip(pictures, _read(network, list(pictures.values())), strict=True))
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    state = cache.state_of([*tensors, *loose])
    found = {}
    for name, picture in pictures.items():
        key = (name, _precision(network.device.type))
        kept = cache.get(state, key)
        if kept is None:
            with torch.no_grad(), _left_out(base, family.projector if behind else None):
                (kept,) = _read(network, [picture])
            cache.add(state, key, kept)
        found[name] = kept
    if behind is None:
        return found
    sizes = [len(value) for value in found.values()]
    return dict(zip(found, behind(torch.cat(list(found.values()))).split(sizes), strict=True))


def _read(network: PreTrainedModel, pictures: Sequence[Picture]) -> Sequence[Tensor]:
    """``[K, H]`` of each picture, through the model's own code, in one call."""
    inputs = {
        key: value.to(network.device, network.dtype if value.is_floating_point() else value.dtype)
        for key, value in image_inputs(pictures).items()
    }
    found: Sequence[Tensor] = network.get_image_features(**inputs).pooler_output
    assert len(found) == len(pictures)
    return found


def _frozen(parts: Sequence[nn.Module]) -> bool:
    """Whether nothing here is trained, and no LoRA makes the output depend on which one is on."""
    return not any(
        lora.names(part) or any(parameter.requires_grad for parameter in part.parameters())
        for part in parts
    )


@contextmanager
def _left_out(base: nn.Module, name: str | None) -> Iterator[None]:
    """Within, the named module hands on what it gets."""
    if name is None:
        yield
        return
    module = base.get_submodule(name)
    setattr(base, name, nn.Identity())
    try:
        yield
    finally:
        setattr(base, name, module)


def _precision(device: str) -> torch.dtype | None:
    """Features computed under autocast are other features."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
