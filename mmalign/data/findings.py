"""What a check says, and what makes two rows the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.data.formats import RowError
from mmalign.data.inspecting import Level
from mmalign.data.records import COLUMNS, COMPLETIONS, Content

_NAMED = re.compile("'(" + "|".join((*COLUMNS, *COMPLETIONS)) + ")'")
_MARKUP = re.compile(
    r"<\|[\w ]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)
"""Tokens that chat templates write, as they are spelt most."""
_ALLOWED = "\t\n\r"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a row or a file.

    Attributes:
        level: An error where training refuses the row or is misled by it; a warning where mmalign
            deals with it, in the way that the message says.
        reason: In two or three words, the same for rows with the same defect.
        message: What is wrong, and what to do or what is done.
        file: The data file.
        row: Number of the row, from 1, blank lines not counted; None for the file as a whole.
        place: The row as an editor finds it; the file where it is the file as a whole.
        field: The column, by our name; "" where it is the row as a whole.
    """

    level: Level
    reason: str
    message: str
    file: str
    row: int | None
    place: str
    field: str = ""

    def line(self) -> str:
        """One line of text, nothing in it that a terminal would obey."""
        where = f"{self.place}: {self.field}" if self.field else self.place
        return printable(f"{where}: {self.level}: {self.reason}: {self.message}")


def printable(text: str) -> str:
    """The text with control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def column_of(error: RowError) -> str:
    """The column that a row's error is about."""
    if error.reason == "placeholders":
        return "prompt"
    found = _NAMED.search(str(error))
    return found[1] if found is not None else ""


def texts_of(content: Content) -> Iterator[str]:
    """Every text of a prompt."""
    if isinstance(content, str):
        yield content
        return
    for message in content:
        yield from _pieces(message["content"])


def _pieces(content: str | Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content if part["type"] == "text")


def normal(text: str) -> str:
    """A text without what does not make it another one: case, white space, forms of a letter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(content: Content, pictures: Sequence[bytes]) -> bytes:
    """Names a question: the same turns, system prompt aside, about the same pictures in order.

    Args:
        content: The prompt.
        pictures: Digests of its pictures.
    """
    if isinstance(content, str):
        turns = [normal(content)]
    else:
        turns = [
            normal(" ".join(_pieces(message["content"])))
            for message in content
            if message["role"] not in ("system", "developer")
        ]
    return key_of(*(turn.encode("utf-8", "surrogatepass") for turn in turns), b"", *pictures)


def key_of(*parts: bytes) -> bytes:
    """16 bytes that name a sequence of bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def odd_characters(text: str) -> tuple[Level, str, str] | None:
    """Level, reason and message where a text holds what nobody has typed."""
    if text.isprintable():
        return None
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            message = f"half a character, U+{ord(character):04X}; no tokenizer can read it"
            return "error", "broken characters", message
        if kind == "Cc" and character not in _ALLOWED:
            message = f"the control character U+{ord(character):04X}; it is kept as it is"
            return "warning", "control characters", message
    return None


def markup(text: str) -> str | None:
    """The first thing in a text that looks like a token of a chat template."""
    found = _MARKUP.search(text)
    return found[0] if found is not None else None
