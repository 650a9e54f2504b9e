"""Sums written out step by step, with a check of every step.

"compute 3 + 4 - 2" is solved as "3 + 4 = 7 , 7 - 2 = 5 , answer 5". Every number, in between
and at the end, stays within 0 to 20, so each is one word of the language.
"""

import random
from dataclasses import dataclass

MAX_OPERAND = 9
MAX_VALUE = 20
OPERATORS = ("+", "-")
MAX_SLIP = 3


def _apply(left: int, operator: str, right: int) -> int:
    return left + right if operator == "+" else left - right


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A sum evaluated from left to right.

    Args:
        operands: two or more numbers, each in 0 to 9.
        operators: "+" or "-" between them, one fewer than operands.

    Raises:
        ValueError: wrong lengths, unknown operator, or a number outside its range.
    """

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.operators or len(self.operands) != len(self.operators) + 1:
            raise ValueError("a problem needs one operator between every two operands")
        if any(operator not in OPERATORS for operator in self.operators):
            raise ValueError(f"operators must be + or -; got {self.operators}")
        if any(not 0 <= operand <= MAX_OPERAND for operand in self.operands):
            raise ValueError(f"operands must lie in 0 to {MAX_OPERAND}; got {self.operands}")
        if any(not 0 <= value <= MAX_VALUE for value in results(self)):
            raise ValueError(f"every result must lie in 0 to {MAX_VALUE}; got {results(self)}")

    @property
    def expression(self) -> str:
        """The sum as text, "3 + 4 - 2"."""
        words = [str(self.operands[0])]
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            words += [operator, str(operand)]
        return " ".join(words)

    @property
    def text(self) -> str:
        """The task as text, "compute 3 + 4 - 2"."""
        return "compute " + self.expression


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCheck:
    """What a written solution got right.

    Args:
        steps_correct: steps that are exactly the true ones, at their position.
        steps_total: steps the problem needs.
        answer_correct: the text ends in "answer" and the true result.
        well_formed: the right number of steps, each of the form "x + y = z", and an answer.
        first_error: index of the first step that is not the true one, None when all are true.
    """

    steps_correct: int
    steps_total: int
    answer_correct: bool
    well_formed: bool
    first_error: int | None


def results(problem: Problem) -> tuple[int, ...]:
    """The result of every step; the last is the answer."""
    value, values = problem.operands[0], []
    for operator, operand in zip(problem.operators, problem.operands[1:], strict=True):
        value = _apply(value, operator, operand)
        values.append(value)
    return tuple(values)


def parse_problem(expression: str) -> Problem:
    """Read a problem from its expression, with or without "compute" in front.

    Raises:
        ValueError: the text is not a sum of this world.
    """
    words = expression.removeprefix("compute ").split()
    operands, operators = words[0::2], tuple(words[1::2])
    if not operands or not all(word.isascii() and word.isdigit() for word in operands):
        raise ValueError(f"not a sum such as '3 + 4 - 2': {expression!r}")
    return Problem(operands=tuple(int(word) for word in operands), operators=operators)


def generate(rng: random.Random) -> Problem:
    """Draw a problem of two or three operations, uniform over the valid ones of each length."""
    num_operations = rng.randint(2, 3)
    while True:
        operands = tuple(rng.randint(0, MAX_OPERAND) for _ in range(num_operations + 1))
        operators = tuple(rng.choice(OPERATORS) for _ in range(num_operations))
        value, inside = operands[0], True
        for operator, operand in zip(operators, operands[1:], strict=True):
            value = _apply(value, operator, operand)
            inside = inside and 0 <= value <= MAX_VALUE
        if inside:
            return Problem(operands=operands, operators=operators)


def _write(problem: Problem, values: tuple[int, ...]) -> str:
    """Write a solution out of stated results, each step starting from the one before."""
    parts, left = [], problem.operands[0]
    for operator, operand, value in zip(
        problem.operators, problem.operands[1:], values, strict=True
    ):
        parts.append(f"{left} {operator} {operand} = {value}")
        left = value
    return " , ".join([*parts, f"answer {left}"])


def solution(problem: Problem) -> str:
    """Write the true solution, "3 + 4 = 7 , 7 - 2 = 5 , answer 5"."""
    return _write(problem, results(problem))


def wrong_solution(problem: Problem, rng: random.Random) -> str:
    """Write a solution with one wrong step, carried through to a wrong answer.

    Args:
        problem: the problem.
        rng: picks the step and how far off it is (1 to 3), among the slips that keep every
            later number within range.

    Returns:
        The text; its steps before the wrong one are true, and its answer is wrong.
    """
    true = results(problem)
    choices = []
    for step in range(len(true)):
        for slip in range(-MAX_SLIP, MAX_SLIP + 1):
            values = tuple(v + slip if i >= step else v for i, v in enumerate(true))
            if slip and all(0 <= value <= MAX_VALUE for value in values):
                choices.append(values)
    return _write(problem, rng.choice(choices))


def _is_step(words: list[str]) -> bool:
    shaped = len(words) == 5 and words[1] in OPERATORS and words[3] == "="
    return shaped and all(words[i].isascii() and words[i].isdigit() for i in (0, 2, 4))


def _is_answer(words: list[str]) -> bool:
    return len(words) == 2 and words[0] == "answer" and words[1].isascii() and words[1].isdigit()


def check(problem: Problem, text: str) -> StepCheck:
    """Check a written solution step by step.

    A step counts only when it is exactly the true step at that position: a step that computes
    correctly from an earlier wrong result is wrong too.

    Args:
        problem: the problem.
        text: any string.

    Returns:
        What was right.
    """
    true = [part.split() for part in solution(problem).split(",")]
    said = [part.split() for part in text.split(",")]
    total = len(problem.operators)
    steps = said[:-1] if _is_answer(said[-1]) else said
    right = [i < len(steps) and steps[i] == true[i] for i in range(total)]
    return StepCheck(
        steps_correct=sum(right),
        steps_total=total,
        answer_correct=said[-1] == true[-1],
        well_formed=len(said) == total + 1
        and all(_is_step(words) for words in said[:-1])
        and _is_answer(said[-1]),
        first_error=right.index(False) if False in right else None,
    )
