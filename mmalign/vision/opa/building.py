"""The builder of OPA-DPO's data: what the policy writes, corrected by an expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mmalign import rng
from mmalign.data.building import Candidate
from mmalign.experts import Draft, Expert, Verdict, described
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Output, Preference, Prompt
from mmalign.vision.completing import Completed, Decoding, complete
from mmalign.vision.lvlm_policy import LVLMPolicy
from mmalign.vision.opa.revising import SpanWeights, repetitive, revised

NAME = "opa-dpo"
TRUTH = "ground_truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class OPADPOBuilder:
    """OPA-DPO's data: an answer of the policy against the same answer corrected by an expert.

    Each row of the data (a prompt with an answer that is right) gives one pair: chosen is the
    corrected answer, rejected what the policy wrote. Columns: ``ground_truth``, the answer of the
    data; ``weights_chosen`` and ``weights_rejected``, lists of [start, end, severity, image], the
    weights of the characters of each sentence; ``report``, the expert's. The file serves the
    supervised stage (both right answers) and the preference stage (source ``views``).

    Rows are dropped where the policy goes round in circles or writes nothing, where the expert has
    no report, or leaves nothing of the answer, or nothing to correct. (Such a row has no pair to
    learn from; the published method keeps it for its ground truth.)

    Attributes:
        data: Prompts, each with the answer that is right; of a file the column ``completion``.
        expert: Who corrects.
        policy: Who answers; the corrections are on-policy for this model alone.
        decoding: How answers are drawn.
        weights: Weights of sentences by the expert's score and kind of fault.
        batch_size: Prompts answered, then answers corrected, at a time.

    References:
        2501.09695; numbers and rules for dropping rows as in the released code.
    """

    data: DataSpec
    expert: Expert
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    decoding: Decoding = field(
        default_factory=lambda: Decoding(temperature=1.0, top_k=30, top_p=0.95, max_new_tokens=896)
    )
    weights: SpanWeights = field(default_factory=SpanWeights)
    batch_size: int = 16

    def prepare(self, *, seed: int) -> Corrections:
        """Load the policy and open the data."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        return Corrections(
            self, self.policy.load().on_accelerator(), self.data.demonstrations(), seed
        )


class Corrections:
    """A construction of OPA-DPO's data; see `mmalign.data.building.Construction`."""

    def __init__(
        self,
        spec: OPADPOBuilder,
        policy: Policy,
        data: Sequence[tuple[Prompt, Output]],
        seed: int,
    ) -> None:
        self.spec, self.policy, self.data, self.seed = spec, policy, data, seed

    def __len__(self) -> int:
        return len(self.data)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row."""
        for first in range(start, len(self), self.spec.batch_size):
            rows = range(first, min(first + self.spec.batch_size, len(self)))
            shown = [self._shown(row) for row in rows]
            written = complete(
                self.policy,
                [prompt for prompt, _ in shown],
                decoding=self.spec.decoding,
                generators=[rng.generator(self.seed, NAME, "answer", row) for row in rows],
                batch_size=self.spec.batch_size,
            )
            drafts = [
                Draft(row=row, prompt=prompt, truth=truth, answer=answer.text)
                for row, (prompt, truth), answer in zip(rows, shown, written, strict=True)
            ]
            problems = [_unusable(draft) for draft in drafts]
            good = [d for d, problem in zip(drafts, problems, strict=True) if problem is None]
            verdicts = {d.row: v for d, v in zip(good, self.spec.expert.revise(good), strict=True)}
            for draft, answer, problem in zip(drafts, written, problems, strict=True):
                if problem is not None:
                    yield self._candidate(draft, answer, "", problem, {})
                else:
                    yield self._corrected(draft, answer, verdicts[draft.row])

    def _shown(self, row: int) -> tuple[Prompt, str]:
        prompt, truth = self.data[row]
        if not isinstance(truth, str):
            raise ValueError(
                f"row {row}: the right answer is a {type(truth).__name__}; answers about pictures "
                "are text"
            )
        return prompt, truth

    def _corrected(self, draft: Draft, answer: Completed, verdict: Verdict) -> Candidate:
        kept: dict[str, object] = {"raw": verdict.raw} if verdict.raw else {}
        if verdict.report is None:
            return self._candidate(draft, answer, "", verdict.problem, kept)
        found = {**kept, "report": described(verdict.report)}
        if not verdict.report.sentences:
            return self._candidate(draft, answer, "", "report empty", found)
        revision = revised(draft.answer, verdict.report, self.spec.weights)
        found |= {
            "weights_chosen": [list(span) for span in revision.spans],
            "weights_rejected": [list(span) for span in revision.sampled],
            "unmatched": revision.unmatched,
        }
        dropped = None
        if not revision.text:
            dropped = "revision empty"
        elif revision.text == draft.answer.strip():
            dropped = "nothing to correct"
        return self._candidate(draft, answer, revision.text, dropped, found)

    def _candidate(
        self,
        draft: Draft,
        answer: Completed,
        revision: str,
        dropped: str | None,
        found: dict[str, object],
    ) -> Candidate:
        meta = {"builder": NAME, "row": draft.row, "ended": answer.ended, TRUTH: draft.truth}
        pair = Preference(
            prompt=draft.prompt, chosen=revision, rejected=draft.answer, meta={**meta, **found}
        )
        return Candidate(preference=pair, row=draft.row, dropped=dropped)


def _unusable(draft: Draft) -> str | None:
    """Why an answer is not shown to the expert; None if it is."""
    return repetitive(draft.answer) if draft.answer.strip() else "answer empty"
