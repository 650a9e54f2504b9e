"""How a source walks through its data set: epoch after epoch, every process its share.

Order and noise are functions of (seed, epoch, row number), so the position is a pair of counters, a
restored source continues exactly, and every process count walks through the same global batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from mmalign import distributed, rng
from mmalign.types import Batch

Where: TypeAlias = tuple[int, int]
"""Epoch and row number."""


class Order:
    """Row numbers of global batches, epoch after epoch, each epoch newly shuffled.

    Args:
        size: Rows of the data set.
        batch_size: Rows of a global batch.
        seed: Of the shuffles.
        shuffle: False to keep the data set's order.
        keep_last: Whether an epoch ends with a smaller batch, or its rest joins the next epoch.
    """

    def __init__(
        self, *, size: int, batch_size: int, seed: int, shuffle: bool, keep_last: bool
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.keep_last = shuffle, keep_last
        self.epoch = 0
        self.position = 0
        self._shuffled: tuple[int, Tensor] | None = None

    def next(self) -> list[Where]:
        """The next batch as (epoch, row number)."""
        found: list[Where] = []
        while len(found) < self.batch_size:
            end = min(self.position + self.batch_size - len(found), self.size)
            found += [(self.epoch, row) for row in self._rows(self.position, end)]
            self.position = end
            if self.position >= self.size:
                self.epoch, self.position = self.epoch + 1, 0
                if self.keep_last:
                    break
        return found

    def _rows(self, start: int, end: int) -> Sequence[int]:
        """The row numbers at these positions of the epoch, whose shuffle is made once."""
        if not self.shuffle:
            return range(start, end)
        if self._shuffled is None or self._shuffled[0] != self.epoch:
            draw = rng.generator(self.seed, "order", self.epoch)
            self._shuffled = (self.epoch, torch.randperm(self.size, generator=draw))
        rows: list[int] = self._shuffled[1][start:end].tolist()
        return rows


class Walked(Protocol):
    """Settings of a source that walks through one data set."""

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        ...

    @property
    def shuffle(self) -> bool:
        """Whether each epoch is shuffled anew."""
        ...


class WalkingSource(ABC):
    """A source that walks through one data set; each below says what a batch of its rows is.

    Args:
        spec: Its settings.
        size: Rows of the data set.
        holds: What a row is and where it would come from, for the message that there is none.
        seed: Of the shuffles, and of whatever a batch draws.
        keep_last: As `Order`.

    Raises:
        ValueError: The data set is empty.
    """

    def __init__(
        self, spec: Walked, *, size: int, holds: str, seed: int, keep_last: bool = True
    ) -> None:
        if size == 0:
            raise ValueError(f"the data set of the source holds no {holds}")
        self.size, self.seed = size, seed
        self.order = Order(
            size=size,
            batch_size=spec.batch_size,
            seed=seed,
            shuffle=spec.shuffle,
            keep_last=keep_last,
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            everything = self.order.next()
            mine = range(distributed.rank(), len(everything), distributed.world_size())
            # A batch smaller than the process count leaves some processes without a row. They still
            # take part in the gradient exchange, with a row that weighs nothing.
            batch = self.batch_of(everything, mine or [len(everything) - 1])
            yield batch if mine else weightless(batch)

    @abstractmethod
    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """This process's part of a global batch.

        Args:
            everything: The global batch.
            places: Which entries of it are this process's.
        """

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position."""
        return {"epoch": self.order.epoch, "position": self.order.position, "size": self.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position.

        Raises:
            ValueError: The data set had another size then.
        """
        if state["size"] != self.size:
            raise ValueError(
                f"the data set had {state['size']} rows when this run was saved and has "
                f"{self.size} now; resuming would train on other rows: restore the data or start a "
                "new run"
            )
        self.order.epoch, self.order.position = state["epoch"], state["position"]


def require_shares(batch_size: int) -> None:
    """Refuse batches of prompts to sample that processes cannot divide among them.

    Raises:
        ValueError: ``batch_size`` is no multiple of the processes.
    """
    if batch_size % distributed.world_size():
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of the {distributed.world_size()} "
            "processes"
        )


def weightless(batch: Batch) -> Batch:
    """The same batch, counting nothing in any objective nor in what is counted on the way."""
    nothing = None
    if batch.pairs is not None:
        nothing = torch.zeros(len(batch.pairs), device=batch.group.device)
    return replace(
        batch,
        coefficient=nothing,
        weight=torch.zeros_like(batch.weight),
        counters=dict.fromkeys(batch.counters, 0.0),
        metrics=dict.fromkeys(batch.metrics, (0.0, 0.0)),
    )
