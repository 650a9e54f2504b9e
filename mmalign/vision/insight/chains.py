"""Chains of reasoning, written progressively: each step sees the picture and the steps before it.

``R_t = M(I, Q, R_1 .. R_{t-1})`` until a step says that the answer can be given; then the answer is
asked for. After Insight-V (2411.14432) and its ``data_generation/data_generation.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmalign.endpoint import Question
from mmalign.types import Prompt
from mmalign.vision.asking import asked_of
from mmalign.vision.insight.agents import Agent, Place

Action = Literal["continue", "final_answer"]
ACTIONS: tuple[Action, ...] = ("continue", "final_answer")
BEFORE = "Steps so far:"
SYSTEM = """\
You reason about pictures step by step, and write one step at a time. Reply with one JSON object \
and nothing else: {"title": what this step does, "content": the reasoning of this step, \
"next_action": "continue" or "final_answer"}. Look closely, consider other answers, check what you \
concluded before, and do not repeat a step. Say "final_answer" once the steps suffice to answer."""
ANSWER = """\
Give the final answer, as these steps imply it, in the form that the question asks for. Reply with \
one JSON object and nothing else: {"title": "final answer", "content": the answer}."""
AGAIN = "Your reply could not be read. Reply with the JSON object alone."

BROKEN_STEP = "broken step"
NO_ANSWER = "no final answer"
BROKEN_ANSWER = "broken answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a chain.

    Attributes:
        title: What it does.
        content: Its reasoning.
        next_action: Whether another one follows, or the answer.
    """

    title: str
    content: str
    next_action: Action

    def described(self) -> dict[str, str]:
        """As JSON."""
        return {"title": self.title, "content": self.content, "next_action": self.next_action}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of reasoning.

    Attributes:
        steps: In order.
        answer: What it comes to.
        flaw: Why it came to nothing, or None.
    """

    steps: tuple[Step, ...] = ()
    answer: str = ""
    flaw: str | None = None

    @property
    def concluded(self) -> bool:
        """Whether the last step leaves only the answer to be given."""
        return bool(self.steps) and self.steps[-1].next_action == "final_answer"

    def written(self) -> str:
        """As a model is taught to write it: each step under its title."""
        return "\n\n".join(f"### {step.title}\n{step.content}" for step in self.steps)


@dataclass(slots=True, kw_only=True)
class _Growing:
    """A chain on its way."""

    prompt: Prompt
    row: int
    number: int
    chain: Chain = field(default_factory=Chain)
    attempt: int = 0

    @property
    def done(self) -> bool:
        return self.chain.flaw is not None or bool(self.chain.answer)

    @property
    def place(self) -> Place:
        return Place(self.row, self.number, len(self.chain.steps), self.attempt)


def grow(
    agent: Agent,
    prompts: Sequence[tuple[int, Prompt]],
    *,
    chains: int,
    max_steps: int,
    attempts: int,
) -> list[list[Chain]]:
    """Chains for each prompt, all of them a step further at a time.

    Args:
        agent: Writes.
        prompts: With their row numbers.
        chains: For each prompt.
        max_steps: A chain that wants more comes to nothing.
        attempts: At each step, after as many unreadable replies the chain comes to nothing.
    """
    growing = [
        [_Growing(prompt=prompt, row=row, number=n) for n in range(chains)]
        for row, prompt in prompts
    ]
    while left := [one for many in growing for one in many if not one.done]:
        replies = agent.answer([_question(one) for one in left], [one.place for one in left])
        for one, reply in zip(left, replies, strict=True):
            _take(one, reply, max_steps=max_steps, attempts=attempts)
    return [[one.chain for one in many] for many in growing]


def read_step(reply: str) -> Step | None:
    """The step that a reply holds; None where it holds none."""
    found = read_object(reply)
    if found is None or found.get("next_action") not in ACTIONS:
        return None
    title, content = found.get("title"), found.get("content")
    if not isinstance(title, str) or not isinstance(content, str) or not content.strip():
        return None
    action: Action = found["next_action"]
    return Step(title=title.strip(), content=content.strip(), next_action=action)


def read_answer(reply: str) -> str | None:
    """The final answer that a reply holds; None where it holds none."""
    content = (read_object(reply) or {}).get("content")
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        return None
    return str(content).strip() or None


def read_object(reply: str) -> dict[str, Any] | None:
    """The JSON object that a reply is, perhaps in a code fence; None where it is none."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", reply, flags=re.DOTALL)
    try:
        found = json.loads(fenced.group(1) if fenced else reply)
    except (json.JSONDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _question(one: _Growing) -> Question:
    steps = one.chain.steps
    said = [f"Question: {asked_of(one.prompt)}"]
    if steps:
        said.append("\n".join([BEFORE, *(json.dumps(step.described()) for step in steps)]))
    said.append(ANSWER if one.chain.concluded else f"Write step {len(steps) + 1}.")
    said += [AGAIN] if one.attempt else []
    system = "" if one.chain.concluded else SYSTEM
    return Question(text="\n\n".join(said), images=one.prompt.images, system=system)


def _take(one: _Growing, reply: str, *, max_steps: int, attempts: int) -> None:
    """What becomes of a chain with a reply."""
    if one.chain.concluded:
        answer = read_answer(reply)
        if answer is not None:
            one.chain = replace(one.chain, answer=answer)
            return
    elif (step := read_step(reply)) is not None:
        one.chain, one.attempt = replace(one.chain, steps=(*one.chain.steps, step)), 0
        if len(one.chain.steps) >= max_steps and not one.chain.concluded:
            one.chain = replace(one.chain, flaw=NO_ANSWER)
        return
    one.attempt += 1
    if one.attempt == attempts:
        flaw = BROKEN_ANSWER if one.chain.concluded else BROKEN_STEP
        one.chain = replace(one.chain, flaw=flaw)
