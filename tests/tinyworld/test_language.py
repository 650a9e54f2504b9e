"""Captions, their reading, questions, sums and requirements, on hand-made cases."""

import json
import random

import pytest

from mmalign.tinyworld.arithmetic import (
    check,
    generate,
    parse_problem,
    results,
    solution,
    wrong_solution,
)
from mmalign.tinyworld.language import WORDS, Mention, caption, parse
from mmalign.tinyworld.questions import MULTI_KINDS, SINGLE_KINDS, ask, ask_across
from mmalign.tinyworld.requirements import (
    CATEGORIES,
    Requirement,
    partial,
    realise,
    requirement_from_dict,
    requirement_space,
    requirement_to_dict,
    satisfied,
    violate,
)
from mmalign.tinyworld.scenes import Object, Scene, random_scene

RED_CIRCLE = Object(shape="circle", colour="red", size="small", place="top left")
BLUE_SQUARE = Object(shape="square", colour="blue", size="large", place="bottom right")
PAIR = Scene(objects=(RED_CIRCLE, BLUE_SQUARE))


@pytest.mark.parametrize(
    ("grade", "text"),
    [
        ("count", "two objects"),
        ("kind", "a red circle and a blue square"),
        ("size", "a small red circle and a large blue square"),
        (
            "full",
            "a small red circle at the top left and a large blue square at the bottom right",
        ),
    ],
)
def test_caption_grades(grade: str, text: str) -> None:
    assert caption(PAIR, grade=grade) == text


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS)


def test_parse_reads_every_full_caption_back() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        read = parse(caption(scene))
        assert [(m.shape, m.colour, m.size, m.place, m.count) for m in read] == [
            (o.shape, o.colour, o.size, o.place, 1) for o in scene.objects
        ]


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("", ()),
        ("and , , the at ? = 7", ()),
        ("a a a", ()),
        ("Two green triangles.", (Mention(shape="triangle", colour="green", count=2),)),
        ("three objects", (Mention(count=3),)),
        ("red", (Mention(colour="red"),)),
        (
            "a red circle a blue square",
            (Mention(shape="circle", colour="red"), Mention(shape="square", colour="blue")),
        ),
        ("red blue circle", (Mention(colour="red"), Mention(shape="circle", colour="blue"))),
        (
            "a circle at the top left top right",
            (Mention(shape="circle", place="top left"), Mention(place="top right")),
        ),
        ("circle circle", (Mention(shape="circle"), Mention(shape="circle"))),
    ],
)
def test_parse_free_text(text: str, mentions: tuple[Mention, ...]) -> None:
    assert parse(text) == mentions


def test_parse_never_fails_on_word_salad() -> None:
    rng = random.Random(1)
    for _ in range(500):
        parse(" ".join(rng.choices(WORDS, k=30)))


def test_questions_have_one_right_answer_among_words() -> None:
    rng = random.Random(2)
    kinds = set()
    for _ in range(400):
        scenes = [random_scene(rng) for _ in range(3)]
        for question in (ask(scenes[0], rng), ask_across(scenes, rng)):
            kinds.add(question.kind)
            assert question.wrong
            assert question.answer not in question.wrong
            for text in (question.text, question.answer, *question.wrong):
                assert set(text.split()) <= set(WORDS)
    assert kinds == {*SINGLE_KINDS, *MULTI_KINDS}


def test_answers_of_the_pair() -> None:
    """The pair holds a small red circle at the top left and a large blue square opposite."""
    expected = {
        "is there a red circle ?": "yes",
        "is there a red square ?": "no",
        "how many circles are there ?": "one",
        "how many triangles are there ?": "zero",
        "what colour is the circle ?": "red",
        "where is the blue square ?": "bottom right",
        "what size is the red circle ?": "small",
    }
    rng = random.Random(3)
    seen = {question.text: question.answer for question in (ask(PAIR, rng) for _ in range(1000))}
    assert {text: seen[text] for text in expected} == expected


def test_answers_across_pictures() -> None:
    """The second picture holds only the blue square, so the red circle is in the first alone."""
    scenes = [PAIR, Scene(objects=(BLUE_SQUARE,))]
    expected = {
        "which picture has a red circle ?": "picture one",
        "how many squares are there in all pictures ?": "two",
        "is there a blue square in picture two ?": "yes",
        "is there a red circle in picture two ?": "no",
    }
    rng = random.Random(4)
    seen = {q.text: q.answer for q in (ask_across(scenes, rng) for _ in range(1000))}
    assert {text: seen[text] for text in expected} == expected
    with pytest.raises(ValueError, match="at least two"):
        ask_across([PAIR], rng)


def test_solution_and_its_check() -> None:
    """3 + 4 = 7, 7 - 2 = 5."""
    problem = parse_problem("3 + 4 - 2")
    assert problem.text == "compute 3 + 4 - 2"
    assert solution(problem) == "3 + 4 = 7 , 7 - 2 = 5 , answer 5"
    found = check(problem, solution(problem))
    assert (found.steps_correct, found.steps_total) == (2, 2)
    assert found.answer_correct and found.well_formed and found.first_error is None


