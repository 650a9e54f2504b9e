"""The tasks of the tiny world: prompts, preferences, demonstrations and the judge of each.

Training and held-out prompts never meet: sums and scenes are split by a stable hash of their
canonical text, and the requirements of "draw" by a fixed list within each category. A picture
of a held-out scene is therefore never shown in training either.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmalign.protocols import RewardModel
from mmalign.rng import python_random
from mmalign.tinyworld import arithmetic
from mmalign.tinyworld.judges import AnswerJudge, ArithmeticJudge, DescriptionJudge, ImageJudge
from mmalign.tinyworld.language import caption
from mmalign.tinyworld.questions import Question, ask, ask_across
from mmalign.tinyworld.render import render
from mmalign.tinyworld.requirements import (
    HELDOUT_FOLDS,
    random_requirement,
    realise,
    requirement_to_dict,
    violate,
)
from mmalign.tinyworld.scenes import (
    Scene,
    perturb,
    random_scene,
    scene_key,
    stable_hash,
    to_dict,
)
from mmalign.types import Output, Preference, Prompt, Ranking

SPLITS = ("train", "heldout")
DESCRIBE = "describe the picture"
# Draws without a new prompt after which a split is taken to be exhausted.
MAX_MISSES = 5000
# Outputs of a ranked list, and how often a corrupted one is drawn to find different ones.
LIST, LIST_DRAWS = 4, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt with a correct and a corrupted output.

    Args:
        key: the prompt in canonical form; two examples with one key ask the same.
        prompt: the prompt.
        correct: makes an output that the judge scores 1.
        corrupted: makes an output that the judge scores below 1.
    """

    key: str
    prompt: Prompt
    correct: Callable[[random.Random], Output]
    corrupted: Callable[[random.Random], Output]


def split_of(key: str) -> str:
    """The split a canonical text belongs to: one in five is held out, by a stable hash."""
    return "heldout" if stable_hash(key) % HELDOUT_FOLDS == 0 else "train"


def conversation(text: str, *, num_images: int) -> tuple[Mapping[str, Any], ...]:
    """A user's turn: the images, then the text."""
    parts: list[Mapping[str, Any]] = [{"type": "image"}] * num_images
    return ({"role": "user", "content": [*parts, {"type": "text", "text": text}]},)


def scene_of_split(rng: random.Random, split: str) -> Scene:
    """Draw scenes until one belongs to the split."""
    while True:
        scene = random_scene(rng)
        if split_of(scene_key(scene)) == split:
            return scene


def _arithmetic(rng: random.Random, split: str) -> Example:
    while True:
        problem = arithmetic.generate(rng)
        if split_of(problem.expression) == split:
            break
    meta = {"task": "arithmetic", "problem": problem.expression}
    return Example(
        key=problem.expression,
        prompt=Prompt(content=problem.text, meta=meta),
        correct=lambda _: arithmetic.solution(problem),
        corrupted=lambda draw: arithmetic.wrong_solution(problem, draw),
    )


def _describe(rng: random.Random, split: str) -> Example:
    scene = scene_of_split(rng, split)
    prompt = Prompt(
        content=conversation(DESCRIBE, num_images=1),
        images=(render(scene, rng=rng),),
        meta={"task": "describe", "scene": to_dict(scene)},
    )
    return Example(
        key=scene_key(scene),
        prompt=prompt,
        correct=lambda _: caption(scene),
        corrupted=lambda draw: caption(perturb(scene, draw)),
    )


def _questioned(
    task: str, scenes: Sequence[Scene], question: Question, images: tuple[Image.Image, ...]
) -> Example:
    prompt = Prompt(
        content=conversation(question.text, num_images=len(images)),
        images=images,
        meta={
            "task": task,
            "answer": question.answer,
            "kind": question.kind,
            "scenes": [to_dict(scene) for scene in scenes],
        },
    )
    return Example(
        key=" ".join([question.text, *(scene_key(scene) for scene in scenes)]),
        prompt=prompt,
        correct=lambda _: question.answer,
        corrupted=lambda draw: draw.choice(question.wrong),
    )


def _vqa(rng: random.Random, split: str) -> Example:
    scene = scene_of_split(rng, split)
    question = ask(scene, rng)
    return _questioned("vqa", [scene], question, (render(scene, rng=rng),))


def _multi_image(rng: random.Random, split: str) -> Example:
    scenes = [scene_of_split(rng, split) for _ in range(rng.randint(2, 3))]
    question = ask_across(scenes, rng)
    images = tuple(render(scene, rng=rng) for scene in scenes)
    return _questioned("multi_image", scenes, question, images)


def _draw(rng: random.Random, split: str) -> Example:
    requirement = random_requirement(rng, split=split)
    meta = {
        "task": "draw",
        "category": requirement.category,
        "requirement": requirement_to_dict(requirement),
    }
    return Example(
        key=requirement.text,
        prompt=Prompt(content=requirement.text, meta=meta),
        correct=lambda draw: render(realise(requirement, draw), rng=draw),
        corrupted=lambda draw: render(violate(requirement, draw), rng=draw),
    )


