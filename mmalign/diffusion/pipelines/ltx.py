"""LTX-Video: clips by a transformer on a rectified flow over single elements, one T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import latents_of
from mmalign.diffusion.options import Options
from mmalign.diffusion.schedulers import flow_process

# The pipeline's own defaults: tokens of the T5; height, width, number of frames; frames a second.
T5_LENGTH = 128
SIZE = (512, 704)
FRAMES = 161
FRAME_RATE = 25


def ltx(pipe: Any, options: Options) -> Family:
    """Take a `LTXPipeline` apart.

    Raises:
        ValueError: The options do not fit it; or it is of a later version, whose VAE is told a
            timestep, or its transformer packs several elements into one.
    """
    vae, config, length = pipe.vae, pipe.transformer.config, options.text_length(T5_LENGTH)
    if vae.config.timestep_conditioning or (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError(
            "pipelines of LTX-Video whose VAE is told a timestep (0.9.1 and later), or whose "
            "transformer packs elements, are not supported; use one of LTX-Video 0.9.0"
        )
    mean, deviation = vae.latents_mean.float(), vae.latents_std.float()
    factors = tuple((vae.config.scaling_factor / deviation).tolist())
    seconds, pixels = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    scale = (seconds / FRAME_RATE, pixels, pixels)

    def embed(texts: list[str]) -> dict[str, Tensor]:
        device = pipe.transformer.device
        states, mask, _, _ = pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length, device=device
        )
        return {"states": states, "mask": mask}

    def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
        frames, height, width = latent.shape[2:]
        found: Tensor = model(
            hidden_states=latent.flatten(2).mT,
            encoder_hidden_states=given["states"].to(latent.dtype),
            timestep=timestep,
            encoder_attention_mask=given["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=scale,
            return_dict=False,
        )[0]
        return found.mT.unflatten(2, latent.shape[2:])

    reader = Reader(tokenizer=pipe.tokenizer, limit=length, encoder="the T5 encoder")
    latents = latents_of(
        pipe, options, channels=int(config.in_channels), factor=pixels, multiple=1, natural=SIZE,
        frames=(FRAMES, seconds), volumes=True, scaling=lambda _: (tuple(mean.tolist()), factors),
    )  # fmt: skip
    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens, spacing="even"),
        latents=latents,
        embed=texts_by(pipe, options, readers=[reader], embed=embed),
        text_size=int(config.caption_channels),
        predict=predict,
        settings=f"{length} tokens of the T5",
    )
