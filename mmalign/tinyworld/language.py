"""The closed language of the tiny world: captions of four grades, and how to read them back.

Words and punctuation marks are separated by single spaces, so a whitespace tokeniser with one
entry a word reads and writes everything.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.tinyworld.scenes import ATTRIBUTES, COLOURS, PLACES, SHAPES, SIZES, Object, Scene

# How much a caption says: how many objects; colour and shape; and size; and place.
GRADES = ("count", "kind", "size", "full")
GRADE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "count": (),
    "kind": ("colour", "shape"),
    "size": ("size", "colour", "shape"),
    "full": ("size", "colour", "shape", "place"),
}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
NUMERALS = tuple(str(number) for number in range(21))
PLURALS: dict[str, str] = {shape: shape + "s" for shape in SHAPES}
WORDS: tuple[str, ...] = (
    *SHAPES, *PLURALS.values(), "object", "objects", *COLOURS, *SIZES,
    "top", "bottom", "left", "right", *NUMBERS, *NUMERALS,
    "a", "and", "at", "the", "in", "is", "are", "there", "how", "many", "what", "which", "where",
    "has", "colour", "size", "picture", "pictures", "all", "describe", "draw", "compute",
    "answer", "question", "yes", "no", "none", "+", "-", "=", "?", ",", ".",
)  # fmt: skip

_SINGULAR = {plural: shape for shape, plural in PLURALS.items()} | {s: s for s in SHAPES}
_NOUNS = {**_SINGULAR, "object": None, "objects": None}
_COUNTS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(NUMBERS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """Objects as named in text; an attribute the text leaves open is None.

    Args:
        shape: one of `scenes.SHAPES`, or None.
        colour: one of `scenes.COLOURS`, or None.
        size: one of `scenes.SIZES`, or None.
        place: one of `scenes.PLACES`, or None.
        count: how many such objects, 0 to 12.

    Raises:
        ValueError: an attribute or the count has a value the language does not know.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in (None, *values):
                raise ValueError(
                    f"a mention's {name} must be one of {', '.join(values)} or None; "
                    f"got {getattr(self, name)!r}"
                )
        if not 0 <= self.count < len(NUMBERS):
            raise ValueError(f"a mention's count must be 0 to {len(NUMBERS) - 1}")


def stated(mention: Mention) -> dict[str, str]:
    """The attributes a mention states, by name."""
    values = {name: getattr(mention, name) for name in ATTRIBUTES}
    return {name: value for name, value in values.items() if value is not None}


def matches(mention: Mention, item: Object) -> bool:
    """Whether an object has every attribute that a mention states."""
    return all(getattr(item, name) == value for name, value in stated(mention).items())


def mention_to_dict(mention: Mention) -> dict[str, Any]:
    """Write a mention as a JSON-safe dict: the stated attributes and the count."""
    return {**stated(mention), "count": mention.count}


def mention_from_dict(data: Mapping[str, Any]) -> Mention:
    """Read a mention back from `mention_to_dict`."""
    return Mention(
        shape=data.get("shape"),
        colour=data.get("colour"),
        size=data.get("size"),
        place=data.get("place"),
        count=data.get("count", 1),
    )


def phrase(mention: Mention) -> str:
    """Say a mention: "a small red circle at the top left", "two blue squares", "one object"."""
    attributes = [word for word in (mention.size, mention.colour) if word is not None]
    if mention.count == 1:
        determiner = "a" if stated(mention) else "one"
        noun = mention.shape or "object"
    else:
        determiner = NUMBERS[mention.count]
        noun = "objects" if mention.shape is None else PLURALS[mention.shape]
    place = [] if mention.place is None else ["at", "the", mention.place]
    return " ".join([determiner, *attributes, noun, *place])


def join(phrases: Sequence[str]) -> str:
    """Join phrases as English does: "x", "x and y", "x , y and z"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return " , ".join(phrases[:-1]) + " and " + phrases[-1]


def caption(scene: Scene, *, grade: str = "full") -> str:
    """Describe a scene.

    Args:
        scene: what to describe.
        grade: how much to say, one of `GRADES`: "count" ("two objects"), "kind" ("a red circle
            and a blue square"), "size" (with sizes), "full" (with sizes and places).

    Returns:
        The caption. Objects that the grade cannot tell apart are counted together.

    Raises:
        ValueError: unknown grade.
    """
    if grade not in GRADE_ATTRIBUTES:
        raise ValueError(f"grade must be one of {', '.join(GRADES)}; got {grade!r}")
    names = GRADE_ATTRIBUTES[grade]
    groups = Counter(tuple(getattr(item, name) for name in names) for item in scene.objects)
    mentions = (
        mention_from_dict({**dict(zip(names, values, strict=True)), "count": count})
        for values, count in groups.items()
    )
    return join([phrase(mention) for mention in mentions])


class _Reader:
    """Collects mentions word by word; a word that cannot extend a mention starts the next."""

    def __init__(self) -> None:
        self.mentions: list[Mention] = []
        self._open: dict[str, Any] = {}

    def close(self) -> None:
        """End the mention under way; a bare count or article is no mention."""
        named = self._open.pop("named", False)
        if named or set(self._open) - {"count"}:
            self.mentions.append(Mention(**self._open))
        self._open = {}

    def put(self, name: str, value: Any) -> None:
        """Add an attribute; attributes other than the place come before the noun."""
        ended = self._open.get("named", False) and name != "place"
        if ended or name in self._open:
            self.close()
        self._open[name] = value

    def noun(self, shape: str | None) -> None:
        """Add the noun: a shape, or None for "object"."""
        if self._open.get("named", False):
            self.close()
        self._open["named"] = True
        if shape is not None:
            self._open["shape"] = shape


def parse(text: str) -> tuple[Mention, ...]:
    """Read the objects that free text names.

    Case and punctuation glued to words do not matter, unknown words are skipped, and any text
    is accepted: nonsense yields no mention.

    Args:
        text: any string.

    Returns:
        The mentions, in the order of the text.
    """
    words = re.findall(r"[a-z0-9]+|[,.;?]", text.lower())
    reader = _Reader()
    index = 0
    while index < len(words):
        word = words[index]
        pair = " ".join(words[index : index + 2])
        if pair in PLACES:
            reader.put("place", pair)
            index += 1
        elif word in COLOURS:
            reader.put("colour", word)
        elif word in SIZES:
            reader.put("size", word)
        elif word in _COUNTS:
            reader.put("count", _COUNTS[word])
        elif word in _NOUNS:
            reader.noun(_NOUNS[word])
        elif word in ("and", ",", ".", ";", "?"):
            reader.close()
        index += 1
    reader.close()
    return tuple(reader.mentions)
