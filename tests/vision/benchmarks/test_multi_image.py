"""Accuracy on several pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mmalign.evaluation import Z95
from mmalign.vision.benchmarks.multi_image import Match, MultiImage, matches
from tests.vision.benchmarks.files import ids, values, write_lines

ROWS = [
    {
        "prompt": "Which?",
        "images": ["a.png", "b.png"],
        "answer": "Two",
        "category": "which",
    },
    {"prompt": "How many?", "images": ["a.png"], "answer": ["3", "three"], "category": "count"},
    {"prompt": "How many?", "images": [], "answer": "four", "category": "count"},
    {"prompt": "What?", "images": ["a.png"], "answer": "a dog", "id": "last", "category": "which"},
]


@pytest.mark.parametrize(
    ("answer", "right", "exact", "contained"),
    [
        ("Picture two.", "picture two", True, True),
        ("It is  picture TWO!", "picture two", False, True),
        ("pictures two", "picture two", False, False),
        ("thirteen", "three", False, False),
        ("", "x", False, False),
    ],
)
def test_matching(answer: str, right: str, exact: bool, contained: bool) -> None:
    wanted: dict[Match, bool] = {"exact": exact, "contained": contained}
    assert {how: matches(answer, right, how=how) for how in wanted} == wanted


def test_report(tmp_path: Path) -> None:
    """Right are the first (whatever its case), the second (its second answer) and the last: 3/4.

    The variance of three ones and a zero is 4/3 x 3/4 x 1/4 = 1/4: half the interval is 1.96 / 4.
    """
    benchmark = MultiImage(path=write_lines(tmp_path / "q.jsonl", ROWS))
    items = benchmark.questions()
    assert ids(items) == ["0", "1", "2", "last"]
    assert [len(item.images) for item in items] == [2, 1, 0, 1]
    report = benchmark.measure(items, ["two", "Three.", "five", "A dog"])
    assert values(report) == {"accuracy": 0.75}
    assert report.metrics["accuracy"].half_width == pytest.approx(Z95 * math.sqrt(0.25) / 2)
    assert values(report, "which") == {"accuracy": 1.0}
    assert values(report, "count") == {"accuracy": 0.5}
    path = benchmark.write_answers(tmp_path / "out", items, ["a", "b", "c", "d"])
    assert benchmark.read_answers(path, items) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": "a.png"}, "'images' must be a list"),
        ({"answer": []}, "'answer' must be a string with a word"),
        ({"answer": "?"}, "'answer' must be a string with a word"),
        ({"prompt": 1}, "'prompt' must be a string"),
    ],
)
def test_wrong_rows(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{**ROWS[0], **change}])
    with pytest.raises(ValueError, match=f"q.jsonl:1: {said}"):
        MultiImage(path=path).questions()
