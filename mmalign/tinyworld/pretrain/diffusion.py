"""The tiny Stable Diffusion: a UNet on 4 x 8 x 8 latents that predicts v."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mmalign.rng import generator
from mmalign.tinyworld.pretrain.common import fit, num_parameters, prepare, write_card
from mmalign.tinyworld.pretrain.drawing import (
    CORRUPTION,
    DEMONSTRATIONS,
    demonstrations,
    load_vae,
    save_pipeline,
    sweep,
)
from mmalign.tinyworld.pretrain.reading import (
    MAX_TOKENS,
    TEXT_SIZE,
    prompt_tokenizer,
    train_tower,
)

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

SEED = 12
SECONDS = 800.0
STEPS = 6000
BATCH = 64
SETTINGS = ((10, 1.0), (10, 1.5), (10, 2.0), (20, 1.5))


def build_unet() -> UNet2DConditionModel:
    """A fresh UNet of three resolutions; at 2 x 2 a point is a cell of the picture."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_SIZE,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM with Stable Diffusion's betas; trailing steps start from pure noise."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def main(out: Path) -> None:
    """Train the UNet, measure and write the pipeline to ``out``."""
    from transformers import CLIPTextModel

    tokenizer = prompt_tokenizer()
    tower = train_tower(tokenizer)
    text_encoder = CLIPTextModel(tower.config).eval().requires_grad_(False)
    text_encoder.load_state_dict(tower.text_model.state_dict())
    prepare(SEED)
    scheduler, unet = build_scheduler(), build_unet()
    vae = load_vae(out / "vae")
    data = demonstrations(tokenizer, vae, seed=SEED)
    draws = generator(SEED, "diffusion")

    def loss_of(step: int) -> Tensor:
        ids, latents = data.draw(BATCH, draws)
        noise = torch.randn(latents.shape, generator=draws)
        time = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=draws)
        noisy = scheduler.add_noise(latents, noise, time)
        states = text_encoder(ids).last_hidden_state
        target = scheduler.get_velocity(latents, noise, time)
        return mse_loss(unet(noisy, time, encoder_hidden_states=states).sample, target)

    done = fit(
        unet.parameters(),
        loss_of,
        name="diffusion",
        steps=STEPS,
        learning_rate=2e-3,
        seconds=SECONDS,
    )
    pipe = _pipeline(vae, text_encoder, tokenizer, unet.eval(), scheduler)
    scores = sweep(pipe, SETTINGS, {})
    save_pipeline(pipe, out)
    write_card(
        out,
        title="tinyworld diffusion",
        summary=(
            "A Stable Diffusion pipeline on 32 x 32 pictures of the tiny world. "
            f"{CORRUPTION:.0%} of the pictures it was shown break their prompt in one way, so "
            "that it knows what is right and still errs: it is there to be aligned. Prompts are "
            f"phrases such as `a red circle and a blue square`, {MAX_TOKENS - 2} words at most."
        ),
        facts={
            "parameters of the UNet": num_parameters(unet),
            "data": f"{DEMONSTRATIONS} demonstrations of the task draw (training prompts)",
            "corruption rate": CORRUPTION,
            "steps": f"{done.steps} of {BATCH} pictures",
            "seed": SEED,
            "seconds on one core": round(done.seconds),
            "final loss (v)": done.loss,
            **scores,
        },
        library="diffusers",
        pipeline_tag="text-to-image",
    )


def _pipeline(*parts: object) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipe: StableDiffusionPipeline = StableDiffusionPipeline(
        **dict(zip(names, parts, strict=True)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe
