"""Both stages end to end on the shipped configs: data, supervised stage, preference stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign import config, lora
from mmalign.locate import configs
from mmalign.references import NamedLoRA, chosen
from mmalign.run import Run
from mmalign.types import Batch
from mmalign.vision import LVLMPolicy
from mmalign.vision.views import Views

VISION = configs() / "vision"


def shortened(name: str, *overrides: str) -> Run:
    """A shipped config on 40 rows of data, for two updates, without evaluation."""
    small = [
        "source.data.builder.data.size=40", "source.batch_size=4", "training.steps=2",
        "training.warmup_steps=0", "training.learning_rate=1e-3", "training.schedule=constant",
    ]  # fmt: skip
    return replace(config.load(VISION / name, [*small, *overrides]), evaluation=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both stages have run."""
    found = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        shortened("lvlm_opa.yaml").train()
        shortened("lvlm_opa_dpo.yaml").train()
    return found


@pytest.fixture
def batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Records of the second stage."""
    monkeypatch.chdir(folder)
    run = shortened("lvlm_opa_dpo.yaml")
    assert isinstance(run.source, Views)
    return next(iter(run.source.build(run.policy.load(), seed=0)))


def metrics(folder: Path, run: str) -> list[dict[str, float]]:
    lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_second_stage_begins_at_its_landmark(folder: Path) -> None:
    """At the OPA model the loss is 2 log 2 (1 + 0.2 + 1); after an update it is not."""
    first, second = metrics(folder, "lvlm_opa_dpo")
    assert first["loss"] == pytest.approx(3.049848, abs=1e-3)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-3)
    assert abs(second["loss"] - 3.049848) > 1e-3


def test_the_reference_is_the_supervised_model(folder: Path, batch: Batch) -> None:
    """It scores as the model that the first stage saved, not as the base, and does not move."""
    run = shortened("lvlm_opa_dpo.yaml")
    policy = run.policy.load()
    assert isinstance(run.reference, NamedLoRA)
    reference = run.reference.build(policy)
    assert lora.names(policy.model) == ["policy"]
    stage = LVLMPolicy(lora=lora.LoRA(path="runs/lvlm_opa/model"), max_new_tokens=48).load()
    base = LVLMPolicy(max_new_tokens=48).load()
    before = reference.scores(batch.trajectory)
    with torch.no_grad():
        supervised = stage.scores(batch.trajectory).log_probs
        untrained = base.scores(batch.trajectory).log_probs
    assert torch.equal(before, supervised)
    assert not torch.allclose(before, untrained, atol=1e-3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05)
        assert not torch.allclose(policy.scores(batch.trajectory).log_probs, before, atol=1e-3)
    assert torch.equal(reference.scores(batch.trajectory), before)


def test_it_is_also_the_reference_that_is_taken_by_default(folder: Path, batch: Batch) -> None:
    """A policy that starts from a LoRA is held to that LoRA without being told to."""
    del batch
    run = shortened("lvlm_opa_dpo.yaml")
    policy = run.policy.load()
    assert isinstance(run.policy, LVLMPolicy) and run.policy.lora is not None
    found = chosen(None, policy, start=run.policy.lora.path)
    assert isinstance(found, NamedLoRA) and isinstance(run.reference, NamedLoRA)
    assert found.path == run.reference.path


def test_the_first_stage_makes_both_right_answers_likelier(folder: Path, batch: Batch) -> None:
    """Its reason to be: under its model corrections and truths are likelier than under the base."""
    right = (batch.reward > 0).nonzero().squeeze(1)
    rows = batch.trajectory.rows(right)
    totals = []
    for start in (None, lora.LoRA(path="runs/lvlm_opa/model")):
        policy = LVLMPolicy(lora=start, max_new_tokens=48).load()
        with torch.no_grad():
            totals.append(float(policy.scores(rows).log_probs.sum()))
    assert totals[1] > totals[0]


def test_both_stages_read_one_file(folder: Path) -> None:
    names = {path.name for path in (folder / "runs").glob("opa_dpo*") if path.is_file()}
    assert names == {"opa_dpo.jsonl", "opa_dpo.dropped.jsonl", "opa_dpo.settings.json"}


def test_mdpo_begins_at_its_landmark(tmp_path: Path) -> None:
    """Three terms of weight 1: 3 log 2."""
    overrides = ["source.data.size=8", "source.batch_size=4", "training.steps=1"]
    run = config.load(VISION / "lvlm_mdpo.yaml", [*overrides, f"output={tmp_path / 'run'}"])
    replace(run, evaluation=None).train()
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(2.079442, abs=1e-3)
