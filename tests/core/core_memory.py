"""Run as a process of its own, so that nothing else is in its memory; prints MiB grown.

core_memory.py rows MODEL FOLDER SUFFIX      a data set of 10^5 rows, opened and walked through
core_memory.py updates MODEL FOLDER KIND     200 updates after a warm-up
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import core_parts
import torch
from pyarrow import Table, parquet

from mmalign.data.files import File
from mmalign.sources import Preferences
from mmalign.text import TextPolicy

ROWS, VISITED = 100_000, 50
WARM_UP, UPDATES = 20, 200
PAGE = 4096
MIB = 2**20


def resident() -> float:
    """MiB of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / MIB


def rows(count: int) -> Iterator[dict[str, str]]:
    for i in range(count):
        yield {
            "prompt": f"compute {i % 97} + {i % 89}",
            "chosen": f"{i % 97} + {i % 89} = {i % 97 + i % 89} , answer {i}",
            "rejected": f"answer {i % 13} and {i % 17} and no sum at all",
        }


def write(path: Path, count: int) -> Path:
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
    else:
        parquet.write_table(Table.from_pylist(list(rows(count))), path)
    return path


def walked(policy: TextPolicy, path: Path) -> None:
    """Every row is read, as opening a file does, and batches from all over the epoch encoded."""
    source = Preferences(data=File(path=str(path)), batch_size=16).build(policy.load(), seed=0)
    batches = iter(source)
    size = len(source.data)
    for number in range(VISITED):
        next(batches)
        source.order.position = number * size // VISITED


def grown_by_rows(model: str, folder: Path, suffix: str) -> float:
    policy = TextPolicy(model=model, max_new_tokens=40)
    # The first file of a kind loads libraries, which is no matter of its rows.
    walked(policy, write(folder / f"small{suffix}", 200))
    before = resident()
    walked(policy, folder / f"large{suffix}")
    return resident() - before


def grown_by_updates(model: str, folder: Path, kind: str) -> tuple[float, float]:
    """MiB grown, and the MiB there were."""
    run = core_parts.RUNS[kind](model, folder / "run")
    trainer = core_parts.training(run, steps=WARM_UP + UPDATES, learning_rate=1e-4).build()
    found: list[float] = []
    update = trainer.update

    def watched(batch: object) -> dict[str, float]:
        if trainer.progress.step in (WARM_UP, WARM_UP + UPDATES - 1):
            found.append(resident())
        return update(batch)  # type: ignore[arg-type]

    trainer.update = watched  # type: ignore[method-assign]
    trainer.train()
    return found[1] - found[0], found[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, model, folder, how = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    if what == "rows":
        print(json.dumps({"grown": grown_by_rows(model, folder, how)}))
    else:
        grown, there = grown_by_updates(model, folder, how)
        print(json.dumps({"grown": grown, "there": there}))
