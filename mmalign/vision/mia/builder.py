"""MIA-DPO: pairs about several pictures, from data about single ones and the model itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mmalign.data.building import Candidate, Construction
from mmalign.policy import Policy
from mmalign.rng import generator, python_random
from mmalign.run import DataSpec
from mmalign.types import Preference
from mmalign.vision.completing import Completed, Decoding, complete
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_policy import LVLMPolicy
from mmalign.vision.mia.attention import Look, attention_maps, look
from mmalign.vision.mia.checks import check_fit
from mmalign.vision.mia.composing import (
    Composed,
    Corruption,
    Formats,
    compose,
    spoiled,
    target_box,
)
from mmalign.vision.mia.questions import Asked, Demonstration, Unusable, asked, companions
from mmalign.vision.mia.selection import Selection, region_share, sequence_share, unfit
from mmalign.vision.mia.wording import Wording

NAME = "mia-dpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class MIADPO:
    """Pairs about several pictures from questions about one, by MIA-DPO.

    A picture is put among others of the same data, its question is rewritten to name it, and the
    model answers. Where the answer is wrong and the model looked elsewhere while it wrote it, the
    pair is the data's own answer over the model's.

    Attributes:
        data: Questions about one picture each, with right answers.
        policy: The model to be aligned, which answers.
        formats: How pictures are put together.
        corruption: Noise in what the model sees while it answers.
        selection: Which answers become rejected ones.
        wording: The words of the rewritten questions.
        same_column: Pictures are only put beside pictures of rows that have the same value in this
            column (the name of a data set within the data); None for any.
        attempts: How often a row is tried, each time with other companions, until it gives a pair.
        max_new_tokens: Longest answer in tokens.
        temperature: Of the answers; 0 takes the likeliest token each time, as published. Where
            answers are a word or two, the likeliest ones are wrong where the model always is, and
            pairs of these alone teach it to say the opposite of what it thinks; 1 avoids that.
        max_truth_length: Rows whose right answer has more characters are dropped; None for none.
        map_size: Rows and columns, at most, of the map of attention that is kept with a pair; 0 for
            none.
        batch_size: Rows answered together.

    References:
        2410.17637.
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    formats: Formats = field(default_factory=Formats)
    corruption: Corruption = field(default_factory=Corruption)
    selection: Selection = field(default_factory=Selection)
    wording: Wording = field(default_factory=Wording)
    same_column: str | None = None
    attempts: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.0
    max_truth_length: int | None = 511
    map_size: int = 24
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("attempts", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.map_size < 0:
            raise ValueError(f"map_size={self.map_size} must be 0 or more")

    def prepare(self, *, seed: int) -> Construction:
        """Load the model and open the data.

        Raises:
            ValueError: The model does not know the words, or its chat template tears pictures from
                their labels.
        """
        policy = self.policy.load().on_accelerator()
        check_fit(cast(LVLMAdapter, policy.adapter).processor, self.formats, self.wording)
        return Augmentation(
            settings=self, policy=policy, rows=self.data.demonstrations(), seed=seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """MIA-DPO at work.

    Attributes:
        settings: Of the builder.
        policy: Loaded.
        rows: The data.
        seed: Of every draw.
    """

    settings: MIADPO
    policy: Policy
    rows: Sequence[Demonstration]
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row: its first good pair, or its last attempt with what was wrong."""
        size = self.settings.batch_size
        # Batches begin at multiples of their size wherever one starts, so that a row is always
        # computed beside the same neighbours: it does not depend on them except by a rounding.
        for first in range(start - start % size, len(self), size):
            rows = range(first, min(first + size, len(self)))
            yield from (found for found in self._batch(rows) if found.row >= start)

    def _batch(self, rows: Sequence[int]) -> list[Candidate]:
        found: dict[int, Candidate] = {}
        pending: dict[int, Asked] = {}
        for row in rows:
            try:
                pending[row] = self._asked(row)
            except Unusable as error:
                found[row] = self._unused(row, str(error))
        for attempt in range(self.settings.attempts):
            found |= self._attempts(pending, attempt)
            pending = {row: one for row, one in pending.items() if found[row].dropped is not None}
        return [found[row] for row in rows]

    def _attempts(self, pending: dict[int, Asked], attempt: int) -> dict[int, Candidate]:
        """A candidate of each row that has none that is good."""
        found: dict[int, Candidate] = {}
        made: dict[int, tuple[Composed, dict[str, Any]]] = {}
        for row, one in pending.items():
            try:
                made[row] = self._composed(row, one, attempt)
            except Unusable as error:
                found[row] = self._unused(row, str(error))
        answers = complete(
            self.policy,
            [question.seen for question, _ in made.values()],
            decoding=Decoding(
                temperature=self.settings.temperature,
                max_new_tokens=self.settings.max_new_tokens,
            ),
            generators=[generator(self.seed, NAME, "answer", row, attempt) for row in made],
            batch_size=self.settings.batch_size,
        )
        for (row, (question, meta)), answer in zip(made.items(), answers, strict=True):
            found[row] = self._judged(row, question, answer, meta)
        return found

    def _asked(self, row: int) -> Asked:
        settings = self.settings
        adapter = cast(LVLMAdapter, self.policy.adapter)
        one = asked(self.rows[row], image_token=adapter.processor.image_token)
        if settings.wording.names_a_picture(one.question):
            raise Unusable("question names a picture")
        longest = settings.max_truth_length
        if longest is not None and len(one.truth) > longest:
            raise Unusable("right answer too long")
        return one

    def _composed(self, row: int, one: Asked, attempt: int) -> tuple[Composed, dict[str, Any]]:
        """What is asked, and where it comes from."""
        settings, draw = self.settings, python_random(self.seed, NAME, row, attempt)
        refusal = settings.formats.refuses(row)
        form, count = settings.formats.drawn(draw, numbered=refusal)
        if form != "sequence" and one.has_coordinates:
            raise Unusable("coordinates of a box")
        column = settings.same_column
        others = companions(
            self.rows,
            row,
            count - 1,
            draw,
            same=lambda prompt: None if column is None else _column(prompt.meta, column),
        )
        made = compose(
            one,
            list(others.values()),
            form,
            refusal=refusal,
            draw=draw,
            formats=settings.formats,
            wording=settings.wording,
        )
        box = target_box(made, one, settings.formats)
        noise = generator(self.seed, NAME, "noise", row, attempt)
        meta = {
            "builder": NAME,
            "row": row,
            "attempt": attempt,
            "format": form,
            "count": count,
            "target": made.target,
            "refusal": refusal,
            "companions": list(others),
            "region": None if made.region is None else [round(edge, 6) for edge in made.region],
        }
        return spoiled(made, box, settings.corruption, noise), meta

    def _judged(
        self, row: int, made: Composed, answer: Completed, meta: dict[str, Any]
    ) -> Candidate:
        """The pair, and whether it is any good."""
        said = answer.text.strip()
        reason = _plainly_unfit(said, made.truth, answer)
        more: dict[str, Any] = {}
        if reason is None:
            depth = self.settings.selection.depth
            seen = look(self.policy, made.seen, answer.tokens, depth=depth)
            reason, more = self._looked(made, seen, said)
        pair = Preference(
            prompt=made.prompt,
            chosen=made.truth,
            rejected=said,
            meta={**meta, "ended": answer.ended, **more},
        )
        return Candidate(preference=pair, row=row, dropped=reason)

    def _looked(self, made: Composed, seen: Look, said: str) -> tuple[str | None, dict[str, Any]]:
        """What is wrong with an answer that is not plainly unfit, and what was measured."""
        selection = self.settings.selection
        share, threshold = math.nan, None
        if not made.refusal:
            share = _share(made, seen)
            threshold = selection.threshold(made.form, made.count)
        reason = unfit(
            selection,
            answer=said,
            truth=made.truth,
            perplexity=seen.perplexity,
            refusal=made.refusal,
        )
        if selection.mode == "attention" and not made.refusal:
            if math.isnan(share):
                reason = "no attention to go by"
            elif not selection.looked_away(made.form, made.count, share):
                reason = "looked at the right picture"
        more: dict[str, Any] = {
            "attention_share": None if math.isnan(share) else round(share, 6),
            "threshold": threshold,
            "perplexity": round(seen.perplexity, 6),
        }
        if self.settings.map_size:
            more["attention"] = attention_maps(seen, most=self.settings.map_size)
        return reason, more

    def _unused(self, row: int, reason: str) -> Candidate:
        """A row that was not asked, as it stands in the data."""
        prompt, output = self.rows[row]
        pair = Preference(
            prompt=prompt,
            chosen=output if isinstance(output, str) else "",
            rejected="",
            meta={"builder": NAME, "row": row},
        )
        return Candidate(preference=pair, row=row, dropped=reason)


def _share(made: Composed, seen: Look) -> float:
    """Attention on the picture that was asked about, of that on all."""
    if made.region is None:
        return sequence_share(seen, made.target - 1)
    (picture,) = seen.pictures
    return region_share(seen.on(picture), picture, made.region)


def _plainly_unfit(said: str, truth: str, answer: Completed) -> str | None:
    if not said:
        return "empty answer"
    if said == truth:
        return "right answer"
    # The first token is written by the prompt's last position, which does not count.
    return "answer of one token" if len(answer.tokens) < 2 else None


def _column(meta: Any, name: str) -> Any:
    if name not in meta:
        raise ValueError(
            f"same_column: a row has no column {name!r}; it has {', '.join(sorted(meta)) or 'none'}"
        )
    return meta[name]
