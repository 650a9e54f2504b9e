"""Checking a data file: everything that training would refuse, and much that it would not notice.

One pass in file order. Of the rows that are done only hashes are kept, so that memory grows by some
hundred bytes a row, whatever the rows hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from mmalign.data import images
from mmalign.data.findings import (
    Finding,
    column_of,
    key_of,
    markup,
    normal,
    odd_characters,
    prompt_key,
    texts_of,
)
from mmalign.data.formats import Dropped, RowError
from mmalign.data.inspecting import Inspected, Level, Note, inspect
from mmalign.data.lengths import Lengths
from mmalign.data.reading import CONVERT, Kind, Parsed, Reader, answers_of, kind_of
from mmalign.data.records import PLACEHOLDER, Encoded, Picture, PreferenceRow, PromptRow

UNBALANCED = 1.5
"""Median ratio of the lengths of chosen and rejected answers, or its inverse, that is said."""
ENOUGH = 20
"""Pairs from which on a median says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What another file holds, as hashes.

    Attributes:
        reader: The file.
        prompts: Number of the first row, by key of the prompt.
        pictures: Number of the first row, by digest of a picture in a prompt.
    """

    reader: Reader
    prompts: dict[bytes, int] = field(default_factory=dict)
    pictures: dict[bytes, int] = field(default_factory=dict)


class Checker:
    """Looks at the rows of a file, one after the other.

    Args:
        reader: The file.
        against: Rows that none of this file may repeat.
        lengths: Counts tokens; None leaves that out.
    """

    def __init__(
        self, reader: Reader, *, against: Known | None = None, lengths: Lengths | None = None
    ) -> None:
        self.reader = reader
        self.known = Known(reader=reader)
        self._against = against
        self._lengths = lengths
        self._kind: Kind | None = None
        self._pairs: dict[bytes, int] = {}
        self._inspected: dict[bytes, Inspected] = {}
        self._ratios = array("d")

    def row(self, number: int) -> Iterator[Finding]:
        """What there is to say about a row; rows come in order, each once."""
        try:
            row = self.reader.read(number)
            if self._kind is None:
                self._kind = kind_of(row)
            parsed = CONVERT[self._kind](row)
        except Dropped as dropped:
            message = "the row says nothing; it is left out"
            yield self._found(number, "", ("warning", dropped.reason, message))
            return
        except RowError as error:
            message = str(error).removeprefix(f"{error.reason}: ")
            yield self._found(number, column_of(error), ("error", error.reason, message))
            return
        failed = False
        for finding in self._parsed(number, parsed):
            failed = failed or finding.level == "error"
            yield finding
        if self._lengths is not None and not failed:
            for column, said in self._lengths.check(parsed, self.reader.place.folder):
                yield self._found(number, column, said)

    def whole(self) -> Iterator[Finding]:
        """What there is to say about the file, after its last row."""
        if len(self._ratios) < ENOUGH:
            return
        ratio = median(self._ratios)
        if 1 / UNBALANCED < ratio < UNBALANCED:
            return
        longer = sum(r > 1 for r in self._ratios) / len(self._ratios)
        which = "longer" if ratio > 1 else "shorter"
        yield Finding(
            level="warning",
            reason="unbalanced lengths",
            message=f"the median chosen answer has {ratio:.2f} times the characters of its "
            f"rejected one, and is longer in {100 * longer:.0f} % of {len(self._ratios)} pairs: "
            f"a model can learn to write {which} answers and nothing else",
            file=str(self.reader.place.path),
            row=None,
            place=str(self.reader.place.path),
        )

    def _found(self, number: int, column: str, said: tuple[Level, str, str]) -> Finding:
        level, reason, message = said
        return Finding(
            level=level,
            reason=reason,
            message=message,
            file=str(self.reader.place.path),
            row=number + 1,
            place=self.reader.where(number),
            field=column,
        )

    def _parsed(self, number: int, parsed: Parsed) -> Iterator[Finding]:
        yield from self._texts(number, parsed)
        digests: list[bytes] = []
        for column, picture in _pictures(parsed):
            seen = self._inspect(picture)
            digests.append(seen.digest)
            for note in seen.notes:
                message = f"{_named(picture)}: {note.message}"
                yield self._found(number, column, (note.level, note.reason, message))
        yield from self._repeats(number, parsed, digests)

    def _texts(self, number: int, parsed: Parsed) -> Iterator[Finding]:
        prompt = parsed if isinstance(parsed, PromptRow) else parsed.prompt
        places = [("prompt", text) for text in texts_of(prompt.content)]
        places += [(column, a) for column, a in answers_of(parsed) if isinstance(a, str)]
        for column, text in places:
            if (odd := odd_characters(text)) is not None:
                yield self._found(number, column, odd)
            if self._lengths is None and (token := markup(text)) is not None:
                message = (
                    f"{token!r} looks like a chat template's, and mmalign applies the template"
                )
                yield self._found(number, column, ("warning", "special tokens", message))
            if PLACEHOLDER in text:
                message = f"{PLACEHOLDER} is read as text here, no picture stands in its place"
                yield self._found(number, column, ("warning", "placeholders", message))
        if isinstance(parsed, PreferenceRow):
            yield from self._compare(number, parsed)

    def _compare(self, number: int, pair: PreferenceRow) -> Iterator[Finding]:
        if not isinstance(pair.chosen, str) or not isinstance(pair.rejected, str):
            return
        self._ratios.append(len(pair.chosen) / len(pair.rejected))
        if pair.rejected_prompt is None and normal(pair.chosen) == normal(pair.rejected):
            message = "chosen and rejected differ in nothing but capitals and white space"
            yield self._found(number, "rejected", ("warning", "nearly identical answers", message))

    def _inspect(self, picture: Encoded) -> Inspected:
        """A picture's oddities, those that do no harm for the first row that shows it."""
        whole = picture if isinstance(picture, bytes) else picture.encode("utf-8", "surrogatepass")
        key = key_of(whole, str(isinstance(picture, str)).encode())
        if key in self._inspected:
            return self._inspected[key]
        try:
            found = inspect(_located(picture, self.reader))
        except ValueError as error:
            found = Inspected(notes=(_misplaced(str(error)),))
        errors = tuple(note for note in found.notes if note.level == "error")
        self._inspected[key] = Inspected(digest=found.digest, notes=errors)
        return found

    def _repeats(self, number: int, parsed: Parsed, digests: list[bytes]) -> Iterator[Finding]:
        prompt = parsed if isinstance(parsed, PromptRow) else parsed.prompt
        if not all(digests):
            return
        shown = digests[: len(prompt.images)]
        if len(set(shown)) < len(shown):
            message = "the prompt shows one picture twice, perhaps under two names"
            yield self._found(number, "images", ("warning", "repeated picture", message))
        asked = prompt_key(prompt.content, shown)
        yield from self._leaks(number, asked, shown)
        self.known.prompts.setdefault(asked, number)
        for digest in shown:
            self.known.pictures.setdefault(digest, number)
        if not isinstance(parsed, PromptRow):
            yield from self._again(number, parsed, asked, digests[len(shown) :])

    def _leaks(self, number: int, asked: bytes, shown: list[bytes]) -> Iterator[Finding]:
        if self._against is None:
            return
        where = self._against.reader.where
        if asked in self._against.prompts:
            place = where(self._against.prompts[asked])
            message = f"{place} asks the same of the same pictures; remove one of them"
            yield self._found(number, "prompt", ("error", "leaking prompt", message))
            return
        both = next((d for d in shown if d in self._against.pictures), None)
        if both is not None:
            place = where(self._against.pictures[both])
            message = f"{place} asks something else of one of the pictures"
            yield self._found(number, "images", ("warning", "shared picture", message))

    def _again(
        self,
        number: int,
        parsed: Parsed,
        asked: bytes,
        further: list[bytes],
    ) -> Iterator[Finding]:
        """Duplicates, and pairs that say the opposite of another."""
        sides = _sides(parsed, further)
        same = key_of(asked, *sides)
        swapped = key_of(asked, *reversed(sides))
        if isinstance(parsed, PreferenceRow) and swapped in self._pairs:
            place = self.reader.where(self._pairs[swapped])
            message = f"{place} prefers the same two answers the other way round"
            yield self._found(number, "chosen", ("error", "contradictory pairs", message))
        elif same in self._pairs:
            place = self.reader.where(self._pairs[same])
            message = f"{place} is the same; both count in training"
            yield self._found(number, "", ("warning", "duplicate rows", message))
        self._pairs.setdefault(same, number)


