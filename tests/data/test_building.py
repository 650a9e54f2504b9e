import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from mmalign import config
from mmalign.data import File
from mmalign.data.building import Candidate, Files, construct
from mmalign.types import Preference, Prompt

WORDS = ("red", "green", "blue", "black", "white", "pink")


@dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """Prefers a colour to grey.

    Attributes:
        breaks_at: The row at which it fails.
    """

    breaks_at: int | None = None

    def prepare(self, *, seed: int) -> "Painting":
        return Painting(self, seed)


class Painting:
    def __init__(self, settings: Colours, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def __len__(self) -> int:
        return len(WORDS)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        for row in range(start, len(self)):
            if row == self.settings.breaks_at:
                raise OSError("the power went")
            picture = Image.new("RGB", (4, 4), WORDS[row])
            prompt = Prompt(
                content=({"role": "user", "content": [{"type": "image"}]},), images=(picture,)
            )
            pair = Preference(prompt=prompt, chosen=WORDS[row], rejected=f"grey {self.seed}")
            yield Candidate(preference=pair, row=row, dropped="odd row" if row % 2 else None)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_kept_and_dropped_pairs_are_written_apart(tmp_path):
    counts = construct(Colours(), tmp_path / "pairs.jsonl", seed=3, settings="a")
    assert counts == {"kept": 3, "odd row": 3}
    assert [r["chosen"][0]["content"] for r in lines(tmp_path / "pairs.jsonl")] == list(WORDS[::2])
    dropped = lines(tmp_path / "pairs.dropped.jsonl")
    assert [row["dropped"] for row in dropped] == ["odd row"] * 3
    pairs = File(path=str(tmp_path / "pairs.jsonl")).preferences()
    assert pairs[1].prompt.images[0].getpixel((0, 0)) == (0, 0, 255)
    assert pairs[1].rejected == "grey 3"


@pytest.mark.parametrize("breaks_at", [0, 3, 5])
def test_an_interrupted_construction_goes_on(tmp_path, breaks_at):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    construct(Colours(), whole, settings="a")
    with pytest.raises(OSError, match="power"):
        construct(Colours(breaks_at=breaks_at), broken, settings="a")
    assert not broken.exists()
    counts = construct(Colours(), broken, settings="a")
    assert counts == {"kept": 3, "odd row": 3}
    mine = broken.read_text().replace("broken-images", "whole-images")
    assert mine == whole.read_text()
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == set()


def test_other_settings_do_not_go_on_with_the_files(tmp_path):
    with pytest.raises(OSError, match="power"):
        construct(Colours(breaks_at=4), tmp_path / "pairs.jsonl", settings="a")
    with pytest.raises(ValueError, match="other settings"):
        construct(Colours(), tmp_path / "pairs.jsonl", settings="b")


def test_an_existing_file_is_not_overwritten(tmp_path):
    construct(Colours(), tmp_path / "pairs.jsonl", rows=2, settings="a")
    with pytest.raises(ValueError, match="exists already"):
        construct(Colours(), tmp_path / "pairs.jsonl", settings="a")


def test_a_picture_of_many_rows_is_saved_once(tmp_path):
    assert construct(Colours(), tmp_path / "pairs.jsonl", rows=2, settings="a").total() == 2
    files = Files(kept=tmp_path / "pairs.jsonl")
    assert len(list(files.images.iterdir())) == 2


def test_settings_come_from_file_and_overrides(tmp_path):
    name = "tests.data.test_building:Colours"
    (tmp_path / "c.yaml").write_text("breaks_at: 2\n")
    found = config.load_builder(name, tmp_path / "c.yaml")
    assert config.settings_of(found)["breaks_at"] == 2
    found = config.load_builder(name, tmp_path / "c.yaml", ["breaks_at=3"])
    assert config.settings_of(found)["breaks_at"] == 3
    with pytest.raises(ValueError, match="breaks_at"):
        config.load_builder(name, None, ["break_at=3"])
    (tmp_path / "other.yaml").write_text("type: mia-dpo\n")
    with pytest.raises(ValueError, match="settings of mia-dpo"):
        config.load_builder(name, tmp_path / "other.yaml")
