"""What is saved loads with plain diffusers and draws the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from mmalign import rng
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.types import Prompt

RANK = LoRA(rank=3, alpha=12)
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


def trained(policy: Policy) -> Policy:
    """The policy after something like training: every trainable parameter has moved."""
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.3 * torch.randn_like(parameter)
    return policy


def drawn(policy: Policy, text: str) -> Image.Image:
    generators = [rng.generator("sample", 0)]
    found = policy.sample([Prompt(content=text)], group_size=1, generators=generators)
    assert isinstance(found.outputs[0], Image.Image)
    return found.outputs[0]


def largest_difference(first: Image.Image, second: Image.Image) -> int:
    """In grey levels."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


Load = Callable[[dict[str, str], LoRA | None], Policy]


def diffusion(folders: dict[str, str], lora: LoRA | None) -> Policy:
    spec = DiffusionPolicy(model=folders["epsilon"], steps=4, guidance_scale=3.0, lora=lora)
    return trained(spec.load())


def diffusion_path(folders: dict[str, str], lora: LoRA | None) -> Policy:
    spec = DiffusionPolicy(
        model=folders["epsilon"], likelihood="path", steps=4, guidance_scale=3.0, lora=lora
    )
    return trained(spec.load())


def flow(folders: dict[str, str], lora: LoRA | None) -> Policy:
    spec = FlowPolicy(model=folders["flow"], steps=4, guidance_scale=3.0, lora=lora)
    return trained(spec.load())


CASES: dict[str, tuple[Load, str, dict[str, None], dict[str, object]]] = {
    "diffusion": (diffusion, "epsilon", {}, {}),
    "diffusion_path": (diffusion_path, "epsilon", {}, {"eta": 1.0}),
    "flow": (flow, "flow", NO_T5, {"max_sequence_length": 0}),
}


def plainly_drawn(pipe: DiffusionPipeline, text: str, **call: object) -> Image.Image:
    """What anyone with diffusers alone would write."""
    pipe.set_progress_bar_config(disable=True)
    generator = [rng.generator("sample", 0)]
    images = pipe(
        [text], num_inference_steps=4, guidance_scale=3.0, generator=generator, **call
    ).images
    assert isinstance(images[0], Image.Image)
    return images[0]


@pytest.mark.parametrize("case", CASES)
def test_a_lora_loads_into_a_pipeline(folders: dict[str, str], tmp_path: Path, case: str) -> None:
    """With its scale alpha / rank, and it is what changes the picture."""
    load, kind, absent, call = CASES[case]
    policy = load(folders, RANK)
    policy.save(tmp_path)
    ours = drawn(policy, "a red circle")
    pipe = DiffusionPipeline.from_pretrained(folders[kind], **absent)
    before = plainly_drawn(pipe, "a red circle", **call)
    pipe.load_lora_weights(str(tmp_path))
    after = plainly_drawn(pipe, "a red circle", **call)
    assert largest_difference(ours, after) <= 1
    assert largest_difference(ours, before) > 1


@pytest.mark.parametrize("case", CASES)
def test_a_trained_network_is_saved_as_a_pipeline(
    folders: dict[str, str], tmp_path: Path, case: str
) -> None:
    """The whole folder loads, and draws what the policy draws."""
    load, kind, absent, call = CASES[case]
    policy = load(folders, None)
    policy.save(tmp_path)
    ours = drawn(policy, "two large blue squares")
    pipe = DiffusionPipeline.from_pretrained(str(tmp_path), **absent)
    assert largest_difference(ours, plainly_drawn(pipe, "two large blue squares", **call)) <= 1
    pipe = DiffusionPipeline.from_pretrained(folders[kind], **absent)
    assert largest_difference(ours, plainly_drawn(pipe, "two large blue squares", **call)) > 1


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_a_run_starts_from_a_saved_lora(folders: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Through peft's layout, which is written beside diffusers'."""
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    policy = trained(spec(model=folders[kind], steps=3, lora=RANK).load())
    policy.save(tmp_path)
    again = spec(model=folders[kind], steps=3, lora=LoRA(path=str(tmp_path))).load()
    assert largest_difference(drawn(policy, "a red circle"), drawn(again, "a red circle")) <= 1
    assert again.trainable().keys() == policy.trainable().keys()
