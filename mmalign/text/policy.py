"""Settings of a text policy, as they stand in a config."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmalign import lora as loras
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.text.adapter import CausalAdapter
from mmalign.text.generation import Sampling
from mmalign.text.ids import renderer, stop_ids_of
from mmalign.text.lm_head import check_head
from mmalign.text.shared import share_prompts

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPolicy:
    """A causal language model.

    Attributes:
        model: ``tinyworld/text``, a local folder or a hub name.
        dtype: Of the weights; log-probs are float32 always.
        lora: Trains a LoRA; None trains every parameter.
        max_new_tokens: Longest answer in tokens, its end token included.
        max_prompt_length: Longer prompts are refused; None for no limit.
        temperature: Of sampling, and of the distribution that is scored.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        attn_implementation: transformers' name of an attention kernel; None for its choice.
        share_prompts: Run a prompt that several answers share once in scoring; None where it saves
            work. Needs transformers' "sdpa" attention.
    """

    model: str = "tinyworld/text"
    dtype: Dtype = "float32"
    lora: LoRA | None = None
    max_new_tokens: int = 256
    max_prompt_length: int | None = None
    temperature: float = 1.0
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    share_prompts: bool | None = None

    def load(self) -> Policy:
        """Load the model and its tokenizer."""
        path = locate(self.model)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[self.dtype], attn_implementation=self.attn_implementation
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
        if self.lora is not None:
            loras.attach(model, self.lora)
        if self.gradient_checkpointing:
            checkpoint_activations(model)
        check_head(model)
        if self.share_prompts is not False:
            share_prompts(model.get_decoder())
        adapter = CausalAdapter(
            tokenizer=tokenizer,
            sampling=Sampling(
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                stop_ids=stop_ids_of(model, tokenizer, render=renderer(tokenizer)),
            ),
            feature_size=model.config.get_text_config().hidden_size,
            max_prompt_length=self.max_prompt_length,
            share_prompts=self.share_prompts,
        )
        return Policy(adapter=adapter, model=model)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass, also below frozen weights.

    Dropout is set to 0 for good: the recomputing layers count as training.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings():
        # Newer versions of transformers announce another name, which older ones do not have.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
