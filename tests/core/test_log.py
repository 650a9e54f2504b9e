"""The run's folder and where shipped models are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmalign import locate
from mmalign.log import RunFolder


def test_a_torn_line_is_no_line(tmp_path: Path) -> None:
    """A crash in the middle of writing leaves half a line: it is not read, and then it is gone."""
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in folder.read("metrics.jsonl")] == [1, 2, 3]
    folder.forget_after(2)
    folder.append("metrics.jsonl", {"step": 3, "again": True})
    assert folder.read("metrics.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert folder.read("evaluations.jsonl") == []


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "new" / "run"), RunFolder(tmp_path / "new" / "run")
    first.acquire()
    with pytest.raises(ValueError, match="is being written by another run"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_where_models_are(tmp_path: Path) -> None:
    assert locate.locate("somebody/model") == "somebody/model"
    assert locate.locate(str(tmp_path)) == str(tmp_path)
    assert (Path(locate.locate("tinyworld/text")) / "config.json").is_file()
    with pytest.raises(ValueError, match=r"no shipped model 'tinyworld/no'; .*tinyworld/text"):
        locate.locate("tinyworld/no")
