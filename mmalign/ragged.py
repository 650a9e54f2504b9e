"""Values that may be a tensor or a list with one entry a prompt, where lengths differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def take(value: Any, index: Tensor) -> Any:
    """The entries at ``index`` (``[M]`` int64) of a tensor's first axis or of a list."""
    if isinstance(value, Tensor):
        return value[index]
    return [value[i] for i in index.tolist()]


def lengths_of(values: Sequence[Tensor]) -> Tensor:
    """``[P]`` int64, the length of each of P tensors ``[L_i, ...]``."""
    return torch.tensor([len(value) for value in values], dtype=torch.int64)


def move(value: Any, device: torch.device | str) -> Any:
    """The same value with every tensor in it on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return [move(v, device) for v in value]
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}
    return value


def join(values: Sequence[Any]) -> Any:
    """Tensors or lists, one after the other."""
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    return [v for part in values for v in part]


def pad_steps(value: Tensor, length: int) -> Tensor:
    """``[B, T, ...]`` grown to ``[B, length, ...]`` with zeros."""
    missing = length - value.shape[1]
    if missing == 0:
        return value
    filler = value.new_zeros(value.shape[0], missing, *value.shape[2:])
    return torch.cat([value, filler], dim=1)
