"""The numbers: neighbours, entropy, standardised components, and what prompts are worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from mmalign.diffusion.fifa.embedding import TextEncoder, embedded
from mmalign.diffusion.fifa.entropy import entropy, log_distances, neighbour_distances
from mmalign.diffusion.fifa.importance import Weights, scale_of
from mmalign.diffusion.fifa.quality import PromptRules, rating, ratings
from mmalign.diffusion.fifa.remembering import store_of
from mmalign.endpoint import Question

LINE = np.array([[0.0], [1.0], [3.0]], np.float32)


def unit(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def brute(vectors: np.ndarray, k: int, references: Sequence[int] | None = None) -> np.ndarray:
    """Every distance, one by one, in double precision."""
    among = range(len(vectors)) if references is None else references
    double = vectors.astype(np.float64)
    found = []
    for i in range(len(vectors)):
        others = sorted(float(np.linalg.norm(double[i] - double[j])) for j in among if j != i)
        found.append(others[min(k, len(others)) - 1])
    return np.array(found)


def test_neighbours_on_a_line() -> None:
    """At 0, 1 and 3: nearest at 1, 1, 2; second at 3, 2, 3; there is no third."""
    assert neighbour_distances(LINE, k=1).tolist() == [1.0, 1.0, 2.0]
    assert neighbour_distances(LINE, k=2).tolist() == [3.0, 2.0, 3.0]
    assert neighbour_distances(LINE, k=9).tolist() == [3.0, 2.0, 3.0]
    assert neighbour_distances(LINE[:1], k=1).tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("references", [None, tuple(range(3, 200, 4)), (7, 9)])
def test_neighbours_agree_with_brute_force(k: int, references: Sequence[int] | None) -> None:
    vectors = unit(200, 16)
    found = neighbour_distances(vectors, k=k, references=references)
    np.testing.assert_allclose(found, brute(vectors, k, references), rtol=1e-6)


def test_copies_have_no_distance() -> None:
    """Ten copies and a point elsewhere: a copy's neighbours are copies, exactly at 0."""
    vectors = unit(2, 8)[[0] * 10 + [1]]
    found = neighbour_distances(vectors, k=3)
    assert found[:10].tolist() == pytest.approx([0.0] * 10, abs=1e-7)
    assert found[10] > 0.1
    assert log_distances(np.zeros(1))[0] == pytest.approx(math.log(1e-8))


def test_entropy_by_hand() -> None:
    """(log 1 + log 1 + log 2) / 3 = 0.231049; twice as far apart is log 2 more."""
    assert entropy(LINE, k=1) == pytest.approx(0.231049, abs=1e-6)
    assert entropy(2 * LINE, k=1) == pytest.approx(0.231049 + math.log(2), abs=1e-6)


def test_entropy_of_the_uniform_square() -> None:
    """Kozachenko-Leonenko: psi(n) - psi(k) + log(pi) + d mean(log r) is 0 nats on a unit square.

    With d = 2, n = 4000 and k = 3 (psi(n) = log n - 1/2n, psi(3) = 1 + 1/2 - 0.577216). Near the
    border distances are too large, which costs some hundredths.
    """
    points = np.random.default_rng(0).random((4000, 2)).astype(np.float32)
    psi_n, psi_k = math.log(4000) - 1 / 8000, 1.5 - 0.5772157
    estimate = psi_n - psi_k + math.log(math.pi) + 2 * entropy(points, k=3)
    assert estimate == pytest.approx(0.0, abs=0.08)


def test_scale() -> None:
    """[1, 2, 3]: deviation sqrt(2/3). Clipped to [0, 1], the outlier of [0, 0, 1, 1, 9] is a 1."""
    scale = scale_of(np.array([1.0, 2.0, 3.0]), (0.0, 1.0))
    assert scale(np.array([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1.224745, 0.0, 1.224745])
    clipped = scale_of(np.array([0.0, 0.0, 1.0, 1.0, 9.0]), (0.0, 0.75))
    assert (clipped.low, clipped.high, clipped.mean) == (0.0, 1.0, 0.6)
    assert clipped(np.array([9.0])) == clipped(np.array([1.0]))
    for noise in (0.0, 1e-9):
        equal = 0.1 + noise * np.arange(7)
        assert scale_of(equal, (0.01, 0.99))(equal).tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("8", 8), (" 8.\n", 8), ("Score: 8", 8), ("8/10", 8), ("8 out of 10", 8), ("**7**", 7),
        ("7.5", 7.5), ("It is a 3, a clear 3.", 3), ("10", 10), ("10/10", 10),
        ("from 1 to 10 it is an 8", None), ("0", None), ("11", None), ("-3", None), ("", None),
        ("good", None), ("1,000", None), ("gpt4 says so", None),
    ],
)  # fmt: skip
def test_rating(reply: str, expected: float | None) -> None:
    found = rating(reply)
    assert math.isnan(found) if expected is None else found == expected