@pytest.mark.parametrize(
    ("text", "steps", "answer", "formed", "first_error"),
    [
        ("3 + 4 = 8 , 8 - 2 = 6 , answer 6", 0, False, True, 0),
        ("3 + 4 = 7 , 7 - 2 = 4 , answer 4", 1, False, True, 1),
        ("3 + 4 = 8 , 7 - 2 = 5 , answer 5", 1, True, True, 0),
        ("answer 5", 0, True, False, 0),
        ("3 + 4 = 7 , 7 - 2 = 5", 2, False, False, None),
        ("3 + 4 = 7 , 7 - 2 = 5 , answer 5 , answer 5", 2, True, False, None),
        ("", 0, False, False, 0),
        ("red = = , ,", 0, False, False, 0),
    ],
)
def test_check_of_faulty_solutions(
    text: str, steps: int, answer: bool, formed: bool, first_error: int | None
) -> None:
    found = check(parse_problem("3 + 4 - 2"), text)
    assert found.steps_correct == steps
    assert found.answer_correct is answer
    assert found.well_formed is formed
    assert found.first_error == first_error


def test_generated_problems_stay_in_range_and_wrong_solutions_are_wrong() -> None:
    rng = random.Random(5)
    for _ in range(500):
        problem = generate(rng)
        assert all(0 <= value <= 20 for value in results(problem))
        found = check(problem, wrong_solution(problem, rng))
        assert found.well_formed and not found.answer_correct
        # The first wrong step spoils all later ones, because they start from its result.
        assert found.steps_correct == found.first_error


@pytest.mark.parametrize("text", ["", "3", "3 +", "3 * 4", "9 + 9 + 9", "1 - 2", "x + y"])
def test_problems_outside_the_world_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_problem(text)


def _asked(*mentions: Mention) -> Requirement:
    return Requirement(category="binding", mentions=mentions)


def test_requirement_scores() -> None:
    """Asked for a red circle and a blue square.

    The pair itself scores 1. The circle alone: C = 1, so 2 * 1 / (2 + 1) = 2/3. The pair with a
    triangle too: 2 * 2 / (2 + 3) = 4/5. Swapped colours: each assignment has one attribute of
    two right for both objects, C = 1/2 + 1/2, so 2 * 1 / (2 + 2) = 1/2. Nothing: 0.
    """
    asked = _asked(Mention(shape="circle", colour="red"), Mention(shape="square", colour="blue"))
    extra = Object(shape="triangle", colour="green", size="small", place="top right")
    swapped = (
        Object(shape="circle", colour="blue", size="small", place="top left"),
        Object(shape="square", colour="red", size="small", place="top right"),
    )
    cases = [
        (PAIR.objects, 1.0, 1.0),
        (PAIR.objects[::-1], 1.0, 1.0),
        ((RED_CIRCLE,), 0.0, 2 / 3),
        ((*PAIR.objects, extra), 0.0, 4 / 5),
        (swapped, 0.0, 1 / 2),
        ((), 0.0, 0.0),
    ]
    for objects, exact, graded in cases:
        assert satisfied(asked, objects) == exact
        assert partial(asked, objects) == pytest.approx(graded)


def test_requirement_text_and_validation() -> None:
    two = Requirement(
        category="count", mentions=(Mention(shape="triangle", colour="green", count=2),)
    )
    assert two.text == "two green triangles"
    with pytest.raises(ValueError, match="category"):
        Requirement(category="other", mentions=(Mention(),))
    with pytest.raises(ValueError, match="1 to 4"):
        Requirement(category="count", mentions=(Mention(count=5),))
    with pytest.raises(ValueError, match="'mentions'"):
        requirement_from_dict({"category": "count"})
    with pytest.raises(ValueError, match="shape"):
        requirement_from_dict({"category": "count", "mentions": [{"shape": "star"}]})


def test_requirement_space_is_split_without_overlap() -> None:
    space = requirement_space()
    keys = {split: {item.key for rows in space[split].values() for item in rows} for split in space}
    assert not keys["train"] & keys["heldout"]
    assert all(space[split][category] for split in space for category in CATEGORIES)
    assert len({item.text for rows in space["heldout"].values() for item in rows}) >= 256


def test_requirements_are_realised_and_violated() -> None:
    rng = random.Random(6)
    for rows in requirement_space()["train"].values():
        for item in rng.sample(rows, min(40, len(rows))):
            good, bad = realise(item, rng).objects, violate(item, rng).objects
            assert satisfied(item, good) == partial(item, good) == 1.0
            assert satisfied(item, bad) == 0.0
            assert partial(item, bad) < 1.0
            assert requirement_from_dict(json.loads(json.dumps(requirement_to_dict(item)))) == item
