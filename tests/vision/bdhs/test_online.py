"""BDHS while training, alone, mixed and averaged with recorded pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image

from mmalign import distributed
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.sources import Preferences
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch, Output, Preference, Prompt, Scores
from mmalign.vision.bdhs import AveragedBDHS, MixedBDHS, OnlineBDHS, Recipe
from mmalign.vision.bdhs.hallucinating import hallucinate
from mmalign.vision.bdhs.online import DROPPED, NAME
from mmalign.vision.completing import Decoding
from mmalign.vision.lvlm_policy import LVLMPolicy


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Pairs of the tiny world, whose chosen answers are the demonstrations."""

    size: int = 10

    def preferences(self) -> Sequence[Preference]:
        return TinyWorld(task="describe", size=self.size, seed=1).preferences()

    def prompts(self) -> list[Prompt]:
        return [pair.prompt for pair in self.preferences()]

    def demonstrations(self) -> list[tuple[Prompt, Output]]:
        return [(pair.prompt, pair.chosen) for pair in self.preferences()]


DATA = Recorded()
RECIPE = Recipe(mark=",", similarity="words", decoding=Decoding(max_new_tokens=48))
BETA = 0.5


@pytest.fixture(scope="module")
def policy() -> Policy:
    return LVLMPolicy(max_new_tokens=96).load()


def first(spec: object, policy: Policy, *, seed: int = 4, skip: int = 0) -> Batch:
    batches = iter(spec.build(policy, seed=seed))
    for _ in range(skip):
        next(batches)
    return next(batches)


def loss_of(batch: Batch, policy: Policy) -> torch.Tensor:
    """DPO against a reference that is half as sure of everything, per pair of weight 1."""
    objective = DPO(beta=BETA)
    with torch.no_grad():
        log_probs = policy.scores(batch.trajectory).log_probs
    credited = objective.credit(replace(batch, reference=log_probs / 2))
    with torch.no_grad():
        scores = Scores(log_probs=policy.scores(credited.trajectory).log_probs)
    return objective.loss(scores, credited).total / credited.denominator


def texts(batch: Batch) -> list[tuple[str, str, float]]:
    outputs = batch.trajectory.outputs
    coefficients = batch.coefficient.tolist()
    return [
        (outputs[w], outputs[r], c)
        for (w, r), c in zip(batch.pairs.tolist(), coefficients, strict=True)
    ]


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same rows, pairs and weights."""
    return (
        a.trajectory.outputs == b.trajectory.outputs
        and torch.equal(a.pairs, b.pairs)
        and torch.equal(a.group, b.group)
        and torch.equal(a.reward, b.reward)
        and torch.equal(a.trajectory.stepwise["token"], b.trajectory.stepwise["token"])
    )


def test_online_pairs_are_those_of_the_policy_as_it_is(policy: Policy) -> None:
    """The rule itself at the batch's keys; and others once the policy has other weights."""
    spec = OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=4, shuffle=False)
    batch = first(spec, policy)
    rows = DATA.demonstrations()[:4]
    expected = hallucinate(policy, rows, RECIPE, keys=[(4, NAME, 0, row) for row in range(4)])
    assert texts(batch) == [
        (right, one.text, 1.0) for (_, right), one in zip(rows, expected, strict=True)
    ]
    assert batch.metrics["bdhs/tries"] == (float(sum(one.tries for one in expected)), 4.0)
    other = LVLMPolicy(max_new_tokens=96).load()
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(0.2)
    assert texts(first(spec, other)) != texts(batch)


def test_a_restored_source_goes_on_to_the_letter(policy: Policy) -> None:
    """Two batches in, across the end of the epoch (10 rows in batches of 4)."""
    spec = OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=4)
    source = spec.build(policy, seed=4)
    batches = iter(source)
    for _ in range(2):
        next(batches)
    state = source.state_dict()
    restored = spec.build(policy, seed=4)
    restored.load_state_dict(state)
    again = iter(restored)
    for _ in range(2):
        assert same(next(batches), next(again))
    with pytest.raises(ValueError, match="had 10 rows"):
        spec = replace(spec, data=Recorded(size=9))
        spec.build(policy, seed=4).load_state_dict(state)


def test_mixed_at_its_ends_is_offline_and_online(policy: Policy) -> None:
    """p = 1 is the recorded pairs, to the bit of the loss; p = 0 is online BDHS of these rows."""
    offline = first(Preferences(data=DATA, batch_size=4), policy)
    mixed = first(MixedBDHS(data=DATA, recipe=RECIPE, p=1.0, batch_size=4), policy)
    assert same(mixed, offline)
    assert torch.equal(loss_of(mixed, policy), loss_of(offline, policy))
    online = first(OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=4), policy)
    mixed = first(MixedBDHS(data=DATA, recipe=RECIPE, p=0.0, batch_size=4), policy)
    assert same(mixed, online)
    assert torch.equal(loss_of(mixed, policy), loss_of(online, policy))
    assert not same(online, offline)


