"""A tiny random Janus that draws 8 x 8 pixels with 2 x 2 codes of 16, and its processor."""

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.vision import ARImageAdapter, CodeSampling

WIDTH = 32
NUM_CODES = 4
VOCABULARY = 16
SIDE = 8


def build_processor() -> JanusProcessor:
    """The tiny world's words, and pictures of 8 x 8 pixels scaled to [-1, 1]."""
    tokenizer = build_tokenizer()
    pictures = JanusImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=1
    )
    return JanusProcessor(
        pictures, tokenizer, chat_template=tokenizer.chat_template, num_image_tokens=NUM_CODES
    )


def build_model() -> JanusForConditionalGeneration:
    """Random weights, large enough that prompts and codes matter to the logits."""
    tokenizer = build_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            **ids,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=SIDE,
            patch_size=SIDE // 2,
            num_image_tokens=NUM_CODES,
            projection_dim=WIDTH,
            depth=1,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=VOCABULARY,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=(1, 1, 1),
            num_res_blocks=1,
            projection_dim=WIDTH,
            image_token_embed_dim=WIDTH,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **ids,
    )
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config).eval()
    generation = {"boi_token_id": tokenizer.convert_tokens_to_ids("<boi>")}
    model.generation_config = GenerationConfig(generation_kwargs=generation, **ids)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.startswith(("language_model", "generation")) and parameter.dim() == 2:
                parameter.normal_(std=0.25)
    return model


def build_adapter(
    model: JanusForConditionalGeneration,
    *,
    guidance_scale: float = 2.0,
    temperature: float = 1.0,
    guided_log_probs: bool = True,
) -> ARImageAdapter:
    """The adapter of a model made here."""
    return ARImageAdapter(
        processor=build_processor(),
        vq=model.model.vqmodel,
        sampling=CodeSampling(
            guidance_scale=guidance_scale,
            temperature=temperature,
            guided_log_probs=guided_log_probs,
        ),
        feature_size=WIDTH,
    )
