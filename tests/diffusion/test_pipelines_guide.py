"""The guide's example of a new pipeline, as a reader would add it; its table against the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mmalign.diffusion import FlowPolicy
from mmalign.diffusion.families import FAMILIES
from mmalign.tinyworld.pretrain.reading import prompt_tokenizer
from mmalign.types import Prompt
from tests.diffusion import tiny
from tests.diffusion.test_families import TEXTS
from tests.diffusion.tiny_families import T5, lively
from tests.test_docs import blocks, imported

GUIDE = "docs/guides/pipelines.md"


def aura_flow() -> Any:
    """One block of each kind."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=tiny.WIDTH,
        caption_projection_dim=tiny.WIDTH,
        pos_embed_max_size=16,
    )
    # T5 knows no token types, which a plain tokenizer would name.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=prompt_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(T5Config(**T5)),
        vae=tiny.vae(),
        transformer=lively(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def test_the_example_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 80 lines, and it draws what AuraFlow's own pipeline draws."""
    (code,) = (block for block in blocks(GUIDE, "python") if "aura_flow" in block)
    assert len(code.splitlines()) <= 80
    name = "mmalign.diffusion.pipelines.aura_flow"
    monkeypatch.delitem(sys.modules, name, raising=False)  # and again afterwards
    imported(code, name, tmp_path)
    monkeypatch.setitem(FAMILIES, "AuraFlowPipeline", "aura_flow:aura_flow")
    torch.manual_seed(0)
    spec = FlowPolicy(
        model=tiny.save(aura_flow(), tmp_path / "pipe"),
        steps=3,
        guidance_scale=3.0,
        size=16,
        max_sequence_length=18,
        drawn="own",
    )
    policy = spec.load()
    drawn = policy.sample(
        [Prompt(content=text) for text in TEXTS],
        group_size=1,
        generators=tiny.generators(2, "s"),
    )
    pipe = policy.adapter.family.pipe  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        list(TEXTS),
        num_inference_steps=3,
        guidance_scale=3.0,
        max_sequence_length=18,
        height=16,
        width=16,
        generator=tiny.generators(2, "s"),
        output_type="latent",
    ).images
    torch.testing.assert_close(drawn.stepwise["latent"][:, 0], theirs, atol=1e-4, rtol=1e-4)


def test_the_table_names_every_family() -> None:
    """Once each, and no other."""
    text = (Path(__file__).parents[2] / GUIDE).read_text("utf-8")
    assert re.findall(r"^\| `(\w+Pipeline)`", text, flags=re.MULTILINE) != []
    assert sorted(re.findall(r"^\| `(\w+Pipeline)`", text, flags=re.MULTILINE)) == sorted(FAMILIES)
