"""RLAIF-V: claims, verdicts, scores, pairs, and the whole of it on the tiny world."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign import config
from mmalign.data.building import Candidate
from mmalign.endpoint import Question
from mmalign.locate import configs
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.tinyworld.detect import detect
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.tinyworld.language import parse
from mmalign.types import Prompt
from mmalign.vision import LVLMPolicy
from mmalign.vision.asking import prompt_of
from mmalign.vision.completing import Decoding
from mmalign.vision.rlaifv.builder import RLAIFV, Comparing, Judged, shortening
from mmalign.vision.rlaifv.checking import NO, YES, AskerChecker, PolicyChecker, verdict
from mmalign.vision.rlaifv.claims import ASKED, Claim, by_asking, by_pattern, by_sentence
from tests.vision.agent import Asked, serving

PATTERN = "(?:red|green|blue|yellow) (?:circle|square|triangle)"
THERE = "is there a {claim} ?"
WORDS = Decoding(temperature=1.0, max_new_tokens=48)


def builder(**changes: Any) -> RLAIFV:
    settings = RLAIFV(
        data=TinyWorld(task="describe", size=12),
        answers=6,
        decoding=WORDS,
        pattern=PATTERN,
        question=THERE,
    )
    return replace(settings, **changes)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return LVLMPolicy().load()


# ---- claims ----------------------------------------------------------------------------------


def test_each_sentence_is_a_claim() -> None:
    (claims,) = by_sentence(["A dog sleeps. It is 3.5 years old."], "True? {claim}")
    assert [c.text for c in claims] == ["A dog sleeps.", "It is 3.5 years old."]
    assert claims[1].question == "True? It is 3.5 years old."


def test_each_match_is_a_claim() -> None:
    (claims, none) = by_pattern(["a small red circle and a red circle", "nothing"], THERE, PATTERN)
    assert [c.question for c in claims] == ["is there a red circle ?"] * 2
    assert none == []


def divider(asked: Asked) -> str:
    """Lists the objects of a caption, and turns them into questions; "crooked" loses one."""
    if "Answer: " not in asked.text:
        facts = re.findall(r"^- There is a (.*)\.$", asked.text, flags=re.MULTILINE)
        facts = facts[1:] if "crooked" in asked.text else facts
        return "Here they are:\n" + "\n".join(f"- Is there a {fact}?" for fact in facts)
    answer = asked.text.split("Answer: ")[1]
    found = [f"{m.colour} {m.shape}" for m in parse(answer)]
    found += ["crooked line"] if "crooked" in answer else []
    return "\n".join(f"- There is a {thing}." for thing in found) or "none"


def test_a_language_model_finds_the_claims() -> None:
    """Two facts, none, and an answer whose questions are one fewer than its facts."""
    answers = ["a red circle and a blue square", "It is fine weather.", "a red circle, crooked"]
    with serving(divider) as asker:
        found = by_asking("describe the picture", answers, ASKED, asker)
    assert found == [
        [
            Claim(
                text="There is a red circle.",
                question="Is there a red circle? Please answer yes or no.",
            ),
            Claim(
                text="There is a blue square.",
                question="Is there a blue square? Please answer yes or no.",
            ),
        ],
        [],
        None,
    ]


# ---- verdicts --------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_first_token(policy: Policy) -> None:
    """Against one softmax of the model's own logits, without any code of ours in between.

    The vocabulary has neither "Yes" nor "No": both begin with the token of unknown words, which
    says nothing and is left out, so P(yes) is that of "yes" alone.
    """
    prompt, _ = TinyWorld(task="vqa", size=1).demonstrations()[0]
    asked = prompt_of(Question(text="is there a red circle ?", images=prompt.images))
    ((yes, no),) = PolicyChecker(policy, batch_size=4).probabilities([asked])
    static = policy.adapter.static_of([asked])  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = policy.model(
            input_ids=static["prompt_ids"][0][None], **static["per_image"][0]
        ).logits[0, -1]
    banned = list(policy.adapter.sampling.banned)  # type: ignore[attr-defined]
    logits[banned] = float("-inf")
    tokenizer = policy.adapter.tokenizer  # type: ignore[attr-defined]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (*YES, *NO)]
    assert ids[1] == ids[3] and len(set(ids)) == 3
    expected = logits.softmax(-1)[[ids[0], ids[2]]].tolist()
    assert [yes, no] == pytest.approx(expected, rel=1e-4)


def test_the_tiny_model_tells_what_is_there(policy: Policy) -> None:
    """Questions whose answer is yes or no, as the tiny world's own judge knows it."""
    rows = TinyWorld(task="vqa", split="heldout", size=200).demonstrations()
    known = [(p, a == "yes") for p, a in rows if p.meta["kind"] == "exists"]
    asked = [
        Question(text=p.content[0]["content"][-1]["text"], images=p.images)  # type: ignore[index]
        for p, _ in known
    ]
    found = PolicyChecker(policy, batch_size=16).holds(asked)
    right = sum(a == b for a, (_, b) in zip(found, known, strict=True))
    assert len(known) > 25 and right / len(known) > 0.9


