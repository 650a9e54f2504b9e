"""The tiny vision-language model: a LLaVA that describes pictures and answers questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from mmalign.tinyworld.language import caption
from mmalign.tinyworld.pretrain.answers import answer_loss, rows, tokenise, turn
from mmalign.tinyworld.pretrain.common import (
    Fit,
    fit,
    num_parameters,
    prepare,
    save_half,
    write_card,
)
from mmalign.tinyworld.pretrain.text import generation_config, language_config
from mmalign.tinyworld.questions import ask, ask_across
from mmalign.tinyworld.render import render
from mmalign.tinyworld.scenes import ATTRIBUTES, PLACES, Scene, perturb
from mmalign.tinyworld.tasks import DESCRIBE, TASKS, scene_of_split
from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.types import Message

SEED = 0
SIGHT_STEPS = 500
SIGHT_SECONDS = 120.0
SIGHT_BATCH = 128
STEPS = 3000
SECONDS = 1000.0
BATCH = 48
LEARNING_RATE = 1e-3
CORRUPTION = 0.3
NUM_TURNS = 3
SHARE_OF_SEVERAL = 0.35
HELDOUT = 300
MAX_NEW_TOKENS = 48
SIDE = 32
PATCH = 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
JUDGED = ("describe", "vqa", "multi_image")

Conversation = tuple[list[Message], list[Image.Image]]


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """A LLaVA from scratch: 16 patches a picture, read by a Llama."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_config(tokenizer, hidden_size=128, num_layers=4),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Pictures of 32 px as they are, one ``<image>`` token a patch (no class token)."""
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(
        size=square, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )


def seen(scene: Scene, name: str) -> list[int]:
    """For every place, 0 where it is empty, else 1 + the number of the object's attribute value."""
    at = {item.place: 1 + ATTRIBUTES[name].index(getattr(item, name)) for item in scene.objects}
    return [at.get(place, 0) for place in PLACES]


