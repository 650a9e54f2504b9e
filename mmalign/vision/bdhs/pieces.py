"""An answer in pieces, each of which is begun with the right words and completed by the model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from mmalign.text.sentences import sentences

FULL_STOP = "."
OPPOSITE = {"Yes": "No", "yes": "no", "No": "Yes", "no": "yes"}
# "Nothing", "Yesterday" and "no-one" are other words.
_VERDICT = re.compile(r"(\s*)(Yes|yes|No|no)(?![\w'-])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of the right answer, cut in two.

    Attributes:
        context: The right answer before it.
        prefix: What is kept of it, its verdict perhaps swapped; white space before it included.
        lead: The white space before it.
        ending: Its end mark with the white space before that; "" where it has none, None where how
            it ends is the model's affair.
        complete: Whether the prefix is a whole piece, so that nothing is left to be written.
    """

    context: str
    prefix: str
    lead: str
    ending: str | None
    complete: bool

    @property
    def beginning(self) -> str:
        """What the model goes on from: right answer up to the piece, then the prefix."""
        return self.context + self.prefix

    def with_completion(self, completion: str, *, mark: str) -> str:
        """The piece with what the model wrote, up to the mark or the model's own end.

        White space that it left out at the start is put in, and the piece ends with a mark where
        the right one does and only there: the sides of a pair shall differ in what they say. A
        piece of which nothing came is left out.
        """
        text = self.prefix + completion
        if not text.strip():
            return ""
        if not text[:1].isspace():
            text = self.lead + text
        if self.ending is None:
            return text
        return text.rstrip().removesuffix(mark).rstrip() + self.ending


def split(text: str, mark: str | None) -> list[str]:
    """The pieces of an answer; put together they are the answer without outer white space.

    Args:
        text: The answer.
        mark: A piece ends behind this; None for sentences, which abbreviations do not end.

    Returns:
        Pieces with the white space before them; none where there is nothing else.
    """
    text = text.strip()
    parts = sentences(text) if mark is None else re.split(f"(?<={re.escape(mark)})", text)
    found: list[str] = []
    between = ""
    for part in parts:
        if not part.strip():
            between += part
            continue
        body = part.rstrip()
        found.append(between + body)
        between = part[len(body) :]
    return found


def cut(text: str, mark: str | None, *, generator: torch.Generator) -> list[Piece]:
    """Every piece of an answer with a random beginning kept.

    The cut falls between two words or before the first, every place as likely as another, so that
    at least one word is left to be written; text without spaces is one word. Where a piece begins
    with yes or no, the opposite stands there with probability 1/2, and is kept in any case.

    Args:
        text: The answer.
        mark: As in `split`.
        generator: Two numbers a piece.
    """
    found, context = [], ""
    for piece in split(text, mark):
        place, chance = torch.rand(2, generator=generator).tolist()
        words = re.findall(r"\s*\S+", piece)
        kept = int(place * len(words))
        verdict = _VERDICT.match(piece)
        if verdict is not None and chance < 0.5:
            space, word = verdict.groups()
            words[0] = space + OPPOSITE[word] + words[0][verdict.end() :]
            kept = max(kept, 1)
        end = mark or FULL_STOP
        ending = re.search(rf"\s*{re.escape(end)}$", piece)
        prefix = "".join(words[:kept])
        found.append(
            Piece(
                context=context,
                prefix=prefix,
                lead=piece[: len(piece) - len(piece.lstrip())],
                ending=ending.group() if ending else "",
                complete=kept == len(words) and prefix.endswith(end),
            )
        )
        context += piece
    return found
