"""Keys and values of a prompt, computed once and continued by many answers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

MIN_ROOM = 16
CACHE_NAMES = ("cache", "past_key_values")


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer whose keys and values lie in a larger place, so that a step writes one column.

    transformers' own layer copies all of them at every step. A place that is full is exchanged for
    one a quarter larger, so that the copies cost little however long the answers get.

    Rows are chosen, and repeated, by `reorder_cache`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.places: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *, kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """All keys and values ``[B, H, K + N, D]``, the new ones ``[B, H, N, D]`` at their end.

        ``kwargs`` is what transformers 5.24 hands to every kind of layer; this kind reads none.
        """
        if not self.is_initialized:
            self.places = ()
            kept: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return kept
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if not self.places or end > self.places[0].shape[-2]:
            self._move(torch.arange(len(self.keys), device=self.keys.device), end)
        for place, new in zip(self.places, (key_states, value_states), strict=True):
            place[..., start:end, :] = new
        self.keys, self.values = (place[..., :end, :] for place in self.places)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with the rows at ``beam_idx`` (``[M]`` int64), in any number and order."""
        if self.get_seq_length() > 0:
            self._move(beam_idx.to(self.keys.device), self.keys.shape[-2] + 1)

    def _move(self, rows: Tensor, length: int) -> None:
        used = self.keys.shape[-2]
        room = length + max(MIN_ROOM, length // 4)
        self.places = tuple(_roomy(value, rows, room) for value in (self.keys, self.values))
        self.keys, self.values = (place[..., :used, :] for place in self.places)


@dataclass(slots=True, kw_only=True)
class Decoding:
    """R rows that are continued token by token.

    Attributes:
        cache: Keys and values of everything that has been read.
        cache_name: What the model's forward calls it.
        attention_mask: ``[R, K]`` int64, what of it is real.
        following: ``[R]`` int64, the position of each row's next token.
        num_axes: Axes of a position where it has several (M-RoPE), or None.
    """

    cache: DynamicCache
    cache_name: str
    attention_mask: Tensor
    following: Tensor
    num_axes: int | None

    @classmethod
    def of(
        cls, model: PreTrainedModel, *, attention_mask: Tensor, position_ids: Tensor
    ) -> Decoding:
        """With an empty cache, in which the model then writes the prompts.

        Args:
            model: Takes the cache.
            attention_mask: ``[R, L]`` of the prompts, padded on the left.
            position_ids: ``[R, L]`` or ``[A, R, L]``; rows go on behind their largest.

        Raises:
            ValueError: The model cannot continue from a cache of keys and values.
        """
        several = position_ids.dim() == 3
        name = cache_name(model)
        return cls(
            cache=answer_cache(model),
            cache_name=name,
            attention_mask=attention_mask,
            following=position_ids.amax((0, 2) if several else 1) + 1,
            num_axes=len(position_ids) if several else None,
        )

    @property
    def given(self) -> dict[str, Any]:
        """The cache, as the model takes it."""
        return {self.cache_name: self.cache, "use_cache": True}

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at ``rows`` (``[M]`` int64), which may repeat."""
        self.cache.reorder_cache(rows)
        self.attention_mask = self.attention_mask[rows]
        self.following = self.following[rows]

    def step(self) -> dict[str, Any]:
        """What the model takes beside the next token of each row, which must now be read."""
        mask = self.attention_mask
        self.attention_mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = self.following.unsqueeze(1)
        if self.num_axes is not None:
            positions = positions.expand(self.num_axes, -1, -1)
        self.following = self.following + 1
        return {
            "attention_mask": self.attention_mask,
            "position_ids": positions,
            **self.given,
        }


def cache_name(model: PreTrainedModel) -> str:
    """What the forward of ``model`` calls its cache: transformers 5.24 has another name for it.

    Raises:
        ValueError: The model takes no cache.
    """
    known = inspect.signature(model.forward).parameters
    for name in CACHE_NAMES:
        if name in known:
            return name
    raise _without_cache(model)


def answer_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for prompts whose answers are sampled.

    Layers that see everything get room for the answers; others (sliding windows, recurrent states)
    are transformers' own.

    Raises:
        ValueError: The model cannot continue from a cache of keys and values.
    """
    cache = DynamicCache(config=model.config)
    if cache.layers and not any(isinstance(layer, DynamicLayer) for layer in cache.layers):
        raise _without_cache(model)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def _without_cache(model: PreTrainedModel) -> ValueError:
    return ValueError(
        f"{type(model).__name__} keeps no cache of keys and values, so answers cannot be sampled "
        "from it; choose a model with attention layers"
    )


def _roomy(value: Tensor, rows: Tensor, room: int) -> Tensor:
    """Rows of ``[B, H, K, D]`` at the beginning of a new ``[M, H, room, D]``."""
    place = value.new_empty(len(rows), value.shape[1], room, value.shape[3])
    place[..., : value.shape[2], :] = value.index_select(0, rows)
    return place
