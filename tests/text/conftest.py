"""Tiny random language models of two kinds of positions, and tokenizers made on the spot."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mmalign.text import CausalAdapter, Sampling
from mmalign.text.ids import renderer, stop_ids_of
from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.types import Prompt


def gpt2(vocab_size: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    """Learned absolute positions: padding that moves a token shows at once."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def llama(vocab_size: int, dropout: float = 0.0) -> LlamaForCausalLM:
    """Rotary positions."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=96,
        attention_dropout=dropout,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": gpt2, "llama": llama}


def bpe(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges would swallow a boundary, which writes a BOS where told to."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = ["the cat sat on the mat", "thethe cat catcat", "answer: the answer", "   the"] * 8
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(corpus, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    # No padding token of its own: pad == eos is what users of such tokenizers set.
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def adapter_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 8,
    max_prompt_length: int | None = None,
) -> CausalAdapter:
    """The adapter as `TextPolicy.load` builds it."""
    return CausalAdapter(
        tokenizer=tokenizer,
        sampling=Sampling(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids_of(model, tokenizer, render=renderer(tokenizer)),
        ),
        feature_size=32,
        max_prompt_length=max_prompt_length,
    )


def generators(count: int) -> list[torch.Generator]:
    """One for each prompt."""
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer: one token a word."""
    return build_tokenizer()


@pytest.fixture
def prompts() -> list[Prompt]:
    """Three lengths."""
    texts = ("compute 3 + 4", "compute 1 + 2 - 3 + 4", "describe the picture")
    return [Prompt(content=text) for text in texts]
