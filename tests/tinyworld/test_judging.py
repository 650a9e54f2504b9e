"""Judges on hand-made cases, and the law of the preference oracle."""

import math
import random

import pytest
import torch

from mmalign.tinyworld.judges import AnswerJudge, ArithmeticJudge, DescriptionJudge, ImageJudge
from mmalign.tinyworld.language import Mention
from mmalign.tinyworld.oracle import BradleyTerryOracle
from mmalign.tinyworld.render import render
from mmalign.tinyworld.requirements import Requirement, requirement_to_dict
from mmalign.tinyworld.scenes import Object, Scene, to_dict
from mmalign.types import Prompt

RED_CIRCLE = Object(shape="circle", colour="red", size="small", place="top left")
BLUE_SQUARE = Object(shape="square", colour="blue", size="large", place="bottom right")
PAIR = Scene(objects=(RED_CIRCLE, BLUE_SQUARE))
SAID_CIRCLE = "a small red circle at the top left"
SAID_SQUARE = "a large blue square at the bottom right"


def _scores(judge, meta: dict, outputs: list) -> list[float]:
    prompts = [Prompt(content="", meta=meta)] * len(outputs)
    scores = judge(prompts, outputs)
    assert scores.dtype == torch.float32 and scores.shape == (len(outputs),)
    return scores.tolist()


def test_arithmetic_judge() -> None:
    """Three parts: two steps and the answer; graded credit is right parts over parts."""
    outputs = [
        "3 + 4 = 7 , 7 - 2 = 5 , answer 5",
        "3 + 4 = 7 , 7 - 2 = 4 , answer 4",
        "answer 5",
        "3 + 4 = 7 , 7 - 2 = 5 , answer 5 , answer 5",
        "",
    ]
    meta = {"problem": "3 + 4 - 2"}
    assert _scores(ArithmeticJudge(), meta, outputs) == [1, 0, 0, 0, 0]
    graded = _scores(ArithmeticJudge(partial=True), meta, outputs)
    assert graded == pytest.approx([1, 1 / 3, 1 / 3, 3 / 4, 0])


def test_description_judge() -> None:
    """Correct over union: 2/2; 1/2; 1 correct of 2 + 2 - 1 = 3; a repeat makes 3 stated, 2/3."""
    outputs = [
        f"{SAID_CIRCLE} and {SAID_SQUARE}",
        SAID_CIRCLE,
        f"{SAID_CIRCLE} and a small blue square at the bottom right",
        f"{SAID_CIRCLE} , {SAID_CIRCLE} and {SAID_SQUARE}",
        "a red circle",
        "answer = ? 7",
        "",
    ]
    meta = {"scene": to_dict(PAIR)}
    scores = _scores(DescriptionJudge(), meta, outputs)
    assert scores == pytest.approx([1, 1 / 2, 1 / 3, 2 / 3, 0, 0, 0])
    assert _scores(DescriptionJudge(grade="kind"), meta, ["a red circle"]) == [0.5]
    assert _scores(DescriptionJudge(grade="count"), meta, ["two objects"]) == [1.0]
    with pytest.raises(ValueError, match="grade"):
        DescriptionJudge(grade="best")


def test_description_details() -> None:
    """The wrongly sized square is invented, yet its kind is covered; the triangle is invented."""
    text = (
        f"{SAID_CIRCLE} , a small blue square at the bottom right "
        "and a large green triangle at the top right"
    )
    found = DescriptionJudge().details([Prompt(content="", meta={"scene": to_dict(PAIR)})], [text])
    assert (found[0].stated, found[0].correct, found[0].hallucinated) == (3, 1, 2)
    assert (found[0].true, found[0].covered) == (2, 2)
    assert found[0].score == pytest.approx(1 / 4)


def test_answer_judge() -> None:
    outputs = ["top left", " top  left ", "left", "top left top left", ""]
    assert _scores(AnswerJudge(), {"answer": "top left"}, outputs) == [1, 1, 0, 0, 0]


def test_image_judge() -> None:
    """A red circle alone was asked for: the pair has one object too many, 2 * 1 / (1 + 2)."""
    asked = Requirement(category="colour", mentions=(Mention(shape="circle", colour="red"),))
    meta = {"requirement": requirement_to_dict(asked)}
    outputs = [render(Scene(objects=(RED_CIRCLE,))), render(PAIR)]
    assert _scores(ImageJudge(), meta, outputs) == [1, 0]
    assert _scores(ImageJudge(partial=True), meta, outputs) == pytest.approx([1, 2 / 3])


@pytest.mark.parametrize(
    ("judge", "key"),
    [
        (ArithmeticJudge(), "problem"),
        (DescriptionJudge(), "scene"),
        (AnswerJudge(), "answer"),
        (ImageJudge(), "requirement"),
    ],
)
def test_judges_name_the_missing_key(judge, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        judge([Prompt(content="")], [""])
    with pytest.raises(ValueError, match="one prompt an output"):
        judge([Prompt(content="")], [])


def test_judges_refuse_the_wrong_kind_of_output() -> None:
    with pytest.raises(ValueError, match="type str"):
        AnswerJudge()([Prompt(content="", meta={"answer": "yes"})], [render(PAIR)])


def _length(prompts, outputs) -> torch.Tensor:
    return torch.tensor([float(len(output)) for output in outputs])


def test_oracle_follows_bradley_terry_and_flips() -> None:
    """Scores 2 and 1 at temperature 0.5: sigmoid(2) = 0.881; with a fifth flipped, 0.729.

    Over 20000 draws the standard error is below 0.0036; the tolerance is four of them.
    """
    clean = 1 / (1 + math.exp(-2.0))
    for flip_rate in (0.0, 0.2):
        oracle = BradleyTerryOracle(judge=_length, temperature=0.5, flip_rate=flip_rate, seed=0)
        expected = clean * (1 - flip_rate) + (1 - clean) * flip_rate
        assert oracle.probability(2.0, 1.0) == pytest.approx(expected)
        made = oracle.label([Prompt(content="")] * 20000, ["aa"] * 20000, ["a"] * 20000)
        share = sum(item.chosen == "aa" for item in made) / len(made)
        assert share == pytest.approx(expected, abs=0.0144)
        assert {item.meta["score_chosen"] for item in made if item.chosen == "aa"} == {2.0}


def test_oracle_at_its_limits() -> None:
    cold = BradleyTerryOracle(judge=_length, temperature=0.0)
    assert all(cold.prefers(Prompt(content=""), "aa", "a") for _ in range(20))
    assert cold.probability(1.0, 1.0) == 0.5
    tiny = BradleyTerryOracle(judge=_length, temperature=1e-9)
    assert tiny.probability(0.0, 1e6) == 0.0
    with pytest.raises(ValueError, match="flip_rate"):
        BradleyTerryOracle(judge=_length, flip_rate=1.5)
    with pytest.raises(ValueError, match="temperature"):
        BradleyTerryOracle(judge=_length, temperature=-1.0)


def test_oracle_is_a_function_of_its_seed() -> None:
    def draws(seed: int | random.Random) -> list[bool]:
        oracle = BradleyTerryOracle(judge=_length, temperature=1.0, seed=seed)
        return [oracle.prefers(Prompt(content=""), "aa", "a") for _ in range(50)]

    assert draws(1) == draws(1) != draws(2)
    assert draws(random.Random(3)) == draws(random.Random(3))
