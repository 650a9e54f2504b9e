"""Tar shards, folders and patterns: read as rows, and broken ones named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from mmalign.data import File
from mmalign.data.opening import braces, open_table
from mmalign.data.shards import TarShard

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pair(stem: str, prompt: str = "red") -> dict[str, bytes]:
    return {
        f"{stem}.txt": prompt.encode(),
        f"{stem}.chosen.png": png("red"),
        f"{stem}.rejected.png": png("blue"),
        f"{stem}.json": json.dumps({"margin": 0.5, "source": stem}).encode(),
    }


def test_tar_shards_are_read_by_row(tmp_path: Path) -> None:
    """Three shards by a pattern of numbers, in their order; any row by its number."""
    for number in range(3):
        members = pair(f"train/{number}a") | pair(f"train/{number}b")
        shard(tmp_path / f"train-{number:02d}.tar", members)
    rows = File(path=str(tmp_path / "train-{00..02}.tar")).preferences()
    assert [row.meta["source"] for row in rows] == [f"train/{n}{x}" for n in range(3) for x in "ab"]
    found = rows[3]
    assert (found.prompt.content, found.margin) == ("red", 0.5)
    assert isinstance(found.chosen, Image.Image) and isinstance(found.rejected, Image.Image)
    assert (found.chosen.getpixel((0, 0)), found.rejected.getpixel((0, 0))) == (RED, BLUE)
    assert len(File(path=str(tmp_path / "*.tar"), max_rows=4).preferences()) == 4


def test_pick_a_pic_and_lists_in_tar(tmp_path: Path) -> None:
    """Another name is a column of its own; numbered pictures are a list, in their order."""
    label = {"caption": "red", "label_0": 0, "label_1": 1}
    members = {"0.json": json.dumps(label).encode(), "0.jpg_0.png": png("blue")}
    path = shard(tmp_path / "a.tar", members | {"0.jpg_1.png": png("red")})
    (found,) = File(path=str(path)).preferences()
    assert isinstance(found.chosen, Image.Image) and found.chosen.getpixel((0, 0)) == RED
    ten = {f"0.completion.{n}.png": png("red" if n == 10 else "blue") for n in (2, 10)}
    said = {"0.txt": b"red", "0.json": b'{"scores": [0, 1]}'}
    (ranked,) = File(path=str(shard(tmp_path / "b.tar", said | ten))).rankings()
    best = ranked.completions[1]
    assert isinstance(best, Image.Image) and best.getpixel((0, 0)) == RED


def test_captioned_pictures_are_demonstrations(tmp_path: Path) -> None:
    """A picture without a name is the prompt's, unless `columns` says that it is the answer."""
    path = str(shard(tmp_path / "a.tar", {"0.txt": b"red", "0.png": png("red")}))
    (prompt,) = File(path=path).prompts()
    assert len(prompt.images) == 1
    asked = File(path=path, columns={"completion_images": "images"}).demonstrations()
    ((prompt, answer),) = asked
    assert not prompt.images and isinstance(answer, Image.Image)


BAD: list[tuple[dict[str, bytes], str]] = [
    ({"1.txt": b"\xff"}, "'txt' is not UTF-8"),
    ({"1.json": b"{"}, "malformed JSON"),
    ({"1.json": b"[1]"}, "'json' must hold an object"),
    ({"1.txt": b"a", "1.json": b'{"prompt": "b"}'}, "gives the column 'prompt' a second time"),
    ({"1.txt": b"a", "1.npy": b"x"}, "'npy' is neither json nor txt"),
    (
        {"1.txt": b"a", "1.chosen.png": png("red")},
        "needs a picture in 'rejected_images', or the frames",
    ),
    ({"1.txt": b"a", "1.chosen.png": png("red"), "1.rejected.png": b"no"}, "broken image"),
]


@pytest.mark.parametrize(("members", "message"), BAD)
def test_bad_member_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    """Shard, sample and member; skipping counts it."""
    path = shard(tmp_path / "a.tar", pair("0") | members)
    with pytest.raises(ValueError) as caught:
        File(path=str(path)).preferences()
    assert f"{path}, sample '1': " in str(caught.value) and message in str(caught.value)
    rows = File(path=str(path), on_error="skip").preferences()
    assert (len(rows), rows.dropped.total()) == (1, 1)


