"""Attention on the picture that a question is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.benchmarks import AnswerDrawing, Item, Probe
from mmalign.vision import LVLMPolicy
from mmalign.vision.benchmarks.attention import AttentionOnTarget, attention_report
from tests.vision.benchmarks.files import values, write_lines

ROWS = [
    {"prompt": "is there a red circle in picture one ?", "images": ["a.png", "b.png"], "target": 0},
    {"prompt": "describe the picture", "images": ["a.png", "b.png", "a.png"], "target": 2},
]


@pytest.fixture
def benchmark(tmp_path: Path) -> AttentionOnTarget:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    path = write_lines(tmp_path / "q.jsonl", ROWS)
    return AttentionOnTarget(path=path, images=str(tmp_path), max_new_tokens=8)


def test_arithmetic() -> None:
    """Shares 0.6 of two pictures, 0.5 of three, and one that could not be measured.

    Mean 0.55; times chance (0.6 x 2 + 0.5 x 3) / 2 = 1.35.
    """
    pictures = [Image.new("RGB", (1, 1))] * 3
    items = [
        Item(id=str(i), text="?", images=tuple(pictures[:n]), meta={"target": 0, "category": c})
        for i, (n, c) in enumerate([(2, "a"), (3, "b"), (2, "b")])
    ]
    report = attention_report(items, ["x", "y", ""], [0.6, 0.5, None])
    assert values(report) == pytest.approx({"attention_on_target": 0.55, "times_chance": 1.35})
    assert values(report, "a")["times_chance"] == pytest.approx(1.2)
    assert report.counts["answers too short, or without attention on any picture"] == 1
    assert report.counts["empty answers"] == 1


def test_of_a_model(benchmark: AttentionOnTarget) -> None:
    """A question's share does not depend on its batch; the shares over all targets sum to 1."""
    assert isinstance(benchmark, Probe)
    policy = LVLMPolicy().load()
    items = benchmark.questions()
    answers, report = benchmark.probe(policy, items, AnswerDrawing(batch_size=2))
    shares = [row["share"] for row in report.rows]
    assert all(answers) and all(0 < share < 1 for share in shares)
    total = 0.0
    for number in range(3):
        other = Item(
            id="x",
            text=items[1].text,
            images=items[1].images,
            meta={**items[1].meta, "target": number},
        )
        _, alone = benchmark.probe(policy, [other], AnswerDrawing(batch_size=1))
        total += alone.rows[0]["share"]
        if number == 2:
            assert alone.rows[0]["share"] == pytest.approx(shares[1], rel=1e-4)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_answers_hold_no_attention(benchmark: AttentionOnTarget, tmp_path: Path) -> None:
    items = benchmark.questions()
    path = benchmark.write_answers(tmp_path / "out", items, ["a", "b"])
    assert benchmark.read_answers(path, items) == ["a", "b"]
    with pytest.raises(ValueError, match="give FILE, the run or the config"):
        benchmark.measure(items, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ["a.png"]}, "'images' must be a list of two files or more"),
        ({"target": 2}, "'target' must be a picture's number, 0 to 1, not 2"),
        ({"target": "0"}, "'target' must be a picture's number"),
    ],
)
def test_wrong_rows(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{**ROWS[0], **change}])
    with pytest.raises(ValueError, match=f"q.jsonl:1: {said}"):
        AttentionOnTarget(path=path).questions()
