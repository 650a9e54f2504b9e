"""The loop: one object for offline DPO, online DPO, GRPO and PPO."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import Constant, Failing, offline, rollouts, same, tensors_of, trace, training
from safetensors.torch import load_file

from mmalign.invariants import Violation
from mmalign.lora import LoRA
from mmalign.objectives import DPO, GRPO
from mmalign.references import Frozen
from mmalign.run import Run
from mmalign.selectors import BestWorst
from mmalign.serialise import unpack
from mmalign.text import TextPolicy
from mmalign.trainer import NonFinite, Trainer
from mmalign.types import Batch, Loss, Scores

LOG_2 = math.log(2.0)


def first_batch(trainer: Trainer) -> Batch:
    return trainer.credited(next(iter(trainer.source)))


@pytest.mark.parametrize("kind", core_parts.RUNS)
def test_a_run_of_every_kind(kind: str, model: str, tmp_path: Path) -> None:
    """Three updates: log 2 first, gradient on every LoRA, metrics in their domain, a saved model.

    Sigmoid DPO at its reference has D = 0, so its loss is log 2 and its implicit rewards are 0.
    On-policy, every ratio is 1, so nothing is clipped.
    """
    run = core_parts.RUNS[kind](model, tmp_path / "run")
    trainer = run.build()
    before = tensors_of(trainer)
    saved = trainer.train()
    lines = trace(run.output)
    assert [line["step"] for line in lines] == [1, 2, 3]
    if isinstance(run.objective, DPO):
        assert lines[0]["loss"] == pytest.approx(LOG_2, abs=1e-5)
        assert lines[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    else:
        assert lines[0]["ratio_deviation"] == pytest.approx(0.0, abs=1e-5)
        assert lines[0]["clip_ratio/low"] == lines[0]["clip_ratio/high"] == 0.0
        assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        shares = [v for k, v in line.items() if k.startswith(("clip_ratio", "frac_", "accurac"))]
        assert all(0.0 <= share <= 1.0 for share in shares)
        assert line["grad_norm"] > 0.0
    after = tensors_of(trainer)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(".lora_B." in name for name in moved)
    assert all(".lora_" in name or name.startswith("critic.") for name in trainer.parameters)
    assert (saved / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", core_parts.RUNS)
def test_microbatches_change_nothing(kind: str, model: str, tmp_path: Path) -> None:
    """Rows of unequal length cut 1, 3 or all at a time: the same weights and the same metrics.

    The loss is a sum divided by a number known before the first piece, so the gradient is the same
    sum in another order.
    """
    found = {}
    for rows in (None, 1, 3):
        run = training(core_parts.RUNS[kind](model, tmp_path / f"{rows}"), rows_per_microbatch=rows)
        if kind == "offline":
            run = replace(run, source=replace(run.source, batch_size=6))
        trainer = run.build()
        trainer.train()
        found[rows] = (tensors_of(trainer), trace(run.output))
    weights, lines = found[None]
    for rows in (1, 3):
        for name, value in found[rows][0].items():
            torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=2e-5)
        for line, expected in zip(found[rows][1], lines, strict=True):
            assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_gradient_does_not_depend_on_microbatches(model: str, tmp_path: Path) -> None:
    """One backward, six pairs of unequal length, pieces of 2, 4 and 12 rows: relative 1e-5."""
    gradients = {}
    for rows in (None, 1, 4):
        run = training(offline(model, tmp_path / "x", batch_size=6), rows_per_microbatch=rows)
        trainer = run.build()
        batch = first_batch(trainer)
        assert len(set(batch.trajectory.mask.sum(1).tolist())) > 1
        trainer.backward(batch, batch.denominator)
        gradients[rows] = torch.cat(
            [p.grad.flatten() for p in trainer.parameters.values() if p.grad is not None]
        )
    for rows in (1, 4):
        gap = (gradients[rows] - gradients[None]).norm() / gradients[None].norm()
        assert float(gap) < 1e-5


def test_several_updates_on_a_batch(model: str, tmp_path: Path) -> None:
    """With two updates a batch the second one's ratio has left 1, and the source gave two batches.

    Rollout metrics belong to a batch, so updates 1 and 2 report the same ones.
    """
    run = training(core_parts.grpo(model, tmp_path / "run"), updates_per_batch=2, steps=4)
    trainer = run.build()
    trainer.train()
    lines = trace(run.output)
    assert [line["ratio_deviation"] > 1e-4 for line in lines] == [False, True, False, True]
    assert lines[0]["rollout/reward"] == lines[1]["rollout/reward"] != lines[2]["rollout/reward"]
    assert trainer.source.state_dict()["position"] == 4


@pytest.mark.parametrize("objective", [DPO(), GRPO(), GRPO(drop_tied_groups=True)])
def test_a_batch_without_signal_moves_nothing(objective: Any, model: str, tmp_path: Path) -> None:
    """All rewards tied, after an update that left momentum: skipped, counted, weights untouched."""
    selector = BestWorst() if isinstance(objective, DPO) else None
    run = replace(
        core_parts.online(model, tmp_path / "run"),
        objective=objective,
        source=rollouts(selector=selector),
    )
    trainer = run.build()
    trainer.update(first_batch(trainer))
    trainer.progress.step = 1
    before = tensors_of(trainer)
    tied = replace(run, source=rollouts(selector=selector, reward=Constant()))
    trainer.source = tied.source.build(trainer.policy, seed=0)
    metrics = trainer.update(first_batch(trainer))
    assert metrics["skipped/no_signal"] == 1.0
    assert same(before, tensors_of(trainer))
    if isinstance(objective, DPO):
        assert metrics["counts/dropped/ties"] == 2.0
    elif objective.drop_tied_groups:
        assert metrics["counts/dropped/tied_groups"] == 2.0
    else:
        assert metrics["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0, [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_learning_rate(
    schedule: str, warmup: int, expected: list[float], model: str, tmp_path: Path
) -> None:
    """Four updates: warm-up (s + 1) / w, then 1 - d, or (1 + cos pi d) / 2, with d = done share.

    cos(pi / 4) / 2 = sqrt(1 / 8).
    """
    run = training(
        offline(model, tmp_path / "run"), schedule=schedule, warmup_steps=warmup, steps=4
    )
    run.train()
    rates = [line["learning_rate"] / 1e-2 for line in trace(run.output)]
    assert rates == pytest.approx(expected)


def test_gradient_clipping(model: str, tmp_path: Path) -> None:
    """What is logged is the norm before clipping; what is applied has at most the limit.

    None clips nothing: the gradient's norm is then the one that is logged.
    """
    norms = {}
    for limit in (None, 1e-3):
        trainer = training(offline(model, tmp_path / "x"), max_grad_norm=limit).build()
        batch = first_batch(trainer)
        trainer.backward(batch, batch.denominator)
        norms[limit] = trainer._gradient_norm()
        applied = torch.cat([p.grad.flatten() for p in trainer.parameters.values()]).norm()
        assert float(applied) == pytest.approx(limit or norms[limit], rel=1e-3)
    assert norms[None] == pytest.approx(norms[1e-3], rel=1e-6)
    assert norms[None] > 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached(TextPolicy):
    """A text policy whose LoRA sits on a layer that the forward pass never calls."""

    def load(self) -> Any:
        policy = replace(self, lora=None).as_text().load()
        policy.model.spare = torch.nn.Linear(4, 4)
        from mmalign import lora

        lora.attach(policy.model, LoRA(rank=2, target_modules=("spare",)))
        return policy

    def as_text(self) -> TextPolicy:
        return TextPolicy(model=self.model, max_new_tokens=self.max_new_tokens)


@pytest.mark.parametrize("kind", ["offline", "ppo"])
def test_a_lora_without_gradient_is_refused(kind: str, model: str, tmp_path: Path) -> None:
    """Also under PPO, where the critic does get a gradient."""
    run = core_parts.RUNS[kind](model, tmp_path / "run")
    run = replace(run, policy=Detached(model=model, max_new_tokens=run.policy.max_new_tokens))
    with pytest.raises(Violation, match=r"gradient reaches the trained .*(0 of 2|none)"):
        run.train()


def test_the_gradient_is_checked_at_the_first_signal(model: str, tmp_path: Path) -> None:
    """Where no step of the first batch is better than another, the check waits for the next."""
    policy = Detached(model=model, max_new_tokens=6)
    run = replace(core_parts.ppo(model, tmp_path / "run"), policy=policy)
    trainer = run.build()
    batch = first_batch(trainer)
    assert batch.advantage is not None
    trainer.update(replace(batch, advantage=torch.zeros_like(batch.advantage)))
    trainer.progress.step = 1
    with pytest.raises(Violation, match="gradient reaches"):
        trainer.update(batch)


def test_a_reference_that_moves_is_refused(model: str, tmp_path: Path) -> None:
    """A "reference" that is the policy's own network moves with it."""
    trainer = offline(model, tmp_path / "run").build()
    trainer.reference.network = trainer.policy.model
    with pytest.raises(Violation, match="reference has not moved: it moved by"):
        trainer.train()


