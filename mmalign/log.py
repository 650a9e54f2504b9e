"""What a run writes down: metrics and evaluations as JSON lines, and accelerate's trackers."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from mmalign.checkpoint import replace_text
from mmalign.types import Metric

Sums = dict[str, tuple[float, float]]
"""(sum, count) by name of metric."""
TIMING = "time/"
"""Prefix of what differs between two equal runs."""


class RunFolder:
    """The folder of a run, owned by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Take the folder's lock.

        Raises:
            ValueError: Another process trains into this folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise ValueError(
                f"{self.path} is being written by another run ({owner}); choose another `output`"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add one JSON line to ``name``."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """All lines of ``name``; none where it does not exist.

        A last line without its end, left by a crash in the middle of writing, is no line.
        """
        path = self.path / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def forget_after(self, step: int) -> None:
        """Drop the lines written after ``step``: a resumed run writes them again."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            lines = [r for r in self.read(name) if r["step"] <= step]
            if (self.path / name).is_file():
                replace_text(self.path / name, "".join(json.dumps(r) + "\n" for r in lines))


def summed(found: Sequence[Mapping[str, Metric]]) -> Sums:
    """The metrics of all pieces added up, in order, fetched from the device at one time."""
    values = [value.detach() for piece in found for pair in piece.values() for value in pair]
    numbers = iter(torch.stack([v.to(values[0].device) for v in values]).tolist())
    sums: Sums = {}
    for piece in found:
        for name in piece:
            total, count = sums.get(name, (0.0, 0.0))
            sums[name] = (total + next(numbers), count + next(numbers))
    return sums
