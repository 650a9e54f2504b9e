"""The builder end to end on the shipped model, and on rows that cannot be used."""

import json
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from PIL import Image

from mmalign import config
from mmalign.data import File
from mmalign.data.building import construct
from mmalign.locate import configs
from mmalign.tinyworld.tokenizer import CHAT_TEMPLATE
from mmalign.types import Prompt
from mmalign.vision.completing import Decoding, complete
from mmalign.vision.mia import MIADPO
from mmalign.vision.mia.attention import look
from mmalign.vision.mia.checks import check_fit
from mmalign.vision.mia.composing import Formats
from mmalign.vision.mia.selection import region_share
from mmalign.vision.mia.wording import Wording
from tests.vision.lvlm_models import FAMILIES

SHIPPED = configs() / "vision" / "data" / "mia_dpo.yaml"
TINY = Wording(
    name="picture {number}",
    label="",
    after="",
    question="in {name} {question}",
    refusal="there are {count} pictures",
    numbers=("one", "two", "three", "four", "five"),
)


PUBLISHED = ["temperature=0.0", "selection.max_length_ratio=3.0", "selection.min_perplexity=1.1"]


def shipped(*overrides: str) -> MIADPO:
    """The shipped words and formats with the default decoding and filters."""
    return config.load_builder("mia-dpo", SHIPPED, ["data.size=48", *PUBLISHED, *overrides])


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Rows given in the test."""

    rows: tuple

    def demonstrations(self):
        return self.rows

    def prompts(self):
        return [prompt for prompt, _ in self.rows]

    def preferences(self):
        return []


def told(candidate) -> tuple:
    """Everything that a candidate says, its pictures by their pixels."""
    pair = candidate.preference
    return (
        candidate.row,
        candidate.dropped,
        pair.prompt.content,
        [image.tobytes() for image in pair.prompt.images],
        pair.chosen,
        pair.rejected,
        dict(pair.meta),
    )


@pytest.fixture(scope="module")
def whole():
    """All candidates of 48 rows."""
    return list(shipped().prepare(seed=5).candidates())


def test_every_row_once_and_good_pairs(whole):
    assert [found.row for found in whole] == list(range(48))
    kept = [found for found in whole if found.dropped is None]
    assert len(kept) >= 8
    for found in kept:
        pair, meta = found.preference, found.preference.meta
        assert pair.chosen != pair.rejected != ""
        assert meta["builder"] == "mia-dpo" and meta["row"] == found.row
        assert meta["perplexity"] > 1.1
        assert len(meta["companions"]) == meta["count"] - 1
        assert found.row not in meta["companions"]
        pictures = meta["count"] if meta["format"] == "sequence" else 1
        assert len(pair.prompt.images) == len(meta["attention"]) == pictures
        assert {len(grid) for grid in meta["attention"]} == {2}
        if not meta["refusal"]:
            below = meta["attention_share"] <= meta["threshold"]
            assert below and 1 <= meta["target"] <= meta["count"]
            # The exact judge of the tiny world agrees that the right answer is the chosen one.
            assert pair.chosen == meta["answer"] if "answer" in meta else True
    assert {found.preference.meta["format"] for found in kept} == {"sequence", "collage"}


def test_rows_depend_on_seed_and_number_alone(whole):
    """Going on in the middle of a batch, and batches of another size, give the same rows."""
    late = list(shipped().prepare(seed=5).candidates(21))
    assert [told(c) for c in late] == [told(c) for c in whole[21:]]
    small = shipped("batch_size=3").prepare(seed=5).candidates()
    for one, other in zip(islice(small, 12), whole, strict=False):
        close, expected = told(one), told(other)
        assert close[:-1] == expected[:-1]
        assert close[-1]["companions"] == expected[-1]["companions"]
    other_seed = shipped().prepare(seed=6).candidates()
    differs = [
        told(a)[2:4] != told(b)[2:4] for a, b in zip(islice(other_seed, 6), whole, strict=False)
    ]
    assert sum(differs) >= 5


def test_sampled_answers_depend_on_seed_and_number_alone(whole):
    """At temperature 1, as the tiny world's settings have it: other answers, each row its own."""
    drawn = list(islice(shipped("temperature=1.0").prepare(seed=5).candidates(), 24))
    late = shipped("temperature=1.0", "batch_size=5").prepare(seed=5).candidates(13)
    assert [told(c)[:-1] for c in islice(late, 11)] == [told(c)[:-1] for c in drawn[13:]]
    answers = [
        (a.preference.rejected, b.preference.rejected) for a, b in zip(drawn, whole, strict=False)
    ]
    assert sum(a != b for a, b in answers) >= 3


def test_attention_is_that_of_the_pictures_which_were_answered(whole):
    """With noise where there was noise; the clean pictures of the pair give another share."""
    made = shipped().prepare(seed=5)
    row = next(
        c.row
        for c in whole
        if c.dropped is None
        and c.preference.meta["format"] == "collage"
        and not c.preference.meta["refusal"]
    )
    composed, meta = made._composed(row, made._asked(row), 0)
    expected = whole[row].preference.meta
    assert all(expected[key] == value for key, value in meta.items())
    greedy = Decoding(temperature=0.0, max_new_tokens=24)
    (answer,) = complete(
        made.policy, [composed.seen], decoding=greedy, generators=[torch.Generator()]
    )
    assert answer.text == whole[row].preference.rejected
    shares = []
    for prompt in (composed.seen, composed.prompt):
        seen = look(made.policy, prompt, answer.tokens, depth=0.5)
        (picture,) = seen.pictures
        shares.append(region_share(seen.on(picture), picture, composed.region))
    assert shares[0] == pytest.approx(expected["attention_share"], abs=1e-5)
    assert abs(shares[1] - shares[0]) > 1e-3


