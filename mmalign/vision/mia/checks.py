"""Whether a model can read the questions that are made for it."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import ProcessorMixin

from mmalign.vision.mia.composing import Formats, sequence_parts
from mmalign.vision.mia.wording import Wording


def check_fit(processor: ProcessorMixin, formats: Formats, wording: Wording) -> None:
    """Check the words of a model's tokenizer and the order that its chat template keeps.

    Raises:
        ValueError: The tokenizer lacks a word, there are fewer names of numbers than pictures, or
            the template moves pictures away from their labels.
    """
    for text in _phrases(formats, wording):
        _check_known(processor, text)
    if formats.sequence > 0:
        _check_order(processor, wording)


def _phrases(formats: Formats, wording: Wording) -> Iterator[str]:
    counts = [
        *(formats.sequence_counts if formats.sequence else ()),
        *(formats.collage_counts if formats.collage else ()),
    ]
    if counts:
        # One more than there are: what a refusal is about.
        last = max(counts) + (formats.refusal_every is not None)
        for number in range(1, last + 1):
            yield wording.labelled(number)
            yield wording.about(number, "")
    if formats.refusal_every is not None:
        yield from (wording.missing(count + 1, count) for count in counts)
    if formats.inset:
        yield from (wording.about_inset(phrase, "") for phrase in wording.lead_ins)


def _check_known(processor: ProcessorMixin, text: str) -> None:
    tokenizer = processor.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    if unknown in tokenizer(text, add_special_tokens=False)["input_ids"]:
        raise ValueError(
            f"the model's tokenizer does not know all words of {text!r}; set other words in "
            "`wording`"
        )


def _check_order(processor: ProcessorMixin, wording: Wording) -> None:
    """Some templates write all pictures first, wherever they stand; labels then name nothing."""
    if not wording.label:
        return
    content = [*sequence_parts(2, wording), {"type": "text", "text": wording.about(1, "")}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    first = text.find(wording.labelled(1))
    second = text.find(wording.labelled(2))
    places = [i for i in range(len(text)) if text.startswith(processor.image_token, i)]
    if len(places) != 2 or not first < places[0] < second < places[1]:
        raise ValueError(
            "the model's chat template does not keep pictures where they stand among the words "
            f"(it writes {text[:200]!r}), so the labels of a sequence would name nothing; give the "
            "policy a `chat_template` that keeps the order of parts, set `wording.label` to an "
            "empty string, or set `formats.sequence` to 0"
        )
