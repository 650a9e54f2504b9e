"""Ties and identical sides are dropped and counted, recorded or drawn, of words or of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmalign.diffusion import DiffusionPolicy
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.run import SourceSpec
from mmalign.selectors import BestWorst, KeepAll
from mmalign.sources import Preferences, Rollouts
from mmalign.text import TextPolicy
from mmalign.types import Batch, Output, Preference, Prompt
from tests.diffusion import tiny


def flat(shade: str) -> Image.Image:
    return Image.new("RGB", (16, 16), shade)


@dataclass(frozen=True, slots=True, kw_only=True)
class Three:
    """Three pairs; the sides of the second are one and the same."""

    pictures: bool = False

    def preferences(self) -> Sequence[Preference]:
        sides: list[tuple[Output, Output]] = [("3", "5"), ("7", "7"), ("8", "2")]
        if self.pictures:
            shades = [("red", "blue"), ("green", "green"), ("white", "black")]
            sides = [
                (Image.new("RGB", (16, 16), a), Image.new("RGB", (16, 16), b)) for a, b in shades
            ]
        return [
            Preference(prompt=Prompt(content=f"a circle {i}"), chosen=a, rejected=b)
            for i, (a, b) in enumerate(sides)
        ]

    def prompts(self) -> Sequence[Prompt]:
        return [pair.prompt for pair in self.preferences()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPlace:
    """Scores by place in the group, the same for the first two: never two ties more, never less."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        return torch.tensor([(0.0, 0.0, 1.0)[i % 3] for i in range(len(outputs))])


def credited(policy: Policy, source: SourceSpec) -> Batch:
    return DPO().credit(next(iter(source.build(policy, seed=0))))


def text(model: str, folder: Path, **settings: Any) -> Policy:
    return TextPolicy(model=model, max_new_tokens=4, **settings).load()


def pictures(model: str, folder: Path, **settings: Any) -> Policy:
    saved = tiny.save(tiny.diffusion(), folder)
    return DiffusionPolicy(model=saved, steps=2, guidance_scale=1.0).load()


KINDS: dict[str, Callable[..., Policy]] = {"text": text, "pictures": pictures}


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_pairs_with_identical_sides(kind: str, model: str, tmp_path: Path) -> None:
    """One of three: it neither counts for the loss nor for its denominator."""
    policy = KINDS[kind](model, tmp_path)
    data = Three(pictures=kind == "pictures")
    batch = credited(policy, Preferences(data=data, batch_size=3))
    assert batch.counters["dropped/identical"] == 1.0
    assert batch.pairs is not None and len(batch.pairs) == 2 and batch.denominator == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_tied_rollouts(kind: str, model: str, tmp_path: Path) -> None:
    """Of three outputs a prompt two tie: one tie, two pairs; best and worst are another pair."""
    policy = KINDS[kind](model, tmp_path)
    settings: dict[str, Any] = {"data": Three(), "reward": ByPlace(), "batch_size": 3}
    batch = credited(policy, Rollouts(**settings, num_generations=3, selector=KeepAll()))
    assert batch.pairs is not None
    dropped = batch.counters["dropped/identical"]
    assert batch.counters["dropped/ties"] == 3.0 and len(batch.pairs) == 6 - dropped
    two = credited(policy, Rollouts(**settings, num_generations=2, selector=BestWorst()))
    assert two.counters["dropped/ties"] >= 1.0 and two.pairs is not None


def test_rollouts_with_identical_sides(model: str, tmp_path: Path) -> None:
    """At temperature 1e-6 all answers to a prompt are one: rewards that differ make no pair."""
    policy = text(model, tmp_path, temperature=1e-6)
    source = Rollouts(
        data=Three(), reward=ByPlace(), batch_size=3, num_generations=3, selector=KeepAll()
    )
    batch = credited(policy, source)
    assert batch.pairs is not None and len(batch.pairs) == 0 and batch.denominator == 0.0
    assert batch.counters["dropped/identical"] == 6.0 and batch.counters["dropped/ties"] == 3.0
