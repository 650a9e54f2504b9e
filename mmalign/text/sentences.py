"""Sentences of a text, nothing lost between them."""

from __future__ import annotations

import sentencex


def sentences(text: str, *, language: str = "en") -> list[str]:
    """Cut a text into sentences; put together, they are the text.

    Abbreviations ("e.g.", "Dr.") and numbers ("3.5") do not end a sentence. The white space behind
    a sentence belongs to it, that before the first one to the first.

    Args:
        text: Any text.
        language: Its ISO 639-1 code.

    Returns:
        The sentences, each with something other than white space in it; none where the text has
        nothing else.
    """
    found: list[str] = []
    before = ""
    piece: str
    for piece in sentencex.segment(language, text):
        if not piece.strip():
            if found:
                found[-1] += piece
            else:
                before += piece
            continue
        found.append(before + piece)
        before = ""
    assert not found or "".join(found) == text, "the segmenter lost a part of the text"
    return found
