"""Sampling answers: every prompt is read once, and every row draws from its own numbers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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

Narrow: TypeAlias = Callable[[Tensor], Tensor]
"""From the logits of a step to those that are drawn from, such as `mmalign.tokens.narrowed`."""
Over: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From the numbers ``[R]`` of answers and their tokens so far ``[R, t]`` to ``[R]`` bool: which of
them are over."""


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
    *,
    narrow: Narrow | None = None,
    over: Over | None = None,
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
        narrow: Rules out tokens at every step; None for none.
        over: Ends answers beside the stop ids; told of all answers that have not ended. None for
            the stop ids alone.

    Returns:
        B = P * G answers, as wide as the longest.
    """
    mask = inputs["attention_mask"]
    given = {"position_ids": positions_of(mask), **inputs}
    rows = Decoding.of(model, attention_mask=mask, position_ids=given["position_ids"])
    logits = model(**given, **rows.given, **last_positions(model, 1)).logits
    shape, device = uniforms.shape, mask.device
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    log_probs = torch.zeros(shape, dtype=torch.float32, device=device)
    uniforms, stops = uniforms.to(device), torch.tensor(sampling.stop_ids, device=device)
    # Each row of the batch: the answer it writes, the row of the cache that it continues, and
    # whether it still has to.
    answer = torch.arange(len(uniforms), device=device)
    source = answer // (len(uniforms) // len(mask))
    running = torch.ones_like(answer, dtype=torch.bool)
    lengths = torch.zeros_like(answer)
    logits = logits[source, -1]
    for step in range(sampling.max_new_tokens):
        drawn, chance = draw(logits, uniforms[answer, step], sampling, narrow)
        tokens[answer[running], step] = drawn[running]
        log_probs[answer[running], step] = chance[running]
        lengths[answer[running]] = step + 1
        running = running & ~torch.isin(drawn, stops)
        if over is not None and running.any():
            going = answer[running]
            running[running.clone()] = ~over(going, tokens[going, : step + 1]).to(device)
        if step + 1 == sampling.max_new_tokens or not running.any():
            break
        if step == 0 or float(running.float().mean()) <= 1 - ENDED_SHARE:
            rows.select(source[running])
            answer, drawn, running = answer[running], drawn[running], running[running]
            source = torch.arange(len(answer), device=device)
        logits = model(input_ids=drawn.unsqueeze(1), **rows.step()).logits[:, -1]
    _say_cut(int(running.sum()), len(uniforms), sampling.max_new_tokens)
    return Drawn(
        tokens=tokens[:, : step + 1].cpu(),
        mask=prefix_mask(lengths, width=step + 1).cpu(),
        log_probs=log_probs[:, : step + 1].cpu(),
    )


def draw(
    logits: Tensor, uniforms: Tensor, sampling: Sampling, narrow: Narrow | None = None
) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-prob under the distribution that it was drawn from.

    Args:
        logits: ``[R, V]`` of the network.
        uniforms: ``[R]`` in [0, 1).
        sampling: Temperature and banned ids.
        narrow: Rules out further tokens.
    """
    scaled = step_logits(logits, temperature=sampling.temperature, banned=sampling.banned)
    scaled = scaled if narrow is None else narrow(scaled)
    drawn = inverse_cdf_sample(scaled.softmax(-1), uniforms)
    return drawn, log_probs_of(scaled, drawn)


def _say_cut(cut: int, total: int, limit: int) -> None:
    """Warn where most answers did not end."""
    if total >= NUM_TELLING and cut > total / 2:
        warnings.warn(
            f"{cut} of {total} sampled answers were cut at max_new_tokens={limit} before they "
            "ended; raise it unless this is meant",
            stacklevel=4,
        )


def last_positions(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """The option that spares the logits of all but the last positions, where there is one."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in known else {}
