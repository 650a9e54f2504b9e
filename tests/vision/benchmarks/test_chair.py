"""CHAIR: its reading of captions, its arithmetic, COCO's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmalign.endpoint import Question
from mmalign.vision.benchmarks.chair import CHAIR, listed
from mmalign.vision.benchmarks.objects import OWN, Vocabulary
from tests.vision.benchmarks.files import ids, values, write_json, write_lines

SYNONYMS = """\
person, man, people
dog, puppy
bird
cat
chair, seat
toilet
frisbee
hot dog
wine glass
sports ball, ball
tie, bow, bow tie
train
bus
airplane, jet
"""


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    path = tmp_path / "synonyms.txt"
    path.write_text(SYNONYMS)
    return path


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two dogs and a puppy.", [("dog", "dog"), ("puppy", "dog")]),
        ("A man eats hot dogs", [("man", "person"), ("hot dog", "hot dog")]),
        ("It is hot. Dog lies down", [("dog", "dog")]),  # marks part a pair
        ("wine glasses on a bus", [("wine glass", "wine glass"), ("bus", "bus")]),
        ("a baby bird", [("bird", "bird")]),
        ("a passenger jet, a passenger train", [("jet", "airplane"), ("train", "train")]),
        ("a train track", []),
        ("a sports ball, two sports balls", [("sports ball", "sports ball")] * 2),
        ("a bow tie", [("tie", "tie")]),
        ("the seat of the toilet", [("toilet", "toilet")]),
        ("a toilet seat", [("toilet", "toilet")]),
        ("a seat", [("seat", "chair")]),
        ("PEOPLE", [("people", "person")]),
        ("", []),
    ],
)
def test_mentions(synonyms: Path, caption: str, named: list[tuple[str, str]]) -> None:
    assert Vocabulary.read(synonyms).mentions(caption) == named


def test_our_own_list() -> None:
    """The 80 classes of COCO, each word in one class; a plural of each is read."""
    vocabulary = Vocabulary.read(OWN)
    assert len(set(vocabulary.classes.values())) == 80
    words = [word for line in OWN.read_text().splitlines() for word in line.split(", ")]
    assert len(words) == len(set(words))
    text = "Three buses, knives, skis, scissors, mice, teddy bears and children with donuts"
    named = [name for _, name in vocabulary.mentions(text)]
    assert named == ["bus", "knife", "skis", "scissors", "mouse", "teddy bear", "person", "donut"]


# ---- the benchmark ---------------------------------------------------------------------------

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
INSTANCES = {
    "images": [{"id": 7}, {"id": 8}, {"id": 9}],
    "categories": CATEGORIES,
    "annotations": [
        {"image_id": 7, "category_id": 18},
        {"image_id": 7, "category_id": 18},
        {"image_id": 8, "category_id": 1},
        {"image_id": 9, "category_id": 17},
        {"image_id": 99, "category_id": 17},
    ],
}
REFERENCES = {"annotations": [{"image_id": 8, "caption": "Somebody rides a bus"}]}
ANSWERS = ["A dog, a dog and a frisbee", "People on a bus.", "Nothing to see"]


@pytest.fixture
def files(tmp_path: Path, synonyms: Path) -> dict[str, Any]:
    return {
        "questions_file": write_lines(
            tmp_path / "questions.jsonl",
            [{"image_id": 7}, {"image_id": "8", "question": "What?"}, {"image_id": 9}],
        ),
        "instances": (write_json(tmp_path / "instances.json", INSTANCES),),
        "captions": (write_json(tmp_path / "captions.json", REFERENCES),),
        "synonyms": str(synonyms),
    }


def test_report(files: dict[str, Any]) -> None:
    """True are {dog}, {person, bus} (the bus by the reference caption), {cat}.

    Captions: dog, dog, frisbee (invented); people, bus; nothing. CHAIRs 1/3, of the two that name
    anything 1/2; CHAIRi 1/5; recall (1 + 2 + 0) / (1 + 2 + 1) = 3/4; words (7 + 4 + 3) / 3.
    """
    chair = CHAIR(**files)
    items = chair.questions()
    report = chair.measure(items, ANSWERS)
    assert values(report) == pytest.approx(
        {
            "chair_s": 1 / 3,
            "chair_s_refined": 1 / 2,
            "chair_i": 1 / 5,
            "recall": 3 / 4,
            "words_per_caption": 14 / 3,
        }
    )
    assert report.rows[0]["hallucinated"] == ["frisbee"]
    assert report.rows[1]["covered"] == ["bus", "person"]
    assert report.counts["captions that name no object"] == 1
    assert report.metrics["chair_s"].half_width is not None
    assert report.metrics["chair_i"].half_width is None


@pytest.mark.parametrize(("mentions", "wanted"), [("all", 1 / 3), ("unique", 1 / 2)])
def test_repeated_words(files: dict[str, Any], mentions: str, wanted: float) -> None:
    """dog, dog, frisbee with one invented: 1/3 of the mentions, 1/2 of the words."""
    chair = CHAIR(**{**files, "mentions": mentions})
    items = chair.questions()[:1]
    assert values(chair.measure(items, ANSWERS[:1]))["chair_i"] == pytest.approx(wanted)


def test_nothing_named(files: dict[str, Any]) -> None:
    chair = CHAIR(**files)
    report = chair.measure(chair.questions(), ["", "", ""])
    assert values(report) == {
        "chair_s": 0.0,
        "chair_s_refined": None,
        "chair_i": None,
        "recall": 0.0,
        "words_per_caption": 1.0,
    }
    assert report.counts["empty captions"] == 3


def test_questions(files: dict[str, Any]) -> None:
    first, second, _ = items = CHAIR(**files, question="Describe.").questions()
    assert ids(items) == ["7", "8", "9"]
    assert (first.text, second.text) == ("Describe.", "What?")
    assert first.images[0].name == "COCO_val2014_000000000007.jpg"  # type: ignore[union-attr]


# ---- a model that lists objects ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Replies in turn, and what was asked."""

    replies: tuple[str, ...]
    asked: list[str]

    def ask(self, questions: Sequence[Question]) -> list[str]:
        self.asked.extend(question.text for question in questions)
        return list(self.replies)


