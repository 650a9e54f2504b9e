"""A failing reward is an error that names function, row and prompt; never a 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mmalign.rewards import judged
from mmalign.rewards.function import FunctionReward
from mmalign.rewards.text import LengthReward
from mmalign.types import Prompt

PROMPTS = [Prompt(content="one", meta={"answer": 1}), Prompt(content="two", meta={"answer": 2})]


def matches(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[int]) -> list[int]:
    return [int(c == str(a)) for c, a in zip(completions, answer, strict=True)]


def seen(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    assert list(prompts[0]) == [{"role": "user", "content": "one"}]
    assert completions[0] == [{"role": "assistant", "content": "1"}]
    assert columns == {}
    return [0.5]


def none(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
    return [1.0, None]


def nan(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    return [1.0, math.nan]


def short(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    return [1.0]


def broken(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    raise KeyError("scores")


def reward(function: Callable[..., Any], **settings: Any) -> FunctionReward:
    return FunctionReward(path=f"{__name__}:{function.__name__}", **settings)


def test_values_and_weight() -> None:
    """The first completion matches and the second does not; the weight is 2."""
    found = reward(matches, weight=2.0)(PROMPTS, ["1", "1"])
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0]))


def test_conversations_are_passed_as_trl_passes_them() -> None:
    prompt = Prompt(content=({"role": "user", "content": "one"},), meta={"answer": 1})
    assert reward(seen, columns=())([prompt], ["1"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (none, r"returned None for row 1 \(prompt 'two'\)"),
        (nan, r"returned nan for row 1 \(prompt 'two'\)"),
        (short, "returned 1 values for 2 completions"),
        (broken, "raised KeyError: 'scores'; .*first prompt is 'one'"),
    ],
)
def test_failure_is_an_error(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        judged(reward(function), PROMPTS, ["1", "1"])
    assert f"{__name__}:{function.__name__}" in str(caught.value)


def test_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"'gold'.* row 0 lacks; it has"):
        reward(matches, columns=("gold",))(PROMPTS, ["1", "1"])


@pytest.mark.parametrize("path", ["no_colon", "no.such.module:f", "math:no_such_function"])
def test_unknown_function(path: str) -> None:
    with pytest.raises(ValueError, match=path):
        FunctionReward(path=path)(PROMPTS, ["1", "1"])


def test_length() -> None:
    """Target 2: three words miss it by 1 of 2, two by none, none by 2 of 2."""
    values = LengthReward(target=2)([PROMPTS[0]] * 3, ["a b c", "a b", ""])
    torch.testing.assert_close(values, torch.tensor([-0.5, 0.0, -1.0]))
