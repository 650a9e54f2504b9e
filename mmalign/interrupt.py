"""SIGTERM and SIGINT as a wish that is granted between two updates."""

from __future__ import annotations

import signal
from typing import Any


class Interrupted(Exception):
    """The run was told to stop; its state is saved and `--resume` continues it."""


class Wishes:
    """While active, signals let the update finish.

    Attributes:
        stopping: Whether one has come.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Wishes:
        def stop(_number: int, _frame: object) -> None:
            self.stopping = True

        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
