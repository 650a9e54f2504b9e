"""`mmalign data check`: what it finds, where it says it is, and what it costs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from mmalign.cli import cli
from mmalign.data import File
from mmalign.data.checks import Checker
from mmalign.data.findings import Finding, normal, odd_characters, printable, prompt_key
from mmalign.data.lengths import Lengths
from mmalign.data.reading import Place, Reader
from mmalign.data.records import prompt_row
from mmalign.locate import locate
from mmalign.text.ids import prompt_ids
from mmalign.tinyworld.tasks import TASKS
from mmalign.vision.lvlm_inputs import process
from tests.data.test_bad_pictures import REFUSED, USED

GOOD = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}


def write(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def found(path: Path, *, lengths: Lengths | None = None) -> list[Finding]:
    checker = Checker(Reader(Place(path=path)), lengths=lengths)
    rows = [f for number in range(len(checker.reader)) for f in checker.row(number)]
    return [*rows, *checker.whole()]


def brief(findings: Sequence[Finding]) -> list[tuple[int | None, str, str, str]]:
    return [(f.row, f.level, f.field, f.reason) for f in findings]


def picture(folder: Path, name: str, colour: str) -> str:
    Image.new("RGB", (4, 4), colour).save(folder / name)
    return name


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)])


# ---- rows ------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str, str, str]] = [
    ('{"prompt": "x", ', "error", "", "malformed JSON"),
    ('{"prompt": "x", "prompt": "y"}', "error", "prompt", "malformed JSON"),
    ("[1]", "error", "", "wrong type"),
    ({"prompt": "x", "rejected": "b"}, "error", "chosen", "missing column"),
    ({**GOOD, "chosen": None}, "error", "chosen", "missing column"),
    ({**GOOD, "chosen": 3}, "error", "chosen", "wrong type"),
    ({**GOOD, "rejected": " \n"}, "error", "rejected", "empty answer"),
    ({**GOOD, "prompt": " "}, "error", "prompt", "empty prompt"),
    ({**GOOD, "prompt": {"role": "user"}}, "error", "prompt", "wrong type"),
    ({**GOOD, "margin": "1"}, "error", "margin", "wrong type"),
    ({**GOOD, "images": [3]}, "error", "images", "wrong type"),
    ({**GOOD, "prompt": "<image><image>", "images": ["ok.png"]}, "error", "prompt", "placeholders"),
    ({**GOOD, "prompt": "<image>", "images": []}, "error", "prompt", "placeholders"),
    ({**GOOD, "prompt": "What is <image>?"}, "warning", "prompt", "placeholders"),
    ({**GOOD, "chosen": "<image> 2"}, "warning", "chosen", "placeholders"),
    ({**GOOD, "rejected": "2"}, "warning", "", "identical answers"),
    (
        {**GOOD, "chosen": "Yes, sir", "rejected": "yes,  SIR"},
        "warning", "rejected", "nearly identical answers",
    ),
    ({**GOOD, "chosen": "2\x1b[31m"}, "warning", "chosen", "control characters"),
    ({**GOOD, "prompt": "\ud83d?"}, "error", "prompt", "broken characters"),
    ({**GOOD, "chosen": "2<|im_end|>"}, "warning", "chosen", "special tokens"),
    ({**GOOD, "prompt": "[INST] 1 + 1? [/INST]"}, "warning", "prompt", "special tokens"),
    (
        {**GOOD, "prompt": "Same?", "images": ["ok.png", "copy.bmp"]},
        "warning", "images", "repeated picture",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "level", "field", "reason"), WRONG)
def test_wrong_row(tmp_path: Path, row: Any, level: str, field: str, reason: str) -> None:
    """The row is the second, on line 3: a good one and a blank line come before it."""
    picture(tmp_path, "ok.png", "red")
    picture(tmp_path, "copy.bmp", "red")
    good = {"prompt": "another", "chosen": "a", "rejected": "b"}
    findings = found(write(tmp_path / "rows.jsonl", [good, "", row]))
    assert brief(findings) == [(2, level, field, reason)]
    assert findings[0].place == f"{tmp_path / 'rows.jsonl'}:3"
    assert findings[0].line().isprintable()


def test_good_rows_say_nothing(tmp_path: Path) -> None:
    """Whatever the shipped tasks write, tabs, newlines and emoji included."""
    rows: list[Any] = [
        {**GOOD, "chosen": "2\n\tor \U0001f600", "prompt": f"{i}?"} for i in range(3)
    ]
    assert found(write(tmp_path / "rows.jsonl", rows)) == []


def test_errors_of_training_are_errors_here(tmp_path: Path) -> None:
    """Each row that `File` refuses by its content has an error, and no other row has one."""
    picture(tmp_path, "ok.png", "red")
    picture(tmp_path, "copy.bmp", "red")
    for row, *_ in WRONG:
        path = write(tmp_path / "rows.jsonl", [row])
        try:
            File(path=str(path)).preferences()
            refused = False
        except ValueError as error:
            refused = "no usable row" not in str(error)
        errors = [f for f in found(path) if f.level == "error"]
        # Half a character is refused by the tokenizer, later than by the file.
        assert bool(errors) == (refused or [f.reason for f in errors] == ["broken characters"])


def test_demonstrations_and_prompts(tmp_path: Path) -> None:
    said = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}]
    path = write(tmp_path / "said.jsonl", said)
    assert brief(found(path)) == [(2, "error", "completion", "empty answer")]
    path = write(tmp_path / "asked.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    assert brief(found(path)) == [(2, "error", "prompt", "empty prompt")]


def test_a_picture_of_many_rows_is_warned_of_once_and_refused_each_time(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(tmp_path / "ink.jpg")
    (tmp_path / "bad.png").write_bytes(b"")
    rows = [{**GOOD, "prompt": f"{i}?", "images": ["ink.jpg", "bad.png"]} for i in range(3)]
    reasons = [(f.row, f.reason) for f in found(write(tmp_path / "rows.jsonl", rows))]
    bad = "disguised picture"
    assert reasons == [(1, "CMYK picture"), (1, bad), (2, bad), (3, bad)]


# ---- rows against each other -----------------------------------------------------------------


def test_lists(tmp_path: Path) -> None:
    """Every answer is looked at by its place; a list in another order is no contradiction."""
    row = {"prompt": "Q?", "completions": ["a", "b"], "scores": [1, 0]}
    rows = [row, {**row, "completions": ["b", "a"]}, {**row, "completions": ["a", "b<image>"]}]
    rows += [{**row, "scores": [1]}, {**row, "scores": [1, 1]}]
    said = brief(found(write(tmp_path / "lists.jsonl", rows)))
    assert [(number, level, reason) for number, level, _, reason in said] == [
        (3, "warning", "placeholders"),
        (4, "error", "wrong value"),
        (5, "warning", "equal scores"),
    ]
    assert said[0][2] == "completions[1]"


def test_contradictory_pairs_and_duplicates(tmp_path: Path) -> None:
    """Row 2 swaps row 1; row 3 repeats row 1 in other words of the same question, and so swaps row
    2; row 4 asks something else."""
    swapped = {"prompt": "1 + 1?", "chosen": "3", "rejected": "2"}
    rows = [GOOD, swapped, {**GOOD, "prompt": " 1  +  1? "}, {**swapped, "prompt": "1 + 2?"}]
    assert brief(found(write(tmp_path / "rows.jsonl", rows))) == [
        (2, "error", "chosen", "contradictory pairs"),
        (3, "error", "chosen", "contradictory pairs"),
    ]
    findings = found(write(tmp_path / "rows.jsonl", [GOOD, GOOD]))
    assert brief(findings) == [(2, "warning", "", "duplicate rows")]
    assert f"{tmp_path / 'rows.jsonl'}:1 " in findings[0].message


def test_another_picture_is_another_question(tmp_path: Path) -> None:
    """Rows 1 and 2 differ in the picture. Row 3 swaps row 1 with a copy of its picture."""
    red, blue, copy = (
        picture(tmp_path, name, colour)
        for name, colour in (("red.png", "red"), ("blue.png", "blue"), ("copy.bmp", "red"))
    )
    answers = {"chosen": "red", "rejected": "blue"}
    rows = [
        {"prompt": "Colour?", "images": [red], **answers},
        {"prompt": "Colour?", "images": [blue], "chosen": "blue", "rejected": "red"},
        {"prompt": "<image>Colour?", "images": [copy], "chosen": "blue", "rejected": "red"},
    ]
    assert brief(found(write(tmp_path / "rows.jsonl", rows))) == [
        (3, "error", "chosen", "contradictory pairs")
    ]


def test_pictures_as_answers_are_compared_by_their_pixels(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("a2.bmp", "red"), ("b.png", "blue")):
        picture(tmp_path, name, colour)
    rows = [
        {"prompt": "red", "chosen_images": ["a.png"], "rejected_images": ["b.png"]},
        {"prompt": "red", "chosen_images": ["b.png"], "rejected_images": ["a2.bmp"]},
    ]
    assert brief(found(write(tmp_path / "rows.jsonl", rows))) == [
        (2, "error", "chosen", "contradictory pairs")
    ]


def test_views_of_the_rejected_side_tell_rows_apart(tmp_path: Path) -> None:
    """Same answers, other corrupted views: two pairs. The same view again: a duplicate."""
    for name, colour in (("a.png", "red"), ("b.png", "grey"), ("c.png", "black")):
        picture(tmp_path, name, colour)
    row = {**GOOD, "rejected": "2", "images": ["a.png"]}
    rows = [{**row, "rejected_images": [name]} for name in ("b.png", "c.png", "b.png")]
    assert brief(found(write(tmp_path / "rows.jsonl", rows))) == [
        (3, "warning", "", "duplicate rows")
    ]


def test_unbalanced_lengths(tmp_path: Path) -> None:
    """18 pairs of 6 against 2 characters, 6 of 2 against 2: the median ratio is 3, 75 % longer."""
    rows = [
        {"prompt": str(i), "chosen": "abcdef" if i % 4 else "xy", "rejected": "ab"}
        for i in range(24)
    ]
    (finding,) = found(write(tmp_path / "rows.jsonl", rows))
    assert (finding.row, finding.level, finding.reason) == (None, "warning", "unbalanced lengths")
    assert "3.00 times" in finding.message and "75 % of 24" in finding.message
    assert found(write(tmp_path / "few.jsonl", rows[:19])) == []


# ---- between files ---------------------------------------------------------------------------


def test_leaks(tmp_path: Path) -> None:
    """The same question in other spelling; the same picture under another name asked otherwise."""
    red, copy, blue = (
        picture(tmp_path, name, colour)
        for name, colour in (("red.png", "red"), ("copy.bmp", "red"), ("blue.png", "blue"))
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A?"}]
    heldout = write(
        tmp_path / "heldout.jsonl",
        [
            {"prompt": turns},
            "{broken",
            {"prompt": "Colour?", "images": [copy]},
        ],
    )  # fmt: skip
    answers = {"chosen": "x", "rejected": "y"}
    train = write(
        tmp_path / "train.jsonl",
        [
            {"prompt": " a? ", **answers},
            {"prompt": "<image> COLOUR?", "images": [red], **answers},
            {"prompt": "Shape?", "images": [red], **answers},
            {"prompt": "Colour?", "images": [blue], **answers},
        ],
    )
    result = run(train, "--against", heldout, "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert [
        (Path(f["file"]).name, f["row"], f["level"], f["reason"]) for f in said["findings"]
    ] == [
        ("heldout.jsonl", 2, "error", "malformed JSON"),
        ("train.jsonl", 1, "error", "leaking prompt"),
        ("train.jsonl", 2, "error", "leaking prompt"),
        ("train.jsonl", 3, "warning", "shared picture"),
    ]
    assert "heldout.jsonl:1" in said["findings"][1]["message"]
    assert list(said["rows"].values()) == [3, 4]


# ---- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multi_image", "describe"])
def test_prompt_ids_are_those_of_the_policy(task: str, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    from mmalign.data import write_preferences

    path = tmp_path / "rows.jsonl"
    write_preferences(path, TASKS[task].preferences(size=4, seed=0))
    lengths = Lengths("tinyworld/lvlm")
    processor = AutoProcessor.from_pretrained(locate("tinyworld/lvlm"))
    reader = Reader(Place(path=path))
    for number, pair in enumerate(File(path=str(path)).preferences()):
        ours = lengths.prompt_ids(prompt_row(reader.read(number)), tmp_path)
        assert ours == process(processor, pair.prompt, row=number).ids.tolist()


def test_text_prompt_ids_are_those_of_the_policy(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate("tinyworld/text"))
    lengths = Lengths("tinyworld/text")
    path = write(tmp_path / "rows.jsonl", [{**GOOD, "prompt": "12+7="}])
    pair = File(path=str(path)).preferences()[0]
    ours = lengths.prompt_ids(prompt_row({"prompt": "12+7="}), tmp_path)
    assert ours == prompt_ids(tokenizer, pair.prompt)


def test_lengths(tmp_path: Path) -> None:
    """A picture of the tiny world has 4 tokens: the row's prompt is longer than 6 with it."""
    name = picture(tmp_path, "a.png", "red")
    row = {"prompt": "describe the picture", "images": [name], "chosen": "a small red circle",
           "rejected": "a small red square"}  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [row])
    lengths = Lengths("tinyworld/lvlm", max_prompt_length=6, max_new_tokens=3)
    findings = found(path, lengths=lengths)
    assert brief(findings) == [
        (1, "error", "prompt", "prompt too long"),
        (1, "warning", "chosen", "answer too long"),
        (1, "warning", "rejected", "answer too long"),
        (1, "error", "rejected", "identical when cut"),
    ]
    total = len(lengths.prompt_ids(prompt_row(row), tmp_path))
    assert f"{total} tokens, 4 of them of pictures" in findings[0].message
    assert lengths.longest == {"prompt": total, "answer": 5}
    roomy = Lengths("tinyworld/lvlm", max_prompt_length=total, max_new_tokens=5)
    assert found(path, lengths=roomy) == []


