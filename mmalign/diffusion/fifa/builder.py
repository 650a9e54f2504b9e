"""FiFA (arXiv 2410.10166): a small part of a large preference data set, chosen for what it teaches.

A pair counts by the margin that a proxy reward sees between its sides, by the quality of its prompt
as a language model sees it, and by the variety that its prompt adds.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmalign import rng
from mmalign.data.building import Candidate
from mmalign.diffusion.fifa.choosing import REASONS, Choice, Components, choose, duplicates
from mmalign.diffusion.fifa.embedding import TextEncoder, embedded
from mmalign.diffusion.fifa.entropy import log_distances, neighbour_distances
from mmalign.diffusion.fifa.importance import Floats, Weights
from mmalign.diffusion.fifa.quality import ASKED, PROMPT, PromptRules, ratings
from mmalign.diffusion.fifa.remembering import store_of
from mmalign.diffusion.fifa.reporting import write_report
from mmalign.diffusion.fifa.scoring import Scored, scored
from mmalign.endpoint import Asker
from mmalign.protocols import RewardModel
from mmalign.run import DataSpec
from mmalign.types import Preference, Prompt

NAME = "fifa"
BEFORE = "before"
"""The column of what an earlier builder wrote under the names of ours."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FiFA:
    """FiFA: keeps the pairs of large margin, good prompts and varied prompts.

    The defaults are ours: the paper's numbers, its question to the language model and its scale
    were not found, apart from keeping less than 0.5 % of the data.

    Attributes:
        data: The preferences to choose from.
        reward: Proxy that judges both sides; None takes the margins that the data has.
        share: Share of the rows that is kept.
        number: Pairs that are kept, in place of a share.
        selection: ``top``: the largest importance. ``greedy``: one pair after another, each time
            the one that adds most to those taken.
        weights: Of quality and diversity, and how components are put on one scale.
        neighbour: Which nearest neighbour the diversity looks at (k).
        references: Prompts among which neighbours are looked for, drawn at random; None for all,
            whose time grows with the square of their number.
        encoder: Turns prompts into points.
        asker: A language model that rates the prompts; None for ``rules``.
        question: What it is asked, ``{prompt}`` standing for the prompt; None for ASKED of
            `mmalign.diffusion.fifa.quality`, which is ours.
        rules: Rate the prompts where there is no asker.
        min_margin: Drops pairs whose margin is not above it: 0 drops ties and labels that the
            reward contradicts; None leaves them to their low importance.
        per_prompt: Most pairs that are kept of one prompt.
        shortlist: Greedy: it looks at so many times the wanted number, by importance.
        dropped_pictures: Whether dropped pairs are written with their outputs, which copies the
            data set. Otherwise they are written as prompt, row number and scores.
        batch_size: Pairs judged at a time, and prompts rated.
        cache: Folder in which judgements and ratings are kept, so that an interrupted construction
            asks nothing twice; None for none.
        report: A page about what was kept and why, ``.html``; None for none.
    """

    data: DataSpec
    reward: RewardModel | None
    share: float = 0.005
    number: int | None = None
    selection: Literal["top", "greedy"] = "top"
    weights: Weights = field(default_factory=Weights)
    neighbour: int = 5
    references: int | None = 100_000
    encoder: TextEncoder = field(default_factory=TextEncoder)
    asker: Asker | None = None
    question: str | None = None
    rules: PromptRules = field(default_factory=PromptRules)
    min_margin: float | None = None
    per_prompt: int = 1
    shortlist: int = 10
    dropped_pictures: bool = False
    batch_size: int = 64
    cache: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must lie in (0, 1]; for a count use `number`")
        for name in ("number", "neighbour", "references", "per_prompt", "shortlist", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.question is not None and PROMPT not in self.question:
            raise ValueError(f"question {self.question!r} does not hold {PROMPT}")
        if self.question is not None and self.asker is None:
            raise ValueError("a question is given and no asker who would be asked it")
        if self.report is not None and not self.report.endswith(".html"):
            raise ValueError(f"report {self.report!r} must end in .html")

    def wanted(self, total: int) -> int:
        """How many of ``total`` pairs are to be kept: at least one."""
        return self.number or max(1, round(self.share * total))

    def prepare(self, *, seed: int) -> Filtering:
        """Judge all pairs and choose.

        Raises:
            ValueError: The data holds no usable pair, or a model is missing or fails.
        """
        data = self.data.preferences()
        if len(data) == 0:
            raise ValueError(f"the data set holds no preference: {self.data}")
        found = scored(
            data,
            self.reward,
            store=None if self.reward is None else store_of(self.cache, "rewards", self.reward),
            batch_size=self.batch_size,
        )
        dropped = self._flaws(found)
        if (dropped != 0).all():
            raise ValueError(
                f"none of {len(data)} pairs is left to choose from: all are ties, copies or have a "
                f"margin of at most min_margin={self.min_margin}"
            )
        pool = np.flatnonzero(dropped == 0)
        wanted = self.wanted(len(data))
        if wanted > len(pool):
            _log.warning("%d pairs are wanted, and there are %d to choose from", wanted, len(pool))
        with tempfile.TemporaryDirectory() as folder:
            choice = choose(
                self._components(found, pool, seed, Path(folder)),
                found,
                dropped,
                weights=self.weights,
                wanted=wanted,
                per_prompt=self.per_prompt,
                greedy_shortlist=self.shortlist if self.selection == "greedy" else None,
                k=self.neighbour,
            )
        if self.report is not None:
            write_report(Path(self.report), data, found, choice)
        return Filtering(self, data=data, scored=found, choice=choice)

    def _flaws(self, found: Scored) -> NDArray[np.int8]:
        """``[N]`` numbers of `REASONS`, 0 for the pairs to choose from."""
        dropped = np.zeros(len(found.key), np.int8)
        if self.min_margin is not None:
            dropped[found.margin <= self.min_margin] = REASONS.index("small margin")
            if self.min_margin >= 0:
                dropped[found.margin == 0] = REASONS.index("tie")
        dropped[found.identical] = REASONS.index("identical sides")
        dropped[duplicates(found, dropped)] = REASONS.index("duplicate")
        return dropped

    def _components(
        self, found: Scored, pool: NDArray[np.int64], seed: int, folder: Path
    ) -> Components:
        """Of the prompts of the pool; their vectors are in a file in ``folder``."""
        used = np.unique(found.text[pool])
        texts = [found.texts[number] for number in used.tolist()]
        vectors = embedded(texts, self.encoder, folder / "prompts.npy")
        references = None
        if self.references is not None and self.references < len(texts):
            # By a draw for each text, so that the order of the data decides nothing.
            drawn = np.array([rng.seed_of(seed, NAME, "references", text) for text in texts])
            references = np.argsort(drawn, kind="stable")[: self.references].tolist()
        distances = neighbour_distances(vectors, k=self.neighbour, references=references)
        return Components(
            texts=used,
            quality=self._quality(texts),
            log_distance=log_distances(distances),
            vectors=vectors,
        )

    def _quality(self, texts: Sequence[str]) -> Floats:
        if self.asker is None:
            return np.array([self.rules.score(text) for text in texts])
        question = self.question or ASKED
        store = store_of(self.cache, f"quality by {question!r}", self.asker)
        return ratings(texts, self.asker, question, store=store, batch_size=self.batch_size)


class Filtering:
    """`FiFA` at work: everything is decided, and the rows are handed out.

    Args:
        settings: Of the builder.
        data: The pairs.
        scored: What the reward said of them.
        choice: What becomes of them.
    """

    def __init__(
        self, settings: FiFA, *, data: Sequence[Preference], scored: Scored, choice: Choice
    ) -> None:
        self.settings, self.data, self.scored, self.choice = settings, data, scored, choice

    def __len__(self) -> int:
        return len(self.data)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row: the pair as it was, with the numbers behind the decision."""
        for row in range(start, len(self)):
            reason = REASONS[self.choice.reason[row]]
            kept = reason == REASONS[0]
            if kept or self.settings.dropped_pictures:
                pair = self.data[row]
            else:
                # Not read again: there are hundreds of these for each one that is kept.
                prompt = Prompt(content=self.scored.texts[self.scored.text[row]])
                pair = Preference(prompt=prompt, chosen="", rejected="")
            yield Candidate(
                preference=self._noted(pair, row), row=row, dropped=None if kept else reason
            )

    def _noted(self, pair: Preference, row: int) -> Preference:
        choice, pool = self.choice, bool(self.choice.rank[row])
        meta: dict[str, Any] = {"builder": NAME, "row": row}
        if self.settings.reward is not None:
            chosen, rejected = self.scored.scores[row].tolist()
            meta |= {"chosen_reward": chosen, "rejected_reward": rejected}
        if pool:
            meta |= {
                "quality": float(choice.quality[row]),
                "entropy": float(choice.entropy[row]),
                "score": float(choice.importance[row]),
                "rank": int(choice.rank[row]),
            }
        given = {**pair.prompt.meta, **pair.meta}
        before = {key: given[key] for key in meta if key in given}
        if before:
            meta[BEFORE] = before
        return replace(pair, margin=float(self.scored.margin[row]), meta={**pair.meta, **meta})
