"""Features of pictures that a frozen network once computed, bounded in bytes."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

MEGABYTE = 1024**2


@dataclass(frozen=True, slots=True)
class _Weights:
    number: int
    tensors: tuple[weakref.ReferenceType[Tensor], ...]
    marks: tuple[tuple[int, int], ...]


class FeatureCache:
    """Least recently used features leave first.

    What is kept is filed under the state of the weights that computed it, from `state_of`, so that
    a feature of earlier weights is never found. Networks on the very same tensors (a policy and its
    reference without LoRA) share what is kept.

    Args:
        megabytes: How much is kept at most; 0 keeps nothing.
    """

    def __init__(self, *, megabytes: int) -> None:
        if megabytes < 0:
            raise ValueError(f"feature_cache_mb must be at least 0; got {megabytes}")
        self.limit = megabytes * MEGABYTE
        self.num_bytes = 0
        self._kept: OrderedDict[tuple[int, Hashable], Tensor] = OrderedDict()
        self._weights: dict[int, _Weights] = {}
        self._states = 0

    def __len__(self) -> int:
        return len(self._kept)

    def state_of(self, tensors: Sequence[Tensor]) -> int:
        """A number for these tensors with the values they have now; another one after any change.

        Seen are other tensors, tensors moved elsewhere, and every in-place operation PyTorch counts
        (optimizers, `copy_`, `load_state_dict`); not seen is writing through ``.data``.

        Args:
            tensors: Parameters and buffers of what computes the features; at least one.
        """
        marks = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        # The identity of a tensor may be given again once it is gone, hence the weak references.
        known = self._weights.get(id(tensors[0]))
        if known is not None:
            alive = [reference() for reference in known.tensors]
            same = len(alive) == len(marks) and all(
                one is other for one, other in zip(alive, tensors, strict=True)
            )
            if same and known.marks == marks:
                return known.number
            self._forget(known.number)
        self._states += 1
        self._weights[id(tensors[0])] = _Weights(
            self._states, tuple(weakref.ref(tensor) for tensor in tensors), marks
        )
        return self._states

    def get(self, state: int, key: Hashable) -> Tensor | None:
        """What is kept under ``key`` for this state of the weights, or None."""
        found = self._kept.get((state, key))
        if found is not None:
            self._kept.move_to_end((state, key))
        return found

    def add(self, state: int, key: Hashable, value: Tensor) -> None:
        """Keep a copy of ``value``, without its history; nothing where it exceeds the limit."""
        if value.nbytes > self.limit:
            return
        self._drop((state, key))
        self._kept[state, key] = value.detach().clone()
        self.num_bytes += value.nbytes
        while self.num_bytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[int, Hashable]) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self.num_bytes -= dropped.nbytes

    def _forget(self, state: int) -> None:
        for key in [key for key in self._kept if key[0] == state]:
            self._drop(key)
