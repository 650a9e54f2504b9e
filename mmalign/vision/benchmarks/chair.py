"""CHAIR and Object-HalBench: objects that captions name and COCO's annotations do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.benchmarks import (
    AnswerFormat,
    Item,
    PictureFile,
    Report,
    mean,
    read_json,
    read_rows,
    refuse,
    share,
    text_value,
    unique,
    write_lines,
)
from mmalign.endpoint import Asker, Question
from mmalign.vision.benchmarks.objects import OWN, Vocabulary

COCO_FILE = "COCO_val2014_{:012d}.jpg"
SHORT = 3
"""Words of an answer that is taken to name no object when a model extracts them."""
EXTRACT = """\
Below are a question about a picture and somebody's answer. Taking the answer to be right, list the
objects that it says can be seen in the picture. Take only objects that the answer names. Give bare
nouns, without colour, material, number or other properties. Reply with one line: a JSON list of
strings, and [] where there is none.

Question: {question}

Answer: {answer}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CHAIR:
    """CHAIR of captions, as Object-HalBench reports it too.

    CHAIRs: captions with a hallucinated object, of all captions, and (refined) of those that name
    any object. CHAIRi: hallucinated mentions, of all mentions. Recall: classes of a picture that
    its caption names, of all that it has. True are the objects of the segmentation masks and those
    that the reference captions name.

    Source: Rohrbach et al. 2018, arXiv 1809.02156; rules as in github.com/LisaAnne/Hallucination,
    and in RLHF-V's evaluation of Object-HalBench.

    Attributes:
        questions_file: Rows (JSONL, JSON or parquet) with ``image_id`` and optionally ``question``
            and ``image``, a file's name; without it that of COCO's val2014.
        instances: COCO's files of segmentation masks (``instances_val2014.json`` and its like) that
            cover the pictures.
        captions: COCO's files of reference captions.
        images: The folder of the pictures; not needed to score answers.
        synonyms: The list of classes and synonyms, as published in ``data/synonyms.txt``; null for
            a list of our own, whose numbers do not compare with published ones.
        mentions: Whether a word that a caption repeats is one mention (as in Object-HalBench) or
            several (as in CHAIR).
        extractor: A model that lists the objects of a caption, as in Object-HalBench; null to read
            its words. The published prompt is another one.
        question: What is asked where a row has no question.
        max_new_tokens: Longest answer that is sampled.
    """

    questions_file: str
    instances: tuple[str, ...]
    captions: tuple[str, ...] = ()
    images: str = "."
    synonyms: str | None = None
    mentions: Literal["all", "unique"] = "all"
    extractor: Asker | None = None
    question: str = "Describe the picture in detail."
    max_new_tokens: int = 512

    def questions(self) -> Sequence[Item]:
        """One question a row."""
        items = []
        for where, row in read_rows(self.questions_file):
            number = _image_id(row, where)
            name = row.get("image", COCO_FILE.format(number))
            if not isinstance(name, str):
                raise ValueError(f"{where}: 'image' must be the name of a file, not {name!r}")
            items.append(
                Item(
                    id=str(number),
                    text=str(row.get("question", self.question)),
                    images=(PictureFile(folder=self.images, name=name),),
                    meta={"image_id": number},
                )
            )
        return unique(items, self.questions_file)

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Compare the objects that captions name with those of the pictures."""
        vocabulary = Vocabulary.read(OWN if self.synonyms is None else Path(self.synonyms))
        truth = self._truth(vocabulary, {item.meta["image_id"] for item in items})
        named = self._named(vocabulary, items, answers)
        rows = [
            _compared(item, answer, mentions, truth[item.meta["image_id"]])
            for item, answer, mentions in zip(items, answers, named, strict=True)
            if mentions is not None
        ]
        return Report(
            metrics=chair_metrics(rows),
            counts={
                "captions whose objects could not be read, left out": named.count(None),
                "captions that name no object": sum(not row["mentions"] for row in rows),
                "empty captions": sum(not answer.strip() for answer in answers),
            },
            rows=rows,
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``image_id`` and ``caption`` (or ``text`` or ``answer``), or CHAIR's own file.

        The latter is ``{"imgToEval": {...: {"image_id", "caption"}}}``.
        """
        if path.suffix == ".json":
            found = read_json(path)
            if isinstance(found, dict):
                return self._read_own(path, found, items)
        return _FORMAT.read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``image_id``, ``question``, ``caption`` and ``text``."""
        rows = [
            {
                "image_id": item.meta["image_id"],
                "question": item.text,
                "caption": answer,
                "text": answer,
            }
            for item, answer in zip(items, answers, strict=True)
        ]
        return write_lines(folder / "answers.jsonl", rows)

    def _read_own(self, path: Path, found: Mapping[str, Any], items: Sequence[Item]) -> list[str]:
        if not isinstance(found.get("imgToEval"), dict):
            raise ValueError(
                f"{path} must hold a list, or the key 'imgToEval'; there are {sorted(found)}"
            )
        given: dict[str, str] = {}
        for key, row in found["imgToEval"].items():
            where = f"{path}, imgToEval {key}"
            name = str(_image_id(row, where))
            if name in given:
                raise ValueError(f"{where}: {name} has a caption already")
            given[name] = text_value(row, "caption", where)
        known = {item.id for item in items}
        refuse(path, "captions of no question of the benchmark", given.keys() - known)
        refuse(path, "no caption for", known - given.keys())
        return [given[item.id] for item in items]

    def _truth(self, vocabulary: Vocabulary, wanted: set[int]) -> dict[int, set[str]]:
        """The classes of each picture."""
        truth: dict[int, set[str]] = {number: set() for number in wanted}
        seen: set[int] = set()
        for path in self.instances:
            data = _coco(path, ("categories", "annotations", "images"))
            names = {c["id"]: c["name"] for c in data["categories"]}
            refuse(
                path,
                "classes that the synonyms lack",
                set(names.values()) - vocabulary.classes.keys(),
            )
            seen.update(image["id"] for image in data["images"])
            for annotation in data["annotations"]:
                if annotation["image_id"] in wanted:
                    name = names[annotation["category_id"]]
                    truth[annotation["image_id"]].add(vocabulary.classes[name])
        refuse(", ".join(self.instances), "no picture", {str(n) for n in wanted - seen})
        for path in self.captions:
            for annotation in _coco(path, ("annotations",))["annotations"]:
                if annotation["image_id"] in wanted:
                    found = vocabulary.mentions(annotation["caption"])
                    truth[annotation["image_id"]].update(name for _, name in found)
        return truth

    def _named(
        self, vocabulary: Vocabulary, items: Sequence[Item], answers: Sequence[str]
    ) -> list[list[tuple[str, str]] | None]:
        """The mentions of each caption; None where the extractor's reply is unreadable."""
        texts = self._extracted(items, answers) if self.extractor is not None else list(answers)
        found: list[list[tuple[str, str]] | None] = []
        for text in texts:
            mentions = None if text is None else vocabulary.mentions(text)
            if mentions is not None and self.mentions == "unique":
                mentions = list(dict.fromkeys(mentions))
            found.append(mentions)
        return found

    def _extracted(self, items: Sequence[Item], answers: Sequence[str]) -> list[str | None]:
        assert self.extractor is not None
        asked = [i for i, answer in enumerate(answers) if len(answer.split()) > SHORT]
        prompts = [EXTRACT.format(question=items[i].text, answer=answers[i]) for i in asked]
        replies = self.extractor.ask([Question(text=text) for text in prompts])
        found: list[str | None] = [""] * len(answers)
        for i, reply in zip(asked, replies, strict=True):
            found[i] = listed(reply)
        return found


