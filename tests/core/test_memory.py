"""Memory does not grow with the rows of a data set, nor with the updates of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import core_memory
import pytest

from mmalign.epochs import Order


def measured(*arguments: str) -> dict[str, float]:
    """What `core_memory` prints, run as a process of its own."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(here / "core_memory.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_stay_on_disk(suffix: str, model: str, tmp_path: Path) -> None:
    """10^5 rows, read once and encoded in part: at most 30 MiB; as Python objects they take 40."""
    core_memory.write(tmp_path / f"large{suffix}", core_memory.ROWS)
    assert measured("rows", model, str(tmp_path), suffix)["grown"] < 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["offline", "grpo"])
def test_updates_leave_nothing_behind(kind: str, model: str, tmp_path: Path) -> None:
    """200 updates after warming up: at most 1 %, or 5 MiB where the process is small."""
    found = measured("updates", model, str(tmp_path), kind)
    assert found["grown"] < max(5.0, 0.01 * found["there"])


def test_an_order_is_shuffled_once_an_epoch() -> None:
    """Ten rows in batches of three, twice around: the same walk as slices of the shuffles."""
    order = Order(size=10, batch_size=3, seed=1, shuffle=True, keep_last=False)
    walk = [pair for _ in range(7) for pair in order.next()]
    for epoch in (0, 1):
        assert sorted(row for e, row in walk if e == epoch) == list(range(10))
    again = Order(size=10, batch_size=20, seed=1, shuffle=True, keep_last=False)
    assert walk[:20] == again.next()
    # A position that was set from outside, as a resumed run does.
    order.epoch, order.position = 0, 6
    assert order.next() == walk[6:9]
