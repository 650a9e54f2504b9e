"""Denoising moves that are not trained cost nothing, and windows of moves bound the memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.claims import Claim, Comparison
from mmalign.commands.targets import load_run
from mmalign.flops import FlopCounter
from mmalign.trainer import Trainer
from mmalign.types import Batch

CONFIGS = {"diffusion": "diffusion/diffusion_grpo", "flow": "diffusion/flow_grpo"}
SMALL = ("source.batch_size=2", "source.num_generations=4", "objective.beta=0", "evaluation=null")
FRACTIONS = (0.5, 0.25)
MOVES = (5, 20)
COST = "FLOPs per trained move, of those when all moves are trained"
MEMORY = "kept for the backward pass, of what a path of 5 moves keeps"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The cost and the memory of one update on a batch of paths."""
    arms = {}
    for name, config in CONFIGS.items():
        costs = {}
        for share in (1.0, *FRACTIONS):
            trainer, batch = prepared(config, folder, seed, [f"policy.step_fraction={share}"])
            with FlopCounter() as counter:
                trainer.update(batch)
            costs[share] = counter.total / int(batch.trajectory.mask.sum())
        for share in FRACTIONS:
            arms[f"{name}, {share:.0%} of the moves"] = {COST: [costs[share] / costs[1.0]]}
        for window in (1, None):
            kept = []
            for moves in MOVES:
                size = "null" if window is None else str(window)
                settings = [f"policy.steps={moves}", f"training.steps_per_microbatch={size}"]
                trainer, batch = prepared(config, folder, seed, settings)
                with Kept() as bytes_kept:
                    trainer.update(batch)
                kept.append(bytes_kept.peak)
            how = "whole paths" if window is None else "windows of one move"
            arms[f"{name}, {how} of {MOVES[1]} moves"] = {MEMORY: [kept[1] / kept[0]]}
    return arms


def prepared(
    config: str, folder: Path, seed: int, overrides: Sequence[str]
) -> tuple[Trainer, Batch]:
    """A trainer, and the batch of its first update."""
    fixed = [*SMALL, f"output={folder}", f"seed={seed}"]
    trainer = load_run(config, [*overrides, *fixed]).build()
    return trainer, trainer.credited(next(iter(trainer.source)))


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """While active, adds up the storage that is kept for backward passes.

    Attributes:
        peak: Most bytes at a time.
    """

    def __init__(self) -> None:
        self.held: Counter[int] = Counter()
        self.now = self.peak = 0
        super().__init__(lambda tensor: _Holder(self, tensor), lambda holder: holder.tensor)

    def __enter__(self) -> Kept:  # type: ignore[override]
        super().__enter__()
        return self

    def add(self, tensor: Tensor, number: int) -> None:
        """Count a tensor's storage where it is the first of it, or the last (``number`` -1)."""
        storage = tensor.untyped_storage()
        place, before = storage.data_ptr(), self.held[storage.data_ptr()]
        self.held[place] += number
        if (before == 0) != (self.held[place] == 0):
            self.now += number * storage.nbytes()
        self.peak = max(self.peak, self.now)


class _Holder:
    """A kept tensor, which says so when it is let go of."""

    def __init__(self, kept: Kept, tensor: Any) -> None:
        self.kept, self.tensor = kept, tensor
        kept.add(tensor, 1)

    def __del__(self) -> None:
        self.kept.add(self.tensor, -1)


CLAIM = Claim(
    statement=(
        "Training a share of a path's moves costs that share, and in windows of one move a path "
        "four times as long needs no more memory."
    ),
    source="2505.07818",
    run=run,
    objectives=("grpo",),
    comparisons=tuple(
        comparison
        for name in CONFIGS
        for comparison in (
            *(
                Comparison(
                    metric=COST,
                    arm=f"{name}, {share:.0%} of the moves",
                    over=1.0,
                    sign="within",
                    margin=0.02,
                )
                for share in FRACTIONS
            ),
            Comparison(
                metric=MEMORY,
                arm=f"{name}, windows of one move of {MOVES[1]} moves",
                over=1.0,
                sign="within",
                margin=0.05,
            ),
        )
    ),
    seeds=3,
)
