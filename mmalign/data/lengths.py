"""Token counts of rows, as a model's own tokenizer and picture processor make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mmalign.data import images
from mmalign.data.findings import texts_of
from mmalign.data.inspecting import Level
from mmalign.data.reading import Parsed, answers_of
from mmalign.data.records import Content, Encoded, PreferenceRow, PromptRow
from mmalign.locate import locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

Said: TypeAlias = "tuple[str, tuple[Level, str, str]]"
"""A column, and level, reason and message."""


class Lengths:
    """Counts the tokens of prompts and answers.

    Args:
        model: A local folder, a hub's name or a shipped model; its weights are not loaded.
        max_prompt_length: Longer prompts, picture tokens included, are errors; None for no limit.
        max_new_tokens: Longer answers, their end token included, are warnings; None for no limit.

    Attributes:
        longest: Largest counts found, by "prompt" and "answer".
    """

    def __init__(
        self, model: str, *, max_prompt_length: int | None = None, max_new_tokens: int | None = None
    ) -> None:
        from transformers import AutoConfig, AutoProcessor, ProcessorMixin

        path = locate(model)
        self.model = model
        self.longest = {"prompt": 0, "answer": 0}
        self._max_prompt_length, self._max_new_tokens = max_prompt_length, max_new_tokens
        loaded = AutoProcessor.from_pretrained(path)
        self._processor: ProcessorMixin | None = (
            loaded if isinstance(loaded, ProcessorMixin) else None
        )
        self._tokenizer: PreTrainedTokenizerBase = (
            loaded if self._processor is None else loaded.tokenizer
        )
        settings = AutoConfig.from_pretrained(path).get_text_config().to_dict()
        self._context: int | None = settings.get("max_position_embeddings")
        self._stops, self._special = _stops(path, self._tokenizer), _special(self._tokenizer)
        self._image_token: str | None = (
            None if self._processor is None else self._processor.image_token
        )

    def check(self, parsed: Parsed, folder: Path) -> Iterator[Said]:
        """What is wrong with a row whose pictures can all be opened.

        Args:
            parsed: The row.
            folder: Where its pictures are.
        """
        prompts = _prompts(parsed)
        if any(prompt.images for _, prompt in prompts) and self._processor is None:
            message = f"{self.model} reads no pictures; the row has some"
            yield "images", ("error", "text-only model", message)
            return
        length = 0
        for column, prompt in prompts:
            if (token := self._marked(prompt.content)) is not None:
                yield column, token
                if token[0] == "error":
                    return
            ids = self.prompt_ids(prompt, folder)
            length = max(length, len(ids))
            if self._max_prompt_length is not None and len(ids) > self._max_prompt_length:
                message = (
                    f"{len(ids)} tokens, {self._picture_tokens(ids)} of them of pictures, are more "
                    f"than max_prompt_length={self._max_prompt_length}; training refuses the row, "
                    "as no prompt is ever cut"
                )
                yield column, ("error", "prompt too long", message)
        self.longest["prompt"] = max(self.longest["prompt"], length)
        yield from self._answers(parsed, length)

    def prompt_ids(self, prompt: PromptRow, folder: Path) -> list[int]:
        """The ids of a prompt, its pictures expanded to their tokens, ready for an answer."""
        if self._processor is not None:
            inputs = self._processor.apply_chat_template(
                _with_pictures(prompt, folder),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
            return list(inputs["input_ids"][0])
        messages = _messages(prompt.content)
        if self._tokenizer.chat_template is None:
            text = "\n".join(message["content"] for message in messages)
            return list(self._tokenizer(text)["input_ids"])
        return list(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    def _answers(self, parsed: Parsed, before: int) -> Iterator[Said]:
        found: dict[str, list[int]] = {}
        for column, text in _answer_texts(parsed):
            if (said := self._special_in(text)) is not None:
                yield column, said
            found[column] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        for column, ids in found.items():
            length = len(ids) + 1
            self.longest["answer"] = max(self.longest["answer"], length)
            if self._max_new_tokens is not None and length > self._max_new_tokens:
                message = (
                    f"{length} tokens with its end are more than max_new_tokens="
                    f"{self._max_new_tokens}; only the first of them are scored"
                )
                yield column, ("warning", "answer too long", message)
            kept = min(length, self._max_new_tokens or length)
            if self._context is not None and before + kept > self._context:
                message = (
                    f"prompt and answer have {before + kept} tokens, the model {self._context}"
                )
                yield column, ("error", "longer than the context", message)
        limit = self._max_new_tokens
        if limit is not None and len(found) == 2 and isinstance(parsed, PreferenceRow):
            chosen, rejected = found.values()
            same = chosen != rejected and chosen[:limit] == rejected[:limit]
            if same and len(chosen) >= limit and len(rejected) >= limit:
                message = f"the answers do not differ within their first {limit} tokens"
                yield "rejected", ("error", "identical when cut", message)

    def _marked(self, content: Content) -> tuple[Level, str, str] | None:
        """A prompt's text with a token in it that a template or a processor would have written."""
        for text in texts_of(content):
            if self._image_token is not None and self._image_token in text:
                message = f"{self._image_token!r} stands in the text, and no picture belongs to it"
                return "error", "placeholders", message
            token = next((t for t in self._special if t in text), None)
            if token is not None:
                message = f"{token!r} is a token of {self.model}, and is read as that"
                return "warning", "special tokens", message
        return None

    def _special_in(self, answer: str) -> tuple[Level, str, str] | None:
        if self._image_token is not None and self._image_token in answer:
            message = f"{self._image_token!r} stands for a picture; no answer may hold it"
            return "error", "special tokens", message
        for stop in self._stops:
            # A stop token that ends the answer is where it belongs.
            if stop in answer.removesuffix(stop):
                message = f"{stop!r} ends an answer of {self.model}, and stands inside this one"
                return "error", "special tokens", message
        token = next((t for t in self._special if t in answer and t not in self._stops), None)
        if token is None:
            return None
        message = f"{token!r} is a token of {self.model}; the model learns to write it"
        return "warning", "special tokens", message

    def _picture_tokens(self, ids: list[int]) -> int:
        if self._processor is None:
            return 0
        kinds = set(self._processor.image_token_ids)
        return sum(token in kinds for token in ids)


