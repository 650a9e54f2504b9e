import pytest

from mmalign import distributed
from mmalign.data.built import Built
from tests.data.test_building import Colours


def test_what_is_missing_is_made_once(tmp_path, monkeypatch):
    """The second reading builds nothing: a builder that fails would say so."""
    path = tmp_path / "runs" / "pairs.jsonl"
    data = Built(builder=Colours(), path=str(path), rows=4, seed=3)
    assert [pair.chosen for pair in data.preferences()] == ["red", "blue"]
    assert [prompt.images[0].getpixel((0, 0)) for prompt in data.prompts()][1] == (0, 0, 255)
    monkeypatch.setattr(Colours, "prepare", None)
    assert [pair.rejected for pair in data.preferences()] == ["grey 3", "grey 3"]


def test_an_interrupted_construction_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    data = Built(builder=Colours(), path=str(path))
    rows = Colours().prepare(seed=0).candidates

    def failing(self, start=0):
        for candidate in rows(start):
            if candidate.row == 3:
                raise OSError("the power went")
            yield candidate

    with monkeypatch.context() as patch:
        patch.setattr("tests.data.test_building.Painting.candidates", failing)
        with pytest.raises(OSError, match="power"):
            data.preferences()
    assert not path.exists()
    assert len(data.preferences()) == 3


def test_a_file_made_otherwise_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    Built(builder=Colours(), path=str(path)).preferences()
    with pytest.raises(ValueError, match="made with other settings"):
        Built(builder=Colours(), path=str(path), seed=1).preferences()
    with pytest.raises(ValueError, match="made with other settings"):
        Built(builder=Colours(breaks_at=99), path=str(path)).preferences()
    (tmp_path / "pairs.settings.json").unlink()
    with pytest.raises(ValueError, match=r"not made by this run's builder"):
        Built(builder=Colours(), path=str(path)).preferences()


def test_several_processes_do_not_make_it(tmp_path, monkeypatch):
    """They would write the same file at once."""
    data = Built(builder=Colours(), path=str(tmp_path / "pairs.jsonl"))
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        with pytest.raises(ValueError, match="is missing, and 2 processes"):
            data.preferences()
    assert len(data.preferences()) == 3
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert len(data.preferences()) == 3
