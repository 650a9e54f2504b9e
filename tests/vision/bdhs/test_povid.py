"""The likeliest token at every place of the right answer, under noise."""

import pytest
import torch

from mmalign import rng
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Prompt
from mmalign.vision.bdhs import POVID
from mmalign.vision.bdhs.povid import NAME, distorted
from mmalign.vision.corruption import with_noise
from mmalign.vision.lvlm_policy import LVLMPolicy
from tests.vision.lvlm_models import FAMILIES, adapter_of
from tests.vision.test_lvlm import asked

RIGHT = ["a small red circle at the top left", "two squares", "a large blue square and a circle ."]


@torch.no_grad()
def longhand(policy: Policy, prompt: Prompt, right: str, key: tuple[rng.Key, ...]) -> str:
    """A forward pass for every place, with the right words before it."""
    adapter, model = policy.adapter, policy.model
    static = adapter.static_of([prompt])
    pixels = with_noise(static["per_image"][0], 500, generator=rng.generator(*key))
    row = static["prompt_ids"][0].tolist()
    found = []
    for token in adapter.tokenizer(right, add_special_tokens=False)["input_ids"]:
        inputs = {"input_ids": torch.tensor([row]), **pixels}
        for name, value in static["per_token"][0].items():
            inputs[name] = torch.nn.functional.pad(value, (0, len(row) - len(value)))[None]
        logits = model(**inputs, attention_mask=torch.ones(1, len(row))).logits[0, -1]
        logits[[*adapter.sampling.banned, *adapter.sampling.stop_ids]] = float("-inf")
        found.append(int(logits.argmax()))
        row.append(token)
    return adapter.tokenizer.decode(found, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_follows_the_right_words_before_it(family: str) -> None:
    """Ragged rows side by side, against one forward pass for each word; as long as they were."""
    torch.manual_seed(3)
    model, processor = FAMILIES[family]()
    policy = Policy(adapter=adapter_of(model, processor), model=model)
    prompts = [asked("describe the picture", c) for c in ("red", "blue", "green")]
    keys = [(1, NAME, row) for row in range(3)]
    found = distorted(policy, list(zip(prompts, RIGHT, strict=True)), steps=500, keys=keys)
    expected = [longhand(policy, *row) for row in zip(prompts, RIGHT, keys, strict=True)]
    assert found == expected
    assert distorted(policy, [], steps=500, keys=[]) == []


def test_the_builder_accounts_for_every_row() -> None:
    """What noise does not change is dropped; a late start changes nothing."""
    builder = POVID(
        data=TinyWorld(task="describe", size=10, seed=1),
        policy=LVLMPolicy(max_new_tokens=48),
        rows_at_a_time=4,
    )
    construction = builder.prepare(seed=0)
    whole = list(construction.candidates())
    assert [candidate.row for candidate in whole] == list(range(10))
    reasons = {candidate.dropped for candidate in whole}
    assert reasons == {None, "no difference"}
    for candidate in whole:
        pair = candidate.preference
        assert len(pair.rejected.split()) == len(pair.chosen.split())
        assert (pair.rejected == pair.chosen) == (candidate.dropped is not None)
    late = list(construction.candidates(5))
    assert [c.preference.rejected for c in late] == [c.preference.rejected for c in whole[5:]]
    with pytest.raises(ValueError, match="noise_steps must be at least 1"):
        POVID(data=builder.data, noise_steps=0)
