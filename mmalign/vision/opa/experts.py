"""Experts that correct answers: a model behind an endpoint, and reports in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.endpoint import Asker, Question
from mmalign.experts import ADDED, Draft, Report, ReportError, Verdict, parse_report, report_of
from mmalign.types import Prompt

MALFORMED = "report malformed"

SYSTEM = (
    "You correct answers that a model gave about pictures. You reply with one JSON object only."
)
INSTRUCTIONS = f"""\
Look at the picture and correct the answer below. The reference answer is known to be right, but \
it need not mention everything; trust the picture where the two differ.

Question:
{{question}}

Reference answer:
{{truth}}

Answer to correct:
{{answer}}

Go through the answer sentence by sentence, in its order. Change as little as possible: keep the \
wording of what is right, put right what is wrong, and keep the style. If something important is \
missing, add one sentence at the end.

Reply with a JSON object:
{{{{"image_description": "what the picture shows",
 "sentences": [
  {{{{"copied_content": "the sentence, character by character, or {ADDED} for one of yours",
   "score": 4,
   "error_type": "correct",
   "object": "what the mistake is about, or empty",
   "rewritten_content": "the corrected sentence; the same one if it is right; empty to remove it",
   "reason": "why, in a few words"}}}}]}}}}

"score": 4 nothing wrong, 3 a small mistake, 2 a serious mistake, 1 unrelated to what was asked.
"error_type": "correct", "image_recognition_error" (says what the picture does not show) or \
"language_comprehension_error" (misreads the question, or bad language)."""
AGAIN = (
    "\n\nAn earlier reply to this could not be used, because {problem}. This is attempt {attempt}."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointExpert:
    """A vision-language model behind an endpoint, asked for a JSON report of each answer.

    A reply that is no such report is asked for again, with what was wrong about it; after the last
    attempt the answer has no report, and the reply is kept as it is. The published method asked
    GPT-4V, at top-p 0.95 and at most 3000 tokens.

    Attributes:
        asker: Where it is asked; set ``max_tokens`` to what a report takes.
        attempts: How often a report is asked for before it is given up.
        instructions: The question, with the places {question}, {truth} and {answer}; braces of the
            JSON in it are doubled.
    """

    asker: Asker
    attempts: int = 3
    instructions: str = INSTRUCTIONS

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")
        try:
            shown = self.instructions.format(question="{q}", truth="{t}", answer="{a}")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"instructions cannot be filled in ({error!r}): they have the places {{question}}, "
                "{truth} and {answer}, and every other brace doubled"
            ) from error
        if not all(place in shown for place in ("{q}", "{t}", "{a}")):
            raise ValueError("instructions must have the places {question}, {truth} and {answer}")

    def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
        """Ask about all drafts, and again about those whose report cannot be used."""
        found: dict[int, Verdict] = {}
        problems = dict.fromkeys(range(len(drafts)), "")
        for attempt in range(1, self.attempts + 1):
            asked = [self._question(drafts[i], problems[i], attempt) for i in problems]
            for i, raw in zip(list(problems), self.asker.ask(asked), strict=True):
                try:
                    found[i] = Verdict(report=parse_report(raw), raw=raw)
                    del problems[i]
                except ReportError as error:
                    found[i] = Verdict(report=None, problem=MALFORMED, raw=raw)
                    problems[i] = str(error)
            if not problems:
                break
        return [found[i] for i in range(len(drafts))]

    def _question(self, draft: Draft, problem: str, attempt: int) -> Question:
        text = self.instructions.format(
            question=question_of(draft.prompt), truth=draft.truth, answer=draft.answer
        )
        # Said otherwise each time: an asker may keep its answers, and a greedy one repeats itself.
        again = AGAIN.format(problem=problem, attempt=attempt) if problem else ""
        return Question(text=text + again, images=draft.prompt.images, system=SYSTEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileExpert:
    """Reports that were made elsewhere.

    Attributes:
        path: JSON lines ``{"row": 0, "answer": "...", "report": {...}}``: number of the row in the
            builder's data, the answer that the report is about, and the report as the endpoint's
            model writes it.
    """

    path: str

    def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
        """The reports of these rows.

        Raises:
            ValueError: The file is wrong, or has the report of another answer to a row.
        """
        known = _reports(self.path)
        return [self._verdict(draft, known) for draft in drafts]

    def _verdict(self, draft: Draft, known: Mapping[int, tuple[str, Report]]) -> Verdict:
        if draft.row not in known:
            return Verdict(report=None, problem="no report")
        answer, report = known[draft.row]
        if answer != draft.answer:
            raise ValueError(
                f"{self.path}: the report of row {draft.row} is about the answer {answer!r:.60}, "
                f"and the policy wrote {draft.answer!r:.60}; use the policy, data and seed that "
                "the reports were made with"
            )
        return Verdict(report=report)


def question_of(prompt: Prompt) -> str:
    """What was asked, as plain text; earlier turns with who said them."""
    if isinstance(prompt.content, str):
        return prompt.content
    turns = [(message["role"], _said(message["content"])) for message in prompt.content]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role}: {said}" for role, said in turns)


def _said(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join("<image>" if p["type"] == "image" else p["text"] for p in content)


@cache
def _reports(path: str) -> dict[int, tuple[str, Report]]:
    found: dict[int, tuple[str, Report]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        row = value.get("row") if isinstance(value, Mapping) else None
        answer = value.get("answer") if isinstance(value, Mapping) else None
        if not isinstance(row, int) or not isinstance(answer, str):
            raise ValueError(f'{where} must have a number "row" and a text "answer"')
        if row in found:
            raise ValueError(f"{where} is the second report of row {row}")
        try:
            found[row] = (answer, report_of(value.get("report")))
        except ReportError as error:
            raise ValueError(f"{where}, row {row}: {error}") from error
    return found
