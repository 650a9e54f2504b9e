"""Small runs for `accelerate launch`: ``MODEL OUTPUT`` trains each of `runs` below OUTPUT.

One of them is trained once more, stopped inside its rollout buffer and resumed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import core_parts
import torch
from core_parts import EarlyLetters, training

from mmalign import distributed
from mmalign.objectives import AOT, BCO, DPO, GRPO, KTO, AOTUnpaired, LatentEM
from mmalign.references import EMA, Recorded
from mmalign.run import Evaluation, Run, WeightEMA
from mmalign.sources import Mixed
from mmalign.tinyworld.data import TinyWorld
from mmalign.trainer import Interrupted
from mmalign.unpaired import Unpaired


def runs(model: str, folder: Path) -> dict[str, Run]:
    """By name; each starts from the same weights."""
    uneven = training(core_parts.offline(model, folder / "uneven", size=7), steps=4)
    evaluation = Evaluation(
        data=TinyWorld(task="arithmetic", split="heldout", size=5),
        judges={"letters": EarlyLetters()},
        samples=2,
        batch_size=2,
        every=2,
    )
    online = core_parts.online(model, folder / "online")
    grpo = replace(core_parts.grpo(model, folder / "grpo"), objective=GRPO(beta=0.1, scale="batch"))
    alone = core_parts.offline(model, folder / "alone", size=5)
    parts = (replace(alone.source, batch_size=1), online.source)
    return {
        # Batches of 4 and 3 pairs: 2 + 2, then 2 + 1; pieces of one pair.
        "uneven": training(replace(uneven, evaluation=evaluation), rows_per_microbatch=2),
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
        # The reference and what is saved follow the policy.
        "following": training(
            replace(alone, reference=EMA(decay=0.5), output=str(folder / "following")),
            ema=WeightEMA(decay=0.5),
            steps=3,
        ),
        "online": training(online, rows_per_microbatch=2),
        "grpo": training(grpo, rows_per_microbatch=3, updates_per_batch=3, steps=4),
        "ppo": training(core_parts.ppo(model, folder / "ppo"), updates_per_batch=2, steps=4),
        "mixed": replace(
            alone,
            objective=DPO(beta=0.5),
            source=Mixed(parts=parts),
            output=str(folder / "mixed"),
        ),
        **coupled(model, folder),
    }


def coupled(model: str, folder: Path) -> dict[str, Run]:
    """Objectives with a statistic of the global batch: 4 pairs or 5 outputs, in pieces of 2 rows.

    In a batch of one pair a process has none.
    """
    base = training(core_parts.offline(model, folder, size=5), steps=4, rows_per_microbatch=2)
    labelled = Unpaired(data=TinyWorld(task="arithmetic", size=5), batch_size=5, mismatched=True)
    objectives = {
        "aot": AOT(beta=0.5),
        "aot unpaired": AOTUnpaired(beta=0.5),
        "bco": BCO(beta=0.5),
        "latent em": LatentEM(rate=0.5),
        "kto": KTO(beta=0.5),
    }
    made = {
        name: replace(base, objective=objective, output=str(folder / name))
        for name, objective in objectives.items()
    }
    return made | {"kto": replace(made["kto"], source=labelled)}


def stopped(run: Run) -> None:
    """Train, but the last process alone gets SIGTERM during update 2; then resume."""
    trainer = run.build()
    if distributed.rank() == distributed.world_size() - 1:
        core_parts.stop_after(trainer, 2)
    try:
        trainer.train()
    except Interrupted as told:
        assert "after update 2 of" in str(told)
    else:
        raise AssertionError("the run was not stopped")
    run.train(resume=True)


def main(model: str, folder: Path) -> None:
    torch.set_num_threads(1)
    for run in runs(model, folder).values():
        run.train()
    stopped(replace(runs(model, folder)["grpo"], output=str(folder / "stopped")))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
