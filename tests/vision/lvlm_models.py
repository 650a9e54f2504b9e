"""Tiny random vision-language models of four families, with processors made on the spot."""

from collections.abc import Callable

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
)

from mmalign.text import shared
from mmalign.text.generation import Sampling
from mmalign.text.ids import stop_ids_of
from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.vision.features import family_of
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_inputs import placeholder_ids, renderer

WIDTH = 32
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    **IDS,
}
QWEN_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<' + message['role'] + '> ' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|> ' -}}
{%- else -%}{{- part['text'] + ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def llava(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """CLIP tower of 16 px in patches of 8: 4 tokens a picture, fixed size."""
    tokenizer = build_tokenizer()
    square = {"height": 16, "width": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            attention_dropout=dropout,
        ),
        text_config=LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
        initializer_range=0.3,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=square, crop_size=square),
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
    square = {"height": 16, "width": 16}
    tiles = [[16, 32], [32, 16], [32, 32]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            attention_dropout=dropout,
        ),
        text_config=LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=tiles,
        initializer_range=0.3,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size=square, crop_size=square, image_grid_pinpoints=tiles
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
    pixels = {"size": {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}}
    return kind(
        image_processor=Qwen2VLImageProcessor(patch_size=4, merge_size=2, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=4, merge_size=2),
        chat_template=QWEN_TEMPLATE,
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


FAMILIES: dict[str, Callable[..., tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
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
    if share_prompts is not False and not plain:
        shared.share_prompts(model.get_decoder())
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
        family=None if plain else family_of(model),
        feature_cache_mb=feature_cache_mb,
        share_prompts=share_prompts,
    )


def generators(count: int) -> list[torch.Generator]:
    """One for each prompt."""
    return [torch.Generator().manual_seed(i) for i in range(count)]
