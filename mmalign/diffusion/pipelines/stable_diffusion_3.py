"""Stable Diffusion 3: a transformer on a rectified flow, two CLIP encoders and perhaps a T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import latents_of, shifted
from mmalign.diffusion.options import Options
from mmalign.diffusion.schedulers import flow_process

# The pipeline's own default.
T5_LENGTH = 256


def stable_diffusion_3(pipe: Any, options: Options) -> Family:
    """Take a `StableDiffusion3Pipeline` apart.

    ``max_sequence_length`` is of the T5 encoder, or of the zeros that the pipeline puts in the
    place of a missing one: 256 with a T5 and 0 without where it is not set.

    Raises:
        ValueError: The size does not fit, or the scheduler is of another kind.
    """
    config, factor = pipe.transformer.config, int(pipe.vae_scale_factor)
    natural = 0 if pipe.text_encoder_3 is None else T5_LENGTH
    length = options.text_length(natural)
    latents = latents_of(
        pipe,
        options,
        channels=int(config.in_channels),
        factor=factor,
        multiple=config.patch_size,
        natural=config.sample_size * factor,
        scaling=shifted,
    )

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, _, pooled, _ = pipe.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=pipe.transformer.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return {"states": states, "pooled": pooled}

    return Family(
        pipe=pipe,
        process=flow_process(pipe.scheduler, tokens=latents.tokens // config.patch_size**2),
        latents=latents,
        embed=texts_by(
            pipe,
            options,
            parts=("text_encoder", "text_encoder_2", "text_encoder_3"),
            readers=_readers(pipe, length),
            embed=embed,
            settings=f"T5 part {length}",
        ),
        text_size=int(config.joint_attention_dim),
        predict=predict,
        settings=f"{length} tokens of the T5",
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the transformer."""
    found: Tensor = model(
        hidden_states=latent,
        timestep=timestep,
        encoder_hidden_states=given["states"].to(latent.dtype),
        pooled_projections=given["pooled"].to(latent.dtype),
        return_dict=False,
    )[0]
    return found


def _readers(pipe: Any, length: int) -> list[Reader]:
    limit = int(pipe.tokenizer_max_length)
    found = [
        Reader(tokenizer=pipe.tokenizer, limit=limit, encoder="the first text encoder"),
        Reader(tokenizer=pipe.tokenizer_2, limit=limit, encoder="the second text encoder"),
    ]
    if pipe.text_encoder_3 is not None:
        t5 = Reader(tokenizer=pipe.tokenizer_3, limit=length, encoder="the T5 encoder")
        found.append(t5)
    return found
