"""A store of per-row scores on disk: append-only shards, each written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.types import Trajectory

FLUSH_ROWS = 4096


def row_keys(trajectory: Trajectory) -> list[str]:
    """A hash of each row's content: its prompt's inputs, its steps and its mask.

    Everything up to the last step of the policy counts, masked steps between (what a tool said)
    included, since later steps may depend on it. The padding behind does not count, so a row has
    one key whatever batch it stands in.
    """
    prompts = [_prompt_digest(trajectory, i) for i in range(trajectory.num_prompts)]
    steps = torch.arange(1, trajectory.mask.shape[1] + 1, device=trajectory.mask.device)
    lengths = (trajectory.mask * steps).amax(1).tolist()
    keys = []
    for row, prompt in enumerate(trajectory.prompt_of.tolist()):
        digest = hashlib.sha256(prompts[prompt])
        _update(digest, "mask", trajectory.mask[row, : lengths[row]])
        for name in sorted(trajectory.stepwise):
            _update(digest, name, trajectory.stepwise[name][row, : lengths[row]])
        keys.append(digest.hexdigest())
    return keys


class ScoreStore:
    """Scores ``[T]`` by key. Reading is from memory; what is new is flushed in whole shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Tensor] = {}
        self.fresh: dict[str, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for shard in sorted(folder.glob("shard-*.safetensors")):
            self.known.update(load_file(shard))

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Tensor:
        return self.known[key]

    def __len__(self) -> int:
        return len(self.known)

    def add(self, key: str, value: Tensor) -> None:
        """Remember a row; flushed once enough are new."""
        self.known[key] = self.fresh[key] = value.detach().cpu().contiguous().clone()
        if len(self.fresh) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the new rows as one shard: to a temporary name, synced, then renamed."""
        if not self.fresh:
            return
        name = hashlib.sha256("".join(sorted(self.fresh)).encode()).hexdigest()[:16]
        temporary = self.folder / f".tmp-{os.getpid()}-{name}"
        save_file(self.fresh, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(self.folder / f"shard-{name}.safetensors")
        self.fresh = {}


def _prompt_digest(trajectory: Trajectory, index: int) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(trajectory.static):
        _update(digest, name, trajectory.static[name][index])
    return digest.digest()


def _update(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _update(digest, f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key in sorted(value):
            _update(digest, f"{name}.{key}", value[key])
    else:
        digest.update(f"{name} {value!r}".encode())
