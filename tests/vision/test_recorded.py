"""Recorded reference scores of a vision-language model: the pictures are part of a row's id."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign import lora
from mmalign.fingerprints import row_keys
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.references import LoRAOff, NetworkReference, Recorded, RecordedReference
from mmalign.types import Prompt, Trajectory
from tests.vision.lvlm_models import adapter_of, generators, llava, qwen2_vl
from tests.vision.test_lvlm import asked, picture

ANSWERS = [["one", "two three four"], ["yes", "no"]]
TARGETS = r".*language_model.*(q|k|v|o)_proj"


def policy_of(make: Any) -> Policy:
    torch.manual_seed(0)
    model, processor = make()
    lora.attach(model, LoRA(rank=2, alpha=2), targets=TARGETS)
    return Policy(adapter=adapter_of(model, processor), model=model)


def encode(policy: Policy, prompts: list[Prompt]) -> Trajectory:
    return policy.adapter.encode(prompts, ANSWERS, generators=generators(len(prompts)))


def recorded(policy: Policy, folder: Path) -> tuple[RecordedReference, list[int]]:
    """The reference, and the rows it really computes."""
    reference = Recorded(folder=str(folder)).build(policy)
    inner = reference.inner
    assert isinstance(inner, NetworkReference)
    scores, rows = inner.scores, []

    def counting(trajectory: Trajectory) -> torch.Tensor:
        rows.append(len(trajectory))
        return scores(trajectory)

    inner.scores = counting  # type: ignore[method-assign]
    return reference, rows


@pytest.mark.parametrize("make", [llava, qwen2_vl])
def test_every_row_is_computed_once(make: Any, tmp_path: Path) -> None:
    """Two rows of each of two pictures; then one row more, of a picture never seen before."""
    prompts = [asked("what is there ?", "red"), asked("what is there ?", "green")]
    policy = policy_of(make)
    rows = encode(policy, prompts)
    first, computed = recorded(policy, tmp_path)
    live = LoRAOff().build(policy_of(make)).scores(rows)
    torch.testing.assert_close(first.scores(rows), live)
    torch.testing.assert_close(first.scores(rows.rows(torch.tensor([3, 1]))), live[[3, 1]])
    assert computed == [4]
    first.close()
    again, computed = recorded(policy_of(make), tmp_path)
    assert torch.equal(again.scores(rows), first.scores(rows)) and computed == []
    changed = encode(policy, [prompts[0], asked("what is there ?", "blue")])
    again.scores(changed)
    assert computed == [2]


@pytest.mark.parametrize("make", [llava, qwen2_vl])
def test_a_picture_and_its_processing_are_part_of_the_key(make: Any) -> None:
    """One pixel, another scale of the pixels, the place of the picture among others."""
    policy = policy_of(make)
    prompts = [asked("what is there ?", "red", "green"), asked("what is there ?", "green", "red")]
    plain = row_keys(encode(policy, prompts))
    assert len(set(plain)) == 4 and row_keys(encode(policy, prompts)) == plain
    spotted = picture("red")
    spotted.putpixel((3, 3), (254, 1, 1))
    other = Prompt(content=prompts[0].content, images=(spotted, prompts[0].images[1]))
    found = row_keys(encode(policy, [other, prompts[1]]))
    assert found[2:] == plain[2:] and not set(found[:2]) & set(plain)
    policy.adapter.processor.image_processor.image_mean = [0.1, 0.2, 0.3]  # type: ignore[attr-defined]
    assert not set(row_keys(encode(policy, prompts))) & set(plain)
