"""Signs of over-optimisation in a run: measured on its batches, said once, refused elsewhere."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_parts import offline, trace, training

from mmalign.concentration_watch import ENTROPY, MASS, TOP_K, ConcentrationWatch
from mmalign.log import RunFolder
from mmalign.types import Scores


def test_every_other_update_is_measured(model: str, tmp_path: Path) -> None:
    """Before updates 1 and 3, whatever is logged; nothing else of the run changes.

    The first figures are means over the outputs of means over their steps, here 8 outputs in pieces
    of 2; entropies of renormalised probabilities q turn into ``-sum p log2 p`` with p = mass q.
    """
    plain = training(offline(model, tmp_path / "plain"), rows_per_microbatch=2)
    watched = training(replace(plain, output=str(tmp_path / "run")), watch_concentration=2)
    first = watched.build()
    batch = first.credited(next(iter(first.source)))
    scores = first.policy.scores(batch.trajectory, want=TOP_K)
    mask, mass = batch.trajectory.mask, scores.top_k_mass
    bits = mass * (scores.top_k_entropy - mass.log()) / torch.tensor(2.0).log()
    plain.train()
    watched.train()
    lines = trace(watched.output)
    assert [line["step"] for line in lines if MASS in line] == [1, 3]
    for name, values in ((MASS, mass), (ENTROPY, bits)):
        each = torch.stack([v[m].mean() for v, m in zip(values, mask, strict=True)])
        assert lines[0][name] == pytest.approx(each.mean().item(), rel=1e-5)
        assert lines[0][name] != lines[2][name]
    rest = [{k: v for k, v in x.items() if not k.startswith("top_k")} for x in lines]
    assert rest == trace(plain.output)


def test_a_measurement_is_written_though_nothing_is_logged(model: str, tmp_path: Path) -> None:
    """log_every 100 keeps the last line alone, and the measured first one."""
    run = training(offline(model, tmp_path / "run"), log_every=100, watch_concentration=10)
    run.train()
    assert [line["step"] for line in trace(run.output)] == [1, 3]


def test_a_turn_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Entropy falls thrice from its height at step 21, in the end by a fifth; mass only rises."""
    folder, watch = RunFolder(tmp_path), ConcentrationWatch(10, likelihood="exact")
    heard = []
    with caplog.at_level(logging.WARNING):
        for number, bits in enumerate((1.9, 1.95, 2.0, 1.9, 1.8, 1.6, 1.2)):
            line = {"step": 10 * number + 1, MASS: 0.8 + number / 50, ENTROPY: bits}
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n" + json.dumps({"step": 10 * number + 2}) + "\n")
            watch.warn(folder)
            heard.append(len(caplog.records))
    assert heard == [0, 0, 0, 0, 0, 1, 1]
    assert "top-k entropy has fallen from 2 at step 21 to 1.6" in caplog.text


def test_where_there_are_no_symbols(model: str, tmp_path: Path) -> None:
    """Bounds are refused when the run is built, Gaussian steps when the first is scored."""
    with pytest.raises(ValueError, match=r"choose none .a denoiser's"):
        ConcentrationWatch(1, likelihood="bound")
    with pytest.raises(ValueError, match="watch_concentration=0 must be at least 1"):
        ConcentrationWatch(0, likelihood="exact")
    trainer = offline(model, tmp_path / "run").build()
    batch = trainer.credited(next(iter(trainer.source)))
    gaussian = Scores(log_probs=torch.zeros(batch.trajectory.mask.shape))
    watch = ConcentrationWatch(1, likelihood="exact")
    with pytest.raises(ValueError, match="remove the setting"):
        watch.metrics(gaussian, batch, 0)
    assert ConcentrationWatch(None, likelihood="bound").metrics(gaussian, batch, 0) == {}
