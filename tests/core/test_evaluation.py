"""Judging: intervals by hand, paired draws, and the order of prompts over processes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import EarlyLetters, offline, training
from PIL import Image
from torch import Tensor

from mmalign import distributed, evaluation
from mmalign.evaluation import Judgement, Sample, evaluate, half_width, paired_rise, write_samples
from mmalign.log import RunFolder
from mmalign.policy import Policy
from mmalign.run import Evaluation
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Output, Prompt


def settings(**changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "data": TinyWorld(task="arithmetic", split="heldout", size=5),
        "judges": {"letters": EarlyLetters(), "length": Length()},
        "samples": 2,
        "batch_size": 2,
        "show": 3,
    }
    return Evaluation(**{**values, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        return torch.tensor([float(len(str(o).split())) for o in outputs])


@pytest.fixture
def policy(model: str) -> Policy:
    return TextPolicy(model=model, max_new_tokens=6).load()


def test_interval_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, squares 2 (1.5^2 + 0.5^2) = 5, deviation sqrt(5 / 3), of the mean / 2.

    1.959964 sqrt(5 / 3) / 2 = 1.265151.
    """
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert half_width(values) == pytest.approx(1.265151, abs=1e-6)
    record = Judgement(per_prompt=values).record()
    assert record["mean"] == 2.5 and record["num_prompts"] == 4
    assert record["low"] == pytest.approx(2.5 - 1.265151, abs=1e-6)
    assert record["high"] == pytest.approx(2.5 + 1.265151, abs=1e-6)
    assert math.isinf(half_width(torch.tensor([1.0])))


def test_paired_rise_by_hand() -> None:
    """Rises 1, 1, 1, 1 have no spread, whatever the spread of the scores; 0 and 2 have 1 +- 1.96.

    Two rises 0 and 2: mean 1, deviation sqrt 2, of the mean 1.
    """
    assert paired_rise([0.0, 5.0, 9.0, 2.0], [1.0, 6.0, 10.0, 3.0]) == {
        "mean": 1.0, "low": 1.0, "high": 1.0
    }  # fmt: skip
    found = paired_rise([3.0, 3.0], [3.0, 5.0])
    assert found == pytest.approx({"mean": 1.0, "low": 1 - 1.959964, "high": 1 + 1.959964})


def test_one_seed_one_judgement(policy: Policy) -> None:
    """The same seed gives the same draws whatever is sampled beside them; another seed does not."""
    first, _ = evaluate(policy, settings(), seed=1)
    again, _ = evaluate(policy, settings(batch_size=5), seed=1)
    other, _ = evaluate(policy, settings(), seed=2)
    assert torch.equal(first["letters"].per_prompt, again["letters"].per_prompt)
    assert not torch.equal(first["letters"].per_prompt, other["letters"].per_prompt)


def test_scores_are_means_over_samples(policy: Policy) -> None:
    judgements, kept = evaluate(policy, settings(show=5), seed=1)
    assert len(kept) == 5 and all(len(sample.outputs) == 2 for sample in kept)
    prompts = settings().data.prompts()
    assert [sample.prompt.content for sample in kept] == [p.content for p in prompts]
    for name, judge in settings().judges.items():
        for row, sample in enumerate(kept):
            expected = judge([], sample.outputs)
            assert sample.scores[name] == pytest.approx(expected.tolist())
            found = float(judgements[name].per_prompt[row])
            assert found == pytest.approx(float(expected.mean()))


def test_an_unchanged_policy_does_not_rise(model: str, tmp_path: Path) -> None:
    """With a learning rate of 0 the paired rise is exactly 0, thirds in the scores or not."""
    run = training(offline(model, tmp_path / "run"), learning_rate=0.0, steps=2)
    run = replace(
        run,
        policy=replace(run.policy, max_new_tokens=40),
        evaluation=settings(samples=3, every=1),
    )
    run.train()
    lines = RunFolder(tmp_path / "run").read("evaluations.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "paired" not in lines[0]
    for line in lines[1:]:
        for name in ("letters", "length"):
            assert line["paired"][name] == {"mean": 0.0, "low": 0.0, "high": 0.0}
            assert line["judge"][name] == lines[0]["judge"][name]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_prompt_order_over_processes(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process r holds prompts r, r + W, ...; gathered, they come back as 0, 1, 2, ..."""
    values = torch.arange(5.0)
    shares = torch.cat([values[rank::world] for rank in range(world)])
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "all_gather", lambda _: shares)
    assert torch.equal(evaluation._in_prompt_order(values[0::world], 5), values)


def test_fewer_prompts_than_processes_is_refused_everywhere(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on the processes that would have one: they must not wait for the others."""
    monkeypatch.setattr(distributed, "world_size", lambda: 6)
    with pytest.raises(ValueError, match="5 evaluation prompts are fewer than the 6 processes"):
        evaluate(policy, settings(), seed=0)


def test_a_judge_that_fails_is_an_error(policy: Policy) -> None:
    core_parts.CALLS["failing"] = 0
    with pytest.raises(ValueError, match="reward Failing failed on 4 outputs: the judge is out"):
        evaluate(policy, settings(judges={"broken": core_parts.Failing()}), seed=0)


def test_samples_are_kept_for_people(tmp_path: Path) -> None:
    """Text in JSON, pictures as files beside it, named by it."""
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    asked = Prompt(
        content=({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},),
        images=(red,),
    )
    samples = [
        Sample(prompt=asked, outputs=["a word"], scores={"judge": [0.5]}),
        Sample(prompt=Prompt(content="draw"), outputs=[blue], scores={"judge": [1.0]}),
    ]
    write_samples(tmp_path, 7, samples)
    first, second = json.loads((tmp_path / "step-000007.json").read_text())["items"]
    assert first["prompt"] == "<image> ?" and first["outputs"] == ["a word"]
    assert second["scores"] == {"judge": [1.0]}
    for name, colour in ((first["images"][0], red), (second["outputs"][0]["image"], blue)):
        with Image.open(tmp_path / name) as found:
            assert found.getpixel((0, 0)) == colour.getpixel((0, 0))


def test_a_run_that_died_before_its_first_update_may_start_again(
    model: str, tmp_path: Path
) -> None:
    """Its evaluations go: they may be another policy's, and rises are measured from the first."""
    run = training(offline(model, tmp_path / "run"), steps=1)
    run = replace(run, evaluation=settings())
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.append("evaluations.jsonl", {"step": 0, "judge": {}})
    run.train()
    assert [line["step"] for line in folder.read("evaluations.jsonl")] == [0, 1]
