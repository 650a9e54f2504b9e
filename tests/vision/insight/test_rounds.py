"""Iterative DPO: the reference of a round is the model that the round before has left."""

from __future__ import annotations

from pathlib import Path

import torch

from mmalign import config
from mmalign.data import File
from mmalign.data.building import construct
from mmalign.locate import configs
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.tinyworld.reasoner import Reasoner
from mmalign.trainer import Trainer
from mmalign.types import Trajectory
from mmalign.vision import LVLMPolicy
from mmalign.vision.insight import InsightV


def round_of(pairs: Path, output: Path, *, start: Path | None) -> Trainer:
    """As ``mmalign train configs/vision/lvlm_dpo.yaml ...`` with these overrides."""
    overrides = [
        f"source.data={{type: file, path: {pairs}}}",
        "source.batch_size=4",
        "training.steps=2",
        "training.warmup_steps=0",
        "evaluation=null",
        f"output={output}",
    ]
    overrides += [] if start is None else [f"policy.lora.path={start}"]
    return config.load(configs() / "vision" / "lvlm_dpo.yaml", overrides).build()


def trajectory_of(policy: Policy, pairs: Path) -> Trajectory:
    records = list(File(path=str(pairs)).preferences())[:3]
    return policy.adapter.encode(
        [one.prompt for one in records],
        [[one.chosen, one.rejected] for one in records],
        generators=[torch.Generator() for _ in records],
    )


@torch.no_grad()
def test_the_reference_of_a_round_is_the_result_of_the_one_before(tmp_path: Path) -> None:
    """Round 1 is held to the model as it came, round 2 to the result of round 1, and it stays so
    while round 2 moves away from it."""
    pairs = tmp_path / "pairs.jsonl"
    settings = InsightV(data=TinyWorld(task="vqa", size=8), agent=Reasoner(), chains=4)
    assert construct(settings, pairs, settings="a")["kept"] >= 4
    untrained = LVLMPolicy(max_new_tokens=48).load()
    trajectory = trajectory_of(untrained, pairs)

    first = round_of(pairs, tmp_path / "round1", start=None)
    assert first.reference is not None
    original = untrained.scores(trajectory).log_probs
    assert torch.allclose(first.reference.scores(trajectory), original, atol=1e-5)
    with torch.enable_grad():
        model = first.train()
    trained = first.policy.scores(trajectory).log_probs
    assert not torch.allclose(trained, original, atol=1e-3)

    second = round_of(pairs, tmp_path / "round2", start=model)
    assert second.reference is not None
    assert torch.allclose(second.reference.scores(trajectory), trained, atol=1e-5)
    assert torch.allclose(second.policy.scores(trajectory).log_probs, trained, atol=1e-5)
    with torch.enable_grad():
        second.train()
    assert torch.allclose(second.reference.scores(trajectory), trained, atol=1e-5)
    assert not torch.allclose(second.policy.scores(trajectory).log_probs, trained, atol=1e-3)