def _check_rate(name: str, rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1]; got {rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: where its prompts come from and who judges its outputs.

    Args:
        name: the task's name, also in the meta of its prompts.
        judge: scores outputs exactly.
        graded: scores what is partly right in between.
        example: draws an example of a split.
    """

    name: str
    judge: RewardModel
    graded: RewardModel
    example: Callable[[random.Random, str], Example]

    def examples(self, *, split: str, size: int, seed: int, purpose: str) -> list[Example]:
        """Draw examples; held-out ones are all different, training ones may repeat.

        Args:
            split: "train" or "heldout".
            size: how many.
            seed: equal seeds give equal examples.
            purpose: names the stream, so that uses with one seed do not share draws.

        Returns:
            `size` examples.

        Raises:
            ValueError: unknown split, negative size, or fewer held-out prompts than asked for.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        if size < 0:
            raise ValueError(f"size must be 0 or more; got {size}")
        rng = python_random(self.name, purpose, split, seed)
        if split == "train":
            return [self.example(rng, split) for _ in range(size)]
        found: dict[str, Example] = {}
        misses = 0
        while len(found) < size:
            drawn = self.example(rng, split)
            misses = misses + 1 if drawn.key in found else 0
            found.setdefault(drawn.key, drawn)
            if misses > MAX_MISSES:
                raise ValueError(
                    f"the task {self.name} has only {len(found)} held-out prompts; "
                    f"ask for fewer than {size}"
                )
        return list(found.values())

    def prompts(self, *, split: str, size: int, seed: int) -> list[Prompt]:
        """Draw prompts of a split; see `examples`."""
        drawn = self.examples(split=split, size=size, seed=seed, purpose="prompts")
        return [example.prompt for example in drawn]

    def preferences(
        self, *, size: int, seed: int, flip_rate: float = 0.0, split: str = "train"
    ) -> list[Preference]:
        """Draw preferences of a correct output over a corrupted one.

        Args:
            size: how many.
            seed: equal seeds give equal preferences.
            flip_rate: probability that the two sides are swapped; meta["flipped"] says where.
            split: "train" or "heldout".

        Returns:
            `size` preferences.

        Raises:
            ValueError: `flip_rate` outside [0, 1], or as `examples`.
        """
        _check_rate("flip_rate", flip_rate)
        rng = python_random(self.name, "outputs", split, seed)
        made = []
        for item in self.examples(split=split, size=size, seed=seed, purpose="preferences"):
            sides = item.correct(rng), item.corrupted(rng)
            flipped = rng.random() < flip_rate
            chosen, rejected = sides[::-1] if flipped else sides
            made.append(
                Preference(
                    prompt=item.prompt, chosen=chosen, rejected=rejected, meta={"flipped": flipped}
                )
            )
        return made

    def demonstrations(
        self, *, size: int, seed: int, corruption: float = 0.0, split: str = "train"
    ) -> list[tuple[Prompt, Output]]:
        """Draw prompts with outputs to imitate.

        Args:
            size: how many.
            seed: equal seeds give equal demonstrations.
            corruption: probability that an output is a corrupted one.
            split: "train" or "heldout".

        Returns:
            `size` pairs of a prompt and an output.

        Raises:
            ValueError: `corruption` outside [0, 1], or as `examples`.
        """
        _check_rate("corruption", corruption)
        rng = python_random(self.name, "shown", split, seed)
        return [
            (item.prompt, (item.corrupted if rng.random() < corruption else item.correct)(rng))
            for item in self.examples(split=split, size=size, seed=seed, purpose="shown")
        ]

    def rankings(self, *, size: int, seed: int, split: str = "train") -> list[Ranking]:
        """Draw lists of outputs, a correct one among corrupted ones, scored by the graded judge.

        Args:
            size: how many.
            seed: equal seeds give equal lists.
            split: "train" or "heldout".

        Returns:
            `size` lists of up to `LIST` different outputs, the correct one anywhere.

        Raises:
            ValueError: as `examples`.
        """
        rng = python_random(self.name, "lists", split, seed)
        drawn = self.examples(split=split, size=size, seed=seed, purpose="rankings")
        return [self._ranking(item, rng) for item in drawn]

    def _ranking(self, item: Example, rng: random.Random) -> Ranking:
        outputs = [item.correct(rng)]
        for _ in range(LIST_DRAWS):
            other = item.corrupted(rng)
            if len(outputs) < LIST and other not in outputs:
                outputs.append(other)
        rng.shuffle(outputs)
        scores = self.graded([item.prompt] * len(outputs), outputs)
        return Ranking(
            prompt=item.prompt, completions=tuple(outputs), scores=tuple(scores.tolist())
        )


TASKS: dict[str, Task] = {
    "arithmetic": Task(
        name="arithmetic",
        judge=ArithmeticJudge(),
        graded=ArithmeticJudge(partial=True),
        example=_arithmetic,
    ),
    "describe": Task(
        name="describe", judge=DescriptionJudge(), graded=DescriptionJudge(), example=_describe
    ),
    "vqa": Task(name="vqa", judge=AnswerJudge(), graded=AnswerJudge(), example=_vqa),
    "multi_image": Task(
        name="multi_image", judge=AnswerJudge(), graded=AnswerJudge(), example=_multi_image
    ),
    "draw": Task(name="draw", judge=ImageJudge(), graded=ImageJudge(partial=True), example=_draw),
}
