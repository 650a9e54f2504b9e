"""Named column layouts of public data sets, each as a function from its row to ours.

Ours are TRL's: ``prompt``, ``chosen``, ``rejected``, ``images``, and per side ``chosen_images`` and
``rejected_images``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Row = dict[str, Any]
FormatName = Literal["auto", "trl", "pick_a_pic", "rlaif_v", "llama_factory", "ms_swift"]

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}


class RowError(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: In two or three words, the same for rows with the same defect.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Dropped(Exception):
    """A row that is in order but says nothing: a tie, or twice the same output."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def detect(row: Mapping[str, Any]) -> str:
    """The name of the layout that the columns of a row belong to."""
    if {"jpg_0", "jpg_1", "label_0"} <= row.keys():
        return "pick_a_pic"
    if "conversations" in row and "prompt" not in row:
        return "llama_factory"
    if {"messages", "rejected_response"} <= row.keys():
        return "ms_swift"
    if {"question", "chosen", "rejected"} <= row.keys() and "prompt" not in row:
        return "rlaif_v"
    return "trl"


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


def rlaif_v(row: Row) -> Row:
    """``question``, ``chosen``, ``rejected``, ``image``."""
    found = {"prompt": take(row, "question"), **row}
    if "image" in found:
        found["images"] = [found.pop("image")]
    return found


def llama_factory(row: Row) -> Row:
    """``conversations``, ``chosen``, ``rejected`` of ``{"from", "value"}`` messages, ``system``."""
    turns = take(row, "conversations")
    if not isinstance(turns, list):
        raise RowError("wrong type", f"conversations must be a list, not {short(turns)}")
    system = row.pop("system", None)
    head = [{"role": "system", "content": system}] if system else []
    found = {"prompt": [*head, *(_sharegpt(turn) for turn in turns)], **row}
    for side in ("chosen", "rejected"):
        if isinstance(found.get(side), Mapping):
            found[side] = [_sharegpt(found[side])]
    return found


def ms_swift(row: Row) -> Row:
    """``messages`` that end with the chosen answer, and ``rejected_response``."""
    messages = take(row, "messages")
    if not isinstance(messages, list) or not messages:
        raise RowError("wrong type", f"messages must be a list of messages, not {short(messages)}")
    return {
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": take(row, "rejected_response"),
        **row,
    }


FORMATS: Mapping[str, Callable[[Row], Row]] = {
    "trl": dict,
    "pick_a_pic": pick_a_pic,
    "rlaif_v": rlaif_v,
    "llama_factory": llama_factory,
    "ms_swift": ms_swift,
}


def take(row: Row, key: str) -> Any:
    """Remove and return a column.

    Raises:
        RowError: The row lacks it.
    """
    if key not in row:
        raise RowError("missing column", f"{key!r} is not among {sorted(row)}; see `columns`")
    return row.pop(key)


def short(value: Any) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sharegpt(turn: Any) -> Row:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        raise RowError("wrong type", f"a turn must have 'from' and 'value', not {short(turn)}")
    return {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
