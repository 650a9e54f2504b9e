"""Everyday things to ask about, and which of them are never trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mmalign.types import Prompt

WORDS = """
airport anchor apple attic bag bakery balcony barn basket bathroom beach bed bell bench bicycle
bill blanket boat book bottle bowl box brick bridge broom bucket bus button cabin calendar
camera candle car carpet castle ceiling chair chimney city clock cloud coach coat comb compass
corner cow crane cup curtain dentist desk dog door drawer egg elevator envelope factory farm
fence ferry fire fish floor forest fountain fridge frog garage garden gate glass glove goat
hammer harbour hat hill hospital hotel house igloo insect island jacket jar journey kettle key
kitchen knife ladder lake lamp leaf letter library lion machine market meal medal mirror moon
mosquito mountain mug museum needle newspaper notebook ocean office oven paper parcel park path
pencil phone pillow plate pond potato radio raft river road roof room rope rug saddle school
shelf shoe sofa spade spoon station stone storm street table tent ticket towel tower tractor
train tree truck tunnel umbrella valley wall wheel window zebra
"""
NOUNS = tuple(WORDS.split())
HELD_OUT = tuple(noun for i, noun in enumerate(NOUNS) if i % 10 in (1, 4, 7))
TRAIN = tuple(noun for noun in NOUNS if noun not in HELD_OUT)


def prompt(noun: str) -> Prompt:
    """What a thing is: a plain question. The noun stands in the column ``noun`` too."""
    article = "an" if noun[0] in "aeiou" else "a"
    question = f"What is {article} {noun}? Answer in one short sentence."
    return Prompt(content=question, meta={"noun": noun})


def write(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as JSON lines, their columns beside them."""
    rows = [json.dumps({"prompt": p.content, **p.meta}) + "\n" for p in prompts]
    path.write_text("".join(rows))
