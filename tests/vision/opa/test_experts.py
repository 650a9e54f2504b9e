"""Reports: how they are read, asked for at an endpoint, and taken from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.config import build, nodes
from mmalign.endpoint import Endpoint
from mmalign.experts import Draft, Expert, ReportError, described, parse_report
from mmalign.types import Prompt
from mmalign.vision.opa.experts import EndpointExpert, FileExpert, question_of
from tests.test_endpoint import Reply, Server, ok

SENTENCE = {
    "copied_content": "A dog.",
    "score": 2,
    "error_type": "image_recognition_error",
    "object": "dog",
    "rewritten_content": "A cat.",
    "reason": "it is a cat",
}
GOOD = json.dumps({"image_description": "a cat", "sentences": [SENTENCE]})


def with_sentence(**changes: Any) -> str:
    return json.dumps({"sentences": [{**SENTENCE, **changes}]})


@pytest.mark.parametrize("text", [GOOD, f"\n{GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}```"])
def test_a_report_may_stand_in_a_fence(text: str) -> None:
    report = parse_report(text)
    (one,) = report.sentences
    assert (one.copied, one.score, one.rewritten, one.object) == ("A dog.", 2, "A cat.", "dog")
    assert report.description == "a cat"
    assert json.loads(GOOD) == described(report)


def test_what_may_be_left_out() -> None:
    """Description, object and reason; an added sentence quotes nothing."""
    short = {k: v for k, v in SENTENCE.items() if k not in ("object", "reason")}
    (one,) = parse_report(json.dumps({"sentences": [short]})).sentences
    assert (one.object, one.reason) == ("", "")
    for word in ("Added", "added", "Added:"):
        (one,) = parse_report(with_sentence(copied_content=word)).sentences
        assert one.copied is None
    assert parse_report('{"sentences": []}').sentences == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"Here it is: {GOOD}", "not JSON"),
        (GOOD[:-1], "not JSON"),
        ("[]", "sentences"),
        ('{"sentences": [3]}', "sentence 1 is no object"),
        (with_sentence(score=5), '"score" is 5'),
        (with_sentence(score="4"), '"score" is'),
        (with_sentence(score=True), '"score" is True'),
        (with_sentence(error_type="wrong"), "error_type"),
        (with_sentence(copied_content=" "), "copied_content"),
        (with_sentence(rewritten_content=None), "rewritten_content"),
        (with_sentence(object=3), "object"),
    ],
)
def test_other_replies_are_no_reports(text: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        parse_report(text)


def draft(row: int, answer: str = "A dog.") -> Draft:
    prompt = Prompt(
        content=(
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        ),
        images=(Image.new("RGB", (4, 4), "red"),),
    )
    return Draft(row=row, prompt=prompt, truth="A cat {here}.", answer=answer)


@pytest.fixture
def server() -> Iterator[Server]:
    """Answers about row 1 well at the second attempt, about row 2 never, and others at once."""

    def reply(request: dict[str, Any], before: int) -> Reply:
        text = json.dumps(request["messages"])
        if "answer two" in text:
            return ok("I would rather not.")
        if "answer one" in text and "attempt 2" not in text:
            return ok(with_sentence(score=9))
        return ok(GOOD)

    found = Server(reply)
    yield found
    found.close()


def test_a_bad_report_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    """With what was wrong about it, so that a cache does not give it back; then it is given up."""
    asker = Endpoint(url=server.url, model="m", key_variable=None, cache=str(tmp_path / "cache"))
    expert = EndpointExpert(asker=asker, attempts=3)
    drafts = [draft(0), draft(1, "answer one"), draft(2, "answer two")]
    first, second, third = expert.revise(drafts)
    assert first.report == second.report == parse_report(GOOD)
    assert first.raw == GOOD
    assert third.report is None and third.problem == "report malformed"
    assert third.raw == "I would rather not."
    asked = [json.dumps(request["messages"]) for request in server.requests]
    assert [sum(f"answer {n}" in text for text in asked) for n in ("one", "two")] == [2, 3]
    again = next(text for text in asked if "answer one" in text and "attempt 2" in text)
    assert "score" in again and "is 9" in again
    # The picture travels along, and braces in an answer are no places to fill in.
    assert all("image_url" in text for text in asked)
    assert all("A cat {here}." in text for text in asked)
    assert expert.revise(drafts)[1].report == second.report
    assert len(server.requests) == len(asked)


@pytest.mark.parametrize(
    "instructions", ["{question} {truth}", "{question} {truth} {answer} {more}", "{", "none"]
)
def test_instructions_are_checked(instructions: str) -> None:
    asker = Endpoint(url="http://localhost:1/v1", model="m")
    with pytest.raises(ValueError, match="instructions"):
        EndpointExpert(asker=asker, instructions=instructions)


def write(path: Path, *lines: Any) -> FileExpert:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return FileExpert(path=str(path))


def test_reports_from_a_file(tmp_path: Path) -> None:
    line = {"row": 5, "answer": "A dog.", "report": json.loads(GOOD)}
    expert = write(tmp_path / "reports.jsonl", line)
    found, missing = expert.revise([draft(5), draft(6)])
    assert found.report == parse_report(GOOD)
    assert missing.report is None and missing.problem == "no report"
    with pytest.raises(ValueError, match=r"row 5 is about .* 'A dog\.'.* 'A cow\.'"):
        expert.revise([draft(5, "A cow.")])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"answer": "a", "report": {}}], "line 1 must have"),
        ([{"row": 0, "answer": "a", "report": {}}], "line 1, row 0"),
        (
            [{"row": 0, "answer": "a", "report": {"sentences": []}}] * 2,
            "line 2 is the second report",
        ),
        (["text"], "line 1 must have"),
    ],
)
def test_files_of_reports_are_checked(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "reports.jsonl", *lines).revise([draft(0)])


def test_questions_as_text() -> None:
    assert question_of(Prompt(content="why?")) == "why?"
    assert question_of(draft(0).prompt) == "<image> what?"
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"})
    assert question_of(Prompt(content=turns)) == "system: Be brief.\nuser: why?"


def test_experts_are_named_in_configs() -> None:
    text = "{type: endpoint, asker: {type: endpoint, url: 'http://localhost:1/v1', model: m}}"
    found = build.build(Expert, nodes.parse(text, name="c"), "expert")
    assert isinstance(found, EndpointExpert) and isinstance(found.asker, Endpoint)
    assert isinstance(found, Expert)
