"""Settings of the policies: what loads, what trains, and what is refused."""

from __future__ import annotations

import pytest

from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.diffusion.families import family_of
from mmalign.lora import LoRA
from mmalign.types import Prompt
from tests.diffusion import tiny
from tests.diffusion.tiny import generators


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_what_trains(folders: dict[str, str], kind: str) -> None:
    """With a LoRA its tensors alone, without one the network alone: never VAE or text encoders."""
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    with_lora = spec(model=folders[kind], lora=LoRA(rank=2, alpha=2)).load()
    assert with_lora.trainable() and all("lora_" in name for name in with_lora.trainable())
    full = spec(model=folders[kind]).load()
    own = sum(p.numel() for p in full.model.parameters())
    assert sum(p.numel() for p in full.trainable().values()) == own
    for policy in (with_lora, full):
        pipe = policy.adapter.family.pipe  # type: ignore[attr-defined]
        frozen = [*pipe.vae.parameters(), *pipe.text_encoder.parameters()]
        assert not any(p.requires_grad for p in frozen)
        assert not any(m.training for m in policy.model.modules())


def test_the_wrong_kind_is_refused(folders: dict[str, str]) -> None:
    """Each message names the type to use."""
    with pytest.raises(ValueError, match="type: flow"):
        DiffusionPolicy(model=folders["flow"]).load()
    with pytest.raises(ValueError, match="type: diffusion"):
        FlowPolicy(model=folders["epsilon"]).load()
    with pytest.raises(ValueError, match="KandinskyPipeline are not supported yet"):
        family_of("KandinskyPipeline")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance_scale=0.5"),
        ({"steps": 0}, "steps=0"),
        ({"eta": -1.0}, "must not be negative"),
        ({"draws": 0}, "draws=0"),
        ({"timestep_range": (0.5, 0.5)}, "timestep_range"),
        ({"likelihood": "path", "step_fraction": 0.0}, "step_fraction"),
        ({"size": 18}, "size=18 .* multiple of 4"),
    ],
)
def test_impossible_settings_are_refused(
    folders: dict[str, str], settings: dict[str, object], message: str
) -> None:
    """When the policy is loaded, not in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        DiffusionPolicy(model=folders["epsilon"], **settings).load()  # type: ignore[arg-type]


def test_another_size(folders: dict[str, str]) -> None:
    """The UNet is convolutional: 24 pixels make latents of 12."""
    policy = DiffusionPolicy(model=folders["epsilon"], size=24, steps=2).load()
    found = policy.sample([Prompt(content="a red circle")], group_size=1, generators=generators(1))
    assert found.stepwise["latent"].shape[-2:] == (12, 12)
    assert found.outputs[0].size == (24, 24)  # type: ignore[union-attr]


def test_schedulers_whose_moves_have_no_density_are_refused() -> None:
    """A scheduler that starts from no signal at all cannot serve a network that predicts noise."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from mmalign.diffusion.schedulers import diffusion_process, flow_process

    with pytest.raises(ValueError, match="clips"):
        diffusion_process(DDIMScheduler(clip_sample=True))
    zero = DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="no signal"):
        diffusion_process(zero)
    with pytest.raises(ValueError, match="invert_sigmas"):
        flow_process(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), tokens=16)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        flow_process(DDIMScheduler(), tokens=16)


def test_two_halves_are_one_call(folders: dict[str, str]) -> None:
    """Guidance doubles the rows of a call, not the calls."""
    policy = DiffusionPolicy(model=folders["epsilon"], steps=3, guidance_scale=2.0).load()
    rows: list[int] = []
    policy.model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    policy.sample([Prompt(content="a red circle")], group_size=2, generators=generators(1))
    assert rows == [4, 4, 4]


def test_tiny_pipelines_are_tiny() -> None:
    """So that these tests stay seconds."""
    assert sum(p.numel() for p in tiny.diffusion().unet.parameters()) < 100_000  # type: ignore[attr-defined]
    assert sum(p.numel() for p in tiny.flow().transformer.parameters()) < 100_000  # type: ignore[attr-defined]
