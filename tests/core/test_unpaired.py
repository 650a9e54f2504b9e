"""Labelled outputs: their source, files of them, and runs of the objectives that couple a batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import offline, tensors_of, trace, training

from mmalign.data.files import File
from mmalign.data.several import Several
from mmalign.objectives import AOT, BCO, KTO, AOTUnpaired, BCOUnpaired, LatentEM
from mmalign.policy import Policy
from mmalign.protocols import Objective
from mmalign.run import Run
from mmalign.sources import Mixed, Preferences
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.unpaired import FromPairs, Unpaired, labels_of

DATA = TinyWorld(task="arithmetic", size=5, seed=4)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return TextPolicy(model="tinyworld/text", max_new_tokens=40).load()


def test_rows_carry_their_labels(policy: Policy) -> None:
    """The tiny world's rows: right and wrong answers in turn."""
    source = Unpaired(data=DATA, batch_size=4, shuffle=False).build(policy, seed=0)
    batch = next(iter(source))
    assert batch.label is not None and batch.pairs is None
    assert batch.label.tolist() == [True, False, True, False]
    assert batch.reward.tolist() == [1.0, 0.0, 1.0, 0.0]
    pairs = DATA.preferences()
    wanted = [pairs[0].chosen, pairs[1].rejected, pairs[2].chosen, pairs[3].rejected]
    assert batch.trajectory.outputs == wanted
    assert (source.desirable, source.undesirable) == (3, 2)


def test_a_mismatched_row_has_the_output_of_the_row_before(policy: Policy) -> None:
    """The first row's is the last one's. Each stands beside its prompt's own output."""
    spec = Unpaired(data=DATA, batch_size=4, shuffle=False, mismatched=True)
    batch = next(iter(spec.build(policy, seed=0)))
    outputs = batch.trajectory.outputs
    assert outputs[1::2] == [outputs[6], *outputs[0:6:2]]
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.group.tolist() == batch.trajectory.prompt_of.tolist()
    assert batch.reward[1::2].isnan().all() and not batch.reward[::2].isnan().any()


def test_sides_of_pairs_are_never_mismatched_with_each_other(policy: Policy) -> None:
    """Unshuffled, a pair's sides are neighbours; the row before both is of another prompt."""
    spec = Unpaired(data=DATA, rows="pairs", batch_size=6, shuffle=False, mismatched=True)
    source = spec.build(policy, seed=0)
    batch = next(iter(source))
    assert batch.label is not None
    assert batch.label[::2].tolist() == [True, False] * 3
    p = DATA.preferences()
    matched = [o for pair in p[:3] for o in (pair.chosen, pair.rejected)]
    assert batch.trajectory.outputs[::2] == matched
    before = [p[2].rejected, p[2].rejected, p[0].rejected, p[0].rejected, p[1].rejected]
    assert batch.trajectory.outputs[1::2] == [*before, p[1].rejected]
    assert (source.desirable, source.undesirable) == (5, 5)
    assert len(FromPairs(p)) == 10 and FromPairs(p)[-1].completion == p[4].rejected


def test_processes_share_one_global_batch(policy: Policy) -> None:
    """Two processes take every second place; a row's mismatch is that of the whole batch."""
    spec = Unpaired(data=DATA, batch_size=5, mismatched=True)
    source = spec.build(policy, seed=0)
    everything = source.order.next()
    whole = source.batch_of(everything, range(5)).trajectory.outputs
    parts = [source.batch_of(everything, range(start, 5, 2)).trajectory.outputs for start in (0, 1)]
    for start, part in enumerate(parts):
        wanted = [whole[2 * place + side] for place in range(start, 5, 2) for side in (0, 1)]
        assert part == wanted


