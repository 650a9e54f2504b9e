"""Layouts of public data sets: rows as their publishers write them, malformed ones, and back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.data import File, write_preferences, write_samples
from mmalign.data.formats import FORMATS, FormatName, detect
from mmalign.data.formats.lvlm import ASPECTS
from mmalign.types import Preference

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def turns(*said: str) -> list[dict[str, str]]:
    """ShareGPT's turns, human first."""
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(said)]


def messages(*said: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def rated(response: str, *ratings: str) -> dict[str, Any]:
    return {
        "annotations": {
            aspect: {"Rating": rating, "Rationale": "Because."}
            for aspect, rating in zip(ASPECTS, ratings, strict=True)
        },
        "model": f"model of {response}",
        "response": response,
    }


RLAIF_V = {
    "ds_name": "RLAIF-V",
    "image": "red.png",
    "question": "Which colour?",
    "chosen": "Red.",
    "rejected": "Blue.",
    "origin_dataset": "COCO",
    "origin_split": '{"model": "llava15_7b", "labeler": "llava16_34b", "type": "detailed"}',
    "idx": 0,
    "image_path": "RLAIF-V-Dataset_0.jpg",
}
RLHF_V = {
    "ds_name": "RLHF-V",
    "image": "red.png",
    "text": json.dumps({"question": "Which colour?", "chosen": "Red.", "rejected": "Blue."}),
    "origin_dataset": "COCO",
    "origin_split": '{"model": "Muffin", "type": "question answering"}',
    "idx": 0,
    "image_path": "llava1.5-7b/0.jpg",
}
VLFEEDBACK = {
    "id": "svit-detail-0",
    "prompt": "Which colour?",
    "models": ["a", "b", "c"],
    "completions": [
        rated("Green.", "2", "5", "2"),
        rated("Red.", "5", "5", "4"),
        rated("Blue.", "1", "5", "1"),
    ],
    "img_path": "red.png",
}
POVID = {
    "id": "COCO_train2014_000000353952",
    "image": "./red.png",
    "conversations": turns("<image>\nWhich colour?", "Red."),
    "rejected_conversations": turns("<image>\nWhich colour?", "Blue."),
}
LLAVA = {
    "id": "000000033471",
    "image": "red.png",
    "conversations": turns("<image>\nWhich colour?", "Red.", "And the sky?", "Grey."),
}
FACTORY_SHAREGPT = {
    "conversations": turns("<image>Which colour?"),
    "chosen": {"from": "gpt", "value": "Red."},
    "rejected": {"from": "gpt", "value": "Blue."},
    "images": ["red.png"],
}
FACTORY_OPENAI = {
    "messages": messages("<image>Which colour?"),
    "chosen": {"role": "assistant", "content": "Red."},
    "rejected": {"role": "assistant", "content": "Blue."},
    "images": ["red.png"],
}
FACTORY_ALPACA = {
    "instruction": "<image>Which colour?",
    "input": "",
    "chosen": "Red.",
    "rejected": "Blue.",
    "images": ["red.png"],
}
SWIFT = {
    "messages": messages("<image>Which colour?", "Red."),
    "rejected_response": "Blue.",
    "images": ["red.png"],
}
SWIFT_MESSAGES = {
    "messages": messages("<image>Which colour?", "Red."),
    "images": ["red.png"],
    "rejected_messages": messages("<image>Which colour?", "Blue."),
    "rejected_images": ["red.png"],
}
PICK_A_PIC = {
    "are_different": True,
    "best_image_uid": "a",
    "caption": "red",
    "has_label": True,
    "label_0": 1.0,
    "label_1": 0.0,
    "model_0": "x",
    "num_example_per_prompt": 2,
    "jpg_0": "red.png",
    "jpg_1": "blue.png",
}
HPD_TRAIN = {
    "prompt": "red",
    "file_path": ["blue.png", "red.png"],
    "human_preference": [0, 1],
    "user_hash": "u",
}
HPD_TEST = {
    "prompt": "red",
    "image_path": ["green.png", "blue.png", "red.png"],
    "rank": [1, 2, 0],
    "raw_annotations": [{"rank": [1, 2, 0], "user_hash": "u"}],
}
IMAGE_REWARD = {
    "prompt": "red",
    "generations": ["green.png", "red.png", "blue.png"],
    "ranking": [2, 1, 3],
}
PICTURES: list[tuple[FormatName, dict[str, Any]]] = [
    ("pick_a_pic", PICK_A_PIC),
    ("hpd_v2", HPD_TRAIN),
    ("hpd_v2", HPD_TEST),
    ("image_reward", IMAGE_REWARD),
]
PREFERENCES: list[tuple[FormatName, dict[str, Any]]] = [
    ("rlaif_v", RLAIF_V),
    ("rlhf_v", RLHF_V),
    ("vlfeedback", VLFEEDBACK),
    ("povid", POVID),
    ("llama_factory", FACTORY_SHAREGPT),
    ("llama_factory", FACTORY_OPENAI),
    ("llama_factory", FACTORY_ALPACA),
    ("ms_swift", SWIFT),
    ("ms_swift", SWIFT_MESSAGES),
]
DEMONSTRATIONS: list[tuple[FormatName, dict[str, Any]]] = [
    ("llava", LLAVA),
    (
        "llama_factory",
        {"conversations": turns("<image>Which colour?", "Red."), "images": ["red.png"]},
    ),
    (
        "llama_factory",
        {"instruction": "<image>Which", "input": "colour?", "output": "Red.", "images": "red.png"},
    ),
    ("ms_swift", {"messages": messages("<image>Which colour?", "Red."), "images": ["red.png"]}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    return tmp_path


def file_of(folder: Path, *rows: Mapping[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(content: Any) -> str:
    """What a prompt's last message says, a picture as ``[]``; bare text follows its picture."""
    if isinstance(content, str):
        return f"[]{content}"
    parts = content[-1]["content"]
    return "".join("[]" if part["type"] == "image" else part["text"] for part in parts)


def equal(first: Preference, second: Preference) -> bool:
    """Whether two records say the same, pictures pixel by pixel."""

    def plain(one: Preference) -> tuple[Any, ...]:
        pixels = [image.tobytes() for image in one.prompt.images]
        return (one.prompt.content, pixels, one.chosen, one.rejected, one.margin, dict(one.meta))

    return json.dumps(plain(first), default=repr) == json.dumps(plain(second), default=repr)


# ---- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "row"), PREFERENCES + DEMONSTRATIONS)
def test_columns_tell_the_layout(name: FormatName, row: dict[str, Any]) -> None:
    assert detect(row) == name


@pytest.mark.parametrize(("name", "row"), PREFERENCES)
def test_preferences(folder: Path, name: FormatName, row: dict[str, Any]) -> None:
    """Every publisher says the same here: asked for the colour of a red picture, Red over Blue."""
    (found,) = File(path=file_of(folder, row), format=name).preferences()
    assert asked(found.prompt.content) == "[]Which colour?"
    assert found.prompt.images[0].getpixel((0, 0)) == RED
    assert (found.chosen, found.rejected, found.rejected_prompt) == ("Red.", "Blue.", None)


@pytest.mark.parametrize(("name", "row"), PREFERENCES)
def test_round_trip(folder: Path, name: FormatName, row: dict[str, Any]) -> None:
    """What is written is read back in our own layout, whatever further columns it has."""
    first = File(path=file_of(folder, row), format=name).preferences()
    write_preferences(folder / "again.jsonl", first)
    again = File(path=str(folder / "again.jsonl")).preferences()
    assert [equal(a, b) for a, b in zip(first, again, strict=True)] == [True]


@pytest.mark.parametrize(("name", "row"), DEMONSTRATIONS)
def test_demonstrations(folder: Path, name: FormatName, row: dict[str, Any]) -> None:
    settings = File(path=file_of(folder, row), format=name)
    ((prompt, answer),) = settings.demonstrations()
    assert asked(prompt.content).replace("\n", " ") == "[]Which colour?"
    assert (answer, prompt.images[0].getpixel((0, 0))) == ("Red.", RED)
    write_samples(folder / "again.jsonl", settings.demonstrations())
    ((other, same),) = File(path=str(folder / "again.jsonl")).demonstrations()
    assert (other.content, other.meta, same) == (prompt.content, prompt.meta, answer)
    assert asked(settings.prompts()[0].content) == asked(prompt.content)


def test_llava_says_how_many_turns_it_leaves_out(folder: Path) -> None:
    short = {**LLAVA, "conversations": LLAVA["conversations"][:2]}  # type: ignore[index]
    rows = File(path=file_of(folder, LLAVA, short)).demonstrations()
    assert [dict(prompt.meta) for prompt, _ in rows] == [
        {"id": "000000033471", "turns_left_out": 2},
        {"id": "000000033471"},
    ]


def test_llava_without_a_picture_and_with_all_turns(folder: Path) -> None:
    """A row of text alone; and the whole conversation, read as the other framework reads it."""
    words = {"id": "a", "conversations": turns("Hello.", "Hello!")}
    nothing = {**words, "image": None}
    for prompt, answer in File(path=file_of(folder, words, nothing)).demonstrations():
        assert (prompt.images, answer) == ((), "Hello!")
    whole = File(path=file_of(folder, LLAVA), format="llama_factory", columns={"images": "image"})
    ((prompt, answer),) = whole.demonstrations()
    assert answer == "Grey." and len(prompt.images) == 1
    assert [message["role"] for message in prompt.content] == [  # type: ignore[index]
        "user",
        "assistant",
        "user",
    ]


def test_pictures_in_another_column(folder: Path) -> None:
    """``columns`` names them; a text of the layout's own name is then no picture."""
    row = {**{k: v for k, v in RLAIF_V.items() if k != "image"}, "image_path": "blue.png"}
    settings = File(path=file_of(folder, row), columns={"images": "image_path"})
    assert settings.preferences()[0].prompt.images[0].getpixel((0, 0)) == BLUE
    said = {"conversations": LLAVA["conversations"], "picture": "blue.png"}
    settings = File(path=file_of(folder, said), format="llava", columns={"images": "picture"})
    assert settings.demonstrations()[0][0].images[0].getpixel((0, 0)) == BLUE


def test_vlfeedback_takes_the_best_against_the_worst(folder: Path) -> None:
    """Means: Green (2+5+2) / 3 = 3, Red (5+5+4) / 3 = 14 / 3, Blue (1+5+1) / 3 = 7 / 3."""
    (found,) = File(path=file_of(folder, VLFEEDBACK)).preferences()
    assert (found.chosen, found.rejected) == ("Red.", "Blue.")
    assert found.meta["chosen_rating"] == pytest.approx(14 / 3)
    assert found.meta["rejected_rating"] == pytest.approx(7 / 3)
    assert found.meta["chosen_model"] == "model of Red."


def test_vlfeedback_without_preference_is_dropped_and_counted(folder: Path) -> None:
    """4, 4 and 1 against 3, 3 and 3 is a tie at 3. An answer with a "N/A" is not rated."""
    tie = [rated("Red.", "4", "4", "1"), rated("Blue.", "3", "3", "3")]
    unrated = [rated("Red.", "4", "4", "N/A"), rated("Blue.", "3", "3", "3")]
    rows = [{**VLFEEDBACK, "completions": given} for given in (tie, unrated)]
    found = File(path=file_of(folder, VLFEEDBACK, *rows)).preferences()
    assert len(found) == 1 and found.dropped == {"ties": 1, "unrated answers": 1}


def test_vlfeedback_of_equals_takes_the_first(folder: Path) -> None:
    answers = [
        rated("Blue.", "1", "1", "1"),
        rated("Black.", "1", "1", "1"),
        rated("Red.", "5", "5", "5"),
        rated("Crimson.", "5", "5", "5"),
    ]
    row = {**VLFEEDBACK, "completions": answers}
    (found,) = File(path=file_of(folder, row)).preferences()
    assert (found.chosen, found.rejected) == ("Red.", "Blue.")


def test_another_view_on_the_rejected_side(folder: Path) -> None:
    row = {**SWIFT_MESSAGES, "rejected_images": ["blue.png"]}
    (found,) = File(path=file_of(folder, row)).preferences()
    assert found.rejected_prompt is not None
    assert found.prompt.images[0].getpixel((0, 0)) == RED
    assert found.rejected_prompt.images[0].getpixel((0, 0)) == BLUE


def test_alpaca_with_history_input_and_system(folder: Path) -> None:
    row = {
        "system": "Be brief.",
        "history": [["Hello.", "Hello!"]],
        "instruction": "Add",
        "input": "1 and 1",
        "chosen": "2",
        "rejected": "3",
    }
    (found,) = File(path=file_of(folder, row)).preferences()
    assert [(m["role"], m["content"]) for m in found.prompt.content] == [  # type: ignore[index]
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hello!"),
        ("user", "Add\n1 and 1"),
    ]


def test_roles_of_sharegpt(folder: Path) -> None:
    """A system prompt in its own column, and what a tool returned, are turns of their own."""
    said = [*turns("Weather?"), {"from": "observation", "value": "rain"}]
    row = {**FACTORY_SHAREGPT, "conversations": said, "images": [], "system": "Be brief."}
    (found,) = File(path=file_of(folder, row), format="llama_factory").preferences()
    assert [m["role"] for m in found.prompt.content] == [  # type: ignore[index]
        "system",
        "user",
        "tool",
    ]


# ---- parquet ---------------------------------------------------------------------------------


def parquet(path: Path, rows: list[dict[str, Any]], pictures: Mapping[str, bool]) -> str:
    """Rows with pictures as the hub stores them; ``pictures``: whether a column holds lists."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(rows)
    for name, lists in pictures.items():
        kind = datasets.List(datasets.Image()) if lists else datasets.Image()
        table = table.cast_column(name, kind)
    table.to_parquet(str(path))
    return str(path)


def test_rlaif_v_and_rlhf_v_in_parquet(tmp_path: Path) -> None:
    """``image`` holds bytes and a path that leads nowhere, as on the hub."""
    stored = {"bytes": png("red"), "path": "nowhere/0.jpg"}
    for name, row in (("a", RLAIF_V), ("b", RLHF_V)):
        path = parquet(tmp_path / f"{name}.parquet", [{**row, "image": stored}], {"image": False})
        (found,) = File(path=path, on_error="skip").preferences()
        assert (found.chosen, found.prompt.images[0].getpixel((0, 0))) == ("Red.", RED)
        assert found.meta["origin_split"] == row["origin_split"]


def test_rlaif_v_as_trl_formats_it(tmp_path: Path) -> None:
    """``images`` is a list of pictures, and every part of a message has ``type`` and ``text``."""

    def side(role: str, *parts: tuple[str, str | None]) -> list[dict[str, Any]]:
        return [{"role": role, "content": [{"text": text, "type": kind} for kind, text in parts]}]

    row = {
        "chosen": side("assistant", ("text", "Red.")),
        "rejected": side("assistant", ("text", "Blue.")),
        "images": [{"bytes": png("red"), "path": None}],
        "prompt": side("user", ("image", None), ("text", "Which colour?")),
    }
    path = parquet(tmp_path / "rows.parquet", [row], {"images": True})
    settings = File(path=path)
    (found,) = settings.preferences()
    assert asked(found.prompt.content) == "[]Which colour?"
    assert (found.chosen, found.rejected) == ("Red.", "Blue.")
    assert found.prompt.images[0].getpixel((0, 0)) == RED
    write_preferences(tmp_path / "again.jsonl", settings.preferences())
    assert equal(found, File(path=str(tmp_path / "again.jsonl")).preferences()[0])


def test_pick_a_pic_with_all_its_columns(tmp_path: Path) -> None:
    """A point in time is one of them; what is written of such a row is read back."""
    row = {
        "are_different": True,
        "best_image_uid": "a",
        "caption": "red",
        "created_at": datetime(2023, 4, 17, 12, 30, tzinfo=UTC),
        "jpg_0": png("red"),
        "jpg_1": png("blue"),
        "label_0": 1.0,
        "label_1": 0.0,
    }
    path = parquet(tmp_path / "rows.parquet", [row], {})
    first = File(path=path).preferences()
    assert first[0].meta["created_at"] == "2023-04-17T12:30:00+00:00"
    write_preferences(tmp_path / "again.jsonl", first)
    again = File(path=str(tmp_path / "again.jsonl")).preferences()[0]
    assert isinstance(again.chosen, Image.Image)
    assert again.chosen.getpixel((0, 0)) == RED and again.meta == first[0].meta


def test_vlfeedback_in_parquet_has_lists(tmp_path: Path) -> None:
    """What is a list of answers in JSON may be an object of lists, one for each of their keys."""
    given = VLFEEDBACK["completions"]
    lists = {key: [one[key] for one in given] for key in ("annotations", "model", "response")}  # type: ignore[index]
    row = {**VLFEEDBACK, "completions": lists, "img_path": {"bytes": png("red"), "path": None}}
    path = parquet(tmp_path / "rows.parquet", [row], {"img_path": False})
    (found,) = File(path=path).preferences()
    assert (found.chosen, found.rejected) == ("Red.", "Blue.")
    assert found.prompt.images[0].getpixel((0, 0)) == RED


# ---- what is refused -------------------------------------------------------------------------

BAD: list[tuple[FormatName, dict[str, Any], str]] = [
    ("rlaif_v", {**RLAIF_V, "image": None}, "'image' is null"),
    ("rlaif_v", {**RLAIF_V, "chosen": ""}, "'chosen' is empty"),
    ("rlaif_v", {k: v for k, v in RLAIF_V.items() if k != "image"}, "'image' is not among"),
    ("rlaif_v", {k: v for k, v in RLAIF_V.items() if k != "question"}, "'question' is not among"),
    ("rlhf_v", {**RLHF_V, "text": '{"question": "Which'}, "'text' is no JSON"),
    ("rlhf_v", {**RLHF_V, "text": "[1]"}, "'text' must be an object with question, chosen, reje"),
    (
        "rlhf_v",
        {**RLHF_V, "text": '{"question": "Q?", "chosen": null, "rejected": "b"}'},
        "'text.chosen' must be text, not None",
    ),
    ("vlfeedback", {**VLFEEDBACK, "completions": []}, "'completions' must be a list"),
    (
        "vlfeedback",
        {**VLFEEDBACK, "completions": [{"response": "Red."}]},
        "'completions[0]' must be an object with annotations, response",
    ),
    (
        "vlfeedback",
        {**VLFEEDBACK, "completions": [rated("Red.", "5", "6", "5"), rated("B", "1", "1", "1")]},
        "'completions[0]' rates 'Ethical Considerations' with '6'",
    ),
    (
        "vlfeedback",
        {**VLFEEDBACK, "completions": {"annotations": [{}], "response": ["a", "b"]}},
        "differ in length",
    ),
    (
        "vlfeedback",
        {k: v for k, v in VLFEEDBACK.items() if k != "img_path"},
        "'img_path' is not among",
    ),
    ("povid", {**POVID, "conversations": turns("<image>Q?")}, "'conversations' must hold a quest"),
    (
        "povid",
        {**POVID, "rejected_conversations": turns("<image>\nWhich shape?", "Blue.")},
        "ask different things",
    ),
    ("povid", {**POVID, "conversations": "Q?"}, "'conversations' must be a list"),
    (
        "povid",
        {**POVID, "conversations": [{"from": "human"}]},
        "'conversations[0]' must be an object with from, value",
    ),
    (
        "llama_factory",
        {**FACTORY_SHAREGPT, "conversations": [{"from": 3, "value": "Q?"}]},
        "'conversations[0].from' must be text",
    ),
    (
        "llama_factory",
        {k: v for k, v in FACTORY_SHAREGPT.items() if k != "rejected"},
        "'rejected' is not among",
    ),
    ("llama_factory", {**FACTORY_SHAREGPT, "videos": ["a.mp4"]}, "'videos' holds ['a.mp4']"),
    ("llama_factory", {**FACTORY_ALPACA, "history": ["Hello."]}, "'history[0]' must be [question"),
    ("llama_factory", {**FACTORY_ALPACA, "kto_tag": False}, "'kto_tag' is False"),
    ("ms_swift", {**SWIFT, "messages": messages("Q?")}, "'messages' must end with the assistant"),
    ("ms_swift", {**SWIFT, "objects": {"ref": ["a"]}}, "'objects' holds"),
    (
        "ms_swift",
        {k: v for k, v in SWIFT_MESSAGES.items() if k != "rejected_messages"},
        "'rejected_images' holds ['red.png']: there is no rejected answer",
    ),
    (
        "ms_swift",
        {**SWIFT_MESSAGES, "rejected_messages": messages("<image>Which shape?", "Blue.")},
        "'rejected_messages' must repeat",
    ),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_bad_row_is_named(
    folder: Path, name: FormatName, row: dict[str, Any], message: str
) -> None:
    """The bad row is on line 2, and skipping counts it."""
    good = next(one for kind, one in PREFERENCES if kind == name)
    path = file_of(folder, good, row)
    with pytest.raises(ValueError) as caught:
        File(path=path, format=name).preferences()
    assert f"{path}:2: " in str(caught.value) and message in str(caught.value)
    rows = File(path=path, format=name, on_error="skip").preferences()
    assert (len(rows), rows.dropped.total()) == (1, 1)


BAD_DEMONSTRATIONS: list[tuple[dict[str, Any], str]] = [
    ({**LLAVA, "conversations": turns("<image>\nQ?")}, "'completion' is missing"),
    ({**LLAVA, "conversations": turns("<image>\nQ?")[:0]}, "'conversations' must be a list"),
    (
        {**LLAVA, "conversations": [{"from": "gpt", "value": "Red."}]},
        "'conversations' begins with an answer",
    ),
    (
        {
            **LLAVA,
            "image": ["red.png"] * 2,
            "conversations": turns("<image>Q?", "A", "<image>?", "B"),
        },
        "shows a picture after the first answer",
    ),
    ({**LLAVA, "image": None}, "shows a picture; 'image' holds none"),
    ({**LLAVA, "image": ["red.png"] * 2}, "1 places for pictures, the row 2"),
    ({"messages": messages("Q?", "A"), "label": False}, "'label' is False"),
]


@pytest.mark.parametrize(("row", "message"), BAD_DEMONSTRATIONS)
def test_bad_demonstration_is_named(folder: Path, row: dict[str, Any], message: str) -> None:
    path = file_of(folder, row)
    with pytest.raises(ValueError) as caught:
        File(path=path).demonstrations()
    assert f"{path}:1: " in str(caught.value) and message in str(caught.value)


@pytest.fixture
def pictures(folder: Path) -> Path:
    for colour in ("blue", "green"):
        (folder / f"{colour}.png").write_bytes(png(colour))
    return folder


@pytest.mark.parametrize(("name", "row"), PICTURES)
def test_pictures_as_published(pictures: Path, name: FormatName, row: dict[str, Any]) -> None:
    """Red is preferred, or ranked first; blue is the other, or ranked last."""
    assert detect(row) == name
    settings = File(path=file_of(pictures, row))
    (found,) = settings.preferences()
    assert found.prompt.content == "red"
    assert isinstance(found.chosen, Image.Image) and isinstance(found.rejected, Image.Image)
    assert (found.chosen.getpixel((0, 0)), found.rejected.getpixel((0, 0))) == (RED, BLUE)
    if name != "pick_a_pic":
        (ranked,) = settings.rankings()
        best = ranked.completions[ranked.scores.index(max(ranked.scores))]
        assert isinstance(best, Image.Image) and best.getpixel((0, 0)) == RED


BAD_PICTURES: list[tuple[dict[str, Any], str]] = [
    ({**PICK_A_PIC, "label_0": 0.7}, "label_0 is 0.7; it must be 1, 0 or 0.5"),
    ({**PICK_A_PIC, "label_1": 1.0}, "label_0 is 1 and label_1 is 1.0; their sum must be 1"),
    ({k: v for k, v in PICK_A_PIC.items() if k != "caption"}, "'caption' is not among"),
    ({**HPD_TRAIN, "human_preference": [1]}, "'human_preference' must be a list of 2 numbers"),
    ({**HPD_TEST, "rank": [0, "1", 2]}, "rank[1] must be a number, not '1'"),
    ({**HPD_TEST, "image_path": "red.png"}, "'image_path' must be a list"),
    ({**IMAGE_REWARD, "ranking": [1, 2]}, "'ranking' must be a list of 3 numbers"),
    ({**IMAGE_REWARD, "generations": ["gone.png", "red.png", "blue.png"]}, "missing image"),
]


@pytest.mark.parametrize(("row", "message"), BAD_PICTURES)
def test_bad_pictures_are_named(pictures: Path, row: dict[str, Any], message: str) -> None:
    path = file_of(pictures, row)
    with pytest.raises(ValueError) as caught:
        File(path=path).rankings() if "gone" in str(row) else File(path=path).preferences()
    assert f"{path}:1: " in str(caught.value) and message in str(caught.value)


def test_ties_of_pictures_are_counted(pictures: Path) -> None:
    tie = {**PICK_A_PIC, "label_0": 0.5, "label_1": 0.5}
    unlabelled = {**PICK_A_PIC, "has_label": False, "label_0": None, "label_1": None}
    rows = File(path=file_of(pictures, PICK_A_PIC, tie, unlabelled)).preferences()
    assert rows.dropped == {"ties": 1, "unlabelled pairs": 1}
    equal_ranks = {**HPD_TEST, "rank": [1, 1, 1]}
    assert File(path=file_of(pictures, HPD_TEST, equal_ranks)).preferences().dropped == {"ties": 1}


def drawn(asked_for: str, picture: str, rank: int, **changes: Any) -> dict[str, Any]:
    """A row of ImageRewardDB's metadata, as its card shows one."""
    row = {
        "image_path": picture,
        "prompt_id": f"00-{asked_for}",
        "prompt": asked_for,
        "classification": "Outdoor Scenes",
        "image_amount_in_total": 3,
        "rank": rank,
        "overall_rating": 7 - rank,
        "image_text_alignment_rating": 6,
        "fidelity_rating": 6,
    }
    return {**row, **changes}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_image_reward_has_a_row_a_picture(pictures: Path, kind: str) -> None:
    """They are put together by their prompt, wherever they stand."""
    rows = [
        drawn("red", "blue.png", 3),
        drawn("sky", "blue.png", 1),
        drawn("red", "red.png", 1),
        drawn("sky", "red.png", 2),
        drawn("red", "green.png", 2),
    ]
    path = file_of(pictures, *rows)
    if kind == "parquet":
        path = parquet(pictures / "rows.parquet", rows, {})
    settings = File(path=path)
    first, second = settings.preferences()
    assert (first.prompt.content, second.prompt.content) == ("red", "sky")
    assert isinstance(first.chosen, Image.Image) and isinstance(second.chosen, Image.Image)
    assert first.chosen.getpixel((0, 0)) == RED and second.chosen.getpixel((0, 0)) == BLUE
    assert first.meta["overall_rating"] == [4, 6, 5]
    assert settings.rankings()[0].scores == (-3.0, -1.0, -2.0)


def test_image_reward_that_does_not_fit_together(pictures: Path) -> None:
    path = file_of(pictures, drawn("red", "red.png", 1), drawn("red", "blue.png", 2, prompt="x"))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 and 1 more of its prompt_id: .*'prompt'"):
        File(path=path).preferences()
    lacking = {k: v for k, v in drawn("red", "blue.png", 2).items() if k != "prompt_id"}
    path = file_of(pictures, drawn("red", "red.png", 1), lacking)
    rows = File(path=path, on_error="skip").preferences
    with pytest.raises(ValueError, match="left out: 1 missing column, 1 single pictures"):
        rows()


def test_every_layout_has_a_name() -> None:
    """The names that `File` takes are those of the table, and ``auto``."""
    assert set(FormatName.__args__) == {"auto", *FORMATS}  # type: ignore[attr-defined]


def test_bytes_in_json_are_no_picture(folder: Path) -> None:
    """Base64 is text, and text is a path."""
    row = {**RLAIF_V, "image": base64.b64encode(png("red")).decode()}
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: missing image"):
        File(path=file_of(folder, row)).preferences()
