"""Rows of ids for one forward pass: prompts flush right, answers flush left, masks from lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Prompts and answers side by side.

    The answers of all rows start in the same column, so that the last ``T`` positions of the
    forward pass predict exactly the ``T`` answer columns.

    Attributes:
        input_ids: ``[B, L + T - 1]`` int64: the prompt, padded on the left to L, and the answer
            without its last token, which predicts nothing.
        attention_mask: ``[B, L + T - 1]`` int64, 1 on real tokens. Known from lengths: an id equal
            to the padding id may well be real.
        position_ids: ``[B, L + T - 1]`` int64, 0 at a row's first real token.
        width: L.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    width: int


def left_padded(values: Sequence[Tensor], *, filler: int = 0) -> Tensor:
    """Ragged ``[L_i]`` tensors as ``[B, L]``, filled on the left."""
    width = max(len(v) for v in values)
    rows = values[0].new_full((len(values), width), filler)
    for row, value in zip(rows, values, strict=True):
        row[width - len(value) :] = value
    return rows


def right_padded(values: Sequence[Sequence[int]], *, width: int | None = None) -> Tensor:
    """Ragged ids as ``[B, T]`` int64, filled with 0 on the right."""
    rows = torch.zeros(len(values), width or max(len(v) for v in values), dtype=torch.int64)
    for row, value in zip(rows, values, strict=True):
        row[: len(value)] = torch.tensor(value, dtype=torch.int64)
    return rows


def prefix_mask(lengths: Tensor, *, width: int) -> Tensor:
    """``[B, T]`` bool, True in the first ``lengths`` ``[B]`` columns."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position of each real token in its row, 0 on padding; padding moves nothing."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def side_by_side(prompts: Sequence[Tensor], tokens: Tensor, mask: Tensor) -> Rows:
    """Lay rows out for scoring.

    Args:
        prompts: B ragged ``[L_i]`` int64.
        tokens: ``[B, T]`` int64, the answers.
        mask: ``[B, T]`` bool; a row's answer ends at its last True.
    """
    prompt = left_padded(prompts)
    lengths = torch.tensor([len(p) for p in prompts], device=tokens.device)
    real = prefix_mask(lengths, width=prompt.shape[1]).flip(1)
    steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    answered = prefix_mask((mask * steps).amax(1), width=tokens.shape[1])
    attention = torch.cat([real, answered[:, :-1]], 1).long()
    return Rows(
        input_ids=torch.cat([prompt, tokens[:, :-1]], 1),
        attention_mask=attention,
        position_ids=positions_of(attention),
        width=prompt.shape[1],
    )
