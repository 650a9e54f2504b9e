"""Which objects of a list a caption names: the reader of CHAIR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmalign.vision.benchmarks.words import known_form, tokens

OWN = Path(__file__).with_name("coco_objects.txt")
"""The 80 classes of COCO with everyday synonyms: a list of our own, shorter than CHAIR's."""

ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "animal", "cub",
)  # fmt: skip
RULES: Mapping[str, str] = {
    **{f"{young} {animal}": animal for animal in ANIMALS for young in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "home plate": "home plate",
    "train track": "train track",
}
"""Two words that mean another thing than each of them: CHAIR's rules, at d8b06d0 and later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Objects by the words that name them.

    Attributes:
        classes: The class of each word or pair of words.
        pairs: What each pair of words is read as.
        forms: Words that are read as they stand, whatever their ending: those of both.
    """

    classes: Mapping[str, str]
    pairs: Mapping[str, str]
    forms: frozenset[str]

    @staticmethod
    def read(path: Path) -> Vocabulary:
        """A file with a class a line: its name, then its synonyms, parted by commas.

        Raises:
            ValueError: There is no such file, or it is empty.
        """
        if not path.is_file():
            raise ValueError(f"there is no list of synonyms {path} (looked in {Path.cwd()})")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[word.strip() for word in line.split(",") if word.strip()] for line in lines]
        classes = {word: row[0] for row in rows if row for word in row}
        if not classes:
            raise ValueError(f"{path} holds no synonyms; a line is a class, then its synonyms")
        own = {word: word for word in classes if word.count(" ") == 1}
        pairs = {**own, **RULES}
        forms = frozenset(classes).union(*(pair.split() for pair in pairs))
        return Vocabulary(classes=classes, pairs=pairs, forms=forms)

    def mentions(self, caption: str) -> list[tuple[str, str]]:
        """The words of a caption that name objects, each with its class, in order, repeated.

        A pair of words goes before its words; ``seat`` beside ``toilet`` is no chair.
        """
        words = self._joined([known_form(word, self.forms) for word in tokens(caption)])
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [(word, self.classes[word]) for word in words if word in self.classes]

    def _joined(self, words: list[str]) -> list[str]:
        joined = []
        place = 0
        while place < len(words):
            pair = self.pairs.get(" ".join(words[place : place + 2]))
            joined.append(words[place] if pair is None else pair)
            place += 1 if pair is None else 2
        return joined
