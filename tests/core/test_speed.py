"""Useful units, and the meter of a run."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import offline, same, tensors_of, trace, training

from mmalign import speed
from mmalign.log import RunFolder, summed
from mmalign.speed import Meter, Useful, progress_line, useful
from mmalign.types import Trajectory


def trajectory(outputs: list[Any]) -> Trajectory:
    """A group of two rows of 3 and 2 steps, and one row of 4."""
    lengths = torch.tensor([3, 2, 4])
    return Trajectory(
        mask=torch.arange(4) < lengths.unsqueeze(1),
        prompt_of=torch.tensor([0, 0, 1]),
        static={},
        stepwise={},
        outputs=outputs,
    )


def test_a_prompt_counts_once() -> None:
    """Prompts of 10 and 7 tokens: 17 + 9. Pictures count as pictures, whatever they are made of."""
    lengths = torch.tensor([10, 7])
    assert useful(trajectory(["a", "b", "c"]), lengths) == Useful(number=26.0, unit="tokens")
    drawn = useful(trajectory([object(), object(), object()]), lengths)
    assert drawn == Useful(number=3.0, unit="pictures")


def test_the_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 6 s serves two updates of 2 s each on 50 units: 50 units in 5 s.

    The products of the counted update need 1 s at best for 100 units, so 0.5 s of the 2 s.
    """
    now = iter([0.0, 6.0, 10.0, 12.0, 20.0, 22.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(speed, "measured_peaks", lambda _, *, device: {"shape": 1.0})
    monkeypatch.setattr(speed, "limit_seconds", lambda _, peaks: 1.0)
    meter = Meter(device=torch.device("cpu"), updates_per_batch=2)
    with meter.batch():
        pass
    with meter.update(100.0, count=True):
        pass
    with meter.update(50.0):
        pass
    found = meter.metrics(50.0, everywhere=50.0)
    assert found == {
        "time/batch": 6.0,
        "time/update": 2.0,
        "time/units_per_second": pytest.approx(10.0),
        "time/limit_fraction": pytest.approx(0.25),
    }
    line = progress_line({**found, "loss": 0.25}, "tokens")
    assert line == "loss 0.2500, 10 tokens/s, 25 % of the limit"
    fast = {"time/units_per_second": 12345.6, "loss": 0.25}
    assert progress_line(fast, "pictures") == "loss 0.2500, 12,346 pictures/s"


def test_before_it_is_measured_there_is_no_limit() -> None:
    meter = Meter(device=torch.device("cpu"))
    with meter.update(1.0):
        pass
    assert meter.share(1.0) is None
    assert "time/limit_fraction" not in meter.metrics(1.0, everywhere=1.0)


def test_a_run_says_its_speed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth update on its share of the limit is known; counting changes no bit."""
    found = {}
    for name, every in (("counted", 100), ("uncounted", 10**9)):
        monkeypatch.setattr(speed, "COUNTED_EVERY", every)
        monkeypatch.setattr(speed, "COUNTED_UPDATE", 3 if name == "counted" else 10**8)
        run = training(offline(model, tmp_path / name), steps=5)
        trainer = run.build()
        trainer.train()
        found[name] = (tensors_of(trainer), trace(run.output))
    assert same(found["counted"][0], found["uncounted"][0])
    assert found["counted"][1] == found["uncounted"][1]
    lines = RunFolder(tmp_path / "counted").read("metrics.jsonl")
    assert all(line["time/units_per_second"] > 0 for line in lines)
    assert ["time/limit_fraction" in line for line in lines] == [False] * 3 + [True] * 2
    assert 0.0 < lines[-1]["time/limit_fraction"] < 1.5
    said = capsys.readouterr().err
    assert re.search(r"loss \d\.\d{4}, [\d.,]+ tokens/s, \d+ % of the limit", said)


def test_metrics_are_added_in_order() -> None:
    """Sums and counts by name; a metric may be missing from a piece."""
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    pieces = [{"a": (one, two), "b": (two, two)}, {"a": (two, one)}]
    assert summed(pieces) == {"a": (3.0, 3.0), "b": (2.0, 2.0)}


def test_units_of_every_kind(model: str, tmp_path: Path) -> None:
    """A batch's own lengths: its prompts' ids once, and its scored steps."""
    trainer = core_parts.grpo(model, tmp_path / "x").build()
    batch = next(iter(trainer.source))
    ids = batch.trajectory.static["prompt_ids"]
    expected = sum(len(i) for i in ids) + int(batch.trajectory.mask.sum())
    assert len(ids) == 2 and len(batch) == 8
    assert useful(batch.trajectory, trainer.scoring.prompt_lengths(batch)).number == expected


FAULTS = """
import resource, torch
from mmalign.speed import keep_freed_memory

def faults():
    for round in range(8):
        if round == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2**21) for _ in range(8)] + [torch.ones(2**24)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
keep_freed_memory(torch.device("cuda"))
untouched = faults()
keep_freed_memory(torch.device("cpu"))
print(plain, untouched, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_kept():
    """Five times 128 MB, 4 KB a page: 163,840 faults where it goes back to the system, or none.

    Half of it is one block, larger than any that glibc keeps unasked. In a process of its own: what
    a C library was told cannot be taken back.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    )
    plain, untouched, kept = (int(number) for number in done.stdout.split())
    assert plain > 1000 and untouched > 1000
    assert kept < 100
