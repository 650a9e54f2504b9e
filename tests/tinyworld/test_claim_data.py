"""What the experiments about text are fed with."""

import json
import math

import pytest

from mmalign.tinyworld.arithmetic import check, parse_problem
from mmalign.tinyworld.claims import chosen_likelihood, modpo, overoptimisation, trees
from mmalign.tinyworld.data import TaskJudge
from mmalign.tinyworld.tasks import TASKS


def test_area_below_a_front_by_hand():
    """(0.9, 0.2), (0.5, 0.6) and (0.1, 0.8): 0.9 * 0.2 + 0.5 * 0.4 + 0.1 * 0.2 = 0.40; (0.4, 0.5)
    is reached by (0.5, 0.6) in both scores and adds nothing."""
    front = [(0.1, 0.8), (0.9, 0.2), (0.5, 0.6)]
    assert modpo.area(front) == pytest.approx(0.40)
    assert modpo.area([*front, (0.4, 0.5)]) == pytest.approx(0.40)
    assert modpo.area([(1.0, 1.0)]) == 1.0


def test_each_annotator_prefers_what_it_wants():
    """Where one side has what an annotator wants and the other has not, it is preferred with
    sigmoid(3) = 0.953; where neither or both have, with 1/2: right against wrong sums, of three
    kinds of pairs the one that the first annotator does not care about."""
    sure = 1 / (1 + math.exp(-modpo.SCALE))
    for brevity in (1.0, 0.0):
        pairs = modpo.judged_pairs(3, brevity=brevity)
        judge, found = TaskJudge(), {True: [], False: []}
        for pair in pairs:
            exact = pair.meta["chosen_exact"] / modpo.SCALE
            assert exact == judge([pair.prompt], [pair.chosen])[0]
            brief = len(str(pair.chosen).split()) == 2, len(str(pair.rejected).split()) == 2
            wants = brief if brevity else (pair.meta["chosen_exact"], pair.meta["rejected_exact"])
            found[wants[0] != wants[1]].append(bool(wants[0]))
        assert sum(found[True]) / len(found[True]) == pytest.approx(sure, abs=0.02)
        assert len(found[False]) / len(pairs) == pytest.approx(1 / 3, abs=0.04)


def test_the_share_of_an_annotator_changes_labels_alone():
    one, other = modpo.judged_pairs(3, brevity=0.2), modpo.judged_pairs(3, brevity=0.8)
    for a, b in zip(one, other, strict=True):
        assert {a.chosen, a.rejected} == {b.chosen, b.rejected}
    assert [a.chosen for a in one] != [b.chosen for b in other]


def test_branches_leave_the_right_one_and_are_worth_what_was_right_before():
    """ "3 + 4 - 2" has two steps and an answer: the branches that go wrong at once are worth 0,
    those that go wrong at the second step 1/3."""
    problem = parse_problem("3 + 4 - 2")
    found = trees.tree(problem, trees.python_random("test"))
    assert found[0] == (["3 + 4 = 7 ,", " 7 - 2 = 5 ,", " answer 5"], 1.0)
    assert [value for _, value in found[1:]] == pytest.approx([0, 0, 1 / 3, 1 / 3])
    for steps, value in found:
        judged = check(problem, "".join(steps))
        assert judged.well_formed
        assert (judged.steps_correct + judged.answer_correct) / 3 == pytest.approx(value)
    assert all(steps[0] == "3 + 4 = 7 ," for steps, value in found[1:] if value > 0)
    assert len({"".join(steps) for steps, _ in found}) == 5


def test_a_file_of_trees_is_read_as_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "TREES", 5)
    trees.write_trees(tmp_path / "trees.jsonl", 3)
    rows = [json.loads(line) for line in (tmp_path / "trees.jsonl").read_text().splitlines()]
    prompts = TASKS["arithmetic"].prompts(split="train", size=5, seed=3)
    assert [row["prompt"] for row in rows] == [prompt.content for prompt in prompts]
    assert all(max(row["scores"]) == 1.0 and len(row["scores"]) >= 5 for row in rows)


def test_a_run_is_stopped_before_the_indicator_falls():
    """Of 1, 0.999, 0.9995, 0.9969, 0.99 the fourth is the first more than 0.002 below the highest;
    what falls and comes back later is not asked, and what never falls ends at the last place."""
    assert overoptimisation.before_the_fall([1, 0.999, 0.9995, 0.9969, 0.99], drop=0.002) == 2
    assert overoptimisation.before_the_fall([0.9, 0.8, 1.0], drop=0.002) == 0
    assert overoptimisation.before_the_fall([0.9, 0.95, 0.949], drop=0.002) == 2


def test_pairs_one_number_apart_differ_in_one_result():
    drawn = TASKS["arithmetic"].preferences(size=50, seed=3)
    for old, pair in zip(drawn, chosen_likelihood.one_number_apart(drawn, seed=3), strict=True):
        assert pair.chosen == old.chosen
        right, wrong = str(pair.chosen).split(), str(pair.rejected).split()
        places = [i for i, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b]
        assert len(places) == 1
        assert right[places[0] - 1] == "="
        assert 0 <= int(wrong[places[0]]) <= 20