def _prompts(parsed: Parsed) -> list[tuple[str, PromptRow]]:
    """Each prompt of a row, with the column that its length is found under."""
    if isinstance(parsed, PromptRow):
        return [("prompt", parsed)]
    other = parsed.rejected_prompt if isinstance(parsed, PreferenceRow) else None
    return [("prompt", parsed.prompt), *([] if other is None else [("rejected_images", other)])]


def _answer_texts(parsed: Parsed) -> Iterator[tuple[str, str]]:
    for column, answer in answers_of(parsed):
        if isinstance(answer, str):
            yield column, answer


def _messages(content: Content) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    return [
        {**message, "content": "".join(texts_of((message,)))} for message in content
    ]  # a text model's row has no image part: it has no picture


def _with_pictures(prompt: PromptRow, folder: Path) -> list[dict[str, Any]]:
    """The conversation with the pictures themselves in its image parts."""
    pictures = iter(prompt.images)
    content = prompt.content
    if isinstance(content, str):
        parts = [*[{"type": "image"}] * len(prompt.images), {"type": "text", "text": content}]
        content = ({"role": "user", "content": parts},)
    found = []
    for message in content:
        inside = message["content"]
        parts = [{"type": "text", "text": inside}] if isinstance(inside, str) else inside
        shown = [_shown(part, pictures, folder) for part in parts]
        found.append({**message, "content": shown})
    return found


def _shown(part: Mapping[str, Any], pictures: Iterator[Encoded], folder: Path) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    picture = next(pictures)
    place = picture if isinstance(picture, bytes) else images.inside(folder, picture)
    return {"type": "image", "image": images.load(place)}


def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(t for t in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if t.strip())


def _stops(path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that end an answer."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        named = None  # not every model has such a file
    ids = [named] if isinstance(named, int) else list(named or ())
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(tokenizer.convert_ids_to_tokens(ids)))
