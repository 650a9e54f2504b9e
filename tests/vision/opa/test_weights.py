"""Weights of characters on the tokens that cover them, and of tokens that changed."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmalign.vision.opa import weights
from mmalign.vision.opa.weights import Span

TEXT = "A. B. C."
SPANS = [Span(0, 2, 1.0, 1.0), Span(3, 5, 2.0, 3.0), Span(6, 8, 2.5, 1.0)]
"""Scores 4, 2 and 1, the second sentence wrong about the picture."""


def byte_level() -> PreTrainedTokenizerBase:
    """Tokens that begin with the space before a word, as in GPT-2 and Qwen."""
    core = Tokenizer(
        models.BPE(
            vocab={
                c: i for i, c in enumerate(["A", "B", "C", ".", "\u0120", "\u0120B", "\u0120C"])
            },
            merges=[("\u0120", "B"), ("\u0120", "C")],
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def sentence_piece() -> PreTrainedTokenizerBase:
    """A marker before every word, the first one too, as in Llama: its offset is empty or shared."""
    words = ["\u2581A.", "\u2581B.", "\u2581C.", "<unk>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Prepend("\u2581")
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_sentences_weigh_what_their_score_says() -> None:
    """Tokens A . _B . _C . with scores 4, 2, 1: 1 1 2 2 2.5 2.5; the space goes with its word."""
    found = weights.token_spans(byte_level(), TEXT, SPANS)
    assert weights.severities(found) == [1.0, 1.0, 2.0, 2.0, 2.5, 2.5]
    assert weights.image_weights(found) == [1.0, 1.0, 3.0, 3.0, 1.0, 1.0]


def test_whole_words_with_markers() -> None:
    found = weights.token_spans(sentence_piece(), TEXT, SPANS)
    assert weights.severities(found) == [1.0, 2.0, 2.5]


def test_what_no_span_covers_weighs_one() -> None:
    """The second sentence was not found: its tokens are neutral."""
    found = weights.token_spans(byte_level(), TEXT, [SPANS[0], SPANS[2]])
    assert weights.severities(found) == [1.0, 1.0, 1.0, 1.0, 2.5, 2.5]


def test_the_end_token() -> None:
    """It is given a weight of its own; an answer that is cut has none."""
    assert weights.ended([1.0, 2.0], 3, end=2.0) == [1.0, 2.0, 2.0]
    assert weights.ended([1.0, 2.0], 2, end=9.0) == [1.0, 2.0]
    assert weights.ended([1.0, 2.0], 1, end=9.0) == [1.0]


def test_slow_tokenizers_are_refused() -> None:
    class Slow(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 1

        def get_vocab(self) -> dict[str, int]:
            return {"<unk>": 0}

    with pytest.raises(ValueError, match="fast tokenizer"):
        weights.token_spans(Slow(unk_token="<unk>"), TEXT, SPANS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0 2 1 1", "must be a list"),
        ([[0, 2, 1.0]], "is not"),
        ([[0, 2, 1.0, "3"]], "is not"),
        ([[0, 9, 1.0, 1.0]], "beyond the 8 characters"),
        ([[3, 3, 1.0, 1.0]], "empty"),
        ([[3, 5, 1, 1], [0, 2, 1, 1]], "out of order"),
        ([[0, 2, -1.0, 1.0]], "below 0"),
    ],
)
def test_columns_are_checked(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        weights.spans_of(value, TEXT, where="row 7, column 'w'")
    assert "row 7, column 'w'" in str(caught.value)


def test_columns_are_read_back() -> None:
    assert weights.spans_of([list(span) for span in SPANS], TEXT, where="") == SPANS


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        # One word replaced by two.
        ([1, 2, 3], [1, 8, 9, 3], ([1, 5, 1], [1, 5, 5, 1])),
        # The rejected answer says more: there its words, here the neighbours of the gap.
        ([1, 2, 3], [1, 7, 2, 3], ([5, 5, 1], [1, 5, 1, 1])),
        ([1, 2], [1, 2, 7], ([1, 5], [1, 1, 5])),
        ([1, 2], [7, 1, 2], ([5, 1], [5, 1, 1])),
        ([1, 2], [1, 2], ([1, 1], [1, 1])),
    ],
)
def test_changed_tokens(
    chosen: list[int], rejected: list[int], expected: tuple[list[int], list[int]]
) -> None:
    assert weights.changed(chosen, rejected, weight=5.0) == expected
    assert weights.changed(rejected, chosen, weight=5.0) == expected[::-1]
