"""The builder on the tiny world: what it keeps, what it says, resuming, its page, its memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import cli, config
from mmalign.data.building import Candidate, construct
from mmalign.data.files import File
from mmalign.diffusion.fifa import FiFA
from mmalign.diffusion.fifa.embedding import TextEncoder
from mmalign.diffusion.fifa.importance import Weights
from mmalign.endpoint import Endpoint, Question
from mmalign.locate import configs
from mmalign.tinyworld.data import TaskJudge, TinyWorld
from mmalign.types import Output, Preference, Prompt
from tests.test_endpoint import Reply, Server, ok

ROWS = 200
BUILDER = FiFA(
    data=TinyWorld(task="draw", size=ROWS, seed=1, flip_rate=0.3),
    reward=TaskJudge(partial=True),
    number=20,
    encoder=TextEncoder(kind="words", model=None),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Preferences as they are."""

    pairs: Sequence[Preference]

    def preferences(self) -> Sequence[Preference]:
        return self.pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """The mean of a picture's first channel; counts what it is asked."""

    asked: list[str] = field(default_factory=list, repr=False)

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        self.asked.extend(str(prompt.content) for prompt in prompts)
        means = [np.asarray(o, np.float32)[..., 0].mean() for o in outputs]
        return torch.tensor(means)


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (level, level, level))


def pair(prompt: str, chosen: int, rejected: int, **meta: Any) -> Preference:
    return Preference(
        prompt=Prompt(content=prompt), chosen=grey(chosen), rejected=grey(rejected), meta=meta
    )


def made(pairs: Sequence[Preference], **changes: Any) -> list[Candidate]:
    spec = replace(
        BUILDER, data=Given(pairs=pairs), reward=Brightness(), dropped_pictures=True, **changes
    )
    return list(spec.prepare(seed=0).candidates())


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    """Of the builder above, dropped pairs with their pictures."""
    return list(replace(BUILDER, dropped_pictures=True).prepare(seed=0).candidates())


def test_wrong_labels_go(candidates: list[Candidate]) -> None:
    """About three in ten labels are wrong, and none of the kept ones: the judge sees the truth."""
    flipped = np.array([c.preference.meta["flipped"] for c in candidates])
    kept = np.array([c.dropped is None for c in candidates])
    assert kept.sum() == 20
    assert 0.2 < flipped.mean() < 0.4
    assert flipped[kept].mean() == 0.0


def test_columns_add_up(candidates: list[Candidate]) -> None:
    """The margin is the judge's, and the score is the sum of the standardised columns."""
    judge = TaskJudge(partial=True)
    for candidate in candidates[:20]:
        one = candidate.preference
        earned = judge([one.prompt] * 2, [one.chosen, one.rejected])
        assert one.margin == float(earned[0]) - float(earned[1])
    pool = [c for c in candidates if "score" in c.preference.meta]
    assert {c.dropped for c in candidates if c not in pool} <= {"duplicate"}
    columns = {
        name: np.array([c.preference.meta[name] for c in pool])
        for name in ("quality", "entropy", "score", "rank")
    }
    columns["margin"] = np.array([c.preference.margin for c in pool])
    expected = np.zeros(len(pool))
    for name, weight in (("margin", 1.0), ("quality", 0.5), ("entropy", 0.5)):
        clipped = np.clip(columns[name], *np.quantile(columns[name], (0.01, 0.99)))
        deviation = clipped.std()
        expected += weight * (clipped - clipped.mean()) / (deviation if deviation > 1e-9 else 1)
    np.testing.assert_allclose(columns["score"], expected, atol=1e-9)
    assert sorted(columns["rank"].tolist()) == list(range(1, len(pool) + 1))
    assert (np.diff(columns["score"][np.argsort(columns["rank"])]) <= 0).all()


def test_rewards_may_be_shifted(candidates: list[Candidate]) -> None:
    """A constant added to every reward changes no decision."""
    levels = np.random.default_rng(0).integers(0, 100, (30, 2))
    prompts = [f"a thing called {word}" for word in "abcdefghijklmnopqrstuvwxyz"] + ["x y"] * 4
    plain, bright = (
        made([pair(p, int(a) + d, int(b) + d) for p, (a, b) in zip(prompts, levels, strict=True)])
        for d in (0, 100)
    )
    assert [c.dropped for c in plain] == [c.dropped for c in bright]


