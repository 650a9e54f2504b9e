"""Data files: what is read, what is refused and how the refusal reads, and the way back."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.data import File, write_preferences, write_samples
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Preference, Prompt

GOOD = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}


def write(path: Path, rows: Sequence[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def picture(path: Path, colour: str, *, size: tuple[int, int] = (4, 3)) -> str:
    Image.new("RGB", size, colour).save(path)
    return path.name


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def only(tmp_path: Path, row: Mapping[str, Any]) -> Preference:
    rows = File(path=write(tmp_path / "rows.jsonl", [row])).preferences()
    assert len(rows) == 1
    return rows[0]


# ---- what is read ----------------------------------------------------------------------------


def test_strings(tmp_path: Path) -> None:
    found = only(tmp_path, {**GOOD, "margin": 2, "source": "hand"})
    assert found.prompt.content == "1 + 1?"
    assert (found.chosen, found.rejected, found.margin) == ("2", "3", 2.0)
    assert found.prompt.meta == found.meta == {"source": "hand"}


def test_conversations(tmp_path: Path) -> None:
    question = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}]
    row = {
        "prompt": question,
        "chosen": [{"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "3"}]}],
    }
    found = only(tmp_path, row)
    assert list(found.prompt.content) == question
    assert (found.chosen, found.rejected) == ("2", "3")


def test_implicit_prompt_of_conversations(tmp_path: Path) -> None:
    question = {"role": "user", "content": "1 + 1?"}
    sides = {
        side: [question, {"role": "assistant", "content": answer}]
        for side, answer in (("chosen", "2"), ("rejected", "3"))
    }
    found = only(tmp_path, sides)
    assert list(found.prompt.content) == [question]
    assert (found.chosen, found.rejected) == ("2", "3")


def test_implicit_prompt_of_strings_ends_between_words(tmp_path: Path) -> None:
    """The common beginning is "Q: 5+7? A: 1"; cut back to before the space that precedes it."""
    found = only(tmp_path, {"chosen": "Q: 5+7? A: 12", "rejected": "Q: 5+7? A: 13"})
    assert found.prompt.content == "Q: 5+7? A:"
    assert (found.chosen, found.rejected) == (" 12", " 13")


def test_images_go_to_their_marks_or_to_the_front(tmp_path: Path) -> None:
    names = [picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue")]
    marked = only(tmp_path, {**GOOD, "prompt": "<image> or <image>?", "images": names})
    parts = marked.prompt.content[0]["content"]  # type: ignore[index]
    assert [p["type"] for p in parts] == ["image", "text", "image", "text"]
    said = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Which?"}]
    answers = {"chosen": "first", "rejected": "second"}
    bare = only(tmp_path, {"prompt": said, **answers, "images": names})
    parts = bare.prompt.content[1]["content"]  # type: ignore[index]
    assert [p["type"] for p in parts] == ["image", "image", "text"]
    assert [i.getpixel((0, 0)) for i in bare.prompt.images] == [(255, 0, 0), (0, 0, 255)]


def test_text_alone_may_contain_the_mark(tmp_path: Path) -> None:
    found = only(tmp_path, {**GOOD, "prompt": "What does <image> mean in SVG?"})
    assert found.prompt.content == "What does <image> mean in SVG?"


def test_sides_that_saw_different_images(tmp_path: Path) -> None:
    clean, corrupted = picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "grey")
    row = {**GOOD, "rejected": "2", "images": [clean], "rejected_images": [corrupted]}
    found = only(tmp_path, row)
    assert found.prompt.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert found.rejected_prompt is not None
    assert found.rejected_prompt.images[0].getpixel((0, 0)) == (128, 128, 128)
    assert found.chosen == found.rejected == "2"


def test_pictures_as_answers(tmp_path: Path) -> None:
    names = [picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue")]
    row = {"prompt": "red", "chosen_images": names[:1], "rejected_images": names[1]}
    found = only(tmp_path, row)
    assert found.prompt.images == ()
    assert isinstance(found.chosen, Image.Image) and isinstance(found.rejected, Image.Image)
    assert found.chosen.getpixel((0, 0)) == (255, 0, 0)
    assert found.rejected.getpixel((0, 0)) == (0, 0, 255)


def test_prompts_need_no_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": 3}, {"prompt": "b", "answer": 4}]
    found = File(path=write(tmp_path / "rows.jsonl", rows)).prompts()
    assert [p.content for p in found] == ["a", "b"]
    assert found[1].meta == {"answer": 4}


def test_blank_lines_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert len(File(path=str(path)).preferences()) == 2


def test_json_list_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"ask": "1 + 1?", "good": "2", "rejected": "3"}]))
    columns = {"prompt": "ask", "chosen": "good"}
    assert File(path=str(path), columns=columns).preferences()[0].chosen == "2"


def test_pick_a_pic_in_parquet(tmp_path: Path) -> None:
    """Three rows: the first picture wins, the second wins, a tie. The tie is dropped, counted."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(
        {
            "jpg_0": [png("red")] * 3,
            "jpg_1": [png("blue")] * 3,
            "label_0": [1.0, 0.0, 0.5],
            "label_1": [0.0, 1.0, 0.5],
            "caption": ["red", "blue", "either"],
        }
    ).to_parquet(str(path))
    found = File(path=str(path)).preferences()
    assert found.dropped == {"ties": 1}
    chosen = [pair.chosen for pair in found]
    assert all(isinstance(c, Image.Image) for c in chosen)
    pixels = [c.getpixel((0, 0)) for c in chosen if isinstance(c, Image.Image)]
    assert pixels == [(255, 0, 0), (0, 0, 255)]


