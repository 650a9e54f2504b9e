import json
from dataclasses import replace

import pytest

from mmalign import registry
from mmalign.claims import Claim, Comparison, judge, record_of, run_claim, table
from mmalign.commands.reproducing import find
from mmalign.commands.targets import load_run
from mmalign.objectives import OBJECTIVES
from mmalign.protocols import Composed
from mmalign.tinyworld.claims import path_zoo, zoo, zoo_pictures

UP = Comparison(metric="accuracy", arm="new", over="old")


def run_of(new, old):
    return {"new": {"accuracy": new}, "old": {"accuracy": old}}


def test_difference_and_interval_by_hand():
    """Differences 1, 0, 1, 0, 1, 1: mean 4/6, sample variance 6/5 * 4/6 * 2/6 = 0.266667,
    half width 1.959964 * sqrt(0.266667 / 6) = 0.413197."""
    verdict = judge(UP, [run_of([1, 0, 1], [0, 0, 0]), run_of([0, 1, 1], [0, 0, 0])])
    assert verdict.difference == pytest.approx(4 / 6)
    assert verdict.high - verdict.difference == pytest.approx(0.413197, abs=1e-6)
    assert verdict.by_seed == pytest.approx((2 / 3, 2 / 3))
    assert verdict.holds


def test_equal_arms_hold_for_nothing_but_being_kept():
    runs = [run_of([1, 0, 1, 0], [1, 0, 1, 0])]
    assert judge(UP, runs).difference == 0.0
    assert not judge(UP, runs).holds
    assert not judge(Comparison(metric="accuracy", arm="new", over="old", sign="lower"), runs).holds
    kept = Comparison(metric="accuracy", arm="new", over="old", sign="kept", margin=0.02)
    assert judge(kept, runs).holds


def test_one_seed_of_the_wrong_sign_is_enough_to_fail():
    good, bad = run_of([1] * 50, [0] * 50), run_of([0] * 10, [0.1] * 10)
    assert judge(UP, [good]).holds
    verdict = judge(UP, [good, bad])
    assert verdict.low > 0
    assert not verdict.holds


def test_a_loss_beyond_the_margin_is_not_kept():
    kept = Comparison(metric="accuracy", arm="new", over="old", sign="kept", margin=0.05)
    assert not judge(kept, [run_of([0.9] * 9, [1.0] * 9)]).holds
    assert judge(kept, [run_of([0.96] * 9, [1.0] * 9)]).holds


def test_a_number_takes_the_place_of_the_other_arm():
    """Values 0.25 and 0.75 over 0.4: mean 0.1, and both directions of it lie within 0.65 of it:
    variance 0.125, half width 1.959964 * sqrt(0.125 / 2) = 0.489991."""
    runs = [{"new": {"rate": [0.25, 0.75]}}]
    within = Comparison(metric="rate", arm="new", over=0.4, sign="within", margin=0.6)
    verdict = judge(within, runs)
    assert verdict.difference == pytest.approx(0.1)
    assert verdict.high == pytest.approx(0.589991, abs=1e-6)
    assert verdict.holds
    assert not judge(replace(within, margin=0.58), runs).holds
    assert str(within) == "rate: new within 0.6 of 0.4"


def test_one_number_a_seed_has_no_interval_and_every_seed_decides():
    found = Comparison(metric="rate", arm="new", over=0.2, sign="within", margin=0.05)
    runs = [{"new": {"rate": [rate]}} for rate in (0.21, 0.16, 0.24)]
    verdict = judge(found, runs)
    assert (verdict.low, verdict.high) == (None, None)
    assert verdict.by_seed == pytest.approx((0.01, -0.04, 0.04))
    assert verdict.holds
    assert not judge(found, [*runs, {"new": {"rate": [0.26]}}]).holds
    assert not judge(found, [*runs, {"new": {"rate": [0.14]}}]).holds
    higher = Comparison(metric="rate", arm="new", over=0.2)
    assert not judge(higher, runs).holds
    assert judge(higher, runs[::2]).holds


def test_a_metric_of_some_arms_is_a_column_with_gaps():
    runs = [{"new": {"accuracy": [1.0, 0.0], "rate": [0.21]}, "old": {"accuracy": [0.0, 0.0]}}]
    rate = Comparison(metric="rate", arm="new", over=0.2, sign="within", margin=0.05)
    claim = Claim(
        statement="New.", source="none", run=lambda folder, seed: runs[0], comparisons=[UP, rate]
    )
    record = record_of(claim, runs)
    assert record["prompts"] == {"accuracy": 2, "rate": 1}
    shown = table(json.loads(json.dumps(record))).splitlines()
    assert "| old | 0.000 |  |" in shown
    assert "| rate: new within 0.05 of 0.2 | +0.010 | +0.010 | yes |" in shown


def test_unequal_prompts_and_missing_arms_are_errors():
    with pytest.raises(ValueError, match="2 and 3 prompts"):
        judge(UP, [run_of([1, 0], [1, 0, 1])])
    with pytest.raises(ValueError, match="measured for 'old'"):
        judge(UP, [{"new": {"accuracy": [1]}}])


def test_a_seed_that_is_there_is_not_run_again(tmp_path):
    ran = []

    def run(folder, seed):
        ran.append(seed)
        assert folder.is_dir()
        return run_of([1.0, 1.0, 0.0], [0.0, 0.0, seed / 10])

    claim = Claim(statement="New is better.", source="none", run=run, comparisons=[UP], seeds=2)
    run_claim(claim, tmp_path, [0, 1])
    runs = run_claim(claim, tmp_path, [0, 1, 2])
    assert ran == [0, 1, 2]
    record = json.loads(json.dumps(record_of(claim, runs)))
    assert record["arms"]["old"]["accuracy"] == [0.0, 0.0333, 0.0667]
    assert "| new | 0.667 |" in table(record)


def test_every_objective_is_tried_in_a_claim():
    tried = {name for claim in registry.CLAIMS for name in find(claim).objectives}
    assert tried == set(registry.OBJECTIVES)


def trained_objectives(config, changes):
    objective = load_run(config, changes).objective
    inner = objective.inner if isinstance(objective, Composed) else ()
    return {type(objective), *map(type, inner)}


@pytest.mark.parametrize("name", list(zoo.ARMS))
def test_an_arm_of_text_trains_what_it_is_called(name):
    arm = zoo.ARMS[name]
    changes = [*arm.changes, f"{arm.data}.seed=3"]
    assert OBJECTIVES[name] in trained_objectives(arm.config, changes)


@pytest.mark.parametrize("name", list(zoo_pictures.ARMS))
def test_an_arm_of_pictures_trains_what_it_is_called(name):
    arm = zoo_pictures.ARMS[name]
    assert OBJECTIVES[arm.objective] in trained_objectives(arm.config, arm.changes)
    assert name.endswith(f", {arm.objective}")


@pytest.mark.parametrize("name", list(path_zoo.ARMS))
def test_an_arm_of_paths_trains_what_it_says_and_draws_like_its_start(name):
    """A group of one picture has one start, shared or not, and what is scored changes no draw."""
    arm = path_zoo.ARMS[name]
    run = load_run(arm.config, path_zoo.changes_of(arm))
    assert OBJECTIVES[arm.objective] is type(run.objective)
    drawn = load_run(*path_zoo.STARTS[arm.before]).policy
    assert replace(run.policy, shared_start=drawn.shared_start) == drawn
