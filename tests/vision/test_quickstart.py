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
