"""Settings of a vision-language policy, as they stand in a config."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from mmalign import lora as loras
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.text.generation import Sampling
from mmalign.text.ids import stop_ids_of
from mmalign.text.lm_head import check_head
from mmalign.text.policy import DTYPES, Dtype, checkpoint_activations
from mmalign.vision.families import Family, family_of, prepare_sharing
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_inputs import keeps_order, placeholder_ids, renderer, use_template

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LVLMPolicy:
    """A vision-language model that answers in text.

    Attributes:
        model: ``tinyworld/lvlm``, a local folder or a hub name.
        dtype: Of the weights; log-probs are float32 always.
        lora: Trains a LoRA, ``"all-linear"`` meaning every linear layer of the language model; None
            trains every parameter outside the vision tower.
        train_vision_tower: Trains the vision tower too.
        max_new_tokens: Longest answer in tokens, its end token included.
        max_prompt_length: Prompts with more tokens, image tokens included, are refused; None for no
            limit.
        temperature: Of sampling, and of the distribution that is scored.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        attn_implementation: transformers' name of an attention kernel; None for its choice.
        feature_cache_mb: How much of what a frozen vision tower computed is kept for later batches.
        feature_cache: Folder that keeps all of it on disk too, for later runs; None for none.
        share_prompts: Run a prompt that several answers share once in scoring; None where it saves
            work. Needs transformers' "sdpa" attention.
        chat_template: A Jinja template, or a file that holds one, in place of the model's own; it
            is saved with the model.
    """

    model: str = "tinyworld/lvlm"
    dtype: Dtype = "float32"
    lora: LoRA | None = None
    train_vision_tower: bool = False
    max_new_tokens: int = 256
    max_prompt_length: int | None = None
    temperature: float = 1.0
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    feature_cache_mb: int = 256
    feature_cache: str | None = None
    share_prompts: bool | None = None
    chat_template: str | None = None

    def load(self) -> Policy:
        """Load the model and its processor."""
        path = locate(self.model)
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=DTYPES[self.dtype], attn_implementation=self.attn_implementation
        )
        processor = AutoProcessor.from_pretrained(path)
        if self.chat_template is not None:
            use_template(processor, self.chat_template)
        if not keeps_order(processor):
            logger.warning(
                "%s: the chat template moves the pictures of a message away from the words that "
                "they stand among; where that matters (several pictures with labels), give the "
                "policy a `chat_template` that keeps their order",
                self.model,
            )
        tower = vision_tower(model)
        if self.lora is not None:
            parts = [model.get_decoder(), *([tower] if self.train_vision_tower else [])]
            loras.attach(model, self.lora, targets=linear_layers(model, parts))
        else:
            tower.requires_grad_(self.train_vision_tower)
        if self.gradient_checkpointing:
            checkpoint_activations(model)
        check_head(model)
        family = family_of(model)
        if self.feature_cache is not None:
            _require_frozen(model, family)
        if self.share_prompts is not False:
            prepare_sharing(model, family)
        adapter = LVLMAdapter(
            processor=processor,
            sampling=Sampling(
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                stop_ids=stop_ids_of(model, processor.tokenizer, render=renderer(processor)),
                banned=placeholder_ids(processor),
            ),
            feature_size=model.config.get_text_config().hidden_size,
            max_prompt_length=self.max_prompt_length,
            family=family,
            feature_cache_mb=self.feature_cache_mb,
            feature_cache=None if self.feature_cache is None else Path(self.feature_cache),
            share_prompts=self.share_prompts,
        )
        return Policy(adapter=adapter, model=model)


def vision_tower(model: PreTrainedModel) -> nn.Module:
    """The module that reads pictures.

    Raises:
        ValueError: transformers does not say which one it is.
    """
    found: nn.Module = model.get_encoder(modality="image")
    if found is model or found is model.base_model:
        raise ValueError(
            f"{type(model).__name__} names no vision tower, so it cannot be kept frozen; use a "
            "model of the LLaVA or Qwen-VL families"
        )
    return found


def _require_frozen(model: PreTrainedModel, family: Family | None) -> None:
    """Refuse a cache on disk that would stay empty."""
    tower, reason = vision_tower(model), None
    if family is None:
        reason = f"features of models of type {model.config.model_type!r} are not kept"
    elif loras.names(tower) or any(p.requires_grad for p in tower.parameters()):
        reason = "the vision tower is trained, so its features change"
    if reason is not None:
        raise ValueError(f"policy.feature_cache: {reason}; set it to null")


def linear_layers(model: nn.Module, parts: list[nn.Module]) -> str:
    """A regular expression that matches the full names of the linear layers below ``parts``."""
    below = {id(module) for part in parts for module in part.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) in below
    ]
    # One pattern for the same layer of all blocks keeps the saved config readable.
    patterns = {re.sub(r"\.\d+(?=\.)", ".@", name) for name in names}
    return "|".join(re.escape(p).replace("@", r"\d+") for p in sorted(patterns))
