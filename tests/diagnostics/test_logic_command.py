"""`mmalign logic` and a run that trains a formula."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmalign import cli, config
from mmalign.objectives import Logic

RUN = """\
policy: {type: text, model: tinyworld/text, max_new_tokens: 32, lora: {rank: 2}}
objective:
  type: logic
  proposition: M(l) -> M(w)
  condition: M(w) or M(l)
  ambiguous: "false"
  log_probs: mean
  beta: 1.0
source:
  type: preferences
  data: {type: tinyworld, task: arithmetic, size: 16}
  batch_size: 8
training: {steps: 20, learning_rate: 3e-3}
output: out
"""


def call(*arguments: str) -> int:
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("logic", "compare", "dpo", "orpo") == cli.OK
    said = capsys.readouterr().out
    assert "rho            pw rl / (pl rw)" in said
    assert "neither entails the other" in said and "either loss can be the larger" in said
    assert "different numbers" in said and "is not compared" in said


def test_compare_where_one_asks_for_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("logic", "compare", "conditional", "(M(w) or M(l)) and M(w)") == cli.OK
    said = capsys.readouterr().out
    assert "(M(w) or M(l)) and M(w) entails conditional" in said
    assert "is never below that of conditional" in said


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    """The both-true row of cpo counts on both sides; DPO is cpo held against the reference."""
    assert call("logic", "show", "cpo") == cli.OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["yes", "yes", "for", "both"] in lines and ["no", "no", "not", "at", "all"] in lines
    assert call("logic", "show", "dpo") == cli.OK
    assert "the same as    cpo with rho divided by the reference's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "kto"], "no loss called 'kto' has a symbolic form"),
        (["show", "M(w) and"], "column 9"),
        (["show", "M(w) or true"], "no row of the truth table counts against"),
        (["compare", "dpo", "nca_pair"], "nca_pair"),
        (["compare", "dpo", "cpo", "--beta", "0"], "beta=0"),
    ],
)
def test_user_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call("logic", *arguments) == cli.USER_ERROR
    assert message in capsys.readouterr().err


def test_the_guide_shows_a_config_that_composes() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "diagnostics.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", guide.read_text("utf-8"), flags=re.DOTALL)
    run = config.loads(RUN.replace(RUN[RUN.index("objective:") : RUN.index("source:")], block))
    assert run.objective == Logic(
        proposition="M(l) -> M(w)", condition="M(w) or M(l)", ambiguous="false",
        log_probs="mean", beta=1.0,
    )  # fmt: skip


def test_a_formula_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    assert call("train", "run.yaml") == cli.OK
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 20 and sum(losses[-4:]) < 0.9 * sum(losses[:4])
