"""A policy diagnosed: the fixture's numbers, the landmarks, and a trained run end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign import cli
from mmalign.benchmarks import Report
from mmalign.commands.diagnosing import beta_of
from mmalign.commands.targets import load_policy, load_run
from mmalign.data import write_preferences
from mmalign.diagnostics import sparsity
from mmalign.diagnostics.measuring import (
    PairScores,
    Settings,
    agreements,
    diagnose,
    displacement_metrics,
    ranking_metrics,
    rows_of,
    sample_metrics,
    score_pairs,
)
from mmalign.diffusion import DiffusionPolicy
from mmalign.locate import locate
from mmalign.lora import LoRA
from mmalign.objectives import DPO, SimPO
from mmalign.references import Frozen
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Preference

CONFIG = """\
policy: {type: text, model: tinyworld/text, max_new_tokens: 32, lora: {rank: 4}}
objective: {type: dpo, beta: 0.2}
source:
  type: preferences
  data: {type: tinyworld, task: arithmetic, size: 16}
  batch_size: 8
training: {steps: 12, learning_rate: 5e-3}
evaluation:
  data: {type: tinyworld, task: arithmetic, split: heldout, size: 6}
  judges: {exact: {type: tinyworld}}
output: run
"""


def call(*arguments: str) -> int:
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fixture() -> PairScores:
    """Pairs A and B of 3, 2 and 2, 4 steps; log-ratios 0.5, -0.3 and -0.2, 0.4."""
    return PairScores(
        row=torch.tensor([0, 2]), s_w=doubles(-2.2, -2.0), s_l=doubles(-3.5, -1.8),
        ref_s_w=doubles(-2.7, -1.8), ref_s_l=doubles(-3.2, -2.2), n_w=doubles(3, 2),
        n_l=doubles(2, 4), dropped=1,
    )  # fmt: skip


# ---- numbers ---------------------------------------------------------------------------------


def test_metrics_by_hand():
    """A is ranked right and B wrong, both right under the reference; margins 0.8 and -0.6.

    Agreement 0.4 has logit -0.405465: at beta 0.5 the idealised log-ratios are 0.5 - 0.810930 < 0
    and 0.4 - 0.810930 < 0, at beta 1 0.094535 > 0 and -0.005465 < 0, at beta 5 both positive.
    """
    found = ranking_metrics(fixture(), doubles(0.4, 0.4), beta=0.5)
    value = {name: measured.value for name, measured in found.items()}
    assert value["ranking/accuracy"] == value["ranking/accuracy_normalised"] == 0.5
    assert value["ranking/reference_accuracy"] == 1.0
    assert value["ranking/wrong_pairs_mended"] is None
    assert value["rewards/accuracies"] == 0.5
    assert value["ranking/idealised_accuracy@beta=0.5"] == 0.0
    assert value["ranking/idealised_accuracy@beta=1"] == 0.5
    assert value["ranking/idealised_accuracy@beta=5"] == 1.0
    assert value["difficulty/quantile_0.5"] == pytest.approx(-0.45)
    moved = {name: m.value for name, m in displacement_metrics(fixture()).items()}
    assert moved["displacement/chosen"] == pytest.approx(0.15)
    assert moved["displacement/rejected"] == pytest.approx(0.05)
    assert moved["displacement/chosen_per_step"] == pytest.approx((0.5 / 3 - 0.1) / 2)
    assert moved["displacement/chosen_fell"] == 0.5
    assert moved["displacement/both_fell"] == 0.0


def test_rows_by_hand():
    """Difficulties -0.5 and -0.4; thresholds at beta 0.5 log(1 + e^0.25), log(1 + e^0.2)."""
    first, second = rows_of(fixture(), beta=0.5)
    assert (first["row"], second["row"]) == (0, 2)
    assert first["right"] is True and second["right"] is False
    assert first["dpo_loss"] == pytest.approx(0.513015, abs=1e-6)
    assert second["dpo_loss"] == pytest.approx(0.854355, abs=1e-6)
    assert first["right_below"] == pytest.approx(math.log1p(math.exp(0.25)))
    assert second["right_below"] == pytest.approx(math.log1p(math.exp(0.2)))
    assert first["dpo_loss"] <= first["right_below"]
    assert second["dpo_loss"] > second["right_below"]
    assert (first["steps_chosen"], first["steps_rejected"]) == (3, 2)


def pairs_with(*values: Any) -> list[Preference]:
    pairs = TinyWorld(task="arithmetic", size=len(values)).preferences()
    metas = [{} if value is None else {"agreement": value} for value in values]
    return [replace(p, meta=meta) for p, meta in zip(pairs, metas, strict=True)]


def test_agreements():
    assert agreements(pairs_with(None, None)).tolist() == [0.999, 0.999]
    assert agreements(pairs_with(0.6, 1, 0)).tolist() == pytest.approx([0.6, 0.999, 0.001])
    with pytest.raises(ValueError, match="pair 1 has no 'agreement'"):
        agreements(pairs_with(0.6, None))
    for wrong in ("most", 60, True, math.nan):
        with pytest.raises(ValueError, match="pair 0: agreement="):
            agreements(pairs_with(wrong))


# ---- policies --------------------------------------------------------------------------------

SETTINGS = Settings(batch_size=3, seed=1)


def values_of(report: Report) -> dict[str, float | None]:
    return {name: measured.value for name, measured in report.metrics.items()}


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    return list(TinyWorld(task="arithmetic", split="heldout", size=7).preferences())


def test_landmarks_of_an_untrained_policy(pairs: list[Preference]) -> None:
    """KL, displacement 0 and sparsity 1; the pair with identical sides is left out; batches of 3
    and of 8 say the same."""
    policy = TextPolicy(lora=LoRA(rank=2), max_new_tokens=32).load()
    reference = Frozen().build(policy)
    given = [*pairs[:2], replace(pairs[2], rejected=pairs[2].chosen), *pairs[3:]]
    report = diagnose(policy, reference, given, start=policy, settings=SETTINGS)
    value = values_of(report)
    for name in ("kl/k1", "kl/k2", "kl/k3", "displacement/margin", "displacement/chosen_fell"):
        assert value[name] == 0.0, name
    assert value["rewards/accuracies"] == 0.0
    assert value["ranking/accuracy"] == value["ranking/reference_accuracy"]
    assert value["sparsity/bfloat16"] == value["sparsity/float32"] == 1.0
    assert value["top_k/mass"] == value["top_k/mass_before"]
    assert 0 < value["top_k/mass"] <= 1 and 0 < value["top_k/entropy_bits"] < math.log2(10)
    assert [row["row"] for row in report.rows] == [0, 1, 3, 4, 5, 6]
    assert list(report.counts.values()) == [1]
    other = diagnose(
        policy, reference, given, start=policy, settings=replace(SETTINGS, batch_size=8)
    )
    assert values_of(other) == pytest.approx(value, abs=1e-5)
    with pytest.raises(ValueError, match="no pair"):
        diagnose(policy, reference, [], start=policy, settings=SETTINGS)


def test_pairs_are_scored_as_they_are_alone(pairs: list[Preference]) -> None:
    policy = TextPolicy(max_new_tokens=32).load()
    reference = Frozen().build(policy)
    found = score_pairs(policy, reference, pairs, SETTINGS)
    for row, pair in enumerate(pairs):
        rows = policy.adapter.encode(
            [pair.prompt], [[pair.chosen, pair.rejected]], generators=[torch.Generator()]
        )
        with torch.no_grad():
            s = policy.scores(rows).log_probs.sum(1)
        assert [float(found.s_w[row]), float(found.s_l[row])] == pytest.approx(s.tolist(), abs=1e-4)
        assert [int(found.n_w[row]), int(found.n_l[row])] == rows.mask.sum(1).tolist()


def test_a_bound_has_no_samples_to_speak_of() -> None:
    policy = DiffusionPolicy(model="tinyworld/diffusion", likelihood="elbo", steps=4).load()
    pairs = list(TinyWorld(task="draw", size=2).preferences())
    reference = Frozen().build(policy)
    report = diagnose(policy, reference, pairs, start=policy, settings=SETTINGS)
    value = values_of(report)
    assert value["displacement/margin"] == 0.0 and value["sparsity/float32"] == 1.0
    assert not any(name.startswith(("kl/", "top_k/")) for name in value)


def test_steps_that_are_no_symbols_have_a_kl_alone() -> None:
    policy = DiffusionPolicy(model="tinyworld/diffusion", likelihood="path", steps=3).load()
    pairs = list(TinyWorld(task="draw", size=2).preferences())
    reference = Frozen().build(policy)
    found = sample_metrics(policy, reference, pairs, start=policy, settings=SETTINGS)
    value = {name: measured.value for name, measured in found.items()}
    assert value == {"kl/k1": 0.0, "kl/k1_per_step": 0.0, "samples/steps": 3.0}


def test_which_beta_a_difficulty_is_stated_in(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    run = load_run(str(tmp_path / "run.yaml"), [])
    assert beta_of(run) == 0.2
    assert beta_of(replace(run, objective=SimPO())) == 0.1 != SimPO().beta
    assert beta_of(replace(run, objective=DPO(beta=0.03))) == 0.03


# ---- end to end ------------------------------------------------------------------------------


def test_a_trained_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, diagnose, and find in the report what scoring by hand says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert call("train", "run.yaml", "evaluation=null") == cli.OK
    capsys.readouterr()
    assert call("eval", "run", "--diagnose", "training", "--json", "--output", "found") == cli.OK
    said = json.loads(capsys.readouterr().out)
    value = {name: m["value"] for name, m in said["metrics"].items()}
    assert said["beta"] == 0.2 and said["metrics"]["ranking/accuracy"]["total"] == 16
    assert value["displacement/margin"] > 0.5 and value["rewards/accuracies"] > 0.8
    assert value["kl/k3"] > 0 and value["top_k/mass"] != value["top_k/mass_before"]
    assert 0 < value["sparsity/float32"] < value["sparsity/bfloat16"] < 1
    assert said["categories"]["model.embed_tokens"]["sparsity/float32"]["value"] == 1.0

    rows = [json.loads(line) for line in (tmp_path / "found" / "rows.jsonl").open()]
    assert len(rows) == 16
    run = load_run("run", [])
    pair = run.source.data.preferences()[3]  # type: ignore[attr-defined]
    for policy, names in (
        (load_policy("run", run), ("log_prob_chosen", "log_prob_rejected")),
        (run.policy.load(), ("reference_chosen", "reference_rejected")),
    ):
        sides = policy.adapter.encode(
            [pair.prompt], [[pair.chosen, pair.rejected]], generators=[torch.Generator()]
        )
        with torch.no_grad():
            s = policy.scores(sides).log_probs.sum(1).tolist()
        assert [rows[3][name] for name in names] == pytest.approx(s, abs=1e-3)

    write_preferences("pairs.jsonl", pairs_with(0.6, 0.7, 0.8))
    assert call("eval", "run", "--diagnose", "pairs.jsonl", "--num", "2") == cli.OK
    lines = capsys.readouterr().out
    assert "ranking/accuracy " in lines and "of 2" in lines and "layers that changed most" in lines
    assert call("eval", "run", "--diagnose", "heldout") == cli.USER_ERROR
    assert "no heldout data" in capsys.readouterr().err
    assert call("eval", "run", "--diagnose", "training", "--output", "found") == cli.USER_ERROR
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diagnose", "training"], "--diagnose needs FILE"),
        (["run.yaml", "--diagnose", "training", "--on", "pope"], "neither --on"),
        (["run.yaml", "--diagnose", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_user_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert call("eval", *arguments) == cli.USER_ERROR
    assert message in capsys.readouterr().err


def test_full_fine_tuning_is_held_against_the_model_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the aligned model would give a KL of 0 and no displacement."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    full = ["evaluation=null", "policy.lora=null", "training.learning_rate=1e-3"]
    assert call("train", "run.yaml", "training.steps=3", *full) == cli.OK
    capsys.readouterr()
    assert call("eval", "run", "--diagnose", "training", "--num", "4", "--json") == cli.OK
    said = json.loads(capsys.readouterr().out)
    assert said["metrics"]["displacement/margin"]["value"] > 0.1
    assert said["metrics"]["kl/k3"]["value"] > 0
    assert said["metrics"]["sparsity/float32"]["value"] < 1
    folders = sparsity.compare_folders(locate("tinyworld/text"), tmp_path / "run" / "model")
    assert sparsity.total(folders).share == said["metrics"]["sparsity/bfloat16"]["value"]