def test_special_tokens_of_the_model(tmp_path: Path) -> None:
    """An end token at the end is where it belongs; inside, training refuses it."""
    lengths = Lengths("tinyworld/lvlm")
    stop, image = lengths._stops[0], lengths._image_token
    rows = [
        {**GOOD, "prompt": "a", "chosen": f"red{stop}"},
        {**GOOD, "prompt": "b", "chosen": f"red{stop} circle"},
        {**GOOD, "prompt": "c", "chosen": f"red {image}"},
    ]
    reasons = brief(found(write(tmp_path / "rows.jsonl", rows), lengths=lengths))
    assert (2, "error", "chosen", "special tokens") in reasons
    assert (3, "error", "chosen", "special tokens") in reasons
    assert not [r for r in reasons if r[0] == 1]


def test_a_text_model_sees_no_pictures(tmp_path: Path) -> None:
    row = {**GOOD, "images": [picture(tmp_path, "a.png", "red")]}
    findings = found(write(tmp_path / "rows.jsonl", [row]), lengths=Lengths("tinyworld/text"))
    assert brief(findings) == [(1, "error", "images", "text-only model")]


# ---- the command -----------------------------------------------------------------------------


def test_command_prints_findings_and_counts(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": str(i), "chosen": ""} for i in range(4)]
    path = write(tmp_path / "rows.jsonl", [*rows, {**GOOD, "chosen": "\x1b[2J"}])
    result = run(path, "--limit", "2")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{path}:1: chosen: error: empty answer: ")
    assert lines[3].split() == [f"{path}:", "5", "rows"] and lines[4].split()[0] == "4"
    assert "\x1b" not in result.stdout


def test_command_is_content(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [GOOD, {**GOOD, "prompt": "2?", "chosen": "2<s>"}])
    result = run(path)
    assert result.exit_code == 0, "a warning is no error"
    assert run(write(tmp_path / "good.jsonl", [GOOD])).stdout.endswith("nothing to say\n")


def test_columns_and_format(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"ask": "1?", "chosen": "a", "rejected": "b"}])
    assert run(path).exit_code == 1
    assert run(path, "--column", "prompt=ask").exit_code == 0
    for wrong, message in (
        (("--column", "prompt"), "OURS=THEIRS"),
        (("--format", "trll"), "trll"),
        (("--max-new-tokens", "3"), "--model"),
        (("--against", tmp_path / "gone.jsonl"), "gone.jsonl"),
    ):
        result = run(path, *wrong)
        assert isinstance(result.exception, ValueError) and message in str(result.exception)


