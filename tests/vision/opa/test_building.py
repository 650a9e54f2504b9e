"""The builder: what a row gives, why rows are dropped, and that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mmalign import config
from mmalign.data.building import Candidate, construct
from mmalign.data.files import File
from mmalign.experts import Draft, Report, Sentence, Verdict
from mmalign.locate import configs
from mmalign.tinyworld.data import TinyWorld
from mmalign.tinyworld.expert import TinyWorldExpert
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.vision import LVLMPolicy
from mmalign.vision.completing import Decoding
from mmalign.vision.opa.building import Corrections, OPADPOBuilder

ROWS = 24
BUILDER = OPADPOBuilder(
    data=TinyWorld(task="describe", size=ROWS, seed=1),
    expert=TinyWorldExpert(),
    policy=LVLMPolicy(model="tinyworld/lvlm", max_new_tokens=48),
    decoding=Decoding(temperature=1.3, top_k=30, top_p=0.95, max_new_tokens=48),
    batch_size=8,
)


@pytest.fixture(scope="module")
def construction() -> Corrections:
    """Of the builder above; its model is loaded once."""
    return BUILDER.prepare(seed=0)


@pytest.fixture(scope="module")
def candidates(construction: Corrections) -> list[Candidate]:
    return list(construction.candidates())


def with_expert(construction: Corrections, expert: Any) -> list[Candidate]:
    """The first eight rows, judged by another expert."""
    spec = replace(BUILDER, expert=expert)
    data = construction.data[:8]
    return list(Corrections(spec, construction.policy, data, construction.seed).candidates())


def test_every_row_is_accounted_for(candidates: list[Candidate]) -> None:
    assert [c.row for c in candidates] == list(range(ROWS))
    assert {c.dropped for c in candidates} == {None, "nothing to correct"}
    assert sum(c.dropped is None for c in candidates) >= 6


def test_corrections_are_right_and_truths_are_kept(candidates: list[Candidate]) -> None:
    """Chosen earns 1, rejected less; the ground truth is the data's."""
    judge = DescriptionJudge()
    for candidate in candidates:
        pair = candidate.preference
        chosen, rejected, truth = judge(
            [pair.prompt] * 3, [pair.chosen, pair.rejected, pair.meta["ground_truth"]]
        ).tolist()
        assert chosen == truth == 1.0
        assert (rejected < 1.0) == (candidate.dropped is None)
        assert (pair.meta["builder"], pair.meta["row"]) == ("opa-dpo", candidate.row)


def test_weights_stand_on_sentences(candidates: list[Candidate]) -> None:
    """Every span is a phrase; those of score 4 weigh 1 and stand in both answers."""
    for pair in (c.preference for c in candidates if c.dropped is None):
        sentences = pair.meta["report"]["sentences"]
        spans = {side: pair.meta[f"weights_{side}"] for side in ("chosen", "rejected")}
        shown = [pair.rejected[start:end] for start, end, _, _ in spans["rejected"]]
        assert shown == [s["copied_content"] for s in sentences if s["copied_content"] != "Added"]
        written = [pair.chosen[start:end] for start, end, _, _ in spans["chosen"]]
        assert written == [s["rewritten_content"] for s in sentences if s["rewritten_content"]]
        assert max(severity for _, _, severity, _ in spans["rejected"]) > 1.0
        assert pair.meta["unmatched"] == 0


def test_a_row_depends_on_nothing_but_itself(
    construction: Corrections, candidates: list[Candidate]
) -> None:
    """Beginning at row 13, in other batches, gives what it gave."""
    later = list(construction.candidates(13))
    assert [c.preference.rejected for c in later] == [
        c.preference.rejected for c in candidates[13:]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """An expert that says the same of every answer."""

    verdict: Verdict

    def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
        return [self.verdict] * len(drafts)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Verdict(report=None, problem="report malformed", raw="No."), "report malformed"),
        (Verdict(report=Report(sentences=())), "report empty"),
        (
            Verdict(
                report=Report(
                    sentences=(Sentence(copied="a", score=1, error="correct", rewritten=""),)
                )
            ),
            "revision empty",
        ),
    ],
)
def test_useless_reports_drop_their_row(
    construction: Corrections, verdict: Verdict, reason: str
) -> None:
    found = with_expert(construction, Scripted(verdict=verdict))
    assert {c.dropped for c in found} == {reason}
    assert all(c.preference.meta.get("raw", "") == verdict.raw for c in found)


def test_answers_in_circles_are_not_shown_to_the_expert(
    construction: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 0 repeats itself, row 1 says nothing: the expert is asked about the other six."""
    from mmalign.vision.opa import building

    shown: list[Draft] = []
    complete = building.complete

    def spoilt(*args: Any, **settings: Any) -> list[Any]:
        found = complete(*args, **settings)
        return [
            replace(found[0], text="a dog. a cat. a dog."),
            replace(found[1], text=" "),
            *found[2:],
        ]

    class Listening(TinyWorldExpert):
        def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
            shown.extend(drafts)
            return super().revise(drafts)

    monkeypatch.setattr(building, "complete", spoilt)
    found = with_expert(construction, Listening())
    assert [c.dropped for c in found[:2]] == ["sentence repeated", "answer empty"]
    assert [draft.row for draft in shown] == list(range(2, 8))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """The file gives pairs with their columns, and right answers of two kinds to imitate."""
    path = tmp_path / "opa.jsonl"
    counts = construct(BUILDER, path, seed=0, rows=12, settings="")
    file = File(path=str(path))
    pairs = file.preferences()
    assert len(pairs) == counts["kept"] > 0
    assert pairs[0].meta["weights_chosen"]
    truths = replace(file, columns={"completion": "ground_truth"}).demonstrations()
    revisions = replace(file, columns={"completion": "chosen"}).demonstrations()
    for pair, (prompt, truth), (_, revision) in zip(pairs, truths, revisions, strict=True):
        assert truth == pair.meta["ground_truth"] and revision == pair.chosen
        assert prompt.images[0].tobytes() == pair.prompt.images[0].tobytes()


def test_the_shipped_settings() -> None:
    found = config.load_builder("opa-dpo", configs() / "vision" / "data" / "opa_dpo.yaml")
    assert isinstance(found, OPADPOBuilder)
    assert found.weights.severity == (2.5, 2.0, 1.5, 1.0) and found.weights.image == 3.0
    assert (found.decoding.top_k, found.decoding.top_p) == (30, 0.95)
