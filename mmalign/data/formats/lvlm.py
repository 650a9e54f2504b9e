"""Layouts of public data sets for vision-language models, as their publishers write them.

RLAIF-V and RLHF-V (the data cards of openbmb), VLFeedback (the data card of MMInstruction, and its
``run_dpo.py``), POVID (the README and ``train_dpo.py`` of YiyangZhou/POVID), LLaVA
(``docs/Finetune_Custom_Data.md`` of haotian-liu/LLaVA).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mmalign.data.formats.base import (
    Dropped,
    Row,
    RowError,
    answered,
    list_of,
    mapping_of,
    short,
    take,
    text_of,
    turns_of,
)

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
"""What VLFeedback rates, 1 to 5 each."""
LEFT_OUT = "turns_left_out"
"""Column that says how many turns after the first answer a demonstration does not hold."""

_MARK = "<image>"


def rlaif_v(row: Row) -> Row:
    """``question``, ``chosen``, ``rejected``, ``image``."""
    return {"prompt": take(row, "question"), **_image(row), **row}


def rlhf_v(row: Row) -> Row:
    """``image``, and ``text``: a JSON string of ``question``, ``chosen`` and ``rejected``.

    Raises:
        RowError: The string is no such JSON.
    """
    said = take(row, "text")
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RowError("malformed JSON", f"'text' is no JSON ({error})") from error
    said = mapping_of(said, "text", ("question", "chosen", "rejected"))
    sides = {side: text_of(said[side], f"text.{side}") for side in ("chosen", "rejected")}
    return {"prompt": text_of(said["question"], "text.question"), **sides, **_image(row), **row}


def vlfeedback(row: Row) -> Row:
    """``prompt``, ``img_path``, and ``completions`` with ratings: the best against the worst.

    An answer's rating is the mean of the ratings of its aspects, which are 1 to 5; an aspect that
    has no number leaves the answer unrated, as in the publisher's own code. Of answers with one
    rating the first is taken.

    Raises:
        RowError: A column is malformed.
        Dropped: All rated answers have the same rating, or fewer than two are rated.
    """
    given = _completions(take(row, "completions"))
    ratings = [_rating(one, f"completions[{number}]") for number, one in enumerate(given)]
    rated = [(rating, number) for number, rating in enumerate(ratings) if rating is not None]
    if len(rated) < 2:
        raise Dropped("unrated answers")
    (best, first), (worst, last) = max(rated, key=lambda x: (x[0], -x[1])), min(rated)
    if best == worst:
        raise Dropped("ties")
    sides: Row = {}
    for side, number, rating in (("chosen", first, best), ("rejected", last, worst)):
        sides[side] = text_of(given[number]["response"], f"completions[{number}].response")
        sides[f"{side}_model"] = given[number].get("model")
        sides[f"{side}_rating"] = rating
    images = {} if "images" in row else {"images": [take(row, "img_path")]}
    return {**sides, **images, **row}


def povid(row: Row) -> Row:
    """``image``, ``conversations`` that end with the chosen answer, ``rejected_conversations``.

    Raises:
        RowError: A column is malformed, or the two were asked different things.
    """
    found = {}
    for side, key in (("chosen", "conversations"), ("rejected", "rejected_conversations")):
        prompt, answer = answered(_marked(turns_of(take(row, key), key)))
        if not prompt or not answer:
            raise RowError("wrong value", f"{key!r} must hold a question and end with its answer")
        found[side] = prompt, answer
    if found["chosen"][0] != found["rejected"][0]:
        raise RowError(
            "wrong value", "'conversations' and 'rejected_conversations' ask different things"
        )
    sides = {side: answer for side, (_, answer) in found.items()}
    return {"prompt": found["chosen"][0], **sides, **_image(row), **row}


def llava(row: Row) -> Row:
    """``image``, and ``conversations`` of ``from`` and ``value``; its first answer is the one.

    How many turns follow it, which are left out, is said in the column ``turns_left_out``. A row
    without a picture has no ``image``.

    Raises:
        RowError: A column is malformed, or a picture stands in a turn that is left out.
    """
    said = _marked(turns_of(take(row, "conversations"), "conversations"))
    answers = [number for number, turn in enumerate(said) if turn["role"] == "assistant"]
    if answers[:1] == [0]:
        raise RowError("wrong value", "'conversations' begins with an answer")
    end = answers[0] if answers else len(said)
    rest = said[end + 1 :]
    if any(_MARK in turn["content"] for turn in rest):
        raise RowError(
            "placeholders",
            "'conversations' shows a picture after the first answer; read the file as "
            "llama_factory, which takes the last answer and keeps what was said before it",
        )
    pictured = "images" in row or row.get("image") is not None
    if not pictured and any(_MARK in turn["content"] for turn in said):
        raise RowError("missing image", "'conversations' shows a picture; 'image' holds none")
    images = _image(row) if pictured else {}
    row.pop("image", None)
    found: Row = {"prompt": said[:end], **images, **row}
    if answers:
        found["completion"] = said[end : end + 1]
    if rest:
        found[LEFT_OUT] = len(rest)
    return found


def _image(row: Row) -> Row:
    """The picture in the column ``image`` as our column, unless ours is there (`columns`)."""
    if "images" in row:
        return {}
    image = take(row, "image")
    if image is None:
        raise RowError("missing image", "'image' is null; remove the row, or the column")
    return {"images": image if isinstance(image, list) else [image]}


def _marked(messages: list[Row]) -> list[Row]:
    """Without the line breaks beside picture marks: chat templates write their own."""
    return [{**m, "content": re.sub(rf"\n?{_MARK}\n?", _MARK, m["content"])} for m in messages]


def _completions(value: Any) -> list[Row]:
    """The answers one by one; parquet files hold a list for each of their keys instead."""
    if isinstance(value, Mapping):
        lists = {key: list_of(one, f"completions.{key}") for key, one in value.items()}
        if len({len(one) for one in lists.values()}) != 1:
            raise RowError("wrong value", "the lists in 'completions' differ in length")
        value = [dict(zip(lists, one, strict=True)) for one in zip(*lists.values(), strict=True)]
    return [
        dict(mapping_of(one, f"completions[{number}]", ("annotations", "response")))
        for number, one in enumerate(list_of(value, "completions"))
    ]


def _rating(completion: Row, key: str) -> float | None:
    """The mean rating; None where an aspect has no number."""
    given = mapping_of(completion["annotations"], f"{key}.annotations", ())
    found = []
    for aspect in ASPECTS:
        one = given.get(aspect)
        rating = one.get("Rating") if isinstance(one, Mapping) else None
        try:
            number = float(rating) if isinstance(rating, str | int | float) else math.nan
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        if not 1 <= number <= 5:
            raise RowError(
                "wrong value", f"'{key}' rates {aspect!r} with {short(rating)}, not 1 to 5"
            )
        found.append(number)
    return sum(found) / len(found)