def test_extractor(files: dict[str, Any]) -> None:
    """Short answers name nothing and are not asked about; an unreadable reply is left out."""
    model = Listing(replies=('Sure!\n["dogs", "cat"]', "no list"), asked=[])
    chair = CHAIR(**{**files, "extractor": model, "mentions": "unique"})
    answers = ["Some animals play here", "I would say {a} bus", "A dog"]
    report = chair.measure(chair.questions(), answers)
    assert len(model.asked) == 2
    assert "Question: What?" in model.asked[1] and "Answer: I would say {a} bus" in model.asked[1]
    assert [row["id"] for row in report.rows] == ["7", "9"]
    assert report.rows[0]["mentions"] == ["dog", "cat"]
    assert report.rows[1]["mentions"] == []
    assert values(report)["chair_s"] == 0.5
    assert report.counts["captions whose objects could not be read, left out"] == 1


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ('["a b", "c"]', "a b . c"),
        ("[]", ""),
        ('```json\n["x"]\n```', "x"),
        ("none", None),
        ('{"a": 1}', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_listed(reply: str, text: str | None) -> None:
    assert listed(reply) == text


# ---- answers and files -------------------------------------------------------------------------


def test_answers(files: dict[str, Any], tmp_path: Path) -> None:
    chair = CHAIR(**files)
    items = chair.questions()
    path = chair.write_answers(tmp_path / "out", items, ANSWERS)
    assert json.loads(path.read_text().splitlines()[0])["image_id"] == 7
    assert chair.read_answers(path, items) == ANSWERS
    rows = [
        {"image_id": n, "caption": a} for n, a in zip((9, 8, 7), reversed(ANSWERS), strict=True)
    ]
    listed_ = Path(write_json(tmp_path / "list.json", rows))
    assert chair.read_answers(listed_, items) == ANSWERS
    own = {"overall": {}, "imgToEval": {str(i): row for i, row in enumerate(rows)}}
    path = Path(write_json(tmp_path / "own.json", own))
    assert chair.read_answers(path, items) == ANSWERS
    own["imgToEval"]["1"] = {**rows[1], "image_id": 10}
    write_json(path, own)
    with pytest.raises(ValueError, match="captions of no question of the benchmark: 10"):
        chair.read_answers(path, items)
    del own["imgToEval"]["1"]
    write_json(path, own)
    with pytest.raises(ValueError, match="no caption for: 8"):
        chair.read_answers(path, items)
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="'imgToEval'; there are \\['x'\\]"):
        chair.read_answers(path, items)


def test_pictures_that_coco_does_not_hold(files: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "instances.json", {**INSTANCES, "images": [{"id": 8}]})
    chair = CHAIR(**files)
    with pytest.raises(ValueError, match=r"instances.json: no picture: 7, 9"):
        chair.measure(chair.questions(), ANSWERS)


def test_classes_that_the_synonyms_lack(files: dict[str, Any], tmp_path: Path) -> None:
    categories = [*CATEGORIES, {"id": 80, "name": "toaster"}]
    write_json(tmp_path / "instances.json", {**INSTANCES, "categories": categories})
    chair = CHAIR(**files)
    with pytest.raises(ValueError, match=r"classes that the synonyms lack: toaster"):
        chair.measure(chair.questions(), ANSWERS)


def test_wrong_files(files: dict[str, Any], tmp_path: Path) -> None:
    chair = CHAIR(**{**files, "instances": files["captions"]})
    with pytest.raises(ValueError, match=r"captions.json .* lacks categories, images"):
        chair.measure(chair.questions(), ANSWERS)
    write_lines(tmp_path / "questions.jsonl", [{"image_id": "x"}])
    with pytest.raises(ValueError, match=r"questions.jsonl:1: 'image_id' must be COCO's number"):
        CHAIR(**files).questions()
    write_lines(tmp_path / "questions.jsonl", [{"image_id": 7}, {"image_id": 7}])
    with pytest.raises(ValueError, match="the id of more than one question: 7"):
        CHAIR(**files).questions()
    with pytest.raises(ValueError, match="there is no list of synonyms"):
        Vocabulary.read(tmp_path / "none.txt")