def test_a_reference_unlike_the_policy_is_refused_at_the_start(model: str, tmp_path: Path) -> None:
    """A reference said to be the start of the policy, whose network is another one."""
    trainer = replace(
        offline(model, tmp_path / "run"),
        policy=TextPolicy(model=model, max_new_tokens=40),
    ).build()
    with torch.no_grad():
        head = trainer.reference.network.lm_head.weight
        head += 0.1 * torch.randn_like(head)
    with pytest.raises(Violation, match="policy equals reference at the start"):
        trainer.train()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploding(DPO):
    """DPO whose loss is NaN at the given updates (counted in forwards of whole batches)."""

    at: tuple[int, ...] = (2,)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        FORWARDS["count"] += 1
        found = DPO(beta=self.beta).loss(scores, batch)
        if FORWARDS["count"] in self.at:
            return Loss(total=found.total * float("nan"), metrics=found.metrics)
        return found


FORWARDS = {"count": 0}


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    FORWARDS["count"] = 0
    core_parts.CALLS["failing"] = 0


def test_a_loss_that_is_not_finite_changes_nothing(model: str, tmp_path: Path) -> None:
    """Update 2 is NaN: weights, moments and counters stay, the batch and the state are saved."""
    run = replace(offline(model, tmp_path / "run"), objective=Exploding(beta=0.5))
    twin = training(replace(offline(model, tmp_path / "twin"), objective=DPO(beta=0.5)), steps=1)
    expected = twin.build()
    expected.train()
    trainer = run.build()
    with pytest.raises(
        NonFinite, match=r"update 2: the loss or its gradient is not finite"
    ) as info:
        trainer.train()
    assert same(tensors_of(trainer), tensors_of(expected))
    path = next((tmp_path / "run" / "bad-batches").glob("*.safetensors"))
    assert str(path) in str(info.value)
    batch = unpack(load_file(path), json.loads(path.with_suffix(".json").read_text()))
    kept = trainer.progress.buffer
    assert kept is not None
    assert torch.equal(batch.reference, kept.reference)
    assert torch.equal(batch.trajectory.stepwise["token"], kept.trajectory.stepwise["token"])
    assert list(batch.trajectory.outputs) == list(kept.trajectory.outputs)
    # Nothing is lost: one update was made, and the run continues where it stopped.
    again = run.build()
    again.train(resume=True)
    plain = offline(model, tmp_path / "plain")
    whole = plain.build()
    whole.train()
    assert same(tensors_of(again), tensors_of(whole))


