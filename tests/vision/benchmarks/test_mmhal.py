"""MMHal-Bench: ratings, and the judge that gives them, asked over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.endpoint import Endpoint
from mmalign.vision.benchmarks.mmhal import MMHal, filled, rating, rating_metrics
from tests.test_endpoint import Serve, ok, serve
from tests.vision.benchmarks.files import ids, values, write_json, write_lines

__all__ = ["serve"]

TYPES = ("attribute", "adversarial", "attribute", "adversarial")
ROWS = [
    {
        "question_type": kind,
        "question_topic": "outdoor",
        "image_id": f"id{number}",
        "image_src": f"https://example.org/a/b/{number}_o.jpg",
        "image_content": ["Dog", "Bench"],
        "question": f"question {number}?",
        "gt_answer": f"reference {number}",
        "model_answer": "",
    }
    for number, kind in enumerate(TYPES)
]
REPLIES = ["Fine.\nRating: 6", "rating: 2, as it errs", "- Rating: 3", "Rating: 1 or rating: 4"]


def reviews(replies: list[str]) -> list[dict[str, Any]]:
    return [{"choices": [{"message": {"content": reply}}]} for reply in replies]


@pytest.fixture
def template(tmp_path: Path) -> str:
    return write_json(tmp_path / "template.json", ROWS)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Rating: 6", 6),
        ("**Rating: 0**", 0),
        ("RATING: 3, since", 3),
        ("rating: 3. Again: rating: 3", 3),
        ("rating: 1 ... rating: 2", None),
        ("rating 5", None),
        ("rating: 7", None),
        ("", None),
    ],
)
def test_rating(reply: str, found: int | None) -> None:
    assert rating(reply) == found


def test_arithmetic() -> None:
    """Ratings 6, 2, 3, 0: mean 11/4 = 2.75; two below 3: 1/2; informativeness 3, 2, 0, 0 of 3:
    100 x 5/12.
    """
    found = {name: number.value for name, number in rating_metrics([6, 2, 3, 0]).items()}
    assert found == pytest.approx(
        {"score": 2.75, "hallucination_rate": 0.5, "informativeness": 100 * 5 / 12}
    )


def test_reviews(template: str, tmp_path: Path) -> None:
    """The last reply gives two ratings and counts as 0: ratings 6, 2, 3, 0."""
    path = write_json(tmp_path / "reviews.json", reviews(REPLIES))
    mmhal = MMHal(template_file=template, reviews=path)
    items = mmhal.questions()
    assert ids(items) == ["0", "1", "2", "3"]
    assert items[2].images[0].name == "2_o.jpg"  # type: ignore[union-attr]
    report = mmhal.measure(items, ["a", "b", "c", ""])
    assert values(report)["score"] == 2.75
    assert values(report, "attribute")["score"] == 4.5
    assert values(report, "adversarial")["score"] == 1.0
    assert report.counts == {
        "replies without one clear rating, counted as 0": 1,
        "empty answers": 1,
    }
    assert [row["readable"] for row in report.rows] == [True, True, True, False]


def test_judge(template: str, serve: Serve, tmp_path: Path) -> None:
    """The judge sees contents, question, reference and answer, and no picture."""

    def reply(request: dict[str, Any], before: int) -> Any:
        text = request["messages"][-1]["content"]
        number = text.partition("Question: question ")[2][0]
        assert f"Answer to rate: said {{{number}}}\n" in text and "Dog, Bench" in text
        return ok(f"Reference {number} says so.\nRating: {6 - int(number)}")

    judge = Endpoint(url=serve(reply).url, model="judge", key_variable=None)
    mmhal = MMHal(template_file=template, judge=judge)
    report = mmhal.measure(mmhal.questions(), [f"said {{{i}}}" for i in range(4)])
    assert [row["rating"] for row in report.rows] == [6, 5, 4, 3]
    own = tmp_path / "prompt.txt"
    own.write_text("{}|{}|{}|{}")
    server = serve(lambda request, before: ok("Rating: 5"))
    judge = Endpoint(url=server.url, model="judge", key_variable=None, concurrency=1)
    mmhal = MMHal(template_file=template, judge=judge, template=str(own))
    assert values(mmhal.measure(mmhal.questions()[:1], ["{}"]))["score"] == 5.0
    (request,) = server.requests
    assert request["messages"][0]["content"] == "Dog, Bench|question 0?|reference 0|{}"


def test_filled() -> None:
    assert filled("a {} b {}", ["{}", "x"]) == "a {} b x"


def test_answers(template: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "reviews.json", reviews(REPLIES))
    mmhal = MMHal(template_file=template, reviews=path)
    items = mmhal.questions()
    answers = ["a", "b", "c", "d"]
    written = mmhal.write_answers(tmp_path / "out", items, answers)
    assert json.loads(written.read_text())[1] == {**ROWS[1], "model_answer": "b"}
    assert mmhal.read_answers(written, items) == answers
    lines = Path(write_lines(tmp_path / "a.jsonl", [{"text": answer} for answer in answers]))
    assert mmhal.read_answers(lines, items) == answers
    write_lines(lines, [{"text": "a"}])
    with pytest.raises(ValueError, match="follow the 4 questions, and it has 1 rows"):
        mmhal.read_answers(lines, items)


def test_wrong_settings_and_files(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set either judge"):
        MMHal(template_file=template)
    with pytest.raises(ValueError, match="template is the prompt of a judge"):
        MMHal(template_file=template, reviews="x", template="y")
    short = write_json(tmp_path / "short.json", reviews(REPLIES[:2]))
    mmhal = MMHal(template_file=template, reviews=short)
    with pytest.raises(ValueError, match="one for each question"):
        mmhal.measure(mmhal.questions(), ["a"] * 4)
    wrong = write_json(tmp_path / "wrong.json", [{}] * 4)
    mmhal = MMHal(template_file=template, reviews=wrong)
    with pytest.raises(ValueError, match=r"reply 0: lacks choices\[0\].message.content"):
        mmhal.measure(mmhal.questions(), ["a"] * 4)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{}")
    judge = Endpoint(url="http://localhost:1/v1", model="m", key_variable=None)
    mmhal = MMHal(template_file=template, judge=judge, template=str(prompt))
    with pytest.raises(ValueError, match=r"must hold four \{\}"):
        mmhal.measure(mmhal.questions(), ["a"] * 4)
    write_json(tmp_path / "template.json", [{**ROWS[0], "image_content": "Dog"}])
    with pytest.raises(ValueError, match="row 1: 'image_content' must be a list"):
        mmhal.questions()
