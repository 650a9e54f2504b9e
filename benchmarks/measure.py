"""What one process measures: the clock around its steps, and how fast the machine multiplies."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

PEAK_REPEATS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a side of a cell did.

    Attributes:
        losses: One number for every optimizer step, the warm-up included; empty where a cell has
            no losses to compare.
        units: Unique useful tokens (or images) of one step: what is asked for, each once, so that
            doing something twice is not rewarded.
        seconds: Seconds of each timed step: of the process's CPU time, or of the GPU.
        wall: Seconds on the wall of each timed step.
        memory: Peak bytes over the baseline: resident, or allocated on the GPU.
    """

    losses: tuple[float, ...]
    units: float
    seconds: tuple[float, ...]
    wall: tuple[float, ...]
    memory: int


class Clock:
    """Times steps from the end of one to the end of the next, so that nothing between is free.

    Make it when everything is imported and loaded: the memory in use then is the baseline. Call
    `tick` at the end of every step; the first `warmup` steps are not timed.

    Args:
        units: Unique useful units of one step.
        device: Where the work is done.
        warmup: Steps that are not timed.
    """

    def __init__(self, *, units: float, device: str = "cpu", warmup: int = 1) -> None:
        self.units, self.warmup = units, warmup
        self.on_gpu = device != "cpu"
        self.losses: list[float] = []
        self.marks: list[tuple[float, float]] = []
        self.events: list[torch.cuda.Event] = []
        self.peak = 0
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.baseline = torch.cuda.memory_allocated()
        else:
            self.baseline = psutil.Process().memory_info().rss
        if warmup == 0:
            self._mark()

    def tick(self, loss: float | Tensor | None = None) -> None:
        """The end of a step; with its loss, where the cell compares losses."""
        if loss is not None:
            self.losses.append(float(loss))
        if self.warmup > 1:
            self.warmup -= 1
        else:
            self._mark()
        self.peak = torch.cuda.max_memory_allocated() if self.on_gpu else peak_memory()

    def _mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)
        self.marks.append((time.process_time(), time.perf_counter()))

    def measured(self) -> Measured:
        """Everything since the clock was made."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        assert pairs, "no step was timed"
        seconds = [after[0] - before[0] for before, after in pairs]
        if self.on_gpu:
            torch.cuda.synchronize()
            ends = zip(self.events, self.events[1:], strict=False)
            seconds = [before.elapsed_time(after) / 1000 for before, after in ends]
        return Measured(
            losses=tuple(self.losses),
            units=self.units,
            seconds=tuple(seconds),
            wall=tuple(after[1] - before[1] for before, after in pairs),
            memory=self.peak - self.baseline,
        )


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A kind of matrix product that a step cannot do without.

    Attributes:
        name: What it is for.
        shape: (m, k, n) of a typical one: ``[m, k] @ [k, n]``, at which the peak is measured.
        flops: Floating-point operations of the kind in one step, forward and backward.
    """

    name: str
    shape: tuple[int, int, int]
    flops: float


def language_model_work(
    *,
    body: tuple[int, int, int],
    vocabulary: int,
    prompt: int,
    answer: int,
    group: int,
    count: int,
    passes: float,
) -> list[Product]:
    """What a step on ``count`` groups costs if every prompt and answer is computed once.

    Body ``2 N tokens`` and attention ``4 L d (P^2 / 2 + G (R P + R^2 / 2))``, both at the peak of
    the widest layer's shape, and the head ``2 d V`` for scored tokens alone.

    Args:
        body: (L layers, d width, N parameters without embeddings and head).
        vocabulary: V.
        prompt: P tokens.
        answer: R tokens, its end included; all of them scored.
        group: G answers of a prompt.
        count: Groups of a step.
        passes: Forwards that the work amounts to: 3 for full fine-tuning, and 1 for a reference.
    """
    layers, width, parameters = body
    tokens, scored = prompt + group * answer, group * answer
    pairs_seen = prompt**2 / 2 + group * (answer * prompt + answer**2 / 2)
    flops = 2 * parameters * tokens + 4 * layers * width * pairs_seen
    return [
        Product(
            name="body",
            shape=(count * tokens, width, 8 * width // 3),
            flops=passes * count * flops,
        ),
        Product(
            name="head",
            shape=(count * scored, width, vocabulary),
            flops=passes * count * 2.0 * width * vocabulary * scored,
        ),
    ]


def peaks(products: Sequence[Product], *, device: str, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a plain product at each kind's shape, best of several; CPU time on a CPU."""
    found = {}
    for product in products:
        m, k, n = product.shape
        left = torch.randn(m, k, device=device, dtype=dtype)
        right = torch.randn(k, n, device=device, dtype=dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        clock = Clock(units=1, device=device)
        for _ in range(PEAK_REPEATS + 1):
            torch.mm(left, right, out=out)
            clock.tick()
        found[product.name] = 2.0 * m * k * n / min(clock.measured().seconds)
    return found


def limit_seconds(products: Sequence[Product], measured: dict[str, float]) -> float:
    """The time of a step that does nothing but its products, each at its peak."""
    return sum(product.flops / measured[product.name] for product in products)
