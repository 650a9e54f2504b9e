"""What a run leaves behind works without mmalign, and gives what `mmalign sample` gives.

Language models are sampled cold (temperature 1e-4), which is greedy generation; pictures of the
denoisers come from the same noise.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    JanusForConditionalGeneration,
    JanusProcessor,
)

from mmalign import cli, config, rng
from mmalign.locate import configs, locate
from mmalign.tinyworld.data import TinyWorld
from tests.test_configs_run import small_run

COLD = "policy.temperature=1e-4"
SEED = 5


def aligned(name: str, folder: Path) -> Path:
    """The folder of a short run of a shipped config, with a learning rate that leaves a mark."""
    run = small_run(configs() / name, folder / "run")
    evaluation = config.load(configs() / name).evaluation
    assert evaluation is not None
    few = replace(evaluation, data=replace(evaluation.data, size=4), samples=1)
    training = replace(run.training, steps=2, learning_rate=3e-3, checkpoint_every=None)
    replace(run, training=training, evaluation=few).train()
    return folder / "run"


def sampled(run: Path, output: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows that the command writes for the run's held-out prompts."""
    cli.main(["sample", str(run), *overrides, "--num=2", f"--seed={SEED}", f"--output={output}"])
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_text(tmp_path: Path) -> None:
    """transformers and peft, five lines."""
    run = aligned("text/online_dpo.yaml", tmp_path)
    ours = sampled(run, tmp_path / "samples.jsonl", COLD)

    base = AutoModelForCausalLM.from_pretrained(locate("tinyworld/text"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run / "model")).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for row in ours:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = model.generate(**ids, do_sample=False, max_new_tokens=32)
        text = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == row["completion"]


def test_vision_language(tmp_path: Path) -> None:
    """The processor that was saved beside the LoRA feeds the plain model."""
    run = aligned("vision/lvlm_online_dpo.yaml", tmp_path)
    ours = sampled(run, tmp_path / "samples.jsonl", COLD)
    prompts = TinyWorld(task="describe", split="heldout", size=4, seed=2).prompts()

    base = AutoModelForImageTextToText.from_pretrained(
        locate("tinyworld/lvlm"), dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, str(run / "model")).eval()
    processor = AutoProcessor.from_pretrained(run / "model")
    for row, prompt in zip(ours, prompts, strict=False):
        text = processor.apply_chat_template(list(prompt.content), add_generation_prompt=True)
        inputs = processor(text=[text], images=list(prompt.images), return_tensors="pt")
        made = model.generate(**inputs, do_sample=False, max_new_tokens=48)
        answer = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == row["completion"][0]["content"]


def test_autoregressive_images(tmp_path: Path) -> None:
    """Janus' own greedy generation gives the codes of the sampled pictures."""
    run = aligned("vision/ar_online_dpo.yaml", tmp_path)
    ours = sampled(run, tmp_path / "samples.jsonl", COLD)

    base = JanusForConditionalGeneration.from_pretrained(
        locate("tinyworld/ar_image"), dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, str(run / "model")).eval()
    processor = JanusProcessor.from_pretrained(run / "model")
    turns = [[{"role": "user", "content": row["prompt"]}] for row in ours]
    inputs = processor(
        text=processor.apply_chat_template(turns, add_generation_prompt=True),
        generation_mode="image",
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    codes = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=1.1)
    decoded = base.decode_image_tokens(codes).clamp(-1, 1)
    for row, pixels in zip(ours, decoded, strict=True):
        picture = ((pixels if pixels.shape[-1] == 3 else pixels.permute(1, 2, 0)) + 1) * 127.5
        assert _difference(tmp_path, row, picture.detach().numpy()) <= 2


@pytest.mark.parametrize(
    ("name", "absent", "call"),
    [
        ("diffusion/diffusion_dpo.yaml", {}, {}),
        (
            "diffusion/flow_dpo.yaml",
            {"text_encoder_3": None, "tokenizer_3": None},
            {"max_sequence_length": 0},
        ),
    ],
)
def test_denoisers(
    tmp_path: Path, name: str, absent: dict[str, None], call: dict[str, int]
) -> None:
    """The pipeline that was saved draws the same pictures from the same noise."""
    run = aligned(name, tmp_path)
    ours = sampled(run, tmp_path / "samples.jsonl")

    pipeline = DiffusionPipeline.from_pretrained(run / "model", **absent)
    pipeline.set_progress_bar_config(disable=True)
    for number, row in enumerate(ours):
        noise = [rng.generator(SEED, "evaluate", number)]
        picture = pipeline(
            [row["prompt"]], num_inference_steps=4, guidance_scale=1.0, generator=noise, **call
        ).images[0]
        assert _difference(tmp_path, row, np.asarray(picture, dtype=float)) <= 2


def _difference(folder: Path, row: dict[str, Any], picture: np.ndarray) -> float:
    """Largest difference, in grey levels, between a written sample and a picture."""
    written = Image.open(folder / row["completion_images"][0])
    return float(np.abs(np.asarray(written, dtype=float) - picture).max())