def _pictures(parsed: Parsed) -> Iterator[tuple[str, Encoded]]:
    """Every picture with its column: those of the prompt first, then of the other side, answers."""
    prompt = parsed if isinstance(parsed, PromptRow) else parsed.prompt
    other = parsed.rejected_prompt if isinstance(parsed, PreferenceRow) else None
    yield from (("images", image) for image in prompt.images)
    if other is not None:
        yield from (("rejected_images", image) for image in other.images)
    for column, answer in answers_of(parsed):
        if isinstance(answer, Picture):
            yield from ((column, frame) for frame in answer.frames)


def _sides(parsed: Parsed, further: list[bytes]) -> list[bytes]:
    """What was answered, by side; ``further`` are the digests behind those of the prompt."""
    other = parsed.rejected_prompt if isinstance(parsed, PreferenceRow) else None
    views = further[: len(other.images)] if other is not None else []
    pictures = iter(further[len(views) :])
    sides = []
    for _, answer in answers_of(parsed):
        if isinstance(answer, Picture):
            frames = [next(pictures) for _ in answer.frames]
            sides.append(frames[0] if len(frames) == 1 else key_of(*frames))
        else:
            sides.append(answer.strip().encode("utf-8", "surrogatepass"))
    if views:
        sides[-1] = key_of(sides[-1], *views)
    return sides


def _located(picture: Encoded, reader: Reader) -> images.Picture:
    return picture if isinstance(picture, bytes) else images.inside(reader.place.folder, picture)


def _named(picture: Encoded) -> str:
    return "a picture in the file" if isinstance(picture, bytes) else repr(picture)


def _misplaced(message: str) -> Note:
    reasons = (
        ("is a URL", "picture URL"),
        ("lies outside", "path leaves folder"),
        ("does not exist", "missing picture"),
    )
    reason = next((reason for words, reason in reasons if words in message), "bad path")
    # The message names the picture, and so does whoever reports it.
    return Note(level="error", reason=reason, message=message.partition("' ")[2] or message)
