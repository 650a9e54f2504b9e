"""Random pipelines of every family, of the real classes and small enough for unit tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.tinyworld.pretrain.reading import prompt_tokenizer
from tests.diffusion import tiny
from tests.diffusion.tiny import WIDTH, text_config, vae

T5 = {
    "d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2,
    "vocab_size": len(prompt_tokenizer()),
}  # fmt: skip
LETTERS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SOLVED = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that make answers depend on everything that is read: fresh ones answer almost 0."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def stable_diffusion_xl(prediction_type: str = "epsilon") -> Any:
    """Two levels, the lower with attention."""
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=prompt_tokenizer(),
        tokenizer_2=prompt_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            **LETTERS,
            prediction_type=prediction_type,
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def stable_diffusion_xl_v() -> Any:
    """With v prediction."""
    return stable_diffusion_xl("v_prediction")


def flux(pipeline: Any = FluxPipeline, *, guidance_embeds: bool = True) -> Any:
    """One block of each kind; a shift that depends on the number of tokens."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    return pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift=3.0, base_image_seq_len=4, max_image_seq_len=64
        ),
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=prompt_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(**T5)),
        tokenizer_2=prompt_tokenizer(),
        transformer=lively(transformer),
    )


def schnell() -> Any:
    """Flux without an embedding of the guidance."""
    return flux(guidance_embeds=False)


def kontext() -> Any:
    """Flux that edits a picture."""
    return flux(FluxKontextPipeline)


def pixart_sigma() -> Any:
    """A network that says something about variances too, and a scheduler that is replaced."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=WIDTH,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=prompt_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)),
        vae=vae(),
        transformer=lively(transformer),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def sana() -> Any:
    """A deep autoencoder, and a scheduler that is replaced."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
    )
    blocks = ("ResBlock",) * 3
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        scaling_factor=0.4,
    )
    gemma = Gemma2Config(
        vocab_size=len(prompt_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_implementation="eager",
    )
    return SanaPipeline(
        tokenizer=prompt_tokenizer(),
        text_encoder=Gemma2Model(gemma),
        vae=autoencoder,
        transformer=lively(transformer),
        scheduler=DPMSolverMultistepScheduler(**SOLVED),
    )


def letters() -> PreTrainedTokenizerFast:
    """One token a letter: long enough for Qwen-Image, which drops the first 34 of its template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=alphabet[0], padding_side="right"
    )


def qwen_image() -> Any:
    """A VAE of volumes with a mean and a deviation for each channel."""
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.5],
    )
    size = {
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256,
        "bos_token_id": None, "eos_token_id": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    seeing = {"depth": 1, "hidden_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    reader = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=size, vision_config={**seeing, "intermediate_size": WIDTH})
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64,
            shift_terminal=0.02,
        ),
        vae=autoencoder,
        text_encoder=reader,
        tokenizer=letters(),
        transformer=lively(transformer),
    )  # fmt: skip


def wan() -> Any:
    """Clips of five frames in two, as the VAE cuts them; a scheduler that is replaced."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=WIDTH,
        num_layers=1,
        rope_max_seq_len=16,
    )
    autoencoder = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.5],
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )
    return WanPipeline(
        tokenizer=prompt_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**T5)),
        vae=autoencoder,
        scheduler=UniPCMultistepScheduler(**SOLVED),
        transformer=lively(transformer),
    )


def ltx() -> Any:
    """Clips of five frames in three; latents whose mean and deviation are no part of a config."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        num_layers=1,
    )
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        patch_size=4,
        scaling_factor=0.7,
    )
    autoencoder.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    autoencoder.latents_std.copy_(torch.tensor([0.5, 1.0, 2.0, 1.5]))
    return LTXPipeline(
        tokenizer=prompt_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5)),
        vae=autoencoder,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        transformer=lively(transformer),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A family as tests see it.

    Attributes:
        build: Makes the pipeline.
        flow: Whether it is a flow.
        options: What its policy needs to be told, being tiny.
        call: What a call of the pipeline needs to draw the same, guidance of 3 included.
    """

    build: Callable[[], Any]
    flow: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


SHORT = {"max_sequence_length": 18}
SQUARE = {"height": 16, "width": 16}
GUIDED = {"guidance_scale": 3.0}
EXACT = {"use_resolution_binning": False}
KINDS = {
    "stable_diffusion_xl": Kind(build=stable_diffusion_xl, flow=False, call=GUIDED),
    "stable_diffusion_xl_v": Kind(build=stable_diffusion_xl_v, flow=False, call=GUIDED),
    "pixart_sigma": Kind(
        build=pixart_sigma, flow=False, options=SHORT, call={**SHORT, **GUIDED, **EXACT}
    ),
    "sana": Kind(
        build=sana,
        flow=True,
        options=SHORT,
        call={**SHORT, **GUIDED, **EXACT, "height": 32, "width": 32},
    ),
    "flux": Kind(
        build=flux, flow=True, options={**SHORT, "size": 16}, call={**SHORT, **SQUARE, **GUIDED}
    ),
    "schnell": Kind(
        build=schnell,
        flow=True,
        options={**SHORT, "size": 16},
        call={**SHORT, **SQUARE, "true_cfg_scale": 3.0, "negative_prompt": ["", ""]},
    ),
    "kontext": Kind(
        build=kontext,
        flow=True,
        options={**SHORT, "size": 16},
        call={**SHORT, **SQUARE, **GUIDED, "_auto_resize": False, "max_area": 16**2},
    ),
    "qwen_image": Kind(
        build=qwen_image,
        flow=True,
        options={"size": 16, "max_sequence_length": 256},
        call={**SQUARE, "true_cfg_scale": 3.0, "negative_prompt": [" ", " "]},
    ),
    "wan": Kind(
        build=wan,
        flow=True,
        options={**SHORT, "size": 16, "num_frames": 5},
        call={**SHORT, **SQUARE, **GUIDED, "num_frames": 5},
    ),
    "ltx": Kind(
        build=ltx,
        flow=True,
        options={**SHORT, "size": 32, "num_frames": 5},
        call={**SHORT, **GUIDED, "height": 32, "width": 32, "num_frames": 5},
    ),
}


@cache
def folder_of(kind: str) -> str:
    """Where the pipeline of a kind lies, written when it is first asked for."""
    torch.manual_seed(0)
    return tiny.save(KINDS[kind].build(), Path(mkdtemp()) / kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyPipeline:
    """Settings of a policy on a tiny pipeline, which is built when it is loaded.

    Attributes:
        kind: Which, of `KINDS`.
        likelihood: As in the policies.
        steps: Denoising moves.
        guidance_scale: Of sampling.
        lora: LoRA settings, or None.
        resize: Whether given pictures are resized.
        drawn: What of a drawn picture is scored.
    """

    kind: str
    likelihood: Any = "elbo"
    steps: int = 3
    guidance_scale: float = 3.0
    lora: LoRA | None = None
    resize: bool = False
    drawn: Any = "encoded"

    def load(self) -> Policy:
        """The policy."""
        kind = KINDS[self.kind]
        spec: Any = FlowPolicy if kind.flow else DiffusionPolicy
        policy: Policy = spec(
            model=folder_of(self.kind),
            likelihood=self.likelihood,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            lora=self.lora,
            resize=self.resize,
            drawn=self.drawn,
            **kind.options,
        ).load()
        return policy
