"""Corrected answers: what they say, and which characters weigh what."""

from __future__ import annotations

import pytest

from mmalign.experts import ErrorType, Report, Sentence
from mmalign.vision.opa.revising import SpanWeights, repetitive, revised

WRONG: ErrorType = "image_recognition_error"


def said(
    copied: str | None, score: int, rewritten: str | None = None, error: ErrorType = "correct"
) -> Sentence:
    """A sentence of a report; without a rewritten one it stays."""
    assert copied is not None or rewritten is not None
    new = copied if rewritten is None else rewritten
    return Sentence(copied=copied, score=score, error=error, rewritten=str(new))


def test_a_corrected_answer() -> None:
    """Scores 4, 2, 1 of "A. B. C.", the second about the picture, the third removed, one added.

    Characters 0-2, 3-5, 6-8 of the sampled answer weigh 1, 2, 2.5. The corrected one is "A. BB. D."
    with "BB." (3-6) at 2 and 3 between views, and "D." (7-9), which is added, at 1.
    """
    report = Report(
        sentences=(
            said("A.", 4),
            said("B.", 2, "BB.", WRONG),
            said("C.", 1, "", "language_comprehension_error"),
            said(None, 2, "D.", WRONG),
        )
    )
    found = revised("A. B. C.", report, SpanWeights())
    assert found.text == "A. BB. D."
    assert found.sampled == ((0, 2, 1.0, 1.0), (3, 5, 2.0, 3.0), (6, 8, 2.5, 1.0))
    assert found.spans == ((0, 2, 1.0, 1.0), (3, 6, 2.0, 3.0), (7, 9, 1.0, 1.0))
    assert [found.text[s.start : s.end] for s in found.spans] == ["A.", "BB.", "D."]
    assert found.unmatched == 0


def test_scores_have_their_weights() -> None:
    answer = "One. Two. Three. Four."
    sentences = tuple(said(w, n) for n, w in enumerate(["One.", "Two.", "Three.", "Four."], 1))
    found = revised(answer, Report(sentences=sentences), SpanWeights())
    assert [span.severity for span in found.sampled] == [2.5, 2.0, 1.5, 1.0]
    own = SpanWeights(severity=(9.0, 1.0, 1.0, 1.0), image=7.0)
    assert revised(answer, Report(sentences=sentences), own).sampled[0].severity == 9.0


@pytest.mark.parametrize("answer", ["A. B.", "A.\n\nB.", "  A.  B. ", "A.B."])
def test_what_is_right_stays_character_by_character(answer: str) -> None:
    """White space between sentences is the answer's own; that around the answer is dropped."""
    report = Report(sentences=(said("A.", 4), said("B.", 4)))
    expected = answer.strip() if answer != "A.B." else "A. B."
    assert revised(answer, report, SpanWeights()).text == expected


def test_sentences_that_the_answer_does_not_have() -> None:
    """Nothing extra in the sampled answer; in the corrected one they have their weight."""
    report = Report(sentences=(said("A.", 4), said("A cat.", 1, "A dog.", WRONG)))
    found = revised("A. A  cat.", report, SpanWeights())
    assert found.text == "A. A dog." and found.unmatched == 1
    assert found.sampled == ((0, 2, 1.0, 1.0),)
    assert found.spans[1] == (3, 9, 2.5, 3.0)


def test_repeated_sentences_are_found_one_after_the_other() -> None:
    """The second quote of a sentence is the second time that it stands there."""
    report = Report(sentences=(said("No.", 4), said("Yes.", 2), said("No.", 1)))
    found = revised("No. Yes. No.", report, SpanWeights())
    assert found.sampled == ((0, 3, 1.0, 1.0), (4, 8, 2.0, 1.0), (9, 12, 2.5, 1.0))
    # Out of order: what stands earlier is found too, but no character twice.
    swapped = Report(sentences=(said("Yes.", 2), said("No.", 4), said("No.", 1)))
    found = revised("No. Yes. No.", swapped, SpanWeights())
    assert found.sampled == ((0, 3, 2.5, 1.0), (4, 8, 2.0, 1.0), (9, 12, 1.0, 1.0))
    assert found.unmatched == 0


def test_nothing_left() -> None:
    found = revised("A.", Report(sentences=(said("A.", 1, " "),)), SpanWeights())
    assert found.text == "" and found.spans == () and len(found.sampled) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A dog runs. A cat sits. A dog runs.", "sentence repeated"),
        ("A dog runs. A cat sits.", None),
        ("a dog", None),
        ("", None),
        # The last sentence is only the end of an earlier one.
        ("There is a dog. a dog.", "sentence repeated"),
        ("very " * 33, "word repeated"),
        # 32 in all: 30 before the last two.
        ("very " * 32, None),
        ("x very " * 40 + "end", None),
    ],
)
def test_answers_that_go_round_in_circles(answer: str, expected: str | None) -> None:
    assert repetitive(answer) == expected


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="negative"):
        SpanWeights(image=-1.0)
