"""The dry run before an expensive one: two batches through everything, and nothing changed."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from mmalign import cost, invariants
from mmalign.cost import amount, duration, size
from mmalign.flops import FlopCounter, limit_seconds, measured_peaks
from mmalign.invariants import CheckLine
from mmalign.speed import Useful, useful
from mmalign.trainer import Trainer
from mmalign.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Dry:
    """A batch that went through everything but the optimizer.

    Attributes:
        batch: Credited.
        useful: What it is worth.
        drawing: Seconds that sampling or reading it took, judging included.
        scoring: Seconds of the passes without gradient: the reference, and what else is recorded.
        updating: Seconds of forward and backward pass.
    """

    batch: Batch
    useful: Useful
    drawing: float
    scoring: float
    updating: float


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
    found: list[Dry] = []
    for number in range(batches):
        start = time.perf_counter()
        drawn = next(source)
        read = time.perf_counter()
        batch = trainer.credited(drawn)
        credited = time.perf_counter()
        lines.append(_found(batch, number))
        if not invariants.has_signal(batch):
            detail = "every group is tied: nothing would be learned from this batch"
            lines.append(CheckLine(name="signal", ok=False, detail=detail))
            continue
        lines += _start(trainer, batch)
        begun = time.perf_counter()
        lines += _gradient(trainer, batch)
        found.append(
            Dry(
                batch=batch,
                useful=useful(batch.trajectory, trainer.scoring.prompt_lengths(batch)),
                drawing=read - start,
                scoring=credited - read,
                updating=time.perf_counter() - begun,
            )
        )
    if found:
        lines += [*_work(trainer, found), _memory(trainer, found[-1]), _duration(trainer, found)]
    trainer.optimizer.zero_grad()
    return lines


def _parameters(trainer: Trainer) -> CheckLine:
    kinds = cost.parameters_of(trainer.policy.model)
    trained = sum(p.numel() for p in trainer.parameters.values())
    detail = (
        f"{kinds.total:,} in the model (body {kinds.body:,}, embedding {kinds.embedding:,}, head "
        f"{kinds.head:,}), {trained:,} trained ({100 * trained / kinds.total:.2f} %)"
    )
    return CheckLine(name="parameters", ok=trained > 0, detail=detail)


def _found(batch: Batch, number: int) -> CheckLine:
    steps = batch.trajectory.mask.sum(1).float()
    found = f"{len(batch)} rows, {steps.mean():.1f} steps a row (longest {int(steps.max())})"
    if batch.counters:
        found += "; " + ", ".join(f"{k} {v:g}" for k, v in sorted(batch.counters.items()))
    return CheckLine(name=f"batch {number + 1}", ok=len(batch) > 0, detail=found)


def _gradient(trainer: Trainer, batch: Batch) -> list[CheckLine]:
    trainer.optimizer.zero_grad()
    sums = trainer.backward(batch, batch.denominator)
    loss = sums["loss"][0] / batch.denominator
    line = CheckLine(name="loss", ok=math.isfinite(loss), detail=f"{loss:.6f}")
    return [line, invariants.gradient_arrives(trainer.parameters)]


@torch.no_grad()
def _start(trainer: Trainer, batch: Batch) -> list[CheckLine]:
    """The untrained policy against its reference and against what it recorded, on a few rows."""
    rows = torch.arange(min(4, len(batch)), device=batch.group.device)
    piece = batch.rows(rows)
    want, against = trainer.asked(trainer.progress.step)
    with torch.no_grad():
        scores = trainer.policy.scores(piece.trajectory, want=want, against=against)
    if scores.reference is not None:
        piece = replace(piece, reference=scores.reference)
    dtype = next(trainer.policy.model.parameters()).dtype
    lines = []
    if piece.reference is not None:
        line = invariants.same_at_start(scores.log_probs, piece, dtype=dtype)
        starts_there = bool(getattr(trainer.reference, "starts_at_policy", False))
        lines.append(line if starts_there else CheckLine(name=line.name, ok=True, detail="differs"))
    if piece.behaviour is not None:
        lines.append(invariants.on_policy(scores.log_probs, piece, dtype=dtype))
    return lines


def _work(trainer: Trainer, found: list[Dry]) -> list[CheckLine]:
    """FLOPs of an update by pass, and the least time for them on this machine.

    Counting takes time of its own, so the last batch is computed once more for it.
    """
    last, updates = found[-1], trainer.run.training.updates_per_batch
    bare = replace(last.batch, reference=None, behaviour=None, values=None)
    with FlopCounter() as before, torch.no_grad():
        trainer.scoring.scored(bare)
    with FlopCounter() as forward, torch.no_grad():
        trainer.scoring.own(last.batch)
    with FlopCounter() as asked, torch.no_grad():
        want, against = trainer.asked(trainer.progress.step)
        for piece in trainer.scoring.pieces(last.batch):
            trainer.policy.scores(piece.trajectory, want=want, against=against)
    with FlopCounter() as both:
        trainer.backward(last.batch, last.batch.denominator)
    # A divergence from the reference's distributions runs the reference beside the policy.
    compared = asked.total - forward.total
    detail = (
        f"{amount(forward.total, 'FLOP')} forward, {amount(both.total - asked.total, 'FLOP')} "
        f"backward, {amount(before.total / updates + compared, 'FLOP')} reference and other "
        f"passes without gradient, for {last.useful.number:,.0f} useful {last.useful.unit}"
    )
    lines = [CheckLine(name="work of an update", ok=True, detail=detail)]
    peaks = measured_peaks(both.products, device=trainer.accelerator.device)
    if not peaks:
        return lines
    limit, once = limit_seconds(both.products, peaks), limit_seconds(before.products, peaks)
    reached = [
        (limit + once) * d.useful.number / last.useful.number / (d.scoring + d.updating)
        for d in found
    ]
    least = limit + once / updates
    detail = (
        f"{duration(least)} an update, {last.useful.number / least:,.0f} {last.useful.unit}/s, at "
        f"the measured peak of {amount(max(peaks.values()), 'FLOP/s')}; the batches above reached "
        + ", ".join(f"{100 * share:.0f} %" for share in reached)
    )
    return [*lines, CheckLine(name="limit", ok=True, detail=detail)]


def _memory(trainer: Trainer, last: Dry) -> CheckLine:
    networks: list[nn.Module] = [trainer.policy.scorer]
    reference = getattr(trainer.reference, "inner", trainer.reference)
    if (network := getattr(reference, "network", None)) is not None:
        networks.append(network)
    piece = trainer.scoring.pieces(last.batch)[0].trajectory
    activations = cost.kept_bytes(
        lambda: trainer.policy.scorer(piece, frozenset(), None),
        apart_from=[*trainer.policy.scorer.parameters(), *trainer.policy.scorer.buffers()],
    )
    need = cost.memory(networks, trainer.parameters.values(), activations=activations)
    if trainer.accelerator.device.type == "cuda":
        peak, where = torch.cuda.max_memory_allocated(), "of GPU memory"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "in all"
    detail = (
        f"about {size(need.total)}: weights {size(need.weights)}, gradients "
        f"{size(need.gradients)}, optimizer {size(need.optimizer)}, activations "
        f"{size(need.activations)} a piece; peak so far, before the optimizer's, {size(peak)} "
        f"{where}"
    )
    return CheckLine(name="memory", ok=True, detail=detail)


def _duration(trainer: Trainer, found: list[Dry]) -> CheckLine:
    """The last batch's time: the first one pays for warming up."""
    last, training = found[-1], trainer.run.training
    update = last.updating + (last.drawing + last.scoring) / training.updates_per_batch
    detail = (
        f"{duration(update)} an update, {last.useful.number / update:,.0f} {last.useful.unit}/s, "
        f"about {duration(update * training.steps)} for {training.steps} updates, evaluations not "
        "counted"
    )
    return CheckLine(name="time", ok=True, detail=detail)
