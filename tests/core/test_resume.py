"""Stopped and resumed is the same as never stopped: bit for bit, weights, moments and metrics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import core_worker
import pytest
import torch
from core_parts import offline, same, stop_after, tensors_of, trace, training

from mmalign.objectives import XPO
from mmalign.references import EMA, Sync
from mmalign.run import Run, WeightEMA
from mmalign.sources import Mixed
from mmalign.trainer import Interrupted, Trainer


def to(run: Run, output: Path) -> Run:
    return replace(run, output=str(output))


def trained(run: Run) -> Trainer:
    trainer = run.build()
    trainer.train()
    return trainer


def mixed(model: str, output: Path) -> Run:
    online, recorded = core_parts.online(model, output), offline(model, output)
    policy = replace(online.policy, max_new_tokens=40)
    return replace(online, policy=policy, source=Mixed(parts=(recorded.source, online.source)))


def following(model: str, output: Path) -> Run:
    """The reference follows what the LoRA makes; a moving average of the weights is saved."""
    return training(
        replace(offline(model, output), reference=EMA(decay=0.5)), ema=WeightEMA(decay=0.6)
    )


def synced(model: str, output: Path) -> Run:
    """Full fine-tuning in bfloat16, the reference a copy that is mixed in after updates 2 and 4."""
    run = replace(offline(model, output), reference=Sync(alpha=0.6, every=2))
    return replace(run, policy=replace(run.policy, lora=None, dtype="bfloat16"))


def exploring(model: str, output: Path) -> Run:
    """A part of each group is sampled from a reference that follows the policy."""
    source = core_parts.rollouts(num_generations=4, reference_generations=2)
    run = replace(core_parts.online(model, output), objective=XPO(alpha=0.01), source=source)
    return replace(run, reference=Sync(alpha=0.6, every=2))


CASES: dict[str, tuple[Any, dict[str, Any], int]] = {
    # Six pairs in batches of four: epochs of two updates, the second one smaller.
    "mid-epoch": (offline, {"steps": 5}, 1),
    "after an uneven batch": (offline, {"steps": 5}, 2),
    "in the third epoch": (offline, {"steps": 6, "schedule": "cosine", "warmup_steps": 2}, 5),
    "online": (core_parts.online, {"steps": 4, "rows_per_microbatch": 2}, 2),
    "inside a rollout buffer": (core_parts.grpo, {"steps": 6, "updates_per_batch": 4}, 2),
    "critic": (core_parts.ppo, {"steps": 5, "updates_per_batch": 2}, 3),
    "online buffer": (core_parts.online, {"steps": 4, "updates_per_batch": 4}, 1),
    "moving average": (following, {"steps": 4}, 2),
    "synced reference": (synced, {"steps": 5, "learning_rate": 1e-3}, 3),
    "samples of a synced reference": (exploring, {"steps": 4, "learning_rate": 0.1}, 3),
    "mixture": (mixed, {"steps": 4}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed(case: str, model: str, tmp_path: Path) -> None:
    """SIGTERM during an update: it is finished and saved; a new trainer continues to the same."""
    make, settings, stop = CASES[case]
    run = training(make(model, tmp_path / "run"), **settings)
    whole = to(run, tmp_path / "whole")
    expected = trained(whole)
    trainer = run.build()
    stop_after(trainer, stop)
    total = settings["steps"]
    with pytest.raises(Interrupted, match=f"stopped after update {stop} of {total}.*--resume"):
        trainer.train()
    assert len(trace(run.output)) == stop
    # What happens in between in this process must not matter.
    torch.manual_seed(123)
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


def test_stopped_twice(model: str, tmp_path: Path) -> None:
    """Each stop inside the buffer of four updates: state that is restored is saved again."""
    run = training(core_parts.grpo(model, tmp_path / "run"), steps=4, updates_per_batch=4)
    whole = to(run, tmp_path / "whole")
    expected = trained(whole)
    for stop, resume in ((1, False), (3, True)):
        trainer = run.build()
        stop_after(trainer, stop)
        with pytest.raises(Interrupted):
            trainer.train(resume=resume)
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


class Crash(Exception):
    pass


@pytest.mark.parametrize("kind", ["offline", "grpo"])
def test_crash_inside_an_accumulation(kind: str, model: str, tmp_path: Path) -> None:
    """An exception between the microbatches of update 2: the run continues from update 1.

    GRPO stops there inside its buffer of three updates, whose second update is made anew.
    """
    run = training(
        core_parts.RUNS[kind](model, tmp_path / "run"),
        rows_per_microbatch=2,
        checkpoint_every=1,
        updates_per_batch=3 if kind == "grpo" else 1,
    )
    whole = to(run, tmp_path / "whole")
    expected = trained(whole)
    trainer = run.build()

    def crash(_module: Any, _inputs: Any) -> None:
        partial = any(p.grad is not None for p in trainer.parameters.values())
        if torch.is_grad_enabled() and trainer.progress.step == 1 and partial:
            raise Crash

    trainer.policy.scorer.register_forward_pre_hook(crash)
    with pytest.raises(Crash):
        trainer.train()
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


@pytest.fixture(scope="module")
def workers(
    model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, subprocess.Popen[str]]]]:
    """The two processes of `core_worker`, side by side, and the folders of their runs."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    found = {}
    for how in ("killed", "told"):
        folder = tmp_path_factory.mktemp(how) / "run"
        command = [sys.executable, str(here / "core_worker.py"), model, str(folder), how]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        found[how] = (folder, process)
    yield found
    for _, process in found.values():
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_inside_an_accumulation(workers: Any, model: str, tmp_path: Path) -> None:
    """SIGKILL before the second microbatch of update 2: the run continues from update 1."""
    folder, process = workers["killed"]
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert [line["step"] for line in trace(folder)] == [1]
    run = core_worker.run_of(model, folder, "killed")
    whole = to(run, tmp_path / "whole")
    expected = trained(whole)
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


