"""The exact expert: corrected answers are exact, and no more is changed than has to be."""

from __future__ import annotations

import pytest

from mmalign.experts import Draft, Sentence
from mmalign.rng import python_random
from mmalign.tinyworld.expert import TinyWorldExpert
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.tinyworld.language import caption
from mmalign.tinyworld.scenes import Object, Scene, perturb, random_scene, to_dict
from mmalign.types import Prompt
from mmalign.vision.opa.revising import SpanWeights, revised

SCENE = Scene(
    objects=(
        Object(shape="circle", colour="red", size="small", place="top left"),
        Object(shape="square", colour="blue", size="large", place="bottom left"),
    )
)
RIGHT = "a small red circle at the top left and a large blue square at the bottom left"


def draft(answer: str, scene: Scene = SCENE) -> Draft:
    prompt = Prompt(content="describe", meta={"task": "describe", "scene": to_dict(scene)})
    return Draft(row=0, prompt=prompt, truth=caption(scene), answer=answer)


def report(answer: str, scene: Scene = SCENE) -> tuple[Sentence, ...]:
    (verdict,) = TinyWorldExpert().revise([draft(answer, scene)])
    assert verdict.report is not None
    return verdict.report.sentences


def corrected(answer: str, scene: Scene = SCENE) -> str:
    (verdict,) = TinyWorldExpert().revise([draft(answer, scene)])
    assert verdict.report is not None
    return revised(answer, verdict.report, SpanWeights()).text


def test_what_is_right_is_left_alone() -> None:
    assert caption(SCENE) == RIGHT
    assert [s.score for s in report(RIGHT)] == [4, 4]
    assert corrected(RIGHT) == RIGHT


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        # The colour; size and shape; nothing but the place.
        (RIGHT.replace("red", "green"), [3, 4]),
        (RIGHT.replace("large blue square", "small blue circle"), [4, 2]),
        (RIGHT.replace("large blue square", "small green circle"), [4, 1]),
    ],
)
def test_wrong_attributes_are_put_right(answer: str, scores: list[int]) -> None:
    found = report(answer)
    assert [s.score for s in found] == scores
    assert {s.error for s in found if s.score < 4} == {"image_recognition_error"}
    assert corrected(answer) == RIGHT


def test_a_phrase_too_many_is_removed() -> None:
    """With the word that joined it: nothing may end in "and"."""
    answer = f"{RIGHT} and a small green circle at the top right"
    assert [s.score for s in report(answer)] == [4, 3, 1]
    assert corrected(answer) == RIGHT


def test_an_object_left_out_is_added() -> None:
    first = "a small red circle at the top left"
    found = report(first)
    assert [s.copied for s in found] == [first, None]
    assert corrected(first) == RIGHT
    assert corrected("the the the") == RIGHT


def test_every_corrected_description_is_exact() -> None:
    """200 descriptions of scenes changed in one to three ways: the judge gives each a 1."""
    draw = python_random("expert")
    prompts, texts = [], []
    for _ in range(200):
        scene = random_scene(draw)
        shown = scene
        for _ in range(draw.randint(1, 3)):
            shown = perturb(shown, draw)
        answer = caption(shown)
        texts.append(corrected(answer, scene))
        prompts.append(Prompt(content="", meta={"scene": to_dict(scene)}))
        if shown == scene:
            assert texts[-1] == answer
    assert DescriptionJudge()(prompts, texts).tolist() == [1.0] * 200


def test_short_answers() -> None:
    prompt = Prompt(content="what colour ?", meta={"task": "vqa", "answer": "red"})
    drafts = [
        Draft(row=i, prompt=prompt, truth="red", answer=a) for i, a in enumerate(["red", "no"])
    ]
    right, wrong = (v.report.sentences[0] for v in TinyWorldExpert().revise(drafts) if v.report)
    assert (right.score, right.rewritten) == (4, "red")
    assert (wrong.score, wrong.rewritten) == (2, "red")


def test_other_prompts_are_refused() -> None:
    prompt = Prompt(content="1 + 1", meta={"task": "arithmetic"})
    with pytest.raises(ValueError, match=r"row 3.*arithmetic"):
        TinyWorldExpert().revise([Draft(row=3, prompt=prompt, truth="2", answer="3")])
