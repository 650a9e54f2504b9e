"""Small Stable Diffusion pipelines of random weights, and pictures, for cells with images.

Sizes are chosen so that VAE and text encoder have the share of a Diffusion-DPO step that they have
with Stable Diffusion 1.5 at 512 pixels: 31 % of its arithmetic with a LoRA, 26 % without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import language
from benchmarks.harness import Settings

VOCABULARY = 1000
TOKENS = 77
LATENT = {"side": 32, "channels": 4}
MODEL = {
    "side": 32, "text": 192, "text_layers": 4, "unet": [128, 256, 256], "vae": [96, 160, 224],
    "groups": 32, "transformer": [6, 12, 32],
}  # fmt: skip
QUICK = {
    "side": 8, "text": 32, "text_layers": 1, "unet": [8, 16, 16], "vae": [8, 8, 16], "groups": 4,
    "transformer": [1, 2, 16],
}  # fmt: skip
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
RANK = 8


def pixels(settings: Settings) -> int:
    """Side of a picture: each level of the VAE but the last halves it."""
    return int(settings["side"]) * 2 ** (len(settings["vae"]) - 1)


def vae(settings: Settings) -> AutoencoderKL:
    """Three levels, so that a picture has four times the side of its latent."""
    widths = tuple(settings["vae"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT["channels"],
        norm_num_groups=settings["groups"],
        sample_size=pixels(settings),
    )


def unet(settings: Settings) -> UNet2DConditionModel:
    """Two levels with attention to the text and one without."""
    return UNet2DConditionModel(
        sample_size=settings["side"],
        in_channels=LATENT["channels"],
        out_channels=LATENT["channels"],
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=tuple(settings["unet"]),
        layers_per_block=1,
        cross_attention_dim=settings["text"],
        attention_head_dim=8,
        norm_num_groups=settings["groups"],
    )


def text_config(settings: Settings) -> CLIPTextConfig:
    """CLIP's text encoder."""
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=settings["text"],
        intermediate_size=4 * settings["text"],
        projection_dim=settings["text"],
        num_hidden_layers=settings["text_layers"],
        num_attention_heads=settings["text"] // 32,
        max_position_embeddings=TOKENS,
        bos_token_id=language.EOS,
        eos_token_id=language.EOS,
        pad_token_id=language.PAD,
    )


def tokenizer() -> Any:
    """Words that are their own ids, cut at the length that CLIP reads."""
    found = language.word_tokenizer(VOCABULARY)
    found.model_max_length = TOKENS
    return found


def diffusion(settings: Settings) -> StableDiffusionPipeline:
    """Stable Diffusion, DDIM, predicting noise."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(settings),
        text_encoder=CLIPTextModel(text_config(settings)),
        tokenizer=tokenizer(),
        unet=unet(settings),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flow(settings: Settings) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 without its T5."""
    torch.manual_seed(0)
    layers, heads, width = settings["transformer"]
    encoders = [CLIPTextModelWithProjection(text_config(settings)) for _ in range(2)]
    transformer = SD3Transformer2DModel(
        sample_size=settings["side"], patch_size=2, in_channels=LATENT["channels"],
        out_channels=LATENT["channels"], num_layers=layers, attention_head_dim=width,
        num_attention_heads=heads, caption_projection_dim=heads * width,
        joint_attention_dim=2 * settings["text"], pooled_projection_dim=2 * settings["text"],
        pos_embed_max_size=settings["side"],
    )  # fmt: skip
    for parameter in transformer.parameters():
        # As it is initialised it answers 0 whatever it is asked.
        torch.nn.init.normal_(parameter, std=0.06)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae(settings), text_encoder=encoders[0], tokenizer=tokenizer(),
        text_encoder_2=encoders[1], tokenizer_2=tokenizer(), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def save_pairs(settings: Settings, folder: Path) -> None:
    """Two random pictures for each of ``batch`` prompts: one batch, which is an epoch."""
    draw = np.random.default_rng(1)
    words = torch.Generator().manual_seed(1)
    side, rows = pixels(settings), []
    for number in range(settings["batch"]):
        names = [f"{number}-{which}.png" for which in ("chosen", "rejected")]
        for name in names:
            values = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / name)
        ids = torch.randint(2, VOCABULARY, (12,), generator=words).tolist()
        rows.append(
            {
                "prompt": language.text_of(ids),
                "chosen_images": names[:1],
                "rejected_images": names[1:],
            }
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_pixels(path: Path) -> torch.Tensor:
    """A picture as ``[3, H, W]`` in [-1, 1]."""
    values = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    return values.permute(2, 0, 1).float() / 127.5 - 1


def input_ids(words: Any, texts: list[str]) -> torch.Tensor:
    """``[B, 77]`` token ids, padded."""
    found: torch.Tensor = words(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return found
