"""Prompts and answers laid out for one teacher-forced forward pass, side by side or packed.

Side by side, every answer has a row of its own with its prompt before it, padded on both sides.
Packed, everything stands in one row without padding and a prompt that several answers share stands
there once; see `mmalign.text.shared`. Which positions predict the scored tokens is known in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.pieces import extents
from mmalign.text.layout import LAYOUT, Layout, Segment
from mmalign.text.rows import left_padded, prefix_mask
from mmalign.text.shared import no_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a decoder reads in one forward pass.

    Attributes:
        input_ids: ``[R, L]`` int64. An answer stands without its last token, which predicts
            nothing.
        attention_mask: ``[R, L]`` int64, 1 on real tokens. Known from lengths: an id equal to the
            padding id may well be real.
        position_ids: ``[R, L]`` int64, or ``[A, R, L]`` where positions have several axes.
        answer: ``[R, L]`` bool, True where a token of an answer stands.
        prompts: The number of every prompt in reading order, repeated where it is repeated.
        row: ``[M]`` int64, and
        column: ``[M]`` int64: the position that predicts each scored token, answer by answer.
        layout: Of the packed row, or None where rows stand side by side.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    answer: Tensor
    prompts: tuple[int, ...]
    row: Tensor
    column: Tensor
    layout: Layout | None = None

    def settings(self) -> dict[str, Any]:
        """What the decoder takes beside ids or embeddings."""
        found = {"position_ids": self.position_ids, "use_cache": False}
        if self.layout is None:
            return {**found, "attention_mask": self.attention_mask}
        return {**found, "attention_mask": no_mask(self.input_ids.device), LAYOUT: self.layout}

    def predicting(self, states: Tensor) -> Tensor:
        """``[M, F]`` of ``[R, L, F]``: the states that the scored tokens are predicted from."""
        return states[self.row, self.column]


def side_by_side(
    prompts: Sequence[Tensor],
    positions: Sequence[Tensor],
    prompt_of: Sequence[int],
    tokens: Tensor,
    mask: Tensor,
) -> Rows:
    """A row for every answer; all answers start in the same column.

    Args:
        prompts: P ragged ``[L_i]`` int64.
        positions: Of each prompt's tokens, ``[L_i]`` or ``[A, L_i]``; answers go on behind them.
        prompt_of: B prompt numbers.
        tokens: ``[B, T]`` int64, the answers.
        mask: ``[B, T]`` bool; a row's answer ends at its last True.
    """
    device, steps = tokens.device, tokens.shape[1]
    ids = left_padded([prompts[i].to(device) for i in prompt_of])
    width = ids.shape[1]
    lengths = torch.tensor([len(prompts[i]) for i in prompt_of], device=device)
    real = prefix_mask(lengths, width=width).flip(1)
    answered = prefix_mask(extents(mask) - 1, width=steps - 1)
    row, step = mask.nonzero(as_tuple=True)
    return Rows(
        input_ids=torch.cat([ids, tokens[:, :-1]], 1),
        attention_mask=torch.cat([real, answered], 1).long(),
        position_ids=_stacked([positions[i].to(device) for i in prompt_of], steps - 1),
        answer=torch.cat([torch.zeros_like(real), answered], 1),
        prompts=tuple(prompt_of),
        row=row,
        column=step + width - 1,
    )


def packed(
    prompts: Sequence[Tensor],
    positions: Sequence[Tensor],
    prompt_of: Sequence[int],
    tokens: Tensor,
    mask: Tensor,
) -> Rows:
    """Everything in one row: each prompt once, its answers behind it; arguments as above."""
    device, lengths = tokens.device, extents(mask).tolist()
    ids, places, answer, segments = [], [], [], []
    predicting: list[Tensor] = [torch.empty(0)] * len(prompt_of)
    order = tuple(dict.fromkeys(sorted(prompt_of)))
    end = 0
    for number in order:
        start, end = end, end + len(prompts[number])
        ids.append(prompts[number].to(device))
        places.append(positions[number].to(device))
        answer.append(torch.zeros(end - start, dtype=torch.bool, device=device))
        last, spans = end - 1, []
        for row in (i for i, of in enumerate(prompt_of) if of == number):
            read = max(lengths[row] - 1, 0)
            ids.append(tokens[row, :read])
            places.append(_after(positions[number].to(device), read))
            answer.append(torch.ones(read, dtype=torch.bool, device=device))
            at = torch.cat([torch.tensor([last]), torch.arange(end, end + read)]).to(device)
            predicting[row] = at[: lengths[row]][mask[row, : lengths[row]]]
            if read:
                spans.append((end, end + read))
            end += read
        segments.append(Segment(start=start, end=last + 1, answers=tuple(spans)))
    column = torch.cat(predicting)
    row_ids = torch.cat(ids).unsqueeze(0)
    return Rows(
        input_ids=row_ids,
        attention_mask=torch.ones_like(row_ids),
        position_ids=torch.cat(places, -1).unsqueeze(-2),
        answer=torch.cat(answer).unsqueeze(0),
        prompts=order,
        row=torch.zeros_like(column),
        column=column,
        layout=Layout(segments=tuple(segments), read=column.unique()),
    )


def counted(prompts: Sequence[Tensor]) -> list[Tensor]:
    """Plain positions of each prompt: 0, 1, 2, ..."""
    return [torch.arange(len(ids), device=ids.device) for ids in prompts]


def further(rows: Rows, values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Keys with one entry a prompt token, as ``[R, L]``; 0 over padding and answers.

    Args:
        rows: A layout.
        values: Of each prompt, ``[L_i]`` under every key; all prompts have the same keys.
    """
    at = (rows.attention_mask.bool() & ~rows.answer).nonzero(as_tuple=True)
    found = {}
    for key in values[rows.prompts[0]]:
        entries = torch.cat([values[i][key] for i in rows.prompts]).to(rows.input_ids.device)
        found[key] = entries.new_zeros(rows.input_ids.shape)
        found[key][at] = entries
    return found


def _after(positions: Tensor, count: int) -> Tensor:
    """The next ``count`` positions on every axis: text goes on behind the largest so far."""
    following = torch.arange(count, device=positions.device) + positions.max() + 1
    return following.expand(*positions.shape[:-1], count)


def _stacked(positions: Sequence[Tensor], extra: int) -> Tensor:
    """Positions of rows side by side, padded on the left with 0: ``[B, L]`` or ``[A, B, L]``."""
    rows = [torch.cat([p, _after(p, extra)], -1) for p in positions]
    width = max(row.shape[-1] for row in rows)
    padded = [torch.nn.functional.pad(row, (width - row.shape[-1], 0)) for row in rows]
    return torch.stack(padded, -2)
