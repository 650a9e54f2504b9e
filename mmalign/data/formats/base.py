"""What every layout is made with: rows, and the two ways in which one is of no use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

ROLES_OF_SHAREGPT: Mapping[str, str] = {
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


def text_of(value: Any, key: str) -> str:
    """A value that must be text.

    Raises:
        RowError: It is none; ``key`` names it.
    """
    if not isinstance(value, str):
        raise RowError("wrong type", f"{key!r} must be text, not {short(value)}")
    return value


def list_of(value: Any, key: str) -> list[Any]:
    """A value that must be a list with something in it.

    Raises:
        RowError: It is none; ``key`` names it.
    """
    if not isinstance(value, list) or not value:
        raise RowError("wrong type", f"{key!r} must be a list, not empty, not {short(value)}")
    return value


def mapping_of(value: Any, key: str, needed: Sequence[str]) -> Mapping[str, Any]:
    """A value that must be an object with certain keys.

    Raises:
        RowError: It is none, or lacks one; ``key`` names it.
    """
    if not isinstance(value, Mapping) or not set(needed) <= value.keys():
        raise RowError(
            "wrong type", f"{key!r} must be an object with {', '.join(needed)}, not {short(value)}"
        )
    return value


def turns_of(value: Any, key: str) -> list[Row]:
    """ShareGPT's ``{"from", "value"}`` turns as messages.

    Raises:
        RowError: It is no list of them; ``key`` names it.
    """
    turns = list_of(value, key)
    return [turn_of(turn, f"{key}[{number}]") for number, turn in enumerate(turns)]


def turn_of(value: Any, key: str) -> Row:
    """One such turn as a message.

    Raises:
        RowError: It is none; ``key`` names it.
    """
    turn = mapping_of(value, key, ("from", "value"))
    speaker = turn["from"]
    if not isinstance(speaker, str):
        raise RowError("wrong type", f"'{key}.from' must be text, not {short(speaker)}")
    content = text_of(turn["value"], f"{key}.value")
    return {"role": ROLES_OF_SHAREGPT.get(speaker, speaker), "content": content}


def answered(messages: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """A conversation parted into the prompt and the answer at its end, which may be missing."""
    if messages and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
        return list(messages[:-1]), list(messages[-1:])
    return list(messages), []


def refuse(row: Row, keys: Sequence[str], why: str) -> None:
    """Stop at columns whose content would be lost without a word.

    Raises:
        RowError: One of them holds something.
    """
    for key in keys:
        if row.get(key):
            raise RowError("unread column", f"{key!r} holds {short(row[key])}: {why}")
