"""Stable Diffusion 3: a transformer on a rectified flow, two CLIP encoders and perhaps a T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn

from mmalign.diffusion.families import Conditioning, PromptCache, check_length, latent_side, place
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
    """

    network_name = "transformer"

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        size: int | None = None,
        max_sequence_length: int | None = None,
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
        self.embed = PromptCache(self._embed)

    def describe(self) -> str:
        """Scheduler, latent shape and length of the T5's part."""
        config = dict(self.pipe.scheduler.config)
        return f"StableDiffusion3({config}, {self.latent_shape}, {self.t5_length})"

    def _embed(self, texts: Sequence[str]) -> dict[str, Tensor]:
        pipe = self.pipe
        limit = pipe.tokenizer_max_length
        check_length(pipe.tokenizer, texts, limit=limit, encoder="the first text encoder")
        check_length(pipe.tokenizer_2, texts, limit=limit, encoder="the second text encoder")
        if pipe.text_encoder_3 is not None:
            check_length(pipe.tokenizer_3, texts, limit=self.t5_length, encoder="the T5 encoder")
        device = pipe.transformer.device
        place(pipe, device)
        states, _, pooled, _ = pipe.encode_prompt(
            prompt=list(texts),
            prompt_2=None,
            prompt_3=None,
            device=device,
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