def test_a_labeler_that_cannot_tell_yes_from_no(policy: Policy, monkeypatch: Any) -> None:
    """Words that begin with one token, such as two unknown ones, are no verdict."""
    monkeypatch.setattr("mmalign.vision.rlaifv.checking.YES", ("Yes",))
    monkeypatch.setattr("mmalign.vision.rlaifv.checking.NO", ("No",))
    with pytest.raises(ValueError, match="begins 'yes' and 'no' with the same token"):
        PolicyChecker(policy, batch_size=4).holds([Question(text="is there a red circle ?")])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes.", True), ("**No**, it is", False), ("I think yes", None), ("", None), ("Not", None)],
)
def test_verdicts_in_words(answer: str, expected: bool | None) -> None:
    assert verdict(answer) is expected


def test_an_endpoint_checks(policy: Policy) -> None:
    """The program looks at the picture that it is sent and answers what is true of it."""

    def program(asked: Asked) -> str:
        colour, shape = asked.text.removeprefix("is there a ").removesuffix(" ?").split()
        there = {(one.colour, one.shape) for one in detect(asked.images[0])}
        return "Yes, there is." if (colour, shape) in there else "No."

    prompt, _ = TinyWorld(task="describe", size=1).demonstrations()[0]
    objects = prompt.meta["scene"]["objects"]
    there = f"{objects[0]['colour']} {objects[0]['shape']}"
    every = [f"{c} {s}" for c in ("red", "green", "blue", "yellow") for s in ("circle", "square")]
    named = {f"{one['colour']} {one['shape']}" for one in objects}
    absent = next(thing for thing in every if thing not in named)
    asked = [
        Question(text=f"is there a {thing} ?", images=prompt.images) for thing in (there, absent)
    ]
    with serving(program) as asker:
        assert AskerChecker(asker).holds(asked) == [True, False]
    assert AskerChecker(asker).holds([]) == []


# ---- scores and pairs ------------------------------------------------------------------------


class Known:
    """Verdicts by the text of the question; asks nobody."""

    def __init__(self, verdicts: dict[str, bool | None]) -> None:
        self.verdicts = verdicts

    def holds(self, questions: Sequence[Question]) -> list[bool | None]:
        return [self.verdicts[question.text] for question in questions]


def comparing(policy: Policy, verdicts: dict[str, bool | None], **changes: Any) -> Comparing:
    return Comparing(
        settings=builder(pattern=r"\w+", question="{claim}", **changes),
        prompts=[Prompt(content="?")],
        policy=policy,
        checker=Known(verdicts),
        seed=0,
    )


def test_the_score_is_minus_the_rejected_claims(policy: Policy) -> None:
    """Of three claims one is rejected: -1. Without claims, or with an unclear one: left out."""
    work = comparing(policy, {"sun": True, "rain": False, "fog": True, "dew": None})
    judged = work._judged(Prompt(content="?"), ["sun rain fog", "rain rain", "...", "sun dew"])
    assert [(one.text, one.score) for one in judged] == [("sun rain fog", -1), ("rain rain", -2)]