_FORMAT = AnswerFormat(id=("image_id",), answer=("caption", "text", "answer"))


def listed(reply: str) -> str | None:
    """The objects of a reply whose last line is a JSON list, as one text; None where it is none.

    Full stops part them, so that no two of them make a pair of words.
    """
    line = reply.strip().removesuffix("```").strip().rpartition("\n")[2]
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return None
    return " . ".join(found)


def chair_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """CHAIR's numbers, each in [0, 1] but the length.

    Args:
        rows: For each caption its ``mentions``, the ``hallucinated`` ones among them, the classes
            it ``covered`` and those that are ``true``, and its number of ``words``.
    """
    bad = [float(bool(row["hallucinated"])) for row in rows]
    naming = [b for b, row in zip(bad, rows, strict=True) if row["mentions"]]
    return {
        "chair_s": mean(bad),
        "chair_s_refined": mean(naming),
        "chair_i": share(
            sum(len(row["hallucinated"]) for row in rows), sum(len(row["mentions"]) for row in rows)
        ),
        "recall": share(
            sum(len(row["covered"]) for row in rows), sum(len(row["true"]) for row in rows)
        ),
        "words_per_caption": mean([float(row["words"]) for row in rows]),
    }


def _compared(
    item: Item, answer: str, mentions: Sequence[tuple[str, str]], truth: set[str]
) -> dict[str, Any]:
    named = [name for _, name in mentions]
    return {
        "id": item.id,
        "answer": answer,
        "mentions": named,
        "hallucinated": [word for word, name in mentions if name not in truth],
        "covered": sorted(truth.intersection(named)),
        "true": sorted(truth),
        "words": len(answer.strip().split(" ")),
    }


def _image_id(row: Mapping[str, Any], where: str) -> int:
    value = row.get("image_id")
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: 'image_id' must be COCO's number of a picture, not {value!r}")
    return value


def _coco(path: str, keys: Sequence[str]) -> Mapping[str, Any]:
    data = read_json(path)
    lacking = [key for key in keys if not isinstance(data, dict) or key not in data]
    if lacking:
        raise ValueError(f"{path} is no such file of COCO's: it lacks {', '.join(lacking)}")
    return data