@pytest.mark.slow
def test_told_to_stop(workers: Any, model: str, tmp_path: Path) -> None:
    """SIGTERM from outside: the process saves, says so and how to continue, and ends by itself."""
    folder, process = workers["told"]
    for line in process.stdout:
        if line.strip() == "2":
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=240)
    assert process.returncode == 3
    found = re.search(r"stopped after update (\d+) of 100000; .* continue with --resume", rest)
    assert found is not None, rest
    run = training(core_worker.run_of(model, folder, "told"), steps=int(found[1]) + 1)
    whole = to(run, tmp_path / "whole")
    expected = trained(whole)
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


def test_lines_after_the_checkpoint_are_written_once(model: str, tmp_path: Path) -> None:
    """A crash in update 3, saved at 2: the torn line of the crash and line 3 do not remain."""
    run = training(offline(model, tmp_path / "run"), checkpoint_every=2, steps=4)
    whole = to(run, tmp_path / "whole")
    trained(whole)
    trainer = run.build()
    stop_after(trainer, 2)
    with pytest.raises(Interrupted):
        trainer.train()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    run.train(resume=True)
    assert trace(run.output) == trace(whole.output)


def test_more_steps(model: str, tmp_path: Path) -> None:
    """A finished run may go on: two updates and two more are four."""
    run = training(offline(model, tmp_path / "run"), steps=2)
    trained(run)
    longer = training(run, steps=4)
    again = longer.build()
    again.train(resume=True)
    expected = trained(to(longer, tmp_path / "whole"))
    assert same(tensors_of(again), tensors_of(expected))


def interrupted(run: Run) -> None:
    trainer = run.build()
    stop_after(trainer, 1)
    with pytest.raises(Interrupted):
        trainer.train()


def test_changed_settings_are_refused(model: str, tmp_path: Path) -> None:
    """The message names every changed key, and only those."""
    run = offline(model, tmp_path / "run")
    interrupted(run)
    changed = training(replace(run, seed=7), learning_rate=0.5, log_every=2)
    changed = replace(changed, objective=replace(run.objective, beta=0.1))
    with pytest.raises(ValueError) as info:
        changed.train(resume=True)
    message = str(info.value)
    for key in ("objective.beta", "seed", "training.learning_rate"):
        assert key in message
    assert "log_every" not in message and "batch_size" not in message


def test_changed_data_is_refused(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The config is the same, but the data set behind it has a row fewer."""
    run = offline(model, tmp_path / "run")
    interrupted(run)
    from mmalign.tinyworld.data import TinyWorld

    whole = TinyWorld.preferences
    monkeypatch.setattr(TinyWorld, "preferences", lambda self: whole(self)[:-1])
    with pytest.raises(ValueError, match="had 6 rows when this run was saved and has 5 now"):
        run.train(resume=True)


def test_the_reference_is_that_of_the_start(model: str, tmp_path: Path) -> None:
    """Full fine-tuning, where the reference is a copy: made before the saved weights come back."""
    run = offline(model, tmp_path / "run")
    run = training(replace(run, policy=replace(run.policy, lora=None)), learning_rate=1e-3)
    first = run.build()
    batch = first.credited(next(iter(first.source)))
    interrupted(run)
    again = run.build()
    again.train(resume=True)
    assert torch.equal(again.credited(batch).reference, batch.reference)
    now = again.reference.scores(batch.trajectory)
    torch.testing.assert_close(now, batch.reference, rtol=0, atol=1e-5)
    mine = again.policy.scores(batch.trajectory).log_probs.detach()
    assert float((mine - now).abs().max()) > 1e-2
