"""Named column layouts of public data sets, each as a function from its row to ours.

Ours are TRL's: ``prompt``, ``chosen``, ``rejected``, ``images``, and per side ``chosen_images`` and
``rejected_images``; ``completion`` is the answer of a demonstration. A column that a layout does
not know goes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from mmalign.data.formats.base import Dropped, Row, RowError, short, take
from mmalign.data.formats.chat import llama_factory, ms_swift
from mmalign.data.formats.lvlm import llava, povid, rlaif_v, rlhf_v, vlfeedback

__all__ = [
    "FORMATS", "Dropped", "FormatName", "Row", "RowError", "detect", "pick_a_pic", "short", "take",
]  # fmt: skip

FormatName = Literal[
    "auto", "trl", "pick_a_pic", "rlaif_v", "rlhf_v", "vlfeedback", "povid", "llava",
    "llama_factory", "ms_swift",
]  # fmt: skip

_TELLING: tuple[tuple[str, frozenset[str]], ...] = (
    ("pick_a_pic", frozenset({"jpg_0", "jpg_1", "label_0"})),
    ("vlfeedback", frozenset({"completions", "img_path"})),
    # Everything below has no prompt column, and what `write_preferences` writes has one.
    ("trl", frozenset({"prompt"})),
    ("povid", frozenset({"conversations", "rejected_conversations"})),
    ("llama_factory", frozenset({"conversations", "chosen", "rejected"})),
    ("llama_factory", frozenset({"conversations", "images"})),
    ("llava", frozenset({"conversations"})),
    ("llama_factory", frozenset({"messages", "chosen", "rejected"})),
    ("ms_swift", frozenset({"messages"})),
    ("rlhf_v", frozenset({"ds_name", "image", "text"})),
    ("rlaif_v", frozenset({"question", "chosen", "rejected"})),
    ("llama_factory", frozenset({"instruction"})),
)
"""Columns that tell a layout, the first that fits."""


def detect(row: Mapping[str, Any]) -> str:
    """The name of the layout that the columns of a row belong to."""
    return next((name for name, columns in _TELLING if columns <= row.keys()), "trl")


def pick_a_pic(row: Row) -> Row:
    """``jpg_0``, ``jpg_1`` (bytes), ``label_0`` (1, 0, or 0.5 for a tie), ``caption``."""
    label = take(row, "label_0")
    if label == 0.5:
        raise Dropped("ties")
    if label not in (0, 1):
        raise RowError("wrong value", f"label_0 is {label!r}; it must be 1, 0 or 0.5")
    first, second = take(row, "jpg_0"), take(row, "jpg_1")
    chosen, rejected = (first, second) if label == 1 else (second, first)
    return {
        "prompt": take(row, "caption"),
        "chosen_images": [chosen],
        "rejected_images": [rejected],
        **{key: value for key, value in row.items() if key != "label_1"},
    }


FORMATS: Mapping[str, Callable[[Row], Row]] = {
    "trl": dict,
    "pick_a_pic": pick_a_pic,
    "rlaif_v": rlaif_v,
    "rlhf_v": rlhf_v,
    "vlfeedback": vlfeedback,
    "povid": povid,
    "llava": llava,
    "llama_factory": llama_factory,
    "ms_swift": ms_swift,
}
