"""The dry run before an expensive one: two batches through everything, and nothing changed."""

from __future__ import annotations

import math
import resource
import time

import torch

from mmalign import invariants
from mmalign.invariants import CheckLine
from mmalign.trainer import Trainer, has_signal
from mmalign.types import Batch

GIB = 2**30
ADAM_BYTES = 8
"""AdamW keeps two float32 moments of every trained parameter."""


def check(trainer: Trainer, *, batches: int = 2) -> list[CheckLine]:
    """Run ``batches`` batches through sampling, rewards, scoring, loss and gradient.

    Args:
        trainer: Freshly built; its weights are as before afterwards.
        batches: How many.

    Returns:
        What was checked and what was found, in the order a reader wants it.

    Raises:
        ValueError: Data, reward or model refuse their input; the message names it.
    """
    lines = [_parameters(trainer)]
    source = iter(trainer.source)
    seconds = []
    for number in range(batches):
        start = time.perf_counter()
        batch = trainer.credited(next(source))
        lines += _one_batch(trainer, batch, number)
        seconds.append(time.perf_counter() - start)
    trainer.optimizer.zero_grad()
    lines.append(_memory(trainer))
    lines.append(_duration(trainer, seconds))
    return lines


def _parameters(trainer: Trainer) -> CheckLine:
    total = sum(p.numel() for p in trainer.policy.model.parameters())
    trained = sum(p.numel() for p in trainer.parameters.values())
    return CheckLine(
        name="parameters",
        ok=trained > 0,
        detail=f"{total:,} in the model, {trained:,} trained ({100 * trained / total:.2f} %)",
    )


def _one_batch(trainer: Trainer, batch: Batch, number: int) -> list[CheckLine]:
    steps = batch.trajectory.mask.sum(1).float()
    found = f"{len(batch)} rows, {steps.mean():.1f} steps a row (longest {int(steps.max())})"
    if batch.counters:
        found += "; " + ", ".join(f"{k} {v:g}" for k, v in sorted(batch.counters.items()))
    lines = [CheckLine(name=f"batch {number + 1}", ok=len(batch) > 0, detail=found)]
    if not has_signal(batch):
        detail = "every group is tied: nothing would be learned from this batch"
        return [*lines, CheckLine(name="signal", ok=False, detail=detail)]
    lines += _start(trainer, batch)
    trainer.optimizer.zero_grad()
    sums = trainer.backward(batch, batch.denominator)
    loss = sums["loss"][0] / batch.denominator
    lines.append(CheckLine(name="loss", ok=math.isfinite(loss), detail=f"{loss:.6f}"))
    lines.append(invariants.gradient_arrives(trainer.parameters))
    return lines


@torch.no_grad()
def _start(trainer: Trainer, batch: Batch) -> list[CheckLine]:
    """The untrained policy against its reference and against what it recorded, on a few rows."""
    rows = torch.arange(min(4, len(batch)), device=batch.group.device)
    piece = batch.rows(rows)
    scores = trainer.policy.adapter.scores(trainer.policy.model, piece.trajectory)
    dtype = next(trainer.policy.model.parameters()).dtype
    lines = []
    if piece.reference is not None:
        line = invariants.same_at_start(scores.log_probs, piece, dtype=dtype)
        starts_there = bool(getattr(trainer.reference, "starts_at_policy", False))
        lines.append(line if starts_there else CheckLine(name=line.name, ok=True, detail="differs"))
    if piece.behaviour is not None:
        lines.append(invariants.on_policy(scores.log_probs, piece, dtype=dtype))
    return lines


def _memory(trainer: Trainer) -> CheckLine:
    state = ADAM_BYTES * sum(p.numel() for p in trainer.parameters.values()) / GIB
    if trainer.accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / GIB
        where = "of GPU memory"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        where = "of memory"
    detail = f"peak so far {peak:.2f} GiB {where}; the optimizer will add {state:.2f} GiB"
    return CheckLine(name="memory", ok=True, detail=detail)


def _duration(trainer: Trainer, seconds: list[float]) -> CheckLine:
    """The last batch's time: the first one pays for warming up."""
    updates = trainer.run.training.updates_per_batch
    total = seconds[-1] / updates * trainer.run.training.steps
    detail = (
        f"{seconds[-1]:.2f} s a batch, about {total / 60:.1f} min for "
        f"{trainer.run.training.steps} updates, evaluations not counted"
    )
    return CheckLine(name="time", ok=True, detail=detail)