def test_rules() -> None:
    """One of three pairs of neighbours differs: 1/3. Two of at least three words: 2/3."""
    rules = PromptRules(blocked=("gore",))
    assert rules.score("cat cat cat cat") == pytest.approx(1 / 3)
    assert rules.score("red cat") == pytest.approx(2 / 3)
    assert rules.score("a red cat on a blue mat") == 1.0
    many = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120)]
    assert rules.score(" ".join(many)) == 0.5
    assert rules.score("a cat 1234") == pytest.approx(0.6)  # 6 of 10 characters
    assert rules.score("much Gore here") == rules.score("?!") == rules.score("") == 0.0
    with pytest.raises(ValueError, match="min_words=5"):
        PromptRules(min_words=5, max_words=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """Answers with the number of words, or nothing to a prompt about nothing; counts questions."""

    name: str = "counting"
    asked: list[str] = field(default_factory=list, repr=False)

    def ask(self, questions: Sequence[Question]) -> list[str]:
        self.asked.extend(question.text for question in questions)
        return ["?" if "nothing" in q.text else str(len(q.text.split())) for q in questions]


TEXTS = ["one", "one two three", "nothing", "one two"]


def test_unreadable_replies_get_the_median(caplog: pytest.LogCaptureFixture) -> None:
    """Of 1, 3 and 2 it is 2; the log says how many there were."""
    with caplog.at_level(logging.WARNING):
        found = ratings(TEXTS, Counting(), "{prompt}", store=None, batch_size=3)
    assert found.tolist() == [1.0, 3.0, 2.0, 2.0]
    assert "1 of 4 replies" in caplog.text
    with pytest.raises(ValueError, match="none of 1 replies"):
        ratings(["nothing"], Counting(), "{prompt}", store=None, batch_size=3)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    """Not even what could not be read; another question is another store."""
    asker = Counting()
    for texts, total in ((TEXTS[:3], 3), (TEXTS, 4), (TEXTS[::-1], 4)):
        store = store_of(str(tmp_path), "quality", asker)
        found = ratings(texts, asker, "{prompt}", store=store, batch_size=2)
        assert len(asker.asked) == total
    assert found.tolist() == [2.0, 2.0, 3.0, 1.0]
    other = store_of(str(tmp_path), "another quality", asker)
    ratings(TEXTS, asker, "{prompt}", store=other, batch_size=2)
    assert len(asker.asked) == 8


def test_a_store_needs_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a dataclass"):
        store_of(str(tmp_path), "rewards", lambda prompts, outputs: outputs)
    assert store_of(None, "rewards", object()) is None


@pytest.mark.parametrize(
    "encoder",
    [
        TextEncoder(kind="words", model=None, batch_size=2),
        TextEncoder(kind="clip", model="tinyworld/clip", batch_size=2),
    ],
)
def test_encoders(encoder: TextEncoder, tmp_path: Path) -> None:
    """Unit vectors in a mapped file, the same in whatever batch; like texts are near."""
    texts = ["a red circle", "a red circle and a red square", "three small blue triangles"]
    vectors = embedded(texts, encoder, tmp_path / "v.npy")
    assert isinstance(vectors, np.memmap)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    alone = encoder.embed(texts[1:2])[0]
    np.testing.assert_allclose(vectors[1], alone, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_words_see_single_letters_and_order() -> None:
    encoder = TextEncoder(kind="words", model=None)
    one, other, swapped = encoder.embed(["vitamin a", "vitamin b", "a vitamin"])
    assert one @ other < 0.9
    assert one @ swapped < 0.9


def test_settings() -> None:
    with pytest.raises(ValueError, match="needs a model"):
        TextEncoder(kind="clip")
    with pytest.raises(ValueError, match="cannot be loaded"):
        TextEncoder(model="no/such-encoder").embed(["a"])
    with pytest.raises(ValueError, match=r"weights\.quality"):
        Weights(quality=-1)
    with pytest.raises(ValueError, match="rising quantiles"):
        Weights(clip=(0.9, 0.1))
