"""Features of pictures, computed once for each distinct picture, and where they are read.

A picture is what the processor made of it: two pictures are one where those tensors are equal. Its
features serve every prompt and every answer that looks at it; what a frozen network computes is
kept for later batches.

Pictures go one by one through what is frozen, so that a kept feature does not depend, by as much as
a rounding, on the pictures it happened to be computed beside: a resumed run computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign import lora
from mmalign.fingerprints import code_versions, content_key, precision_key
from mmalign.vision.families import ENCODED, Family, Picture, pictures_of
from mmalign.vision.feature_cache import FeatureCache
from mmalign.vision.lvlm_inputs import image_inputs


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
        ``[K_i, W]`` for each prompt: the features of its pictures, one after the other. W is the
        decoder's width H, or a multiple of it where the family is read in several layers.
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
        features: ``[K_i, W]`` each, in reading order of the image tokens; their first H entries
            are read.

    Returns:
        ``[R, L, H]``.

    Raises:
        ValueError: There are more image tokens than features, or fewer.
    """
    images = ids == network.config.image_token_id
    # A place mark may lie outside the vocabulary.
    embeddings: Tensor = network.get_input_embeddings()(ids.masked_fill(images, 0))
    found = [one for one in features if len(one)]
    places, given = int(images.sum()), sum(len(one) for one in found)
    if places != given:
        raise ValueError(
            f"the ids hold {places} image tokens and the pictures have {given} features; "
            "the processor does not belong to this model"
        )
    if not given:
        return embeddings
    values = torch.cat(found)[:, : embeddings.shape[-1]].to(embeddings)
    return embeddings.index_put(images.nonzero(as_tuple=True), values)


def decoder_inputs(
    network: PreTrainedModel, ids: Tensor, features: Sequence[Tensor], *, family: Family
) -> dict[str, Any]:
    """What the decoder takes beside masks and positions; arguments and errors as `embed`."""
    inputs: dict[str, Any] = {"inputs_embeds": embed(network, ids, features)}
    found = [one for one in features if len(one)]
    if family.deepstack and found:
        _, *later = torch.cat(found).split(inputs["inputs_embeds"].shape[-1], -1)
        inputs["visual_pos_masks"] = ids == network.config.image_token_id
        inputs["deepstack_visual_embeds"] = later
    return inputs


def model_inputs(
    network: PreTrainedModel, ids: Tensor, features: Sequence[Tensor], *, family: Family
) -> dict[str, Any]:
    """What the whole model takes beside masks and positions; arguments and errors as `embed`."""
    embeddings = embed(network, ids, features)
    found = [one for one in features if len(one)]
    if not (family.deepstack and found):
        return {"inputs_embeds": embeddings}
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    first, *later = torch.cat(found).split(embeddings.shape[-1], -1)
    encoded = BaseModelOutputWithDeepstackFeatures(
        pooler_output=[first], deepstack_features=[[one] for one in later]
    )
    return {"input_ids": ids, ENCODED: {"image": encoded}}


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
    behind = None if family.projector is None else base.get_submodule(family.projector)
    if behind is not None and _frozen([behind], behind=None):
        behind = None
    parts = [child for child in base.children() if child not in (network.get_decoder(), behind)]
    loose = list(base.parameters(recurse=False))
    if not _frozen(parts, behind=behind) or any(parameter.requires_grad for parameter in loose):
        return dict(zip(pictures, _read(network, list(pictures.values()), family), strict=True))
    after = set() if behind is None else {id(t) for t in (*behind.parameters(), *behind.buffers())}
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    left_out = family.projector if behind is not None else None
    state = cache.state_of(
        [t for t in (*tensors, *loose) if id(t) not in after],
        about=lambda: _about(network, left_out),
    )
    found = {}
    for name, picture in pictures.items():
        key = name + precision_key(network.device.type)
        kept = cache.get(state, key, network.device)
        if kept is None:
            with torch.no_grad(), _left_out(base, left_out):
                (kept,) = _read(network, [picture], family)
            cache.add(state, key, kept)
        found[name] = kept
    if behind is None:
        return found
    sizes = [len(value) for value in found.values()]
    return dict(zip(found, behind(torch.cat(list(found.values()))).split(sizes), strict=True))


def _about(network: PreTrainedModel, left_out: str | None) -> dict[str, str]:
    """What features depend on apart from pictures and weights: see `mmalign.fingerprints`."""
    config = network.config.to_dict()
    # Where the weights came from, and which network reads the features, make no difference.
    for name in ("_name_or_path", "text_config", "transformers_version"):
        config.pop(name, None)
    return {
        "network": type(network).__name__,
        "config": content_key(config),
        "attention": " ".join(
            f"{child.config._attn_implementation}"
            for child in network.base_model.children()
            if isinstance(child, PreTrainedModel) and child is not network.get_decoder()
        ),
        "without": left_out or "nothing",
        "code": code_versions(),
    }


def _read(
    network: PreTrainedModel, pictures: Sequence[Picture], family: Family
) -> Sequence[Tensor]:
    """``[K, W]`` of each picture, through the model's own code, in one call where that is one."""
    if family.number is not None and len(pictures) > 1:
        return [_read(network, [picture], family)[0] for picture in pictures]
    inputs = {
        key: value.to(network.device, network.dtype if value.is_floating_point() else value.dtype)
        for key, value in image_inputs(pictures).items()
    }
    output = network.get_image_features(**inputs)
    found: Sequence[Tensor] = output.pooler_output
    assert len(found) == len(pictures)
    if not family.deepstack:
        return found
    return [torch.cat(every, -1) for every in zip(found, *output.deepstack_features, strict=True)]


def _frozen(parts: Sequence[nn.Module], *, behind: nn.Module | None) -> bool:
    """Whether nothing here is trained, and no LoRA makes the output depend on which one is on.

    What ``behind``, a module within, holds does not count.
    """
    after = set() if behind is None else {id(parameter) for parameter in behind.parameters()}
    return not any(
        lora.names(part) or any(p.requires_grad for p in part.parameters() if id(p) not in after)
        for part in parts
    )


@contextmanager
def _left_out(base: nn.Module, name: str | None) -> Iterator[None]:
    """Within, the named module hands on what it gets."""
    if name is None:
        yield
        return
    above, _, leaf = name.rpartition(".")
    parent, module = base.get_submodule(above), base.get_submodule(name)
    setattr(parent, leaf, nn.Identity())
    try:
        yield
    finally:
        setattr(parent, leaf, module)
