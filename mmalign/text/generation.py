"""Sampling answers: every prompt is read once, and every row draws from its own numbers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign.text.cache import Decoding
from mmalign.text.rows import positions_of, prefix_mask
from mmalign.tokens import inverse_cdf_sample, log_probs_of, step_logits

# Fewer answers than this say little about how many are cut.
NUM_TELLING = 32
# Rows that have ended are taken out of the batch once they are this share of it: taking them out
# copies the keys and values of those that stay, which a few steps with fewer rows pay for.
ENDED_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn; the same settings say under which distribution they are scored.

    Attributes:
        temperature: Divides the logits.
        max_new_tokens: Longest answer, the stop id included.
        stop_ids: Ids that end an answer.
        banned: Ids that are never drawn (image placeholders).
    """

    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0; got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Sampled answers, on the CPU.

    Attributes:
        tokens: ``[B, T]`` int64, 0 after the end.
        mask: ``[B, T]`` bool, True up to the end.
        log_probs: ``[B, T]`` float32 nats of each token under the distribution that it was drawn
            from; 0 where masked.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor


def draw_uniforms(
    generators: Sequence[torch.Generator], *, group_size: int, num_steps: int
) -> Tensor:
    """``[P * G, T]`` numbers in [0, 1), every prompt's from its own generator."""
    return torch.cat([torch.rand(group_size, num_steps, generator=g) for g in generators])


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    uniforms: Tensor,
    sampling: Sampling,
) -> Drawn:
    """Sample G answers of each of P prompts.

    Args:
        model: Any model with a language head and a cache of keys and values, in eval mode.
        inputs: What its forward takes for the prompts, each once: ``input_ids`` ``[P, L]`` or
            ``inputs_embeds`` ``[P, L, F]``, ``attention_mask`` ``[P, L]``, padded on the left, and
            further keys. ``position_ids`` ``[P, L]``, or ``[A, P, L]`` for positions of A axes,
            are counted from the mask where not given; the answer continues behind the largest.
        uniforms: ``[P * G, max_new_tokens]`` in [0, 1), one number a token, rows of a prompt
            adjacent.
        sampling: How to draw.

    Returns:
        B = P * G answers, as wide as the longest.
    """
    mask = inputs["attention_mask"]
    given = {"position_ids": positions_of(mask), **inputs}
    rows = Decoding.of(model, attention_mask=mask, position_ids=given["position_ids"])
    logits = model(**given, past_key_values=rows.cache, use_cache=True, **_last_only(model)).logits
    shape, device = uniforms.shape, mask.device
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    log_probs = torch.zeros(shape, dtype=torch.float32, device=device)
    uniforms, stops = uniforms.to(device), torch.tensor(sampling.stop_ids, device=device)
    # Each row of the batch: the answer it writes, the row of the cache that it continues, and
    # whether it still has to.
    answer = torch.arange(len(uniforms), device=device)
    source = answer // (len(uniforms) // len(mask))
    running = torch.ones_like(answer, dtype=torch.bool)
    logits = logits[source, -1]
    for step in range(sampling.max_new_tokens):
        drawn, chance = draw(logits, uniforms[answer, step], sampling)
        tokens[answer[running], step] = drawn[running]
        log_probs[answer[running], step] = chance[running]
        running = running & ~torch.isin(drawn, stops)
        if step + 1 == sampling.max_new_tokens or not running.any():
            break
        if step == 0 or float(running.float().mean()) <= 1 - ENDED_SHARE:
            rows.select(source[running])
            answer, drawn, running = answer[running], drawn[running], running[running]
            source = torch.arange(len(answer), device=device)
        logits = model(input_ids=drawn.unsqueeze(1), **rows.step()).logits[:, -1]
    return finished(tokens[:, : step + 1].cpu(), log_probs[:, : step + 1].cpu(), sampling)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-prob under the distribution that it was drawn from.

    Args:
        logits: ``[R, V]`` of the network.
        uniforms: ``[R]`` in [0, 1).
        sampling: Temperature and banned ids.
    """
    scaled = step_logits(logits, temperature=sampling.temperature, banned=sampling.banned)
    drawn = inverse_cdf_sample(scaled.softmax(-1), uniforms)
    return drawn, log_probs_of(scaled, drawn)


def finished(tokens: Tensor, log_probs: Tensor, sampling: Sampling) -> Drawn:
    """The answers ``[B, T]`` with their ends; says so where most of them have none."""
    lengths = answer_lengths(tokens, sampling.stop_ids)
    cut = ~torch.isin(tokens.gather(1, lengths.unsqueeze(1) - 1), torch.tensor(sampling.stop_ids))
    if len(cut) >= NUM_TELLING and cut.float().mean() > 0.5:
        warnings.warn(
            f"{int(cut.sum())} of {len(cut)} sampled answers were cut at max_new_tokens="
            f"{sampling.max_new_tokens} before they ended; raise it unless this is meant",
            stacklevel=4,
        )
    mask = prefix_mask(lengths, width=tokens.shape[1])
    return Drawn(tokens=tokens, mask=mask, log_probs=log_probs)


def answer_lengths(tokens: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """``[B]`` length of each answer of ``[B, T]``: up to its first stop id, that one included."""
    stops = torch.isin(tokens, torch.tensor(list(stop_ids), device=tokens.device))
    first = stops.int().argmax(1) + 1
    return torch.where(stops.any(1), first, tokens.shape[1])


def _last_only(model: PreTrainedModel) -> dict[str, Any]:
    """The option that spares the logits of all positions but the last, where there is one."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