def test_it_goes_on_where_it_was(policy: Policy) -> None:
    """Five rows in batches of two: the fifth shares its batch with the next epoch's first."""
    source = Unpaired(data=DATA, batch_size=2, mismatched=True).build(policy, seed=0)
    batches = iter(source)
    first = [next(batches).trajectory.outputs[::2] for _ in range(2)]
    state = json.loads(json.dumps(source.state_dict()))
    wanted = [next(batches).trajectory.outputs for _ in range(4)]
    restored = Unpaired(data=DATA, batch_size=2, mismatched=True).build(policy, seed=0)
    restored.load_state_dict(state)
    found = iter(restored)
    assert [next(found).trajectory.outputs for _ in range(4)] == wanted
    epoch = [o for outputs in first for o in outputs] + [wanted[0][0]]
    assert sorted(map(str, epoch)) == sorted(str(row.completion) for row in DATA.unpaired())


def test_what_cannot_be_mismatched(policy: Policy) -> None:
    with pytest.raises(ValueError, match="batch_size=1"):
        Unpaired(data=DATA, batch_size=1, mismatched=True).build(policy, seed=0)
    one = TinyWorld(task="arithmetic", size=1)
    source = Unpaired(data=one, rows="pairs", batch_size=2, mismatched=True).build(policy, seed=0)
    with pytest.raises(ValueError, match="all 2 rows of a batch ask the same"):
        next(iter(source))


def written(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> File:
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return File(path=str(path), **settings)


ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2", "completion": "4", "label": True, "task": "sum"},
    {"prompt": "2 + 3", "completion": "4", "label": 0, "task": "sum"},
    {"prompt": "2 + 4", "completion": [{"role": "assistant", "content": "6"}], "label": 1},
]


def test_a_file_of_labelled_outputs(tmp_path: Path) -> None:
    data = written(tmp_path, ROWS).unpaired()
    found = [(row.prompt.content, row.completion, row.label) for row in data]
    assert found == [("2 + 2", "4", True), ("2 + 3", "4", False), ("2 + 4", "6", True)]
    assert data[0].prompt.meta["task"] == "sum"
    assert labels_of(data) == [True, False, True]
    twice = Several(parts=(written(tmp_path, ROWS), DATA)).unpaired()
    assert labels_of(twice) == [True, False, True, True, False, True, False, True]


def test_labels_by_another_name(tmp_path: Path) -> None:
    rows = [{"prompt": "2 + 2", "text": "4", "good": False}]
    data = written(tmp_path, rows, columns={"completion": "text", "label": "good"}).unpaired()
    assert (data[0].completion, data[0].label) == ("4", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "'label' is missing or null"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "true .desirable. or false"),
        ({"prompt": "a", "completion": "b", "label": 2}, "not 2"),
        ({"prompt": "a", "completion": " ", "label": True}, "'completion' is empty"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"labelled.jsonl.*2.*{message}"):
        written(tmp_path, [ROWS[0], row]).unpaired()


def test_data_without_labels_says_what_to_do(policy: Policy) -> None:
    class Pairs:
        def preferences(self) -> Any:
            return DATA.preferences()

        def prompts(self) -> Any:
            return DATA.prompts()

        def demonstrations(self) -> Any:
            return DATA.demonstrations()

    with pytest.raises(ValueError, match="rows: pairs"):
        Unpaired(data=Pairs()).build(policy, seed=0)
    assert len(Unpaired(data=Pairs(), rows="pairs").build(policy, seed=0).data) == 10
    with pytest.raises(ValueError, match=r"parts\[1\], Pairs"):
        Several(parts=(DATA, Pairs())).unpaired()


def coupled_run(objective: Objective, model: str, output: Path) -> Run:
    run = replace(offline(model, output, batch_size=6), objective=objective)
    if isinstance(objective, KTO):
        spec = Unpaired(data=TinyWorld(task="arithmetic", size=6), batch_size=6, mismatched=True)
        run = replace(run, source=spec)
    return run


