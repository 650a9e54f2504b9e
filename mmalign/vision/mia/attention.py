"""Where a model looked while it wrote an answer: the attention of one layer, in one forward pass.

The prompt and the answer are read together, as in scoring. One layer computes its attention weights
besides, and only those of the positions that wrote the answer; every other layer, and what that
layer hands on, goes through the kernel that the model uses anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmalign.head import head_scores
from mmalign.policy import Policy
from mmalign.text.lm_head import language_head
from mmalign.types import Prompt, Trajectory
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.spans import Seen, seen_pictures

NAME = "mmalign_watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen while an answer was written.

    Attributes:
        pictures: Where each picture of the prompt stands, in reading order.
        attention: ``[L]`` float32 on the CPU: the weight on each token of the prompt, a mean over
            heads and over the answer's tokens but the first.
        perplexity: ``exp(-mean_t log p_t)`` of the answer's tokens at temperature 1; 1 where the
            model was certain of every one. For a greedy answer these are the largest
            probabilities.
    """

    pictures: tuple[Seen, ...]
    attention: Tensor
    perplexity: float

    def on(self, picture: Seen) -> Tensor:
        """``[K]``: the weight on each token of a picture."""
        return self.attention[picture.places]


@torch.no_grad()
def look(policy: Policy, prompt: Prompt, tokens: Tensor, *, depth: float) -> Look:
    """Read a prompt and an answer, and see where the answer looked.

    Args:
        policy: A vision-language model of a family in `mmalign.vision.spans`.
        prompt: As the answer saw it.
        tokens: ``[T]`` int64, the answer with its end token, at least 2. The first is written by
            the last position of the prompt, which is not counted.
        depth: Which layer: 0 for the first, 1 for the last, else the one at that share of them (of
            32 layers, 0.5 is number 16 from 0).

    Raises:
        ValueError: The model is of no known family, or the layer computes no plain attention.
    """
    adapter, network = policy.adapter, cast(PreTrainedModel, policy.model)
    assert isinstance(adapter, LVLMAdapter), "only vision-language models look at pictures"
    assert len(tokens) >= 2, "an answer of one token has no position of its own"
    static = adapter.static_of([prompt])
    length = len(static["prompt_ids"][0])
    trajectory = Trajectory(
        mask=torch.ones(1, len(tokens), dtype=torch.bool),
        prompt_of=torch.zeros(1, dtype=torch.int64),
        static=static,
        stepwise={"token": tokens.unsqueeze(0)},
        outputs=[None],
    )
    decoder = network.get_decoder()
    layer = layer_at(depth, int(decoder.config.num_hidden_layers))
    with policy.autocast(), watched(decoder, layer, first_row=length) as found:
        scores = adapter.scores(network, trajectory, want=frozenset({"features"}))
        if len(found.weights) != 1:
            raise ValueError(
                f"layer {layer} of {type(decoder).__name__} computed attention "
                f"{len(found.weights)} times; choose another `depth`, whose layer does so once"
            )
    assert scores.features is not None
    head = language_head(network, temperature=1.0, banned=adapter.sampling.banned)
    states = scores.features[0].to(head.weight.dtype)
    log_probs = head_scores(states, tokens.to(states.device), head)["log_probs"]
    return Look(
        pictures=tuple(seen_pictures(adapter, network, prompt)),
        attention=found.weights[0][:length].cpu(),
        perplexity=float((-log_probs.mean()).exp()),
    )


def layer_at(depth: float, layers: int) -> int:
    """The number, from 0, of the layer at a share of the depth: ``floor(depth layers)``.

    16 of 32 layers at 0.5; the last one at 1.
    """
    return min(int(depth * layers), layers - 1)


