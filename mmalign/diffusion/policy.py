"""Settings of diffusion and flow policies: the `policy:` node of a config."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mmalign import lora as lora_module
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.policy import Policy

if TYPE_CHECKING:
    from mmalign.diffusion.families import Family
    from mmalign.diffusion.options import Options
    from mmalign.diffusion.sampling import Denoising
    from mmalign.protocols import Adapter

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionPolicy:
    """A diffusers pipeline whose network predicts noise or v (Stable Diffusion, SDXL, PixArt).

    Attributes:
        model: Folder, hub name or "tinyworld/diffusion".
        likelihood: "path": a step is a denoising move with an exact likelihood, for what the policy
            itself drew. "elbo": a step is a (timestep, noise) draw of the bound, for any picture.
        steps: Denoising moves of a picture.
        guidance_scale: Classifier-free guidance of sampling (and of scoring a path); 1 for none.
        eta: Randomness of DDIM's moves; None for 1 on a path and 0 under the bound, where sampling
            is then deterministic but for the initial noise.
        step_fraction: Path: share of the moves that is scored.
        shared_start: Path: whether the pictures of a prompt begin with the same noise.
        window: Path: how many moves in a row are random and scored, the others being those of the
            deterministic sampler; None for all.
        window_start: Path: the first of them; None to draw it anew for every prompt.
        min_std: Path: moves whose deviation is smaller are those of the deterministic sampler and
            are not scored.
        draws: Bound: (timestep, noise) draws of a prompt.
        timestep_range: Bound: noise levels drawn from, as fractions; 0 is clean, 1 is noise.
        timestep_draw: Bound: their density.
        timestep_weight: Bound: what the error at a level counts. "constant" is Diffusion-DPO's;
            "min_snr" takes weight from levels with little noise.
        snr_gamma: Bound: of "min_snr", the ratio of signal to noise where it begins.
        offset_noise: Bound: deviation of noise that is one number a channel, shared by the sides of
            a pair; 0 for none.
        prompt_dropout: Bound: probability that a prompt is scored as if it were empty, on both
            sides of a pair and by the reference alike.
        latent: Bound: the VAE's mean, or a draw, for pictures.
        drawn: Bound: what is scored of a picture that the policy drew: "encoded", the VAE's latent
            of what the judge saw, as of a recorded picture; "own", the latent that the last move
            arrived at, with what the picture does not show.
        resize: Convert given pictures, scale them to cover the size and cut off what stands over,
            instead of refusing them.
        buckets: Bound: heights and widths that recorded pictures may have, where they are not all
            of one size; both sides of a pair must be of one bucket.
        size: Side of the pictures in pixels, or height and width; None for the model's own.
        max_sequence_length: Tokens of the T5 encoder of PixArt; None for 300.
        lora: LoRA settings, or None for full fine-tuning of the network.
        gradient_checkpointing: Compute the network's layers again in the backward pass instead of
            keeping what they gave: a third more work, and much less memory.
        rows_per_forward: Rows in one call while sampling and decoding.
        dtype: Precision of the weights.
        vae_tiling: Whether the VAE works on a large picture tile by tile, which takes less memory
            and blends the tiles' seams, so that latents and pictures are slightly others.
        long_prompts: Whether a prompt that is longer than a text encoder reads is an error, or is
            read in part ("truncate"), which is counted and said.
        cache: Folder in which answers of VAE and text encoders are kept for later epochs and runs;
            None to keep the last ones in memory. What is in it may be deleted at any time.
    """

    model: str
    likelihood: Literal["path", "elbo"] = "elbo"
    steps: int = 50
    guidance_scale: float = 5.0
    eta: float | None = None
    step_fraction: float = 1.0
    shared_start: bool = False
    window: int | None = None
    window_start: int | None = None
    min_std: float = 1e-3
    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: Literal["uniform", "logit_normal"] = "uniform"
    timestep_weight: Literal["constant", "min_snr"] = "constant"
    snr_gamma: float = 5.0
    offset_noise: float = 0.0
    prompt_dropout: float = 0.0
    latent: Literal["mean", "sample"] = "mean"
    drawn: Literal["encoded", "own"] = "encoded"
    resize: bool = False
    buckets: tuple[tuple[int, int], ...] = ()
    size: int | tuple[int, int] | None = None
    max_sequence_length: int | None = None
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    rows_per_forward: int = 64
    dtype: DType = "float32"
    vae_tiling: bool = False
    long_prompts: Literal["error", "truncate"] = "error"
    cache: str | None = None

    def load(self) -> Policy:
        """Load the pipeline.

        Raises:
            ValueError: The pipeline is of another kind, or the settings do not fit together.
        """
        from mmalign.diffusion.processes import Diffusion

        amount = _amount(self.eta, default=1.0, likelihood=self.likelihood)
        family = load_family(self.model, _options(self), dtype=self.dtype)
        if not isinstance(family.process, Diffusion):
            raise ValueError(f"{self.model!r} is a flow, not a diffusion; use `type: flow`")
        return _policy(family, self, _denoising(self, amount))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPolicy:
    """A diffusers pipeline on a rectified flow (SD3, Flux, Sana, Qwen-Image, Wan, LTX-Video).

    Attributes:
        model: Folder, hub name or "tinyworld/flow".
        likelihood: As in `DiffusionPolicy`.
        steps: Denoising moves of a picture.
        guidance_scale: Classifier-free guidance of sampling (and of scoring a path); 1 for none.
        sde: Which diffusion makes a path stochastic: "marginal" grows with the level (Flow-GRPO),
            "constant" does not (DanceGRPO).
        noise_level: How strong it is, a of "marginal" and eta of "constant"; None for 0.7 and 0.3
            on a path, and 0 (the Euler steps of the ODE) under the bound.
        step_fraction: Path: share of the moves that is scored.
        shared_start: Path: whether the pictures of a prompt begin with the same noise.
        window: Path: how many moves in a row are random and scored, the others being those of the
            deterministic sampler; None for all.
        window_start: Path: the first of them; None to draw it anew for every prompt.
        min_std: Path: moves whose deviation is smaller are those of the deterministic sampler and
            are not scored.
        draws: Bound: (timestep, noise) draws of a prompt.
        timestep_range: Bound: noise levels drawn from, as fractions; 0 is clean, 1 is noise.
        timestep_draw: Bound: their density; logit-normal as flows are trained.
        offset_noise: As in `DiffusionPolicy`.
        prompt_dropout: As in `DiffusionPolicy`.
        latent: Bound: the VAE's mean, or a draw, for pictures.
        drawn: As in `DiffusionPolicy`.
        resize: Convert given pictures, scale them to cover the size and cut off what stands over,
            instead of refusing them.
        buckets: Bound: heights and widths that recorded pictures may have, where they are not all
            of one size; both sides of a pair must be of one bucket.
        size: Side of the pictures in pixels, or height and width; None for the model's own.
        num_frames: Frames of a clip; None for the model's own number, and for pictures.
        max_sequence_length: Tokens of the text encoder whose length is open; None for the
            pipeline's own (SD3: 256 with a T5, and without one 0 of the zeros in its place).
        lora: LoRA settings, or None for full fine-tuning of the network.
        gradient_checkpointing: Compute the network's layers again in the backward pass instead of
            keeping what they gave: a third more work, and much less memory.
        rows_per_forward: Rows in one call while sampling and decoding.
        dtype: Precision of the weights.
        vae_tiling: Whether the VAE works on a large picture tile by tile, which takes less memory
            and blends the tiles' seams, so that latents and pictures are slightly others.
        long_prompts: Whether a prompt that is longer than a text encoder reads is an error, or is
            read in part ("truncate"), which is counted and said.
        cache: Folder in which answers of VAE and text encoders are kept for later epochs and runs;
            None to keep the last ones in memory. What is in it may be deleted at any time.
    """

    model: str
    likelihood: Literal["path", "elbo"] = "elbo"
    steps: int = 10
    guidance_scale: float = 4.5
    sde: Literal["marginal", "constant"] = "marginal"
    noise_level: float | None = None
    step_fraction: float = 1.0
    shared_start: bool = False
    window: int | None = None
    window_start: int | None = None
    min_std: float = 1e-3
    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: Literal["uniform", "logit_normal"] = "logit_normal"
    offset_noise: float = 0.0
    prompt_dropout: float = 0.0
    latent: Literal["mean", "sample"] = "mean"
    drawn: Literal["encoded", "own"] = "encoded"
    resize: bool = False
    buckets: tuple[tuple[int, int], ...] = ()
    size: int | tuple[int, int] | None = None
    num_frames: int | None = None
    max_sequence_length: int | None = None
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    rows_per_forward: int = 64
    dtype: DType = "float32"
    vae_tiling: bool = False
    long_prompts: Literal["error", "truncate"] = "error"
    cache: str | None = None

    def load(self) -> Policy:
        """Load the pipeline.

        Raises:
            ValueError: The pipeline is of another kind, or the settings do not fit together.
        """
        from mmalign.diffusion.processes import Flow

        default = {"marginal": 0.7, "constant": 0.3}[self.sde]
        amount = _amount(self.noise_level, default=default, likelihood=self.likelihood)
        family = load_family(self.model, _options(self), dtype=self.dtype)
        if not isinstance(family.process, Flow):
            raise ValueError(f"{self.model!r} is a diffusion, not a flow; use `type: diffusion`")
        family = replace(family, process=replace(family.process, sde=self.sde))
        return _policy(family, self, _denoising(self, amount))


def load_family(model: str, options: Options, *, dtype: DType) -> Family:
    """Load a pipeline and recognise its family by its class.

    Raises:
        ValueError: There is no pipeline, or its family is not supported.
    """
    import torch
    from diffusers import DiffusionPipeline

    from mmalign.diffusion.families import family_of

    where = locate(model)
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(where)
    except OSError as error:
        raise ValueError(
            f"no pipeline at {model!r} (`policy.model`): it must be a folder of diffusers' layout, "
            f"with a model_index.json, or the name of one on the hub: {error}"
        ) from error
    if "_class_name" not in index:
        raise ValueError(
            f"model_index.json of {model!r} (`policy.model`) does not name the pipeline's class "
            "(`_class_name`), so it is none of diffusers'; save it with `save_pretrained`"
        )
    build = family_of(index["_class_name"])
    pipe = DiffusionPipeline.from_pretrained(where, **_absent(index))
    # Not while loading: text encoders would keep the precision they are stored in.
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            wanted = _precision(part, dtype)
            if part.dtype != wanted:
                part.to(wanted)
    return build(pipe, options)


def _absent(index: dict[str, Any]) -> dict[str, None]:
    """Parts that a pipeline may lack: they have to be named, or diffusers asks for them.

    A safety checker is left out where there is one: it blackens pictures that a reward is to see.
    """
    import diffusers

    parameters = inspect.signature(getattr(diffusers, index["_class_name"])).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    lacking = [name for name in needed if index.get(name, [None])[0] is None]
    if "safety_checker" in index:
        lacking += ["safety_checker", "feature_extractor"]
    return dict.fromkeys(lacking)


def _precision(part: Any, dtype: DType) -> Any:
    """The run's, or float32 for a VAE that says it overflows in float16 (SDXL's)."""
    import torch

    if dtype == "float16" and part.config.get("force_upcast", False):
        return torch.float32
    return getattr(torch, dtype)


def _amount(given: float | None, *, default: float, likelihood: str) -> float:
    if given is not None:
        return given
    return default if likelihood == "path" else 0.0


def _options(spec: DiffusionPolicy | FlowPolicy) -> Options:
    from mmalign.diffusion.options import Options

    return Options(
        size=spec.size,
        num_frames=spec.num_frames if isinstance(spec, FlowPolicy) else None,
        max_sequence_length=spec.max_sequence_length,
        resize=spec.resize,
        vae_tiling=spec.vae_tiling,
        long_prompts=spec.long_prompts,
        cache=spec.cache,
    )


def _denoising(spec: DiffusionPolicy | FlowPolicy, amount: float) -> Denoising:
    from mmalign.diffusion.sampling import Denoising

    return Denoising(
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        amount=amount,
        rows_per_forward=spec.rows_per_forward,
        shared_start=spec.shared_start,
        window=spec.window,
        window_start=spec.window_start,
        min_std=spec.min_std,
    )


def _policy(family: Family, spec: DiffusionPolicy | FlowPolicy, denoising: Denoising) -> Policy:
    from mmalign.diffusion.draws import DrawSettings
    from mmalign.diffusion.elbo import ElboAdapter, ElboSettings
    from mmalign.diffusion.path import PathAdapter, PathSettings

    adapter: Adapter
    if spec.likelihood == "path":
        path = PathSettings(denoising=denoising, step_fraction=spec.step_fraction)
        adapter = PathAdapter(family=family, settings=path)
    else:
        bound = ElboSettings(
            denoising=denoising,
            drawing=DrawSettings(
                draws=spec.draws,
                timestep_range=spec.timestep_range,
                timestep_draw=spec.timestep_draw,
                offset_noise=spec.offset_noise,
                prompt_dropout=spec.prompt_dropout,
            ),
            latent=spec.latent,
            drawn=spec.drawn,
            buckets=spec.buckets,
        )
        if isinstance(spec, DiffusionPolicy):
            bound = replace(bound, timestep_weight=spec.timestep_weight, snr_gamma=spec.snr_gamma)
        adapter = ElboAdapter(family=family, settings=bound)
    return Policy(adapter=adapter, model=_trainable_network(family, spec))


def _trainable_network(family: Family, spec: DiffusionPolicy | FlowPolicy) -> Any:
    """The network, alone trainable: wholly, or its LoRA."""
    import torch

    for part in family.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    network = getattr(family.pipe, family.network_name)
    if spec.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if spec.lora is None:
        return network.requires_grad_(True)
    lora_module.attach(network, spec.lora, targets=family.lora_targets)
    return network
