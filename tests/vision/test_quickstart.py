import runpy
from pathlib import Path

from transformers import AutoProcessor

ROOT = Path(__file__).resolve().parents[2]


def test_the_quickstart_runs(tmp_path):
    """Two updates, both evaluations, and the reload with plain libraries."""
    example = runpy.run_path(str(ROOT / "vision" / "quickstart.py"))
    rise = example["main"](2, str(tmp_path / "run"))
    assert -1 <= rise <= 1
    assert AutoProcessor.from_pretrained(tmp_path / "run" / "model").chat_template


def test_pairs_are_built_shown_and_checked(tmp_path, capsys):
    """Every row is accounted for, and the gallery shows them all."""
    example = runpy.run_path(str(ROOT / "vision" / "build_pairs.py"))
    kept = example["main"](12, str(tmp_path))
    said = capsys.readouterr().out
    assert 0 < kept < 12
    assert "12 of 12 rows." in said and "error" not in said
    page = (tmp_path / "pairs.gallery.html").read_text()
    assert page.count("<article") == 12
    assert 'class="heat"' in page
