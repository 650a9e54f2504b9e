"""The tiny CLIP: a learned, imperfect reward beside the exact judge of the drawing task."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmalign.tinyworld.language import caption
from mmalign.tinyworld.pretrain.common import fit, num_parameters, prepare, write_card
from mmalign.tinyworld.pretrain.vae import to_unit
from mmalign.tinyworld.render import render
from mmalign.tinyworld.scenes import perturb
from mmalign.tinyworld.tasks import TASKS, scene_of_split
from mmalign.tinyworld.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from open_clip import CLIP
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

SEED = 31
STEPS = 600
SECONDS = 600.0
BATCH = 64
LEARNING_RATE = 2e-3
CONTEXT = 44
HELDOUT = 256
# What open_clip reads from `open_clip_config.json`. Any name of a tokenizer says that its files
# lie in the folder itself.
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": 0, "width": 64, "heads": 2, "layers": 3,
            "mlp_ratio": 2.0, "pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "tokenizer",
        },
    },
    "preprocess_cfg": {
        "size": 32, "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic", "resize_mode": "shortest",
    },
}  # fmt: skip


def text_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's words between "<bos>" and "<eos>", padded on the right."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = CONTEXT
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    return tokenizer


def build_model(out: Path) -> CLIP:
    """Write config and tokenizer to ``out`` and build the model from them, untrained."""
    import open_clip

    tokenizer = text_tokenizer()
    CONFIG["model_cfg"]["text_cfg"]["vocab_size"] = len(tokenizer)
    assert CONFIG["model_cfg"]["text_cfg"]["eos_id"] == tokenizer.eos_token_id
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save_pretrained(str(out))
    return open_clip.create_model(f"local-dir:{out}", load_weights=False)


def drawn(rng: random.Random, split: str) -> tuple[str, Image, Image]:
    """A drawing prompt, a picture that satisfies it and one that nearly does."""
    example = TASKS["draw"].example(rng, split)
    right, wrong = example.correct(rng), example.corrupted(rng)
    assert not isinstance(right, str | tuple) and not isinstance(wrong, str | tuple)
    return str(example.prompt.content), right, wrong


def described(rng: random.Random, split: str) -> tuple[str, Image, Image]:
    """A full caption, its picture and the picture of a scene with one change."""
    scene = scene_of_split(rng, split)
    return caption(scene), render(scene, rng=rng), render(perturb(scene, rng), rng=rng)


def to_pixels(images: list[Image]) -> Tensor:
    """Pictures to ``[N, 3, 32, 32]`` in [-1, 1]."""
    return to_unit(torch.from_numpy(np.stack([np.asarray(image) for image in images])))


@torch.no_grad()
def measure(model: CLIP, ids_of: Any) -> dict[str, float]:
    """Retrieval among held-out scenes, and right against nearly right pictures of prompts."""
    model.eval()
    rng = random.Random(f"clip/heldout/{SEED}")
    shown: dict[str, Image] = {}
    while len(shown) < HELDOUT:
        text, picture, _ = described(rng, "heldout")
        shown.setdefault(text, picture)
    images = model.encode_image(to_pixels(list(shown.values())), normalize=True)
    texts = model.encode_text(ids_of(list(shown)), normalize=True)
    likeness, own = images @ texts.T, torch.arange(HELDOUT)
    asked = [drawn(rng, "heldout") for _ in range(HELDOUT)]
    words = model.encode_text(ids_of([text for text, _, _ in asked]), normalize=True)
    right = model.encode_image(to_pixels([r for _, r, _ in asked]), normalize=True)
    wrong = model.encode_image(to_pixels([w for _, _, w in asked]), normalize=True)
    better = (words * right).sum(-1) > (words * wrong).sum(-1)
    return {
        f"R@1 picture to text, {HELDOUT} held-out scenes": float(
            (likeness.argmax(1) == own).float().mean()
        ),
        f"R@1 text to picture, {HELDOUT} held-out scenes": float(
            (likeness.argmax(0) == own).float().mean()
        ),
        f"right above nearly right picture, {HELDOUT} held-out prompts": float(
            better.float().mean()
        ),
    }


def main(out: Path) -> None:
    """Train contrastively, with a nearly right picture of every text among the negatives."""
    import open_clip
    from safetensors.torch import save_file

    prepare(SEED)
    model = build_model(out)
    ids_of = open_clip.get_tokenizer(f"local-dir:{out}")

    def loss_of(step: int) -> Tensor:
        rng = random.Random(f"clip/{SEED}/{step}")
        shown = [(drawn if rng.random() < 0.6 else described)(rng, "train") for _ in range(BATCH)]
        pixels = to_pixels([r for _, r, _ in shown] + [w for _, _, w in shown])
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(ids_of([text for text, _, _ in shown]), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100.0) * (texts @ images.T)
        own = torch.arange(BATCH)
        return 0.5 * (cross_entropy(logits, own) + cross_entropy(logits[:, :BATCH].T, own))

    done = fit(
        model.parameters(),
        loss_of,
        name="clip",
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seconds=SECONDS,
        weight_decay=0.02,
    )
    # What is shipped is half precision, so that is what is measured.
    measured = measure(model.half().float(), ids_of)
    print(measured, flush=True)
    count = num_parameters(model)
    tensors = {name: value.contiguous() for name, value in model.half().state_dict().items()}
    save_file(tensors, str(out / "open_clip_model.safetensors"))
    write_card(
        out,
        title="tinyworld clip",
        summary="An open_clip model of pictures and texts of the tiny world. As a reward it is a "
        "proxy: compare it with the exact judge of the drawing task.",
        facts={
            "architecture": "open_clip CLIP",
            "parameters": count,
            "data": f"training split; {BATCH} fresh pictures and texts a step (60 % drawing "
            "prompts, 40 % full captions), a one-change picture of each among the negatives",
            "steps": done.steps,
            "seconds on one core": done.seconds,
            "seed": SEED,
            "final loss (nats)": done.loss,
            **measured,
        },
        library="open_clip",
        pipeline_tag="zero-shot-image-classification",
    )
