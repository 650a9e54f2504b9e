"""Between prompts and questions: what a prompt asks, and how a local model is asked a question."""

from __future__ import annotations

from mmalign.endpoint import Question
from mmalign.types import Prompt


def asked_of(prompt: Prompt) -> str:
    """The words of a prompt's last message, without its pictures."""
    if isinstance(prompt.content, str):
        return prompt.content
    content = prompt.content[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def prompt_of(question: Question) -> Prompt:
    """A question as one turn of the user: the system message, the pictures, the text.

    Templates of many vision-language models refuse a system message of its own.
    """
    system = [{"type": "text", "text": f"{question.system}\n\n"}] if question.system else []
    pictures = [{"type": "image"}] * len(question.images)
    parts = [*system, *pictures, {"type": "text", "text": question.text}]
    return Prompt(content=({"role": "user", "content": parts},), images=question.images)
