"""What the real demonstration shows: scores before and after, the distance, a few answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.evaluation import Judgement

TITLES: Mapping[str, str] = {
    "sentiment": "sentiment (VADER, trained on), -1 to 1",
    "relevance": "relevance (MiniLM, never seen), -1 to 1",
    "length": "length, words",
}
NUM_WORDS = "mmalign.tinyworld.real_table:num_words"


def num_words(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """How many words each completion has."""
    del prompts
    return [float(len(text.split())) for text in completions]


def table(
    before: Mapping[str, Any], after: Mapping[str, Any], kl: Judgement, *, samples: int
) -> str:
    """The before -> after table of two lines of evaluations.jsonl, as text."""
    lines = [
        f"\nSmolLM2-135M-Instruct, {len(kl.per_prompt)} held-out prompts x {samples} answers",
        f"{'':42} {'before':>15} {'after':>15} {'change (95 % interval)':>26}",
    ]
    for name, title in TITLES.items():
        first, last, change = before["judge"][name], after["judge"][name], after["paired"][name]
        interval = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        lines.append(f"{title:42} {_interval(first)} {_interval(last)} {interval:>26}")
    lines.append(f"{'KL to the start, nats an answer':42} {0:15.3f} {_interval(kl.record())}")
    if after["paired"]["relevance"]["high"] < 0:
        lines.append(
            "Relevance fell: part of the rise was bought with cheerful words beside the point. A "
            "larger beta, or fewer steps, keeps closer to the start."
        )
    return "\n".join(lines)


def examples(folder: Path, *, last: int, count: int = 3) -> str:
    """The first answers to a few held-out prompts, before and after."""
    before, after = (
        json.loads((folder / f"step-{step:06d}.json").read_text())["items"] for step in (0, last)
    )
    lines = []
    for first, second in list(zip(before, after, strict=True))[:count]:
        lines.append(f"\n{first['prompt']}")
        for when, item in (("before", first), ("after", second)):
            score = item["scores"]["sentiment"][0]
            lines.append(f"  {when:7}{score:+.2f}  {' '.join(item['outputs'][0].split())}")
    return "\n".join(lines)


def _interval(record: Mapping[str, Any]) -> str:
    return f"{record['mean']:7.3f} +-{record['high'] - record['mean']:.3f}"
