import json

import pytest

from mmalign.claims import Claim, Comparison, judge, record_of, run_claim, table

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
