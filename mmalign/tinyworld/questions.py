"""Questions about one picture or several, each with its only right answer.

Every maker returns None where its question has no unique answer for the scenes at hand; the
draws below try kinds of question in random order, and some kind always applies.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmalign.tinyworld.language import NUMBERS, PLURALS
from mmalign.tinyworld.scenes import COLOURS, PLACES, SHAPES, SIZES, Object, Scene

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its right answer and answers of the same kind that are wrong.

    Args:
        kind: "exists", "count", "colour", "place", "size", "which", "count_all" or "exists_in".
        text: the question, ending in " ?".
        answer: the right answer.
        wrong: plausible wrong answers, at least one.
    """

    kind: str
    text: str
    answer: str
    wrong: tuple[str, ...]


def _make(kind: str, text: str, answer: str, choices: Sequence[str]) -> Question:
    wrong = tuple(choice for choice in choices if choice != answer)
    return Question(kind=kind, text=text, answer=answer, wrong=wrong)


def _thing(item: Object) -> str:
    return f"{item.colour} {item.shape}"


def _things(scene: Scene) -> Counter[str]:
    return Counter(_thing(item) for item in scene.objects)


def _asked_thing(rng: random.Random, present: Sequence[str]) -> str:
    """A kind of object that is there half of the time, so that "yes" is no better a guess."""
    if present and rng.random() < 0.5:
        return rng.choice(sorted(present))
    every = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return rng.choice([thing for thing in every if thing not in present])


def _nearby(number: int, *, most: int) -> tuple[str, ...]:
    """Number words at most two away, within 0 to `most`."""
    return NUMBERS[max(0, number - 2) : min(most, number + 2) + 1]


def _exists(scene: Scene, rng: random.Random) -> Question:
    present = list(_things(scene))
    thing = _asked_thing(rng, present)
    answer = "yes" if thing in present else "no"
    return _make("exists", f"is there a {thing} ?", answer, ("yes", "no"))


def _count(scene: Scene, rng: random.Random) -> Question:
    shape = rng.choice(SHAPES)
    number = sum(item.shape == shape for item in scene.objects)
    text = f"how many {PLURALS[shape]} are there ?"
    return _make("count", text, NUMBERS[number], _nearby(number, most=len(PLACES)))


def _colour(scene: Scene, rng: random.Random) -> Question | None:
    shapes = Counter(item.shape for item in scene.objects)
    unique = [item for item in scene.objects if shapes[item.shape] == 1]
    if not unique:
        return None
    item = rng.choice(unique)
    return _make("colour", f"what colour is the {item.shape} ?", item.colour, COLOURS)


def _unique_thing(scene: Scene, rng: random.Random) -> Object | None:
    things = _things(scene)
    unique = [item for item in scene.objects if things[_thing(item)] == 1]
    return rng.choice(unique) if unique else None


def _place(scene: Scene, rng: random.Random) -> Question | None:
    item = _unique_thing(scene, rng)
    if item is None:
        return None
    return _make("place", f"where is the {_thing(item)} ?", item.place, PLACES)


def _size(scene: Scene, rng: random.Random) -> Question | None:
    item = _unique_thing(scene, rng)
    if item is None:
        return None
    return _make("size", f"what size is the {_thing(item)} ?", item.size, SIZES)


def _picture(index: int) -> str:
    return f"picture {NUMBERS[index + 1]}"


def _which(scenes: Sequence[Scene], rng: random.Random) -> Question | None:
    """Ask for the only picture that has some kind of object."""
    homes = Counter(thing for scene in scenes for thing in _things(scene))
    unique = sorted(thing for thing, number in homes.items() if number == 1)
    if not unique:
        return None
    thing = rng.choice(unique)
    home = next(i for i, scene in enumerate(scenes) if thing in _things(scene))
    names = [_picture(index) for index in range(len(scenes))]
    return _make("which", f"which picture has a {thing} ?", names[home], names)


def _count_all(scenes: Sequence[Scene], rng: random.Random) -> Question:
    shape = rng.choice(SHAPES)
    number = sum(item.shape == shape for scene in scenes for item in scene.objects)
    text = f"how many {PLURALS[shape]} are there in all pictures ?"
    choices = _nearby(number, most=len(PLACES) * len(scenes))
    return _make("count_all", text, NUMBERS[number], choices)


def _exists_in(scenes: Sequence[Scene], rng: random.Random) -> Question:
    index = rng.randrange(len(scenes))
    present = list(_things(scenes[index]))
    thing = _asked_thing(rng, present)
    answer = "yes" if thing in present else "no"
    text = f"is there a {thing} in {_picture(index)} ?"
    return _make("exists_in", text, answer, ("yes", "no"))


_SINGLE: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "exists": _exists,
    "count": _count,
    "colour": _colour,
    "place": _place,
    "size": _size,
}
_MULTI: dict[str, Callable[[Sequence[Scene], random.Random], Question | None]] = {
    "which": _which,
    "count_all": _count_all,
    "exists_in": _exists_in,
}
SINGLE_KINDS = tuple(_SINGLE)
MULTI_KINDS = tuple(_MULTI)


def ask(scene: Scene, rng: random.Random) -> Question:
    """Draw a question about one picture, of a kind in `SINGLE_KINDS`.

    Args:
        scene: what the picture shows.
        rng: the source of randomness.

    Returns:
        The question.
    """
    return _first(_SINGLE, scene, rng)


def ask_across(scenes: Sequence[Scene], rng: random.Random) -> Question:
    """Draw a question about several pictures, of a kind in `MULTI_KINDS`.

    Args:
        scenes: what the pictures show, in order; at least two.
        rng: the source of randomness.

    Returns:
        The question.

    Raises:
        ValueError: fewer than two scenes.
    """
    if len(scenes) < 2:
        raise ValueError("a question across pictures needs at least two; use ask for one")
    return _first(_MULTI, scenes, rng)


def _first(
    makers: dict[str, Callable[[T, random.Random], Question | None]],
    subject: T,
    rng: random.Random,
) -> Question:
    """The question of the first kind, in random order, that applies."""
    made = (makers[name](subject, rng) for name in rng.sample(list(makers), len(makers)))
    return next(question for question in made if question is not None)
