"""Lists of scored outputs in files: what is read, and what is refused in which words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.data.files import File
from mmalign.data.several import Several
from mmalign.tinyworld.data import TinyWorld

GOOD = {"prompt": "1 + 1?", "completions": ["2", "3", "4"], "scores": [1, 0.5, 0.5]}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_lists_of_any_length_with_ties(tmp_path: Path) -> None:
    pair = {"prompt": "2?", "completions": ["a", "b"], "scores": [0, -2], "origin": "x"}
    rows = File(path=write(tmp_path / "rows.jsonl", [GOOD, pair])).rankings()
    assert rows[0].completions == ("2", "3", "4") and rows[0].scores == (1.0, 0.5, 0.5)
    assert rows[1].scores == (0.0, -2.0) and rows[1].steps is None
    assert rows[1].prompt.content == "2?" and dict(rows[1].prompt.meta) == {"origin": "x"}


def test_messages_and_names_of_ones_own(tmp_path: Path) -> None:
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    path = write(tmp_path / "rows.jsonl", [{"prompt": "?", "answers": said, "grades": [0, 1]}])
    columns = {"completions": "answers", "scores": "grades"}
    (row,) = File(path=path, columns=columns).rankings()
    assert row.completions == ("yes", "no") and row.scores == (0.0, 1.0)


def test_pictures(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (2, 2), colour).save(tmp_path / f"{colour}.png")
    shown = {"prompt": "red", "completion_images": ["red.png", "blue.png"], "scores": [1, 0]}
    (row,) = File(path=write(tmp_path / "rows.jsonl", [shown])).rankings()
    pixels = [one.getpixel((0, 0)) for one in row.completions if not isinstance(one, str)]
    assert pixels == [(255, 0, 0), (0, 0, 255)]


def test_branches_of_a_tree_are_lists_of_steps(tmp_path: Path) -> None:
    tree = {"prompt": "?", "completions": [["a, ", "b"], ["a, ", "c, ", "d"]], "scores": [1, 0]}
    (row,) = File(path=write(tmp_path / "rows.jsonl", [tree])).rankings()
    assert row.completions == ("a, b", "a, c, d")
    assert row.steps == (("a, ", "b"), ("a, ", "c, ", "d"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"completions": ["2"]}, "'completions' must be a list of two or more, not ['2']"),
    ({"completions": "2"}, "must be a list of two or more"),
    ({"completions": None}, "neither 'completions' nor 'completion_images'"),
    ({"completions": ["2", "", "4"]}, "completions[1]: 'completion' is empty"),
    ({"completions": ["2", 3, "4"]}, "completions[1]: 'completion' must be text, not 3"),
    ({"completions": ["2", "4", "2"]}, "completions[2] is completions[0] again"),
    ({"completions": [["2"], "3", ["4"]]}, "completions[1] must be a list of steps"),
    ({"completions": [["2"], [], ["4"]]}, "completions[1] must be a list of steps"),
    ({"scores": [1, 0]}, "'scores' must be a list of 3 numbers"),
    ({"scores": None}, "'scores' is missing or null, for 3 completions"),
    ({"scores": [1, None, 0]}, "scores[1] must be a finite number, not None"),
    ({"scores": [1, True, 0]}, "scores[1] must be a finite number, not True"),
    ({"completions": None, "completion_images": ["a.png", "gone.png"]}, "'a.png' does not exist"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_list_is_named_or_skipped_and_counted(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    scores = {"scores": [1, 0]} if "completion_images" in change else {}
    path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, **scores, **change}])
    with pytest.raises(ValueError) as caught:
        File(path=path).rankings()
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    found = File(path=path, on_error="skip").rankings()
    assert len(found) == 1 and sum(found.dropped.values()) == 1


def test_lists_without_an_order_are_dropped_and_counted(tmp_path: Path) -> None:
    tied = {**GOOD, "scores": [2, 2, 2]}
    found = File(path=write(tmp_path / "rows.jsonl", [GOOD, tied])).rankings()
    assert len(found) == 1 and found.dropped == {"equal scores": 1}


def test_several_files_of_lists(tmp_path: Path) -> None:
    file = File(path=write(tmp_path / "rows.jsonl", [GOOD]))
    both = Several(parts=(file, TinyWorld(task="arithmetic", size=2))).rankings()
    assert len(both) == 3 and both[0].completions == ("2", "3", "4")


@pytest.mark.parametrize("task", ["arithmetic", "draw"])
def test_lists_of_the_tiny_world(task: Any) -> None:
    """Up to four different outputs, of which one is right (score 1) and the others are not."""
    data = TinyWorld(task=task, size=12, seed=3)
    lists = data.rankings()
    assert [one.scores for one in lists] == [one.scores for one in data.rankings()]
    assert max(len(one.scores) for one in lists) == 4
    for one in lists:
        assert len(one.completions) == len(one.scores) >= 2
        assert sorted(one.scores)[-1] == 1.0 and sorted(one.scores)[-2] < 1.0
    assert len({score for one in lists for score in one.scores}) > 2
    assert len({one.scores.index(1.0) for one in lists}) > 1