def test_bad_updates_are_skipped_up_to_a_limit(model: str, tmp_path: Path) -> None:
    """With a limit of 2 one bad update is skipped and counted, and two in a row stop the run."""
    run = training(offline(model, tmp_path / "one"), max_bad_updates=2, steps=4)
    one = replace(run, objective=Exploding(beta=0.5, at=(2, 4)))
    trainer = one.build()
    trainer.train()
    lines = trace(one.output)
    assert [line.get("skipped/non_finite", 0.0) for line in lines] == [0.0, 1.0, 0.0, 1.0]
    counters = {k: v for k, v in tensors_of(trainer).items() if k.endswith("|step")}
    assert {float(v) for v in counters.values()} == {2.0}
    FORWARDS["count"] = 0
    two = replace(run, objective=Exploding(beta=0.5, at=(2, 3)), output=str(tmp_path / "two"))
    with pytest.raises(NonFinite, match=r"update 3: .*2 in a row"):
        two.train()


def test_a_failing_reward_is_an_error_and_loses_nothing(model: str, tmp_path: Path) -> None:
    """The second batch's reward fails: named, never a 0; what was learned is saved and resumes."""
    run = replace(
        core_parts.grpo(model, tmp_path / "run"), source=rollouts(reward=Failing(calls=1))
    )
    with pytest.raises(ValueError, match=r"reward Failing failed .* the judge is out of order"):
        run.train()
    core_parts.CALLS["failing"] = -10
    resumed = run.build()
    resumed.train(resume=True)
    whole = core_parts.grpo(model, tmp_path / "whole")
    expected = whole.build()
    expected.train()
    assert same(tensors_of(resumed), tensors_of(expected))
    assert trace(run.output) == trace(whole.output)


