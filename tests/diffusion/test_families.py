"""Every family against its own pipeline: what is drawn, what is predicted, what is saved."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from torch import Tensor

from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.prompts import frames_of
from mmalign.types import Prompt
from tests.diffusion.test_elbo import Oracle, picture
from tests.diffusion.test_saving import largest_difference, trained
from tests.diffusion.tiny import generators
from tests.diffusion.tiny_families import KINDS, TinyPipeline, folder_of

CLIPS = ("wan", "ltx")
"""The kinds whose outputs are clips of five frames."""
TEXTS = ("a red circle", "two large blue squares")


def prompts_of(kind: str) -> list[Prompt]:
    """Two prompts of different length, with a picture each where one is edited."""
    given = [(picture(40 + i),) if kind == "kontext" else () for i in range(2)]
    return [Prompt(content=t, images=g) for t, g in zip(TEXTS, given, strict=True)]


@cache
def policy_of(kind: str) -> Policy:
    """The policy of a kind under the bound, which no test changes; it keeps its own latents."""
    return TinyPipeline(kind=kind, drawn="own").load()


def policy_of_size(kind: str, size: tuple[int, int]) -> Policy:
    """The same at another size."""
    spec = FlowPolicy if KINDS[kind].flow else DiffusionPolicy
    options = {**KINDS[kind].options, "size": size}
    return spec(model=folder_of(kind), **options).load()


def family_of(policy: Policy) -> Any:
    return policy.adapter.family  # type: ignore[attr-defined]


def called(pipe: Any, kind: str, output_type: str) -> Any:
    """What the pipeline draws with the same generators, three steps and a guidance of 3."""
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = dict(KINDS[kind].call)
    if kind == "kontext":
        call["image"] = [p.images[0] for p in prompts_of(kind)]
    found = pipe(
        prompt=list(TEXTS),
        num_inference_steps=3,
        generator=generators(2, "s"),
        output_type=output_type,
        **call,
    )
    return found.frames if kind in CLIPS else found.images


def unpacked(pipe: Any, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Latents as the policy keeps them."""
    if latents.ndim == 3 and len(shape) == 4:
        latents = pipe._unpack_latents(latents, *shape[1:])
    elif latents.ndim == 3:
        latents = pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)
    return latents.view(-1, *shape)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_draws_the_same_latents(kind: str) -> None:
    """The pipeline itself, called with the same generators and guidance, ends where the walk does.

    Its latents for two prompts are not one another's, nor those of no guidance.
    """
    policy = policy_of(kind)
    family = family_of(policy)
    drawn = policy.sample(prompts_of(kind), group_size=1, generators=generators(2, "s"))
    ours = drawn.stepwise["latent"][:, 0]
    theirs = unpacked(family.pipe, called(family.pipe, kind, "latent"), family.latents.shape)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    other = TinyPipeline(kind=kind, guidance_scale=1.0, drawn="own").load()
    drawn = other.sample(prompts_of(kind), group_size=1, generators=generators(2, "s"))
    assert float((drawn.stepwise["latent"][:, 0] - theirs).abs().max()) > 1e-3


def size_of(kind: str) -> int:
    return family_of(policy_of(kind)).latents.size[0]


def outputs_of(kind: str, seed: int) -> Any:
    """A random picture, or a random clip where the family draws clips."""
    if kind not in CLIPS:
        return picture(seed, size=size_of(kind))
    return tuple(picture(5 * seed + i, size=size_of(kind)) for i in range(5))


