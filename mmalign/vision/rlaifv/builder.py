"""RLAIF-V: pairs of a model's own answers, ordered by how many of their claims do not hold.

An answer's score is minus the number of its claims that a labeler rejects; the best answer of a
prompt is preferred to the worst. After the released code (RLHF-V/RLAIF-V: ``utils/
pair_construction.py``, ``script/data_gen``), which keeps up to two random pairs of a prompt whose
scores differ; here it is the pair that differs most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign import rng
from mmalign.data.building import Candidate
from mmalign.endpoint import Asker, Question
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Preference, Prompt
from mmalign.vision.asking import asked_of
from mmalign.vision.completing import Decoding, complete
from mmalign.vision.lvlm_policy import LVLMPolicy
from mmalign.vision.rlaifv.checking import AskerChecker, Checker, PolicyChecker
from mmalign.vision.rlaifv.claims import (
    ASKED,
    CLAIM,
    STATED,
    Claim,
    by_asking,
    by_pattern,
    by_sentence,
)

NAME = "rlaif-v"


@dataclass(frozen=True, slots=True, kw_only=True)
class RLAIFV:
    """RLAIF-V: the model's own answers, the one with the fewest false claims preferred.

    Attributes:
        data: Prompts; its answers are not looked at.
        policy: Answers the prompts.
        answers: Answers sampled for each prompt; 10 in the released scripts.
        decoding: How they are drawn; temperature 0.7 and 512 tokens there. Answers that are cut at
            that length are not compared.
        labeler: Says which claims hold, by the probabilities of yes and no; None for the policy.
        asker: Says so instead, in words.
        divider: Finds the claims of an answer and turns them into questions, in two steps. None
            takes each sentence for a claim.
        pattern: A regular expression whose matches are the claims, in place of sentences.
        question: What is asked of a claim, ``{claim}`` standing for it (or for its question, with a
            divider); None for a wording of our own.
        min_difference: By how many rejected claims the two answers of a pair must differ.
        max_shortening: Drops a pair whose chosen answer is shorter than the rejected one by more
            than this share of its words. The released code looks, over all pairs, for the share
            that makes both sides equally long on average; None drops none.
        batch_size: Prompts or questions in one forward pass.
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    answers: int = 10
    decoding: Decoding = field(
        default_factory=lambda: Decoding(temperature=0.7, max_new_tokens=512)
    )
    labeler: LVLMPolicy | None = None
    asker: Asker | None = None
    divider: Asker | None = None
    pattern: str | None = None
    question: str | None = None
    min_difference: int = 1
    max_shortening: float | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.answers < 2:
            raise ValueError(f"answers={self.answers} leaves nothing to compare; use 2 or more")
        if self.min_difference < 1:
            raise ValueError(f"min_difference={self.min_difference} must be at least 1")
        if self.max_shortening is not None and not 0 <= self.max_shortening < 1:
            raise ValueError(f"max_shortening={self.max_shortening} must lie in [0, 1)")
        if self.labeler is not None and self.asker is not None:
            raise ValueError("labeler and asker are both given; one of them checks the claims")
        if self.divider is not None and self.pattern is not None:
            raise ValueError("divider and pattern are both given; one of them finds the claims")
        if self.question is not None and CLAIM not in self.question:
            raise ValueError(f"question {self.question!r} does not hold {CLAIM}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error

    def prepare(self, *, seed: int) -> Comparing:
        """Load the models, open the data."""
        policy = self.policy.load().on_accelerator()
        checker: Checker
        if self.asker is not None:
            checker = AskerChecker(self.asker)
        else:
            labeler = policy if self.labeler is None else self.labeler.load().on_accelerator()
            checker = PolicyChecker(labeler, batch_size=self.batch_size)
        return Comparing(
            settings=self, prompts=self.data.prompts(), policy=policy, checker=checker, seed=seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer with the verdict on each of its claims."""

    text: str
    claims: Sequence[Claim]
    holds: Sequence[bool]

    @property
    def score(self) -> int:
        """Minus the number of rejected claims."""
        return sum(self.holds) - len(self.holds)

    def described(self) -> dict[str, Any]:
        """For the meta of a pair."""
        verdicts = zip(self.claims, self.holds, strict=True)
        return {"score": self.score, "claims": [[c.text, c.question, ok] for c, ok in verdicts]}


class Comparing:
    """RLAIF-V at work.

    Args:
        settings: Of the builder.
        prompts: One a row.
        policy: Answers.
        checker: Says which claims hold.
        seed: Of every draw.
    """

    def __init__(
        self,
        *,
        settings: RLAIFV,
        prompts: Sequence[Prompt],
        policy: Policy,
        checker: Checker,
        seed: int,
    ) -> None:
        self.settings, self.prompts = settings, prompts
        self.policy, self.checker, self.seed = policy, checker, seed

    def __len__(self) -> int:
        return len(self.prompts)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row."""
        for row in range(start, len(self)):
            yield self._candidate(row)

    def _candidate(self, row: int) -> Candidate:
        prompt = self.prompts[row]
        sampled = self._answers(prompt, row)
        judged = self._judged(prompt, sampled)
        meta: dict[str, Any] = {"builder": NAME, "row": row, "answers": sampled}
        if len(judged) < 2:
            pair = Preference(prompt=prompt, chosen="", rejected="", meta=meta)
            return Candidate(preference=pair, row=row, dropped="too few answers")
        best, worst = self._ends(judged, row)
        meta |= {"chosen_verdict": best.described(), "rejected_verdict": worst.described()}
        pair = Preference(prompt=prompt, chosen=best.text, rejected=worst.text, meta=meta)
        return Candidate(preference=pair, row=row, dropped=self._flaw(best, worst))

    def _answers(self, prompt: Prompt, row: int) -> list[str]:
        """The different answers that came to their end."""
        count = self.settings.answers
        drawn = complete(
            self.policy,
            [prompt] * count,
            decoding=self.settings.decoding,
            generators=[rng.generator(self.seed, NAME, row, n) for n in range(count)],
            batch_size=self.settings.batch_size,
        )
        texts = (one.text.strip() for one in drawn if one.ended)
        return list(dict.fromkeys(text for text in texts if text))

    def _judged(self, prompt: Prompt, answers: Sequence[str]) -> list[Judged]:
        """The answers with verdicts; those without a claim, or with an unclear one, are left out.

        An answer that claims nothing would be the best of all.
        """
        found = [(t, c) for t, c in zip(answers, self._claims(prompt, answers), strict=True) if c]
        texts = list(dict.fromkeys(one.question for _, claims in found for one in claims))
        asked = [Question(text=text, images=prompt.images) for text in texts]
        holds = dict(zip(texts, self.checker.holds(asked), strict=True))
        judged = []
        for text, claims in found:
            verdicts = [v for one in claims if (v := holds[one.question]) is not None]
            if len(verdicts) == len(claims):
                judged.append(Judged(text=text, claims=claims, holds=verdicts))
        return judged

    def _claims(self, prompt: Prompt, answers: Sequence[str]) -> Sequence[Sequence[Claim] | None]:
        settings = self.settings
        if settings.divider is not None and answers:
            template = settings.question or ASKED
            return by_asking(asked_of(prompt), answers, template, settings.divider)
        template = settings.question or STATED
        if settings.pattern is not None:
            return by_pattern(answers, template, settings.pattern)
        return by_sentence(answers, template)

    def _ends(self, judged: Sequence[Judged], row: int) -> tuple[Judged, Judged]:
        """One of the best and one of the worst, drawn where there are several."""
        draw = rng.python_random(self.seed, NAME, "ends", row)
        scores = [one.score for one in judged]
        best, worst = (
            draw.choice([one for one in judged if one.score == end])
            for end in (max(scores), min(scores))
        )
        return best, worst

    def _flaw(self, best: Judged, worst: Judged) -> str | None:
        if best.score - worst.score < self.settings.min_difference:
            return "same score"
        limit = self.settings.max_shortening
        if limit is not None and shortening(best.text, worst.text) > limit:
            return "chosen too short"
        return None


def shortening(chosen: str, rejected: str) -> float:
    """``(words of rejected - words of chosen) / words of rejected``; below 0 where it is longer."""
    chosen_words, rejected_words = len(chosen.split()), len(rejected.split())
    return (rejected_words - chosen_words) / rejected_words