def test_llama_factory_and_ms_swift(tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png", "red")
    factory = {
        "conversations": [{"from": "human", "value": "<image>Colour?"}],
        "chosen": {"from": "gpt", "value": "red"},
        "rejected": {"from": "gpt", "value": "blue"},
        "images": [name],
    }
    swift = {
        "messages": [
            {"role": "user", "content": "<image>Colour?"},
            {"role": "assistant", "content": "red"},
        ],
        "rejected_response": "blue",
        "images": [name],
    }
    rlaif = {"question": "Colour?", "chosen": "red", "rejected": "blue", "image": name}
    for row in (factory, swift, rlaif):
        found = only(tmp_path, row)
        assert (found.chosen, found.rejected, len(found.prompt.images)) == ("red", "blue", 1)


def test_split_parts_prompts_and_keeps_duplicates_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 50}"} for i in range(100)]
    path = write(tmp_path / "rows.jsonl", rows)
    train = [p.content for p in File(path=path, split="train", heldout_share=0.3).prompts()]
    held = [p.content for p in File(path=path, split="heldout", heldout_share=0.3).prompts()]
    assert len(train) + len(held) == 100
    assert not set(train) & set(held)
    assert 0 < len(held) < len(train)


def test_max_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**GOOD, "prompt": f"p{i}"} for i in range(9)])
    assert [p.prompt.content for p in File(path=path, max_rows=2).preferences()] == ["p0", "p1"]


# ---- what is refused -------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ('{"prompt": "x", ', "malformed JSON"),
    ('{"prompt": "x", "prompt": "y"}', "'prompt' stands there twice"),
    ('{"prompt": "x", "margin": NaN}', "NaN is not JSON"),
    ("[1]", "must be an object"),
    ({"chosen": "a", "rejected": "b"}, "share no beginning"),
    ({"prompt": "x", "rejected": "b"}, "'chosen' is missing"),
    ({**GOOD, "chosen": 3}, "'chosen' must be text, not 3"),
    ({**GOOD, "chosen": "  "}, "'chosen' is empty"),
    ({**GOOD, "prompt": ""}, "'prompt' is empty"),
    ({**GOOD, "prompt": [{"role": "usr", "content": "x"}]}, "role 'usr'"),
    ({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}, "ends with the assistant"),
    ({**GOOD, "margin": "1"}, "'margin' must be a finite number"),
    ({**GOOD, "images": ["gone.png"]}, "'gone.png' does not exist"),
    ({**GOOD, "images": ["../secret.png"]}, "outside the image folder"),
    ({**GOOD, "images": ["https://example.org/a.png"]}, "is a URL"),
    ({**GOOD, "images": ["rows.jsonl"]}, "not a readable"),
    (
        {**GOOD, "prompt": "<image><image>", "images": ["ok.png"]},
        "2 places for pictures",
    ),
    ({**GOOD, "prompt": "<image>", "images": []}, "the row 0"),
    ({"prompt": "x", "chosen_images": ["ok.png"]}, "a picture in 'rejected_images', or the frames"),
    ({"prompt": "x", "chosen": [GOOD], "rejected": "b"}, "must have 'role' and 'content'"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    """The bad row is on line 3: a good one and a blank one come before it."""
    picture(tmp_path / "ok.png", "red")
    path = write(tmp_path / "rows.jsonl", [GOOD, "", row])
    with pytest.raises(ValueError) as caught:
        File(path=path).preferences()
    assert f"{path}:3: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_row_is_skipped_and_counted(tmp_path: Path, row: Any, message: str) -> None:
    picture(tmp_path / "ok.png", "red")
    path = write(tmp_path / "rows.jsonl", [GOOD, row, {**GOOD, "prompt": "2 + 2?"}])
    found = File(path=path, on_error="skip").preferences()
    assert [p.prompt.content for p in found] == ["1 + 1?", "2 + 2?"]
    assert sum(found.dropped.values()) == 1


def test_identical_answers_are_dropped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "rejected": "2"}])
    with caplog.at_level(logging.WARNING):
        found = File(path=path).preferences()
    assert len(found) == 1
    assert found.dropped == {"identical answers": 1}
    assert "1 rows used; left out: 1 identical answers" in caplog.text