def encoded(kind: str) -> Any:
    sides = [[outputs_of(kind, 2 * i), outputs_of(kind, 2 * i + 1)] for i in range(2)]
    return policy_of(kind).adapter.encode(prompts_of(kind), sides, generators=generators(2, "e"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_oracle_scores_zero(kind: str) -> None:
    """A network that answers what it should scores 0, one off by 0.2 scores -0.2^2 / 2 = -0.02.

    The targets are noise, ``sqrt(a) noise - sqrt(1 - a) clean``, and noise - clean. The answer is
    given as the network gives it: packed, and with variances behind it where it has them.
    """
    policy, at = policy_of(kind), {k: v[:, 0] for k, v in encoded(kind).stepwise.items()}
    noise, clean = at["noise"], at["latent"]
    truth = noise - clean if KINDS[kind].flow else noise
    if kind.endswith("_v"):
        level = at["level"].view(-1, 1, 1, 1)
        truth = level.sqrt() * noise - (1 - level).sqrt() * clean
    for off, expected in ((0.0, 0.0), (0.2, -0.02)):
        answer = truth + off
        if kind in ("flux", "schnell", "kontext", "qwen_image"):
            pipe = family_of(policy).pipe
            answer = pipe._pack_latents(answer, 4, 4, 8, 8)
        if kind == "ltx":
            answer = family_of(policy).pipe._pack_latents(answer)
        if kind == "pixart_sigma":
            answer = torch.cat([answer, torch.full_like(answer, 7.0)], dim=1)
        scores = policy.adapter.scores(Oracle(answer), encoded(kind)).log_probs
        torch.testing.assert_close(scores, torch.full((4, 1), expected), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_go_to_the_vae_and_back(kind: str) -> None:
    """``from_latents`` undoes ``to_latents``, and a latent is decoded as the pipeline decodes it.

    A picture that is encoded, and the latent that is read, have the declared shapes.
    """
    family = family_of(policy_of(kind))
    latents, recorded = family.latents, encoded(kind).stepwise["latent"][:, 0]
    assert recorded.shape[1:] == latents.shape and not torch.equal(recorded[0], recorded[1])
    there = latents.to_latents(latents.from_latents(recorded))
    torch.testing.assert_close(there, recorded, atol=1e-5, rtol=1e-5)
    drawn = policy_of(kind).sample(prompts_of(kind), group_size=1, generators=generators(2, "s"))
    theirs = called(family.pipe, kind, "pil")
    for ours, other in zip(drawn.outputs, theirs, strict=True):
        assert ours is not None and not isinstance(ours, str)
        for mine, its in zip(frames_of(ours), other if kind in CLIPS else [other], strict=True):
            assert largest_difference(mine, its) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_of_a_picture_is_what_the_pipeline_encodes(kind: str) -> None:
    """The mean of the VAE's posterior, by its own `encode`, on pixels in [-1, 1]."""
    latents = family_of(policy_of(kind)).latents
    vae = latents.pipe.vae
    frames = frames_of(outputs_of(kind, 0))
    pixels = torch.stack([torch.from_numpy(np.array(f)) for f in frames]).permute(3, 0, 1, 2)
    inputs = pixels[None].float() / 127.5 - 1
    with torch.no_grad():
        found = vae.encode(inputs if latents.volumes else inputs[:, :, 0])
    mean = found.latent if kind == "sana" else found.latent_dist.mode()
    expected = latents.to_latents(mean.view(1, *latents.shape))
    torch.testing.assert_close(encoded(kind).stepwise["latent"][:1, 0], expected)


def loaded(kind: str, folder: str) -> Any:
    """The pipeline as anyone with diffusers alone loads it, with the scheduler that is ours."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = family_of(policy_of(kind)).pipe.scheduler
    return pipe


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"stable_diffusion_xl_v", "schnell"}))
def test_a_lora_loads_into_the_pipeline(kind: str, tmp_path: Path) -> None:
    """With its scale; the pipeline then draws what the policy draws, and drew something else.

    PixArt's pipeline loads no LoRA, so peft puts it into the transformer.
    """
    policy = trained(TinyPipeline(kind=kind, lora=LoRA(rank=2, alpha=8), drawn="own").load())
    policy.save(tmp_path)
    drawn = policy.sample(prompts_of(kind), group_size=1, generators=generators(2, "s"))
    ours, shape = drawn.stepwise["latent"][:, 0], family_of(policy).latents.shape
    pipe = loaded(kind, folder_of(kind))
    before = unpacked(pipe, called(pipe, kind, "latent"), shape)
    if kind == "pixart_sigma":
        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, str(tmp_path)).base_model
        pipe.transformer = pipe.transformer.model
    else:
        pipe.load_lora_weights(str(tmp_path))
    after = unpacked(pipe, called(pipe, kind, "latent"), shape)
    torch.testing.assert_close(ours, after, atol=1e-3, rtol=1e-3)
    assert float((ours - before).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["pixart_sigma", "wan"])
def test_a_trained_pipeline_loads(kind: str, tmp_path: Path) -> None:
    """`from_pretrained` alone, the scheduler included, draws what the policy draws."""
    policy = trained(TinyPipeline(kind=kind, drawn="own").load())
    policy.save(tmp_path)
    drawn = policy.sample(prompts_of(kind), group_size=1, generators=generators(2, "s"))
    pipe = DiffusionPipeline.from_pretrained(str(tmp_path))
    theirs = unpacked(pipe, called(pipe, kind, "latent"), family_of(policy).latents.shape)
    torch.testing.assert_close(drawn.stepwise["latent"][:, 0], theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "kind", ["stable_diffusion_xl", "pixart_sigma", "sana", "flux", "qwen_image", "ltx"]
)
def test_another_size_is_read_off_the_latent(kind: str) -> None:
    """Buckets: what a network is told beside the latent fits the latent, not the run's size.

    The policy of one size, given latents of another, predicts what the policy of that size does.
    """
    mine = family_of(policy_of(kind))
    unit = mine.latents.unit
    other = policy_of_size(kind, (2 * unit, 4 * unit))
    told = family_of(other)
    assert told.latents.shape != mine.latents.shape
    draw = torch.Generator().manual_seed(0)
    latent = torch.randn((2, *told.latents.shape), generator=draw)
    given = dict(mine.embed(list(TEXTS)))
    if kind == "flux":
        given["guidance"] = torch.full((2,), 3.0)
    time = torch.tensor([500.0, 500.0])
    with torch.no_grad():
        found = mine.predict(other.model, latent, time, given)
        expected = told.predict(other.model, latent, time, given)
    torch.testing.assert_close(found, expected)


def test_the_last_move_of_a_flow_leaves_no_noise() -> None:
    """Flux's three levels before the shift are 1, 2/3 and 1/3: the last move is long.

    It is the Euler step all the same, and not scored.
    """
    policy = TinyPipeline(kind="flux", likelihood="path").load()
    drawn = policy.sample(prompts_of("flux"), group_size=1, generators=generators(2, "s"))
    assert drawn.mask.tolist() == [[True, True, False]] * 2
    at = {name: value[:, 2] for name, value in drawn.stepwise.items()}
    assert float(at["level"][0]) > 0.3 and float(at["level_next"][0]) == 0
    given = {**drawn.static, "guidance": torch.full((2,), 3.0)}
    with torch.no_grad():
        velocity = family_of(policy).predict(policy.model, at["latent"], at["timestep"], given)
    expected = at["latent"] - at["level"].view(-1, 1, 1, 1) * velocity
    torch.testing.assert_close(at["next"], expected, atol=1e-5, rtol=1e-5)


def test_dynamic_shifting_goes_by_the_number_of_tokens() -> None:
    """16 x 16 pixels are 16 tokens, 32 x 32 are 64: mu = 0.5 + 0.65 (n - 4) / 60, 0.63 and 1.15.

    One half becomes e^mu / (e^mu + 1) = 0.6525 and 0.7595.
    """
    for size, expected in ((16, 0.6525), (32, 0.7595)):
        policy = FlowPolicy(model=folder_of("flux"), size=size, max_sequence_length=18).load()
        levels = family_of(policy).process.schedule(2).level
        torch.testing.assert_close(levels, torch.tensor([1.0, expected]), atol=1e-4, rtol=0)


def test_what_a_family_cannot_do_is_refused() -> None:
    """A picture where none is edited and none where one is; a clip of the wrong length; frames."""
    asked = Prompt(content="a red circle", images=(picture(0),))
    for kind, prompt in (("flux", asked), ("kontext", Prompt(content="a red circle"))):
        with pytest.raises(ValueError, match=r"prompt 0: .* with"):
            policy_of(kind).sample([prompt], group_size=1, generators=generators(1))
    draws = policy_of("wan").adapter
    words = [Prompt(content="a red circle")]
    for output, message in (
        (picture(0), "answers in clips .* is a Image"),
        ((picture(0),) * 3, "3 frames and the model draws 5"),
    ):
        with pytest.raises(ValueError, match=message):
            draws.encode(words, [[output]], generators=generators(1))
    with pytest.raises(ValueError, match="answers in pictures, and the recorded output is a clip"):
        policy_of("flux").adapter.encode(words, [[(picture(0),) * 5]], generators=generators(1))
    for kind, frames, message in (
        ("wan", 4, "num_frames=4 .* 1 more than a multiple of 4"),
        ("flux", 5, "num_frames belongs to pipelines that draw clips"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowPolicy(model=folder_of(kind), size=16, num_frames=frames).load()
