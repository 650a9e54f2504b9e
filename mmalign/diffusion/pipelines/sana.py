"""Sana: a linear transformer on a rectified flow, a deep autoencoder, an instructed Gemma."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import patched
from mmalign.diffusion.options import Options
from mmalign.diffusion.pipelines.pixart_sigma import lowered
from mmalign.diffusion.schedulers import flow_process, use_euler

# The pipeline's own default.
GEMMA_LENGTH = 300


def sana(pipe: Any, options: Options) -> Family:
    """Take a `SanaPipeline` apart; its scheduler becomes the Euler one, with the same shift.

    The instruction in front of every prompt is the pipeline's own default; the text that stands
    for no prompt has none.

    Raises:
        ValueError: The options do not fit it.
    """
    config, length = pipe.transformer.config, options.text_length(GEMMA_LENGTH)
    instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"]
    words = "\n".join(instruction.default)
    reader = Reader(
        tokenizer=pipe.tokenizer,
        limit=len(pipe.tokenizer.encode(words)) + length - 2,
        encoder="the Gemma encoder, its instruction included",
        prepare=lambda text: words + lowered(text),
    )

    def embed(texts: list[str], told: list[str] | None = instruction.default) -> dict[str, Tensor]:
        states, mask, _, _ = pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=pipe.transformer.device,
            max_sequence_length=length,
            complex_human_instruction=told,
        )
        return {"states": states, "mask": mask}

    def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
        found: Tensor = model(
            latent,
            encoder_hidden_states=given["states"].to(latent.dtype),
            encoder_attention_mask=given["mask"],
            timestep=timestep * config.timestep_scale,
            return_dict=False,
        )[0]
        return found[:, : latent.shape[1]]

    use_euler(pipe)
    latents = patched(pipe, options)
    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens // config.patch_size**2),
        latents=latents,
        embed=texts_by(
            pipe, options, readers=[reader], embed=embed, empty=lambda: embed([""], None)
        ),
        text_size=int(config.caption_channels),
        predict=predict,
        settings=f"{length} tokens of the Gemma",
    )
