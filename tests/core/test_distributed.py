"""Two processes are one: the same losses, metrics, evaluations and weights, to float noise.

`accelerate launch` starts the processes; on a machine without an accelerator its distributed
launcher is called ``--multi_gpu`` all the same, and ACCELERATE_USE_CPU makes it gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import core_distributed
import core_parts
import pytest
import torch
from core_parts import trace
from safetensors.torch import load_file

from mmalign import checkpoint
from mmalign.log import RunFolder

HERE = Path(__file__).parent
NAMES = tuple(core_distributed.runs("", Path()))


def launch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``script`` under `accelerate launch` with two processes on the CPU."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
        "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
        "--main_process_port=0", str(script), *arguments,
    ]  # fmt: skip
    paths = [str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def both(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of all runs with one process and with two."""
    folder = tmp_path_factory.mktemp("distributed")
    done = launch(HERE / "core_distributed.py", model, str(folder / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    for run in core_distributed.runs(model, folder / "one").values():
        run.train()
    return folder / "one", folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one(name: str, both: tuple[Path, Path]) -> None:
    """Losses within 1e-5; every other metric within 1e-4 of its size; counters exactly."""
    one, two = (folder / name for folder in both)
    saved = checkpoint.latest(two / "checkpoints")
    assert saved is not None and saved.json("progress")["processes"] == 2
    expected, found = trace(one), trace(two)
    assert len(expected) == len(found) >= 3
    for line, other in zip(expected, found, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-5)
        assert other == pytest.approx(line, rel=1e-4, abs=1e-4)
        counters = [key for key in line if key.startswith("counts/")]
        assert [other[key] for key in counters] == [line[key] for key in counters]
    ours, theirs = (load_file(f / "model" / "adapter_model.safetensors") for f in (one, two))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_evaluations_come_in_prompt_order(both: tuple[Path, Path]) -> None:
    """Five prompts over two processes: 3 + 2, put back in order; before training exactly equal."""
    one, two = (RunFolder(folder / "uneven").read("evaluations.jsonl") for folder in both)
    assert [line["step"] for line in two] == [0, 2, 4]
    assert two[0]["judge"] == one[0]["judge"]
    assert len(set(one[0]["judge"]["letters"]["per_prompt"])) == 5
    for line, other in zip(one, two, strict=True):
        expected = line["judge"]["letters"]["per_prompt"]
        assert other["judge"]["letters"]["per_prompt"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_two_processes_stop_and_resume_together(both: tuple[Path, Path]) -> None:
    """A signal that reaches one process alone stops both at one update, inside their buffers.

    Resumed, they come to bitwise the same weights and metrics as two that were never stopped.
    """
    stopped, whole = (both[1] / name for name in ("stopped", "grpo"))
    one, two = (checkpoint.latest(folder / "checkpoints") for folder in (stopped, whole))
    assert one is not None and two is not None
    assert core_parts.same(one.tensors("policy"), two.tensors("policy"))
    assert core_parts.same(one.tensors("optimizer"), two.tensors("optimizer"))
    assert trace(stopped) == trace(whole)
