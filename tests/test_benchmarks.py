"""The benchmark harness: when it refuses, what it counts, and one tiny cell with both sides."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="the benchmarks compare with trl (extra `test-peers`)")

from benchmarks import harness, measure, tables, text_dpo

MOVING = [0.7, 0.69, 0.66, 0.71]


def a_side(seconds: list[float], **further: object) -> dict[str, object]:
    """A side that needs 100 MB and takes as long on the wall as it computes."""
    return {
        "losses": MOVING, "units": 60.0, "seconds": seconds, "wall": seconds,
        "memory": 100 * 2**20, **further,
    }  # fmt: skip


def a_round(void: list[str], **sides: dict[str, object]) -> dict[str, object]:
    return {"sides": sides, "void": void, "limit_seconds": 0.5, "order": list(sides)}


def test_equal_traces_are_accepted():
    near = [x + 0.9e-5 for x in MOVING]
    assert harness.disagreement({"ours": MOVING, "other": near}, tolerance=1e-5) is None


@pytest.mark.parametrize(
    ("ours", "other", "why"),
    [
        (MOVING, [0.7, 0.69, 0.66, 0.71002], "differ by 2e-05"),
        (MOVING, [0.7, 0.69, 0.66, float("nan")], "differ by nan"),
        (MOVING, MOVING[:3], "made 3 steps"),
        (MOVING[:3], MOVING[:3], "4 steps are needed"),
        ([0.7, 0.7, 0.7001, 0.7], [0.7, 0.7, 0.7001, 0.7], "do not move"),
    ],
)
def test_other_mathematics_is_refused(ours, other, why):
    found = harness.disagreement({"ours": ours, "other": other}, tolerance=1e-5)
    assert found is not None and why in found


def test_large_losses_are_compared_relatively():
    """1000 against 1000.009 is 9e-6 of it."""
    losses = {"ours": [1000.0, 900.0, 800.0, 700.0], "other": [1000.009, 900.0, 800.0, 700.0]}
    assert harness.disagreement(losses, tolerance=1e-5) is None


def test_a_side_that_waited_is_busy():
    """Six seconds of work in 7.7 on the wall pass, in 7.9 they do not: 7.8 is 1.3 times 6."""
    busy = [
        harness.is_busy(a_side([3.0, 3.0], wall=[3.0, wall - 3.0]), device="cpu")
        for wall in (7.7, 7.9)
    ]
    assert busy == [False, True]
    assert not harness.is_busy(a_side([0.1], wall=[9.0]), device="cuda")


def test_ratios_are_taken_round_by_round():
    """Rates of ours 60, 30, 20 and of the other 10, 10, 10 a second: ratios 6, 3, 2.

    The limit of half a second is half of ours in the first round, and 1/12 of the other in all.
    """
    slow = a_side([5.0, 6.0, 99.0], memory=400 * 2**20)
    rounds = [a_round([], ours=a_side([s] * 3), other=slow) for s in (1.0, 2.0, 3.0)]
    found = harness.summary({"rounds": rounds, "allow_busy": False})
    assert found["other"]["ratio"] == pytest.approx([3.0, 2.0, 6.0])
    assert found["other"]["memory_ratio"] == pytest.approx([0.25, 0.25, 0.25])
    assert found["ours"]["rate"] == pytest.approx(30.0)
    assert found["ours"]["limit"] == pytest.approx(0.25)
    assert found["other"]["limit"] == pytest.approx(1 / 12)


def test_void_rounds_count_only_on_demand():
    rounds = [
        a_round([], ours=a_side([1.0]), other=a_side([2.0])),
        a_round(["other"], ours=a_side([1.0]), other=a_side([6.0])),
    ]
    assert harness.summary({"rounds": rounds, "allow_busy": False})["other"]["ratio"][0] == 2.0
    assert harness.summary({"rounds": rounds, "allow_busy": True})["other"]["ratio"][0] == 4.0
    assert harness.summary({"rounds": rounds[1:], "allow_busy": False}) == {}


def test_work_of_a_pair_by_hand():
    """Prompt 256, answers 64, 6 layers of 384 with 10.6 M parameters, V 32,000, one pair.

    Body 2 * 10.6 M * 384 = 8.15 G; attention 4 * 6 * 384 * (256^2 / 2 + 2 (64 * 256 + 64^2 / 2))
    = 0.64 G; head 2 * 384 * 32,000 * 128 = 3.15 G. With policy and reference four times as much.
    """
    settings = {**text_dpo.CELL.cases["256/64"], "batch": 1}
    body, head = text_dpo.work(settings)
    parameters = 6 * (4 * 384**2 + 3 * 384 * 1024)
    attention = 4 * 6 * 384 * (256**2 / 2 + 2 * (64 * 256 + 64**2 / 2))
    assert body.flops == pytest.approx(4 * (2 * parameters * 384 + attention))
    assert head.flops == pytest.approx(4 * 2 * 384 * 32_000 * 128)
    assert body.flops + head.flops == pytest.approx(4 * 11.94e9, rel=1e-3)
    seconds = measure.limit_seconds([body, head], {"body": 1e9, "head": 2e9})
    assert seconds == pytest.approx(body.flops / 1e9 + head.flops / 2e9)


def test_the_first_step_is_not_timed():
    clock = measure.Clock(units=3)
    for loss in (0.5, 0.4, 0.3):
        clock.tick(torch.tensor(loss))
    found = clock.measured()
    assert found.losses == pytest.approx((0.5, 0.4, 0.3))
    assert len(found.seconds) == len(found.wall) == 2 and found.units == 3


def test_memory_is_counted_over_the_baseline():
    """A tensor of 64 MiB lives only while the second step runs."""
    clock = measure.Clock(units=1)
    clock.tick()
    before = clock.peak
    block = torch.ones(16, 2**20)
    clock.tick(block.sum())
    del block
    clock.tick()
    assert clock.measured().memory >= clock.peak - clock.baseline
    assert clock.peak >= before and clock.peak - clock.baseline >= 48 * 2**20


def in_this_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Sides run here, as their own processes would run them: importing TRL takes seconds."""

    def child(cell, side, settings, prepared):
        target = folder / "measured.json"
        given = {**settings, "folder": prepared, "scratch": str(folder / side)}
        arguments = ["--side", side, "--settings", json.dumps(given), "--json", str(target)]
        harness.main(cell, arguments)
        return json.loads(target.read_text())

    monkeypatch.setattr(harness, "_child", child)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The result of a tiny cell, both sides and the limit; rounds are never void here."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch, folder)
        settings = {**text_dpo.CELL.cases["64/128"], "sides": ["mmalign", "TRL"]}
        patch.setitem(text_dpo.CELL.cases, "64/128", settings)
        target = folder / "text_dpo.json"
        options = ["--quick", "--allow-busy", "--rounds", "1", "--steps", "4", "--case", "64/128"]
        harness.main(text_dpo.CELL, [*options, "--output", str(target)])
    return json.loads(target.read_text())


