"""AMBER: descriptions and yes-no questions with annotated objects, attributes and relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.benchmarks import (
    AnswerFormat,
    Item,
    Measured,
    PictureFile,
    Report,
    mean,
    read_json,
    read_rows,
    text_value,
    unique,
    write_list,
)
from mmalign.vision.benchmarks.amber_scores import (
    Lexicon,
    Marked,
    discriminative,
    generative,
    marked,
)
from mmalign.vision.benchmarks.words import never_similar, nltk_nouns, plain_nouns, similar_in

GENERATIVE = "generative"
DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "attribute: state"),
    "discriminative-attribute-number": ("attribute", "attribute: number"),
    "discriminative-attribute-action": ("attribute", "attribute: action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
"""The dimensions that each published type of question counts in."""
EXACT = {"Yes": "yes", "No": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AMBER:
    """AMBER, both tasks: CHAIR, Cover, Hal and Cog; accuracy, precision, recall and F1 of "no".

    All in percent. Which tasks are scored is decided by the questions. Scores compare with the
    published ones where ``nouns``, ``similarity`` and ``reading`` have their defaults.

    Source: Wang et al. 2023, arXiv 2311.07397; formats and rules as in
    github.com/junyangwang0410/AMBER.

    Attributes:
        data: The folder ``data`` of the repository: ``annotations.json``, ``relation.json``,
            ``safe_words.txt`` and ``query/``.
        query: The question file in ``query/``: ``query_all.json``, or one of a task or dimension.
        images: The folder of the pictures; not needed to score answers.
        nouns: How nouns are found in descriptions: as published, or by the words alone.
        similarity: The spaCy model that near synonyms are judged by; null for none.
        threshold: Similarity above which two words are near synonyms.
        reading: What counts as yes or no: exactly ``Yes`` or ``No``, or the first word of the
            answer, in whatever case.
        instruction: Added to each yes-no question; the published ones stand alone.
        max_new_tokens: Longest answer that is sampled.
    """

    data: str
    query: str = "query_all.json"
    images: str = "."
    nouns: Literal["nltk", "plain"] = "nltk"
    similarity: str | None = "en_core_web_lg"
    threshold: float = 0.8
    reading: Literal["exact", "first_word"] = "exact"
    instruction: str = ""
    max_new_tokens: int = 512

    def questions(self) -> Sequence[Item]:
        """The questions of the query file, each with its annotation."""
        annotations = self._annotations()
        path = Path(self.data) / "query" / self.query
        items = []
        for where, row in read_rows(path):
            name = str(row.get("id"))
            if name not in annotations:
                raise ValueError(f"{where}: annotations.json holds no id {name}")
            truth = annotations[name]
            text = text_value(row, "query", where)
            items.append(
                Item(
                    id=name,
                    text=text if truth["type"] == GENERATIVE else text + self.instruction,
                    images=(PictureFile(folder=self.images, name=text_value(row, "image", where)),),
                    meta={**truth, "id": row["id"]},
                )
            )
        return unique(items, path)

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Score descriptions and yes-no answers, each by its own rules."""
        pairs = list(zip(items, answers, strict=True))
        described = [(i, a) for i, a in pairs if i.meta["type"] == GENERATIVE]
        asked = [(i, a) for i, a in pairs if i.meta["type"] != GENERATIVE]
        reports = [self._described(described)] if described else []
        reports += [self._asked(asked)] if asked else []
        empty = sum(not answer.strip() for answer in answers)
        return Report(
            metrics={k: v for report in reports for k, v in report.metrics.items()},
            categories={k: v for report in reports for k, v in report.categories.items()},
            counts={
                **{k: v for report in reports for k, v in report.counts.items()},
                "empty answers": empty,
            },
            rows=[row for report in reports for row in report.rows],
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """The published format: a list of ``{"id", "response"}``."""
        return AnswerFormat(id=("id",), answer=("response",)).read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.json``, which the published script reads."""
        rows = [
            {"id": item.meta["id"], "response": answer}
            for item, answer in zip(items, answers, strict=True)
        ]
        return write_list(folder / "answers.json", rows)

    def _described(self, pairs: Sequence[tuple[Item, str]]) -> Report:
        lexicon = self._lexicon([item for item, _ in pairs])
        find = nltk_nouns if self.nouns == "nltk" else plain_nouns
        known = lexicon.known
        found = [
            marked(find(answer, known), item.meta["truth"], item.meta["hallu"], lexicon)
            for item, answer in pairs
        ]
        numbers = generative(found)
        metrics = {key: Measured(value=value, total=len(found)) for key, value in numbers.items()}
        per_answer = mean([100.0 * bool(one.hallucinated) for one in found])
        metrics["Hal"] = Measured(
            value=numbers["Hal"], half_width=per_answer.half_width, total=len(found)
        )
        return Report(
            metrics=metrics,
            counts={"descriptions without a known noun": sum(not one.nouns for one in found)},
            rows=[
                _row(item, answer, one) for (item, answer), one in zip(pairs, found, strict=True)
            ],
        )

    def _asked(self, pairs: Sequence[tuple[Item, str]]) -> Report:
        said = [self._read(answer) for _, answer in pairs]
        truth = [str(item.meta["truth"]) for item, _ in pairs]
        dimensions = [DIMENSIONS[item.meta["type"]] for item, _ in pairs]
        names = sorted({name for found in dimensions for name in found})
        categories = {}
        for name in names:
            rows = [i for i, found in enumerate(dimensions) if name in found]
            existence = name == "existence"
            categories[name] = _yes_no(
                [said[i] for i in rows], [truth[i] for i in rows], existence=existence
            )
        return Report(
            metrics=_yes_no(said, truth, existence=set(names) == {"existence"}),
            categories=categories,
            counts={"answers that are neither Yes nor No": said.count("")},
            rows=[
                {
                    "id": item.id,
                    "type": item.meta["type"],
                    "question": item.text,
                    "answer": answer,
                    "said": one,
                    "true": item.meta["truth"],
                }
                for (item, answer), one in zip(pairs, said, strict=True)
            ],
        )

    def _read(self, answer: str) -> str:
        if self.reading == "exact":
            return EXACT.get(answer, "")
        first = "".join(c if c.isalpha() else " " for c in answer.lower()).split()
        return first[0] if first and first[0] in EXACT.values() else ""

    def _annotations(self) -> dict[str, Mapping[str, Any]]:
        path = Path(self.data) / "annotations.json"
        found: dict[str, Mapping[str, Any]] = {}
        for where, row in read_rows(path):
            kind = text_value(row, "type", where)
            if kind != GENERATIVE and kind not in DIMENSIONS:
                known = ", ".join([GENERATIVE, *DIMENSIONS])
                raise ValueError(f"{where}: 'type' must be one of {known}, not {kind!r}")
            needed = ("id", "truth", "hallu") if kind == GENERATIVE else ("id", "truth")
            lacking = [key for key in needed if key not in row]
            if lacking:
                raise ValueError(f"{where}: lacks {lacking[0]!r}; there are {sorted(row)}")
            if kind != GENERATIVE and row["truth"] not in EXACT.values():
                raise ValueError(f"{where}: 'truth' must be yes or no, not {row['truth']!r}")
            found[str(row["id"])] = row
        return found

    def _lexicon(self, items: Sequence[Item]) -> Lexicon:
        folder = Path(self.data)
        relation = read_json(folder / "relation.json")
        for item in items:
            for word in (*item.meta["truth"], *item.meta["hallu"]):
                if word not in relation:
                    raise ValueError(
                        f"{folder / 'relation.json'} lacks {word!r}, an object of id {item.id} in "
                        "annotations.json"
                    )
        safe = (folder / "safe_words.txt").read_text(encoding="utf-8").splitlines()
        name = self.similarity
        similar = never_similar if name is None else similar_in(name, above=self.threshold)
        return Lexicon(relation=relation, safe=frozenset(safe), similar=similar)


def _yes_no(said: Sequence[str], truth: Sequence[str], *, existence: bool) -> dict[str, Measured]:
    numbers = discriminative(said, truth, existence=existence)
    right = mean([100.0 * (a == b) for a, b in zip(said, truth, strict=True)])
    return {
        key: Measured(
            value=value,
            half_width=right.half_width if key == "Accuracy" else None,
            total=len(said),
        )
        for key, value in numbers.items()
    }


def _row(item: Item, answer: str, one: Marked) -> dict[str, Any]:
    truth, likely = item.meta["truth"], item.meta["hallu"]
    return {
        "id": item.id,
        "type": GENERATIVE,
        "answer": answer,
        "nouns": list(one.nouns),
        "hallucinated": list(one.hallucinated),
        "covered": [truth[i] for i in sorted(one.covered)],
        "missed": [word for i, word in enumerate(truth) if i not in one.covered],
        "likely": [likely[i] for i in sorted(one.hit)],
    }