# ---- what rows are the same ------------------------------------------------------------------


def test_normal() -> None:
    assert normal("  \uff21 B\n c ") == "a b c"
    assert prompt_key("a?", []) == prompt_key(({"role": "user", "content": "A?"},), [])
    assert prompt_key("a", [b"1", b"2"]) != prompt_key("a", [b"2", b"1"])
    assert prompt_key("a b", []) != prompt_key(
        ({"role": "user", "content": "a"}, {"role": "user", "content": "b"}), []
    )


def test_odd_characters() -> None:
    assert odd_characters("tab\tline\nreturn\r\u00e9 \u4e2d \U0001f600") is None
    assert odd_characters("a\0") is not None
    assert printable("a\x1b\n\u202eb") == "a\\x1b\\n\\u202eb"


def test_memory_grows_by_hashes_only(tmp_path: Path) -> None:
    """Of 3000 rows of 4 kB, 12 MB, less than 1.5 MB stays: 500 bytes a row."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(3000):
            row = {"prompt": f"{i} " + "p" * 2000, "chosen": "a" * 1000, "rejected": "b" * 1000}
            file.write(json.dumps(row) + "\n")
    checker = Checker(Reader(Place(path=path)))
    tracemalloc.start()
    try:
        assert [f for n in range(len(checker.reader)) for f in checker.row(n)] == []
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.5e6


def test_the_guide_names_every_reason() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "looking.md"
    table = "".join(line for line in guide.read_text().splitlines() if line.startswith("|"))
    assert [reason for *_, reason in WRONG if reason not in table] == []
    assert [reason for reason, _ in {**REFUSED, **USED}.values() if reason not in table] == []
