"""Insight-V: pairs of chains of reasoning for preference training of the reasoning agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.data.building import Candidate
from mmalign.endpoint import Asker
from mmalign.run import DataSpec
from mmalign.types import Message, Output, Preference, Prompt
from mmalign.vision.completing import Decoding
from mmalign.vision.insight.agents import NAME, Agent, AskerAgent, PolicyAgent
from mmalign.vision.insight.assessing import WRONG, Assessed, checked, scored
from mmalign.vision.insight.chains import Chain, grow
from mmalign.vision.lvlm_policy import LVLMPolicy

INSTRUCTION = "Reason step by step. Write the reasoning only."


@dataclass(frozen=True, slots=True, kw_only=True)
class InsightV:
    """Insight-V: the best-judged chain of reasoning preferred to the worst.

    Attributes:
        data: Questions and their right answers.
        policy: Writes the chains, where no ``agent`` is given.
        agent: Writes them instead; an endpoint must sample (``temperature: 0.7, top_p: 0.95``).
        checker: Says whether an answer means the same as the right one; None compares words.
        judge: Scores the chains with right answers; None for whoever writes them.
        chains: For each question; the paper's number is not known to us.
        max_steps: A chain that wants more comes to nothing; 15 in the paper.
        attempts: At a reply in the right form.
        decoding: How ``policy`` draws; temperature 0.7 and top-p 0.95 in the released code, which
            also has a repetition penalty of 1.05 that is not applied here.
        instruction: Ends the prompt that the reasoning agent learns to answer with a chain.
        min_margin: By how much the two scores of a pair must differ at least.
        wrong_as_rejected: Whether a chain with a wrong answer, of score 0, may be the rejected one.
        rows_at_a_time: Questions whose chains are written together, which is what keeps an
            endpoint busy.
        batch_size: Replies of ``policy`` drawn in one forward pass.
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    agent: Asker | None = None
    checker: Asker | None = None
    judge: Asker | None = None
    chains: int = 8
    max_steps: int = 15
    attempts: int = 3
    decoding: Decoding = field(
        default_factory=lambda: Decoding(temperature=0.7, top_p=0.95, max_new_tokens=1024)
    )
    instruction: str = INSTRUCTION
    min_margin: float = 1.0
    wrong_as_rejected: bool = True
    rows_at_a_time: int = 8
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.chains < 2:
            raise ValueError(f"chains={self.chains} leaves nothing to compare; use 2 or more")
        for name in ("max_steps", "attempts", "rows_at_a_time", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.min_margin <= 0:
            raise ValueError(f"min_margin={self.min_margin} must be above 0")

    def prepare(self, *, seed: int) -> Reasoning:
        """Load the model where one is needed, open the data."""
        writer: Agent
        if self.agent is not None:
            writer = AskerAgent(asker=self.agent, seed=seed)
        else:
            writer = PolicyAgent(
                policy=self.policy.load().on_accelerator(),
                decoding=self.decoding,
                seed=seed,
                batch_size=self.batch_size,
            )
        judge = writer if self.judge is None else AskerAgent(asker=self.judge, seed=seed)
        return Reasoning(settings=self, rows=self.data.demonstrations(), writer=writer, judge=judge)


class Reasoning:
    """Insight-V at work.

    Args:
        settings: Of the builder.
        rows: Questions with right answers.
        writer: Writes chains.
        judge: Scores them.
    """

    def __init__(
        self,
        *,
        settings: InsightV,
        rows: Sequence[tuple[Prompt, Output]],
        writer: Agent,
        judge: Agent,
    ) -> None:
        self.settings, self.rows, self.writer, self.judge = settings, rows, writer, judge

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row."""
        for first in range(start, len(self), self.settings.rows_at_a_time):
            numbers = range(first, min(first + self.settings.rows_at_a_time, len(self)))
            records = [(row, *self._record(row)) for row in numbers]
            written = grow(
                self.writer,
                [(row, prompt) for row, prompt, _ in records],
                chains=self.settings.chains,
                max_steps=self.settings.max_steps,
                attempts=self.settings.attempts,
            )
            for (row, prompt, right), chains in zip(records, written, strict=True):
                yield self._candidate(row, prompt, right, chains)

    def _record(self, row: int) -> tuple[Prompt, str]:
        prompt, right = self.rows[row]
        if not isinstance(right, str):
            raise ValueError(f"row {row}: the right answer is a picture, and {NAME} needs text")
        return prompt, right

    def _candidate(self, row: int, prompt: Prompt, right: str, chains: list[Chain]) -> Candidate:
        assessed, flaw = self._assessed(row, prompt, right, chains)
        best, worst = self._ends(assessed)
        if flaw is None:
            flaw = self._flaw(best, worst)
        meta: dict[str, Any] = {
            "builder": NAME,
            "row": row,
            "right_answer": right,
            "instruction": self.settings.instruction,
            "chains": [one.described() for one in assessed],
            "chosen_score": None if best is None else best.score,
            "rejected_score": None if worst is None else worst.score,
        }
        pair = Preference(
            prompt=instructed(prompt, self.settings.instruction),
            chosen="" if best is None else best.chain.written(),
            rejected="" if worst is None else worst.chain.written(),
            meta=meta,
        )
        return Candidate(preference=pair, row=row, dropped=flaw)

    def _assessed(
        self, row: int, prompt: Prompt, right: str, chains: list[Chain]
    ) -> tuple[list[Assessed], str | None]:
        """Every chain with its score, and why there is none, if so."""
        verdicts = checked(chains, prompt, right, self.settings.checker)
        good = [i for i, verdict in enumerate(verdicts) if verdict]
        scores: list[float] | None = []
        if good:
            attempts = self.settings.attempts
            asked = [chains[i] for i in good]
            scores = scored(asked, prompt, row, self.judge, attempts=attempts)
        known = dict(zip(good, scores or [], strict=False))
        assessed = [
            Assessed(
                chain=chain,
                right=verdict,
                score=WRONG if verdict is False else known.get(i),
            )
            for i, (chain, verdict) in enumerate(zip(chains, verdicts, strict=True))
        ]
        return assessed, "unreadable scores" if scores is None else None

    def _ends(self, assessed: Sequence[Assessed]) -> tuple[Assessed | None, Assessed | None]:
        """The best right chain, and the worst of those that came to an answer."""
        right = [one for one in assessed if one.right and one.score is not None]
        other = [one for one in assessed if one.right is False]
        below = [*right, *other] if self.settings.wrong_as_rejected else right
        return (
            max(right, key=lambda one: one.score or WRONG, default=None),
            min(below, key=lambda one: one.score or WRONG, default=None),
        )

    def _flaw(self, best: Assessed | None, worst: Assessed | None) -> str | None:
        if best is None or best.score is None:
            return "no right chain"
        if worst is None or worst.score is None:
            return "no other chain"
        if best.score - worst.score < self.settings.min_margin:
            return "same score"
        return "same chain" if best.chain.written() == worst.chain.written() else None


def instructed(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with an instruction at its end.

    Raises:
        ValueError: Its conversation does not end with the user.
    """
    if isinstance(prompt.content, str):
        content: str | tuple[Message, ...] = f"{prompt.content}\n\n{instruction}"
    else:
        last = prompt.content[-1]
        if last["role"] != "user":
            raise ValueError(f"a question must end with the user, not with {last['role']!r}")
        said = last["content"]
        if isinstance(said, str):
            new: Any = f"{said}\n\n{instruction}"
        else:
            new = [*said, {"type": "text", "text": f"\n\n{instruction}"}]
        content = (*prompt.content[:-1], {**last, "content": new})
    return Prompt(content=content, images=prompt.images, meta=prompt.meta)