@dataclass(slots=True)
class Watch:
    """What a watched layer gave: ``[N]`` float32 mean weights for each time that it ran."""

    weights: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(decoder: PreTrainedModel, layer: int, *, first_row: int) -> Iterator[Watch]:
    """Within, one layer of a decoder notes its attention in passing.

    The decoder must read one row without padding. What it computes does not change, except that a
    model of "eager" attention runs "sdpa" meanwhile.

    Args:
        decoder: The part of a model that holds the layers.
        layer: Its number, from 0.
        first_row: From which position on rows are noted; their mean over heads and positions.
    """
    before = decoder.config._attn_implementation
    usual = "sdpa" if before == "eager" else before
    attend, watch = ALL_ATTENTION_FUNCTIONS[usual], Watch()

    def noting(
        module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        if module.layer_idx == layer:
            assert len(query) == 1, "one row at a time, so that there is no padding"
            for name in ("softcap", "s_aux", "position_bias"):
                if settings.get(name) is not None:
                    raise ValueError(
                        f"{type(module).__name__} attends with {name}, not by a plain softmax; its "
                        "attention cannot be read"
                    )
            weights = row_weights(
                query[0],
                key[0],
                first_row=first_row,
                scaling=settings["scaling"],
                window=settings.get("sliding_window"),
            )
            watch.weights.append(weights.mean((0, 1)))
        found: tuple[Tensor, Tensor | None] = attend(module, query, key, *rest, **settings)
        return found

    AttentionInterface.register(NAME, noting)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    decoder.config._attn_implementation = NAME
    try:
        yield watch
    finally:
        decoder.config._attn_implementation = before


def row_weights(
    query: Tensor, key: Tensor, *, first_row: int, scaling: float, window: int | None = None
) -> Tensor:
    """Causal attention weights of the last positions of a sequence.

    Args:
        query: ``[H, N, D]``.
        key: ``[G, N, D]``; each of the G serves ``H / G`` heads, as they come.
        first_row: The first position whose row is wanted.
        scaling: Multiplies the products.
        window: How many positions, its own included, a position sees; None for all before it.

    Returns:
        ``[H, N - first_row, N]`` float32, every row summing to 1.
    """
    keys = key.repeat_interleave(len(query) // len(key), 0)
    logits = (query[:, first_row:] @ keys.transpose(1, 2)).float() * scaling
    at = torch.arange(first_row, query.shape[1], device=query.device).unsqueeze(1)
    seen = torch.arange(query.shape[1], device=query.device)
    hidden = seen > at
    if window is not None:
        hidden = hidden | (at - seen >= window)
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def attention_maps(look: Look, *, most: int = 24) -> list[list[list[float]]]:
    """The attention on each picture as a coarse grid, for people to look at.

    A cell holds the sum over the tokens whose centre lies in it, divided by the largest cell of all
    pictures, to 4 digits. Tokens without a place are left out. A grid has as many rows and columns
    as the picture has distinct ones of tokens, ``most`` at most.
    """
    found = [_binned(look.on(seen), seen.boxes, most) for seen in look.pictures]
    largest = max((float(grid.max()) for grid in found), default=0.0)
    return [
        [[round(value, 4) for value in row] for row in (grid / (largest or 1.0)).tolist()]
        for grid in found
    ]


def centres(boxes: Tensor) -> Tensor:
    """``[K, 2]`` (x, y) of the middles of ``[K, 4]`` boxes; NaN where there is no place."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _binned(weights: Tensor, boxes: Tensor, most: int) -> Tensor:
    """``[rows, columns]`` float64 sums."""
    placed = ~boxes.isnan().any(1)
    x, y = centres(boxes[placed]).double().clamp(0, 1).unbind(1)
    columns, rows = (min(most, max(len(_distinct(axis)), 1)) for axis in (x, y))
    grid = torch.zeros(rows * columns, dtype=torch.float64)
    cells = _cell(y, rows) * columns + _cell(x, columns)
    return grid.index_add(0, cells, weights[placed].double()).view(rows, columns)


def _distinct(axis: Tensor) -> Sequence[float]:
    """Different values; those that differ by a rounding are one."""
    return (axis * 10_000).round().unique().tolist()


def _cell(axis: Tensor, count: int) -> Tensor:
    return (axis * count).long().clamp(max=count - 1)
