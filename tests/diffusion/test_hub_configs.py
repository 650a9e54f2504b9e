"""Configs for real checkpoints, run on a tiny pipeline of the same class."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from mmalign import config
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.diffusion.families import FAMILIES
from mmalign.locate import configs
from mmalign.log import RunFolder
from mmalign.run import Run
from tests.diffusion import tiny
from tests.diffusion.test_calls import Pictures, Redness
from tests.diffusion.test_families import prompts_of
from tests.diffusion.tiny_families import KINDS, folder_of

FOLDER = configs() / "diffusion" / "hub"
KIND_OF = {
    "flux_grpo": "flux",
    "flux_kontext_grpo": "kontext",
    "ltx_grpo": "ltx",
    "pixart_sigma_dpo": "pixart_sigma",
    "qwen_image_online_dpo": "qwen_image",
    "sana_grpo": "sana",
    "sd35_grpo": "stable_diffusion_3",
    "sdxl_dpo": "stable_diffusion_xl",
    "wan_grpo": "wan",
}


class Edits(Pictures):
    """Prompts that come with a picture."""

    def prompts(self) -> Any:
        return prompts_of("kontext")


def tiny_run(name: str, output: Path) -> Run:
    """The config with its numbers made small and its model the tiny one of the family."""
    run, kind = config.load(FOLDER / f"{name}.yaml"), KIND_OF[name]
    if kind == "stable_diffusion_3":
        model, options = tiny.save(tiny.flow(), output / "pipeline"), {"size": 16}
    else:
        model, options = folder_of(kind), dict(KINDS[kind].options)
    assert isinstance(run.policy, DiffusionPolicy | FlowPolicy)
    policy = replace(
        run.policy, model=model, steps=3, dtype="float32", cache=None,
        **{"size": None, "resize": True, **options},
    )  # fmt: skip
    small: dict[str, Any] = {"data": Pictures(), "batch_size": 2}
    if "grpo" in name or "online" in name:
        small |= {"data": Edits() if kind == "kontext" else Pictures(), "num_generations": 3}
        small["reward"] = Redness()
    training = replace(run.training, steps=1, warmup_steps=0, mixed_precision="no")
    source = replace(run.source, **small)  # type: ignore[type-var]
    return replace(run, policy=policy, source=source, training=training, output=str(output / "run"))


def test_every_config_is_here() -> None:
    """With a family each; two SDXLs apart, every family but the oldest one has a config."""
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(KIND_OF)
    assert len(set(KIND_OF.values())) == len(FAMILIES) - 1


# What diffusers' own example of a pipeline says where it is not the default of a call, and for
# Stable Diffusion 3.5 what others publish: the default is that of the version before.
SAID = {"FluxKontextPipeline": 2.5, "StableDiffusion3Pipeline": 4.5}


@pytest.mark.parametrize("name", KIND_OF)
def test_guidance_is_that_of_the_pipeline(name: str) -> None:
    """The default of its call, classifier-free or read by the network, or what is said of it."""
    run, kind = config.load(FOLDER / f"{name}.yaml"), KIND_OF[name]
    build = tiny.flow if kind == "stable_diffusion_3" else KINDS[kind].build
    pipeline = type(build())
    call = inspect.signature(pipeline.__call__).parameters
    default = call["guidance_scale"].default or call["true_cfg_scale"].default
    expected = SAID.get(pipeline.__name__, default)
    assert run.policy.guidance_scale == expected  # type: ignore[attr-defined]


# One of each kind: a whole UNet offline, a picture to edit, pairs drawn online, clips.
TRAINED = ("sdxl_dpo", "flux_kontext_grpo", "qwen_image_online_dpo", "wan_grpo")


@pytest.mark.parametrize("name", TRAINED)
def test_a_config_trains_a_tiny_pipeline(name: str, tmp_path: Path) -> None:
    """One update, a finite loss, and a model that diffusers knows."""
    run = tiny_run(name, tmp_path)
    run.build().train()
    (line,) = RunFolder(Path(run.output)).read("metrics.jsonl")
    assert abs(line["loss"]) < 10
    saved = {file.name for file in (Path(run.output) / "model").iterdir()}
    whole = DiffusionPipeline.config_name
    assert (whole if run.policy.lora is None else "adapter_model.safetensors") in saved
