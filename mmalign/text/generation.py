"""Sampling answers through transformers' own `generate`, reproducibly row by row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mmalign.text.rows import prefix_mask
from mmalign.tokens import inverse_cdf_sample, step_logits

# Fewer answers than this say little about how many are cut.
NUM_TELLING = 32


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


class DrawnTokens(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token a row standing: the one that the row's own uniform number decides.

    `generate` then takes the largest score. Its own sampling would draw all rows from one stream,
    so that an answer would depend on the rows beside it.
    """

    def __init__(self, uniforms: Tensor, sampling: Sampling, *, prompt_width: int) -> None:
        self.uniforms = uniforms
        self.sampling = sampling
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``[B, V]`` logits to ``[B, V]`` scores: 0 at the drawn token, -inf elsewhere."""
        settings = self.sampling
        logits = step_logits(scores, temperature=settings.temperature, banned=settings.banned)
        step = input_ids.shape[1] - self.prompt_width
        drawn = inverse_cdf_sample(logits.softmax(-1), self.uniforms[:, step])
        return torch.full_like(scores, float("-inf")).scatter(1, drawn.unsqueeze(1), 0.0)


def draw_uniforms(
    generators: Sequence[torch.Generator], *, group_size: int, num_steps: int
) -> Tensor:
    """``[P * G, T]`` numbers in [0, 1), every prompt's from its own generator."""
    return torch.cat([torch.rand(group_size, num_steps, generator=g) for g in generators])


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    uniforms: Tensor,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """Sample one answer for each row.

    Args:
        model: Any model with a language head, in eval mode.
        inputs: ``input_ids`` and ``attention_mask`` ``[B, L]``, padded on the left, and whatever
            else the model takes.
        uniforms: ``[B, max_new_tokens]`` in [0, 1), one number a token.
        sampling: How to draw.

    Returns:
        Tokens ``[B, T]`` int64 with 0 after the end, and their mask ``[B, T]`` bool; on the CPU.
    """
    width = inputs["input_ids"].shape[1]
    drawn = DrawnTokens(uniforms.to(inputs["input_ids"].device), sampling, prompt_width=width)
    with torch.no_grad(), _neutral(model, sampling):
        ids = model.generate(**inputs, logits_processor=LogitsProcessorList([drawn]))
    tokens = ids[:, width:].cpu()
    lengths = answer_lengths(tokens, sampling.stop_ids)
    cut = ~torch.isin(tokens.gather(1, lengths.unsqueeze(1) - 1), torch.tensor(sampling.stop_ids))
    if len(cut) >= NUM_TELLING and cut.float().mean() > 0.5:
        warnings.warn(
            f"{int(cut.sum())} of {len(cut)} sampled answers were cut at max_new_tokens="
            f"{sampling.max_new_tokens} before they ended; raise it unless this is meant",
            stacklevel=2,
        )
    mask = prefix_mask(lengths, width=tokens.shape[1])
    return torch.where(mask, tokens, 0), mask


def answer_lengths(tokens: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """``[B]`` length of each answer of ``[B, T]``: up to its first stop id, that one included."""
    stops = torch.isin(tokens, torch.tensor(list(stop_ids), device=tokens.device))
    first = stops.int().argmax(1) + 1
    return torch.where(stops.any(1), first, tokens.shape[1])


@contextmanager
def _neutral(model: PreTrainedModel, sampling: Sampling) -> Iterator[None]:
    """Within, the model generates plainly, whatever its own generation config asks for.

    `generate` fills what a call leaves open from the model's config: a repetition penalty or top-p
    there would silently make the sampled distribution another than the scored one.
    """
    stops = list(sampling.stop_ids)
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops,
        # Only fills rows that have ended; answers are cut by length.
        pad_token_id=stops[0],
        use_cache=True,
    )
    try:
        yield
    finally:
        model.generation_config = before
