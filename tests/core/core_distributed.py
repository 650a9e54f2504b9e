"""Small runs for `accelerate launch`: ``MODEL OUTPUT`` trains each of `runs` below OUTPUT."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import core_parts
import torch
from core_parts import EarlyLetters, rollouts, training

from mmalign.objectives import DPO, GRPO
from mmalign.references import Recorded
from mmalign.run import Evaluation, Run
from mmalign.sources import Mixed
from mmalign.tinyworld.data import TinyWorld


def runs(model: str, folder: Path) -> dict[str, Run]:
    """By name; each starts from the same weights."""
    uneven = training(core_parts.offline(model, folder / "uneven", size=7), steps=4)
    evaluation = Evaluation(
        data=TinyWorld(task="arithmetic", split="heldout", size=5),
        judges={"letters": EarlyLetters()},
        samples=2,
        batch_size=2,
    )
    uneven = replace(
        uneven,
        policy=replace(uneven.policy, max_new_tokens=12),
        source=replace(uneven.source, data=TinyWorld(task="arithmetic", size=7, seed=3)),
    )
    uneven = replace(uneven, policy=replace(uneven.policy, max_new_tokens=40))
    online = core_parts.online(model, folder / "online")
    grpo = replace(
        core_parts.grpo(model, folder / "grpo"), objective=GRPO(beta=0.1, scale="batch")
    )
    alone = core_parts.offline(model, folder / "alone", size=5)
    parts = (replace(alone.source, batch_size=1), online.source)
    return {
        # Batches of 4 and 3 pairs: 2 + 2, then 2 + 1; pieces of one pair.
        "uneven": training(
            replace(uneven, evaluation=replace(evaluation, every=2)), rows_per_microbatch=2
        ),
        # Batches of 4 and 1: at the second one process has no pair.
        "alone": training(alone, steps=4),
        "offline grpo": replace(
            alone, objective=GRPO(scale="none"), output=str(folder / "offline grpo")
        ),
        "recorded": replace(
            alone,
            reference=Recorded(folder=str(folder / "scores")),
            output=str(folder / "recorded"),
        ),
        "online": training(online, rows_per_microbatch=2),
        "grpo": training(grpo, rows_per_microbatch=3, updates_per_batch=2, steps=4),
        "ppo": training(core_parts.ppo(model, folder / "ppo"), updates_per_batch=2, steps=4),
        "mixed": replace(
            alone,
            objective=DPO(beta=0.5),
            source=Mixed(parts=parts),
            output=str(folder / "mixed"),
        ),
    }


def main(model: str, folder: Path) -> None:
    torch.set_num_threads(1)
    for run in runs(model, folder).values():
        run.train()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
