"""DPO on answers about images, against TRL: ``python -m benchmarks.lvlm_dpo``.

LLaVA of random weights: a CLIP tower at 336 px in patches of 14, which makes 576 tokens of an
image, and a Llama. The tower is frozen on both sides, everything else is trained. The tower is
small; a real one costs more, and costs TRL more often.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import language
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Measured, Product, language_model_work

BETA = 0.1
SPECIAL = (*language.SPECIAL, "<image>")
TEMPLATE = """\
{%- for message in messages -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{- ' ' + part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- if message['role'] == 'assistant' -%}<eos>{%- endif -%}
{%- endfor -%}
"""


def image_tokens(settings: Settings) -> int:
    """Tokens of one image."""
    return int((settings["pixels"] // settings["patch"]) ** 2)


def prompt_length(settings: Settings) -> int:
    """P, images and words together."""
    return int(settings["images"] * image_tokens(settings) + settings["words"])


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, processor, images and pairs."""
    torch.manual_seed(0)
    model, processor = llava(settings)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    distinct = 1 if settings["shared"] else (settings["steps"] + 1) * settings["batch"]
    side = settings["pixels"]
    for number in range(distinct * settings["images"]):
        noise = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    rows = []
    for row in range((settings["steps"] + 1) * settings["batch"]):
        ids = [settings["words"], *[settings["answer"] - 1] * 2]
        texts = [
            language.text_of(language.random_words(settings, n, generator=generator)) for n in ids
        ]
        first = (row % distinct) * settings["images"]
        names = [f"{first + i}.png" for i in range(settings["images"])]
        rows.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True), images=names))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def llava(settings: Settings) -> tuple[Any, Any]:
    """The model of random weights and its processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    square = {"height": settings["pixels"], "width": settings["pixels"]}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=settings["tower_width"], intermediate_size=4 * settings["tower_width"],
            num_hidden_layers=settings["tower_layers"],
            num_attention_heads=settings["tower_width"] // 32,
            image_size=settings["pixels"], patch_size=settings["patch"],
        ),
        text_config=language.llama_config(settings),
        image_token_id=SPECIAL.index("<image>"), image_seq_length=image_tokens(settings),
        vision_feature_layer=-1, pad_token_id=language.PAD, eos_token_id=language.EOS,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=square, crop_size=square),
        tokenizer=language.word_tokenizer(settings["vocabulary"], special=SPECIAL),
        patch_size=settings["patch"], vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def units(settings: Settings) -> float:
    """Tokens of a step, each prompt with its images once: ``B (P + 2 R)``."""
    return float(settings["batch"] * (prompt_length(settings) + 2 * settings["answer"]))


def work(settings: Settings) -> list[Product]:
    """The language model's; the frozen tower runs once for an image that was not seen before."""
    products = language_model_work(
        body=language.body_of(settings),
        vocabulary=settings["vocabulary"],
        prompt=prompt_length(settings),
        answer=settings["answer"],
        group=2,
        count=settings["batch"],
        passes=4,
    )
    if settings["shared"]:
        return products
    return [*products, tower_work(settings, images=settings["batch"] * settings["images"])]


def tower_work(settings: Settings, *, images: int) -> Product:
    """A frozen tower on so many images."""
    width, patches = settings["tower_width"], image_tokens(settings) + 1
    layer = 2 * 12 * width**2 * patches + 4 * width * patches**2
    return Product(
        name="tower",
        shape=(images * patches, width, 4 * width),
        flops=float(images * settings["tower_layers"] * layer),
    )


def ours(settings: Settings) -> Measured:
    """Through the public API, as a config would."""
    from mmalign.data import File
    from mmalign.objectives import DPO
    from mmalign.references import Frozen
    from mmalign.run import Run
    from mmalign.sources import Preferences
    from mmalign.vision import LVLMPolicy

    folder = Path(settings["folder"])
    data = File(path=str(folder / "rows.jsonl"))
    run = Run(
        policy=LVLMPolicy(model=str(folder / "model"), max_new_tokens=settings["answer"]),
        objective=DPO(beta=BETA),
        source=Preferences(data=data, batch_size=settings["batch"], shuffle=False),
        reference=Frozen(),
        training=language.training(settings),
        output=str(Path(settings["scratch"]) / "run"),
    )
    return language.run_ours(run, settings, units=units(settings))


def trl(settings: Settings) -> Measured:
    """TRL's own trainer and collator; it has no way to compute this reference beforehand."""
    from datasets import Dataset, Features, Image, List, Value
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    folder = Path(settings["folder"])
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features(
        {"prompt": message, "chosen": message, "rejected": message, "images": List(Image())}
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "images": [str(folder / name) for name in row["images"]],
        }
        for row in language.read_rows(settings)
    ]
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    model.get_encoder(modality="image").requires_grad_(False)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            beta=BETA,
            max_length=None,
            per_device_train_batch_size=settings["batch"],
            **language.trl_arguments(settings),
        ),
        train_dataset=Dataset.from_list(rows, features=features),
        processing_class=AutoProcessor.from_pretrained(folder / "model"),
    )
    found = trainer.data_collator([trainer.train_dataset[0]])
    assert found["input_ids"].shape == (2, prompt_length(settings) + settings["answer"])
    return language.run_trl(trainer, settings, units=units(settings))


def trl_scored(settings: Settings) -> Measured:
    """TRL's head at scored positions alone, as where Triton runs."""
    language.trl_scores_completions_only()
    return trl(settings)


SMALL = {
    **language.MODEL, "special": len(SPECIAL), "batch": 2, "pixels": 336, "patch": 14, "images": 1,
    "words": 32, "answer": 64, "tower_layers": 2, "tower_width": 128, "shared": False,
}  # fmt: skip
LARGE = {
    **SMALL, **language.LARGE, "batch": 4, "images": 2, "answer": 128, "tower_layers": 24,
    "tower_width": 1024, "device": "cuda",
}  # fmt: skip
CELL = Cell(
    name="lvlm_dpo",
    title="DPO on answers about images, 576 image tokens and 32 words / 64 tokens, 2 pairs a step",
    unit="unique tokens",
    cases={
        "an image a pair": SMALL,
        "one image in all pairs": {**SMALL, "shared": True},
        "0.8B, two images a pair": LARGE,
    },
    sides={"mmalign": ours, "TRL": trl, "TRL, head at scored positions": trl_scored},
    prepare=prepare,
    work=work,
    quick={
        **language.QUICK, "vocabulary": 4096, "rate": 3e-3, "batch": 2, "pixels": 28, "words": 5,
        "answer": 6, "tower_layers": 1, "tower_width": 32,
    },
)  # fmt: skip

if __name__ == "__main__":
    main(CELL)
