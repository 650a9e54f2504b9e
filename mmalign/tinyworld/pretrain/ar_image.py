"""The tiny autoregressive image generator: a Janus that draws 16 codes a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmalign.rng import generator
from mmalign.tinyworld.pretrain.common import fit, num_parameters, prepare, save_half, write_card
from mmalign.tinyworld.pretrain.picture_codes import (
    NUM_PATCHES,
    encode_pictures,
    fidelity,
    train_codebook,
)
from mmalign.tinyworld.pretrain.text import language_config
from mmalign.tinyworld.tasks import TASKS
from mmalign.tinyworld.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import (
        JanusForConditionalGeneration,
        JanusProcessor,
        PreTrainedTokenizerBase,
    )

SEED = 0
STEPS = 1600
SECONDS = 1200.0
BATCH = 64
LEARNING_RATE = 2e-3
DEMONSTRATIONS = 30_000
CORRUPTION = 0.3
CAPTION_DROPOUT = 0.1
HIDDEN = 128
# transformers draws weights for networks of thousands of channels, with deviation 0.02. In this one
# signals would die out, and it would take ten times the steps to find out what words mean.
INITIAL_DEVIATION = 0.08
GRID = 4
PICTURE = 32
HELDOUT = 256
SCALES = (1.0, 1.5, 2.0, 3.0)


def build_model(tokenizer: PreTrainedTokenizerBase) -> JanusForConditionalGeneration:
    """A fresh Janus: 4 Llama layers, 97 codes on a 4 x 4 grid, a vision tower of one layer."""
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
    )

    tower = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        mlp_ratio=2.0,
        image_size=PICTURE,
        patch_size=PICTURE // GRID,
        num_image_tokens=GRID**2,
        projection_dim=HIDDEN,
        depth=1,
    )
    codes = JanusVQVAEConfig(
        embed_dim=16,
        num_embeddings=NUM_PATCHES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 2),
        num_res_blocks=1,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    config = JanusConfig(
        text_config=language_config(tokenizer, hidden_size=HIDDEN, num_layers=4),
        vision_config=tower,
        vq_config=codes,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in drawing_parameters(model):
            if parameter.dim() == 2:
                parameter.mul_(INITIAL_DEVIATION / 0.02)
    return model


def drawing_parameters(model: JanusForConditionalGeneration) -> list[torch.nn.Parameter]:
    """The parameters of the language model and of what reads and writes codes."""
    inner = model.model
    parts = (
        inner.language_model,
        inner.generation_embeddings,
        inner.generation_aligner,
        inner.generation_head,
    )
    return [parameter for part in parts for parameter in part.parameters()]


def build_processor(tokenizer: PreTrainedTokenizerBase) -> JanusProcessor:
    """The processor of the model: 32 x 32 pixels in [-1, 1], the tiny world's words."""
    from transformers import JanusImageProcessor, JanusProcessor

    pictures = JanusImageProcessor(
        size={"height": PICTURE, "width": PICTURE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return JanusProcessor(
        pictures, tokenizer, chat_template=tokenizer.chat_template, num_image_tokens=GRID**2
    )


def prompt_inputs(processor: JanusProcessor, texts: Sequence[str]) -> Any:
    """Left-padded prompts ``[B, L]``, each ended by the begin-of-image token."""
    turns = [[{"role": "user", "content": text}] for text in texts]
    rendered = processor.apply_chat_template(turns, add_generation_prompt=True)
    return processor(
        text=rendered, generation_mode="image", padding=True, padding_side="left",
        return_tensors="pt",
    )  # fmt: skip


def code_logits(
    model: JanusForConditionalGeneration, ids: Tensor, attention_mask: Tensor, codes: Tensor
) -> Tensor:
    """Logits ``[B, T, V]`` of every code given the prompt and the codes before it."""
    prompt = model.get_input_embeddings()(ids)
    drawn = model.prepare_embeddings_for_image_generation(codes[:, :-1])
    ones = attention_mask.new_ones(drawn.shape[:2])
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([prompt, drawn], dim=1),
        attention_mask=torch.cat([attention_mask, ones], dim=1),
        use_cache=False,
    ).last_hidden_state
    return model.model.generation_head(hidden[:, ids.shape[1] - 1 :])


def generation_config(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Sampling at temperature 1; Janus looks the begin-of-image token up here."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        top_k=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids("<boi>")},
    )


def heldout_score(
    model: JanusForConditionalGeneration, processor: JanusProcessor, *, scale: float
) -> tuple[float, dict[str, float]]:
    """Share of held-out prompts satisfied, overall and by category, sampled at temperature 1."""
    from mmalign.vision import ARImageAdapter, CodeSampling

    task = TASKS["draw"]
    prompts = task.prompts(split="heldout", size=HELDOUT, seed=SEED)
    adapter = ARImageAdapter(
        processor=processor,
        vq=model.model.vqmodel,
        sampling=CodeSampling(guidance_scale=scale, temperature=1.0),
        feature_size=HIDDEN,
    )
    keys = [generator("pretrain", SEED, number) for number in range(len(prompts))]
    drawn = adapter.sample(model.eval(), prompts, group_size=1, generators=keys)
    scores = task.judge(prompts, [picture for picture in drawn.outputs if picture]).tolist()
    by_category: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        by_category.setdefault(str(prompt.meta["category"]), []).append(score)
    return sum(scores) / len(scores), {k: sum(v) / len(v) for k, v in sorted(by_category.items())}


def train_to_draw(model: JanusForConditionalGeneration, processor: JanusProcessor) -> Any:
    """Fit the language model and its code head to demonstrations of the drawing task."""
    shown = TASKS["draw"].demonstrations(size=DEMONSTRATIONS, seed=SEED, corruption=CORRUPTION)
    pictures = torch.from_numpy(np.stack([np.asarray(picture) for _, picture in shown]))
    codes = encode_pictures(model.model.vqmodel, pictures)
    inputs = prompt_inputs(processor, [str(prompt.content) for prompt, _ in shown])
    ids, masks = inputs["input_ids"], inputs["attention_mask"]
    special = processor.tokenizer.convert_tokens_to_ids(["<bos>", "<boi>"])
    pad = processor.tokenizer.pad_token_id
    # The unconditional prompt as Janus samples it: everything but the two tokens is padding.
    empty = torch.where(torch.isin(ids, torch.tensor(special)), ids, pad)
    noise = generator(SEED, "ar_image")

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(ids), (BATCH,), generator=noise)
        dropped = torch.rand(BATCH, 1, generator=noise) < CAPTION_DROPOUT
        prompt, mask = torch.where(dropped, empty[index], ids[index]), masks[index]
        longest = int(mask.sum(1).max())
        logits = code_logits(model, prompt[:, -longest:], mask[:, -longest:], codes[index])
        return cross_entropy(logits.flatten(0, 1), codes[index].flatten())

    return fit(
        drawing_parameters(model.train()),
        loss_of,
        name="ar_image",
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seconds=SECONDS,
    )


