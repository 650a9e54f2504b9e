"""Pictures and clips to latents and back: a pipeline's VAE, and how its network wants it scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import Tensor

from mmalign.diffusion.frozen import Frozen
from mmalign.diffusion.options import Options

Scale = float | Sequence[float]
"""A number, or one for each channel of a latent."""
Scaling = Callable[[Any], tuple[Scale, Scale]]
"""From a VAE's config to shift and factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latents:
    """A VAE as an adapter sees it: ``latent = (posterior - shift) * factor``.

    Attributes:
        pipe: The pipeline, whose `vae` this is about.
        shape: (C, H, W) of a picture's latent, (C, F, H, W) of a clip's.
        size: Height and width in pixels.
        frames: Frames of a clip; None where an output is a picture.
        volumes: Whether the VAE reads volumes, of one frame where the output is a picture.
        resize: Whether pictures of other channels and sizes are converted instead of refused.
        shift: Number, or one for each channel.
        factor: Likewise.
        posteriors: What the VAE has answered.
        unit: What height and width in pixels must be a multiple of.
    """

    pipe: Any = field(repr=False)
    shape: tuple[int, ...]
    size: tuple[int, int]
    frames: int | None
    volumes: bool
    resize: bool
    shift: Scale = field(repr=False)
    factor: Scale = field(repr=False)
    posteriors: Frozen = field(repr=False)
    unit: int

    @property
    def flat(self) -> bool:
        """Whether a picture is to the VAE a volume of one frame."""
        return self.volumes and self.frames is None

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the latent of a picture of ``size`` pixels."""
        pixels = self.size[0] // self.shape[-2]
        return size[0] // pixels, size[1] // pixels

    @property
    def tokens(self) -> int:
        """Elements of the latent in one channel; what a patch holds of them is the network's."""
        return prod(self.shape[1:])

    def read(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's posterior, each ``[B, *shape]`` float32.

        Args:
            pixels: ``[B, 3, H, W]`` of pictures or ``[B, 3, F, H, W]`` of clips, in [-1, 1].
        """
        vae = self.pipe.vae
        inputs = pixels[:, :, None] if self.flat else pixels
        encoded = vae.encode(inputs.to(vae.device, vae.dtype))
        if isinstance(vae, AutoencoderDC):
            mean, std = encoded.latent, torch.zeros_like(encoded.latent)
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        if self.flat:
            mean, std = mean[:, :, 0], std[:, :, 0]
        return mean.float(), std.float()

    def draw(self, latent: Tensor) -> Tensor:
        """The VAE's pixels of latents ``[B, *shape]``, as `read` takes them, float32."""
        vae = self.pipe.vae
        scaled = self.from_latents(latent)
        inputs = scaled[:, :, None] if self.flat else scaled
        # Within autocast a picture would be another one than outside of it.
        with torch.autocast(vae.device.type, enabled=False):
            decoded: Tensor = vae.decode(inputs.to(vae.device, vae.dtype), return_dict=False)[0]
        pixels = decoded[:, :, 0] if self.flat else decoded
        return pixels.float()

    def to_latents(self, posterior: Tensor) -> Tensor:
        """What the VAE says, scaled as the network wants it."""
        return (posterior - _wide(self.shift, posterior)) * _wide(self.factor, posterior)

    def from_latents(self, latent: Tensor) -> Tensor:
        """The inverse of `to_latents`."""
        return latent / _wide(self.factor, latent) + _wide(self.shift, latent)


def scaled(config: Any) -> tuple[Scale, Scale]:
    """Times the VAE's scaling factor."""
    return 0.0, float(config.scaling_factor)


def shifted(config: Any) -> tuple[Scale, Scale]:
    """Less the VAE's shift, times its scaling factor."""
    return float(config.shift_factor or 0.0), float(config.scaling_factor)


def normalised(config: Any) -> tuple[Scale, Scale]:
    """To mean 0 and deviation 1 of each channel, then times the scaling factor where there is one.

    Without means and deviations in the config, as `scaled`.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return scaled(config)
    factor = float(config.get("scaling_factor") or 1.0)
    return tuple(mean), tuple(factor / s for s in std)


def latents_of(
    pipe: Any,
    options: Options,
    *,
    channels: int,
    factor: int,
    multiple: int,
    natural: int | tuple[int, int],
    network: str = "transformer",
    scaling: Scaling = scaled,
    frames: tuple[int, int] | None = None,
    volumes: bool = False,
) -> Latents:
    """The `Latents` of a pipeline.

    Args:
        pipe: The pipeline.
        options: The run's.
        channels: Channels of a latent, before any packing.
        factor: Pixels of a side that make one element of the latent.
        multiple: What the network needs the latent's sides to be a multiple of.
        natural: Side, or height and width, in pixels where the run does not say.
        network: The component that is trained.
        scaling: `scaled`, `shifted` or `normalised`: what the pipeline does before it decodes.
        frames: Natural number of frames of a clip, and how many of them make one of the latent
            behind the first; None for pictures.
        volumes: Whether the VAE reads volumes.

    Raises:
        ValueError: The size or the number of frames does not fit the model, or the VAE does not
            fit the network.
    """
    require_channels(pipe.vae.config, channels)
    height, width = sides(options.size, natural=natural, factor=factor, multiple=multiple)
    count = None
    shape: tuple[int, ...] = (channels, height, width)
    if frames is not None:
        count = clip_length(options.num_frames, natural=frames[0], factor=frames[1])
        shape = (channels, (count - 1) // frames[1] + 1, height, width)
    elif options.num_frames is not None:
        raise ValueError("num_frames belongs to pipelines that draw clips; leave it unset")
    shift, by = scaling(pipe.vae.config)
    about = f"mean and std of the posterior, {settings_of(pipe.vae)}"
    if options.vae_tiling:
        pipe.vae.enable_tiling()
        about += ", tile by tile"
    return Latents(
        pipe=pipe,
        shape=shape,
        size=(height * factor, width * factor),
        frames=count,
        volumes=volumes,
        resize=options.resize,
        shift=shift,
        factor=by,
        posteriors=Frozen(
            pipe,
            network=network,
            parts=("vae",),
            settings=about,
            folder=options.cache,
        ),
        unit=factor * multiple,
    )


def patched(pipe: Any, options: Options, *, scaling: Scaling = scaled) -> Latents:
    """The `Latents` of a pipeline whose transformer cuts them into patches itself.

    Raises:
        ValueError: As `latents_of` does.
    """
    config, factor = pipe.transformer.config, int(pipe.vae_scale_factor)
    return latents_of(
        pipe,
        options,
        channels=int(config.in_channels),
        factor=factor,
        multiple=int(config.patch_size),
        natural=int(config.sample_size) * factor,
        scaling=scaling,
    )


def packed(
    pipe: Any, options: Options, *, scaling: Scaling = scaled, volumes: bool = False
) -> Latents:
    """The `Latents` of a pipeline whose transformer is given them packed, two by two elements.

    Raises:
        ValueError: As `latents_of` does.
    """
    factor = int(pipe.vae_scale_factor)
    return latents_of(
        pipe,
        options,
        channels=int(pipe.transformer.config.in_channels) // 4,
        factor=factor,
        multiple=2,
        natural=int(pipe.default_sample_size) * factor,
        scaling=scaling,
        volumes=volumes,
    )


def require_channels(config: Any, channels: int) -> None:
    """Refuse a VAE that belongs to another network, or to other pictures.

    Args:
        config: The VAE's.
        channels: Of the latent that the network reads.

    Raises:
        ValueError: Its latents have another number of channels, or its pictures are not RGB.
    """
    own = config.get("latent_channels", config.get("z_dim"))
    if own != channels:
        raise ValueError(
            f"the VAE's latents have {own} channels and the network reads {channels}: they are not "
            "of one pipeline, or it is one for inpainting, which is not supported"
        )
    if config.get("in_channels", 3) != 3:
        raise ValueError(
            f"the VAE reads pictures of {config['in_channels']} channels, and pictures are RGB; "
            "use a pipeline of pictures in colour"
        )


def sides(
    size: int | tuple[int, int] | None,
    *,
    natural: int | tuple[int, int],
    factor: int,
    multiple: int,
) -> tuple[int, int]:
    """Height and width of a latent.

    Args:
        size: Side, or height and width, in pixels; None for ``natural``.
        natural: What the model draws where nothing is said, likewise.
        factor: Pixels of a side that make one element of the latent.
        multiple: What the latent's sides must be a multiple of.

    Raises:
        ValueError: A side does not divide into latents as the network needs it.
    """
    wanted = natural if size is None else size
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    for side in (height, width):
        if side <= 0 or side % (factor * multiple):
            raise ValueError(
                f"size={side} pixels does not fit this model; it must be a multiple of "
                f"{factor * multiple}"
            )
    return height // factor, width // factor


def clip_length(num_frames: int | None, *, natural: int, factor: int) -> int:
    """Frames of a clip.

    Raises:
        ValueError: The VAE cannot cut that number: it takes one frame, then ``factor`` at a time.
    """
    count = natural if num_frames is None else num_frames
    if count < 1 or (count - 1) % factor:
        raise ValueError(
            f"num_frames={count} does not fit this model; it must be 1 more than a multiple of "
            f"{factor}"
        )
    return count


def settings_of(part: Any) -> dict[str, Any]:
    """The config of a part, without where it was loaded from and who wrote it."""
    return {k: v for k, v in dict(part.config).items() if not k.startswith("_")}


def _wide(value: Scale, like: Tensor) -> Tensor | float:
    """A number, or one for each channel of ``[B, C, ...]``."""
    if isinstance(value, float):
        return value
    return torch.tensor(value, device=like.device, dtype=like.dtype).view(
        1, -1, *[1] * (like.ndim - 2)
    )
