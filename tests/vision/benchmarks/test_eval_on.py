"""``mmalign eval --on``: from the command line to the folder that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign import cli
from tests.vision.benchmarks.files import write_json, write_lines
from tests.vision.benchmarks.test_pope import rows


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def succeed(*arguments: object) -> None:
    cli.main([str(a) for a in arguments])


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return write_lines(tmp_path / "q.json", rows("yynn"))


@pytest.fixture
def settings(tmp_path: Path, questions: str) -> str:
    path = tmp_path / "pope.yaml"
    path.write_text(f"type: pope\nfiles: {{random: {questions}}}\n")
    return str(path)


def answered(tmp_path: Path, texts: list[str]) -> str:
    given: list[dict[str, Any]] = [
        {"question_id": number, "text": text} for number, text in enumerate(texts)
    ]
    return write_lines(tmp_path / "a.jsonl", given)


def test_answers_of_somebody_else(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Yes, no, yes, no to yes, yes, no, no: every number is 1/2."""
    path = answered(tmp_path, ["yes", "no", "maybe", "no"])
    succeed("eval", "--on", settings, "--answers", path)
    said = capsys.readouterr().out
    assert "accuracy   0.5  95 % interval [" in said and "of 4" in said
    assert "undecided answers counted as yes: 1" in said
    assert "empty answers" not in said
    succeed("eval", "--on", settings, "--answers", path, "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["f1"]["value"] == 0.5
    assert record["benchmark"]["type"] == "pope" and record["model"] is None


def test_model_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder holds answers that score the same again, the rows and the report."""
    out = tmp_path / "out"
    on = ("--on", "tinyworld_pope")
    succeed("eval", "vision/lvlm_dpo", *on, "on.pictures=3", "--output", out, "--json")
    first = json.loads(capsys.readouterr().out)
    assert first["model"] == "vision/lvlm_dpo" and first["benchmark"]["pictures"] == 3
    assert json.loads((out / "report.json").read_text()) == first
    assert len((out / "rows.jsonl").read_text().splitlines()) == 18
    answers = out / "answers.jsonl"
    succeed("eval", "on.pictures=3", *on, "--answers", answers, "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == first["metrics"]
    assert run("eval", "vision/lvlm_dpo", *on, "--output", out) == cli.USER_ERROR
    assert "exists already" in capsys.readouterr().err


def test_first_questions(settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = answered(tmp_path, ["yes", "yes"])
    succeed("eval", "--on", settings, "--answers", path, "--num", 2, "--json")
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval",), "give FILE, or --on with FILE or --answers"),
        (("eval", "vision/lvlm_dpo", "--num", "3"), "give FILE, or --on"),
        (("eval", "--on", "tinyworld_pope"), "give FILE, whose model answers, or --answers"),
        (("eval", "on.seed=1", "--on", "tinyworld_pope"), "give FILE, whose model answers"),
        (("eval", "vision/lvlm_dpo", "--on", "poep"), "did you mean 'pope'?"),
        (("eval", "vision/lvlm_dpo", "--on", "pope"), "lacks the key 'files'"),
        (("eval", "vision/lvlm_dpo", "--on", "none.yaml"), "cannot read the config none.yaml"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == cli.USER_ERROR
    assert said in capsys.readouterr().err


def test_mistakes_with_answers(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = answered(tmp_path, ["yes"] * 4)
    assert run("eval", "a.yaml", "--on", settings, "--answers", path) == cli.USER_ERROR
    assert "give either FILE (a.yaml) or --answers" in capsys.readouterr().err
    assert run("eval", "seed=1", "--on", settings, "--answers", path) == cli.USER_ERROR
    assert "'seed=1' sets a run, and with --answers there is none" in capsys.readouterr().err
    short = answered(tmp_path, ["yes"])
    assert run("eval", "--on", settings, "--answers", short) == cli.USER_ERROR
    assert "no answer for: 1, 2, 3" in capsys.readouterr().err


def test_a_policy_that_writes_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("eval", "vision/ar_dpo", "--on", "tinyworld_pope", "on.pictures=1")
    assert run(*arguments) == cli.USER_ERROR
    assert "does not write text" in capsys.readouterr().err


def test_answers_outlive_a_judge_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens where the judge should be; what was to be judged is in the folder."""
    row = {
        "question_type": "other",
        "image_src": "https://example.org/a.png",
        "image_content": ["Dog"],
        "question": "what colour is the circle ?",
        "gt_answer": "red",
    }
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    template = write_json(tmp_path / "t.json", [row])
    path = tmp_path / "mmhal.yaml"
    path.write_text(
        f"type: mmhal\ntemplate_file: {template}\nimages: {tmp_path}\nmax_new_tokens: 4\n"
        "judge: {type: endpoint, url: 'http://127.0.0.1:9/v1', model: m, key_variable: null, "
        "retries: 0}\n"
    )
    out = tmp_path / "out"
    arguments = ("eval", "vision/lvlm_dpo", "--on", path, "--output", out)
    assert run(*arguments) == cli.USER_ERROR
    assert "questions[0]: http://127.0.0.1:9/v1/chat/completions" in capsys.readouterr().err
    (answer,) = json.loads((out / "answers.json").read_text())
    assert answer["model_answer"]


def test_missing_pictures(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "vision/lvlm_dpo", "--on", settings) == cli.USER_ERROR
    assert "question 0: 0.png: " in capsys.readouterr().err


def test_benchmark_with_a_judge(tmp_path: Path) -> None:
    """A judge is a node of the settings like any other."""
    from mmalign import config
    from mmalign.endpoint import Endpoint
    from mmalign.vision.benchmarks.mmhal import MMHal

    template = write_json(tmp_path / "t.json", [])
    path = tmp_path / "mmhal.yaml"
    path.write_text(
        f"type: mmhal\ntemplate_file: {template}\n"
        "judge: {type: endpoint, url: 'http://localhost:1/v1', model: m, cache: kept}\n"
    )
    found = config.load_benchmark(str(path), ["judge.temperature=null"])
    assert isinstance(found, MMHal)
    assert found.judge == Endpoint(
        url="http://localhost:1/v1", model="m", cache="kept", temperature=None
    )
    assert config.described(found)["judge"]["type"] == "endpoint"
