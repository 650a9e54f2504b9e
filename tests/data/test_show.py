"""`mmalign data show`: what the command writes and says."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from mmalign.cli import cli
from mmalign.data import write_preferences, write_samples
from mmalign.tinyworld.tasks import TASKS


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["data", "show", *map(str, arguments)])


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("task", ["arithmetic", "multi_image", "draw"])
def test_command(tmp_path: Path, task: str) -> None:
    """Text, several pictures in the prompt, and pictures as answers."""
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, TASKS[task].preferences(size=5, seed=0))
    result = run(path, "--rows", "3")
    assert result.exit_code == 0, result.output
    out = tmp_path / "pairs.gallery.html"
    assert out.read_text().count("<article") == 3
    assert "3 of 5 rows, spread over the file (seed 0)." in result.stdout
    assert out.as_uri() in result.stdout


def test_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    write_samples(path, TASKS["describe"].demonstrations(size=2, seed=0))
    assert run(path, "--output", tmp_path / "a" / "b.html").exit_code == 0
    assert (tmp_path / "a" / "b.html").read_text().count("<article") == 2


def test_parquet_with_pictures_in_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    columns = {"question": ["Colour?"], "image": [buffer.getvalue()], "chosen": ["red"],
               "rejected": ["blue"]}  # fmt: skip
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "rows.parquet"))
    assert run(tmp_path / "rows.parquet").exit_code == 0
    text = (tmp_path / "rows.gallery.html").read_text()
    assert text.count('<img src="data:image/png') == 1


def test_columns_and_images_folder(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ask": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    assert run(path, "--column", "prompt=ask", "--images", tmp_path).exit_code == 0
    assert "Q</div>" in (tmp_path / "rows.gallery.html").read_text()


def test_no_such_file(tmp_path: Path) -> None:
    result = run(tmp_path / "gone.jsonl")
    assert isinstance(result.exception, ValueError) and "gone.jsonl" in str(result.exception)


def test_shards_and_lists(tmp_path: Path) -> None:
    """A pattern is one page; a list stands in the order of its scores."""
    for number in range(2):
        with tarfile.open(tmp_path / f"part-{number}.tar", "w") as file:
            for part, data in {
                "txt": b"red",
                "json": b'{"scores": [0.5, 2]}',
                "completion.0.png": png("blue"),
                "completion.1.png": png("red"),
            }.items():
                info = tarfile.TarInfo(f"{number}.{part}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    result = run(tmp_path / "part-{0..1}.tar")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "part-_0..1_.gallery.html").read_text()
    assert page.count("<article") == 2
    assert page.index("score 2") < page.index("score 0.5") < page.rindex("score 2")
    checked = CliRunner().invoke(cli, ["data", "check", str(tmp_path / "part-*.tar")])
    assert "1 warning  duplicate rows" in checked.output and checked.exit_code == 0
