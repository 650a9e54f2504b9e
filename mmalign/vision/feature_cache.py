"""Features of pictures that a frozen network once computed: in memory, and on disk if wished."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmalign.fingerprints import weights_key
from mmalign.store import TensorStore

MEGABYTE = 1024**2
FEATURES = "features"


@dataclass(frozen=True, slots=True)
class _Weights:
    number: int
    tensors: tuple[weakref.ReferenceType[Tensor], ...]
    marks: tuple[tuple[int, int], ...]


class FeatureCache:
    """Least recently used features leave memory first; what is on disk stays.

    What is kept is filed under the state of the weights that computed it, from `state_of`, so that
    a feature of earlier weights is never found. Networks on the very same tensors (a policy and its
    reference without LoRA) share what is kept.

    Args:
        megabytes: How much is kept in memory at most; 0 keeps nothing there.
        folder: Where all of it is kept on disk too, for later runs; None for nowhere. A store in
            it is named by everything but the picture that a feature depends on.
    """

    def __init__(self, *, megabytes: int, folder: Path | None = None) -> None:
        if megabytes < 0:
            raise ValueError(f"feature_cache_mb must be at least 0; got {megabytes}")
        self.limit = megabytes * MEGABYTE
        self.folder = folder
        self.num_bytes = 0
        self._kept: OrderedDict[tuple[int, str], Tensor] = OrderedDict()
        self._stores: dict[int, TensorStore] = {}
        self._weights: dict[int, _Weights] = {}
        self._states = 0

    def __len__(self) -> int:
        return len(self._kept)

    def state_of(
        self, tensors: Sequence[Tensor], about: Callable[[], Mapping[str, str]] = dict
    ) -> int:
        """A number for these tensors with the values they have now; another one after any change.

        Seen are other tensors, tensors moved elsewhere, and every in-place operation PyTorch counts
        (optimizers, `copy_`, `load_state_dict`); not seen is writing through ``.data``.

        Args:
            tensors: Parameters and buffers of what computes the features; at least one.
            about: What else the features depend on, by name; asked where they are kept on disk.
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
        if self.folder is not None:
            weights = weights_key((str(number), tensor) for number, tensor in enumerate(tensors))
            self._stores[self._states] = TensorStore(self.folder, {**about(), "weights": weights})
        return self._states

    def get(self, state: int, key: str, device: torch.device | None = None) -> Tensor | None:
        """What is kept under ``key`` for this state of the weights, or None.

        Args:
            state: From `state_of`.
            key: The picture's, without ``/``.
            device: Where what is read from disk goes.
        """
        found = self._kept.get((state, key))
        if found is not None:
            self._kept.move_to_end((state, key))
            return found
        entry = self._stores[state].get(key) if state in self._stores else None
        if entry is None:
            return None
        value = entry[FEATURES].to(device=device)
        self._remember(state, key, value)
        return value

    def add(self, state: int, key: str, value: Tensor) -> None:
        """Keep a copy of ``value``, without its history; not in memory beyond the limit."""
        if state in self._stores:
            self._stores[state].add(key, {FEATURES: value})
        self._remember(state, key, value)

    def _remember(self, state: int, key: str, value: Tensor) -> None:
        if value.nbytes > self.limit:
            return
        self._drop((state, key))
        self._kept[state, key] = value.detach().clone()
        self.num_bytes += value.nbytes
        while self.num_bytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[int, str]) -> None:
        dropped = self._kept.pop(key, None)
        if dropped is not None:
            self.num_bytes -= dropped.nbytes

    def _forget(self, state: int) -> None:
        store = self._stores.pop(state, None)
        if store is not None:
            store.flush()
        for key in [key for key in self._kept if key[0] == state]:
            self._drop(key)
