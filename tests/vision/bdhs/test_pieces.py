"""Pieces of an answer: where they are cut, what is kept, and how they are put together again."""

import pytest
import torch

from mmalign.assets import missing
from mmalign.rewards.relevance import MINILM
from mmalign.vision.bdhs.pieces import Piece, cut, split
from mmalign.vision.bdhs.similarity import similarity_of, word_cosines

TEXT = "Dr. Ray, e.g., sits on a mat.  It costs 3.5 pounds.\nYes, it is red. No end"


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    """White space goes in front; nothing is lost but the outer white space."""
    found = split(f" {TEXT} \n", None)
    assert found == [
        "Dr. Ray, e.g., sits on a mat.",
        "  It costs 3.5 pounds.",
        "\nYes, it is red.",
        " No end",
    ]
    assert "".join(found) == TEXT
    assert split(" \n", None) == [] == split("", ",")


def test_a_mark_ends_a_piece() -> None:
    assert split("a b , c d , e", ",") == ["a b ,", " c d ,", " e"]
    assert split("a b", ",") == ["a b"]
    assert split("a . . b", ".") == ["a .", " .", " b"]


@pytest.mark.parametrize("mark", [None, ","])
def test_the_context_of_every_piece_is_the_right_answer_before_it(mark: str | None) -> None:
    """Whatever is swapped or cut in the pieces before."""
    whole = split(TEXT, mark)
    for seed in range(50):
        pieces = cut(TEXT, mark, generator=draws(seed))
        for k, piece in enumerate(pieces):
            assert piece.context == "".join(whole[:k])
            if "Yes" not in whole[k] and "No" not in whole[k]:
                assert whole[k].startswith(piece.prefix) and piece.prefix != whole[k]
                rest = whole[k][len(piece.prefix) :]
                assert not rest or rest[0].isspace() or piece.prefix == ""


def test_every_cut_is_as_likely_as_another() -> None:
    """Four words: before each of them, the first too, 1/4; 4000 draws, deviation 0.007."""
    kept = [cut("a b c d.", None, generator=draws(i))[0].prefix for i in range(4000)]
    for prefix in ("", "a", "a b", "a b c"):
        assert kept.count(prefix) / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("piece", "other"),
    [("Yes, it is.", "No"), ("yes it is.", "no"), ("No, it is.", "Yes"), ("\n no it is.", "yes")],
)
def test_half_of_the_verdicts_are_swapped_and_then_kept(piece: str, other: str) -> None:
    """2000 draws, deviation 0.011. The text before it makes the white space matter."""
    prefixes = [
        cut(f"So. {piece}", None, generator=draws(i))[1].prefix.strip() for i in range(2000)
    ]
    swapped = [p for p in prefixes if p.startswith(other)]
    assert len(swapped) / 2000 == pytest.approx(0.5, abs=0.045)
    own = piece.strip().split()[0].strip(",")
    assert all(p == "" or p.startswith((own, other)) for p in prefixes)
    assert "" in prefixes


@pytest.mark.parametrize("text", ["Nothing is red.", "Yesterday it was.", "No-one sits.", "Yes's"])
def test_words_that_only_begin_like_a_verdict_are_kept(text: str) -> None:
    for seed in range(200):
        (piece,) = cut(text, None, generator=draws(seed))
        assert text.startswith(piece.prefix)


def test_a_swapped_verdict_that_is_a_whole_sentence_is_complete() -> None:
    """ "No." for "Yes.", and nothing is left to be written; without a stop the model goes on."""
    found = [cut("Yes.", None, generator=draws(i))[0] for i in range(50)]
    assert {(p.prefix, p.complete) for p in found} == {("", False), ("No.", True)}
    found = [cut("Yes", None, generator=draws(i))[0] for i in range(50)]
    assert {(p.prefix, p.complete) for p in found} == {("", False), ("No", False)}


def test_a_completed_piece_ends_as_the_right_one_does() -> None:
    """Space and mark are put in or taken away; an empty piece is left out."""
    inside = Piece(context="x ,", prefix=" a", lead=" ", ending=" ,", complete=False)
    assert inside.beginning == "x , a"
    assert inside.with_completion(" b ,", mark=",") == " a b ,"
    assert inside.with_completion(" b", mark=",") == " a b ,"
    last = Piece(context="x ,", prefix="", lead=" ", ending="", complete=False)
    assert last.with_completion("b ,", mark=",") == " b"
    assert last.with_completion(" b", mark=",") == " b"
    assert last.with_completion("", mark=",") == ""
    unguided = Piece(context="", prefix="", lead="", ending=None, complete=False)
    assert unguided.with_completion("A b. C d.", mark=".") == "A b. C d."


def test_word_cosines_by_hand() -> None:
    """Two of three words shared: 2 / sqrt(3 * 3). A word twice: (2 + 1) / sqrt(5 * 2). None: 0."""
    found = word_cosines(["a red circle", "a a b", "x", ""], ["a blue circle", "b a", "y", "y"])
    assert found == pytest.approx([2 / 3, 3 / 10**0.5, 0.0, 0.0])
    assert similarity_of("words")(["a b"], ["b a"]) == pytest.approx([1.0])


@pytest.mark.skipif(
    bool(missing({MINILM.package: MINILM.requirement})),
    reason=f"needs the package {MINILM.requirement}, installed with --no-deps",
)
def test_an_encoder_compares_what_is_said() -> None:
    """Equal texts 1; another word for the same is nearer than another thing."""
    right = "a man rides a bicycle"
    same, near, far = similarity_of("minilm")(
        [right] * 3, [right, "a person on a bike", "two bowls of soup"]
    )
    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0.97 > near > far + 0.2
