"""Steps that fork: candidates of one latent, judged where they lead, best and worst a pair."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmalign.diffusion.step_pairs import StepPairs
from mmalign.objectives import SPO
from mmalign.policy import Policy
from mmalign.references import Frozen
from mmalign.types import Batch, Output, Prompt
from tests.diffusion.test_path import load


class Prompts:
    """A data set of prompts alone."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.found = prompts

    def prompts(self) -> list[Prompt]:
        return self.found

    def preferences(self) -> list[object]:
        return []

    def demonstrations(self) -> list[object]:
        return []


@dataclass
class Redness:
    """Mean red, times a scale; remembers the timesteps it was told."""

    scale: float = 100.0

    def __post_init__(self) -> None:
        self.told: list[float] = []

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        self.told += [p.meta["timestep"] for p in prompts]
        means = [sum(o.split()[0].tobytes()) / (255 * o.width * o.height) for o in outputs]  # type: ignore[union-attr]
        return self.scale * torch.tensor(means)


def drawn(policy: Policy, prompts: list[Prompt], reward: Redness, **settings: object) -> Batch:
    spec = StepPairs(
        data=Prompts(prompts),
        reward=reward,
        candidates=3,
        batch_size=2,
        **settings,  # type: ignore[arg-type]
    )
    return next(iter(spec.build(policy, seed=0)))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_pairs_are_two_steps_from_one_latent(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Two prompts, steps 1 to 3 of 4 (a flow's last has no density): the better row is redder.

    What a step leads to is judged at the timestep behind it, after the last step at 0.
    """
    policy, reward = load(folders, kind), Redness(scale=1e4)
    batch = drawn(policy, prompts, reward, first_step=1, min_difference=0.0)
    forks = 3 if kind == "epsilon" else 2
    assert batch.pairs is not None and len(batch.pairs) == 2 * forks
    w, r = batch.pairs.unbind(1)
    rows = batch.trajectory
    assert rows.mask.shape == (4 * forks, 1) and (batch.reward[w] > batch.reward[r]).all()
    for name in ("latent", "timestep", "level", "level_next"):
        assert torch.equal(rows.stepwise[name][w], rows.stepwise[name][r]), name
    assert not torch.equal(rows.stepwise["next"][w], rows.stepwise["next"][r])
    assert torch.equal(rows.prompt_of[w], rows.prompt_of[r])
    scores = policy.scores(rows).log_probs
    assert rows.log_probs is not None and (scores - rows.log_probs).abs().max() < 1e-4
    family = policy.adapter.family  # type: ignore[attr-defined]
    times = [float(t) for t in family.process.schedule(4).timestep]
    behind = [*times, 0.0][2 : 2 + forks]
    assert sorted(set(reward.told), reverse=True) == behind


def test_the_walk_goes_on_from_a_candidate(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """The latent of the next step is one of the candidates; every latent is one of three."""
    policy = load(folders, "epsilon")
    seen = {}
    for shift in (1.0, -1.0):
        batch = drawn(policy, prompts[:1] * 2, Redness(scale=shift * 1e4), first_step=0,
                      min_difference=0.0)  # fmt: skip
        seen[shift] = batch.trajectory.stepwise["latent"]
    # What a reward prefers decides which rows are a pair, not where the walk goes.
    assert torch.equal(seen[1.0], seen[-1.0])


def test_what_is_not_clear_is_dropped(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """tanh(gap / 2) <= min_difference: counted; with nothing left the batch counts nothing."""
    policy = load(folders, "epsilon")
    reference = Frozen().build(policy)
    batch = drawn(policy, prompts, Redness(scale=1e-6), first_step=2)
    assert batch.counters["dropped/margin"] == 4 and batch.counters["dropped/ties"] == 0
    assert batch.coefficient is not None and batch.coefficient.tolist() == [0.0]
    credited = SPO().credit(replace(batch, reference=reference.scores(batch.trajectory)))
    assert credited.denominator == 0.0
    loss = SPO().loss(policy.scores(credited.trajectory), credited)
    loss.total.backward()
    assert loss.total.item() == 0.0
    tied = drawn(policy, prompts, Redness(scale=0.0), first_step=2)
    assert tied.counters["dropped/ties"] == 4


def worker(rank: int, where: str, folders: dict[str, str], prompts: list[Prompt]) -> None:
    """One prompt a process and one step that forks: a pair each, or a pair and a tie."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{where}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    policy = load(folders, "epsilon")
    found = {}
    for name, scales in {"enough": (1e4, 1e4), "too few": (1e4, 0.0)}.items():
        reward = Redness(scale=scales[rank])
        batch = drawn(policy, prompts, reward, first_step=3, min_difference=0.0)
        found[name] = [
            float(batch.coefficient is None or batch.coefficient.any()),
            batch.counters["dropped/ties"],
            batch.counters["dropped/too_few_pairs"],
        ]
    Path(where, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_fewer_pairs_than_processes_count_nothing(
    folders: dict[str, str], prompts: list[Prompt], tmp_path: Path
) -> None:
    """One pair of two processes: both see the same total, skip the update, and none waits.

    Their batches weigh nothing, while the tie and the pair that is lost are counted once each.
    """
    torch.multiprocessing.spawn(worker, args=(str(tmp_path), folders, prompts), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["enough"] == second["enough"] == [1.0, 0.0, 0.0]
    assert first["too few"] == [0.0, 0.0, 1.0] and second["too few"] == [0.0, 1.0, 0.0]


def test_log_two_at_the_reference_and_step_windows(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    policy = load(folders, "flow")
    reference = Frozen().build(policy)
    batch = drawn(policy, prompts, Redness(scale=1e4), first_step=0, min_difference=0.0)
    batch = SPO().credit(replace(batch, reference=reference.scores(batch.trajectory)))
    pieces = list(batch.microbatches(rows=2, steps=1, additive_over="group_step"))
    assert len(pieces) == len(batch.pairs)  # type: ignore[arg-type]
    total = sum(SPO().loss(policy.scores(p.trajectory), p).total.item() for p in pieces)
    assert total / batch.denominator == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("policy_settings", "settings", "message"),
    [
        ({}, {"first_step": 4}, "first_step=4 leaves nothing of 4 steps"),
        ({"window": 2}, {"first_step": 0}, "leave step_fraction and window"),
        ({}, {"candidates": 1}, "candidates=1"),
        ({}, {"min_difference": 1.0}, "min_difference=1.0"),
    ],
)
def test_senseless_settings_are_refused(
    folders: dict[str, str],
    prompts: list[Prompt],
    policy_settings: dict[str, object],
    settings: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        base: dict[str, object] = {"data": Prompts(prompts), "reward": Redness(), "batch_size": 2}
        spec = StepPairs(**{**base, **settings})  # type: ignore[arg-type]
        spec.build(load(folders, "epsilon", **policy_settings), seed=0)
