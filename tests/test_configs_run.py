"""Every shipped config runs; one of each kind also resumes to the bit after a crash."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign import checkpoint, config
from mmalign.critical import Critical
from mmalign.demonstrations import Demonstrations
from mmalign.locate import configs
from mmalign.log import TIMING, RunFolder
from mmalign.protocols import Remembering
from mmalign.run import Run
from mmalign.trainer import Trainer

FILES = sorted(
    path for path in configs().rglob("*.yaml") if path.parent.name not in ("data", "hub")
)
"""Of runs that need nothing; `data` holds settings of builders, `hub` runs of real checkpoints."""
STEPS = 3
SMALL = {"batch_size": 3, "num_generations": 3, "size": 16, "rows_per_forward": 16}
"""What is made smaller wherever a setting of that name is a number."""


class Crash(Exception):
    """The machine went away."""


def shrunk(settings: Any) -> Any:
    """The same tree of settings with smaller batches and data."""
    if isinstance(settings, tuple):
        return tuple(shrunk(s) for s in settings)
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    changes: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        changes[field.name] = (
            min(value, SMALL[field.name])
            if field.name in SMALL and isinstance(value, int)
            else shrunk(value)
        )
    if type(settings).__name__ in ("DiffusionPolicy", "FlowPolicy"):
        changes["steps"] = 4
    return replace(settings, **changes)


def small_run(file: Path, output: Path) -> Run:
    """A few small updates of a shipped config, each accumulated over several pieces."""
    run: Run = shrunk(config.load(file))
    training = replace(
        run.training,
        steps=STEPS,
        checkpoint_every=1,
        rows_per_microbatch=2,
        keep_checkpoints=STEPS,
        log_every=1,
        warmup_steps=0,
        schedule="constant",
    )
    return replace(run, training=training, evaluation=None, output=str(output))


def run_earlier_stages(file: Path) -> None:
    """Where a config reads LoRAs that other runs leave, make those runs first."""
    run = config.load(file)
    if isinstance(run.source, Critical):
        for start, side in ((run.source.positive, "chosen"), (run.source.negative, "rejected")):
            stage = small_run(configs() / "text/sft.yaml", Path(start).parent)
            assert isinstance(stage.source, Demonstrations)
            replace(stage, source=replace(stage.source, of=side)).train()
    start = getattr(getattr(run.policy, "lora", None), "path", None)
    if start is not None:
        folder = Path(start).parent
        (earlier,) = (f for f in FILES if config.load(f).output == str(folder))
        small_run(earlier, folder).train()


def crash_in_update(trainer: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``trainer`` die once a part of the gradient of update ``step + 1`` is accumulated."""
    backward = trainer.accelerator.backward

    def dying(loss: torch.Tensor) -> None:
        backward(loss)
        if trainer.progress.step == step:
            raise Crash

    monkeypatch.setattr(trainer.accelerator, "backward", dying)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """What was logged, timings apart."""
    lines = RunFolder(folder).read("metrics.jsonl")
    return [{k: v for k, v in x.items() if not k.startswith(TIMING)} for x in lines]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer of the newest checkpoint."""
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None and found.step == STEPS
    return {
        f"{part} {name}": tensor
        for part in ("policy", "optimizer")
        for name, tensor in found.tensors(part).items()
    }


def test_there_are_configs_for_every_kind_of_model() -> None:
    """Five kinds of model, each with dpo, online dpo, grpo and ppo where they make sense."""
    assert len(FILES) >= 16
    policies = {type(config.load(file).policy).__name__ for file in FILES}
    assert policies == {
        "TextPolicy", "LVLMPolicy", "ARImagePolicy", "DiffusionPolicy", "FlowPolicy",
    }  # fmt: skip


def kind_of(file: Path) -> tuple[Any, ...]:
    """What of a config decides how its run is saved and continued."""
    run = config.load(file)
    return (
        type(run.policy),
        getattr(run.policy, "likelihood", None),
        getattr(run.policy, "lora", None) is None,
        type(run.source),
        type(run.reference),
        run.training.ema is None,
        run.training.updates_per_batch > 1,
        "values" in run.objective.needs,
        isinstance(run.objective, Remembering),
    )


@cache
def first_of_each_kind() -> frozenset[Path]:
    """The first config of every kind."""
    found: dict[tuple[Any, ...], Path] = {}
    for file in FILES:
        found.setdefault(kind_of(file), file)
    return frozenset(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=[f.relative_to(configs()).as_posix() for f in FILES])
def test_a_shipped_config_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few updates with finite metrics, and a model at the end; a crash leaves no trace.

    The latter for the first config of a kind alone: what the others change is the loss.
    """
    monkeypatch.chdir(tmp_path)  # configs whose data are built write them below runs/
    run_earlier_stages(file)
    if file in first_of_each_kind():
        a_crash_leaves_no_trace(file, tmp_path, monkeypatch)
        return
    run = small_run(file, tmp_path / "run")
    run = replace(run, training=replace(run.training, steps=1, checkpoint_every=None))
    run.train()
    (line,) = metrics_of(tmp_path / "run")
    assert all(math.isfinite(value) for value in line.values())
    assert any((tmp_path / "run" / "model").iterdir())


def a_crash_leaves_no_trace(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three updates in one go equal two, a crash inside the third, and the rest after a restart."""
    small_run(file, tmp_path / "whole").train()

    broken = small_run(file, tmp_path / "broken").build()
    crash_in_update(broken, STEPS - 1, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    small_run(file, tmp_path / "broken").train(resume=True)

    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "broken")
    whole, resumed = state_of(tmp_path / "whole"), state_of(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert any((tmp_path / "broken" / "model").iterdir())
