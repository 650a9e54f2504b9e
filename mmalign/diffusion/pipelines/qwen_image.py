"""Qwen-Image: a transformer on a rectified flow over packed latents, told by a Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from mmalign.diffusion.families import LORA_TARGETS, Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.guidance import ClassifierFree, Embedded, renormalised
from mmalign.diffusion.latents import normalised, packed
from mmalign.diffusion.options import Options
from mmalign.diffusion.packing import pack, unpack
from mmalign.diffusion.schedulers import flow_process

# The pipeline's own default.
TEXT_LENGTH = 512
# A space is what stands for no prompt: the published way of guiding this model.
NO_PROMPT = " "


def qwen_image(pipe: Any, options: Options) -> Family:
    """Take a `QwenImagePipeline` apart.

    Raises:
        ValueError: The options do not fit it.
    """
    config, length = pipe.transformer.config, options.text_length(TEXT_LENGTH)
    latents = packed(pipe, options, scaling=normalised, volumes=True)

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, mask = pipe.encode_prompt(
            texts, device=pipe.transformer.device, max_sequence_length=length
        )
        mask = states.new_ones(states.shape[:2]) if mask is None else mask
        room = length - states.shape[1]
        # Every prompt is kept at one length; `predict` reads no more than the longest has.
        return {"states": pad(states, (0, 0, 0, room)), "mask": pad(mask, (0, room)).bool()}

    reader = Reader(
        tokenizer=pipe.tokenizer,
        limit=min(length, pipe.tokenizer_max_length) + pipe.prompt_template_encode_start_idx,
        encoder="the text encoder, its template included",
        prepare=pipe.prompt_template_encode.format,
    )
    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens // 4, spacing="even"),
        latents=latents,
        embed=texts_by(
            pipe, options, readers=[reader], embed=embed, empty=lambda: embed([NO_PROMPT])
        ),
        text_size=int(config.joint_attention_dim),
        predict=predict,
        guidance=Embedded() if config.guidance_embeds else ClassifierFree(combine=renormalised),
        lora_targets=LORA_TARGETS + r"|.*(img_mlp|txt_mlp)\.net\.(0\.proj|2)",
        settings=f"{length} tokens of text",
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the transformer."""
    longest = int(given["mask"].sum(1).max())
    shape = (1, latent.shape[-2] // 2, latent.shape[-1] // 2)
    found: Tensor = model(
        hidden_states=pack(latent),
        timestep=timestep / 1000,
        guidance=given.get("guidance"),
        encoder_hidden_states=given["states"][:, :longest].to(latent.dtype),
        encoder_hidden_states_mask=given["mask"][:, :longest],
        img_shapes=[[shape]] * len(latent),
        return_dict=False,
    )[0]
    return unpack(found, latent.shape[-2])
