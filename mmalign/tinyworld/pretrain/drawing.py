"""What the diffusion and the flow recipe share: tokens, demonstrations as latents, the judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmalign.rng import generator
from mmalign.tinyworld.pretrain.reading import token_ids
from mmalign.tinyworld.pretrain.vae import main as train_vae
from mmalign.tinyworld.pretrain.vae import to_unit
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Prompt

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

DEMONSTRATIONS = 30_000
CORRUPTION = 0.25
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """Prompts and pictures to imitate, as the networks see them.

    Attributes:
        ids: ``[N, MAX_TOKENS]`` token ids of the prompts.
        empty: ``[MAX_TOKENS]`` token ids of the empty prompt.
        latents: ``[N, 4, 8, 8]``, scaled to unit variance.
    """

    ids: Tensor
    empty: Tensor
    latents: Tensor

    def draw(self, size: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of token ids and latents; some prompts are emptied, for guidance."""
        index = torch.randint(len(self.ids), (size,), generator=noise)
        dropped = torch.rand(size, generator=noise) < CAPTION_DROPOUT
        ids = torch.where(dropped[:, None], self.empty, self.ids[index])
        return ids, self.latents[index]


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE in ``folder``; it is trained first where there is none."""
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file():
        train_vae(folder)
    vae = AutoencoderKL.from_pretrained(str(folder)).float().eval()
    assert isinstance(vae, AutoencoderKL)
    return vae.requires_grad_(False)


@torch.no_grad()
def demonstrations(
    tokenizer: PreTrainedTokenizerFast, vae: AutoencoderKL, *, seed: int
) -> Demonstrations:
    """Draw the training set and encode its pictures once."""
    shown = TASKS["draw"].demonstrations(size=DEMONSTRATIONS, seed=seed, corruption=CORRUPTION)
    pictures = torch.from_numpy(np.stack([np.asarray(picture) for _, picture in shown]))
    # The means: most of a latent's elements carry nothing, and their draws would be mere noise.
    latents = [
        vae.encode(to_unit(part)).latent_dist.mean * vae.config.scaling_factor
        for part in pictures.split(256)
    ]
    texts = [str(prompt.content) for prompt, _ in shown]
    return Demonstrations(
        ids=token_ids(tokenizer, texts),
        empty=token_ids(tokenizer, [""])[0],
        latents=torch.cat(latents),
    )


Sampler = Callable[[list[str], list[torch.Generator]], "list[Image]"]


def measure(sampler: Sampler, *, size: int = 256, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Share of held-out prompts that a sampler satisfies, overall and by category.

    Args:
        sampler: Texts and one generator each, to pictures.
        size: Number of held-out prompts.
        seed: Draws the prompts; the noise of prompt i is fixed by (seed, i).
    """
    prompts: list[Prompt] = TASKS["draw"].prompts(split="heldout", size=size, seed=seed)
    scores: list[float] = []
    for start in range(0, size, 64):
        part = prompts[start : start + 64]
        keys = [generator("pretrain", seed, start + i) for i in range(len(part))]
        images = sampler([str(p.content) for p in part], keys)
        scores += TASKS["draw"].judge(part, images).tolist()
    by_category: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        by_category.setdefault(str(prompt.meta["category"]), []).append(score)
    return sum(scores) / size, {k: sum(v) / len(v) for k, v in sorted(by_category.items())}


def sweep(
    pipe: Any, settings: Sequence[tuple[int, float]], options: Mapping[str, Any]
) -> dict[str, float]:
    """The judge's score of a pipeline at several (steps, guidance scale), by name.

    ``options`` are further arguments of the pipeline's call.
    """
    pipe.set_progress_bar_config(disable=True)
    # What is shipped is half precision, so that is what is measured.
    for network in _networks(pipe):
        network.half().float()
    found = {}
    for steps, scale in settings:

        def sampler(
            texts: list[str],
            keys: list[torch.Generator],
            steps: int = steps,
            scale: float = scale,
        ) -> list[Image]:
            images: list[Image] = pipe(
                texts, num_inference_steps=steps, guidance_scale=scale, generator=keys, **options
            ).images
            return images

        score, by_category = measure(sampler)
        name = f"judge, held-out, {steps} steps, guidance {scale:g}"
        found[name] = score
        print(name, round(score, 3), {k: round(v, 2) for k, v in by_category.items()}, flush=True)
        print(name, round(score, 3), file=sys.stderr, flush=True)
    return found


def save_pipeline(pipe: Any, out: Path) -> None:
    """Write a pipeline: networks in half precision, text encoders in float32.

    Text encoders are loaded in the precision they were saved in, while the networks are loaded in
    float32 unless asked otherwise; both in half precision would not fit together on a CPU.
    """
    for network in _networks(pipe):
        network.half()
    pipe.save_pretrained(str(out), safe_serialization=True)
    for path in out.rglob("config.json"):
        # diffusers notes where a part was loaded from; that is of no use on another machine.
        settings = json.loads(path.read_text())
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")


def _networks(pipe: Any) -> list[nn.Module]:
    from diffusers import ModelMixin

    return [part for part in pipe.components.values() if isinstance(part, ModelMixin)]
