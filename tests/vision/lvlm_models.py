"""Tiny random vision-language models of every known family, with processors made on the spot."""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.text.generation import Sampling
from mmalign.text.ids import stop_ids_of
from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.vision.families import family_of, prepare_sharing
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_inputs import placeholder_ids, renderer
from mmalign.vision.lvlm_policy import LVLMPolicy
from tests.vision.lvlm_parts import LANGUAGE, SQUARE, TILES, TOWER, WIDTH, template
from tests.vision.lvlm_tiled import TILED


def llava(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """CLIP tower of 16 px in patches of 8: 4 tokens a picture, fixed size."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(attention_dropout=dropout, **TOWER),
        text_config=LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
        initializer_range=0.3,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=SQUARE, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config).eval(), processor


def llava_next(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """As LLaVA, and larger pictures in tiles of 16 px besides, a mark at the end of each line."""
    tokenizer = build_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(attention_dropout=dropout, **TOWER),
        text_config=LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=TILES,
        initializer_range=0.3,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size=SQUARE, crop_size=SQUARE, image_grid_pinpoints=TILES
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )
    return LlavaNextForConditionalGeneration(config).eval(), processor


def _qwen_tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    tokenizer = build_tokenizer()
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    # The tiny world's own image token is another one.
    tokenizer.image_token = "<|image_pad|>"
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    ids = {
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "image_token_id": image,
        "video_token_id": video,
    }
    return tokenizer, ids


def _qwen_processor(kind: type, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    films = Qwen3VLVideoProcessor if kind is Qwen3VLProcessor else Qwen2VLVideoProcessor
    pixels = {"size": {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}}
    return kind(
        image_processor=Qwen2VLImageProcessor(patch_size=4, merge_size=2, **pixels),
        tokenizer=tokenizer,
        video_processor=films(patch_size=4, merge_size=2),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _rope() -> dict[str, object]:
    # Half a head holds 8 frequencies: 2 for time, 3 for rows, 3 for columns.
    return {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def qwen2_vl(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Pictures of any size: one token for each 8 x 8 px, positions in three dimensions."""
    tokenizer, ids = _qwen_tokenizer()
    config = Qwen2VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(tokenizer),
            "rope_parameters": _rope(),
            "attention_dropout": dropout,
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        **ids,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config).eval()
    return model, _qwen_processor(Qwen2VLProcessor, tokenizer)


def qwen2_5_vl(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Qwen2-VL, with windowed attention in the vision tower."""
    tokenizer, ids = _qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(tokenizer),
            "rope_parameters": _rope(),
            "attention_dropout": dropout,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": WIDTH,
            "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 16, "fullatt_block_indexes": [1], "initializer_range": 0.3,
        },
        **ids,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    return model, _qwen_processor(Qwen2_5_VLProcessor, tokenizer)


def qwen3_vl(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Qwen2-VL; the first layer of the decoder adds features of an earlier tower layer."""
    tokenizer, ids = _qwen_tokenizer()
    config = Qwen3VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "rope_parameters": {**_rope(), "mrope_interleaved": True},
            "attention_dropout": dropout,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": WIDTH,
            "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        **ids,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).eval()
    return model, _qwen_processor(Qwen3VLProcessor, tokenizer)


FAMILIES: dict[str, Callable[..., tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    **TILED,
}


def adapter_of(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 6,
    max_prompt_length: int | None = None,
    feature_cache_mb: int = 256,
    share_prompts: bool | None = None,
    plain: bool = False,
) -> LVLMAdapter:
    """The adapter as `LVLMPolicy.load` builds it; ``plain`` as for a model of no known family."""
    family = None if plain else family_of(model)
    if share_prompts is not False:
        prepare_sharing(model, family)
    return LVLMAdapter(
        processor=processor,
        sampling=Sampling(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids_of(model, processor.tokenizer, render=renderer(processor)),
            banned=placeholder_ids(processor),
        ),
        feature_size=WIDTH,
        max_prompt_length=max_prompt_length,
        family=family,
        feature_cache_mb=feature_cache_mb,
        share_prompts=share_prompts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLVLM:
    """Settings of a tiny model, which is written to a folder and loaded as a config does it.

    Attributes:
        family: One of `FAMILIES`.
        lora: As in `LVLMPolicy`.
        max_new_tokens: As in `LVLMPolicy`.
    """

    family: str
    lora: LoRA | None = None
    max_new_tokens: int = 6

    def load(self) -> Policy:
        """Make it, write it, load it."""
        model, processor = FAMILIES[self.family]()
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            settings = LVLMPolicy(model=folder, lora=self.lora, max_new_tokens=self.max_new_tokens)
            return settings.load()


def generators(count: int) -> list[torch.Generator]:
    """One for each prompt."""
    return [torch.Generator().manual_seed(i) for i in range(count)]