def test_bad_shards(tmp_path: Path) -> None:
    """What is wrong with a shard as a whole is said before anything is read."""
    whole = shard(tmp_path / "whole.tar", pair("0")).read_bytes()
    at = whole.index(png("red"))  # the second member of the four
    (tmp_path / "short.tar").write_bytes(whole[: at + 20])
    (tmp_path / "none.tar").write_bytes(b"x" * 4000)
    shard(tmp_path / "twice.tar", {"0.txt": b"a", "1.txt": b"b", "0.png": png("red")})
    with tarfile.open(tmp_path / "link.tar", "w") as file:
        link = tarfile.TarInfo("0.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    for name, message in {
        "short": "cut short in its member '0.chosen.png'",
        "none": "not a whole, uncompressed tar",
        "twice": "sample '0' do not stand one after the other",
        "link": "'0.txt' is a link",
    }.items():
        with pytest.raises(ValueError, match=message):
            TarShard(tmp_path / f"{name}.tar")


def test_a_folder_a_row(tmp_path: Path) -> None:
    """Sorted by name; what else is known is in columns.json."""
    for name, prompt in (("b", "two"), ("a", "one")):
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        (folder / "prompt.txt").write_text(f"{prompt}\n")
        (folder / "chosen.png").write_bytes(png("red"))
        (folder / "rejected.png").write_bytes(png("blue"))
        (folder / "columns.json").write_text(json.dumps({"annotator": name}))
    rows = File(path=str(tmp_path / "pairs")).preferences()
    assert [row.prompt.content for row in rows] == ["one", "two"]
    assert rows[1].meta["annotator"] == "b" and isinstance(rows[1].chosen, Image.Image)
    assert rows[1].chosen.getpixel((0, 0)) == RED
    (tmp_path / "pairs" / "a" / "rejected.png").unlink()
    with pytest.raises(ValueError, match=r"pairs/a: .*'rejected_images'"):
        File(path=str(tmp_path / "pairs")).preferences()
    (tmp_path / "pairs" / "notes.md").write_text("")
    with pytest.raises(ValueError, match=r"notes\.md stands beside the folders"):
        File(path=str(tmp_path / "pairs")).preferences()


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    """As the imagefolder of datasets: ``*_file_name`` names a file below the folder."""
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "r.png").write_bytes(png("red"))
    (folder / "b.png").write_bytes(png("blue"))
    row = {"prompt": "red", "chosen_file_name": "r.png", "rejected_file_name": "b.png", "id": 3}
    listed = {"prompt": "red", "completion_file_names": ["r.png", "b.png"], "scores": [1, 0]}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = File(path=str(folder)).preferences()
    assert isinstance(found.chosen, Image.Image) and found.meta["id"] == 3
    assert found.chosen.getpixel((0, 0)) == RED
    (folder / "metadata.jsonl").write_text(json.dumps(listed) + "\n")
    assert len(File(path=str(folder)).rankings()[0].completions) == 2
    (folder / "metadata.jsonl").write_text(json.dumps({**row, "chosen_file_name": 3}))
    with pytest.raises(ValueError, match=r"metadata\.jsonl:1: .*'chosen_file_name' must hold"):
        File(path=str(folder)).preferences()


def test_patterns(tmp_path: Path) -> None:
    """Braces count with their zeros; a pattern that names nothing says which."""
    assert list(braces("x{08..10}{a,b}")) == [f"x{n}{c}" for n in ("08", "09", "10") for c in "ab"]
    assert list(braces("{1..2}")) == ["1", "2"] and list(braces("plain")) == ["plain"]
    with pytest.raises(ValueError, match="counts down"):
        list(braces("{3..1}"))
    for name in "ab":
        text = json.dumps({"prompt": name, "chosen": "x", "rejected": "y"})
        (tmp_path / f"{name}.jsonl").write_text(f"\n{text}\n")
    rows = open_table(tmp_path / "*.jsonl")
    assert rows.column("prompt") == ["a", "b"] and rows.where(1).endswith("b.jsonl:2")
    with pytest.raises(ValueError, match=r"no data file .*c\.jsonl"):
        open_table(tmp_path / "{a,c}.jsonl")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unpacked to \.tar"):
        open_table(tmp_path / "a.tar.gz")
