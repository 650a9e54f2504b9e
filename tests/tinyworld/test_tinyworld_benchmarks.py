"""The tiny world's benchmarks: what they ask, their arithmetic, and the shipped model on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmalign import config
from mmalign.benchmarks import AnswerDrawing, Benchmark, Item
from mmalign.commands.benchmarking import examine
from mmalign.policy import Policy
from mmalign.tinyworld.benchmarks import (
    NEGATIVES,
    TinyWorldCHAIR,
    TinyWorldMultiImage,
    TinyWorldPOPE,
    likeness,
    target,
    things,
)
from mmalign.tinyworld.data import TaskJudge
from mmalign.tinyworld.language import caption
from mmalign.tinyworld.scenes import Object, Scene, from_dict, to_dict
from mmalign.types import Prompt
from mmalign.vision import LVLMPolicy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return LVLMPolicy().load()


def thing(item: Item) -> tuple[str, str]:
    _, _, _, colour, shape, _ = item.text.split()
    return colour, shape


def scene_of(item: Item) -> Scene:
    return from_dict(item.meta["scenes"][0])


# ---- POPE ------------------------------------------------------------------------------------


def test_pope_questions() -> None:
    """Balanced, true to the scene, held out, and the same each time."""
    pope = TinyWorldPOPE(pictures=40, questions_per_picture=4)
    items = pope.questions()
    assert [i.id for i in items] == [i.id for i in pope.questions()]
    assert len({item.id for item in items}) == len(items)
    for item in items:
        present = thing(item) in things(scene_of(item))
        assert item.meta["yes"] == present == (item.meta["answer"] == "yes")
    counted = Counter((item.meta["category"], item.meta["yes"]) for item in items)
    assert {kind for kind, _ in counted} == set(NEGATIVES)
    assert all(counted[kind, True] == counted[kind, False] for kind in NEGATIVES)
    assert len({(item.text, item.id.rpartition("-")[0]) for item in items}) == len(items)


def test_pope_negatives() -> None:
    """Popular ones are the absent things most frequent in all pictures; adversarial ones have as
    much in common with the picture as any absent thing has.
    """
    items = TinyWorldPOPE(pictures=60).questions()
    scenes = {item.id.split("-")[1]: scene_of(item) for item in items}
    frequency = Counter(t for scene in scenes.values() for t in things(scene))
    every = {(c, s) for c in ("red", "green", "blue", "yellow") for s in ("circle", "square")}
    every |= {(c, "triangle") for c, _ in every}
    for item in items:
        if item.meta["yes"]:
            continue
        present = things(scene_of(item))
        absent = every - present
        if item.meta["category"] == "popular":
            assert frequency[thing(item)] == max(frequency[t] for t in absent)
        if item.meta["category"] == "adversarial":
            found = likeness(thing(item), sorted(present))
            assert found == max(likeness(t, sorted(present)) for t in absent)


def test_likeness() -> None:
    present = [("red", "circle"), ("blue", "square")]
    asked = [("red", "square"), ("red", "triangle"), ("green", "circle"), ("green", "triangle")]
    assert [likeness(one, present) for one in asked] == [2, 1, 1, 0]


def test_pope_of_right_and_constant_answers() -> None:
    """Right answers score 1. "yes" throughout: accuracy 1/2, recall 1, precision 1/2, F1 2/3."""
    pope = TinyWorldPOPE(pictures=10)
    items = pope.questions()
    right = pope.measure(items, [item.meta["answer"] for item in items])
    numbers = {name: found.value for name, found in right.metrics.items()}
    assert numbers == {"accuracy": 1, "f1": 1, "precision": 1, "recall": 1, "yes_ratio": 0.5}
    always = pope.measure(items, ["yes"] * len(items))
    numbers = {name: found.value for name, found in always.metrics.items()}
    assert numbers == pytest.approx(
        {"accuracy": 0.5, "f1": 2 / 3, "precision": 0.5, "recall": 1, "yes_ratio": 1}
    )


# ---- CHAIR -----------------------------------------------------------------------------------

ONE = Object(shape="circle", colour="red", size="small", place="top left")
TWO = Object(shape="square", colour="blue", size="large", place="top right")


def item(*objects: Object) -> Item:
    return Item(
        id="0", text="describe the picture", meta={"scene": to_dict(Scene(objects=objects))}
    )


@pytest.mark.parametrize(("grade", "hallucinated"), [("kind", 1), ("size", 1), ("full", 2)])
def test_chair_arithmetic(grade: Any, hallucinated: int) -> None:
    """The scene: a small red circle at the top left, a large blue square at the top right.

    Said: "a small red circle at the bottom left and a green triangle": the triangle is invented; of
    the circle only the place is wrong. Named 2, there 2, covered 1. The second answer says nothing
    of its one object. So: hallucinated h, 0: mean h / 2; CHAIRs 1/2; CHAIRi h / 2; recall 1 / 3.
    """
    chair = TinyWorldCHAIR(grade=grade)
    said = "a small red circle at the bottom left and a green triangle"
    report = chair.measure([item(ONE, TWO), item(ONE)], [said, ""])
    assert {name: found.value for name, found in report.metrics.items()} == pytest.approx(
        {
            "hallucinated_per_description": hallucinated / 2,
            "chair_s": 1 / 2,
            "chair_i": hallucinated / 2,
            "recall": 1 / 3,
            "objects_per_description": 1.0,
        }
    )
    assert report.counts == {"descriptions that name no object": 1, "empty answers": 1}


def test_chair_of_right_descriptions(tmp_path: Path) -> None:
    chair = TinyWorldCHAIR(pictures=20, grade="full")
    items = chair.questions()
    answers = [caption(from_dict(one.meta["scene"])) for one in items]
    report = chair.measure(items, answers)
    assert report.metrics["chair_i"].value == 0 and report.metrics["recall"].value == 1
    path = chair.write_answers(tmp_path, items, answers)
    assert chair.read_answers(path, items) == answers


# ---- several pictures ------------------------------------------------------------------------


def test_targets() -> None:
    def asked(kind: str, answer: str, text: str) -> int | None:
        return target(text, Prompt(content=text, meta={"kind": kind, "answer": answer}))

    assert asked("which", "picture two", "which picture has a red circle ?") == 1
    assert asked("exists_in", "no", "is there a red circle in picture three ?") == 2
    assert asked("count_all", "two", "how many circles are there in all pictures ?") is None


def test_multi_image_accuracy() -> None:
    benchmark = TinyWorldMultiImage(size=30)
    items = benchmark.questions()
    assert all(one.meta["target"] is None or one.meta["target"] < len(one.images) for one in items)
    right = [one.meta["answer"] for one in items]
    report = benchmark.measure(items, right)
    assert report.metrics["accuracy"].value == 1
    assert report.categories.keys() == {"which", "count_all", "exists_in"}
    wrong = benchmark.measure(items, ["nonsense", *right[1:]])
    assert wrong.metrics["accuracy"].value == pytest.approx(29 / 30)


# ---- the shipped model -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "benchmark",
    [
        TinyWorldPOPE(pictures=6),
        TinyWorldCHAIR(pictures=6),
        TinyWorldMultiImage(size=12),
        TinyWorldMultiImage(size=12, attention=False),
    ],
)
def test_shipped_model(policy: Policy, benchmark: Benchmark) -> None:
    """It answers better than chance, and its answers depend on no batch."""
    items = benchmark.questions()
    answers, report = examine(policy, benchmark, items, AnswerDrawing(batch_size=16))
    again, _ = examine(policy, benchmark, items[:3], AnswerDrawing(batch_size=2))
    assert again == answers[:3]
    assert len(report.rows) == len(items)
    headline = next(iter(report.metrics.values())).value
    assert headline is not None
    assert headline > 0.55 if not isinstance(benchmark, TinyWorldCHAIR) else headline < 1
    if isinstance(benchmark, TinyWorldMultiImage):
        assert ("attention_on_target" in report.metrics) == benchmark.attention
    if isinstance(benchmark, TinyWorldPOPE):
        prompts = [one.prompt() for one in items]
        judged = TaskJudge()(prompts, answers)
        assert float(judged.mean()) == pytest.approx(headline)


def test_drawn_descriptions_err(policy: Policy) -> None:
    """Drawn at temperature 1 the shipped model invents things, and the seed decides which."""
    chair = TinyWorldCHAIR(pictures=24, grade="full")
    items = chair.questions()
    first, report = examine(policy, chair, items, AnswerDrawing(temperature=1.0))
    again, _ = examine(policy, chair, items, AnswerDrawing(temperature=1.0, batch_size=5))
    other, _ = examine(policy, chair, items, AnswerDrawing(temperature=1.0, seed=1))
    last, _ = examine(policy, chair, items[-2:], AnswerDrawing(temperature=1.0))
    assert first == again != other
    assert last == first[-2:]
    invented = report.metrics["hallucinated_per_description"].value
    assert invented is not None and invented > 0


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("tinyworld_pope", "questions_per_picture=3", "even number above 0, not 3"),
        ("tinyworld_pope", "pictures=0", "at least 1"),
        ("tinyworld_chair", "pictures=0", "at least 1"),
        ("tinyworld_multi_image", "depth=2", "between 0 and 1"),
        ("tinyworld_chair", "grade=count", "'kind', 'size' or 'full'"),
    ],
)
def test_wrong_settings(name: str, setting: str, said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        config.load_benchmark(name, [setting])