def main(out: Path) -> None:
    """Train the codes, then the language model; measure and write both."""
    prepare(SEED)
    tokenizer = build_tokenizer()
    processor, model = build_processor(tokenizer), build_model(tokenizer)
    model.generation_config = generation_config(tokenizer)
    named, painted = train_codebook(model.model.vqmodel)
    kept = fidelity(model.model.vqmodel)
    print(kept, flush=True)
    done = train_to_draw(model, processor)
    # What is shipped is half precision, so that is what is measured.
    model.half().float().eval()
    measured = {}
    for scale in SCALES:
        score, by_category = heldout_score(model, processor, scale=scale)
        measured[f"exact judge, {HELDOUT} held-out prompts, guidance {scale:g}"] = score
        print(scale, round(score, 3), {k: round(v, 2) for k, v in by_category.items()}, flush=True)
    count = num_parameters(model)
    processor.save_pretrained(str(out))
    save_half(model, out)
    write_card(
        out,
        title="tinyworld ar_image",
        summary="A Janus that draws pictures of the tiny world code by code. Its teacher erred on "
        "a declared share of the pictures, so that what it samples can be improved by preferences.",
        facts={
            "architecture": "JanusForConditionalGeneration",
            "parameters": count,
            "codes": f"{named.steps} steps, then {painted.steps} of the decoder alone, on pictures "
            f"of random scenes; {named.seconds + painted.seconds:.0f} s",
            **kept,
            "data": f"task draw, training split, {DEMONSTRATIONS} demonstrations, {BATCH} a step",
            "corruption rate": CORRUPTION,
            "caption dropout": CAPTION_DROPOUT,
            "steps": done.steps,
            "seconds on one core": done.seconds,
            "seed": SEED,
            "final loss (nats a code)": done.loss,
            **measured,
        },
        library="transformers",
        pipeline_tag="text-to-image",
    )
