"""PixArt-Sigma: a transformer that predicts noise and its variance, one T5 text encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.frozen import Reader, texts_by
from mmalign.diffusion.latents import patched
from mmalign.diffusion.options import Options
from mmalign.diffusion.schedulers import use_ddim

# The pipeline's own default.
T5_LENGTH = 300


def pixart_sigma(pipe: Any, options: Options) -> Family:
    """Take a `PixArtSigmaPipeline` apart; its scheduler becomes DDIM.

    Raises:
        ValueError: The options do not fit it.
    """
    length = options.text_length(T5_LENGTH)

    def embed(texts: list[str]) -> dict[str, Tensor]:
        states, mask, _, _ = pipe.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=pipe.transformer.device,
            max_sequence_length=length,
        )
        return {"states": states, "mask": mask}

    reader = Reader(
        tokenizer=pipe.tokenizer, limit=length, encoder="the T5 encoder", prepare=lowered
    )
    return Family(
        pipe=pipe,
        process=use_ddim(pipe),
        latents=patched(pipe, options),
        embed=texts_by(pipe, options, readers=[reader], embed=embed),
        text_size=int(pipe.transformer.config.caption_channels),
        predict=predict,
        settings=f"{length} tokens of the T5",
    )


def predict(model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning) -> Tensor:
    """One call of the transformer; what it says about variances, the second half, is left out."""
    found: Tensor = model(
        latent,
        encoder_hidden_states=given["states"].to(latent.dtype),
        encoder_attention_mask=given["mask"],
        timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return found[:, : latent.shape[1]]


def lowered(text: str) -> str:
    """What the pipeline does to a prompt first."""
    return text.lower().strip()
