"""Scenes: what a picture of the tiny world can hold.

A scene is one to four objects on a 2 x 2 grid, at most one object a cell. An object has a
shape, a colour, a size and a place. Scenes are values: equal content compares equal whatever
order the objects were given in.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "place": PLACES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One drawn object.

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        place: one of `PLACES`.

    Raises:
        ValueError: an attribute has a value the world does not know.
    """

    shape: str
    colour: str
    size: str
    place: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"an object's {name} must be one of {', '.join(values)}; "
                    f"got {getattr(self, name)!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One to four objects at distinct places, kept in the order of `PLACES`.

    Args:
        objects: the objects, in any order.

    Raises:
        ValueError: no object, more than four, or two objects at one place.
    """

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= len(PLACES):
            raise ValueError(f"a scene holds 1 to {len(PLACES)} objects; got {len(self.objects)}")
        if len({item.place for item in self.objects}) != len(self.objects):
            raise ValueError("two objects of a scene share one place; give each its own")
        ordered = tuple(sorted(self.objects, key=lambda item: PLACES.index(item.place)))
        object.__setattr__(self, "objects", ordered)


def random_object(rng: random.Random, *, place: str) -> Object:
    """Draw an object with uniform shape, colour and size at a given place."""
    return Object(
        shape=rng.choice(SHAPES), colour=rng.choice(COLOURS), size=rng.choice(SIZES), place=place
    )


def random_scene(rng: random.Random, *, num_objects: int | None = None) -> Scene:
    """Draw a scene.

    Args:
        rng: the source of randomness.
        num_objects: how many objects, 1 to 4; uniform when None.

    Returns:
        The scene.

    Raises:
        ValueError: `num_objects` is outside 1 to 4.
    """
    if num_objects is None:
        num_objects = rng.randint(1, len(PLACES))
    if not 1 <= num_objects <= len(PLACES):
        raise ValueError(f"num_objects must be 1 to {len(PLACES)}; got {num_objects}")
    places = rng.sample(PLACES, num_objects)
    return Scene(objects=tuple(random_object(rng, place=place) for place in places))


def free_places(scene: Scene) -> tuple[str, ...]:
    """List the places of a scene that hold no object."""
    taken = {item.place for item in scene.objects}
    return tuple(place for place in PLACES if place not in taken)


def perturb(scene: Scene, rng: random.Random) -> Scene:
    """Change a scene in exactly one way.

    One attribute of one object changes (shape, colour, size, or place to a free cell), or one
    object is added, or one is removed. The kind of change is uniform over those possible.

    Args:
        scene: the scene to start from; it is left as it is.
        rng: the source of randomness.

    Returns:
        A scene that differs from `scene`.
    """
    free = free_places(scene)
    kinds = ["shape", "colour", "size"]
    kinds += ["place", "add"] if free else []
    kinds += ["remove"] if len(scene.objects) > 1 else []
    kind = rng.choice(kinds)
    objects = list(scene.objects)
    if kind == "add":
        objects.append(random_object(rng, place=rng.choice(free)))
        return Scene(objects=tuple(objects))
    index = rng.randrange(len(objects))
    if kind == "remove":
        del objects[index]
        return Scene(objects=tuple(objects))
    old = getattr(objects[index], kind)
    values = free if kind == "place" else tuple(v for v in ATTRIBUTES[kind] if v != old)
    objects[index] = replace(objects[index], **{kind: rng.choice(values)})
    return Scene(objects=tuple(objects))


def to_dict(scene: Scene) -> dict[str, Any]:
    """Write a scene as a JSON-safe dict, for the meta of a prompt."""
    return {
        "objects": [{name: getattr(item, name) for name in ATTRIBUTES} for item in scene.objects]
    }


def from_dict(data: Mapping[str, Any]) -> Scene:
    """Read a scene back from `to_dict`.

    Args:
        data: a mapping with the key "objects": a list of mappings of the four attributes.

    Returns:
        The scene.

    Raises:
        ValueError: a key is missing or a value is not of this world.
    """
    if "objects" not in data:
        raise ValueError("a scene needs the key 'objects'; write it with scenes.to_dict")
    objects = []
    for item in data["objects"]:
        missing = [name for name in ATTRIBUTES if name not in item]
        if missing:
            raise ValueError(f"an object of the scene lacks {', '.join(missing)}")
        objects.append(Object(**{name: item[name] for name in ATTRIBUTES}))
    return Scene(objects=tuple(objects))


def scene_key(scene: Scene) -> str:
    """Write a scene as one canonical string: equal scenes, equal strings."""
    return json.dumps(to_dict(scene), sort_keys=True)


def stable_hash(text: str) -> int:
    """Hash a string to 64 bits, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
