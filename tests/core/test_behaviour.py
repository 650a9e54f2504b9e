"""What sampling recorded is what the first update is compared with; it is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from accelerate.state import AcceleratorState
from core_parts import rollouts, training

from mmalign import invariants
from mmalign.invariants import Violation
from mmalign.objectives import PPO
from mmalign.run import Evaluation, Run
from mmalign.sources import Mixed
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.trainer import Trainer
from mmalign.types import Batch, Trajectory

HALF = "bf16"


def scorings(trainer: Trainer) -> list[bool]:
    """Grows by one entry a scoring forward: whether it computes a gradient."""
    seen: list[bool] = []
    trainer.policy.scorer.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    return seen


def several(run: Run) -> Run:
    return training(run, updates_per_batch=2, steps=2)


def test_two_updates_on_a_batch_score_it_twice(model: str, tmp_path: Path) -> None:
    """Once with gradient for each update, and never to find out what sampling had known."""
    trainer = several(core_parts.grpo(model, tmp_path / "run")).build()
    seen = scorings(trainer)
    batch = trainer.credited(next(iter(trainer.source)))
    assert seen == []
    assert batch.behaviour is not None and batch.behaviour is batch.trajectory.log_probs
    trainer.train()
    assert seen == [True, True]


def test_the_first_ratio_is_one(model: str, tmp_path: Path) -> None:
    trainer = several(core_parts.grpo(model, tmp_path / "run")).build()
    batch = trainer.credited(next(iter(trainer.source)))
    scores = trainer.policy.scores(batch.trajectory).log_probs
    assert batch.behaviour is not None
    assert ((scores - batch.behaviour).exp() - 1).abs().max() < 1e-4
    assert float(batch.behaviour.min()) < -0.5


def test_one_update_on_a_batch_has_ratio_one_by_definition(model: str, tmp_path: Path) -> None:
    trainer = core_parts.grpo(model, tmp_path / "run").build()
    assert trainer.credited(next(iter(trainer.source))).behaviour is None


def test_values_take_one_forward(model: str, tmp_path: Path) -> None:
    """PPO's critic has to be asked; behaviour stays what sampling recorded."""
    run = replace(core_parts.ppo(model, tmp_path / "run"), objective=PPO())
    trainer = several(run).build()
    seen = scorings(trainer)
    batch = trainer.credited(next(iter(trainer.source)))
    assert seen == [False]
    assert batch.values is not None and batch.behaviour is batch.trajectory.log_probs


def test_recorded_rows_know_no_log_probs(model: str, tmp_path: Path) -> None:
    """Beside sampled ones in a mixture, nothing is known of either."""
    run = core_parts.online(model, tmp_path / "run")
    recorded = core_parts.offline(model, tmp_path / "run").source
    policy = TextPolicy(model=model, max_new_tokens=40)
    mixed = replace(run, policy=policy, source=Mixed(parts=(recorded, run.source))).build()
    assert next(iter(mixed.source)).trajectory.log_probs is None


class Warmer:
    """An adapter's `sample` that draws at another temperature than it scores at."""

    def __init__(self, adapter: Any) -> None:
        self.adapter, self.sample = adapter, adapter.sample

    def __call__(self, *arguments: Any, **settings: Any) -> Trajectory:
        plain = self.adapter.sampling
        self.adapter.sampling = replace(plain, temperature=1.5)
        try:
            return self.sample(*arguments, **settings)
        finally:
            self.adapter.sampling = plain


@pytest.mark.parametrize("kind", ["online", "grpo"])
def test_sampling_from_another_distribution_is_refused(
    kind: str, model: str, tmp_path: Path
) -> None:
    """Whatever the objective, and with one update a batch too."""
    trainer = core_parts.RUNS[kind](model, tmp_path / "run").build()
    adapter: Any = trainer.policy.adapter
    adapter.sample = Warmer(adapter)
    with pytest.raises(Violation, match="ratio is 1 on-policy"):
        trainer.train()


def compared(difference: list[list[float]], dtype: torch.dtype) -> bool:
    """Whether a batch passes whose scores differ by so much from what sampling recorded."""
    drawn = torch.tensor(difference)
    trajectory = Trajectory(
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        prompt_of=torch.tensor([0, 0]),
        static={},
        stepwise={},
        outputs=[None, None],
        log_probs=torch.zeros(2, 3),
    )
    batch = Batch(
        trajectory=trajectory, group=torch.zeros(2), reward=torch.zeros(2), weight=torch.ones(2, 3)
    )
    return invariants.on_policy(drawn, batch, dtype=dtype).ok


def test_how_far_apart_sampling_and_scoring_may_be() -> None:
    """float32: every step within 1e-3 nats. bfloat16: every row's mean within 0.2; masked never."""
    assert compared([[9e-4, 0, 0], [0, 5, 5]], torch.float32)
    assert not compared([[0, 2e-3, 0], [0, 0, 0]], torch.float32)
    assert compared([[0.5, 0, 0.05], [0.1, 5, 5]], torch.bfloat16)
    assert not compared([[0.5, 0.1, 0.05], [0.1, 0, 0]], torch.bfloat16)
    assert not compared([[0, 0, 0], [0.3, 0, 0]], torch.bfloat16)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one precision a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("fresh_accelerator")
def test_sampling_runs_in_the_precision_of_training(model: str, tmp_path: Path) -> None:
    """Rollouts and evaluation under autocast, as the scores; the first update's check passes."""
    run = training(core_parts.grpo(model, tmp_path / "run"), mixed_precision=HALF, steps=1)
    data = TinyWorld(task="arithmetic", size=2)
    judge = core_parts.EarlyLetters()
    evaluation = Evaluation(data=data, judges={"letters": judge}, samples=1)
    trainer = replace(run, evaluation=evaluation).build()
    seen: list[bool] = []
    trainer.policy.model.register_forward_pre_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    trainer.train()
    assert len(seen) > 10 and all(seen)


def test_a_source_with_a_selector_keeps_them(model: str, tmp_path: Path) -> None:
    """Best and worst of four, in another order than they were sampled in."""
    trainer = core_parts.online(model, tmp_path / "run").build()
    batch = next(iter(trainer.source))
    assert len(batch) == 4
    scores = trainer.policy.scores(batch.trajectory).log_probs
    assert batch.trajectory.log_probs is not None
    assert (scores - batch.trajectory.log_probs).abs().max() < 1e-4
    whole = next(iter(rollouts().build(trainer.policy, seed=0)))
    assert len(whole) == 8
