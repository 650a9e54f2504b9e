"""Stable Diffusion 1 and 2: a UNet that predicts noise or v, one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, latent_side, posteriors_of, settings_of
from mmalign.diffusion.frozen import Frozen, Reader, Texts
from mmalign.diffusion.processes import Diffusion


class StableDiffusion:
    """See `mmalign.diffusion.families.Family`.

    Args:
        pipe: The pipeline; its scheduler is replaced by DDIM with the same noise schedule, which
            is the one whose moves have a density.
        size: Side of a picture in pixels; None for the network's own.
        max_sequence_length: Must be None: the limit is the text encoder's.
        cache: Folder in which answers of VAE and text encoder are kept, or None.
    """

    network_name = "unet"

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        size: int | None = None,
        max_sequence_length: int | None = None,
        cache: str | None = None,
    ) -> None:
        if max_sequence_length is not None:
            raise ValueError(
                "max_sequence_length belongs to pipelines with a T5 encoder; leave it unset"
            )
        self.pipe: Any = pipe
        self.pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        self.process = diffusion_process(self.pipe.scheduler)
        network = self.pipe.unet.config
        factor = int(self.pipe.vae_scale_factor)
        halvings = 2 ** (len(network.block_out_channels) - 1)
        side = latent_side(size, sample_size=network.sample_size, factor=factor, multiple=halvings)
        self.latent_shape = (int(network.in_channels), side, side)
        self.size = (side * factor, side * factor)
        self.text_size = int(network.cross_attention_dim)
        self.posteriors = posteriors_of(pipe, network="unet", cache=cache)
        tokenizer = self.pipe.tokenizer
        reader = Reader(
            tokenizer=tokenizer, limit=tokenizer.model_max_length, encoder="the text encoder"
        )
        encoder = Frozen(
            pipe, network="unet", parts=("text_encoder",), settings=reader.describe(), folder=cache
        )
        self.embed = Texts(encoder, readers=(reader,), embed=self._embed)

    def describe(self) -> str:
        """Scheduler and latent shape."""
        return f"StableDiffusion({settings_of(self.pipe.scheduler)}, {self.latent_shape})"

    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        states, _ = self.pipe.encode_prompt(texts, self.pipe.unet.device, 1, False)
        return {"states": states}

    def predict(
        self, model: nn.Module, latent: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """One call of the UNet."""
        states = conditioning["states"].to(latent.dtype)
        found: Tensor = model(latent, timestep, encoder_hidden_states=states, return_dict=False)[0]
        return found

    def to_latents(self, posterior: Tensor) -> Tensor:
        """Times the scaling factor."""
        return posterior * float(self.pipe.vae.config.scaling_factor)

    def from_latents(self, latent: Tensor) -> Tensor:
        """Divided by the scaling factor."""
        return latent / float(self.pipe.vae.config.scaling_factor)

    def save_lora(self, directory: str, tensors: Mapping[str, Tensor], config: Any) -> None:
        """`StableDiffusionPipeline.load_lora_weights` reads it, scale included."""
        StableDiffusionPipeline.save_lora_weights(
            directory, unet_lora_layers=dict(tensors), unet_lora_adapter_metadata=config
        )


def diffusion_process(scheduler: DDIMScheduler) -> Diffusion:
    """The process of a DDIM scheduler.

    Raises:
        ValueError: The scheduler clips predictions, or starts from a level without any signal
            while the network predicts noise: neither has a move with a density.
    """
    config = scheduler.config
    if config.clip_sample or config.thresholding:
        raise ValueError("the scheduler clips the latent; switch clip_sample and thresholding off")
    alphas = scheduler.alphas_cumprod.float().cpu()
    if config.prediction_type == "epsilon" and float(alphas.min()) <= 0:
        raise ValueError(
            "the scheduler's last level holds no signal (rescale_betas_zero_snr), from which a "
            "network that predicts noise cannot start; use prediction_type v_prediction"
        )
    return Diffusion(
        scheduler=scheduler,
        alphas=alphas,
        final_alpha=float(torch.as_tensor(scheduler.final_alpha_cumprod)),
        prediction_type=config.prediction_type,
    )
