"""Drawing a picture code by code with Janus: one distribution, drawn from and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.cache_utils import DynamicCache
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmalign.text.rows import left_padded, positions_of
from mmalign.tokens import inverse_cdf_sample, step_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeSampling:
    """How codes are drawn, and under which distribution they are scored.

    Attributes:
        guidance_scale: w of classifier-free guidance: logits ``u + w (c - u)`` of the conditional
            logits c and the unconditional logits u. 1 is no guidance (and half the work).
        temperature: Divides the guided logits.
        guided_log_probs: True scores the guided distribution, which is the one that is drawn from:
            the ratio of an unchanged policy is 1. False scores the conditional logits alone while
            sampling stays guided, as T2I-R1 does: half the work, but then the scored log-probs
            are not those of the distribution that drew.
    """

    guidance_scale: float
    temperature: float
    guided_log_probs: bool = True

    def __post_init__(self) -> None:
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must be at least 0; got {self.guidance_scale}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0; got {self.temperature}")

    @property
    def guided(self) -> bool:
        """Whether sampling needs the unconditional logits."""
        return self.guidance_scale != 1.0

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Guided logits ``[..., V]`` float32."""
        base = unconditional.float()
        return base + self.guidance_scale * (conditional.float() - base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a model's pictures and prompts are made of.

    Attributes:
        num_codes: T, codes of a picture.
        pad_id: Stands for every word of the unconditional prompt.
        kept_ids: Tokens that the unconditional prompt keeps (begin of text, begin of image).
    """

    num_codes: int
    pad_id: int
    kept_ids: tuple[int, ...]

    @classmethod
    def of(cls, processor: JanusProcessor, vq: JanusVQVAE) -> Drawing:
        """Read from a model's processor and codebook.

        Raises:
            ValueError: The tokenizer lacks the token that pads or the one that begins a text.
        """
        tokenizer = processor.tokenizer
        if tokenizer.pad_token_id is None or tokenizer.bos_token_id is None:
            raise ValueError(
                "the unconditional prompt keeps the bos token and pads the rest; set bos_token and "
                "pad_token of this tokenizer"
            )
        begin = tokenizer.convert_tokens_to_ids(processor.image_start_token)
        rows, columns = vq.quantize.quant_state_dims
        return cls(
            num_codes=rows * columns,
            pad_id=tokenizer.pad_token_id,
            kept_ids=(tokenizer.bos_token_id, begin),
        )

    def unconditional(self, ids: Tensor) -> Tensor:
        """The prompt ``[...]`` without its words: the length stays, so that rows line up."""
        kept = torch.isin(ids, torch.tensor(self.kept_ids, device=ids.device))
        return torch.where(kept, ids, self.pad_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """Prompts of a forward pass, flush right; the second half unconditional where guided.

    Attributes:
        ids: ``[R, L]`` int64.
        attention_mask: ``[R, L]`` int64, 1 on the prompt (padding by length, not by id).
    """

    ids: Tensor
    attention_mask: Tensor


def prompt_rows(
    ids: Sequence[Tensor], *, drawing: Drawing, guided: bool, device: torch.device
) -> PromptRows:
    """R = B rows of prompts, or R = 2 B with the unconditional ones after them."""
    rows = left_padded(list(ids)).to(device)
    mask = left_padded([torch.ones_like(row) for row in ids]).to(device)
    if guided:
        rows = torch.cat([rows, drawing.unconditional(rows)])
        mask = mask.repeat(2, 1)
    return PromptRows(ids=rows, attention_mask=mask)


def code_states(network: JanusForConditionalGeneration, rows: PromptRows, codes: Tensor) -> Tensor:
    """Hidden states ``[R, T, F]`` before each of the codes ``[R, T]``, by teacher forcing."""
    words = network.get_input_embeddings()(rows.ids)
    drawn = network.prepare_embeddings_for_image_generation(codes[:, :-1])
    mask = torch.cat([rows.attention_mask, torch.ones_like(codes[:, :-1])], 1)
    states: Tensor = network.model.language_model(
        inputs_embeds=torch.cat([words, drawn], 1),
        attention_mask=mask,
        position_ids=positions_of(mask),
        use_cache=False,
    ).last_hidden_state
    return states[:, rows.ids.shape[1] - 1 :]


@torch.no_grad()
def sample_codes(
    network: JanusForConditionalGeneration,
    ids: Sequence[Tensor],
    uniforms: Tensor,
    *,
    drawing: Drawing,
    sampling: CodeSampling,
) -> Tensor:
    """Draw pictures, all rows at once, with a key-value cache.

    A prompt is read once, however many pictures are drawn of it.

    Args:
        network: The model, in eval mode.
        ids: P prompts, ragged ``[L_i]``.
        uniforms: ``[P * G, T]`` in [0, 1), one number a code, rows of a prompt adjacent.
        drawing: The model's tokens.
        sampling: Guidance and temperature.

    Returns:
        ``[P * G, T]`` int64 codes, on the network's device.
    """
    uniforms = uniforms.to(network.device)
    group = len(uniforms) // len(ids)
    rows = prompt_rows(ids, drawing=drawing, guided=sampling.guided, device=network.device)
    mask = rows.attention_mask
    cache = DynamicCache(config=network.config.get_text_config())
    inputs = network.get_input_embeddings()(rows.ids)
    positions = positions_of(mask)
    drawn: list[Tensor] = []
    for step in range(drawing.num_codes):
        state = network.model.language_model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        if step == 0:
            cache.batch_repeat_interleave(group)
            state, mask = (v.repeat_interleave(group, 0) for v in (state, mask))
        logits = network.model.generation_head(state)
        if sampling.guided:
            logits = sampling.guide(*logits.chunk(2))
        chances = step_logits(logits, temperature=sampling.temperature).softmax(-1)
        drawn.append(inverse_cdf_sample(chances, uniforms[:, step]))
        again = drawn[-1].repeat(2 if sampling.guided else 1).unsqueeze(1)
        inputs = network.prepare_embeddings_for_image_generation(again)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = mask.sum(1, keepdim=True) - 1
    return torch.stack(drawn, 1)
