"""Ragged ids as rectangles: prompts flush right, answers flush left, masks from lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
