"""Pieces of a batch: every row once, prompts counted once, and nothing learned differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import offline, same, stop_after, tensors_of, trace, training
from torch import Tensor

from mmalign.objectives import GRPO, IPO
from mmalign.pieces import Bounds, cut, extents
from mmalign.trainer import Interrupted, Trainer
from mmalign.types import Batch, Trajectory

PROMPT_OF = torch.tensor([0, 0, 1, 1, 2, 2])
STEPS = torch.tensor([3, 4, 9, 2, 5, 6])
PROMPTS = torch.tensor([10, 2, 1])
"""Three prompts of two rows each: blocks of 10 + 7, 2 + 11 and 1 + 11 positions."""


def pieces(*, whole: bool, prompts: Tensor | None = PROMPTS, **bounds: int) -> list[list[int]]:
    found = cut(
        PROMPT_OF, PROMPT_OF, steps=STEPS, prompts=prompts, whole=whole, within=Bounds(**bounds)
    )
    return [piece.tolist() for piece in found]


def test_within_the_bounds_nothing_is_cut_or_moved() -> None:
    """The whole batch has 13 prompt positions and 29 steps."""
    for whole in (True, False):
        assert pieces(whole=whole) == [[0, 1, 2, 3, 4, 5]]
        assert pieces(whole=whole, rows=6, tokens=42) == [[0, 1, 2, 3, 4, 5]]
        assert len(pieces(whole=whole, tokens=41)) > 1
        assert len(pieces(whole=whole, rows=5)) > 1


def test_whole_blocks_from_the_longest() -> None:
    """Longest rows with their prompts: 14, 11 and 7. A prompt counts once in its piece.

    17 + 13 = 30 positions in the first two blocks, 13 + 12 = 25 in the last two. A block beyond
    the bounds stays whole.
    """
    assert pieces(whole=True, tokens=30) == [[1, 0, 2, 3], [5, 4]]
    assert pieces(whole=True, tokens=29) == [[1, 0], [2, 3, 5, 4]]
    assert pieces(whole=True, tokens=24) == [[1, 0], [2, 3], [5, 4]]
    assert pieces(whole=True, tokens=1) == [[1, 0], [2, 3], [5, 4]]
    assert pieces(whole=True, rows=1) == [[1, 0], [2, 3], [5, 4]]
    assert pieces(whole=True, tokens=30, rows=3) == [[1, 0], [2, 3], [5, 4]]


def test_rows_of_a_prompt_are_parted_only_where_they_must_be() -> None:
    """At 14 positions the block of 17 is torn, and its prompt of 10 is computed twice.

    10 + 4 fill a piece; 10 + 3 leave no room for the next block of 13, nor does that for 12.
    """
    assert pieces(whole=False, tokens=17) == [[1, 0], [2, 3], [5, 4]]
    assert pieces(whole=False, tokens=14) == [[1], [0], [2, 3], [5, 4]]
    assert pieces(whole=False, rows=3) == [[1, 0], [2, 3], [5, 4]]
    assert pieces(whole=False, rows=1) == [[1], [0], [2], [3], [5], [4]]
    assert pieces(whole=False, tokens=1) == [[1], [0], [2], [3], [5], [4]]


def test_a_torn_block_begins_a_piece() -> None:
    """One row of 2 + 1, then three rows of one prompt of 5 with 2 steps each, in 10 positions.

    Two of the three share a piece with their prompt: 5 + 2 + 2 = 9; the third fits beside the first
    prompt's row: 5 + 2 + 2 + 1 = 10. Were the short row put first, the prompt of 5 would be
    computed three times.
    """
    prompt_of = torch.tensor([0, 1, 1, 1])
    found = cut(
        prompt_of,
        prompt_of,
        steps=torch.tensor([1, 2, 2, 2]),
        prompts=torch.tensor([2, 5]),
        whole=False,
        within=Bounds(tokens=10),
    )
    assert [piece.tolist() for piece in found] == [[1, 2], [3, 0]]


@pytest.mark.parametrize("prompts", [None, torch.zeros(3, dtype=torch.int64)])
def test_prompts_that_cost_nothing_hold_nothing_together(prompts: Tensor | None) -> None:
    """By length alone: 9, 6, 5, 4, 3, 2."""
    assert pieces(whole=False, prompts=prompts, rows=2) == [[2, 5], [4, 1], [0, 3]]
    assert pieces(whole=True, prompts=prompts, rows=2) == [[2, 3], [5, 4], [1, 0]]


def test_a_row_extends_to_its_last_step() -> None:
    """Masked steps between (what a tool said) take positions; those behind take none."""
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert extents(mask).tolist() == [3, 0, 4]


def gradient(trainer: Trainer, batch: Batch) -> Tensor:
    trainer.optimizer.zero_grad()
    trainer.backward(batch, batch.denominator)
    return torch.cat([p.grad.flatten() for p in trainer.parameters.values() if p.grad is not None])


@torch.no_grad()
def moved_away(trainer: Trainer) -> None:
    """As after some updates: the policy is at neither its reference nor what sampled."""
    torch.manual_seed(0)
    for name, parameter in trainer.parameters.items():
        if ".lora_B." in name:
            parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.progress.step = 1


@pytest.mark.parametrize("tokens", [1, 40, 60])
@pytest.mark.parametrize("kind", ["offline", "ipo", "grpo", "ppo"])
def test_pieces_add_up(kind: str, tokens: int, model: str, tmp_path: Path) -> None:
    """Scores, metrics and gradient of a batch of unequal rows: those of one single piece."""
    run = core_parts.RUNS.get(kind, offline)(model, tmp_path / "x")
    if kind == "ipo":
        run = replace(run, objective=IPO(beta=0.1))
    if kind == "grpo":
        run = replace(run, objective=GRPO(beta=0.1, aggregate="token"))
    if isinstance(run.source, core_parts.Rollouts):
        run = replace(run, source=core_parts.rollouts(batch_size=3, num_generations=3))
    trainer = run.build()
    batch = trainer.credited(next(iter(trainer.source)))
    moved_away(trainer)
    expected = gradient(trainer, batch)
    totals = trainer.backward(batch, batch.denominator)
    bounded = training(run, tokens_per_microbatch=tokens)
    trainer.scoring.training = bounded.training
    assert len(trainer.scoring._cut(batch)) > 1
    assert trainer.reference is not None
    again = trainer.scoring._reference_scores(batch)
    torch.testing.assert_close(again, batch.reference, rtol=0, atol=1e-5)
    found = gradient(trainer, batch)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    trainer.optimizer.zero_grad()
    for name, (total, count) in trainer.backward(batch, batch.denominator).items():
        assert total == pytest.approx(totals[name][0], rel=1e-4, abs=1e-4), name
        if name != "loss":
            assert count == totals[name][1], name


def test_scores_come_back_in_the_batchs_order(model: str, tmp_path: Path) -> None:
    """A "reference" that says every row's first token, asked piece by piece."""
    run = training(core_parts.grpo(model, tmp_path / "x"), rows_per_microbatch=3)
    trainer = run.build()
    batch = next(iter(trainer.source))
    asked: list[int] = []

    def first_tokens(rows: Trajectory) -> dict[str, Tensor]:
        asked.append(len(rows))
        return {"log_probs": rows.stepwise["token"].float()}

    found = trainer.scoring._piecewise(batch, first_tokens)["log_probs"]
    assert torch.equal(found, batch.trajectory.stepwise["token"].float())
    assert sum(asked) == len(batch) and max(asked) <= 3


