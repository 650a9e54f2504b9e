"""The tiny vision-language model: a LLaVA that describes pictures and answers questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from mmalign.tinyworld.questions import Question, ask, ask_across
from mmalign.tinyworld.render import render
from mmalign.tinyworld.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, perturb
from mmalign.tinyworld.tasks import DESCRIBE, TASKS, scene_of_split
from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.types import Message

SEED = 0
SIGHT_STEPS = 500
SIGHT_BATCH = 128
SIGHT_RATE = 1e-3
STEPS = 1600
# The teacher errs from this step on: whoever hears no error first learns in fewer steps what a
# question means.
FIRST_ERROR = 1100
BATCH = 48
LEARNING_RATE = 2e-3
CORRUPTION = 0.3
NUM_TURNS = 7
SHARE_DESCRIBED = 0.5
SHARE_OF_SEVERAL = 0.4
# transformers draws weights for networks of thousands of channels, with deviation 0.02, at which
# the signals of this one would die out.
INITIAL_DEVIATION = 0.08
HELDOUT = 300
MAX_NEW_TOKENS = 48
SIDE = 32
PATCH = 16
IMAGE_TOKENS = (SIDE // PATCH) ** 2
JUDGED = ("describe", "vqa", "multi_image")

# What the vision tower is first taught to tell of a place, and the number of classes of each.
SEEN = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "kind": 1 + len(COLOURS) * len(SHAPES),
    "size": 1 + len(SIZES),
    "place": len(PLACES),
}

Conversation = tuple[list[Message], list[Image.Image]]


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """A LLaVA from scratch: a patch for each of the four places, read by a Llama."""
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
        text_config=language_config(
            tokenizer, hidden_size=128, num_layers=4, initializer_range=INITIAL_DEVIATION
        ),
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


def seen(scene: Scene) -> list[list[int]]:
    """What a look at each place tells: one class for each name of `SEEN`, 0 where it is empty."""
    at = {item.place: item for item in scene.objects}
    found = []
    for number, place in enumerate(PLACES):
        item = at.get(place)
        if item is None:
            found.append([0, 0, 0, 0, number])
            continue
        shape, colour = SHAPES.index(item.shape), COLOURS.index(item.colour)
        kind = colour * len(SHAPES) + shape
        found.append([1 + shape, 1 + colour, 1 + kind, 1 + SIZES.index(item.size), number])
    return found


def teach_to_see(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> Fit:
    """Train the vision tower alone to tell what stands where, as a LLaVA starts from a CLIP's.

    Linear heads read the whole object, and its place, off every one of the place's patches.
    """
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, size) for size in SEEN.values()])
    tower = model.get_encoder(modality="image")
    side = SIDE // PATCH
    across = int(len(PLACES) ** 0.5)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(f"lvlm/sight/{SEED}/{step}")
        scenes = [scene_of_split(rng, "train") for _ in range(SIGHT_BATCH)]
        pictures = [render(scene, rng=rng) for scene in scenes]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        patches = tower(pixels).last_hidden_state[:, 1:].unflatten(1, (side, side))
        truth = torch.tensor([seen(scene) for scene in scenes]).unflatten(1, (across, across))
        for axis in (1, 2):
            truth = truth.repeat_interleave(side // across, axis)
        losses = [
            functional.cross_entropy(head(patches).flatten(0, 2), truth[..., number].flatten())
            for number, head in enumerate(heads)
        ]
        return torch.stack(losses).sum()

    trained = [*tower.parameters(), *heads.parameters()]
    return fit(trained, loss_of, name="lvlm's sight", steps=SIGHT_STEPS, learning_rate=SIGHT_RATE)


def _turns(asked: Sequence[tuple[str, str]], *, num_images: int) -> list[Message]:
    """Questions and answers as turns, the pictures in the first."""
    turns: list[Message] = []
    for number, (question, answer) in enumerate(asked):
        images = [{"type": "image"}] * (num_images if number == 0 else 0)
        turns.append(turn("user", [*images, {"type": "text", "text": question}]))
        turns.append(turn("assistant", answer))
    return turns


def _answered(question: Question, rng: random.Random, corruption: float) -> tuple[str, str]:
    wrong = rng.random() < corruption
    return question.text, rng.choice(question.wrong) if wrong else question.answer


def about_one(rng: random.Random, corruption: float) -> Conversation:
    """Questions about one training picture, half of the time a description among them."""
    scene = scene_of_split(rng, "train")
    asked = []
    if rng.random() < SHARE_DESCRIBED:
        shown = perturb(scene, rng) if rng.random() < corruption else scene
        asked.append((DESCRIBE, caption(shown)))
    while len(asked) < NUM_TURNS:
        asked.append(_answered(ask(scene, rng), rng, corruption))
    rng.shuffle(asked)
    return _turns(asked, num_images=1), [render(scene, rng=rng)]


def about_several(rng: random.Random, corruption: float) -> Conversation:
    """Questions across two or three training pictures."""
    scenes = [scene_of_split(rng, "train") for _ in range(rng.randint(2, 3))]
    asked = [_answered(ask_across(scenes, rng), rng, corruption) for _ in range(NUM_TURNS)]
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


def teach_to_answer(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, images: Any
) -> Fit:
    """Train all but the vision tower on conversations; ``images`` is the image processor."""
    # At this rate a tower that is trained on soon shows shapes in a way nobody learns to read.
    model.get_encoder(modality="image").requires_grad_(False)
    # In bfloat16 on a CPU, plain attention is the fastest.
    model.set_attn_implementation("eager")

    def loss_of(step: int) -> Tensor:
        rng = random.Random(f"lvlm/{SEED}/{step}")
        corruption = CORRUPTION if step >= FIRST_ERROR else 0.0
        makers = [
            about_several if rng.random() < SHARE_OF_SEVERAL else about_one for _ in range(BATCH)
        ]
        shown = [make(rng, corruption) for make in makers]
        parts = [tokenise(tokenizer, turns, image_tokens=IMAGE_TOKENS) for turns, _ in shown]
        batch = rows(parts, pad=tokenizer.pad_token_id)
        pictures = [image for _, drawn in shown for image in drawn]
        pixels = images(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                input_ids=batch.ids, attention_mask=batch.attention_mask, pixel_values=pixels
            ).logits
        return answer_loss(logits, batch.labels)

    return fit(model.parameters(), loss_of, name="lvlm", steps=STEPS, learning_rate=LEARNING_RATE)


def main(out: Path) -> None:
    """Train, measure and write the model and its processor."""
    prepare(SEED)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    sight = teach_to_see(model, processor)
    done = teach_to_answer(model, tokenizer, processor.image_processor)
    model.generation_config = generation_config(tokenizer)
    # What is shipped is half precision, so that is what is measured.
    model.half().float()
    measured = {
        f"exact judge {name}, {HELDOUT} held-out prompts, {how}": heldout_score(
            model, processor, name, greedy=how == "greedy"
        )
        for name in JUDGED
        for how in ("temperature 1", "greedy")
    }
    print(measured, flush=True)
    write(out, model, processor, (sight, done), measured)


def write(
    out: Path,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    fits: tuple[Fit, Fit],
    measured: Mapping[str, float],
) -> None:
    """Write the model in half precision, its processor and its card."""
    sight, done = fits
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
            f"{SHARE_OF_SEVERAL:.0%} of them about two or three pictures, "
            f"{SHARE_DESCRIBED:.0%} of the others with a description",
            "sight": f"before, the vision tower alone, and only here: {sight.steps} steps of "
            f"{SIGHT_BATCH} pictures, to tell what stands where; {sight.seconds:.0f} s",
            "corruption rate": f"{CORRUPTION} from step {FIRST_ERROR} on, 0 before",
            "steps": done.steps,
            "seconds on one core": done.seconds,
            "seed": SEED,
            "final loss (nats a token)": done.loss,
            **measured,
        },
        library="transformers",
        pipeline_tag="image-text-to-text",
    )
