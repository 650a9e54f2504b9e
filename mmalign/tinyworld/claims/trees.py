"""Trees of reasoning: all of their branches, or the best against the worst one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from mmalign.claims import Claim, Comparison
from mmalign.rng import python_random
from mmalign.tinyworld.arithmetic import MAX_SLIP, MAX_VALUE, Problem, parse_problem, results
from mmalign.tinyworld.claims.common import EXACT, GRADED, aligned, judged_exactly, start, trained
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Prompt

CONFIG, TASK = "text/tpo_tree", "arithmetic"
TREES, HELDOUT = 2000, 800
BRANCHES = 2
"""Wrong continuations at every step of the right branch."""
PAIRWISE = "dpo, best over worst"
ARMS = {
    PAIRWISE: ["objective={type: dpo, beta: 0.1}", "source.selector={type: best_worst}"],
    "tpo_tree": ["objective.beta=0.5"],
}
"""Each at the better of two betas."""
SETTINGS = ("training.steps=40", "source.batch_size=8", "training.learning_rate=1e-3")


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Sums worked out after as many updates on the same trees, as pairs and as trees."""
    file = folder / "trees.jsonl"
    if not file.exists():
        write_trees(file, seed)
    arms = {"before": judged_exactly(start(CONFIG), TASK, size=HELDOUT, seed=seed)}
    for number, (name, changes) in enumerate(ARMS.items()):
        output = trained(
            CONFIG,
            folder / f"run-{number}",
            seed=seed,
            overrides=[f"source.data={{type: file, path: {file}}}", *SETTINGS, *changes],
        )
        arms[name] = judged_exactly(aligned(output), TASK, size=HELDOUT, seed=seed)
    return arms


def write_trees(path: Path, seed: int) -> None:
    """A tree for each of `TREES` training sums, its branches cut into steps."""
    draw = python_random("trees", seed)
    prompts = TASKS[TASK].prompts(split="train", size=TREES, seed=seed)
    lines = [json.dumps(_row(prompt, draw)) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _row(prompt: Prompt, draw: Random) -> dict[str, object]:
    """The branches in any order; a branch is worth the share of its steps that are right."""
    problem = parse_problem(prompt.meta["problem"])
    branches = tree(problem, draw)
    draw.shuffle(branches)
    steps = [steps for steps, _ in branches]
    return {"prompt": prompt.content, "completions": steps, "scores": [v for _, v in branches]}


def tree(problem: Problem, draw: Random) -> list[tuple[list[str], float]]:
    """The right branch, and those that leave it at a step and work on from a wrong number.

    Returns:
        The steps of each branch and its value: the share of steps before it goes wrong, of 1 for
        the right one; the answer is the last step.
    """
    true = results(problem)
    found = [(_steps(problem, true), 1.0)]
    for step in range(len(true)):
        slips = [
            slip
            for slip in range(-MAX_SLIP, MAX_SLIP + 1)
            if slip and all(0 <= value + slip <= MAX_VALUE for value in true[step:])
        ]
        for slip in draw.sample(slips, min(BRANCHES, len(slips))):
            values = (*true[:step], *(value + slip for value in true[step:]))
            found.append((_steps(problem, values), step / (len(true) + 1)))
    return found


def _steps(problem: Problem, values: Sequence[int]) -> list[str]:
    lefts = (problem.operands[0], *values)
    written = [
        f"{left} {operator} {operand} = {value} ,"
        for left, operator, operand, value in zip(
            lefts[:-1], problem.operators, problem.operands[1:], values, strict=True
        )
    ]
    parts = [*written, f"answer {values[-1]}"]
    return [parts[0], *(f" {part}" for part in parts[1:])]


CLAIM = Claim(
    statement=(
        "Given trees of reasoning, learning from all branches and their values is right more often "
        "after as many updates than DPO on the best and the worst branch of each."
    ),
    source="2410.12854",
    notes=(
        "Both sides were tried at rates of 5e-4 and 1e-3 and a beta of 0.1, and at the second with "
        "a beta of 0.5 (one seed, 300 sums): DPO was right in 0.837, 0.903 and 0.890 of them, "
        "tpo_tree in 0.760, 0.753 and 0.900. At the low beta tpo_tree left the best branch as "
        "likely as before or less so: it pushes down every branch that goes wrong late, which is "
        "the best one up to there. Equal weights in place of LambdaRank's (0.810 at 5e-4) were a "
        "remedy too; the adaptive step factor was none (0.710)."
    ),
    run=run,
    objectives=("dpo", "tpo_tree"),
    comparisons=tuple(
        Comparison(metric=metric, arm="tpo_tree", over=PAIRWISE) for metric in (EXACT, GRADED)
    ),
    seeds=3,
)
