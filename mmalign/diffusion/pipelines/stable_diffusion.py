"""Stable Diffusion 1 and 2: a UNet that predicts noise or v, one CLIP text encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import Latents, Scaling, latents_of, scaled
from mmalign.diffusion.options import Options
from mmalign.diffusion.schedulers import use_ddim


def stable_diffusion(pipe: Any, options: Options) -> Family:
    """Take a `StableDiffusionPipeline` apart; its scheduler becomes DDIM.

    Raises:
        ValueError: The size does not fit, or the length of its text encoder, which is fixed, is
            asked for.
    """
    no_text_length(options)
    limit = pipe.tokenizer.model_max_length
    reader = Reader(tokenizer=pipe.tokenizer, limit=limit, encoder="the text encoder")

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, _ = pipe.encode_prompt(texts, pipe.unet.device, 1, False)
        return {"states": states}

    return Family(
        pipe=pipe,
        network_name="unet",
        process=use_ddim(pipe),
        latents=unet_latents(pipe, options),
        embed=texts_by(pipe, options, network="unet", readers=[reader], embed=embed),
        text_size=int(pipe.unet.config.cross_attention_dim),
        predict=predict,
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the UNet."""
    states = given["states"].to(latent.dtype)
    found: Tensor = model(latent, timestep, encoder_hidden_states=states, return_dict=False)[0]
    return found


def unet_latents(pipe: Any, options: Options, *, scaling: Scaling = scaled) -> Latents:
    """Latents of a pipeline with a UNet, whose every level but the last halves them."""
    config, factor = pipe.unet.config, int(pipe.vae_scale_factor)
    return latents_of(
        pipe,
        options,
        network="unet",
        channels=int(config.in_channels),
        factor=factor,
        multiple=2 ** (len(config.block_out_channels) - 1),
        natural=config.sample_size * factor,
        scaling=scaling,
    )


def no_text_length(options: Options) -> None:
    """Refuse a length for text encoders whose length is fixed.

    Raises:
        ValueError: It is given.
    """
    if options.max_sequence_length is not None:
        raise ValueError(
            "max_sequence_length belongs to pipelines whose text encoder leaves it open (T5, "
            "Gemma, Qwen); leave it unset"
        )
