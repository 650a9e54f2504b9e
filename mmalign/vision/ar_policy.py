"""Settings of a policy that draws pictures code by code, as they stand in a config."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import JanusForConditionalGeneration, JanusProcessor

from mmalign import lora as loras
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.text.policy import DTYPES, Dtype, checkpoint_activations
from mmalign.text.shared import share_prompts
from mmalign.vision.ar_codes import CodeSampling
from mmalign.vision.ar_image import ARImageAdapter
from mmalign.vision.lvlm_policy import linear_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ARImagePolicy:
    """A Janus that draws pictures.

    Attributes:
        model: ``tinyworld/ar_image``, a local folder or a hub name
            (``deepseek-community/Janus-Pro-1B``).
        dtype: Of the weights; log-probs are float32 always.
        lora: Trains a LoRA, ``"all-linear"`` meaning every linear layer of the language model; None
            trains the language model and all that reads and writes codes. The codebook with its
            encoder and decoder, and the vision tower, are never trained.
        guidance_scale: Classifier-free guidance; 1 for none. Janus-Pro is meant to be used at 5.
        temperature: Of sampling, and of the distribution that is scored.
        guided_log_probs: Score the guided distribution, the one that is drawn from; see
            `CodeSampling`.
        max_prompt_length: Prompts with more tokens are refused; None for no limit.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        attn_implementation: transformers' name of an attention kernel; None for its choice.
        share_prompts: Run a prompt that several pictures share once in scoring; None where it saves
            work. Needs transformers' "sdpa" attention.
    """

    model: str = "tinyworld/ar_image"
    dtype: Dtype = "float32"
    lora: LoRA | None = None
    guidance_scale: float = 2.0
    temperature: float = 1.0
    guided_log_probs: bool = True
    max_prompt_length: int | None = None
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    share_prompts: bool | None = None

    def load(self) -> Policy:
        """Load the model and its processor."""
        path = locate(self.model)
        sampling = CodeSampling(
            guidance_scale=self.guidance_scale,
            temperature=self.temperature,
            guided_log_probs=self.guided_log_probs,
        )
        model = JanusForConditionalGeneration.from_pretrained(
            path, dtype=DTYPES[self.dtype], attn_implementation=self.attn_implementation
        )
        processor = JanusProcessor.from_pretrained(path)
        choose_trainable(model, self.lora)
        if self.gradient_checkpointing:
            checkpoint_activations(model)
        if self.share_prompts is not False:
            share_prompts(model.model.language_model)
        adapter = ARImageAdapter(
            processor=processor,
            vq=model.model.vqmodel,
            sampling=sampling,
            feature_size=model.config.get_text_config().hidden_size,
            max_prompt_length=self.max_prompt_length,
            share_prompts=self.share_prompts,
        )
        return Policy(adapter=adapter, model=model)


def choose_trainable(model: JanusForConditionalGeneration, lora: LoRA | None) -> None:
    """Let gradients reach what draws, and nothing else."""
    inner = model.model
    if lora is not None:
        loras.attach(model, lora, targets=linear_layers(model, [inner.language_model]))
        return
    model.requires_grad_(False)
    for part in (
        inner.language_model,
        inner.generation_embeddings,
        inner.generation_aligner,
        inner.generation_head,
    ):
        part.requires_grad_(True)