def test_groups_are_scored_whole(model: str, tmp_path: Path) -> None:
    """Passes without gradient cut as updates do: a prompt is in one piece, not in several."""
    run = training(core_parts.grpo(model, tmp_path / "x"), rows_per_microbatch=6)
    trainer = run.build()
    batch = next(iter(trainer.source))
    prompts: list[set[int]] = []

    def seen(rows: Trajectory) -> dict[str, Tensor]:
        prompts.append({int(p[0]) * 1000 + len(p) for p in rows.static["prompt_ids"]})
        return {"log_probs": rows.mask.float()}

    trainer.scoring._piecewise(batch, seen)
    assert len(prompts) == 2 and all(len(found) == 1 for found in prompts)


def test_resumed_with_bounded_pieces(model: str, tmp_path: Path) -> None:
    """Stopped inside the buffer of three updates: bit for bit the run that was never stopped."""
    settings: dict[str, Any] = {"steps": 4, "updates_per_batch": 3, "tokens_per_microbatch": 50}
    run = training(core_parts.grpo(model, tmp_path / "run"), **settings)
    whole = replace(run, output=str(tmp_path / "whole"))
    expected = whole.build()
    expected.train()
    trainer = run.build()
    stop_after(trainer, 2)
    with pytest.raises(Interrupted):
        trainer.train()
    again = run.build()
    again.train(resume=True)
    assert same(tensors_of(again), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)
