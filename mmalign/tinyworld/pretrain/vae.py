"""The small VAE that diffusion and flow share: 32 x 32 pixels to 4 x 8 x 8 latents."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mmalign.rng import generator
from mmalign.tinyworld.detect import detect
from mmalign.tinyworld.pretrain.common import fit, num_parameters, prepare, save_half, write_card
from mmalign.tinyworld.render import render
from mmalign.tinyworld.scenes import Scene, random_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SEED = 11
SECONDS = 300.0
STEPS = 1600
BATCH = 32
PICTURES = 12_000
# Nats per latent element against squared error per pixel value: at 1e-3 the posterior's standard
# deviation settles near 0.06, so that small errors of a denoiser stay invisible.
KL_WEIGHT = 1e-3


def build_vae() -> AutoencoderKL:
    """A fresh AutoencoderKL: two halvings, four latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def draw_scenes(size: int, *, seed: str) -> tuple[list[Scene], Tensor]:
    """Scenes and their pictures, uint8 ``[size, 32, 32, 3]``."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(size)]
    pictures = np.stack([np.asarray(render(scene, rng=rng)) for scene in scenes])
    return scenes, torch.from_numpy(pictures)


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to float ``[B, 3, H, W]`` in [-1, 1], as the VAE wants them."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def main(out: Path) -> None:
    """Train, measure on new pictures, set the scaling factor and write to ``out``."""
    prepare(SEED)
    vae = build_vae()
    _, pictures = draw_scenes(PICTURES, seed="vae/train")
    noise = generator(SEED, "vae")

    def loss_of(step: int) -> Tensor:
        batch = to_unit(pictures[torch.randint(len(pictures), (BATCH,), generator=noise)])
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample(noise)).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
        return mse_loss(decoded, batch) + KL_WEIGHT * kl

    done = fit(
        vae.parameters(),
        loss_of,
        name="vae",
        steps=STEPS,
        learning_rate=3e-3,
        seconds=SECONDS,
        weight_decay=0.0,
    )
    _finish(vae, out, steps=done.steps, seconds=done.seconds)


@torch.no_grad()
def _finish(vae: AutoencoderKL, out: Path, *, steps: int, seconds: float) -> None:
    scenes, pictures = draw_scenes(512, seed="vae/heldout")
    latents = vae.encode(to_unit(pictures)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    # What is shipped is half precision, so that is what is measured.
    vae.half().float()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    error = mse_loss(decoded, to_unit(pictures)).item()
    images = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    exact = np.mean([_same(s, i) for s, i in zip(scenes, images, strict=True)])
    facts: dict[str, str | float | int] = {
        "parameters": num_parameters(vae),
        "data": f"{PICTURES} pictures of random scenes",
        "steps": f"{steps} of {BATCH} pictures",
        "seed": SEED,
        "seconds on one core": round(seconds),
        "mean squared error (pixels in [-1, 1])": error,
        "held-out pictures whose objects are all kept": float(exact),
        "scaling factor": float(vae.config.scaling_factor),
    }
    save_half(vae, out)
    write_card(
        out,
        title="tinyworld VAE",
        summary="AutoencoderKL of the tiny world: 32 x 32 pixels to 4 x 8 x 8 latents.",
        facts=facts,
        library="diffusers",
    )
    print(facts)


def _same(scene: Scene, image: np.ndarray) -> bool:
    from PIL import Image

    return detect(Image.fromarray(image)) == scene.objects
