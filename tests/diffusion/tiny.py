"""Random pipelines of the real classes, small enough for unit tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mmalign import rng
from mmalign.tinyworld.pretrain.reading import prompt_tokenizer

WIDTH = 16
MAX_TOKENS = 18


def vae() -> AutoencoderKL:
    """16 x 16 pixels to 4 x 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )


def text_config() -> CLIPTextConfig:
    """One head, two layers."""
    tokenizer = prompt_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=MAX_TOKENS,
        eos_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def diffusion(*, prediction_type: str = "epsilon", alpha_to_one: bool = False) -> object:
    """A Stable Diffusion pipeline with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=alpha_to_one,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=prompt_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow(*, shift: float = 1.0) -> object:
    """A Stable Diffusion 3 pipeline with random weights and without T5."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    # A fresh transformer answers almost 0, which would hide what depends on the prompt.
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae(),
        text_encoder=CLIPTextModelWithProjection(text_config()),
        tokenizer=prompt_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer_2=prompt_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def save(pipe: object, folder: Path) -> str:
    """Write a pipeline; returns its folder as text."""
    pipe.save_pretrained(str(folder))  # type: ignore[attr-defined]
    return str(folder)


def generators(count: int, *key: int | str) -> list[torch.Generator]:
    """One generator a prompt, named by its position."""
    return [rng.generator("test", *key, i) for i in range(count)]
