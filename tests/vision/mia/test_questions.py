"""Rewritten questions, which rows can be used, and where companions come from."""

from random import Random

import pytest
from PIL import Image

from mmalign.types import Prompt
from mmalign.vision.mia.questions import Unusable, asked, companions
from mmalign.vision.mia.wording import LEAD_INS, Wording

RED = Image.new("RGB", (4, 4), "red")


def row(content, answer="a dog", images=(RED,), **meta):
    return Prompt(content=content, images=images, meta=meta), answer


def turns(*messages):
    return tuple({"role": role, "content": content} for role, content in messages)


PARTS = [{"type": "image"}, {"type": "text", "text": "What is this?"}]


def test_published_words():
    words = Wording()
    assert words.labelled(2) + "<image>" + words.after == "Image2:<image>\n"
    assert words.about(3, "What is this?") == "In Image3, what is this?"
    assert words.about_inset("In the middle", "Who?") == "In the middle, who?"
    assert words.missing(4, 3) == "Only 3 images were given, so there is no Image4."
    assert len(set(LEAD_INS)) == len(LEAD_INS) == 12
    assert words.names_a_picture("In Image2, what?") and not words.names_a_picture("Into what?")
    assert not Wording(taken=()).names_a_picture("In Image2, what?")


def test_named_numbers():
    words = Wording(name="picture {number}", numbers=("one", "two"))
    assert words.labelled(2) == "picture two:"
    with pytest.raises(ValueError, match="names 2 numbers, and 3 is needed"):
        words.named(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "picture"}, r"wording.name='picture' must hold \{number\}"),
        ({"question": "In {nmae}, {question}"}, r"a place \{nmae\}; known are"),
        ({"inset": "{lead_in"}, "brace without its partner"),
        ({"lead_ins": ()}, "lead_ins must hold"),
    ],
)
def test_wrong_wording(settings, message):
    with pytest.raises(ValueError, match=message):
        Wording(**settings)


def test_a_plain_string_and_parts_say_the_same():
    plain = asked(row("<image>\nWhat is this?"), image_token="<image>")
    parts = asked(row(turns(("user", PARTS)), task="vqa"), image_token="<image>")
    assert plain.question == parts.question == "What is this?"
    assert plain.truth == "a dog" and plain.image is RED
    assert parts.meta == {"task": "vqa"} and parts.before == ()


def test_only_the_first_turn_of_a_conversation():
    talk = turns(
        ("system", "Be brief."),
        ("user", PARTS),
        ("assistant", "a cat"),
        ("user", "And its colour?"),
    )
    found = asked(row(talk, "black"), image_token="<image>")
    assert (found.question, found.truth) == ("What is this?", "a cat")
    assert [message["role"] for message in found.before] == ["system"]


@pytest.mark.parametrize(
    ("demonstration", "reason"),
    [
        (row("Q?", images=()), "not one picture"),
        (row("Q?", images=(RED, RED)), "not one picture"),
        (row("<image>"), "no question"),
        (row(turns(("system", "Be brief."))), "no question"),
        (row("Q?", " "), "no right answer in words"),
        (row("Q?", RED), "no right answer in words"),
    ],
)
def test_unusable_rows(demonstration, reason):
    with pytest.raises(Unusable, match=reason):
        asked(demonstration, image_token="<image>")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("[0.12, 0.5, 0.33, 1.0]", True), ("(0.1,0.2,0.3,0.4)", True), ("[1, 2, 3, 4]", False)],
)
def test_coordinates(answer, expected):
    found = asked(row("Where is it?", f"at {answer}"), image_token="<image>")
    assert found.has_coordinates is expected


def shades(count, **meta):
    return [
        row("Q?", images=(Image.new("RGB", (2, 2), (value, 0, 0)),), **meta)
        for value in range(count)
    ]


def no_matter(prompt):
    return None


def test_companions_are_other_pictures():
    """Row 0's picture stands in rows 1 to 4 too, and is never its own companion."""
    rows = [*[row("Q?")] * 5, *shades(4)]
    for seed in range(20):
        found = companions(rows, 0, 4, Random(seed), same=no_matter)
        assert sorted(found) == [5, 6, 7, 8]
        assert all(found[i] is rows[i][0].images[0] for i in found)


def test_equal_companions_count_once():
    rows = [row("Q?"), *shades(1) * 3, *shades(2)[1:]]
    found = companions(rows, 0, 2, Random(0), same=no_matter)
    assert len({image.tobytes() for image in found.values()}) == 2
    with pytest.raises(Unusable, match="too few other pictures"):
        companions(rows, 0, 3, Random(0), same=no_matter)


def test_companions_of_the_same_kind():
    rows = [*shades(6, source="coco"), *[(p, a) for p, a in shades(12, source="vg")[6:]]]
    found = companions(rows, 0, 3, Random(1), same=lambda prompt: prompt.meta["source"])
    assert set(found) <= set(range(1, 6))


def test_companions_are_drawn_from_everywhere():
    rows = shades(40)
    drawn = {i for seed in range(60) for i in companions(rows, 3, 2, Random(seed), same=no_matter)}
    assert len(drawn) > 30 and 3 not in drawn
    again = companions(rows, 3, 2, Random(5), same=no_matter)
    assert list(again) == list(companions(rows, 3, 2, Random(5), same=no_matter))
