"""Stable Diffusion 3: a transformer on a rectified flow, two CLIP encoders and perhaps a T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, latent_side, posteriors_of, settings_of
from mmalign.diffusion.frozen import Frozen, Reader, Texts
from mmalign.diffusion.processes import Flow

# The pipeline's own default.
T5_LENGTH = 256


class StableDiffusion3:
    """See `mmalign.diffusion.families.Family`.

    Args:
        pipe: The pipeline.
        size: Side of a picture in pixels; None for the network's own.
        max_sequence_length: Tokens of the T5 encoder, or of the zeros that the pipeline puts in the
            place of a missing one; None for 256 with a T5 and 0 without.
        cache: Folder in which answers of VAE and text encoders are kept, or None.
    """

    network_name = "transformer"

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        size: int | None = None,
        max_sequence_length: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.pipe: Any = pipe
        self.process = flow_process(pipe.scheduler)
        network = self.pipe.transformer.config
        factor = int(self.pipe.vae_scale_factor)
        side = latent_side(
            size, sample_size=network.sample_size, factor=factor, multiple=network.patch_size
        )
        self.latent_shape = (int(network.in_channels), side, side)
        self.size = (side * factor, side * factor)
        self.text_size = int(network.joint_attention_dim)
        natural = 0 if self.pipe.text_encoder_3 is None else T5_LENGTH
        self.t5_length = natural if max_sequence_length is None else max_sequence_length
        self.posteriors = posteriors_of(pipe, network="transformer", cache=cache)
        readers = self._readers()
        encoders = Frozen(
            pipe,
            network="transformer",
            parts=("text_encoder", "text_encoder_2", "text_encoder_3"),
            settings="; ".join([r.describe() for r in readers] + [f"T5 part {self.t5_length}"]),
            folder=cache,
        )
        self.embed = Texts(encoders, readers=readers, embed=self._embed)

    def describe(self) -> str:
        """Scheduler, latent shape and length of the T5's part."""
        config = settings_of(self.pipe.scheduler)
        return f"StableDiffusion3({config}, {self.latent_shape}, {self.t5_length})"

    def _readers(self) -> list[Reader]:
        pipe = self.pipe
        limit = int(pipe.tokenizer_max_length)
        found = [
            Reader(tokenizer=pipe.tokenizer, limit=limit, encoder="the first text encoder"),
            Reader(tokenizer=pipe.tokenizer_2, limit=limit, encoder="the second text encoder"),
        ]
        if pipe.text_encoder_3 is not None:
            t5 = Reader(tokenizer=pipe.tokenizer_3, limit=self.t5_length, encoder="the T5 encoder")
            found.append(t5)
        return found

    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        pipe = self.pipe
        states, _, pooled, _ = pipe.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            device=pipe.transformer.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.t5_length,
        )
        return {"states": states, "pooled": pooled}

    def predict(
        self, model: nn.Module, latent: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """One call of the transformer."""
        found: Tensor = model(
            hidden_states=latent,
            timestep=timestep,
            encoder_hidden_states=conditioning["states"].to(latent.dtype),
            pooled_projections=conditioning["pooled"].to(latent.dtype),
            return_dict=False,
        )[0]
        return found

    def to_latents(self, posterior: Tensor) -> Tensor:
        """Shifted, then times the scaling factor."""
        config = self.pipe.vae.config
        return (posterior - float(config.shift_factor or 0.0)) * float(config.scaling_factor)

    def from_latents(self, latent: Tensor) -> Tensor:
        """Divided by the scaling factor, then shifted."""
        config = self.pipe.vae.config
        return latent / float(config.scaling_factor) + float(config.shift_factor or 0.0)

    def save_lora(self, directory: str, tensors: Mapping[str, Tensor], config: Any) -> None:
        """`StableDiffusion3Pipeline.load_lora_weights` reads it, scale included."""
        StableDiffusion3Pipeline.save_lora_weights(
            directory,
            transformer_lora_layers=dict(tensors),
            transformer_lora_adapter_metadata=config,
        )


def flow_process(scheduler: Any) -> Flow:
    """The process of a flow-matching Euler scheduler.

    Raises:
        ValueError: Another scheduler, or a setting under which its steps are not fixed levels.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"a flow needs FlowMatchEulerDiscreteScheduler; this pipeline has "
            f"{type(scheduler).__name__}"
        )
    config = scheduler.config
    if config.use_dynamic_shifting or config.invert_sigmas or config.stochastic_sampling:
        raise ValueError(
            "schedulers with use_dynamic_shifting, invert_sigmas or stochastic_sampling are not "
            "supported; switch them off in the scheduler's config"
        )
    return Flow(scheduler=scheduler, num_train_timesteps=int(config.num_train_timesteps))
