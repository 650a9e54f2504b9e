"""Layouts of public data sets of preferences between generated pictures.

Pick-a-Pic (the data cards of yuvalkirstain/pickapic_v1 and pickapic_v2, and ``clip_hf_dataset.py``
of yuvalkirstain/PickScore), HPD v2 (the data card of ymhao/HPDv2, and ``training/data.py`` and
``evaluation.py`` of tgxs002/HPSv2), ImageReward (the data card of THUDM/ImageRewardDB, and
``rank_pair_dataset.py`` of THUDM/ImageReward).
"""

from __future__ import annotations

import math
from typing import Any

from mmalign.data.formats.base import Dropped, Row, RowError, list_of, short, take

LABELS = (0, 0.5, 1)


def pick_a_pic(row: Row) -> Row:
    """``jpg_0``, ``jpg_1`` (bytes), ``label_0`` (1, 0, or 0.5 for a tie), ``caption``.

    Raises:
        RowError: A column is missing, or a label is none of these or contradicts the other.
        Dropped: A tie, or a row without a label (``has_label`` is false).
    """
    if row.get("has_label") is False:
        raise Dropped("unlabelled pairs")
    label = take(row, "label_0")
    if isinstance(label, bool) or label not in LABELS:
        raise RowError("wrong value", f"label_0 is {short(label)}; it must be 1, 0 or 0.5")
    other = row.pop("label_1", None)
    if other is not None and other != 1 - label:
        raise RowError(
            "wrong value",
            f"label_0 is {label:g} and label_1 is {short(other)}; their sum must be 1",
        )
    if label == 0.5:
        raise Dropped("ties")
    first, second = take(row, "jpg_0"), take(row, "jpg_1")
    chosen, rejected = (first, second) if label == 1 else (second, first)
    return {
        "prompt": take(row, "caption"),
        "chosen_images": [chosen],
        "rejected_images": [rejected],
        **row,
    }


def hpd_v2(row: Row) -> Row:
    """``prompt``, pictures in ``file_path`` or ``image_path``, ``human_preference`` or ``rank``.

    The training file has ``human_preference``, 1 for the picture that was preferred and 0 for the
    other; the test file has ``rank``, where the least is the best. As a pair: the best picture
    against the worst, the first of equal ones.

    Raises:
        RowError: A column is missing or malformed.
        Dropped: All pictures are ranked alike.
    """
    key = "file_path" if "file_path" in row else "image_path"
    pictures = list_of(take(row, key), key)
    ranked = "human_preference" not in row
    name = "rank" if ranked else "human_preference"
    values = _numbers(take(row, name), name, len(pictures))
    return {**row, **_list(pictures, [-v for v in values] if ranked else values)}


def image_reward(row: Row) -> Row:
    """Pictures in ``image_path``, or ``generations``, with their ``rank``, or ``ranking``.

    Either a list for each prompt, as ImageReward's own training reads them, or the rows of
    ImageRewardDB's metadata, one a picture, which `mmalign.data.grouping` has put together by their
    ``prompt_id``. The least rank is the best. As a pair: the best picture against the worst, the
    first of equal ones.

    Raises:
        RowError: A column is missing or malformed.
        Dropped: All pictures are ranked alike.
    """
    listed = "generations" in row
    keys = ("generations", "ranking") if listed else ("image_path", "rank")
    pictures = list_of(take(row, keys[0]), keys[0])
    ranks = _numbers(take(row, keys[1]), keys[1], len(pictures))
    return {**row, **_list(pictures, [-rank for rank in ranks])}


def _list(pictures: list[Any], scores: list[float]) -> Row:
    """The columns of a list, and of the pair of its best and its worst."""
    if len(pictures) < 2:
        raise Dropped("single pictures")
    if min(scores) == max(scores):
        raise Dropped("ties")
    return {
        "completion_images": pictures,
        "scores": scores,
        "chosen_images": [pictures[scores.index(max(scores))]],
        "rejected_images": [pictures[scores.index(min(scores))]],
    }


def _numbers(value: Any, key: str, count: int) -> list[float]:
    """A finite number for each of ``count`` pictures."""
    if not isinstance(value, list) or len(value) != count:
        raise RowError(
            "wrong value",
            f"{key!r} must be a list of {count} numbers, one for each picture, not {short(value)}",
        )
    for number, one in enumerate(value):
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise RowError("wrong type", f"{key}[{number}] must be a number, not {short(one)}")
    return [float(one) for one in value]
