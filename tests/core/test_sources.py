"""Batches: every row once an epoch, groups whole, draws that depend on the row alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import core_parts
import pytest
import torch
from core_parts import EarlyLetters, rollouts
from torch import Tensor

from mmalign import distributed
from mmalign.epochs import Order, weightless
from mmalign.policy import Policy
from mmalign.rng import seed_of
from mmalign.selectors import BestWorst
from mmalign.sources import Mixed, Preferences, Rollouts
from mmalign.text import TextPolicy
from mmalign.types import Batch, Preference, Prompt, Scores, Trajectory

SEED = 3


def order(**changes: Any) -> Order:
    settings = {"size": 7, "batch_size": 3, "seed": SEED, "shuffle": True, "keep_last": True}
    return Order(**{**settings, **changes})


def test_every_epoch_is_a_permutation() -> None:
    """Seven rows in batches of 3, 3 and 1; each epoch another order, and each seed too."""
    drawn = [order_.next() for order_ in [order()] for _ in range(6)]
    assert [len(batch) for batch in drawn] == [3, 3, 1, 3, 3, 1]
    epochs = [[row for batch in drawn[i : i + 3] for _, row in batch] for i in (0, 3)]
    assert all(sorted(rows) == list(range(7)) for rows in epochs)
    assert epochs[0] != epochs[1]
    assert [epoch for batch in drawn for epoch, _ in batch] == [0] * 7 + [1] * 7
    other = order(seed=SEED + 1)
    assert [row for _ in range(3) for _, row in other.next()] != epochs[0]


def test_without_a_last_batch_the_rest_joins_the_next_epoch() -> None:
    """Every batch has three rows, and in 7 batches each of the 7 rows comes 3 times."""
    drawing = order(keep_last=False)
    drawn = [drawing.next() for _ in range(7)]
    assert all(len(batch) == 3 for batch in drawn)
    rows = [item for batch in drawn for item in batch]
    assert sorted(rows) == [(epoch, row) for epoch in range(3) for row in range(7)]
    larger = order(size=2, batch_size=5, keep_last=False)
    assert [epoch for epoch, _ in larger.next()] == [0, 0, 1, 1, 2]


def test_unshuffled_is_the_order_of_the_data() -> None:
    drawing = order(shuffle=False)
    assert [row for _ in range(6) for _, row in drawing.next()] == [*range(7), *range(7)]


# ---- an adapter that records what it is asked, for what the batches are made of ---------------


class Recorder:
    """Encodes anything as one step whose token is drawn from the prompt's generator."""

    likelihood = "bound"
    feature_size = 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def encode(self, prompts: Any, outputs: Any, *, generators: Any) -> Trajectory:
        assert len(prompts) == len(outputs) == len(generators)
        self.asked.append(tuple(str(p.content) for p in prompts))
        draws = [torch.rand((), generator=g) for g in generators]
        rows = [(i, o) for i, sides in enumerate(outputs) for o in sides]
        return self.trajectory(rows, draws)

    def sample(self, model: Any, prompts: Any, *, group_size: int, generators: Any) -> Trajectory:
        self.asked.append(tuple(str(p.content) for p in prompts))
        draws = [torch.rand((), generator=g) for g in generators]
        names = [f"{p.content} answer {k}" for p in prompts for k in range(group_size)]
        return self.trajectory([(i // group_size, n) for i, n in enumerate(names)], draws)

    def trajectory(self, rows: list[tuple[int, str]], draws: list[Tensor]) -> Trajectory:
        return Trajectory(
            mask=torch.ones(len(rows), 1, dtype=torch.bool),
            prompt_of=torch.tensor([i for i, _ in rows]),
            static={"number": torch.arange(len(draws))},
            stepwise={
                "noise": torch.stack([draws[i] for i, _ in rows]).unsqueeze(1),
                "letters": torch.tensor([[seed_of(o)] for _, o in rows]),
            },
            outputs=[o for _, o in rows],
        )

    def scores(self, model: Any, trajectory: Trajectory, **_: Any) -> Scores:
        return Scores(log_probs=torch.zeros(trajectory.mask.shape))

    def describe(self) -> str:
        return "Recorder"

    def save(self, model: Any, directory: Any) -> None:
        pass


@dataclass(frozen=True)
class Rows:
    """``size`` prompts "0", "1", ..., or all the same text; the odd ones with a view per side."""

    size: int = 5
    text: str | None = None
    sides: bool = False

    def preferences(self) -> list[Preference]:
        return [
            Preference(
                prompt=p,
                chosen=f"{i} good",
                rejected=f"{i} bad",
                rejected_prompt=Prompt(content=f"{i} blurred") if self.sides and i % 2 else None,
            )
            for i, p in enumerate(self.prompts())
        ]

    def prompts(self) -> list[Prompt]:
        return [Prompt(content=self.text or str(i)) for i in range(self.size)]


@pytest.fixture
def policy() -> Policy:
    return Policy(adapter=Recorder(), model=torch.nn.Linear(1, 1))


def drawn(source: Any, count: int) -> list[Batch]:
    batches = iter(source)
    return [next(batches) for _ in range(count)]


def outputs_of(batches: list[Batch]) -> list[list[Any]]:
    return [list(batch.trajectory.outputs) for batch in batches]


def rows_of(batch: Batch) -> list[tuple[str, float]]:
    noise = batch.trajectory.stepwise["noise"].flatten().tolist()
    return [(str(o), n) for o, n in zip(batch.trajectory.outputs, noise, strict=True)]


SPECS = {
    "preferences": Preferences(data=Rows(), batch_size=2),
    "rollouts": Rollouts(data=Rows(), reward=EarlyLetters(), num_generations=3, batch_size=2),
    "mixed": Mixed(
        parts=(
            Preferences(data=Rows(), batch_size=2),
            Rollouts(
                data=Rows(size=4),
                reward=core_parts.Failing(calls=10**6),
                num_generations=2,
                batch_size=3,
                selector=None,
            ),
        )
    ),
}


@pytest.mark.parametrize("name", ["preferences", "rollouts"])
def test_a_position_restores_everything_that_follows(name: str, policy: Policy) -> None:
    """Saved after 0, 1, ... 4 batches (over two epochs) as JSON: the same rows and draws follow."""
    import json

    spec = SPECS[name]
    whole = drawn(spec.build(policy, seed=SEED), 7)
    for made in range(5):
        source = spec.build(policy, seed=SEED)
        drawn(source, made)
        state = json.loads(json.dumps(source.state_dict()))
        again = spec.build(policy, seed=SEED)
        again.load_state_dict(state)
        following = drawn(again, 7 - made)
        assert outputs_of(following) == outputs_of(whole[made:])
        for batch, expected in zip(following, whole[made:], strict=True):
            noise, other = (b.trajectory.stepwise["noise"] for b in (batch, expected))
            assert torch.equal(noise, other)


def test_pairs(policy: Policy) -> None:
    """Rows 2 i and 2 i + 1 are chosen and rejected of pair i: a group of two, rewards 1 and 0."""
    spec = Preferences(data=Rows(), batch_size=3, shuffle=False)
    batch, last = drawn(spec.build(policy, seed=SEED), 2)
    assert outputs_of([batch]) == [["0 good", "0 bad", "1 good", "1 bad", "2 good", "2 bad"]]
    assert batch.pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.reward.tolist() == [1.0, 0.0] * 3
    assert len(last) == 4 and last.coefficient is None
    noise = batch.trajectory.stepwise["noise"].view(3, 2)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert len(set(noise[:, 0].tolist())) == 3


def test_views_of_each_side(policy: Policy) -> None:
    """Sides that saw different images are two prompts, drawing the same noise; still one group."""
    spec = Preferences(data=Rows(sides=True), batch_size=2, shuffle=False)
    (batch,) = drawn(spec.build(policy, seed=SEED), 1)
    assert policy.adapter.asked == [("0", "1", "1 blurred")]
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 1, 2]
    assert batch.group.tolist() == [0, 0, 1, 1]
    noise = batch.trajectory.stepwise["noise"].flatten().tolist()
    assert noise[0] == noise[1] and noise[2] == noise[3] and noise[0] != noise[2]


@pytest.mark.parametrize("fixed", [False, True])
def test_noise_is_drawn_anew_each_epoch_unless_fixed(fixed: bool, policy: Policy) -> None:
    spec = Preferences(data=Rows(size=2), batch_size=2, shuffle=False, fixed_noise=fixed)
    first, second = drawn(spec.build(policy, seed=SEED), 2)
    same = torch.equal(first.trajectory.stepwise["noise"], second.trajectory.stepwise["noise"])
    assert same is fixed


def test_noise_depends_on_neither_batch_nor_order(policy: Policy) -> None:
    """Row by row or all at once, shuffled or not: a pair's draws are its own."""
    found = []
    for size, shuffle in ((5, False), (1, False), (2, True)):
        spec = Preferences(data=Rows(), batch_size=size, shuffle=shuffle)
        batches = drawn(spec.build(policy, seed=SEED), -(-5 // size))
        found.append(sorted(row for batch in batches for row in rows_of(batch)))
    assert found[0] == found[1] == found[2] and len(found[0]) == 10


def test_groups(policy: Policy) -> None:
    """Exactly G adjacent rows a prompt, one group each, every prompt once an epoch."""
    spec = replace(SPECS["rollouts"], batch_size=5)
    batch, following = drawn(spec.build(policy, seed=SEED), 2)
    assert batch.group.tolist() == [i for i in range(5) for _ in range(3)]
    assert torch.equal(batch.group, batch.trajectory.prompt_of)
    for asked in policy.adapter.asked:
        assert sorted(asked) == ["0", "1", "2", "3", "4"]
    expected = EarlyLetters()([], [str(o) for o in batch.trajectory.outputs])
    assert torch.equal(batch.reward, expected)
    assert outputs_of([batch]) != outputs_of([following])
    total, count = batch.metrics["rollout/reward"]
    assert count == 15 and total == pytest.approx(float(expected.sum()))


def test_two_rows_with_one_text_are_two_groups(policy: Policy) -> None:
    """Groups are formed by position: five times the same question are five groups."""
    spec = Rollouts(data=Rows(text="same"), reward=EarlyLetters(), num_generations=2, batch_size=5)
    (batch,) = drawn(spec.build(policy, seed=SEED), 1)
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(set(batch.trajectory.stepwise["noise"].flatten().tolist())) == 5


def test_a_mixture(model: str) -> None:
    """Two recorded pairs and one sampled pair a batch; groups and pairs keep apart."""
    policy = TextPolicy(model=model, max_new_tokens=40).load()
    recorded = Preferences(data=rollouts().data, batch_size=2)
    spec = Mixed(parts=(recorded, rollouts(selector=BestWorst(), batch_size=1)))
    (batch,) = drawn(spec.build(policy, seed=SEED), 1)
    assert len(batch) == 6
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(batch.pairs[2].tolist()) == [4, 5]
    assert batch.pairs[:2].tolist() == [[0, 1], [2, 3]]
    assert float(batch.reward[batch.pairs[2, 0]]) > float(batch.reward[batch.pairs[2, 1]])
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert not bool((batch.weight[~batch.trajectory.mask] != 0).any())


def test_a_mixture_of_what_is_not_paired_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="must pair their rows: give each part of rollouts"):
        drawn(SPECS["mixed"].build(policy, seed=SEED), 1)


def test_parts_of_a_mixture_have_seeds_of_their_own(policy: Policy) -> None:
    """Twice the same data is not twice the same order."""
    part = Preferences(data=Rows(size=12), batch_size=12)
    (batch,) = drawn(Mixed(parts=(part, part)).build(policy, seed=SEED), 1)
    names = list(batch.trajectory.outputs)
    assert sorted(names[:24]) == sorted(names[24:]) and names[:24] != names[24:]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", ["preferences", "rollouts"])
def test_processes_share_the_global_batch(
    name: str, world: int, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together the processes hold exactly the rows, and the draws, of one process's batches.

    Five pairs in batches of 4 and 1: with more processes than pairs, the rest hold a pair that
    counts nothing.
    """
    spec = replace(SPECS[name], batch_size=4 if name == "preferences" else 6)
    alone = drawn(spec.build(policy, seed=SEED), 4)
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ranks.append(drawn(spec.build(policy, seed=SEED), 4))
    for number, whole in enumerate(alone):
        shares = [batches[number] for batches in ranks]
        counting = [s for s in shares if bool((s.weight != 0).any())]
        assert sorted(row for s in counting for row in rows_of(s)) == sorted(rows_of(whole))
        for share in shares:
            if not any(share is s for s in counting):
                assert share.coefficient.tolist() == [0.0]


def test_rollouts_must_divide_among_processes(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the 4 processes"):
        replace(SPECS["rollouts"], batch_size=6).build(policy, seed=SEED)


@pytest.mark.parametrize("name", ["preferences", "rollouts"])
def test_no_data_and_other_data_are_refused(name: str, policy: Policy) -> None:
    with pytest.raises(ValueError, match="holds no p"):
        replace(SPECS[name], data=Rows(size=0)).build(policy, seed=SEED)
    state = SPECS[name].build(policy, seed=SEED).state_dict()
    with pytest.raises(ValueError, match="had 5 rows when this run was saved and has 6 now"):
        replace(SPECS[name], data=Rows(size=6)).build(policy, seed=SEED).load_state_dict(state)


def test_a_weightless_pair_counts_in_no_objective(policy: Policy) -> None:
    """Pairwise and per-step objectives alike: denominator 0."""
    from mmalign.objectives import DPO, GRPO

    (batch,) = drawn(Preferences(data=Rows(size=1), batch_size=1).build(policy, seed=SEED), 1)
    assert DPO().credit(batch).denominator == 1.0
    assert GRPO(scale="none").credit(batch).denominator == 2.0
    nothing = weightless(batch)
    assert DPO().credit(nothing).denominator == 0.0
    assert GRPO(scale="none").credit(nothing).denominator == 0.0
