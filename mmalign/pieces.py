"""How a batch is cut into the pieces that go through the network one at a time.

Rows of one prompt stay together as far as they may, since their prompt is then computed once, and
rows of like length come into one piece, since a network that pads pays for the longest. The cut is
a function of the batch alone, so every repetition of a run makes the same pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How large a piece may be; whatever is None does not bound.

    Attributes:
        rows: Rows of a piece.
        tokens: Positions of a piece: those of its prompts, each counted once, and the steps of its
            rows.
    """

    rows: int | None = None
    tokens: int | None = None

    def hold(self, rows: int, tokens: int) -> bool:
        """Whether a piece of this size is within them."""
        return (self.rows is None or rows <= self.rows) and (
            self.tokens is None or tokens <= self.tokens
        )


def extents(mask: Tensor) -> Tensor:
    """``[B]`` int64, the steps of each row up to its last one that counts."""
    reached = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * reached).amax(1)


def cut(
    key: Tensor,
    prompt_of: Tensor,
    *,
    steps: Tensor,
    prompts: Tensor | None,
    whole: bool,
    within: Bounds,
) -> list[Tensor]:
    """The rows of each piece, as ``[M]`` int64 row numbers; together every row once.

    Args:
        key: ``[B]`` int64; rows with one key make a block, which is torn apart only where it must
            be.
        prompt_of: ``[B]`` int64, the prompt of each row.
        steps: ``[B]`` int64, how many steps each row takes.
        prompts: ``[P]`` int64, how many positions each prompt takes; None where they take none.
        whole: Whether a block beyond the bounds stays whole nevertheless.
        within: The bounds; a single row beyond them makes a piece of its own.

    Returns:
        The whole batch in its order where it is within the bounds; else pieces of blocks ordered
        from the longest rows to the shortest, so that what does not fit into memory fails at once.
    """
    asked = prompt_of.tolist()
    free = [0] * (max(asked) + 1)
    sizes = _Sizes(asked, steps.tolist(), free if prompts is None else prompts.tolist())
    every = list(range(len(sizes.steps)))
    if within.hold(len(every), sizes.of(every)):
        return [torch.arange(len(every), device=key.device)]
    # Where prompts cost nothing there is nothing to share, and like lengths are all that counts.
    keys = key.tolist() if whole or any(sizes.prompts) else every
    found = _filled(_blocks(keys, sizes), sizes, whole=whole, within=within)
    return [torch.tensor(piece, device=key.device) for piece in found]


@dataclass(frozen=True, slots=True)
class _Sizes:
    prompt_of: Sequence[int]
    steps: Sequence[int]
    prompts: Sequence[int]

    def of(self, rows: Sequence[int]) -> int:
        """Positions of these rows in one piece: each prompt once, and every row's steps."""
        asked = {self.prompt_of[row] for row in rows}
        return sum(self.prompts[p] for p in asked) + sum(self.steps[row] for row in rows)

    def length(self, row: int) -> int:
        """Positions of a row with its prompt."""
        return self.prompts[self.prompt_of[row]] + self.steps[row]


def _blocks(key: Sequence[int], sizes: _Sizes) -> list[list[int]]:
    """The rows of each key, longest first; ties in the batch's order."""
    found: dict[int, list[int]] = {}
    for row, number in enumerate(key):
        found.setdefault(number, []).append(row)
    blocks = [sorted(rows, key=lambda row: -sizes.length(row)) for rows in found.values()]
    return sorted(blocks, key=lambda rows: -sizes.length(rows[0]))


def _filled(
    blocks: Sequence[list[int]], sizes: _Sizes, *, whole: bool, within: Bounds
) -> Iterator[list[int]]:
    """Pieces filled block by block; a block goes into the next piece rather than be torn."""
    piece: list[int] = []
    for block in blocks:
        units = [block]
        if not whole and not within.hold(len(block), sizes.of(block)):
            units = [[row] for row in block]
        for number, unit in enumerate(units):
            together = piece + unit
            fits = within.hold(len(together), sizes.of(together))
            # A block that is torn begins a piece, or its first rows would repeat the prompt.
            if piece and (not fits or (len(units) > 1 and number == 0)):
                yield piece
                together = unit
            piece = together
    yield piece
