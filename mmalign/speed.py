"""How fast a run is: useful units a second, and the share of what the machine could do at best."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.flops import FlopCounter, Product, limit_seconds, measured_peaks
from mmalign.log import TIMING
from mmalign.types import Trajectory

COUNTED_UPDATE = 3
COUNTED_EVERY = 100
"""FLOPs are counted in an update after warm-up, and anew from time to time, since caches fill."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, from glibc's ``malloc.h``."""
KEEP = 2**31 - 1


def keep_freed_memory(device: torch.device) -> None:
    """Have the C library keep what tensors on a CPU free, for the tensors of the next step.

    By default glibc hands large blocks back to the system at once, which clears each of their pages
    anew when it is touched again: tens of thousands of page faults a step. So no block gets a
    mapping of its own, however large (the gradient of a vocabulary, say), and the heap is never
    trimmed. Resident memory then stays near its peak between steps; the peak is the same. Other C
    libraries are left as they are.

    Args:
        device: Where the run computes; accelerators keep freed memory anyway.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEEP)):
        assert library.mallopt(name, value) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Useful:
    """What a batch is worth, however often something in it is computed.

    Attributes:
        number: Tokens: of each prompt once, and every step that is scored; or pictures.
        unit: "tokens" where the policy writes, "pictures" where it draws.
    """

    number: float
    unit: str


def useful(trajectory: Trajectory, prompt_lengths: Tensor) -> Useful:
    """The unique useful units of a batch: ``P + G R`` tokens for a group, never ``G (P + R)``.

    Args:
        trajectory: B rows.
        prompt_lengths: ``[P]`` positions of each prompt.
    """
    if any(isinstance(output, str) for output in trajectory.outputs):
        steps = float(trajectory.mask.sum())
        return Useful(number=float(prompt_lengths.sum()) + steps, unit="tokens")
    return Useful(number=float(len(trajectory)), unit="pictures")


class Meter:
    """Times the batches and updates of a run, and knows their limit once it has been measured.

    Args:
        device: Where the run computes.
        updates_per_batch: Over how many updates the time of a batch is spread.
    """

    def __init__(self, *, device: torch.device, updates_per_batch: int = 1) -> None:
        self.device = device
        self.updates_per_batch = updates_per_batch
        self.updates = 0
        self.seconds = {"batch": 0.0, "update": 0.0}
        self.peaks: dict[Product, float] = {}
        self.counted: dict[Product, int] = {}
        self.limit_a_unit: float | None = None

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around making a batch: sampling or encoding, judging, scoring under the reference."""
        with self._timed("batch"):
            yield

    @contextmanager
    def update(self, units: float, *, count: bool | None = None) -> Iterator[None]:
        """Around an optimizer update on so many units.

        Args:
            units: Of this process.
            count: Whether the FLOPs are counted; None for now and then.
        """
        if count is None:
            count = self.updates % COUNTED_EVERY == COUNTED_UPDATE
        counter = FlopCounter() if count else None
        with self._timed("update"), counter or nullcontext():
            yield
        self.updates += 1
        if counter is not None:
            self._measured(counter.products, units)

    def metrics(self, units: float, *, everywhere: float) -> dict[str, float]:
        """Timings of the last update, for the log.

        Args:
            units: Of this process.
            everywhere: Of all processes.
        """
        found = {TIMING + name: seconds for name, seconds in self.seconds.items()}
        whole = self.seconds["update"] + self.seconds["batch"] / self.updates_per_batch
        found[TIMING + "units_per_second"] = everywhere / whole
        if (share := self.share(units)) is not None:
            found[TIMING + "limit_fraction"] = share
        return found

    def share(self, units: float) -> float | None:
        """The least time the last update could have taken over the time it took; None if unknown.

        Args:
            units: Of this process.
        """
        if self.limit_a_unit is None:
            return None
        return self.limit_a_unit * units / self.seconds["update"]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start

    def _measured(self, products: Mapping[Product, int], units: float) -> None:
        self.counted = dict(products)
        if not self.peaks:
            self.peaks = measured_peaks(products, device=self.device)
        if self.peaks and units:
            self.limit_a_unit = limit_seconds(products, self.peaks) / units


def progress_line(metrics: Mapping[str, float], unit: str) -> str:
    """What the progress bar says after an update."""
    rate = metrics[TIMING + "units_per_second"]
    said = f"loss {metrics['loss']:.4f}, " + (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}")
    said += f" {unit}/s"
    share = metrics.get(TIMING + "limit_fraction")
    return said if share is None else f"{said}, {100 * share:.0f} % of the limit"
