"""Weights of single steps that recorded pairs bring along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COLUMNS = ("chosen_weights", "rejected_weights")
"""One number for each step of the side: each token of an answer, its end included."""


def recorded_weights(
    metas: Sequence[Mapping[str, Any]], mask: Tensor, *, numbers: Sequence[int]
) -> Tensor | None:
    """``[N, 2, T]`` weights of N pairs' steps; None where no pair brings any.

    A side without weights has ones.

    Args:
        metas: The pairs' further columns.
        mask: ``[2 N, T]`` bool, chosen and rejected side in turn.
        numbers: The pairs' rows, for messages.

    Raises:
        ValueError: A column holds something else than one number of at least 0 for each step.
    """
    if all(meta.get(column) is None for meta in metas for column in COLUMNS):
        return None
    weights = mask.float().view(len(metas), 2, -1).clone()
    for pair, (meta, number) in enumerate(zip(metas, numbers, strict=True)):
        for side, column in enumerate(COLUMNS):
            if meta.get(column) is None:
                continue
            where = f"row {number}, column {column!r}"
            values = _numbers(meta[column], where)
            steps = int(mask[2 * pair + side].sum())
            if len(values) != steps:
                raise ValueError(
                    f"{where}: {len(values)} weights for {steps} steps; it takes one for each "
                    "scored step under this policy's tokenizer, the end of the answer included"
                )
            weights[pair, side, :steps] = torch.tensor(values)
    return weights


def _numbers(value: Any, where: str) -> list[float]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of numbers, not {value!r}")
    wrong = [
        x
        for x in value
        if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) or x < 0
    ]
    if wrong:
        raise ValueError(f"{where} holds {wrong[0]!r}; a weight is a finite number, at least 0")
    return [float(x) for x in value]
