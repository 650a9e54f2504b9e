"""The whole state of a run on disk, and back: weights, optimizer, position, rollout buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from mmalign import distributed
from mmalign.checkpoint import Checkpoint, Writer, latest
from mmalign.optim import optimizer_tensors, restore_optimizer
from mmalign.serialise import pack, restore_rng, rng_state, unpack
from mmalign.types import Batch

if TYPE_CHECKING:
    from mmalign.trainer import Trainer

FREE_TO_CHANGE = (
    "output", "training.steps", "training.log_every", "training.checkpoint_every",
    "training.keep_checkpoints", "training.watch_concentration", "training.trackers",
    "training.max_bad_updates",
)  # fmt: skip
"""Settings that may differ when a run is resumed: they do not change the updates already made.

``training.steps`` does change a linear or cosine schedule, from the resumed step on.
"""


@dataclass(slots=True)
class Progress:
    """Where a run is.

    Attributes:
        step: Optimizer updates made.
        updates_done: Updates made on the buffered batch.
        buffer: The credited batch in use; None between batches.
        bad_updates: Skipped updates in a row.
        memory: What the objective has learned of its own (`mmalign.protocols.Remembering`).
    """

    step: int = 0
    updates_done: int = 0
    buffer: Batch | None = None
    bad_updates: int = 0
    memory: Mapping[str, float] = field(default_factory=dict)


def save(trainer: Trainer) -> None:
    """Write a checkpoint of ``trainer``; every process calls this."""
    from mmalign.config import resolved

    progress = trainer.progress
    writer = Writer(trainer.folder.path / "checkpoints", progress.step)
    if distributed.is_main():
        writer.open()
    distributed.barrier()
    if progress.buffer is not None:
        tensors, description = pack(progress.buffer)
        writer.tensors(f"buffer-{distributed.rank()}", tensors)
        writer.json(f"buffer-{distributed.rank()}", description)
    random_tensors, random_description = rng_state()
    writer.tensors(f"random-{distributed.rank()}", random_tensors)
    writer.json(f"random-{distributed.rank()}", random_description)
    distributed.barrier()
    if distributed.is_main():
        writer.tensors("policy", {k: p.data for k, p in trainer.parameters.items()})
        for part, follower in trainer.followers.items():
            writer.tensors(part, follower.tensors())
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        writer.tensors("optimizer", optimizer_tensors(inner, trainer.parameters))
        writer.json(
            "progress",
            {
                "step": progress.step,
                "updates_done": progress.updates_done,
                "bad_updates": progress.bad_updates,
                "memory": dict(progress.memory),
                "buffered": progress.buffer is not None,
                "processes": distributed.world_size(),
                "source": trainer.source.state_dict(),
                "config": resolved(trainer.run),
            },
        )
        writer.commit(keep=max(2, trainer.run.training.keep_checkpoints))
    distributed.barrier()


def restore(trainer: Trainer) -> None:
    """Continue from the newest complete checkpoint in the run's folder.

    Raises:
        ValueError: There is none, it belongs to other settings, or every one is damaged.
    """
    found = latest(trainer.folder.path / "checkpoints")
    if found is None:
        raise ValueError(
            f"{trainer.folder.path} has no checkpoint to resume from; start the run anew, in "
            "another `output` where this one holds metrics already"
        )
    saved = found.json("progress")
    _same_settings(trainer, saved["config"])
    _load_weights(trainer, found)
    trainer.source.load_state_dict(saved["source"])
    progress = trainer.progress
    progress.step = saved["step"]
    progress.updates_done = saved["updates_done"]
    progress.bad_updates = saved["bad_updates"]
    # Checkpoints of before objectives remembered have none.
    progress.memory = saved.get("memory", {})
    if saved["buffered"]:
        _same_processes(saved["processes"])
        name = f"buffer-{distributed.rank()}"
        batch = unpack(found.tensors(name), found.json(name))
        progress.buffer = batch.to(trainer.accelerator.device)
    if saved["processes"] == distributed.world_size():
        name = f"random-{distributed.rank()}"
        restore_rng(found.tensors(name), found.json(name))
    if distributed.is_main():
        trainer.folder.forget_after(progress.step)
    distributed.barrier()


def save_bad_batch(trainer: Trainer, batch: Batch) -> Path:
    """Keep a batch whose loss was not finite, for a look at it."""
    folder = trainer.folder.path / "bad-batches"
    folder.mkdir(parents=True, exist_ok=True)
    tensors, description = pack(batch)
    stem = folder / f"step-{trainer.progress.step + 1:08d}-{distributed.rank()}"
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(description))
    return stem.with_suffix(".safetensors")


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """The dotted paths at which two resolved configs differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            d
            for key in keys
            for d in differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == now else [path]


def _load_weights(trainer: Trainer, found: Checkpoint) -> None:
    tensors = found.tensors("policy")
    if tensors.keys() != trainer.parameters.keys():
        raise ValueError(f"{found.folder} holds other parameters than this policy trains")
    with torch.no_grad():
        for name, parameter in trainer.parameters.items():
            parameter.copy_(tensors[name])
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    restore_optimizer(inner, trainer.parameters, found.tensors("optimizer"))
    for part, follower in trainer.followers.items():
        follower.load_tensors(found.tensors(part))


def _same_settings(trainer: Trainer, before: dict[str, Any]) -> None:
    from mmalign.config import resolved

    now = json.loads(json.dumps(resolved(trainer.run)))
    changed = [d for d in differences(before, now) if d not in FREE_TO_CHANGE]
    if changed:
        raise ValueError(
            f"these settings differ from the run being resumed: {', '.join(changed)}; "
            "restore them or start a new run in another `output`"
        )


def _same_processes(before: int) -> None:
    if before != distributed.world_size():
        raise ValueError(
            f"the run stopped in the middle of a rollout buffer with {before} processes; resume it "
            f"with as many (now {distributed.world_size()})"
        )
