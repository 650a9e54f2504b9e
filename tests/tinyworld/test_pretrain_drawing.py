"""The pre-training recipes' own logic: the loop, the cards, and what the text tower is taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmalign.tinyworld.language import Mention
from mmalign.tinyworld.pretrain import common, reading
from mmalign.tinyworld.requirements import Requirement


def test_the_loop_reaches_the_minimum_of_a_parabola() -> None:
    weight = nn.Parameter(torch.tensor(4.0))
    done = common.fit(
        [weight], lambda _: (weight - 1) ** 2, name="x", steps=300, learning_rate=0.1, warmup=10
    )
    assert done.steps == 300
    assert weight.item() == pytest.approx(1.0, abs=0.05)


def test_the_loop_keeps_its_time_budget() -> None:
    """With the time up at once, one step is taken: the rate of the second would be 0."""
    weight = nn.Parameter(torch.tensor(4.0))
    done = common.fit(
        [weight], lambda _: weight**2, name="x", steps=300, learning_rate=0.1, seconds=1e-9
    )
    assert done.steps == 1


def test_the_loop_stops_at_a_loss_that_is_no_number() -> None:
    weight = nn.Parameter(torch.tensor(4.0))
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        common.fit([weight], lambda _: weight * float("nan"), name="x", steps=3, learning_rate=0.1)


def test_a_card_states_its_facts(tmp_path: Path) -> None:
    common.write_card(
        tmp_path,
        title="a model",
        summary="For tests.",
        facts={"seed": 3, "judge": 0.61234},
        library="diffusers",
        pipeline_tag="text-to-image",
    )
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "| judge | 0.6123 |" in card
    assert json.loads((tmp_path / "pretraining.json").read_text()) == {"seed": 3, "judge": 0.61234}


def test_prompts_are_begun_ended_and_padded() -> None:
    """As a CLIP text encoder wants them: the first end token is where the pooled state is read."""
    tokenizer = reading.prompt_tokenizer()
    row = reading.token_ids(tokenizer, ["a red circle"])[0].tolist()
    assert row[0] == tokenizer.bos_token_id
    assert row[4:] == [tokenizer.pad_token_id] * (reading.MAX_TOKENS - 4)
    assert tokenizer.decode(row[1:4]) == "a red circle"


def test_labels_stand_at_the_last_word_of_each_phrase() -> None:
    """ "<bos> a red circle and a small blue square at the top left": words 3 and 12.

    Classes count from 0 in the order (1, 2, 3, 4) for the number, and with "not said" first for the
    rest: size (None, small, large), colour (None, red, green, blue, yellow) and so on.
    """
    requirement = Requirement(
        category="two",
        mentions=(
            Mention(colour="red", shape="circle"),
            Mention(size="small", colour="blue", shape="square", place="top left"),
        ),
    )
    labels = reading._labels(requirement)
    assert (labels[:, 0] != -100).nonzero().flatten().tolist() == [3, 12]
    assert labels[3].tolist() == [0, 0, 1, 1, 0]
    assert labels[12].tolist() == [0, 1, 3, 2, 1]
    said = {reading.OCCURRING[i] for i in reading._occurs(requirement).nonzero().flatten()}
    assert said == {"small", "red", "blue", "circle", "square", "top left"}