def test_a_folder_with_a_run_is_refused(model: str, tmp_path: Path) -> None:
    run = training(offline(model, tmp_path / "run"), steps=1)
    run.train()
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        run.train()


def test_resuming_nothing_is_refused(model: str, tmp_path: Path) -> None:
    run = offline(model, tmp_path / "run")
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        run.train(resume=True)


def test_a_second_process_is_refused(model: str, tmp_path: Path) -> None:
    """The lock is the kernel's, so it ends with its process, and the message names the owner."""
    script = (
        "import sys; from pathlib import Path; from mmalign.log import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.acquire(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    run = offline(model, tmp_path / "run")
    owner = subprocess.Popen(
        [sys.executable, "-c", script, run.output],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"written by another run .process {owner.pid} on"):
        run.train()
    owner.kill()
    owner.wait()
    training(run, steps=1).train()


def test_the_exact_kl_reaches_the_loss(model: str, tmp_path: Path) -> None:
    """At the reference the exact KL is 0; after an update the two are apart and it is positive.

    The reference is the policy's own network with its LoRA off.
    """
    run = replace(core_parts.grpo(model, tmp_path / "run"), objective=GRPO(beta=0.1, kl="exact"))
    run.train()
    found = [line["kl"] for line in trace(run.output)]
    assert found[0] == pytest.approx(0.0, abs=1e-7)
    assert found[1] > 1e-6


def test_the_run_is_its_seed(model: str, tmp_path: Path) -> None:
    """Equal seeds give equal runs, bit for bit; another seed gives another."""
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run: Run = replace(core_parts.online(model, tmp_path / name), seed=seed)
        trainer = run.build()
        trainer.train()
        found[name] = tensors_of(trainer)
    assert same(found["a"], found["b"])
    assert not same(found["a"], found["c"])


def test_a_reference_that_nothing_reads_is_refused(model: str, tmp_path: Path) -> None:
    """GRPO without a KL term has no use for one; ignoring it would hide the mistake."""
    run = core_parts.grpo(model, tmp_path / "run")
    run = replace(run, objective=GRPO(beta=0.0), reference=Frozen())
    with pytest.raises(ValueError, match="GRPO with these settings reads none"):
        run.build()
