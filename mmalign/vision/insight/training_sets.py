"""What the two agents learn from, made of the chains that `InsightV` has assessed.

The reasoning agent imitates the best chain of each question. The summary agent is given chains of
every quality, wrong ones among them, and learns to give the right answer in either case.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign import rng
from mmalign.data import File, write_samples
from mmalign.data.building import Files
from mmalign.types import Prompt
from mmalign.vision.insight.agents import NAME

BUCKETS = ((1.0, 60.0), (60.0, 80.0), (80.0, 101.0))
"""Ranges of scores, the upper end not included."""
FLAWED = "flawed"
SUMMARY = """\
A question about the picture and a chain of reasoning follow. Judge whether the reasoning is \
correct. If it is, answer the question by it; if it is not, answer without it. Give the answer \
alone, and say nothing about the reasoning.

Question: """

_log = logging.getLogger(__name__)


def write_reasoning(pairs: str | Path, output: str | Path) -> int:
    """Write the best right chain of each question, as demonstrations for the reasoning agent.

    Args:
        pairs: The file of kept pairs that ``mmalign data insight-v`` wrote; the file of dropped
            ones beside it is read too.
        output: A ``.jsonl`` file that does not exist yet.

    Returns:
        The number of questions with a right chain.

    Raises:
        ValueError: The files are not those of this builder, or ``output`` exists.
    """

    def samples() -> Iterator[tuple[Prompt, str]]:
        for prompt, meta in _rows(Path(pairs)):
            right = [one for one in meta["chains"] if one["right"] and one["score"] is not None]
            if right:
                best = max(right, key=lambda one: one["score"])
                more = {"row": meta["row"], "score": best["score"]}
                yield _prompt(prompt.content, prompt, more), best["written"]

    return write_samples(output, samples())


def write_summaries(
    pairs: str | Path,
    output: str | Path,
    *,
    buckets: Sequence[tuple[float, float]] = BUCKETS,
    seed: int = 0,
) -> Counter[str]:
    """Write question, chain and right answer, for the summary agent.

    Of each question one chain of every bucket is taken, and one with a wrong answer, where there
    is one; which, is drawn.

    Args:
        pairs: As in `write_reasoning`.
        output: A ``.jsonl`` file that does not exist yet.
        buckets: Ranges of scores, the upper end not included.
        seed: Of the draws.

    Returns:
        How many samples there are of each bucket, and under ``flawed`` of chains with wrong
        answers. A bucket without any is said in the log.

    Raises:
        ValueError: As `write_reasoning`, or the buckets overlap.
    """
    ordered = sorted(buckets)
    for (low, high), (following, _) in zip(ordered, [*ordered[1:], (101.0, 0.0)], strict=True):
        if not low < high <= following:
            raise ValueError(f"buckets {ordered} must not overlap, be empty, or go beyond 101")
    counts: Counter[str] = Counter(dict.fromkeys([*map(_named, ordered), FLAWED], 0))

    def samples() -> Iterator[tuple[Prompt, str]]:
        for prompt, meta in _rows(Path(pairs)):
            draw = rng.python_random(seed, NAME, "summary", meta["row"])
            for name, chains in _parted(meta["chains"], ordered).items():
                chain = draw.choice(chains)
                counts[name] += 1
                more = {"row": meta["row"], "bucket": name, "score": chain["score"]}
                yield _summary(prompt, meta, chain, more), meta["right_answer"]

    write_samples(output, samples())
    empty = [name for name, count in counts.items() if not count]
    if empty:
        _log.warning("%s: no chain for %s", output, ", ".join(empty))
    return counts


def _rows(pairs: Path) -> Iterator[tuple[Prompt, Mapping[str, Any]]]:
    """Every question of a construction, kept or dropped, with what is known of its chains."""
    files = Files(kept=pairs)
    for path in (files.kept, files.dropped):
        if path.is_file() and path.stat().st_size == 0:
            continue
        for prompt in File(path=str(path), format="trl").prompts():
            if prompt.meta.get("builder") != NAME:
                raise ValueError(f"{path} was not made by `mmalign data {NAME}`")
            yield prompt, prompt.meta


def _parted(
    chains: Sequence[Mapping[str, Any]], buckets: Sequence[tuple[float, float]]
) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for chain in chains:
        if chain["right"] is False:
            found.setdefault(FLAWED, []).append(chain)
        for bucket in buckets:
            if chain["right"] and chain["score"] is not None and _inside(chain["score"], bucket):
                found.setdefault(_named(bucket), []).append(chain)
    return dict(sorted(found.items()))


def _inside(score: float, bucket: tuple[float, float]) -> bool:
    return bucket[0] <= score < bucket[1]


def _named(bucket: tuple[float, float]) -> str:
    return f"{bucket[0]:g}-{bucket[1]:g}"


def _summary(
    prompt: Prompt, meta: Mapping[str, Any], chain: Mapping[str, Any], more: Mapping[str, Any]
) -> Prompt:
    """The prompt of the summary agent: pictures, question and chain in one turn of the user."""
    end = f"\n\n{meta['instruction']}"
    if isinstance(prompt.content, str):
        said: list[Any] = [{"type": "text", "text": prompt.content.removesuffix(end)}]
        before: tuple[Any, ...] = ()
    else:
        *earlier, last = prompt.content
        before, content = tuple(earlier), last["content"]
        if isinstance(content, str):
            said = [{"type": "text", "text": content.removesuffix(end)}]
        else:
            said = list(content[:-1])
    parts = [
        {"type": "text", "text": SUMMARY},
        *said,
        {"type": "text", "text": f"\n\nReasoning:\n{chain['written']}"},
    ]
    return _prompt((*before, {"role": "user", "content": parts}), prompt, more)


def _prompt(content: Any, prompt: Prompt, more: Mapping[str, Any]) -> Prompt:
    known = {k: v for k, v in prompt.meta.items() if k not in _OURS}
    return Prompt(content=content, images=prompt.images, meta={**known, **more})


_OURS = frozenset(
    {
        "builder", "row", "right_answer", "instruction", "chains", "chosen_score",
        "rejected_score", "dropped",
    }
)  # fmt: skip
