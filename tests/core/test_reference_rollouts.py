"""Groups of which a part is sampled from the reference, and a run of XPO on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_parts import LORA, online, rollouts, trace, training

from mmalign.objectives import DPO, GRPO, XPO
from mmalign.policy import Policy
from mmalign.references import LoRAOff, Recorded
from mmalign.sources import Mixed, RolloutSource
from mmalign.text import TextPolicy
from mmalign.types import Batch

SETTINGS = {"num_generations": 3, "reference_generations": 1}


def disturbed(model: str) -> Policy:
    """A policy whose LoRA has moved far from the reference."""
    policy = TextPolicy(model=model, lora=LORA, max_new_tokens=6).load()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += torch.randn(parameter.shape, generator=draw)
    return policy


def source_of(policy: Policy) -> RolloutSource:
    source = rollouts(**SETTINGS).build(policy, seed=1)
    source.read(LoRAOff().build(policy))
    return source


def test_the_last_of_each_group_is_the_references(model: str) -> None:
    """It is what the policy would have said before it moved; the others are not."""
    policy = disturbed(model)
    batch: Batch = next(iter(source_of(policy)))
    theirs = batch.from_reference
    assert theirs is not None and theirs.tolist() == [False, False, True] * 2
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1] == batch.trajectory.prompt_of.tolist()
    assert batch.trajectory.num_prompts == 2 and batch.trajectory.log_probs is None
    reference = LoRAOff().build(policy).scores(batch.trajectory).sum(1)
    with torch.no_grad():
        own = policy.scores(batch.trajectory).log_probs.sum(1)
    assert torch.all((own > reference)[~theirs]) and torch.all((own < reference)[theirs])


def test_metrics_are_of_the_policys_samples(model: str) -> None:
    batch = next(iter(source_of(disturbed(model))))
    assert batch.from_reference is not None
    own = batch.reward[~batch.from_reference]
    assert batch.metrics["rollout/reward"] == (pytest.approx(float(own.sum())), 4.0)


def test_xpo_runs_in_pieces_or_not(model: str, tmp_path: Path) -> None:
    """Microbatches change no loss."""
    run = replace(online(model, tmp_path / "a"), objective=XPO(alpha=0.01))
    run = replace(run, source=rollouts(num_generations=4, reference_generations=2))
    run = training(run, steps=2)
    run.train()
    training(replace(run, output=str(tmp_path / "b")), rows_per_microbatch=4).train()
    whole, parts = trace(tmp_path / "a"), trace(tmp_path / "b")
    assert [x["loss"] for x in whole] == pytest.approx([x["loss"] for x in parts], rel=1e-4)
    assert all("logps/reference_sample" in line for line in whole)


def test_what_cannot_be_sampled_from_is_refused(model: str, tmp_path: Path) -> None:
    run = replace(online(model, tmp_path / "run"), source=rollouts(**SETTINGS))
    with pytest.raises(ValueError, match="reference_generations=1 samples from the reference"):
        replace(run, objective=GRPO()).build()
    with pytest.raises(ValueError, match="not recorded scores"):
        replace(run, reference=Recorded(folder=str(tmp_path))).build()
    with pytest.raises(ValueError, match="must leave the policy at least one of num_generations=2"):
        rollouts(num_generations=2, reference_generations=2)


def test_parts_of_a_mixture_get_the_reference_or_say_that_they_differ(
    model: str, tmp_path: Path
) -> None:
    from mmalign.selectors import AllPairs

    run = replace(online(model, tmp_path / "run"), objective=DPO())
    part = rollouts(selector=AllPairs(), **SETTINGS)
    both = replace(run, source=Mixed(parts=(part, part))).build().source
    assert next(iter(both)).from_reference is not None
    plain = rollouts(selector=AllPairs())
    mixed = replace(run, source=Mixed(parts=(part, plain))).build().source
    with pytest.raises(ValueError, match=r"samples from the reference .* and another does not"):
        next(iter(mixed))
