"""The command line: messages, exit codes, and what is left behind.

Commands run in this process, through the same entry point as the installed script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign import cli, preflight, trainer
from mmalign.commands import listing, targets
from mmalign.invariants import CheckLine
from mmalign.lora import LoRA
from mmalign.run import Run
from mmalign.text import TextPolicy
from mmalign.types import Output, Prompt

CONFIG = """\
policy: {type: text, model: tinyworld/text, max_new_tokens: 12, lora: {rank: 2}}
objective: {type: dpo}
source:
  type: preferences
  data: {type: tinyworld, task: arithmetic, size: 8}
  batch_size: 4
training: {steps: 2, learning_rate: 1e-3}
evaluation:
  data: {type: tinyworld, task: arithmetic, split: heldout, size: 4}
  judges: {exact: {type: tinyworld}}
  show: 2
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one config, ``run.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG + "output: out\n")
    return tmp_path


def call(*arguments: str) -> int:
    """The exit code of a command."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


# ---- without training ------------------------------------------------------------------------


def test_help_is_light() -> None:
    program = (
        "import sys; from mmalign import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print([m for m in ('torch', 'yaml', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip().endswith("[]")
    for command in ("train", "check", "sample", "eval", "report", "list", "schema", "demo"):
        assert f"\n  {command} " in done.stdout


def test_module_runs() -> None:
    command = [sys.executable, "-m", "mmalign", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mmalign")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "gone.yaml"], "there is no config gone.yaml"),
        (["train", "run.yaml", "training.stepz=3"], "did you mean 'steps'?"),
        (["train", "."], "is no run: it holds no config.yaml"),
        (["eval", "run.yaml", "evaluation=null"], "has no `evaluation`"),
        (["report", "."], "holds no run"),
        (["sample", "run.yaml", "--prompt", "a", "--data", "b"], "either --prompt or --data"),
        (["sample", "run.yaml", "policy.model=tinyworld/gone"], "no shipped model"),
        (["demo", "--real", "--only", "text"], "--real is one demonstration"),
        (["demo", "--only", "txt"], "txt"),
        (["list", "things"], "Invalid value for"),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_user_errors(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    assert call(*arguments) == cli.USER_ERROR
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (here / "out").exists()


def test_config_error_names_file_and_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.yaml").write_text(CONFIG.replace("batch_size", "batchsize"))
    assert call("train", "bad.yaml") == cli.USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("error: bad.yaml:6: source (type preferences) has no key 'batchsize'")
    assert "did you mean 'batch_size'?" in said


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(ValueError, match="there is no config"):
        cli.main(["--debug", "train", "gone.yaml"])


def test_defects_are_not_hidden(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(Run, "build", fail)
    with pytest.raises(KeyError):
        cli.main(["train", "run.yaml"])


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (trainer.NonFinite("the loss is nan"), cli.NON_FINITE, "error: the loss is nan"),
        (trainer.Interrupted("stopped after 3"), cli.INTERRUPTED, "stopped: stopped after 3"),
        (ValueError("wrong"), cli.USER_ERROR, "error: wrong"),
        (OSError("no space left"), cli.USER_ERROR, "error: no space left"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_exit_codes(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    start: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Run, "build", fail)
    assert call("train", "run.yaml") == code
    assert capsys.readouterr().err.strip().startswith(start)


@pytest.mark.parametrize("kind", [*cli.KINDS, "configs"])
def test_list(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    assert call("list", kind, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found
    assert call("list", kind) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_every_shipped_config_says_what_it_is() -> None:
    found = listing.shipped_configs()
    assert found
    assert all(about.endswith(".") for about in found.values()), found


def test_shipped_config_by_name() -> None:
    assert targets.config_file("text/dpo") == targets.config_file("text/dpo.yaml")
    assert targets.config_file("text/dpo").is_file()


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "mmalign run"


@pytest.mark.parametrize("ok", [True, False])
def test_check_prints_its_lines(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ok: bool
) -> None:
    lines = [
        CheckLine(name="parameters", ok=True, detail="10 of 20 trained"),
        CheckLine(name="reference agrees", ok=ok, detail="apart by 0.1 nats"),
    ]
    monkeypatch.setattr(Run, "build", lambda _: None)
    monkeypatch.setattr(preflight, "check", lambda _, *, batches: lines)
    assert call("check", "run.yaml") == (cli.OK if ok else cli.FAILED)
    shown = capsys.readouterr().out
    assert "ok    parameters        10 of 20 trained" in shown
    assert ("FAIL" in shown) is not ok


def test_aligned_policy_starts_from_what_was_saved(tmp_path: Path) -> None:
    whole = targets.aligned(TextPolicy(), tmp_path)
    assert whole == TextPolicy(model=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    tuned = targets.aligned(TextPolicy(lora=LoRA(rank=2)), tmp_path)
    assert tuned == TextPolicy(lora=LoRA(rank=2, path=str(tmp_path)))
    with pytest.raises(ValueError, match="lora: null"):
        targets.aligned(TextPolicy(), tmp_path)


# ---- with a model ----------------------------------------------------------------------------


def fails(prompts: Sequence[Prompt], completions: Sequence[Output], **columns: Any) -> list[float]:
    raise RuntimeError("the scorer is down")


def rows(path: Path, *values: Any) -> str:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return f"source.data={{type: file, path: {path.name}}}"


GOOD = {"prompt": "compute 1 + 1", "chosen": "1 + 1 = 2 , answer 2", "rejected": "answer 3"}


def test_train_sample_eval_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way; a second `train` into the same folder is refused and loses nothing."""
    assert call("train", "run.yaml") == 0
    assert "exact: 0." in capsys.readouterr().out
    metrics = (here / "out" / "metrics.jsonl").read_text()
    assert [json.loads(x)["step"] for x in metrics.splitlines()] == [1, 2]

    assert call("train", "run.yaml") == cli.USER_ERROR
    assert "already holds a run" in capsys.readouterr().err
    assert (here / "out" / "metrics.jsonl").read_text() == metrics

    assert call("eval", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)["exact"]
    last = json.loads((here / "out" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert found["mean"] == pytest.approx(last["judge"]["exact"]["mean"])
    assert found["num_prompts"] == 4

    assert call("sample", "out", "--num", "3", "--samples", "2", "--output", "s.jsonl") == 0
    made = [json.loads(line) for line in (here / "s.jsonl").read_text().splitlines()]
    assert len(made) == 6
    assert made[0]["prompt"] == made[1]["prompt"] != made[2]["prompt"]

    assert call("report", "out") == 0
    assert "Alignment report" in (here / "out" / "report.html").read_text()


def test_sample_from_words_does_not_depend_on_batches(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--prompt", "compute 1 + 2", "--prompt", "compute 3 + 4", "--seed", "5"]
    for name, size in (("a.jsonl", "1"), ("b.jsonl", "2")):
        assert call("sample", "run.yaml", *given, "--batch-size", size, "--output", name) == 0
    assert (here / "a.jsonl").read_text() == (here / "b.jsonl").read_text()
    assert call("sample", "run.yaml", *given, "--output", "a.jsonl") == cli.USER_ERROR
    assert "exists already" in capsys.readouterr().err


def test_bad_data_and_reward(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stops with exit code 2 before anything is trained, and says where and what."""
    (here / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(here / "fine.png")
    picture = {**GOOD, "images": ["fine.png"]}
    cases = [
        (rows(here / "a.jsonl", GOOD, "{"), "a.jsonl:2: malformed JSON"),
        (rows(here / "b.jsonl", {**GOOD, "images": ["gone.png"]}), "b.jsonl:1: missing image"),
        (rows(here / "c.jsonl", {**GOOD, "images": ["broken.png"]}), "c.jsonl:1: broken image"),
        (rows(here / "d.jsonl", {**picture, "prompt": "<image><image>"}), "d.jsonl:1: placeholder"),
        (rows(here / "e.jsonl", {**GOOD, "chosen": ""}), "e.jsonl:1: empty answer"),
    ]
    for override, message in cases:
        assert call("train", "run.yaml", override) == cli.USER_ERROR
        assert message in capsys.readouterr().err
        assert not (here / "out" / "metrics.jsonl").exists()
    rollouts = (
        "source={type: rollouts, data: {type: tinyworld, task: arithmetic, size: 4}, batch_size: 2,"
        f" num_generations: 2, reward: {{type: function, path: '{__name__}:fails'}},"
        " selector: {type: best_worst}}"
    )
    assert call("train", "run.yaml", rollouts) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert f"{__name__}:fails raised RuntimeError: the scorer is down" in said


def test_image_that_would_be_cut(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "vision/lvlm_dpo", "policy.max_prompt_length=5") == cli.USER_ERROR
    said = capsys.readouterr().err
    assert "image tokens are never cut" in said
    assert "more than max_prompt_length=5" in said


@pytest.mark.slow
def test_signal_saves_and_resume_goes_on(here: Path) -> None:
    """Told to stop, a run ends its update, saves, and exits with 4; `--resume` makes the rest."""
    command = [sys.executable, "-m", "mmalign", "train", "run.yaml", "training.steps=40"]
    command += ["evaluation=null", "source.batch_size=2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = here / "out" / "metrics.jsonl"
    for _ in range(3000):
        if metrics.exists() or running.poll() is not None:
            break
        time.sleep(0.1)
    running.terminate()
    _, said = running.communicate(timeout=300)
    assert running.returncode == cli.INTERRUPTED, said
    assert "continue with --resume" in said
    done = len(metrics.read_text().splitlines())
    assert 0 < done < 40
    assert call("train", *command[4:], "--resume") == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 41))


def test_non_finite_loss(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An absurd learning rate ruins the second update; the first one's metrics are kept."""
    assert call("train", "run.yaml", "training.learning_rate=1e30") == cli.NON_FINITE
    assert "not finite" in capsys.readouterr().err
    assert len((here / "out" / "metrics.jsonl").read_text().splitlines()) == 1


def test_check_of_a_real_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "run.yaml") == cli.OK
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) >= 5
    assert "FAIL" not in shown
    assert not (here / "out" / "metrics.jsonl").exists()