def test_mixed_draws_for_each_example_anew(policy: Policy) -> None:
    """Every pair is the recorded or the online one; of 400 examples about half are recorded.

    Standard deviation sqrt(400) / 2 = 10; the rule is asked, nothing is generated.
    """
    spec = MixedBDHS(data=DATA, recipe=RECIPE, p=0.5, batch_size=10, shuffle=False)
    source = spec.build(policy, seed=4)
    drawn = [source.walk.rule((epoch, row))[0] for epoch in range(40) for row in range(10)]
    assert sum(drawn) == pytest.approx(200, abs=40)
    assert drawn[:10] != drawn[10:20]
    batch = next(iter(source))
    recorded = [pair.rejected for pair in DATA.preferences()]
    online = texts(
        first(OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=10, shuffle=False), policy)
    )
    assert 0 < sum(drawn[:10]) < 10
    for row, (_, rejected, weight) in enumerate(texts(batch)):
        assert rejected == (recorded[row] if drawn[row] else online[row][1]) and weight == 1.0


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0])
def test_averaged_is_the_weighted_mean_of_both_losses(policy: Policy, gamma: float) -> None:
    """gamma L(offline) + (1 - gamma) L(online); at 1 plain DPO, and nothing is generated."""
    offline = first(Preferences(data=DATA, batch_size=4), policy)
    online = first(OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=4), policy)
    averaged = first(AveragedBDHS(data=DATA, recipe=RECIPE, gamma=gamma, batch_size=4), policy)
    expected = gamma * loss_of(offline, policy) + (1 - gamma) * loss_of(online, policy)
    torch.testing.assert_close(loss_of(averaged, policy), expected, atol=1e-5, rtol=0)
    if gamma == 1.0:
        assert same(averaged, offline) and averaged.metrics["bdhs/tries"] == (0.0, 0.0)
    if gamma == 0.25:
        # The chosen answer stands there once for both pairs.
        assert len(averaged) == 12 and len(averaged.pairs) == 8
        assert averaged.coefficient.tolist() == [0.75, 0.25] * 4
        assert averaged.group.tolist() == [row for row in range(4) for _ in range(3)]


@dataclass(frozen=True, kw_only=True)
class Odd(Recorded):
    """Pairs of which the second has another picture on its rejected side, the third no answer."""

    def preferences(self) -> list[Preference]:
        found = list(DATA.preferences()[:3])
        other = replace(found[1].prompt, images=(Image.new("RGB", (32, 32)),))
        found[1] = replace(found[1], rejected_prompt=other)
        found[2] = replace(found[2], chosen=" ")
        return found


def test_odd_examples(policy: Policy) -> None:
    """A rejected side with a picture of its own keeps it; an example without an online pair is
    counted and, alone, left out."""
    averaged = AveragedBDHS(data=Odd(), recipe=RECIPE, batch_size=3, shuffle=False)
    batch = first(averaged, policy)
    assert len(batch.trajectory.static["prompt_ids"]) == 4
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert batch.pairs.tolist() == [[0, 1], [0, 2], [3, 4], [3, 5], [6, 7]]
    assert batch.counters == {DROPPED: 1.0}
    credited = DPO(beta=BETA).credit(replace(batch, reference=batch.weight))
    assert credited.denominator == 2.5
    online = first(OnlineBDHS(data=Odd(), recipe=RECIPE, batch_size=3, shuffle=False), policy)
    assert online.pairs.tolist() == [[0, 1], [2, 3]] and len(online) == 5
    assert len(DPO(beta=BETA).credit(replace(online, reference=online.weight))) == 4


def test_processes_share_a_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them and four rows: their pairs together are those of one process."""
    spec = OnlineBDHS(data=DATA, recipe=RECIPE, batch_size=4)
    whole = texts(first(spec, policy))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(texts(first(spec, policy)))
    assert [len(part) for part in parts] == [2, 1, 1]
    assert sorted(pair for part in parts for pair in part) == sorted(whole)
    # The last two rows of the epoch: the third process takes part without a row of its own.
    last = first(spec, policy, skip=2)
    assert last.coefficient.tolist() == [0.0] and last.counters == {DROPPED: 0.0}
    assert set(last.metrics.values()) == {(0.0, 0.0)}


def test_wrong_settings_are_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="p must be 0 to 1"):
        MixedBDHS(data=DATA, p=1.1)
    with pytest.raises(ValueError, match="gamma must be 0 to 1"):
        AveragedBDHS(data=DATA, gamma=-0.1)
