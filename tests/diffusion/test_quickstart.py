import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_quickstart_runs(tmp_path: Path) -> None:
    """Two updates, both evaluations, and a picture drawn by plain diffusers from what was saved."""
    example = runpy.run_path(str(ROOT / "diffusion" / "quickstart.py"))
    rise = example["main"](2, str(tmp_path / "run"))
    assert -1 <= rise <= 1
    assert (tmp_path / "run" / "sample.png").is_file()
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()
