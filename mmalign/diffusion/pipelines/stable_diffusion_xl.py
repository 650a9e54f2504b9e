"""Stable Diffusion XL: a UNet that predicts noise or v, two CLIP text encoders, size ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import normalised
from mmalign.diffusion.options import Options
from mmalign.diffusion.pipelines.stable_diffusion import no_text_length, unet_latents
from mmalign.diffusion.schedulers import use_ddim


def stable_diffusion_xl(pipe: Any, options: Options) -> Family:
    """Take a `StableDiffusionXLPipeline` apart; its scheduler becomes DDIM.

    Raises:
        ValueError: The options do not fit it.
    """
    no_text_length(options)
    latents = unet_latents(pipe, options, scaling=normalised)
    factor = latents.size[0] // latents.shape[-2]
    readers = [
        Reader(tokenizer=t, limit=t.model_max_length, encoder=f"the {which} text encoder")
        for t, which in ((pipe.tokenizer, "first"), (pipe.tokenizer_2, "second"))
    ]

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = pipe.encode_prompt(
            texts, device=pipe.unet.device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def zeros() -> dict[str, Tensor]:
        return {name: torch.zeros_like(value) for name, value in embed([""]).items()}

    def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
        height, width = (side * factor for side in latent.shape[-2:])
        # Original size, crop and target size, as the pipeline gives them where nothing is said.
        size_ids = torch.tensor([height, width, 0, 0, height, width])
        added = {
            "text_embeds": given["pooled"].to(latent.dtype),
            "time_ids": size_ids.to(latent).expand(len(latent), -1),
        }
        found: Tensor = model(
            latent,
            timestep,
            encoder_hidden_states=given["states"].to(latent.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return found

    return Family(
        pipe=pipe,
        network_name="unet",
        process=use_ddim(pipe),
        latents=latents,
        embed=texts_by(
            pipe,
            options,
            network="unet",
            parts=("text_encoder", "text_encoder_2"),
            readers=readers,
            embed=embed,
            empty=zeros if pipe.config.force_zeros_for_empty_prompt else None,
        ),
        text_size=int(pipe.unet.config.cross_attention_dim),
        predict=predict,
    )
