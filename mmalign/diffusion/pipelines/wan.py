"""Wan 2.1: clips by a transformer on a rectified flow, one UMT5 text encoder."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn

from mmalign.diffusion.families import LORA_TARGETS, Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import latents_of, normalised
from mmalign.diffusion.options import Options
from mmalign.diffusion.schedulers import flow_process, use_euler

# The pipeline's own defaults: tokens of the UMT5; height, width and number of frames.
T5_LENGTH = 512
SIZE = (480, 832)
FRAMES = 81


def wan(pipe: Any, options: Options) -> Family:
    """Take a `WanPipeline` apart; its scheduler becomes the Euler one, with the same shift.

    Raises:
        ValueError: The options do not fit it, or it is one of Wan 2.2, which has two networks or a
            timestep for each token.
    """
    if pipe.config.boundary_ratio is not None or pipe.config.expand_timesteps:
        raise ValueError(
            "pipelines of Wan 2.2 (two networks, or a timestep for each token) are not supported; "
            "use one of Wan 2.1"
        )
    config, length = pipe.transformer.config, options.text_length(T5_LENGTH)

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, _ = pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            device=pipe.transformer.device,
        )
        return {"states": states}

    reader = Reader(
        tokenizer=pipe.tokenizer, limit=length, encoder="the UMT5 encoder", prepare=prompt_clean
    )
    use_euler(pipe)
    latents = latents_of(
        pipe,
        options,
        channels=int(config.in_channels),
        factor=int(pipe.vae_scale_factor_spatial),
        multiple=config.patch_size[1],
        natural=SIZE,
        scaling=normalised,
        frames=(FRAMES, int(pipe.vae_scale_factor_temporal)),
        volumes=True,
    )
    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens // config.patch_size[1] ** 2),
        latents=latents,
        embed=texts_by(pipe, options, readers=[reader], embed=embed),
        text_size=int(config.text_dim),
        predict=predict,
        lora_targets=LORA_TARGETS + r"|.*ffn\.net\.(0\.proj|2)",
        settings=f"{length} tokens of the UMT5",
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the transformer."""
    found: Tensor = model(
        hidden_states=latent,
        timestep=timestep,
        encoder_hidden_states=given["states"].to(latent.dtype),
        return_dict=False,
    )[0]
    return found
