"""AMBER: its marking of nouns, its arithmetic, its files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mmalign.evaluation import Z95
from mmalign.vision.benchmarks.amber import AMBER
from mmalign.vision.benchmarks.amber_scores import (
    Lexicon,
    Marked,
    discriminative,
    generative,
    marked,
    percent,
)
from mmalign.vision.benchmarks.words import never_similar, nltk_nouns, plain_nouns, similar_in
from tests.vision.benchmarks.files import ids, values, write_json

RELATION: Mapping[str, Sequence[str]] = {
    "person": ["people", "man"],
    "grass": ["ground"],
    "dog": [],
    "ship": ["boat"],
    "boat": ["ship"],
    "cloud": ["sky"],
    "tree": ["bush"],
    "orange": [],
}


def lexicon(*, similar: Collection[frozenset[str]] = ()) -> Lexicon:
    def near(first: str, second: str) -> bool:
        return first == second or frozenset((first, second)) in similar

    return Lexicon(
        relation=RELATION,
        safe={"orange"},
        similar=near if similar else never_similar,
    )


def mark(nouns: str, truth: str, likely: str = "", **options: Any) -> Marked:
    return marked(nouns.split(), truth.split(), likely.split(), lexicon(**options))


def test_known_words() -> None:
    assert lexicon().known == set(RELATION) | {w for words in RELATION.values() for w in words}


def test_marking() -> None:
    """dog is there; man stands for person; orange is safe; tree is not there and not likely; sky
    stands for the likely cloud, so it is hallucinated and counts as likely.
    """
    found = mark("dog man orange tree sky dog", "person dog grass", "cloud ship")
    assert found.nouns == ("dog", "man", "orange", "tree", "sky", "dog")
    assert found.hallucinated == ("tree", "sky")
    assert (found.covered, found.truth) == ({0, 1}, 3)
    assert (found.hit, found.likely) == ({0}, 2)


def test_the_first_name_covers() -> None:
    """Words that stand for objects come before the objects: "ship" stands for boat, the second
    object, before it names ship, the first; and of an object listed twice only one is covered.
    """
    assert mark("ship", "ship boat").covered == {1}
    assert mark("dog", "dog dog").covered == {0}


def test_near_synonyms() -> None:
    """bush is near cloud: likely and covered alike, so not hallucinated.

    With grass true and near to tree, tree is right; the likely dog is near to nothing named.
    """
    near = {frozenset(("bush", "cloud"))}
    found = mark("bush", "cloud", "cloud dog", similar=near)
    assert (found.covered, found.hit, found.hallucinated) == ({0}, {0}, ())
    near = {frozenset(("tree", "grass"))}
    found = mark("tree", "person grass", "dog", similar=near)
    assert (found.covered, found.hit, found.hallucinated) == ({1}, frozenset(), ())
    assert mark("tree", "person grass", "dog").hallucinated == ("tree",)


def test_generative_arithmetic() -> None:
    """Two descriptions of five nouns, one hallucinated noun in the first, which is likely.

    CHAIR 100 x 1 / 10.001 (10.0 to a tenth), Cover 100 x (2 + 3) / (4 + 4 + 0.001) (62.5),
    Hal 100 - 100 x 1 / 2.001 (50.0), Cog 100 x 1 / (5 + 5 + 0.001) (10.0).
    """
    five = ("a", "b", "c", "d", "e")
    one = Marked(
        nouns=five,
        hallucinated=("e",),
        covered=frozenset({0, 1}),
        truth=4,
        hit=frozenset({3}),
        likely=5,
    )
    two = Marked(
        nouns=five,
        hallucinated=(),
        covered=frozenset({0, 1, 3}),
        truth=4,
        hit=frozenset(),
        likely=5,
    )
    found = generative([one, two])
    assert found == pytest.approx(
        {
            "CHAIR": 100 / 10.001,
            "Cover": 500 / 8.001,
            "Hal": 100 - 100 / 2.001,
            "Cog": 100 / 10.001,
        }
    )
    assert {k: round(v, 1) for k, v in found.items()} == {
        "CHAIR": 10.0,
        "Cover": 62.5,
        "Hal": 50.0,
        "Cog": 10.0,
    }


def test_discriminative_arithmetic() -> None:
    """Of five, no is said thrice, twice rightly; it is true of three; one answer is neither.

    Accuracy 3/5, precision 2/3, recall 2/3, F1 2 (4/9) / (4/3 + e) = 2/3, all but for the 0.001 and
    the e. (The neither is of a "yes", hence wrong.)
    """
    said = ["no", "no", "no", "yes", ""]
    truth = ["no", "no", "yes", "no", "yes"]
    found = discriminative(said, truth)
    p = 2 / 3.001
    assert found == pytest.approx(
        {
            "Accuracy": 100 * 2 / 5.001,
            "Precision": 100 * p,
            "Recall": 100 * p,
            "F1": 100 * 2 * p * p / (2 * p + 0.0001),
        }
    )
    existence = discriminative(said, truth, existence=True)
    assert existence["F1"] == pytest.approx(100 * 2 * p * p / (2 * p + 0.001))
    never = discriminative(["yes"], ["yes"])
    assert (never["F1"], never["Precision"]) == (0.0, 0.0)
    assert percent(0, 0) == 0.0


def test_plain_nouns() -> None:
    """Words of the list as they are, others in the singular; marks part, hyphens join."""
    known = {"man", "bus", "glass", "people", "skis", "dog"}
    text = "Two men, a BUS; people on skis. The dogs' glasses and a man-dog."
    assert plain_nouns(text, known) == ["man", "bus", "people", "skis", "dog", "glass"]
    assert plain_nouns("", known) == []


# ---- the benchmark ---------------------------------------------------------------------------

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cloud", "ship"]},
    {"id": 2, "type": "generative", "truth": ["person", "tree"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 4, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 5, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 6, "type": "relation", "truth": "no"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
]
ANSWERS = [
    "Two dogs on the ground below a sky.",
    "People under a bush.",
    "Yes",
    "No",
    "Yes",
    "no.",
    "Yes",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_json(folder / "annotations.json", ANNOTATIONS)
    write_json(folder / "relation.json", RELATION)
    (folder / "safe_words.txt").write_text("orange\nlight")
    query = [
        {"id": row["id"], "image": f"AMBER_{row['id']}.jpg", "query": f"query {row['id']}"}
        for row in ANNOTATIONS
    ]
    write_json(folder / "query" / "query_all.json", query)
    write_json(folder / "query" / "query_generative.json", query[:2])
    return folder


def plain(data: Path, **changes: Any) -> AMBER:
    settings: dict[str, Any] = {"nouns": "plain", "similarity": None}
    return AMBER(data=str(data), **{**settings, **changes})


def test_report(data: Path) -> None:
    """First description: nouns dog, ground, sky; sky (the likely cloud) is hallucinated; dog and
    grass are covered, 2 of 2. Second: people, bush: person and tree, 2 of 2. So CHAIR 1/5, Cover
    4/4, Hal 1/2, Cog 1/(2 + 1).

    Questions: right are 3, 4 and 7; "no." is neither, and wrong. Accuracy 3/5; no was said once,
    rightly, and is true of three: precision 1, recall 1/3.
    """
    amber = plain(data)
    items = amber.questions()
    report = amber.measure(items, ANSWERS)
    found = values(report)
    wanted = {
        "CHAIR": 100 / 5.001,
        "Cover": 400 / 4.001,
        "Hal": 100 - 100 / 2.001,
        "Cog": 100 / 3.001,
        "Accuracy": 300 / 5.001,
        "Precision": 100 / 1.001,
        "Recall": 100 / 3.001,
    }
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    # The sample deviation of 100 and 0 is sqrt(5000); half of the interval 1.96 sqrt(5000 / 2).
    assert report.metrics["Hal"].half_width == pytest.approx(Z95 * 50)
    assert report.metrics["Accuracy"].half_width == pytest.approx(
        Z95 * math.sqrt(100**2 * (0.6 * 0.4) / 4)
    )
    assert sorted(report.categories) == [
        "attribute",
        "attribute: number",
        "attribute: state",
        "existence",
        "relation",
    ]
    assert values(report, "attribute")["Accuracy"] == pytest.approx(200 / 2.001)
    assert values(report, "relation")["Accuracy"] == pytest.approx(100 / 2.001)
    assert values(report, "existence")["Recall"] == 0.0
    assert report.counts == {
        "descriptions without a known noun": 0,
        "answers that are neither Yes nor No": 1,
        "empty answers": 0,
    }
    assert report.rows[0]["hallucinated"] == ["sky"] and report.rows[0]["likely"] == ["cloud"]
    assert report.rows[1]["covered"] == ["person", "tree"]
    assert [row["said"] for row in report.rows[2:]] == ["yes", "no", "yes", "", "yes"]


def test_first_word_reading(data: Path) -> None:
    amber = plain(data, reading="first_word")
    report = amber.measure(amber.questions(), [*ANSWERS[:5], "no, not at all.", "Noise"])
    assert [row["said"] for row in report.rows[2:]] == ["yes", "no", "yes", "no", ""]


def test_one_task_alone(data: Path) -> None:
    amber = plain(data, query="query_generative.json", instruction=" Answer Yes or No.")
    items = amber.questions()
    assert [item.text for item in items] == ["query 1", "query 2"]
    report = amber.measure(items, ["", "a tree"])
    assert sorted(values(report)) == ["CHAIR", "Cog", "Cover", "Hal"]
    assert report.counts["empty answers"] == 1
    assert report.counts["descriptions without a known noun"] == 1
    assert plain(data, instruction=" Yes or No?").questions()[2].text == "query 3 Yes or No?"


def test_answers(data: Path, tmp_path: Path) -> None:
    amber = plain(data)
    items = amber.questions()
    assert ids(items) == [str(i) for i in range(1, 8)]
    path = amber.write_answers(tmp_path / "out", items, ANSWERS)
    assert json.loads(path.read_text())[0] == {"id": 1, "response": ANSWERS[0]}
    assert amber.read_answers(path, items) == ANSWERS
    short = Path(write_json(tmp_path / "short.json", [{"id": 9, "response": "x"}]))
    with pytest.raises(ValueError, match="of no question of the benchmark: 9"):
        amber.read_answers(short, items)


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        (
            "annotations.json",
            [{"id": 1, "type": "x", "truth": "no"}],
            "1: 'type' must be one of",
        ),
        (
            "annotations.json",
            [{"id": 1, "type": "generative", "truth": []}],
            "1: lacks 'hallu'",
        ),
        ("annotations.json", [{"id": 1, "type": "relation", "truth": "No"}], "not 'No'"),
        ("annotations.json", ANNOTATIONS[:6], r"query_all.json, row 7: .* holds no id 7"),
    ],
)
def test_wrong_files(data: Path, file: str, value: Any, said: str) -> None:
    write_json(data / file, value)
    with pytest.raises(ValueError, match=said):
        plain(data).questions()


def test_objects_outside_the_lexicon(data: Path) -> None:
    write_json(data / "relation.json", {"dog": []})
    amber = plain(data)
    with pytest.raises(ValueError, match=r"relation.json lacks 'grass', an object of id 1"):
        amber.measure(amber.questions(), ANSWERS)


@pytest.mark.skipif(find_spec("nltk") is not None, reason="nltk is installed")
def test_nltk_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"pip install nltk.*or set nouns: plain"):
        nltk_nouns("a dog", {"dog"})


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spacy is installed")
def test_spacy_is_asked_for(data: Path) -> None:
    with pytest.raises(ValueError, match=r"spacy download no_such_model; or set similarity: null"):
        similar_in("no_such_model", above=0.8)
    amber = plain(data, similarity="en_core_web_lg")
    with pytest.raises(ValueError, match="similarity: null"):
        amber.measure(amber.questions(), ANSWERS)
