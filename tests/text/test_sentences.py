import random

from mmalign.text.sentences import sentences


def test_abbreviations_and_numbers_end_no_sentence():
    text = "There is a cat, e.g. a tabby. It has 3.5 kg!  Dr. Smith sees it.\nA dog?"
    assert sentences(text) == [
        "There is a cat, e.g. a tabby. ",
        "It has 3.5 kg!  ",
        "Dr. Smith sees it.\n",
        "A dog?",
    ]


def test_nothing_but_white_space_has_no_sentence():
    assert sentences("") == []
    assert sentences(" \n\t ") == []


def test_white_space_belongs_to_the_sentence_before_it_or_to_the_first():
    assert sentences("  A dog.\n\nA cat. ") == ["  A dog.\n\n", "A cat. "]


def test_nothing_is_lost_between_sentences():
    rng = random.Random(0)
    pieces = [
        "A dog. ",
        "e.g. ",
        "No! ",
        "\n\n",
        " x",
        "(Hm.) ",
        '"Q?" ',
        "3.5 ",
        "...",
        "é. ",
        "图。",
    ]
    for _ in range(300):
        text = "".join(rng.choice(pieces) for _ in range(10))
        found = sentences(text)
        assert "".join(found) == (text if text.strip() else "")
        assert all(part.strip() for part in found)