def judged(text: str, right: int, wrong: int) -> Judged:
    verdicts = [True] * right + [False] * wrong
    return Judged(
        text=text, claims=[Claim(text="c", question="c?")] * len(verdicts), holds=verdicts
    )


@pytest.mark.parametrize(
    ("changes", "best", "worst", "flaw"),
    [
        ({}, judged("a", 1, 1), judged("b", 9, 2), None),
        ({}, judged("a", 1, 1), judged("b", 5, 1), "same score"),
        ({"min_difference": 2}, judged("a", 1, 1), judged("b", 9, 2), "same score"),
        ({"max_shortening": 0.4}, judged("a " * 6, 1, 0), judged("b " * 10, 1, 1), None),
        ({"max_shortening": 0.39}, judged("a " * 6, 1, 0), judged("b " * 10, 1, 1), "chosen too"),
    ],
)
def test_what_is_worth_training_on(
    policy: Policy, changes: dict[str, Any], best: Judged, worst: Judged, flaw: str | None
) -> None:
    """6 words against 10 are shorter by (10 - 6) / 10 = 0.4; a longer chosen answer is below 0."""
    found = comparing(policy, {}, **changes)._flaw(best, worst)
    assert found == flaw or (flaw is not None and found is not None and found.startswith(flaw))
    assert shortening("a b c", "a") == -2.0


def test_the_ends_are_the_best_and_the_worst(policy: Policy) -> None:
    rows = [judged("middle", 1, 1), judged("worst", 0, 3), judged("best", 2, 0)]
    assert [one.text for one in comparing(policy, {})._ends(rows, 0)] == ["best", "worst"]


# ---- on the tiny world -----------------------------------------------------------------------


def plain(candidate: Candidate) -> tuple[Any, ...]:
    pair = candidate.preference
    return candidate.row, candidate.dropped, pair.chosen, pair.rejected, pair.meta


def test_the_preferred_descriptions_are_truer() -> None:
    """The tiny model judges its own answers; the exact judge, which it never sees, agrees."""
    found = list(builder().prepare(seed=0).candidates())
    assert [one.row for one in found] == list(range(12))
    kept = [one.preference for one in found if one.dropped is None]
    assert len(kept) >= 4
    prompts = [pair.prompt for pair in kept]
    chosen, rejected = (
        DescriptionJudge(grade="kind")(prompts, [getattr(pair, side) for pair in kept])
        for side in ("chosen", "rejected")
    )
    assert float(chosen.mean()) > float(rejected.mean()) + 0.1
    verdicts = kept[0].meta["rejected_verdict"]
    assert verdicts["score"] == -sum(not holds for _, _, holds in verdicts["claims"]) < 0


def test_a_row_does_not_depend_on_where_the_work_began() -> None:
    work = builder(data=TinyWorld(task="describe", size=4)).prepare(seed=1)
    whole = [plain(one) for one in work.candidates()]
    assert [plain(one) for one in work.candidates(2)] == whole[2:]
    other = builder(data=TinyWorld(task="describe", size=4), batch_size=3).prepare(seed=1)
    assert [row[2:4] for row in map(plain, other.candidates())] == [row[2:4] for row in whole]


def test_unfinished_answers_are_not_compared(policy: Policy) -> None:
    work = builder(decoding=Decoding(max_new_tokens=2)).prepare(seed=0)
    first = next(work.candidates())
    assert (first.dropped, first.preference.meta["answers"]) == ("too few answers", [])


def test_shipped_settings() -> None:
    path = configs() / "vision" / "data" / "rlaif_v.yaml"
    found = config.load_builder("rlaif-v", path, ["data.size=2"])
    assert isinstance(found, RLAIFV) and (found.answers, found.pattern) == (10, PATTERN)
    assert len(found.prepare(seed=0)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": 1}, "answers=1"),
        ({"min_difference": 0}, "min_difference=0"),
        ({"max_shortening": 1.0}, "max_shortening=1.0"),
        ({"question": "is it?"}, "does not hold {claim}"),
        ({"pattern": "("}, "no regular expression"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builder(**changes)
