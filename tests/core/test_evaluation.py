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
from mmalign.diversity import NGramDistance
from mmalign.evaluation import (
    Evaluated,
    Judgement,
    Sample,
    evaluate,
    half_width,
    paired_rise,
    record_of,
    write_samples,
)
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
    record = Judgement(scores=values[:, None]).record()
    assert "best_of" not in record
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
    first, again, other = (
        evaluate(policy, settings(**given), seed=seed).judgements
        for given, seed in (({}, 1), ({"batch_size": 5}, 1), ({}, 2))
    )
    assert torch.equal(first["letters"].per_prompt, again["letters"].per_prompt)
    assert not torch.equal(first["letters"].per_prompt, other["letters"].per_prompt)


def test_scores_are_means_over_samples(policy: Policy) -> None:
    diversity = {"ngrams": NGramDistance(longest=1)}
    found = evaluate(policy, settings(show=5, diversity=diversity), seed=1)
    kept = found.samples
    assert len(kept) == 5 and all(len(sample.outputs) == 2 for sample in kept)
    prompts = settings().data.prompts()
    assert [sample.prompt.content for sample in kept] == [p.content for p in prompts]
    for name, judge in settings().judges.items():
        for row, sample in enumerate(kept):
            expected = judge([], sample.outputs)
            assert sample.scores[name] == pytest.approx(expected.tolist())
            mean = float(found.judgements[name].per_prompt[row])
            assert mean == pytest.approx(float(expected.mean()))
    for row, sample in enumerate(kept):
        apart = float(diversity["ngrams"](sample.outputs)[0, 1])
        assert float(found.diversity["ngrams"].per_prompt[row]) == pytest.approx(apart)


def test_best_of_by_hand() -> None:
    """Prompts with samples (0, 2, 1) and (1, 1, 1): the best of 1, 2 and 3, averaged over both.

    Best of 2 of 0, 1, 2: maxima 1, 2, 2, mean 5/3, with 1 beside it 4/3. Of 3: 2 and 1, 3/2 with
    1.959964 sqrt(1/2) / sqrt 2.
    """
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    one, two, three = Judgement(scores=scores).record()["best_of"]
    assert (one["n"], two["n"], three["n"]) == (1, 2, 3)
    assert (one["mean"], two["mean"]) == pytest.approx((1.0, 4 / 3))
    assert (three["mean"], three["high"]) == pytest.approx((1.5, 1.5 + 1.959964 / 2))
    numbers = [b["n"] for b in Judgement(scores=torch.zeros(2, 11)).record()["best_of"]]
    assert numbers == [1, 2, 4, 8, 11]


def test_collapse_is_noted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """From 0.8 to 0.3 is below half of it; to 0.5 is not. The judge's rise stands beside it."""

    def line(apart: float, first: Any = None) -> dict[str, Any]:
        found = Evaluated(
            judgements={"j": Judgement(scores=torch.full((2, 2), 1 - apart))},
            diversity={"d": Judgement(scores=torch.full((2, 1), apart))},
            samples=[],
        )
        return record_of(found, step=3, seconds=0.0, first=first, collapse_below=0.5)

    first = line(0.8)
    assert "paired" not in first and "collapsed" not in first
    kept, lost = line(0.5, first), line(0.3, first)
    assert "collapsed" not in kept and lost["collapsed"] == ["d"]
    assert kept["diversity"]["d"]["change"]["mean"] == pytest.approx(-0.3)
    assert lost["paired"]["j"]["low"] == pytest.approx(0.5)
    assert [r.getMessage() for r in caplog.records] == [
        "update 3: the samples of a prompt have become alike: diversity d was 0.8 and is 0.3"
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 1, "diversity": {"x": NGramDistance()}}, "samples=1 leaves nothing"),
        ({"samples": 0}, "samples=0"),
        ({"collapse_below": 2.0}, "collapse_below=2"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_an_unchanged_policy_does_not_rise(model: str, tmp_path: Path) -> None:
    """With a learning rate of 0 the paired rise is exactly 0, thirds in the scores or not."""
    run = training(offline(model, tmp_path / "run"), learning_rate=0.0, steps=2)
    run = replace(
        run,
        policy=replace(run.policy, max_new_tokens=40),
        evaluation=settings(samples=3, every=1, diversity={"words": NGramDistance()}),
    )
    run.train()
    lines = RunFolder(tmp_path / "run").read("evaluations.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "paired" not in lines[0]
    for line in lines[1:]:
        for name in ("letters", "length"):
            assert line["paired"][name] == {"mean": 0.0, "low": 0.0, "high": 0.0}
            assert line["judge"][name] == lines[0]["judge"][name]
        assert line["diversity"]["words"]["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("world", [2, 3, 5])
def test_prompt_order_over_processes(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process r holds prompts r, r + W, ...; gathered, they come back as 0, 1, 2, ..."""
    values = torch.arange(5.0)
    shares = torch.cat([values[rank::world] for rank in range(world)])
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "all_gather", lambda _: shares)
    assert torch.equal(evaluation._in_prompt_order(values[0::world], 5), values)
    several = torch.stack([values, values + 10], 1)
    shares = torch.cat([several[rank::world].flatten() for rank in range(world)])
    assert torch.equal(evaluation._in_prompt_order(several[0::world], 5), several)


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
