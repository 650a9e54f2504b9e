"""Tiny random vision-language models whose processors cut pictures into tiles, or frame them."""

from collections.abc import Callable

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from mmalign.tinyworld.tokenizer import build_tokenizer
from tests.vision.lvlm_parts import IDS, LANGUAGE, SQUARE, TILES, TOWER, template


def _tokenizer(*marks: str, **named: str) -> PreTrainedTokenizerFast:
    """The tiny world's with further marks, some of which the tokenizer knows by name."""
    plain = build_tokenizer()
    plain.add_special_tokens({"additional_special_tokens": [*marks, *named.values()]})
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
        chat_template=plain.chat_template,
    )


def llava_onevision(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP tower of 16 px in patches of 8; one picture in tiles, several as one square each."""
    tokenizer = _tokenizer("<video>")
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER,
                       "attention_dropout": dropout},
        text_config=Qwen2Config(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=TILES,
        vision_aspect_ratio="anyres_max_2",
        initializer_range=0.3,
    )  # fmt: skip
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=TILES),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        vision_aspect_ratio="anyres_max_2",
    )
    return LlavaOnevisionForConditionalGeneration(config).eval(), processor


def internvl(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles of 16 px in patches of 4, four patches a token, and a small picture of the whole."""
    tokenizer = _tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config={
            **TOWER, "patch_size": 4, "attention_dropout": dropout, "layer_scale_init_value": 1.0,
        },
        text_config=Qwen2Config(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        initializer_range=0.3,
    )  # fmt: skip
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>"),
    )
    return InternVLForConditionalGeneration(config).eval(), processor


FRAMED = [
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<video>",
    *[f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)],
]


def _framed(
    kind: tuple[type, type, type, type], dropout: float, **more: object
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles of 16 px in patches of 4, four patches a token, each tile named, then the whole."""
    tokenizer = _tokenizer(*FRAMED)
    configuration, model, images, processor = kind
    config = configuration(
        vision_config={**TOWER, "patch_size": 4, "attention_dropout": dropout},
        text_config=LlamaConfig(vocab_size=len(tokenizer), attention_dropout=dropout, **LANGUAGE),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=IDS["pad_token_id"],
        initializer_range=0.3,
    )
    made = processor(
        image_processor=images(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template("<image>"),
        **more,
    )
    return model(config).eval(), made


def idefics3(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Rows and columns of tiles, then the whole picture."""
    kind = (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )
    return _framed(kind, dropout)


def smolvlm(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Idefics3."""
    kind = (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
    )
    films = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return _framed(kind, dropout, video_processor=films)


def gemma3(dropout: float = 0.0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A picture squeezed to 16 px, 4 tokens that see each other; every other layer has a window."""
    tokenizer = _tokenizer(
        boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>"
    )
    config = Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model", "vision_use_head": False, **TOWER,
            "patch_size": 4, "attention_dropout": dropout,
        },
        text_config={
            **LANGUAGE, "vocab_size": len(tokenizer), "head_dim": 16, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 16, "attention_dropout": dropout,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        initializer_range=0.3,
    )  # fmt: skip
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    # transformers begins with zeros here, under which every picture looks the same.
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=0.3)
    return model, processor


TILED: dict[str, Callable[..., tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
}
