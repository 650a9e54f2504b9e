"""The tiny world's reasoner: it reads pictures, answers every kind of question, and scores."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from mmalign.endpoint import Question
from mmalign.tinyworld.questions import SINGLE_KINDS
from mmalign.tinyworld.reasoner import Reasoner, answer_of, plan, score, seen
from mmalign.tinyworld.render import render
from mmalign.tinyworld.scenes import Object, Scene, from_dict
from mmalign.tinyworld.tasks import TASKS

SCENE = Scene(
    objects=(
        Object(shape="circle", colour="red", size="small", place="top left"),
        Object(shape="square", colour="blue", size="large", place="bottom right"),
    )
)


def test_every_kind_of_question_is_answered_right() -> None:
    """As the world that asked it answers it, from the scene and from the picture alike."""
    kinds = set()
    for prompt, right in TASKS["vqa"].demonstrations(size=150, seed=0):
        text = prompt.content[0]["content"][-1]["text"]  # type: ignore[index]
        kinds.add(prompt.meta["kind"])
        assert answer_of(text, from_dict(prompt.meta["scenes"][0])) == right
        assert answer_of(text, seen(prompt.images[0])) == right
    assert kinds == set(SINGLE_KINDS)


def test_what_is_not_there_and_what_is_not_asked() -> None:
    assert answer_of("what colour is the triangle ?", SCENE) == "none"
    assert answer_of("where is the red circle ?", SCENE) == "top left"
    with pytest.raises(ValueError, match="is no question"):
        answer_of("who are you ?", SCENE)
    picture = render(SCENE, rng=random.Random(0))
    blank = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    for question, message in (
        (Question(text="Question: how many circles are there ?"), "about no picture"),
        (Question(text="hello", images=(picture,)), "cannot read 'hello'"),
        (Question(text="Question: ?", images=(blank,)), "nothing of the tiny world"),
    ):
        with pytest.raises(ValueError, match=message):
            Reasoner().ask([question])


def test_scores() -> None:
    """A chain of three true steps has 1 + 3 * 33 = 100, one of a single step 1 + 33 = 34, and a
    thing that is not in the picture costs 25."""
    question = "how many circles are there ?"

    def written(scene: Scene, *, thorough: bool) -> str:
        return "\n\n".join(f"### {t}\n{c}" for t, c in plan(question, scene, thorough=thorough))

    green = Object(shape="square", colour="green", size="large", place="bottom right")
    wrong = Scene(objects=(SCENE.objects[0], green))
    assert score(written(SCENE, thorough=True), SCENE) == 100
    assert score(written(SCENE, thorough=False), SCENE) == 34
    assert score(written(wrong, thorough=True), SCENE) == 75
    chains = (written(wrong, thorough=True), written(SCENE, thorough=True))
    asked = Question(
        text="\n\n".join(f"Chain {n}:\n{one}" for n, one in enumerate(chains, start=1)),
        images=(render(SCENE, rng=random.Random(0)),),
    )
    assert json.loads(Reasoner().ask([asked])[0]) == [75, 100]


def test_chains_differ_by_seed() -> None:
    picture = render(SCENE, rng=random.Random(0))
    asked = [Question(text="Question: how many circles are there ?", images=(picture,))]
    found = {Reasoner().seeded(seed).ask(asked)[0] for seed in range(20)}
    assert len(found) > 2
    assert Reasoner(seed=3).ask(asked) == Reasoner().seeded(3).ask(asked)
    for name in ("errors", "thorough"):
        with pytest.raises(ValueError, match=f"{name}=2 must lie"):
            Reasoner(**{name: 2})
