"""An exact expert: it knows the scene, and corrects phrase by phrase with the fewest edits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.experts import Draft, ErrorType, Report, Sentence, Verdict
from mmalign.tinyworld.language import Mention, mention_from_dict, parse, phrase
from mmalign.tinyworld.scenes import ATTRIBUTES, Object, Scene, from_dict

WRONG_PICTURE: ErrorType = "image_recognition_error"
WRONG_WORDS: ErrorType = "language_comprehension_error"
# A phrase with the comma or "and" behind it, so that the pieces put together are the answer.
PIECE = re.compile(r"\S.*?(?:\s(?:,|and)(?=\s|$)|$)")
JOINT = re.compile(r"\s(?:,|and)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorldExpert:
    """Corrects descriptions and short answers of the tiny world, exactly.

    In a description every phrase is a sentence of the report. A phrase that names an object of the
    scene rightly gets 4. Any other is rewritten as the object that it resembles most among those
    that no phrase has named: 3 with one attribute wrong or missing, 2 with two, 1 with more. A
    phrase for which no object is left is removed, with 1. Objects left out are added. A short
    answer is right, or replaced with 2.
    """

    def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
        """Reports that make every answer exact.

        Raises:
            ValueError: A prompt is of another task than these.
        """
        return [Verdict(report=self._report(draft)) for draft in drafts]

    def _report(self, draft: Draft) -> Report:
        meta = draft.prompt.meta
        if "scene" in meta:
            return Report(sentences=_described(draft.answer, from_dict(meta["scene"])))
        if "answer" in meta:
            return Report(sentences=(_answered(draft.answer, str(meta["answer"])),))
        raise ValueError(
            f"row {draft.row}: the tiny world's expert corrects answers of the tasks describe, vqa "
            f"and multi_image, not of {meta.get('task')!r}"
        )


def _answered(answer: str, right: str) -> Sentence:
    if answer.split() == right.split():
        return Sentence(copied=answer, score=4, error="correct", rewritten=answer)
    return Sentence(copied=answer, score=2, error=WRONG_PICTURE, rewritten=right, object=right)


def _described(answer: str, scene: Scene) -> tuple[Sentence, ...]:
    pieces = PIECE.findall(answer)
    named = [_only(parse(piece)) for piece in pieces]
    left = list(scene.objects)
    meant: list[Object | None] = []
    for mention in named:
        right = next((item for item in left if mention and _wrong(mention, item) == 0), None)
        meant.append(right)
        if right is not None:
            left.remove(right)
    sentences = []
    for piece, mention, right in zip(pieces, named, meant, strict=True):
        if right is None and mention is not None and left:
            right = min(left, key=lambda item: _wrong(mention, item))
            left.remove(right)
        sentences.append(_corrected(piece, mention, right))
    sentences = _without_loose_end(sentences, more=bool(left))
    for item in left:
        text = f"and {_phrase(item)}" if any(s.rewritten for s in sentences) else _phrase(item)
        sentences.append(
            Sentence(copied=None, score=2, error=WRONG_PICTURE, rewritten=text, object=item.shape)
        )
    return tuple(sentences)


def _corrected(piece: str, mention: Mention | None, right: Object | None) -> Sentence:
    if right is None:
        error = WRONG_WORDS if mention is None else WRONG_PICTURE
        return Sentence(copied=piece, score=1, error=error, rewritten="", reason="nothing such")
    assert mention is not None
    wrong = _wrong(mention, right)
    if wrong == 0:
        return Sentence(copied=piece, score=4, error="correct", rewritten=piece)
    joint = JOINT.search(piece)
    return Sentence(
        copied=piece,
        score=max(4 - wrong, 1),
        error=WRONG_PICTURE,
        rewritten=_phrase(right) + ("" if joint is None else joint.group()),
        object=right.shape,
    )


def _without_loose_end(sentences: Sequence[Sentence], *, more: bool) -> list[Sentence]:
    """The sentences, none of them ending in a comma or "and" that nothing follows."""
    found = list(sentences)
    last = max((i for i, one in enumerate(found) if one.rewritten), default=None)
    if last is None or JOINT.search(found[last].rewritten) is None:
        return found
    one = found[last]
    found[last] = Sentence(
        copied=one.copied,
        score=min(one.score, 3),
        error=WRONG_WORDS if one.error == "correct" else one.error,
        rewritten=JOINT.sub("", one.rewritten),
        object=one.object,
        reason="nothing follows" if not more else "joined anew",
    )
    return found


def _wrong(mention: Mention, item: Object) -> int:
    """How many attributes of the object a mention leaves out or gets wrong; a count is one too."""
    return (mention.count != 1) + sum(
        getattr(mention, name) != getattr(item, name) for name in ATTRIBUTES
    )


def _only(mentions: Sequence[Mention]) -> Mention | None:
    """The first of a piece's mentions, if there is any."""
    return mentions[0] if mentions else None


def _phrase(item: Object) -> str:
    return phrase(mention_from_dict({name: getattr(item, name) for name in ATTRIBUTES}))
