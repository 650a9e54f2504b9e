"""The tiny Stable Diffusion 3: a rectified flow on the same 4 x 8 x 8 latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mmalign.rng import generator
from mmalign.tinyworld.pretrain.common import Fit, fit, num_parameters, prepare, write_card
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
    from diffusers import SD3Transformer2DModel

SEED = 13
SECONDS = 700.0
STEPS = 8000
BATCH = 64
WIDTH = 128
SETTINGS = ((10, 1.0), (10, 1.5), (10, 2.0), (20, 1.5))


def build_transformer() -> SD3Transformer2DModel:
    """A fresh MMDiT: joint blocks on four image tokens, one for each cell of the picture."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=WIDTH // 32,
        caption_projection_dim=WIDTH,
        joint_attention_dim=2 * TEXT_SIZE,
        pooled_projection_dim=2 * TEXT_SIZE,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def main(out: Path) -> None:
    """Train the transformer, measure and write the pipeline to ``out``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = prompt_tokenizer()
    text_encoder = train_tower(tokenizer)
    prepare(SEED)
    transformer = build_transformer()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    vae = load_vae(out.parent / "diffusion" / "vae")
    data = demonstrations(tokenizer, vae, seed=SEED)
    draws = generator(SEED, "flow")

    def loss_of(step: int) -> Tensor:
        ids, latents = data.draw(BATCH, draws)
        noise = torch.randn(latents.shape, generator=draws)
        # Towards noise, where what goes where is decided.
        sigma = torch.sigmoid(0.5 + torch.randn(BATCH, generator=draws))
        wide = sigma[:, None, None, None]
        read = text_encoder(ids, output_hidden_states=True)
        # The pipeline has two text encoders; here they are one and the same.
        predicted = transformer(
            hidden_states=(1 - wide) * latents + wide * noise,
            timestep=sigma * scheduler.config.num_train_timesteps,
            encoder_hidden_states=torch.cat([read.hidden_states[-2]] * 2, dim=-1),
            pooled_projections=torch.cat([read.text_embeds] * 2, dim=-1),
        ).sample
        return mse_loss(predicted, noise - latents)

    done = fit(
        transformer.parameters(),
        loss_of,
        name="flow",
        steps=STEPS,
        learning_rate=1e-3,
        seconds=SECONDS,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=scheduler,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    _finish(pipe, out, done)


def _finish(pipe: Any, out: Path, done: Fit) -> None:
    # Without a T5 there is nothing to pad, hence no filler tokens either.
    scores = sweep(pipe, SETTINGS, {"max_sequence_length": 0})
    save_pipeline(pipe, out)
    write_card(
        out,
        title="tinyworld flow",
        summary=(
            "A Stable Diffusion 3 pipeline (rectified flow) on 32 x 32 pictures of the tiny "
            f"world. {CORRUPTION:.0%} of the pictures it was shown break their prompt in one way, "
            "so that it knows what is right and still errs: it is there to be aligned. Prompts are "
            f"phrases such as `a red circle and a blue square`, {MAX_TOKENS - 2} words at most. "
            "There is no T5 encoder: load with `text_encoder_3=None, tokenizer_3=None` and call "
            "with `max_sequence_length=0`."
        ),
        facts={
            "parameters of the transformer": num_parameters(pipe.transformer),
            "data": f"{DEMONSTRATIONS} demonstrations of the task draw (training prompts)",
            "corruption rate": CORRUPTION,
            "steps": f"{done.steps} of {BATCH} pictures",
            "seed": SEED,
            "seconds on one core": round(done.seconds),
            "final loss (velocity)": done.loss,
            **scores,
        },
        library="diffusers",
        pipeline_tag="text-to-image",
    )
