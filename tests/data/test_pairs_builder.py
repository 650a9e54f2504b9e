"""Pairs of a policy's own outputs: every modality, selectors, reasons, resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign import config
from mmalign.data.building import Candidate, construct
from mmalign.data.files import File
from mmalign.data.pairs import SampledPairs, Sampling
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.locate import configs
from mmalign.run import PolicySpec
from mmalign.selectors import BestRandom, BestWorst, KeepAll
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TaskJudge, TinyWorld
from mmalign.types import Output, Prompt
from mmalign.vision import ARImagePolicy, LVLMPolicy

TEXT = SampledPairs(
    data=TinyWorld(task="arithmetic", size=12, seed=1),
    policy=TextPolicy(model="tinyworld/text", max_new_tokens=24),
    reward=TaskJudge(partial=True),
    num_generations=4,
    batch_size=5,
)
DRAW = TinyWorld(task="draw", size=3, seed=1)
MODALITIES: dict[str, tuple[TinyWorld, PolicySpec, type]] = {
    "lvlm": (
        TinyWorld(task="describe", size=3, seed=1),
        LVLMPolicy(model="tinyworld/lvlm", max_new_tokens=24),
        str,
    ),
    "ar_image": (DRAW, ARImagePolicy(model="tinyworld/ar_image"), Image.Image),
    "diffusion": (
        DRAW,
        DiffusionPolicy(model="tinyworld/diffusion", steps=4, guidance_scale=1.0),
        Image.Image,
    ),
    "flow": (
        DRAW,
        FlowPolicy(model="tinyworld/flow", steps=4, guidance_scale=1.0),
        Image.Image,
    ),
}


@pytest.fixture(scope="module")
def sampling() -> Sampling:
    """Of the builder above; its model is loaded once."""
    return TEXT.prepare(seed=0)


@pytest.fixture(scope="module")
def candidates(sampling: Sampling) -> list[Candidate]:
    return list(sampling.candidates())


def with_settings(sampling: Sampling, **changes: Any) -> list[Candidate]:
    """What other settings make with the same policy."""
    spec = replace(TEXT, **changes)
    return list(
        Sampling(spec, prompts=sampling.prompts, policy=sampling.policy, seed=0).candidates()
    )


def told(candidate: Candidate) -> tuple[Any, ...]:
    """What must not change: the pair and the verdict."""
    pair = candidate.preference
    return candidate.row, candidate.dropped, pair.chosen, pair.rejected, pair.margin


def test_best_is_paired_with_worst(candidates: list[Candidate]) -> None:
    """The judge, asked again, says what the columns say; the margin is their difference."""
    assert [c.row for c in candidates] == list(range(12))
    assert {c.dropped for c in candidates} == {None, "tie"}
    judge = TaskJudge(partial=True)
    for pair in (c.preference for c in candidates):
        earned = judge([pair.prompt] * 2, [pair.chosen, pair.rejected]).tolist()
        assert earned == [pair.meta["chosen_reward"], pair.meta["rejected_reward"]]
        assert earned == [max(pair.meta["rewards"]), min(pair.meta["rewards"])]
        assert pair.margin == earned[0] - earned[1]
    kept = [c.preference.margin for c in candidates if c.dropped is None]
    assert all(margin is not None and margin > 0 for margin in kept)


def test_a_row_does_not_depend_on_where_it_begins(
    sampling: Sampling, candidates: list[Candidate]
) -> None:
    """Row 7 stands in the middle of a block of five, and 5 at the beginning of one."""
    for start in (5, 7):
        assert list(map(told, sampling.candidates(start))) == list(map(told, candidates[start:]))


def test_blocks_of_another_size_change_nothing(
    sampling: Sampling, candidates: list[Candidate]
) -> None:
    found = with_settings(sampling, batch_size=12)
    assert list(map(told, found)) == list(map(told, candidates))


def test_margin_threshold(sampling: Sampling, candidates: list[Candidate]) -> None:
    """Pairs at or below the threshold are dropped, the others are as they were."""
    margins = sorted({float(c.preference.margin or 0) for c in candidates})
    threshold = margins[-2]
    found = with_settings(sampling, selector=BestWorst(min_margin=threshold))
    for before, after in zip(candidates, found, strict=True):
        margin = float(before.preference.margin or 0)
        expected = "tie" if margin == 0 else "small margin" if margin <= threshold else None
        assert after.dropped == expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Rising:
    """Gives each output more than the one before it, whatever it says."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        return torch.arange(len(outputs), dtype=torch.float32)


def test_other_selectors(sampling: Sampling) -> None:
    """The best against a random worse one; a selector that pairs nothing is refused."""
    found = with_settings(sampling, selector=BestRandom(seed=3), reward=Rising())
    metas = [c.preference.meta for c in found]
    assert all(m["chosen_reward"] == max(m["rewards"]) for m in metas)
    assert {m["rewards"].index(m["rejected_reward"]) for m in metas} == {0, 1, 2}
    with pytest.raises(ValueError, match="KeepAll makes no pairs"):
        with_settings(sampling, selector=KeepAll())


def test_useless_pairs_are_dropped(sampling: Sampling) -> None:
    """With greedy samples all answers of a prompt are one, and this judge still ranks them."""
    cold = replace(TEXT, policy=TextPolicy(model="tinyworld/text", max_new_tokens=1))
    made = Sampling(
        replace(cold, reward=Rising(), num_generations=2),
        prompts=[sampling.prompts[0]] * 8,
        policy=cold.policy.load(),
        seed=0,
    )
    found = list(made.candidates())
    for candidate in found:
        pair = candidate.preference
        blank = not str(pair.chosen).strip() or not str(pair.rejected).strip()
        same = pair.chosen == pair.rejected
        expected = "empty answer" if blank else "identical sides" if same else None
        assert candidate.dropped == expected
    assert {"identical sides"} <= {c.dropped for c in found}


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality(name: str, tmp_path: Path) -> None:
    """Built, written, and read again with the same prompts and margins."""
    data, policy, kind = MODALITIES[name]
    builder = SampledPairs(
        data=data, policy=policy, reward=TaskJudge(partial=True), num_generations=3, batch_size=2
    )
    path = tmp_path / "pairs.jsonl"
    counts = construct(builder, path, settings=name)
    assert counts.total() == 3
    read = File(path=str(path)).preferences()
    assert len(read) == counts["kept"] >= 1
    for pair in read:
        assert isinstance(pair.chosen, kind)
        assert isinstance(pair.rejected, kind)
        assert pair.margin is not None and pair.margin > 0
        assert pair.meta["builder"] == "pairs"
        again = TaskJudge(partial=True)([pair.prompt], [pair.chosen]).item()
        assert again == pair.meta["chosen_reward"]


def test_settings() -> None:
    with pytest.raises(ValueError, match="num_generations=1"):
        replace(TEXT, num_generations=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        replace(TEXT, batch_size=0)
    with pytest.raises(ValueError, match="no prompt"):
        replace(TEXT, data=TinyWorld(task="arithmetic", size=0)).prepare(seed=0)


def test_shipped_config() -> None:
    builder = config.load_builder("pairs", configs() / "diffusion" / "data" / "pairs.yaml")
    assert isinstance(builder, SampledPairs)
    assert builder.selector == BestWorst(min_margin=0.2)
