"""What `mmalign check` finds and estimates before a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import core_parts
import pytest
from core_parts import Constant, offline, rollouts, same, tensors_of, training

from mmalign import preflight
from mmalign.invariants import CheckLine
from mmalign.objectives import TDPO2
from mmalign.run import Run
from mmalign.selectors import BestWorst


def lines_of(run: Run) -> dict[str, CheckLine]:
    trainer = run.build()
    before = tensors_of(trainer)
    lines = preflight.check(trainer)
    assert same(before, tensors_of(trainer))
    assert all(p.grad is None for p in trainer.parameters.values())
    return {line.name: line for line in lines}


@pytest.mark.parametrize("kind", core_parts.RUNS)
def test_every_kind(kind: str, model: str, tmp_path: Path) -> None:
    """Everything holds, the weights are as before, and nothing was written."""
    found = lines_of(training(core_parts.RUNS[kind](model, tmp_path / "run"), steps=50))
    assert all(line.ok for line in found.values()), found
    assert {"work of an update", "limit", "memory", "time"} <= found.keys()
    assert re.search(r"s an update, [\d,]+ tokens/s, about .* for 50 updates", found["time"].detail)
    assert re.search(r"batches above reached \d+ %, \d+ %$", found["limit"].detail)
    assert not (tmp_path / "run").exists()


def gflops(detail: str) -> tuple[float, float, float, float]:
    """Forward, backward and reference, in FLOPs, and the useful tokens."""
    scale = {"G": 1e9, "M": 1e6, "k": 1e3}
    passes = re.findall(r"([\d.e+]+) ([GMk])FLOP", detail)
    numbers = [float(number) * scale[prefix] for number, prefix in passes]
    tokens = re.search(r"for ([\d,]+) useful tokens", detail)
    assert tokens is not None
    return numbers[0], numbers[1], numbers[2], float(tokens[1].replace(",", ""))


def test_work_by_pass(model: str, tmp_path: Path) -> None:
    """Full fine-tuning: backward is about twice the forward pass, the reference is one of those."""
    run = offline(model, tmp_path / "run")
    run = replace(run, policy=replace(run.policy, lora=None))
    forward, backward, reference, tokens = gflops(lines_of(run)["work of an update"].detail)
    assert 1.9 * forward < backward < 2.6 * forward
    assert reference == pytest.approx(forward, rel=0.01)
    trainer = run.build()
    source = iter(trainer.source)
    batches = [next(source), next(source)]
    prompts = sum(len(ids) for ids in batches[1].trajectory.static["prompt_ids"])
    assert tokens == prompts + int(batches[1].trajectory.mask.sum())


def test_a_reference_that_is_compared_with_is_no_backward_pass(model: str, tmp_path: Path) -> None:
    """TDPO2 runs the reference once, beside the policy: its divergence knows the log-probs.

    What is left of the backward pass is that of DPO.
    """
    run = offline(model, tmp_path / "run")
    run = replace(run, policy=replace(run.policy, lora=None))
    _, backward, reference, _ = gflops(lines_of(run)["work of an update"].detail)
    run = replace(run, objective=TDPO2(), output=str(tmp_path / "tdpo"))
    found = gflops(lines_of(run)["work of an update"].detail)
    assert found[2] == pytest.approx(reference, rel=0.1)
    assert 0.7 * backward < found[1] < 1.1 * backward


def test_the_memory_of_a_copy(model: str, tmp_path: Path) -> None:
    """Full fine-tuning holds the weights twice, gradients once, and two moments."""
    run = offline(model, tmp_path / "run")
    run = replace(run, policy=replace(run.policy, lora=None))
    trainer = run.build()
    weights = sum(p.numel() * p.element_size() for p in trainer.parameters.values())
    said = lines_of(run)["memory"].detail
    found = re.findall(r"(weights|gradients|optimizer) ([\d.]+) KiB", said)
    kib = {name: float(number) for name, number in found}
    assert kib["gradients"] == pytest.approx(weights / 1024, rel=0.01)
    assert kib["optimizer"] == pytest.approx(2 * weights / 1024, rel=0.01)
    assert kib["weights"] == pytest.approx(2 * weights / 1024, rel=0.05)


def test_nothing_to_learn_is_a_failure(model: str, tmp_path: Path) -> None:
    """Every group tied, in both batches: said, and nothing is estimated."""
    source = rollouts(selector=BestWorst(), reward=Constant())
    found = lines_of(replace(core_parts.online(model, tmp_path / "run"), source=source))
    assert not found["signal"].ok
    assert "limit" not in found and "time" not in found