def test_refusals(whole):
    """The shipped settings refuse in each 50th row; here each fourth."""
    found = list(islice(shipped("formats.refusal_every=4").prepare(seed=5).candidates(), 16))
    refusals = [c for c in found if c.preference.meta.get("refusal")]
    assert [c.row for c in refusals] == [3, 7, 11, 15]
    for candidate in refusals:
        meta, pair = candidate.preference.meta, candidate.preference
        assert meta["target"] == meta["count"] + 1
        assert pair.chosen == f"there are {TINY.number(meta['count'])} pictures"
        assert "answer" not in meta and "answer" not in pair.prompt.meta
        if candidate.dropped is None:
            assert meta["threshold"] is None and meta["attention_share"] is None
    assert any(c.dropped is None for c in refusals)


def test_modes_and_attempts(whole):
    """ "random" keeps what "attention" keeps, and what it dropped for where the model looked."""
    anyhow = list(shipped("selection.mode=random").prepare(seed=5).candidates())
    by_attention = {c.row: c.dropped for c in whole}
    looked = "looked at the right picture"
    assert looked in by_attention.values()
    for candidate in anyhow:
        if by_attention[candidate.row] != looked:
            assert candidate.dropped == by_attention[candidate.row]
        else:
            assert candidate.dropped != looked
    more = list(shipped("attempts=3").prepare(seed=5).candidates())
    assert sum(c.dropped is None for c in more) > sum(c.dropped is None for c in whole)
    for one, many in zip(whole, more, strict=True):
        if one.dropped is None:
            assert told(one) == told(many)
    assert {c.preference.meta["attempt"] for c in more if c.dropped is None} == {0, 1, 2}


def test_file_round_trip(tmp_path):
    """What is written is read back as preferences, attention maps and all."""
    path = tmp_path / "pairs.jsonl"
    counts = construct(shipped("data.size=16"), path, seed=5, settings="a")
    assert counts.total() == 16 and counts["kept"] > 2
    pairs = File(path=str(path)).preferences()
    assert len(pairs) == counts["kept"]
    for pair in pairs:
        rows = [len(one) for one in pair.prompt.meta["attention"]]
        assert rows == [2] * len(pair.prompt.images)
        assert json.dumps(dict(pair.prompt.meta))


def test_rows_that_cannot_be_used():
    picture = Image.new("RGB", (32, 32), "red")
    others = tuple(
        (Prompt(content="what is there ?", images=(Image.new("RGB", (32, 32), (v, 9, 9)),)), "one")
        for v in range(4)
    )
    rows = (
        *others,
        (Prompt(content="what is there ?", images=()), "one"),
        (Prompt(content="in picture two , what ?", images=(picture,)), "one"),
        (Prompt(content="what is there ?", images=(picture,)), "one " * 300),
        (Prompt(content="where ?", images=(picture,)), "[0.10, 0.20, 0.30, 0.40]"),
    )
    builder = replace(
        shipped("formats.sequence=0"),
        data=Written(rows=rows),
        wording=replace(TINY, taken=("in p",)),
    )
    found = list(builder.prepare(seed=0).candidates())
    assert [c.dropped for c in found[4:]] == [
        "not one picture",
        "question names a picture",
        "right answer too long",
        "coordinates of a box",
    ]
    alone = replace(builder, data=Written(rows=rows[:1])).prepare(seed=0)
    assert [c.dropped for c in alone.candidates()] == ["too few other pictures"]
    column = replace(builder, same_column="source").prepare(seed=0)
    with pytest.raises(ValueError, match="no column 'source'"):
        list(column.candidates())


def test_words_the_model_does_not_know():
    _, processor = FAMILIES["llava"]()
    formats = Formats(inset=0.0, sequence_counts={2: 1}, collage_counts={2: 1})
    with pytest.raises(ValueError, match="does not know all words of 'Image1:'"):
        check_fit(processor, formats, Wording())
    check_fit(processor, formats, TINY)
    with pytest.raises(ValueError, match="names 5 numbers, and 6 is needed"):
        check_fit(processor, replace(formats, sequence_counts={5: 1}), TINY)
    with pytest.raises(ValueError, match="does not know all words of 'In the picture in the mid"):
        check_fit(processor, replace(formats, inset=1.0), TINY)


def test_a_template_that_moves_pictures_is_refused():
    """As LLaVA-1.5's: all pictures first, then all words."""
    _, processor = FAMILIES["llava"]()
    formats = Formats(inset=0.0, sequence_counts={2: 1}, collage_counts={2: 1})
    labelled = replace(TINY, label="{name}")
    check_fit(processor, formats, labelled)
    processor.chat_template = """\
{%- for message in messages -%}
{%- for part in message['content'] if part['type'] == 'image' -%}<image> {% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }} {% endfor -%}
{%- endfor -%}"""
    with pytest.raises(ValueError, match="does not keep pictures where they stand"):
        check_fit(processor, formats, labelled)
    check_fit(processor, formats, TINY)
    check_fit(processor, replace(formats, sequence=0.0), labelled)
    assert processor.chat_template != CHAT_TEMPLATE


@pytest.mark.parametrize(
    "override", ["attempts=0", "batch_size=0", "max_new_tokens=0", "map_size=-1"]
)
def test_senseless_settings_are_refused(override):
    with pytest.raises(ValueError, match=override.split("=")[0]):
        shipped(override)
