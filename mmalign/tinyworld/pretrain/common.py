"""What the pre-training recipes share: one AdamW loop, half-precision saving, model cards."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmalign import tinyworld

WEIGHTS = Path(tinyworld.__file__).parent / "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a training run was.

    Attributes:
        steps: Optimiser steps taken.
        seconds: Processor time.
        loss: Mean loss of the last tenth of the steps.
    """

    steps: int
    seconds: float
    loss: float


def prepare(seed: int, *, threads: int = 1) -> None:
    """Seed torch and bound its threads: recipes run beside each other."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)


def fit(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    name: str,
    steps: int,
    learning_rate: float,
    warmup: int = 100,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    seconds: float = math.inf,
) -> Fit:
    """AdamW with a linear warm-up and a cosine decay to 0.

    Args:
        parameters: What is trained.
        loss_of: Step number to scalar loss; draws its own batch.
        name: Shown beside the progress.
        steps: Optimiser steps, where the time suffices.
        learning_rate: The peak.
        warmup: Steps of the linear warm-up.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are clipped to this norm.
        seconds: Budget of processor time, which other programs do not use up. The cosine follows
            whichever of steps and time is further along, so that the rate reaches 0 when either is
            spent.

    Returns:
        What happened.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    start, losses, step = time.process_time(), [], 0
    for step in range(1, steps + 1):
        elapsed = time.process_time() - start
        progress = min(1.0, max((step - 1) / steps, elapsed / seconds))
        rate = learning_rate * min(1.0, step / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        losses.append(loss.detach().item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{name}: the loss is {losses[-1]} at step {step}")
        if step % 50 == 0 or step == steps:
            _progress(name, step, steps, losses, time.process_time() - start, seconds)
        if progress >= 1.0:
            break
    tail = losses[-max(1, len(losses) // 10) :]
    return Fit(steps=step, seconds=time.process_time() - start, loss=sum(tail) / len(tail))


def _progress(
    name: str, step: int, steps: int, losses: list[float], elapsed: float, seconds: float
) -> None:
    recent = losses[-50:]
    left = min(elapsed / step * (steps - step), seconds - elapsed)
    done = max(step / steps, elapsed / seconds)
    bar = ("#" * int(20 * min(done, 1.0))).ljust(20, ".")
    line = (
        f"{name} [{bar}] step {step}/{steps} loss {sum(recent) / len(recent):.4f} "
        f"{step / elapsed:.1f} steps/s, {max(left, 0.0):.0f} s left"
    )
    end = "\r" if sys.stderr.isatty() and step < steps else "\n"
    print(line, end=end, file=sys.stderr, flush=True)


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def save_half(model: nn.Module, folder: Path) -> None:
    """Write a transformers or diffusers model as half-precision safetensors.

    The model itself is left in half precision; save last.
    """
    model.half().save_pretrained(str(folder), safe_serialization=True)  # type: ignore[operator]


def size_on_disk(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def write_card(
    folder: Path,
    *,
    title: str,
    summary: str,
    facts: Mapping[str, str | float | int],
    library: str,
    pipeline_tag: str | None = None,
) -> None:
    """Write README.md (a model card) and the same facts as `pretraining.json`.

    Args:
        folder: The model's folder.
        title: The headline.
        summary: What the model is and for what; one paragraph.
        facts: Data, steps, seed, corruption rate, measured judge score, in that order.
        library: `transformers`, `diffusers` or `open_clip`.
        pipeline_tag: The hub's task name, where one fits.
    """
    tag = f"pipeline_tag: {pipeline_tag}\n" if pipeline_tag else ""
    rows = "\n".join(
        f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |"
        for name, value in facts.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    head = f"license: apache-2.0\nlibrary_name: {library}\n{tag}tags:\n- mmalign\n- tinyworld"
    (folder / "README.md").write_text(
        f"---\n{head}\n---\n\n# {title}\n\n{summary}\n\n| fact | value |\n| --- | --- |\n{rows}\n\n"
        "All it saw was drawn and written by `mmalign.tinyworld`; no outside data was used.\n"
    )
    (folder / "pretraining.json").write_text(json.dumps(dict(facts), indent=2) + "\n")
