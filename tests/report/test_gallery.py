"""The gallery: self-contained, bounded, deaf to what the data asks of it, right about the rows."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.data.reading import Place
from mmalign.report.attention import heats
from mmalign.report.gallery import KEPT, Limits, collect, quota, spread, write_gallery
from mmalign.report.items import Item
from mmalign.report.words import Weighed, different, pieces

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&</style>{{ 7 * 7 }}"


def write(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def items(path: Path, *, limits: Limits | None = None) -> tuple[Item, ...]:
    return collect(Place(path=path), limits=limits or Limits()).items


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{number}", "chosen": "a b", "rejected": "a c", **more}


def page(path: Path, tmp_path: Path) -> str:
    out = tmp_path / "out" / "page.html"
    write_gallery(Place(path=path), out, limits=Limits())
    return out.read_text("utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def parse(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


# ---- differences and weights -----------------------------------------------------------------


def marked(text: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in ranges]


def test_different_words() -> None:
    """Whole words, phrases in one piece, white space alone never."""
    a, b = "a small red circle, top left", "a big blue circle,  top left side"
    first, second = different(a, b)
    assert marked(a, first) == ["small red"]
    assert marked(b, second) == ["big blue", "side"]
    assert different("same", "same") == ([], [])
    assert different("", "new words") == ([], [(0, 9)])


def test_scripts_without_spaces_are_compared_by_letters() -> None:
    a, b = "\u7ea2\u8272\u7684\u5706", "\u84dd\u8272\u7684\u5706"
    assert different(a, b) == ([(0, 1)], [(0, 1)])


def test_long_texts_are_not_compared() -> None:
    assert different("a " * 2000, "b " * 2000) == ([], [])


def test_pieces_are_the_text() -> None:
    """Cut at 2, 5 (a change) and 3, 8 (a weight of 2 where 4 is the heaviest)."""
    weights = [Weighed(start=3, end=8, severity=2.0, image=1.0)]
    found = pieces("0123456789", [(2, 5)], weights, heaviest=4.0)
    assert [(p.text, p.changed, p.tint) for p in found] == [
        ("01", False, None), ("2", True, None), ("34", True, 0.5), ("567", False, 0.5),
        ("89", False, None),
    ]  # fmt: skip
    assert "weight 2" in found[2].title


def test_pieces_of_nothing_and_beyond_the_end() -> None:
    assert pieces("", [], [], heaviest=1.0) == []
    weights = [Weighed(start=1, end=99, severity=1.0, image=1.0)]
    assert [p.text for p in pieces("ab", [], weights, heaviest=1.0)] == ["a", "b"]


# ---- attention -------------------------------------------------------------------------------


def pixels(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("named", [True, False])
def test_heat_is_in_proportion_to_the_hottest_cell_of_all(named: bool) -> None:
    """Sums 1 + 0 + 0.5 + 0.5 = 2 and 0.5 of 2.5: shares 0.8 and 0.2. Alpha is 0.75 of the cell."""
    grids: list[Any] = [[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.0]]]
    value = [{"image": i, "grid": g} for i, g in enumerate(grids)] if named else grids
    found = heats(value, 2)
    assert [round(found[i].share, 6) for i in range(2)] == [0.8, 0.2]
    first, second = (pixels(found[i].uri) for i in range(2))
    assert first.shape == (2, 2, 4) and second.shape == (1, 2, 4)
    assert first[..., 3].tolist() == [[191, 0], [96, 96]]
    assert second[..., 3].tolist() == [[96, 0]]


@pytest.mark.parametrize(
    "value",
    [
        None, "x", 3, {}, [3], [{"image": 0}], [{"image": 2, "grid": [[1.0]]}], [[[1.0], []]],
        [[["a"]]], [[[-1.0]]], [[[float("nan")]]], [[[1.0] * 5000]],
        [{"image": "0", "grid": [[1]]}],
    ],
)  # fmt: skip
def test_no_heat_from_what_is_no_grid(value: Any) -> None:
    assert heats(value, 1) == {}


def test_no_attention_anywhere() -> None:
    assert heats([[[0.0, 0.0]]], 1)[0].share == 0.0


# ---- the choice of rows ----------------------------------------------------------------------


def test_quota() -> None:
    assert quota({KEPT: 100, "long": 90, "short": 3}, 20) == {KEPT: 10, "long": 7, "short": 3}
    assert quota({KEPT: 3, "long": 90}, 20) == {KEPT: 3, "long": 17}
    assert quota({KEPT: 90, "long": 2}, 20) == {KEPT: 18, "long": 2}
    assert quota({KEPT: 5}, 20) == {KEPT: 5}
    assert quota({"a": 5, "b": 5}, 3) == {"a": 2, "b": 1}
    assert quota({}, 3) == {}


def test_spread_is_even_and_repeatable() -> None:
    """Ten of 1000: one in each hundred; another seed gives others."""
    found = spread(1000, 10, reason=KEPT, seed=0)
    assert [n // 100 for n in found] == list(range(10))
    assert found == spread(1000, 10, reason=KEPT, seed=0) != spread(1000, 10, reason=KEPT, seed=1)
    assert spread(4, 4, reason=KEPT, seed=0) == [0, 1, 2, 3]


def test_dropped_rows_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(30)])
    dropped = [pair(i, dropped="too long") for i in range(20)]
    dropped += [pair(99, rejected="", dropped="no answer")]
    write(tmp_path / "pairs.dropped.jsonl", [*dropped, "{broken"])
    gallery = collect(Place(path=path), limits=Limits(rows=12))
    assert [(t.reason, t.number, t.shown) for t in gallery.totals] == [
        (KEPT, 30, 6), ("too long", 20, 4), ("no answer", 1, 1), ("unreadable row", 1, 1),
    ]  # fmt: skip
    assert gallery.sentence == "12 of 52 rows, spread over the files (seed 0)."
    empty = next(item for item in gallery.items if item.reason == "no answer")
    assert [turn.parts for turn in empty.turns] == [("q99",)]
    assert [side.words for side in empty.sides] == [2, 0] and not empty.problem
    assert empty.place == "pairs.dropped.jsonl:21"


def test_the_dropped_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.dropped.jsonl", [pair(1, dropped="a"), pair(2, dropped="b")])
    gallery = collect(Place(path=path), limits=Limits())
    assert [t.reason for t in gallery.totals] == ["a", "b"]
    assert gallery.sentence == "2 of 2 rows."


def test_size_is_bounded_and_said(tmp_path: Path) -> None:
    """Noise of 256 x 256 makes more than 20 kB a picture: a page of 0.2 MB holds fewer than ten."""
    rows = []
    for i in range(12):
        values = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
        rows.append(pair(i, images=[f"{i}.png"]))
    write(tmp_path / "pairs.dropped.jsonl", [pair(0, dropped="why")])
    path, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "page.html"
    gallery = write_gallery(Place(path=path), out, limits=Limits(megabytes=0.2))
    assert 2 <= len(gallery.items) < 10
    assert "more would exceed 0.2 MB" in gallery.sentence
    assert {item.reason for item in gallery.items} == {"", "why"}, "some of each kind"
    assert out.stat().st_size < 0.25e6


def test_pictures_are_made_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (1000, 400), "red").save(tmp_path / "a.png")
    path = write(tmp_path / "rows.jsonl", [pair(0, images=["a.png"])])
    (item,) = items(path, limits=Limits(side=100))
    assert item.views[0].shown.size == (1000, 400)
    data = base64.b64decode(item.views[0].shown.uri.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (100, 40)


# ---- rows ------------------------------------------------------------------------------------


def test_a_row_of_a_builder(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("c.png", "grey")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    row = {
        "task": "vqa",
        "prompt": [
            {"role": "system", "content": "Look."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"},
                                         {"type": "image"}]},
        ],
        "images": ["a.png", "b.png"],
        "rejected_images": ["c.png", "b.png"],
        "chosen": "red one",
        "rejected": "blue one",
        "margin": 0.5,
        "builder": "mia-dpo",
        "target": 2,
        "attention": [[[1.0]], [[3.0]]],
        "weights_chosen": [[0, 3, 1.0, 1.0]],
        "weights_rejected": [[0, 4, 4.0, 2.0]],
    }  # fmt: skip
    (item,) = items(write(tmp_path / "rows.jsonl", [row]))
    assert [(t.role, t.parts) for t in item.turns] == [
        ("system", ("Look.",)),
        ("user", (1, "or", 2)),
    ]
    assert [(v.number, v.target, v.heat and v.heat.share) for v in item.views] == [
        (1, False, 0.25), (2, True, 0.75),
    ]  # fmt: skip
    chosen, rejected = item.sides
    assert [(p.text, p.changed, p.tint) for p in chosen.pieces] == [
        ("red", True, 0.25), (" one", False, None),
    ]  # fmt: skip
    assert [(p.text, p.tint) for p in rejected.pieces] == [("blue", 1.0), (" one", None)]
    assert len(rejected.views) == 2 and not chosen.views
    assert item.facts[0] == ("builder", "mia-dpo")
    assert dict(item.facts)["margin"] == "0.5" and dict(item.facts)["task"] == "vqa"
    assert "attention" not in dict(item.facts)


def test_the_part_of_a_collage_that_is_asked_about(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.png")
    rows: list[Any] = [
        pair(0, images=["a.png"], target=2, region=[0.5, 0.0, 1.0, 1.0]),
        pair(1, images=["a.png"], region="left"),
    ]
    first, second = items(write(tmp_path / "rows.jsonl", rows))
    assert first.views[0].region == (50.0, 0.0, 50.0, 100.0) and not first.views[0].target
    assert second.views[0].region == ()


def test_pictures_as_answers_demonstrations_and_prompts(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    row = {"prompt": "red", "chosen_images": ["a.png"], "rejected_images": ["gone.png"]}
    (item,) = items(write(tmp_path / "pictures.jsonl", [row]))
    assert item.sides[0].picture is not None and item.sides[0].picture.uri
    assert item.sides[1].picture is not None and "does not exist" in item.sides[1].picture.problem
    (item,) = items(write(tmp_path / "said.jsonl", [{"prompt": "a", "completion": "b c"}]))
    assert [(s.title, s.words) for s in item.sides] == [("answer", 2)]
    (item,) = items(write(tmp_path / "asked.jsonl", [{"prompt": "a"}]))
    assert item.sides == () and item.turns[0].parts == ("a",)


def test_wrong_rows_are_shown_with_what_is_wrong(tmp_path: Path) -> None:
    rows: list[Any] = [pair(0), "{broken", pair(1, chosen=3), pair(2, rejected="a b"), {"x": 1}]
    found = items(write(tmp_path / "rows.jsonl", rows))
    assert [bool(item.problem) for item in found] == [False, True, True, True, True]
    assert "malformed JSON" in found[1].problem
    assert [p.text for p in found[2].sides[0].pieces] == ["3"]
    assert "identical answers" in found[3].problem


def test_long_texts_are_cut_and_said(tmp_path: Path) -> None:
    (item,) = items(write(tmp_path / "rows.jsonl", [pair(0, chosen="ab " * 5000)]))
    assert item.sides[0].hidden == 15_000 - 8000 and item.sides[0].words == 5000


# ---- the page --------------------------------------------------------------------------------


def test_page_is_deaf(tmp_path: Path) -> None:
    """Whatever the data holds is text: one script, ours; no event handler; nothing is loaded."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": HOSTILE}]}]
    row = {
        "prompt": turns, "images": [HOSTILE], "chosen": HOSTILE, "rejected": f"{HOSTILE} no",
        HOSTILE: HOSTILE, "weights_chosen": [[0, 5, 1.0, 1.0]], "builder": {"a": HOSTILE},
    }  # fmt: skip
    write(tmp_path / "rows.dropped.jsonl", [pair(0, dropped=HOSTILE)])
    text = page(write(tmp_path / "rows.jsonl", [row]), tmp_path)
    found = parse(text)
    assert [tag for tag, _ in found.tags].count("script") == 1
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:image/", "#")), value
    assert found.text.count(HOSTILE) >= 4
    assert HOSTILE in {a.get("data-reason") for _, a in found.tags}


