"""The arithmetic of AMBER, in its units: percent.

Source: github.com/junyangwang0410/AMBER at 534babf, inference.py. Its counters of totals start at
0.001, and so do ours; its rounding to a tenth, of precision and recall before F1 too, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

START = 0.001
"""Where totals start, so that nothing divides by 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A description against what is true of its picture.

    Attributes:
        nouns: Nouns of the description that the lexicon knows, with repetitions.
        hallucinated: Those that stand for nothing in the picture.
        covered: Numbers of the true objects that are named.
        truth: True objects.
        hit: Numbers of the likely hallucinations that are named.
        likely: Likely hallucinations.
    """

    nouns: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    truth: int
    hit: frozenset[int]
    likely: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Which nouns count and what they are called besides.

    Attributes:
        relation: Words that stand for a word, by that word.
        safe: Words that are never judged.
        similar: Whether two words are near synonyms.
    """

    relation: Mapping[str, Sequence[str]]
    safe: Collection[str]
    similar: Callable[[str, str], bool]

    @property
    def known(self) -> frozenset[str]:
        """Every word that counts as a noun."""
        return frozenset(self.relation).union(*self.relation.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """The words that name some objects, each with the number of the first object it names.

    The words that stand for the objects come before the objects themselves, as in the script.
    """

    words: tuple[str, ...]
    owners: tuple[int, ...]

    @staticmethod
    def of(objects: Sequence[str], relation: Mapping[str, Sequence[str]]) -> _Names:
        named = [(word, i) for i, name in enumerate(objects) for word in relation[name]]
        named += [(name, i) for i, name in enumerate(objects)]
        return _Names(words=tuple(w for w, _ in named), owners=tuple(i for _, i in named))

    def same(self, noun: str) -> set[int]:
        """The first object that the noun names, as a set of one or none."""
        return {self.owners[self.words.index(noun)]} if noun in self.words else set()

    def near(self, noun: str, similar: Callable[[str, str], bool]) -> set[int]:
        """The first object with a name similar to the noun, as a set of one or none."""
        found = (i for word, i in zip(self.words, self.owners, strict=True) if similar(noun, word))
        first = next(found, None)
        return set() if first is None else {first}


def marked(
    nouns: Sequence[str], truth: Sequence[str], likely: Sequence[str], lexicon: Lexicon
) -> Marked:
    """Judge the nouns of one description.

    A noun that names a true object, by its name, a word that stands for it, or a near synonym, is
    right; a safe word is skipped, yet counts among the nouns; any other noun is hallucinated. An
    object listed twice is covered once, at its first place.

    Args:
        nouns: In the lexicon's words, singular.
        truth: The objects of the picture; each must be in the lexicon.
        likely: The objects that models are prone to invent; each must be in the lexicon.
        lexicon: Words and synonyms.
    """
    true, prone = _Names.of(truth, lexicon.relation), _Names.of(likely, lexicon.relation)
    covered: set[int] = set()
    hit: set[int] = set()
    hallucinated = []
    for noun in nouns:
        if noun in lexicon.safe:
            continue
        if noun in true.words:
            covered |= true.same(noun)
            continue
        hit |= prone.same(noun) | prone.near(noun, lexicon.similar)
        near = true.near(noun, lexicon.similar)
        covered |= near
        if not near:
            hallucinated.append(noun)
    return Marked(
        nouns=tuple(nouns),
        hallucinated=tuple(hallucinated),
        covered=frozenset(covered),
        truth=len(truth),
        hit=frozenset(hit),
        likely=len(likely),
    )


def generative(found: Sequence[Marked]) -> dict[str, float]:
    """CHAIR, Cover, Hal and Cog of descriptions, in percent, sums over the corpus.

    CHAIR: hallucinated nouns per noun. Cover: true objects that are named. Hal: descriptions with a
    hallucinated noun. Cog: likely hallucinations that are named, of all that are listed.
    """
    clean = sum(not one.hallucinated for one in found)
    return {
        "CHAIR": percent(sum(len(f.hallucinated) for f in found), sum(len(f.nouns) for f in found)),
        "Cover": percent(sum(len(f.covered) for f in found), sum(f.truth for f in found)),
        "Hal": 100 - percent(clean, len(found)),
        "Cog": percent(sum(len(f.hit) for f in found), sum(f.likely for f in found)),
    }


def discriminative(
    said: Sequence[str], truth: Sequence[str], *, existence: bool = False
) -> dict[str, float]:
    """Accuracy, precision, recall and F1 in percent, "no" being the positive class.

    F1 is ``2 P R / (P + R + e)`` of the shares, with e = 0.001 for existence and 0.0001 elsewhere.

    Args:
        said: "yes", "no", or anything else for an answer that is neither, which is wrong.
        truth: "yes" or "no".
        existence: Whether these are the questions after existence.
    """
    pairs = list(zip(said, truth, strict=True))
    no = pairs.count(("no", "no"))
    precision = percent(no, sum(answer == "no" for answer in said))
    recall = percent(no, sum(label == "no" for label in truth))
    p, r = precision / 100, recall / 100
    return {
        "Accuracy": percent(sum(answer == label for answer, label in pairs), len(pairs)),
        "Precision": precision,
        "Recall": recall,
        "F1": 100 * 2 * p * r / (p + r + (0.001 if existence else 0.0001)),
    }


def percent(part: float, whole: float) -> float:
    """``100 part / (whole + 0.001)``."""
    return 100 * part / (whole + START)
