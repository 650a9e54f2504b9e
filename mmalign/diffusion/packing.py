"""Latents as the tokens of a transformer: two by two elements, with their channels, are one."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(latent: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, H/2 * W/2, 4 C]``, row by row."""
    rows = latent.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse of `pack`, to latents of a height."""
    rows = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height // 2, -1))
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def token_ids(latent: Tensor, first: int) -> Tensor:
    """``[H/2 * W/2, 3]`` of each token: ``first``, its row and its column."""
    height, width = latent.shape[-2] // 2, latent.shape[-1] // 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.full_like(rows, first), rows, columns], dim=-1)
    return ids.flatten(0, 1).to(latent)
