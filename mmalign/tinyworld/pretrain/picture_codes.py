"""The codebook of the tiny Janus: 32 x 32 pixels to 4 x 4 codes, and back.

Pictures of the tiny world move their objects by a pixel and change their light at random. Without
that, a picture is a mosaic of 97 different patches of 8 x 8 pixels: the ground, and the quarters of
24 kinds of object. Each patch is given a code; the encoder learns to name the patches behind a
picture, the decoder to paint them. So the codes say what a picture shows and nothing else, and both
are learned in minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, mse_loss, normalize

from mmalign.rng import generator
from mmalign.tinyworld.detect import detect
from mmalign.tinyworld.pretrain.common import Fit, fit
from mmalign.tinyworld.pretrain.vae import draw_scenes, to_unit
from mmalign.tinyworld.render import BACKGROUND, render
from mmalign.tinyworld.scenes import Scene

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers.models.janus.modeling_janus import JanusVQVAE

SEED = 21
SECONDS = 420.0
STEPS = {"codes": 420, "painter": 920}
BATCH = 16
PICTURES = 12_000
LEARNING_RATE = 2e-3
PATCH = 8
NUM_PATCHES = 97
# Sharpness of the encoder's choice among the codes, whose vectors have length one.
SCALE = 16.0
INK_WEIGHT = 4.0


def plain_pictures(scenes: Sequence[Scene]) -> Tensor:
    """The pictures of scenes with every object in place, uint8 ``[N, 32, 32, 3]``."""
    return torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))


def name_patches(pictures: Tensor) -> Tensor:
    """The number of each patch of plain pictures, ``[N, 16]`` int64, in reading order."""
    size, side = len(pictures), pictures.shape[1] // PATCH
    cut = pictures.view(size, side, PATCH, side, PATCH, 3).transpose(2, 3)
    patches, names = cut.reshape(-1, PATCH * PATCH * 3).unique(dim=0, return_inverse=True)
    assert len(patches) == NUM_PATCHES, f"{len(patches)} patches: not every kind was drawn"
    return names.view(size, -1)


def train_codebook(vq: JanusVQVAE) -> tuple[Fit, Fit]:
    """Fit encoder, codes and decoder to pictures of random scenes; then the decoder alone."""
    scenes, pictures = draw_scenes(PICTURES, seed="codes/train")
    plain = plain_pictures(scenes)
    names = name_patches(plain)
    named = _fit_codes(vq, pictures, plain, names)
    painted = fit_painter(vq, plain, names)
    vq.eval().requires_grad_(False)
    return named, painted


def _fit_codes(vq: JanusVQVAE, pictures: Tensor, plain: Tensor, names: Tensor) -> Fit:
    codes, noise = vq.quantize.embedding, generator(SEED, "codes")

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(pictures), (BATCH,), generator=noise)
        vectors = normalize(codes.weight, dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            seen = vq.quant_conv(vq.encoder(to_unit(pictures[index])))
            decoded = paint(vq, vectors[names[index]])
        seen = normalize(seen.float().flatten(2).transpose(1, 2), dim=-1)
        logits = SCALE * seen @ vectors.T
        wanted = to_unit(plain[index])
        error = mse_loss(decoded.float(), wanted) + l1_loss(decoded.float(), wanted)
        return error + 0.2 * cross_entropy(logits.flatten(0, 1), names[index].flatten())

    done = _fit(vq, loss_of, name="codes")
    # The nearest code is then the one with the largest inner product, as in training.
    codes.weight.data = normalize(codes.weight.data, dim=-1)
    return done


def fit_painter(vq: JanusVQVAE, plain: Tensor, names: Tensor) -> Fit:
    """Fit the decoder alone; what is drawn weighs more than the ground around it."""
    vq.requires_grad_(False)
    for part in (vq.post_quant_conv, vq.decoder):
        part.requires_grad_(True)
    noise = generator(SEED, "painter")

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(plain), (BATCH,), generator=noise)
        wanted = to_unit(plain[index])
        drawn = (plain[index] != BACKGROUND[0]).any(-1, keepdim=True).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = paint(vq, vq.quantize.embedding.weight[names[index]])
        error = decoded.float() - wanted
        return ((1.0 + INK_WEIGHT * drawn) * (error.abs() + error**2)).mean()

    return _fit(vq, loss_of, name="painter")


def _fit(vq: JanusVQVAE, loss_of: Callable[[int], Tensor], *, name: str) -> Fit:
    return fit(
        vq.parameters(),
        loss_of,
        name=name,
        steps=STEPS[name],
        learning_rate=LEARNING_RATE,
        seconds=SECONDS,
        weight_decay=0.0,
    )


def paint(vq: JanusVQVAE, vectors: Tensor) -> Tensor:
    """Code vectors ``[B, 16, D]`` to pixels ``[B, 3, 32, 32]``."""
    grid = vectors.view(len(vectors), *vq.quantize.quant_state_dims, -1)
    return vq.decoder(vq.post_quant_conv(grid.permute(0, 3, 1, 2)))


@torch.no_grad()
def encode_pictures(vq: JanusVQVAE, pictures: Tensor) -> Tensor:
    """uint8 pictures ``[N, H, W, 3]`` to codes ``[N, 16]``."""
    parts = [
        vq.encode(to_unit(part)).image_tokens.view(len(part), -1) for part in pictures.split(256)
    ]
    return torch.cat(parts)


def to_images(decoded: Tensor) -> list[Image]:
    """Pixels in [-1, 1], ``[N, 3, H, W]``, to pictures."""
    from PIL import Image

    pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(np.ascontiguousarray(p)) for p in pixels.permute(0, 2, 3, 1).numpy()]


@torch.no_grad()
def fidelity(vq: JanusVQVAE, *, size: int = 512) -> dict[str, float | int]:
    """What survives encoding and decoding of new pictures."""
    scenes, pictures = draw_scenes(size, seed="codes/heldout")
    codes = encode_pictures(vq, pictures)
    decoded = vq.decode(codes)
    found = [detect(image) for image in to_images(decoded)]
    kept = sum(len(set(s.objects) & set(f)) for s, f in zip(scenes, found, strict=True))
    exact = sum(s.objects == f for s, f in zip(scenes, found, strict=True))
    error = mse_loss(decoded.clamp(-1, 1), to_unit(plain_pictures(scenes)))
    return {
        "error to the plain picture (squared, pixels in [-1, 1])": error.item(),
        "objects that survive encoding and decoding": kept / sum(len(s.objects) for s in scenes),
        "pictures whose objects all survive": exact / size,
        "codes in use": int(codes.unique().numel()),
    }
