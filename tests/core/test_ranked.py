"""Batches of ranked lists, paired or whole, and the tokens of the steps of a tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmalign.data.files import File
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.ranked import Ranked
from mmalign.run import DataSpec
from mmalign.selectors import Adjacent, AllPairs, BestAgainstRest
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch


@pytest.fixture(scope="module")
def policy() -> Policy:
    return TextPolicy(model="tinyworld/text", max_new_tokens=40).load()


def file(folder: Path, rows: list[dict[str, object]]) -> File:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return File(path=str(path))


def first(data: DataSpec, policy: Policy, **settings: object) -> Batch:
    spec = Ranked(data=data, shuffle=False, **settings)  # type: ignore[arg-type]
    return next(iter(spec.build(policy, seed=0)))


LISTS = [
    {"prompt": "compute 1 + 1", "completions": ["2", "3", "4"], "scores": [0.5, 1, 0.5]},
    {"prompt": "compute 1 + 2", "completions": ["answer 3", "answer 4"], "scores": [3, -1]},
]


def test_a_list_is_a_group_and_its_scores_are_rewards(tmp_path: Path, policy: Policy) -> None:
    batch = first(file(tmp_path, LISTS), policy)
    assert batch.group.tolist() == [0, 0, 0, 1, 1]
    assert batch.reward.tolist() == [0.5, 1, 0.5, 3, -1]
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 0, 1, 1]
    assert batch.trajectory.outputs == ["2", "3", "4", "answer 3", "answer 4"]
    assert batch.pairs is None and batch.step_of is None


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (None, {("3", "2"), ("3", "4"), ("answer 3", "answer 4")}),
        (AllPairs(min_margin=1), {("answer 3", "answer 4")}),
        (BestAgainstRest(), {("3", "2"), ("3", "4"), ("answer 3", "answer 4")}),
        (Adjacent(), {("3", "2"), ("3", "4"), ("answer 3", "answer 4")}),
    ],
)
def test_an_objective_of_pairs_takes_lists(
    tmp_path: Path, policy: Policy, selector: object, wanted: set[tuple[str, str]]
) -> None:
    """The better output of each pair first; a tie makes none."""
    batch = DPO().credit(first(file(tmp_path, LISTS), policy, selector=selector))
    assert batch.pairs is not None
    outputs = batch.trajectory.outputs
    assert {(outputs[w], outputs[r]) for w, r in batch.pairs.tolist()} == wanted
    assert batch.denominator == len(wanted) == len(batch.pairs)


def test_tokens_know_their_step(tmp_path: Path, policy: Policy) -> None:
    """A word is a token: "3 + 4 = 7 ," is step 0 of both branches (6 tokens), then come 6 tokens of
    step 1 and, of the first branch, "answer 5" and the end of the answer (3); of the second, whose
    steps are two, the rest is step 1.
    """
    branches = [
        ["3 + 4 = 7 ,", " 7 - 2 = 5 ,", " answer 5"],
        ["3 + 4 = 7 ,", " answer 7"],
    ]
    tree = {"prompt": "compute 3 + 4 - 2", "completions": branches, "scores": [1, 0]}
    batch = first(file(tmp_path, [tree]), policy)
    assert batch.step_of is not None and len(batch) == 2
    both = zip(batch.step_of, batch.trajectory.mask, strict=True)
    steps = [row[mask].tolist() for row, mask in both]
    assert steps == [[0] * 6 + [1] * 6 + [2] * 3, [0] * 6 + [1] * 3]
    assert batch.trajectory.outputs == ["".join(branch) for branch in branches]
    # The rows that only showed where steps end are gone, and rows keep their steps.
    assert batch.rows(batch.group.new_tensor([1])).step_of is not None


def test_it_goes_on_where_it_was_and_other_data_are_refused(policy: Policy) -> None:
    data = TinyWorld(task="arithmetic", size=5, seed=2)
    source = Ranked(data=data, batch_size=2).build(policy, seed=1)
    running = iter(source)
    next(running)
    saved = source.state_dict()
    wanted = next(running).trajectory.outputs
    again = Ranked(data=data, batch_size=2).build(policy, seed=1)
    again.load_state_dict(saved)
    assert next(iter(again)).trajectory.outputs == wanted


def test_data_without_lists_say_what_to_do(policy: Policy, tmp_path: Path) -> None:
    class Pairs:
        """Data of pairs alone."""

    with pytest.raises(ValueError, match="Pairs has no lists of scored outputs; use data of"):
        Ranked(data=Pairs()).build(policy, seed=0)  # type: ignore[arg-type]