def test_reasons() -> None:
    """Every reason, and where a copy is, the pair that says what the reward says stays."""
    pairs = [
        pair("a red house", 90, 10),
        pair("a red house", 10, 90),  # the same pictures, the other way round
        pair("a blue boat at sea", 50, 50),  # one and the same picture
        pair("three green hills", 60, 61),
        pair("two old men", 80, 20),
        pair("two old men", 70, 20),
        pair("a dog", 40, 39),
        pair("a cat and a mouse", 99, 0),
    ]
    found = [c.dropped for c in made(pairs, number=3)]
    assert found == [
        None, "duplicate", "identical sides", "low importance", None, "enough of this prompt",
        "low importance", None,
    ]  # fmt: skip
    strict = [c.dropped for c in made(pairs, number=3, min_margin=1.0)]
    assert strict[1] == strict[3] == strict[6] == "small margin"
    mixed = replace(pairs[2], rejected=Image.new("RGB", (4, 4), (50, 0, 0)))
    assert [c.dropped for c in made([*pairs, mixed], number=3, min_margin=0.0)][-1] == "tie"
    with pytest.raises(ValueError, match="none of 1 pairs is left"):
        made([pairs[2]])


def test_more_wanted_than_there_are(caplog: pytest.LogCaptureFixture) -> None:
    found = made([pair("a red house", 9, 1), pair("a blue boat", 1, 9)], number=5)
    assert [c.dropped for c in found] == [None, None]
    assert "5 pairs are wanted, and there are 2" in caplog.text


def test_margins_of_the_data() -> None:
    """Without a reward the column is taken; a row without it is named."""
    pairs = [replace(pair(p, 9, 1), margin=m) for p, m in (("a b c", 0.2), ("d e f", 0.7))]
    spec = replace(BUILDER, data=Given(pairs=pairs), reward=None, number=1)
    found = list(spec.prepare(seed=0).candidates())
    assert [c.dropped for c in found] == ["low importance", None]
    assert "chosen_reward" not in found[1].preference.meta
    bare = replace(spec, data=Given(pairs=[pairs[0], pair("g h i", 9, 1)]))
    with pytest.raises(ValueError, match="row 1 of the data has no margin"):
        bare.prepare(seed=0)


def test_earlier_columns_are_kept() -> None:
    """What another builder wrote under our names stands in `before`."""
    (found,) = made([pair("a red house", 9, 1, builder="pairs", row=7, other="x")])
    meta = found.preference.meta
    assert (meta["builder"], meta["row"], meta["other"]) == ("fifa", 0, "x")
    assert meta["before"] == {"builder": "pairs", "row": 7}


@pytest.mark.parametrize("start", [0, 77, 200])
def test_resuming(candidates: list[Candidate], start: int) -> None:
    """From any row the same rows follow; nothing is read for those that are dropped."""
    made = BUILDER.prepare(seed=0)
    found = list(made.candidates(start))
    assert [(c.row, c.dropped) for c in found] == [(c.row, c.dropped) for c in candidates[start:]]
    for candidate, full in zip(found, candidates[start:], strict=True):
        one, other = candidate.preference, full.preference
        assert one.prompt.content == other.prompt.content
        assert one.meta["row"] == other.meta["row"]
        assert one.margin == other.margin
        assert (one.chosen == "") == (candidate.dropped is not None)


def test_nothing_is_judged_twice(tmp_path: Path) -> None:
    """A judge that fails at row 20 has judged 16; the next attempt goes on there."""
    pairs = [pair(f"thing number {i} here", 50 + i, 10) for i in range(24)]

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Failing(Brightness):
        fail: bool = field(default=True, repr=False)

        def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
            if self.fail and any("number 20" in str(p.content) for p in prompts):
                raise RuntimeError("out of memory")
            return Brightness.__call__(self, prompts, outputs)

    spec = replace(
        BUILDER, data=Given(pairs=pairs), reward=Failing(), cache=str(tmp_path), batch_size=8
    )
    with pytest.raises(ValueError, match="out of memory"):
        spec.prepare(seed=0)
    second = Failing(fail=False)
    replace(spec, reward=second).prepare(seed=0)
    assert len(second.asked) == 2 * 8
    third = Failing(fail=False)
    replace(spec, reward=third, number=3, weights=Weights(diversity=0.0)).prepare(seed=0)
    assert third.asked == []


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """Likes boats."""

    def ask(self, questions: Sequence[Question]) -> list[str]:
        return ["10" if "boat" in q.text.partition("Text: ")[2] else "2" for q in questions]


def test_a_language_model_decides() -> None:
    pairs = [pair("a red house by a lake", 20, 10), pair("a boat on a blue lake", 20, 10)]
    (house, boat) = made(pairs, asker=Critic(), number=1, weights=Weights(diversity=0.0))
    assert (house.dropped, boat.dropped) == ("low importance", None)
    assert boat.preference.meta["quality"] == 10


