"""What a picture is asked to show, and how far a picture shows it.

The prompt space is finite and listed in full, by category; it is split into training and
held-out prompts within each category, so that no held-out requirement (in any word order) is
ever trained on.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from mmalign.tinyworld.language import (
    Mention,
    join,
    matches,
    mention_from_dict,
    mention_to_dict,
    phrase,
    stated,
)
from mmalign.tinyworld.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    perturb,
    random_object,
    stable_hash,
)

CATEGORIES = ("single", "colour", "two", "count", "place", "binding")
HELDOUT_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """The objects a picture must hold: these and no others.

    Args:
        category: one of `CATEGORIES`.
        mentions: the objects, with the attributes that matter.

    Raises:
        ValueError: unknown category, or more objects than a picture holds.
    """

    category: str
    mentions: tuple[Mention, ...]

    def __post_init__(self) -> None:
        if self.category not in CATEGORIES:
            raise ValueError(
                f"category must be one of {', '.join(CATEGORIES)}; got {self.category!r}"
            )
        if not 1 <= sum(mention.count for mention in self.mentions) <= len(PLACES):
            raise ValueError(f"a requirement must name 1 to {len(PLACES)} objects")

    @property
    def text(self) -> str:
        """The requirement as a prompt, "a red circle and a blue square"."""
        return join([phrase(mention) for mention in self.mentions])

    @property
    def key(self) -> str:
        """A canonical string: the same whatever order the objects are named in."""
        return " / ".join(sorted(phrase(mention) for mention in self.mentions))


def requirement_to_dict(requirement: Requirement) -> dict[str, Any]:
    """Write a requirement as a JSON-safe dict, for the meta of a prompt."""
    return {
        "category": requirement.category,
        "mentions": [mention_to_dict(mention) for mention in requirement.mentions],
    }


def requirement_from_dict(data: Mapping[str, Any]) -> Requirement:
    """Read a requirement back from `requirement_to_dict`.

    Raises:
        ValueError: a key is missing or a value is not of this world.
    """
    if "category" not in data or "mentions" not in data:
        raise ValueError("a requirement needs the keys 'category' and 'mentions'")
    mentions = tuple(mention_from_dict(item) for item in data["mentions"])
    return Requirement(category=data["category"], mentions=mentions)


def slots(requirement: Requirement) -> tuple[Mention, ...]:
    """One mention an object: "two red circles" becomes "a red circle" twice."""
    return tuple(
        replace(mention, count=1) for mention in requirement.mentions for _ in range(mention.count)
    )


def _credit(mention: Mention, item: Object) -> float:
    """The share of the stated attributes that an object has; 1 when none is stated."""
    wanted = stated(mention)
    if not wanted:
        return 1.0
    right = [name for name, value in wanted.items() if getattr(item, name) == value]
    return len(right) / len(wanted)


def partial(requirement: Requirement, objects: Sequence[Object]) -> float:
    """Graded credit for the objects of a picture.

    Objects are assigned to the required ones so that the total share of right attributes C is
    largest; the score is 2 C / (required + present), which is 1 only when everything required
    is there and nothing else.

    Args:
        requirement: what was asked for.
        objects: what the picture holds.

    Returns:
        The score in [0, 1].
    """
    wanted = slots(requirement)
    if not objects:
        return 0.0
    credit = [[_credit(mention, item) for item in objects] for mention in wanted]
    if len(wanted) > len(objects):
        credit = [list(column) for column in zip(*credit, strict=True)]
    best = max(
        sum(row[j] for row, j in zip(credit, order, strict=True))
        for order in itertools.permutations(range(len(credit[0])), len(credit))
    )
    return 2.0 * best / (len(wanted) + len(objects))


def satisfied(requirement: Requirement, objects: Sequence[Object]) -> float:
    """Return 1.0 when the picture holds exactly the required objects, else 0.0."""
    wanted = slots(requirement)
    if len(wanted) != len(objects):
        return 0.0
    return float(
        any(
            all(matches(mention, item) for mention, item in zip(wanted, order, strict=True))
            for order in itertools.permutations(objects)
        )
    )


def realise(requirement: Requirement, rng: random.Random) -> Scene:
    """Draw a scene that satisfies a requirement; what it leaves open is uniform."""
    wanted = slots(requirement)
    free = [place for place in PLACES if place not in {mention.place for mention in wanted}]
    rng.shuffle(free)
    objects = []
    for mention in wanted:
        place = mention.place if mention.place is not None else free.pop()
        objects.append(replace(random_object(rng, place=place), **stated(mention)))
    return Scene(objects=tuple(objects))


def violate(requirement: Requirement, rng: random.Random) -> Scene:
    """Draw a scene one change away from satisfying a requirement, that does not satisfy it."""
    scene = realise(requirement, rng)
    while True:
        changed = perturb(scene, rng)
        if not satisfied(requirement, changed.objects):
            return changed


def _kinds(*, sized: bool) -> list[Mention]:
    """Every colour and shape, with every size or with the size left open."""
    sizes: tuple[str | None, ...] = SIZES if sized else (None,)
    return [
        Mention(shape=shape, colour=colour, size=size)
        for size in sizes
        for colour in COLOURS
        for shape in SHAPES
    ]


def _lists() -> dict[str, list[tuple[Mention, ...]]]:
    """The whole prompt space by category."""
    plain, sized = _kinds(sized=False), _kinds(sized=True)
    shapes = [Mention(shape=shape, size=size) for size in (None, *SIZES) for shape in SHAPES]
    placed: list[tuple[Mention, ...]] = [
        (replace(kind, place=place),) for kind in plain for place in PLACES
    ]
    placed += [
        (replace(first, place=here), replace(second, place=there))
        for first, second in itertools.product(plain, repeat=2)
        for here, there in itertools.permutations(PLACES, 2)
    ]
    return {
        "single": [(kind,) for kind in shapes],
        "colour": [(kind,) for kind in plain + sized],
        "two": list(itertools.permutations(plain, 2)),
        "count": [
            (replace(kind, count=count),)
            for kind in shapes + plain + sized
            for count in range(2, len(PLACES) + 1)
        ],
        "place": placed,
        "binding": [
            *itertools.permutations(sized, 2),
            *itertools.permutations(plain, 3),
        ],
    }


@lru_cache(maxsize=1)
def requirement_space() -> dict[str, dict[str, tuple[Requirement, ...]]]:
    """List every requirement by split ("train", "heldout") and category.

    Within a category, the canonical keys are ordered by a stable hash and the first fifth
    (rounded up) is held out, with all word orders of it.
    """
    space: dict[str, dict[str, tuple[Requirement, ...]]] = {"train": {}, "heldout": {}}
    for category, rows in _lists().items():
        every = [Requirement(category=category, mentions=row) for row in rows]
        keys = sorted({item.key for item in every}, key=stable_hash)
        held = set(keys[: -(-len(keys) // HELDOUT_FOLDS)])
        space["heldout"][category] = tuple(item for item in every if item.key in held)
        space["train"][category] = tuple(item for item in every if item.key not in held)
    return space


def random_requirement(rng: random.Random, *, split: str) -> Requirement:
    """Draw a requirement of a split: a uniform category, then uniform within it.

    Raises:
        ValueError: `split` is neither "train" nor "heldout".
    """
    space = requirement_space()
    if split not in space:
        raise ValueError(f"split must be train or heldout; got {split!r}")
    return rng.choice(space[split][rng.choice(CATEGORIES)])
