"""Benchmarks of the tiny world: POPE and CHAIR with scenes for annotations and an exact reader."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmalign import rng
from mmalign.benchmarks import AnswerDrawing, AnswerFormat, Item, Report, mean, share, write_lines
from mmalign.evaluation import text_of
from mmalign.policy import Policy
from mmalign.tinyworld.judges import AnswerJudge, DescriptionJudge
from mmalign.tinyworld.language import NUMBERS
from mmalign.tinyworld.scenes import COLOURS, SHAPES, Scene, from_dict
from mmalign.tinyworld.tasks import DESCRIBE, TASKS
from mmalign.types import Prompt
from mmalign.vision.benchmarks.attention import attention_probe
from mmalign.vision.benchmarks.pope import SPLIT, yes_no_report
from mmalign.vision.completing import Decoding, complete

Split = Literal["train", "heldout"]
THINGS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
NEGATIVES = ("random", "popular", "adversarial")
FORMAT = AnswerFormat(id=("question_id",), answer=("answer",))


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorldPOPE:
    """POPE in the tiny world: "is there a red circle ?", of drawn scenes, scored by POPE's rule.

    As many questions about things that are there as about things that are not. The latter are
    *random*; *popular*: the most frequent in all the pictures; or *adversarial*: a colour and a
    shape that are both there, though not on one object, as far as there are such, then things that
    share one of the two. (POPE takes what occurs most often beside the things that are there; the
    objects of a drawn scene are independent, so that would be chance.)

    Attributes:
        pictures: How many scenes.
        questions_per_picture: Of each of the three kinds about each picture; an even number. Fewer
            where a picture has fewer kinds of things than half of it.
        split: Which scenes.
        seed: Of the draw.
        max_new_tokens: Longest answer that is sampled.
    """

    pictures: int = 200
    questions_per_picture: int = 2
    split: Split = "heldout"
    seed: int = 0
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, not {self.pictures}")
        if self.questions_per_picture < 2 or self.questions_per_picture % 2:
            raise ValueError(
                "questions_per_picture must be an even number above 0, not "
                f"{self.questions_per_picture}"
            )

    def questions(self) -> Sequence[Item]:
        """The questions with random negatives, then popular, then adversarial ones."""
        prompts = _described(self.pictures, self.split, self.seed)
        scenes = [from_dict(prompt.meta["scene"]) for prompt in prompts]
        frequency = Counter(thing for scene in scenes for thing in sorted(things(scene)))
        items = []
        for kind in NEGATIVES:
            for number, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True)):
                draw = rng.python_random("tinyworld_pope", kind, self.seed, number)
                asked = self._asked(kind, scene, frequency, draw)
                items += [
                    _question(f"{kind}-{number}-{i}", kind, prompt, thing, yes=yes)
                    for i, (thing, yes) in enumerate(asked)
                ]
        return items

    def _asked(
        self,
        kind: str,
        scene: Scene,
        frequency: Mapping[tuple[str, str], int],
        draw: random.Random,
    ) -> list[tuple[tuple[str, str], bool]]:
        present = sorted(things(scene))
        absent = draw.sample([t for t in THINGS if t not in present], len(THINGS) - len(present))
        number = min(self.questions_per_picture // 2, len(present), len(absent))
        # Sorting keeps the drawn order among equals.
        if kind == "popular":
            absent.sort(key=lambda thing: -frequency[thing])
        if kind == "adversarial":
            absent.sort(key=lambda thing: -likeness(thing, present))
        return [(t, True) for t in draw.sample(present, number)] + [
            (t, False) for t in absent[:number]
        ]

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """POPE's numbers, of each kind of negatives and as their mean."""
        return yes_no_report(items, answers, category=SPLIT)

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``question_id`` and ``answer``."""
        return FORMAT.read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``question_id``, ``question`` and ``answer``."""
        return _written(folder, items, answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorldCHAIR:
    """CHAIR in the tiny world: what descriptions say that is not in the picture, read exactly.

    Hallucinated objects per description, the share of descriptions with one (CHAIRs), the share of
    named objects that are not there (CHAIRi), the share of objects of the pictures that are named
    with their colour and shape (recall), and the mean number of objects that are named.

    Attributes:
        pictures: How many scenes.
        grade: What makes a named object one that is there: its colour and shape (kind), its size
            besides, or its place besides (full).
        split: Which scenes.
        seed: Of the draw.
        max_new_tokens: Longest description that is sampled.
    """

    pictures: int = 300
    grade: Literal["kind", "size", "full"] = "kind"
    split: Split = "heldout"
    seed: int = 0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, not {self.pictures}")

    def questions(self) -> Sequence[Item]:
        """A description of each picture."""
        prompts = _described(self.pictures, self.split, self.seed)
        return [
            Item(id=str(number), text=DESCRIBE, images=prompt.images, meta=prompt.meta)
            for number, prompt in enumerate(prompts)
        ]

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Compare the objects that descriptions name with those of the scenes."""
        prompts = [Prompt(content=item.text, meta=item.meta) for item in items]
        found = DescriptionJudge(grade=self.grade).details(prompts, answers)
        stated = sum(one.stated for one in found)
        true = sum(one.true for one in found)
        return Report(
            metrics={
                "hallucinated_per_description": mean([float(f.hallucinated) for f in found]),
                "chair_s": mean([float(f.hallucinated > 0) for f in found]),
                "chair_i": share(sum(f.hallucinated for f in found), stated),
                "recall": share(sum(f.covered for f in found), true),
                "objects_per_description": mean([float(f.stated) for f in found]),
            },
            counts={
                "descriptions that name no object": sum(one.stated == 0 for one in found),
                "empty answers": sum(not answer.strip() for answer in answers),
            },
            rows=[
                {"id": item.id, "answer": answer, "scene": item.meta["scene"], **asdict(one)}
                for item, answer, one in zip(items, answers, found, strict=True)
            ],
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``question_id`` and ``answer``."""
        return FORMAT.read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``question_id``, ``question`` and ``answer``."""
        return _written(folder, items, answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorldMultiImage:
    """Questions about two or three pictures of the tiny world: accuracy, and where a model looked.

    Accuracy by kind of question, word for word. Of the questions about one of the pictures ("which"
    and "exists_in") also the share of attention on it, by MIA-DPO's measure: needs a model, so a
    file of answers gives the accuracy alone.

    Attributes:
        size: How many questions.
        attention: Whether attention is measured; it takes a forward pass for each question.
        depth: The layer it is read at: the share of the decoder's layers that come before.
        split: Which scenes.
        seed: Of the draw.
        max_new_tokens: Longest answer that is sampled.
    """

    size: int = 300
    attention: bool = True
    depth: float = 0.5
    split: Split = "heldout"
    seed: int = 0
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if not 0 <= self.depth <= 1:
            raise ValueError(f"depth={self.depth} must lie between 0 and 1")

    def questions(self) -> Sequence[Item]:
        """The questions of the task, each with the picture it is about, if it is about one."""
        prompts = TASKS["multi_image"].prompts(split=self.split, size=self.size, seed=self.seed)
        items = []
        for number, prompt in enumerate(prompts):
            text = text_of(prompt).replace("<image> ", "")
            meta = {**prompt.meta, SPLIT: prompt.meta["kind"], "target": target(text, prompt)}
            items.append(Item(id=str(number), text=text, images=prompt.images, meta=meta))
        return items

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Accuracy, whole and by kind of question."""
        prompts = [Prompt(content=item.text, meta=item.meta) for item in items]
        right = AnswerJudge()(prompts, answers).tolist()
        kinds = [str(item.meta["kind"]) for item in items]
        by_kind = {
            kind: {"accuracy": mean([r for r, k in zip(right, kinds, strict=True) if k == kind])}
            for kind in dict.fromkeys(kinds)
        }
        return Report(
            metrics={"accuracy": mean(right)},
            categories=by_kind,
            counts={"empty answers": sum(not answer.strip() for answer in answers)},
            rows=[
                {"id": i.id, "kind": k, "question": i.text, "answer": a, "true": i.meta["answer"]}
                for i, k, a in zip(items, kinds, answers, strict=True)
            ],
        )

    def probe(
        self, policy: Policy, items: Sequence[Item], drawing: AnswerDrawing
    ) -> tuple[list[str], Report]:
        """The answers, their accuracy, and the attention on the pictures asked about."""
        about_one = [item for item in items if self.attention and item.meta["target"] is not None]
        seen, looked = attention_probe(
            policy, about_one, drawing, depth=self.depth, max_new_tokens=self.max_new_tokens
        )
        texts = dict(zip((item.id for item in about_one), seen, strict=True))
        others = [item for item in items if item.id not in texts]
        completed = complete(
            policy,
            [item.prompt() for item in others],
            decoding=Decoding(temperature=drawing.temperature, max_new_tokens=self.max_new_tokens),
            generators=drawing.generators(others),
            batch_size=drawing.batch_size,
        )
        texts.update(zip((i.id for i in others), (c.text for c in completed), strict=True))
        answers = [texts[item.id] for item in items]
        report = self.measure(items, answers)
        if not self.attention:
            return answers, report
        shares = {row["id"]: row["share"] for row in looked.rows}
        return answers, replace(
            report,
            metrics={**report.metrics, **looked.metrics},
            categories={
                k: {**v, **looked.categories.get(k, {})} for k, v in report.categories.items()
            },
            counts={**report.counts, **looked.counts},
            rows=[{**row, "share": shares.get(row["id"])} for row in report.rows],
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``question_id`` and ``answer``."""
        return FORMAT.read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``question_id``, ``question`` and ``answer``."""
        return _written(folder, items, answers)


def target(text: str, prompt: Prompt) -> int | None:
    """The number, from 0, of the picture that a question is about; None where it is about all.

    "which picture has ..." is about the one in its answer, "... in picture two ?" about the second.
    """
    said = {"which": str(prompt.meta["answer"]), "exists_in": text.removesuffix(" ?")}
    named = said.get(str(prompt.meta["kind"]))
    return None if named is None else NUMBERS.index(named.split()[-1]) - 1


def things(scene: Scene) -> set[tuple[str, str]]:
    """The kinds of things in a scene: colour and shape."""
    return {(item.colour, item.shape) for item in scene.objects}


def likeness(thing: tuple[str, str], present: Sequence[tuple[str, str]]) -> int:
    """How much of a thing is in a picture: 2 for its colour and its shape, 1 for one, else 0."""
    colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
    return (thing[0] in colours) + (thing[1] in shapes)


def _described(size: int, split: str, seed: int) -> list[Prompt]:
    return TASKS["describe"].prompts(split=split, size=size, seed=seed)


def _question(name: str, kind: str, prompt: Prompt, thing: tuple[str, str], *, yes: bool) -> Item:
    text = f"is there a {' '.join(thing)} ?"
    meta: dict[str, Any] = {
        "task": "vqa",
        "answer": "yes" if yes else "no",
        "yes": yes,
        SPLIT: kind,
        "scenes": [prompt.meta["scene"]],
    }
    return Item(id=name, text=text, images=prompt.images, meta=meta)


def _written(folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
    rows = [
        {"question_id": item.id, "question": item.text, "answer": answer}
        for item, answer in zip(items, answers, strict=True)
    ]
    return write_lines(folder / "answers.jsonl", rows)