def teach_to_see(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Train the vision tower alone to tell what stands where, as a LLaVA starts from a CLIP's.

    A linear head reads each attribute of a place off the mean of the place's patches.
    """
    names = ("shape", "colour", "size")
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, 1 + len(ATTRIBUTES[name])) for name in names])
    tower = model.get_encoder(modality="image")

    def loss_of(step: int) -> Tensor:
        rng = random.Random(f"lvlm/sight/{SEED}/{step}")
        scenes = [scene_of_split(rng, "train") for _ in range(SIGHT_BATCH)]
        pictures = [render(scene, rng=rng) for scene in scenes]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        patches = tower(pixels).last_hidden_state[:, 1:]
        side = SIDE // PATCH
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        places = functional.avg_pool2d(grid, side // 2).flatten(2).transpose(1, 2)
        losses = [
            functional.cross_entropy(
                head(places).flatten(0, 1),
                torch.tensor([seen(scene, name) for scene in scenes]).flatten(),
            )
            for name, head in zip(names, heads, strict=True)
        ]
        return torch.stack(losses).sum()

    trained = [*tower.parameters(), *heads.parameters()]
    fit(
        trained,
        loss_of,
        name="lvlm's sight",
        steps=SIGHT_STEPS,
        learning_rate=LEARNING_RATE,
        seconds=SIGHT_SECONDS,
    )


def _turns(asked: Sequence[tuple[str, str]], *, num_images: int) -> list[Message]:
    """Questions and answers as turns, the pictures in the first."""
    turns: list[Message] = []
    for number, (question, answer) in enumerate(asked):
        images = [{"type": "image"}] * (num_images if number == 0 else 0)
        turns.append(turn("user", [*images, {"type": "text", "text": question}]))
        turns.append(turn("assistant", answer))
    return turns


def about_one(rng: random.Random) -> Conversation:
    """A description and questions about one training picture, in random order."""
    scene = scene_of_split(rng, "train")
    shown = perturb(scene, rng) if rng.random() < CORRUPTION else scene
    asked = [(DESCRIBE, caption(shown))]
    while len(asked) < NUM_TURNS:
        question = ask(scene, rng)
        assert question is not None
        wrong = rng.random() < CORRUPTION
        asked.append((question.text, rng.choice(question.wrong) if wrong else question.answer))
    rng.shuffle(asked)
    return _turns(asked, num_images=1), [render(scene, rng=rng)]


def about_several(rng: random.Random) -> Conversation:
    """Questions across two or three training pictures."""
    scenes = [scene_of_split(rng, "train") for _ in range(rng.randint(2, 3))]
    asked = []
    for _ in range(NUM_TURNS):
        question = ask_across(scenes, rng)
        assert question is not None
        wrong = rng.random() < CORRUPTION
        asked.append((question.text, rng.choice(question.wrong) if wrong else question.answer))
    pictures = [render(scene, rng=rng) for scene in scenes]
    return _turns(asked, num_images=len(pictures)), pictures


@torch.no_grad()
def heldout_score(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, name: str, *, greedy: bool
) -> float:
    """Mean score of a task's exact judge over held-out prompts."""
    task = TASKS[name]
    prompts = task.prompts(split="heldout", size=HELDOUT, seed=SEED)
    text = [
        processor.apply_chat_template(list(prompt.content), add_generation_prompt=True)
        for prompt in prompts
    ]
    pictures = [image for prompt in prompts for image in prompt.images]
    inputs = processor(images=pictures, text=text, padding=True, return_tensors="pt")
    torch.manual_seed(SEED)
    ids = model.eval().generate(
        **inputs, do_sample=not greedy, top_k=None if greedy else 0, max_new_tokens=MAX_NEW_TOKENS
    )
    answers = ids[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(answers, skip_special_tokens=True)
    return float(task.judge(prompts, texts).mean())


def main(out: Path) -> None:
    """Train, measure and write the model and its processor."""
    prepare(SEED)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    teach_to_see(model, processor)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(f"lvlm/{SEED}/{step}")
        makers = [
            about_several if rng.random() < SHARE_OF_SEVERAL else about_one for _ in range(BATCH)
        ]
        shown = [make(rng) for make in makers]
        parts = [tokenise(tokenizer, turns, image_tokens=IMAGE_TOKENS) for turns, _ in shown]
        batch = rows(parts, pad=tokenizer.pad_token_id)
        pictures = [image for _, images in shown for image in images]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        logits = model(
            input_ids=batch.ids, attention_mask=batch.attention_mask, pixel_values=pixels
        ).logits
        return answer_loss(logits, batch.labels)

    done = fit(
        model.parameters(),
        loss_of,
        name="lvlm",
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seconds=SECONDS,
    )
    model.generation_config = generation_config(tokenizer)
    measured = {
        f"exact judge {name}, {HELDOUT} held-out prompts, {how}": heldout_score(
            model, processor, name, greedy=how == "greedy"
        )
        for name in JUDGED
        for how in ("temperature 1", "greedy")
    }
    write(out, model, processor, done, measured)


def write(
    out: Path,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    done: Fit,
    measured: Mapping[str, float],
) -> None:
    """Write the model in half precision, its processor and its card."""
    count = num_parameters(model)
    processor.save_pretrained(str(out))
    save_half(model, out)
    write_card(
        out,
        title="tinyworld lvlm",
        summary="A LLaVA (CLIP vision tower, Llama) that describes pictures of the tiny world and "
        "answers questions about one or several. Its teacher erred on a declared share of the "
        "answers, so that what it samples can be improved by preferences.",
        facts={
            "architecture": "LlavaForConditionalGeneration",
            "parameters": count,
            "data": f"training scenes; {BATCH} fresh conversations of {NUM_TURNS} turns a step, "
            f"{SHARE_OF_SEVERAL:.0%} of them about two or three pictures; the vision tower first "
            f"learns for {SIGHT_STEPS} steps of {SIGHT_BATCH} pictures what stands where",
            "corruption rate": CORRUPTION,
            "steps": done.steps,
            "seconds on a shared core": done.seconds,
            "seed": SEED,
            "final loss (nats a token)": done.loss,
            **measured,
        },
        library="transformers",
        pipeline_tag="image-text-to-text",
    )
