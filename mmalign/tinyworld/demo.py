"""The demonstration: five small models of five kinds, aligned by one loop, judged exactly.

Each run is the product's own command on one of its own configs, in a process of its own; two run
at a time, one thread each, which is the fastest way to use two cores for models this small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.locate import configs

RUNS: Mapping[str, str] = {
    "lvlm": "vision/lvlm_online_dpo.yaml",
    "ar_image": "vision/ar_online_dpo.yaml",
    "diffusion": "diffusion/diffusion_dpo.yaml",
    "flow": "diffusion/flow_dpo.yaml",
    "text": "text/online_dpo.yaml",
}
"""Longest first, so that the two workers finish together."""
TITLES = {
    "text": "text LLM (Llama), sums with steps",
    "lvlm": "vision-language (LLaVA), descriptions",
    "ar_image": "autoregressive images (Janus)",
    "diffusion": "diffusion (Stable Diffusion UNet)",
    "flow": "flow matching (SD3 transformer)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the before -> after table.

    Attributes:
        name: The kind of model.
        judge: The exact judge's name.
        before: Mean score before, and half of its 95 % interval.
        after: The same after alignment.
        rise: Mean rise over the same prompts, with its interval's lower and upper end.
        num_prompts: Held-out prompts.
        seconds: Wall time of the run, evaluations included.
    """

    name: str
    judge: str
    before: tuple[float, float]
    after: tuple[float, float]
    rise: tuple[float, float, float]
    num_prompts: int
    seconds: float

    @property
    def rose(self) -> bool:
        """Whether the rise is larger than the 95 % interval of either score, and of itself."""
        widest = max(self.before[1], self.after[1])
        return self.rise[0] > widest and self.rise[1] > 0


def main(*, output: Path, seed: int = 0, only: Sequence[str] = ()) -> bool:
    """Run the demonstration and write ``report.html``.

    Args:
        output: Folder of the runs and of the report; each run gets a fresh subfolder.
        seed: Of every run.
        only: Names of `RUNS`; empty for all.

    Returns:
        Whether the judge's score rose by more than its interval in every run.

    Raises:
        ValueError: An unknown name, or a run that failed (its log is named).
    """
    from mmalign.report import write

    unknown = sorted(set(only) - RUNS.keys())
    if unknown:
        raise ValueError(f"no demonstration called {unknown}; there are {sorted(RUNS)}")
    names = [name for name in RUNS if not only or name in only]
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"aligning {len(names)} models, two at a time; this takes a few minutes", flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        rows = list(pool.map(lambda name: _run(name, output / name, seed), names))
    order = list(TITLES)
    rows.sort(key=lambda row: order.index(row.name))
    print(table(rows))
    report = write([output / row.name / "run" for row in rows], output / "report.html")
    print(f"\n{time.perf_counter() - start:.0f} s in all; pictures and curves: {report}")
    return all(row.rose for row in rows)


def table(rows: Sequence[Row]) -> str:
    """The before -> after table as text."""
    lines = [
        f"{'':38} {'judge before':>16} {'after':>16} {'rise (95 % interval)':>26} {'prompts':>8} "
        f"{'time':>6}"
    ]
    for row in rows:
        rise = f"{row.rise[0]:+.3f} [{row.rise[1]:+.3f}, {row.rise[2]:+.3f}]"
        lines.append(
            f"{TITLES[row.name]:38} {row.before[0]:8.3f} +-{row.before[1]:.3f} "
            f"{row.after[0]:8.3f} +-{row.after[1]:.3f} {rise:>26} {row.num_prompts:8d} "
            f"{row.seconds:4.0f} s{'' if row.rose else '   no rise beyond the interval'}"
        )
    return "\n".join(lines)


def _run(name: str, folder: Path, seed: int) -> Row:
    if folder.exists():
        raise ValueError(f"{folder} is there already; give the demonstration a fresh --output")
    folder.mkdir()
    log = folder / "log.txt"
    command = [
        sys.executable, "-m", "mmalign", "train", str(configs() / RUNS[name]),
        f"output={folder / 'run'}", f"seed={seed}",
    ]  # fmt: skip
    start = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(), check=False
        )
    seconds = time.perf_counter() - start
    if done.returncode:
        last = log.read_text().strip().splitlines()[-3:]
        raise ValueError(f"the {name} run failed, see {log}:\n" + "\n".join(last))
    print(f"  {name} done in {seconds:.0f} s", flush=True)
    return _row(name, folder / "run", seconds)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _row(name: str, folder: Path, seconds: float) -> Row:
    lines = [json.loads(x) for x in (folder / "evaluations.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    judge = next(iter(first["judge"]))
    rise = last["paired"][judge]
    return Row(
        name=name,
        judge=judge,
        before=_mean(first["judge"][judge]),
        after=_mean(last["judge"][judge]),
        rise=(rise["mean"], rise["low"], rise["high"]),
        num_prompts=first["judge"][judge]["num_prompts"],
        seconds=seconds,
    )


def _mean(record: Mapping[str, Any]) -> tuple[float, float]:
    return record["mean"], record["high"] - record["mean"]
