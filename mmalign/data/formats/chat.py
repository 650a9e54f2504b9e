"""The layouts of two training frameworks: LLaMA-Factory and ms-swift.

As their own documentation describes them (``data/README.md`` of hiyouga/LLaMA-Factory, and
``docs/source_en/Customization/Custom-dataset.md`` of modelscope/ms-swift).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmalign.data.formats.base import (
    Row,
    RowError,
    answered,
    list_of,
    refuse,
    short,
    take,
    text_of,
    turn_of,
    turns_of,
)

_SHOWN_ONLY = ("videos", "audios")
_NOT_SHOWN = "a policy would not be shown it; leave the column out if that is meant"


def llama_factory(row: Row) -> Row:
    """Its three layouts: ShareGPT, OpenAI and Alpaca, for preferences and for demonstrations.

    ShareGPT has ``conversations`` of ``from`` and ``value``, OpenAI ``messages`` of ``role`` and
    ``content``; a preference has a turn in ``chosen`` and one in ``rejected``, a demonstration ends
    with its answer. Alpaca has ``instruction``, ``input``, ``history``, and ``chosen`` with
    ``rejected`` or ``output``. Each may have ``system`` and ``images``.

    Raises:
        RowError: A column is malformed, or says something that would be lost.
    """
    refuse(row, (*_SHOWN_ONLY, "tools"), _NOT_SHOWN)
    _refuse_unpaired(row, "kto_tag")
    head = _system(row)
    if "instruction" in row:
        return _alpaca(row, head)
    if "conversations" in row:
        said = turns_of(take(row, "conversations"), "conversations")
    else:
        said = list_of(take(row, "messages"), "messages")
    if "chosen" not in row and "rejected" not in row:
        prompt, answer = answered(said)
        return {"prompt": [*head, *prompt], **_completion(answer), **row}
    sides = {side: _turn(take(row, side), side) for side in ("chosen", "rejected")}
    return {"prompt": [*head, *said], **sides, **row}


def ms_swift(row: Row) -> Row:
    """``messages``, and for a preference ``rejected_response`` or ``rejected_messages``.

    The chosen answer stands at the end of ``messages``; ``rejected_messages`` repeats the prompt
    before its own. ``images`` and ``rejected_images`` hold the pictures.

    Raises:
        RowError: A column is malformed, or says something that would be lost.
    """
    refuse(row, (*_SHOWN_ONLY, "tools", "objects"), _NOT_SHOWN)
    _refuse_unpaired(row, "label")
    head = _system(row)
    prompt, answer = answered([*head, *list_of(take(row, "messages"), "messages")])
    response, other = row.pop("rejected_response", None), row.pop("rejected_messages", None)
    if response is None and other is None:
        refuse(row, ("rejected_images",), "there is no rejected answer beside it")
        return {"prompt": prompt, **_completion(answer), **row}
    if not answer:
        raise RowError("wrong value", "'messages' must end with the assistant's chosen answer")
    if response is None:
        asked, rejected = answered(list_of(other, "rejected_messages"))
        if [*head, *asked] != prompt:
            raise RowError(
                "wrong value",
                "'rejected_messages' must repeat what 'messages' says before its last answer",
            )
        response = rejected or None
    return {"prompt": prompt, "chosen": answer, "rejected": response, **row}


def _system(row: Row) -> list[Row]:
    system = row.pop("system", None)
    return [{"role": "system", "content": text_of(system, "system")}] if system else []


def _alpaca(row: Row, head: list[Row]) -> Row:
    asked = text_of(take(row, "instruction"), "instruction")
    more = row.pop("input", None)
    asked = f"{asked}\n{text_of(more, 'input')}" if more else asked
    before: list[Row] = []
    for number, pair in enumerate(row.pop("history", None) or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(
                "wrong type", f"'history[{number}]' must be [question, answer], not {short(pair)}"
            )
        for role, said in zip(("user", "assistant"), pair, strict=True):
            before.append({"role": role, "content": text_of(said, f"history[{number}]")})
    found: Row = {"prompt": [*head, *before, {"role": "user", "content": asked}]}
    if "output" in row:
        found["completion"] = row.pop("output")
    return {**found, **row}


def _turn(value: Any, side: str) -> Any:
    """An answer as a message: ShareGPT's turn, OpenAI's message, or text."""
    if isinstance(value, Mapping):
        return [dict(value) if "role" in value else turn_of(value, side)]
    return value


def _completion(answer: list[Row]) -> Row:
    return {"completion": answer} if answer else {}


def _refuse_unpaired(row: Row, key: str) -> None:
    if isinstance(row.get(key), bool):
        raise RowError(
            "wrong value",
            f"{key!r} is {row[key]}: the file rates single answers, which are no preferences and "
            "not all of them to be imitated",
        )
