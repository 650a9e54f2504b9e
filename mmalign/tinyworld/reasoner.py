"""A program that reasons about pictures of the tiny world, in the form that Insight-V asks for.

It looks at the picture, writes what it sees step by step, answers, and scores chains of others. How
thorough it is, and whether it misreads the picture, is drawn for each chain: so there is something
to prefer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image

from mmalign.endpoint import Question
from mmalign.rng import python_random
from mmalign.tinyworld.detect import detect
from mmalign.tinyworld.language import NUMBERS, PLURALS, caption, matches, parse
from mmalign.tinyworld.scenes import Scene, perturb
from mmalign.vision.insight.chains import ANSWER, BEFORE

NOTHING = "none"
_CHAIN = re.compile(r"^Chain \d+:\n(.*?)(?=\n\nChain \d+:\n|\Z)", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoner:
    """Writes and scores chains of reasoning about one picture of the tiny world.

    Attributes:
        errors: Share of the chains that misread the picture, in one object.
        thorough: Share of the chains that say what they see and check it.
        seed: Of what is drawn; a chain is the same for the same seed and question.
    """

    errors: float = 0.4
    thorough: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("errors", "thorough"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")

    def seeded(self, seed: int) -> Reasoner:
        """The same with another seed."""
        return replace(self, seed=seed)

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """A step, an answer or a list of scores for each question.

        Raises:
            ValueError: A question has no picture of the tiny world, or is none of its questions.
        """
        return [self._reply(question) for question in questions]

    def _reply(self, question: Question) -> str:
        if not question.images:
            raise ValueError("the tiny world's reasoner was asked about no picture")
        scene = seen(question.images[0])
        chains = _CHAIN.findall(question.text)
        if chains:
            return json.dumps([score(chain, scene) for chain in chains])
        asked = re.search(r"^Question: (.*)$", question.text, flags=re.MULTILINE)
        if asked is None:
            raise ValueError(f"the tiny world's reasoner cannot read {question.text[:60]!r}")
        draw = python_random("reasoner", self.seed, asked.group(1), caption(scene))
        if draw.random() < self.errors:
            scene = perturb(scene, draw)
        steps = plan(asked.group(1), scene, thorough=draw.random() < self.thorough)
        if ANSWER in question.text:
            found = answer_of(asked.group(1), scene)
            return json.dumps({"title": "final answer", "content": found})
        done = question.text.partition(f"{BEFORE}\n")[2].partition("\n\n")[0].splitlines()
        title, content = steps[len(done)]
        last = len(done) + 1 == len(steps)
        action = "final_answer" if last else "continue"
        return json.dumps({"title": title, "content": content, "next_action": action})


def seen(image: Image) -> Scene:
    """The scene of a picture.

    Raises:
        ValueError: Nothing of the tiny world is in it.
    """
    objects = detect(image)
    if not objects:
        raise ValueError("there is nothing of the tiny world in the picture")
    return Scene(objects=objects)


def plan(question: str, scene: Scene, *, thorough: bool) -> list[tuple[str, str]]:
    """Title and content of each step."""
    conclusion = ("conclude", f"so the answer is {answer_of(question, scene)}")
    if not thorough:
        return [conclusion]
    look = ("look at the picture", f"the picture has {caption(scene)}")
    check = ("look again", f"there are {NUMBERS[len(scene.objects)]} objects in all")
    return [look, check, conclusion]


def score(chain: str, scene: Scene) -> int:
    """1 to 100: a point, 33 for each of at most three steps, 25 less for each thing not there."""
    wrong = sum(
        1
        for mention in parse(" ".join(re.findall(r"the picture has (.*)", chain)))
        if not any(matches(mention, item) for item in scene.objects)
    )
    return max(1, 1 + 33 * min(3, chain.count("### ")) - 25 * wrong)


def answer_of(question: str, scene: Scene) -> str:
    """The answer to a question about one picture.

    Raises:
        ValueError: The question is none of `mmalign.tinyworld.questions`.
    """
    words = question.removesuffix("?").split()
    match words:
        case ["is", "there", "a", colour, shape]:
            there = any((one.colour, one.shape) == (colour, shape) for one in scene.objects)
            return "yes" if there else "no"
        case ["how", "many", plural, "are", "there"]:
            return NUMBERS[sum(PLURALS[one.shape] == plural for one in scene.objects)]
        case ["what", "colour", "is", "the", shape]:
            return next((one.colour for one in scene.objects if one.shape == shape), NOTHING)
        case ["where", "is", "the", colour, shape]:
            attribute = "place"
        case ["what", "size", "is", "the", colour, shape]:
            attribute = "size"
        case _:
            raise ValueError(f"{question!r} is no question about one picture of the tiny world")
    found = (one for one in scene.objects if (one.colour, one.shape) == (colour, shape))
    return next((str(getattr(one, attribute)) for one in found), NOTHING)
