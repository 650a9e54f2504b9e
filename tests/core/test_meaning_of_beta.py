"""A run on a bound says in its header and in its report what beta multiplies."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from mmalign import invariants
from mmalign.cli import cli
from mmalign.objectives import DPO, GRPO, KTO, MPO, SFT, MaPO
from mmalign.objectives.mixture import Term
from mmalign.report.page import write


def test_where_there_is_something_to_say() -> None:
    """Log-ratios of a bound have the factor 1/2 inside; tokens, KL weights and MaPO have none."""
    said = invariants.meaning_of_beta(DPO(beta=5000.0), likelihood="bound")
    assert said is not None and said.startswith("beta=5000 ") and "1/2 is inside" in said
    assert invariants.meaning_of_beta(KTO(beta=2000.0), likelihood="bound") is not None
    within = MPO(terms=(Term(objective=SFT()), Term(objective=DPO(beta=2000.0))))
    assert "beta=2000 " in str(invariants.meaning_of_beta(within, likelihood="bound"))
    assert invariants.meaning_of_beta(DPO(), likelihood="exact") is None
    assert invariants.meaning_of_beta(MaPO(), likelihood="bound") is None
    assert invariants.meaning_of_beta(GRPO(beta=0.1, allow_bound=True), likelihood="bound") is None


def test_it_is_said_by_the_command_and_in_the_report(tmp_path: Path) -> None:
    """One update of the shipped config."""
    small = [
        "source.batch_size=2", "source.data.size=4", "training.steps=1", "policy.steps=2",
        "evaluation=null", f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    found = CliRunner().invoke(cli, ["train", "configs/diffusion/diffusion_dpo.yaml", *small])
    assert found.exit_code == 0, found.output
    assert "beta=200 multiplies log-ratios of minus one half" in found.output
    report = write([tmp_path / "run"], tmp_path / "report.html")
    assert "beta=200 multiplies" in report.read_text(encoding="utf-8")
