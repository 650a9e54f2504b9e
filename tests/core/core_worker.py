"""A run in a process of its own, to be killed or told to stop: ``MODEL OUTPUT killed|told``.

"killed" trains `core_parts.offline` and gets SIGKILL before the second microbatch of update 2;
"told" trains `core_parts.online` for ever, prints the number of updates made before each one, and
ends with code 3 and the last word of the run when a signal stops it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import core_parts
import torch

from mmalign.run import Run
from mmalign.trainer import Interrupted


def run_of(model: str, output: Path, how: str) -> Run:
    if how == "killed":
        run = core_parts.offline(model, output)
        return core_parts.training(run, rows_per_microbatch=2, checkpoint_every=1)
    return core_parts.training(core_parts.online(model, output), steps=100_000)


def main(model: str, output: str, how: str) -> int:
    torch.set_num_threads(1)
    trainer = run_of(model, Path(output), how).build()
    update, seen = trainer.update, [0]

    def before(_module: Any, _inputs: Any) -> None:
        # Scoring with gradient is what a microbatch does; updates have 4, 2 and 4 of them.
        seen[0] += int(torch.is_grad_enabled())
        if how == "killed" and seen[0] == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    def announced(batch: Any) -> dict[str, float]:
        print(trainer.progress.step, flush=True)
        return update(batch)

    trainer.policy.scorer.register_forward_pre_hook(before)
    trainer.update = announced  # type: ignore[method-assign]
    try:
        trainer.train()
    except Interrupted as stopped:
        print(stopped, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
