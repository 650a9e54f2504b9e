"""Settings of diffusion and flow policies: the `policy:` node of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmalign import lora as lora_module
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.policy import Policy

if TYPE_CHECKING:
    from mmalign.diffusion.families import Family
    from mmalign.diffusion.sampling import Denoising
    from mmalign.protocols import Adapter

DType = Literal["float32", "bfloat16", "float16"]
# Attention and feed-forward layers of UNets and transformers; embeddings and norms stay untouched.
LORA_TARGETS = (
    r".*(attn|attn1|attn2)\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|.*(ff|ff_context)\.net\.(0\.proj|2)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionPolicy:
    """A diffusers pipeline whose network predicts noise or v (Stable Diffusion 1 and 2).

    Attributes:
        model: Folder, hub name or "tinyworld/diffusion".
        likelihood: "path": a step is a denoising move with an exact likelihood, for what the policy
            itself drew. "elbo": a step is a (timestep, noise) draw of the bound, for any picture.
        steps: Denoising moves of a picture.
        guidance_scale: Classifier-free guidance of sampling (and of scoring a path); 1 for none.
        eta: Randomness of DDIM's moves; None for 1 on a path and 0 under the bound, where sampling
            is then deterministic but for the initial noise.
        step_fraction: Path: share of the moves that is scored.
        draws: Bound: (timestep, noise) draws of a prompt.
        timestep_range: Bound: noise levels drawn from, as fractions; 0 is clean, 1 is noise.
        timestep_draw: Bound: their density.
        latent: Bound: the VAE's mean, or a draw, for recorded pictures.
        resize: Bound: convert and resize recorded pictures instead of refusing them.
        size: Side of the pictures in pixels; None for the model's own.
        lora: LoRA settings, or None for full fine-tuning of the network.
        rows_per_forward: Rows in one call while sampling, encoding and decoding.
        dtype: Precision of the weights.
        cache: Folder in which answers of VAE and text encoders are kept for later epochs and runs;
            None to keep the last ones in memory. What is in it may be deleted at any time.
    """

    model: str
    likelihood: Literal["path", "elbo"] = "elbo"
    steps: int = 50
    guidance_scale: float = 5.0
    eta: float | None = None
    step_fraction: float = 1.0
    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: Literal["uniform", "logit_normal"] = "uniform"
    latent: Literal["mean", "sample"] = "mean"
    resize: bool = False
    size: int | None = None
    lora: LoRA | None = None
    rows_per_forward: int = 64
    dtype: DType = "float32"
    cache: str | None = None

    def load(self) -> Policy:
        """Load the pipeline.

        Raises:
            ValueError: The pipeline is of another kind, or the settings do not fit together.
        """
        from mmalign.diffusion.processes import Diffusion

        amount = _amount(self.eta, default=1.0, likelihood=self.likelihood)
        family = load_family(
            self.model,
            size=self.size,
            max_sequence_length=None,
            dtype=self.dtype,
            cache=self.cache,
        )
        if not isinstance(family.process, Diffusion):
            raise ValueError(f"{self.model!r} is a flow, not a diffusion; use `type: flow`")
        return _policy(family, self, _denoising(self, amount))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPolicy:
    """A diffusers pipeline on a rectified flow (Stable Diffusion 3).

    Attributes:
        model: Folder, hub name or "tinyworld/flow".
        likelihood: As in `DiffusionPolicy`.
        steps: Denoising moves of a picture.
        guidance_scale: Classifier-free guidance of sampling (and of scoring a path); 1 for none.
        noise_level: The factor a of the stochastic flow; None for 0.7 on a path and 0 (the Euler
            steps of the ODE) under the bound.
        step_fraction: Path: share of the moves that is scored.
        draws: Bound: (timestep, noise) draws of a prompt.
        timestep_range: Bound: noise levels drawn from, as fractions; 0 is clean, 1 is noise.
        timestep_draw: Bound: their density; logit-normal as flows are trained.
        latent: Bound: the VAE's mean, or a draw, for recorded pictures.
        resize: Bound: convert and resize recorded pictures instead of refusing them.
        size: Side of the pictures in pixels; None for the model's own.
        max_sequence_length: Tokens of the T5 encoder, or of the zeros that diffusers' pipeline puts
            in the place of a missing one; None for 256 with a T5 and 0 without.
        lora: LoRA settings, or None for full fine-tuning of the network.
        rows_per_forward: Rows in one call while sampling, encoding and decoding.
        dtype: Precision of the weights.
        cache: Folder in which answers of VAE and text encoders are kept for later epochs and runs;
            None to keep the last ones in memory. What is in it may be deleted at any time.
    """

    model: str
    likelihood: Literal["path", "elbo"] = "elbo"
    steps: int = 10
    guidance_scale: float = 4.5
    noise_level: float | None = None
    step_fraction: float = 1.0
    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: Literal["uniform", "logit_normal"] = "logit_normal"
    latent: Literal["mean", "sample"] = "mean"
    resize: bool = False
    size: int | None = None
    max_sequence_length: int | None = None
    lora: LoRA | None = None
    rows_per_forward: int = 64
    dtype: DType = "float32"
    cache: str | None = None

    def load(self) -> Policy:
        """Load the pipeline.

        Raises:
            ValueError: The pipeline is of another kind, or the settings do not fit together.
        """
        from mmalign.diffusion.processes import Flow

        amount = _amount(self.noise_level, default=0.7, likelihood=self.likelihood)
        family = load_family(
            self.model,
            size=self.size,
            max_sequence_length=self.max_sequence_length,
            dtype=self.dtype,
            cache=self.cache,
        )
        if not isinstance(family.process, Flow):
            raise ValueError(f"{self.model!r} is a diffusion, not a flow; use `type: diffusion`")
        return _policy(family, self, _denoising(self, amount))


def load_family(
    model: str,
    *,
    size: int | None,
    max_sequence_length: int | None,
    dtype: DType,
    cache: str | None,
) -> Family:
    """Load a pipeline and recognise its family by its class.

    Raises:
        ValueError: Its family is not supported.
    """
    import torch
    from diffusers import DiffusionPipeline

    from mmalign.diffusion.families import family_of

    where = locate(model)
    index: dict[str, Any] = DiffusionPipeline.load_config(where)
    family = family_of(index["_class_name"])
    # Parts that a pipeline may lack have to be named, or diffusers asks for them.
    absent = {
        name: None
        for name in ("text_encoder_3", "tokenizer_3")
        if index["_class_name"] == "StableDiffusion3Pipeline" and not _present(index, name)
    }
    if "safety_checker" in index:
        absent |= {"safety_checker": None, "feature_extractor": None}
    pipe = DiffusionPipeline.from_pretrained(where, **absent)
    # Not while loading: text encoders would keep the precision they are stored in.
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and part.dtype != getattr(torch, dtype):
            part.to(getattr(torch, dtype))
    loaded: Family = family(pipe, size=size, max_sequence_length=max_sequence_length, cache=cache)
    return loaded


def _present(index: dict[str, Any], name: str) -> bool:
    return name in index and index[name][0] is not None


def _amount(given: float | None, *, default: float, likelihood: str) -> float:
    if given is not None:
        return given
    return default if likelihood == "path" else 0.0


def _denoising(spec: DiffusionPolicy | FlowPolicy, amount: float) -> Denoising:
    from mmalign.diffusion.sampling import Denoising

    return Denoising(
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        amount=amount,
        rows_per_forward=spec.rows_per_forward,
    )


def _policy(family: Family, spec: DiffusionPolicy | FlowPolicy, denoising: Denoising) -> Policy:
    from mmalign.diffusion.elbo import ElboAdapter, ElboSettings
    from mmalign.diffusion.path import PathAdapter, PathSettings

    adapter: Adapter
    if spec.likelihood == "path":
        path = PathSettings(denoising=denoising, step_fraction=spec.step_fraction)
        adapter = PathAdapter(family=family, settings=path)
    else:
        bound = ElboSettings(
            denoising=denoising,
            draws=spec.draws,
            timestep_range=spec.timestep_range,
            timestep_draw=spec.timestep_draw,
            latent=spec.latent,
            resize=spec.resize,
        )
        adapter = ElboAdapter(family=family, settings=bound)
    return Policy(adapter=adapter, model=_trainable_network(family, spec.lora))


def _trainable_network(family: Family, lora: LoRA | None) -> Any:
    """The network, alone trainable: wholly, or its LoRA."""
    import torch

    for part in family.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    network = getattr(family.pipe, family.network_name)
    if lora is None:
        return network.requires_grad_(True)
    lora_module.attach(network, lora, targets=LORA_TARGETS)
    return network
