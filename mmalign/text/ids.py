"""Prompts and answers as token ids.

The two are tokenised apart and their ids put one after the other, so that no token ever spans the
boundary, and what is scored is exactly what a model that continues the prompt could have written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mmalign.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Conversation: TypeAlias = "list[dict[str, Any]]"


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation of a prompt for a text model: a bare string is one turn of the user.

    Raises:
        ValueError: The prompt holds pictures, which a text model cannot see.
    """
    if prompt.images:
        raise ValueError(
            f"a prompt holds {len(prompt.images)} images, and a text model cannot see them; use "
            "the policy `type: lvlm`, or remove the images column"
        )
    if isinstance(prompt.content, str):
        return [{"role": "user", "content": prompt.content}]
    return [{**message, "content": _text_of(message["content"])} for message in prompt.content]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The ids of a prompt, ending where the answer begins.

    With a chat template, its rendering with the generation prompt, which writes a beginning-of-text
    token where the model wants one. Without one, the contents of the messages, joined by newlines,
    as the tokenizer encodes plain text.

    Raises:
        ValueError: The prompt is empty, so there is nothing the first token could follow.
    """
    messages = messages_of(prompt)
    if tokenizer.chat_template is not None:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    else:
        ids = tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
        # Some tokenizers end every text; an answer must be able to follow.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    if not ids:
        raise ValueError("an empty prompt has no token that an answer could follow")
    return list(ids)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    answer: str,
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[int]:
    """The ids of a recorded answer, ending in the stop id unless it is cut.

    Args:
        tokenizer: Tokenises without special tokens of its own.
        answer: The text.
        stop_ids: Ids that end an answer, from `stop_ids_of`; the first is written.
        max_new_tokens: A longer answer keeps its first so many ids and has no stop id: scoring one
            there would teach the model to stop in mid-sentence.

    Returns:
        1 to ``max_new_tokens`` ids.

    Raises:
        ValueError: A stop id stands inside the answer.
    """
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if not ids or ids[-1] not in stop_ids:
        ids.append(stop_ids[0])
    ids = ids[:max_new_tokens]
    if any(token in stop_ids for token in ids[:-1]):
        raise ValueError(
            f"the answer {answer[:60]!r} contains the model's end token before its end; remove it "
            "from the data"
        )
    return ids


def stop_ids_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    render: Callable[[Conversation], str] | None,
) -> tuple[int, ...]:
    """Every id that ends an answer; first the one the chat template writes after one.

    A model may name several (its generation config does), and the one that closes a turn need not
    be the tokenizer's end-of-text.

    Args:
        model: Its generation config names stop ids.
        tokenizer: Names its end-of-text.
        render: A conversation of string contents as the chat template writes it, without the
            generation prompt; None where there is no chat template.

    Raises:
        ValueError: Neither the model nor the tokenizer names one.
    """
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in found:
        found.insert(0, tokenizer.eos_token_id)
    if not found:
        raise ValueError(
            f"neither {tokenizer.name_or_path!r} nor its generation config names an end-of-text "
            "token, so no answer could ever end; set eos_token in the tokenizer"
        )
    first = tokenizer.eos_token_id
    if render is not None:
        question = {"role": "user", "content": "0"}
        answered = render([question, {"role": "assistant", "content": "0"}])
        written = answered[len(render([question])) :]
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        first = next((token for token in reversed(ids) if token in found), first)
    return tuple(sorted(found, key=lambda token: token != first))


def renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[[Conversation], str] | None:
    """What `stop_ids_of` takes, for a text model."""
    if tokenizer.chat_template is None:
        return None
    return lambda conversation: tokenizer.apply_chat_template(conversation, tokenize=False)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    other = [part["type"] for part in content if part["type"] != "text"]
    if other:
        raise ValueError(
            f"a prompt for a text model has a part of type {other[0]!r}; use text only"
        )
    return "".join(part["text"] for part in content)