EVERY = [
    AOT(beta=0.5), AOTUnpaired(beta=0.5), BCO(beta=0.5), KTO(beta=0.5), BCOUnpaired(beta=0.5),
]  # fmt: skip


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__)
def test_microbatches_change_no_run(objective: Objective, model: str, tmp_path: Path) -> None:
    """Three updates with pieces of 1, 4 or all rows: the same weights and metrics.

    The second update starts from a policy that has left its reference, so that the statistic of the
    batch is none of any piece.
    """
    found = {}
    for rows in (None, 1, 4):
        run = training(
            coupled_run(objective, model, tmp_path / f"{rows}"), rows_per_microbatch=rows
        )
        trainer = run.build()
        trainer.train()
        found[rows] = tensors_of(trainer), trace(run.output)
    weights, lines = found[None]
    landmark = {AOT: 1.0, AOTUnpaired: 1.0, BCO: 2.0, BCOUnpaired: 1.0}.get(type(objective))
    expected = 0.5 if landmark is None else landmark * math.log(2)
    assert lines[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert abs(lines[1]["loss"] - expected) > 1e-3
    for rows in (1, 4):
        for name, value in found[rows][0].items():
            torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=2e-5)
        for line, other in zip(found[rows][1], lines, strict=True):
            assert line == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_credit_asks_the_policy_once(model: str, tmp_path: Path) -> None:
    """One forward without gradient for the statistic, whatever the number of updates; DPO none."""
    for objective, updates, wanted in ((KTO(), 1, 1), (KTO(), 2, 1), (AOT(), 1, 1)):
        run = coupled_run(objective, model, tmp_path / "run")
        trainer = training(run, updates_per_batch=updates).build()
        seen: list[bool] = []
        trainer.policy.scorer.register_forward_pre_hook(
            lambda *_, seen=seen: seen.append(torch.is_grad_enabled())
        )
        batch = trainer.credited(next(iter(trainer.source)))
        assert seen == [False] * wanted
        assert batch.behaviour is not None and not batch.reward.isnan().any()


def test_an_odd_balance_is_said_when_a_run_is_built(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Six rows, half of them desirable; twice their weight is too much."""
    coupled_run(KTO(), model, tmp_path / "run").build()
    assert "weigh" not in caplog.text
    coupled_run(KTO(desirable_weight=2.0), model, tmp_path / "run").build()
    assert "3 desirable and 3 undesirable outputs weigh 6 to 3" in caplog.text


@pytest.mark.parametrize("objective", [KTO(beta=0.5), LatentEM()], ids=["kto", "latent_em"])
def test_a_stopped_run_goes_on(objective: Objective, model: str, tmp_path: Path) -> None:
    """Two updates a batch, stopped in the middle of one: the same weights and memory in the end."""

    def made(folder: str) -> Run:
        run = coupled_run(objective, model, tmp_path / folder)
        return training(run, updates_per_batch=2, steps=4, checkpoint_every=1)

    whole = made("whole").build()
    whole.train()
    first = made("stopped").build()
    core_parts.stop_after(first, 3)
    with pytest.raises(Exception, match="--resume"):
        first.train()
    second = made("stopped").build()
    second.train(resume=True)
    assert core_parts.same(tensors_of(second), tensors_of(whole))
    assert second.progress.memory == whole.progress.memory
    if isinstance(objective, LatentEM):
        assert whole.progress.memory["0"] != 0.9


def test_annotators_come_from_a_column(policy: Policy, tmp_path: Path) -> None:
    """One number a name, the same for both sides; a pair without one is an error."""
    rows = [
        {"prompt": f"2 + {i}", "chosen": f"{2 + i}", "rejected": "no", "by": by}
        for i, by in enumerate(("Ann", "Bob", "Ann"))
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = Preferences(data=File(path=str(path)), batch_size=3, shuffle=False, annotator="by")
    found = next(iter(spec.build(policy, seed=0))).annotator
    assert found is not None
    ann, bob = found[0], found[2]
    assert found.tolist() == [ann, ann, bob, bob, ann, ann] and ann != bob
    unnamed = next(iter(replace(spec, annotator=None).build(policy, seed=0)))
    assert unnamed.annotator is None
    with pytest.raises(ValueError, match=r"no 'who'.*only \['by'\]"):
        next(iter(replace(spec, annotator="who").build(policy, seed=0)))
    mixed = Mixed(parts=(spec, replace(spec, annotator=None)))
    with pytest.raises(ValueError, match="or all parts the same"):
        next(iter(mixed.build(policy, seed=0)))
