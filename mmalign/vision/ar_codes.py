"""Drawing a picture code by code with Janus: one distribution, drawn from and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmalign.head import Head
from mmalign.text.answers import Sharing, laid_out
from mmalign.text.cache import Decoding
from mmalign.text.packing import Rows, counted
from mmalign.text.rows import left_padded, positions_of
from mmalign.tokens import inverse_cdf_sample, log_probs_of, step_logits


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


def scored_rows(
    network: JanusForConditionalGeneration,
    ids: Sequence[Tensor],
    prompt_of: Sequence[int],
    codes: Tensor,
    mask: Tensor,
    *,
    drawing: Drawing,
    guided: bool,
    share: Sharing,
) -> Rows:
    """Prompts and pictures for one forward pass by teacher forcing.

    Args:
        network: The model.
        ids: P prompts, ragged ``[L_i]``.
        prompt_of: B prompt numbers.
        codes: ``[B, T]`` int64.
        mask: ``[B, T]`` bool, the codes that are scored.
        drawing: The model's tokens.
        guided: The same pictures once more, behind unconditional prompts. Those of one length are
            one prompt, whatever they were the prompts of.
        share: Whether a shared prompt runs once.
    """
    prompts, of = [row.to(codes.device) for row in ids], list(prompt_of)
    if guided:
        bare = [drawing.unconditional(row) for row in prompts]
        number = {tuple(row.tolist()): len(prompts) + i for i, row in enumerate(bare)}
        of += [number[tuple(bare[i].tolist())] for i in prompt_of]
        prompts += bare
        codes, mask = codes.repeat(2, 1), mask.repeat(2, 1)
    return laid_out(
        prompts,
        counted(prompts),
        of,
        codes,
        mask,
        decoder=network.model.language_model,
        share=share,
    )


def code_states(network: JanusForConditionalGeneration, rows: Rows) -> Tensor:
    """Hidden states ``[M, F]`` before each scored code, row by row."""
    words = network.get_input_embeddings()(rows.input_ids.masked_fill(rows.answer, 0))
    drawn = network.prepare_embeddings_for_image_generation(rows.input_ids[rows.answer])
    inputs = words.index_put(rows.answer.nonzero(as_tuple=True), drawn.to(words.dtype))
    states = network.model.language_model(inputs_embeds=inputs, **rows.settings())
    return rows.predicting(states.last_hidden_state)


def code_head(network: JanusForConditionalGeneration, temperature: float) -> Head:
    """The last, linear layer of the head that reads codes off states."""
    linear = network.model.generation_head.vision_head
    return Head(weight=linear.weight, bias=linear.bias, temperature=temperature)


def before_head(network: JanusForConditionalGeneration, states: Tensor) -> Tensor:
    """``[M, D]`` of ``[M, F]``: what the last, linear layer of the head reads.

    Guidance is linear, so guiding here gives the guided logits, at half the work.
    """
    head = network.model.generation_head
    return head.activation_fn(head.proj_out(states))


@torch.no_grad()
def sample_codes(
    network: JanusForConditionalGeneration,
    ids: Sequence[Tensor],
    uniforms: Tensor,
    *,
    drawing: Drawing,
    sampling: CodeSampling,
) -> tuple[Tensor, Tensor]:
    """Draw pictures, all rows at once, with a key-value cache.

    A prompt is read once, however many pictures are drawn of it.

    Args:
        network: The model, in eval mode.
        ids: P prompts, ragged ``[L_i]``.
        uniforms: ``[P * G, T]`` in [0, 1), one number a code, rows of a prompt adjacent.
        drawing: The model's tokens.
        sampling: Guidance and temperature.

    Returns:
        ``[P * G, T]`` int64 codes and their float32 log-probs under the distribution that is
        scored, on the network's device.
    """
    decoder, uniforms = network.model.language_model, uniforms.to(network.device)
    prompts = prompt_rows(ids, drawing=drawing, guided=sampling.guided, device=network.device)
    mask = prompts.attention_mask
    positions = positions_of(mask)
    rows = Decoding.of(decoder, attention_mask=mask, position_ids=positions)
    states = decoder(
        inputs_embeds=network.get_input_embeddings()(prompts.ids),
        attention_mask=mask,
        position_ids=positions,
        **rows.given,
    ).last_hidden_state
    every = torch.arange(len(mask), device=mask.device)
    group = every.repeat_interleave(len(uniforms) // len(ids))
    rows.select(group)
    state, drawn = states[group, -1], []
    for step in range(drawing.num_codes):
        drawn.append(_draw(network.model.generation_head(state), uniforms[:, step], sampling))
        if step + 1 < drawing.num_codes:
            codes = drawn[-1][0].repeat(2 if sampling.guided else 1).unsqueeze(1)
            inputs = network.prepare_embeddings_for_image_generation(codes)
            state = decoder(inputs_embeds=inputs, **rows.step()).last_hidden_state[:, -1]
    found, log_probs = zip(*drawn, strict=True)
    return torch.stack(found, 1), torch.stack(log_probs, 1)


def _draw(logits: Tensor, uniforms: Tensor, sampling: CodeSampling) -> tuple[Tensor, Tensor]:
    """A code for each row, from ``[R, V]`` logits, and its log-prob as it is scored."""
    conditional = guided = logits
    if sampling.guided:
        conditional, unconditional = logits.chunk(2)
        guided = sampling.guide(conditional, unconditional)
    scaled = step_logits(guided, temperature=sampling.temperature)
    codes = inverse_cdf_sample(scaled.softmax(-1), uniforms)
    if not sampling.guided_log_probs:
        scaled = step_logits(conditional, temperature=sampling.temperature)
    return codes, log_probs_of(scaled, codes)
