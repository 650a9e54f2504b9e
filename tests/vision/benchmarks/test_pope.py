"""POPE: its reading of answers, its arithmetic, its files and those of answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.benchmarks import Measured
from mmalign.evaluation import Z95
from mmalign.vision.benchmarks.pope import POPE
from mmalign.vision.benchmarks.yes_no import Confusion, mean_of_splits, pope_says_yes, undecided
from tests.vision.benchmarks.files import ids, values, write_lines


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("No.", False),
        ("There is not a dog. Yes", False),
        ("Yes. There is no cat", True),  # the second sentence is not read
        ("NO", True),  # case matters
        ("No!", True),  # only full stops and commas come off
        ("Nothing of the kind", True),
        ("I cannot tell", True),
        ("", True),
    ],
)
def test_published_reading(answer: str, yes: bool) -> None:
    assert pope_says_yes(answer) is yes


@pytest.mark.parametrize(
    ("answer", "open_"),
    [
        ("Yes", False),
        ("yes, a dog", False),
        ("No", False),
        ("NO", True),
        ("maybe", True),
        ("", True),
    ],
)
def test_undecided_answers(answer: str, open_: bool) -> None:
    assert undecided(answer) is open_


def test_arithmetic() -> None:
    """tp 3, fp 1, tn 4, fn 2 of 10.

    accuracy 7/10; precision 3/4; recall 3/5; F1 = 2 (3/4)(3/5) / (3/4 + 3/5) = (9/10) / (27/20)
    = 2/3; yes ratio 4/10. The interval of the accuracy: the variance of seven ones and three zeros
    is 10/9 x 0.7 x 0.3 = 7/30, so half of it is 1.959964 sqrt(7/300).
    """
    said = [True, True, True, True, False, False, False, False, False, False]
    true = [True, True, True, False, False, False, False, False, True, True]
    counted = Confusion.of(said, true)
    assert counted == Confusion(tp=3, fp=1, tn=4, fn=2)
    found = counted.metrics()
    assert {k: v.value for k, v in found.items()} == pytest.approx(
        {"accuracy": 0.7, "f1": 2 / 3, "precision": 0.75, "recall": 0.6, "yes_ratio": 0.4}
    )
    assert found["accuracy"].half_width == pytest.approx(Z95 * math.sqrt(7 / 300))


def test_what_would_divide_by_nothing_is_not_defined() -> None:
    """Never yes: no precision, and an F1 of 0 / 0; the rest stands."""
    found = Confusion.of([False, False], [True, False]).metrics()
    assert {k: v.value for k, v in found.items()} == {
        "accuracy": 0.5,
        "f1": None,
        "precision": None,
        "recall": 0.0,
        "yes_ratio": 0.0,
    }
    only_wrong = Confusion.of([True], [False]).metrics()
    assert only_wrong["precision"].value == 0.0
    assert only_wrong["f1"].value is None and only_wrong["recall"].value is None


def test_mean_over_splits() -> None:
    """Means 0.5 and 0.9, halves 0.3 and 0.4: 0.7, with half sqrt(0.09 + 0.16) / 2 = 0.25."""
    splits = [
        Measured(value=0.5, half_width=0.3, total=10),
        Measured(value=0.9, half_width=0.4, total=30),
    ]
    found = mean_of_splits(splits)
    assert (found.value, found.half_width, found.total) == (
        pytest.approx(0.7),
        pytest.approx(0.25),
        40,
    )
    assert mean_of_splits([*splits, Measured(value=None, total=0)]).value is None


def rows(labels: str, *, first: int = 0) -> list[dict[str, Any]]:
    """A question for each letter of ``labels``, y or n."""
    return [
        {
            "question_id": first + i,
            "image": f"{i}.png",
            "text": f"Is there a thing {i} in the image?",
            "label": "yes" if letter == "y" else "no",
        }
        for i, letter in enumerate(labels)
    ]


@pytest.fixture
def two(tmp_path: Path) -> POPE:
    """Two splits, whose ids repeat as in the published files, and which end in .json."""
    return POPE(
        files={
            "random": write_lines(tmp_path / "random.json", rows("yynn")),
            "popular": write_lines(tmp_path / "popular.json", rows("yn")),
        },
        images=str(tmp_path),
    )


def test_report(two: POPE) -> None:
    """random: yes no yes no against y y n n: tp 1 fn 1 fp 1 tn 1, all four numbers 1/2.

    popular: "maybe" counts as a yes: tp 1; "no": tn 1; all 1, yes ratio 1/2. Means 3/4, and 1/2.
    """
    items = two.questions()
    assert ids(items) == [f"random {i}" for i in range(4)] + ["popular 0", "popular 1"]
    report = two.measure(items, ["yes", "No", "Yes, it is", "no", "maybe", "no"])
    assert values(report, "random") == dict.fromkeys(
        ["accuracy", "f1", "precision", "recall", "yes_ratio"], 0.5
    )
    assert values(report) == {
        "accuracy": 0.75,
        "f1": 0.75,
        "precision": 0.75,
        "recall": 0.75,
        "yes_ratio": 0.5,
    }
    assert report.counts == {"undecided answers counted as yes": 1, "empty answers": 0}
    assert [row["said"] for row in report.rows] == ["yes", "no", "yes", "no", "yes", "no"]
    record = json.loads(json.dumps(report.record()))
    assert record["metrics"]["accuracy"]["low"] < 0.75 < record["metrics"]["accuracy"]["high"]
    assert "low" not in record["metrics"]["f1"]


def test_pictures_open_when_asked(two: POPE, tmp_path: Path) -> None:
    item = two.questions()[0]
    with pytest.raises(ValueError, match=r"question random 0: 0.png: .*does not exist"):
        item.prompt()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "0.png")
    prompt = item.prompt()
    assert [image.size for image in prompt.images] == [(3, 2)]
    (turn,) = prompt.content
    assert isinstance(turn, dict)
    assert turn["content"] == [
        {"type": "image"},
        {"type": "text", "text": "Is there a thing 0 in the image?"},
    ]


def test_pictures_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "out.png")
    row = {**rows("y")[0], "image": "../out.png"}
    path = write_lines(tmp_path / "q.jsonl", [row])
    (item,) = POPE(files={"x": path}, images=str(tmp_path / "in")).questions()
    with pytest.raises(ValueError, match="outside the image folder"):
        item.prompt()


def test_instruction(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", rows("y"))
    (item,) = POPE(files={"x": path}, instruction=" Answer yes or no.").questions()
    assert item.text == "Is there a thing 0 in the image? Answer yes or no."


# ---- answers ---------------------------------------------------------------------------------


def test_written_answers_are_read_back(two: POPE, tmp_path: Path) -> None:
    items = two.questions()
    answers = ["a", "b", "c", "d", "e", "f"]
    path = two.write_answers(tmp_path / "out", items, answers)
    assert path.name == "answers.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written[4] == {
        "question_id": 0,
        "category": "popular",
        "question": "Is there a thing 0 in the image?",
        "answer": "e",
    }
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(written)))
    assert two.read_answers(path, items) == answers


def test_published_answers_follow_the_questions(two: POPE, tmp_path: Path) -> None:
    """The published rows have no id: their order is all there is, and the question is compared."""
    items = two.questions()
    given = [
        {"question": item.meta["text"].lower(), "answer": str(i)} for i, item in enumerate(items)
    ]
    path = Path(write_lines(tmp_path / "a.jsonl", given))
    assert two.read_answers(path, items) == list("012345")
    write_lines(path, given[:5])
    with pytest.raises(ValueError, match="follow the 6 questions, and it has 5 rows"):
        two.read_answers(path, items)
    write_lines(path, [given[1], given[0], *given[2:]])
    with pytest.raises(ValueError, match=r"a.jsonl:1: answers 'is there a thing 1"):
        two.read_answers(path, items)


@pytest.mark.parametrize(
    ("ids_", "said"),
    [
        ([0, 1], r"a.jsonl: no answer for: 2, 3$"),
        ([0, 1, 2, 3, 7, 9], r"a.jsonl: answers of no question of the benchmark: 7, 9$"),
        ([0, 1, 2, 3, 1], r"a.jsonl:5: 1 was answered already, at .*a.jsonl:2$"),
    ],
)
def test_wrong_ids(tmp_path: Path, ids_: list[int], said: str) -> None:
    pope = POPE(files={"x": write_lines(tmp_path / "q.jsonl", rows("yyyy"))})
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"question_id": i, "text": "yes"} for i in ids_])
    with pytest.raises(ValueError, match=said):
        pope.read_answers(path, pope.questions())


def test_many_missing_answers_are_counted(tmp_path: Path) -> None:
    pope = POPE(files={"x": write_lines(tmp_path / "q.jsonl", rows("y" * 12))})
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"question_id": 11, "text": "yes"}])
    with pytest.raises(ValueError, match="no answer for: 0, 1, 2, 3, 4 and 6 more"):
        pope.read_answers(path, pope.questions())


def test_answers_of_several_files_name_theirs(two: POPE, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"question_id": 0, "text": "yes"}])
    with pytest.raises(ValueError, match="must name its category, one of random, popular"):
        two.read_answers(path, two.questions())


@pytest.mark.parametrize(
    ("row", "said"),
    [({"question_id": 0}, "lacks 'answer' or 'text'"), ({"question_id": 0, "text": 1}, "a string")],
)
def test_wrong_answers(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    pope = POPE(files={"x": write_lines(tmp_path / "q.jsonl", rows("y"))})
    path = tmp_path / "a.jsonl"
    write_lines(path, [row])
    with pytest.raises(ValueError, match=f"a.jsonl:1: .*{said}"):
        pope.read_answers(path, pope.questions())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "Yes"}, r"q.jsonl:1: 'label' must be yes or no, not 'Yes'"),
        ({"text": None}, r"q.jsonl:1: 'text' must be a string, not None"),
        ({"question_id": 1}, r"the id of more than one question: 1$"),
    ],
)
def test_wrong_questions(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    first, second = rows("yn")
    path = write_lines(tmp_path / "q.jsonl", [{**first, **change}, second])
    with pytest.raises(ValueError, match=said):
        POPE(files={"x": path}).questions()


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files is empty"):
        POPE(files={})
    with pytest.raises(ValueError, match="there is no file"):
        POPE(files={"x": str(tmp_path / "none.json")}).questions()
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(ValueError, match="holds no question"):
        POPE(files={"x": str(tmp_path / "empty.json")}).questions()
