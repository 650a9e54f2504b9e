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
from mmalign.data.formats.pictures import hpd_v2, image_reward, pick_a_pic

__all__ = [
    "FORMATS", "Dropped", "FormatName", "Row", "RowError", "detect", "short", "take",
]  # fmt: skip

FormatName = Literal[
    "auto", "trl", "pick_a_pic", "hpd_v2", "image_reward", "rlaif_v", "rlhf_v", "vlfeedback",
    "povid", "llava", "llama_factory", "ms_swift",
]  # fmt: skip

_TELLING: tuple[tuple[str, frozenset[str]], ...] = (
    ("pick_a_pic", frozenset({"jpg_0", "jpg_1", "label_0"})),
    ("image_reward", frozenset({"generations", "ranking"})),
    ("image_reward", frozenset({"prompt_id", "image_path", "rank"})),
    ("hpd_v2", frozenset({"file_path", "human_preference"})),
    ("hpd_v2", frozenset({"image_path", "human_preference"})),
    ("hpd_v2", frozenset({"image_path", "rank"})),
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


FORMATS: Mapping[str, Callable[[Row], Row]] = {
    "trl": dict,
    "pick_a_pic": pick_a_pic,
    "hpd_v2": hpd_v2,
    "image_reward": image_reward,
    "rlaif_v": rlaif_v,
    "rlhf_v": rlhf_v,
    "vlfeedback": vlfeedback,
    "povid": povid,
    "llava": llava,
    "llama_factory": llama_factory,
    "ms_swift": ms_swift,
}