def test_both_sides_do_the_same_mathematics(quick):
    sides = quick["cases"]["64/128"]["rounds"][0]["sides"]
    assert list(sides) == ["mmalign", "TRL"]
    traces = {name: side["losses"] for name, side in sides.items()}
    assert harness.disagreement(traces, tolerance=1e-5) is None
    assert all(len(side["seconds"]) == 4 for side in sides.values())
    # Two pairs of a prompt of 12 and two answers of 6.
    assert sides["mmalign"]["units"] == sides["TRL"]["units"] == 2 * (12 + 2 * 6)


def test_a_side_that_trains_otherwise_gets_no_ratio(monkeypatch, tmp_path, capsys):
    """Another beta: the losses of the second side differ, and the run ends with an error."""

    def side(cell, side, settings, folder):
        if side == harness.LIMIT:
            return {"peaks": {}, "limit_seconds": None}
        return a_side([1.0], losses=[x * (1.0 if side == "mmalign" else 1.1) for x in MOVING])

    monkeypatch.setattr(harness, "_child", side)
    target = tmp_path / "result.json"
    options = ["--quick", "--rounds", "2", "--case", "64/128", "--output", str(target)]
    with pytest.raises(SystemExit, match="1"):
        harness.main(text_dpo.CELL, options)
    printed = capsys.readouterr()
    assert "no ratio" in printed.out and "| 64/128 |" not in printed.out
    assert str(MOVING) in printed.err
    assert len(json.loads(target.read_text())["cases"]["64/128"]["rounds"]) == 1


def test_the_table_names_every_side_and_the_ratio(quick):
    table = tables.markdown(quick)
    rows = [line for line in table.splitlines() if line.startswith("| 64/128 |")]
    assert len(rows) == 2 and "mmalign" in rows[0] and "TRL" in rows[1]
    ratio = quick["cases"]["64/128"]["summary"]["TRL"]["ratio"][0]
    assert f"{ratio:.2f} (" in rows[1] and f"{ratio:.2f} (" not in rows[0]


def test_the_table_says_what_was_void_and_what_refused():
    rounds = [a_round(["other"], ours=a_side([1.0]), other=a_side([2.0]))]
    case = {"rounds": rounds, "settings": {"steps": 5}, "allow_busy": False}
    result = {
        "title": "T", "unit": "tokens",
        "machine": {"name": "2 cores", "device": "cpu", "threads": 1, "dtype": "float32",
                    "versions": {}},
        "cases": {"a": {**case, "summary": {}}, "b": {**case, "summary": {}, "why": "of this"}},
    }  # fmt: skip
    text = tables.markdown(result)
    void = "1 round of 5 timed steps, 1 waited for the machine and not counted; no ratio"
    assert f"* a: {void}, every round was void." in text
    assert f"* b: {void}, of this." in text


def test_cases_of_the_same_machine_are_kept(tmp_path):
    target = tmp_path / "result.json"
    machine = {"name": "2 cores", "threads": 1}
    empty = harness._so_far(text_dpo.CELL, machine, target)
    assert empty["cases"] == {}
    target.write_text(json.dumps({**empty, "cases": {"a": 1}}))
    assert harness._so_far(text_dpo.CELL, machine, target)["cases"] == {"a": 1}
    other = {**machine, "threads": 2}
    assert harness._so_far(text_dpo.CELL, other, target)["cases"] == {}


def test_tables_are_put_between_their_markers():
    page = "x\n<!-- results:a:start -->\nold\n<!-- results:a:end -->\ny\n"
    assert tables.refreshed(page, {"a": "new", "b": "no"}) == page.replace("old", "new")


def test_a_side_is_a_fresh_process(tmp_path):
    """The real child: the limit of a tiny case, measured by a process that imports no trainer."""
    settings = {**text_dpo.CELL.cases["64/128"], **text_dpo.CELL.quick}
    settings |= {"threads": 1, "device": "cpu", "dtype": "float32", "steps": 4, "quick": True}
    found = harness._child(text_dpo.CELL, harness.LIMIT, settings, str(tmp_path))
    assert found["limit_seconds"] > 0 and set(found["peaks"]) == {"body", "head"}
