"""Flux: a transformer on a rectified flow over packed latents; a T5, and a CLIP for one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.diffusion.families import LORA_TARGETS, Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.guidance import ClassifierFree, Embedded
from mmalign.diffusion.latents import packed, shifted
from mmalign.diffusion.options import Options
from mmalign.diffusion.packing import pack, token_ids, unpack
from mmalign.diffusion.schedulers import flow_process

# The pipeline's own defaults: tokens of the T5, and sides of a picture.
T5_LENGTH = 512
# What attention and feed-forward layers are called in the blocks that join text and picture.
SINGLE_BLOCKS = r"|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)"


def flux(pipe: Any, options: Options) -> Family:
    """Take a `FluxPipeline` or a `FluxKontextPipeline` apart.

    The guidance scale is read by the network where it has an embedding for it (Flux dev and
    Kontext), and classifier-free where it has none (Flux schnell, made for a scale of 1). The CLIP
    encoder, which gives one vector for the whole prompt, reads as many tokens as it can.

    Raises:
        ValueError: The options do not fit it.
    """
    config, length = pipe.transformer.config, options.text_length(T5_LENGTH)
    latents = packed(pipe, options, scaling=shifted)
    reader = Reader(tokenizer=pipe.tokenizer_2, limit=length, encoder="the T5 encoder")

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, pooled, _ = pipe.encode_prompt(
            texts, None, device=pipe.transformer.device, max_sequence_length=length
        )
        return {"states": states, "pooled": pooled}

    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens // 4, spacing="even"),
        latents=latents,
        embed=texts_by(
            pipe, options, parts=("text_encoder", "text_encoder_2"), readers=[reader], embed=embed
        ),
        text_size=int(config.joint_attention_dim),
        predict=predict,
        guidance=Embedded() if config.guidance_embeds else ClassifierFree(),
        edits=type(pipe).__name__ == "FluxKontextPipeline",
        lora_targets=LORA_TARGETS + SINGLE_BLOCKS,
        settings=f"{length} tokens of the T5",
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the transformer; a picture to edit stands behind the one that is drawn."""
    tokens, ids = pack(latent), token_ids(latent, first=0)
    own = tokens.shape[1]
    if "picture" in given:
        picture = given["picture"].to(latent.dtype)
        tokens = torch.cat([tokens, pack(picture)], dim=1)
        ids = torch.cat([ids, token_ids(picture, first=1)])
    states = given["states"].to(latent.dtype)
    found: Tensor = model(
        hidden_states=tokens,
        timestep=timestep / 1000,
        guidance=given.get("guidance"),
        pooled_projections=given["pooled"].to(latent.dtype),
        encoder_hidden_states=states,
        txt_ids=ids.new_zeros(states.shape[1], 3),
        img_ids=ids,
        return_dict=False,
    )[0]
    return unpack(found[:, :own], latent.shape[-2])