def test_a_served_model_decides() -> None:
    """The same over HTTP: our question arrives with the prompt in it, each prompt once."""
    pairs = [pair("a red house by a lake", 20, 10), pair("a boat on a blue lake", 20, 10)]

    def reply(request: dict[str, Any], before: int) -> Reply:
        assert before == 0
        text = request["messages"][-1]["content"]
        return ok("10/10" if "Text: a boat on a blue lake\n" in text else "2")

    server = Server(reply)
    try:
        asker = Endpoint(url=server.url, model="m", key_variable=None, temperature=0.0)
        found = made([*pairs, pair("a boat on a blue lake", 19, 10)], asker=asker, number=1)
    finally:
        server.close()
    assert [c.dropped for c in found] == ["low importance", None, "low importance"]
    assert len(server.requests) == 2


def test_references_are_a_draw(candidates: list[Candidate]) -> None:
    """Neighbours among half of the prompts: the same for the same seed, and nearly as good."""
    spec = replace(BUILDER, references=60)
    first, again, other = (
        [c.dropped is None for c in spec.prepare(seed=seed).candidates()] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other or sum(first) == 20
    with_all = {c.row for c in candidates if c.dropped is None}
    assert len(with_all & {row for row, kept in enumerate(first) if kept}) >= 10


def test_command_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped config, made smaller; what was written can be trained on, and the page opens."""
    path, page = tmp_path / "pairs.jsonl", tmp_path / "page" / "report.html"
    given = ["data", "fifa", "--config", str(configs() / "diffusion" / "data" / "fifa.yaml")]
    given += ["--output", str(path), "data.size=120", f"report={page}", "selection=greedy"]
    cli.main(given)
    assert "6 of 120 pairs kept" in capsys.readouterr().out
    kept = File(path=str(path)).preferences()
    assert all(isinstance(one.chosen, Image.Image) for one in kept)
    assert not any(one.meta["flipped"] for one in kept)
    rows = (tmp_path / "pairs.dropped.jsonl").read_text().splitlines()
    assert len(rows) == 114
    text = page.read_text(encoding="utf-8")
    assert "6 of 120 pairs were kept" in text
    assert text.count("data:image/svg+xml") == 4
    assert "data:image/png" in text
    for outside in ("http://", "https://", 'src="/', "<script"):
        assert outside not in text.replace("http://www.w3.org", "")


def test_page_escapes(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    made([pair("<script>alert(1)</script> a house", 9, 1)], report=str(page))
    assert "<script" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"share": 1.5}, "use `number`"),
        ({"number": 0}, "number=0"),
        ({"neighbour": 0}, "neighbour=0"),
        ({"question": "rate this", "asker": Critic()}, "does not hold"),
        ({"question": "rate {prompt}"}, "no asker"),
        ({"report": "page.pdf"}, "must end in .html"),
    ],
)
def test_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BUILDER, **changes)


def test_bad_data() -> None:
    with pytest.raises(ValueError, match="holds no preference"):
        replace(BUILDER, data=Given(pairs=())).prepare(seed=0)


def test_share() -> None:
    """Half a per cent of 100,000 is 500; of 50 it is still one pair."""
    spec = replace(BUILDER, number=None)
    assert (spec.wanted(100_000), spec.wanted(50)) == (500, 1)


def synthetic(count: int) -> Any:
    """Text pairs that exist only while they are looked at."""

    @dataclass(frozen=True, slots=True)
    class Rows:
        def __len__(self) -> int:
            return count

        def __getitem__(self, row: int) -> Preference:
            words = " ".join(f"w{(row * step) % 9973}" for step in (1, 7, 31, 101, 577, 3001))
            return Preference(
                prompt=Prompt(content=words), chosen=f"a {row}", rejected="b", margin=row % 997
            )

    return Given(pairs=Rows())  # type: ignore[arg-type]


def peak(count: int) -> int:
    """Most bytes that Python and numpy hold at a time while so many pairs are filtered."""
    spec = replace(BUILDER, data=synthetic(count), reward=None, references=100, batch_size=500)
    tracemalloc.start()
    try:
        made = spec.prepare(seed=0)
        kept = sum(c.dropped is None for c in made.candidates())
        assert kept == 20
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_little() -> None:
    """A vector is 2 KB, and stays in the mapped file: a pair more costs less than 800 bytes.

    Of that some 300 are the prompt and its place in the table of prompts, and the rest the numbers
    of the stage that holds most of them at a time.
    """
    few, many = peak(1000), peak(5000)
    assert (many - few) / 4000 < 800


def test_written_file_resumes(tmp_path: Path) -> None:
    """Construct, with dropped rows that point to the data by number."""
    path = tmp_path / "out.jsonl"
    counts = construct(BUILDER, path, settings="x")
    assert counts["kept"] == 20 and counts.total() == ROWS
    dropped = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").open()]
    assert all(row["chosen"] == row["rejected"] == "" for row in dropped)
    assert len(list((tmp_path / "out-images").glob("*.png"))) <= 40


def test_shipped_config() -> None:
    builder = config.load_builder("fifa", configs() / "diffusion" / "data" / "fifa.yaml")
    assert isinstance(builder, FiFA)
    assert builder.wanted(2000) == 100
