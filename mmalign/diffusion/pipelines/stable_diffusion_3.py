"""Stable Diffusion 3: a transformer on a rectified flow, two CLIP encoders and perhaps a T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import patched, shifted
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
    config, has_t5 = pipe.transformer.config, pipe.text_encoder_3 is not None
    length = options.text_length(T5_LENGTH if has_t5 else 0)
    clip = int(pipe.tokenizer_max_length)
    readers = [
        Reader(tokenizer=pipe.tokenizer, limit=clip, encoder="the first text encoder"),
        Reader(tokenizer=pipe.tokenizer_2, limit=clip, encoder="the second text encoder"),
        Reader(tokenizer=pipe.tokenizer_3, limit=length, encoder="the T5 encoder"),
    ]
    latents = patched(pipe, options, scaling=shifted)

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
            readers=readers if has_t5 else readers[:2],
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