def test_policy_lets_only_our_script_run(tmp_path: Path) -> None:
    """The digest in the policy is that of the script as a browser sees it."""
    import hashlib

    text = page(write(tmp_path / "rows.jsonl", [pair(0)]), tmp_path)
    policy = next(a["content"] for t, a in parse(text).tags if t == "meta" and "http-equiv" in a)
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    assert "innerHTML" not in script[0] and "fetch" not in script[0]


def test_page_with_odd_characters_is_written(tmp_path: Path) -> None:
    row = pair(0, prompt="half \ud83d and \0 and \u202e", chosen="\ud83d", dropped_by="\ud800")
    assert "half \\ud83d" in page(write(tmp_path / "rows.jsonl", [row]), tmp_path)


def test_page_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    assert "There is no row." in page(tmp_path / "rows.jsonl", tmp_path)


def test_page_names_reasons_and_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    write(tmp_path / "rows.dropped.jsonl", [pair(0, dropped="too certain")])
    text = page(
        write(tmp_path / "rows.jsonl", [pair(1, images=["a.png"], attention=[[[1.0]]])]), tmp_path
    )
    found = parse(text)
    reasons = [a["data-reason"] for tag, a in found.tags if tag == "button"]
    assert reasons == ["kept", "too certain"]
    assert [a["data-reason"] for tag, a in found.tags if tag == "article"] == reasons
    classes = [a.get("class") for tag, a in found.tags if tag == "img"]
    assert classes == ["tiny", "heat"]
    assert "<ins>b</ins>" in text and "<del>c</del>" in text