def test_cut_short_picture(tmp_path: Path) -> None:
    """Its header is fine, so it is found when used, or up front where rows may be skipped."""
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "images": ["cut.png"]}])
    rows = File(path=path).preferences()
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: 'cut\.png': .*cut short"):
        _ = rows[1]
    assert File(path=path, on_error="skip").preferences().dropped == {"broken image": 1}


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**GOOD, "rejected": "2"}])
    with pytest.raises(ValueError, match=r"no usable row .* 1 identical answers, of 1"):
        File(path=path).preferences()


@pytest.mark.parametrize("name", ["gone.jsonl", "rows.csv"])
def test_bad_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        File(path=str(tmp_path / name)).preferences()


def test_garbage_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        File(path=str(path)).preferences()


@pytest.mark.parametrize(
    "changes", [{"columns": {"chosn": "a"}}, {"max_rows": 0}, {"heldout_share": 1.0}]
)
def test_bad_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        File(path="rows.jsonl", **changes)


# ---- writing ---------------------------------------------------------------------------------


def same(first: Prompt, second: Prompt) -> bool:
    pixels = [[i.convert("RGB").tobytes() for i in p.images] for p in (first, second)]
    return first.content == second.content and pixels[0] == pixels[1]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_round_trip(tmp_path: Path, task: str) -> None:
    records = TASKS[task].preferences(size=5, seed=0)
    path = tmp_path / "out" / "pairs.jsonl"
    assert write_preferences(path, records) == 5
    found = File(path=str(path)).preferences()
    assert len(found) == 5
    for new, old in zip(found, records, strict=True):
        assert same(new.prompt, old.prompt)
        assert new.meta == json.loads(json.dumps({**old.prompt.meta, **old.meta}))
        for side in ("chosen", "rejected"):
            a, b = getattr(new, side), getattr(old, side)
            assert a == b if isinstance(b, str) else a.tobytes() == b.convert("RGB").tobytes()


def test_round_trip_of_two_views(tmp_path: Path) -> None:
    clean, other = (
        Prompt(content="What?", images=(Image.new("RGB", (2, 2), c),)) for c in ("red", "grey")
    )
    record = Preference(prompt=clean, chosen="a", rejected="a", rejected_prompt=other, margin=0.5)
    write_preferences(tmp_path / "pairs.jsonl", [record])
    found = File(path=str(tmp_path / "pairs.jsonl")).preferences()[0]
    assert found.rejected_prompt is not None
    assert same(found.prompt, clean) and same(found.rejected_prompt, other)
    assert (found.chosen, found.rejected, found.margin) == ("a", "a", 0.5)


def test_round_trip_of_clips(tmp_path: Path) -> None:
    """Several pictures where an answer is one are its frames, in their order."""
    bright, dark = (
        tuple(Image.new("RGB", (2, 2), (level * k, 0, 0)) for k in range(3)) for level in (90, 40)
    )
    record = Preference(prompt=Prompt(content="a sunset"), chosen=bright, rejected=dark)
    write_preferences(tmp_path / "clips.jsonl", [record])
    found = File(path=str(tmp_path / "clips.jsonl"), on_error="skip").preferences()[0]
    assert isinstance(found.chosen, tuple) and isinstance(found.rejected, tuple)
    assert [f.getpixel((0, 0)) for f in found.chosen] == [(0, 0, 0), (90, 0, 0), (180, 0, 0)]
    assert [f.getpixel((0, 0)) for f in found.rejected] == [(0, 0, 0), (40, 0, 0), (80, 0, 0)]


def test_writing_refuses(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    prompt = Prompt(content="x")
    taken = Preference(prompt=prompt, chosen="a", rejected="b", meta={"margin": 1})
    strange = Preference(prompt=prompt, chosen="a", rejected="b", meta={"thing": object()})
    for record, message in ((taken, "'margin'"), (strange, "record 0 cannot be written")):
        with pytest.raises(ValueError, match=message):
            write_preferences(path, [record])
        assert not path.exists()
    path.write_text("")
    with pytest.raises(ValueError, match="exists already"):
        write_preferences(path, [])


def test_write_samples(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    prompt = Prompt(content="red", meta={"task": "draw"})
    write_samples(path, [(prompt, "words"), (prompt, Image.new("RGB", (2, 2), "red"))])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"task": "draw", "prompt": "red", "completion": "words"}
    assert Image.open(tmp_path / rows[1]["completion_images"][0]).getpixel((0, 0)) == (255, 0, 0)
    again = File(path=str(path)).prompts()
    assert [same(p, prompt) and p.meta == prompt.meta for p in again] == [True, True]
